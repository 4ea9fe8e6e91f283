import json
import shutil
import sqlite3

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image
from skimage.filters import threshold_otsu

from pipeline import manifest as manifests
from pipeline.errors import InputError
from pipeline.evaluate import CaseTable, otsu, pooled_table, refuse_another_partition
from pipeline.instance_scores import InstanceScores
from pipeline.overlay import CAPTION_HEIGHT, GAP, PREDICTION_COLOUR
from pipeline.planes import SIDE
from pipeline.separation import HERE, VALIDATION
from pipeline.surface_distances import SurfaceDistances
from pipeline.tables import notes
from tests.conftest import run_overtile


def test_otsu_is_scikit_images_on_the_declared_side():
    image = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(otsu(image, "dark"), image <= threshold_otsu(image))
    np.testing.assert_array_equal(otsu(image, "dark"), [[1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(otsu(image, "bright"), 1 - otsu(image, "dark"))
    assert otsu(np.full((2, 2), 3.0), "dark").sum() == 0


def test_otsu_is_for_two_classes():
    arguments = {"manifest": "m", "partition": "test", "checkpoint": "c"}
    with pytest.raises(InputError, match="Otsu's threshold separates 2 classes, this bundle has 3"):
        CaseTable("out", ["a", "b", "c"], otsu_foreground="dark", **arguments)
    with pytest.raises(InputError, match="must be dark, bright or null, got 'black'"):
        CaseTable("out", ["a", "b"], otsu_foreground="black", **arguments)


TWO_CLASSES, THREE_CLASSES = ["background", "nucleus"], ["background", "cat", "edge"]


def square(left, channels=1):
    """(channels, 8, 16) with a square of side 4 at column `left` of the last channel; None: without one."""
    found = torch.zeros(channels, 8, 16)
    if left is not None:
        found[-1, 2:6, left : left + 4] = 1
    return found


def cube(start, spacing_mm=None):
    """(1, 10, 10, 10) with a cube of side 4 that begins at `start` along Z."""
    found = torch.zeros(1, 10, 10, 10)
    found[:, 3:7, 3:7, start : start + 4] = 1
    return found if spacing_mm is None else MetaTensor(found, affine=torch.diag(torch.tensor([*spacing_mm, 1.0])))


def evaluated(folder, cases, class_names=TWO_CLASSES, image=None, by="patient", batch_size=2, **arguments):
    """evaluation.json of cases (patient, reference, prediction), as a bundle's evaluation engine writes it."""
    folder.mkdir(exist_ok=True)
    torch.save({"weight": torch.zeros(1)}, folder / "model.pt")
    named = dict(enumerate(class_names))
    about = {"name": "m", "modality": {"0": "MR"}, "labels": {str(k): v for k, v in named.items()}, "split": {"by": by}}
    manifests.write(manifests.Manifest.model_validate(about), folder / "manifest.json")
    items = [
        {"id": f"{p}_{n}", "patient": p, "image": prediction if image is None else image, "label": reference}
        | {"instances": reference.int(), "found": prediction}
        for n, (p, reference, prediction) in enumerate(cases)
    ]
    table = CaseTable(
        str(folder), class_names, **{"body": False} | arguments, manifest=str(folder / "manifest.json"), partition="test",
        checkpoint=str(folder / "model.pt"),
    )  # fmt: skip
    engine = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(items, batch_size=batch_size), torch.nn.Identity(), val_handlers=[table],
        prepare_batch=lambda batch, *_, **__: (batch["found"], batch["label"]),
        postprocessing=(lambda data: data | {"image": data["image"] if image is None else image}),
    )  # fmt: skip
    engine.run()
    return json.loads((folder / "evaluation.json").read_text()), engine.state.metrics


def test_three_classes_of_colour_images_show_the_worst_case_of_the_channel_asked_for(tmp_path):
    cases = [("p", square(2), square(2)), ("p", 2 * square(2), 2 * square(3)), ("q", square(None), square(9))]
    table, metrics = evaluated(tmp_path, cases, THREE_CLASSES, image=square(5, channels=3), overlay_channel=2,
                               measures=["dice", "miou"])  # fmt: skip
    assert table["summary"]["network"]["dice"] == {"cat": 1.0, "edge": 0.75}
    assert metrics["test_dice_edge"] == 0.75
    assert metrics["test_miou"] == table["summary"]["network"]["miou"]
    picture = np.asarray(Image.open(tmp_path / "worst.png"))[2 * CAPTION_HEIGHT :]
    pixel = SIDE / 16
    assert picture[round(4 * pixel), round(7 * pixel)].tolist() == [255, 255, 255]  # the image's square
    added = picture[round(4 * pixel), 2 * (SIDE + GAP) + round(11 * pixel)]
    assert added.tolist() == list(PREDICTION_COLOUR)  # the worst: a false positive where there is nothing
    with pytest.raises(InputError, match="`overlay_channel` is 3, counted from 0, and the images have 3 channels"):
        evaluated(tmp_path, cases, THREE_CLASSES, image=square(5, channels=3), overlay_channel=3)


def test_objects_are_scored_beside_and_units_have_the_name_of_the_split(tmp_path):
    cases = [("c1", square(2), square(2)), ("c2", square(2), square(6))]
    table, metrics = evaluated(
        tmp_path, cases, by="cluster", scorers=[InstanceScores(TWO_CLASSES, instances="nucleus")]
    )
    assert (table["unit"], table["instances"]["unit"]) == ("cluster", "cluster")
    assert table["instances"]["mean"]["aji"] == metrics["test_aji"] == 0.5
    assert metrics["test_ap_50"] == 0.5
    assert (tmp_path / "worst_instances.png").exists()


def test_volumes_are_scored_in_mm_and_ml_and_the_worst_is_drawn_in_three_planes(tmp_path):
    mm, coarse = (1.0, 1.0, 3.0), (1.0, 1.0, 5.0)
    cases = [("p", cube(2, mm), cube(4)), ("q", cube(2, mm), cube(2)), ("q", cube(2, coarse), 0 * cube(2))]
    table, metrics = evaluated(tmp_path, cases, scorers=[SurfaceDistances(TWO_CLASSES, 3.0)])
    assert [case["spacing_mm"] for case in table["cases"]] == [[1, 1, 3], [1, 1, 3], [1, 1, 5]]
    assert [case["hd95"]["nucleus"] for case in table["surface_distances"]["cases"]] == [6, 0, None]
    assert (metrics["test_hd95_nucleus"], table["surface_distances"]["missed"]) == (3, {"nucleus": 1})
    assert table["cases"][2]["network"]["volume_ml"] == {"nucleus": {"reference": 0.32, "prediction": 0.0}}
    volume = table["summary"]["network"]["volume_ml"]["nucleus"]
    assert volume["reference"] == pytest.approx((0.192 + (0.192 + 0.32) / 2) / 2)
    assert (volume["difference"], volume["cases"]) == (pytest.approx(-0.16 / 2), 3)
    assert any(line.startswith("Volume of nucleus: 0.224 ml in the reference, 0.144 ml") for line in notes(table))
    rows = np.asarray(Image.open(tmp_path / "worst.png"))
    assert rows.shape[1] == 3 * SIDE + 2 * GAP
    assert (tmp_path / "worst_surfaces.png").exists()


def test_volumes_pool_with_their_own_spacings(tmp_path):
    cases = [("p", cube(2, (1.0, 1.0, 3.0)), cube(4)), ("q", cube(2, (1.0, 1.0, 5.0)), cube(3))]
    whole, _ = evaluated(tmp_path / "whole", cases)
    folds = [evaluated(tmp_path / f"{n}", [case])[0] for n, case in enumerate(cases)]
    assert json.loads(json.dumps(pooled_table(folds)))["summary"] == whole["summary"]


def test_the_table_lists_the_pictures_of_the_worst_median_and_best_cases_and_old_ones_go(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "worst_6.png").write_text("of an earlier evaluation")
    cases = [("a", square(2), square(2)), ("b", square(2), square(4)), ("c", square(2), square(9))]
    table, _ = evaluated(tmp_path, cases)
    listed = [(one["file"], one["case"], one["patient"], one["rank"], one["dice"]) for one in table["pictures"]]
    assert listed == [
        ("pictures/worst_1.png", "c_2", "c", "worst 1", 0.0),
        ("pictures/worst_2.png", "b_1", "b", "worst 2", 0.5),
        ("pictures/worst_3.png", "a_0", "a", "worst 3", 1.0),
        ("pictures/median.png", "b_1", "b", "median", 0.5),
        ("pictures/best.png", "a_0", "a", "best", 1.0),
    ]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(one[0][9:] for one in listed)
    assert "pictures" not in pooled_table([table])


def test_what_is_burnt_in_beside_the_body_is_in_no_picture_and_scores_are_the_same(tmp_path):
    image, found = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    image[:, 20:60, 10:50] = 1
    found[:, 30:40, 20:30] = 1
    found[:, 4:6, 4:30:2] = 1  # the network outlines the letters
    cases = [("p", (found * (image > 0)), found)]
    whole, _ = evaluated(tmp_path / "whole", cases, image=image + found)
    body, _ = evaluated(tmp_path / "body", cases, image=image + found, body=True)
    assert body["summary"] == whole["summary"]
    narrow, wide = (np.asarray(Image.open(tmp_path / name / "worst.png")) for name in ("body", "whole"))
    added = [(one[:, -SIDE:] == PREDICTION_COLOUR).all(2).any() for one in (narrow, wide)]  # in the panel of errors
    assert added == [False, True]


def test_a_measure_that_is_none_is_refused():
    with pytest.raises(InputError, match="`measures` are of dice, iou, miou, pixel_error, got hausdorff"):
        CaseTable("o", TWO_CLASSES, manifest="m", partition="test", checkpoint="c", measures=["dice", "hausdorff"])


def test_folds_pool_to_the_table_of_all_patients(tmp_path):
    cases = [("a", square(2), square(3)), ("a", square(None), square(3)), ("b", square(2), square(2)),
             ("c", square(2), square(4))]  # fmt: skip
    scorers = [InstanceScores(TWO_CLASSES, instances="nucleus"), SurfaceDistances(TWO_CLASSES, 2.0)]
    whole, _ = evaluated(tmp_path / "whole", cases, scorers=scorers)
    folds = [evaluated(tmp_path / f"{n}", fold, scorers=scorers)[0] for n, fold in enumerate((cases[:2], cases[2:]))]
    for fold, digest in zip(folds, ("c1", "c2"), strict=True):
        fold["checkpoint_sha256"] = digest
    pooled = json.loads(json.dumps(pooled_table(folds)))
    for key in ("unit", "patients", "summary", "manifest"):
        assert pooled[key] == whole[key]
    assert pooled["instances"]["mean"] == whole["instances"]["mean"]
    assert pooled["instances"]["units"] == 3
    for key in ("mean", "interval_95", "added"):
        assert pooled["surface_distances"][key] == whole["surface_distances"][key]
    assert pooled["checkpoint_sha256"] == ["c1", "c2"]
    with pytest.raises(InputError, match="patient a stands in more than one evaluation"):
        pooled_table([folds[0], whole])
    with pytest.raises(InputError, match="differ in `classes`"):
        pooled_table([folds[0], folds[1] | {"classes": ["background", "cell"]}])


@pytest.fixture
def evaluate(trained, phantom_manifest, capsys, monkeypatch):
    """Run `overtile evaluate` of the trained weights: `code, output = evaluate("test", folder)`."""

    def call(partition, folder, *words, checkpoint=trained / "model.pt"):
        fixed = ["--bundle", "neuron_em_segmentation", "--manifest", phantom_manifest, "--checkpoint", checkpoint]
        return run_overtile(
            ["evaluate", *fixed, "--partition", partition, "--output", folder, *words], capsys, monkeypatch
        )

    return call


def test_the_threshold_goes_from_validation_to_test_and_nowhere_else(evaluate, trained, tmp_path):
    code, output = evaluate("validation", tmp_path / "validation")
    assert code == 0, output
    chosen = tmp_path / "validation" / "evaluation.json"
    validation = json.loads(chosen.read_text())["separation"]
    assert validation["threshold_from"] == HERE
    assert validation["mean"]["v_rand"] == validation["challenge_convention"]["v_rand"]
    assert f"above {validation['threshold']:g} ({HERE})" in output

    code, output = evaluate("test", tmp_path / "test", "--threshold", chosen)
    test = json.loads((tmp_path / "test" / "evaluation.json").read_text())["separation"]
    assert (code, test["threshold"], test["threshold_from"]) == (0, validation["threshold"], VALIDATION)
    assert test["mean"]["v_rand"] <= test["challenge_convention"]["v_rand"]
    assert f"V_Rand  {test['mean']['v_rand']:.3f}" in output
    with sqlite3.connect(tmp_path / "test" / "mlflow.db") as store:
        logged = dict(store.execute("select key, value from metrics where key like 'test_%'").fetchall())
        tags = dict(store.execute("select key, value from tags").fetchall())
    assert logged["test_v_rand"] == pytest.approx(test["mean"]["v_rand"])
    assert logged["test_v_info_challenge_convention"] == pytest.approx(test["challenge_convention"]["v_info"])
    assert logged["test_membrane_threshold"] == pytest.approx(test["threshold"])
    found = json.loads((tmp_path / "test" / "evaluation.json").read_text())["calibration"]
    assert logged["test_ece_membrane"] == pytest.approx(found["everywhere"]["membrane"]["ece"])
    assert 0 < found["near_foreground"]["confidence"]["ece"] < 1
    assert tags["mlflow.loggedArtifacts"] == '[{"path": "cases.json", "type": "table"}]'
    for name in ("worst_separation.png", "calibration.png", "cases.json"):
        assert len(list((tmp_path / "test").rglob(name))) == 2  # here and in the run

    other = shutil.copy(trained / "model.pt", tmp_path / "other.pt")
    other.write_bytes(other.read_bytes() + b"another checkpoint")
    code, output = evaluate("test", tmp_path / "third", "--threshold", chosen, checkpoint=other)
    assert (code, "is of another checkpoint" in output) == (2, True)
    assert not (tmp_path / "third").exists()


def test_another_partition_never_replaces_an_evaluation(evaluate, tmp_path):
    evaluate("test", tmp_path, "--threshold", 0.4)
    before = (tmp_path / "evaluation.json").read_bytes()
    code, output = evaluate("validation", tmp_path)
    assert code == 2
    assert f"give that of the validation partition a folder of its own, say {tmp_path}/validation" in output
    assert (tmp_path / "evaluation.json").read_bytes() == before
    assert len(list(tmp_path.glob("artifacts/*"))) == 1
    for stale in ("worst.png", "worst_separation.png"):
        (tmp_path / stale).write_text("of an earlier evaluation")
    assert evaluate("test", tmp_path, "--threshold", 0.6, "--membrane", "$None")[0] == 0
    assert "separation" not in json.loads((tmp_path / "evaluation.json").read_text())
    assert not (tmp_path / "worst_separation.png").exists()
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_evaluation_is_not_overwritten(tmp_path):
    refuse_another_partition(tmp_path, "test")
    (tmp_path / "evaluation.json").write_text('{"partition": "test"}')
    refuse_another_partition(tmp_path, "test")
    (tmp_path / "evaluation.json").write_text("my notes")
    with pytest.raises(InputError, match="no evaluation, it would be overwritten"):
        refuse_another_partition(tmp_path, "test")
