"""The records of a run: the content of ``results.json`` and ``samples.jsonl``. Schema 1.

Accuracies are fractions in [0, 1], never percent and never rounded. This module imports neither torch nor ART, so that
a report can be made where neither is installed. The types of fields are in ``fields.py``, what is measured of networks beside
their cells is in ``network_records.py``. The ranges of samples, and whether they agree with their cell, are in ``outcome.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Required, TypedDict

from art_qplugins.evaluation.fields import (
    Answer,
    Count,
    End,
    FindingClass,
    Interval,
    Metric,
    Norm,
    Record,
    Role,
    Share,
    Signed,
    SignedInterval,
    Size,
    Verdict,
    holds,
)
from art_qplugins.evaluation.network_records import Curve, Deployment, Information, Sensitivity

SCHEMA_VERSION: Literal[1] = 1

#: Among the params of a cell: what the attack saw was divided or multiplied by.
_SCALES = ("temperature", "gradient_scale")


class Tries(Record):
    """What is left where each image is tried several times: the share of images that are right every time.

    Each try is one prediction with fresh noise. ``counted`` is ``tries``, or the number of scoring draws where that is
    smaller. Then the number is that after ``counted`` tries, an upper bound; see :func:`~art_qplugins.metrics.after_tries`.
    The interval counts images, not draws: it covers the sampling of both, because the draws of an image are its own.
    """

    tries: Count
    counted: Count
    accuracy: Share
    interval: Interval


class Sample(Record):
    """One image in one cell; a row of ``samples.jsonl``.

    ``correct`` is 0 or 1 for a deterministic model. A model with a rejection class is correct where it gives the label or
    rejects; ``measures["rejected"]`` tells the two apart. For a stochastic model it is the fraction of fresh deployments
    (draws that no attack saw) that predict the label. ``selection`` is the same on a second, independent set of draws.
    Worst cases are chosen by ``selection``, so that ``correct`` stays unbiased.
    """

    cell: str
    sample: str  # stable id of the image in its data set
    label: Count
    prediction: Count  # class predicted by the deployed model (the most frequent one, if stochastic)
    correct: float
    selection: float
    distance: float  # from the clean image, in the cell's norm
    margin: float | None  # z_y - max_{j != y} z_j of the target's logits, negative where wrong; None where not finite
    loss: float | None  # cross-entropy in float32, as an attack sees it; None where not finite
    # Further measurements of this image, None where not finite. "confidence": the probability that the model gives its
    # prediction. "draws": the number of predictions of which ``correct`` is a share, of a random model. "alone": whether it is
    # correct in a batch of its own, where answers depend on the batch. "agrees": whether the twin of a deployed model gives it the
    # same label. Clean cells have those of gradients/measure.py,
    # white-box cells those of the attack's path.
    measures: dict[str, float | None] = {}


class Cell(Record):
    """One attack at one norm and eps, crafted on ``source`` and scored on ``model``."""

    id: str
    model: str
    source: str
    attack: str
    knowledge: Literal["white-box", "black-box"] = "white-box"
    # "probe": added by the diagnosis, not planned by the recipe. "corruption": no eps limits it; norm and eps then allow every
    # image, and the cell counts in no worst case.
    role: Role
    params: dict[str, Any]
    norm: Norm
    eps: Size
    seed: Count
    n: Count
    accuracy: Share | None  # the mean of correct; None where the cell failed
    interval: Interval | None
    reference: Share | None = None  # the accuracy that a paper gives for it
    rejected: Share | None = None  # share of images that the model rejects; None where it has no rejection class
    tries: list[Tries] = []  # of a random model; none in records of earlier versions
    forward_samples: Count
    backward_samples: Count
    seconds: Size
    status: Literal["success", "error", "skipped"]  # skipped: not run, for the reason in notes; it has no samples
    error: str | None = None
    notes: list[str] = []  # warnings that the attack's library gave, or why the cell was skipped
    visited: bool | None = None  # whether the attack asked its source for any point that is no clean image
    undefined: Count = 0  # points with NaN or infinity that it asked for, and gradients with them that it got
    # How much the answers to a few clean images differed after the attack, relative to the largest logit; 1 where they are
    # other answers altogether, None where that was not asked or the model is random.
    drift: Share | None = None
    raised: bool = False  # whether the model has no answer for a legal image: it raises, or gives NaN
    crafted_in: str | None = None  # id of the cell of this run that the images were crafted for, at its cost
    grid: Count | None = None  # pixel levels for the next two fields; per image: measures["grid_correct"]
    grid_accuracy: Share | None = None
    grid_interval: Interval | None = None
    rows: list[Count] | None = None  # positions of the images that were attacked, where not all; n counts these
    of: Count | None = None  # images in all, where rows is given
    limit: Count | None = None  # the recipe attacks only the first so many of a fixed order; rows are of these
    facts: dict[str, Any] = {}  # facts of the model as a whole; clean cells only

    @property
    def error_line(self) -> str:
        """The last line of the traceback, without the path of an error of this package."""
        lines = (self.error or "").strip().splitlines()
        kind, colon, said = (lines[-1] if lines else "no message was recorded").partition(": ")
        return f"{kind.rpartition('.')[2] if kind.startswith('art_qplugins.') else kind}{colon}{said}"

    @property
    def label(self) -> str:
        """The id of the attack, with the settings that differ from its plain form."""
        temperature, scale = (self.params.get(name) for name in _SCALES)
        logits = f", logits / {temperature:.3g}" if isinstance(temperature, (int, float)) else ""
        if self.role == "corruption" and isinstance(std := self.params.get("std"), (int, float)):
            return f"{self.attack}, std {std:.3g}"
        return self.attack + logits + (f", gradient * {scale:.3g}" if isinstance(scale, (int, float)) else "")

    @property
    def beyond_reference(self) -> float | None:
        """How much higher its accuracy is than that of the paper; ``None`` where one of them is not known."""
        return None if self.reference is None or self.accuracy is None else self.accuracy - self.reference

    @property
    def holds_reference(self) -> bool:
        """Whether its interval holds the accuracy of the paper."""
        return self.interval is not None and self.reference is not None and holds(self.interval, self.reference)

    @property
    def rescaled(self) -> bool:
        """Whether the attack saw other logits or gradients of the same network, times a constant."""
        return any(name in self.params for name in _SCALES)


class Finding(Record):
    """The result of one indicator. Classes: P control experiment, M mechanism, S symptom, V validity."""

    id: str
    title: str
    class_: FindingClass = Field(alias="class")
    fired: bool | None  # None: the check did not run; evidence says why
    answer: Answer = "silent"  # the same, and whether there was anything to test; old records say only whether it fired
    settles: bool = True  # silent: whether it could have found something
    decides: bool = True  # whether the verdict depends on it; otherwise it is a note
    value: float | None
    threshold: float
    evidence: str  # a sentence with the numbers in it
    mitigation: str
    p_value: Share | None = None  # symptoms: before Holm's correction, of "no more than the material share"
    group: str | None = None  # symptoms of the group "claimed attack" say nothing about the model
    shows_not: str = ""  # what it does not prove
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _answered(cls, given: Any) -> Any:
        """Records of earlier versions have no answer."""
        if isinstance(given, dict) and "answer" not in given and "fired" in given:
            fired = given["fired"]
            return {**given, "answer": "not run" if fired is None else "fired" if fired else "silent"}
        return given


class Mechanism(Record):
    """A mechanism that was found, and how its control experiments ended."""

    id: str  # of its finding
    end: End  # as in diagnostics/rules.py
    control: str | None = None  # the finding of the control experiment that decided it
    controls: list[str] = []  # all its control experiments


class Claim(Record):
    """The number under test, and the worst case over the attacks that were run."""

    status: Literal["HOLDS", "OVERSTATED", "NONE"]
    attack: str | None = None  # attack id of the claim
    cell: str | None = None  # id of its cell
    overstated_by: Signed | None = None  # claimed minus corrected, paired where both were measured
    overstated_interval: SignedInterval | None = None
    norm: Norm | None = None
    eps: Size | None = None
    accuracy: Share | None = None  # as claimed
    corrected: Share | None = None  # worst case over all attacks that were run at this norm and eps
    interval: Interval | None = None  # of the corrected accuracy


class Robust(Record):
    """Mean over images of the worst case over attacks, at one norm and eps: an upper bound under the attacks run."""

    norm: Norm
    eps: Size
    accuracy: Share
    interval: Interval
    attacks: list[str]  # ids of the cells that count here (all with the same norm and at most this eps)
    tries: list[Tries] = []  # of a random model, at the strongest attack on each image


class Audit(Record):
    """What full AutoAttack did to a sample of the images that still stood, drawn without replacement.

    Of S standing images AutoAttack would break D, and it breaks k of the m that are drawn, so k is hypergeometric. The lower
    end of the interval holds in 95 % of samples, the upper one always.
    """

    norm: Norm
    eps: Size
    standing: Count  # images that stood before it
    asked: Count  # images that were drawn; 0 where there is a reason
    broke: Count = 0  # of those
    n: Count  # images in all
    estimate: Share  # robust accuracy that AutoAttack would leave, on average over samples
    interval: Interval  # of that accuracy
    gradients: Size = 0.0  # backward passes per image of the sample
    cell: str | None = None  # id of its cell; its seed drew the sample, and its rows are the sample
    reason: str = ""  # why it was not run

    def __str__(self) -> str:
        if self.reason:
            return f"no audit: {self.reason}"
        low, high = (100 * end for end in self.interval)
        return (
            f"AutoAttack on {self.asked} of {self.standing} standing images broke {self.broke}: it would leave "
            f"{100 * self.estimate:.1f} % [{low:.1f}, {high:.1f}]"
        )


class Step(Record):
    """One step of the diagnosis: the attack, its cost, or the reason why it was skipped."""

    id: str
    level: Annotated[int, Field(ge=0, le=3)]  # 0 to 3: the level of the diagnosis
    title: str
    status: Literal["run", "skipped", "failed"]
    reason: str = ""  # why it was skipped
    cells: list[str] = []
    robust: Count | None = None  # images that its baseline had not broken
    forward: Size = 0.0  # passes per image of the whole set
    backward: Size = 0.0  # gradient evaluations per image of the whole set


class Layer(Record):
    """The operation at which the gradient is lost."""

    layer: str
    op: str
    share: Share  # of the images whose gradient ends there


class Spent(Record):
    """The cost of all cells of a model, in passes through the network per image of the whole set."""

    gradients: Size  # backward passes
    queries: Size  # forward passes, including those of gradients


class ModelResult(Record):
    name: str
    description: str
    stochastic: bool
    clean_accuracy: Share  # a clean image that is rejected does not count
    clean_interval: Interval
    clean_rejected: Share | None = None  # share of clean images that are rejected; None without a rejection class
    clean_tries: list[Tries] = []  # of a random model: noise alone makes clean images fail that are tried often
    n: Count
    robust: list[Robust]
    verdict: Verdict
    summary: str  # the verdict in a few sentences
    claim: Claim
    findings: list[Finding]
    mechanisms: list[Mechanism] = []  # those that were found; none in records of earlier versions
    steps: list[Step] = []
    layer: Layer | None = None
    spent: Spent | None = None  # on all cells, including the diagnosis, without the audits
    audits: list[Audit] = []  # by eps, if the recipe asks for them
    evidence: str | None = None  # file in the run's folder with the adversarial images that prove it


class Git(TypedDict):
    commit: str
    dirty: bool


class Environment(Record):
    packages: dict[str, str]
    python: str
    platform: str
    device: str
    git: Git | None  # None outside a repository


class GivenModel(TypedDict, total=False):
    """What is read of a model's settings. There are more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: Required[str]
    replicate_of: str | None
    quantize: dict[str, Any] | None
    train: dict[str, Any] | None
    checkpoint: str | None


