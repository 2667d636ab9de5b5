"""A folder of images -> tensors by split, with names, subjects and hashes.

listing.py finds the pictures of a folder, and the subject and split of each; reading.py reads one.

All images are decoded once and stay in memory, one copy on each machine (decoding.py); a batch is cut out of it in
less than a millisecond, so that nothing needs to run ahead of the training (docs/benchmarks.md). Where they do not fit
into memory they lie in a file, and are read ahead. SliceDataset, for programs of others, reads a picture each time that
it is asked for.
"""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import torch
from torch.utils.data import Dataset

from vqvae2.common import distributed, machine
from vqvae2.common.errors import UserError, expect
from vqvae2.common.names import SPLITS
from vqvae2.images import decoding
from vqvae2.images.listing import ImageFile, list_files, shared_subjects
from vqvae2.images.manifest import in_one_hash
from vqvae2.images.reading import BrokenPicture, read_hashed
from vqvae2.images.settings import DataSettings
from vqvae2.runs.config import Cutting
from vqvae2.settings.parsing import as_dict
from vqvae2.settings.stored import as_declared, read_json

EXTRACTION = "extraction.json"
HASH_DIGITS = 16
MOST_NAMED = 10
"""Broken images that an error names."""
MARK_BYTES = 3
"""What config.json keeps of each image's hash, 4 characters: enough to name the one that differs, since `images_hash`
says whether there is one."""


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
        """Return the names of the images, in order."""
        return [file.name for file in self.files]

    @property
    def subjects(self) -> list[str]:
        """Return the subject of each image, in order."""
        return [file.subject for file in self.files]

    @property
    def facts(self) -> list[Mapping[str, str]]:
        """Return the manifest's row of each image, in order."""
        return [file.facts for file in self.files]

    def batch(self, items: torch.Tensor | list[int], device: torch.device | None = None) -> torch.Tensor:
        """Return images `[n, channels, height, width]`, float32 in 0…1, on `device` (the CPU by default)."""
        self.read_ahead(items)
        return from_bytes(torch.from_numpy(self.pixels.take(np.asarray(items, dtype=np.int64), 0)), device)

    def read_ahead(self, items: torch.Tensor | list[int]) -> None:
        """Begin to read the images that a later `batch` will need, where they do not fit into memory."""
        decoding.read_ahead(self.pixels, np.asarray(items, dtype=np.int64))

    def intensities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each channel over all pixels, float32 `[channels]`, images being 0…1.

        They come from counts of each grey value, in whole numbers: the same bits on every machine. A channel of one
        value has the deviation 1. Every rank must call this and counts its share of the images; all get the same.
        """
        white, found = np.iinfo(self.pixels.dtype).max, []
        for channel in self.pixels.swapaxes(0, 1):
            own = sum(np.bincount(image.ravel(), minlength=white + 1)
                      for image in channel[distributed.rank()::distributed.world_size()])
            counts = sum(distributed.gather_objects(own)).tolist()
            number, total, squares = (sum(count * value**power for value, count in enumerate(counts))
                                      for power in (0, 1, 2))
            found.append((total / number / white, math.sqrt(squares * number - total**2) / number / white or 1.0))
        return torch.tensor(found, dtype=torch.float64).float().unbind(1)

    def bytes(self) -> torch.Tensor:
        """Return all images as uint8 `[n, channels, height, width]`, for pictures and metrics (design: on 8 bit)."""
        if self.pixels.dtype != np.uint8:
            return to_bytes(self.batch(np.arange(len(self))))
        # Torch has no read-only tensors: writing into one of shared pixels would end the process.
        return torch.from_numpy(np.require(self.pixels, requirements="W"))


@dataclass(frozen=True)
class Images:
    """All images of a data set, split by subject."""

    folder: Path
    splits: dict[str, ImageSet]
    subjects_known: bool
    """False where each image had to count as its own subject."""
    files: tuple[ImageFile, ...]
    """The pictures of all splits, read or not."""
    digests: dict[str, np.ndarray] = field(repr=False)
    """For each split that was read `[n, 32]`, uint8: the SHA-256 of each picture's file."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of every image."""
        return next(images.pixels.shape[1:] for images in self.splits.values() if len(images))

    @property
    def shared_subjects(self) -> int:
        """Return the number of subjects in more than one split, which --allow-leak has let through."""
        return len(shared_subjects(self.files))

    @property
    def field_of_view(self) -> float | None:
        """Return height and width of every image in mm; None where extract_slices.py does not say it."""
        found = (_extraction(self.folder) or {}).get("field_of_view")
        return found if isinstance(found, (int, float)) and found > 0 else None

    @property
    def word(self) -> str:
        """Return what pictures call an original: `real`, or `synthetic` where the scans were of nobody."""
        return "synthetic" if _record(self.folder).get("synthetic") else "real"

    def describe(self, before: Mapping = MappingProxyType({})) -> dict:
        """Return what config.json keeps of the data: hashes, sizes, and what was trained on.

        Args:
            before: the config of a run that goes on with these images, if one does.
        Every rank must call this and hashes its share of the training images; all get the same.
        Raises: UserError, on all ranks, if an image is not the one that the run began with; it names the first.
        """
        train = self.splits["train"]
        of = {split: [file for file in self.files if file.split == split] for split in SPLITS}
        own = {pixel_hash(picture) for picture in train.pixels[distributed.rank()::distributed.world_size()]}
        pictures = sorted(set().union(*distributed.gather_objects(own)))
        hashes = hashes_of(self.files, self.digests, pictures)
        _refuse_changed(self.folder, self.files, hashes, before)
        return {**hashes,
                "data": {"folder": self.folder.name, "images": {split: len(of[split]) for split in SPLITS},
                         "subjects": {split: len({file.subject for file in of[split]}) for split in SPLITS},
                         "subjects_known": self.subjects_known, "shared_subjects": self.shared_subjects,
                         "extraction": _extraction(self.folder),
                         **({"synthetic": True} if self.word == "synthetic" else {})},
                "image_shape": list(self.shape),
                "training_images": pictures,
                "training_subjects": sorted({subject_hash(subject) for subject in train.subjects}),
                "held_out_subjects": sorted({subject_hash(file.subject) for split in SPLITS[1:]
                                             for file in of[split]})}


