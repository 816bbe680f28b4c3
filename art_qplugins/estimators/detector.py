"""A classifier and a detector of adversarial images as one classifier with a rejection class.

A detector beside the classifier is a part of the defence, so attacks must see both. Carlini & Wagner 2017 ("Adversarial
examples are not easily detected", section 3.3) make one network of them: it has one class more, which wins where the
detector finds the image adversarial.
"""

from __future__ import annotations

from typing import Any

import torch
from art.defences.detector.evasion import BinaryActivationDetector, BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_qplugins.domains import FINITE, Domain, Either, Is, Maybe, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators.base import QuantizedClassifier
from art_qplugins.estimators.deployed import deployed
from art_qplugins.estimators.information import InformationDetector
from art_qplugins.foreign import foreign
from art_qplugins.guard import isolated
from art_qplugins.torch_domains import MODULE

__all__ = ["WithDetector", "with_detector"]

_BINARY = (BinaryInputDetector, BinaryActivationDetector)
_ARGUMENTS: dict[str, Domain] = {
    "classifier": Is(PyTorchClassifier, "an ART PyTorchClassifier"),
    "detector": Either(
        Is(nn.Module, "a torch.nn.Module"),
        Is(_BINARY, "a BinaryInputDetector or BinaryActivationDetector of ART"),
        Is(InformationDetector, "an InformationDetector"),
    ),
    "threshold": Maybe(FINITE),
}


class WithDetector(nn.Module):
    r"""The K logits z of a classifier, and :math:`z_{K+1} = \max_j z_j + D(x)`: the last class wins where D(x) > 0.

    Carlini & Wagner 2017 give the last class :math:`(D(x) + 1) \max_j z_j`. Where the largest logit is positive that
    decides alike; where it is negative it would reject what the detector accepts.

    :param detector: gives one score for each image, (N,) or (N, 1); D is the score less ``threshold``. Or it gives two,
        (N, 2), for clean and adversarial; D is then their difference less ``threshold``, which is 0 by default.
    :param inner: a layer of the classifier whose outputs the detector takes. ``None`` gives it the images.
    :raises InputError: at a call, where the detector gives one score and there is no threshold, or another shape.
    """

    def __init__(
        self,
        classifier: nn.Module,
        detector: nn.Module,
        threshold: float | None = None,
        *,
        inner: nn.Module | None = None,
    ) -> None:
        check_all(
            locals(), {"classifier": MODULE, "detector": MODULE, "threshold": Maybe(FINITE), "inner": Maybe(MODULE)}
        )
        super().__init__()
        self.classifier, self.detector, self.threshold = classifier, detector, threshold
        self.training = False  # the modes inside it stay as they are
        self._inner = [] if inner is None else [inner]  # in a list, because it is a part of the classifier already

    def forward(self, x: Tensor) -> Tensor:
        logits, seen = self._classified(x)
        score = self._score(self.detector(seen), len(x))
        return torch.cat([logits, logits.amax(1, keepdim=True) + score[:, None]], 1)

    def _classified(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and what the detector takes."""
        if not self._inner:
            return self.classifier(x), x
        outputs: list[Tensor] = []
        hook = self._inner[0].register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            return self.classifier(x), outputs[-1]
        finally:
            hook.remove()

    def _score(self, found: Any, n: int) -> Tensor:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape not in ((n,), (n, 1), (n, 2)):
            raise InputError(f"detector: it gives {shape} for {n} images; it must give one score for each, or two")
        if shape == (n, 2):
            found, threshold = found[:, 1] - found[:, 0], self.threshold or 0.0
        elif self.threshold is not None:
            threshold = self.threshold
        else:
            raise InputError("detector: it gives one score for each image; give the threshold above which it rejects")
        score: Tensor = found.reshape(n) - threshold
        return score


def with_detector(
    classifier: PyTorchClassifier, detector: Any, *, threshold: float | None = None
) -> QuantizedClassifier:
    """The estimator of a classifier that rejects what a detector finds, ready to be attacked and diagnosed.

    :param classifier: an ART classifier of K classes.
    :param detector: a torch module of images, see :class:`WithDetector`; ART's ``BinaryInputDetector`` or
        ``BinaryActivationDetector`` around a ``PyTorchClassifier``; or a fitted :class:`~art_qplugins.InformationDetector`.
    :param threshold: the score above which an image is rejected. It may be left out where the detector gives two scores, or
        has a threshold.
    :return: K + 1 outputs, of which the last is the rejection class ``abstain``.
    :raises InputError: where the detector cannot be asked or is not fitted, or gives one score and there is no threshold.
    """
    check_all(locals(), _ARGUMENTS)
    network, inner = detector, None
    if isinstance(detector, InformationDetector):
        network, fitted = detector.score, detector.fitted_threshold()
        threshold = fitted if threshold is None else threshold
    if isinstance(detector, _BINARY):
        check("detector: its detector", detector.detector, Is(PyTorchClassifier, "an ART PyTorchClassifier"))
        network = deployed(detector.detector).model
    if isinstance(detector, BinaryActivationDetector):
        inner = _layer(classifier, detector)
    both = WithDetector(deployed(classifier).model, network, threshold, inner=inner).to(classifier.device)
    classes = classifier.nb_classes
    made = QuantizedClassifier(
        both,
        nn.CrossEntropyLoss(),
        classifier.input_shape,
        classes + 1,
        clip_values=None if classifier.clip_values is None else tuple(classifier.clip_values),
        device_type=str(classifier.device),
        abstain=classes,
    )
    with foreign("detector: its forward"), isolated(both, 0), torch.no_grad():
        made._logits(torch.zeros(2, *classifier.input_shape, device=classifier.device))
    return made


def _layer(classifier: PyTorchClassifier, detector: BinaryActivationDetector) -> nn.Module:
    """The layer whose outputs an activation detector takes. ART counts the children of the network."""
    if detector.classifier.model is not classifier.model:
        raise InputError("detector: it takes the activations of another classifier; give the one that it was made for")
    index: int = detector.classifier.layer_names.index(detector._layer_name)
    network: nn.Module = classifier.model
    return list(network.children())[index]
