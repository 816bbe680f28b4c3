"""What a change of weights does, against dense matrices and against the outputs themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from art_qplugins import InputError, logit_gain, output_terms, quantize, weight_changes
from art_qplugins.models.mnist_cnn import MnistCNN
from art_qplugins.models.wide_resnet import WideResNet

SHAPE = (2, 6, 6)


def small():
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def dense(layer, weight, shape):
    """The layer without bias as a matrix, column by column."""
    linear = copy.deepcopy(layer).double()
    linear.weight.data, linear.bias = weight.double(), None
    size = torch.Size(shape).numel()
    with torch.no_grad():
        return linear(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


def test_norms_are_those_of_dense_matrices():
    network, x = small(), torch.rand(1, *SHAPE)
    rounded = quantize(network, weight_bits=3)
    shapes = {"0": SHAPE, "2": (4, 3, 3), "5": (36,)}
    found = weight_changes(network, rounded, x)
    assert [change.layer for change in found] == list(shapes)
    for change in found:
        layer, other = network.get_submodule(change.layer), rounded.get_submodule(change.layer)
        delta = (other.weight - layer.weight).detach()
        assert change.operator == pytest.approx(
            torch.linalg.matrix_norm(dense(layer, delta, shapes[change.layer]), 2).item(), rel=1e-4
        )
        assert change.weight == pytest.approx(
            torch.linalg.matrix_norm(dense(layer, layer.weight.detach(), shapes[change.layer]), 2).item(), rel=1e-4
        )
        groups = delta.chunk(getattr(layer, "groups", 1))
        assert change.matrix == pytest.approx(max(torch.linalg.matrix_norm(g.flatten(1), 2).item() for g in groups))


def test_no_change_is_none():
    network = small()
    for change in weight_changes(network, copy.deepcopy(network), torch.rand(1, *SHAPE)):
        assert change.matrix == change.operator == 0 < change.weight
    x = torch.rand(5, *SHAPE)
    for terms in output_terms(network, copy.deepcopy(network), x, x):
        assert not any(t.any() for t in (terms.images, terms.weights, terms.both, terms.total, terms.error))


@pytest.mark.parametrize(
    "make", [lambda: MnistCNN((1, 8, 8), 10, width=4), lambda: WideResNet((1, 8, 8), 10, depth=10)]
)
def test_the_three_terms_add_up_to_the_change_of_the_output(make):
    torch.manual_seed(1)
    network = make().eval()
    rounded = quantize(network, weight_bits=3)
    x = torch.rand(7, 1, 8, 8)
    moved = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    found = output_terms(network, rounded, x, moved, batch_size=3)
    outputs: dict[int, list] = {0: [], 1: []}
    last = found[-1].layer
    for which, (net, images) in enumerate(((network, x), (rounded, moved))):
        layer = net.get_submodule(last)
        hook = layer.register_forward_hook(lambda m, a, out, which=which: outputs[which].append(out - m.bias))
        with torch.no_grad():
            net(images)
        hook.remove()
    clean, after = outputs[0][0].double(), outputs[1][0].double()
    ratio = (after - clean).norm(dim=1) / clean.norm(dim=1)
    torch.testing.assert_close(found[-1].total, ratio, rtol=1e-3, atol=1e-5)
    for terms in found:
        assert terms.error.max() < 1e-9 and terms.total.shape == (7,)
        assert (terms.total <= terms.images + terms.weights + terms.both + 1e-9).all()


def test_each_term_is_there_alone():
    network, x = small(), torch.rand(4, *SHAPE)
    moved = (x + 0.1).clamp(0, 1)
    for terms in output_terms(network, copy.deepcopy(network), x, moved):
        assert not terms.weights.any() and not terms.both.any()
        torch.testing.assert_close(terms.images, terms.total)
    first = output_terms(network, quantize(network, weight_bits=2), x, x)[0]
    assert not first.images.any() and not first.both.any() and (first.weights > 0).all()
    torch.testing.assert_close(first.weights, first.total)


def test_networks_that_differ_in_more_than_values_are_refused():
    network, x = small(), torch.rand(1, *SHAPE)
    other = copy.deepcopy(network)
    other[5] = nn.Linear(36, 4)
    with pytest.raises(InputError, match=r"^changed: layer '5' is not the same in both networks; "):
        weight_changes(network, other, x)
    with pytest.raises(InputError, match=r"^changed: layer '6' is not the same in both networks; "):
        weight_changes(network, nn.Sequential(*copy.deepcopy(network), nn.Linear(3, 3)), x)
    with pytest.raises(InputError, match=r"^x_changed: its shape is "):
        output_terms(network, network, x, x[:, :, :3])


def test_the_gain_of_scaled_logits_is_the_factor_and_that_of_others_is_less():
    network, x = small(), torch.rand(20, *SHAPE)
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        scaled[5].weight *= 7
        scaled[5].bias.mul_(7).add_(3)  # the same for every class
    found = logit_gain(network, scaled, x, batch_size=6)
    assert found.gain == pytest.approx(7, rel=1e-5) and found.alignment == pytest.approx(1, abs=1e-6)
    mapped = quantize(network, mu=255.0, mu_normalize=True)
    found = logit_gain(network, mapped, x)
    with torch.no_grad():
        z, other = (net(x).double() for net in (network, mapped))
    z, other = (t - t.mean(1, keepdim=True) for t in (z, other))
    assert found.alignment == pytest.approx(torch.cosine_similarity(z.flatten(), other.flatten(), 0).item())
    rest = other - found.gain * z
    assert abs((rest * z).sum()) < 1e-5 * z.norm() * other.norm()  # what is left has nothing of z in it
    with pytest.raises(InputError, match=r"^changed: it has 2 logits"):
        logit_gain(network, nn.Sequential(nn.Flatten(), nn.Linear(72, 2)), x)
