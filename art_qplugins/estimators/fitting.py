"""ART's training methods with the training defences, so that ART's trainers apply them too.

Trainers that call ``fit`` apply all of a defence. Those that step the optimizer themselves, such as ART's for TRADES, are in
:mod:`~art_qplugins.estimators.trainers`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.domains import check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators.arguments import FIT
from art_qplugins.estimators.twins import TWINS
from art_qplugins.guard import evaluating
from art_qplugins.seeds import derive_seed
from art_qplugins.training.batches import batches, loss_of

__all__ = ["FittingMixin", "Trainable", "defended"]


class Trainable(Protocol):
    """The interface that :class:`FittingMixin` needs from its classifier."""

    training_defences: Sequence[Defence]
    device: torch.device
    clip_values: np.ndarray | None
    preprocessing_operations: Sequence[Any]
    _optimizer: torch.optim.Optimizer | None
    _loss: nn.Module
    _fits: int  # number of calls of fit

    @property
    def _network(self) -> nn.Module: ...

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool) -> tuple[Any, Any]: ...

    def _check_pixels(self, x: Any) -> None: ...

    def _tensor(self, x: Any) -> Tensor: ...

    def _labels(self, y: Any, n: int) -> Tensor: ...

    def fit(self, x: np.ndarray, y: np.ndarray, batch_size: int, nb_epochs: int, **kwargs: Any) -> None: ...


class FittingMixin:
    """``fit`` and ``fit_generator`` of :class:`~art_qplugins.estimators.QuantizedClassifier`.

    This is a mixin and not a subclass of ART's classifier, because ART wraps ``fit`` of every subclass and hides its
    signature.
    """

    def fit(
        self: Trainable,
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
        """Train on the loss with every training defence applied, with the estimator's optimizer.

        A stochastic network takes one draw per step. The order of the images, and what defences draw, do not depend on
        global random states, which stay as they are. A last batch of one image joins the one before, unless it is dropped.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        :param scheduler: stepped after every epoch.
        :raises InputError: without an optimizer, or with one that holds no parameter of the network, where a batch has one
            image and batch norm needs more, or where a defence changes pixels that are not the network's.
        """
        check_all(locals(), FIT)
        optimizer = self._optimizer
        if optimizer is None:
            raise InputError(
                "optimizer: fit needs one; pass e.g. optimizer=torch.optim.SGD(model.parameters(), lr=0.1)"
            )
        _check_holds(optimizer, self._network)
        for defence in self.training_defences:
            if type(defence).look is not Defence.look:
                who = type(defence).__name__
                raise InputError(
                    f"training_defences: {who} looks at all images before or between epochs, which fit does not show; use "
                    "art_qplugins.train, or FeedbackTrainer for FeedbackLearning"
                )
        network, pixels, targets = defended(self, x, y, self.training_defences)
        self._fits += 1  # ART's trainers call fit once per batch, and each call has an order of its own
        order = torch.Generator().manual_seed(self._fits)
        devices = [pixels.device] if pixels.device.type == "cuda" else []
        steps = itertools.count()
        with _training(network, self.training_defences, training_mode), torch.random.fork_rng(devices=devices):
            for _ in range(nb_epochs):
                shuffled = torch.randperm(len(pixels), generator=order).to(pixels.device)
                for rows in batches(shuffled, batch_size, drop_last=drop_last):
                    torch.manual_seed(derive_seed(self._fits, f"step {next(steps)}"))
                    _step(network, self._loss, optimizer, self.training_defences, (pixels[rows], targets[rows]))
                if scheduler is not None:
                    scheduler.step()

    def fit_generator(
        self: Trainable, generator: Any, nb_epochs: int = 20, verbose: bool = False, **kwargs: Any
    ) -> None:
        """Train on the batches of an ART data generator; see :meth:`fit`."""
        for _ in range(nb_epochs):
            for _ in range(int(np.ceil(generator.size / generator.batch_size))):
                x, y = generator.get_batch()
                self.fit(np.asarray(x), np.asarray(y), batch_size=len(x), nb_epochs=1, **kwargs)


def defended(estimator: Trainable, x: Any, y: Any, defences: Sequence[Defence]) -> tuple[nn.Module, Tensor, Tensor]:
    """The network that these defences see, and its images and labels on the device: pixels where one of them changes images."""
    estimator._check_pixels(x)
    network = estimator._network
    if crafting := [d for d in defences if _sees_images(d)]:
        network = _behind_preprocessing(estimator, network, crafting[0])
    else:
        x, y = estimator._apply_preprocessing(x, y, fit=True)
    pixels = estimator._tensor(x)
    return network, pixels, estimator._labels(y, len(pixels))


def _check_holds(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in network.parameters()):
        raise InputError(
            "optimizer: it holds no parameter of the network that is trained (activation_bits and its like quantize a "
            "copy); call quantize(model, ...) first, then make the optimizer of its parameters and the estimator"
        )


def _sees_images(defence: Defence) -> bool:
    return type(defence).images is not Defence.images or type(defence).term is not Defence.term


def _behind_preprocessing(estimator: Trainable, network: nn.Module, defence: Defence) -> nn.Module:
    """The network as a function of pixels in [0, 1], which ``defence`` changes: behind the estimator's preprocessing.

    :raises InputError: where its gradient is not known, or pixels have another range.
    """
    who = f"training_defences: {type(defence).__name__} changes pixels in [0, 1]"
    low, high = (0, 1) if estimator.clip_values is None else estimator.clip_values
    if np.any(low != 0) or np.any(high != 1):
        raise InputError(f"{who}, and clip_values are others; scale the images to [0, 1] and give clip_values=(0, 1)")
    before = [one for one in estimator.preprocessing_operations if one.apply_fit]
    for one in before:
        if type(one) not in TWINS:
            raise InputError(
                f"{who}, and {type(one).__name__} stands between them and the network; put what it does into the network, or "
                "leave one out"
            )
    twins = [TWINS[type(one)](one).to(estimator.device) for one in before]
    return nn.Sequential(*twins, network) if twins else network


@contextlib.contextmanager
def _training(network: nn.Module, defences: Sequence[Defence], training_mode: bool) -> Iterator[None]:
    """Start the defences. At the end of the context, finish them and restore the mode of every module."""
    with evaluating(network, training=training_mode), contextlib.ExitStack() as stack:
        network.train(training_mode)  # a module may have a train() of its own
        for defence in defences:
            defence.start(network)
            stack.callback(defence.finish, network)
        yield


def _step(
    network: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    defences: Sequence[Defence],
    batch: tuple[Tensor, Tensor],
) -> None:
    optimizer.zero_grad()
    loss_of(network, loss, defences, batch).backward()
    optimizer.step()
    optimizer.zero_grad()  # parameters have no gradient afterwards
    for defence in defences:
        defence.after_step(network)
