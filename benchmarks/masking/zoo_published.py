"""The newer rows of the zoo: defences as they were published, ART's own, honest relatives of them, and CIFAR-10.

Each plant has an honest twin. Most families have a relative that does the same and hides nothing: it must not be accused.
"""

from __future__ import annotations

import dataclasses

import torch
from architectures import by_hand, encoded, equilibrium, inverted, library, resized, transformer
from builders import ROBUST, plain, robust, shaped, trades, tuned
from builders import on as around
from claims import past_the_threshold, pgd_on_output, through_the_network, unaware_of_rejection
from later import Decisions, Dithered, Embedded, Median, MedianOnArrays, TinyBackward
from latest import Deflected, Generated, HalfRange, InHalf, LowFrequencies, Patches, Principal, PrincipalOnArrays
from networks import Site
from pipelines import before, behind, standardized
from pixels import (
    BitDepth,
    Blurred,
    InvertedRounded,
    Jpeg,
    RandomResize,
    Ripples,
    Staircase,
    Thermometer,
    TotalVariation,
    WrongBackward,
)
from plants import FrozenNoise, Rounded, Saturated, Scaled
from published import (
    AntiAdversary,
    Clipped,
    Codebook,
    Detector,
    FrozenVotes,
    LogProbabilities,
    MeanOfSoftmax,
    Purified,
    ReverseSigmoid,
    RoundedLogits,
    SqueezingDetector,
    Votes,
    confidence,
    runner_up,
)
from rows import EPS, MASKED, SUSPECT, Build, Built, Make, Row, alone, honest, masked, misleading, weak
from torch import nn

from art_qplugins.models.ensemble import StochasticEnsemble

__all__ = ["ANY", "PUBLISHED"]

#: Where the number is to be corrected, and any verdict is right: the gradients need not be what is wrong.
ANY = frozenset({"MASKED", "SUSPECT", "NOT_REFUTED"})
#: Eps by data set, in L-infinity.
COARSE = {"digits": 0.2, "mnist": 0.25}
CIFAR, CIFAR_ROBUST = {"cifar10": 2 / 255}, {"cifar10": 8 / 255}
#: The index of the output by which a detector rejects.
REJECTED = 10


def _through(kind: type[nn.Module], base: Make, *settings: object) -> Build:
    """A plant around a network, and as its twin the same with an honest backward pass."""
    return lambda site: Built(kind(base(site), *settings), kind(base(site), *settings, through=True))


def _honestly(kind: type[nn.Module], base: Make, *settings: object) -> Make:
    return lambda site: kind(base(site), *settings, through=True)


def _patches(base: Make, words: int) -> Build:
    def build(site: Site) -> Built:
        network, (x, _) = base(site), site.train()
        of = (network, x[:2000], words)
        return Built(Patches(*of), Patches(*of, through=True))

    return build


def _components(kind: type[nn.Module], base: Make, count: int) -> Build:
    def build(site: Site) -> Built:
        of = (base(site), site.train()[0][:2000], count)
        return Built(kind(*of), kind(*of, through=True))

    return build


def _codebook(base: Make, words: int) -> Build:
    def build(site: Site) -> Built:
        network, (x, _) = base(site), site.train()
        of = (network, x[:2000], words, 16)
        return Built(Codebook(*of), Codebook(*of, through=True))

    return build


def _embedded(base: Make) -> Build:
    def build(site: Site) -> Built:
        of = (base(site), site.train()[0][:1000], 6)
        return Built(Embedded(*of), Embedded(*of, through=True))

    return build


def _members(site: Site) -> list[nn.Module]:
    """Trained for long: their probabilities are near 0 and 1."""
    epochs = 30 if site.dataset == "digits" else 15
    return [plain(dataclasses.replace(site, seed=site.seed + 100 * k), epochs=epochs) for k in range(3)]


def _noise_trained(site: Site) -> nn.Module:
    return plain(site, options=(("noise", 0.2),), epochs=10)


def _votes(site: Site, frozen: bool) -> Built:
    base = _noise_trained(site)
    bank = (base, site.shape, 0.2, site.seed)
    return Built(FrozenVotes(*bank) if frozen else Votes(base, 0.2, calls=8), FrozenNoise(*bank))


def _random_resize(site: Site) -> Built:
    model = resized(site)
    network, least = model.get_submodule("network"), site.shape[-1] * 3 // 4
    return Built(RandomResize(network, least), RandomResize(network, least, bank=8))


def _frozen_resize(site: Site) -> nn.Module:
    twin = _random_resize(site).twin
    assert twin is not None
    return twin


