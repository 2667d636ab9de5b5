"""Scans with damaged headers, lying sizes, cut or packed to fill a memory, or no files at all, beside a good scan."""

import contextlib
import gzip
import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import files_in
from hostile.part import Part
from PIL import Image
from scan_files import block, save, save_analyze, save_series

from vqvae2.common import memory
from vqvae2.common.errors import UserError
from vqvae2.slices.extraction import extract, find_and_check
from vqvae2.slices.scan_slices import read_table
from vqvae2.slices.settings import ExtractSettings

NAMES = {"a.nii": nib.Nifti1Image, "a.nii.gz": nib.Nifti1Image, "b.nii": nib.Nifti2Image, "a.mgz": nib.MGHImage,
         "a.mgh": nib.MGHImage, "c.hdr": nib.Nifti1Pair, "c.img.gz": nib.Nifti1Pair, "d.hdr": None, "s.nii.gz": None,
         "dicom": None, "enhanced": None}
ROOM = 1 << 30
"""The memory that an extraction may take."""
NUMBERS = (0, 1, -1, 2, 255, 256, 32767, -32768, 2**31 - 1, -2**31, 2**63 - 1, float("nan"), float("inf"), 1e-30, 1e38)
MOST_BOMB = 1 << 26


def settings_of(draws: random.Random) -> ExtractSettings:
    """Return settings with which a tiny scan is drawn at once."""
    return ExtractSettings(size=16, per_scan=2, planes=("axial", "sagittal"), workers=1, subject_pattern=r"^([^/]+)/",
                           volume=draws.choice((None, 0, 1)), mask_suffix=("mask",))


def prepare(folder: Path) -> None:
    """Write the scan that stays good, and what is drawn of it alone."""
    save(folder / "scans" / "good" / "t1.nii.gz", block(seed=1))
    draw(folder / "scans", folder / "out", settings_of(random.Random(0)))


def draw(scans: Path, out: Path, settings: ExtractSettings) -> None:
    """Run an extraction in this process, without what it prints."""
    with memory.only(ROOM), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), \
            contextlib.redirect_stderr(nowhere):
        extract(find_and_check(scans, settings), scans, settings, out)


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Draw a good and a hostile scan; return what became of the hostile one."""
    draws = random.Random(number)
    settings = settings_of(draws)
    shutil.copytree(prepared / "scans", folder / "scans")
    bad = write_scan(folder / "scans" / "bad", draws)
    for _ in range(draws.choice((1, 1, 2))):
        target = draws.choice(sorted(path for path in bad.rglob("*") if not path.is_dir()) or [bad])
        with contextlib.suppress(OSError, zlib.error):  # the one before has left nothing that could be damaged
            draws.choice((damage_fields, damage_bytes, cut, lie, fill, replace))(target, draws)
    os.environ["VQVAE2_CACHE"] = str(folder / "cache")
    try:
        draw(folder / "scans", folder / "out", settings)
    except UserError as error:
        raise AssertionError(f"a scan ends the extraction: {error}") from error
    # The split of the good scan may change: of two subjects one is lent to a split that would be empty.
    before, after = ({(Path(name).name, content) for name, content in files_in(place).items() if name.endswith(".png")}
                     for place in (prepared / "out", folder / "out"))
    lost = sorted(name for name, _ in before - after)
    assert not lost, f"slices of the good scan changed or are gone: {lost}"
    rows = [row for row in read_table(folder / "out" / "manifest.csv") if row["subject"] == "bad"]
    rejected = [row for row in read_table(folder / "out" / "rejected.csv") if row["scan"].startswith("bad")]
    for row in rows:
        pixels = np.asarray(Image.open(folder / "out" / row["image"]))
        assert pixels.shape == (16, 16) and pixels.any(), row["image"]  # noqa: PT018
    for row in rejected:
        assert row["reason"].startswith("expected ") and row["reason"].endswith("."), row  # noqa: PT018
    page = (folder / "out" / "index.html").read_text(encoding="utf-8")
    is_there = any(path.is_file() and path.stat().st_size for path in bad.rglob("*"))
    assert rows or rejected or "bad" in page or not is_there, "a scan of which nothing is said"
    return "drawn" if rows else "rejected" if rejected else "left-out"


def write_scan(folder: Path, draws: random.Random) -> Path:
    """Write a good scan of a random format; return its folder."""
    name = draws.choice(list(NAMES))
    folder.mkdir()
    if name == "d.hdr":
        save_analyze(folder / "d.hdr", block(seed=2))
    elif name == "s.nii.gz":
        save_series(folder / name, 2, 3)
    elif NAMES[name] is None:
        try:
            from dicom_files import save_enhanced, save_slices
        except ImportError:  # DICOM is an extra
            save(folder / "a.nii", block(seed=2))
        else:
            if name == "dicom":
                save_slices(folder / "t1", block((8, 9, 7), 1, 2))
            else:
                save_enhanced(folder / "t1" / "a.dcm")
    else:
        save(folder / name, block(seed=2).astype(draws.choice((np.int16, np.float32, np.uint8))), kind=NAMES[name])
    if draws.random() < 0.2 and name in ("a.nii", "a.nii.gz"):
        save(folder / "a_mask.nii.gz", (block(seed=2) > 0).astype(np.uint8))
    return folder


def unpacked(path: Path) -> tuple[bytearray, bool]:
    """Return the bytes of a file, inflated, and whether they were packed; none of what is no file."""
    content = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 28 else b""
    with contextlib.suppress(OSError, EOFError):
        return bytearray(gzip.decompress(content)), True
    return bytearray(content), False


def rewrite(path: Path, content: bytes, packed: bool) -> None:
    """Put bytes into a file's place, packed as they were; what is no file stays."""
    if content and path.is_file():
        path.write_bytes(gzip.compress(content, 1) if packed else content)


