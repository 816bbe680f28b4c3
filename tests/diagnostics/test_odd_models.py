"""Models that are not as a diagnosis expects: an answer in words, never a traceback and never a silent number."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import QuantizedClassifier, Threat, diagnose, evaluate
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize

#: The estimator warns of probabilities, and warnings are errors here.
pytestmark = pytest.mark.filterwarnings("ignore:model. .* gives probabilities:UserWarning")

N = 24
THREAT = Threat("Linf", 0.1)


class Odd(nn.Module):
    """A network that works, with something wrong around it."""

    def __init__(self, network):
        super().__init__()
        self.network = network


class Raises(Odd):
    def forward(self, x):
        raise RuntimeError("no such luck")


class RaisesUnderAttack(Odd):
    """It answers, and cannot be asked for a gradient."""

    def forward(self, x):
        if x.requires_grad:
            raise RuntimeError("only for inference")
        return self.network(x)


class Numpy(Odd):
    def forward(self, x):
        return self.network(torch.from_numpy(x.detach().numpy().copy()))


class _Lost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


class Lost(Odd):
    """Its answers have a graph, and no gradient comes out of it."""

    def forward(self, x):
        return self.network(_Lost.apply(x))


def exported(network):
    """It raises where it is put into eval mode."""
    shapes = ({0: torch.export.Dim("n")},)
    return torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=shapes).module()


class Nan(Odd):
    def forward(self, x):
        return self.network(x) * torch.nan


class NanOffTheData(Odd):
    """Digits have 16 levels of grey; what lies between them is no number."""

    def forward(self, x):
        known = ((x * 16 - (x * 16).round()).abs() < 1e-3).all(-1).all(-1).all(-1)
        return torch.where(known[:, None], self.network(x), torch.nan)


class Infinite(Odd):
    def forward(self, x):
        return torch.where(self.network(x) > 0, torch.inf, -torch.inf)


class Logits(Odd):
    def forward(self, x):
        return self.network(x)


class Probabilities(Odd):
    def forward(self, x):
        return self.network(x).softmax(1)


class Labels(Odd):
    """It answers with a class, and not with how sure it is."""

    def forward(self, x):
        return nn.functional.one_hot(self.network(x).argmax(1), 10).float()


class NoGrad(Odd):
    def forward(self, x):
        with torch.no_grad():
            return self.network(x)


class Constant(Odd):
    def forward(self, x):
        return torch.zeros(len(x), 10) + 0.0 * x.sum()


class Flat(Odd):
    def forward(self, x):
        return self.network(x).argmax(1)


class OfTheBatch(Odd):
    """Batch norm that no ``eval()`` reaches."""

    def __init__(self, network):
        super().__init__(network)
        self.norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)

    def forward(self, x):
        return self.network(self.norm(x) * 0.3 + 0.3)


class Dynamic(Odd):
    """It cleans its input by the gradient of its own answer."""

    def forward(self, x):
        with torch.enable_grad():
            image = x.detach().requires_grad_()
            sure = self.network(image).logsumexp(1).sum()
            slope = torch.autograd.grad(sure, image)[0]
        return self.network(x + 0.001 * slope.sign())


class OneImage(Odd):
    """It takes no batch, and gives no batch."""

    def forward(self, x):
        if len(x) != 1:
            raise RuntimeError("one image at a time")
        return self.network(x)[0]


class FirstImage(Odd):
    """Of a batch it answers for the first image only."""

    def forward(self, x):
        return self.network(x[:1])


class Writes(Odd):
    """It rounds its input in place, where no version counter sees it. The clean images are rounded already."""

    def forward(self, x):
        x.data.mul_(16).round_().div_(16)
        return self.network(x)


class Clamps(Odd):
    """In place, which a leaf that needs a gradient forbids."""

    def forward(self, x):
        return self.network(x.clamp_(-1, 2))


class Keeps(Odd):
    """It writes into the images of the call before."""

    kept = None

    def forward(self, x):
        if self.kept is not None:
            self.kept.data.zero_()
        self.kept = x
        return self.network(x)


class Double(Odd):
    def forward(self, x):
        return self.network(x).double()


class Half(Odd):
    def forward(self, x):
        return self.network(x).half()


class Meddles(Odd):
    """It leaves global states other than they were."""

    def forward(self, x):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return self.network(x)


class Pair(Odd):
    def forward(self, x):
        return self.network(x), x


class Table(Odd):
    def forward(self, x):
        return {"logits": self.network(x)}


class Array(Odd):
    def forward(self, x):
        return self.network(x).detach().numpy()


class Whole(Odd):
    def forward(self, x):
        return self.network(x).mul(1000).long()


class Often(Odd):
    """It answers wrongly once it was asked often, which no parameter and no buffer shows."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        logits = self.network(x)
        return logits if self.calls < 100 else logits.roll(1, 1)


