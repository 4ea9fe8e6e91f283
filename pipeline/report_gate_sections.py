"""What stands in the sections of a retraining's page, from its record: tables, terms and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import sealed
from pipeline.gate_words import signed
from pipeline.report_words import NONE, Table, counted, duration, figure, moment, percent
from pipeline.retrain_record import STEPS, RetrainRecord

SHORT = 12
"""Digits of a digest that a table shows."""

FOUND = {
    "not worse": "shown not to be worse",
    "worse": "worse",
    "not shown": "not shown to be as good",
    "too few": "too few patients to say",
    "absent": "no patient has it",
}
"""What `Judged.found` is called."""

MOST_PATIENTS = 15
"""Who lost most, that many of them stand in the table; the picture shows all."""

SETTINGS = {"learning_rate": "learning rate", "frozen": "parts that kept their weights"}
"""Keys of train.json that a reader knows by another name."""


KNOWN_TO_THE_DEPLOYED = (
    "Whether the deployed model was trained on some of these patients is not known, since a release holds no list of "
    "them; if it was, that favoured it at the gate."
)
"""What no check can tell, said where the patients are counted."""


def verdict(record: RetrainRecord) -> tuple[str, str]:
    """The verdict's word, and why, whatever stage the retraining came to."""
    word: str
    if record.result:
        word, reason = record.result.verdict, record.result.reason
    elif record.decision:
        word, reason = record.decision["verdict"], record.decision["reason"]
    elif record.screen and not record.screen["passed"]:
        word, reason = "refused", record.screen["reason"]
    elif record.audit and record.audit.errors:
        word = "stopped"
        reason = f"Stopped: the audit found {counted(len(record.audit.errors), 'error')} in the data; see below."
    else:
        word, reason = "not finished", f"Not finished: there is no verdict yet. {_how_far(record)}"
    return word, reason if reason.lower().startswith(word) else f"{word.capitalize()}: {reason}"


def outcome(record: RetrainRecord) -> str:
    """What became of the models, in a sentence."""
    if record.result is None:
        return ""
    if record.result.release:
        return f"The release {record.result.release} was made; it may leave the site."
    version = record.release.version if record.release else ""
    return "No release was made." + (f" Version {version} stays in use." if version else "")


def warnings(record: RetrainRecord) -> Iterator[str]:
    """What must be seen beside the verdict."""
    if record.release and record.release.trust:
        yield f"Checks of the deployed release were overruled. The reason given: “{record.release.trust}”"
    if sealed.comparisons(record.openings) > 1:
        yield sealed.said(record.openings)


def class_table(decision: Mapping[str, Any]) -> Table:
    """Every class on the sealed patients."""
    confidence = f"{100 * (1 - decision['rule']['alpha']):g}\N{NO-BREAK SPACE}%"
    rows = [
        [
            one["name"],
            FOUND[one["found"]] + ("" if one["decides"] else " (the rule does not ask)"),
            str(one["patients"]),
            figure(one["deployed"]),
            figure(one["new"]),
            _difference(one["difference"]),
            _difference(one["lower"], -one["margin"]),
            signed(-one["margin"]),
        ]
        for one in decision["classes"]
    ]
    head = ("Class", "Found", "Patients", "Deployed", "New", "Difference", f"At worst ({confidence})", "Margin")
    return Table("Mean Dice of the two models on the sealed patients", head, rows, text_columns=2)


def losses(decision: Mapping[str, Any]) -> Table | None:
    """The patients who lose most by the new model, by pseudonym."""
    every = sorted(
        (value, one["name"], patient) for one in decision["classes"] for patient, value in one["by_patient"].items()
    )
    worst = [[patient, name, signed(value)] for value, name, patient in every[:MOST_PATIENTS] if value < 0]
    if not worst:
        return None
    return Table("Patients who lose most by the new model", ("Patient", "Class", "Difference of Dice"), worst, (), 2)


def absent(decision: Mapping[str, Any]) -> Table | None:
    """False positives in patients who have nothing of a class."""
    rows = [
        [one["name"], *(f"{wrong[key]:,}" for key in ("patients", "deployed", "deployed_pixels", "new", "new_pixels"))]
        for one in decision["classes"]
        if (wrong := one["absent"]) and wrong["patients"]
    ]
    head = ("Class", "Patients without it", "Found by deployed in", "Its pixels", "Found by new in", "Its pixels")
    return Table("False positives where the reference has nothing of a class", head, rows) if rows else None


