"""``artq diagnose --endpoint``: what is asked, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CLIENT = '''
import collections, pathlib
import numpy as np
import torch
from torch import nn
from art_qplugins.data import load

data = load("digits", "train")
x, y = data.x().numpy().reshape(len(data), -1), data.y().numpy()
means = np.stack([x[y == k].mean(0) for k in range(10)]).astype(np.float32)


class Nearest(nn.Module):
    """The nearest mean of a class, a linear network."""

    def __init__(self):
        super().__init__()
        self.flat, self.line = nn.Flatten(), nn.Linear(64, 10)
        self.line.weight.data = torch.from_numpy(10 * means)
        self.line.bias.data = torch.from_numpy(-5 * (means**2).sum(1))

    def forward(self, x):
        return self.line(self.flat(x))


network, log = Nearest().requires_grad_(False), pathlib.Path("asked.txt")


def predict(x):
    with log.open("a") as file:
        file.writelines(f"{image.tobytes().hex()}\\n" for image in x)
    return network(torch.from_numpy(x)).double()  # of one image as of many, to the digits that are kept


def labels(x):
    return predict(x).argmax(1)


def html(x):
    return "<html><body>Sign in</body></html>"


def noisy(x):
    return predict(x) + torch.randn(len(x), 10)


text = "no function"
'''
TWIN = ("--twin", "client:Nearest", "--eps", "0.1", "--limit", "20")


@pytest.fixture(autouse=True)
def _client(tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "client", raising=False)
    (tmp_path / "client.py").write_text(CLIENT)
    yield
    sys.modules.pop("client", None)


def asked():
    return Path("asked.txt").read_text().split() if Path("asked.txt").exists() else []


def results(folder="results/client.predict"):
    return json.loads((Path(folder) / "results.json").read_text())


def test_it_is_diagnosed_and_the_same_command_asks_nothing_again(artq):
    status, out, _ = artq("diagnose", "--endpoint", "client:predict", *TWIN, "--level", "1", "--queries", "9000")
    first = asked()
    assert status == 0 and f"client:predict: {len(first):,} of 9,000 queries so far" in out
    assert len(first) <= 9000 and results()["models"][0]["description"].startswith("endpoint client:predict")
    assert len(first) - len(set(first)) == 5, "five images twice, and no other"
    assert artq("diagnose", "--endpoint", "client:predict", *TWIN, "--level", "1", "--queries", "9000")[0] == 0
    assert len(asked()) == len(first)


def test_a_used_up_budget_fails_cells_and_a_larger_one_goes_on(artq):
    command = ("diagnose", "--endpoint", "client:predict", *TWIN, "--level", "0", "--batch", "16", "--concurrency", "2")
    status, _, _ = artq(*command, "--queries", "300")
    found = results()
    failed = [cell for cell in found["cells"] if cell["status"] != "success"]
    assert status == 3 and found["models"][0]["verdict"] == "INVALID" and found["status"] == "error" and len(failed) > 0
    assert all("300 queries are used up; every answer is kept" in cell["error"] for cell in failed)
    assert not any(cell.get("raised") for cell in failed), "a budget is no fault of the model"
    assert len(asked()) <= 300
    before = asked()
    status, _, _ = artq(*command, "--queries", "30000")
    assert status == 0 and results()["status"] == "success"
    assert asked()[: len(before)] == before and len(asked()) - len(set(asked())) == 5


def test_labels_only(artq):
    status, _, _ = artq("diagnose", "--endpoint", "client:labels", *TWIN, "--level", "0", "--labels-only")
    assert status == 0 and "labels" in results("results/client.labels")["models"][0]["description"]


def test_a_random_one_is_said_to_be(artq):
    artq("diagnose", "--endpoint", "client:noisy", *TWIN, "--level", "0")
    assert "its answers to the same images differ" in " ".join(results("results/client.noisy")["warnings"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("--endpoint", "client:html"),
            "endpoint client:html: it answered '<html><body>Sign in</body></html>'; it must",
        ),
        (("--endpoint", "client:text"), "endpoint client:text: predict: it is 'no function'; give a function"),
        (("--endpoint", "client:predic"), "endpoint client:predic: client has no 'predic'; did you mean 'predict'?"),
        (("--endpoint", "client"), "endpoint client: write it as MODULE:PREDICT"),
        (("--endpoint", "client:predict", "--model", "client:Nearest"), "one of them"),
        (("--endpoint", "client:predict", "--checkpoint", "w.safetensors"), "--checkpoint is for --model"),
        (("--model", "client:Nearest", "--queries", "5"), "--queries is for --endpoint; leave it out with --model"),
        (("--endpoint", "client:predict", "--batch", "0"), "--batch"),
        (("--endpoint", "client:predict", "--queries", "7"), "5 of 7 queries are used up"),
    ],
)
def test_it_is_refused_in_one_line(artq, arguments, line):
    status, _, err = artq("diagnose", *arguments)
    assert status == 2 and err.count("\n") == 1 and line in err, err
    assert not list(Path().rglob("results.json")), "nothing is written before"


def test_ask_belongs_to_an_endpoint(artq):
    Path("r.toml").write_text(
        'name = "r"\ndata = { name = "digits" }\nthreat = { eps = [0.1] }\nattacks = [{ id = "art:fgsm" }]\n'
        'models = [{ name = "m", ask = { queries = 5 } }]\n'
    )
    status, _, err = artq("run", "r.toml", "--dry-run")
    assert status == 2 and "models.m.ask: it says how an endpoint is asked, and there is none" in err