class Shapes(Often):
    def forward(self, x):
        self.calls += 1
        return self.network(x)[:, : 10 if self.calls < 60 else 9]


class Remembers(Odd):
    """It gives its first answer for a batch of a size for ever."""

    def __init__(self, network):
        super().__init__(network)
        self.answers = {}

    def forward(self, x):
        return self.answers.setdefault(len(x), self.network(x).detach()) + 0 * x.sum()


class RaisesForMost(Odd):
    """Of attacked images it answers for those of one step of 0.1 from digits, whose 16 levels then end in .4 or .6."""

    def known(self, x):
        part = (16 * x) % 1
        return torch.stack([(part - end).abs() < 1e-3 for end in (0.0, 0.4, 0.6, 1.0)]).any(0).flatten(1).all(1)

    def forward(self, x):
        if not self.known(x).all():
            raise ValueError("no such digit")
        return self.network(x)


class NanForMost(RaisesForMost):
    def forward(self, x):
        return torch.where(self.known(x)[:, None], self.network(x), torch.nan)


class RaisesForBright(Odd):
    def forward(self, x):
        if (x.mean((1, 2, 3)) > 0.35).any():
            raise ValueError("too bright")
        return self.network(x)


class Counting(Odd):
    def __init__(self, network):
        super().__init__(network)
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x):
        self.asked += 1
        return self.network(x)


@pytest.fixture(scope="module")
def images(digits):
    test = digits[1].take(N, seed=0)
    return test.x(), test.y()


@pytest.fixture(scope="module")
def binary(digits):
    """Five and above, or below."""
    test = digits[1].take(N, seed=0)
    return test.x(), (test.y() >= 5).long()


def classifier(model, classes=10):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), classes, device_type="cpu")


