"""Data sets: what is loaded, what is refused, and what the cache may and may not do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from art_qplugins.data import DATASETS, check_images, check_labels, from_arrays, load
from art_qplugins.data.dataset import split_rows, stratified_order
from art_qplugins.errors import InputError
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.runner import Runner


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARTQ_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()


def pixels(n=10, c=3, h=4, w=5, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, c, h, w), dtype=np.uint8)


def refused(*parts):
    """Raises InputError in one line that holds these parts."""
    return pytest.raises(InputError, match="^(?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]*$")


# --- Dataset


def test_digits_are_scikit_learns_split_once_and_for_all():
    from sklearn.datasets import load_digits

    source = load_digits()
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1198, 599)
    assert not set(train.ids) & {i.replace("test", "train") for i in test.ids}
    for part in (train, test):
        rows = [int(i.rsplit("/")[-1]) for i in part.ids]
        np.testing.assert_array_equal(part.x()[:, 0].numpy() * 16, source.images[rows])
        np.testing.assert_array_equal(part.y().numpy(), source.target[rows])
        share = np.bincount(part.labels) / np.bincount(source.target)
        assert np.ptp(share) < 0.02
    assert (test.shape, test.nb_classes, test.scale, test.ids[0]) == ((1, 8, 8), 10, 16, "digits/test/0001")
    # A published split must not move: whoever changes these changes every number measured on digits.
    assert train.sha256.startswith("8284e3014534a591")
    assert test.sha256.startswith("a700498a31a12dc4")


def test_x_and_y_are_fresh_tensors_in_the_unit_range():
    x = pixels()
    data = from_arrays(x, np.arange(10))
    assert torch.equal(data.x(), torch.from_numpy(x).float().div(255))  # as torchvision's ToTensor has it
    assert (data.x().dtype, data.y().dtype) == (torch.float32, torch.int64)
    data.x().zero_(), data.y().zero_()
    assert data.x().any() and data.y().any()
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


def test_floats_stay_floats_and_are_copied():
    x = torch.rand(6, 1, 3, 3, dtype=torch.float64)
    data = from_arrays(x, torch.tensor([0, 1, 2, 0, 1, 2]), classes=["a", "b", "c"])
    assert (data.images.dtype, data.scale, data.classes) == (np.float32, 1, ("a", "b", "c"))
    assert torch.equal(data.x(), x.float())
    array = np.zeros((2, 1, 2, 2), np.float32)
    kept = from_arrays(array, np.array([0, 1]))
    array[:] = 1
    assert not kept.x().any()


def test_sha256_tells_pixels_labels_and_shape_apart():
    x, y = pixels(8, 1, 4, 4), np.arange(8)
    changed = x.copy()
    changed[3, 0, 1, 2] ^= 1
    hashes = [
        from_arrays(*given).sha256
        for given in ((x, y), (changed, y), (x, y[::-1].copy()), (x.reshape(8, 1, 2, 8), y), (x / np.float32(255), y))
    ]
    assert len(set(hashes)) == len(hashes)
    assert from_arrays(x.copy(), y.astype(np.uint8), name="other").sha256 == hashes[0]
    assert from_arrays(x.transpose(0, 1, 3, 2), y).sha256 == from_arrays(x.transpose(0, 1, 3, 2).copy(), y).sha256


def test_take_is_a_balanced_prefix_with_the_ids_of_the_whole():
    data = load("digits", "test")
    small, large = data.take(100, seed=3), data.take(200, seed=3)
    assert small.ids == large.ids[:100]
    assert small.sha256 == data.sha256
    assert set(np.bincount(small.labels)) <= {9, 10, 11}
    row = {name: i for i, name in enumerate(data.ids)}
    np.testing.assert_array_equal(small.images, data.images[[row[i] for i in small.ids]])
    np.testing.assert_array_equal(small.labels, data.labels[[row[i] for i in small.ids]])
    assert data.take(100, seed=4).ids != small.ids
    assert sorted(data.take(10**6, seed=3).ids) == sorted(data.ids)
    with refused("digits: limit: it is 0", "at least 1"):
        data.take(0, seed=3)


@given(labels=hnp.arrays(np.int64, st.integers(2, 200), elements=st.integers(0, 6)), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_beginning_of_the_order_holds_every_class_in_proportion(labels, seed):
    order = stratified_order(labels, np.random.default_rng(seed).random(len(labels)))
    assert sorted(order) == list(range(len(labels)))
    for label in np.unique(labels):
        seen = np.cumsum(labels[order] == label)
        due = np.arange(1, len(labels) + 1) * np.mean(labels == label)
        # Half an image from the class itself, and half a share of each of the others.
        assert np.abs(seen - due).max() <= 0.5 + 0.5 * len(np.unique(labels))
    train, test = (split_rows(labels, split, test_share=0.2) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(test) == max(1, round(0.2 * len(labels)))


# --- what is refused

NAN = np.zeros((3, 1, 2, 2), np.float32)
NAN[1, 0, 1, 0], NAN[2, 0, 0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (np.zeros((2, 3, 4)), ["here: 3 dimensions", "N, C, H, W"]),
        (np.zeros((0, 1, 4, 4)), ["empty"]),
        (np.zeros((2, 8, 8, 3)), ["N, H, W, C", "transpose"]),
        (np.full((2, 1, 4, 4), 200.0), ["200", "divide by 255"]),
        (np.full((2, 1, 4, 4), -2.5), ["-2.5", "normalization"]),
        (np.full((2, 1, 4, 4), 300.0), ["300", "normalization"]),
        (np.full((2, 1, 4, 4), 1 + 1e-6), ["1.00000"]),
        (np.zeros((2, 1, 4, 4), np.int64), ["int64", "uint8"]),
        (np.zeros((2, 1, 4, 4), bool), ["bool"]),
        (NAN, ["2 pixels", r"\[1, 0, 1, 0\]"]),
        (np.full((2, 1, 2, 2), 1e300), ["8 pixels"]),
        ([[1, 2], [3]], ["1 dimensions"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)
def test_images_that_are_refused(x, parts):
    with refused(*parts):
        check_images(x, where="here")
    if isinstance(x, np.ndarray):
        with refused(*parts):
            check_images(torch.from_numpy(x), where="here")


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 64, 1, 1)),  # flat features, not (N, H, W, C)
        np.full((1, 1, 2, 2), 1 + 1e-12),  # 1 but for rounding
        np.full((1, 3, 2, 3), 255, np.uint8),
        torch.ones(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_images_that_are_accepted(x):
    check_images(x)


@pytest.mark.parametrize(
    ("y", "nb_classes", "parts"),
    [
        ([0, 1], 2, ["here: 2 labels for 3 images"]),
        ([0, 1, 2, 0], 3, ["4 labels for 3 images"]),
        (np.eye(3), 3, ["one-hot"]),
        ([0.0, 1.0, 2.0], 3, ["float64", "integers"]),
        ([0, 2, -1], 3, ["1 labels outside 0 to 2", r"-1 at \[2\]"]),
        ([0, 3, 9], 3, ["2 labels outside", r"3 at \[1\]"]),
        ([0, -4, 1], None, ["outside 0 to 65535", r"-4 at \[1\]"]),
        ([0, 0, 0], 1, ["fewer than 2 classes"]),
    ],
)
def test_labels_that_are_refused(y, nb_classes, parts):
    for given_as in (np.asarray, torch.as_tensor):
        with refused(*[part.replace("float64", "float") for part in parts]):
            check_labels(given_as(y), nb_classes, 3, where="here")


def test_one_class_is_refused_unless_the_others_are_named():
    with refused("fewer than 2 classes"):
        from_arrays(pixels(3), np.zeros(3, int))
    assert from_arrays(pixels(3), np.zeros(3, int), classes=("a", "b")).nb_classes == 2


def test_names_and_splits_that_do_not_exist():
    with refused("unknown data set 'digit'", "did you mean 'digits'"):
        load("digit", "test")
    with refused("unknown data set 'folder'", "folder:PATH"):
        load("folder", "test")
    with refused("split: it is .tests.", "give .train. or .test."):
        load("digits", "tests")
    with refused("'npz:' has no path", "npz:PATH"):
        load("npz:", "test")


def test_listing_is_light_and_every_target_exists():
    code = (
        "import sys; from art_qplugins.data import DATASETS; [e.help for e in DATASETS.values()];"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(DATASETS) == [
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "svhn",
        "folder:PATH",
        "npz:PATH",
        "hf:PATH",
    ]
    assert all(callable(entry.load()) for entry in DATASETS.values())


# --- torchvision


def write_mnist(root, *, cls="MNIST"):
    raw = root / cls / "raw"
    raw.mkdir(parents=True)
    for seed, (part, n) in enumerate({"train": 20, "t10k": 10}.items()):
        x, y = pixels(n, 1, 28, 28, seed=seed), np.arange(n, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", x[:, 0]), ("labels-idx1", y)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return raw


@pytest.mark.parametrize(("name", "cls"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files(tmp_path, name, cls):
    write_mnist(tmp_path / "data", cls=cls)
    train, test = load(name, "train"), load(name, "test")
    np.testing.assert_array_equal(train.images, pixels(20, 1, 28, 28, seed=0))
    np.testing.assert_array_equal(test.images, pixels(10, 1, 28, 28, seed=1))
    np.testing.assert_array_equal(test.labels, np.arange(10))
    assert (test.ids[3], test.scale, len(test.classes)) == (f"{name}/test/0003", 255, 10)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    import torchvision.datasets

    folder = tmp_path / "elsewhere" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    stored = {}
    for i, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        stored[file] = {"data": pixels(10, 3, 32, 32, seed=i).reshape(10, -1), "labels": list(range(10))}
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    sums = {}
    for file, content in {**stored, "batches.meta": {"label_names": names}}.items():
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    cls = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cls, "train_list", [[file, sums[file]] for file in stored if file != "test_batch"])
    monkeypatch.setattr(cls, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": sums["batches.meta"]})
    return folder.parent


def test_cifar_batches(cifar):
    test, train = load("cifar10", "test", root=cifar), load("cifar10", "train", root=str(cifar))
    np.testing.assert_array_equal(test.images, pixels(10, 3, 32, 32, seed=5))
    assert (len(train), train.shape, test.classes[3]) == (50, (3, 32, 32), "cat")


def write_cifar_jpeg(root, classes, size=(32, 32)):
    for split, n in (("train", 4), ("test", 2)):
        write_images(root / "cifar10-jpeg" / split, classes, n=n, size=size, suffix="jpg")


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_cifar_is_read_from_jpeg_files_where_the_original_is_missing(tmp_path, cifar):
    write_cifar_jpeg(tmp_path / "data", CIFAR)
    train, test = load("cifar10", "train"), load("cifar10", "test")
    assert (train.name, train.source, train.classes) == ("cifar10", "cifar10-jpeg", CIFAR)
    assert (len(train), len(test), test.shape, test.scale) == (40, 20, (3, 32, 32), 255)
    assert test.labels.tolist() == sorted([*range(10)] * 2)
    assert test.ids[2] == "cifar10-jpeg/test/automobile/00.jpg"
    with Image.open(tmp_path / "data" / "cifar10-jpeg" / "test" / "frog" / "01.jpg") as image:
        np.testing.assert_array_equal(test.images[13], np.asarray(image).transpose(2, 0, 1))
    write_cifar_jpeg(cifar, CIFAR)
    original = load("cifar10", "test", root=cifar)
    assert (original.source, original.ids[2]) == ("cifar-10-batches-py", "cifar10/test/0002")


def test_the_records_say_which_cifar_it_was(tmp_path):
    write_cifar_jpeg(tmp_path / "data", CIFAR)
    small = {"name": "net", "architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 0}}
    recipe = {"name": "r", "data": {"name": "cifar10"}, "threat": {"eps": [0.01]}, "models": [small], "diagnose": False}
    run = Runner(parse_recipe(recipe | {"attacks": [{"id": "art:fgsm"}]}), out=tmp_path / "run").run()
    assert run.results.data["source"] == json.loads((tmp_path / "run" / "results.json").read_text())["data"]["source"]
    assert run.results.data["source"] == "cifar10-jpeg"
    assert "<dt>Data: source</dt><dd>cifar10-jpeg</dd>" in (tmp_path / "run" / "report.html").read_text()


def test_cifar_files_of_other_classes_are_refused(tmp_path):
    write_cifar_jpeg(tmp_path / "data", ("cat", "dog"), size=(4, 4))
    with refused("cifar10: the classes in .*cifar10-jpeg are cat, dog; name its folders as", "airplane"):
        load("cifar10", "test")


def test_the_message_names_both_sources_of_cifar(tmp_path):
    with refused(
        f"cifar10: no {tmp_path}/data/cifar-10-batches-py/data_batch_1 and no folder cifar10-jpeg;", "--download"
    ):
        load("cifar10", "test")


def test_cifar_batches_that_are_broken(cifar):
    with open(cifar / "cifar-10-batches-py" / "test_batch", "ab") as file:
        file.write(b"x")
    with refused("cifar10: broken files in", "--download"):
        load("cifar10", "test", root=cifar)


def test_svhn_reads_the_split_asked_for(tmp_path, monkeypatch):
    import scipy.io
    import torchvision.datasets

    file, x = tmp_path / "data" / "test_32x32.mat", pixels(10, 3, 32, 32)
    scipy.io.savemat(file, {"X": x.transpose(2, 3, 1, 0), "y": np.arange(1, 11)[:, None]})
    entry = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {"test": entry})
    data = load("svhn", "test")
    np.testing.assert_array_equal(data.images, x)
    np.testing.assert_array_equal(data.labels, [*range(1, 10), 0])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn"])
def test_missing_files_are_named_with_what_to_type(tmp_path, name):
    with refused(f"{name}: no {tmp_path / 'data'}", "--download", "--data-root DIR"):
        load(name, "test")


def test_a_download_without_network_is_one_line(tmp_path, monkeypatch):
    import torchvision.datasets.mnist

    def no_network(*args, **kwargs):
        raise OSError("name resolution\nfailed")

    monkeypatch.setattr(torchvision.datasets.mnist.MNIST, "download", no_network)
    with refused("mnist: cannot download", "name resolution failed", "network"):
        load("mnist", "test", download=True)


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    import torchvision.datasets.mnist

    monkeypatch.setattr(torchvision.datasets.mnist.MNIST, "download", lambda self: write_mnist(tmp_path / "data"))
    assert len(load("mnist", "train", download=True)) == 20
    assert len(load("mnist", "train")) == 20


# --- folders


def write_images(folder, classes=("cat", "dog"), n=10, *, mode="RGB", size=(5, 4), suffix="png", seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            array = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(array).convert(mode).save(folder / name / f"{i:02d}.{suffix}")
    return folder


def test_folder_with_splits(tmp_path):
    pets = tmp_path / "data" / "pets"
    write_images(pets / "train", ("bird", "dog"), n=6), write_images(pets / "val", ("bird", "dog"), n=2, seed=1)
    (pets / "train" / "dog" / "notes.txt").write_text("not an image")
    train, test = load("folder:pets", "train"), load(f"folder:{pets}", "test")
    assert (train.classes, test.classes) == (("bird", "dog"),) * 2
    assert (len(train), train.shape) == (12, (3, 4, 5))
    assert test.ids == (
        "pets/test/bird/00.png",
        "pets/test/bird/01.png",
        "pets/test/dog/00.png",
        "pets/test/dog/01.png",
    )
    assert test.labels.tolist() == [0, 0, 1, 1]
    with Image.open(pets / "val" / "dog" / "01.png") as image:
        np.testing.assert_array_equal(test.images[3], np.asarray(image).transpose(2, 0, 1))
    write_images(pets / "test", ("bird", "dog"), n=3)
    assert len(load("folder:pets", "test")) == 6  # test before val


def test_folder_without_splits_is_split_the_same_everywhere(tmp_path):
    first, second = write_images(tmp_path / "a" / "pets"), write_images(tmp_path / "b" / "pets")
    train, test = load(f"folder:{first}", "train"), load(f"folder:{first}", "test")
    assert (len(train), len(test)) == (16, 4)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert not {i.split("/", 2)[2] for i in train.ids} & {i.split("/", 2)[2] for i in test.ids}
    again = load(f"folder:{second}", "test")
    assert (again.ids, again.sha256) == (test.ids, test.sha256)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        ({"train": ("ant", "bee"), "test": ("bee", "cow")}, ["class 'cow' has no image in the train split"]),
        ({"train": ("ant", "bee", "cow"), "val": ("cow",)}, ["class 'ant' .and 1 more. has no image in the val split"]),
    ],
)
def test_a_class_that_a_split_lacks_is_refused(tmp_path, split, classes, parts):
    for side, names in classes.items():
        write_images(tmp_path / "pets" / side, names, n=2)
    with refused("folder:.*pets", *parts, "add images to it, or remove the folder"):
        load(f"folder:{tmp_path / 'pets'}", split)


@pytest.mark.parametrize("n", [0, 1])
def test_a_class_without_images_on_both_sides_is_refused(tmp_path, n):
    write_images(tmp_path / "pets")
    write_images(tmp_path / "pets", ("eel",), n=n)
    with refused("class 'eel' has no image in the (train|test) split"):
        load(f"folder:{tmp_path / 'pets'}", "test")


def test_a_class_may_be_called_train(tmp_path):
    write_images(tmp_path / "vehicles", ("bus", "train"))
    assert load(f"folder:{tmp_path / 'vehicles'}", "train").classes == ("bus", "train")


def test_relative_folder_is_looked_for_here_first(tmp_path, monkeypatch):
    write_images(tmp_path / "data" / "pets", n=10), write_images(tmp_path / "here" / "pets", n=5)
    assert len(load("folder:pets", "train")) == 16
    monkeypatch.chdir(tmp_path / "here")
    assert len(load("folder:pets", "train")) == 8
    with refused("folder:birds: nothing at", "here/birds", "data/birds"):
        load("folder:birds", "train")


@pytest.mark.parametrize(
    ("modes", "channels"), [("L", 1), ("L1", 1), (("L", "RGB"), 3), (("RGB", "L"), 3), (("L", "LA"), 3), ("PP", 3)]
)
def test_gray_only_where_all_images_are(tmp_path, modes, channels):
    for i, mode in enumerate(modes):
        write_images(tmp_path / "set" / "train", (f"class{i}", f"other{i}"), n=2, mode=mode)
    data = load(f"folder:{tmp_path / 'set'}", "train")
    assert data.shape == (channels, 4, 5)
    with Image.open(tmp_path / "set" / "train" / "class0" / "01.png") as image:
        np.testing.assert_array_equal(data.images[1], np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:channels])


def test_folders_that_are_refused(tmp_path):
    def asked(split="train"):
        return load(f"folder:{tmp_path / 'set'}", split)

    train = tmp_path / "set" / "train"
    (train / "cat").mkdir(parents=True)
    with refused("no images in", "CLASS/FILE"):
        asked()
    write_images(train, ("cat",), n=2)
    with refused("fewer than 2 classes"):
        asked()
    write_images(train, ("dog",), n=1)
    with refused("no folder test beside"):
        asked("test")
    asked()
    write_images(train, ("eel",), n=1, size=(7, 6))
    with refused("eel/00.png is 7x6", "cat/00.png is 5x4", "set data.resize and data.crop"):
        asked()
    (train / "eel" / "00.png").write_bytes(b"not a png")
    with refused("eel/00.png: cannot be read .no image"):
        asked()
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(train / "eel" / "00.png")
    with refused("eel/00.png", "I;16", "8 bits"):
        asked()
    (tmp_path / "file").touch()
    with refused("not a folder", "npz:PATH"):
        load(f"folder:{tmp_path / 'file'}", "train")


# --- the cache


@pytest.fixture
def pets(tmp_path):
    return write_images(tmp_path / "data" / "pets", suffix="bmp")


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that are opened."""
    opened = []
    really = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or really(path, *rest))
    return opened


