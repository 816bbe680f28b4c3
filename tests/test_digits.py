"""The whole digits benchmark, once."""

from __future__ import annotations

from pathlib import Path

import pytest

import art_qplugins

RECIPE = Path(__file__).parents[1] / "benchmarks" / "digits.toml"


@pytest.mark.slow
def test_the_digits_benchmark_says_which_numbers_are_an_illusion(tmp_path):
    results = art_qplugins.run(RECIPE, out=tmp_path).results
    assert results.status == "success", [c.error for c in results.cells if c.error]
    models = {m.name: m for m in results.models}
    assert list(models) == ["fp32", "dq-2bit", "mu-law-3bit", "sq-ensemble"]
    for model in models.values():
        assert model.n == 200 and model.clean_accuracy > 0.9
        assert [r.eps for r in model.robust] == [0.05, 0.1, 0.15]
        assert [r.accuracy for r in model.robust] == sorted((r.accuracy for r in model.robust), reverse=True)
        assert model.claim.attack == "art:pgd" and model.claim.eps == 0.15

    assert models["mu-law-3bit"].verdict == "MASKED"
    assert models["fp32"].verdict == "NOT_REFUTED"
    hidden, plain = models["mu-law-3bit"].claim, models["fp32"].claim
    assert hidden.accuracy > plain.accuracy + 0.2  # the illusion
    assert abs(hidden.corrected - plain.corrected) < 0.1  # and what it hides

    run = {(c.attack, c.model, c.source == c.model) for c in results.cells if c.status == "success"}
    for model in models:
        for attack in ("art:fgsm", "art:pgd", "torchattacks:mifgsm", "autoattack:square"):
            assert (attack, model, True) in run
        assert ("art:pgd", model, False) in run
        suite = "autoattack:rand" if models[model].stochastic else "autoattack:standard"
        assert (suite, model, True) in run
    assert (tmp_path / "report.html").stat().st_size > 0
