"""Deployed files in recipes and on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifier
from deployed_nets import function_of, onnx_file
from torch import nn

from art_qplugins import InputError, run
from art_qplugins.checkpoint import save_checkpoint
from art_qplugins.data import load
from art_qplugins.deployment.module import Answering
from art_qplugins.recipes.factory import make_estimator, make_module
from art_qplugins.recipes.load import parse_recipe

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def trained():
    """A linear model of digits."""
    train = load("digits", "train")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train.x()), train.y()).backward()
        optimizer.step()
    return model.eval()


CODE = """
from torch import nn
from art.estimators.classification import BlackBoxClassifier

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, trained):
    """A folder with a file, notes of its owner's, its twin's code and weights, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deployed_twin.py").write_text(CODE)
    onnx_file(tmp_path / "net.onnx", trained, shape=(1, 8, 8), classes=10)
    (tmp_path / "net.json").write_text('{"notes": "an export of March"}')
    save_checkpoint(tmp_path / "twin.safetensors", trained, {})
    monkeypatch.delitem(__import__("sys").modules, "deployed_twin", raising=False)
    return tmp_path


def findings(folder):
    (model,) = json.loads((folder / "results.json").read_text())["models"]
    return {f["id"]: f for f in model["findings"]}


def test_a_file_with_a_twin_is_diagnosed_from_the_command_line(folder, artq, trained):
    asked = ("--limit", 40, "--level", 0, "--eps", "0.1", "--attack", "art:pgd")
    more = ("--twin", "deployed_twin:make", "--twin-checkpoint", "twin.safetensors")
    status, out, err = artq("diagnose", "--model", "net.onnx", *more, *asked)
    assert status == 0, err
    assert "net: " in out and (folder / "results" / "net" / "report.html").exists()
    found = findings(folder / "results" / "net")
    assert "a given twin" in found["deployed-model"]["evidence"]
    assert "0 of 40 clean images" in found["twin-parity"]["evidence"]
    text = (folder / "results" / "net" / "report.html").read_text()
    assert "gradient of a given twin" in text and "deployed_twin:make" in text
    evidence = folder / "results" / "net" / "evidence" / "net.npz"
    assert artq("replay", evidence, "--model", "net.onnx")[0] == 0
    assert artq("diagnose", "--model", "net.onnx", *more, *asked)[1].count("0 failed") == 1


def test_without_a_twin_one_is_distilled_and_the_report_says_so(folder, monkeypatch, trained):
    import art_qplugins.recipes.deployed as deployed

    asked = []

    def few(module, x, *, seed):
        asked.append(len(x))
        return deployed_distil(module, x, queries=200, steps=20, seed=seed)

    deployed_distil = deployed.distil
    monkeypatch.setattr(deployed, "distil", few)
    found = run({**RECIPE, "models": [{"name": "net", "factory": "net.onnx"}]}, out=folder / "run")
    assert asked == [20]
    assert found.models[0].description == "net.onnx, along the gradient of a network distilled from its answers"
    evidence = next(f.evidence for f in found.models[0].findings if f.id == "deployed-model")
    assert "a network distilled from 200 answers" in evidence
    assert "a network distilled from 200 answers" in (folder / "run" / "report.html").read_text()
    again = run({**RECIPE, "models": [{"name": "net", "factory": "net.onnx"}]}, out=folder / "run")
    assert asked == [20] and again.results.cells == found.results.cells  # the network was stored


TWIN = {"twin": "deployed_twin:make", "twin_checkpoint": "twin.safetensors"}
RECIPE = {
    "name": "deployed",
    "data": {"name": "digits", "limit": 20, "train_limit": 100},
    "threat": {"eps": [0.1]},
    "claim": {"attack": "art:fgsm", "eps": 0.1},
    "diagnosis": {"level": 0},
    "attacks": [{"id": "art:fgsm"}],
}


def test_the_twin_may_be_a_model_above_that_is_trained(folder):
    models = [
        {"name": "twin", "architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 1}},
        {"name": "net", "factory": "net.onnx", "twin": "twin", "labels_only": True},
    ]
    found = run({**RECIPE, "models": models})
    (cell,) = (o for o in found.outcomes if o.cell.model == "net" and o.cell.attack == "art:fgsm")
    assert cell.ok and cell.cell.backward_samples > 0 and not np.isnan(cell.column("agrees")).any()
    (clean,) = (o for o in found.outcomes if o.cell.model == "net" and o.cell.role == "clean")
    assert any("labels alone" in fact for fact in clean.cell.facts["deployed"])
    assert found.models[1].description == "net.onnx, labels alone, along the gradient of twin"


def test_a_torch_module_may_have_the_gradient_of_a_twin(folder):
    (folder / "deployed_opaque.py").write_text(
        "import torch\nfrom torch import nn\nclass Opaque(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        from deployed_twin import make\n        from art_qplugins.checkpoint import load_checkpoint\n"
        "        self.network = make()\n        load_checkpoint('twin.safetensors', self.network)\n"
        "    def forward(self, x):\n        return self.network(torch.from_numpy(x.numpy()))\n"
    )
    models = [{"name": "net", "factory": "deployed_opaque:Opaque", **TWIN}]
    found = run({**RECIPE, "models": models})
    assert "a given twin" in next(f.evidence for f in found.models[0].findings if f.id == "deployed-model")


def test_bytes_bring_a_hint_about_the_grid(folder, trained, artq):
    onnx = pytest.importorskip("onnx")
    before = [
        onnx.helper.make_node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Div", ["floats", "most"], ["x"]),
    ]
    stored = [("most", np.float32(255))]
    more = {"dtype": onnx.TensorProto.UINT8, "shape": (1, 8, 8), "classes": 10}
    onnx_file(folder / "bytes.onnx", trained, before=before, stored=stored, **more)
    models = [{"name": "net", "factory": "bytes.onnx", **TWIN}]
    found = run({**RECIPE, "models": models, "diagnose": False})
    assert any("as uint8, on a grid of 256 levels; set grid = 256" in line for line in found.results.warnings)
    found = run({**RECIPE, "models": models, "diagnose": False, "grid": 256})
    assert not any("grid" in line for line in found.results.warnings)


REFUSED = {
    "twin": ({"architecture": "convnet", "twin": "a:b"}, r"models\.net\.twin: it is for a deployed model"),
    "unknown": ({"factory": "net.onnx", "twin": "fp23"}, r"no model 'fp23' above it"),
    "weights": ({"factory": "net.onnx", "checkpoint": "w.safetensors"}, "twin_checkpoint"),
    "weights of nothing": ({"factory": "net.onnx", "twin_checkpoint": "w.safetensors"}, "no function makes its twin"),
    "inputs": ({"factory": "a:b", "inputs": {"layout": "NHWC"}}, r"inputs: it is for a file"),
    "input": ({"factory": "net.onnx", "inputs": {"layout": "NWHC"}}, r"inputs\.layout"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_keys_that_do_not_fit_are_refused(which):
    settings, message = REFUSED[which]
    with pytest.raises(InputError, match=message):
        parse_recipe({**RECIPE, "models": [{"name": "net", **settings}]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "none.onnx"), "no such file; did you mean"),
        (("--model", "net.onnx", "--data", "digits", "--abstain", "10"), "answers with 10 numbers"),
        (("--model", "net.onnx", "--twin", "deployed_twin:made"), "did you mean 'make'"),
        (("digits", "--twin-checkpoint", "x"), "--twin-checkpoint is for --model"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(folder, artq, arguments, message):
    status, _, err = artq("diagnose", *arguments)
    assert status == 2 and message in err and err.count("\n") == 1


def test_inputs_in_a_recipe_are_applied(folder, trained):
    with_mean = {"factory": "net.onnx", **TWIN, "inputs": {"mean": [0.5], "std": [0.5]}}
    found = run({**RECIPE, "diagnose": False, "models": [{"name": "net", **with_mean}]})
    (clean,) = (o for o in found.outcomes if o.cell.role == "clean")
    x, y = load("digits", "test").take(20, seed=0).x(), load("digits", "test").take(20, seed=0).y()
    assert np.array_equal(clean.column("correct"), (trained(2 * x - 1).argmax(1) == y).numpy())


# --- What a factory may return


def test_a_factory_may_return_a_black_box_classifier(folder, trained, monkeypatch):
    import deployed_twin

    made = BlackBoxClassifier(function_of(trained), (1, 8, 8), 10)
    monkeypatch.setattr(deployed_twin, "box", lambda: made, raising=False)
    data = load("digits", "test")
    module = make_module("deployed_twin:box")
    assert isinstance(module, Answering) and torch.equal(module(data.x()[:9]), trained(data.x()[:9]))
    estimator = make_estimator("deployed_twin:box", None, data)
    assert np.allclose(estimator.predict(data.x()[:9].numpy()), trained(data.x()[:9]).detach().numpy(), atol=1e-5)
