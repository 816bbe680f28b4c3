"""What a dry run says that a run will take: passes in closed form, and the pace of a network."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from art_qplugins import diagnostics
from art_qplugins.defences.lipschitz import Orthogonality
from art_qplugins.diagnostics.running import QUERIES
from art_qplugins.diagnostics.steps import STEPS
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cost import Cost, expected_cost
from art_qplugins.gradients.counting import counting
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.report import words
from art_qplugins.runner import costs as runner_costs
from art_qplugins.runner import pace as runner_pace
from art_qplugins.runner.costs import Work
from art_qplugins.runner.pace import Pace, pace_of_attacks, pace_of_training
from art_qplugins.runner.runner import Runner
from art_qplugins.terminal.results import show_plan

SMALL = {"name": "convnet", "options": {"width": 2}}
RECIPE = {
    "name": "costs",
    "batch_size": 8,
    "data": {"name": "digits", "limit": 20},
    "threat": {"eps": [0.05, 0.1]},
    "models": [
        {"name": "a", "architecture": SMALL, "train": {"epochs": 3}},
        {"name": "b", "base": "a", "architecture": SMALL, "train": {"epochs": 0}},
        {
            "name": "sq",
            "architecture": SMALL,
            "quantize": {"activation_bits": 2, "alpha": 2.0},
            "draws": 3,
            "train": {"epochs": 2},
        },
    ],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:pgd", "options": {"max_iter": 40}}],
}
PGD = expected_cost("art:pgd", {"max_iter": 40})
FGSM = expected_cost("art:fgsm")
BOTH = Cost(2 * (PGD.gradients + FGSM.gradients), 2 * (PGD.queries + FGSM.queries))  # at two eps


@pytest.fixture
def timed(monkeypatch):
    """Each network is as fast; ``timed`` has the batch sizes of those that were asked."""
    asked = []

    def known(network, *_, batch_size):
        asked.append(batch_size)
        return Pace(1.0, 10.0)

    monkeypatch.setattr(runner_costs, "pace_of_attacks", known)
    monkeypatch.setattr(runner_costs, "pace_of_training", known)
    return asked


def found(given=None, **changes):
    """The work by model and part."""
    runner = Runner(parse_recipe({**copy.deepcopy(RECIPE), **changes}), estimators=given)
    return {(work.model, work.part): work for work in runner.costs(runner.prepare())}


def times(count, cost):
    return Cost(count * cost.gradients, count * cost.queries)


# --- Passes


def test_training_is_counted_for_the_models_that_are_trained(timed):
    training = {name: work for (name, part), work in found().items() if part == "training"}
    assert {name: (work.images, work.each) for name, work in training.items()} == {
        "a": (1198, Cost(3, 3)),
        "sq": (1198, Cost(2, 2)),
    }
    assert training["a"].seconds == 1198 * 3 * 11


def test_what_a_defence_adds_to_a_step_is_counted(timed, monkeypatch):
    monkeypatch.setattr(Orthogonality, "passes", lambda self: (4.0, 2.5))
    model = {**RECIPE["models"][0], "defences": [{"name": "orthogonality"}]}
    assert found(models=[model])["a", "training"].each == Cost(3 * 3.5, 3 * 5.0)


def test_attacks_are_counted_at_every_eps_and_every_draw(timed):
    attacks = {name: work for (name, part), work in found().items() if part == "attacks"}
    assert {name: work.each for name, work in attacks.items()} == {"a": BOTH, "b": BOTH, "sq": times(3, BOTH)}
    assert {work.images for work in attacks.values()} == {20}
    assert attacks["b"].seconds == pytest.approx(20 * (BOTH.queries + 10 * BOTH.gradients))


def test_images_that_several_models_share_are_crafted_once(timed):
    attacks = [{"id": "art:pgd", "options": {"max_iter": 40}, "source": "a"}, {"id": "art:pgd", "models": ["b"]}]
    shared = found(attacks=attacks)
    assert shared["a", "attacks"].each == times(2, PGD)
    assert shared["b", "attacks"].each == times(2, expected_cost("art:pgd"))
    assert ("sq", "attacks") not in shared


def test_an_attack_with_a_limit_is_counted_on_its_images(timed):
    few = found(attacks=[{"id": "art:pgd", "options": {"max_iter": 40}, "limit": 5}])["a", "attacks"]
    assert (few.images, few.each) == (20, times(2 * 5 / 20, PGD))


def test_a_budget_bounds_attacks_but_not_the_claimed_one(timed):
    limited = found(budget={"gradients": 30, "queries": 1000})["a", "attacks"].each
    assert limited == Cost(30, BOTH.queries)
    claim = {"attack": "art:pgd", "eps": 0.1}
    limited = found(budget={"gradients": 30}, claim=claim, diagnose=False)
    assert limited["a", "attacks"].each == Cost(40, BOTH.queries)
    assert limited["sq", "attacks"].each == Cost(3 * 40, 3 * BOTH.queries)


def test_an_audit_is_counted_on_its_sample_at_each_eps(timed):
    audits = {name: work for (name, part), work in found(audit=7).items() if part == "audit"}
    assert audits.keys() == {"a", "b"}, "AutoAttack audits no random model"
    assert (audits["a"].images, audits["a"].each) == (7, times(2, expected_cost("autoattack:standard")))
    assert found(audit=70)["a", "audit"].images == 20


def test_the_draws_that_score_a_random_model_are_counted(timed):
    """Two banks of draws for the clean images and two attacks at two eps, each draw of three members."""
    scoring = {name: work for (name, part), work in found().items() if part == "scoring"}
    assert {name: (work.images, work.each) for name, work in scoring.items()} == {"sq": (20, Cost(0, 5 * 2 * 20 * 3))}
    assert found(score_draws=500)["sq", "scoring"].each.queries == 5 * 2 * 500 * 3
    assert found(grid=256)["sq", "scoring"].each.queries == 2 * 5 * 2 * 20 * 3
    few = found(attacks=[{"id": "art:fgsm", "limit": 5}, {"id": "artq:random", "options": {"draws": 4}}])
    assert few["sq", "scoring"].each.queries == (1 + 2 / 4 + 2 * 4) * 2 * 20 * 3


@pytest.mark.parametrize(
    ("asked", "gradients", "queries"),
    [
        ({"level": 0}, 0, 0),
        ({"level": 1}, 1 + 20 + 20 + 3 * 20, QUERIES),
        ({"level": 1, "budget": 5}, 5, QUERIES),
        ({"level": 1, "queries": 50}, 50, 50),
    ],
)
def test_a_diagnosis_is_bounded_by_its_steps_and_its_limits(asked, gradients, queries, timed):
    work = found(claim={"attack": "art:pgd", "eps": 0.1}, diagnosis=asked)["a", "diagnosis"]
    assert work.each == Cost(gradients, queries) and work.images == 20


def test_a_diagnosis_takes_images_from_each_other_deterministic_model(timed):
    claimed = found(claim={"attack": "art:pgd", "eps": 0.1})
    own = sum(step.cost * (0 if step.cells is None else step.cells) for step in STEPS)
    assert claimed["a", "diagnosis"].each.gradients == own + 20 * 1
    assert claimed["sq", "diagnosis"].each.gradients == 3 * (own + 20 * 2)
    assert diagnostics.most(None, None, None).gradients == own
    assert not any(part == "diagnosis" for _, part in found(claim={"attack": "art:pgd", "eps": 0.1}, diagnose=False))


MEASURED = {
    "name": "measured",
    "data": {"name": "digits", "limit": 20},
    "threat": {"eps": [0.05, 0.1]},
    "information": 9,
    "sensitivity": 7,
    "diagnose": False,
    "models": [
        {**RECIPE["models"][2], "train": {"epochs": 1}},
        {**RECIPE["models"][2], "name": "member", "draws": 2, "frozen": True, "train": {"epochs": 1}},
    ],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:fgsm", "source": "member", "limit": 9, "models": ["sq"]}],
}


def test_what_is_measured_after_the_last_cell_takes_the_passes_that_were_counted(timed, monkeypatch):
    """Beside the few calls with one image that see how a network is made."""
    stage, took = Runner._measured, {}

    def counted(self, scheduler, models, data):
        result = {}
        for key in ("sensitivity", "information"):
            alone = self.recipe.model_copy(update={"sensitivity": None, "information": None, key: MEASURED[key]})
            modules = {name: scheduler.evaluator.estimators[name].model for name in models}
            with contextlib.ExitStack() as stack:
                counters = {name: stack.enter_context(counting(module)) for name, module in modules.items()}
                monkeypatch.setattr(self, "recipe", alone)
                result |= stage(self, scheduler, models, data)
            took.update({(name, key): counters[name] for name in models})
        return result

    monkeypatch.setattr(Runner, "_measured", counted)
    runner = Runner(parse_recipe(copy.deepcopy(MEASURED)))
    work = {(one.model, one.part): one for one in runner.costs(runner.prepare())}
    runner.run()
    for name, key in took:
        one = work[name, key]
        assert (one.images, one.each.gradients > 0) == (MEASURED[key], key == "sensitivity")
        assert one.images * one.each.queries == pytest.approx(took[name, key].forward, abs=12), (name, key)
        assert one.images * one.each.gradients == took[name, key].backward


def test_what_is_not_asked_for_is_not_measured(timed):
    assert not {part for _, part in found()} & {"sensitivity", "information"}
    asked = found(sensitivity=5, information=50)
    assert {name for name, part in asked if part == "information"} == {"sq"}
    assert {name for name, part in asked if part == "sensitivity"} == {"a", "b", "sq"}
    assert (asked["a", "sensitivity"].images, asked["sq", "information"].images) == (5, 20)
    assert asked["a", "sensitivity"].each == Cost(1, 1 + 1 + 2 * 4)
    assert asked["b", "sensitivity"].each == Cost(1, 1 + 1 + 2 * 4 + 2 + 2 * 4), "its base is asked as often"


def test_an_attack_of_unknown_cost_is_named(timed, monkeypatch):
    monkeypatch.setattr(
        runner_costs, "expected_cost", lambda attack, options=None: FGSM if attack == "art:fgsm" else None
    )
    work = found()["a", "attacks"]
    assert (work.each, work.unknown) == (times(2, FGSM), ["art:pgd"])


def test_models_that_are_given_or_made_by_factories_cost_too(timed, tmp_path, monkeypatch):
    (tmp_path / "costly_nets.py").write_text(
        "from art_qplugins.models.convnet import ConvNet\ndef make(): return ConvNet((1, 8, 8), 10, width=2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = ConvNet((1, 8, 8), 10, width=2)
    estimator = QuantizedClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    given = {"estimator": "QuantizedClassifier", "stochastic": False, "quantized": False}
    models = [{"name": "given", "given": given}, {"name": "made", "factory": "costly_nets:make"}]
    assert {key: work.each for key, work in found({"given": estimator}, models=models).items()} == {
        ("given", "attacks"): BOTH,
        ("made", "attacks"): BOTH,
    }


def test_networks_that_take_as_long_are_timed_once(timed):
    models = [
        {"name": f"m{i}", "seed": i, "architecture": SMALL, "train": {"epochs": i, "batch_size": 32}}
        for i in range(1, 50)
    ]
    found(models=models)
    assert timed == [32, 8], "a batch of the training, and one of the attacks"
    found(models=[*models, {"name": "wide"}])
    assert len(timed) == 2 + 4


# --- Pace


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.batches = []

    def forward(self, x):
        self.batches.append((len(x), self.training))
        return self.layer(x.flatten(1))


def wrapped(network):
    return QuantizedClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


@pytest.fixture
def clock(monkeypatch):
    """A pass of an image takes 2 ms forward and 3 ms backward, in any batch. ``clock`` has the batches."""
    batches = []

    def seconds(network, inputs, x):
        batches.append(len(x))
        network(x)
        return 0.002 * len(x), 0.003 * len(x)

    monkeypatch.setattr(runner_pace, "_seconds", seconds)
    return batches


def test_the_pace_is_that_of_the_largest_batch_that_does_not_take_long(clock):
    found = pace_of_attacks(wrapped(Linear()), batch_size=1000)
    assert found == Pace(pytest.approx(0.002), pytest.approx(0.003))
    assert clock == [2, 2, 8, *[32] * 3], "32 images take 0.16 s, and three times are enough"
    del clock[:]
    pace_of_training(Linear(), (1, 8, 8), batch_size=7)
    assert clock == [2, 2, *[7] * 3]


def test_each_draw_is_a_pass(clock):
    network = StochasticEnsemble(quantize(ConvNet((1, 8, 8), 10, width=2), activation_bits=2, alpha=2.0), draws=4)
    assert pace_of_attacks(wrapped(network), batch_size=1) == Pace(pytest.approx(0.0005), pytest.approx(0.00075))


def test_a_batch_for_which_there_is_no_memory_is_not_counted(monkeypatch):
    class Small(Linear):
        def forward(self, x):
            if len(x) > 8:
                raise RuntimeError("out of memory")
            return super().forward(x)

    network = Small()
    found = pace_of_attacks(wrapped(network), batch_size=100)
    assert found is not None and found.forward > 0 and max(network.batches)[0] == 8


def test_a_network_that_raises_has_no_pace(monkeypatch):
    monkeypatch.setattr(Linear, "forward", lambda self, x: 1 / 0)
    assert pace_of_attacks(wrapped(Linear()), batch_size=8) is None


def test_one_without_a_gradient_has_a_forward_pass(monkeypatch):
    monkeypatch.setattr(Linear, "forward", lambda self, x: torch.zeros(len(x), 10))
    found = pace_of_attacks(wrapped(Linear()), batch_size=8)
    assert found.forward > 0 and 0 <= found.backward < 0.01


def test_timing_leaves_the_model_and_the_random_numbers_as_they_were():
    network = Linear()
    network.train()
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    pace_of_attacks(wrapped(network), batch_size=8)
    assert network.training and not any(training for _, training in network.batches)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    pace_of_training(network, (1, 8, 8), batch_size=8)
    assert torch.equal(torch.random.get_rng_state(), state) and network.batches[-1] == (8, True)


# --- In the terminal


def table(capsys, work, monkeypatch, **recipe):
    monkeypatch.setenv("COLUMNS", "80")
    show_plan(parse_recipe({**copy.deepcopy(RECIPE), **recipe}), [], [], (), work)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines()), out
    return [line.split() for line in out.splitlines()]


def test_passes_and_times_of_each_part_fit_in_80_columns(capsys, monkeypatch):
    fast = Pace(1e-3, 2e-3)
    work = [
        Work("a-model-with-quite-a-long-name-seed=1", "training", 50_000, Cost(200, 200), fast),
        Work("a-model-with-quite-a-long-name-seed=1", "attacks", 1000, Cost(12_345.6, 123_456), fast, ["other:attack"]),
        Work("b", "training", 50_000, Cost(0.5, 0.5), fast),
        Work("b", "diagnosis", 1000, Cost(1941, 20_000), None),
    ]
    rows = table(capsys, work, monkeypatch)
    assert ["b", "training", "50,000", "0.5", "0.5", "25k", "25k", "75", "s"] in rows
    assert ["b", "diagnosis", "1,000", "20,000", "1,941", "20M", "1.9M", "?"] in rows
    assert ["all", "models", "training", "10M", "10M", "8.4", "h"] in rows
    assert ["123,456", "12,346", "123M", "12M", "41.2", "h"] in [row[-6:] for row in rows]
    said = " ".join(word for row in rows for word in row)
    assert "?: a network could not be timed." in said and "nobody knows their passes: other:attack." in said


def test_one_model_has_no_row_of_all(capsys, monkeypatch):
    rows = table(capsys, [Work("a", "attacks", 10, Cost(1, 1), Pace(1, 1))], monkeypatch)
    assert ["a", "attacks", "10", "1", "1", "10", "10", "20", "s"] in rows
    assert not any(row[:2] == ["all", "models"] for row in rows)


def test_a_plan_of_thousands_shows_some_and_counts_all(capsys, monkeypatch):
    work = [Work(f"m{i}", "attacks", 10, Cost(1, 1), Pace(1, 1)) for i in range(300)]
    rows = table(capsys, work, monkeypatch)
    assert sum(row[1:2] == ["attacks"] for row in rows) == 200
    assert ["and", "100", "rows", "more"] in [row[:4] for row in rows]
    assert ["all", "models", "attacks", "3.0k", "3.0k", "100", "min"] in rows


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.4, "0"),
        (950, "950"),
        (1300, "1.3k"),
        (24_000, "24k"),
        (1.3e6, "1.3M"),
        (2e10, "20G"),
        (5e15, "5,000T"),
    ],
)
def test_large_numbers_are_short(value, text):
    assert words.short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1 s"),
        (119, "119 s"),
        (121, "2 min"),
        (7199, "120 min"),
        (9000, "2.5 h"),
        (172_800, "2 days"),
        (1e9, "11,574 days"),
    ],
)
def test_times_are_rough(seconds, text):
    assert words.rough(seconds) == text


def test_a_dry_run_says_what_it_costs_once_and_writes_nothing(artq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = artq("run", "digits", "--dry-run", "--limit", "10")
    assert (status, err) == (0, "") and not list(Path().iterdir())
    assert out.count("Times are at the pace of this process") == 1
    assert [line.split()[:6] for line in out.splitlines() if line.startswith("fp32 ") and "training" in line] == [
        ["fp32", "training", "1,198", "20", "20", "24k"]
    ]
