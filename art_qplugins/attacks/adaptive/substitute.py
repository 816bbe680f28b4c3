"""A substitute distilled from the answers of a network that no gradient can enter, and an attack through it.

Papernot et al. 2017, "Practical black-box attacks against machine learning": a small network is fitted to the answers at the
images of the run, at points around them, and at the points that the substitute itself takes for adversarial. These rounds
teach it the boundary where the attack needs it. Points are made on the substitute and judged by the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.objectives import Loss, direct, margin_loss, targeted_loss
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.adaptive.search import search
from art_qplugins.deployment.distil import fit_answers, small_network
from art_qplugins.seeds import derive_seed

__all__ = ["attack_substitute"]

_VALUES = 2**27  # pixels of all questions together
_STEPS = 4  # of a quarter of eps
_FARTHEST = 4.0  # questions, from the images and from adversarial points, in units of eps


def attack_substitute(run: AttackRun, *, rounds: int, points: int, steps: int, targets: int, n_queries: int) -> None:
    """Fit a substitute in ``rounds``, attack through it after each, and in the end towards each of ``targets`` classes.

    :param points: questions per image and round.
    :param n_queries: forward passes per image of the random search at the end.
    :param steps: steps of Adam in a round, with batches of 128.
    """
    order = run.nearest_classes()
    lesson = _Lesson(run, order.shape[1] + 1, rounds, steps)
    centres = run.x
    for index in range(rounds):
        rows = run.robust_rows()
        if not len(rows):
            return
        lesson.ask(rows, centres, points)
        lesson.learn()
        loss = targeted_loss(run.y, order[:, index % order.shape[1]])
        centres = _descend(run, lesson.substitute, loss, f"round {index}")
    for index in range(targets + 1):
        if not len(run.robust_rows()):
            return
        target = order[:, index % order.shape[1]]
        loss = targeted_loss(run.y, target) if index < targets else margin_loss(run.y)
        _descend(run, lesson.substitute, loss, f"target {index}")
    search(run, n_queries)


def _descend(run: AttackRun, substitute: nn.Module, loss: Loss, purpose: str) -> Tensor:
    """The points that a pass on the substitute reaches. The network judges them."""
    reached = run.maximize(direct(substitute, run.y, loss, deployed=False), run.starts(purpose), deployed=False)
    rows = run.robust_rows()
    run.judge(rows, reached[rows])
    return reached


class _Lesson:
    """Questions and answers so far, and the substitute that is fitted to them."""

    def __init__(self, run: AttackRun, classes: int, rounds: int, steps: int) -> None:
        self.run, self.rounds, self.steps = run, rounds, steps
        seed = derive_seed(run.seed, "substitute")
        with torch.random.fork_rng([run.x.device] if run.x.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.substitute = small_network(tuple(run.x.shape[1:]), classes).to(run.x.device)
        self.random = torch.Generator().manual_seed(seed)
        self.questions: list[Tensor] = []
        self.answers: list[Tensor] = []

    def ask(self, rows: Tensor, centres: Tensor, points: int) -> None:
        """Ask the network about ``points`` points for each of these rows, around its image and around its centre in turn.

        They are at random corners and at random places of a cube. Far points teach more than near ones, because they are on
        both sides of more boundaries.
        """
        run = self.run
        most = _VALUES // (self.rounds * run.x.numel())
        for number in range(max(1, min(points, most))):
            centre = run.x[rows] if number % 2 else centres[rows]
            size = _FARTHEST * torch.rand(len(rows), 1, 1, 1, generator=self.random)
            noise = torch.rand(centre.shape, generator=self.random) * 2 - 1
            if number % 4 < 2:
                noise = noise.sign()
            question = (centre + (_STEPS * run.pixel_step() * size * noise).to(centre)).clamp(0, 1)
            self.questions.append(question)
            self.answers.append(run.logits(question))

    def learn(self) -> None:
        """Fit the substitute to all answers."""
        x, answers = torch.cat(self.questions), torch.cat(self.answers)
        fit_answers(self.substitute, x, answers, steps=self.steps, random=self.random)
