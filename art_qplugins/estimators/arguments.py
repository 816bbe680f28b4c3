"""What the arguments of an estimator may be. ART takes more than it can use, and fails later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from art.defences.postprocessor.postprocessor import Postprocessor
from art.defences.preprocessor.preprocessor import Preprocessor

from art_qplugins.defences.base import Defence
from art_qplugins.domains import (
    ABSTAIN,
    COUNT,
    FLAG,
    MOST,
    POSITIVE,
    TEXT,
    Domain,
    Either,
    Is,
    ListOf,
    Maybe,
    Number,
    OneOf,
)
from art_qplugins.torch_domains import MODULE

__all__ = ["CALL", "CONSTRUCTOR", "FIT"]


@runtime_checkable
class _Optimizer(Protocol):
    """What has parameters to step: torch's optimizers, and others that do not inherit from them."""

    param_groups: Any


@runtime_checkable
class _Scheduler(Protocol):
    def step(self) -> None: ...


@dataclass(frozen=True)
class _Numbers:
    """Pairs of finite numbers, or of arrays of them.

    :param rising: the first is everywhere below the second.
    """

    words: str
    rising: bool = False

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
            return False
        try:
            first, second = (np.asarray(part, dtype=np.float32) for part in value)
            return bool(
                np.isfinite(first).all() and np.isfinite(second).all() and not (self.rising and (first >= second).any())
            )
        except (TypeError, ValueError, OverflowError):
            return False

    def __str__(self) -> str:
        return self.words


def _one_or_several(kind: type, words: str) -> Domain:
    one = Is(kind, words)
    return Maybe(Either(one, ListOf(one, different=False)))


CONSTRUCTOR: dict[str, Domain] = {
    "model": MODULE,
    "loss": Is(Callable, "a loss, such as torch.nn.CrossEntropyLoss()"),
    "input_shape": ListOf(COUNT, least=1, different=False),
    "nb_classes": Number(2, MOST, whole=True),
    "optimizer": Maybe(Is(_Optimizer, "a torch.optim.Optimizer")),
    "use_amp": FLAG,
    "opt_level": TEXT,
    "loss_scale": Maybe(Either(OneOf(("dynamic",)), POSITIVE)),
    "channels_first": FLAG,
    "clip_values": Maybe(_Numbers("two finite numbers, the lower first", rising=True)),
    "preprocessing_defences": _one_or_several(Preprocessor, "a Preprocessor of ART"),
    "postprocessing_defences": _one_or_several(Postprocessor, "a Postprocessor of ART"),
    "preprocessing": Maybe(
        Either(_Numbers("a pair of finite numbers, mean and deviation"), Is(Preprocessor, "a Preprocessor of ART"))
    ),
    "device_type": Is((str, torch.device), "'gpu', 'cpu' or a device, e.g. 'cuda:1'"),
    "abstain": ABSTAIN,
    "training_defences": ListOf(Is(Defence, "a Defence"), different=False),
}

CALL: dict[str, Domain] = {"batch_size": COUNT, "training_mode": FLAG}

FIT: dict[str, Domain] = {
    **CALL,
    "nb_epochs": Number(0, MOST, whole=True),
    "drop_last": FLAG,
    "scheduler": Maybe(Is(_Scheduler, "a scheduler of torch.optim.lr_scheduler")),
    "verbose": FLAG,
}
