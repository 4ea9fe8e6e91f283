"""Large arrays lie in a file that has no name; small ones in memory."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import scratch
from pipeline.errors import InputError


def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_a_small_array_is_in_memory():
    assert type(scratch.scratch((2, 3), "int16")) is np.ndarray


def test_a_large_array_is_no_memory_of_the_process_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    before = anonymous_bytes()
    array = scratch.scratch((300, 2**20), np.uint8)
    array[:] = 7
    assert isinstance(array, np.memmap)
    assert list(tmp_path.iterdir()) == []
    assert array[299, -1] == 7
    assert anonymous_bytes() < before + 100 * 2**20


def test_a_disk_that_is_too_small_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(
        InputError, match=r"needs 10000000\.0 GB of temporary space, .*: set TMPDIR to a folder on a larger"
    ):
        scratch.scratch((10**7, 10**9), np.uint8)
