"""Accuracy on images that are not trained on: clean, and under a short PGD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.defences.crafting import pgd
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed
from art_qplugins.training.images import TrainingImages

__all__ = ["Validation"]

#: Images under attack, and its steps. More would take longer than the training between two validations of a small network.
_ATTACKED = 1000
_STEPS = 10
_BATCH = 250


class Validation:
    """Measures a network between two epochs. It is in eval mode meanwhile, and random layers draw the same each time.

    :param defences: where one names an eps, :meth:`measure` attacks at most 1,000 of the images with PGD-10 at the
        largest of them.
    """

    def __init__(self, images: TrainingImages, defences: Sequence[Defence], fabric: Fabric, seed: int) -> None:
        self._images = images
        self._fabric, self._seed = fabric, derive_seed(seed, "validation")
        self._eps = max((eps for defence in defences if (eps := defence.threat()) is not None), default=None)

    def measure(self, model: nn.Module) -> tuple[float, float | None]:
        """Clean and robust accuracy in [0, 1]; the latter is None where no defence names an eps."""
        rows = torch.arange(len(self._images.y))
        with evaluating(model), draws_from(model, self._seed), torch.random.fork_rng(devices=[]):
            clean = self._accuracy(model, rows, None)
            if self._eps is None:
                return clean, None
            every = -(-len(rows) // _ATTACKED)  # images of a folder are in the order of their classes
            return clean, self._accuracy(model, rows[::every], self._eps)

    def _accuracy(self, model: nn.Module, rows: Tensor, eps: float | None) -> float:
        device = self._fabric.device
        right = torch.zeros((), device=device)
        for part in rows[self._fabric.global_rank :: self._fabric.world_size].split(_BATCH):
            x, y = self._images.at(part, device)
            with self._fabric.autocast():
                if eps is not None:
                    x = pgd(model, x, y, eps=eps, steps=_STEPS, step_size=eps / 4, start="none")
                with torch.no_grad():
                    right += (model(x).argmax(1) == y).sum()
        total = self._fabric.all_reduce(right, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.item() / len(rows)
