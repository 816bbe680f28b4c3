"""The loop of our own and what it climbs: linear models whose worst case is known, and gradients that are planted wrong."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.adaptive.attacks import needed_draws
from art_qplugins.attacks.adaptive.auto_pgd import checkpoints
from art_qplugins.attacks.adaptive.backward_views import Smoothed, StraightThroughSteps
from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits, quantized_activations
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.adaptive.scalings import hessian_scales, jacobian_scales
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import LogitScale
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.score import check_legal, judge
from art_qplugins.gradients.fidelity import logit_margin
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import QuantReLU, quantize
from art_qplugins.quantizers.surrogate import Surrogate

OURS = [n for n in ATTACKS if n.startswith("artq:") and n not in ("artq:clean", "artq:pgd-margin")]
DETERMINISTIC = [n for n in OURS if n != "artq:eot"]
SCALINGS = ["per-image", "jacobian", "hessian"]


def estimator(model, nb_classes, shape=(1, 8, 8)):
    return QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), shape, nb_classes, device_type="cpu")


class Fine(nn.Module):
    """A clip at [0, 1], which images are in, that is written as a quantized activation of 16 bits."""

    def __init__(self):
        super().__init__()
        self.activation = QuantReLU(16, clip=1.0)

    def forward(self, x):
        return self.activation(x)


class Rounded(nn.Module):
    """``levels`` + 1 levels in each pixel, and no gradient."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return torch.round(x * self.levels) / self.levels


class Signs(nn.Module):
    """Two levels in each pixel, and no gradient."""

    def forward(self, x):
        return torch.sign(x - 0.5)


class Fake(nn.Module):
    """PyTorch's fake quantization to 16 levels on [0, 1.5], with one scale in all or one for each channel."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 15)
        scales, zeros = torch.full((x.shape[self.axis],), 0.1), torch.zeros(x.shape[self.axis], dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, scales, zeros, self.axis, 0, 15)


class Noisy(nn.Module):
    """Noise of its own on every pixel of every image, from torch's global generator; its mean is the pixel."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def forward(self, x):
        return x * (1 + self.spread * torch.randn_like(x))


def linear(nb_classes, front=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(64, nb_classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(nb_classes, 64, generator=generator))
        head.bias.copy_(torch.randn(nb_classes, generator=generator) * 0.1)
        x = torch.rand(40, 1, 8, 8, generator=generator) * 0.4 + 0.3
        y = head(x.flatten(1)).argmax(1)
    return nn.Sequential(*front, nn.Flatten(), head).eval(), x, y


def worst_margin(model, x, y, threat):
    """min over the ball of z_y - max_{j != y} z_j, where only the ball binds: each difference falls by a dual norm."""
    head = model[-1]
    with torch.no_grad():
        logits = head(x.flatten(1))
        dual = {"Linf": 1, "L2": 2}[threat.norm]
        gaps = torch.linalg.vector_norm(head.weight[y][:, None] - head.weight[None], ord=dual, dim=2)
    margins = logits.gather(1, y[:, None]) - logits - threat.eps * gaps
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


def margin(model, x, y):
    with torch.no_grad():
        return logit_margin(model(x), y)


# --- The loop


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in OURS if n != "artq:rescaled"] + [("artq:rescaled", {"scaling": s}) for s in SCALINGS],
)
def test_each_attack_finds_the_worst_point_of_a_linear_model(name, options, norm):
    front = {"artq:eot": [Noisy(0.05)]}.get(name, [Fine()])
    model, x, y = linear(2, front)
    threat = Threat(norm, {"Linf": 0.02, "L2": 0.12}[norm])
    crafted = craft(estimator(model, 2), name, x, y, threat=threat, options=options)
    check_legal(x, crafted.x_adv, threat)
    worst = worst_margin(model, x, y, threat)
    reached = margin(nn.Sequential(*model[1:]), crafted.x_adv, y)  # of the mean, where the model is random
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    if name == "artq:eot":  # nothing leaves its loop
        torch.testing.assert_close(reached, worst, atol=0.01, rtol=0)
    else:
        stands = worst > 1e-3
        torch.testing.assert_close(reached[stands], worst[stands], atol=1e-3, rtol=0)
        assert (margin(model, crafted.x_adv, y)[worst < -1e-3] < 0).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_multi_targeted_breaks_all_that_can_be_broken_among_ten_classes(norm):
    model, x, y = linear(10)
    threat = Threat(norm, {"Linf": 0.06, "L2": 0.35}[norm])
    worst = worst_margin(model, x, y, threat)
    crafted = craft(estimator(model, 10), "artq:multi-targeted", x, y, threat=threat)
    clear = worst.abs() > 1e-3
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    assert torch.equal((margin(model, crafted.x_adv, y) < 0)[clear], (worst < 0)[clear])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", OURS)
def test_images_are_legal_where_the_box_binds_and_the_seed_fixes_them(name, norm):
    front = {"artq:eot": [Noisy(0.3)]}.get(name, [QuantReLU(3, 1.0)])
    model, _, _ = linear(10, front)
    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2)).round()  # black and white
    y = model(x).argmax(1)
    threat = Threat(norm, {"Linf": 0.3, "L2": 2.0}[norm])
    settings = {"threat": threat, "options": {"max_iter": 5}}
    first, again = (craft(estimator(model, 10), name, x, y, **settings, seed=3).x_adv for _ in range(2))
    other = craft(estimator(model, 10), name, x, y, **settings, seed=4).x_adv
    check_legal(x, first, threat)
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_batch_size_does_not_matter(name):
    model, x, y = linear(10, [QuantReLU(8, 1.0)])
    settings = {"threat": Threat("Linf", 0.04), "options": {"max_iter": 6}}
    whole = craft(estimator(model, 10), name, x, y, **settings, batch_size=40).x_adv
    parts = craft(estimator(model, 10), name, x, y, **settings, batch_size=7).x_adv
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["artq:apgd-margin", "artq:multi-targeted"])
@pytest.mark.parametrize("scale", [2.0**14, 2.0**-14])
def test_no_scale_of_the_logits_changes_an_image(fp32, digits, name, scale):
    x, y = digits[1].x()[:24], digits[1].y()[:24]
    settings = {"threat": Threat("Linf", 0.1), "options": {"max_iter": 8}}
    plain = craft(estimator(fp32, 10), name, x, y, **settings)
    scaled = craft(estimator(LogitScale(fp32, 1 / scale), 10), name, x, y, **settings)
    assert torch.equal(plain.x_adv, scaled.x_adv)
    assert plain.backward_samples == scaled.backward_samples


