"""The mixture finds the tissues that an image was made of, in its own order, and is that of another library's EM."""

import numpy as np
import pytest

from vqvae2.metrics import tissue

MEANS, DEVIATION = (60, 120, 190), 12


def images_of(shares, count=4, side=64, seed=0, means=MEANS):
    """Images whose pixels are of three tissues in these shares, all of them brain: uint8 `[n, side, side]`."""
    rng = np.random.default_rng(seed)
    kinds = np.array([rng.permutation(np.repeat(np.arange(3), np.round(np.array(shares) * side**2).astype(int)))
                      for _ in range(count)]).reshape(count, side, side)
    return (np.array(means)[kinds] + rng.normal(0, DEVIATION, kinds.shape)).clip(0, 255).round().astype(np.uint8)


def counts_of(images):
    return tissue.histograms(images, np.ones(images.shape, bool))


@pytest.fixture(scope="module")
def start():
    """The mixture of images of all kinds together."""
    return tissue.first_mixture(counts_of(np.concatenate([images_of(shares) for shares in (
        (0.25, 0.25, 0.5), (0.125, 0.5, 0.375), (0.25, 0.5, 0.25))])))


def test_only_pixels_of_the_brain_are_counted():
    image, brain = np.full((1, 4, 4), 200, np.uint8), np.zeros((1, 4, 4), bool)
    image[0, 0, :3], brain[0, 0] = 8, True
    found = tissue.histograms(image, brain)[0]
    assert found.sum() == 4
    assert (found[2], found[50]) == (3, 1)  # 8 and 200, four grey values a bin


def test_the_first_mixture_finds_the_tissues_of_all_images_together(start):
    assert start.means[0] == pytest.approx(MEANS, abs=2)
    assert start.deviations[0] == pytest.approx(DEVIATION, abs=1.5)
    assert start.shares[0] == pytest.approx([0.625 / 3, 1.25 / 3, 1.125 / 3], abs=0.01)


@pytest.mark.parametrize("shares", [(0.125, 0.375, 0.5), (0.5, 0.25, 0.25), (0.0625, 0.5, 0.4375)])
def test_known_shares_are_found_in_each_image(shares, start):
    found = tissue.fitted(counts_of(images_of(shares, seed=3)), start).shares
    assert found == pytest.approx(np.tile(shares, (4, 1)), abs=0.02)
    assert found.sum(1) == pytest.approx(1)


def test_a_brighter_image_has_the_same_shares(start):
    shares = (0.25, 0.375, 0.375)
    bright = tissue.fitted(counts_of(images_of(shares, means=(80, 145, 215))), start)
    assert bright.shares == pytest.approx(np.tile(shares, (4, 1)), abs=0.02)
    assert (np.diff(bright.means, axis=1) > 0).all()


def test_an_image_without_fluid_has_little_of_it(start):
    assert tissue.fitted(counts_of(images_of((0.0, 0.5, 0.5))), start).shares[:, 0].max() < 0.02


def test_a_round_is_that_of_the_textbook(start):
    """One round, pixel by pixel: each belongs to the tissues in proportion to share x density."""
    image = images_of((0.25, 0.25, 0.5), count=1, side=8)
    found = tissue.fitted(counts_of(image), start, rounds=1)
    greys = tissue.WIDTH * (image.ravel() // tissue.WIDTH + 0.5)
    density = np.array([share * np.exp(-(greys - mean)**2 / (2 * start.deviations[0]**2))
                        for share, mean in zip(start.shares[0], start.means[0])])
    own = density / density.sum(0)
    means = (own * greys).sum(1) / own.sum(1)
    assert found.shares[0] == pytest.approx(own.sum(1) / 64)
    assert found.means[0] == pytest.approx(means)
    assert found.deviations[0] == pytest.approx(np.sqrt((own * (greys - means[:, None])**2).sum() / 64))


def test_an_image_without_a_brain_has_no_shares(start):
    found = tissue.fitted(np.zeros((1, tissue.BINS)), start)
    assert np.isnan(found.shares).all()


def test_no_images_have_no_shares(start):
    assert tissue.fitted(tissue.histograms(np.zeros((0, 4, 4), np.uint8), np.zeros((0, 4, 4), bool)),
                         start).shares.shape == (0, 3)
