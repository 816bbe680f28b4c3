"""Measures a module without an attack: its gradients at the images, and facts of the module.

The measurements cover the mechanisms by which an attack can fail, at the points where an attack starts. They are no proof of
masking. They are judged in :mod:`art_qplugins.diagnostics`. A measurement that fails on an unusual module is NaN with a
reason and does not stop the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.domains import ABSTAIN, COUNT, SEED, Domain, Is, check_all
from art_qplugins.geometry import random_point
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.gradients.counting import counting, passes
from art_qplugins.gradients.facts import module_facts, way_facts
from art_qplugins.gradients.fidelity import DIRECTIONS
from art_qplugins.gradients.per_image import Batch, measure_batch
from art_qplugins.gradients.trace import half_side
from art_qplugins.guard import restoring
from art_qplugins.threat import Threat
from art_qplugins.torch_domains import IMAGES, LABELS, MODULE

__all__ = ["Measured", "measure"]

#: A slope of a random module is averaged over at least this many draws, as in an attack that averages, ...
_DRAWS = 8
#: ... but over at most this many calls.
_CALLS = 4
#: Number of images that the facts of a module are measured on.
_FACTS = 128


_ARGUMENTS: dict[str, Domain] = {
    "module": MODULE,
    "x": IMAGES,
    "y": LABELS,
    "threat": Is(Threat, "a Threat, e.g. Threat('Linf', 8 / 255)"),
    "directions": DIRECTIONS,
    "seed": SEED,
    "batch_size": COUNT,
    "abstain": ABSTAIN,
}


@dataclass(frozen=True)
class Measured:
    """The result of :func:`measure`.

    :param samples: per image, (N,) float64; NaN where a measurement failed.
    :param cell: facts of the module as a whole, as JSON.
    """

    samples: dict[str, NDArray[np.float64]]
    cell: dict[str, Any]


def measure(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    directions: int = 20,
    seed: int = 0,
    batch_size: int = 250,
    abstain: int | None = None,
) -> Measured:
    r"""Everything that is measured without an attack.

    Per image, with m for the logit margin, g for its gradient and L for the cross-entropy:

    ==================== ==========================================================================================
    ``gradient``         :math:`\max |dL/dx|` in float32, as an attack computes it
    ``gradient_start``   the same at :math:`x + \eta`, a random point of the ball
    ``gradient_l2``      :math:`\|dL/dx\|_2` from a float32 sum of squares, which underflows below about 1e-23
    ``gradient_ratio``   :math:`\|dL/dx\| / \|g\|`
    ``fidelity``         correlation of what g predicts with what steps of eps / 4 do, in [-1, 1]
    ``fidelity_eps``     the same for steps of eps
    ``instability``      mean :math:`|m(x + d) - m(x)| / |m(x)|` over steps of eps / 4, at most 1: I2 of Pintor et al.
                         2022, on the margin because I2 is blind on a saturated loss
    ``alignment``        :math:`\cos(g(x), g(x + \eta))` (Andriushchenko & Flammarion 2020, eq. 3)
    ``imbalance``        the larger of :math:`\|dz_y\|` and :math:`\|dz_j\|` by the smaller, j the best other class
                         (Jiang et al. 2020); of logits less their mean, so that log-probabilities give the same
    ``coherence``        cosine of two g, each of one pass with draws of its own; random modules only
    ==================== ==========================================================================================

    Of the module:

    ==================== ==========================================================================================
    ``reaches_pixels``   whether a path leads from the logits back to the pixels
    ``ends_at``          the layer in whose forward the graph ends, where it does not reach the pixels
    ``blocking``         the blocking operation: its layer, its name, and the share of images that it leaves without
                         a gradient (:func:`~art_qplugins.gradients.ledger.blocking_operation`)
    ``gradient_scale``   the power of two that gives the gradient its direction back where its numbers underflow or overflow
                         on the way back (:func:`~art_qplugins.gradients.underflow.gradient_scale`); ``None`` elsewhere
    ``lost``             where the gradient is lost and can be brought back: for each operation its ``layer``, ``op`` and
                         ``ordinal``, ``how`` it is bridged, and the fidelity of the logits ``before`` and ``after``
    ``saturates``        the ``layer`` and ``op`` that flatten the logits, if a tensor before them has the same classes
    ``opaque``           whether nothing that torch computes lies between the pixels and the logits
    ``probabilities``    whether the outputs are probabilities, by AutoAttack's rule
    ``softmax_like``     whether they are probabilities times a constant
    ``log_softmax``      whether they are logarithms of probabilities
    ``dynamic``          whether a forward pass runs a backward pass
    ``stateful``         parameters and buffers that a forward pass changes
    ``batch_dependent``  how much an answer depends on the other images of its batch, 0 but for rounding; ``None`` where
                         it could not be measured
    ``adapted``          what is done so that the module can be asked, in words
    ``random``           whether the module answers otherwise with other draws
    ``quantizers``       number of quantized activations
    ``costs``            forward and backward passes in images, per image
    ``skipped``          the reason of every measurement that failed, by name
    ==================== ==========================================================================================

    A random module is measured by the mean over its draws, which are the same at every point. Modes, parameters,
    buffers, hooks and random states are restored, also after an exception.

    :param x: (N, C, H, W) in [0, 1], N at least 1.
    :param y: (N,) labels.
    :param threat: eps is the length of the steps and the radius of the ball. It must be above 0.
    :param directions: number of random directions per image. A random module with few draws per call uses fewer.
    :param seed: fixes directions, random points and draws.
    :param batch_size: images per batch.
    :param abstain: index of the rejection class, if there is one. m and L then take a rejection as the label.
    """
    check_all(locals(), _ARGUMENTS)
    attempt = Attempt()
    with counting(module) as counter, restoring(module) as changed:
        facts = module_facts(module, x[:_FACTS], y[:_FACTS], seed=seed, changed=changed, attempt=attempt)
        calls = _calls(module) if facts["random"] else 1
        few = directions if calls == 1 else max(5, directions // calls)
        start = random_point(x, threat, seed)
        parts = []
        for rows in torch.arange(len(x)).split(batch_size):
            batch = Batch(
                module=module,
                x=x[rows],
                y=y[rows],
                start=start[rows],
                threat=threat,
                directions=few,
                seed=seed,
                calls=calls,
                is_random=facts["random"],
                abstain=abstain,
            )
            parts.append(measure_batch(batch, attempt))
        samples = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
        facts |= way_facts(module, x[:_FACTS], samples, facts, radius=half_side(threat, x), seed=seed, attempt=attempt)
    costs = {"forward": counter.forward / len(x), "backward": counter.backward / len(x)}
    return Measured(samples, {**facts, "costs": costs, "skipped": attempt.skipped})


def _calls(module: nn.Module) -> int:
    """Number of calls of a random module over which a slope is averaged."""
    return min(_CALLS, math.ceil(_DRAWS / passes(module, requires_grad=True)))
