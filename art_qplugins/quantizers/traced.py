"""A module whose forward pass is code that ``torch.fx`` wrote.

A ``torch.fx.GraphModule`` is one too. It loses what no call reads when it is copied: weights, settings and hooks.
"""

from __future__ import annotations

import hashlib
import importlib
import linecache
from collections.abc import Mapping
from types import MethodType, ModuleType
from typing import Any

from torch import Tensor, fx, nn

from art_qplugins.errors import InputError

__all__ = ["Defaults", "Traced"]


class Traced(nn.Module):
    """All that ``module`` holds, with ``graph`` as its forward pass. It copies and pickles.

    :param module: its parts, weights, settings, hooks and mode are taken over, and not copied.
    :param graph: its calls.
    :ivar code: the forward pass in Python.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        vars(self).update({name: value for name, value in vars(module).items() if name != "forward"})
        written = graph.python_code("self")
        self.name: str = module._get_name()
        self.code = written.src
        self.used = {k: _Module(v.__name__) if isinstance(v, ModuleType) else v for k, v in written.globals.items()}
        self._compile()

    def _compile(self) -> None:
        names: dict[str, Any] = {
            k: importlib.import_module(v) if isinstance(v, _Module) else v for k, v in self.used.items()
        }
        # The name of a file by which inspect finds the code.
        file = f"<traced {hashlib.sha256(self.code.encode()).hexdigest()[:16]}>"
        linecache.cache[file] = (len(self.code), None, self.code.splitlines(keepends=True), file)
        exec(compile(self.code, file, "exec"), names)
        self.forward = MethodType(names["forward"], self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile()

    def _get_name(self) -> str:
        return self.name


class _Module(str):
    """The name of a Python module, which does not pickle."""


class Defaults(nn.Module):
    """Refuses arguments other than those that a network was traced with."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        super().__init__()
        self.defaults = dict(defaults)

    def forward(self, *given: Any) -> None:
        for (name, default), value in zip(self.defaults.items(), given, strict=True):
            if value is not default and (isinstance(value, Tensor) or value != default):
                raise InputError(f"{name}: the quantized network was traced with {default!r}; leave {name} out")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.defaults.items())
