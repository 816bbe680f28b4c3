"""What is measured of a model without attacking it: its gradients at the images, and facts of the module.

Nothing here is a proof of masking: these are the mechanisms by which an attack can fail, each measured where an attack
starts. Nothing here judges either; see :mod:`art_qplugins.diagnostics`. What cannot be measured of an odd model is NaN,
with the reason beside it, so that one odd property does not hide the others.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.base import _to_float32
from art_qplugins.geometry import random_point
from art_qplugins.gradients.counting import counting
from art_qplugins.gradients.fidelity import agreement, gradient, logit_margin, margins, sign_moves
from art_qplugins.gradients.graph import Ledger, blocking_operation, ledger, replaceable_operations
from art_qplugins.guard import evaluating, isolated
from art_qplugins.quantizers.stochastic import draws_from, is_stochastic
from art_qplugins.quantizers.surrogates import surrogate_layers
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Measured", "measure", "same_answers"]

#: Members of a random model that a slope is averaged over, as an attack that averages would; and calls at most for that.
_MEMBERS, _CALLS = 8, 4
#: Further answers that ``flips`` compares with the first.
_PASSES = 5
#: Images that facts of the module are asked on.
_FACTS = 128
#: Rows of the ledger that are kept.
_ROWS = 12


@dataclass(frozen=True)
class Measured:
    """:func:`measure` lists what is in them.

    :param samples: per image, (N,) float64; NaN where it could not be measured.
    :param cell: of the module as a whole; JSON.
    """

    samples: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    cell: dict[str, Any] = field(default_factory=dict)


def measure(
    estimator: QuantizedClassifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    directions: int = 20,
    seed: int = 0,
    batch_size: int = 250,
) -> Measured:
    r"""Everything of level 0, written m for the logit margin, g for its gradient and L for the cross-entropy.

    ==================== ==========================================================================================
    ``gradient``         :math:`\max |dL/dx|` in float32, as an attack computes it
    ``gradient_start``   the same at a random point :math:`x + \eta` of the ball, where attacks with a random start begin
    ``gradient_l2``      :math:`\|dL/dx\|_2` from a float32 sum of squares, which underflows below about 1e-23
    ``gradient_float64`` :math:`\max |dL/dx|` of a float64 copy of the module
    ``gradient_ratio``   :math:`\|dL/dx\| / \|g\|`
    ``fidelity``         correlation of what g predicts with what steps of eps / 4 do, in [-1, 1]
    ``fidelity_eps``     the same for steps of eps
    ``linearity``        largest error of g's predictions for steps of eps, relative to the largest change (Qin et al.
                         2019, eq. 5, over random directions in place of the worst); 0 for a linear model
    ``instability``      mean :math:`|m(x + d) - m(x)| / |m(x)|` over steps of eps / 4, at most 1: I2 of Pintor et al.
                         2022 on the margin, since on a saturated loss it is blind
    ``alignment``        :math:`\cos(g(x), g(x + \eta))` (Andriushchenko & Flammarion 2020, eq. 3)
    ``growth``           :math:`\|g(x + \eta)\| / \|g(x)\|`
    ``imbalance``        the larger of :math:`\|dz_y\|` and :math:`\|dz_j\|` by the smaller, j the best other class
                         (Jiang et al. 2020); of logits less their mean, so that log-probabilities give the same
    ``coherence``        cosine of two g of one pass with other draws each; random modules only
    ``flips``            share of five further answers, with fresh draws, that are another class
    ==================== ==========================================================================================

    A random module is measured as the mean over its draws, the same at every point. The cell says ``reaches_pixels``,
    ``ends_at``, ``guilty``, ``ledger``, ``suspects`` (see :mod:`art_qplugins.gradients.graph`), ``probabilities``,
    ``softmax_like``, ``log_softmax``, ``dynamic``, ``stateful``, ``batch_dependent``, ``training``, ``random``,
    ``quantizers``, ``costs`` in samples per image, and under ``skipped`` why what is missing is missing. Modes,
    parameters, buffers, hooks and random states are as before, also after an exception.

    :param x: (N, C, H, W) in [0, 1], N at least 1; ``y`` (N,) labels.
    :param threat: its eps, above 0, is the length of the steps, and the ball that they stay in.
    :param directions: random directions per image; a random module with few draws takes fewer of them.
    """
    module = estimator.model
    skipped: dict[str, str] = {}
    with counting(module) as counter, _restored(module) as changed:
        facts = _facts(module, x[:_FACTS], y[:_FACTS], seed, changed, skipped)
        calls = _calls(module) if facts["random"] else 1
        few = directions if calls == 1 else max(5, directions // calls)
        start = random_point(x, threat, seed)
        double = _attempt("gradient_float64", lambda: _in_float64(module), skipped)
        parts = []
        for rows in torch.arange(len(x)).split(batch_size):
            images = _Images(module, double, x[rows], y[rows], start[rows], threat, few, seed, calls, facts["random"])
            parts.append(images.measures(skipped))
    samples = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    costs = {"forward": counter.forward / len(x), "backward": counter.backward / len(x)}
    return Measured(samples, {**facts, "costs": costs, "skipped": skipped})


# --- Per image


class _Images:
    """One batch, with what several measures share computed once."""

    def __init__(
        self,
        module: nn.Module,
        double: nn.Module | None,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        threat: Threat,
        directions: int,
        seed: int,
        calls: int,
        varies: bool | None,
    ) -> None:
        self.module, self.double, self.x, self.y, self.start = module, double, x, y, start
        self.threat, self.directions, self.seed, self.calls, self.varies = threat, directions, seed, calls, varies

    def measures(self, skipped: dict[str, str]) -> dict[str, Tensor]:
        found = {}
        for name, work in _MEASURES.items():
            value = None if name in skipped else _attempt(name, partial(work, self), skipped)
            missing = torch.full((len(self.x),), torch.nan, dtype=torch.float64)
            found[name] = missing if value is None else value.detach().double().cpu()
        return found

    def slope(self, score: Callable[[Tensor], Tensor], at: Tensor | None = None, *, calls: int | None = None) -> Tensor:
        point = self.x if at is None else at
        return gradient(self.module, point, score, seed=self.seed, calls=self.calls if calls is None else calls)

    def margin(self, logits: Tensor) -> Tensor:
        return logit_margin(logits, self.y)

    def loss(self, logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, self.y, reduction="none")

    @cached_property
    def ce(self) -> Tensor:
        return self.slope(self.loss, calls=1)

    @cached_property
    def g(self) -> Tensor:
        return self.slope(self.margin)

    @cached_property
    def g_start(self) -> Tensor:
        return self.slope(self.margin, self.start)

    @cached_property
    def moves(self) -> Tensor:
        """Random moves of length eps, (directions, C, H, W)."""
        signs = sign_moves(self.x, self.threat.eps, self.directions, self.seed)
        if self.threat.norm == "Linf":
            return signs
        if self.threat.norm == "L0":
            raise ValueError("steps of eps are not defined in L0")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "directions"))
        ways = torch.randn(signs.shape, generator=generator).to(signs)
        order = {"L2": 2, "L1": 1}[self.threat.norm]
        return self.threat.eps * ways / torch.linalg.vector_norm(ways, ord=order, dim=(1, 2, 3), keepdim=True)

    @cached_property
    def walked(self) -> tuple[Tensor, Tensor]:
        """Margins at the images and after the moves of eps / 4, and of eps: (1 + directions, N) each."""
        moves = torch.cat([self.moves / 4, self.moves])
        m = margins(self.module, self.x, self.y, moves, seed=self.seed, calls=self.calls)
        return m[: 1 + self.directions], torch.cat([m[:1], m[1 + self.directions :]])

    # One method a measure, (N,) each.

    def gradient(self) -> Tensor:
        return self.ce.abs().flatten(1).amax(1)

    def gradient_start(self) -> Tensor:
        return self.slope(self.loss, self.start, calls=1).abs().flatten(1).amax(1)

    def gradient_l2(self) -> Tensor:
        return self.ce.float().flatten(1).square().sum(1).sqrt()

    def gradient_float64(self) -> Tensor:
        if self.double is None:
            raise ValueError("there is no float64 copy")
        return gradient(self.double, self.x.double(), self.loss, seed=self.seed).abs().flatten(1).amax(1)

    def gradient_ratio(self) -> Tensor:
        return _length(self.ce) / _length(self.g)

    def fidelity(self) -> Tensor:
        return agreement(self.g, self.moves / 4, self.walked[0])

    def fidelity_eps(self) -> Tensor:
        return agreement(self.g, self.moves, self.walked[1])

    def linearity(self) -> Tensor:
        m = self.walked[1].double()
        happened = m[1:] - m[0]
        predicted = torch.einsum("nchw,dchw->dn", self.g.double(), self.moves.double())
        return (happened - predicted).abs().amax(0) / happened.abs().amax(0).clamp_min(1e-30)

    def instability(self) -> Tensor:
        m = self.walked[0].double()
        return ((m[1:] - m[0]).abs().mean(0) / m[0].abs().clamp_min(1e-30)).clamp_max(1)

    def alignment(self) -> Tensor:
        return _cosine(self.g, self.g_start)

    def growth(self) -> Tensor:
        return _length(self.g_start) / _length(self.g)

    def imbalance(self) -> Tensor:
        own = self.slope(lambda z: (z - z.mean(1, keepdim=True)).gather(1, self.y[:, None])[:, 0])
        lengths = torch.stack([_length(own), _length(own.double() - self.g.double())])
        return lengths.amax(0) / lengths.amin(0)

    def coherence(self) -> Tensor:
        if not self.varies:
            raise ValueError("the module answers alike with other draws")
        once = [
            gradient(self.module, self.x, self.margin, seed=derive_seed(self.seed, f"coherence/{i}")) for i in range(2)
        ]
        return _cosine(*once)

    def flips(self) -> Tensor:
        answers = torch.stack([_answer(self.module, self.x, self.seed, i).argmax(1) for i in range(_PASSES + 1)])
        return (answers[1:] != answers[0]).double().mean(0)


_MEASURES: dict[str, Callable[[_Images], Tensor]] = {
    name: getattr(_Images, name)
    for name in (
        *("gradient", "gradient_start", "gradient_l2", "gradient_float64", "gradient_ratio", "fidelity"),
        *("fidelity_eps", "linearity", "instability", "alignment", "growth", "imbalance", "coherence", "flips"),
    )
}


def _length(gradients: Tensor) -> Tensor:
    return gradients.double().flatten(1).norm(dim=1)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """0 where either is zero."""
    return (a.double() * b.double()).flatten(1).sum(1) / (_length(a) * _length(b)).clamp_min(1e-300)


def _attempt(name: str, work: Callable[[], Any], skipped: dict[str, str]) -> Any:
    """What ``work`` gives, or ``None`` with the reason noted: a model may do anything when it is asked."""
    try:
        return work()
    except Exception as error:
        skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None


# --- Of the module


def same_answers(a: Tensor, b: Tensor) -> bool:
    """Whether logits differ by rounding only; else the module that gave them is random, or depends on something else."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def _facts(
    module: nn.Module, x: Tensor, y: Tensor, seed: int, changed: Callable[[], list[str]], skipped: dict[str, str]
) -> dict[str, Any]:
    def attempt(name: str, work: Callable[[], Any]) -> Any:
        return _attempt(name, work, skipped)

    with _backwards() as backwards:
        logits = attempt("logits", lambda: _answer(module, x, seed, 0))
    stateful = changed()
    varies = attempt("random", lambda: is_stochastic(module) or not same_answers(logits, _answer(module, x, seed, 1)))
    way = attempt("ledger", lambda: ledger(module, x, y, seed=seed))
    facts = {
        "dynamic": bool(backwards),
        "stateful": stateful,
        "random": varies,
        "training": _training(module),
        "quantizers": len(surrogate_layers(module)),
        "replaceable": attempt("replaceable", lambda: list(replaceable_operations(module, x, seed=seed))),
        **_way_facts(way),
        **_output_facts(logits),
        "batch_dependent": None,
    }
    if logits is not None and len(x) >= 3:
        depends = partial(_leak, module, x, seed) if varies else partial(_batch_dependence, module, x, seed, logits)
        facts["batch_dependent"] = attempt("batch_dependent", depends)
    return facts


