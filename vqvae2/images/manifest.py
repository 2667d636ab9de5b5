"""manifest.csv, which may be a stranger's -> the images that it names, and what it says of each.

Nothing in it is believed: a name that leaves the folder, a row that is there twice or a hash that is none is refused,
and no cell, line or header takes more than a bounded time and memory. A large archive has a million rows of 30 columns.
Their cells repeat each other, so each text of a column is kept once, and a row keeps its number in as few bytes as
numbers of that column need.
"""

import csv
import hashlib
import itertools
import os
import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from vqvae2.common import files, memory
from vqvae2.common.errors import UserError, expect
from vqvae2.common.names import SPLITS

MOST_COLUMNS = 1000
LONGEST_LINE = 2**20
"""Characters; the csv module itself refuses a cell of more than 131,072."""
ROWS_AT_A_TIME = 64
"""Few, so that their cells stay in the processor's cache."""
NO_PLAIN_PATH = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|\0")
"""Found in a path that is absolute or has a part that is empty, `.` or `..`, or a null character."""
SHA256 = re.compile(r"(?!0{64})[0-9a-fA-F]{64}|")
ZEROS = "0" * 64
AGAIN = "Run extract_slices.py again."


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One picture on disk, not read yet."""

    name: str
    """Path relative to the data folder, with forward slashes."""
    split: str
    subject: str
    sha256: str
    """The file's hash, 64 hex digits; empty where no manifest states it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Return the image's row of the manifest, all of it; empty where there is none."""
        return {}


class Table:
    """The cells of a manifest, column by column, but for the images' names."""

    def __init__(self, names: list[str]):
        self.names = list(dict.fromkeys(names))
        self.hashes = bytearray()
        """32 bytes for each row; zeros where the row has no hash."""
        self.columns = {name: (array("B"), defaultdict(itertools.count().__next__)) for name in self.names
                        if name not in ("image", "sha256")}
        """For each column each row's number of its text, and the texts in the order of their numbers."""

    def add(self, cells: Mapping[str, Sequence[str]]) -> None:
        """Add the cells of further rows to all columns."""
        self.hashes += bytes.fromhex("".join(cell or ZEROS for cell in cells["sha256"]))
        for name, (numbers, texts) in self.columns.items():
            found = list(map(texts.__getitem__, cells[name]))
            kind = "BHI"[(len(texts) > 2**8) + (len(texts) > 2**16)]
            if kind != numbers.typecode:
                numbers = array(kind, numbers)
                self.columns[name] = numbers, texts
            numbers.fromlist(found)

    def finish(self) -> None:
        """Forget how texts are found, once all rows are there."""
        self.columns = {name: (numbers, list(texts)) for name, (numbers, texts) in self.columns.items()}

    def cell(self, column: str, row: int) -> str:
        """Return one cell. Raises: KeyError if there is no such column."""
        numbers, texts = self.columns[column]
        return texts[numbers[row]]


class ManifestRow(NamedTuple):
    """An ImageFile that a manifest names. Its hash and facts stay in the manifest's table until they are asked for."""

    name: str
    split: str
    subject: str
    table: Table
    number: int

    @property
    def sha256(self) -> str:
        """Return the file's hash, 64 hex digits; empty where the manifest does not state it."""
        stated = self.table.hashes[32 * self.number:32 * self.number + 32].hex()
        return "" if stated == ZEROS else stated

    @property
    def facts(self) -> Mapping[str, str]:
        """Return the image's row of the manifest, all of it."""
        return _Facts(self)


