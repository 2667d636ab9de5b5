"""One scan -> its slices as PNGs, a manifest row for each, and a sidecar by which a killed extraction goes on.

Slices are drawn in memory first (planes.py), so that a scan that cannot be used leaves nothing behind.

The sidecar is one JSON file a scan, `<out>/.scans/<hash of its name>.json`. It is written when all images of the scan
are there, or when the scan is rejected, and it stays for the next run. An outcome belongs to a plan, the hash of all
settings and scans of an extraction: the extraction is done when every scan has an outcome of its plan, whichever
process has worked on it.
"""

import base64
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vqvae2.common import memory
from vqvae2.common.errors import UserError
from vqvae2.common.files import open_regular, read_at_most, replace_whole, sha256_of_file
from vqvae2.common.names import NORMAL, SPLITS
from vqvae2.scans import same_heads
from vqvae2.scans.brain import MOST_EQUAL_NEIGHBOURS, Brain, find_brain, share_of_equal_neighbours
from vqvae2.scans.finding import Scan
from vqvae2.scans.headers import UnusableScan, expect_usable
from vqvae2.scans.masks import within_mask
from vqvae2.scans.volumes import Volume, file_sha256, files_of, read_volume
from vqvae2.slices.page import THUMBNAIL, thumbnail
from vqvae2.slices.planes import draw_plane, levels_of, plane_indices, png_of, position_mm
from vqvae2.slices.settings import ExtractSettings
from vqvae2.slices.splits import own_split

MANIFEST, BEFORE = "manifest.csv", ".manifest-before.csv"
"""The table of all images, and its name while an image that it names may be about to change."""
PAGE = "index.html"
"""The page that shows each scan."""
HEAD = "head"
DRAWN_AT_ONCE = 16
"""Slices that are drawn before they are encoded."""
LARGEST_SIDECAR = 1 << 26
"""Bytes; a scan with a thousand slices has 1 MB."""
SIDECARS = ".scans"
"""The folder of the sidecars and of the lock."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of the work on the scan of this name."""

    scan: str
    plan: str
    """Hash of what all processes of one extraction must agree on."""
    pixels: str
    """Hash of the settings that decide how a scan is drawn."""
    times: list[int]
    """When the files of the scan and its mask were last written, in ns, asked before they were read; empty if that
    cannot be told."""
    rows: list[dict] = dataclasses.field(default_factory=list)
    """A row for each image; none if the scan is rejected, for which there is a reason."""
    reason: str = ""
    unchanged: bool = False
    """True where nothing had to be drawn."""
    pictures: dict[str, str] = dataclasses.field(default_factory=dict)
    """The thumbnail of the middle slice of each plane, for the page: `thumbnail`, deflated, in base64; and under HEAD
    the coarse head, by which a person with two names is found."""


def sidecar(out: Path, scan: str) -> Path:
    """Return the path of the sidecar of a scan, by the scan's name."""
    return out / SIDECARS / f"{hashlib.sha256(scan.encode()).hexdigest()[:32]}.json"


def note(out: Path, outcome: Outcome) -> None:
    """Write a scan's sidecar. Raises: UserError if `out` cannot be written."""
    with writing(out):
        replace_whole(sidecar(out, outcome.scan), json.dumps(vars(outcome)).encode(), synced=False)