def _way_facts(way: Ledger | None) -> dict[str, Any]:
    if way is None:
        return {"reaches_pixels": None, "ends_at": None, "blocking": None, "ledger": []}
    worst = blocking_operation(way)
    rows = sorted(way.rows, key=lambda r: (-r.zeroed, r.ratio if math.isfinite(r.ratio) else math.inf))[:_ROWS]
    return {
        "reaches_pixels": way.reaches_pixels,
        "ends_at": way.ends_at,
        "blocking": worst and {"layer": worst.layer, "op": worst.op, "share": worst.zeroed},
        "ledger": [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows],  # JSON has no NaN
    }


def _output_facts(logits: Tensor | None) -> dict[str, Any]:
    """What the outputs look like. Probabilities by AutoAttack's rule; times a constant, or their logarithm, by ours."""
    if logits is None:
        return {"probabilities": None, "softmax_like": None, "log_softmax": None}
    z = logits.double()
    low, high, totals = float(z.min()), float(z.max()), z.sum(1)
    total = float(totals.mean())
    return {
        "probabilities": low > -1e-5 and high < 1 + 1e-5 and bool(((totals - 1).abs() < 1e-5).all()),
        "softmax_like": low >= 0 and total > 0 and bool(((totals / total - 1).abs() < 1e-4).all()),
        "log_softmax": high <= 1e-5 and bool((z.logsumexp(1).abs() < 1e-4).all()),
    }


