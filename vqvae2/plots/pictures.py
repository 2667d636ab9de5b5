"""Images, code maps and maps of numbers -> pictures (PIL): grids, labelled strips, an animated GIF.

Nothing here computes a metric. Every file is written beside its place and then renamed: whoever looks sees the old
picture or the new one.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

import matplotlib
import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.images.reading import load_picture

INK = "#1e1e1e"
DIFFERENCE_SCALE = 0.2  # |difference| on the range 0…1 that gets the brightest colour: pictures can be compared
SMALLEST_SIDE = 128  # images with fewer pixels are enlarged where text stands beside them
LABEL_WIDTH, TEXT_SIZE, GAP = 116, 14, 2
GIF_WIDTH, GIF_FRAMES = 640, 60  # the most pixels and frames of an animation
GIF_GREYS, GIF_COLOURS = 64, 64  # of `inferno` in a GIF; room is left for the colour that means "as before"
FRAME_MS, LAST_FRAME_MS = 150, 3000


def image_grid(images: torch.Tensor, columns: int, gap: int = GAP, *, title: str | None = None) -> Image.Image:
    """Return images side by side, row by row, `gap` white pixels between them, a title above them if one is given.

    `images` is uint8 `[n, channels, height, width]` with 1 or 3 channels and n at least 1.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images: expected uint8 [n, 1 or 3, height, width] with n at least 1, found {images.dtype} "
                         f"{list(images.shape)}.")
    n, channels, height, width = images.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    # Each cell of the grid is an image and the gap at its right and below it.
    cells = np.full((rows * columns, height + gap, width + gap, channels), 255, np.uint8)
    cells[:n, :height, :width] = images.cpu().permute(0, 2, 3, 1).numpy()
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(rows * (height + gap), -1, channels)
    grid = grid[:len(grid) - gap, :grid.shape[1] - gap]
    return titled(Image.fromarray(grid[..., 0] if channels == 1 else grid), title)


def titled(picture: Image.Image, title: str | None) -> Image.Image:
    """Return `picture` below its title, in as many lines as its width asks for; without a title as it is."""
    if not title:
        return picture
    lines, room = [""], picture.width - 8
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(longer, room).size == TEXT_SIZE or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    canvas = ImageOps.expand(picture, (0, len(lines) * (TEXT_SIZE + 4) + 6, 0, 0), "white")
    for number, line in enumerate(lines):
        _write_text(canvas, (4, 3 + (number + 0.5) * (TEXT_SIZE + 4)), line, room, "lm")
    return canvas


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Return images `[n, channels, height, width]` by a whole number larger, at least SMALLEST_SIDE wide and high."""
    factor = math.ceil(SMALLEST_SIDE / min(images.shape[-2:]))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def save_picture(image: Image.Image, path: Path | str, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write a picture, in the format of the name's ending; the folder is made.

    Args:
        texts: what a PNG says besides, by key.
    """
    said = PngInfo()
    for key, text in texts.items():
        said.add_text(key, text)
    files.write_atomically(Path(path), lambda temporary: image.save(temporary, **({"pnginfo": said} if texts else {})))


@dataclass(frozen=True)
class ScaledMaps:
    """This is a row of maps in the perceptually even colours `inferno`, whose scale stands beside them.

    Attributes:
        values: float `[n, height, width]`, 0 or more.
        scale: the value that is light yellow, as all larger ones are; 0 is black.
    """

    values: torch.Tensor
    scale: float


Row = tuple[str, torch.Tensor | ScaledMaps]


