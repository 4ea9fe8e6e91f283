"""The rule of the gate: margin, error and how many patients it takes, fixed before the sealed patients are opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError
from pipeline.groups import LEAST

Margin = Annotated[float, Field(gt=0, lt=1)]


class Rule(BaseModel):
    """A new model is accepted if it is not worse than the deployed one by the margin in any class.

    Per class, the one-sided lower bound of the mean paired difference (new - deployed, Dice of a patient) must lie
    above minus the margin: non-inferiority as drug trials show it (CHMP, Guideline on the choice of the non-inferiority
    margin, EMEA/CPMP/EWP/2158/99, 2005). All classes must pass, each at the full `alpha`: a model that is too bad in
    one class gets through with at most that class's error, however good the others are, so several classes need no
    correction (intersection-union test: Berger, Technometrics 24, 1982, p. 295).

    Args:
        margin: of Dice, that a patient may lose on average; for all classes, or per class.
        alpha: error of the bound, one-sided.
        minimum_patients: sealed patients that have the class; with fewer the verdict is `not decidable`. Below 20 the
            bound lets too much pass, see tests/benchmarks/gate_rules.md.
        classes: that must pass; None: all but the background. Others are reported.
        subgroup_minimum: patients of a subgroup that is looked at.
        power: how likely a model that is as good as the deployed one should pass, for the number that is needed.
        bound: the method; a rule that names another one is of another version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin: Margin | dict[str, Margin] = 0.02
    alpha: float = Field(default=0.05, gt=0, le=0.5)
    minimum_patients: int = Field(default=20, ge=2)
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    subgroup_minimum: int = Field(default=LEAST, ge=LEAST)
    power: float = Field(default=0.8, gt=0, lt=1)
    bound: Literal["lower of Student and Hall"] = "lower of Student and Hall"

    def margin_of(self, name: str) -> float:
        """The margin of a class.

        Raises:
            InputError: margins are stated per class, and this one has none.
        """
        if not isinstance(self.margin, dict):
            return self.margin
        if name not in self.margin:
            raise InputError(
                f"the rule states margins for {', '.join(self.margin)}, none for `{name}`; state one for every class"
            )
        return self.margin[name]

    def decides(self, classes: Sequence[str]) -> list[str]:
        """Those of the model's classes (without the background) that must pass.

        Raises:
            InputError: the rule names a class that the model does not have.
        """
        named = [*(self.classes or ()), *(self.margin if isinstance(self.margin, dict) else ())]
        if strange := sorted(set(named) - set(classes)):
            raise InputError(
                f"the rule names the class {', '.join(strange)}, which this model does not have; it has: "
                f"{', '.join(classes)}"
            )
        return [name for name in classes if self.classes is None or name in self.classes]

    def as_json(self) -> dict[str, Any]:
        """As a record holds it."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 that is the same for the same rule, however its file was laid out."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()


def read_rule(path: Path | None) -> Rule:
    """Read a rule from a YAML file; None: the one that stands here.

    Raises:
        InputError: the file cannot be read, has a key that no rule has, or a value out of range.
    """
    if path is None:
        return Rule()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: no rule can be read ({_first_line(error)}); give a YAML file") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a rule is a mapping such as `margin: 0.02`")
    if strange := [str(key) for key in found if key not in Rule.model_fields]:
        raise InputError(f"{path}: a rule has no key {', '.join(strange)}; its keys are {', '.join(Rule.model_fields)}")
    try:
        return Rule.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("float", "dict[str,constrained-float]"))
        raise InputError(f"{path}: `{where}`: {first['msg']}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