class _Facts(Mapping):
    """A row of a manifest: column -> text."""

    __slots__ = ("row",)

    def __init__(self, row: ManifestRow):
        self.row = row

    def __getitem__(self, column: str) -> str:
        if column in ("image", "sha256"):
            return self.row.name if column == "image" else self.row.sha256
        return self.row.table.cell(column, self.row.number)

    def __iter__(self) -> Iterator[str]:
        return iter(self.row.table.names)

    def __len__(self) -> int:
        return len(self.row.table.names)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Return the images of a manifest, in its order. No image is looked for.

    Raises: UserError if the file is no manifest, an image's name leads out of the manifest's folder, also by links to
        folders, two rows are about one file, or a hash is none.
    """
    with memory.without_collection():
        rows = _read(path)
        _check_places(path, rows)
        _check_doubled(path, rows)
    return rows


def _read(path: Path) -> list[ManifestRow]:
    rows: list[ManifestRow] = []
    known: dict[str, str] = {}  # so that equal splits and subjects are one text in memory
    try:
        with TextIOWrapper(files.open_regular(path), "utf-8-sig", newline="") as file:  # spreadsheets set the mark
            lines = csv.reader(_lines(file))
            names = next(lines, [])
            _check_columns(path, names)
            table = Table(names)
            while chunk := list(itertools.islice(lines, ROWS_AT_A_TIME)):
                if set(map(len, chunk)) != {len(names)}:
                    chunk = [(row + [""] * len(names))[:len(names)] for row in chunk if row]
                cells = dict(zip(names, zip(*chunk))) or dict.fromkeys(names, ())
                _check_cells(path, cells)
                table.add(cells)
                split, subject = (map(known.setdefault, *2 * [cells[name]]) for name in ("split", "subject"))
                rows += map(ManifestRow, cells["image"], split, subject, itertools.repeat(table),
                            itertools.count(len(rows)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a readable manifest, found {error}. {AGAIN}") from None
    table.finish()
    return rows


def in_one_hash(rows: Sequence[ImageFile]) -> str:
    """Return one hash of all that is known of images before they are read."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.name, row.split, row.subject, row.sha256)).encode())
    for numbers, texts in (rows[0].table.columns.values() if rows and isinstance(rows[0], ManifestRow) else ()):
        digest.update(numbers.tobytes() + repr(texts).encode())
    return digest.hexdigest()


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line of {LONGEST_LINE:,} characters or more")
        yield line


def _check_columns(path: Path, names: list[str]) -> None:
    expect(len(names) <= MOST_COLUMNS, str(path), f"at most {MOST_COLUMNS:,} columns", f"{len(names):,}", AGAIN)
    missing = {"image", "split", "subject", "sha256"} - set(names)
    expect(not missing, str(path), f"the column(s) {', '.join(sorted(missing))}",
           files.shortened(", ".join(names)) or "none", AGAIN)


def _check_cells(path: Path, cells: Mapping[str, Sequence[str]]) -> None:
    unknown = {split or "nothing" for split in set(cells["split"]) - set(SPLITS)}
    expect(not unknown, str(path), "splits train, validate, test", files.shortened(", ".join(sorted(unknown))), AGAIN)
    wrong = next(filter(NO_PLAIN_PATH.search, cells["image"]), None)
    expect(wrong is None, str(path), "paths of images inside its folder", files.shortened(repr(wrong)), AGAIN)
    wrong = next(itertools.filterfalse(SHA256.fullmatch, cells["sha256"]), None)
    expect(wrong is None, str(path), "an image's SHA-256, 64 hexadecimal digits, or nothing in the column sha256",
           files.shortened(repr(wrong)), AGAIN)


def _check_places(path: Path, rows: Sequence[ImageFile]) -> None:
    """Raise UserError if a folder of images is a link that leaves the manifest's folder."""
    inside = os.path.realpath(path.parent)
    for folder in sorted({row.name.rpartition("/")[0] for row in rows}):
        found = os.path.realpath(path.parent / folder)
        expect(Path(found).is_relative_to(inside), str(path), "images inside its folder",
               f"{files.shortened(folder)}, a link to {found}", "Copy that folder to where the link is.")


def _check_doubled(path: Path, rows: Sequence[ImageFile]) -> None:
    """Raise UserError if two rows are about one file, which may be spelled in two ways."""
    spellings = np.fromiter((hash(_as_spelled(row.name)) for row in rows), np.int64, len(rows))
    spellings.sort()
    if (spellings[1:] != spellings[:-1]).all():
        return
    found: dict[str, list[str]] = {}
    for row in rows:
        others = found.setdefault(_as_spelled(row.name), [])
        for other in others:
            expect(row.name != other, str(path), "one row for each image", f"two for {row.name}", AGAIN)
            expect(not _is_one_file(path.parent / row.name, path.parent / other), str(path), "one row for each image",
                   f"two for one file, {other} and {row.name}", AGAIN)
        others.append(row.name)


def _as_spelled(name: str) -> str:
    """Return a name as file systems compare it that know neither case nor how a letter's accent is written."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize(
        "NFD", name).casefold())


def _is_one_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
