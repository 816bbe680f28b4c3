"""Indicators of a package that is installed beside this one, through a real entry point."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from made_up import N, cell, clean, first, judged
from torch import nn

from art_qplugins import QuantizedClassifier, Threat, diagnose, plugins
from art_qplugins.diagnostics import INDICATORS, Rule, assess
from art_qplugins.evaluation.records import ModelResult
from art_qplugins.report import read_run, write_report

#: The module of the package. ``{rows}`` are its indicators.
MODULE = '''
from functools import partial

import numpy as np

from art_qplugins.diagnostics import Indicator, Measurement, Rule

_texts = dict.fromkeys(("formula", "cost", "shows", "shows_not", "source", "mitigation"), "See the package.")
row = partial(Indicator, threshold=0.02, **_texts)


def quiet(records, threshold):
    return Measurement(False, 0.0, "Nothing.")


def loud(records, threshold):
    return Measurement(True, 1.0, "Something is there.")


def everywhere(records, threshold):
    return Measurement(True, 1.0, "It is at work.", present=np.ones(records.n, dtype=bool))


def broke_more(records, threshold):
    """What black-box search breaks beyond the claimed attack; at work there too."""
    gap, bound, broke = records.accuracy_gap([records.claimed], records.black_box)
    return Measurement(bool(bound > threshold), gap, "More is broken.", present=broke, broke=broke)


def skipped(records, threshold):
    return Measurement(None, None, "Not run.")


def raises(records, threshold):
    raise RuntimeError("no such luck\\nand more of it")


def another_type(records, threshold):
    return dict(fired=True)


def wrong_images(records, threshold):
    return Measurement(True, 1.0, "It is at work.", present=np.ones(3, dtype=bool))


def not_a_number(records, threshold):
    return Measurement(True, float("nan"), "Something.")


def numpy_types(records, threshold):
    return Measurement(np.bool_(True), np.float32(0.5), "Something.")


def significant(records, threshold):
    return Measurement(True, 0.5, "It is rare.", p_value=0.03)


INDICATORS = {rows}
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package ``example`` 1.2 with these rows, given as source, for the time of a test."""

    def make(*rows):
        (tmp_path / "example_indicators.py").write_text(MODULE.replace("{rows}", f"[{', '.join(rows)}]"))
        info = tmp_path / "example-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[art_qplugins.indicators]\nall = example_indicators:INDICATORS\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(INDICATORS, "_found", None)
        monkeypatch.setattr(plugins, "_broken", [])
        return tmp_path

    yield make
    sys.modules.pop("example_indicators", None)


def row(name, function, class_, group=None, **decides):
    fields = "".join(f", {key}={value}" for key, value in {"group": repr(group), "rule": Rule(**decides)}.items())
    return (
        f'row(name="{name}", target="example_indicators:{function}", help="Title of {name}", class_="{class_}"{fields})'
    )


def finding(result, name):
    return next(f for f in result.findings if f.id == name)


