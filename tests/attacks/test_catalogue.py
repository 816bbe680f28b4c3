"""Every attack of the libraries: a row for each, the same contract for all, and the worst point that none can pass."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.adapters.options import within
from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.score import check_legal
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.threat import NORMS

pytestmark = [
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
    "repeats": 3,
    "restarts": 2,
    "sample_size": 2,
}
#: torchattacks divides by a tenth of them.
LEAST = {"torchattacks:eadl1": {"max_iter": 12}, "torchattacks:eaden": {"max_iter": 12}}
EPS = {"Linf": 0.2, "L2": 0.8, "L1": 3.0, "L0": 4.0}
#: numba compiles these for half a minute; AutoAttack has no short form, and test_attacks.py has the same for its parts.
SLOW = ("art:brendel-bethge", "foolbox:brendel-bethge", "art:uap", *(n for n in ATTACKS if n.startswith("autoattack:")))
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


def subject(name):
    """A small network of the kind that the attack is for, four colour images and its own answers."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 10))
    if ATTACKS[name].models == "stochastic":
        net = StochasticEnsemble(quantize(net, activation_bits=3, clip=2.0, alpha=2.0), 2)
    elif ATTACKS[name].quantized:
        net = quantize(net, activation_bits=3, clip=2.0)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.6 + 0.2
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    return classifier(net, (3, 8, 8)), x, y


# --- Every attack is a row, or is known not to be one

ART_ONLY = "art.attacks.evasion"
EXCLUDED = {
    "art": {
        "AutoAttack": "not the published one: APGD-CE, APGD-DLR, DeepFool and ART's Square; autoattack:standard is",
        "ProjectedGradientDescent": "hands on to ProjectedGradientDescentPyTorch, art:pgd",
        "ProjectedGradientDescentCommon": "the base of the PGD classes, without a generate of its own",
        "PixelThreshold": "the base of PixelAttack and ThresholdAttack",
        "AdversarialPatch": "hands on to AdversarialPatchPyTorch or AdversarialPatchNumpy",
        "AdversarialPatchTensorFlowV2": "TensorFlow",
        "FeatureAdversariesTensorFlowV2": "TensorFlow",
        "ProjectedGradientDescentTensorFlowV2": "TensorFlow",
        "MalwareGDTensorFlow": "executables as bytes, TensorFlow",
        "AdversarialTexturePyTorch": "object tracking",
        "CarliniWagnerASR": "speech recognition",
        "ImperceptibleASR": "speech recognition",
        "ImperceptibleASRPyTorch": "speech recognition",
        "DPatch": "object detection",
        "RobustDPatch": "object detection",
        "OverloadPyTorch": "object detection (YOLO)",
        "SNAL": "object detection",
        "DecisionTreeAttack": "scikit-learn's decision trees",
        "HighConfidenceLowUncertainty": "Gaussian processes of GPy",
        "LowProFool": "rows of a table, not images",
        "FrameSaliencyAttack": "frames of a video",
        "OverTheAirFlickeringPyTorch": "frames of a video",
    },
    "torchattacks": {
        "AutoAttack": "not the published one: 10 iterations in place of 100; autoattack:standard is",
        "VANILA": "gives back the image; artq:clean",
        "MultiAttack": "runs other attacks; the worst case over attacks is taken by the evaluation",
        "LGV": "trains a collection of models to attack others from",
    },
    "autoattack": {"custom": "a list of the parts, which are rows here"},
    "foolbox": {"Attack": "the base of all"},
}


def art_attacks():
    """Every evasion attack in ART's package."""
    from art.attacks import EvasionAttack

    package, found = importlib.import_module(ART_ONLY), {"BrendelBethgeAttack"}
    for info in pkgutil.walk_packages(package.__path__, f"{ART_ONLY}."):
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if (info.name, error.name) != (f"{ART_ONLY}.brendel_bethge", "numba"):
                raise
            continue
        classes = inspect.getmembers(module, lambda c: inspect.isclass(c) and issubclass(c, EvasionAttack))
        found |= {name for name, c in classes if c is not EvasionAttack}
    return found


def torchattacks_attacks():
    import torchattacks

    classes = {name for name, value in vars(torchattacks).items() if inspect.isclass(value)}
    assert classes >= set(torchattacks.__all__)
    return classes


