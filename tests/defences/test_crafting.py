"""PGD during training: its formulas, legal images, and a network that is the same afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from art_qplugins import InputError, quantize
from art_qplugins.defences.crafting import STARTS, crafting, log_probabilities, pgd, share_of
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers.noise import draws_from

EPS = 8 / 255


def convnet():
    torch.manual_seed(1)
    return ConvNet((1, 8, 8), 10, width=4)


NETWORKS = {
    "float": convnet,
    "5-bit": lambda: quantize(convnet(), activation_bits=5, clip=1.0),
    "3-bit weights": lambda: quantize(convnet(), weight_bits=3, trainable=True),
    "stochastic": lambda: quantize(convnet(), activation_bits=2, alpha=2.0, clip=2.0),
    "sparse stochastic": lambda: quantize(convnet(), activation_bits=2, alpha=1.5, clip=2.0),
}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


@pytest.fixture
def batch(digits):
    return digits[0].x()[:20], digits[0].y()[:20]


def by_hand(model, x, y, begin, eps, steps, step_size):
    """PGD as Madry et al. 2018 write it."""
    x_adv = begin
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        nn.functional.cross_entropy(model(x_adv), y).backward()
        x_adv = x_adv.detach() + step_size * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("steps", [1, 5])
def test_it_is_pgd(start, steps, batch):
    x, y = batch
    model = convnet().eval()
    torch.manual_seed(3)
    found = pgd(model, x, y, eps=EPS, steps=steps, step_size=EPS / 4, start=start)
    torch.manual_seed(3)
    begin = {
        "uniform": lambda: x + EPS * (2 * torch.rand(x.shape) - 1),
        "sign": lambda: x + EPS / 2 * torch.randn(x.shape).sign(),
        "none": lambda: x,
    }[start]()
    expected = by_hand(copy.deepcopy(model), x, y, begin.clamp(0, 1), EPS, steps, EPS / 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@each_network
@pytest.mark.parametrize("start", STARTS)
def test_images_are_legal_and_raise_the_loss(make, start, batch):
    x, y = batch
    model = make().eval()
    x_adv = pgd(model, x, y, eps=EPS, steps=4, step_size=EPS / 2, start=start)
    assert x_adv.shape == x.shape and x_adv.dtype == torch.float32 and not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= EPS + 1e-7 and x_adv.min() >= 0 and x_adv.max() <= 1
    losses = []
    for images in (x, x_adv):  # both over the same draws, and many of them: what one draw tells is luck
        with torch.no_grad(), draws_from(model, 0):
            losses.append(nn.functional.cross_entropy(model(images.repeat(100, 1, 1, 1)), y.repeat(100)))
    assert losses[1] > losses[0]


@pytest.mark.parametrize("start", ["uniform", "sign"])
def test_starting_points_are_within_eps_and_different(start, batch):
    x = torch.full((50, 1, 8, 8), 0.5)
    points = STARTS[start](x, EPS, None)
    moves = (points - x).abs()
    if start == "sign":
        torch.testing.assert_close(moves, torch.full_like(x, EPS / 2))
        assert ((points > x).float().mean() - 0.5).abs() < 0.05
    else:
        assert moves.max() <= EPS and abs(float(moves.mean()) - EPS / 2) < 0.05 * EPS


def test_each_image_may_have_its_own_eps(batch):
    x, y = batch
    model = convnet().eval()
    eps = torch.linspace(0.01, 0.1, len(x))[:, None, None, None]
    x_adv = pgd(model, x, y, eps=eps, steps=1, step_size=eps, start="none")
    one_by_one = [
        pgd(model, x[i : i + 1], y[i : i + 1], eps=float(e), steps=1, step_size=float(e), start="none")
        for i, e in enumerate(eps)
    ]
    torch.testing.assert_close(x_adv, torch.cat(one_by_one), rtol=0, atol=1e-7)


@each_network
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_network_is_the_same_afterwards(make, training, batch):
    model = make().train()
    model.bn1.eval()  # a frozen layer stays frozen
    model.bn2.weight.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0) if p.requires_grad else None
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with crafting(model, training=training):
        assert [m.training for m in model.modules()] == (modes if training else [False] * len(modes))
        pgd(model, *batch, eps=EPS, steps=2, step_size=EPS, start="none")
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None or bool((p.grad == 7).all()) for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_network_is_the_same_after_an_exception(batch):
    model = convnet().train()
    before = model.bn1.running_mean.clone()
    for training in (False, True):
        with pytest.raises(RuntimeError, match="elements"), crafting(model, training=training):
            model.bn2(model.bn1(model.conv1(batch[0])))  # four channels, and it takes eight
        assert all(m.training for m in model.modules()) and torch.equal(model.bn1.running_mean, before)


def test_no_gradient_of_a_weight_is_computed(batch):
    model = convnet()

    def fail(gradient):
        raise AssertionError("a gradient of a weight")

    for p in model.parameters():
        p.register_hook(fail)
    pgd(model, *batch, eps=EPS, steps=2, step_size=EPS, start="none")


class _Waits(TorchDispatchMode):
    """Operations that an accelerator would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_accelerator(batch):
    model = quantize(convnet(), activation_bits=2)
    with _Waits() as waits, crafting(model, training=True):
        pgd(model, *batch, eps=EPS, steps=3, step_size=EPS, start="uniform")
    assert waits.found == []
    with waits:
        float(batch[0].sum())
    assert waits.found  # the check can fail