def _extraction(folder: Path) -> dict | None:
    """Return how extract_slices.py has cut the slices of a folder, so that predict.py can cut others likewise.

    None where there is no record, or that of an older version, which said less.
    Raises: UserError if the record says what extract_slices.py does not do.
    """
    if not (record := _record(folder)):
        return None
    cutting = as_dict(as_declared(record.get("settings"), Cutting, f"{folder / EXTRACTION}.settings"))
    return None if None in cutting.values() else cutting


def _record(folder: Path) -> dict:
    """Return what extract_slices.py has written of an extraction; {} where there is no record."""
    path = folder / EXTRACTION
    advice = "Run extract_slices.py again, or delete the file: then nothing is known of how the slices were cut."
    return read_json(path, "what extract_slices.py wrote", advice) if path.exists() else {}


def load_images(settings: DataSettings, splits: tuple[str, ...] = SPLITS, shape_must_divide: int = 1) -> Images:
    """Read the images of `splits` into memory, one copy on each machine. Every rank must call this.

    Args:
        settings: which folder and kind; --data, or SLICES_PATH.
        splits: the others stay empty, but are checked for shared subjects all the same.
        shape_must_divide: what height and width must be multiples of (the coarsest grid).
    Raises: UserError, the same on all ranks, if the folder does not fit, a subject is in two splits (unless
        settings.allow_leak), images cannot be read, or another rank (on another machine) has other files.
    """
    folder, listed = distributed.together(lambda: list_files(settings))
    _check_ranks_see_the_same(folder, listed)
    sets, digests, notes, broken = {}, {}, set(), {}
    for split in SPLITS:
        chosen = tuple(file for file in listed if file.split == split and split in splits)
        digests[split] = np.zeros((len(chosen), 32), np.uint8)

        def read(i: int, chosen: tuple[ImageFile, ...] = chosen, own: np.ndarray = digests[split]) -> np.ndarray:
            pixels, digest = _read(folder, chosen[i], settings)
            own[i] = np.frombuffer(digest, np.uint8)
            return pixels
        pixels, errors, note = decoding.decode(len(chosen), read)
        sets[split] = ImageSet(chosen, pixels)
        notes.add(note)
        broken |= {chosen[i].name: why for i, why in errors.items()}
    _refuse_broken(folder, broken, sum(file.split in splits for file in listed))
    for split, image_set in sets.items():
        _gather_digests(folder, image_set.files, digests[split])
    if distributed.launched_rank() == 0:
        print("".join(f"{note}\n" for note in sorted(notes - {""})), end="", flush=True)
    images = Images(folder, sets, settings.dataset != "folder" or settings.subject_pattern is not None, tuple(listed),
                    digests)
    _check_shapes(images, shape_must_divide)
    return images


