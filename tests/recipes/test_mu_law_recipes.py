"""The recipes of mu-law mapping: each is one under its profiles, and the strengths of attacks come from unmapped rows alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from statistics import fmean

import pytest

from art_qplugins.evaluation.records import Cell
from art_qplugins.recipes.load import load_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "mu-law"
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.fixture(scope="module")
def scripts():
    """``slides.py`` and ``calibrate.py``."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = []
        for name in ("slides", "calibrate"):
            spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
            found.append(importlib.util.module_from_spec(spec))
            sys.modules[name] = found[-1]
            spec.loader.exec_module(found[-1])
        yield found
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("slides", "calibrate"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("profile", ["", "small", "cpu"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_recipe_under_every_profile(path, profile):
    recipe, _ = load_recipe(path, profiles=[profile] if profile else [])
    assert recipe.name == f"mu-law-{path.stem}" + (f"-{profile}" if profile else "")
    seeds = {model.seed for model in recipe.models if model.role == "subject"}
    assert seeds == ({0, 1, 2} if profile == "cpu" else {None})
    text = path.read_text()
    assert f"artq run benchmarks/mu-law/{path.name} --profile" in text and "Needs " in text


def test_names_say_what_is_mapped():
    for path in FILES:
        for model in load_recipe(path)[0].models:
            of = model.quantize
            mapped = of is not None and of.mu is not None and not of.mu_gain_only
            if model.name.startswith("mu-") and not model.name.endswith("-q"):
                assert mapped and of.mu >= 100 and not any(d.name == "adversarial-training" for d in model.defences)
            if model.name.startswith("gain-"):
                assert model.name.endswith("-q") or of.mu_gain_only


def test_the_tables_have_every_number_of_the_slides(scripts):
    slides, _ = scripts
    recipe, _ = load_recipe(FOLDER / "mnist.toml")
    models = {model.name: model for model in recipe.models}
    for name, (white, others) in slides.MNIST.items():
        values = []
        for one in models[name].reference.values():
            values += list(one.values()) if isinstance(one, dict) else [one]
        assert sorted(values) == pytest.approx(sorted(value / 100 for value in (*white, *others)))


def test_the_means_of_the_slides_are_those_that_they_name(scripts):
    """27.84 points on CIFAR-10; the 7.55 of MNIST come out as 7.67."""
    slides, _ = scripts
    for rows, expected in ((slides.CIFAR10, 27.84), (slides.MNIST, 7.67)):
        mapped, plain = ([*rows[name][0], *rows[name][1]] for name in ("mu-fl-q", "fl-q"))
        assert fmean(mapped) - fmean(plain) == pytest.approx(expected, abs=0.01)


def cell(model, attack, eps, accuracy, *, role="attack", norm="Linf", source=None, **params):
    return Cell(
        id=f"{model}.{attack}.{eps}.{params}.{source}",
        model=model,
        source=source or model,
        attack=attack,
        role=role,
        params=params,
        norm=norm,
        eps=eps,
        seed=0,
        n=10,
        accuracy=accuracy,
        interval=(0, 1),
        forward_samples=0,
        backward_samples=0,
        seconds=0,
        status="success",
    )


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_what_is_calibrated_is_run(data, scripts):
    _, calibrate = scripts
    recipe, _ = load_recipe(FOLDER / f"calibrate-{data}.toml")
    run = {(attack.id, attack.source) for attack in recipe.attacks}
    noises = {attack.options.get("distribution", "uniform") for attack in recipe.attacks if attack.id == "artq:random"}
    assert {(c.id.removesuffix(" at any eps"), c.source) for c in calibrate.columns(data)} <= run
    assert noises == {"uniform", "normal"}


def test_the_strength_is_the_one_that_is_nearest_to_both_unmapped_rows(scripts):
    _, calibrate = scripts
    column = next(c for c in calibrate.columns("mnist") if c.name == "PGD")
    cells = [
        cell("orig", "art:pgd", 0.1, 0.6),
        cell("adv", "art:pgd", 0.1, 0.99),
        cell("orig", "art:pgd", 0.2, 0.05),
        cell("adv", "art:pgd", 0.2, 0.96),
        cell("orig", "art:pgd", 0.3, 0.04),
        cell("adv", "art:pgd", 0.3, 0.5),
        cell("mu-orig", "art:pgd", 0.4, 0.0438),  # mapped rows have no part in it
        cell("orig", "art:pgd", 0.5, 0.0438, source="substitute"),
    ]
    found = calibrate.strengths(column, cells, {}, {})
    assert set(found) == {0.1, 0.2, 0.3}
    assert min(found, key=lambda size: found[size][0]) == 0.2
    assert found[0.2] == pytest.approx((abs(0.05 - 0.0438) + abs(0.96 - 0.9777), 0.05, 0.96))


def test_strengths_of_fgsm_rise_or_are_refused(scripts):
    _, calibrate = scripts
    found = {c.name: {0.2: (0.0, 1, 1), 0.1: (0.5, 1, 1), 0.3: (2.0, 1, 1)} for c in calibrate.columns("mnist")}
    chosen = calibrate.choose(found)  # each is nearest at 0.2
    assert [chosen[name] for name in ("FGSM (w)", "FGSM (m)", "FGSM (s)")] == [0.1, 0.2, 0.3] and chosen["PGD"] == 0.2
    found["FGSM (s)"] = {0.3: (0.0, 1, 1), 0.4: (0.1, 1, 1)}
    found["FGSM (w)"] = {0.2: (0.0, 1, 1)}
    found["FGSM (m)"] = {0.1: (0.0, 1, 1), 0.3: (0.2, 1, 1)}
    chosen = calibrate.choose(found)
    assert [chosen[name] for name in ("FGSM (w)", "FGSM (m)", "FGSM (s)")] == [0.2, 0.3, 0.4]
    found["FGSM (m)"] = {0.1: (0.0, 1, 1), 0.4: (0.2, 1, 1)}
    with pytest.raises(SystemExit, match="FGSM: fewer than three strengths"):
        calibrate.choose(found)