def autoattack_parts():
    import pyautoattack
    from torch.nn import Flatten

    said = inspect.signature(pyautoattack.AutoAttack).parameters
    versions, parts = (set(_strings(said[name].annotation)) for name in ("version", "attacks"))
    assert pyautoattack.AutoAttack(Flatten(), version="standard")
    return versions | parts


def _strings(annotation):
    """Of Literal[...], however deep it is."""
    import typing

    for argument in typing.get_args(annotation):
        yield from [argument] if isinstance(argument, str) else _strings(argument)


def foolbox_attacks():
    foolbox = pytest.importorskip("foolbox", reason="the extra [foolbox] is not installed")
    return {
        c.__name__
        for c in vars(foolbox.attacks).values()
        if inspect.isclass(c) and issubclass(c, foolbox.attacks.Attack)
    }


@pytest.mark.parametrize(
    ("library", "installed"),
    [
        ("art", art_attacks),
        ("torchattacks", torchattacks_attacks),
        ("autoattack", autoattack_parts),
        ("foolbox", foolbox_attacks),
    ],
)
def test_every_attack_of_the_library_is_a_row_or_excluded_with_a_reason(library, installed):
    rows = {u for name, row in ATTACKS.items() if name.split(":")[0] == library for u in row.upstream.split()}
    assert not rows & set(EXCLUDED[library])
    assert all(EXCLUDED[library].values())
    assert rows | set(EXCLUDED[library]) == installed()


def test_what_is_not_autoattack_does_not_have_its_name():
    assert {name for name in ATTACKS if "autoattack" in name.split(":")[1]} == set()
    for name in ("art:autoattack", "torchattacks:autoattack"):
        with pytest.raises(InputError, match=f"unknown attack '{name}'"):
            ATTACKS[name]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_says_what_there_is_to_know(name):
    row = ATTACKS[name]
    assert row.name == name and len(row.help) < 160
    assert set(row.norms) <= set(NORMS) and bool(row.norms) != bool(row.refused)
    assert len(row.upstream.split()) in (1, len(row.norms))
    assert row.knowledge == ("white-box" if row.needs == "gradients" else "black-box")
    assert set(row.names) <= {*row.options}
    if row.refused:
        with pytest.raises(InputError, match=f"^{name} cannot be chosen: ") as caught:
            row.resolve({})
        assert "\n" not in str(caught.value) and row.refused in row.help
    else:
        assert row.resolve({}) == dict(row.options)
        gradients, forwards = row.cost
        assert (gradients > 0) == (row.needs == "gradients") and forwards >= 0
        assert gradients <= 1 or not row.one_step


# --- The contract


@pytest.mark.parametrize(("name", "norm"), cases(USABLE))
def test_images_are_legal_and_repeatable_and_all_else_is_as_before(name, norm):
    estimator, x, y = subject(name)
    threat, model = Threat(norm, EPS[norm]), estimator.model
    dropout = next(m for m in model.modules() if isinstance(m, nn.Dropout))
    dropout.train()  # Monte-Carlo dropout: train mode inside an eval root
    next(model.parameters()).requires_grad_(False)
    images, labels = x.clone(), y.clone()
    found = []
    for noise in (41, 99):  # only the seed that is passed counts
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        before = state(model)
        found.append(craft(estimator, name, x, y, threat=threat, options=fast(name), seed=7, batch_size=3))
        assert state(model) == before
        assert dropout.training
    first, again = found
    assert first.x_adv.dtype == torch.float32 and not first.x_adv.requires_grad
    check_legal(x, first.x_adv, threat)
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(x, images) and torch.equal(y, labels)
    asked = first.forward_samples, first.backward_samples
    assert asked == (again.forward_samples, again.backward_samples)
    needs = ATTACKS[name].needs
    assert (asked[1] > 0) == (needs == "gradients")
    assert asked[0] > 0 or needs == "nothing"


def state(model):
    """What others change and do not put back."""
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad is None for p in model.parameters()],
        "weights": [p.sum().item() for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "trace": sys.gettrace(),
        "grad_enabled": torch.is_grad_enabled(),
    }


# --- Oracle: z = W x + b on grey images, whose worst point within a budget is known in closed form


def linear(bias=0.0):
    """Ten classes, and images so far from 0 and 1 that no budget below 0.3 a value meets them.

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


def worst_margin(model, x, y, norm, eps):
    """min over the ball of z_y - max_{j != y} z_j.

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
        logits = model(x)
    margins = logits.gather(1, y[:, None]) - logits - fall
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


