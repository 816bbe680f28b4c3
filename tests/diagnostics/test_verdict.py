"""The verdict: every rule on made-up records. Real models whose truth is known are diagnosed in ``test_diagnose.py``."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from art_qplugins.diagnostics import INDICATORS, assess
from art_qplugins.diagnostics.verdict import holm
from art_qplugins.evaluation.outcome import Outcome, worst_case
from art_qplugins.evaluation.records import Cell, Sample

N = 200


def cell(attack, correct, *, role="probe", eps=0.1, source="m", params=None, n=N, selection=None, **columns):
    """An outcome whose rows hold these columns; a number stands for all rows."""
    correct = np.broadcast_to(np.asarray(correct, dtype=float), n)
    columns = {"margin": 1.0, "loss": 0.1, **columns}
    columns = {k: np.broadcast_to(np.asarray(v, dtype=float), n) for k, v in columns.items()}
    selection = correct if selection is None else np.broadcast_to(np.asarray(selection, dtype=float), n)
    name = f"{attack}-{eps}-{source}-{params}"
    rows = [
        Sample(
            cell=name,
            sample=f"{i}",
            label=0,
            prediction=0,
            correct=correct[i],
            selection=selection[i],
            distance=eps,
            **{k: float(v[i]) for k, v in columns.items() if k in ("margin", "loss")},
            measures={k: float(v[i]) for k, v in columns.items() if k not in ("margin", "loss")},
        )
        for i in range(n)
    ]
    record = Cell(
        id=name,
        model="m",
        source=source,
        attack=attack,
        role=role,
        params=params or {},
        norm="Linf",
        eps=eps,
        seed=0,
        n=n,
        accuracy=float(correct.mean()),
        interval=(0.0, 1.0),
        forward_samples=0,
        backward_samples=0,
        seconds=0.0,
        status="success",
    )
    return Outcome.from_samples(record, rows)


def failed(attack, role="probe"):
    record = cell(attack, 1.0, role=role).cell
    changes = {"status": "error", "error": "Traceback\nBoom: it failed", "accuracy": None, "interval": None, "n": 0}
    return Outcome(record.model_copy(update=changes))


def first(share, n=N):
    """1 for the first ``share`` of the images."""
    return (np.arange(n) < share * n).astype(float)


HONEST = {
    **{"gradient": 0.1, "gradient_start": 0.1, "gradient_ratio": 0.5, "gradient_l2": 0.3},
    **{"fidelity": 0.9, "fidelity_eps": 0.9, "alignment": 0.9, "margin": 9.0, "loss": 0.01},
}
PGD = {"max_iter": 20, "rel_eps_step": None}


def judged(
    *,
    claimed=0.5,
    found=0.5,
    scaled=None,
    repaired=None,
    search=None,
    clean=None,
    facts=None,
    params=None,
    extra=(),
    n=N,
    drop=(),
    **more,
):
    """The verdict on a model whose claim leaves the first ``claimed`` of the images.

    ``found`` is what another loss leaves, ``scaled`` the claimed attack on divided logits, ``repaired`` one along
    surrogate gradients, ``search`` one without gradients; each as much as the claim where not given.
    """
    cells = {
        "clean": cell("artq:clean", 1.0, role="clean", eps=0.0, n=n, **{**HONEST, **(clean or {})}),
        "claim": cell("art:pgd", first(claimed, n), role="attack", n=n, params={**PGD, **(params or {})}),
        "scaled": cell(
            "art:pgd", first(claimed if scaled is None else scaled, n), params={**PGD, "temperature": 3.0}, n=n
        ),
        "margin": cell("artq:apgd-margin", first(found, n), n=n, params={"max_iter": 20}),
        "square": cell("autoattack:square", first(claimed if search is None else search, n), n=n),
        "repaired": cell("artq:surrogates", first(claimed if repaired is None else repaired, n), n=n),
        "fgsm": cell("art:fgsm", first(min(1.0, claimed + 0.1), n), n=n),
    }
    if facts:
        known = cells["clean"]
        cells["clean"] = known.with_cell(facts=facts)
    kept = [c for name, c in cells.items() if name not in drop]
    return assess("m", [*kept, *extra], claimed=cells["claim"], **more)


def fired(result):
    return {f.id for f in result.findings if f.fired}


UNFAITHFUL = {"fidelity": 0.2, "fidelity_eps": 0.2}


def test_the_records_of_an_honest_model_are_not_refuted():
    result = judged()
    assert (result.verdict, result.claim.status, fired(result)) == ("NOT_REFUTED", "HOLDS", set())
    assert (result.claim.accuracy, result.claim.corrected) == (0.5, 0.5)
    assert {f.id for f in result.findings} == {i.id for i in INDICATORS}
    assert "not a guarantee" in result.summary


def test_a_gap_without_a_mechanism_is_an_overstated_claim_and_no_masking():
    result = judged(claimed=0.5, found=0.3)
    assert (result.verdict, result.claim.status, fired(result)) == (
        "NOT_REFUTED",
        "OVERSTATED",
        {"attack-gap", "ordinary-attack-gap"},
    )
    assert (result.claim.accuracy, result.claim.corrected) == (0.5, 0.3)
    assert result.claim.overstated_by == pytest.approx(0.2)
    low, high = result.claim.overstated_interval
    assert 0.13 < low < 0.2 < high < 0.27


@pytest.mark.parametrize(
    ("mechanism", "findings"),
    [({"gradient": 0.0}, {"zero-gradient"}), ({"loss": 0.0}, {"loss-underflow"}), ({"margin": 20.0}, {"large-logits"})],
)
def test_a_mechanism_of_numbers_is_a_suspicion_without_a_gap(mechanism, findings):
    """Other attacks on the same loss will be fooled, even if this one was not."""
    result = judged(clean=mechanism, drop=["scaled"])
    assert (result.verdict, result.claim.status, fired(result)) == ("SUSPECT", "HOLDS", findings)


@pytest.mark.parametrize(
    ("mechanism", "found", "verdict"),
    [
        ({"loss": 0.0}, 0.5, "NOT_REFUTED"),
        ({"loss": 0.0}, 0.45, "NOT_REFUTED"),
        ({"loss": 0.0}, 0.3, "SUSPECT"),
        ({"margin": 20.0}, 0.5, "SUSPECT"),
        ({"gradient": 0.0}, 0.5, "SUSPECT"),
    ],
)
def test_a_loss_of_zero_is_settled_by_dividing_the_logits_unless_much_is_unexplained(mechanism, found, verdict):
    assert judged(clean=mechanism, found=found).verdict == verdict


def test_a_gradient_that_is_about_to_vanish_is_at_work_where_some_have_vanished():
    """Zero on the last 30 images; on images 60 to 99, which dividing the logits breaks, all but."""
    tiny = np.where((np.arange(N) >= 60) & (np.arange(N) < 100), 1e-8, 0.5)
    gone = np.where(np.arange(N) >= 170, 0.0, 0.1)
    assert judged(scaled=0.3, clean={"gradient_ratio": tiny}).verdict == "NOT_REFUTED"
    assert judged(scaled=0.3, clean={"gradient": gone}).verdict == "SUSPECT"
    assert judged(scaled=0.3, clean={"gradient": gone, "gradient_ratio": tiny}).verdict == "MASKED"


def test_an_unfaithful_gradient_is_settled_by_its_control_experiments():
    assert judged(clean=UNFAITHFUL).verdict == "NOT_REFUTED"
    without = judged(clean=UNFAITHFUL, drop=["repaired", "square"])
    assert fired(without) == {"unfaithful-gradient"} and without.verdict in ("SUSPECT", "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("mechanism", "proof"),
    [
        ({"gradient": 0.0}, {"repaired": 0.3}),
        ({"gradient": 0.0}, {"search": 0.3}),
        ({"gradient": 0.0}, {"scaled": 0.3}),
        (UNFAITHFUL, {"repaired": 0.3}),
        (UNFAITHFUL, {"search": 0.3}),
        (UNFAITHFUL, {"found": 0.3}),
        ({"loss": 0.0}, {"scaled": 0.3}),
        ({"margin": 20.0}, {"scaled": 0.3}),
    ],
)
def test_a_mechanism_and_its_control_experiment_are_masking(mechanism, proof):
    result = judged(clean=mechanism, **proof)
    assert (result.verdict, result.claim.status, result.claim.corrected) == ("MASKED", "OVERSTATED", 0.3)
    assert "illusion" in result.summary


@pytest.mark.parametrize(
    ("mechanism", "proof"),
    [
        ({"loss": 0.0}, {"found": 0.3}),
        ({"margin": 20.0}, {"search": 0.3}),
        ({"gradient": 0.0}, {"found": 0.3}),
    ],
)
def test_the_control_experiment_of_something_else_explains_nothing(mechanism, proof):
    result = judged(clean=mechanism, **proof)
    assert (result.verdict, result.claim.status) == ("SUSPECT", "OVERSTATED")


@pytest.mark.parametrize("mechanism", [{"gradient": 0.0}, UNFAITHFUL])
def test_a_mechanism_on_other_images_than_those_that_broke_explains_nothing(mechanism):
    """Images 60 to 99 newly broke; the mechanism is at work on 100 to 199."""

    def at_work(where):
        return {column: np.where(where, value, HONEST[column]) for column, value in mechanism.items()}

    elsewhere = judged(claimed=0.5, repaired=0.3, clean=at_work(np.arange(N) >= 99))
    assert elsewhere.verdict == "SUSPECT"
    there = judged(claimed=0.5, repaired=0.3, clean=at_work((np.arange(N) >= 60) & (np.arange(N) < 161)))
    assert there.verdict == "MASKED"


def test_a_number_that_depends_on_the_scale_of_sensible_logits_is_a_weak_attack():
    result = judged(claimed=0.5, found=0.5, scaled=0.3)
    assert "logit-scale" in fired(result)
    assert (result.verdict, result.claim.status, result.claim.corrected) == ("NOT_REFUTED", "OVERSTATED", 0.3)


@pytest.mark.parametrize(
    ("extra", "finding"),
    [
        (cell("autoattack:square", first(0.3)), "black-box-search"),
        (cell("art:pgd", first(0.3), source="other"), "transfer"),
        (cell("artq:surrogates", first(0.3)), "surrogate-gradient"),
        (cell("artq:eot", first(0.3)), "mean-gradient"),
    ],
)
def test_who_finds_more_without_the_models_own_gradient_is_a_suspicion(extra, finding):
    result = judged(claimed=0.5, extra=[extra])
    assert {finding, "attack-gap"} <= fired(result)
    assert result.verdict == "SUSPECT"


def test_a_repaired_gradient_that_goes_further_than_every_attack_on_its_own_is_masking():
    repaired = cell("artq:surrogates", first(0.3))
    aimed = cell("artq:multi-targeted", first(0.5))
    result = judged(claimed=0.5, extra=[repaired, aimed])
    assert fired(result) == {"attack-gap", "ordinary-attack-gap", "surrogate-gradient"}
    assert (result.verdict, result.claim.status, result.claim.corrected) == ("MASKED", "OVERSTATED", 0.3)
    assert "a repaired gradient breaks what the model's own gradient leaves" in result.summary


def test_what_the_models_own_gradient_finds_too_accuses_nobody():
    result = judged(claimed=0.5, found=0.3, search=0.3, repaired=0.3)
    assert (result.verdict, fired(result)) == ("NOT_REFUTED", {"attack-gap", "ordinary-attack-gap"})


def test_one_step_that_beats_many_is_a_symptom_and_no_verdict():
    result = judged(claimed=0.5, extra=[cell("torchattacks:fgsm", first(0.3))])
    assert {"one-step-beats-many", "attack-gap"} <= fired(result) and result.verdict == "NOT_REFUTED"
    weaker_eps = judged(claimed=0.5, extra=[cell("torchattacks:fgsm", first(0.3), eps=0.05)])
    assert "one-step-beats-many" not in fired(weaker_eps)


def test_two_symptoms_of_one_group_count_once_and_of_two_groups_are_a_suspicion():
    long = cell("artq:apgd-margin", first(0.32), params={"max_iter": 50})
    direction = [
        cell("torchattacks:fgsm", first(0.4)),
        cell("artq:multi-targeted", first(0.32), params={"max_iter": 20}),
    ]
    one_group = judged(extra=direction)
    assert {"one-step-beats-many", "targeted-attack"} <= fired(one_group) and one_group.verdict == "NOT_REFUTED"
    two = judged(extra=[direction[0], long])
    assert {"one-step-beats-many", "more-steps"} <= fired(two) and two.verdict == "SUSPECT"


def test_an_ordinary_attack_that_is_fooled_on_many_images_is_a_suspicion():
    assert judged(claimed=0.8, found=0.4).verdict == "SUSPECT"
    # Cross-entropy is blunt where logits are small.
    assert judged(claimed=0.8, found=0.4, clean={"margin": 0.5}).verdict == "NOT_REFUTED"


def test_symptoms_are_corrected_for_their_number():
    assert holm({"a": 0.03, "b": 0.04, "c": None}) == {"a": False, "b": False}
    assert holm({"a": 0.01, "b": 0.04}) == {"a": True, "b": True}
    assert holm({"a": 0.001, "b": 0.03, "c": 0.04}) == {"a": True, "b": False, "c": False}


def test_a_claim_of_one_step_on_a_surface_that_turns_is_masking():
    def one_step(alignment):
        clean = cell("artq:clean", 1.0, role="clean", eps=0.0, **{**HONEST, "alignment": alignment})
        claim = cell("art:fgsm", first(0.8), role="attack")
        many = cell("art:pgd", first(0.2), params=PGD)
        return assess("m", [clean, claim, many, cell("autoattack:square", first(0.8))], claimed=claim)

    assert (one_step(0.1).verdict, one_step(0.95).claim.status) == ("MASKED", "OVERSTATED")
    assert one_step(0.95).verdict != "MASKED"


def test_a_random_model_whose_single_gradients_disagree_is_masked_where_their_mean_gets_further():
    for coherence, verdict in ((0.1, "MASKED"), (0.95, "SUSPECT")):
        result = judged(clean={"coherence": coherence}, facts={"random": True}, extra=[cell("artq:eot", first(0.3))])
        assert (result.verdict, result.stochastic) == (verdict, True)


@pytest.mark.parametrize(
    ("coherence", "found", "params", "verdict"),
    [
        (0.5, 0.4, {}, "MASKED"),
        (0.5, 0.5, {}, "NOT_REFUTED"),  # noise, and nobody gets further
        (0.95, 0.4, {}, "NOT_REFUTED"),  # a gap, and hardly any noise
        (0.5, 0.4, {"eot_iter": 16}, "NOT_REFUTED"),  # the claimed attack averages
    ],
)
def test_a_claim_that_follows_noise_and_is_too_high_is_masked_unless_its_attack_averages(
    coherence, found, params, verdict
):
    result = judged(
        found=found,
        clean={"coherence": coherence},
        facts={"random": True},
        params=params,
        extra=[cell("artq:eot", first(0.5))],
    )
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("facts", "finding"), [({"probabilities": True}, "probabilities"), ({"batch_dependent": 0.4}, "batch-dependence")]
)
def test_an_evaluation_that_cannot_count_has_no_number(facts, finding):
    result = judged(facts=facts)
    assert (result.verdict, result.claim.status, result.robust) == ("INVALID", "NONE", [])
    assert finding in fired(result)


def test_a_model_that_guesses_is_no_model():
    clean = cell("artq:clean", first(0.3), role="clean", eps=0.0, **HONEST)
    rows = [row.model_copy(update={"label": i % 3}) for i, row in enumerate(clean.samples())]
    result = judged(claimed=0.1, drop=["clean"], extra=[Outcome.from_samples(clean.cell, rows)])
    assert result.verdict == "INVALID" and "guessing" in result.summary


def test_a_gap_that_chance_explains_is_none():
    """The exact test: with 2 % truly broken, would so many of 200 be a rare sight?"""
    for broken in range(20):
        rare = broken > 0 and binom.sf(broken - 1, N, 0.02) < 0.05
        assert ("attack-gap" in fired(judged(claimed=0.5, found=0.5 - broken / N))) is bool(rare), broken


@pytest.mark.parametrize("which", ["claim", "clean"])
def test_where_the_claimed_or_the_clean_cell_failed_there_is_no_number(which):
    clean = (
        cell("artq:clean", 0.9, role="clean", eps=0.0, **HONEST) if which == "claim" else failed("artq:clean", "clean")
    )
    claim = failed("art:pgd", "attack") if which == "claim" else cell("art:pgd", 0.5, role="attack")
    result = assess("m", [clean, claim, cell("autoattack:square", 0.4)], claimed=claim)
    assert (result.verdict, result.claim.status, result.robust) == ("INVALID", "NONE", [])
    assert {f.class_ for f in result.findings} <= {"V", "M"}
    assert "Boom: it failed" in result.summary


def test_a_failed_probe_makes_silence_inconclusive():
    result = judged(extra=[failed("artq:pgd-margin")])
    assert (result.verdict, fired(result)) == ("INCONCLUSIVE", {"failed-cells"})
    assert judged(repaired=0.3, clean={"gradient": 0.0}, extra=[failed("art:fgsm")]).verdict == "MASKED"


@pytest.mark.parametrize("missing", ["scaled", "square"])
def test_a_check_that_did_not_run_makes_silence_inconclusive(missing):
    result = judged(drop=[missing])
    assert result.verdict == "INCONCLUSIVE"
    assert any(f.fired is None and "Not run" in f.evidence for f in result.findings)


def test_a_claim_that_leaves_nothing_needs_no_control():
    clean = cell("artq:clean", 1.0, role="clean", eps=0.0, **HONEST)
    claim = cell("art:pgd", 0.0, role="attack", params=PGD)
    assert assess("m", [clean, claim], claimed=claim).verdict == "NOT_REFUTED"


@pytest.mark.parametrize("column", ["gradient", "loss"])
def test_a_probe_without_its_measurement_makes_silence_inconclusive(column):
    clean = cell("artq:clean", 1.0, role="clean", eps=0.0, **HONEST)
    rows = [s.model_copy(update={"measures": {**s.measures, column: None}}) for s in clean.samples()]
    blind = Outcome.from_samples(
        clean.cell, [s.model_copy(update={"loss": None}) if column == "loss" else s for s in rows]
    )
    result = judged(drop=["clean"], extra=[blind])
    assert result.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(("n", "verdict"), [(40, "INCONCLUSIVE"), (200, "NOT_REFUTED")])
def test_few_images_are_inconclusive(n, verdict):
    assert judged(n=n).verdict == verdict


def test_without_a_claim_there_is_nothing_to_test():
    clean = cell("artq:clean", 1.0, role="clean", eps=0.0, **HONEST)
    result = assess("m", [clean, cell("art:pgd", first(0.5), role="attack")], claimed=None)
    assert (result.verdict, result.claim.status) == ("INCONCLUSIVE", "NONE")
    assert result.robust[0].accuracy == 0.5


@pytest.mark.parametrize(("number", "status"), [(0.9, "OVERSTATED"), (0.5, "HOLDS"), (0.4, "HOLDS")])
def test_a_number_from_elsewhere_is_held_against_the_corrected_one(number, status):
    result = judged(claimed_accuracy=number)
    assert (result.claim.status, result.claim.accuracy, result.claim.corrected) == (status, number, 0.5)


def test_only_correct_images_count_for_a_mechanism():
    wrong = np.arange(N) >= 150  # a zero gradient there says nothing
    clean = cell("artq:clean", ~wrong, role="clean", eps=0.0, **{**HONEST, "gradient": np.where(wrong, 0.0, 0.1)})
    result = judged(drop=["clean"], extra=[clean])
    assert "zero-gradient" not in fired(result)
    (finding,) = [f for f in result.findings if f.id == "zero-gradient"]
    assert finding.value == 0.0


# --- Worst cases


def test_what_a_smaller_budget_breaks_a_larger_one_breaks_too():
    """The raw accuracies go up with eps; the worst case over what is legal cannot."""
    small = cell("art:fgsm", first(0.4), eps=0.05)
    large = cell("art:pgd", first(0.7), role="attack", eps=0.1)
    clean = cell("artq:clean", first(0.9), role="clean", eps=0.0, **HONEST)
    result = assess("m", [clean, large, small], claimed=large)
    assert [(r.eps, r.accuracy) for r in result.robust] == [(0.05, 0.4), (0.1, 0.4)]
    assert result.claim.corrected == 0.4


def test_another_norm_or_a_larger_budget_does_not_count():
    other = cell("art:pgd", 0.0, eps=0.1)
    other = other.with_cell(norm="L2")
    larger = cell("art:pgd", 0.0, eps=0.2)
    result = judged(extra=[other, larger])
    assert result.claim.corrected == 0.5
    assert {(r.norm, r.eps): r.accuracy for r in result.robust} == {
        ("L2", 0.1): 0.0,
        ("Linf", 0.1): 0.5,
        ("Linf", 0.2): 0.0,
    }


def test_the_worst_case_is_a_mean_of_minima_and_not_a_minimum_of_means():
    halves = [cell("art:pgd", first(0.5)), cell("art:fgsm", 1 - first(0.5))]
    assert worst_case(halves).mean() == 0.0


def test_lucky_draws_are_no_success_of_an_attack():
    """50 attacks that do nothing to a coin: a minimum over the scored draws themselves would report far below 1/2."""
    generator = np.random.default_rng(0)
    scores = [generator.binomial(20, 0.5, (2, 1000)) / 20 for _ in range(50)]
    coins = [cell("art:pgd", correct, selection=selection, n=1000) for correct, selection in scores]
    assert abs(worst_case(coins).mean() - 0.5) < 0.01
    assert np.min([c.column("correct") for c in coins], 0).mean() < 0.3
