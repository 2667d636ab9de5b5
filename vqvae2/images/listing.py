"""A folder of images -> a list of them, each with its split and subject; nothing is read yet.

    oasis               what extract_slices.py made: manifest.csv says split and subject
    keras_png_slices    keras_png_slices_train, _validate and _test of the OASIS PNG release; in
                        case_001_slice_0.nii.png the case is the subject, and what is named seg is no image
    folder              any pictures, in train, validate and test or unsplit, with folders inside or without

Whatever the kind, a subject in two splits is refused: test figures would be about training brains. Some public data
sets are split like that for good; --allow-leak goes on, and then every report says how many subjects it is. A path
that is one folder too high or too deep is not guessed at, since what would be read instead may be split anew, but the
answer names the right one.
"""

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from vqvae2.common import random_numbers
from vqvae2.common.errors import UserError
from vqvae2.common.names import SPLITS, SUFFIXES
from vqvae2.images.reading import pictures_in
from vqvae2.images.settings import DataSettings
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import path_from_environment
from vqvae2.slices.keras_names import KERAS, UNFINISHED

FOLDER_NAMES = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate",
                "validation": "validate", "test": "test"}
"""What folders of splits may be called, in lower case, and which they are."""
CASE = r"case_\d+"
"""In the name of a picture of that release: its subject."""
LABELS = re.compile(r"(^|_)seg(_|\.|$)", re.IGNORECASE)
"""In the name of a picture, or of a folder that it lies in: labels of a segmentation, not a scan."""


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
class Listing:
    """The images of a data folder, of all splits."""

    folder: Path
    files: list[ImageFile]
    shared_subjects: int
    """Subjects in more than one split; 0 unless that is allowed."""
    notes: tuple[str, ...]
    """What the user should know; lines to print."""


def list_files(settings: DataSettings) -> Listing:
    """Return the images in the data folder.

    Raises: UserError if the folder is not of the kind that settings.dataset says, an image's subject is not to be told
        from its name, or a subject is in two splits without settings.allow_leak.
    """
    folder = path_from_environment(settings.data, "SLICES_PATH", "--data")
    if not folder.is_dir():
        raise UserError(f"--data {folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}. "
                        "Run extract_slices.py first, or correct the path.")
    expect(settings.fit == "stretch" or settings.size is not None, f"--fit {settings.fit}", "--size beside it", "none",
           "For example --size 128.")
    files, notes = {"oasis": _list_manifest, "keras_png_slices": _list_keras, "folder": _list_folder}[
        settings.dataset](folder, settings)
    if not files:
        raise UserError(f"--data {folder}: expected images, found none. Run extract_slices.py, or correct the path.")
    return Listing(folder, files, _shared_subjects(folder, files, settings.allow_leak), notes)


def _list_manifest(folder: Path, _: DataSettings) -> tuple[list[ImageFile], tuple[str, ...]]:
    path = folder / "manifest.csv"
    if not path.is_file():
        other = "keras_png_slices" if _keras_folders(folder) else "folder"
        raise UserError(f"{path}: expected the manifest that extract_slices.py writes, found none. "
                        f"Run extract_slices.py, or choose --dataset {other}.")
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
    return files, ()


def _list_keras(folder: Path, settings: DataSettings) -> tuple[list[ImageFile], tuple[str, ...]]:
    named = _one_for_each(folder, _keras_folders(folder))
    expect(not (folder / UNFINISHED).exists(), f"--data {folder}", "links that are all there", "some that are not yet",
           "Run extract_slices.py --layout keras_png_slices again: it was stopped before its end.")
    for split in SPLITS:
        expect(split in named, f"--data {folder}", f"a folder {KERAS}{split} in it", "none",
               f"Point at the parent of {KERAS}train, _validate and _test{_nearby(folder, _keras_folders)}.")
    files = []
    for split in SPLITS:
        for path in pictures_in(named[split]):
            name = path.relative_to(folder)
            if any(LABELS.search(part) for part in name.parts[1:]):
                continue
            case = re.match(CASE, path.name)
            expect(bool(case or settings.subject_pattern), f"--data {folder}",
                   f"names such as case_001_slice_0.nii.png in {KERAS}{split}", name.as_posix(),
                   "Give --subject-pattern, whose group is the subject, or remove it.")
            subject = case[0] if not settings.subject_pattern else _by_pattern(settings.subject_pattern, name)
            files.append(ImageFile(name.as_posix(), split, subject, ""))
    return files, ()


def _list_folder(folder: Path, settings: DataSettings) -> tuple[list[ImageFile], tuple[str, ...]]:
    named = _one_for_each(folder, _split_folders(folder))
    if named:
        paths = [(path, split) for split in SPLITS if split in named for path in pictures_in(named[split])]
        notes = _beside(folder, list(named.values()))
    else:
        paths, notes = [(path, "") for path in pictures_in(folder)], ()
        _refuse_hidden_splits(folder, [path for path, _ in paths])
    files = []
    for path, split in paths:
        name = path.relative_to(folder)
        subject = _by_pattern(settings.subject_pattern, name) if settings.subject_pattern else name.as_posix()
        files.append(ImageFile(name.as_posix(), split or _split_of(subject, settings), subject, ""))
    return files, notes


