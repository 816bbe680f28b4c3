"""Every operation in a forward pass, with a key that finds it again in the next pass.

Operations of torch are seen by a mode for torch functions, custom ``autograd.Function``s by their ``apply``, and modules by hooks.
A tensor that no operation seen here has made comes from elsewhere: NumPy, Pillow, TorchScript, C++. It is seen when an operation
takes it or a module returns it.

Only results with one row for each image, or several, are reported. What lies between two of them counts as one operation, also a
loop over images, integers, and a way through NumPy.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["PIXELS", "Key", "Operations", "Visit", "unseen", "version_of"]

P = ParamSpec("P")


class Key(NamedTuple):
    """An operation of a forward pass. It is the same for batches of any size.

    :param layer: path of the innermost submodule that runs it; "" for the forward of the module itself.
    :param op: name of the function, or of the class of a custom function or module.
    :param copies: rows of the result per image.
    :param shape: shape of a row.
    :param ordinal: how many results with the same fields came before it in the pass.
    """

    layer: str
    op: str
    copies: int
    shape: tuple[int, ...]
    ordinal: int


#: The layer of the input of the module itself. Its key has the shape of an image.
PIXELS = "pixels"

#: By the id of a hook for all modules, whether it takes keyword arguments. torch forgets to remove what is here.
_WITH_KWARGS: dict[int, bool] = getattr(torch_modules, "_global_forward_hooks_with_kwargs", {})

#: Called with an operation, its result and the operations that the result comes from. It may return a tensor for later
#: operations to take instead.
Visit: TypeAlias = Callable[[Key, Tensor, frozenset[Key]], Tensor | None]


@dataclass(frozen=True)
class _Seen:
    """A tensor as it was when an operation returned it.

    :param version: in-place operations raise the version of a tensor.
    :param after: the last reported operations before it.
    """

    version: int
    after: frozenset[Key]


class Operations(TorchFunctionMode):
    """Within the context, ``visit`` sees the operations of one call of ``module``. Nothing is left behind.

    :param images: number of images in the batch of that call.
    :param with_gradient: build the autograd graph also where the module switches it off (``no_grad``, ``inference_mode``).
    """

    def __init__(self, module: nn.Module, images: int, visit: Visit, *, with_gradient: bool = False) -> None:
        super().__init__()
        self.without_gradient = False  # whether an operation behind the pixels ran where gradients are switched off
        self._module, self._images, self._visit, self._with_gradient = module, images, visit, with_gradient
        self._paths = {id(part): path for path, part in module.named_modules()}
        self._running: list[str] = []
        self._counts: Counter[tuple[Any, ...]] = Counter()
        self._seen: Any = WeakIdKeyDictionary()  # tensors compare elementwise, so they are found by identity
        self._instead: Any = WeakIdKeyDictionary()
        self._left: frozenset[Key] = frozenset()  # operations whose results were read by something other than torch
        self._latest: frozenset[Key] = frozenset()
        self._thread, self._inside = threading.get_ident(), False
        self._stack = contextlib.ExitStack()

    def key(self, tensor: Tensor) -> Key:
        """The operation that a tensor is the result of.

        :raises ValueError: where it was not reported.
        """
        seen: _Seen | None = self._seen.get(tensor)
        if seen is None or len(seen.after) != 1 or not self._is_reported(tensor):
            raise ValueError("no operation that was seen returns this tensor")
        (key,) = seen.after
        return key

    # --- What is watched

    def __enter__(self) -> Operations:
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            self._seen[tensor] = _Seen(version_of(tensor), frozenset())
        with contextlib.ExitStack() as stack:
            for hook in (
                register_module_forward_pre_hook(self._enter_module),
                register_module_forward_hook(self._leave_module, with_kwargs=True, always_call=True),
            ):
                stack.callback(hook.remove)
                stack.callback(_WITH_KWARGS.pop, hook.id, None)
            stack.enter_context(_applying(self._apply))
            super().__enter__()  # type: ignore[no-untyped-call]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        is_getter = name == "__get__"
        name = getattr(func.__self__, "__name__", name) if is_getter else name
        return self._run(name, func, args, kwargs or {}, is_getter=is_getter)

    def _apply(self, function: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return self._run(function.__name__, call, args, kwargs)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[bool]:
        """Whether a call counts. It does not where it is part of an operation, or of another thread."""
        counts = not self._inside and threading.get_ident() == self._thread
        self._inside |= counts
        try:
            yield counts
        finally:
            self._inside &= not counts

    def _enter_module(self, module: nn.Module, args: Any) -> Any:
        path = self._paths.get(id(module))
        with self._watching() as counts:
            if path is None or not counts:
                return None
            if not self._running and args and isinstance(args[0], Tensor):
                self._result(args[0], PIXELS, "input", frozenset())
            for tensor in _tensors(args):
                self._after(tensor)
            self._running.append(path)
            return self._substituted(args)

    def _leave_module(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        # After an exception torch calls it without keyword arguments and without an output.
        path = self._paths.get(id(module))
        with self._watching() as counts:
            if not counts or path not in self._running:
                return None
            while self._running.pop() != path:  # a forward in between raised, and the exception was caught
                pass
            for tensor in _tensors(output):
                if tensor not in self._seen:
                    after = frozenset[Key]().union(*map(self._after, _tensors((args, kwargs))))
                    self._result(tensor, path, type(module).__name__, after or self._latest)
            return self._substituted(output)

    # --- An operation

    def _run(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any, *, is_getter: bool = False) -> Any:
        with self._watching() as counts:
            if not counts:
                return call(*args, **kwargs)
            inputs = _tensors((args, kwargs))
            after = frozenset[Key]().union(*map(self._after, inputs))
            args, kwargs = self._substituted(args), self._substituted(kwargs)
            taken = [(t, version_of(t)) for t in _tensors((args, kwargs))]
            switched_off = not torch.is_grad_enabled()
            self.without_gradient |= switched_off and bool(after)
            with _gradient() if self._with_gradient and not name.startswith("_set_") else contextlib.nullcontext():
                output = call(*args, **kwargs)
            results = _tensors(output)
            if not inputs:
                after = self._left  # values may have come back, as in torch.tensor(array)
            elif not results and not is_getter and output is not None:
                self._left |= after
            changed = [t for t, version in taken if version_of(t) != version]
            for tensor in (*results, *changed):
                known = self._seen.get(tensor)
                if known is None or known.version != version_of(tensor):
                    self._result(tensor, self._layer, name, after)
            return output if switched_off else self._substituted(output)

    @property
    def _layer(self) -> str:
        return self._running[-1] if self._running else ""

    def _after(self, tensor: Tensor) -> frozenset[Key]:
        """The last reported operations before ``tensor``."""
        seen: _Seen | None = self._seen.get(tensor)
        if seen is None:
            return self._result(tensor, self._layer, "from elsewhere", self._left | self._latest)
        if seen.version != version_of(tensor):  # changed through another tensor that shares its memory
            return self._result(tensor, self._layer, "shared memory", seen.after | self._latest)
        return seen.after

    def _result(self, tensor: Tensor, layer: str, op: str, after: frozenset[Key]) -> frozenset[Key]:
        self._instead.pop(tensor, None)
        if (after or layer == PIXELS) and self._is_reported(tensor):
            fields = (layer, op, len(tensor) // self._images, tuple(tensor.shape[1:]))
            key = Key(*fields, self._counts[fields])
            self._counts[fields] += 1
            with _gradient():
                instead = self._visit(key, tensor, after)
            after = self._latest = frozenset([key])
            if instead is not None:
                self._seen[instead] = _Seen(version_of(instead), after)
                self._instead[tensor] = instead
        self._seen[tensor] = _Seen(version_of(tensor), after)
        return after

    def _is_reported(self, tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) > 0 and len(tensor) % self._images == 0

    def _substituted(self, values: Any) -> Any:
        if not len(self._instead):
            return values
        return tree_map(self._given, values)

    def _given(self, value: Any) -> Any:
        while isinstance(value, Tensor) and value in self._instead:
            value = self._instead[value]
        return value


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def version_of(tensor: Tensor) -> int:
    """How often in-place operations changed a tensor. One of inference mode does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def unseen(look: Callable[P, None]) -> Callable[P, None]:
    """A hook that only looks. Its own operations are none of the network's."""

    @functools.wraps(look)
    def hook(*args: P.args, **kwargs: P.kwargs) -> None:
        with torch._C.DisableTorchFunction():
            look(*args, **kwargs)

    return hook


@contextlib.contextmanager
def _gradient() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def _applying(apply: Callable[..., Any]) -> Iterator[None]:
    """Within the context, every custom ``autograd.Function`` is called through ``apply(function, call, args, kwargs)``."""
    base: Any = torch.autograd.Function
    own = base.__dict__["apply"]

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return apply(function, own.__get__(None, function), args, kwargs)

    base.apply = classmethod(call)
    try:
        yield
    finally:
        base.apply = own
