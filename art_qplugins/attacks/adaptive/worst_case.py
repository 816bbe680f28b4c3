"""The worst case image by image: what AutoAttack leaves, for a small part of its gradients.

Cheap moves come first, and an image leaves once it is broken:

1. a few steps on the margin, whose size falls along a cosine;
2. the nearest classes by clean logits, one at a time (Gowal et al. 2019);
3. rounds on the images that are nearest to falling: a random start, then a few steps on something else than the margin, steps
   on the margin or towards a class, and a short random search from the best point. What comes before the margin takes turns:
   a random mix of logits (Tashiro et al. 2020, equation 2), -z_y alone, max z alone (Jiang et al. 2020, section 3). The
   share of images in a round shrinks when a round breaks none (as Liu et al. 2022 discard images), and rounds end when several
   in a row break none;
4. one long climb on the few that are nearest to falling: some images fall to many small steps alone.

Where the network's own gradient does not say what a step does, others guide (``guides.py``): in turn towards the classes, and a
round that breaks no image passes on to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from art_qplugins.attacks.adaptive.cosine import cosine_ascent
from art_qplugins.attacks.adaptive.diversified import diversify, random_mix
from art_qplugins.attacks.adaptive.guides import find_guides, own_guide
from art_qplugins.attacks.adaptive.objectives import Loss, margin_loss, other_alone, own_alone, targeted_loss
from art_qplugins.attacks.adaptive.run import AttackRun, other_classes
from art_qplugins.attacks.adaptive.search import search
from art_qplugins.gradients.counting import Counter, counting

__all__ = ["EFFORTS", "Effort", "worst_case"]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long each part goes on. The names of the efforts are in the catalogue.

    :ivar margin: steps on the margin, on every image. ``climb`` is their number where gradients are means over draws.
    :ivar targets: nearest classes, each with ``steps`` steps on the share ``near`` of the images that stand.
    :ivar rounds: at most. ``share`` is that of the first one; one that breaks no image multiplies it by ``shrink``.
    :ivar idle: rounds in a row without a broken image that end it.
    :ivar opening: steps of a round before those on the margin.
    :ivar queries: of the search in each round, per image in it.
    :ivar last: steps of the long climb in the end.
    """

    margin: int
    climb: int
    targets: int
    near: float
    steps: int
    rounds: int
    share: float
    shrink: float
    idle: int
    opening: int
    queries: int
    last: int


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(
        margin=8,
        climb=20,
        targets=2,
        near=0.5,
        steps=10,
        rounds=4,
        share=0.3,
        shrink=0.5,
        idle=1,
        opening=3,
        queries=50,
        last=0,
    ),
    "standard": Effort(
        margin=8,
        climb=30,
        targets=3,
        near=0.6,
        steps=7,
        rounds=30,
        share=1.0,
        shrink=0.65,
        idle=8,
        opening=2,
        queries=50,
        last=40,
    ),
    "thorough": Effort(
        margin=20,
        climb=60,
        targets=9,
        near=1.0,
        steps=20,
        rounds=100,
        share=1.0,
        shrink=0.85,
        idle=10,
        opening=5,
        queries=300,
        last=100,
    ),
}
#: The classes that rounds aim at in turn.
_CYCLE = 4
#: Gradients for which it is worth while to look for others than the network's own.
_SEARCH = 2500
#: Of every second climb on a random network. It averages noise away, and overshoots on steps.
_MOMENTUM = 0.75
#: Images that a move takes in any case, relative to all.
_FEW = 0.1


def worst_case(run: AttackRun, effort: Effort, *, budget: float = math.inf) -> None:
    """Attack the images of a run.

    :param budget: gradients per image of the run. What does not fit into it is left out: the images farthest from falling, and in
        the first move, before any margin is known, the last ones.
    """
    y, order = run.y, other_classes(run.logits(run.x), run.y)
    with counting(run.module) as spent:
        moves = _Moves(run, spent, budget * len(run.x), order.shape[1] + 1)
        if run.random:
            run.certainty = 1.0
            effort = effort if moves.guide.draws == 1 else _with_draws(effort)
        moves.ascend(margin_loss(y), run.starts("margin"), 1.0, effort.margin)
        if moves.find_guides():
            moves.ascend(margin_loss(y), run.starts("margin"), 1.0, effort.margin)
        for index in range(min(effort.targets, order.shape[1])):
            moves.guide = moves.guides[index % len(moves.guides)]
            moves.ascend(targeted_loss(y, order[:, index]), run.starts(f"target {index}"), effort.near, effort.steps)
        _rounds(run, moves, order, effort)
        if effort.last and not run.random:
            moves.guide = moves.guides[0]
            moves.ascend(margin_loss(y), run.image, _FEW, effort.last)


