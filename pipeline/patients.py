"""Who is who: patients under one spelling, their pseudonyms, and the columns that a table tells of them."""

from __future__ import annotations

import csv
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.atomic import atomic
from pipeline.errors import DataError, InputError
from pipeline.recipe import Columns, composed

KEY_LENGTH = 32
"""Fewest characters of a key: with a short or empty one, names could be guessed and confirmed."""

UNKNOWN = ("", "na", "n/a", "nan", "null", "none", "unknown", "?")
"""What a table writes where it does not know."""

NUMBER = r"\D*0*(?P<patient>\d+)"
"""A `patient_id` for names of one number, whose leading zeros do not count."""


class Identity(NamedTuple):
    """A patient under one spelling, the study, and the columns that the name itself tells."""

    patient: str
    study: str | None
    columns: dict[str, str]


def identity(name: str, patient_id: str | None) -> Identity:
    r"""Read a name by the declared pattern.

    Args:
        name: as a path has it.
        patient_id: regular expression as `pipeline.recipe.Recipe` says; None takes the name as it is.

    Raises:
        InputError: the name does not match.

    Example:
        >>> identity("tcga-cs-4941_19960909", r"(?P<patient>TCGA.(?P<site>..).{5})_(?P<study>\d{8})")
        Identity(patient='TCGA_CS_4941', study='19960909', columns={'site': 'CS'})
    """
    name = composed(name)
    if patient_id is None:
        return Identity(name, None, {})
    found = re.fullmatch(patient_id, name, re.IGNORECASE)
    if found is None:
        raise InputError(f"the patient {name!r} does not match `patient_id` {patient_id!r}; correct one of the two")
    groups = {key: value for key, value in found.groupdict().items() if value is not None}
    study = groups.pop("study", None)
    return Identity(one_spelling(groups.pop("patient", name)), study, {k: v.upper() for k, v in groups.items()})


def one_spelling(name: str) -> str:
    """A name in capitals, with `_` for any run of punctuation: `tcga-cs 4941` is `TCGA_CS_4941`."""
    return re.sub(r"[\W_]+", "_", composed(name)).strip("_").upper()


def refuse_two_spellings(names: set[str]) -> None:
    """Refuse names that differ in case, punctuation or leading zeros alone: most likely they are one patient.

    Punctuation between two numbers counts: `S1_11` and `S11_1` are two patients.

    Raises:
        DataError: there are such.
    """
    if pair := two_spellings(names):
        other, name = pair
        raise DataError(
            f"the patients {other!r} and {name!r} differ only in spelling: if they are one, a split would divide "
            f"them; declare with `patient_id` how a name is read ({way_to_read(other, name)}), or rename one of them"
        )


def two_spellings(names: set[str]) -> tuple[str, str] | None:
    """The first two names that differ in spelling alone, as `refuse_two_spellings` says."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(_alike(name), name)
        if other != name:
            return other, name
    return None


def way_to_read(one: str, two: str) -> str:
    """The `--patient-id` by which two spellings are one."""
    without_case = one_spelling(one) == one_spelling(two)
    way = "'(.+)' leaves out case and punctuation" if without_case else f"'{NUMBER}' takes the number alone"
    return f"--patient-id {way}"


def _alike(name: str) -> str:
    """What is left of a name without case, leading zeros, and punctuation that does not stand between numbers."""
    without_zeros = re.sub(r"(?<!\d)0+(?=\d)", "", one_spelling(name))
    return re.sub(r"(?<!\d)_|_(?!\d)", "", without_zeros)


def pseudonym(key: bytes, name: str) -> str:
    """A patient's pseudonym: keyed, so that nobody without the site's key can confirm a guessed name."""
    return "P-" + hmac.new(key, name.encode(), "sha256").hexdigest()[:12]


def fingerprint(key: bytes) -> str:
    """Which key it is, so that pseudonyms of one key are compared and no others; nothing of the key can be read off."""
    return "key:" + hmac.new(key, b"overtile key fingerprint", "sha256").hexdigest()[:12]


def study_pseudonym(key: bytes | None, patient: str, study: str) -> str:
    """A study's pseudonym, of 8 characters; a hash even where names are public, since a study is often a date."""
    text = f"{patient}\0{study}".encode()
    digest = hashlib.sha256(text) if key is None else hmac.new(key, text, "sha256")
    return digest.hexdigest()[:8]


def read_key(path: Path) -> bytes:
    """The site's pseudonym key; made on first use, readable by its owner alone."""
    if not path.exists():
        with atomic(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32) + "\n")
    key = path.read_text(errors="replace").strip()
    if len(key) < KEY_LENGTH:
        raise InputError(
            f"{path}: is no pseudonym key, it has {len(key)} characters of at least {KEY_LENGTH}; restore it"
        )
    return key.encode()


def join(columns: Columns, root: Path, patient_id: str | None) -> dict[str, dict[str, str | None]]:
    """Patient under one spelling -> the columns to take over; None where the table does not know.

    Raises:
        InputError: the table or a column is missing, or a line has more or fewer columns than the header.
        DataError: two lines tell different things of one patient.
    """
    path = root / columns.file
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _lines(csv.DictReader(file), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV table ({error})") from None
    there = list(lines[0]) if lines else []
    sources = {name: source.partition("/") for name, source in columns.take.items()}
    for wanted in (columns.patient, *(source for source, _, _ in sources.values())):
        if wanted not in there:
            raise InputError(f"{path}: no column {wanted!r}; there is {', '.join(there) or 'none'}")
    table: dict[str, dict[str, str | None]] = {}
    for line in lines:
        patient = _spelt(line[columns.patient], patient_id)
        row = {name: _value(line[source], width, path) for name, (source, _, width) in sources.items()}
        if table.setdefault(patient, row) != row:
            raise DataError(f"{path}: two lines of patient {line[columns.patient]} that differ")
    return table


def _lines(table: csv.DictReader[str], path: Path) -> list[dict[str, str]]:
    """The lines of a table, none of which has a surplus comma or one too few."""
    lines = []
    for line in table:
        if None in line or None in line.values():
            more = "more" if None in line else "fewer"
            raise InputError(f"{path}, line {table.line_num}: {more} columns than the header has; correct the line")
        lines.append(line)
    return lines


def _spelt(name: str, patient_id: str | None) -> str:
    """A table's name of a patient: whole, as the paths have it, or without what follows the patient in them."""
    try:
        return identity(name, patient_id).patient
    except InputError:
        return one_spelling(name)


def _value(text: str | None, width: str, path: Path) -> str | None:
    text = (text or "").strip()
    if text.lower() in UNKNOWN:
        return None
    if not width:
        return text
    try:
        return band(text, int(width))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{path}: {text!r} cannot be put into bands of {width}") from None


def band(number: str, width: int) -> str:
    """The band of a number: 67 is in `60-79` where bands are 20 wide.

    Raises:
        ValueError: it is no number.
    """
    low = int(float(number) // width) * width
    return f"{low}-{low + width - 1}"


def columns_of(table: Mapping[str, dict[str, str | None]], patient: str, path: str) -> dict[str, str | None]:
    """The columns of one patient.

    Raises:
        InputError: the table has no such patient.
    """
    if patient not in table:
        raise InputError(f"{path}: patient {patient} has no line in the table; add one, or leave `columns` out")
    return table[patient]
