"""Where a gradient is lost is found by measurement, and the way back follows the true slope. No output changes."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from graphs import FunctionLayer, Nothing, Zero, images, slope
from PIL import Image
from torch import nn
from torch.nn import functional as F

from art_qplugins.gradients.counting import counting
from art_qplugins.gradients.first_layer import at_first_layer
from art_qplugins.gradients.trajectory import tracking
from art_qplugins.gradients.visits import watching
from art_qplugins.gradients.way_back import twin_and_way_back, way_back
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.quantizers.protocol import activation_quantizers
from art_qplugins.quantizers.stochastic import StochasticQuantizer
from art_qplugins.threat import Threat

RADIUS = 0.15


class Garbage(torch.autograd.Function):
    """A rounding with a backward that has nothing to do with it."""

    @staticmethod
    def forward(ctx, x):
        return (x * 16).round() / 16

    @staticmethod
    def backward(ctx, grad):
        return torch.randn(grad.shape, generator=torch.Generator().manual_seed(0)) * grad.abs().mean()


def jpeg(x):
    pictures = []
    for image in x:
        file = io.BytesIO()
        Image.fromarray((image[0].detach().numpy() * 255).astype(np.uint8)).save(file, "JPEG", quality=75)
        pictures.append(torch.from_numpy(np.array(Image.open(file)).astype(np.float32) / 255)[None])
    return torch.stack(pictures)


def by_numpy(x):
    return torch.from_numpy(np.round(x.detach().numpy() * 16) / 16)


def in_no_grad(x):
    with torch.no_grad():
        return (x * 2).tanh() * 2


def in_place(x):
    y = x * 16
    y.round_()
    return y / 16


#: What is done to the pixels. Each is the identity up to small steps, so the slope of the linear network is the true one.
BEFORE = {
    "JPEG by Pillow": jpeg,
    "NumPy": by_numpy,
    ".data": lambda x: x.data * 1.0,
    "detach": lambda x: x.detach(),
    "no_grad": in_no_grad,
    "rounding from 1": lambda x: 1 - ((1 - x) * 16).round() / 16,
    "rounding in place": in_place,
    "ripples": lambda x: x + 0.05 * torch.sin(1000 * x),
    "a backward of zeros": Zero.apply,
    "a backward of None": Nothing.apply,
    "a backward of garbage": Garbage.apply,
    "two in series": lambda x: by_numpy((x * 12).round() / 12).clone(),
}


def linear(before=None, after=None):
    """Linear on 8x8 pixels, with 5 classes."""
    torch.manual_seed(3)
    parts = [nn.Flatten(), nn.Linear(64, 5)]
    parts = [FunctionLayer(before), *parts] if before else parts
    return nn.Sequential(*parts, *([FunctionLayer(after)] if after else [])).eval()


def pictures(n=40):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


def cosine(model, honest, x):
    y = honest(x).argmax(1)
    a, b = (slope(m, x, y).flatten(1) for m in (model, honest))
    return F.cosine_similarity(a, b).quantile(0.5)


@pytest.mark.parametrize("name", BEFORE)
def test_what_loses_the_gradient_of_the_pixels_is_bridged(name):
    x, model = pictures(), linear(BEFORE[name])
    view = way_back(model, x, radius=RADIUS)
    assert cosine(view, linear(), x) > 0.9 > 0.5 > cosine(model, linear(), x)
    for n in (1, 2, 3, 40):
        assert torch.equal(view(x[:n].clone().requires_grad_()), model(x[:n]))
        assert slope(view, x[:n], model(x[:n]).argmax(1)).any()
    assert view.lost and all(row["after"] > row["before"] for row in view.lost)


class Attention(nn.Module):
    """A small transformer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, stride=2)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu")
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layer(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(96, 5)

    def forward(self, x):
        y = self.first(x).relu()
        return self.head(self.pool(y + self.second(y).tanh()).flatten(1))


def by_hand(x):
    return x + ((x * 16).round() / 16 - x).detach()


def by_hand_without_gradients(x):
    with torch.no_grad():
        difference = (x * 16).round() / 16 - x
    return x + difference


HONEST = {
    "linear": linear,
    "transformer": lambda: Attention().eval(),
    "residual": lambda: Residual().eval(),
    "straight-through by hand": lambda: linear(by_hand),
    "straight-through by hand in no_grad": lambda: linear(by_hand_without_gradients),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_faithful_gradient_is_left_alone(name):
    torch.manual_seed(0)
    model, x = HONEST[name](), pictures()
    assert way_back(model, x, radius=0.05) is None
    assert twin_and_way_back(model, x, radius=0.05) == (None, None)


def hidden_tanh(after):
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5), *after).eval()