def _rounds(run: AttackRun, moves: _Moves, order: Tensor, effort: Effort) -> None:
    """Restarts on the images nearest to falling, until several in a row break none.

    :param order: (N, K - 1) the other classes, the nearest first.
    """
    share, idle, fruitless = effort.share, 0, 0
    for index in range(effort.rounds):
        moves.guide = moves.guides[fruitless % len(moves.guides)]
        standing = len(run.robust_rows())
        target = order[:, index // 2 % min(_CYCLE, order.shape[1])] if index % 2 else None
        rows = moves.affordable(share, effort.opening + effort.steps)
        if not len(rows):
            return
        moves.restart(rows, target, index, effort)
        if not run.random:
            search(run, effort.queries, among=rows, purpose=f"search {index}", varied=True)
        broke = standing - len(run.robust_rows())
        idle = 0 if broke else idle + 1
        fruitless += not broke
        share = share if broke else share * effort.shrink
        if idle == effort.idle:
            return


def _with_draws(effort: Effort) -> Effort:
    """The same where one draw says little: a longer first climb and fewer tries, since noise chooses among many."""
    few = max(4, effort.rounds // 6)
    return replace(effort, margin=effort.climb, targets=0, rounds=few, share=min(effort.share, 0.3))


class _Moves:
    """Moves along gradients, within a budget.

    :ivar guides: whose gradients there are. :ivar guide: the one to follow.
    """

    def __init__(self, run: AttackRun, spent: Counter, budget: float, classes: int) -> None:
        self.run, self.spent, self.budget, self.classes, self.climbs = run, spent, budget, classes, 0
        self.guide = own_guide(run)
        self.guides = [self.guide]

    def find_guides(self) -> bool:
        """Look for other gradients, where images stand and the budget has room for it.

        :return: whether another one than the network's own is the first.
        """
        if not len(self.run.robust_rows()) or self.budget - self.spent.backward < _SEARCH:
            return False
        own, self.guides = self.guide, find_guides(self.run, self.guide)
        self.guide = self.guides[0]
        return self.guide is not own

    def affordable(self, share: float, steps: int) -> Tensor:
        """The images nearest to falling, of this share of those that stand, for which this many steps are left.

        Where few stand, the share is larger: they cost little.
        """
        standing = len(self.run.robust_rows())
        rows = self.run.nearest(min(1.0, max(share, _FEW * len(self.run.x) / max(standing, 1))))
        left = self.budget - self.spent.backward
        return rows[: max(0, math.floor(min(len(rows), left / (steps * self.guide.cost))))]

    def ascend(self, loss: Loss, start: Tensor, share: float, steps: int, rows: Tensor | None = None) -> None:
        """Steps of falling size, from ``start`` (N, C, H, W)."""
        run, ascent = self.run, cosine_ascent
        rows = self.affordable(share, steps) if rows is None else rows
        if run.random:
            self.climbs += 1
            ascent = partial(cosine_ascent, noisy=True, momentum=_MOMENTUM * (self.climbs % 2))
        run.maximize(self.guide.objective(run, loss), start, max_iter=steps, rows=rows, ascent=ascent)

    def restart(self, rows: Tensor, target: Tensor | None, index: int, effort: Effort) -> None:
        """Steps on the margin, or towards ``target`` (N,). A few on something else come before them."""
        run, purpose = self.run, f"round {index}"
        start = run.random_starts(purpose)
        if index // 2 % 2 == 0:
            mix = random_mix(run, purpose, self.classes, target)
            with self.guide.view() as view:
                start = diversify(run, start, rows, mix, steps=effort.opening, view=view)
        elif not run.random:
            part = own_alone(run.y) if index // 4 % 2 == 0 else other_alone(run.y, target)
            objective = self.guide.objective(run, part)
            start = run.maximize(objective, start, max_iter=effort.opening, rows=rows, ascent=cosine_ascent)
        loss = margin_loss(run.y) if target is None else targeted_loss(run.y, target)
        self.ascend(loss, start, 1.0, effort.steps, rows[~run.broken[rows]])
