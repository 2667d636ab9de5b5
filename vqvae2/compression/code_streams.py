"""Code maps and their priors <-> bytes: a stream for each image, which any machine decodes to the same codes.

A stream is a list of places, then the words of a range coder (`coder.py`) for the codes of all levels, top first, in
raster order. Codes are numbered so from 0; at the places of the list, whose tables rounding noise could tip, all codes
have equal frequencies (`frequencies.py`). The list is its length and then the differences between neighbours (the first
place itself, then each less the one before it), as varints (`varints.py`).

Priors compute in float64. Encoding reads whole rows of code maps, decoding draws code after code as sampling does; the
batch, the number of threads and the machine may be others.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate

import numpy as np
import torch

from vqvae2.compression import coder, frequencies
from vqvae2.compression.varints import read_varint, varint
from vqvae2.priors.base import Prior
from vqvae2.priors.conditions import Column
from vqvae2.sampling.sampler import one_thread

ROWS_COMPARED = 2
"""Rows of code maps from which the noise of a prior is measured."""
SAFETY = 256
"""A change of so many times the noise that was measured must not change a rounding."""


def columns_of(priors: Mapping[str, Prior]) -> tuple[Column, ...]:
    """Return the columns of which priors are told, each once."""
    return tuple(dict.fromkeys(column for prior in priors.values() for column in prior.columns))


def encode(priors: Mapping[str, Prior], levels: Mapping[str, torch.Tensor], known: torch.Tensor, batch: int,
           on_images: Callable[[int], object] = lambda _: None, *, verify: bool = False) -> list[bytes]:
    """Return the stream of each image.

    Args:
        priors: by level, top first, in float64 (`sampler.in_float64`) and eval mode.
        levels: codes `[n, height, width]` by level.
        known: float32 `[n, columns]`: what is known of each image, in the order of `columns_of`; NaN where it is not.
        batch: images at a time. on_images: told how many more are done.
        verify: decode each stream, and where its codes do not come back give all of them equal frequencies.
    """
    streams = _encode(priors, levels, known, batch, on_images)
    if verify and streams:
        for items in torch.arange(len(known)).split(batch):
            codes, readable = decode(priors, [streams[item] for item in items], known[items])
            for number, item in enumerate(items.tolist()):
                own = {level: maps[item:item + 1] for level, maps in levels.items()}
                if not readable[number] or check_of(codes, number) != check_of(own, 0):
                    [streams[item]] = _encode(priors, own, known[item:item + 1], 1, lambda _: None, margin=1.0)
    return streams


def check_of(levels: Mapping[str, torch.Tensor], item: int) -> int:
    """Return the CRC-32 of an image's codes, as 16-bit integers, top first."""
    codes = np.concatenate([maps[item].flatten().numpy() for maps in levels.values()])
    return zlib.crc32(codes.astype("<u2").tobytes())


@torch.no_grad()
def _encode(priors: Mapping[str, Prior], levels: Mapping[str, torch.Tensor], known: torch.Tensor, batch: int,
            on_images: Callable[[int], object], margin: float | None = None) -> list[bytes]:
    """Do `encode` without `verify`. margin: how little may change a rounding; by default as `_margin` says."""
    if not len(known):
        return []
    columns, streams = columns_of(priors), []
    margins = {level: _margin(prior, columns, level, levels, known) if margin is None else margin
               for level, prior in priors.items()}
    for items in torch.arange(len(known)).split(batch):
        encoders, doubtful, first = [coder.Encoder() for _ in items], [[] for _ in items], 0
        for level, prior in priors.items():
            cursor = _cursor(prior, columns, level, levels["top"][items], known[items])
            for row, codes in enumerate(levels[level][items].long().unbind(1)):
                logits = cursor.read_row(row, codes.T.to(prior.device)).transpose(0, 1).flatten(0, 1)
                places, symbols = frequencies.ends(logits), codes.flatten().numpy()
                doubt, even = frequencies.is_doubtful(places, symbols, margins[level]), frequencies.uniform(
                    prior.codebook_size)
                starts, ends = (np.where(doubt, even[symbols + side], at)
                                for side, at in enumerate(frequencies.owned(places, symbols)))
                width = codes.shape[1]
                for image, encoder in enumerate(encoders):
                    own = slice(image * width, (image + 1) * width)
                    encoder.encode(starts[own], ends[own])
                    doubtful[image] += (first + np.flatnonzero(doubt[own])).tolist()
                first += width
        streams += [_written(places) + encoder.bytes() for places, encoder in zip(doubtful, encoders)]
        on_images(len(items))
    return streams


