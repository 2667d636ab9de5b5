"""A data set whose manifest is damaged, hostile or outdated is refused in one line, or all that it says holds."""

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import picture_of, write_slices
from hostile.part import Part, at_most
from PIL import Image

from vqvae2.common.errors import UserError
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings

Random = np.random.Generator
Rows = list[list[str]]
CELLS = ("", "../x.png", "/etc/hostname", "train/../../x.png", "train//a.png", ".", "..", "\0", "a" * 140_000,
         "é患者\u202e", "0" * 64, "f" * 64, "=1+1", "-1", "nan", "1e999", "train", "test", "validate", "TRAIN",
         "\ud7ff", '"', ",", "\n", "\r", "C:\\x.png", "train\\a.png", "~", "$HOME",
         "%s{0}", "train/OAS1_0001_axial070.PNG")


def any_cell(random: Random, rows: Rows) -> None:
    """Put a hostile text into some cells, the header's too."""
    for _ in range(random.integers(1, 4)):
        row = rows[random.integers(len(rows))]
        row[random.integers(len(row))] = CELLS[random.integers(len(CELLS))]


def swapped(random: Random, rows: Rows) -> None:
    """Exchange the cells of a column between two rows."""
    one, other = (rows[i] for i in random.choice(np.arange(1, len(rows)), 2, replace=False))
    column = random.integers(len(one))
    one[column], other[column] = other[column], one[column]


def reshaped(random: Random, rows: Rows) -> None:
    """Give some rows other cells than the header has, or give the header other columns."""
    kind, column = random.integers(5), random.integers(len(rows[0]))
    if kind == 0:
        for row in rows[1:]:
            row[len(row) - random.integers(len(row)):] = []
    elif kind == 1:
        rows[random.integers(len(rows))] += ["more"] * int(10**random.integers(1, 6))
    elif kind == 2:
        for row in rows:
            del row[column]
    elif kind == 3:
        rows[0][column] = rows[0][random.integers(len(rows[0]))]
    else:
        random.shuffle(rows)


TABLES: tuple[Callable[[Random, Rows], object], ...] = (
    any_cell, any_cell, swapped, reshaped, lambda random, rows: rows.append(list(rows[random.integers(1, len(rows))])),
    lambda random, rows: rows.pop(random.integers(len(rows))), lambda random, rows: rows.clear())


def text_of(rows: Rows, random: Random) -> bytes:
    """The table as a file, damaged as bytes at times."""
    text = io.StringIO()
    csv.writer(text, delimiter=",;\t"[max(0, random.integers(-9, 3))], lineterminator=["\n", "\r\n", "\r"][max(
        0, random.integers(-9, 3))], escapechar="\\").writerows(rows)
    content = np.frombuffer(text.getvalue().encode(errors="surrogatepass"), np.uint8).copy()
    if len(content) and random.integers(3) == 0:
        places = random.integers(0, len(content), int(random.integers(1, 9)))
        content[places] = random.integers(0, 256, len(places))
        content = content[:random.integers(1, len(content) + 1)]
    return content.tobytes()


def picture_changed(random: Random, folder: Path, names: list[str]) -> None:
    """Replace pictures by others, and leave the manifest as it was."""
    for name in random.choice(names, int(random.integers(1, 4)), replace=False):
        Image.fromarray(picture_of(99, int(random.integers(9)))).save(folder / name)


def link_outward(random: Random, folder: Path, names: list[str]) -> None:
    """Replace a picture, or a folder of them, by a link to the same outside of the data set."""
    path = folder / random.choice(names)
    path = path if random.integers(2) else path.parent
    path.rename(folder.parent / "outside")
    path.symlink_to(folder.parent / "outside")


def spelled_twice(random: Random, folder: Path, names: list[str]) -> None:
    """Give one picture two rows, by two spellings of its name."""
    name = str(random.choice(names))
    other = name.upper().replace("TRAIN", "train").replace("TEST", "test").replace("VALIDATE", "validate")
    os.link(folder / name, folder / other)
    text = (folder / "manifest.csv").read_text().splitlines(keepends=True)
    row = next(line for line in text if line.startswith(name))
    (folder / "manifest.csv").write_text("".join([*text, row.replace(name, other)]))


REFUSED: tuple[Callable[[Random, Path, list[str]], None], ...] = (picture_changed, link_outward, spelled_twice)


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Damage a data set and load it."""
    random = np.random.default_rng(number)
    data = folder / "slices"
    shutil.copytree(prepared / "slices", data)
    with (data / "manifest.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    must_refuse = number % 4 == 0
    if must_refuse:
        REFUSED[random.integers(len(REFUSED))](random, data, [row[0] for row in rows[1:]])
    else:
        TABLES[random.integers(len(TABLES))](random, rows)
        (data / "manifest.csv").write_bytes(text_of(rows, random))
    with at_most(60):
        try:
            loaded = load_images(DataSettings(data=data))
            loaded.describe(loaded.describe())
        except UserError as error:
            said = str(error)
        else:
            said = ""
    assert len(said) < 3000
    if said:
        return "refused"
    assert not must_refuse
    assert len({file.name for file in loaded.files}) == len(loaded.files) <= len(rows)
    for file in loaded.files:
        path = Path(os.path.realpath(data / file.name))
        assert path.is_relative_to(os.path.realpath(data))
        assert file.sha256 in ("", hashlib.sha256(path.read_bytes()).hexdigest())
        assert file.facts["image"] == file.name
    return "read"


PART = Part("manifests", "damaged, hostile and outdated manifests", 1000, try_one,
            lambda folder: write_slices(folder / "slices"), in_suite=25)
