"""``artq diagnose``: exit status 3 for a claim that does not survive, one line for what cannot be used."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from art_qplugins.cli import main
from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Results
from art_qplugins.recipes.factory import make_module

NETWORKS = """
    import torch
    from art_qplugins import load, quantize, train
    from art_qplugins.models.convnet import ConvNet

    def plain():
        torch.manual_seed(0)
        network = ConvNet((1, 8, 8), 10, width=8)
        return train(network, load("digits", "train"), epochs=8, learning_rate=0.05, weight_decay=5e-3)

    def masked():
        return quantize(plain(), weight_bits=3, mu=255.0, mu_layers=2)

    class Nan(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * float("nan")

    def number():
        return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(textwrap.dedent(NETWORKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return tmp_path


def diagnose(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", *arguments])
    return stop.value.code


def results(folder: Path) -> Results:
    return Results.model_validate_json((folder / "results.json").read_bytes())


@pytest.mark.parametrize(("factory", "verdict"), [("masked", "MASKED"), ("Nan", "INVALID")])
def test_a_claim_that_does_not_survive_ends_with_status_3(here, capsys, factory, verdict):
    status = diagnose("--model", f"my_networks:{factory}", "--eps", "0.15", "--limit", "100", "--out", "r")
    assert status == 3
    assert results(here / "r").models[0].verdict == verdict
    assert (here / "r" / "report.html").exists()
    assert verdict in capsys.readouterr().out


def test_an_honest_module_is_not_refuted_and_the_second_time_nothing_is_computed(here, capsys):
    arguments = ["diagnose", "--model", "my_networks:plain", "--eps", "0.15", "--limit", "100", "--out", "r"]
    main(arguments)
    assert results(here / "r").models[0].verdict == "NOT_REFUTED"
    main(arguments)
    assert "0 cells computed" in capsys.readouterr().out


def test_a_claimed_number_is_what_is_tested(here):
    main(
        [
            "diagnose",
            "--model",
            "my_networks:plain",
            "--eps",
            "0.15",
            "--limit",
            "100",
            "--out",
            "r",
            "--claimed",
            "0.9",
        ]
    )
    claim = results(here / "r").models[0].claim
    assert (claim.accuracy, claim.status) == (0.9, "OVERSTATED")


def test_the_claims_of_a_recipe_alone(here):
    recipe = """
        name = "small"
        claim = { attack = "art:pgd", eps = 0.15 }
        data = { name = "digits", limit = 100 }
        threat = { eps = [0.05, 0.15] }
        [[models]]
        name = "fp32"
        [[models]]
        name = "mu"
        base = "fp32"
        quantize = { weight_bits = 3, mu = 255.0, mu_layers = 2 }
        train = { epochs = 0 }
        [[attacks]]
        id = "art:pgd"
        [[attacks]]
        id = "art:mifgsm"
    """
    (here / "small.toml").write_text(textwrap.dedent(recipe))
    assert diagnose("small.toml", "--out", "r") == 3
    found = results(here / "r")
    assert {m.name: m.verdict for m in found.models} == {"fp32": "NOT_REFUTED", "mu": "MASKED"}
    assert {c.eps for c in found.cells if c.role != "probe"} == {0.0, 0.15}
    counted = {cell for m in found.models for r in m.robust for cell in r.attacks}
    assert {c.eps for c in found.cells if c.id in counted} == {0.0, 0.15}  # but one probe has an unbounded eps
    assert not any(c.attack == "art:mifgsm" for c in found.cells)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "RECIPE or --model"),
        (["x.toml", "--model", "my_networks:plain"], "one of the two"),
        (["--model", "my_networks"], "MODULE:FACTORY"),
        (["--model", "no_such_module:x"], "cannot import"),
        (["--model", "my_networks:plian"], "did you mean 'plain'"),
        (["--model", "my_networks:number"], "must return a torch.nn.Module"),
        (["--model", "my_networks:Nan", "--eps", "8/0"], "not a number"),
        (["--model", "my_networks:Nan", "--claimed", "52"], "in [0, 1]"),
        (["--model", "my_networks:Nan", "--attack", "art:pdg"], "did you mean 'art:pgd'"),
        (["--model", "my_networks:plain", "--checkpoint", "none.safetensors"], "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(here, capsys, arguments, says):
    assert diagnose(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_current_folder_is_on_the_path_for_the_import_alone(here):
    before = list(sys.path)
    with pytest.raises(InputError):
        make_module("no_such_module:x")
    assert sys.path == before


def test_the_current_folder_comes_after_what_is_installed(here, monkeypatch):
    """A file of the user's does not replace a module of that name which the network imports."""
    installed = here / "site-packages"
    installed.mkdir()
    (installed / "used_by_both.py").write_text("import torch\nmake = torch.nn.Flatten\n")
    (here / "used_by_both.py").write_text("raise RuntimeError('the wrong one')\n")
    (here / "my_networks.py").write_text("from used_by_both import make\n")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.delitem(sys.modules, "used_by_both", raising=False)
    assert isinstance(make_module("my_networks:make"), torch.nn.Flatten)


def test_a_current_folder_that_is_on_the_path_stays_there(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    before = list(sys.path)
    make_module("my_networks:Nan")
    assert sys.path == before
