"""One training, step by step: what it keeps, when it is told, and how it goes on after an interruption."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from art_qplugins.defences.base import Defence
from art_qplugins.defences.processes import together
from art_qplugins.errors import InputError
from art_qplugins.files import printable
from art_qplugins.quantizers.noise import draws_from, stochastic_layers
from art_qplugins.seeds import derive_seed
from art_qplugins.training.batches import loss_of
from art_qplugins.training.feed import Batch, Feed
from art_qplugins.training.images import TrainingImages
from art_qplugins.training.progress import OnProgress, TrainingProgress
from art_qplugins.training.state import State, optimizer_tensors, read_state, restore_optimizer, write_state
from art_qplugins.training.validation import Validation

__all__ = ["Loop"]

logger = logging.getLogger(__name__)

#: A stochastic layer numbers its calls. Each step has so many numbers, of which crafting takes several.
_CALLS = 2**20
#: Seconds between two messages within an epoch. Each waits for the device.
_TELL = 1.0


@dataclass(eq=False)
class Loop:
    """Trains ``model`` on the batches of ``feed``.

    :param images: what ``feed`` makes batches of.
    :param forward: what answers for ``model`` in the forward pass, e.g. the compiled network.
    :param ema: decay of the average of weights; None for none.
    :param keep_best: end with the weights of the epoch that ``validation`` finds best.
    :param state: the file to go on from; None for none.
    :param settings: what shapes this training, which the file must agree with.
    """

    model: nn.Module
    feed: Feed
    images: TrainingImages
    defences: Sequence[Defence]
    fabric: Fabric
    optimizer: Optimizer
    schedule: LRScheduler
    _: KW_ONLY
    forward: nn.Module
    epochs: int
    seed: int
    accumulate: int
    clip_norm: float | None
    ema: float | None
    validation: Validation | None
    keep_best: bool
    state: Path | None
    save_seconds: float
    settings: Mapping[str, Any]
    progress: OnProgress | None
    curve: list[TrainingProgress] = field(default_factory=list, init=False)

    def run(self) -> None:
        """Train to the end, and leave the weights to keep in ``model``.

        :raises InputError: where the loss is no longer finite, or the state belongs to another training.
        """
        self._average = None if self.ema is None else _average(self.model, self.ema)
        self._best: tuple[int, float] | None = None
        self._best_weights: dict[str, Tensor] = {}
        self._total = torch.zeros((), device=self.fabric.device)  # of the losses of this epoch's images
        self._seen = 0
        self._states: list[dict[str, Tensor]] = []
        epoch, step = self._resume()
        # Fabric's wrappers average over processes and scale gradients. One process in float32 needs neither.
        self._forward: Any = self.forward
        self._stepper: Any = self.optimizer
        if self.fabric.world_size > 1 or self.fabric.strategy.precision.precision != "32-true":
            self._forward, self._stepper = self.fabric.setup(self.forward, self.optimizer, move_to_device=True)
        self._began = self._saved = self._told = time.monotonic()
        self._done = 0  # images of this process' run
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._own_noise())
            if self.fabric.world_size > 1:
                stack.enter_context(together(self._sum))
            for defence in self.defences:
                defence.start(self.model)
                stack.callback(defence.finish, self.model)
            if epoch == step == 0:
                self._look(0)
            else:
                for defence, state in zip(self.defences, self._states, strict=True):
                    defence.restore(state)
            while epoch < self.epochs and not any(defence.enough for defence in self.defences):
                self._epoch(epoch, step)
                epoch, step = epoch + 1, 0
        if self._average is not None:
            self.model.load_state_dict(self._average.module.state_dict())
        if self.keep_best and self._best_weights:
            self.model.load_state_dict(self._best_weights)

    def _epoch(self, epoch: int, first: int) -> None:
        steps = self.feed.steps()
        if first == 0:
            self._total, self._seen = torch.zeros_like(self._total), 0
        for step, batch in enumerate(self.feed.epoch(epoch, first), start=first):
            self._step(epoch * steps + step, batch)
            self._seen += len(batch.x)
            self._done += batch.count
            now = time.monotonic()
            if step + 1 == steps:
                break
            if self.progress is not None and now - self._told >= _TELL:
                self.progress(self._progress(epoch, step + 1, float(self._total) / self._seen))
                self._told = now
            if now - self._saved >= self.save_seconds:
                self._save(epoch, step + 1)
        self._end(epoch)

    def _end(self, epoch: int) -> None:
        """Validate, and tell that an epoch is done."""
        loss = float(self._mean(self._total) / self._mean(torch.full_like(self._total, self._seen)))
        self._check_finite(loss, epoch)
        clean = robust = None
        if self.validation is not None:
            kept = self.model if self._average is None else self._average.module
            clean, robust = self.validation.measure(kept)
            measure = clean if robust is None else robust
            if self.keep_best and (self._best is None or measure > self._best[1]):
                self._best = epoch + 1, measure
                self._best_weights = {name: value.clone() for name, value in kept.state_dict().items()}
        self._look(epoch + 1)
        measured = {name: value for defence in self.defences for name, value in defence.told().items()}
        if any(defence.enough for defence in self.defences):
            self.epochs = epoch + 1
        told = self._progress(
            epoch,
            self.feed.steps(),
            loss,
            validation_accuracy=clean,
            robust_validation_accuracy=robust,
            measured=measured,
        )
        self.curve.append(told)
        logger.debug("epoch %d of %d: loss %.4f", told.epoch, told.epochs, told.loss)
        if self.progress is not None:
            self.progress(told)
        self._told = time.monotonic()
        if self._told - self._saved >= self.save_seconds:
            self._save(epoch + 1, 0)

    def _look(self, epochs: int) -> None:
        """Let the defences look at the network. The processes draw the same."""
        self._seed(f"look/{epochs}", epochs * self.feed.steps() * _CALLS + _CALLS // 2)
        for defence in self.defences:
            defence.look(self.model, self.images, epochs, lambda doing: self._tell(epochs, doing))

    def _tell(self, epochs: int, doing: str) -> None:
        """What a defence does after so many epochs."""
        now = time.monotonic()
        if self.progress is not None and now - self._told >= _TELL:
            loss = self.curve[-1].loss if self.curve else 0.0
            self.progress(self._progress(epochs, 0, loss, doing=doing))
            self._told = now

    # -- One step

    def _step(self, number: int, batch: Batch) -> None:
        self._seed(f"step/{number}/{self.fabric.global_rank}", number * _CALLS)
        self._stepper.zero_grad(set_to_none=True)
        count = min(self.accumulate, batch.count // self.fabric.world_size)  # as many in every process
        parts = list(zip(batch.x.tensor_split(count), batch.y.tensor_split(count), strict=True))
        for index, part in enumerate(parts):
            more = index + 1 < len(parts)
            share = len(part[0]) * self.fabric.world_size / batch.count  # gradients are averaged over processes
            apart = more and self.fabric.world_size > 1
            with self.fabric.no_backward_sync(self._forward) if apart else contextlib.nullcontext():
                with self.fabric.autocast():
                    loss = loss_of(self.model, nn.functional.cross_entropy, self.defences, part, forward=self._forward)
                self.fabric.backward(loss if share == 1 else loss * share)
            self._total += loss.detach() * len(part[0])
        if self.clip_norm is not None:
            self.fabric.clip_gradients(self._forward, self._stepper, max_norm=self.clip_norm, error_if_nonfinite=False)
        self._stepper.step()
        self.schedule.step()
        for defence in self.defences:
            defence.after_step(self.model)
        if self._average is not None:
            self._average.update_parameters(self.model)

    def _seed(self, what: str, call: int) -> None:
        """Make all that is random a function of what is done now. Random layers count their calls from ``call``."""
        seed = derive_seed(self.seed, what)
        torch.default_generator.manual_seed(seed)
        device = self.fabric.device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        for layer in self._random:
            layer.call = call

    @contextlib.contextmanager
    def _own_noise(self) -> Iterator[None]:
        """Within, random numbers are this training's. The global generators and random layers get theirs back."""
        device = self.fabric.device
        self._random = stochastic_layers(self.model)
        stream = derive_seed(self.seed, f"noise/{self.fabric.global_rank}")
        with torch.random.fork_rng([device] if device.type == "cuda" else []), draws_from(self.model, stream):
            yield

    # -- Telling

    def _progress(self, epoch: int, step: int, loss: float, **found: Any) -> TrainingProgress:
        steps = self.feed.steps()
        done, whole = epoch * steps + step, self.epochs * steps
        pace = self._done / max(time.monotonic() - self._began, 1e-9)
        return TrainingProgress(
            epoch=epoch + (step == steps),
            epochs=self.epochs,
            step=done,
            steps=whole,
            loss=loss,
            learning_rate=float(self.schedule.get_last_lr()[0]),
            images_per_second=pace,
            seconds_left=(whole - done) / steps * self.feed.count / max(pace, 1e-9) if pace else 0.0,
            **found,
        )

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        mean = self.fabric.all_reduce(value, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _sum(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        total = self.fabric.all_reduce(value, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _check_finite(self, mean: float, epoch: int) -> None:
        if math.isfinite(mean):
            return
        rate = self.optimizer.param_groups[0].get("initial_lr", self.optimizer.param_groups[0]["lr"])
        kept = (
            "" if self.state is None or not self.state.exists() else f"; the last good state is {printable(self.state)}"
        )
        raise InputError(
            f"training diverged: the loss is {mean} in epoch {epoch + 1}; lower learning_rate ({rate:g}){kept}"
        )

    # -- Going on

    def _save(self, epoch: int, step: int) -> None:
        """Write the state after ``step`` steps of ``epoch``, of which one process is enough."""
        self._saved = time.monotonic()
        if self.state is None or self.fabric.global_rank > 0:
            return
        self._check_finite(float(self._total), epoch)
        moments, others = optimizer_tensors(self.optimizer)
        parts: dict[str, Mapping[str, Any]] = {
            "model": self.model.state_dict(),
            "optimizer": moments,
            "best": self._best_weights,
            "ema": {} if self._average is None else self._average.state_dict(),
            **{f"defence-{number}": defence.state() for number, defence in enumerate(self.defences)},
        }
        write_state(
            self.state,
            State(
                settings=self.settings,
                tensors={f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()},
                epoch=epoch,
                step=step,
                total=float(self._total),
                seen=self._seen,
                optimizer=others,
                scaler=self.fabric.strategy.precision.state_dict(),
                curve=tuple(self.curve),
                best=self._best,
            ),
        )
        self._saved = time.monotonic()

    def _resume(self) -> tuple[int, int]:
        """Take up the state that was left behind. The epoch and the number of its steps that are done."""
        found = None if self.state is None else read_state(self.state, self.settings)
        # Also a barrier: nobody writes before all have read.
        if 0 < float(self._mean(torch.tensor(float(found is not None), device=self.fabric.device))) < 1:
            raise InputError(f"training state {self.state}: some of the processes do not see it; give a shared folder")
        if found is None:
            return 0, 0
        device = self.fabric.device
        try:
            self.model.load_state_dict(found.part("model"))
            restore_optimizer(self.optimizer, found.part("optimizer"), found.optimizer)
            if self._average is not None:
                self._average.load_state_dict(found.part("ema"))
        except (RuntimeError, ValueError, KeyError) as error:
            assert self.state is not None
            raise InputError(
                f"training state {printable(self.state)}: made for another network ({type(error).__name__}); delete it to "
                "train from the beginning"
            ) from None
        if found.scaler:
            self.fabric.strategy.precision.load_state_dict(dict(found.scaler))
        self._best, self._best_weights = found.best, {k: v.to(device) for k, v in found.part("best").items()}
        self._states = [
            {name: value.to(device) for name, value in found.part(f"defence-{number}").items()}
            for number in range(len(self.defences))
        ]
        self._total, self._seen = torch.full_like(self._total, found.total), found.seen
        done = found.epoch * self.feed.steps() + found.step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each of these
            for _ in range(done):
                self.schedule.step()
        for told in found.curve:
            self.curve.append(told)
            if self.progress is not None:
                self.progress(told)
        logger.info("going on after %d of %d epochs", found.epoch, self.epochs)
        return found.epoch, found.step


def _average(model: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
