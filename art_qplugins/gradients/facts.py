"""Facts of a module as a whole: the kind of its outputs, the effects of a call, and the path of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.estimators.adapted import adaptations
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.gradients.counting import counting_backward_passes
from art_qplugins.gradients.ledger import Ledger, blocking_operation, ledger
from art_qplugins.gradients.lost import FAITHFUL
from art_qplugins.gradients.probe import answer, gradient, same_answers
from art_qplugins.gradients.saturation import before_saturation
from art_qplugins.gradients.underflow import gradient_scale
from art_qplugins.gradients.way_back import way_back
from art_qplugins.quantizers.noise import is_stochastic
from art_qplugins.quantizers.protocol import activation_quantizers

__all__ = ["module_facts", "output_facts", "way_facts"]

#: The network is traced where more than this share of the images has no gradient.
_NO_GRADIENT = 0.1


def module_facts(
    module: nn.Module, x: Tensor, y: Tensor, *, seed: int, changed: Callable[[], list[str]], attempt: Attempt
) -> dict[str, Any]:
    """The facts that :func:`~art_qplugins.gradients.measure.measure` documents, as JSON.

    :param x: (N, C, H, W) in [0, 1]; with fewer than three images ``batch_dependent`` is ``None``.
    :param y: (N,) labels.
    :param changed: returns the names of the parameters and buffers that have changed.
    """
    with counting_backward_passes() as backward:
        logits = attempt("logits", lambda: answer(module, x, seed, 0))
    stateful = changed()
    is_random = attempt("random", lambda: _is_random(module, x, seed, logits))
    found = attempt("ledger", lambda: ledger(module, x, y, seed=seed))
    facts = {
        "dynamic": backward.number > 0,
        "stateful": stateful,
        "random": is_random,
        "adapted": adaptations(module),
        "quantizers": len(activation_quantizers(module)),
        **_ledger_facts(found),
        **output_facts(logits),
        "gradient_scale": attempt("gradient_scale", lambda: gradient_scale(module, x, y, seed=seed)),
        "batch_dependent": None,
    }
    if logits is not None and len(x) >= 3:
        depends: Callable[[], float | None] = partial(_batch_dependence, module, x, seed, logits)
        if is_random:
            depends = partial(_leak, module, x, seed)
        facts["batch_dependent"] = attempt("batch_dependent", depends)
    return facts


def _is_random(module: nn.Module, x: Tensor, seed: int, logits: Tensor | None) -> bool:
    if is_stochastic(module):
        return True
    again = answer(module, x, seed, 1)
    if logits is None:
        raise ValueError("the first call failed")
    return not same_answers(logits, again)


def _ledger_facts(found: Ledger | None) -> dict[str, Any]:
    if found is None:
        return {"reaches_pixels": None, "ends_at": None, "blocking": None}
    worst = blocking_operation(found)
    return {
        "reaches_pixels": found.reaches_pixels,
        "ends_at": found.ends_at,
        "blocking": worst and {"layer": worst.layer, "op": worst.op, "share": worst.zeroed},
    }


def way_facts(
    module: nn.Module,
    x: Tensor,
    samples: Mapping[str, NDArray[np.float64]],
    facts: Mapping[str, Any],
    *,
    radius: float,
    seed: int,
    attempt: Attempt,
) -> dict[str, Any]:
    """The facts ``lost``, ``opaque`` and ``saturates``. A network whose gradient is faithful is not traced for the first two.

    :param samples: the measurements of the images, of which ``fidelity`` and ``gradient`` are read.
    :param facts: those of :func:`module_facts`.
    :param radius: half the side of the cube that an attack searches.
    """
    faithful = float(np.median(samples["fidelity"])) >= FAITHFUL
    arrives = facts["reaches_pixels"] and float(np.mean(samples["gradient"] == 0)) <= _NO_GRADIENT
    view = None
    if not (faithful and arrives):
        view = attempt("lost", lambda: way_back(module, x, radius=radius, seed=seed))
    saturated = attempt("saturates", lambda: before_saturation(module, x, radius=radius, seed=seed))
    return {
        "lost": [] if view is None else view.lost,
        "opaque": facts["reaches_pixels"] is False and (view is None or view.is_substitute),
        "saturates": saturated and saturated.record(),
    }


def output_facts(logits: Tensor | None) -> dict[str, Any]:
    """Whether the outputs are probabilities by AutoAttack's rule, probabilities times a constant, or log-probabilities."""
    if logits is None:
        return {"probabilities": None, "softmax_like": None, "log_softmax": None}
    z = logits.double()
    low, high, totals = float(z.min()), float(z.max()), z.sum(1)
    total = float(totals.mean())
    return {
        "probabilities": low > -1e-5 and high < 1 + 1e-5 and bool(((totals - 1).abs() < 1e-5).all()),
        # If all outputs are zero, the quotient is NaN and the answer is no.
        "softmax_like": low >= 0 and bool(((totals / total - 1).abs() < 1e-4).all()),
        "log_softmax": high <= 1e-5 and bool((z.logsumexp(1).abs() < 1e-4).all()),
    }


def _batch_dependence(module: nn.Module, x: Tensor, seed: int, logits: Tensor) -> float:
    """Largest change of a logit in another batch, relative to the largest logit. It should be 0 up to rounding."""
    halves = torch.cat([answer(module, part, seed, 0) for part in (x[::2], x[1::2])])
    whole = torch.cat([logits[::2], logits[1::2]])
    return float((halves - whole).abs().max() / whole.abs().max().clamp_min(1e-30))


def _leak(module: nn.Module, x: Tensor, seed: int) -> float | None:
    """The batch dependence of a random module, measured by gradients because its logits differ anyway.

    It is the norm of the gradient of one half of the batch with respect to the pixels of the other half, relative to that
    with respect to its own pixels. It is exactly 0 if each image is processed independently, and ``None`` without gradient.
    """
    found = gradient(module, x, lambda z: z[::2].square().sum(1), seed=seed)
    own, other = (float(part.double().norm()) for part in (found[::2], found[1::2]))
    return other / own if own > 0 else None
