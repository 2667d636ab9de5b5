"""Numbers depend on (seed, purpose, numbers) and on nothing else."""

import numpy as np
import pytest
import torch

from vqvae2.common import random_numbers

GOLDEN = 0x9E3779B97F4A7C15


def test_the_hash_is_splitmix64():
    """First outputs of its reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) from state 0."""
    states = np.array([0, GOLDEN, 2 * GOLDEN % 2**64], np.uint64)
    assert [int(value) for value in random_numbers.mix(states)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_uniform_numbers_are_float64_from_0_to_below_1_and_even():
    numbers = random_numbers.uniform(0, "test", np.arange(100_000))
    assert numbers.dtype == torch.float64
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    # Chi-square with 99 degrees of freedom: mean 99, standard deviation 14; six of them is allowed.
    assert ((counts - 1000).square() / 1000).sum() < 99 + 6 * 14


def test_neighbouring_numbers_are_unrelated():
    grid = random_numbers.uniform(3, "test", np.arange(300)[:, None], np.arange(300)[None]).numpy() - 0.5
    for shifted in (grid[1:] * grid[:-1], grid[:, 1:] * grid[:, :-1], grid * grid.T * (1 - np.eye(300))):
        # A product of two independent numbers has standard deviation 1/12, its mean over n pairs 1 / (12 sqrt n).
        assert abs(shifted.mean()) < 6 / 12 / np.sqrt(shifted.size / 2)


def test_many_at_once_are_each_one_alone():
    items, channels = np.array([5, 0, 999]), np.arange(4)
    together = random_numbers.uniform(7, "dropout", 2, items[:, None], channels[None])
    assert together.shape == (3, 4)
    for i, item in enumerate(items):
        for j, channel in enumerate(channels):
            assert together[i, j] == random_numbers.uniform(7, "dropout", 2, int(item), int(channel))


@pytest.mark.parametrize("other", [
    (1, "order", 2, 3), (0, "ordes", 2, 3), (0, "order", 3, 2), (0, "order", 2), (0, "order", 2, 3, 0),
    (-1, "order", 2, 3)])
def test_another_seed_purpose_number_or_order_gives_another_key(other):
    assert int(random_numbers.keys(*other)) != int(random_numbers.keys(0, "order", 2, 3))


def test_a_generator_repeats_itself_and_differs_from_its_neighbours():
    first, again, other = (torch.rand(5, generator=random_numbers.generator(0, "order", epoch)) for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drawing_elsewhere_changes_nothing():
    before = random_numbers.uniform(0, "test", 1)
    torch.manual_seed(5)
    torch.rand(3)
    np.random.default_rng(1).random()
    assert random_numbers.uniform(0, "test", 1) == before
