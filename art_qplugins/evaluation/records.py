"""The records of a run: the content of ``results.json`` and ``samples.jsonl``. Schema 1.

Accuracies are fractions in [0, 1], never percent and never rounded. This module imports neither torch nor ART, so that
a report can be made where neither is installed. Records are validated when they are made and when they are read: every
number is finite and in its range. The ranges of samples, and whether they agree with their cell, are in ``outcome.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Required, TypedDict

SCHEMA_VERSION: Literal[1] = 1


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] <= interval[1]:
        raise ValueError(f"its lower end {interval[0]:g} is above its upper end {interval[1]:g}")
    return interval


Share = Annotated[float, Field(ge=0, le=1)]  # of images or of draws; an accuracy
Signed = Annotated[float, Field(ge=-1, le=1)]  # the difference of two shares
Size = Annotated[float, Field(ge=0, le=1e30)]  # eps, a distance, seconds, a cost
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Interval = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
SignedInterval = Annotated[tuple[Signed, Signed], AfterValidator(_ordered)]


def _holds(interval: Interval, value: float) -> bool:
    """Whether the interval holds the number, up to rounding."""
    return interval[0] - 1e-9 <= value <= interval[1] + 1e-9


Norm = Literal["Linf", "L2", "L1", "L0"]
Metric = Literal["clean_accuracy", "robust_accuracy"]
Verdict = Literal["INVALID", "MASKED", "SUSPECT", "NOT_REFUTED", "INCONCLUSIVE"]
FindingClass = Literal["P", "M", "S", "V"]
Answer = Literal["fired", "silent", "does not apply", "not run"]
End = Literal["proved", "settled", "open", "apart"]
Role = Literal["clean", "attack", "probe", "corruption"]
_SCALES = (
    "temperature",
    "gradient_scale",
)  # among the params of a cell: what the attack saw was divided or multiplied by


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


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
        return self.interval is not None and self.reference is not None and _holds(self.interval, self.reference)

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


class ClassMargin(Record):
    """The mean margin of a class along random directions, in L2; None where no margin was found."""

    level: Literal["high", "medium", "low"]
    mean: Size | None


class FeedbackRound(Record):
    """What a round of feedback learning measured as it began."""

    epochs: Annotated[int, Field(ge=0)]  # that were done
    mean: Size | None  # of the classes
    classes: list[ClassMargin]


class Measured(Record):
    """What defences have measured so far. Those of other packages may add their own."""

    model_config = ConfigDict(extra="allow")

    feedback_learning: list[FeedbackRound] = []


class TrainedEpoch(Record):
    """One epoch of a model's training. Accuracies are of the validation images; None where they were not measured."""

    epoch: Count  # from 1
    loss: Annotated[float, Field(ge=-1e30, le=1e30)]  # the mean with all terms
    learning_rate: Size
    validation_accuracy: Share | None = None
    robust_validation_accuracy: Share | None = None
    images_per_second: Size
    measured: Measured = Measured()


def _consecutive(curve: list[TrainedEpoch]) -> list[TrainedEpoch]:
    for place, told in enumerate(curve, 1):
        if told.epoch != place:
            raise ValueError(f"epoch {told.epoch} is in the place of epoch {place}")
    return curve


Curve = Annotated[list[TrainedEpoch], AfterValidator(_consecutive)]  # every epoch of a training, in its order


class Norms(Record):
    """By how much a layer can lengthen a change of its input, as :class:`~art_qplugins.sensitivity.norms.LayerNorm` says."""

    layer: str
    matrix: Size | None
    operator: Size
    gain: Size | None
    scaled: Size | None


class Distances(Record):
    """How far the images of a cell move what each layer reads (:func:`~art_qplugins.activation_distances`).

    ``layers`` has for each layer, in the order of the forward pass, the mean over images and its standard error. Images
    whose clean activations are all zero are left out; ``n`` counts the others in the worst layer.
    """

    cell: str
    n: Count
    layers: dict[str, tuple[Size, Size]]


class WeightChange(Record):
    """How far the weight of a layer is from the base's, as :class:`~art_qplugins.LayerChange` says."""

    layer: str
    matrix: Size
    operator: Size
    weight: Size


class Terms(Record):
    """The means over images of :class:`~art_qplugins.OutputTerms`, by layer in the order of the forward pass."""

    cell: str
    n: Count
    images: dict[str, Size]
    weights: dict[str, Size]
    both: dict[str, Size]
    total: dict[str, Size]
    error: Size  # the largest of all images and layers


