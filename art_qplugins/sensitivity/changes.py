"""What a change of weights, such as rounding, does to a network: layer by layer, alone and together with a change of the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_qplugins.defences.lipschitz import as_matrices, groups_of
from art_qplugins.domains import COUNT, SEED, Domain, check_all
from art_qplugins.errors import InputError
from art_qplugins.gradients.probe import answer
from art_qplugins.quantizers.maps import weight_layers
from art_qplugins.sensitivity.distances import inputs
from art_qplugins.sensitivity.norms import calls, largest_singular_value, linear_part
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["LayerChange", "LogitGain", "OutputTerms", "logit_gain", "output_terms", "weight_changes"]


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    r"""How large the change :math:`\Delta W` of a layer's weight is: the Lipschitz constant in L2 of what it adds.

    :ivar layer: path of the layer.
    :ivar matrix: the largest singular value of :math:`\Delta W` as a matrix (out, rest), which papers call
        :math:`\|\Delta W\|_2`.
    :ivar operator: the largest singular value of :math:`\Delta W` as a map of the layer's whole input, with its stride and
        padding. Of a convolution it is the true norm.
    :ivar weight: the operator norm of the unchanged weight, for comparison.
    """

    layer: str
    matrix: float
    operator: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class OutputTerms:
    r"""The parts of the change of a layer's output, :math:`(W + \Delta W)(a + \Delta a) - W a`, for each image.

    Each is a length in L2, (N,) float64 on the CPU, relative to :math:`\|W a\|_2`. Biases are left out.

    :ivar layer: path of the layer.
    :ivar images: :math:`\|W \Delta a\|`, which the changed images cause: adversarial loss.
    :ivar weights: :math:`\|\Delta W a\|`, which the changed weights cause: quantization loss.
    :ivar both: :math:`\|\Delta W \Delta a\|`.
    :ivar total: the length of the change itself.
    :ivar error: of the sum of the three against the change itself, relative to it. It is rounding.
    """

    layer: str
    images: Tensor
    weights: Tensor
    both: Tensor
    total: Tensor
    error: Tensor


@dataclass(frozen=True, kw_only=True)
class LogitGain:
    r"""How a change of weights scales logits: z' = gain z + the rest, both less their mean over classes.

    :ivar gain: the least-squares factor :math:`\langle z, z' \rangle / \langle z, z \rangle` over all images.
    :ivar alignment: the cosine of z and z' over all images. At 1 the logits are scaled and nothing else.
    """

    gain: float
    alignment: float


def logit_gain(module: nn.Module, changed: nn.Module, x: Tensor, *, batch_size: int = 250, seed: int = 0) -> LogitGain:
    """By how much the logits of ``changed`` are those of ``module``, made larger.

    :param x: (N, C, H, W) in [0, 1].
    :raises InputError: where the networks have other classes, or the logits of ``module`` are all alike.
    """
    domains: dict[str, Domain] = {"module": MODULE, "changed": MODULE, "x": IMAGES, "batch_size": COUNT, "seed": SEED}
    check_all(locals(), domains)
    before, after = (
        torch.cat([answer(network, part, seed, 0) for part in x.split(batch_size)]).double()
        for network in (module, changed)
    )
    if before.shape != after.shape:
        raise InputError(f"changed: it has {after.shape[1]} logits, and module has {before.shape[1]}; give one network")
    z, changed_z = (t - t.mean(1, keepdim=True) for t in (before, after))
    if not (length := float(z.norm())):
        raise InputError("module: its logits are the same for every class; a gain needs others")
    product, other = float((z * changed_z).sum()), float(changed_z.norm())
    return LogitGain(gain=product / length**2, alignment=product / (length * other) if other else 0.0)


def weight_changes(module: nn.Module, changed: nn.Module, x: Tensor) -> list[LayerChange]:
    """The change of every linear and convolutional layer, in the order of the forward pass (Song et al. 2021, slides).

    :param module: a network, and ``changed`` the same network with other weights. Both are asked once, in eval mode.
    :param x: (1, C, H, W), an image. It says how large the input of each layer is.
    :raises InputError: where the two have other layers.
    """
    check_all(locals(), {"module": MODULE, "changed": MODULE, "x": IMAGES})
    found = []
    for path, layer, other, shape in _pairs(module, changed, x):
        before = _weight(layer)
        change = _weight(other) - before
        point = torch.zeros(1, *shape[1:], dtype=change.dtype, device=change.device)
        matrix = float(torch.linalg.matrix_norm(as_matrices(change, groups_of(layer)), 2).max())
        found.append(
            LayerChange(
                layer=path,
                matrix=matrix,
                operator=largest_singular_value(linear_part(layer, change), point) if change.any() else 0.0,
                weight=largest_singular_value(linear_part(layer, before), point) if before.any() else 0.0,
            )
        )
    return found


def output_terms(
    module: nn.Module, changed: nn.Module, x: Tensor, x_changed: Tensor, *, batch_size: int = 50, seed: int = 0
) -> list[OutputTerms]:
    """The terms of every linear and convolutional layer that both networks call once (Song et al. 2021, slides).

    a is what the layer of ``module`` reads of ``x``. The layer of ``changed`` reads a + Δa of ``x_changed``.

    :param module: a network, and ``changed`` the same network with other weights.
    :param x: (N, C, H, W) in [0, 1], and ``x_changed`` the images after the change, such as adversarial ones.
    :param batch_size: images whose activations are kept at once.
    :raises InputError: where the two have other layers, or the images are not alike.
    """
    domains: dict[str, Domain] = {
        "module": MODULE,
        "changed": MODULE,
        "x": IMAGES,
        "x_changed": IMAGES,
        "batch_size": COUNT,
        "seed": SEED,
    }
    check_all(locals(), domains)
    if x.shape != x_changed.shape:
        raise InputError(
            f"x_changed: its shape is {tuple(x_changed.shape)}, and x has {tuple(x.shape)}; give both alike"
        )
    pairs = list(_pairs(module, changed, x[:1]))
    parts: dict[str, list[Tensor]] = {}
    for clean, other in zip(x.split(batch_size), x_changed.split(batch_size), strict=True):
        before, after = inputs(module, clean, seed), inputs(changed, other, seed)
        for path, layer, twin, _ in pairs:
            if len(before[path]) == len(after[path]) == 1:
                a, b = before[path][0].double(), after[path][0].double()
                parts.setdefault(path, []).append(_terms(layer, _weight(layer), _weight(twin), a, b))
    return [
        OutputTerms(layer=path, **dict(zip(_TERMS, torch.cat(part, 1), strict=True))) for path, part in parts.items()
    ]


_TERMS = ("images", "weights", "both", "total", "error")


def _terms(layer: nn.Module, weight: Tensor, changed: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(terms, N) float64."""
    with torch.no_grad():
        old, new = linear_part(layer, weight), linear_part(layer, changed - weight)
        parts = [old(b - a), new(a), new(b - a)]
        clean = old(a)
        total = linear_part(layer, changed)(b) - clean
        lengths = [_length(part) for part in (*parts, total)]
        error = _length(sum(parts, -total)) / lengths[-1].clamp_min(torch.finfo(a.dtype).tiny)
        scale = _length(clean)
        return torch.stack([*(torch.where(length == 0, 0.0, length / scale) for length in lengths), error]).cpu()


def _length(t: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(t.flatten(1), dim=1)
    return length


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().double()


def _pairs(module: nn.Module, changed: nn.Module, x: Tensor) -> Iterator[tuple[str, nn.Module, nn.Module, torch.Size]]:
    """The layers with weights that a pass calls: path, layer, the layer of ``changed``, and the shape of the input."""
    others = dict(weight_layers(changed))
    own = dict(weight_layers(module))
    for path in {**own, **others}:
        if path not in own or path not in others or _weight(own[path]).shape != _weight(others[path]).shape:
            raise InputError(f"changed: layer {path!r} is not the same in both networks; give two of one architecture")
    for call in calls(module, x[:1]):
        if call.layer in own:
            yield call.layer, own[call.layer], others[call.layer], call.shape