class SliceDataset(Dataset):
    """The images of one split of a folder, for pipelines of other libraries; each is read when it is asked for.

    An item is a dict: the image's row of manifest.csv, but "image" is float32 `[channels, height, width]` in 0…1 and
    "name" the picture's path below the folder. "subject" is there for every kind of data set.

        slices = SliceDataset("slices", "train")
        slices[0]["image"].shape, slices[0]["subject"]
    """

    def __init__(self, folder: str | Path, split: str, **settings: object):
        """List the images.

        Args:
            settings: further fields of DataSettings, such as size=128 or dataset="folder".
        Raises: UserError if the folder does not fit them, or the split has no image.
        """
        self.settings = DataSettings(data=Path(folder), **settings)
        self.folder, listed = list_files(self.settings)
        self.files = [file for file in listed if file.split == split]
        expect(bool(self.files), f"{folder}", f"images in the split {split}", "none", f"Choose of {', '.join(SPLITS)}.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict:
        file = self.files[i]
        image = from_bytes(torch.tensor(_read(self.folder, file, self.settings)[0]))
        return {**file.facts, "image": image, "name": file.name, "subject": file.subject}


def _read(folder: Path, file: ImageFile, settings: DataSettings) -> tuple[np.ndarray, bytes]:
    """Return an image's pixels and the SHA-256 of its file. Raises: BrokenPicture, also if the manifest has another."""
    path = folder / file.name
    pixels, digest = read_hashed(path, settings.size, settings.fit, settings.colours,
                                 folder if settings.dataset == "oasis" else None)
    if file.sha256 not in ("", digest.hex()):
        raise BrokenPicture(f"{path}: expected the image whose SHA-256 the manifest has ({file.sha256[:12]}), found "
                            f"another ({digest.hex()[:12]}). Put it back, or run extract_slices.py again.",
                            "not the image whose SHA-256 the manifest has")
    return pixels, digest


def hashes_of(files: Sequence[ImageFile], digests: Mapping[str, np.ndarray], pixel_hashes: Sequence[str]) -> dict:
    """Return what tells these images from others, for config.json.

    `data_hash` is of what the listing says, and of the training images' pixels where no manifest vouches for them;
    `images_hash` of each image's name, split, subject and file; `image_marks` has some digits of each image's own hash.

    Args:
        digests: as in `Images`. An image that was not read counts by the hash that its manifest states.
    """
    listing, images, marks, is_vouched = hashlib.sha256(), hashlib.sha256(), bytearray(), True
    read = {split: iter(of_split) for split, of_split in digests.items()}
    for number, file in enumerate(files):
        line, stated = _as_bytes(f"{file.name} {file.split} {file.subject} "), file.sha256
        listing.update(b"\n" * (number > 0) + line + stated.encode())
        mark = hashlib.sha256(line + (bytes(next(read[file.split], b"")) or bytes.fromhex(stated))).digest()
        images.update(mark)
        marks += mark[:MARK_BYTES]
        is_vouched &= stated != ""
    if not is_vouched:
        listing.update("\n".join(pixel_hashes).encode())
    return {"data_hash": listing.hexdigest(), "images_hash": images.hexdigest(),
            "image_marks": base64.b64encode(marks).decode()}


def _as_bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # a file's name need not be UTF-8


def _refuse_changed(folder: Path, files: Sequence[ImageFile], hashes: Mapping[str, str], before: Mapping) -> None:
    """Raise UserError if images are not those of the config `before`, or do nothing where it does not say which."""
    began, now = before.get("image_marks"), hashes["image_marks"]
    if not isinstance(began, str) or hashes["images_hash"] == before.get("images_hash"):
        return
    digits = MARK_BYTES * 4 // 3
    places = range(0, len(now), digits)
    place = next((place for place in places if began[place:place + digits] != now[place:place + digits]), len(now))
    count = len(began) // digits
    name = files[place // digits].name if place < len(now) else f"none after {files[-1].name}"
    expect(False, f"--data {folder}", "the images that this run began with", f"another {name}" if count == len(files)
           else f"{len(files)} instead of {count}; the first that differs is {name}",
           "Put back what was there, or choose another --savename.")


def pixel_hash(pixels: np.ndarray) -> str:
    """Return 16 hex digits of the SHA-256 of one image's pixels `[channels, height, width]` and shape."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:HASH_DIGITS]


def subject_hash(subject: str) -> str:
    """Return 16 hex digits of the SHA-256 of a subject's name: enough to compare, without telling it."""
    return hashlib.sha256(_as_bytes(subject)).hexdigest()[:HASH_DIGITS]


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names of files without folder and ending; where two would be alike, 8 hex digits of the hash of the
    whole name are added. A file system may hold a and A to be the same."""
    count = Counter(PurePosixPath(name).stem.casefold() for name in names)
    return [stem if count[(stem := PurePosixPath(name).stem).casefold()] == 1
            else f"{stem}_{hashlib.sha256(_as_bytes(name)).hexdigest()[:8]}" for name in names]


def from_bytes(pixels: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """Return pixels, uint8 or uint16, as float32 in 0…1 on `device` (where they are by default).

    The stored bytes travel, a quarter of the floats, without the host waiting for it.
    """
    if device is not None and device.type != "mps":  # it may lack uint16
        pixels = machine.to_device(pixels, device)
    # CUDA divides by a number of the host by multiplying with its inverse, whose last bits differ from the CPU's.
    white = torch.full((), float(torch.iinfo(pixels.dtype).max), device=pixels.device)
    images = pixels.to(torch.float32).div_(white)
    return images if device is None else images.to(device)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images in 0…1 as uint8, rounded, on the CPU."""
    return (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def _refuse_broken(folder: Path, broken: dict[str, tuple[str, str]], tried: int) -> None:
    """Raise UserError if images cannot be read, given why: for each the error, and a few words."""
    if len(broken) == 1:
        raise UserError(next(iter(broken.values()))[0])
    named = "; ".join(f"{name} ({broken[name][1]})" for name in sorted(broken)[:MOST_NAMED])
    more = f"; and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    expect(not broken, f"--data {folder}", "images that can all be read",
           f"{len(broken)} of {tried} that cannot: {named}{more}", "Delete them or make them again.")


def _check_ranks_see_the_same(folder: Path, files: list[ImageFile]) -> None:
    if distributed.world_size() == 1:
        return
    found = distributed.gather_objects((in_one_hash(files), len(files)))
    for rank, other in enumerate(found):
        expect(other == found[0], f"--data {folder}", "the same images on all machines", f"{other[1]} on rank {rank} "
               f"that are not the {found[0][1]} of rank 0", "Copy the folder again, or share it.")


def _gather_digests(folder: Path, files: Sequence[ImageFile], digests: np.ndarray) -> None:
    """Give each rank the hashes `[n, 32]` of all files; each has read a share of them, and a machine all.

    Raises: UserError, the same on all ranks, if a file is another on another machine.
    """
    if distributed.world_size() == 1:
        return
    read = np.flatnonzero(digests.any(1))
    gathered = distributed.gather_objects((read, digests[read]))
    digests[:] = 0
    for rank, (read, found) in enumerate(gathered):
        before = digests[read]
        differs = read[before.any(1) & (before != found).any(1)]
        expect(not len(differs), f"--data {folder}", "the same images on all machines",
               f"another {files[differs[0]].name if len(differs) else ''} on rank {rank}",
               "Copy the folder again, or share it.")
        digests[read] = found


def _check_shapes(images: Images, divisor: int) -> None:
    shapes = {split: chosen.pixels.shape[1:] for split, chosen in images.splits.items() if len(chosen)}
    found = ", ".join(f"{split} {shape}" for split, shape in shapes.items())
    expect(len(set(shapes.values())) < 2, f"--data {images.folder}", "one shape in all splits", found,
           "Give --size, or --colours grey or rgb.")
    for height, width in {shape[1:] for shape in shapes.values()}:
        expect(height % divisor == width % divisor == 0, f"--data {images.folder}",
               f"height and width that {divisor} divides (--downsample)", f"{height} by {width}",
               f"Give --size {max(divisor, height - height % divisor)}.")
