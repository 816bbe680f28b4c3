"""``craft``: the one way to run an attack, whichever library it comes from."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.attacks.catalogue import ATTACKS, Attack
from art_qplugins.attacks.views import LogitScale, median_gap
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.counting import counting
from art_qplugins.gradients.trajectory import Path, tracking
from art_qplugins.guard import isolated
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.threat import Threat

__all__ = ["Adapter", "Crafted", "craft"]


class Adapter(Protocol):
    """Runs the attacks of one library. It translates settings; the loop stays in the library, and success is judged later.

    It is called with the model in eval mode, its parameters frozen and every global generator seeded.
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
        """Images like ``x``, within the threat where the attack keeps to a budget.

        :param x: (N, C, H, W) float32 in [0, 1].
        :param y: (N,) int64, the true labels.
        :param options: all options of the row, resolved.
        :param start: ``start=`` images like ``x``, only for an attack whose row says ``takes_start``.
        """
        ...


@dataclass(frozen=True)
class Crafted:
    """The images of an attack, unjudged, and what they cost in images through the network.

    :ivar notes: warnings that the library logged.
    :ivar options: as resolved, with the temperature where logits were divided.
    :ivar path: of a white-box attack: measures of what it visited, (N,) by name.
    :ivar facts: of a test of the attack.
    """

    x_adv: Tensor
    forward_samples: int
    backward_samples: int
    notes: tuple[str, ...]
    options: dict[str, Any]
    path: dict[str, NDArray[np.float64]]
    facts: dict[str, Any] = field(default_factory=dict)


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
    start: Tensor | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> Crafted:
    """Run one attack. Modes and every global random state are as before afterwards; whether it succeeded is not judged.

    :param estimator: what the attack sees; its gradients, or its answers alone.
    :param attack_id: e.g. ``"art:pgd"``; ``artq ls attacks`` lists them.
    :param x: (N, C, H, W) float32 in [0, 1].
    :param y: (N,) int64, the true labels.
    :param temperature: show the attack the network with its logits divided by this.
    :param gap: the same, with the temperature that brings the median distance of the top two logits to ``gap``.
    :param start: legal images like ``x`` to start from, for an attack whose row says ``takes_start``.
    :param seed: of the attack's own randomness and of the draws that it sees of a stochastic model.
    :raises InputError: where the attack, its options, the norm, the start or the number of classes do not fit, or its
        library is not installed.
    """
    attack = ATTACKS[attack_id]
    resolved = attack.resolve(options or {})
    _check(attack, estimator, threat, start)
    model = estimator.model
    with (
        isolated(model, seed),
        draws_from(model, seed),
        counting(model) as counter,
        _tracked(attack, model, x, y, threat) as path,
        _warnings_of("auto-attack", "art") as notes,
    ):
        if gap is not None:
            temperature = median_gap(model, x, seed=seed, batch_size=batch_size) / gap
        view = estimator if temperature is None else estimator.with_model(LogitScale(model, temperature).eval())
        adapter: Adapter = attack.load()
        more = {} if start is None else {"start": start}
        settings = dict(resolved)
        x_adv = adapter(view, attack, x, y, threat=threat, options=settings, batch_size=batch_size, seed=seed, **more)
    if temperature is not None:
        resolved["temperature"] = temperature
    return Crafted(
        x_adv.detach(),
        counter.forward,
        counter.backward,
        tuple(dict.fromkeys(notes)),
        resolved,
        path.measures() if path else {},
    )


def _check(attack: Attack, estimator: QuantizedClassifier, threat: Threat, start: Tensor | None) -> None:
    if threat.norm not in attack.norms:
        raise InputError(f"{attack.name} has no norm {threat.norm}; it has {', '.join(attack.norms)}")
    if start is not None and not attack.takes_start:
        raise InputError(f"{attack.name} chooses its own start; leave start out, or use artq:apgd-margin")
    attack.require()
    attack.require_classes(estimator.nb_classes)


def _tracked(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat
) -> contextlib.AbstractContextManager[Path | None]:
    """The path of a white-box attack that may return another image than its best."""
    keeps_best = attack.library is not None and attack.library.keeps_best
    tracked = attack.knowledge == "white-box" and not keeps_best
    return tracking(model, x, y, threat) if tracked else contextlib.nullcontext()


class _Collector(logging.Handler):
    """Keeps the messages of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _warnings_of(*names: str) -> Iterator[list[str]]:
    """Collect what the libraries log as warnings. Otherwise it would run over the progress display."""
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