def test_an_image_that_is_broken_costs_nothing_more():
    model, x, y = linear(2)
    tried = 2 * 8  # to see that the model is not random
    wrong = craft(estimator(model, 2), "artq:apgd-margin", x, 1 - y, threat=Threat("Linf", 1e-4))
    assert (wrong.forward_samples, wrong.backward_samples) == (tried + 40, 40)  # each is asked once
    assert (margin(model, wrong.x_adv, 1 - y) < 0).all()

    safe = craft(estimator(model, 2), "artq:apgd-margin", x, y, threat=Threat("Linf", 1e-6), options={"max_iter": 7})
    assert (margin(model, safe.x_adv, y) > 0).all()
    assert (safe.forward_samples, safe.backward_samples) == (tried + 8 * 40, 7 * 40)

    half = torch.where(torch.arange(40) < 20, y, 1 - y)
    both = craft(estimator(model, 2), "artq:apgd-margin", x, half, threat=Threat("Linf", 1e-6), options={"max_iter": 7})
    assert both.backward_samples == 7 * 20 + 20


def test_an_image_of_a_random_network_is_never_done():
    model, x, y = linear(2, [Noisy(0.01)])
    crafted = craft(estimator(model, 2), "artq:apgd-margin", x, 1 - y, threat=Threat("Linf", 1e-4))
    assert crafted.backward_samples == 20 * len(x)


def test_checkpoints_are_those_of_the_paper():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_start_is_used():
    model, x, y = linear(2, [Rounded(4)])  # no gradient: an attack cannot leave its start
    start = (x + 0.015).clamp(0, 1)
    for name in ("artq:apgd-margin", "artq:multi-targeted"):
        crafted = craft_from(model, name, x, y, start)
        assert torch.equal(crafted, start)


def craft_from(model, name, x, y, start):
    attack = ATTACKS[name]
    with torch.random.fork_rng(devices=[]):
        return attack.load()(
            estimator(model, 2),
            attack,
            x,
            y,
            threat=Threat("Linf", 0.02),
            options=attack.resolve({}),
            batch_size=16,
            seed=0,
            start=start,
        )