def test_a_random_network_draws_afresh_for_each_gradient(batch):
    model = NETWORKS["stochastic"]().eval()
    pgd(model, *batch, eps=EPS, steps=5, step_size=EPS, start="none")
    assert model.act1.call == 5


@pytest.mark.parametrize("switch", [torch.no_grad, torch.enable_grad])
def test_gradients_may_be_switched_off_around_it(switch, batch):
    model = convnet().eval()
    with switch():
        x_adv = pgd(model, *batch, eps=EPS, steps=1, step_size=EPS, start="none")
    assert (x_adv - batch[0]).abs().max() > 0.9 * EPS


def test_a_generator_of_its_own_leaves_the_global_one_alone(batch):
    model, state = convnet().eval(), torch.get_rng_state()
    first, same, other = (
        pgd(
            model,
            *batch,
            eps=EPS,
            steps=1,
            step_size=EPS / 4,
            start="uniform",
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


class _Deaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.detach().flatten(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_without_a_gradient_is_refused_in_one_line(frozen, batch):
    with pytest.raises(InputError, match=r"^model: it gives no gradient to its pixels[^\n]+$"):
        pgd(_Deaf().requires_grad_(not frozen), *batch, eps=EPS, steps=1, step_size=EPS, start="none")


def test_pixels_without_a_direction_stay(batch):
    class Root(nn.Module):
        def forward(self, x):  # its slope is infinite at 0, and 0 * inf is NaN
            return (x - x.detach()).sqrt().flatten(1)[:, :10] * 0

    x_adv = pgd(Root(), *batch, eps=EPS, steps=1, step_size=EPS, start="none")
    assert torch.equal(x_adv, batch[0])


def test_in_16_bits_pixels_and_steps_stay_in_float32(batch):
    model = convnet().eval()
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = pgd(model, *batch, eps=EPS, steps=3, step_size=EPS / 2, start="none")
    assert x_adv.dtype == torch.float32
    inside = (batch[0] > EPS) & (batch[0] < 1 - EPS)  # where nothing is clipped
    steps = ((x_adv - batch[0]) / (EPS / 2))[inside]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.abs().max().round() == 2


class _OneLogit(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return x.flatten(1) @ self.weight[:, None]


def test_of_one_logit_the_loss_is_that_of_two_classes():
    x, y = torch.full((6, 1, 8, 8), 0.5), torch.tensor([[0.0], [1.0]] * 3)
    model = _OneLogit()
    x_adv = pgd(model, x, y, eps=EPS, steps=1, step_size=EPS, start="none")
    away = EPS * model.weight.detach().sign().view(1, 1, 8, 8) * (1 - 2 * y)[:, :, None, None]
    torch.testing.assert_close(x_adv, x + away)
    z = torch.tensor([[0.3], [-2.0]])
    torch.testing.assert_close(log_probabilities(z).exp()[:, 1:], z.sigmoid())


def test_labels_may_be_rows_of_probabilities(batch):
    x, y = batch
    model = convnet().eval()
    rows = nn.functional.one_hot(y, 10).float()
    options = {"eps": EPS, "steps": 2, "step_size": EPS / 2, "start": "none"}
    assert torch.equal(pgd(model, x, rows, **options), pgd(model, x, y, **options))


@pytest.mark.parametrize(("count", "share", "expected"), [(10, 0.7, 7), (10, 0.71, 8), (10, 1.0, 10), (10, 1e-30, 1)])
def test_a_share_is_rounded_up_and_never_empty(count, share, expected):
    assert share_of(count, share) == expected