def _scripted(model: nn.Module, site: Site) -> nn.Module:
    traced: nn.Module = torch.jit.trace(model.eval(), torch.zeros(2, *site.shape))
    return traced


def _one_draw(site: Site) -> Built:
    """Stochastic activations, as a network of them answers: by one draw."""
    members = tuned(site, plain(site), activation_bits=2, alpha=2.0, clip=2.0)
    return Built(members, StochasticEnsemble(members, draws=8).eval())


def _clipped(site: Site) -> Built:
    network = plain(site)
    return Built(Clipped(network, runner_up(network, site.train()[0][:1000])), network)


def _detector(base: Make) -> Make:
    def make(site: Site) -> nn.Module:
        network = base(site)
        return Detector(network, confidence(network, site.train()[0][:1000]))

    return make


def _squeezing_detector(site: Site) -> Built:
    of = (plain(site), site.train()[0][:1000], 5)
    return Built(SqueezingDetector(*of), SqueezingDetector(*of, through=True))


def _resnet(site: Site) -> nn.Module:
    return library(site, "resnet8")


def _robust_resnet(site: Site) -> nn.Module:
    return library(site, "resnet8", eps=8 / 255)


_HONEST = (
    # The same layers, with nothing hidden
    honest("jpeg-bpda", "jpeg-bpda", _honestly(Jpeg, plain, 95), "fine JPEG through PIL, with BPDA"),
    honest("jpeg-bpda-at", "jpeg-bpda", _honestly(Jpeg, robust, 95), "of a robust network", eps=ROBUST),
    honest("blur", "blur", _honestly(Blurred, plain), "a smooth change of the pixels"),
    honest("inverted", "inverted", inverted, "a network of negatives"),
    honest("resize-frozen", "resize-frozen", _frozen_resize, "the mean over eight fixed sizes and places"),
    honest("thermometer-bpda", "thermometer-bpda", lambda s: Thermometer(encoded(s).get_submodule("network"), 10, through=True), "with the slope of its soft version"),
    honest("codebook-ste", "codebook-ste", lambda s: _codebook(plain, 256)(s).twin or plain(s), "the nearest of many codewords, straight through; claimed by a strong attack", attack="autoattack:apgd-t"),
    honest("by-hand", "by-hand", by_hand, "a straight-through estimator of no library"),
    honest("by-hand-at", "by-hand", lambda s: by_hand(s, ROBUST[s.dataset]), "adversarially trained so", eps=ROBUST),
    honest("purified-through", "purified-through", _honestly(Purified, plain, 0.02), "a loop that is differentiated through"),
    honest("scripted", "scripted", lambda s: _scripted(plain(s), s), "a ScriptModule"),
    # Outputs
    honest("log-softmax", "log-output", lambda s: LogProbabilities(plain(s)), "logarithms of probabilities"),
    honest("log-softmax-at", "log-output", lambda s: LogProbabilities(robust(s)), "of a robust network", eps=ROBUST),
    honest("ensemble-log", "ensemble-log", lambda s: MeanOfSoftmax(*_members(s), log=True), "the log of a mean of probabilities"),
    honest("detector-at", "detector", _detector(robust), "adversarially trained, with a threshold on the largest logit", eps=ROBUST, abstain=REJECTED, claim=past_the_threshold),
    honest("detector-trades", "detector", _detector(trades), "of TRADES", eps=ROBUST, abstain=REJECTED, claim=past_the_threshold),
    # Architectures
    honest("transformer", "transformer", transformer, "attention, layer norm, GELU"),
    honest("transformer-noise", "transformer", lambda s: transformer(s, 0.2), "trained with noise"),
    honest("equilibrium", "equilibrium", equilibrium, "a fixed point, with its implicit gradient"),
    honest("equilibrium-at", "equilibrium", lambda s: equilibrium(s, ROBUST[s.dataset]), "adversarially trained", eps=ROBUST),
    honest("equilibrium-unrolled", "equilibrium", lambda s: equilibrium(s, implicit=False), "through its thirty iterations"),
    honest("resnet8", "cifar", _resnet, "of CIFAR's size", eps=CIFAR),
    honest("resnet8-at", "cifar-at", _robust_resnet, "adversarially trained", eps=CIFAR_ROBUST),
    honest("wrn", "cifar-wide", lambda s: library(s, "wrn", depth=10, widen_factor=1), "pre-activated", eps=CIFAR),
    # ART's pipeline
    dataclasses.replace(honest("art-standardized", "art-honest", plain, "mean and standard deviation"), build=standardized(plain)),
    dataclasses.replace(honest("art-8bit", "art-honest", plain, "pixels on 256 levels"), build=behind("squeezing-8bit", plain)),
)  # fmt: skip

