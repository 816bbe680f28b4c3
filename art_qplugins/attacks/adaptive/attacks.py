"""Adaptive attacks on quantized and random networks: one loop, Auto-PGD, over objectives that no library has.

The loop is that of Croce & Hein 2020 ("Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", algorithm 1), image by image: a deterministic network's image leaves it with the first point
that is misclassified. A random network's does not, since one draw proves nothing; there the image with the best mean
margin over draws that no step saw is kept. What is climbed lives in ``objectives``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.objectives import (
    Answer,
    Objective,
    averaged,
    direct,
    drawing,
    evaluate,
    margin_loss,
    mixed,
    rescaled,
    targeted_loss,
)
from art_qplugins.attacks.adaptive.scalings import SCALINGS
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.attacks.views import Smoothed, StraightThroughSteps, other_bits, shadow
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.fidelity import fidelity
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.repair import GradientRepair
from art_qplugins.gradients.replaceable import replaceable_operations
from art_qplugins.quantizers.activation import check_num_bits
from art_qplugins.quantizers.stochastic import is_stochastic
from art_qplugins.quantizers.surrogates import SURROGATES, surrogate, surrogate_layers
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["ascend", "run"]

_MOMENTUM = 0.75  # alpha of algorithm 1
_RHO = 0.75  # the share of steps that must improve the loss between two checkpoints
_SELECTION = 16  # calls of a random network that decide which image is kept
_TRIED = 8  # images on which a network is found to be random
_SAMPLE = 64  # images on which fidelity and the number of draws are found
_CALLS = 4  # of a random network for its fidelity
_GROWTH = (1, 4, 8, 16, 32)  # draws for a mean gradient, until two of them agree ...
_AGREEMENT = 0.6  # ... by this cosine


# --- The loop


@dataclass
class _Climb:
    """The images that are still climbed; every field has one row for each."""

    rows: Tensor
    x: Tensor
    point: Tensor
    before: Tensor  # the point one step earlier
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    size: Tensor  # of the step
    ups: Tensor  # steps since the checkpoint that improved the loss
    halved: Tensor  # whether the last checkpoint halved the step
    checked: Tensor  # the best loss at the last checkpoint

    @classmethod
    def begin(cls, answer: Answer, x: Tensor, start: Tensor, rows: Tensor, size: float) -> _Climb:
        loss, gradient = answer.loss, answer.gradient
        return cls(
            rows=rows,
            x=x,
            point=start,
            before=start,
            gradient=gradient,
            loss=loss,
            best=start,
            best_loss=loss,
            best_gradient=gradient,
            size=torch.full_like(loss, size),
            ups=torch.zeros_like(loss),
            halved=torch.ones_like(loss, dtype=torch.bool),
            checked=loss,
        )

    def select(self, mask: Tensor | None) -> _Climb:
        if mask is None or bool(mask.all()):
            return self
        return _Climb(**{f.name: getattr(self, f.name)[mask] for f in dataclasses.fields(self)})

    def move(self, threat: Threat, momentum: float) -> None:
        """Equations of algorithm 1, lines 7 and 8; every point is in the ball and in [0, 1]."""
        toward = _project(self.point + _wide(self.size) * _direction(self.gradient, threat.norm), self.x, threat)
        path = self.point + momentum * (toward - self.point) + (1 - momentum) * (self.point - self.before)
        self.point, self.before = _project(path, self.x, threat), self.point

    def take(self, answer: Answer) -> None:
        self.ups = self.ups + (answer.loss > self.loss)
        self.loss, self.gradient = answer.loss, answer.gradient
        better = answer.loss > self.best_loss
        self.best_loss = torch.where(better, answer.loss, self.best_loss)
        self.best = torch.where(_wide(better), self.point, self.best)
        self.best_gradient = torch.where(_wide(better), answer.gradient, self.best_gradient)

    def check(self, steps: int) -> None:
        """Halve the step, and go back to the best point, where one of the two conditions of section 3.1 holds."""
        stuck = ~self.halved & (self.checked >= self.best_loss)
        self.halved = (self.ups < _RHO * steps) | stuck
        self.checked, self.ups = self.best_loss, torch.zeros_like(self.ups)
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.point = torch.where(_wide(self.halved), self.best, self.point)
        self.gradient = torch.where(_wide(self.halved), self.best_gradient, self.gradient)


def ascend(
    objective: Objective,
    x: Tensor,
    start: Tensor,
    rows: Tensor,
    *,
    threat: Threat,
    max_iter: int,
    note: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Auto-PGD on a batch: the rows that are left at the end, and the best point of each by the loss.

    At most ``max_iter`` gradients an image, and one forward pass more.

    :param x: (n, C, H, W) in [0, 1], the centres of the balls.
    :param start: legal images.
    :param rows: (n,) which images of the run these are.
    :param note: called as ``note(rows, points, margin)`` wherever the objective knows the deployed network's margin;
        says (n,) bool which images go on. ``None``: all go on to the end.
    """

    def standing(answer: Answer) -> Tensor | None:
        return None if note is None or answer.margin is None else note(state.rows, state.point, answer.margin)

    answer = objective(start, rows, step=0)
    state = _Climb.begin(answer, x, start, rows, 2 * threat.eps)
    state = state.select(standing(answer))
    checkpoints, last = _checkpoints(max_iter), 0
    for step in range(1, max_iter + 1):
        if not len(state.rows):
            break
        state.move(threat, 1.0 if step == 1 else _MOMENTUM)
        answer = objective(state.point, state.rows, step=step, slope=step < max_iter)
        state.take(answer)
        mask = standing(answer)
        if step in checkpoints:
            state.check(step - last)
            last = step
        state = state.select(mask)
    return state.rows, state.best


