"""The base class of whatever is read from a configuration, a pack, a suite or a format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

MAX_INTEGER = 2**63 - 1  # what 64 bits hold
NUMBERS = (int, float, int | None, float | None)


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and what is no number in the place of one.

    Infinite values, NaN and integers beyond 64 bits are refused; YAML's `true` is no number.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, values: Any) -> Any:
        # A validator of each field would not be allowed on one that tells kinds apart.
        fields = cls.model_fields
        problems = [
            InitErrorDetails(type=PydanticCustomError("number", problem), loc=(name,), input=value)
            for name, value in (values.items() if isinstance(values, Mapping) else ())
            if name in fields and (problem := _number_problem(value, fields[name].annotation))
        ]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return values


def _number_problem(value: Any, annotation: Any) -> Any:
    if isinstance(value, bool):
        return "must be a number" if annotation in NUMBERS else ""
    if isinstance(value, str) and annotation in (int, int | None):  # of the command line
        digits = value.strip().lstrip("+-").replace("_", "")
        too_large = digits.isdecimal() and (len(digits) > 19 or int(digits) > MAX_INTEGER)
    else:
        too_large = isinstance(value, int) and abs(value) > MAX_INTEGER
    return "must be a number of at most 64 bits" if too_large else ""
