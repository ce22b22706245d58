"""The types that fields of configuration files have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from dap.base.fields import Text

Word: Any = Text
Whole: Any = Annotated[int, Field(ge=1, le=2**20), Strict()]
"""A size or a number of things."""
Position: Any = Annotated[int, Field(ge=0, le=2**20), Strict()]
Number: Any = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), Strict()]
Positive: Any = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), Strict()]
Beta: Any = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), Strict()]
Flag: Any = Annotated[bool, Strict()]
Words: Any = list[Word] | tuple[Word, ...]
Wholes: Any = Whole | list[Whole] | tuple[Whole, ...]
Deep: Any = Wholes | list[Wholes] | tuple[Wholes, ...]
Off = Literal[None, False]
"""A field that must be switched off."""
Factor = Literal[3]

Table = Mapping[str, Any]
"""By the name of a field the type of the values that it may have."""
