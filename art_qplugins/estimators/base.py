"""The ART estimator that all families share: ART's ``PyTorchClassifier``, with its waste and its side effects removed.

Averages over draws and surrogate gradients are inside the module, so nothing here knows about them. What is overridden
is overridden for speed (no NumPy round trip, no gradients of parameters) and to leave modes and random states alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.estimators.guard import evaluating, keeping_gradients

__all__ = ["QuantizedClassifier"]


class QuantizedClassifier(PyTorchClassifier):  # type: ignore[misc]
    """An ART classifier around a module that takes pixels in [0, 1] and gives logits.

    The signature is ``PyTorchClassifier``'s, position by position. Two defaults differ: ``clip_values`` is (0, 1), and
    ``preprocessing`` is ``None``, because ART's (0, 1) subtracts 0 and divides by 1 at every call.

    :param model: ``(N, C, H, W)`` float32 in [0, 1] in, ``(N, nb_classes)`` logits out.
    :param loss: e.g. ``torch.nn.CrossEntropyLoss()``; takes logits and integer labels.
    :param input_shape: (C, H, W).
    :param nb_classes: at least 2.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        use_amp: bool = False,
        opt_level: str = "O1",
        loss_scale: float | str | None = "dynamic",
        channels_first: bool = True,
        clip_values: tuple[float, float] | None = (0.0, 1.0),
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = None,
        device_type: str = "gpu",
    ) -> None:
        super().__init__(
            model=model,
            loss=loss,
            input_shape=input_shape,
            nb_classes=nb_classes,
            optimizer=optimizer,
            use_amp=use_amp,
            opt_level=opt_level,
            loss_scale=loss_scale,
            channels_first=channels_first,
            clip_values=clip_values,
            preprocessing_defences=preprocessing_defences,
            postprocessing_defences=postprocessing_defences,
            preprocessing=preprocessing,
            device_type=device_type,
        )
        if not (self._reduce_labels or isinstance(loss, (nn.BCELoss, nn.BCEWithLogitsLoss))):
            # ART hands integer labels only to the losses it knows by class; ours take them too.
            self._reduce_labels = self._int_labels = True

    @property
    def _bare(self) -> bool:
        """True where nothing stands between the pixels and the module, so that tensors can go straight in."""
        return not self.preprocessing_operations and not self._use_amp

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Logits (N, nb_classes) as float32, after ART's postprocessing defences.

        :param x: (N, C, H, W) in [0, 1].
        """
        x, _ = self._apply_preprocessing(x, y=None, fit=False)
        with evaluating(self.model, training=training_mode), torch.no_grad():
            logits = [self.model(self._tensor(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
        return self._apply_postprocessing(preds=torch.cat(logits).cpu().numpy(), fit=False)

    def loss_gradient(
        self, x: np.ndarray | Tensor, y: np.ndarray | Tensor, training_mode: bool = False, **kwargs: Any
    ) -> np.ndarray | Tensor:
        """Gradient of the loss in the pixels: as ``x``, an array for an array and a tensor for a tensor.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        """
        if not self._bare:
            if self._int_labels and y.ndim == 1:  # which ART documents, and fails on
                eye = np.eye(self.nb_classes, dtype=np.float32)
                y = torch.as_tensor(eye, device=y.device)[y.long()] if isinstance(y, Tensor) else eye[y]
            with evaluating(self.model, training=training_mode), keeping_gradients(self.model):
                return super().loss_gradient(x=x, y=y, training_mode=training_mode, **kwargs)
        labels = y.to(self.device) if isinstance(y, Tensor) else torch.as_tensor(y, device=self.device)
        if labels.dim() == 2:
            labels = self.reduce_labels(labels)
        pixels = self._tensor(x).detach().requires_grad_()
        with evaluating(self.model, training=training_mode), torch.enable_grad():
            loss = self._loss(self.model(pixels), labels.long() if not labels.is_floating_point() else labels)
            if loss.grad_fn is None:
                raise InputError(
                    f"{type(self.model).__name__}: the loss does not depend on the pixels through any gradient; "
                    "remove detach() or no_grad() from the model, or attack it with a black-box attack"
                )
            (gradient,) = torch.autograd.grad(loss, pixels)
        return gradient if isinstance(x, Tensor) else gradient.cpu().numpy()

    def _tensor(self, x: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float32, device=self.device)

    def with_model(self, model: nn.Module, loss: nn.Module | None = None) -> QuantizedClassifier:
        """A plain estimator for another view of the same network, e.g. its logits divided by a constant."""
        return QuantizedClassifier(
            model,
            loss or self._loss,
            self.input_shape,
            self.nb_classes,
            clip_values=tuple(self.clip_values) if self.clip_values is not None else None,
            device_type="cpu" if self.device.type == "cpu" else "gpu",
        )