def recall(out: Path, scan: str) -> Outcome | None:
    """Return what became of a scan when it was last worked on; None if nothing is known of it."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        outcome = Outcome(**json.loads(read_at_most(sidecar(out, scan), LARGEST_SIDECAR)))
        return outcome if isinstance(outcome.pictures, dict) else None
    return None


def times_of(scan: Scan) -> list[int]:
    """Return `Outcome.times` of a scan and its mask."""
    try:
        return [os.stat(part).st_mtime_ns for whole in filter(None, (scan.path, scan.mask)) for part in files_of(whole)]
    except OSError:
        return []


@contextlib.contextmanager
def lock(out: Path, kind: int, seconds: float = 0) -> Iterator[bool]:
    """Hold the folder of slices; yield True if it is held, and False if somebody else holds it.

    Args:
        kind: fcntl.LOCK_SH for one of several processes that draw parts, LOCK_EX for the only process at work; with
            LOCK_NB this does not wait for others.
        seconds: with LOCK_NB, how long it waits nevertheless.
    A file system that has no locks holds nobody back.
    """
    with writing(out):
        (out / SIDECARS).mkdir(parents=True, exist_ok=True)
        file = open(out / SIDECARS / "lock", "a", encoding="utf-8")  # noqa: SIM115, closed below
    with file:
        end, held, said = time.monotonic() + seconds, None, False
        while held is None:
            try:
                fcntl.flock(file, kind)
                held = True
            except BlockingIOError:
                held = None if time.monotonic() < end else False
                if kind & fcntl.LOCK_EX and seconds and not said:
                    said = True
                    print(f"--out {out}: another extraction is still at work there; waiting for it to end, {seconds:g} "
                          "seconds at most", flush=True)
                time.sleep(0.05)
            except OSError:
                held = True
        yield held


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what can go wrong while a folder of slices is written, such as a full disk, into an error of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {folder}: expected a folder that can be written, found "
                        f"{(error.strerror or str(error)).lower()}. Make room, or name another folder; running "
                        "again goes on from here.") from None


def write(path: Path, content: bytes, *, synced: bool = True) -> None:
    """Write a file so that it is there whole or not at all. Raises: UserError if the folder cannot be written."""
    with writing(path.parent):
        replace_whole(path, content, synced=synced)


def read_table(path: Path) -> list[dict]:
    """Return the rows of a table that `csv_bytes` has made; none where it cannot be read."""
    with contextlib.suppress(OSError, csv.Error), \
            io.TextIOWrapper(open_regular(path), newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
    return []


def csv_bytes(columns: Iterable[str], rows: Iterable[dict]) -> bytes:
    """Return a table with one header line, lines ending in a newline on every system; a cell that
    a row lacks is empty, and a value without a column is left out."""
    lines: list[str] = []
    # Before Python 3.13 csv quotes a carriage return, which may be in a name, only where lines end with one.
    each_line = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
    writer = csv.DictWriter(each_line, list(columns), extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "".join(lines).encode("utf-8", "surrogateescape")


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes; empty if it cannot be read."""
    try:
        return sha256_of_file(path).hexdigest()
    except OSError:
        return ""


def work_on(scan: Scan, settings: ExtractSettings, out: Path, plan: str, pixels: str) -> Outcome:
    """Draw a scan's slices unless they are there already, and write its sidecar; return what became of the scan.

    Args:
        scan: from `finding.find_scans`.
        settings: the settings of the run.
        out: the folder of the slices.
        plan, pixels: the hashes of `Outcome`.
    Raises: UserError if `out` cannot be written.
    """
    times, reason, rows, kept, pictures = times_of(scan), scan.refused, [], [], {}
    try:
        with np.errstate(all="ignore"):
            if not scan.refused:
                before = recall(out, scan.name)
                kept = _still_right(scan, settings, out, before, pixels, times)
                pictures = {name: before.pictures[name] for name in (*settings.planes, HEAD)} if kept else {}
                rows = kept or extract_scan(scan, settings, out, own_split(scan.subject, settings.split, settings.seed),
                                            pictures)
    except UnusableScan as error:
        reason = error.reason
    except (ArithmeticError, ValueError) as error:  # NumPy's, of numbers near the largest, the smallest or each other
        reason = f"expected voxels that can be computed with, found {error}. Repair the scan, or leave it out."
    except MemoryError:
        reason = "expected a scan that fits into memory, found a larger one. Leave it out, or see its header."
    outcome = Outcome(scan.name, plan, pixels, times, rows, reason, bool(kept), pictures if rows else {})
    note(out, outcome)
    return outcome