class Resolved(TypedDict, total=False):
    """What is read of a recipe with every default filled in. There is more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    models: list[GivenModel | str]  # a name alone says nothing about a model
    suite_notes: list[str]


class Spec(TypedDict, total=False):
    """The settings of a run."""

    given: Any  # the recipe as written
    resolved: Resolved


class Data(TypedDict, total=False):
    """The images of a run."""

    name: str
    split: str
    n: Count  # images in this run
    of: Count  # images in the split
    sha256: str
    source: str  # what they were read from, for a name that has several sources
    classes: list[str] | Count  # names, or how many
    shape: list[Count]  # (C, H, W)


class Pooled(Record):
    """An accuracy over the trainings of one model and its images, see :func:`~art_qplugins.metrics.pooled_accuracy`."""

    accuracy: Share
    interval: Interval
    images: Count  # the same for every training
    trainings: Count


class PooledCell(Record):
    """One cell over all trainings of its model: what is measured, what is left, and what a paper says."""

    model: str  # its name, without a seed
    trainings: Count
    cell: str  # id of the cell of the first training
    paper: Share | None
    measured: Pooled | None
    # The worst case at that norm and eps, over images that every attack was given; None of clean images.
    left: Pooled | None
    audited: Share | None = None  # what full AutoAttack would leave, by the audits of all trainings; None without one
    verdicts: list[tuple[Verdict, Count]]  # of the trainings, the most frequent first

    @property
    def beyond(self) -> float | None:
        """How much more is measured than the paper has."""
        return None if self.measured is None or self.paper is None else self.measured.accuracy - self.paper

    @property
    def reproduced(self) -> bool | None:
        """Whether the interval of the measured number holds the paper's."""
        if self.measured is None or self.paper is None:
            return None
        return holds(self.measured.interval, self.paper)

    @property
    def overstated(self) -> float | None:
        """By how much the measured number is above what is left, where their intervals are apart."""
        if self.measured is None or self.left is None or self.left.interval[1] >= self.measured.interval[0]:
            return None
        return self.measured.accuracy - self.left.accuracy


