"""Names of recipes and models as names of files: none leads out of its folder, and no two are one file."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_qplugins.evaluation.cell import CellSpec, cell_id
from art_qplugins.files import short_name

ODD = [
    "..",
    ".",
    "...",
    "",
    "../../esc",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a:b",
    "a_b",
    "nul",
    "NUL.txt",
    "com1",
    "con.",
    "name.",
    "name ",
    ".hidden",
    "-rf",
    "caf\u00e9",
    "cafe\u0301",
    "\udcff",
    "\udcfe",
    "a\0b",
    "\u0130",
    "x" * 80,
    "x" * 81,
    "x" * 10_000,
    "\u4e2d" * 80,
    "net [b]",
]


def folded(name):
    return short_name(name).casefold()


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_an_odd_name_stays_in_its_folder(name, tmp_path):
    made = short_name(name)
    path = tmp_path / f"{made}.npz"
    path.write_bytes(b"")
    assert path.resolve().parent == tmp_path.resolve()
    assert Path(made).name == made and made[0] not in ".-" and made[-1] != "." and len(made.encode()) <= 80
    assert made.split(".")[0].upper() not in {"NUL", "CON", "COM1"}


def test_two_odd_names_are_two_files():
    names = [*ODD, *map(short_name, ODD), *(short_name(short_name(name)) for name in ODD)]
    for one, other in itertools.combinations(dict.fromkeys(names), 2):
        if one.casefold() != other.casefold():
            assert folded(one) != folded(other), (one, other)


@given(st.lists(st.text(min_size=0, max_size=6), min_size=2, max_size=2, unique_by=str.casefold))
def test_two_names_are_two_files(names):
    assert folded(names[0]) != folded(names[1])
    assert all("/" not in short_name(name) and "\\" not in short_name(name) for name in names)


@pytest.mark.parametrize("name", ["fp32", "dq-activation_bits=2", "MNIST", "a.b_c-1", "x" * 80])
def test_a_plain_name_stays(name):
    assert short_name(name) == name or "=" in name


# --- From the command line


@pytest.mark.parametrize("name", ["../../esc", "..", "/tmp/esc", "a/b"])
def test_a_recipe_writes_in_its_folder_alone(name, artq, tmp_path, monkeypatch):
    inner = tmp_path / "one" / "two"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    (inner / "r.toml").write_text(
        f'name = "{name}"\ndata = {{ name = "digits", limit = 2 }}\nthreat = {{ eps = [0.1] }}\n'
        'attacks = [{ id = "art:fgsm" }]\n[[models]]\nname = "../m"\ntrain = { epochs = 0 }\n'
    )
    assert artq("train", "r.toml")[0] == 0
    (folder,) = (inner / "results").iterdir()
    assert folder.name == short_name(name)
    assert [p.parent for p in tmp_path.rglob("*.safetensors")] == [folder / "checkpoints"]


def test_the_id_of_a_cell_names_its_model_its_attack_its_source_and_its_threat():
    plain = CellSpec(model="m", source="m", attack="art:pgd", norm="Linf", eps=0.1, seed=0)

    def words(**changes):
        spec = dataclasses.replace(plain, **changes)
        name, _, digest = cell_id(spec, target="t", source="s", data="d", batch_size=8).rpartition(".")
        assert len(digest) == 10 and int(digest, 16) >= 0
        return name

    assert words() == "m.art-pgd.Linf-0.1"
    assert words(source="other") == "m.art-pgd.from-other.Linf-0.1"
    assert words(model="n", source="m", norm="L2", eps=0.123456) == "n.art-pgd.from-m.L2-0.1235"
    assert words(attack="artq:clean", eps=0.0, role="clean") == "m.artq-clean"
