"""Attention: its projections are quantized, and no fast path of torch goes around what is quantized."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantization_report, quantize
from art_qplugins.quantizers import bake
from art_qplugins.quantizers.attention import open_attention
from art_qplugins.quantizers.functional import quantize_weight
from art_qplugins.quantizers.stored import restore_stored_maps, stored_maps

X = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0))


class Attends(nn.Module):
    def __init__(self, **more):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **more)
        self.width = more.get("kdim", 8)

    def forward(self, x):
        return self.attention(x, x[..., : self.width], x[..., : self.width], need_weights=False)[0]


KINDS = {"stacked": {}, "apart": {"kdim": 4, "vdim": 4}}
NAMES = {"stacked": ["in_proj_weight"], "apart": ["q_proj_weight", "k_proj_weight", "v_proj_weight"]}


def by_hand(model, names, num_bits):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in [getattr(twin.attention, name) for name in names] + [twin.attention.out_proj.weight]:
            weight.copy_(quantize_weight(weight, num_bits))
    return twin


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_projections_are_quantized_with_and_without_gradients(kind, trainable):
    model = Attends(**KINDS[kind]).eval()
    twin = quantize(model, weight_bits=2, trainable=trainable, strict=True)
    expected = by_hand(model, NAMES[kind], 2)
    torch.testing.assert_close(twin(X), expected(X))
    answers = twin(X).detach()
    with torch.no_grad():  # here torch has a fast path
        torch.testing.assert_close(twin(X), answers)
        assert trainable or torch.equal(twin(X), answers)
        assert (twin(X) - model(X)).abs().max() > 1e-3
    assert {p.name: p.bits for p in quantization_report(twin) if p.kind == "weight"} == {
        f"attention.{name}": 2 for name in [*NAMES[kind], "out_proj.weight"]
    }
    baked = bake(twin)
    assert set(baked.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(baked(X), expected(X))
    assert {p.bits for p in quantization_report(baked) if p.kind == "weight"} == {2}
    again = Attends(**KINDS[kind])
    again.load_state_dict(baked.state_dict())
    restore_stored_maps(again, stored_maps(baked))
    assert {p.bits for p in quantization_report(again) if p.kind == "weight"} == {2}
    with torch.no_grad():
        getattr(again.attention, NAMES[kind][-1])[0, 0] += 0.01
    changed = [p.name for p in quantization_report(again) if "changed" in p.reason]
    assert changed == [f"attention.{name}" for name in NAMES[kind]]


def test_a_trainable_twin_trains_its_projections():
    twin = quantize(Attends(), weight_bits=2, trainable=True)
    twin(X).square().sum().backward()
    assert twin.attention.parametrizations["in_proj_weight"].original.grad.abs().sum() > 0


def layer(activation):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation=activation, batch_first=True).eval()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), torch.nn.functional.relu, torch.nn.functional.gelu])
def test_the_fast_path_of_an_encoder_does_not_go_around_its_activation(activation, wrapped):
    model = nn.TransformerEncoder(layer(activation), 2).eval() if wrapped else layer(activation)
    twin = quantize(model, 1, functional=True, strict=True)
    with torch.enable_grad():
        expected = twin(X).detach()
    with torch.no_grad():
        assert torch.equal(twin(X), expected)
        assert (expected - model(X)).abs().max() > 1e-3


def test_the_inputs_of_its_norms_are_quantized_on_every_path():
    twin = quantize(layer(nn.ReLU()), 2, also=["layer-norm"])
    assert sum(p.bits == 2 for p in quantization_report(twin)) == 3
    with torch.enable_grad():
        expected = twin(X).detach()
    with torch.no_grad():
        assert torch.equal(twin(X), expected)


def test_its_softmax_is_quantized_where_that_is_asked_for():
    model = nn.Sequential(Attends(), nn.ReLU()).eval()
    part = next(p for p in quantization_report(quantize(model, 4, strict=True)) if "attention" in p.name)
    assert part.bits is None and "also = ['softmax']" in part.reason
    twin = quantize(model, 4, also=["softmax"], strict=True)
    seen = []
    hook = twin[0].attention.softmax.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    answers = twin(X).detach()
    with torch.no_grad():
        assert torch.equal(twin(X), answers) and not torch.equal(answers, model(X))
    hook.remove()
    (scores, weights), _ = seen
    assert len(scores.unique()) <= 16 and len(weights.unique()) <= 16
    assert all(p.bits == 4 for p in quantization_report(twin) if p.kind == "activation")
    torch.testing.assert_close(quantize(model, 16, also=["softmax"], clip=20.0)(X), model(X), rtol=0, atol=2e-3)
    for again in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert torch.equal(again(X), answers)
    baked = bake(quantize(model, 4, 4, also=["softmax"], trainable=True))
    assert set(baked.state_dict()) >= set(model.state_dict())


def test_what_a_mask_leaves_out_stays_out():
    """Also where inputs are rounded to levels, of which the lowest is far from minus infinity."""
    torch.manual_seed(0)
    twin = quantize(nn.MultiheadAttention(8, 2, batch_first=True).eval(), 8, also=["softmax"], clip=1.0)
    hidden = torch.tensor([[False, False, False, True, True]]).expand(3, 5)
    changed = torch.where(hidden[..., None], X + 1, X)
    weights = twin(X, X, X, key_padding_mask=hidden)[1]
    assert (weights[..., 3:] == 0).all()
    outputs = [twin(X, x, x, key_padding_mask=hidden)[0] for x in (X, changed)]
    assert torch.equal(*outputs)


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    "made", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 4, "vdim": 4}], ids=str
)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.randn(6, 5, 5)},
        {"key_padding_mask": PADDED},
        {"key_padding_mask": PADDED, "attn_mask": CAUSAL},
        {"one": True},
    ],
    ids=lambda asked: " ".join(asked) or "plain",
)
def test_open_attention_answers_as_attention(made, batch_first, asked):
    torch.manual_seed(1)
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, **made).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    opened = copy.deepcopy(model)
    open_attention(opened)
    asked = dict(asked)
    query = X[0] if asked.pop("one", False) else X if batch_first else X.transpose(0, 1)
    key = query[..., : made.get("kdim", 8)]
    for found, expected in zip(opened(query, key, key, **asked), model(query, key, key, **asked), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert dict(opened.state_dict()).keys() == model.state_dict().keys()


def test_layers_are_exempt_by_position_and_name():
    model = nn.Sequential(nn.Linear(8, 8), Attends(), nn.Linear(8, 8), nn.Linear(8, 2))
    twin = quantize(model, weight_bits=3, exempt=[0, -1], strict=True)
    bits = {p.name: p.bits for p in quantization_report(twin) if p.kind == "weight"}
    assert [name for name, one in bits.items() if one is None] == ["0.weight", "3.weight"] and set(bits.values()) == {
        None,
        3,
    }
    assert torch.equal(twin[0].weight, model[0].weight) and not torch.equal(twin[2].weight, model[2].weight)
    twin = quantize(model, weight_bits=3, exempt=["1.*"])
    assert sum(p.bits is None for p in quantization_report(twin) if p.kind == "weight") == 2
    with pytest.raises(InputError, match=r"^exempt: none of the layers with weights is called 'last'; the layers"):
        quantize(model, weight_bits=3, exempt=["last"])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolutions_have_a_scale_for_each_channel(groups):
    conv = nn.Conv2d(4, 8, 3, groups=groups)
    twin = quantize(nn.Sequential(conv), weight_bits=4)
    for channel, weights in enumerate(conv.weight.detach()):
        scale = weights.abs().max() / 7
        torch.testing.assert_close(twin[0].weight[channel], (weights / scale).round() * scale)


def test_many_layers_of_attention_answer_the_same_bits_with_and_without_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer(nn.GELU()) for _ in range(6))).eval()
    twin = quantize(quantize(model, 4, 4, also=["layer-norm"]), 3, 3, also=["layer-norm"])
    for again in (twin, copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        answers = again(X).detach()
        with torch.no_grad():
            assert torch.equal(again(X), answers) and torch.equal(answers, twin(X))
    assert all(len(m._forward_pre_hooks) == 1 for m in twin.modules() if isinstance(m, nn.MultiheadAttention))
    attention = quantize(nn.MultiheadAttention(8, 2, batch_first=True).eval(), weight_bits=4)
    with torch.no_grad():
        assert torch.equal(attention(X, X, X)[0], attention(query=X, key=X, value=X)[0])
