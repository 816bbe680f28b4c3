"""A stochastic network as an ensemble: the average over draws, inside one module.

The average is in ``forward``, so every attack on the module attacks the average. This includes torchattacks, AutoAttack, and
ART's attacks that rebuild a plain classifier from ``estimator.model``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from art_qplugins.domains import COUNT, FLAG, Domain, Maybe, OneOf, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.models.folding import drawing, find_part, fold
from art_qplugins.models.rules import RULES
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.torch_domains import MODULE

__all__ = ["StochasticEnsemble", "trained_network"]

#: Without ``eot_chunk``, a batch of several draws has about this many images ...
_BATCH = 256
#: ... but at least this many draws.
_AT_LEAST = 4

_ARGUMENTS: dict[str, Domain] = {
    "network": MODULE,
    "draws": COUNT,
    "rule": OneOf(tuple(RULES)),
    "eot_draws": Maybe(COUNT),
    "eot_chunk": Maybe(COUNT),
    "frozen": FLAG,
    "antithetic": FLAG,
    "gradient_of": OneOf(("mean", "losses")),
}


class StochasticEnsemble(nn.Module):
    r"""The deployed rule over ``draws`` draws :math:`u_m` of a stochastic network f, as logits.

    ================== =============================================================== ==============================
    ``rule``           answer                                                          gradient
    ================== =============================================================== ==============================
    mean-probability   :math:`\log \frac{1}{M} \sum_m \mathrm{softmax}(f(x; u_m))`      its own
    mean-logits        :math:`\frac{1}{M} \sum_m f(x; u_m)`                             its own
    majority-vote      log share of votes, with half a vote spread over the classes    that of mean-probability
    ================== =============================================================== ==============================

    ``draws = 1`` is the single-draw rule. Cross-entropy of the first rule is the negative log of the mean probability,
    so its gradient is the EOT gradient of the deployed rule. Every call takes fresh draws.

    :param network: a module that gives logits, with layers that draw noise, e.g. :class:`~art_qplugins.StochasticQuantizer`.
    :param draws: M, number of members for a prediction, at least 1.
    :param eot_draws: number of members if a gradient with respect to the pixels is needed; ``None`` for ``draws``.
    :param eot_chunk: number of draws that are computed in one batch; results differ by rounding only. If it is given,
        it bounds the memory of gradients too: each chunk is computed again in the backward pass, which takes a third
        longer. With ``None`` a batch has at least 4 draws and about 256 images, and nothing is computed twice.
    :param frozen: the same draws for every image of every call: one deterministic member of the family, which the seeds
        of the layers choose (``quantize(model, ..., seed=1)``). It is judged as itself, not as random, and
        its gradient is its own: it takes no ``eot_draws``.
    :param antithetic: draws 2i and 2i + 1 use the noise u and 1 - u, whose rounding errors cancel to first order.
    :param gradient_of: ``"mean"``, the loss of the mean; or ``"losses"``, the mean of the members' losses. A module
        with one output cannot express the latter. :class:`~art_qplugins.SQEnsembleClassifier` applies it, other clients
        get a warning.
    :raises InputError: where the network has no stochastic layer or holds an ensemble, or an option is unknown or out of
        range.
    """

    def __init__(
        self,
        network: nn.Module,
        draws: int = 8,
        *,
        rule: str = "mean-probability",
        eot_draws: int | None = None,
        eot_chunk: int | None = None,
        frozen: bool = False,
        antithetic: bool = False,
        gradient_of: str = "mean",
    ) -> None:
        super().__init__()
        check_all(locals(), _ARGUMENTS)
        if not stochastic_layers(network):
            raise InputError(
                f"{type(network).__name__} has no stochastic layer to average over; "
                "make one with quantize(model, activation_bits=2, alpha=2.0)"
            )
        if any(isinstance(module, StochasticEnsemble) for module in network.modules()):
            raise InputError(
                f"network: {type(network).__name__} holds an ensemble, which chooses the noise of its layers itself; give "
                "the network inside it"
            )
        if frozen and eot_draws is not None:
            raise InputError("eot_draws: a frozen ensemble has the gradient of its own draws; leave eot_draws out")
        self.network = network
        self.draws, self.eot_draws, self.eot_chunk = draws, eot_draws, eot_chunk
        self.rule, self.frozen, self.antithetic, self.gradient_of = rule, frozen, antithetic, gradient_of
        self.next_draw = 0
        self._split: str | None = None  # the submodule whose input is repeated for every draw; None: not known yet

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient_of == "losses" and x.requires_grad and torch.is_grad_enabled():
            warnings.warn(
                "gradient_of='losses' is not honoured here: this client differentiates the loss of the mean; "
                "use SQEnsembleClassifier.loss_gradient, or gradient_of='mean'",
                stacklevel=2,
            )
        return RULES[self.rule](self.members(x))

    def passes(self, requires_grad: bool) -> int:
        """Number of members in one call. It is the number of passes of each image through the network."""
        return self.eot_draws if requires_grad and self.eot_draws is not None else self.draws

    def members(self, x: Tensor, draws: int | None = None) -> Tensor:
        """Logits of the members, (M, N, C).

        The memory of the network does not grow with M where no gradient is wanted: its draws are computed in parts.

        :param draws: M. ``None`` for as many as a call takes.
        :raises InputError: where the ensemble is frozen to another number of draws, whose members are others.
        """
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        draws = self.passes(wants_gradient) if draws is None else check("draws", draws, COUNT)
        if self.frozen and draws != self.draws:
            raise InputError(
                f"draws: the ensemble is frozen to {self.draws} draws, and {draws} were asked of it; ask for {self.draws}, "
                "or set frozen = False"
            )
        chunk = min(draws, self.eot_chunk or max(_AT_LEAST, _BATCH // max(len(x), 1)))
        again = wants_gradient and self.eot_chunk is not None and chunk < draws
        first, logits = 0 if self.frozen else self.next_draw, []
        seeds = tuple(layer.seed for layer in stochastic_layers(self.network))
        if chunk > 1:
            self.prepare(x)
        for start in range(0, draws, chunk):
            times = min(chunk, draws - start)
            work = (x, first + start, times, seeds)
            if again:
                part: Tensor = checkpoint(self._fold, *work, use_reentrant=False, preserve_rng_state=False)
            else:
                part = self._fold(*work)
            logits.append(part.unflatten(0, (times, len(x))))
        self.next_draw = first + draws
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def prepare(self, x: Tensor) -> None:
        """Find the submodule at whose input the batch is repeated, by a call of the network. Later calls do nothing."""
        if self._split is None:
            self._split = find_part(self.network, x)

    def _fold(self, x: Tensor, first: int, times: int, seeds: tuple[int, ...]) -> Tensor:
        """Logits of the members from draw ``first`` on, (times * N, C).

        :param seeds: seeds of the layers. The backward pass may compute a chunk again when the layers have other seeds.
        """
        noise = {"antithetic": self.antithetic, "shared": self.frozen}
        with drawing(self.network, first, times, seeds=seeds, **noise), _out_of_memory(times):
            if times > 1:
                return fold(self.network, x, times, self._split or "")
            logits: Tensor = self.network(x)
            return logits

    def extra_repr(self) -> str:
        more = {"eot_draws": self.eot_draws, "eot_chunk": self.eot_chunk, "frozen": self.frozen}
        shown = "".join(f", {name}={value}" for name, value in more.items() if value)
        return f"draws={self.draws}, rule={self.rule!r}{shown}"


@contextlib.contextmanager
def _out_of_memory(draws: int) -> Iterator[None]:
    """Turn a lack of memory into an :class:`InputError` that names the option to lower."""
    try:
        yield
    except RuntimeError as error:  # torch has a subclass for accelerators; the CPU's allocator raises a plain one
        if "memory" not in str(error):
            raise
        raise InputError(f"eot_chunk: {draws} draws in one batch need more memory than there is; lower it") from None


def trained_network(model: nn.Module) -> nn.Module:
    """The module that has the layers, which is trained and stored: of an ensemble, the network inside it."""
    return model.network if isinstance(model, StochasticEnsemble) else model
