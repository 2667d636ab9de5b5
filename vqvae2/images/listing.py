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

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from vqvae2.common import random_numbers
from vqvae2.common.errors import UserError, expect, launched_rank
from vqvae2.common.names import CASES_UNFINISHED, KERAS, SPLITS, SUFFIXES
from vqvae2.images.manifest import ImageFile, read_manifest
from vqvae2.images.reading import find_pictures, pictures_in
from vqvae2.images.settings import DataSettings
from vqvae2.scans.archives import first_match
from vqvae2.settings.parsing import path_from_environment

FOLDER_NAMES = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate",
                "validation": "validate", "test": "test"}
"""The names that folders of splits may have, in lower case, and which split it is."""
CASE = r"^(case_\d+)"
"""The subject in the name of a picture of the OASIS PNG release."""
LABELS = re.compile(r"(^|_)seg(_|\.|$)", re.IGNORECASE)
"""Pictures of such a name, or in a folder of such a name, are labels of a segmentation and not a scan."""


def list_files(settings: DataSettings) -> tuple[Path, list[ImageFile]]:
    """Return the data folder and the images in it; rank 0 says which pictures in it are not read.

    Raises: UserError if the folder is not of the kind that settings.dataset says, an image's subject is not to be told
        from its name, or a subject is in two splits without settings.allow_leak.
    """
    folder = path_from_environment(settings.data, "SLICES_PATH", "--data")
    expect(folder.is_dir(), f"--data {folder}", "a folder", "a file" if folder.exists() else "nothing",
           "Run extract_slices.py first, or correct the path.")
    expect(settings.fit == "stretch" or settings.size is not None, f"--fit {settings.fit}", "--size beside it", "none",
           "For example --size 128.")
    files = {"oasis": _list_manifest, "keras_png_slices": _list_keras, "folder": _list_folder}[
        settings.dataset](folder, settings)
    expect(bool(files), f"--data {folder}", "images", "none", "Run extract_slices.py, or correct the path.")
    if (shared := shared_subjects(files)) and not settings.allow_leak:
        subject, splits = next(iter(shared.items()))
        more = f", and {len(shared) - 1} more in two" if len(shared) > 1 else ""
        raise UserError(f"--data {folder}: expected each subject in one split, found subject {subject} in "
                        f"{' and '.join(splits)}{more}. Split by subject: run extract_slices.py again, "
                        "or give --subject-pattern; --allow-leak goes on, for a public data set, and reports say so.")
    return folder, files


def given_or_recorded(given: Path | None, recorded: Path | None, vqvae: str) -> Path | None:
    """Return --data, or else the folder that the config of the VQ-VAE names, which may be another machine's.

    None where neither is there: SLICES_PATH counts then. Raises: UserError if the recorded folder is not here.
    """
    path = given or recorded
    is_here = path is None or os.path.exists(os.path.expanduser(path))
    expect(given is not None or is_here, "--data", "the folder of your slices", f"none, and the images that --vqvae "
           f"{vqvae} was trained on are not on this machine", "Give --data FOLDER.")
    return path


def subject_in_name(name: str | PurePath, settings: DataSettings) -> str | None:
    """Return the subject that a picture's name or else its path says, by the rule of the data that `settings` describe.

    None where there is no rule, or the rule finds no subject.
    """
    pattern = settings.subject_pattern or (CASE if settings.dataset == "keras_png_slices" else None)
    path = PurePath(name)
    if pattern is None and settings.dataset == "folder":  # such as Kaggle's OAS1_0028_MR1_mpr-1_100.jpg
        known = first_match(path.as_posix())
        return known and known[1].groupdict().get("subject")
    match = pattern and (re.search(pattern, path.name) or re.search(pattern, path.as_posix()))
    return match[1] if match else None


def _list_manifest(folder: Path, _: DataSettings) -> list[ImageFile]:
    path = folder / "manifest.csv"
    expect(path.is_file(), str(path), "the manifest that extract_slices.py writes", "none", "Run extract_slices.py, or "
           f"choose --dataset {'keras_png_slices' if _split_folders(folder, KERAS) else 'folder'}.")
    return read_manifest(path)


def _list_keras(folder: Path, settings: DataSettings) -> list[ImageFile]:
    named = _one_for_each(folder, _split_folders(folder, KERAS))
    expect(not (folder / CASES_UNFINISHED).exists(), f"--data {folder}", "links that are all there",
           "some that are not yet", "Run extract_slices.py --layout keras_png_slices again: it was stopped.")
    if missing := [split for split in SPLITS if split not in named]:
        raise UserError(f"--data {folder}: expected a folder {KERAS}{missing[0]} in it, found none. Point at the "
                        f"parent of {KERAS}train, _validate and _test{_keras_nearby(folder)}.")
    paths = [(path, split) for split in SPLITS for path in pictures_in(named[split])
             if not any(LABELS.search(part) for part in path.relative_to(folder).parts[1:])]
    return _files(folder, paths, settings)


