"""Images, scans and folders as they come -> images in a VQ-VAE's form: its size, its channels.

Scans are cut into slices by extract_slices.py's own code; pictures are resized in their proportions, colours made grey
for a grey model. What cannot be read is an error where it was named, and a row in a table where a folder holds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vqvae2.common.errors import UserError
from vqvae2.common.names import SUFFIXES
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.scans.finding import Scan, find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.identities import File, identify, stem_of
from vqvae2.scans.volumes import files_of
from vqvae2.settings.checks import expect
from vqvae2.slices.scan_slices import draw_slices
from vqvae2.slices.settings import ExtractSettings

WHAT_IS_READ = "an image (PNG, JPEG, TIFF, WebP, BMP, GIF), a scan (NIfTI, Analyze, MGH) or a folder of them"
# The descriptions of a change begin with these words.
SLICE, RESIZED, STRETCHED, CROPPED, GREY = CHANGES = ("slice of a scan", "resized", "stretched", "cropped",
                                                      "colours made grey")
MOST_SAID = 8


@dataclass(frozen=True)
class Source:
    """A file that is to be read.

    Attributes:
        scan: None for a picture.
        named: True if the user named the file, which must then be readable; False if it was found in a folder.
    """

    path: Path
    scan: Scan | None
    named: bool


@dataclass(frozen=True)
class InputImage:
    """One image in the model's form.

    Attributes:
        source: the file that the image comes from, as the user would write it.
        file_name: the path of a picture; the path of a scan and the name that extract_slices.py gives the slice.
        pixels: uint8 or uint16 `[channels, height, width]`.
        changes: the changes that were made; none where the image fitted.
        facts: subject, plane, index and position_mm of a slice; {} for a picture.
    """

    source: str
    file_name: str
    pixels: np.ndarray = field(repr=False)
    changes: tuple[str, ...]
    facts: dict[str, str]


def find_sources(inputs: Sequence[Path], suffixes: Sequence[str], out: Path) -> list[Source]:
    """Return the files that the inputs are, or hold, each once, in order.

    Args:
        suffixes: endings of the names of the scans that are wanted of a folder; () for T1-weighted ones.
        out: folder whose pictures are not read.
    Raises: UserError for an input that is not there or of another kind, and for a folder that holds nothing to read.
    """
    found: dict[tuple[Path, ...], Source] = {}
    for given in inputs:
        expect(given.exists(), str(given), WHAT_IS_READ, "nothing", "Correct the path.")
        is_scan = stem_of(given.name) is not None
        if given.is_dir():
            sources = _in_folder(given, suffixes, out)
        else:
            expect(is_scan or given.suffix.lower() in SUFFIXES, str(given), WHAT_IS_READ, "a file of another kind",
                   "Leave it out, or convert it (DICOM with dcm2niix, for instance).")
            sources = [Source(given, _named_scan(given) if is_scan else None, True)]
        for source in sources:
            key = tuple(path.resolve() for path in files_of(source.path))  # a pair's two files are one scan
            if key not in found or source.named:
                found[key] = source
    return list(found.values())


def _in_folder(folder: Path, suffixes: Sequence[str], out: Path) -> list[Source]:
    inside = find_scans(folder, suffixes=suffixes)
    pictures = [path for path in pictures_in(folder) if not path.resolve().is_relative_to(out.resolve())]
    others = f"{inside.other} scans whose names are not of T1-weighted ones"
    if not inside.scans:
        found, advice = (f"only {others}", "Give --suffix, or name the files.") if inside.other else (
            "none", "Correct the path.")
        expect(bool(pictures), str(folder), "images or scans in this folder", found, advice)
        return [Source(path, None, False) for path in pictures]
    left_out = [said for number, said in (
        (len(pictures), f"{len(pictures)} pictures, as in a folder of scans they are previews"),
        (inside.further, f"{inside.further} further scans of the same sessions"),
        (inside.other, f"{others} (--suffix)")) if number]
    if left_out:
        print(f"{folder}: left out {', '.join(left_out)}; name a file itself to have it read", flush=True)
    return [Source(scan.path, scan, False) for scan in inside.scans]


def _named_scan(path: Path) -> Scan:
    """Return a scan that may have any name; its layout and its subject are told by where it lies."""
    header = files_of(path)[0]
    header = header if header.exists() else path
    [(_, who)] = identify([File(header, header.resolve().as_posix(), "")], None)
    return Scan(header, str(header), who.subject, who.session, who.run, who.storage, stem_of(header.name) or "scan")


def read_all(sources: Sequence[Source], cutting: ExtractSettings, shape: tuple[int, int, int],
             size: int | None, fit: str = "stretch",
             colours: str = "auto") -> tuple[list[InputImage], list[dict[str, str]]]:
    """Return all images in the model's form, and rows (input, reason) of files in folders that cannot be read.

    Args:
        cutting: how slices are cut out of scans.
        shape: (channels, height, width) of the model's images.
        size: --size that the model was trained with, None without: then proportions are kept.
        fit, colours: the flags that it was trained with.
    Raises: UserError for the first file that was named itself and cannot be read, or if none could be.
    """
    given: list[InputImage] = []
    rejected: list[dict[str, str]] = []
    for source in tqdm(sources, desc="reading", unit="file", leave=False):
        try:
            given += (_read_picture(source.path, shape, size, fit, colours) if source.scan is None
                      else _read_scan(source.scan, cutting, shape))
        except UserError as error:
            if source.named:
                raise
            reason = getattr(error, "reason", str(error).removeprefix(f"{source.path}: "))
            rejected.append({"input": str(source.path), "reason": reason})
    for row in rejected[:MOST_SAID]:
        print(f"not read: {row['input']}: {row['reason']}", flush=True)
    expect(bool(given), "INPUT", "at least one image or scan that can be read",
           f"none among {len(rejected)}" + (f", such as {rejected[0]['input']}" if rejected else ""),
           "See the lines above.")
    return given, rejected


def _read_picture(path: Path, shape: tuple[int, int, int], size: int | None, fit: str,
                  colours: str) -> list[InputImage]:
    pixels, changes = read_picture(path), []
    if len(pixels) == 3 and colours == "grey":
        changes.append(GREY)
    if resized_so := pixels.shape[1:] != shape[1:] == (size, size):
        cropped = fit == "crop" and pixels.shape[1] != pixels.shape[2]
        changes.append(f"{CROPPED if cropped else STRETCHED} from {_size(pixels)}")
    if changes:  # bit for bit as the training read the picture
        pixels = read_picture(path, size if resized_so else None, fit, colours)
    return [_in_form(str(path), str(path), pixels, shape, changes, {})]


def _read_scan(scan: Scan, cutting: ExtractSettings, shape: tuple[int, int, int]) -> list[InputImage]:
    """Return the slices that extract_slices.py would cut. Raises: UnusableScan."""
    try:
        with np.errstate(all="ignore"):
            return [_in_form(str(scan.path), f"{scan.path}/{row['image']}",
                             np.rint(image * (2**cutting.bits - 1)).astype(f"uint{cutting.bits}")[None], shape, [SLICE],
                             {name: row[name] for name in ("subject", "plane", "index", "position_mm")})
                    for image, row in draw_slices(scan, cutting)]
    except (ArithmeticError, ValueError, MemoryError) as error:  # numbers near the largest, or a giant
        raise UnusableScan(scan.path.name, "voxels that can be computed with", error or "too many of them",
                           "Repair the scan, or leave it out.") from None


def _in_form(source: str, file_name: str, pixels: np.ndarray, shape: tuple[int, int, int], changes: list[str],
             facts: dict[str, str]) -> InputImage:
    """Give an image the model's channels and size."""
    if len(pixels) == 3 and shape[0] == 1:
        changes.append(GREY)
        pixels = pixels.mean(0, keepdims=True).round().astype(pixels.dtype)
    elif len(pixels) == 1:
        pixels = pixels.repeat(shape[0], 0)
    if pixels.shape != shape:
        square = pixels.shape[1] * shape[2] == pixels.shape[2] * shape[1]
        changes.append(f"{RESIZED} from {_size(pixels)}" + ("" if square else ", black borders"))
        pixels = resized(pixels, shape[1], shape[2])
    return InputImage(source, file_name, pixels, tuple(changes), facts)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `[channels, height, width]` of pixels `[channels, h, w]`, in their proportions, black borders where these
    differ; uint8 or uint16 as given. Shrinking averages areas, enlarging is linear, as when training resizes."""
    _, old_height, old_width = pixels.shape
    scale = min(height / old_height, width / old_width)
    inner = max(1, round(old_height * scale)), max(1, round(old_width * scale))
    kind = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    made = np.zeros((len(pixels), height, width), pixels.dtype)
    for channel, into in zip(pixels, made):
        picture = Image.fromarray(channel.astype(np.float32)).resize(inner[::-1], kind)
        into[top:top + inner[0], left:left + inner[1]] = np.asarray(picture).round()
    return made


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]} by {pixels.shape[1]}"
