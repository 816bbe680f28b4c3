"""Losses and their gradients with respect to the pixels.

This part of :class:`~art_qplugins.estimators.QuantizedClassifier` holds its only backward path. A gradient is computed only
with respect to the pixels. It has the type of the pixels, an array or a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_qplugins.domains import FLAG, OneOf, check
from art_qplugins.errors import InputError
from art_qplugins.estimators.inputs import Inputs, Pixels
from art_qplugins.guard import evaluating

__all__ = ["Gradients"]


class Gradients(Inputs):
    """The methods ``loss_gradient``, ``class_gradient`` and ``compute_loss``."""

    def loss_gradient(self, x: Pixels, y: Pixels, training_mode: bool = False, **kwargs: Any) -> Pixels:
        """Gradient of the loss with respect to the pixels: an array for an array, a tensor for a tensor.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        """
        check("training_mode", training_mode, FLAG)
        self._check_pixels(x)
        labels = self._labels(y, len(x))
        with evaluating(self.model, training=training_mode), torch.enable_grad():
            leaf, inputs, finish = self._differentiable(x)
            gradient = self._gradient(self._training_loss(inputs, labels), leaf)
        return finish(gradient)

    def class_gradient(
        self,
        x: Pixels,
        label: int | list[int] | np.ndarray | None = None,
        training_mode: bool = False,
        **kwargs: Any,
    ) -> Pixels:
        """Gradient of logits in the pixels: (N, nb_classes, C, H, W), or (N, 1, C, H, W) for one class per image.

        :param x: (N, C, H, W) in [0, 1].
        :param label: a class, one class for each image, or ``None`` for all.
        """
        check("training_mode", training_mode, FLAG)
        self._check_pixels(x)
        chosen = None if label is None else self._classes(label, len(x))
        with evaluating(self.model, training=training_mode), torch.enable_grad():
            leaf, inputs, finish = self._differentiable(x)
            logits = self._logits(inputs)
            if chosen is not None:
                gradients = self._gradient(logits.gather(1, chosen[:, None]).sum(), leaf)[:, None]
            else:
                totals = logits.sum(0).unbind()
                last = len(totals) - 1
                each = [self._gradient(total, leaf, keep=i < last) for i, total in enumerate(totals)]
                gradients = torch.stack(each, dim=1)
        return finish(gradients)

    def compute_loss(self, x: Pixels, y: Pixels, reduction: str = "none", **kwargs: Any) -> Pixels:
        """The loss, (N,) or a scalar: an array for an array, a differentiable tensor for a tensor.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        :param reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        """
        check("reduction", reduction, OneOf(("none", "mean", "sum")))
        inputs = self._inputs(x)
        loss: Any = self._loss  # its reduction is a string, which no type of a module allows
        before = loss.reduction
        with evaluating(self.model), torch.set_grad_enabled(isinstance(x, Tensor) and torch.is_grad_enabled()):
            try:
                loss.reduction = reduction
                value: Tensor = loss(self._logits(inputs), self._labels(y, len(x)))
            finally:
                loss.reduction = before
        return value if isinstance(x, Tensor) else value.cpu().numpy()

    def _training_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss that :meth:`loss_gradient` differentiates."""
        value: Tensor = self._loss(self._logits(inputs), labels)
        return value

    def _differentiable(self, x: Pixels) -> tuple[Tensor, Tensor, Callable[[Tensor], Pixels]]:
        """The leaf tensor, the module's input, and a function that turns a gradient into an array or a tensor."""
        self._check_pixels(x)
        give = _as_tensor if isinstance(x, Tensor) else _as_array
        if self.all_framework_preprocessing:
            leaf = self._tensor(x).detach().requires_grad_()
            if not self.preprocessing_operations:
                return leaf, leaf, give
            return leaf, self._apply_preprocessing(leaf, y=None, fit=False, no_grad=False)[0], give
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        leaf = self._tensor(self._apply_preprocessing(array, y=None, fit=False)[0]).requires_grad_()

        def back(gradient: Tensor) -> Pixels:
            through_defences: np.ndarray = self._apply_preprocessing_gradient(array, _as_array(gradient))
            return torch.as_tensor(through_defences).to(x) if isinstance(x, Tensor) else through_defences

        return leaf, leaf, back

    def _gradient(self, value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
        """Gradient of ``value`` in ``leaf``.

        :param keep: whether another backward pass through the same graph follows.
        """
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=keep, allow_unused=True)
        if gradient is None:
            raise InputError(
                f"model: {type(self.model).__name__} gives no gradient to its pixels; remove detach() and no_grad() "
                "from it, or use a black-box attack"
            )
        return gradient


def _as_tensor(gradient: Tensor) -> Tensor:
    return gradient


def _as_array(gradient: Tensor) -> np.ndarray:
    return gradient.cpu().numpy()
