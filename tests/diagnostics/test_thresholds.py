"""Every threshold of the diagnosis from both sides: at it, just below it, just above it. The tests are SciPy's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_up import N, cell, clean, judged
from made_up_steps import CLAIM, EVERYTHING, PLAIN, MadeUp, step_of
from scipy.stats import binomtest

from art_qplugins.diagnostics import INDICATORS
from art_qplugins.diagnostics.indicator import Measurement
from art_qplugins.diagnostics.model_records import records_of
from art_qplugins.diagnostics.thresholds import by_trying_again
from art_qplugins.diagnostics.verdict import decide, mechanisms

IMAGES = np.arange(N)


def claim(robust=100, attack="art:pgd", **more):
    """The claimed cell, which leaves the first ``robust`` images."""
    more = {"path_best": 1.0, "path_progress": 0.0, **more}
    return cell(attack, first(robust), role="attack", **more)


def first(k):
    """1 for the first k images, 0 for the others."""
    return (k > IMAGES).astype(float)


def measured(name, outcomes):
    """What an indicator measures; the second cell is claimed. Holm's correction comes later."""
    return INDICATORS[name].measure(records_of(outcomes, outcomes[1]))


def some(k, here, elsewhere):
    """``here`` on the first k images."""
    return np.where(k > IMAGES, here, elsewhere)


def below(value):
    return math.nextafter(value, -math.inf)


def above(value):
    return math.nextafter(value, math.inf)


# --- Shares and medians


def blocking(share):
    return [clean(facts={"blocking": {"layer": "a", "op": "b", "share": share}}), claim()]


def binarization(success):
    facts = {"used": 32, "success": success, "random": 0.0}
    return [clean(), claim(), cell("art:pgd", 1.0, rows=range(32), params={"check": "b"}, facts=facts)]


def l2(outcome):
    return outcome.with_cell(norm="L2")


#: An indicator, its records by a number, the nearest numbers at which it is silent and at which it fires.
EDGES = [
    ("zero-gradient", lambda k: [clean(gradient=some(k, 0.0, 0.1)), claim()], 19, 20),
    ("zero-gradient", lambda k: [clean(gradient_start=some(k, 0.0, 0.1)), claim()], 19, 20),
    ("loss-underflow", lambda k: [clean(loss=some(k, 0.0, 1e-45)), claim()], 49, 50),
    ("large-logits", lambda gap: [clean(margin=gap), claim()], 24 * np.log(2), above(24 * np.log(2))),
    ("gradient-underflow", lambda k: [clean(gradient_ratio=some(k, below(1e-6), 1e-6)), claim()], 99, 100),
    ("gradient-underflow", lambda k: [clean(gradient_ratio=some(k, below(1e-6), 1e-6)), l2(claim())], 99, 100),
    ("gradient-underflow", lambda k: [clean(gradient_l2=some(k, 0.0, 1e-45)), l2(claim())], 99, 100),
    ("blocking-operation", blocking, 0.9, above(0.9)),
    ("unfaithful-gradient", lambda v: [clean(fidelity=v, fidelity_eps=0.0), claim()], 0.7, below(0.7)),
    ("unfaithful-gradient", lambda v: [clean(fidelity=0.0, fidelity_eps=v), claim()], 0.7, below(0.7)),
    ("gradient-alignment", lambda v: [clean(alignment=v), claim()], 0.75, below(0.75)),
    ("noisy-gradient", lambda v: [clean(coherence=v), claim()], 0.9, below(0.9)),
    ("unstable-margin", lambda v: [clean(instability=v), claim()], 0.5, above(0.5)),
    ("gradient-imbalance", lambda v: [clean(imbalance=v), claim()], 5.0, above(5.0)),
    ("silent-success", lambda k: [clean(), claim(path_best=some(k, -1e-9, 0.0), margin=0.0)], 2, 3),
    ("not-converged", lambda k: [clean(), claim(N, path_progress=some(k, above(0.25), 0.25))], 180, 181),
    ("binarization", binarization, 0.8, below(0.8)),
    ("failed-transfer", lambda k: [clean(), claim(k, source="other")], 100, 101),
    ("batch-dependence", lambda v: [clean(facts={"batch_dependent": v}), claim()], 0.01, above(0.01)),
    ("eps-too-large", lambda eps: [clean(), claim(eps=eps)], below(1.0), 1.0),
]


@pytest.mark.parametrize(("name", "records", "silent", "fires"), EDGES)
def test_an_indicator_fires_on_one_side_of_its_threshold(name, records, silent, fires):
    quiet, loud = measured(name, records(silent)), measured(name, records(fires))
    assert (quiet.fired, loud.fired) == (False, True)
    assert quiet.value != loud.value


