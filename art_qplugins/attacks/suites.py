"""Named lists of attacks. A suite is expanded for a norm and a model; what does not apply is left out, with the reason.

The suites of papers are the attacks that their claims are made by, not those that could break the claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.errors import InputError
from art_qplugins.registry import Entry, Registry
from art_qplugins.threat import Threat

__all__ = ["SUITES", "Suite", "expand"]


@dataclass(frozen=True, kw_only=True)
class Suite(Entry):
    """:ivar attacks: (id, options) in the order in which they are run."""

    attacks: tuple[tuple[str, Mapping[str, Any]], ...]


def _suite(name: str, help: str, *attacks: str | tuple[str, Mapping[str, Any]]) -> Suite:
    return Suite(
        name=name,
        target="art_qplugins.attacks.suites:expand",
        help=help,
        attacks=tuple((a, {}) if isinstance(a, str) else a for a in attacks),
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
            "adaptive",
            "what quantized and random models are known to hide from other attacks",
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
            "no gradients: by scores, by decisions, and for few pixels",
            "autoattack:square",
            ("torchattacks:spsa", {"max_iter": 20}),
            "art:hop-skip-jump",
            "torchattacks:onepixel",
            "torchattacks:pixle",
        ),
        _suite(
            "dq",
            "Defensive Quantization's own: FGSM, R+FGSM and PGD as its table 3 has them at 8/255",
            "art:fgsm",
            # Half of eps at random, half along the gradient (equation 2).
            ("torchattacks:rfgsm", {"max_iter": 1, "rel_eps_step": 0.5}),
            # Steps of 1/255, min(eps + 4, 1.25 eps) of them.
            ("art:pgd", {"max_iter": 10, "rel_eps_step": 0.125}),
        ),
        _suite(
            "mu-law",
            "arXiv 2012.14965's own: FGSM, PGD, BIM, MIM and, in L2, CW; it gives no settings, these are MNIST's usual",
            "art:fgsm",
            ("art:pgd", {"max_iter": 40, "rel_eps_step": 1 / 30}),
            ("art:bim", {"max_iter": 40, "rel_eps_step": 1 / 30}),
            ("art:mifgsm", {"max_iter": 40, "rel_eps_step": 1 / 30}),
            ("art:cw-l2", {"max_iter": 100, "binary_search_steps": 5}),
        ),
        _suite(
            "sq",
            "arXiv 2312.00105's own: FGM, PGD and Square, under ART's names; it gives no settings",
            "art:fgsm",
            "art:pgd",
            "art:square",
        ),
    ],
)


def expand(
    name: str, norm: str, *, stochastic: bool = False, quantized: bool = False
) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str]]]:
    """The attacks of a suite that apply, as (id, options), and those that do not, as (id, reason).

    :param norm: ``"Linf"``, ``"L2"``, ``"L1"`` or ``"L0"``.
    :param stochastic: the model draws at random.
    :param quantized: the model has quantizers that an attack could undo.
    :raises InputError: for an unknown name or norm, and where nothing is left.
    """
    suite, norm = SUITES[name], Threat(norm).norm
    chosen, dropped = [], []
    for attack, options in suite.attacks:
        if reason := _obstacle(attack, norm, stochastic, quantized):
            dropped.append((attack, reason))
        else:
            chosen.append((attack, dict(options)))
    if not chosen:
        others = [n for n, s in SUITES.items() if any(norm in ATTACKS[a].norms for a, _ in s.attacks)]
        reasons = "; ".join(dict.fromkeys(reason for _, reason in dropped))
        raise InputError(f"suite {name!r} has no attack in {norm} here ({reasons}); try {', '.join(others)}")
    return chosen, dropped


def _obstacle(attack: str, norm: str, stochastic: bool, quantized: bool) -> str:
    row, kind = ATTACKS[attack], "stochastic" if stochastic else "deterministic"
    if norm not in row.norms:
        return f"it has no norm {norm}"
    if row.models not in ("any", kind):
        return f"it is for {row.models} models and this one is {kind}"
    if row.quantized and not quantized:
        return "it undoes a quantization and this model has none"
    if row.missing():
        return f"{row.missing()} is not installed"
    return ""
