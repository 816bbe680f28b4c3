"""``artq export``: a trained model of a recipe as a file, and how often it agrees."""

from __future__ import annotations

import pytest

from art_qplugins.cli import main

RECIPE = """
name = "tiny"
[data]
name = "digits"
limit = 50
train_limit = 200
[threat]
norm = "Linf"
eps = [0.1]
[[models]]
name = "dq"
quantize = { activation_bits = 4, weight_bits = 4 }
train = { epochs = 1 }
[[attacks]]
id = "art:fgsm"
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def call(*arguments):
    try:
        main([str(a) for a in arguments])
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_a_trained_model_is_written_and_compared(recipe, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    run, path = tmp_path / "run", tmp_path / "net.onnx"
    assert call("export", recipe, path, "--model", "dq", "--out", run) == 2
    assert "run artq train first" in capsys.readouterr().err and not path.exists()
    assert call("export", recipe, path, "--model", "dz", "--out", run) == 2
    assert "did you mean 'dq'" in capsys.readouterr().err
    assert call("train", recipe, "--out", run) == 0
    assert call("export", recipe, path, "--model", "dq", "--out", run) == 0
    told = capsys.readouterr().out
    assert path.exists() and "3 of 4 layers with weights in integers" in told
    assert "labels of the model and ONNX Runtime agree: 100.00%" in told and "of 50 images" in told
    assert "labels of its torch form and ONNX Runtime on PGD's images at Linf" in told
