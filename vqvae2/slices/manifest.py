"""Scans and what became of each -> a folder of slices that can be trusted, whatever interrupted the work.

The folder's manifest is there only while each image that it names is as it says. Before one is about
to change, the manifest is put aside; it comes back, new, when all is done. Meanwhile every finished
scan is one line in the journal of its part, from which a later run goes on:

    manifest.csv  rejected.csv  extraction.json      of the last extraction that was finished
    .manifest-before.csv                             the last manifest, put aside
    .part-I-of-N.jsonl                               journals; the part is done when its last line says so

Parts (--shard) share nothing but the folder. Whoever finds all journals done locks them, so that nobody else is
at work, and writes the manifest from them, so it cannot depend on the number of parts.
"""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
from collections import Counter
from pathlib import Path

from vqvae2.common.errors import UserError
from vqvae2.common.names import SPLITS
from vqvae2.scans import covariates
from vqvae2.scans.covariates import Covariates, Person
from vqvae2.scans.finding import Found, Scan
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.volumes import same_voxels
from vqvae2.settings import checks, parsing
from vqvae2.settings.checks import expect
from vqvae2.slices import keras_names
from vqvae2.slices.journal import Outcome, drawn_before, nobody_at_work, outcomes_of_parts, remove_journals, writing
from vqvae2.slices.planes import RECIPE
from vqvae2.slices.scan_slices import TEMPORARY, csv_bytes, image_name, rows_in_place, still_wanted, write
from vqvae2.slices.settings import ExtractSettings
from vqvae2.slices.splits import split_subjects

MANIFEST, BEFORE = "manifest.csv", ".manifest-before.csv"
COLUMNS = ("image", "split", "subject", "session", "scan", "plane", "index", "position_mm", "low", "high", "sha256",
           "orientation", "orientation_from", "background", "nan_voxels", "volume", "run", "age", "sex", "scan_sha256",
           "voxels")
OF_A_SCAN = tuple(column for column in COLUMNS if column not in ("split", "age", "sex"))
"""What `slices.extract_scan` returns; the rest is decided at the end."""
SETTINGS_OF_PIXELS = ("per_scan", "extent", "size", "field_of_view", "bits")
"""Settings that change every image. Others, such as the planes, are compared scan by scan."""
NOT_FROM_THE_HEADER = {"layout": "the archive's layout", "assumed": "--assume-orientation"}
NOT_IN_THE_REPORT = ("scans", "out", "workers", "strict", "shard", "merge", "prune", "list", "covariates")
IMAGE_NAME = rf"({'|'.join(SPLITS)})/[^/\\]+_(axial|coronal|sagittal)\d{{3,}}\.png"


@dataclasses.dataclass(frozen=True)
class Past:
    """What earlier runs left in the folder of slices."""

    rows: dict[str, list[dict]]
    """Of each scan whose images were drawn with the same settings of pixels."""
    manifest: dict[str, list[dict]]
    """Rows of the last manifest, by scan, with all its columns."""
    images: set[str]
    """Every image that an earlier run is known to have written."""
    settings: dict
    """Those of the last extraction, as in extraction.json."""


def pixels_hash(settings: ExtractSettings) -> str:
    """Return a hash of what decides how a scan is drawn: equal hash and scan, equal bytes."""
    values = {name: _reported(settings)[name] for name in SETTINGS_OF_PIXELS}
    return hashlib.sha256(json.dumps([RECIPE, values], sort_keys=True).encode()).hexdigest()


def plan_hash(found: Found, settings: ExtractSettings) -> str:
    """Return a hash of what all parts of one extraction must agree on: settings and scans."""
    scans = [(scan.name, scan.prefix, scan.refused) for scan in found.scans]
    return hashlib.sha256(json.dumps([RECIPE, _reported(settings), scans]).encode()).hexdigest()


