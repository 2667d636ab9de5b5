"""Priors -> codes -> images: drawn code by code in raster order, each image by its own random numbers.

A code is drawn by inversion: the first one at which the cumulative probability passes the uniform number of
(seed, image number, level, position). So an image depends neither on the batch it is drawn in nor on what was
drawn before it, and two ways of computing the same logits draw the same codes.

NOTE The last bits of logits depend on the batch, and a draw differs where its number lies that close to a boundary: in
float32 once in 75,000 draws (measured, batch 16 beside batch 1), which is one image in a grid of 64. So priors draw in
float64 (`in_float64`), where it does not happen in practice, at one and a half to two times the cost.

With `--reject N` each image is drawn N times, with random numbers of (seed, image, candidate), and the best is kept:
- likelihood: the candidate whose codes are the likeliest, -log2 p of both maps at temperature 1 in bits per code. Of a
  completion the codes that stay count too: those after the drawn ones say how well they fit.
- agreement: the one that, decoded to 8 bit and encoded again, has the most of its codes back (share of all codes, 0…1):
  codes that come back lie where the autoencoder has learned to put images.
- classifier: the one that small classifiers take for the image of a real slice most readily (`critic.py`).

NOTE The likeliest image is not the most typical one: of a thousand throws of a coin that shows heads in six of ten,
the likeliest are all heads. Measured with one small prior (64 x 64 pixels, 32 images): the best of 8 by likelihood have
brains that cover 24 % of the picture and not 30 %, are darker, and vary less (standard deviation of a pixel over images
0.042 and not 0.056); by agreement 25 % and 0.047. Both favour background, which is easy.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vqvae2.common import machine, random_numbers
from vqvae2.common.errors import expect
from vqvae2.images.dataset import to_bytes
from vqvae2.models.autoencoder import TrainedVqvae, Vqvae, code_grids, load_vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors import conditions, stepping
from vqvae2.priors.base import Prior, WholeMapCursor
from vqvae2.priors.pixel_cnn import load_prior
from vqvae2.priors.settings import PREVIOUS_MM
from vqvae2.sampling import critic
from vqvae2.sampling.inpainting import IncompleteImages
from vqvae2.sampling.settings import SampleSettings, of_level


def load_models(vqvae_name: str, top_name: str | None, bottom_name: str | None, device: torch.device,
                results: Path = Path("results")) -> tuple[TrainedVqvae, dict[str, Prior]]:
    """Return the VQ-VAE and the priors that are named (folders, or names of runs), checked to belong together.

    Raises: UserError if one is missing, of another kind or level, or learned from another VQ-VAE's codes.
    """
    vqvae = load_vqvae(vqvae_name, device, results=results)
    names = {"top": top_name, "bottom": bottom_name}
    expect(not bottom_name or "bottom" in vqvae.model.levels, "--bottom",
           f"no bottom prior, since --vqvae {vqvae_name} has one level", bottom_name, "Drop --bottom.")
    priors = {level: load_prior(name, level, vqvae.hash, device, results) for level, name in names.items() if name}
    for level, prior in priors.items():
        own = vqvae.model.settings.codebook_size, code_grids(vqvae)[level]
        expect((prior.codebook_size, prior.shape) == own, f"--{level} {names[level]}", f"a prior of {own[0]} codes "
               f"on maps of {own[1]}, as --vqvae {vqvae_name} has", f"{prior.codebook_size} on {prior.shape}",
               "Train the prior again.")
    return vqvae, priors


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
            ranked = ranked.masked_fill(ranked.cumsum(1) - ranked >= self.top_p, 0)  # the likeliest stays at any rate
            probabilities = torch.zeros_like(ranked).scatter(1, order, ranked)
            probabilities /= probabilities.sum(1, keepdim=True)
        return probabilities


def choose(logits: torch.Tensor, numbers: torch.Tensor, rule: SamplingRule) -> torch.Tensor:
    """Return codes `[batch]` from logits `[batch, codebook_size]` and uniform `numbers` `[batch]` in [0, 1)."""
    loops, plain = stepping.compiled_loops(), rule.top_p == 1 and not 0 < rule.top_k < logits.shape[1]
    if plain and loops is not None and logits.device.type == "cpu":
        return loops.choose(logits, numbers, rule.temperature)
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
               candidates: Sequence[int] | None = None, previous: torch.Tensor | None = None) -> torch.Tensor:
    """Return code maps `[batch, height, width]` of the images with these `numbers`.

    Args:
        prior: the level's prior, in eval mode.
        level: "top" or "bottom"; its draws differ from the other level's.
        top_codes: `[batch, top height, top width]`, for a bottom prior.
        stay: `[batch, height, width]`: codes that stay; -1 where one is to be drawn.
        known: `[batch, columns]`: what is known of each image, NaN where it is not (see `conditions.from_texts`).
        on_code: called after each position.
        cached: False computes a whole map for each position: the reference that the fast way must equal.
        candidates: for each image which of its candidates (or of the slices of its brain) it is, each with random
            numbers of its own; 0 if not given.
        previous: `[batch, height, width]`: codes of the previous slice, -1 where one is unknown, for a prior that is
            told them.
    """
    at_once = prior.maps_at_once
    if cached and at_once is not None and len(numbers) > at_once:
        groups = torch.arange(len(numbers)).split(at_once)
        positions = itertools.count(1)
        return torch.cat([draw_codes(
            prior, [numbers[item] for item in own], seed, level, rule,
            *(None if given is None else given[own] for given in (top_codes, stay, known)),
            lambda: on_code() if next(positions) % len(groups) == 0 else None, cached,
            candidates and [candidates[item] for item in own], None if previous is None else previous[own])
            for own in groups])
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
        is_fact = torch.tensor([column.name != PREVIOUS_MM for column in prior.columns], device=device)
        known = torch.cat([known, known.masked_fill(is_fact, torch.nan)])
        top_codes, previous = (given if given is None else torch.cat([given, given]) for given in (top_codes, previous))
    some_stay = bool((stay >= 0).any())
    make = prior.cursor if cached else functools.partial(WholeMapCursor, prior)
    cursor = make(copies * len(numbers), top_codes, known, previous) if end else None
    for position in range(end):
        row, column = divmod(position, width)
        logits, *untold = cursor.step(row, column).chunk(copies)
        if untold:
            logits = untold[0] + rule.guidance * (logits - untold[0])
        if to_draw[position]:
            drawn = choose(logits.to(choosing), uniform[position], rule).to(device)
            maps[:, row, column] = torch.where(stay[:, row, column] < 0, drawn, maps[:, row, column]) if some_stay \
                else drawn
        told = maps[:, row, column]
        cursor.tell(column, told if copies == 1 else torch.cat([told, told]))
        on_code()
    for _ in range(end, positions):
        on_code()
    return maps


def draw_maps(priors: Mapping[str, Prior], numbers: Sequence[int], seed: int, rules: Mapping[str, SamplingRule],
              facts: Mapping[str, torch.Tensor], on_code: Callable[[], object] = lambda: None,
              stay: Mapping[str, torch.Tensor] | None = None, candidates: Sequence[int] | None = None,
              previous: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return each level's code maps `[batch, height, width]`, the bottom's drawn given the top's.

    Args:
        facts: for each level `[batch, columns]`, what its prior is told (see `condition_values`).
        stay, previous: for each level as for `draw_codes`; candidates: for each image.
    """
    maps: dict[str, torch.Tensor] = {}
    for level, prior in priors.items():  # top first: `load_models` has them in this order
        maps[level] = draw_codes(prior, numbers, seed, level, rules[level], maps.get("top"),
                                 None if stay is None else stay[level], facts[level], on_code,
                                 candidates=candidates, previous=None if previous is None else previous[level])
    return maps