def _checkpoints(max_iter: int) -> set[int]:
    """The steps w_j = ceil(p_j max_iter) of section 3.1: p_1 = 0.22, then intervals shorter by 0.03, at least 0.06."""
    percent, interval, steps = 22, 22, set()  # whole numbers, which rounding cannot push over a step
    while percent < 100:
        steps.add(-(-percent * max_iter // 100))
        interval = max(interval - 3, 6)
        percent += interval
    return steps


def _wide(values: Tensor) -> Tensor:
    """(n,) to broadcast over images (n, C, H, W)."""
    return values[:, None, None, None]


def _length(images: Tensor) -> Tensor:
    """L2 norm of each image, (n, 1, 1, 1)."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of length 1 in the norm; zero where the gradient is."""
    if norm == "Linf":
        return gradient.sign()
    # First by the largest entry, so that squares neither overflow nor underflow.
    scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / _length(scaled).clamp_min(1e-12)


def _project(points: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Into the ball around ``x`` and into [0, 1]. In L2 one after the other, which is legal though not the nearest."""
    change = points - x
    if threat.norm == "Linf":
        change = change.clamp(-threat.eps, threat.eps)
    else:
        change = change * (threat.eps / _length(change).clamp_min(1e-12)).clamp_max(1)
    return (x + change).clamp(0, 1)


# --- A run: several passes of the loop over the images that still stand


@dataclass
class _Run:
    """The images of one attack, and for each the best adversarial image so far."""

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    batch_size: int
    seed: int
    max_iter: int
    start: Tensor | None
    random: bool
    image: Tensor = field(init=False)
    margin: Tensor = field(init=False)  # the deployed network's at ``image``; of a random one, its mean

    def __post_init__(self) -> None:
        self.image = (self.x if self.start is None else self.start).clone()
        self.margin = torch.full(self.y.shape, torch.inf, device=self.x.device)
        if self.random and self.start is not None:  # the attack may end worse than it began
            for rows in self.everything().split(self.batch_size):
                self.note(rows, self.start[rows], self._selected(rows, self.start[rows]))

    def everything(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)

    def pixel_step(self) -> float:
        """A quarter of eps: in L2, the size of that step in each pixel where all change alike."""
        return self.threat.eps / 4 / (1 if self.threat.norm == "Linf" else math.sqrt(self.x[0].numel()))

    def standing(self) -> Tensor:
        """Rows of the images that are not broken. Of a random network, all: no number of draws proves a break."""
        return self.everything() if self.random else self.everything()[~(self.margin < 0)]

    def starts(self, purpose: str) -> Tensor:
        """The images to start from that were given, or random ones, uniform in the cube or on the sphere."""
        if self.start is not None:
            return self.start
        generator = torch.Generator().manual_seed(derive_seed(self.seed, f"start/{purpose}"))
        if self.threat.norm == "Linf":
            noise = torch.rand(self.x.shape, generator=generator) * 2 - 1
        else:
            noise = _direction(torch.randn(self.x.shape, generator=generator), "L2")
        return _project(self.x + self.threat.eps * noise.to(self.x), self.x, self.threat)

    def ascend(self, objective: Objective, start: Tensor, *, deployed: bool = True) -> Tensor:
        """One pass of the loop over what stands; gives the points (N, C, H, W), ``start`` where there is no other.

        :param deployed: whether the module is as it is deployed, so that its answers decide what is kept.
        """
        reached = start.clone()
        note = self.note if deployed and not self.random else None
        standing = self.standing()
        for rows in standing.split(self.batch_size) if len(standing) else ():
            left, best = ascend(
                objective, self.x[rows], start[rows], rows, threat=self.threat, max_iter=self.max_iter, note=note
            )
            reached[left] = best
            if deployed and self.random:
                self.note(left, best, self._selected(left, best))
        return reached

    def note(self, rows: Tensor, points: Tensor, margin: Tensor) -> Tensor:
        """Keep these points where they are the best so far; says (n,) which images still stand."""
        better = margin < self.margin[rows]
        self.image[rows[better]] = points[better]
        self.margin[rows[better]] = margin[better]
        return ~(margin < 0)

    def logits(self, points: Tensor) -> Tensor:
        """(N, classes), in batches, without a gradient."""
        with torch.no_grad():
            return torch.cat([self.module(part) for part in points.split(self.batch_size)])

    def _selected(self, rows: Tensor, points: Tensor) -> Tensor:
        """The mean margin over draws that are the same for all candidates, and that no step of the loop saw."""
        with torch.no_grad(), drawing(self.module, derive_seed(self.seed, "selection"), points.device):
            margins = [logit_margin(self.module(points), self.y[rows]) for _ in range(_SELECTION)]
        return torch.stack(margins).mean(0)


def _is_random(module: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether it has stochastic layers, or answers otherwise when the global generators are seeded otherwise."""
    if is_stochastic(module):
        return True
    answers = []
    for purpose in ("tried", "tried again"):
        with torch.no_grad(), drawing(module, derive_seed(seed, purpose), x.device):
            answers.append(module(x[:_TRIED]))
    tolerance = 1e-4 * float(answers[0].abs().amax()) if len(x) else 0.0
    return not torch.allclose(answers[0], answers[1], rtol=0, atol=tolerance, equal_nan=True)


# --- The attacks

#: A context that gives a network.
_View = Callable[[], AbstractContextManager[nn.Module]]


def _apgd_margin(run: _Run, options: dict[str, Any]) -> None:
    run.ascend(direct(run.module, run.y, margin_loss(run.y)), run.starts("margin"))


def _multi_targeted(run: _Run, options: dict[str, Any]) -> None:
    """Each of the nearest classes is the target once, of the images that still stand (Gowal et al. 2019)."""
    _aim(run, run.module, _whole(run, "targets", options["targets"]))


def _aim(run: _Run, view: nn.Module, targets: int) -> None:
    """One pass towards each of the ``targets`` nearest classes along the gradient of ``view``."""
    logits = run.logits(run.image)
    if not run.random:
        run.note(run.everything(), run.image, logit_margin(logits, run.y))
    order = logits.scatter(1, run.y[:, None], -torch.inf).argsort(1, descending=True)
    for index in range(min(targets, logits.shape[1] - 1)):
        loss = targeted_loss(run.y, order[:, index])
        run.ascend(direct(view, run.y, loss), run.starts(f"target {index}"))


def _rescaled(run: _Run, options: dict[str, Any]) -> None:
    """Cross-entropy of the logits times a number (PGD++, Gupta & Ajanthan 2022), or times 5 over their gap."""
    chosen, start = options["scaling"], run.starts("rescaled")
    if chosen not in SCALINGS:
        raise InputError(f"{run.name}: unknown scaling {chosen!r}{did_you_mean(chosen, SCALINGS)}")
    scale = SCALINGS[chosen](run.module, run.x, run.y, start)
    run.ascend(rescaled(run.module, run.y, scale), start)


def _surrogates(run: _Run, options: dict[str, Any]) -> None:
    """One pass for each way back through the quantizers, on what still stands, from the best point so far.

    Then one towards each of the ``targets`` nearest classes by the most faithful of them.
    """
    offered, wanted = _kinds(run), options["kinds"]
    for kind in wanted:
        if kind not in offered:
            known = f"{did_you_mean(str(kind), offered)}; here apply {', '.join(offered)}"
            raise InputError(f"{run.name}: kinds has {kind!r}, which does not apply{known}")
    start, order, targets = run.starts("surrogates"), wanted or _by_fidelity(run, offered), options["targets"]
    for kind in order:
        with offered[kind]() as view:
            run.ascend(direct(view, run.y, margin_loss(run.y)), start)
        start = run.image
    if targets:
        with offered[order[0]]() as view:
            _aim(run, view, _whole(run, "targets", targets))


def _kinds(run: _Run) -> dict[str, _View]:
    """The surrogate gradients that this network can have; each a context that gives a view with the same answers."""
    module = run.module
    kinds: dict[str, _View] = {"as-is": _always(module)}
    settings = [layer.surrogate for layer in surrogate_layers(module)]
    for kind in SURROGATES if settings else ():
        # None is straight-through, so where nothing else was chosen that is what "as-is" does.
        if kind != "straight-through" or any(settings):
            kinds[kind] = partial(_with_surrogate, module, kind)
    kinds["revived"] = _always(GradientRepair(module))
    if named := replaceable_operations(module, run.x, seed=run.seed):
        kinds["straight"] = _always(GradientRepair(module, straight=named))
    if {"SignBackward0", "SgnBackward0"} & {*named}:
        kinds["clipped"] = _always(StraightThroughSteps(module))
    kinds["smoothed"] = _always(Smoothed(module, run.pixel_step(), seed=run.seed))
    return kinds


def _always(network: nn.Module) -> _View:
    return lambda: nullcontext(network)


@contextlib.contextmanager
def _with_surrogate(module: nn.Module, kind: str) -> Iterator[nn.Module]:
    with surrogate(module, kind):
        yield module


def _by_fidelity(run: _Run, kinds: Mapping[str, _View]) -> list[str]:
    x, y, scores = run.x[:_SAMPLE], run.y[:_SAMPLE], {}
    for kind, context in kinds.items():
        with context() as view:
            found = fidelity(
                view, x, y, step=run.pixel_step(), directions=10, seed=run.seed, calls=_CALLS if run.random else 1
            )
        scores[kind] = float(found.nan_to_num(nan=-1.0).quantile(0.5))
    return sorted(kinds, key=lambda kind: -scores[kind])


def _shadow(run: _Run, options: dict[str, Any]) -> None:
    """The shadow first, where gradients are smooth, then the network itself from there (Athalye et al. 2018, BPDA)."""
    loss = margin_loss(run.y)
    with shadow(run.module, run.x):
        reached = run.ascend(direct(run.module, run.y, loss, deployed=False), run.starts("shadow"), deployed=False)
    run.ascend(direct(run.module, run.y, loss), reached)


def _bits(run: _Run, options: dict[str, Any]) -> None:
    """The mean loss over bit widths, against the shift of values between them (Bernhard et al. 2019); then as above."""
    widths, loss = options["bits"], margin_loss(run.y)
    if not widths:
        raise InputError(f"{run.name}: bits is empty; give at least one width, e.g. [2, 3, 4, 8]")
    part = direct(run.module, run.y, loss, deployed=False)
    contexts = [partial(other_bits, run.module, check_num_bits(b, name=f"{run.name}: bits")) for b in widths]
    ensemble = mixed([(1 / len(widths), context, part) for context in contexts])
    reached = run.ascend(ensemble, run.starts("bits"), deployed=False)
    run.ascend(direct(run.module, run.y, loss), reached)


def _joint(run: _Run, options: dict[str, Any]) -> None:
    """lambda L_q + (1 - lambda) L_shadow, for each lambda in turn on what still stands."""
    loss, start = margin_loss(run.y), run.starts("joint")
    for weight in options["weights"]:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise InputError(f"{run.name}: weights has {weight!r}; give numbers from 0 to 1, e.g. [0.5]")
    for weight in options["weights"]:
        real = direct(run.module, run.y, loss)
        behind = direct(run.module, run.y, loss, deployed=False)
        both = mixed([(weight, nullcontext, real), (1 - weight, partial(shadow, run.module, run.x), behind)])
        run.ascend(both, start)
        start = run.image


def _eot(run: _Run, options: dict[str, Any]) -> None:
    """Auto-PGD on the mean margin of a random network, by mean gradients of fresh draws."""
    if not run.random:
        raise InputError(
            f"{run.name}: {type(run.module).__name__} gives the same answer every time; use artq:apgd-margin"
        )
    draws = options["eot_iter"]
    draws = _needed_draws(run) if draws is None else _whole(run, "eot_iter", draws)
    run.ascend(averaged(run.module, run.y, draws=draws, seed=run.seed), run.starts("eot"))


def _needed_draws(run: _Run) -> int:
    """The fewest draws whose mean gradient agrees with that of as many others: median cosine of at least 0.6.

    The cosine with the true mean is then about its root, 0.77. A sum of a few draws is mostly noise.
    """
    x, y = run.x[:_SAMPLE], run.y[:_SAMPLE]
    for draws in _GROWTH:
        halves = []
        for half in ("one half", "other half"):
            with drawing(run.module, derive_seed(run.seed, f"{half}/{draws}"), x.device):
                found = [evaluate(run.module, x, lambda z: -logit_margin(z, y))[2] for _ in range(draws)]
            halves.append(torch.stack(found).mean(0).flatten(1))
        if float(nn.functional.cosine_similarity(halves[0], halves[1]).quantile(0.5)) >= _AGREEMENT:
            break
    return draws


def _whole(run: _Run, option: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{run.name}: {option} is {value!r}; give a whole number of at least 1")
    return value


_ATTACKS: dict[str, Callable[[_Run, dict[str, Any]], None]] = {
    "apgd_margin": _apgd_margin,
    "multi_targeted": _multi_targeted,
    "rescaled": _rescaled,
    "surrogates": _surrogates,
    "shadow": _shadow,
    "bits": _bits,
    "joint": _joint,
    "eot": _eot,
}


def run(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: dict[str, Any],
    batch_size: int,
    seed: int,
    start: Tensor | None = None,
) -> Tensor:
    """Images as close to misclassification as the attack got; each is legal.

    :param start: legal images to start from in place of random ones.
    """
    if start is not None and start.shape != x.shape:
        raise InputError(f"{attack.name}: start is {tuple(start.shape)} and the images {tuple(x.shape)}; give one each")
    random = _is_random(estimator.model, x, seed)
    state = _Run(attack.name, estimator.model, x, y, threat, batch_size, seed, options["max_iter"], start, random)
    _whole(state, "max_iter", state.max_iter)
    _ATTACKS[attack.upstream](state, options)
    return state.image
