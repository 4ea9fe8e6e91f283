"""The 3D bundle: what validation sees is what inference sees; it trains and answers on the grid of its input."""

import contextlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from scipy.ndimage import gaussian_filter

from pipeline import bundle
from pipeline import manifest as manifests
from pipeline.index import index
from pipeline.recipe import read_recipe, recipe
from pipeline.split import split_by_patient
from tests.conftest import ROOT, real

BUNDLE = "hippocampus_mri_segmentation"
CODES = ["RAS", "LPS", "PIR", "SAL"]


def save(array, affine, path, code):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(code))
    image = image.as_reoriented(turn)
    image.set_qform(image.affine, 1)
    nib.save(image, path)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Four small volumes stored along other axes each, a bright part in front of a dark one."""
    folder = tmp_path_factory.mktemp("volumes")
    for n, code in enumerate(CODES):
        rng = np.random.default_rng(n)
        label = np.zeros((20, 24, 18), np.uint8)
        label[6:12, 13:19, 5:10], label[6:12, 5:13, 5:10] = 1, 2
        image = gaussian_filter(rng.normal(size=label.shape), 1) + np.array([0, 2, -2])[label]
        affine = np.diag([1.0, 1.0, 1.5, 1.0])
        save((1000 * 10**n * (image + 9)).astype(np.float32), affine, folder / f"imagesTr/v{n}.nii.gz", code)
        save(label, affine, folder / f"labelsTr/v{n}.nii.gz", code)
    fields = read_recipe(ROOT / "data_manifest/hippocampus.yaml")
    manifest = split_by_patient(index(folder, recipe(fields)), (0.5, 0.25, 0.25), 1, by="image")
    manifests.write(manifest, folder / "m.json")
    return folder / "m.json"


def content(config, name, **settings):
    """What a config's entry becomes."""
    parser = ConfigParser()
    parser.read_config([str(bundle.find(BUNDLE) / f"configs/{config}.yaml")])
    parser.update(settings)
    with contextlib.chdir(bundle.find(BUNDLE)):
        return parser.get_parsed_content(name)


def test_the_tensor_that_validation_sees_is_the_one_that_inference_sees(volumes):
    (validated,) = (batch["image"][0] for batch in content("train", "validate#dataloader", manifest=str(volumes)))
    case = manifests.read(volumes).validation[0]
    inferred = content("inference", "preprocessing")({"image": str(volumes.parent / case.image)})["image"]
    np.testing.assert_array_equal(validated, inferred)
    np.testing.assert_array_equal(validated.affine, inferred.affine)
    np.testing.assert_allclose((inferred.min(), inferred.max()), (-1, 1), atol=1e-6)


def test_it_trains_and_answers_on_the_grid_of_its_input(volumes, tmp_path, empty_store):
    (tmp_path / "test").mkdir()
    for folder in (tmp_path, tmp_path / "test"):
        shutil.copy(empty_store, folder / "mlflow.db")
    overrides = {
        "manifest": str(volumes), "output_dir": str(tmp_path), "workers": 0, "epochs": 2, "width": 4, "depth": 2,
        "patch": [16, 16, 16], "patches_per_case": 4, "learning_rate": 0.02, "spacing_mm": [1, 1, 1],
        "log_model": False,
    }  # fmt: skip
    bundle.run(bundle.find(BUNDLE), "training", overrides)
    about = {"checkpoint": str(tmp_path / "model.pt"), "width": 4, "depth": 2, "spacing_mm": [1, 1, 1]}
    evaluating = about | {"manifest": str(volumes), "output_dir": str(tmp_path / "test")}
    bundle.run(bundle.find(BUNDLE), "evaluating", evaluating)
    table = json.loads((tmp_path / "test/evaluation.json").read_text())
    assert set(table["summary"]["network"]["dice"]) == {"anterior", "posterior"}

    source = volumes.parent / "imagesTr"
    bundle.run(bundle.find(BUNDLE), "predicting", about | {"source": str(source), "output_dir": str(tmp_path / "out")})
    for n in range(4):
        image, label = nib.load(source / f"v{n}.nii.gz"), nib.load(tmp_path / f"out/v{n}.nii.gz")
        assert label.shape == image.shape
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-5)


def test_the_manifest_is_that_of_the_public_set():
    folder = real("msd_hippocampus")
    kept = manifests.read(ROOT / "data_manifest/hippocampus.json")
    assert {case.image for _, case in kept.cases()} == {f"imagesTr/{p.name}" for p in (folder / "imagesTr").iterdir()}
    assert (len(kept.training), len(kept.validation), len(kept.test)) == (140, 20, 40)