def read_brain(scan: Scan, settings: ExtractSettings) -> tuple[Volume, Brain, str]:
    """Return a scan, within its brain mask if it has one, where its brain is, and the hash of the mask or "".

    Raises: UnusableScan.
    """
    volume = read_volume(scan.path, layout=scan.storage, assumed=settings.assume_orientation, number=settings.volume,
                         trust=settings.trust)
    volume, mask_sha256 = _within_its_mask(volume, scan, settings)
    brain = find_brain(volume)
    equal = 0 if settings.suffix else share_of_equal_neighbours(volume, brain)
    expect_usable(equal <= MOST_EQUAL_NEIGHBOURS, scan.path.name, "a scan",
                  f"a label map, an atlas or a mask: {equal:.0%} of neighbouring voxels are equal",
                  "Leave it out, or ask for it by the end of its name (--suffix).")
    return volume, brain, mask_sha256


def draw_slices(scan: Scan, settings: ExtractSettings,
                pictures: dict[str, str] | None = None) -> Iterator[tuple[np.ndarray, dict]]:
    """Yield each slice of a scan, `[height, width]` in 0…1, and its row, with the manifest's columns but the split, the
    hash of the PNG and the covariates. `image` in the row is the file name alone.

    Args:
        scan: from `finding.find_scans`.
        settings: the settings of the run.
        pictures: receives `Outcome.pictures`; None where nobody looks at them.
    Raises: UnusableScan.
    """
    volume, brain, mask_sha256 = read_brain(scan, settings)
    if pictures is not None:
        pictures[HEAD] = same_heads.as_text(same_heads.coarse_head(volume, brain))
    for plane in settings.planes:
        axis = NORMAL[plane]
        indices = plane_indices(brain, axis, settings.per_scan, settings.extent)
        for index in indices:
            image = draw_plane(volume, brain, axis, index, settings.size, settings.field_of_view)
            expect_usable(image[::-1, ::-1].max() != 0, scan.path.name, "brain in each plane",
                          f"none in {plane} plane {index}",
                          "Part of it is missing: leave the scan out, or choose another --extent.")
            if pictures is not None and index == middle_of(indices):
                pictures[plane] = base64.b64encode(zlib.compress(thumbnail(image), 1)).decode()
            # + 0.0 turns -0.0 into 0.0
            position = round(position_mm(brain, axis, index, volume.voxel_size_mm[axis]), 3) + 0.0
            yield image, {
                "image": image_name(scan.prefix, plane, index), "subject": scan.subject, "session": scan.session,
                "scan": scan.name, "plane": plane, "index": str(index), "position_mm": f"{position:.3f}",
                "low": f"{brain.low:.6g}", "high": f"{brain.high:.6g}", "sha256": "",
                "orientation": volume.orientation, "orientation_from": volume.orientation_from,
                "background": "zero" if brain.head is None else "otsu", "nan_voxels": str(brain.not_finite),
                "volume": "" if volume.number is None else str(volume.number), "run": scan.run,
                "scan_sha256": volume.sha256, "voxels": volume.fingerprint,
                "voxel_size_mm": "x".join(f"{side:.4g}" for side in volume.voxel_size_mm),
                "brain_mm": "x".join(f"{(stop - start) * side:.0f}" for start, stop, side in
                                     zip(brain.start, brain.stop, volume.voxel_size_mm)),
                "geometry": volume.geometry, "mask": scan.mask_name, "mask_sha256": mask_sha256}


def _within_its_mask(volume: Volume, scan: Scan, settings: ExtractSettings) -> tuple[Volume, str]:
    """Return the volume without what is outside of the scan's brain mask, if it has one, and the hash of the mask."""
    if scan.mask is None:
        return volume, ""
    try:
        with memory.only(memory.room() - volume.voxels.nbytes):
            mask = read_volume(scan.mask, layout=scan.storage, assumed=settings.assume_orientation,
                               trust=settings.trust)
    except UnusableScan as error:
        found, _, _ = error.reason.partition(". ")
        raise UnusableScan(volume.name, "a brain mask beside it that can be used", f"{scan.mask.name}: {found}",
                           "Repair the mask, or give --mask-suffix none.") from None
    return within_mask(volume, mask), mask.sha256