@pytest.mark.parametrize(("norm", "widest"), [("Linf", 1.0), ("L2", 8.0), ("L1", 64.0)])
def test_the_widest_eps_of_64_pixels(norm, widest):
    for eps, fired in ((below(widest), False), (widest, True)):
        assert measured("eps-too-large", [clean(), claim(eps=eps).with_cell(norm=norm)]).fired is fired


def test_only_large_steps_count_for_a_claim_of_one_step():
    """On a staircase small steps may cross no step, and FGSM takes one large one."""
    small = clean(fidelity=0.9, fidelity_eps=0.1)
    assert measured("unfaithful-gradient", [small, claim()]).fired is False
    assert measured("unfaithful-gradient", [small, claim(attack="art:fgsm")]).fired is True


def test_a_squared_norm_that_underflows_counts_in_l2_alone():
    tiny = clean(gradient_l2=0.0)
    assert measured("gradient-underflow", [tiny, claim()]).fired is False
    assert measured("gradient-underflow", [tiny, l2(claim())]).fired is True


@pytest.mark.parametrize("classes", [2, 10])
def test_an_accuracy_is_held_against_guessing_by_the_exact_test(classes):
    seen = set()
    for k in range(N // classes, N // classes + 40):
        honest = clean(first(k))
        honest = replace(honest, columns={**honest.columns, "label": IMAGES % classes})
        p = binomtest(k, N, 1 / classes, alternative="greater").pvalue
        assert measured("chance-accuracy", [honest, claim(0)]).fired is bool(p > 0.05), k
        seen.add(p > 0.05)
    assert seen == {True, False}


# --- Symptoms that are tests


def pair(weaker, attack, **more):
    """b more images broken, of those that the claim leaves."""
    return lambda b: [clean(), claim(), *weaker, cell(attack, first(100 - b), **more)]


COUNTS = {
    "one-step-beats-many": pair([], "torchattacks:fgsm"),
    "more-steps": pair([], "artq:apgd-margin", params={"max_iter": 50}),
    "another-start": pair([], "artq:apgd-margin", params={"restart": 1}),
    "targeted-attack": pair([], "artq:multi-targeted"),
    "accuracy-rises-with-eps": lambda b: [clean(), claim(100 + b), cell("art:pgd", first(100), eps=0.05)],
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_p_value_of_a_count_is_scipys(name):
    fired = set()
    for b in range(15):
        found = measured(name, COUNTS[name](b))
        expected = binomtest(b, N, 0.02, alternative="greater").pvalue
        assert found.p_value == pytest.approx(expected, rel=1e-9), b
        assert found.fired is bool(expected < 0.05), b
        fired.add(found.fired)
    assert fired == {True, False}


@pytest.mark.parametrize("classes", [2, 10])
def test_the_p_value_of_an_unbounded_attack_is_scipys(classes):
    honest = clean()
    honest = replace(honest, columns={**honest.columns, "label": IMAGES % classes})
    fired = set()
    for robust in range(50):
        unbounded = cell("artq:apgd-margin", (np.arange(50) < robust).astype(float), eps=0.5, rows=range(50))
        found = measured("unbounded-attack-fails", [honest, claim(), unbounded])
        expected = binomtest(robust, 50, 1 / classes + 0.05, alternative="greater").pvalue
        assert found.p_value == pytest.approx(expected, rel=1e-9), robust
        fired.add(found.fired)
    assert fired == {True, False}


# --- Control experiments


def against(weaker, attack, **more):
    """b images of the first half are broken by an attack, and by none of the claim and ``weaker``."""
    return lambda b: [clean(), claim(), *weaker, cell(attack, first(100 - b), **more)]


ORDINARY = cell("art:pgd", first(100), params={"max_iter": 20})
#: By control: its threshold beyond what trying again breaks, and its records by the number of newly broken images.
GAPS = {
    "logit-scale": (0.02, against([], "art:pgd", params={"temperature": 3.0})),
    "surrogate-gradient": (0.05, against([], "artq:surrogates")),
    "mean-gradient": (0.05, against([], "artq:eot")),
    "black-box-search": (0.05, against([], "autoattack:square")),
    "transfer": (0.05, against([], "art:pgd", source="other")),
    "single-step": (
        0.02,
        lambda b: [clean(), claim(attack="art:fgsm"), cell("art:mifgsm", first(100 - b))],
    ),
    "misled-loss": (0.25, against([ORDINARY], "artq:apgd-margin")),
}


@pytest.mark.parametrize("name", GAPS)
def test_a_control_needs_a_gap_beyond_what_trying_again_breaks_and_a_test(name):
    threshold, records = GAPS[name]
    assert INDICATORS[name].threshold == threshold
    fired, again = set(), by_trying_again(1)
    for b in range(1, 70):
        rare = binomtest(b, N, again, alternative="greater").pvalue < 0.05
        found = measured(name, [clean(facts={"random": name == "mean-gradient"}), *records(b)[1:]])
        assert found.fired is bool(b / N > again + threshold and rare), b
        assert found.value == pytest.approx(b / N)
        if found.broke is not None:
            assert found.broke.sum() == b
        fired.add(found.fired)
    assert fired == {True, False}


@pytest.mark.parametrize("n", [100, 200, 1000, 5000])
@pytest.mark.parametrize(("share", "fired"), [(0.04, False), (0.08, True)])
def test_a_control_has_the_same_answer_at_every_number_of_images(n, share, fired):
    def some_of(left):
        return (np.arange(n) < round(left * n)).astype(float)

    claimed = cell("art:pgd", some_of(0.5), role="attack", n=n)
    outcomes = [clean(n=n), claimed, cell("autoattack:square", some_of(0.5 - share), n=n)]
    assert measured("black-box-search", outcomes).fired is fired


def test_a_control_that_tries_more_often_is_held_against_more_tries():
    tries = [by_trying_again(t) for t in (0, 1, 2, 4, 8, 16, 1000)]
    assert tries == sorted(tries) and tries[0] == tries[1] > 0 and tries[-1] == tries[-2] > tries[0]
    n, gap = 2000, 0.05 + (tries[0] + tries[-1]) / 2

    def some_of(share):
        return (np.arange(n) < round(share * n)).astype(float)

    claimed = cell("art:pgd", some_of(0.5), role="attack", n=n)
    once = cell("artq:surrogates", some_of(0.5 - gap), n=n)
    often = replace(once, cell=once.cell.model_copy(update={"backward_samples": 20 * 16 * n}))
    assert measured("surrogate-gradient", [clean(n=n), claimed, once]).fired is True
    assert measured("surrogate-gradient", [clean(n=n), claimed, often]).fired is False


def test_other_attacks_contradict_a_claim_from_two_points_on():
    for b in range(1, 10):
        found = measured("attack-gap", against([], "artq:apgd-margin")(b))
        assert found.fired is bool(b / N > 0.02), b


def test_cross_entropy_that_is_nearly_flat_misleads_nobody():
    for gap, fired in ((below(1.0), False), (1.0, True)):
        records = [clean(margin=gap), *GAPS["misled-loss"][1](80)[1:]]
        assert measured("misled-loss", records).fired is fired


# --- The verdict


def ended(share, control="logit-scale"):
    """A mechanism on this share of 8 newly broken images: how it ends."""
    nothing = {name: Measurement(False, None, "") for name in INDICATORS}
    broke = IMAGES < 8
    mechanism = Measurement(True, 1.0, "", present=8 * share > IMAGES)
    fired = Measurement(True, 1.0, "", broke=broke)
    (found,) = mechanisms({**nothing, "gradient-underflow": mechanism, control: fired})
    return found.end, found.control


def test_a_mechanism_explains_if_it_is_on_half_of_the_images_that_broke():
    assert ended(3 / 8) == ("apart", "logit-scale")
    assert ended(4 / 8) == ("proved", "logit-scale")
    assert ended(8 / 8, control="transfer") == ("settled", "logit-scale")  # the control experiment of another mechanism


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.0, 0.2), "NOT_REFUTED"), ((0.0, above(0.2)), "INCONCLUSIVE"), ((0.5, 0.5), "NOT_REFUTED")],
)
def test_an_interval_of_more_than_ten_points_to_either_side_is_inconclusive(interval, verdict):
    silent = {name: Measurement(False, 0.0, "") for name in INDICATORS}
    assert decide(silent, [], interval=interval) == verdict


