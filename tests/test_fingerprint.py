import json
import shlex

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline import bundle, manifest
from pipeline.bundle import parse_overrides
from pipeline.cautions import cautions
from pipeline.errors import DataError, InputError
from pipeline.fingerprint import fingerprint
from pipeline.patch_size import Step, ladder, largest, levels, most_patches
from pipeline.proposal import is_ct, propose, target_spacing_mm, words
from tests.conftest import ROOT, real
from tests.test_dicom import write_projection

CUBE = (16, 16, 16)


def volume(folder, name, array, spacing_mm=(1, 1, 1)):
    nib.save(nib.Nifti1Image(array, np.diag([*spacing_mm, 1.0])), folder / name)
    return name


def case(folder, name, *, size=CUBE, spacing_mm=(1, 1, 1), scale=1, dtype=np.int16, lesion=4):
    """Intensities 0, 1, 2, ... times `scale`; the first `lesion` voxels are class 1."""
    image = (np.arange(np.prod(size)).reshape(size) * scale).astype(dtype)
    label = (np.arange(np.prod(size)) < lesion).reshape(size).astype(np.uint8)
    return {
        "id": name,
        "patient": name,
        "image": volume(folder, f"{name}.nii.gz", image, spacing_mm),
        "label": volume(folder, f"{name}_label.nii.gz", label, spacing_mm),
    }


def written(folder, cases, *, places=None, **changes):
    fields = {
        "name": "made up",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "lesion"},
        "label_values": {"0": 0, "1": 1},
    }
    path = folder / "m.json"
    path.write_text(json.dumps(fields | (places or {"training": cases}) | changes))
    return path


def made(folder, *cases, **changes):
    return fingerprint(written(folder, [case(folder, f"c{n}", **how) for n, how in enumerate(cases)], **changes))


def test_a_case_is_described_by_numbers_that_one_can_check(tmp_path):
    (row,) = made(tmp_path, {"size": (10, 10, 10), "spacing_mm": (1, 2, 3), "lesion": 5}).cases
    assert (row.size, row.spacing_mm, row.dtype) == ((10, 10, 10), (1, 2, 3), "int16")
    (values,) = row.intensities
    assert (values.minimum, values.maximum, values.mean) == (0, 999, 499.5)
    assert values.percentiles == pytest.approx(np.percentile(np.arange(1000), [0.5, 5, 50, 95, 99.5]), rel=1e-5)
    assert row.foreground[0].mean == 2  # of 0, 1, 2, 3, 4
    assert (row.voxels, row.parts) == ({"background": 995, "lesion": 5}, {"lesion": 1})
    assert row.amount("lesion") == pytest.approx(0.03)  # 5 voxels of 6 cubic mm


def test_a_volume_is_described_along_the_axes_of_the_patient(tmp_path):
    turned = np.array([[0, 0, -3, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), turned), tmp_path / "a.nii")
    (row,) = fingerprint(written(tmp_path, [{"id": "a", "patient": "a", "image": "a.nii"}])).cases
    assert (row.size, row.spacing_mm) == ((6, 4, 5), (3, 1, 2))
    assert row.voxels is row.parts is row.foreground is row.amount("lesion") is None


def test_parts_of_a_class_touch_at_corners(tmp_path):
    label = np.zeros((8, 8), np.uint8)
    label[0, 0] = label[1, 1] = label[5, 5] = 1
    Image.fromarray(label).save(tmp_path / "l.png")
    tifffile.imwrite(tmp_path / "i.tif", np.zeros((8, 8), np.uint16))
    one = {"id": "a", "patient": "a", "image": "i.tif", "label": "l.png"}
    (row,) = fingerprint(written(tmp_path, [one], spacing_mm=[0.5, 0.5])).cases
    assert (row.size, row.dtype, row.parts, row.amount("lesion")) == ((8, 8), "uint16", {"lesion": 2}, 0.75)


