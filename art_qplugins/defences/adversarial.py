"""Defences that train on images crafted during training: adversarial training and TRADES."""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor, nn

from art_qplugins.defences import ADVERSARIAL_TRAINING, TRADES
from art_qplugins.defences.base import Defence
from art_qplugins.defences.crafting import ascend, crafting, log_probabilities, pgd, share_of
from art_qplugins.threat import kurakin_steps

__all__ = ["AdversarialTraining", "Trades"]


#: Each method as PGD: its steps, their length together in units of eps, and where it starts.
_METHODS = {"fgsm": (1, 1.0, "none"), "r+fgsm": (1, 0.5, "sign"), "pgd": (7, 2.5, "uniform")}


class AdversarialTraining(Defence):
    r"""Trains on images that maximize the loss within eps in Linf: the saddle point of Madry et al. 2018, equation 2.1.

    ========== ==============================================================================================
    ``method`` image
    ========== ==============================================================================================
    fgsm       :math:`x + \epsilon\, \mathrm{sign} \nabla L(x)` (Goodfellow et al. 2015, section 4)
    r+fgsm     :math:`x' + \frac\epsilon2 \mathrm{sign} \nabla L(x')`,
               :math:`x' = x + \frac\epsilon2 \mathrm{sign} N(0, I)` (Tramer et al. 2018; Lin et al. 2019, equation 2,
               which prints the gradient at x)
    pgd        ``steps`` steps of ``step_size``, each projected on the ball (Madry et al. 2018, section 2.1)
    ========== ==============================================================================================

    All are clipped to [0, 1]. L is the cross-entropy of the network alone, without penalties.

    :param eps: radius in [0, 1], e.g. ``8 / 255``. In recipes also "8/255".
    :param steps: of PGD, 7 by default. ``"kurakin"`` takes floor(min(eps + 4, 1.25 eps)) steps of 1, at least one, with eps
        on the scale 0 to 255 (Kurakin et al. 2017, "Adversarial examples in the physical world"; Lin et al. 2019).
    :param step_size: of PGD, 2.5 eps / steps by default.
    :param start: of PGD: ``"uniform"`` in the ball, the default; ``"sign"``, the x' of R+FGSM; ``"none"``, the image.
    :param distribution: ``"fixed"``, or ``"normal"``: radii are :math:`\min(|N(0, \epsilon/2)|, \epsilon)`. With
        eps = 16/255 that is deviation 8 and at most 16 (Kurakin et al. 2017, "Adversarial machine learning at scale"; they
        truncate, Lin et al. do not say).
    :param per: whether each ``"image"`` or each ``"batch"`` draws a radius.
    :param share: the part of each batch that is crafted. The other images stay as they are.
    :param batch_norm: the mode of the network while images are crafted. ``"eval"`` takes running statistics, ``"train"``
        those of the crafted batch. Running statistics never change here. Lin et al. do not say which they take.
    """

    def __init__(
        self,
        method: Literal["fgsm", "r+fgsm", "pgd"] = "pgd",
        eps: float = 8 / 255,
        steps: int | Literal["kurakin"] | None = None,
        step_size: float | None = None,
        start: Literal["uniform", "sign", "none"] | None = None,
        distribution: Literal["fixed", "normal"] = "fixed",
        per: Literal["image", "batch"] = "image",
        share: float = 1.0,
        batch_norm: Literal["eval", "train"] = "eval",
    ) -> None:
        ADVERSARIAL_TRAINING.check_arguments(locals())
        own_steps, self._reach, own_start = _METHODS[method]
        self.steps: int | Literal["kurakin"] = "kurakin" if steps == "kurakin" else int(steps or own_steps)
        self._begin = start or own_start
        self.eps, self.share, self.distribution, self.per = float(eps), float(share), distribution, per
        self.batch_norm, self._step_size = batch_norm, step_size

    def threat(self) -> float:
        """The fixed radius; of normal ones the deviation, which two thirds of them are below."""
        return self.eps if self.distribution == "fixed" else self.eps / 2

    def passes(self) -> tuple[float, float]:
        if self.steps != "kurakin":
            return self.share * self.steps, self.share * self.steps
        radii = [self.eps]
        if self.distribution == "normal":
            quantiles = (NormalDist(0, self.eps / 2).inv_cdf(0.5 + (i + 0.5) / 2000) for i in range(1000))
            radii = [min(radius, self.eps) for radius in quantiles]
        steps = self.share * sum(map(kurakin_steps, radii)) / len(radii)
        return steps, steps

    def images(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        least = 2 if self.batch_norm == "train" else 1  # batch norm may need two values of a channel
        count = min(len(x), max(least, share_of(len(x), self.share)))
        eps = self._radius(x[:count])
        steps, step_size = self._steps_within(eps)
        with crafting(model, training=self.batch_norm == "train"):
            crafted = pgd(model, x[:count], y[:count], eps=eps, steps=steps, step_size=step_size, start=self._begin)
        return crafted if count == len(x) else torch.cat([crafted, x[count:]])

    def _radius(self, x: Tensor) -> float | Tensor:
        if self.distribution == "fixed":
            return self.eps
        if self.per == "batch":  # drawn on the CPU: the number of steps depends on it, and nothing waits for it
            return min(abs(float(torch.randn(()))) * self.eps / 2, self.eps)
        drawn = torch.randn((len(x), *[1] * (x.dim() - 1)), device=x.device)
        return drawn.abs_().mul_(self.eps / 2).clamp_(max=self.eps)

    def _steps_within(self, eps: float | Tensor) -> tuple[int, float | Tensor]:
        """The number of steps and the length of each."""
        if self.steps == "kurakin":
            assert isinstance(eps, float), "one number of steps needs one radius"
            return kurakin_steps(eps), 1 / 255
        return self.steps, self._reach / self.steps * eps if self._step_size is None else self._step_size


class Trades(Defence):
    r"""Adds :math:`\beta\, \mathrm{KL}(f(x) \,\|\, f(x'))`, where x' maximizes it within eps (Zhang et al. 2019, algorithm 1).

    Beside the cross-entropy of clean images it is TRADES, as in the authors' code: KL is the mean over the batch, x' starts
    at x + 0.001 N(0, I) and is crafted in eval mode, the gradient flows through both sides, and x' passes the network in
    train mode, which moves the running statistics of batch norm. In their code x' is crafted before x moves these
    statistics, here after it. While x' is crafted, f(x) is one answer, also of a random network.

    :param beta: weight of the term. 0 trains without it, for comparison.
    :param eps: radius in [0, 1], e.g. ``8 / 255``. In recipes also "8/255".
    :param steps: gradient steps for x'.
    :param step_size: by default 2.5 eps / steps.
    """

    def __init__(
        self, beta: float = 6.0, eps: float = 8 / 255, steps: int = 10, step_size: float | None = None
    ) -> None:
        TRADES.check_arguments(locals())
        self.beta, self.eps, self.steps = beta, float(eps), steps
        self.step_size = 2.5 * eps / steps if step_size is None else step_size

    def threat(self) -> float:
        return self.eps

    def passes(self) -> tuple[float, float]:
        """One pass of f(x) in eval mode, those of the steps, and one of x'."""
        return (self.steps + 2.0, self.steps + 1.0) if self.beta else (0.0, 0.0)

    def term(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor | float:
        if self.beta == 0:
            return 0.0
        with crafting(model):
            # Not under no_grad(): autocast would keep weights without gradient for the passes that need one.
            clean = log_probabilities(model(x)).detach()
            x_adv = ascend(
                lambda z: _divergence(clean, log_probabilities(model(z))),
                x,
                x + 0.001 * torch.randn_like(x),
                eps=self.eps,
                steps=self.steps,
                step_size=self.step_size,
            )
        divergence = _divergence(log_probabilities(logits), log_probabilities(model(x_adv)))
        return self.beta / len(x) * divergence


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), summed over images, of log-probabilities (N, classes)."""
    return nn.functional.kl_div(q, p, reduction="sum", log_target=True)