def _list_folder(folder: Path, settings: DataSettings) -> list[ImageFile]:
    named = _one_for_each(folder, _split_folders(folder))
    if named:
        paths = [(path, split) for split in SPLITS if split in named for path in pictures_in(named[split])]
        _say_what_is_beside(folder, list(named.values()))
        return _files(folder, paths, settings)
    pictures = pictures_in(folder)
    _refuse_hidden_splits(folder, pictures)
    return _files(folder, [(path, "") for path in pictures], settings)


def _files(folder: Path, paths: list[tuple[Path, str]], settings: DataSettings) -> list[ImageFile]:
    """Return pictures, each with its subject, and with its split, which is drawn by subject where it is ""."""
    files = []
    for path, split in paths:
        name = path.relative_to(folder)
        subject = subject_in_name(name, settings)
        expect(subject is not None or settings.subject_pattern is None, f"--subject-pattern {settings.subject_pattern}",
               "a match in every image's name", f"none in {name.as_posix()}", "Correct the pattern.")
        expect(subject is not None or settings.dataset == "folder", f"--data {folder}",
               f"names such as case_001_slice_0.nii.png in {KERAS}{split}", name.as_posix(),
               "Give --subject-pattern, whose group is the subject, or remove it.")
        subject = name.as_posix() if subject is None else subject
        files.append(ImageFile(name.as_posix(), split or _split_of(subject, settings), subject, ""))
    return files


def _split_folders(folder: Path, before: str = "") -> list[tuple[Path, str]]:
    """Return the folders in `folder` that are named after a split, with `before` before it, and which split it is."""
    names = {before + name: split for name, split in FOLDER_NAMES.items()}
    return [(path, names[path.name.lower()]) for path in sorted(folder.glob("*"))
            if path.name.lower() in names and path.is_dir()]


def _keras_nearby(folder: Path) -> str:
    """Return the folder above or below that has the folders of the PNG release, as advice; "" if there is none."""
    around = [folder.resolve().parent, *sorted(folder.glob("*"))]
    return next((f": --data {path}" for path in around if len(_split_folders(path, KERAS)) > 1), "")


def _one_for_each(folder: Path, found: list[tuple[Path, str]]) -> dict[str, Path]:
    """Return each split's folder. Raises: UserError if a split has two, which may hold the same images."""
    for split in SPLITS:
        own = [path.name for path, other in found if other == split]
        expect(len(own) < 2, f"--data {folder}", f"one folder for {split}", " and ".join(own),
               "Rename one of them, or put all its images into the other.")
    return {split: path for path, split in found}


def _say_what_is_beside(folder: Path, named: list[Path]) -> None:
    """Rank 0 prints a line about pictures that lie beside the folders of the splits and are not read."""
    others = [path for path in sorted(folder.glob("[!.]*")) if path not in named]
    beside = [picture for path in others for picture in (find_pictures(path)[0] if path.is_dir() else [path])
              if picture.suffix.lower() in SUFFIXES]
    if beside and launched_rank() == 0:
        print(f"images: {len(beside)} beside {', '.join(path.name for path in named)} are not read, such as "
              f"{beside[0].relative_to(folder).as_posix()}", flush=True)


def _refuse_hidden_splits(folder: Path, pictures: list[Path]) -> None:
    """Raise UserError if a folder that would be split at random is part of a split, or holds one further down."""
    here, data = folder.resolve(), f"--data {folder}"
    inside = {path.relative_to(folder).parts[:-1] for path in pictures}
    if any(part.lower().startswith(KERAS) for part in {here.name}.union(*inside)):
        raise UserError(f"{data}: expected a folder of pictures for --dataset folder, found {KERAS} folders. "
                        f"Choose --dataset keras_png_slices{_keras_nearby(folder)}.")
    parents = sorted({folder.joinpath(*parts[:place]) for parts in inside for place, part in enumerate(parts)
                      if part.lower() in FOLDER_NAMES})
    if here.name.lower() in FOLDER_NAMES:
        parents.insert(0, here.parent)
    found = sorted({split for parent in parents for _, split in _split_folders(parent)})
    advice = "Move them up: train/cats, not cats/train." if len(parents) > 1 else f"Give --data {(parents or [''])[0]}."
    expect(len(found) < 2, data, "train, validate and test at its top, or nowhere", f"{' and '.join(found)} in "
           f"{len(parents)} other folder(s) such as {(parents or [here])[0].name}", advice)


def _split_of(subject: str, settings: DataSettings) -> str:
    place = random_numbers.uniform(settings.seed, f"split of {subject}").item() * sum(settings.split)
    return "train" if place < settings.split[0] else "validate" if place < sum(settings.split[:2]) else "test"


def shared_subjects(files: Iterable[ImageFile]) -> dict[str, list[str]]:
    """Return the splits of each subject that is in more than one split."""
    first: dict[str, str] = {}
    shared: dict[str, list[str]] = {}
    for file in files:
        if first.setdefault(file.subject, file.split) != file.split:
            splits = shared.setdefault(file.subject, [first[file.subject]])
            splits += [file.split] if file.split not in splits else []
    return shared
