"""The ART estimator that all families share: ART's ``PyTorchClassifier``, with its waste and its side effects removed.

Averages over draws and surrogate gradients are inside the module, so nothing here knows about them. Everything that
touches the module is overridden: one forward path that casts and checks, gradients of the pixels and of nothing else, no
NumPy round trip between, and no mode, hook, random state or parameter gradient left changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.utils import check_and_transform_label_format
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError
from art_qplugins.estimators.activations import ActivationsMixin
from art_qplugins.estimators.devices import resolve_device
from art_qplugins.estimators.fitting import FittingMixin
from art_qplugins.estimators.pickling import PicklingMixin
from art_qplugins.estimators.precision import accept_float64
from art_qplugins.guard import evaluating

__all__ = ["QuantizedClassifier", "check_inside"]

Pixels = np.ndarray | Tensor


class QuantizedClassifier(PicklingMixin, FittingMixin, ActivationsMixin, PyTorchClassifier):  # type: ignore[misc]
    """An ART classifier around a module that takes pixels in [0, 1] and gives logits.

    The signature is ``PyTorchClassifier``'s, position by position. Two defaults differ: ``clip_values`` is (0, 1), and
    ``preprocessing`` is ``None``, because ART's (0, 1) subtracts 0 and divides by 1 at every call.

    :param model: ``(N, C, H, W)`` float32 in [0, 1] in, ``(N, nb_classes)`` logits out.
    :param loss: e.g. ``torch.nn.CrossEntropyLoss()``; takes logits and integer labels.
    :param input_shape: (C, H, W).
    :param nb_classes: at least 2.
    :param device_type: ``"cpu"``; ``"gpu"``, the current CUDA device or else the CPU; or a device, ``"cuda:1"``.
    :param training_defences: what shapes :meth:`fit`, and so ART's trainers, e.g. an orthogonality penalty.
    :raises InputError: at the first call, where the module gives another shape, or probabilities.
    """

    estimator_params = [*PyTorchClassifier.estimator_params, "training_defences"]

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
        *,
        training_defences: Sequence[Defence] = (),
    ) -> None:
        device = resolve_device(device_type)
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
            device_type="cpu",  # ART knows "cpu" and "the current CUDA device"; the next lines know more
        )
        self._device, self._device_type = device, device_type
        self._model.to(device)
        accept_float64(model)
        self.training_defences = tuple(training_defences)
        self._checked = False
        if not (self._reduce_labels or isinstance(loss, (nn.BCELoss, nn.BCEWithLogitsLoss))):
            # ART hands integer labels only to the losses it knows by class; ours take them too.
            self._reduce_labels = self._int_labels = True

    # -- what a user calls ------------------------------------------------------------------------------------------

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Logits (N, nb_classes) as float32, after ART's postprocessing defences.

        :param x: (N, C, H, W) in [0, 1].
        """
        if self.preprocessing_operations:
            x, _ = self._apply_preprocessing(x, y=None, fit=False)
        with evaluating(self.model, training=training_mode), torch.no_grad():
            logits = [self._logits(self._tensor(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
        return self._apply_postprocessing(preds=torch.cat(logits).float().cpu().numpy(), fit=False)

    def loss_gradient(self, x: Pixels, y: Pixels, training_mode: bool = False, **kwargs: Any) -> Pixels:
        """Gradient of the loss in the pixels: as ``x``, an array for an array and a tensor for a tensor.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        """
        labels = self._labels(y)
        with evaluating(self.model, training=training_mode), torch.enable_grad():
            leaf, inputs, finish = self._differentiable(x)
            gradient = self._gradient(self._training_loss(inputs, labels), leaf)
        return finish(gradient)

    def class_gradient(
        self,
        x: np.ndarray,
        label: int | list[int] | np.ndarray | None = None,
        training_mode: bool = False,
        **kwargs: Any,
    ) -> np.ndarray:
        """Gradient of logits in the pixels: (N, nb_classes, C, H, W), or (N, 1, C, H, W) for one class an image.

        :param x: (N, C, H, W) in [0, 1].
        :param label: a class, one class for each image, or ``None`` for all.
        """
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
        """The loss, (N,) or a scalar: as ``x``, an array for an array, a differentiable tensor for a tensor.

        :param reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        """
        inputs = self._inputs(x)
        before = self._loss.reduction
        with evaluating(self.model), torch.set_grad_enabled(isinstance(x, Tensor) and torch.is_grad_enabled()):
            try:
                self._loss.reduction = reduction
                loss = self._loss(self._logits(inputs), self._labels(y))
            finally:
                self._loss.reduction = before
        return loss if isinstance(x, Tensor) else loss.cpu().numpy()

    def _predict_framework(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        inputs, y = self._apply_preprocessing(x, y=y, fit=False, no_grad=False)
        with evaluating(self.model):
            return self._logits(self._tensor(inputs)), y

    def set_params(self, **kwargs: Any) -> None:
        """ART's, but for ``model``, which ART puts where its wrapper belongs, and ``device_type``, which moves the model."""
        model = kwargs.pop("model", self.model)
        if "device_type" in kwargs:
            self._device = resolve_device(kwargs["device_type"])
            self._model.to(self._device)
        super().set_params(**kwargs)
        if model is not self.model:
            self._model = self._make_model_wrapper(model).to(self._device)
            accept_float64(model)
            self._checked = False

    def with_model(self, model: nn.Module, loss: nn.Module | None = None) -> QuantizedClassifier:
        """A plain estimator for another view of the same network, e.g. its logits divided by a constant."""
        return QuantizedClassifier(
            model,
            loss or self._loss,
            self.input_shape,
            self.nb_classes,
            clip_values=tuple(self.clip_values) if self.clip_values is not None else None,
            device_type=str(self.device),
        )

    # -- the one way in, and the one way back -----------------------------------------------------------------------

    def _logits(self, inputs: Tensor) -> Tensor:
        """The module's answer, checked: (N, nb_classes), and once, that it is not probabilities."""
        logits = self.model(inputs)
        if not isinstance(logits, Tensor) or logits.shape != (len(inputs), self.nb_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"model: {type(self.model).__name__} gives {shape} for {len(inputs)} images and "
                f"nb_classes = {self.nb_classes}; it must give ({len(inputs)}, {self.nb_classes}) logits"
            )
        if not self._checked:
            self._checked = True
            rows = logits.detach()
            if isinstance(self._loss, nn.CrossEntropyLoss) and bool(
                (rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-4).all()
            ):
                raise InputError(
                    f"model: {type(self.model).__name__} gives probabilities, and {type(self._loss).__name__} takes "
                    "logits; end the model before its softmax, or take the logarithm"
                )
        return logits

    def _training_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self._loss(self._logits(inputs), labels)  # type: ignore[no-any-return]

    def _gradient(self, value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=keep, allow_unused=True)
        if gradient is None:
            raise InputError(
                f"model: {type(self.model).__name__} gives no gradient in its pixels; remove detach() and no_grad() "
                "from it, or use a black-box attack"
            )
        return gradient

    def _differentiable(self, x: Pixels) -> tuple[Tensor, Tensor, Callable[[Tensor], Pixels]]:
        """The leaf to differentiate in, what the module gets, and how a gradient is given back as ``x`` came."""
        give = _give_tensor if isinstance(x, Tensor) else _give_array
        if self.all_framework_preprocessing:
            leaf = self._tensor(x).detach().requires_grad_()
            if not self.preprocessing_operations:
                return leaf, leaf, give
            return leaf, self._apply_preprocessing(leaf, y=None, fit=False, no_grad=False)[0], give
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        leaf = self._tensor(self._apply_preprocessing(array, y=None, fit=False)[0]).requires_grad_()

        def back(gradient: Tensor) -> Pixels:
            through_defences = self._apply_preprocessing_gradient(array, _give_array(gradient))
            return torch.as_tensor(through_defences).to(x) if isinstance(x, Tensor) else through_defences

        return leaf, leaf, back

    def _inputs(self, x: Pixels) -> Tensor:
        """What the module gets for ``x``."""
        if self.preprocessing_operations:
            if isinstance(x, Tensor) and not self.all_framework_preprocessing:
                x = x.detach().cpu().numpy()
            x, _ = self._apply_preprocessing(x, y=None, fit=False, no_grad=False)
        return self._tensor(x)

    def _tensor(self, x: Pixels) -> Tensor:
        tensor = torch.as_tensor(x)
        if not tensor.is_floating_point():
            raise InputError(f"x: pixels are {tensor.dtype}; give floating-point pixels in the range of clip_values")
        return tensor.to(self.device, torch.float32)

    def _labels(self, y: Pixels) -> Tensor:
        """Labels as the loss takes them, on the device."""
        labels = torch.as_tensor(y, device=self.device)
        if labels.dim() == 2:
            labels = self.reduce_labels(labels)
        elif not self._int_labels:
            labels = self.reduce_labels(
                torch.as_tensor(check_and_transform_label_format(y, self.nb_classes)).to(labels.device)
            )
        return labels if labels.is_floating_point() and labels.dim() == 2 else self._as_targets(labels)

    def _as_targets(self, labels: Tensor) -> Tensor:
        return labels.long() if self._int_labels else labels.float()

    def _classes(self, label: int | list[int] | np.ndarray, n: int) -> Tensor:
        chosen = torch.as_tensor(np.asarray(label), device=self.device).long()
        if chosen.dim() == 0:
            chosen = chosen.expand(n)
        if chosen.shape != (n,) or not bool(((chosen >= 0) & (chosen < self.nb_classes)).all()):
            raise ValueError(
                f"Label {label} is out of range: give a class below {self.nb_classes}, or one for each of {n} images."
            )
        return chosen


def check_inside(name: str, estimator: PyTorchClassifier) -> None:
    """Images are judged by the module, so whatever belongs to the model must be inside it."""
    standard = estimator.preprocessing
    identity = standard is None or (np.all(standard.mean == 0) and np.all(standard.std == 1))
    if estimator.preprocessing_defences or estimator.postprocessing_defences or not identity:
        raise InputError(
            f"{name}: move its pre- and postprocessing into the module, so that every attack and the judge see it"
        )


def _give_tensor(gradient: Tensor) -> Tensor:
    return gradient


def _give_array(gradient: Tensor) -> np.ndarray:
    return gradient.cpu().numpy()
