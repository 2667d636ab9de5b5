"""After bad files, kills, changes and work in parts a folder of slices looks as if one run had made it."""

import contextlib
import csv
import errno
import fcntl
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import on_screen
from PIL import Image
from scan_files import block, save, save_analyze, save_bids, save_series, slices_in

from vqvae2.commands import extract as extract_slices
from vqvae2.common import folder_lock
from vqvae2.common.errors import UserError, run_script
from vqvae2.scans import headers, volumes
from vqvae2.settings import parsing
from vqvae2.slices import extraction, scan_slices

ROOT = Path(__file__).parents[2]
SMALL = ["--size", "16", "--field-of-view", "16", "--per-scan", "2", "--workers", "1"]
LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked for in /proc")


def extract(scans: Path, out: Path, *more: object) -> list[dict]:
    """Run the script; return the rows of the manifest."""
    extract_slices.main(["--scans", str(scans), "--out", str(out), *SMALL, *map(str, more)])
    return table(out / "manifest.csv")


def table(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reasons(out: Path) -> dict[str, str]:
    return {row["scan"]: row["reason"] for row in table(out / "rejected.csv")}


def pictures(out: Path) -> dict[str, int]:
    """Every picture, with a number that is another once it was drawn anew."""
    return {path.relative_to(out).as_posix(): path.stat().st_ino for path in out.rglob("*.png")}


def check_it_is_true(out: Path) -> None:
    """No picture is torn, and what a manifest names is as it says."""
    for path in out.rglob("[!.]*.png"):
        with Image.open(path) as image:
            image.load()
    if (out / "manifest.csv").exists():
        for row in table(out / "manifest.csv"):
            assert hashlib.sha256((out / row["image"]).read_bytes()).hexdigest() == row["sha256"], row["image"]


def one_run(scans: Path, out: Path, *more: object) -> dict[str, str]:
    """Return the folder as one run makes it."""
    extract(scans, out, *more)
    check_it_is_true(out)
    return slices_in(out)


def make_unreadable(scans: Path) -> None:
    """Whoever reads a scan now finds no scan, but no time says so."""
    for path in scans.rglob("*.nii*"):
        before = path.stat()
        path.write_bytes(b"whoever reads this finds no scan")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def scans(apart) -> Path:
    return save_bids(apart / "scans", 5)


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch) -> None:
    """A command line that is given again is not parsed again, which takes a third of the extraction of three scans."""
    parse = parsing.parse
    known = functools.cache(lambda kind, manual, *words: parse(kind, manual, [*words]))
    monkeypatch.setattr(parsing, "parse", lambda kind, manual, words: known(kind, manual, *words))


# Bad files

def changed(at: int, *values: object, kind: str = "<f4", name: type = nib.Nifti1Image) -> Callable[[Path], None]:
    """A scan with other values in its header."""
    def make(path: Path) -> None:
        save(path, block(), kind=name)
        content = bytearray(path.read_bytes())
        new = np.array(values, kind).tobytes()
        content[at:at + len(new)] = new
        path.write_bytes(content)
    return make


