"""The inputs and outputs of the module: pixels and labels of any form in, checked logits out.

This part of :class:`~art_qplugins.estimators.QuantizedClassifier` holds its only forward path. It also declares the types of
ART's attributes, because ART does not.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_qplugins.errors import InputError, shown
from art_qplugins.models.ensemble import trained_network

__all__ = ["Inputs", "Pixels", "as_numbers"]

Pixels: TypeAlias = np.ndarray | Tensor


class Inputs(PyTorchClassifier):  # type: ignore[misc]  # ART ships no types, so its classes are Any
    """The forward path: ART's preprocessing, a cast to float32, the module, and a check of its output."""

    model: nn.Module
    device: torch.device
    nb_classes: int
    input_shape: tuple[int, ...]
    preprocessing_operations: list[Any]
    all_framework_preprocessing: bool  # whether all of them are PyTorch's, so that gradients flow through them
    abstain: int | None = None  # the output with which the model rejects an image
    _model: Any  # ART's wrapper around the module
    _loss: nn.Module
    _int_labels: bool
    _reduce_labels: bool
    _checked: bool  # whether an output of this module was checked for probabilities

    @property
    def _network(self) -> nn.Module:
        return trained_network(self.model)

    def _inputs(self, x: Pixels) -> Tensor:
        """The module's input for ``x``."""
        self._check_pixels(x)
        if self.preprocessing_operations:
            if isinstance(x, Tensor) and not self.all_framework_preprocessing:
                x = x.detach().cpu().numpy()
            x, _ = self._apply_preprocessing(x, y=None, fit=False, no_grad=False)
        return self._tensor(x)

    def _check_pixels(self, x: Any) -> None:
        """:raises InputError: where ``x`` is no batch of at least one image."""
        shape = tuple(x.shape) if isinstance(x, (np.ndarray, Tensor)) else _shape(x)
        if len(shape) != len(self.input_shape) + 1 or 0 in shape:
            raise InputError(
                f"x: it is {shown(x)} of shape {shape}; give images (N, {str(tuple(self.input_shape))[1:]}"
            )

    def _tensor(self, x: Pixels) -> Tensor:
        """``x`` as float32 on the device."""
        try:
            tensor = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"x: it is {shown(x)}; give images (N, C, H, W) as an array or a tensor") from None
        if not tensor.is_floating_point():
            raise InputError(f"x: pixels are {tensor.dtype}; give floating-point pixels in the range of clip_values")
        return tensor.to(self.device, torch.float32)

    def _labels(self, y: Pixels, n: int) -> Tensor:
        """Labels as the loss takes them, on the device.

        :param y: labels (N,) or (N, 1), or one-hot or soft labels (N, nb_classes).
        :param n: number of images.
        :raises InputError: where there is not one for each image, or one names no class.
        """
        y = as_numbers(y, "y")
        if y.ndim == 2 and y.shape[1] == 1:  # ART's reduce_labels would take the largest of one, which is class 0
            y = y[:, 0]
        if tuple(y.shape) not in ((n,), (n, self.nb_classes)):
            raise InputError(
                f"y: labels are {tuple(y.shape)} for {n} images; give ({n},) classes, or rows ({n}, {self.nb_classes})"
            )
        if y.ndim == 1 and self._int_labels and not _are_classes(y, self.nb_classes):
            raise InputError(f"y: labels are {shown(y)}; give whole numbers from 0 to {self.nb_classes - 1}")
        labels = torch.as_tensor(y, device=self.device)
        if not self._reduce_labels:
            return (labels if labels.dim() == 2 else nn.functional.one_hot(labels.long(), self.nb_classes)).float()
        if labels.dim() == 2:
            labels = self.reduce_labels(labels)
        if labels.is_floating_point() and labels.dim() == 2:
            return labels
        return labels.long() if self._int_labels else labels.float()[:, None]  # one logit of two classes, (N, 1)

    def _classes(self, label: int | list[int] | np.ndarray, n: int) -> Tensor:
        """One class for each of ``n`` images, (n,), on the device."""
        given = as_numbers(label, "label")
        if tuple(given.shape) not in ((), (n,)) or not _are_classes(given, self.nb_classes):
            raise ValueError(
                f"label: it is {shown(label)}, out of range: give a class below {self.nb_classes}, or one for each of "
                f"{n} images."
            )
        return torch.as_tensor(given, device=self.device).long().expand(n)

    def _logits(self, inputs: Tensor) -> Tensor:
        """The module's output: (N, nb_classes), or one logit of two classes, (N, 1), as ART's detectors have.

        Every call checks the shape. The first probabilities give a warning.
        """
        logits: Tensor = self.model(inputs)
        widths = (self.nb_classes, 1) if self.nb_classes == 2 else (self.nb_classes,)
        if not isinstance(logits, Tensor) or logits.shape not in [(len(inputs), width) for width in widths]:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"model: {type(self.model).__name__} gives {shape} for {len(inputs)} images and "
                f"nb_classes = {self.nb_classes}; it must give ({len(inputs)}, {self.nb_classes}) logits"
            )
        if not self._checked:
            self._checked = True
            if isinstance(self._loss, nn.CrossEntropyLoss) and _are_probabilities(logits.detach()):
                warnings.warn(
                    f"model: {type(self.model).__name__} gives probabilities, of which {type(self._loss).__name__} takes "
                    "a second softmax; attacks on this loss are weaker than on logits. End the model before its softmax, "
                    "or take the logarithm",
                    stacklevel=2,
                )
        return logits


def _shape(x: Any) -> tuple[int, ...]:
    try:
        return np.shape(x)
    except ValueError:  # a ragged list
        return ()


def as_numbers(labels: Any, name: str) -> Pixels:
    """Labels as numbers, also those that come as Python objects.

    :param name: of the argument.
    :raises InputError: where they are none.
    """
    if isinstance(labels, Tensor):
        return labels
    try:
        array = np.asarray(labels)
        if array.dtype == object:
            array = np.array(array.tolist())
    except ValueError:  # a ragged list
        array = np.array(None)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise InputError(
            f"{name}: labels are {shown(labels)}; give integers, or one row of nb_classes numbers for each image"
        )
    return array


def _are_classes(labels: Pixels, nb_classes: int) -> bool:
    """Whether each is a whole number below ``nb_classes``. Labels on an accelerator are not waited for."""
    if isinstance(labels, Tensor) and labels.device.type != "cpu":
        return True
    return bool(((labels >= 0) & (labels < nb_classes) & (labels == labels.round())).all())


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-4).all())
