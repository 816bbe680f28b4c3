"""Modules that cannot be asked as they are: that take one image at a time, write into their images, give no float32, or
refuse to be put into eval mode.

They are asked through a wrapper that changes no answer. It is put around a module only where two images show the need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.estimators.base import QuantizedClassifier
from art_qplugins.guard import isolated, restoring, takes_hooks, takes_modes
from art_qplugins.quantizers.noise import draws_from

__all__ = ["Adapted", "adaptations", "adapted", "adapted_module"]


@dataclass(frozen=True)
class _Needs:
    """What a module needs.

    :param single: it takes one image at a time.
    :param copies: it writes into the images that it is given.
    :param dtype: its logits have this type, and not float32.
    :param scripted: it takes no hooks.
    :param exported: it has one mode and raises where it is asked for another.
    """

    single: bool = False
    copies: bool = False
    dtype: torch.dtype | None = None
    scripted: bool = False
    exported: bool = False

    @property
    def words(self) -> list[str]:
        found = ["is asked image by image, because it takes no batch"] if self.single else []
        found += ["is given copies of the images, because it writes into them"] if self.copies else []
        found += ["is scripted, so what happens inside it cannot be seen"] if self.scripted else []
        found += ["is exported, so it stays in the mode in which it was exported"] if self.exported else []
        return found + ([f"has its {self.dtype} logits cast to float32"] if self.dtype is not None else [])


class Adapted(nn.Module):
    """A module with the same answers that takes batches, leaves its images as they are and gives float32."""

    def __init__(self, network: nn.Module, needs: _Needs) -> None:
        super().__init__()
        self.network, self.needs = network, needs
        self.training = False  # the modes inside it stay as they are

    def train(self, mode: bool = True) -> Adapted:
        if not self.needs.exported:
            return super().train(mode)
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.needs.copies:
            x = x.clone()
        if not self.needs.single:
            logits: Tensor = self.network(x)
            return logits.float()
        return torch.cat([self.network(image).reshape(1, -1) for image in x.split(1)]).float()


def adapted(estimator: QuantizedClassifier, x: Tensor) -> QuantizedClassifier:
    """``estimator``, with a wrapper around its module where that needs one.

    :param x: (N, C, H, W) in [0, 1]; the first two are tried.
    """
    module = adapted_module(estimator.model, x[:2].to(estimator.device))
    return estimator if module is estimator.model else estimator.with_model(module)


def adapted_module(module: nn.Module, x: Tensor) -> nn.Module:
    """``module``, or a wrapper around it where it needs one. What it raises is left to whoever asks it next."""
    needs = _needs(module, x[:2] if len(x) > 1 else x.repeat(2, 1, 1, 1))
    return module if needs == _Needs() else Adapted(module, needs)


def adaptations(module: nn.Module) -> list[str]:
    """What is done for this module or one inside it, in words: "it ..."."""
    return [words for part in module.modules() if isinstance(part, Adapted) for words in part.needs.words]


def _needs(module: nn.Module, x: Tensor) -> _Needs:
    """:param x: (2, C, H, W)."""
    given = [x.clone(), 0.9 * x + 0.05]  # between the levels of grey, which some modules round to
    was = [(image.clone(), image._version) for image in given]
    both, _ = (_answer(module, images) for images in given)
    copies = any(
        images._version != version or not torch.equal(images, old)
        for images, (old, version) in zip(given, was, strict=True)
    )
    kind = {"copies": copies, "scripted": not takes_hooks(module), "exported": not takes_modes(module)}
    if _fits(both, 2):
        return _Needs(dtype=_other_float(both), **kind)
    one = _answer(module, x[:1].clone())
    alone = isinstance(one, Tensor) and one.numel() > 1 and one.shape in ((one.numel(),), (1, one.numel()))
    return _Needs(single=True, dtype=_other_float(one), **kind) if alone else _Needs()


def _fits(answer: Any, n: int) -> bool:
    return isinstance(answer, Tensor) and answer.dim() == 2 and len(answer) == n


def _other_float(answer: Tensor) -> torch.dtype | None:
    return answer.dtype if answer.is_floating_point() and answer.dtype != torch.float32 else None


def _answer(module: nn.Module, x: Tensor) -> Any:
    """What the module returns; ``None`` where it raises. It is as before afterwards."""
    try:
        with isolated(module, 0), draws_from(module, 0), restoring(module), torch.no_grad():
            return module(x)
    except (Exception, SystemExit):
        return None