def test_importing_the_diagnosis_asks_for_no_entry_point(install):
    folder = install(row("mine", "quiet", "S"))
    code = """
import importlib.metadata, sys
real, groups = importlib.metadata.entry_points, []
importlib.metadata.entry_points = lambda **asked: groups.append(asked.get("group", "")) or real(**asked)
import art_qplugins.diagnostics
print([g for g in groups if g.startswith("art_qplugins.")], "example_indicators" in sys.modules)
assert "mine" in art_qplugins.diagnostics.INDICATORS
print([g for g in groups if g.startswith("art_qplugins.")], "example_indicators" in sys.modules)
"""
    path = {"PYTHONPATH": ":".join([str(folder), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert done.stdout.splitlines() == ["[] False", "['art_qplugins.indicators'] True"]


def test_it_comes_after_the_built_in_ones_and_knows_its_package(install):
    before = list(INDICATORS)
    install(row("mine", "quiet", "M"), row("mine-too", "quiet", "P"))
    assert list(INDICATORS) == [*before, "mine", "mine-too"]
    assert str(INDICATORS["mine"].plugin) == "example 1.2" and INDICATORS["attack-gap"].plugin is None


def test_a_name_that_is_taken_stays_with_the_built_in_one(install):
    install(row("attack-gap", "loud", "P"))
    assert INDICATORS["attack-gap"].plugin is None
    assert judged().verdict == "NOT_REFUTED"


def test_its_finding_is_in_the_records_and_in_the_report(install, tmp_path):
    install(row("mine", "loud", "S", group="mine"), row("broken", "raises", "S", group="broken"))
    layer = nn.Linear(64, 4)
    layer.load_state_dict({"weight": torch.eye(4, 64), "bias": torch.zeros(4)})
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 4, device_type="cpu")
    diagnose(estimator, x, model(x).argmax(1), Threat("Linf", 0.01), level=0, out=tmp_path / "run")
    write_report(tmp_path / "run")
    (found,) = read_run(tmp_path / "run").results.models
    assert [f.id for f in found.findings][-2:] == ["mine", "broken"]
    assert (finding(found, "mine").title, finding(found, "mine").fired) == ("Title of mine", True)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for text in ("Title of mine", "Something is there.", "Title of broken", "example 1.2 raised RuntimeError"):
        assert text in page, text


# --- What is wrong with it stops nothing


@pytest.mark.parametrize(
    ("function", "evidence"),
    [
        ("raises", "Not run: example 1.2 raised RuntimeError: no such luck."),
        ("another_type", "Not run: example 1.2 raised TypeError: it gave a dict; it must give a Measurement."),
        ("wrong_images", f"of shape (3,); present and broke are bool of shape ({N},)."),
        ("not_a_number", "Not run: example 1.2 raised ValueError: its value is nan; it must be finite or None."),
        ("no_such_function", "example 1.2 names 'example_indicators:no_such_function', which cannot be loaded"),
    ],
)
@pytest.mark.parametrize("class_", "PMSV")
def test_one_that_fails_did_not_run_and_says_why(function, evidence, class_, install):
    install(row("mine", function, class_))
    result = judged()
    found = finding(result, "mine")
    assert (found.fired, found.value, result.verdict) == (None, None, "NOT_REFUTED")
    assert found.evidence.startswith("Not run: example 1.2 raised ") and evidence in found.evidence
    assert "\n" not in found.evidence
    assert ModelResult.model_validate_json(result.model_dump_json(by_alias=True)) == result


def test_a_built_in_one_that_raises_is_a_bug_and_is_not_hidden(monkeypatch):
    def raises(records, threshold):
        raise RuntimeError("bug")

    monkeypatch.setattr("art_qplugins.diagnostics.controls.attack_gap", raises)
    with pytest.raises(RuntimeError, match="bug"):
        judged()


def test_numbers_of_numpy_are_written_as_numbers(install):
    install(row("mine", "numpy_types", "V"))
    found = finding(judged(), "mine")
    assert (found.fired, found.value) == (True, 0.5)
    assert type(found.fired) is bool and type(found.value) is float


# --- It counts by the rules of its class


@pytest.mark.parametrize("controls", [["black-box-search"], ["unknown", "black-box-search"]])
def test_a_mechanism_and_a_built_in_control_on_the_same_images_are_masking(controls, install):
    install(row("mine", "everywhere", "M", controls=tuple(controls)))
    result = judged(search=0.3)
    assert (result.verdict, result.claim.corrected) == ("MASKED", 0.3)
    assert "title of mine" in result.summary


def test_a_built_in_mechanism_has_no_control_of_another_package(install):
    install(row("mine", "broke_more", "P"))
    assert judged(search=0.3, shown={"margin": 20.0}).verdict == "SUSPECT"


def test_a_mechanism_and_a_control_of_its_own_package_are_masking(install):
    install(row("mine", "everywhere", "M", controls=("control",)), row("control", "broke_more", "P"))
    assert judged(search=0.3).verdict == "MASKED"
    assert judged().verdict == "NOT_REFUTED"  # the control experiment was made and found nothing


def test_a_control_that_is_its_own_mechanism_is_masking(install):
    install(row("mine", "broke_more", "P", controls=("mine",)))
    assert judged(search=0.3).verdict == "MASKED"
    assert judged().verdict == "NOT_REFUTED"


@pytest.mark.parametrize("controls", [(), ("unknown",), ("control",)])
def test_a_mechanism_without_a_control_experiment_is_a_suspicion(controls, install):
    install(row("mine", "everywhere", "M", controls=controls), row("control", "skipped", "P"))
    assert judged().verdict == "SUSPECT"


@pytest.mark.parametrize("group", [None, "mine", "claimed attack"])
def test_a_symptom_without_a_rule_is_a_note(group, install):
    install(row("mine", "loud", "S", group=group), row("mine-too", "loud", "S"))
    result = judged(extra=[cell("torchattacks:fgsm", first(0.3))])
    assert result.verdict == "NOT_REFUTED" and not finding(result, "mine").decides


def test_a_symptom_joins_the_correction_for_their_number(install):
    install(row("mine", "significant", "S"))
    without_others = [clean(), cell("art:pgd", first(0.5), role="attack")]
    assert finding(assess("m", without_others, claimed=without_others[1]), "mine").fired
    result = judged()
    assert finding(result, "one-step-beats-many").p_value is not None
    assert (finding(result, "mine").p_value, finding(result, "mine").fired) == (0.03, False)


@pytest.mark.parametrize(
    ("class_", "alone", "verdict"),
    [
        ("V", None, "NOT_REFUTED"),
        ("V", "SUSPECT", "SUSPECT"),
        ("V", "INVALID", "INVALID"),
        ("P", None, "NOT_REFUTED"),
        ("P", "SUSPECT", "SUSPECT"),
        ("S", "SUSPECT", "SUSPECT"),
    ],
)
def test_what_it_says_alone_is_in_its_row(class_, alone, verdict, install):
    install(row("mine", "loud", class_, alone=alone))
    assert judged().verdict == verdict


def test_one_that_is_required_makes_silence_inconclusive_where_it_did_not_run(install):
    install(row("mine", "raises", "S", required=True))
    assert judged().verdict == "INCONCLUSIVE"
