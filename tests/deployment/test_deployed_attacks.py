"""Attacks through a twin on answers without a gradient: they find what they find on the network itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deployed_nets import ANSWERS, CLASSES, SHAPE, function_of, images, linear
from torch import nn

from art_qplugins import DeployedClassifier, QuantizedClassifier, Threat, diagnose
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import check_legal

THREAT = Threat("Linf", 0.05)


def worst(model, x, y):
    """The lowest margin of a linear model in the ball: the images stay inside [0, 1] as far as a pixel may go there."""
    weight = model[1].weight.detach()
    low, high = (x - THREAT.eps).clamp(0, 1).flatten(1), (x + THREAT.eps).clamp(0, 1).flatten(1)
    found = []
    for other in range(weight.shape[0]):
        change = weight[y] - weight[other]
        margin = (torch.where(change > 0, low, high) * change).sum(1)
        margin[y == other] = torch.inf
        found.append(margin)
    return torch.stack(found).amin(0)


@pytest.fixture(scope="module")
def setting():
    model, x = linear(), images(64)
    y = model(x).argmax(1)
    return model, x, y, worst(model, x, y)


def left(model, crafted, y):
    return float((model(crafted.x_adv).argmax(1) == y).float().mean())


@pytest.mark.parametrize("answer", ANSWERS)
def test_pgd_through_the_twin_breaks_what_can_be_broken(setting, answer):
    model, x, y, margins = setting
    can = float((margins < 0).float().mean())
    assert 0.2 < can < 0.8 and float((margins.abs() < 1e-3).float().mean()) == 0  # nothing is a matter of rounding
    deployed = DeployedClassifier(function_of(model, ANSWERS[answer]), SHAPE, CLASSES, twin=linear())
    crafted = craft(deployed, "artq:multi-targeted", x, y, threat=THREAT, options={"max_iter": 20})
    check_legal(x, crafted.x_adv, THREAT)
    assert left(model, crafted, y) == pytest.approx(1 - can)


def test_labels_alone_with_a_twin_are_broken_like_the_network(setting):
    model, x, y, margins = setting
    predict = function_of(model, lambda z: z.argmax(1))
    deployed = DeployedClassifier(predict, SHAPE, CLASSES, twin=linear(), labels_only=True)
    crafted = craft(deployed, "artq:multi-targeted", x, y, threat=THREAT, options={"max_iter": 20})
    assert left(model, crafted, y) == pytest.approx(float((margins >= 0).float().mean()))


LIBRARIES = {
    "art:pgd": {"max_iter": 10},
    "art:fgsm": {},
    "torchattacks:pgd": {"max_iter": 10},
    "autoattack:apgd-ce": {},
    "autoattack:square": {"n_queries": 50},
    "artq:apgd-margin": {"max_iter": 10},
    "artq:search": {"n_queries": 50},
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_sees_the_same_as_in_the_network(setting, name):
    model, x, y, margins = setting
    deployed = DeployedClassifier(function_of(model), SHAPE, CLASSES, twin=linear())
    plain = QuantizedClassifier(model, nn.CrossEntropyLoss(), SHAPE, CLASSES, device_type="cpu")
    one, other = (craft(e, name, x, y, threat=THREAT, options=LIBRARIES[name]) for e in (deployed, plain))
    torch.testing.assert_close(one.x_adv, other.x_adv, atol=1e-5, rtol=0)
    assert (one.forward_samples, one.backward_samples) == (other.forward_samples, other.backward_samples)
    assert left(model, one, y) < 1 and (model(one.x_adv).argmax(1) == y)[margins > 0].all()


def test_arts_decision_attack_runs_on_labels_alone(setting):
    model, x, y, margins = setting
    from art.attacks.evasion import HopSkipJump

    few = (margins < -0.3).nonzero()[:4, 0]
    deployed = DeployedClassifier(function_of(model, lambda z: z.argmax(1)), SHAPE, CLASSES, labels_only=True)
    attack = HopSkipJump(deployed, norm=np.inf, max_iter=5, max_eval=300, init_eval=20, verbose=False)
    x_adv = torch.from_numpy(attack.generate(x[few].numpy(), y[few].numpy()))
    assert (model(x_adv).argmax(1) != y[few]).all()


def test_images_are_judged_by_the_deployed_model_and_not_by_the_twin(setting):
    """The twin is of another network: what fools it need not fool what is deployed."""
    model, x, y, _ = setting
    other = linear(seed=9)
    deployed = DeployedClassifier(function_of(model), SHAPE, CLASSES, twin=other)
    found = diagnose(deployed, x, y, THREAT, level=1)
    pgd = next(o for o in found.run.outcomes if o.cell.attack == "art:pgd")
    x_adv = torch.from_numpy(found.run.store.images(pgd.cell.id))
    assert np.array_equal(pgd.column("correct"), (model(x_adv).argmax(1) == y).numpy())
    assert np.array_equal(pgd.column("agrees"), (model(x_adv).argmax(1) == other(x_adv).argmax(1)).numpy())
    fired = {f.id: f.evidence for f in found.findings if f.fired}
    assert "a given twin" in fired["deployed-model"]
    clean = int((model(x).argmax(1) != other(x).argmax(1)).sum())
    assert f"{clean} of 64 clean images" in fired["twin-parity"]


def test_a_diagnosis_of_answers_with_their_own_twin_finds_what_it_finds_in_the_network(setting):
    model, x, y, margins = setting
    estimator = DeployedClassifier(function_of(model, ANSWERS["probabilities"]), SHAPE, CLASSES, twin=linear())
    found = diagnose(estimator, x, y, THREAT, level=1)
    assert found.corrected_accuracy == pytest.approx(float((margins >= 0).float().mean()), abs=0.02)
    answers = {f.id: f.answer for f in found.findings}
    assert answers["twin-parity"] == "silent" and answers["zero-gradient"] == "silent"
    assert answers["no-gradient"] == "silent" and answers["probabilities"] == "fired"


def test_a_plain_network_is_no_deployed_model(setting):
    model, x, y, _ = setting
    plain = QuantizedClassifier(model, nn.CrossEntropyLoss(), SHAPE, CLASSES, device_type="cpu")
    answers = {f.id: f.answer for f in diagnose(plain, x, y, THREAT, level=0).findings}
    assert {answers[name] for name in ("deployed-model", "twin-parity")} == {"does not apply"}
