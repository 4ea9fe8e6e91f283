import json
import logging
import shutil

import highdicom
import numpy as np
import pytest
import tifffile
import torch
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd, AsDiscreted
from PIL import Image
from pydicom import dcmread

from pipeline import bundle, dicom, seg
from pipeline.answers import DicomAnswers
from pipeline.errors import DataError, InputError
from pipeline.inferers import OverlapTileInferer
from pipeline.jobs import find_jobs
from pipeline.loading import LoadCased
from pipeline.phantom import ct_volume, write_ct_patient
from pipeline.pictures import read_page
from pipeline.predict import Predictor
from pipeline.synthetic_series import write_series
from pipeline.volumes import read_volume, write_volume
from tests.test_dicom import edit
from tests.test_seg import projection

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
    assert find_jobs(tmp_path / "in/a.JPG", tmp_path).jobs[0].target == tmp_path / "a.png"


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
    (job,) = find_jobs(tmp_path / "cd", tmp_path / "out").jobs
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
    assert [job.source.parent.name for job in jobs.jobs] == [f"patient-0{n}" for n in (1, 2, 3, 4)]


def test_a_checkpoint_of_another_network_is_refused(phantom_dir, checkpoint, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        predict(phantom_dir / "patient-01/image.tif", tmp_path, checkpoint, width=8)
    from pipeline.errors import user_error

    assert "holds the weights of another network than the one configured" in str(user_error(caught.value))


THRESHOLD_HU = 110.0
"""Between the body and the lesion of the CT phantom."""


class Lesion(torch.nn.Module):
    """Class 1 above a threshold, by a convolution that sees one voxel of the first channel."""

    def __init__(self, dims, channels=1, threshold=THRESHOLD_HU):
        super().__init__()
        self.layer = getattr(torch.nn, f"Conv{dims}d")(channels, 2, 1)
        torch.nn.init.zeros_(self.layer.weight)
        with torch.no_grad():
            self.layer.weight[0, 0], self.layer.weight[1, 0] = -1, 1
            self.layer.bias[:] = torch.tensor([threshold, -threshold])

    def forward(self, x):
        return self.layer(x)


def predictor(source, output, *, network=None, dims=3, inferer=None, **more):
    """As a bundle makes it, without the seconds that MONAI takes to read a bundle's config."""
    settings = {"class_names": ["background", "lesion"], "spatial_dims": dims, "device": "cpu"}
    dicom_keys = {key: more.pop(key) for key in ("channels", "output_format", "metadata", "checkpoint") if key in more}
    return Predictor(
        network or Lesion(dims), LoadCased("image"), inferer or OverlapTileInferer(tile=16, margin=0),
        Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True),
        source=str(source), output_dir=str(output), dicom=DicomAnswers(settings["class_names"], **dicom_keys), **(settings | more),
    )  # fmt: skip


def answer(source, output, **more):
    return predictor(source, output, **more).run()


# ---- volumes


AXES = [
    np.diag([2.0, 1.5, 3, 1]),
    np.diag([-2.0, -1.5, 3, 1]),
    np.array([[0, 0, -3.0, 5], [2, 0, 0, 6], [0, -1.5, 0, 7], [0, 0, 0, 1]]),
]


@pytest.mark.parametrize("affine", AXES, ids=["RAS", "LPS", "turned"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_volume_is_answered_in_its_format_on_its_grid(tmp_path, suffix, dims, affine):
    values = np.zeros((7, 8, 9), np.int16)
    values[1:3, 2:7, 4:5] = 200
    write_volume(values, affine, tmp_path / f"in/a{suffix}")
    assert answer(tmp_path / "in", tmp_path / "out", dims=dims) == [tmp_path / f"out/a{suffix}"]
    labels, place = read_volume(tmp_path / f"out/a{suffix}")
    np.testing.assert_array_equal(labels, values > 0)
    assert labels.dtype == np.uint8
    np.testing.assert_allclose(place, affine, atol=1e-6)


def test_probabilities_of_a_volume_lie_on_its_grid(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    write_volume(values, AXES[2], tmp_path / "a.nii.gz")
    for dims in (2, 3):
        answer(
            tmp_path / "a.nii.gz", tmp_path / "out", dims=dims, network=Lesion(dims, threshold=30), probabilities=True
        )
        likely, _ = read_volume(tmp_path / "out/a_probabilities.nii.gz")
        np.testing.assert_allclose(likely[1], 1 / (1 + np.exp(-2 * (values - 30.0))), atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 33, 17), (5, 40, 6)])
def test_tile_by_tile_is_the_same_as_at_once(tmp_path, shape):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, padding=1)
    )
    write_volume(np.random.default_rng(0).normal(size=shape).astype(np.float32), np.eye(4), tmp_path / "a.nii")
    found = []
    for name, inferer in (("tiles", OverlapTileInferer(tile=8)), ("whole", SimpleInferer())):
        answer(tmp_path / "a.nii", tmp_path / name, network=network, inferer=inferer)
        found.append(read_volume(tmp_path / name / "a.nii")[0])
    np.testing.assert_array_equal(*found)
    assert 0.1 < found[0].mean() < 0.9


