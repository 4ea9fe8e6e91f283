import contextlib

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from pipeline import bundle, overlay, planes
from pipeline.augmented import CASES, SAMPLES, _weight, augmented_sheet
from pipeline.errors import InputError, user_error
from pipeline.manifest import read
from pipeline.overlay import CAPTION_HEIGHT, GAP
from pipeline.preview import SIDE, Channels, picture
from pipeline.seeding import Draw
from tests.test_preview import HEADING, ROW

EM = "neuron_em_segmentation"
SMALL = {"patch": 64, "patches_per_case": 2}


def sheet(manifest, output, overlays=(), **overrides):
    """Draw the sheet of the phantom patients and read it."""
    settings = {"overrides": SMALL | overrides, "overlays": overlays}
    return np.asarray(Image.open(augmented_sheet(manifest, None, output, bundle.find(EM), **settings)))


@pytest.fixture(scope="module")
def drawn(phantom_manifest, tmp_path_factory):
    """The sheet as it is by default."""
    return sheet(phantom_manifest, tmp_path_factory.mktemp("sheet"))


def in_training(manifest):
    """The dataset as a training makes it."""
    parser = ConfigParser()
    parser.read_config([str(bundle.find(EM) / "configs/train.yaml")])
    parser.update({"manifest": str(manifest), **SMALL})
    with contextlib.chdir(bundle.find(EM)):
        return parser.get_parsed_content("train#dataset")


def test_the_samples_are_those_of_the_training(drawn, phantom_manifest):
    dataset = in_training(phantom_manifest)
    number = next(n for n, case in enumerate(dataset.cases.data) if case["id"] == first_case(phantom_manifest, drawn))
    span = overlay.window(np.asarray(dataset.cases[number]["image"]))
    for column, draw in enumerate([Draw(1, number, 0), Draw(1, number, 1), Draw(2, number, 0)], start=1):
        left = column * (SIDE + GAP)
        shown = drawn[HEADING + 2 * CAPTION_HEIGHT :][:SIDE, left : left + SIDE]
        np.testing.assert_array_equal(shown, picture("", dataset[draw], Channels([0], ""), span))


def first_case(manifest, drawn):
    """Whose caption is above the first picture."""
    line = drawn[HEADING:][:CAPTION_HEIGHT, :SIDE]
    blank = np.zeros((1, SIDE, 3), np.uint8)
    ids = [case.id for case in read(manifest).training]
    return next(name for name in ids if (overlay.captioned(blank, name)[:CAPTION_HEIGHT] == line).all())


def test_a_row_per_case_is_the_same_every_time_and_follows_the_seed(drawn, phantom_manifest, tmp_path):
    assert drawn.shape == (HEADING + CASES * ROW, (1 + SAMPLES) * (SIDE + GAP) - GAP, 3)
    np.testing.assert_array_equal(sheet(phantom_manifest, tmp_path), drawn)
    other = sheet(phantom_manifest, tmp_path, seed=1)
    assert (other[HEADING:, :SIDE] == drawn[HEADING:, :SIDE]).all()
    assert (other != drawn).any()


def test_the_weights_of_pixels_are_shown_below(phantom_manifest, tmp_path, monkeypatch):
    maps = []
    monkeypatch.setattr(overlay, "heat", lambda *arguments: maps.append(arguments) or np.zeros((64, 64, 3), np.uint8))
    drawn = sheet(phantom_manifest, tmp_path, ["paper"])
    assert drawn.shape[0] == HEADING + CASES * (ROW + CAPTION_HEIGHT + SIDE + GAP)
    assert len(maps) == CASES * (1 + SAMPLES)
    assert {(weight.shape, least, most) for weight, least, most in maps[:5]} == {((64, 64), *maps[0][1:])}
    assert max(weight.max() for weight, _, _ in maps[:5]) == maps[0][2] > 3


def test_nothing_is_cached_or_written_but_the_picture(phantom_manifest, tmp_path):
    overrides = {"manifest": str(phantom_manifest)}
    (dataset,) = bundle.components(bundle.find(EM), "training", overrides, ["train#dataset"])
    assert len(dataset.cases) == 6
    assert dataset.cases.cache_num == 0
    sheet(phantom_manifest, tmp_path / "out", output_dir=str(tmp_path / "run"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "preview_augmented.png"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"class_names": ["cell", "nucleus"]},
            "declares the classes cell, membrane; this bundle separates cell, nucleus",
        ),
        ({"in_channels": 3}, "images of 1 channels, this bundle takes 3"),
        ({"epohcs": 1}, "has no key 'epohcs' for training; did you mean 'epochs'?"),
        ({"train#dataset": None}, "train#dataset is no pipeline.seeding.SeededDataset"),
    ],
)
def test_a_bundle_that_does_not_fit_is_told_in_a_sentence(phantom_manifest, tmp_path, overrides, sentence):
    with pytest.raises(Exception) as caught:
        sheet(phantom_manifest, tmp_path, **overrides)
    assert sentence in str(user_error(caught.value))


def test_a_config_without_the_item_is_named():
    with pytest.raises(InputError, match="has no 'train#datasett' for training"):
        bundle.components(bundle.find(EM), "training", {}, ["train#datasett"])


def test_the_command_draws_both_and_passes_overrides_on(phantom_manifest, tmp_path, overtile):
    words = ["--output", tmp_path, "--bundle", EM, "--cases", 1, "--patch", 32]
    code, output = overtile("preview", phantom_manifest, *words)
    assert code == 0, output
    names = [f"preview_{name}.png" for name in ("training", "validation", "test", "augmented")]
    assert output.splitlines()[-4:] == [str(tmp_path / name) for name in names]


def test_weights_of_a_volume_are_shown_where_its_label_is():
    label, weight = np.zeros((1, 4, 5, 6)), np.zeros((1, 4, 5, 6))
    label[0, 1:3, 1:3, 4] = 1
    weight[0, 3, 4, 4] = 7
    shown = _weight({"label": label, "weight": weight})
    assert (shown.shape, shown[0, 0]) == ((5, 4), 7)
    assert _weight({"label": label}) is None


def test_planes_of_a_sample_stand_below_each_other():
    volume = {"image": np.random.default_rng(0).random((1, 8, 8, 8)), "label": np.ones((1, 8, 8, 8))}
    drawn = picture("a", volume, Channels([0], ""), upright=True)
    assert drawn.shape == (3 * (planes.SMALL + CAPTION_HEIGHT + GAP), planes.SMALL, 3)
