"""Checkpoints: weights as safetensors and their description as JSON. None is a pickle.

Weights of other origin may also be a state dict of ``torch.save``, read without running code, or be in an archive of
``torch.export``, see :mod:`art_qplugins.state_dicts`. These have no description.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from art_qplugins.domains import PATH, TABLE, check, check_all
from art_qplugins.errors import InputError, one_line, said
from art_qplugins.files import (
    as_path,
    in_words,
    is_exported,
    open_file,
    parse_json,
    printable,
    read_json,
    reason,
    write_atomically,
)
from art_qplugins.state_dicts import LARGEST, TORCH_SAVE, read_exported, read_state_dict, without_wrappers
from art_qplugins.torch_domains import MODULE

__all__ = ["load_checkpoint", "read_description", "save_checkpoint"]

#: The largest header of a file, and the largest description, in bytes.
_LARGEST_HEADER = 2**24
_LARGEST_DESCRIPTION = 2**24

_WHERE, _HINT = "checkpoint ", "give the path of a .safetensors file"

#: The types of safetensors that a network here may have.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

#: The type and the shape of each tensor by its name.
_Layout = dict[str, tuple[str, tuple[int, ...]]]


def save_checkpoint(path: Path, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the weights to ``path``, and after them their description beside it, with the suffix ``.json``.

    Where the description exists, both files are complete.

    :param description: anything that JSON or ``str`` can express, e.g. architecture, options and seed.
    """
    check_all(locals(), {"path": PATH, "module": MODULE, "description": TABLE})
    from safetensors.torch import save

    path = Path(path)
    weights = save({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})
    write_atomically(path, weights)
    content = {"sha256": hashlib.sha256(weights).hexdigest(), **description}
    write_atomically(path.with_suffix(".json"), json.dumps(content, indent=1, default=str).encode())


def load_checkpoint(path: str | Path, module: nn.Module) -> dict[str, Any]:
    """Load weights into ``module`` in place. Names, shapes and types are compared first.

    Where they fit, names may be those of the network within a normalization or a filter, or begin with ``module.``, as
    DataParallel saves them.

    :param path: a ``.safetensors`` file; a ``.pt`` or ``.pth`` file of ``torch.save`` that holds tensors by name alone, which
        is read without running code; or a ``.pt2`` archive of ``torch.export``, which runs code.
    :return: the description beside the weights; empty where there is none.
    :raises InputError: where the file is missing, is of another kind, was changed after it was written, holds the tensors of
        another network or of other types, or weights that are not finite. The module is then unchanged.
    """
    check("module", module, MODULE)
    place = as_path(path, where=_WHERE, hint=_HINT)
    read = _read_other if _is_other(place) else _read_safetensors
    weights, description = read(place, module)
    _check_finite(place, module, weights)
    module.load_state_dict(weights)
    return description


def _is_other(path: Path) -> bool:
    """Whether the ending is that of a file of torch. What has another is read as safetensors."""
    return path.suffix.lower() in TORCH_SAVE or is_exported(path)


