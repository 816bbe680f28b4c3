"""What the table of a model says, before the recipe is checked: its kind, and settings that have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_qplugins.defences import DEFENCES, DefenceEntry
from art_qplugins.quantizers import QUANTIZERS

__all__ = ["ENSEMBLE_KEYS", "NOT_BUILT", "draws_noise", "idle", "kind"]

#: The keys of a model that say how its draws become one answer.
ENSEMBLE_KEYS = ("draws", "rule", "eot_draws", "eot_chunk", "frozen")

#: The keys of a model whose network is not built and trained here, but comes from there.
NOT_BUILT = ("factory", "endpoint", "given", "members", "export")


def kind(model: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a model is random, and whether its activations are quantized. An ensemble of fixed draws is not random."""
    if isinstance(given := model.get("given"), Mapping):
        return bool(given.get("stochastic")), bool(given.get("quantized"))
    random = model.get("random") is True or (draws_noise(model) and model.get("frozen") is not True)
    return random, _quantize(model).get("activation_bits") is not None


def draws_noise(model: Mapping[str, Any]) -> bool:
    """Whether layers of a model draw noise: its quantizers, or what a defence puts into its network."""
    quantize = _quantize(model)
    name = quantize.get("activation")
    named = isinstance(name, str) and name in QUANTIZERS and QUANTIZERS[name].random
    noisy = any(row.random for row in _rows_of(model.get("defences")))
    return named or noisy or quantize.get("alpha") is not None


def idle(model: Mapping[str, Any]) -> dict[str, str]:
    """The settings in the table of a model that have no effect, each with the reason.

    The key is the setting or the table that it is in, e.g. ``"quantize.mu_layers"`` or ``"train"``.
    """
    found = {f"quantize.{key}": reason for key, reason in _idle_maps(_quantize(model)).items()}
    built = all(model.get(key) is None for key in NOT_BUILT)
    if built and not draws_noise(model):
        found |= {key: "the model is not random" for key in ENSEMBLE_KEYS if key in model}
    train = model.get("train")
    if model.get("checkpoint") is not None:
        found |= {"train": "the weights come from the checkpoint"} if train else {}
    elif isinstance(train, Mapping) and train.get("epochs") == 0:
        settings = [f"train.{key}" for key in train if key != "epochs"]
        settings += ["defences"] if _idle_defences(model.get("defences")) else []
        found |= dict.fromkeys(settings, "train.epochs is 0")
    return found


def _idle_defences(defences: Any) -> bool:
    """Whether there are some, and none is a part of the network."""
    return bool(defences) and not any(row.deployed for row in _rows_of(defences))


def _rows_of(defences: Any) -> list[DefenceEntry]:
    """The rows of those defences that are known, and are not plain entries of other packages."""
    given = defences if isinstance(defences, list) else []
    names = [d.get("name") if isinstance(d, Mapping) else d for d in given]
    return [row for row in DEFENCES.values() if isinstance(row, DefenceEntry) and row.name in names]


def _idle_maps(quantize: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in quantize.items():
        rows = [row for row in QUANTIZERS.values() if key in row.keys]
        if value is None or not rows or any(row.is_on(quantize) for row in rows):
            continue
        missing = min(([k for k in row.switch if quantize.get(k) is None] for row in rows), key=len)
        found[key] = f"{' and '.join(missing)} is not given"
    return found


def _quantize(model: Mapping[str, Any]) -> Mapping[str, Any]:
    table = model.get("quantize")
    return table if isinstance(table, Mapping) else {}
