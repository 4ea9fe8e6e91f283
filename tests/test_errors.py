import errno
from pathlib import Path

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


def test_a_full_disk_names_no_file():
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("w") as full:
        full.write("x" * 100_000)
    assert str(user_error(caught.value)) == "No space left on device; make room, or choose another folder"


def test_a_wrong_argument_of_a_network_is_a_sentence():
    from pipeline.networks import UNet

    with pytest.raises(ValueError, match="padding") as caught:
        UNet(2, 1, 2, padding="same")
    assert "padding" in str(user_error(caught.value))
    assert user_error(ValueError("somebody else's")) is None


def test_a_defect_of_ours_stays_one():
    assert user_error(OSError(errno.EBADF, "bad file", "/out/run")) is None
    assert user_error(TypeError("x")) is None
