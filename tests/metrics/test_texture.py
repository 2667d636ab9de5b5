"""Spectrum and edges of sets of images: held to hand calculations and SciPy, and not to be bought by grain."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from vqvae2.metrics.texture import (
    BINS,
    CYCLES,
    STEEPEST,
    band_powers,
    bands,
    edge_distance,
    gradient_shares,
    power_ratios,
)


def as_images(*greys: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(greys).clip(0, 255).round().astype(np.uint8))[:, None]


def tissue(count: int, seed: int, side: int = 64) -> np.ndarray:
    """Even areas with sharp borders, of two greys within a bright disc on black: `[count, side, side]`."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[-1:1:side * 1j, -1:1:side * 1j]
    folds = np.stack([gaussian_filter(rng.normal(size=(side, side)), 3) > 0 for _ in range(count)])
    return np.where(down**2 + across**2 < 0.8, np.where(folds, 200.0, 100.0), 0)


def grainy(soft: np.ndarray, real: np.ndarray, seed: int) -> np.ndarray:
    """Give soft pictures back the power that they lack, with random phases."""
    lost = np.fft.rfft2(real - soft)
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=real.shape))
    return soft + np.fft.irfft2(abs(lost) * noise / abs(noise), s=real.shape[1:]) * (real > 0)


def softened(pictures: np.ndarray) -> np.ndarray:
    return np.stack([gaussian_filter(picture, 1.0) for picture in pictures])


@pytest.mark.parametrize(("size", "expected"), [
    (64, [(0, 8), (8, 16), (16, 24), (24, 32)]), (24, [(0, 8), (8, 12)]), (11, [(0, 5.5)])])
def test_bands_of_eight_cycles_reach_up_to_nyquists_frequency(size, expected):
    assert bands(size) == expected


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (63, 65)])
@pytest.mark.parametrize("frequency", [3, 12, 20])
def test_a_wave_has_its_power_in_the_band_of_its_frequency(shape, frequency):
    """In cycles per the smaller side, whichever way the wave runs."""
    for axis in (0, 1):
        place = np.arange(shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1)) / min(shape)
        wave = np.broadcast_to(100 * np.cos(2 * math.pi * frequency * place), shape)
        # The grey that the wave lies on has all its power in the first band.
        powers = band_powers(as_images(128 + wave))[0] - band_powers(as_images(np.full(shape, 128)))[0]
        assert abs(powers[frequency // CYCLES]) > 0.95 * abs(powers).sum()


def test_powers_add_up_to_those_of_all_frequencies_but_the_corners():
    noise = as_images(*np.random.default_rng(0).uniform(0, 255, (3, 40, 40)))
    window = torch.outer(*2 * [torch.hann_window(40, periodic=False, dtype=torch.float64)])
    power = torch.fft.fft2(noise[:, 0].double() / 255 * window).abs().square()
    cycles = torch.fft.fftfreq(40, dtype=torch.float64) * 40
    inside = (cycles[:, None].square() + cycles.square()).sqrt() < 20
    assert band_powers(noise).sum(1) == pytest.approx((power * inside).sum((1, 2)).numpy(), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 1.0), st.integers(0, 100))
def test_edges_do_not_know_contrast_and_the_spectrum_does(contrast, seed):
    pictures = tissue(4, seed)
    images, dimmed = as_images(*pictures), as_images(*(100 + contrast * (picture - 100) * (picture > 0) - 100 * (
        picture == 0) for picture in pictures))
    inner = [gradient_shares(some[:, :, 20:44, 20:44]) for some in (images, dimmed)]
    assert edge_distance(*inner, None, None, 0)["value"] == pytest.approx(0, abs=0.02)
    powers = [band_powers(some[:, :, 20:44, 20:44] - 100) for some in (images, dimmed)]
    assert power_ratios(powers[1], powers[0], None, None, 0)["value"] == pytest.approx(2 * [contrast**2], rel=0.1)


@pytest.mark.parametrize("side", [1, 2])
def test_the_distance_of_edges_is_scipys_wasserstein_distance_of_the_pixels_gradients(side):
    def gradients(pictures):
        found = []
        for grey in np.round(pictures) / 255:
            grey = grey.reshape(grey.shape[0] // side, side, grey.shape[1] // side, side).mean((1, 3))
            down, across = ((part[1:-1, 1:-1]) for part in np.gradient(grey))
            lit = np.lib.stride_tricks.sliding_window_view(grey, (3, 3)).mean((2, 3)) > 0.05
            steep = np.hypot(down, across)[lit]
            found.append(steep / steep.mean())
        return found

    sharp = tissue(3, 0)
    sets = sharp, softened(tissue(5, 1))
    distance = edge_distance(*(gradient_shares(as_images(*pictures), side) for pictures in sets), None, None, 0)
    weights = [np.concatenate([np.full(len(own), 1 / len(own)) for own in gradients(pictures)]) for pictures in sets]
    expected = wasserstein_distance(*(np.concatenate(gradients(pictures)) for pictures in sets), *weights)
    assert distance["value"] == pytest.approx(expected, abs=STEEPEST / BINS)


def test_grain_mends_the_spectrum_of_soft_pictures_and_takes_their_edges_further_away():
    real, other = tissue(12, 0), tissue(12, 1)
    soft = softened(other)
    made = {"real": other, "soft": soft, "grain": grainy(soft, other, 2)}
    ratios = {name: power_ratios(band_powers(as_images(*pictures)), band_powers(as_images(*real)), None, None, 0)
              for name, pictures in made.items()}
    edges = {name: edge_distance(gradient_shares(as_images(*pictures)), gradient_shares(as_images(*real)), None, None,
                                 0)["value"] for name, pictures in made.items()}
    finest = {name: found["value"][-1] for name, found in ratios.items()}
    assert finest["soft"] < 0.2 < 0.7 < finest["grain"]
    assert finest["real"] == pytest.approx(1, abs=0.1)
    assert edges["grain"] > edges["soft"] > 5 * edges["real"]


def test_intervals_are_over_subjects_and_hold_the_value():
    pictures = [as_images(*tissue(12, seed)) for seed in (0, 1)]
    subjects = [str(number // 4) for number in range(12)]
    for compare, measure in ((power_ratios, band_powers), (edge_distance, gradient_shares)):
        values = [measure(some) for some in pictures]
        wide, narrow = (compare(*values, groups, groups, 0) for groups in (subjects, None))
        for figures in (wide, narrow):
            value, low, high = (np.atleast_1d(figures[name]) for name in ("value", "ci_low", "ci_high"))
            assert (low <= high).all()
            assert (low[-1] <= value[-1] <= high[-1]) or compare is edge_distance
        assert wide["value"] == pytest.approx(narrow["value"])
        assert wide != narrow


def test_pictures_without_gradients_do_not_count_and_none_is_none():
    sharp, even = as_images(*tissue(2, 0)), as_images(np.full((64, 64), 90.0), np.zeros((64, 64)))
    shares = gradient_shares(torch.cat([sharp, even]))
    assert np.isnan(shares).all(1).tolist() == [False, False, True, True]
    assert edge_distance(shares, shares[:2], list("abcd"), list("ab"), 0)["value"] == 0
    none = {"value": None, "ci_low": None, "ci_high": None}
    assert edge_distance(shares[2:], shares, None, None, 0) == none
    assert power_ratios(band_powers(sharp[:0]), band_powers(sharp), None, None, 0) == {
        name: 4 * [None] for name in none}
