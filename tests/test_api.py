"""The harness from Python: estimators in memory and models of a recipe go the same way, with the same guarantees."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins import InputError, QuantizedClassifier, Threat, evaluate, quantize
from art_qplugins.files import locked
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.runner.progress import Progress

N = 12
SMALL = {"name": "convnet", "options": {"width": 2}}
RECIPE = {
    "name": "small",
    "batch_size": 8,
    "threads": 1,
    "data": {"name": "digits", "limit": N},
    "threat": {"norm": "Linf", "eps": [0.05, 0.15]},
    "claim": {"attack": "art:pgd", "eps": 0.15},
    "diagnosis": {"level": 1},
    "models": [{"name": "net", "architecture": SMALL, "train": {"epochs": 1}}],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:pgd", "options": {"max_iter": 3}}],
}


def estimator(seed=0, random=False):
    torch.manual_seed(seed)
    module = ConvNet((1, 8, 8), 10, width=2).eval()
    if random:
        module = StochasticEnsemble(quantize(module, activation_bits=2, alpha=2.0), draws=2).eval()
    return QuantizedClassifier(module, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


@pytest.fixture(scope="module")
def images(digits):
    """A data set of so few images that everything is fast."""
    return digits[1].take(N, seed=0)


class StopAt(Progress):
    def __init__(self, count):
        self.count, self.computed, self.reused = count, [], []

    def cell(self, outcome, reused):
        (self.reused if reused else self.computed).append(outcome.cell.id)
        if len(self.computed) == self.count:
            raise KeyboardInterrupt


def status(folder):
    return json.loads((folder / "results.json").read_bytes())["status"]


def untimed(run):
    return run.models, [cell.model_copy(update={"seconds": 0.0}) for cell in run.cells]


# --- One way


def test_a_network_in_memory_gets_the_records_of_the_same_network_in_a_recipe(tmp_path, digits):
    trained = art_qplugins.run(RECIPE, out=tmp_path / "trained")
    torch.manual_seed(0)
    module = ConvNet((1, 8, 8), 10, width=2)
    from art_qplugins.checkpoint import load_checkpoint

    load_checkpoint(next((tmp_path / "trained" / "checkpoints").glob("*.safetensors")), module)
    given = QuantizedClassifier(module.eval(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    recipe = {key: value for key, value in RECIPE.items() if key != "models"}
    found = art_qplugins.run(recipe, estimators={"net": given}, out=tmp_path / "given")
    models, cells = untimed(found)
    wanted_models, wanted_cells = untimed(trained)
    assert cells == wanted_cells
    described = {"description": "QuantizedClassifier"}
    assert models == [m.model_copy(update=described) for m in wanted_models]


def test_a_factory_gets_them_too_from_python_and_from_the_command_line(tmp_path, monkeypatch, artq):
    trained = art_qplugins.run(RECIPE, out=tmp_path / "trained")
    (tmp_path / "made_networks.py").write_text(
        textwrap.dedent("""
            from art_qplugins.models.convnet import ConvNet

            def make():
                return ConvNet((1, 8, 8), 10, width=2)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    weights = next((tmp_path / "trained" / "checkpoints").glob("*.safetensors"))
    model = {"name": "net", "factory": "made_networks:make", "checkpoint": str(weights)}
    found = art_qplugins.run({**RECIPE, "models": [model]}, out=tmp_path / "factory")
    assert untimed(found)[1] == untimed(trained)[1]
    arguments = [
        "--model",
        "made_networks:make",
        "--checkpoint",
        weights,
        "--eps",
        "0.15",
        "--limit",
        str(N),
        "--level",
        "0",
    ]
    changes = ["--set", "batch_size=8", "--set", "attacks.art:pgd.options.max_iter=3"]
    code, _, err = artq("diagnose", *arguments, *changes, "--out", tmp_path / "told")
    assert code in (0, 3), err
    told = json.loads((tmp_path / "told" / "results.json").read_bytes())
    assert told["models"][0]["claim"]["accuracy"] == found.models[0].claim.accuracy
    assert told["spec"]["resolved"]["batch_size"] == 8


def test_python_can_say_whatever_a_recipe_can(images):
    run = evaluate(
        {"a": estimator(0), "b": estimator(1)},
        images,
        [Threat("Linf", 0.05), Threat("Linf", 0.1)],
        ["art:fgsm", ("art:pgd", {"max_iter": 3})],
        recipe={
            "strategy": "cascade",
            "grid": 256,
            "transfer": {"attack": "art:fgsm"},
            "budget": {"gradients": 100},
            "shard": 5,
        },
    )
    assert {c.source for c in run.cells if c.model == "a"} == {"a", "b"}  # the transfer matrix
    assert any(c.rows is not None for c in run.cells)  # the cascade
    assert all(c.grid == 256 for c in run.cells if c.status == "success")
    spec = run.results.spec
    assert spec["resolved"]["models"][0]["given"]["estimator"] == "QuantizedClassifier"
    assert spec["given"]["strategy"] == "cascade"


def test_a_suite_knows_what_a_given_estimator_is(images):
    run = evaluate(
        {"random": estimator(random=True)},
        images,
        Threat("Linf", 0.1),
        recipe={"attacks": [{"suite": "standard"}], "data": {"limit": 4}},
    )
    assert [c.attack for c in run.cells] == ["artq:clean", "autoattack:rand"] and run.cells[1].n == 4


