"""Does a model still answer as before an attack, and did it refuse an answer? Both decide whether its numbers mean anything."""

from __future__ import annotations

from traceback import walk_tb
from types import TracebackType

import torch
from torch import Tensor, nn

from art_qplugins.deployment.endpoint import UsedUp
from art_qplugins.evaluation.score import NoAnswer
from art_qplugins.gradients.probe import answer, same_answers

__all__ = ["Steadiness", "no_answer"]

_SEED = 0


class Steadiness:
    """The answers of a module to a few images, asked before an attack and compared with those after it.

    All calls have the same draws. A module whose answers to two calls in a row differ draws them elsewhere, so it is not
    compared.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self._module, self._x = module, x
        self._before = self._again(self._once())

    def drift(self) -> float | None:
        """The largest change of a logit relative to the largest logit, at most 1; ``None`` where it cannot be told."""
        now = self._once()
        if self._before is not None and now is not None and torch.equal(self._before, now):
            return 0.0
        after = self._again(now)
        if self._before is None or after is None:
            return None
        if self._before.shape != after.shape or not torch.equal(self._before.isnan(), after.isnan()):
            return 1.0
        was, became = (logits.double().nan_to_num() for logits in (self._before, after))
        return min(1.0, float((became - was).abs().max() / was.abs().max().clamp_min(1e-30)))

    def _once(self) -> Tensor | None:
        try:
            return answer(self._module, self._x, _SEED, 0)
        except (Exception, SystemExit):
            return None

    def _again(self, first: Tensor | None) -> Tensor | None:
        """The same answers, if a second call gives them too."""
        second = None if first is None else self._once()
        return first if first is not None and second is not None and same_answers(first, second) else None


def no_answer(error: BaseException, module: nn.Module) -> bool:
    """Whether an attack failed because the module has no answer for images in [0, 1], and not for what the attack did.

    A module that raised is asked again for the images of its last call, alone and without a gradient.
    """
    if isinstance(error, NoAnswer):
        return True
    points = _last_call(error.__traceback__, module)
    if points is None or not bool(torch.isfinite(points).all() and points.min() >= 0 and points.max() <= 1):
        return False
    try:
        return bool(answer(module, points.detach(), _SEED, 0).isnan().any())
    except (Exception, SystemExit) as again:
        return not isinstance(again, (MemoryError, torch.OutOfMemoryError, UsedUp))


def _last_call(trace: TracebackType | None, module: nn.Module) -> Tensor | None:
    """The images of the call of the module in which an error was raised."""
    found = None
    for frame, _ in walk_tb(trace):
        given = frame.f_locals.get("args")
        if frame.f_locals.get("self") is module and isinstance(given, tuple) and given and isinstance(given[0], Tensor):
            found = given[0]
    return found if found is not None and found.is_floating_point() and found.numel() else None
