"""Priors -> codes -> images: drawn code by code in raster order, each image by its own random numbers.

A code is drawn by inversion: the first one at which the cumulative probability passes the uniform number of
(seed, image number, level, position). So an image depends neither on the batch it is drawn in nor on what was
drawn before it, and two ways of computing the same logits draw the same codes.

NOTE The last bits of logits depend on the batch, and a draw differs where its number lies that close to a boundary: in
float32 once in 75,000 draws (measured, batch 16 beside batch 1), which is one image in a grid of 64. So priors draw in
float64 (`in_float64`), where it does not happen in practice, at one and a half to two times the cost.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vqvae2.common import random_numbers
from vqvae2.models.autoencoder import TrainedVqvae, Vqvae, load_vqvae
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior, WholeMapCursor
from vqvae2.priors.pixel_cnn import load_prior
from vqvae2.settings.checks import expect


def load_models(vqvae_name: str, top_name: str | None, bottom_name: str | None, device: torch.device,
                results: Path = Path("results")) -> tuple[TrainedVqvae, dict[str, Prior]]:
    """Return the VQ-VAE and the priors that are named (folders, or names of runs), checked to belong together.

    Raises: UserError if one is missing, of another kind or level, or learned from another VQ-VAE's codes.
    """
    vqvae = load_vqvae(vqvae_name, device, results=results)
    names = {"top": top_name, "bottom": bottom_name}
    expect(not bottom_name or "bottom" in vqvae.model.levels, "--bottom",
           f"no bottom prior, since --vqvae {vqvae_name} has one level", bottom_name, "Drop --bottom.")
    return vqvae, {level: load_prior(name, level, vqvae.hash, device, results) for level, name in names.items() if name}


def in_float64(priors: Mapping[str, Prior]) -> dict[str, Prior]:
    """Return priors that draw the same codes in any batch: copies in float64, where the device (not MPS) has it."""
    return {level: prior if prior.device.type == "mps" else copy.deepcopy(prior).double()
            for level, prior in priors.items()}


@dataclass(frozen=True)
class SamplingRule:
    """The freedom with which codes are drawn.

    Args:
        temperature: logits are divided by it: below 1 draws likelier codes.
        top_k: only the K likeliest codes; 0 for all.
        top_p: only the likeliest codes that together have this probability.
        guidance: the weight of the facts of the image: 1 as learned, above 1 more (Ho and Salimans 2022), 0 not at all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return float64 probabilities `[batch, codebook_size]` of `logits` of that shape."""
        logits = logits.double() if self.temperature == 1 else logits.double() / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
        probabilities = logits.softmax(1)
        if self.top_p < 1:
            ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
            ranked[ranked.cumsum(1) - ranked >= self.top_p] = 0  # the likeliest stays, whatever it has
            probabilities = torch.zeros_like(ranked).scatter(1, order, ranked)
            probabilities /= probabilities.sum(1, keepdim=True)
        return probabilities


def choose(logits: torch.Tensor, numbers: torch.Tensor, rule: SamplingRule) -> torch.Tensor:
    """Return codes `[batch]` from logits `[batch, codebook_size]` and uniform `numbers` `[batch]` in [0, 1)."""
    cumulative = rule.probabilities(logits).cumsum(1)
    # Rounding may leave the last sum below 1; the number is scaled so that it never passes the end.
    return torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp_(
        max=logits.shape[1] - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread: a position is so little work that threads would mostly wait for each other.

    Measured on two cores that another program keeps busy: 8 minutes with two threads, 11 seconds with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
@torch.no_grad()
def draw_codes(prior: Prior, numbers: Sequence[int], seed: int, level: str, rule: SamplingRule = SamplingRule(),
               top_codes: torch.Tensor | None = None, stay: torch.Tensor | None = None,
               known: torch.Tensor | None = None, on_code: Callable[[], object] = lambda: None, cached: bool = True,
               candidates: Sequence[int] | None = None) -> torch.Tensor:
    """Return code maps `[batch, height, width]` of the images with these `numbers`.

    Args:
        prior: the level's prior, in eval mode.
        level: "top" or "bottom"; its draws differ from the other level's.
        top_codes: `[batch, top height, top width]`, for a bottom prior.
        stay: `[batch, height, width]`: codes that stay; -1 where one is to be drawn.
        known: `[batch, columns]`: what is known of each image, NaN where it is not (see `conditions.given`).
        on_code: called after each position.
        cached: False computes a whole map for each position: the reference that the fast way must equal.
        candidates: for each image which of its candidates it is, each with random numbers of its own; 0 if not given.
    """
    height, width = prior.shape
    positions, device = height * width, prior.device
    # MPS has no float64: there the choice is made on the CPU.
    choosing = torch.device("cpu") if device.type == "mps" else device
    # Candidate 0 has the random numbers of an image without candidates.
    purposes = [f"{level} codes" + (f" of candidate {candidate}" if candidate else "")
                for candidate in candidates or [0] * len(numbers)]
    uniform = torch.stack([random_numbers.uniform(seed, purpose, number, np.arange(positions))
                           for purpose, number in zip(purposes, numbers)], 1).contiguous().to(choosing)
    stay = torch.full((len(numbers), height, width), -1) if stay is None else stay
    to_draw = (stay < 0).any(0).flatten().tolist()
    # A code that stays is known from the start, and nothing needs to be computed after the last that is drawn.
    end = positions - to_draw[::-1].index(True) if True in to_draw else 0
    stay = stay.to(device)
    maps = stay.clamp(min=0)
    known = None if known is None or not prior.columns else known.to(device)
    copies = 1 if known is None or rule.guidance == 1 else 2
    if copies == 2:  # guided: first the images with what is known of them, then the same without
        known = torch.cat([known, torch.full_like(known, torch.nan)])
        top_codes = None if top_codes is None else torch.cat([top_codes, top_codes])
    make = prior.cursor if cached else functools.partial(WholeMapCursor, prior)
    cursor = make(copies * len(numbers), top_codes, known) if end else None
    for position in range(end):
        row, column = divmod(position, width)
        logits, *untold = cursor.step(row, column).chunk(copies)
        if untold:
            logits = untold[0] + rule.guidance * (logits - untold[0])
        if to_draw[position]:
            drawn = choose(logits.to(choosing), uniform[position], rule).to(device)
            maps[:, row, column] = torch.where(stay[:, row, column] < 0, drawn, maps[:, row, column])
        cursor.tell(column, maps[:, row, column].repeat(copies))
        on_code()
    for _ in range(end, positions):
        on_code()
    return maps


def draw_maps(priors: Mapping[str, Prior], numbers: Sequence[int], seed: int, rules: Mapping[str, SamplingRule],
              facts: Mapping[str, torch.Tensor], on_code: Callable[[], object] = lambda: None,
              stay: Mapping[str, torch.Tensor] | None = None, candidates: Sequence[int] | None = None,
              ) -> dict[str, torch.Tensor]:
    """Return each level's code maps `[batch, height, width]`, the bottom's drawn given the top's.

    Args:
        facts: for each level `[batch, columns]`, what its prior is told (see `known_of`).
        stay, candidates: for each level, and for each image, as for `draw_codes`.
    """
    maps: dict[str, torch.Tensor] = {}
    for level, prior in priors.items():  # top first: `load_models` has them in this order
        maps[level] = draw_codes(prior, numbers, seed, level, rules[level], maps.get("top"),
                                 None if stay is None else stay[level], facts[level], on_code, candidates=candidates)
    return maps


@torch.no_grad()
def draw_images(vqvae: Vqvae, priors: dict[str, Prior], numbers: list[int], seed: int, rules: dict[str, SamplingRule],
                on_code: Callable[[], object] = lambda: None, facts: Mapping[str, torch.Tensor] | None = None,
                ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images `[batch, channels, height, width]` in 0…1 with these `numbers`, and each level's codes.

    `facts`: as for `draw_maps`; priors are told nothing if it is not given. `candidates.Drawer` has all that sample.py
    offers.
    """
    own = in_float64({level: priors[level] for level in vqvae.levels})
    maps = draw_maps(own, numbers, seed, rules, facts or known_of(priors, (), numbers, seed), on_code)
    # One by one: the last bits of a decoded image depend on the batch too, and so might its bytes.
    return torch.cat([vqvae.decode({level: one[i:i + 1] for level, one in maps.items()})
                      for i in range(len(numbers))]), maps


