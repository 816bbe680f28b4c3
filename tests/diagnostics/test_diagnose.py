"""Diagnosed from Python: models whose truth is known, what proves it, and what is refused.

Most are linear networks, or wrapped ones: what the strongest attack leaves of them is known in closed form.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import classifier, images, linear, robust, robust_accuracy
from torch import nn

import art_qplugins
from art_qplugins import InputError, Threat, diagnose, evaluate
from art_qplugins.estimators import deployed

EPS = 0.02
THREAT = Threat("Linf", EPS)


class Scaled(nn.Module):
    def __init__(self, network, factor=1.0):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.network(x) * self.factor


class _Killed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class GradientKiller(Scaled):
    """The same answers, and a gradient of exactly zero."""

    def forward(self, x):
        return self.network(_Killed.apply(x))


class Rounding(Scaled):
    """Pixels rounded to five levels, whose true gradient is zero almost everywhere."""

    def forward(self, x):
        return self.network((x * 4).round() / 4)


class Detached(Scaled):
    def forward(self, x):
        return self.network(x.detach())


def fired(found):
    return {f.id for f in found.findings if f.fired}


@pytest.fixture(scope="module")
def honest():
    return diagnose(classifier(linear()), *images(linear()), THREAT)


@pytest.fixture(scope="module")
def large_logits():
    x, y = images(linear())
    return diagnose(classifier(Scaled(linear(), 1e4)), x.numpy(), y.numpy(), threat=THREAT)


@pytest.fixture(scope="module")
def handwritten(digits):
    test = digits[1].take(200, seed=0)
    return test.x(), test.y()


# --- In closed form


def test_of_a_linear_network_the_number_is_the_exact_one(honest):
    exact = robust_accuracy(linear()[1], *images(linear()), EPS)
    assert 0.2 < exact < 0.8
    assert (honest.verdict, honest.claim.status, honest.corrected_accuracy) == ("NOT_REFUTED", "HOLDS", exact)
    assert not [f.id for f in honest.findings if f.fired and f.class_ in "MV"]


def test_logits_times_ten_thousand_mask_and_hide_nothing_from_the_diagnosis(large_logits):
    found, (x, y) = large_logits, images(linear())
    exact = robust_accuracy(linear()[1], x, y, EPS)
    assert (found.verdict, found.claim.status, found.corrected_accuracy) == ("MASKED", "OVERSTATED", exact)
    assert found.claimed_accuracy > exact + 0.2
    assert {"zero-gradient", "loss-underflow", "large-logits", "logit-scale"} <= fired(found)


@pytest.mark.parametrize(
    ("make", "levels", "operation"),
    [
        pytest.param(GradientKiller, None, "_KilledBackward", marks=pytest.mark.slow),
        (Rounding, 4, "RoundBackward0"),
    ],
)
def test_a_blocked_gradient_is_found_out_and_repaired(make, levels, operation):
    model, eps = make(linear()), EPS if levels is None else 0.03
    x, y = images(model)
    found = diagnose(classifier(model), x, y, Threat("Linf", eps))
    exact = robust_accuracy(linear()[1], x, y, eps, levels)
    assert (found.verdict, found.claim.status, found.corrected_accuracy) == ("MASKED", "OVERSTATED", exact)
    assert found.claimed_accuracy > exact + 0.2
    assert {"surrogate-gradient", "zero-gradient", "blocking-operation", "unfaithful-gradient"} <= fired(found)
    assert found.run.models[0].layer.op == operation


def test_the_images_that_prove_it_can_be_replayed(large_logits):
    found, model, (x, y) = large_logits, Scaled(linear(), 1e4), images(linear())
    x_adv = torch.from_numpy(found.x_adv)
    assert x_adv.shape == x.shape and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    with torch.no_grad():
        survived = (model(x_adv).argmax(1) == y).numpy()
    np.testing.assert_array_equal(survived, robust(linear()[1], x, y, EPS).numpy())
    assert survived.mean() == found.corrected_accuracy
    assert str(found).startswith("MASKED: ")


@pytest.mark.slow
def test_a_model_that_detaches_its_input_has_the_number_of_the_network_behind_it():
    x, y = images(linear())
    found = diagnose(classifier(Detached(linear())), x, y, THREAT)
    exact = robust_accuracy(linear()[1], x, y, EPS)
    assert (found.verdict, found.claim.status, found.corrected_accuracy) == ("MASKED", "OVERSTATED", exact)
    assert found.claimed_accuracy > exact + 0.2
    assert {"no-gradient", "surrogate-gradient"} <= fired(found)
    assert any("the attack was given zeros" in note for cell in found.run.cells for note in cell.notes)


# --- Trained networks


def test_a_plain_network_is_not_accused(fp32, handwritten):
    found = diagnose(classifier(fp32, 10), *handwritten, Threat("Linf", 0.15))
    assert found.verdict == "NOT_REFUTED"
    assert not [f.id for f in found.findings if f.fired and f.class_ in "MV"]


def test_mu_law_masks_and_its_corrected_number_is_that_of_the_same_network_with_small_logits(mu_law, handwritten):
    found = diagnose(classifier(mu_law, 10), *handwritten, Threat("Linf", 0.15))
    small = diagnose(classifier(Scaled(mu_law, 0.02), 10), *handwritten, Threat("Linf", 0.15), level=2)
    assert (found.verdict, found.claim.status) == ("MASKED", "OVERSTATED")
    assert found.claimed_accuracy > small.corrected_accuracy + 0.2
    assert abs(found.corrected_accuracy - small.corrected_accuracy) < 0.03
    assert {"attack-gap", "logit-scale", "loss-underflow", "large-logits"} <= fired(found)


@pytest.mark.slow
def test_a_stochastic_network_that_is_attacked_through_its_average_is_not_accused(stochastic, handwritten):
    x, y = handwritten
    found = diagnose(classifier(stochastic, 10), x[:100], y[:100], Threat("Linf", 0.15))
    assert found.verdict == "NOT_REFUTED"
    assert not {"zero-gradient", "loss-underflow", "large-logits", "logit-scale"} & fired(found)


# --- evaluate() and diagnose() from Python


def test_a_plain_art_classifier_can_be_diagnosed(honest):
    from art.estimators.classification import PyTorchClassifier

    plain = PyTorchClassifier(linear(), nn.CrossEntropyLoss(), (1, 8, 8), 4, clip_values=(0, 1), device_type="cpu")
    found = diagnose(plain, *images(linear()), THREAT)
    assert (found.verdict, found.claimed_accuracy) == (honest.verdict, honest.claimed_accuracy)


def test_a_number_may_be_claimed(honest):
    found = diagnose(classifier(linear()), *images(linear()), THREAT, claimed=0.9)
    assert (found.claim.status, found.claimed_accuracy) == ("OVERSTATED", 0.9)
    assert found.corrected_accuracy == honest.corrected_accuracy


def test_evaluate_tells_models_apart_and_reuses_what_is_finished(tmp_path):
    x, y = images(linear(), 30)
    models = {"plain": classifier(linear()), "scaled": classifier(Scaled(linear(), 1e4))}
    threats = [Threat("Linf", 0.02), Threat("Linf", 0.01)]
    run = art_qplugins.evaluate(models, (x, y), threats, ["art:fgsm", ("art:pgd", {"max_iter": 3})], out=tmp_path)
    assert [m.name for m in run.models] == ["plain", "scaled"]
    assert len(run.cells) == 2 * (1 + 2 * 2)
    assert [r.eps for r in run.models[0].robust] == [0.01, 0.02]
    for c in run.cells:
        assert run.x_adv(c).shape == (30, 1, 8, 8)
    assert "plain" in str(run) and "Linf 0.01" in str(run) and "<pre>" in run._repr_html_()
    again = art_qplugins.evaluate(models, (x, y), threats, ["art:fgsm", ("art:pgd", {"max_iter": 3})], out=tmp_path)
    assert again.cells == run.cells  # the seconds too: nothing was computed


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"claimed": 56}, ["claimed: it is 56", "[0, 1]"]),
        ({"claimed": "art:pdg"}, ["unknown attack 'art:pdg'", "art:pgd"]),
        ({"x": torch.rand(5, 1, 8, 8) * 255}, ["[0, 1]"]),
        ({"x": torch.rand(4, 1, 8, 8)}, ["4", "5"]),
        ({"y": torch.tensor([0, 1, 2, 3, 10])}, ["10"]),
        ({"estimator": nn.Linear(1, 1)}, ["Linear", "PyTorchClassifier"]),
    ],
)
def test_bad_arguments_are_one_line(change, parts):
    arguments = {"estimator": classifier(linear()), "x": torch.rand(5, 1, 8, 8), "y": torch.arange(5) % 4, **change}
    with pytest.raises(InputError) as caught:
        diagnose(**arguments)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_what_art_applies_outside_the_module_is_attacked_and_judged_too():
    from art.defences.postprocessor import Rounded
    from art.defences.preprocessor import FeatureSqueezing
    from art.estimators.classification import PyTorchClassifier

    x, y = images(linear())
    around = {"preprocessing_defences": FeatureSqueezing((0, 1), 3), "postprocessing_defences": Rounded(2)}
    plain = PyTorchClassifier(
        linear(), nn.CrossEntropyLoss(), (1, 8, 8), 4, device_type="cpu", preprocessing=(0.5, 0.5), **around
    )
    found = diagnose(plain, x, y, Threat("Linf", 0.1), level=0)
    whole = deployed(plain).model
    assert found.run.models[0].clean_accuracy == pytest.approx(float((whole(x).argmax(1) == y).float().mean()))
    x_adv = torch.from_numpy(found.x_adv)
    assert float((whole(x_adv).argmax(1) == y).float().mean()) == pytest.approx(found.corrected_accuracy)
    assert found.corrected_accuracy < found.run.models[0].clean_accuracy


def test_images_may_have_another_shape_than_the_network_behind_an_encoder():
    from art.defences.preprocessor import ThermometerEncoding
    from art.estimators.classification import PyTorchClassifier

    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    encoder = ThermometerEncoding((0, 1), num_space=3, channels_first=True)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for shape in ((1, 8, 8), (3, 8, 8)):
        plain = PyTorchClassifier(
            network, nn.CrossEntropyLoss(), shape, 4, device_type="cpu", preprocessing_defences=encoder
        )
        y = deployed(plain).model(x).argmax(1)
        (result,) = evaluate(plain, (x, y), Threat("Linf", 0.3), ["art:fgsm"]).models
        assert result.clean_accuracy == 1 and result.robust[0].accuracy < 0.5
    with pytest.raises(InputError, match="give images of that shape"):
        evaluate(plain, (torch.rand(12, 1, 9, 9), y), Threat("Linf", 0.3), ["art:fgsm"])


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "where", ["inside", *(pytest.param(where, marks=pytest.mark.slow) for where in ("whole", "first"))]
)
def test_a_scripted_network_has_the_number_of_its_plain_one(where):
    """torch lets nobody look into it, or register a hook on it."""
    scripted = torch.jit.script(Rounding(linear()))
    model = {
        "whole": lambda: scripted,
        "first": lambda: nn.Sequential(scripted, nn.Identity()),
        "inside": lambda: Scaled(scripted),
    }[where]()
    x = images(linear())[0]
    with torch.no_grad():
        y = model(x).argmax(1)
    found = diagnose(classifier(model), x, y, Threat("Linf", 0.03), level=2)
    assert (found.verdict, found.corrected_accuracy) == ("MASKED", robust_accuracy(linear()[1], x, y, 0.03, 4))
