"""Scans -> a folder of slices and their manifest that can be trusted, whatever interrupts the work: `vqvae2 extract`.

The folder's manifest is there only while each image that it names is as it says. Before an image is about to change,
the manifest is put aside; it comes back, new, when all is done:

    manifest.csv  rejected.csv  extraction.json      of the last extraction that was finished
    index.html                                       the same for a person to look at (page.py)
    .manifest-before.csv                             the last manifest, put aside
    .scans/                                          what became of each scan (scan_slices.py)

Parts (--shard) share nothing but the folder. Whoever finds that all scans are done locks the folder, so that nobody
else is at work, and writes the manifest from the sidecars, so it cannot depend on the number of parts.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from vqvae2.common import folder_lock, memory, output
from vqvae2.common.errors import STOP_SIGNALS, UserError, expect, flag
from vqvae2.common.files import LEFT_OVERS, check_folder
from vqvae2.common.names import SPLITS
from vqvae2.common.progress import Bar
from vqvae2.scans import covariates, dicom
from vqvae2.scans.finding import FoundScans, Scan, find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.identities import stem_of
from vqvae2.scans.same_heads import LIKELY_SAME, from_text, likely_same
from vqvae2.scans.volumes import READERS, files_of, same_voxels, suffix_of
from vqvae2.settings import parsing
from vqvae2.settings.stored import read_json
from vqvae2.slices import keras_names
from vqvae2.slices.page import NOT_FROM_THE_HEADER, ShownScan, page_bytes, warnings_of
from vqvae2.slices.planes import RECIPE
from vqvae2.slices.scan_slices import (
    BEFORE,
    HEAD,
    MANIFEST,
    PAGE,
    SIDECARS,
    Outcome,
    csv_bytes,
    image_name,
    in_place,
    lock,
    middle_of,
    note,
    picture_of,
    prefix_of,
    put_manifest_aside,
    read_table,
    recall,
    sidecar,
    still_wanted,
    times_of,
    work_on,
    write,
    writing,
)
from vqvae2.slices.settings import ExtractSettings
from vqvae2.slices.splits import split_subjects

COLUMNS = ("image", "split", "subject", "session", "scan", "plane", "index", "position_mm", "low", "high", "sha256",
           "orientation", "orientation_from", "background", "nan_voxels", "volume", "run", "age", "sex", "scan_sha256",
           "voxels", "archive", "voxel_size_mm", "brain_mm", "geometry", "mask", "mask_sha256")
SETTINGS_OF_PIXELS = ("per_scan", "extent", "size", "field_of_view", "bits", "trust")
"""These settings change every image. Others, such as the planes, are compared scan by scan."""
BYTES_OF_WORKER = 128 << 20
"""The memory of a worker that has not read a scan yet."""
GONE = "scan is gone"
"""The page's kind of warning for slices of a scan that is no longer there."""
SAME = "likely the same person"
"""The page's kind of warning for two subjects whose heads are more alike than those of two people."""
MOST_PAIRS, MOST_SAME_ON_A_CARD = 1000, 3
NOT_IN_THE_REPORT = ("preset", "archives", "scans", "out", "workers", "strict", "shard", "merge", "prune", "list",
                     "covariates")
NOT_FOR_WORKERS = {*STOP_SIGNALS} - {signal.SIGTERM}
"""A pool that has lost a worker ends the others with SIGTERM: they may wait for what the lost one had locked."""
IMAGE_NAME = rf"({'|'.join(SPLITS)})/[^/\\]+_(axial|coronal|sagittal)\d{{3,}}\.png"


