"""The draws of a gradient of a random network: how many a mean needs, and only one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.objectives import drawing, evaluate
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.seeds import derive_seed

__all__ = ["needed_draws", "one_member"]

_SAMPLE = 64  # images on which the number of draws is found
_DRAWS = (1, 4, 8, 16, 32)  # for a mean gradient, until two of them agree ...
_AGREEMENT = 0.6  # ... by this cosine


def needed_draws(run: AttackRun, view: nn.Module) -> int:
    """The fewest draws whose mean gradient agrees with that of as many others: median cosine of at least 0.6.

    The cosine with the true mean is then about the square root of 0.6, 0.77. A mean of fewer draws is mostly noise.

    Where no draw has a gradient, one is enough. A view that is a mean over ``points`` averages over draws itself.

    :param view: the network, or a view of it with another backward pass.
    """
    most = _DRAWS[-1] // getattr(view, "points", 1)
    x, y = run.x[:_SAMPLE], run.y[:_SAMPLE]

    def minus_margin(logits: Tensor) -> Tensor:
        return -logit_margin(logits, y)

    for draws in (number for number in _DRAWS if number <= max(most, 1)):
        halves = []
        for half in ("one half", "other half"):
            with drawing(view, derive_seed(run.seed, f"{half}/{draws}"), x.device):
                found = [evaluate(view, x, minus_margin)[2] for _ in range(draws)]
            halves.append(torch.stack(found).mean(0).flatten(1))
        if not halves[0].any():
            return 1
        if float(nn.functional.cosine_similarity(halves[0], halves[1]).quantile(0.5)) >= _AGREEMENT:
            break
    return draws


@contextlib.contextmanager
def one_member(module: nn.Module) -> Iterator[None]:
    """Within, gradients of each ensemble in ``module`` that draws afresh are those of one member."""
    ensembles = [m for m in module.modules() if isinstance(m, StochasticEnsemble) and not m.frozen]
    before = [ensemble.eot_draws for ensemble in ensembles]
    try:
        for ensemble in ensembles:
            ensemble.eot_draws = 1
        yield
    finally:
        for ensemble, draws in zip(ensembles, before, strict=True):
            ensemble.eot_draws = draws
