"""Folder of raw data -> the scans in it: whose they are, of which visit, one for each session unless all are wanted.

Which files are scans is decided here, whose they are in identities.py. Only paths below the given folder count,
so a home folder called `derivatives` hides nothing. Everything is judged by names; no scan is opened.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vqvae2.scans.identities import FREESURFER_BEST_FIRST, T1_WORDS, TABLE_NAME, File, identify, stem_of, words_of

SEGMENTATIONS = frozenset(re.findall(r"\w+", """
    seg dseg probseg aseg wmparc fseg segmentation parcellation mask brainmask defacemask label labels lesion roi
    atlas"""))
NOT_SCANS = SEGMENTATIONS | frozenset(re.findall(r"\w+", """
    t1ce t1gd t1c t1map t1rho t2 t2w t2map t2star t2starw inplanet1 inplanet2 flair bold sbref dwi dti swi swan mra
    angio tof epi fmap fieldmap magnitude magnitude1 magnitude2 phase phasediff phase1 phase2 cbf adc m0scan minip mip
    mtr mts unit1 inv1 inv2 preview thumb thumbnail pet biasfield t1wdividedbyt2w localizer scout"""))
NOT_SCANS_AS_LAST_WORD = frozenset(re.findall(r"\w+", "pd pdw asl fa md rest task csf gm wm pve ribbon aparc ct uni"))
SEGMENTATION_FOLDER = re.compile(r"derivatives|fsl_seg|masks?|labels?(tr|ts)?|seg|segmentations?", re.IGNORECASE)
"""Searched only for suffixes that name such a file."""
CONTRAST_FOLDER = re.compile(r"(func|dwi|fmap|swi|perf|pet|bold|eeg|meg)\d*", re.IGNORECASE)
"""Searched only for suffixes."""
OTHER_FOLDER = re.compile(r"sourcedata|t4_files|mninonlinear|fsaverage\w*|__macosx|previews?|thumbnails?|lost\+found",
                          re.IGNORECASE)
UNDECODABLE = re.compile(r"\\ud[0-9a-f]{3}")
"""The text that stands in a name for a byte that is not UTF-8."""
LONGEST_PREFIX = 150
"""In bytes of UTF-8: with a dot, `_coronal000.png` and `.tmp` it must stay within a file system's 255."""


@dataclass(frozen=True)
class Scan:
    """One scan: a file of a session of a subject."""

    path: Path
    """The file; the .hdr of a pair."""
    name: str
    """Its path below the searched folder, with / on every system, and bytes that are not UTF-8 written as \\udcff."""
    subject: str
    """The subject's name without `sub-`; empty if the scan is refused."""
    session: str = ""
    """The session's name without `ses-`; empty if the layout has no sessions."""
    run: str = ""
    """The N of `run-N`, or of `mpr-N` in OASIS-1 and -2; mostly empty."""
    storage: str | None = None
    """The directions that its indices grow towards by its layout, such as LAS, if the header does not say it."""
    prefix: str = ""
    """The beginning of its images' names; no two scans share it, also not in upper and lower case."""
    refused: str = ""
    """The reason, if its name or place say already that it cannot be used: expected …, found …. What to do."""


@dataclass(frozen=True)
class FoundScans:
    """The scans of a folder, and what else is in it."""

    scans: list[Scan]
    """In natural order of their names, those with `refused` among them."""
    further: int
    """The number of further scans of the same sessions, which are not used."""
    tables: dict[str, list[Path]]
    """Tables about people, by the folder that holds them (its name below the searched one, which itself is ".")."""
    other: int
    """The number of files with a scan's extension whose name is of something else, such as a mask."""


