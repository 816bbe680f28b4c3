"""Models trained on a cluster are those of a training in one process, in the same files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from pickled import Losing, Pickled

from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation import remote_training
from art_qplugins.evaluation.remote_training import TrainingJob, train_side_by_side
from art_qplugins.models.convnet import ConvNet
from art_qplugins.recipes.build import build_models
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner import runner
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.runner import Execution, Runner

SMALL = {"name": "convnet", "options": {"width": 2}}
#: Two seeds, a base that is trained on, one that is only mapped, and one on top of that.
RECIPE = {
    "name": "several",
    "threads": 1,
    "data": {"name": "digits", "limit": 5},
    "threat": {"eps": [0.1]},
    "models": [
        {"name": "a", "architecture": SMALL, "train": {"epochs": 1}},
        {"name": "b", "architecture": SMALL, "train": {"epochs": 1}, "seed": 1},
        {
            "name": "dq",
            "base": "a",
            "architecture": SMALL,
            "quantize": {"activation_bits": 2},
            "defences": [{"name": "orthogonality"}],
            "train": {"epochs": 1},
        },
        {"name": "mu", "base": "a", "architecture": SMALL, "quantize": {"weight_bits": 3}, "train": {"epochs": 0}},
        {
            "name": "sq",
            "base": "mu",
            "architecture": SMALL,
            "quantize": {"activation_bits": 2, "alpha": 2.0},
            "defences": [{"name": "mutual-information"}],
            "train": {"epochs": 1},
        },
    ],
    "attacks": [{"id": "art:fgsm"}],
}


def changed(**models):
    """RECIPE with other settings of some models."""
    recipe = copy.deepcopy(RECIPE)
    for model in recipe["models"]:
        model |= models.get(model["name"], {})
    return parse_recipe(recipe)


def trained(cluster, recipe, data, folder, made=None, progress=None):
    train_side_by_side(cluster, TrainingJob(recipe, data, None, folder), made or {}, progress=progress)
    return contents(folder)


def contents(folder):
    """The weights by file, and of a description that it is there: it may tell how long the training took."""
    return {path.name: path.read_bytes() if path.suffix == ".safetensors" else b"" for path in folder.glob("*")}


def names(cluster):
    return [arguments[1].name for _, arguments in cluster.started]


@pytest.fixture
def serial(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    build_models(parse_recipe(RECIPE), digits[0], folder, device=torch.device("cpu"))
    return contents(folder)


def test_the_files_are_those_of_a_training_in_one_process(digits, tmp_path, serial):
    cluster, told = Pickled(), []
    found = trained(cluster, parse_recipe(RECIPE), digits[0], tmp_path, progress=lambda *said: told.append(said))
    assert found == serial
    assert [said[0] for said in told] == ["b", "a", "sq", "dq"] and all(
        said[1].epoch == said[1].epochs == 1 for said in told
    )


def test_what_does_not_wait_for_another_is_started_at_once(digits, tmp_path):
    cluster = Pickled()
    trained(cluster, parse_recipe(RECIPE), digits[0], tmp_path)
    assert names(cluster) == ["a", "b", "dq", "sq"], "mu takes no training"
    assert cluster.most == 2 and not cluster.cancelled


def test_what_is_stored_is_not_trained_again(digits, tmp_path, serial):
    build_models(parse_recipe(RECIPE), digits[0], tmp_path, device=torch.device("cpu"))
    cluster = Pickled()
    assert trained(cluster, parse_recipe(RECIPE), digits[0], tmp_path) == serial
    assert names(cluster) == []
    next(tmp_path.glob("dq-*.json")).unlink()  # an interrupted training
    assert trained(cluster, parse_recipe(RECIPE), digits[0], tmp_path) == serial
    assert names(cluster) == ["dq"]


def test_an_error_is_that_of_one_process_and_what_is_finished_stays(digits, tmp_path, serial):
    diverging = changed(b={"train": {"epochs": 2, "learning_rate": 1e25}})
    with pytest.raises(InputError) as here:
        build_models(diverging, digits[0], tmp_path / "here", device=torch.device("cpu"))
    cluster = FirstFirst()
    with pytest.raises(InputError) as there:
        trained(cluster, diverging, digits[0], tmp_path / "there")
    assert str(there.value) == str(here.value)
    kept = contents(tmp_path / "there")
    assert [name for name in kept if name.startswith("a-")] and kept.items() <= serial.items()
    assert len(cluster.cancelled) == 2 and names(cluster) == ["a", "b", "dq", "sq"]


class FirstFirst(Pickled):
    def first_of(self, tasks):
        return next(iter(tasks))


def test_a_lost_worker_is_one_line(digits, tmp_path):
    with pytest.raises(InputError, match=r"^models\.b: WorkerCrashedError: .* 4 times: why; try fewer --workers$"):
        trained(Losing(), parse_recipe(RECIPE), digits[0], tmp_path)


def test_a_worker_of_other_versions_takes_no_part(digits, tmp_path):
    job, settings = TrainingJob(parse_recipe(RECIPE), digits[0], None, tmp_path), parse_recipe(RECIPE).models[0]
    with pytest.raises(InputError, match=r"^worker on .* install the same everywhere$"):
        remote_training._train(job, settings, {}, tmp_path / "a-0123456789.safetensors", 1)
    assert contents(tmp_path) == {}


def test_a_folder_that_workers_do_not_share_is_told(digits, tmp_path, monkeypatch):
    """The models are not trained again here, one after the other."""
    monkeypatch.setattr(Pickled, "result", lambda self, task: ("a", 1, 1, 0.5))
    with pytest.raises(
        InputError, match=r"a worker stored 'b' there, and it is not here; give --out a folder that all"
    ):
        trained(Pickled(), parse_recipe(RECIPE), digits[0], tmp_path)


def test_a_base_that_is_given_is_sent(digits, tmp_path):
    torch.manual_seed(0)
    network = ConvNet((1, 8, 8), 10, width=2).eval()
    estimator = QuantizedClassifier(network, torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    given = {"name": "mine", "given": {"estimator": "C", "stochastic": False, "quantized": False}}
    recipe = parse_recipe({**RECIPE, "models": [given, {**RECIPE["models"][2], "base": "mine"}]})
    cluster = Pickled()
    here = build_models(recipe, digits[0], tmp_path / "here", device=torch.device("cpu"), made={"mine": network})
    there = trained(cluster, recipe, digits[0], tmp_path / "there", made={"mine": estimator.model})
    assert names(cluster) == ["dq"] and there == contents(tmp_path / "here") and list(here) == ["mine", "dq"]


class Told(Progress):
    def __init__(self):
        self.models = []

    def training(self, model, *how_far):
        self.models.append(model)


@pytest.mark.parametrize("command", ["train", "run"])
def test_a_runner_trains_on_its_cluster_and_goes_on_from_what_another_stored(command, tmp_path, monkeypatch):
    clusters = []
    monkeypatch.setattr(runner, "Cluster", lambda **how: clusters.append(Pickled(**how)) or clusters[-1])
    recipe = parse_recipe({**RECIPE, "diagnose": False})

    def ran(**execution):
        progress = Told()
        getattr(Runner(recipe, out=tmp_path, progress=progress, execution=Execution(**execution)), command)()
        return progress.models

    assert ran(executor="ray", workers=3) == ["b", "a", "sq", "dq"]
    trainings = [arguments for function, arguments in clusters[0].started if function is remote_training._train]
    assert len(trainings) == 4 and clusters[0].workers == 3
    assert ran() == []


# --- On a cluster


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_workers_of_a_cluster_write_the_same_bits(digits, tmp_path, serial, artq, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'art_qplugins[ray]'")
    monkeypatch.chdir(tmp_path)
    recipe = {**RECIPE, "diagnose": False}
    Path("several.toml").write_text(toml(recipe))
    status, out, err = artq("train", "several.toml", "--out", "out", "--executor", "ray", "--workers", "2")
    assert (status, err) == (0, "")
    assert all(f"trained {name}: 1 epoch, loss" in out for name in ("a", "b", "dq", "sq"))
    assert contents(Path("out/checkpoints")) == serial
    status, out, _ = artq("run", "several.toml", "--out", "out", "--executor", "ray", "--workers", "2")
    assert status == 0 and "trained" not in out
    Path("bad.toml").write_text(toml({**recipe, "models": changed(b={"train": {"epochs": 2, "learning_rate": 1e25}})}))
    lines = [
        artq("train", "bad.toml", "--out", folder, *more)[::2]
        for folder, more in (("here", ()), ("there", ("--executor", "ray", "--workers", "2")))
    ]
    assert lines[0] == lines[1] and lines[0][0] == 2 and "training diverged" in lines[0][1]


def toml(recipe):
    """A recipe as TOML, a key in a line: its tables and lists are inline as in JSON."""
    models = recipe["models"]
    models = (
        models if isinstance(models, list) else [m.model_dump(mode="json", exclude_unset=True) for m in models.models]
    )
    return "\n".join(f"{key} = {inline(value)}" for key, value in {**recipe, "models": models}.items())


def inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(v)}" for key, v in value.items()) + "}"
    return f"[{', '.join(map(inline, value))}]" if isinstance(value, list) else json.dumps(value)
