"""What records of a file are made of: checked, frozen, and bounded, because the file may come from anywhere."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_WHOLE = 10**300  # larger whole numbers have no floating-point value


def _has_float(value: object) -> object:
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, int) and abs(number) > MAX_WHOLE:
            raise ValueError("a whole number is larger than any that is used")
    return value


Option = Annotated[bool | int | float | str | tuple[int | float, ...], AfterValidator(_has_float)]
Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(max_length=300)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=16_384)]
Extent = Annotated[int, Field(ge=0, le=16_384)]


class Record(BaseModel):
    """Named values of a file; ValidationError for other names and types, and for numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