def _batch_dependence(module: nn.Module, x: Tensor, seed: int, logits: Tensor) -> float:
    """Largest change of an image's logits when it is asked among others, relative to the largest logit; 0 but for rounding."""
    halves = torch.cat([_answer(module, part, seed, 0) for part in (x[::2], x[1::2])])
    whole = torch.cat([logits[::2], logits[1::2]])
    return float((halves - whole).abs().max() / whole.abs().max().clamp_min(1e-30))


def _leak(module: nn.Module, x: Tensor, seed: int) -> float | None:
    """The same of a random module, whose logits differ anyway: the gradient of one half of a batch in the other's pixels.

    Relative to that in its own; exactly 0 where each image is answered by itself. ``None`` where there is no gradient.
    """
    found = gradient(module, x, lambda z: z[::2].square().sum(1), seed=seed)
    own, other = (float(part.double().norm()) for part in (found[::2], found[1::2]))
    return other / own if own > 0 else None


def _training(module: nn.Module) -> list[str]:
    """Submodules that their own ``eval()`` leaves in train mode."""
    with evaluating(module):
        module.eval()
        return [name or type(module).__name__ for name, part in module.named_modules() if part.training]


def _calls(module: nn.Module) -> int:
    """Calls that a slope of a random module is averaged over."""
    passes: Callable[[bool], int] = getattr(module, "passes", lambda requires_grad: 1)
    return min(_CALLS, math.ceil(_MEMBERS / passes(True)))