def test_images_are_decoded_once_until_one_changes(tmp_path, pets, decoded):
    first = load("folder:pets", "train")
    assert len(decoded) == 16 + 1  # the first says also that not all are gray
    assert load("folder:pets", "train").sha256 == first.sha256
    assert len(decoded) == 16 + 1
    changed = pets / first.ids[5].split("/", 2)[2]
    Image.new("RGB", (5, 4)).save(changed)  # as many bytes as before, since it is not compressed
    os.utime(changed, ns=(1, 1))
    assert not load("folder:pets", "train").images[5].any()
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_torchvision_files_are_read_once(tmp_path, monkeypatch):
    import torchvision.datasets

    write_mnist(tmp_path / "data")
    first = load("mnist", "test")
    monkeypatch.delattr(torchvision.datasets, "MNIST")
    assert load("mnist", "test").sha256 == first.sha256


DAMAGES = {
    "flip": lambda whole: whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:],
    "truncate": lambda whole: whole[: len(whole) // 2],
    "longer": lambda whole: whole + b"x",
    "empty": lambda whole: b"",
    "text": lambda whole: b"hello",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_broken_cache_is_built_again(tmp_path, pets, decoded, caplog, suffix, damage):
    first = load("folder:pets", "test")
    pixels = first.images.copy()
    (file,) = (tmp_path / "cache" / "arrays").glob(f"*.{suffix}")
    whole = file.read_bytes()
    file.unlink()  # what is mapped stays
    if damage != "gone":
        file.write_bytes(DAMAGES[damage](whole))
    decoded.clear()
    with caplog.at_level(logging.WARNING, "art_qplugins"):
        again = load("folder:pets", "test")
    assert again.sha256 == first.sha256
    np.testing.assert_array_equal(again.images, pixels)
    assert len(decoded) == 4 + 1
    assert ("the cache " in caplog.text) == ((suffix, damage) != ("npz", "gone"))
    assert load("folder:pets", "test").sha256 == first.sha256
    assert len(decoded) == 4 + 1  # and it was written anew


def cache_files(tmp_path):
    (npy,), (npz,) = ((tmp_path / "cache" / "arrays").glob(f"*.{suffix}") for suffix in ("npy", "npz"))
    return npy, npz


@pytest.mark.parametrize("odd", [{"other": 1}, {"shape": "text"}, {"shape": [1, 2]}, {"labels": [0, 1]}, {"stamp": 5}])
def test_a_description_that_is_odd_is_not_believed(tmp_path, pets, odd):
    first = load("folder:pets", "test")
    npz = cache_files(tmp_path)[1]
    with np.load(npz) as stored:
        written = dict(stored)
    np.savez(npz, **({} if "other" in odd else written) | {key: np.array(value) for key, value in odd.items()})
    again = load("folder:pets", "test")
    assert (again.sha256, again.labels.tolist()) == (first.sha256, first.labels.tolist())


def test_a_copy_of_the_cache_is_hashed_and_used(tmp_path, pets, decoded):
    first = load("folder:pets", "test")
    npy, npz = cache_files(tmp_path)
    content, stamp = npy.read_bytes(), npz.read_bytes()
    npy.unlink()
    npy.write_bytes(content)
    decoded.clear()
    assert load("folder:pets", "test").sha256 == first.sha256
    assert not decoded
    assert npz.read_bytes() != stamp  # and the next one is not hashed


def test_the_cache_is_mapped_and_is_a_plain_file(tmp_path, pets):
    data = load("folder:pets", "train")
    npy, _ = cache_files(tmp_path)
    np.testing.assert_array_equal(np.load(npy), data.images)
    assert isinstance(data.images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


def test_what_a_killed_process_left_is_removed(tmp_path, pets):
    load("folder:pets", "test")
    npy, npz = cache_files(tmp_path)
    npz.unlink()
    left = npy.parent / f".{npy.name}.abc.part"
    other = npy.parent / ".another-0123.npy.abc.part"
    left.touch(), other.touch()
    load("folder:pets", "test")
    assert (left.exists(), other.exists()) == (False, True)


def test_the_hash_is_the_same_without_a_cache(tmp_path, pets, monkeypatch):
    stored = load("folder:pets", "train")
    assert stored.sha256 == from_arrays(stored.images, stored.labels, classes=stored.classes).sha256
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "file"))
    alone = load("folder:pets", "train")
    assert alone.sha256 == stored.sha256
    np.testing.assert_array_equal(alone.images, stored.images)


