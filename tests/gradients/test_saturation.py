"""The tensor before the logits saturate is found by what it does, and not by what comes after it."""

from __future__ import annotations

import pytest
import torch
from graphs import FunctionLayer
from torch import nn
from torch.nn import functional as F

from art_qplugins import QuantizedClassifier, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.errors import InputError
from art_qplugins.gradients.saturation import before_saturation


def network(after=None):
    torch.manual_seed(0)
    parts = [nn.Flatten(), nn.Linear(64, 5)]
    with torch.no_grad():
        parts[1].weight.mul_(8)
    return nn.Sequential(*parts, *([FunctionLayer(after)] if after else [])).eval()


def pictures(n=60):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def squashed(z):
    middle = z.detach().topk(2, dim=1).values.mean(1, keepdim=True)
    return 1e4 * torch.tanh(20 * (z - middle))


FLAT = {
    "softmax": lambda z: (4 * z).softmax(1),
    "softmax twice": lambda z: (4 * z).softmax(1).softmax(1),
    "tanh": squashed,
    "votes": lambda z: F.one_hot(z.argmax(1), 5).float(),
    "rounded": lambda z: (3 * z).round(),
    "clipped": lambda z: (z - z.amax(1, keepdim=True) + 0.1).clamp(0, 0.1),
}


@pytest.mark.parametrize("name", FLAT)
def test_the_tensor_before_a_saturation_has_its_classes_and_still_varies(name):
    model, x = network(FLAT[name]), pictures()
    view = before_saturation(model, x, radius=0.1)
    linear = network()(x)
    found = view(x)
    shifted = found - found.mean(1, keepdim=True)
    wanted = linear - linear.mean(1, keepdim=True)
    assert F.cosine_similarity(shifted, wanted).min() > 0.999  # the linear layer, or a multiple of it
    assert torch.equal(view.answer, model(x))


@pytest.mark.parametrize(
    "after",
    [
        None,
        lambda z: z * 1e4,
        lambda z: z / 1e4,
        lambda z: z.log_softmax(1),
        lambda z: (40 * z).log_softmax(1),
        lambda z: z - z.mean(1, keepdim=True),
    ],
)
def test_logits_that_vary_have_none(after):
    assert before_saturation(network(after), pictures(), radius=0.1) is None


@pytest.mark.parametrize(("limit", "clips"), [(8.0, True), (50.0, False)])
def test_a_largest_logit_that_cannot_be_seen_to_fall_is_a_saturation_though_the_margin_varies(limit, clips):
    quarter = torch.arange(64) // 16
    head = nn.Linear(64, 4)
    with torch.no_grad():
        head.weight.copy_((torch.arange(4)[:, None] == quarter).float())
    x = 0.3 * pictures().flatten(1)
    x = (x + 0.5 * (quarter == torch.arange(60)[:, None] % 4)).view(60, 1, 8, 8)  # one quarter is bright
    model = nn.Sequential(nn.Flatten(), head, FunctionLayer(lambda z: z.clamp(max=limit))).eval()
    assert 2 * model(x).std(0).min() > 1
    assert (before_saturation(model, x, radius=0.1) is not None) is clips


def test_copies_of_an_image_are_averaged():
    noise = 0.05 * torch.randn(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    inner, x = network(), pictures()

    class Vote(nn.Module):
        def __init__(self, loop):
            super().__init__()
            self.inner, self.loop = inner, loop

        def forward(self, x):
            if self.loop:
                return sum(F.one_hot(self.inner(x + n).argmax(1), 5).float() for n in noise)
            return F.one_hot(self.inner((x + noise).flatten(0, 1)).argmax(1), 5).float().view(4, len(x), 5).mean(0)

    mean = torch.stack([inner(x + n) for n in noise]).mean(0)
    for loop in (False, True):
        view = before_saturation(Vote(loop).eval(), x, radius=0.1)
        torch.testing.assert_close(view(x), mean)


def estimator(model):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 5, device_type="cpu")


def test_an_attack_on_it_breaks_what_no_gradient_of_the_logits_breaks():
    model, x = network(squashed), pictures()
    y, threat = model(x).argmax(1), Threat("Linf", 0.1)

    def broken(name, **options):
        found = craft(estimator(model), name, x, y, threat=threat, options=options).x_adv
        assert (found - x).abs().max() <= 0.1 + 1e-6
        return float((model(found).argmax(1) != y).float().mean())

    through = broken("artq:unsaturated")
    linear = craft(estimator(network()), "artq:multi-targeted", x, y, threat=threat).x_adv
    assert through >= float((model(linear).argmax(1) != y).float().mean())
    assert through > broken("artq:apgd-margin") + 0.2
    with pytest.raises(
        InputError, match=r"^artq:unsaturated: the logits of Sequential do not saturate; use artq:apgd-margin"
    ):
        craft(estimator(network()), "artq:unsaturated", x, y, threat=threat)
