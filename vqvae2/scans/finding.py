"""Folder of raw data -> the scans in it: whose they are, of which visit, one for each session unless all are wanted.

Which files are scans is decided here, whose they are in identities.py. Only paths below the given folder count,
so a home folder called `derivatives` hides nothing. Everything is judged by names; no scan is opened. Names of
DICOM files say nothing: the scan is their folder, and a header or a few of each folder are read for what its series is
called. In a folder without any scan the first file without an ending is asked whether it is DICOM.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from vqvae2.common.files import kind_of
from vqvae2.scans import dicom
from vqvae2.scans.archives import FREESURFER_BEST_FIRST
from vqvae2.scans.identities import SERIES, TABLE_NAME, Doubt, File, Identity, identify, stem_of
from vqvae2.scans.masks import mask_among
from vqvae2.scans.series_folders import own_levels
from vqvae2.scans.words import (
    SEGMENTATIONS,
    T1_WORDS,
    natural,
    says_contrast_agent,
    says_t1,
    why_other_description,
    why_other_scan,
    why_other_series,
    words_of,
)

SEGMENTATION_FOLDER = re.compile(r"derivatives|fsl_seg|(.*[-_. ])?(masks?|labels?(tr|ts|va)?|segmentations?)|seg"
                                 r"|.+\.anat|(silver|gold)[-_ ]?standard.*", re.IGNORECASE)
"""Searched only for suffixes that name such a file."""
CONTRAST_FOLDER = re.compile(r"(func|dwi|fmap|swi|perf|pet|bold|eeg|meg)\d*", re.IGNORECASE)
"""Searched only for suffixes."""
OTHER_FOLDER = re.compile(r"sourcedata|t4_files|mninonlinear|fsaverage\w*|__macosx|previews?|thumbnails?|lost\+found",
                          re.IGNORECASE)
MADE_FROM = re.compile(r"(?=.*[a-z])(?:s\d{0,2})?(?:m?[wr]{0,2}[cp]?[0-6]?|i?y_|u_rc\d|v_|msk_)")
"""What SPM and CAT12 put before a scan's name for what they make from it: c1, mwp1, y_, wm, …"""
MAPS = re.compile(r"(?:s\d{0,2})?(?:m?wp|rp|m?wc|rc)[1-6].{3}|c[1-6]sub-|i?y_sub-")
SHORTEST_NAME = 3
NOT_CALLED_T1 = 2
UNREADABLE = (".nii.zarr", ".nii.bz2", ".nii.zst", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd", ".par",
              ".brik", ".brik.gz")
"""Endings of scans that are not read."""
UNDECODABLE = re.compile(r"\\ud[0-9a-f]{3}")
"""The text that stands in a name for a byte that is not UTF-8."""
NOT_SEARCHED, NOT_READ = "folder not searched", "a format that is not read,"
"""The beginnings of reasons in `FoundScans.left_out` that are not about a scan's name."""
LONGEST_PREFIX = 150
"""In bytes of UTF-8: with a dot, `_coronal000.png` and `.tmp` it must stay within a file system's 255."""


@dataclass(frozen=True)
class Scan:
    """One scan: a file of a session of a subject, or a folder of DICOM files."""

    path: Path
    """The file; the .hdr of a pair; the folder of DICOM files."""
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
    archive: str = ""
    """The row of archives.py by which the file's subject was told, "plain" or "pattern"."""
    instead_of: tuple[str, ...] = ()
    """The names of the session's other scans, which are not used."""
    mask: Path | None = None
    """The brain mask that lies beside it, if there is one."""
    refused: str = ""
    """The reason, if its name or place say already that it cannot be used: expected …, found …. What to do."""

    @property
    def mask_name(self) -> str:
        """Return the mask's path below the searched folder; empty without a mask."""
        return "" if self.mask is None else str(PurePosixPath(self.name).with_name(_printable(self.mask.name)))


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
    unreadable: tuple[str, ...] = ()
    """The names of scans in formats that are not read."""
    without_extra: tuple[str, ...] = ()
    """The names of folders of DICOM files, if the extra that reads them is not installed."""
    doubt: Doubt | None = None
    """What has to be confirmed before people can be told apart."""
    left_out: tuple[tuple[str, str], ...] = ()
    """The names of the files that are not used though they end as scans do, and of the folders that are not searched,
    each with its reason: what many share, and mostly a colon and what is the file's own."""
    synthetic: bool = False
    """Whether the scans are of nobody, as `vqvae2 demo-scans` makes them: BIDS' description of them begins so."""


