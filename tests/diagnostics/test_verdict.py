"""The rules of the verdict, on made-up records. Real models whose truth is known are diagnosed in ``test_diagnose.py``."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import HEALTHY, N, cell, clean, failed, fired, first, judged

from art_qplugins.diagnostics import INDICATORS, assess
from art_qplugins.diagnostics.measurements import holm

UNFAITHFUL = {"fidelity": 0.2, "fidelity_eps": 0.2}


def test_the_records_of_an_honest_model_are_not_refuted():
    result = judged()
    assert (result.verdict, result.claim.status, fired(result)) == ("NOT_REFUTED", "HOLDS", set())
    assert (result.claim.accuracy, result.claim.corrected) == (0.5, 0.5)
    assert {f.id for f in result.findings} == set(INDICATORS)
    assert "not a guarantee" in result.summary


def test_a_gap_without_a_mechanism_is_an_overstated_claim_and_no_masking():
    result = judged(claimed=0.5, found=0.3)
    assert (result.verdict, result.claim.status, fired(result)) == (
        "NOT_REFUTED",
        "OVERSTATED",
        {"attack-gap"},
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
    result = judged(shown=mechanism, drop=["scaled"])
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
    assert judged(shown=mechanism, found=found).verdict == verdict


def test_a_gradient_that_is_about_to_vanish_is_at_work_where_some_have_vanished():
    """Zero on the last 30 images; on images 60 to 99, which dividing the logits breaks, all but."""
    tiny = np.where((np.arange(N) >= 60) & (np.arange(N) < 100), 1e-8, 0.5)
    gone = np.where(np.arange(N) >= 170, 0.0, 0.1)
    assert judged(scaled=0.3, shown={"gradient_ratio": tiny}).verdict == "NOT_REFUTED"
    assert judged(scaled=0.3, shown={"gradient": gone}).verdict == "SUSPECT"
    assert judged(scaled=0.3, shown={"gradient": gone, "gradient_ratio": tiny}).verdict == "MASKED"


def test_an_unfaithful_gradient_is_settled_by_its_control_experiments():
    assert judged(shown=UNFAITHFUL).verdict == "NOT_REFUTED"
    without = judged(shown=UNFAITHFUL, drop=["repaired", "square"])
    assert fired(without) == {"unfaithful-gradient"} and without.verdict == "SUSPECT"


@pytest.mark.parametrize(
    ("drop", "extra", "verdict"),
    [
        (["repaired-power"], [], "NOT_REFUTED"),  # search could have found something
        (["square-power"], [], "NOT_REFUTED"),
        (["repaired-power", "square-power"], [], "SUSPECT"),  # nobody tried
        (
            ["repaired-power", "square-power"],
            [cell("autoattack:square", 0.6, eps=0.2, rows=range(20))],  # it breaks nothing at twice the eps either
            "SUSPECT",
        ),
        (["repaired", "repaired-power"], [], "NOT_REFUTED"),  # one control that could have is enough
        (["square", "square-power", "repaired-power"], [], "SUSPECT"),
    ],
)
def test_a_silent_control_settles_only_where_it_could_have_found_something(drop, extra, verdict):
    assert judged(shown=UNFAITHFUL, drop=drop, extra=extra).verdict == verdict


def test_a_control_that_does_not_apply_settles_nothing():
    """Both ways around the backward pass are missing: the step says that none applies."""
    alone = judged(
        shown={**UNFAITHFUL, "alignment": 0.0}, drop=["repaired", "square", "repaired-power", "square-power"]
    )
    assert alone.verdict == "SUSPECT"


def test_a_gap_between_attacks_is_no_control_experiment():
    """20 points more than PGD and the claim: a weak attack, or a mechanism whose control found nothing."""
    result = judged(shown=UNFAITHFUL, found=0.3)
    assert (result.verdict, result.claim.status) == ("NOT_REFUTED", "OVERSTATED")


@pytest.mark.parametrize(
    ("mechanism", "proof"),
    [
        ({"gradient": 0.0}, {"repaired": 0.3}),
        ({"gradient": 0.0}, {"search": 0.3}),
        ({"gradient": 0.0}, {"scaled": 0.3}),
        (UNFAITHFUL, {"repaired": 0.3}),
        (UNFAITHFUL, {"search": 0.3}),
        ({"loss": 0.0}, {"scaled": 0.3}),
        ({"margin": 20.0}, {"scaled": 0.3}),
    ],
)
def test_a_mechanism_and_its_control_experiment_are_masking(mechanism, proof):
    result = judged(shown=mechanism, **proof)
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
    result = judged(shown=mechanism, **proof)
    assert (result.verdict, result.claim.status) == ("SUSPECT", "OVERSTATED")


@pytest.mark.parametrize("mechanism", [{"gradient": 0.0}, UNFAITHFUL])
def test_a_mechanism_on_other_images_than_those_that_broke_explains_nothing(mechanism):
    """Images 60 to 99 newly broke; the mechanism is at work on 100 to 199."""

    def is_present(where):
        return {column: np.where(where, value, HEALTHY[column]) for column, value in mechanism.items()}

    elsewhere = judged(claimed=0.5, repaired=0.3, shown=is_present(np.arange(N) >= 99))
    assert elsewhere.verdict == "SUSPECT"
    there = judged(claimed=0.5, repaired=0.3, shown=is_present((np.arange(N) >= 60) & (np.arange(N) < 161)))
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
    result = judged(claimed=0.5, extra=[extra], facts={"random": finding == "mean-gradient"})
    assert {finding, "attack-gap"} <= fired(result)
    assert result.verdict == "SUSPECT"


def test_a_mean_over_calls_of_a_deterministic_model_is_its_own_gradient():
    smoothed = cell("torchattacks:vmifgsm", first(0.3))
    result = judged(claimed=0.5, extra=[smoothed], facts={"random": False})
    assert "mean-gradient" not in fired(result) and result.verdict == "NOT_REFUTED"


def test_a_repaired_gradient_that_goes_further_than_every_attack_on_its_own_is_masking():
    repaired = cell("artq:surrogates", first(0.3))
    aimed = cell("artq:multi-targeted", first(0.5))
    result = judged(claimed=0.5, extra=[repaired, aimed])
    assert fired(result) == {"attack-gap", "surrogate-gradient"}
    assert (result.verdict, result.claim.status, result.claim.corrected) == ("MASKED", "OVERSTATED", 0.3)
    assert "a repaired gradient breaks images that the model's own gradient does not break" in result.summary


def test_what_the_models_own_gradient_finds_too_accuses_nobody():
    result = judged(claimed=0.5, found=0.3, search=0.3, repaired=0.3)
    assert (result.verdict, fired(result)) == ("NOT_REFUTED", {"attack-gap"})


def test_one_step_that_beats_many_is_a_symptom_and_no_verdict():
    result = judged(claimed=0.5, extra=[cell("torchattacks:fgsm", first(0.3))])
    assert {"one-step-beats-many", "attack-gap"} <= fired(result) and result.verdict == "NOT_REFUTED"
    weaker_eps = judged(claimed=0.5, extra=[cell("torchattacks:fgsm", first(0.3), eps=0.05)])
    assert "one-step-beats-many" not in fired(weaker_eps)


def test_symptoms_are_notes():
    direction = [
        cell("torchattacks:fgsm", first(0.4)),
        cell("artq:multi-targeted", first(0.32), params={"max_iter": 20}),
        cell("artq:apgd-margin", first(0.32), params={"max_iter": 50}),
    ]
    result = judged(extra=direction)
    assert {"one-step-beats-many", "more-steps"} <= fired(result) and result.verdict == "NOT_REFUTED"
    assert not any(f.decides for f in result.findings if f.id in ("one-step-beats-many", "more-steps"))


def test_an_attack_without_a_limit_that_fails_is_a_suspicion():
    grey = cell("artq:apgd-margin", first(0.5, 50), eps=0.5, rows=range(50))
    assert judged(extra=[grey]).verdict == "SUSPECT"


def test_an_ordinary_attack_that_is_fooled_on_many_images_is_a_suspicion():
    assert judged(claimed=0.8, found=0.4).verdict == "SUSPECT"
    assert judged(claimed=0.8, found=0.6).verdict == "NOT_REFUTED"
    # Cross-entropy is blunt where logits are small.
    assert judged(claimed=0.8, found=0.4, shown={"margin": 0.5}).verdict == "NOT_REFUTED"


def test_symptoms_are_corrected_for_their_number():
    assert holm({"a": 0.03, "b": 0.04, "c": None}) == {"a": False, "b": False}
    assert holm({"a": 0.01, "b": 0.04}) == {"a": True, "b": True}
    assert holm({"a": 0.001, "b": 0.03, "c": 0.04}) == {"a": True, "b": False, "c": False}


def test_a_claim_of_one_step_on_a_surface_that_turns_is_masking():
    def one_step(alignment):
        honest = clean(1.0, alignment=alignment)
        claim = cell("art:fgsm", first(0.8), role="attack")
        many = cell("art:pgd", first(0.2))
        return assess("m", [honest, claim, many, cell("autoattack:square", first(0.8))], claimed=claim)

    assert (one_step(0.1).verdict, one_step(0.95).claim.status) == ("MASKED", "OVERSTATED")
    assert one_step(0.95).verdict != "MASKED"


def test_a_random_model_whose_single_gradients_disagree_is_masked_where_their_mean_gets_further():
    for coherence, verdict in ((0.1, "MASKED"), (0.95, "SUSPECT")):
        result = judged(shown={"coherence": coherence}, facts={"random": True}, extra=[cell("artq:eot", first(0.3))])
        assert (result.verdict, result.stochastic) == (verdict, True)


@pytest.mark.parametrize(
    ("coherence", "found", "params", "verdict"),
    [
        (0.5, 0.4, {}, "NOT_REFUTED"),  # a gap, and the control experiment found nothing: a weak attack
        (0.5, 0.5, {}, "NOT_REFUTED"),  # noise, and nobody gets further
        (0.95, 0.4, {}, "NOT_REFUTED"),  # a gap, and hardly any noise
        (0.5, 0.4, {"eot_iter": 16}, "NOT_REFUTED"),  # the claimed attack averages
    ],
)
def test_noise_is_settled_by_a_mean_gradient_that_finds_nothing(coherence, found, params, verdict):
    result = judged(
        found=found,
        shown={"coherence": coherence},
        facts={"random": True},
        params=params,
        extra=[cell("artq:eot", first(0.5)), cell("artq:eot", 0.0, eps=0.2, rows=range(20))],
    )
    assert result.verdict == verdict


def test_of_a_model_whose_clean_images_were_not_scored_no_accuracy_is_known():
    wrong = failed("artq:clean", role="clean")
    result = assess("m", [wrong, cell("art:pgd", 0.5)], claimed=None)
    assert (result.verdict, result.n, result.robust) == ("INVALID", 0, [])
    assert (result.clean_accuracy, result.clean_interval) == (0.0, (0.0, 1.0))
    assert "the clean images could not be scored: " in result.summary and "Boom: it failed" in result.summary
