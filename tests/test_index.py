import hashlib
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline import manifest as manifests
from pipeline.digests import pixel_digest
from pipeline.errors import InputError
from pipeline.index import index
from pipeline.patients import read_key
from pipeline.recipe import Recipe
from pipeline.unmatched import as_sentence, unmatched
from tests.conftest import index_phantom


def test_a_page_is_a_case(phantom_dir):
    manifest = index_phantom(phantom_dir)
    case = manifest.unassigned[4]
    assert len(manifest.unassigned) == 12
    assert (case.id, case.patient, case.page) == ("patient-02_001", "patient-02", 1)
    assert (case.image, case.label) == ("patient-02/image.tif", "patient-02/label.tif")
    assert case.sha256 == hashlib.sha256((phantom_dir / case.image).read_bytes()).hexdigest()
    assert case.pixels == pixel_digest(tifffile.imread(phantom_dir / case.image)[1][None])
    assert manifest.labels == {"0": "cell", "1": "membrane"}
    assert manifest.label_values == {"255": 0, "0": 1}


def test_pixels_do_not_depend_on_the_file_format(tmp_path):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(image).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", image, compression="lzw")
    a = index(tmp_path, Recipe(name="x", image="{case}.png", patient="p")).unassigned[0]
    b = index(tmp_path, Recipe(name="x", image="{case}.tif", patient="p")).unassigned[0]
    assert a.pixels == b.pixels
    assert a.sha256 != b.sha256


def test_pages_in_file_names_are_numbers(tmp_path):
    for page in (2, 10, 1):
        tifffile.imwrite(tmp_path / f"P7_{page}.tif", np.full((8, 8), page, np.uint8))
        tifffile.imwrite(tmp_path / f"P7_{page}_mask.tif", np.zeros((8, 8), np.uint8))
    recipe = Recipe(
        name="x", image="{patient}_{page}.tif", label="{patient}_{page}_mask.tif", classes={"a": 0, "b": 255}
    )
    manifest = index(tmp_path, recipe)
    assert [case.image for case in manifest.unassigned] == ["P7_1.tif", "P7_2.tif", "P7_10.tif"]
    assert [case.label for case in manifest.unassigned] == ["P7_1_mask.tif", "P7_2_mask.tif", "P7_10_mask.tif"]


def test_channels_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 9, 3), np.uint8), photometric="rgb")
    manifest = index(tmp_path, Recipe(name="x", image="{case}.tif", patient="p", modality=["T1", "FLAIR", "T1c"]))
    assert manifest.modality == {"0": "T1", "1": "FLAIR", "2": "T1c"}
    with pytest.raises(InputError, match=r"a\.tif has 3 channels, 1 modalities were named: T1"):
        index(tmp_path, Recipe(name="x", image="{case}.tif", patient="p", modality=["T1"]))


def test_patients_get_pseudonyms_that_the_key_repeats(phantom_dir, tmp_path):
    key = read_key(tmp_path / "site" / "overtile.key")
    first = index_phantom(phantom_dir, key=key)
    assert key == read_key(tmp_path / "site" / "overtile.key")
    assert (tmp_path / "site" / "overtile.key").stat().st_mode & 0o777 == 0o600
    assert [case.id for case in first.unassigned] == [c.id for c in index_phantom(phantom_dir, key=key).unassigned]
    assert not any("patient-0" in case.id + case.patient for case in first.unassigned)
    other = index_phantom(phantom_dir, key=b"another site")
    assert {c.patient for c in first.unassigned}.isdisjoint(c.patient for c in other.unassigned)


def test_a_second_index_keeps_partitions_columns_and_texts(phantom_dir, phantom_manifest, tmp_path):
    folder = shutil.copytree(phantom_dir, tmp_path / "data")
    before = manifests.read(phantom_manifest)
    fields = before.model_dump(exclude_unset=True) | {"description": "ours"}
    fields["test"][0]["age_band"] = "40-49"
    manifests.write(manifests.Manifest(**fields), folder / "manifest.json")
    shutil.copytree(folder / "patient-01", folder / "patient-09")
    after = index_phantom(folder, previous=folder / "manifest.json")
    assert [c.id for c in after.training] == [c.id for c in before.training]
    assert after.test[0].model_extra == {"age_band": "40-49"}
    assert after.description == "ours"
    assert {case.patient for case in after.unassigned} == {"patient-09"}


