"""Batches of one training set for one process: their order, where the images are read from, and their augmentation.

The order of an epoch depends on the seed and the epoch alone, and the augmentation of an image also on its index. So batches
are the same whoever reads them, in whatever number of processes, and from whichever batch an epoch is resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from art_qplugins.domains import COUNT, SEED, Domain, Is, Maybe, Number, check_all
from art_qplugins.errors import InputError
from art_qplugins.seeds import derive_seed
from art_qplugins.training.augmentations import Augmentation, augmented, random_numbers
from art_qplugins.training.batches import batches

__all__ = ["Batch", "Feed"]

#: The fraction of a GPU's free memory that the images of a training set may take.
_SHARE_OF_GPU = 1 / 4
#: The most processes that read images by default.
_MOST_WORKERS = 4
#: Bytes that are moved to a GPU in one piece.
_PIECE = 2**26

_INDEX = Number(0, COUNT.high, whole=True)
_ARGUMENTS: dict[str, Domain] = {
    "scale": COUNT,
    "batch_size": COUNT,
    "seed": SEED,
    "device": Is(torch.device, "a torch.device"),
    "rank": _INDEX,
    "world": COUNT,
    "workers": Maybe(Number(0, 1024, whole=True)),
}


@dataclass(frozen=True)
class Batch:
    """One batch as this process sees it.

    :ivar x: images (n, C, H, W) float32 in [0, 1], on the device, and ``y`` their labels (n,) int64.
    :ivar count: the number of images in the batch of all processes together.
    """

    x: Tensor
    y: Tensor
    count: int


class Feed:
    """The batches of a training set, in any epoch.

    On the CPU, images are used where they are, also in a memory-mapped file. On a GPU, images that take at most a quarter
    of its free memory are moved there once, as they are stored. Others are streamed.

    :param images: (N, C, H, W) uint8, or float32 in [0, 1]: an array, also memory-mapped and read-only, a tensor, or
        whatever is indexed by arrays of rows.
    :param labels: (N,) integers.
    :param scale: the pixel value that means 1.0.
    :param batch_size: of all processes together. A last batch of one image, or of fewer images than processes, joins the
        one before.
    :param augment: these are applied to each image in their order, before its conversion to float32.
    :param rank: this process, one of ``world``. It sees the images ``rank``, ``rank + world``, ... of each batch.
    :param workers: processes that read images that are streamed; 0 reads them here. By default at most 4, and on the CPU
        none. Where a system cannot fork, there are none.
    :raises InputError: where there are fewer images, or images in a batch, than processes.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        *,
        scale: int,
        batch_size: int,
        seed: int,
        augment: Sequence[Augmentation] = (),
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
    ) -> None:
        check_all(locals(), _ARGUMENTS)
        if rank >= world:
            raise InputError(f"rank: it is {rank} of {world} processes; they count from 0")
        for what, count in (("batch_size", batch_size), ("data", len(images))):
            if count < world:
                raise InputError(f"{what}: {count} images for {world} processes; give at least one for each")
        if len(labels) != len(images):
            raise InputError(f"data: {len(labels)} labels for {len(images)} images; give one per image")
        dtype = str(images.dtype).removeprefix("torch.")
        if dtype not in ("uint8", "float32"):
            raise InputError(f"data: images are {images.dtype}; give uint8, or float32 in [0, 1]")
        self._batch_size, self._seed, self._augment = batch_size, seed, tuple(augment)
        self._device, self._rank, self._world = device, rank, world
        self._read = _reader(images.detach().cpu().numpy() if isinstance(images, Tensor) else images, device, workers)
        self._labels = (labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))).to(
            device, torch.int64
        )
        # A GPU multiplies by the reciprocal of a number from Python, and divides by a tensor.
        self._scale = torch.full((), float(scale), device=device)
        self._unscaled = scale == 1 and dtype == "float32"

    @property
    def count(self) -> int:
        """The number of images in an epoch."""
        return len(self._labels)

    def steps(self) -> int:
        """The number of batches in an epoch."""
        return len(self._parts(torch.arange(len(self._labels))))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number ``start`` on. Epochs count from 0, and may be asked for in any order."""
        check_all(locals(), {"epoch": _INDEX, "start": _INDEX})
        generator = torch.Generator().manual_seed(derive_seed(self._seed, f"order/{epoch}"))
        order = torch.randperm(len(self._labels), generator=generator)
        counts = [len(part) for part in self._parts(order)[start:]]
        here, there = (
            [part[self._rank :: self._world] for part in self._parts(rows)[start:]]
            for rows in (order, order.to(self._device))
        )
        table = random_numbers(self._augment, len(order), seed=self._seed, epoch=epoch).to(self._device)
        for x, rows, count in zip(self._read(here, there), there, counts, strict=True):
            x = x.to(self._device, non_blocking=True)
            if self._augment:
                x = augmented(x, table[rows], self._augment)
            yield Batch(x if self._unscaled else x.to(torch.float32) / self._scale, self._labels[rows], count)

    def _parts(self, order: Tensor) -> list[Tensor]:
        """The rows of each batch of all processes together."""
        parts = batches(order, self._batch_size)
        return parts if len(parts[-1]) >= self._world else [*parts[:-2], torch.cat(parts[-2:])]


# --- Where the images are read from

#: Yields the images of some batches, given their rows on the CPU and on the device.
_Read = Callable[[list[Tensor], list[Tensor]], Iterable[Tensor]]


def _reader(images: Any, device: torch.device, workers: int | None) -> _Read:
    if workers is None and device.type == "cpu":
        return _from_memory(images)
    if workers is None and images.nbytes <= _SHARE_OF_GPU * _free_memory(device):
        return _from_device(_moved(images, device))
    if workers is None:
        workers = min(_MOST_WORKERS, max(1, _cores() - 1))
    if workers and "fork" in multiprocessing.get_all_start_methods():
        return _Stream(images, workers, pin_memory=device.type == "cuda")
    return _from_memory(images)


def _from_memory(images: Any) -> _Read:
    # Of an array in memory, take is the fastest.
    take = images.take if isinstance(images, np.ndarray) else lambda rows, axis: images[rows]
    return lambda here, there: (torch.from_numpy(take(rows.numpy(), axis=0)) for rows in here)


def _from_device(images: Tensor) -> _Read:
    return lambda here, there: (images[rows] for rows in there)


class _Stream:
    """Images that other processes read. They are forked at the first batch, share the images, and stay."""

    def __init__(self, images: Any, workers: int, *, pin_memory: bool) -> None:
        self._batches: list[np.ndarray] = []
        self._loader: DataLoader[Tensor] = DataLoader(
            _Images(images),
            batch_size=None,
            sampler=_Rows(self._batches),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=True,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # else each epoch takes a number of the global one
        )

    def __call__(self, here: list[Tensor], there: list[Tensor]) -> Iterator[Tensor]:
        self._batches[:] = [rows.numpy() for rows in here]
        with warnings.catch_warnings():
            # Python warns of forks beside threads. These processes only copy pixels.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            images = iter(self._loader)
        yield from images


class _Images(Dataset[Tensor]):
    """Images as a loader asks for them: all of a batch at once."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __getitem__(self, rows: Any) -> Tensor:
        return torch.from_numpy(self._images[rows])


class _Rows(Sampler[np.ndarray]):
    """The rows of each batch of the epoch that is read."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(list(self._batches))


def _moved(images: Any, device: torch.device) -> Tensor:
    """All images on the device. They are moved in pieces, so that this machine's memory holds one of them at a time."""
    moved = torch.empty(images.shape, dtype=torch.from_numpy(images[:1].copy()).dtype, device=device)
    rows = max(1, _PIECE * len(images) // images.nbytes)
    for at in range(0, len(images), rows):
        moved[at : at + rows] = torch.from_numpy(images[at : at + rows].copy())
    return moved


def _free_memory(device: torch.device) -> int:
    """In bytes; 0 where it is not known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
