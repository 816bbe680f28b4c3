"""The numbers of a paper: beside which cell they are shown, and what is said of the difference."""

from __future__ import annotations

import copy
import csv
import io
import json
from html import unescape

import numpy as np
import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import cell_id
from art_qplugins.evaluation.records import Cell
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.report import words
from art_qplugins.runner.plan import plan
from art_qplugins.terminal.progress import LiveProgress
from art_qplugins.terminal.results import show_results

BASE = {
    "name": "r",
    "data": {"name": "digits", "limit": 20},
    "threat": {"eps": ["2/255", "8/255"]},
    "models": [{"name": "a", "train": {"epochs": 0}}, {"name": "b", "train": {"epochs": 0}}],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:fgsm", "source": "a"}],
}


def tables(model=None, attack=None, **changes):
    """BASE with a reference of its second model, of its first attack, and other changes."""
    given = copy.deepcopy({**BASE, **changes})
    if model is not None:
        given["models"][1]["reference"] = model
    if attack is not None:
        given["attacks"][0] |= attack
    return given


def references(given):
    """{(model, source, eps): reference} of the cells that have one."""
    cells = plan(parse_recipe(given))[1]
    return {(c.model, c.source, round(255 * c.eps)): c.reference for c in cells if c.reference is not None}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (tables(), {}),
        (tables(model={"clean": 0.9}), {("b", "b", 0): 0.9}),
        (tables(model={"art:fgsm": {"8/255": 0.5}}), {("b", "b", 8): 0.5}),
        (
            tables(model={"art:fgsm": {"8/255": 0.5, "2/255": 1}, "art:fgsm from a": {"0.03137254901960784": 0.6}}),
            {("b", "b", 2): 1.0, ("b", "b", 8): 0.5, ("b", "a", 8): 0.6},
        ),
        (tables(attack={"models": ["a"], "eps": ["8/255"], "reference": 0.4}), {("a", "a", 8): 0.4}),
        (tables(attack={"models": ["a"], "reference": {"2/255": 0.4}}), {("a", "a", 2): 0.4}),
        # the table of a model comes first
        (
            tables(model={"art:fgsm": {"8/255": 0.5}}, attack={"models": ["b"], "reference": {"2/255": 0.4}}),
            {("b", "b", 8): 0.5},
        ),
        (
            tables(threat=[{"eps": ["8/255"]}, {"norm": "L2", "eps": [0.5]}], model={"art:fgsm": {"0.5": 0.3}}),
            {("b", "b", 128): 0.3},
        ),
        (
            tables(transfer={"attack": "art:bim", "eps": ["8/255"]}, model={"art:bim": 0.1, "art:bim from a": 0.7}),
            {("b", "b", 8): 0.1, ("b", "a", 8): 0.7},
        ),
        (
            tables(
                attacks=[
                    {"id": "artq:random", "eps": ["8/255"]},
                    {"id": "artq:random", "options": {"distribution": "normal", "std": 0.1}},
                ],
                model={"artq:random": 0.3, "artq:random at any eps": 0.2},
            ),
            {("b", "b", 8): 0.3, ("b", "b", 255): 0.2},
        ),
    ],
)
def test_a_reference_is_of_one_cell(given, found):
    assert references(given) == found


def test_the_reference_of_a_claim_is_of_the_claimed_cell():
    claim = {"attack": "art:fgsm", "eps": "8/255", "reference": 0.53}
    models = copy.deepcopy(BASE["models"])
    models[0]["claim"] = claim
    assert references(tables(models=models)) == {("a", "a", 8): 0.53}


def test_it_changes_no_cell_id_and_no_checkpoint():
    from art_qplugins.recipes.build import _NOT_TRAINING

    facts = {"target": "t", "source": "s", "data": "d", "batch_size": 8}
    given = tables(model={"clean": 0.9, "art:fgsm": {"8/255": 0.5}})
    one, other = (plan(parse_recipe(t))[1] for t in (tables(), given))
    assert [cell_id(c, **facts) for c in one] == [cell_id(c, **facts) for c in other] and one == other
    assert "reference" in _NOT_TRAINING


