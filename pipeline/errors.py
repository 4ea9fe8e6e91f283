"""The two ways in which a user's input can be wrong, each told in one sentence."""


class InputError(Exception):
    """Wrong use or wrong input: the sentence says what is wrong, where, and what to do. Exit code 2."""

    exit_code = 2


class DataError(InputError):
    """The data was read and has errors: the findings are in the sentence. Exit code 1."""

    exit_code = 1
