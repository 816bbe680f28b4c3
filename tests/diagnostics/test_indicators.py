"""Every indicator: what it must always keep to, and planted failures that it must find beside their healthy twins.

Those that decide the verdict together are planted in ``test_verdict.py``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up import FACTS, HEALTHY, N, cell, clean, failed, first

from art_qplugins.diagnostics import INDICATORS, RULES, Rule, assess
from art_qplugins.diagnostics.measurements import findings_of, measure_all
from art_qplugins.diagnostics.model_records import records_of
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Finding


def claim(correct=0.5, *, n=N, **more):
    """The claimed cell, by PGD that converged."""
    more = {"path_best": 1.0, "path_progress": 0.0, **more}
    return cell("art:pgd", first(correct, n) if np.isscalar(correct) else correct, role="attack", n=n, **more)


# --- Contract


def test_ids_titles_and_formulas_tell_indicators_apart():
    assert len(INDICATORS) == len({i.help for i in INDICATORS.values()})
    assert {i.class_ for i in INDICATORS.values()} == set("PMSV")


@pytest.mark.parametrize("indicator", INDICATORS.values(), ids=lambda i: i.name)
def test_every_indicator_says_what_a_reader_has_to_know(indicator):
    for text in ("name", "help", "formula", "cost", "shows", "shows_not", "source", "mitigation"):
        assert getattr(indicator, text).strip(), text
    assert indicator.shows.endswith(".") and indicator.shows_not.endswith(".") and indicator.mitigation.endswith(".")
    assert math.isfinite(indicator.threshold)
    controls = indicator.decides.controls
    assert {INDICATORS[control].class_ for control in controls} <= {"P"}
    assert controls or indicator.class_ != "M"
    assert indicator.group in (None, "claimed attack") and (indicator.group is None or indicator.class_ == "S")


def test_every_rule_is_that_of_an_indicator_and_about_twenty_decide_something():
    assert set(RULES) <= set(INDICATORS)
    assert all(rule != Rule() or INDICATORS[name].class_ == "P" for name, rule in RULES.items())


def blank(outcome):
    """The same cell, of whose images nothing is known but the answers."""
    samples = [s.model_copy(update={"margin": None, "loss": None, "measures": {}}) for s in outcome.samples()]
    return Outcome.from_samples(outcome.cell.model_copy(update={"facts": {}}), samples)


#: Along the model's gradient, along others, along means, without any; of one step, of several libraries.
KINDS = (
    *("art:fgsm", "art:mifgsm", "torchattacks:pgd", "autoattack:standard", "artq:multi-targeted", "artq:rescaled"),
    *("artq:surrogates", "artq:full-precision", "artq:bits", "artq:joint", "artq:eot", "torchattacks:eotpgd"),
    *("autoattack:square", "art:square"),
)


def partly():
    """Attacks of every kind, each on some of the images only."""
    cells = [cell(a, 0.0, rows=[i, i + 3, i + 50]) for i, a in enumerate(KINDS)]
    more = [
        cell("art:pgd", 0.0, rows=[7], params={"temperature": 9.0}),
        cell("art:pgd", 0.0, rows=[60], source="other"),
        cell("artq:apgd-margin", 0.0, rows=[61], params={"max_iter": 50}),
        cell("artq:apgd-margin", [0.0, 1.0], rows=[62, 2], params={"restart": 1}),
        cell("artq:apgd-margin", 1.0, rows=[2, 3], eps=0.5),
        cell("art:pgd", 0.0, role="attack", eps=0.05),
        cell("art:pgd", 1.0, rows=[2, 3], params={"check": "binarization"}, facts={"used": 0, "success": None}),
        failed("art:fgsm"),
    ]
    return [clean(), claim(), *cells, *more]


CASES = {
    "healthy": lambda: [clean(), claim()],
    "nothing measured": lambda: [blank(clean()), blank(claim())],
    "nothing finite": lambda: [
        clean(**dict.fromkeys([*HEALTHY, "margin", "loss"], np.nan)),
        claim(margin=np.inf, path_best=np.nan, path_progress=np.nan),
    ],
    "all wrong": lambda: [clean(0.0), claim(0.0)],
    "all wrong, nothing measured": lambda: [blank(clean(0.0)), blank(claim(0.0))],
    "one image": lambda: [clean(n=1), claim(1.0, n=1)],
    "one wrong image": lambda: [clean(0.0, n=1), claim(0.0, n=1)],
    "partly attacked": partly,
    "partly attacked, nothing measured": lambda: [blank(o) if o.ok else o for o in partly()],
    "shares of draws": lambda: [clean(0.97), claim(np.linspace(0, 0.9, N)), cell("artq:eot", np.linspace(0, 0.5, N))],
    "zeros": lambda: [clean(**dict.fromkeys([*HEALTHY, "margin", "loss"], 0.0)), claim(margin=0.0)],
    "facts that could not be found": lambda: [
        clean(facts={**dict.fromkeys(FACTS), "skipped": {"batch_dependent": "RuntimeError: Boom"}}),
        claim(),
    ],
}


@pytest.mark.parametrize("which", CASES)
def test_no_record_is_so_odd_that_an_indicator_raises(which):
    outcomes = CASES[which]()
    records = records_of(outcomes, outcomes[1])
    for indicator in INDICATORS.values():
        measurement = indicator.measure(records)
        finding = indicator.finding(measurement)
        context = f"{indicator.name} on {which}: {measurement}"
        assert finding.fired in (True, False, None), context
        assert finding.value is None or math.isfinite(finding.value), context
        assert finding.p_value is None or 0 <= finding.p_value <= 1, context
        assert not finding.evidence[0].islower() and finding.evidence.endswith(".") and "nan" not in finding.evidence, (
            context
        )
        assert finding.fired is not None or finding.evidence.startswith("Not "), context
        for images in (measurement.present, measurement.broke):
            assert images is None or (images.shape == (records.n,) and images.dtype == bool), context
        assert Finding.model_validate_json(finding.model_dump_json(by_alias=True)) == finding


@pytest.mark.parametrize("which", ["nothing measured", "nothing finite"])
def test_what_was_not_measured_is_not_said_to_be_healthy(which):
    outcomes = CASES[which]()
    measurements = measure_all(records_of(outcomes, outcomes[1]))
    assert {
        i
        for i in (
            "zero-gradient",
            "loss-underflow",
            "gradient-underflow",
            "unfaithful-gradient",
            "noisy-gradient",
            "gradient-alignment",
            "gradient-imbalance",
            "unstable-margin",
            "silent-success",
            "not-converged",
        )
        if measurements[i].fired is not None
    } <= ({"loss-underflow"} if which == "nothing measured" else set())


def test_a_healthy_model_fires_nothing():
    outcomes = CASES["healthy"]()
    measurements = measure_all(records_of(outcomes, outcomes[1]))
    assert not [name for name, m in measurements.items() if m.fired]


# --- Planted failures, each with its healthy twin

AGAIN = {"max_iter": 20}


def unlimited(correct):
    return cell("artq:apgd-margin", correct, eps=0.5, rows=range(50))


PLANTED = {
    "one-step-beats-many": ([claim(), cell("art:fgsm", first(0.3))], [claim(), cell("art:fgsm", first(0.6))]),
    "unbounded-attack-fails": ([claim(), unlimited(1.0)], [claim(), unlimited(0.0)]),
    "accuracy-rises-with-eps": (
        [claim(0.5), cell("art:pgd", first(0.3), role="attack", eps=0.05)],
        [claim(0.5), cell("art:pgd", first(0.8), role="attack", eps=0.05)],
    ),
    "more-steps": (
        [claim(), cell("artq:apgd-margin", first(0.3), params={"max_iter": 50})],
        [claim(), cell("artq:apgd-margin", first(0.49), params={"max_iter": 50})],
    ),
    "another-start": (
        [claim(), cell("artq:apgd-margin", first(0.3), params={"restart": 1})],
        [claim(), cell("artq:apgd-margin", first(0.3)), cell("artq:apgd-margin", first(0.3), params={"restart": 1})],
    ),
    "targeted-attack": (
        [claim(), cell("artq:multi-targeted", first(0.3))],
        [claim(), cell("artq:apgd-margin", first(0.3)), cell("artq:multi-targeted", first(0.3))],
    ),
    "unstable-margin": ([clean(instability=0.8), claim()], [clean(instability=0.2), claim()]),
    "gradient-imbalance": ([clean(imbalance=20.0), claim()], [clean(imbalance=2.0), claim()]),
    "silent-success": (
        [claim(path_best=np.where(np.arange(N) < 5, -1.0, 1.0))],
        # Adversarial iterates, and what came back is adversarial too.
        [claim(path_best=np.where(np.arange(N) < 5, -1.0, 1.0), margin=np.where(np.arange(N) < 5, -1.0, 1.0))],
    ),
    "not-converged": (
        [claim(path_progress=np.where(first(0.5), 0.5, 0.0))],
        [claim(path_progress=np.where(first(0.5), 0.0, 0.5))],  # only those that it breaks anyway
    ),
    "binarization": (
        [
            claim(),
            cell(
                "art:pgd", 1.0, rows=range(32), params={"check": "b"}, facts={"used": 32, "success": 0.3, "random": 0}
            ),
        ],
        [
            claim(),
            cell(
                "art:pgd", 1.0, rows=range(32), params={"check": "b"}, facts={"used": 32, "success": 1.0, "random": 0}
            ),
        ],
    ),
    "failed-transfer": ([claim(0.9, source="other")], [claim(0.2, source="other")]),
    "gradient-underflow": ([clean(gradient_ratio=1e-9), claim()], [clean(gradient_ratio=1e-3), claim()]),
    "blocking-operation": (
        [clean(facts={"blocking": {"layer": "act", "op": "RoundBackward0", "share": 1.0}}), claim()],
        [clean(facts={"blocking": {"layer": "act", "op": "ReluBackward0", "share": 0.5}}), claim()],
    ),
    "unfaithful-gradient": (
        [clean(fidelity=0.1, fidelity_eps=0.1), claim()],
        [clean(fidelity=0.1, fidelity_eps=0.9), claim()],
    ),
    "gradient-alignment": ([clean(alignment=0.1), claim()], [clean(alignment=0.9), claim()]),
    "noisy-gradient": ([clean(coherence=0.1), claim()], [clean(coherence=0.9), claim()]),
    "no-gradient": ([clean(facts={"reaches_pixels": False, "ends_at": "detach"}), claim()], [claim()]),
    "failed-cells": ([claim(), failed("art:fgsm")], [claim()]),
    "no-answer": ([claim(), failed("art:fgsm").with_cell(raised=True)], [claim(), failed("art:fgsm")]),
    "changing-answers": (
        [claim(), cell("art:fgsm", 0.5).with_cell(drift=0.02)],
        [claim(), cell("art:fgsm", 0.5).with_cell(drift=0.005)],
    ),
    "adapted-model": ([clean(facts={"adapted": ["is asked image by image"]}), claim()], [claim()]),
    "idle-attack": (
        [claim(), cell("art:bim", 1.0, visited=False, distance=0.0)],
        [claim(), cell("art:bim", 1.0, visited=False, distance=0.05), cell("art:deepfool", 1.0, distance=0.0)],
    ),
    "undefined-path": ([claim(undefined=7)], [claim(undefined=0)]),
    "other-options": (
        [claim(), cell("art:bim", 1.0, role="attack", params={"max_iter": 2})],
        # More effort, and a choice of the diagnosis.
        [
            claim(),
            cell("art:bim", 1.0, role="attack", params={"max_iter": 200}),
            cell("art:bim", 1.0, params={"max_iter": 2}),
        ],
    ),
    "deployed-model": ([clean(facts={"deployed": ["answers through a file"]}), claim()], [clean(), claim()]),
    "twin-parity": (
        [clean(agrees=first(0.99)), claim(agrees=1.0)],
        [clean(agrees=first(0.995)), claim(agrees=first(0.99))],
    ),
    "chance-accuracy": ([clean(first(0.12)), claim(0.1)], [clean(first(0.4)), claim(0.1)]),
    "batch-dependence": (
        [clean(facts={"batch_dependent": 0.4}), claim()],
        [clean(facts={"batch_dependent": 1e-6}), claim()],
    ),
    "stateful-model": (
        [clean(facts={"stateful": ["norm.running_mean"]}), claim()],
        [clean(facts={"stateful": []}), claim()],
    ),
    "probabilities": ([clean(facts={"probabilities": True}), claim()], [claim()]),
    "test-time-optimisation": ([clean(facts={"dynamic": True}), claim()], [claim()]),
    "random-model": ([clean(facts={"random": True}), claim()], [claim()]),
}


def found(name, outcomes):
    known = outcomes if outcomes[0].cell.role == "clean" else [clean(), *outcomes]
    return findings_of(measure_all(records_of(known, known[1])))[name]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_found_and_its_healthy_twin_is_not_accused(name):
    planted, healthy = PLANTED[name]
    yes, no = found(name, planted), found(name, healthy)
    assert (yes.fired, no.fired) == (True, False), (yes.evidence, no.evidence)
    if yes.p_value is not None:
        assert yes.p_value < 0.05 <= no.p_value
    assert yes.evidence != no.evidence


def test_a_model_that_rejects_whatever_is_far_from_the_data_is_not_accused_of_it():
    outcomes = [clean().with_cell(rejected=0.0), claim(), unlimited(1.0)]
    measurement = INDICATORS["unbounded-attack-fails"].measure(records_of(outcomes, outcomes[1]))
    assert measurement.answer == "does not apply" and "by rejecting" in measurement.evidence


def test_a_gradient_that_points_elsewhere_times_a_factor_underflows():
    yes, no = (found("gradient-underflow", [clean(facts={"gradient_scale": s}), claim()]) for s in (2.0**60, None))
    assert (yes.fired, no.fired) == (True, False) and "multiplied by 1.15e+18" in yes.evidence


def test_the_claimed_attack_with_its_gradient_times_a_factor_is_a_control():
    again = cell("art:pgd", 0.0, params={"gradient_scale": 2.0**60})
    measured = found("logit-scale", [clean(facts={"gradient_scale": 2.0**60}), claim(), again])
    assert measured.fired and measured.evidence.startswith("A gradient times 1.15e+18")


def test_a_search_has_no_gradient_to_multiply():
    search = cell("autoattack:square", 0.5, role="attack")
    assert found("logit-scale", [clean(facts={"gradient_scale": 2.0**60}), search]).answer == "does not apply"


def test_an_attack_that_has_no_image_to_move_is_not_idle():
    wrong = [clean(0.0), cell("art:bim", 0.0, role="attack", visited=False, distance=0.0)]
    records = records_of(wrong, wrong[1])
    assert INDICATORS["idle-attack"].measure(records).fired is False


def test_of_old_records_it_is_not_known_whether_an_attack_did_nothing():
    old = [clean(), cell("art:bim", 1.0, role="attack", visited=None, distance=0.0)]
    for name in ("idle-attack", "undefined-path"):
        assert INDICATORS[name].measure(records_of(old, old[1])).fired is None


def test_an_attack_that_did_nothing_is_told_where_nothing_is_claimed():
    result = assess("m", [clean(), cell("art:bim", 1.0, visited=False, distance=0.0)], claimed=None)
    assert [f.id for f in result.findings] == ["idle-attack"]


def test_the_images_that_a_mechanism_is_at_work_on_are_named():
    odd = np.arange(N) < 0.4 * N
    outcomes = [clean(gradient_ratio=np.where(odd, 1e-9, 0.5)), claim()]
    measurements = measure_all(records_of(outcomes, outcomes[1]))
    np.testing.assert_array_equal(measurements["gradient-underflow"].present, odd)
    assert measurements["gradient-underflow"].value == pytest.approx(0.4)


def test_an_attack_health_is_not_judged_from_what_a_random_model_passed_on_its_way():
    outcomes = [clean(facts={"random": True}), claim(path_best=-1.0)]
    assert found("silent-success", outcomes).fired is False


def test_a_claim_that_was_crafted_on_the_model_itself_is_no_failed_transfer():
    assert found("failed-transfer", [claim(1.0)]).fired is False
