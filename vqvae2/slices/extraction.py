"""Scans -> their slices, on several processes, and the manifest: the work of `vqvae2 extract`."""

import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vqvae2.common.errors import UserError
from vqvae2.common.names import SPLITS
from vqvae2.scans import covariates
from vqvae2.scans.finding import Found, Scan, find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.settings import checks
from vqvae2.slices.journal import Journal, Outcome, parts_begun
from vqvae2.slices.manifest import (
    Past,
    changes_said,
    finish_if_done,
    pixels_hash,
    plan_hash,
    prefixes_of,
    put_manifest_aside,
    recall,
    refuse_rejected,
    slices_to_keep,
    untaken,
)
from vqvae2.slices.scan_slices import extract_scan, image_name, looks_unchanged, newest_change, set_time, still_wanted
from vqvae2.slices.settings import ExtractSettings
from vqvae2.slices.splits import own_split


def find_and_check(folder: Path, settings: ExtractSettings) -> Found:
    """Return the scans in `folder`.

    Raises: UserError if there is none, or if --covariates cannot be used.
    """
    checks.expect(folder.is_dir(), f"--scans {folder}", "a folder of scans", "a file" if folder.exists() else "nothing",
                  "Give the folder that holds them, or set OASIS_PATH.")
    if settings.covariates is not None:
        covariates.check_table(settings.covariates, settings.subject_column)
    found = find_scans(folder, suffixes=settings.suffix, subject_pattern=settings.subject_pattern,
                       all_runs=settings.all_runs)
    checks.expect(bool(found.scans), f"--scans {folder}",
                  "T1-weighted scans (.nii, .nii.gz, .hdr and .img, .mgh or .mgz)" if not settings.suffix else
                  f"scans whose names end with {' or '.join(settings.suffix)}", "none",
                  "Check the folder; segmentations, masks and other contrasts are not scans." if not settings.suffix
                  else "Check --suffix.")
    return found


def check_out(folder: Path, out: Path) -> None:
    """Raise UserError if `out` is no place for slices of the scans in `folder`."""
    checks.expect(out.is_dir() or not out.exists(), f"--out {out}", "a folder", "a file", "Name another folder.")
    inside = out.resolve().is_relative_to(folder.resolve())
    checks.expect(not inside, f"--out {out}", "a folder outside of --scans", f"one inside {folder}",
                  "Raw scans stay as they are: name another folder.")


def listed(found: Found) -> list[str]:
    """Return what --list prints: a table with tabs between its columns, then the counts."""
    rows = [(scan.subject, scan.session, scan.run, scan.name, f"rejected: {scan.refused}" if scan.refused else "")
            for scan in found.scans]
    used = [scan for scan in found.scans if not scan.refused]
    lines = ["\t".join(re.sub(r"[\x00-\x1f\x7f]", lambda control: repr(control[0])[1:-1], cell) for cell in row)
             for row in (("subject", "session", "run", "scan"), *rows)]
    return [line.rstrip("\t") for line in lines] + [
        f"scans that would be read: {len(used)} of {len({scan.subject for scan in used})} subjects; rejected: "
        f"{len(rows) - len(used)}; skipped: {found.further} further scans of the same sessions (--all-runs), "
        f"{found.other} files whose names are not of T1-weighted scans (--suffix)"]


