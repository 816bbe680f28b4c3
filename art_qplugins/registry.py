"""Names that recipes and the command line choose by.

An entry is a name, a lazy target, its options with their defaults and one line of help. Listing or checking names and
options imports nothing heavy; the target is imported when it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from art_qplugins.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered name: ``target`` is ``"package.module:attribute"``."""

    name: str
    target: str
    help: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """``options`` over the defaults. An option that is unknown, or not a number where one belongs, is refused."""
        for name, value in options.items():
            if name not in self.options:
                raise InputError(f"{self.name}: unknown option {name!r}{did_you_mean(name, self.options)}")
            default = self.options[name]
            wanted = (int, float) if isinstance(default, float) or default is None else type(default)
            if value is None and default is None:
                continue
            if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
                raise InputError(f"{self.name}: option {name} is {value!r}; its default is {default!r}")
        return {**self.options, **options}


E_co = TypeVar("E_co", bound=Entry, covariant=True)


class Registry(Mapping[str, E_co], Generic[E_co]):
    """Entries by name. An unknown name raises :class:`InputError` that names its nearest neighbour."""

    def __init__(self, kind: str, entries: Iterable[E_co]) -> None:
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> E_co:
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
