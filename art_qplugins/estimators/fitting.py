"""ART's training entry points with the family's own penalties, so that ART's trainers train the defence as it is meant."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError

__all__ = ["FittingMixin"]


class FittingMixin:
    """``fit`` and ``fit_generator`` of :class:`~art_qplugins.estimators.QuantizedClassifier`."""

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: Any = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        """Train on the loss plus the penalty of every training defence, with the estimator's optimizer.

        A stochastic network takes one draw a step. The order of the images comes from no global random state.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        :param scheduler: stepped after every epoch.
        """
        optimizer: torch.optim.Optimizer | None = self._optimizer  # type: ignore[attr-defined]
        if optimizer is None:
            raise InputError(
                "optimizer: fit needs one; pass e.g. optimizer=torch.optim.SGD(model.parameters(), lr=0.1)"
            )
        images, labels = self._apply_preprocessing(x, y, fit=True)  # type: ignore[attr-defined]
        pixels: Tensor = self._tensor(images)  # type: ignore[attr-defined]
        targets: Tensor = self._labels(labels)  # type: ignore[attr-defined]
        network: nn.Module = self._network  # type: ignore[attr-defined]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held for p in network.parameters()):
            raise InputError(
                "optimizer: it holds no parameter of the network that is trained (activation_bits and its like quantize a "
                "copy); call quantize(model, ...) first, then make the optimizer of its parameters and the estimator"
            )
        self._fits = getattr(self, "_fits", 0) + 1  # ART's trainers call fit once a batch: each call its own order
        order = torch.Generator().manual_seed(self._fits)
        modes = [(m, m.training) for m in network.modules()]
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [setattr(m, "training", mode) for m, mode in modes])
            network.train(training_mode)
            for defence in self.training_defences:  # type: ignore[attr-defined]
                defence.start(network)
                stack.callback(defence.finish, network)
            for _ in range(nb_epochs):
                for rows in torch.randperm(len(pixels), generator=order).to(pixels.device).split(batch_size):
                    if not (drop_last and len(rows) < batch_size):
                        self._step(network, optimizer, pixels[rows], targets[rows])
                if scheduler is not None:
                    scheduler.step()

    def _step(self, network: nn.Module, optimizer: torch.optim.Optimizer, pixels: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = self._loss(network(pixels), targets)  # type: ignore[attr-defined]
        defences = self.training_defences  # type: ignore[attr-defined]
        (loss + sum(defence.penalty(network) for defence in defences)).backward()
        optimizer.step()
        optimizer.zero_grad()  # no gradient is left behind
        for defence in defences:
            defence.after_step(network)

    def fit_generator(self, generator: Any, nb_epochs: int = 20, verbose: bool = False, **kwargs: Any) -> None:
        """Train on the batches of an ART data generator; see :meth:`fit`."""
        for _ in range(nb_epochs):
            for _ in range(int(np.ceil(generator.size / generator.batch_size))):
                x, y = generator.get_batch()
                self.fit(np.asarray(x), np.asarray(y), batch_size=len(x), nb_epochs=1, **kwargs)