def test_multi_targeted_is_no_weaker_than_autoattacks_targeted_part(fp32, digits):
    test = digits[1].take(60, seed=0)
    x, y, threat = test.x(), test.y(), Threat("Linf", 0.1)
    ours = craft(estimator(fp32, 10), "artq:multi-targeted", x, y, threat=threat)
    theirs = craft(estimator(fp32, 10), "autoattack:apgd-t", x, y, threat=threat)
    standing = [judge(fp32, c.x_adv, y, seed=0).correct.mean() for c in (ours, theirs)]
    assert 0.1 < standing[1] < 0.9
    assert standing[0] <= standing[1] + 1 / 60
    assert ours.backward_samples < theirs.backward_samples / 4


# --- Gradients that lead nowhere


ROUGH = [
    ("artq:surrogates", {}),
    ("artq:surrogates", {"kinds": ["repaired"]}),
    ("artq:full-precision", {}),
    ("artq:joint", {}),
]


@pytest.mark.parametrize(("name", "options"), ROUGH)
def test_a_rounding_input_is_broken_by_what_looks_behind_it_and_by_nothing_else(name, options):
    model, x, y = linear(10, [Rounded(15)])
    threat = Threat("Linf", 0.1)
    assert (worst_margin(model, x, y, threat) < -1).all()
    plain = craft(estimator(model, 10), "artq:apgd-margin", x, y, threat=threat)
    assert (margin(model, plain.x_adv, y) > 0).float().mean() > 0.7
    behind = craft(estimator(model, 10), name, x, y, threat=threat, options=options)
    assert (margin(model, behind.x_adv, y) < 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("old", "kind"),
    [("revived", "repaired"), ("straight", "repaired-straight-through"), ("clipped", "clipped-sign")],
)
def test_an_old_name_of_a_repaired_gradient_works_with_a_warning(old, kind):
    model, x, y = linear(10, [Signs()])
    settings = {"threat": Threat("Linf", 0.1), "seed": 3}
    plain = craft(estimator(model, 10), "artq:surrogates", x, y, options={"kinds": [kind]}, **settings)
    with pytest.warns(FutureWarning, match=f"'{old}' is called '{kind}' now"):
        named = craft(estimator(model, 10), "artq:surrogates", x, y, options={"kinds": [old]}, **settings)
    assert torch.equal(plain.x_adv, named.x_adv) and not torch.equal(plain.x_adv, x)


class Shattered(nn.Module):
    """The identity with a ripple that is small in value and turns the gradient around in most places."""

    def forward(self, x):
        return x + 0.002 * torch.sin(2 * math.pi * x / 0.004)


def test_a_shattered_gradient_is_smoothed_away():
    model, x, y = linear(10, [Shattered()])
    threat = Threat("Linf", 0.06)
    near = nn.Sequential(*model[1:])
    point = x[:1].clone().requires_grad_()
    view = Smoothed(model, threat.eps / 4, pairs=32)
    assert torch.equal(view(point), model(point))
    cosines = []
    for network in (near, model, view):
        (slope,) = torch.autograd.grad(logit_margin(network(point), y[:1]).sum(), point)
        cosines.append(slope.flatten())
    true, rough, smooth = cosines
    assert torch.cosine_similarity(smooth, true, 0) > torch.cosine_similarity(rough, true, 0) + 0.3
    attacked = {
        kind: craft(
            estimator(model, 10), "artq:surrogates", x, y, threat=threat, options={"kinds": [kind], "max_iter": 10}
        )
        for kind in ("as-is", "smoothed")
    }
    broken = {kind: (margin(model, c.x_adv, y) < 0).float().mean() for kind, c in attacked.items()}
    assert broken["smoothed"] >= broken["as-is"]


def test_the_full_precision_twin_is_the_function_that_the_quantizers_round():
    x = torch.linspace(-1, 3, 64).view(1, 1, 8, 8)
    for quantizer, top in ((QuantReLU(2, 2.0), 2.0), (Fake(None), 1.5), (Fake(1), 1.5), (Rounded(3), math.inf)):
        before = quantizer(x)
        with full_precision(quantizer, x):
            assert torch.allclose(quantizer(x), x if top == math.inf else x.clamp(0, top))
            assert set((x / 9).sign().unique().tolist()) == {-1.0, 1.0}, "an attack's steps are signs, as ever"
        assert torch.equal(quantizer(x), before)
        assert not torch.equal(before, x.clamp(0, 1.5))


