"""The three families as ART estimators. Each takes a quantized network, or quantizes a copy of a given network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.lipschitz import Orthogonality
from art_qplugins.domains import BITS, COUNT, POSITIVE, TABLE, Domain, Maybe, Number, check, check_all
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.estimators.base import QuantizedClassifier
from art_qplugins.estimators.inputs import Pixels
from art_qplugins.guard import evaluating
from art_qplugins.information import Uncertainty, uncertainty
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers.convert import ARGUMENTS, quantize
from art_qplugins.quantizers.noise import NOISE_KEY, stochastic_layers
from art_qplugins.quantizers.protocol import activation_quantizers
from art_qplugins.quantizers.stochastic import stochastic_quantizers
from art_qplugins.torch_domains import MODULE

__all__ = ["DQClassifier", "MuLawClassifier", "SQEnsembleClassifier"]

#: Options of an ensemble other than its number of draws.
ENSEMBLE_OPTIONS = ("rule", "eot_draws", "eot_chunk", "frozen", "antithetic", "gradient_of")


#: The arguments of :func:`~art_qplugins.quantize` that :class:`MuLawClassifier` takes too.
_MU_LAW_ARGUMENTS = (
    *("weight_bits", "mu", "mu_layers", "mu_normalize", "mu_gain_only"),
    *("symmetric", "granularity", "narrow_range", "zero_point", "trainable"),
)
_STOCHASTIC: dict[str, Domain] = {
    "model": MODULE,
    "draws": Maybe(COUNT),
    "activation_bits": Maybe(BITS),
    "alpha": Number(1),
    "seed": NOISE_KEY,
    "options": Maybe(TABLE),
}


class DQClassifier(QuantizedClassifier):
    """Defensive Quantization (Lin, Gan & Han 2019): k-bit activations, attacked through the straight-through gradient.

    :param activation_bits: bits of the activations of a copy of ``model``. ``None`` takes ``model`` as it is, which
        then needs quantized activations.
    :param clip: upper level of the activations, if ``activation_bits`` is given.
    :param training_defences: defences that :meth:`fit` applies. By default it is the paper's orthogonality penalty.
    :raises InputError: where there is no quantized activation.

    The other parameters are those of :class:`~art_qplugins.estimators.QuantizedClassifier`, position by position.
    """

    estimator_params = [*QuantizedClassifier.estimator_params, "activation_bits", "clip"]

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        *args: Any,
        activation_bits: int | None = None,
        clip: float = 6.0,
        training_defences: Sequence[Defence] | None = None,
        **kwargs: Any,
    ) -> None:
        check_all(locals(), {"model": MODULE, "activation_bits": Maybe(BITS), "clip": POSITIVE})
        if activation_bits is not None:
            model = quantize(model, activation_bits=activation_bits, clip=clip)
        elif not activation_quantizers(model):
            raise InputError(
                f"DQClassifier: {type(model).__name__} has no quantized activation; pass activation_bits, e.g. 4"
            )
        self.activation_bits, self.clip = activation_bits, clip
        defences = (Orthogonality(),) if training_defences is None else training_defences
        super().__init__(model, loss, input_shape, nb_classes, *args, training_defences=defences, **kwargs)


class MuLawClassifier(QuantizedClassifier):
    """Mu-law mapped, weight-quantized network (Song et al. 2021).

    :param weight_bits: bits of the weights of a copy of ``model``. If ``mu`` is ``None`` too, ``model`` is taken as it
        is.
    :param mu: strength of the mapping of ``mu_layers``, e.g. 255.
    :param mu_layers: the layers that are mapped: so many of the last ones, or a list of names and positions; see
        :func:`~art_qplugins.quantize`.
    :param mu_normalize: see :class:`~art_qplugins.MuLawMapping`, also for ``mu_gain_only``.
    :param symmetric: see :class:`~art_qplugins.UniformWeightQuantizer`, also for ``granularity``, ``narrow_range`` and
        ``zero_point``.
    :param trainable: keep the maps as parametrizations, so that :meth:`fit` trains through them. By default the mapped
        weights are plain parameters.
    """

    estimator_params = [*QuantizedClassifier.estimator_params, *_MU_LAW_ARGUMENTS]

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        *args: Any,
        weight_bits: int | None = None,
        mu: float | None = None,
        mu_layers: int | Sequence[str | int] = 1,
        mu_normalize: bool = False,
        mu_gain_only: bool = False,
        symmetric: bool = True,
        granularity: str = "per_channel",
        narrow_range: bool = True,
        zero_point: bool = False,
        trainable: bool = False,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _MU_LAW_ARGUMENTS}
        check("model", model, MODULE)
        check_all(given, {name: ARGUMENTS[name] for name in given})
        if weight_bits is not None or mu is not None:
            model = quantize(model, **given)
        for name, value in given.items():
            setattr(self, name, value)
        super().__init__(model, loss, input_shape, nb_classes, *args, **kwargs)


class SQEnsembleClassifier(QuantizedClassifier):
    """Stochastic-quantization ensemble (arXiv 2312.00105; a reconstruction). Attacks see the average over draws.

    :param model: a network with stochastic layers, or a :class:`~art_qplugins.models.ensemble.StochasticEnsemble`.
    :param draws: number of members of the ensemble, drawn afresh at every call. ``None`` takes the number of the
        ensemble that ``model`` is, else 8.
    :param activation_bits: bits of the stochastic activations of a copy of ``model``.
    :param alpha: sparsity of the stochastic activations, if ``activation_bits`` is given.
    :param seed: key of the noise, if ``activation_bits`` is given.
    :param options: ``rule``, ``eot_draws``, ``eot_chunk``, ``frozen``, ``antithetic`` and ``gradient_of``, each as in
        :class:`~art_qplugins.models.ensemble.StochasticEnsemble`. Those not given stay as the model has them.
    :param training_defences: defences that :meth:`fit` applies. By default they are mutual information and bin spacing,
        where the network has stochastic quantizers.
    :raises InputError: where the model has no stochastic layer, or an option is unknown or out of range.
    """

    estimator_params = [*QuantizedClassifier.estimator_params, "draws", "activation_bits", "alpha", "seed", "options"]
    model: StochasticEnsemble

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        *args: Any,
        draws: int | None = None,
        activation_bits: int | None = None,
        alpha: float = 2.0,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        training_defences: Sequence[Defence] | None = None,
        **kwargs: Any,
    ) -> None:
        check_all(locals(), _STOCHASTIC)
        if activation_bits is not None:
            if stochastic_layers(model):
                raise InputError("activation_bits: the model has stochastic activations already; leave it out")
            model = quantize(model, activation_bits=activation_bits, alpha=alpha, seed=seed)
        self.activation_bits, self.alpha, self.seed, self.options = activation_bits, alpha, seed, dict(options or {})
        own: tuple[Defence, ...] = (MutualInformation(), BinSpacing()) if stochastic_quantizers(model) else ()
        defences = own if training_defences is None else training_defences
        ensemble = _ensemble(model, draws, self.options)
        super().__init__(ensemble, loss, input_shape, nb_classes, *args, training_defences=defences, **kwargs)

    @property
    def draws(self) -> int:
        """Number of members of the ensemble."""
        return self.model.draws

    @draws.setter
    def draws(self, draws: int | None) -> None:
        if draws is not None:
            self.model.draws = check("draws", draws, COUNT)

    def predict_uncertainty(self, x: Pixels, batch_size: int = 128, *, draws: int | None = None) -> Uncertainty:
        """How far the members disagree: arrays (N,) of entropy, mutual information and variation ratio.

        A member's probabilities are the softmax of its logits, whatever the rule. ART's preprocessors are applied as in
        :meth:`predict`, its postprocessors are not. Members are drawn afresh at every call, unless the ensemble is frozen.
        The network computes few of them at a time, so that its memory does not grow with their number.

        :param x: (N, C, H, W) in [0, 1].
        :param draws: number of members, e.g. 128. ``None`` for that of the ensemble.
        :raises InputError: where the ensemble is frozen to another number of draws.
        """
        check_all(locals(), {"batch_size": COUNT, "draws": Maybe(COUNT)})
        members = self.draws if draws is None else draws
        with evaluating(self.model), torch.no_grad():
            parts = [
                uncertainty(self.model.members(part, members).softmax(-1)) for part in self._inputs(x).split(batch_size)
            ]
        return Uncertainty(*(torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True)))

    def _training_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of the mean, or the mean of the members' losses, depending on the ensemble's ``gradient_of``."""
        if self.model.gradient_of == "mean":
            return super()._training_loss(inputs, labels)
        members = self.model.members(inputs)
        loss: Tensor = self._loss(members.flatten(0, 1), labels.repeat(len(members), *[1] * (labels.dim() - 1)))
        return loss


def _ensemble(model: nn.Module, draws: int | None, options: Mapping[str, Any]) -> StochasticEnsemble:
    """``model`` as an ensemble with these draws and options; ``model`` itself where nothing changes."""
    if not isinstance(model, StochasticEnsemble):
        return StochasticEnsemble(model, 8 if draws is None else draws, **_known(options))
    if draws is None and not options:
        return model
    kept = {name: getattr(model, name) for name in ENSEMBLE_OPTIONS}
    return StochasticEnsemble(model.network, model.draws if draws is None else draws, **kept | _known(options))


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options``.

    :raises InputError: where the ensemble has no such option.
    """
    for name in options:
        if name not in ENSEMBLE_OPTIONS:
            raise InputError(f"options: unknown option {name!r}{did_you_mean(name, ENSEMBLE_OPTIONS)}")
    return dict(options)
