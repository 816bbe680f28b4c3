"""Other installed packages that extend this one through Python's entry points.

A package adds an attack by an entry point of the group ``art_qplugins.attacks``. It resolves to a row (an
:class:`~art_qplugins.registry.Entry` of the registry's class) or to a list of rows. An entry point that cannot be loaded is
recorded with the reason for ``artq doctor``. It only affects code that needs it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from art_qplugins.foreign import raised

__all__ = ["GROUPS", "Broken", "Plugin", "broken", "entries", "refuse", "unknown_groups", "version"]

logger = logging.getLogger(__name__)

_PREFIX = "art_qplugins."
#: The kinds of entries that a package can add, by the group of entry points.
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
    """An installed package with entries, or code that a recipe names itself, and its version. The version enters the ids of cells that use its entries."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Broken:
    """An entry point that cannot be used, and the reason."""

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
    """Every row that installed packages add to ``group``, with its package. Packages are sorted by name."""
    found = [(_plugin(point), point) for point in importlib.metadata.entry_points(group=group)]
    for plugin, point in sorted(found, key=lambda pair: (pair[0], pair[1].name)):
        try:
            made = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it is somebody else's code: it may do anything
            _set_aside(Broken(plugin, group, point.name, raised(error)))
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
    """Record an entry that a registry cannot take."""
    _set_aside(Broken(plugin, "", "", reason))


def version(package: str) -> str | None:
    """The version of an installed package; ``None`` where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def broken(group: str | None = None) -> list[Broken]:
    """The entry points of one group, or of all groups, that could not be loaded so far."""
    return [b for b in _broken if group is None or b.group in (group, "")]


def unknown_groups() -> list[Broken]:
    """Entry points in unknown groups. A misspelt group name would otherwise go unnoticed."""
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
