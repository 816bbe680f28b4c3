"""Every operation of a forward pass is seen, under a key that does not depend on the batch, and nothing is left behind."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from graphs import FunctionLayer, Zero, images
from torch import nn
from torch.nn.modules import module as hooks

from art_qplugins.gradients.operations import PIXELS, Operations


class Odd(nn.Module):
    """Ways through NumPy, TorchScript, a custom function, a loop over images, in-place operations and no_grad."""

    def __init__(self):
        super().__init__()
        self.conv, self.script = nn.Conv2d(1, 2, 3), torch.jit.script(nn.ReLU())
        self.early = Zero.apply  # taken before anything watches it
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.stack([torch.from_numpy(np.round(image.detach().numpy(), 2)) for image in x])
        x = self.early(Zero.apply(x))
        x = self.script(self.conv(x))
        with torch.no_grad():
            x = x + 1
        x.round_()
        return self.head(x.flatten(1))


def seen(model, x, **options):
    found = []
    with Operations(model, len(x), lambda key, tensor, after: found.append((key, after)), **options):
        model(x)
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_operations_are_seen_in_order_with_what_they_take():
    found = seen(Odd().eval(), images(5)[0])
    names = [(key.layer, key.op) for key, _ in found]
    assert names[:3] == [(PIXELS, "input"), ("", "stack"), ("", "Zero")]
    assert [n for n in names if n[0] in ("conv", "script", "head")] == [
        ("conv", "conv2d"),
        ("script", "RecursiveScriptModule"),
        ("head", "linear"),
    ]
    assert ("", "round_") in names and ("", "add") in names
    order = [key for key, _ in found]
    assert all(before in order[:i] for i, (_, after) in enumerate(found) for before in after)
    assert all(after for _, after in found[1:])  # also behind NumPy, everything hangs on the pixels


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_keys_are_the_same_for_batches_of_any_size():
    model = Odd().eval()
    one, two, seven = ([key for key, _ in seen(model, images(n)[0])] for n in (1, 2, 7))
    assert two == seven
    assert [key for key in one if key in seven] == seven  # a single image is a batch too, with keys of its own shape


def test_copies_and_calls_in_a_loop_have_their_own_keys():
    model = FunctionLayer(lambda x: sum(x.repeat(3, 1, 1, 1).mul(i).view(3, len(x), -1).mean(0) for i in (1, 2)))
    found = [key for key, _ in seen(model, images(5)[0])]
    assert [(key.ordinal, key.copies) for key in found if key.op == "mul"] == [(0, 3), (1, 3)]


def test_nothing_is_left_behind_also_after_an_exception():
    apply = torch.autograd.Function.__dict__["apply"]

    def hooked():
        """The number of hooks for all modules in each of torch's tables of them."""
        return {name: len(table) for name, table in vars(hooks).items() if name.startswith("_global_") and table}

    before = hooked()

    def fail(x):
        raise RuntimeError("its own")

    for function, raised in ((torch.sin, nullcontext()), (fail, pytest.raises(RuntimeError, match="its own"))):
        with raised:
            seen(FunctionLayer(function), images()[0])
        assert torch.autograd.Function.__dict__["apply"] is apply
        assert hooked() == before
        assert not torch.overrides._get_current_function_mode_stack()


def test_a_tensor_can_be_taken_instead_also_of_one_changed_in_place():
    def network(x):
        y = x * 2
        y.add_(1)  # the object that later calls take
        return y.flatten(1).sum(1, keepdim=True)

    x = torch.zeros(3, 1, 2, 2)
    for op, expected in (("mul", 4 * 6.0), ("add_", 4 * 5.0)):

        def replace(key, tensor, _, op=op):
            return torch.full_like(tensor, 5.0) if key.op == op else None

        model = FunctionLayer(network)
        with Operations(model, len(x), replace):
            assert torch.equal(model(x), torch.full((3, 1), expected))


def test_gradients_can_be_switched_on():
    def network(x):
        with torch.no_grad():
            return x * 2

    graphs = []
    for switched_on in (False, True):
        model, x = FunctionLayer(network), images()[0].requires_grad_()
        with Operations(model, len(x), lambda *_: None, with_gradient=switched_on) as operations:
            graphs.append(model(x).requires_grad)
        assert operations.without_gradient
    assert graphs == [False, True]