def test_cases_with_a_partition_do_not_vanish(phantom_dir, phantom_manifest, tmp_path):
    folder = shutil.copytree(phantom_dir, tmp_path / "data")
    shutil.rmtree(folder / "patient-02")
    with pytest.raises(InputError, match="3 cases that have a partition were not found again, patient-02_000 first"):
        index_phantom(folder, previous=phantom_manifest)
    with pytest.raises(InputError, match="12 cases that have a partition were not found again"):
        index_phantom(phantom_dir, previous=phantom_manifest, key=b"another key")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": "{patient}/*.tif", "label": None}, "no file under .* matches"),
        ({"image": "{patient}/{section}.tif"}, r"has \{section\}: use \{patient\}, \{study\}, \{case\}, \{page\}"),
        ({"image": "{}/image.tif"}, "has an unnamed field"),
        ({"image": "{case}/image.tif"}, r"names no \{patient\}: add it, or say --patient NAME"),
        ({"label": "{patient}/mask.tif"}, "no file under .* matches .*mask"),
        ({"label": "{patient}/{case}.tif"}, "match the same files"),
        ({"classes": [("a", 0), ("b", 0)]}, "two classes with the same raw value: 0, 0"),
        ({"classes": [("a", 0), ("a", 255)]}, "two classes with the same name: a, a"),
        ({"image": "{patient}-{page}/image.tif"}, "is a stack, but the pattern"),
        ({"classes": []}, r"label\.tif holds the raw values 0, 255: say what they mean"),
    ],
)
def test_what_cannot_be_indexed_is_said(phantom_dir, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        index_phantom(phantom_dir, **changes)


def test_an_image_without_a_label_is_named(phantom_dir, tmp_path):
    folder = shutil.copytree(phantom_dir, tmp_path / "data")
    (folder / "patient-03" / "label.tif").unlink()
    with pytest.raises(InputError, match=r"patient-03/image\.tif, page 0: no label"):
        index_phantom(folder)


def test_an_empty_key_is_refused(tmp_path):
    (tmp_path / "overtile.key").touch()
    with pytest.raises(InputError, match="no pseudonym key, it has 0 characters of at least 32; restore it"):
        read_key(tmp_path / "overtile.key")


def test_a_label_without_an_image_is_named(phantom_dir, tmp_path):
    folder = shutil.copytree(phantom_dir, tmp_path / "data")
    (folder / "patient-03" / "image.tif").unlink()
    with pytest.raises(InputError, match=r"patient-03/label\.tif, page 0: a label without an image"):
        index_phantom(folder)


def test_a_broken_file_is_named(phantom_dir, tmp_path):
    folder = shutil.copytree(phantom_dir, tmp_path / "data")
    whole = (folder / "patient-03" / "image.tif").read_bytes()
    (folder / "patient-03" / "image.tif").write_bytes(whole[:2000])
    with pytest.raises(InputError, match=r"patient-03/image\.tif: damaged or cut short"):
        index_phantom(folder)


def test_a_list_leaves_files_out_and_other_channels_are_refused(tmp_path):
    for name, shape in (("a", (8, 8, 3)), ("b", (8, 8)), ("c", (8, 8, 3))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"left by macOS")
    everything = Recipe(name="x", image="{case}.jpg", patients_unknown=True)
    with pytest.raises(InputError, match=r"^b\.jpg: 1 channels, a\.jpg has 3; convert one of the two, or leave it out"):
        index(tmp_path, everything)
    listed = everything.model_copy(update={"listed": "list.txt"})
    with pytest.raises(InputError, match=r"list\.txt: not a readable list of files"):
        index(tmp_path, listed)
    (tmp_path / "list.txt").write_text("# name class\na 1 1 1\n\nc 2 1 1\n")
    assert [case.id for case in index(tmp_path, listed).unassigned] == ["a", "c"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa\r\nc\r\n")  # as Windows' editor writes it
    assert [case.id for case in index(tmp_path, listed).unassigned] == ["a", "c"]
    (tmp_path / "list.txt").write_text("a\nd\nC\n")
    with pytest.raises(InputError, match=r"list\.txt: names 'C', of which there is no image file \(2 such names\)"):
        index(tmp_path, listed)


def test_files_that_no_pattern_matches_are_told(tmp_path):
    for name in ("p/p_1.png", "p/p_2.PNG", "q/p_3.png", "q/._q.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    recipe = Recipe(name="x", image="{patient}/{patient}_{page}.png")
    left_out = unmatched(tmp_path, recipe, index(tmp_path, recipe))
    assert left_out == ["p/p_2.PNG", "q/p_3.png"]
    reason = "(.PNG is not as a pattern spells it: capitals count)"
    assert as_sentence(left_out, recipe) == f"2 image files match no pattern, as p/p_2.PNG {reason}"
    assert as_sentence(left_out[1:], recipe) == "1 image file matches no pattern, as q/p_3.png"
    (tmp_path / "list.txt").write_text("p_1")
    assert unmatched(tmp_path, recipe.model_copy(update={"listed": "list.txt"}), index(tmp_path, recipe)) == []


def test_another_dataset_is_not_overwritten(phantom_dir, phantom_manifest):
    with pytest.raises(InputError, match="is the manifest of 'phantom_em', not of 'other'"):
        index_phantom(phantom_dir, name="other", previous=phantom_manifest)
