"""ADP: its determinant in closed form, its gradient, and its loss against the formula of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from art_qplugins import InputError, train
from art_qplugins.defences.adversarial import Trades
from art_qplugins.defences.diversity import AdaptiveDiversity, log_diversity
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.mixture import Mixture
from art_qplugins.recipes.build import build_estimators, build_models
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.rehearse import rehearse
from art_qplugins.training.batches import loss_of

OFFSET = 1e-6


def mixture(members=3, width=2):
    torch.manual_seed(0)
    return Mixture([ConvNet((1, 8, 8), 10, width=width) for _ in range(members)])


@pytest.fixture(scope="module")
def few(digits):
    data = digits[0].take(16, seed=0)
    return data.x(), data.y()


def logits_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()[:, None]


def test_orthogonal_members_span_the_unit_volume():
    logits = 200.0 * torch.eye(5)[:, None]  # each gives the label nothing, and all else to another class
    found = log_diversity(logits[1:4], torch.tensor([0]))
    assert found.exp().item() == pytest.approx((1 + OFFSET) ** 3, rel=1e-9)


@pytest.mark.parametrize("members", [2, 3, 4])
def test_equal_members_span_none(members):
    logits = torch.randn(1, 6, 8).expand(members, -1, -1)
    expected = math.log((members + OFFSET) * OFFSET ** (members - 1))  # eigenvalues of a matrix of ones
    assert log_diversity(logits, torch.arange(6)).numpy() == pytest.approx(expected, rel=1e-6)


def test_two_members_span_the_sine_of_their_angle():
    """The label is the third class; the others are (0.3, 0.4) and (0.4, 0.3) times a number."""
    logits = logits_of([0.3, 0.4, 0.3], [0.04, 0.03, 0.93])
    cosine = (0.3 * 0.4 + 0.4 * 0.3) / 0.25
    found = log_diversity(logits, torch.tensor([2])).exp().item()
    assert found == pytest.approx((1 + OFFSET) ** 2 - cosine**2, rel=1e-9)


def test_it_depends_on_the_other_classes_alone_and_probabilities_may_vanish():
    logits, y = torch.randn(3, 5, 10), torch.arange(5)
    moved = logits.clone()
    moved[:, torch.arange(5), y] += 300.0
    torch.testing.assert_close(log_diversity(moved, y), log_diversity(logits, y))


def test_its_gradient_is_that_of_finite_differences():
    logits = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: log_diversity(z, torch.tensor([0, 6, 3, 3])), (logits,))


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("before", [False, True], ids=["alone", "with a term that calls the network"])
def test_the_loss_is_that_of_the_paper(alpha, beta, before, few):
    x, y = few
    model = mixture().eval()
    defences = [*([Trades(beta=0.0)] if before else []), AdaptiveDiversity(alpha, beta)]
    if before:
        defences[0].term = lambda model, x, y, logits: 0 * model(x.flip(0)).sum()
    for defence in defences:
        defence.start(model)
    found = loss_of(model, nn.functional.cross_entropy, defences, few)
    for defence in defences:
        defence.finish(model)
    p = model.of_members(x).double().softmax(-1)
    rows = [p[:, i, torch.arange(10) != y[i]] for i in range(len(x))]
    units = [row / row.norm(dim=1, keepdim=True) for row in rows]
    volumes = torch.stack([torch.det(unit @ unit.T + OFFSET * torch.eye(3)) for unit in units])
    mean = p.mean(0)
    entropy = -(mean * mean.log()).sum(1)
    each = sum(-p[k, torch.arange(len(x)), y].log().mean() for k in range(3))
    expected = each - alpha * entropy.mean() - beta * volumes.log().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_with_it_spreads_the_members(few):
    spread = []
    for defences in ([], [AdaptiveDiversity(alpha=0.0, beta=1.0)]):
        model = train(mixture(width=4), few, defences, epochs=15, batch_size=8, learning_rate=0.05)
        spread.append(log_diversity(model.of_members(few[0]), few[1]).mean().item())
    assert spread[1] > spread[0] + 1


def test_one_network_is_no_ensemble(few):
    with pytest.raises(InputError, match=r"defence 'adaptive-diversity' trains several networks.*members = 3"):
        train(ConvNet((1, 8, 8), 10, width=2), few, [AdaptiveDiversity()], epochs=1)


def test_more_members_than_other_classes_are_refused():
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 3
    model = Mixture([ConvNet((1, 8, 8), 3, width=2) for _ in range(3)])
    with pytest.raises(InputError, match="3 members cannot differ in 2 other classes"):
        train(model, (x, y), [AdaptiveDiversity()], epochs=1)


# --- In a recipe


def recipe(architecture, *defences, **more):
    model = {"name": "adp", "architecture": architecture, "train": {"epochs": 1}, "defences": list(defences), **more}
    return parse_recipe(
        {
            "name": "adp",
            "data": {"name": "digits"},
            "threat": {"eps": [0.1]},
            "models": [model],
            "attacks": [{"id": "art:fgsm"}],
        }
    )


THREE = {"name": "convnet", "options": {"width": 2}, "members": 3}


@pytest.mark.parametrize("quantized", [{}, {"activation_bits": 2, "alpha": 2.0}, {"weight_bits": 4}], ids=str)
def test_a_recipe_trains_the_members_together_and_loads_them(quantized, digits, tmp_path):
    settings = {"quantize": quantized, "normalize": {"mean": [0.5], "std": [0.5]}}
    given = recipe(THREE, "adaptive-diversity", **settings)
    assert rehearse(given, digits[1], {}) == []
    cpu, few = torch.device("cpu"), digits[0].take(64, seed=0)
    first, again = (build_models(given, few, tmp_path, device=cpu)["adp"] for _ in range(2))
    (found,) = (m for m in first.modules() if isinstance(m, Mixture))
    firsts = [member.conv1.weight for member in found.members]
    assert len(firsts) == 3 and not torch.equal(firsts[0], firsts[1])
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in again.state_dict().items())
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    checkpoint = str(next(tmp_path.glob("*.safetensors")))
    loaded = recipe(THREE, "adaptive-diversity", **settings, checkpoint=checkpoint)
    estimator = build_estimators(loaded, few, tmp_path, device=cpu)["adp"]
    assert estimator.predict(digits[1].x()[:3].numpy()).shape == (3, 10)
    single = recipe({**THREE, "members": 1}, "adaptive-diversity", **settings, checkpoint=checkpoint)
    with pytest.raises(InputError, match="made for another network"):
        build_models(single, few, tmp_path, device=cpu)


def test_it_is_described_and_refused(digits):
    (model,) = recipe(THREE, "adaptive-diversity").models
    assert describe(model) == "ensemble of 3 convnet; adaptive-diversity (alpha = 2, beta = 0.5)"
    for odd in (0, 101, "3", 2.5):
        with pytest.raises(InputError, match=r"architecture\.members"):
            recipe({**THREE, "members": odd})
    with pytest.raises(InputError, match="trains several networks together"):
        rehearse(recipe({**THREE, "members": 1}, "adaptive-diversity"), digits[1], {})