def test_a_loss_at_the_logits_leaves_a_hidden_tanh_its_slope():
    x, honest = pictures(), hidden_tanh([])
    view = way_back(hidden_tanh([FunctionLayer(lambda z: (z * 20).round() / 20)]), x, radius=RADIUS)
    assert cosine(view, honest, x) > 0.99  # with an identity for the tanh it would be another
    assert [(row["op"], row["how"]) for row in view.lost] == [("round", "identity")]


def thermometer(x):
    return (x[:, :, None] > torch.arange(10)[:, None, None] / 10).float().flatten(1, 2)


def test_a_thermometer_code_has_a_learned_surrogate():
    torch.manual_seed(5)
    weight = torch.randn(5, 64)
    head = nn.Linear(640, 5)
    with torch.no_grad():  # ten levels of a pixel add up to the pixel, so the true slope is that of its weights
        head.weight.copy_(weight.repeat(1, 10) / 10)
    model = nn.Sequential(FunctionLayer(thermometer), nn.Flatten(), head).eval()
    honest = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    with torch.no_grad():
        honest[1].weight.copy_(weight)
        honest[1].bias.copy_(head.bias)
    x = pictures()
    view = way_back(model, x, radius=RADIUS)
    assert view.lost[0]["how"] == "surrogate"
    assert cosine(view, honest, x) > 0.5
    assert torch.equal(view(x[:3].requires_grad_()), model(x[:3]))


