"""Modules that compute gradients in their forward pass: attacked through their own steps, scored without gradients."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import diagnose
from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.score import score
from art_qplugins.gradients.measure import measure
from art_qplugins.guard import evaluating, isolated
from art_qplugins.threat import Threat

K = 4
X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
EPS = 0.06


def linear(scale=20.0):
    torch.manual_seed(3)
    layer = nn.Linear(16, K)
    with torch.no_grad():
        layer.weight *= scale
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    return nn.Sequential(nn.Flatten(), layer).eval()


class AntiAdversary(nn.Module):
    """A few steps towards the predicted class before the answer (Alfarra et al. 2022).

    :param through: whether the graph goes through the steps. If not, they are constants, as in the authors' code.
    """

    def __init__(self, network, *, through, steps=2, size=0.02):
        super().__init__()
        self.network, self.through, self.steps, self.size = network, through, steps, size

    def forward(self, x):
        with torch.enable_grad():
            start = x if x.requires_grad and self.through else x.detach().requires_grad_()
            moved = start
            for _ in range(self.steps):
                logits = self.network(moved)
                loss = nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
                (slope,) = torch.autograd.grad(loss, moved, create_graph=self.through)
                moved = moved - self.size * slope.tanh()
        return self.network(x + (moved - start) if not self.through else moved)


class Purified(nn.Module):
    """Gradient steps on a smoothness of the pixels (a purification loop), in place of a generative model."""

    def __init__(self, network, *, steps=3):
        super().__init__()
        self.network, self.steps = network, steps

    def forward(self, x):
        with torch.enable_grad():
            clean = x if x.requires_grad else x.detach().requires_grad_()
            for _ in range(self.steps):
                rough = (clean[..., 1:] - clean[..., :-1]).square().sum()
                (slope,) = torch.autograd.grad(rough, clean, create_graph=True)
                clean = clean - 0.05 * slope
        return self.network(clean)


class Attached(Purified):
    """It leaves its answers in a graph, even where nobody asked for gradients."""

    def forward(self, x):
        with torch.enable_grad():
            return super().forward(x)


MAKERS = {
    "through": lambda: AntiAdversary(linear(), through=True),
    "constant": lambda: AntiAdversary(linear(), through=False),
    "purified": lambda: Purified(linear()),
    "attached": lambda: Attached(linear()),
}


def classifier(module):
    return QuantizedClassifier(module, nn.CrossEntropyLoss(), (1, 4, 4), K, device_type="cpu")


@pytest.fixture(params=MAKERS)
def module(request):
    return MAKERS[request.param]()


def test_predictions_scores_and_measurements_need_no_outer_gradient(module):
    expected = module(X).detach()
    estimator = classifier(module)
    np.testing.assert_allclose(estimator.predict(X.numpy()), expected, rtol=1e-5)
    scored = score(module, X, y := expected.argmax(1), seed=0)
    np.testing.assert_allclose(scored["correct"], 1)
    found = measure(module, X, y, threat=Threat("Linf", EPS))
    assert found.cell["dynamic"] and found.cell["reaches_pixels"]
    assert set(found.cell["skipped"]) <= {"coherence"}  # which is of random modules
    with isolated(module, 0), torch.no_grad():
        torch.testing.assert_close(module(X).detach(), expected)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_the_gradient_goes_through_the_steps():
    """Of a linear map of the pixels in front, the gradient is the network's own, mapped back."""
    module, x = Purified(linear()), X.clone().requires_grad_()
    basis = torch.eye(4).flip(0).diff(dim=0)  # differences of neighbours, up to their sign
    step = torch.eye(4) - 0.1 * basis.T @ basis
    row = torch.linalg.matrix_power(step.flip(0).flip(1), 3)
    weight = module.network[1].weight[0].view(1, 1, 4, 4)
    found = classifier(module).class_gradient(x.detach(), 0)[:, 0]
    torch.testing.assert_close(found, (weight @ row.T).expand_as(found))


def test_a_loop_of_constants_keeps_the_gradient_of_its_network():
    module = MAKERS["constant"]()
    found = classifier(module).class_gradient(X, 0)[:, 0]
    torch.testing.assert_close(found, module.network[1].weight[0].view(1, 1, 4, 4).expand_as(found))


@pytest.mark.parametrize(
    "attack",
    [
        "art:pgd",
        "art:hop-skip-jump",
        "autoattack:apgd-ce",
        "autoattack:fab",
        "autoattack:square",
        "torchattacks:pgd",
        "foolbox:pgd",
        "artq:apgd-margin",
    ],
)
@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")  # foolbox
def test_every_library_attacks_through_the_loop(module, attack):
    y = module(X).argmax(1)
    options = {"autoattack:square": {"n_queries": 300}, "art:hop-skip-jump": {"max_iter": 5, "max_eval": 500}}.get(
        attack, {}
    )
    made = craft(classifier(module), attack, X, y, threat=Threat("Linf", EPS), options=options, seed=0)
    assert not made.x_adv.requires_grad and made.visited
    assert float((module(made.x_adv).argmax(1) == y).float().mean()) < 0.8
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    pickle.loads(pickle.dumps(classifier(module)))


def test_a_diagnosis_has_a_number_of_it(module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diagnose(classifier(module), X, module(X).argmax(1), Threat("Linf", EPS), level=1)
    assert found.corrected_accuracy is not None and found.corrected_accuracy < 1
    assert "test-time-optimisation" in {f.id for f in found.findings if f.fired}
    assert not [o.cell.error for o in found.run.outcomes if not o.ok]


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_modes_and_flags_do_not_break_the_loop(module, context):
    expected = module(X).detach()
    with evaluating(module), isolated(module, 1), context():
        torch.testing.assert_close(module(X).detach(), expected)
        frozen = [p.requires_grad for p in module.parameters()]
    assert not any(frozen)
