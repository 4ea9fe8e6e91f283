"""How a program ends that a user made a mistake in, or stopped: with a sentence, once, and an exit code."""

import sys
from types import TracebackType

from pipeline import processes
from pipeline.errors import INTERRUPTED, STOPPED, user_error


def say_once(sentence: str) -> None:
    """Tell the user, on stderr; of several processes of torchrun the first that has it to say tells it."""
    if processes.may_say(sentence):
        sys.stderr.write(sentence + "\n")


def say_plainly() -> None:
    """Let a user's mistake or Ctrl-C end the program with a sentence and an exit code, not with a traceback.

    For a bundle's `initialize`, so that `python -m monai.bundle run` speaks as `overtile run` does.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if kind is KeyboardInterrupt:
            say_once(STOPPED)
            raise SystemExit(INTERRUPTED)
        mistake = user_error(processes.explained(error))
        if mistake is None:
            sys.__excepthook__(kind, error, trace)
            return
        say_once(f"error: {mistake}")
        raise SystemExit(mistake.exit_code)

    sys.excepthook = hook
