"""A folder of good pictures and one that is damaged, or no picture at all, in a training and in `vqvae2 predict`.

Each is read, refused by its name, or left out with its reason; the good ones are read all the same.
"""

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import COLUMNS, picture_of
from hostile.part import Part, at_most
from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.evaluation import prediction
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings

SIZE = 16
GOOD = ("a.png", "m.png", "z.png")
FORMATS = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "webp": "WEBP", "bmp": "BMP", "gif": "GIF"}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "I", "F")
OTHERS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"%PDF-1.4\n", b"P5 2 2 255 abcd",
          b"\x1f\x8b", b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"#!/bin/sh\n", b"", b"\x00" * 999,
          b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"version https://git-lfs.github.com/spec/v1\n")
Random = np.random.Generator


def encoded(random: Random, ending: str) -> bytes:
    """A picture in one of the formats, in a mode that the format can hold, with random EXIF at times."""
    values = random.integers(0, 256, (24, 20, 4), np.uint8)
    picture, options, made = Image.fromarray(values[..., :3]), {}, io.BytesIO()
    if random.integers(3) == 0:
        options["exif"] = b"Exif\0\0" + random.bytes(int(random.integers(1, 200)))
    for mode in random.permutation(MODES):
        try:
            deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
            (deep if mode == "I;16" else picture.convert(mode)).save(made, FORMATS[ending], **options)
            return made.getvalue()
        except Exception:  # the format has no such mode, or the EXIF is none
            made, options = io.BytesIO(), {}
    raise AssertionError("no mode can be saved")


def flipped(random: Random, content: bytes, end: int) -> bytes:
    """The content with up to 16 random bits of its first `end` bytes turned."""
    damaged = np.frombuffer(content, np.uint8).copy()
    places = random.integers(0, min(end, len(damaged)), int(random.integers(1, 17)))
    damaged[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
    return damaged.tobytes()


def png_that_claims(random: Random, content: bytes) -> bytes:
    """A PNG whose header, with a right checksum, claims an absurd size, depth or kind."""
    width, height = random.choice([0, 1, 20, 8193, 40_000, 2**31 - 1, 2**32 - 1], 2)
    depth, kind = random.choice([0, 1, 8, 16, 255]), random.choice([0, 2, 3, 4, 6, 9])
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, random.integers(2))
    return content[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def damage(random: Random, path: Path) -> None:
    """Put something damaged, odd or no picture at all at `path`."""
    content = encoded(random, path.suffix[1:])
    kinds: list[Callable[[], object]] = [
        lambda: write(path, content),
        lambda: write(path, content[:int(random.integers(len(content)))]),
        lambda: write(path, flipped(random, content, 64)),
        lambda: write(path, flipped(random, content, len(content))),
        lambda: write(path, content + random.bytes(99)),
        lambda: write(path, content[:int(random.integers(8, 60))] + random.bytes(200)),
        lambda: write(path, png_that_claims(random, encoded(random, "png"))),
        lambda: write(path, encoded(random, random.choice(list(FORMATS)))),
        lambda: write(path, OTHERS[random.integers(len(OTHERS))] + random.bytes(int(random.integers(2)) * 50)),
        lambda: os.mkfifo(path), lambda: os.mknod(path, stat.S_IFSOCK | 0o600), path.mkdir,
        lambda: path.symlink_to(random.choice(["nowhere", path.name, "/dev/zero", "/dev/tty", ".", ".."])),
        lambda: os.truncate(os.open(path, os.O_WRONLY | os.O_CREAT), int(2**random.integers(1, 44)))]
    kinds[random.integers(len(kinds))]()


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Read the pictures as a training does, and as predict does."""
    random = np.random.default_rng(number)
    (folder / "train").mkdir()
    for name in GOOD:
        os.link(prepared / name, folder / "train" / name)
    bad = f"odd.{random.choice(list(FORMATS))}"
    damage(random, folder / "train" / bad)
    names = [f"train/{name}" for name in sorted([*GOOD, bad])]
    kind = "oasis" if number % 3 == 0 else "folder"
    files.write_rows(folder / "manifest.csv", [dict.fromkeys(COLUMNS, "") | {
        "image": name, "split": "train", "subject": name} for name in names])
    with at_most(60):
        settings = DataSettings(dataset=kind, data=folder, size=SIZE, colours="grey")
        try:
            found = load_images(settings).splits["train"]
            expected = load_images(DataSettings(dataset="folder", data=prepared, size=SIZE, colours="grey")).splits
            places = [i for i, name in enumerate(found.names) if name != f"train/{bad}"]
            assert [found.names[i] for i in places] == [name for name in names if name != f"train/{bad}"]
            white = np.iinfo(found.pixels.dtype).max // 255
            assert (found.pixels[places] == np.concatenate([of.pixels for of in expected.values() if len(of)]).astype(
                found.pixels.dtype)[_order(expected)] * white).all()
            word = "read" if len(found) > len(places) else "skipped"
        except UserError as error:
            word = "refused" if bad in str(error) else str(error)
        sources = prediction.find_sources([folder / "train"], (), folder / "out")
        given, rejected = prediction.read_all(sources, None, (1, SIZE, SIZE), None)
    assert {Path(image.source).name for image in given} >= set(GOOD)
    told = {Path(image.source).name for image in given} | {Path(row["input"]).name for row in rejected}
    assert bad in told or (folder / "train" / bad).is_dir(), told
    assert all(row["reason"] for row in rejected)
    assert word in ("read", "skipped", "refused"), word
    return word


def _order(splits: dict) -> list[int]:
    names = [name for of_split in splits.values() for name in of_split.names]
    return [names.index(name) for name in GOOD]


def prepare(folder: Path) -> None:
    """Write the good pictures."""
    for number, name in enumerate(GOOD):
        Image.fromarray(picture_of(number, 0)).save(folder / name)


PART = Part("pictures", "folders with one damaged picture, or something else that has a picture's name", 600, try_one,
            prepare, in_suite=25)
