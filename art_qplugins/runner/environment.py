"""The environment of a run: versions, the machine, the commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from art_qplugins.evaluation.records import Environment
from art_qplugins.plugins import Plugin, version

__all__ = ["environment"]

_PACKAGES = (
    "art_qplugins",
    "torch",
    "adversarial-robustness-toolbox",
    "torchattacks",
    "pyautoattack",
    "numpy",
    "scipy",
)


def environment(device: torch.device, threads: int | None = None, used: Iterable[Plugin] = ()) -> Environment:
    """The environment of a run.

    :param threads: threads of torch on the CPU; ``None`` for torch's current number.
    :param used: other packages that the run uses.
    """
    installed = {name: found for name in _PACKAGES if (found := version(name)) is not None}
    threads = threads or torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    return Environment(
        packages=installed | {plugin.package: plugin.version for plugin in used},
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        git=_git(),
    )


def _git(file: Path = Path(__file__)) -> dict[str, Any] | None:
    """The commit that the package was run from, if it was run from a checkout.

    :param file: one of the package. Git must track it: an installed copy may lie inside another project's repository.
    """

    def ask(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", file.name)
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
