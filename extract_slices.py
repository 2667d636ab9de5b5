"""Raw brain scans -> 2-D slices as PNGs, their manifest, and a split by subject.

    python extract_slices.py --scans ~/data/oasis --out ~/data/oasis-slices
    python extract_slices.py --scans ~/data/oasis --out slices --planes axial coronal sagittal --per-scan 20
    python extract_slices.py --scans ~/data/oasis --out slices-128 --size 128 --bits 16 --workers 8 --strict

OASIS-1, -2 and -3 as downloaded, BIDS trees, FreeSurfer subjects and folders of NIfTI, Analyze or
MGH files are understood. Without --scans and --out, OASIS_PATH and SLICES_PATH are taken from the
environment or from .env. Nothing in --scans is changed.

    <out>/train, validate, test    <subject>[_<session>][_run-N]_<plane>NNN.png, NNN the plane's index
    <out>/manifest.csv             one row an image; there only when the extraction is complete
    <out>/rejected.csv             scans that cannot be used, each with its reason
    <out>/extraction.json          settings, versions and counts

Run it again to go on where it stopped, or after a change of scans or settings: only what is missing
or stale is made anew, and what is no longer wanted is removed.
"""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from vqvae2 import config
from vqvae2.config import SPLITS, ExtractSettings
from vqvae2.errors import UserError, run_script
from vqvae2.scans import Found, Scan, find_scans
from vqvae2.slices import (
    MANIFEST_COLUMNS,
    RECIPE,
    SETTINGS_OF_PIXELS,
    TEMPORARY,
    csv_bytes,
    extract_scan,
    own_split,
    split_subjects,
    write,
)
from vqvae2.volumes import UnusableScan

JOURNAL = ".unfinished.jsonl"
"""One line a finished scan while an extraction is under way; with it, a killed one goes on where it stopped."""
IMAGE_NAME = rf"({'|'.join(SPLITS)})/[^/\\\\]+_(axial|coronal|sagittal)\d{{3,}}\.png"
DECIDED_LAST = ("split", "age", "sex")


@dataclasses.dataclass(frozen=True)
class Past:
    """What earlier runs left in the folder of slices."""

    rows: dict[str, list[dict]]
    """Of each scan whose slices were drawn with the same settings."""
    lines: list[str]
    """All of it, as lines of the journal."""
    images: set[str]
    """Every image that an earlier run is known to have written."""


def main(arguments: list[str] | None = None) -> None:
    """Extract the slices that the command line asks for, and print what became of the scans."""
    settings = config.parse(ExtractSettings, __doc__, arguments)
    folder = config.path_from_environment(settings.scans, "OASIS_PATH", "--scans")
    out = config.path_from_environment(settings.out, "SLICES_PATH", "--out")
    found = find_and_check(folder, out)
    print(extract(found, settings, out))


def find_and_check(folder: Path, out: Path) -> Found:
    """Return the scans in `folder`. Nothing is written.

    Raises: UserError if there is none, or if `out` is no place for slices.
    """
    config.expect(folder.is_dir(), f"--scans {folder}", "a folder of scans", "a file" if folder.exists() else "nothing",
                  "Give the folder that holds them, or set OASIS_PATH.")
    config.expect(out.is_dir() or not out.exists(), f"--out {out}", "a folder", "a file", "Name another folder.")
    inside = out.resolve().is_relative_to(folder.resolve())
    config.expect(not inside, f"--out {out}", "a folder outside of --scans", f"one inside {folder}",
                  "Raw scans stay as they are: name another folder.")
    found = find_scans(folder)
    config.expect(bool(found.scans), f"--scans {folder}",
                  "T1-weighted scans (.nii, .nii.gz, .hdr and .img, .mgh or .mgz)", "none",
                  "Check the folder; segmentations, masks and other contrasts are not scans.")
    return found


