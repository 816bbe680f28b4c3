"""``artq doctor``: whether this machine can run everything."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable

from art_qplugins.terminal.console import console

__all__ = ["show_health"]


def show_health() -> bool:
    """Whether what the suite needs is there and works; False where something is missing."""
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
            screen.print(f"[green]ok[/]       {name}: {check()}", soft_wrap=True)
        except Exception as error:
            healthy = False
            screen.print(f"[red]missing[/]  {name}: {error}; type: pip install --upgrade art_qplugins", soft_wrap=True)
    return healthy


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
