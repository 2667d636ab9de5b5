"""A prior and the codes drawn so far -> logits of the next code, for the cost of one position.

Every causal layer keeps what its next position needs: the vertical stack one row, the horizontal stack one
column, attention its keys and values. All of it is allocated once; nothing grows with the image.
"""

import torch
from torch.nn import functional

from vqvae2.prior import Prior


class CachedPrior:
    """A prior that goes over `batch` code maps position by position; its logits are those of `Prior.forward`.

    Example: `cached = CachedPrior(prior, 8)`, and then for each row and column, in raster order,
    `logits = cached.step(row, column)` `[8, codebook_size]`, and `cached.tell(column, codes)` with the codes drawn.

    Args:
        prior: in eval mode; its weights must not change meanwhile.
        batch: code maps at the same time.
        top_codes: `[batch, top height, top width]`, for a bottom prior.
        known: `[batch, columns]`, as for `Prior.forward`.
    """

    @torch.no_grad()
    def __init__(self, prior: Prior, batch: int, top_codes: torch.Tensor | None = None,
                 known: torch.Tensor | None = None):
        like, channels, (height, width) = prior.horizontal_place, prior.settings.channels, prior.shape
        dim, heads = prior.table.shape[1], prior.settings.heads
        zeros = lambda *shape: like.new_zeros(batch, *shape)  # noqa: E731
        self.prior = prior
        self.codes_above = zeros(dim, 2, width)
        """Embeddings of the two rows above."""
        self.row_codes = zeros(dim, 1, width + 2)
        """Embeddings of this row, two columns of padding at the left."""
        self.rows_above = [zeros(channels, 1, width) for _ in prior.layers]
        """For each layer its vertical input, one row above."""
        self.row = [zeros(channels, 1, width + 1) for _ in prior.layers]
        """For each layer its horizontal input in this row, padded at the left."""
        self.given = [zeros(channels, 1, width) for _ in prior.layers]
        """For each layer what this row is given from above and the condition."""
        self.keys, self.values = ([zeros(heads, height * width, channels // heads) for _ in prior.attentions]
                                  for _ in range(2))
        condition = prior.condition(batch, top_codes, known)
        self.condition = None if condition is None else condition.expand(-1, -1, height, width)

    @torch.no_grad()
    def step(self, row: int, column: int) -> torch.Tensor:
        """Return the logits `[batch, codebook_size]` of the next position in raster order.

        Positions must be asked for in raster order, with `tell` between them.
        """
        prior = self.prior
        if column == 0:
            self._begin_row(row)
        x = prior.horizontal_first.step(self.row_codes[..., column:column + 2])
        x = x + prior.horizontal_place[:, row, column, None, None]
        attention = 0
        for i, layer in enumerate(prior.layers):
            self.row[i][..., column + 1] = functional.elu(x[..., 0])
            seen = layer.horizontal_in.step(self.row[i][..., column:column + 2])
            x = layer.horizontal(x, seen + self.given[i][..., column:column + 1])
            if str(i) in prior.attentions:
                x = prior.attentions[str(i)].step(x, self.keys[attention], self.values[attention],
                                                  row * prior.shape[1] + column)
                attention += 1
        return prior.logits(x)[:, :, 0, 0]

    @torch.no_grad()
    def tell(self, column: int, codes: torch.Tensor) -> None:
        """Put the codes `[batch]` that were drawn at the position into the state."""
        self.row_codes[..., column + 2] = self.prior.embed(codes[:, None, None])[..., 0]

    def _begin_row(self, row: int) -> None:
        """The vertical stack knows only rows above, so that a whole row of it is computed at once."""
        prior = self.prior
        if row:
            self.codes_above = torch.cat([self.codes_above[:, :, 1:], self.row_codes[..., 2:]], 2)
        self.row_codes.zero_()
        vertical = prior.vertical_first.step(self.codes_above) + prior.vertical_place[:, row:row + 1]
        for i, layer in enumerate(prior.layers):
            here = functional.elu(vertical)
            vertical = layer.vertical(vertical, layer.vertical_in.step(torch.cat([self.rows_above[i], here], 2)))
            self.rows_above[i] = here
            condition = None if self.condition is None else self.condition[:, :, row:row + 1]
            self.given[i] = layer.given(vertical, condition)
            self.row[i].zero_()
