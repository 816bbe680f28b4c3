"""The ensemble that a stochastic network is: the average over draws, inside one module.

Because the average is in ``forward``, whatever attacks the module attacks the average: also ART's attacks that rebuild a
plain classifier from ``estimator.model``, torchattacks and AutoAttack.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.quantizers.stochastic import stochastic_layers

__all__ = ["StochasticEnsemble", "check_count"]


def check_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number of at least 1")
    return value


class StochasticEnsemble(nn.Module):
    r"""Mean probability over ``draws`` draws of a stochastic network, as log-probabilities.

    .. math:: z(x) = \log \frac{1}{M} \sum_{m=1}^{M} \mathrm{softmax}(f(x; u_m))

    Cross-entropy of z is the negative log of the mean probability, so its gradient is the EOT gradient of the deployed
    rule. Every call takes fresh draws.

    :param network: a module with :class:`~art_qplugins.StochasticQuantizer` layers; logits out.
    :param draws: M, members of the ensemble, at least 1.
    :param eot_chunk: how many draws are computed in one batch; bounds the memory and changes no result beyond rounding.
    """

    def __init__(self, network: nn.Module, draws: int = 8, *, eot_chunk: int = 8) -> None:
        super().__init__()
        for name, value in (("draws", draws), ("eot_chunk", eot_chunk)):
            check_count(name, value)
        if not stochastic_layers(network):
            raise InputError(
                f"{type(network).__name__} has no stochastic layer to average over; "
                "make one with quantize(model, activation_bits=2, alpha=2.0)"
            )
        self.network = network
        self.draws = draws
        self.eot_chunk = eot_chunk
        self.next_draw = 0

    def forward(self, x: Tensor) -> Tensor:
        members = []
        for start in range(0, self.draws, self.eot_chunk):
            fold = min(self.eot_chunk, self.draws - start)
            logits = self._members(x, fold)
            members.append(logits.log_softmax(-1).unflatten(0, (fold, len(x))))
        return torch.cat(members).logsumexp(0) - math.log(self.draws)

    def _members(self, x: Tensor, fold: int) -> Tensor:
        layers = stochastic_layers(self.network)
        for layer in layers:
            layer.draw, layer.call, layer.fold = self.next_draw, 0, fold
        self.next_draw += fold
        try:
            return self.network(x.repeat(fold, *[1] * (x.dim() - 1)))  # type: ignore[no-any-return]
        finally:
            for layer in layers:
                layer.fold = 1

    def extra_repr(self) -> str:
        return f"draws={self.draws}, eot_chunk={self.eot_chunk}"
