"""What a cell is made of, and the key that says whether it has been computed already."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from art_qplugins._version import __version__
from art_qplugins.attacks.registry import ATTACKS
from art_qplugins.evaluation.records import SCHEMA_VERSION, Role
from art_qplugins.files import safe_name

__all__ = ["CellSpec", "cell_id"]

_PACKAGES = {
    "art": "adversarial-robustness-toolbox",
    "torchattacks": "torchattacks",
    "autoattack": "pyautoattack",
    "artq": "adversarial-robustness-toolbox",
}


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One attack at one budget: crafted on ``source``, scored on ``model``."""

    model: str
    source: str
    attack: str
    norm: str
    eps: float
    seed: int
    role: Role = "attack"
    options: Mapping[str, Any] = field(default_factory=dict)
    gap: float | None = None  # show the attack logits divided so that the median gap of the top two is this


def cell_id(spec: CellSpec, *, target: str, source: str, data: str, batch_size: int) -> str:
    """A readable name that ends in a hash of everything that changes the cell's answer.

    :param target: hash of the scored model; ``source`` of the attacked one; ``data`` of images, labels and their order.
    """
    # The role is not in it: the same cell counts for the recipe and for the diagnostics.
    answer = {k: v for k, v in asdict(spec).items() if k not in ("role", "model", "source")}
    answer["options"] = ATTACKS[spec.attack].resolve(spec.options)
    answer |= {"target": target, "source": source, "data": data, "batch_size": batch_size, "schema": SCHEMA_VERSION}
    answer |= {
        "version": __version__,
        "library": _version(_PACKAGES[spec.attack.split(":")[0]]),
        "torch": _version("torch"),
    }
    digest = hashlib.sha256(json.dumps(answer, sort_keys=True, default=str).encode()).hexdigest()[:10]
    where = "" if spec.source == spec.model else f".from-{_short(spec.source)}"
    budget = "" if spec.eps == 0 else f".{spec.norm}-{spec.eps:.4g}"
    return safe_name(f"{_short(spec.model)}.{spec.attack.replace(':', '-')}{where}{budget}.{digest}")


def _short(name: str) -> str:
    """``name`` where a file may be called so; else the begin of it and a hash, so that different names stay different."""
    safe = safe_name(name)
    if safe == name and len(safe.encode()) <= 80:
        return name
    begin = safe.encode()[:60].decode(errors="ignore")
    return f"{begin}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
