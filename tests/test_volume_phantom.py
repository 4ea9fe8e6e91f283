"""Synthetic patients in 3D: the same places in mm however they are stored, and no flip of them goes unnoticed."""

import nibabel as nib
import numpy as np
import pytest

from pipeline.dicom import read_series
from pipeline.errors import InputError
from pipeline.evaluate import otsu
from pipeline.metrics import dice, overlap_counts
from pipeline.seg import read_segmentation
from pipeline.volume_phantom import ANTERIOR, POSTERIOR, volume_patient, write_volume_patients


def centre_mm(mask, affine):
    return nib.affines.apply_affine(affine, np.argwhere(mask).mean(axis=0))


def test_the_same_seed_makes_the_same_patient():
    one, again, other = volume_patient(7), volume_patient(7), volume_patient(8)
    np.testing.assert_array_equal(one.volume, again.volume)
    assert (one.label != other.label).any()
    assert one.volume.shape == one.label.shape == (40, 56, 40)


@pytest.mark.parametrize("seed", range(4))
def test_a_body_of_two_parts_as_large_as_a_hippocampus(seed):
    label = volume_patient(seed).label
    extent = np.ptp(np.argwhere(label), axis=0) + 1
    assert (np.abs(extent - [13, 25, 12]) <= 4).all()
    anterior, posterior = ((label == value).sum() for value in (ANTERIOR, POSTERIOR))
    assert 1.3 * posterior < anterior < 900
    front, back = (np.argwhere(label == value)[:, 1] for value in (ANTERIOR, POSTERIOR))
    assert front.min() == back.max() + 1  # they touch and do not mix


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_patient_is_another_one(axis):
    label = volume_patient(1).label
    inside = tuple(
        slice(low, high + 1) for low, high in zip(*(f(np.argwhere(label), 0) for f in (np.min, np.max)), strict=True)
    )
    counts = overlap_counts(np.flip(label[inside], axis), label[inside], 3)
    assert np.nanmin(dice(counts)[1:]) < 0.8


def test_intensities_have_another_scale_in_every_patient_and_otsu_fails():
    patients = [volume_patient(seed) for seed in range(6)]
    brightest = [np.percentile(patient.volume, 99) for patient in patients]
    assert max(brightest) > 3 * min(brightest)
    for patient in patients:
        found = otsu(patient.volume.reshape(40, -1), "bright").reshape(patient.label.shape)
        assert dice(overlap_counts(found, (patient.label > 0).astype(np.uint8), 2))[1] < 0.3


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_files_lie_where_the_patient_does(tmp_path, kind):
    write_volume_patients(tmp_path, patients=3, seed=5, kind=kind)
    axes = set()
    for number in range(3):
        name, patient = f"patient_{number + 1:03d}", volume_patient(5000 + number)
        if kind == "nifti":
            image, seg = (nib.load(tmp_path / part / f"{name}.nii.gz") for part in ("images", "labels"))
            volume, label, affine = np.asarray(image.dataobj), np.asarray(seg.dataobj), image.affine
        else:
            series = read_series(tmp_path / name / "mr")
            volume, affine = series.volume, series.affine
            label, _ = read_segmentation(tmp_path / name / "seg.dcm", series=series)
        axes.add(nib.aff2axcodes(affine))
        for value in (ANTERIOR, POSTERIOR):
            place = centre_mm(patient.label == value, patient.affine)
            np.testing.assert_allclose(centre_mm(label == value, affine), place, atol=1e-4)
        assert volume[label == 1].mean() == pytest.approx(patient.volume[patient.label == 1].mean())
    assert len(axes) == 3


def test_every_other_patient_is_stored_left_handed(tmp_path):
    write_volume_patients(tmp_path, patients=4, seed=5)
    affines = [nib.load(path).affine for path in sorted((tmp_path / "images").iterdir())]
    assert [np.linalg.det(affine) > 0 for affine in affines] == [True, False, True, False]


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(InputError, match="as nifti or dicom"):
        write_volume_patients(tmp_path, patients=1, seed=1, kind="nrrd")


def test_the_commands_say_what_they_wrote(overtile, tmp_path):
    code, output = overtile("phantom", "volumes", tmp_path / "mr", "--patients", 1)
    assert (code, output.splitlines()[-1]) == (0, f"1 synthetic patients -> {tmp_path / 'mr'}")
    assert overtile("phantom", "dx", tmp_path / "dx", "--patients", 1, "--size", 48)[0] == 0
    assert (tmp_path / "dx/patient-01/chest.dcm").is_file()
    code, output = overtile("phantom", "volumes", tmp_path / "mr", "--kind", "tiff")
    assert (code, output) == (2, "error: cannot make 20 patients as tiff: at least 1, as nifti or dicom\n")
