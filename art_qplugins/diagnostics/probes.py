"""The cells that a diagnosis needs beyond those of the recipe. They run the same way as any other cell."""

from __future__ import annotations

from collections.abc import Iterable

from art_qplugins.attacks.registry import ATTACKS
from art_qplugins.diagnostics.indicators import SCALE_FREE
from art_qplugins.evaluation.cells import CellSpec

__all__ = ["GAPS", "clean_cell", "probes"]

#: Median distances of the top two logits at which the claimed attack is tried again (the network's answers stay).
GAPS = (5.0, 1.0)
_QUERIES = 1000


def clean_cell(model: str, *, norm: str, seed: int, eps: float | None) -> CellSpec:
    """No attack. With a claim at ``eps``, the fidelity of the gradient is measured over steps of eps / 4."""
    step = eps / 4 if eps is not None and norm == "Linf" else 0.0
    return CellSpec(
        model=model,
        source=model,
        attack="artq:clean",
        role="clean",
        norm=norm,
        eps=0.0,
        seed=seed,
        options={"step": step},
    )


def probes(claim: CellSpec, *, others: Iterable[str] = ()) -> list[CellSpec]:
    """What is tried against a claim: one step, another loss, other logit scales, no gradient, other models' images.

    :param claim: the claimed cell, crafted on the model itself.
    :param others: deterministic models to transfer from.
    """

    def cell(attack: str, source: str = claim.model, **more: object) -> CellSpec:
        return CellSpec(
            model=claim.model,
            source=source,
            attack=attack,
            role="probe",
            norm=claim.norm,
            eps=claim.eps,
            seed=claim.seed,
            **more,  # type: ignore[arg-type]
        )

    planned = [
        cell("art:fgsm"),
        cell("art:pgd"),
        cell("artq:pgd-margin"),
        *(cell(claim.attack, options=claim.options, gap=gap) for gap in GAPS if claim.attack not in SCALE_FREE),
        cell("autoattack:square", options={"n_queries": _QUERIES}),
        *(cell("art:pgd", source=other) for other in others if other != claim.model),
    ]
    return [spec for spec in planned if spec.norm in ATTACKS[spec.attack].norms]