@one_thread()
@torch.no_grad()
def decode(priors: Mapping[str, Prior], streams: Sequence[bytes], known: torch.Tensor,
           on_code: Callable[[], object] = lambda: None) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """Return codes `[n, height, width]` by level of the images of `streams`, and which streams could be read.

    A stream that is damaged may give any codes, or cannot be read: that is for a checksum to tell. Its codes do not
    touch those of others.

    Args:
        priors, known: as for `encode`. on_code: called after each position.
    """
    columns, levels, first = columns_of(priors), {}, 0
    opened = [_opened(stream) for stream in streams]
    readable = [part is not None for part in opened]
    for level, prior in priors.items():
        cursor = _cursor(prior, columns, level, levels.get("top"), known)
        codes = torch.zeros(len(streams), *prior.shape, dtype=torch.long)
        uniform, width = np.diff(frequencies.uniform(prior.codebook_size))[None], prior.shape[1]
        for position in range(math.prod(prior.shape)):
            row, column = divmod(position, width)
            tables = frequencies.frequencies(frequencies.ends(cursor.step(row, column)))
            drawn = codes[:, row, column].numpy()
            for image, part in enumerate(opened):
                if readable[image]:
                    table = uniform if first + position in part[0] else tables[image:image + 1]
                    try:
                        drawn[image] = part[1].decode(table)[0]
                    except ValueError:
                        readable[image] = False
            cursor.tell(column, codes[:, row, column].to(prior.device))
            on_code()
        levels[level] = codes
        first += math.prod(prior.shape)
    return levels, readable


def _cursor(prior: Prior, columns: Sequence[Column], level: str, top: torch.Tensor | None, known: torch.Tensor):
    """Return a cursor of a level's prior over new maps, given the top codes and what is known of the images."""
    # In float64: the sine of a float32 differs from machine to machine in a digit that counts.
    own = known[:, [columns.index(column) for column in prior.columns]].double().to(prior.device)
    return prior.cursor(len(known), top.long().to(prior.device) if level == "bottom" else None,
                        own if prior.columns else None)


def _margin(prior: Prior, columns: Sequence[Column], level: str, levels: Mapping[str, torch.Tensor],
            known: torch.Tensor) -> float:
    """Return the change of a probability that counts as noise: MARGIN, or more for a prior of much rounding noise.

    The noise is the difference between two ways to compute the first rows of the first image.
    """
    reading, stepping = (_cursor(prior, columns, level, levels["top"][:1], known[:1]) for _ in range(2))
    noise = 0.0
    for row, codes in enumerate(levels[level][0, :ROWS_COMPARED].long().to(prior.device)):
        places = frequencies.ends(reading.read_row(row, codes[:, None])[:, 0])
        for column, code in enumerate(codes[:, None]):
            noise = max(noise, np.abs(places[column] - frequencies.ends(stepping.step(row, column))[0]).max())
            stepping.tell(column, code)
    return max(frequencies.MARGIN, SAFETY * noise / frequencies.steps(prior.codebook_size))


def _written(places: Sequence[int]) -> bytes:
    """Return the list of places that begins a stream."""
    return b"".join(map(varint, [len(places), *np.diff(places, prepend=0).tolist()]))


def _opened(stream: bytes) -> tuple[set[int], coder.Decoder] | None:
    """Return the places of a stream's list, and the decoder of the words behind it; None where the list has no end."""
    numbers, at = [], 0
    with suppress(ValueError):
        while not numbers or len(numbers) <= numbers[0]:
            number, at = read_varint(stream, at)
            numbers.append(number)
        rest = len(stream) - at
        return {*accumulate(numbers[1:])}, coder.Decoder(stream[at:at + rest - rest % coder.WORD.itemsize])
    return None
