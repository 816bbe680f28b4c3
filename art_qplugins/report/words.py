"""Numbers and verdicts in words. No other module rounds a number or explains a verdict.

A robust accuracy is an upper bound under the attacks that were run. The wording here always says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.evaluation.fields import Answer, End, Interval, Verdict
from art_qplugins.evaluation.records import Cell, Claim, Finding, Layer, ModelResult, Results, Tries

if TYPE_CHECKING:
    from art_qplugins.report.select import OnGrid

NONE = "–"


def percent(value: float | None) -> str:
    """``0.045`` as ``4.5 %``, ``0.83`` as ``83 %``, with a no-break space."""
    return NONE if value is None else f"{_number(value)}\N{NO-BREAK SPACE}%"


def interval(bounds: Interval | None) -> str:
    """``(0.02, 0.07)`` as ``[2, 7]``, in percent. Empty without bounds."""
    return "" if bounds is None else f"[{_number(bounds[0])},\N{NO-BREAK SPACE}{_number(bounds[1])}]"


def accuracy(value: float | None, bounds: Interval | None) -> str:
    """``83 % [77, 88]``."""
    return f"{percent(value)} {interval(bounds)}".rstrip()


def at_most(value: float | None, bounds: Interval | None) -> str:
    """A robust accuracy: ``≤ 4 % [2, 7]``."""
    return NONE if value is None else f"≤\N{NO-BREAK SPACE}{accuracy(value, bounds)}"


def tries(number: int) -> str:
    """``After 1 try``, ``After 100 tries``."""
    return f"After {number} {'try' if number == 1 else 'tries'}"


def left(record: Tries, *, bound: bool) -> str:
    """What several tries leave: ``31 % [25, 38]``; ``≤ 31 % [25, 38] (20 tries)`` where there were no more draws.

    :param bound: whether it is under attack, and so at most that.
    """
    capped = record.counted < record.tries
    shown = (at_most if bound or capped else accuracy)(record.accuracy, record.interval)
    return f"{shown} ({record.counted} {'try' if record.counted == 1 else 'tries'})" if capped else shown


def on_grid(grid: OnGrid | None) -> str:
    """``≤ 4 % [2, 7] on 256 levels``."""
    return NONE if grid is None else f"{at_most(grid.accuracy, grid.interval)} on {grid.levels} levels"


def _number(fraction: float) -> str:
    # Adding zero turns -0.0 into 0.0.
    return f"{round(100 * fraction, 1) + 0.0:.1f}".removesuffix(".0")


def eps(value: float) -> str:
    """``0.15`` stays, ``0.031372…`` becomes ``8/255``."""
    if f"{value:.3g}" == f"{value:.9g}":
        return f"{value:.3g}"
    steps = value * 255
    return f"{round(steps)}/255" if abs(steps - round(steps)) < 1e-4 else f"{value:.3g}"


def threat(norm: str | None, value: float | None) -> str:
    """``Linf, eps 0.15``."""
    return NONE if norm is None or value is None else f"{norm}, eps\N{NO-BREAK SPACE}{eps(value)}"


def points(value: float) -> str:
    """A difference of two accuracies: ``0.9`` as ``90 points``."""
    return f"{_number(value)}\N{NO-BREAK SPACE}points"


def signed(value: float) -> str:
    """A difference of two accuracies in points, with its sign: ``-0.012`` as ``-1.2``. 0 has no sign."""
    shown = _number(abs(value))
    return shown if shown == "0" else f"{'+' if value > 0 else '-'}{shown}"


METRICS = {"clean_accuracy": "clean accuracy", "robust_accuracy": "worst case"}


def p_value(value: float) -> str:
    """``0.0012`` stays. Anything below 1e-4 becomes ``<0.0001``."""
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def count(value: float) -> str:
    """Passes per image: ``20``, ``1.5``, ``0.04``."""
    if value and value < 0.1:
        return f"{value:.1g}"
    return f"{value:,.1f}".removesuffix(".0") if value < 100 else f"{value:,.0f}"


def short(value: float) -> str:
    """A large number of passes, roughly: ``950``, ``1.3k``, ``24M``."""
    power = min(int(math.log10(max(value, 1))) // 3, 4)
    value /= 1000**power
    return f"{value:,.{1 if power and value < 10 else 0}f}{('', 'k', 'M', 'G', 'T')[power]}"


ABOUT_PAPER = (
    "Paper: the accuracy that a paper gives. Behind it is how many points the accuracy here is higher, and whether the 95 % "
    "interval here holds the number of the paper."
)


def paper(cell: Cell | None) -> str:
    """``51.8 %, here -2.3, outside``; a dash where no paper gives a number."""
    if cell is None or cell.reference is None:
        return NONE
    return percent(cell.reference) if cell.accuracy is None else f"{percent(cell.reference)}, {here(cell)}"


def here(cell: Cell) -> str:
    """``here -2.3, outside``: the difference of a cell to the number of a paper in points, and what its interval says."""
    beyond = cell.beyond_reference
    inside = "inside" if cell.holds_reference else "outside"
    return NONE if beyond is None else f"here\N{NO-BREAK SPACE}{signed(beyond)}, {inside}"


def images(cell: Cell) -> str:
    """The number of images that a cell attacked: ``200``, or e.g. ``45 of 200 images (those not broken before)``."""
    if cell.rows is None:
        return f"{cell.n}"
    which = "the recipe's limit" if cell.n == cell.limit else "those not broken before"
    return f"{cell.n} of {cell.of or NONE} images ({which})"


def about_corruptions(results: Results) -> str:
    """What a reader of the cells must know of corruptions, where there are some."""
    if all(cell.role != "corruption" for cell in results.cells):
        return ""
    return "A corruption is noise that no eps limits. It counts in no worst case."


def cell_accuracy(cell: Cell) -> str:
    """A cell's accuracy over the images that it attacked, and what part of it are rejected images.

    The wording says if these are not all images.
    """
    shown = accuracy(cell.accuracy, cell.interval)
    shown += "" if cell.rejected is None else f", {percent(cell.rejected)} rejected"
    return shown if cell.rows is None or cell.accuracy is None else f"{shown} of those"


def epochs(number: int) -> str:
    """``1 epoch``, ``1,000 epochs``."""
    return f"{number:,} epoch{'' if number == 1 else 's'}"


def loss(value: float) -> str:
    """``0.0123``, ``2.3``: also of a learning rate."""
    return f"{value:.3g}"


def pace(images_per_second: float) -> str:
    """``2,345 images/s``, ``0.3 images/s``."""
    return f"{count(images_per_second)} images/s"


def duration(seconds: float) -> str:
    """``3.2 s``, ``15 min``."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def rough(seconds: float) -> str:
    """``12 s``, ``4 min``, ``2.5 h``, ``3 days``: a time that is only expected."""
    for size, unit, most in ((1, "s", 120), (60, "min", 120), (3600, "h", 48)):
        if seconds < most * size:
            return f"{max(seconds / size, 1):.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86400:,.0f} days"


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a verdict means.

    :ivar sign: tells badges apart without their colours.
    :ivar short: one line, next to the verdict.
    :ivar long: for "How to read this", and for a reader who has met none of its words.
    """

    sign: str
    short: str
    long: str


VERDICTS: dict[Verdict, Meaning] = {
    "INVALID": Meaning(
        sign="!",
        short="The evaluation itself is broken, so no robustness number of this model counts.",
        long="A check of the evaluation failed. No robustness number of this model counts until its cause is fixed.",
    ),
    "MASKED": Meaning(
        sign="✕",
        short="The model hides its gradients: attacks that follow them fail, and another way in succeeds.",
        long="An attack finds adversarial images by following the gradient: for each pixel, the direction that makes the "
        "answer worse. The gradient of this model is zero or points the wrong way. Attacks that follow it stand still, and "
        "images survive that the model gets wrong. A control experiment took away what hides the gradient and nothing "
        "else, and these images broke. So they survived because the attack was blind, and not because the model is robust.",
    ),
    "SUSPECT": Meaning(
        sign="?",
        short="There are signs of hidden gradients. It is not proven that they explain a gap.",
        long="Something hides the gradient, and no control experiment could settle whether images survive because of it. Or "
        "an attack breaks images without the gradient, and nothing explains why the gradient missed them. Treat the number "
        "as doubtful.",
    ),
    "NOT_REFUTED": Meaning(
        sign="○",
        short="No check that was run shows hidden gradients. That is not a proof of robustness.",
        long="The checks were run, and none of them shows hidden gradients, or a control experiment settled what they "
        "found. The number stays an upper bound. A better attack may still lower it.",
    ),
    "INCONCLUSIVE": Meaning(
        sign="…",
        short="Too little was run to say: too few images, or checks that were skipped or failed.",
        long="There were too few images, there was no claim to test, or checks were skipped or failed. This is neither a "
        "pass nor a failure.",
    ),
}

CLAIMS = {"HOLDS": "holds so far", "OVERSTATED": "overstated", "NONE": "none made"}

CLAIM_BADGES = {"HOLDS": "○ HOLDS", "OVERSTATED": "✕ OVERSTATED", "NONE": "NO CLAIM"}

CLASSES = {"P": "control experiment", "M": "mechanism", "S": "symptom", "V": "validity"}

#: A check on which no verdict depends.
NOTE = "note"

#: Symptoms of this group are about the claimed attack. They say nothing about the model.
ABOUT_THE_ATTACK = "claimed attack"

#: The classes of checks, in the order in which they are shown.
CHECK_CLASSES = ("control experiment", "mechanism", "symptom", ABOUT_THE_ATTACK, "validity", NOTE)

#: A check that was not run did not pass, and one that does not apply had nothing to test. Each has its own name.
OUTCOMES: dict[Answer, str] = {
    "fired": "found",
    "silent": "not found",
    "does not apply": "does not apply",
    "not run": "not run",
}
SIGNS: dict[Answer, str] = {"fired": "✕", "silent": "✓", "does not apply": "·", "not run": "–"}

#: The ends of a mechanism, as in the table of the diagnosis.
ENDS: dict[End, str] = {
    "proved": "with the mechanism taken away, the same images break",
    "apart": "a control experiment broke other images, so it explains nothing",
    "settled": "a control experiment that could have found something found nothing",
    "open": "no control experiment could have found anything",
}


def check_class(finding: Finding) -> str:
    """The class of a check, one of ``CHECK_CLASSES``."""
    if finding.class_ == "S" and finding.group == ABOUT_THE_ATTACK:
        return ABOUT_THE_ATTACK
    return CLASSES[finding.class_] if finding.decides else NOTE


def class_of(finding: Finding) -> str:
    """The same in full, for a table without headings by class."""
    about = check_class(finding)
    if about == ABOUT_THE_ATTACK:
        return "symptom of the claimed attack, not of the model"
    return "note, on which the verdict does not depend" if about == NOTE else about


def verdict(name: Verdict) -> str:
    """``NOT REFUTED``."""
    return name.replace("_", " ")


def claim(record: Claim) -> str:
    """``claimed 83 %, really at most 4 % [2, 7]``."""
    if record.status == "NONE" or record.accuracy is None:
        return "no claim was made"
    really = "really at most" if record.status == "OVERSTATED" else "after every attack at most"
    if record.corrected is None:
        return f"claimed {percent(record.accuracy)}"
    return f"claimed {percent(record.accuracy)}, {really} {accuracy(record.corrected, record.interval)}"


def overstated(record: Claim) -> str:
    """``overstated by 90 points [85, 94]``. It is empty where the difference is not known."""
    if record.status == "NONE" or record.overstated_by is None:
        return ""
    word = "overstated by" if record.status == "OVERSTATED" else "claimed is higher by"
    return f"{word} {points(record.overstated_by)} {interval(record.overstated_interval)}".rstrip()


def layer(record: Layer | None) -> str:
    """``Mul in net.3, on 97 % of the images``."""
    return "" if record is None else f"{record.op} in {record.layer}, on {percent(record.share)} of the images"


def measurement(finding: Finding) -> str:
    """The measured value, and its p-value where there is one."""
    value = NONE if finding.value is None else f"{finding.value:.3g}"
    return (
        value if finding.p_value is None else f"{value} (p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{finding.p_value:.2g})"
    )


def ordered(findings: list[Finding]) -> list[Finding]:
    """Sort by outcome. Each group is sorted by class, notes last."""
    outcome = list(OUTCOMES)
    return sorted(findings, key=lambda f: (outcome.index(f.answer), CHECK_CLASSES.index(check_class(f))))


def reasons(model: ModelResult) -> list[tuple[str, str, str]]:
    """For each mechanism that was found: what hides the gradient, what its control experiment showed, how that ended."""
    findings = {finding.id: finding for finding in model.findings}
    told: list[tuple[str, str, str]] = []
    for mechanism in model.mechanisms:
        found, control = findings.get(mechanism.id), findings.get(mechanism.control or "")
        if found is None:
            continue
        tried = ", ".join(mechanism.controls) or "none"
        shown = f"None of its control experiments decided it: {tried}." if control is None else control.evidence
        what = f"{found.title}." if found is control else f"{found.title}. {found.evidence}"
        if any(shown == before for _, before, _ in told):
            shown = f"By the same control experiment, {mechanism.control}."
        told.append((what, shown, f"{mechanism.end}: {ENDS[mechanism.end]}"))
    return told


def remedies(model: ModelResult) -> list[str]:
    """What to do about the mechanisms that were proved, each once."""
    proved = {mechanism.id for mechanism in model.mechanisms if mechanism.end == "proved"}
    return list(dict.fromkeys(finding.mitigation for finding in model.findings if finding.id in proved))


def headline(results: Results) -> str:
    """The answer in one sentence."""
    models = results.models
    if not models:
        return "This run holds no finished model yet."
    overstated = [model for model in models if model.claim.status == "OVERSTATED"]
    masked = [model for model in overstated if model.verdict == "MASKED"]
    if masked:
        return _wrong(
            masked, len(models), "shows robustness that is an illusion", "show robustness that is an illusion"
        )
    if overstated:
        return _wrong(overstated, len(models), "is less robust than claimed", "are less robust than claimed")
    return _doubtful(models) or _unrefuted(models)


def _wrong(wrong: list[ModelResult], of: int, what: str, plural: str) -> str:
    """The first two models with their numbers, and how many more there are."""
    named = [
        model.name if model.claim.accuracy is None else f"{model.name} {claim(model.claim)}" for model in wrong[:2]
    ]
    who = "; ".join([*named, f"and {len(wrong) - 2} more"] if len(wrong) > 2 else named)
    return f"{_share(len(wrong), of)} {what if len(wrong) == 1 else plural}: {who}."


def _doubtful(models: list[ModelResult]) -> str:
    rest = {
        "INVALID": ("could not be evaluated", "could not be evaluated"),
        "MASKED": ("hides its gradients, and its number is not too high", "hide their gradients"),
        "SUSPECT": ("shows signs of hidden gradients", "show signs of hidden gradients"),
    }
    for name, (what, plural) in rest.items():
        found = [model.name for model in models if model.verdict == name]
        if found:
            return f"{_share(len(found), len(models))} {what if len(found) == 1 else plural}: {', '.join(found)}."
    return ""


def _unrefuted(models: list[ModelResult]) -> str:
    unclear = sum(model.verdict == "INCONCLUSIVE" for model in models)
    if unclear == len(models):
        return "Too little was run to tell whether these numbers can be trusted."
    if unclear:
        return (
            f"No sign of hidden gradients was found, but too little was run to judge {unclear} of {len(models)} models."
        )
    return "No sign of hidden gradients was found. Each number is an upper bound under the attacks that were run."


def _share(part: int, whole: int) -> str:
    if whole == 1:
        return "The model"
    return f"One of {whole} models" if part == 1 else f"{part} of {whole} models"


def troubles(results: Results) -> list[str]:
    """What a reader must know before any number: what is unfinished, what failed, what is surely a mistake."""
    failed = [cell for cell in results.cells if cell.status == "error"]
    notes = []
    # A finished run with a failed cell also has the status "error". It has models.
    if results.status in ("started", "cancelled") or (results.status == "error" and not (results.models and failed)):
        notes.append(f"The run is not complete (status: {results.status}). This report shows the records so far.")
    if failed:
        which = "; ".join(f"{_where(cell)}: {cell.error_line}" for cell in failed[:_NAMED])
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        notes.append(f"{len(failed)} of {len(results.cells)} cells failed and count in no number: {which}{more}.")
    return notes + [f"{warning}." for warning in results.warnings]


def suites(results: Results) -> list[str]:
    """What the suites of the recipe leave out or do otherwise than their papers, in sentences."""
    notes = results.spec.get("resolved", {}).get("suite_notes", [])
    return [f"{note[:1].upper()}{note[1:]}." for note in notes]


#: Number of failed cells that are named before all numbers. The table of cells has all of them.
_NAMED = 3


def _where(cell: Cell) -> str:
    at = "" if cell.role in ("clean", "corruption") else f" at {threat(cell.norm, cell.eps)}"
    return f"{cell.model}, {cell.label}{at}"


def clean(model: ModelResult) -> str:
    """Clean accuracy and the share of rejected images, or a dash where the clean images could not be scored."""
    if not model.n:
        return NONE
    rejected = "" if model.clean_rejected is None else f", {percent(model.clean_rejected)} rejected"
    return accuracy(model.clean_accuracy, model.clean_interval) + rejected


def audits(model: ModelResult) -> list[str]:
    """What each audit by full AutoAttack found, or why there was none."""
    return [f"{threat(audit.norm, audit.eps)}: {audit}." for audit in model.audits]


def counted(model: ModelResult) -> str:
    """``n = 200``."""
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{model.n}"
