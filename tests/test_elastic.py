"""The deformation's statistics, and every part of it against somebody else's code, in 2D and 3D."""

import pickle

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose
from scipy.ndimage import binary_dilation, binary_erosion, map_coordinates
from scipy.stats import kstest
from torch.nn import functional

from pipeline.elastic import (
    RandElasticAffined,
    Warp,
    affine,
    bicubic_weights,
    coordinates,
    default_sigma,
    displacement,
    resample,
)
from tests.conftest import ROOT

EVERYTHING = {"rotation": 3.14, "scale": 0.2, "flip": 0.5, "shift": 4.0}
SHAPES = {2: (43, 52), 3: (21, 34, 27)}


def transform(*keys, seed=0, **keywords):
    modes = ["nearest" if key == "label" else "bilinear" for key in keys]
    return RandElasticAffined(keys, **({"mode": modes} | keywords)).set_random_state(seed)


def still(size, centre=None, matrix=None):
    """A warp without deformation; without more, one that leaves all where it is."""
    dims = len(size)
    centre = (np.array(size) - 1) / 2 if centre is None else np.array(centre)
    return Warp(tuple(size), centre, np.eye(dims) if matrix is None else matrix, np.zeros((*[3] * dims, dims)))


def drawn(shape, seed=0, **keywords):
    one = transform("image", seed=seed, **keywords)
    one.randomize(shape)
    return one.warp


def jacobians(positions):
    """Determinants of the map's differences from pixel to pixel."""
    dims = positions.shape[-1]
    steps = [
        positions.diff(dim=axis)[tuple(slice(None) if other == axis else slice(-1) for other in range(dims))]
        for axis in range(dims)
    ]
    if dims == 2:
        return steps[0][..., 0] * steps[1][..., 1] - steps[0][..., 1] * steps[1][..., 0]
    return (torch.linalg.cross(steps[0], steps[1]) * steps[2]).sum(-1)


def folds(shape, draws, **keywords):
    """How many of so many draws fold the image onto itself somewhere."""
    return sum(bool(jacobians(coordinates(drawn(shape, seed, **keywords))).min() <= 0) for seed in range(draws))


def patches():
    """The patch of every bundle, as each of its axes."""
    for config in sorted((ROOT / "bundles").glob("*/configs/train.yaml")):
        patch = yaml.safe_load(config.read_text())["patch"]
        dims = yaml.safe_load(config.with_name("inference.yaml").read_text())["spatial_dims"]
        yield tuple(patch) if isinstance(patch, list) else (patch,) * dims


def scipys(image, warp):
    return map_coordinates(image.numpy(), coordinates(warp).movedim(-1, 0).numpy(), order=1, mode="mirror")


# --- the field ------------------------------------------------------------------------------------------------------


def test_half_way_between_control_points_the_weights_are_keys():
    weights = bicubic_weights(9, 5)  # a control point at every second pixel
    assert weights[3].tolist() == pytest.approx([-0.09375, 0.59375, 0.59375, -0.09375, 0])
    assert weights[4].tolist() == pytest.approx([0, 0, 1, 0, 0])


def test_the_field_is_torchs_bicubic_interpolation():
    control = torch.randn(3, 3, 2, generator=torch.manual_seed(0))
    theirs = functional.interpolate(control.movedim(-1, 0)[None], (40, 57), mode="bicubic", align_corners=True)
    assert torch.allclose(displacement(control, (40, 57)), theirs[0].movedim(0, -1), atol=1e-5)


def test_the_field_in_3d_is_bicubic_in_every_plane_of_control_points():
    control = torch.randn(3, 3, 3, 3, generator=torch.manual_seed(0))
    field = displacement(control, (21, 30, 25))
    for plane, voxel in enumerate((0, 10, 20)):
        assert torch.allclose(field[voxel], displacement_2d(control[plane], (30, 25)), atol=1e-5)
        assert torch.allclose(
            field.transpose(0, 2)[[0, 12, 24][plane]],
            displacement_2d(control.transpose(0, 2)[plane], (30, 21)),
            atol=1e-5,
        )


