"""Small networks for attacks of every library, settings to run each in a moment, and a linear model with its worst point."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize

LIBRARY_WARNINGS = [
    # What the libraries do themselves under NumPy 2 and SciPy 1.17, and what numba has to say before it compiles.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:torchattacks"),
    pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning:foolbox"),
    pytest.mark.filterwarnings("ignore:At the first initialisation the optimizer:UserWarning:foolbox"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning:eagerpy"),
]

#: Enough to run the code; whether an attack is strong is the oracles' business.
FAST = {
    "binary_search_steps": 2,
    "candidates": 3,
    "directions": 5,
    "eot_iter": 2,
    "init_eval": 5,
    "init_size": 30,
    "initial_gradient_eval_steps": 5,
    "k": 5,
    "max_eval": 20,
    "max_gradient_eval_steps": 20,
    "max_iter": 3,
    "n_queries": 30,
    "nb_parallel": 8,
    "nb_sample": 8,
    "noise_batch_size": 2,
    "num_random_init": 1,
    "num_trial": 3,
    "population": 4,
    "points": 4,
    "repeats": 3,
    "restarts": 2,
    "rounds": 1,
    "sample_size": 2,
    "steps": 5,
}
#: torchattacks divides by a tenth of them.
LEAST = {"torchattacks:eadl1": {"max_iter": 12}, "torchattacks:eaden": {"max_iter": 12}}
EPS = {"Linf": 0.2, "L2": 0.8, "L1": 3.0, "L0": 4.0}
#: numba compiles these for half a minute; AutoAttack has no short form, and test_attacks.py has the same for its parts.
SLOW = ("art:brendel-bethge", "foolbox:brendel-bethge", "art:uap", *(n for n in ATTACKS if n.startswith("autoattack:")))
#: Written for three channels.
COLOUR = ("torchattacks:tifgsm", "torchattacks:pifgsm", "torchattacks:pifgsmpp")
USABLE = {name: row for name, row in ATTACKS.items() if not row.refused}


def fast(name):
    return {k: v for k, v in FAST.items() if k in ATTACKS[name].options} | LEAST.get(name, {})


def cases(names):
    """(name, norm) for every norm of each."""
    return [
        pytest.param(name, norm, id=f"{name}-{norm}", marks=pytest.mark.slow if name in SLOW else ())
        for name in names
        for norm in ATTACKS[name].norms
    ]


def classifier(model, shape, nb_classes=10):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), shape, nb_classes, device_type="cpu")


class Steep(nn.Module):
    """Probabilities that are near 0 and 1."""

    def forward(self, z):
        return (200 * z).softmax(1)


def example(name):
    """A small network of the kind that the attack is for, four colour images and its own answers."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 10))
    if ATTACKS[name].models == "stochastic":
        net = StochasticEnsemble(quantize(net, activation_bits=3, clip=2.0, alpha=2.0), 2)
    elif ATTACKS[name].quantized:
        net = quantize(net, activation_bits=3, clip=2.0)
    elif name == "artq:unsaturated":
        net = nn.Sequential(net, Steep())
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.6 + 0.2
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    return classifier(net, (3, 8, 8)), x, y


def linear(bias=0.0):
    """Ten classes, and images so far from 0 and 1 that no eps below 0.3 reaches them.

    :param bias: added to class 0.
    """
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(10, 64, generator=generator) * 0.3)
        model[1].bias.copy_(torch.randn(10, generator=generator) * 0.1)
        model[1].bias[0] += bias
        x = torch.rand(4, 1, 8, 8, generator=generator) * 0.4 + 0.3
        y = model.eval()(x).argmax(1)
    return classifier(model, (1, 8, 8)), x, y


class Bend(nn.Module):
    """f(m_c) for every class c, m_c = z_c - max_{j != c} z_j, f(m) = sign(m) log(1 + |m| / 100) 100: the same decisions.

    f is concave where m > 0, so the tangent at an image meets 0 beyond the boundary, at about 1 + m / 200 times its distance.
    """

    def forward(self, z):
        first, second = z.topk(2, dim=1).values.split(1, dim=1)
        m = z - torch.where(z == first, second, first)
        return m.sign() * torch.log1p(m.abs() / 100) * 100


def bent():
    """Ten classes with the boundaries of a linear model, and four images clear of them and of 0 and 1.

    On a linear model itself, an attack that steps along the tangent lands on the boundary, and rounding alone says on which
    side. There the steps that would take it across are below the resolution of float32, and it stays: FMN, and ART's
    DeepFool, whose overshoot is 1e-6. With the bend it crosses by hundreds of times the rounding.
    """
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Bend())
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(10, 64, generator=generator) * 0.3)
        model[1].bias.copy_(torch.randn(10, generator=generator) * 0.1)
        x = torch.rand(64, 1, 8, 8, generator=generator) * 0.4 + 0.3
        y = model.eval()(x).argmax(1)
    margins = margin(model, x, y)
    clear = ((margins > 0.3) & (margins < 1)).nonzero()[:4, 0]
    return classifier(model, (1, 8, 8)), x[clear], y[clear]


def worst_margin(model, x, y, norm, eps):
    """min over the ball of z_y - max_{j != y} z_j, z those of the linear layer.

    By duality each difference of logits falls by eps times the dual norm of its weights; in L0 by its eps best values, each
    moved to 0 or 1. In L1 this is a bound: what is moved farthest may end at 0 or 1.
    """
    weight = model[1].weight.detach()
    difference = weight[None] - weight[y][:, None]  # (N, C, D)
    if norm == "L0":
        flat = x.flatten(1)[:, None]
        gain = torch.maximum(difference * (1 - flat), -difference * flat)
        fall = gain.topk(int(eps), dim=2).values.sum(2)
    else:
        dual = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
        fall = eps * torch.linalg.vector_norm(difference, ord=dual, dim=2)
    with torch.no_grad():
        logits = model[:2](x)
    margins = logits.gather(1, y[:, None]) - logits - fall
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


def margin(model, x, y):
    with torch.no_grad():
        logits = model(x)
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)
