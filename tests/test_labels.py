import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.errors import DataError
from pipeline.labels import check, to_class_indices
from pipeline.loading import LoadCased
from tests.conftest import real


def test_a_threshold_is_a_declaration():
    raw = np.array([[[0, 127, 128, 255]]], np.uint8)
    assert to_class_indices(raw, {"0..127": 0, "128..255": 1}, "x").tolist() == [[[0, 0, 1, 1]]]


def test_a_mask_of_0_and_255_declared_as_0_and_1_never_passes():
    with pytest.raises(DataError, match=r"slice: raw label values 255 are not declared \(declared: 0, 1\)"):
        to_class_indices(np.array([[[0, 255]]]), {"0": 0, "1": 1}, "slice")


def test_colours_are_classes():
    raw = np.zeros((3, 1, 3), np.uint8)
    raw[:, 0, 1], raw[:, 0, 2] = (255, 0, 0), (0, 0, 255)
    table = {"#000000": 0, "#FF0000": 1, "#0000ff": 2}
    assert to_class_indices(raw, table, "x").tolist() == [[[0, 1, 2]]]
    raw[1, 0, 1] = 1
    with pytest.raises(
        DataError, match=r"x: raw label values #ff0100 are not declared \(declared: #000000, #0000ff, #FF"
    ):
        to_class_indices(raw, table, "x")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_colours_are_of_8_bits(dtype):
    with pytest.raises(DataError, match=f"x: colours must be of 8 bits, these are {np.dtype(dtype)}; save it as"):
        to_class_indices(np.zeros((3, 1, 1), dtype), {"#000000": 0}, "x")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"white": 0}, "'white' is no raw value: write a number as 255, a range as 128..255 or a colour as #ff0000"),
        ({"255..0": 0}, "the range '255..0' is empty"),
        ({"0..10": 0, "10": 1}, "the raw values 0..10 and 10 overlap"),
        ({"0": 0, "#ffffff": 1}, "numbers and colours in one table: 0, #ffffff"),
    ],
)
def test_contradictions_are_refused(table, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(table)


def test_an_instance_map_gives_classes_and_instances(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 7, 300]], np.uint16))
    load = LoadCased(("instances", "label"), {"0": 0, "1..65535": 1})
    item = load({"label": str(tmp_path / "a.tif")})
    assert item["label"].tolist() == [[[0, 1, 1]]]
    assert item["instances"].tolist() == [[[0, 7, 300]]]


def test_a_mask_is_not_taken_for_an_instance_map(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[255, 0, 255]], np.uint8))
    with pytest.raises(Exception, match="2 separate objects with one number, so this is a mask, not an instance map"):
        LoadCased("instances")({"label": str(tmp_path / "a.tif")})


def test_an_alpha_channel_that_says_nothing_is_left_out(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = LoadCased("image")({"image": str(tmp_path / "a.png")})["image"]
    np.testing.assert_array_equal(loaded, pixels[..., :3].transpose(2, 0, 1))
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "b.png")
    with pytest.raises(Exception, match=r"b\.png: is transparent in places"):
        LoadCased("image")({"image": str(tmp_path / "b.png")})


def test_real_lung_masks_hold_all_values_and_become_two_classes():
    folder = real("cxr_montgomery512")
    path = sorted((folder / "masks").glob("*.png"))[0]
    raw = np.asarray(Image.open(path))[None]
    assert len(np.unique(raw)) > 2
    indices = to_class_indices(raw, {"0..127": 0, "128..255": 1}, path.name)
    assert indices.sum() == (raw > 127).sum()