def damage_fields(path: Path, draws: random.Random) -> None:
    """Put odd numbers at some places of the header, which may be fields."""
    content, packed = unpacked(path)
    for _ in range(draws.randint(1, 4)):
        form, value = draws.choice("<>") + draws.choice("bhiqfd"), draws.choice(NUMBERS)
        with contextlib.suppress(struct.error, OverflowError, ValueError):
            field = struct.pack(form, value if form[1] in "fd" else int(value))
            place = draws.randrange(0, max(1, min(len(content), 544)), 2)
            content[place:place + len(field)] = field
    rewrite(path, content, packed)


def damage_bytes(path: Path, draws: random.Random) -> None:
    """Change some bytes, of the header or anywhere, inside of the packed data or outside."""
    content, packed = unpacked(path)
    if packed and draws.random() < 0.5:
        content, packed = bytearray(path.read_bytes()), False
    for _ in range(draws.randint(1, 20) if content else 0):
        content[draws.randrange(draws.choice((len(content), min(len(content), 544))))] = draws.randrange(256)
    rewrite(path, content, packed)


def cut(path: Path, draws: random.Random) -> None:
    """Cut a file short."""
    if path.is_file():
        os.truncate(path, draws.randrange(path.stat().st_size + 1))


def lie(path: Path, draws: random.Random) -> None:
    """Let a header claim other lengths of its axes (NIfTI, Analyze, MGH)."""
    content, packed = unpacked(path)
    places = (4, 8, 12, 16) if path.name.endswith(("mgh", "mgz")) else (40, 42, 44, 46, 48)
    form = ">i" if path.name.endswith(("mgh", "mgz")) else "<h"
    for place in draws.sample(places, 2):
        field = struct.pack(form, draws.choice((0, 1, 3, 5, 100, 1000, 5000, 32767)))
        content[place:place + len(field)] = field
    rewrite(path, content, packed)


def fill(path: Path, draws: random.Random) -> None:
    """Put much more behind a file than belongs there: zeros, packed where the file is, or a hole."""
    content, packed = unpacked(path)
    if packed:
        rewrite(path, bytes(content) + bytes(draws.randrange(MOST_BOMB)), packed)
    elif path.is_file():
        os.truncate(path, draws.choice((1 << 26, 1 << 40)))


def replace(path: Path, draws: random.Random) -> None:
    """Put something else into a file's place."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        draws.choice((os.mkfifo, os.mkdir, lambda at: at.symlink_to(at), lambda at: at.symlink_to("/dev/zero"),
                      lambda at: at.symlink_to("gone"), lambda at: at.symlink_to(at.parent),
                      lambda at: at.write_bytes(draws.randbytes(draws.randrange(3000)))))(path)


PART = Part("scans", "damaged scans (NIfTI, Analyze, MGH, DICOM)", 500, try_one, prepare, in_suite=12)
