"""Checks that the parts of a recipe fit together: names, options, norms, claims; and what is legal but surely a mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from art_qplugins.attacks import ATTACKS
from art_qplugins.data import entry_of
from art_qplugins.defences import DEFENCES
from art_qplugins.deployment.files import is_file
from art_qplugins.errors import InputError, at, did_you_mean, shown
from art_qplugins.quantizers.registry import switched_on
from art_qplugins.recipes.architectures import architecture, package_of_architecture
from art_qplugins.recipes.facts import ENSEMBLE_KEYS, NOT_BUILT, draws_noise, idle, kind
from art_qplugins.recipes.model import Ask, Choice, ClaimSettings, ModelSettings, Training
from art_qplugins.recipes.references import check_references
from art_qplugins.recipes.schema import AttackSettings, Recipe, TransferSettings
from art_qplugins.training.augment import AUGMENTATIONS
from art_qplugins.training.named import Named, resolved
from art_qplugins.training.optimizers import OPTIMIZERS, check_schedule
from art_qplugins.training.presets import PRESETS

__all__ = ["check_recipe", "doubts"]


def check_recipe(recipe: Recipe) -> None:
    """:raises InputError: in one line that names the place."""
    if not recipe.data.given:
        with at("data"):
            entry_of(recipe.data.name).resolve(recipe.data.options)
    models: dict[str, ModelSettings] = {}
    files: dict[str, str] = {}
    for model in recipe.models:
        _check_preset(recipe, model)
        _check_kept(recipe, model)
        _check_model(model, models)
        if (other := files.setdefault(model.name.casefold(), model.name)) != model.name:
            raise InputError(f"models.{model.name}: only capital letters tell it from {other!r}; rename one")
        models[model.name] = model
    if not recipe.models_under_test:
        raise InputError("models: all are substitutes, so there is nothing to attack; leave out one's role")
    for threat in recipe.threats:
        where = "threat" if len(recipe.threats) == 1 else f"threat.{threat.norm}"
        _check_eps(f"{where}.eps", threat.norm, threat.eps)
    for attack in recipe.attacks:
        _check_attack(recipe, attack, models)
    _check_claims(recipe)
    with at("order"):
        for attack_id in recipe.order or ():
            ATTACKS[attack_id]
    if recipe.transfer is not None:
        _check_transfer(recipe, recipe.transfer, models)
    check_references(recipe)
    _check_baselines(recipe)


def doubts(recipe: Recipe) -> Iterator[str]:
    """What is legal and surely a mistake, a line each, without its full stop."""
    for model in recipe.models:
        for key, reason in idle(model.model_dump(exclude_unset=True)).items():
            yield f"{model.name}: {key} has no effect, because {reason}"
    if not any(model.trained and model.checkpoint is None and model.train.epochs > 0 for model in recipe.models):
        given = [key for key in ("train_limit", "validation") if getattr(recipe.data, key) is not None]
        yield from (f"data.{key} has no effect, because no model is trained" for key in given)
    if recipe.order is not None and recipe.strategy != "cascade":
        yield 'order has no effect, because strategy is "matrix"; every attack sees every image'
    if recipe.diagnose and recipe.claim is None and all(m.claim is None for m in recipe.models_under_test):
        asked = [key for key, value in recipe.diagnosis if value is not None]
        yield from (f"diagnosis.{key} has no effect, because the recipe has no claim" for key in asked)
    yield from _doubts_about_threats(recipe)


def _doubts_about_threats(recipe: Recipe) -> Iterator[str]:
    attacks = [*recipe.attacks, *([] if recipe.transfer is None else [recipe.transfer.crafted_on(None)])]
    ran = {threat.norm for attack in attacks if not attack.corruption for threat in recipe.threats_of(attack)}
    for threat in recipe.threats if len(recipe.threats) > 1 else ():
        if threat.norm not in ran:
            yield f"threat.{threat.norm} has no effect, because no attack runs in {threat.norm}"
    if (most := recipe.data.limit) is not None:
        idle = dict.fromkeys(attack.id for attack in attacks if attack.limit is not None and attack.limit > most)
        if idle:
            yield f"{', '.join(idle)}: limit has no effect, because data.limit is {most}"


def _check_model(model: ModelSettings, above: Mapping[str, ModelSettings]) -> None:
    where = f"models.{model.name}"
    if model.name in above:
        raise InputError(f"{where}: two models have this name; rename one")
    if not model.trained:
        _check_untrained(model, where)
    if model.abstain is not None and (model.trained or model.members is not None):
        raise InputError(
            f"{where}.abstain: each output of a network that is built here is a class of the data; give abstain to a "
            "model with a factory"
        )
    if model.ask != Ask() and model.endpoint is None:
        raise InputError(
            f"{where}.ask: it says how an endpoint is asked, and there is none; give endpoint, or leave ask out"
        )
    _check_deployed(model, above, where)
    _check_members(model, above, where)
    if model.frozen and model.eot_draws is not None:
        raise InputError(f"{where}.eot_draws: a frozen ensemble has the gradient of its own draws; leave eot_draws out")
    if model.unverified_checkpoint and model.checkpoint is None:
        raise InputError(f"{where}.unverified_checkpoint: it has no checkpoint; give one, or leave this out")
    with at(f"{where}.architecture"):
        architecture(model.architecture.name).resolve(model.architecture.options)
    if model.normalize is not None and len(model.normalize.mean) != len(model.normalize.std):
        raise InputError(
            f"{where}.normalize: {len(model.normalize.mean)} means and {len(model.normalize.std)} standard deviations; "
            "give one of each per channel"
        )
    if model.quantize is not None:
        with at(f"{where}.quantize"):
            switched_on(model.quantize.model_dump())
        if model.quantize.fold_batch_norm and model.base is None and model.checkpoint is None:
            raise InputError(
                f"{where}.quantize.fold_batch_norm: it folds the batch norm of trained weights, and there are none; give a base"
            )
    for i, defence in enumerate(model.defences):
        with at(f"{where}.defences"):
            DEFENCES[defence.name].resolve(defence.options)
            if defence.name in [d.name for d in model.defences[:i]]:
                raise InputError(f"{defence.name!r} is there twice; remove one")
    _check_training(model.train, f"{where}.train")
    if model.base is not None and model.base not in above:
        raise InputError(f"{where}.base: no model {model.base!r} above it{did_you_mean(model.base, above)}")
    if model.export is not None:
        _check_export(model, above, where)
        return
    if model.base is not None and (above[model.base].normalize is None) != (model.normalize is None):
        raise InputError(
            f"{where}.normalize: either this model or its base {model.base!r} has none; give both the same"
        )
    if model.base is not None and model.checkpoint is not None:
        raise InputError(f"{where}: its weights come from its base or from its checkpoint; leave one out")


def _check_export(model: ModelSettings, above: Mapping[str, ModelSettings], where: str) -> None:
    base = None if model.base is None else above[model.base]
    if base is None:
        raise InputError(f"{where}.export: it has no base to export; give the name of a model above it as base")
    if base.deployed:
        raise InputError(f"{where}.base: {base.name!r} is deployed already; give the network itself as base")


def _check_deployed(model: ModelSettings, above: Mapping[str, ModelSettings], where: str) -> None:
    asked = [key for key in ("twin", "twin_checkpoint", "labels_only", "inputs") if getattr(model, key)]
    if asked and model.factory is None and model.endpoint is None:
        raise InputError(
            f"{where}.{asked[0]}: it is for a deployed model; give its file or function as factory, or an endpoint"
        )
    file = model.factory is not None and is_file(model.factory)
    if model.inputs is not None and not file:
        raise InputError(f"{where}.inputs: it is for a file, and {model.factory!r} is none; leave inputs out")
    if file and model.checkpoint is not None:
        raise InputError(
            f"{where}.checkpoint: {model.factory!r} has its weights; give those of a twin as twin_checkpoint"
        )
    if model.twin is not None and ":" not in model.twin and model.twin not in above:
        raise InputError(
            f"{where}.twin: no model {model.twin!r} above it{did_you_mean(model.twin, above)}; or give MODULE:FACTORY"
        )
    if model.twin_checkpoint is not None and (model.twin is None or ":" not in model.twin):
        raise InputError(f'{where}.twin_checkpoint: no function makes its twin; give twin = "MODULE:FACTORY"')


def _check_members(model: ModelSettings, above: Mapping[str, ModelSettings], where: str) -> None:
    if model.members is None:
        if model.random:
            raise InputError(
                f"{where}.random: it has no members to draw one of; give members = [...], or leave random out"
            )
        return
    if len(model.members) < 2:
        raise InputError(f"{where}.members: it has one; give two or more")
    for name in model.members:
        if name not in above:
            raise InputError(f"{where}.members: no model {name!r} above it{did_you_mean(name, above)}")
        member = above[name]
        if member.stochastic or draws_noise(member.model_dump()):
            raise InputError(f"{where}.members: {name!r} draws noise; a mixture takes networks that draw none")
        if member.export is not None:
            raise InputError(f"{where}.members: {name!r} is a file; give the network {member.base!r}")
        if member.abstain is not None:
            raise InputError(
                f"{where}.members: {name!r} has a rejection class; give models of the classes of the data alone"
            )
    if model.random and model.rule != "mean-probability":
        raise InputError(f"{where}.rule: a random mixture answers with one of its members; leave rule out")


def _check_baselines(recipe: Recipe) -> None:
    names = {model.replicate_of or model.name for model in recipe.models_under_test}
    for model in recipe.models:
        own, baseline = model.replicate_of or model.name, model.baseline
        if baseline is None:
            continue
        if model.role == "substitute":
            raise InputError(f"models.{own}.baseline: the accuracy of a substitute is not measured; leave baseline out")
        others = names - {own}
        if baseline not in others:
            raise InputError(
                f"models.{own}.baseline: no other model {baseline!r}{did_you_mean(baseline, sorted(others))}"
            )


def _check_training(train: Training, where: str) -> None:
    with at(where):
        resolved("optimizer", _named(train.optimizer), OPTIMIZERS)
        check_schedule(_named(train.schedule), epochs=train.epochs, warmup=train.warmup)
        for one in train.augment:
            resolved("augment", _named(one), AUGMENTATIONS)


def _named(choice: Choice) -> Named:
    return choice.name, choice.options


def _check_kept(recipe: Recipe, model: ModelSettings) -> None:
    if model.train.keep == "best" and recipe.data.validation is None:
        raise InputError(
            f'models.{model.name}.train.keep: "best" needs images to validate on; set data.validation, e.g. to 0.1'
        )


def _check_preset(recipe: Recipe, model: ModelSettings) -> None:
    if model.train.preset is None or recipe.data.given:
        return
    preset = PRESETS[model.train.preset]
    if recipe.data.name != preset.data:
        raise InputError(
            f"models.{model.name}.train.preset: {preset.name!r} is a protocol for {preset.data}, and the data are "
            f"{shown(recipe.data.name)}; write the values that you want to take over into the table"
        )


def _check_untrained(model: ModelSettings, where: str) -> None:
    """A given network, one from a factory, an endpoint or one of members takes no settings for building and training."""
    kind, *others = [key for key in NOT_BUILT if getattr(model, key) is not None]
    if others:
        raise InputError(
            f"{where}: it has {kind} and {' and '.join(others)}, and each makes its network; leave one out"
        )
    asked = model.model_fields_set & {
        "architecture",
        "base",
        "normalize",
        "quantize",
        "defences",
        "train",
        *ENSEMBLE_KEYS,
    }
    if kind != "factory":
        asked |= model.model_fields_set & {"checkpoint"}
    if kind == "members":
        asked -= {"rule"}
    if kind == "export":
        asked -= {"base"}
    asked |= model.model_fields_set & {"unverified_checkpoint"}
    if asked:
        raise InputError(f"{where}.{min(asked)}: the network comes from its {kind}; leave {min(asked)} out")


def _check_attack(recipe: Recipe, attack: AttackSettings, models: Mapping[str, ModelSettings]) -> None:
    where = f"attacks.{attack.id}"
    _check_threats(recipe, where, attack)
    _check_names(where, [*(attack.models or []), *([attack.source] if attack.source else [])], models)
    for name in attack.models or []:
        if models[name].role == "substitute":
            raise InputError(f"{where}: {name!r} is a substitute, which is not attacked; give it as source")
    attacked = recipe.attacked(attack)
    if not attacked:
        raise InputError(f"{where}: its source {attack.source!r} is the only model that it attacks; add another model")
    for model in [models[attack.source]] if attack.source else attacked:
        _check_kind(where, attack.id, model)


def _check_names(where: str, names: Sequence[str], models: Collection[str]) -> None:
    for name in names:
        if name not in models:
            raise InputError(f"{where}: unknown model {name!r}{did_you_mean(name, models)}")


def _check_eps(where: str, norm: str, several: Sequence[float]) -> None:
    """Refuse an eps at which nothing is left to attack, or all is allowed, whatever the images are."""
    for eps in several:
        if norm == "Linf" and not eps <= 1:
            raise InputError(f"{where}: it is {eps:g} and pixels are in [0, 1]; give at most 1, e.g. {_eighth(eps)}")
        if norm == "L0" and not eps >= 1:
            raise InputError(f"{where}: it is {eps:g} and in L0 it counts pixels; give at least 1")


def _eighth(eps: float) -> str:
    return f'"{eps:g}/255"' if eps <= 255 else '"8/255"'


def _check_threats(recipe: Recipe, where: str, attack: AttackSettings) -> None:
    """Whether an attack can run with its options at each of its threats."""
    with at(where):
        threats = recipe.threats_of(attack)
        for threat in threats:
            ATTACKS[attack.id].check(attack.options, threat)
    if attack.eps is not None:
        _check_eps(f"{where}.eps", threats[0].norm, attack.eps)


def _check_kind(where: str, attack: str, model: ModelSettings) -> None:
    entry = ATTACKS[attack]
    own = model.trained and not package_of_architecture(
        model.architecture.name
    )  # another package's may round by itself
    if entry.quantized and own and not kind(model.model_dump(include={"quantize"}))[1]:
        raise InputError(
            f"{where}: {model.name!r} has no quantized activations that this attack could remove; set models = [...]"
        )
    if entry.models == "any" or model.given is not None or model.stochastic is None:  # a factory's network may be any
        return
    if entry.models == ("deterministic" if model.stochastic else "stochastic"):
        found = "stochastic" if model.stochastic else "deterministic"
        other = "autoattack:rand" if model.stochastic else "autoattack:standard"
        raise InputError(
            f"{where}: {model.name!r} is {found} and this attack is for {entry.models} models; "
            f"set models = [...] and use {other!r} for {model.name!r}"
        )


def _check_transfer(recipe: Recipe, transfer: TransferSettings, models: Collection[str]) -> None:
    _check_threats(recipe, "transfer", transfer.crafted_on(None))
    _check_names("transfer.models", transfer.models or [], models)
    pairs = recipe.transfers()
    if all(source is target for source, target in pairs):
        raise InputError("transfer.models: name at least two models, and at least one that is no substitute")
    for source in {source.name: source for source, _ in pairs}.values():
        _check_kind("transfer", transfer.attack, source)


def _check_claims(recipe: Recipe) -> None:
    found = recipe.claims()
    for model in recipe.models_under_test:
        claim = model.claim or recipe.claim
        if claim is not None and model.name not in found:
            _refuse_claim(recipe, model, claim)


def _refuse_claim(recipe: Recipe, model: ModelSettings, claim: ClaimSettings) -> None:
    where = recipe.place_of_claim(model)
    mine = [a for a in recipe.attacks if a.source is None and (a.models is None or model.name in a.models)]
    ids = [a.id for a in mine]
    if claim.attack not in ids:
        raise InputError(
            f"{where}: {claim.attack!r} is not among the attacks on {model.name!r}{did_you_mean(claim.attack, ids)}"
        )
    run_at = [t for a in mine if a.id == claim.attack and a.claimable for t in recipe.threats_of(a)]
    if not run_at and all(a.corruption for a in mine if a.id == claim.attack):
        raise InputError(f"{where}: no eps limits {claim.attack} with its options; claim the accuracy under an attack")
    if not run_at:
        raise InputError(
            f"{where}: {claim.attack} has a limit, and a claim is about all images; set data.limit instead"
        )
    norms = list(dict.fromkeys(t.norm for t in run_at))
    if len(norms) > 1 or claim.norm not in (None, *norms):
        found = "; ".join(f"in {norm} at {shown([t.eps for t in run_at if t.norm == norm])}" for norm in norms)
        asked = f"in {claim.norm} at" if claim.norm else "at"
        raise InputError(f"{where}: {claim.attack} is not run {asked} eps {claim.eps:g}; it is {found}")
    raise InputError(
        f"{where}: {claim.attack} is not run at eps {claim.eps:g}; it is at {shown([t.eps for t in run_at])}"
    )
