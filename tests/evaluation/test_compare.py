"""Paired tests against SciPy, by simulation, and on records made by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from art_qplugins.errors import InputError
from art_qplugins.evaluation.compare import compare, differences
from art_qplugins.evaluation.outcome import outcomes_of
from art_qplugins.evaluation.records import Cell, Claim, Environment, ModelResult, Results, Sample
from art_qplugins.evaluation.significance import clustered_bootstrap, holm, mcnemar, paired_test

# --- Arrays


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 5), (10, 2), (0, 8), (40, 60)])
def test_mcnemar_is_the_binomial_test_on_what_differs(only_first, only_second):
    first = [1] * 7 + [0] * 3 + [1] * only_first + [0] * only_second
    second = [1] * 7 + [0] * 3 + [0] * only_first + [1] * only_second
    found = mcnemar(first, second)
    expected = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert found == (pytest.approx(expected), only_first, only_second)
    assert paired_test(first, second) == found.p_value
    assert mcnemar(second, first).p_value == pytest.approx(found.p_value)


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="same images"):
        mcnemar([1, 0], [1])
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.5, 1], [0, 1])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_share_is_refused(odd):
    """NaN is more than nothing and less than nothing: a test of it would find no difference, or the largest."""
    good, bad = [1.0, 0.5, 0.0], [1.0, odd, 0.0]
    for test in (mcnemar, paired_test, clustered_bootstrap):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match="1 of 3 values are not in"):
                test(*pair)
    for p_values in ([0.5, odd], [odd]):
        with pytest.raises(ValueError, match="p values are in"):
            holm(p_values)


def test_no_images_are_no_test():
    for test in (mcnemar, paired_test, clustered_bootstrap):
        with pytest.raises(ValueError, match="values are not in"):
            test([], [])


def test_flipping_signs_agrees_with_mcnemar_where_both_apply():
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 200)) < [[0.8], [0.7]]).astype(float)
    halved = paired_test(first / 2, second / 2)  # the same question, no longer 0 or 1
    assert halved == pytest.approx(mcnemar(first, second).p_value, abs=0.02)


def test_replicates_are_no_further_images():
    """100 images seen by 20 seeds that agree: as if by one. Counted as 2000 images, nothing would look like much."""
    rng = np.random.default_rng(1)
    first, second = (rng.random((2, 100)) < [[0.6], [0.5]]).astype(float)
    once, often = clustered_bootstrap(first, second), clustered_bootstrap(np.tile(first, (20, 1)), second[None])
    assert once == pytest.approx(often)
    naive = clustered_bootstrap(np.tile(first, 20), np.tile(second, 20))
    assert naive[1] - naive[0] < 0.4 * (once[1] - once[0])
    assert paired_test(np.tile(first, (20, 1)), second) == paired_test(first, second)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(200):
        image = rng.random(80)  # how hard an image is, for every seed and both models
        first = rng.random((3, 80)) < np.clip(image + 0.1, 0, 1)
        second = rng.random((3, 80)) < image
        truth = float((np.clip(image + 0.1, 0, 1) - image).mean())
        low, high = clustered_bootstrap(first, second, resamples=400)
        inside.append(low <= truth <= high)
    assert 0.88 <= np.mean(inside) < 0.99


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_ends_at_the_quantiles_of_its_confidence(confidence):
    rng = np.random.default_rng(7)
    first, second = rng.random((2, 2000))
    low, high = clustered_bootstrap(first, second, confidence=confidence)
    error = (first - second).std() / 2000**0.5
    ends = np.array([low, high]) - (first - second).mean()
    np.testing.assert_allclose(ends / error, norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2]), atol=0.2)


def test_a_p_value_of_sign_flips_is_never_0_and_counts_the_flips_that_are_as_extreme():
    first, second = np.full(60, 0.9), np.full(60, 0.2)
    assert paired_test(first, second, flips=99) == paired_test(second, first, flips=99) == 1 / 100
    assert paired_test([0.7], [0.2], flips=99) == 1.0  # either sign of one difference is as extreme
    # Of the 8 signs of 0.1, 0.2 and 0.3, two give 0.6 or -0.6, although their sums round differently.
    for first, share in (([0.1, 0.2, 0.3], 2 / 8), ([0.3, 0.2, -0.1], 4 / 8)):
        assert paired_test(np.array(first) / 2 + 0.4, [0.4] * 3) == pytest.approx(share, abs=0.025)
    # 12 of the 16 signs of 0.1, 0.2, 0.3 and 0.3 give at least 0.3, some of them a rounding error less.
    assert paired_test([0.1, 0.2, 0.3, 0], [0, 0, 0, 0.3]) == pytest.approx(12 / 16, abs=0.025)
    assert paired_test([0.4, 0.5, 0.5], [0.5, 0.4, 0.5], flips=99) == 1.0
    assert paired_test([0.3, 0.5], [0.3, 0.5]) == 1.0


def test_no_difference_is_found_about_one_time_in_twenty():
    rng = np.random.default_rng(3)
    p = [paired_test(*rng.random((2, 60)).round(1), flips=199) for _ in range(300)]
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.1


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm(p, expected):
    np.testing.assert_allclose(holm(p), expected)


# --- Records


@dataclass(frozen=True)
class Run:
    results: Results
    samples: dict[str, list[Sample]]


def run(models, *, ids=None, sha="abc", replicate_of=None, baseline=None, limit=None, probes=()):
    """models: name -> {eps: correct}; eps 0 is the clean cell; a tuple (rows, correct) attacks some images.

    :param limit: of the attacks on some images.

    :param probes: values of eps that the diagnosis chose.
    """
    n = len(next(iter(models.values()))[0])
    ids = ids or [f"i{i}" for i in range(n)]
    cells, samples, results = [], {}, []
    for name, by_eps in models.items():
        for eps, given in by_eps.items():
            rows, correct = given if isinstance(given, tuple) else (None, given)
            about = {"accuracy": float(np.mean(correct)), "interval": (0, 1), "status": "success", "params": {}}
            about |= {"forward_samples": 0, "backward_samples": 0, "seconds": 0, "n": len(correct), "seed": 0}
            about |= {"rows": rows, "of": None if rows is None else n, "limit": None if rows is None else limit}
            role = "clean" if not eps else "probe" if eps in probes else "attack"
            cell = Cell(
                id=f"{name}-{eps}", model=name, source=name, attack="a", role=role, norm="Linf", eps=eps, **about
            )
            cells.append(cell)
            samples[cell.id] = [
                Sample(
                    cell=cell.id,
                    sample=ids[row],
                    label=0,
                    prediction=0,
                    correct=c,
                    selection=c,
                    distance=0,
                    margin=None,
                    loss=None,
                )
                for row, c in zip(rows or range(n), correct, strict=True)
            ]
        results.append(
            ModelResult(
                name=name,
                description="",
                stochastic=False,
                clean_accuracy=0,
                clean_interval=(0, 1),
                n=n,
                robust=[],
                verdict="INCONCLUSIVE",
                summary="",
                claim=Claim(status="NONE"),
                findings=[],
            )
        )
    known = {"replicate_of": replicate_of or {}, "baseline": baseline or {}}
    spec = {"resolved": {"models": [{"name": m, **{key: of.get(m) for key, of in known.items()}} for m in models]}}
    environment = Environment(packages={}, python="", platform="", device="", git=None)
    data = {"name": "d", "sha256": sha}
    return Run(
        Results(
            status="success",
            created="",
            spec=spec,
            data=data,
            environment=environment,
            models=results,
            cells=cells,
        ),
        samples,
    )


CLEAN = [1] * 20


def against_baselines(models, **more):
    made = run(models, **more)
    return differences(made.results, outcomes_of(made.results, made.samples))


def test_a_model_is_compared_with_its_baseline_in_the_worst_case_and_with_holm():
    strong, weak = [1] * 16 + [0] * 4, [1] * 4 + [0] * 16
    models = {"a": {0: CLEAN, 0.1: strong}, "b": {0: CLEAN, 0.1: ([0, 1, 2, *range(5, 20)], [1] * 3 + [0] * 15)}}
    rows = {r.metric: r for r in against_baselines(models | {"c": models["a"]}, baseline={"b": "a"})}
    assert rows["clean_accuracy"].difference == 0 and rows["clean_accuracy"].p_value == 1
    robust = rows["robust_accuracy"]
    # images 3 and 4 were not attacked on b: its clean answer stands for them
    assert (robust.first, robust.first_accuracy, robust.second, robust.second_accuracy) == ("a", 0.8, "b", 0.25)
    assert robust.p_value == pytest.approx(binomtest(0, 11).pvalue)
    assert robust.p_holm == pytest.approx(2 * robust.p_value) and robust.significant
    assert robust.difference == pytest.approx(-0.55)
    assert robust.interval[0] < robust.difference < robust.interval[1] < 0
    other = {"a": {0: CLEAN, 0.1: strong}, "b": {0: CLEAN, 0.2: weak}}
    assert [r.eps for r in against_baselines(other, baseline={"b": "a"})] == [None]
    assert against_baselines(models) == []


def test_only_values_of_eps_that_the_recipe_asked_for_are_compared():
    """A probe may have an unbounded eps. At a smaller one its images count."""
    models = {m: {0: CLEAN, 0.05: [0] * 5 + [1] * 15, 0.1: [1] * 12 + [0] * 8, 0.5: [0] * 20} for m in "ab"}
    rows = against_baselines(models, baseline={"b": "a"}, probes=(0.05, 0.5))
    assert [(row.metric, row.eps) for row in rows] == [("clean_accuracy", None), ("robust_accuracy", 0.1)]
    assert rows[1].first_accuracy == pytest.approx(7 / 20)
    assert [row.eps for row in against_baselines(models, baseline={"b": "a"})] == [None, 0.05, 0.1, 0.5]


def test_replicates_are_one_model():
    models = {f"a-seed={s}": {0: CLEAN, 0.1: [1] * (10 + s) + [0] * (10 - s)} for s in (0, 4)}
    rows = against_baselines(
        models | {"b": {0: CLEAN, 0.1: CLEAN}}, replicate_of=dict.fromkeys(models, "a"), baseline={"b": "a"}
    )
    robust = next(r for r in rows if r.metric == "robust_accuracy")
    assert (robust.first, robust.second, robust.replicates) == ("a", "b", (2, 1))
    assert robust.first_accuracy == pytest.approx(0.6)
    assert robust.n == 20


def test_an_invalid_model_is_not_better():
    """A constant model is right on the images of its class, whatever an attack does."""
    models = {m: {0: CLEAN, 0.1: [1] * 10 + [0] * 10} for m in ("a-0", "a-1")} | {"b": {0: [0] * 20, 0.1: [0] * 20}}
    made = run(models, replicate_of={"a-0": "a", "a-1": "a"}, baseline={"a-0": "b", "a-1": "b"})
    for verdict in ("INVALID", "SUSPECT"):
        one, *others = made.results.models
        results = made.results.model_copy(update={"models": [one.model_copy(update={"verdict": verdict}), *others]})
        clean, robust = differences(results, outcomes_of(results, made.samples))
        assert clean.significant and not clean.invalid
        assert robust.difference == 0.5 and robust.p_holm < 0.05
        assert (robust.invalid, robust.significant) == ((verdict == "INVALID"), (verdict != "INVALID"))
    broken = Run(results.model_copy(update={"models": [m.model_copy(update={"verdict": "INVALID"}) for m in results.models]}), made.samples)  # fmt: skip
    assert [r.invalid for r in compare(made, broken).rows if r.metric == "robust_accuracy"] == [True, True]


def test_models_are_compared_on_the_images_that_an_attack_with_a_limit_was_given():
    """On the others the strong attack is unknown, and the clean answer would stand for it."""
    models = {name: {0: CLEAN, 0.05: CLEAN, 0.1: CLEAN, 0.09: ([0, 1, 2, 3], broken)} for name, broken in
              {"a": [1, 1, 1, 1], "b": [0, 0, 0, 1]}.items()}  # fmt: skip
    rows = {r.eps: r for r in against_baselines(models, baseline={"b": "a"}, limit=4)}
    assert {eps: row.n for eps, row in rows.items()} == {None: 20, 0.05: 20, 0.1: 4}
    assert rows[0.1].difference == -0.75


def test_two_runs_are_paired_by_the_names_of_images():
    """The second run has them in another order. Paired otherwise, the same images would have another interval."""
    ids = [f"i{i}" for i in range(20)]
    clean, first = [1] * 15 + [0] * 5, [1] * 10 + [0] * 10
    a = run({"m": {0: clean, 0.1: first}, "gone": {0: CLEAN}}, ids=ids)
    b = run({"m": {0: clean[::-1], 0.1: first[::-1]}, "new": {0: CLEAN}}, ids=ids[::-1])
    found = compare(a, b)
    assert [row.metric for row in found.rows] == ["clean_accuracy", "robust_accuracy"]
    assert all((row.difference, row.p_value, row.interval) == (0, 1, (0, 0)) for row in found.rows)
    assert (found.only_first, found.only_second) == (["gone"], ["new"])
    worse = compare(a, run({"m": {0: CLEAN, 0.1: [0] * 20}}, ids=ids)).rows[1]
    assert (worse.difference, worse.p_value) == (-0.5, pytest.approx(binomtest(0, 10).pvalue))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"ids": [f"j{i}" for i in range(20)]}, "20 and 20, 0 of them in both"),
        ({"sha": "xyz"}, "their content is abc and xyz"),
    ],
)
def test_other_images_are_refused(other, expected):
    a = run({"m": {0: CLEAN}})
    with pytest.raises(InputError, match="not on the same images") as caught:
        compare(a, run({"m": {0: CLEAN}}, **other))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_runs_without_a_common_model_are_refused():
    with pytest.raises(InputError, match="no model in common: m1 and m2; did you mean 'm2'"):
        compare(run({"m1": {0: CLEAN}}), run({"m2": {0: CLEAN}}))
