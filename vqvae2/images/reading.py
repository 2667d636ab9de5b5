"""A picture's file -> its pixels, whole numbers of 8 or 16 bits.

What Pillow opens of PNG, JPEG, TIFF, WebP, BMP and GIF is read. Each file is read once: its pixels and its SHA-256 are
of the same bytes. Of an animation or of many pages the first is taken. A picture is turned as its EXIF orientation
says. What is transparent is laid on black, which the background of a scan is too: the colours that stand where nothing
is to be seen are often an editor's left-overs. Grey of 16 bits keeps all of them; of colours and transparency with 16
bits Pillow reads the upper 8. Floating-point pixels have no range of their own: 0…1 is taken, as 16 bits, and anything
else is refused.
"""

import errno
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vqvae2.common import files
from vqvae2.common.errors import UserError, launched_rank
from vqvae2.common.names import SUFFIXES

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
"""Pillow is asked for these alone, whatever a file is called: for others it would start programs (Ghostscript)."""
MOST_PIXELS = 2**26
"""64 mebipixels, 8192 by 8192: more is refused before anything is decoded. A few kilobytes can say that they are
gigabytes (a decompression bomb)."""
MOST_BYTES = 8 * MOST_PIXELS
"""The largest file that is read: as many pixels with four channels of 16 bits."""

# Pillow warns about large and about odd pictures on lines of its own: what is too large, or torn, is refused here.
warnings.filterwarnings("ignore", module=r"PIL\b")


class BrokenPicture(UserError):
    """A picture that cannot be read; `why` says in a few words what is wrong with it."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(text)
        self.why = why


def find_pictures(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the image files below a folder, by their endings, sorted, and what else it holds and why it is not read.

    Hidden files and folders are in neither. A link to a file is a file; links to folders, which may form a circle, are
    not followed.
    """
    pictures: list[Path] = []
    others: dict[Path, str] = {}
    left = [folder]
    while left:  # depth first, in the order of the names: sorted, without recursion, which a deep folder would exhaust
        path = left.pop()
        if isinstance(path, os.DirEntry) and not path.is_dir(follow_symlinks=False):
            _sort_out(path, pictures, others)
            continue
        try:
            with os.scandir(path) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            others[Path(path)] = (error.strerror or str(error)).lower()
            continue
        left += sorted(found, key=lambda entry: entry.name, reverse=True)
    return pictures, others


def _sort_out(entry: os.DirEntry, pictures: list[Path], others: dict[Path, str]) -> None:
    path = Path(entry)
    kind = "a file" if entry.is_file(follow_symlinks=False) else files.kind_of(path)
    if kind == "a folder":
        others[path] = "a link to a folder"
    elif path.suffix.lower() in SUFFIXES:
        if kind == "a file":
            pictures.append(path)
        else:
            others[path] = kind


def pictures_in(folder: Path) -> list[Path]:
    """Return the image files below a folder (see `find_pictures`); rank 0 says in one line what is not read."""
    pictures, others = find_pictures(folder)
    if others and launched_rank() == 0:
        first = next(iter(others))
        print(f"images: {len(others)} in {folder} not read, such as {first.relative_to(folder)} ({others[first]})",
              flush=True)
    return pictures


def read_picture(path: Path, size: int | None = None, fit: str = "stretch", colours: str = "auto") -> np.ndarray:
    """Return an image file's pixels `[channels, height, width]`, uint8 or uint16.

    Args:
        size: height and width to which it is resized, if given. Shrinking averages areas, enlarging is linear.
        fit: of a picture that is not square, "stretch" takes all of it, "crop" the middle square: as if its shorter
            side were made `size` first.
        colours: "auto" is one channel unless the picture has colours; "grey" one (luma of ITU-R BT.601, 0.299 red +
            0.587 green + 0.114 blue); "rgb" three.
    Raises: BrokenPicture, a UserError, if it cannot be read, is truncated or has more than MOST_PIXELS.
    """
    return read_hashed(path, size, fit, colours)[0]


def read_hashed(path: Path, size: int | None = None, fit: str = "stretch", colours: str = "auto",
                within: Path | None = None) -> tuple[np.ndarray, bytes]:
    """Return what `read_picture` does, and the SHA-256 of the file, which is read once.

    Args:
        within: the folder that a link must not leave, if given; that of `path` itself lies in it.
    """
    with _broken(path):
        content = _content(path, within)
        pixels = _as_pixels(_decoded(content), size, fit, colours)
    return (pixels.repeat(3, 0) if colours == "rgb" and len(pixels) == 1 else pixels,
            hashlib.sha256(content).digest())


