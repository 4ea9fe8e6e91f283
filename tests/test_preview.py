import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline import manifest as manifests
from pipeline.errors import DataError, InputError
from pipeline.manifest import Case, Manifest
from pipeline.overlay import CAPTION_HEIGHT, CLASS_COLOURS, GAP
from pipeline.phantom import ct_volume, write_ct_patient
from pipeline.planes import SMALL
from pipeline.preview import (
    COLUMNS,
    SIDE,
    Channels,
    Reader,
    channels_of,
    choose,
    contact_sheets,
    default_output,
    picture,
)
from pipeline.volumes import write_volume
from tests.conftest import edited

HEADING = 3 * CAPTION_HEIGHT + 2 * GAP
"""Pixels above the first row: the title, the rule and the legend."""

ROW = 2 * CAPTION_HEIGHT + SIDE + GAP
"""Pixels of a row: two lines of caption and the picture."""


def square(top, left):
    plane = np.zeros((64, 64), np.uint8)
    plane[top : top + 16, left : left + 16] = 255
    return plane


def dataset(folder, cases, **fields):
    """A manifest with a square in every image and label; `cases`: id -> (partition, patient, label or None, columns)."""
    rows = {}
    for name, (partition, patient, label, columns) in cases.items():
        tifffile.imwrite(folder / f"{name}.tif", square(16, 16))
        case = {"id": name, "patient": patient, "image": f"{name}.tif", **columns}
        if label is not None:
            tifffile.imwrite(folder / f"{name}_label.tif", label)
            case["label"] = f"{name}_label.tif"
        rows.setdefault(partition, []).append(case)
    classes = {"labels": {"0": "background", "1": "lesion"}, "label_values": {"0": 0, "255": 1}}
    about = {"name": "squares", "modality": {"0": "CT"}} | classes | rows | fields
    manifests.write(Manifest(**about), folder / "m.json")
    return folder / "m.json"


def cases_of(*patients):
    """Cases p0_0, p0_1, ... of patient p0 and so on, and their foreground."""
    shares = {f"p{p}_{n}": share for p, patient in enumerate(patients) for n, share in enumerate(patient)}
    return [Case(id=name, patient=name[:2], image="x") for name in shares], lambda case: shares[case.id]


def test_a_shifted_mask_is_outlined_where_it_is_and_not_where_the_object_is(tmp_path):
    path = dataset(tmp_path, {"a": ("training", "p", square(16, 24), {})})
    (file,) = contact_sheets(path, None, tmp_path / "out")
    sheet = np.asarray(Image.open(file))
    first = sheet[HEADING + 2 * CAPTION_HEIGHT :, :SIDE]
    rows, columns = np.nonzero((first == CLASS_COLOURS[0]).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 127, 96, 159)
    assert len(rows) == 4 * 63
    assert first[96, 80].tolist() == [255] * 3  # the object begins at 64, left of its mask


def test_every_partition_has_a_sheet_of_as_many_pictures_as_it_may(tmp_path):
    many = {f"a{n}": ("training", f"p{n}", square(16, 16), {}) for n in range(6)}
    path = dataset(tmp_path, many | {"b": ("test", "q", square(0, 0), {}), "c": ("unassigned", "r", None, {})})
    files = contact_sheets(path, None, tmp_path / "out", cases=5)
    assert [file.name for file in files] == ["preview_training.png", "preview_test.png", "preview_unassigned.png"]
    sheets = [np.asarray(Image.open(file)) for file in files]
    assert sheets[0].shape == (HEADING + 2 * ROW, COLUMNS * (SIDE + GAP) - GAP, 3)
    pictures = sheets[0][:, :, 0] == 0
    assert [pictures[HEADING + ROW + 100, n * (SIDE + GAP) + 5] for n in range(COLUMNS)] == [True, False, False, False]
    assert not (sheets[2][HEADING:] == CLASS_COLOURS[0]).all(axis=2).any()


def test_a_sheet_of_a_partition_that_is_no_more_is_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("preview_test.png", "preview_fold_2.png", "preview_augmented.png", "mine.png"):
        (out / name).touch()
    contact_sheets(dataset(tmp_path, {"a": ("training", "p", None, {})}), None, out)
    assert sorted(file.name for file in out.iterdir()) == ["mine.png", "preview_augmented.png", "preview_training.png"]


