"""A synthetic run to report on. ``python tests/report/made.py FOLDER`` writes it and its report to look at."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from art_qplugins.evaluation.network_records import TrainedEpoch
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
from art_qplugins.report import write_report

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
        finding(
            "chance-accuracy",
            "V",
            "Images in bounds and within eps",
            False,
            "All 4 000 images lie in [0, 1] and within eps.",
        ),
        finding(
            "unbounded-attack-fails", "S", "More steps, same answer", None, "Not run: the budget allows 20 steps.", None
        ),
        finding(
            "large-logits",
            "M",
            "Margins past float32",
            masked,
            f"Median margin {331 if masked else 5.2}; the limit is 16.6.",
        ),
        finding(
            "logit-scale",
            "P",
            "Same model, scaled logits",
            masked,
            "PGD on z/331 breaks 180 of 190 images that PGD on z leaves, lower bound 91.5 %."
            if masked
            else "PGD on z/T breaks 1 of 35 images more than PGD on z, lower bound 0.1 %.",
        ),
        finding(
            "unfaithful-gradient",
            "M",
            "Finite differences agree",
            verdict == "SUSPECT",
            "Correlation 0.81 over 20 directions.",
        ),
        finding(
            "not-converged",
            "S",
            "The attack had not converged",
            masked,
            "Its loss still rose at its end on 31 % of images.",
        ).model_copy(update={"group": "claimed attack", "p_value": 0.0021, "shows_not": "Anything of <the> model."}),
    ]


def steps(cells: list[Cell]) -> list[Step]:
    """Steps of a diagnosis. The margin step attacked 190 of 200 images and broke 180 of them."""
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
            robust=190,
            **cost,
        ),
        Step(id="unbounded", level=2, title="every image", status="run", cells=[free.id], robust=50, **cost),
        Step(id="restart", level=2, title="another random start", **nothing),
        Step(id="search", level=2, title="search", status="failed", reason="RuntimeError: <gone>", robust=10),
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
        step_cells = []
        if original == "mu-law-3bit":  # the claimed attack breaks rows 0 to 9; the last 10 rows are never broken
            some = {"role": "probe", "of": N, "params": {"loss": "margin"}, "interval": (0.03, 0.09)}
            rows = list(range(10, N))
            margin = make_cell(name, "artq:apgd-margin", CLAIM_EPS, 10 / 190, rows=rows, **some)
            free = make_cell(name, "artq:apgd-margin", 0.5, 0.0, rows=rows[:50], **some)
            step_cells = [margin.model_copy(update={"n": 190}), free.model_copy(update={"n": 50})]
            noise = np.sign(rng.normal(size=clean.shape)) * CLAIM_EPS
            score(step_cells[0], margins(10 / N, scale), np.clip(clean + noise, 0, 1)[rows])
            score(step_cells[1], margins(0.0, scale), None)
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
                steps=steps(step_cells) if step_cells else [],
                layer=Layer(layer="head.<scale>", op="Mul", share=0.97) if step_cells else None,
                evidence="evidence/mu law.npz" if step_cells else None,
            )
        )
    trace = (
        "Traceback (most recent call last):\n  File \"attack.py\", line 1\nRuntimeError: out of <memory> on 'cuda:0'"
    )
    cells.append(make_cell("dq-2bit", "autoattack:standard", CLAIM_EPS, None, error=trace, params={}))
    recipe = {
        "models": [{"name": name} for name in MODELS],
        "threat": {"norm": "Linf", "eps": list(EPS)},
        "attacks": ["art:pgd"],
    }
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
    """Write the results, and leave out the samples of cells that have none."""
    scored = {cell.id for cell in results.cells if cell.status == "success"}
    if (path := folder / "samples.jsonl").exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["cell"] in scored), encoding="utf-8")
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


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def rows_of(section: str) -> list[str]:
    """The words of each table row of a section, cells parted by bars."""
    found = []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", section, re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        found.append(" | ".join(plain(Page(cell).text) for cell in cells))
    return found


def make_curve(epochs: int, *, robust: bool = False) -> list[TrainedEpoch]:
    """A training that goes well: accuracies rise to 0.975 and 0.4, and the loss falls to 0.02."""
    return [
        TrainedEpoch(
            epoch=epoch,
            loss=2.0 * 0.01 ** (epoch / epochs),
            learning_rate=0.1 * (1 - epoch / epochs),
            validation_accuracy=0.975 * epoch / epochs,
            robust_validation_accuracy=0.4 * epoch / epochs if robust else None,
            images_per_second=2345.6,
        )
        for epoch in range(1, epochs + 1)
    ]


def with_training(results: Results) -> Results:
    """The first model with the curves of 20 epochs, the second also under attack, the third with one epoch."""
    curves = [make_curve(20), make_curve(20, robust=True), make_curve(1)]
    names = [model.name for model in results.models]
    return results.model_copy(update={"training": dict(zip(names, curves, strict=False))})


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


def on_grid(results: Results, folder: Path, name: str, *, stochastic: bool = False) -> Results:
    """Rounding mends every image whose row is odd, in the attacks of one model at the claim's eps."""
    gridded: dict[str, list[float]] = {
        cell.id: [] for cell in results.cells if (cell.model, cell.eps, cell.status) == (name, CLAIM_EPS, "success")
    }
    lines = []
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["cell"] in gridded:
            odd = int(row["sample"][-4:]) % 2
            row["measures"] = {"grid_correct": 1.0 if odd else row["correct"]}
            gridded[row["cell"]].append(row["measures"]["grid_correct"])
        lines.append(json.dumps(row))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    on_grid = {"grid": 256, "grid_interval": (0.4, 0.6)}
    cells = [
        cell.model_copy(update={**on_grid, "grid_accuracy": float(np.mean(gridded[cell.id]))})
        if cell.id in gridded
        else cell
        for cell in results.cells
    ]
    models = [
        model.model_copy(update={"stochastic": stochastic}) if model.name == name else model for model in results.models
    ]
    return results.model_copy(update={"cells": cells, "models": models})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_results(target, on_grid(with_training(with_bits(build_run(target))), target, "fp32"))
    print(*write_report(target), sep="\n")