def test_an_answer_that_is_large_as_a_whole_is_announced(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("pipeline.predict.WHOLE_ANSWER_GB", 1e-6)
    write_volume(np.zeros((8, 8, 8), np.int16), np.eye(4), tmp_path / "a.nii")
    answer(tmp_path / "a.nii", tmp_path / "out", inferer=SimpleInferer())
    assert "SimpleInferer cannot go tile by tile here, so the whole answer" in caplog.text
    caplog.clear()
    answer(tmp_path / "a.nii", tmp_path / "out")
    assert "cannot go tile by tile" not in caplog.text


def test_a_network_for_volumes_refuses_an_image(tmp_path):
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: this is an image, the network was trained with volumes"):
        answer(tmp_path / "a.png", tmp_path / "out")


# ---- DICOM


@pytest.mark.parametrize("dims", [2, 3])
def test_a_dicom_series_is_answered_with_a_seg_at_the_same_place(tmp_path, dims):
    truth = write_ct_patient(tmp_path / "ct", seed=3)
    answer(tmp_path / "ct", tmp_path / "out", dims=dims)
    series = dicom.read_series(tmp_path / "ct")
    labels, affine = seg.read_segmentation(tmp_path / "out/ct.dcm", series=series)
    np.testing.assert_allclose(affine, series.affine)
    np.testing.assert_array_equal(labels, truth)
    stored, place = seg.read_segmentation(tmp_path / "out/ct.dcm")
    centre = place @ [*np.argwhere(stored).mean(0), 1]
    np.testing.assert_allclose(centre, series.affine @ [*np.argwhere(truth).mean(0), 1])
    assert json.loads((tmp_path / "out/ct.certificate.json").read_text())["verdict"] == "as intended"


def test_probabilities_of_a_series_are_a_fractional_seg(tmp_path):
    truth = write_ct_patient(tmp_path / "ct", seed=3)
    answer(tmp_path / "ct", tmp_path / "out", probabilities=True)
    stored = highdicom.seg.segread(tmp_path / "out/ct_probabilities.dcm")
    volume = stored.get_volume(rescale_fractional=True)
    lesion = volume.array[..., 0] > 0.5
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    centre = affine @ [*np.argwhere(lesion).mean(0), 1]
    np.testing.assert_allclose(centre, dicom.read_series(tmp_path / "ct").affine @ [*np.argwhere(truth).mean(0), 1])
    assert lesion.sum() == truth.sum()
    assert (stored.SegmentationType, stored.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")


def test_a_second_run_leaves_the_answer_as_it_is_and_other_weights_replace_it(tmp_path, caplog):
    write_ct_patient(tmp_path / "ct", seed=3)
    caplog.set_level(logging.INFO, "pipeline")
    uids = []
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        caplog.clear()
        (tmp_path / "model.pt").write_bytes(weights)
        answer(tmp_path / "ct", tmp_path / "out", checkpoint=str(tmp_path / "model.pt"))
        uids.append(dcmread(tmp_path / "out/ct.dcm").SOPInstanceUID)
        assert ("already there" in caplog.text) == (name == "b")
    assert uids[0] == uids[1] != uids[2]


def test_a_series_may_be_answered_with_a_labelmap_or_a_nifti(tmp_path):
    truth = write_ct_patient(tmp_path / "ct", seed=3)
    answer(tmp_path / "ct", tmp_path / "out", output_format="labelmap")
    assert dcmread(tmp_path / "out/ct.dcm").SegmentationType == "LABELMAP"
    answer(tmp_path / "ct", tmp_path / "out", output_format="nifti")
    labels, affine = read_volume(tmp_path / "out/ct.nii.gz")
    np.testing.assert_array_equal(labels, truth)
    np.testing.assert_allclose(affine, dicom.read_series(tmp_path / "ct").affine, atol=1e-4)
    with pytest.raises(InputError, match="no output_format 'tiff'; there is seg, labelmap, nifti"):
        answer(tmp_path / "ct", tmp_path / "out", output_format="tiff")


def test_two_series_of_one_folder_have_two_answers(tmp_path):
    truths = [write_ct_patient(tmp_path / f"{seed}", seed=seed) for seed in (3, 4)]
    (tmp_path / "in/mixed").mkdir(parents=True)
    for seed in (3, 4):
        for path in (tmp_path / f"{seed}").iterdir():
            path.rename(tmp_path / "in/mixed" / f"{seed}{path.name}")
    written = answer(tmp_path / "in", tmp_path / "out")
    assert len({path.name for path in written}) == 2
    assert all(path.name.startswith("mixed_") for path in written)
    found = sorted(int(np.count_nonzero(seg.read_segmentation(path)[0])) for path in written)
    assert found == sorted(int(truth.sum()) for truth in truths)


def test_channels_of_a_study_are_found_by_rules(tmp_path):
    volume, truth = ct_volume(seed=3)
    for name, values in (("anything", np.zeros_like(volume)), ("CT body", volume), ("other", volume - 50)):
        folder = tmp_path / "in" / name
        write_series(values, folder, spacing_mm=(2, 2, 4), patient_id="P")
        for path in folder.iterdir():  # three series of one study
            edit(
                path,
                SeriesDescription=name,
                SeriesInstanceUID=f"1.2.{len(name)}",
                SOPInstanceUID=f"1.2.{len(name)}.{path.stem.lstrip('0') or 0}",
            )
    rules = {"body": {"SeriesDescription": "ct.*"}, "other": {"SeriesDescription": "other"}}
    (written,) = answer(tmp_path / "in", tmp_path / "out", network=Lesion(3, channels=2), channels=rules)
    made = dcmread(written)
    assert sorted(str(item.SeriesInstanceUID) for item in made.ReferencedSeriesSequence) == ["1.2.5", "1.2.7"]
    assert np.count_nonzero(seg.read_segmentation(written)[0]) == truth.sum()
    with pytest.raises(DataError, match=r"no series fits channel x .*\(no series for a channel\)"):
        answer(tmp_path / "in", tmp_path / "out", channels={"x": {"SeriesDescription": "t1"}})


def test_a_broken_series_is_told_by_rule_and_the_others_are_predicted(tmp_path):
    write_ct_patient(tmp_path / "in/bad", seed=3)
    write_ct_patient(tmp_path / "in/good", seed=4)
    sorted((tmp_path / "in/bad").iterdir())[7].unlink()
    with pytest.raises(DataError, match=r"1 of 2 inputs could not be predicted:\n.*bad.*\(missing slice\)"):
        answer(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.certificate.json", "good.dcm"]


@pytest.mark.parametrize("kind", ["seg", "labelmap"])
def test_a_single_x_ray_is_answered_with_a_seg_that_refers_to_it(tmp_path, kind):
    pixels = np.zeros((6, 4), np.uint16)
    pixels[1, 2:], pixels[5, 0] = 2000, 1500
    projection(tmp_path / "in/a/IM.1", pixels)
    (written,) = answer(tmp_path / "in", tmp_path / "out", dims=2, output_format=kind)
    assert written == tmp_path / "out/a/IM.1.dcm"
    np.testing.assert_array_equal(dcmread(written).pixel_array.squeeze(), pixels > 0)
    assert answer(tmp_path / "in/a/IM.1", tmp_path / "out/a", dims=2, output_format=kind) == [written]
    with pytest.raises(DataError, match="a single image has no place in a NIfTI file"):
        answer(tmp_path / "in", tmp_path / "out", dims=2, output_format="nifti")


def test_the_chest_x_ray_bundle_predicts_on_one(tmp_path):
    """With the bundle's own preprocessing and codes, and random weights: the lung is called Lung."""
    projection(tmp_path / "dx.dcm", np.random.default_rng(0).integers(0, 4000, (70, 90), np.uint16))
    folder = bundle.find("chest_xray_segmentation")
    overrides = {"width": 4, "depth": 3, "size": 48, "device": "cpu", "checkpoint": str(tmp_path / "model.pt")}
    (network,) = bundle.components(folder, "predicting", overrides, ["network_def"])
    torch.save(network.state_dict(), tmp_path / "model.pt")
    predict(tmp_path / "dx.dcm", tmp_path / "out", tmp_path / "model.pt", folder, width=4, depth=3, size=48)
    (segment,) = dcmread(tmp_path / "out/dx.dcm").SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lung"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName.startswith("Lung")
