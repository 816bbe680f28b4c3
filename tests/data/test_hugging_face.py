"""Local copies of Hugging Face data sets."""

from __future__ import annotations

import io

import numpy as np
import pytest

from art_qplugins.data import load
from art_qplugins.errors import InputError

datasets = pytest.importorskip("datasets")
import pyarrow.parquet  # noqa: E402
from PIL import Image as Pillow  # noqa: E402

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 6, 6), dtype=np.uint8)
LABELS = [i % 2 for i in range(20)]


def png(pixels):
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def made(pixels=PIXELS, labels=LABELS, feature=None, **columns):
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=["cat", "dog"])}
    table = {"image": [png(one) for one in pixels], "label": labels}
    features |= {name: datasets.ClassLabel(names=["a", "b"]) for name in columns}
    return datasets.Dataset.from_dict({**table, **columns}, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))


def rows(data):
    return {tuple(image.ravel()): data.classes[label] for image, label in zip(np.asarray(data.images), data.labels)}  # noqa: B905


def test_a_split_of_save_to_disk_has_its_images_and_classes(tmp_path):
    both = datasets.DatasetDict(train=made(PIXELS[:12], LABELS[:12]), validation=made(PIXELS[12:], LABELS[12:]))
    both.save_to_disk(str(tmp_path / "pets"))
    name = f"hf:{tmp_path / 'pets'}"
    train, test = load(name, "train"), load(name, "test")
    assert train.classes == test.classes == ("cat", "dog") and train.shape == (1, 6, 6)
    assert np.array_equal(train.images[:, 0], PIXELS[:12]) and train.labels.tolist() == LABELS[:12]
    assert np.array_equal(test.images[:, 0], PIXELS[12:]) and test.ids[3] == "pets/test/0003"


def test_a_data_set_of_one_split_is_divided_each_class_in_proportion(tmp_path):
    made().save_to_disk(str(tmp_path / "one"))
    train, test = (load(f"hf:{tmp_path / 'one'}", split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [8, 8] and np.bincount(test.labels).tolist() == [2, 2]
    expected = {tuple(image.ravel()): ("cat", "dog")[label] for image, label in zip(PIXELS, LABELS)}  # noqa: B905
    assert rows(train) | rows(test) == expected


def test_parquet_files_as_on_the_hub_and_labels_that_are_integers(tmp_path):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    whole = datasets.Value("int64")
    made(PIXELS[:12], LABELS[:12], whole).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    made(PIXELS[12:], LABELS[12:], whole).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    test = load(f"hf:{tmp_path / 'hub'}", "test")
    assert test.classes == ("0", "1") and np.array_equal(test.images[:, 0], PIXELS[12:])


def test_colors_and_sizes(tmp_path):
    pixels = [RNG.integers(0, 256, (size, size + 2, 3), dtype=np.uint8) for size in (8, 10) * 5]
    made(pixels, LABELS[:10]).save_to_disk(str(tmp_path / "sizes"))
    name = f"hf:{tmp_path / 'sizes'}"
    with pytest.raises(InputError, match=r"row \d+ is 1[02]x\d+, .*set data.resize and data.crop"):
        load(name, "train")
    assert load(name, "train", options={"resize": 6, "crop": 6}).shape == (3, 6, 6)


def test_changed_files_are_read_again(tmp_path):
    made(PIXELS, LABELS).save_to_disk(str(tmp_path / "changing"))
    before = load(f"hf:{tmp_path / 'changing'}", "test").sha256
    assert load(f"hf:{tmp_path / 'changing'}", "test").sha256 == before
    for file in (tmp_path / "changing").iterdir():
        file.unlink()
    made(255 - PIXELS, LABELS).save_to_disk(str(tmp_path / "changing"))
    assert load(f"hf:{tmp_path / 'changing'}", "test").sha256 != before


BROKEN = {
    "nothing": (lambda path: path.mkdir(), "no copy of a data set; give the folder of save_to_disk"),
    "two labels": (lambda path: made(more=LABELS).save_to_disk(str(path)), r"columns \['label', 'more'\] hold labels; keep one"),
    "no image": (lambda path: made().remove_columns("image").save_to_disk(str(path)), r"no column of \['label'\] holds images"),
    "unknown label": (lambda path: made(labels=[None, *LABELS[1:]]).save_to_disk(str(path)), "labels outside 0 to 1"),
    "damaged": (lambda path: _damaged(path), "cannot be read"),
    "a file": (lambda path: path.write_text("{}"), "not a folder"),
    "elsewhere": (lambda path: _elsewhere(path), "it holds no image, but 'http"),
}  # fmt: skip


def _damaged(path):
    path.mkdir()
    (path / "train.parquet").write_bytes(b"PAR1" + b"\0" * 40)


def _elsewhere(path):
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    images = [{"bytes": None, "path": f"http://nowhere.invalid/{i}.png"} for i in range(20)]
    found = datasets.Dataset.from_dict({"image": images, "label": LABELS}, features=features)
    path.mkdir()
    pyarrow.parquet.write_table(found.data.table, path / "train.parquet")


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_refused(tmp_path, kind):
    make, why = BROKEN[kind]
    make(tmp_path / "it")
    with pytest.raises(InputError, match=rf"^hf:[^\n]*{why}[^\n]*$"):
        load(f"hf:{tmp_path / 'it'}", "train")