def find_scans(folder: Path, *, suffixes: Sequence[str] = (), subject_pattern: str | None = None,
               all_runs: bool = False) -> FoundScans:
    """Return one scan of every session below `folder`, at any depth; links to folders are followed.

    Segmentations, masks, other contrasts, derivatives, previews and hidden files are left out.
    Of several scans of a session the first is taken: in OASIS-1 `T88_111/*_masked_gfc` before `*_t88_gfc`,
    then `SUBJ_111`, then `RAW`.

    Args:
        folder: the folder of scans.
        suffixes: how the names end of the files that are wanted instead of T1-weighted ones, such as T2w or
            desc-brain_mask, in any case. Each gives a session's first.
        subject_pattern: regular expression, searched in a scan's name. Its group `subject`, or its first, is the
            subject; its group `session`, or its second, the session, which else is that of the layout.
        all_runs: take every scan of a session that is of its best kind; of two formats of one scan still the first.
    The scans that cannot be used by their name or place say so in `refused`, and take no other's place.
    """
    files, refused, tables, other = _walk(folder, [suffix.lstrip("_") for suffix in suffixes])
    sessions: dict[tuple, list[tuple[int, Scan]]] = defaultdict(list)
    for file, who in identify(files, subject_pattern):
        if who.subject:
            scan = Scan(file.path, file.name, who.subject, who.session, who.run, who.storage)
            sessions[who.root, who.subject, who.session, file.suffix].append((who.rank, scan))
        else:
            refused.append(_refuse(file.path, file.name, "a name in which --subject-pattern finds a subject", file.name,
                                   "Change the pattern, or move the file out of the folder of scans."))
    chosen = [scan for candidates in sessions.values() for scan in _choose(candidates, all_runs)]
    further = sum(map(len, sessions.values())) - len(chosen)
    return FoundScans(sorted(_with_prefixes(chosen) + refused, key=lambda scan: _natural(scan.name)), further, tables,
                      other)


def _walk(folder: Path, suffixes: Sequence[str]) -> tuple[list[File], list[Scan], dict[str, list[Path]], int]:
    """Return files that are scans by name, what is refused already, tables by folder, and the number of others."""
    found: list[File] = []
    refused: list[Scan] = []
    tables: dict[str, list[Path]] = {}
    seen, other = set(), 0

    def refuse_folder(error: OSError) -> None:
        refused.append(_refuse(Path(error.filename), _name(Path(error.filename), folder), "a folder that can be read",
                               (error.strerror or str(error)).lower(), "See its permissions and the disk."))

    for here, folders, files in os.walk(folder, onerror=refuse_folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up, or twice to the same place
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if _is_searched(each, suffixes))
        there = {each.lower() for each in files}
        for each in sorted(files):
            path = Path(here, each)
            name = _name(path, folder)
            if TABLE_NAME.fullmatch(each):
                tables.setdefault(str(PurePosixPath(name).parent), []).append(path)
            if each.lower().endswith(".img") and f"{each[:-4].lower()}.hdr" in there:
                continue  # the .hdr stands for the pair
            if (suffix := _asked_by(name, suffixes)) is None:
                other += stem_of(each) is not None and not each.startswith(".")
                continue
            if instead := _instead_of_a_file(path):
                refused.append(_refuse(path, name, "a file", instead, "Move it out of the folder of scans."))
            else:
                found.append(File(path, name, suffix))
    return found, refused, tables, other


def _is_searched(folder_name: str, suffixes: Sequence[str]) -> bool:
    if folder_name.startswith(".") or OTHER_FOLDER.fullmatch(folder_name):
        return False
    if SEGMENTATION_FOLDER.fullmatch(folder_name):
        return any(map(_says_more_than_contrast, suffixes))
    return bool(suffixes) or not CONTRAST_FOLDER.fullmatch(folder_name)


def _says_more_than_contrast(suffix: str) -> bool:
    """Return whether a suffix names what is derived from scans: desc-preproc_T1w, dseg, mask."""
    return "-" in suffix or not SEGMENTATIONS.isdisjoint(words_of(suffix))


def _asked_by(name: str, suffixes: Sequence[str]) -> str | None:
    """Return the suffix that asks for a file; "" where there is none and it may be T1-weighted; else None."""
    *folders, last = PurePosixPath(name).parts
    stem = stem_of(name)
    if stem is None or last.startswith("."):
        return None
    if not suffixes:
        return "" if _may_be_t1(folders, stem, last) else None
    if any(map(SEGMENTATION_FOLDER.fullmatch, folders)):  # --suffix T1w mask: no T1w of derivatives
        suffixes = list(filter(_says_more_than_contrast, suffixes))
    ends = [each for each in suffixes if re.search(rf"(^|[-_. ]){re.escape(each)}$", stem, re.IGNORECASE)]
    return max(ends, key=len, default=None)


