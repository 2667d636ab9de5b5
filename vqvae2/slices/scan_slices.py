"""One scan -> its slices as PNGs, and a manifest row for each; or the rows of an earlier run that still hold.

Slices are drawn in memory first, so that a scan that cannot be used leaves nothing behind. planes.py draws them.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vqvae2.common.names import SPLITS
from vqvae2.scans.brain import find_brain
from vqvae2.scans.finding import Scan
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.volumes import file_sha256, read_volume
from vqvae2.slices.outcomes import Outcome, note, recall, times_of, write, writing
from vqvae2.slices.planes import NORMAL, draw_plane, encode_png, plane_indices, position_mm
from vqvae2.slices.settings import ExtractSettings
from vqvae2.slices.splits import own_split

MANIFEST, BEFORE = "manifest.csv", ".manifest-before.csv"
"""The table of all images, and its name while an image that it names may be about to change."""


def work_on(scan: Scan, settings: ExtractSettings, out: Path, plan: str, pixels: str) -> Outcome:
    """Draw a scan's slices unless they are there already, and write its sidecar; return what became of the scan.

    Args:
        scan: from `finding.find_scans`.
        settings: of the run.
        out: the folder of the slices.
        plan, pixels: the hashes of `Outcome`.
    Raises: UserError if `out` cannot be written.
    """
    times, reason, rows, kept = times_of(scan.path), "", [], []
    try:
        with np.errstate(all="ignore"):
            kept = _still_right(scan, settings, out, recall(out, scan.name), pixels, times)
            rows = kept or extract_scan(scan, settings, out, own_split(scan.subject, settings.split, settings.seed))
    except UnusableScan as error:
        reason = error.reason
    except (ArithmeticError, ValueError) as error:  # NumPy's, of numbers near the largest, the smallest or each other
        reason = f"expected voxels that can be computed with, found {error}. Repair the scan, or leave it out."
    except MemoryError:
        reason = "expected a scan that fits into memory, found a larger one. Leave it out, or see its header."
    outcome = Outcome(scan.name, plan, pixels, times, rows, reason, bool(kept))
    note(out, outcome)
    return outcome


def draw_slices(scan: Scan, settings: ExtractSettings) -> Iterator[tuple[np.ndarray, dict]]:
    """Yield each slice of a scan, `[height, width]` in 0…1, and its row, with the manifest's columns but the split, the
    hash of the PNG and the covariates. `image` in the row is the file name alone.

    Raises: UnusableScan.
    """
    if scan.refused:
        raise UnusableScan.because(scan.path.name, scan.refused)
    volume = read_volume(scan.path, layout=scan.storage, assumed=settings.assume_orientation, number=settings.volume)
    brain = find_brain(volume)
    for plane in settings.planes:
        axis = NORMAL[plane]
        for index in plane_indices(brain, axis, settings.per_scan, settings.extent):
            image = draw_plane(volume, brain, axis, index, settings.size, settings.field_of_view)
            if not image.any():
                raise UnusableScan(scan.path.name, "brain in each plane", f"none in {plane} plane {index}",
                                   "Part of it is missing: leave the scan out, or choose another --extent.")
            # + 0.0 turns -0.0 into 0.0
            position = round(position_mm(brain, axis, index, volume.voxel_size_mm[axis]), 3) + 0.0
            yield image, {
                "image": image_name(scan.prefix, plane, index), "subject": scan.subject, "session": scan.session,
                "scan": scan.name, "plane": plane, "index": str(index), "position_mm": f"{position:.3f}",
                "low": f"{brain.low:.6g}", "high": f"{brain.high:.6g}", "sha256": "",
                "orientation": volume.orientation, "orientation_from": volume.orientation_from,
                "background": "zero" if brain.head is None else "otsu", "nan_voxels": str(brain.not_finite),
                "volume": "" if volume.number is None else str(volume.number), "run": scan.run,
                "scan_sha256": volume.sha256, "voxels": volume.fingerprint}


def extract_scan(scan: Scan, settings: ExtractSettings, out: Path, split: str) -> list[dict]:
    """Write one scan's PNGs to `<out>/<split>/` and return their rows, with the manifest's columns but the split and
    the covariates, which are decided when all scans are known.

    Raises: UnusableScan, before anything is written; UserError if `out` cannot be written.
    """
    rows, contents = [], []
    for image, row in draw_slices(scan, settings):
        contents.append(encode_png(image, settings.bits))
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
        settings: of the run.
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
    if before is None or before.pixels != pixels:
        return []
    rows = in_place(out, still_wanted(scan.storage, settings, before.rows), scan.prefix)
    unchanged = rows and (before.times == times or file_sha256(scan.path) == rows[0]["scan_sha256"])
    return rows if unchanged else []


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