class Codebook(nn.Module):
    """Features replaced by the nearest codeword."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.features, self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), nn.Linear(4, 5)
        self.register_buffer("book", self.features(pictures(300)).detach())

    def forward(self, x):
        features = self.features(x)
        return self.head(self.book[torch.cdist(features, self.book).argmin(1)])


def test_a_codebook_is_bridged_and_left_out_of_a_twin():
    model, x = Codebook().eval(), pictures()
    honest = nn.Sequential(model.features, model.head)
    twin, view = twin_and_way_back(model, x, radius=RADIUS)
    assert cosine(view, honest, x) > 0.5
    torch.testing.assert_close(twin(x), honest(x))
    assert torch.equal(twin.answer, model(x))


@pytest.mark.parametrize("loop", [False, True])
def test_a_vote_over_noisy_copies_is_bridged_to_all_of_them(loop):
    noise = 0.2 * torch.randn(8, 1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    honest = linear()

    def vote(x):
        if loop:
            return sum(F.one_hot(honest(x + n).argmax(1), 5).float() for n in noise) / 8
        votes = F.one_hot(honest((x + noise).flatten(0, 1)).argmax(1), 5).float()
        return votes.view(8, len(x), 5).mean(0)

    class Vote(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = honest

        def forward(self, x):
            return vote(x)

    model, x = Vote().eval(), pictures()
    view = way_back(model, x, radius=RADIUS)
    assert cosine(view, honest, x) > 0.9
    assert torch.equal(view(x[:5].clone().requires_grad_()), model(x[:5]))


def test_signs_in_series_are_all_bridged():
    torch.manual_seed(7)
    layers = [layer for _ in range(3) for layer in (nn.Linear(64, 64), FunctionLayer(torch.sign))]
    model, x = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 5)).eval(), pictures()
    view = way_back(model, x, radius=RADIUS)
    assert [row["op"] for row in view.lost].count("sign") == 3
    assert slope(view, x, model(x).argmax(1)).flatten(1).any(1).all()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_script_that_loses_the_gradient_is_bridged_as_a_whole():
    class Rounded(nn.Module):
        def forward(self, x):
            return torch.round(x * 16) / 16

    x = pictures()
    model = nn.Sequential(torch.jit.script(Rounded()), *linear()).eval()
    view = way_back(model, x, radius=RADIUS)
    assert cosine(view, linear(), x) > 0.9
    assert view.lost[0]["op"] == "RecursiveScriptModule"


def test_a_network_that_differentiates_in_its_forward_pass_is_bridged():
    class Purified(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = linear()

        def forward(self, x):
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                self.network(point).logsumexp(1).sum().backward()
            return self.network(x.detach() + 0.01 * point.grad.sign())

    model, x = Purified().eval(), pictures()
    view = way_back(model, x, radius=RADIUS)
    assert cosine(view, linear(), x) > 0.9
    assert torch.equal(view(x[:4].clone().requires_grad_()), model(x[:4]))


def test_a_gradient_can_enter_at_the_first_layer_with_weights():
    x, model = pictures(), linear(jpeg)
    model = nn.Sequential(FunctionLayer(jpeg), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 5)).eval()
    view = at_first_layer(model, x, radius=RADIUS)
    assert view.path == "1" and view.lost[0]["op"] == "Conv2d"
    assert cosine(view, nn.Sequential(*model[1:]), x) > 0.9
    assert torch.equal(view(x[:3].clone().requires_grad_()), model(x[:3])) and not model[1]._forward_pre_hooks
    assert at_first_layer(nn.Sequential(*model[1:]), x, radius=RADIUS) is None


def test_what_torch_never_sees_has_no_bridge_but_a_learned_one():
    weight = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)).numpy()

    class Foreign(nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.round(x.detach().numpy().reshape(len(x), -1) @ weight, 1))

    view = way_back(Foreign(), pictures(), radius=RADIUS)
    assert view is None or view.is_substitute
    assert not way_back(linear(by_numpy), pictures(), radius=RADIUS).is_substitute


def test_a_search_leaves_modes_draws_and_gradients_as_they_were():
    model = nn.Sequential(*linear(by_numpy), nn.Dropout()).train()
    x = pictures()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, again = (way_back(model, x, radius=RADIUS, seed=2) for _ in range(2))
    assert first.lost == again.lost
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and random.getstate() == states[2]
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and not x.requires_grad


def test_a_random_network_draws_alike_through_its_view():
    def noisy(x):
        return by_numpy(x) + 0.1 * torch.randn_like(x)

    model, x = linear(noisy), pictures()
    view = way_back(model, x, radius=RADIUS)
    answers = []
    for network in (model, view):
        torch.manual_seed(9)
        answers.append(network(x.clone().requires_grad_()))
    assert torch.equal(*answers)


def test_few_images_are_enough():
    x, y = images(3)
    model = nn.Sequential(FunctionLayer(by_numpy), nn.Flatten(), nn.Linear(16, 3)).eval()
    assert slope(way_back(model, x, radius=RADIUS), x, y).any()


class OddlyStochastic(StochasticQuantizer):
    """A quantizer of random activations without a gradient."""

    def forward(self, x):
        return Zero.apply(super().forward(x))


def test_a_stochastic_quantizer_whose_backward_is_odd_is_a_quantizer_with_a_bridge():
    torch.manual_seed(8)
    layers = nn.Flatten(), nn.Linear(64, 32), OddlyStochastic(4, clip=1.0, low=-1.0), nn.Linear(32, 5)
    model, x = nn.Sequential(*layers).eval(), pictures()
    assert len(activation_quantizers(model)) == 1
    honest = nn.Sequential(layers[0], layers[1], layers[3])
    view = way_back(model, x, radius=RADIUS)
    assert cosine(view, honest, x) > 0.9 and not slope(model, x, model(x).argmax(1)).any()
    answers = []
    for network in (model, view):
        with draws_from(model, 3):
            answers.append(network(x.clone().requires_grad_()))
    assert torch.equal(*answers)


def test_hooks_that_only_look_change_no_key():
    """What watches an attack looks at some calls and not at others. A bridge must hold in all of them."""
    x, model = pictures(), linear(lambda x: x.detach())
    y, threat = model(x).argmax(1), Threat("Linf", RADIUS)
    with watching(model, x), tracking(model, x, y, threat), counting(model):
        view = way_back(model, x, radius=RADIUS)
        assert cosine(view, linear(), x) > 0.99
        view(x + 0.01)
        assert cosine(view, linear(), x) > 0.99
    assert cosine(view, linear(), x) > 0.99
    assert [row["op"] for row in view.lost] == ["detach"]


def test_a_hook_on_the_network_is_a_part_of_it():
    x, model = pictures(), linear()
    model.register_forward_hook(lambda module, args, output: output.detach())
    view = way_back(model, x, radius=RADIUS)
    assert cosine(view, linear(), x) > 0.99


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_ensemble_whose_chunks_depend_on_the_batch_is_bridged_in_every_batch(chunk):
    torch.manual_seed(8)
    layers = nn.Flatten(), nn.Linear(64, 32), OddlyStochastic(4, clip=1.0, low=-1.0), nn.Linear(32, 5)
    model, x = StochasticEnsemble(nn.Sequential(*layers), 8, rule="mean-logits", eot_chunk=chunk).eval(), pictures(120)
    honest, view = nn.Sequential(layers[0], layers[1], layers[3]), way_back(model, x, radius=RADIUS)
    for n in (1, 5, 17, 100, 120):
        assert cosine(view, honest, x[:n]) > 0.9
