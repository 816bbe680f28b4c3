"""An attack through a network that is fitted to answers: what it finds behind answers without a gradient, and what it asks."""

from __future__ import annotations

import pytest
import torch
from adaptive_nets import estimator, linear, margin, worst_margin
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import check_legal

THREAT = Threat("Linf", 0.06)


class Hidden(nn.Module):
    """Answers from NumPy."""

    def __init__(self, network, answer):
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x):
        with torch.no_grad():
            logits = self.network(torch.from_numpy(x.detach().cpu().numpy().copy()))
        return self.answer(logits)


ANSWERS = {
    "logits": lambda z: z,
    "large logits": lambda z: 1e4 * z,
    "probabilities": lambda z: z.softmax(1),
    "decisions": lambda z: nn.functional.one_hot(z.argmax(1), z.shape[1]).float(),
    "infinite logarithms": lambda z: nn.functional.one_hot(z.argmax(1), z.shape[1]).float().log(),
    "noisy logits": lambda z: z + 0.1 * torch.randn_like(z),
}


@pytest.mark.parametrize(
    "answer",
    [
        *("logits", "probabilities", "decisions", "noisy logits"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("large logits", "infinite logarithms")),
    ],
)
def test_what_can_be_broken_is_broken_through_answers_alone(answer):
    model, x, y = linear(10)
    hidden = Hidden(model, ANSWERS[answer])
    options = {"rounds": 3, "steps": 150, "n_queries": 200, "targets": 4}
    crafted = craft(estimator(hidden, 10), "artq:substitute", x, y, threat=THREAT, options=options)
    check_legal(x, crafted.x_adv, THREAT)
    can = worst_margin(model, x, y, THREAT) < -0.3
    broken = margin(model, crafted.x_adv, y) < 0
    assert int(can.sum()) > 20 and (broken[can]).float().mean() > 0.5
    assert crafted.backward_samples == 0


@pytest.mark.parametrize("noisy", [False, True])
def test_it_asks_no_more_than_its_row_says(noisy):
    model, x, y = linear(10)
    hidden = Hidden(model, ANSWERS["noisy logits" if noisy else "logits"])
    for norm in ("Linf", "L2"):
        crafted = craft(estimator(hidden, 10), "artq:substitute", x, y, threat=Threat(norm, 1e-3), options={"steps": 5})
        judged = 16 if noisy else 1
        asked = 300 + 2500 // judged * judged + (6 + 10) * judged
        assert crafted.forward_samples / len(x) == pytest.approx(asked, abs=2)


def test_it_is_repeatable_and_leaves_no_trace_in_the_generators():
    model, x, y = linear(10)
    hidden, options = Hidden(model, ANSWERS["logits"]), {"rounds": 1, "steps": 20, "n_queries": 10}
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        found.append(
            craft(estimator(hidden, 10), "artq:substitute", x, y, threat=THREAT, options=options, seed=4).x_adv
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_a_small_substitute_fits_images_of_every_shape():
    for shape in ((1, 3, 4), (3, 32, 32), (2, 9, 40)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3))
        x = torch.rand(2, *shape)
        y = model(x).argmax(1)
        options = {"rounds": 1, "steps": 2, "n_queries": 5, "points": 2}
        crafted = craft(
            estimator(model, 3, shape), "artq:substitute", x, y, threat=Threat("Linf", 1e-4), options=options
        )
        assert crafted.x_adv.shape == x.shape
