"""Where the worst case takes its gradients from: the network's own, and for networks whose own mislead, other ones.

A network whose gradient predicts what its steps do needs no other. Else the others are measured, and the faithful ones guide.
Quantized activations also offer the gradient of their full-precision twin, and of the twin with one bit more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from art_qplugins.attacks.adaptive.draws import needed_draws
from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits
from art_qplugins.attacks.adaptive.objectives import Answer, Loss, Objective, averaged, direct, through
from art_qplugins.attacks.adaptive.repaired_gradients import View, by_fidelity, repaired_gradients, unchanged
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.gradients.saturation import before_saturation
from art_qplugins.quantizers.protocol import activation_quantizers

__all__ = ["Guide", "find_guides", "own_guide"]

#: A gradient of this fidelity needs no repair, and one of that no help from twins without rounding.
_FAITHFUL, _EXACT = 0.8, 0.95
#: A gradient of one pass guides where it has this share of the best fidelity. So many do at most.
_WORTH, _MOST = 0.6, 3


@dataclass(frozen=True)
class Guide:
    """A network whose gradient is followed.

    :ivar view: a context that gives it.
    :ivar deployed: whether it answers as the attacked network does. Else that is asked as well.
    :ivar draws: that a gradient of a random network averages.
    :ivar cost: gradients of the network for one step.
    """

    view: View
    deployed: bool = True
    draws: int = 1
    cost: int = 1

    def objective(self, run: AttackRun, loss: Loss) -> Objective:
        """A loss of the deployed logits, or of a twin's own, and the gradient in this view."""
        with self.view() as module:
            if run.random:
                inner = averaged(module, loss, draws=self.draws, seed=run.seed, compared=False)
            else:
                inner = through(module, run.y, loss)
        own = direct(run.module, run.y, loss)

        def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
            with self.view():
                answer = inner(points, rows, step=step, backward=backward)
            if self.deployed:
                return answer
            asked = own(points, rows, step=step, backward=False)
            return Answer(asked.loss, answer.gradient, asked.margin)

        return objective


def own_guide(run: AttackRun) -> Guide:
    """The network's own gradient."""
    return _guide(run, unchanged(run.module))


def find_guides(run: AttackRun, own: Guide) -> list[Guide]:
    """The gradients for a run, the most faithful first. It is the network's own alone where that one is faithful."""
    offered: Mapping[str, View] = {"as-is": own.view}
    scores = by_fidelity(run, offered)
    score, guides = scores["as-is"], []
    if score >= _EXACT:
        return [own]
    if score < _FAITHFUL:
        if not run.random:
            before = before_saturation(run.module, run.x, radius=4 * run.pixel_step(), seed=run.seed)
            guides = [] if before is None else [_guide(run, unchanged(before))]
        offered = repaired_gradients(run)
        scores = by_fidelity(run, offered)
    best, least = next(iter(scores)), _WORTH * max(scores.values())
    cheap = [kind for kind in scores if scores[kind] >= least and _points(offered[kind]) == 1]
    guides += [own if kind == "as-is" else _guide(run, offered[kind]) for kind in cheap[:_MOST] or [best]]
    if not run.random:
        guides += [Guide(twin, deployed=False) for twin in _twins(run)]
    return guides


def _guide(run: AttackRun, view: View) -> Guide:
    with view() as module:
        draws = needed_draws(run, module) if run.random else 1
    return Guide(view, draws=draws, cost=draws * _points(view))


def _points(view: View) -> int:
    """Points whose gradients a view averages."""
    with view() as module:
        return getattr(module, "points", 1)


def _twins(run: AttackRun) -> list[View]:
    """The network without the rounding of its activations, and with one bit more."""
    found = activation_quantizers(run.module)
    if not found:
        return []
    bits = min(quantizer.num_bits for _, quantizer in found) + 1
    contexts = (partial(full_precision, run.module, run.x), partial(other_bits, run.module, bits))
    return [partial(_inside, context, run.module) for context in contexts]


@contextlib.contextmanager
def _inside(context: Callable[[], AbstractContextManager[None]], module: nn.Module) -> Iterator[nn.Module]:
    with context():
        yield module
