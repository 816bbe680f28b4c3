"""Several networks as one module: all of them by a rule, or one at random for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from art_qplugins.domains import FLAG, Domain, ListOf, OneOf, check_all
from art_qplugins.errors import InputError
from art_qplugins.models.rules import RULES
from art_qplugins.quantizers.noise import NOISE_KEY, KeyedNoise, keyed_generator, stochastic_layers
from art_qplugins.torch_domains import MODULE

__all__ = ["Mixture"]

_ARGUMENTS: dict[str, Domain] = {
    "members": ListOf(MODULE, least=2),
    "rule": OneOf(tuple(RULES)),
    "random": FLAG,
    "seed": NOISE_KEY,
}


class Mixture(nn.Module):
    """Networks as one: a deterministic ensemble, or a random choice.

    A deterministic mixture is an ensemble by a rule, e.g. EMPIR (Sen, Ravindran & Raghunathan 2020), which has a network for
    each of some precisions.

    A random mixture answers each image of each call with the logits of one member, drawn afresh with equal probability. Of
    one network at several precisions that is the random precision at inference of Double-Win Quant (Fu et al. 2021). Where a
    gradient with respect to the pixels is needed, it answers the logarithm of the members' mean probability instead. That is
    the exact expectation over its draws, so its attacks need none.

    :param members: networks that take the same images and give the same number of logits. None has layers that draw noise.
        They are not copied.
    :param rule: how their logits become those of the ensemble, see :data:`~art_qplugins.models.rules.RULES`.
    :param random: whether one member answers.
    :param seed: key of the random choices.
    :raises InputError: where an argument is something else, a member draws noise, or a random mixture is given another rule.
        A call raises it where the members give different numbers of logits.
    """

    def __init__(
        self, members: Sequence[nn.Module], *, rule: str = "mean-probability", random: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        check_all(locals(), _ARGUMENTS)
        for index, member in enumerate(members):
            if stochastic_layers(member):
                raise InputError(f"members: number {index} draws noise; a mixture takes networks that draw none")
        if random and rule != "mean-probability":
            raise InputError("rule: a random mixture answers with one of its members; leave rule out")
        self.members = nn.ModuleList(members)
        self.rule = rule
        self.choice = _Choice(seed=seed) if random else None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.of_members(x)
        if self.choice is None or (x.requires_grad and torch.is_grad_enabled()):
            return RULES[self.rule](logits)
        chosen: Tensor = self.choice(logits.transpose(0, 1))
        return chosen

    def of_members(self, x: Tensor) -> Tensor:
        """Logits of the members, (M, N, C)."""
        logits = [member(x) for member in self.members]
        widths = [z.shape[-1] for z in logits]
        if len(set(widths)) > 1:
            raise InputError(f"members: they give {widths} logits; all must have the same classes")
        return torch.stack(logits)

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}"


class _Choice(KeyedNoise):
    """The answer of one member for each image: (N, M, C) becomes (N, C)."""

    def sample(self, shape: tuple[int, ...], key: int, device: torch.device) -> Tensor:
        return torch.rand(shape, generator=keyed_generator(key, device), device=device)

    def mirror(self, noise: Tensor) -> Tensor:
        return noise.neg_().add_(1 - 2**-24).clamp_(min=0)  # multiples of 2 ** -24 below 1, as ``rand`` gives them

    def forward(self, logits: Tensor) -> Tensor:
        members = logits.shape[1]
        index = (self.noise(logits[:, 0, :1])[:, 0] * members).long().clamp_(max=members - 1)
        return logits[torch.arange(len(logits), device=logits.device), index]