def load_picture(path: Path) -> Image.Image:
    """Return an image file's first frame, decoded. Raises: BrokenPicture."""
    with _broken(path):
        return _decoded(_content(path))


@contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Turn whatever is raised about the picture at `path` into BrokenPicture.

    Pillow raises errors of a dozen classes where a file is not what it says, MemoryError too.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise BrokenPicture(f"{path}: expected an image, found {files.kind_of(path)}. Run extract_slices.py again.",
                            "not there") from None
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is about the bytes that Python has read
        why = "cannot identify image file" if unknown else files.in_brief(error)
        raise BrokenPicture(f"{path}: expected a readable image, found {why}. Delete it or make it again.",
                            why) from None


def _content(path: Path, within: Path | None = None) -> bytes:
    """Return the bytes of a file. Raises: OSError, also if it is too large; ValueError if a link leaves `within`."""
    try:
        return files.read_at_most(path, MOST_BYTES, follow_link=within is None)
    except OSError as error:
        if within is None or error.errno != errno.ELOOP:
            raise
    target = Path(os.path.realpath(path, strict=True))
    if not target.is_relative_to(within.resolve()):
        raise ValueError("a link that leaves the folder")
    return files.read_at_most(target, MOST_BYTES)


def _decoded(content: bytes) -> Image.Image:
    """Return the first frame of a picture, turned as its EXIF orientation says."""
    # Given a name, Pillow would map the file into memory, and read a TIFF that lies on its side wrongly.
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{picture.width} by {picture.height} pixels, where {MOST_PIXELS} (8192 by 8192) are "
                             "the most")
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return picture


def _as_pixels(picture: Image.Image, size: int | None, fit: str, colours: str) -> np.ndarray:
    """Return `[channels, height, width]`: one channel unless the picture has colours and they are wanted."""
    if picture.mode.startswith(("F", "I")):
        return _sixteen_bits(picture, size, fit)[None]
    if picture.has_transparency_data:
        picture = _on_black(picture)
    picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    if colours == "grey":
        picture = picture.convert("L")
    pixels = np.atleast_3d(np.asarray(_resized(picture, size, fit))).transpose(2, 0, 1)
    return pixels[:1] if (pixels == pixels[:1]).all() else pixels


def _sixteen_bits(picture: Image.Image, size: int | None, fit: str) -> np.ndarray:
    """Return `[height, width]`, uint16, of one channel of more than 8 bits."""
    values = np.asarray(picture)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("floating-point pixels that are infinite or not a number")
    low, high = values.min(), values.max()
    if picture.mode == "F":
        if low < 0 or high > 1:
            raise ValueError(f"floating-point pixels from {low:g} to {high:g}, whose range is not known (0…1 is)")
        values = values * np.float32(65535)
    elif low < 0 or high > 65535:
        raise ValueError(f"whole numbers from {low} to {high}, where 0 to 65535 are 16 bits")
    if isinstance(clear := picture.info.get("transparency"), int):
        values = np.where(values == clear, 0, values)
    if (size and picture.size != (size, size)) or values.dtype == np.float32:
        values = np.asarray(_resized(Image.fromarray(values.astype(np.float32)), size, fit))
    return values.round().clip(0, 65535).astype(np.uint16)


def _on_black(picture: Image.Image) -> Image.Image:
    """Return the picture without its transparency: each pixel times its opacity, rounded."""
    grey = picture.mode in ("1", "L", "LA", "La")
    values = np.asarray(picture.convert("RGBA"))
    shown = np.rint(values[..., :3] * (values[..., 3:] / np.float32(255))).astype(np.uint8)
    return Image.fromarray(shown[..., 0].copy() if grey else shown)


def _resized(picture: Image.Image, size: int | None, fit: str) -> Image.Image:
    if not size or picture.size == (size, size):
        return picture
    resampling = Image.Resampling.BOX if min(picture.size) > size else Image.Resampling.BILINEAR
    if fit == "crop":
        return ImageOps.fit(picture, (size, size), resampling)
    return picture.resize((size, size), resampling)
