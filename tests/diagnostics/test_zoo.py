"""A small part of ``benchmarks/masking``: rows whose verdict is not near to any threshold, on digits."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from art_qplugins import Threat
from art_qplugins.diagnostics import INDICATORS

_FOLDER = Path(__file__).parents[2] / "benchmarks" / "masking"


@pytest.fixture(scope="module")
def zoo():
    return _module("zoo")


@pytest.fixture(scope="module")
def measure():
    return _module("measure")


@pytest.fixture(scope="module")
def records_of_runs():
    return _module("records")


@pytest.fixture(scope="module")
def one_run():
    return _module("one_run")


@pytest.fixture(scope="module")
def networks():
    return _module("networks")


@pytest.fixture(scope="module")
def training():
    return _module("training")


@pytest.fixture(scope="module")
def report():
    return _module("report").report


def _module(name):
    sys.path.insert(0, str(_FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(_FOLDER))


@pytest.fixture(scope="module")
def site(networks, tmp_path_factory):
    """One folder of weights for all rows, so that each network is trained once."""
    return networks.Site("digits", 0, cache=tmp_path_factory.mktemp("weights"))


def test_the_table_is_sound(zoo):
    rows = {row.name: row for row in zoo.ROWS}
    assert len(rows) == len(zoo.ROWS)
    tables = _module("tables")
    for row in zoo.ROWS:
        assert row.expected <= set(tables.VERDICTS) and row.expected and row.why
        assert row.kind != "honest" or (row.expected == {"NOT_REFUTED"} and not row.must_fire)
        assert row.kind not in ("weak", "honest") or "MASKED" not in row.expected
        assert (row.mechanism == row.kind) == (row.kind != "masked")  # every planted failure has one
        assert row.must_fire <= set(INDICATORS)


def test_a_family_is_in_one_half_and_all_halves_have_the_kinds_that_matter(zoo):
    halves, moved = {}, _module("halves").MOVED
    for row in zoo.ROWS:
        assert halves.setdefault(row.family, row.half) == row.half
    for kind in ("masked", "weak", "invalid", "honest"):  # what moved from C to B was not chosen by the salt
        share = [row.half for row in zoo.ROWS if row.kind == kind and row.half != "C" and row.family not in moved]
        assert {"A", "B"} == set(share)
        assert kind not in ("masked", "honest") or 0.35 <= share.count("A") / len(share) <= 0.65
    assert {"masked", "misleading", "honest"} <= {row.kind for row in zoo.ROWS if row.half == "C"}


def test_only_new_families_are_sealed_and_one_that_was_looked_at_is_no_more(zoo, monkeypatch):
    halves = _module("halves")
    assert not {row.family for row in zoo.ROWS if row.half == "C"} & halves._OLD
    sealed = next(row for row in zoo.ROWS if row.half == "C")
    monkeypatch.setattr(halves, "MOVED", {sealed.family: "a reason"})
    assert sealed.half == "B"


def test_sealed_rows_run_only_where_their_half_is_asked_for(zoo, measure, monkeypatch):
    sealed = next(row for row in zoo.ROWS if row.half == "C")

    def asked(*arguments):
        monkeypatch.setattr(sys, "argv", ["measure.py", "--dataset", "digits", "--seeds", "0", *arguments])
        return [job.row for job in measure.chosen(measure._arguments())]

    assert sealed.name not in asked() and sealed.name in asked("--half", "C")
    with pytest.raises(SystemExit, match=f"half C is sealed, and {sealed.name} is in it"):
        asked("--rows", sealed.name)
    assert asked("--rows", sealed.name, "--half", "C") == [sealed.name]


def test_shards_share_out_all_runs(measure, monkeypatch):
    def keys(*arguments):
        monkeypatch.setattr(sys, "argv", ["measure.py", "--dataset", "digits", *arguments])
        return [job.key for job in measure.chosen(measure._arguments())]

    parts = [keys("--shard", f"{i}/3") for i in (1, 2, 3)]
    assert all(parts) and sorted(key for part in parts for key in part) == sorted(keys())
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/2"):
        with pytest.raises(SystemExit):
            keys(f"--shard={wrong}")


def test_the_nightly_choice_has_one_row_of_each_family(zoo, measure, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure.py", "--dataset", "digits", "--seeds", "0"])
    jobs = measure.nightly(measure.chosen(measure._arguments()))
    rows = {row.name: row for row in zoo.ROWS}
    families = [rows[job.row].family for job in jobs]
    assert len(families) == len(set(families))
    assert set(families) == {row.family for row in zoo.ROWS if row.half != "C" and "digits" in row.datasets}
    first = [rows[job.row].mechanism for job in jobs]
    assert set(first[: len(set(first))]) == set(first)  # every mechanism and kind before any comes again


#: Rows of the new kinds that need no training of more than seconds.
_LIGHT = ("jpeg-bpda", "blur", "purified-through", "detector-at", "bit-depth-numpy", "variation-numpy",
          "ripples", "wrong-sign", "rounded-logits", "reverse-sigmoid", "detector-squeezing", "purified", "tanh-hidden",
          "art-standardized", "art-jpeg", "art-reverse-sigmoid")  # fmt: skip


@pytest.mark.parametrize("name", _LIGHT)
def test_a_row_is_built_and_answers_as_its_twin(name, one_run, site):
    row = one_run.row_named(name)
    assert row.half != "C"
    built, (x, y) = row.build(site), site.test(30)
    with torch.no_grad():
        answers = built.model(x)
    assert answers.shape == (30, 10 + (row.abstain is not None)) and answers.isfinite().all()
    assert (answers.argmax(1) == y).float().mean() > 0.8
    if built.twin is not None:
        with torch.no_grad():
            assert (built.twin(x).argmax(1) == answers.argmax(1)).float().mean() > 0.9
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(built.twin(leaf), y), leaf)
        assert slope.isfinite().all() and slope.any()
    if built.estimator is not None:
        assert (built.estimator.predict(x.numpy()).argmax(1) == answers.argmax(1).numpy()).all()


@pytest.mark.parametrize(
    "name",
    [
        "4bit",
        "three-steps",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("rounded", "x1e4", "sign", "detached")),
    ],
)
def test_the_diagnosis_of_a_row_is_the_truth(name, one_run, site):
    row = one_run.row_named(name)
    record = one_run.measure(one_run.Job(name, site))
    assert record["verdict"] in row.expected, record["summary"]
    assert row.must_fire <= {*record["fired"], *record["not_run"]}  # and for the right reason
    if row.kind in ("masked", "weak") and record["verdict"] != "INVALID":
        assert record["claim"] == "OVERSTATED"


@pytest.mark.parametrize("name", ["tanh-pgd", "compressed", "sign-steep"])
def test_a_plant_takes(name, one_run, site):
    """The number claimed is far above what cheap attacks leave through the honest twin."""
    record = one_run.check(one_run.Job(name, site, n=60))
    assert record["clean"] > 0.8
    assert record["claimed"] - record["strongest"] > 0.2


class Valley(nn.Module):
    """Two logits of a grey image: class 1 where the mean of the pixels is within ``width`` of ``at``, class 0 elsewhere."""

    def __init__(self, at, width):
        super().__init__()
        self.at, self.width = at, width

    def forward(self, x):
        u = x.flatten(1).mean(1) - self.at
        return torch.stack([u**2 - self.width**2, torch.zeros_like(u)], dim=1)


def test_broken_attacks_miss_what_is_there():
    """The adversarial images lie half way to a corner of the ball: wide steps jump over them, tiny ones stay away."""
    plants, eps = _module("plants"), 0.1
    model = Valley(0.5 + eps / 2, eps / 4)
    x, y = torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.long)
    assert model(x).argmax(1).max() == 0 and model(x + eps / 2).argmax(1).min() == 1
    for broken in (plants.last_iterate, plants.wrong_units):
        assert broken(model, x, y, Threat("Linf", eps), 0) == 1, broken.__name__


@pytest.mark.parametrize("name", ["x1e4", "rounded", "compressed", "sign", "gradient-killer"])
def test_a_twin_is_the_same_function_with_a_gradient(name, one_run, site):
    built = one_run.row_named(name).build(site)
    x, y = site.test(20)
    assert built.twin is not None
    assert torch.equal(built.model(x).argmax(1), built.twin(x).argmax(1))
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(built.twin(leaf), y), leaf)
    assert gradient.abs().amax() > 0


def test_a_cached_network_is_the_one_that_was_trained(networks, training, tmp_path):
    site = networks.Site("digits", 3, cache=tmp_path)
    recipe = training.Recipe(epochs=1)
    x, _ = site.test(20)
    first = training.trained(site, recipe)(x)
    files = sorted(tmp_path.iterdir())
    training.trained.cache_clear()
    stamp = files[-1].stat().st_mtime_ns
    assert torch.equal(training.trained(site, recipe)(x), first)
    assert files == sorted(tmp_path.iterdir()) and files[-1].stat().st_mtime_ns == stamp  # nothing was trained again
    training.trained.cache_clear()
    other = training.trained(networks.Site("digits", 4, cache=tmp_path), recipe)(x)
    assert not torch.equal(other, first) and len(list(tmp_path.iterdir())) == 2 * len(files)


def test_compression_is_nothing_at_a_tiny_step_and_the_mean_at_a_huge_one():
    plants = _module("plants")
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plants.Compressed(nn.Identity(), 1e-6)(x), x, atol=1e-5)
    flat = torch.full((1, 1, 8, 8), 0.25)  # a block's first coefficient is 4 times its mean
    assert torch.allclose(plants.Compressed(nn.Identity(), 0.5)(flat), flat)
    assert plants.Compressed(nn.Identity(), 3.0)(flat).abs().max() == 0


# --- Tables


def _record(**more):
    return {
        "row": "a", "dataset": "digits", "seed": 0, "n": 200, "network": "w", "half": "B", "kind": "masked", "family": "f", "mechanism": "scale",
        "version": "v", "expected": ["MASKED"], "verdict": "MASKED", "claim": "OVERSTATED", "clean": 1.0, "claimed": 0.9,
        "corrected": 0.2, "reference": 0.1, "must_fire": ["large-logits"], "fired": ["large-logits"], "not_run": [], "values": {"large-logits": 40.0},
        "forward": 1.0, "backward": 2.0, "levels": {"1": {"forward": 1.0, "backward": 2.0}}, "seconds": 3.0,
        "autoattack_backward": 8.0, **more,
    }  # fmt: skip


def test_the_tables_are_made_from_records(report):
    tables = _module("tables")
    honest = {"kind": "honest", "mechanism": "honest", "expected": ["NOT_REFUTED"], "must_fire": [], "claimed": 0.11}
    records = [
        _record(),
        _record(seed=1, verdict="SUSPECT", fired=[], values={"large-logits": 5.0}),
        _record(seed=2, claimed=0.11, verdict="NOT_REFUTED", claim="HOLDS"),  # a plant that did not take
        _record(row="b", **honest, verdict="NOT_REFUTED", claim="HOLDS", fired=[], values={"large-logits": 4.0}),
    ]
    text = report(records)
    assert (
        "| recall of MASKED, where it is the only right verdict (at least 95 %) | 1 of 2, 50.0 % [50.0, 50.0] [0.0, 100.0] |"
        in text
    )
    assert "| false MASKED, of honest models (at most 1 %) | 0 of 1, 0.0 % [0.0, 79.3] " in text
    assert "**SUSPECT**" in text and "**NOT_REFUTED***" in text
    assert "| masked | 2 | 10.0 | 10.0 | 10.0 | 10.0 | 0 of 2 |" in text  # corrected against reference
    assert "| large-logits | scale | 2 | 1 | 1.000 | 100 at 5 |" in text
    assert "| masked | 2 (2) | 1 (1) | 3.0 (3.0) | 0.25 (0.25) | 2 (2) |" in text
    assert tables.took(records[0]) and not tables.took(records[2])


def test_records_with_old_ids_of_indicators_are_reported_with_todays(records_of_runs, report, tmp_path):
    old = {"must_fire": ["M4"], "fired": ["M4"], "not_run": ["INV-T"], "values": {"M4": 40.0, "INV-T": None}}
    path = tmp_path / "out.jsonl"
    path.write_text(f"{json.dumps(_record(**old))}\n{json.dumps(_record(seed=1))}\n")
    records = list(records_of_runs.read([path], None).values())
    assert records[0]["values"] == {"large-logits": 40.0, "logit-scale": None}
    text = report(records)
    assert "| large-logits | 2 of 2, 100.0 % " in text and "M4" not in text and "INV-T" not in text


def test_records_are_resumed_by_version_and_an_error_stops_nothing(
    measure, records_of_runs, one_run, networks, tmp_path
):
    path = tmp_path / "out.jsonl"
    assert records_of_runs.read([path], "v") == {}
    path.write_text('{"row": "a", "dataset": "digits", "seed": 0, "version": "v", "x": 1}\n')
    assert records_of_runs.read([path], "v")["a", "digits", 0, 200]["x"] == 1
    assert records_of_runs.read([path], "w") == {} and len(records_of_runs.read([path], None)) == 1

    def work(job):
        if job.row == "bad":
            raise RuntimeError("no")
        return {"row": job.row}

    jobs = [one_run.Job(name, networks.Site("digits", 0)) for name in ("bad", "good")]
    found = list(measure.run_all(work, jobs, 1))
    assert "RuntimeError: no" in found[0][2] and found[1][1] == {"row": "good"}


def test_committed_records_make_the_same_tables(records_of_runs, report, tmp_path):
    full = _record(cells={"a": 0.5}, summary="long", values={"large-logits": 40.123456789, "x": 1.0})
    records_of_runs.commit([_record(seed=1), full], tmp_path / "r.jsonl")
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 2 and "long" not in lines[0] and json.loads(lines[0])["values"] == {"large-logits": 40.1235}
    again = list(records_of_runs.read([tmp_path / "r.jsonl", tmp_path / "none.jsonl"], None).values())
    assert report(again) == report([_record(values={"large-logits": 40.1235}), _record(seed=1)])


def test_intervals_are_over_what_runs_share():
    interval = _module("rates").interval
    alone = interval([True] * 50 + [False] * 50, range(100))
    shared = interval([True] * 50 + [False] * 50, [i // 25 for i in range(100)])
    assert shared[1] - shared[0] > 3 * (alone[1] - alone[0])
    assert interval([False] * 100, [0] * 100)[1] > 0.7 > interval([False] * 100, range(100))[1]


def test_a_detector_is_attacked_past_its_threshold(networks):
    """Of a linear detector, the image that a wrong class accepts is known in closed form."""
    references, published = _module("references"), _module("published")

    class Two(nn.Module):
        def forward(self, x):
            u = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([1 - u, u], dim=1)

    detector = published.Detector(Two(), 0.7)  # rejects where the mean is in (0.3, 0.7)
    x, y = torch.full((4, 1, 4, 4), 0.2), torch.zeros(4, dtype=torch.long)
    for eps, accepted in ((0.45, False), (0.55, True)):
        x_adv = references.past_detector(detector, x, y, Threat("Linf", eps), abstain=2)
        assert bool((detector(x_adv).argmax(1) == 1).all()) == accepted
        assert (x_adv - x).abs().max() <= eps + 1e-6


@pytest.mark.parametrize(
    ("loop", "eps", "left"),
    [
        ("pgd_on_output", 0.5, 0.0),  # the image is rejected, which is not right
        ("unaware_of_rejection", 0.45, 1.0),  # it stops where it is rejected
        ("past_the_threshold", 0.45, 1.0),
        ("past_the_threshold", 0.55, 0.0),
    ],
)
def test_what_the_authors_of_a_detector_measure(loop, eps, left):
    claims, published = _module("claims"), _module("published")

    class Two(nn.Module):
        def forward(self, x):
            u = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([1 - u, u], dim=1)

    x, y = torch.full((4, 1, 4, 4), 0.2), torch.zeros(4, dtype=torch.long)
    assert getattr(claims, loop)(published.Detector(Two(), 0.7), x, y, Threat("Linf", eps), 0) == left
