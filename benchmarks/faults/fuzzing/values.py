"""Values that settings seldom have, as Python expressions, and values in TOML.

An expression such as ``10**400`` keeps a case short, and can be read.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from hypothesis import strategies as st

from art_qplugins.attacks import ATTACKS
from art_qplugins.attacks.suites import SUITES
from art_qplugins.data import DATASETS
from art_qplugins.defences import DEFENCES
from art_qplugins.models import MODELS
from art_qplugins.quantizers import QUANTIZERS
from art_qplugins.recipes.load import shipped_recipes


def _several(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Numbers that are none, too large, too small, or of the wrong kind.
NUMBERS = _several(
    """nan inf -inf -0.0 0 0.0 1 -1 2 3 8 17 99 0.5 1.5 -0.5 1e-9 1e-320 5e-324 1e6 1e308 -1e308 1000000
    10**9 10**12 10**30 10**400 -10**400 2**31 2**63 2**64"""
)
#: Texts that are no names: long, empty, of control characters, of markup, of paths, of numbers.
TEXTS = _several(
    r"""'' '\x20' 'x' 'x'*5000 '\x00' 'a\x00b' 'a\nb' '\x1b[31m' '[/x]' '[bold]' '\u202e' 'é' '../../escape' '..' '.'
    '~nouser' '/tmp/artq-fuzz-escape' 'nan' '1e999999999' '8/255' '1/0' '0x10' '1_0' '٣' 'true' 'None' 'CON' 'a.b'
    'a=b' '%s' '{x}' '\\' '\U0001f600'*50"""
)
#: Values with parts.
NESTED = _several(
    """[] {} [[]] [nan] [{}] {'a':1} {'':''} [0.1,0.1] ['a','a'] [1,'a'] [True] [None] [0.1]*300 [['x'*999]]
    list(range(2000)) {'name':'fp32'} {'a':{'a':{'a':{}}}}"""
)
FLAGS = ("True", "False")
_MORE = _several("fp32 other Linf L2 L1 L0 linf cascade substitute npz:nowhere folder:.")
#: Names of things, which may be the wrong things.
KNOWN = tuple(
    repr(name)
    for names in (ATTACKS, DATASETS, DEFENCES, MODELS, QUANTIZERS, SUITES, shipped_recipes(), _MORE)
    for name in names
)

_NAMES = {"nan": float("nan"), "inf": float("inf"), "__builtins__": {"list": list, "range": range}}


def value_of(expression: str) -> Any:
    """The value that an expression of a case stands for."""
    return eval(expression, dict(_NAMES))


@functools.cache
def odd() -> st.SearchStrategy[str]:
    """Expressions of values that a setting seldom has."""
    return st.one_of(
        st.sampled_from(NUMBERS),
        st.sampled_from(TEXTS + NESTED + FLAGS),
        st.sampled_from(KNOWN),
        st.floats(width=64).map(repr),
        st.integers(-5, 300).map(repr),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(repr),
        st.lists(st.sampled_from(NUMBERS + TEXTS), max_size=3).map(lambda several: f"[{', '.join(several)}]"),
    )


def near(default: Any) -> list[str]:
    """Expressions of values of the same kind, some of them far away."""
    if isinstance(default, (bool, str)):
        return ["True", "False"] if isinstance(default, bool) else [repr(default)]
    if isinstance(default, int):
        return ["0", "1", "2", "3", "5", "10", "30"]
    if isinstance(default, list):
        return [repr(default[:1]), repr(default[::-1]), repr(default[1:])]
    if isinstance(default, dict):
        return ["{}"]
    scale = default if isinstance(default, float) and default else 1.0
    return [
        repr(scale * factor) for factor in (0.0, 1e-12, 1e-6, 1e-3, 0.01, 0.1, 0.5, 0.9, 2.0, 10.0, 1e4, 1e25, -1.0)
    ]


def toml(value: Any) -> str:
    """``value`` in TOML, on one line.

    :raises TypeError: where TOML has no such value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(
            value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), ensure_ascii=False
        ).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(each)}" for key, each in value.items()) + "}"
    raise TypeError(f"TOML has no {type(value).__name__}")
