"""A twin fitted to answers: how many it takes, that it depends on its seed alone, and what it is good for."""

from __future__ import annotations

import pytest
import torch
from deployed_nets import CLASSES, SHAPE, function_of, images, linear
from torch import nn

from art_qplugins import DeployedClassifier, InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.deployment.distil import distil
from art_qplugins.deployment.module import Answering


class Counted:
    identity = "counted"

    def __init__(self, answer=lambda z: z):
        self.model, self.asked, self.answer = linear(), 0, answer

    def __call__(self, x):
        self.asked += len(x)
        return function_of(self.model, self.answer)(x)


@pytest.mark.parametrize(("queries", "n"), [(40, 64), (64, 64), (200, 64), (300, 2)])
def test_it_asks_for_as_many_answers_as_it_says(queries, n):
    predict = Counted()
    module = Answering(predict, SHAPE, CLASSES)
    before = predict.asked
    made = distil(module, images(n), queries=queries, steps=2)
    assert predict.asked - before == queries == made.distilled_from
    assert any(f"distilled from {queries} answers" in fact for fact in made.facts)
    assert module.twin is None


def test_it_is_the_same_for_the_same_seed():
    module, before = Answering(Counted(), SHAPE, CLASSES), torch.get_rng_state()
    one, same, other = (
        distil(module, images(), queries=100, steps=3, seed=seed).twin_logits(images()) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("labels_only", [False, True])
def test_an_attack_through_it_breaks_what_can_be_broken(labels_only):
    answer = (lambda z: z.argmax(1)) if labels_only else (lambda z: z)
    model, x = linear(), images(64)
    y = model(x).argmax(1)
    bare = DeployedClassifier(Counted(answer), SHAPE, CLASSES, labels_only=labels_only)
    made = bare.distilled(x, queries=1500, steps=300)
    assert (made.model.twin_logits(x).argmax(1) == y).float().mean() > 0.9
    crafted = craft(made, "art:pgd", x, y, threat=Threat("Linf", 0.15))
    blind = craft(bare, "art:pgd", x, y, threat=Threat("Linf", 0.15))
    assert (model(crafted.x_adv).argmax(1) == y).float().mean() < 0.3
    assert (model(blind.x_adv).argmax(1) == y).float().mean() > 0.8


def test_a_network_may_be_given_and_stays_as_it_is():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    before = network[1].weight.clone()
    made = distil(Answering(Counted(), SHAPE, CLASSES), images(), queries=300, steps=300, network=network)
    assert torch.equal(network[1].weight, before) and isinstance(made.twin.network[1], nn.Linear)


def test_scores_of_the_twin_have_the_scale_of_the_models():
    made = distil(Answering(Counted(lambda z: 1000 * z), SHAPE, CLASSES), images(), queries=500, steps=200)
    x = images()
    ratio = made.twin_logits(x).std() / made(x).std()
    assert 0.5 < float(ratio) < 2


def test_what_does_not_fit_is_refused():
    module = Answering(Counted(), SHAPE, CLASSES, twin=linear())
    with pytest.raises(InputError, match="has a twin"):
        distil(module, images())
    with pytest.raises(InputError, match=r"images are \(1, 5, 5\)"):
        distil(module.without_twin(), images(4, (1, 5, 5)))
