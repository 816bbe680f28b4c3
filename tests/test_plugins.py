"""Packages that are installed beside this one, through real entry points: what the command line says of them."""

from __future__ import annotations

import sys

import pytest

from art_qplugins import plugins
from art_qplugins.terminal.registries import load_registries

#: A row of every group.
MODULE = """
from art_qplugins.attacks.catalogue import Attack, Library
from art_qplugins.diagnostics import Indicator
from art_qplugins.quantizers import Quantizer
from art_qplugins.registry import Entry
from art_qplugins.report.sections import Section

about = {"target": "nowhere:to_be_found", "help": "Something of theirs [red]"}
texts = dict.fromkeys(("formula", "cost", "shows", "shows_not", "source", "mitigation"), "")
entry = Entry(name="theirs", **about)
taken = Entry(name="convnet", **about)
attack = Attack(name="theirs:one", upstream="", norms=("Linf",), **about)
library = Library(name="theirs", norms=("Linf",), package="example", **about)
indicator = Indicator(name="theirs", class_="S", threshold=0.0, **texts, **about)
quantizer = Quantizer(name="theirs", place="activation", arguments={}, switch=(), line=str, **about)
section = Section(name="theirs", title="Theirs", **about)
"""
GOOD = {
    "attacks": "attack",
    "libraries": "library",
    "quantizers": "quantizer",
    "defences": "entry",
    "models": "entry",
    "datasets": "entry",
    "indicators": "indicator",
    "report": "section",
}
METADATA = "Metadata-Version: 2.1\nName: example\nVersion: 1.2\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package ``example`` 1.2 with these entry points, ``(group, name, value)``, for the time of a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def make(*points, metadata=METADATA):
        for name, text in {"example_rows": MODULE, "example_raises": "raise RuntimeError('no [such]\\nluck')"}.items():
            (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "example_exits.py").write_text("import sys\nsys.exit('bye')")
        info = tmp_path / "example-1.2.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text("".join(f"[{group}]\n{n} = {v}\n" for group, n, v in points))
        if metadata:
            (info / "METADATA").write_text(metadata)
        monkeypatch.syspath_prepend(tmp_path)
        for registry in load_registries().values():
            monkeypatch.setattr(registry, "_found", None)
        monkeypatch.setattr(plugins, "_broken", [])

    yield make
    for name in ("example_rows", "example_raises", "example_exits"):
        sys.modules.pop(name, None)


def test_the_table_above_has_every_group():
    assert {f"art_qplugins.{group}" for group in GOOD} == set(plugins.GROUPS)


def test_ls_lists_whatever_a_package_adds_and_says_whose_it_is(install, artq):
    install(*((f"art_qplugins.{group}", "one", f"example_rows:{value}") for group, value in GOOD.items()))
    status, out, err = artq("ls")
    assert (status, err) == (0, "") and all(len(line) <= 80 for line in out.splitlines())
    for group in GOOD:
        kind = "sections" if group == "report" else group
        listed = " ".join(artq("ls", kind)[1].split())
        assert "theirs" in listed and "Something of theirs [red]" in listed and "from example 1.2" in listed, kind
        assert listed in " ".join(out.split())
    status, out, _ = artq("doctor")
    assert status == 0 and "ok       plug-ins: example 1.2\n" in out and "broken" not in out


def test_ls_lists_the_recipes_that_come_along(install, artq):
    assert artq("ls", "recipes")[1].split()[:1] == ["digits"]


BROKEN = {
    "raises at import": ("art_qplugins.attacks", "bad", "example_raises:row"),
    "ends the program": ("art_qplugins.attacks", "bad", "example_exits:row"),
    "no such module": ("art_qplugins.models", "bad", "example_gone:row"),
    "no module at all": ("art_qplugins.models", "bad", "no module!"),
    "of another class": ("art_qplugins.attacks", "bad", "example_rows:entry"),
    "name that is taken": ("art_qplugins.models", "bad", "example_rows:taken"),
    "unknown group": ("art_qplugins.atacks", "bad", "example_rows:attack"),
}
SAID = {
    "raises at import": "'bad' of art_qplugins.attacks: RuntimeError: no [such]",
    "ends the program": "'bad' of art_qplugins.attacks: SystemExit: bye",
    "no such module": "'bad' of art_qplugins.models: ModuleNotFoundError: No module named 'example_gone'",
    "no module at all": "'bad' of art_qplugins.models: ",
    "of another class": "'bad' of art_qplugins.attacks: it gives a Entry",
    "name that is taken": "architecture 'convnet' exists already; rename it",
    "unknown group": "'bad' of art_qplugins.atacks: there is no such group",
}


@pytest.mark.parametrize("case", BROKEN)
def test_doctor_says_in_a_line_what_is_broken(case, install, artq):
    install(BROKEN[case])
    status, out, err = artq("doctor")
    (line,) = (line for line in out.splitlines() if line.startswith("broken"))
    assert (status, err) == (1, "") and line.startswith(f"broken   example 1.2: {SAID[case]}")


def test_nothing_that_is_broken_stops_a_command(install, artq):
    install(*BROKEN.values(), ("art_qplugins.attacks", "good", "example_rows:attack"))
    status, out, _ = artq("ls")
    assert status == 0 and "theirs:one" in out and "art:pgd" in out
    assert artq("run", "digits", "--dry-run")[0] == 0
    assert artq("--help")[0] == 0
    status, _, err = artq("run", "digits", "--dry-run", "--set", "attacks=[{id='art:pdg'}]")
    assert status == 2 and "did you mean 'art:pgd'" in err


def test_a_package_that_was_removed_by_hand_stops_nothing(install, artq):
    install(("art_qplugins.attacks", "bad", "example_gone:row"), metadata="")
    status, out, _ = artq("doctor")
    assert status == 1 and "broken   " in out and "'bad' of art_qplugins.attacks: ModuleNotFoundError" in out
    assert artq("ls", "attacks")[0] == 0
