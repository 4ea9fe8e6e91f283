"""Every bundle from a folder in its dataset's own layout to label maps: the recipe, a training, scores, predictions."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage.draw import disk

from pipeline import bundle, manifest
from pipeline.errors import user_error
from pipeline.index import index
from pipeline.pictures import read_page
from pipeline.recipe import Recipe, read_recipe
from pipeline.split import split_by_patient
from tests.conftest import ROOT

NETWORK = {"width": 4, "depth": 3, "size": 48}
TINY = NETWORK | {"patch": 32, "epochs": 10, "patches_per_case": 8, "workers": 0, "learning_rate": 0.01}
TINY |= {"log_model": False}
MRI_PATIENTS = ("TCGA_CS_4941_19960909", "TCGA_CS_4941_19970101", *(f"TCGA_DU_585{n}_19950428" for n in range(4)))


def blobs(rng, shape, count):
    """Instance map of discs that may touch, (H, W) uint16."""
    instances = np.zeros(shape, np.uint16)
    for number in range(1, count + 1):
        instances[disk(rng.uniform(8, np.array(shape) - 8), 6, shape=shape)] = number
    return instances


def picture(rng, mask, channels=1):
    image = 60 + 120 * (mask > 0)[..., None] + rng.normal(0, 12, (*mask.shape, channels))
    return np.clip(image, 0, 255).astype(np.uint8).squeeze()


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def brain_mri(folder):
    rng = np.random.default_rng(0)
    for name in MRI_PATIENTS:
        for page in (1, 2, 10):
            mask = blobs(rng, (48, 48), 2 if page > 1 else 0)
            save(picture(rng, mask, 3), folder / name / f"{name}_{page}.tif")
            save(np.where(mask, 255, 0).astype(np.uint8), folder / name / f"{name}_{page}_mask.tif")
    lines = [f"{name[:12]},{40 + number},1,2,1" for number, name in enumerate(MRI_PATIENTS[1:])]
    header = "Patient,age_at_initial_pathologic,gender,histological_type,neoplasm_histologic_grade"
    (folder / "data.csv").write_text("\n".join([header, *lines]) + "\n")


def chest_xray(folder):
    rng = np.random.default_rng(0)
    for number in range(6):
        mask = blobs(rng, (70, 90), 4) > 0
        save(picture(rng, mask), folder / "cxr" / f"MCUCXR_{number:04d}_{number % 2}.png")
        grey = np.where(mask, rng.integers(128, 256, mask.shape), rng.integers(0, 128, mask.shape))
        save(grey.astype(np.uint8), folder / "masks" / f"MCUCXR_{number:04d}_{number % 2}.png")


def nuclei(folder):
    rng = np.random.default_rng(0)
    for number in range(6):
        instances = blobs(rng, (64, 64), 8)
        opaque = np.full((64, 64, 1), 255, np.uint8)
        save(np.concatenate([picture(rng, instances, 3), opaque], 2), folder / "images" / f"{number}.png")
        save(instances, folder / "labels" / f"{number}.png")


@pytest.fixture(scope="module", params=[brain_mri, chest_xray, nuclei], ids=lambda make: make.__name__)
def trained(request, tmp_path_factory):
    """Name of a task, folder of its data, its manifest and the folder of a short training that was evaluated."""
    name, folder = request.param.__name__, tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder / "data")
    found = index(folder / "data", Recipe(**read_recipe(ROOT / "data_manifest" / f"{name}.yaml")))
    manifest.write(split_by_patient(found, (0.6, 0.2, 0.2), seed=1), folder / "m.json")
    where = {"manifest": str(folder / "m.json"), "dataset_dir": str(folder / "data"), "output_dir": str(folder / "run")}
    home = bundle.find(f"{name}_segmentation")
    bundle.run(home, "training", where | TINY)
    bundle.run(home, "evaluating", where | NETWORK | {"checkpoint": str(folder / "run" / "model.pt")})
    return name, folder, json.loads((folder / "run" / "evaluation.json").read_text())


def test_a_training_from_the_dataset_s_own_layout_is_scored(trained):
    _, folder, table = trained
    foreground = table["classes"][1]
    assert table["summary"]["network"]["dice"][foreground] > 0.3
    assert (folder / "run" / "worst.png").is_file()
    assert table["overlap_with_training_pixels"] == "none"


def test_predictions_have_the_size_of_the_image(trained):
    name, folder, _ = trained
    source = next(path for path in sorted((folder / "data").rglob("*.*")) if path.suffix in (".png", ".tif"))
    settings = NETWORK | {"source": str(source), "output_dir": str(folder / "labels")}
    bundle.run(
        bundle.find(f"{name}_segmentation"), "predicting", settings | {"checkpoint": str(folder / "run" / "model.pt")}
    )
    predicted = read_page(folder / "labels" / source.name)
    assert predicted.shape[1:] == read_page(source).shape[1:]
    assert set(np.unique(predicted)) <= {0, 1}


@pytest.mark.parametrize("workflow", ["evaluating", "predicting"])
def test_weights_are_refused_at_another_size(trained, workflow):
    name, folder, _ = trained
    settings = NETWORK | {"size": None, "checkpoint": str(folder / "run" / "model.pt"), "output_dir": str(folder / "x")}
    if workflow == "evaluating":
        settings |= {"manifest": str(folder / "m.json"), "dataset_dir": str(folder / "data")}
    with pytest.raises(RuntimeError) as caught:  # of MONAI, around ours
        bundle.run(bundle.find(f"{name}_segmentation"), workflow, settings)
    assert "(`size` was 48, is null); give --size 48" in str(user_error(caught.value))


def test_two_dates_of_one_patient_are_in_one_partition(tmp_path):
    brain_mri(tmp_path)
    recipe = Recipe(**read_recipe(ROOT / "data_manifest" / "brain_mri.yaml"))
    found = split_by_patient(index(tmp_path, recipe), (0.6, 0.2, 0.2), seed=1)
    homes = {name for name, case in found.cases() if case.patient == "TCGA_CS_4941"}
    assert len(homes) == 1
    assert sum(case.patient == "TCGA_CS_4941" for _, case in found.cases()) == 6


def test_colours_as_classes_from_index_to_prediction(tmp_path):
    rng = np.random.default_rng(0)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    for number in range(4):
        classes = np.minimum(blobs(rng, (64, 64), 6), 2)
        save(picture(rng, classes), tmp_path / "data" / f"p{number}" / "image.png")
        save(colours[classes], tmp_path / "data" / f"p{number}" / "label.png")
    table = {"background": "#000000", "one": "#ff0000", "two": "#0000ff"}
    recipe = Recipe(name="x", image="{patient}/image.png", label="{patient}/label.png", classes=table)
    found = split_by_patient(index(tmp_path / "data", recipe), (0.5, 0.25, 0.25), seed=1)
    manifest.write(found, tmp_path / "m.json")
    where = {"manifest": str(tmp_path / "m.json"), "dataset_dir": str(tmp_path / "data")}
    home, classes = bundle.find("chest_xray_segmentation"), {"class_names": list(table)}
    bundle.run(home, "training", where | TINY | classes | {"output_dir": str(tmp_path / "run")})
    network = NETWORK | {"checkpoint": str(tmp_path / "run" / "model.pt"), **classes}
    bundle.run(home, "evaluating", where | network | {"output_dir": str(tmp_path / "run")})
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())["summary"]["network"]["dice"]
    assert list(scores) == ["one", "two"]
    bundle.run(
        home, "predicting", network | {"source": str(tmp_path / "data/p0/image.png"), "output_dir": str(tmp_path / "l")}
    )
    assert set(np.unique(read_page(tmp_path / "l" / "image.png"))) <= {0, 1, 2}
