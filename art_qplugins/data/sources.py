"""Data sets by name. Data sets that no package contains are in the data folder.

The data folder is ``root``, else the environment variable ``ARTQ_DATA``, else the platform's cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from art_qplugins.data.cache import user_folder
from art_qplugins.data.dataset import Dataset, Split
from art_qplugins.domains import FLAG, TABLE, TEXT, Maybe, Number, OneOf, Option, Rule, check
from art_qplugins.files import as_path
from art_qplugins.registry import Entry, Registry

__all__ = ["DATASETS", "entry_of", "load"]

#: The side of an image in pixels.
_SIDE = Maybe(Number(1, 8192, whole=True))
#: Of data sets that are image files of any size.
_SIZES: dict[str, Any] = {
    "options": {"resize": Option(None, _SIDE), "crop": Option(None, _SIDE)},
    "rules": (Rule(("resize", "crop"), lambda resize, crop: crop <= resize, "a crop of at most resize"),),
}

DATASETS: Registry[Entry] = Registry(
    "data set",
    [
        *(
            Entry(name=name, target=f"art_qplugins.data.{target}", help=line)
            for name, target, line in (
                ("digits", "digits:digits", "8x8 gray, 10 classes, 1,797 images; comes with scikit-learn"),
                ("mnist", "vision:from_torchvision", "28x28 gray digits, 60,000 + 10,000 images"),
                ("fashion-mnist", "vision:from_torchvision", "28x28 gray clothes, 60,000 + 10,000 images"),
                ("cifar10", "vision:from_torchvision", "32x32 color, 10 classes, 50,000 + 10,000 images"),
                ("svhn", "vision:from_torchvision", "32x32 color house numbers, 73,257 + 26,032 images"),
            )
        ),
        Entry(
            name="folder:PATH",
            target="art_qplugins.data.folder:from_folder",
            help="images in PATH/CLASS/, or in PATH/train/CLASS/ and PATH/test/CLASS/",
            **_SIZES,
        ),
        Entry(
            name="npz:PATH",
            target="art_qplugins.data.npz:from_npz",
            help="arrays x and y, or x_train, y_train, x_test and y_test",
        ),
        Entry(
            name="hf:PATH",
            target="art_qplugins.data.hugging_face:from_hugging_face",
            help="a local copy of a Hugging Face data set: of save_to_disk, or its parquet files; extra [hf]",
            **_SIZES,
        ),
    ],
    group="art_qplugins.datasets",
)


def entry_of(name: str) -> Entry:
    """The entry that loads a data set; ``"folder:PATH"`` for ``"folder:/images"``.

    :raises InputError: where there is none.
    """
    pattern = f"{name.partition(':')[0]}:PATH"
    return DATASETS[pattern if ":" in name and pattern in DATASETS else name]


def load(
    name: str,
    split: Split,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """One split of a data set.

    :param name: a name in :data:`DATASETS`, with a path in place of ``PATH``.
    :param split: ``"train"`` or ``"test"``.
    :param root: the data folder. By default it is ``ARTQ_DATA``, else the platform's cache folder.
    :param download: fetch a missing data set if torchvision can.
    :param options: those of its entry in :data:`DATASETS`, e.g. ``{"resize": 256, "crop": 224}`` for a folder of images.
    :raises InputError: for an unknown name, split or option, and for data that are missing, broken or out of range.
    """
    check("name", name, TEXT)
    check("download", download, FLAG)
    check("split", split, OneOf(("train", "test")))
    folder = as_path(root, where="data root: ", hint="give a folder") if root is not None else user_folder("ARTQ_DATA")
    check("options", options, Maybe(TABLE))
    entry = entry_of(name)
    resolved = entry.resolve(options or {})
    source: Callable[..., Dataset] = entry.load()
    return source(name, split, root=folder, download=download, **resolved)