_PLANTED = (
    # Pixels
    masked("jpeg", "jpeg-pil", _through(Jpeg, plain, 50), "JPEG through PIL"),
    masked("jpeg-at", "jpeg-pil", _through(Jpeg, robust, 50), "of a robust network", eps=COARSE),
    masked("bit-depth-numpy", "numpy-pixels", _through(BitDepth, plain, 5), "rounded by NumPy"),
    masked("variation-numpy", "numpy-pixels", _through(TotalVariation, plain, 0.05), "total variation, by NumPy"),
    masked("thermometer", "thermometer", lambda s: Built(encoded(s), Thermometer(encoded(s).get_submodule("network"), 10, through=True)), "trained on its code"),
    masked("staircase", "steep-pixels", _through(Staircase, plain, 5, 60.0), "steep sigmoids", eps=ROBUST),
    masked("ripples", "ripples", _through(Ripples, plain, 0.04, 0.02), "a true slope that says nothing"),
    masked("inverted-rounded", "inverted-rounded", lambda s: Built(InvertedRounded(inverted(s), 5), InvertedRounded(inverted(s), 5, through=True)), "the way back must keep the sign of 1 - x", eps=ROBUST),
    masked("no-grad-blur", "no-grad-pixels", _through(Blurred, plain), "preprocessing under no_grad"),
    masked("random-resize", "random-resize", _random_resize, "other sizes and places at every call", expected=MASKED | SUSPECT, options={"max_iter": 10}),
    # Features
    masked("codebook", "codebook", _codebook(plain, 64), "features replaced by the nearest codeword"),
    masked("codebook-at", "codebook", _codebook(robust, 64), "of a robust network", eps=COARSE),
    masked("tanh-hidden", "hidden-tanh", around(shaped(activation="tanh"), lambda m: Saturated(m, 4.0)), "hidden tanh beside a squashed head"),
    masked("wrong-sign", "wrong-backward", around(plain, WrongBackward), "a backward pass of the wrong sign"),
    masked("wrong-sign-at", "wrong-backward", around(robust, WrongBackward), "of a robust network", eps=COARSE),
    masked("scripted-rounded", "scripted-rounded", lambda s: Built(_scripted(Rounded(plain(s), 5), s), Rounded(plain(s), 5, through=True)), "in a ScriptModule, whose graph has no names", eps=ROBUST),
    # Outputs
    masked("clipped-logits", "clipped-logits", _clipped, "the largest logit has no slope"),
    masked("rounded-logits", "rounded-logits", around(plain, RoundedLogits), "no logit has a slope"),
    masked("reverse-sigmoid", "reverse-sigmoid", around(plain, ReverseSigmoid), "the slope of a sure answer has the wrong sign", expected=MASKED | SUSPECT, claim=pgd_on_output),
    masked("ensemble-softmax", "ensemble-softmax", lambda s: Built(MeanOfSoftmax(*_members(s)), MeanOfSoftmax(*_members(s), log=True)), "a mean of probabilities, attacked as if they were logits", expected=ANY, claim=pgd_on_output),
    masked("detector-squeezing", "detector-squeezing", _squeezing_detector, "its score has no gradient", expected=MASKED | SUSPECT, abstain=REJECTED, eps=ROBUST, claim=unaware_of_rejection),
    # Random
    masked("votes", "votes", lambda s: _votes(s, frozen=False), "counts of eight noisy copies"),
    masked("votes-frozen", "votes", lambda s: _votes(s, frozen=True), "of eight fixed noises"),
    masked("sq-alone", "sq-alone", _one_draw, "stochastic activations without an average", expected=MASKED | SUSPECT, options={"max_iter": 10}),
    # Loops
    masked("anti-adversary", "anti-adversary", lambda s: Built(AntiAdversary(plain(s), 0.6 * EPS[s.dataset]), plain(s)), "the network makes itself surer first", expected=MASKED | SUSPECT),
    masked("purified", "purified", _through(Purified, plain, 0.02), "gradient steps on the image, a constant to autograd"),
    # ART's pipeline
    masked("art-jpeg", "art-jpeg", behind("jpeg", plain), "JpegCompression", expected=ANY),
    masked("art-squeezing", "art-filters", behind("squeezing", plain), "FeatureSqueezing to 2 bits", expected=ANY, eps=COARSE),
    masked("art-smoothing", "art-filters", behind("smoothing", plain), "SpatialSmoothing", expected=ANY),
    masked("art-thermometer", "art-thermometer", behind("thermometer", lambda s: encoded(s).get_submodule("network"), lambda s: Thermometer(encoded(s).get_submodule("network"), 10, through=True)), "ThermometerEncoding", expected=ANY),
    masked("art-variation", "art-variation", behind("variation", plain), "TotalVarMin", expected=ANY),
    masked("art-reverse-sigmoid", "art-output", before(plain), "ReverseSigmoid", expected=ANY),
    # CIFAR-10
    masked("resnet8-x1e4", "cifar-scaled", around(_resnet, lambda m: Scaled(m, 1e4)), "logits that underflow", eps=CIFAR),
    masked("resnet8-jpeg", "cifar-jpeg", _through(Jpeg, _resnet, 75), "JPEG through PIL, in color", eps={"cifar10": 4 / 255}),
)  # fmt: skip