def recall(out: Path, settings: ExtractSettings) -> Past:
    """Return what manifest and journals tell of earlier runs in `out`."""
    pixels_before, settings_before = None, {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        report = json.loads((out / "extraction.json").read_text(encoding="utf-8"))
        pixels_before, settings_before = report["pixels"], dict(report["settings"])
    manifest: dict[str, list[dict]] = {}
    for name in (BEFORE, MANIFEST):  # the newer one last
        with contextlib.suppress(OSError, csv.Error), \
                open(out / name, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.DictReader(file)
                    if row.get("scan") and re.fullmatch(IMAGE_NAME, row.get("image") or "")]
            manifest = manifest if not rows else {}
            for row in rows:
                manifest.setdefault(row["scan"], []).append(row)
    pixels = pixels_hash(settings)
    records = [(pixels_before, rows) for rows in manifest.values()] + drawn_before(out)
    return Past({rows[0]["scan"]: [{key: row[key] for key in OF_A_SCAN} for row in rows] for key, rows in records
                 if key == pixels and all(set(OF_A_SCAN) <= set(row) for row in rows)},
                manifest, {row["image"] for _, rows in records for row in rows}, settings_before)


def put_manifest_aside(out: Path) -> None:
    """Take the manifest away while images that it names change."""
    with writing(out), contextlib.suppress(FileNotFoundError):
        os.replace(out / MANIFEST, out / BEFORE)


def slices_to_keep(found: Found, folder: Path, settings: ExtractSettings, out: Path,
                   past: Past) -> dict[str, list[dict]]:
    """Return the rows, by scan, of the last manifest's scans whose files are gone; none with --prune.

    Raises: UserError if their images would have to be drawn anew, because of other settings, or as they were damaged.
    """
    here = {scan.name for scan in found.scans}
    gone = [] if settings.prune else sorted(
        name for name in past.manifest if name not in here and not os.path.lexists(folder / name))
    # Its layout cannot be asked any more, so what it was taken for stands.
    kept = {name: rows_in_place(out, still_wanted(past.rows[name][0]["orientation"], settings, past.manifest[name]))
            if name in past.rows else [] for name in gone}
    lost = [name for name in gone if not kept[name]]
    expect(not lost, f"--out {out}", "scans for all slices that must be drawn anew, after other settings or damage",
           f"none for {len(lost)} of them, such as {lost[0] if lost else ''}",
           "Give --prune to remove their slices, or name another folder.")
    return kept


def finish_if_done(found: Found, folder: Path, settings: ExtractSettings, out: Path,
                   parts: int) -> tuple[list[str], list[int]]:
    """Finish an extraction if all its parts are done; return what is to be said of it, and the parts that are not.

    Raises: UserError as `finish` does.
    """
    plan = plan_hash(found, settings)
    if missing := outcomes_of_parts(out, parts, plan)[2]:
        return [], missing
    with nobody_at_work(out):
        # Once more: another part may have finished it meanwhile, or have begun again.
        outcomes, interrupted, missing = outcomes_of_parts(out, parts, plan)
        if missing:
            return [], missing
        said = finish(found, folder, settings, out, outcomes, interrupted)
        remove_journals(out, parts)
        return said, []


def finish(found: Found, folder: Path, settings: ExtractSettings, out: Path, outcomes: dict[str, Outcome],
           interrupted: bool) -> list[str]:
    """Write manifest and reports, and move and remove images accordingly; return what is to be said of it.

    Args:
        found: the scans.
        folder: of the scans.
        settings: of the run; slices of scans that are gone are kept, unless settings.prune.
        out: folder of the slices.
        outcomes: of every scan by its name.
        interrupted: whether there may be images that no manifest or journal names.
    Raises: UserError with --strict for a duplicate, for slices of scans that are gone and cannot be kept, for an image
        that is gone, or if `out` cannot be written.
    """
    past = recall(out, settings)
    drawn = {row["image"] for outcome in outcomes.values() for row in outcome.rows}
    outcomes = _without_duplicates(found, outcomes, settings.volume)
    if settings.strict:
        refuse_rejected(outcomes)
    used = [scan for scan in found.scans if outcomes[scan.name].rows]
    gone = {name: rows for name, rows in slices_to_keep(found, folder, settings, out, past).items()
            if not _was_moved(rows, [outcomes[scan.name].rows for scan in used])}
    taken = prefixes_of(gone)
    splits, lent = split_subjects([*(scan.subject for scan in used), *(rows[0]["subject"] for rows in gone.values())],
                                  settings.split, settings.seed)
    people = covariates.join([Person(scan.name, scan.subject, scan.session) for scan in used], found.tables,
                             settings.covariates, settings.subject_column, COLUMNS)
    more = [*people.columns, *(column for rows in gone.values() for column in rows[0] if column not in COLUMNS)]
    columns = tuple(dict.fromkeys((*COLUMNS, *more)))
    moves: list[tuple[str, str]] = []
    manifest = []
    for scan in used:
        for row in outcomes[scan.name].rows:
            image = f"{splits[scan.subject]}/{image_name(untaken(scan, taken), row['plane'], int(row['index']))}"
            moves.append((row["image"], image))
            manifest.append({**row, "image": image, "split": splits[scan.subject], "subject": scan.subject,
                             "session": scan.session, "run": scan.run, **people.values[scan.name]})
    for rows in gone.values():
        for row in rows:
            image = f"{splits[row['subject']]}/{Path(row['image']).name}"
            moves.append((row["image"], image))
            manifest.append({**row, "image": image, "split": splits[row["subject"]]})
    stale = _place(out, moves, {row["image"] for row in manifest}, past.images | drawn, interrupted)
    removed = len(stale & {row["image"] for rows in past.manifest.values() for row in rows})
    absent = next((row for row in manifest if not (out / row["image"]).is_file()), None)
    expect(absent is None, f"--out {out}", "every image that was drawn", f"no {absent and absent['image']} any more",
           "Run all parts again, or once without --shard.")
    rejected = [{"scan": scan.name, "reason": outcomes[scan.name].reason} for scan in found.scans
                if outcomes[scan.name].reason]
    report = _report(settings, found, manifest, len(rejected), len(gone), splits, lent)
    links = keras_names.links_of(manifest) if settings.layout == "keras_png_slices" else []
    unlinked = keras_names.remove_others(out, links)  # before the manifest, which no link ever contradicts
    write(out / "rejected.csv", csv_bytes(("scan", "reason"), rejected))
    write(out / "extraction.json", (json.dumps(report, indent=1, ensure_ascii=True) + "\n").encode())
    write(out / MANIFEST, csv_bytes(columns, manifest))
    with writing(out):
        (out / BEFORE).unlink(missing_ok=True)
    return [*unlinked, *keras_names.link(out, links), *_said(report["counts"], used, outcomes, people, removed, out)]


def refuse_rejected(outcomes: dict[str, Outcome]) -> None:
    """Raise UserError if one of these scans is rejected; for --strict."""
    for name, outcome in outcomes.items():
        if outcome.reason:
            raise UserError(f"{name}: {outcome.reason} Without --strict it is skipped.")


def untaken(scan: Scan, taken: set[str]) -> str:
    """Return how the names of the scan's images begin, not as those of a scan that is gone and whose slices stay."""
    if scan.prefix.casefold() not in taken:
        return scan.prefix
    return f"{scan.prefix}_{hashlib.sha256(scan.name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def prefixes_of(rows_by_scan: dict[str, list[dict]]) -> set[str]:
    """Return how the names of these images begin, in lower case."""
    return {re.sub(r"_[a-z]+\d+\.png$", "", Path(row["image"]).name).casefold()
            for rows in rows_by_scan.values() for row in rows}


def changes_said(past: Past, settings: ExtractSettings) -> str:
    """Return which settings differ from those of the last extraction, such as `--size 128 (was 256)`."""
    now = _reported(settings)
    return ", ".join(f"{checks.flag(name)} {_words(now[name])} (was {_words(past.settings[name])})"
                     for name in now if name in past.settings and past.settings[name] != now[name])


def _words(value: object) -> str:
    if value is None or value is False or value == []:  # 0 is a value
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _without_duplicates(found: Found, outcomes: dict[str, Outcome], number: int | None) -> dict[str, Outcome]:
    """Reject each scan that has the same voxels as one before it; the CRC is compared first, then every voxel."""
    first: dict[str, list[Scan]] = {}
    result = dict(outcomes)
    for scan in found.scans:
        if not outcomes[scan.name].rows:
            continue
        likely = first.setdefault(outcomes[scan.name].rows[0]["voxels"], [])
        try:
            twin = next((other for other in likely if same_voxels(other.path, scan.path, number)), None)
            found_twin = twin and f"the same voxels in {twin.name}. That one is used; remove one of them."
        except UnusableScan as error:  # deleted or damaged since it was drawn
            found_twin = f"the same check sum in {likely[0].name}, and cannot compare them: {error}"
        if found_twin:
            result[scan.name] = Outcome([], reason=f"expected a scan that is there once, found {found_twin}")
        else:
            likely.append(scan)
    return result


def _was_moved(rows: list[dict], others: list[list[dict]]) -> bool:
    """Whether a scan that is gone has only another name now."""
    images = sorted(row["sha256"] for row in rows)
    return any(rows[0]["voxels"] == other[0]["voxels"] and images == sorted(row["sha256"] for row in other)
               for other in others)


def _place(out: Path, moves: list[tuple[str, str]], wanted: set[str], known: set[str],
           interrupted: bool) -> set[str]:
    """Move images to where they belong, and remove those that belong nowhere; return these."""
    moves = [(here, there) for here, there in moves if here != there]
    if interrupted:  # a killed run may have left images that it had no time to note
        names = {f"{split}/{path.name}" for split in SPLITS for path in (out / split).glob("*.png")}
        known = known | {name for name in names if re.fullmatch(IMAGE_NAME, name)}
    stale = known - wanted - {here for here, _ in moves}
    if moves or stale:
        put_manifest_aside(out)
    with writing(out):
        for here, there in moves:
            with contextlib.suppress(FileNotFoundError):  # a run that was killed here has moved it already
                os.replace(out / here, out / there)
        for image in stale:
            (out / image).unlink(missing_ok=True)
        for place in ("", *SPLITS):
            for left_over in (out / place).glob(f".*{TEMPORARY}"):
                left_over.unlink(missing_ok=True)
    return stale


def _report(settings: ExtractSettings, found: Found, manifest: list[dict], rejected: int, gone: int,
            splits: dict[str, str], lent: dict[str, str]) -> dict:
    """What extraction.json says. No time, host, worker count or path, so that equal work gives equal bytes."""
    images, subjects = Counter(row["split"] for row in manifest), Counter(splits.values())
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "nibabel", "pillow")}
    return {"schema": 1, "settings": _reported(settings), "recipe": RECIPE, "pixels": pixels_hash(settings),
            "versions": versions,
            "counts": {"scans": len(found.scans), "used": len({row["scan"] for row in manifest}) - gone,
                       "rejected": rejected, "skipped": found.further, "gone": gone,
                       "subjects": {split: subjects[split] for split in SPLITS},
                       "images": {split: images[split] for split in SPLITS}},
            "lent": {subject: {"from": lent[subject], "to": splits[subject]} for subject in sorted(lent)}}