@torch.no_grad()
def _answer(module: nn.Module, x: Tensor, seed: int, number: int) -> Tensor:
    """Logits with the draws of this number."""
    drawn = derive_seed(seed, f"answer/{number}")
    with isolated(module, drawn), draws_from(module, drawn):
        return module(x)  # type: ignore[no-any-return]


def _in_float64(module: nn.Module) -> nn.Module:
    double = copy.deepcopy(module).double()
    for part in double.modules():  # the estimator's own cast would undo it
        for key, hook in list(part._forward_pre_hooks.items()):
            if hook is _to_float32:
                del part._forward_pre_hooks[key]
    return double


@contextlib.contextmanager
def _backwards() -> Iterator[list[None]]:
    """One entry for each backward pass that runs within, whoever asks and by whatever name.

    AutoAttack looks for the same by a trace function, which ends coverage and debuggers.
    """
    found: list[None] = []
    engine = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run(*args: Any, **kwargs: Any) -> Any:
        found.append(None)
        return engine(*args, **kwargs)

    torch.autograd._engine_run_backward = run  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        torch.autograd._engine_run_backward = engine  # type: ignore[attr-defined]


@contextlib.contextmanager
def _restored(module: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Parameters and buffers are as before afterwards. Gives a function that lists which are not, so far."""
    tables = [(name, table) for name, part in module.named_modules() for table in (part._parameters, part._buffers)]
    before = [(name, table, dict(table)) for name, table in tables]
    values = {id(t): t.detach().clone() for _, _, old in before for t in old.values() if t is not None}

    def kept(old: Tensor | None, new: Tensor | None) -> bool:
        if old is None or new is None:
            return old is new
        was = values[id(old)]
        return was.shape == new.shape and bool(((was == new) | (was.isnan() & new.isnan())).all())

    def changed() -> list[str]:
        found = [
            f"{path}.{key}".lstrip(".")
            for path, table, old in before
            for key in table
            if not kept(old.get(key), table[key])
        ]
        return sorted(set(found))

    try:
        yield changed
    finally:
        with torch.no_grad():
            for _, table, old in before:
                table.clear()
                table.update(old)
                for tensor in old.values():
                    if tensor is not None and not kept(tensor, tensor):
                        tensor.copy_(values[id(tensor)])
