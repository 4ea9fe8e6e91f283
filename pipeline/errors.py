"""The two ways in which a user's input can be wrong, each told in one sentence."""

import errno
import re


class InputError(Exception):
    """Wrong use or wrong input: the sentence says what is wrong, where, and what to do. Exit code 2."""

    exit_code = 2


class DataError(InputError):
    """The data was read and has errors: the findings are in the sentence. Exit code 1."""

    exit_code = 1


STOPPED = "interrupted; what was complete is on disk"
"""What is said after Ctrl-C or SIGTERM."""

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

SITE_ERRORS = {
    errno.EACCES: "give the user who runs this the right to it, or choose another folder",
    errno.EPERM: "give the user who runs this the right to it, or choose another folder",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOSPC: "make room, or choose another folder",
    errno.EDQUOT: "make room, or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "this is a folder, a file is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
}
"""What a site can mend itself, by error number, and how."""


def user_error(error: BaseException | None) -> InputError | None:
    """The user's mistake behind an error, if there is one: MONAI and data loading wrap it in errors of their own."""
    while error is not None:
        if isinstance(error, InputError) and "Traceback" not in str(error):
            return error
        if isinstance(error, ValueError) and _raised_by_us(error):
            return InputError(str(error))
        if isinstance(error, OSError) and error.errno in SITE_ERRORS:
            where = f"{error.filename}: " if error.filename else ""  # a full disk names no file
            return InputError(f"{where}{error.strerror}; {SITE_ERRORS[error.errno]}")
        # A DataLoader's worker process hands on its traceback as text.
        for kind, sentence in re.findall(r"^pipeline\.(?:errors|regular)\.(\w+): (.*)$", str(error), re.MULTILINE):
            return DataError(sentence) if kind == "DataError" else InputError(sentence)
        error = error.__cause__ or error.__context__
    return None


def _raised_by_us(error: BaseException) -> bool:
    """Whether one of our own files raised it: their ValueErrors are sentences about an argument, made to be read."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("pipeline.")
