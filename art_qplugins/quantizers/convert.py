"""``quantize`` makes a quantized copy of any network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.domains import BITS, FLAG, POSITIVE, TABLE, TEXT, Domain, Maybe, Number, OneOf, check, check_all
from art_qplugins.errors import InputError, shown
from art_qplugins.quantizers.layers import FUNCTIONS, WEIGHTED, activations, own_range
from art_qplugins.quantizers.noise import NOISE_KEY
from art_qplugins.quantizers.protocol import activation_quantizers, as_quantizer
from art_qplugins.quantizers.registry import ACTIVATION_FUNCTIONS, LAYERS, Quantizer, switched_on
from art_qplugins.quantizers.report import Part, parts_of
from art_qplugins.quantizers.stored import add_stored_maps, parametrizations, weight_maps
from art_qplugins.quantizers.weight import GRANULARITY, MuLawMapping
from art_qplugins.torch_domains import MODULE

__all__ = ["bake", "quantize", "record_maps", "weight_layers"]

#: Number of parts that a warning names. The report has all parts.
_NAMED = 4

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
    "seed": NOISE_KEY,
    **dict.fromkeys(
        ("mu_normalize", "mu_gain_only", "symmetric", "narrow_range", "zero_point", "trainable", "strict"), FLAG
    ),
}


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The (name, module) of every linear and convolutional layer, in the order of the module tree."""
    check("model", model, MODULE)
    return [(name, m) for name, m in model.named_modules() if isinstance(m, WEIGHTED)]


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
    seed: int = 0,
    trainable: bool = False,
    strict: bool = False,
) -> nn.Module:
    """A quantized copy of ``model``. The given model does not change.

    Weights of every linear and convolutional layer are first mapped and then quantized, ``Q(F(W))``. Biases and norms
    stay in float32. Activations other than ``nn.ReLU``, ``nn.ReLU6``, ``nn.Hardtanh`` and ``nn.Tanh`` stay in float32
    too, and so do activations that ``forward`` calls as functions. A warning names the parts that should be quantized and
    are not. :func:`~art_qplugins.quantization_report` lists every part with its bits.

    Under autocast quantizers compute in float32 and give float32. What they take may have been rounded before: of the 256
    levels of 8 bits on [0, 6], a bfloat16 activation reaches at most 235. Up to 7 bits it reaches all.

    :param model: any module whose activations are modules.
    :param activation_bits: bits of every activation.
    :param weight_bits: bits of every weight.
    :param clip: upper level of the quantized activations. Their lowest level is 0. ``nn.Hardtanh`` keeps its own range.
        ``nn.Tanh`` stays as it is, and its values are quantized on [-1, 1].
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
    :param seed: key of the noise of stochastic activations.
    :param trainable: keep the maps on weights as parametrizations, for quantization-aware training. By default the
        mapped weights become plain parameters: then the module is faster, and it can be pickled.
    :param strict: raise an error instead of the warning.
    :raises InputError: where there is nothing to quantize, where a setting is out of range or belongs to no chosen
        quantizer, where no layer has a given name, where the activations that ``activation_function`` would replace are
        quantized, or where a weight is outside the mu-law's domain [-1, 1], all 0, or was mapped before.
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
        "weight_bits": weight_bits,
        "symmetric": symmetric,
        "granularity": granularity,
        "narrow_range": narrow_range,
        "zero_point": zero_point,
        "mu": mu,
        "mu_layers": mu_layers,
        "mu_normalize": mu_normalize,
        "mu_gain_only": mu_gain_only,
    }
    rows = switched_on(table)
    twin = copy.deepcopy(model)
    if activation_function is not None:
        _exchange_activations(twin, activation_function)
    for row in rows:
        if row.place == "activation":
            _swap_activations(twin, row, table, seed)
        else:
            _map_weights(twin, row, table)
    twin = twin if trainable else bake(twin)
    if float_parts := _unexpected(twin, table):
        _complain(type(model).__name__, float_parts, strict)
    return twin


def _unexpected(twin: nn.Module, table: Mapping[str, Any]) -> list[Part]:
    """The parts that are in float, or have another function, although a table asks for something else."""
    all_activations = table["activation_bits"] is not None and table["activation_layers"] is None
    wanted = {
        "activation": table["activation_bits"] is not None or table["activation_function"] is not None,
        "weight": table["weight_bits"] is not None,
    }
    parts = [part for part in parts_of(twin, checked=False) if part.bits is None and wanted[part.kind]]
    return [part for part in parts if not part.expected or (part.kind == "activation" and all_activations)]


def _complain(model: str, parts: Sequence[Part], strict: bool) -> None:
    names = [f"{part.name or model} ({part.type})" for part in parts]
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    message = f"{model}: in float after quantize(): {shown}; quantization_report(model) says why"
    if strict:
        raise InputError(message)
    warnings.warn(message, UserWarning, stacklevel=3)


def bake(model: nn.Module) -> nn.Module:
    """Replace every parametrized weight by its value, in place: the deployed form. Returns ``model``."""
    check("model", model, MODULE)
    with torch.no_grad():
        for module in model.modules():
            if maps := parametrizations(module):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
                add_stored_maps(module, *maps)
    return model


def _exchange_activations(model: nn.Module, function: str) -> None:
    if activation_quantizers(model):
        raise InputError(
            f"activation_function: the activations of {type(model).__name__} are quantized already; give the network in float"
        )
    for path, activation in _activations(model).items():
        _put(model, path, FUNCTIONS[function]().train(activation.training))


def _swap_activations(model: nn.Module, row: Quantizer, table: Mapping[str, Any], seed: int) -> None:
    found = _activations(model)
    for layer, path in enumerate(_chosen(list(found), table, "activation_layers", "activations")):
        noise = {"seed": seed, "layer": layer} if row.random else {}
        _put(model, path, _quantized(found[path], row, table, noise).train(found[path].training))


def _activations(model: nn.Module) -> dict[str, nn.Module]:
    found = activations(model)
    if not found:
        raise InputError(
            f"{type(model).__name__} has no activation module to quantize; "
            "use nn.ReLU() modules instead of functional calls such as F.relu(x)"
        )
    return found


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _chosen(names: Sequence[str], table: Mapping[str, Any], key: str, what: str) -> list[str]:
    """The ``names`` that ``table[key]`` stands for, in their order; all of them for ``None``.

    :param what: what they name, in a message.
    """
    wanted = table[key]
    if wanted is None:
        return list(names)
    if not isinstance(wanted, (list, tuple)):
        if not 1 <= wanted <= len(names):
            raise InputError(f"{key} is {wanted}, and the network has {len(names)} {what}")
        return list(names[-wanted:])
    chosen: set[str] = set()
    for one in wanted:
        if isinstance(one, str):
            found = [name for name in names if fnmatchcase(name, one)]
        else:
            found = list(names[one : one + 1 or None])
        if not found:
            which = (
                f"none of the {what} is called {shown(one)}" if isinstance(one, str) else f"there is no position {one}"
            )
            raise InputError(f"{key}: {which}; the {what} are: {_listed(names)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def _listed(names: Sequence[str]) -> str:
    """Names, by their positions those of both ends where there are many."""
    if len(names) <= 2 * _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])}, ... {', '.join(names[-_NAMED:])} ({len(names)})"


def _quantized(activation: nn.Module, row: Quantizer, table: Mapping[str, Any], noise: Mapping[str, int]) -> nn.Module:
    """The quantized form of an activation, or the activation itself if ``row`` cannot have its range."""
    if (ends := own_range(activation)) is None:
        made = row.make(table, **noise)
    elif row.signed:
        made = row.make({**table, "clip": ends[1]}, low=ends[0], **noise)
    else:
        return activation
    if not isinstance(made, nn.Module) or as_quantizer(made) is None:
        raise InputError(
            f"quantizer {row.name!r} makes a {type(made).__name__}, which attacks cannot replace; "
            "it needs num_bits, range and full_precision as in art_qplugins.quantizers.ActivationQuantizer"
        )
    return nn.Sequential(activation, made) if isinstance(activation, nn.Tanh) else made


def _map_weights(model: nn.Module, row: Quantizer, table: Mapping[str, Any]) -> None:
    for name, layer in _layers(model, row, table):
        weight_map: nn.Module = row.make(table)
        if isinstance(weight_map, MuLawMapping):
            weight_map.check(cast(Tensor, layer.weight), name)
            if any(isinstance(one, MuLawMapping) for one in weight_maps(layer)):
                raise InputError(
                    f"mu-law: weight {name!r} is mapped already; quantize the network that is not mapped yet"
                )
        parametrize.register_parametrization(layer, "weight", weight_map)


def _layers(model: nn.Module, row: Quantizer, table: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
    """The layers whose weights ``row`` maps."""
    layers = dict(weight_layers(model))
    if row.layers:
        names = _chosen(list(layers), table, row.layers, "layers with weights")
        return [(name, layers[name]) for name in names]
    if not layers:
        key = row.switch[0]
        raise InputError(f"{key} is {table[key]}, and {type(model).__name__} has no layer with weights to quantize")
    return list(layers.items())


def record_maps(model: nn.Module, table: Mapping[str, Any]) -> None:
    """Record that the loaded weights of ``model`` are already mapped by a ``quantize`` table.

    :param table: only the keys about weights.
    """
    for row in switched_on(table):
        for _, layer in _layers(model, row, table):
            add_stored_maps(layer, row.make(table))