def test_a_full_disk_is_noticed_before_anything_is_decoded(tmp_path, pets, monkeypatch, caplog):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 10}))
    with caplog.at_level(logging.WARNING, "art_qplugins"):
        assert len(load("folder:pets", "test")) == 4
    assert "No space left" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.np*"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, pets, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "file"))  # a folder cannot be made below a file, even by root
    with caplog.at_level(logging.WARNING, "art_qplugins"):
        assert len(load("folder:pets", "test")) == 4
    assert "cannot write the cache" in caplog.text


# --- .npz


def save(tmp_path, **arrays):
    np.savez(tmp_path / "data" / "set.npz", **arrays)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_npz_with_splits(tmp_path, dtype):
    x = (np.linspace(0, 255 if dtype == np.uint8 else 1, 6 * 12).reshape(6, 1, 3, 4)).astype(dtype)
    save(tmp_path, x_train=x, y_train=np.arange(6), x_test=x[:2], y_test=np.array([1, 0]))
    test = load("npz:set.npz", "test")
    assert (test.nb_classes, test.ids) == (6, ("set/test/0000", "set/test/0001"))  # six: train has a say as well
    np.testing.assert_allclose(test.x(), x[:2] / (255 if dtype == np.uint8 else 1), rtol=1e-6)
    assert test.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)


