"""Published defences beyond the pixels: features, outputs, votes, loops at test time, and detectors.

Most wrap a network. Where there is a ``through``, it is an honest backward pass, to attack the model through.
"""

from __future__ import annotations

import torch
from plants import FrozenNoise, Noisy, Wrapped
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AntiAdversary",
    "Clipped",
    "Codebook",
    "Detector",
    "FrozenVotes",
    "LogProbabilities",
    "MeanOfSoftmax",
    "Purified",
    "ReverseSigmoid",
    "RoundedLogits",
    "SqueezingDetector",
    "Stepped",
    "Votes",
    "confidence",
    "runner_up",
]


# --- Features


class Codebook(Wrapped):
    """Features replaced by the nearest of a few codewords. They are those of training images, moved by k-means.

    A codeword has the channels of one position, or 16 features where there are no positions.

    :param through: straight-through, as in a VQ-VAE (van den Oord et al. 2017); else no gradient.
    """

    words: Tensor

    def __init__(self, network: nn.Module, x: Tensor, words: int, channels: int, through: bool = False) -> None:
        super().__init__(network)
        self.channels, self.through = channels, through
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            parts = self.split(self.network.get_submodule("features")(x))
            parts = parts[torch.randperm(len(parts), generator=random)[:20_000]]
            found = parts[:words].clone()
            for _ in range(10):
                nearest = torch.cdist(parts, found).argmin(1)
                for word in range(words):
                    if (nearest == word).any():
                        found[word] = parts[nearest == word].mean(0)
        self.register_buffer("words", found)

    def split(self, features: Tensor) -> Tensor:
        """(N * positions, channels) of (N, channels * positions)."""
        return features.view(len(features), self.channels, -1).transpose(1, 2).reshape(-1, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        features = self.network.get_submodule("features")(x)
        nearest = torch.cdist(self.split(features), self.words).argmin(1)
        chosen = self.words[nearest].view(len(x), -1, self.channels).transpose(1, 2).reshape(features.shape)
        logits: Tensor = self.network.get_submodule("head")(
            features + (chosen - features).detach() if self.through else chosen
        )
        return logits


class Stepped(nn.Module):
    """Activations on four levels of [0, 1], straight through, as people write it by hand."""

    def forward(self, x: Tensor) -> Tensor:
        inside = x.clamp(0, 1)
        return inside + ((3 * inside).round() / 3 - inside).detach()


# --- Outputs


class MeanOfSoftmax(nn.Module):
    """The mean probabilities of some networks (as in Pang et al. 2019, without their loss).

    :param log: give their logarithm, which is as good as logits.
    """

    def __init__(self, *networks: nn.Module, log: bool = False) -> None:
        super().__init__()
        self.networks, self.log = nn.ModuleList(networks), log

    def forward(self, x: Tensor) -> Tensor:
        if self.log:
            logs = torch.stack([network(x).log_softmax(1) for network in self.networks])
            return logs.logsumexp(0)
        return torch.stack([network(x).softmax(1) for network in self.networks]).mean(0)


class LogProbabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).log_softmax(1)


class ReverseSigmoid(Wrapped):
    """Probabilities whose outer ends fold back (Lee et al. 2019): where the network is sure, the slope has the wrong sign."""

    def __init__(self, network: nn.Module, beta: float = 1.0, gamma: float = 0.1) -> None:
        super().__init__(network)
        self.beta, self.gamma = beta, gamma

    def forward(self, x: Tensor) -> Tensor:
        p = self.logits(x).softmax(1).clamp(1e-7, 1 - 1e-7)
        folded = p - self.beta * (torch.sigmoid(self.gamma * torch.logit(p)) - 0.5)
        return folded / folded.sum(1, keepdim=True)


class Clipped(Wrapped):
    """Logits clipped to [-limit, limit]: none above it can be seen to fall."""

    def __init__(self, network: nn.Module, limit: float) -> None:
        super().__init__(network)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).clamp(-self.limit, self.limit)


def runner_up(network: nn.Module, x: Tensor, share: float = 0.98) -> float:
    """The value that the second largest logit of this share of the images is below."""
    with torch.no_grad():
        return float(network(x).topk(2, dim=1).values[:, 1].quantile(share))


