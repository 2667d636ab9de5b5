"""A folder of images -> tensors by split, with names, subjects and hashes.

layouts.py says which pictures a folder holds, and of which subject and split each is; picture_files.py reads one.

All images are decoded once and stay in memory, one copy on each machine (pixel_cache.py); a batch is cut out of it in
less than a millisecond, so that nothing needs to run ahead of the training (docs/benchmarks.md).
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from vqvae2.common import distributed, machine, rendezvous
from vqvae2.common.errors import UserError
from vqvae2.common.names import SPLITS
from vqvae2.images import memory
from vqvae2.images.listing import ImageFile, list_files
from vqvae2.images.reading import read_picture
from vqvae2.images.settings import DataSettings

HASH_DIGITS = 16
MOST_NAMED = 10
"""Broken images that an error names."""


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

    def intensities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each channel over all pixels, float32 `[channels]`, images being 0…1.

        From counts of each grey value, in whole numbers: the same bits on every machine. A channel of one value has
        the deviation 1.
        """
        white, found = np.iinfo(self.pixels.dtype).max, []
        for channel in range(self.pixels.shape[1]):
            counts = sum(np.bincount(one.ravel(), minlength=white + 1) for one in self.pixels[:, channel]).tolist()
            number, total, squares = (sum(count * value**power for value, count in enumerate(counts))
                                      for power in (0, 1, 2))
            deviation = math.sqrt(squares * number - total**2) / number / white
            found.append((total / number / white, deviation or 1.0))
        mean, deviation = torch.tensor(found, dtype=torch.float64).float().unbind(1)
        return mean, deviation

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
    shared_subjects: int = 0
    """Subjects that are in more than one split, which --allow-leak has let through."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return next(one.pixels.shape[1:] for one in self.splits.values() if len(one))

    @property
    def field_of_view(self) -> float | None:
        """Height and width of every image in mm; None where extract_slices.py does not say it."""
        found = (_extraction(self.folder) or {}).get("field_of_view")
        return found if isinstance(found, (int, float)) and found > 0 else None

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
                         "subjects_known": self.subjects_known, "shared_subjects": self.shared_subjects,
                         "extraction": _extraction(self.folder)},
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
    Raises: UserError, the same on all ranks, if the folder does not fit, a subject is in two splits (unless
        settings.allow_leak), images cannot be read, or another rank (on another machine) has other files.
    """
    listing = distributed.together(lambda: list_files(settings))
    folder, files = listing.folder, listing.files
    _check_ranks_see_the_same(folder, files)
    subjects_known = settings.dataset != "folder" or settings.subject_pattern is not None
    read = _reader(folder, settings)
    sets, notes, broken = {}, set(listing.notes), {}
    for split in SPLITS:
        chosen = tuple(file for file in files if file.split == split and split in splits)
        try:
            pixels, note = memory.decode(len(chosen), lambda i, chosen=chosen: read(chosen[i]))
        except memory.BrokenPictures as error:
            broken |= {chosen[i].name: why for i, why in error.errors.items()}
            continue
        sets[split] = ImageSet(chosen, pixels)
        notes.add(note)
    _refuse_broken(folder, broken, sum(file.split in splits for file in files))
    for note in sorted(notes - {""}):
        if rendezvous.launched_rank() == 0:
            print(note, flush=True)
    images = Images(folder, sets, subjects_known, tuple(files), listing.shared_subjects)
    _check_shapes(images, shape_must_divide)
    return images


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


def _reader(folder: Path, settings: DataSettings) -> Callable[[ImageFile], np.ndarray]:
    return lambda file: read_picture(folder / file.name, settings.size, settings.fit, settings.colours)


def _refuse_broken(folder: Path, broken: dict[str, tuple[str, str]], tried: int) -> None:
    """Raise UserError if images cannot be read, given each one's error and what it comes to in a few words."""
    if len(broken) == 1:
        raise UserError(next(iter(broken.values()))[0])
    if broken:
        some = sorted(broken)[:MOST_NAMED]
        named = "; ".join(f"{name} ({broken[name][1]})" for name in some)
        more = f"; and {len(broken) - len(some)} more" if len(broken) > len(some) else ""
        raise UserError(f"--data {folder}: expected images that can all be read, found {len(broken)} of {tried} that "
                        f"cannot: {named}{more}. Delete them or make them again.")


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
                        "--colours grey or rgb.")
    _, height, width = next(iter(shapes.values()))
    if height % divisor or width % divisor:
        raise UserError(f"--data {images.folder}: expected height and width that {divisor} divides (--downsample), "
                        f"found {height} by {width}. Give --size {max(divisor, height // divisor * divisor)}.")
