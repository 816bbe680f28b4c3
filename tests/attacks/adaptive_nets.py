"""Linear models whose worst case is known, layers whose gradients are planted wrong, and the attacks of our own."""

from __future__ import annotations

import torch
from torch import nn

from art_qplugins import ATTACKS
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers import QuantReLU

#: artq:unsaturated refuses the logits of these networks, which do not saturate. artq:substitute takes no gradient of theirs.
#: artq:random searches nothing, and artq:pgd and artq:single-draw have one norm.
_OTHERS = (
    *("artq:clean", "artq:pgd", "artq:pgd-margin", "artq:random", "artq:single-draw", "artq:unsaturated"),
    "artq:substitute",
)
OURS = [n for n in ATTACKS if n.startswith("artq:") and n not in _OTHERS]
#: They are for random models.
RANDOM = ("artq:eot", "artq:frozen-seed")
DETERMINISTIC = [n for n in OURS if n not in RANDOM]
#: Its passes are queries.
SEARCH = "artq:search"
SCALINGS = ["per-image", "jacobian", "hessian"]


def short(name, steps):
    """Options of few steps."""
    return {SEARCH: {"n_queries": 5 * steps}, "artq:worst-case": {"budget": steps}}.get(name, {"max_iter": steps})


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
