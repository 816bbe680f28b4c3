"""The report on a synthetic run. ``python tests/test_report.py FOLDER`` writes that run and its report to look at."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import (
    Cell,
    Claim,
    Environment,
    Finding,
    Layer,
    ModelResult,
    Results,
    Robust,
    Sample,
    Step,
)
from art_qplugins.report import across, plots, read_run, robustbench, select, tex, words, write_report
from art_qplugins.report.gallery import data_uri

N = 200
EPS = (0.05, 0.1, 0.15, 0.2)
CLAIM_EPS = 0.15
EVIL = '<script>alert("1")</script>$\\frac|"\'/../[x](y)'

# name: verdict, clean, what is left at EPS by the claimed attack and by the strongest one, margin scale
MODELS = {
    "fp32": ("NOT_REFUTED", 0.965, (0.80, 0.48, 0.175, 0.04), (0.79, 0.46, 0.155, 0.03), 6.0),
    "dq-2bit": ("SUSPECT", 0.94, (0.83, 0.66, 0.47, 0.29), (0.81, 0.62, 0.42, 0.24), 4.0),
    "mu-law-3bit": ("MASKED", 0.97, (0.965, 0.96, 0.95, 0.94), (0.74, 0.31, 0.05, 0.005), 320.0),
    "sq-ensemble": ("INCONCLUSIVE", 0.93, (0.85, 0.71, 0.52, 0.36), (0.84, 0.68, 0.48, 0.31), 3.0),
}
SUMMARIES = {
    "fp32": "No check fired. PGD with cross-entropy leaves 17.5 %, and the worst case over six attacks 15.5 %.",
    "dq-2bit": "The loss rises in steps that a plain straight-through gradient does not see, on 12 % of the images. "
    "No attack proves the number wrong by more than its noise.",
    "mu-law-3bit": "The claim of 95 % is an illusion. The last layer scales the logits until cross-entropy and its "
    "gradient round to zero in float32, so attacks that follow it stand still. Dividing the logits by their median "
    "margin changes no answer of the model, and PGD then leaves 5 %.",
    "sq-ensemble": "The randomness was averaged over 8 draws, too few for a gradient that points the same way twice.",
}


def wilson(share: float, n: int = N) -> tuple[float, float]:
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def make_cell(model: str, attack: str, eps: float, accuracy: float | None, **more: object) -> Cell:
    source = str(more.pop("source", model))
    tag = "" if source == model else f".from-{source}"
    name = re.sub(r"[^A-Za-z0-9-]", "-", model)
    values: dict[str, object] = {
        "id": f"{name}.{attack.replace(':', '-')}{tag}.Linf-{eps}.{len(json.dumps(more)):06x}",
        "role": "attack",
        "params": {"max_iter": 20, "eps_step": eps / 4},
        "interval": None if accuracy is None else wilson(accuracy),
        "forward_samples": N * 20,
        "backward_samples": 0 if "square" in attack else N * 20,
        "seconds": 3.2,
        "knowledge": "black-box" if "square" in attack else "white-box",
        "status": "success" if accuracy is not None else "error",
    }
    values |= more
    common = {"model": model, "source": source, "attack": attack, "norm": "Linf", "eps": eps, "seed": 0, "n": N}
    return Cell(**common, accuracy=accuracy, **values)


def findings(verdict: str) -> list[Finding]:
    masked = verdict == "MASKED"

    def finding(
        id: str, class_: str, title: str, fired: bool | None, evidence: str, value: float | None = 0.0
    ) -> Finding:
        mend = "Attack the margin loss, or divide the logits by a temperature, and take the worst case."
        return Finding(
            id=id,
            title=title,
            class_=class_,
            fired=fired,
            value=value,
            threshold=0.05,
            evidence=evidence,
            mitigation=mend,
        )

    return [
        finding("V1", "V", "Images in bounds and budget", False, "All 4 000 images lie in [0, 1] and within eps."),
        finding("S2", "S", "More steps, same answer", None, "Not run: the budget allows 20 steps.", None),
        finding(
            "M4", "M", "Margins past float32", masked, f"Median margin {331 if masked else 5.2}; the limit is 16.6."
        ),
        finding(
            "INV-T",
            "P",
            "Same model, scaled logits",
            masked,
            "PGD on z/331 breaks 180 of 190 images that PGD on z leaves, lower bound 91.5 %."
            if masked
            else "PGD on z/T breaks 1 of 35 images more than PGD on z, lower bound 0.1 %.",
        ),
        finding("M7", "M", "Finite differences agree", verdict == "SUSPECT", "Correlation 0.81 over 20 directions."),
        finding(
            "I4", "S", "The attack had not converged", masked, "Its loss still rose at its end on 31 % of images."
        ).model_copy(update={"group": "claimed attack", "p_value": 0.0021, "shows_not": "Anything of <the> model."}),
    ]


def steps(cells: list[Cell]) -> list[Step]:
    """A ladder whose margin step attacked 190 of 200 images and broke 180 of them."""
    margin, free = cells
    nothing = {"status": "skipped", "reason": "no image is left to attack"}
    cost = {"forward": 19.0, "backward": 19.0}
    return [
        Step(
            id="margin",
            level=1,
            title="20 steps on the <margin>",
            status="run",
            cells=[margin.id],
            standing=190,
            **cost,
        ),
        Step(id="unbounded", level=2, title="every image", status="run", cells=[free.id], standing=50, **cost),
        Step(id="restart", level=2, title="another random start", **nothing),
        Step(id="search", level=2, title="search", status="failed", reason="RuntimeError: <gone>", standing=10),
        Step(id="rescaled", level=3, title="logits rescaled", **nothing),
    ]


def build_run(folder: Path, *, rename: dict[str, str] | None = None, channels: int = 1) -> Results:
    """Write a whole run into ``folder``: four models, one of which masks, and one cell that failed."""
    rng = np.random.default_rng(0)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    clean = _digits(rng, channels)
    label = np.arange(N) % 10
    cells, models, lines = [], [], []

    def score(cell: Cell, margins: np.ndarray, images: np.ndarray | None) -> None:
        cells.append(cell)
        for row in cell.rows if cell.rows is not None else range(N):
            right = bool(margins[row] > 0)
            guess = int(label[row]) if right else int((label[row] + 5) % 10)
            values = {"label": int(label[row]), "prediction": guess, "correct": float(right), "selection": float(right)}
            values |= {"distance": cell.eps, "margin": float(margins[row]), "loss": max(0.0, -float(margins[row]))}
            if cell.role == "clean":  # the loss of a large margin rounds to zero, and so does its gradient
                values["measures"] = {"gradient": 0.0 if margins[row] > 103 else float(np.exp(-abs(margins[row])))}
            lines.append(Sample(cell=cell.id, sample=f"digits-{row:04d}", **values).model_dump_json())
        if images is not None:
            np.savez_compressed(folder / "cells" / f"{cell.id}.npz", x_adv=images.astype(np.float32))

    def margins(share: float, scale: float) -> np.ndarray:
        values = np.abs(rng.normal(1, 0.35, N)) * scale + 0.01
        return np.where(np.arange(N)[::-1] < round(share * N), values, -values / 4)

    for original, (verdict, clean_share, weak, strong, scale) in MODELS.items():
        name = (rename or {}).get(original, original)
        score(
            make_cell(name, "artq:clean", 0.0, clean_share, role="clean", params={}), margins(clean_share, scale), clean
        )
        for eps, by_claim, by_best in zip(EPS, weak, strong, strict=True):
            noise = np.sign(rng.normal(size=clean.shape)) * eps
            at = [
                make_cell(name, "art:fgsm", eps, min(clean_share, by_claim + 0.02), params={}),
                make_cell(name, "art:pgd", eps, by_claim, params={"max_iter": 20, "loss": "cross_entropy"}),
                make_cell(name, "autoattack:square", eps, min(clean_share, by_best + 0.2)),
                make_cell(
                    name,
                    "art:pgd",
                    eps,
                    by_best,
                    role="probe",
                    params={"max_iter": 100, "loss": "margin"},
                    seconds=16.1,
                ),
            ]
            if original != "fp32":
                at.append(make_cell(name, "art:pgd", eps, min(clean_share, by_best + 0.12), source="fp32"))
            for cell in at:
                keep = eps == CLAIM_EPS and cell.accuracy is not None
                score(cell, margins(cell.accuracy or 0.0, scale), np.clip(clean + noise, 0, 1) if keep else None)
        claimed, corrected = weak[2], strong[2]
        claim_cell = next(
            c for c in cells if (c.model, c.attack, c.eps, c.role) == (name, "art:pgd", CLAIM_EPS, "attack")
        )
        ladder_cells = []
        if original == "mu-law-3bit":  # the claimed attack leaves the last 190 rows; 10 of them stand to the end
            some = {"role": "probe", "of": N, "params": {"loss": "margin"}, "interval": (0.03, 0.09)}
            rows = list(range(10, N))
            margin = make_cell(name, "artq:apgd-margin", CLAIM_EPS, 10 / 190, rows=rows, **some)
            free = make_cell(name, "artq:apgd-margin", 0.5, 0.0, rows=rows[:50], **some)
            ladder_cells = [margin.model_copy(update={"n": 190}), free.model_copy(update={"n": 50})]
            noise = np.sign(rng.normal(size=clean.shape)) * CLAIM_EPS
            score(ladder_cells[0], margins(10 / N, scale), np.clip(clean + noise, 0, 1)[rows])
            score(ladder_cells[1], margins(0.0, scale), None)
        robust = [
            Robust(norm="Linf", eps=eps, accuracy=value, interval=wilson(value), attacks=[])
            for eps, value in zip(EPS, strong, strict=True)
        ]
        models.append(
            ModelResult(
                name=name,
                description=f"ConvNet, {original}, 2 conv layers.",
                stochastic=original == "sq-ensemble",
                clean_accuracy=clean_share,
                clean_interval=wilson(clean_share),
                n=N,
                robust=robust,
                verdict=verdict,
                summary=SUMMARIES[original],
                claim=Claim(
                    status="OVERSTATED" if claimed - corrected > 0.04 else "HOLDS",
                    attack="art:pgd",
                    norm="Linf",
                    eps=CLAIM_EPS,
                    accuracy=claimed,
                    corrected=corrected,
                    interval=wilson(corrected),
                    cell=claim_cell.id,
                    overstated_by=claimed - corrected,
                    overstated_interval=(claimed - corrected - 0.05, claimed - corrected + 0.04),
                ),
                findings=findings(verdict),
                steps=steps(ladder_cells) if ladder_cells else [],
                layer=Layer(layer="head.<scale>", op="Mul", share=0.97) if ladder_cells else None,
                evidence="evidence/mu law.npz" if ladder_cells else None,
            )
        )
    trace = (
        "Traceback (most recent call last):\n  File \"attack.py\", line 1\nRuntimeError: out of <memory> on 'cuda:0'"
    )
    cells.append(make_cell("dq-2bit", "autoattack:standard", CLAIM_EPS, None, error=trace, params={}))
    recipe = {"models": list(MODELS), "threat": {"norm": "Linf", "eps": list(EPS)}, "attacks": ["art:pgd"]}
    results = Results(
        status="success",
        created="2025-11-20T12:00:00Z",
        spec={"given": recipe, "resolved": recipe | {"seed": 0, "batch_size": 128}},
        data={"name": "digits", "split": "test", "n": N, "sha256": "9f" * 32, "classes": 10, "shape": [channels, 8, 8]},
        environment=Environment(
            packages={"torch": "2.6.0", "adversarial-robustness-toolbox": "1.20.1"},
            python="3.11.7",
            platform="Linux x86_64",
            device="cpu",
            git={"commit": "150fae1c" * 5, "dirty": True},
        ),
        models=models,
        cells=cells,
    )
    write_results(folder, results)
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return results


def write_results(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.model_dump_json(by_alias=True), encoding="utf-8")


def _digits(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Blobs that pass for 8x8 digits, (N, C, 8, 8) in [0, 1]."""
    rows, columns = np.mgrid[0:8, 0:8]
    centre, radius = rng.uniform(2.5, 4.5, (N, 2, 1, 1)), rng.uniform(1.2, 2.8, (N, 1, 1))
    distance = np.hypot(rows - centre[:, 0], columns - centre[:, 1])
    ring = np.exp(-((distance - radius) ** 2))
    return np.repeat(ring[:, None], channels, axis=1).astype(np.float32)


