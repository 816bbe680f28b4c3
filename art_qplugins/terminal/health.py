"""``artq doctor``: whether this machine can run everything, and what installed packages add in vain."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Iterator

from art_qplugins import plugins
from art_qplugins.terminal.console import Screen, console
from art_qplugins.terminal.registries import load_registries

__all__ = ["show_health"]


def show_health() -> bool:
    """Whether what the suite needs is there and works; False where something is missing or a plug-in is broken."""
    screen = console()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", platform.python_version),
        ("torch", _torch),
        ("torchvision", lambda: _package("torchvision", "torchvision")),
        ("ART", lambda: _package("art.estimators.classification", "adversarial-robustness-toolbox")),
        ("torchattacks", lambda: _package("torchattacks", "torchattacks")),
        ("AutoAttack", _autoattack),
        ("scikit-learn", lambda: _package("sklearn", "scikit-learn")),
        ("cores", lambda: f"{os.cpu_count()}"),
        ("data root", _data_root),
    ]
    healthy = True
    for name, check in checks:
        try:
            _show(screen, "ok", f"{name}: {check()}")
        except Exception as error:
            healthy = False
            _show(screen, "missing", f"{name}: {error}; type: pip install --upgrade art_qplugins")
    used, amiss = _plugins()
    _show(screen, "ok", f"plug-ins: {', '.join(map(str, used)) or 'none'}")
    for one in amiss:
        _show(screen, "broken", str(one))
    return healthy and not amiss


def _show(screen: Screen, state: str, what: str) -> None:
    screen.print(f"{state:9}", style="green" if state == "ok" else "red", end="")
    screen.print(" ".join(what.split()), soft_wrap=True)


def _plugins() -> tuple[list[plugins.Plugin], list[plugins.Broken]]:
    """Packages that add something, and what packages announce that cannot be used."""
    with _silent(logging.getLogger(plugins.__name__)):  # the lines of doctor say it
        rows = [row for registry in load_registries().values() for row in registry.values()]
    used = sorted({row.plugin for row in rows if row.plugin is not None})
    return used, [*plugins.broken(), *plugins.unknown_groups()]


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _package(module: str, distribution: str) -> str:
    importlib.import_module(module)
    return importlib.metadata.version(distribution)


def _torch() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{torch.__version__} ({device})"


def _autoattack() -> str:
    try:
        return f"pyautoattack {_package('pyautoattack', 'pyautoattack')}"
    except ImportError:
        return f"autoattack {_package('autoattack', 'autoattack')}"


def _data_root() -> str:
    from art_qplugins.data.cache import user_folder

    return str(user_folder("ARTQ_DATA"))