def margin(model, x, y):
    with torch.no_grad():
        logits = model(x)
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)


#: Written for three channels.
COLOUR = ("torchattacks:tifgsm", "torchattacks:pifgsm", "torchattacks:pifgsmpp")
PLAIN = [n for n, row in USABLE.items() if row.models == "any" and not row.quantized and n not in COLOUR]


@pytest.mark.parametrize(("name", "norm"), cases(PLAIN))
def test_no_attack_gets_below_the_worst_point(name, norm):
    estimator, x, y = linear()
    threat = Threat(norm, {"Linf": 0.02, "L2": 0.08, "L1": 0.25, "L0": 2}[norm])
    crafted = craft(estimator, name, x, y, threat=threat, options=fast(name))
    worst = worst_margin(estimator.model, x, y, norm, threat.eps)
    assert (margin(estimator.model, crafted.x_adv, y) >= worst - 1e-4).all()


#: Those that find the nearest adversarial image of a linear model, at their defaults, up to this factor.
NEAREST = [
    ("art:deepfool", "L2", 1.02),
    ("art:cw-l2", "L2", 1.5),
    pytest.param("art:cw-linf", "Linf", 1.5, marks=pytest.mark.slow),
    ("torchattacks:deepfool", "L2", 1.05),
    ("torchattacks:fab", "Linf", 1.1),
    ("torchattacks:fab", "L2", 1.1),
    ("torchattacks:cw", "L2", 2.0),
    ("autoattack:fab", "L2", 1.05),
    ("autoattack:fab", "L1", 1.1),
    ("foolbox:deepfool", "Linf", 1.05),
    ("foolbox:deepfool", "L2", 1.05),
    ("foolbox:fmn", "Linf", 1.1),
    ("foolbox:fmn", "L1", 1.2),
    ("foolbox:ddn", "L2", 1.1),
    ("art:hop-skip-jump", "L2", 2.0),
]


@pytest.mark.parametrize(("name", "norm", "factor"), NEAREST)
def test_a_minimum_norm_attack_is_found_within_the_budget_or_not_at_all(name, norm, factor):
    """Just above the distance of the boundary every image is found, just below it none, and those come back clean."""
    estimator, x, y = linear()
    slope = -worst_margin(estimator.model, x, y, norm, 1.0) + margin(estimator.model, x, y)
    assert (slope > 0).all()
    distances = torch.stack([boundary(estimator.model, x, y, norm, i) for i in range(len(x))])
    above, below = Threat(norm, float(distances.max()) * factor), Threat(norm, float(distances.min()) * 0.98)
    broken = craft(estimator, name, x, y, threat=above)
    assert (margin(estimator.model, broken.x_adv, y) < 0).all()
    left = craft(estimator, name, x, y, threat=below)
    assert (margin(estimator.model, left.x_adv, y) > 0).all()
    if ATTACKS[name].minimum_norm:
        assert torch.equal(left.x_adv, x)


def boundary(model, x, y, norm, i):
    """The distance of image i from the nearest other class, by bisection of the closed form."""
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        stands = float(worst_margin(model, x[i : i + 1], y[i : i + 1], norm, middle)) > 0
        low, high = (middle, high) if stands else (low, middle)
    return torch.tensor(high)


# --- Costs


FIXED = [
    name
    for name in PLAIN
    if ATTACKS[name].needs == "gradients"
    and not ATTACKS[name].minimum_norm
    and name not in ("art:uap", "artq:surrogates", "autoattack:standard", "autoattack:plus", "autoattack:fab")
]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW or ATTACKS[n].cost[0] > 400 else ()) for n in FIXED],
)
def test_the_cost_of_an_image_that_stands_is_what_the_row_says(name):
    estimator, x, _ = linear(bias=5.0)
    y = torch.zeros(len(x), dtype=torch.int64)
    norm = ATTACKS[name].norms[0]
    crafted = craft(estimator, name, x, y, threat=Threat(norm, {"Linf": 0.01, "L2": 0.05, "L1": 0.1}[norm]))
    assert (margin(estimator.model, crafted.x_adv, y) > 0).all()
    gradients, forwards = ATTACKS[name].cost
    assert crafted.backward_samples / len(x) == gradients
    assert crafted.forward_samples / len(x) == pytest.approx(forwards, abs=1)  # its last check is of the first image