def strip(rows: Sequence[Row], *, captions: Sequence[str] = (), header: Sequence[str] = (),
          title: str | None = None) -> Image.Image:
    """Return labelled rows of images, such as real | reconstruction | sample: label at the left, one row each.

    Args:
        rows: (label, uint8 `[n, channels, height, width]`) or (label, Scaled) each, all of one height; rows may differ
            in n.
        captions: stand under the columns.
        header: stands above the columns.
        title: stands above all.
    """
    parts = []
    for label, images in rows:
        scale = images.scale if isinstance(images, ScaledMaps) else None
        pictures = enlarged(images if scale is None else torch.from_numpy(
            _inferno(images.values.cpu().numpy() / scale)).permute(0, 3, 1, 2))
        parts.append(_label(image_grid(pictures, len(pictures)), label, scale))
    column = pictures.shape[-1] + GAP
    parts = [*_captions(header, column), *parts, *_captions(captions, column)]
    mode, width = "RGB" if any(part.mode == "RGB" for part in parts) else "L", max(part.width for part in parts)
    lines = [ImageOps.expand(part.convert(mode), (0, 0, width - part.width, GAP), "white") for part in parts]
    return titled(Image.fromarray(np.vstack(lines)[:-GAP]), title)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one height beside each other, in colour."""
    return Image.fromarray(np.hstack([np.asarray(picture.convert("RGB")) for picture in pictures]))


def compared(originals: torch.Tensor, reconstructions: torch.Tensor) -> list[Row]:
    """Return three rows for `strip`: original, reconstruction, |difference|.

    Both are uint8 `[n, channels, height, width]`. The difference is the mean over channels, up to DIFFERENCE_SCALE.
    """
    distance = (originals.cpu().float() - reconstructions.cpu().float()).abs().mean(1) / 255
    return [("original", originals), ("reconstruction", reconstructions),
            ("|difference|", ScaledMaps(distance, DIFFERENCE_SCALE))]


def code_colours(codes: torch.Tensor | np.ndarray, size: int) -> torch.Tensor:
    """Return code maps in colours, uint8 `[n, 3, height, width]`: equal codes have equal colours in every run.

    `codes` is integer `[n, height, width]` in [0, size), or -1 (to be drawn), which is black. Colours are drawn at
    random once, because codes have no order: neighbouring numbers are not neighbouring embeddings.
    """
    hues = np.random.default_rng(0).random((size, 3)) * [1, 0.6, 0.6] + [0, 0.4, 0.35]  # neither black nor white
    palette = np.concatenate([(hsv_to_rgb(hues) * 255).round(), [[0, 0, 0]]]).astype(np.uint8)  # -1 finds the last
    return torch.from_numpy(palette[np.asarray(codes)]).permute(0, 3, 1, 2)


def code_map_picture(codes: torch.Tensor | np.ndarray, size: int, columns: int = 8, *,
                     title: str | None = None) -> Image.Image:
    """Return code maps in their `code_colours` as one picture, `columns` in a row."""
    return image_grid(enlarged(code_colours(codes, size)), columns, gap=4, title=title)


def animate(pictures: Sequence[Path], out: Path | str, columns: int = 1) -> int:
    """Write pictures that `strip` has made as an animated GIF, one frame each, the last one held; return the frames.

    Args:
        pictures: files, in order. Of more than GIF_FRAMES every second, third, … and the last are taken. One that
            cannot be read, or has another width than the last, is left out.
        columns: images in a row of each. As many of them as fit into GIF_WIDTH are kept, and at least one.
    The files are read again only where they have changed: a call for each epoch costs about 5 ms a frame.
    """
    kept = [*pictures[:-1:max(1, math.ceil((len(pictures) - 1) / (GIF_FRAMES - 1)))], *pictures[-1:]]
    frames = []
    for path in kept:
        with suppress(OSError, UserError):
            frames.append(_frame(path, path.stat().st_mtime_ns, columns))
    frames = [frame for frame in frames if frame.width == frames[-1].width]
    if frames:
        tallest = max(frame.height for frame in frames)  # a title may take a line more as its numbers grow
        frames = [ImageOps.expand(frame, (0, tallest - frame.height, 0, 0), GIF_GREYS - 1) for frame in frames]
        milliseconds = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
        files.write_atomically(Path(out), lambda temporary: frames[0].save(
            temporary, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0))
    return len(frames)


def _label(row: Image.Image, text: str, scale: float | None = None) -> Image.Image:
    """Put `text` at the left of a row of images, and below it a colour bar from 0 to `scale`, if there is one."""
    canvas = ImageOps.expand(row, (LABEL_WIDTH, 0, 0, 0), "white")
    centre, middle = LABEL_WIDTH // 2, row.height // 2
    _write_text(canvas, (centre, middle if scale is None else middle - 22), text)
    if scale is not None:
        ramp = _inferno(np.tile(np.linspace(0, 1, LABEL_WIDTH - 32), (10, 1)))
        canvas.paste(Image.fromarray(ramp), (16, middle - 6))
        for where, value in ((16, "0"), (LABEL_WIDTH - 16, f"{scale:g}+")):
            _write_text(canvas, (where, middle + 16), value)
    return canvas


def _captions(captions: Sequence[str], column: int) -> list[Image.Image]:
    """Return one line of text for the columns of images, made smaller where it is too wide; [] without captions."""
    canvas = Image.new("RGB", (LABEL_WIDTH + column * len(captions), 2 * TEXT_SIZE), "white")
    for number, text in enumerate(captions):
        _write_text(canvas, (LABEL_WIDTH + number * column + column // 2, TEXT_SIZE), text, column - 8)
    return [canvas] if captions else []


def _write_text(canvas: Image.Image, place: tuple[float, float], text: str, room: int = LABEL_WIDTH - 8,
                anchor: str = "mm") -> None:
    ImageDraw.Draw(canvas).text(place, text, INK, _font(text, room), anchor=anchor)


@lru_cache(maxsize=1024)  # the same few labels stand on every picture
def _font(text: str, width: int) -> ImageFont.FreeTypeFont:
    """Return the font in which `text` is at most `width` pixels wide, TEXT_SIZE where it fits, never below 6."""
    sizes = range(TEXT_SIZE, 6, -1)
    return _font_of(next((size for size in sizes if _font_of(size).getlength(text) <= width), 6))


@cache
def _font_of(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _inferno(values: np.ndarray) -> np.ndarray:
    """Return the uint8 colours `[…, 3]` of values; 0 is black, 1 and all above is the brightest."""
    return matplotlib.colormaps["inferno"](values.clip(0, 1), bytes=True)[..., :3]


@lru_cache(maxsize=2 * GIF_FRAMES)
def _frame(path: Path, changed: int, columns: int) -> Image.Image:
    """Return a picture, as it was when last changed, in fixed colours, cut behind the last whole column that fits."""
    picture = load_picture(path).convert("RGB")
    column = (picture.width - LABEL_WIDTH) / columns
    width = LABEL_WIDTH + column * max(1, (GIF_WIDTH - LABEL_WIDTH) // column)
    greys = np.linspace(0, 256, GIF_GREYS, endpoint=False).astype(np.uint8)[:, None].repeat(3, 1)
    greys[-1] = 255  # Pillow finds a colour's neighbour by its upper six bits: so black and white stay what they are
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, _inferno(np.linspace(0, 1, GIF_COLOURS))]).tobytes())
    return picture.crop((0, 0, min(round(width), picture.width), picture.height)).quantize(
        palette=palette, dither=Image.Dither.NONE)