def find_and_check(folder: Path, settings: ExtractSettings) -> FoundScans:
    """Return the scans in `folder`.

    Raises: UserError if there is none, if it is not beyond doubt whose they are, if --covariates cannot be used, or if
        the cache of converted DICOM lies in `folder`.
    """
    expect(folder.is_dir(), f"--scans {folder}", "a folder of scans", "a file" if folder.exists() else "nothing",
                  "Give the folder that holds them, or set OASIS_PATH.")
    cache = dicom.cache_folder()
    inside = cache.relative_to(folder.absolute()).parts if cache and cache.is_relative_to(folder.absolute()) else (".",)
    expect(any(part.startswith(".") for part in inside), f"VQVAE2_CACHE {cache}", "a folder outside of --scans",
           f"one inside {folder}", "Raw scans stay as they are: name another folder.")
    if settings.covariates is not None:
        covariates.read_table(settings.covariates, settings.subject_column)
    found = find_scans(folder, suffixes=settings.suffix, subject_pattern=settings.subject_pattern,
                       all_runs=settings.all_runs, archive=settings.archive, mask_suffixes=settings.mask_suffixes)
    expect(bool(found.scans or not found.without_extra), f"--scans {folder}",
           "the packages dcm2niix and pydicom, which read DICOM",
           f"none, and {_number(len(found.without_extra), 'folder')} of DICOM files", f"Install them: {dicom.INSTALL}.")
    expect(bool(found.scans), f"--scans {folder}",
                  f"T1-weighted scans ({', '.join(READERS)})" if not settings.suffix else
                  f"scans whose names end with {' or '.join(settings.suffix)}", "none",
                  "Check the folder; segmentations, masks and other contrasts are not scans." if not settings.suffix
                  else "Check --suffix.")
    if found.doubt is not None:
        ways = "; ".join(f"--archive {way.archive} makes {_number(way.people, 'subject')} ("
                         f"{', '.join(f'{path} -> {subject}' for path, subject in way.examples)})"
                         for way in found.doubt.choices)
        raise UserError(f"--scans {folder}: expected paths that name each person beyond doubt, found "
                        f"{_number(found.doubt.files, 'file')} of no known archive that can be read as: {ways}. "
                        "Confirm one of these, or give --subject-pattern; --archives lists the known archives.")
    return found


def check_out(folder: Path, out: Path) -> None:
    """Raise UserError if `out` is no place for slices of the scans in `folder`."""
    check_folder(out, "--out")
    expect(not out.resolve().is_relative_to(folder.resolve()), f"--out {out}", "a folder outside of --scans",
           f"one inside {folder}", "Raw scans stay as they are: name another folder.")


def listed(found: FoundScans) -> list[str]:
    """Return what --list prints: a table with tabs between its columns, then the counts."""
    rows = [(scan.subject, scan.session, scan.run, scan.name, f"rejected: {scan.refused}" if scan.refused else
             "; ".join([*([f"instead of {', '.join(scan.instead_of)}"] if scan.instead_of else []),
                        *([f"within the mask {scan.mask_name}"] if scan.mask else [])])) for scan in found.scans]
    used = [scan for scan in found.scans if not scan.refused]
    lines = ["\t".join(re.sub(r"[\x00-\x1f\x7f]", lambda control: repr(control[0])[1:-1], cell) for cell in row)
             for row in (("subject", "session", "run", "scan"), *rows)]
    return [line.rstrip("\t") for line in lines] + [
        f"scans that would be read: {len(used)} of {len({scan.subject for scan in used})} subjects; rejected: "
        f"{len(rows) - len(used)}; skipped: {found.further} further scans of the same sessions (--all-runs), "
        f"{found.other} files whose names are not of T1-weighted scans (--suffix)",
        *([f"not read: {_number(len(found.unreadable), 'file')} in a format that is not supported, such as "
           f"{found.unreadable[0]}"] if found.unreadable else []),
        *([f"not read: {_number(len(found.without_extra), 'folder')} of DICOM files, such as {found.without_extra[0]}; "
           f"to read them: {dicom.INSTALL}"] if found.without_extra else [])]