def test_npz_without_splits(tmp_path):
    x, y = pixels(50), np.arange(50) % 2
    save(tmp_path, x=x, y=y, classes=["no", "yes"])
    train, test = load("npz:set.npz", "train"), load("npz:set.npz", "test")
    assert (len(train), len(test), test.classes) == (40, 10, ("no", "yes"))
    assert np.bincount(test.labels).tolist() == [5, 5]
    rows = [int(i[-4:]) for i in (*train.ids, *test.ids)]
    assert sorted(rows) == list(range(50))
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), x[rows])
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), y[rows])


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"x": pixels()}, ["no array 'y'", "np.savez"]),
        ({"x_train": pixels(), "y_train": np.arange(10)}, ["no array 'x_test'"]),
        ({"x": pixels(4).transpose(0, 2, 3, 1), "y": np.arange(4)}, ["set.npz: x:", "transpose"]),
        ({"x": pixels(4), "y": np.arange(5)}, ["set.npz: y: 5 labels for 4 images"]),
        ({"x": pixels(4), "y": np.arange(4), "classes": ["a", "b"]}, ["2 labels outside 0 to 1", r"\[2\]"]),
        ({"x": pixels(4), "y": np.zeros(4, int)}, ["fewer than 2 classes"]),
        ({"x": pixels(4), "y": np.array([0, "a", 1, 2], dtype=object)}, ["cannot be read", "Python objects"]),
        ({"x": pixels(4) / 127.0, "y": np.arange(4)}, ["divide by 255"]),
        ({"x_test": pixels(4), "y_test": np.arange(4), "y_train": np.array([0, -1])}, ["y_train", r"-1 at \[1\]"]),
    ],
)
def test_npz_that_is_refused(tmp_path, arrays, parts):
    save(tmp_path, **arrays)
    with refused(*parts):
        load("npz:set.npz", "test")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not a zip"])
def test_npz_that_is_no_npz(tmp_path, content):
    (tmp_path / "data" / "set.npz").write_bytes(content)
    with refused("npz:.*set.npz: cannot be read", "np.savez"):
        load("npz:set.npz", "test")


def test_npy_in_place_of_npz(tmp_path):
    np.save(tmp_path / "data" / "set.npy", pixels())
    with refused("npz:.*set.npy: cannot be read", "a single array", "np.savez"):
        load("npz:set.npy", "test")
