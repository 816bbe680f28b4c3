"""A random quantizer is undone as any other: its full-precision form is the mean, and attacks use it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import SQEnsembleClassifier, Threat, diagnose
from art_qplugins.attacks.craft import craft
from art_qplugins.gradients.measure import measure
from art_qplugins.quantizers import draws_from

THREAT = Threat("Linf", 0.1)


@pytest.fixture
def ensemble(stochastic):
    return SQEnsembleClassifier(stochastic, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


def share_right(model, x, y):
    """Over 40 draws that no attack saw."""
    with torch.no_grad(), draws_from(model, 12345):
        return float(torch.stack([(model(x).argmax(1) == y).float() for _ in range(40)]).mean())


def test_random_quantizers_are_counted(ensemble, digits):
    x, y = digits[1].x()[:12], digits[1].y()[:12]
    assert measure(ensemble.model, x, y, threat=THREAT, seed=0).cell["quantizers"] == 3


@pytest.mark.parametrize("attack", ["artq:full-precision", "artq:bits", "artq:joint"])
def test_attacks_that_undo_a_quantization_go_as_far_as_the_mean_over_draws(attack, ensemble, digits):
    model = ensemble.model
    x, y = digits[1].x()[:60], digits[1].y()[:60]
    averaged = craft(ensemble, "artq:eot", x, y, threat=THREAT, options={"eot_iter": 2}, seed=0).x_adv
    undone = craft(ensemble, attack, x, y, threat=THREAT, seed=0).x_adv
    assert (undone - x).abs().max() <= THREAT.eps + 1e-6
    assert share_right(model, undone, y) <= share_right(model, averaged, y) + 0.05 < share_right(model, x, y) - 0.2


@pytest.mark.slow
def test_a_diagnosis_of_a_random_network_undoes_its_quantizers(ensemble, digits):
    x, y = digits[1].x()[:12], digits[1].y()[:12]
    found = diagnose(ensemble, x, y, THREAT, level=2)
    steps = {step.id: step for step in found.run.models[0].steps}
    assert steps["full-precision"].status == "run"
    assert found.verdict != "MASKED"
