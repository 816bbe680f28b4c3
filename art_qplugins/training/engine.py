"""``train``: the training of every network, with or without defences, on Lightning Fabric."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.domains import (
    COUNT,
    FLAG,
    MOST,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    Domain,
    Is,
    ListOf,
    Maybe,
    Number,
    OneOf,
    check_all,
)
from art_qplugins.errors import InputError
from art_qplugins.torch_domains import MODULE
from art_qplugins.training.augment import AUGMENTATIONS
from art_qplugins.training.decay import WEIGHT_DECAY
from art_qplugins.training.feed import Feed
from art_qplugins.training.images import TrainingData, training_images
from art_qplugins.training.named import NAMED, Named, resolved
from art_qplugins.training.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from art_qplugins.training.precisions import PRECISIONS
from art_qplugins.training.progress import OnProgress

__all__ = ["TrainingData", "train"]

Data: TypeAlias = "TrainingData | tuple[Tensor, Tensor]"

_ARGUMENTS: dict[str, Domain] = {
    "model": MODULE,
    "defences": ListOf(Is(Defence, "a Defence"), different=False),
    "epochs": Number(0, MOST, whole=True),
    "batch_size": COUNT,
    "optimizer": NAMED,
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "decay_norm_and_bias": FLAG,
    "schedule": NAMED,
    "warmup": NOT_NEGATIVE,
    "augment": ListOf(NAMED, different=False),
    "accumulate": COUNT,
    "clip_norm": Maybe(POSITIVE),
    "ema": Maybe(Number(0, 1, above=True, below=True)),
    "precision": OneOf(PRECISIONS),
    "channels_last": FLAG,
    "compile": FLAG,
    "keep": OneOf(("last", "best")),
    "devices": COUNT,
    "seed": SEED,
    "state": Maybe(PATH),
    "save_seconds": NOT_NEGATIVE,
    "progress": Maybe(Is(Callable, "a function")),
}

#: What a training that goes on must share with the one that was interrupted, beside what it computes from them.
_SHAPING = (
    *("epochs", "batch_size", "learning_rate", "weight_decay", "decay_norm_and_bias", "warmup", "accumulate"),
    *("clip_norm", "ema", "precision", "keep", "seed"),
)


def train(
    model: nn.Module,
    data: Data,
    defences: Sequence[Defence] = (),
    *,
    epochs: int = 20,
    batch_size: int = 64,
    optimizer: Named = "SGD",
    learning_rate: float = 0.1,
    weight_decay: float = WEIGHT_DECAY,
    decay_norm_and_bias: bool = True,
    schedule: Named = "cosine",
    warmup: float = 0,
    augment: Sequence[Named] = (),
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema: float | None = None,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    channels_last: bool = False,
    compile: bool = False,
    validation: Data | None = None,
    keep: Literal["last", "best"] = "last",
    devices: int = 1,
    seed: int = 0,
    state: str | Path | None = None,
    save_seconds: float = 60,
    progress: OnProgress | None = None,
) -> nn.Module:
    """Train ``model`` in place on cross-entropy plus the terms of the defences.

    What is random is a function of ``seed``, epoch, step, image and process, and of no global state. So a training that
    goes on from ``state`` ends, on a CPU, with the same bits as one that was never interrupted. Stochastic layers take one
    draw per step. A last batch of one image joins the one before. The model is in eval mode afterwards, also after an
    exception.

    :param data: images (N, C, H, W) float32 in [0, 1] and labels (N,) int64, as a pair or as a data set. Images of a data
        set stay uint8 until they are in a batch.
    :param defences: these shape the training, in their order.
    :param batch_size: images in a step, over all processes and all parts of ``accumulate``.
    :param optimizer: one of ``OPTIMIZERS``, or (name, options).
    :param learning_rate: the highest of the schedule.
    :param weight_decay: of the parameters that :func:`~art_qplugins.training.decay.parameter_groups` says. One that
        defeats a defence gives a warning.
    :param decay_norm_and_bias: whether batch norm and biases decay too.
    :param schedule: one of ``SCHEDULES``, or (name, options). It acts after each step.
    :param warmup: epochs, also a fraction of one, in which the learning rate grows to its height.
    :param augment: some of ``AUGMENTATIONS``, or pairs (name, options), in the order in which they are applied.
    :param accumulate: number of parts in which a batch is computed, to save memory. Only batch norm and what is random
        notice it.
    :param clip_norm: the greatest L2 norm of the gradient of all weights together.
    :param ema: decay per step of an exponential moving average of weights and buffers. It is what is validated and kept.
    :param precision: ``"bf16-mixed"`` and ``"16-mixed"`` compute in 16 bits. Weights, quantizers and penalties stay float32.
    :param channels_last: store activations with their channels last, which is faster on recent GPUs.
    :param compile: compute through ``torch.compile``. The first step then takes seconds, or minutes with random layers.
    :param validation: images that are not trained on. Accuracy on them is told after each epoch, also under a short PGD
        where a defence names its eps.
    :param keep: whose weights the model ends with: those of the last epoch, or those with the best accuracy on
        ``validation``, the robust one where it is measured.
    :param devices: processes that share each batch, on devices of the kind that ``model`` is on. See
        :func:`~art_qplugins.training.devices.fabric_on`.
    :param state: a file that is written every ``save_seconds``, from which the same call goes on. It stays.
    :param progress: called with a :class:`~art_qplugins.TrainingProgress` after each epoch, and about once a second.
    :return: ``model``.
    :raises InputError: where the loss is no longer finite, a batch has one image and batch norm needs more, or ``state``
        belongs to another training.
    """
    given = locals()
    check_all(given, _ARGUMENTS)
    if keep == "best" and validation is None:
        raise InputError('keep: "best" needs images to validate on; give validation, or keep = "last"')
    if (first := next(model.parameters(), None)) is None:
        raise InputError(f"model: {type(model).__name__} has no parameters to train; give a network with some")
    images = training_images(data)
    held_out = None if validation is None else training_images(validation, where="validation")
    for defence in defences:
        if (warning := defence.warning(weight_decay)) is not None:
            warnings.warn(warning, UserWarning, stacklevel=2)
    chosen = {
        "optimizer": resolved("optimizer", optimizer, OPTIMIZERS),
        "schedule": resolved("schedule", schedule, SCHEDULES),
        **{f"augment {i}": resolved("augment", one, AUGMENTATIONS) for i, one in enumerate(augment)},
    }
    # Lightning Fabric takes a while to import.
    from art_qplugins.training.devices import fabric_on
    from art_qplugins.training.loop import Loop
    from art_qplugins.training.validation import Validation

    fabric = fabric_on(first.device, devices=devices, precision=precision)
    with _in_training(model.to(fabric.device), channels_last=channels_last):
        feed = Feed(
            images.x,
            images.y,
            scale=images.scale,
            batch_size=batch_size,
            seed=seed,
            augment=[entry.load()(**options) for key, (entry, options) in chosen.items() if key.startswith("augment")],
            device=fabric.device,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        optimized = make_optimizer(
            optimizer,
            model,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            decay_norm_and_bias=decay_norm_and_bias,
        )
        Loop(
            model,
            feed,
            images,
            defences,
            fabric,
            optimized,
            make_schedule(schedule, optimized, epochs=epochs, steps=feed.steps(), warmup=warmup),
            forward=cast(nn.Module, torch.compile(model)) if compile else model,
            epochs=epochs,
            seed=seed,
            accumulate=accumulate,
            clip_norm=clip_norm,
            ema=ema,
            validation=None if held_out is None else Validation(held_out, defences, fabric, seed),
            keep_best=keep == "best",
            state=None if state is None else Path(state),
            save_seconds=save_seconds,
            settings={
                **{name: given[name] for name in _SHAPING},
                **{key: [entry.name, options] for key, (entry, options) in chosen.items()},
                "defences": [type(defence).__name__ for defence in defences],
                "network": type(model).__name__,
                "images": len(images.y),
                "processes": fabric.world_size,
            },
            progress=progress,
        ).run()
    return model


@contextlib.contextmanager
def _in_training(model: nn.Module, *, channels_last: bool) -> Iterator[None]:
    """Put ``model`` into train mode. At the end of the context it is in eval mode."""
    try:
        model.train()
        if channels_last:
            model.to(memory_format=torch.channels_last)
        yield
    finally:
        model.eval()
        if channels_last:
            model.to(memory_format=torch.contiguous_format)
