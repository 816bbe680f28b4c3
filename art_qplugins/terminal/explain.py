"""Explains a verdict, a claim or a check of the diagnosis, from the tables that decide them."""

from __future__ import annotations

from collections.abc import Iterable

from art_qplugins.diagnostics import INDICATORS
from art_qplugins.diagnostics.indicator import Indicator
from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.evaluation.fields import Verdict
from art_qplugins.report import words
from art_qplugins.terminal.console import console

__all__ = ["show_explanation"]


def show_explanation(name: str | None) -> None:
    """:param name: a verdict, the id of an indicator, or ``None`` for the whole table.

    :raises InputError: where there is no such name.
    """
    screen = console()
    for line in _whole() if name is None else _lines(name):
        screen.print(line)


def _lines(name: str) -> Iterable[str]:
    verdicts: dict[str, Verdict] = {verdict.lower().replace("_", "-"): verdict for verdict in words.VERDICTS}
    asked = name.lower().replace("_", "-")
    if asked in verdicts:
        return _verdict(verdicts[asked])
    if asked not in INDICATORS:
        known = [*words.VERDICTS, *INDICATORS]
        raise InputError(
            f"explain: there is no verdict and no check {name!r}{did_you_mean(name, known)}; see artq explain"
        )
    return _check(INDICATORS[asked])


def _verdict(verdict: Verdict) -> Iterable[str]:
    meaning = words.VERDICTS[verdict]
    yield f"{verdict}: {meaning.short}"
    yield meaning.long
    alone = [indicator.name for indicator in INDICATORS.values() if indicator.decides.alone == verdict]
    if alone:
        yield f"\nOne of these is enough: {', '.join(alone)}."
    if verdict == "MASKED":
        yield "\nIt takes a mechanism, and a control experiment that breaks the same images:"
        yield from _table()
    if verdict == "SUSPECT":
        yield "\nSo is a mechanism that no control experiment proved or settled:"
        yield from _table()
    if verdict == "INCONCLUSIVE":
        required = [indicator.name for indicator in INDICATORS.values() if indicator.decides.required]
        yield f"\nSo is one of these that was not run: {', '.join(required)}."


def _check(indicator: Indicator) -> Iterable[str]:
    rule, kind = indicator.decides, words.CLASSES[indicator.class_]
    yield f"{indicator.name} ({kind}): {indicator.help}."
    rows = {
        "measures": indicator.formula,
        "threshold": f"{indicator.threshold:.3g}",
        "cost": indicator.cost,
        "shows": indicator.shows,
        "shows not": indicator.shows_not,
        "what to do": indicator.mitigation,
        "source": indicator.source,
        "controls": ", ".join(rule.controls),
        "control of": ", ".join(
            other.name for other in INDICATORS.values() if indicator.name in other.decides.controls
        ),
        "decides": _decides(indicator),
    }
    for head, value in rows.items():
        if value:
            yield f"  {head}: {value}"


def _decides(indicator: Indicator) -> str:
    rule = indicator.decides
    if rule.alone is not None:
        return f"{rule.alone} where it fires and nothing is proved"
    if rule.controls:
        return "MASKED with a control experiment on the same images; SUSPECT where none settles it"
    controlled = any(indicator.name in other.decides.controls for other in INDICATORS.values())
    if controlled:
        return "MASKED together with its mechanism; nothing without one"
    return "whether the claim holds" if rule.required else "nothing: it is a note"


def _whole() -> Iterable[str]:
    for verdict, meaning in words.VERDICTS.items():
        yield f"{verdict}: {meaning.short}"
    yield "\nMechanisms, and the control experiments that prove or settle them:"
    yield from _table()
    yield "\nEnds of a mechanism:"
    for name, told in words.ENDS.items():
        yield f"  {name}: {told}"
    yield "\nartq explain NAME says more about a verdict or a check."


def _table() -> Iterable[str]:
    rows = [(i.name, i.decides.controls) for i in INDICATORS.values() if i.decides.controls]
    wide = max(len(name) for name, _ in rows)
    for name, controls in rows:
        yield f"  {name:{wide}}  {', '.join(controls)}"
