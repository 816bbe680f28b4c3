"""A learned surrogate: a small differentiable map, fitted to what a part of a network does to small changes of its input.

Its backward pass stands for that of the part (Athalye, Carlini & Wagner 2018, section 4.1.1). It is fitted on differences,
because the values themselves are taken from the part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Learned", "fit", "receptive_fields"]

_WIDTH, _WEIGHTS = 64, 2**17
_STEPS, _BATCH = 120, 1024


class Learned(nn.Module):
    """From tensors (B, *shape) to (B, *target). Feature maps keep their places; anything else is one vector.

    :param field: side of the receptive field on feature maps. With 0 all values of an image are one vector.
    """

    scale: Tensor

    def __init__(self, shapes: Sequence[tuple[int, ...]], target: tuple[int, ...], field: int) -> None:
        super().__init__()
        self.target, self.field = target, field
        inputs = sum(s[0] if field else math.prod(s) for s in shapes)
        outputs = target[0] if field else math.prod(target)
        side = max(field, 1)
        self.line = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        self.inner = nn.Conv2d(inputs, _WIDTH, side, padding=side // 2)
        self.outer = nn.Conv2d(_WIDTH, outputs, 1, bias=False)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, *sources: Tensor) -> Tensor:
        if self.field:
            size = list(self.target[1:])
            maps = [s if list(s.shape[2:]) == size else F.interpolate(s, size, mode="bilinear") for s in sources]
        else:
            maps = [s.flatten(1)[:, :, None, None] for s in sources]
        values = torch.cat(maps, 1) / self.scale
        found: Tensor = self.line(values) + self.outer(torch.tanh(self.inner(values)))
        return found if self.field else found.reshape(-1, *self.target)


def receptive_fields(shapes: Sequence[tuple[int, ...]], target: tuple[int, ...]) -> tuple[int, ...]:
    """The receptive fields worth a try: 1 and 3 between feature maps (C, H, W) of one size, else 3; 0 between others.

    There is none where the map would have too many weights for the few images that it is fitted on.
    """
    if len(target) != 3 or any(len(shape) != 3 for shape in shapes):
        return (0,) if sum(map(math.prod, shapes)) * math.prod(target) <= _WEIGHTS else ()
    return (1, 3) if all(shape[1:] == target[1:] for shape in shapes) else (3,)


def fit(before: Sequence[tuple[Tensor, Tensor]], after: tuple[Tensor, Tensor], *, field: int, seed: int) -> Learned:
    """The map whose differences are nearest to those of the part, in the mean square.

    :param before: for each source its values (B, *shape) at an image, and at a point near it.
    :param after: the results (B, *target) of the part at both.
    """
    start, end = [s[0] for s in before], [s[1] for s in before]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        learned = Learned([tuple(s.shape[1:]) for s in start], tuple(after[0].shape[1:]), field).to(after[0])
        learned.scale.fill_(max(float(torch.cat([s.flatten() for s in start]).std()), 1e-12))
        wanted = after[1] - after[0]
        size = wanted.square().mean().clamp_min(1e-30)
        optimizer = torch.optim.Adam(learned.parameters(), lr=0.02, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        places = math.prod(learned.target[1:]) if field else 1
        count = max(8, _BATCH // places) if field else 256
        for _ in range(_STEPS):
            rows = torch.randint(len(wanted), (count,)).to(wanted.device)
            error = learned(*(e[rows] for e in end)) - learned(*(s[rows] for s in start)) - wanted[rows]
            optimizer.zero_grad(set_to_none=True)
            (error.square().mean() / size).backward()
            optimizer.step()
            schedule.step()
    return learned.requires_grad_(False).eval()
