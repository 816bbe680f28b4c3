"""What is known of an attack before its library is imported: one frozen row each."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from art_qplugins.attacks.catalogue.costs import COSTS
from art_qplugins.errors import InputError
from art_qplugins.registry import Entry

__all__ = ["ITERATIVE", "Attack", "Library"]

#: rel_eps_step is the step size as a fraction of eps; None means min(1, 2.5 / max_iter).
ITERATIVE: Mapping[str, Any] = {"max_iter": 20, "rel_eps_step": None}


@dataclass(frozen=True, kw_only=True)
class Attack(Entry):
    """``target`` is the adapter, ``options`` what a recipe may set, under names that all libraries share where they can.

    :ivar upstream: what the adapter runs in its library; several names, one for each of ``norms``, where each norm has
        its own.
    :ivar norms: the norms whose budget it keeps to. None for an attack that is ``refused``.
    :ivar needs: what it asks of a model: gradients, scores (logits), decisions (the class alone), or nothing.
    :ivar one_step: it takes one gradient, or none.
    :ivar quantized: it undoes a quantization, and there must be one.
    :ivar minimum_norm: it looks for the nearest adversarial image, however far that is. An image beyond eps counts as
        not found, and the clean one is returned for it.
    :ivar probabilities: it is written for probabilities; the adapter puts a softmax before it.
    :ivar labels: what it is given: the true labels, as numbers or one-hot; the runner-up classes as targets; or nothing.
    :ivar fixed: settings of the library's that are no option.
    :ivar names: options that the library calls otherwise, where all of its attacks do not.
    :ivar requires: packages to import, any one of a line ``"this or that"``.
    :ivar install: what to type after ``pip install`` where one of them is missing.
    :ivar refused: why it cannot be chosen.
    """

    upstream: str
    norms: tuple[str, ...]
    needs: Literal["gradients", "scores", "decisions", "nothing"] = "gradients"
    one_step: bool = False
    models: Literal["any", "deterministic", "stochastic"] = "any"
    quantized: bool = False
    minimum_norm: bool = False
    probabilities: bool = False
    labels: Literal["true", "one-hot", "targets", "none"] = "true"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    install: str = ""
    refused: str = ""

    @property
    def knowledge(self) -> Literal["white-box", "black-box"]:
        return "white-box" if self.needs == "gradients" else "black-box"

    @property
    def cost(self) -> tuple[int, int] | None:
        """Gradients and forwards for an image that stands, at the defaults: :data:`~.costs.COSTS`."""
        return COSTS.get(self.name)

    def upstream_for(self, norm: str) -> str:
        names = self.upstream.split()
        return names[0] if len(names) == 1 else names[self.norms.index(norm)]

    def missing(self) -> str:
        """What is not installed, ``""`` where nothing is amiss. Nothing is imported to find out."""
        for line in self.requires:
            if not any(importlib.util.find_spec(package) for package in line.split(" or ")):
                return line
        return ""

    def installed(self) -> bool:
        return not self.missing()

    def require(self) -> None:
        """:raises InputError: where a package is missing; it says what to type."""
        if missing := self.missing():
            raise InputError(f"{self.name} needs {missing}, which is not installed; type: pip install {self.install}")

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.refused:
            raise InputError(f"{self.name} cannot be chosen: {self.refused}")
        return super().resolve(options)


@dataclass(frozen=True)
class Library:
    """What all rows of a library share. Calling it makes a row.

    :param help: of a row; of one that is refused, what it does.
    """

    name: str
    target: str
    norms: tuple[str, ...]
    requires: tuple[str, ...] = ()
    install: str = ""

    def __call__(
        self,
        name: str,
        upstream: str,
        help: str,
        options: Mapping[str, Any] | None = None,
        *,
        norms: Iterable[str] | None = None,
        requires: tuple[str, ...] = (),
        install: str = "",
        **more: Any,
    ) -> Attack:
        return Attack(
            name=f"{self.name}:{name}",
            target=self.target,
            upstream=upstream,
            help=help,
            options=dict(options or {}),
            norms=self.norms if norms is None else tuple(norms),
            requires=self.requires + requires,
            install=install or self.install,
            **more,
        )

    def refuse(self, name: str, upstream: str, help: str, reason: str) -> Attack:
        """A row that is listed and cannot be chosen."""
        return self(name, upstream, f"{help}; {reason}", norms=(), refused=reason)
