"""Folder of raw data -> the scans in it: whose they are, of which visit, one for each session.

Layouts: OASIS-1 and -2 (`OAS1_0001_MR1/RAW`, `…/PROCESSED/MPRAGE/T88_111`), OASIS-3 (BIDS, and as
downloaded, `OAS30001_MR_d0129/anat2/NIFTI`), any BIDS tree [1], FreeSurfer's `<subject>/mri`, and
any other folder, in which a subject is a file, or a folder where file names repeat.
Only paths below the given folder count, so a home folder called `derivatives` hides nothing.

[1] Gorgolewski et al. 2016, The brain imaging data structure, doi 10.1038/sdata.2016.44.
"""

import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

EXTENSIONS = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh")
FREESURFER_BEST_FIRST = ("brain", "brainmask", "norm", "T1", "nu", "orig", "rawavg")
NOT_SCANS = frozenset(re.findall(r"\w+", """
    seg dseg probseg aseg wmparc fseg segmentation parcellation mask brainmask defacemask label labels lesion roi atlas
    t1ce t1gd t1c t1map t1rho t2 t2w t2map t2star t2starw inplanet1 inplanet2 flair bold sbref dwi dti swi swan mra
    angio tof epi fmap fieldmap magnitude magnitude1 magnitude2 phase phasediff phase1 phase2 cbf adc m0scan minip mip
    mtr mts unit1 inv1 inv2 preview thumb thumbnail pet"""))
NOT_SCANS_AS_LAST_WORD = frozenset(re.findall(r"\w+", "pd pdw asl fa md rest task csf gm wm pve ribbon aparc ct uni"))
NOT_SCAN_FOLDERS = re.compile(
    r"(derivatives|sourcedata|fsl_seg|t4_files|__macosx|masks?|labels?(tr|ts)?|seg|segmentations?|previews?|thumbnails?"
    r"|(func|dwi|fmap|swi|perf|pet|bold|eeg|meg)\d*)", re.IGNORECASE)
T1_WORDS = frozenset(("t1w", "t1", "mprage", "mpr", "t1mprage"))
GENERIC_WORDS = T1_WORDS | frozenset(re.findall(r"\w+", """
    anat anatomical brain head scan scans image images img volume vol struct structural raw nifti mri orig nu norm anon
    defaced masked stripped skullstripped"""))
SESSION_FOLDER = re.compile(r"(?:sess?(?:ion)?|visit|timepoint|tp)[-_ ]?\w+|baseline|follow[-_]?up\w*", re.IGNORECASE)
STORAGE = {"RAW": "ASL", "SUBJ_111": "ASL", "T88_111": "LAS"}
"""What the three indices of the OASIS-1 and -2 Analyze files grow towards; their headers do not say."""


@dataclass(frozen=True)
class Scan:
    """One file of one session of one subject."""

    path: Path
    """The file; of a pair the .hdr."""
    name: str
    """Its path below the searched folder, with / on every system."""
    subject: str
    """Without `sub-`."""
    session: str = ""
    """Without `ses-`; empty where the layout has none."""
    run: str = ""
    """As in `run-N`; mostly empty."""
    storage: str | None = None
    """What its indices grow towards by its layout, for files whose header does not say, such as LAS."""
    prefix: str = ""
    """How the names of its images begin; no two scans share one, also not in upper and lower case."""
    age: str = ""
    """From the participants' table, as written there."""
    sex: str = ""
    """F, M or empty."""


@dataclass(frozen=True)
class Found:
    """What `find_scans` returns."""

    scans: list[Scan]
    """The first scan of each session, in natural order of their names."""
    further: int
    """Further scans of the same sessions, which are not used."""


def find_scans(folder: Path) -> Found:
    """Return one scan of every session below `folder`, at any depth; links to folders are followed.

    Segmentations, masks, other contrasts, derivatives, previews and hidden files are left out.
    Of several scans of a session the first is taken: in OASIS-1 `T88_111/*_masked_gfc` before `RAW`.
    """
    names, tables = _walk(folder)
    sessions: dict[tuple, list[tuple]] = defaultdict(list)
    plain = [name for name in names if _identify_by_layout(name) is None]
    whose_folder = _folders_that_are_subjects(plain)
    for name in names:
        scan, root, rank = _identify_by_layout(name) or _identify_plain(name, whose_folder)
        sessions[root, scan.subject, scan.session].append((rank, _natural(name), scan))
    first = [min(candidates, key=lambda each: each[:2])[2] for candidates in sessions.values()]
    scans = [replace(scan, path=folder / scan.name) for scan in sorted(first, key=lambda scan: _natural(scan.name))]
    return Found(_with_participants(_with_prefixes(scans), tables), len(names) - len(scans))


