"""Activations that a network calls as functions, such as ``F.relu(x)`` and ``x.clamp(0, 1)``.

They are found by static analysis of ``forward`` and of the functions and methods that it names. This needs no input,
and no code of the network runs. Calls in branches that are never taken are found too. Functions that are looked up in a
table are not found. Activations written as arithmetic, such as ``x * (x > 0)``, are not found either.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FunctionalCall", "functional_calls"]

#: Names of activations in torch.nn.functional, in torch and among the methods of tensors. log_softmax does not count,
#: because it turns logits into log-probabilities. Attention counts, because it has a softmax inside.
_NAMES = {
    *("celu", "clamp", "clip", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softmax"),
    "scaled_dot_product_attention",
    *("softmin", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold"),
}
_IN_PLACE = {f"{name}_" for name in _NAMES}
#: The functions themselves with their names, by id.
_FUNCTIONS = {
    id(function): (function, name.rstrip("_"))
    for home in (F, torch, Tensor, torch.special)
    for name in _NAMES | _IN_PLACE | {"expit"}
    if callable(function := getattr(home, name, None))
}
_UNKNOWN = object()
#: Packages whose functions are not analysed.
_NOT_READ = {"torch", "numpy", *sys.stdlib_module_names}


@dataclass(frozen=True)
class FunctionalCall:
    """One call of an activation.

    :ivar function: its name, ``""`` where the code cannot be read.
    :ivar where: ``"Net.forward, line 12"``.
    """

    function: str
    where: str


def functional_calls(module: nn.Module) -> list[FunctionalCall]:
    """The activations that the forward pass of ``module`` calls as functions, without those of its submodules."""
    forward = _plain(module.forward)
    if not isinstance(forward, FunctionType):  # TorchScript, or compiled by another tool
        return [FunctionalCall("", f"{type(module).__name__}.forward")]
    if _package(forward) in _NOT_READ:
        return [FunctionalCall(_name(f), f"the attribute {key}") for key, f in vars(module).items() if _name(f)]
    return list(dict.fromkeys(_calls(forward, module, set())))


def _name(value: Any) -> str:
    """The activation that a function is, ``""`` for none."""
    found = _FUNCTIONS.get(id(value)) or _FUNCTIONS.get(id(_plain(value)))
    return found[1] if found else ""


def _plain(function: Any) -> Any:
    """The Python function in a method, a partial or a decorated function."""
    while True:
        if isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function


def _calls(function: Any, module: nn.Module, seen: set[FunctionType]) -> Iterator[FunctionalCall]:
    if not isinstance(function, FunctionType) or function in seen or _package(function) in _NOT_READ:
        return
    seen.add(function)
    tree, names = _tree(function.__code__), _Names(function, module)
    if tree is None:
        if _mentioned(function.__code__) & (_NAMES | _IN_PLACE):
            yield FunctionalCall("", function.__qualname__)
        return
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Name, ast.Attribute)):
            continue
        value = names.value(node)
        if name := names.activation(node, value, called.get(id(node))):
            line = function.__code__.co_firstlineno + node.lineno - 1
            yield FunctionalCall(name, f"{function.__qualname__}, line {line}")
        elif value is not _UNKNOWN and not isinstance(value, (nn.Module, type)):
            yield from _calls(_plain(value), module, seen)


def _package(function: FunctionType) -> str:
    return (function.__module__ or "").partition(".")[0]


@functools.lru_cache(maxsize=1024)
def _tree(code: CodeType) -> ast.AST | None:
    """The syntax tree of a function; ``None`` where its source is missing or is only a part of a statement."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return None


def _mentioned(code: CodeType) -> set[str]:
    """The names in compiled code, also in the functions inside."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_mentioned, inner))


class _Names:
    """The values of the names in a function, as far as they are certain without running it."""

    def __init__(self, function: FunctionType, module: nn.Module) -> None:
        code = function.__code__
        self.parents = _parents(type(module), function)
        self.known: dict[str, Any] = dict(function.__globals__)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.known[name] = _contents(cell)
        self.known |= dict.fromkeys(code.co_varnames, _UNKNOWN)
        if code.co_argcount and code.co_varnames[0] == "self":
            self.known["self"] = module

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.known.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()":
            found = (vars(parent)[node.attr] for parent in self.parents if node.attr in vars(parent))
            return next(found, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            return _attribute(self.value(node.value), node.attr)
        return _UNKNOWN

    def activation(self, node: ast.Name | ast.Attribute, value: Any, call: ast.Call | None) -> str:
        """The activation that ``node`` names, ``""`` for none."""
        if _name(value):
            return "" if call is not None and _guards(call, first=1) else _name(value)
        if not (isinstance(node, ast.Attribute) and call is not None and self.value(node.value) is _UNKNOWN):
            return ""
        name = node.attr.rstrip("_")  # a method of an object that must be a tensor
        return name if name in _NAMES and hasattr(Tensor, node.attr) and not _guards(call, first=0) else ""


def _parents(cls: type, function: FunctionType) -> tuple[type, ...]:
    """The classes that ``super()`` searches in a method: those after the class that defines it."""
    order = cls.__mro__
    home = next((i for i, c in enumerate(order) if any(f is function for f in vars(c).values())), len(order))
    return order[home + 1 :]


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # assigned later
        return _UNKNOWN


def _attribute(value: Any, name: str) -> Any:
    """The stored attribute. No property is computed."""
    if value is _UNKNOWN:
        return _UNKNOWN
    if isinstance(value, nn.Module):
        for held in (value._modules, value._parameters, value._buffers):
            if name in held:
                return held[name]
    if isinstance(value, ModuleType):
        return vars(value).get(name, _UNKNOWN)
    found = inspect.getattr_static(value, name, _UNKNOWN)
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def _guards(call: ast.Call, *, first: int) -> bool:
    """Whether the call is a clamp from below at a number above 0, as before a division or a logarithm.

    :param first: the position of the lower bound among the arguments.
    """
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    bounds = dict(zip(("min", "max"), call.args[first:], strict=False)) | named
    low = bounds.get("min")
    is_clamp = ast.unparse(call.func).rstrip("_").endswith(("clamp", "clip"))
    is_number = isinstance(low, ast.Constant) and isinstance(low.value, (int, float)) and low.value > 0
    return is_clamp and is_number and "max" not in bounds
