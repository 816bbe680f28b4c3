"""The validation zoo: models whose truth is known, planted failures and honest ones, on digits and on MNIST.

This is the table alone. What a row is stands in ``rows.py``, how its model is made in ``builders.py``. The diagnostics know
nothing of it.

The claim speaks of a number, the verdict of the model's gradients. An attack that is too weak for a model that hides nothing
makes the claim OVERSTATED and leaves the verdict at NOT_REFUTED (kind ``weak``).

Thresholds are tuned on half A and rates are reported of half B. The family of a row decides its half. So half B holds plants
and kinds of honest models that nobody has tuned on, for every seed and data set.
"""

from __future__ import annotations

from builders import (
    ROBUST,
    binary,
    distilled,
    fast_adversarial,
    mu_law,
    noisy,
    on,
    on_pixels,
    paired,
    plain,
    robust,
    shaped,
    stochastic,
    trades,
    tuned,
    winners,
)
from plants import (
    BatchStatistics,
    Compressed,
    Detached,
    DoubleSoftmax,
    FrozenNoise,
    Killed,
    NoGrad,
    Probabilities,
    Rounded,
    Saturated,
    Scaled,
    last_iterate,
    wrong_units,
)
from rows import INVALID, MASKED, SUSPECT, Built, Row, alone, honest, invalid, masked, weak
from zoo_published import ANY, PUBLISHED

from art_qplugins import quantize

__all__ = ["ROWS"]

#: Eps by data set, in L-infinity: more than half of the distance of four levels. Less changes no black or white pixel.
COARSE = {"digits": 0.2, "mnist": 0.25}
#: Eps by data set, in L2.
L2 = {"digits": 0.8, "mnist": 1.5}

