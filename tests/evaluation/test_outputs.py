"""Models that answer with probabilities or votes are attacked and scored through the logarithm of their answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.outputs import LogProbabilities, are_probabilities, as_logits
from art_qplugins.evaluation.store import Memory
from art_qplugins.threat import Threat

K = 5
X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
EPS = 0.04


class Linear(nn.Module):
    """Linear logits, then what is asked for. Its nearest adversarial point is known in closed form."""

    def __init__(self, after=lambda z: z, scale=40.0):
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.after, self.scale = nn.Linear(16, K), after, scale

    def forward(self, x):
        return self.after(self.scale * self.layer(x.flatten(1) - 0.5))


def votes(z):
    """Seven noisy copies of the logits vote, with a gradient as if they did not."""
    noise = torch.linspace(-3, 3, 7).view(-1, 1, 1) * torch.linspace(-1, 1, K)
    hard = nn.functional.one_hot((z + noise).argmax(-1), K).sum(0)
    soft = 7 * z.softmax(1)
    return soft + (hard - soft).detach()


def rounded(z):
    p = z.softmax(1)
    return p + (p.mul(1000).round().div(1000) - p).detach()


def classifier(module):
    return QuantizedClassifier(module.eval(), nn.CrossEntropyLoss(), (1, 4, 4), K, device_type="cpu")


def evaluator(module):
    return Evaluator({"a": classifier(module)}, X, Linear()(X).argmax(1), [str(i) for i in range(len(X))])


def robust_accuracy():
    """Exact for linear logits in Linf, where no pixel reaches 0 or 1."""
    network = Linear()
    w, z = network.scale * network.layer.weight, network(X)
    y = z.argmax(1)
    gaps = z.gather(1, y[:, None]) - z - EPS * (w[y][:, None] - w[None]).abs().sum(-1)
    gaps[torch.arange(len(y)), y] = torch.inf
    return float((gaps > 0).all(1).float().mean())


ANSWERS = {
    "probabilities": lambda z: z.softmax(1),
    "twice": lambda z: z.softmax(1).softmax(1),
    "members": lambda z: (z.softmax(1) + (0.5 * z).softmax(1)) / 2,
    "rounded": rounded,
    "cut": lambda z: z.softmax(1) * (z.softmax(1) >= 0.2),
    "votes": votes,
    "shares": lambda z: votes(z) / 7,
    "half": lambda z: z.softmax(1).half(),
}
LOGITS = {
    "logits": lambda z: z,
    "logarithms": lambda z: z.log_softmax(1),
    "positive": lambda z: z.relu(),
    "sigmoids": lambda z: z.sigmoid(),
    "large": lambda z: z.exp(),
    "small": lambda z: z.abs() / 1e4,
    "constant": lambda z: 0 * z + 3.0,
    "undefined": lambda z: z * torch.nan,
    "one": lambda z: z[:, :1].sigmoid(),
    "whole": lambda z: z.argmax(1),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_probabilities_and_votes_are_seen_as_logarithms_and_no_prediction_changes(name):
    module = Linear(ANSWERS[name])
    assert are_probabilities(module(X))
    bare = classifier(module)
    module.train()
    estimator = as_logits(bare, X)
    assert module.training and module.layer.training
    assert isinstance(estimator.model, LogProbabilities) and estimator.model.network is module
    logs = estimator.model(X)
    assert torch.isfinite(logs).all() and torch.equal(logs.argmax(1), module(X).argmax(1))
    assert as_logits(estimator, X) is estimator


@pytest.mark.parametrize("name", LOGITS)
def test_other_answers_stay_as_they_are(name):
    module = Linear(LOGITS[name])
    assert not are_probabilities(module(X))
    assert as_logits(classifier(module), X).model is module


def test_a_single_image_tells_probabilities_from_logits_but_not_votes():
    assert are_probabilities(torch.tensor([[0.9, 0.1]]))
    assert not are_probabilities(torch.tensor([[5.0, 2.0]]))


def test_a_model_that_raises_stays_as_it_is_and_its_buffers_as_they_were():
    def raises(z):
        raise SystemExit(1)

    assert as_logits(classifier(module := Linear(raises)), X).model is module

    class Counting(Linear):
        def __init__(self):
            super().__init__(ANSWERS["probabilities"])
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    assert isinstance(as_logits(classifier(counting := Counting()), X).model, LogProbabilities)
    assert counting.calls == 0


@pytest.mark.parametrize("name", ["probabilities", "twice", "members", "rounded", "votes", "shares"])
@pytest.mark.parametrize("attack", ["art:pgd", "autoattack:apgd-ce", "torchattacks:pgd"])
def test_attacks_break_what_they_break_of_logits(attack, name):
    """The linear network's robust accuracy is known. Cross-entropy of its bare probabilities leaves more standing."""
    logits, shown = (evaluator(Linear(after)).estimators["a"] for after in (LOGITS["logits"], ANSWERS[name]))
    y = Linear()(X).argmax(1)
    left = []
    for estimator in (logits, shown):
        x_adv = craft(estimator, attack, X, y, threat=Threat("Linf", EPS), seed=0).x_adv
        left.append(float((Linear()(x_adv).argmax(1) == y).float().mean()))
    assert robust_accuracy() <= min(left) and left[1] <= left[0] + 1 / len(X)


def test_the_clean_cell_says_what_the_model_answers_with():
    """The measurements see logarithms; the finding is about the model."""
    for module, expected in ((Linear(ANSWERS["probabilities"]), True), (Linear(), None)):
        for radius in (0.0, 0.05):
            spec = CellSpec(
                model="a",
                source="a",
                attack="artq:clean",
                norm="Linf",
                eps=0.0,
                seed=0,
                role="clean",
                options={"radius": radius},
            )
            here = evaluator(module)
            ((_, outcome, _),) = run_cells(here, [spec], Memory(), Serial(here))
            facts = outcome.cell.facts
            assert outcome.cell.accuracy == 1
            assert facts["probabilities"] is bool(expected) and facts.get("logarithm") is expected
            assert facts["log_softmax"] is bool(expected)
