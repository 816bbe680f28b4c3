"""A checkpoint's name says which code trained it, so that edited code trains anew."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch

import art_qplugins
from art_qplugins.defences import DEFENCES
from art_qplugins.fingerprint import code_fingerprint
from art_qplugins.models import MODELS
from art_qplugins.recipes import build
from art_qplugins.recipes.build import TRAINING_CODE, build_models
from art_qplugins.recipes.load import parse_recipe

PACKAGE = Path(art_qplugins.__file__).parent
#: They name and refuse, and nothing of a network depends on them. The first is the whole package's.
INFRASTRUCTURE = {
    *("__init__.py", "domains.py", "errors.py", "foreign.py", "plugins.py", "registry.py", "torch_domains.py"),
}
RECIPE = {
    "name": "code",
    "data": {"name": "digits"},
    "threat": {"eps": [0.1]},
    "models": [
        {"name": "a", "architecture": {"name": "convnet", "options": {"width": 4}}, "train": {"epochs": 0}},
    ],
    "attacks": [{"id": "art:fgsm"}],
}


@pytest.fixture
def copied(tmp_path):
    """A copy of the package's sources, to edit."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__")))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("training/optimizers.py", "Option(0.9", "Option(0.8"),
        ("defences/lipschitz.py", "self.beta / 2 *", "self.beta *"),
        ("defences/__init__.py", "Option(2e-3", "Option(1e-3"),
        ("models/convnet.py", "def forward(", "def forward_("),
        ("quantizers/functional.py", "import torch\n", "import torch\n\nEXTRA = 1\n"),
        ("recipes/networks.py", "isolated(nn.Module(), seed)", "isolated(nn.Module(), seed + 1)"),
    ],
)
def test_an_edit_of_what_training_runs_through_changes_the_fingerprint(file, old, new, copied):
    before = code_fingerprint(TRAINING_CODE, copied)
    assert before == code_fingerprint(TRAINING_CODE) == build._training_code()
    edit(copied / file, old, new)
    assert code_fingerprint(TRAINING_CODE, copied) != before


def test_words_layout_and_attacks_do_not(copied):
    before = code_fingerprint(TRAINING_CODE, copied)
    training = copied / "training" / "engine.py"
    edit(training, '"""``train``: the training', '"""The training')
    edit(training, "    :param data: images", "    :param data: pictures")
    edit(training, "    given = locals()", "\n    # What was asked for.\n    given  =  locals()")
    (copied / "attacks" / "craft.py").write_text("")
    assert code_fingerprint(TRAINING_CODE, copied) == before
    shutil.move(copied / "models" / "vgg.py", copied / "models" / "other.py")
    assert code_fingerprint(TRAINING_CODE, copied) != before


def test_a_checkpoint_of_other_code_is_not_used(tmp_path, digits, monkeypatch):
    def built():
        build_models(parse_recipe(RECIPE), digits[0], tmp_path, device=torch.device("cpu"))
        return sorted(tmp_path.glob("a-*.json"))

    (first,) = built()
    assert built() == [first]
    assert json.loads(first.read_text())["training_code"] == code_fingerprint(TRAINING_CODE)
    monkeypatch.setattr(build, "_training_code", lambda: "edited")
    assert len(built()) == 2


def test_nothing_that_training_runs_through_is_left_out():
    files = {p.relative_to(PACKAGE).as_posix() for part in TRAINING_CODE for p in _files(PACKAGE / part)}
    pending = {f for f in files if f.startswith(("defences/", "models/", "quantizers/"))}
    for registry in (DEFENCES, MODELS):
        targets = [entry.target.split(":")[0] for entry in registry.values() if entry.plugin is None]
        pending |= {_file(target) for target in targets}
    seen = set()
    while pending:
        file = pending.pop()
        seen.add(file)
        pending |= _imported(PACKAGE / file) - seen - INFRASTRUCTURE
    assert len(seen) > 30
    assert seen <= files


def _files(place):
    found = list(place.rglob("*.py")) if place.is_dir() else [place]
    assert found and all(path.exists() for path in found), place
    return found


def _file(module):
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).relative_to(PACKAGE).as_posix()


def _imported(path):
    """Every file of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {_file(name) for name in names if name.split(".")[0] == "art_qplugins"}
    return {file for file in ours if (PACKAGE / file).exists()}
