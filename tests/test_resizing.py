import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from PIL import Image

from pipeline.errors import InputError
from pipeline.resizing import LongestSided, LongestSideInferer, resize


def test_the_answer_has_the_size_of_the_image_and_the_network_sees_the_small_one():
    seen = []

    def network(x):
        seen.append(tuple(x.shape))
        return torch.cat([x, -x], 1)

    answer = LongestSideInferer(SimpleInferer(), 64)(torch.rand(1, 1, 301, 200), network)
    assert seen == [(1, 1, 64, 43)]
    assert tuple(answer.shape) == (1, 2, 301, 200)


def test_without_a_size_nothing_is_resized():
    image = torch.rand(1, 1, 33, 20)
    assert torch.equal(LongestSideInferer(SimpleInferer(), None)(image, lambda x: x), image)
    assert torch.equal(LongestSided("image", None)({"image": image[0]})["image"], image[0])


def test_training_and_inference_resize_alike():
    image = torch.rand(1, 1, 100, 80)
    seen = []
    LongestSideInferer(SimpleInferer(), 32)(image, lambda x: seen.append(x) or x)
    assert torch.equal(LongestSided("image", 32)({"image": image[0]})["image"], seen[0][0])


def test_shrinking_smooths_as_pillow_does():
    image = np.random.default_rng(0).random((60, 48)).astype(np.float32)
    ours = resize(torch.as_tensor(image)[None, None], (20, 16))[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(image).resize((16, 20), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [32, 50, 128])
def test_image_and_label_stay_in_place(size):
    image = torch.zeros(1, 96, 64)
    image[:, 30:60, 20:50] = 1
    item = LongestSided(["image", "label"], size, ["bilinear", "nearest"])({"image": image, "label": image.byte()})
    assert item["label"].dtype == torch.uint8
    weights = [item["image"] / item["image"].sum(), item["label"].float() / item["label"].sum()]
    rows = torch.arange(item["image"].shape[1], dtype=torch.float32)
    centres = [float((w.sum(2)[0] * (rows + 0.5)).sum()) * 96 / len(rows) for w in weights]
    assert centres == pytest.approx([45, 45], abs=1)


def test_volumes_are_refused():
    with pytest.raises(InputError, match="`size` is for 2D images: set it to null"):
        LongestSideInferer(SimpleInferer(), 8)(torch.zeros(1, 1, 16, 16, 16), lambda x: x)
    with pytest.raises(InputError, match="`size` is for 2D images"):
        LongestSided("label", 8, "nearest")({"label": torch.zeros(1, 16, 16, 16)})