def test_variants_of_a_model_share_it_and_sources_have_the_names_of_their_variants():
    given = tables(
        sweep={"seed": [0, 1]}, model={"art:fgsm": {"8/255": 0.5}, "art:fgsm from a": {"8/255": 0.6}, "clean": 0.9}
    )
    for model in given["models"]:
        model["train"] = {"epochs": 1}
    found = references(given)
    for seed in (0, 1):
        b, a = f"b-seed={seed}", f"a-seed={seed}"
        assert (found[b, b, 0], found[b, b, 8], found[b, a, 8]) == (0.9, 0.5, 0.6)
    assert len(found) == 6
    given["attacks"][0] |= {"models": ["b"], "reference": {"2/255": 0.1}}
    del given["models"][1]["reference"]["art:fgsm"]
    assert len(parse_recipe(given).models) == 4  # seeds of one model share a number


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (tables(model={"clean": 1.2}), "models.b.reference.clean: it is 1.2; give a number in [0, 1]"),
        (tables(model={"clean": "high"}), "models.b.reference.clean: it is 'high'; give a number in [0, 1]"),
        (
            tables(model={"clean": {"8/255": 0.5}}),
            "models.b.reference.clean: it is a table, and clean images have no eps",
        ),
        (tables(model={"art:fgsm": {}}), "models.b.reference.art:fgsm: it is empty"),
        (tables(model={"art:fgsm": {"a lot": 0.5}}), "models.b.reference.art:fgsm: 'a lot' is not a number"),
        (tables(model={"art:fgsm": {"0": 0.5}}), "'0': it is 0.0; give a number above 0"),
        (tables(model={"art:fgsm": {"8/255": 5}}), "'8/255': it is 5; give a number in [0, 1]"),
        (tables(model={"art:fgsm": 0.5}), "models.b.reference.art:fgsm: it is one number, and the attack runs at ["),
        (
            tables(model={"art:fgsm": {"4/255": 0.5}}),
            "models.b.reference.art:fgsm: it has eps 0.0156863, and the attack runs at [0.00784",
        ),
        (
            tables(model={"art:fgms": 0.5}),
            "models.b.reference: 'art:fgms' is not among the attacks on it; did you mean",
        ),
        (
            tables(model={"art:fgsm from b": 0.5}),
            "models.b.reference: 'art:fgsm from b' is not among the attacks on it",
        ),
        (tables(attack={"reference": 0.5}), "attacks.art:fgsm.reference: it is one number of a paper, and there are 2"),
        (
            tables(attack={"models": ["a"], "reference": 0.5}),
            "attacks.art:fgsm.reference: it is one number, and the attack runs at",
        ),
        (
            tables(threat=[{"eps": [0.5]}, {"norm": "L2", "eps": [0.5]}], model={"art:fgsm": {"0.5": 0.3}}),
            "the attack runs 2 times at eps 0.5, in Linf and L2; give each norm an attack of its own",
        ),
        (
            tables(
                attacks=[{"id": "art:bim"}, {"id": "art:bim", "options": {"max_iter": 3}}],
                model={"art:bim": {"2/255": 0}},
            ),
            "the attack runs 2 times at eps 0.00784314, in Linf; write references beside attacks with models = [...]",
        ),
        (
            tables(
                attacks=[{"id": "artq:random", "options": {"distribution": "normal", "std": 0.1}}],
                model={"artq:random at any eps": {"0.1": 0.2}},
            ),
            "models.b.reference.artq:random at any eps: it is a table, and no eps limits the attack; give one number",
        ),
        (
            tables(claim={"attack": "art:fgsm", "eps": "8/255", "reference": 0.5}),
            "claim.reference: it is one number of a paper, and there are 2 models",
        ),
    ],
)
def test_a_reference_of_no_cell_or_of_several_is_refused(given, expected):
    with pytest.raises(InputError) as caught:
        parse_recipe(given)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_substitute_has_none():
    given = tables(models=[{"name": "a", "role": "substitute", "reference": {"clean": 0.5}}, {"name": "b"}])
    with pytest.raises(InputError, match=r"models.a.reference: 'a' is a substitute"):
        parse_recipe(given)


# --- What is said of it


def cell(accuracy, interval, reference, **more):
    facts = {"id": "c", "model": "m", "source": "m", "attack": "art:fgsm", "role": "attack", "params": {}}
    facts |= {"norm": "Linf", "eps": 0.1, "seed": 0, "n": 10, "forward_samples": 0, "backward_samples": 0, "seconds": 0}
    return Cell(**facts, accuracy=accuracy, interval=interval, reference=reference, status="success", **more)


@pytest.mark.parametrize(
    ("accuracy", "interval", "reference", "said"),
    [
        (0.5, (0.4, 0.6), 0.52, "52 %, here -2, inside"),
        (0.5, (0.4, 0.6), 0.6, "60 %, here -10, inside"),
        (0.5, (0.4, 0.6), 0.601, "60.1 %, here -10.1, outside"),
        (0.5, (0.4, 0.6), 0.5, "50 %, here 0, inside"),
        (0.5, (0.4, 0.6), 0.0, "0 %, here +50, outside"),
        (None, None, 0.5, "50 %"),
        (0.5, (0.4, 0.6), None, "–"),
    ],
)
def test_the_difference_is_in_points_and_the_interval_holds_it_or_not(accuracy, interval, reference, said):
    assert words.paper(cell(accuracy, interval, reference)).replace("\N{NO-BREAK SPACE}", " ") == said


