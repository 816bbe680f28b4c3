"""Adversarial training and TRADES against their formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from art_qplugins import InputError
from art_qplugins.defences import DEFENCES
from art_qplugins.defences.adversarial import AdversarialTraining, Trades
from art_qplugins.defences.base import Defence
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.mnist_cnn import MnistCNN
from art_qplugins.threat import kurakin_steps
from art_qplugins.training.batches import loss_of

EPS = 8 / 255
GRAY = 0.5


def convnet():
    torch.manual_seed(1)
    return ConvNet((1, 8, 8), 10, width=4)


@pytest.fixture
def batch(digits):
    return digits[0].x()[:20], digits[0].y()[:20]


class Linear(nn.Module):
    """Logits (0, w . x): the gradient of the loss has the sign of w for class 0, and of -w for class 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64))

    def forward(self, x):
        z = x.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(z), z], 1)

    def away(self, y):
        """The direction of the gradient, (N, 1, 8, 8)."""
        return (self.weight.detach().sign() * (1 - 2 * y[:, None])).view(-1, 1, 8, 8)


def gray(n):
    return torch.full((n, 1, 8, 8), GRAY), torch.arange(n) % 2


# --- the methods


def test_fgsm_is_one_step_of_eps_along_the_sign_of_the_gradient():
    x, y = gray(4)
    model = Linear()
    x_adv = AdversarialTraining("fgsm", eps=EPS).images(model, x, y)
    torch.testing.assert_close(x_adv, x + EPS * model.away(y))


def test_r_fgsm_takes_half_of_eps_at_random_and_half_along_the_gradient():
    x, y = gray(4)
    model = Linear()
    torch.manual_seed(5)
    x_adv = AdversarialTraining("r+fgsm", eps=EPS).images(model, x, y)
    torch.manual_seed(5)
    expected = x + EPS / 2 * torch.randn(x.shape).sign() + EPS / 2 * model.away(y)
    torch.testing.assert_close(x_adv, expected)


def test_the_gradient_of_r_fgsm_is_that_at_the_random_point(batch):
    x, y = batch
    model = convnet().eval()
    torch.manual_seed(5)
    x_adv = AdversarialTraining("r+fgsm", eps=0.2).images(model, x, y)
    torch.manual_seed(5)
    begin = (x + 0.1 * torch.randn(x.shape).sign()).clamp(0, 1).requires_grad_()
    there, here = (
        torch.autograd.grad(F.cross_entropy(model(point), y), point)[0] for point in (begin, x.clone().requires_grad_())
    )
    assert (there.sign() != here.sign()).any()
    torch.testing.assert_close(x_adv, (begin + 0.1 * there.sign()).clamp(0, 1).detach())


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({}, 1.0),  # 7 steps of 2.5 / 7
        ({"steps": 1}, 1.0),
        ({"steps": 2, "step_size": EPS / 4}, 0.5),
        ({"steps": 3, "step_size": 0.5}, 1.0),
    ],
)
def test_pgd_goes_as_far_as_its_steps_and_the_ball_let_it(options, reach):
    x, y = gray(4)
    model = Linear()
    x_adv = AdversarialTraining("pgd", eps=EPS, start="none", **options).images(model, x, y)
    torch.testing.assert_close(x_adv, x + reach * EPS * model.away(y))


@pytest.mark.parametrize(
    ("eps", "steps"), [(2, 2), (8, 10), (16, 20), (0.1, 1), (0.8, 1), (1, 1), (4, 5), (12, 15), (17, 21), (32, 36)]
)
def test_the_number_of_steps_of_kurakin(eps, steps):
    assert kurakin_steps(eps / 255) == steps


def test_kurakins_steps_are_one_level_of_255():
    x, y = gray(2)
    model = Linear()
    x_adv = AdversarialTraining(eps=40 / 255, steps="kurakin", start="none").images(model, x, y)
    torch.testing.assert_close(x_adv, x + 40 / 255 * model.away(y))  # 44 steps reach the ball
    x_adv = AdversarialTraining(eps=160 / 255, steps="kurakin", start="none").images(model, x, y)
    torch.testing.assert_close(x_adv, (x + 160 / 255 * model.away(y)).clamp(0, 1))
    x_adv = AdversarialTraining(eps=0.5 / 255, steps="kurakin", start="sign").images(model, x, y)
    torch.testing.assert_close(x_adv, x + 0.5 / 255 * model.away(y))  # one step of 1/255, and the ball


