"""A prior and the codes drawn so far -> logits of the next code, for the cost of one position.

Every causal layer keeps what its next position needs: the vertical stack two rows, the horizontal stack two
columns, attention its keys and values. All of it is allocated once, and what Python does for a code is always the same.

Weights become matrices once; features are rows `[…, channels]`; a masked convolution is a matrix product with all
that its kernel sees, side by side. What the horizontal stack is given from above, by the condition and as biases is
computed for a whole row of codes, together with the vertical stack; a product is then added to it in place.

On a CPU, where numba is installed, `compiled.py` does the same in 0.3 to 0.6 of the time.
"""

import functools
import math
from types import ModuleType

import torch
from torch import nn

from vqvae2.priors.causal_layers import COLUMNS, ROWS, CausalAttention


@functools.cache
def compiled_loops() -> ModuleType | None:
    """Return the module `compiled.py`, or None where numba is not installed or switched off (NUMBA_DISABLE_JIT=1)."""
    try:
        from vqvae2.priors import compiled
    except ImportError:
        return None
    return compiled


class PixelCNNCursor:
    """A `PixelCNN` that goes over `batch` code maps position by position; its logits are those of `PixelCNN.forward`.

    They differ by rounding alone, since sums are added up in another order: in float64 by less than 1e-12, in float32
    by less than 1e-4.

    Example: `cursor = prior.cursor(8)`, and then for each row and column, in raster order,
    `logits = cursor.step(row, column)` `[8, codebook_size]`, and `cursor.tell(column, codes)` with the codes drawn.

    Args:
        prior: a `PixelCNN` in eval mode; its weights must not change meanwhile.
        batch: code maps at the same time.
        top_codes: `[batch, top height, top width]`, for a bottom prior.
        known, previous: `[batch, columns]` and `[batch, height, width]`, as for `PixelCNN.forward`.
    """

    @torch.no_grad()
    def __init__(self, prior: nn.Module, batch: int, top_codes: torch.Tensor | None = None,
                 known: torch.Tensor | None = None, previous: torch.Tensor | None = None):
        like, channels, (height, width) = prior.horizontal_place, prior.settings.channels, prior.shape
        self.prior, self.width, layers = prior, width, len(prior.layers)
        # The codes of this row.
        self.codes = torch.zeros(width, batch, dtype=torch.long, device=like.device)
        # Each layer's horizontal input, one column to the left and here.
        self.seen = like.new_zeros(layers, batch, COLUMNS, channels)
        self.left, self.here = self.seen.unbind(2)
        # The sum that each layer gives this row from above, from the condition and as biases.
        self.given = like.new_zeros(layers, width, batch, channels)
        # The horizontal stack's first input at each column of this row; the two after its end are never read.
        self.start = like.new_zeros(width + COLUMNS, batch, channels)
        condition = prior.condition(batch, top_codes, known, previous)
        # `[height, width, batch, channels]`; height and width are 1 where the condition is the same everywhere.
        self.condition = None if condition is None else condition.permute(2, 3, 0, 1)
        self.vertical_first = _VerticalRows(prior.vertical_first.conv, width, batch)
        self.layers = [_Layer(layer, seen, given)
                       for layer, seen, given in zip(prior.layers, self.seen, self.given)]
        self.attentions = {int(i): _Attention(attention, batch, height * width)
                           for i, attention in prior.attentions.items()}
        self.head = [_Product(conv, batch) for conv in prior.head if isinstance(conv, nn.Conv2d)]
        self.table = prior.table.T * prior.table.shape[1] ** -0.5
        # The first horizontal kernel is never multiplied: what each code adds to the next columns is in a table.
        kernel = prior.horizontal_first.conv.weight[:, :, 0].unbind(2)
        self.starts = torch.stack([prior.table @ column.T for column in reversed(kernel)])

    @torch.no_grad()
    def step(self, row: int, column: int) -> torch.Tensor:
        """Return the logits `[batch, codebook_size]` of the next position in raster order.

        Positions must be asked for in raster order, with `tell` between them.
        """
        if column == 0:
            self._begin_row(row)
        self.left.copy_(self.here)
        x = self.start[column]
        for i, (layer, given) in enumerate(zip(self.layers, self.given[:, column].unbind())):
            layer.step(x, given)
            if i in self.attentions:
                self.attentions[i].step(x, row * self.width + column)
        for product in self.head:
            x = product(nn.functional.elu(x))
        return torch.addmm(self.prior.bias, x, self.table)

    @torch.no_grad()
    def tell(self, column: int, codes: torch.Tensor) -> None:
        """Put the codes `[batch]` that were drawn at the position into the state."""
        self.codes[column] = codes
        self.start[column + 1:column + 1 + COLUMNS].add_(self.starts.index_select(1, codes))

    @torch.no_grad()
    def read_row(self, row: int, codes: torch.Tensor) -> torch.Tensor:
        """Return the logits `[width, batch, codebook_size]` of a row whose codes `[width, batch]` are known already.

        It stands for `step` and `tell` at each position of the row, and takes products of whole rows of codes.
        """
        self._begin_row(row)
        self.codes.copy_(codes)
        for distance, start in enumerate(self.starts, 1):
            self.start[distance:distance + self.width] += nn.functional.embedding(codes, start)
        x = self.start[:self.width].flatten(0, 1)
        for i, layer in enumerate(self.layers):
            layer.read_row(x)
            if i in self.attentions:
                self.attentions[i].read_row(x, row * self.width, self.width)
        for product in self.head:
            x = product(nn.functional.elu(x))
        return torch.addmm(self.prior.bias, x, self.table).view(*codes.shape, -1)

    def _begin_row(self, row: int) -> None:
        """The vertical stack knows only rows above, so that a whole row of it is computed at once."""
        prior = self.prior
        above = nn.functional.embedding(self.codes, prior.table)
        vertical = self.vertical_first.see(above if row else torch.zeros_like(above))
        vertical.view_as(self.given[0]).add_(prior.vertical_place[:, row].T[:, None])
        condition = None if self.condition is None else self.condition[row % len(self.condition)].flatten(0, 1)
        active = nn.functional.elu(vertical)
        for layer in self.layers:
            active = layer.begin_row(vertical, active, condition)
        self.seen.zero_()
        self.start.zero_()
        self.start[:self.width] += (prior.horizontal_place[:, row].T + prior.horizontal_first.conv.bias)[:, None]


