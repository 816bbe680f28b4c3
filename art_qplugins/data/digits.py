"""The digits of scikit-learn, which need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from art_qplugins.data.dataset import Dataset, Split, make_dataset, row_ids, split_rows

__all__ = ["digits"]


def digits(name: str, split: Split, *, root: Path, download: bool) -> Dataset:
    """8x8 gray digits with pixels from 0 to 16: 1,198 to train and 599 to test, a fixed stratified split."""
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = split_rows(source.target, split, test_share=1 / 3)
    return make_dataset(
        source.images[rows, None].astype(np.uint8),
        source.target[rows],
        name=name,
        split=split,
        ids=row_ids(f"{name}/{split}", rows, len(source.target)),
        classes=tuple("0123456789"),
        scale=16,
    )
