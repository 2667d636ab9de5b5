"""Slices without loss: our bytes beside those of common formats, and slices a second of one thread.

    python benchmarks/lossless.py --data slices-64 slices-128 slices-256 slices-128-16
    python benchmarks/lossless.py --data slices-128 --split validate --coder residual-64

For each folder a table of the means over the test people's slices, evenly chosen: bits per pixel of whole files, bare
codestreams where a format has them; the ratio to JPEG XL (effort 7); slices in a second of the processor's time, so
that other work beside it counts little. Ours are the bytes of an image in a compressed file, without the file's own
header. Each format decodes its own files, and must give back every bit. Our slices are coded `--batch` at a time, and
their network, like the formats' programs, is not counted: it has learned from slices of other people of the same study,
and the formats know nothing of brains.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import imagecodecs
import numpy as np
import torch
from common import processor

from vqvae2.common.errors import run_script
from vqvae2.common.statistics import evenly
from vqvae2.compression.lossless import ResidualCoder
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings
from vqvae2.settings import checks, parsing

ONE_OF = 15
"""One slice of so many is coded alone too."""
REFERENCE = "JPEG XL, effort 7"
FORMATS = {
    REFERENCE: (lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=7, numthreads=1),
                imagecodecs.jpegxl_decode),
    "JPEG XL, effort 9": (lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=9, numthreads=1),
                          imagecodecs.jpegxl_decode),
    "WebP": (lambda image: imagecodecs.webp_encode(np.repeat(image[..., None], 3, 2), lossless=True, level=100),
             lambda data: imagecodecs.webp_decode(data)[..., 0]),
    "JPEG-LS": (imagecodecs.jpegls_encode, imagecodecs.jpegls_decode),
    "PNG": (lambda image: imagecodecs.png_encode(image, level=9), imagecodecs.png_decode),
    "JPEG 2000": (lambda image: imagecodecs.jpeg2k_encode(image, level=0, reversible=True, codecformat="j2k"),
                  imagecodecs.jpeg2k_decode)}


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/lossless.py."""

    data: tuple[Path, ...]
    """Folders of slices, of 8 or 16 bits."""
    coder: Path = Path("pretrained/lossless")
    """The folder of the network."""
    split: Literal["train", "validate", "test"] = "test"
    """The split whose slices are coded."""
    most: int = 240
    """Slices of a folder, at most."""
    batch: int = 64
    """Slices that are coded together by ours."""

    def __post_init__(self) -> None:
        checks.expect(min(self.most, self.batch) >= 1, "--most and --batch", "1 or more", min(self.most, self.batch),
                      "The defaults are 240 and 64.")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    torch.set_num_threads(1)
    coder = ResidualCoder.load(settings.coder)
    print(f"{processor()}; imagecodecs {imagecodecs.__version__}, {imagecodecs.jpegxl_version()}; "
          f"network {coder.hash[:12]}")
    for folder in settings.data:
        split = load_images(DataSettings(data=folder), (settings.split,)).splits[settings.split]
        images = split.pixels[evenly(len(split), settings.most), 0]
        print(f"\n{folder.name}: {len(images)} slices of {images.shape[1]} x {images.shape[2]} pixels, "
              f"{8 * images.itemsize} bits\n\n| format | bits per pixel | ratio | slices a second: encoded | decoded |")
        print("|---|---|---|---|---|")
        rows = {f"ours, {settings.batch} together": _ours(coder, images, settings.batch)}
        rows |= {name: _measured(images, *both) for name, both in FORMATS.items()
                 if name != "WebP" or images.dtype == np.uint8}
        for name, (bits, encoded, decoded) in rows.items():
            print(f"| {name} | {bits:.3f} | {bits / rows[REFERENCE][0]:.3f} | {encoded:.1f} | {decoded:.1f} |")
        some = images[::ONE_OF]
        _, encoded, decoded = _ours(coder, some, 1)
        print(f"| ours, {len(some)} of the slices, one by one | | | {encoded:.1f} | {decoded:.1f} |")


def _ours(coder: ResidualCoder, images: np.ndarray, batch: int) -> tuple[float, float, float]:
    """Return bits per pixel and slices a second of encoding and decoding."""
    bits, parts = 8 * images.itemsize, [images[first:first + batch] for first in range(0, len(images), batch)]
    begin = time.process_time()
    payloads = [coder.encode(part) for part in parts]
    middle = time.process_time()
    found = np.concatenate([coder.decode(part, None, images.shape[1:], bits) for part in payloads])
    return _row(images, [payload for part in payloads for payload in part], found, begin, middle)


def _measured(images: np.ndarray, encode: Callable, decode: Callable) -> tuple[float, float, float]:
    """Return the same of a format."""
    begin = time.process_time()
    files = [encode(np.ascontiguousarray(image)) for image in images]
    middle = time.process_time()
    return _row(images, files, np.stack([decode(file) for file in files]), begin, middle)


def _row(images: np.ndarray, files: list[bytes], found: np.ndarray, begin: float, middle: float) -> tuple[float, ...]:
    end = time.process_time()
    checks.expect(np.array_equal(found, images), "decoded images", "the originals", "others", "A bug.")
    return (8 * sum(map(len, files)) / images.size, len(images) / (middle - begin), len(images) / (end - middle))


if __name__ == "__main__":
    run_script(main)
