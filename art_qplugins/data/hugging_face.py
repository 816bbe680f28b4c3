"""Local copies of Hugging Face data sets. Nothing is downloaded, and no loading script runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from art_qplugins.arrays import MOST_BYTES
from art_qplugins.data.cache import Decoded, cached
from art_qplugins.data.checks import check_labels
from art_qplugins.data.dataset import Dataset, Split, make_dataset, row_ids, split_rows
from art_qplugins.data.images import Encoded, Source, decoded
from art_qplugins.data.npz import all_used
from art_qplugins.data.paths import find, stamp
from art_qplugins.errors import InputError, said, shown
from art_qplugins.files import in_words, printable

__all__ = ["from_hugging_face"]

logger = logging.getLogger(__name__)

_HINT = "give the folder of save_to_disk, or one with parquet files"
#: What data sets call their splits, the preferred name first.
_SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation", "valid", "val", "dev")}
#: The files that a copy consists of.
_FILES = (".arrow", ".parquet", ".json")


def from_hugging_face(
    name: str, split: Split, *, root: Path, download: bool, resize: int | None = None, crop: int | None = None
) -> Dataset:
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote, or one with parquet files of images.

    Its features tell the column of images (``Image``) and that of labels (``ClassLabel``, else the one column of integers). Splits
    are ``train`` and ``test``, or ``validation`` where there is no test split. A data set of one split is divided 80 to 20,
    each class in proportion. Of parquet files the name begins with that of the split, as on the hub.

    :param resize: see :func:`~art_qplugins.data.folder.from_folder`.
    :raises InputError: where ``datasets`` is not installed, there is no such copy, or it has no such columns.
    """
    path = find(name, root)
    where = f"hf:{printable(path)}"
    if not path.is_dir():
        raise InputError(f"{where}: not a folder; {_HINT}")
    splits = _opened(path, where)
    images, labels = _columns(next(iter(splits.values())).features, where)
    sides = {side: next((splits[one] for one in names if one in splits), None) for side, names in _SPLITS.items()}
    whole = len(splits) == 1
    rows_of = next(iter(splits.values())) if whole else sides[split]
    if rows_of is None:
        raise InputError(f"{where}: no split {split} among {sorted(splits)}; add one")
    known = {side: _labels(found, labels) for side, found in sides.items() if found is not None}
    y = _labels(rows_of, labels)
    classes = _classes(rows_of.features[labels], list(known.values()) or [y], where)
    check_labels(y, len(classes), len(rows_of), where=f"{where}: {labels}")
    rows = split_rows(y, split, test_share=0.2) if whole else np.arange(len(y))
    sources = _Images(rows_of, images, rows, where)
    files = sorted(file for file in path.rglob("*") if file.suffix in _FILES and file.is_file())
    source = [str(path.resolve()), split, [images, labels, resize, crop], [stamp(file, where="hf:") for file in files]]

    def decode() -> Decoded:
        logger.info("%s: decoding %d images, once", name, len(rows))
        return decoded(sources, y[rows], resize=resize, crop=crop)

    stem = path.resolve().name
    stored = cached(f"{stem}-{split}", source, decode)
    ids = row_ids(f"{stem}/{split}", rows, len(y))
    return make_dataset(
        stored.images, stored.labels, name=name, split=split, ids=ids, classes=classes, sha256=stored.sha256
    )


class _Images(Sequence[Source]):
    """The encoded images of some rows, read one by one."""

    def __init__(self, found: Any, column: str, rows: np.ndarray, where: str) -> None:
        import datasets

        self.found = found.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.rows, self.where = column, rows, where

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        row = int(self.rows[place])
        name = f"{self.where}: row {row}"
        try:
            image = self.found[row][self.column] or {}
        except Exception as error:  # as below
            raise InputError(f"{name}: cannot be read ({said(error)}); {_HINT}") from None
        if image.get("bytes") is None:  # a path, which may lead to another machine
            raise InputError(f"{name}: it holds no image, but {shown(image.get('path'))}; embed the images in the copy")
        return Encoded(name, image["bytes"])


def _opened(path: Path, where: str) -> Mapping[str, Any]:
    """The data set of each split by its name."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{where}: Hugging Face datasets is not installed; type pip install 'art_qplugins[hf]'"
        ) from None
    stored = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    parts = {} if stored else _parquet(path, where)
    try:
        found = datasets.load_from_disk(str(path)) if stored else {name: _table(part) for name, part in parts.items()}
    except Exception as error:  # readers of files of unknown origin fail in many ways
        raise InputError(f"{where}: cannot be read ({said(error)}); {_HINT}") from None
    splits = {"all": found} if isinstance(found, datasets.Dataset) else dict(found)
    if not splits or any(len(one) == 0 for one in splits.values()):
        raise InputError(f"{where}: it has no rows; {_HINT}")
    return splits


def _parquet(path: Path, where: str) -> dict[str, list[Path]]:
    """The parquet files of each split. Those of no known split are one split together."""
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise InputError(f"{where}: no copy of a data set; {_HINT}")
    if (size := sum(file.stat().st_size for file in files)) > MOST_BYTES:
        raise InputError(
            f"{where}: its parquet files take {in_words(size)}; load them once, and give the folder of save_to_disk"
        )
    found: dict[str, list[Path]] = {}
    for file in files:
        begin = file.stem.split("-")[0]
        found.setdefault(begin if any(begin in names for names in _SPLITS.values()) else "all", []).append(file)
    return found


def _table(files: Sequence[Path]) -> Any:
    import datasets
    import pyarrow
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files]))


def _columns(features: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The columns of images and labels."""
    import datasets

    def integers(feature: Any) -> bool:
        return isinstance(feature, datasets.Value) and "int" in feature.dtype

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [name for name, feature in features.items() if integers(feature)]
    for what, found in (("images", images), ("labels", labels)):
        if len(found) != 1:
            told = (
                f"columns {shown(found)} hold {what}" if found else f"no column of {shown(list(features))} holds {what}"
            )
            raise InputError(f"{where}: {told}; keep one with select_columns, and save the copy again")
    return images[0], labels[0]


def _labels(found: Any, column: str) -> np.ndarray:
    values = [-1 if value is None else value for value in found[column]]
    return np.array(values, dtype=np.int64)


def _classes(feature: Any, labels: Sequence[np.ndarray], where: str) -> tuple[str, ...]:
    names = getattr(feature, "names", None)
    return tuple(names) if names else all_used(where, np.concatenate(labels))
