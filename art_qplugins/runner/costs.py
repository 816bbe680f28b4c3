"""What a run will take before it begins: passes through each network, and the time for them on this machine.

Training is counted exactly. The passes of an attack are those for images that stay robust to the end, and a diagnosis runs only
some of its steps, so both are bounds. Scoring is counted of a random model, whose images are each asked ``score_draws`` times in
two banks, for the cells of the recipe. What else scores a cell is little beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from art_qplugins import diagnostics
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.data import Dataset
from art_qplugins.estimators.devices import accelerator
from art_qplugins.evaluation.cell import CellSpec, images_key
from art_qplugins.evaluation.cost import Cost, expected_cost
from art_qplugins.gradients.counting import passes
from art_qplugins.models.ensemble import trained_network
from art_qplugins.quantizers import is_stochastic
from art_qplugins.quantizers.stochastic import stochastic_quantizers
from art_qplugins.recipes.build import estimator_for
from art_qplugins.recipes.exported import fixed
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.networks import blank, seed_of, training_defences, untrained
from art_qplugins.recipes.schema import Budget, Recipe
from art_qplugins.runner.audit import AUDITOR
from art_qplugins.runner.information import DRAWS, calls_of_information
from art_qplugins.runner.pace import Pace, pace_of_attacks, pace_of_training
from art_qplugins.runner.plan import ModelUnderTest
from art_qplugins.runner.prepare import Prepared
from art_qplugins.runner.sensitivity import bases, calls_of_sensitivity
from art_qplugins.runner.stored import on_all_images
from art_qplugins.sensitivity.codes import calls_for

__all__ = ["Work", "costs"]


#: Settings of a model that do not change how long a pass takes. Of its training, the size of a batch does.
_AS_LONG = {
    *("name", "role", "base", "seed", "replicate_of", "claim", "baseline", "reference"),
    *("checkpoint", "unverified_checkpoint", "abstain", "train"),
}


@dataclass(frozen=True)
class Work:
    """What one part of a run asks of one network.

    :ivar images: so many take part.
    :ivar each: the passes of an image, on average. Each draw of a random model is one.
    :ivar pace: of a pass here; ``None`` where the network could not be timed.
    :ivar unknown: attacks whose passes nobody knows. They are not counted.
    """

    model: str
    part: Literal["training", "attacks", "scoring", "audit", "diagnosis", "sensitivity", "information"]
    images: int
    each: Cost
    pace: Pace | None
    unknown: Sequence[str] = ()

    @property
    def seconds(self) -> float | None:
        if self.pace is None:
            return None
        return self.images * (self.each.queries * self.pace.forward + self.each.gradients * self.pace.backward)


@dataclass(frozen=True)
class _Network:
    """What is known of a network before it is trained. Paces are ``None`` where it could not be timed.

    :ivar draws: passes of an image for a gradient, and ``members`` for a prediction.
    :ivar codes: calls that show what its codes tell of an image; 0 without stochastic quantizers.
    """

    draws: int
    members: int
    random: bool
    codes: int
    attacks: Pace | None
    training: Pace | None


def costs(
    recipe: Recipe, prepared: Prepared, models: Iterable[ModelUnderTest], cells: Iterable[CellSpec]
) -> list[Work]:
    """Everything that takes long, by model in the order of the recipe. Finished cells and checkpoints count too.

    :param models: those of :func:`~art_qplugins.runner.plan.plan`, and ``cells`` its cells.
    """
    known: dict[str, _Network] = {}
    networks = {settings.name: _network(recipe, settings, prepared, known) for settings in recipe.models}
    claims = {model.name: model.claim for model in models if model.claim is not None}
    cells = list(cells)
    attacks = [spec for spec in cells if spec.role != "clean"]
    crafted = {images_key(spec): spec for spec in attacks}.values()  # once for all models that they are scored on
    images, found = len(prepared.used), []
    for settings in recipe.models:
        name, network = settings.name, networks[settings.name]
        if _trains(settings):
            found.append(
                Work(name, "training", len(prepared.train), _of_training(settings, prepared.train), network.training)
            )
        if own := [spec for spec in crafted if spec.source == name]:
            each, unknown = _of_attacks(recipe.budget, own, claims.get(name), images, network.draws)
            found.append(Work(name, "attacks", images, each, network.attacks, unknown))
        if network.random and (scored := [spec for spec in cells if spec.model == name]):
            asked = _predictions(recipe, scored, images)
            found.append(Work(name, "scoring", images, Cost(0, network.members * asked), network.attacks))
        several_eps = {spec.eps for spec in attacks if spec.model == name}
        if recipe.audit is not None and several_eps and not network.random:
            each = _times(len(several_eps), expected_cost(AUDITOR) or Cost(0, 0))
            found.append(Work(name, "audit", min(recipe.audit, images), each, network.attacks))
        if recipe.diagnose and name in claims:
            others = sum(not other.random for key, other in networks.items() if key != name)
            limits = recipe.diagnosis.level, recipe.diagnosis.budget, recipe.diagnosis.queries
            each = diagnostics.most(*limits, others=others, passes=network.draws)
            found.append(Work(name, "diagnosis", images, each, network.attacks))
        if settings.role == "subject":
            found += _after(recipe, settings, [spec for spec in attacks if spec.model == name], images, network)
    return found


def _after(
    recipe: Recipe, settings: ModelSettings, specs: Sequence[CellSpec], images: int, network: _Network
) -> Iterator[Work]:
    """What is measured of a model after the last cell. Norms of layers are no passes through a network, and not counted."""
    stored = [spec for spec in specs if on_all_images(spec)]
    if (n := recipe.sensitivity) is not None:
        calls = calls_of_sensitivity(len(stored), changed=settings.name in bases(recipe))
        each = Cost(network.draws, network.draws + network.members * calls)  # logits have the one gradient
        yield Work(settings.name, "sensitivity", min(n, images), each, network.attacks)
    if (n := recipe.information) is not None and network.codes:
        attacked = [spec for spec in stored if spec.role == "attack"]
        calls = calls_of_information(
            attacked, min(n, images), codes=network.codes, scores=recipe.score_draws if network.random else 1
        )
        yield Work(settings.name, "information", min(n, images), Cost(0, network.members * calls), network.attacks)


def _network(recipe: Recipe, settings: ModelSettings, prepared: Prepared, known: dict[str, _Network]) -> _Network:
    """It is built without its weights and timed, once for all models whose passes take as long."""
    ready, trains, data = prepared.ready.get(settings.name), _trains(settings), prepared.used
    per_step = min(settings.train.batch_size, len(prepared.train)) if trains else 0
    what = settings.base if settings.export else per_step
    key = settings.name if ready else repr((settings.model_dump(exclude=_AS_LONG), what))
    if key in known:
        return known[key]
    per_attack = min(recipe.batch_size, recipe.shard or recipe.batch_size, len(data))
    training = None
    if ready is None:
        module = _blank(recipe, settings, prepared).to(accelerator(recipe.accelerator))
        if trains:
            training = pace_of_training(module, data.shape, batch_size=per_step)
        ready = estimator_for(settings, module.eval(), data)
    known[key] = _Network(
        draws=passes(ready.model, requires_grad=True),
        members=passes(ready.model, requires_grad=False),
        random=is_stochastic(ready.model),
        codes=calls_for(ready.model, DRAWS) if stochastic_quantizers(ready.model) else 0,
        attacks=None if settings.endpoint else pace_of_attacks(ready, batch_size=per_attack),  # each image is a query
        training=training,
    )
    return known[key]


def _blank(recipe: Recipe, settings: ModelSettings, prepared: Prepared) -> nn.Module:
    """The deployed network with initial weights. Of a mixture, the members have them."""
    if settings.name in prepared.ready:
        return trained_network(prepared.ready[settings.name].model)
    if settings.export is not None:
        base = next(m for m in recipe.models if m.name == settings.base)
        return fixed(_blank(recipe, base, prepared), prepared.used.shape)
    if settings.members is None:
        return blank(settings, prepared.used, seed_of(recipe, settings))
    members = {m.name: _blank(recipe, m, prepared) for m in recipe.models if m.name in settings.members}
    return untrained(settings, prepared.used, seed_of(recipe, settings), members)


def _trains(settings: ModelSettings) -> bool:
    return settings.trained and settings.checkpoint is None and settings.train.epochs > 0


def _of_training(settings: ModelSettings, data: Dataset) -> Cost:
    """An image takes part once in every epoch, forward and backward, and in what the defences add to that."""
    defences, epochs = training_defences(settings), settings.train.epochs
    forward, backward = (sum(each) for each in zip((1.0, 1.0), *(d.passes() for d in defences), strict=True))
    looks = sum(defence.look_passes(data.nb_classes, epochs) for defence in defences)
    return Cost(epochs * backward, epochs * forward + looks / len(data))


def _of_attacks(
    budget: Budget, specs: Sequence[CellSpec], claim: CellSpec | None, images: int, draws: int
) -> tuple[Cost, list[str]]:
    """The mean over all images of the cells of one source, and attacks of unknown cost.

    A budget leaves out what exceeds it, but no claimed cell.
    """
    unknown = {spec.attack for spec in specs if expected_cost(spec.attack, spec.options) is None}
    total = _sum(_mean(spec, images) for spec in specs)
    claimed = _sum([_mean(claim, images)] if claim else [])
    limits = [math.inf if limit is None else limit for limit in (budget.gradients, budget.queries)]
    within = (min(all_, max(own, limit / draws)) for all_, own, limit in zip(total, claimed, limits, strict=True))
    return _times(draws, Cost(*within)), sorted(unknown)


def _predictions(recipe: Recipe, scored: Sequence[CellSpec], images: int) -> float:
    """Predictions of a random model that score an image, over all cells: two banks, and as many of rounded pixels."""
    each = 2 * recipe.score_draws * (1 if recipe.grid is None else 2)
    shares = (1 if spec.rows is None else len(spec.rows) / images for spec in scored)
    tried = (ATTACKS[spec.attack].images(spec.options) for spec in scored)
    return each * sum(share * times for share, times in zip(shares, tried, strict=True))


def _mean(spec: CellSpec, images: int) -> Cost | None:
    """A cell with a limit attacks some of the images."""
    cost = expected_cost(spec.attack, spec.options)
    return cost if cost is None or spec.rows is None else _times(len(spec.rows) / images, cost)


def _sum(costs: Iterable[Cost | None]) -> Cost:
    known = [cost for cost in costs if cost is not None]
    return Cost(sum(cost.gradients for cost in known), sum(cost.queries for cost in known))


def _times(count: float, cost: Cost) -> Cost:
    return Cost(count * cost.gradients, count * cost.queries)
