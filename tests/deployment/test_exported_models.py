"""Models of a recipe that are files: exported, attacked as themselves, and shown beside the networks that they come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from art_qplugins import InputError, run
from art_qplugins.deployment import speed
from art_qplugins.deployment.files import DeployedFile
from art_qplugins.deployment.speed import speeds
from art_qplugins.evaluation.records import Results
from art_qplugins.recipes.build import build_estimators
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.report import read_run
from art_qplugins.report.deployment import section
from art_qplugins.report.figures.deployment import placed

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

TRAIN = {"epochs": 3, "batch_size": 64, "learning_rate": 0.05}
RECIPE = {
    "name": "files",
    "seed": 0,
    "threads": 1,
    "data": {"name": "digits", "limit": 20, "train_limit": 600},
    "threat": {"norm": "Linf", "eps": [0.1]},
    "claim": {"attack": "art:fgsm", "eps": 0.1},
    "diagnosis": {"level": 0},
    "defaults": {"architecture": {"name": "convnet", "options": {"width": 4}}, "train": TRAIN},
    "models": [
        {"name": "plain"},
        {"name": "quantized", "base": "plain", "quantize": {"activation_bits": 4, "weight_bits": 4}},
        {"name": "quantized-file", "base": "quantized", "export": "onnx"},
        {"name": "plain-file", "base": "plain", "export": {"to": "onnx", "bias": "float"}},
    ],
    "attacks": [{"id": "art:fgsm"}],
}


def with_models(*models, **more):
    return {**RECIPE, "models": list(models), **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("files") / "run"
    assert run(RECIPE, out=out).results.status == "success"
    return out


@pytest.fixture
def results(folder):
    return Results.model_validate_json((folder / "results.json").read_text())


def test_a_file_is_attacked_as_itself_and_stands_beside_its_network(results):
    assert list(results.deployment) == ["quantized-file", "plain-file"]
    models = {model.name: model for model in results.models}
    for name, record in results.deployment.items():
        assert record.of == name.removesuffix("-file")
        assert record.clean.n == record.adversarial.n == 20 and record.clean.same == record.adversarial.same == 1
        assert record.clean.interval[1] == 1 and record.skipped == {}
        assert models[name].clean_accuracy == models[record.of].clean_accuracy
        facts = {finding.id: finding for finding in models[name].findings}
        assert facts["deployed-model"].value and "0 of 20 clean images" in facts["twin-parity"].evidence
    quantized, plain = results.deployment.values()
    assert [one.layer for one in quantized.clean.layers] == ["act1", "act2", "act3"]
    assert quantized.size < quantized.float_size and plain.clean.layers == []
    assert abs(plain.size - plain.float_size) < 0.05 * plain.size


def test_each_file_is_timed_at_each_batch_beside_float32(results):
    for record in results.deployment.values():
        assert [one.batch for one in record.speeds] == [1, 32]
        for one in record.speeds:
            assert one.seconds > 0 and 0 < one.ratio[0] <= one.ratio[1] <= one.ratio[2]


def test_the_report_shows_file_and_network_side_by_side(folder, results):
    html = section(read_run(folder))
    for text in ("quantized-file", "plain-file", "Times float32", "computed in float, its inputs are not quantized"):
        assert text in html
    for model in results.models:
        if model.name in results.deployment:
            network = next(m for m in results.models if m.name == results.deployment[model.name].of)
            assert f"({100 * network.clean_accuracy:.3g}\N{NO-BREAK SPACE}%)" in html
    counted = [model.name for model in results.models if model.verdict != "INVALID"]
    assert [point.name for point in placed(results)] == [name for name in results.deployment if name in counted]
    assert "Files beside their networks" in (folder / "report.html").read_text()


def test_a_run_without_files_has_no_such_section(folder, results):
    known = read_run(folder)
    assert section(dataclasses.replace(known, results=results.model_copy(update={"deployment": {}}))) is None


def test_only_a_file_without_its_description_is_written_again(folder):
    """The description is written last, so a killed export has none."""
    (about,) = (folder / "checkpoints").glob("quantized-file-*.json")
    told = json.loads(about.read_text())
    about.unlink()

    def times(of):
        return {path: path.stat().st_mtime_ns for path in (folder / of).iterdir() if path.stem != about.stem}

    before = times("checkpoints"), times("cells")
    run(RECIPE, out=folder)
    assert (times("checkpoints"), times("cells")) == before
    assert json.loads(about.read_text()) == told and any("conv1" in note for note in told["notes"])


def test_in_memory_too():
    found = run(with_models(RECIPE["models"][0], RECIPE["models"][3])).results
    assert found.status == "success" and found.deployment["plain-file"].clean.same == 1


def test_a_swept_base_has_a_file_for_each_variant():
    recipe = parse_recipe(
        with_models(
            *RECIPE["models"][:3],
            sweep={"models.quantized.quantize.activation_bits": [2, 8], "seed": [0, 1]},
        )
    )
    files = {model.name: model.base for model in recipe.models if model.export is not None}
    assert len(files) == 4
    assert files["quantized-file-activation_bits=2-seed=1"] == "quantized-activation_bits=2-seed=1"
    assert all(model.replicate_of for model in recipe.models)


def test_a_random_network_is_exported_as_its_frozen_members(tmp_path, digits):
    drawing = {"name": "sq", "quantize": {"activation_bits": 2, "alpha": 2.0}, "draws": 2, "train": {"epochs": 0}}
    recipe = parse_recipe(with_models(drawing, {"name": "sq-file", "base": "sq", "export": "onnx"}))
    assert [model.stochastic for model in recipe.models] == [True, False]
    made = build_estimators(recipe, digits[0], tmp_path, device=torch.device("cpu"))
    file, x = made["sq-file"].model, digits[1].x()[:50]
    assert isinstance(file.predict, DeployedFile)
    with torch.no_grad():
        answers, twin = file(x), file.twin_logits(x)
    assert torch.equal(answers, file(x)) and not torch.equal(made["sq"].model(x), made["sq"].model(x))
    # Where a pre-activation is within rounding of a threshold the file may take another level, in few images.
    assert ((answers - twin).abs().amax(1) < 1e-4).double().mean() > 0.9


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({"name": "file", "export": "onnx"}, "models.file.export: it has no base to export"),
        ({"name": "file", "base": "other", "export": "onnx"}, "models.file.base: no model 'other' above it"),
        ({"name": "file", "base": "plain", "export": "tflite"}, "models.file.export.to"),
        ({"name": "file", "base": "plain", "export": {"bias": "none"}}, "models.file.export.bias"),
        (
            {"name": "file", "base": "plain", "export": "onnx", "train": {"epochs": 2}},
            "models.file.train: the network comes from its export",
        ),
        (
            {"name": "file", "base": "plain", "export": "onnx", "quantize": {"activation_bits": 2}},
            "models.file.quantize: the network comes from its export",
        ),
        (
            {"name": "file", "base": "plain", "export": "onnx", "factory": "a:b"},
            "models.file: it has factory and export, and each makes its network",
        ),
    ],
)
def test_bad_input(model, wanted):
    with pytest.raises(InputError) as error:
        parse_recipe(with_models({"name": "plain"}, model))
    assert wanted in str(error.value)


def test_a_file_of_a_file_is_refused():
    models = [*RECIPE["models"][:3], {"name": "again", "base": "quantized-file", "export": "onnx"}]
    with pytest.raises(InputError, match=r"models.again.base: 'quantized-file' is deployed already"):
        parse_recipe(with_models(*models))


def test_a_layer_without_an_integer_form_is_named_before_training(monkeypatch, tmp_path, artq):
    code = (
        "import torch\nfrom torch import nn\n\nclass Twice(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.odd = Odd()\n        self.last = nn.Linear(64, 10)\n\n    def forward(self, x):\n"
        "        return self.last(self.odd(x).flatten(1))\n\nclass Odd(nn.Module):\n    def forward(self, x):\n"
        "        return x * 2 if x.sum() > 0 else x\n\ndef make():\n    return Twice()\n"
    )
    (tmp_path / "odd_nets.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    models = [{"name": "odd", "architecture": "odd_nets:make"}, {"name": "file", "base": "odd", "export": "onnx"}]
    recipe = {**with_models(*models), "defaults": {"train": TRAIN}}
    with pytest.raises(InputError, match=r"models.file.*'odd'"):
        run(recipe, out=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_training(missing, monkeypatch, tmp_path):
    from art_qplugins.recipes import exported

    monkeypatch.setattr(exported, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError, match=rf"models.*-file: export: {missing} not installed; run pip install"):
        run(RECIPE, out=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


# --- Speed


def test_ratios_are_those_of_the_first_within_rounds(monkeypatch):
    """On a clock of our own: the second file takes half the time of the first and a third of its energy."""
    clock = {"seconds": 0.0, "joules": 0.0}
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock["seconds"])
    monkeypatch.setattr(speed, "joules", lambda: clock["joules"])
    asked = []

    def answers(name, seconds, joules):
        def answer(x):
            asked.append((name, len(x)))
            clock["seconds"] += seconds * len(x)
            clock["joules"] += joules * len(x)

        return answer

    found = speeds({"a": answers("a", 2.0, 3.0), "b": answers("b", 1.0, 1.0)}, (1, 2, 2), rounds=4)
    assert [one.batch for one in found["b"]] == [1, 32] and [one.seconds for one in found["a"]] == [2.0, 64.0]
    for one in found["b"]:
        assert one.ratio == (2.0, 2.0, 2.0) and one.energy == pytest.approx(3.0)
    first = [name for name, n in asked if n == 1]
    assert len(first) == 10 and all({*first[i : i + 2]} == {"a", "b"} for i in range(0, 10, 2))  # each round has both
    assert len({tuple(first[i : i + 2]) for i in range(0, 10, 2)}) == 2  # in either order


def test_a_machine_that_does_not_tell_its_energy_has_none(monkeypatch):
    monkeypatch.setattr(speed, "_RAPL", Path("/nowhere"))
    (one, _) = speeds({"a": lambda x: np.zeros(len(x))}, (1, 2, 2), rounds=2)["a"]
    assert one.energy is None
