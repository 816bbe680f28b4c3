"""Models with a rejection class: attacks aim past label and rejection, and a rejected adversarial image counts as robust.

The network is a linear classifier with a linear detector. Its nearest image that is accepted and misclassified is the
projection onto two half-spaces, so every number has an oracle.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import QuantizedClassifier, Threat, diagnose, evaluate
from art_qplugins.attacks.craft import craft
from art_qplugins.errors import InputError
from art_qplugins.evaluation.reading import read_records
from art_qplugins.evaluation.score import score
from art_qplugins.evidence import replay
from art_qplugins.gradients.measure import measure
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import StochasticQuantizer
from art_qplugins.recipes.load import parse_recipe

N, EPS = 24, 0.1
COSINE = -0.8  # between the normals of classifier and detector: what fools the one alarms the other
LIMIT = 0.02  # how far the detector is from its threshold on clean images


class Detecting(nn.Module):
    """Logits (z, -z, max(z, -z) + d): d > 0 rejects."""

    def __init__(self, layer, order):
        super().__init__()
        self.layer, self.order = layer, order

    def forward(self, x):
        z, d = self.layer(x.flatten(1)).unbind(1)
        return torch.stack([z, -z, z.abs() + d], 1)[:, self.order]


def planes():
    """Orthonormal directions, and the normals (a, b) of classifier and detector with a.b = COSINE."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 2, generator=generator, dtype=torch.float64))[0].T
    return torch.stack([basis[0], COSINE * basis[0] + (1 - COSINE**2) ** 0.5 * basis[1]])


def images(z, d):
    """Images with these values of the classifier and of the detector, (len(z), 1, 8, 8)."""
    normals = planes()
    duals = torch.linalg.solve(normals @ normals.T, torch.stack([z, torch.full_like(z, d)]))
    return (0.5 + normals.T @ duals).T.float().view(-1, 1, 8, 8)


def make(order=(0, 1, 2)):
    """The network, accepted images of the class of z > 0 at distances 0.03 to 0.1 from the boundary, and the distances."""
    normals = planes()
    margins = torch.linspace(0.03, 0.1, N, dtype=torch.float64)
    bias = -normals @ torch.full((64,), 0.5, dtype=torch.float64)
    layer = nn.Linear(64, 2)
    layer.load_state_dict({"weight": normals.float(), "bias": bias.float()})
    return Detecting(layer, list(order)).eval(), images(margins, -LIMIT), margins


def nearest(margins):
    """The L2 distance to the nearest image with z <= 0 and d <= 0, by the multipliers of the projection."""
    gram = torch.tensor([[1.0, COSINE], [COSINE, 1.0]], dtype=torch.float64)
    outside = torch.stack([margins, torch.full_like(margins, -LIMIT)])
    duals = torch.linalg.solve(gram, outside)
    assert (duals > 0).all()  # both half-spaces bind: neither the classifier nor the detector alone decides
    return (outside * duals).sum(0).sqrt()


def classifier(module, classes=3, **settings):
    return QuantizedClassifier(module, nn.CrossEntropyLoss(), (1, 8, 8), classes, device_type="cpu", **settings)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 2, 1)], ids=["last", "first", "between"])
@pytest.mark.parametrize(
    ("attack", "reach"),  # of the steps of a fixed size of PGD, which zigzag between the two
    [("artq:apgd-margin", 0.95), ("artq:multi-targeted", 0.95), ("autoattack:apgd-ce", 0.9), ("art:pgd", 0.85)],
)
def test_an_attack_finds_what_is_accepted_and_wrong_where_a_plain_one_is_rejected(attack, reach, order):
    module, x, margins = make(order)
    abstain, y = order.index(2), torch.full((N,), order.index(0))
    threat = Threat("L2", EPS)
    distance = nearest(margins)
    assert 0.2 < (distance < EPS).double().mean() < 0.9

    def judged(estimator):
        options = {} if attack.startswith("autoattack") else {"max_iter": 100}
        x_adv = craft(estimator, attack, x, y, threat=threat, options=options).x_adv
        return score(module, x_adv, y, seed=0, abstain=abstain)

    found = judged(classifier(module, abstain=abstain))
    broken = torch.from_numpy(found["correct"] < 0.5)
    assert broken[distance < reach * EPS].all() and not broken[distance > 1.01 * EPS].any()
    assert judged(classifier(module))["correct"].mean() > found["correct"].mean() + 0.2


@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")  # foolbox
def test_every_library_is_given_the_classes_without_the_rejection():
    """Also for a black box, a minimum-norm attack and a random start; images of two labels come back in their order."""
    module, x, margins = make()
    x = torch.cat([x[:6], images(-margins[:6], -LIMIT)])[[0, 6, 7, 1, 2, 8, 3, 9, 4, 10, 11, 5]]
    with torch.no_grad():
        y = module(x).argmax(1)
    assert y.tolist() == [0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0]
    estimator = classifier(module, abstain=2)
    for attack, options in [
        ("art:hop-skip-jump", {"max_iter": 2, "max_eval": 100, "init_eval": 10}),
        ("torchattacks:cw", {}),
        ("foolbox:ddn", {}),
        ("autoattack:square", {"n_queries": 50}),
    ]:
        found = craft(estimator, attack, x, y, threat=Threat("L2", 0.3), options=options)
        assert found.x_adv.shape == x.shape and (found.x_adv - x).flatten(1).norm(dim=1).max() <= 0.3001
        assert found.forward_samples > 0