class Page(HTMLParser):
    """What a browser would load and show, as far as a test needs it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.shown: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and not self.scripts:
            self.scripts = 1
        else:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build_run(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_writes_every_file_and_says_which(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in write_report(folder)]
    models = [f"figures/{what}-{name}.svg" for what in ("attacks", "margins", "gradients") for name in MODELS]
    run_wide = [f"figures/{name}.svg" for name in ("robust-accuracy", "transfer")]
    parquet = ["results.parquet", "samples.parquet"] if importlib.util.find_spec("pyarrow") else []
    tables = ["results.md", "results.csv", "results.tex"]
    assert names == [*parquet, *tables, *run_wide, *models, "report.html"]
    assert not [path for path in folder.rglob(".*") if path.is_file()], "a temporary file was left"


def test_same_records_same_bytes(folder: Path) -> None:
    before = {path: path.read_bytes() for path in write_report(folder)}
    assert {path: path.read_bytes() for path in write_report(folder)} == before


def test_csv_has_each_cell_with_raw_fractions(folder: Path) -> None:
    results = read_run(folder).results
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in rows] == [cell.id for cell in results.cells]
    for row, cell in zip(rows, results.cells, strict=True):
        assert (float(row["accuracy"]) if row["accuracy"] else None) == cell.accuracy
        assert json.loads(row["params"]) == cell.params
        if cell.interval:
            assert (float(row["lower"]), float(row["upper"])) == cell.interval
    assert rows[-1]["status"] == "error" and "out of <memory>" in rows[-1]["error"]


def test_markdown_has_each_number_with_n_and_interval(folder: Path) -> None:
    text = plain((folder / "results.md").read_text(encoding="utf-8"))
    head, _, row = (
        next(part for part in text.split("\n\n") if part.startswith("| model | n | clean")).splitlines()[i]
        for i in (0, 1, 4)
    )
    summary = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert summary["model"] == "mu-law-3bit"
    assert summary["n"] == "200"
    assert summary["claimed"] == "95 %"
    assert summary["corrected"] == "≤ 5 % [2.7, 9]"
    assert summary["Linf, eps 0.05"].startswith("≤ 74 %")
    assert (summary["claim"], summary["verdict"]) == ("overstated", "MASKED")
    assert "FAILED: Traceback" in text and "out of &lt;memory&gt;" in text
    assert "1 of 83 cells failed" in text


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
    assert page.tags.count("svg") == 14
    shown = html.split("<script>")[0]
    assert "NaN" not in shown and "None" not in shown


def test_skipped_checks_are_shown_like_the_others(html: str) -> None:
    section = html.split('id="model-3"')[1].split("</section>")[0]
    outcomes = re.findall(r'class="outcome o-[a-z-]+">([^<]+)<', section)
    assert outcomes == ["Found", "Found", "Found", "Not found", "Not found", "Not run"]
    assert section.index("Same model, scaled logits") < section.index("Margins past float32"), "proof comes first"


def rows_of(section: str) -> list[str]:
    """The words of each table row of a section, cells parted by bars."""
    found = []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", section, re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        found.append(" | ".join(plain(Page(cell).text) for cell in cells))
    return found


@pytest.fixture(scope="module")
def masked(html: str) -> str:
    return html.split('id="model-3"')[1].split("</section>")[0]


def test_verdict_and_claim_stand_apart(masked: str) -> None:
    text = plain(Page(masked).text)
    before = text.split("What was checked")[0]
    for part in (
        "MASKED Verdict: does it hide its gradients?",
        words.VERDICTS["MASKED"].short,
        "Gradient lost at Mul in head.<scale>, on 97 % of the images.",
        "OVERSTATED Claim: does the number stand?",
        "95 % claimed → at most 5 % [2.7, 9] Overstated by 90 points [85, 94].",
        "evidence/mu law.npz",
        SUMMARIES["mu-law-3bit"],
    ):
        assert part in before, part
    assert text.count("artq replay evidence/mu law.npz --model MODULE:FACTORY") == 1


def test_what_was_checked_shows_all_three_outcomes_alike(masked: str) -> None:
    strip = rows_of(masked.split("What was checked")[1].split("</table>")[0])
    assert strip[0].split(" | ") == ["", "Proof", "Mechanism", "Symptom", "Claimed attack", "Validity"]
    shown = {row.split(":")[0]: row.split(" | ") for row in strip[1:]}
    assert shown["Found"][0] == "Found: 3" and "✕ INV-T Same model" in shown["Found"][1]
    assert "✕ I4 The attack had not converged" in shown["Found"][4], "of the attack, not a symptom of the model"
    assert shown["Found"][3] == "none" and "– S2" in shown["Not run"][3] and "✓ V1" in shown["Not found"][5]
    # The same mark-up for all outcomes: nothing makes one of them smaller or fainter than another.
    entries = re.findall(r"<li>(<a href=.*?)<span class=.o-([a-z-]+)", masked)
    assert {kind for _, kind in entries} == {"found", "not-found", "not-run"}
    assert len({re.sub(r'"[^"]*"', "", start) for start, _ in entries}) == 1


def test_the_ladder_says_what_broke_what_it_cost_and_why_not(masked: str) -> None:
    text = masked.split("What was tried")[1].split("</table>")[0]
    levels = rows_of(text)[1:]
    assert levels[0] == "0 the claim | ● claim 4/194 | ○ measures | none | 40 | 40"
    assert levels[1] == "1 cheap attacks | ● margin 180/190 | none | none | 19 | 19"
    assert levels[2] == "2 controls | ● unbounded 50/50 (Linf, eps 0.5) | none | – restart – search (failed) | 19 | 19"
    assert levels[3] == "3 everything | none | none | – rescaled | – | –"
    steps = rows_of(masked.split("The ladder, step by step")[1].split("</table>")[0])
    assert "1 | margin | 20 steps on the <margin> | 190 | broke 180 of 190 | 19 | 19" in steps
    assert any("| – | not run: no image is left to attack |" in step for step in steps)
    assert any("FAILED: RuntimeError: <gone>" in step for step in steps)


def test_a_finding_has_everything_that_a_reader_needs(masked: str) -> None:
    rows = rows_of(masked.split('id="model-3-findings"')[1].split("</table>")[0])
    row = next(row for row in rows if " I4 " in f" {row} ")
    assert row.startswith(
        "Found | I4 The attack had not converged symptom of the claimed attack, not of the model | 0 (p ="
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
    assert page.ids[0] == "model-1" and page.tags.count("svg") == 4


def test_partial_cells_are_never_shown_as_whole_ones(folder: Path, html: str) -> None:
    results = read_run(folder).results
    model = next(m for m in results.models if m.name == "mu-law-3bit")
    assert all(cell.rows is None for cell in select.attacks(model, results))
    assert len(select.at_budget(model, results)) == len(select.attacks(model, results)) + 1
    assert "apgd-margin" not in (folder / "figures" / "attacks-mu-law-3bit.svg").read_text(encoding="utf-8")
    markdown = plain((folder / "results.md").read_text(encoding="utf-8"))
    for text in (plain(Page(html).text), markdown):
        assert "190 of 200 standing images" in text and "5.3 % [3, 9] of those" in text
    for row in csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))):
        assert (row["of"] == "200") == (row["attack"] == "artq:apgd-margin")


def test_gallery_comes_from_the_cell_that_goes_furthest_beyond_the_claim(tmp_path: Path) -> None:
    """A cell on the standing images has rows of its own, and it counts how many it broke, not which share of them."""
    results = build_run(tmp_path)
    cells = [cell for cell in results.cells if cell.role != "probe" or cell.rows is not None]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    page = write_report(tmp_path)[-1].read_text(encoding="utf-8")
    gallery = page.split('id="model-3"')[1].split("Adversarial images")[1].split("</details>")[0]
    text = plain(Page(gallery).text)
    assert "artq:apgd-margin within Linf, eps 0.15, which attacked 190 of 200 standing images, then ten times" in text
    assert text.count("→") == 6 and "All of these withstood the claimed attack" in text
    # Row 10 is the first that this cell attacked: its clean image stands beside its own adversarial one.
    noisy = np.load(next((tmp_path / "cells").glob("mu-law-3bit.artq-apgd-margin.Linf-0.15*")))["x_adv"][0]
    shown = re.findall(r'src="(data:[^"]+)"', gallery)
    clean = np.load(next((tmp_path / "cells").glob("mu-law-3bit.artq-clean*")))["x_adv"][10]
    grey = np.clip(0.5 + 10 * (noisy - clean), 0, 1)
    assert shown[:3] == [data_uri(clean), data_uri(noisy), data_uri(grey)]


@pytest.mark.parametrize(
    "path",
    ["javascript:alert(1)", "/etc/passwd", "evidence/../../x.npz", "https://a.b/x", "evidence", "..\\evidence\\x"],
)
def test_evidence_elsewhere_is_no_link(path: str, tmp_path: Path) -> None:
    results = build_run(tmp_path)
    models = [model.model_copy(update={"evidence": path}) for model in results.models]
    write_results(tmp_path, results.model_copy(update={"models": models}))
    page = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8"))
    assert not [link for link in page.links if not link.startswith(("#", "data:"))]
    assert path in page.text


def test_tables_carry_the_diagnosis(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    mine = [row for row in rows if row["model"] == "mu-law-3bit"]
    assert {row["verdict"] for row in mine} == {"MASKED"} and {row["claim_status"] for row in mine} == {"OVERSTATED"}
    assert {float(row["overstated_by"]) for row in mine} == {0.95 - 0.05}
    assert {(row["guilty_layer"], row["guilty_op"]) for row in mine} == {("head.<scale>", "Mul")}
    places = {row["step"]: row["level"] for row in mine if row["level"]}
    assert places == {"measures": "0", "claim": "0", "margin": "1", "unbounded": "2"}
    text = plain((folder / "results.md").read_text(encoding="utf-8"))
    assert "overstated by 90 points [85, 94]" in text and "Mul in head.&lt;scale&gt;, on 97 % of the images" in text
    assert "| 1 cheap attacks | 19 | 19 |" in text and "| 3 everything | not run | not run |" in text
    assert "broke 180 of 190" in text and "not run: no image is left to attack" in text


def test_a_finished_run_with_a_failed_cell_says_what_failed() -> None:
    cell = make_cell("net", "art:pgd", 0.1, None, error="Traceback\nRuntimeError: out of memory")
    results = Results.model_construct(status="error", cells=[cell], models=["finished"])
    (note,) = words.troubles(results)
    assert plain(note) == (
        "1 of 1 cells failed and count in no number: net, art:pgd at Linf, eps 0.1: RuntimeError: out of memory."
    )
    for changes in ({"status": "cancelled"}, {"models": []}):
        notes = words.troubles(results.model_copy(update=changes))
        assert len(notes) == 2 and "not complete" in notes[0]


def test_gallery_shows_what_the_claimed_attack_left(html: str) -> None:
    masked = html.split('id="model-3"')[1].split("</section>")[0]
    assert masked.count("data:image/png;base64,") == 18
    assert "All of these withstood the claimed attack" in masked


@pytest.mark.parametrize("channels", [1, 3])
def test_names_are_escaped_everywhere(tmp_path: Path, channels: int) -> None:
    build_run(tmp_path, rename={"mu-law-3bit": EVIL}, channels=channels)
    written = write_report(tmp_path)
    for path in written:
        assert re.fullmatch(r"[a-z0-9.-]+", path.name) and path.is_relative_to(tmp_path)
        if path.suffix not in (".csv", ".parquet", ".tex"):
            ours = int(path.name == "report.html")
            assert path.read_text(encoding="utf-8").lower().count("<script") == ours
    assert not re.search(r"(?<!\\)\]\(", (tmp_path / "results.md").read_text(encoding="utf-8")), "a name became a link"
    page = Page(written[-1].read_text(encoding="utf-8"))
    assert EVIL in page.text and page.tags.count("script") == 1


@pytest.mark.parametrize("status", ["started", "error"])
def test_a_run_without_models(tmp_path: Path, status: str) -> None:
    build_run(tmp_path)
    results = read_run(tmp_path).results.model_copy(update={"models": [], "cells": [], "status": status})
    write_results(tmp_path, results)
    (tmp_path / "samples.jsonl").unlink()
    text = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8")).text
    assert "holds no finished model" in text and f"status: {status}" in text


def test_sparse_records_are_reported_as_far_as_they_go(tmp_path: Path) -> None:
    """No claim, no interval, no images, one eps, no findings, a line cut short."""
    build_run(tmp_path)
    results = read_run(tmp_path).results
    for file in (tmp_path / "cells").iterdir():
        file.unlink()
    with (tmp_path / "samples.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"cell": "fp')
    bare = {"claim": Claim(status="NONE"), "findings": [], "description": "", "summary": ""}
    models = [model.model_copy(update=bare | {"robust": model.robust[:1]}) for model in results.models]
    models[1] = models[1].model_copy(update={"robust": []})
    cells = [cell.model_copy(update={"interval": None}) for cell in results.cells]
    write_results(tmp_path, results.model_copy(update={"models": models, "cells": cells, "data": {}}))
    text = plain(Page(write_report(tmp_path)[-1].read_text(encoding="utf-8")).text)
    assert "No claim was made" in text and "No check was run" in text
    assert "None" not in text


def test_warnings_and_temperatures_are_shown(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    change = {"notes": ["loss did not <move>"], "params": {"temperature": 331.234567}}
    cells = [cell.model_copy(update=change) if cell.role == "probe" else cell for cell in results.cells]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    texts = [path for path in write_report(tmp_path) if path.suffix != ".parquet"]
    written = {path.name: path.read_text(encoding="utf-8") for path in texts}
    assert "Warning: loss did not <move>" in Page(written["report.html"]).text
    for name in ("report.html", "results.md", "attacks-fp32.svg"):
        assert "art:pgd, logits / 331" in written[name]
    assert "loss did not &lt;move&gt;" in written["results.md"] and "loss did not <move>" in written["results.csv"]


def test_an_invalid_model_gets_no_headline_number(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    models = [model.model_copy(update={"verdict": "INVALID"}) for model in results.models[:1]]
    write_results(tmp_path, results.model_copy(update={"models": models}))
    page = write_report(tmp_path)[-1].read_text(encoding="utf-8")
    text = plain(Page(page).text)
    assert "17.5 % claimed. No number of this model counts." in text and "○ HOLDS" not in text
    claim = results.models[0].claim
    models = [model.model_copy(update={"verdict": "INVALID", "claim": claim}) for model in results.models[:2]]
    write_results(tmp_path, results.model_copy(update={"models": models}))
    page = write_report(tmp_path)[-1].read_text(encoding="utf-8")
    assert re.findall(r'<p class="figure-number">(.*?)</p>', page) == ["– <small>no number counts</small>"] * 2
    assert "2 of 2 models could not be evaluated: fp32, dq-2bit." in Page(page).text


def test_all_cells_failed(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    failed = {"status": "error", "accuracy": None, "interval": None, "error": None}
    cells = [cell.model_copy(update=failed) for cell in results.cells]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    text = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8")).text
    assert "83 of 83 cells failed" in text and "no message was recorded" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 2}', "schema_version is 2"),
        ('{"schema_version": 1, "status": "done"}', "status"),
    ],
)
def test_results_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"results.json"}


def test_a_damaged_sample_names_its_line(tmp_path: Path) -> None:
    build_run(tmp_path)
    (tmp_path / "samples.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl, line 1"):
        write_report(tmp_path)


def test_damaged_images_cost_the_gallery_only(tmp_path: Path) -> None:
    build_run(tmp_path)
    for file in (tmp_path / "cells").iterdir():
        file.write_bytes(b"PK\x03\x04 not a zip")
    assert "data:image/png" not in write_report(tmp_path)[-1].read_text(encoding="utf-8")


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


def test_import_brings_neither_torch_nor_art() -> None:
    code = (
        "import sys, art_qplugins.report, art_qplugins.report.html\n"
        "heavy = {'torch', 'art', 'torchattacks', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_clean_images_that_could_not_be_scored_have_no_accuracy(tmp_path: Path) -> None:
    """The record then says 0 of 0 images, which is no 0 %."""
    results = build_run(tmp_path)
    nothing = {"n": 0, "clean_accuracy": 0.0, "clean_interval": (0.0, 1.0), "robust": [], "findings": []}
    invalid = results.models[0].model_copy(update={**nothing, "verdict": "INVALID", "claim": Claim(status="NONE")})
    write_results(tmp_path, results.model_copy(update={"models": [invalid, *results.models[1:]]}))
    write_report(tmp_path)
    summary = next(
        line
        for line in (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| fp32 |")
    )
    assert summary.startswith(f"| fp32 | 0 | {words.NONE} |")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "[0, 100]" not in plain(page)
    curves = (tmp_path / "figures" / "robust-accuracy.svg").read_text(encoding="utf-8")
    assert "fp32: clean not known" in curves


def test_a_doubtful_verdict_does_not_deny_the_proof_beside_it() -> None:
    """SUSPECT is also what remains where an attack refuted the number and no mechanism explains it."""
    for text in (words.VERDICTS["SUSPECT"].short, words.VERDICTS["SUSPECT"].long):
        assert "no proof that the number" not in text and "no attack that proves" not in text


def test_latex_is_escaped_and_has_every_model(tmp_path: Path) -> None:
    results = build_run(tmp_path, rename={"mu-law-3bit": EVIL, "fp32": "a_b & 50% #1 {x}^2~"})
    write_report(tmp_path)
    text = (tmp_path / "results.tex").read_text(encoding="utf-8")
    rows = text.split("\\midrule\n")[1].split("    \\bottomrule")[0].splitlines()
    assert len(rows) == len(results.models) and all(row.endswith(r" \\") for row in rows)
    # Whatever opens a group, a command or a column is ours: undo the escapes and nothing special is left in a name.
    for row, name in zip(rows, ("a_b & 50% #1 {x}^2~", "dq-2bit", EVIL), strict=False):
        shown = re.split(r"(?<!\\) & ", row.strip())[0]
        left = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", shown)
        assert not set(left) & set('\\&%$#_{}~^<>|"'), left
        assert len(re.split(r"(?<!\\) & ", row)) == 8
        assert tex.escape(name) == shown
    columns = [part.strip() for part in rows[2].removesuffix(r" \\").split(" & ")]
    assert columns[-7:] == [
        "200",
        "97.0 [93.6, 98.6]",
        "Linf, eps~0.15",
        "95.0",
        "5.0 [2.7, 9.0]",
        "overstated",
        "masked",
    ]


def test_parquet_holds_the_records(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = read_run(folder)
    cells = parquet.read_table(folder / "results.parquet").to_pylist()
    assert [row["id"] for row in cells] == [cell.id for cell in run.results.cells]
    assert [row["accuracy"] for row in cells] == [cell.accuracy for cell in run.results.cells]
    assert [json.loads(row["params"]) for row in cells] == [cell.params for cell in run.results.cells]
    samples = parquet.read_table(folder / "samples.parquet").to_pylist()
    recorded = [sample for rows in run.samples.values() for sample in rows]
    assert [(r["cell"], r["sample"], r["correct"]) for r in samples] == [
        (s.cell, s.sample, s.correct) for s in recorded
    ]
    assert [r["measures.gradient"] for r in samples] == [s.measures.get("gradient") for s in recorded]


def test_without_pyarrow_nothing_is_said_and_old_tables_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_run(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("samples.parquet", "robustbench.json"):
        (tmp_path / name).write_text("of an earlier run")
    assert not [path for path in write_report(tmp_path) if path.suffix in (".parquet", ".json")]
    assert not (tmp_path / "samples.parquet").exists() and not (tmp_path / "robustbench.json").exists()
    assert (tmp_path / "results.json").exists()


def test_transfer_is_the_fullest_matrix(folder: Path) -> None:
    matrix = across.transfer(read_run(folder).results)
    assert matrix is not None and (matrix.attack, matrix.norm, matrix.eps) == ("art:pgd", "Linf", CLAIM_EPS)
    assert matrix.sources == ["fp32"] and matrix.targets == ["dq-2bit", "mu-law-3bit", "sq-ensemble"]
    left = {target: matrix.cells["fp32", target].accuracy for target in matrix.targets}
    assert left == {name: pytest.approx(MODELS[name][3][2] + 0.12) for name in left}
    svg = (folder / "figures" / "transfer.svg").read_text(encoding="utf-8")
    assert "fp32 to mu-law-3bit 17" in plain(svg)


def test_a_model_alone_has_no_transfer_matrix(folder: Path) -> None:
    results = read_run(folder).results
    assert across.transfer(results.model_copy(update={"models": results.models[:2]})) is None


def with_bits(results: Results) -> Results:
    """The same models as if three of them were a sweep: 2 bits under two seeds, 3 bits, and another model."""
    quantize = {"weight_bits": None, "clip": 6.0}
    models = [
        {"name": "fp32", "quantize": None},
        {"name": "dq-2bit", "seed": 0, "replicate_of": "dq", "quantize": quantize | {"activation_bits": 2}},
        {"name": "mu-law-3bit", "base": "x", "quantize": quantize | {"activation_bits": 3}},
        {"name": "sq-ensemble", "seed": 1, "replicate_of": "dq", "quantize": quantize | {"activation_bits": 2}},
    ]
    return results.model_copy(update={"spec": {"resolved": {"models": models}}})


def test_bits_are_read_from_the_recipe(tmp_path: Path) -> None:
    results = with_bits(build_run(tmp_path))
    (sweep,) = across.bit_sweeps(results)
    assert sweep.what == "activation bits"
    named = [(bits, [model.name for model in models]) for bits, models in sweep.models]
    assert named == [("2", ["dq-2bit", "sq-ensemble"]), ("3", ["mu-law-3bit"])]
    write_results(tmp_path, results)
    write_report(tmp_path)
    svg = (tmp_path / "figures" / "bits-1.svg").read_text(encoding="utf-8")
    assert "3 (mu-law-3bit): clean 97 %, claimed 95 %, at most 5 %" in plain(svg)
    models = results.spec["resolved"]["models"]
    models[2]["quantize"] = models[2]["quantize"] | {"clip": 1.0}  # more than the bits differs now
    assert across.bit_sweeps(results) == []


def test_zero_gradients_have_a_bar_of_their_own(folder: Path) -> None:
    svg = plain((folder / "figures" / "gradients-mu-law-3bit.svg").read_text(encoding="utf-8"))
    run = read_run(folder)
    clean = select.clean(run.results.models[2], run.results)
    assert clean is not None
    zeros = sum(sample.measures["gradient"] == 0 for sample in run.samples[clean.id])
    assert 0 < zeros < N and f"exactly zero on {words.percent(zeros / N)}".replace("\xa0", " ") in svg
    assert f">{zeros}</text>" in svg and ">zero</text>" in svg
    none = (folder / "figures" / "gradients-fp32.svg").read_text(encoding="utf-8")
    assert ">zero</text>" not in none


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.0, 1e-45, 1e30], [3e-7] * 5])
def test_gradients_of_any_size_can_be_drawn(values: list[float]) -> None:
    assert (
        plots.gradient_histogram(values).axes[0].get_xlim()[0] < plots.gradient_histogram(values).axes[0].get_xlim()[1]
    )


def on_grid(results: Results, folder: Path, name: str, *, stochastic: bool = False) -> Results:
    """Rounding mends every image whose row is odd, in the attacks of one model at the claim's budget."""
    cells = [
        cell.model_copy(update={"grid": 256, "grid_accuracy": 0.5, "grid_interval": (0.4, 0.6)})
        if cell.model == name and cell.eps == CLAIM_EPS and cell.status == "success"
        else cell
        for cell in results.cells
    ]
    gridded = {cell.id for cell in cells if cell.grid}
    lines = []
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["cell"] in gridded:
            odd = int(row["sample"][-4:]) % 2
            row["measures"] = {"grid_correct": 1.0 if odd else row["correct"]}
        lines.append(json.dumps(row))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    models = [
        model.model_copy(update={"stochastic": stochastic}) if model.name == name else model for model in results.models
    ]
    return results.model_copy(update={"cells": cells, "models": models})


