"""The mean of a training set tells which way up its images are."""

import numpy as np
import pytest
import torch

from vqvae2.images import mean
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile


def head(rows=32):
    """A bright bar across the upper half, `[1, rows, rows]` uint8."""
    image = np.zeros((1, rows, rows), np.uint8)
    image[:, rows // 8:rows // 4, rows // 8:-rows // 8] = 200
    return image


def test_the_written_mean_is_that_of_all_images_in_16_by_16_areas(tmp_path):
    pixels = np.stack([head(), 0 * head(), 0 * head(), head()])
    mean.write(ImageSet(tuple(ImageFile(f"{n}.png", "train", "", "") for n in range(4)), pixels), tmp_path)
    expected = pixels.mean((0, 1)).reshape(16, 2, 16, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(mean.read(tmp_path), expected, atol=0.5 / 255)
    assert mean.read(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(("turn", "is_better"), [
    (lambda image: image, False), (lambda image: image.flip(-1), False),
    (lambda image: image.rot90(1, (-2, -1)), True), (lambda image: image.rot90(3, (-2, -1)), True)])
def test_only_an_image_on_its_side_would_fit_better_if_it_were_turned(turn, is_better):
    image = torch.from_numpy(head()).float()[None] / 255
    [gain] = mean.better_turned(turn(image), mean.coarse(image)[0]).tolist()
    assert (gain > 0.1) == is_better
    assert (gain < -0.1) == (not is_better)
