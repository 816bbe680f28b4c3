"""Activations of inner layers, and losses on them: ART's two methods without the hooks that they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.guard import evaluating

__all__ = ["ActivationsMixin"]


class ActivationsMixin:
    """``get_activations`` and ``custom_loss_gradient`` of :class:`~art_qplugins.estimators.QuantizedClassifier`."""

    model: nn.Module
    _tensor: Callable[..., Tensor]
    _inputs: Callable[..., Tensor]
    _differentiable: Callable[..., Any]
    _gradient: Callable[..., Tensor]

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers directly below the network."""
        return [name for name, _ in self._network.named_children()]

    @property
    def _network(self) -> nn.Module:
        """The module that has the layers; behind the average of an ensemble, its network."""
        return getattr(self.model, "network", self.model) if hasattr(self.model, "draws") else self.model

    def get_activations(
        self, x: np.ndarray | Tensor, layer: int | str | None = None, batch_size: int = 128, framework: bool = False
    ) -> np.ndarray | Tensor:
        """Output of one layer; of a stochastic network, its mean over the draws.

        :param layer: an index into :attr:`layer_names`, one of these names, or a dotted name of any inner module.
        :param framework: give a differentiable tensor in place of an array.
        """
        inner = self._layer(layer)
        with evaluating(self.model), torch.set_grad_enabled(framework):
            if framework:
                return self._through(inner, self._inputs(x))
            inputs = self._inputs(x)
            return torch.cat([self._through(inner, part) for part in inputs.split(batch_size)]).cpu().numpy()

    def custom_loss_gradient(
        self,
        loss_fn: Callable[..., Tensor],
        x: np.ndarray | Tensor,
        y: np.ndarray | Tensor,
        layer_name: int | str,
        training_mode: bool = False,
    ) -> np.ndarray | Tensor:
        """Gradient in ``x`` of ``loss_fn(a(x) - a(y), p=2)`` for the activations a of one layer.

        :param y: images, of the shape of ``x``.
        """
        inner = self._layer(layer_name)
        with evaluating(self.model, training=training_mode), torch.enable_grad():
            leaf, inputs, finish = self._differentiable(x)
            with torch.no_grad():
                target = self._through(inner, self._inputs(y))
            loss = loss_fn(self._through(inner, inputs) - target, p=2)
            return finish(self._gradient(loss, leaf))

    def _layer(self, layer: int | str | None) -> nn.Module:
        modules, names = dict(self._network.named_modules()), self.layer_names
        if isinstance(layer, (int, np.integer)) and not isinstance(layer, bool):
            if not -len(names) <= layer < len(names):
                raise ValueError(f"Layer index {layer} is out of range: there are {len(names)} layers.")
            return modules[names[layer]]
        if isinstance(layer, str):
            if layer not in modules:
                raise ValueError(f"Layer name {layer} not supported. There is: {', '.join(names)}.")
            return modules[layer]
        raise TypeError("Layer must be of type str or int")

    def _through(self, inner: nn.Module, inputs: Tensor) -> Tensor:
        if hasattr(self.model, "prepare"):  # a pass that the hook must not see
            self.model.prepare(inputs)
        seen: list[Tensor] = []
        hook = inner.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            self.model(inputs)
        finally:
            hook.remove()
        output = torch.cat(seen) if len(seen) > 1 else seen[0]
        draws = len(output) // len(inputs)
        return output if draws <= 1 else output.unflatten(0, (draws, len(inputs))).mean(0)
