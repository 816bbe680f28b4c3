"""The ladder of a diagnosis: which images each step attacks, when it stops, what it costs, and that it can be repeated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics import STEPS, clean_cell, climb
from art_qplugins.diagnostics.verdict import assess
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import CellSpec, cell_id
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.evaluation.store import Store
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.recipes.schema import Diagnosis
from art_qplugins.runner.assess import assess_model
from art_qplugins.runner.plan import ModelUnderTest
from art_qplugins.runner.progress import Progress

N = 60
CLAIM = CellSpec(model="m", source="m", attack="art:mifgsm", norm="Linf", eps=0.1, seed=0)
COST = {rung.id: rung.cost for rung in STEPS}

#: A model on which every step has something to do.
EVERYTHING = {
    "measures": {"gradient": 0.1, "gradient_start": 0.1, "fidelity": 0.9, "fidelity_eps": 0.9, "coherence": 0.1},
    "facts": {"quantizers": 1, "random": True, "reaches_pixels": True, "pixels": 64, "blocking": None},
    "margin": 30.0,
}
#: Nothing to undo, to average or to repair.
PLAIN = {
    "measures": {"gradient": 0.1, "gradient_start": 0.1, "fidelity": 0.9, "fidelity_eps": 0.9},
    "facts": {"quantizers": 0, "random": False, "reaches_pixels": True, "pixels": 64, "blocking": None},
    "margin": 3.0,
}


def rung_of(spec: CellSpec) -> str:
    """The step that a cell belongs to, by what it asks for."""
    options = spec.options
    if (
        spec == dataclasses.replace(CLAIM, attack=spec.attack, norm=spec.norm, options=options)
        and spec.role == "attack"
    ):
        return "claim"
    if spec.check:
        return "binarization"
    if spec.gap:
        return "scale"
    if spec.restart:
        return "restart"
    if spec.source != spec.model:
        return "transfer"
    if spec.attack == "artq:apgd-margin":
        return "unbounded" if spec.eps > CLAIM.eps else "doubling" if options else "margin"
    if spec.attack == "artq:multi-targeted":
        return "closing" if options else "targeted"
    if spec.attack == "artq:surrogates":
        return "closing-repaired" if options else "surrogates"
    if spec.attack == "autoattack:square":
        return "search" if options["n_queries"] == 1000 else "search-long"
    names = {"art:fgsm": "one-step", "art:pgd": "cross-entropy", "artq:eot": "averaging"}
    return names.get(spec.attack, spec.attack.removeprefix("artq:"))


class MadeUp:
    """Runs cells of a made-up model, and remembers which. ``breaks``: positions of images by the step that breaks them."""

    def __init__(self, breaks, *, n=N, measures, facts, margin, clean=1.0):
        self.breaks, self.n, self.asked = breaks, n, []
        self.measures, self.facts, self.margin, self.clean = measures, facts, margin, clean

    def __call__(self, spec):
        self.asked.append(spec)
        return self.outcome(spec, rung_of(spec))

    def outcome(self, spec, step):
        rows = range(self.n) if spec.rows is None else spec.rows
        broken = self.breaks.get(step, ())
        correct = [0.0 if i in broken else float(np.broadcast_to(self.clean, self.n)[i]) for i in rows]
        name = self.id_of(spec)
        samples = [
            Sample(
                cell=name,
                sample=str(i),
                label=i % 10,
                prediction=0,
                correct=c,
                selection=c,
                distance=spec.eps,
                margin=self.margin,
                loss=0.1,
                measures=self.measures if step == "clean" else {},
            )
            for i, c in zip(rows, correct, strict=True)
        ]
        params = ATTACKS[spec.attack].resolve(spec.options)
        params |= {"temperature": 9.0} if spec.gap else {}
        params |= {"restart": spec.restart} if spec.restart else {}
        params |= {"check": spec.check} if spec.check else {}
        cost = round(COST.get(step, 0) * len(samples))
        cell = Cell(
            id=name,
            model=spec.model,
            source=spec.source,
            attack=spec.attack,
            knowledge=ATTACKS[spec.attack].knowledge,
            role=spec.role,
            params=params,
            norm=spec.norm,
            eps=spec.eps,
            seed=spec.seed,
            n=len(samples),
            accuracy=sum(correct) / len(correct),
            interval=(0.0, 1.0),
            forward_samples=2 * cost,
            backward_samples=cost,
            seconds=0.0,
            status="success",
            rows=None if spec.rows is None else list(spec.rows),
            of=None if spec.rows is None else self.n,
            facts=self.facts if step == "clean" else {"used": 32, "success": 1.0, "random": 0.0} if spec.check else {},
        )
        return Outcome.from_samples(cell, samples)

    def id_of(self, spec):
        return cell_id(spec, target="t", source=f"s-{spec.source}", data="d", batch_size=250)

    def begin(self, claim=CLAIM):
        """The claimed outcome, and all that a run has before its diagnosis."""
        claimed = self.outcome(claim, "claim")
        clean = self.outcome(clean_cell(claim.model, norm=claim.norm, seed=0, eps=claim.eps), "clean")
        return claimed, [clean, claimed]

    def climb(self, claim=CLAIM, **settings):
        claimed, outcomes = self.begin(claim)
        return climb(claim, claimed, outcomes, self, others=("m", "o"), **settings)


def everything(**more):
    """The claim and each step break two images of their own."""
    steps = ["claim", *(rung.id for rung in STEPS)]
    return MadeUp({step: {2 * i, 2 * i + 1} for i, step in enumerate(steps)}, **{**EVERYTHING, **more})


FIRST = ["claim", "one-step", "cross-entropy", "margin"]
AS_IS = [*FIRST, "doubling", "restart", "targeted"]
#: The attacks whose images a step leaves alone, since its comparison cannot change there.
COMPARED = {
    **dict.fromkeys(["one-step", "cross-entropy", "margin", "scale", "unbounded"], ("claim",)),
    **dict.fromkeys(["doubling", "restart"], FIRST),
    **dict.fromkeys(["targeted", "surrogates", "full-precision", "averaging", "transfer", "search"], AS_IS),
}
NO_NUMBER = {"unbounded", "binarization"}


# --- Which images


def test_every_step_attacks_the_images_that_its_comparison_needs_and_no_others():
    made = everything()
    _, steps = made.climb(level=3)
    assert [s.id for s in steps if s.status == "run"] == [rung.id for rung in STEPS]
    done = ["claim"]
    for spec in made.asked:
        step = rung_of(spec)
        others = COMPARED.get(step, [d for d in done if d not in NO_NUMBER])
        gone = set().union(*(made.breaks[d] for d in done if d in others and d != step))
        rows = {i for i in range(N) if i not in gone}
        if step == "unbounded":
            rows = set(sorted(rows)[:50])
        if step == "binarization":
            rows = set(range(32))
        assert spec.rows is not None and set(spec.rows) == rows, step
        done += [step] if step not in done else []


def test_steps_say_which_cells_they_ran_on_how_many_images_and_at_what_cost():
    made = everything()
    outcomes, steps = made.climb(level=3)
    asked = iter(made.asked)
    for step, rung in zip(steps, STEPS, strict=True):
        mine = [next(asked) for _ in step.cells]
        assert {rung_of(spec) for spec in mine} == {rung.id}
        assert step.cells == [made.id_of(spec) for spec in mine]
        assert {len(spec.rows) for spec in mine} == {step.robust}
        attacked = sum(len(spec.rows) for spec in mine)
        assert step.backward == pytest.approx(rung.cost * attacked / N)
        assert step.forward == pytest.approx(2 * step.backward)
    assert [o.cell.id for o in outcomes[2:]] == [made.id_of(spec) for spec in made.asked]


def test_images_that_are_wrong_already_are_never_attacked():
    wrong = np.arange(N) < 20
    made = MadeUp({}, **{**EVERYTHING, "clean": (~wrong).astype(float)})
    made.climb(level=3)
    assert made.asked and all(min(spec.rows) >= 20 for spec in made.asked)


def test_late_steps_start_from_everything_that_is_legal():
    made = everything()
    outcomes, _ = made.climb(level=3)
    legal = {o.cell.id for o in outcomes if o.cell.eps == CLAIM.eps and "check" not in o.cell.params}
    for spec in made.asked:
        late = rung_of(spec) in ("rescaled", "bits", "joint", "closing-repaired", "closing")
        assert bool(spec.start) is late, rung_of(spec)
        assert set(spec.start) <= legal
    assert set(made.asked[-1].start) == legal - {made.id_of(made.asked[-1])}


def test_nothing_exceeds_the_claims_budget_but_the_unlimited_one_that_counts_in_no_number():
    made = MadeUp({"claim": set(), "unbounded": set(range(N))}, n=40, **EVERYTHING)  # few: it takes all of them
    claimed, outcomes = made.begin()
    known, steps = climb(CLAIM, claimed, outcomes, made, others=("m", "o"), level=3)
    assert {spec.eps for spec in made.asked if rung_of(spec) != "unbounded"} == {CLAIM.eps}
    (beyond,) = [made.id_of(spec) for spec in made.asked if spec.eps > CLAIM.eps]
    result = assess("m", known, claimed=claimed, steps=steps)
    assert [(r.norm, r.eps, r.accuracy) for r in result.robust] == [("Linf", 0.1, 1.0)]
    assert not any(beyond in r.attacks for r in result.robust)
    assert result.claim.corrected == 1.0
    tests = {o.cell.id for o in known if "check" in o.cell.params}
    assert len(tests) == 1 and not any(tests & set(r.attacks) for r in result.robust)


# --- When it stops


def test_where_no_image_is_left_nothing_is_attacked_and_every_step_says_why():
    made = MadeUp({"claim": set(range(N))}, **EVERYTHING)
    _, steps = made.climb(level=3)
    assert {rung_of(spec) for spec in made.asked} == {"binarization"}  # that tests the attack, not the model
    assert {s.reason for s in steps if s.id != "binarization"} == {"no image is left to attack"}


def test_where_no_image_is_right_nothing_runs():
    made = MadeUp({}, **{**EVERYTHING, "clean": 0.0})
    _, steps = made.climb(level=3)
    assert made.asked == []
    assert all(s.status == "skipped" and s.reason for s in steps)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_level_is_the_highest_that_runs(level):
    made = everything()
    _, steps = made.climb(level=level)
    assert [s.id for s in steps] == [rung.id for rung in STEPS]
    assert {s.id for s in steps if s.status == "run"} == {rung.id for rung in STEPS if rung.level <= level}
    skipped = [s for s in steps if s.status == "skipped"]
    assert all(s.reason == f"the diagnosis ends at level {level}" and not s.cells for s in skipped)


@pytest.mark.parametrize(
    ("change", "breaks", "verdict", "further"),
    [
        ({}, {}, "NOT_REFUTED", False),
        ({}, {"margin": range(20)}, "NOT_REFUTED", False),  # the claim is too high, and no gradient is to blame
        ({"gradient": 0.0}, {}, "SUSPECT", True),
        ({"gradient": 0.0}, {"search": range(20)}, "MASKED", True),
    ],
)
def test_without_a_level_it_goes_to_the_last_only_after_something_was_found(change, breaks, verdict, further):
    made = MadeUp(breaks, n=200, **{**PLAIN, "measures": PLAIN["measures"] | change})
    claimed, outcomes = made.begin()
    known, steps = climb(CLAIM, claimed, outcomes, made)
    assert assess("m", known, claimed=claimed).verdict == verdict
    last = [s for s in steps if s.level == 3]
    assert any(s.status == "run" for s in last) is further
    assert further or {s.reason for s in last} == {"nothing was found that it could settle"}


def test_what_does_not_apply_to_a_plain_model_says_so_in_words():
    made = MadeUp({}, **PLAIN)
    claimed, outcomes = made.begin(dataclasses.replace(CLAIM, attack="art:pgd"))
    _, steps = climb(dataclasses.replace(CLAIM, attack="art:pgd"), claimed, outcomes, made, level=3)
    reasons = {s.id: s.reason for s in steps if s.status == "skipped"}
    expected = {
        "cross-entropy": "the claim is made by this attack",
        "scale": "3 apart",
        "surrogates": "faithful",
        "full-precision": "no activation quantizer",
        "averaging": "not random",
        "transfer": "no other deterministic model",
        "rescaled": "nothing to undo",
        "bits": "no activation quantizer",
        "joint": "no activation quantizer",
        "closing-repaired": "faithful",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reasons[name] for name in reasons)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_attack_is_only_asked_for_a_norm_that_it_has(norm):
    made = everything()
    claim = dataclasses.replace(CLAIM, attack="autoattack:apgd-dlr", norm=norm)
    _, steps = made.climb(claim, level=3)
    assert made.asked and all(spec.norm in ATTACKS[spec.attack].norms for spec in made.asked)
    assert all(s.reason for s in steps if s.status == "skipped")
    assert {s.status for s in steps} == {"run", "skipped"}


@pytest.mark.parametrize(
    ("attack", "status"),
    [("autoattack:apgd-ce", "run"), ("autoattack:apgd-dlr", "skipped"), ("art:apgd-dlr", "skipped")],
)
def test_the_claimed_attack_is_tested_where_two_classes_are_enough_for_it(attack, status):
    _, steps = everything().climb(dataclasses.replace(CLAIM, attack=attack), level=3)
    (step,) = [s for s in steps if s.id == "binarization"]
    assert step.status == status and ("more than two classes" in step.reason) == (status == "skipped")


# --- What it costs


@pytest.mark.parametrize("budget", [0, 1, 30, 100, 400])
def test_a_budget_is_never_exceeded_and_what_it_leaves_out_is_said(budget):
    made = everything()
    _, steps = made.climb(level=3, budget=budget)
    assert sum(s.backward for s in steps) <= budget
    left_out = [s for s in steps if s.status == "skipped"]
    assert left_out and all("are left of the budget" in s.reason and s.robust for s in left_out)
    assert {"search", "search-long"} <= {s.id for s in steps if s.status == "run"}  # they take no gradient
    if budget >= 100:
        assert {"one-step", "cross-entropy", "margin"} <= {s.id for s in steps if s.status == "run"}


def test_a_budget_that_is_large_enough_changes_nothing():
    free, paid = everything(), everything()
    assert free.climb(level=3)[1] == paid.climb(level=3, budget=1e9)[1]


def test_a_step_costs_gradients_unless_it_sees_none():
    made = everything()
    made.climb(level=3)
    seen = {rung_of(spec): ATTACKS[spec.attack].knowledge for spec in made.asked}
    assert seen.keys() == COST.keys()
    for step, knowledge in seen.items():
        assert (COST[step] > 0) is (knowledge == "white-box"), step
        assert COST[step] >= 0


def test_the_ladder_goes_up_and_every_step_has_a_name_of_its_own():
    levels = [rung.level for rung in STEPS]
    assert levels == sorted(levels) and set(levels) == {1, 2, 3}
    assert len({rung.id for rung in STEPS}) == len({rung.title for rung in STEPS}) == len(STEPS)


# --- Failures, and again


def test_a_step_whose_cells_fail_says_so_and_the_others_go_on():
    made = everything()
    run = made.__call__

    def sometimes(spec):
        found = run(spec)
        if rung_of(spec) not in ("margin", "search"):
            return found
        broken = {"status": "error", "error": "Traceback\nBoom: it failed", "accuracy": None, "interval": None, "n": 0}
        return Outcome(found.cell.model_copy(update={**broken, "rows": None, "of": None}))

    claimed, outcomes = made.begin()
    known, steps = climb(CLAIM, claimed, outcomes, sometimes, others=("o",), level=3)
    assert {s.id: s.reason for s in steps if s.status == "failed"} == dict.fromkeys(
        ["margin", "search"], "Boom: it failed"
    )
    assert {s.id for s in steps if s.status == "run"} == COST.keys() - {"margin", "search"}
    assert assess("m", known, claimed=claimed).verdict != "NOT_REFUTED"


def test_a_second_climb_asks_for_the_same_cells():
    first, second = everything(), everything()
    assert first.climb(level=3)[1] == second.climb(level=3)[1]
    assert [first.id_of(s) for s in first.asked] == [second.id_of(s) for s in second.asked]
    assert len({first.id_of(s) for s in first.asked}) == len(first.asked)


class Watch(Progress):
    def __init__(self):
        self.computed, self.reused = [], []

    def cell(self, outcome, reused):
        (self.reused if reused else self.computed).append(outcome.cell.id)


def linear(scale=1.0):
    """A linear network whose nearest adversarial point lies where its answer's margin is eps times the weights' sum."""
    layer = nn.Linear(64, 4)
    layer.load_state_dict(
        {"weight": torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), "bias": -torch.ones(4)}
    )
    layer.weight.data -= layer.weight.data.mean(1, keepdim=True)
    layer.weight.data *= scale
    return nn.Sequential(nn.Flatten(), layer).eval()


def random_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    return StochasticEnsemble(quantize(network, activation_bits=2, clip=1.0, alpha=2.0), 2).eval()


def diagnosed(model, out, *, eps=0.05, n=24, norm="Linf", attack="art:pgd", level=3):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    with torch.no_grad():
        y = model(x).argmax(1)
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 4, device_type="cpu")
    other = QuantizedClassifier(linear(0.5), nn.CrossEntropyLoss(), (1, 8, 8), 4, device_type="cpu")
    claim = CellSpec(model="m", source="m", attack=attack, norm=norm, eps=eps, seed=0)
    clean = clean_cell("m", norm=norm, seed=0, eps=eps)
    watch = Watch()
    scheduler = Scheduler(Evaluator({"m": estimator, "o": other}, x, y, [str(i) for i in range(n)]), Store(out), watch)
    scheduler.run([clean, claim])
    result = assess_model(scheduler, ModelUnderTest("m", "", clean, claim), diagnosis=Diagnosis(level=level))
    return scheduler, result, watch, (x, y)


def test_on_a_linear_network_the_number_is_the_one_in_closed_form(tmp_path):
    """Its margin to class j falls by at most eps times the L1 norm of w_y - w_j, which every attack by a sign reaches."""
    model = linear()
    eps = 0.01
    _, result, watch, (x, y) = diagnosed(model, tmp_path, eps=eps)
    weight, z = model[1].weight.detach().double(), model(x).detach().double()
    apart = (weight[y][:, None] - weight[None]).abs().sum(2) * eps
    margin = z.gather(1, y[:, None]) - z - apart
    margin.scatter_(1, y[:, None], torch.inf)
    exact = float((margin.amin(1) > 0).double().mean())
    assert 0 < exact < 1
    assert (result.claim.corrected, result.claim.accuracy) == (exact, exact)
    assert result.verdict != "MASKED" and not [s for s in result.steps if s.status == "failed"]
    assert len(watch.computed) == 2 + sum(len(s.cells) for s in result.steps)


@pytest.mark.parametrize("make", [lambda: linear(100.0), random_network], ids=["large logits", "random"])
def test_a_real_diagnosis_again_computes_nothing_and_says_the_same(make, tmp_path):
    model = make()
    _, first, watch, _ = diagnosed(model, tmp_path, n=8)
    assert not [s for s in first.steps if s.status == "failed"], first.steps
    assert watch.reused == []
    _, again, watched, _ = diagnosed(model, tmp_path, n=8)
    assert watched.computed == [] and watched.reused == watch.computed
    assert again == first


def test_a_claim_in_a_norm_that_most_attacks_do_not_have_fails_at_no_step(tmp_path):
    _, result, _, _ = diagnosed(linear(), tmp_path, norm="L1", eps=0.3, attack="autoattack:apgd-ce", level=2, n=12)
    assert not [s for s in result.steps if s.status == "failed"], result.steps
    lacking = [a for a in ("artq:apgd-margin", "art:pgd") if "L1" not in ATTACKS[a].norms]
    reasons = {s.reason for s in result.steps if s.id in ("margin", "restart", "doubling", "transfer")}
    assert lacking and {f"{a} has no norm L1" for a in lacking} == reasons - {""}
    assert "failed-cells" not in {f.id for f in result.findings if f.fired}
    assert all(s.reason for s in result.steps if s.status == "skipped")
