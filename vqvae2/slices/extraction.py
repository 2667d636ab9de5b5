"""Scans -> their slices, on several processes, and the manifest: the work of `vqvae2 extract`."""

import contextlib
import dataclasses
import fcntl
import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from vqvae2.common.errors import UserError
from vqvae2.common.files import check_folder
from vqvae2.common.names import SPLITS
from vqvae2.scans import covariates
from vqvae2.scans.finding import Found, find_scans
from vqvae2.scans.readers import READERS
from vqvae2.settings.checks import expect
from vqvae2.slices.manifest import (
    changes_said,
    finish_if_done,
    pixels_hash,
    plan_hash,
    prefixes_of,
    refuse_rejected,
    slices_to_keep,
    untaken,
)
from vqvae2.slices.scan_slices import Outcome, lock, work_on, writing
from vqvae2.slices.settings import ExtractSettings


def find_and_check(folder: Path, settings: ExtractSettings) -> Found:
    """Return the scans in `folder`.

    Raises: UserError if there is none, or if --covariates cannot be used.
    """
    expect(folder.is_dir(), f"--scans {folder}", "a folder of scans", "a file" if folder.exists() else "nothing",
                  "Give the folder that holds them, or set OASIS_PATH.")
    if settings.covariates is not None:
        covariates.read_table(settings.covariates, settings.subject_column)
    found = find_scans(folder, suffixes=settings.suffix, subject_pattern=settings.subject_pattern,
                       all_runs=settings.all_runs)
    expect(bool(found.scans), f"--scans {folder}",
                  f"T1-weighted scans ({', '.join(READERS)})" if not settings.suffix else
                  f"scans whose names end with {' or '.join(settings.suffix)}", "none",
                  "Check the folder; segmentations, masks and other contrasts are not scans." if not settings.suffix
                  else "Check --suffix.")
    return found


def check_out(folder: Path, out: Path) -> None:
    """Raise UserError if `out` is no place for slices of the scans in `folder`."""
    check_folder(out, "--out")
    inside = out.resolve().is_relative_to(folder.resolve())
    expect(not inside, f"--out {out}", "a folder outside of --scans", f"one inside {folder}",
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
    """Draw the slices of this run's part of the scans, and finish if all scans are done; return the lines for the user.

    Raises: UserError with --strict at the first scan that cannot be used, or if `out` cannot be written.
    """
    taken = prefixes_of(slices_to_keep(found, folder, settings, out))  # raises before anything changes
    with writing(out):
        for split in SPLITS:
            (out / split).mkdir(parents=True, exist_ok=True)
    number, parts = settings.part
    with lock(out, (fcntl.LOCK_EX if parts == 1 else fcntl.LOCK_SH) | fcntl.LOCK_NB) as held:
        expect(held, f"--out {out}", "a folder in which no other extraction is at work", "one",
               "Wait for it to end, or name another folder.")
        if changes := changes_said(out, settings):
            print(f"changed since the last run: {changes}; what that touches is made anew")
        plan, pixels = plan_hash(found, settings), pixels_hash(settings)
        tasks = [(dataclasses.replace(scan, prefix=untaken(scan, taken)), settings, out, plan, pixels)
                 for scan in found.scans[number - 1::parts]]
        rejected = 0
        with (tqdm(total=len(tasks), unit="scan", desc="extracting", leave=False) as bar,
              contextlib.closing(_results(tasks, settings.workers)) as results):
            for outcome in results:
                if settings.strict:
                    refuse_rejected({outcome.scan: outcome})
                rejected += bool(outcome.reason)
                bar.set_postfix(rejected=rejected, refresh=False)
                bar.update()
    # A part that finds others at work need not wait for them: the last one to end finds nobody at work.
    with lock(out, fcntl.LOCK_EX | (fcntl.LOCK_NB if parts > 1 else 0)) as held:
        said, missing = finish_if_done(found, folder, settings, out) if held else ([], [])
    if said:
        return said
    expect(parts > 1, f"--out {out}", "scans and slices that stay as they are meanwhile",
           f"{len(missing)} changed, such as {missing[0] if missing else ''}", "Run the same command again.")
    undone = set(missing)
    waits = sorted({index % parts + 1 for index, scan in enumerate(found.scans) if scan.name in undone})
    return [f"part {number} of {parts} is done: {len(tasks)} scans, {rejected} of them rejected; the manifest is "
            f"written when all are done, not yet: {', '.join(map(str, waits)) or 'others are at work'}"]


def merge(found: Found, folder: Path, settings: ExtractSettings, out: Path) -> list[str]:
    """Finish an extraction whose parts are all done; return the lines for the user.

    Raises: UserError if a scan is not done, or was done with other settings.
    """
    with lock(out, fcntl.LOCK_EX):
        said, missing = finish_if_done(found, folder, settings, out)
    expect(not missing, f"--merge, --out {out}", "all scans done with these settings",
           f"{len(missing)} of {len(found.scans)} not done, such as {missing[0] if missing else ''}",
           "Run the parts first (--shard I/N); the last one to end writes the manifest by itself.")
    return said


def _results(tasks: list[tuple], workers: int) -> Iterator[Outcome]:
    """Yield each task's outcome in the order of the tasks, whatever the number of workers."""
    if min(workers, len(tasks)) <= 1:
        yield from itertools.starmap(work_on, tasks)
        return
    # Not forkserver, which starts sooner but may import another checkout's modules: it does not know sys.path.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker)
    try:
        yield from pool.map(work_on, *zip(*tasks))
    except BrokenProcessPool:
        raise UserError(f"--workers {workers}: expected every worker to finish, found one that was ended from outside "
                        "(often for want of memory). Give fewer workers; running again goes on from here.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave signals to the main process, and end with that process, also if it is killed."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
