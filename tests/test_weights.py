import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Affined, Compose, ConcatItemsd, Rand2DElasticd
from PIL import Image
from scipy.ndimage import distance_transform_edt

from pipeline import weights
from pipeline.errors import DataError
from pipeline.losses import PixelWeightedCrossEntropy
from pipeline.weights import (
    BorderWeightd,
    TouchingInstancesd,
    border_weights,
    class_weights,
    instances_of,
    training_class_weights,
)
from tests.benchmarks import weights as benchmark
from tests.benchmarks.harness import Scale
from tests.conftest import edited

TOLERANCE = 2e-6
"""Of w0: what the search leaves out (1e-7), and float32."""


def oracle(instances, w0=10.0, sigma=5.0, spacing=None):
    """The formula, with a distance map of the whole image for every cell."""
    cells = [number for number in np.unique(instances) if number]
    if len(cells) < 2:
        return np.zeros(instances.shape)
    d1, d2 = np.sort([distance_transform_edt(instances != cell, sampling=spacing) for cell in cells], axis=0)[:2]
    return np.where(instances == 0, w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0)


def discs(shape, count, radius, seed):
    rng = np.random.default_rng(seed)
    grid = np.moveaxis(np.indices(shape), 0, -1)
    instances = np.zeros(shape, int)
    for number in range(1, count + 1):
        instances[np.linalg.norm(grid - rng.uniform(0, shape), axis=-1) < rng.uniform(1, radius)] = number
    return instances


def test_by_hand():
    row = np.array([[1, 0, 0, 0, 2]])
    at_the_sides, in_the_middle = 10 * np.exp(-((1 + 3) ** 2) / 50), 10 * np.exp(-((2 + 2) ** 2) / 50)
    np.testing.assert_allclose(border_weights(row), [[0, at_the_sides, in_the_middle, at_the_sides, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    "instances",
    [np.zeros((6, 7), int), np.eye(6, dtype=int), np.ones((6, 7), int)],
    ids=["no cell", "one cell", "everything one cell"],
)
def test_fewer_than_two_cells_have_no_border(instances):
    border = border_weights(instances)
    assert border.dtype == np.float32
    np.testing.assert_array_equal(border, np.zeros(instances.shape))


def test_cells_that_touch_have_a_border_around_their_ends_and_none_within():
    touching = np.zeros((5, 6), int)
    touching[1:4, :3], touching[1:4, 3:] = 1, 2
    border = border_weights(touching)
    assert (border[touching > 0] == 0).all()
    assert border[0, 2] == pytest.approx(10 * np.exp(-((1 + np.sqrt(2)) ** 2) / 50))
    np.testing.assert_allclose(border, oracle(touching), atol=10 * TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "count", "radius", "spacing"),
    [((90, 120), 12, 8, None), ((90, 120), 60, 8, None), ((200, 90), 5, 4, (1.0, 0.5)), ((24, 30, 20), 9, 5, None),
     ((24, 30, 12), 9, 5, (1.0, 1.0, 3.0))],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_brute_force(shape, count, radius, spacing, seed):
    instances = discs(shape, count, radius, seed)
    difference = border_weights(instances, w0=7.0, sigma=3.0, spacing=spacing) - oracle(instances, 7.0, 3.0, spacing)
    assert np.abs(difference).max() < 7 * TOLERANCE


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 0, 0, 1, 2, 9]))
)
def test_equals_the_brute_force_on_anything(instances):
    np.testing.assert_allclose(border_weights(instances), oracle(instances), atol=10 * TOLERANCE)


def test_only_the_partition_into_cells_counts_not_their_numbers():
    instances = discs((60, 70), 8, 6, seed=1)
    renamed = np.array([0, 2**31, 5, 70, 6, 90001, 3, 12, 8], dtype=np.int64)[instances]
    np.testing.assert_array_equal(border_weights(instances), border_weights(renamed))


@pytest.mark.parametrize("move", [np.fliplr, np.flipud, np.rot90, np.transpose])
def test_the_map_moves_with_the_cells(move):
    instances = discs((60, 70), 8, 6, seed=1)
    np.testing.assert_array_equal(border_weights(move(instances)), move(border_weights(instances)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"instances": np.zeros((3, 3))}, "whole numbers from 0, got float64"),
        ({"instances": np.full((3, 3), -1)}, "whole numbers from 0, got int64 from -1 on"),
        ({"sigma": 0.0}, "`sigma` above 0, got 10.0 and 0.0"),
        ({"w0": -1.0}, "`w0` must be at least 0"),
        ({"spacing": (1.0, 0.0)}, r"`spacing` must be 2 numbers above 0, got \[1.0, 0.0\]"),
        ({"spacing": (1.0,)}, "`spacing` must be 2 numbers"),
    ],
)
def test_what_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        border_weights(**{"instances": np.zeros((3, 3), int)} | arguments)