def extract(found: Found, folder: Path, settings: ExtractSettings, out: Path) -> list[str]:
    """Draw the slices of this run's part of the scans, and finish if all parts are done; return what is to be said.

    Raises: UserError with --strict at the first scan that cannot be used, or if `out` cannot be written.
    """
    slices_to_keep(found, folder, settings, out, recall(out, settings))  # refused before anything changes
    for split in SPLITS:
        make_folder(out / split)
    number, parts = settings.part
    mine = found.scans[number - 1::parts]
    with Journal(out, settings.part, plan_hash(found, settings), pixels_hash(settings)) as journal:
        past = recall(out, settings)
        taken = prefixes_of(slices_to_keep(found, folder, settings, out, past))
        if changes := changes_said(past, settings):
            print(f"changed since the last run: {changes}; what that touches is made anew")
        tasks = [_task(dataclasses.replace(scan, prefix=untaken(scan, taken)), settings, out, past) for scan in mine]
        if _touches_the_manifest(tasks, past):
            put_manifest_aside(out)
        rejected = 0
        with (tqdm(total=len(tasks), unit="scan", desc="extracting", leave=False) as bar,
              contextlib.closing(_results(tasks, settings.workers)) as results):
            for scan, outcome in zip(mine, results):
                if settings.strict:
                    refuse_rejected({scan.name: outcome})
                journal.add(scan.name, outcome)
                # Not before: a run that is killed may leave an image beside a row of the scan as it was.
                if not outcome.unchanged:
                    set_time(out, outcome.rows, outcome.changed)
                rejected += bool(outcome.reason)
                bar.set_postfix(rejected=rejected, refresh=False)
                bar.update()
        journal.end()
    said, missing = finish_if_done(found, folder, settings, out, parts)
    if missing:
        done = f"part {number} of {parts} is done: {len(mine)} scans, {rejected} of them rejected;"
        said = [f"{done} the manifest is written when all are done, not yet: {', '.join(map(str, missing))}"
                if number not in missing else f"{done} another part, which ended after it, has written the manifest"]
    return said


def merge(found: Found, folder: Path, settings: ExtractSettings, out: Path) -> list[str]:
    """Finish an extraction whose parts are all done; return what is to be said.

    Raises: UserError if some are not, or were done with other settings or scans.
    """
    begun = parts_begun(out)
    checks.expect(bool(begun), f"--merge, --out {out}", "parts that are done (--shard I/N)", "none",
                  "Run them first; the last one to end writes the manifest by itself.")
    for parts in begun:
        said, missing = finish_if_done(found, folder, settings, out, parts)
        if not missing:
            return said
    raise UserError(f"--merge, --out {out}: expected all {parts} parts done with these settings and scans, found "
                    f"{', '.join(map(str, missing))} not done. Run them: --shard {missing[0]}/{parts} and so on.")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises: UserError if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: expected a folder that can be made, found {(error.strerror or '').lower()}. "
                        "Name another folder.") from None


def _task(scan: Scan, settings: ExtractSettings, out: Path, past: Past) -> tuple:
    """What `extract_scan` is to know of a scan."""
    # A scan whose images have another name now is drawn anew: that name may be of another scan's, not drawn anew yet.
    known = [row for row in past.rows.get(scan.name, [])
             if Path(row["image"]).name == image_name(scan.prefix, row["plane"], int(row["index"]))]
    return scan, settings, out, own_split(scan.subject, settings.split, settings.seed), known


def _touches_the_manifest(tasks: list[tuple], past: Past) -> bool:
    """Whether an image that the last manifest names may be drawn over."""
    named = prefixes_of(past.manifest)
    for scan, settings, out, _, known in tasks:
        rows = still_wanted(scan.storage, settings, known)
        if scan.prefix.casefold() in named and not (
                rows and all(looks_unchanged(scan, out, row) for row in rows)):
            return True
    return False


def _results(tasks: list[tuple], workers: int) -> Iterator[Outcome]:
    """Yield each task's outcome in the order of the tasks, whatever the number of workers."""
    if min(workers, len(tasks)) <= 1:
        yield from map(_work, tasks)
        return
    # Not forkserver, which starts sooner but may import another checkout's modules: it does not know sys.path.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker)
    try:
        yield from pool.map(_work, tasks)
    except BrokenProcessPool:
        raise UserError(f"--workers {workers}: expected every worker to finish, found one that was ended from outside "
                        "(often for want of memory). Give fewer workers; running again goes on from here.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _work(task: tuple) -> Outcome:
    changed = newest_change(task[0])
    try:
        with np.errstate(all="ignore"):
            return Outcome(*extract_scan(*task), changed=changed)
    except UnusableScan as error:
        return Outcome([], reason=error.reason)
    except (ArithmeticError, ValueError) as error:  # NumPy's, of numbers near the largest, the smallest or each other
        return Outcome([], reason=f"expected voxels that can be computed with, found {error}. Repair the scan, or "
                                  "leave it out.")
    except MemoryError:
        return Outcome([], reason="expected a scan that fits into memory, found a larger one. Leave it out, or see "
                                  "its header.")


def _start_worker() -> None:
    """Signals are the main process's to handle; and a worker ends with it, also if it is killed."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