@pytest.mark.parametrize("stochastic", [False, True])
def test_both_numbers_where_pixels_were_rounded(tmp_path: Path, stochastic: bool) -> None:
    write_results(tmp_path, on_grid(build_run(tmp_path), tmp_path, "fp32", stochastic=stochastic))
    run = read_run(tmp_path)
    model = run.results.models[0]
    cells = [cell for cell in run.results.cells if cell.grid]
    # Each of the odd rows is mended, and of the even ones those stand that no attack broke.
    rows = [[sample.correct for sample in run.samples[cell.id]] for cell in cells]
    left = (N / 2 + sum(min(row[i] for row in rows) for i in range(0, N, 2))) / N
    grid = select.on_grid(model, run)
    assert grid is not None and grid.levels == 256 and grid.accuracy == pytest.approx(left)
    assert select.on_grid(run.results.models[1], run) is None
    written = {
        path.name: plain(path.read_text(encoding="utf-8"))
        for path in write_report(tmp_path)
        if path.suffix in (".html", ".md", ".tex", ".csv")
    }
    shown = plain(words.on_grid(grid))
    assert shown in Page(written["report.html"]).text and shown in written["results.md"]
    assert "Rounded to 256 levels" in written["results.tex"] and f"{100 * left:.1f} [" in written["results.tex"]
    rows_ = csv.DictReader(io.StringIO(written["results.csv"]))
    assert {row["grid_accuracy"] for row in rows_ if row["grid"]} == {"0.5"}