def test_a_seam_that_runs_diagonally_separates_cells():
    cells_are_0 = np.eye(5, dtype=np.uint8)
    assert sorted(np.bincount(instances_of(cells_are_0, cells=0).ravel())) == [5, 10, 10]
    assert instances_of(cells_are_0, cells=1).max() == 5
    assert instances_of(np.ones((2, 2, 2), np.uint8), cells=1).max() == 1


def test_class_weights_have_a_mean_of_one_over_the_pixels():
    counts = np.array([700, 200, 100])
    assert class_weights(counts) == pytest.approx([1000 / 2100, 1000 / 600, 1000 / 300])
    assert (class_weights(counts) * counts).sum() / counts.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="class 1 has no pixel"):
        class_weights([5, 0])


def paint(manifest_path, folder, change):
    """One page each: labels of two training cases, one validation and one test case, and their manifest."""
    labels = {"a": 0, "b": 1, "v": 0, "t": 0} | change
    for name, ones in labels.items():
        pixels = np.full((4, 4), 255, np.uint8)
        pixels.ravel()[: 4 * ones] = 0
        Image.fromarray(pixels).save(folder / f"{name}.png")

    def cases(fields):
        for partition, names in {"training": "ab", "validation": "v", "test": "t"}.items():
            fields[partition] = [{"id": n, "patient": n, "image": f"{n}.png", "label": f"{n}.png"} for n in names]

    return edited(manifest_path, folder / "m.json", cases)


def test_class_weights_come_from_the_training_partition_alone(phantom_manifest, tmp_path):
    path = paint(phantom_manifest, tmp_path, {})
    assert training_class_weights(path) == pytest.approx([32 / (2 * 28), 32 / (2 * 4)])
    before = training_class_weights(path)
    paint(phantom_manifest, tmp_path, {"v": 4, "t": 3})
    assert training_class_weights(path) == before
    paint(phantom_manifest, tmp_path, {"a": 2})
    assert training_class_weights(path) != before


def test_labels_lie_in_the_dataset_folder_where_one_is_given(phantom_manifest, tmp_path):
    (tmp_path / "data").mkdir()
    path = paint(phantom_manifest, tmp_path / "data", {})
    moved = path.rename(tmp_path / "m.json")
    assert training_class_weights(moved, tmp_path / "data") == pytest.approx([32 / 56, 4])
    with pytest.raises(DataError.__base__, match=r"a\.png: no such file"):
        training_class_weights(moved)


def test_a_class_that_training_never_shows_is_named(phantom_manifest, tmp_path):
    path = paint(phantom_manifest, tmp_path, {"b": 0})
    with pytest.raises(DataError, match=r"m\.json: in the training partition class 1 has no pixel"):
        training_class_weights(path)
    unlabelled = edited(path, tmp_path / "n.json", lambda fields: fields["training"][0].pop("label"))
    with pytest.raises(DataError, match=r"n\.json: a in training has no label"):
        training_class_weights(unlabelled)


def label_of(instances):
    return MetaTensor(
        torch.as_tensor(instances > 0)[None].to(torch.uint8), affine=torch.diag(torch.tensor([2.0, 3, 1, 1]))
    )


def test_the_transform_adds_class_weights_and_border():
    instances = discs((40, 50), 4, 6, seed=4)
    label = label_of(instances)
    item = BorderWeightd("label", class_weights=[0.5, 3.0], cells=1)({"label": label, "image": "kept"})
    expected = np.where(instances > 0, 3.0, 0.5) + oracle(instances_of(instances > 0, cells=1))
    assert (item["weight"].shape, item["weight"].dtype, item["image"]) == ((1, 40, 50), torch.float32, "kept")
    assert torch.equal(item["weight"].affine, label.affine)
    np.testing.assert_allclose(item["weight"][0].numpy(), expected, atol=10 * TOLERANCE)


def test_the_class_of_the_cells_may_be_0():
    seam = torch.zeros(1, 5, 7, dtype=torch.uint8)
    seam[:, :, 3] = 1
    weight = BorderWeightd(class_weights=[1.0, 2.0], cells=0)({"label": seam})["weight"]
    assert weight[0, :, 3].tolist() == pytest.approx([2 + 10 * np.exp(-4 / 50)] * 5)
    assert (weight[0, :, [0, 1, 2, 4, 5, 6]] == 1).all()


