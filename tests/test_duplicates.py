import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from pipeline import duplicates
from pipeline.duplicates import clusters, near_duplicates
from pipeline.manifest import Manifest
from pipeline.registration import correlation_after_registration
from tests.conftest import real


def patient(seed, shape=(200, 200)):
    """A bright, textured oval on black; another seed, another patient."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij"))
    oval = (grid[0] / 0.8) ** 2 + (grid[1] / 0.6) ** 2 < 1
    inside = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    return (oval * np.clip(120 + 60 * inside / inside.std(), 20, 250)).astype(np.float32)


def saved_as_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "JPEG", quality=60)
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


@pytest.mark.parametrize("every_pair", [duplicates.EVERY_PAIR, 0], ids=["every pair", "by hash"])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_among_strangers(copy, every_pair, monkeypatch):
    monkeypatch.setattr(duplicates, "EVERY_PAIR", every_pair)
    assert numbers([patient(1), patient(2), copy(patient(1)), patient(3)]) == [(0, 2)]


def test_a_crop_that_hashes_miss_is_found_where_every_pair_is_tried():
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