@torch.no_grad()
def draw_images(vqvae: Vqvae, priors: dict[str, Prior], numbers: list[int], seed: int, rules: dict[str, SamplingRule],
                on_code: Callable[[], object] = lambda: None, facts: Mapping[str, torch.Tensor] | None = None,
                on_image: Callable[[], object] = lambda: None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images `[batch, channels, height, width]` in 0…1 with these `numbers`, and each level's codes.

    Args:
        facts: as for `draw_maps`; priors are told nothing if it is not given.
        on_code, on_image: called when a code of all images is drawn, and before each image is decoded.
    `ImageSampler` has all that sample.py offers.
    """
    own = in_float64({level: priors[level] for level in vqvae.levels})
    maps = draw_maps(own, numbers, seed, rules, facts or condition_values(priors, (), numbers, seed), on_code)
    # One by one: the last bits of a decoded image depend on the batch too, and so might its bytes.
    images = []
    for i in range(len(numbers)):
        on_image()
        images.append(vqvae.decode({level: codes[i:i + 1] for level, codes in maps.items()}))
    return torch.cat(images), maps


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
        known = machine.to_device(facts[level], prior.device) if prior.columns else None
        nats = []
        for i in range(len(total)):
            codes, top_codes = maps[level][i:i + 1], maps["top"][i:i + 1]
            logits = prior.logits(codes, top_codes, None if known is None else known[i:i + 1])
            nats.append(functional.cross_entropy(logits, codes, reduction="none"))
        for i, own in enumerate(torch.cat(nats).cpu()):
            total[i] += own.double().sum().item() / math.log(2)
    return total / sum(math.prod(prior.shape) for prior in priors.values())


def condition_values(priors: dict[str, Prior], texts: Sequence[str], numbers: Sequence[int], seed: int,
                     ) -> dict[str, torch.Tensor]:
    """Return for each level `[batch, columns]`: what its prior is told of the images with these `numbers`.

    A value drawn from a range is the same for both levels.
    Raises: UserError if no prior was told of a column, or a value does not fit.
    """
    columns = {column.name: column for prior in priors.values() for column in prior.columns}
    draws = {name: random_numbers.uniform(seed, f"condition {name}", np.asarray(numbers)) for name in columns}

    def table(told: Sequence[conditions.Column], texts: Sequence[str]) -> torch.Tensor:
        own = [draws[column.name] for column in told]
        return conditions.from_texts(told, texts, torch.stack(own, 1) if own else torch.zeros(len(numbers), 0))

    table(tuple(columns.values()), texts)  # raises for a column that no prior was told
    # Each prior has its own unit: priors that were trained on other images have other means.
    return {level: table(prior.columns, [text for text in texts if conditions.name_in(text, columns) in
                                         {column.name for column in prior.columns}]) for level, prior in priors.items()}


SCORES = {"likelihood": ("bits_per_code", min), "agreement": ("agreement", max), "classifier": ("critic_score", min)}
"""The score that --reject-by compares, and whether the best candidate has the least or the most of it."""
Candidate = tuple[dict[str, torch.Tensor], float]
"""Codes of each level, `[1, height, width]`, and their score."""


@dataclass(frozen=True)
class Request:
    """One image that is to be drawn.

    Args:
        name: the name of its file, without the ending.
        number: the number that chooses its random numbers: the image's, or the completion's.
        item: the number of the image that it completes.
    """

    name: str
    number: int
    item: int | None = None


@dataclass(frozen=True)
class FinishedImage:
    """One image that has been drawn.

    Args:
        name: the name of its file, without the ending.
        image: uint8 `[channels, height, width]`.
        codes: the codes of each level, int64 `[height, width]`, on the CPU.
        scores: the score of the candidate that was kept, where there are several, and under its name with _of_all the
            mean over all candidates.
    """

    name: str
    image: torch.Tensor
    codes: dict[str, torch.Tensor]
    scores: dict[str, float] = field(default_factory=dict)


def requests_of(settings: SampleSettings, incomplete: IncompleteImages | None) -> list[Request]:
    """Return all images that the settings ask for; the completions of one image stand together."""
    if incomplete is None:
        return [Request(f"{number:06d}", number) for number in range(settings.count)]
    return [Request(f"{name}-{number:06d}", number, item) for item, name in enumerate(incomplete.names)
            for number in range(settings.count)]


class ImageSampler:
    """Draws the images that are requested.

    Args:
        priors: the prior of each level that the VQ-VAE has.
        incomplete: the images that are to be completed; None for new ones.
    """

    def __init__(self, vqvae: TrainedVqvae, priors: Mapping[str, Prior], settings: SampleSettings,
                 incomplete: IncompleteImages | None = None):
        self.vqvae, self.model, self.settings, self.incomplete = vqvae, vqvae.model, settings, incomplete
        own = {level: priors[level] for level in vqvae.model.levels}
        self.priors = in_float64(own) if settings.precision == "auto" else own
        self.rules = {level: SamplingRule(*(of_level(getattr(settings, name), level) for name in (
            "temperature", "top_k", "top_p", "guidance"))) for level in vqvae.model.levels}

    def learn(self) -> None:
        """Train what --reject-by classifier chooses by, where it is asked for. Every rank must call this."""
        if self.settings.reject == 1 or self.settings.reject_by != "classifier":
            return

        def draw(numbers: list[int], on_code: Callable[[], object]) -> dict[str, torch.Tensor]:
            facts = condition_values(self.priors, (), numbers, self.settings.seed)  # told nothing
            return draw_maps(self.priors, numbers, self.settings.seed, self.rules, facts, on_code,
                             candidates=[critic.LESSON] * len(numbers))

        real = critic.training_codes(self.vqvae, self.settings.top)
        self.critic = critic.learned(self.vqvae, real, draw, self.settings.seed, self.settings.batch)

    def draw(self, requests: Sequence[Request],
             on_codes: Callable[[int], object] = lambda _: None) -> Iterator[FinishedImage]:
        """Yield each image as soon as it is finished, in order.

        `on_codes` is told how many codes have been settled since; each image has the same number, for each candidate.
        """
        tries = [(request, candidate) for request in requests for candidate in range(self.settings.reject)]
        candidates: list[Candidate] = []
        for first in range(0, len(tries), self.settings.batch):
            batch, kept = tries[first:first + self.settings.batch], []
            for (request, number), candidate in zip(batch, self._draw_batch(batch, on_codes)):
                candidates.append(candidate)
                if number == self.settings.reject - 1:
                    kept.append((request, *self._best(candidates)))
                    candidates = []
            yield from self._finished(kept)

    @torch.no_grad()
    def _draw_batch(self, batch: Sequence[tuple[Request, int]], on_codes: Callable[[int], object]) -> list[Candidate]:
        """Draw some candidates together; they are judged alone, lest the last bits depend on the batch."""
        numbers = [request.number for request, _ in batch]
        facts = condition_values(self.priors, self.settings.condition, numbers, self.settings.seed)
        stay = None if self.incomplete is None else {
            level: maps[[request.item for request, _ in batch]] for level, maps in self.incomplete.codes.items()}
        maps = draw_maps(self.priors, numbers, self.settings.seed, self.rules, facts,
                         lambda: on_codes(len(batch)), stay, [candidate for _, candidate in batch])
        alone = [{level: codes[i:i + 1] for level, codes in maps.items()} for i in range(len(batch))]
        if self.settings.reject == 1:
            return [(codes, math.nan) for codes in alone]
        if self.settings.reject_by == "likelihood":
            return list(zip(alone, bits_per_code(self.priors, maps, facts).tolist()))
        by_critic = self.settings.reject_by == "classifier"
        images = to_bytes(torch.cat([self.model.decode(codes, softly=by_critic) for codes in alone]))
        scores = self.critic.scores(images) if by_critic else torch.stack([
            agreement(self.model, *pair) for pair in zip(images.split(1), alone)])
        return list(zip(alone, scores.tolist()))

    def _best(self, candidates: Sequence[Candidate]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Return the codes of the best candidate, the first one of equals, and the scores of its image."""
        if len(candidates) == 1:
            return candidates[0][0], {}
        name, pick = SCORES[self.settings.reject_by]
        codes, score = pick(candidates, key=lambda candidate: candidate[1])
        return codes, {name: score, f"{name}_of_all": sum(own for _, own in candidates) / len(candidates)}

    @torch.no_grad()
    def _finished(self, kept: Sequence[tuple[Request, dict[str, torch.Tensor], dict[str, float]]],
                  ) -> Iterator[FinishedImage]:
        """Yield the images of codes that are kept, decoded one by one, lest the last bits depend on the others."""
        if not kept:
            return
        images = to_bytes(torch.cat([self.model.decode(codes) for _, codes, _ in kept]))
        maps = {level: torch.cat([codes[level] for _, codes, _ in kept]).cpu() for level in kept[0][1]}
        for i, (request, _, scores) in enumerate(kept):
            image = images[i] if self.incomplete is None else self.incomplete.completed(request.item, images[i])
            yield FinishedImage(request.name, image, {level: codes[i] for level, codes in maps.items()}, scores)


@torch.no_grad()
def agreement(model: Vqvae, image: torch.Tensor, codes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the share, 0…1, of an image's codes, all levels together, that encoding it again gives back: float64 `[]`.

    Args:
        image: uint8 `[1, channels, height, width]`; codes: for each level `[1, height, width]`.
    """
    again = model.encode(machine.to_device(image, codes["top"].device).to(torch.float32).div_(255))
    same = torch.cat([(again[level] == maps).flatten() for level, maps in codes.items()])
    return same.double().mean()


def rejection_report(settings: SampleSettings, maps: CodeMaps) -> dict:
    """Return what --reject came to, for sample.json; {} without it."""
    if settings.reject == 1:
        return {}
    score, _ = SCORES[settings.reject_by]
    kept, of_all = (maps.scores[name].mean().item() for name in (score, f"{score}_of_all"))
    return {"rejection": {"by": settings.reject_by, "candidates": settings.reject, "share_kept": 1 / settings.reject,
                          "unit": score, "mean_kept": kept, "mean_of_all": of_all}}
