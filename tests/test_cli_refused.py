"""Command lines that are refused in one line, before anything is read, trained or written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RECIPE = """
name = "small"
data = { name = "digits", limit = 5 }
threat = { eps = [0.1] }
claim = { attack = "art:fgsm", eps = 0.1 }
models = [{ name = "a", train = { epochs = 0 } }]
attacks = [{ id = "art:fgsm" }]
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    (tmp_path / "digits.toml").write_text("seed = " + "9" * 5000)
    (tmp_path / "odd.toml").write_bytes(b'name = "\xff"')
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text('{"schema_version": 1, "spec": {"resolved": {"name": "another"}}}')
    os.mkfifo(tmp_path / "pipe.toml")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "small.toml", "--out", ""], "--out '': cannot be read (the path is empty); give another path"),
        (["train", "small.toml", "--out", ""], "--out '': cannot be read (the path is empty)"),
        (["run", "small.toml", "--out", "a\0b"], "the path has a NUL character"),
        (["run", "small.toml", "--out", "x" * 300], "cannot write there; choose another folder with --out"),
        (["run", "small.toml", "--out", "small.toml/x"], "cannot write there; choose another folder with --out"),
        (["run", "small.toml", "--out", "other"], "holds results of recipe 'another', and this is 'small'"),
        (["run", "small.toml", "--data-root", ""], "--data-root '': cannot be read (the path is empty)"),
        (["run", "", "--set", "seed=1"], "the path is empty"),
        (["run", "~nosuchuser/r.toml"], "there is no such user"),
        (["run", "\udcff.toml"], "the name is not UTF-8"),
        (["run", "a\0b.toml"], "the path has a NUL character"),
        (["run", "x" * 5000], "no such recipe"),
        (["run", "."], "it is a folder"),
        (["run", "pipe.toml"], "it is a pipe"),
        (["run", "/dev/zero"], "it is a device"),
        (["run", "loop.toml"], "symbolic links that lead back to themselves"),
        (["run", "deep.toml"], "not TOML: its brackets are nested too deeply"),
        (["run", "digits.toml"], "not TOML: Exceeds the limit"),
        (["run", "odd.toml"], "no UTF-8 text"),
        (["run", "small.toml", "--log", "wandb:x"], "tensorboard:FOLDER or mlflow:URI"),
        (["train", "small.toml", "--devices", "0"], "devices"),
        (["train", "small.toml", "--precision", "bf16"], "bf16"),
        (["run", "small.toml", "--accelerator", "tpu"], "tpu"),
        (["run", "small.toml", "--limit", "3", "--set", "data.limit=4"], "--set data.limit: it is set twice"),
        (["run", "small.toml", "--set", "seed=1\nthreads=2"], "it sets 'threads' too"),
        (["run", "small.toml", "--set", "seed=" + "9" * 5000], "--set seed: "),
        (["run", "small.toml", "--set", "data.name=npz:no.npz"], "npz:no.npz: nothing at"),
        (["run", "small.toml", "--set", "models.a.checkpoint=no.safetensors"], "no.safetensors: cannot be read"),
        (["run", "small.toml", "--set", "models.a.architecture={name = 'vgg16'}"], "give (C, H, W) from 32x32 on"),
        (["diagnose", "small.toml", "--budget", "nan"], "diagnosis.budget: it is nan; give a number of at least 0"),
        (
            ["run", "small.toml", "--set", "models.a.abstain=3"],
            "each output of a network that is built here is a class",
        ),
        (["run", "small.toml", "--set", "models.a.abstain=true"], "models.a.abstain: it is True"),
        (["diagnose", "small.toml", "--abstain", "3"], "--abstain is for --model; change the recipe with --set"),
        (["diagnose", "small.toml", "--eps", "0.1"], "--eps is for --model; change the recipe with --set"),
        (["diagnose", "small.toml", "--claimed", "0.5"], "--claimed is for --model"),
        (["diagnose", "small.toml", "--norm", "Linf"], "--norm is for --model"),
        (["diagnose", "small.toml", "--checkpoint", "x"], "--checkpoint is for --model"),
        (["diagnose", "--model", "m:f", "--eps", "-1"], "threat.eps.0: it is -1.0; give a number above 0"),
        (["diagnose", "--model", "m:f", "--eps", "1e400"], "threat.eps.0: it is inf"),
        (["diagnose", "--model", "m:f", "--eps", "nan"], "threat.eps.0: it is nan; give a number above 0"),
        (["diagnose", "--model", "m:f", "--eps", "1e999999999"], "threat.eps.0: it is inf"),
        (["diagnose", "--model", "m:f", "--eps", ""], "'' is not a number"),
        (
            ["diagnose", "--model", "m:f", "--eps", "8"],
            'it is 8 and pixels are in [0, 1]; give at most 1, e.g. "8/255"',
        ),
        (["diagnose", "--model", "m:f", "--claimed", "nan"], "claim.accuracy: it is nan; give a number in [0, 1]"),
        (["diagnose", "--model", "m:f", "--claimed", "52"], "claim.accuracy: it is 52.0; give a number in [0, 1]"),
        (["diagnose", "--model", "m:f", "--set", "x=1"], "x: unknown key"),
        (["diagnose", "--model", "m:f", "--checkpoint", ""], "--checkpoint '': cannot be read (the path is empty)"),
        (["diagnose", "--model", "m:f", "--limit", str(10**30)], "data.limit: it is 1000000"),
        (["diagnose", "--model", "", "--eps", "0.1"], "--model : name: it is ''; give a text"),
    ],
    ids=lambda value: " ".join(map(ascii, value))[:60] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("dry", [False, True], ids=["", "dry"])
def test_a_command_is_refused_in_one_line(arguments, expected, dry, artq, tmp_path):
    if dry and arguments[0] != "run":
        pytest.skip("only runs have dry runs")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = artq(*arguments, *(["--dry-run"] if dry else []))
    assert (status, out) == (2, "")
    assert err.startswith("artq: ") and err.count("\n") == 1 and expected in err and len(err) < 310
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_of_many_models_is_short(artq):
    models = ", ".join(f'{{ name = "m{i}", seed = {i} }}' for i in range(500))
    Path("many.toml").write_text(
        RECIPE.replace('models = [{ name = "a", train = { epochs = 0 } }]', f"models = [{models}]")
    )
    status, out, err = artq("run", "many.toml", "--dry-run")
    assert (status, err) == (0, "") and len(out.splitlines()) < 650
    assert "and 300 rows more" in out and "and 800 rows more" in out and "1000 cells on 5 images" in out