class RoundedLogits(Wrapped):
    """Logits rounded to whole numbers: no slope anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).round()


# --- Votes


class Votes(Noisy):
    """How many of some noisy copies are of each class (Cohen et al. 2019). Counts have no slope."""

    def forward(self, x: Tensor) -> Tensor:
        many = x.repeat(self.calls, 1, 1, 1)
        logits = self.logits(many + self.deviation * torch.randn_like(many))
        answers = F.one_hot(logits.argmax(1), logits.shape[1]).view(self.calls, len(x), -1)
        return answers.sum(0).float()


class FrozenVotes(FrozenNoise):
    """The same under a fixed bank of noise: deterministic."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits((x + self.bank).flatten(0, 1))
        return F.one_hot(logits.argmax(1), logits.shape[1]).view(len(self.bank), len(x), -1).sum(0).float()


# --- Loops at test time


class AntiAdversary(Wrapped):
    """Steps that make the network surer of its answer, before it answers (Alfarra et al. 2022)."""

    def __init__(self, network: nn.Module, reach: float, steps: int = 2) -> None:
        super().__init__(network)
        self.reach, self.steps = reach, steps

    def forward(self, x: Tensor) -> Tensor:
        moved = torch.zeros_like(x)
        with torch.enable_grad():
            for _ in range(self.steps):
                leaf = (x.detach() + moved).requires_grad_()
                logits = self.logits(leaf)
                (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), leaf)
                moved = (moved - self.reach / self.steps * slope.sign()).clamp(-self.reach, self.reach)
        return self.logits(x + moved)


class Purified(Wrapped):
    """Gradient steps on the image towards less total variation, before the network sees it.

    :param through: differentiate through the steps; else they are a constant, and no gradient reaches the pixels.
    """

    def __init__(self, network: nn.Module, strength: float, steps: int = 8, through: bool = False) -> None:
        super().__init__(network)
        self.strength, self.steps, self.through = strength, steps, through

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            pure = x if self.through else x.detach()
            pure = pure if pure.requires_grad else pure.clone().requires_grad_()
            start = pure
            for _ in range(self.steps):
                rough = _smooth_variation(pure) + 0.5 * ((pure - start) ** 2).sum() / self.strength
                (slope,) = torch.autograd.grad(rough, pure, create_graph=self.through)
                pure = pure - self.strength / 2 * slope
        return self.logits(pure if self.through else pure.detach())


def _smooth_variation(x: Tensor) -> Tensor:
    down, right = x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]
    return (down**2 + 1e-2).sqrt().sum() + (right**2 + 1e-2).sqrt().sum()


# --- Detectors: a last logit says that the image is rejected


class Detector(Wrapped):
    """An image is rejected where no logit is above ``threshold``."""

    def __init__(self, network: nn.Module, threshold: float) -> None:
        super().__init__(network)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], self.threshold)], dim=1)


def confidence(network: nn.Module, x: Tensor, rejected: float = 0.05) -> float:
    """The threshold at which a :class:`Detector` rejects this share of the images."""
    with torch.no_grad():
        return float(network(x).amax(1).quantile(rejected))


class SqueezingDetector(Wrapped):
    """An image is rejected where the answers to it and to its rounded form differ (feature squeezing, Xu et al. 2018).

    :param through: with a gradient through both answers; else the score is a constant to autograd.
    """

    def __init__(self, network: nn.Module, x: Tensor, levels: int, through: bool = False) -> None:
        super().__init__(network)
        self.levels, self.through = levels, through
        with torch.no_grad():
            self.threshold = float(self.score(x, self.logits(x)).quantile(0.95))

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """(N,) L1 distance of the probabilities, in [0, 2]."""
        rounded = (x * (self.levels - 1)).round() / (self.levels - 1)
        squeezed = self.logits(x + (rounded - x).detach())
        return (logits.softmax(1) - squeezed.softmax(1)).abs().sum(1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        over = self.score(x, logits) - self.threshold
        rejects = logits.amax(1) + 10 * over
        return torch.cat([logits, (rejects if self.through else rejects.detach())[:, None]], dim=1)
