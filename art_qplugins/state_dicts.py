"""State dicts of other origin: of ``torch.save``, read without running code, and of a ``torch.export`` archive, which runs code.

``.pt`` and ``.pth`` are read with ``weights_only=True``, and only where they hold tensors by name and nothing else.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO, Any

import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError, one_line, said, shown
from art_qplugins.files import in_words, open_file, printable
from art_qplugins.foreign import foreign

__all__ = ["LARGEST", "TORCH_SAVE", "read_exported", "read_state_dict", "without_wrappers"]

#: The endings of files of ``torch.save``.
TORCH_SAVE = (".pt", ".pth")

#: The largest file of weights, and the largest pickle that describes its tensors, in bytes.
LARGEST = 2**37
_LARGEST_PICKLE = 2**24
#: Tables that hold a state dict and nothing else, by the key of it.
_WRAPPERS = ("state_dict", "model")
#: What the names of weights begin with where a network was wrapped while it was saved.
_PREFIXES = ("module.", "_orig_mod.")
_SAVE = "save the weights alone: torch.save(net.state_dict(), FILE)"


def read_state_dict(file: IO[bytes], where: str) -> dict[str, Tensor]:
    """The tensors by name in an open file of ``torch.save``, on the CPU. No code of the file runs.

    A table whose one key is ``state_dict`` or ``model`` counts as what it holds.

    :param where: begins the message, e.g. ``"checkpoint w.pt: "``.
    :raises InputError: where it is no such file, is cut, or holds anything but tensors. The message says what it holds.
    """
    _check_archive(file, where)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of kinds of tensors that are refused below
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler and the archive fail in many ways, and the cause is the file in each
        raise InputError(f"{where}{_refused(file, error)}") from None
    if isinstance(found, Mapping) and len(found) == 1 and (key := next(iter(found))) in _WRAPPERS:
        found = found[key]
    if not isinstance(found, Mapping):
        raise InputError(f"{where}it holds {_kind(found)}, and no state dict; {_SAVE}")
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            why = _beside(found) or f"it holds {_kind(value)} as {_short(name)}, and no tensors alone; {_SAVE}"
            raise InputError(f"{where}{why}")
    if not found:
        raise InputError(f"{where}it holds no tensor; {_SAVE}")
    return {name: value.detach() for name, value in found.items()}


def read_exported(path: str | os.PathLike[str], *, where: str = "") -> torch.export.ExportedProgram:
    """The program in an archive of ``torch.export.save``. torch unpickles parts of it, which can run code.

    :param where: what the file is, e.g. ``"checkpoint "``; the beginning of the message.
    :raises InputError: where it is none, or torch cannot read it.
    """
    hint = "give an archive of torch.export.save"
    with open_file(path, most=LARGEST, where=where, hint=hint) as file:
        where = f"{where}{printable(path)}: "
        names = _names(file, where)
        if not _is_exported(names):
            raise InputError(f"{where}no archive of torch.export.save; write one with torch.export.save(program, FILE)")
        file.seek(0)
        with foreign(f"{where}torch cannot read it", hint="export it again with the torch that is installed"):
            return torch.export.load(file)


def without_wrappers(names: Mapping[str, Any], module: nn.Module) -> dict[str, str]:
    """The name in ``module`` of each name in a file: without what DataParallel and torch.compile put before it, and within the
    layers that a recipe puts before a network. Names that fit already, or that fit in no way, stay.
    """
    wanted, inner, path = set(module.state_dict()), "", "network."
    plain = {name: name for name in names}
    for prefix in _PREFIXES:
        if plain and all(name.startswith(prefix) for name in plain.values()):
            plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    while True:
        for short in ({name: name for name in names}, plain):
            fitted = {name: f"{inner}{one}" for name, one in short.items()}
            if set(fitted.values()) == wanted:
                return fitted
        inner += path
        if not wanted or not all(name.startswith(inner) for name in wanted):
            return plain


def _check_archive(file: IO[bytes], where: str) -> None:
    """Refuse an archive whose parts are larger than it says, before any is read."""
    names = _names(file, where)
    pickles = [size for name, size in names.items() if name.endswith("data.pkl")]
    if _is_exported(names):
        raise InputError(f"{where}an archive of torch.export; name it FILE.pt2")
    if len(pickles) != 1:
        raise InputError(f"{where}not a file of torch.save; {_SAVE}")
    if pickles[0] > _LARGEST_PICKLE:
        raise InputError(f"{where}the table of its tensors takes {in_words(pickles[0])}; {_SAVE}")


def _is_exported(names: Iterable[str]) -> bool:
    """Whether these are the parts of an archive of ``torch.export``, also of one before torch 2.9."""
    return any(name.endswith("/archive_format") or name == "serialized_exported_program.json" for name in names)


def _names(file: IO[bytes], where: str) -> dict[str, int]:
    """The sizes of the parts of an archive by name, each of which is in it and is not compressed."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(4)
    if start[:1] == b"\x80":
        raise InputError(f"{where}a pickle, or of a torch before 1.6; where you trust it, load it there and {_SAVE}")
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {part.filename: part for part in archive.infolist()}
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts.values())
            fits = stored and sum(part.file_size for part in parts.values()) <= size
            damaged = archive.testzip() if fits else None
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        what = "it is cut or damaged" if start == b"PK\x03\x04" else "no archive"
        raise InputError(f"{where}not a file of torch.save ({what}: {said(error)}); {_SAVE}") from None
    if any("/code/" in name for name in parts):
        raise InputError(f"{where}a TorchScript archive, which is code; {_SAVE}")
    if damaged is not None:
        raise InputError(f"{where}it is damaged (the checksum of {_short(damaged)} is another); {_SAVE}")
    if not fits:
        raise InputError(f"{where}its parts do not have the sizes of a file of torch.save; {_SAVE}")
    return {name: part.file_size for name, part in parts.items()}


def _beside(found: Mapping[Any, Any]) -> str:
    """What a table holds beside a state dict; "" where there is none in it."""
    inner = next((key for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
    if inner is None:
        return ""
    others = ", ".join(_short(key) for key in list(found) if key != inner)
    return (
        f"it holds {one_line(others, 60)} beside {inner}; keep the weights alone: "
        f'torch.save(torch.load(FILE, weights_only=True)["{inner}"], NEW)'
    )


def _refused(file: IO[bytes], error: Exception) -> str:
    """What an archive holds that no reader of weights takes."""
    try:
        file.seek(0)
        classes = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # as above
        classes = []
    if classes:
        more = f" and {len(classes) - 1} more" if classes[1:] else ""
        return (
            f"it holds {one_line(classes[0], 60)}{more}, and no tensors alone; reading that runs code; where you trust "
            "it, load it and torch.save its state_dict()"
        )
    return f"cannot be read ({said(error)}); {_SAVE}"


def _is_plain(value: Any) -> bool:
    dense = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and value.device.type == "cpu"
    return dense and not value.is_quantized


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "one tensor" if _is_plain(value) else "a sparse, quantized or other tensor"
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return shown(value)


def _short(name: object) -> str:
    return one_line(name if isinstance(name, str) else shown(name), 40)
