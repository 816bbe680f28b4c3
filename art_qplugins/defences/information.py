r"""The objective of stochastic-quantization ensembles (arXiv 2312.00105; a RECONSTRUCTION from its abstract).

.. math:: L = CE - \beta\, \hat I(X; Q) + \lambda\, \mathrm{mean}_l \Delta_l

It maximises the information between the input and the deepest quantized representation. It keeps the average bin
spacing small, which bounds how much noise the quantizers add. Where several processes train together, both terms are those of
the whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.defences.processes import batch_mean
from art_qplugins.defences.stochastic import Readings, layers_for
from art_qplugins.domains import FLAG, NOT_NEGATIVE, OneOf, check, check_all
from art_qplugins.information import member_information, member_joint, mutual_information, pooled

__all__ = ["BinSpacing", "MutualInformation"]

#: Added to a variance before its root is divided by, as batch norm does.
_EPS = 1e-5


class MutualInformation(Defence):
    """Subtracts ``beta`` times the information that the deepest stochastic layer keeps of the batch, in [0, 1].

    With ``accumulate`` the batch is what is computed at once.

    :param beta: weight.
    :param of: what is maximised. ``"units"``: the mean over units of the information between image and bin
        (:func:`~art_qplugins.information.mutual_information`). Ablations: ``"channels"``, the same of the bin of a channel at a
        random position (:func:`~art_qplugins.information.pooled`), and ``"members"``, the information between the bins of two
        members of the ensemble (:func:`~art_qplugins.information.member_information`). The abstract speaks of information between
        members; which estimate its authors take is not known.
    """

    def __init__(self, beta: float = 0.1, of: Literal["units", "channels", "members"] = "units") -> None:
        self.beta: float = check("beta", beta, NOT_NEGATIVE)
        self.of: str = check("of", of, OneOf(("units", "channels", "members")))

    def start(self, model: nn.Module) -> None:
        self._layer = layers_for("mutual-information", model)[-1]
        self._readings = Readings([self._layer])

    def penalty(self, model: nn.Module) -> Tensor:
        (x,) = self._readings.last()
        p = self._layer.probabilities(x)
        if self.of == "members":
            return -self.beta * member_information(p, batch_mean(member_joint(p), len(p)))
        p = pooled(p) if self.of == "channels" else p
        return -self.beta * mutual_information(p, batch_mean(p.mean(0), len(p)))

    def finish(self, model: nn.Module) -> None:
        self._readings.end()


class BinSpacing(Defence):
    """Adds ``weight`` times the average bin spacing of the stochastic layers.

    :param weight: of the average.
    :param relative: divide the spacing of each layer by the standard deviation of what it reads. Else a network without batch
        norm before the layer lowers the penalty, and changes nothing else, by scaling weights and bins down together. The
        deviation is that of the batch, so that it belongs to the weights of this step and there is no state to keep. It is
        detached: else the penalty would reward larger activations instead of finer bins.
    """

    def __init__(self, weight: float = 1e-2, relative: bool = False) -> None:
        check_all(locals(), {"weight": NOT_NEGATIVE, "relative": FLAG})
        self.weight, self.relative = float(weight), relative

    def start(self, model: nn.Module) -> None:
        self._layers = layers_for("bin-spacing", model)
        self._readings = Readings(self._layers if self.relative else [])

    def penalty(self, model: nn.Module) -> Tensor:
        spacing = torch.stack([layer.spacing for layer in self._layers])
        if self.relative:
            spacing = spacing / _deviations(self._readings.last())
        return self.weight * spacing.mean()

    def finish(self, model: nn.Module) -> None:
        self._readings.end()


@torch.no_grad()
def _deviations(values: list[Tensor]) -> Tensor:
    """The standard deviation of each of some layers' values, (layers,), over the whole batch."""
    moments = [torch.var_mean(x, correction=0) for x in values]
    variance, mean = (torch.stack(of) for of in zip(*moments, strict=True))
    images = len(values[0])
    between = (mean - batch_mean(mean, images)).square()
    return (batch_mean(variance + between, images) + _EPS).sqrt()