def test_scores_count_a_rejection_as_robust_and_say_how_many_there_are():
    module = nn.Flatten()
    logits = torch.tensor([[3.0, 1, 0], [1, 3, 0], [1, 2, 4], [3, 1, 4.0]])
    found = score(module, logits.view(4, 1, 1, 3), torch.zeros(4, dtype=torch.long), seed=0, abstain=2)
    assert found["prediction"].tolist() == [0, 1, 2, 2]
    assert found["correct"].tolist() == [1, 0, 1, 1] and found["rejected"].tolist() == [0, 0, 1, 1]
    assert found["margin"].tolist() == [2, -2, 2, 3]
    plain = score(module, logits.view(4, 1, 1, 3), torch.zeros(4, dtype=torch.long), seed=0)
    assert plain["correct"].tolist() == [1, 0, 0, 0] and "rejected" not in plain


def test_measurements_are_of_the_margin_past_both():
    """Where the detector decides, its gradient is the slope: that of the label alone predicts nothing of it."""
    module, _, margins = make()
    rejected, y = images(margins, 2 * EPS), torch.zeros(N, dtype=torch.long)
    found = measure(module, rejected, y, threat=Threat("Linf", 0.001), abstain=2)
    np.testing.assert_allclose(found.samples["fidelity"], 1, atol=1e-3)
    np.testing.assert_allclose(found.samples["alignment"], 1, atol=1e-5)


def test_a_diagnosis_gives_the_number_of_the_oracle(tmp_path):
    module, x, margins = make()
    rejected = images(margins[:4], 2 * EPS)  # no image within eps is accepted
    x, y = torch.cat([x, rejected]), torch.zeros(N + 4, dtype=torch.long)
    robust = (int((nearest(margins) > EPS).sum()) + 4) / (N + 4)
    found = diagnose(classifier(module), x, y, Threat("L2", EPS), abstain=2, level=1, out=tmp_path)
    (result,) = found.run.models
    assert (result.clean_accuracy, result.clean_rejected) == (pytest.approx(N / (N + 4)), pytest.approx(4 / (N + 4)))
    assert found.corrected_accuracy == pytest.approx(robust, abs=1.5 / (N + 4))
    assert "14.3 % rejected" in str(found.run)
    records, samples = read_records(tmp_path)
    assert records.models[0].clean_rejected == result.clean_rejected
    clean = next(cell for cell in records.cells if cell.role == "clean")
    assert [s.measures["rejected"] for s in samples[clean.id]] == [0] * N + [1] * 4
    assert "rejected" in (tmp_path / "report.html").read_text()
    again = replay(tmp_path / str(result.evidence), module)
    assert again.holds and again.broken == round((1 - found.corrected_accuracy) * (N + 4))


def test_a_share_of_rejected_images_that_is_not_that_of_its_images_is_refused(tmp_path):
    module, x, _ = make()
    evaluate(classifier(module, abstain=2), (x, torch.zeros(N, dtype=torch.long)), attacks=["art:fgsm"], out=tmp_path)
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    content["cells"][0]["rejected"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"its rejected is 0\.5, and the mean of its images is 0"):
        read_records(tmp_path)


def test_a_rejection_class_is_part_of_the_name_of_a_cell(tmp_path):
    """The same module and images without it are other numbers, which no run may take from the folder."""
    module, x, _ = make()
    data = (x, torch.zeros(N, dtype=torch.long))
    one = evaluate(classifier(module), data, attacks=["art:fgsm"])
    other = evaluate(classifier(module), data, attacks=["art:fgsm"], abstain=2)
    assert not {cell.id for cell in one.cells} & {cell.id for cell in other.cells}
    assert all(cell.rejected is None for cell in one.cells) and all(cell.rejected is not None for cell in other.cells)


def test_a_random_detector_rejects_in_a_share_of_its_draws():
    module, x, _ = make()
    noisy = nn.Sequential(StochasticQuantizer(num_bits=2), module)
    estimator = classifier(StochasticEnsemble(noisy, 2).eval(), abstain=2)
    found = evaluate(estimator, (x, torch.zeros(N, dtype=torch.long)), Threat("L2", EPS), ["artq:eot"])
    clean, attacked = found.cells
    assert attacked.status == "success" and clean.rejected is not None and attacked.accuracy >= attacked.rejected


@pytest.mark.parametrize(
    ("abstain", "says"),
    [
        (3, "abstain: it is 3, and the model has 3 outputs"),
        (-1, "abstain"),
        (True, "abstain: it is True"),
        (1.5, "abstain"),
        ("last", "abstain: it is 'last'"),
        (float("nan"), "abstain"),
        (0, "abstain: it is 0, and 24 of 24 images have this label"),
    ],
)
def test_a_rejection_class_that_cannot_be_is_refused_before_anything_runs(abstain, says):
    module, x, _ = make()

    def never(*_):
        raise AssertionError("the model was asked")

    module.forward = never
    with pytest.raises(InputError) as error:
        diagnose(classifier(module), x, torch.zeros(N, dtype=torch.long), Threat("L2", EPS), abstain=abstain)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_rejection_class_beside_one_class_is_refused():
    with pytest.raises(InputError, match="leaves one class"):
        classifier(nn.Flatten(), 2, abstain=1)


@pytest.mark.parametrize(("value", "says"), [(True, "abstain"), (-1, "abstain"), (10, "built here")])
def test_a_recipe_refuses_it_too(value, says):
    tables = {
        "name": "r",
        "data": {"name": "digits"},
        "threat": {"eps": [0.1]},
        "models": [{"name": "m", "abstain": value}],
        "attacks": [{"id": "art:fgsm"}],
    }
    with pytest.raises(InputError, match=says):
        parse_recipe(tables)
