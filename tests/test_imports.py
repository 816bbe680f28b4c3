"""Imports point one way, and what must stay light imports nothing heavy."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import art_qplugins

PACKAGE = Path(art_qplugins.__file__).parent
ROOT = PACKAGE.parent

# Each line may import from the lines below it, and from its own package. Names on one line do not know each other.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["audit"],
    ["api", "terminal"],
    ["evidence"],
    ["runner"],
    ["report", "diagnostics"],
    ["evaluation"],
    ["recipes"],
    ["attacks", "sensitivity"],
    ["gradients"],
    ["deployment"],
    ["estimators"],
    ["training"],
    ["defences"],
    ["models"],
    ["information"],
    ["quantizers"],
    ["checkpoint", "data", "fingerprint", "geometry"],
    ["arrays", "contents", "state_dicts"],
    ["registry", "threat", "files", "guard", "metrics", "seeds", "torch_domains"],
    ["domains", "plugins"],
    ["foreign"],
    ["errors", "_version"],
]
MODULES = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in sorted(PACKAGE.rglob("*.py"))}

RANK = {part: -i for i, layer in enumerate(LAYERS) for part in layer}


def imports_of(path):
    """Every module that a file imports, anywhere in it, also for type checkers alone."""
    pending, found = [ast.parse(path.read_text())], set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:  # `from a.b import c` may import the module a.b.c
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES or f"{inner}.__init__" in MODULES else node.module)
        pending += ast.iter_child_nodes(node)
    return found


def part_of(module):
    return module.split(".")[1] if module.startswith("art_qplugins.") else None


LOCAL = {m: {i for i in imports_of(p) if part_of(i)} for m, p in MODULES.items() if m != "art_qplugins.__init__"}


def test_every_part_has_a_place_in_the_layers():
    assert {part_of(m) for m in LOCAL} == set(RANK)  # art_qplugins itself names everything and imports it lazily


@pytest.mark.parametrize("module", LOCAL)
def test_imports_point_down(module):
    mine = part_of(module)
    for imported in LOCAL[module]:
        theirs = part_of(imported)
        assert theirs == mine or RANK[theirs] < RANK[mine], f"{module} imports {imported}"


def test_within_a_package_no_imports_go_round_in_circles():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done or module not in LOCAL:
            return
        path.append(module)
        for imported in LOCAL[module]:
            visit(imported if imported in LOCAL else f"{imported}.__init__")
        path.pop()
        done.add(module)

    for module in LOCAL:
        visit(module)


def test_the_report_knows_records_and_nothing_that_computes():
    known = {i for m, found in LOCAL.items() if part_of(m) == "report" for i in found if part_of(i) != "report"}
    assert {i for i in known if part_of(i) == "evaluation"} == {
        f"art_qplugins.evaluation.{name}"
        for name in ("fields", "network_records", "records", "reading", "compare", "outcome", "pooled")
    }
    assert {part_of(i) for i in known} <= {
        *("evaluation", "arrays", "domains", "errors", "files", "metrics", "registry", "threat", "_version"),
    }


def test_only_the_adapters_import_the_libraries_of_attacks():
    homes = {
        "torchattacks": {"attacks"},
        "pyautoattack": {"attacks"},
        "autoattack": {"attacks"},
        "foolbox": {"attacks"},
        "art": {"attacks", "deployment", "estimators", "api", "audit"},
    }
    for module, path in MODULES.items():
        for imported in imports_of(path):
            allowed = homes.get(imported.split(".")[0])
            assert allowed is None or part_of(module) in allowed, f"{module} imports {imported}"


# --- In a fresh process


def imported_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import art_qplugins", True),
        ("import art_qplugins; dir(art_qplugins); art_qplugins.__version__", True),
        ("import art_qplugins.evaluation.records", False),
        ("import art_qplugins.report", False),
        (
            "import importlib, pkgutil, art_qplugins.report as r\n"
            "for m in pkgutil.iter_modules(r.__path__): importlib.import_module(f'{r.__name__}.{m.name}')",
            False,
        ),
        ("from art_qplugins import ATTACKS, Threat, InputError; list(ATTACKS)", True),
        ("import art_qplugins.cli", True),
        ("import art_qplugins.recipes.schema", False),
    ],
)
def test_it_imports_neither_torch_nor_art(code, light):
    loaded = imported_by(code)
    heavy = {"torch", "art", "torchattacks", "pyautoattack", "torchvision", "sklearn"}
    assert not loaded & heavy
    if light:
        assert not loaded & {"scipy", "matplotlib", "pydantic", "pandas"}


def test_the_check_above_can_fail():
    assert "torch" in imported_by("from art_qplugins import quantize")


# --- Names


@pytest.mark.parametrize("name", art_qplugins.__all__)
def test_every_public_name_resolves(name):
    assert getattr(art_qplugins, name) is not None
    assert name in dir(art_qplugins)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        art_qplugins.quantise  # noqa: B018


@pytest.mark.parametrize("module", [m.removesuffix(".__init__") for m in MODULES if not m.endswith("__main__")])
def test_every_name_that_a_module_promises_is_there(module):
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        assert hasattr(loaded, name), f"{module}.{name}"


def test_star_import_gives_what_the_package_promises():
    names = {}
    exec("from art_qplugins import *", names)
    assert set(art_qplugins.__all__) <= names.keys()


# --- One test command


def test_the_readme_and_the_checks_run_the_same_tests():
    command = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest"
    assert command in (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert all(part in script for part in command.split(" && "))