def _walk(folder: Path) -> tuple[list[str], dict[str, Path]]:
    """Return the names of all scan files, and the participants' tables by the folder that holds them."""
    names: list[str] = []
    tables: dict[str, Path] = {}
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        below = PurePosixPath(Path(here).relative_to(folder).as_posix())
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up, or twice to the same place
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders
                            if not each.startswith(".") and not NOT_SCAN_FOLDERS.fullmatch(each))
        there = {each.lower() for each in files}
        names += [str(below / each) for each in files if _is_scan(below / each, there)]
        for each in files:
            if each == "participants.tsv" or re.fullmatch(r"oasis_(cross-sectional|longitudinal).*\.csv", each):
                tables[str(below)] = Path(here) / each
    return sorted(names), tables


def _is_scan(name: PurePosixPath, beside: set[str]) -> bool:
    """Whether the file may be a T1-weighted scan, judged by its name; `beside` are its folder's files in lower case."""
    stem = _stem(name.name)
    if stem is None or name.name.startswith("."):
        return False
    if name.suffix.lower() == ".img" and f"{name.name[:-4].lower()}.hdr" in beside:
        return False  # the .hdr stands for the pair
    if "mri" in name.parts[:-1] and name.suffix.lower() in (".mgz", ".mgh"):
        return name.parent.name == "mri" and stem in FREESURFER_BEST_FIRST
    words = _words(stem)
    if not words or not NOT_SCANS.isdisjoint(words) or words[-1] in NOT_SCANS_AS_LAST_WORD:
        return False
    if stem.startswith("sub-"):
        suffixes = [part for part in stem.split("_") if "-" not in part]
        return "part-phase" not in stem and (not suffixes or not T1_WORDS.isdisjoint(map(str.lower, suffixes)))
    return True


def _identify_by_layout(name: str) -> tuple[Scan, str, int] | None:
    """Return the scan, the folder that holds its session, and its rank within it (lowest is best).

    None where the name follows no known layout.
    """
    run = re.search(r"(?:^|_)run-(\w+?)(?=[_.]|$)", PurePosixPath(name).name)
    run_name = run[1] if run else ""
    if match := re.search(r"(?:^|[/_-])(OAS[12]_\d{4})_(MR\d+)", name):
        place = next((part for part in reversed(PurePosixPath(name).parts) if part in STORAGE), None)
        stem = _stem(name) or ""
        rank = 0 if place == "T88_111" and stem.endswith("_masked_gfc") else 1 if place == "RAW" else 2
        return Scan(Path(), name, match[1], match[2], run_name, STORAGE.get(place)), _above(name, match.start(1)), rank
    rank = _freesurfer_rank(name)
    if match := re.search(r"(?:^|[/_-])(OAS3\d{4})_\w+?_(d\d{4})", name):
        return Scan(Path(), name, match[1], match[2], run_name), _above(name, match.start(1)), rank
    subjects = list(re.finditer(r"(?:^|[/_])sub-([^_/.]+)", name))
    if subjects:
        sessions = re.findall(r"[/_]sess?-([^_/.]+)", name)
        scan = Scan(Path(), name, subjects[-1][1], sessions[-1] if sessions else "", run_name)
        return scan, _above(name, subjects[0].start(1)), rank
    parts = PurePosixPath(name).parts
    if len(parts) > 2 and parts[-2] == "mri" and _stem(parts[-1]) in FREESURFER_BEST_FIRST:
        return Scan(Path(), name, parts[-3], "", ""), "/".join(parts[:-3]), rank
    return None


def _identify_plain(name: str, whose_folder: set[str]) -> tuple[Scan, str, int]:
    """A file is a subject, unless `whose_folder` says that its folder is one; then the file is a visit."""
    parts = PurePosixPath(name).parts
    stem = _without_generic_end(_stem(name) or name)
    owners = [part for part in parts[:-1] if not _is_generic(part) and not SESSION_FOLDER.fullmatch(part)]
    folder = "/".join(parts[:-1])
    if folder not in whose_folder or not owners:
        return Scan(Path(), name, stem), folder, 0
    visits = [part for part in parts[:-1] if SESSION_FOLDER.fullmatch(part)]
    session = visits[0] if visits else "" if _is_generic(stem) else stem
    return Scan(Path(), name, owners[-1], session), name[: name.rindex(owners[-1] + "/")], 0