def _by_pattern(pattern: str, name: PurePath) -> str:
    """Return the subject that a pattern finds in a picture's name or, if not there, in its path below --data."""
    match = re.search(pattern, name.name) or re.search(pattern, name.as_posix())
    expect(bool(match), f"--subject-pattern {pattern}", "a match in every image's name",
           f"none in {name.as_posix()}", "Correct the pattern.")
    expect(match[1] is not None, f"--subject-pattern {pattern}", "a group that takes part in every match",
           f"an empty one in {name.as_posix()}", "Correct the pattern.")
    return match[1]


def subject_in_name(name: str, settings: DataSettings) -> str | None:
    """Return the subject that a picture's name says, by the rule of the data that `settings` describe; None if none."""
    pattern = settings.subject_pattern or (f"({CASE})" if settings.dataset == "keras_png_slices" else None)
    match = re.search(pattern, PurePath(name).name) if pattern else None
    return match[1] if match else None


def _split_folders(folder: Path, before: str = "") -> list[tuple[Path, str]]:
    """Return the folders in `folder` that are named after a split, with `before` before it, and which one it is."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    return [(path, FOLDER_NAMES[rest]) for path in inside if path.name.lower().startswith(before)
            and (rest := path.name.lower().removeprefix(before)) in FOLDER_NAMES]


def _keras_folders(folder: Path) -> list[tuple[Path, str]]:
    return _split_folders(folder, KERAS)


def _one_for_each(folder: Path, named: list[tuple[Path, str]]) -> dict[str, Path]:
    """Return each split's folder. Raises: UserError if a split has two, which may hold the same images."""
    found: dict[str, Path] = {}
    for path, split in named:
        if found.setdefault(split, path) != path:
            raise UserError(f"--data {folder}: expected one folder for {split}, found {found[split].name} and "
                            f"{path.name}. Rename one of them, or put all its images into the other.")
    return found


def _nearby(folder: Path, search: Callable[[Path], list[tuple[Path, str]]]) -> str:
    """Return the folder above or below that has the folders of splits, as advice; nothing if there is none."""
    around = [folder.resolve().parent, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = next((path for path in around if len(search(path)) > 1), None)
    return f": --data {found}" if found else ""


def _beside(folder: Path, named: list[Path]) -> tuple[str, ...]:
    """Return a line about pictures that lie beside the folders of the splits, where there are any."""
    left = [path for path in sorted(folder.iterdir()) if path not in named and not path.name.startswith(".")]
    beside = [picture for path in left for picture in (
        pictures_in(path) if path.is_dir() else [path] if path.suffix.lower() in SUFFIXES else [])]
    if not beside:
        return ()
    return (f"images: {len(beside)} beside {', '.join(path.name for path in named)} are not read, such as "
            f"{beside[0].relative_to(folder).as_posix()}",)


def _refuse_hidden_splits(folder: Path, pictures: list[Path]) -> None:
    """Raise UserError if a folder that would be split at random is part of a split, or holds one further down."""
    here = folder.resolve()
    inside = {part for path in pictures for part in path.relative_to(folder).parts[:-1]}
    of_keras = [name for name in [here.name, *sorted(inside)] if name.lower().startswith(KERAS)]
    expect(not of_keras and not _keras_folders(folder), f"--data {folder}", "a folder of pictures for --dataset folder",
           f"{KERAS} folders", f"Choose --dataset keras_png_slices{_nearby(folder, _keras_folders)}.")
    siblings = {split for _, split in _split_folders(here.parent)} if here.name.lower() in FOLDER_NAMES else set()
    expect(len(siblings) < 2, f"--data {folder}", "the folder that holds all splits", f"{here.name} alone",
           f"Give --data {here.parent}.")
    parents, found = set(), set()
    for path in pictures:
        parts = path.relative_to(folder).parts[:-1]
        if place := next((i for i, part in enumerate(parts) if part.lower() in FOLDER_NAMES), None):
            parents.add(folder.joinpath(*parts[:place]))
            found.add(FOLDER_NAMES[parts[place].lower()])
    if len(found) > 1:
        advice = f"Give --data {min(parents)}." if len(parents) == 1 else "Move them up: train/cats, not cats/train."
        raise UserError(f"--data {folder}: expected train, validate and test at its top, or nowhere, found "
                        f"{' and '.join(sorted(found))} below {len(parents)} folder(s) such as {min(parents).name}. "
                        + advice)


def _split_of(subject: str, settings: DataSettings) -> str:
    place = random_numbers.uniform(settings.seed, f"split of {subject}").item() * sum(settings.split)
    return "train" if place < settings.split[0] else "validate" if place < sum(settings.split[:2]) else "test"


def _shared_subjects(folder: Path, files: Iterable[ImageFile], allowed: bool) -> int:
    """Return how many subjects are in more than one split. Raises: UserError if there are any, unless `allowed`."""
    splits_of: dict[str, dict[str, None]] = {}
    for file in files:
        splits_of.setdefault(file.subject, {})[file.split] = None
    shared = [subject for subject, splits in splits_of.items() if len(splits) > 1]
    if shared and not allowed:
        more = f", and {len(shared) - 1} more in two" if len(shared) > 1 else ""
        raise UserError(f"--data {folder}: expected each subject in one split, found subject {shared[0]} in "
                        f"{' and '.join(splits_of[shared[0]])}{more}. Split by subject: run extract_slices.py again, "
                        "or give --subject-pattern; --allow-leak goes on, for a public data set, and reports say so.")
    return len(shared)
