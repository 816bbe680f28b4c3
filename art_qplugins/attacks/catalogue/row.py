"""The row of an attack: everything that is known about it before its library is imported."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from art_qplugins.attacks.catalogue.libraries import LIBRARIES, Library
from art_qplugins.attacks.catalogue.options import COUNTED, RULES, SCHEDULES, option_of
from art_qplugins.domains import COUNT, MOST, Number, OneOf, Option, Rule, check
from art_qplugins.errors import InputError
from art_qplugins.registry import Entry
from art_qplugins.threat import Threat

__all__ = ["Attack", "attack_of", "refused_attack_of"]


@dataclass(frozen=True, kw_only=True)
class Attack(Entry):
    """One attack. ``options`` are its settings in a recipe. All libraries share the option names where they can.

    :ivar target: the adapter, if it is not the library's.
    :ivar upstream: the name of the attack in its library. Several names are one for each of ``norms``.
    :ivar norms: the norms in which eps limits it. A ``refused`` attack has none.
    :ivar needs: what it needs from a model: gradients, scores (logits), decisions (the class only), or nothing.
    :ivar models: the models that it is meant for.
    :ivar needs_classes: the smallest number of classes. An attack for one exact number checks it itself.
    :ivar one_step: it takes one step along one gradient. The number of steps is no option then; give it in ``fixed``.
    :ivar cost: gradients and forward passes for one robust image, at the default options, on 10 classes and 64 values,
        for one draw of a random model. For minimum-norm and black-box attacks and several surrogates, the cost depends
        on the model. It is then one measurement on a linear model, and only its order of magnitude counts. The cost of
        an attack that tries every value in turn (``art:vat``, ``art:simba``) grows with the image. ``None`` means
        unknown.
    :ivar costs: the same by its ``effort``, of an attack that has one.
    :ivar gradient: the gradient that it follows at its default options, see :meth:`follows`. ``"own"`` is the model's
        gradient in one call. ``"repaired"`` comes from another backward pass or another network. ``"mean"`` is a mean
        over several calls per step, at the point or around it. For a random model it is also a mean over draws.
        ``"mixed"``: a search without a gradient is part of it, so what it breaks proves nothing about a gradient.
    :ivar scale_free: its loss does not depend on the logit scale: it crafts the same images for scaled logits. In a
        suite one such loss is enough. The loss of Carlini and Wagner, a margin plus a distance, depends on the scale.
    :ivar targeted: it attacks towards each of the nearest classes in turn.
    :ivar quantized: it removes a quantization, so the model must have one.
    :ivar minimum_norm: it searches for the nearest adversarial image at any distance. An image beyond eps counts as
        not found and is replaced by the clean image.
    :ivar returns_last: it returns the last image that it visited, also where attacks of its library return the best.
    :ivar corrupts: the options with which no eps limits it, see :meth:`corruption`.
    :ivar takes_start: it can start from given images.
    :ivar probabilities: it expects probabilities. The adapter adds a softmax.
    :ivar labels: the labels that it gets: true labels as numbers or one-hot, the most likely other classes as targets,
        or nothing.
    :ivar fixed: settings of the library that are not options.
    :ivar names: the library's names of options, if only this attack has them.
    :ivar requires: packages to import in addition to the library's. An entry ``"this or that"`` needs one of the two.
    :ivar install: the argument of ``pip install`` if one is missing. By default it is the library's.
    :ivar refused: the reason why it cannot be chosen.
    """

    target: str = ""
    upstream: str
    norms: tuple[str, ...]
    needs: Literal["gradients", "scores", "decisions", "nothing"] = "gradients"
    models: Literal["any", "deterministic", "stochastic"] = "any"
    needs_classes: int = 2
    one_step: bool = False
    cost: tuple[int, int] | None = None
    costs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    gradient: Literal["own", "repaired", "mean", "mixed"] = "own"
    scale_free: bool = False
    targeted: bool = False
    quantized: bool = False
    minimum_norm: bool = False
    returns_last: bool = False
    corrupts: Mapping[str, Any] = field(default_factory=dict)
    takes_start: bool = False
    probabilities: bool = False
    labels: Literal["true", "one-hot", "targets", "none"] = "true"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    install: str = ""
    refused: str = ""

    def __post_init__(self) -> None:
        """A bare default of an option that counts something has the domain of counts."""
        counts = {n: Option(d, COUNT) for n, d in self.options.items() if n in COUNTED and isinstance(d, int)}
        object.__setattr__(self, "options", {**self.options, **counts})
        super().__post_init__()

    @property
    def library(self) -> Library | None:
        """The row of its library. It may be ``None`` for an attack with its own ``target``."""
        name = self.name.partition(":")[0]
        if name not in LIBRARIES:
            return None
        return LIBRARIES[name]

    @property
    def knowledge(self) -> Literal["white-box", "black-box"]:
        """The knowledge that the attack needs."""
        return "white-box" if self.needs == "gradients" else "black-box"

    @property
    def ignores_scale(self) -> bool:
        """Whether the logit scale cannot mislead it, because of its loss or because it uses no gradient."""
        return self.scale_free or self.knowledge == "black-box"

    def follows(self, options: Mapping[str, Any]) -> Literal["own", "repaired", "mean", "mixed"]:
        """The :attr:`gradient` with these options. ``eot_iter`` is the number of calls that a gradient averages."""
        calls = options.get("eot_iter")
        if calls is None:
            return self.gradient
        return "mean" if calls > 1 else "own"

    def corruption(self, options: Mapping[str, Any]) -> bool:
        """Whether it is a corruption with these options: no eps limits it, so it counts in no worst case."""
        return bool(self.corrupts) and self.corrupts.items() <= {**self.defaults, **options}.items()

    def images(self, options: Mapping[str, Any]) -> int:
        """The images that it makes of each: the ``draws`` of an attack that asks the model nothing."""
        return int(options.get("draws", 1)) if self.needs == "nothing" else 1

    def weakened(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that differ from their defaults, except whole numbers above them: those count effort.

        :param options: resolved options, or the parameters of a cell.
        """
        return {
            name: options[name]
            for name, option in self.options.items()
            if name in options
            and options[name] != option.default
            and not (_counts(option) and options[name] > option.default)
        }

    def upstream_for(self, norm: str) -> str:
        """The name that the adapter runs for this norm."""
        names = self.upstream.split()
        return names[0] if len(names) == 1 else names[self.norms.index(norm)]

    def load(self) -> Any:
        """The adapter.

        :raises InputError: where there is no adapter, or where it cannot be imported.
        """
        if self.target:
            return super().load()
        if self.library is None:
            raise InputError(f"{self.name}: no library has this name, and the attack has no target of its own")
        return self.library.load()

    def missing(self) -> str:
        """The missing packages; ``""`` where none is missing. Nothing is imported."""
        library = () if self.library is None else self.library.requires
        for line in (*library, *self.requires):
            if not any(importlib.util.find_spec(package) for package in line.split(" or ")):
                return line
        return ""

    def installed(self) -> bool:
        return not self.missing()

    def to_install(self) -> str:
        """The argument of ``pip install``."""
        return self.install or ("" if self.library is None else self.library.install)

    def require(self) -> None:
        """:raises InputError: where a package is missing. The message says what to type."""
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

    def resolve(self, options: Mapping[str, Any], **known: Any) -> dict[str, Any]:
        if self.refused:
            raise InputError(f"{self.name} cannot be chosen: {self.refused}")
        return super().resolve(options, **known)

    def at(self, options: Mapping[str, Any], threat: Threat) -> dict[str, Any]:
        """The options as numbers at this threat: ``steps = "kurakin"`` stands for a number and a size of steps.

        :raises InputError: where there is no such schedule, it is not for this attack or norm, or its numbers are given too.
        """
        if "steps" not in options or "steps" in self.options:
            return dict(options)
        where = f"{self.name}: steps"
        if not {"max_iter", "rel_eps_step"} <= self.options.keys():
            raise InputError(f"{where}: it does not take a number and a size of steps; leave steps out")
        name = options["steps"]
        if isinstance(name, int) and not isinstance(name, bool):
            raise InputError(f"{where}: it is {name}; a number of steps is called max_iter")
        schedule = SCHEDULES[check(where, name, OneOf(tuple(SCHEDULES)))]
        if threat.norm != "Linf":
            raise InputError(f"{where}: they count eps in levels of a pixel, in Linf; leave steps out in {threat.norm}")
        found = {name: value for name, value in schedule(threat.eps).items() if name in self.options}
        given = {name: value for name, value in options.items() if name != "steps"}
        if twice := [name for name in ("max_iter", "rel_eps_step") if name in given]:
            raise InputError(f"{where}: it sets {twice[0]} too; leave one of them out")
        return found | given

    def check(
        self,
        options: Mapping[str, Any],
        threat: Threat,
        nb_classes: int | None = None,
        shape: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """The resolved options of an attack within ``threat``.

        :param options: also ``steps``, see :meth:`at`.
        :param nb_classes: of the model, where it is known.
        :param shape: (C, H, W) of the images, where it is known.
        :raises InputError: where the options do not fit together, the threat or the number of classes.
        """
        known = {"norm": threat.norm, "eps": threat.eps, "classes": nb_classes}
        if shape is not None:
            known |= {"channels": shape[0], "side": min(shape[1:]), "values": math.prod(shape)}
        resolved = self.resolve(self.at(options, threat), **known)
        if threat.norm not in self.norms:
            raise InputError(f"{self.name} has no norm {threat.norm}; it has {', '.join(self.norms)}")
        if threat.norm == "L0" and self.needs != "nothing":
            most = MOST if shape is None else math.prod(shape[1:])
            if not (threat.eps % 1 == 0 and 1 <= threat.eps <= most):
                raise InputError(f"{self.name}: eps is {threat.eps!r} pixels in L0; give {Number(1, most, whole=True)}")
        if nb_classes is not None:
            self.require_classes(nb_classes)
        return resolved


def _counts(option: Option) -> bool:
    return isinstance(option.default, int) and not isinstance(option.default, bool)


def attack_of(
    library: Library,
    name: str,
    upstream: str,
    help: str,
    options: Mapping[str, Any] | None = None,
    *,
    norms: Iterable[str] | None = None,
    rules: Iterable[Rule] = (),
    **facts: Any,
) -> Attack:
    """A row of a library.

    :param name: the id without the library.
    :param options: the default of each option, which has the shared domain of its name, or an ``Option``.
    :param rules: besides the shared ones.
    :param norms: by default the library's norms.
    :param facts: further fields of :class:`Attack`.
    """
    return Attack(
        name=f"{library.name}:{name}",
        upstream=upstream,
        help=help,
        options={option: option_of(option, given) for option, given in (options or {}).items()},
        rules=(*(rule for rule in RULES if set(rule.of) <= (options or {}).keys()), *rules),
        norms=library.norms if norms is None else tuple(norms),
        **facts,
    )


def refused_attack_of(library: Library, name: str, upstream: str, help: str, reason: str) -> Attack:
    """A row that is listed but cannot be chosen.

    :param help: what the attack does. The reason is added.
    """
    return attack_of(library, name, upstream, f"{help}; {reason}", norms=(), refused=reason)