def middle_of(ordered: Sequence) -> object:
    """Return the slice of a plane, of all that are taken, that the page shows."""
    return ordered[(len(ordered) - 1) // 2]


def picture_of(text: str) -> bytes:
    """Return a thumbnail of `Outcome.pictures`; nothing if the text is not one of this size."""
    with contextlib.suppress(ValueError, zlib.error):
        picture = zlib.decompressobj().decompress(base64.b64decode(text), THUMBNAIL ** 2 + 1)
        return picture if len(picture) == THUMBNAIL ** 2 else b""
    return b""


def extract_scan(scan: Scan, settings: ExtractSettings, out: Path, split: str,
                 pictures: dict[str, str] | None = None) -> list[dict]:
    """Write one scan's PNGs to `<out>/<split>/` and return their rows, with the manifest's columns but the split and
    the covariates, which are decided when all scans are known. `pictures` is that of `draw_slices`.

    Raises: UnusableScan, before anything is written; UserError if `out` cannot be written.
    """
    rows, contents = [], []
    drawn = ((levels_of(image, settings.bits), row) for image, row in draw_slices(scan, settings, pictures))
    # One by one, drawing and encoding would drive each other out of the processor's caches.
    while some := list(itertools.islice(drawn, DRAWN_AT_ONCE)):
        for levels, row in some:
            contents.append(png_of(levels))
            rows.append(row | {"image": f"{split}/{row['image']}", "sha256": hashlib.sha256(contents[-1]).hexdigest()})
    put_manifest_aside(out)
    for row, content in zip(rows, contents):
        write(out / row["image"], content, synced=False)
    return rows


def put_manifest_aside(out: Path) -> None:
    """Take the manifest away while images that it may name change; it comes back, new, when all is done."""
    with writing(out), contextlib.suppress(FileNotFoundError):
        os.replace(out / MANIFEST, out / BEFORE)


def image_name(prefix: str, plane: str, index: int | str) -> str:
    """Return the file name of an image."""
    return f"{prefix}_{plane}{int(index):03d}.png"


def prefix_of(row: dict) -> str:
    """Return how the file name of a row's image begins, before the plane."""
    return re.sub(r"_[a-z]+\d+\.png$", "", Path(row["image"]).name)


def still_wanted(layout: str | None, settings: ExtractSettings, known: Sequence[dict]) -> list[dict]:
    """Return the known rows of a scan that the settings ask for; none if they ask for something else.

    Args:
        layout: what the scan's indices grow towards by its archive's layout.
        settings: the settings of the run.
        known: rows of one scan, drawn with the same pixel settings.
    """
    rows = [row for plane in settings.planes for row in known if row["plane"] == plane]
    # A header that says nothing is taken for what it was taken for, by the layout as by the flag.
    storage = {"layout": layout, "assumed": settings.assume_orientation}
    right = all(row["orientation"] == storage.get(row["orientation_from"], row["orientation"])
                and row["volume"] in ("", str(settings.volume)) for row in rows)
    return rows if right and {row["plane"] for row in rows} == set(settings.planes) else []


def in_place(out: Path, rows: Sequence[dict], *prefixes: str) -> list[dict]:
    """Return the rows with the present names of their images, in whichever split they lie and whichever of `prefixes`
    their names begin with; none if an image is gone or has other bytes."""
    found = []
    for row in rows:
        names = dict.fromkeys(image_name(prefix, row["plane"], row["index"]) for prefix in prefixes)
        found += [{**row, "image": place} for name in names for split in SPLITS
                  if sha256_of(out / (place := f"{split}/{name}")) == row["sha256"]][:1]
    return found if len(found) == len(rows) else []


def _still_right(scan: Scan, settings: ExtractSettings, out: Path, before: Outcome | None, pixels: str,
                 times: list[int]) -> list[dict]:
    """Return the rows of an earlier run if its images and the scan are what they were; else none."""
    if before is None or before.pixels != pixels or not all(
            picture_of(before.pictures.get(plane, "")) for plane in settings.planes) or HEAD not in before.pictures:
        return []
    rows = in_place(out, still_wanted(scan.storage, settings, before.rows), scan.prefix)
    if not rows or rows[0]["mask"] != scan.mask_name:
        return []
    unchanged = before.times == times or (rows[0]["scan_sha256"], rows[0]["mask_sha256"]) == (
        file_sha256(scan.path), "" if scan.mask is None else file_sha256(scan.mask))
    return rows if unchanged else []
