"""Rules over DICOM attributes: which series of a study is which channel, and which segmentation its reference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from pipeline.errors import InputError

PRESENT, ABSENT = "present", "absent"
"""What a rule says instead of a pattern where only matters whether an attribute has a value."""

COLUMNS = {
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "sex": "PatientSex",
    "age_band": "PatientAge/20",
}
"""Columns of every case of a DICOM tree, where its headers tell them: name -> keyword, or keyword/width of bands."""


class Header(Protocol):
    """Whatever gives values by DICOM keyword."""

    def get(self, keyword: str, default: Any = None, /) -> Any:
        """The value of an attribute, or the default where it is absent."""


class Rule(BaseModel):
    """What every file of a series must say: DICOM keyword -> regular expression, `present` or `absent`.

    A regular expression matches whole values, whatever their case; of several values, as in ImageType, one of them or
    all of them with a backslash between. `resample` lets a channel lie on another grid than the first one.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    resample: bool = False

    @model_validator(mode="after")
    def _patterns(self) -> Rule:
        for keyword, pattern in self.attributes.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{keyword}: {pattern!r} is no regular expression: {error}") from None
        if not self.attributes:
            raise ValueError("name at least one DICOM attribute, as in `SeriesDescription: 't1.*'`")
        return self

    @property
    def attributes(self) -> dict[str, str]:
        """DICOM keyword -> pattern, `present` or `absent`."""
        return {keyword: str(pattern) for keyword, pattern in (self.model_extra or {}).items()}

    def __str__(self) -> str:
        return ", ".join(f"{keyword}: {pattern}" for keyword, pattern in self.attributes.items())


Channels = Mapping[str, Rule]
"""Name of a channel -> its rule, in the order of the channels."""


class DicomRules(BaseModel):
    """The section `dicom` of a recipe.

    Args:
        channels: which series of a study is which channel; without it every series is a case by itself.
        reference: which DICOM SEG is the reference, where several are of one series.
        columns: further columns of a case: name -> DICOM keyword, `PatientAge/20` in bands.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: dict[str, Rule] = {}
    reference: Rule | None = None
    columns: dict[str, str] = Field(default={}, validate_default=False)

    @field_validator("columns")
    @classmethod
    def _named_apart(cls, columns: dict[str, str]) -> dict[str, str]:
        for source in columns.values():
            if not re.fullmatch(r"[A-Za-z0-9]+(/[1-9]\d*)?", source):
                raise ValueError(f"{source!r} is no DICOM keyword, nor one with a width of bands as in PatientAge/20")
        return columns

    @property
    def keywords(self) -> set[str]:
        """Every DICOM keyword that is asked for."""
        rules = [*self.channels.values(), *([self.reference] if self.reference else [])]
        wanted = {source.partition("/")[0] for source in (*COLUMNS.values(), *self.columns.values())}
        return wanted.union(*(rule.attributes for rule in rules))


def channel_rules(channels: Mapping[str, Any] | None) -> Channels | None:
    """Rules from what a YAML file says; None, or nothing, says that every series is a case by itself.

    Raises:
        InputError: a rule is none.
    """
    try:
        return TypeAdapter(dict[str, Rule]).validate_python(dict(channels or {})) or None
    except (ValidationError, ValueError, TypeError) as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
        raise InputError(f"`channels`: {said}; write NAME: {{KEYWORD: pattern}} for each channel") from None


def fits(rule: Rule, headers: Sequence[Header]) -> bool:
    """Whether all headers of a series say what a rule wants."""
    return all(_fits(pattern, keyword, headers) for keyword, pattern in rule.attributes.items())


def _fits(pattern: str, keyword: str, headers: Sequence[Header]) -> bool:
    values = {_texts(header.get(keyword)) for header in headers}
    if pattern in (PRESENT, ABSENT):
        return all(bool(texts) == (pattern == PRESENT) for texts in values)
    return all(any(re.fullmatch(pattern, text, re.IGNORECASE) for text in texts) for texts in values)


def _texts(value: Any) -> tuple[str, ...]:
    """A value as texts to be matched: each of several values, and all of them together; numbers as short as may be."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value.strip(),)
    if isinstance(value, Sequence):
        texts = tuple(text for single in value for text in _texts(single))
        return (*texts, "\\".join(texts))
    return (f"{value:g}" if isinstance(value, float) else str(value),)
