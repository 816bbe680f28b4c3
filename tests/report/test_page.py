"""What the page says of a synthetic run, and how."""

from __future__ import annotations

import base64
import configparser
import hashlib
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from made import SUMMARIES, Page, build_run, make_cell, plain, rows_of, write_results

from art_qplugins.report import select, words, write_report
from art_qplugins.report.gallery import data_uri


def test_page_answers_first(html: str) -> None:
    text = plain(Page(html).text)
    answer = (
        "One of 4 models shows robustness that is an illusion: mu-law-3bit claimed 95 %, really at most 5 % [2.7, 9]."
    )
    assert answer in text
    for part in ("MASKED", "SUSPECT", "NOT REFUTED", "INCONCLUSIVE", "INVALID", "1 of 83 cells failed", "n = 200"):
        assert part in text
    assert "RuntimeError: out of <memory> on 'cuda:0'" in text
    for summary in SUMMARIES.values():
        assert summary in text


def test_page_needs_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert page.tags.count("script") == 1 and page.tags[-1] == "script"
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in html, "the browser would not run it, or would run others too"
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == ["evidence/mu%20law.npz"]
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert "default-src 'none'" in html


def test_page_is_well_formed(html: str) -> None:
    page = Page(html)
    assert sorted(set(page.ids)) == sorted(page.ids), "an id is used twice"
    assert [link for link in page.links if link.startswith("#") and link[1:] not in page.ids] == []
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 15
    shown = html.split("<script>")[0]
    assert "NaN" not in shown and "None" not in shown


def test_skipped_checks_are_shown_like_the_others(html: str) -> None:
    section = html.split('id="model-3"')[1].split("</section>")[0]
    outcomes = re.findall(r'class="outcome o-[a-z-]+">([^<]+)<', section)
    assert outcomes == ["Found", "Found", "Found", "Not found", "Not found", "Not run"]
    assert section.index("Same model, scaled logits") < section.index("Margins past float32"), "proof comes first"


def test_verdict_and_claim_stand_apart(masked: str) -> None:
    text = plain(Page(masked).text)
    before = text.split(" Checks ")[0]
    for part in (
        "MASKED Verdict: does it hide its gradients?",
        words.VERDICTS["MASKED"].short,
        "Gradient lost at Mul in head.<scale>, on 97 % of the images.",
        "OVERSTATED Claim: does the number hold?",
        "95 % claimed → at most 5 % [2.7, 9] Overstated by 90 points [85, 94].",
        "evidence/mu law.npz",
        SUMMARIES["mu-law-3bit"],
    ):
        assert part in before, part
    assert text.count("artq replay evidence/mu law.npz --model MODULE:FACTORY") == 1


def test_checks_of_all_three_outcomes_are_shown_alike(masked: str) -> None:
    strip = rows_of(masked.split("<h3>Checks</h3>")[1].split("</table>")[0])
    assert strip[0].split(" | ") == [*("", "Control experiment", "Mechanism", "Symptom", "Claimed attack", "Validity")]
    shown = {row.split(":")[0]: row.split(" | ") for row in strip[1:]}
    assert shown["Found"][0] == "Found: 3" and "✕ logit-scale Same model" in shown["Found"][1]
    assert "✕ not-converged The attack had not converged" in shown["Found"][4], (
        "of the attack, not a symptom of the model"
    )
    assert (
        shown["Found"][3] == "none"
        and "– unbounded-attack-fails" in shown["Not run"][3]
        and "✓ chance-accuracy" in shown["Not found"][5]
    )
    # The same mark-up for all outcomes: nothing makes one of them smaller or fainter than another.
    entries = re.findall(r"<li>(<a href=.*?)<span class=.o-([a-z-]+)", masked)
    assert {kind for _, kind in entries} == {"found", "not-found", "not-run"}
    assert len({re.sub(r'"[^"]*"', "", start) for start, _ in entries}) == 1


def test_the_steps_say_what_broke_what_it_cost_and_why_not(masked: str) -> None:
    text = masked.split("Attacks tried, and their cost per image")[1].split("</table>")[0]
    levels = rows_of(text)[1:]
    assert levels[0] == "0 the claim | ● claim 4/194 | ○ measures | none | 40 | 40"
    assert levels[1] == "1 cheap attacks | ● margin 180/190 | none | none | 19 | 19"
    assert (
        levels[2]
        == "2 control experiments | ● unbounded 50/50 (Linf, eps 0.5) | none | – restart – search (failed) | 19 | 19"
    )
    assert levels[3] == "3 everything | none | none | – rescaled | – | –"
    steps = rows_of(masked.split("<summary>Steps of the diagnosis</summary>")[1].split("</table>")[0])
    assert steps[0].split(" | ")[2:5] == ["What it does", "Images attacked", "Result"]
    assert "1 | margin | 20 steps on the <margin> | 190 | broke 180 of 190 | 19 | 19" in steps
    assert any("| – | not run: no image is left to attack |" in step for step in steps)
    assert any("FAILED: RuntimeError: <gone>" in step for step in steps)


def test_a_finding_has_everything_that_a_reader_needs(masked: str) -> None:
    rows = rows_of(masked.split('id="model-3-findings"')[1].split("</table>")[0])
    row = next(row for row in rows if " not-converged " in f" {row} ")
    assert row.startswith(
        "Found | not-converged The attack had not converged symptom of the claimed attack, not of the model | 0 (p ="
    )
    assert row.split(" | ")[3] == "0.05" and "Anything of <the> model." in row
    assert "Attack the margin loss" in row


