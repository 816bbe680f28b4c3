"""The attacks that are tested the most, small networks for them, and a linear model with its worst case."""

from __future__ import annotations

import torch
from torch import nn

from art_qplugins import ATTACKS
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize

N = 6
EPS = {"Linf": 0.2, "L2": 0.8, "L1": 3.0, "L0": 3.0}
# Enough to run the code; whether the attacks are strong is the oracle's business.
CHEAP = {"max_iter": 4, "n_queries": 30, "eot_iter": 2, "directions": 2, "restarts": 2, "steps": 5}
#: Ours and AutoAttack's, and the usual ones of the libraries; the contract of all rows is in test_contract.py.
CORE = [n for n in ATTACKS if n.split(":")[0] in ("autoattack", "artq") and n != "autoattack:plus"]
CORE += ["art:fgsm", "art:bim", "art:pgd", "art:mifgsm", "art:square"]
CORE += ["torchattacks:fgsm", "torchattacks:pgd", "torchattacks:mifgsm", "torchattacks:eotpgd"]
CASES = [(name, norm) for name in CORE for norm in ATTACKS[name].norms]


def cheap(name):
    return {option: CHEAP[option] for option in ATTACKS[name].options if option in CHEAP}


#: Attacks that need something to undo.
QUANTIZED = ("artq:full-precision", "artq:bits", "artq:joint")
#: Attacks that need logits that saturate.
SATURATED = ("artq:unsaturated",)


class Steep(nn.Module):
    """Probabilities that are near 0 and 1."""

    def forward(self, z):
        return (200 * z).softmax(1)


def network(stochastic=False, quantized=False):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    if stochastic:
        return StochasticEnsemble(quantize(net, activation_bits=3, clip=2.0, alpha=2.0), 2).eval()
    return quantize(net, activation_bits=3, clip=2.0).eval() if quantized else net.eval()


def example(name):
    """A small model of the kind that the attack is for, images, and the labels that the model itself gives them."""
    model = network(ATTACKS[name].models == "stochastic", name in QUANTIZED)
    if name in SATURATED:
        model = nn.Sequential(model, Steep()).eval()
    x = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = model(x).argmax(1)
    return classifier(model), x, y


def classifier(model, shape=(1, 8, 8), nb_classes=10):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), shape, nb_classes, device_type="cpu")


def linear(nb_classes, seed=0):
    """A linear classifier, and images so far from 0 and 1 that only eps limits an attack."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, nb_classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(nb_classes, 64, generator=generator))
        model[1].bias.copy_(torch.randn(nb_classes, generator=generator) * 0.1)
        x = torch.rand(40, 1, 8, 8, generator=generator) * 0.4 + 0.3
        y = model.eval()(x).argmax(1)
    return classifier(model, (1, 8, 8), nb_classes), x, y


def worst_margin(model, x, y, norm, eps):
    """min over the ball of z_y - max_{j != y} z_j: by duality, each difference falls by eps times its dual norm."""
    weight = model[1].weight.detach()
    with torch.no_grad():
        logits = model(x)
    dual = {"Linf": 1, "L2": 2}[norm]
    fall = eps * torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=dual, dim=2)
    margins = logits.gather(1, y[:, None]) - logits - fall
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


def margin(model, x, y):
    with torch.no_grad():
        return logit_margin(model(x), y)