def test_a_manifest_with_folds_has_a_sheet_per_fold_and_one_fold_has_partitions(tmp_path):
    cases = {f"a{n}": ("unassigned", f"p{n}", None, {"fold": n}) for n in (10, 2, 1)} | {
        "b": ("unassigned", "q", None, {})
    }
    cases |= {f"c{n}": ("unassigned", f"q{n}", None, {"fold": n}) for n in range(3, 10)}
    split = {"by": "patient", "seed": 1, "folds": 10, "validation": 0.5}
    path = dataset(tmp_path, cases, split=split)
    names = [file.name for file in contact_sheets(path, None, tmp_path / "out")]
    assert names == ["preview_unassigned.png", *(f"preview_fold_{n}.png" for n in range(1, 11))]
    names = [file.name for file in contact_sheets(f"{path}#2", tmp_path, tmp_path / "out")]
    assert names == [f"preview_{name}.png" for name in ("training", "validation", "test", "unassigned")]


def test_the_folder_is_beside_the_manifest(tmp_path):
    assert default_output(tmp_path / "brain.json") == tmp_path / "brain_preview"
    assert default_output(tmp_path / "brain.json#2") == tmp_path / "brain_fold_2_preview"


def test_slices_with_the_most_foreground_are_chosen_and_one_without():
    cases, foreground = cases_of([0, 0, 0.05, 0.09, 0.07, 0, 0.01])
    chosen = [case.id for case in choose(cases, 3, seed=0, foreground=foreground)]
    assert {"p0_3", "p0_4"} < set(chosen)
    assert [foreground(case) for case in cases if case.id in chosen].count(0) == 1
    assert chosen == sorted(chosen)


def test_cases_are_spread_over_patients_and_only_their_labels_are_read():
    cases, foreground = cases_of(*[[0.1, 0.2, 0, 0.3, 0]] * 8)
    read = set()
    chosen = choose(cases, 12, seed=0, foreground=lambda case: (read.add(case.patient), foreground(case))[1])
    patients = [case.patient for case in chosen]
    assert sorted(patients.count(patient) for patient in set(patients)) == [3, 3, 3, 3]
    assert read == set(patients)
    others = choose(cases, 12, seed=1, foreground=foreground)
    assert {case.patient for case in others} != set(patients)
    assert choose(cases, 12, seed=0, foreground=foreground) == chosen


def test_few_patients_give_more_and_nobody_gives_what_is_not_there():
    cases, foreground = cases_of([0.1, 0.2, 0, 0.3, 0], [0, 0, 0, 0, 0], [0.5])
    assert choose(cases, 20, seed=0, foreground=foreground) == cases
    assert len(choose(cases, 8, seed=0, foreground=foreground)) == 8
    assert len(choose(cases, 2, seed=3, foreground=foreground, per_patient=1)) == 2
    assert choose([], 3, seed=0, foreground=foreground) == []


def test_cases_without_labels_are_shown_too(tmp_path):
    path = dataset(tmp_path, {"a": ("training", "p", None, {})}, labels={}, label_values={})
    (file,) = contact_sheets(path, None, tmp_path / "out")
    assert np.asarray(Image.open(file)).shape[0] == CAPTION_HEIGHT + GAP + ROW


def test_red_green_and_blue_are_drawn_in_colour_and_other_channels_by_name():
    rgb = {"0": "Red", "1": "green", "2": "blue"}
    assert channels_of(rgb, None) == Channels([0, 1, 2], "")
    assert channels_of(rgb, "2") == Channels([2], "blue")
    assert channels_of({"0": "T1", "1": "FLAIR", "2": "T2"}, None) == Channels([0], "T1")
    assert channels_of({"0": "T1", "1": "FLAIR", "2": "T2"}, "flair") == Channels([1], "FLAIR")
    assert channels_of({"0": "CT"}, None) == Channels([0], "")
    image = np.zeros((3, 4, 4))
    image[1] = 9
    assert picture("a", {"image": image}, channels_of(rgb, None))[100, 100].tolist() == [0, 255, 0]


def test_signed_and_large_images_are_windowed_and_small():
    ramp = np.broadcast_to(np.linspace(-2000, 30000, 5000), (1, 40, 5000))
    drawn = picture("a", {"image": ramp}, Channels([0], ""))
    assert drawn.shape == (2, 256, 3)
    assert drawn.min() == 0
    assert drawn.max() == 255


