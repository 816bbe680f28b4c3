"""Other views of a network: some leave its answers as they are, some undo its quantization for the time of an attack.

Here is also a loss that no logit scale can saturate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from art_qplugins.errors import InputError
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.protocol import activation_quantizers
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.seeds import derive_seed

__all__ = [
    "LogitScale",
    "MarginLoss",
    "Smoothed",
    "StraightThroughSteps",
    "median_gap",
    "other_bits",
    "shadow",
]


class MarginLoss(nn.Module):
    """Minus the logit margin, averaged over the batch: linear in the logits, so its gradient never underflows."""

    reduction = "mean"

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        loss = -logit_margin(logits, y)
        return loss.mean() if self.reduction == "mean" else loss.sum() if self.reduction == "sum" else loss


class LogitScale(nn.Module):
    """The same network with its logits divided by ``temperature``: every answer is the same, every softmax softer.

    An honest robust accuracy cannot depend on it (Gupta & Ajanthan 2022 attack quantized networks through it).
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) / self.temperature  # type: ignore[no-any-return]


def median_gap(network: nn.Module, x: Tensor, *, seed: int = 0, batch_size: int = 250) -> float:
    """Median over images of the distance between the two largest logits."""
    with torch.no_grad(), draws_from(network, seed):
        top = torch.cat([network(part) for part in x.split(batch_size)]).topk(2, dim=1).values
    return float((top[:, 0] - top[:, 1]).median())


class Smoothed(nn.Module):
    """The same network with its gradient averaged over points around each image: the slope behind a shattered one.

    The points are the image itself and pairs x + u, x - u, with u uniform in a cube and fixed by ``seed``, so the view
    is a deterministic function; it costs as many passes as there are points.

    :param radius: half the side of the cube, in units of pixels; points outside [0, 1] are clipped.
    :param pairs: how many u; at least 1.
    """

    def __init__(self, network: nn.Module, radius: float, *, pairs: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.radius, self.pairs, self.seed = radius, pairs, seed

    def forward(self, x: Tensor) -> Tensor:
        value = self.network(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value  # type: ignore[no-any-return]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "smoothed"))
        u = (torch.rand((self.pairs, *x.shape[1:]), generator=generator).to(x) * 2 - 1) * self.radius
        around = [self.network(straight_through((x + h).clamp(0, 1), x)) for h in (*u, *-u)]
        return straight_through(value, torch.stack([value, *around]).mean(0))


def _rounded(x: Tensor, *, low: Any, high: Any, num_bits: int) -> Tensor:
    clipped = x.clamp(low, high)
    step = (high - low) / (2**num_bits - 1)
    return straight_through(low + step * ((clipped - low) / step).round(), clipped)


@contextlib.contextmanager
def _forwards(chosen: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within, these modules compute something else; wherever the network holds them, and whatever their parents are."""
    before = {m: m.__dict__.get("forward") for m in chosen}
    try:
        for m, forward in chosen.items():
            m.__dict__["forward"] = forward
        yield
    finally:
        for m, own in before.items():
            if own is None:
                m.__dict__.pop("forward", None)
            else:
                m.__dict__["forward"] = own


class StraightThroughSteps(nn.Module):
    """The same answers; backward, PyTorch's own steps are the line or the clip that they round.

    Of a sign that is the clip to [-1, 1], as binary networks are trained (Hubara et al. 2016, equation 4).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with _Continuous(backward_only=True):
            return self.network(x)  # type: ignore[no-any-return]


class _Continuous(TorchFunctionMode):
    """PyTorch's own steps, where a forward pass calls them, replaced by the line or the clip that they round.

    :param backward_only: keep what they answer. What works in place is left alone then.
    """

    def __init__(self, *, backward_only: bool = False) -> None:
        super().__init__()
        self.backward_only = backward_only
        self.replaced = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = _LINES.get(getattr(func, "__name__", ""))
        if replacement is None or not (args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
            return func(*args, **(kwargs or {}))
        if not self.backward_only:
            self.replaced += 1
            return replacement(*args, **(kwargs or {}))
        answer = func(*args, **(kwargs or {}))
        return answer if answer is args[0] else straight_through(answer, replacement(*args, **(kwargs or {})))


def _fake_quantized(x: Tensor, scale: Any, zero_point: Any, *rest: Any, **named: Any) -> Tensor:
    *axis, low, high = (*rest, *named.values())  # (axis, ) quant_min, quant_max
    if axis:
        shape = [-1 if d == axis[0] else 1 for d in range(x.dim())]
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    return x.clamp((low - zero_point) * scale, (high - zero_point) * scale)


#: By the name of the function or method.
_LINES: dict[str, Callable[..., Tensor]] = {
    "round": lambda x, *_, **__: x.clone(),
    "trunc": lambda x: x.clone(),
    "fix": lambda x: x.clone(),
    "floor": lambda x: x - 0.5,
    "ceil": lambda x: x + 0.5,
    "sign": lambda x: x.clamp(-1, 1),
    "sgn": lambda x: x.clamp(-1, 1),
    "round_": lambda x, *_, **__: x,
    "trunc_": lambda x: x,
    "fix_": lambda x: x,
    "floor_": lambda x: x.sub_(0.5),
    "ceil_": lambda x: x.add_(0.5),
    "sign_": lambda x: x.clamp_(-1, 1),
    "sgn_": lambda x: x.clamp_(-1, 1),
    "fake_quantize_per_tensor_affine": _fake_quantized,
    "fake_quantize_per_channel_affine": _fake_quantized,
}


@contextlib.contextmanager
def shadow(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Within, ``module`` is its full-precision shadow: each quantizer is the real-valued function that it rounds.

    Quantized activations become their clip, stochastic ones their mean; rounding that is written with PyTorch's own
    functions (round, floor, ceil, trunc, sign, fake_quantize) becomes the identity, sign the clip to [-1, 1]. The
    gradient of a custom ``autograd.Function`` stays its own. Afterwards all is as before, also after an exception.

    :param x: images; on the first of them it is found whether there is anything to undo.
    :raises InputError: where there is not.
    """
    chosen = {m: quantizer.full_precision for m, quantizer in activation_quantizers(module)}
    mode = _Continuous()
    # In the module's forward alone: an attack that climbs the shadow takes signs of its own.
    with _forwards(chosen), _forwards({module: partial(_within, mode, module.forward)}):
        if not chosen:
            with evaluating(module), torch.no_grad():
                module(x[:1])
            if not mode.replaced:
                raise InputError(
                    f"{type(module).__name__} has no quantized activation, so no shadow to attack; "
                    "use artq:apgd-margin, or quantize it first"
                )
        yield


def _within(context: AbstractContextManager[Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with context:
        return call(*args, **kwargs)


@contextlib.contextmanager
def other_bits(module: nn.Module, num_bits: int) -> Iterator[None]:
    """Within, every quantized activation of ``module`` rounds to ``2 ** num_bits`` levels of its range, to the nearest.

    :raises InputError: where there is none.
    """
    ranges = {m: quantizer.range for m, quantizer in activation_quantizers(module)}
    if not ranges:
        raise InputError(
            f"{type(module).__name__} has no QuantReLU or StochasticQuantizer, so no bit width to change; "
            "use artq:apgd-margin, or quantize it first"
        )
    with _forwards({m: partial(_rounded, low=low, high=high, num_bits=num_bits) for m, (low, high) in ranges.items()}):
        yield
