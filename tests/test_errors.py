import errno

import pytest

from pipeline.errors import user_error


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "give the user"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.ENOSPC, "make room"),
    ],
)
def test_what_a_site_can_mend_is_a_sentence(number, advice):
    mistake = user_error(OSError(number, "it is so", "/out/run"))
    assert str(mistake).startswith(f"/out/run: it is so; {advice}")
    assert mistake.exit_code == 2


def test_a_defect_of_ours_stays_one():
    assert user_error(OSError(errno.EBADF, "bad file", "/out/run")) is None
    assert user_error(TypeError("x")) is None