@pytest.mark.parametrize(
    ("image", "label", "sentence"),
    [
        (np.zeros((1, 8, 8)), np.zeros((1, 8, 9)), "case a: image is 8 x 8 px, label is 8 x 9 px"),
        (np.zeros((1, 8, 8, 8)), np.zeros((1, 8, 8, 9)), "image is 8 x 8 x 8 voxels, label is 8 x 8 x 9 voxels"),
        (np.zeros((0, 8, 8)), None, "case a: has 0 channels, fewer than the manifest names"),
    ],
)
def test_what_cannot_be_drawn_is_named(image, label, sentence):
    with pytest.raises(InputError, match=sentence):
        picture("a", {"image": image, "label": label}, Channels([0], ""))


def test_volumes_of_files_and_of_series_are_drawn_in_three_planes_two_in_a_row(tmp_path, overtile):
    volume, label = ct_volume(1)
    grid = np.diag([1.5, 1.5, 3.0, 1.0])
    write_volume(volume, grid, tmp_path / "a.nii.gz")
    write_volume(label, grid, tmp_path / "a_label.nii.gz")
    write_ct_patient(tmp_path / "series", seed=1)
    cases = [{"id": "a", "patient": "p", "image": "a.nii.gz", "label": "a_label.nii.gz"}]
    cases += [{"id": f"s{n}", "patient": f"q{n}", "image": "series"} for n in range(2)]
    classes = {"labels": {"0": "background", "1": "lesion"}, "label_values": {"0": 0, "1": 1}}
    manifests.write(Manifest(name="ct", modality={"0": "CT"}, training=cases, **classes), tmp_path / "m.json")
    code, output = overtile("preview", tmp_path / "m.json")
    assert code == 0, output
    sheet = np.asarray(Image.open(tmp_path / "m_preview" / "preview_training.png"))
    assert sheet.shape[1] == COLUMNS * (SIDE + GAP) - GAP
    first = sheet[HEADING + 3 * CAPTION_HEIGHT :][: SMALL + CAPTION_HEIGHT]
    outlines = (first == CLASS_COLOURS[0]).all(axis=2)
    assert [bool(outlines[:, n * (SMALL + GAP) :][:, :SMALL].any()) for n in range(6)] == [True] * 3 + [False] * 3
    assert first[60:100, 3 * (SMALL + GAP) + 60].any()  # the series beside it


def test_a_caption_names_the_cluster_where_no_patient_is_known(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("pipeline.overlay.captioned", lambda drawn, *text, width: lines.extend(text))
    path = dataset(tmp_path, {"a": ("training", "c07", square(0, 0), {})}, split={"by": "cluster"})
    reader = Reader.of(path, None, None)
    reader.tile(reader.manifest.training[0])
    assert lines == ["a", "cluster c07, 6.2% foreground"]


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (lambda m: None, ["--dataset-dir", "/none"], "/none: no such folder; say --dataset-dir"),
        (lambda m: m["training"][0].update(image="none.tif"), [], "none.tif: no such file"),
        (lambda m: m["label_values"].pop("0"), [], "raw label values 0 are not declared"),
        (lambda m: m.update(training=[]), [], "the manifest has no cases"),
        (lambda m: None, ["--cases", "0"], "--cases must be from 1 to 200, got 0"),
        (lambda m: None, ["--channel", "T2"], "no channel 'T2'; there is 0 (CT)"),
        (lambda m: None, ["--case", "3"], "--case is no option of preview; overrides go with --bundle"),
        (lambda m: None, ["--bundle", "none"], "no bundle 'none'; there is"),
    ],
)
def test_bad_input_is_told_in_a_sentence(tmp_path, overtile, change, words, sentence):
    path = dataset(tmp_path, {"a7": ("training", "p", square(0, 0), {})})
    code, output = overtile("preview", edited(path, tmp_path / "bad.json", change), *words)
    assert (code, sentence in output) == (1 if "raw" in sentence or "no cases" in sentence else 2, True), output
    if "file" in sentence or "raw" in sentence:
        assert "error: case a7: " in output


def test_the_command_says_where_the_sheets_are(tmp_path, overtile):
    path = dataset(tmp_path, {"a": ("training", "p", square(0, 0), {})})
    code, output = overtile("preview", path)
    assert code == 0
    assert output.splitlines()[-1] == str(tmp_path / "m_preview" / "preview_training.png")
    assert overtile("preview", tmp_path / "none.json")[1].endswith("no such manifest; `overtile index` makes one\n")


def test_a_manifest_of_another_size_of_image_and_label_is_data_to_correct(tmp_path):
    path = dataset(tmp_path, {"a": ("training", "p", square(0, 0)[:, :32], {})})
    with pytest.raises(DataError, match="case a: image is 64 x 64 px, label is 64 x 32 px"):
        contact_sheets(path, None, tmp_path / "out")
