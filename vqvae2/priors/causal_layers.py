"""Feature maps -> feature maps that look only at the raster past, a whole map at a time.

Two stacks see the past without a blind spot (van den Oord 2016 [1], figure 1). The vertical stack at row r
knows rows above r, at full width; the horizontal stack at (r, c) knows row r left of c, and takes the
vertical stack's view of what is above. X is the position itself, 1 is seen, 0 is not:

    vertical, first layer   vertical, later   horizontal, first   horizontal, later
         1 1 1                   1 1 1
         1 1 1                   1 X 1           1 1 X                 1 X
         . X .

Later layers may look at X because its features, by the first layer, know nothing of its own code.

Sampling needs one position after the other: `stepping.py` evaluates the same weights so, and keeps what was seen.

References
[1] van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders.
[2] Chen et al. 2018, PixelSNAIL: An Improved Autoregressive Generative Model.
NOTE Departure from [1]: plain 2 x 3 and 1 x 2 kernels on padded maps; nothing is multiplied by a mask, so no
weight is computed in vain.
"""

import torch
from torch import nn

ROWS, COLUMNS = 2, 2
"""Rows that a vertical kernel reads, columns that a horizontal one reads."""


class CausalConv(nn.Module):
    """A convolution of a padded map, in which a negative padding cuts off what may not be seen."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int], padding: tuple[int, ...]):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels_in, channels_out, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels_in, height, width]` to `[batch, channels_out, height, width]`."""
        return self.conv(nn.functional.pad(x, self.padding))


class VerticalConv(CausalConv):
    """Output row r reads input rows r-1 and r at columns c-1…c+1; with `first`, rows r-2 and r-1."""

    def __init__(self, channels_in: int, channels_out: int, first: bool = False):
        super().__init__(channels_in, channels_out, (ROWS, 3), (1, 1, ROWS - 1 + first, -int(first)))


class HorizontalConv(CausalConv):
    """Output column c reads input columns c-1 and c of its row; with `first`, columns c-2 and c-1."""

    def __init__(self, channels_in: int, channels_out: int, first: bool = False):
        super().__init__(channels_in, channels_out, (1, COLUMNS), (COLUMNS - 1 + first, -int(first)))


class CausalAttention(nn.Module):
    """Self-attention over the raster past ([2] section 2.2), added to its input.

    Position (r, c) attends to itself and to all positions before it in raster order. Given features from
    the horizontal stack, "itself" knows nothing of its own code.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, height, width]` to the same shape."""
        batch, channels, height, width = x.shape
        split = self.query_key_value(nn.functional.elu(x)).view(
            batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = split.transpose(3, 4).unbind(1)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.out(seen.transpose(2, 3).reshape(x.shape))
