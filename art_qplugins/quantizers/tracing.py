"""The order of calls inside one module, found by ``torch.fx``: functions become modules, and each call has its own.

Only the ``forward`` of that module is traced. The modules that it calls are steps of the trace, so they keep their classes
and names, and a network needs no trace as a whole.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from art_qplugins.errors import InputError
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.calls import functional_calls
from art_qplugins.quantizers.functions import QUANTIZABLE
from art_qplugins.quantizers.traced import Defaults, Traced

__all__ = ["call_modules", "put", "split_calls", "trace"]

#: By the name of an activation, its arguments after the values, with their defaults.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "gelu": {"approximate": "none"},
    "softmax": {"dim": None},
}
_CLAMPS = ("clamp", "clip")
#: The functions by themselves, each with its name.
_CALLS: dict[Any, str] = {
    call: name
    for name in (*QUANTIZABLE, *_CLAMPS)
    for home in (F, torch)
    for key in (name, f"{name}_")
    if (call := getattr(home, key, None)) is not None
}
#: Modules of this package call each module that they hold once.
_TORCH = "torch.nn."
#: Marks a dropout that follows the mode of its module.
_MODE = "of the module"


class _Own(fx.Tracer):
    """Traces the forward of one module. All that it calls are steps."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(module: nn.Module) -> fx.Graph | None:
    """The calls of ``module.forward`` with its arguments at their defaults; ``None`` where they depend on values."""
    given = _defaults(module)
    try:
        graph = _Own().trace(module, concrete_args=given)
    except Exception:  # whatever the code of a network raises on values that are not there
        return None
    # fx adds assertions that do not pickle. They are all that reads an argument with a default.
    unread = {node for node in graph.find_nodes(op="placeholder") if node.args}
    for node in graph.nodes:
        if unread.intersection(node.all_input_nodes):
            unread.add(node)
    for node in reversed(list(graph.nodes)):
        if node in unread and node.op != "placeholder":
            graph.erase_node(node)
    for node, name in zip(
        graph.find_nodes(op="placeholder"), inspect.signature(module.forward).parameters, strict=False
    ):
        if name in given:
            node.target = name  # so that it can be given by name, as before
    return graph


