"""Series and segmentations keep their numbers and their place in the patient; what is no volume is refused."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread

from pipeline import dicom_files, dicom_pixels
from pipeline.dicom import read_image, read_series
from pipeline.dicom_files import find_series, is_dicom
from pipeline.errors import InputError
from pipeline.regular import Refused
from pipeline.seg import read_segmentation, write_segmentation
from pipeline.synthetic_series import write_series

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
DCMQI, HIGHDICOM = SHARED / "dicomseg_dcmqi", SHARED / "dicomseg_highdicom"

# columns: one step along X, Y, Z in mm (right, front, head) and the place of voxel (0, 0, 0)
AXIAL = np.array([[-2.0, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]])
REVERSED = np.array([[2.0, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, -3, -30], [0, 0, 0, 1]])
CORONAL = np.array([[-2.0, 0, 0, 10], [0, 0, -3, 20], [0, -1.5, 0, -30], [0, 0, 0, 1]])
TILTED_HEAD = np.array([[-1.6, -0.9, 0, 10], [1.2, -1.2, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1]])
ORIENTATIONS = pytest.mark.parametrize(
    "affine", [AXIAL, REVERSED, CORONAL, TILTED_HEAD], ids=["axial", "reversed", "coronal", "oblique"]
)


def make_volume():
    return np.arange(4 * 5 * 6).reshape(4, 5, 6) - 50  # every voxel another number, -50 to 69 HU


def make_block():
    """Classes 1 and 2 in one corner, so that no flip or swap of axes leaves them in place."""
    labels = np.zeros((4, 5, 6), np.int64)
    labels[0:2, 1:2, 3:5] = 1
    labels[2, 1, 3] = 2
    return labels


def write(volume, folder, affine=AXIAL, **options):
    steps, position = affine[:3, :3], tuple(affine[:3, 3])
    spacing = np.linalg.norm(steps, axis=0)
    place = {"spacing_mm": tuple(spacing), "direction": steps / spacing, "position_mm": position}
    return write_series(volume, folder, patient_id="PHANTOM1", **place, **options)


def make_series(folder, affine=AXIAL, **options):
    write(make_volume(), folder, affine, **options)
    return folder


def write_seg(labels, series, path, class_names=("liver", "tumour")):
    write_segmentation(labels, series, path, class_names=class_names, version="0.1")
    return path


def centre_mm(mask, affine):
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def edit(path, **values):
    dataset = dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def file_of_slice(folder, z):
    return next(path for path in folder.iterdir() if dcmread(path).InstanceNumber == z + 1)


# ---- a series, there and back


@ORIENTATIONS
def test_a_written_series_reads_back_exactly(tmp_path, affine):
    series = read_series(make_series(tmp_path / "ct", affine))
    assert series.volume.dtype == np.int16
    np.testing.assert_array_equal(series.volume, make_volume())
    np.testing.assert_allclose(series.affine, affine, atol=1e-12)
    np.testing.assert_allclose(series.spacing_mm, np.linalg.norm(affine[:3, :3], axis=0))


def test_a_left_handed_volume_comes_back_with_z_reversed_at_the_same_place(tmp_path):
    downwards = AXIAL @ np.diag([1, 1, -1, 1])
    series = read_series(make_series(tmp_path / "ct", downwards))
    np.testing.assert_array_equal(series.volume, make_volume()[:, :, ::-1])
    np.testing.assert_allclose(series.affine @ [0, 0, 5, 1], downwards @ [0, 0, 0, 1])


def test_without_a_direction_a_series_is_axial(tmp_path):
    write_series(make_volume(), tmp_path, spacing_mm=(2, 1.5, 3), patient_id="P")
    np.testing.assert_array_equal(read_series(tmp_path).affine, np.diag([-2, -1.5, 3, 1]))


def test_the_files_of_a_series_are_not_in_the_order_of_its_slices(tmp_path):
    files = write(make_volume(), tmp_path)
    assert [path.name for path in files] != sorted(path.name for path in files)
    assert [dcmread(path).ImagePositionPatient[2] for path in files] == [-30, -27, -24, -21, -18, -15]


def test_the_same_arguments_write_the_same_bytes_and_another_seed_another_series(tmp_path):
    one, two, three = (make_series(tmp_path / str(i), seed=seed) for i, seed in enumerate((7, 7, 8)))
    assert [path.read_bytes() for path in find_series(one)] == [path.read_bytes() for path in find_series(two)]
    assert read_series(one).sources[0].SeriesInstanceUID != read_series(three).sources[0].SeriesInstanceUID


def test_sources_are_headers_in_the_order_of_z(tmp_path):
    sources = read_series(make_series(tmp_path / "ct")).sources
    assert [source.InstanceNumber for source in sources] == [1, 2, 3, 4, 5, 6]
    assert not any("PixelData" in source for source in sources)


@pytest.mark.parametrize(
    ("volume", "affine", "sentence"),
    [
        (make_volume() + 0.5, AXIAL, "round the volume first"),
        (make_volume() + 32000, AXIAL, "stores -33792 to 31743 HU, got 31950 to 32069: clip it first"),
        (make_volume()[0], AXIAL, r"shape \(X, Y, Z\), got \(5, 6\)"),
        (make_volume(), AXIAL + np.eye(4, k=2), "at right angles"),
    ],
)
def test_a_volume_that_no_series_can_hold_is_refused(tmp_path, volume, affine, sentence):
    with pytest.raises(InputError, match=sentence):
        write(volume, tmp_path / "ct", affine)
    assert not (tmp_path / "ct").exists()


def test_a_second_series_is_not_written_into_the_same_folder(tmp_path):
    with pytest.raises(InputError, match="is not empty"):
        make_series(make_series(tmp_path / "ct"), seed=1)


# ---- what is under a folder


def test_other_files_and_segmentations_beside_a_series_are_passed_over(tmp_path):
    folder = make_series(tmp_path / "ct")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").touch()
    write_seg(make_block(), read_series(folder), folder / "liver.dcm")
    assert len(find_series(folder)) == 6
    np.testing.assert_array_equal(read_series(folder).volume, make_volume())


def test_a_folder_without_a_series_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path} holds no DICOM image")):
        find_series(tmp_path)
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        find_series(tmp_path / "nowhere")


def test_two_series_under_a_folder_are_refused_by_name(tmp_path):
    make_series(tmp_path / "a")
    make_series(tmp_path / "b", seed=1)
    with pytest.raises(InputError, match=r"holds 2 series.*\(6 files, e\.g\. a/00000\.dcm\).*e\.g\. b/00000"):
        read_series(tmp_path)


def test_a_file_cut_short_is_refused_by_name(tmp_path):
    folder = make_series(tmp_path / "ct")
    whole = (folder / "00003.dcm").read_bytes()
    (folder / "00003.dcm").write_bytes(whole[:400])
    with pytest.raises(InputError, match=r"00003\.dcm names no series \(cut short\?\)"):
        read_series(folder)
    (folder / "00003.dcm").write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"00003\.dcm is cut short, it has 32 of 40 bytes of pixels"):
        read_series(folder).volume  # noqa: B018


def test_of_several_series_the_one_that_is_asked_for_is_read(tmp_path):
    one, two = make_series(tmp_path / "one"), make_series(tmp_path / "two", REVERSED, seed=1)
    for path in two.iterdir():
        path.rename(one / f"two_{path.name}")
    (one / "damaged.dcm").write_bytes((one / "00001.dcm").read_bytes()[:400])
    uids = {dcmread(one / name).SeriesInstanceUID: name for name in ("00000.dcm", "two_00000.dcm")}
    affines = [read_series(one, uid).affine for uid in uids]
    np.testing.assert_allclose(affines, [AXIAL, REVERSED])
    assert len(find_series(one, next(iter(uids)))) == 6
    with pytest.raises(InputError, match=r"holds no image of series 1\.2\.3: index the data again"):
        read_series(one, "1.2.3")


def test_the_headers_of_a_folder_are_scanned_once_until_a_file_changes(tmp_path, monkeypatch):
    folder, read = make_series(tmp_path / "ct"), []
    scan = dicom_files.series_of
    monkeypatch.setattr(dicom_files, "series_of", lambda path: read.append(path.name) or scan(path))
    for _ in range(3):
        assert len(find_series(folder)) == 6
    assert len(read) == 6
    edit(folder / "00003.dcm", PatientComments="changed")
    shutil.copy(folder / "00001.dcm", folder / "new.dcm")
    assert len(find_series(folder)) == 7
    assert len(read) == 6 + 7


def test_headers_alone_tell_where_a_series_lies(tmp_path, monkeypatch):
    folder = make_series(tmp_path / "ct")
    monkeypatch.setattr(dicom_pixels, "read_values", None)
    series = read_series(folder)
    assert (series.shape, series.spacing_mm) == ((4, 5, 6), (2, 1.5, 3))


def test_grid_and_values_are_those_of_highdicom(tmp_path):
    files = write(make_volume(), tmp_path, TILTED_HEAD)
    for z, path in enumerate(files):
        edit(path, RescaleSlope=1.25 + z, RescaleIntercept=-3)  # as in PET
    series = read_series(tmp_path)
    expected = hd.get_volume_from_series([dcmread(path) for path in files])[::-1]  # which counts against the normal
    np.testing.assert_allclose(series.volume.T, expected.array, rtol=1e-6)
    np.testing.assert_allclose(series.grid.affine, expected.affine, atol=1e-12)
    assert series.grid.spatial_shape == expected.spatial_shape


def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_a_large_series_is_read_without_a_second_copy_in_memory(tmp_path, monkeypatch):
    read_series(make_series(tmp_path / "small"))  # what libraries allocate once is no part of the measure
    [first, *_] = write(np.ones((512, 512, 1)), tmp_path / "large")
    slice_, frames, held = dcmread(first), 60, []
    for z in range(1, frames):
        slice_.ImagePositionPatient[2], slice_.SOPInstanceUID = 3 * z - 30, f"1.2.{z}"
        slice_.save_as(tmp_path / "large" / f"{z}.dcm")
    decode = dicom_pixels.read_values
    monkeypatch.setattr(dicom_pixels, "read_values", lambda h: (held.append(anonymous_bytes()), decode(h))[1])
    monkeypatch.setattr("pipeline.scratch.LARGE", 2**20)
    volume = read_series(tmp_path / "large").volume
    assert volume.nbytes == 30 * 2**20
    assert volume.min() == volume.max() == 1
    assert max(held) - held[0] < 6 * 2**20


# ---- a single image


def write_projection(path, **attributes):
    dataset = dcmread(write(make_volume()[:, :, :1], path.parent / f"slice of {path.name}")[0])
    del dataset.PixelSpacing, dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.Modality = "DX"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def test_a_projection_has_rows_as_stored_and_white_on_black(tmp_path):
    path = write_projection(tmp_path / "dx.dcm", PhotometricInterpretation="MONOCHROME1")
    picture = read_image(path)
    assert (picture.pixels.shape, picture.pixels.dtype, picture.path) == ((5, 4), np.float32, path)
    # -32768 to 32767 stored, minus 1024: low and high are -33792 and 31743 HU, which add up to -2049
    np.testing.assert_array_equal(picture.pixels, -2049 - make_volume()[:, :, 0].T)
    assert "PixelData" not in picture.header


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({}, None),
        ({"NominalScannedPixelSpacing": [0.3, 0.4]}, (0.3, 0.4)),
        ({"ImagerPixelSpacing": [0.2, 0.1], "NominalScannedPixelSpacing": [0.3, 0.4]}, (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25}, (0.16, 0.08)),
        ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.15, 0.16]}, (0.15, 0.16)),
        ({"PixelSpacing": [0.15, 0.15], "EstimatedRadiographicMagnificationFactor": 1.25}, (0.15, 0.15)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0, 0]}, None),
    ],
)
def test_the_spacing_of_a_projection_is_by_the_standard_s_precedence(tmp_path, attributes, spacing):
    assert read_image(write_projection(tmp_path / "dx.dcm", **attributes)).spacing_mm == pytest.approx(spacing)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"NumberOfFrames": 2}, r"dx\.dcm is multi-frame: export its frames as single images"),
        ({"Modality": "SEG"}, r"dx\.dcm is no image but SEG"),
        ({"PhotometricInterpretation": "RGB"}, r"dx\.dcm is in colour"),
    ],
)
def test_what_is_no_single_grey_image_is_refused(tmp_path, attributes, sentence):
    with pytest.raises(Refused, match=sentence):
        read_image(write_projection(tmp_path / "dx.dcm", **attributes))


def test_training_and_inference_load_a_projection_and_one_series_of_several(tmp_path):
    from pipeline.loading import LoadCased  # MONAI takes seconds

    path = write_projection(tmp_path / "IM0001")
    picture = LoadCased(keys="image")({"image": str(path)})["image"]
    np.testing.assert_array_equal(picture, read_image(path).pixels[None])
    folder = make_series(tmp_path / "study" / "axial").parent
    coronal = make_series(folder / "coronal", CORONAL, seed=1)
    uid = read_series(coronal).sources[0].SeriesInstanceUID
    volume = LoadCased(keys="image")({"image": str(folder), "series": uid})["image"]
    assert volume.shape == (1, 4, 6, 5)  # X, Z and Y of the file are the axes nearest to RAS
    np.testing.assert_allclose(volume.meta["stored_affine"], CORONAL)


def test_dicom_is_known_by_its_content(tmp_path):
    path = write_projection(tmp_path / "IM0001")
    (tmp_path / "notes.dcm").write_text("not DICOM")
    assert [is_dicom(p) for p in (path, tmp_path / "notes.dcm", tmp_path, tmp_path / "none")] == [True] + 3 * [False]
    with pytest.raises(Refused, match=r"notes\.dcm is not a DICOM file"):
        read_image(tmp_path / "notes.dcm")


# ---- what is no volume


def test_a_missing_slice_is_refused_with_its_neighbours(tmp_path):
    folder = make_series(tmp_path / "ct")
    file_of_slice(folder, 2).unlink()
    with pytest.raises(InputError, match=r"6\.00 mm from 00003\.dcm to 00000\.dcm, but 3\.00 mm between most"):
        read_series(folder)


def test_a_slice_that_is_there_twice_is_refused_by_name(tmp_path):
    folder = make_series(tmp_path / "ct")
    shutil.copy(folder / "00001.dcm", folder / "copy.dcm")
    edit(folder / "copy.dcm", SOPInstanceUID="1.2.3")
    with pytest.raises(InputError, match=r"00001\.dcm and copy\.dcm lie at the same place: remove the copy"):
        read_series(folder)


def test_a_slice_of_another_orientation_is_refused_by_name(tmp_path):
    folder = make_series(tmp_path / "ct")
    edit(folder / "00003.dcm", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    with pytest.raises(InputError, match=r"differ in ImageOrientationPatient, 00000\.dcm.*00003\.dcm"):
        read_series(folder)


def test_orientations_that_differ_by_rounding_are_one_volume(tmp_path):
    folder = make_series(tmp_path / "ct")
    edit(folder / "00003.dcm", ImageOrientationPatient=[1, 0.000001, 0, 0, 1, 0])
    np.testing.assert_array_equal(read_series(folder).volume, make_volume())


def test_a_place_rounded_by_a_fraction_of_a_pixel_is_no_tilt(tmp_path):
    folder = make_series(tmp_path / "ct")
    edit(file_of_slice(folder, 1), ImagePositionPatient=[-9.8, -20, -27])  # 0.2 mm aside, 3.8 degrees from slice 0
    np.testing.assert_array_equal(read_series(folder).affine, AXIAL)


@pytest.mark.parametrize("degrees", [2, 20])
def test_a_tilted_gantry_is_refused_even_at_angles_that_highdicom_accepts(tmp_path, degrees):
    folder = make_series(tmp_path / "ct")
    for z in range(6):
        shift = 3 * z * np.tan(np.radians(degrees))
        edit(file_of_slice(folder, z), ImagePositionPatient=[-10, -20 + round(shift, 3), -30 + 3 * z])
    with pytest.raises(InputError, match=rf"lies {15 * np.tan(np.radians(degrees)):.2f} mm from its place"):
        read_series(folder)


def test_one_slice_has_no_slice_distance(tmp_path):
    write(make_volume()[:, :, :1], tmp_path)
    with pytest.raises(InputError, match="holds one slice"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"NumberOfFrames": 40}, "is multi-frame"),
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"Rows": 6}, "differ in Rows"),
        ({"FrameOfReferenceUID": "1.2.3"}, "differ in FrameOfReferenceUID"),
    ],
)
def test_a_slice_that_fits_no_volume_is_refused_by_name(tmp_path, values, sentence):
    folder = make_series(tmp_path / "ct")
    edit(folder / "00003.dcm", **values)
    with pytest.raises(InputError, match=rf"00003\.dcm.*{sentence}|{sentence}.*00003\.dcm"):
        read_series(folder)


# ---- judged by others


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian dicom3tools) is not installed")
def test_dciodvfy_has_no_complaint(tmp_path):
    for path in find_series(make_series(tmp_path / "ct")):
        told = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=True)
        assert not re.search("Error|Warning", told.stdout + told.stderr)


# ---- real series


def real_series(folder, files, tmp_path):
    """A copy of some files in a folder of their own; the test is skipped where the data is not at hand."""
    if not (folder / files[0]).is_file():
        pytest.skip(f"{folder.name} is not at hand")
    for name in files:
        shutil.copy(folder / name, tmp_path)
    return tmp_path


def read_nrrd(path):
    """Voxels (X, Y, Z) of a gzipped NRRD of 16-bit integers."""
    header, _, data = path.read_bytes().partition(b"\n\n")
    fields = dict(re.findall(r"^([\w ]+): (.*?)\r?$", header.decode(), flags=re.MULTILINE))
    assert (fields["type"], fields["encoding"], fields["endian"]) == ("short", "gzip", "little")
    sizes = [int(size) for size in fields["sizes"].split()]
    return np.frombuffer(gzip.decompress(data), "<i2").reshape(sizes, order="F")


def test_the_folder_of_dcmqi_as_it_stands_holds_two_series():
    if not DCMQI.is_dir():
        pytest.skip("dicomseg_dcmqi is not at hand")
    with pytest.raises(InputError, match=r"holds 2 series.*01\.dcm.*23x38x3/IMG0001\.dcm"):
        find_series(DCMQI)
    with pytest.raises(InputError, match=r"partial_overlaps\.dcm .*segments overlap"):
        read_segmentation(DCMQI / "partial_overlaps.dcm")


def test_the_series_of_highdicom_has_a_gap_that_its_segmentation_has_not(tmp_path):
    names = ["17106", "17136", "17166", "17196"]
    folder = real_series(HIGHDICOM / "pydicom_77654033_CT2", names, tmp_path)
    with pytest.raises(InputError, match=r"202\.50 mm from 17106 to 17136, but 1\.25 mm between most"):
        read_series(folder)
    (folder / "17106").unlink()
    labels, _ = read_segmentation(HIGHDICOM / "seg_image_ct_binary.dcm", series=read_series(folder))
    assert labels.shape == (16, 16, 3)
