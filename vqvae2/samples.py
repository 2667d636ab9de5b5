"""Priors -> codes -> images: drawn code by code in raster order, each image by its own random numbers.

A code is drawn by inversion: the first one at which the cumulative probability passes the uniform number of
(seed, image number, level, position). So an image depends neither on the batch it is drawn in nor on what was
drawn before it, and two ways of computing the same logits draw the same codes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vqvae2 import conditions, random_numbers
from vqvae2.autoencoder import TrainedVqvae, Vqvae, load_vqvae
from vqvae2.cached import CachedPrior
from vqvae2.errors import UserError
from vqvae2.prior import Prior, load_prior


def load_models(vqvae_name: str, top_name: str | None, bottom_name: str | None, device: torch.device,
                results: Path = Path("results")) -> tuple[TrainedVqvae, dict[str, Prior]]:
    """Return the VQ-VAE and the priors that are named (folders, or names of runs), checked to belong together.

    Raises: UserError if one is missing, of another kind or level, or learned from another VQ-VAE's codes.
    """
    vqvae = load_vqvae(vqvae_name, device, results=results)
    names = {"top": top_name, "bottom": bottom_name}
    if bottom_name and "bottom" not in vqvae.model.levels:
        raise UserError(f"--bottom {bottom_name}: expected no bottom prior, since --vqvae {vqvae_name} has one level. "
                        "Drop --bottom.")
    return vqvae, {level: load_prior(name, level, vqvae.hash, device, results) for level, name in names.items() if name}


@dataclass(frozen=True)
class Taste:
    """How freely codes are drawn."""

    temperature: float = 1.0
    """Logits are divided by it: below 1 draws likelier codes."""
    top_k: int = 0
    """Only the K likeliest codes; 0 for all."""
    top_p: float = 1.0
    """Only the likeliest codes that together have this probability."""
    guidance: float = 1.0
    """How far what is known of the image counts: 1 as learned, above 1 more (Ho and Salimans 2022), 0 not at all."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return float64 probabilities `[batch, codebook_size]` of `logits` of that shape."""
        logits = logits.double() / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
        probabilities = logits.softmax(1)
        if self.top_p < 1:
            ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
            ranked[ranked.cumsum(1) - ranked >= self.top_p] = 0  # the likeliest stays, whatever it has
            probabilities = torch.zeros_like(ranked).scatter(1, order, ranked)
            probabilities /= probabilities.sum(1, keepdim=True)
        return probabilities


def choose(logits: torch.Tensor, numbers: torch.Tensor, taste: Taste) -> torch.Tensor:
    """Return codes `[batch]` from logits `[batch, codebook_size]` and uniform `numbers` `[batch]` in [0, 1)."""
    cumulative = taste.probabilities(logits).cumsum(1)
    # Rounding may leave the last sum below 1; the number is scaled so that it never passes the end.
    return torch.searchsorted(cumulative, (numbers[:, None] * cumulative[:, -1:]), right=True)[:, 0].clamp(
        max=logits.shape[1] - 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread: a position is so little work that threads would mostly wait for each other.

    Measured on two cores that another program keeps busy: 8 minutes with two threads, 11 seconds with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
@torch.no_grad()
def draw_codes(prior: Prior, numbers: list[int], seed: int, level: str, taste: Taste = Taste(),
               top_codes: torch.Tensor | None = None, stay: torch.Tensor | None = None,
               known: torch.Tensor | None = None, on_code: Callable[[], object] = lambda: None, cached: bool = True,
               ) -> torch.Tensor:
    """Return code maps `[batch, height, width]` of the images with these `numbers`.

    Args:
        prior: the level's prior, in eval mode.
        level: "top" or "bottom"; its draws differ from the other level's.
        top_codes: `[batch, top height, top width]`, for a bottom prior.
        stay: `[batch, height, width]`: codes that stay; -1 where one is to be drawn.
        known: `[batch, columns]`: what is known of each image, NaN where it is not (see `conditions.given`).
        on_code: called after each position.
        cached: False computes a whole map for each position: the reference that the fast way must equal.
    """
    height, width = prior.shape
    device = prior.bias.device
    uniform = torch.stack([random_numbers.uniform(seed, f"{level} codes", number, torch.arange(height * width).numpy())
                           for number in numbers]).view(-1, height, width)
    # MPS has no float64: there the choice is made on the CPU.
    choosing = torch.device("cpu") if device.type == "mps" else device
    uniform = uniform.to(choosing)
    maps = torch.zeros(len(numbers), height, width, dtype=torch.long, device=device)
    # With guidance each image goes through the network twice: with what is known of it, and without.
    twice = 2 if prior.columns and known is not None and taste.guidance != 1 else 1
    tops = None if top_codes is None else torch.cat([top_codes] * twice)
    knowns = torch.cat([known.to(device), torch.full_like(known, torch.nan).to(device)][:twice]) if prior.columns \
        and known is not None else None
    state = CachedPrior(prior, twice * len(numbers), tops, knowns) if cached else None
    for row in range(height):
        for column in range(width):
            logits = state.step(row, column) if cached else prior(
                torch.cat([maps] * twice), tops, knowns)[:, :, row, column]
            if twice == 2:
                told, untold = logits.chunk(2)
                logits = untold + taste.guidance * (told - untold)
            drawn = choose(logits.to(choosing), uniform[:, row, column], taste).to(device)
            if stay is not None:
                stays = stay[:, row, column].to(device)
                drawn = torch.where(stays >= 0, stays, drawn)
            maps[:, row, column] = drawn
            if cached:
                state.tell(column, torch.cat([drawn] * twice))
            on_code()
    return maps


@torch.no_grad()
def draw_images(vqvae: Vqvae, priors: dict[str, Prior], numbers: list[int], seed: int, tastes: dict[str, Taste],
                known: Sequence[str] = (), on_code: Callable[[], object] = lambda: None,
                ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images `[batch, channels, height, width]` in 0…1 with these `numbers`, and each level's codes.

    `known` is what is known of all images, as NAME=VALUE of the columns that at least one of the priors was told.
    """
    facts = known_of(priors, known, numbers, seed)
    maps = {"top": draw_codes(priors["top"], numbers, seed, "top", tastes["top"], known=facts["top"], on_code=on_code)}
    if "bottom" in vqvae.levels:
        maps["bottom"] = draw_codes(priors["bottom"], numbers, seed, "bottom", tastes["bottom"], maps["top"],
                                    known=facts["bottom"], on_code=on_code)
    return vqvae.decode(maps), maps


def known_of(priors: dict[str, Prior], texts: Sequence[str], numbers: Sequence[int], seed: int,
             ) -> dict[str, torch.Tensor]:
    """Return for each level `[batch, columns]`: what its prior is told of the images with these `numbers`.

    A value drawn from a range is the same for both levels.
    Raises: UserError if no prior was told of a column, or a value does not fit.
    """
    columns = {column.name: column for prior in priors.values() for column in prior.columns}
    draws = torch.stack([random_numbers.uniform(seed, f"condition {name}", np.asarray(numbers)) for name in columns], 1
                        ) if columns else torch.zeros(len(numbers), 0)
    table = conditions.given(tuple(columns.values()), texts, draws)
    places = {name: number for number, name in enumerate(columns)}
    return {level: table[:, [places[column.name] for column in prior.columns]] for level, prior in priors.items()}