def find_scans(folder: Path, *, suffixes: Sequence[str] = (), subject_pattern: str | None = None,
               all_runs: bool = False, archive: str | None = None,
               mask_suffixes: Sequence[str] = ()) -> FoundScans:
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
        archive: the row of archives.py that describes all paths, or "plain:N" where the N-th folder of each path is
            the person, or "plain:file" where the file's name is.
        mask_suffixes: how the names of brain masks end that lie beside scans.
    The scans that cannot be used by their name or place say so in `refused`, and take no other's place.
    """
    wanted = [suffix.lstrip("_") for suffix in suffixes]
    tree = _walk(folder, wanted, tuple(suffix.lower() for suffix in mask_suffixes))
    without_extra = [] if dicom.is_installed() else [each.name for each in tree.series]
    left_out = tree.left_out + [(name, f"{NOT_READ} DICOM without {dicom.INSTALL}") for name in without_extra]
    refused = tree.refused
    files = tree.files + ([] if without_extra else _series_as_files(tree.series, wanted, left_out))
    sessions: dict[tuple, list[tuple[tuple[int, int], Scan]]] = defaultdict(list)
    identified, doubt = identify(files, subject_pattern, archive)
    ranks = [0 if suffixes else _rank_of_contrast(file, who) for file, who in identified]
    t1_sessions = {(who.root, who.subject, _folder_of(file)): who.session
                   for (file, who), rank in zip(reversed(identified), reversed(ranks)) if rank != NOT_CALLED_T1}
    for (file, who), rank in zip(identified, ranks):
        if not suffixes and who.series and (reason := why_other_series(who.series)):
            left_out.append((file.scan_name, f"its series {reason}"))
        elif who.subject:
            scan = Scan(file.path, file.scan_name, who.subject, who.session, who.run, who.storage, archive=who.archive)
            if who.is_rest and rank == NOT_CALLED_T1:  # of p01/T1.nii and p01/other.nii the first is the T1
                session = t1_sessions.get((who.root, who.subject, _folder_of(file)), who.session)
                scan = replace(scan, session=session)
            sessions[who.root, who.subject, scan.session, file.suffix].append(((who.rank, rank), scan))
        else:
            rule = ("a name in which --subject-pattern finds a subject" if subject_pattern is not None else
                    f"a path as --archive {archive} describes")
            refused.append(_refuse(file.path, file.scan_name, rule, file.scan_name,
                                   "Change the pattern, or move the file out of the folder of scans."))
    _leave_copies_out(sessions)
    chosen = [with_mask(scan, tree.masks.get(scan.path.parent, ()), mask_suffixes)
              for candidates in sessions.values() for scan in _choose(candidates, all_runs)]
    further = [(name, _why_further(name, scan.name)) for scan in chosen for name in scan.instead_of]
    other = sum(not reason.startswith((NOT_SEARCHED, NOT_READ)) for _, reason in left_out)
    return FoundScans(sorted(_with_prefixes(chosen) + refused, key=lambda scan: natural(scan.name)), len(further),
                      tree.tables, other, tuple(tree.unreadable), tuple(without_extra), doubt, (*left_out, *further),
                      _are_synthetic(folder))


def _are_synthetic(folder: Path) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        description = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
        return str(description.get("Name", "")).startswith("Synthetic ")
    return False


def _is_freesurfers(name: str) -> bool:
    return "/mri/" in name and name.lower().endswith((".mgz", ".mgh"))


def _why_further(name: str, used: str) -> str:
    if _is_freesurfers(name) and "/mri/" not in used:
        return f"FreeSurfer's copy of a scan that is used: {used}"
    return f"another scan of the session is used: {used}"


@dataclass(frozen=True)
class _Series:
    """A folder of DICOM files."""

    path: Path
    name: str
    """Its path below the searched folder, "." for that folder itself."""
    files: list[str]
    """The names of the DICOM files in it, in natural order."""


@dataclass
class _Tree:
    """What lies in a folder, at any depth, by names."""

    files: list[File] = field(default_factory=list)
    series: list[_Series] = field(default_factory=list)
    refused: list[Scan] = field(default_factory=list)
    tables: dict[str, list[Path]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    masks: dict[Path, list[str]] = field(default_factory=dict)
    """The names of the files in a folder that end as brain masks do."""


def _series_as_files(series: Sequence[_Series], suffixes: Sequence[str],
                     left_out: list[tuple[str, str]]) -> list[File]:
    """Return the folders of DICOM files that are scans by their names and by what their headers call the series; the
    others are added to `left_out`, each with its reason."""
    asked = {}
    for each in series:
        *above, own = ("", *PurePosixPath(each.name).parts)[:dicom.series_level(PurePosixPath(each.name).parts) + 2]
        asked[each.name] = _asked_by(f"{'/'.join(above[1:])}/{own or 'dicom'}{dicom.ENDINGS[0]}".lstrip("/"),
                                     own or "dicom", suffixes)
    glances = {each.name: dicom.glance(each.path, each.files) for each in series}
    levels = own_levels(list(glances.items()))
    found = []
    for each, level in zip(series, levels):
        seen = glances[each.name]
        suffix, reason = asked[each.name]
        if suffix is not None:
            reason = "" if seen.is_mr else "no MR images"
            if not suffixes and (said := why_other_description(seen.description)):
                reason = f"its description {said}"
        if reason or suffix is None:
            left_out.append((each.name, reason))
            continue
        called = f"{dicom.series_name(PurePosixPath(each.name).parts)} {seen.description}"
        found.append(File(each.path, SERIES if each.name == "." else f"{each.name}/{SERIES}", suffix, called, level))
    return found


def _folder_of(file: File) -> str:
    return file.name.rpartition("/")[0]


def _rank_of_contrast(file: File, who: Identity) -> int:
    """Return 0 for what is called T1-weighted, 1 after a contrast agent, and NOT_CALLED_T1."""
    if not _says_t1(file, who):
        return NOT_CALLED_T1
    return int(says_contrast_agent(f"{who.series} {file.series} {file.name.rpartition('/')[2]}"))


def _says_t1(file: File, who: Identity) -> bool:
    """Return whether the file, its folder or its series is called T1-weighted."""
    return says_t1(who.series, file.series, "/".join(file.name.split("/")[-2:]))


def _leave_copies_out(sessions: dict[tuple, list[tuple[tuple[int, int], Scan]]]) -> None:
    """Count FreeSurfer's copies of a session, wherever they lie, as further files of the session's own scan."""
    owners = {key[1:]: key for key, candidates in sessions.items()
              if any("/mri/" not in scan.name for _, scan in candidates)}
    for key in [key for key, candidates in sessions.items() if key[1:] in owners and key != owners[key[1:]]
                and all(_is_freesurfers(scan.name) for _, scan in candidates)]:
        sessions[owners[key[1:]]] += [((len(FREESURFER_BEST_FIRST) + 1, NOT_CALLED_T1), scan)
                                      for _, scan in sessions.pop(key)]


def with_mask(scan: Scan, beside: Sequence[str], suffixes: Sequence[str]) -> Scan:
    """Return the scan with the brain mask among the names of files in its folder, if one of them is its own."""
    mask = mask_among(scan.path.name, beside, suffixes)
    return scan if mask is None else replace(scan, mask=scan.path.with_name(mask))


def _walk(folder: Path, suffixes: Sequence[str], mask_suffixes: tuple[str, ...]) -> _Tree:
    """Return what is in a folder, at any depth, by names."""
    tree, seen = _Tree(), set()
    stems: dict[str, set[str]] = {}

    def refuse_folder(error: OSError) -> None:
        path = Path(error.filename)
        tree.refused.append(_refuse(path, _name(path, folder), "a folder that can be read",
                                    (error.strerror or str(error)).lower(), "See its permissions and the disk."))

    for here, folders, files in os.walk(folder, onerror=refuse_folder, followlinks=True):
        inside = _printable(here[len(str(folder)):].replace(os.sep, "/").strip("/"))
        above = f"{inside}/" if inside else ""
        try:
            place = os.stat(here)
        except OSError as error:  # removed meanwhile
            refuse_folder(error)
            folders.clear()
            continue
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back up, or twice to the same place
            tree.left_out.append((inside or ".", f"{NOT_SEARCHED}: a link to one that was"))
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        searched = sorted(each for each in folders if _is_searched(each, suffixes))
        if len(searched) < len(folders):
            tree.left_out += [(above + _printable(each),
                               f"{NOT_SEARCHED}: {_why_not_searched(each, bool(suffixes))}")
                              for each in sorted({*folders} - {*searched})]
        folders[:] = searched
        there = {each.lower() for each in files}
        own = {each: stem_of(each) for each in files}
        stems[here] = {stem or "" for stem in own.values()} if not suffixes else set()
        if masks := [each for each, stem in own.items() if stem and stem.lower().endswith(mask_suffixes)]:
            tree.masks[Path(here)] = masks
        near = stems[here], stems.get(os.path.dirname(here), set())
        if in_series := _dicom_of(here, files):
            tree.series.append(_Series(Path(here), inside or ".", in_series))
            files = [each for each in files if not dicom.is_dicom_name(each)]
        for each in sorted(files):
            name = above + _printable(each)
            if TABLE_NAME.fullmatch(each):
                tree.tables.setdefault(inside or ".", []).append(Path(here, each))
            image = re.fullmatch(r"(.*)\.img(\.gz)?", each.lower()) if ".img" in each.lower() else None
            if image and not there.isdisjoint((f"{image[1]}.hdr", f"{image[1]}.hdr.gz")):
                continue  # the .hdr stands for the pair
            if each.lower().endswith(UNREADABLE) and not each.startswith("."):
                tree.unreadable.append(name)
                tree.left_out.append((name, f"{NOT_READ} {_ending(each)}"))
            suffix, reason = _asked_by(name, own[each], suffixes)
            if suffix is not None and not suffixes:
                reason = _made_from(own[each], near)
            if reason:
                tree.left_out.append((name, reason))
            if suffix is None or reason:
                continue
            path = Path(here, each)
            if instead := _instead_of_a_file(path):
                tree.refused.append(_refuse(path, name, "a file", instead, "Move it out of the folder of scans."))
            else:
                tree.files.append(File(path, name, suffix))
    return tree


def _why_not_searched(folder_name: str, asked: bool) -> str:
    if folder_name.startswith("."):
        return "hidden"
    advice = "" if OTHER_FOLDER.fullmatch(folder_name) else (
        "; only suffixes such as mask or desc-preproc_T1w are looked for there" if asked else "; --suffix")
    return f"{folder_name}{advice}"


def _ending(file_name: str) -> str:
    return max((each for each in UNREADABLE if file_name.lower().endswith(each)), key=len)


def _dicom_of(here: str, files: Sequence[str]) -> list[str]:
    """Return the names of a folder's DICOM files, in natural order.

    Where no ending says so, and nothing else in the folder is a scan, the first file without an ending is looked into.
    """
    names = [each for each in files if dicom.is_dicom_name(each)]
    if not names:
        without = [each for each in files if dicom.may_be_dicom(each)]
        is_scan = (each for each in files if not each.startswith(".") and stem_of(each) is not None)
        if without and next(is_scan, None) is None and dicom.begins_as_dicom(Path(here, min(without))):
            names = without
    return sorted(names, key=natural)


def _is_searched(folder_name: str, suffixes: Sequence[str]) -> bool:
    if folder_name.startswith(".") or OTHER_FOLDER.fullmatch(folder_name):
        return False
    if SEGMENTATION_FOLDER.fullmatch(folder_name):
        return any(map(_says_more_than_contrast, suffixes))
    return bool(suffixes) or not CONTRAST_FOLDER.fullmatch(folder_name)


def _says_more_than_contrast(suffix: str) -> bool:
    """Return whether a suffix names what is derived from scans: desc-preproc_T1w, dseg, mask."""
    return "-" in suffix or not SEGMENTATIONS.isdisjoint(words_of(suffix))


def _asked_by(name: str, stem: str | None, suffixes: Sequence[str]) -> tuple[str | None, str]:
    """Return the suffix that asks for a file, "" where there is none and it may be T1-weighted, and else None; and why
    a file that ends as a scan does is left out."""
    *folders, last = name.split("/")
    if stem is None or last.startswith("."):
        return None, ""
    if not suffixes:
        reason = _why_not_t1(folders, stem, last)
        return (None, reason) if reason else ("", "")
    if any(map(SEGMENTATION_FOLDER.fullmatch, folders)):  # --suffix T1w mask: no T1w of derivatives
        suffixes = list(filter(_says_more_than_contrast, suffixes))
    ends = [each for each in suffixes if re.search(rf"(^|[-_. ]){re.escape(each)}$", stem, re.IGNORECASE)]
    return (max(ends, key=len), "") if ends else (None, "its name does not end as --suffix asks")


def _made_from(stem: str, near: tuple[set[str], set[str]]) -> str:
    """Return that a program made the file from a scan near it, whose name is the file's own without a prefix; or ""."""
    for length in range(1, min(8, len(stem) - SHORTEST_NAME + 1)):
        if (stem[length:] in near[0] or stem[length:] in near[1]) and MADE_FROM.fullmatch(stem[:length]):
            return f"made by SPM or CAT12 from another file: {stem[length:]}"
    return "made by SPM or CAT12" if MAPS.match(stem) else ""


