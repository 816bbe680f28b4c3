"""The state from which a diagnosis plans a step, and the cells that it plans. The steps themselves are in ``steps.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["DiagnosisState", "clean_cell"]


def clean_cell(model: str, *, norm: str, seed: int, eps: float | None) -> CellSpec:
    """The cell without an attack.

    :param eps: eps of the claim, if there is one. Gradients are measured within this radius.
    """
    return CellSpec(
        model=model,
        source=model,
        attack="artq:clean",
        role="clean",
        norm=norm,
        eps=0.0,
        seed=seed,
        options={"radius": eps or 0.0},
    )


@dataclass(frozen=True)
class DiagnosisState:
    """Everything that is known before a step.

    :ivar claim: the specification of the claimed cell.
    :ivar records: the records of every cell so far.
    :ivar others: names of the models to transfer from.
    """

    claim: CellSpec
    records: ModelRecords
    others: Sequence[str] = ()

    def robust_images(self, outcomes: Sequence[Outcome]) -> NDArray[np.int64]:
        """Positions of the images that none of these attacks breaks in every draw."""
        return np.flatnonzero(self.records.worst_case(outcomes) > 0)

    def cell(self, attack: str, rows: NDArray[np.int64], **changes: Any) -> CellSpec:
        """A cell at the norm, eps and seed of the claim, or with these ``changes``, on the images at ``rows``.

        All rows are given as ``None``: then the cell counts as one on the whole set. A cell with a larger eps than the
        claim's never counts so, because it enters no number of this evaluation.
        """
        claim = self.claim
        spec = CellSpec(
            model=claim.model,
            source=claim.model,
            attack=attack,
            role="probe",
            norm=claim.norm,
            eps=claim.eps,
            seed=claim.seed,
            rows=tuple(int(r) for r in rows),
        )
        spec = replace(spec, **changes)
        return replace(spec, rows=None) if len(rows) == self.records.n and spec.eps == claim.eps else spec

    def start(self) -> tuple[str, ...]:
        """Ids of the cells whose images an attack starts from: every legal attack on the model."""
        return tuple(o.cell.id for o in self.records.legal if o.cell.role != "clean")
