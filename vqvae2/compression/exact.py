"""Grey images <-> files from which each pixel comes back, by a network of pixels (`lossless.py`) and without a VQ-VAE.

Images keep their own height, width and bits; those of one form are coded together.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from vqvae2.common.errors import UserError, expect
from vqvae2.compression import coder as range_coder
from vqvae2.compression.container import EXACT, HASH, IMAGES, Chunk, Compressed
from vqvae2.compression.lossless import ResidualCoder
from vqvae2.images.reading import read_picture
from vqvae2.runs import weights

MODES = ("1", "L", "I;16", "I;16B", "I;16L")
"""Pillow's names of grey pictures of which each pixel comes back."""
MOST_PIXELS = 1 << 22
"""As many images are coded together as have so many pixels, for the memory."""


def load(name: str) -> ResidualCoder:
    """Return the coder of the network that is named. Raises: UserError."""
    range_coder.expect_installed()
    folder = weights.find_run(name, "--lossless")
    try:
        return ResidualCoder.load(folder)
    except UserError as error:
        raise UserError(f"--lossless {error}") from None


def read(path: Path) -> np.ndarray:
    """Return a grey picture `[height, width]`, uint8 or uint16.

    Raises: UserError if it cannot be read, or has anything else, which would not come back: colours, transparency,
        fractions, more pages, a note that it is to be turned.
    """
    pixels = read_picture(path)
    with Image.open(path) as picture:
        found = f"mode {picture.mode}" if picture.mode not in MODES else \
            f"{picture.n_frames} pages" if getattr(picture, "n_frames", 1) > 1 else \
            "one that is to be turned" if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1 else ""
    expect(not found, str(path), "a grey picture of 8 or 16 bits and one page, for --lossless", found,
           "Convert a copy of it to grey, or leave it out.")
    return pixels[0]


def plan(image: np.ndarray, coder: ResidualCoder) -> Compressed:
    """Return the file of an image, still without its chunk."""
    return Compressed(IMAGES | EXACT, (coder.hash[:2 * HASH],), (1, *image.shape), 8 * image.itemsize, ())


def check_of(image: np.ndarray) -> int:
    """Return the CRC-32 of an image's pixels, row by row, as little-endian integers."""
    return zlib.crc32(image.astype(image.dtype.newbyteorder("<")).tobytes())


def encode(images: Sequence[np.ndarray], coder: ResidualCoder, *, verify: bool = False) -> list[Compressed]:
    """Return the file of each image; those of one form are coded together.

    verify: decode each of them. Raises: RuntimeError if its pixels do not come back, which would be a fault of ours.
    """
    found: dict[int, Compressed] = {}
    for items in _together([image.shape for image in images], [image.dtype for image in images]):
        some = np.stack([images[item] for item in items])
        for item, image, stream in zip(items, some, coder.encode(some)):
            own = plan(image, coder)
            found[item] = Compressed(own.kind, own.hashes, own.shape, own.bits,
                                     [Chunk(check_of(image), (), stream).packed()])
    contents = [found[item] for item in range(len(images))]
    if verify:
        back = decode(contents, [Chunk.unpacked(content.chunks[0], 0) for content in contents], coder)
        if any(image is None for image in back):
            raise RuntimeError("pixels that do not come back")
    return contents


def decode(contents: Sequence[Compressed], chunks: Sequence[Chunk], coder: ResidualCoder) -> list[np.ndarray | None]:
    """Return the image of each file, given its chunk; None where other pixels come out than were written."""
    found: dict[int, np.ndarray | None] = {}
    for items in _together([content.shape[1:] for content in contents], [content.bits for content in contents]):
        shape, bits = contents[items[0]].shape[1:], contents[items[0]].bits
        for item, image in zip(items, _decoded([chunks[item].stream for item in items], coder, shape, bits)):
            found[item] = image if image is not None and check_of(image) == chunks[item].check else None
    return [found[item] for item in range(len(contents))]


def _decoded(streams: Sequence[bytes], coder: ResidualCoder, shape: tuple[int, int],
             bits: int) -> Sequence[np.ndarray | None]:
    try:
        return coder.decode(streams, None, shape, bits)
    except ValueError:  # one of them cannot be read
        if len(streams) == 1:
            return [None]
        return [_decoded([stream], coder, shape, bits)[0] for stream in streams]


def _together(*forms: Sequence[object]) -> Iterator[list[int]]:
    """Yield the numbers of images of one form, as many as have MOST_PIXELS; the first of `forms` are the shapes."""
    alike = defaultdict(list)
    for item, form in enumerate(zip(*forms, strict=True)):
        alike[form].append(item)
    for (shape, *_), items in alike.items():
        most = max(1, MOST_PIXELS // math.prod(shape))
        yield from (items[first:first + most] for first in range(0, len(items), most))
