"""What a training-time defence is."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Defence"]


class Defence:
    """Something that shapes training; subclasses override what they need.

    The order in every step: the forward pass, cross-entropy plus every :meth:`penalty`, the
    optimizer's step, :meth:`after_step`.
    """

    def start(self, model: nn.Module) -> None:
        """Called once, before the first step."""

    def penalty(self, model: nn.Module) -> Tensor | float:
        """What is added to the loss, after the forward pass."""
        return 0.0

    def after_step(self, model: nn.Module) -> None:
        """Called after the optimizer's step, e.g. to project weights."""

    def finish(self, model: nn.Module) -> None:
        """Called once at the end, also after an exception, where :meth:`start` went through."""
