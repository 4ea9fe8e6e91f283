"""A volume larger than one would like goes through prediction in less memory than it has voxels."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Activationsd, AsDiscreted
from pydicom import dcmread
from pydicom.uid import generate_uid

from pipeline import scratch
from pipeline.certificate import certificate_path
from pipeline.inferers import OverlapTileInferer
from pipeline.loading import LoadCased
from pipeline.predict import Predictor
from pipeline.synthetic_series import write_series
from pipeline.volumes import read_volume, write_volume

GIB = 2**30

PREDICT = """
import logging, sys
import torch
from monai.transforms import Activationsd, AsDiscreted, Compose
from pipeline.answers import DicomAnswers
from pipeline.inferers import OverlapTileInferer
from pipeline.intensity import Scaled
from pipeline.loading import LoadCased
from pipeline.predict import Predictor

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
network = torch.nn.Conv3d(1, 2, 3, padding=1)
with torch.no_grad():
    network.weight.zero_()
    network.weight[1, 0, 1, 1, 1], network.bias[:] = 1, torch.tensor([0.0, 0.0])
Predictor(
    network, Compose([LoadCased("image"), Scaled("image", window=[0, 200])]), OverlapTileInferer(memory_gb=0.25),
    Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True), class_names=["background", "block"],
    spatial_dims=3, device="cpu", source=sys.argv[1], output_dir=sys.argv[2],
    dicom=DicomAnswers(["background", "block"], output_format=sys.argv[3]),
).run()
"""
"""A program of its own, so that its memory can be watched: class 1 is what is above 100."""


def write_large_series(folder, shape, block):
    """A CT series of zeros with a block of 150, written slice by slice."""
    width, height, slices = shape
    (first, _) = write_series(np.zeros((4, 4, 2), int), folder / "two", spacing_mm=(0.5, 0.5, 1), patient_id="P")
    dataset = dcmread(first)
    shutil.rmtree(folder / "two")
    dataset.Columns, dataset.Rows = width, height
    dataset.RescaleIntercept = 0
    for z in range(slices):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(z)])
        dataset.InstanceNumber, dataset.ImagePositionPatient = z + 1, [0, 0, z]
        pixels = np.full((height, width), z % 50, "<i2")
        if block[2].start <= z < block[2].stop:
            pixels[block[1], block[0]] = 150
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(folder / f"{z:04d}.dcm")


def anonymous_bytes(pid):
    """Memory of a process that no file stands behind; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("kind", ["seg", "labelmap"])
def test_1024_x_1024_x_600_is_predicted_in_less_than_4_gib(tmp_path, kind):
    """Two bytes per voxel make 1.2 GiB, its logits 4.7 GiB; needs 8 GiB of room in TMPDIR."""
    block = (slice(100, 400), slice(200, 300), slice(250, 350))
    write_large_series(tmp_path / "ct", (1024, 1024, 600), block)
    start, peak = time.monotonic(), 0
    line = [sys.executable, "-c", PREDICT, tmp_path / "ct", tmp_path / "out", kind]
    with (
        (tmp_path / "log").open("w") as output,
        subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
    log = (tmp_path / "log").read_text()
    sys.stdout.write(f"{log}\n{kind}: peak {peak / GIB:.2f} GiB, {time.monotonic() - start:.0f} s\n")
    assert process.returncode == 0, log
    assert " tiles of " in log.splitlines()[0]  # the plan is told first
    (found,) = json.loads(certificate_path(tmp_path / "out/ct.dcm").read_text())["classes"]
    assert found["voxels"] == 300 * 100 * 100
    assert peak < 4 * GIB


def test_what_holds_one_value_per_voxel_lies_in_a_file_and_the_rest_is_one_tile(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 2**15)
    values = np.zeros((40, 50, 60), np.int16)
    values[5:9, 10:30, 40:41] = 150
    write_volume(values, np.diag([-1.0, 1, 1, 1]), tmp_path / "a.nii")
    sizes, made = [], []
    activation, discretisation = Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)

    def seen(item):
        sizes.append(item["pred"].numel())
        return activation(item)

    def recorded(shape, kind):
        made.append(scratch.scratch(shape, kind))
        return made[-1]

    monkeypatch.setattr("pipeline.predict.scratch", recorded)
    network = torch.nn.Conv3d(1, 2, 1)
    torch.nn.init.constant_(network.weight, 1)
    with torch.no_grad():
        network.weight[0], network.bias[:] = 0, torch.tensor([100.0, 0])
    about = {"class_names": ["background", "block"], "spatial_dims": 3, "device": "cpu"}
    inferer = OverlapTileInferer(tile=16, margin=0)
    paths = {"source": str(tmp_path / "a.nii"), "output_dir": str(tmp_path / "out")}
    Predictor(network, LoadCased("image"), inferer, seen, discretisation, **about, **paths).run()
    assert max(sizes) == 2 * 16**3
    assert len(sizes) == 3 * 4 * 4
    assert [type(array) for array in made] == [np.memmap]
    np.testing.assert_array_equal(read_volume(tmp_path / "out/a.nii")[0], values > 100)