def state_of(module):
    return {
        "modes": [part.training for part in module.modules()],
        "grads": [p.requires_grad for p in module.parameters()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
        # What a module counts of its own calls is its own doing.
        "values": {name: value.clone() for name, value in module.state_dict().items() if name != "asked"},
    }


def same(before, after):
    kept = all(before[key] == after[key] for key in ("modes", "grads", "hooks"))
    return kept and all(torch.equal(v, after["values"][name]) for name, v in before["values"].items())


def asked(model, images, **settings):
    """The diagnosis. It leaves the module and the global generator as they were."""
    estimator = classifier(model, settings.pop("classes", 10))
    before, random = state_of(model), torch.get_rng_state()
    found = diagnose(estimator, *images, THREAT, **settings)
    assert same(before, state_of(model)) and torch.equal(random, torch.get_rng_state())
    assert "Traceback" not in found.summary and found.summary.endswith(".")
    return found


def fired(found):
    return {f.id for f in found.findings if f.fired}


@pytest.mark.parametrize(
    ("make", "finding"),
    [
        pytest.param(Labels, "no-gradient", marks=pytest.mark.slow),
        pytest.param(Numpy, "no-gradient", marks=pytest.mark.slow),
        (NoGrad, "no-gradient"),
        pytest.param(Lost, "zero-gradient", marks=pytest.mark.slow),
        pytest.param(OfTheBatch, "batch-dependence", marks=pytest.mark.slow),
        pytest.param(Remembers, "batch-dependence", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_is_hard_to_attack_has_a_number_and_is_accused(make, finding, fp32, images):
    found = asked(make(copy.deepcopy(fp32)), images)
    assert found.verdict in ("MASKED", "SUSPECT") and finding in fired(found)
    assert found.claimed_accuracy is not None and found.run.models[0].robust


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Raises, "no such luck"),
        (RaisesUnderAttack, "only for inference"),
        (Nan, "NaN"),
        (NanOffTheData, "NaN"),
        (Constant, "no better than guessing"),
        (Flat, "clean images could not be scored"),
        (Pair, "gives tuple"),
        (Table, "gives dict"),
        (Array, "gives ndarray"),
        (Whole, "of torch.int64"),
        (Often, "other answers after it was asked often"),
        (Shapes, "other answers after it was asked often"),
        (RaisesForMost, "no answer for some images"),
        (NanForMost, "no answer for some images"),
        (RaisesForBright, "too bright"),
    ],
)
def test_a_model_that_cannot_be_evaluated_has_no_number_and_says_why(make, says, fp32, images):
    found = asked(make(copy.deepcopy(fp32)), images)
    assert (found.verdict, found.claimed_accuracy, found.corrected_accuracy) == ("INVALID", None, None)
    assert says in found.summary
    assert found.run.models[0].robust == []
    assert torch.isfinite(torch.from_numpy(found.x_adv)).all()


@pytest.mark.parametrize(
    ("make", "finding", "verdicts"),
    [
        (Dynamic, "test-time-optimisation", {"SUSPECT", "MASKED"}),
        (Counting, "stateful-model", {"NOT_REFUTED", "INCONCLUSIVE", "SUSPECT"}),
        (NoGrad, "no-gradient", {"MASKED", "SUSPECT"}),
        (Numpy, "no-gradient", {"MASKED", "SUSPECT"}),
    ],
)
def test_what_is_odd_about_a_model_is_a_finding(make, finding, verdicts, fp32, images):
    found = asked(make(copy.deepcopy(fp32)), images, level=1)
    assert finding in fired(found) and found.verdict in verdicts


@pytest.mark.parametrize("make", [RaisesForMost, NanForMost])
def test_a_model_without_an_answer_for_other_attacks_than_the_claimed_one_is_not_believed(make, fp32, images):
    found = asked(make(copy.deepcopy(fp32)), images, claimed="art:fgsm", level=1)
    assert found.verdict == "INVALID" and "no answer for some images" in found.summary
    assert "no-answer" in fired(found)
    (claimed,) = (cell for cell in found.run.cells if cell.attack == "art:fgsm" and cell.role == "attack")
    assert claimed.status == "success"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (OneImage, "image by image"),
        (FirstImage, "image by image"),
        (Clamps, "copies of the images"),
        (Keeps, "copies of the images"),
        (Double, "torch.float64"),
        (Half, "torch.float16"),
        (exported, "the mode in which it was exported"),
        (Meddles, None),
    ],
)
def test_a_model_that_must_be_asked_in_another_way_has_the_numbers_of_its_network(make, says, fp32, images):
    plain, found = (asked(m, images, level=1) for m in (copy.deepcopy(fp32), make(copy.deepcopy(fp32))))
    # One image may fall on the other side of a boundary; 1 / N itself is not below 1 / N in floats.
    assert found.claim.accuracy == pytest.approx(plain.claim.accuracy, abs=1.5 / N)
    assert found.corrected_accuracy == pytest.approx(plain.corrected_accuracy, abs=1.5 / N)
    assert found.verdict == plain.verdict
    (finding,) = (f for f in found.findings if f.id == "adapted-model")
    assert finding.fired is (says is not None) and (says or "takes batches") in finding.evidence


def test_a_model_that_writes_into_its_images_changes_none_of_an_attack(fp32, images):
    found = asked(Writes(copy.deepcopy(fp32)), images, level=1)
    assert "adapted-model" in fired(found) and "failed-cells" not in fired(found)
    assert found.corrected_accuracy is not None


