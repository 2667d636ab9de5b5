"""Every causal layer sees exactly its past: shown by gradients from every output to every input."""

import pytest
import torch

from vqvae2.priors.causal_layers import CausalAttention, HorizontalConv, VerticalConv

HEIGHT, WIDTH = 4, 5


def seen_from(layer: torch.nn.Module, row: int, column: int, channels: int = 4) -> set[tuple[int, int]]:
    """The input positions on which the output at (row, column) depends."""
    x = torch.randn(1, channels, HEIGHT, WIDTH, dtype=torch.float64, requires_grad=True)
    layer.double()(x)[0, :, row, column].sum().backward()
    return {(r, c) for r in range(HEIGHT) for c in range(WIDTH) if x.grad[0, :, r, c].abs().sum() > 0}


def inside(positions: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(r, c) for r, c in positions if 0 <= r < HEIGHT and 0 <= c < WIDTH}


CASES = {
    "vertical, first": (lambda: VerticalConv(4, 4, first=True),
                        lambda r, c: {(r + i, c + j) for i in (-2, -1) for j in (-1, 0, 1)}),
    "vertical": (lambda: VerticalConv(4, 4), lambda r, c: {(r + i, c + j) for i in (-1, 0) for j in (-1, 0, 1)}),
    "horizontal, first": (lambda: HorizontalConv(4, 4, first=True), lambda r, c: {(r, c - 2), (r, c - 1)}),
    "horizontal": (lambda: HorizontalConv(4, 4), lambda r, c: {(r, c - 1), (r, c)}),
    "attention": (lambda: CausalAttention(4, 2),
                  lambda r, c: {(i, j) for i in range(HEIGHT) for j in range(WIDTH) if (i, j) <= (r, c)}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_layer_sees_exactly_the_positions_that_its_drawing_shows(name):
    make, expected = CASES[name]
    layer = make()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            assert seen_from(layer, row, column) == inside(expected(row, column)), (row, column)
