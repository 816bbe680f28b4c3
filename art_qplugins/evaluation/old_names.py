"""Names of earlier versions in ``results.json``. Old records are read with the current names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_qplugins.attacks.catalogue import OLD_IDS

__all__ = ["INDICATORS", "upgrade"]

#: Current indicator ids by the codes before version 0.2.
INDICATORS: Mapping[str, str] = {
    "GAP": "attack-gap",
    "PGD": "ordinary-attack-gap",
    "INV-T": "logit-scale",
    "BPDA": "surrogate-gradient",
    "EOT": "mean-gradient",
    "P1": "black-box-search",
    "P2": "transfer",
    "STEPS": "single-step",
    "M1": "no-gradient",
    "M2": "zero-gradient",
    "M3": "loss-underflow",
    "M4": "large-logits",
    "M5": "gradient-underflow",
    "M6": "blocking-operation",
    "M7": "unfaithful-gradient",
    "L2": "gradient-alignment",
    "M8": "noisy-gradient",
    "S1": "one-step-beats-many",
    "S2": "unbounded-attack-fails",
    "S3": "accuracy-rises-with-eps",
    "S5": "more-steps",
    "S6": "another-start",
    "S7": "targeted-attack",
    "S9": "misled-loss",
    "I2": "unstable-margin",
    "L6": "gradient-imbalance",
    "I3": "silent-success",
    "I4": "not-converged",
    "B1": "binarization",
    "I5": "failed-transfer",
    "V0": "failed-cells",
    "V1": "chance-accuracy",
    "V2": "eps-too-large",
    "V4": "batch-dependence",
    "V5": "stateful-model",
    "V6": "random-model",
    "M9": "probabilities",
    "M10": "test-time-optimisation",
}
_STEPS: Mapping[str, str] = {"shadow": "full-precision"}
_FACTS: Mapping[str, str] = {"guilty": "blocking"}


def upgrade(results: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a ``results.json`` of schema 1 of any version, with the current names.

    Malformed content does not change. The schema refuses it later.
    """
    models = [_model(m) if isinstance(m, dict) else m for m in _listed(results.get("models"))]
    cells = [_cell(c) if isinstance(c, dict) else c for c in _listed(results.get("cells"))]
    changed = {
        name: value for name, value in (("models", models), ("cells", cells)) if isinstance(results.get(name), list)
    }
    return {**results, **changed, **_warnings(results)}


def _warnings(results: Mapping[str, Any]) -> dict[str, Any]:
    """The warnings, of which records had a list in each model before."""
    models = [m for m in _listed(results.get("models")) if isinstance(m, dict) and isinstance(m.get("warnings"), list)]
    if not models or "warnings" in results:
        return {}
    return {"warnings": [f"{model.get('name')}: {line}" for model in models for line in model["warnings"]]}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _model(model: dict[str, Any]) -> dict[str, Any]:
    renamed = {key: value for key, value in model.items() if key != "warnings"}
    if isinstance(model.get("findings"), list):
        renamed["findings"] = [_id(f, INDICATORS) for f in model["findings"]]
    if isinstance(model.get("steps"), list):
        renamed["steps"] = [_step(s) for s in model["steps"]]
    if isinstance(claim := model.get("claim"), dict) and isinstance(attack := claim.get("attack"), str):
        renamed["claim"] = {**claim, "attack": OLD_IDS.get(attack, attack)}
    return renamed


def _step(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    renamed = {("robust" if key == "standing" else key): value for key, value in step.items()}
    return _id(renamed, _STEPS)


def _id(row: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return row
    return {**row, "id": names.get(row["id"], row["id"])}


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    renamed = dict(cell)
    if isinstance(cell.get("attack"), str):
        renamed["attack"] = OLD_IDS.get(cell["attack"], cell["attack"])
    if isinstance(cell.get("facts"), dict):
        renamed["facts"] = dict(_fact(key, value) for key, value in cell["facts"].items())
    return renamed


def _fact(name: str, value: Any) -> tuple[str, Any]:
    """Operations that may be replaced were once known by their name alone."""
    if name in ("suspects", "replaceable"):
        return "lost", [{"op": op} for op in _listed(value)]
    return _FACTS.get(name, name), value
