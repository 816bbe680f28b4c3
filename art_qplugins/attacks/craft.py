"""``craft``: the one way to run an attack, whichever library it comes from."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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

__all__ = ["Crafted", "craft"]

#: AutoAttack and the loops of this package keep their best image.
_WATCHED = ("art", "torchattacks", "foolbox")


@dataclass(frozen=True)
class Crafted:
    """What an attack gave, unjudged, and what it cost in images through the network."""

    x_adv: Tensor
    forward_samples: int
    backward_samples: int
    notes: tuple[str, ...]  # warnings that the library logged
    options: dict[str, Any]  # as resolved, with a temperature where one was asked for
    path: dict[str, NDArray[np.float64]]  # of a white-box attack: what it visited, (N,) by name
    facts: dict[str, Any] = field(default_factory=dict)


def _seen(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat
) -> contextlib.AbstractContextManager[Path | None]:
    """The path of attacks that may return another image than their best; the others need no watching."""
    watched = attack.knowledge == "white-box" and attack.name.split(":")[0] in _WATCHED
    return tracking(model, x, y, threat) if watched else contextlib.nullcontext()


@contextlib.contextmanager
def _warnings_of(*names: str) -> Iterator[list[str]]:
    """Collect what the libraries log as warnings, in place of letting it run over the progress display."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [(log, log.propagate) for log in map(logging.getLogger, names)]
    for log, _ in loggers:
        log.addHandler(handler)
        log.propagate = False
    try:
        yield messages
    finally:
        for log, propagate in loggers:
            log.removeHandler(handler)
            log.propagate = propagate


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
    :param start: legal images like ``x`` to start from, for the attacks of this package.
    :param seed: of the attack's own randomness and of the draws that it sees of a stochastic model.
    """
    attack = ATTACKS[attack_id]
    resolved = attack.resolve(options or {})
    if threat.norm not in attack.norms:
        raise InputError(f"{attack_id} has no norm {threat.norm}; it has {', '.join(attack.norms)}")
    model = estimator.model
    with (
        isolated(model, seed),
        draws_from(model, seed),
        counting(model) as counter,
        _seen(attack, model, x, y, threat) as path,
        _warnings_of("auto-attack", "art") as notes,
    ):
        if gap is not None:
            temperature = median_gap(model, x, seed=seed, batch_size=batch_size) / gap
        view = estimator if temperature is None else estimator.with_model(LogitScale(model, temperature).eval())
        more = {} if start is None else {"start": start}
        x_adv = attack.load()(
            view, attack, x, y, threat=threat, options=dict(resolved), batch_size=batch_size, seed=seed, **more
        )
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
