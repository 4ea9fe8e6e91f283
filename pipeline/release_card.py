"""The model card of a release: what it is, for what, how it was tested, and its limits; nothing of a single patient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.groups import LEAST
from pipeline.release_figures import Figures, count
from pipeline.release_files import BILL, LICENCE, RECIPE, REFERENCE_ABOUT, SIGNATURE, SUMS
from pipeline.release_metadata import ELSEWHERE
from pipeline.tables import FEW

UNTESTED = (
    "**Not tested.** No evaluation on patients that the training has not seen goes with this release: nothing is known "
    "of how good it is."
)

TOO_FEW = f"Tested on fewer than {LEAST} {{unit}}s: no figures of so few leave the site where it was tested."


@dataclass(frozen=True)
class Card:
    """What a card tells.

    Attributes:
        metadata: of the release.
        name: of its folder.
        tested: aggregates of the test partition; None: not tested.
        trained: partition -> how many patients shaped the weights.
        unit: what these are: patients, or clusters or images where no patient is known.
        epochs: of the training.
        best_epoch: whose weights these are.
        began: what the training started from.
        gate: verdict on the model before, in aggregates; None: not compared.
        signer: fingerprint of the public key.
        recipe: whether the release says how its dataset was indexed.
    """

    metadata: Mapping[str, Any]
    name: str
    tested: Figures | None
    trained: Mapping[str, int]
    unit: str
    epochs: int
    best_epoch: int
    began: str
    gate: Mapping[str, Any] | None
    signer: str
    recipe: bool


def markdown(card: Card) -> str:
    """The card as Markdown."""
    about = card.metadata
    version = about["version"]
    parts = [
        f"# {about.get('name', card.name)}, version {version}",
        f"{_sentence(about.get('task', ''))} {_sentence(about.get('description', ''))}".strip(),
        f"Intended use: {_sentence(about.get('intended_use', 'not stated'))} It was not made for anything else, and is "
        "no medical device.",
        _in_short(card.tested),
        "## What is new",
        _list(f"**{number}** {text}" for number, text in about["changelog"].items()),
        "## How it was tested",
        *_tested(card.tested),
        *(["## Against the model before", *_gate(card.gate)] if card.gate else []),
        "## What it was trained on",
        *_trained(card),
        "## Input and output",
        _list(_formats(about)),
        "## Limits",
        _list(_limits(card)),
        "## Check it and use it",
        *_use(card, version),
        "## Licence",
        f"{about.get('copyright', '')}; {LICENCE} is that of the configs and of our code, `{BILL}` names those of all "
        "packages. The data of the training has terms of its own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _in_short(tested: Figures | None) -> str:
    if tested is None:
        return UNTESTED
    if tested.patients is None:
        return TOO_FEW.format(unit=tested.unit)
    means = ", ".join(f"{mean:.3f} ({name})" for name, (mean, _) in tested.dice.items())
    return f"Tested on {tested.patients} {tested.unit}s kept apart from the training: mean Dice {means or 'undefined'}."


def _tested(tested: Figures | None) -> Iterator[str]:
    if tested is None:
        yield UNTESTED
        return
    if tested.patients is None:
        yield TOO_FEW.format(unit=tested.unit)
        return
    unit = tested.unit
    yield (
        f"On the test partition, {tested.patients} {unit}s that shaped neither the weights nor the choice of their "
        f"epoch. A {unit} counts once, with all of its images pooled; intervals are 95 % bootstrap intervals of the "
        f"mean over {unit}s" + (f", too narrow with fewer than about {FEW}." if tested.patients < FEW else ".")
    )
    rows = [
        f"| {name} | {mean:.3f} | {f'{interval[0]:.3f} to {interval[1]:.3f}' if interval else '-'} |"
        for name, (mean, interval) in tested.dice.items()
    ]
    yield "\n".join(["| class | mean Dice | 95 % interval |", "|---|---|---|", *rows])
    if tested.overlap:
        yield f"{tested.overlap[0].upper()}{tested.overlap[1:]}."
    if unit != "patient":
        yield f"Which images are of one patient is not known: {unit}s were kept apart instead."


def _gate(gate: Mapping[str, Any]) -> Iterator[str]:
    """The verdict and, of classes with patients enough, its figures."""
    patients = int(gate.get("patients", 0))
    yield (
        f"Verdict: **{gate['verdict']}**, on {count(patients)} kept apart from the training, by a rule that was fixed "
        f"before they were opened{_rule(gate.get('rule') or {})}. Differences are paired by patient."
    )
    classes = [one for one in gate.get("classes", ()) if int(one.get("patients", 0)) >= LEAST and patients >= LEAST]
    if classes:
        head = [
            "| class | patients | Dice before | Dice now | difference | at worst | margin |",
            "|---|---|---|---|---|---|---|",
        ]
        numbers = ("deployed", "new", "difference", "lower", "margin")
        yield "\n".join(
            head
            + [
                f"| {one['name']} | {one['patients']} | {' | '.join(_number(one.get(key)) for key in numbers)} |"
                for one in classes
            ]
        )


def _rule(rule: Mapping[str, Any]) -> str:
    """What the rule asks for, which is no secret of anybody's."""
    if "margin" not in rule:
        return ""
    margins = rule["margin"].items() if isinstance(rule["margin"], Mapping) else [("any class", rule["margin"])]
    lost = ", ".join(f"{margin:g} in {name}" for name, margin in margins)
    return (
        f": no more than that much of Dice lost ({lost}), {100 * (1 - rule['alpha']):g} % confidence, at least "
        f"{rule['minimum_patients']} patients"
    )


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):.3f}"


