"""Volume -> planes, 0…1 -> PNGs and manifest rows, split by subject.

1. Planes are chosen by a fraction of the brain's bounding box; the nearest plane is taken, never a
   mix of two.
2. Its values go from the brain's robust percentiles to 0…1. A voxel of the brain is at least
   1/255, so that it stays apart from the background, which is exactly 0.
3. The plane is drawn on square pixels of field_of_view / size mm, centred on the brain's bounding
   box: two sparse matrices, one for each axis, that average areas when shrinking and interpolate
   linearly when enlarging. Radiological display: the subject's left is at the picture's right.

Sparse products add in a fixed order, so the bytes do not depend on threads or number of processes.
"""

import contextlib
import csv
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from vqvae2.common.names import SPLITS
from vqvae2.scans.brain import find_brain
from vqvae2.scans.finding import Scan
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.volumes import file_sha256, files_of, read_volume
from vqvae2.slices.journal import writing
from vqvae2.slices.planes import NORMAL, draw_plane, encode_png, plane_indices, position_mm
from vqvae2.slices.settings import ExtractSettings

NANOSECONDS = 10**9
TEMPORARY = ".tmp"


def extract_scan(scan: Scan, settings: ExtractSettings, out: Path, split: str,
                 known: list[dict]) -> tuple[list[dict], bool]:
    """Write one scan's PNGs to `<out>/<split>/`; return their rows, and whether they were all there already.

    Args:
        scan: from `scans.find_scans`.
        settings: of the run.
        out: the folder of the slices.
        split: where new images go.
        known: this scan's rows from an earlier run with the same pixel settings. If its images are still what
            they were, and the scan too, the rows that are wanted are returned and nothing is written.
    A row has the manifest's columns without split and covariates, which are decided at the end.
    Raises: UnusableScan, before anything is written; UserError if `out` cannot be written.
    """
    if scan.refused:
        raise UnusableScan.because(scan.path.name, scan.refused)
    if rows := _still_there(scan, out, still_wanted(scan.storage, settings, known)):
        return rows, True
    volume = read_volume(scan.path, layout=scan.storage, assumed=settings.assume_orientation, number=settings.volume)
    brain = find_brain(volume)
    drawn = []
    for plane in settings.planes:
        for index in plane_indices(brain, NORMAL[plane], settings.per_scan, settings.extent):
            image = draw_plane(volume, brain, NORMAL[plane], index, settings.size, settings.field_of_view)
            if not image.any():
                raise UnusableScan(scan.path.name, "brain in each plane", f"none in {plane} plane {index}",
                                   "Part of it is missing: leave the scan out, or choose another --extent.")
            drawn.append((plane, index, encode_png(image, settings.bits)))
    rows = []
    for plane, index, content in drawn:
        name = f"{split}/{image_name(scan.prefix, plane, index)}"
        write(out / name, content, synced=False)
        # + 0.0 turns -0.0 into 0.0
        position = round(position_mm(brain, NORMAL[plane], index, volume.voxel_size_mm[NORMAL[plane]]), 3) + 0.0
        rows.append({
            "image": name, "subject": scan.subject, "session": scan.session, "scan": scan.name, "plane": plane,
            "index": str(index), "position_mm": f"{position:.3f}", "low": f"{brain.low:.6g}",
            "high": f"{brain.high:.6g}", "sha256": hashlib.sha256(content).hexdigest(),
            "orientation": volume.orientation, "orientation_from": volume.orientation_from,
            "background": "zero" if brain.head is None else "otsu",
            "nan_voxels": str(brain.not_finite), "volume": "" if volume.number is None else str(volume.number),
            "run": scan.run, "scan_sha256": volume.sha256, "voxels": volume.fingerprint})
    return rows, False


