"""Operator norms of layers: by how much each can lengthen a change of its input, in L2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.defences.lipschitz import as_matrices, groups_of
from art_qplugins.domains import check
from art_qplugins.gradients.probe import answer
from art_qplugins.quantizers.layers import WEIGHTED
from art_qplugins.quantizers.maps import weight_layers
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["LayerNorm", "calls", "largest_singular_value", "linear_part", "operator_norms"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: Relative tolerance of a norm.
_TOLERANCE = 1e-5

#: A map with fewer inputs or outputs is written out as a matrix: the Lanczos method needs more.
_FEW = 8


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    r"""The norms of one layer in eval mode.

    :ivar layer: path of the layer.
    :ivar matrix: the largest singular value of its weight as a matrix (out, rest), which the orthogonality penalty pulls to
        1; ``None`` for batch norm.
    :ivar operator: the largest singular value of the layer as a map of its whole input, with its stride and padding.
    :ivar gain: the largest :math:`|\gamma| / \sigma` of a batch norm; ``None`` where none follows at once.
    :ivar scaled: the norm of the layer together with that batch norm; ``None`` without one.
    """

    layer: str
    matrix: float | None
    operator: float
    gain: float | None
    scaled: float | None


def operator_norms(module: nn.Module, x: Tensor) -> list[LayerNorm]:
    """The norms of every linear and convolutional layer, and of each batch norm that follows none of them at once.

    Layers are in the order in which a forward pass first calls them. Those that it does not call are left out. The product
    over a chain of layers bounds its Lipschitz constant in L2, because activations and quantizers in full precision do not
    expand. It says nothing about a network with rounding, which is no Lipschitz function.

    A norm is found by the Lanczos method, in float64, to a relative error of 1e-5.

    :param module: a network. It is asked once, in eval mode, and does not change.
    :param x: (1, C, H, W), an image. It says how large the input of each layer is; its values do not matter.
    """
    check("module", module, MODULE)
    check("x", x, IMAGES)
    return [_norms(call) for call in calls(module, x[:1])]


@dataclass
class _Call:
    """The first call of a layer."""

    layer: str
    module: nn.Module
    shape: torch.Size  # of the input
    batch_norm: nn.Module | None = None  # that reads its output


def calls(module: nn.Module, x: Tensor) -> list[_Call]:
    """The first call of each layer. A batch norm that reads the output of a weighted layer belongs to its call."""
    paths = {layer: name for name, layer in weight_layers(module)}
    paths |= {m: name for name, m in module.named_modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats}
    calls: dict[nn.Module, _Call] = {}
    outputs: list[tuple[Tensor, _Call]] = []  # of weighted layers

    def see(layer: nn.Module, args: Any, output: Tensor) -> None:
        if layer in calls:
            return
        calls[layer] = call = _Call(paths[layer], layer, args[0].shape)
        if isinstance(layer, WEIGHTED):
            outputs.append((output, call))
            return
        for given, before in outputs:
            if given is args[0] and before.batch_norm is None:
                before.batch_norm = layer

    hooks = [layer.register_forward_hook(see) for layer in paths]
    try:
        answer(module, x, 0, 0)
    finally:
        for hook in hooks:
            hook.remove()
    followers = [call.batch_norm for call in calls.values()]
    return [call for layer, call in calls.items() if layer not in followers]


def _norms(call: _Call) -> LayerNorm:
    layer = call.module
    if isinstance(layer, _BATCH_NORMS):
        gain = float(_gains(layer).max())
        return LayerNorm(layer=call.layer, matrix=None, operator=gain, gain=gain, scaled=None)
    assert isinstance(layer.weight, Tensor)
    weight = layer.weight.detach().double()
    matrix = float(torch.linalg.matrix_norm(as_matrices(weight, groups_of(layer)), 2).max())
    linear = linear_part(layer, weight)
    point = torch.zeros(1, *call.shape[1:], dtype=weight.dtype, device=weight.device)
    gains = None if call.batch_norm is None else _gains(call.batch_norm)
    return LayerNorm(
        layer=call.layer,
        matrix=matrix,
        operator=matrix if isinstance(layer, nn.Linear) else largest_singular_value(linear, point),
        gain=None if gains is None else float(gains.max()),
        scaled=None if gains is None else largest_singular_value(lambda v: _along_channels(gains, linear(v)), point),
    )


def linear_part(layer: nn.Module, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer without its bias."""
    if isinstance(layer, nn.Linear):
        return lambda v: nn.functional.linear(v, weight)
    convolve = cast("Callable[..., Tensor]", layer._conv_forward)
    return lambda v: convolve(v, weight, None)


def _gains(batch_norm: nn.Module) -> Tensor:
    """``|gamma| / sigma`` of each channel, float64."""
    assert isinstance(batch_norm, _BATCH_NORMS) and batch_norm.running_var is not None
    gains = (batch_norm.running_var.detach().double() + batch_norm.eps).rsqrt()
    return gains if batch_norm.weight is None else gains * batch_norm.weight.detach().double().abs()


def _along_channels(gains: Tensor, v: Tensor) -> Tensor:
    return v * gains.view(-1, *[1] * (v.dim() - 2))


def largest_singular_value(linear: Callable[[Tensor], Tensor], point: Tensor) -> float:
    """The largest singular value of a linear map of tensors like ``point``."""
    from scipy.sparse.linalg import LinearOperator, svds

    with torch.enable_grad():
        point.requires_grad_()
        image = linear(point)

    def there(v: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            return linear(torch.from_numpy(v).to(point).view_as(point)).cpu().numpy().ravel()

    def back(u: NDArray[np.float64]) -> NDArray[np.float64]:
        along = torch.from_numpy(u).to(point).view_as(image)
        return torch.autograd.grad(image, point, along, retain_graph=True)[0].cpu().numpy().ravel()

    rows, columns = image.numel(), point.numel()
    if min(rows, columns) < _FEW:
        units = np.eye(rows) if rows <= columns else np.eye(columns)
        return float(np.linalg.norm(np.stack([(back if rows <= columns else there)(unit) for unit in units]), 2))
    operator = LinearOperator((rows, columns), matvec=there, rmatvec=back, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    return float(svds(operator, k=1, tol=_TOLERANCE, v0=start, return_singular_vectors=False)[0])