def test_a_single_dicom_image_says_its_spacing(tmp_path):
    write_projection(tmp_path / "IM1", ImagerPixelSpacing=[0.2, 0.1])
    (row,) = fingerprint(written(tmp_path, [{"id": "a", "patient": "a", "image": "IM1"}], spacing_mm=[9, 9])).cases
    assert row.spacing_mm == (0.2, 0.1)


def test_large_volumes_are_sampled_and_the_sample_is_the_same_again(tmp_path):
    one, again = (made(tmp_path, {"size": (100, 100, 30), "dtype": np.int32, "lesion": 200_000}) for _ in range(2))
    assert one == again
    assert one.cases[0].intensities[0].percentiles[2] == pytest.approx(150_000, rel=0.02)
    assert one.cases[0].foreground[0].percentiles[2] == pytest.approx(100_000, rel=0.02)


def test_validation_and_test_are_never_opened(tmp_path):
    seen = case(tmp_path, "seen")
    absent = [{"id": name, "patient": name, "image": f"{name}.nii"} for name in ("v", "t", "u")]
    places = {"training": [seen], "validation": absent[:1], "test": absent[1:2], "unassigned": absent[2:]}
    found = fingerprint(written(tmp_path, [], places=places))
    assert ([row.id for row in found.cases], found.partition, found.left_out) == (["seen"], "training", 1)


def test_a_manifest_that_is_not_split_is_looked_at_as_a_whole_and_that_is_said(tmp_path):
    found = fingerprint(written(tmp_path, [], places={"unassigned": [case(tmp_path, "a"), case(tmp_path, "b")]}))
    assert found.partition == "unassigned"
    assert "not split: all 2 cases" in cautions(found, propose(found, 8, width=4))[0]


def test_of_a_fold_the_training_cases_are_read(tmp_path):
    cases = [case(tmp_path, name) | {"fold": fold} for name, fold in (("a", 1), ("b", 2), ("c", 2))]
    split = {"by": "patient", "folds": 2, "seed": 1, "validation": 0.5}
    path = written(tmp_path, [], places={"unassigned": cases}, split=split)
    first = manifest.read(f"{path}#1")
    assert [row.id for row in fingerprint(f"{path}#1").cases] == [row.id for row in first.training] != ["a"]
    with pytest.raises(InputError, match="#1"):
        fingerprint(path)


def test_mistakes_are_told_by_case(tmp_path):
    cases = [case(tmp_path, "good"), {"id": "gone", "patient": "p", "image": "gone.nii"}]
    with pytest.raises(InputError, match=r"case gone: .*gone.nii: no such file"):
        fingerprint(written(tmp_path, cases))
    with pytest.raises(DataError, match="case good: 1 channels, the manifest names 2"):
        fingerprint(written(tmp_path, cases[:1], modality={"0": "T1", "1": "T2"}))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "i.png")
    with pytest.raises(DataError, match="images and volumes"):
        fingerprint(written(tmp_path, [cases[0], {"id": "p", "patient": "p", "image": "i.png"}]))


def test_levels_and_patches():
    assert [levels(size) for size in ([35, 50, 36], [7, 99], [64, 64, 64], [512, 512])] == [4, 1, 5, 5]
    rungs = list(ladder([35, 50, 36], [1, 1, 1]))
    assert rungs[:3] == [((40, 56, 40), 4), ((40, 48, 40), 4), ((40, 40, 40), 4)]
    assert rungs[-1] == ((8, 8, 8), 2)
    assert all(n % 2 ** (depth - 1) == 0 and n >= 4 * 2 ** (depth - 1) for patch, depth in rungs for n in patch)


def test_the_longest_side_in_mm_shrinks_first():
    rungs = [patch for patch, _ in ladder([80, 80, 80], [1, 1, 5])]
    assert rungs[:3] == [(80, 80, 80), (80, 80, 64), (64, 80, 64)]


