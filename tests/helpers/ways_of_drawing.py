"""With compiled loops or without -> the same codes: for tests that hold for both ways to go over code maps."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from vqvae2.priors import stepping

COMPILED = pytest.param("compiled", marks=pytest.mark.skipif(stepping.compiled_loops() is None,
                                                             reason="numba is not installed"))
every_way = pytest.mark.parametrize("way", ["torch", COMPILED])


def cursor_of(way: str) -> type:
    """The class of the cursor."""
    return stepping.PixelCNNCursor if way == "torch" else stepping.compiled_loops().CompiledCursor


@contextlib.contextmanager
def drawing(way: str) -> Iterator[None]:
    """Priors are drawn from in this way meanwhile."""
    loops = None if way == "torch" else stepping.compiled_loops()
    with mock.patch.object(stepping, "compiled_loops", return_value=loops):
        yield
