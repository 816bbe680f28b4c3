"""Named lists of attacks, expanded for a norm, an eps and a model. Attacks that do not apply are left out with a reason.

The suite of a paper holds the attacks of its evaluation, not the attacks that could break its claim. Each says where it
differs from its paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.attacks.catalogue.options import kurakin_size
from art_qplugins.domains import OneOf, check
from art_qplugins.errors import InputError
from art_qplugins.registry import Entry, Registry
from art_qplugins.threat import NORMS, kurakin_steps

__all__ = ["SUITES", "Suite", "expand", "options_at"]


@dataclass(frozen=True, kw_only=True)
class Suite(Entry):
    """
    :ivar attacks: (id, options) in the order in which they are run. A value that is a function is one of eps.
    :ivar differs: what it leaves out or does otherwise than its paper, in sentences.
    """

    attacks: tuple[tuple[str, Mapping[str, Any]], ...]
    differs: tuple[str, ...] = ()


def _suite(name: str, help: str, *attacks: str | tuple[str, Mapping[str, Any]], differs: tuple[str, ...] = ()) -> Suite:
    return Suite(
        name=name,
        target="art_qplugins.attacks.suites:expand",
        help=help,
        attacks=tuple((a, {}) if isinstance(a, str) else a for a in attacks),
        differs=differs,
    )


SUITES: Registry[Suite] = Registry(
    "suite",
    [
        _suite(
            "quick",
            "a first look: one step, PGD, Auto-PGD on the margin and 500 queries of Square",
            "art:fgsm",
            "art:pgd",
            "artq:apgd-margin",
            "artq:eot",
            ("autoattack:square", {"n_queries": 500}),
            "torchattacks:sparsefool",
        ),
        _suite(
            "standard",
            "the published AutoAttack, and nothing else: standard, or rand for a random model",
            "autoattack:standard",
            "autoattack:rand",
        ),
        _suite(
            "worst-case",
            "one attack for the number: what AutoAttack leaves, for a small part of its gradients",
            "artq:worst-case",
        ),
        _suite(
            "adaptive",
            "adaptive attacks for quantized and random models, which are known to mask gradients",
            "artq:apgd-margin",
            "artq:multi-targeted",
            "artq:rescaled",
            "artq:surrogates",
            "artq:full-precision",
            "artq:bits",
            "artq:joint",
            "artq:eot",
        ),
        _suite(
            "black-box",
            "black-box attacks: score-based, decision-based, and L0",
            "autoattack:square",
            ("torchattacks:spsa", {"max_iter": 20}),
            "art:hop-skip-jump",
            "torchattacks:onepixel",
            "torchattacks:pixle",
        ),
        _suite(
            "dq",
            "Defensive Quantization's own: FGSM, R+FGSM, and PGD in steps of 1/255, min(eps + 4, 1.25 eps) of them",
            "art:fgsm",
            # Half of eps at random, half along the gradient (equation 2).
            ("torchattacks:rfgsm", {"max_iter": 1, "rel_eps_step": 0.5}),
            ("art:pgd", {"max_iter": kurakin_steps, "rel_eps_step": kurakin_size}),
            differs=(
                "PGD starts anywhere in the ball; the paper's starts at eps/2 along random signs",
                "the paper's black-box attacks are left out; they are transfers from another network",
            ),
        ),
        _suite(
            "mu-law",
            "arXiv 2012.14965's own: FGSM, PGD, BIM, MIM and, in L2, CW",
            "art:fgsm",
            ("art:pgd", {"max_iter": 40, "rel_eps_step": 1 / 30}),
            ("art:bim", {"max_iter": 40, "rel_eps_step": 1 / 30}),
            ("art:mifgsm", {"max_iter": 40, "rel_eps_step": 1 / 30}),
            ("art:cw-l2", {"max_iter": 100, "binary_search_steps": 5}),
            differs=(
                "the paper gives no settings; these are MNIST's usual ones",
                "the paper's noise and its black-box attacks are left out; the latter are transfers from a substitute",
            ),
        ),
        _suite(
            "sq",
            "arXiv 2312.00105's own: FGM, PGD and Square, under ART's names",
            "art:fgsm",
            "art:pgd",
            "art:square",
            differs=("the paper gives no settings; these are this package's defaults",),
        ),
    ],
)


def expand(
    name: str, norm: str, *, eps: float, stochastic: bool = False, quantized: bool = False
) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str]]]:
    """The attacks of a suite that apply at this eps, as (id, options), and those that do not, as (id, reason).

    :param norm: ``"Linf"``, ``"L2"``, ``"L1"`` or ``"L0"``.
    :param stochastic: the model is random.
    :param quantized: the model has quantizers that an attack could remove.
    :raises InputError: for an unknown name or norm, and where nothing is left.
    """
    suite, norm = SUITES[name], check("norm", norm, OneOf(NORMS))
    chosen, dropped = [], []
    for attack, options in suite.attacks:
        if reason := _obstacle(attack, norm, stochastic, quantized):
            dropped.append((attack, reason))
        else:
            chosen.append((attack, options_at(options, eps)))
    if not chosen:
        others = [n for n, s in SUITES.items() if any(norm in ATTACKS[a].norms for a, _ in s.attacks)]
        reasons = "; ".join(dict.fromkeys(reason for _, reason in dropped))
        raise InputError(f"suite {name!r} has no attack in {norm} here ({reasons}); try {', '.join(others)}")
    return chosen, dropped


def options_at(options: Mapping[str, Any | Callable[[float], Any]], eps: float) -> dict[str, Any]:
    """The values of a suite's options at this eps."""
    return {name: value(eps) if callable(value) else value for name, value in options.items()}


def _obstacle(attack: str, norm: str, stochastic: bool, quantized: bool) -> str:
    row, kind = ATTACKS[attack], "stochastic" if stochastic else "deterministic"
    if norm not in row.norms:
        return f"it has no norm {norm}"
    if row.models not in ("any", kind):
        return f"it is for {row.models} models and this one is {kind}"
    if row.quantized and not quantized:
        return "it removes a quantization and this model has none"
    if row.missing():
        return f"{row.missing()} is not installed"
    return ""