def test_a_skipped_cell_says_why(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    skipped = results.cells[-1].model_copy(
        update={"status": "skipped", "error": None, "notes": ["no <budget> is left"]}
    )
    write_results(tmp_path, results.model_copy(update={"cells": [*results.cells[:-1], skipped]}))
    write_report(tmp_path)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "83 cells, 0 failed, 1 not run." in text and "Not run: no <budget> is left" in text
    assert "not run: no &lt;budget&gt; is left |" in (tmp_path / "results.md").read_text(encoding="utf-8")


# --- RobustBench


def leaderboard_run(folder: Path, **changes: object) -> Results:
    """What the leaderboard asks for: the published AutoAttack on all of CIFAR-10's test images, in order."""
    n = int(str(changes.get("n", 10_000)))
    common = {"forward_samples": n, "backward_samples": n, "seconds": 1.0, "status": "success", "params": {}}
    common |= {"model": "net", "source": "net", "norm": "Linf", "seed": 0, "n": n, "interval": (0.4, 0.6)}
    attack = {"id": "aa", "attack": "autoattack:standard", "role": "attack", "eps": 8 / 255, "accuracy": 0.50126}
    attack |= {key: value for key, value in changes.items() if key in Cell.model_fields and key != "n"}
    cells = [
        Cell(**common | {"id": "clean", "attack": "artq:clean", "role": "clean", "eps": 0.0, "accuracy": 0.9}),
        Cell(**common | attack),
    ]
    model = ModelResult(
        **{"name": "net", "description": "WRN-28-10", "stochastic": bool(changes.get("stochastic")), "n": n},
        **{"clean_accuracy": 0.9, "clean_interval": (0.89, 0.91), "robust": [], "summary": "", "findings": []},
        **{"claim": Claim(status="NONE"), "verdict": str(changes.get("verdict", "NOT_REFUTED"))},
    )
    data = {"name": changes.get("data", "cifar10"), "split": changes.get("split", "test"), "n": n}
    environment = Environment(packages={}, python="", platform="", device="cpu", git=None)
    results = Results(
        **{"status": "success", "created": "", "spec": {}, "data": data, "environment": environment},
        **{
            "models": [model, *([model.model_copy(update={"name": "two"})] if changes.get("twice") else [])],
            "cells": cells,
        },
    )
    write_results(folder, results)
    start = 1 if changes.get("shuffled") else 0
    row = {"label": 0, "prediction": 0, "correct": 1, "selection": 1, "distance": 0, "margin": 1, "loss": 0}
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as out:
        for i in range(n):
            out.write(json.dumps({"cell": "clean", "sample": f"cifar10/test/{(i + start) % n:04d}"} | row) + "\n")
    return results


def test_a_leaderboard_entry_is_what_robustbench_reads(tmp_path: Path) -> None:
    leaderboard_run(tmp_path)
    run = read_run(tmp_path)
    assert robustbench.obstacles(run.results.models[0], run) == []
    ((name, text),) = robustbench.entries(run).items()
    entry = json.loads(text)
    assert name == "robustbench.json"
    # The fields of model_info/cifar10/Linf/*.json there, accuracies as strings with two digits.
    wanted = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert list(entry) == [*wanted.split(), "autoattack_acc"]
    assert (entry["eps"], entry["clean_acc"], entry["autoattack_acc"]) == ("8/255", "90.00", "50.13")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 1000}, "1000 images of the test split"),
        ({"split": "train"}, "images of the train split"),
        ({"shuffled": True}, "not in their order"),
        ({"stochastic": True}, "random"),
        ({"data": "mnist"}, "the data are mnist"),
        ({"eps": 0.1}, "not run unmodified"),
        ({"norm": "L1"}, "not run unmodified"),
        ({"attack": "autoattack:rand"}, "not run unmodified"),
        ({"params": {"temperature": 3.0}}, "not run unmodified"),
        ({"rows": [0, 1], "of": 10_000}, "not run unmodified"),
        ({"source": "other"}, "not run unmodified"),
        ({"status": "error", "accuracy": None}, "not run unmodified"),
        ({"verdict": "MASKED"}, "the verdict is MASKED"),
    ],
    ids=str,
)
def test_what_the_leaderboard_would_not_take_has_a_reason(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    leaderboard_run(tmp_path, **changes)
    run = read_run(tmp_path)
    assert any(reason in why for why in robustbench.obstacles(run.results.models[0], run))
    assert robustbench.entries(run) == {}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_results(target, on_grid(with_bits(build_run(target)), target, "fp32"))
    print(*write_report(target), sep="\n")
