"""Codes so far -> logits of the next: what every prior provides for training, sampling and evaluation.

A prior subclasses `Prior` and provides `forward`, which predicts a whole map. Sampling goes over a map position by
position through `cursor`; a prior that can keep what it has seen overrides `cursor` and saves the rest of the map.
"""

import torch
from torch import nn

from vqvae2.priors.conditions import Column


class Prior(nn.Module):
    """p(code | codes before it in raster order, condition) for one level's code maps."""

    shape: tuple[int, int]
    """Height and width of the code maps."""
    codebook_size: int
    columns: tuple[Column, ...] = ()
    """The columns of the manifest whose values the prior is told; it may have none."""

    maps_at_once: int | None = None
    """How many maps at most are drawn together, where more would take longer."""

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    def forward(self, codes: torch.Tensor, top_codes: torch.Tensor | None = None, known: torch.Tensor | None = None,
                keep: torch.Tensor | None = None, previous: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits `[batch, codebook_size, height, width]` of `codes` `[batch, height, width]`.

        Logits at a position do not depend on the code there or on any after it.

        Args:
            top_codes: `[batch, top height, top width]`, for a bottom prior.
            known: `[batch, columns]`, what is known of each image, NaN where it is not; None for nothing at all.
            keep: numbers of 0 or 1 / (1 - dropout) from the trainer, by which activations are multiplied.
            previous: `[batch, height, width]`, this level's codes of the previous slice, -1 where one is unknown, for a
                prior that is told them; None for nothing at all.
        """
        raise AssertionError("a prior provides forward()")

    @torch.no_grad()
    def logits(self, codes: torch.Tensor, top_codes: torch.Tensor | None = None, known: torch.Tensor | None = None,
               previous: torch.Tensor | None = None) -> torch.Tensor:
        """Return what `forward` returns, but for rounding, in the fastest way that needs no gradients."""
        return self(codes, top_codes, known, previous=previous)

    def cursor(self, batch: int, top_codes: torch.Tensor | None = None, known: torch.Tensor | None = None,
               previous: torch.Tensor | None = None) -> "WholeMapCursor":
        """Return a cursor over `batch` new code maps, which has the methods of `WholeMapCursor`.

        Its logits are those of `forward`, but for rounding.

        Args:
            top_codes, known, previous: as for `forward`, of all of the maps.
        """
        return WholeMapCursor(self, batch, top_codes, known, previous)


class WholeMapCursor:
    """A place in `batch` code maps that moves in raster order: `step`, then `tell`, for each position.

    This slow cursor computes the whole map for each position: it is the reference for all faster ones.
    """

    def __init__(self, prior: Prior, batch: int, top_codes: torch.Tensor | None, known: torch.Tensor | None,
                 previous: torch.Tensor | None = None):
        self.prior, self.told = prior, (top_codes, known, None, previous)
        self.maps = torch.zeros(batch, *prior.shape, dtype=torch.long, device=prior.device)
        self.row = 0

    @torch.no_grad()
    def step(self, row: int, column: int) -> torch.Tensor:
        """Return the logits `[batch, codebook_size]` of the next position, given the codes that were told."""
        self.row = row
        return self.prior(self.maps, *self.told)[:, :, row, column]

    def tell(self, column: int, codes: torch.Tensor) -> None:
        """Take the codes `[batch]` of the position whose logits `step` has just returned."""
        self.maps[:, self.row, column] = codes

    @torch.no_grad()
    def read_row(self, row: int, codes: torch.Tensor) -> torch.Tensor:
        """Return the logits `[width, batch, codebook_size]` of the next row, whose codes `[width, batch]` are known
        already: in place of `step` and `tell` at each of its positions."""
        self.maps[:, row] = codes.T
        return self.prior(self.maps, *self.told)[:, :, row].permute(2, 0, 1)
