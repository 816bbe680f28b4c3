"""Pickling and copying without files. ART writes weights to its data folder at every copy and never deletes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from art_qplugins.errors import InputError
from art_qplugins.estimators.devices import resolve_device
from art_qplugins.estimators.inputs import Inputs

__all__ = ["Pickling"]


class Pickling(Inputs):
    """``__getstate__`` and ``__setstate__``, which ``copy`` uses too."""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        wrapper = state.pop("_model")  # None where ART's ActivationDefence has taken it away
        state["_model_wrapper"] = None  # a class made inside a method, which no pickle can name
        state["_module"] = None if wrapper is None else wrapper._model
        state["_device"] = str(state["_device"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        module: nn.Module | None = state.pop("_module")
        self.__dict__.update(state)
        del self.__dict__["_model_wrapper"]
        try:
            self._device = resolve_device(state["_device"])
        except InputError:  # pickled on a machine with an accelerator, and opened on one without
            self._device = torch.device("cpu")
        self._model = None if module is None else self._make_model_wrapper(module).to(self._device)