class Difference(Record):
    """The difference of one number between two models, or between two runs of a model, on the same images.

    :ivar norm: ``norm`` and ``eps`` of a robust accuracy; ``None`` for a clean accuracy.
    :ivar n: number of images. ``replicates`` are those of the first and of the second.
    :ivar difference: second minus first. It is negative if the second is worse. ``interval`` is its 95 % interval.
    :ivar p_holm: the p value after Holm's correction over all rows of the table.
    :ivar invalid: whether it is a robust accuracy, and the verdict on a training of either is INVALID. A constant model
        cannot be attacked, and is not better for that.
    """

    first: str
    second: str
    metric: Metric
    norm: Norm | None
    eps: Size | None
    n: Count
    replicates: tuple[Count, Count]
    first_accuracy: Share
    second_accuracy: Share
    difference: Signed
    interval: SignedInterval
    p_value: Share
    p_holm: Share = 1.0
    invalid: bool = False

    @property
    def significant(self) -> bool:
        """At 5 % over all rows of the table."""
        return self.p_holm < 0.05 and not self.invalid


class Results(Record):
    """The whole of ``results.json``."""

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["started", "success", "cancelled", "error"]
    created: str  # ISO 8601, UTC
    spec: Spec
    data: Data
    environment: Environment
    warnings: list[str] = []  # what is legal and surely a mistake, without full stops
    training: dict[str, Curve] = {}  # by model, where it was trained by a recipe
    sensitivity: dict[str, Sensitivity] = {}  # by model, if the recipe asks for it
    information: dict[str, Information] = {}  # by stochastic model, if the recipe asks for it
    deployment: dict[str, Deployment] = {}  # by model that is a file
    pooled: list[PooledCell] = []  # clean images, the claimed attacks, and what a paper gives a number for
    differences: list[Difference] = []  # of models from their baselines
    models: list[ModelResult]
    cells: list[Cell]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Those of each model, as the recipe resolved them."""
        models = self.spec.get("resolved", {}).get("models", [])
        return [dict(model) for model in models if isinstance(model, dict)]
