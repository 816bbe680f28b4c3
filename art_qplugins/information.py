r"""Information, in closed form: a stochastic quantizer shows its distribution, so nothing has to be estimated.

``p`` is a distribution over the K bins of each unit for each image, (N, ..., K), as
:meth:`~art_qplugins.quantizers.stochastic.StochasticQuantizer.probabilities` gives it. Information is divided by log K, so
that it is in [0, 1]. Of several units it is the mean. Where the noise of units is independent, their sum is an upper bound
of the information between the image and all units together, :math:`I(X; Q)`.

Everything is differentiable, the joint distribution of members once. :math:`0 \log 0` is 0, and a bin without mass has no gradient of its own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from art_qplugins.quantizers.precision import in_float32

__all__ = [
    "Uncertainty",
    "entropy",
    "information",
    "member_information",
    "member_joint",
    "mutual_information",
    "pooled",
    "uncertainty",
]


@in_float32
def entropy(p: Tensor) -> Tensor:
    """Of distributions along the last dimension, in nats: (..., K) to (...)."""
    mass = p.where(p > 0, 1.0)
    return -(mass * mass.log()).sum(-1)


@in_float32
def mutual_information(p: Tensor, marginal: Tensor | None = None) -> Tensor:
    r"""Mean over units of :math:`I(X; Q_i) = H(\bar p_i) - \overline{H(p_i)}`, divided by log K; a scalar in [0, 1].

    :param p: (N, ..., K). The images are equally likely.
    :param marginal: :math:`\bar p`, (..., K). Without it: the mean of ``p`` over the images. Give it where ``p`` is a part
        of a batch, and the mean over equal parts is that of the batch.
    """
    marginal = p.mean(0) if marginal is None else marginal
    return (entropy(marginal) - entropy(p).mean(0)).mean() / math.log(p.shape[-1])


@in_float32
def information(p: Tensor, marginal: Tensor) -> Tensor:
    r"""Of each image: mean over units of :math:`KL(p_i(\cdot|x) \,\|\, \bar p_i)`, divided by log K; (N,), not negative.

    Its mean over the images that gave the marginal is :func:`mutual_information` of them. An image with mass where they have
    none would have infinitely much. The least normal number stands for such a 0 of the marginal, so that value and gradient
    stay finite.

    :param p: (N, ..., K).
    :param marginal: :math:`\bar p`, (..., K): the mean of the distributions of some images.
    """
    crossed = -(p * marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log()).sum(-1)
    return (crossed - entropy(p)).reshape(len(p), -1).mean(1) / math.log(p.shape[-1])


@in_float32
def member_joint(p: Tensor) -> Tensor:
    r"""The joint distribution of the bins of two independent draws of each unit for the same image, (units, K, K).

    It is :math:`\overline{p_i(q|x)\, p_i(q'|x)}`, the mean over images, as in invariant information clustering (Ji et al. 2019,
    arXiv 1807.06653, equation 2).

    :param p: (N, ..., K). The images are equally likely.
    """
    units = p.reshape(len(p), -1, p.shape[-1]).transpose(0, 1)
    joint: Tensor = _Gram.apply(units)
    return joint / len(p)


class _Gram(torch.autograd.Function):
    """:math:`A^T A` of each matrix. Its gradient is float32 also where autocast is on in the backward pass."""

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return a.transpose(1, 2) @ a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        slope: Tensor = a @ (grad + grad.transpose(1, 2))
        return slope


@in_float32
def member_information(p: Tensor, joint: Tensor | None = None) -> Tensor:
    r"""Mean over units of :math:`I(Q_i; Q'_i)` of two independent draws, divided by log K; a scalar in [0, 1].

    Two draws know of each other no more than one of them knows of the image, so it is at most :func:`mutual_information`.

    :param p: (N, ..., K). The images are equally likely.
    :param joint: (units, K, K). Without it: :func:`member_joint` of ``p``. Give it where ``p`` is a part of a batch.
    """
    joint = member_joint(p) if joint is None else joint
    apart = entropy(joint.sum(1)) + entropy(joint.sum(2))
    return (apart - entropy(joint.flatten(1))).mean() / math.log(p.shape[-1])


@in_float32
def pooled(p: Tensor) -> Tensor:
    """The mean over the positions of each channel: (N, C, H, W, K) to (N, C, K). Units without positions stay as they are.

    It is the distribution over the bins of the channel at a position that is drawn at random.
    """
    return p.flatten(2, -2).mean(2) if p.ndim > 3 else p


class Uncertainty(NamedTuple):
    """How much the members of an ensemble leave open, of each image, (N,) each.

    :ivar entropy: of the mean of the members' distributions, in nats: in [0, log C].
    :ivar mutual_information: of prediction and member, in nats: the entropy of the mean less the mean of the entropies. It is
        0 where all members say the same.
    :ivar variation_ratio: the share of members that do not vote for the class with most votes: in [0, 1).
    """

    entropy: Tensor
    mutual_information: Tensor
    variation_ratio: Tensor


@in_float32
def uncertainty(p: Tensor) -> Uncertainty:
    """Of an ensemble's answers, as Gal 2016, "Uncertainty in Deep Learning", section 3.3, measures it.

    :param p: (M, N, C), the class probabilities of each of M members.
    """
    total = entropy(p.mean(0))
    votes = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).sum(0)
    return Uncertainty(total, (total - entropy(p).mean(0)).clamp_min(0), 1 - votes.amax(-1) / len(p))