def _trained(card: Card) -> Iterator[str]:
    told = {name: count(number, card.unit) for name, number in card.trained.items()}
    yield (
        f"Training partition: {told['training']}. Validation partition, which chose the epoch: {told['validation']}. "
        + f"The weights are those after epoch {card.best_epoch} of {card.epochs}. {card.began}".strip()
    )
    yield (
        "`configs/train.json` holds every number that the training was run with. Who they were, and what their images "
        "are, stays at the site of the training; no list, digest or picture of them is in this release. Ask the signer."
    )
    if source := card.metadata.get("data_source"):
        yield f"The task was set up for this data: {_sentence(str(source).partition(f'; {ELSEWHERE}')[0])}"


def _formats(about: Mapping[str, Any]) -> Iterator[str]:
    for key, what in (("data_type", "Formats"), ("image_classes", "In"), ("pred_classes", "Out")):
        if about.get(key):
            yield f"{what}: {about[key]}"


def _limits(card: Card) -> Iterator[str]:
    few = card.tested is not None and card.tested.patients is not None and card.tested.patients < FEW
    yield "Patients, scanners and protocols unlike those of the training may fare worse, without any sign of it."
    if card.tested is None or card.tested.patients is None:
        yield "Its accuracy is not told here; test it on your own patients before anybody relies on it."
    elif few:
        yield f"{card.tested.patients} {card.tested.unit}s say little about rare cases."
    yield "A mean hides single failures: look at the worst cases of your own evaluation."
    yield "The signature says who released this and that it is unchanged, not that it is good."


def _use(card: Card, version: str) -> Iterator[str]:
    file = f"{card.name}-{version}.zip"
    yield (
        f"`{SUMS}` holds the SHA-256 of every file, `{SIGNATURE}` the Ed25519 signature over it, by the key with the "
        f"fingerprint `{card.signer}`. Ask the signer for the fingerprint by another way."
    )
    yield _shell(
        f"overtile verify {file} --key PUBLIC.pub",
        f"overtile predict --bundle {file} --key PUBLIC.pub --input IMAGES --output LABELS",
    )
    yield f"Without Overtile's command, in the unpacked folder `{card.name}`:"
    yield _shell(
        "sha256sum --check SHA256SUMS",
        f"openssl pkeyutl -verify -rawin -pubin -inkey PUBLIC.pub -sigfile {SIGNATURE} -in {SUMS}",
        "pip install wheels/*.whl",
        "python -m monai.bundle run predicting --config_file configs/inference.json --source IMAGES --output_dir OUT",
        "python -m monai.bundle run training --config_file configs/train.json   # with data/manifest.json",
    )
    yield (
        f"In Python, `monai.bundle.load({card.name!r}, bundle_dir=PARENT)` returns the network with its weights. "
        f"`{REFERENCE_ABOUT}` says how closely the synthetic case beside it must be reproduced."
        + (f" `{RECIPE}` says how the dataset was indexed." if card.recipe else "")
    )


def _shell(*lines: str) -> str:
    return "\n".join(["```sh", *lines, "```"])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
