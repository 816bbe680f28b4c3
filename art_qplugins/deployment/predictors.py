"""Whatever answers for images, as a function: pixels as an array in, an array of scores or labels out.

``predict`` takes images (N, C, H, W) float32 in [0, 1] and gives scores (N, K), logits or probabilities, or labels (N,). It may
have attributes. ``identity`` is a text that changes whenever an answer may. ``reading`` says in words how it rounds pixels, and
``seen(x)`` then gives the images as it reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from art.estimators.classification import BlackBoxClassifier
from art.estimators.classification.blackbox import BlackBoxClassifierNeuralNetwork
from numpy.typing import NDArray
from torch import nn

from art_qplugins.errors import InputError, shown

__all__ = ["BLACK_BOXES", "Predict", "as_predict"]

Predict: TypeAlias = Callable[[NDArray[np.float32]], Any]

#: ART's classifiers around a function.
BLACK_BOXES = (BlackBoxClassifier, BlackBoxClassifierNeuralNetwork)


def as_predict(given: Any) -> Predict:
    """A function for arrays, of a function, a torch module or one of ART's black-box classifiers.

    :raises InputError: where it is none of them.
    """
    if isinstance(given, nn.Module):
        return _OfModule(given)
    if isinstance(given, BLACK_BOXES):
        return _OfBlackBox(given)
    if not callable(given):
        raise InputError(
            f"predict: it is {shown(given)}; give a function of images (N, C, H, W), a torch module, or an ART "
            "BlackBoxClassifier; open_deployed(path) makes one of a file"
        )
    function: Predict = given
    return function


class _OfModule:
    """The answers of a torch module, which stays on its device. It is no part of the module that asks it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: NDArray[np.float32]) -> Any:
        tensors = (*self.module.parameters(), *self.module.buffers())
        device = next((t.device for t in tensors), torch.device("cpu"))
        with torch.no_grad():
            return self.module(torch.from_numpy(x).to(device))


class _OfBlackBox:
    """The answers of one of ART's black-box classifiers, in its own range of pixels and order of channels."""

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier
        clip = classifier.clip_values
        self.low: Any = 0.0 if clip is None else clip[0]
        self.high: Any = 1.0 if clip is None else clip[1]
        self.last = not getattr(classifier, "channels_first", True)

    def __call__(self, x: NDArray[np.float32]) -> Any:
        images = np.moveaxis(x, 1, -1) if self.last else x
        scaled = (self.low + images * (self.high - self.low)).astype(np.float32)
        return self.classifier.predict(scaled.reshape(len(x), *self.classifier.input_shape))
