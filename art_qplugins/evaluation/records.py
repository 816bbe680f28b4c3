"""The records of a run: what ``results.json`` and ``samples.jsonl`` hold. Schema 1.

Accuracies are fractions in [0, 1], never percent and never rounded. This module imports neither torch nor ART, so that
a report can be made where neither is installed. The models check themselves when they are read back.
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

    ``correct`` is 0 or 1 for a deterministic model. For a stochastic one it is the fraction of fresh deployments (draws
    that no attack saw) that answer with the label; ``selection`` is the same on a second, independent set of draws, and
    is what worst cases are chosen by, so that ``correct`` stays unbiased.
    """

    cell: str
    sample: str  # stable id of the image in its data set
    label: int
    prediction: int  # the deployed model's answer (the most frequent one, if stochastic)
    correct: float
    selection: float
    distance: float  # from the clean image, in the cell's norm
    margin: float | None  # z_y - max_{j != y} z_j of the target's logits, negative where wrong; None where not finite
    loss: float | None  # cross-entropy in float32, as an attack sees it; None where not finite
    # What else was measured of this image: in clean cells what evaluation/measure.py lists, in white-box cells the
    # attack's path. None where it is not finite.
    measures: dict[str, float | None] = {}


class Cell(Record):
    """One attack at one budget on one model, crafted on ``source`` and scored on ``model``."""

    id: str
    model: str
    source: str
    attack: str
    knowledge: Literal["white-box", "black-box"] = "white-box"
    role: Role  # "probe": added by the diagnostics, not asked for by the recipe
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
    crafted_in: str | None = None  # id of the cell of this run that the images were crafted for, at its cost
    grid: int | None = None  # levels that pixels were rounded to for these two; per image: measures["grid_correct"]
    grid_accuracy: float | None = None
    grid_interval: Interval | None = None
    rows: list[int] | None = None  # positions of the images that were attacked, where not all; n counts these
    of: int | None = None  # images in all, where rows is given
    facts: dict[str, Any] = {}  # what was found of the model as a whole; clean cells only

    @property
    def error_line(self) -> str:
        """What went wrong: the last line of the traceback."""
        lines = (self.error or "").strip().splitlines()
        return lines[-1] if lines else "no message was recorded"

    @property
    def label(self) -> str:
        """The attack's id, with what sets this cell apart from its plain form."""
        temperature = self.params.get("temperature")
        return self.attack + (f", logits / {temperature:.3g}" if temperature is not None else "")


class Finding(Record):
    """What one indicator saw. Class: P proof, M mechanism, S symptom, V validity."""

    id: str
    title: str
    class_: FindingClass = Field(alias="class")
    fired: bool | None  # None: the check did not run; evidence says why
    value: float | None
    threshold: float
    evidence: str  # a sentence with the numbers in it
    mitigation: str
    p_value: float | None = None  # symptoms: before Holm's correction, of "no more than the material share"
    group: str | None = None  # symptoms that go together count once
    shows_not: str = ""  # what it does not prove
    source: str = ""


class Claim(Record):
    """The number under test, and what the strongest attack that was run leaves of it."""

    status: Literal["HOLDS", "OVERSTATED", "NONE"]
    attack: str | None = None  # attack id of the claim
    cell: str | None = None  # id of its cell
    overstated_by: float | None = None  # claimed minus corrected, paired where both were measured
    overstated_interval: Interval | None = None
    norm: str | None = None
    eps: float | None = None
    accuracy: float | None = None  # as claimed
    corrected: float | None = None  # worst case over everything that was run at this budget
    interval: Interval | None = None  # of the corrected accuracy


class Robust(Record):
    """Mean over images of the worst case over attacks, at one budget: an upper bound under the attacks run."""

    norm: str
    eps: float
    accuracy: float
    interval: Interval
    attacks: list[str]  # ids of the cells that count here (all with the same norm and at most this eps)


class Step(Record):
    """One step of the diagnosis: what was tried, what it cost, or why it was not."""

    id: str
    level: int  # 0 to 3: the rung of the ladder
    title: str
    status: Literal["run", "skipped", "failed"]
    reason: str = ""  # why it was skipped
    cells: list[str] = []
    robust: int | None = None  # images that no attack had broken before it
    forward: float = 0.0  # passes per image of the whole set
    backward: float = 0.0  # gradient evaluations per image of the whole set


class Layer(Record):
    """The operation at which the gradient is lost."""

    layer: str
    op: str
    share: float  # of the images whose gradient ends there


class Spent(Record):
    """What the cells of a model took, per image of the whole set, in passes through the network."""

    gradients: float  # backward passes
    queries: float  # forward passes, those of gradients included


class ModelResult(Record):
    name: str
    description: str
    stochastic: bool
    clean_accuracy: float
    clean_interval: Interval
    n: int
    robust: list[Robust]
    verdict: Verdict
    summary: str  # the verdict in a few plain sentences
    claim: Claim
    findings: list[Finding]
    steps: list[Step] = []
    layer: Layer | None = None
    spent: Spent | None = None  # on everything, the diagnosis included
    warnings: list[str] = []  # what is wrong with how it was trained
    evidence: str | None = None  # file in the run's folder that holds the images that prove it


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
    models: list[ModelResult]
    cells: list[Cell]
