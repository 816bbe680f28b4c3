"""The interface of a training-time defence."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Defence"]


class Defence:
    """Something that shapes training. Subclasses override the methods that they need.

    Every training step has this order: the forward pass, cross-entropy plus every :meth:`penalty`, the optimizer's
    step, :meth:`after_step`.
    """

    def warning(self, weight_decay: float) -> str | None:
        """Why training with this weight decay defeats the defence, in one line; ``None`` where it does not."""
        return None

    def start(self, model: nn.Module) -> None:
        """Called once, before the first step."""

    def penalty(self, model: nn.Module) -> Tensor | float:
        """A term of the loss. Called after the forward pass."""
        return 0.0

    def after_step(self, model: nn.Module) -> None:
        """Called after the optimizer's step, e.g. to project weights."""

    def finish(self, model: nn.Module) -> None:
        """Called once at the end, also after an exception, if :meth:`start` raised none."""
