"""The domains of torch's objects: arguments of functions that are networks and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from art_qplugins.domains import Is

__all__ = ["IMAGES", "LABELS", "MODULE"]


@dataclass(frozen=True)
class _Tensor:
    """Tensors with ``dims`` dimensions that are not empty."""

    dims: int
    floats: bool
    words: str

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dim() != self.dims or not value.numel():
            return False
        whole = not (value.is_floating_point() or value.is_complex())
        return value.is_floating_point() if self.floats else whole

    def __str__(self) -> str:
        return self.words


MODULE = Is(nn.Module, "a torch.nn.Module")
IMAGES = _Tensor(4, True, "a tensor of images (N, C, H, W), float32 in [0, 1]")
LABELS = _Tensor(1, False, "a tensor of labels (N,), int64")
