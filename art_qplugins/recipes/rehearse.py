"""Tries the networks and attacks of a recipe on its images, without training: what a run could not do is refused before it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from art_qplugins.attacks import ATTACKS
from art_qplugins.data import Dataset
from art_qplugins.deployment.endpoint import endpoints_of
from art_qplugins.deployment.parity import answering
from art_qplugins.errors import InputError, at
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.foreign import foreign
from art_qplugins.models.ensemble import trained_network
from art_qplugins.quantizers import bake
from art_qplugins.recipes.architectures import package_of_architecture
from art_qplugins.recipes.checks import doubts
from art_qplugins.recipes.describe import training_warnings
from art_qplugins.recipes.exported import try_export
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.networks import loaded, seed_of, training_defences, untrained
from art_qplugins.recipes.schema import AttackSettings, Recipe
from art_qplugins.threat import diameter

__all__ = ["rehearse"]

#: In place of weights that are not known: no map on weights refuses it.
_UNKNOWN = 1e-3


def rehearse(recipe: Recipe, data: Dataset, ready: Mapping[str, QuantizedClassifier]) -> list[str]:
    """Build each network once, load its checkpoint, start its defences, and ask it for the logits of one image.

    :param data: images of any split.
    :param ready: the models that are not built here, by name.
    :return: warnings: what is legal and surely a mistake, a line each, without its full stop.
    :raises InputError: where a network or an attack cannot be had, in one line that names it.
    """
    with at("attacks"):
        for attack in recipe.attacks:
            _try_attack(recipe, attack, data)
        if recipe.transfer is not None:
            _try_attack(recipe, recipe.transfer.crafted_on(None), data)
    for name, estimator in ready.items():
        _check_abstain(name, estimator, data)
    found = [*doubts(recipe), *_too_wide(recipe, data.shape), *_between_levels(recipe, ready)]
    for name, estimator in ready.items():
        found += [f"{name}: {endpoint.doubt}" for endpoint in endpoints_of(estimator.model) if endpoint.doubt]
    parents = {name for settings in recipe.models for name in settings.parents}
    networks = {name: trained_network(estimator.model) for name, estimator in ready.items() if name in parents}
    tried: set[str] = set()
    told: dict[str, list[str]] = {}
    for settings in recipe.models:
        if settings.name in ready:
            continue
        if settings.export is not None and settings.base is not None:
            try_export(settings, networks[settings.base], data.shape)
            continue
        for line in training_warnings(settings):
            told.setdefault(line, []).append(settings.name)
        key = _structure(recipe, settings, networks)
        if key in tried and settings.name not in parents:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            network = _try(recipe, settings, data, networks)
        found += [f"{settings.name}: {w.message}" for w in caught if w.category is UserWarning and key not in tried]
        tried.add(key)
        if settings.name in parents:
            networks[settings.name] = bake(network)
            if settings.checkpoint is None:  # what starts from it will have trained weights, which nobody knows yet
                for parameter in network.parameters():
                    parameter.data.fill_(_UNKNOWN)
    for line, (first, *others) in told.items():
        found.append(f"{first} and {len(others)} more: {line}" if others else f"{first}: {line}")
    return list(dict.fromkeys(found))


def _try_attack(recipe: Recipe, attack: AttackSettings, data: Dataset) -> None:
    row = ATTACKS[attack.id]
    row.require()
    for threat in recipe.threats_of(attack):
        row.check(attack.options, threat, data.nb_classes, data.shape)


def _check_abstain(name: str, estimator: QuantizedClassifier, data: Dataset) -> None:
    if estimator.abstain is None:
        return
    same = int((data.y() == estimator.abstain).sum())
    if same:
        raise InputError(
            f"models.{name}.abstain: it is {estimator.abstain}, and {same} of {len(data)} images have this label; give the "
            "output that rejects, which is no class of the data"
        )


def _try(recipe: Recipe, settings: ModelSettings, data: Dataset, networks: Mapping[str, nn.Module]) -> nn.Module:
    """The network as it is before any training, or with the weights of its checkpoint."""
    where = f"models.{settings.name}"
    with _placed(where, settings), torch.random.fork_rng(devices=[]):
        seed = seed_of(recipe, settings)
        if settings.checkpoint is not None:
            network = loaded(settings, data, seed)
        else:
            network = untrained(settings, data, seed, networks)
            if settings.trained and settings.train.epochs > 0:
                for defence in training_defences(settings):
                    defence.start(network)
                    defence.finish(network)
        network.eval()
        with torch.no_grad():
            logits = network(torch.zeros(1, *data.shape))
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, data.nb_classes):
        raise InputError(
            f"{where}: its network gives {shape} for one image; it must give logits {(1, data.nb_classes)}"
        )
    return network


@contextlib.contextmanager
def _placed(where: str, settings: ModelSettings) -> Iterator[None]:
    """Within, whatever a network or a defence raises is an :class:`InputError` that names the model."""
    with at(where):
        try:
            yield
        except InputError:
            raise
        except Exception:
            with foreign(where, package=package_of_architecture(settings.architecture.name)):
                raise


def _structure(recipe: Recipe, settings: ModelSettings, networks: Mapping[str, nn.Module]) -> str:
    """What decides whether a network can be built. Two models that share it are tried once."""
    shaping: dict[str, Any] = settings.model_dump(
        include={"architecture", "normalize", "quantize", "defences", "checkpoint"}
    )
    parents = [id(networks[name]) for name in settings.parents]
    mapped = settings.quantize is not None and settings.quantize.mu is not None
    seed = seed_of(recipe, settings) if mapped and not parents else None  # the mapping limits the first weights
    return repr((shaping, parents, settings.train.epochs > 0, seed))


def _between_levels(recipe: Recipe, ready: Mapping[str, QuantizedClassifier]) -> Iterator[str]:
    """A deployed model that rounds pixels, of which an attack may use up to half a level more than eps."""
    for name, estimator in ready.items():
        found = answering(estimator.model)
        if recipe.grid is None and found is not None and found.reading is not None:
            yield f"{name}: it reads pixels {found.reading}; set grid = 256 to score images that lie on one too"


def _too_wide(recipe: Recipe, shape: tuple[int, int, int]) -> Iterator[str]:
    """An eps within which every image lies. In Linf it is refused, whatever the images are."""
    threats: list[tuple[str, float]] = [(threat.norm, eps) for threat in recipe.threats for eps in threat.eps]
    attacks = [*recipe.attacks, *([] if recipe.transfer is None else [recipe.transfer.crafted_on(None)])]
    threats += [(t.norm, t.eps) for attack in attacks if not attack.corruption for t in recipe.threats_of(attack)]
    for norm, eps in dict.fromkeys(threats):
        if not eps <= (widest := diameter(norm, shape)):
            yield f"eps {eps:g} in {norm} allows every image, because no two images {shape} are further apart than {widest:g}"
