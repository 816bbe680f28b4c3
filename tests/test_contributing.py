"""The package that CONTRIBUTING.md shows: built from the page, installed into a folder, and used by a recipe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
#: What the package adds: the group of its entry point, and the name that ``artq ls`` shows.
ADDED = {
    "attacks": "example:random-corner",
    "libraries": "margins",
    "quantizers": "pact",
    "defences": "sparsity",
    "models": "perceptron",
    "datasets": "bars",
    "indicators": "unbalanced-images",
    "report": "dearest-cells",
}

END = "--- end of a list ---"
LISTS = f"""
import sys
from art_qplugins.cli import main

for kind in sys.argv[1:]:
    main(["ls", kind])
    print({END!r})
"""


def files():
    """The files that the page shows: a line with the name, and the block that follows it."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))


def environment(folder):
    """That of a process in which only the folder's packages are installed beside those that tests use."""
    paths = [str(folder), *filter(None, sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def artq(run, *arguments):
    return python(run, "-m", "art_qplugins", *arguments)


def python(run, *arguments):
    folder, site = run
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(site), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the page's files, and the one in which their package was installed."""
    folder, site = tmp_path_factory.mktemp("example"), tmp_path_factory.mktemp("site")
    for name, text in files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "artq_example" / "__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(folder)], check=True, capture_output=True, text=True, timeout=300)
    artq((folder, site), "run", "example.toml")
    return folder, site


@pytest.fixture(scope="module")
def results(installed):
    return json.loads((installed[0] / "results" / "example" / "results.json").read_text(encoding="utf-8"))


def test_every_group_has_an_example():
    from art_qplugins.plugins import GROUPS

    announced = re.findall(r'^\[project.entry-points."(.*)"\]$', files()["pyproject.toml"], flags=re.MULTILINE)
    assert sorted(announced) == sorted(GROUPS) == sorted(f"art_qplugins.{name}" for name in ADDED)


@pytest.fixture(scope="module")
def lists(installed):
    """What ``artq ls`` prints of each kind. One process prints all."""
    kinds = [{"report": "sections"}.get(kind, kind) for kind in ADDED]
    printed = python(installed, "-c", LISTS, *kinds).split(END)
    return dict(zip(ADDED, printed, strict=False))


@pytest.mark.parametrize(("kind", "name"), ADDED.items())
def test_it_is_listed_with_its_package(kind, name, lists):
    listed = lists[kind]
    row = re.search(rf"^{re.escape(name)}\b.*(?:\n +.*)*", listed, flags=re.MULTILINE)
    assert row is not None and "from artq-example 1.0" in " ".join(row[0].split()), listed


def test_its_attacks_are_cells_of_the_run(results):
    attacks = {cell["attack"]: cell for cell in results["cells"]}
    for name in ("example:random-corner", "margins:step"):
        assert (attacks[name]["status"], attacks[name]["n"]) == ("success", 40)
    assert attacks["example:random-corner"]["params"]["tries"] == 20
    assert results["environment"]["packages"]["artq-example"] == "1.0"


def test_its_quantizer_is_what_the_attacks_undo(results):
    assert "2-bit activations with learned clips" in results["models"][0]["description"]
    assert any(cell["attack"] == "artq:full-precision" for cell in results["cells"])


def test_its_network_was_trained_on_its_data_with_its_defence(results):
    assert (results["data"]["name"], results["data"]["classes"][0]) == ("bars", "column 0")
    assert results["models"][0]["clean_accuracy"] > 0.5  # of eight classes
    assert "sparsity (weight = 1e-06)" in results["models"][0]["description"]


def test_its_indicator_and_section_are_in_the_report(installed, results):
    findings = {finding["id"]: finding for finding in results["models"][0]["findings"]}
    assert findings["unbalanced-images"]["fired"] is False
    page = (installed[0] / "results" / "example" / "report.html").read_text(encoding="utf-8")
    for text in ("The dearest cells", "artq-example 1.0", "One class has most of the images", "example:random-corner"):
        assert text in page, text
