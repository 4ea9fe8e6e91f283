"""A case's files become one tensor convention: pictures as stored, volumes in RAS at the same place in mm."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from nibabel.affines import apply_affine

from pipeline import orientation, volumes
from pipeline.errors import DataError, InputError
from pipeline.loading import LoadCased
from tests.conftest import real

ORIENTATIONS = ["".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)]
LABEL_VALUES = {"0": 0, "1": 1, "2": 2}


def phantom():
    """(4, 5, 6) in RAS, every voxel another number; labels in two corners that no flip or swap leaves in place."""
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 1, 4:] = 1
    labels[3, 0, 0] = 2
    affine = nib.affines.from_matvec(np.diag([2.0, 1.5, 3.0]), [-10, 20, 5])
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])  # 16 degrees about the body's axis
    return np.arange(120, dtype=np.int16).reshape(4, 5, 6), labels, nib.affines.from_matvec(turn) @ affine


def save(array, affine, path, code="RAS"):
    """Store a RAS array along other axes; nibabel's own turning is the oracle."""
    image = nib.Nifti1Image(array, affine)
    target = nib.orientations.axcodes2ornt(code)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target))
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    return path


def test_loading_a_case(phantom_dir):
    load = LoadCased(("image", "label"), {"255": 0, "0": 1})
    item = {"image": str(phantom_dir / "patient-01/image.tif"), "label": str(phantom_dir / "patient-01/label.tif")}
    loaded = load(item | {"page": 2})
    raw = tifffile.imread(item["label"])[2]
    assert loaded["image"].shape == loaded["label"].shape == (1, 64, 64)
    assert loaded["image"].dtype.is_floating_point
    np.testing.assert_array_equal(loaded["image"][0], tifffile.imread(item["image"])[2])
    np.testing.assert_array_equal(loaded["label"][0], raw == 0)


def test_the_real_masks_are_inverted_and_mapped():
    folder = real("isbi2012_em")
    load = LoadCased("label", {"255": 0, "0": 1})
    membrane = load({"label": folder / "train-labels.tif", "page": 0})["label"]
    assert 0.15 < float(membrane.float().mean()) < 0.3


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_a_volume_stored_along_any_axes_is_one_tensor_at_one_place(tmp_path, code):
    image, labels, affine = phantom()
    stored = save(image, affine, tmp_path / "image.nii.gz", code)
    item = {"image": stored, "label": save(labels, affine, tmp_path / "label.nii", code)}
    loaded = LoadCased(["image", "label"], LABEL_VALUES)(item)
    np.testing.assert_array_equal(loaded["image"][0], image)
    np.testing.assert_array_equal(loaded["label"][0], labels)
    np.testing.assert_allclose(loaded["image"].affine, affine, atol=1e-5)

    found, meta = loaded["label"][0].numpy(), loaded["image"].meta
    back = orientation.as_stored(found, loaded["image"].affine.numpy(), meta["stored_affine"])
    volumes.write_volume(back, meta["stored_affine"], tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == nib.load(stored).shape == meta["stored_shape"]
    for value in (1, 2):
        where = apply_affine(written.affine, np.argwhere(np.asarray(written.dataobj) == value))
        expected = apply_affine(affine, np.argwhere(labels == value))
        np.testing.assert_allclose(sorted(where.tolist()), sorted(expected.tolist()), atol=1e-3)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


def test_an_image_and_its_label_may_be_stored_along_different_axes(tmp_path):
    image, labels, affine = phantom()
    item = {
        "image": save(image, affine, tmp_path / "i.nii", "LPS"),
        "label": save(labels, affine, tmp_path / "l.nii", "SAR"),
    }
    np.testing.assert_array_equal(LoadCased(["image", "label"], LABEL_VALUES)(item)["label"][0], labels)


def test_rounding_in_a_header_is_repaired_and_a_shift_is_refused_with_both_affines(tmp_path):
    image, labels, affine = phantom()
    item = {"image": save(image, affine, tmp_path / "i.nii"), "label": tmp_path / "l.nii"}
    near, far = affine.copy(), affine.copy()
    near[0, 3] += 0.01  # of a voxel of 1.5 mm: 0.007
    far[0, 3] += 0.1
    save(labels, near, item["label"])
    loaded = LoadCased(["image", "label"], LABEL_VALUES)(item)
    np.testing.assert_array_equal(loaded["label"].affine, loaded["image"].affine)
    save(labels, far, item["label"])
    with pytest.raises(
        DataError,
        match=r"i\.nii and .*l\.nii lie on different grids \(corners 0\.0667 voxels apart; affines \[.*-15\.2.*\] and",
    ):
        LoadCased(["image", "label"], LABEL_VALUES)(item)
    save(labels[:, :, 1:], affine, item["label"])
    with pytest.raises(DataError, match="4 x 5 x 6 against 4 x 5 x 5 voxels"):
        LoadCased(["image", "label"], LABEL_VALUES)(item)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_lie_where_simpleitk_puts_them(tmp_path, suffix):
    image, labels, affine = phantom()
    path = tmp_path / f"image{suffix}"
    volumes.write_volume(image, affine, path)
    peer = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(peer).T, image)
    corner = peer.TransformIndexToPhysicalPoint((3, 4, 5))  # LPS
    np.testing.assert_allclose(np.array(corner) * (-1, -1, 1), apply_affine(affine, (3, 4, 5)), atol=1e-4)
    volumes.write_volume(labels, affine, tmp_path / f"label{suffix}")
    loaded = LoadCased(["image", "label"], LABEL_VALUES)({"image": path, "label": tmp_path / f"label{suffix}"})
    np.testing.assert_array_equal(loaded["image"][0], image)
    np.testing.assert_allclose(loaded["image"].affine, affine, atol=1e-4)
    np.testing.assert_array_equal(loaded["label"][0], labels)


