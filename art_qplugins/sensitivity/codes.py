r"""What the codes of a network tell of its images, and of the same images after a change (arXiv 2312.00105; a RECONSTRUCTION).

The codes are what the deepest stochastic quantizer draws. It shows the distribution :math:`p_i(\cdot | x)` of every unit i, so
information has a closed form. Information is divided by log K, with K bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_qplugins.domains import COUNT, SEED, Domain, check_all
from art_qplugins.errors import InputError
from art_qplugins.gradients.counting import passes
from art_qplugins.gradients.probe import answer
from art_qplugins.information import entropy, information
from art_qplugins.quantizers.noise import is_stochastic
from art_qplugins.quantizers.stochastic import stochastic_quantizers
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["Codes", "Told", "calls_for"]


@dataclass(frozen=True, kw_only=True)
class Told:
    r"""What codes tell of some images.

    :ivar mutual: :math:`\hat I`, the information between these images and their codes, with their own marginal; in [0, 1].
    :ivar images: :math:`i(x)` of each image, (N,) float64 on the CPU: the mean over units of
        :math:`KL(p_i(\cdot | x) \,\|\, \bar p_i) / \log K`, with the marginal of the clean images.
    """

    mutual: float
    images: Tensor


class Codes:
    """The codes of clean images. Those of the same images after a change are measured against them.

    Everything is a mean over draws of the earlier layers. The draws are fixed, and alike for an image before and after its change.

    An image is measured against the clean images without itself, whether it is clean or changed. In its place stands an image
    of which codes tell nothing. So clean images have no advantage, and a bin that no other image has costs at most log(K N).

    :param module: a network with stochastic quantizers. It is asked in eval mode and does not change.
    :param x: (N, C, H, W) in [0, 1], the clean images.
    :param draws: at least so many; a module that draws nothing is asked once.
    :param batch_size: images whose distributions are kept at once.
    :raises InputError: where the module has no stochastic quantizer, or does not call the deepest one.
    """

    def __init__(self, module: nn.Module, x: Tensor, *, draws: int = 10, batch_size: int = 25, seed: int = 0) -> None:
        domains: dict[str, Domain] = {"module": MODULE, "x": IMAGES}
        check_all(locals(), {**domains, "draws": COUNT, "batch_size": COUNT, "seed": SEED})
        layers = stochastic_quantizers(module)
        if not layers:
            raise InputError(
                "module: it has no stochastic quantizer; make one with quantize(model, activation_bits=2, alpha=2.0)"
            )
        self._module, self._layer, self._x = module, layers[-1], x
        self._calls, self._batch_size, self._seed = calls_for(module, draws), batch_size, seed
        self._bins = self._layer.num_bins
        answer(module, x[:1], seed, 0)  # an ensemble tries its network once, which must not be seen
        self._sum = torch.stack([self._mean(part, i).sum(0) for i, part in enumerate(x.split(batch_size))]).sum(0)

    def told(self, images: Tensor) -> Told:
        """What the codes tell of the clean images after a change; of themselves where it is none.

        :param images: (N, C, H, W) in [0, 1], in the order of the clean ones.
        :raises InputError: where it is not of their shape.
        """
        check_all(locals(), {"images": IMAGES})
        if images.shape != self._x.shape:
            raise InputError(
                f"images: their shape is {tuple(images.shape)}, and the clean ones have {tuple(self._x.shape)}; "
                "give both alike"
            )
        found, own, left, draws = [], torch.zeros_like(self._sum, dtype=torch.float64), 0.0, 0
        parts = zip(*(t.split(self._batch_size) for t in (self._x, images)), strict=True)
        for number, (clean, part) in enumerate(parts):
            others = (self._sum - self._mean(clean, number) + 1 / self._bins) / len(images)
            values = []
            for p in map(self._distributions, self._inputs(part, number)):
                values.append(information(p, others).double())
                own += p.sum(0)
                left += len(part) * float(entropy(p).double().mean())
            draws += len(values) * len(part)
            found.append(torch.stack(values).mean(0).cpu())
        mutual = (float(entropy(own / draws).mean()) - left / draws) / math.log(self._bins)
        return Told(mutual=min(max(mutual, 0.0), 1.0), images=torch.cat(found))

    def _mean(self, x: Tensor, number: int) -> Tensor:
        """(N, ..., K), over the draws."""
        first, *more = self._inputs(x, number)
        total = self._distributions(first)
        for draw in more:
            total += self._distributions(draw)
        return total / (1 + len(more))

    def _inputs(self, x: Tensor, number: int) -> Tensor:
        """What the deepest quantizer reads of a batch, (draws, N, ...). The same batch has the same draws."""
        seen: list[Tensor] = []
        hook = self._layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        try:
            for call in range(self._calls):
                answer(self._module, x, self._seed, number * self._calls + call)
        finally:
            hook.remove()
        if not seen:
            raise InputError("module: a forward pass does not reach its deepest stochastic quantizer")
        return torch.cat(seen).view(-1, *x.shape[:1], *seen[0].shape[1:])  # draws lie one after the other

    @torch.no_grad()
    def _distributions(self, inputs: Tensor) -> Tensor:
        """(N, ..., K) of one draw."""
        found: Tensor = self._layer.probabilities(inputs.to(self._layer.offset))
        return found


def calls_for(module: nn.Module, draws: int) -> int:
    """Of ``module``, for so many draws; one where it draws nothing."""
    return -(-draws // passes(module, requires_grad=False)) if is_stochastic(module) else 1