# --- What is missing, and what does not fit


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("foolbox:pgd", "foolbox", "'art_qplugins[foolbox]'"),
        ("foolbox:brendel-bethge", "numba", "numba"),
        ("art:brendel-bethge", "numba", "numba"),
        ("torchattacks:pgd", "torchattacks", "torchattacks"),
    ],
)
def test_a_missing_package_is_said_in_one_line(name, package, install, monkeypatch):
    estimator, x, y = subject(name)
    monkeypatch.setitem(sys.modules, package, None)
    assert not ATTACKS[name].installed() and ATTACKS[name].missing() == package
    with pytest.raises(InputError) as caught:
        craft(estimator, name, x, y, threat=Threat("Linf", 0.1))
    assert str(caught.value) == f"{name} needs {package}, which is not installed; type: pip install {install}"


def test_either_package_of_autoattack_will_do(monkeypatch):
    row = ATTACKS["autoattack:standard"]
    assert row.installed()
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    assert row.missing() == "pyautoattack or autoattack"


@pytest.mark.parametrize(
    ("name", "norm", "part"),
    [("torchattacks:tifgsm", "Linf", "3 channels and the images have 1"), ("torchattacks:jsma", "L0", "10 classes")],
)
def test_an_attack_that_is_written_for_other_images_says_so(name, norm, part):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=part) as caught:
        craft(classifier(model, (1, 8, 8), 5), name, x, y, threat=Threat(norm, EPS[norm]))
    assert "\n" not in str(caught.value)


def test_a_network_without_parameters_is_attacked_all_the_same(capsys):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * 5

    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    y = Fixed()(x).argmax(1)
    for name in ("art:pgd", "torchattacks:pgd", "foolbox:pgd", "autoattack:apgd-ce"):
        crafted = craft(classifier(Fixed(), (1, 8, 8)), name, x, y, threat=Threat("Linf", 0.2))
        assert (Fixed()(crafted.x_adv).argmax(1) != y).any(), name


def test_boundary_attacks_leave_an_image_that_no_start_breaks():
    """Foolbox raises for the whole batch where one image has no start."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.arange(10.0))
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([9, 9, 9])
    for name in ("foolbox:hop-skip-jump", "foolbox:boundary", "foolbox:pointwise"):
        norm = ATTACKS[name].norms[-1]
        crafted = craft(classifier(model.eval(), (1, 8, 8)), name, x, y, threat=Threat(norm, 5.0), options=fast(name))
        assert torch.equal(crafted.x_adv, x), name


# --- What counts as found


def test_within_keeps_what_is_within_the_budget_and_nothing_else():
    x = torch.full((7, 1, 2, 2), 0.5)
    moved = x.clone()
    moved[0] += 0.1  # at the budget in Linf
    moved[1] += 0.2  # beyond it
    moved[2, 0, 0, 0] = torch.nan
    moved[3, 0, 0, 0] = 1.01
    moved[4] += 5e-7  # rounding
    moved[5, 0, 0, 0] = torch.inf
    kept = within(x, moved, Threat("Linf", 0.11))
    assert torch.equal(kept[0], moved[0])
    for i in range(1, 7):
        assert torch.equal(kept[i], x[i]), i


def test_within_counts_pixels_in_l0_whatever_their_channels_and_not_what_rounding_moved():
    x = torch.full((2, 3, 2, 2), 0.5)
    moved = x + 5e-7
    moved[0, :, 0, 0] = 1.0  # one pixel, three values
    moved[1, 0, 0, 0] = moved[1, 1, 1, 1] = 1.0  # two pixels
    kept = within(x, moved, Threat("L0", 1))
    assert int((kept[0] != x[0]).sum()) == 3
    assert torch.equal(kept[1], x[1])


def test_a_network_of_children_is_seen_and_counted_where_art_rebuilds_the_classifier():
    """ART's wrapper runs the children of a Sequential one by one."""
    estimator, x, y = linear()
    assert isinstance(estimator.model, nn.Sequential)
    for name in ("art:apgd-ce", "art:acg-dlr", "art:reacg-ce"):
        crafted = craft(
            estimator, name, x, y, threat=Threat("Linf", 1e-3), options={"max_iter": 3, "num_random_init": 1}
        )
        assert crafted.backward_samples == 3 * len(x), name
        assert np.isfinite(crafted.path["path_best"]).all()
