"""The specification of a cell, and its key. A finished cell with the same key is not computed again."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from art_qplugins import plugins
from art_qplugins._version import __version__
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.fields import Role
from art_qplugins.evaluation.records import SCHEMA_VERSION
from art_qplugins.files import safe_name, short_name

__all__ = ["CellSpec", "Shard", "cell_id", "images_key"]


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One attack at one norm and eps, crafted on ``source`` and scored on ``model``."""

    model: str
    source: str
    attack: str
    norm: str
    eps: float
    seed: int
    restart: int = 0  # another number gives the attack other random numbers; the scores use the same draws
    role: Role = "attack"
    options: Mapping[str, Any] = field(default_factory=dict)
    gap: float | None = None  # the attack sees logits divided so that the median gap of the top two is this
    gradient_scale: float | None = None  # the attack sees gradients times this
    rows: tuple[int, ...] | None = None  # positions of the images to attack; None for all
    limit: int | None = field(
        default=None, compare=False
    )  # the first so many images of the fixed order, which rows are of
    reference: float | None = field(default=None, compare=False)  # the number of a paper for its accuracy
    check: Literal["binarization"] | None = None  # run this test of the attack instead of attacking the model
    start: tuple[str, ...] = ()  # ids of finished cells: start each image from the one with the lowest margin

    @property
    def named(self) -> dict[str, Any]:
        """What its record says of it, and its id does not depend on: one cell serves the recipe and the diagnosis."""
        return {name: getattr(self, name) for name in ("role", "model", "source", "limit", "reference")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some images of a cell that are attacked and scored together.

    :param cell: id of the cell. This is shard ``number`` (from 0) ``of`` so many.
    :param rows: positions of its images.
    :param start: (len(rows), C, H, W) if the attack starts from images of other cells.
    """

    cell: str
    spec: CellSpec
    number: int
    of: int
    rows: tuple[int, ...]
    start: NDArray[np.float32] | None = None

    @property
    def id(self) -> str:
        """The id in the store. A shard that is the whole cell has the id of the cell."""
        return self.cell if self.of == 1 else f"{self.cell}.{self.number + 1}-of-{self.of}"


def images_key(spec: CellSpec) -> tuple[Any, ...]:
    """Everything that the adversarial images of a cell depend on, except its rows. The scored model is not part of it."""
    options = _options(spec.attack, spec.options) if spec.options else _defaults(spec.attack)
    kept = (spec.source, spec.attack, spec.norm, spec.eps, spec.seed, spec.restart)
    return (*kept, options, spec.gap, spec.gradient_scale, spec.start, spec.check)


def _options(attack: str, options: Mapping[str, Any]) -> str:
    return repr(sorted(ATTACKS[attack].resolve(options).items()))


@functools.cache  # a recipe of many models asks for them again and again
def _defaults(attack: str) -> str:
    return _options(attack, {})


def cell_id(
    spec: CellSpec, *, target: str, source: str, data: str, batch_size: int, score_draws: int | None = None
) -> str:
    """A readable name that ends in a hash of everything that changes the cell's result.

    :param target: hash of the scored model.
    :param source: hash of the attacked model.
    :param data: hash of images, labels and their order.
    :param score_draws: their number, where it is not the default.
    """
    answer = {k: v for k, v in asdict(spec).items() if k not in spec.named}
    attack = ATTACKS[spec.attack]
    answer["options"] = attack.resolve(spec.options)
    answer |= {"target": target, "source": source, "data": data, "batch_size": batch_size, "schema": SCHEMA_VERSION}
    answer |= {
        "version": __version__,
        "library": None if attack.library is None else plugins.version(attack.library.package) or "unknown",
        "torch": plugins.version("torch") or "unknown",
    }
    answer |= {} if score_draws is None else {"score_draws": score_draws}
    answer["plugins"] = [str(row.plugin) for row in (attack, attack.library) if row is not None and row.plugin]
    digest = hashlib.sha256(json.dumps(answer, sort_keys=True, default=str).encode()).hexdigest()[:10]
    where = "" if spec.source == spec.model else f".from-{short_name(spec.source)}"
    threat = "" if spec.eps == 0 or spec.role == "corruption" else f".{spec.norm}-{spec.eps:.4g}"
    return safe_name(f"{short_name(spec.model)}.{spec.attack.replace(':', '-')}{where}{threat}.{digest}")
