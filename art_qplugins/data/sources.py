"""Data sets by name. Data sets that no package contains are in the data folder.

The data folder is ``root``, else the environment variable ``ARTQ_DATA``, else the platform's cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from art_qplugins.data.cache import user_folder
from art_qplugins.data.dataset import Dataset, Split
from art_qplugins.domains import FLAG, TEXT, OneOf, check
from art_qplugins.files import as_path
from art_qplugins.registry import Entry, Registry

__all__ = ["DATASETS", "entry_of", "load"]

DATASETS: Registry[Entry] = Registry(
    "data set",
    [
        Entry(name=name, target=f"art_qplugins.data.{target}", help=line)
        for name, target, line in (
            ("digits", "digits:digits", "8x8 gray, 10 classes, 1,797 images; comes with scikit-learn"),
            ("mnist", "vision:from_torchvision", "28x28 gray digits, 60,000 + 10,000 images"),
            ("fashion-mnist", "vision:from_torchvision", "28x28 gray clothes, 60,000 + 10,000 images"),
            ("cifar10", "vision:from_torchvision", "32x32 color, 10 classes, 50,000 + 10,000 images"),
            ("svhn", "vision:from_torchvision", "32x32 color house numbers, 73,257 + 26,032 images"),
            (
                "folder:PATH",
                "folder:from_folder",
                "images in PATH/CLASS/, or in PATH/train/CLASS/ and PATH/test/CLASS/",
            ),
            ("npz:PATH", "npz:from_npz", "arrays x and y, or x_train, y_train, x_test and y_test"),
        )
    ],
    group="art_qplugins.datasets",
)


def entry_of(name: str) -> Entry:
    """The entry that loads a data set; ``"folder:PATH"`` for ``"folder:/images"``.

    :raises InputError: where there is none.
    """
    pattern = f"{name.partition(':')[0]}:PATH"
    return DATASETS[pattern if ":" in name and pattern in DATASETS else name]


def load(name: str, split: Split, *, root: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """One split of a data set.

    :param name: a name in :data:`DATASETS`, with a path in place of ``PATH``.
    :param split: ``"train"`` or ``"test"``.
    :param root: the data folder. By default it is ``ARTQ_DATA``, else the platform's cache folder.
    :param download: fetch a missing data set if torchvision can.
    :raises InputError: for an unknown name or split, and for data that are missing, broken or out of range.
    """
    check("name", name, TEXT)
    check("download", download, FLAG)
    check("split", split, OneOf(("train", "test")))
    folder = as_path(root, where="data root: ", hint="give a folder") if root is not None else user_folder("ARTQ_DATA")
    source: Callable[..., Dataset] = entry_of(name).load()
    return source(name, split, root=folder, download=download)