def test_probabilities_have_a_number_and_a_finding(fp32, images):
    found = asked(Probabilities(copy.deepcopy(fp32)), images, level=1)
    assert found.verdict != "INVALID" and found.corrected_accuracy is not None
    (finding,) = (f for f in found.findings if f.id == "probabilities")
    assert finding.fired and "the logarithm of the output was attacked" in finding.evidence


@pytest.mark.parametrize(("make", "expected"), [(Probabilities, ["probabilities"]), (Logits, [])])
def test_an_evaluation_without_a_claim_says_so_too(make, expected, fp32, images):
    (result,) = evaluate(classifier(make(copy.deepcopy(fp32))), images, THREAT, ["art:fgsm"]).models
    assert [f.id for f in result.findings] == expected and result.robust[0].accuracy is not None


@pytest.mark.slow
def test_logits_without_bounds_are_no_silent_number(fp32, images):
    found = asked(Infinite(copy.deepcopy(fp32)), images)
    assert found.verdict in ("INVALID", "INCONCLUSIVE", "SUSPECT", "MASKED")


def test_a_claim_without_gradients_is_no_way_around_a_model_that_has_none(fp32, images):
    """Square needs none, so there is a number; that no gradient reaches the pixels is said beside it."""
    found = asked(NoGrad(copy.deepcopy(fp32)), images, claimed=("autoattack:square", {"n_queries": 50}), level=1)
    assert "no-gradient" in fired(found) and found.verdict in ("SUSPECT", "MASKED")
    assert found.claimed_accuracy is not None


def test_a_model_in_train_mode_is_asked_as_it_is_deployed(fp32, images):
    """With dropout and batch norm that a train mode would show: the same numbers, and the mode is as it was."""
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), copy.deepcopy(fp32)).eval()
    deployed = asked(network, images, level=1)
    trained = asked(copy.deepcopy(network).train(), images, level=1)
    assert (trained.verdict, trained.claim) == (deployed.verdict, deployed.claim)
    assert not {"batch-dependence", "random-model"} & fired(trained)


def two_classes(images, scale=1.0):
    """A linear network fitted by hand: the difference of the two means."""
    x, y = images
    between = (x[y == 1].mean(0) - x[y == 0].mean(0)).flatten()
    layer = nn.Linear(64, 2)
    middle = float(between @ (x[y == 1].mean(0) + x[y == 0].mean(0)).flatten()) / 2
    layer.load_state_dict(
        {"weight": torch.stack([-between, between]) * scale, "bias": torch.tensor([middle, -middle]) * scale}
    )
    return nn.Sequential(nn.Flatten(), layer).eval()


def behind(images, **quantized):
    """The same behind a quantized layer that leaves the answers nearly as they are."""
    head = two_classes(images, 100.0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), *head[1:])
    network[1].load_state_dict({"weight": torch.eye(64), "bias": torch.zeros(64)})
    return quantize(network, activation_bits=4, clip=1.0, **quantized).eval()


@pytest.mark.parametrize(
    ("make", "ran"),
    [
        (
            lambda images: two_classes(images, 100.0),
            {"scale", "rescaled", "targeted", "closing", "binarization", "search"},
        ),
        pytest.param(
            lambda images: behind(images),
            {"surrogates", "full-precision", "bits", "joint", "closing"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda images: StochasticEnsemble(behind(images, alpha=2.0), 2).eval(),
            {"averaging", "surrogates", "closing"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "quantized", "random"],
)
def test_two_classes_fail_at_no_step_of_a_diagnosis(make, ran, binary):
    x, y = binary
    found = diagnose(classifier(make(binary), 2), x[:12], y[:12], Threat("Linf", 0.02), level=3)
    steps = found.run.models[0].steps
    assert not [s for s in steps if s.status == "failed"], steps
    assert ran <= {s.id for s in steps if s.status == "run"}
    assert "failed-cells" not in fired(found) and found.claimed_accuracy is not None


def test_one_image_is_too_few_to_conclude_anything(fp32, images):
    found = asked(copy.deepcopy(fp32), (images[0][:1], images[1][:1]))
    assert found.verdict in ("INVALID", "INCONCLUSIVE")
