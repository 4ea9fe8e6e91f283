import logging
import shutil

import highdicom
import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from pipeline import bundle, dicom, seg
from pipeline.errors import DataError, InputError
from pipeline.phantom import ct_volume, write_ct_patient
from pipeline.pictures import read_page
from pipeline.predict import find_jobs
from tests.conftest import ROOT

EM = "neuron_em_segmentation"


def predict(source, output, checkpoint, folder=None, **more):
    overrides = {"source": str(source), "output_dir": str(output), "checkpoint": str(checkpoint), "device": "cpu"}
    bundle.run(folder or bundle.find(EM), "predicting", overrides | more)


@pytest.fixture
def checkpoint(trained):
    return trained / "model.pt"


def test_a_stack_comes_back_as_a_stack(phantom_dir, checkpoint, tmp_path):
    predict(phantom_dir, tmp_path, checkpoint, match="*/image.tif")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tif"))
    assert found == [f"patient-0{n}/image.tif" for n in (1, 2, 3, 4)]
    labels = tifffile.imread(tmp_path / "patient-01/image.tif")
    assert labels.shape == (3, 64, 64)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 1}


def test_probabilities_agree_with_the_labels(phantom_dir, checkpoint, tmp_path):
    predict(phantom_dir / "patient-01/image.tif", tmp_path, checkpoint, probabilities=True)
    for page in range(3):
        probabilities = read_page(tmp_path / "image_probabilities.tif", page)
        assert probabilities.shape == (2, 64, 64)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(0), read_page(tmp_path / "image.tif", page)[0])


def test_a_png_of_any_size_comes_back_at_its_size(checkpoint, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 90), np.uint8)).save(tmp_path / "in.png")
    predict(tmp_path / "in.png", tmp_path / "out", checkpoint)
    assert read_page(tmp_path / "out/in.png").shape == (1, 37, 90)


def test_the_label_map_of_a_jpeg_is_a_png(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 90), np.uint8)).save(tmp_path / "in/a.JPG")
    (tmp_path / "in/._a.JPG").write_bytes(b"left by macOS")
    predict(tmp_path / "in", tmp_path / "out", checkpoint)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert set(np.unique(read_page(tmp_path / "out/a.png"))) <= {0, 1}
    assert find_jobs(tmp_path / "in/a.JPG", tmp_path)[0].target == tmp_path / "a.png"


