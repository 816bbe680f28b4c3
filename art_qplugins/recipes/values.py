"""What the values of a recipe may be, as types that pydantic checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from art_qplugins.attacks.catalogue import current_id
from art_qplugins.domains import (
    BITS,
    COUNT,
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    TEXT,
    Domain,
    Number,
    OneOf,
    Text,
    check,
    eps_number,
)
from art_qplugins.errors import shown
from art_qplugins.quantizers.registry import LAYERS
from art_qplugins.training.precisions import PRECISIONS

__all__ = [
    "Accuracy",
    "AttackId",
    "Bits",
    "Count",
    "Draws",
    "Eps",
    "Flag",
    "Layers",
    "Name",
    "Norm",
    "NotNegative",
    "Positive",
    "Precision",
    "Reference",
    "Seed",
    "Settings",
    "SomeAttacks",
    "SomeEps",
    "SomeNames",
    "Word",
    "different",
    "reference_at",
    "within",
]


def within(domain: Domain) -> BeforeValidator:
    """Only values of the domain. Text is no number here, and neither are true and false."""
    return BeforeValidator(lambda value: check("", value, domain))


def _reference(value: Any) -> Any:
    """A share, or a table of shares by eps."""
    if not isinstance(value, Mapping):
        return check("", value, FRACTION)
    if not value:
        raise ValueError("it is empty; give at least one, or leave it out")
    for eps, share in value.items():
        check(shown(eps), eps_number(eps), POSITIVE)
        check(shown(eps), share, FRACTION)
    return dict(value)


T = TypeVar("T")


def different(values: list[T]) -> list[T]:
    """Refuse an empty list, which would switch off what it is for, and a value that is there twice."""
    if not values:
        raise ValueError("it is empty; give at least one, or leave it out")
    seen: set[T] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{shown(value)} is there twice; remove one")
        seen.add(value)
    return values


Count = Annotated[int, within(COUNT)]
Positive = Annotated[float, within(POSITIVE)]
NotNegative = Annotated[float, within(NOT_NEGATIVE)]
Accuracy = Annotated[float, within(FRACTION)]
Seed = Annotated[int, within(SEED)]
Bits = Annotated[int, within(BITS)]
Flag = Annotated[bool, within(FLAG)]
Word = Annotated[str, within(TEXT)]
Norm = Literal["Linf", "L2", "L1", "L0"]
Draws = Annotated[int, within(Number(1, 10_000, whole=True))]
Layers = Annotated[int | list[str | int], within(LAYERS)]
# Names end up in file names and in ids.
Name = Annotated[str, within(Text(80))]
AttackId = Annotated[Word, AfterValidator(current_id)]
Eps = Annotated[float, within(POSITIVE), BeforeValidator(eps_number)]
Precision = Annotated[Literal["32-true", "bf16-mixed", "16-mixed"], within(OneOf(PRECISIONS))]
# A number that a paper gives for an accuracy here, or a table of such numbers by eps.
Reference = Annotated[float | dict[str, float], BeforeValidator(_reference)]
SomeEps = Annotated[list[Eps], Field(max_length=1000), AfterValidator(different)]
SomeNames = Annotated[list[Name], AfterValidator(different)]
SomeAttacks = Annotated[list[AttackId], AfterValidator(different)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def reference_at(reference: float | Mapping[str, float] | None, eps: float) -> float | None:
    """The number of a paper at an eps."""
    if not isinstance(reference, Mapping):
        return reference
    return next((share for key, share in reference.items() if math.isclose(eps_number(key), eps, rel_tol=1e-9)), None)