def test_a_sign_passes_back_the_slope_of_the_clip_that_binary_networks_are_trained_with():
    x = torch.linspace(-2, 2, 16).view(1, 1, 4, 4).requires_grad_()
    for step, slope in (
        (torch.sign, (x.abs() <= 1).float()),
        (torch.sgn, (x.abs() <= 1).float()),
        (lambda z: z.round(), torch.ones_like(x)),
        (lambda z: (z * 1).sign_(), torch.zeros_like(x)),
        (torch.tanh, 1 - torch.tanh(x) ** 2),
    ):
        network = nn.Identity()
        network.forward = step
        answer = StraightThroughSteps(network)(x)
        assert torch.equal(answer, step(x))
        torch.testing.assert_close(torch.autograd.grad(answer.sum(), x)[0], slope.detach())


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_the_full_precision_twin_of_a_random_layer_is_its_mean(alpha):
    net = quantize(nn.Sequential(nn.Identity(), nn.ReLU()), activation_bits=2, alpha=alpha, clip=2.0)
    x = torch.linspace(0, 2, 64).view(1, 1, 8, 8)
    with torch.no_grad():
        mean = torch.stack([net(x) for _ in range(3000)]).mean(0)
        with full_precision(net, x):
            torch.testing.assert_close(net(x), mean, atol=0.05, rtol=0)


def test_other_bits_round_the_same_range_to_other_levels():
    net = nn.Sequential(QuantReLU(2, 1.5))
    x = torch.linspace(-0.5, 2, 64).view(1, 1, 8, 8)
    for bits in (1, 3, 8):
        with other_bits(net, bits):
            torch.testing.assert_close(net(x), QuantReLU(bits, 1.5)(x))
    assert torch.equal(net(x), QuantReLU(2, 1.5)(x))


# --- Random networks


def random_weights(spread):
    """Mean logits are those of the linear model; a single draw's gradient is mostly noise."""
    return linear(2, [Noisy(spread)])


def test_eot_beats_one_draw_where_a_draw_says_little():
    model, x, y = random_weights(3.0)
    threat, mean = Threat("Linf", 0.05), nn.Sequential(*model[1:])
    reached = {}
    for draws in (1, 32):
        options = {"eot_iter": draws, "max_iter": 10}
        crafted = craft(estimator(model, 2), "artq:eot", x, y, threat=threat, options=options)
        reached[draws] = margin(mean, crafted.x_adv, y).mean()  # the mean margin, without any draw
    assert reached[32] < reached[1] - 0.2
    assert worst_margin(model, x, y, threat).mean() - 1e-3 < reached[32]


def test_draws_grow_until_their_mean_gradient_agrees_with_itself():
    # Noise of x (1 + s r) on the gradient w (1 + s r): the cosine of two means of m is about 1 / (1 + s^2 / m).
    for spread, expected in ((0.3, 1), (2.0, 8), (3.0, 16)):
        model, x, y = random_weights(spread)
        settings = {"name": "artq:eot", "threat": Threat("Linf", 0.1), "batch_size": 40, "seed": 0, "max_iter": 5}
        assert needed_draws(AttackRun(module=model, x=x, y=y, random=True, **settings)) == expected


# --- Scalings


def test_the_scales_of_njs_and_hns_are_those_of_a_direct_computation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
    x = torch.rand(8, 1, 4, 4)
    with torch.no_grad():
        net[3].weight *= 8
        logits = net(x)
    y = logits.argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified
    jacobians = torch.stack([torch.autograd.functional.jacobian(net, image[None])[0].flatten(1) for image in x])
    for p in net.parameters():
        p.requires_grad_(False)

    mean = torch.linalg.svdvals(jacobians).mean()
    expected = []
    for z, label in zip(logits / mean, y, strict=True):
        beta = 1.0
        if abs(1 - float(z.softmax(0)[label])) < 0.01:
            beta = -math.log(0.01 / (0.99 * 3)) / float(z.max() - z.min())
        expected.append(beta / float(mean))
    torch.testing.assert_close(jacobian_scales(net, x, y, x), torch.tensor(expected), rtol=1e-3, atol=1e-6)

    expected = []
    for z, label, J in zip(logits.double(), y, jacobians.double(), strict=True):
        first, second = z.topk(2).values.tolist()
        ends = [-math.log(e / ((1 - e) * 3)) / (first - second) for e in (1 - 1 / 4 - 0.01, 1e-72)]
        norms = []
        for beta in np.linspace(*ends, 100):
            p = (beta * z).softmax(0)
            norms.append(float((beta**2 * J.T @ (torch.diag(p) - torch.outer(p, p)) @ J).norm()))
        best = int(np.argmax(norms))
        usable = 0 < best < 99 and int(z.argmax()) == int(label)
        expected.append(float(np.linspace(*ends, 100)[best]) if usable else 1.0)
    found = hessian_scales(net, x, y)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-6)
    assert found[0] == 1 and len(set(found.tolist())) > 5


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rescaling_finds_the_gradient_that_a_large_scale_hides(fp32, digits, scaling):
    x, y, threat = digits[1].x()[:40], digits[1].y()[:40], Threat("Linf", 0.15)
    hidden = LogitScale(fp32, 1e-4).eval()
    standing = {}
    for name, options in (("autoattack:apgd-ce", {}), ("artq:rescaled", {"scaling": scaling})):
        crafted = craft(estimator(hidden, 10), name, x, y, threat=threat, options=options)
        standing[name] = judge(hidden, crafted.x_adv, y, seed=0).correct.mean()
    assert standing["artq:rescaled"] < standing["autoattack:apgd-ce"] - 0.2


