"""``craft`` runs any attack of any library."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_qplugins.attacks.catalogue import ATTACKS, Attack
from art_qplugins.attacks.views import (
    Connected,
    GradientScale,
    LogitScale,
    RejectionAsLabel,
    median_gap,
    reaches_pixels,
)
from art_qplugins.domains import COUNT, POSITIVE, SEED, TABLE, TEXT, Domain, Is, Maybe, Number, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.devices import as_current
from art_qplugins.gradients.counting import counting
from art_qplugins.gradients.trajectory import Path, tracking
from art_qplugins.gradients.visits import watching
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.threat import Threat
from art_qplugins.torch_domains import IMAGES, LABELS

__all__ = ["Adapter", "Crafted", "craft"]


_ARGUMENTS: dict[str, Domain] = {
    "estimator": Is(QuantizedClassifier, "a QuantizedClassifier"),
    "attack_id": TEXT,
    "x": IMAGES,
    "y": LABELS,
    "threat": Is(Threat, "a Threat, e.g. Threat('Linf', 8 / 255)"),
    "options": Maybe(TABLE),
    "temperature": Maybe(POSITIVE),
    "gap": Maybe(POSITIVE),
    "gradient_scale": Maybe(Number(0, 2.0**127, above=True)),
    "start": Maybe(IMAGES),
    "batch_size": COUNT,
    "seed": SEED,
}


class Adapter(Protocol):
    """Runs the attacks of one library. It only translates settings. Success is judged later.

    It is called with the model in eval mode, with frozen parameters and with every global generator seeded.
    """

    def __call__(
        self,
        estimator: QuantizedClassifier,
        attack: Attack,
        x: Tensor,
        y: Tensor,
        *,
        threat: Threat,
        options: dict[str, Any],
        batch_size: int,
        seed: int,
        **start: Tensor,
    ) -> Tensor:
        """Images like ``x``, within the threat if eps limits the attack.

        :param x: (N, C, H, W) float32 in [0, 1].
        :param y: (N,) int64, the true labels.
        :param options: all resolved options of the row.
        :param start: ``start=`` images like ``x``, only for an attack with ``takes_start``.
        """
        ...


@dataclass(frozen=True)
class Crafted:
    """The images of an attack before they are judged, and their cost in images through the network.

    :ivar notes: warnings that the library logged.
    :ivar options: the resolved options, with the temperature if logits were divided, and the factor of the gradient.
    :ivar visited: whether the attack asked the model for any point that is none of ``x``.
    :ivar undefined: number of points with NaN or infinity that it asked the model for, and of gradients with them.
    :ivar path: for a white-box attack: measures of the points that it visited, (N,) by name.
    :ivar facts: for a test of the attack: its result.
    """

    x_adv: Tensor
    forward_samples: int
    backward_samples: int
    notes: tuple[str, ...]
    options: dict[str, Any]
    path: dict[str, NDArray[np.float64]]
    facts: dict[str, Any] = field(default_factory=dict)
    visited: bool | None = None
    undefined: int = 0


def craft(
    estimator: QuantizedClassifier,
    attack_id: str,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: Mapping[str, Any] | None = None,
    temperature: float | None = None,
    gap: float | None = None,
    gradient_scale: float | None = None,
    start: Tensor | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Crafted:
    """Run one attack. It restores modes and global random states. It does not judge success.

    A model with a rejection class is attacked label by label, so that any attack aims past both, see
    :class:`~art_qplugins.attacks.views.RejectionAsLabel`.

    :param estimator: the model that the attack sees.
    :param attack_id: e.g. ``"art:pgd"``; ``artq ls attacks`` lists them.
    :param x: (N, C, H, W) float32 in [0, 1].
    :param y: (N,) int64, the true labels.
    :param temperature: the attack sees the network with its logits divided by this. Below 1 it multiplies them.
    :param gap: the same, with the temperature that makes the median gap of the top two logits equal to ``gap``.
    :param gradient_scale: the attack sees the network with its gradient times this.
    :param start: legal images like ``x`` to start from, for an attack with ``takes_start``.
    :param seed: seed of the attack's randomness, and of the draws of a stochastic model that the attack sees.
    :raises InputError: where the attack, its options, the norm, the start or the number of classes do not fit, or where
        its library is not installed.
    """
    check_all(locals(), _ARGUMENTS)
    if len(y) != len(x):
        raise InputError(f"y: {len(y)} labels for {len(x)} images; give one per image")
    attack = ATTACKS[attack_id]
    temperature, gap = (None if value is None else float(value) for value in (temperature, gap))
    classes = estimator.nb_classes - (estimator.abstain is not None)
    resolved = attack.check(options or {}, threat, classes, x.shape[1:])
    attack.require()
    if start is not None and not attack.takes_start:
        raise InputError(f"{attack.name} takes no start; leave start out, or use artq:apgd-margin")
    model, blind = estimator.model, False
    if attack.knowledge == "white-box" and attack.gradient != "repaired":
        with as_current(estimator.device), isolated(model, seed), draws_from(model, seed):
            blind = not reaches_pixels(model, x[:1])
    with (
        as_current(estimator.device),
        isolated(model, seed),
        draws_from(model, seed),
        counting(model) as counter,
        watching(model, x) as visits,
        _tracked(attack, estimator, x, y, threat) as path,
        _warnings_of("auto-attack", "art") as notes,
    ):
        if gap is not None:
            temperature = median_gap(model, x, seed=seed, batch_size=batch_size) / gap
            if not 0 < temperature < math.inf:
                raise InputError(
                    f"gap: the median gap of the top two logits is {temperature * gap:.3g}, which no factor makes {gap:g}; "
                    "leave gap out, or give temperature"
                )
        view = estimator if temperature is None else estimator.with_model(LogitScale(model, temperature).eval())
        if gradient_scale is not None:
            view = view.with_model(GradientScale(view.model, float(gradient_scale)).eval())
        if blind:
            view = view.with_model(Connected(view.model).eval())
            notes.append("no gradient reaches the pixels, so the attack was given zeros")
        adapter: Adapter = attack.load()

        def attacked(seen: QuantizedClassifier, x: Tensor, y: Tensor, begin: Tensor | None) -> Tensor:
            more = {} if begin is None else {"start": begin}
            settings = dict(resolved)
            return adapter(
                seen, attack, x, y, threat=threat, options=settings, batch_size=batch_size, seed=seed, **more
            )

        if estimator.abstain is None:
            x_adv = attacked(view, x, y, start)
        else:
            x_adv = _by_label(attacked, view, estimator.abstain, x, y, start)
    if temperature is not None:
        resolved["temperature"] = temperature
    if gradient_scale is not None:
        resolved["gradient_scale"] = float(gradient_scale)
    return Crafted(
        x_adv.detach(),
        counter.forward,
        counter.backward,
        tuple(dict.fromkeys(notes)),
        resolved,
        path.measures() if path else {},
        visited=visits.elsewhere,
        undefined=visits.undefined,
    )


def _by_label(
    attacked: Callable[[QuantizedClassifier, Tensor, Tensor, Tensor | None], Tensor],
    view: QuantizedClassifier,
    abstain: int,
    x: Tensor,
    y: Tensor,
    start: Tensor | None,
) -> Tensor:
    """Run an attack on the images of each label in turn, on the view in which a rejection counts as this label."""
    parts, places = [], []
    for label in y.unique().tolist():
        rows = (y == label).nonzero()[:, 0]
        seen = view.with_model(RejectionAsLabel(view.model, label, abstain).eval(), nb_classes=view.nb_classes - 1)
        parts.append(attacked(seen, x[rows], y[rows] - int(label > abstain), None if start is None else start[rows]))
        places.append(rows)
    return torch.cat(parts)[torch.cat(places).argsort()]


def _tracked(
    attack: Attack, estimator: QuantizedClassifier, x: Tensor, y: Tensor, threat: Threat
) -> contextlib.AbstractContextManager[Path | None]:
    """Track the path of a white-box attack that may not return its best image."""
    keeps_best = attack.library is not None and attack.library.keeps_best and not attack.returns_last
    tracked = attack.knowledge == "white-box" and not keeps_best
    abstain = estimator.abstain
    return tracking(estimator.model, x, y, threat, abstain=abstain) if tracked else contextlib.nullcontext()


class _Collector(logging.Handler):
    """Collects the messages of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _warnings_of(*names: str) -> Iterator[list[str]]:
    """Collect the warnings that libraries log. Otherwise they would overwrite the progress display."""
    collector = _Collector()
    loggers = [(log, log.propagate) for log in map(logging.getLogger, names)]
    for log, _ in loggers:
        log.addHandler(collector)
        log.propagate = False
    try:
        yield collector.messages
    finally:
        for log, propagate in loggers:
            log.removeHandler(collector)
            log.propagate = propagate