def newest_change(scan: Scan) -> int | None:
    """Return when a scan's files were last written, in ns since 1970; None if that cannot be told.

    A PNG whose row is written down is given this time: so a later run sees without reading it that the scan is
    the same, and no time stands in a file, which would make equal work give other bytes. Of a pair the
    nanoseconds are a hash of both times, so that neither file can change unseen beside a newer one.
    """
    try:
        times = [os.stat(path).st_mtime_ns for path in files_of(scan.path)]
    except OSError:
        return None
    if len(times) == 1:
        return times[0]
    digest = hashlib.sha256(repr(times).encode()).digest()
    return max(times) // NANOSECONDS * NANOSECONDS + int.from_bytes(digest[:8], "big") % NANOSECONDS


def image_name(prefix: str, plane: str, index: int) -> str:
    """Return the file name of an image."""
    return f"{prefix}_{plane}{index:03d}.png"


def still_wanted(layout: str | None, settings: ExtractSettings, known: list[dict]) -> list[dict]:
    """Return those of a scan's known rows that the settings ask for; none if they ask for something else.

    Args:
        layout: what the scan's indices grow towards by its archive's layout.
        settings: of the run.
        known: rows of one scan, drawn with the same pixel settings.
    """
    rows = [row for plane in settings.planes for row in known if row["plane"] == plane]
    # A header that says nothing is taken for what it was taken for, by the layout as by the flag.
    storage = {"layout": layout, "assumed": settings.assume_orientation}
    right = all(row["orientation"] == storage.get(row["orientation_from"], row["orientation"])
                and row["volume"] in ("", str(settings.volume)) for row in rows)
    return rows if right and {row["plane"] for row in rows} == set(settings.planes) else []


def looks_unchanged(scan: Scan, out: Path, row: dict) -> bool:
    """Whether an image has its scan's time."""
    try:
        return (out / row["image"]).stat().st_mtime_ns == newest_change(scan)
    except OSError:
        return False


def _still_there(scan: Scan, out: Path, rows: list[dict]) -> list[dict]:
    """Return the rows with their images' present names, if the images and the scan are what they were; else none."""
    rows = rows_in_place(out, rows)
    if all(looks_unchanged(scan, out, row) for row in rows):
        return rows
    changed = newest_change(scan)
    if file_sha256(scan.path) != rows[0]["scan_sha256"]:
        return []
    set_time(out, rows, changed)
    return rows


def rows_in_place(out: Path, rows: list[dict]) -> list[dict]:
    """Return the rows with their images' present names; none if an image is gone or has other bytes."""
    images = [_where(out, row) for row in rows]
    return [{**row, "image": image} for row, image in zip(rows, images)] if all(images) else []


def _where(out: Path, row: dict) -> str:
    """Return the image's name, also if it was moved to another split; empty if it is gone or has other bytes."""
    own, file_name = row["image"].split("/")
    for split in (own, *(split for split in SPLITS if split != own)):
        with contextlib.suppress(OSError):
            if hashlib.sha256((out / split / file_name).read_bytes()).hexdigest() == row["sha256"]:
                return f"{split}/{file_name}"
    return ""


def set_time(out: Path, rows: list[dict], changed: int | None) -> None:
    """Give the images of these rows a time, in ns, if it is known."""
    if changed is not None:
        for row in rows:
            with contextlib.suppress(OSError):  # a courtesy to the next run
                os.utime(out / row["image"], ns=(changed, changed))


def write(path: Path, content: bytes, *, synced: bool = True) -> None:
    """Write a file so that it is there whole or not at all.

    Raises: UserError if the folder cannot be written.
    """
    # Random, so that no two processes can ever write one file.
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    with writing(path.parent):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def csv_bytes(columns: Iterable[str], rows: Iterable[dict]) -> bytes:
    """Return a table with one header line, lines ending in a newline on every system; what a row lacks is empty."""
    lines: list[str] = []
    # Before Python 3.13 csv quotes a carriage return, which may be in a name, only where lines end with one.
    each_line = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
    writer = csv.DictWriter(each_line, list(columns), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "".join(lines).encode("utf-8", "surrogateescape")
