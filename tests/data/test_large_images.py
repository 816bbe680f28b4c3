"""Folders of images of many sizes: scaled, cropped, and decoded into a file piece by piece."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from PIL import Image

from art_qplugins.data import load
from art_qplugins.data.images import read_image
from art_qplugins.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))


def refused(*parts):
    """Raises InputError in one line of at most 300 characters that holds these parts."""
    pattern = "^(?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]{1,300}$"
    return pytest.raises(InputError, match=pattern)


def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path):
    """Four photos of each of two classes, of different sizes."""
    for i, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for j in range(4):
            noise(60 + 10 * j, 50 + 20 * i).save(folder / f"{j}.png")
    return tmp_path / "photos"


def loaded(photos, split="train", **options):
    return load(f"folder:{photos}", split, options=options)


# --- Resize and crop


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (41, 100), (48, 48)])
def test_the_shorter_side_is_scaled_and_the_middle_cut_out(tmp_path, width, height):
    from torchvision.transforms import v2

    image = noise(width, height)
    image.save(tmp_path / "it.png")
    found = read_image(tmp_path / "it.png", resize=24, crop=20)
    expected = v2.CenterCrop(20)(v2.Resize(24, antialias=True)(image))
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.shape == (20, 20, 3)


def test_a_crop_alone_is_the_middle(tmp_path):
    image = noise(10, 7)
    image.save(tmp_path / "it.png")
    np.testing.assert_array_equal(read_image(tmp_path / "it.png", crop=3), np.asarray(image)[2:5, 4:7])


def test_scaling_is_antialiased(tmp_path):
    """A fine checkerboard becomes gray, and neither black nor white."""
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)).save(tmp_path / "it.png")
    small = read_image(tmp_path / "it.png", resize=8).astype(int)
    assert np.abs(small - 127.5).max() < 16


def test_photos_of_many_sizes_become_images_of_one(photos):
    data = loaded(photos, resize=32, crop=28)
    assert data.shape == (3, 28, 28)
    expected = [read_image(photos / name.split("/", 2)[2], resize=32, crop=28).transpose(2, 0, 1) for name in data.ids]
    np.testing.assert_array_equal(data.images, expected)
    assert loaded(photos, resize=32, crop=20).sha256 != data.sha256  # each has a cache of its own
    assert loaded(photos, resize=32, crop=28).sha256 == data.sha256


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ["cat/.*.png is .*x50, cat/.*.png is .*x50", "set data.resize and data.crop to give all images one size"]),
        ({"resize": 32}, ["set data.resize and data.crop"]),
        ({"crop": 64}, ["cannot be read .*pixels, fewer than data.crop = 64.; set data.resize$"]),
        ({"resize": 32, "crop": 40}, ["crop is 40", "give a crop of at most resize"]),
        ({"resize": 0}, ["folder:PATH: option resize: it is 0"]),
        ({"crop": 2.5}, ["folder:PATH: option crop: it is 2.5"]),
        ({"size": 5}, ["folder:PATH: unknown option 'size'"]),
    ],
)
def test_what_cannot_be_scaled_is_refused(photos, options, parts):
    with refused(*parts):
        loaded(photos, **options)


def test_a_strip_that_would_become_huge_is_refused(tmp_path):
    noise(3000, 2).save(tmp_path / "it.png")
    with refused("it.png: cannot be read .with its shorter side of 4096 pixels it has more than 67108864"):
        read_image(tmp_path / "it.png", resize=4096)


def test_other_data_sets_have_no_sizes():
    with refused("digits: unknown option 'resize'"):
        load("digits", "test", options={"resize": 8})


# --- Decoding


def test_broken_images_leave_nothing_behind(tmp_path, photos):
    (photos / "dog" / "3.png").write_bytes(b"text")
    for _ in range(2):
        with refused("dog/3.png: cannot be read"):
            loaded(photos, "train", resize=8, crop=8), loaded(photos, "test", resize=8, crop=8)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name.endswith(".part")]


def test_a_killed_decoding_starts_again(tmp_path, photos):
    """It stops at the sixth image, is killed, and leaves an incomplete file that no one reads."""
    code = textwrap.dedent("""
        import sys, time
        from art_qplugins.data import images, load
        really, count = images.read_image, 0
        def slow(*args, **options):
            global count
            count += 1
            if count == 6:
                print("here", flush=True)
                time.sleep(600)
            return really(*args, **options)
        images.read_image = slow
        load(f"folder:{sys.argv[1]}", "train", options={"resize": 8, "crop": 8})
    """)
    process = subprocess.Popen([sys.executable, "-c", code, str(photos)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    arrays = tmp_path / "cache" / "arrays"
    assert list(arrays.glob(".*.part"))
    data = loaded(photos, resize=8, crop=8)
    assert len(data) == 6
    np.testing.assert_array_equal(
        data.images[5], read_image(photos / data.ids[5].split("/", 2)[2], resize=8, crop=8).transpose(2, 0, 1)
    )
    assert not list(arrays.glob(".*.part"))


def _decode(photos, results):
    results.put(load(f"folder:{photos}", "train", options={"resize": 8, "crop": 8}).sha256)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_of_several_processes_one_decodes(photos, monkeypatch):
    from art_qplugins.data import images

    context = multiprocessing.get_context("fork")
    decoded, results = context.Value("i", 0), context.SimpleQueue()
    really = images.read_image

    def counted(*args, **options):
        with decoded.get_lock():
            decoded.value += 1
        time.sleep(0.02)
        return really(*args, **options)

    monkeypatch.setattr(images, "read_image", counted)
    processes = [context.Process(target=_decode, args=(photos, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert len({results.get() for _ in processes}) == 1
    for process in processes:
        process.join()
    assert decoded.value == 6


# --- Memory

#: How much anonymous memory a feed of the images in a file takes, in MiB, beyond that of a feed of a few images.
FEED = """
import sys
import numpy as np
import torch
from art_qplugins.training.augmentations import Crop, Flip
from art_qplugins.training.feed import Feed

