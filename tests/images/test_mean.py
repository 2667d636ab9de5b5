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


def test_an_image_that_is_dark_where_the_mean_is_bright_is_inverted_whatever_its_edge_and_its_brightness():
    """A brain that is bright in the middle, dark at the sides; the edge stays dark when it is inverted inside."""
    rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
    brain = np.hypot(rows, columns) < 0.95
    bright = np.where(brain, 0.9 - 0.6 * abs(columns), 0)
    inside = np.hypot(rows, columns) < 0.85
    images = torch.from_numpy(np.stack([bright, bright / 2, np.where(inside, 1.2 - bright, bright)])[:, None]).float()
    as_it_is, darker, inverted = mean.inverted(images, mean.coarse(images[:1])[0]).tolist()
    assert as_it_is == pytest.approx(-1, abs=1e-3)
    assert darker == pytest.approx(-1, abs=1e-3)
    assert inverted > 0.5


def test_next_to_no_brain_is_neither():
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 10:14, 10:14] = 0.5
    assert mean.inverted(image, torch.rand(16, 16)).isnan().all()
