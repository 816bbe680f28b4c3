"""What the rows say of attacks, against what the attacks do: their loss, their gradient, their targets, their classes."""

from __future__ import annotations

import pytest
import torch
from catalogue_nets import COLOUR, LIBRARY_WARNINGS, USABLE
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import LogitScale
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.quantizers import QuantReLU

pytestmark = [
    *LIBRARY_WARNINGS,
    # AutoAttack's DLR with three classes.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

WHITE_BOX = {name: row for name, row in USABLE.items() if row.knowledge == "white-box"}
SUITES = ("autoattack:standard", "autoattack:plus", "autoattack:rand")
#: Half a minute each, or more.
SLOW = ("art:cw-linf", "art:uap", "art:brendel-bethge", "foolbox:brendel-bethge")
#: At its defaults, within a few pixels; it runs Carlini and Wagner's attack in L2.
FINDS_NOTHING = ("art:cw-l0",)
#: Written for exactly ten classes.
TEN_CLASSES = ("torchattacks:jsma",)
EPS = {"Linf": 0.08, "L2": 0.6, "L1": 5.0, "L0": 10}


class Fine(nn.Module):
    """A clip at [0, 1], which images are in, that is written as a quantized activation of 16 bits."""

    def __init__(self):
        super().__init__()
        self.activation = QuantReLU(16, clip=1.0)

    def forward(self, x):
        return self.activation(x)


class Steep(nn.Module):
    """Probabilities that are near 0 and 1."""

    def forward(self, z):
        return (10 * z).softmax(1)


class Noisy(nn.Module):
    """A little noise of its own on every pixel, from torch's global generator."""

    def forward(self, x):
        return x * (1 + 0.05 * torch.randn_like(x))


def linear(name, nb_classes=10, bias=0.0):
    """A linear model of the kind that the attack is for, and eight images of its own answers.

    :param bias: added to class 0.
    """
    row, channels = ATTACKS[name], 3 if name in COLOUR else 1
    front = [Fine()] if row.quantized else [Noisy()] if row.models == "stochastic" else []
    generator, values = torch.Generator().manual_seed(1), 64 * channels
    head = nn.Linear(values, nb_classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(nb_classes, values, generator=generator) * 0.3)
        head.bias.copy_(torch.randn(nb_classes, generator=generator) * 0.1)
        head.bias[0] += bias
        x = torch.rand(8, channels, 8, 8, generator=generator) * 0.4 + 0.3
        y = head(x.flatten(1)).argmax(1)
    answer = nn.Sequential(head, Steep()) if name == "artq:unsaturated" else head
    return nn.Sequential(*front, nn.Flatten(), answer).eval(), x, y


def attacked(name, network, x, y, norm, eps, nb_classes=10, **options):
    estimator = QuantizedClassifier(network, nn.CrossEntropyLoss(), x.shape[1:], nb_classes, device_type="cpu")
    return craft(estimator, name, x, y, threat=Threat(norm, eps), options=options, seed=2)


def marked(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


# --- The scale of the logits


def found(name, scale):
    """The images of an attack on logits times ``scale``, and which of them are broken."""
    network, x, y = linear(name)
    shown = network if scale == 1 else LogitScale(network, 1 / scale).eval()
    norm, default = ATTACKS[name].norms[0], ATTACKS[name].defaults.get("max_iter")
    options = {"max_iter": min(default, 30 if default < 1000 else 100)} if default else {}
    x_adv = attacked(name, shown, x, y, norm, EPS[norm], **options).x_adv
    with torch.no_grad():
        return x_adv, network[-2:](x_adv).argmax(1) != y  # without the noise


@pytest.mark.parametrize("name", marked(n for n, row in WHITE_BOX.items() if row.scale_free))
def test_what_is_scale_free_finds_the_same_images_at_every_scale_of_the_logits(name):
    plain, broken = found(name, 1)
    scaled, broken_too = found(name, 2.0**13)  # a power of two, so that nothing is rounded
    assert broken.any() and torch.equal(broken, broken_too)
    if name not in SUITES:  # which also have parts on cross-entropy
        torch.testing.assert_close(scaled, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", marked(n for n, row in WHITE_BOX.items() if not (row.scale_free or n in FINDS_NOTHING))
)
def test_what_is_not_scale_free_is_led_elsewhere_by_some_scale_of_the_logits(name):
    plain, broken = found(name, 1)
    assert broken.any()
    others = (found(name, scale)[0] for scale in (2.0**13, 2.0**-13))
    assert any(not torch.allclose(other, plain, atol=1e-3, rtol=0) for other in others)


# --- The gradient

#: Of a fixed number of gradients: an image that it does not break takes as many at every step.
FIXED = [
    name
    for name, row in WHITE_BOX.items()
    if {"max_iter"} <= row.options.keys() and not row.minimum_norm and row.gradient != "repaired" and name not in SLOW
]


def gradients(name, nb_classes=10, **options):
    """How many one image takes that is not broken."""
    network, x, _ = linear(name, nb_classes, bias=30.0)
    norm = ATTACKS[name].norms[0]
    y = torch.zeros(len(x), dtype=torch.int64)
    options = {k: v for k, v in {"num_random_init": 1, **options}.items() if k in ATTACKS[name].options}
    return attacked(name, network, x, y, norm, 0.01, nb_classes, **options).backward_samples / len(x)


@pytest.mark.parametrize("name", [name for name in FIXED if not ATTACKS[name].targeted])
def test_a_mean_gradient_is_of_several_calls_at_each_step_and_the_models_own_of_one(name):
    for eot_iter in (1, 3) if "eot_iter" in ATTACKS[name].options else (None,):
        chosen = {} if eot_iter is None else {"eot_iter": eot_iter}
        calls = (gradients(name, max_iter=8, **chosen) - gradients(name, max_iter=6, **chosen)) / 2
        assert ATTACKS[name].follows(chosen) == ("mean" if calls > 1 else "own"), calls


@pytest.mark.parametrize(("eot_iter", "gradient"), [(1, "own"), (2, "mean"), (20, "mean")])
def test_the_draws_of_autoattacks_random_suite_say_what_it_follows(eot_iter, gradient):
    assert ATTACKS["autoattack:rand"].follows({"eot_iter": eot_iter}) == gradient


# --- The targets


@pytest.mark.parametrize("name", ["artq:multi-targeted", "autoattack:apgd-t", "torchattacks:apgdt"])
def test_a_targeted_attack_takes_gradients_for_each_other_class(name):
    assert ATTACKS[name].targeted
    assert gradients(name, 10, max_iter=4) == pytest.approx(9 / 4 * gradients(name, 5, max_iter=4))


@pytest.mark.parametrize("name", [name for name in FIXED if not ATTACKS[name].targeted])
def test_an_untargeted_attack_takes_as_many_gradients_whatever_the_classes(name):
    chosen = {"max_iter": 4, "eot_iter": 2}
    assert gradients(name, 10, **chosen) == gradients(name, 5, **chosen)


# --- The number of classes

FEW = {"max_iter": 3, "n_queries": 30, "eot_iter": 2, "binary_search_steps": 2, "num_random_init": 1, "init_size": 30}
FEW |= {"max_eval": 20, "init_eval": 5, "initial_gradient_eval_steps": 5, "max_gradient_eval_steps": 20, "num_trial": 3}
FEW |= {"k": 5, "sample_size": 2, "nb_sample": 8, "population": 4, "repeats": 3, "restarts": 2, "rounds": 1, "steps": 5}
LONGER = {"torchattacks:eadl1": {"max_iter": 12}, "torchattacks:eaden": {"max_iter": 12}}


@pytest.mark.parametrize("name", marked(n for n in USABLE if n not in TEN_CLASSES))
def test_an_attack_runs_with_as_few_classes_as_it_needs_and_refuses_fewer(name):
    row = ATTACKS[name]
    norm, least = row.norms[0], row.needs_classes
    options = {k: v for k, v in FEW.items() if k in row.options} | LONGER.get(name, {})
    assert 2 <= least <= 4
    x_adv = attacked(name, *linear(name, least), norm, EPS[norm], least, **options).x_adv
    assert x_adv.isfinite().all() or name == "foolbox:vat"
    if least > 2:
        with pytest.raises(InputError, match=f"^{name}: .*needs? {least} classes and the model has {least - 1}"):
            attacked(name, *linear(name, least - 1), norm, EPS[norm], least - 1, **options)


# --- All rows


@pytest.mark.parametrize("name", ATTACKS)
def test_the_facts_of_a_row_do_not_contradict_each_other(name):
    row = ATTACKS[name]
    white = row.knowledge == "white-box"
    assert white or (row.gradient == "own" and not row.scale_free and not row.targeted and not row.one_step)
    assert row.ignores_scale == (row.scale_free or not white)
    assert row.follows({}) == row.gradient
    assert row.gradient == "own" or not row.one_step
    assert not (row.one_step and "max_iter" in row.options), "one step: give its max_iter in fixed, not in options"
    assert not (row.one_step and row.minimum_norm)
    assert not row.takes_start or row.library.name == "artq"
    assert (row.cost is None) == bool(row.refused)