# --- What is left behind


class Bomb(nn.Module):
    """Raises at its n-th call, inside the network."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the network's own failure")
        return x


def state(model):
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "surrogates": [getattr(m, "surrogate", None) for m in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }


@pytest.mark.parametrize("calls", [0, 3, 25, 10**9])
@pytest.mark.parametrize("name", OURS)
def test_all_is_as_before_also_after_a_failure_at_any_time(name, calls):
    front = [Noisy(0.1)] if name == "artq:eot" else []
    model, x, y = linear(10, [*front, QuantReLU(4, 1.0, surrogate=Surrogate("leaky")), Bomb(calls)])
    subject = estimator(model, 10)
    model[len(front)].train()
    before = state(model)
    settings = {"threat": Threat("Linf", 1e-3), "options": {"max_iter": 30}}
    if calls < 10**9:
        with pytest.raises(RuntimeError, match="the network's own failure"):
            craft(subject, name, x, y, **settings)
    else:
        craft(subject, name, x, y, **settings | {"options": {"max_iter": 2}})
    assert state(model) == before


def test_a_forward_that_was_the_users_own_comes_back():
    layer = QuantReLU(2, 1.0)
    layer.forward = own = lambda x: x * 2
    with full_precision(nn.Sequential(layer), torch.zeros(1, 1, 2, 2)):
        assert layer.forward is not own
    assert layer.forward is own


def test_a_random_network_and_its_copy_are_attacked_alike(stochastic, digits):
    x, y = digits[1].x()[:8], digits[1].y()[:8]
    settings = {"threat": Threat("Linf", 0.1), "options": {"max_iter": 3, "eot_iter": 2}, "seed": 5}
    twin = StochasticEnsemble(copy.deepcopy(stochastic.network), 4).eval()
    first = craft(estimator(stochastic, 10), "artq:eot", x, y, **settings).x_adv
    craft(estimator(twin, 10), "artq:eot", x, y, **settings | {"seed": 6})  # leaves its stream where it was
    assert torch.equal(first, craft(estimator(twin, 10), "artq:eot", x, y, **settings).x_adv)
    assert len(quantized_activations(stochastic)) == 3


# --- Errors


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("artq:full-precision", {}, ["Sequential has no quantized activation", "artq:apgd-margin"]),
        ("artq:joint", {}, ["no quantized activation"]),
        ("artq:bits", {}, ["no bit width to change"]),
        ("artq:bits", {"bits": []}, ["bits is empty"]),
        ("artq:bits", {"bits": [2, 99]}, ["bits is 99"]),
        ("artq:joint", {"weights": [2]}, ["weights has 2"]),
        ("artq:eot", {}, ["the same answer every time", "artq:apgd-margin"]),
        ("artq:apgd-margin", {"max_iter": 0}, ["max_iter is 0"]),
        ("artq:multi-targeted", {"targets": 0}, ["targets is 0"]),
        ("artq:rescaled", {"scaling": "jacobi"}, ["'jacobi'", "did you mean 'jacobian'"]),
        ("artq:surrogates", {"kinds": ["repair"]}, ["'repair'", "'repaired'"]),
        ("artq:surrogates", {"kinds": ["tanh"]}, ["'tanh', which does not apply", "as-is"]),
    ],
)
def test_what_an_attack_lacks_is_said_in_one_line(name, options, parts):
    model, x, y = linear(10)
    with pytest.raises(InputError) as caught:
        craft(estimator(model, 10), name, x, y, threat=Threat("Linf", 0.1), options=options)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)