class Logits(Record):
    """The logits of clean images: what an attack on cross-entropy starts from.

    :ivar margins: quantiles at 5, 25, 50, 75 and 95 % of the true class's logit less the largest other one.
    :ivar no_gradient: share of the images that are classified right whose gradient of cross-entropy is exactly zero; ``None``
        where none is.
    """

    n: Count
    margins: tuple[float, float, float, float, float]
    no_gradient: Share | None


class Sensitivity(Record):
    """How far a model carries a change of its input, and how far a change of weights after training carries it."""

    norms: list[Norms]  # in the order of the forward pass
    distances: list[Distances]
    logits: Logits | None = None
    base: str | None = None  # whose weights it has in another form
    gain: float | None = None  # of its logits over the base's, see LogitGain
    alignment: Annotated[float, Field(ge=-1.000001, le=1.000001)] | None = None
    changes: list[WeightChange] = []
    terms: list[Terms] = []
    # The reason of each measurement that failed: "norms", "logits", "gain", "changes", the id of a cell, or "terms of" such an id.
    skipped: dict[str, str] = {}


class ChangedInformation(Record):
    """What codes tell of images after a change, beside what they tell of the same images before, as :class:`~art_qplugins.sensitivity.Codes`.

    The score of an image is how far its information is from the mean over clean images.

    :ivar cell: id of the cell whose images they are; ``None`` of random noise of length ``eps``.
    :ivar information: between images and codes, and ``clean_information`` of the same images before.
    :ivar accuracy: of these images, and ``clean_accuracy`` of the same before.
    :ivar auroc: how well scores tell changed images from clean ones; 0.5 is chance. Its ``interval`` covers the images.
    :ivar detected: the share of changed images whose scores all but 5 % of the clean images are below.
    :ivar roc: that share where 0, 1, ..., 100 % of the clean images may be above.
    """

    cell: str | None = None
    norm: Norm
    eps: Size
    n: Count
    information: Share
    clean_information: Share
    accuracy: Share
    clean_accuracy: Share
    auroc: Share
    interval: Interval
    detected: Share
    roc: Annotated[list[Share], Field(min_length=101, max_length=101)]

    @property
    def gained(self) -> float:
        """The change of information, negative where codes tell less."""
        return self.information - self.clean_information

    @property
    def lost(self) -> float:
        """The change of accuracy, negative where fewer images are classified right."""
        return self.accuracy - self.clean_accuracy


class Information(Record):
    """What the codes of a model's deepest stochastic quantizer tell of clean images, attacked ones and noisy ones."""

    n: Count  # the first so many images; of a cell with a limit, its own first
    draws: Count  # of the earlier layers, over which everything is a mean
    information: Share | None  # between the clean images and their codes; None where it could not be measured
    accuracy: Share
    attacked: list[ChangedInformation]
    noisy: list[ChangedInformation]  # the control: noise of the same norm and eps
    # The reason of each measurement that failed: "clean", the id of a cell, or a norm with eps.
    skipped: dict[str, str] = {}


class Flips(Record):
    """A quantized activation of a file beside the same of its twin: the share of values on another level, and by how many."""

    layer: str
    flips: Share
    far: Count


class Agreed(Record):
    """The share of images with the same label from a file and from its twin; ``layers`` of the first batch, in their order."""

    n: Count
    same: Share
    interval: Interval
    layers: list[Flips] = []  # empty where not both can be looked into


class Speed(Record):
    """How long a file takes, as :class:`~art_qplugins.deployment.speed.Speed` says, in turn with its network in float32."""

    batch: Count
    seconds: Size  # of a call on one thread, median
    ratio: tuple[Size, Size, Size] | None = None  # of float32's time to its own: quartiles, the median between them
    energy: Size | None = None  # of float32's energy to its own; None where the machine does not tell


class Deployment(Record):
    """A model that is a file: what it costs, and where it differs from its twin."""

    of: str | None  # the model that it was exported from; None of a file that was given
    file: str  # its name
    size: Count  # in bytes
    float_size: Count | None = None  # of the same network in float32
    draws: Count = 0  # frozen members of a random network
    notes: list[str] = []  # what is not as in the network
    vnni: bool | None = None  # whether the processor multiplies bytes without saturating; None where it is not known
    speeds: list[Speed] = []
    clean: Agreed | None = None
    adversarial: Agreed | None = None  # on images of the strongest attack that saw them all
    skipped: dict[str, str] = {}  # the reason of each measurement that failed


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
        return _holds(self.measured.interval, self.paper)

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
