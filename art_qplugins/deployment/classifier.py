"""``DeployedClassifier``: an ART estimator for anything that answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from art_qplugins.deployment.distil import distil
from art_qplugins.deployment.files import open_deployed
from art_qplugins.deployment.module import Answering
from art_qplugins.domains import COUNT, FLAG, MOST, Domain, ListOf, Maybe, Number, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.deployed import as_module
from art_qplugins.estimators.devices import device_type_of
from art_qplugins.torch_domains import MODULE

__all__ = ["DeployedClassifier"]

_ARGUMENTS: dict[str, Domain] = {
    "input_shape": ListOf(COUNT, least=3, most=3, different=False),
    "nb_classes": Number(2, MOST, whole=True),
    "twin": Maybe(MODULE),
    "labels_only": FLAG,
    "probabilities": Maybe(FLAG),
}


class DeployedClassifier(QuantizedClassifier):
    """An ART classifier around a model that only answers. It is attacked along the gradient of its twin.

    Every library attacks it: its module is an :class:`~art_qplugins.deployment.module.Answering`. Attacks that follow a
    gradient follow the twin's, which is BPDA; those that search or ask for decisions ask the deployed model. Whatever they
    find is judged by the deployed model.

    :param predict: a function of images (N, C, H, W) float32 in [0, 1] that gives scores (N, nb_classes), logits or
        probabilities, or labels (N,); a torch module, which need not have a gradient; or an ART ``BlackBoxClassifier``.
        For files, see :meth:`from_file`.
    :param input_shape: (C, H, W).
    :param nb_classes: at least 2.
    :param twin: a torch module, or an ART ``PyTorchClassifier``, with a gradient: the network before it was quantized, or
        as ``quantize`` emulates it. ``None``: there is no gradient; see :meth:`distilled`.
    :param labels_only: the model gives labels, or only the largest of its scores is to be looked at.
    :param probabilities: whether scores are probabilities, which become logarithms. ``None`` judges by a few answers.
    :param loss: by default cross-entropy.
    :param more: further arguments of :class:`~art_qplugins.QuantizedClassifier`, e.g. ``abstain``.
    :raises InputError: where the model or the twin answers 8 images of noise with something else.
    """

    model: Answering
    estimator_params = [*QuantizedClassifier.estimator_params, "labels_only"]

    def __init__(
        self,
        predict: Any,
        input_shape: tuple[int, ...],
        nb_classes: int,
        *,
        twin: Any = None,
        labels_only: bool = False,
        probabilities: bool | None = None,
        loss: nn.Module | None = None,
        **more: Any,
    ) -> None:
        twin = as_module(twin)
        check_all(locals(), _ARGUMENTS)
        if isinstance(predict, Answering):
            module = predict
        else:
            module = Answering(
                predict, input_shape, nb_classes, twin=twin, labels_only=labels_only, probabilities=probabilities
            )
        more.setdefault("device_type", "cpu" if module.twin is None else device_type_of(module.twin))
        super().__init__(
            module, nn.CrossEntropyLoss() if loss is None else loss, tuple(input_shape), nb_classes, **more
        )

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        inputs: Mapping[str, Any] | None = None,
        input_shape: tuple[int, ...] | None = None,
        nb_classes: int | None = None,
        **more: Any,
    ) -> DeployedClassifier:
        """The classifier of an ONNX, TFLite or OpenVINO file.

        :param inputs: see :func:`~art_qplugins.open_deployed`, and so are ``input_shape`` and ``nb_classes``.
        :param more: as for the class, e.g. ``twin``.
        """
        predict, image, classes = open_deployed(path, inputs=inputs, input_shape=input_shape, nb_classes=nb_classes)
        if classes is None:
            raise InputError(f"nb_classes: {predict.path.name} does not say it; give the number of classes")
        return cls(predict, image, classes, **more)

    @property
    def labels_only(self) -> bool:
        return self.model.labels_only

    def distilled(self, x: Any, **options: Any) -> DeployedClassifier:
        """The same classifier with a twin that is fitted to its answers; see :func:`~art_qplugins.deployment.distil.distil`.

        :param x: (N, C, H, W) in [0, 1], the images around which it is asked.
        """
        self._check_pixels(x)
        module = distil(self.model, self._tensor(x), **options)
        same = {"abstain": self.abstain, "clip_values": self.clip_values, "device_type": str(self.device)}
        return DeployedClassifier(module, self.input_shape, self.nb_classes, loss=self._loss, **same)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """:raises InputError: always."""
        raise InputError("fit: a deployed model is not trained; train its twin, and deploy that")