def test_channels_come_from_several_files_or_from_one_with_four_axes(tmp_path):
    image, _, affine = phantom()
    paths = [save(image + 1000 * n, affine, tmp_path / f"{n}.nii.gz", code) for n, code in enumerate(("RAS", "LIP"))]
    loaded = LoadCased("image")({"image": [str(path) for path in paths]})["image"]
    np.testing.assert_array_equal(loaded, [image, image + 1000])
    volumes.write_volume(np.stack([image, image + 1000]), affine, tmp_path / "both.nii.gz")
    np.testing.assert_array_equal(LoadCased("image")({"image": tmp_path / "both.nii.gz"})["image"], loaded)


def test_a_channel_on_another_grid_is_resampled_only_where_that_is_declared(tmp_path):
    _, _, affine = phantom()
    ramp = np.add.outer(np.add.outer(np.arange(4.0), 10 * np.arange(5.0)), 100 * np.arange(6.0)).astype(np.float32)
    moved = affine @ nib.affines.from_matvec(np.eye(3), [0, 0, -0.5])  # half a voxel down: voxel z is at z - 0.5
    paths = [str(save(ramp, place, tmp_path / f"{n}.nii")) for n, place in enumerate((affine, moved))]
    with pytest.raises(
        DataError, match=r"channel 0 .* and .*1\.nii lie on different grids .*: resample the file to it"
    ):
        LoadCased("image")({"image": paths})
    loaded = LoadCased("image")({"image": paths, "resampled": [1]})["image"]
    np.testing.assert_allclose(loaded[1, :, :, :5], loaded[0, :, :, :5] + 50, atol=1e-3)


def test_a_large_volume_is_loaded_through_a_file(tmp_path, monkeypatch):
    image, _, affine = phantom()
    monkeypatch.setattr("pipeline.scratch.LARGE", 100)
    for module in ("volumes", "loading"):
        monkeypatch.setattr(f"pipeline.{module}.AT_ONCE", 0)
    loaded = LoadCased("image")({"image": save(image, affine, tmp_path / "i.nii.gz", "PIR")})["image"]
    np.testing.assert_array_equal(loaded[0], image)
    holed = np.where(image == 7, np.nan, image).astype(np.float32)
    with pytest.raises(DataError, match="1 pixels are NaN or infinite"):
        LoadCased("image")({"image": save(holed, affine, tmp_path / "n.nii.gz")})


def test_a_volume_read_slice_by_slice_is_the_one_read_in_one_go(tmp_path, monkeypatch):
    image, _, affine = phantom()
    scaled = nib.Nifti1Image(image, affine)
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    volumes.write_volume(np.stack([image, image + 1000]), affine, tmp_path / "both.nii.gz")
    whole = [volumes.read_volume(tmp_path / name)[0] for name in ("scaled.nii.gz", "both.nii.gz")]
    monkeypatch.setattr("pipeline.volumes.AT_ONCE", 0)
    slices = [volumes.read_volume(tmp_path / name)[0] for name in ("scaled.nii.gz", "both.nii.gz")]
    for one, other in zip(whole, slices, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    assert (whole[0].dtype, whole[0].shape, whole[1].shape) == (np.float32, (4, 5, 6), (2, 4, 5, 6))


def test_a_volume_that_does_not_say_how_it_lies_is_refused(tmp_path):
    image, _, affine = phantom()
    unknown = nib.Nifti1Image(image, None)
    nib.save(unknown, tmp_path / "u.nii")
    with pytest.raises(InputError, match=r"u\.nii: its header says neither by sform nor by qform"):
        LoadCased("image")({"image": tmp_path / "u.nii"})
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n\n"
    (tmp_path / "u.nrrd").write_bytes(header + image.T.tobytes())
    with pytest.raises(InputError, match=r"u\.nrrd: its header has no `space`"):
        LoadCased("image")({"image": tmp_path / "u.nrrd"})
    whole = bytearray(save(image, affine, tmp_path / "i.nii").read_bytes())
    whole[312:328] = bytes(16)  # srow_z
    (tmp_path / "flat.nii").write_bytes(whole)
    with pytest.raises(InputError, match=r"flat\.nii: its header describes no volume"):
        LoadCased("image")({"image": tmp_path / "flat.nii"})
    (tmp_path / "cut.nii.gz").write_bytes(save(image, affine, tmp_path / "i.nii.gz").read_bytes()[:80])
    with pytest.raises(InputError, match=r"cut\.nii\.gz: cannot be decoded"):
        LoadCased("image")({"image": tmp_path / "cut.nii.gz"})


def test_a_label_with_a_value_between_two_classes_is_refused(tmp_path):
    image, labels, affine = phantom()
    item = {"image": save(image, affine, tmp_path / "i.nii"), "label": save(labels / 2, affine, tmp_path / "l.nii")}
    with pytest.raises(DataError, match=r"l\.nii: raw label values 0\.5 are not declared"):
        LoadCased(["image", "label"], LABEL_VALUES)(item)


def test_units_in_metres_are_millimetres(tmp_path):
    image = nib.Nifti1Image(phantom()[0], np.diag([0.002, 0.002, 0.003, 1]))
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "m.nii")
    np.testing.assert_allclose(orientation.spacing_mm(volumes.read_geometry(tmp_path / "m.nii").affine), [2, 2, 3])
