"""The adaptive attacks as a table. Each defines the objective that Auto-PGD maximizes and its starting points.

An attack is called with a run and the resolved options. The run keeps the best images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from art_qplugins.attacks.adaptive.diversified import diversified
from art_qplugins.attacks.adaptive.draws import needed_draws
from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits
from art_qplugins.attacks.adaptive.objectives import (
    Loss,
    Objective,
    averaged,
    direct,
    evaluate,
    frozen,
    margin_loss,
    mixed,
    rescaled,
    targeted_loss,
    through,
    watched,
)
from art_qplugins.attacks.adaptive.repaired_gradients import View, by_fidelity, current_kind, repaired_gradients
from art_qplugins.attacks.adaptive.run import AttackRun, other_classes
from art_qplugins.attacks.adaptive.scalings import SCALINGS
from art_qplugins.attacks.adaptive.search import search
from art_qplugins.attacks.adaptive.substitute import attack_substitute
from art_qplugins.attacks.adaptive.worst_case import EFFORTS, worst_case
from art_qplugins.domains import BITS, check
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.saturation import before_saturation

__all__ = ["ADAPTIVE"]

_SAMPLE = 64  # images on which it is found out whether there is a gradient
_AS_FAITHFUL = 0.8  # of the best fidelity is nearly as faithful

Options = Mapping[str, Any]


def _ascent(run: AttackRun, view: nn.Module, loss: Loss, draws: int) -> Objective:
    """A loss of the outputs of a view, its mean over ``draws`` where there are several. A twin has outputs of its own."""
    if draws > 1:
        return averaged(view, loss, draws=draws, seed=run.seed)
    return through(view, run.y, loss)


def _apgd_margin(run: AttackRun, options: Options) -> None:
    run.maximize(direct(run.module, run.y, margin_loss(run.y)), run.starts("margin"))


def _multi_targeted(run: AttackRun, options: Options) -> None:
    """Multi-targeted attack (Gowal et al. 2019): one pass towards each of the nearest classes, on images still robust."""
    _aim(run, run.module, options["targets"], options["eot_iter"] if run.random else 1)


def _aim(run: AttackRun, view: nn.Module, targets: int, draws: int, *, fresh: bool = False) -> None:
    """One pass towards each of the ``targets`` nearest classes along the gradient of ``view``, a mean over ``draws``.

    :param fresh: from random points, even where a start is given.
    """
    order = run.nearest_classes()
    for index in range(min(targets, order.shape[1])):
        purpose = f"target {index}"
        start = run.random_starts(f"fresh {purpose}") if fresh else run.starts(purpose)
        run.maximize(_ascent(run, view, targeted_loss(run.y, order[:, index]), draws), start)


def _diversified(run: AttackRun, options: Options) -> None:
    diversified(run, options["restarts"])


def _substitute(run: AttackRun, options: Options) -> None:
    attack_substitute(run, **{name: options[name] for name in ("rounds", "points", "steps", "targets", "n_queries")})


def _worst_case(run: AttackRun, options: Options) -> None:
    budget = options["budget"]
    worst_case(run, EFFORTS[options["effort"]], budget=math.inf if budget is None else budget)


def _rescaled(run: AttackRun, options: Options) -> None:
    """Cross-entropy of the logits times a number (PGD++, Gupta & Ajanthan 2022), or times 5 over their gap."""
    start = run.starts("rescaled")
    scale = SCALINGS[options["scaling"]](run.module, run.x, run.y, start)
    run.maximize(rescaled(run.module, run.y, scale), start)


def _surrogates(run: AttackRun, options: Options) -> None:
    """One pass of Auto-PGD for each other backward pass, on the images still robust, from their best points so far.

    Then a targeted pass on each of the ``targets`` nearest classes through every backward pass that is nearly as faithful as
    the best, or named in ``kinds``, from the best points and then from random ones. The gradients of a random network are
    means over draws.
    """
    offered, wanted = repaired_gradients(run), [current_kind(kind) for kind in options["kinds"]]
    for kind in wanted:
        if kind not in offered:
            known = f"{did_you_mean(str(kind), offered)}; here apply {', '.join(offered)}"
            raise InputError(f"{run.name}: kinds has {kind!r}, which does not apply{known}")
    start, fidelities = run.starts("surrogates"), {} if wanted else by_fidelity(run, offered)
    # A gradient that misleads is at least a gradient, and a pass needs one.
    order = [str(kind) for kind in wanted] or sorted(fidelities, key=lambda kind: _dead(run, offered[kind]))
    draws = {}
    for name in order:
        with offered[name]() as view:
            draws[name] = needed_draws(run, view) if run.random else 1
            run.maximize(_ascent(run, view, margin_loss(run.y), draws[name]), start)
        start = run.image
    if not options["targets"]:
        return
    least = _AS_FAITHFUL * fidelities.get(order[0], 0.0)
    nearly = [name for name in order if wanted or name == order[0] or fidelities[name] >= least > 0]
    for fresh in (False, True):
        for name in nearly:
            with offered[name]() as view:
                _aim(run, view, options["targets"], draws[name], fresh=fresh)


def _dead(run: AttackRun, context: View) -> bool:
    """Whether no image of a sample has a gradient in a view."""
    with context() as view:
        return not bool(evaluate(view, run.x[:_SAMPLE], lambda logits: logit_margin(logits, run.y[:_SAMPLE]))[2].any())


def _unsaturated(run: AttackRun, options: Options) -> None:
    """Attack the tensor before the saturation: its margin, each of the nearest classes, then by random search from there."""
    view = before_saturation(run.module, run.x, radius=4 * run.pixel_step(), seed=run.seed)
    if view is None:
        raise InputError(f"{run.name}: the logits of {type(run.module).__name__} do not saturate; use artq:apgd-margin")
    run.maximize(watched(view, run.y, margin_loss(run.y)), run.starts("unsaturated"))
    with torch.no_grad():
        inner = torch.cat([view(part) for part in run.image.split(run.batch_size)])
    order = other_classes(inner, run.y)
    for index in range(min(options["targets"], order.shape[1])):
        run.maximize(watched(view, run.y, targeted_loss(run.y, order[:, index])), run.starts(f"target {index}"))
    search(run, options["n_queries"], view)


def _search(run: AttackRun, options: Options) -> None:
    search(run, options["n_queries"])


def _full_precision(run: AttackRun, options: Options) -> None:
    """Attack the full-precision twin, then the network from there (BPDA, Athalye et al. 2018)."""
    loss = margin_loss(run.y)
    with full_precision(run.module, run.x):
        twin = direct(run.module, run.y, loss, deployed=False)
        reached = run.maximize(twin, run.starts("shadow"), deployed=False)
    run.maximize(direct(run.module, run.y, loss), reached)


def _bits(run: AttackRun, options: Options) -> None:
    """Attack the mean loss over bit widths, then the network from there.

    The mean counters the quantization value shift between bit widths (Bernhard et al. 2019).
    """
    widths, loss = options["bits"], margin_loss(run.y)
    part = direct(run.module, run.y, loss, deployed=False)
    contexts = [partial(other_bits, run.module, check(f"{run.name}: bits", b, BITS)) for b in widths]
    ensemble = mixed([(1 / len(widths), context, part) for context in contexts])
    reached = run.maximize(ensemble, run.starts("bits"), deployed=False)
    run.maximize(direct(run.module, run.y, loss), reached)


def _joint(run: AttackRun, options: Options) -> None:
    """Maximize w L + (1 - w) L_twin for each weight w in turn, on the images still robust."""
    loss, start = margin_loss(run.y), run.starts("joint")
    for weight in options["weights"]:
        own = direct(run.module, run.y, loss)
        twin = direct(run.module, run.y, loss, deployed=False)
        both = mixed([(weight, nullcontext, own), (1 - weight, partial(full_precision, run.module, run.x), twin)])
        run.maximize(both, start)
        start = run.image


def _eot(run: AttackRun, options: Options) -> None:
    """EOT: maximize the mean margin of a random network along mean gradients over fresh draws."""
    if not run.random:
        raise InputError(f"{run.name}: {type(run.module).__name__} is deterministic; use artq:apgd-margin")
    draws = options["eot_iter"]
    draws = needed_draws(run, run.module) if draws is None else draws
    run.maximize(averaged(run.module, margin_loss(run.y), draws=draws, seed=run.seed), run.starts("eot"))


def _frozen_seed(run: AttackRun, options: Options) -> None:
    """Maximize the margin of one draw, the same at every step: the attacker knows one member, and others are deployed."""
    if not run.random:
        raise InputError(f"{run.name}: {type(run.module).__name__} is deterministic; use artq:apgd-margin")
    run.maximize(frozen(run.module, margin_loss(run.y), seed=run.seed), run.starts("frozen"))


#: Keys are the ``upstream`` of the rows in the catalogue.
ADAPTIVE: dict[str, Callable[[AttackRun, Options], None]] = {
    "apgd_margin": _apgd_margin,
    "multi_targeted": _multi_targeted,
    "diversified": _diversified,
    "substitute": _substitute,
    "rescaled": _rescaled,
    "surrogates": _surrogates,
    "unsaturated": _unsaturated,
    "search": _search,
    "worst_case": _worst_case,
    "full_precision": _full_precision,
    "bits": _bits,
    "joint": _joint,
    "eot": _eot,
    "frozen_seed": _frozen_seed,
}