def test_the_largest_patch_and_batch_that_fit_are_taken():
    step = Step(channels=1, classes=2, width=8, keywords={"padding": "zeros"})
    rungs = list(ladder([64, 64, 64], None))
    patch, depth = largest(rungs, step, 150e6)
    larger = rungs[rungs.index((patch, depth)) - 1]
    assert step.bytes(patch, depth) <= 150e6 < step.bytes(*larger)
    batch = most_patches(step, patch, depth, 300e6, 1e9)
    assert step.bytes(patch, depth, batch) <= 300e6 < step.bytes(patch, depth, batch + 1)
    assert most_patches(step, patch, depth, 300e6, 0) == 2
    with pytest.raises(InputError, match=r"0.01 GB do not hold one step of 2 patches of 8 x 8 x 8 with width 8"):
        largest(rungs, step, 1e7)


def test_a_coarse_axis_gets_a_fine_spacing(tmp_path):
    thick = [{"size": (32, 32, 8), "spacing_mm": (1, 1, mm)} for mm in (4, 5, 6, 7, 8)]
    assert target_spacing_mm(made(tmp_path, *thick)) == [1, 1, pytest.approx(np.percentile([4, 5, 6, 7, 8], 10))]
    thin = [{"size": (32, 32, 8), "spacing_mm": (1, 1, mm)} for mm in (1, 2, 3)]
    assert target_spacing_mm(made(tmp_path, *thin)) == [1, 1, 2]


def test_sizes_are_those_at_the_spacing(tmp_path):
    found = made(
        tmp_path, {"size": (16, 16, 16)}, {"size": (16, 16, 16)}, {"spacing_mm": (2, 2, 2), "size": (20, 20, 20)}
    )
    plan = propose(found, 8, width=4)
    assert (plan.spacing_mm, plan.median_size, plan.patch, plan.depth) == ([1, 1, 1], [16, 16, 16], [16, 16, 16], 3)
    assert plan.cases_gb == pytest.approx((2 * 16**3 + 40**3) * 5 / 1e9)


def test_cases_smaller_than_the_patch_are_counted(tmp_path):
    found = made(tmp_path, {}, {"size": (16, 9, 16)}, {})
    assert cautions(found, propose(found, 8, width=4)) == [
        "Smaller than the patch along some axis, and so padded: 1 of 3 cases (c1)."
    ]


def test_ct_gets_the_window_of_its_foreground(tmp_path):
    plan = propose(made(tmp_path, {"lesion": 1001}, modality={"0": "CT"}), 8, width=4)
    assert (plan.window, plan.percentiles) == ([5, 995], None)  # of 0, 1, ... 1000
    mr = made(tmp_path, {})
    assert (propose(mr, 8, width=4).window, propose(mr, 8, width=4).percentiles) == (None, [0.5, 99.5])


@pytest.mark.parametrize(
    ("name", "ct"), [("CT", True), ("ct-portal", True), ("CTA", True), ("PET/CT", False), ("ACT", False)]
)
def test_what_is_ct(tmp_path, name, ct):
    assert is_ct(made(tmp_path, {}, modality={"0": name})) is ct


def test_the_command_can_be_pasted(tmp_path):
    plan = propose(made(tmp_path, {}), 8, width=4)
    line, missing = words(plan, "my data/m.json", dataset_dir="my data/v")
    assert parse_overrides(shlex.split(line)[4:]) == {
        "manifest": "my data/m.json",
        "dataset_dir": "my data/v",
        "patch": [16, 16, 16],
        "depth": 3,
        "width": 4,
        "batch_size": 2,
        "spacing_mm": [1.0, 1.0, 1.0],
        "percentiles": [0.5, 99.5],
    }
    assert missing == []
    line, missing = words(plan, "m.json", bundle="B", settings={"depth": 5, "width": 8, "window": [0, 1]})
    assert parse_overrides(shlex.split(line)[4:]) == {"manifest": "m.json", "depth": 3, "width": 4, "window": None}
    assert missing == ["patch", "batch_size", "spacing_mm", "percentiles"]