def _reported(settings: ExtractSettings) -> dict:
    values = {key: value for key, value in parsing.as_dict(settings).items() if key not in NOT_IN_THE_REPORT
              and (key, value) != ("layout", "oasis")}  # so that reports are as they were before there was a choice
    # 224, a default, and 224.0, which it is when it is given, are one setting.
    return json.loads(json.dumps(values), parse_float=lambda text: int(text[:-2]) if text[-2:] == ".0" else float(text))


def _said(counts: dict, used: list[Scan], outcomes: dict[str, Outcome], people: Covariates, removed: int,
          out: Path) -> list[str]:
    """What the user is told at the end; the last line counts."""
    lines = []
    told = Counter((row["orientation_from"], row["orientation"]) for scan in used
                   for row in outcomes[scan.name].rows[:1] if row["orientation_from"] in NOT_FROM_THE_HEADER)
    for (place, storage), scans in sorted(told.items()):
        lines.append(f"orientation: {_number(scans, 'scan')} without one in the header, taken for {storage} by "
                     f"{NOT_FROM_THE_HEADER[place]}")
    if heads := sum(outcomes[scan.name].rows[0]["background"] == "otsu" for scan in used):
        lines.append(f"head: {_number(heads, 'scan')} with skull and air around it; --extent and percentiles are of "
                     "the whole head")
    lines += [f"covariates: {reason}" for reason in people.left_out]
    if people.missing:
        names = ", ".join(people.missing[:5]) + (", …" if len(people.missing) > 5 else "")
        lines.append(f"covariates: no row for {_number(len(people.missing), 'subject')}: {names}")
    if counts["gone"]:
        lines.append(f"gone: {_number(counts['gone'], 'scan')} no longer there, whose slices were kept (--prune "
                     "removes them)")
    if removed:
        lines.append(f"removed: {_number(removed, 'slice')} that these scans and settings do not ask for")
    if counts["rejected"]:
        reason, times = Counter(outcome.reason for outcome in outcomes.values() if outcome.reason).most_common(1)[0]
        lines.append(f"rejected: {_number(counts['rejected'], 'scan')}, see {out / 'rejected.csv'}; "
                     f"{'most often' if times > 1 else 'such as'}: {reason}")
    unchanged = sum(outcomes[scan.name].unchanged for scan in used)
    images = ", ".join(f"{split} {counts['images'][split]} of {_number(counts['subjects'][split], 'subject')}"
                       for split in SPLITS)
    return [*lines, f"used {_number(counts['used'], 'scan')} ({unchanged} of them unchanged since the last run), "
                    f"rejected {counts['rejected']}, skipped {counts['skipped']} further scans of the same sessions; "
                    f"images: {images}; manifest: {out / MANIFEST}"]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
