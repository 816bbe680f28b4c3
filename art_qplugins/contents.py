"""Values as text by their content: settings, and tensors of every kind. Equal values have the same text in every process."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import re
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils._pytree import TreeSpec

__all__ = ["Contents", "code_of", "is_versioned", "steady"]

#: The code of these packages is identified by their versions, which are recorded elsewhere.
_VERSIONED = ("torch", "torchvision", "art_qplugins", "builtins", "typing")
#: Attributes that every module has, and those that a call changes, such as modes and positions in streams of draws.
_STATE = {*vars(nn.Module()), "draw", "fold", "call", "shared", "next_draw", "_split"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Contents:
    """A reader of values. It follows what holds itself once.

    :ivar unread: whether there was a value whose content it cannot know, such as a function of the user, or an object of
        another runtime. Of such an object it reads the bytes that it keeps of a file, and no more.
    """

    def __init__(self) -> None:
        self.unread = False
        self._modules: dict[int, str] = {}  # by id, the place of each module that was read
        self._around: list[int] = []  # the ids of what holds the value

    def module(self, module: nn.Module) -> str:
        """The structure, weights, code and settings of a module and of those inside it, as a hash."""
        parts = [(name, part) for name, part in module.named_modules() if id(part) not in self._modules]
        self._modules |= {id(part): f"module {len(self._modules) + i}" for i, (_, part) in enumerate(parts)}
        digest = hashlib.sha256(steady(repr(module)).encode())
        classes: dict[type, None] = {}
        for name, part in parts:
            self.unread |= isinstance(part, torch.jit.ScriptModule)  # no attribute holds its code
            settings = {k: self.text(v) for k, v in vars(part).items() if k not in _STATE}
            known = sorted((k, v) for k, v in settings.items() if v is not None)
            digest.update(f"{name}{type(part).__qualname__}{known}".encode())
            classes |= dict.fromkeys(type(part).__mro__)
        for cls in classes:
            if not is_versioned(cls):
                digest.update(code_of(cls))
        for name, value in sorted(self._state(module).items()):
            digest.update(f"{name}{self.text(value)}".encode())
        return digest.hexdigest()

    def _state(self, module: nn.Module) -> dict[str, Any]:
        try:
            return dict(module.state_dict())
        except Exception:  # others' code
            self.unread = True
            return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def text(self, value: Any) -> str | None:
        """The content of a value; ``None`` where it has none, holds itself, or cannot be read."""
        if value is None or id(value) in self._around:
            return None
        self._around.append(id(value))
        try:
            found = self._text(value)
        except Exception:  # others' code
            found = None
        finally:
            self._around.pop()
        self.unread |= found is None and not _is_ours(value)
        return found

    # --- By the kind of a value

    def _text(self, value: Any) -> str | None:
        read = next((read for kinds, read in _KINDS.items() if isinstance(value, kinds)), Contents._object)
        return read(self, value)

    def _plain(self, value: Any) -> str:
        return repr(value)

    def _printed(self, value: Any) -> str:
        return steady(str(value))

    def _class(self, value: type) -> str:
        return f"{value.__module__}.{value.__qualname__}"

    def _sequence(self, value: Iterable[Any]) -> str:
        return str([self.text(v) for v in value])

    def _set(self, value: Iterable[Any]) -> str:
        return str(sorted(str(self.text(v)) for v in value))

    def _dict(self, value: dict[Any, Any]) -> str:
        return str([(steady(str(k)), self.text(v)) for k, v in value.items()])

    def _array(self, value: Any) -> str | None:
        if value.dtype == object:
            return None
        return f"{value.dtype}{value.shape}{_hash(np.ascontiguousarray(value).tobytes())}"

    def _tensor(self, value: Tensor) -> str:
        """A plain tensor, a quantized or a sparse one, or one of a class that is made of other tensors."""
        kind = f"{type(value).__qualname__}{tuple(value.shape)}{value.dtype}"
        if hasattr(type(value), "__tensor_flatten__"):
            names, settings = value.__tensor_flatten__()  # type: ignore[attr-defined]
            return f"{kind}{[(name, self.text(getattr(value, name))) for name in names]}{self.text(settings)}"
        with torch._C.DisableTorchFunctionSubclass():
            value = value.detach()
            if value.is_quantized:
                return f"{kind}{self.text([value.int_repr(), *_scales(value)])}"
            dense = value if value.layout == torch.strided else value.to_dense()
            content = dense.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
            return f"{kind}{_hash(content.numpy().tobytes())}"

    def _module(self, value: nn.Module) -> str:
        """A module in a plain attribute, which no state dict holds."""
        return self._modules.get(id(value)) or self.module(value)

    def _packed(self, value: torch.ScriptObject) -> str | None:
        """Packed parameters say what they hold. Other objects raise."""
        return self.text(value.__getstate__())

    def _function(self, value: Any) -> str:
        """A function of torch is its name. What another one holds is not known."""
        self.unread |= not is_versioned(value)
        owner = getattr(value, "__self__", None)
        of = self.text(owner) if isinstance(owner, nn.Module) else ""
        return f"{value.__module__}.{value.__qualname__}{of}"

    def _object(self, value: Any) -> str | None:
        """A frozen dataclass is its fields. Of other objects a call may change the attributes."""
        if _is_ours(value):
            return None
        if dataclasses.is_dataclass(value) and _is_frozen(type(value)):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{type(value).__qualname__}{self.text(fields)}"
        if _is_processor(value):
            return self._processor(value)
        self.unread = True
        return _file_of(value)

    def _processor(self, value: Any) -> str:
        """A pre- or postprocessor of ART. It is no module, and decides answers of one that holds it."""
        code = _hash(b"".join(code_of(cls) for cls in type(value).__mro__ if cls is not object))
        return f"{type(value).__qualname__}{code}{self.text(dict(sorted(vars(value).items())))}"


#: How a value is read, by its kind. The first that fits counts.
_KINDS: dict[tuple[type, ...], Callable[[Contents, Any], str | None]] = {
    (enum.Enum, Path, Graph, TreeSpec): Contents._printed,
    (bool, int, float, complex, str, bytes, slice, range): Contents._plain,
    (torch.dtype, torch.device, torch.layout, torch.memory_format): Contents._plain,
    (type,): Contents._class,
    (tuple, list): Contents._sequence,
    (set, frozenset): Contents._set,
    (dict,): Contents._dict,
    (np.ndarray, np.generic): Contents._array,
    (Tensor,): Contents._tensor,
    (nn.Module,): Contents._module,
    (torch.ScriptObject,): Contents._packed,
    (types.FunctionType, types.BuiltinFunctionType, types.MethodType): Contents._function,
}


def steady(text: str) -> str:
    """A repr without addresses, which differ in every process."""
    return _ADDRESS.sub("", text)


def is_versioned(value: Any) -> bool:
    """Whether a class or function is of a package whose version identifies its code."""
    return str(value.__module__).split(".")[0] in _VERSIONED


def code_of(cls: type) -> bytes:
    """The source file of a class, so that an edited ``forward`` changes the hash, else its compiled functions."""
    try:
        return Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):  # defined in a notebook
        functions = [(name, f) for name, f in sorted(vars(cls).items()) if inspect.isfunction(f)]
        return b"".join(name.encode() + f.__code__.co_code + str(f.__code__.co_names).encode() for name, f in functions)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_of(value: Any) -> str | None:
    """A hash of the bytes that an object keeps, as a session may keep the file that it was made of."""
    kept = [held for held in vars(value).values() if isinstance(held, bytes)]
    return _hash(b"".join(kept)) if kept else None


def _scales(value: Tensor) -> tuple[Any, ...]:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return value.q_scale(), value.q_zero_point()
    return value.q_per_channel_scales(), value.q_per_channel_zero_points(), value.q_per_channel_axis()


def _is_ours(value: Any) -> bool:
    """Objects of this package decide no answer but through modules and plain settings."""
    return type(value).__module__.split(".")[0] == "art_qplugins"


def _is_frozen(cls: Any) -> bool:
    return bool(cls.__dataclass_params__.frozen)


def _is_processor(value: Any) -> bool:
    """Objects may raise on ``hasattr``."""
    return all(inspect.getattr_static(value, name, None) is not None for name in ("apply_fit", "apply_predict"))
