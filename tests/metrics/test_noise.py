"""Rician noise has the moments that the literature gives it; an estimate of noise finds the noise that was added."""

import math

import pytest
import torch

from vqvae2.metrics import noise

SIDE = 96


def grey(level, count=1):
    return torch.full((count, 1, SIDE, SIDE), level)


def with_noise(images, deviation, numbers=None, **more):
    return noise.add_rician(images, torch.full((len(images),), deviation), 0, "test", numbers or range(len(images)),
                            **more)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.5])
def test_the_mean_square_is_that_of_the_image_and_twice_the_variance(level):
    """Gudbjartsson and Patz 1995, equation 2."""
    made = with_noise(grey(level, 8), 0.05)
    assert made.square().mean().item() == pytest.approx(level**2 + 2 * 0.05**2, rel=0.01)


def test_black_becomes_grey_with_the_mean_of_rayleighs_distribution():
    assert with_noise(grey(0.0, 8), 0.05).mean().item() == pytest.approx(0.05 * math.sqrt(math.pi / 2), rel=0.01)


def test_images_stay_within_black_and_white_and_no_noise_changes_nothing():
    made = with_noise(grey(0.99), 0.2)
    assert made.max() == 1
    assert made.min() >= 0
    assert torch.equal(with_noise(grey(0.3), 0.0), grey(0.3))


def test_noise_is_that_of_the_images_number_whatever_the_batch():
    several = with_noise(grey(0.3, 3), 0.1, [4, 7, 9])
    assert torch.equal(several[1:2], with_noise(grey(0.3), 0.1, [7]))
    assert not torch.equal(several[0], several[1])
    assert not torch.equal(several, with_noise(grey(0.3, 3), 0.1, [4, 7, 9], epoch=1))
    assert with_noise(grey(0.3, 0), 0.1).shape == (0, 1, SIDE, SIDE)


def test_the_estimate_is_the_deviation_that_was_added_inside_the_brain():
    brain = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    brain[:, 10:80, 10:80] = True
    images = grey(0.5, 2)
    images[0] = with_noise(images[:1], 0.04)
    images[1] = torch.where(brain[1], with_noise(images[1:], 0.08), with_noise(images[1:], 0.3))
    assert noise.estimate(images, brain).tolist() == pytest.approx([0.04, 0.08], rel=0.05)


def test_edges_along_rows_and_columns_and_a_slope_are_no_noise():
    brain = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    slope = torch.linspace(0, 1, SIDE).expand(1, 1, SIDE, SIDE).clone()
    slope[..., 40:] += 0.5
    assert noise.estimate(slope, brain).item() == pytest.approx(0, abs=1e-6)


def test_without_a_brain_there_is_no_estimate():
    thin = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    thin[:, 10:13] = True
    assert math.isnan(noise.estimate(grey(0.5), thin).item())
