r"""Scales of the logits before cross-entropy, so that the gradient neither vanishes nor follows a single class.

z are the logits, J is their Jacobian in the pixels, d the number of classes, and

.. math:: \beta(\gamma, e) = -\frac{1}{\gamma} \ln \frac{e}{(1 - e)(d - 1)},

is the scale at which cross-entropy has an error signal of e where the logits are :math:`\gamma` apart. "jacobian" and
"hessian" are NJS and HNS of Gupta & Ajanthan 2022 ("Improved gradient-based adversarial attacks for quantized networks"),
as in their code. Both are computed once, at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from art_qplugins.gradients.margin import logit_margin

__all__ = ["SCALINGS", "Scale", "error_signal_scale", "hessian_scales", "jacobian_scales"]

#: From logits (n, d) and their rows (n,) to the scale of each image (n,).
Scale = Callable[[Tensor, Tensor], Tensor]

_GAP = 5.0  # gap between the two largest logits after "per-image" scaling
_ERROR = 0.01  # e of NJS
_GRID = 100  # scales that HNS tries
_IMAGES = 100  # images whose Jacobians NJS averages
_ELEMENTS = 2**26  # Jacobians in memory at once


def error_signal_scale(gamma: Tensor, error: float, classes: int) -> Tensor:
    """beta(gamma, e), (n,)."""
    # In Python's floats, since e is as small as 1e-72.
    return -math.log(error / ((1 - error) * (classes - 1))) / gamma.clamp_min(1e-30)


def per_image(module: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Scale:
    """5 divided by the gap between the two largest logits, computed anew at each step."""

    def scale(logits: Tensor, rows: Tensor) -> Tensor:
        top = logits.topk(2, dim=1).values
        return _GAP / (top[:, 0] - top[:, 1]).clamp_min(1e-30)

    return scale


def jacobian(module: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Scale:
    scales = jacobian_scales(module, x, y, start)
    return lambda logits, rows: scales[rows]


def hessian(module: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Scale:
    scales = hessian_scales(module, start, y)
    return lambda logits, rows: scales[rows]


#: Each takes (module, clean images, labels, start) and returns a function from current logits to scales.
SCALINGS: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], Scale]] = {
    "per-image": per_image,
    "jacobian": jacobian,
    "hessian": hessian,
}


def jacobian_scales(module: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """NJS, (N,): 1 divided by the mean singular value of J. Without an error signal it is beta(z_max - z_min, 0.01).

    :param x: (N, C, H, W) clean images. J is computed at the first 100.
    :param start: images whose error signal is checked. An image has none if |1 - softmax(z)_y| < 0.01.
    """
    _, gram = _gram(module, x[:_IMAGES])
    count = min(gram.shape[-1], x[0].numel())
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum(1) / count
    mean = singular.mean().clamp_min(1e-30)
    with torch.no_grad():
        logits = torch.cat([module(part) for part in start.split(_IMAGES)]).double() / mean
    saturated = (1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)).abs() < _ERROR
    gamma = logits.amax(1) - logits.amin(1)
    beta = error_signal_scale(gamma, _ERROR, logits.shape[1])
    scales: Tensor = (torch.where(saturated, beta, 1.0) / mean).to(x.dtype)
    return scales


def hessian_scales(module: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    r"""HNS, (N,): the scale of 100 that maximises :math:`\| \beta^2 J^T (\mathrm{diag}(p) - p p^T) J \|_F`, p = softmax(beta z).

    That is the norm of the Gauss-Newton Hessian of cross-entropy in the pixels. The scales are evenly spaced from
    beta(gamma, 1 - 1/d - 0.01) to beta(gamma, 1e-72), with gamma the gap between the two largest logits. The scale is 1
    where the image is misclassified, and where the maximum is at an end.
    """
    logits, gram = _gram(module, points)
    classes = logits.shape[1]
    top = logits.topk(2, dim=1).values
    gamma = top[:, 0] - top[:, 1]
    first = error_signal_scale(gamma, 1 - 1 / classes - 0.01, classes)
    last = error_signal_scale(gamma, 1e-72, classes)
    steps = torch.linspace(0, 1, _GRID, dtype=first.dtype, device=first.device)
    grid = first + steps[:, None] * (last - first)
    norms = torch.stack([_curvature(logits, gram, beta) for beta in grid])
    index = norms.argmax(0)
    usable = (index > 0) & (index < _GRID - 1) & (logit_margin(logits, y) > 0)
    return torch.where(usable, grid.gather(0, index[None])[0], 1.0).to(points.dtype)


def _curvature(logits: Tensor, gram: Tensor, beta: Tensor) -> Tensor:
    """||beta^2 J^T S J||_F from G = J J^T alone: its square is beta^4 tr(S G S G)."""
    p = (beta[:, None] * logits).softmax(1)
    product = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ gram
    norms: Tensor = beta**2 * (product * product.mT).sum((1, 2)).clamp_min(0).sqrt()
    return norms


def _gram(module: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, d) and J J^T (n, d, d), in float64; one backward pass for each class."""
    with torch.no_grad():
        classes = module(points[:1]).shape[1]
    logits, grams = [], []
    for part in points.split(max(1, _ELEMENTS // (classes * points[0].numel()))):
        with torch.enable_grad():
            leaf = part.detach().requires_grad_()
            answer = module(leaf)
            rows = [_row(total, leaf) for total in answer.sum(0).unbind()]
        jacobians = torch.stack(rows, 1).double()
        logits.append(answer.detach().double())
        grams.append(jacobians @ jacobians.mT)
    return torch.cat(logits), torch.cat(grams)


def _row(total: Tensor, leaf: Tensor) -> Tensor:
    found = None
    if total.requires_grad:
        (found,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)
    return (torch.zeros_like(leaf) if found is None else found).flatten(1)
