"""What an ART estimator's ``predict`` does, as one module: its preprocessors, its network, its postprocessors.

So every attack library attacks the whole of it, and images are judged as ``predict`` answers. The forward pass is ART's own.
The backward pass is the best that is known for each part:

==================================  ===================================================================================
part                                gradient
==================================  ===================================================================================
standardisation                     its own
thermometer encoding                that of smooth steps; ART's estimate is 0 for black pixels
spatial smoothing                   that of the median; ART's estimate is the identity
another preprocessor in PyTorch     its own, or that of its ``estimate_forward``
another preprocessor                its ``estimate_gradient``; the identity where that is 0 or not given (Athalye et al.
                                    2018, section 4.1). None where the shape changes and no estimate is given
postprocessor                       the identity
==================================  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.defences.postprocessor.postprocessor import Postprocessor
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.estimators.base import QuantizedClassifier
from art_qplugins.estimators.twins import TWINS
from art_qplugins.quantizers.functional import straight_through

__all__ = ["Deployed", "as_module", "deployed"]

_STANDARDISATIONS = (StandardisationMeanStd, StandardisationMeanStdPyTorch)


class Deployed(nn.Module):
    """A network between ART's pre- and postprocessors.

    Points outside [0, 1], for which some attacks ask, are answered as the nearest point inside: an encoder has no answer
    there. Draws come from NumPy's global generator where a preprocessor uses it.

    :param before: preprocessors in the order in which they are applied to pixels (N, C, H, W) in [0, 1].
    :param after: postprocessors of the network's outputs (N, K), in their order.
    """

    def __init__(self, network: nn.Module, before: Sequence[Preprocessor], after: Sequence[Postprocessor]) -> None:
        super().__init__()
        self.before = nn.Sequential(*map(_step, before))
        self.network = network
        self.after = nn.Sequential(*map(_After, after))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.before(straight_through(x.clamp(0, 1), x)))
        answers: Tensor = self.after(outputs)
        return answers

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether it answers for an image of this shape, (C, H, W)."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                self(torch.zeros(1, *shape, device=device))
        except Exception:  # others' code
            return False
        return True


def deployed(estimator: PyTorchClassifier) -> QuantizedClassifier:
    """The estimator whose module does all that ``predict`` does; ``estimator`` itself where its module does already.

    :raises InputError: where its class has a ``predict`` of its own, which no module here repeats.
    """
    own = next((c for c in type(estimator).__mro__ if "predict" in vars(c)), PyTorchClassifier)
    if own not in (PyTorchClassifier, QuantizedClassifier):
        raise InputError(
            f"estimators: {own.__name__} has a predict of its own, which attacks would not see; put what it does into the "
            "module, and wrap that in a PyTorchClassifier"
        )
    before = [p for p in estimator.preprocessing_operations if p.apply_predict and not _is_identity(p)]
    after = [p for p in estimator.postprocessing_defences or () if p.apply_predict]
    around = bool(estimator.preprocessing_operations or estimator.postprocessing_defences)
    if isinstance(estimator, QuantizedClassifier) and not around:
        return estimator
    module = Deployed(estimator.model, before, after) if before or after else estimator.model
    return QuantizedClassifier(
        module,
        estimator._loss,
        estimator.input_shape,
        estimator.nb_classes,
        device_type=str(estimator.device),
        abstain=getattr(estimator, "abstain", None),
    )


def as_module(made: Any) -> Any:
    """Of an ART estimator, the module that does all that its ``predict`` does; anything else as it is."""
    return deployed(made).model if isinstance(made, PyTorchClassifier) else made


def _is_identity(defence: Preprocessor) -> bool:
    standard = isinstance(defence, _STANDARDISATIONS)
    return standard and bool(np.all(defence.mean == 0) and np.all(defence.std == 1))


def _step(defence: Preprocessor) -> nn.Module:
    if type(defence) in TWINS:  # a subclass may do otherwise
        return TWINS[type(defence)](defence)
    return _Differentiable(defence) if isinstance(defence, PreprocessorPyTorch) else _OnArrays(defence)


class _Held(nn.Module):
    """A pre- or postprocessor that is no module."""

    def __init__(self, defence: Any) -> None:
        super().__init__()
        self.defence = defence

    def extra_repr(self) -> str:
        return type(self.defence).__name__


class _Differentiable(_Held):
    """A preprocessor in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.defence.forward(x)[0]
        if not (x.requires_grad and torch.is_grad_enabled()):
            return value
        if type(self.defence).estimate_forward is not PreprocessorPyTorch.estimate_forward:
            return straight_through(value, self.defence.estimate_forward(x))
        return value if value.requires_grad or value.shape != x.shape else straight_through(value, x)


class _OnArrays(_Held):
    """A preprocessor that works on arrays."""

    def forward(self, x: Tensor) -> Tensor:
        value = _as_tensor(self.defence(_as_array(x))[0], x)
        if type(self.defence).estimate_gradient is not Preprocessor.estimate_gradient:
            estimated: Tensor = _Estimated.apply(x, value, self.defence)
            return estimated
        return straight_through(value, x) if value.shape == x.shape else value


class _After(_Held):
    """A postprocessor."""

    def forward(self, outputs: Tensor) -> Tensor:
        value = _as_tensor(self.defence(_as_array(outputs)), outputs)
        return straight_through(value, outputs) if value.shape == outputs.shape else value


class _Estimated(torch.autograd.Function):
    """``value`` in the forward pass, and the preprocessor's estimate in the backward pass."""

    @staticmethod
    def forward(x: Tensor, value: Tensor, defence: Preprocessor) -> Tensor:
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Preprocessor], output: Tensor) -> None:
        x, _, ctx.defence = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        found = _as_tensor(ctx.defence.estimate_gradient(_as_array(x), _as_array(grad)), x)
        if found.shape == grad.shape:
            lost = (found == 0).flatten(1).all(1)
            found[lost] = grad[lost]
        return found if found.shape == x.shape else None, None, None


def _as_array(x: Tensor) -> np.ndarray:
    """A copy in float32, because preprocessors may write into what they are given."""
    return x.detach().cpu().numpy().astype(np.float32)


def _as_tensor(array: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(array, dtype=np.float32)).to(like)