def _may_be_t1(folders: list[str], stem: str, last: str) -> bool:
    if "mri" in folders and last.lower().endswith((".mgz", ".mgh")):
        return folders[-1] == "mri" and stem in FREESURFER_BEST_FIRST
    words = words_of(stem)
    if not NOT_SCANS.isdisjoint(words) or not NOT_SCANS_AS_LAST_WORD.isdisjoint(words[-1:]):
        return False
    if stem.startswith("sub-"):
        suffixes = [part for part in stem.split("_") if "-" not in part]
        return "part-phase" not in stem and (not suffixes or not T1_WORDS.isdisjoint(map(str.lower, suffixes)))
    return True


def _instead_of_a_file(path: Path) -> str:
    """Return what stands in a file's place, if anything: opened, a pipe would wait for ever for its other end."""
    try:
        kind = stat.filemode(path.stat().st_mode)[0]
    except OSError:  # such as a link to nothing: whoever reads it says so
        return ""
    return {"p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}.get(kind, "")


def _refuse(path: Path, name: str, rule: str, found: str, advice: str) -> Scan:
    return Scan(path, name, "", refused=" ".join(f"expected {rule}, found {found}. {advice}".split()))


def _choose(candidates: list[tuple[int, Scan]], all_runs: bool) -> list[Scan]:
    """Return the session's first scan, or all of the best rank; two formats of one scan are one."""
    best = min(rank for rank, _ in candidates)
    # An .img stands here only where its .hdr is missing: whatever else there is comes before it.
    ordered = sorted((scan for rank, scan in candidates if rank == best),
                     key=lambda scan: (scan.name.lower().endswith(".img"), _natural(scan.name)))
    first_formats = {(scan.name.rpartition("/")[0], stem_of(scan.name)): scan for scan in reversed(ordered)}
    return list(first_formats.values()) if all_runs else ordered[:1]


def _with_prefixes(scans: list[Scan]) -> list[Scan]:
    """Name the scans' images; where two would clash, 8 hex digits of the path's hash tell them apart."""
    digits = [0] * len(scans)
    while True:
        prefixes = [_prefix(scan, count) for scan, count in zip(scans, digits)]
        users: dict[str, list[int]] = defaultdict(list)
        for i, prefix in enumerate(prefixes):
            # Upper and lower case are one on many file systems, so they are one here on all.
            users[_composed(prefix.casefold())].append(i)
        # A prefix with digits may be another's without: then only that other one gets digits too.
        more = [i for same in users.values() if len(same) > 1 for i in same
                if digits[i] == min(digits[j] for j in same) and digits[i] < 64]
        if not more:
            return [replace(scan, prefix=prefix, subject=_composed(scan.subject), session=_composed(scan.session))
                    for scan, prefix in zip(scans, prefixes)]
        for i in more:
            digits[i] += 8


def _prefix(scan: Scan, digits: int) -> str:
    """Return subject, session and run in characters that every disk takes, and as many digits of the path's hash."""
    parts = [part for part in (scan.subject, scan.session, f"run-{scan.run}" if scan.run else "") if part]
    text = "_".join(re.sub(r"[^\w.+-]+", "-", _composed(part)) for part in parts).lstrip(".-") or "scan"
    if not digits and len(text.encode()) <= LONGEST_PREFIX and not UNDECODABLE.search("".join(parts)):
        return text
    ending = "_" + hashlib.sha256(scan.name.encode()).hexdigest()[: max(digits, 8)]
    return text.encode()[: LONGEST_PREFIX - len(ending)].decode(errors="ignore") + ending


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()


def _composed(text: str) -> str:
    """Return a text in Unicode's NFC: on a macOS disk an accent and its letter are two characters, elsewhere one."""
    return unicodedata.normalize("NFC", text)


def _natural(name: str) -> list:
    """Return a key for sorting that puts anat2 before anat10."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
