"""The ensemble that a stochastic network is: the average over draws, inside one module.

Because the average is in ``forward``, whatever attacks the module attacks the average: also ART's attacks that rebuild a
plain classifier from ``estimator.model``, torchattacks and AutoAttack.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.stochastic import stochastic_layers

__all__ = ["RULES", "StochasticEnsemble", "check_count"]


def check_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number of at least 1")
    return value


def _mean_probability(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def _mean_logits(logits: Tensor) -> Tensor:
    return logits.mean(0)


def _majority_vote(logits: Tensor) -> Tensor:
    members, classes = logits.shape[0], logits.shape[-1]
    votes = nn.functional.one_hot(logits.argmax(-1), classes).sum(0)
    # Half a vote spread over the classes keeps the logarithm finite; ties and order stay.
    value = torch.log((votes + 0.5 / classes) / (members + 0.5)).to(logits.dtype)
    return straight_through(value, _mean_probability(logits))


#: How the members' logits (M, N, C) become the answer (N, C).
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean-probability": _mean_probability,
    "mean-logits": _mean_logits,
    "majority-vote": _majority_vote,
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

    ``draws = 1`` is the single-draw rule. Cross-entropy of the first is the negative log of the mean probability, so its
    gradient is the EOT gradient of the deployed rule. Every call takes fresh draws.

    :param network: a module with :class:`~art_qplugins.StochasticQuantizer` layers; logits out.
    :param draws: M, members of the ensemble for a prediction, at least 1.
    :param eot_draws: members where a gradient in the pixels is wanted; ``None`` for ``draws``.
    :param eot_chunk: how many draws are computed in one batch; results differ by rounding only. Where it is given it
        bounds the memory of gradients too: each chunk is computed again in the backward pass, which takes a third longer.
        ``None``: at least 4, and so many that a batch has about 256 images; nothing is computed twice.
    :param frozen: the same draws at every call (common random numbers): one deterministic member of the family.
    :param antithetic: draws 2i and 2i + 1 use the noise u and 1 - u, whose rounding errors cancel to first order.
    :param gradient_of: ``"mean"``, the loss of the mean; or ``"losses"``, the mean of the members' losses, which a module
        that gives one answer cannot express: :class:`~art_qplugins.SQEnsembleClassifier` does, other clients get a warning.
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
        if not stochastic_layers(network):
            raise InputError(
                f"{type(network).__name__} has no stochastic layer to average over; "
                "make one with quantize(model, activation_bits=2, alpha=2.0)"
            )
        if rule not in RULES:
            raise InputError(f"unknown rule {rule!r}{did_you_mean(rule, RULES)}")
        if gradient_of not in ("mean", "losses"):
            raise InputError(f"unknown gradient_of {gradient_of!r}{did_you_mean(gradient_of, ('mean', 'losses'))}")
        self.network = network
        self.draws = check_count("draws", draws)
        self.eot_draws = None if eot_draws is None else check_count("eot_draws", eot_draws)
        self.eot_chunk = None if eot_chunk is None else check_count("eot_chunk", eot_chunk)
        self.rule, self.frozen, self.antithetic, self.gradient_of = rule, frozen, antithetic, gradient_of
        self.next_draw = 0
        self._split: str | None = None  # the part whose input is repeated for every draw; None: not known yet

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient_of == "losses" and x.requires_grad and torch.is_grad_enabled():
            warnings.warn(
                "gradient_of='losses' is not honoured here: this client differentiates the loss of the mean; "
                "use SQEnsembleClassifier.loss_gradient, or gradient_of='mean'",
                stacklevel=2,
            )
        return RULES[self.rule](self.members(x))

    def passes(self, requires_grad: bool) -> int:
        """Members in one call: how many images each image costs."""
        return self.eot_draws if requires_grad and self.eot_draws is not None else self.draws

    def members(self, x: Tensor) -> Tensor:
        """Logits of the members, (M, N, C)."""
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        draws = self.passes(wants_gradient)
        chunk = min(draws, self.eot_chunk or max(4, 256 // max(len(x), 1)))
        first, logits = self.next_draw, []
        seeds = tuple(layer.seed for layer in stochastic_layers(self.network))
        if chunk > 1:
            self.prepare(x)
        for start in range(0, draws, chunk):
            fold = min(chunk, draws - start)
            if wants_gradient and self.eot_chunk is not None and chunk < draws:
                part = checkpoint(
                    self._fold, x, first + start, fold, seeds, use_reentrant=False, preserve_rng_state=False
                )
            else:
                part = self._fold(x, first + start, fold, seeds)
            logits.append(part.unflatten(0, (fold, len(x))))
        self.next_draw = first if self.frozen else first + draws
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def _fold(self, x: Tensor, first: int, fold: int, seeds: tuple[int, ...]) -> Tensor:
        """Logits of ``fold`` members from draw ``first`` on, (fold * N, C).

        :param seeds: of the layers. A backward pass computes a chunk again where they may be others by then.
        """
        with self._drawing(first, fold, seeds), _out_of_memory(fold):
            return self.network(x) if fold == 1 else self._repeated(x, fold, self._split or "")  # type: ignore[no-any-return]

    def _repeated(self, x: Tensor, fold: int, split: str) -> Tensor:
        """The network with its batch repeated at the input of one part; what comes before is computed once."""
        part = self.network.get_submodule(split)
        hook = part.register_forward_pre_hook(lambda _, args: (_repeat(args[0], fold), *args[1:]))
        try:
            return self.network(x)  # type: ignore[no-any-return]
        finally:
            hook.remove()

    def prepare(self, x: Tensor) -> None:
        """Find, once, how late the batch can be repeated: at the first stochastic layer, or at a part around it.

        A sum that joins what comes before with what comes after, as in a residual block, moves it to the block. Found by
        trying on two images; the whole network, which repeats the images themselves, always can.
        """
        if self._split is not None:
            return
        layers = stochastic_layers(self.network)
        path = next(name for name, module in self.network.named_modules() if module is layers[0])
        x = _repeat(x.detach()[:1], 2)  # a batch of one would be broadcast over a mismatch
        with evaluating(self.network), torch.no_grad():
            with self._drawing(0, 3):
                expected = self._repeated(x, 3, "")
            while path and not self._agrees(x, path, expected):
                path = path.rpartition(".")[0]
        self._split = path

    def _agrees(self, x: Tensor, path: str, expected: Tensor) -> bool:
        try:
            with self._drawing(0, 3):
                answer = self._repeated(x, 3, path)
        except RuntimeError:
            return False
        return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=1e-4, atol=1e-4)

    @contextlib.contextmanager
    def _drawing(self, first: int, fold: int, seeds: tuple[int, ...] | None = None) -> Iterator[None]:
        layers = stochastic_layers(self.network)
        before = tuple(layer.seed for layer in layers)
        for layer, seed in zip(layers, seeds or before, strict=True):
            layer.draw, layer.call, layer.fold, layer.antithetic = first, 0, fold, self.antithetic
            layer.seed = seed
        try:
            yield
        finally:
            for layer, seed in zip(layers, before, strict=True):
                layer.fold, layer.antithetic, layer.seed = 1, False, seed

    def extra_repr(self) -> str:
        more = {"eot_draws": self.eot_draws, "eot_chunk": self.eot_chunk, "frozen": self.frozen}
        shown = "".join(f", {name}={value}" for name, value in more.items() if value)
        return f"draws={self.draws}, rule={self.rule!r}{shown}"


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *[1] * (x.dim() - 1))


@contextlib.contextmanager
def _out_of_memory(fold: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on the CPU the allocator's is a plain one
        if "memory" not in str(error):
            raise
        raise InputError(f"eot_chunk: {fold} draws in one batch need more memory than there is; lower it") from None