def extract(found: Found, settings: ExtractSettings, out: Path) -> str:
    """Write the slices of all scans, the manifest and the two reports to `out`; return the closing line.

    Raises: UserError with --strict at the first scan that cannot be used, or if `out` cannot be written.
    """
    pixels = pixels_hash(settings)
    interrupted = (out / JOURNAL).exists()
    past = recall(out, pixels)
    for split in SPLITS:
        make_folder(out / split)
        for left_over in (out / split).glob(f".*{TEMPORARY}"):
            left_over.unlink(missing_ok=True)
    # From here until the end there is no manifest, so that nobody trains on half of an extraction.
    write(out / JOURNAL, "".join(past.lines).encode("utf-8", "surrogateescape"))
    (out / "manifest.csv").unlink(missing_ok=True)

    rows: list[tuple[Scan, dict]] = []
    rejected: list[dict] = []
    unchanged = 0
    tasks = [(scan, settings, out, own_split(scan.subject, settings.split, settings.seed), past.rows.get(scan.name))
             for scan in found.scans]
    with (open(out / JOURNAL, "a", encoding="utf-8", errors="surrogateescape") as journal,
          tqdm(total=len(tasks), unit="scan", desc="extracting") as bar,
          contextlib.closing(_results(tasks, settings.workers)) as results):
        for scan, (scan_rows, was_there, reason) in zip(found.scans, results):
            if reason:
                config.expect(not settings.strict, *_as_error(scan, reason))
                rejected.append({"scan": scan.name, "reason": reason})
            elif not was_there:
                journal.write(_journal_line(pixels, scan_rows))
                journal.flush()
            rows += [(scan, row) for row in scan_rows]
            unchanged += was_there
            bar.set_postfix(rejected=len(rejected), refresh=False)
            bar.update()

    splits, lent = split_subjects((scan.subject for scan, _ in rows), settings.split, settings.seed)
    manifest = [_placed(out, scan, row, splits[scan.subject]) for scan, row in rows]
    _remove_stale(out, past.images, {row["image"] for row in manifest}, interrupted)
    report = _report(settings, pixels, found, manifest, rejected, splits, lent)
    write(out / "rejected.csv", csv_bytes(("scan", "reason"), rejected))
    write(out / "extraction.json", (json.dumps(report, indent=1, ensure_ascii=True) + "\n").encode())
    write(out / "manifest.csv", csv_bytes(MANIFEST_COLUMNS, manifest))
    (out / JOURNAL).unlink()
    counts = report["counts"]
    images = ", ".join(f"{split} {counts['images'][split]} of {counts['subjects'][split]} subjects" for split in SPLITS)
    return (f"used {counts['used']} scans ({unchanged} of them unchanged since the last run), rejected "
            f"{counts['rejected']}, skipped {counts['skipped']} further scans of the same sessions; images: {images}; "
            f"manifest: {out / 'manifest.csv'}")


def recall(out: Path, pixels: str) -> Past:
    """Return what is known of earlier runs in `out`: of a complete one from its manifest, else from its journal."""
    records: list[tuple[str, list[dict]]] = []
    with contextlib.suppress(OSError, ValueError, KeyError, csv.Error):
        with open(out / "manifest.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = [{key: value for key, value in row.items() if key not in DECIDED_LAST}
                     for row in csv.DictReader(file)]
        try:
            drawn_with = str(json.loads((out / "extraction.json").read_text(encoding="utf-8"))["pixels"])
        except (OSError, ValueError, KeyError, TypeError):
            drawn_with = "unknown"
        by_scan: dict[str, list[dict]] = {}
        for row in table:
            by_scan.setdefault(row["scan"], []).append(row)
        records += [(drawn_with, rows) for rows in by_scan.values()]
    with contextlib.suppress(OSError):
        for line in (out / JOURNAL).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line of a killed run may be cut off
                record = json.loads(line)
                records.append((str(record["pixels"]), list(record["rows"])))
    needed = set(MANIFEST_COLUMNS) - set(DECIDED_LAST)
    records = [(key, rows) for key, rows in records if rows and all(
        needed <= set(row) and re.fullmatch(IMAGE_NAME, row["image"]) for row in rows)]
    return Past({rows[0]["scan"]: rows for key, rows in records if key == pixels},
                [_journal_line(key, rows) for key, rows in records],
                {row["image"] for _, rows in records for row in rows})