def _read_safetensors(path: Path, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by their names in ``module``, and their description. None is read before its header fits."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with open_file(path, most=LARGEST, where=_WHERE, hint=_HINT) as file:
        try:
            layout = _layout(path, file)
            names = without_wrappers(layout, module)
            _check_same_network(path, module, {names[name]: one for name, one in layout.items()})
            file.seek(0)
            content = file.read()
        except OSError as error:
            raise InputError(f"{_WHERE}{printable(path)}: cannot be read ({reason(error)}); {_HINT}") from None
    description = _intact_description(path, content)
    try:
        return {names[name]: value for name, value in load(content).items()}, description
    except (SafetensorError, ValueError, KeyError) as error:
        raise _corrupt(path, said(error)) from None


def _read_other(path: Path, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by their names in ``module``. They have no description."""
    if is_exported(path):
        found: Mapping[str, Tensor] = read_exported(path, where=_WHERE).state_dict
    else:
        with open_file(path, most=LARGEST, where=_WHERE, hint=_HINT) as file:
            found = read_state_dict(file, f"{_WHERE}{printable(path)}: ")
    names = without_wrappers(found, module)
    weights = {names[name]: value.detach() for name, value in found.items()}
    _check_same_network(path, module, {name: (_type(value), tuple(value.shape)) for name, value in weights.items()})
    return weights, {}


def read_description(path: str | Path) -> dict[str, Any]:
    """The description beside the weights in ``path``, with their hash; empty where there is none. No weight is read.

    Only ``.safetensors`` files have one.

    :raises InputError: where the weights are missing, or the description is no JSON with a hash.
    """
    place = as_path(path, where=_WHERE, hint=_HINT)
    open_file(place, most=LARGEST, where=_WHERE, hint=_HINT).close()
    beside = place.with_suffix(".json")
    if _is_other(place) or not os.path.lexists(beside):
        return {}
    where, hint = f"{_WHERE}description ", "delete it and the weights to train again"
    description = read_json(beside, most=_LARGEST_DESCRIPTION, where=where, hint=hint)
    if not isinstance(description.get("sha256"), str):
        raise InputError(f"{where}{printable(beside)}: it has no sha256 of the weights; {hint}")
    return description


def _intact_description(path: Path, content: bytes) -> dict[str, Any]:
    """The description beside the weights, without their hash, which has to be that of ``content``."""
    description = read_description(path)
    if description and description.pop("sha256") != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"{_WHERE}{printable(path)}: it is corrupt (its SHA-256 is not the one recorded in "
            f"{one_line(path.stem, 80)}.json); delete both files to train again"
        )
    return description


def _layout(path: Path, file: BinaryIO) -> _Layout:
    """What the header of a safetensors file promises, and the file has room for."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise InputError(
                f"{_WHERE}{printable(path)}: not a safetensors file, but one of torch.save; name it FILE.pt, and it is "
                "read where it holds tensors alone"
            )
        raise _corrupt(path, "it has no header")
    try:
        header = parse_json(file.read(length).decode("utf-8"))
        header.pop("__metadata__", None)
        layout = {name: (one["dtype"], tuple(one["shape"])) for name, one in header.items()}
        ends = [one["data_offsets"][1] for one in header.values()]
        whole = all(isinstance(end, int) for end in ends) and max(ends, default=0) == size - 8 - length
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _corrupt(path, f"its header is damaged: {said(error)}") from None
    if not whole:
        raise _corrupt(path, f"its header does not promise the {in_words(size - 8 - length)} that it holds")
    return layout


def _corrupt(path: Path, why: str) -> InputError:
    return InputError(
        f"{_WHERE}{printable(path)}: not a safetensors file, or a corrupt one ({why}); delete it to train again"
    )


def _check_same_network(path: Path, module: nn.Module, found: _Layout) -> None:
    wanted = {name: (_type(value), tuple(getattr(value, "shape", ()))) for name, value in module.state_dict().items()}
    name = next((n for n in sorted(wanted.keys() | found.keys()) if wanted.get(n) != found.get(n)), None)
    if name is None:
        return
    here, there = wanted.get(name), found.get(name)
    part = 0 if here is not None and there is not None and here[1] == there[1] else 1
    words = ["absent" if one is None else one_line(str(one[part]), 40) for one in (there, here)]
    also = ", or give the archive as factory" if is_exported(path) else ""
    raise InputError(
        f"{_WHERE}{printable(path)}: made for another network ({one_line(name, 60)} is {words[0]} there and {words[1]} in "
        f"this {type(module).__name__}); choose the architecture and options it was trained with{also}"
    )


def _type(value: Any) -> str:
    """The type of a tensor in safetensors."""
    return _TYPES.get(value.dtype, str(value.dtype)) if isinstance(value, Tensor) else type(value).__name__


def _check_finite(path: Path, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Weights are finite. A buffer may keep the infinity that the network made itself, as masks of attention do."""
    own = module.state_dict()
    for name, value in weights.items():
        if value.is_floating_point():
            bad = ~(torch.isfinite(value) | (value == own[name].to(value.device)))
            if bool(bad.any()):
                raise InputError(
                    f"{_WHERE}{printable(path)}: {int(bad.sum())} values of {one_line(name, 60)} are NaN or infinite; "
                    "train it again with a lower learning rate, or give other weights"
                )