def test_a_folder_goes_on_past_a_bad_file(phantom_dir, checkpoint, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.tif").write_bytes(b"broken")
    shutil.copy(phantom_dir / "patient-01/image.tif", source / "b.tif")
    tifffile.imwrite(source / "c.tif", np.zeros((32, 32, 3), np.uint8), photometric="rgb")
    with pytest.raises(RuntimeError) as caught:
        predict(source, tmp_path / "out", checkpoint)
    sentence = str(caught.value.__cause__)
    assert isinstance(caught.value.__cause__, DataError)
    assert "2 of 3 inputs could not be predicted" in sentence
    assert "a.tif: cannot be decoded" in sentence
    assert "the image has 3 channels, the network was trained with 1" in sentence
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.tif"]


def test_an_image_is_never_overwritten(phantom_dir, tmp_path):
    with pytest.raises(InputError, match="would overwrite this image; choose another output folder"):
        find_jobs(phantom_dir / "patient-01/image.tif", phantom_dir / "patient-01")
    with pytest.raises(InputError, match="nothing to predict; it holds no"):
        find_jobs(phantom_dir, tmp_path, "*.png")
    with pytest.raises(InputError, match="no such file or folder"):
        find_jobs(tmp_path / "nowhere", tmp_path)


def test_two_inputs_never_share_an_output(phantom_dir, tmp_path):
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a.png")
    shutil.copy(phantom_dir / "patient-01/image.tif", tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.png and .*a\.tif: their label maps would have one name"):
        find_jobs(tmp_path, tmp_path / "out")


def test_a_series_in_two_subfolders_is_one_series(tmp_path):
    write_ct_patient(tmp_path / "cd/study/one", seed=3)
    (tmp_path / "cd/study/two").mkdir()
    for path in sorted((tmp_path / "cd/study/one").iterdir())[10:]:
        path.rename(tmp_path / "cd/study/two" / path.name)
    (tmp_path / "cd/readme.txt").write_text("no DICOM")
    (job,) = find_jobs(tmp_path / "cd", tmp_path / "out")
    assert (job.source, job.target) == (tmp_path / "cd/study", tmp_path / "out/study.dcm")


def test_pixels_that_are_no_numbers_are_refused(checkpoint, tmp_path):
    image = np.ones((32, 32), np.float32)
    image[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(RuntimeError) as caught:
        predict(tmp_path / "a.tif", tmp_path / "out", checkpoint)
    assert "a.tif: 1 pixels are NaN or infinite" in str(caught.value.__cause__)


def test_label_maps_of_an_earlier_run_are_no_input(phantom_dir, tmp_path):
    source = shutil.copytree(phantom_dir, tmp_path / "in")
    shutil.copytree(phantom_dir / "patient-01", source / "labels" / "patient-01")
    jobs = find_jobs(source, source / "labels", "*/image.tif")
    assert [job.source.parent.name for job in jobs] == [f"patient-0{n}" for n in (1, 2, 3, 4)]


def test_a_checkpoint_of_another_network_is_refused(phantom_dir, checkpoint, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        predict(phantom_dir / "patient-01/image.tif", tmp_path, checkpoint, width=8)
    from pipeline.errors import user_error

    assert "holds the weights of another network than the one configured" in str(user_error(caught.value))


@pytest.fixture
def threshold_bundle(tmp_path):
    """A 3D bundle whose network is a threshold between the body and the lesion of the CT phantom."""
    folder = tmp_path / "threshold"
    shutil.copytree(ROOT / "bundles" / EM / "configs", folder / "configs")
    config = yaml.safe_load((folder / "configs/inference.yaml").read_text())
    config |= {"spatial_dims": 3, "class_names": ["background", "lesion"]}
    config["network_def"] = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    (folder / "configs/inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    volume, _ = ct_volume(seed=3)
    threshold = float((110 - volume.mean()) / volume.std())
    weights = {"weight": torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([threshold, -threshold])}
    torch.save(weights, folder / "model.pt")
    return folder


def test_a_dicom_series_is_answered_with_a_seg_at_the_same_place(threshold_bundle, tmp_path):
    truth = write_ct_patient(tmp_path / "ct", seed=3)
    predict(tmp_path / "ct", tmp_path / "out", threshold_bundle / "model.pt", threshold_bundle)
    series = dicom.read_series(tmp_path / "ct")
    labels, affine = seg.read_segmentation(tmp_path / "out/ct.dcm", series=series)
    np.testing.assert_allclose(affine, series.affine)
    np.testing.assert_array_equal(labels, truth)
    stored, place = seg.read_segmentation(tmp_path / "out/ct.dcm")
    centre = place @ [*np.argwhere(stored).mean(0), 1]
    np.testing.assert_allclose(centre, series.affine @ [*np.argwhere(truth).mean(0), 1])


def test_probabilities_of_a_series_are_a_fractional_seg(threshold_bundle, tmp_path):
    truth = write_ct_patient(tmp_path / "ct", seed=3)
    predict(tmp_path / "ct", tmp_path / "out", threshold_bundle / "model.pt", threshold_bundle, probabilities=True)
    stored = highdicom.seg.segread(tmp_path / "out/ct_probabilities.dcm")
    volume = stored.get_volume(rescale_fractional=True)
    lesion = volume.array[..., 0] > 0.5
    affine = volume.get_affine("RAS") if hasattr(volume, "get_affine") else np.diag([-1, -1, 1, 1]) @ volume.affine
    centre = affine @ [*np.argwhere(lesion).mean(0), 1]
    np.testing.assert_allclose(centre, dicom.read_series(tmp_path / "ct").affine @ [*np.argwhere(truth).mean(0), 1])
    assert lesion.sum() == truth.sum()
    assert (stored.SegmentationType, stored.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")


def test_a_two_dimensional_network_goes_through_a_series_slice_by_slice(checkpoint, tmp_path, caplog):
    write_ct_patient(tmp_path / "in/ct", seed=3)
    with caplog.at_level(logging.INFO, "pipeline"):
        predict(tmp_path / "in", tmp_path / "out", checkpoint)
    labels, _ = seg.read_segmentation(tmp_path / "out/ct.dcm", series=dicom.read_series(tmp_path / "in/ct"))
    assert labels.shape == (64, 48, 20)


def test_a_broken_series_is_passed_over_by_name(checkpoint, tmp_path):
    write_ct_patient(tmp_path / "in/ct", seed=3)
    slices = sorted((tmp_path / "in/ct").iterdir())
    slices[7].unlink()
    with pytest.raises(RuntimeError) as caught:
        predict(tmp_path / "in", tmp_path / "out", checkpoint)
    assert "1 of 1 inputs could not be predicted" in str(caught.value.__cause__)
    assert "in/ct" in str(caught.value.__cause__)
