"""A folder of images -> tensors by split, with names, subjects and hashes.

Three kinds of folder: what extract_slices.py made (manifest.csv says split and subject), the
keras_png_slices_* folders of the OASIS PNG release, and any folder of pictures. Whatever the kind,
training refuses a subject that is in two splits: its test figures would be about training brains.

All images are decoded once and stay in memory, one copy on each machine (pixel_cache.py); a batch is cut out of it in
less than a millisecond, so that nothing needs to run ahead of the training (docs/benchmarks.md).
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from vqvae2 import distributed, machine, pixel_cache, random_numbers
from vqvae2.config import SPLITS, DataSettings, path_from_environment
from vqvae2.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
FOLDER_NAMES = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate",
                "validation": "validate", "test": "test"}
HASH_DIGITS = 16


@dataclass(frozen=True)
class ImageFile:
    """One picture on disk, not read yet."""

    name: str
    """Path relative to the data folder, with forward slashes."""
    split: str
    subject: str
    sha256: str
    """Of the file, 64 hex digits; empty where no manifest states it."""
    facts: dict[str, str] = field(default_factory=dict, hash=False)
    """The image's row of the manifest, all of it; empty where there is none."""


@dataclass(frozen=True)
class ImageSet:
    """The images of one split in memory."""

    files: tuple[ImageFile, ...]
    pixels: np.ndarray = field(repr=False)
    """`[n, channels, height, width]`, uint8 or uint16; read-only where the processes of a machine share it."""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> list[str]:
        """Names of the images, in order."""
        return [file.name for file in self.files]

    @property
    def subjects(self) -> list[str]:
        """The subject of each image, in order."""
        return [file.subject for file in self.files]

    @property
    def facts(self) -> list[dict[str, str]]:
        """What the manifest says of each image, in order."""
        return [file.facts for file in self.files]

    def batch(self, items: torch.Tensor | list[int], device: torch.device | None = None) -> torch.Tensor:
        """Return images `[n, channels, height, width]`, float32 in 0…1, on `device` (the CPU by default).

        To a CUDA device the stored bytes travel, a quarter of the floats, without the host waiting for it.
        """
        chosen = torch.from_numpy(self.pixels.take(np.asarray(items, dtype=np.int64), 0))
        white = 255 if chosen.dtype == torch.uint8 else 65535
        if device is None or device.type != "cuda":
            images = chosen.to(torch.float32).div_(white)
            return images if device is None else images.to(device)
        # CUDA divides by a number of the host by multiplying with its inverse, whose last bits differ from the CPU's.
        return machine.to_device(chosen, device).to(torch.float32).div_(torch.full((), float(white), device=device))

    def bytes(self) -> torch.Tensor:
        """Return all images as uint8 `[n, channels, height, width]`, for figures (design: on 8 bit)."""
        if self.pixels.dtype == np.uint8:
            # Torch has no read-only tensors: writing into one of shared pixels would end the process.
            return torch.from_numpy(self.pixels if self.pixels.flags.writeable else self.pixels.copy())
        return to_bytes(self.batch(np.arange(len(self))))


