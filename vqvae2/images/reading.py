"""A picture's file -> its pixels, whole numbers of 8 or 16 bits.

What Pillow opens of PNG, JPEG, TIFF, WebP, BMP and GIF is read. Of an animation or of many pages it is the first. A
picture is turned as its EXIF orientation says. What is transparent is laid on black, which the background of a scan is
too: the colours that stand where nothing is to be seen are often an editor's left-overs. Grey of 16 bits keeps all of
them; of colours and transparency with 16 bits Pillow reads the upper 8. Floating-point pixels have no range of their
own: 0…1 is taken, as 16 bits, and anything else is refused.
"""

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vqvae2.common.errors import UserError
from vqvae2.common.names import SUFFIXES

MOST_PIXELS = 2**26
"""64 mebipixels, 8192 by 8192: more is refused before anything is decoded. A few kilobytes can say that they are
gigabytes (a decompression bomb)."""
DAMAGE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError, LookupError, struct.error,
          OverflowError, MemoryError, Image.DecompressionBombError)
"""Pillow raises these where a file is not what it says; found by damaging files at random (tests)."""

# Between one and two times its own limit Pillow only warns, on lines of its own: what is too large is refused here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BrokenPicture(UserError):
    """A picture that cannot be read; `why` says in a few words what is wrong with it."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(text)
        self.why = why


def pictures_in(folder: Path) -> list[Path]:
    """Return the image files below a folder, by their endings, sorted; hidden ones are not among them."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts))


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
    try:
        # Opened here: of a name Pillow would map the file into memory, and read a TIFF that lies on its side wrongly.
        with path.open("rb") as file, Image.open(file) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width} by {picture.height} pixels, where {MOST_PIXELS} (8192 by 8192) are "
                                 "the most")
            picture.load()  # the first frame
            ImageOps.exif_transpose(picture, in_place=True)
            pixels = _as_pixels(picture, size, fit, colours)
    except FileNotFoundError:
        raise BrokenPicture(f"{path}: expected an image, found nothing. Run extract_slices.py again.",
                            "not there") from None
    except DAMAGE as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is about the file that Python has opened
        why = "cannot identify image file" if unknown else " ".join(str(error).split()) or type(error).__name__
        raise BrokenPicture(f"{path}: expected a readable image, found {why}. Delete it or make it again.",
                            why) from None
    return pixels.repeat(3, 0) if colours == "rgb" and len(pixels) == 1 else pixels


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