_HONEST = (
    # Plain
    honest("plain", "plain", plain, "broken by everybody"),
    honest("plain-small-eps", "plain", plain, "many images stand: room for a gap", eps={"digits": 0.08, "mnist": 0.05}),
    honest("plain-long", "training", lambda s: plain(s, epochs=30 if s.dataset == "digits" else 15), "larger margins"),
    honest("plain-no-decay", "training", lambda s: plain(s, epochs=12, weight_decay=0.0), "larger margins"),
    honest("plain-decay", "training", lambda s: plain(s, weight_decay=5e-3), "small margins"),
    honest(
        "logits-small",
        "small-logits",
        lambda s: plain(s, options=(("gain", 4.0),)),
        "trained to logits a quarter as large; claimed by a loss that does not mind",
        attack="autoattack:apgd-t",
    ),
    honest("mixup", "regularized", lambda s: plain(s, loss="mixup", epochs=10), "soft targets"),
    honest("smoothing-0.1", "regularized", lambda s: plain(s, options=(("smoothing", 0.1),)), "mild label smoothing"),
    honest("dropout", "regularized", shaped(dropout=0.4), "trained with dropout"),
    honest("noise-trained", "noise", lambda s: plain(s, options=(("noise", 0.2),), epochs=10), "Gaussian augmentation"),
    honest(
        "noise-frozen",
        "noise",
        lambda s: FrozenNoise(plain(s, options=(("noise", 0.2),), epochs=10), s.shape, 0.2, s.seed),
        "the mean over eight fixed noises: deterministic and smooth",
    ),
    # Architectures
    honest("narrow", "width", shaped(width=4), "few parameters, smaller margins"),
    honest("wide", "width", shaped(width=16), "more parameters"),
    honest("gelu", "smooth-activation", shaped(activation="gelu"), "a smooth activation"),
    honest("silu", "smooth-activation", shaped(activation="silu"), "a smooth activation"),
    honest("elu", "other-activation", shaped(activation="elu"), "another one"),
    honest("tanh", "other-activation", shaped(activation="tanh"), "an activation that saturates, in part"),
    honest("leaky-relu", "other-activation", shaped(activation="leaky-relu"), "no dead units"),
    honest("max-pool", "pooling", shaped(pool="max"), "kinks of max pooling"),
    honest("average-pool", "pooling", shaped(pool="average"), "smoother"),
    honest("residual", "residual", shaped(residual=True), "a skip connection"),
    honest("mlp", "mlp", shaped(convolutions=False), "no convolution"),
    honest("no-norm", "no-norm", shaped(norm=False), "no batch norm"),
    # Claims in other norms and by other attacks
    honest("plain-l2", "l2", plain, "a claim in another norm", norm="L2", eps=L2),
    honest("at-l2", "l2", robust, "the same, of a robust network", norm="L2", eps=L2),
    honest("plain-apgd", "claims", plain, "claimed by a stronger attack", attack="autoattack:apgd-ce"),
    honest("at-apgd", "claims", robust, "the same", attack="autoattack:apgd-ce", eps=ROBUST),
    honest("at-autoattack", "claims", robust, "by the strongest", attack="autoattack:standard", eps=ROBUST),
    honest("plain-pgd-50", "claims", plain, "fifty steps", options={"max_iter": 50}),
    # Quantized
    honest("8bit", "quantized", lambda s: quantize(plain(s), 8, 8), "straight-through, close to float"),
    honest("4bit", "quantized", lambda s: quantize(plain(s), 4, 4), "straight-through"),
    honest("3bit", "quantized-coarse", lambda s: tuned(s, plain(s), activation_bits=3, weight_bits=3, clip=2.0), "quantization-aware training"),
    honest("2bit-weights", "quantized-coarse", lambda s: tuned(s, plain(s), weight_bits=2), "exactly differentiable in the pixels"),
    honest("3bit-weights", "quantized-coarse", lambda s: quantize(plain(s), weight_bits=3), "mu-law's control"),
    honest("rounded-bpda", "bpda", lambda s: on_pixels(plain, Rounded, 5, True)(s).model, "rounding, through its BPDA", eps=ROBUST),
    honest("compressed-bpda", "bpda", lambda s: on_pixels(plain, Compressed, 0.1, True)(s).model, "lossy, through BPDA"),
    # Robust
    honest("at", "at", robust, "a gap of PGD to AutoAttack is normal", eps=ROBUST),
    honest("at-wide", "at", lambda s: robust(s, width=16), "the same, wider", eps=ROBUST),
    honest("at-small-eps", "at-eps", lambda s: robust(s, 0.1), "trained at a smaller eps than claimed", eps=ROBUST),
    honest("at-large-eps", "at-eps", lambda s: robust(s, 0.25), "at a larger one", eps={"digits": 0.25, "mnist": 0.25}),
    honest("at-residual", "at-shape", lambda s: robust(s, residual=True), "with a skip connection", eps=ROBUST),
    honest("at-gelu", "at-shape", lambda s: robust(s, activation="gelu"), "smooth", eps=ROBUST),
    honest("trades", "trades", trades, "another loss", eps=ROBUST),
    honest("trades-1", "trades", lambda s: trades(s, 1.0), "less of it", eps=ROBUST),
    honest("at-8bit", "at-quantized", lambda s: quantize(robust(s), 8, 8), "honest quantization", eps=ROBUST),
    honest("at-4bit", "at-quantized", lambda s: quantize(robust(s), 4, 4), "coarser", eps=ROBUST),
    honest("trades-8bit", "at-quantized", lambda s: quantize(trades(s), 8, 8), "of TRADES", eps=ROBUST),
    honest("at-4bit-tuned", "at-quantized", lambda s: tuned(s, robust(s), True, activation_bits=4, weight_bits=4, clip=2.0), "adversarially trained when quantized", eps=ROBUST),
    # Stochastic, attacked through the deployed average
    honest("sq-eot-4", "sq", lambda s: stochastic(s, draws=4), "ensemble of four, attacked as such"),
    honest("sq-eot-8", "sq", lambda s: stochastic(s, draws=8), "of eight", options={"max_iter": 40}),
    honest("sq-eot-4bit", "sq-fine", lambda s: stochastic(s, 4, draws=4), "less noise"),
    honest("sq-at", "sq-at", lambda s: stochastic(s, adversarially=True, draws=8), "of a robust network", attack="autoattack:apgd-ce", eps=ROBUST),
)  # fmt: skip

