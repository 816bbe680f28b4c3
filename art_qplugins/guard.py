"""What others change and do not put back: module modes, random states, gradients of parameters, the trace function.

ART and torchattacks switch the whole module tree to eval mode, AutoAttack reseeds the global generators and clears the
trace function. Everything of ours that calls them does so inside :func:`evaluating` or :func:`isolated`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

__all__ = ["evaluating", "isolated"]


@contextlib.contextmanager
def evaluating(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Eval mode (or train mode) within; every submodule's own mode is back afterwards, also after an exception."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        for m, mode in modes:
            if mode is not training:
                m.training = training
        yield
    finally:
        for m, mode in modes:
            if m.training is not mode:
                m.training = mode


@contextlib.contextmanager
def isolated(module: nn.Module, seed: int) -> Iterator[None]:
    """Run foreign code on ``module``: in eval mode, parameters frozen, every global generator seeded with ``seed``.

    Afterwards modes, ``requires_grad`` flags, the states of torch's (also on the accelerator), NumPy's and Python's
    generators and the trace function are what they were.
    """
    frozen = [(p, p.requires_grad) for p in module.parameters()]
    numpy_state, python_state, trace = np.random.get_state(), random.getstate(), sys.gettrace()
    devices = list({p.device for p in module.parameters() if p.device.type == "cuda"})
    with evaluating(module), torch.random.fork_rng(devices=devices):
        try:
            for p, _ in frozen:
                p.requires_grad_(False)
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            sys.settrace(trace)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            for p, requires_grad in frozen:
                p.requires_grad_(requires_grad)
