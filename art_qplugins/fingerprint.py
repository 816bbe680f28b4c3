"""Hashes that change whenever an answer may: of a module, and of this package's code."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["code_fingerprint", "fingerprint"]

_PACKAGE = Path(__file__).parent

#: Attributes that every module has, and those that a call changes, such as modes and positions in streams of draws.
_STATE = {*vars(nn.Module()), "draw", "fold", "call", "shared", "next_draw", "_split"}
#: The code of these packages is identified by their versions, which are recorded elsewhere.
_VERSIONED = ("torch", "torchvision", "art_qplugins", "builtins", "typing")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of the structure, weights and code of a module, and of the plain settings of every submodule.

    The settings include those that no repr shows.
    """
    digest = hashlib.sha256(repr(module).encode())
    classes: dict[type, None] = {}
    for name, part in module.named_modules():
        settings = {k: _plain(v) for k, v in vars(part).items() if k not in _STATE}
        known = sorted((k, v) for k, v in settings.items() if v is not None)
        digest.update(f"{name}{type(part).__qualname__}{known}".encode())
        classes |= dict.fromkeys(type(part).__mro__)
    for cls in classes:
        if cls.__module__.split(".")[0] not in _VERSIONED:
            digest.update(_code(cls))
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # a module's extra state is what it likes
            digest.update(f"{name}{_plain(value)}".encode())
            continue
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@runtime_checkable
class _Processor(Protocol):
    """A pre- or postprocessor of ART. It is no module, and decides answers of one that holds it."""

    apply_fit: bool
    apply_predict: bool


def _plain(value: Any, around: tuple[int, ...] = ()) -> str | None:
    """A setting as text; ``None`` where it is no plain data.

    :param around: the ids of the lists and dicts that hold it. One that holds itself is no plain data.
    """
    if id(value) in around:
        return None
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):  # a plain attribute, which the state dict does not hold
        value = value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else value.detach().float().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape}{content}"
    if isinstance(value, (tuple, list)):
        return str([_plain(v, (*around, id(value))) for v in value])
    if isinstance(value, dict):
        return str([(str(k), _plain(v, (*around, id(value)))) for k, v in value.items()])
    return _processor(value, (*around, id(value))) if isinstance(value, _Processor) else None


def _processor(value: _Processor, around: tuple[int, ...]) -> str:
    digest = hashlib.sha256(b"".join(_code(cls) for cls in type(value).__mro__ if cls is not object))
    for name, setting in sorted(vars(value).items()):
        known = fingerprint(setting) if isinstance(setting, nn.Module) else _plain(setting, around)
        if known is not None:
            digest.update(f"{name}{known}".encode())
    return f"{type(value).__qualname__}{digest.hexdigest()}"


def _code(cls: type) -> bytes:
    """The source file of a class, so that an edited ``forward`` changes the hash, else its compiled functions."""
    try:
        return Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):  # defined in a notebook
        functions = [(name, f) for name, f in sorted(vars(cls).items()) if inspect.isfunction(f)]
        return b"".join(name.encode() + f.__code__.co_code + str(f.__code__.co_names).encode() for name, f in functions)


def code_fingerprint(parts: Iterable[str], root: Path = _PACKAGE) -> str:
    """SHA-256 of what Python files do. Docstrings, comments and layout do not count; the version of Python does.

    :param parts: files and folders below ``root``.
    """
    digest = hashlib.sha256()
    for part in parts:
        place = root / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            tree = _WithoutText().visit(ast.parse(path.read_bytes()))
            digest.update(f"{path.relative_to(root).as_posix()}{ast.dump(tree)}".encode())
    return digest.hexdigest()


class _WithoutText(ast.NodeTransformer):
    """Takes away the statements that are a constant alone, such as docstrings. They do nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