torch.set_num_threads(1)

def anonymous():
    with open("/proc/self/status") as status:
        return int(dict(line.split(":") for line in status)["RssAnon"].split()[0]) / 1024

def most(images, **options):
    feed = Feed(images, np.arange(len(images)) % 10, scale=255, batch_size=8, seed=0, augment=[Crop(), Flip()],
                device=torch.device("cpu"), **options)
    return max(anonymous() for _, batch in zip(range(10), feed.epoch(0)))

images = np.load(sys.argv[1], mmap_mode="r")
before = most(np.array(images[:80]))
print(most(images, workers=int(sys.argv[2]) if sys.argv[2:] else None) - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux is asked for its memory")
@pytest.mark.parametrize(("count", "side", "workers"), [(100_000, 224, []), (100_000, 224, ["1"]), (50_000, 32, [])])
def test_a_feed_takes_memory_for_some_batches_alone(tmp_path, count, side, workers):
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, side, side)).flush()  # a file without content
    done = subprocess.run([sys.executable, "-c", FEED, str(path), *workers], capture_output=True, text=True, check=True)
    whole = count * 3 * side**2 / 2**20  # 146 MiB, and 14 GiB
    assert float(done.stdout) < min(whole / 3, 200)


def test_the_rows_of_a_part_are_read_from_the_file(photos):
    from art_qplugins.data import training_split
    from art_qplugins.training.feed import Feed

    whole = loaded(photos, resize=8, crop=8)
    train, _ = training_split(whole, limit=4)
    assert np.shares_memory(train.images._images, whole.images)
    feed = Feed(train.images, train.labels, scale=255, batch_size=2, seed=0, device=torch.device("cpu"))
    found = torch.cat([batch.x for batch in feed.epoch(0)])
    assert sorted(map(str, found.tolist())) == sorted(map(str, train.x().tolist()))
