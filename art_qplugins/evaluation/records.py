"""The records of a run: the content of ``results.json`` and ``samples.jsonl``. Schema 1.

Accuracies are fractions in [0, 1], never percent and never rounded. This module imports neither torch nor ART, so that
a report can be made where neither is installed. Records are validated when they are read.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1

Interval = tuple[float, float]
Verdict = Literal["INVALID", "MASKED", "SUSPECT", "NOT_REFUTED", "INCONCLUSIVE"]
FindingClass = Literal["P", "M", "S", "V"]
Role = Literal["clean", "attack", "probe"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Sample(Record):
    """One image in one cell; a row of ``samples.jsonl``.

    ``correct`` is 0 or 1 for a deterministic model. For a stochastic model it is the fraction of fresh deployments
    (draws that no attack saw) that predict the label. ``selection`` is the same on a second, independent set of draws.
    Worst cases are chosen by ``selection``, so that ``correct`` stays unbiased.
    """

    cell: str
    sample: str  # stable id of the image in its data set
    label: int
    prediction: int  # class predicted by the deployed model (the most frequent one, if stochastic)
    correct: float
    selection: float
    distance: float  # from the clean image, in the cell's norm
    margin: float | None  # z_y - max_{j != y} z_j of the target's logits, negative where wrong; None where not finite
    loss: float | None  # cross-entropy in float32, as an attack sees it; None where not finite
    # Further measurements of this image: in clean cells those of gradients/measure.py, in white-box cells those of the
    # attack's path. None where it is not finite.
    measures: dict[str, float | None] = {}


class Cell(Record):
    """One attack at one norm and eps, crafted on ``source`` and scored on ``model``."""

    id: str
    model: str
    source: str
    attack: str
    knowledge: Literal["white-box", "black-box"] = "white-box"
    role: Role  # "probe": added by the diagnosis, not planned by the recipe
    params: dict[str, Any]
    norm: str
    eps: float
    seed: int
    n: int
    accuracy: float | None  # None where the cell failed
    interval: Interval | None
    forward_samples: int
    backward_samples: int
    seconds: float
    status: Literal["success", "error", "skipped"]  # skipped: not run, for the reason in notes; it has no samples
    error: str | None = None
    notes: list[str] = []  # warnings that the attack's library gave, or why the cell was skipped
    visited: bool | None = None  # whether the attack asked its source for any point that is no clean image
    undefined: int = 0  # points with NaN or infinity that it asked for, and gradients with them that it got
    crafted_in: str | None = None  # id of the cell of this run that the images were crafted for, at its cost
    grid: int | None = None  # pixel levels for the next two fields; per image: measures["grid_correct"]
    grid_accuracy: float | None = None
    grid_interval: Interval | None = None
    rows: list[int] | None = None  # positions of the images that were attacked, where not all; n counts these
    of: int | None = None  # images in all, where rows is given
    facts: dict[str, Any] = {}  # facts of the model as a whole; clean cells only

    @property
    def error_line(self) -> str:
        """The last line of the traceback."""
        lines = (self.error or "").strip().splitlines()
        return lines[-1] if lines else "no message was recorded"

    @property
    def label(self) -> str:
        """The id of the attack, with the settings that differ from its plain form."""
        temperature = self.params.get("temperature")
        return self.attack + (f", logits / {temperature:.3g}" if temperature is not None else "")


class Finding(Record):
    """The result of one indicator. Classes: P proof, M mechanism, S symptom, V validity."""

    id: str
    title: str
    class_: FindingClass = Field(alias="class")
    fired: bool | None  # None: the check did not run; evidence says why
    value: float | None
    threshold: float
    evidence: str  # a sentence with the numbers in it
    mitigation: str
    p_value: float | None = (
        None  # symptoms: before Holm's correction, for the hypothesis "no more than the material share"
    )
    group: str | None = None  # symptoms of one group count once
    shows_not: str = ""  # what it does not prove
    source: str = ""


class Claim(Record):
    """The number under test, and the worst case over the attacks that were run."""

    status: Literal["HOLDS", "OVERSTATED", "NONE"]
    attack: str | None = None  # attack id of the claim
    cell: str | None = None  # id of its cell
    overstated_by: float | None = None  # claimed minus corrected, paired where both were measured
    overstated_interval: Interval | None = None
    norm: str | None = None
    eps: float | None = None
    accuracy: float | None = None  # as claimed
    corrected: float | None = None  # worst case over all attacks that were run at this norm and eps
    interval: Interval | None = None  # of the corrected accuracy


class Robust(Record):
    """Mean over images of the worst case over attacks, at one norm and eps: an upper bound under the attacks run."""

    norm: str
    eps: float
    accuracy: float
    interval: Interval
    attacks: list[str]  # ids of the cells that count here (all with the same norm and at most this eps)


class Step(Record):
    """One step of the diagnosis: the attack, its cost, or the reason why it was skipped."""

    id: str
    level: int  # 0 to 3: the level of the diagnosis
    title: str
    status: Literal["run", "skipped", "failed"]
    reason: str = ""  # why it was skipped
    cells: list[str] = []
    robust: int | None = None  # images that its baseline had not broken
    forward: float = 0.0  # passes per image of the whole set
    backward: float = 0.0  # gradient evaluations per image of the whole set


class Layer(Record):
    """The operation at which the gradient is lost."""

    layer: str
    op: str
    share: float  # of the images whose gradient ends there


class Spent(Record):
    """The cost of all cells of a model, in passes through the network per image of the whole set."""

    gradients: float  # backward passes
    queries: float  # forward passes, including those of gradients


class ModelResult(Record):
    name: str
    description: str
    stochastic: bool
    clean_accuracy: float
    clean_interval: Interval
    n: int
    robust: list[Robust]
    verdict: Verdict
    summary: str  # the verdict in a few sentences
    claim: Claim
    findings: list[Finding]
    steps: list[Step] = []
    layer: Layer | None = None
    spent: Spent | None = None  # on all cells, including the diagnosis
    evidence: str | None = None  # file in the run's folder with the adversarial images that prove it


class Environment(Record):
    packages: dict[str, str]
    python: str
    platform: str
    device: str
    git: dict[str, Any] | None  # {"commit": ..., "dirty": ...}; None outside a repository


class Results(Record):
    """The whole of ``results.json``."""

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["started", "success", "cancelled", "error"]
    created: str  # ISO 8601, UTC
    spec: dict[str, Any]  # {"given": the recipe as written, "resolved": with every default filled in}
    data: dict[str, Any]  # {"name", "split", "n", "sha256", "classes", "shape"}
    environment: Environment
    warnings: list[str] = []  # what is legal and surely a mistake, without full stops
    models: list[ModelResult]
    cells: list[Cell]