def extract(found: FoundScans, folder: Path, settings: ExtractSettings, out: Path) -> list[str]:
    """Draw the slices of this run's part of the scans, and finish if all scans are done; return the lines for the user.

    Raises: UserError with --strict at the first scan that cannot be used, or if `out` cannot be written.
    """
    taken = prefixes_of(slices_to_keep(found, folder, settings, out))  # raises before anything changes
    number, parts = settings.part
    # A part that looks whether all are done holds the folder alone for a moment; one that was stopped needs some more.
    with lock(out, (fcntl.LOCK_EX if parts == 1 else fcntl.LOCK_SH) | fcntl.LOCK_NB, folder_lock.PATIENCE) as held:
        expect(held, f"--out {out}", "a folder in which no other extraction is at work", "one",
               "Wait for it to end, or name another folder.")
        with writing(out):
            for split in SPLITS:
                (out / split).mkdir(parents=True, exist_ok=True)
        if changes := changed_settings(out, settings):
            print(f"changed since the last run: {changes}; what that touches is made anew")
        plan, pixels = plan_hash(found, settings), pixels_hash(settings)
        tasks = [(dataclasses.replace(scan, prefix=own_prefix(scan, taken)), settings, out, plan, pixels)
                 for scan in found.scans[number - 1::parts]]
        rejected = 0
        with (Bar(total=len(tasks), of_all=(0, len(tasks)), unit="scan", desc="extracting") as bar,
              contextlib.closing(_results(tasks, settings.workers)) as results):
            for outcome in results:
                if settings.strict:
                    refuse_rejected([outcome])
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


