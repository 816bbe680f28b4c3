"""Activations of inner layers, and losses on them. Unlike ART's two methods, these leave no hooks behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.domains import COUNT, FLAG, check
from art_qplugins.errors import shown
from art_qplugins.estimators.gradients import Gradients
from art_qplugins.estimators.inputs import Pixels
from art_qplugins.guard import evaluating

__all__ = ["Activations"]


class Activations(Gradients):
    """The methods ``get_activations`` and ``custom_loss_gradient``."""

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers directly below the network."""
        return [name for name, _ in self._network.named_children()]

    def get_activations(
        self, x: Pixels, layer: int | str | None = None, batch_size: int = 128, framework: bool = False
    ) -> Pixels:
        """Output of one layer. For a stochastic network it is the mean over draws.

        :param x: (N, C, H, W) in [0, 1].
        :param layer: an index into :attr:`layer_names`, one of these names, or a dotted name of any inner module.
        :param framework: return a differentiable tensor instead of an array.
        """
        check("batch_size", batch_size, COUNT)
        check("framework", framework, FLAG)
        inner = self._layer(layer)
        with evaluating(self.model), torch.set_grad_enabled(framework):
            inputs = self._inputs(x)
            if framework:
                return self._output_of(inner, inputs)
            outputs = torch.cat([self._output_of(inner, part) for part in inputs.split(batch_size)])
            return np.asarray(outputs.cpu().numpy())

    def custom_loss_gradient(
        self,
        loss_fn: Callable[..., Tensor],
        x: Pixels,
        y: Pixels,
        layer_name: int | str,
        training_mode: bool = False,
    ) -> Pixels:
        """Gradient in ``x`` of ``loss_fn(a(x) - a(y), p=2)`` for the activations a of one layer.

        :param x: (N, C, H, W) in [0, 1].
        :param y: images, of the shape of ``x``.
        """
        inner = self._layer(layer_name)
        with evaluating(self.model, training=training_mode), torch.enable_grad():
            leaf, inputs, finish = self._differentiable(x)
            with torch.no_grad():
                target = self._output_of(inner, self._inputs(y))
            loss = loss_fn(self._output_of(inner, inputs) - target, p=2)
            return finish(self._gradient(loss, leaf))

    def _layer(self, layer: int | str | None) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self._network.named_modules())
        names = self.layer_names
        if isinstance(layer, (int, np.integer)) and not isinstance(layer, bool):
            if not -len(names) <= layer < len(names):
                raise ValueError(f"Layer index {shown(layer)} is out of range: there are {len(names)} layers.")
            return modules[names[layer]]
        if isinstance(layer, str):
            if layer not in modules:
                raise ValueError(f"Layer name {shown(layer)} not supported. There is: {', '.join(names)}.")
            return modules[layer]
        raise TypeError("Layer must be of type str or int")

    def _output_of(self, inner: nn.Module, inputs: Tensor) -> Tensor:
        """Output of ``inner`` in one call of the model. Several draws are averaged."""
        prepare: Callable[[Tensor], Any] | None = getattr(self.model, "prepare", None)
        if prepare is not None:  # an ensemble tries the network once, which the hook must not see
            prepare(inputs)
        outputs: list[Tensor] = []
        hook = inner.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            self.model(inputs)
        finally:
            hook.remove()
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        draws = len(output) // len(inputs)
        return output if draws <= 1 else output.unflatten(0, (draws, len(inputs))).mean(0)
