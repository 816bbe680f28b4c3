"""The claim, what leaves no number, what is inconclusive, and the worst case, on made-up records."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import N, cell, clean, failed, fired, first, judged

from art_qplugins.diagnostics import assess
from art_qplugins.evaluation.outcome import Outcome, worst_case


def test_an_evaluation_that_cannot_count_has_no_number():
    result = judged(drop=["clean"], extra=[clean(first(0.05))])
    assert (result.verdict, result.claim.status, result.robust) == ("INVALID", "NONE", [])
    assert "chance-accuracy" in fired(result)


def test_answers_that_depend_on_the_batch_have_both_numbers():
    honest = clean(facts={"batch_dependent": 0.4}, alone=first(0.7))
    result = judged(drop=["clean"], extra=[honest])
    assert (result.verdict, result.claim.status) == ("SUSPECT", "HOLDS")
    (finding,) = (f for f in result.findings if f.id == "batch-dependence")
    assert finding.fired and "100.0 % are classified correctly in their batch, and 70.0 % alone" in finding.evidence


def test_probabilities_leave_a_number_and_a_note():
    result = judged(facts={"probabilities": True})
    assert (result.verdict, result.claim.status) == ("NOT_REFUTED", "HOLDS") and result.robust
    assert "probabilities" in fired(result)


def test_a_model_that_guesses_is_no_model():
    honest = clean(first(0.3))
    rows = [row.model_copy(update={"label": i % 3}) for i, row in enumerate(honest.samples())]
    result = judged(claimed=0.1, drop=["clean"], extra=[Outcome.from_samples(honest.cell, rows)])
    assert result.verdict == "INVALID" and "guessing" in result.summary


def test_an_honest_number_of_a_model_that_hides_gradients_holds():
    """The claimed accuracy is what is left. PGD leaves 90 points more, because cross-entropy is zero."""
    shown = {"loss": 0.0, "margin": 1e5, "gradient": 0.0}
    honest = judged(claimed=1.0, scaled=0.1, shown=shown, claimed_accuracy=0.1)
    assert (honest.verdict, honest.claim.status) == ("MASKED", "HOLDS")
    assert honest.summary.startswith("The claimed number is not too high.")
    assert "Do not train or tune against them." in honest.summary and "illusion" not in honest.summary
    wrong = judged(claimed=1.0, scaled=0.1, shown=shown)
    assert (wrong.verdict, wrong.claim.status) == ("MASKED", "OVERSTATED")
    assert wrong.summary.startswith("The claimed number is an illusion.")


@pytest.mark.parametrize("which", ["claim", "clean"])
def test_where_the_claimed_or_the_clean_cell_failed_there_is_no_number(which):
    unattacked = clean(0.9) if which == "claim" else failed("artq:clean", "clean")
    claim = failed("art:pgd", "attack") if which == "claim" else cell("art:pgd", 0.5, role="attack")
    result = assess("m", [unattacked, claim, cell("autoattack:square", 0.4)], claimed=claim)
    assert (result.verdict, result.claim.status, result.robust) == ("INVALID", "NONE", [])
    assert {f.class_ for f in result.findings} <= {"V", "M"}
    assert "Boom: it failed" in result.summary


def test_a_failed_probe_makes_silence_inconclusive():
    result = judged(extra=[failed("artq:pgd-margin")])
    assert (result.verdict, fired(result)) == ("INCONCLUSIVE", {"failed-cells"})
    assert judged(repaired=0.3, shown={"gradient": 0.0}, extra=[failed("art:fgsm")]).verdict == "MASKED"


@pytest.mark.parametrize("missing", ["scaled", "square"])
def test_a_check_that_did_not_run_makes_silence_inconclusive(missing):
    result = judged(drop=[missing])
    assert result.verdict == "INCONCLUSIVE"
    assert any(f.fired is None and "Not run" in f.evidence for f in result.findings)


def test_a_claim_that_leaves_nothing_needs_no_control():
    honest = clean(1.0)
    claim = cell("art:pgd", 0.0, role="attack")
    assert assess("m", [honest, claim], claimed=claim).verdict == "NOT_REFUTED"


@pytest.mark.parametrize("column", ["gradient", "loss"])
def test_a_probe_without_its_measurement_makes_silence_inconclusive(column):
    honest = clean(1.0)
    rows = [s.model_copy(update={"measures": {**s.measures, column: None}}) for s in honest.samples()]
    blind = Outcome.from_samples(
        honest.cell, [s.model_copy(update={"loss": None}) if column == "loss" else s for s in rows]
    )
    result = judged(drop=["clean"], extra=[blind])
    assert result.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(("n", "verdict"), [(40, "INCONCLUSIVE"), (200, "NOT_REFUTED")])
def test_few_images_are_inconclusive(n, verdict):
    assert judged(n=n).verdict == verdict


def test_without_a_claim_there_is_nothing_to_test():
    honest = clean(1.0)
    result = assess("m", [honest, cell("art:pgd", first(0.5), role="attack")], claimed=None)
    assert (result.verdict, result.claim.status) == ("INCONCLUSIVE", "NONE")
    assert result.robust[0].accuracy == 0.5


@pytest.mark.parametrize(("number", "status"), [(0.9, "OVERSTATED"), (0.5, "HOLDS"), (0.4, "HOLDS")])
def test_a_number_from_elsewhere_is_held_against_the_corrected_one(number, status):
    result = judged(claimed_accuracy=number)
    assert (result.claim.status, result.claim.accuracy, result.claim.corrected) == (status, number, 0.5)


def test_only_correct_images_count_for_a_mechanism():
    wrong = np.arange(N) >= 150  # a zero gradient there says nothing
    honest = clean(~wrong, gradient=np.where(wrong, 0.0, 0.1))
    result = judged(drop=["clean"], extra=[honest])
    assert "zero-gradient" not in fired(result)
    (finding,) = [f for f in result.findings if f.id == "zero-gradient"]
    assert finding.value == 0.0


# --- Worst cases


def test_what_a_smaller_eps_breaks_a_larger_one_breaks_too():
    """The raw accuracies go up with eps; the worst case over what is legal cannot."""
    small = cell("art:fgsm", first(0.4), eps=0.05)
    large = cell("art:pgd", first(0.7), role="attack", eps=0.1)
    honest = clean(first(0.9))
    result = assess("m", [honest, large, small], claimed=large)
    assert [(r.eps, r.accuracy) for r in result.robust] == [(0.05, 0.4), (0.1, 0.4)]
    assert result.claim.corrected == 0.4


def test_another_norm_or_a_larger_eps_does_not_count():
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
