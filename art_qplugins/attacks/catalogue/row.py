"""Everything that is known of an attack before its library is imported: one frozen row each."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from art_qplugins.attacks.catalogue.libraries import LIBRARIES, Library
from art_qplugins.errors import InputError
from art_qplugins.registry import Entry

__all__ = ["ITERATIVE", "Attack", "attack_of", "refused_attack_of"]

#: rel_eps_step is the step size as a fraction of eps; None means min(1, 2.5 / max_iter).
ITERATIVE: Mapping[str, Any] = {"max_iter": 20, "rel_eps_step": None}


@dataclass(frozen=True, kw_only=True)
class Attack(Entry):
    """``options`` is what a recipe may set, under names that all libraries share where they can.

    :ivar target: the adapter, where it is another than the library's.
    :ivar upstream: what the adapter runs in its library; several names, one for each of ``norms``, where each norm has
        its own.
    :ivar norms: the norms whose budget it keeps to. None for an attack that is ``refused``.
    :ivar needs: what it needs of a model: gradients, scores (logits), decisions (the class alone), or nothing.
    :ivar models: the models that it is for.
    :ivar needs_classes: the least number of classes. An attack that is written for one exact number checks it itself.
    :ivar one_step: it takes one step along one gradient.
    :ivar cost: gradients and forward passes for one image that it does not break, at the default options, on 10 classes
        and 64 values, without the draws of a random model. Where its course depends on the model (minimum norm,
        black-box, several surrogates), this is one measurement, of a linear model, and only its order of magnitude
        counts. An attack that tries every value in turn (``art:vat``, ``art:simba``) grows with the image. ``None`` where
        nothing is known.
    :ivar gradient: the gradient that it follows at its default options, where it needs gradients; see :meth:`follows`.
        ``"own"``: the one that the model gives at one call. ``"repaired"``: through another backward pass or another
        network. ``"mean"``: a mean over several calls at each step, at the point or around it, and so over as many draws
        of a random model.
    :ivar scale_free: its loss does not depend on the scale of the logits: it gives the same images whatever they are
        multiplied by. Of a suite, one of its losses. A margin that is weighed against a distance, as Carlini and Wagner's,
        does depend on it.
    :ivar targeted: it aims at other classes one at a time, at each of the nearest in turn.
    :ivar quantized: it undoes a quantization, and there must be one.
    :ivar minimum_norm: it looks for the nearest adversarial image, however far that is. An image beyond eps counts as
        not found, and the clean one is returned for it.
    :ivar takes_start: it can start from images that are given.
    :ivar probabilities: it is written for probabilities; the adapter puts a softmax before it.
    :ivar labels: what it is given: the true labels, as numbers or one-hot; the runner-up classes as targets; or nothing.
    :ivar fixed: settings of the library's that are no option.
    :ivar names: options that the library calls otherwise, where all of its attacks do not.
    :ivar requires: packages to import beside the library's, any one of a line ``"this or that"``.
    :ivar install: what to type after ``pip install`` where one is missing; the library's by default.
    :ivar refused: why it cannot be chosen.
    """

    target: str = ""
    upstream: str
    norms: tuple[str, ...]
    needs: Literal["gradients", "scores", "decisions", "nothing"] = "gradients"
    models: Literal["any", "deterministic", "stochastic"] = "any"
    needs_classes: int = 2
    one_step: bool = False
    cost: tuple[int, int] | None = None
    gradient: Literal["own", "repaired", "mean"] = "own"
    scale_free: bool = False
    targeted: bool = False
    quantized: bool = False
    minimum_norm: bool = False
    takes_start: bool = False
    probabilities: bool = False
    labels: Literal["true", "one-hot", "targets", "none"] = "true"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    install: str = ""
    refused: str = ""

    @property
    def library(self) -> Library | None:
        """The library's row. ``None`` where no package has one, which is fine for an attack with its own ``target``."""
        name = self.name.partition(":")[0]
        if name not in LIBRARIES:
            return None
        return LIBRARIES[name]

    @property
    def knowledge(self) -> Literal["white-box", "black-box"]:
        """What an attacker has to know of the model."""
        return "white-box" if self.needs == "gradients" else "black-box"

    @property
    def ignores_scale(self) -> bool:
        """Whether no scale of the logits can mislead it: by its loss, or because it sees no gradient."""
        return self.scale_free or self.knowledge == "black-box"

    def follows(self, options: Mapping[str, Any]) -> Literal["own", "repaired", "mean"]:
        """:attr:`gradient` with these options: ``eot_iter`` says how many calls a gradient is the mean of."""
        calls = options.get("eot_iter")
        if calls is None:
            return self.gradient
        return "mean" if calls > 1 else "own"

    def upstream_for(self, norm: str) -> str:
        """The name that the adapter runs for this norm."""
        names = self.upstream.split()
        return names[0] if len(names) == 1 else names[self.norms.index(norm)]

    def load(self) -> Any:
        """The adapter.

        :raises InputError: where there is none, or where it cannot be imported.
        """
        if self.target:
            return super().load()
        if self.library is None:
            raise InputError(f"{self.name}: there is no library of this name and it has no target of its own")
        return self.library.load()

    def missing(self) -> str:
        """What is not installed, ``""`` where nothing is amiss. Nothing is imported to find out."""
        library = () if self.library is None else self.library.requires
        for line in (*library, *self.requires):
            if not any(importlib.util.find_spec(package) for package in line.split(" or ")):
                return line
        return ""

    def installed(self) -> bool:
        return not self.missing()

    def to_install(self) -> str:
        """What to type after ``pip install``."""
        return self.install or ("" if self.library is None else self.library.install)

    def require(self) -> None:
        """:raises InputError: where a package is missing; it says what to type."""
        if missing := self.missing():
            raise InputError(
                f"{self.name} needs {missing}, which is not installed; type: pip install {self.to_install()}"
            )

    def require_classes(self, nb_classes: int) -> None:
        """:raises InputError: where a model has too few classes."""
        if nb_classes < self.needs_classes:
            what = "its DLR loss needs" if self.scale_free else "it needs"
            raise InputError(
                f"{self.name}: {what} {self.needs_classes} classes and the model has {nb_classes}; "
                "use autoattack:apgd-ce, autoattack:fab-t and autoattack:square"
            )

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.refused:
            raise InputError(f"{self.name} cannot be chosen: {self.refused}")
        return super().resolve(options)


def attack_of(
    library: Library,
    name: str,
    upstream: str,
    help: str,
    options: Mapping[str, Any] | None = None,
    *,
    norms: Iterable[str] | None = None,
    **facts: Any,
) -> Attack:
    """A row of a library.

    :param name: the id without the library.
    :param norms: the library's by default.
    :param facts: further fields of :class:`Attack`.
    """
    return Attack(
        name=f"{library.name}:{name}",
        upstream=upstream,
        help=help,
        options=dict(options or {}),
        norms=library.norms if norms is None else tuple(norms),
        **facts,
    )


def refused_attack_of(library: Library, name: str, upstream: str, help: str, reason: str) -> Attack:
    """A row that is listed and cannot be chosen.

    :param help: what it does; the reason is added to it.
    """
    return attack_of(library, name, upstream, f"{help}; {reason}", norms=(), refused=reason)
