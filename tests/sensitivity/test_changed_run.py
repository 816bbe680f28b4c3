"""A recipe with ``sensitivity`` whose models were mapped or scaled after training: records and report."""

from __future__ import annotations

from html import unescape

import pytest
import torch

import art_qplugins
from art_qplugins import quantize
from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import load
from art_qplugins.models.convnet import ConvNet
from art_qplugins.report.figures import changes, logits
from art_qplugins.report.figures.svg import to_svg

NET = {"architecture": {"name": "convnet", "options": {"width": 2}}}
RECIPE = {
    "name": "changed",
    "data": {"name": "digits", "limit": 12},
    "threat": {"eps": [0.1]},
    "sensitivity": 8,
    "diagnose": False,
    "models": [
        {"name": "plain", **NET, "train": {"epochs": 1}},
        {"name": "mapped", "base": "plain", **NET, "quantize": {"mu": 255, "mu_layers": 1}, "train": {"epochs": 0}},
        {
            "name": "gain",
            "base": "plain",
            **NET,
            "quantize": {"mu": 255, "mu_layers": 1, "mu_gain_only": True},
            "train": {"epochs": 0},
        },
    ],
    "sweep": {"models.mapped.quantize.mu": [10, 1000], "models.gain.quantize.mu": [10, 1000]},
    "attacks": [{"id": "art:fgsm"}],
}
DATA = load("digits", "test").take(12, seed=0)
X, Y = DATA.x()[:8], DATA.y()[:8]
CHANGED = [f"{name}-mu={mu}" for name in ("mapped", "gain") for mu in (10, 1000)]


def network(out, name):
    """The plain network from its checkpoint, and changed as the recipe says."""
    module = ConvNet((1, 8, 8), 10, width=2)
    (file,) = (out / "checkpoints").glob("plain-*.safetensors")
    load_checkpoint(file, module)
    if name == "plain":
        return module.eval()
    arm, _, mu = name.partition("-mu=")
    return quantize(module, mu=float(mu), mu_layers=1, mu_gain_only=arm == "gain").eval()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("changed") / "run"
    return art_qplugins.run(RECIPE, out=out), out


def test_the_records_say_what_the_functions_say(finished):
    results = finished[0].results
    assert set(results.sensitivity) == {"plain", *CHANGED}
    plain = network(finished[1], "plain")
    for name in CHANGED:
        record = results.sensitivity[name]
        assert (record.base, record.skipped) == ("plain", {})
        assert [change.layer for change in record.changes] == ["fc2"]
        assert record.changes[0].matrix == pytest.approx(record.changes[0].operator, rel=1e-4)
        gain = art_qplugins.logit_gain(plain, network(finished[1], name), X)
        assert (record.gain, record.alignment) == pytest.approx((gain.gain, gain.alignment))
        (terms,) = record.terms
        assert terms.n == 8 and terms.error < 1e-9
        assert terms.weights["conv1"] == terms.both["conv1"] == 0 and terms.weights["fc2"] > 0
    assert results.sensitivity["plain"].base is None and results.sensitivity["plain"].gain is None


def test_logits_have_quantiles_and_a_share_without_a_gradient(finished):
    plain, strong = (finished[0].results.sensitivity[name] for name in ("plain", "gain-mu=1000"))
    for record in (plain, strong):
        assert list(record.logits.margins) == sorted(record.logits.margins) and record.logits.n == 8
        assert record.logits.no_gradient in (None, *(k / n for n in range(1, 9) for k in range(n + 1)))
    z = network(finished[1], "gain-mu=1000")(X).detach()
    own = z.gather(1, Y[:, None]).squeeze(1)
    margins = own - z.scatter(1, Y[:, None], -torch.inf).amax(1)
    assert strong.logits.margins[2] == pytest.approx(float(margins.double().quantile(0.5)), rel=1e-5)


def test_the_figures_have_a_line_for_each_swept_model(finished):
    results = finished[0].results
    (found,) = logits.changed(results)
    assert found.axis == "mu" and list(found.lines) == ["mapped", "gain"]
    assert [point.value for point in found.lines["mapped"]] == [10, 1000]
    for name, points in found.lines.items():
        for point in points:
            record = results.sensitivity[f"{name}-mu={point.value:g}"]
            assert (point.gain, point.median) == (record.gain, record.logits.margins[2])
            assert point.no_gradient == record.logits.no_gradient
    assert to_svg(logits.over_values(found), alt=logits.over_values_alt(found), prefix="a-")
    assert "mapped, 10: " in logits.over_values_alt(found)
    assert list(changes.changes(results)) == CHANGED
    matrix, _ = changes.changes(results)["gain-mu=10"]["fc2"]
    assert f"gain-mu=10: {matrix:.3g} at fc2" in changes.over_layers_alt(changes.changes(results))


def test_the_report_shows_gains_terms_and_figures(finished):
    page = unescape((finished[1] / "report.html").read_text())
    section = page.split("How far a change is carried</h2>")[1].split("</section>")[0]
    assert section.count("<svg") >= 2 and "failed" not in section and "could not be measured" not in section
    for text in ("Logits of models whose weights were changed", "W·Δa", "Gain of the logits"):
        assert text in section
