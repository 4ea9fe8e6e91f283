import json

import pytest
from monai.data import load_decathlon_datalist

from pipeline import manifest as manifests
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from tests.conftest import ROOT, edited


def test_round_trip_is_byte_for_byte(phantom_manifest, tmp_path):
    for path in (phantom_manifest, *(ROOT / "data_manifest").glob("*.json")):
        manifests.write(manifests.read(path), tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_extra_columns_survive(phantom_manifest, tmp_path):
    path = edited(phantom_manifest, tmp_path / "m.json", lambda m: m["training"][0].update(age_band="40-49", note=None))
    again = json.loads(manifests.dumps(manifests.read(path)))
    assert again["training"][0]["age_band"] == "40-49"
    assert again["training"][0]["note"] is None


def test_one_case_per_line(phantom_manifest):
    lines = phantom_manifest.read_text().splitlines()
    assert sum('"id"' in line for line in lines) == 12
    assert all(line.count('"id"') <= 1 for line in lines)


def test_monai_reads_it_as_it_is(phantom_manifest):
    items = load_decathlon_datalist(str(phantom_manifest), is_segmentation=True, data_list_key="training")
    assert len(items) == 6
    assert items[0]["image"].startswith(str(phantom_manifest.parent))
    assert items[0]["label"].endswith("label.tif")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda m: m["training"][1].pop("patient"),
            r"m.json: field `training\[1\] \(case '.*_001'\).patient`: Field req",
        ),
        (lambda m: m["training"][0].update(page=-1), r"training\[0\] \(case '.*'\).page`: Input should be greater"),
        (lambda m: m.pop("name"), "field `name`: Field required"),
        (
            lambda m: m["label_values"].update({"7": 2}),
            "`label_values` maps 7 to class 2, which `labels` does not name",
        ),
        (lambda m: m["label_values"].update({"white": 1}), "'white' is no raw value: write a number as 255"),
        (lambda m: m["labels"].update({"5": "x"}), "without a hole"),
        (
            lambda m: m["test"][0].update(label="a.JPG"),
            "case '.*': a.JPG is a JPEG, which changes label values; use PNG or TIFF",
        ),
        (lambda m: m["test"].append(m["training"][0]), "case '.*' stands twice"),
    ],
)
def test_errors_name_file_case_and_field(phantom_manifest, tmp_path, change, sentence):
    path = edited(phantom_manifest, tmp_path / "m.json", change)
    with pytest.raises(InputError, match=sentence) as caught:
        manifests.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_no_json_is_a_sentence(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=r"m\.json: "):
        manifests.read(tmp_path / "m.json")


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no such manifest; `overtile index` makes one"):
        manifests.read(tmp_path / "none.json")


def split(training, test):
    """Digests of the split of cases written as patient and pixels: "a1" is the image 1 of the patient a."""
    names = [case + str(number) for number, case in enumerate([*training, *test])]
    rows = [{"id": name, "patient": name[0], "pixels": name[1], "image": "a.tif"} for name in names]
    fields = {"name": "x", "modality": {"0": "EM"}}
    return Manifest(**fields, training=rows[: len(training)], test=rows[len(training) :]).split_digests()


def test_split_digests_follow_who_and_what_is_where():
    before = split(["a1", "a2", "b3"], ["c4"])
    assert split(["b3", "a2", "a1"], ["c4"]) == before  # an order
    moved = split(["a1", "a2"], ["b3", "c4"])
    assert [moved[key] == before[key] for key in ("patients_sha256", "pixels_sha256")] == [False, False]
    changed = split(["a1", "a5", "b3"], ["c4"])
    assert [changed[key] == before[key] for key in ("patients_sha256", "pixels_sha256")] == [True, False]
    renamed = split(["a1", "a2", "d3"], ["c4"])
    assert [renamed[key] == before[key] for key in ("patients_sha256", "pixels_sha256")] == [False, True]


def test_a_failed_write_leaves_the_old_file(phantom_manifest, tmp_path, monkeypatch):
    manifest = manifests.read(phantom_manifest)
    path = tmp_path / "m.json"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        manifests.write(manifest, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