def test_an_instance_map_tells_cells_apart_that_touch():
    instances = np.zeros((5, 6), int)
    instances[1:4, :3], instances[1:4, 3:] = 1, 2
    item = {"label": label_of(instances), "cells": torch.as_tensor(instances)[None]}
    weight = BorderWeightd(class_weights=[1.0, 1.0], instances="cells", weight="w")(item)["w"]
    np.testing.assert_allclose(weight[0].numpy(), 1 + oracle(instances), atol=10 * TOLERANCE)
    with pytest.raises(ValueError, match=r"`cells` is \(4, 6\), `label` is \(5, 6\)"):
        BorderWeightd(class_weights=[1.0, 1.0], instances="cells")(item | {"cells": item["cells"][:, :4]})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give `cells`, the class index"),
        ({"cells": 1, "instances": "i"}, "give `cells`, the class index"),
        ({"cells": 1, "keys": ["label", "other"]}, "`keys` must name one label"),
        ({"cells": 1, "class_weights": [1.0]}, "1 class weights for a label with the classes 0 to 1"),
    ],
)
def test_what_the_transform_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        BorderWeightd(**{"class_weights": [1.0, 1.0]} | arguments)({"label": label_of(np.eye(3, dtype=int))})


def test_the_map_is_computed_once_per_case_not_once_per_epoch(monkeypatch):
    calls = []
    compute = weights.border_weights
    monkeypatch.setattr(weights, "border_weights", lambda *args, **kwargs: calls.append(1) or compute(*args, **kwargs))
    warp = Rand2DElasticd(["label", "weight"], spacing=8, magnitude_range=(1, 2), prob=1, mode=["nearest", "bilinear"])
    cases = [{"label": label_of(discs((32, 32), 3, 5, seed))} for seed in range(3)]
    transform = Compose([BorderWeightd(class_weights=[1.0, 2.0], cells=1), warp])
    dataset = CacheDataset(cases * 4, transform, hash_as_key=True, progress=False, num_workers=1)
    epochs = [[item["weight"] for item in dataset] for _ in range(3)]
    assert len(calls) == len(cases)
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_the_map_is_warped_with_the_image():
    item = BorderWeightd(class_weights=[1.0, 2.0], cells=1)({"label": label_of(discs((64, 64), 6, 8, seed=2))})
    item["image"] = item["weight"].clone()
    turn = Affined(["image", "label", "weight"], rotate_params=0.3, mode=["bilinear", "nearest", "bilinear"])
    warp = Rand2DElasticd(
        ["image", "label", "weight"],
        spacing=16,
        magnitude_range=(2, 2),
        prob=1,
        mode=["bilinear", "nearest", "bilinear"],
    )
    for transform in (turn, warp):
        warped = transform(item)
        torch.testing.assert_close(warped["weight"], warped["image"])
        assert not torch.equal(warped["weight"], item["weight"])


def test_label_and_weight_join_into_the_target_of_the_loss():
    item = BorderWeightd(class_weights=[1.0, 2.0], cells=1)({"label": label_of(discs((32, 32), 3, 5, seed=0))})
    target = ConcatItemsd(["label", "weight"], "label")(item)["label"][None]
    assert (target.shape, target.dtype) == ((1, 2, 32, 32), torch.float32)
    loss = PixelWeightedCrossEntropy()(torch.zeros(1, 2, 32, 32), target)
    assert float(loss) == pytest.approx(np.log(2) * float(item["weight"].mean()))


def test_500_cells_take_less_than_a_second():
    (row,) = benchmark.rows(Scale.FULL)
    assert "512 x 512, 500 cells" in row.work and min(row.ours) < 1


def test_the_border_weight_is_highest_on_the_seam_of_touching_instances():
    instances = torch.zeros((1, 9, 10), dtype=torch.int32)
    instances[0, 2:7, 1:5], instances[0, 2:7, 5:9] = 7, 9
    item = {"label": MetaTensor((instances > 0).to(torch.uint8)), "instances": MetaTensor(instances)}
    cut = TouchingInstancesd()(item)
    assert (cut["label"].dtype, cut["instances"].dtype) == (torch.uint8, torch.int32)
    assert cut["label"][0, 4].tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 1, 0]
    assert cut["instances"][0, 4].tolist() == [0, 7, 7, 7, 0, 0, 9, 9, 9, 0]
    assert item["label"][0, 4].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]

    weigh = BorderWeightd(class_weights=[1, 1], instances="instances")
    weight = weigh(cut)["weight"][0]
    assert weight[2:7, 4:6].numpy() == pytest.approx(1 + 10 * np.exp(-((1 + 2) ** 2) / 50))
    assert weight.max() == weight[4, 4]
    assert weigh(item)["weight"][0, 2:7, 4:6].max() == 1


def test_maps_of_another_shape_than_the_instances_are_refused():
    with pytest.raises(ValueError, match=r"`label` is \(1, 2, 3\), `instances` is \(1, 4, 4\)"):
        TouchingInstancesd()({"label": np.zeros((1, 2, 3)), "instances": np.zeros((1, 4, 4), int)})