def displacement_2d(control, size):
    planes = functional.interpolate(control.movedim(-1, 0)[None], size, mode="bicubic", align_corners=True)
    return planes[0].movedim(0, -1)


@pytest.mark.parametrize("size", [(257, 257), (31, 41, 51)])
def test_at_the_control_points_the_field_is_what_was_drawn(size):
    warp = drawn(size, sigma=2.0)
    field = coordinates(warp) - coordinates(still(size))
    at_points = field[tuple(slice(None, None, (n - 1) // 2) for n in size)]
    assert np.allclose(at_points, warp.control, atol=1e-4)


def test_displacements_are_gaussian_with_the_papers_10_px():
    one = transform("image")
    moves = []
    for _ in range(500):
        one.randomize((257, 257))
        moves.append((coordinates(one.warp) - coordinates(still((257, 257))))[::128, ::128].numpy())
    moves = np.stack(moves)
    assert moves.std() == pytest.approx(10, rel=0.03)  # of 9,000 numbers: 4 standard errors
    assert np.abs(moves.std(0) - 10).max() < 1.3 and np.abs(moves.mean(0)).max() < 1.8  # each point, each axis
    assert kstest(moves.ravel() / 10, "norm").pvalue > 0.001
    assert np.abs(np.corrcoef(moves.reshape(500, 18).T) - np.eye(18)).max() < 0.2  # each is drawn on its own


@pytest.mark.parametrize("size", [(512, 512), (96, 96, 64)])
def test_the_field_has_no_jump_and_no_kink(size):
    warp = drawn(size)
    field = displacement(torch.tensor(warp.control), size)
    for axis, n in enumerate(size):
        # Keys' kernel has a second derivative of at most 4.5, and 3 + 3 + 1.5 at its neighbours; a kink of bilinear
        # interpolation would be a hundred times larger.
        bound = 12 * 1.375 ** (len(size) - 1) * np.abs(warp.control).max() / ((n - 1) / 2) ** 2
        assert field.diff(n=2, dim=axis).abs().max() < bound


def test_sigma_is_10_px_or_4_percent_of_the_shortest_side():
    assert default_sigma((512, 300)) == 10
    assert default_sigma((256, 200)) == 8
    assert default_sigma((40, 56, 40)) == pytest.approx(1.6)
    unit = drawn((512, 512), size=(256, 200), sigma=1.0).control
    assert np.allclose(drawn((512, 512), size=(256, 200)).control, 8 * unit)


@pytest.mark.parametrize("patch", [*patches(), (40, 56, 40), (64, 64)])
def test_at_the_default_no_patch_folds(patch):
    assert folds(patch, 200) == 0
    assert folds(patch, 20, rotation=3.14, scale=0.2, shift=9) == 0


def test_10_px_fold_a_small_patch_and_not_a_large_one():
    assert folds((40, 56, 40), 20, sigma=10.0) == 20
    assert folds((64, 64), 60, sigma=10.0) > 10
    assert folds((512, 512), 30, sigma=10.0) == 0


# --- the resampling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [None, 19, 60])
def test_everything_at_once_is_scipys_interpolation_at_the_same_coordinates(dims, size):
    image = torch.rand(2, *SHAPES[dims])
    for seed in range(5):
        one = transform("image", seed=seed, size=size, sigma=3.0, **(EVERYTHING | {"shift": 90.0}))
        ours = one({"image": image})["image"]
        for channel in (0, 1):
            assert np.allclose(ours[channel], scipys(image[channel], one.warp), atol=2e-5 * max(SHAPES[dims]))


def test_coordinates_are_the_rotation_of_the_displaced_pixel():
    warp = drawn((30, 40), sigma=3.0, **EVERYTHING)
    field = displacement(torch.tensor(warp.control, dtype=torch.float32), (30, 40)).numpy()
    for row, column in [(0, 0), (29, 3), (12, 39)]:
        moved = np.array([row - 14.5, column - 19.5]) + field[row, column]
        assert coordinates(warp)[row, column].tolist() == pytest.approx(warp.centre + warp.matrix @ moved, abs=1e-3)


def test_each_key_is_sampled_once(monkeypatch):
    calls = []
    sample = functional.grid_sample
    monkeypatch.setattr(functional, "grid_sample", lambda *args, **kw: calls.append(args[2]) or sample(*args, **kw))
    transform("image", "label", size=20, **EVERYTHING)({"image": torch.rand(1, 30, 30), "label": torch.ones(1, 30, 30)})
    assert calls == ["bilinear", "nearest"]


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_asked_for_leaves_everything_where_it_is(dims):
    image, label = torch.rand(1, *SHAPES[dims]), torch.randint(0, 9, (1, *SHAPES[dims]), dtype=torch.uint8)
    out = transform("image", "label", sigma=0)({"image": image, "label": label})
    assert torch.allclose(out["image"], image, atol=1e-5)
    assert torch.equal(out["label"], label)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_torchs(turns):
    image, angle = torch.rand(1, 8, 8, 8), turns * np.pi / 2
    (flat,) = resample([image[0]], ["nearest"], still((8, 8), matrix=affine([angle], 1, [0, 0])))  # 8 channels
    assert torch.equal(flat, torch.rot90(image[0], turns, (1, 2)))
    for axis, plane in enumerate([(2, 3), (1, 3), (1, 2)]):
        matrix = affine(np.eye(3)[axis] * angle, 1, [0, 0, 0])
        (turned,) = resample([image], ["nearest"], still((8, 8, 8), matrix=matrix))
        assert torch.equal(turned, torch.rot90(image, turns, plane))


def test_turns_follow_each_other_in_the_order_of_the_axes():
    image = torch.rand(1, 8, 8, 8)
    (turned,) = resample([image], ["nearest"], still((8, 8, 8), matrix=affine([np.pi / 2] * 3, 1, [0, 0, 0])))
    assert torch.equal(turned, image.rot90(1, (2, 3)).rot90(1, (1, 3)).rot90(1, (1, 2)))


@pytest.mark.parametrize(("flip", "axes"), [(1, [1, 2, 3]), (0, []), ([0, 1, 0], [2]), ([1, 0, 1], [1, 3])])
def test_flips_are_torchs(flip, axes):
    image = torch.rand(1, *SHAPES[3])
    out = transform("image", sigma=0, flip=flip)({"image": image})["image"]
    assert torch.allclose(out, image.flip(axes), atol=1e-5)


def test_a_shift_moves_the_content():
    image = torch.rand(1, 9, 11)
    (moved,) = resample([image], ["nearest"], still((9, 11), centre=(4 - 2, 5 + 3)))
    assert torch.equal(moved[:, 2:, :-3], image[:, :-2, 3:])


def test_a_zoom_of_2_doubles_the_content():
    (zoomed,) = resample(
        [torch.arange(9.0).expand(1, 9, 9)], ["bilinear"], still((9, 9), matrix=affine([0], 2, [0, 0]))
    )
    assert zoomed[0, 0].tolist() == [2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6]


@pytest.mark.parametrize("shape", [(5, 8), (1, 9), (3, 4, 6)])
def test_beyond_the_border_is_numpys_reflection(shape):
    image = np.random.default_rng(0).random((1, *shape), np.float32)
    margins = [(n % 2 + 20, 21) for n in shape]  # mirrored many times over
    size = [n + sum(margin) for n, margin in zip(shape, margins, strict=True)]
    out = transform("image", mode="nearest", sigma=0, size=size)({"image": image})["image"]
    starts = [-((n - m) // 2) for n, m in zip(shape, size, strict=True)]
    expected = np.pad(
        image, [(0, 0), *((a, m - n - a) for n, m, a in zip(shape, size, starts, strict=True))], "reflect"
    )
    assert np.array_equal(out, expected)


def test_patches_lie_inside_the_image_and_anywhere_in_it():
    image = torch.arange(120.0).reshape(1, 10, 12)
    one = transform("image", mode="nearest", sigma=0, size=(4, 12))
    seen = [one({"image": image})["image"] for _ in range(200)]
    starts = [int(patch[0, 0, 0]) // 12 for patch in seen]
    assert all(torch.equal(patch, image[:, start : start + 4]) for patch, start in zip(seen, starts, strict=True))
    assert set(starts) == set(range(7))


def test_a_rotated_patch_looks_at_its_real_surroundings():
    image = torch.rand(1, 80, 90)
    one = transform("image", size=20, rotation=3.14)
    patch = one({"image": image})["image"]
    reached = coordinates(one.warp)
    corner = np.round(one.warp.centre - 9.5).astype(int)
    assert (reached.amin((0, 1)) < torch.tensor(corner)).any()  # more than the upright patch
    assert np.allclose(patch[0], scipys(image[0], one.warp), atol=1e-4)


def test_a_patch_of_a_volume_that_is_larger_than_memory():
    label = torch.ones(1, 1, 1, 1, dtype=torch.uint8).expand(1, 4096, 4096, 4096)  # 256 GB as float32
    out = transform("label", size=16, **EVERYTHING)({"label": label})["label"]
    assert out.shape == (1, 16, 16, 16)
    assert out.unique().tolist() == [1]


# --- image and label ------------------------------------------------------------------------------------------------


def blobs(shape, seed=0):
    low = torch.rand(1, 1, *[n // 8 + 2 for n in shape], generator=torch.manual_seed(seed))
    return functional.interpolate(low, shape, mode="bilinear" if len(shape) == 2 else "trilinear")[0] * 4


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_label_move_together(dims):
    label = blobs(SHAPES[dims]).to(torch.uint8)
    one = transform("image", "label", mode="nearest", **EVERYTHING)
    out = one({"image": label.float(), "label": label})
    assert out["label"].dtype == torch.uint8
    assert torch.equal(out["image"], out["label"].float())
    assert not torch.equal(out["label"], label)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_linear_image_is_its_nearest_label_away_from_the_edge(dims):
    label = (blobs(SHAPES[dims]) > 2).to(torch.uint8)
    cube = np.ones([3] * dims)
    inside = binary_erosion(label[0], cube, border_value=1) | ~binary_dilation(label[0], cube)
    item = {"image": label.float(), "label": label, "inside": torch.tensor(inside)[None]}
    out = transform("image", "label", "inside", mode=["bilinear", "nearest", "nearest"], **EVERYTHING)(item)
    assert out["inside"].float().mean() > 0.4
    assert torch.allclose(out["image"][out["inside"]], out["label"][out["inside"]].float(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_a_label_keeps_its_dtype_and_its_values(dtype):
    label = (blobs(SHAPES[2]).to(torch.uint8) * 60).to(dtype)
    out = transform("label", **EVERYTHING)({"label": label})["label"]
    assert out.dtype == dtype
    assert set(out.unique().tolist()) <= set(label.unique().tolist())


def test_a_weight_map_moves_with_the_image_and_other_entries_stay():
    image = torch.rand(1, 30, 30)
    item = {"image": image, "weight": image.double(), "label": image > 0.5, "id": "a"}
    out = transform("image", "weight", "label", **EVERYTHING)(item)
    assert torch.equal(out["image"], out["weight"])
    assert out["weight"].dtype == torch.float32
    assert out["id"] == "a" and item["image"] is image


# --- space ----------------------------------------------------------------------------------------------------------


def in_mm(tensor, *spacing):
    return MetaTensor(tensor, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def test_sigma_in_mm_is_divided_by_the_spacing():
    item = {"image": in_mm(torch.rand(1, 24, 24, 24), 0.5, 2, 4)}
    pixels, mm = transform("image", sigma=1.0), transform("image", sigma_mm=2.0)
    pixels(item), mm(item)
    assert np.allclose(mm.warp.control, pixels.warp.control * [4, 1, 0.5])


def test_what_is_round_in_mm_stays_round_however_it_is_turned():
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in (61, 61, 21)], indexing="ij"), -1)
    ball = torch.tensor(np.exp(-(np.linalg.norm(grid * [1, 1, 3], axis=-1) ** 2) / (2 * 8**2)))[None].float()
    turning = {"sigma": 0, "rotation": 3.14}
    kept = transform("image", **turning)({"image": in_mm(ball, 1.0, 1.0, 3.0)})["image"]
    sheared = transform("image", **turning)({"image": ball})["image"]
    near = ball > 0.01  # the volume's corners look beyond its border
    assert (kept - ball)[near].abs().max() < 0.03  # linear interpolation of 3 mm slices: 3^2 / 8^2 / 8 and little more
    assert (sheared - ball)[near].abs().max() > 0.3


def test_metadata_is_dropped_since_the_place_has_changed():
    out = transform("image")({"image": in_mm(torch.rand(1, 8, 8), 1, 1, 1)})["image"]
    assert type(out) is torch.Tensor


# --- chance ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_and_another_seed_another():
    item = {"image": torch.rand(1, 30, 30)}
    first, again, other = (transform("image", seed=seed, **EVERYTHING)(item)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_how_much_is_drawn_depends_on_the_number_of_dimensions_alone():
    states = []
    for keywords in [{}, {"prob": 0.0, "size": 9}, {"sigma": 0, **EVERYTHING}]:
        one = transform("image", seed=3, **keywords)
        one.randomize((12, 30))
        states.append(one.R.random())
    assert len(set(states)) == 1


def test_prob_is_that_of_the_deformation_alone():
    bent = [bool(drawn((30, 30), seed, prob=0.3, rotation=1.0).control.any()) for seed in range(300)]
    turned = [drawn((30, 30), seed, prob=0.3, rotation=1.0).matrix[0, 1] != 0 for seed in range(300)]
    assert sum(bent) == pytest.approx(90, abs=24)
    assert all(turned)


def test_rotation_scale_and_shift_stay_in_their_ranges_and_use_them():
    warps = [drawn((31, 31), seed, rotation=0.5, scale=0.2, shift=[0, 6]) for seed in range(300)]
    zooms = [np.linalg.det(warp.matrix) ** -0.5 for warp in warps]
    angles = [np.arctan2(warp.matrix[0, 1], warp.matrix[0, 0]) for warp in warps]
    shifts = np.array([15 - warp.centre for warp in warps])
    assert 0.8 <= min(zooms) < 0.82 and 1.18 < max(zooms) <= 1.2
    assert -0.5 <= min(angles) < -0.48 and 0.48 < max(angles) <= 0.5
    assert not shifts[:, 0].any() and -6 <= shifts[:, 1].min() < -5.8 and 5.8 < shifts[:, 1].max() <= 6


# --- in a pipeline --------------------------------------------------------------------------------------------------

CONFIG = """
augmentation:
  _target_: pipeline.elastic.RandElasticAffined
  keys: [image, label]
  mode: [bilinear, nearest]
  size: 24
  sigma: null
  prob: 0.8
  rotation: 3.14
  scale: 0.1
  flip: 0.5
"""


def test_it_is_built_from_a_config_and_works_in_a_worker():
    one = Compose([ConfigParser(yaml.safe_load(CONFIG)).get_parsed_content("augmentation")]).set_random_state(0)
    assert pickle.loads(pickle.dumps(one)).transforms[0].size == 24
    items = [{"image": torch.rand(1, 40, 50), "label": torch.ones(1, 40, 50, dtype=torch.uint8)}] * 2
    (batch,) = DataLoader(Dataset(items, one), batch_size=2, num_workers=1)
    assert batch["image"].shape == batch["label"].shape == (2, 1, 24, 24)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dims", [2, 3])
def test_on_a_gpu_the_result_stays_there_and_is_that_of_the_cpu(dims):
    label = blobs(SHAPES[dims]).to(torch.uint8)
    item = {"image": blobs(SHAPES[dims]), "label": label}
    cpu = transform("image", "label", **EVERYTHING)(item)
    gpu = transform("image", "label", **EVERYTHING)({key: value.cuda() for key, value in item.items()})
    assert gpu["image"].is_cuda and gpu["label"].is_cuda
    assert torch.allclose(gpu["image"].cpu(), cpu["image"], atol=1e-3)
    assert (gpu["label"].cpu() != cpu["label"]).float().mean() < 1e-3  # ties between two pixels


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"mode": "linear"}, "`mode` must be one of 'bilinear', 'nearest', got 'linear': labels need 'nearest'"),
        ({"mode": ["nearest"]}, "`mode` must be one for all keys or one per key, got 1 for 2 keys"),
        ({"sigma": 3, "sigma_mm": 1}, "`sigma` and `sigma_mm` exclude each other, got 3 and 1: give one"),
        ({"sigma": -1}, "`sigma` must be a number of at least 0, got -1"),
        ({"sigma_mm": float("inf")}, "`sigma_mm` must be a number of at least 0, got inf"),
        ({"rotation": "1e-3"}, "`rotation` must be .*, got '1e-3': YAML takes 1e-3 for text, write 1.0e-3"),
        ({"rotation": [1, float("nan"), 1]}, r"`rotation` must be a number of at least 0, got \[1, nan, 1\]"),
        ({"scale": 1.1}, "`scale` must be a number of 0 to 0.9, got 1.1"),
        ({"flip": [0, 2]}, r"`flip` must be a number of 0 to 1, got \[0, 2\]"),
        ({"prob": 2}, "`prob` must be a number of 0 to 1, got 2"),
        ({"shift": None}, "`shift` must be a number of at least 0, got None"),
        ({"size": 0}, "`size` must be a whole number of at least 1, got 0"),
        ({"size": [64, 32.5]}, r"`size` must be a whole number of at least 1, got \[64, 32.5\]"),
    ],
)
def test_a_wrong_argument_is_refused_in_a_sentence(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        transform("image", "label", **keywords)


@pytest.mark.parametrize(
    ("keywords", "label", "sentence"),
    [
        ({}, (1, 8, 9), r"all keys must have one spatial shape, got \{'image': \(8, 8\), 'label': \(8, 9\)\}"),
        ({"size": (8, 8, 8)}, (1, 8, 8), r"`size` must be one number or 2, got \(8, 8, 8\)"),
        ({"rotation": [1, 1, 1]}, (1, 8, 8), r"`rotation` must be one number or 1, got \[1, 1, 1\]"),
        ({"sigma_mm": 1}, (1, 8, 8), r"`sigma_mm` needs a MetaTensor's spacing, got none in .*: use `sigma`, in px"),
    ],
)
def test_a_wrong_item_is_refused_in_a_sentence(keywords, label, sentence):
    with pytest.raises(ValueError, match=sentence):
        transform("image", "label", **keywords)({"image": torch.rand(1, 8, 8), "label": torch.rand(label)})


def test_an_item_without_channels_is_refused_and_a_missing_key_only_if_it_must_be_there():
    with pytest.raises(ValueError, match=r"must be \(C, H, W\) or \(C, X, Y, Z\), got the spatial shape \(8,\)"):
        transform("image")({"image": torch.rand(8, 8)})
    assert set(transform("image", "label", allow_missing_keys=True)({"image": torch.rand(1, 8, 8)})) == {"image"}
    assert transform("image", allow_missing_keys=True)({"id": 1}) == {"id": 1}


@pytest.mark.parametrize("shape", [(30, 41), (20, 17, 25)])
@pytest.mark.parametrize("shift", [0, 40, 300])
def test_what_lies_outside_is_mirrored_as_often_as_it_takes(shape, shift):
    transform = RandElasticAffined(["image", "label"], mode=["bilinear", "nearest"], rotation=3.14, shift=shift)
    transform.set_random_state(0).randomize(shape)
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    label = (image > 0.5).to(torch.uint8)
    warped, labelled = resample([image, label], ["bilinear", "nearest"], transform.warp)
    places = coordinates(transform.warp).movedim(-1, 0).double().numpy()
    theirs = [map_coordinates(each.double().numpy(), places, order=1, mode="mirror") for each in image]
    nearest = [map_coordinates(each.numpy(), places, order=0, mode="mirror") for each in label]
    np.testing.assert_allclose(warped.numpy(), theirs, atol=2e-4)
    assert labelled.dtype == torch.uint8 and (labelled.numpy() != nearest).mean() < 2e-3  # half-way between two