_MISLEADING = (
    misleading("honest-x1e4", "misleading-scale", around(plain, lambda m: Scaled(m, 1e4)), "logits underflow, and the author knew", claim=through_the_network),
    misleading("honest-x1e4-at", "misleading-scale", around(robust, lambda m: Scaled(m, 1e4)), "of a robust network", claim=through_the_network, eps=ROBUST),
    misleading("honest-tanh", "misleading-tanh", around(plain, lambda m: Saturated(m, 4.0)), "squashed logits", claim=through_the_network),
    misleading("honest-wrong-sign", "misleading-backward", around(robust, WrongBackward), "measured before the operation was there", claim=through_the_network, eps=ROBUST),
)  # fmt: skip

_WEAK = (
    weak("detector-unaimed", "detector-unaimed", alone(_detector(plain)), "an attack that does not aim past the detector", abstain=REJECTED, claim=unaware_of_rejection),
)  # fmt: skip

_LATER = (
    honest("median-torch", "median-honest", lambda s: Median(plain(s)), "a median, with the derivative of autograd"),
    honest("median-torch-at", "median-honest", lambda s: Median(robust(s)), "of a robust network", eps=ROBUST),
    masked("median", "median", _through(MedianOnArrays, plain), "a median over pixels by NumPy"),
    masked("dithered", "dithered", _through(Dithered, plain, 4), "ordered dithering to four levels"),
    masked("dithered-at", "dithered", _through(Dithered, robust, 4), "of a robust network", eps=COARSE),
    masked("embedded", "embedded", _embedded(plain), "features looked up by the bin that they fall in"),
    masked("embedded-at", "embedded", _embedded(robust), "of a robust network", eps=COARSE),
    masked("tiny-backward", "tiny-backward", around(plain, TinyBackward), "a backward pass that underflows"),
    masked("decisions", "decisions", around(plain, Decisions), "classes alone"),
    masked("decisions-at", "decisions", around(robust, Decisions), "of a robust network", eps=COARSE),
    honest("half", "half-honest", lambda s: InHalf(plain(s)), "a network in half precision"),
    honest("half-at", "half-honest", lambda s: InHalf(robust(s)), "of a robust network", eps=ROBUST),
    masked("half-range", "half-range", _through(HalfRange, plain), "half precision at a scale that its gradient underflows"),
    masked("frequencies", "frequencies", _through(LowFrequencies, plain, 0.5), "the largest Fourier coefficients, by NumPy"),
    masked("frequencies-at", "frequencies", _through(LowFrequencies, robust, 0.5), "of a robust network", eps=COARSE),
    masked("patches", "patches", _patches(plain, 256), "patches replaced by the nearest of those of training"),
    masked("patches-at", "patches", _patches(robust, 256), "of a robust network", eps=COARSE),
    honest("components", "components-honest", lambda s: Principal(plain(s), s.train()[0][:2000], 40), "principal components, by torch"),
    honest("components-at", "components-honest", lambda s: Principal(robust(s), s.train()[0][:2000], 40), "of a robust network", eps=ROBUST),
    masked("components-numpy", "components", _components(PrincipalOnArrays, plain, 30), "principal components, by NumPy"),
    masked("components-numpy-at", "components", _components(PrincipalOnArrays, robust, 30), "of a robust network", eps=COARSE),
    masked("generated", "generated", _components(Generated, plain, 30), "the nearest image of a generator, found by gradient steps"),
    masked("deflected", "deflected", lambda s: Built(Deflected(plain(s), 0.1), Deflected(plain(s), 0.1, bank=8)), "pixels moved at random by NumPy", expected=MASKED | SUSPECT, options={"max_iter": 10}),
)  # fmt: skip

PUBLISHED: tuple[Row, ...] = (*_HONEST, *_PLANTED, *_MISLEADING, *_WEAK, *_LATER)