@dataclass(frozen=True)
class Images:
    """All images of a data set, split by subject."""

    folder: Path
    splits: dict[str, ImageSet]
    subjects_known: bool
    """False where each image had to count as its own subject."""
    files: tuple[ImageFile, ...]
    """Of all splits, read or not."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return next(one.pixels.shape[1:] for one in self.splits.values() if len(one))

    def describe(self) -> dict:
        """Return what config.json keeps of the data: hashes, sizes, and what was trained on.

        Every rank must call this and hashes its share of the training images; all get the same.
        """
        train = self.splits["train"]
        of = {split: [file for file in self.files if file.split == split] for split in SPLITS}
        own = {pixel_hash(picture) for picture in train.pixels[distributed.rank()::distributed.world_size()]}
        pictures = sorted(set().union(*distributed.gather_objects(own)))
        listing = "\n".join(f"{file.name} {file.split} {file.subject} {file.sha256}" for file in self.files)
        if not all(file.sha256 for file in self.files):  # no manifest vouches for what is in the files
            listing += "\n".join(pictures)
        return {"data_hash": hashlib.sha256(listing.encode()).hexdigest(),
                "data": {"folder": self.folder.name, "images": {split: len(of[split]) for split in SPLITS},
                         "subjects": {split: len({file.subject for file in of[split]}) for split in SPLITS},
                         "subjects_known": self.subjects_known, "extraction": _extraction(self.folder)},
                "image_shape": list(self.shape),
                "training_images": pictures,
                "training_subjects": sorted({subject_hash(subject) for subject in train.subjects})}


def _extraction(folder: Path) -> dict | None:
    """How extract_slices.py has cut the slices of a folder, so that predict.py can cut others likewise; None if it has
    not, or its record cannot be read: nothing else depends on it."""
    try:
        settings = json.loads((folder / "extraction.json").read_text(encoding="utf-8"))["settings"]
        return {name: settings[name] for name in ("planes", "extent", "size", "field_of_view", "bits")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_images(settings: DataSettings, splits: tuple[str, ...] = SPLITS, shape_must_divide: int = 1) -> Images:
    """Read the images of `splits` into memory, one copy on each machine. Every rank must call this.

    Args:
        settings: which folder and kind; --data, or SLICES_PATH.
        splits: the others stay empty, but are checked for shared subjects all the same.
        shape_must_divide: what height and width must be multiples of (the coarsest grid).
    Raises: UserError, the same on all ranks, if the folder does not fit, a subject is in two splits, an image cannot
        be read, or another rank (on another machine) has other files.
    """
    folder, files = distributed.together(lambda: _list_files(settings))
    _check_ranks_see_the_same(folder, files)
    subjects_known = settings.dataset != "folder" or settings.subject_pattern is not None
    read = _reader(folder, settings.size)
    sets, notes = {}, []
    for split in SPLITS:
        chosen = tuple(file for file in files if file.split == split and split in splits)
        pixels, note = pixel_cache.decode(len(chosen), lambda i, chosen=chosen: read(chosen[i]))
        sets[split] = ImageSet(chosen, pixels)
        notes.append(note)
    for note in sorted(set(notes) - {""}):
        if distributed.launched_rank() == 0:
            print(note, flush=True)
    images = Images(folder, sets, subjects_known, tuple(files))
    _check_shapes(images, shape_must_divide)
    return images


def moved(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return each image mirrored left-right or not, shifted by up to 3 % and scaled by up to 5 %, black outside.

    Args:
        pixels: `[n, channels, height, width]` in 0…1; nothing is turned upside down: scans are not.
        draws: `[n, 5]` in 0…1, for mirroring, shifts (across, down) and scales (across, down).
    """
    places = _places_of(pixels, machine.to_device(draws.float(), pixels.device))
    return _sampled(pixels, places, "bicubic")


def augmented(pixels: torch.Tensor, items: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Return another picture of each training image: `moved`, and up to 10 % brighter or darker, with another contrast.

    Args:
        pixels: `[n, channels, height, width]` in 0…1. items: `[n]`, the images' numbers in their split.
    What becomes of an image depends on (seed, epoch, its number) only, not on the batch, the rank or what was drawn
    before. Black background stays exactly 0, and all stays in 0…1. The contrast is x + b x (1 - x), b in -0.1…0.1: near
    to gamma 1 - b in 0.9…1.1, but made of sums and products only, which are the same bits wherever a pixel lies.
    """
    draws = random_numbers.uniform(seed, "augmentation", epoch, np.asarray(items)[:, None], np.arange(7)[None]).float()
    draws = machine.to_device(draws, pixels.device)
    places = _places_of(pixels, draws[:, :5])
    # The cubic's outer lobes are negative, and two of them make a glow of up to 1 % beside a corner; linear has none.
    made = _sampled(pixels, places, "bicubic").masked_fill_(_sampled(pixels, places, "bilinear") == 0, 0)
    gain, bend = (draws[:, 5:, None, None, None] * 0.2 - 0.1).unbind(1)
    made.mul_(1 + gain).clamp_(0, 1)
    return made.mul_((1 - made).mul_(bend).add_(1)).clamp_(0, 1)


def _places_of(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return from where each pixel is taken, `[n, height, width, 2]`: (across, down), the picture being -1…1."""
    mirror = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    shift, scale = (draws[:, 1:3] * 2 - 1) * 0.06, 1 + (draws[:, 3:] * 2 - 1) * 0.05
    height, width = pixels.shape[2:]
    # Bit for bit torch's affine_grid, which multiplies matrices: its last bits might depend on the batch.
    across, down = (torch.linspace(-1, 1, side, device=pixels.device) * (side - 1) / side for side in (width, height))
    x = across * (mirror * scale[:, 0])[:, None] + shift[:, :1]
    y = down * scale[:, 1:] + shift[:, 1:]
    shape = (len(pixels), height, width)
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)