def test_a_frozen_ensemble_is_evaluated_as_a_network_that_draws_nothing(images):
    frozen = estimator(random=True)
    frozen.model.frozen = True
    tables = {"attacks": [{"id": "artq:apgd-margin", "options": {"max_iter": 2}}], "data": {"limit": 4}}
    run = evaluate({"frozen": frozen}, images, Threat("Linf", 0.1), claim="artq:apgd-margin", level=0, recipe=tables)
    assert run.results.spec["resolved"]["models"][0]["given"]["stochastic"] is False
    assert not run.models[0].stochastic
    assert not {f.id for f in run.models[0].findings if f.fired} & {"random-model", "batch-dependence"}
    assert all(set(o.column("correct")) <= {0.0, 1.0} for o in run.outcomes)


def test_models_of_a_recipe_stand_beside_given_ones(tmp_path):
    recipe = {**RECIPE, "transfer": {"attack": "art:fgsm", "eps": [0.15]}, "diagnose": False}
    run = art_qplugins.run(recipe, estimators={"mine": estimator()})
    assert {(c.source, c.model) for c in run.cells} >= {("mine", "net"), ("net", "mine")}


def test_the_same_image_of_a_sweep_of_budgets(images):
    run = evaluate(
        estimator(), images, Threat("Linf", 0.1), ["art:fgsm"], recipe={"sweep": {"eps": [0.01, 0.02, 0.03]}}
    )
    assert [c.eps for c in run.cells] == [0.0, 0.01, 0.02, 0.03]


# --- Guarantees of a folder


def test_an_interrupted_evaluation_is_recorded_and_goes_on(images, tmp_path):
    arguments = (estimator(), images, Threat("Linf", 0.1), ["art:fgsm", ("art:pgd", {"max_iter": 3})])
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, out=tmp_path / "cut", progress=StopAt(2))
    assert status(tmp_path / "cut") == "cancelled"
    again = StopAt(-1)
    found = evaluate(*arguments, out=tmp_path / "cut", progress=again)
    assert len(again.reused) == 2 and len(again.computed) == 1
    assert untimed(found) == untimed(evaluate(*arguments, out=tmp_path / "whole"))
    assert found.report == tmp_path / "cut" / "report.html" and found.report.exists()


def test_a_draft_stands_in_the_folder_from_the_beginning(images, tmp_path):
    class Looking(Progress):
        seen = None

        def cells(self, total):
            self.seen = self.seen or status(tmp_path)

    looking = Looking()
    evaluate(estimator(), images, Threat("Linf", 0.1), ["art:fgsm"], out=tmp_path, progress=looking)
    assert looking.seen == "started" and status(tmp_path) == "success"


@pytest.mark.parametrize("second", ["python", "command line"])
def test_two_runs_into_one_folder(second, images, tmp_path, artq):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\ndata.name = "digits"\nthreat.eps = [0.1]\nmodels = [{name = "a"}]\nattacks = [{id = "art:fgsm"}]'
    )
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run" / ".lock") as mine:
        assert mine
        if second == "python":
            with pytest.raises(InputError, match="another run is writing there"):
                evaluate(estimator(), images, Threat("Linf", 0.1), ["art:fgsm"], out=tmp_path / "run")
        else:
            code, _, err = artq("run", recipe, "--out", tmp_path / "run")
            assert code == 2 and "another run is writing there" in err
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_folder_of_another_recipe_is_refused(images, tmp_path):
    evaluate(estimator(), images, Threat("Linf", 0.1), ["art:fgsm"], out=tmp_path)
    with pytest.raises(InputError, match="holds results of recipe 'evaluation', and this is 'small'"):
        art_qplugins.run(RECIPE, out=tmp_path)


# --- Bad input


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"grid": 1}, r"^evaluate: grid: "),
        ({"strategies": "cascade"}, r"^evaluate: strategies: unknown key; did you mean 'strategy'"),
        (
            {"attacks": [{"id": "art:pdg"}]},
            r"^evaluate: attacks.art:pdg: unknown attack 'art:pdg'; did you mean 'art:pgd'",
        ),
        ({"models": [{"name": "b"}]}, r"only test images were given, and a model of the recipe is to be trained"),
        ({"models": [{"name": "QuantizedClassifier"}]}, r"two models have this name"),
        (
            {"models": [{"name": "b", "factory": "x:y", "base": "a"}]},
            r"models.b.base: the network comes from its factory",
        ),
    ],
)
def test_what_a_recipe_cannot_say_python_cannot_either(recipe, message, images):
    with pytest.raises(InputError, match=message):
        evaluate(estimator(), images, Threat("Linf", 0.1), ["art:fgsm"], recipe=recipe)


def test_a_recipe_cannot_ask_for_what_was_not_given(tmp_path):
    facts = {"estimator": "DQClassifier", "stochastic": False, "quantized": True}
    with pytest.raises(InputError, match=r"^models.net: no estimator of this name was given"):
        art_qplugins.run({**RECIPE, "models": [{"name": "net", "given": facts}]})


def test_nothing_is_written_without_a_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = art_qplugins.run({**RECIPE, "diagnose": False})
    assert run.report is None and list(tmp_path.iterdir()) == []
    assert run.x_adv(run.cells[-1]).shape == (N, 1, 8, 8)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_estimators_in_memory_go_to_a_cluster(images, tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'art_qplugins[ray]'")
    arguments = (estimator(), images, Threat("Linf", 0.1), ["art:fgsm"])
    here, there = evaluate(*arguments), evaluate(*arguments, executor="ray", workers=1)
    assert untimed(here) == untimed(there)