def pixels_hash(settings: ExtractSettings) -> str:
    """Return a hash of all that decides what is in the images: equal hash and scan, equal bytes."""
    values = {name: config.as_dict(settings)[name] for name in SETTINGS_OF_PIXELS}
    return hashlib.sha256(json.dumps([RECIPE, values], sort_keys=True).encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises: UserError if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: expected a folder that can be made, found {(error.strerror or '').lower()}. "
                        "Name another folder.") from None


def _results(tasks: list[tuple], workers: int) -> Iterator[tuple[list[dict], bool, str]]:
    """Yield each task's result in the order of the tasks, whatever the number of workers."""
    if min(workers, len(tasks)) == 1:
        yield from map(_work, tasks)
        return
    pool = ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn"), _start_worker)
    try:
        yield from pool.map(_work, tasks)
    except BrokenProcessPool:
        raise UserError(f"--workers {workers}: expected every worker to finish, found one that was ended from outside "
                        "(often for want of memory). Give fewer workers; running again goes on from here.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _work(task: tuple) -> tuple[list[dict], bool, str]:
    """Return the scan's rows, whether they were there already, and the reason if it is rejected."""
    try:
        return *extract_scan(*task), ""
    except UnusableScan as error:
        return [], False, error.reason
    except MemoryError:
        return [], False, "expected a scan that fits into memory, found a larger one. Leave it out, or see its header."


def _start_worker() -> None:
    """Ctrl-C is the main process's to handle; and a worker ends with it, also if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _as_error(scan: Scan, reason: str) -> tuple[str, str, str, str]:
    """The reason in the parts of the project's one form of error: what, rule, found, advice."""
    rule, found, advice = re.fullmatch(r"expected (.*?), found (.*?)\. (.*)", reason).groups()
    return scan.name, rule, found, f"{advice} Without --strict it is skipped."


def _placed(out: Path, scan: Scan, row: dict, split: str) -> dict:
    """Return the manifest's row, with the image moved to the split and name that it has in this run."""
    image = f"{split}/{scan.prefix}_{row['plane']}{int(row['index']):03d}.png"
    if image != row["image"]:
        os.replace(out / row["image"], out / image)
    return {**row, "image": image, "split": split, "subject": scan.subject, "session": scan.session, "age": scan.age,
            "sex": scan.sex}


def _remove_stale(out: Path, known: set[str], wanted: set[str], interrupted: bool) -> None:
    """Remove images that this run does not want; after an interruption some are known by their names only."""
    if interrupted:
        names = {f"{split}/{path.name}" for split in SPLITS for path in (out / split).glob("*.png")}
        known = known | {name for name in names if re.fullmatch(IMAGE_NAME, name)}
    for image in sorted(known - wanted):
        (out / image).unlink(missing_ok=True)


def _report(settings: ExtractSettings, pixels: str, found: Found, manifest: list[dict], rejected: list[dict],
            splits: dict[str, str], lent: dict[str, str]) -> dict:
    """What extraction.json says. No time, host, worker count or path, so that equal work gives equal bytes."""
    kept = {key: value for key, value in config.as_dict(settings).items()
            if key not in ("scans", "out", "workers", "strict")}
    images, subjects = Counter(row["split"] for row in manifest), Counter(splits.values())
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "nibabel", "pillow")}
    return {"schema": 1, "settings": kept, "recipe": RECIPE, "pixels": pixels, "versions": versions,
            "counts": {"scans": len(found.scans), "used": len({row["scan"] for row in manifest}),
                       "rejected": len(rejected), "skipped": found.further,
                       "subjects": {split: subjects[split] for split in SPLITS},
                       "images": {split: images[split] for split in SPLITS}},
            "lent": {subject: {"from": lent[subject], "to": splits[subject]} for subject in sorted(lent)}}


def _journal_line(pixels: str, rows: list[dict]) -> str:
    return json.dumps({"pixels": pixels, "rows": rows}) + "\n"


if __name__ == "__main__":
    run_script(main)
