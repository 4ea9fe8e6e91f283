"""Large arrays lie in a file that has no name; small ones in memory."""

import numpy as np
import psutil

from pipeline import scratch


def test_a_small_array_is_in_memory():
    assert type(scratch.scratch((2, 3), "int16")) is np.ndarray


def test_a_large_array_is_no_memory_of_the_process_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().memory_full_info().uss
    array = scratch.scratch((300, 2**20), np.uint8)
    array[:] = 7
    anonymous = sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
    assert isinstance(array, np.memmap)
    assert list(tmp_path.iterdir()) == []
    assert array[299, -1] == 7
    assert anonymous < before + 100 * 2**20
