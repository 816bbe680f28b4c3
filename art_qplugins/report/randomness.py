"""Models that draw afresh: what an attacker knows of their noise, and what is left of them after several tries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from art_qplugins.evaluation.records import Cell, ModelResult, Results, Tries
from art_qplugins.report import select, words
from art_qplugins.report.files import Run
from art_qplugins.report.rendering import template

__all__ = ["ABOUT", "TriedRow", "knowledge", "known", "section", "tried"]

Knowledge = Literal["distribution", "member", "seed"]

#: What an attacker may know of the noise.
KNOWS: dict[Knowledge, str] = {
    "distribution": "the distribution of the noise: its gradients or questions have draws of their own",
    "member": "one member: its gradients have the same draws at every step, and others score its images",
    "seed": "the seed: the draws that score its images are those that it sees",
}

ABOUT = (
    "An image that one try breaks with probability q falls to k tries with probability 1 - (1 - q)^k. After k tries: the share "
    "of images that are right every time, each try with fresh noise, at the strongest attack on each image. Clean images that "
    "are tried as often fail by noise alone, so read each number beside the clean one. A number for more tries than there are "
    "scoring draws is that of all draws, an upper bound; a larger score_draws lowers it. Brackets count images."
)

#: It crafts on one draw, of a model that draws afresh.
_ON_ONE_DRAW = "artq:frozen-seed"
#: Settings in which two models with the same weights may differ.
_NOT_WEIGHTS = {
    *("name", "role", "claim", "baseline", "reference", "replicate_of", "abstain"),
    *("draws", "rule", "eot_draws", "eot_chunk", "frozen"),
}


@dataclass(frozen=True)
class TriedRow:
    """The clean images of a model, or its worst case at one norm and eps.

    :ivar threat: ``None`` for clean images.
    """

    model: str
    threat: tuple[str, float] | None
    tries: list[Tries]

    @property
    def images(self) -> str:
        return "clean" if self.threat is None else words.threat(*self.threat)


def section(run: Run) -> str | None:
    """The HTML; ``None`` where no model draws afresh, or the records are of an earlier version."""
    rows = tried(run.results)
    if not rows:
        return None
    return template("randomness.html.j2").render(rows=rows, known=known(run.results), about=ABOUT)


def tried(results: Results) -> list[TriedRow]:
    """What several tries leave of each model that draws afresh: first of its clean images, then by norm and eps."""
    return [row for model in results.models for row in _of(model) if row.tries]


def _of(model: ModelResult) -> Iterator[TriedRow]:
    yield TriedRow(model.name, None, model.clean_tries)
    for robust in model.robust:
        yield TriedRow(model.name, (robust.norm, robust.eps), robust.tries)


def knowledge(cell: Cell, results: Results) -> Knowledge | None:
    """What the attack of a cell knows of the noise of the model; ``None`` where it is no attack, or nothing is random.

    An attack that was crafted on another network, which is no frozen form of the model, knows nothing of it.
    """
    settings = {given["name"]: given for given in results.settings}
    frozen = {name for name, given in settings.items() if given.get("frozen") is True}
    random = {model.name for model in results.models if model.stochastic}
    if not select.has_threat(cell) or cell.status != "success":
        return None
    if cell.model in frozen:
        return "seed" if cell.source == cell.model else None
    if cell.model not in random:
        return None
    if cell.source == cell.model:
        return "member" if cell.attack == _ON_ONE_DRAW else "distribution"
    return "member" if cell.source in frozen and _same_weights(settings, cell.source, cell.model) else None


def _same_weights(settings: Mapping[str, Mapping[str, Any]], one: str, other: str) -> bool:
    """Whether two models take their weights from one of them or from the same third one, or are trained alike."""
    first, second = (
        {k: v for k, v in settings.get(name, {}).items() if k not in _NOT_WEIGHTS} for name in (one, other)
    )
    bases = {settings.get(name, {}).get("base") or name for name in (one, other)}
    return len(bases) == 1 or ("architecture" in first and first == second)


def _crafted(cell: Cell) -> str:
    return cell.label if cell.source == cell.model else f"{cell.label} from {cell.source}"


def known(results: Results) -> list[str]:
    """For each model with noise, what its attackers know, in sentences."""
    lines = []
    for name in dict.fromkeys(cell.model for cell in results.cells):
        for what, meaning in KNOWS.items():
            cells = [cell for cell in results.cells if cell.model == name and knowledge(cell, results) == what]
            if cells:
                attacks = ", ".join(dict.fromkeys(_crafted(cell) for cell in cells))
                lines.append(f"{name}: the attacker knows {meaning} ({attacks}).")
    return lines
