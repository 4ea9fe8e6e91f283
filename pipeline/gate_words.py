"""The gate's verdict in words: one paragraph for the site's engineer, and sentences on how to read the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.gate_judged import Judged
from pipeline.gate_rule import Rule

MOST = 3
"""Classes that a paragraph gives figures of; the page has all of them."""

STAYS = "The deployed model stays."


def reason(verdict: str, classes: Sequence[Judged], subgroups: Sequence[Judged], rule: Rule) -> str:
    """Why, in one paragraph: the verdict first, then the figures."""
    deciding = [judged for judged in classes if judged.decides]
    write = {"accepted": _accepted, "refused": _refused, "not decidable": _undecided}[verdict]
    sentences = write(deciding, [judged for judged in subgroups if judged.blocks], rule)
    return " ".join([*sentences, *_found_where_nothing_is(classes)] + ([] if verdict == "accepted" else [STAYS]))


def notes(classes: Sequence[Judged], subgroups: Sequence[Judged], rule: Rule, left_out: Mapping[str, str]) -> list[str]:
    """How to read the figures: what was left out, how many looks were taken, what no figure shows."""
    said = []
    if sum(judged.decides for judged in classes) > 1:
        said.append(
            f"Every class must pass, each at the full {_percent(rule.alpha)}: a model that is too bad in one class "
            "gets through with no more than that class's error, so several classes need no correction "
            "(intersection-union)."
        )
    for judged in classes:
        if judged.left_out:
            said.append(_left_out(judged))
    if others := [judged.name for judged in classes if not judged.decides]:
        said.append(f"The rule does not decide on {_quoted(others)}; the figures are shown all the same.")
    said += _looks(subgroups, rule)
    said += [f"No subgroups by {column}: {why}." for column, why in left_out.items()]
    said.append(
        "The bound speaks of patients like these, and of what these show: a failure that none of them has is not in it."
    )
    return said


def _accepted(deciding: Sequence[Judged], _: Sequence[Judged], rule: Rule) -> list[str]:
    closest = sorted(deciding, key=lambda judged: (judged.lower or 0) + judged.margin)[:MOST]
    more = len(deciding) - len(closest)
    return [
        "Accepted: the new model was shown not to be worse than the deployed one by the margin in "
        + ("any class." if len(deciding) > 1 else f"`{deciding[0].name}`."),
        *(f"{_means(one)}; {_at_worst(one, rule)}, above the margin of {signed(-one.margin)}." for one in closest),
        *([f"The other {more} classes are further above it."] if more else []),
    ]


def _refused(deciding: Sequence[Judged], blocking: Sequence[Judged], rule: Rule) -> list[str]:
    worse = [judged for judged in deciding if judged.found == "worse"]
    unclear = [judged for judged in deciding if judged.found == "not shown"]
    said = []
    if worse:
        said.append(f"Refused: the new model is worse than the deployed one in {_quoted([one.name for one in worse])}.")
    elif unclear:
        said.append(
            f"Refused: it was not shown that the new model is not worse than the deployed one in "
            f"{_quoted([one.name for one in unclear])}."
        )
    else:
        said.append("Refused: the new model is worse than the deployed one for some of the patients.")
    said += [
        f"{_means(one)}; {_at_best(one, rule)}, below the margin of {signed(-one.margin)}." for one in worse[:MOST]
    ]
    said += [
        f"{_means(one)}; {_at_worst(one, rule)}, not above the margin of {signed(-one.margin)}. That is no proof that "
        f"it is worse, since it may as well be {signed(one.upper)}: more sealed patients could tell."
        for one in unclear[:MOST]
    ]
    if worse or unclear:
        groups = [f"{one.column} {one.group}" for one in blocking]
        return said + ([f"It is worse in these subgroups, too: {', '.join(dict.fromkeys(groups))}."] if groups else [])
    return said + [
        f"In the subgroup {one.column} {one.group}: {_means(one)}; {_at_best(one, rule)}, below the margin of "
        f"{signed(-one.margin)}."
        for one in blocking[:MOST]
    ]


def _undecided(deciding: Sequence[Judged], _: Sequence[Judged], rule: Rule) -> list[str]:
    absent = [judged.name for judged in deciding if judged.found == "absent"]
    few = [judged for judged in deciding if judged.found == "too few"]
    said = [
        "Not decidable: there are too few sealed patients to tell a model that is not worse from one that is."
        if few
        else f"Not decidable: no sealed patient has {_quoted(absent)}."
    ]
    said += [
        f"{one.patients} sealed {'patient has' if one.patients == 1 else 'patients have'} `{one.name}`, and the rule "
        f"asks for {rule.minimum_patients}. {_means(one, over=False)}"
        + (
            f"; the true difference may lie anywhere from {signed(one.lower)} to {signed(one.upper)}."
            if one.lower is not None
            else "."
        )
        for one in few[:MOST]
    ]
    if few and absent:
        said.append(f"No sealed patient has {_quoted(absent)}, so nothing can be said of it.")
    return said


def _means(one: Judged, *, over: bool = True) -> str:
    patients = f" over {one.patients} {'sealed ' if not one.column else ''}patients" if over else ""
    return (
        f"`{one.name}`: Dice {one.new:.3f}, the deployed model's {one.deployed:.3f}, a mean difference of "
        f"{signed(one.difference)}{patients}"
    )


def _at_worst(one: Judged, rule: Rule) -> str:
    return f"with {_percent(1 - rule.alpha)} confidence it is {signed(one.lower, -one.margin)} at worst"


def _at_best(one: Judged, rule: Rule) -> str:
    return f"with {_percent(1 - rule.alpha)} confidence it is {signed(one.upper, -one.margin)} at best"


def _found_where_nothing_is(classes: Sequence[Judged]) -> list[str]:
    """False positives that Dice does not see, where the new model has more of them."""
    return [
        f"In patients without `{one.name}` the new model finds some of it in {one.absent.new} of "
        f"{one.absent.patients}, the deployed one in {one.absent.deployed}; Dice does not show this, look at them."
        for one in classes
        if one.absent and one.absent.new > one.absent.deployed
    ]


def _left_out(one: Judged) -> str:
    wrong = one.absent
    told = (
        f" The deployed model finds some of it in {wrong.deployed} of them ({wrong.deployed_pixels:,} pixels), the new "
        f"one in {wrong.new} ({wrong.new_pixels:,})."
        if wrong
        else ""
    )
    return (
        f"`{one.name}`: {one.left_out} sealed {'patient has' if one.left_out == 1 else 'patients have'} nothing of it, "
        f"where Dice is not defined; left out.{told}"
    )


def _looks(subgroups: Sequence[Judged], rule: Rule) -> list[str]:
    if not subgroups:
        return [f"No subgroup of {rule.subgroup_minimum} sealed patients or more was looked at."]
    return [
        f"{len(subgroups)} subgroups were looked at. A subgroup refuses the model only if its own one-sided interval "
        f"lies wholly below the margin; each does so by chance in about {_percent(rule.alpha)} of cases if the model "
        "is exactly the margin worse for it, and the more subgroups, the more often one does. The others pass no "
        "verdict."
    ]


def _quoted(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def signed(value: float | None, beside: float | None = None) -> str:
    """A difference with its sign; as many digits as tell it from what it stands beside, three at least.

    Example:
        >>> signed(0.0124), signed(-0.02003, beside=-0.02), signed(-1e-9)
        ('+0.012', '\N{MINUS SIGN}0.02003', '0.000')
    """
    if value is None:
        return "not known"
    digits = next((n for n in (3, 4, 5) if beside is None or round(value, n) != round(beside, n)), 6)
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
