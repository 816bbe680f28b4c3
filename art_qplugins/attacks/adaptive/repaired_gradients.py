"""The other backward passes that a network can have with the same outputs, and which of them is the most faithful."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.at_test_time import views_at_test_time
from art_qplugins.attacks.adaptive.backward_views import Smoothed, StraightThroughSteps
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.gradients.bridges import Twin
from art_qplugins.gradients.fidelity import fidelity
from art_qplugins.gradients.nodes import find_path, is_named
from art_qplugins.gradients.repair import GradientRepair
from art_qplugins.gradients.way_back import twin_and_way_back
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.quantizers.surrogates import SURROGATES, surrogate, surrogate_layers
from art_qplugins.seeds import derive_seed

__all__ = ["View", "by_fidelity", "current_kind", "repaired_gradients", "unchanged"]

#: A context that gives a network.
View = Callable[[], AbstractContextManager[nn.Module]]

#: Current kinds by their names before version 0.2.
_OLD_KINDS = {
    "revived": "repaired",
    "straight": "bridged",
    "clipped": "clipped-sign",
    "repaired-straight-through": "bridged",  # in version 0.2
}
_SAMPLE = 64  # images on which fidelity is measured
_CALLS = 4  # of a random network for its fidelity


def repaired_gradients(run: AttackRun) -> dict[str, View]:
    """The kinds that apply to the network of a run. Each is a context that gives a view with the same outputs.

    * ``as-is``: no repair;
    * a key of :data:`~art_qplugins.quantizers.surrogates.SURROGATES`: that surrogate gradient in every quantized
      activation;
    * ``repaired``: straight-through at every operation that zeroes the gradient;
    * ``bridged``: a bridge over every operation that was measured to lose the gradient, where there is one;
    * ``bypassed``: a twin that leaves out the operations that lose the gradient, where it gives the same classes. Its outputs
      are its own;
    * ``clipped-sign``: straight-through at PyTorch's own step functions, the clip for sign;
    * ``unrolled``: through steps that the network takes without a gradient;
    * ``inner``: the gradient of a network inside it that it asks several times, or about other pixels;
    * ``inner-alone``: that network with its own outputs, as a source of images that transfer;
    * ``smoothed``: the mean gradient around each image.
    """
    module = run.module
    kinds: dict[str, View] = {"as-is": unchanged(module)}
    settings = [layer.surrogate for layer in surrogate_layers(module)]
    for kind in SURROGATES if settings else ():
        # None is straight-through, so "as-is" is straight-through already if no other surrogate was chosen.
        if kind != "straight-through" or any(settings):
            kinds[kind] = partial(_with_surrogate, module, kind)
    kinds["repaired"] = unchanged(GradientRepair(module))
    bypassed, bridged = twin_and_way_back(module, run.x, radius=4 * run.pixel_step(), seed=run.seed)
    if bridged is not None:
        kinds["bridged"] = unchanged(bridged)
    if bypassed is not None:
        kinds["bypassed"] = unchanged(bypassed)
    if _takes_signs(module, run.x, run.seed):
        kinds["clipped-sign"] = unchanged(StraightThroughSteps(module))
    views = views_at_test_time(module, run.x, batch_size=run.batch_size, seed=run.seed)
    kinds |= {kind: unchanged(view) for kind, view in views.items()}
    kinds["smoothed"] = unchanged(Smoothed(module, run.pixel_step(), seed=run.seed))
    return kinds


def current_kind(kind: object) -> object:
    """``kind``. For an old name, its current name, with a warning."""
    if not isinstance(kind, str) or kind not in _OLD_KINDS:
        return kind
    warnings.warn(
        f"the kind of surrogate gradient {kind!r} is called {_OLD_KINDS[kind]!r} now; the old name goes with the next "
        "release",
        FutureWarning,
        stacklevel=2,
    )
    return _OLD_KINDS[kind]


def by_fidelity(run: AttackRun, kinds: Mapping[str, View]) -> dict[str, float]:
    """The fidelity of the gradient of each kind, -1 where it is not known. The highest is first, and ties keep their order."""
    x, y, scores = run.x[:_SAMPLE], run.y[:_SAMPLE], {}
    for kind, context in kinds.items():
        with context() as view:
            found = fidelity(
                view,
                x,
                y,
                step=run.pixel_step(),
                directions=10,
                seed=run.seed,
                calls=_CALLS if run.random else 1,
                network=run.module if isinstance(view, Twin) else None,
            )
        scores[kind] = float(found.nan_to_num(nan=-1.0).quantile(0.5))
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _takes_signs(module: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether PyTorch's sign is on the path from the logits to the pixels."""
    with isolated(module, derive_seed(seed, "ledger")), draws_from(module, seed), torch.enable_grad():
        entered = x[:2].detach().clone().requires_grad_().clone()
        entrance = entered.grad_fn
        path = find_path(module(entered).grad_fn, entrance)
    return any(is_named(node, ("Sign", "Sgn")) for node in path)


def unchanged(network: nn.Module) -> View:
    """A view that is this network."""
    return lambda: nullcontext(network)


@contextlib.contextmanager
def _with_surrogate(module: nn.Module, kind: str) -> Iterator[nn.Module]:
    with surrogate(module, kind):
        yield module