@torch.no_grad()
def bits_per_code(priors: Mapping[str, Prior], maps: Mapping[str, torch.Tensor], facts: Mapping[str, torch.Tensor],
                  ) -> torch.Tensor:
    """Return float64 `[batch]`: -log2 p of all of an image's codes, at temperature 1, divided by their number.

    Args:
        maps: for each level `[batch, height, width]`, without -1; facts: for each level `[batch, columns]`.
    The least is the likeliest: p is the product over the levels, p(top) p(bottom | top). No guidance is in it. Images
    go through the networks one by one, so that the last bits do not depend on the batch.
    """
    total = torch.zeros(len(maps["top"]), dtype=torch.float64)
    for level, prior in priors.items():
        for i in range(len(total)):
            codes, top_codes, known = maps[level][i:i + 1], maps["top"][i:i + 1], facts[level][i:i + 1]
            logits = prior(codes, top_codes, known.to(codes.device) if prior.columns else None)
            nats = functional.cross_entropy(logits, codes, reduction="none").cpu().double().sum()
            total[i] += nats.item() / math.log(2)
    return total / sum(math.prod(prior.shape) for prior in priors.values())


def known_of(priors: dict[str, Prior], texts: Sequence[str], numbers: Sequence[int], seed: int,
             ) -> dict[str, torch.Tensor]:
    """Return for each level `[batch, columns]`: what its prior is told of the images with these `numbers`.

    A value drawn from a range is the same for both levels.
    Raises: UserError if no prior was told of a column, or a value does not fit.
    """
    columns = {column.name: column for prior in priors.values() for column in prior.columns}
    draws = {name: random_numbers.uniform(seed, f"condition {name}", np.asarray(numbers)) for name in columns}

    def table(told: Sequence[conditions.Column], texts: Sequence[str]) -> torch.Tensor:
        own = [draws[column.name] for column in told]
        return conditions.given(told, texts, torch.stack(own, 1) if own else torch.zeros(len(numbers), 0))

    table(tuple(columns.values()), texts)  # raises for a column that no prior was told
    # Each prior has its own unit: priors that were trained on other images have other means.
    return {level: table(prior.columns, [text for text in texts if conditions.name_in(text, columns) in
                                         {column.name for column in prior.columns}]) for level, prior in priors.items()}
