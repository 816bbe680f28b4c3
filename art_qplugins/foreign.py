"""Somebody's own network, named ``module:factory``, put to the test."""

from __future__ import annotations

import importlib
import sys
from fractions import Fraction
from pathlib import Path

from torch import nn

from art_qplugins.api import evaluate
from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset, load
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.estimators import QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.evaluation.records import Results
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.pipeline import Progress
from art_qplugins.quantizers import is_stochastic
from art_qplugins.threat import Threat

__all__ = ["diagnose_module", "make_module"]


def diagnose_module(
    name: str,
    *,
    checkpoint: Path | None,
    data: str,
    norm: str,
    eps: str,
    attack: str,
    claimed: float | None,
    limit: int,
    out: Path,
    level: int | None = None,
    budget: float | None = None,
    data_root: str | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Diagnose the module that ``name`` makes on ``limit`` test images; records and images go to ``out``."""
    try:
        threat = Threat(norm, float(Fraction(eps)))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--eps {eps}: not a number; write e.g. 0.1 or 8/255") from None
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    images = load(data, "test", root=data_root, download=download).take(limit, seed=0)
    estimator = _estimator(module, images)
    return evaluate(
        {name: estimator},
        images,
        threat,
        [attack],
        claim=attack,
        claimed_accuracy=claimed,
        level=level,
        budget=budget,
        out=out,
        progress=progress,
    ).results


def make_module(name: str) -> nn.Module:
    """Call ``package.module:factory``, looked for where Python looks and in the current folder."""
    path, colon, factory = name.partition(":")
    if not colon or not factory:
        raise InputError(f"--model {name}: write it as MODULE:FACTORY, e.g. mypackage.models:make_net")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(path)
    except ImportError as error:
        raise InputError(
            f"--model {name}: cannot import {path!r} ({error}); run artq where it can be imported"
        ) from None
    finally:
        sys.path.pop(0)
    if not hasattr(found, factory):
        names = [n for n in vars(found) if not n.startswith("_")]
        raise InputError(f"--model {name}: {path} has no {factory!r}{did_you_mean(factory, names)}")
    made = getattr(found, factory)
    module = made if isinstance(made, nn.Module) else made()
    if not isinstance(module, nn.Module):
        raise InputError(f"--model {name}: it gives a {type(module).__name__}; it must give a torch.nn.Module")
    return module


def _estimator(module: nn.Module, images: Dataset) -> QuantizedClassifier:
    cls = QuantizedClassifier
    if is_stochastic(module) or isinstance(module, StochasticEnsemble):
        cls = SQEnsembleClassifier
    return cls(module.eval(), nn.CrossEntropyLoss(), images.shape, images.nb_classes)
