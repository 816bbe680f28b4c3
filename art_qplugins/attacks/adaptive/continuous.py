"""PyTorch's step functions (round, floor, ceil, trunc, sign, fake_quantize) as the functions that they round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from art_qplugins.quantizers.functional import straight_through

__all__ = ["ContinuousSteps"]


class ContinuousSteps(TorchFunctionMode):
    """Within the context, each step function in a forward pass is replaced by the line or the clip that it rounds.

    :ivar replaced: number of calls replaced so far.
    :param backward_only: keep the output of the step and take only the gradient from the line. In-place steps are not
        replaced then.
    """

    def __init__(self, *, backward_only: bool = False) -> None:
        super().__init__()
        self.backward_only = backward_only
        self.replaced = 0
        self._paused = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within the context, nothing is replaced."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = None if self._paused else _LINES.get(getattr(func, "__name__", ""))
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


#: Keys are names of functions and methods.
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
