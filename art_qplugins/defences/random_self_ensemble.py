"""Random self-ensemble: noise layers as a part of the network, which is trained with them too."""

from __future__ import annotations

from torch import nn

from art_qplugins.defences import RANDOM_SELF_ENSEMBLE
from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError
from art_qplugins.models.noisy import NoiseLayer, with_noise

__all__ = ["RandomSelfEnsemble"]


class RandomSelfEnsemble(Defence):
    """Puts Gaussian noise before every convolution, and trains with one draw for each image (RSE; Liu et al. 2018).

    The network is random. What the paper predicts with is the mean probability over its draws, ``StochasticEnsemble(network,
    draws)``: a recipe builds both. In Python, train ``RandomSelfEnsemble().network(model)``. The defaults are the paper's for
    CIFAR-10. In the authors' code the VGG networks have the noise of the first convolution before the second.

    :param first: standard deviation before the first convolution, in units of what it reads: of pixels in [0, 1] where the
        network does not normalize them.
    :param inner: standard deviation before the others.
    """

    def __init__(self, first: float = 0.2, inner: float = 0.1) -> None:
        RANDOM_SELF_ENSEMBLE.check_arguments(locals())
        self.first, self.inner = first, inner

    def network(self, model: nn.Module) -> nn.Module:
        return with_noise(model, first=self.first, inner=self.inner)

    def start(self, model: nn.Module) -> None:
        sigmas = [m.sigma for m in model.modules() if isinstance(m, NoiseLayer)]
        if not sigmas or sigmas != [self.first, *[self.inner] * (len(sigmas) - 1)]:
            raise InputError(
                f"defence 'random-self-ensemble' is a part of the network, and {type(model).__name__} has it not; give "
                f"with_noise(model, first={self.first}, inner={self.inner}) of art_qplugins.models.noisy"
            )
