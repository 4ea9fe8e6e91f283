import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import pixel_array

from pipeline import dicom
from pipeline.errors import InputError
from pipeline.evaluate import otsu
from pipeline.metrics import dice, overlap_counts
from pipeline.phantom import em_stack, write_ct_patient, write_dx_patients, write_em_patients


def test_the_same_seed_makes_the_same_patient():
    first, again, other = em_stack(7, 2, 48), em_stack(7, 2, 48), em_stack(8, 2, 48)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).mean() > 0.9


def test_labels_are_raw_0_and_255_with_a_fifth_of_membrane():
    _, labels = em_stack(1, 2, 128)
    assert set(np.unique(labels)) == {0, 255}
    assert 0.1 < (labels == 0).mean() < 0.35


def test_neighbouring_sections_look_alike():
    _, labels = em_stack(3, 9, 128)
    near, far = ((labels[0] == labels[n]).mean() for n in (1, 8))
    assert near > far + 0.03


def test_otsu_fails_on_it():
    scores = []
    for seed in range(6):
        images, labels = em_stack(seed, 1, 128)
        scores.append(dice(overlap_counts(otsu(images[0], "dark"), (labels[0] == 0).astype(np.uint8), 2))[1])
    assert max(scores) < 0.7


def test_files_of_a_patient(tmp_path):
    write_em_patients(tmp_path, patients=2, sections=3, size=32, seed=5)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.tif")) == [
        "patient-01/image.tif", "patient-01/label.tif", "patient-02/image.tif", "patient-02/label.tif",
    ]  # fmt: skip
    assert tifffile.imread(tmp_path / "patient-02/image.tif").shape == (3, 32, 32)
    with pytest.raises(InputError, match="at least 1, 1 and 32"):
        write_em_patients(tmp_path, patients=0, sections=3, size=32, seed=5)


def test_the_ct_series_comes_back_in_hounsfield_units(tmp_path):
    label = write_ct_patient(tmp_path / "ct", seed=1)
    volume = dicom.read_series(tmp_path / "ct").volume
    assert volume.shape == label.shape == (64, 48, 20)
    assert volume[label == 1].mean() == pytest.approx(180, abs=1)
    assert volume.min() == -1000


def test_projections_come_inverted_and_not_with_lungs_dark_as_seen(tmp_path):
    write_dx_patients(tmp_path, patients=3, size=64, seed=1)
    kinds = set()
    for home in sorted(tmp_path.iterdir()):
        header = dcmread(home / "chest.dcm")
        lungs = np.asarray(Image.open(home / "lungs.png")) == 255
        stored = pixel_array(header).astype(int)
        seen = 4095 - stored if header.PhotometricInterpretation == "MONOCHROME1" else stored
        assert seen[lungs].mean() < seen[~lungs].mean() - 300
        assert 0.1 < lungs.mean() < 0.4
        kinds.add((header.Modality, header.PhotometricInterpretation))
    assert kinds == {("DX", "MONOCHROME1"), ("CR", "MONOCHROME1"), ("DX", "MONOCHROME2")}
    with pytest.raises(InputError, match="at least 1 and 32"):
        write_dx_patients(tmp_path, patients=1, size=16, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_network_succeeds_where_otsu_fails(tmp_path):
    from pipeline import bundle
    from pipeline import manifest as manifests
    from pipeline.split import split_by_patient
    from tests.conftest import index_phantom

    write_em_patients(tmp_path, patients=10, sections=4, size=192, seed=1)
    manifest = split_by_patient(index_phantom(tmp_path), (0.6, 0.2, 0.2), seed=1)
    manifests.write(manifest, tmp_path / "manifest.json")
    common = {"manifest": str(tmp_path / "manifest.json"), "output_dir": str(tmp_path / "run")}
    fast = {"epochs": 6, "patch": 128, "patches_per_case": 4, "learning_rate": 0.003, "log_model": False}
    bundle.run(bundle.find("neuron_em_segmentation"), "training", common | fast)
    bundle.run(bundle.find("neuron_em_segmentation"), "evaluating", common)
    summary = json.loads((tmp_path / "run/evaluation.json").read_text())["summary"]
    assert summary["network"]["dice"]["membrane"] > 0.75
    assert summary["otsu"]["dice"]["membrane"] < 0.6