def test_a_number_from_elsewhere_is_overstated_from_above_the_interval():
    high = judged(claimed_accuracy=0.5).claim.interval[1]
    for number, status in ((high - 1e-9, "HOLDS"), (high + 1e-9, "OVERSTATED"), (0.52, "HOLDS")):
        found = judged(claimed_accuracy=number).claim
        assert found.status == status, number
        low, up = found.overstated_interval
        assert low < found.overstated_by < up
        assert (low, up) == pytest.approx((number - found.interval[1], number - found.interval[0]))


def test_a_number_from_elsewhere_within_two_points_holds_at_every_number_of_images():
    assert judged(n=5000, claimed_accuracy=0.519).claim.status == "HOLDS"
    assert judged(n=5000, claimed_accuracy=0.53).claim.status == "OVERSTATED"


def test_a_claim_of_its_own_is_judged_on_the_same_images_and_not_by_intervals():
    """Five points are inside the interval of either accuracy, and no image was broken by chance."""
    result = judged(claimed=0.5, found=0.44)
    assert result.claim.status == "OVERSTATED" and result.claim.interval[1] > 0.5
    low, high = result.claim.overstated_interval
    assert 0 < low < result.claim.overstated_by < high


def test_a_loss_of_zero_is_not_settled_where_the_logits_were_not_divided():
    outcomes = {"shown": {"loss": 0.0, "margin": 9.0}, "found": 0.5}
    assert judged(**outcomes).verdict == "NOT_REFUTED"
    assert judged(**outcomes, drop=["scaled"]).verdict == "SUSPECT"