def subgroup_table(decision: Mapping[str, Any]) -> Table | None:
    """Every subgroup that was looked at."""
    rows = [
        [
            f"{one['column']} {one['group']}",
            one["name"],
            "refuses the model" if one["found"] == "worse" else "does not",
            str(one["patients"]),
            _difference(one["difference"]),
            f"{signed(one['lower'])} to {signed(one['upper'])}",
        ]
        for one in decision["subgroups"]
    ]
    head = ("Subgroup", "Class", "Verdict", "Patients", "Difference", "One-sided bounds")
    return Table("Difference of Dice by subgroup", head, rows, text_columns=3) if rows else None


def rule(record: RetrainRecord) -> list[tuple[str, str]]:
    """The rule, and when it was fixed."""
    found, said = record.rule or {}, []
    if "margin" in found:
        margin = found["margin"]
        every = ", ".join(f"{name}: {value:g}" for name, value in margin.items()) if isinstance(margin, dict) else ""
        said.append(("Margin, Dice", every or f"{margin:g}, every class"))
    if "alpha" in found:
        said.append(("Error of the bound", f"{percent(found['alpha'], 0)}, one-sided; {found.get('bound', '')}"))
    if "minimum_patients" in found:
        said.append(("Sealed patients", f"{found['minimum_patients']} at least who have the class"))
    if found.get("classes"):
        said.append(("Classes that must pass", ", ".join(found["classes"])))
    if "subgroup_minimum" in found:
        said.append(("Subgroups", f"of {found['subgroup_minimum']} patients or more"))
    if record.rule_sha256:
        said.append(("Digest", record.rule_sha256))
    if record.rule_fixed_at:
        said.append(("Fixed", moment(record.rule_fixed_at)))
    own = [one for one in record.openings if not one.previous]
    if own:
        order = "" if not record.rule_fixed_at or record.rule_fixed_at <= own[0].opened_at else ": BEFORE the rule"
        said.append(("Sealed patients opened", f"{moment(own[0].opened_at)}{order}"))
    return said


def simulation(record: RetrainRecord) -> Iterator[Table]:
    """The rule's error by number of patients, a table per class."""
    found = record.simulation or {}
    rows = found.get("rows", [])
    own = record.split.sealed.patients if record.split else None
    for name in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == name]
        head = (
            "Sealed patients", "The rule decides", "Accepts a model exactly the margin worse",
            "Accepts one that is as good", f"Accepts one of {signed(mine[0]['observed'])}, as validation saw it",
        )  # fmt: skip
        lines = [
            [
                f"{row['patients']}{', as here' if row['patients'] == own else ''}",
                "yes" if row["decides"] else "no, too few",
                *(percent(row[key], 1) for key in ("false_acceptance", "power", "power_observed")),
            ]
            for row in mine
        ]
        error = max(row["error"] for row in mine)
        note = f"{found.get('experiments', 0):,} experiments a line, standard error at most {percent(error, 1)}."
        yield Table(f"How often the rule would err here, {name}", head, lines, (note,), 2)


def openings(record: RetrainRecord) -> Table | None:
    """Every opening of the sealed patients, this retraining's and those before it."""
    rows = [
        [
            moment(one.opened_at),
            "an earlier retraining" if one.previous else "this one, going on" if one.resumed else "this one",
            str(one.patients),
            *(text[:SHORT] or NONE for text in (one.deployed_sha256, one.new_sha256, one.rule_sha256)),
        ]
        for one in record.openings
    ]
    head = ("Opened", "By", "Patients", "Deployed weights", "New weights", "Rule")
    return Table("Openings of the sealed patients", head, rows, text_columns=2) if rows else None


