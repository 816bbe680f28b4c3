"""The device that ``device_type`` names."""

from __future__ import annotations

import torch

from art_qplugins.errors import InputError

__all__ = ["resolve_device"]


def resolve_device(device_type: str) -> torch.device:
    """The device, which can be used.

    :param device_type: ``"cpu"``; ``"gpu"``, the current CUDA device or else the CPU; or a device, e.g. ``"cuda:1"``.
    :raises InputError: where there is no such device here.
    """
    if device_type == "gpu":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(device_type)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device_type: {device_type!r} cannot be used here ({reason}); try 'gpu' or 'cpu'") from None
    return device
