"""Where the worst case takes its gradients from."""

from __future__ import annotations

import pytest
import torch
from adaptive_nets import Noisy, Rounded, estimator, linear, margin, worst_margin
from torch import nn

from art_qplugins import QuantReLU, Threat
from art_qplugins.attacks.adaptive.full_precision import full_precision
from art_qplugins.attacks.adaptive.guides import find_guides, own_guide
from art_qplugins.attacks.adaptive.objectives import direct, margin_loss
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import Connected


class Squashed(nn.Module):
    """The logits of a network through tanh: flat where one is large."""

    def __init__(self, network, gain):
        super().__init__()
        self.network, self.gain = network, gain

    def forward(self, x):
        logits = self.network(x)
        spread = logits.detach().std()
        return torch.tanh(self.gain * logits / spread)


def run_on(model, x, y, eps=0.06, random=False):
    settings = {"batch_size": 50, "seed": 0, "max_iter": 1, "random": random}
    return AttackRun(name="artq:test", module=model, x=x, y=y, threat=Threat("Linf", eps), **settings)


def gradient(guide, run):
    return guide.objective(run, margin_loss(run.y))(run.x, run.all_rows(), step=0).gradient


def same_way(a, b):
    """Whether nearly all images have gradients that point the same way. Near a tie, the next class may be another."""
    return (nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)) > 0.99).float().mean() > 0.9


def test_a_faithful_gradient_is_the_only_guide():
    model, x, y = linear(10)
    run = run_on(model, x, y)
    (guide,) = find_guides(run, own_guide(run))
    torch.testing.assert_close(gradient(guide, run), gradient(own_guide(run), run))


def test_where_no_gradient_reaches_the_pixels_a_repaired_one_guides():
    model, x, y = linear(10, [Rounded(20)])
    run = run_on(Connected(model), x, y)
    assert not gradient(own_guide(run), run).any()
    whole = run_on(nn.Sequential(*model[1:]), x, y)
    assert same_way(gradient(find_guides(run, own_guide(run))[0], run), gradient(own_guide(whole), whole))


def test_logits_that_saturate_are_followed_before_they_do():
    model, x, y = linear(10)
    run = run_on(Squashed(model, 4.0), x, y, eps=0.2)
    assert (gradient(own_guide(run), run).flatten(1).abs().amax(1) < 1e-3).float().mean() > 0.3
    found, whole = gradient(find_guides(run, own_guide(run))[0], run), run_on(model, x, y)
    assert same_way(found, gradient(own_guide(whole), whole))


def test_of_a_random_network_a_repaired_gradient_is_a_mean_over_draws():
    model, x, y = linear(10, [Noisy(0.05), Rounded(20)])
    run = run_on(Connected(model), x, y, random=True)
    assert not gradient(own_guide(run), run).any()
    guide = find_guides(run, own_guide(run))[0]
    assert guide.draws >= 1 and guide.cost >= guide.draws
    whole = run_on(nn.Sequential(*model[2:]), x, y)
    assert same_way(gradient(guide, run), gradient(own_guide(whole), whole))


def test_coarse_activations_are_followed_through_their_twins_and_judged_as_they_are():
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 32), QuantReLU(1, clip=1.0), nn.Linear(32, 4))
    model, x = nn.Sequential(*layers).eval(), torch.rand(40, 1, 8, 8)
    run = run_on(model, x, model(x).argmax(1))
    *_, twin, finer = find_guides(run, own_guide(run))
    assert not twin.deployed and not finer.deployed
    loss = margin_loss(run.y)
    answers = [guide.objective(run, loss)(x, run.all_rows(), step=0) for guide in (twin, finer)]
    own = direct(model, run.y, loss)(x, run.all_rows(), step=0)
    with full_precision(model, x):
        wanted = direct(model, run.y, loss)(x, run.all_rows(), step=0).gradient
    torch.testing.assert_close(answers[0].gradient, wanted)
    assert not torch.equal(answers[0].gradient, answers[1].gradient)
    for answer in answers:
        assert torch.equal(answer.loss, own.loss) and torch.equal(answer.margin, own.margin)


@pytest.mark.parametrize(("budget", "searched"), [(None, True), (1, False)])
def test_gradients_of_others_are_looked_for_where_the_budget_has_room(budget, searched, monkeypatch):
    import art_qplugins.attacks.adaptive.worst_case as module

    asked = []
    monkeypatch.setattr(module, "find_guides", lambda run, own: asked.append(run) or [own])
    model, x, y = linear(10)
    craft(estimator(model, 10), "artq:worst-case", x, y, threat=Threat("Linf", 1e-4), options={"budget": budget})
    assert bool(asked) is searched


def test_steps_in_the_pixels_hide_nothing_from_the_worst_case():
    model, x, y = linear(10, [Rounded(30)])
    threat = Threat("Linf", 0.1)  # three levels
    crafted = craft(estimator(model, 10), "artq:worst-case", x, y, threat=threat, options={"effort": "quick"})
    surely = worst_margin(model, x, y, Threat("Linf", 0.1 - 1 / 30)) < 0  # the next level inside
    assert int(surely.sum()) > 10 and (margin(model, crafted.x_adv, y)[surely] < 0).all()
