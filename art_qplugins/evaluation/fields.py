"""The types of the fields of records.

Records are validated when they are made and when they are read: every number is finite and in its range.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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


def holds(interval: Interval, value: float) -> bool:
    """Whether the interval holds the number, up to rounding."""
    return interval[0] - 1e-9 <= value <= interval[1] + 1e-9


Norm = Literal["Linf", "L2", "L1", "L0"]
Metric = Literal["clean_accuracy", "robust_accuracy"]
Verdict = Literal["INVALID", "MASKED", "SUSPECT", "NOT_REFUTED", "INCONCLUSIVE"]
FindingClass = Literal["P", "M", "S", "V"]
Answer = Literal["fired", "silent", "does not apply", "not run"]
End = Literal["proved", "settled", "open", "apart"]
Role = Literal["clean", "attack", "probe", "corruption"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)
