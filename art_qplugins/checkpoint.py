"""Checkpoints: weights as safetensors and their description as JSON. None is a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from art_qplugins.errors import InputError
from art_qplugins.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights to ``path``, and after them their description beside it, with the suffix ``.json``.

    Where the description exists, both files are complete.

    :param description: anything that JSON or ``str`` can express, e.g. architecture, options and seed.
    """
    from safetensors.torch import save

    weights = save({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})
    write_atomically(path, weights)
    content = {"sha256": hashlib.sha256(weights).hexdigest(), **description}
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=1, default=str).encode())


def load_checkpoint(path: Path, module: nn.Module) -> dict[str, Any]:
    """Load weights into ``module`` in place.

    :return: the description beside the weights; empty where there is none.
    :raises InputError: where the file is missing, is no safetensors file, was changed after it was written, or holds
        the weights of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = _read(path)
    description = _read_description(path, content)
    try:
        weights = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint {path}: not a safetensors file, or a corrupt one ({error}); delete it to train again"
        ) from None
    _check_same_network(path, module, {name: tuple(value.shape) for name, value in weights.items()})
    module.load_state_dict(weights)
    return description


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"checkpoint {path}: cannot be read ({error.strerror}); give the path of a .safetensors file"
        ) from None


def _read_description(path: Path, content: bytes) -> dict[str, Any]:
    """The description beside the weights, without their hash, which has to be that of ``content``."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return {}
    try:
        description: dict[str, Any] = json.loads(beside.read_bytes())
        intact = description.pop("sha256") == hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, AttributeError, TypeError):  # no JSON, or not an object with a hash
        intact = False
    if not intact:
        raise InputError(
            f"checkpoint {path}: it is corrupt (its SHA-256 is not the one recorded in "
            f"{beside.name}); delete both files to train again"
        )
    return description


def _check_same_network(path: Path, module: nn.Module, found: Mapping[str, tuple[int, ...]]) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if found == wanted:
        return
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            here, there = wanted.get(name, "absent"), found.get(name, "absent")
            break
    raise InputError(
        f"checkpoint {path}: made for another network ({name} is {there} there and {here} in this "
        f"{type(module).__name__}); choose the architecture and options it was trained with, or delete it to train again"
    )
