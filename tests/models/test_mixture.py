"""Mixtures against their definition: rules over constructed members, and the random choice of one of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantizedClassifier, quantize
from art_qplugins.evaluation.score import score
from art_qplugins.fingerprint import fingerprint
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.mixture import Mixture
from art_qplugins.models.rules import RULES
from art_qplugins.quantizers import draws_from, is_stochastic
from art_qplugins.recipes.factory import make_estimator


class Says(nn.Module):
    """Always the same logits, plus a term of the pixels that is 0 where they are."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x):
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


def networks(n=3):
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        made.append(ConvNet((1, 8, 8), 10, width=2).eval())
    return made


def images(n=6):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", RULES)
def test_an_ensemble_is_its_rule_over_its_members(rule):
    members, x = networks(), images().requires_grad_()
    mixture = Mixture(members, rule=rule)
    expected = RULES[rule](torch.stack([member(x) for member in members]))
    torch.testing.assert_close(mixture(x), expected, rtol=0, atol=0)
    assert not is_stochastic(mixture) and torch.equal(mixture(x), mixture(x))
    gradients = [torch.autograd.grad(logits[:, 3].sum(), x)[0] for logits in (mixture(x), expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_the_mean_probability_of_constructed_members():
    mixture = Mixture([Says(0.0, 0.0), Says(0.0, 40.0)])
    torch.testing.assert_close(mixture(images(2)).exp(), torch.tensor([[0.25, 0.75]] * 2))


def test_members_of_several_precisions_are_empir(fp32, digits):
    """The mixture is attacked through its own gradient, and judged as deterministic."""
    test = digits[1].take(100, seed=0)
    members = [fp32, quantize(fp32, activation_bits=4), quantize(fp32, activation_bits=4, weight_bits=4)]
    estimator = QuantizedClassifier(Mixture(members), nn.CrossEntropyLoss(), (1, 8, 8), 10)
    mean = torch.stack([member(test.x()).softmax(1) for member in members]).mean(0)
    assert (estimator.predict(test.x().numpy()).argmax(1) == mean.argmax(1).numpy()).all()
    found = score(estimator.model, test.x(), test.y(), seed=0)
    assert set(found["correct"]) <= {0.0, 1.0}


# --- Random


def random_of(*logits, seed=0):
    return Mixture([Says(*each) for each in logits], random=True, seed=seed)


def test_a_random_mixture_answers_each_image_with_one_member():
    members, x = networks(), images(60)
    with torch.no_grad():
        each = torch.stack([member(x) for member in members])
        found = Mixture(members, random=True)(x)
    same = (each == found).all(-1)
    assert (same.sum(0) == 1).all() and same.any(1).all()  # all members answer some


def test_members_are_drawn_with_equal_probability_afresh_at_each_call():
    mixture, x = random_of((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), images(3000)
    with torch.no_grad():
        shares = [mixture(x).mean(0) for _ in range(2)]
        assert not torch.equal(mixture(x), mixture(x))
    for share in shares:
        torch.testing.assert_close(share, torch.full((3,), 1 / 3), rtol=0, atol=0.05)  # 6 deviations


def test_its_choices_are_keyed():
    mixture, x = random_of((1.0, 0), (0, 1.0)), images(64)
    answers = []
    with torch.no_grad():
        for seed in (3, 3, 4):
            torch.manual_seed(len(answers))
            with draws_from(mixture, seed):
                answers.append(mixture(x))
        before = torch.random.get_rng_state()
        mixture(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    assert not torch.equal(random_of((1.0, 0), (0, 1.0), seed=1)(x), random_of((1.0, 0), (0, 1.0), seed=2)(x))


def test_a_gradient_sees_the_exact_expectation():
    members, x = networks(), images().requires_grad_()
    mixture, ensemble = Mixture(members, random=True), Mixture(members)
    y = torch.arange(6)
    losses = [nn.functional.cross_entropy(model(x), y) for model in (mixture, ensemble)]
    gradients = [torch.autograd.grad(loss, x)[0] for loss in losses]
    assert torch.equal(losses[0], losses[1]) and torch.equal(gradients[0], gradients[1])


def test_it_is_scored_by_its_draws():
    """One of two members is right: so is half of all draws, and the mean answer is not what counts."""
    mixture, x = random_of((1.0, 0.0), (0.0, 50.0)), images(500)
    found = score(mixture, x, torch.zeros(500, dtype=torch.int64), seed=0)
    assert is_stochastic(mixture)
    assert found["correct"].mean() == pytest.approx(0.5, abs=0.03)  # 6 deviations of 10,000 draws
    assert found["selection"].mean() == pytest.approx(0.5, abs=0.03)
    assert not (found["correct"] == found["selection"]).all()


def test_draws_of_a_random_mixture_can_be_averaged():
    members, x = networks(2), images()
    ensemble = StochasticEnsemble(Mixture(members, random=True), 400, rule="mean-logits").eval()
    with torch.no_grad():
        found, each = ensemble(x), torch.stack([member(x) for member in members])
    spread = (each[0] - each[1]).abs() / 2 / 400**0.5
    assert ((found - each.mean(0)).abs() <= 6 * spread + 1e-5).all()


def test_what_is_drawn_is_no_part_of_its_identity():
    mixture = random_of((1.0, 0), (0, 1.0))
    before = fingerprint(mixture)
    mixture(images())
    assert fingerprint(mixture) == before == fingerprint(pickle.loads(pickle.dumps(mixture)))
    assert fingerprint(copy.deepcopy(mixture)) == before
    assert fingerprint(Mixture(list(mixture.members))) != before


RANDOM = random_of(*(5 * torch.eye(10)).tolist())


def test_a_random_mixture_of_the_users_is_deployed_as_it_is(digits):
    estimator = make_estimator(f"{__name__}:RANDOM", None, digits[1])
    assert type(estimator) is QuantizedClassifier and isinstance(estimator.model, Mixture)


# --- Refused


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Mixture(networks(1)), "members: .* at least 2"),
        (
            lambda: Mixture([*networks(1), quantize(networks(1)[0], activation_bits=2, alpha=2.0)]),
            "members: number 1 draws noise; a mixture takes networks that draw none",
        ),
        (lambda: Mixture(networks(), rule="mean-logits", random=True), "rule: a random mixture answers with one"),
        (lambda: Mixture([Says(0.0, 1.0), Says(0.0, 1.0, 2.0)])(images()), r"members: they give \[2, 3\] logits"),
    ],
)
def test_what_is_no_mixture_is_refused(make, expected):
    with pytest.raises(InputError, match=expected):
        make()
