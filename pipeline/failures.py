"""How a run's failure is told where names of patients must not stand."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.configuration import VALUE_LENGTH
from pipeline.manifest import Case


def without_paths(error: BaseException, cases: Iterable[Case] = ()) -> str:
    """An error's type and text without file names, in which a patient's name may stand.

    Args:
        error: whose first cause is told.
        cases: whose files are told by the case's id.

    Returns:
        A text that names a file of no case is left out whole: where in it a name ends, no rule can say.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    for case in cases:
        for path in (*case.images, case.label):
            if path and path in text:
                text = case.id + text.rpartition(path)[2]
    if "/" in text or "\\" in text:
        text = "what it says names a file, so it was told on the terminal alone"
    return f"{type(error).__name__}: {text}"[:VALUE_LENGTH]