def _defaults(module: nn.Module) -> dict[str, Any]:
    """The arguments of ``forward`` that have one, with it."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def call_modules(model: nn.Module, functions: Collection[str]) -> nn.Module:
    """``model``, changed in place, with modules for the activations that are called as functions.

    :param functions: names in :data:`~art_qplugins.quantizers.functions.QUANTIZABLE`.
    :return: ``model``, or what takes its place where its own ``forward`` calls some.
    :raises InputError: where a ``forward`` that calls some cannot be traced.
    """
    for path, module in list(model.named_modules()):
        _hold(module, functions)
        called = functional_calls(module)
        calls = [call for call in called if call.function in functions]
        if not calls and not any(call.function in (*_CLAMPS, "") for call in called):
            continue
        if (graph := _same_in_both_modes(module)) is None:
            if not calls:  # only a clamp, which need not be an activation, or code that cannot be read
                continue
            listed = ", ".join(f"{call.function}() ({call.where})" for call in calls)
            raise InputError(
                f"functional: the forward of {path or type(model).__name__!r} cannot be traced, because it depends on "
                f"values or on the mode; call modules such as nn.ReLU() and nn.Dropout() there in place of {listed}"
            )
        made = _converted(module, graph, functions)
        if any(not isinstance(step, nn.Dropout) for step in made.values()):
            model = _replace(model, path, _traced(module, graph, made))
    return model


def _hold(module: nn.Module, functions: Collection[str]) -> None:
    """Make modules of the activations that are attributes of ``module``, such as ``self.activation = F.relu``."""
    for key, value in list(vars(module).items()):
        name = _CALLS.get(value, "") if callable(value) else ""
        if name in functions and name != "softmax":
            delattr(module, key)
            module.add_module(key, QUANTIZABLE[name].module().train(module.training))


def split_calls(model: nn.Module, chosen: Callable[[nn.Module], bool]) -> nn.Module:
    """``model``, changed in place, with a module for each call of those that are ``chosen``, such as one ReLU of a block.

    Where a ``forward`` cannot be traced, its calls share a module as before. Chosen modules at several paths are copied.

    :return: ``model``, or what takes its place.
    """
    seen: set[int] = set()
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if chosen(module):
            if id(module) in seen:
                put(model, path, copy.deepcopy(module))
            seen.add(id(module))
    for path, module in list(model.named_modules()):
        if not any(chosen(child) for child in module.children()) or type(module).__module__.startswith(_TORCH):
            continue
        if (graph := _same_in_both_modes(module)) is not None and (made := _split(module, graph, chosen)):
            made |= _converted(module, graph, ())
            model = _replace(model, path, _traced(module, graph, made))
    return model


def _same_in_both_modes(module: nn.Module) -> fx.Graph | None:
    """The trace; ``None`` where it is another in train mode.

    A dropout that follows the mode does not count: :func:`_converted` makes a module of it.
    """
    graphs = []
    for mode in (True, False):
        with evaluating(module, training=mode):
            if (graph := trace(module)) is None:
                return None
        graphs.append(graph)
    for nodes in zip(*(graph.nodes for graph in graphs), strict=False):
        asked = [node.kwargs.get("training") for node in nodes if node.target is F.dropout]
        if asked == [True, False]:
            for node in nodes:
                node.kwargs = {**node.kwargs, "training": _MODE}
    return graphs[1] if str(graphs[0]) == str(graphs[1]) else None


def _converted(module: nn.Module, graph: fx.Graph, functions: Collection[str]) -> dict[str, nn.Module]:
    """New modules by their names, which ``graph`` then calls in place of functions."""
    made: dict[str, nn.Module] = {}
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if (found := _as_module(node, functions)) is None:
            continue
        name, step = found
        path = _free(module, made, name)
        made[path] = step
        values = node.args[0] if node.args else node.kwargs["input"]
        with graph.inserting_before(node):
            called = graph.call_module(path, (values,))
        node.replace_all_uses_with(called)
        if _in_place(node):  # whoever reads the values later sees the activation
            after = position[node]
            values.replace_all_uses_with(called, lambda user, after=after: position.get(user, -1) > after)
        graph.erase_node(node)
    return made


def _in_place(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or node.kwargs.get("inplace") is True


def _as_module(node: fx.Node, functions: Collection[str]) -> tuple[str, nn.Module] | None:
    """The module for a call of an activation, with a name for it; ``None`` for other calls."""
    if node.target is F.dropout and node.kwargs.get("training") == _MODE:
        return "dropout", nn.Dropout(*_bound(node, {"p": 0.5}).values())
    if node.op == "call_method" and isinstance(node.target, str) and hasattr(Tensor, node.target):
        name = node.target.rstrip("_")
    elif node.op == "call_function":
        name = _CALLS.get(node.target, "").rstrip("_")
    else:
        return None
    if name in _CLAMPS:
        return _clipped(node) if "hardtanh" in functions else None
    if name not in functions:
        return None
    return name, QUANTIZABLE[name].module(**_bound(node, _ARGUMENTS.get(name, {})))


def _clipped(node: fx.Node) -> tuple[str, nn.Module] | None:
    """A Hardtanh for a clamp to two numbers, unless it clips pixels: what the module itself is given."""
    low, high = _bound(node, {"min": None, "max": None}).values()
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    first = node.args[0] if node.args else None
    if not numbers or not low < high or not isinstance(first, fx.Node) or first.op == "placeholder":
        return None
    return "hardtanh", nn.Hardtanh(float(low), float(high))


def _bound(node: fx.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call after the values, by name."""
    given = dict(zip(defaults, node.args[1:], strict=False))
    return {**defaults, **given, **{key: value for key, value in node.kwargs.items() if key in defaults}}


def _split(module: nn.Module, graph: fx.Graph, chosen: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Copies by their names, which the second and further calls of ``graph`` then call."""
    calls: Counter[str] = Counter()
    made: dict[str, nn.Module] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        calls[target] += 1
        if calls[target] > 1 and chosen(called := module.get_submodule(target)):
            node.target = _free(module, made, target.replace(".", "_"))
            made[node.target] = copy.deepcopy(called)
    return made


def _free(module: nn.Module, made: dict[str, nn.Module], name: str) -> str:
    """A name that neither an attribute nor another new module has."""
    number, found = 0, name
    while hasattr(module, found) or found in made:
        number += 1
        found = f"{name}_{number}"
    return found


def _traced(module: nn.Module, graph: fx.Graph, made: Mapping[str, nn.Module]) -> Traced:
    """What computes ``graph`` with all that ``module`` holds, and with the modules that were ``made`` for it."""
    made = dict(made)
    arguments = list(graph.find_nodes(op="placeholder"))
    if with_default := [node for node in arguments if node.args]:
        path = _free(module, made, "defaults")
        made[path] = Defaults(_defaults(module))
        with graph.inserting_after(arguments[-1]):
            graph.call_module(path, tuple(with_default))
    for path, step in made.items():
        module.add_module(path, step.train(module.training))
    return Traced(module, graph)


def _replace(model: nn.Module, path: str, made: nn.Module) -> nn.Module:
    if not path:
        return made
    put(model, path, made)
    return model
