"""Every attack of the libraries is a row, and what a row says when something is missing or does not fit."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys

import pytest
import torch
from catalogue_nets import EPS, LIBRARY_WARNINGS, classifier, example, fast
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.threat import NORMS

pytestmark = LIBRARY_WARNINGS

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
        assert row.resolve({}) == row.defaults
        gradients, forwards = row.cost
        assert (gradients > 0) == (row.needs == "gradients") and forwards >= 0
        assert gradients <= 1 or not row.one_step


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
    estimator, x, y = example(name)
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
    [
        ("torchattacks:tifgsm", "Linf", "channels is 1; give images of 3 channels"),
        ("torchattacks:jsma", "L0", "10 classes"),
    ],
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