_PLANTED = (
    # Scale
    masked("x1e4", "scale", on(plain, lambda m: Scaled(m, 1e4)), "cross-entropy and its gradient are 0", "attack-gap logit-scale zero-gradient loss-underflow large-logits gradient-underflow"),
    masked("x30", "scale", on(plain, lambda m: Scaled(m, 30.0)), "not all gradients are gone", "attack-gap logit-scale loss-underflow large-logits gradient-underflow"),
    masked("x1e4-fgsm", "scale", on(plain, lambda m: Scaled(m, 1e4)), "one step", "attack-gap zero-gradient loss-underflow large-logits gradient-underflow", attack="art:fgsm"),
    masked("at-x1e4", "scale-at", on(robust, lambda m: Scaled(m, 1e4)), "robust, and claimed too high", "attack-gap logit-scale zero-gradient loss-underflow large-logits gradient-underflow", eps=ROBUST),
    masked("trades-x1e4", "scale-at", on(trades, lambda m: Scaled(m, 1e4)), "the same of TRADES", "attack-gap logit-scale zero-gradient loss-underflow large-logits gradient-underflow", eps=ROBUST),
    masked("x10-l2", "scale-l2", on(plain, lambda m: Scaled(m, 10.0)), "the square of the gradient underflows in an L2 step", "attack-gap logit-scale loss-underflow large-logits gradient-underflow", norm="L2", eps=L2),
    masked("x10", "scale-l2", on(plain, lambda m: Scaled(m, 10.0)), "steps by sign mostly survive it", "loss-underflow large-logits", expected=MASKED | SUSPECT),
    masked("mu-law-1", "mu-law", mu_law(1), "the last layer: in part still attackable", "loss-underflow large-logits", expected=MASKED | SUSPECT),
    masked("mu-law-2", "mu-law", mu_law(2), "the last two layers", "attack-gap logit-scale loss-underflow large-logits gradient-underflow"),
    masked("mu-law-2-fgsm", "mu-law", mu_law(2), "the same, claimed by FGSM", "attack-gap loss-underflow large-logits", attack="art:fgsm"),
    masked("distilled", "distilled", distilled, "trained at temperature 40, deployed at 1", "loss-underflow large-logits"),
    masked("tanh-pgd", "saturated", on(plain, lambda m: Saturated(m, 4.0)), "inside the graph: no scale undoes it", "attack-gap surrogate-gradient zero-gradient"),
    masked("tanh-apgd-t", "saturated", on(plain, lambda m: Saturated(m, 4.0)), "claimed by a loss that no scale changes", "attack-gap surrogate-gradient zero-gradient", attack="autoattack:apgd-t"),
    masked("tanh-at", "saturated", on(robust, lambda m: Saturated(m, 8.0)), "of a robust network", "attack-gap zero-gradient", eps={"digits": 0.2, "mnist": 0.25}),
    # No gradient
    masked("detached", "detached", on(plain, Detached), "no gradient reaches the pixels", "no-gradient", expected=INVALID | MASKED),
    masked("no-grad", "detached", on(plain, NoGrad), "interrupted within", "no-gradient", expected=INVALID | MASKED),
    masked("gradient-killer", "killed", on(plain, Killed), "a backward of exactly zero", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient"),
    masked("gradient-killer-at", "killed", on(robust, Killed), "of a robust network: a smaller gap", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient", eps={"digits": 0.2, "mnist": 0.25}),
    masked("rounded", "rounded", on_pixels(plain, Rounded, 5), "pixels on 5 levels, no BPDA", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient", eps=ROBUST),
    masked("rounded-2bit", "rounded", on_pixels(plain, Rounded, 4), "on 4 levels", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient", eps=COARSE),
    masked("compressed", "compressed", on_pixels(plain, Compressed, 0.3), "the lossy step of JPEG, no BPDA", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient"),
    masked("sign", "sign", lambda s: binary(s, None), "binary activations with their true derivative", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient"),
    masked("sign-steep", "sign-steep", lambda s: binary(s, 50.0), "through the derivative of tanh(50 x)", "unfaithful-gradient", expected=MASKED | SUSPECT),
    # Rugged
    masked("fgsm-at", "fgsm-at", alone(fast_adversarial), "catastrophic overfitting", "attack-gap single-step gradient-alignment", attack="art:fgsm", eps={"digits": 0.3, "mnist": 0.3}),
    masked("k-winners", "k-winners", winners, "a discontinuous activation", "unfaithful-gradient", expected=MASKED | SUSPECT),
    masked("smoothing-0.5", "squeezed", alone(lambda s: plain(s, options=(("smoothing", 0.5),), epochs=12)), "strong label smoothing, PGD-10", expected=MASKED | SUSPECT, options={"max_iter": 10}, eps={"digits": 0.15, "mnist": 0.05}),
    masked("clp", "squeezed", alone(lambda s: paired(s, "pairing")), "clean logit pairing, PGD-10", expected=MASKED | SUSPECT, options={"max_iter": 10}, eps=ROBUST),
    masked("lsq", "squeezed", alone(lambda s: paired(s, "squeezing")), "logit squeezing, PGD-10", expected=MASKED | SUSPECT, options={"max_iter": 10}, eps=ROBUST),
    # Output
    masked("probabilities", "output", on(plain, Probabilities), "cross-entropy of a softmax", expected=ANY),
    masked("double-softmax", "output", on(plain, DoubleSoftmax), "and of a softmax of it", expected=ANY),
    # Random
    masked("sq-one-draw", "one-draw", lambda s: Built(stochastic(s, draws=8, eot_draws=1), stochastic(s, draws=8)), "deployed with eight draws, attacked in ten steps through one", expected=MASKED | SUSPECT, options={"max_iter": 10}),
    masked("noisy-input", "noisy", noisy, "noise that no layer of ours announces, no averaging", expected=MASKED | SUSPECT, options={"max_iter": 10}, eps=ROBUST),
)  # fmt: skip

_WEAK = (
    weak("small-step", "steps", alone(plain), "ten steps that reach a tenth of eps", "attack-gap", options={"max_iter": 10, "rel_eps_step": 0.01}),
    weak("small-step-at", "steps", alone(robust), "of a robust network", "attack-gap", options={"max_iter": 10, "rel_eps_step": 0.01}, eps=ROBUST),
    weak("three-steps", "few-steps", alone(plain), "three steps of a tenth of eps", "attack-gap", options={"max_iter": 3, "rel_eps_step": 0.1}),
    weak("fgsm-claim", "few-steps", alone(plain), "a one-step attack", "attack-gap single-step", attack="art:fgsm"),
    weak("last-iterate", "last-iterate", alone(plain), "a number from a loop that returns its last iterate", claim=last_iterate),
    weak("wrong-units", "wrong-units", alone(plain), "a number from steps 255 times too small", claim=wrong_units),
    weak("div-3", "divided", on(plain, lambda m: Scaled(m, 1 / 3)), "cross-entropy of small logits spends its steps on all classes"),
    weak("div-100", "divided", on(plain, lambda m: Scaled(m, 0.01)), "the same, linear in them", "attack-gap"),
    weak("div-100-at", "divided", on(robust, lambda m: Scaled(m, 0.01)), "of a robust network", eps=ROBUST),
)  # fmt: skip

_BROKEN = (
    invalid("eps-units", "eps-units", alone(plain), "eps of 8 for pixels in [0, 1]", eps={"digits": 8.0, "mnist": 8.0}),
    invalid("train-mode", "train-mode", alone(lambda s: BatchStatistics(plain(s))), "answers depend on the batch", expected=INVALID | SUSPECT),
    invalid("train-mode-at", "train-mode", alone(lambda s: BatchStatistics(robust(s))), "the same", expected=INVALID | SUSPECT, eps=ROBUST),
)  # fmt: skip

ROWS: tuple[Row, ...] = (*_HONEST, *_PLANTED, *_WEAK, *_BROKEN, *PUBLISHED)
