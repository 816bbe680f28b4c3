"""The network of a model in a recipe: with initial weights, with those of its base, or with those of its checkpoint."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset
from art_qplugins.defences import DEFENCES
from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError, at
from art_qplugins.guard import isolated
from art_qplugins.models.filtered import unfiltered
from art_qplugins.models.mixture import Mixture
from art_qplugins.models.normalize import Normalize
from art_qplugins.quantizers import StochasticQuantizer, activation_quantizers, calibrate, quantize
from art_qplugins.quantizers.batch_norm import fold_batch_norm
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.quantizers.registry import weight_keys
from art_qplugins.quantizers.stored import restore_stored_maps, stored_maps
from art_qplugins.recipes.architectures import architecture
from art_qplugins.recipes.model import Architecture, ModelSettings
from art_qplugins.recipes.schema import Recipe
from art_qplugins.recipes.stored import check_stored, remember_maps, weight_maps_of

__all__ = ["blank", "first_weights", "loaded", "seed_of", "training_defences", "untrained"]


def loaded(settings: ModelSettings, data: Dataset, seed: int) -> nn.Module:
    """The network with the weights of its checkpoint."""
    module = blank(settings, data, seed)
    description = load_checkpoint(str(settings.checkpoint), module)
    check_stored(settings, description, data)
    remember_maps(module, description)
    return module


def untrained(settings: ModelSettings, data: Dataset, seed: int, models: Mapping[str, nn.Module]) -> nn.Module:
    """The network as its training begins: with the weights of its base, and with the maps on them as parametrizations.

    Of a mixture, the trained networks of its members, which it shares with them.
    """
    if settings.members is not None:
        members = [models[name] for name in settings.members]
        return Mixture(members, rule=settings.rule, random=settings.random, seed=seed)
    module = blank(settings, data, seed)
    if settings.base is not None:
        _start_from(module, settings, _folded_as(module, settings, models[settings.base], data, seed))
    weight_maps = weight_maps_of(settings.model_dump()["quantize"])
    if weight_maps is not None:
        with at(f"models.{settings.name}.quantize"):
            module = quantize(module, **weight_maps, trainable=True)
    q = settings.quantize
    if q is not None and q.calibration is not None:
        with at(f"models.{settings.name}.quantize"):
            calibrate(module, _images(data, q.calibration, seed), ranges=q.ranges, percentile=q.percentile)
    return module


def blank(settings: ModelSettings, data: Dataset, seed: int) -> nn.Module:
    """The deployed network with initial weights. It has no maps on weights, because stored weights are mapped already."""
    network = _made(settings.architecture, data, seed)
    q = settings.quantize
    if q is not None and q.fold_batch_norm:
        fold_batch_norm(network)
    if q is not None and (q.activation_bits is not None or q.activation_function is not None):
        table = q.model_dump(exclude={"options", "calibration", "fold_batch_norm", *weight_keys()})
        # Two images make the layers. Their ranges come from the checkpoint, or are observed where training begins.
        some = None if q.calibration is None else _images(data, 2, seed)
        with at(f"models.{settings.name}.quantize"):
            network = quantize(network, **table, calibration=some, activation_options=q.options, seed=seed)
    if settings.normalize is not None:
        network = _normalized(network, settings, data)
    for defence in training_defences(settings):
        network = defence.network(network)
    for layer in stochastic_layers(network):
        layer.seed = seed  # also of layers that a defence put there
    return network


def _made(chosen: Architecture, data: Dataset, seed: int) -> nn.Module:
    row = architecture(chosen.name)
    options = row.resolve(chosen.options)
    with isolated(nn.Module(), seed):  # a network of the user may draw from any generator
        made = [row.load()(data.shape, data.nb_classes, **options) for _ in range(chosen.members)]
    return made[0] if len(made) == 1 else Mixture(made)


def first_weights(chosen: Architecture, data: Dataset, seed: int) -> str:
    """The hash of the weights with which a network of the user begins. They may come from a file, which its code does not hold."""
    digest = hashlib.sha256()
    for name, value in _made(chosen, data, seed).state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _images(data: Dataset, count: int, seed: int) -> Tensor:
    """So many images of a data set, or all, float32 in [0, 1]."""
    return data.take(min(count, len(data)), seed=seed).x()


def _normalized(network: nn.Module, settings: ModelSettings, data: Dataset) -> nn.Module:
    """The network behind a layer that normalizes its pixels."""
    chosen, channels = settings.normalize, data.shape[0]
    assert chosen is not None
    if len(chosen.mean) != channels:
        raise InputError(
            f"models.{settings.name}.normalize: {len(chosen.mean)} means, and the number of channels is {channels}; give "
            "one per channel"
        )
    return nn.Sequential(OrderedDict(normalize=Normalize(chosen.mean, chosen.std), network=network))


def training_defences(settings: ModelSettings) -> list[Defence]:
    """The defences that shape the training of a model."""
    return [DEFENCES[d.name].load()(**DEFENCES[d.name].resolve(d.options)) for d in settings.defences]


def seed_of(recipe: Recipe, settings: ModelSettings) -> int:
    """The seed of a model's training."""
    return recipe.seed if settings.seed is None else settings.seed


def _start_from(module: nn.Module, settings: ModelSettings, base: nn.Module) -> None:
    """Load the weights of ``base``. Except for quantizers of activations, both must have the same parameters.

    Filters before the networks have none: either may be without. The bins of a stochastic layer keep the range of their
    base, also with another number of bits.
    """
    module, base = unfiltered(module), unfiltered(base)
    given, wanted = _shapes(base), _shapes(module)
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise InputError(
                f"models.{settings.name}.base: {settings.base!r} is another network ({name} is "
                f"{given.get(name, 'absent')} there and {wanted.get(name, 'absent')} here); give both the same architecture"
            )
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    state = {name: value for name, value in base.state_dict().items() if value.shape == shapes.get(name)}
    module.load_state_dict(state, strict=False)
    restore_stored_maps(module, stored_maps(base))
    _keep_ranges(module, base)


def _folded_as(module: nn.Module, settings: ModelSettings, base: nn.Module, data: Dataset, seed: int) -> nn.Module:
    """``base`` with its batch norm folded where ``module`` has none."""
    q = settings.quantize
    if q is None or not q.fold_batch_norm or _shapes(unfiltered(base)) == _shapes(unfiltered(module)):
        return base
    whole = settings.model_copy(update={"quantize": q.model_copy(update={"fold_batch_norm": False})})
    plain = blank(whole, data, seed)
    _start_from(plain, settings, base)
    fold_batch_norm(plain)
    return plain


def _keep_ranges(module: nn.Module, base: nn.Module) -> None:
    """Keep the range of stochastic layers. With another number of bins, the spacing of ``base`` would change it."""
    learned = dict(base.named_modules())
    for name, layer in module.named_modules():
        before = learned.get(name)
        if not isinstance(layer, StochasticQuantizer) or not isinstance(before, StochasticQuantizer):
            continue
        if layer.num_bits != before.num_bits:
            layer.spread(*map(float, before.range))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer by its name, except those of quantizers of activations."""
    own = {id(value) for part, _ in activation_quantizers(module) for value in part.state_dict(keep_vars=True).values()}
    state = module.state_dict(keep_vars=True)
    return {name: tuple(value.shape) for name, value in state.items() if id(value) not in own}