def data(record: RetrainRecord) -> Iterator[Table]:
    """What the index refused, what the audit found, and how the patients were divided."""
    if record.split:
        parts = {"training": "fits the weights", "validation": "chooses the epoch", "sealed": "the gate alone"}
        rows = [
            [name, purpose, str(part.patients), str(part.cases)]
            for name, purpose in parts.items()
            if (part := getattr(record.split, name))
        ]
        yield Table("How the patients were divided", ("Part", "For", "Patients", "Cases"), rows, text_columns=2)
    if record.index and record.index.refused:
        refused = [[one.what, one.reason] for one in record.index.refused]
        yield Table("What was refused at indexing, and why", ("What", "Why"), refused, text_columns=2)
    if record.audit and (record.audit.errors or record.audit.warnings):
        kinds = {"error": record.audit.errors, "warning": record.audit.warnings}
        findings = [[kind, text] for kind, texts in kinds.items() for text in texts]
        yield Table("What the audit found", ("Kind", "Finding"), findings, text_columns=2)


def indexed(record: RetrainRecord) -> str:
    """The index and the audit in a sentence each."""
    if record.index is None:
        return "Nothing was indexed yet."
    said = f"{counted(record.index.cases, 'case')} of {counted(record.index.patients, 'patient')} were indexed"
    said += "; what was refused, and why, stands below." if record.index.refused else "; nothing was refused."
    if record.audit and not record.audit.errors:
        said += " The audit found no error."
    return f"{said} {KNOWN_TO_THE_DEPLOYED}" if record.split else said


def training(record: RetrainRecord) -> list[tuple[str, str]]:
    """How the new model was trained."""
    found = record.training
    if found is None:
        return []
    said = [("Epochs", f"{found.epochs}" + (f"; the best was {found.best_epoch}" if found.best_epoch else ""))]
    if found.minutes is not None:
        given = f" of {found.hours_given:g} given" if found.hours_given is not None else ""
        said.append(("Hours", f"{found.minutes / 60:.2f}{given}"))
    for key, value in found.settings.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
        said.append((SETTINGS.get(key, key), shown))
    return said


def validation(record: RetrainRecord) -> Table | None:
    """Mean Dice of both models on the validation patients."""
    old, new = record.deployed_validation, record.new_validation
    if old is None:
        return None
    rows = []
    for name, dice in old.dice.items():
        now = new.dice.get(name) if new else None
        change = None if dice is None or now is None else now - dice
        rows.append([name, str(old.defined.get(name, old.patients)), figure(dice), figure(now), _difference(change)])
    note = "The new model's epoch was chosen on these patients, so its figures here are too good."
    head = ("Class", "Patients", "Deployed", "New", "Difference")
    return Table("Mean Dice on the validation patients", head, rows, (note,) if new else ())


def release(record: RetrainRecord) -> list[tuple[str, str]]:
    """The release that it started from."""
    found = record.release
    if found is None:
        return []
    terms = {
        "Deployed release": f"{found.name} {found.version}",
        "SHA-256": found.sha256,
        "Signed by": found.signer or "nobody that was checked",
    }
    if found.trust:
        terms["Trusted all the same"] = found.trust
    return [(term, text.strip()) for term, text in terms.items() if text.strip()]


def checks(record: RetrainRecord) -> Table | None:
    """What was verified of the release."""
    if record.release is None or not record.release.checks:
        return None
    rows = [
        [str(one.get("name", "")), "passed" if one.get("passed") else "FAILED", str(one.get("sentence", ""))]
        for one in record.release.checks
    ]
    return Table("Checks of the deployed release", ("Check", "Result", "What was found"), rows, text_columns=3)


def steps(record: RetrainRecord) -> Table | None:
    """When each step began, and how long it took."""
    if not record.steps:
        return None
    named: Sequence[str] = [*(s for s in STEPS if s in record.steps), *(s for s in record.steps if s not in STEPS)]
    rows = [
        [
            STEPS.get(name, name),
            moment(record.steps[name].started),
            duration(record.steps[name].started, record.steps[name].finished)
            if record.steps[name].finished
            else "not finished",
        ]
        for name in named
    ]
    return Table("Steps", ("Step", "Begun", "Took"), rows, text_columns=3)


def _how_far(record: RetrainRecord) -> str:
    done = [STEPS[name] for name in STEPS if name in record.steps and record.steps[name].finished]
    return f"{done[-1]}; give the same command again to go on." if done else "Nothing was done yet."


def _difference(value: float | None, beside: float | None = None) -> str:
    return NONE if value is None else signed(value, beside)