# --- how far


def radii(defence, n):
    """The radius of each image, which FGSM shows on a linear model."""
    x, y = gray(n)
    moves = (defence.images(Linear(), x, y) - x).abs().flatten(1)
    torch.testing.assert_close(moves.amax(1), moves.amin(1))
    return 255 * moves.amax(1)


def test_normal_radii_are_those_of_kurakin():
    found = radii(AdversarialTraining("fgsm", eps=16 / 255, distribution="normal"), 20_000)
    assert found.max() == pytest.approx(16)
    # The mean of min(|N(0, 8)|, 16): 8 sqrt(2 / pi) (1 - e^-2) + 16 P(|z| > 2)
    tail = math.erfc(2 / math.sqrt(2))
    mean = 8 * math.sqrt(2 / math.pi) * (1 - math.exp(-2)) + 16 * tail
    assert float(found.mean()) == pytest.approx(mean, abs=4 * 4.7 / math.sqrt(20_000))
    assert float((found > 15.999).float().mean()) == pytest.approx(tail, abs=0.007)
    assert float(found.median()) == pytest.approx(8 * 0.6745, abs=0.2)


def test_a_batch_has_one_normal_radius_and_the_next_another():
    defence = AdversarialTraining("fgsm", eps=16 / 255, distribution="normal", per="batch")
    several = torch.stack([radii(defence, 10) for _ in range(200)])
    torch.testing.assert_close(several.amax(1), several.amin(1))
    assert len(several[:, 0].round(decimals=3).unique()) > 100
    assert several.max() <= 16.001 and float(several[:, 0].mean()) == pytest.approx(6.25, abs=1.5)