def packed(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    """A gzip file with a change of what is on the disk."""
    def make(path: Path) -> None:
        content = bytearray(gzip.compress(save(path.with_suffix(".tmp.nii"), block()).read_bytes(), mtime=0))
        path.with_suffix(".tmp.nii").unlink()
        path.write_bytes(change(content) or content)
    return make


def flipped(at: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[at] ^= 255
    return change


def image_of(voxels: np.ndarray, kind: type = nib.Nifti1Image) -> Callable[[Path], None]:
    return lambda path: nib.save(kind(voxels, np.eye(4)), path)


def unreadable(path: Path) -> None:
    """Make a file that nobody may read; for root, who may read everything, a file whose reading fails."""
    if os.geteuid():
        save(path, block()).chmod(0)
    else:
        path.symlink_to("/proc/self/mem")


def giant(path: Path) -> None:
    changed(42, 32767, 32767, 32767, kind="<i2")(path)


def packed_giant(path: Path) -> None:
    giant(path.with_suffix(".tmp.nii"))
    path.write_bytes(gzip.compress(path.with_suffix(".tmp.nii").read_bytes()))
    path.with_suffix(".tmp.nii").unlink()


def half_a_pair(missing: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        save_analyze(path.with_suffix(".hdr"), block())
        path.with_suffix(missing).unlink()
    return make


def copy_of_the_first(path: Path) -> None:
    """The voxels of subject 01, packed in another way."""
    path.write_bytes(gzip.compress(save(path.with_suffix(".tmp.nii"), block(seed=1)).read_bytes(), 1))
    path.with_suffix(".tmp.nii").unlink()


def hardly_any_contrast() -> np.ndarray:
    """One voxel that differs from the others by the last of 53 bits."""
    voxels = np.full((12, 14, 10), 1e20)
    voxels[5, 5, 5] = np.nextafter(1e20, np.inf)
    return voxels


def beyond_numbers(path: Path) -> None:
    """Numbers that are infinite once they are scaled."""
    image = nib.Nifti1Image(np.where(block() > 0, block() * 1e298, 1.0), np.eye(4))
    nib.save(image, path)
    with path.open("r+b") as file:
        file.seek(112)
        file.write(np.array([1e38, 0], "<f4").tobytes())


TRUNCATED = "expected a whole gzip file, found one that is cut short or damaged. Copy or download it again."
BAD = {
    "truncated.nii.gz": (packed(lambda content: content[: len(content) // 2]), TRUNCATED),
    "cut by a byte.nii.gz": (packed(lambda content: content[:-1]), TRUNCATED),
    "flipped bit.nii.gz": (packed(flipped(700)), TRUNCATED),
    "wrong check sum.nii.gz": (packed(flipped(-6)), TRUNCATED),
    "wrong length.nii.gz": (packed(flipped(-1)), TRUNCATED),
    "junk behind.nii.gz": (packed(lambda content: content + b"junk, junk, junk"), TRUNCATED),
    "empty.nii": (lambda path: path.write_bytes(b""), "found an empty file. Copy or download it again."),
    "empty packed.nii.gz": (lambda path: path.write_bytes(b""), "found an empty file. Copy or download it again."),
    "nothing packed.nii.gz": (lambda path: path.write_bytes(gzip.compress(b"")), "found an empty file. Copy"),
    "text.nii": (lambda path: path.write_text("<html>Not found</html>\n"), "found text ('<html>Not found</html>')"),
    "pointer.nii.gz": (lambda path: path.write_text("/annex/objects/MD5E-s3--a.nii.gz\n"), "found text ('/annex/obj"),
    "greeting.mgz": (lambda path: path.write_text("hello, world\n"), "found text ('hello, world')"),
    "noise.nii": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(4000)), "found something else"),
    "header alone.nii": (lambda path: os.truncate(save(path, block()), 352), "found 352. It is cut short"),
    "half a header.nii": (lambda path: os.truncate(save(path, block()), 200), "expected a NIfTI, Analyze or MGH"),
    "half the voxels.nii": (lambda path: os.truncate(save(path, block()), 2000), "found 2000. It is cut short"),
    "zeros.nii.gz": (image_of(np.zeros((8, 8, 8), np.int16)), "found the same value, 0, in every voxel. Leave the"),
    "constant.nii": (image_of(np.full((8, 8, 8), 7, np.int16)), "found the same value, 7, in every voxel. Leave"),
    "no number.nii": (image_of(np.full((8, 8, 8), np.nan, np.float32)), "found no finite value in any voxel. Leave"),
    "mostly NaN.nii": (image_of(np.where(block() > 120, block(), np.where(block() > 0, np.nan, 0)).astype("f4")),
                       "expected at most 1% of the brain NaN or infinite"),
    "last bit.nii": (image_of(hardly_any_contrast()), "expected "),
    "beyond numbers.nii": (beyond_numbers, "expected "),
    "picture.nii": (image_of(block()[..., 5]), "expected one 3-D volume, found shape (12, 14). It looks like a pict"),
    "plane.nii": (image_of(block()[..., 5:6]), "found shape (12, 14, 1). It looks like a picture: give whole vol"),
    "thin.nii": (image_of(block()[:1]), "found shape (1, 14, 10). It looks like a picture: give whole volumes"),
    "series.nii.gz": (image_of(np.stack([block(seed=i) for i in range(3)], -1)),
                      "found shape (12, 14, 10, 3). It looks like a series or fMRI: leave it out, or give --volume 0"),
    "five axes.nii": (image_of(np.stack([block()[..., None]] * 2, -1)), "found shape (12, 14, 10, 1, 2). Convert it"),
    "no height.nii": (changed(80, 1, 1, 0), "expected voxel sizes above 0 mm, found 1 x 1 x 0. Repair its header"),
    "below zero.nii": (changed(80, 1, -2, 1), "expected voxel sizes above 0 mm, found 1 x -2 x 1. Repair its header"),
    "no size.nii": (changed(80, np.nan, 1, 1), "expected voxel sizes above 0 mm, found nan x 1 x 1. Repair its header"),
    "metres.nii": (changed(123, 1, kind="<u1"), "expected a volume 1 to 1000 mm long, found 14000 mm. Repair the"),
    "colours.nii": (image_of(np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
                    "expected one real number in a voxel, found type"),
    "complex.nii": (image_of(block().astype(np.complex64)), "found type complex64. Convert it to float32."),
    "unknown type.nii": (changed(70, 99, kind="<i2"), "expected a NIfTI, Analyze or MGH image"),
    "giant.nii": (giant, "expected 70362301923678 bytes for its 32767 x 32767 x 32767 voxels, found 3712. It is cut"),
    "packed giant.nii.gz": (packed_giant, "expected 70362301923678 bytes for its 32767 x 32767 x 32767 voxels, found"),
    "axis below zero.nii": (changed(42, -3, kind="<i2"), "expected a NIfTI, Analyze or MGH image"),
    "flat matrix.nii": (changed(280, 0, 0, 0, 0), "found a matrix that maps the volume to a plane or nowhere"),
    "no matrix.nii": (changed(252, 0, 0, kind="<i2"), "expected an orientation in its header, found none"),
    "analyze.hdr": (lambda path: save_analyze(path, block()), "give --assume-orientation, such as LAS"),
    "no voxels.hdr": (half_a_pair(".img"), "expected a pair .hdr and .img, found no file no voxels.img. Copy"),
    "no header.img": (half_a_pair(".hdr"), "expected a pair .hdr and .img, found no file no header.hdr. Copy"),
    "dangling.nii.gz": (lambda path: path.symlink_to("nowhere"), "found a link to a file that is not there. Copy or"),
    "circle.nii.gz": (lambda path: path.symlink_to(path.name), "found too many levels of symbolic links. See its"),
    "unreadable.nii": (unreadable, "expected a file that can be read, found "),
    "pipe.nii": (os.mkfifo, "expected a file, found a named pipe. Move it out of the folder of scans."),
    "Ünï çødé 脑.nii": (lambda path: path.write_text("no scan\n"), "found text ('no scan')"),
    "two\nlines.nii": (lambda path: path.write_text("no scan\n"), "found text ('no scan')"),
    "carriage\rreturn.nii": (lambda path: path.write_text("no scan\n"), "found text ('no scan')"),
    "zz copy.nii.gz": (copy_of_the_first, "expected a scan that is there once, found the same voxels in "
                                          "sub-01/anat/sub-01_T1w.nii.gz. That one is used; remove one of them."),
}


def test_bad_files_are_rows_with_plain_reasons_and_change_nothing_else(scans, apart, capsys):
    told = ("--subject-pattern", r"(?:sub-|bad/)([^/.]+)")
    good = one_run(scans, apart / "good", *told)
    (scans / "zz bad").mkdir()
    for name, (make, _) in BAD.items():
        make(scans / "zz bad" / name)
    save(scans / "sub-01/anat/sub-01_run-2_T1w.nii", block(seed=70))
    capsys.readouterr()
    both = one_run(scans, apart / "both", *told)
    closing = (f"used 5 scans (0 of them unchanged since the last run), rejected {len(BAD)}, skipped 1 further scans "
               "of the same sessions; images: ")
    assert closing in capsys.readouterr().out
    rejected = reasons(apart / "both")
    assert set(rejected) == {f"zz bad/{name}" for name in BAD}
    for name, (_, words) in BAD.items():
        reason = rejected[f"zz bad/{name}"]
        assert words in reason, f"{name}: {reason}"
        assert reason.startswith("expected ")
        assert reason.endswith(".")
    reports = {"rejected.csv", "extraction.json", "index.html"}
    assert {name: both[name] for name in both.keys() - reports} == {name: good[name] for name in good.keys() - reports}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_file_alone_ends_a_strict_run_in_one_line(name, scans, apart, refusal):
    (scans / "zz bad").mkdir()
    make, words = BAD[name]
    make(scans / "zz bad" / name)
    line = refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL, "--strict")
    assert line.startswith(f"zz bad/{' '.join(name.split())}: expected ")
    assert words in line
    assert line.endswith(" Without --strict it is skipped.")
    assert not (apart / "out/manifest.csv").exists()


def test_strict_leaves_the_manifest_where_a_new_scan_is_bad(scans, apart, refusal):
    good = one_run(scans, apart / "out")
    (scans / "sub-09_T1w.nii").write_text("no scan")
    assert refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL, "--strict").startswith(
        "sub-09_T1w.nii: expected a NIfTI, Analyze or MGH image, found text ('no scan'). Copy or download it again.")
    check_it_is_true(apart / "out")
    assert slices_in(apart / "out") == good


def test_a_series_gives_the_volume_that_is_asked_for_and_another_one_touches_nothing_else(scans, apart):
    for number in (1, 2):
        save_series(scans / f"volker {number}.nii", number + 20, number + 30)
    assert len(extract(scans, apart / "out")) == 10
    assert [reason[:58] for reason in reasons(apart / "out").values()] == [
        "expected one 3-D volume, found shape (12, 14, 10, 2). It l"] * 2
    before = pictures(apart / "out")
    for volume in (0, 1):
        rows = extract(scans, apart / "out", "--volume", volume)
        assert {(row["volume"], row["scan"][:6]) for row in rows} == {("", "sub-01"), ("", "sub-02"), ("", "sub-03"), (
            "", "sub-04"), ("", "sub-05"), (str(volume), "volker")}
        for number in (1, 2):
            save(apart / f"alone/volker {number}.nii", block(seed=number + (20, 30)[volume]))
        alone = {(row["scan"], row["sha256"]) for row in extract(apart / "alone", apart / "alone-out")}
        assert {(row["scan"], row["sha256"]) for row in rows if row["volume"]} == alone
        after = pictures(apart / "out")
        drawn = {name for name in after if after[name] != before.get(name)}
        assert {Path(name).name.partition("_")[0] for name in drawn} == {"volker-1", "volker-2"}
        before = after
    assert extract(scans, apart / "out", "--volume", 2)[-1]["scan"].startswith("sub-05")
    assert reasons(apart / "out")["volker 1.nii"] == (
        "expected a volume 2 (--volume), found 2 volumes, 0 to 1. Give a smaller number.")


ODD_NAMES = ["a b.nii", "a-b.nii", "A-B.nii", "two\nlines.nii", "carriage\rreturn.nii", "tab\tulator.nii", "x,y.nii",
             'q"uote.nii', "Ünï çødé.nii", "脑 " * 40 + ".nii", "x" * 195 + "1.nii", "x" * 195 + "2.nii", "\x85.nii",
             "\u2028.nii", "-o.nii", "back\\slash.nii", "$HOME;`ls`*?.nii", "'.nii", "CON.nii", "a.b.c.nii", "🧠.nii",
             "sub-01/anat/sub-01_T1w.nii", "x/sub-01/anat/sub-01_T1w.nii", "0_axial004.nii"]
BY_FILE = ("--archive", "plain:file")


def test_scans_of_any_name_are_told_apart_and_found_again(apart, capsys):
    for seed, name in enumerate(ODD_NAMES):
        save(apart / "scans" / name, block(seed=seed))
    rows = extract(apart / "scans", apart / "out", *BY_FILE)
    assert sorted({row["scan"] for row in rows}) == sorted(ODD_NAMES)
    assert len({row["image"].casefold() for row in rows}) == len({row["sha256"] for row in rows}) == 2 * len(ODD_NAMES)
    assert all(len(os.fsencode(row["image"])) < 200 for row in rows)
    check_it_is_true(apart / "out")
    before = slices_in(apart / "out"), pictures(apart / "out")
    capsys.readouterr()
    extract(apart / "scans", apart / "out", *BY_FILE)
    assert f"({len(ODD_NAMES)} of them unchanged since" in capsys.readouterr().out
    assert (slices_in(apart / "out"), pictures(apart / "out")) == before
    extract_slices.main(["--scans", str(apart / "scans"), "--list", *BY_FILE])
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == len(ODD_NAMES) + 3
    assert [line.count("\t") for line in lines[:-2]] == [3] * (len(ODD_NAMES) + 1)


# The same scan twice

@pytest.mark.parametrize(("first", "second"), [
    ("sub-01_T1w.nii", "sub-02_T1w.nii"), ("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"), ("a/x.nii", "b/x.nii.gz"),
    ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"), ("a.nii", "b.hdr")])
def test_of_equal_voxels_one_scan_is_used_and_the_other_listed(first, second, apart):
    save(apart / "scans" / first, block(seed=1))
    save(apart / "scans" / second, block(seed=1), kind=nib.Nifti1Pair if second.endswith(".hdr") else nib.Nifti1Image)
    save(apart / "scans/other.nii", block(seed=2))
    rows = extract(apart / "scans", apart / "out")
    assert {row["scan"] for row in rows} == {first, "other.nii"}
    assert reasons(apart / "out") == {second: "expected a scan that is there once, found the same voxels in "
                                              f"{first}. That one is used; remove one of them."}
    assert set(pictures(apart / "out")) == {row["image"] for row in rows}
    again = slices_in(apart / "out")
    assert one_run(apart / "scans", apart / "out") == again
    (apart / "scans" / first).unlink()
    assert {row["scan"] for row in extract(apart / "scans", apart / "out")} == {second, "other.nii"}
    assert reasons(apart / "out") == {}


def test_of_three_equal_scans_one_is_used_and_a_new_one_before_it_takes_its_place(apart):
    for name in "bcd":
        save(apart / f"scans/{name}.nii", block())
    assert {row["scan"] for row in extract(apart / "scans", apart / "out")} == {"b.nii"}
    save(apart / "scans/a.nii", block())
    assert one_run(apart / "scans", apart / "out") == one_run(apart / "scans", apart / "fresh")
    assert list(reasons(apart / "out")) == ["b.nii", "c.nii", "d.nii"]


def test_equal_check_sums_of_other_voxels_make_no_duplicate(scans, apart, monkeypatch):
    monkeypatch.setattr(volumes, "crc32", lambda *_: 0)
    rows = extract(scans, apart / "out")
    assert {row["voxels"] for row in rows} == {"i2-12x14x10-00000000"}
    assert len({row["scan"] for row in rows}) == 5
    assert reasons(apart / "out") == {}


def test_a_scan_that_cannot_be_compared_any_more_ends_no_run(scans, apart, monkeypatch):
    shutil.copy(scans / "sub-01/anat/sub-01_T1w.nii.gz", scans / "sub-09_T1w.nii.gz")

    def damaged_meanwhile(first, other, number, compare=extraction.same_voxels):
        other.write_text("no scan")
        return compare(first, other, number)
    monkeypatch.setattr(extraction, "same_voxels", damaged_meanwhile)
    assert len(extract(scans, apart / "out")) == 10
    assert reasons(apart / "out")["sub-09_T1w.nii.gz"].startswith(
        "expected a scan that is there once, found the same check sum in sub-01/anat/sub-01_T1w.nii.gz, and cannot "
        "compare them: sub-09_T1w.nii.gz: expected a NIfTI, Analyze or MGH image, found text ('no scan').")


# Kills: at each step in this process, and of real processes at random moments

class Killed(BaseException):
    """Ends a run where it is; nothing that handles errors handles it."""


@contextlib.contextmanager
def killed_at_step(number: int) -> Iterator[None]:
    """Kill what runs before its n-th change of a file, counted from 0; a file that is being written stays half."""
    steps = itertools.count()

    def killing(change, leave_half=None):
        def killed_or_changed(*arguments, **named):
            if next(steps) == number:
                if leave_half:
                    leave_half(*arguments)
                raise Killed(f"before change {number}")
            return change(*arguments, **named)
        return killed_or_changed

    def half_a_file(here, _):
        if ".tmp" in here.name:
            os.truncate(here, here.stat().st_size // 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killing(os.replace, half_a_file))
        for name in ("unlink", "fsync"):
            patch.setattr(os, name, killing(getattr(os, name)))
        yield


def runs_killed_at_each_step(start: Path, out: Path, run: Callable[[], object]) -> Iterator[int]:
    """For each step: make `out` a copy of `start`, run, kill before it, and let the caller judge what is left."""
    for number in itertools.count():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(start, out)
        with killed_at_step(number):
            try:
                run()
            except Killed as killed:
                traceback.clear_frames(killed.__traceback__)  # as a process that ends it lets go of its locks
            else:
                return
        check_it_is_true(out)
        yield number


def leave_scans_alone(scans: Path) -> None:
    """Leave the scans as they are."""


def remove_one(scans: Path) -> None:
    shutil.rmtree(scans / "sub-02")


def replace_one(scans: Path) -> None:
    save(scans / "sub-02/anat/sub-02_T1w.nii.gz", block(seed=50))


def pack_anew(scans: Path) -> None:
    for path in scans.rglob("*.nii.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))


def add_a_copy_before(scans: Path) -> None:
    save(scans / "sub-00/anat/sub-00_T1w.nii", block(seed=3))


def add_one_of_the_same_name(scans: Path) -> None:
    save(scans / "more/sub-01/anat/sub-01_T1w.nii", block(seed=60))


def spoil_one(scans: Path) -> None:
    (scans / "sub-03/anat/sub-03_T1w.nii.gz").write_text("no scan any more")


@pytest.mark.parametrize(("before", "change", "killed", "then"), [
    (None, leave_scans_alone, [], None),
    (None, leave_scans_alone, ["--size", 24], []),
    ([], leave_scans_alone, ["--size", 24], None),
    ([], leave_scans_alone, ["--size", 24], []),
    ([], leave_scans_alone, ["--planes", "axial", "coronal"], None),
    (["--planes", "axial", "coronal"], leave_scans_alone, [], None),
    ([], leave_scans_alone, ["--seed", 3, "--split", 40, 30, 30], None),
    ([], leave_scans_alone, ["--seed", 3, "--split", 40, 30, 30], []),
    ([], remove_one, ["--prune"], None),
    ([], remove_one, ["--size", 24, "--prune"], None),
    ([], replace_one, [], None),
    ([], pack_anew, [], None),
    ([], add_a_copy_before, [], None),
    ([], add_one_of_the_same_name, [], None),
    ([], spoil_one, [], None),
], ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else getattr(value, "__name__", None))
def test_a_run_that_is_killed_at_any_step_goes_on_to_what_one_run_makes(before, change, killed, then, apart):
    scans = save_bids(apart / "scans", 3)
    (apart / "start").mkdir()
    if before is not None:
        extract(scans, apart / "start", *before)
    change(scans)
    then = killed if then is None else then
    fresh = one_run(scans, apart / "fresh", *then)
    steps = -1
    for steps in runs_killed_at_each_step(apart / "start", apart / "out",
                                          lambda: extract(scans, apart / "out", *killed)):
        assert one_run(scans, apart / "out", *then) == fresh, steps
    assert steps > 10


def test_slices_that_a_killed_prune_left_need_prune_again(apart, refusal):
    scans = save_bids(apart / "scans", 3)
    before = one_run(scans, apart / "start")
    remove_one(scans)
    seen = set()
    for step in runs_killed_at_each_step(apart / "start", apart / "out",
                                         lambda: extract(scans, apart / "out", "--prune")):
        if len(list((apart / "out").rglob("02_*.png"))) == 2:
            kept = one_run(scans, apart / "out")
            assert {name: kept.get(name) for name in before if name.endswith(".png")}.items() <= before.items(), step
            seen.add("kept")
        else:
            # Killed behind the last write it is done, and nothing of the scan is known any more.
            with contextlib.suppress(UserError):
                extract(scans, apart / "out")
            check_it_is_true(apart / "out")
            assert one_run(scans, apart / "out", "--prune") == one_run(scans, apart / "fresh"), step
            seen.add("pruned")
    assert seen == {"kept", "pruned"}


def started(scans: Path, out: Path, *more: object, name: str = "") -> subprocess.Popen:
    """The script at work in a process of its own, and `name` in the environment of all its workers."""
    command = [sys.executable, ROOT / "extract_slices.py", "--scans", scans, "--out", out, *SMALL, *more]
    environment = {**os.environ, "NAME_OF_THIS_TEST": name, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def kill_at_work(process: subprocess.Popen, out: Path, scans: int, seconds: float) -> bool:
    """Kill a process once it has finished so many scans, and a moment later; return whether it was still at work."""
    def noted():
        return {path.stat().st_ino for path in (out / ".scans").glob("[!.]*.json")}
    before = noted()
    while process.poll() is None and len(noted() - before) < scans:
        time.sleep(0.0005)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def alive(name: str) -> list[int]:
    """Processes with this name in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"NAME_OF_THIS_TEST={name}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


MORE_WORK = ["--planes", "axial", "coronal", "sagittal", "--per-scan", 3, "--size", 48]


@LINUX
@pytest.mark.parametrize(("workers", "kills"), [(1, 4), (2, 4)])
def test_killed_processes_leave_nothing_torn_and_no_worker_and_go_on_to_what_one_run_makes(workers, kills, apart):
    scans = save_bids(apart / "scans", 20)
    fresh = one_run(scans, apart / "fresh", *MORE_WORK)
    rng, out, killed = np.random.default_rng(workers), apart / "out", 0
    for number in range(kills):
        name = f"{apart.name}-{number}"
        process = started(scans, out, *MORE_WORK, "--workers", workers, name=name)
        was_at_work = kill_at_work(process, out, rng.integers(0, 19), rng.uniform(0, 0.005))
        killed += was_at_work
        check_it_is_true(out)
        if not was_at_work:  # on a busy machine some end before they are killed: the next begins anew
            shutil.rmtree(out)
        until = time.monotonic() + 20
        while alive(name) and time.monotonic() < until:
            time.sleep(0.01)
        assert not alive(name)
    assert killed >= 2
    assert one_run(scans, out, *MORE_WORK) == fresh


@LINUX
def test_killed_changes_of_a_finished_folder_go_on_to_what_one_run_makes(apart):
    scans, out, killed = save_bids(apart / "scans", 20), apart / "out", 0
    extract(scans, out, *MORE_WORK)
    rng = np.random.default_rng(0)
    for more in (["--size", 32], ["--seed", 5, "--split", 40, 30, 30], ["--planes", "coronal"], ["--extent", 0.2, 0.7]):
        process = started(scans, out, *MORE_WORK, *more)
        killed += kill_at_work(process, out, rng.integers(1, 19), rng.uniform(0, 0.003))
        check_it_is_true(out)
    assert killed
    assert one_run(scans, out, *MORE_WORK, *more) == one_run(scans, apart / "fresh", *MORE_WORK, *more)


@LINUX
def test_a_worker_that_is_ended_from_outside_is_one_line_and_running_again_goes_on(apart):
    scans, out = save_bids(apart / "scans", 30), apart / "out"
    fresh = one_run(scans, apart / "fresh", *MORE_WORK)
    process = started(scans, out, *MORE_WORK, "--workers", 2, name=apart.name)
    while not list(out.rglob("*.png")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)  # so that its workers come to no end meanwhile
    os.kill(max(set(alive(apart.name)) - {process.pid}), signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    line = process.communicate()[1].splitlines()[-1]
    assert line.startswith("--workers 2: expected every worker to finish, found one that was ended from outside")
    assert line.endswith("Give fewer workers; running again goes on from here.")
    assert process.returncode == 2
    check_it_is_true(out)
    assert one_run(scans, out, *MORE_WORK) == fresh


def test_sigterm_while_a_header_is_read_is_no_damage_of_that_scan(scans, apart, monkeypatch, capsys):
    parse, files = headers._parse_analyze, itertools.count()

    def parse_and_stop(kind, beginning):
        if next(files) == 4:  # two looks at each header
            os.kill(os.getpid(), signal.SIGTERM)
        return parse(kind, beginning)
    monkeypatch.setattr(headers, "_parse_analyze", parse_and_stop)
    with pytest.raises(SystemExit, match="75"):
        run_script(lambda: extract_slices.main(["--scans", str(scans), "--out", str(apart / "out"), *SMALL]))
    assert on_screen(capsys.readouterr().err) == ["Stopped by SIGTERM. Run the same command again to go on."]
    assert len(pictures(apart / "out")) == 4
    assert one_run(scans, apart / "out") == one_run(scans, apart / "fresh")


def test_a_run_after_a_kill_reads_no_scan_that_was_finished(apart, capsys):
    scans, out = save_bids(apart / "scans", 5), apart / "out"
    fresh = one_run(scans, apart / "fresh")
    # The steps of each scan: the manifest is put aside; two pictures and a sidecar are renamed.
    with killed_at_step(3 * 4 + 2), pytest.raises(Killed, match=r"^before change 14$"):
        extract(scans, out)
    (out.parent / "half").mkdir()
    for number in (1, 2, 3):
        shutil.move(scans / f"sub-0{number}", out.parent / "half")
    make_unreadable(out.parent / "half")
    for number in (1, 2, 3):
        shutil.move(out.parent / f"half/sub-0{number}", scans)
    capsys.readouterr()
    assert one_run(scans, out) == fresh
    assert "used 5 scans (3 of them unchanged since the last run), rejected 0" in capsys.readouterr().out


def test_scans_of_another_time_and_the_same_bytes_are_compared_and_not_drawn(scans, apart, capsys):
    before = one_run(scans, apart / "out"), pictures(apart / "out")
    for path in scans.rglob("*.nii.gz"):
        os.utime(path)
    for _ in range(2):
        capsys.readouterr()
        assert (one_run(scans, apart / "out"), pictures(apart / "out")) == before
        assert "used 5 scans (5 of them unchanged" in capsys.readouterr().out
        make_unreadable(scans)  # with the new time they need not be compared again


def test_a_pair_is_drawn_anew_when_either_of_its_files_changes(apart):
    for seed in (1, 2):
        save(apart / f"scans/{seed}.hdr", block(seed=seed), kind=nib.Nifti1Pair)
    first = extract(apart / "scans", apart / "out")
    save(apart / "other.hdr", block(seed=3), kind=nib.Nifti1Pair)
    shutil.copyfile(apart / "other.img", apart / "scans/2.img")
    rows = extract(apart / "scans", apart / "out")
    assert [before["sha256"] == after["sha256"] for before, after in zip(first, rows)] == [True, True, False, False]
    assert slices_in(apart / "out") == one_run(apart / "scans", apart / "fresh")


class Full:
    """A file whose disk is full when a certain text comes."""

    def __init__(self, file, text):
        self._file, self._text = file, text

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        if self._text in bytes(content):
            self._file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(content)


@pytest.mark.parametrize("text", [
    b"IHDR", b"image,split", b'"schema"', b"scan,reason", b'"scan": "sub-03'])
def test_a_full_disk_is_one_line_and_running_again_goes_on(text, scans, apart, refusal, monkeypatch):
    fresh = one_run(scans, apart / "fresh")

    def opened(path, mode="r", *more, opening=io.open, **named):
        file = opening(path, mode, *more, **named)
        return Full(file, text) if ".tmp" in str(path) and mode == "wb" else file
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened)
        line = refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL)
    assert line.startswith("--out out")
    assert line.endswith(": expected a folder that can be written, found no space left on device. Make room, or name "
                         "another folder; running again goes on from here.")
    check_it_is_true(apart / "out")
    assert not list((apart / "out").rglob("*.tmp*"))
    assert one_run(scans, apart / "out") == fresh


@pytest.mark.parametrize("change", ["replace", "unlink", "fsync"])
def test_a_folder_that_cannot_be_changed_is_one_line(change, scans, apart, refusal, monkeypatch):
    extract(scans, apart / "out")
    before = slices_in(apart / "out")

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with monkeypatch.context() as patch:
        patch.setattr(os, change, refused)
        line = refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL, "--split", 30, 30, 40)
    assert line == ("--out out: expected a folder that can be written, found read-only file system. Make room, or name "
                    "another folder; running again goes on from here.")
    check_it_is_true(apart / "out")
    assert one_run(scans, apart / "out") == before


# Changes of settings

@pytest.mark.parametrize(("change", "said"), [
    (["--size", 24], "--size 24 (was 16)"), (["--bits", 16], "--bits 16 (was 8)"),
    (["--extent", 0.1, 0.9], "--extent 0.1 0.9 (was 0.3 0.8)"), (["--field-of-view", 20], "--field-of-view 20"),
    (["--per-scan", 3], "--per-scan 3 (was 2)"), (["--planes", "axial", "sagittal"], "--planes axial sagittal (was a")])
def test_a_change_of_what_is_drawn_is_said_and_draws_every_scan(change, said, scans, apart, capsys):
    extract(scans, apart / "out")
    before = pictures(apart / "out")
    capsys.readouterr()
    extract(scans, apart / "out", *change)
    printed = capsys.readouterr().out
    assert printed.startswith(f"changed since the last run: {said}")
    assert "\nused 5 scans (0 of them unchanged" in printed
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh", *change)
    after = pictures(apart / "out")
    assert not [name for name in after if after[name] == before.get(name)]


@pytest.mark.parametrize(("change", "said"), [
    (["--planes", "axial"], "--planes axial (was axial coronal)"), (["--seed", 9], "--seed 9 (was 0)"),
    (["--planes", "coronal", "axial"], "--planes coronal axial (was axial coronal)"),
    (["--split", 20, 40, 40], "--split 20 40 40 (was 64 16 20)"), (["--volume", 0], "--volume 0 (was not gi"),
    (["--assume-orientation", "las"], "--assume-orientation LAS (was not given)")])
def test_a_change_that_touches_no_pixel_is_said_and_reads_no_scan(change, said, scans, apart, capsys):
    fresh = one_run(scans, apart / "fresh", "--planes", "axial", "coronal", *change)
    extract(scans, apart / "out", "--planes", "axial", "coronal")
    before = set(pictures(apart / "out").values())
    make_unreadable(scans)
    capsys.readouterr()
    assert one_run(scans, apart / "out", "--planes", "axial", "coronal", *change) == fresh
    printed = capsys.readouterr().out
    assert printed.startswith(f"changed since the last run: {said}")
    assert "used 5 scans (5 of them unchanged" in printed
    assert set(pictures(apart / "out").values()) <= before


def test_a_setting_that_is_given_as_it_was_changes_nothing(apart, capsys):
    scans = save_bids(apart / "scans", 2, (24, 28, 20))
    once = one_run(scans, apart / "out", "--field-of-view", 224)  # which is the default, like those below
    for more in (["--split", 64, 16, 20, "--seed", 0, "--extent", 0.3, 0.8], ["--planes", "axial", "--bits", 8]):
        assert one_run(scans, apart / "out", "--field-of-view", "224.0", *more, "--workers", 2) == once
    extract_slices.main(["--scans", str(scans), "--out", str(apart / "out"), "--size", "16", "--per-scan", "2"])
    assert slices_in(apart / "out") == once
    printed = capsys.readouterr().out
    assert "changed since the last run:" not in printed
    assert printed.count("used 2 scans (2 of them unchanged") == 3


def test_another_assumed_orientation_draws_only_the_scans_that_it_is_about(scans, apart):
    for seed in (70, 71):
        save_analyze(scans / f"analyze {seed}.hdr", block(seed=seed), storage="LAS")
    before: dict[str, int] = {}
    for letters in ("LAS", "RPS"):
        rows = extract(scans, apart / "out", "--assume-orientation", letters)
        assert {row["orientation"] for row in rows if row["orientation_from"] == "assumed"} == {letters}
        after = pictures(apart / "out")
        drawn = {Path(name).name[:7] for name in after if after[name] != before.get(name)}
        assert drawn == ({"analyze"} if before else {"analyze", *(f"0{n}_axia" for n in range(1, 6))})
        before = after
    extract(scans, apart / "out")
    assert {name: "--assume-orientation" in reason for name, reason in reasons(apart / "out").items()} == {
        "analyze 70.hdr": True, "analyze 71.hdr": True}
    assert {Path(name).name for name in before if "analyze" not in name} == {
        Path(name).name for name in pictures(apart / "out")}


def test_another_pattern_that_exchanges_names_exchanges_no_pictures(apart):
    for seed, name in enumerate(("A-B", "B-A", "C-D")):
        save(apart / f"scans/{name}.nii", block(seed=seed))
    everyone = ["--split", 100, 0, 0, "--subject-pattern"]
    extract(apart / "scans", apart / "out", *everyone, r"^(\w)")
    save(apart / "scans/C-D.nii", block(seed=3))
    assert one_run(apart / "scans", apart / "out", *everyone, r"-(\w)") == one_run(
        apart / "scans", apart / "fresh", *everyone, r"-(\w)")
    assert {(row["subject"], row["scan"]) for row in table(apart / "out/manifest.csv")} == {
        ("B", "A-B.nii"), ("A", "B-A.nii"), ("D", "C-D.nii")}


def test_changed_tables_about_people_change_the_manifest_and_no_picture(scans, apart, refusal):
    rows = extract(scans, apart / "out")
    assert {row["age"] for row in rows} == {"21", "22", "23", "24", "25"}
    before = pictures(apart / "out")
    make_unreadable(scans)
    (scans / "participants.tsv").write_text("participant_id\tage\tsex\tcenter\nsub-02\t77\tF\tOslo\n")
    rows = extract(scans, apart / "out")
    assert {(row["subject"], row["age"], row["sex"], row["center"]) for row in rows} == {
        ("01", "", "", ""), ("02", "77", "F", "Oslo"), ("03", "", "", ""), ("04", "", "", ""), ("05", "", "", "")}
    (apart / "people.csv").write_text("who;age;visit\n02;33;a\n04;44;b\n")
    rows = extract(scans, apart / "out", "--covariates", "people.csv", "--subject-column", "who")
    assert {(row["subject"], row["age"], row["visit"]) for row in rows} == {
        ("01", "", ""), ("02", "33", "a"), ("03", "", ""), ("04", "44", "b"), ("05", "", "")}
    assert pictures(apart / "out") == before
    kept = slices_in(apart / "out")
    assert refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL, "--covariates", "nowhere.csv") == (
        "--covariates nowhere.csv: expected a table, found no file. Correct the path.")
    assert "expected a column name, found who, age, visit. Give --subject-column one of these." in refusal(
        extract_slices.main, "--scans", scans, "--out", "out", *SMALL, "--covariates", "people.csv", "--subject-column",
        "name")
    assert slices_in(apart / "out") == kept


def test_an_orientation_from_the_layout_is_said_once_and_is_in_the_manifest(apart, capsys):
    for number in (1, 2, 3):
        save_analyze(apart / f"scans/OAS1_000{number}_MR1/RAW/OAS1_000{number}_MR1_mpr-1_anon.hdr", block(seed=number),
                     storage="ASL")
    rows = extract(apart / "scans", apart / "out")
    assert capsys.readouterr().out.count(
        "orientation: 3 scans without one in the header, taken for ASL by the archive's layout\n") == 1
    assert {(row["orientation"], row["orientation_from"]) for row in rows} == {("ASL", "layout")}


def test_list_writes_nothing_and_needs_no_place_to_write(scans, apart, capsys):
    (scans / "sub-06_T1w.nii").write_text("no scan, but --list opens none")
    os.mkfifo(scans / "sub-07_T1w.nii")
    before = sorted(path for path in apart.rglob("*"))
    extract_slices.main(["--scans", str(scans), "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "subject\tsession\trun\tscan"
    assert lines[1] == "01\t\t\tsub-01/anat/sub-01_T1w.nii.gz"
    assert lines[7] == ("\t\t\tsub-07_T1w.nii\trejected: expected a file, found a named pipe. Move it out of the "
                        "folder of scans.")
    assert lines[8].startswith("scans that would be read: 6 of 6 subjects; rejected: 1; skipped: 0 further scans of")
    assert sorted(path for path in apart.rglob("*")) == before


# Scans that are gone

def test_slices_of_a_scan_that_is_gone_stay_until_prune(scans, apart, capsys):
    rows = extract(scans, apart / "out")
    before = slices_in(apart / "out")
    shutil.rmtree(scans / "sub-02")
    (scans / "participants.tsv").unlink()
    capsys.readouterr()
    after = extract(scans, apart / "out")
    assert capsys.readouterr().out.startswith(
        "gone: 1 scan no longer there, whose slices were kept (--prune removes them)\nused 4 scans (4 of them")
    gone = [row for row in rows if row["subject"] == "02"]
    assert [row for row in after if row["subject"] == "02"] == gone
    assert (gone[0]["age"], after[0]["age"]) == ("22", "")
    now = slices_in(apart / "out")
    assert {name: now[name] for name in before if name.endswith(".png")}.items() <= before.items()
    assert json.loads((apart / "out/extraction.json").read_text())["counts"]["gone"] == 1
    again = slices_in(apart / "out")
    assert one_run(scans, apart / "out") == again
    moved = extract(scans, apart / "out", "--split", 100, 0, 0)
    assert {row["split"] for row in moved} == {"train"}
    check_it_is_true(apart / "out")
    assert one_run(scans, apart / "out", "--prune") == one_run(scans, apart / "fresh")


def test_planes_of_a_scan_that_is_gone_are_left_out_but_cannot_be_added(scans, apart, refusal):
    extract(scans, apart / "out", "--planes", "axial", "coronal")
    shutil.rmtree(scans / "sub-02")
    rows = extract(scans, apart / "out", "--planes", "coronal")
    assert [row["plane"] for row in rows if row["subject"] == "02"] == ["coronal"] * 2
    before = slices_in(apart / "out")
    for change in (["--planes", "axial", "coronal"], ["--planes", "coronal", "--size", 24]):
        line = refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL, *change)
        assert line == ("--out out: expected scans for all slices that must be drawn anew, after other settings or "
                        "damage, found none for 1 of them, such as sub-02/anat/sub-02_T1w.nii.gz. Give --prune to "
                        "remove their slices, or name another folder.")
    assert slices_in(apart / "out") == before
    assert one_run(scans, apart / "out", *change, "--prune") == one_run(scans, apart / "fresh", *change)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")])
def test_a_damaged_slice_of_a_scan_that_is_gone_is_in_no_manifest(damage, scans, apart, refusal):
    extract(scans, apart / "out")
    shutil.rmtree(scans / "sub-02")
    damage(next((apart / "out").rglob("02_axial006.png")))
    assert "found none for 1 of them, such as sub-02/anat/sub-02_T1w.nii.gz. Give --prune to remove" in refusal(
        extract_slices.main, "--scans", scans, "--out", "out", *SMALL)
    assert one_run(scans, apart / "out", "--prune") == one_run(scans, apart / "fresh")


def test_a_scan_that_has_another_place_or_name_is_not_kept_twice(scans, apart):
    extract(scans, apart / "out")
    (apart / "scans/more").mkdir()
    shutil.move(scans / "sub-01", scans / "more/sub-01")
    shutil.move(scans / "sub-02/anat/sub-02_T1w.nii.gz", scans / "sub-77_T1w.nii.gz")
    assert one_run(scans, apart / "out") == one_run(scans, apart / "fresh")
    assert {row["subject"] for row in table(apart / "out/manifest.csv")} == {"01", "03", "04", "05", "77"}


def test_a_new_scan_takes_no_name_from_slices_of_a_scan_that_is_gone(scans, apart):
    rows = extract(scans, apart / "out")
    kept = {row["image"]: row["sha256"] for row in rows if row["subject"] == "01"}
    shutil.rmtree(scans / "sub-01")
    save(scans / "more/sub-01/anat/sub-01_T1w.nii", block(seed=40))
    rows = extract(scans, apart / "out")
    check_it_is_true(apart / "out")
    assert len({row["image"] for row in rows}) == 12
    assert kept.items() <= {row["image"]: row["sha256"] for row in rows}.items()
    again = slices_in(apart / "out")
    assert one_run(scans, apart / "out") == again
    save(scans / "sub-01/anat/sub-01_T1w.nii.gz", block(seed=1))
    assert one_run(scans, apart / "out") == one_run(scans, apart / "fresh")


def test_scans_that_are_there_but_bad_or_not_chosen_any_more_are_not_gone(scans, apart):
    extract(scans, apart / "out")
    (scans / "sub-01/anat/sub-01_T1w.nii.gz").write_text("no scan any more")
    save(scans / "sub-02/anat/sub-02_run-1_T1w.nii.gz", block(seed=40))
    (scans / "sub-03/anat/sub-03_T1w.nii.gz").unlink()
    (scans / "sub-03/anat/sub-03_T1w.nii.gz").symlink_to("nowhere")
    assert one_run(scans, apart / "out") == one_run(scans, apart / "fresh")
    assert json.loads((apart / "out/extraction.json").read_text())["counts"]["gone"] == 0


# What is known of scans

def test_a_folder_without_sidecars_is_drawn_anew_to_the_same_bytes(scans, apart, capsys):
    once = one_run(scans, apart / "out"), pictures(apart / "out")
    shutil.rmtree(apart / "out/.scans")
    capsys.readouterr()
    assert one_run(scans, apart / "out") == once[0]
    assert "used 5 scans (0 of them unchanged" in capsys.readouterr().out
    after = pictures(apart / "out")
    assert not [name for name in after if after[name] == once[1][name]]


def test_another_recipe_draws_every_slice_anew(scans, apart, capsys, monkeypatch):
    one_run(scans, apart / "out")
    before = pictures(apart / "out")
    capsys.readouterr()
    monkeypatch.setattr(extraction, "RECIPE", 99)
    one_run(scans, apart / "out")
    assert "used 5 scans (0 of them unchanged" in capsys.readouterr().out
    assert not before.items() & pictures(apart / "out").items()
    assert json.loads((apart / "out/extraction.json").read_text())["recipe"] == 99


def test_slices_of_a_scan_that_is_gone_cannot_be_kept_without_its_sidecar(scans, apart, refusal):
    extract(scans, apart / "out")
    shutil.rmtree(apart / "out/.scans")
    remove_one(scans)
    assert "found none for 1 of them, such as sub-02/anat/sub-02_T1w.nii.gz. Give --prune to remove" in refusal(
        extract_slices.main, "--scans", scans, "--out", "out", *SMALL)
    assert one_run(scans, apart / "out", "--prune") == one_run(scans, apart / "fresh")


def test_an_image_that_is_named_as_a_slice_and_belongs_to_no_scan_is_removed_and_counted(scans, apart, capsys):
    extract(scans, apart / "out")
    shutil.copy(next((apart / "out").rglob("01_axial006.png")), apart / "out/test/99_axial006.png")
    (apart / "out/test/mine.png").write_text("mine")
    capsys.readouterr()
    extract(scans, apart / "out")
    assert "removed: 1 slice that these scans and settings do not ask for\n" in capsys.readouterr().out
    assert (apart / "out/test/mine.png").read_text() == "mine"
    (apart / "out/test/mine.png").unlink()
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh")


# Workers and parts

def parts_of(scans: Path, out: Path, parts: list[str], *more: object) -> list[bool]:
    """Do these parts one after another; return whether there was a manifest after each."""
    there = []
    for part in parts:
        extract_slices.main(["--scans", str(scans), "--out", str(out), *SMALL, "--shard", part, *map(str, more)])
        there.append((out / "manifest.csv").exists())
    return there


def test_any_number_of_workers_makes_the_same_folder(apart):
    scans = save_bids(apart / "scans", 9)
    spoil_one(scans)
    shutil.copy(scans / "sub-01/anat/sub-01_T1w.nii.gz", scans / "copy.nii.gz")
    alone = one_run(scans, apart / "1")
    for workers in (2, 4):
        assert one_run(scans, apart / str(workers), "--workers", workers) == alone


@pytest.mark.parametrize("parts", [
    ["1/3", "2/3", "3/3"], ["3/3", "1/3", "2/3"], ["0/3", "1/3", "2/3"], ["2/3", "0/3", "1/3"], ["1/1"], ["0/1"],
    ["2/3", "2/3", "1/3", "1/3", "3/3"], [f"{number}/8" for number in range(1, 9)], ["1/2", "1/3", "2/3", "3/3"]])
def test_parts_in_any_order_make_the_folder_of_one_run(parts, scans, apart):
    spoil_one(scans)
    save(scans / "sub-00_T1w.nii", block(seed=4))
    there = parts_of(scans, apart / "out", parts)
    assert there == sorted(there)
    assert there[-1]
    assert there.count(True) == max(1, len(parts) - 5)  # of eight parts for six scans two have nothing to do
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh")
    assert one_run(scans, apart / "out") == slices_in(apart / "fresh")


def test_parts_at_the_same_time_make_the_folder_of_one_run(apart):
    scans = save_bids(apart / "scans", 12)
    at_work = [started(scans, apart / "out", "--shard", f"{number}/3") for number in (1, 2, 3)]
    said = [process.communicate()[0].strip() for process in at_work]
    assert [process.returncode for process in at_work] == [0, 0, 0]
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh")
    assert sum(line.startswith("used 12 scans") for line in said) >= 1
    for line in said:
        assert line.startswith(("used 12 scans", "part ")), line


def test_merge_before_all_scans_are_done_is_refused_and_says_how_many_are_not(scans, apart, refusal):
    arguments = ["--scans", scans, "--out", "out", *SMALL]
    assert refusal(extract_slices.main, *arguments, "--merge") == (
        "--merge, --out out: expected all scans done with these settings, found 5 of 5 not done, such as "
        "sub-01/anat/sub-01_T1w.nii.gz. Run the parts first (--shard I/N); the last one to end writes the manifest by "
        "itself.")
    parts_of(scans, apart / "out", ["2/4"])
    before = slices_in(apart / "out")
    assert "found 4 of 5 not done, such as sub-01/anat/sub-01_T1w.nii.gz. Run" in refusal(
        extract_slices.main, *arguments, "--merge")
    assert "found 5 of 5 not done" in refusal(extract_slices.main, *arguments, "--merge", "--bits", 16)
    assert refusal(extract_slices.main, *arguments, "--merge", "--shard", "1/4") == (
        "--merge: expected no --shard beside it, found --shard 1/4. The parts are known from --out.")
    assert slices_in(apart / "out") == before


def test_a_part_that_is_killed_while_it_finishes_leaves_that_to_merge_or_to_itself(apart):
    scans = save_bids(apart / "scans", 4)
    fresh = one_run(scans, apart / "fresh")
    extract(scans, apart / "start", "--seed", 1, "--split", 30, 30, 40)
    parts_of(scans, apart / "start", ["1/2"])
    done, merged = [], 0
    for step in runs_killed_at_each_step(apart / "start", apart / "out",
                                         lambda: parts_of(scans, apart / "out", ["2/2"])):
        done.append(len(list((apart / "out/.scans").glob("[!.]*.json"))) == 4)
        if done[-1]:
            shutil.copytree(apart / "out", apart / "merged")
            with contextlib.suppress(UserError):  # the last images may be another extraction's still
                extract_slices.main(["--scans", str(scans), "--out", str(apart / "merged"), *SMALL, "--merge"])
                assert slices_in(apart / "merged") == fresh, step
                merged += 1
            shutil.rmtree(apart / "merged")
        assert parts_of(scans, apart / "out", ["2/2"]) == [True]
        assert slices_in(apart / "out") == fresh, step
    assert merged > 8


def test_a_part_that_is_killed_goes_on_and_reads_no_scan_that_was_finished(scans, apart):
    fresh = one_run(scans, apart / "fresh")
    parts_of(scans, apart / "out", ["1/2"])
    with killed_at_step(4 + 2), pytest.raises(Killed, match=r"^before change 6$"):
        parts_of(scans, apart / "out", ["2/2"])
    for number in (1, 2, 3, 5):
        make_unreadable(scans / f"sub-0{number}")
    assert parts_of(scans, apart / "out", ["2/2"]) == [True]
    assert slices_in(apart / "out") == fresh


def test_parts_of_other_settings_or_scans_are_not_mixed(scans, apart, capsys):
    parts_of(scans, apart / "out", ["1/2"])
    capsys.readouterr()
    assert parts_of(scans, apart / "out", ["2/2"], "--size", 24) == [False]
    assert capsys.readouterr().out == ("part 2 of 2 is done: 2 scans, 0 of them rejected; the manifest is written when "
                                       "all are done, not yet: 1\n")
    save(scans / "sub-09_T1w.nii", block(seed=90))
    assert parts_of(scans, apart / "out", ["1/2"], "--size", 24) == [False]
    assert parts_of(scans, apart / "out", ["2/2"], "--size", 24) == [True]
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh", "--size", 24)


def test_parts_over_a_finished_extraction_of_other_settings_make_the_folder_of_one_run(scans, apart):
    extract(scans, apart / "out", "--size", 24, "--planes", "axial", "coronal")
    shutil.rmtree(scans / "sub-02")
    assert parts_of(scans, apart / "out", ["2/3", "3/3", "1/3"], "--seed", 4, "--prune") == [False, False, True]
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh", "--seed", 4)


@pytest.mark.parametrize(("at_work", "refused"), [
    (fcntl.LOCK_EX, []), (fcntl.LOCK_EX, ["--shard", "1/2"]), (fcntl.LOCK_SH, [])])
def test_a_second_extraction_at_work_is_refused_and_changes_nothing(at_work, refused, scans, apart, refusal,
                                                                    monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0)
    extract(scans, apart / "out")
    with scan_slices.lock(apart / "out", at_work) as held:
        assert held
        before = slices_in(apart / "out")
        assert refusal(extract_slices.main, "--scans", scans, "--out", "out", *SMALL, "--size", 24, *refused) == (
            "--out out: expected a folder in which no other extraction is at work, found one. Wait for it to end, or "
            "name another folder.")
        assert slices_in(apart / "out") == before
    assert one_run(scans, apart / "out") == one_run(scans, apart / "fresh")


def test_a_part_that_ends_while_another_is_at_work_leaves_the_manifest_to_it(scans, apart, capsys):
    parts_of(scans, apart / "out", ["1/2"])
    with scan_slices.lock(apart / "out", fcntl.LOCK_SH):
        capsys.readouterr()
        assert parts_of(scans, apart / "out", ["2/2"]) == [False]
        assert capsys.readouterr().out.endswith("when all are done, not yet: others are at work\n")
    assert parts_of(scans, apart / "out", ["1/2"]) == [True]
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh")


@pytest.mark.parametrize("change", [pack_anew, replace_one])
def test_what_older_parts_knew_of_a_scan_counts_less_than_what_is_known_now(change, scans, apart):
    (apart / "start").mkdir()
    parts_of(scans, apart / "start", ["1/2", "2/3"])
    change(scans)
    fresh = one_run(scans, apart / "fresh")
    for step in runs_killed_at_each_step(apart / "start", apart / "out", lambda: extract(scans, apart / "out")):
        assert one_run(scans, apart / "out") == fresh, step


def test_merge_waits_for_whoever_is_at_work(scans, apart):
    parts_of(scans, apart / "out", ["1/2"])
    with scan_slices.lock(apart / "out", fcntl.LOCK_SH):
        parts_of(scans, apart / "out", ["2/2"])
        merging = started(scans, apart / "out", "--merge")
        with pytest.raises(subprocess.TimeoutExpired, match="timed out after 2 seconds"):
            merging.wait(2)
        assert not (apart / "out/manifest.csv").exists()
    assert merging.communicate()[0].startswith("used 5 scans")
    assert slices_in(apart / "out") == one_run(scans, apart / "fresh")


def test_a_part_waits_while_another_looks_whether_all_are_done(apart):
    scans, out = save_bids(apart / "scans", 2), apart / "out"
    out.mkdir()
    with scan_slices.lock(out, fcntl.LOCK_EX):
        part = started(scans, out, "--shard", "1/2")
        time.sleep(2)
    part.communicate()
    assert part.returncode == 0


def test_a_label_map_is_told_by_its_voxels_and_drawn_where_it_is_asked_for(apart):
    save(apart / "maps" / "p1_T1.nii", (block(seed=3) > 0).astype(np.uint8) * 7)
    save(apart / "maps" / "p2_T1.nii", block(seed=4))
    extract(apart / "maps", apart / "out")
    [(name, reason)] = reasons(apart / "out").items()
    assert name == "p1_T1.nii"
    assert reason.startswith("expected a scan, found a label map, an atlas or a mask: 100% of neighbouring voxels are")
    asked = extract(apart / "maps", apart / "asked", "--suffix", "T1")
    assert {row["subject"] for row in asked} == {"p1", "p2"}
