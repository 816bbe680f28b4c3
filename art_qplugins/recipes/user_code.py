"""Code of the user that a recipe names as ``package.module:function``: importing it, calling it, and which code it is.

Their code may raise anything, or exit. That is one line with the place in their code.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from art_qplugins.errors import InputError, did_you_mean, shown
from art_qplugins.foreign import foreign
from art_qplugins.plugins import Plugin, version

__all__ = ["called", "check_name", "code_of", "imported", "package_of"]

#: They are part of every key already, or decide no answer.
_KNOWN = {"art_qplugins", "torch", "numpy", *sys.stdlib_module_names}


#: How a name is written.
_FORM = "MODULE:FACTORY, e.g. mypackage.models:make_net"


def check_name(name: str, where: str, form: str = _FORM) -> None:
    """:raises InputError: unless ``name`` is that of a function in a module."""
    path, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in path.split("."))):
        raise InputError(f"{where}: write it as {form}")


def package_of(name: str) -> str:
    """The top-level package of their code, for :func:`~art_qplugins.foreign.foreign`."""
    return name.partition(":")[0].split(".")[0]


def imported(name: str, where: str, form: str = _FORM) -> Any:
    """What ``package.module:name`` names, looked for where Python looks and then in the current folder.

    :param where: begins the message, e.g. ``"model nets:make"``.
    :param form: how such a name is written, for a message.
    :raises InputError: where it cannot be imported. What their code raises is shown with its last line.
    """
    check_name(name, where, form)
    path, _, attribute = name.partition(":")
    hint = f'run artq where python -c "import {path}" works'
    with _current_folder_last(), foreign(f"{where}: cannot import {path!r}", package=package_of(name), hint=hint):
        found = importlib.import_module(path)
        known = hasattr(found, attribute)
    if not known:
        names = [n for n in vars(found) if not n.startswith("_")]
        raise InputError(f"{where}: {path} has no {attribute!r}{did_you_mean(attribute, names)}")
    return getattr(found, attribute)


def called(function: Callable[..., Any], name: str, where: str, **arguments: Any) -> Any:
    """What the function gives, which ``name`` names.

    :raises InputError: where it is no function, or raises anything.
    """
    if not callable(function):
        raise InputError(f"{where}: it is {shown(function)}; it must be a function, or a torch.nn.Module")
    path, _, attribute = name.partition(":")
    hint = f'python -c "import {path} as m; m.{attribute}()" shows more'
    with _current_folder_last(), foreign(where, package=package_of(name), hint=hint):
        return function(**arguments)


def code_of(name: str) -> Plugin:
    """Their code as a package with a version, which changes when the code does.

    The code is the module and all that it imports: the text of files of the user, without comments, and the versions of
    installed packages. What files of data hold is not in it.

    :raises InputError: where it cannot be imported, or has no file.
    """
    where = f"architecture {shown(name).strip(chr(39))}"
    target = imported(name, where)
    module = sys.modules[name.partition(":")[0]]
    if getattr(module, "__file__", None) is None:
        raise InputError(f"{where}: its code is in no file, so nobody can tell when it changes; put it into a module")
    with _current_folder_last():
        return Plugin(name, f"code {_hash(module, target)}")


@functools.lru_cache(maxsize=64)
def _hash(module: ModuleType, target: Any) -> str:
    """Of the code that was loaded.

    :param target: what the module is asked for, which is another one after it was loaded again.
    """
    digest = hashlib.sha256()
    for name, what in sorted(_reached(module.__name__).items()):
        digest.update(f"{name} {what}\n".encode())
    return digest.hexdigest()[:10]


def _reached(path: str) -> dict[str, str]:
    """By module, the hash of each source that the import statements of one lead to; by installed package, its version."""
    found: dict[str, str] = {}
    installed: dict[str, str] = {}
    pending = [path]
    while pending:
        name = pending.pop()
        top = name.split(".")[0]
        if name in found or top in installed or top in _KNOWN:
            continue
        file = _file(name)
        if file is None:  # a name in a module, a package without a file, or nothing
            continue
        if {"site-packages", "dist-packages"} & set(file.parts):
            installed[top] = _version(top)
            continue
        found[name], names = _source(name, file)
        pending += names
    return found | installed


def _file(name: str) -> Path | None:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        with contextlib.suppress(Exception):  # it may be no module, and what it is in may not be importable
            spec = importlib.util.find_spec(name)
            origin = spec.origin if spec is not None and spec.has_location else None
    return None if origin is None else Path(origin)


def _source(name: str, file: Path) -> tuple[str, list[str]]:
    """The hash of a file, and the modules that it may import."""
    from art_qplugins.fingerprint import code_fingerprint

    try:
        return code_fingerprint([file.name], file.parent), list(_imports(name, file))
    except (SyntaxError, ValueError):  # compiled, or not for this Python
        return hashlib.sha256(file.read_bytes()).hexdigest(), []


def _imports(name: str, file: Path) -> Iterator[str]:
    """Every name that may be a module, with the packages that it is in. They are imported too."""
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    yield from _with_parents(package)
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                with contextlib.suppress(ImportError):  # it leads out of its package
                    base = importlib.util.resolve_name("." * node.level + base, package)
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".") if name else []
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _version(top: str) -> str:
    """Of the installed package that holds a top-level module."""
    known = version(top)
    return known or " ".join(
        sorted(str(version(one)) for one in importlib.metadata.packages_distributions().get(top, []))
    )


@contextlib.contextmanager
def _current_folder_last() -> Iterator[None]:
    """A file of the user's must not stand in for a module of the same name that somebody else imports."""
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module took it away
            sys.path.remove(here)