def _why_not_t1(folders: list[str], stem: str, last: str) -> str:
    """Return why the name of a file says that it is no T1-weighted scan; empty if it may be one."""
    if "mri" in folders and last.lower().endswith((".mgz", ".mgh")):
        is_scan = folders[-1] == "mri" and stem in FREESURFER_BEST_FIRST
        return "" if is_scan else "of FreeSurfer, and none of its scans"
    if reason := why_other_scan(stem):
        return f"its name {reason}"
    if stem.startswith("sub-"):
        suffixes = [part for part in stem.split("_") if "-" not in part]
        is_channel = suffixes[-1:] and suffixes[-1].isdigit()  # of nnU-Net
        if "part-phase" in stem or not (
                not suffixes or is_channel or not T1_WORDS.isdisjoint(map(str.lower, suffixes))):
            return "its name says that it is no T1-weighted scan of BIDS"
    return ""


def _instead_of_a_file(path: Path) -> str:
    """Return what stands in a file's place, if anything: opened, a pipe would wait for ever for its other end."""
    kind = kind_of(path)
    return kind if kind in ("a named pipe", "a socket", "a device") else ""  # who reads a link to nothing says so


def _refuse(path: Path, name: str, rule: str, found: str, advice: str) -> Scan:
    return Scan(path, name, "", refused=" ".join(f"expected {rule}, found {found}. {advice}".split()))


def _choose(candidates: list[tuple[tuple[int, int], Scan]], all_runs: bool) -> list[Scan]:
    """Return the session's first scan, or all of the best rank; two formats of one scan are one."""
    best = min(rank for rank, _ in candidates)
    # An .img stands here only where its .hdr is missing: whatever else there is comes before it.
    ordered = sorted((scan for rank, scan in candidates if rank == best),
                     key=lambda scan: (scan.name.lower().endswith((".img", ".img.gz")), natural(scan.name)))
    first_formats = {(scan.name.rpartition("/")[0], stem_of(scan.name) or scan.name): scan
                     for scan in reversed(ordered)}
    chosen = list(first_formats.values()) if all_runs else ordered[:1]
    used = {scan.name for scan in chosen}
    beaten = tuple(sorted((scan.name for _, scan in candidates if scan.name not in used), key=natural))
    return [replace(chosen[0], instead_of=beaten), *chosen[1:]]


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
    return _printable(path.relative_to(folder).as_posix())


def _printable(name: str) -> str:
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def _composed(text: str) -> str:
    """Return a text in Unicode's NFC: on a macOS disk an accent and its letter are two characters, elsewhere one."""
    return unicodedata.normalize("NFC", text)