def test_the_steps_of_a_batch_are_those_of_its_radius(batch):
    model, calls = convnet(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    defence = AdversarialTraining(eps=16 / 255, distribution="normal", per="batch", steps="kurakin", start="none")
    for seed in range(5):
        torch.manual_seed(seed)
        radius = min(abs(float(torch.randn(()))) * 8, 16)
        calls.clear()
        torch.manual_seed(seed)
        x_adv = defence.images(model, *batch)
        assert len(calls) == kurakin_steps(radius / 255)
        assert (x_adv - batch[0]).abs().max() <= radius / 255 + 1e-7


@pytest.mark.parametrize(("share", "count"), [(1.0, 10), (0.5, 5), (0.01, 1), (0.7, 7), (0.41, 5)])
def test_a_share_of_the_batch_is_crafted(share, count):
    x, y = gray(10)
    moved = (AdversarialTraining("fgsm", eps=EPS, share=share).images(Linear(), x, y) - x).abs().flatten(1).amax(1)
    torch.testing.assert_close(moved, torch.tensor([EPS] * count + [0.0] * (10 - count)))


# --- batch norm


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_batch_norm_takes_running_statistics_or_those_of_the_batch(batch_norm, batch):
    x, y = batch
    model = convnet()
    with torch.no_grad():
        model(2 * x + 1)  # running statistics that are not those of x
    alone = copy.deepcopy(model).train(batch_norm == "train")
    other = copy.deepcopy(model).train(batch_norm != "train")
    expected, different = ((x + EPS * _gradient(network, x, y).sign()).clamp(0, 1) for network in (alone, other))
    assert not torch.allclose(expected, different)
    found = AdversarialTraining("fgsm", eps=EPS, batch_norm=batch_norm).images(model.train(), x, y)
    torch.testing.assert_close(found, expected)


def _gradient(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]


def test_batch_norm_of_the_batch_takes_two_images_at_least():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

        def forward(self, x):
            return self.body(x)

    x, y = gray(10)
    x_adv = AdversarialTraining("fgsm", eps=EPS, share=0.01, batch_norm="train").images(
        Flat(), x + torch.rand(10, 1, 1, 1) / 4, y
    )
    assert x_adv.shape == x.shape


# --- options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "fgsm", "steps": 7}, "method is 'fgsm' and steps is 7; give method = \"pgd\""),
        ({"method": "r+fgsm", "step_size": 0.1}, "step_size"),
        ({"method": "fgsm", "start": "none"}, "start"),
        ({"steps": "kurakin", "step_size": 0.1}, "kurakin steps are 1/255"),
        ({"steps": "kurakin", "distribution": "normal"}, 'give per = "batch"'),
        ({"steps": "kurakin", "distribution": "normal", "per": "image"}, 'give per = "batch"'),
        ({"eps": 8}, "eps: it is 8; give a number in (0, 1]"),
        ({"eps": 0}, "eps"),
        ({"steps": 0}, "steps"),
        ({"share": 0}, "share"),
        ({"method": "fgms"}, "method"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options, says):
    row = DEFENCES["adversarial-training"]
    for call in (row.resolve, lambda given: AdversarialTraining(**given)):
        with pytest.raises(InputError) as caught:
            call(options)
        line = str(caught.value)
        assert line.isprintable() and says in line


@pytest.mark.parametrize("name", ["adversarial-training", "trades"])
def test_recipes_may_write_eps_as_papers_do(name):
    row = DEFENCES[name]
    resolved = row.resolve({"eps": "16/255", "step_size": "2/255"})
    assert (resolved["eps"], resolved["step_size"]) == (16 / 255, 2 / 255)
    assert row.resolve({})["eps"] == 8 / 255
    assert row.load()(**resolved).eps == 16 / 255
    for odd in ("8/256/2", "8/0", "eight", "", "nan", "8"):
        with pytest.raises(InputError, match=rf"^{name}: option eps: [^\n]+$"):
            row.resolve({"eps": odd})


@pytest.mark.parametrize(
    ("options", "threat", "passes"),
    [
        ({}, EPS, 7),
        ({"method": "fgsm", "share": 0.5}, EPS, 0.5),
        ({"method": "r+fgsm", "eps": 0.1}, 0.1, 1),
        ({"steps": "kurakin"}, EPS, 10),
        ({"distribution": "normal", "eps": 16 / 255}, EPS, 7),
    ],
)
def test_what_it_is_trained_for_and_what_it_costs(options, threat, passes):
    defence = AdversarialTraining(**options)
    assert defence.threat() == pytest.approx(threat)
    assert defence.passes() == pytest.approx((passes, passes))


def test_the_mean_number_of_random_steps_is_told():
    defence = AdversarialTraining(eps=16 / 255, steps="kurakin", distribution="normal", per="batch")
    drawn = np.minimum(np.abs(np.random.default_rng(0).normal(0, 8, 200_000)), 16)
    mean = np.maximum(np.floor(np.minimum(drawn + 4, 1.25 * drawn)), 1).mean()
    assert defence.passes()[0] == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize(
    "defence",
    [
        AdversarialTraining("r+fgsm"),
        AdversarialTraining(distribution="normal"),
        AdversarialTraining(distribution="normal", per="batch", steps="kurakin", eps=16 / 255),
    ],
    ids=["r+fgsm", "per image", "per batch"],
)
def test_the_global_generator_decides_what_is_drawn(defence, batch):
    model, drawn = convnet(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(defence.images(model, *batch))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# --- TRADES


def authors(model, x, y, *, beta, eps, steps, step_size, first):
    """The loss of the authors' code (Zhang et al. 2019), written again: cross-entropy and beta times the divergence.

    :param first: pass the clean images in train mode before the others are crafted, and not after it.
    """
    divergence = nn.KLDivLoss(reduction="sum")
    logits = model.train()(x) if first else None
    model.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv.requires_grad_()
        value = divergence(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        (gradient,) = torch.autograd.grad(value, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    model.train()
    logits = model(x) if logits is None else logits
    robust = divergence(F.log_softmax(model(x_adv.detach()), dim=1), F.softmax(logits, dim=1)) / len(x)
    return F.cross_entropy(logits, y) + beta * robust


def plain():
    """Without batch norm."""
    torch.manual_seed(1)
    return MnistCNN((1, 8, 8), 10, width=4)


@pytest.mark.parametrize(("beta", "eps", "steps"), [(6.0, 0.031, 10), (1.0, 0.1, 3)])
@pytest.mark.parametrize("make", [plain, convnet])
def test_cross_entropy_with_the_term_is_trades(make, beta, eps, steps, batch):
    # In float64: signs of gradients that are nearly 0 would differ by rounding.
    model, batch = make().double().train(), (batch[0].double(), batch[1])
    theirs = copy.deepcopy(model)
    torch.manual_seed(4)
    loss = loss_of(model, F.cross_entropy, [Trades(beta, eps=eps, steps=steps)], batch)
    loss.backward()
    torch.manual_seed(4)
    options = {"beta": beta, "eps": eps, "steps": steps, "step_size": 2.5 * eps / steps}
    expected = authors(theirs, *batch, first=make is convnet, **options)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for (name, p), q in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for (name, ours), their in zip(model.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(ours, their, msg=lambda m, n=name: f"{n}: {m}")


def test_trades_leaves_modes_and_gradients_of_weights_as_they_are(batch):
    model = convnet().train()
    model.bn1.eval()
    logits = model(batch[0])
    modes = [m.training for m in model.modules()]
    Trades(steps=2).term(model, *batch, logits)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_without_weight_it_is_no_term_and_costs_nothing(batch):
    assert Trades(beta=0).term(convnet(), *batch, torch.zeros(20, 10)) == 0.0
    assert Trades(beta=0).passes() == (0, 0)
    assert Trades(steps=10).passes() == (12, 11) and Trades(eps=0.1).threat() == 0.1


def test_a_certain_answer_gives_a_finite_gradient():
    """Where a probability is 0 in float32, the gradient of p log p by its formula is NaN."""
    logits = torch.tensor([[300.0, 0.0, -300.0]]).requires_grad_()

    class Fixed(nn.Module):
        def forward(self, x):
            return logits + x.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 2.0, -1.0])

    x = torch.full((1, 1, 2, 2), GRAY)
    model = Fixed()
    term = Trades(eps=0.1, steps=2).term(model, x, torch.tensor([0]), model(x))
    assert torch.autograd.grad(term, logits)[0].isfinite().all()


@pytest.mark.parametrize("defence", [AdversarialTraining(steps=2), Trades(steps=2)], ids=["adversarial", "trades"])
def test_in_16_bits_every_weight_gets_its_gradient(defence, batch):
    model = convnet().train()
    with torch.autocast("cpu", torch.bfloat16):
        if isinstance(defence, Trades):
            logits = torch.zeros(20, 10)  # no pass in this context before it, which would keep casts of the weights
            loss = defence.term(model, *batch, logits)
        else:
            loss = loss_of(model, F.cross_entropy, [defence], batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


class Passes(Defence):
    """Counts the passes through the network until the penalty."""

    def start(self, model):
        self.passes, self.before = 0, []
        model.register_forward_hook(self._count)

    def _count(self, *_):
        self.passes += 1

    def penalty(self, model):
        self.before.append(self.passes)
        return 0.0


@pytest.mark.parametrize("order", [1, -1])
def test_penalties_come_before_other_passes(order, batch):
    """What layers remember is then of the images that were trained on, whatever the order of the defences."""
    model, counts = convnet(), Passes()
    counts.start(model)
    loss_of(model, F.cross_entropy, [Trades(steps=1), counts][::order], batch)
    assert counts.before == [1] and counts.passes == 1 + Trades(steps=1).passes()[0]


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("fgsm", lambda attacks, model: attacks.FGSM(model, eps=0.2)),
        ("r+fgsm", lambda attacks, model: attacks.RFGSM(model, eps=0.2, alpha=0.1, steps=1)),
    ],
)
def test_one_step_is_that_of_torchattacks(method, theirs, batch):
    """The same numbers from torch's generator, the same images."""
    import torchattacks

    x, y = batch
    model = convnet().eval()
    torch.manual_seed(5)
    expected = theirs(torchattacks, model)(x, y)
    torch.manual_seed(5)
    torch.testing.assert_close(AdversarialTraining(method, eps=0.2).images(model, x, y), expected)