class _Product:
    """A 1 x 1 or horizontal convolution as the product of rows `[rows, columns x channels_in]` with a matrix.

    Args:
        conv: its kernel and bias.
        rows: how many rows there will be.
    """

    def __init__(self, conv: nn.Conv2d, rows: int):
        self.bias, self.matrix = conv.bias, _matrix(conv.weight[:, :, 0])
        # One row's product is bound by reading the matrix, which goes faster along its longer side.
        if rows == 1 and self.matrix.shape[0] < self.matrix.shape[1]:
            self.matrix = self.matrix.contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, columns x channels_in]` to `[rows, channels_out]`."""
        return torch.addmm(self.bias, x, self.matrix)


class _VerticalRows:
    """A vertical convolution and the two rows that it sees, the last two that it was given; at first they are 0."""

    def __init__(self, conv: nn.Conv2d, width: int, batch: int):
        self.bias, self.width, self.batch = conv.bias, width, batch
        # Both rows of each column of the kernel, left to right, as one matrix.
        self.taps = [_matrix(column) for column in conv.weight.unbind(3)]
        # The row above and this row, with padding at both sides.
        self.rows = conv.weight.new_zeros(width + len(self.taps) - 1, batch, ROWS, conv.in_channels)

    def see(self, row: torch.Tensor) -> torch.Tensor:
        """Return what the kernel makes `[width x batch, channels_out]` of the last row and of this `[…, channels]`."""
        edge, batch = len(self.taps) // 2, self.batch
        self.rows[:, :, 0] = self.rows[:, :, 1]
        self.rows[edge:-edge, :, 1] = row.view(self.width, batch, -1)
        # Columns come before code maps, so that each tap sees one piece of memory.
        flat, seen = self.rows.flatten(2).flatten(0, 1), self.bias.repeat(self.width * batch, 1)
        for tap, matrix in enumerate(self.taps):
            seen.addmm_(flat[tap * batch:(tap + self.width) * batch], matrix)
        return seen


class _Layer:
    """A gated layer as matrices, with its vertical rows.

    Args:
        layer: whose weights these are.
        seen: `[batch, 2, channels]`, its horizontal input, kept by PixelCNNCursor.
        given: `[width, batch, channels]`, what it is given in this row.
    """

    def __init__(self, layer: nn.Module, seen: torch.Tensor, given: torch.Tensor):
        width, batch, _ = given.shape
        self.gate = layer.gate
        self.given, self.seen, self.here = given, seen.flatten(1), seen[:, -1]
        self.rows = _VerticalRows(layer.vertical_in.conv, width, batch)
        self.vertical_out, self.from_vertical = (_Product(conv, width * batch)
                                                 for conv in (layer.vertical_out, layer.from_vertical))
        self.horizontal_in, self.horizontal_out = (_Product(conv, batch)
                                                   for conv in (layer.horizontal_in.conv, layer.horizontal_out))
        self.from_condition = layer.from_condition and _Product(layer.from_condition, width * batch)

    def begin_row(self, vertical: torch.Tensor, active: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Go on to the next row of the vertical stack `[width x batch, channels]`, in place; return its ELU.

        Args:
            active: the ELU of `vertical` as it is before.
            condition: `[width x batch, channels]`, or `[batch, channels]` for all columns.
        """
        seen = nn.functional.elu_(self.rows.see(active))
        vertical += self.gate(self.vertical_out(seen))
        active = nn.functional.elu(vertical)
        self.given.copy_(self.from_vertical(active).view_as(self.given))
        self.given += self.horizontal_in.bias
        if condition is not None:
            self.given += self.from_condition(condition).view(-1, *self.given.shape[1:])
        return active

    def step(self, x: torch.Tensor, given: torch.Tensor) -> None:
        """Go on to the next position of the horizontal stack `[batch, channels]`, in place; `given` is used up."""
        nn.functional.elu_(self.here.copy_(x))
        given.addmm_(self.seen, self.horizontal_in.matrix)
        x += self.gate(self.horizontal_out(nn.functional.elu_(given)))

    def read_row(self, x: torch.Tensor) -> None:
        """Do `step` for all positions of the row, `x` `[width x batch, channels]`, in place."""
        seen, given, batch = nn.functional.elu(x), self.given.flatten(0, 1), self.given.shape[1]
        left, here = self.horizontal_in.matrix.split(x.shape[1])
        given.addmm_(seen, here)
        given[batch:].addmm_(seen[:-batch], left)
        x += self.gate(self.horizontal_out(nn.functional.elu_(given)))


class _Attention:
    """Causal attention as matrices, with the keys and values of all positions so far."""

    def __init__(self, attention: CausalAttention, batch: int, positions: int):
        self.heads, channels = attention.heads, attention.out.in_channels
        self.query_key_value, self.out = (_Product(conv, batch)
                                          for conv in (attention.query_key_value, attention.out))
        # Keys, values.
        self.past = attention.out.weight.new_zeros(2, batch, self.heads, positions, channels // self.heads)

    def step(self, x: torch.Tensor, position: int) -> None:
        """Add to `x` `[batch, channels]` what is found at this position, the `position`-th, and before it."""
        split = self.query_key_value(nn.functional.elu(x)).view(len(x), 3, self.heads, -1)
        self.past[:, :, :, position].copy_(split[:, 1:].transpose(0, 1))
        keys, values = self.past[:, :, :, :position + 1].flatten(1, 2)
        query = split[:, 0].reshape(len(keys), 1, -1) / math.sqrt(split.shape[-1])
        weights = torch.bmm(query, keys.transpose(1, 2)).softmax(-1)
        x += self.out(torch.bmm(weights, values).view_as(x))

    def read_row(self, x: torch.Tensor, start: int, width: int) -> None:
        """Do `step` for all positions of a row that begins at the `start`-th: `x` is `[width x batch, channels]`."""
        split = self.query_key_value(nn.functional.elu(x)).view(width, -1, 3, self.heads, self.past.shape[-1])
        query, *new = split.permute(2, 1, 3, 0, 4)
        self.past[:, :, :, start:start + width] = torch.stack(new)
        past = torch.ones(width, start + width, dtype=torch.bool, device=x.device).tril(start)
        keys, values = self.past[:, :, :, :start + width]
        seen = nn.functional.scaled_dot_product_attention(query, keys, values, past)
        x += self.out(seen.permute(2, 0, 1, 3).reshape(x.shape))


def _matrix(kernel: torch.Tensor) -> torch.Tensor:
    """Return `[places x channels_in, channels_out]` of a kernel `[channels_out, channels_in, places]`.

    Each of its columns lies in one piece, as it does in a kernel of one place, which is not copied.
    """
    return kernel.transpose(1, 2).flatten(1).T
