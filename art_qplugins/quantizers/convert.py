"""``quantize`` makes a quantized copy of any network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from art_qplugins.domains import (
    BITS,
    FLAG,
    POSITIVE,
    TABLE,
    TEXT,
    Domain,
    Maybe,
    Number,
    OneOf,
    check_all,
)
from art_qplugins.errors import InputError
from art_qplugins.quantizers.attention import open_attention
from art_qplugins.quantizers.batch_norm import fold_batch_norm
from art_qplugins.quantizers.calibration import PERCENTILE, calibrate, check_pixels
from art_qplugins.quantizers.choose import NAMED
from art_qplugins.quantizers.functions import QUANTIZABLE
from art_qplugins.quantizers.layers import ACTIVATIONS
from art_qplugins.quantizers.maps import bake, map_weights
from art_qplugins.quantizers.noise import NOISE_KEY
from art_qplugins.quantizers.registry import ACTIVATION_FUNCTIONS, ALSO, EXEMPT, LAYERS, RANGES, switched_on
from art_qplugins.quantizers.report import ATTENTION, Part, parts_of
from art_qplugins.quantizers.swap import avoid_fast_paths, exchange_activations, quantize_activations, quantize_inputs
from art_qplugins.quantizers.tracing import call_modules, split_calls
from art_qplugins.quantizers.weight import GRANULARITY
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["ARGUMENTS", "quantize"]

#: The domains of the arguments of :func:`quantize`.
ARGUMENTS: dict[str, Domain] = {
    "model": MODULE,
    **dict.fromkeys(("activation_bits", "weight_bits"), Maybe(BITS)),
    "clip": POSITIVE,
    "mu": Maybe(POSITIVE),
    "activation": Maybe(TEXT),
    "activation_function": Maybe(OneOf(ACTIVATION_FUNCTIONS)),
    "activation_options": Maybe(TABLE),
    "alpha": Maybe(Number(1)),
    "activation_layers": Maybe(LAYERS),
    "mu_layers": LAYERS,
    "granularity": GRANULARITY,
    "ranges": OneOf(RANGES),
    "calibration": Maybe(IMAGES),
    "percentile": PERCENTILE,
    "also": ALSO,
    "exempt": EXEMPT,
    "seed": NOISE_KEY,
    **dict.fromkeys(
        ("mu_normalize", "mu_gain_only", "symmetric", "narrow_range", "zero_point", "trainable", "strict"), FLAG
    ),
    **dict.fromkeys(("functional", "fold_batch_norm"), FLAG),
}


def quantize(
    model: nn.Module,
    activation_bits: int | None = None,
    weight_bits: int | None = None,
    clip: float = 6.0,
    mu: float | None = None,
    *,
    activation: str | None = None,
    activation_function: str | None = None,
    activation_options: Mapping[str, Any] | None = None,
    alpha: float | None = None,
    activation_layers: int | Sequence[str | int] | None = None,
    mu_layers: int | Sequence[str | int] = 1,
    mu_normalize: bool = False,
    mu_gain_only: bool = False,
    symmetric: bool = True,
    granularity: str = "per_channel",
    narrow_range: bool = True,
    zero_point: bool = False,
    ranges: str = "fixed",
    calibration: Tensor | None = None,
    percentile: float = 99.99,
    also: Sequence[str] = (),
    exempt: Sequence[str | int] = (),
    functional: bool = False,
    fold_batch_norm: bool = False,
    seed: int = 0,
    trainable: bool = False,
    strict: bool = False,
) -> nn.Module:
    """A quantized copy of ``model``. The given model does not change.

    Weights of every linear and convolutional layer, and of the projections of attention, are first mapped and then quantized,
    ``Q(F(W))``. The stacked projections of an ``nn.MultiheadAttention`` are one weight. Biases and norms stay in float32.

    ReLU, ReLU6, Hardtanh, Tanh, Hardswish, Hardsigmoid, GELU and SiLU are quantized. Other activations stay in float32. A
    warning names the parts that should be quantized and are not. :func:`~art_qplugins.quantization_report` lists every
    part with its bits.

    Under autocast quantizers compute in float32 and give float32. What they take may have been rounded before: of the 256
    levels of 8 bits on [0, 6], a bfloat16 activation reaches at most 235. Up to 7 bits it reaches all.

    :param model: any module. Activations that it calls as functions need ``functional``.
    :param activation_bits: bits of every activation.
    :param weight_bits: bits of every weight.
    :param clip: upper level of the quantized activations. The lowest is that of the function: 0 of ReLU, -0.38 of Hardswish.
        Hardtanh, Hardsigmoid and softmax keep their own range. ``nn.Tanh`` stays as it is, and its values are quantized on
        [-1, 1]. ReLU, Hardtanh and tanh have a level at each end, the others one at 0.
    :param mu: strength of the mu-law mapping of ``mu_layers``; ``None`` for no mapping.
    :param activation: the quantizer of activations, by its name in :data:`~art_qplugins.quantizers.QUANTIZERS`.
        ``None`` gives a :class:`QuantReLU`, for Hardtanh and tanh a :class:`QuantHardtanh`, and with ``alpha`` a
        :class:`StochasticQuantizer`.
    :param activation_function: what every activation becomes before it is quantized: ``"relu6"`` on [0, 6], ``"relu1"``
        on [0, 1] or ``"tanh"``. Without ``activation_bits`` it is in full precision. ``None`` keeps the network's own.
    :param activation_options: settings of that quantizer that have no argument here.
    :param alpha: sparsity of stochastic activations.
    :param activation_layers: the activations that are quantized: so many of the last ones, or a list of their names in
        ``model.named_modules()``, of patterns such as ``"group3.*"``, and of positions, 0 the first and -1 the last; ``None``
        for all.
    :param mu_layers: the layers that are mapped: so many of the last ones, or a list as above.
    :param mu_normalize: see :class:`MuLawMapping`, also for ``mu_gain_only``.
    :param symmetric: see :class:`UniformWeightQuantizer`, also for ``granularity``, ``narrow_range`` and ``zero_point``.
    :param ranges: ``"fixed"``, by ``clip``; or observed on ``calibration``: ``"min-max"``, ``"percentile"`` or ``"mse"``, see
        :func:`~art_qplugins.quantizers.calibrate`. Then every activation has 0 among its levels, and each call of a
        module has a range of its own: ``torch.fx`` finds the calls, and where it cannot, ranges that differ are an error.
    :param calibration: images (N, C, H, W) float32 in [0, 1].
    :param percentile: of ``ranges="percentile"``, above 50.
    :param also: what is quantized only where it is asked for: ``"layer-norm"``, the inputs of every ``nn.LayerNorm``, and
        ``"softmax"``, the inputs and values of every ``nn.Softmax``, and of that in every ``nn.MultiheadAttention``. With
        fixed ranges the inputs are in [-clip, clip].
    :param exempt: layers whose weights stay in float32, named as in a list of ``mu_layers``: ``[0, -1]`` are the first and
        the last.
    :param functional: also quantize activations that a ``forward`` calls as functions, such as ``F.relu(x)``. A module
        that calls some becomes a :class:`~art_qplugins.quantizers.traced.Traced` with the same parts.
    :param fold_batch_norm: fold each batch norm with its running statistics into the layer before it, as deployments do.
    :param seed: key of the noise of stochastic activations.
    :param trainable: keep the maps on weights as parametrizations, for quantization-aware training. By default the
        mapped weights become plain parameters: then the module is faster, and it can be pickled.
    :param strict: raise an error instead of the warning.
    :raises InputError: where there is nothing to quantize, where pixels are outside [0, 1], where a setting is out of range or
        belongs to no chosen quantizer, where no layer has a given name, where the activations that ``activation_function``
        would replace are quantized, or where a weight is outside the mu-law's domain [-1, 1], all 0, or was mapped before.
    """
    check_all(locals(), ARGUMENTS)
    table = {
        "activation": activation,
        "activation_function": activation_function,
        "options": activation_options,
        "activation_bits": activation_bits,
        "clip": clip,
        "alpha": alpha,
        "activation_layers": activation_layers,
        "ranges": ranges,
        "also": also,
        "functional": functional,
        "weight_bits": weight_bits,
        "exempt": exempt,
        "symmetric": symmetric,
        "granularity": granularity,
        "narrow_range": narrow_range,
        "zero_point": zero_point,
        "mu": mu,
        "mu_layers": mu_layers,
        "mu_normalize": mu_normalize,
        "mu_gain_only": mu_gain_only,
    }
    _check_calibration(ranges, calibration)
    twin, unfolded = _prepared(model, table, fold=fold_batch_norm)
    for row in switched_on(table):
        if row.place == "activation":
            quantize_activations(twin, row, table, seed)
            quantize_inputs(twin, row, table)
        else:
            map_weights(twin, row, table)
    twin = twin if trainable else bake(twin)
    if calibration is not None:
        calibrate(twin, calibration, ranges=ranges, percentile=percentile)
    if float_parts := unfolded + _unexpected(twin, table):
        _complain(type(model).__name__, float_parts, strict)
    return twin


def _prepared(model: nn.Module, table: Mapping[str, Any], *, fold: bool) -> tuple[nn.Module, list[Part]]:
    """A copy on one path, whose activations are modules, one for each range, and its batch norms that could not be folded."""
    twin, left = copy.deepcopy(model), []
    avoid_fast_paths(twin)
    if "softmax" in table["also"]:
        open_attention(twin)
    if fold:
        reason = "it is not right behind a convolution or linear layer that it could be folded into"
        left = [Part(path, "weight", _class(twin, path), None, reason) for path in fold_batch_norm(twin)]
    if table["functional"]:
        twin = call_modules(twin, [name for name in QUANTIZABLE if name != "softmax" or name in table["also"]])
    if table["activation_function"] is not None:
        exchange_activations(twin, table["activation_function"])
    if table["ranges"] != "fixed":
        twin = split_calls(twin, lambda module: isinstance(module, (*ACTIVATIONS, nn.Softmax)))
    return twin, left


def _class(model: nn.Module, path: str) -> str:
    return type(model.get_submodule(path)).__name__


def _check_calibration(ranges: str, calibration: Tensor | None) -> None:
    if calibration is None and ranges != "fixed":
        raise InputError(f"ranges: {ranges!r} is observed on images; give them as calibration")
    if calibration is not None:
        if ranges == "fixed":
            raise InputError('calibration: fixed ranges need no images; give ranges = "mse" or leave calibration out')
        check_pixels(calibration)


def _unexpected(twin: nn.Module, table: Mapping[str, Any]) -> list[Part]:
    """The parts that are in float, or have another function, although a table asks for something else."""
    all_activations = table["activation_bits"] is not None and table["activation_layers"] is None
    wanted = {
        "activation": table["activation_bits"] is not None or table["activation_function"] is not None,
        "weight": table["weight_bits"] is not None,
    }
    parts = [part for part in parts_of(twin, checked=False) if part.bits is None and wanted[part.kind]]
    if "softmax" not in table["also"]:
        parts = [part for part in parts if part.type != ATTENTION]
    return [part for part in parts if not part.expected or (part.kind == "activation" and all_activations)]


def _complain(model: str, parts: Sequence[Part], strict: bool) -> None:
    names = [f"{part.name or model} ({part.type})" for part in parts]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    message = f"{model}: in float after quantize(): {shown}; quantization_report(model) says why"
    if strict:
        raise InputError(message)
    warnings.warn(message, UserWarning, stacklevel=3)