def test_every_check_leads_to_its_row(masked: str) -> None:
    links = re.findall(r'href="#(model-3-\d+)"', masked)
    assert len(links) == len(set(links)) == 6
    assert all(f'<tr id="{link}">' in masked for link in links)


def test_everything_but_the_answer_is_folded(html: str, masked: str) -> None:
    assert "<details open" not in masked and masked.count("<details") == 4
    answer = Page(masked.split("<details")[0]).text
    assert "What it does not show" not in answer and "data:image" not in masked.split("<details")[0]


def test_a_single_model_is_the_page(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    write_results(tmp_path, results.model_copy(update={"models": results.models[2:3]}))
    page = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8"))
    assert '<ul class="cards"' not in page.text and page.tags.count("h1") == 1
    assert page.ids[0] == "model-1" and page.tags.count("svg") == 5


def test_gallery_comes_from_the_cell_that_goes_furthest_beyond_the_claim(tmp_path: Path) -> None:
    """A cell of some images has rows of its own. What counts is how many it broke, not which share of them."""
    results = build_run(tmp_path)
    cells = [cell for cell in results.cells if cell.role != "probe" or cell.rows is not None]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    page = write_report(tmp_path)[-1].read_text(encoding="utf-8")
    gallery = page.split('id="model-3"')[1].split("Adversarial images")[1].split("</details>")[0]
    text = plain(Page(gallery).text)
    assert "the same image after artq:apgd-margin within Linf, eps 0.15, and ten times their difference" in text
    assert "This attack was run on 190 of 200 images (those not broken before)." in text
    assert text.count("→") == 6 and "The claimed attack broke none of the images shown." in text
    # Row 10 is the first that this cell attacked: its clean image stands beside its own adversarial one.
    noisy = np.load(next((tmp_path / "cells").glob("mu-law-3bit.artq-apgd-margin.Linf-0.15*")))["x_adv"][0]
    shown = re.findall(r'src="(data:[^"]+)"', gallery)
    clean = np.load(next((tmp_path / "cells").glob("mu-law-3bit.artq-clean*")))["x_adv"][10]
    grey = np.clip(0.5 + 10 * (noisy - clean), 0, 1)
    assert shown[:3] == [data_uri(clean), data_uri(noisy), data_uri(grey)]


def test_gallery_shows_images_that_the_claimed_attack_did_not_break(html: str) -> None:
    masked = html.split('id="model-3"')[1].split("</section>")[0]
    assert masked.count("data:image/png;base64,") == 18
    assert "The claimed attack broke none of the images shown." in masked


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.15, "0.15"),
        (8 / 255, "8/255"),
        (0.1, "0.1"),
        (2.0, "2"),
        (0.123456, "0.123"),
        (0.0, "0"),
        (16 / 255, "16/255"),
    ],
)
def test_eps_in_words(value: float, shown: str) -> None:
    assert words.eps(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.83, "83 %"), (0.045, "4.5 %"), (1.0, "100 %"), (0.0, "0 %"), (None, "–")]
)
def test_percent_in_words(value: float | None, shown: str) -> None:
    assert plain(words.percent(value)) == shown


def test_kinds_and_labels_tell_cells_apart() -> None:
    cells = [
        make_cell("a", "art:pgd", 0.1, 0.5, params={"loss": "ce", "max_iter": 20}),
        make_cell("a", "art:pgd", 0.1, 0.4, params={"loss": "margin", "max_iter": 20}, role="probe"),
        make_cell("a", "art:pgd", 0.1, 0.6, source="b"),
        make_cell("a", "autoattack:square", 0.1, 0.6),
    ]
    cells = [cell.model_copy(update={"id": str(row)}) for row, cell in enumerate(cells)]
    assert [select.kind(cell) for cell in cells] == ["white-box", "adaptive", "transfer", "black-box"]
    expected = ["art:pgd (loss=ce)", "art:pgd (loss=margin)", "art:pgd from b", "autoattack:square"]
    assert list(select.labels(cells).values()) == expected


def test_everything_that_the_page_is_made_of_is_shipped() -> None:
    templates = resources.files("art_qplugins.report").joinpath("templates")
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    patterns = setup["options.package_data"]["art_qplugins.report"].split(", ")
    names = {f"templates/{file.name}" for file in templates.iterdir()}
    assert {"templates/page.html.j2", "templates/style.css", "templates/sort.js"} < names
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_style_sheet_is_on_the_page_and_fetches_nothing(html: str) -> None:
    style = resources.files("art_qplugins.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    assert html.count("<style") == 1 and f"<style>\n{style}</style>" in html
    assert "url(" not in style and "@import" not in style and "<" not in style


def test_import_brings_neither_torch_nor_art() -> None:
    code = (
        "import sys, art_qplugins.report, art_qplugins.report.html\n"
        "heavy = {'torch', 'art', 'torchattacks', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_doubtful_verdict_does_not_deny_the_proof_beside_it() -> None:
    """SUSPECT is also what remains where an attack refuted the number and no mechanism explains it."""
    for text in (words.VERDICTS["SUSPECT"].short, words.VERDICTS["SUSPECT"].long):
        assert "no proof that the number" not in text and "no attack that proves" not in text
