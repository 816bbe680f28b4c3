"""Packages that are installed beside this one and add to it, through Python's entry points.

A package adds an attack by an entry point of the group ``art_qplugins.attacks`` that resolves to a row (an
:class:`~art_qplugins.registry.Entry` of the registry's class) or to a list of rows. What cannot be loaded is kept aside with
the reason, for ``artq doctor``; it never stops what does not need it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["GROUPS", "Broken", "Plugin", "broken", "entries", "refuse", "unknown_groups", "version"]

logger = logging.getLogger(__name__)

_PREFIX = "art_qplugins."
#: What a package can add, by the group of its entry points.
GROUPS = {
    f"{_PREFIX}{name}": what
    for name, what in (
        ("attacks", "attacks"),
        ("libraries", "attack libraries"),
        ("quantizers", "quantizers"),
        ("defences", "training defences"),
        ("models", "architectures"),
        ("datasets", "data sets"),
        ("indicators", "indicators of the diagnosis"),
        ("report", "sections of the report"),
    )
}


@dataclass(frozen=True, order=True)
class Plugin:
    """An installed package that adds something, and its version, which counts where its entries are used."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Broken:
    """An entry point that adds nothing, and why."""

    plugin: Plugin
    group: str
    name: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.name!r} of {self.group}: " if self.name else ""
        return f"{self.plugin}: {where}{self.reason}"


_broken: list[Broken] = []
R = TypeVar("R")


def entries(group: str, row: type[R]) -> Iterator[tuple[Plugin, R]]:
    """Every row that installed packages announce in ``group``, with its package; packages in the order of their names."""
    found = [(_plugin(point), point) for point in importlib.metadata.entry_points(group=group)]
    for plugin, point in sorted(found, key=lambda pair: (pair[0], pair[1].name)):
        try:
            made = point.load()
        except (Exception, SystemExit) as error:  # it is somebody else's code: it may do anything
            said = str(error).strip().splitlines()
            _set_aside(
                Broken(plugin, group, point.name, f"{type(error).__name__}: {said[0] if said else 'no message'}")
            )
            continue
        rows: list[Any] = list(made) if isinstance(made, (list, tuple)) else [made]
        for one in rows:
            if isinstance(one, row):
                yield plugin, one
            else:
                reason = (
                    f"it gives a {type(one).__name__}; it must give a {row.__module__}.{row.__qualname__}, or a list"
                )
                _set_aside(Broken(plugin, group, point.name, reason))


def refuse(plugin: Plugin, reason: str) -> None:
    """Keep aside what a registry cannot take."""
    _set_aside(Broken(plugin, "", "", reason))


def version(package: str) -> str | None:
    """Of an installed package; ``None`` where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def broken(group: str | None = None) -> list[Broken]:
    """What could not be loaded so far, of one group or of all."""
    return [b for b in _broken if group is None or b.group in (group, "")]


def unknown_groups() -> list[Broken]:
    """Entry points of groups that this package does not know: a misspelt name adds nothing, in silence."""
    points = importlib.metadata.entry_points()
    names = sorted(name for name in points.groups if name.startswith(_PREFIX) and name not in GROUPS)
    reason = f"there is no such group; there is {', '.join(sorted(GROUPS))}"
    return [Broken(_plugin(point), name, point.name, reason) for name in names for point in points.select(group=name)]


def _plugin(point: importlib.metadata.EntryPoint) -> Plugin:
    try:
        return Plugin("unknown", "0") if point.dist is None else Plugin(str(point.dist.name), str(point.dist.version))
    except Exception:  # what is left of a package that was removed by hand has no metadata
        return Plugin("unknown", "0")


def _set_aside(one: Broken) -> None:
    if one not in _broken:
        _broken.append(one)
        logger.warning("%s", one)
