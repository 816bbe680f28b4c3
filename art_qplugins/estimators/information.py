r"""A detector of adversarial images: what the deepest stochastic quantizer says of an image, beside what it says of clean ones.

The detector of arXiv 2312.00105 is not public beyond "information" and "some but not all attacks"; this is a RECONSTRUCTION.
An adversary who knows it can avoid it, so attack both: :func:`~art_qplugins.with_detector` makes one classifier of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.defences.detector.evasion import EvasionDetector
from torch import Tensor, nn

from art_qplugins.domains import COUNT, SEED, Domain, Is, Number, OneOf, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators.arguments import FIT
from art_qplugins.estimators.deployed import deployed
from art_qplugins.estimators.families import SQEnsembleClassifier
from art_qplugins.estimators.inputs import Pixels, as_numbers
from art_qplugins.guard import evaluating, isolated
from art_qplugins.information import information
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.quantizers.stochastic import StochasticQuantizer, stochastic_quantizers
from art_qplugins.seeds import derive_seed

__all__ = ["InformationDetector", "InformationScore"]

#: The score of an image, of how far its information lies above the mean of clean images.
_SIDES: dict[str, Callable[[Tensor], Tensor]] = {"two": torch.abs, "low": torch.neg, "high": torch.positive}

#: What float32 may make of the deviation of information that is everywhere the same.
_ROUNDING = 1e-6
_NOT_FITTED = "detector: it is not fitted; call fit(x, y) with clean images first"

_ARGUMENTS: dict[str, Domain] = {
    "classifier": Is(SQEnsembleClassifier, "an SQEnsembleClassifier"),
    "side": OneOf(tuple(_SIDES)),
    "false_positives": Number(0, 1, above=True, below=True),
    "draws": COUNT,
    "seed": SEED,
}


class InformationScore(nn.Module):
    r"""How unusual the information of an image is: (N, C, H, W) in [0, 1] to (N,), differentiable.

    .. math:: i(x) = \frac{1}{M} \sum_m \mathrm{mean}_i\, KL(p_i(\cdot | x, u_m) \,\|\, \bar p_i) / \log K

    with the units i of the deepest stochastic quantizer and the noise :math:`u_m` of the quantizers before it. The same M draws
    serve all images, so that a score is a function of one image. The score is :math:`|i(x) - \bar i|`,
    :math:`\bar i - i(x)` or :math:`i(x) - \bar i`, by ``side``, in standard deviations of clean images: beside logits, a number
    far below 1 would be lost to attacks.

    :ivar marginal: :math:`\bar p`, (..., K): the mean over clean images and draws, and over one image more that is uniform
        over the bins, so that no bin is impossible.
    :ivar mean: :math:`\bar i`, the mean information of the same images, and ``deviation`` its standard deviation.
    """

    marginal: Tensor | None
    mean: Tensor | None
    deviation: Tensor | None

    def __init__(self, classifier: SQEnsembleClassifier, *, side: str, draws: int, seed: int) -> None:
        super().__init__()
        self.side, self.seed = side, derive_seed(seed, "information")
        self._network = [classifier.model.network]  # in a list, because it is a part of the module below already
        members = StochasticEnsemble(classifier.model.network, draws, frozen=True)
        self.module = deployed(classifier.with_model(members)).model
        for name in ("marginal", "mean", "deviation"):
            self.register_buffer(name, None)
        with isolated(self.module, 0), torch.no_grad():  # an ensemble tries its network at the first call
            self.module(torch.zeros(2, *classifier.input_shape, device=classifier.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self.information(x))

    def of(self, found: Tensor) -> Tensor:
        """The score of an image with this information."""
        assert self.mean is not None and self.deviation is not None, "what has information was fitted"
        score: Tensor = _SIDES[self.side]((found - self.mean) / self.deviation)
        return score

    def information(self, x: Tensor) -> Tensor:
        """i(x), (N,)."""
        marginal = self.marginal
        if marginal is None:
            raise InputError(_NOT_FITTED)
        each = torch.cat(self._measured(x, lambda p: information(p, marginal)))
        draws: Tensor = each.unflatten(0, (-1, len(x)))
        return draws.mean(0)

    @torch.no_grad()
    def fit(self, x: Tensor, batch_size: int) -> None:
        """Take marginal, mean and deviation from clean images.

        :raises InputError: where the quantizer says the same of all of them.
        """
        parts = x.split(batch_size)
        total = torch.cat([p for part in parts for p in self._measured(part, lambda p: p.sum(0, keepdim=True))]).sum(0)
        mean = total / total.sum(-1, keepdim=True)
        self.marginal = (len(x) * mean + 1 / mean.shape[-1]) / (len(x) + 1)
        found = torch.cat([self.information(part) for part in parts])
        self.mean, self.deviation = found.mean(), found.std(correction=0)
        if not float(self.deviation) > _ROUNDING:
            raise InputError(
                "x: the deepest stochastic quantizer says the same of all images; give images that differ, or train the network"
            )

    def _measured(self, x: Tensor, measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """``measure`` of the distributions (draws * N, ..., K) over the bins, for some draws at a time."""
        (network,) = self._network
        found: list[Tensor] = []

        def see(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer, StochasticQuantizer)
            found.append(measure(layer.probabilities(inputs[0])))

        hook = stochastic_quantizers(network)[-1].register_forward_hook(see)
        try:
            with draws_from(network, self.seed):
                self.module(x)
        finally:
            hook.remove()
        return found


class InformationDetector(EvasionDetector):  # type: ignore[misc]  # ART has no types
    """Finds images of which the deepest stochastic quantizer says unusually much or little, as an evasion detector of ART.

    Give it to :func:`~art_qplugins.with_detector` to attack classifier and detector as one.

    :param classifier: the ensemble beside which it stands. Its preprocessors are part of it.
    :param side: ``"two"``: both more and less information than in clean images is suspect; ``"low"`` or ``"high"``: one of them.
    :param false_positives: the share of clean images that it may find, in (0, 1).
    :param draws: over so many draws of the quantizers before the deepest one an image's information is averaged.
    :param seed: key of these draws, and of the division of the images into two halves.
    :ivar score: the torch module that gives the score of each image, :class:`InformationScore`.
    :ivar threshold: the score above which an image counts as adversarial; ``None`` before :meth:`fit`.
    """

    defence_params = ["classifier", "side", "false_positives", "draws", "seed"]
    score: InformationScore
    threshold: float | None

    def __init__(
        self,
        classifier: SQEnsembleClassifier,
        *,
        side: str = "two",
        false_positives: float = 0.05,
        draws: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classifier, self.side, self.false_positives = classifier, side, false_positives
        self.draws, self.seed = draws, seed
        self._check_params()

    def _check_params(self) -> None:
        """ART calls it after ``set_params``. What was fitted with other settings is gone."""
        check_all(vars(self), _ARGUMENTS)
        self.score = InformationScore(self.classifier, side=self.side, draws=self.draws, seed=self.seed)
        self.threshold = None

    def fit(self, x: Pixels, y: Pixels, batch_size: int = 128, nb_epochs: int = 20, **kwargs: Any) -> None:
        """Take what clean images look like from one half of them, and the threshold from the other.

        The threshold is the smallest score of a held-out image that at most the share ``false_positives`` of further images
        exceeds, in the mean over draws of images: the k-th smallest of n with k = ceil((n + 1) (1 - ``false_positives``)).

        :param x: clean images (N, C, H, W) in [0, 1], best such that the classifier was not trained on.
        :param y: 0 for each image, (N,), or one-hot (N, 2), as ART's detectors take it: 0 is clean, 1 is adversarial.
        :param nb_epochs: not used; nothing is trained.
        :raises InputError: where an image is labelled adversarial or is none, there are too few images for the threshold, or
            the quantizer says the same of all of them.
        """
        check_all(locals(), {"batch_size": COUNT, "nb_epochs": FIT["nb_epochs"]})
        self.classifier._check_pixels(x)
        _check_clean(y, len(x))
        pixels = self.classifier._tensor(x)
        _check_range(pixels, self.classifier.clip_values)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(self.seed))
        half = len(order) // 2
        held_out = len(order) - half
        rank = math.ceil((held_out + 1) * (1 - self.false_positives) - 1e-9)
        if half < 2 or rank > held_out:
            least = 2 * math.ceil(1 / self.false_positives - 1 - 1e-9) - 1
            raise InputError(
                f"x: of {len(pixels)} images half are held out, which is too few for false_positives = "
                f"{self.false_positives:g}; give at least {max(4, least)}"
            )
        self.threshold = None  # also where this raises: nothing of an earlier fit is left
        with evaluating(self.score):
            self.score.fit(pixels[order[:half]], batch_size)
            scores = self._information(pixels[order[half:]], batch_size)[1]
        self.threshold = float(scores.sort().values[rank - 1])

    def detect(self, x: Pixels, batch_size: int = 128, **kwargs: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Which images are adversarial.

        :param x: (N, C, H, W) in [0, 1].
        :return: (report, is_adversarial): the report has ``information`` and ``score``, (N,) each, and the ``threshold``;
            ``is_adversarial`` is bool, (N,).
        :raises InputError: before :meth:`fit`.
        """
        check("batch_size", batch_size, COUNT)
        threshold = self.fitted_threshold()
        self.classifier._check_pixels(x)
        with evaluating(self.score):
            found, score = self._information(self.classifier._tensor(x), batch_size)
        report = {"information": found.cpu().numpy(), "score": score.cpu().numpy(), "threshold": threshold}
        return report, (score > threshold).cpu().numpy()

    def fitted_threshold(self) -> float:
        """:raises InputError: before :meth:`fit`."""
        if self.threshold is None:
            raise InputError(_NOT_FITTED)
        return self.threshold

    @torch.no_grad()
    def _information(self, x: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """The information of each image and its score, (N,)."""
        found = torch.cat([self.score.information(part) for part in x.split(batch_size)])
        return found, self.score.of(found)


def _check_clean(y: Any, n: int) -> None:
    """:raises InputError: where an image is labelled adversarial, or labels say something else."""
    labels = np.asarray(torch.as_tensor(as_numbers(y, "y")).cpu())
    if labels.shape == (n, 2):
        labels = labels.argmax(1)
    if labels.shape not in ((n,), (n, 1)) or not np.isin(labels, (0, 1)).all():
        raise InputError(
            f"y: labels are {labels.shape} for {n} images; give 0 for each, which says clean (1 is adversarial), and no class"
        )
    adversarial = int(labels.sum())
    if adversarial:
        raise InputError(
            f"y: {adversarial} of {n} images are labelled adversarial (1); fit the detector on clean images alone, labelled 0"
        )


def _check_range(pixels: Tensor, clip_values: Any) -> None:
    """:raises InputError: where a pixel is NaN, or outside the range of the classifier."""
    low, high = (0.0, 1.0) if clip_values is None else (float(np.min(clip_values[0])), float(np.max(clip_values[1])))
    if not bool(((pixels >= low) & (pixels <= high)).all()):
        raise InputError(
            f"x: pixels are in [{float(pixels.min()):.6g}, {float(pixels.max()):.6g}]; give clean images in [{low:g}, {high:g}]"
        )