@pytest.mark.parametrize("folder", sorted((ROOT / "bundles").iterdir()), ids=lambda folder: folder.name)
def test_a_bundle_takes_what_is_proposed_for_it(tmp_path, folder):
    deployed, trained = bundle.settings(folder, "predicting"), bundle.settings(folder, "training")
    channels = {str(n): "MR" for n in range(deployed["in_channels"])}
    images = [np.zeros((64, 48, *[3] * (len(channels) == 3)), np.uint8), np.zeros((17, 16, 16), np.uint8)]
    if deployed["spatial_dims"] == 2:
        Image.fromarray(images[0]).save(tmp_path / "i.png")
    one = {"id": "a", "patient": "a", "image": "i.png"}
    if deployed["spatial_dims"] == 3:
        one["image"] = volume(tmp_path, "i.nii", images[1])
    plan = propose(fingerprint(written(tmp_path, [one], modality=channels)), 8, settings=deployed)
    line, _ = words(plan, "m.json", bundle=folder.name, settings={k: deployed.get(k, v) for k, v in trained.items()})
    assert bundle.prepare(folder, "training", parse_overrides(shlex.split(line)[4:]), ())
    assert plan.width == deployed["width"]


def test_what_stands_out_is_said(tmp_path):
    found = made(
        tmp_path,
        {"size": (32, 32, 8), "spacing_mm": (1, 1, 5), "lesion": 0},
        {"size": (32, 32, 8), "spacing_mm": (1, 1, 2), "dtype": np.float32, "scale": 1000, "lesion": 0},
        {"size": (9, 9, 9), "spacing_mm": (1, 1, 5), "lesion": 0},
    )
    said = "\n".join(cautions(found, propose(found, 8, width=4)))
    assert "Class lesion is in no case" in said
    assert "Spacing along Z varies from 2 to 5 mm" in said
    assert "5.0 times longer along Z" in said
    assert "different types: int16 (2), float32 (1)" in said
    assert "in c2 and" in said
    assert "Only 2 levels: the median case has 15 voxels along Z" in said


def test_an_unremarkable_dataset_gets_no_caution(tmp_path):
    found = made(tmp_path, {}, {})
    assert cautions(found, propose(found, 8, width=4)) == []


def test_hounsfield_units_under_another_name_are_noticed(tmp_path):
    air = {"id": "a", "patient": "a", "image": volume(tmp_path, "a.nii", np.full(CUBE, -1000, np.int16))}
    found = fingerprint(written(tmp_path, [air]))
    assert "looks like CT" in "\n".join(cautions(found, propose(found, 8, width=4)))


def test_the_command_writes_a_table_a_json_and_a_picture(tmp_path, overtile):
    path = written(tmp_path, [case(tmp_path, name, lesion=lesion) for name, lesion in (("a", 4), ("b", 0))])
    code, output = overtile("fingerprint", path, "--memory-gb", "1", "--width", "4")
    assert code == 0, output
    assert f"overtile run BUNDLE training --manifest {path} --patch '[16,16,16]' --depth 3" in output
    whole = json.loads((tmp_path / "m_fingerprint" / "fingerprint.json").read_text())
    assert [row["ml"]["lesion"] for row in whole["cases"]] == [0.004, 0.0]
    assert whole["proposal"]["patch"] == [16, 16, 16]
    assert str(tmp_path) not in json.dumps(whole["cases"])
    assert matplotlib.image.imread(tmp_path / "m_fingerprint" / "fingerprint.png").std() > 0.05


def test_a_bundle_of_other_dimensions_is_refused(tmp_path, overtile):
    path = written(tmp_path, [case(tmp_path, "a")])
    code, output = overtile("fingerprint", path, "--bundle", "nuclei_segmentation")
    assert (code, "the cases have 3 axes, the bundle's network 2" in output) == (2, True)
    assert overtile("fingerprint", path, "--memory-gb", "0")[0] == 2


@pytest.mark.slow
def test_the_real_hippocampus():
    found = fingerprint(ROOT / "data_manifest" / "hippocampus.json", real("msd_hippocampus"))
    plan = propose(found, 8, settings={"width": 16, "norm": "batch"})
    assert (plan.median_size, plan.spacing_mm) == ([35, 50, 36], [1, 1, 1])  # as its provenance says of all 260
    assert (plan.patch, plan.depth) == ([40, 56, 40], 4)
    assert any("different scales" in caution for caution in cautions(found, plan))
