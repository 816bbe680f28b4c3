"""Pixels as a file takes them, against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_qplugins import InputError
from art_qplugins.deployment.inputs import FileInput, Inputs, inputs_of


def known(file, shape=None, **given):
    return inputs_of(file, given, shape, name="net.onnx")


def test_bytes_of_an_image_file_in_channels_last():
    inputs, image, batch = known(FileInput(shape=(1, 2, 2, 3), dtype="uint8"))
    assert (image, batch, inputs.layout, inputs.levels) == ((3, 2, 2), 1, "NHWC", 256)
    bytes_ = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3) * 20
    pixels = np.moveaxis(bytes_.astype(np.float32) / 255, -1, 1)
    assert np.array_equal(inputs.encode(pixels), bytes_) and inputs.encode(pixels).dtype == np.uint8
    np.testing.assert_allclose(inputs.decode(bytes_), pixels, atol=1e-7)


def test_signed_bytes_with_a_zero_point():
    inputs, _, _ = known(FileInput(shape=(None, 1, 2, 2), dtype="int8", scale=1 / 255, zero_point=-128))
    x = np.array([[[[0.0, 1.0], [0.5, 0.2]]]], dtype=np.float32)
    assert inputs.encode(x).tolist() == [[[[-128, 127], [0, -77]]]]  # 127.5 is rounded to the even 128


def test_mean_and_deviation_of_each_channel_before_the_scale():
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.5]
    inputs, _, _ = known(
        FileInput(shape=(1, 3, 1, 1), dtype="uint8", scale=0.02, zero_point=110), (3, 1, 1), mean=mean, std=std
    )
    x = np.array([0.75, 0.4, 0.05], dtype=np.float32).reshape(1, 3, 1, 1)
    assert inputs.encode(x).ravel().tolist() == [110 + 50, 110, 110 - 25]  # (x - mean) / std = 1, 0, -0.5
    np.testing.assert_allclose(inputs.decode(inputs.encode(x)), x, atol=1e-6)
    floats, _, _ = known(FileInput(shape=(1, 3, 1, 1), dtype="float32"), (3, 1, 1), mean=mean, std=std)
    np.testing.assert_allclose(floats.encode(x).ravel(), [1, 0, -0.5], atol=1e-6)
    assert floats.levels is None


@given(st.sampled_from(["uint8", "int8"]), st.integers(0, 10**6))
def test_what_is_read_is_at_most_half_a_level_away_and_is_read_as_itself(dtype, seed):
    zero_point = 0 if dtype == "uint8" else -128
    inputs = Inputs(layout="NHWC", dtype=dtype, scale=1 / 255, zero_point=zero_point, mean=(0.0,), std=(1.0,))
    x = np.random.default_rng(seed).random((2, 3, 4, 5), dtype=np.float32)
    seen = inputs.decode(inputs.encode(x))
    assert seen.shape == x.shape and np.abs(seen - x).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(inputs.encode(seen), inputs.encode(x))


FILES = {
    "first": ((None, 3, 8, 9), None, "NCHW", (3, 8, 9)),
    "last": ((2, 8, 9, 1), None, "NHWC", (1, 8, 9)),
    "by the images": ((None, 5, 8, 9), (5, 8, 9), "NCHW", (5, 8, 9)),
    "by the images, last": ((None, None, None, 3), (3, 8, 9), "NHWC", (3, 8, 9)),
    "open": ((None, 3, None, None), (3, 8, 9), "NCHW", (3, 8, 9)),
}


@pytest.mark.parametrize("which", FILES)
def test_the_order_of_axes_is_told_by_the_channels_or_by_the_images(which):
    axes, shape, layout, image = FILES[which]
    inputs, found, batch = known(FileInput(shape=axes, dtype="float32"), shape)
    assert (inputs.layout, found, batch) == (layout, image, axes[0])


FLOATS = FileInput(shape=(None, 3, 8, 8), dtype="float32")
SIGNED = FileInput(shape=(None, 3, 8, 8), dtype="int8", scale=1 / 128, zero_point=0)
REFUSED = {
    "either order": (FileInput(shape=(1, 3, 8, 3), dtype="float32"), None, {}, "layout"),
    "neither order": (FileInput(shape=(1, 8, 8, 8), dtype="float32"), None, {}, "does not fit"),
    "other images": (FLOATS, (3, 32, 32), {}, r"does not fit images \(3, 32, 32\)"),
    "open size": (FileInput(shape=(None, 3, None, None), dtype="float32"), None, {}, "input_shape"),
    "rows": (FileInput(shape=(None, 64), dtype="float32"), None, {}, "four axes"),
    "another type": (FileInput(shape=(None, 3, 8, 8), dtype="int64"), None, {}, "int64"),
    "contradicts": (FLOATS, None, {"dtype": "uint8"}, "net.onnx says 'float32'"),
    "a scale of floats": (FLOATS, None, {"scale": 0.1}, "give mean and std"),
    "no scale": (FileInput(shape=(None, 3, 8, 8), dtype="int8"), None, {}, "scale = "),
    "another range": (SIGNED, None, {}, "mean"),
    "saturates": (SIGNED, None, {"mean": [0.5], "std": [0.2]}, "mean"),
    "two means": (FLOATS, None, {"mean": [0.1, 0.2]}, "3 channels"),
    "an unknown key": (FLOATS, None, {"means": [0.1]}, "did you mean 'mean'"),
    "an odd value": (FLOATS, None, {"std": [0.0]}, r"inputs\.std"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_is_not_known_or_contradicts_is_refused_and_says_what_to_give(which):
    file, shape, given, message = REFUSED[which]
    with pytest.raises(InputError, match=message):
        known(file, shape, **given)


def test_what_is_given_settles_what_is_open():
    inputs, image, _ = known(FileInput(shape=(1, 3, 8, 3), dtype="float32"), layout="NHWC")
    assert (inputs.layout, image) == ("NHWC", (3, 3, 8))
    assert known(SIGNED, mean=[0.5], std=[0.5])[0].encode(np.zeros((1, 3, 8, 8), dtype=np.float32)).max() == -128
    symmetric = FileInput(shape=(None, 3, 8, 8), dtype="int8", scale=1 / 127)
    assert known(symmetric, mean=[0.0], std=[1.0])[0].encode(np.ones((1, 3, 8, 8), dtype=np.float32)).max() == 127