def _folders_that_are_subjects(plain: list[str]) -> set[str]:
    """Folders in which a file has a name that says nothing (T1.nii.gz) or that stands in another folder too."""
    stems = {name: _without_generic_end(_stem(name) or name) for name in plain}
    places = Counter(stem for stem, _ in {(stem, str(PurePosixPath(name).parent)) for name, stem in stems.items()})
    return {str(PurePosixPath(name).parent) for name, stem in stems.items()
            if places[stem] > 1 or (_is_generic(stem) and not stem[-1].isdigit())}


def _with_prefixes(scans: list[Scan]) -> list[Scan]:
    """Name the scans' images; where two would clash, 8 hex digits of the path's hash tell them apart."""
    def prefix(scan: Scan) -> str:
        parts = (scan.subject, scan.session, f"run-{scan.run}" if scan.run else "")
        return "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part).lstrip(".-") or "scan"

    # Upper and lower case are one on many file systems, so they are one here on all.
    users = Counter(prefix(scan).casefold() for scan in scans)
    return [replace(scan, prefix=prefix(scan) if users[prefix(scan).casefold()] == 1 else
                    f"{prefix(scan)}_{hashlib.sha256(scan.name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}")
            for scan in scans]


def _with_participants(scans: list[Scan], tables: dict[str, Path]) -> list[Scan]:
    """Add age and sex from the nearest table above each scan."""
    people = {place: _read_table(path) for place, path in tables.items()}
    result = []
    for scan in scans:
        places = [str(above) for above in PurePosixPath(scan.name).parents if str(above) in people]
        keys = (f"{scan.subject}_{scan.session}", scan.subject)
        age, sex = next((people[place][key] for place in places for key in keys if key in people[place]), ("", ""))
        result.append(replace(scan, age=age, sex=sex))
    return result


def _read_table(path: Path) -> dict[str, tuple[str, str]]:
    """Return {subject, or subject_session: (age, sex)} of participants.tsv or OASIS's own table."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, csv.Error):  # age and sex are a courtesy; a broken link must not stop an extraction
        return {}
    people = {}
    for row in rows:
        cells = {str(key).strip().lower(): str(value).strip() for key, value in row.items()}
        key = cells.get("participant_id") or cells.get("mri id") or cells.get("id") or ""
        age = cells.get("age", "")
        sex = cells.get("sex") or cells.get("gender") or cells.get("m/f") or ""
        people[key.removeprefix("sub-")] = ("" if age.lower() in ("n/a", "na", "nan") else age,
                                            {"f": "F", "female": "F", "m": "M", "male": "M"}.get(sex.lower(), ""))
    return people


def _stem(name: str) -> str | None:
    """The file's name without its extension; None where it is none of ours."""
    last = PurePosixPath(name).name
    extension = next((each for each in EXTENSIONS if last.lower().endswith(each)), None)
    return last[: -len(extension)].removesuffix(".nifti") if extension else None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _is_generic(text: str) -> bool:
    """Whether the words say only what kind of file it is: T1, anat_1, mprage."""
    return all(word.rstrip("0123456789") in GENERIC_WORDS or word in GENERIC_WORDS or word.isdigit()
               for word in _words(text)) and not text.isdigit()


def _without_generic_end(stem: str) -> str:
    """IXI002-Guys-0828-T1 -> IXI002-Guys-0828; T1 stays T1."""
    ends = "|".join(sorted(GENERIC_WORDS, key=len, reverse=True))
    return re.sub(rf"([-_. ]+({ends}))+$", "", stem, flags=re.IGNORECASE) or stem


def _freesurfer_rank(name: str) -> int:
    stem = _stem(name)
    return FREESURFER_BEST_FIRST.index(stem) if stem in FREESURFER_BEST_FIRST else 0


def _above(name: str, position: int) -> str:
    """The folders above the path's part in which `position` lies."""
    return name[: name.rfind("/", 0, position) + 1]


def _natural(name: str) -> list:
    """Sort key in which anat2 stands before anat10."""
    return [(int(part), part) if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
