"""The interface of a training-time defence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Defence", "Images"]


class Images(Protocol):
    """The images that a network is trained on, and their labels ``y``, (N,) int64."""

    @property
    def y(self) -> Tensor: ...

    def at(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Some images, (n, C, H, W) float32 in [0, 1], and their labels, on a device."""
        ...


class Defence:
    """Something that shapes training. Subclasses override the methods that they need.

    Every training step has this order: :meth:`images`, the forward pass, cross-entropy plus every :meth:`penalty` and then
    every :meth:`term`, the optimizer's step, :meth:`after_step`. Defences of one training are applied in their order.

    What is random takes its numbers from torch's global generators. Training seeds them before each step by seed, rank
    and step, and before :meth:`look` by seed and epoch, so a resumed training draws the same.
    """

    def warning(self, weight_decay: float) -> str | None:
        """Why training with this weight decay defeats the defence, in one line; ``None`` where it does not."""
        return None

    def threat(self) -> float | None:
        """The eps in Linf at which its robustness is to be validated; ``None`` where it names none."""
        return None

    def passes(self) -> tuple[float, float]:
        """The forward and the backward passes of each image that it adds to a training step, on average."""
        return 0.0, 0.0

    def look_passes(self, classes: int, epochs: int) -> float:
        """About the forward passes of all calls of :meth:`look` in a training of so many epochs."""
        return 0.0

    def network(self, model: nn.Module) -> nn.Module:
        """The network that is trained and deployed in place of ``model``, e.g. with a filter before its first layer."""
        return model

    def start(self, model: nn.Module) -> None:
        """Called once, before the first step."""

    def look(self, model: nn.Module, data: Images, epochs: int, tell: Callable[[str], None]) -> None:
        """Called before the first step and after each epoch, e.g. to choose further images to train on.

        :param model: the network, in train mode. It does not change. Before the first step a defence may change parameters.
        :param data: all images that are trained on, without augmentation.
        :param epochs: the epochs that are done.
        :param tell: called with what it does, e.g. "margins 40 %", as often as it likes.
        """

    @property
    def enough(self) -> bool:
        """Whether training may end after this epoch."""
        return False

    def told(self) -> Mapping[str, Any]:
        """What it has measured so far, as JSON. It is kept with each epoch of the curve."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """What an interrupted training needs beside weights to go on."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave. It is called after :meth:`start`, in place of the first :meth:`look`."""

    def images(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The images to train on in place of ``x``, without gradient, of the same shape and in [0, 1].

        :param model: the network in train mode. Its mode, parameters and their gradients are the same afterwards.
        :param x: (N, C, H, W) float32 in [0, 1].
        :param y: (N,) int64; in ART's ``fit`` as the estimator's loss takes labels.
        """
        return x

    def penalty(self, model: nn.Module) -> Tensor | float:
        """A term of the loss that depends on weights and on what layers remember of the forward pass.

        It does not call the network.
        """
        return 0.0

    def term(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor | float:
        """A term of the loss that may call the network again. It comes after every penalty.

        :param x: the images that were trained on, after :meth:`images` of every defence.
        :param logits: (N, classes), the answers to ``x``, with gradient.
        """
        return 0.0

    def after_step(self, model: nn.Module) -> None:
        """Called after the optimizer's step, e.g. to project weights."""

    def finish(self, model: nn.Module) -> None:
        """Called once at the end, also after an exception, if :meth:`start` raised none."""
