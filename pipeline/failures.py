"""How a run's failure is told where neither names of files nor values of headers must stand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from pipeline.configuration import VALUE_LENGTH
from pipeline.manifest import Case
from pipeline.regular import Refused

READERS = frozenset({"highdicom", "itk", "nibabel", "PIL", "pydicom", "tifffile"})
"""Libraries that read patients' files: what they raise may quote a header."""

FILE = re.compile(r"\.(dcm|ima|tiff?|png|jpe?g|nii|gz|nrrd|nhdr|mh[ad])\b", re.IGNORECASE)
"""How a text shows that it names a file, also where no folder stands before it."""

UID = re.compile(r"\d+(\.\d+){4,}")
"""An identifier of a study, a series or an image."""

NAMES_A_FILE = "what it says names a file, so it was told on the terminal alone"
MAY_QUOTE = "what it says may quote a header, so it was told on the terminal alone"


def without_paths(error: BaseException, cases: Iterable[Case] = ()) -> str:
    """An error's type and text without what may name a patient: files, identifiers and values of headers.

    Args:
        error: whose first cause is told.
        cases: whose files are told by the case's id.

    Returns:
        A refused DICOM series is told by its rule. A text that names a file of no case is left out whole: where in it
        a name ends, no rule can say; so is one that a library raised while it read a file.
    """
    cases = list(cases)
    chain = list(_chain(error))
    named = next((case[0] + ": " for one in chain if (case := _case_in(str(one), cases))), "")
    refused = next((one for one in chain if isinstance(one, Refused) and one.rule), None)
    if refused is not None:
        return f"{type(refused).__name__}: {named}{refused.rule}"
    return f"{type(chain[-1]).__name__}: {_text(chain[-1], cases, named)}"[:VALUE_LENGTH]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__


def _text(error: BaseException, cases: Sequence[Case], named: str) -> str:
    """What an error says, or why it is not told; `named` is the id of the case whose file it is about, if any."""
    if isinstance(error, OSError) and error.strerror:
        return named + error.strerror
    if _raised_by_a_reader(error):
        return named + MAY_QUOTE
    text = str(error)
    case = _case_in(text, cases)
    if case is not None:  # a decoder's own words stand in brackets
        text = case[0] + re.sub(r" \(.*\)", "", case[1], flags=re.DOTALL)
    if "/" in text or "\\" in text or FILE.search(text) or UID.search(text) or _has_a_part(text, cases):
        return NAMES_A_FILE
    return text


def _case_in(text: str, cases: Sequence[Case]) -> tuple[str, str] | None:
    """The id of the last case whose file a text names, and what the text says after it."""
    found = None
    for case in cases:
        for path in (*case.images, case.label):
            if not path or path not in text:
                continue
            places = list(re.finditer(rf"(?:^|[/\s]){re.escape(path)}(?!\w)", text))
            if places and (found is None or places[-1].end() > found[0]):
                found = places[-1].end(), case.id
    return None if found is None else (found[1], text[found[0] :])


def _has_a_part(text: str, cases: Sequence[Case]) -> bool:
    """Whether a text has a folder's or a file's name that tells one case from another and is in no public id."""
    of_each = [_parts(case) for case in cases]
    shared = Counter(part for parts in of_each for part in parts)
    return any(part in text for part, times in shared.items() if times < len(of_each))


def _parts(case: Case) -> set[str]:
    """Names of a case's folders and files, without endings; numbers and one or two letters say nothing."""
    paths = [PurePosixPath(path) for path in (*case.images, case.label or "")]
    names = {part.partition(".")[0] for path in paths for part in path.parts}
    return {name for name in names if len(name) > 2 and not name.isdigit() and name not in case.id}


def _raised_by_a_reader(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in READERS:
            return True
        trace = trace.tb_next
    return False
