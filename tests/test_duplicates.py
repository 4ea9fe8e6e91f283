import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from pipeline import duplicates
from pipeline.candidates import candidates, descriptor
from pipeline.duplicates import clusters, near_duplicates
from pipeline.manifest import Manifest
from pipeline.registration import correlation_after_registration, thumbnail
from tests.conftest import real


def patient(seed, shape=(200, 200)):
    """A bright, textured oval on black; another seed, another patient."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij"))
    oval = (grid[0] / 0.8) ** 2 + (grid[1] / 0.6) ** 2 < 1
    inside = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    return (oval * np.clip(120 + 60 * inside / inside.std(), 20, 250)).astype(np.float32)


def saved_as_jpeg(image, quality=60):
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32)


COPIES = {
    "as it is": lambda image: image,
    "JPEG": saved_as_jpeg,
    "brighter": lambda image: 1.4 * image + 30,
    "moved": lambda image: np.roll(image, (3, -2), (0, 1)),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned, moved and noisy": lambda image: (
        np.roll(image, 2, 0)[::-1, ::-1] + np.random.default_rng(9).normal(0, 3, image.shape)
    ),
    "half the size": lambda image: image.reshape(100, 2, 100, 2).mean((1, 3)),
}


def numbers(images, **options):
    return [(pair.first, pair.second) for pair in near_duplicates([lambda i=i: i for i in images], **options).pairs]


@pytest.mark.parametrize("every_pair", [duplicates.EVERY_PAIR, 0], ids=["every pair", "nearest"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_among_strangers(copy, every_pair, monkeypatch):
    monkeypatch.setattr(duplicates, "EVERY_PAIR", every_pair)
    assert numbers([patient(1), patient(2), copy(patient(1)), patient(3)]) == [(0, 2)]


def test_a_crop_that_is_not_among_the_nearest_is_found_where_every_pair_is_tried():
    assert numbers([patient(1)[:150, :150], patient(1)[40:190, 30:180]]) == [(0, 1)]


def test_black_slices_with_a_spot_are_not_one_patient_though_they_correlate():
    rows, columns = np.mgrid[:200, :200]
    spot = 200 * np.exp(-((rows - 100) ** 2 + (columns - 100) ** 2) / (2 * 40**2))
    first, second = (
        spot * (1 + 0.05 * ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=spot.shape), 1.5) * 5)
        for seed in (1, 2)
    )
    found = correlation_after_registration(first, second)
    assert found.correlation > duplicates.DUPLICATE > duplicates.DUPLICATE_EDGES > found.edges
    assert numbers([first, second]) == []


def test_slices_of_one_patient_are_not_looked_at():
    assert numbers([patient(1), patient(1), patient(1)], groups=["A", "A", "B"]) == [(0, 2), (1, 2)]


def test_blank_images_are_counted_and_left_out():
    blank = [np.zeros((50, 50)), np.zeros((50, 50)), np.full((50, 50), np.nan)]
    found = near_duplicates([lambda i=i: i for i in [*blank, patient(1)]])
    assert found == ([], 0, [0, 1, 2])


def test_images_of_other_proportions_are_no_candidates_of_each_other():
    assert numbers([patient(1), patient(1)[:, :100], patient(1, (200, 100))]) == []


def site(folder, **images):
    """A manifest of one TIFF per name."""
    for name, image in images.items():
        tifffile.imwrite(folder / f"{name}.tif", image.astype(np.float32))
    cases = [{"id": name, "patient": name, "image": f"{name}.tif"} for name in images]
    return Manifest(name="site", modality={"0": "light"}, unassigned=cases)


def test_clusters_hold_copies_tiles_of_one_picture_and_whoever_is_connected(tmp_path):
    whole = patient(7, (300, 300))
    manifest = site(
        tmp_path,
        d=patient(1)[:150, :150],
        c=whole[50:200, 150:],
        b=whole[50:200, :150],
        a=patient(2)[:150, :150],
        e=whole[50:200, 150:][::-1],
        black=np.zeros((150, 150)),
    )
    assert clusters(manifest, tmp_path) == {
        "a": "cluster-001",
        "b": "cluster-002",
        "c": "cluster-002",
        "e": "cluster-002",
        "black": "cluster-003",
        "d": "cluster-004",
    }


def test_equal_pixels_are_one_cluster_even_where_nothing_is_shown(tmp_path):
    manifest = site(tmp_path, a=np.zeros((50, 50)), b=np.zeros((50, 50)))
    rows = [case.model_copy(update={"pixels": "same"}) for case in manifest.unassigned]
    assert set(clusters(manifest.model_copy(update={"unassigned": rows}), tmp_path).values()) == {"cluster-001"}


def test_different_patients_of_a_public_collection_are_no_copies():
    folder = real("cxr_montgomery512") / "cxr"
    files = sorted(folder.glob("*.png"))[:10]
    images = [duplicates.grey_page(file) for file in files]
    assert numbers([*images, saved_as_jpeg(images[4][:, ::-1])]) == [(4, 10)]


def few_waves(seeds, count=16):
    """Descriptors of strangers: (N, D) of length 1."""
    values = np.abs(np.random.default_rng(seeds).normal(size=(count, 144))).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("flip", [(-1, 1), (1, -1), (-1, -1)])
def test_a_flip_has_the_descriptor_of_the_image(flip):
    image = thumbnail(patient(1, (200, 150)))
    np.testing.assert_allclose(descriptor(image[:: flip[0], :: flip[1]]), descriptor(image), atol=1e-6)


def test_candidates_are_the_nearest_of_other_groups_as_every_distance_tells_them():
    strangers = few_waves(0)
    close = strangers[[0, 1, 0, 0]] + np.float32([[0.003], [0.003], [0.001], [0.002]])
    values = np.concatenate([strangers, close / np.linalg.norm(close, axis=1, keepdims=True)])
    groups = np.arange(20)
    groups[17] = 1  # a copy inside its own group
    apart = np.linalg.norm(values[:, None] - values[None], axis=2)
    near = np.triu((apart < 0.2) & (groups[:, None] != groups), 1)
    assert sorted(map(tuple, candidates(values, groups).tolist())) == list(
        zip(*map(np.ndarray.tolist, near.nonzero()), strict=True)
    )


@pytest.mark.parametrize("count", [2, 63, 64, 65, 1000])
def test_equal_images_are_as_many_candidates_as_are_kept_and_no_more(count):
    pairs = candidates(np.repeat(few_waves(0, 1), count, axis=0), np.arange(count))
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs)) == count
    assert len(pairs) <= 8 * count


def moved(image, share):
    """Moved down and left, the lines that come in as the last ones were."""
    by = max(1, round(share * max(image.shape)))
    return np.pad(image, ((by, 0), (0, by)), "edge")[: image.shape[0], by:]


HIDDEN = {
    "JPEG of quality 40": lambda image: saved_as_jpeg(255 * (image - image.min()) / np.ptp(image), 40),
    "brighter": lambda image: np.minimum(1.4 * image + 30, 300),
    "moved by 1 %": lambda image: moved(image, 0.01),
    "moved by 3 %": lambda image: moved(image, 0.03),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "half the size": lambda image: image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)),
}
"""What hashes of 12 differing bits found among these images: 1, 1, 0.86, 0.42, 1, 1, 1."""


@pytest.mark.slow
def test_copies_hidden_among_real_slices_radiographs_and_strangers_are_candidates():
    slices = sorted(real("lgg_kaggle3m").glob("*/*[0-9].tif"))
    radiographs = sorted((real("cxr_montgomery512") / "cxr").glob("*.png"))
    images = [duplicates.grey_page(file) for file in slices + radiographs]
    names = [file.parent.name for file in slices] + [file.stem for file in radiographs]
    shown = [number for number, image in enumerate(images) if image.std() > 0]
    random = np.random.default_rng(0)
    known = np.stack([descriptor(thumbnail(images[number])) for number in shown])
    strangers = np.stack([descriptor(thumbnail(patient(seed, (64, 64)))) for seed in range(2000)])
    found = {}
    for name, copy in HIDDEN.items():
        chosen = random.choice(len(shown), 150, replace=False)
        copies = np.stack([descriptor(thumbnail(copy(images[shown[number]]))) for number in chosen])
        groups = np.unique(
            [*(names[n] for n in shown), *map(str, range(2000)), *(f"copy {n}" for n in chosen)], return_inverse=True
        )[1]
        pairs = {tuple(pair) for pair in candidates(np.concatenate([known, strangers, copies]), groups).tolist()}
        first = len(known) + len(strangers)
        found[name] = np.mean([(number, first + place) in pairs for place, number in enumerate(chosen)])
        assert len(pairs) < 8 * len(groups)
    assert all(share >= (0.97 if name == "moved by 3 %" else 1.0) for name, share in found.items()), found


@pytest.mark.slow
def test_no_two_patients_of_real_slices_and_radiographs_are_copies():
    slices = sorted(real("lgg_kaggle3m").glob("*/*[0-9].tif"))
    radiographs = sorted((real("cxr_montgomery512") / "cxr").glob("*.png"))
    names = [file.parent.name for file in slices] + [file.stem for file in radiographs]
    readers = [lambda file=file: duplicates.grey_page(file) for file in slices + radiographs]
    found = near_duplicates(readers, groups=names)
    assert found.pairs == []