@pytest.mark.parametrize("name", [i.name for i in INDICATORS.values() if i.decides.required])
def test_silence_without_a_required_indicator_is_inconclusive(name):
    silent = {other: Measurement(False, 0.0, "") for other in INDICATORS}
    unknown = {**silent, name: Measurement(None, None, "")}
    assert decide(silent, [], interval=(0.5, 0.6)) == "NOT_REFUTED"
    assert decide(unknown, [], interval=(0.5, 0.6)) == "INCONCLUSIVE"


def test_a_random_models_image_counts_from_half_of_its_draws():
    """Newly broken: at least half of the draws were right before, fewer are after. Correct when clean: at least half."""
    before, after = [0.5, 0.5, 0.45, 1.0], [0.45, 0.5, 0.0, 0.0]
    honest = clean([0.5, 1.0, 0.45, 1.0], n=4)
    claimed = cell("art:pgd", before, n=4, role="attack")
    found = measured("attack-gap", [honest, claimed, cell("artq:eot", after, n=4)])
    assert found.broke.tolist() == [True, False, False, True]
    assert records_of([honest, claimed], claimed).correct.tolist() == [True, True, False, True]


# --- Steps


def steps(known=PLAIN, *, measures=(), facts=(), margin=None, claim=CLAIM, n=60, broken=()):
    """The cells that a diagnosis asks for, by step, and why the others did not run."""
    shown = {"measures": {**known["measures"], **dict(measures)}, "facts": {**known["facts"], **dict(facts)}}
    made = MadeUp({"claim": set(broken)}, n=n, **shown, margin=known["margin"] if margin is None else margin)
    _, records = made.diagnose(level=3)
    asked = {}
    for spec in made.asked:
        asked.setdefault(step_of(spec), []).append(spec)
    return asked, {record.id: record.reason for record in records}


@pytest.mark.parametrize(
    ("gap", "gaps"), [(7.5, None), (above(7.5), [5.0, 1.0]), (10.0, [5.0, 1.0]), (1e4, [5.0, 1.0])]
)
def test_logits_are_rescaled_where_their_gap_is_large_or_small(gap, gaps):
    asked, why = steps(margin=gap)
    assert [spec.gap for spec in asked.get("scale", [])] == (gaps or [])
    assert ("rescaled" in asked) is (gap > 7.5)
    assert ("neither large nor small" in why["scale"]) is (gaps is None)


@pytest.mark.parametrize(("gap", "gaps"), [(7.0, []), (10.0, [5.0, 1.0])])
def test_a_gradient_that_loses_its_direction_is_multiplied(gap, gaps):
    asked, _ = steps(margin=gap, facts={"gradient_scale": 2.0**60})
    assert [spec.gap for spec in asked["scale"]] == [*gaps, None]
    assert [spec.gradient_scale for spec in asked["scale"]] == [*(None for _ in gaps), 2.0**60]


@pytest.mark.parametrize(
    ("measures", "runs"),
    [
        ({"fidelity": 0.8, "alignment": 0.75}, False),
        ({"fidelity": below(0.8), "alignment": 0.75}, True),
        ({"fidelity": 0.8, "alignment": below(0.75)}, True),
    ],
)
def test_surrogates_are_tried_where_the_gradient_is_not_faithful(measures, runs):
    asked, _ = steps(measures=measures)
    assert ("surrogates" in asked) is runs


@pytest.mark.parametrize(("coherence", "draws"), [(0.8, None), (below(0.8), 8)])
def test_eot_takes_eight_draws_where_single_gradients_disagree(coherence, draws):
    asked, _ = steps(EVERYTHING, measures={"coherence": coherence})
    assert [spec.options["eot_iter"] for spec in asked["averaging"]] == [draws]


@pytest.mark.parametrize(("n", "few", "tested"), [(40, 40, 32), (51, 50, 32), (30, 30, 30)])
def test_no_more_images_than_needed_test_the_attack(n, few, tested):
    asked, _ = steps(n=n)
    (unbounded,), (binarization,) = asked["unbounded"], asked["binarization"]
    assert len(unbounded.rows) == few and unbounded.eps == 0.5
    assert len(binarization.rows if binarization.rows is not None else range(n)) == tested
