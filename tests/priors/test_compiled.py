"""The parts of compiled loops beside what numpy does, and when there are none."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

numba = pytest.importorskip("numba", reason="numba is optional")

from vqvae2.priors import compiled  # noqa: E402
from vqvae2.priors.pixel_cnn import Convolution  # noqa: E402

every_type = pytest.mark.parametrize("number", [np.float32, np.float64])


@every_type
@given(rows=st.integers(1, 20), inner=st.integers(1, 40), columns=st.integers(1, 100), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_products_of_any_size_are_added_to_what_is_there_and_touch_nothing_else(number, rows, inner, columns, seed):
    """Sizes that fill tiles, and all that are left over; a row after the last is watched."""
    draws = np.random.default_rng(seed)
    out, x, w = (draws.standard_normal(shape).astype(number)
                 for shape in ((rows + 1, columns), (rows, inner), (inner, columns)))
    expected = out.astype(np.float64)
    expected[:rows] += x.astype(np.float64) @ w.astype(np.float64)
    compiled._add_product(out[:rows], x, w)
    np.testing.assert_allclose(out, expected, atol=100 * np.finfo(number).eps)


@every_type
@given(batch=st.integers(0, 3), channels=st.integers(1, 9), made=st.integers(1, 40), height=st.integers(1, 6),
       width=st.integers(1, 6), kernel=st.sampled_from([1, 3]), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_convolutions_are_those_of_torch(number, batch, channels, made, height, width, kernel, seed):
    torch.manual_seed(seed)
    own = torch.from_numpy(np.zeros(1, number)).dtype
    layer, x = Convolution(channels, made, kernel).to(own), torch.randn(batch, channels, height, width, dtype=own)
    expected = layer(x).detach()  # with gradients it is torch's own
    with torch.no_grad():
        found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=100 * np.finfo(number).eps)


@every_type
def test_exp_is_right_to_two_units_of_the_last_place(number):
    at = np.linspace(*((-87, 88) if number is np.float32 else (-700, 700)), 100_001, dtype=number)
    found = elementwise(at)
    assert found.dtype == number
    np.testing.assert_allclose(found, np.exp(at.astype(np.longdouble)), rtol=2 * np.finfo(number).eps)
    assert elementwise(np.zeros(1, number)) == 1


@every_type
def test_exp_of_what_is_too_large_or_small_is_finite_and_not_negative(number):
    found = elementwise(np.array([-np.inf, -1e30, 1e30, np.inf], number))
    assert np.isfinite(found).all()
    assert (found[:2] < 1e-37).all()
    assert (found[2:] > 1e37).all()


@numba.njit
def elementwise(x):
    found = np.empty_like(x)
    for i in range(len(x)):
        found[i] = compiled._exp(x[i])
    return found


def loops_with(**environment):
    code = "from vqvae2.priors.stepping import compiled_loops; print(compiled_loops() is None)"
    return subprocess.run([sys.executable, "-c", code], env=os.environ | environment, text=True, check=True,
                          capture_output=True).stdout.strip()


def test_where_numba_is_switched_off_there_are_none():
    assert loops_with(NUMBA_DISABLE_JIT="1") == "True"


def test_where_nothing_can_be_kept_on_the_disk_they_are_compiled_each_time(monkeypatch):
    def refused(function, **options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)(function)

    monkeypatch.setattr(compiled, "njit", lambda **options: lambda function: refused(function, **options))
    assert compiled.compiled(lambda x: x + 1)(2) == 3
