"""Networks in a pipeline of ART: its pre- and postprocessors around the module, as people use them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.defences.postprocessor import ReverseSigmoid
from art.defences.preprocessor import (
    FeatureSqueezing,
    JpegCompression,
    SpatialSmoothing,
    ThermometerEncoding,
    TotalVarMin,
)
from art.estimators.classification import PyTorchClassifier
from networks import CLASSES, Site
from plants import OnPixels, Wrapped
from rows import Build, Built, Make
from torch import Tensor, nn

__all__ = ["ART", "before", "behind", "standardized"]

_PIXELS = {"clip_values": (0.0, 1.0)}

#: ART's preprocessors by name, with the settings of the rows.
ART: dict[str, Any] = {
    "jpeg": lambda: JpegCompression(**_PIXELS, quality=50, channels_first=True),
    "squeezing": lambda: FeatureSqueezing(**_PIXELS, bit_depth=2),
    "squeezing-8bit": lambda: FeatureSqueezing(**_PIXELS, bit_depth=8),
    "smoothing": lambda: SpatialSmoothing(**_PIXELS, window_size=3, channels_first=True),
    "thermometer": lambda: ThermometerEncoding(**_PIXELS, num_space=10, channels_first=True),
    "variation": lambda: TotalVarMin(**_PIXELS, prob=0.9, lamb=0.1, max_iter=5),
}


class Processed(OnPixels):
    """A network behind one of ART's preprocessors, outside autograd."""

    def __init__(self, network: nn.Module, defence: Any, through: bool = False) -> None:
        super().__init__(network, through)
        self.defence = defence

    def change(self, x: Tensor) -> Tensor:
        changed, _ = self.defence(x.detach().numpy().copy())
        return torch.from_numpy(np.asarray(changed, np.float32))


class Standardized(Wrapped):
    """A network on pixels less ``mean``, over ``deviation``."""

    def __init__(self, network: nn.Module, mean: float, deviation: float) -> None:
        super().__init__(network)
        self.mean, self.deviation = mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        return self.logits((x - self.mean) / self.deviation)


def _pipeline(network: nn.Module, site: Site, **more: Any) -> PyTorchClassifier:
    more = {"clip_values": (0.0, 1.0), "device_type": "cpu", **more}
    return PyTorchClassifier(network.eval(), nn.CrossEntropyLoss(), site.shape, CLASSES, **more)


def behind(name: str, make: Make, twin: Make | None = None) -> Build:
    """A network behind a preprocessor of :data:`ART`.

    :param twin: the same function with an honest gradient, where the identity is no backward pass of the preprocessor.
    """

    def build(site: Site) -> Built:
        network = make(site)
        estimator = _pipeline(network, site, preprocessing_defences=[ART[name]()])
        honest = Processed(network, ART[name](), through=True) if twin is None else twin(site)
        return Built(Processed(network, ART[name]()), honest, estimator)

    return build


def before(make: Make) -> Build:
    """A network before ART's reverse sigmoid (Lee et al. 2019). It changes no answer, so the network is its own twin."""

    def build(site: Site) -> Built:
        network = make(site)
        probabilities = nn.Sequential(network, nn.Softmax(1))
        estimator = _pipeline(probabilities, site, postprocessing_defences=[ReverseSigmoid(beta=0.5, gamma=0.1)])
        return Built(network, None, estimator)

    return build


def standardized(make: Make, mean: float = 0.3, deviation: float = 0.35) -> Build:
    """A network that has its pixels standardized by ART, as its ``preprocessing``."""

    def build(site: Site) -> Built:
        network = make(site)
        inner = Standardized(network, -mean / deviation, 1 / deviation)  # takes back what ART does
        estimator = _pipeline(inner, site, preprocessing=(mean, deviation))
        return Built(network, None, estimator)

    return build