class Bright(nn.Module):
    """Class 0 where the mean pixel is at least 0.5."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x):
        over = self.slope * (x.flatten(1).mean(1, keepdim=True) - 0.5)
        return torch.cat([over, -over], 1)


N = 20
#: FGSM at eps takes eps from the mean, so half of the images stand at 0.1.
IMAGES = np.broadcast_to(np.linspace(0.505, 0.695, N)[:, None, None, None], (N, 1, 2, 2)).astype(np.float32)


def run(out=None, attacks=None, **more):
    def made():
        return QuantizedClassifier(Bright(), nn.CrossEntropyLoss(), (1, 2, 2), 2, device_type="cpu")

    attacks = attacks or [{"id": "art:fgsm", "models": ["one"], "reference": 0.35}, {"id": "art:bim"}]
    given = {"name": "p", "threat": {"eps": [0.1]}, "attacks": attacks, "diagnosis": {"level": 0}, **more}
    data = (IMAGES, np.zeros(N, dtype=np.int64))
    return art_qplugins.run(given, estimators={"one": made(), "two": made()}, data=data, out=out)


def test_it_is_in_the_records_and_in_every_table(tmp_path):
    claim = {"attack": "art:bim", "eps": 0.1, "accuracy": 0.7}
    run(tmp_path, claim=claim)
    read = json.loads((tmp_path / "results.json").read_text())
    assert {(c["model"], c["attack"]): c["reference"] for c in read["cells"] if c["reference"]} == {
        ("one", "art:fgsm"): 0.35
    }
    rows = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    assert [(r["model"], r["reference"]) for r in rows if r["attack"] == "art:fgsm"] == [("one", "0.35")]
    text = (tmp_path / "results.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    (row,) = (line for line in text.splitlines() if "| art:fgsm |" in line)
    assert "| 50 % [29.9, 70.1] | 35 %, here +15, inside |" in row
    assert "| accuracy | paper |" in text and "claimed, paper" not in text and "clean, paper" not in text
    page = unescape((tmp_path / "report.html").read_text()).replace("\N{NO-BREAK SPACE}", " ")
    assert '<h2 id="paper">Against the paper</h2>' in page and "here +15, inside" in page
    assert "Paper, claimed" not in page


def test_a_claimed_cell_and_clean_images_have_columns_of_their_own(tmp_path):
    attacks = [
        {"id": "art:fgsm", "models": ["one"], "reference": 0.9},
        {"id": "art:fgsm", "models": ["two"]},
    ]
    finished = run(tmp_path, attacks, claim={"attack": "art:fgsm", "eps": 0.1})
    records = finished.results
    clean = [
        c.model_copy(update={"reference": 1.0}) if c.role == "clean" and c.model == "two" else c for c in records.cells
    ]
    (tmp_path / "results.json").write_text(records.model_copy(update={"cells": clean}).model_dump_json(by_alias=True))
    art_qplugins.report.write_report(tmp_path)
    text = (tmp_path / "results.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    head, _, one, two = [
        line.split(" | ") for line in text.splitlines() if line.startswith(("| model", "| ---", "| one", "| two"))
    ][:4]
    assert (one[head.index("claimed, paper")], two[head.index("claimed, paper")]) == ("90 %, here -40, outside", "–")
    assert (one[head.index("clean, paper")], two[head.index("clean, paper")]) == ("–", "100 %, here 0, inside")
    page = unescape((tmp_path / "report.html").read_text())
    assert "Paper, claimed" in page and "Paper, clean" in page
    tex = (tmp_path / "results.tex").read_text()
    assert "Model & $n$ & Clean & Paper & Threat & Claimed & Paper & At most" in tex
    assert r"\begin{tabular}{lrrrlrrrll}" in tex
    assert all(line.count("&") == 9 for line in tex.splitlines() if line.endswith(r"\\"))


def test_without_one_no_table_says_anything_of_a_paper(tmp_path):
    run(tmp_path, [{"id": "art:fgsm"}])
    for name in ("results.md", "results.tex", "report.html"):
        body = (tmp_path / name).read_text().split("</style>")[-1].split("Settings as given")[0]
        assert "paper" not in body.lower(), name


def test_a_stored_cell_has_the_reference_that_the_recipe_gives_now(tmp_path):
    run(tmp_path, [{"id": "art:fgsm"}])
    first = {c.id for c in run(tmp_path, [{"id": "art:fgsm"}]).cells}
    finished = run(tmp_path, [{"id": "art:fgsm", "models": ["one"], "reference": 0.7}, {"id": "art:fgsm"}])
    assert {c.id for c in finished.cells} == first
    assert sorted(c.reference for c in finished.cells if c.reference) == [0.7]


def test_a_failed_cell_still_names_the_number_of_the_paper(tmp_path, monkeypatch):
    def broken(*arguments, **settings):
        raise RuntimeError("broken")

    monkeypatch.setattr("art_qplugins.attacks.adapters.art.run", broken)
    run(tmp_path)
    (row,) = (line for line in (tmp_path / "results.md").read_text().splitlines() if "| art:fgsm |" in line)
    assert "35\N{NO-BREAK SPACE}% |" in row and "FAILED" in row


def test_the_terminal_shows_them_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    attacks = [{"id": "art:fgsm", "models": ["one"], "reference": 0.35, "limit": 10}, {"id": "art:bim"}]
    show_results(run(attacks=attacks), LiveProgress())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    (row,) = (line.split() for line in out.splitlines() if "art:fgsm" in line)
    assert row[:7] == ["one", "art:fgsm,", "n", "=", "10", "Linf", "0.1"] and "35.0" in row
    show_results(run(attacks=[{"id": "art:bim"}]), LiveProgress())
    assert "paper" not in capsys.readouterr().out
