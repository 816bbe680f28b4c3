"""ONNX, TFLite and OpenVINO files as functions of pixels. The files are written by hand, so their answers are known."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from deployed_nets import CLASSES, SHAPE, images, linear, onnx_file, tflite_file

from art_qplugins import DeployedClassifier, InputError, open_deployed
from art_qplugins.deployment.runtimes import ONNXRuntime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT, UINT8, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8
node = onnx.helper.make_node


def scores(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x)).numpy()


def rounded(x, levels=255):
    return (np.rint(np.asarray(x, dtype=np.float64) * levels) / levels).astype(np.float32)


# --- ONNX


def test_an_onnx_file_of_floats_answers_as_the_network(tmp_path):
    model, x = linear(), images(7).numpy()
    predict, shape, classes = open_deployed(onnx_file(tmp_path / "net.onnx", model))
    assert (shape, classes, predict.reading) == (SHAPE, CLASSES, None)
    np.testing.assert_allclose(predict(x), scores(model, x), rtol=1e-5, atol=1e-5)
    assert np.array_equal(predict(x), predict(x)) and np.array_equal(predict.seen(x), x)


def test_bytes_in_channels_last_are_rounded_as_the_file_reads_them(tmp_path):
    model = linear((3, 4, 5))
    before = [
        node("Cast", ["image"], ["floats"], to=FLOAT),
        node("Div", ["floats", "most"], ["unit"]),
        node("Transpose", ["unit"], ["x"], perm=[0, 3, 1, 2]),
    ]
    stored = [("most", np.float32(255))]
    path = onnx_file(tmp_path / "net.onnx", model, before=before, dtype=UINT8, shape=(4, 5, 3), stored=stored)
    estimator = DeployedClassifier.from_file(path, twin=model)
    x = images(9, (3, 4, 5)).numpy()
    np.testing.assert_allclose(estimator.predict(x), scores(model, rounded(x)), rtol=1e-5, atol=1e-5)
    assert any("uint8, on a grid of 256 levels" in fact for fact in estimator.model.facts)
    # the twin's gradient is taken where the file sees the image
    # a point without a value has no answer
    lost = torch.from_numpy(x).clone()
    lost[2, 0, 0, 0] = torch.nan
    assert estimator.model(lost).isnan().any(1).tolist() == [i == 2 for i in range(9)]
    curved = torch.nn.Sequential(model, torch.nn.Softplus()).eval()
    module, point = estimator.model.with_twin(curved), torch.from_numpy(x).requires_grad_()
    found = torch.autograd.grad(module(point).sum(), point)[0]
    seen = torch.from_numpy(rounded(x)).requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(curved(seen).sum(), seen)[0])


def test_the_scale_of_integers_is_read_from_the_graph(tmp_path):
    model, x = linear(), images(5).numpy()
    before = [node("DequantizeLinear", ["image", "scale", "zero"], ["x"])]
    stored = [("scale", np.float32(1 / 255)), ("zero", np.int8(-128))]
    path = onnx_file(tmp_path / "net.onnx", model, before=before, dtype=INT8, stored=stored)
    predict, _, _ = open_deployed(path)
    assert (predict.inputs.scale, predict.inputs.zero_point) == (pytest.approx(1 / 255), -128)
    np.testing.assert_allclose(predict(x), scores(model, rounded(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "apply"), [("NominalRange_0_255", lambda x: 255 * x), ("Normalized_1_1", lambda x: 2 * x - 1)]
)
def test_the_range_of_pixels_is_read_from_the_metadata(tmp_path, said, apply):
    model, x = linear(), images(5).numpy()
    path = onnx_file(tmp_path / "net.onnx", model, metadata={"Image.NominalPixelRange": said})
    np.testing.assert_allclose(open_deployed(path)[0](x), scores(model, apply(x)), rtol=1e-4, atol=1e-4)


def test_a_range_of_pixels_that_is_not_known_is_refused(tmp_path):
    path = onnx_file(tmp_path / "net.onnx", linear(), metadata={"Image.NominalPixelRange": "NominalRange_16_235"})
    with pytest.raises(InputError, match="its pixels are 'NominalRange_16_235'"):
        open_deployed(path)


def test_what_is_given_is_applied(tmp_path):
    model, x = linear(), images(5).numpy()
    predict, _, _ = open_deployed(onnx_file(tmp_path / "net.onnx", model), inputs={"mean": [0.2], "std": [0.5]})
    np.testing.assert_allclose(predict(x), scores(model, (x - 0.2) / 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_a_file_of_a_fixed_batch_gets_its_batches(tmp_path, n):
    model, x = linear(), images(n).numpy()
    estimator = DeployedClassifier.from_file(onnx_file(tmp_path / "net.onnx", model, batch=4))
    np.testing.assert_allclose(estimator.predict(x), scores(model, x), rtol=1e-5, atol=1e-5)


def test_biases_stay_as_they_were_exported(tmp_path):
    """By default the runtime rounds a bias to multiples of the scales' product, here 1."""
    weight, bias = np.ones((1, 1, 1, 1), dtype=np.int8), np.full(1, 0.4, dtype=np.float32)
    one = [("one", np.float32(1)), ("zero", np.uint8(0)), ("nil", np.int8(0)), ("weight", weight), ("bias", bias)]
    graph = onnx.helper.make_graph(
        [
            node("QuantizeLinear", ["image", "one", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "one", "zero"], ["x"]),
            node("DequantizeLinear", ["weight", "one", "nil"], ["w"]),
            node("Conv", ["x", "w", "bias"], ["c"]),
            node("QuantizeLinear", ["c", "tenth", "zero"], ["qc"]),
            node("DequantizeLinear", ["qc", "tenth", "zero"], ["d"]),
            node("GlobalMaxPool", ["d"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Concat", ["f", "f"], ["scores"], axis=1),
        ],
        "bias",
        [onnx.helper.make_tensor_value_info("image", FLOAT, ["N", 1, 2, 2])],
        [onnx.helper.make_tensor_value_info("scores", FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in [*one, ("tenth", np.float32(0.1))]],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(tmp_path / "net.onnx"))
    predict, _, _ = open_deployed(tmp_path / "net.onnx")
    np.testing.assert_allclose(predict(np.ones((2, 1, 2, 2), dtype=np.float32)), 1.4, atol=0.01)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_file_is_copied_and_pickled_as_its_path(tmp_path, copied):
    model, x = linear(), images(4).numpy()
    estimator = DeployedClassifier.from_file(onnx_file(tmp_path / "net.onnx", model), twin=model)
    assert np.array_equal(copied(estimator).predict(x), estimator.predict(x))


def test_another_file_at_the_same_path_is_noticed(tmp_path):
    path = onnx_file(tmp_path / "net.onnx", linear())
    predict, _, _ = open_deployed(path)
    packed = pickle.dumps(predict)
    onnx_file(path, linear(seed=5))
    with pytest.raises(InputError, match="another file than before"):
        pickle.loads(packed)(images(2).numpy())
    assert open_deployed(path)[0].identity != predict.identity


def test_weights_in_a_file_of_their_own_count(tmp_path):
    path = onnx_file(tmp_path / "net.onnx", linear())
    onnx.save(onnx.load(path), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert ONNXRuntime.files(path) == [path, tmp_path / "weights.bin"]
    before = open_deployed(path)[0].identity
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[3] ^= 0x80
    (tmp_path / "weights.bin").write_bytes(content)
    assert open_deployed(path)[0].identity != before


# --- TFLite


@pytest.mark.parametrize(("dtype", "zero_point"), [("float32", 0), ("uint8", 0), ("int8", -128)])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_tflite_file_answers_as_the_network_on_its_grid(tmp_path, dtype, zero_point, batch):
    pytest.importorskip("ai_edge_litert")
    shape = (3, 2, 4)
    model, x = linear(shape), images(5, shape).numpy()
    more = {"scale": 1 / 255, "zero_point": zero_point, "dtype": dtype, "shape": shape, "batch": batch}
    predict, found, classes = open_deployed(tflite_file(tmp_path / "net.tflite", model, **more))
    assert (found, classes, predict.inputs.layout) == (shape, CLASSES, "NHWC")
    expected = scores(model, x if dtype == "float32" else rounded(x))
    np.testing.assert_allclose(predict(x), expected, rtol=1e-4, atol=1e-4)


def test_integers_that_a_tflite_file_answers_with_become_numbers(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model, x = linear(), images(5).numpy()
    path = tflite_file(tmp_path / "net.tflite", model, scale=1 / 255, zero_point=0, dtype="uint8", answers=(0.25, 3))
    expected = scores(model, rounded(x))
    found = open_deployed(path)[0](x)
    assert np.abs(found - expected).max() <= 0.125 + 1e-3 and np.abs(found / 0.25 - np.rint(found / 0.25)).max() < 1e-5


# --- OpenVINO


def test_an_openvino_file_answers_as_the_network(tmp_path):
    openvino = pytest.importorskip("openvino")
    model, x = linear(), images(7).numpy()
    path = onnx_file(tmp_path / "net.onnx", model)
    openvino.save_model(openvino.Core().read_model(str(path)), str(tmp_path / "net.xml"), compress_to_fp16=False)
    estimator = DeployedClassifier.from_file(tmp_path / "net.xml", twin=model)
    np.testing.assert_allclose(estimator.predict(x), scores(model, x), rtol=1e-5, atol=1e-5)
    before = estimator.model.identity
    weights = tmp_path / "net.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\x40")
    assert open_deployed(tmp_path / "net.xml")[0].identity != before


# --- Mistakes


def test_what_is_no_file_is_one_line(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"<html>not found</html>")
    (tmp_path / "net.tflite").write_bytes(b"")
    (tmp_path / "net.txt").write_text("x")
    for name, message in {
        "net.onnx": "it cannot be opened",
        "net.txt": "no runtime is known",
        "nets.onnx": "no such file; did you mean .*net.onnx",
        "none/net.onnx": "no such file; give",
    }.items():
        with pytest.raises(InputError, match=message):
            open_deployed(tmp_path / name)
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(InputError, match="it cannot be opened"):
        open_deployed(tmp_path / "net.tflite")


def test_a_runtime_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    path = onnx_file(tmp_path / "net.onnx", linear())
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'art_qplugins\[onnx\]'"):
        open_deployed(path)


def test_other_classes_than_the_file_has_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"it is 10, and net\.onnx answers with 3"):
        open_deployed(onnx_file(tmp_path / "net.onnx", linear()), nb_classes=10)