def merge(found: FoundScans, folder: Path, settings: ExtractSettings, out: Path) -> list[str]:
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
    count = max(1, min(workers, len(tasks)))
    # Shared out now: later, what a worker holds from its last scan would count as not free for the next one.
    share = memory.memory_available() // count
    if count == 1:
        with memory.only(share):
            yield from itertools.starmap(work_on, tasks)
        return
    # Not forkserver, which starts sooner but may import another checkout's modules: it does not know sys.path.
    context = multiprocessing.get_context("spawn")
    # New processes inherit what is blocked. That keeps a closed terminal from ending workers that are just starting,
    # and multiprocessing's tracker of resources, which knows of SIGINT and SIGTERM only.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
    try:
        pool = ProcessPoolExecutor(count, context, _start_worker, (share - BYTES_OF_WORKER,))
        outcomes = pool.map(work_on, *zip(*tasks))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from outcomes
    except BrokenProcessPool:
        raise UserError(f"--workers {workers}: expected every worker to finish, found one that was ended from outside "
                        "(often for want of memory). Give fewer workers; running again goes on from here.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(share: int) -> None:
    """Leave signals to the main process, and end with that process, also if it is killed; take `share` bytes at most.
    """
    output.guard()
    memory.set_room(share)
    for each in NOT_FOR_WORKERS:
        signal.signal(each, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def pixels_hash(settings: ExtractSettings) -> str:
    """Return a hash of what decides how a scan is drawn: equal hash and scan, equal bytes."""
    values = {name: _reported(settings)[name] for name in SETTINGS_OF_PIXELS}
    return hashlib.sha256(json.dumps([RECIPE, values], sort_keys=True).encode()).hexdigest()


def plan_hash(found: FoundScans, settings: ExtractSettings) -> str:
    """Return a hash of what all parts of one extraction must agree on: settings and scans."""
    scans = [(scan.name, scan.prefix, scan.refused, scan.mask_name) for scan in found.scans]
    return hashlib.sha256(json.dumps([RECIPE, _reported(settings), scans]).encode()).hexdigest()


def manifest_before(out: Path) -> dict[str, list[dict]]:
    """Return the rows of the last manifest by scan, also if it was put aside."""
    manifest: dict[str, list[dict]] = defaultdict(list)
    tables = ([row for row in read_table(out / name) if row.get("scan") and
               re.fullmatch(IMAGE_NAME, row.get("image") or "")] for name in (MANIFEST, BEFORE))  # the newer one first
    for row in next(filter(None, tables), []):
        manifest[row["scan"]].append(row)
    return manifest


def slices_to_keep(found: FoundScans, folder: Path, settings: ExtractSettings, out: Path) -> dict[str, list[dict]]:
    """Return the rows, by scan, of the last manifest's scans whose files are gone; none with --prune.

    Raises: UserError if their images would have to be drawn anew, because of other settings, or as they were damaged.
    """
    here, pixels, kept = {scan.name for scan in found.scans}, pixels_hash(settings), {}
    for name, rows in sorted(manifest_before(out).items()):
        # The folder of a DICOM series may be there without its files.
        if not (settings.prune or name in here or (os.path.lexists(folder / name) and files_of(folder / name))):
            before = recall(out, name)
            # Its layout cannot be asked any more, so what it was taken for stands.
            right = before is not None and before.pixels == pixels and _may_be_masked_so(rows[0], settings)
            kept[name] = right and in_place(out, still_wanted(rows[0]["orientation"], settings, rows),
                                            prefix_of(rows[0]))
    lost = [name for name, rows in kept.items() if not rows]
    expect(not lost, f"--out {out}", "scans for all slices that must be drawn anew, after other settings or damage",
           f"none for {len(lost)} of them, such as {lost[0] if lost else ''}",
           "Give --prune to remove their slices, or name another folder.")
    return kept


def _may_be_masked_so(row: dict, settings: ExtractSettings) -> bool:
    """Return whether the brain mask of an earlier run, if there was one, is one that the settings ask for."""
    mask = stem_of(row.get("mask") or "") or ""
    return not mask or mask.lower().endswith(tuple(suffix.lower() for suffix in settings.mask_suffixes))


def finish_if_done(found: FoundScans, folder: Path, settings: ExtractSettings,
                   out: Path) -> tuple[list[str], list[str]]:
    """Finish an extraction if all scans are done; return the lines for the user, or the names of scans not done.

    Whoever calls this holds the lock of `out`.
    Raises: UserError as `finish` does.
    """
    plan = plan_hash(found, settings)
    gone = slices_to_keep(found, folder, settings, out)
    outcomes = {scan.name: outcome for scan in found.scans if (outcome := recall(out, scan.name)) is not None
                and outcome.plan == plan and outcome.times == times_of(scan)}
    if len(outcomes) == len(found.scans):
        taken = prefixes_of(gone)
        for scan in found.scans:
            outcome = outcomes.pop(scan.name)
            there = in_place(out, outcome.rows, *map(prefix_of, outcome.rows[:1]), own_prefix(scan, taken), scan.prefix)
            if len(there) == len(outcome.rows):
                outcomes[scan.name] = dataclasses.replace(outcome, rows=there)
    missing = [scan.name for scan in found.scans if scan.name not in outcomes]
    return ([], missing) if missing else (finish(found, settings, out, outcomes, gone), [])


def finish(found: FoundScans, settings: ExtractSettings, out: Path, outcomes: dict[str, Outcome],
           gone: dict[str, list[dict]]) -> list[str]:
    """Write manifest and reports, and move and remove images accordingly; return the lines for the user.

    Args:
        found: the scans.
        settings: the settings of the run.
        out: folder of the slices.
        outcomes: what became of every scan, by its name, and where its images are now.
        gone: rows of scans that are gone, and where their images are now.
    Raises: UserError with --strict for a duplicate, if `out` cannot be written, or, when all is written, if it is that
        no scan can be used.
    """
    outcomes = _without_duplicates(found, outcomes, out, settings.volume)
    if settings.strict:
        refuse_rejected(outcomes.values())
    used = [scan for scan in found.scans if outcomes[scan.name].rows]
    gone = {name: rows for name, rows in gone.items()
            if not _was_moved(rows, [outcomes[scan.name].rows for scan in used])}
    taken = prefixes_of(gone)
    splits, lent = split_subjects([*(scan.subject for scan in used), *(rows[0]["subject"] for rows in gone.values())],
                                  settings.split, settings.seed)
    people = covariates.join(used, found.tables, settings.covariates, settings.subject_column, COLUMNS)
    prefixes = {scan.name: own_prefix(scan, taken) for scan in used} | {
        name: prefix_of(rows[0]) for name, rows in gone.items()}
    rows = [{**row, "subject": scan.subject, "session": scan.session, "run": scan.run, "archive": scan.archive,
             **people.values[scan.name]}
            for scan in used for row in outcomes[scan.name].rows] + [row for rows in gone.values() for row in rows]
    places = {row["image"]: f"{splits[row['subject']]}/{image_name(prefixes[row['scan']], row['plane'], row['index'])}"
              for row in rows}
    manifest = [{**row, "image": places[row["image"]], "split": splits[row["subject"]]} for row in rows]
    columns = dict.fromkeys((*COLUMNS, *people.columns, *(name for rows in gone.values() for name in rows[0])))
    rejected = [{"scan": scan.name, "reason": outcomes[scan.name].reason} for scan in found.scans
                if outcomes[scan.name].reason]
    report = _report(settings, found, manifest, len(rejected), len(gone), splits, lent)
    links = keras_names.links_of(manifest) if settings.layout == "keras_png_slices" else []
    removed = _place(out, places)
    said = keras_names.link(out, links)
    write(out / "rejected.csv", csv_bytes(("scan", "reason"), rejected))
    pictures = {name: outcome.pictures for name in (*(scan.name for scan in used), *gone)
                if (outcome := outcomes.get(name) or recall(out, name)) is not None}
    alike = _likely_same(manifest, pictures, out)
    report["likely_same"] = alike
    shown = _shown(manifest, pictures, set(gone), alike, settings)
    write(out / PAGE, page_bytes(shown, [(row["scan"], row["reason"]) for row in rejected], found.left_out,
                                synthetic=found.synthetic))
    write(out / "extraction.json", (json.dumps(report, indent=1, ensure_ascii=True) + "\n").encode())
    write(out / MANIFEST, csv_bytes(columns, manifest))
    sidecars = {sidecar(out, name) for name in (*outcomes, *gone)}
    with writing(out):
        for path in ({*(out / SIDECARS).glob("*.json")} - sidecars) | {out / BEFORE}:
            path.unlink(missing_ok=True)
    if not manifest:
        raise UserError(f"--scans: expected at least one scan that can be used, found none of {len(rejected)}. See "
                        f"{out / 'rejected.csv'}; {_most_rejected(outcomes)}")
    return [*said, *_summary(report["counts"], used, outcomes, people, removed, alike, settings, out)]


def _likely_same(manifest: list[dict], pictures: dict[str, dict[str, str]], out: Path) -> list[dict]:
    """Return the pairs of scans that are likely of one person under two names; what was found last time, if the scans
    and their subjects are the same.

    Args:
        manifest: the rows.
        pictures: `Outcome.pictures` by scan.
        out: folder of the slices.
    """
    firsts = {row["scan"]: row for row in reversed(manifest)}
    names = [name for name in dict.fromkeys(row["scan"] for row in manifest) if HEAD in pictures.get(name, {})]
    texts = [pictures[name][HEAD] for name in names]
    asked = json.dumps([RECIPE, LIKELY_SAME, [firsts[name]["subject"] for name in names], texts])
    asked = hashlib.sha256(asked.encode()).hexdigest()
    try:
        before = read_json(out / SIDECARS / "likely-same", "the pairs of the last extraction")
        pairs = [(int(first), int(second), float(alike)) for first, second, alike in before[asked]]
    except (UserError, ValueError, TypeError, KeyError):
        pairs = likely_same([from_text(text) for text in texts], [firsts[name]["subject"] for name in names])
        write(out / SIDECARS / "likely-same", json.dumps({asked: pairs}).encode(), synced=False)
    return [{"scans": [names[first], names[second]],
             "subjects": [firsts[names[each]]["subject"] for each in (first, second)],
             "splits": [firsts[names[each]]["split"] for each in (first, second)], "correlation": round(alike, 3)}
            for first, second, alike in pairs[:MOST_PAIRS]]


def _shown(manifest: list[dict], pictures: dict[str, dict[str, str]], gone: set[str], alike: list[dict],
           settings: ExtractSettings) -> list[ShownScan]:
    """Return what the page tells about each scan of the manifest.

    Args:
        manifest: the rows.
        pictures: `Outcome.pictures` by scan.
        gone: the names of the scans that are not there any more.
        alike: what `_likely_same` found.
        settings: the settings of the run.
    """
    same = defaultdict(list)
    for pair in alike:
        for own, other in ((0, 1), (1, 0)):
            same[pair["scans"][own]].append(f"{SAME}: subject {pair['subjects'][other]} ({pair['splits'][other]}), "
                                            f"{pair['scans'][other]}, correlation {pair['correlation']:.2f}")
    by_scan: dict[str, list[dict]] = defaultdict(list)
    for row in manifest:
        by_scan[row["scan"]].append(row)
    shown = []
    for name, rows in by_scan.items():
        middles = {plane: middle_of([row["image"] for row in rows if row["plane"] == plane])
                   for plane in dict.fromkeys(row["plane"] for row in rows)}
        thumbnails = [picture_of(pictures.get(name, {}).get(plane, "")) for plane in middles]
        planes = tuple(middles) if all(thumbnails) else ()
        first, files = rows[0], tuple(middles.values())
        kept = (f"{GONE}: its slices were kept (--prune removes them)",) if name in gone else ()
        shown.append(ShownScan(
            name, first["subject"], first["session"], first["run"], first["split"], first.get("archive", ""),
            first["orientation"], first["orientation_from"], *(first.get(column, "").replace("x", " x ")
                                                               for column in ("voxel_size_mm", "brain_mm")),
            first["background"], first.get("mask", ""), len(rows), files if planes else (), planes,
            b"".join(thumbnails) if planes else b"",
            (*kept, *same[name][:MOST_SAME_ON_A_CARD],
             *([f"{SAME}: and {more} others"] if (more := len(same[name]) - MOST_SAME_ON_A_CARD) > 0 else []),
             *warnings_of(first, settings.planes, settings.field_of_view))))
    return shown


def refuse_rejected(outcomes: Iterable[Outcome]) -> None:
    """Raise UserError if one of these scans is rejected; for --strict."""
    if rejected := next((outcome for outcome in outcomes if outcome.reason), None):
        raise UserError(f"{rejected.scan}: {rejected.reason} Without --strict it is skipped.")


def own_prefix(scan: Scan, taken: set[str]) -> str:
    """Return how the names of the scan's images begin, not as those of a scan that is gone and whose slices stay."""
    if scan.prefix.casefold() not in taken:
        return scan.prefix
    return f"{scan.prefix}_{hashlib.sha256(scan.name.encode()).hexdigest()[:8]}"


def prefixes_of(rows_by_scan: dict[str, list[dict]]) -> set[str]:
    """Return how the names of these images begin, in lower case."""
    return {prefix_of(rows[0]).casefold() for rows in rows_by_scan.values()}


def changed_settings(out: Path, settings: ExtractSettings) -> str:
    """Return which settings differ from those of the last extraction, such as `--size 128 (was 256)`."""
    now, before = _reported(settings), {}
    with contextlib.suppress(UserError, ValueError, TypeError, KeyError):
        before = dict(read_json(out / "extraction.json", "what was extracted")["settings"])
    return ", ".join(f"{flag(name)} {_words(now[name])} (was {_words(before[name])})"
                     for name in now if before.get(name, now[name]) != now[name])


def _words(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text not in ("", "None", "False") else "not given"


def _without_duplicates(found: FoundScans, outcomes: dict[str, Outcome], out: Path,
                        number: int | None) -> dict[str, Outcome]:
    """Reject each scan that has the same voxels as one before it; the CRC is compared first, then every voxel."""
    first: dict[str, list[Scan]] = defaultdict(list)
    result = dict(outcomes)
    for scan in (scan for scan in found.scans if outcomes[scan.name].rows):
        likely = first[outcomes[scan.name].rows[0]["voxels"]]
        try:
            twin = next((other for other in likely if same_voxels(other.path, scan.path, number)), None)
            found_twin = twin and f"the same voxels in {twin.name}. That one is used; remove one of them."
        except UnusableScan as error:  # deleted or damaged since it was drawn
            found_twin = f"the same check sum in {likely[0].name}, and cannot compare them: {error}"
        if not found_twin:
            likely.append(scan)
            continue
        result[scan.name] = dataclasses.replace(
            outcomes[scan.name], rows=[], reason=f"expected a scan that is there once, found {found_twin}")
        note(out, result[scan.name])
    return result


def _was_moved(rows: list[dict], others: list[list[dict]]) -> bool:
    """Return whether a scan that is gone has only another name now."""
    images = sorted(row["sha256"] for row in rows)
    return any(rows[0]["voxels"] == other[0]["voxels"] and images == sorted(row["sha256"] for row in other)
               for other in others)


def _place(out: Path, places: dict[str, str]) -> int:
    """Move images from where they are to where they belong, and remove all others of an extraction's names; return how
    many were removed."""
    here = {f"{split}/{path.name}" for split in SPLITS for path in (out / split).glob("*.png")}
    stale = {image for image in here if re.fullmatch(IMAGE_NAME, image)} - {*places, *places.values()}
    moves = [(before, after) for before, after in places.items() if before != after]
    if moves or stale:
        put_manifest_aside(out)
    with writing(out):
        for before, after in moves:
            with contextlib.suppress(FileNotFoundError):  # where a disk has no locks, another part has moved it already
                os.replace(out / before, out / after)
        for path in (*(out / image for image in stale),
                     *(path for place in ("", SIDECARS, *SPLITS, *keras_names.FOLDERS.values())
                       for path in (out / place).glob(LEFT_OVERS))):
            path.unlink(missing_ok=True)
    return len(stale)


def _report(settings: ExtractSettings, found: FoundScans, manifest: list[dict], rejected: int, gone: int,
            splits: dict[str, str], lent: dict[str, str]) -> dict:
    """Return what extraction.json holds: no time, host, worker count or path, so that equal work gives equal bytes."""
    images, subjects = Counter(row["split"] for row in manifest), Counter(splits.values())
    converts = any(suffix_of(scan.name) is None and not scan.refused for scan in found.scans)
    versions = {name: importlib.metadata.version(name)
                for name in ("numpy", "scipy", "nibabel", "pillow", *(("dcm2niix",) if converts else ()))}
    return {"schema": 1, "settings": _reported(settings), "recipe": RECIPE, "pixels": pixels_hash(settings),
            "versions": versions,
            "counts": {"scans": len(found.scans), "used": len({row["scan"] for row in manifest}) - gone,
                       "rejected": rejected, "skipped": found.further, "gone": gone,
                       "subjects": {split: subjects[split] for split in SPLITS},
                       "images": {split: images[split] for split in SPLITS}},
            **({"synthetic": True} if found.synthetic else {}),
            "lent": {subject: {"from": lent[subject], "to": splits[subject]} for subject in sorted(lent)}}


def _reported(settings: ExtractSettings) -> dict:
    values = {key: value for key, value in parsing.as_dict(settings).items() if key not in NOT_IN_THE_REPORT
              and (key, value) != ("layout", "oasis")}  # so that reports are as they were before there was a choice
    # 224, a default, and 224.0, which it is when it is given, are one setting.
    return json.loads(json.dumps(values), parse_float=lambda text: int(text[:-2]) if text[-2:] == ".0" else float(text))


def _summary(counts: dict, used: list[Scan], outcomes: dict[str, Outcome], people: covariates.Covariates, removed: int,
             alike: list[dict], settings: ExtractSettings, out: Path) -> list[str]:
    """Return the lines that the user is told at the end; the line before the last counts."""
    orientations = Counter((row["orientation_from"], row["orientation"]) for scan in used
                           for row in outcomes[scan.name].rows[:1] if row["orientation_from"] in NOT_FROM_THE_HEADER)
    firsts = [outcomes[scan.name].rows[0] for scan in used]
    heads = [row["scan"] for row in firsts if row["background"] == "otsu"]
    geometry = [f"{row['scan']} ({row['geometry']})" for row in firsts if row["geometry"]]
    of_head, of_geometry = (next(iter(names), "") for names in (heads, geometry))
    apart = sum(len(set(pair["splits"])) > 1 for pair in alike)
    worst = sorted(alike, key=lambda pair: len(set(pair["splits"])) < 2)[:1]
    pair = " and ".join(f"{scan} ({split})" for first in worst for scan, split in zip(first["scans"], first["splits"]))
    names = ", ".join(people.missing[:5]) + (", …" if len(people.missing) > 5 else "")
    lines = [
        *((scans, f"orientation: {_number(scans, 'scan')} without one in the header, taken for {storage} by "
                  f"{NOT_FROM_THE_HEADER[place]}") for (place, storage), scans in sorted(orientations.items())),
        (len(heads), f"head: {_number(len(heads), 'scan')} with skull and air around it, such as {of_head}; --extent "
                     "and percentiles are of the whole head, and the shipped weights have seen stripped brains only. A "
                     "brain mask beside the scan would be applied (--mask-suffix)"),
        (len(geometry), f"geometry: {_number(len(geometry), 'scan')} that other programs may take otherwise, such as "
                        f"{of_geometry} (--trust sform or qform chooses)"),
        (len(alike), f"{SAME}: {_number(len(alike), 'pair')} of scans of two subjects, {apart} of them in two splits, "
                     f"such as {pair}; if so, give both one subject (--subject-pattern), or leave one out"),
        *((1, f"covariates: {left_out}") for left_out in people.left_out),
        (len(people.missing), f"covariates: no row for {_number(len(people.missing), 'subject')}: {names}"),
        (counts["gone"], f"gone: {_number(counts['gone'], 'scan')} no longer there, whose slices were kept (--prune "
                         "removes them)"),
        (removed, f"removed: {_number(removed, 'slice')} that these scans and settings do not ask for"),
        (counts["rejected"], f"rejected: {_number(counts['rejected'], 'scan')}, see {out / 'rejected.csv'}; "
                             f"{_most_rejected(outcomes)}")]
    unchanged = sum(outcomes[scan.name].unchanged for scan in used)
    images = ", ".join(f"{split} {counts['images'][split]} of {_number(counts['subjects'][split], 'subject')}"
                       for split in SPLITS)
    return [*(line for number, line in lines if number),
            f"used {_number(counts['used'], 'scan')} ({unchanged} of them unchanged since the last run), rejected "
            f"{counts['rejected']}, skipped {counts['skipped']} further scans of the same sessions; images: {images}; "
            f"manifest: {out / MANIFEST}",
            f"look at every scan: {out / PAGE}"]


def _most_rejected(outcomes: Mapping[str, Outcome]) -> str:
    """Return the most frequent reason why a scan was rejected; "" where none was."""
    reasons = Counter(outcome.reason for outcome in outcomes.values() if outcome.reason)
    return next((f"{'most often' if times > 1 else 'such as'}: {reason}" for reason, times in reasons.most_common(1)),
                "")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