def _sampled(pixels: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(pixels, places, mode=mode, align_corners=False).clamp_(0, 1)


def _list_files(settings: DataSettings) -> tuple[Path, list[ImageFile]]:
    """Return the data folder and its images of all splits. Raises: UserError as `load_images`."""
    folder = path_from_environment(settings.data, "SLICES_PATH", "--data")
    if not folder.is_dir():
        raise UserError(f"--data {folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}. "
                        "Run extract_slices.py first, or correct the path.")
    files = {"oasis": _list_manifest, "keras_png_slices": _list_keras, "folder": _list_folder}[settings.dataset](
        folder, settings)
    _check_subjects(folder, files)
    return folder, files


def pixel_hash(pixels: np.ndarray) -> str:
    """Return 16 hex digits of the SHA-256 of one image's pixels `[channels, height, width]` and shape."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:HASH_DIGITS]


def subject_hash(subject: str) -> str:
    """Return 16 hex digits of the SHA-256 of a subject's name: enough to compare, without telling it."""
    return hashlib.sha256(subject.encode()).hexdigest()[:HASH_DIGITS]


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names of files without folder and ending; where two would be alike, 8 hex digits of the hash of the
    whole name are added. A file system may hold a and A to be the same."""
    count = Counter(PurePosixPath(name).stem.casefold() for name in names)
    return [stem if count[(stem := PurePosixPath(name).stem).casefold()] == 1
            else f"{stem}_{hashlib.sha256(name.encode()).hexdigest()[:8]}" for name in names]


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images in 0…1 as uint8, rounded, on the CPU."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def _list_manifest(folder: Path, _: DataSettings) -> list[ImageFile]:
    path = folder / "manifest.csv"
    if not path.is_file():
        raise UserError(f"{path}: expected the manifest that extract_slices.py writes, found none. "
                        "Run extract_slices.py, or choose --dataset folder.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet may have put its mark in front
            rows = csv.DictReader(file, restval="")
            columns = list(rows.fieldnames or ())
            table = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a readable manifest, found {error}. Run extract_slices.py again.") from None
    missing = {"image", "split", "subject", "sha256"} - set(columns)
    if missing:
        raise UserError(f"{path}: expected the column(s) {', '.join(sorted(missing))}, found "
                        f"{', '.join(columns) or 'none'}. Run extract_slices.py again.")
    files = [ImageFile(row["image"], row["split"], row["subject"], row["sha256"], row) for row in table]
    unknown = {file.split or "nothing" for file in files} - set(SPLITS)
    if unknown:
        raise UserError(f"{path}: expected splits train, validate, test, found {', '.join(sorted(unknown))}. "
                        "Run extract_slices.py again.")
    return files


def _list_keras(folder: Path, _: DataSettings) -> list[ImageFile]:
    files = []
    for split in SPLITS:
        inside = folder / f"keras_png_slices_{split}"
        if not inside.is_dir():
            raise UserError(f"--data {folder}: expected a folder keras_png_slices_{split} in it, found none. "
                            "Point at the parent of keras_png_slices_train, _validate and _test.")
        for path in pictures_in(inside):
            if "_seg_" not in path.name and not path.name.startswith("seg_"):
                case = re.match(r"(case_\d+)", path.name)
                files.append(ImageFile(path.relative_to(folder).as_posix(), split,
                                       case[1] if case else path.stem, ""))
    return files


def _list_folder(folder: Path, settings: DataSettings) -> list[ImageFile]:
    named = {path: FOLDER_NAMES[path.name.lower()] for path in sorted(folder.iterdir())
             if path.is_dir() and path.name.lower() in FOLDER_NAMES}
    paths = [(path, split) for inside, split in named.items() for path in pictures_in(inside)]
    if not named:
        paths = [(path, "") for path in pictures_in(folder)]
    files = []
    for path, split in paths:
        name = path.relative_to(folder).as_posix()
        match = re.search(settings.subject_pattern, path.name) if settings.subject_pattern else None
        if settings.subject_pattern and match is None:
            raise UserError(f"--subject-pattern {settings.subject_pattern}: expected a match in every image's name, "
                            f"found none in {path.name}. Correct the pattern.")
        subject = match[1] if match else name
        files.append(ImageFile(name, split or _split_of(subject, settings), subject, ""))
    return files


def _split_of(subject: str, settings: DataSettings) -> str:
    seed = getattr(settings, "seed", 0)
    place = random_numbers.uniform(seed, f"split of {subject}").item() * sum(settings.split)
    return "train" if place < settings.split[0] else "validate" if place < sum(settings.split[:2]) else "test"


def pictures_in(folder: Path) -> list[Path]:
    """Return the image files below a folder, by their endings, sorted; hidden ones are not among them."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _check_subjects(folder: Path, files: list[ImageFile]) -> None:
    if not files:
        raise UserError(f"--data {folder}: expected images, found none. Run extract_slices.py, or correct the path.")
    split_of: dict[str, str] = {}
    for file in files:
        if split_of.setdefault(file.subject, file.split) != file.split:
            raise UserError(f"--data {folder}: expected each subject in one split, found subject {file.subject} in "
                            f"{split_of[file.subject]} and {file.split}. Split by subject: run extract_slices.py "
                            "again, or give --subject-pattern.")


def _reader(folder: Path, size: int | None) -> Callable[[ImageFile], np.ndarray]:
    return lambda file: read_picture(folder / file.name, size)


def read_picture(path: Path, size: int | None = None) -> np.ndarray:
    """Return an image file's pixels `[channels, height, width]`, uint8 or uint16; one channel unless it has colours.

    Args:
        size: height and width to which it is resized, if given.
    Raises: UserError if it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return _as_pixels(picture, size)
    except FileNotFoundError:
        raise UserError(f"{path}: expected an image, found nothing. Run extract_slices.py again.") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: expected a readable image, found {' '.join(str(error).split())}. "
                        "Delete it or make it again.") from None


def _as_pixels(picture: Image.Image, size: int | None) -> np.ndarray:
    """Return `[channels, height, width]`: one channel unless the picture has colours."""
    resampling = Image.Resampling.BOX if size and min(picture.size) > size else Image.Resampling.BILINEAR
    if picture.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if picture.mode.startswith("I"):
        if size and picture.size != (size, size):
            picture = Image.fromarray(np.asarray(picture, dtype=np.float32)).resize((size, size), resampling)
        return np.asarray(picture).round().clip(0, 65535).astype(np.uint16)[None]
    grey = picture.mode in ("1", "L", "LA")
    picture = picture.convert("L" if grey else "RGB")
    if size and picture.size != (size, size):
        picture = picture.resize((size, size), resampling)
    pixels = np.asarray(picture)
    if not grey and (pixels[..., :1] == pixels).all():
        pixels = pixels[..., 0]
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _check_ranks_see_the_same(folder: Path, files: list[ImageFile]) -> None:
    listing = hashlib.sha256(repr(files).encode()).hexdigest()
    found = distributed.gather_objects((listing, len(files)))
    for rank, other in enumerate(found):
        if other != found[0]:
            raise UserError(f"--data {folder}: expected the same images on all machines, found {other[1]} on rank "
                            f"{rank} that are not the {found[0][1]} of rank 0. Copy the folder again, or share it.")


def _check_shapes(images: Images, divisor: int) -> None:
    shapes = {split: one.pixels.shape[1:] for split, one in images.splits.items() if len(one)}
    if not shapes:
        return
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{split} {shape}" for split, shape in shapes.items())
        raise UserError(f"--data {images.folder}: expected one shape in all splits, found {found}. Give --size, or "
                        "make all of them grey or all in colour.")
    _, height, width = next(iter(shapes.values()))
    if height % divisor or width % divisor:
        raise UserError(f"--data {images.folder}: expected height and width that {divisor} divides (--downsample), "
                        f"found {height} by {width}. Give --size {max(divisor, height // divisor * divisor)}.")
