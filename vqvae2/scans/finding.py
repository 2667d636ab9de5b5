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

from vqvae2.scans.archives import FREESURFER_BEST_FIRST
from vqvae2.scans.identities import T1_WORDS, TABLE_NAME, Doubt, File, Identity, identify, stem_of, words_of
from vqvae2.scans.masks import mask_among

SEGMENTATIONS = frozenset(re.findall(r"\w+", """
    seg dseg probseg aseg wmparc fseg segmentation parcellation mask brainmask defacemask label labels lesion roi
    atlas"""))
NOT_SCANS = SEGMENTATIONS | frozenset(re.findall(r"\w+", """
    t1ce t1gd t1c t1map t1rho t2 t2w t2map t2star t2starw inplanet1 inplanet2 flair bold sbref dwi dti swi swan mra
    angio tof epi fmap fieldmap magnitude magnitude1 magnitude2 phase phasediff phase1 phase2 cbf adc m0scan minip mip
    ct1 t1wks truth contrast postcontrast stir b0map mtsat lesionseg segmented tissueseg thickness prob tumor tumour
    wholebrainmask t2flair flair3d pdt2 av45 fdg mtr mts unit1 inv1 inv2 preview thumb thumbnail pet biasfield
    t1wdividedbyt2w localizer scout"""))
NOT_SCANS_AS_LAST_WORD = frozenset(re.findall(r"\w+", "pd pdw asl fa md rest task csf gm wm ribbon aparc ct uni bias"))
NOT_SCANS_IN_A_WORD = re.compile(r"""(?x)hippocamp|fmri|calib|field.?map|locali[sz]er|perfusion|shim|asset|pveseg
    |[a-z]mask(?![a-z])|(?<![a-z])(?:pve|mixeltype|jac|jacobian|nonlin|warp|gre|smartbrain|survey|eyes)(?![a-z])""")
SEGMENTATION_FOLDER = re.compile(r"derivatives|fsl_seg|masks?|labels?(tr|ts|va)?|seg|segmentations?|.+\.anat",
                                 re.IGNORECASE)
"""Searched only for suffixes that name such a file."""
CONTRAST_FOLDER = re.compile(r"(func|dwi|fmap|swi|perf|pet|bold|eeg|meg)\d*", re.IGNORECASE)
"""Searched only for suffixes."""
OTHER_FOLDER = re.compile(r"sourcedata|t4_files|mninonlinear|fsaverage\w*|__macosx|previews?|thumbnails?|lost\+found",
                          re.IGNORECASE)
MADE_FROM = re.compile(r"(?=.*[a-z])(?:s\d{0,2})?(?:m?[wr]{0,2}[cp]?[0-6]?|i?y_|u_rc\d|v_|msk_)")
"""What SPM and CAT12 put before a scan's name for what they make from it: c1, mwp1, y_, wm, …"""
MAPS = re.compile(r"(?:s\d{0,2})?(?:m?wp|rp|m?wc|rc)[1-6].{3}|c[1-6]sub-|i?y_sub-")
SHORTEST_NAME = 3
UNREADABLE = (".nii.zarr", ".nii.bz2", ".nii.zst", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm",
              ".ima", ".par", ".brik", ".brik.gz")
"""Endings of scans that are not read."""
UNDECODABLE = re.compile(r"\\ud[0-9a-f]{3}")
"""The text that stands in a name for a byte that is not UTF-8."""
NOT_SEARCHED, NOT_READ = "folder not searched", "a format that is not read,"
"""The beginnings of reasons in `FoundScans.left_out` that are not about a scan's name."""
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
    doubt: Doubt | None = None
    """What has to be confirmed before people can be told apart."""
    left_out: tuple[tuple[str, str], ...] = ()
    """The names of the files that are not used though they end as scans do, and of the folders that are not searched,
    each with its reason: what many share, and mostly a colon and what is the file's own."""


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
    files, refused, tables, left_out, unreadable, masks = _walk(
        folder, [suffix.lstrip("_") for suffix in suffixes], tuple(suffix.lower() for suffix in mask_suffixes))
    sessions: dict[tuple, list[tuple[tuple[int, bool], Scan]]] = defaultdict(list)
    identified, doubt = identify(files, subject_pattern, archive)
    for file, who in identified:
        if not suffixes and who.series and _is_other_series(who.series):
            left_out.append((file.name, f'its series is called "{who.series}"'))
        elif who.subject:
            scan = Scan(file.path, file.name, who.subject, who.session, who.run, who.storage, archive=who.archive)
            rank = (who.rank, not suffixes and not _says_t1(file.name, who))
            sessions[who.root, who.subject, who.session, file.suffix].append((rank, scan))
        else:
            rule = ("a name in which --subject-pattern finds a subject" if subject_pattern is not None else
                    f"a path as --archive {archive} describes")
            refused.append(_refuse(file.path, file.name, rule, file.name,
                                   "Change the pattern, or move the file out of the folder of scans."))
    _leave_copies_out(sessions)
    chosen = [with_mask(scan, masks[scan.path.parent], mask_suffixes)
              for candidates in sessions.values() for scan in _choose(candidates, all_runs)]
    further = [(name, _why_further(name, scan.name)) for scan in chosen for name in scan.instead_of]
    other = sum(not reason.startswith((NOT_SEARCHED, NOT_READ)) for _, reason in left_out)
    return FoundScans(sorted(_with_prefixes(chosen) + refused, key=lambda scan: natural_order(scan.name)), len(further),
                      tables, other, tuple(unreadable), doubt, (*left_out, *further))


def _why_further(name: str, used: str) -> str:
    if "/mri/" in name and "/mri/" not in used and name.endswith((".mgz", ".mgh")):
        return f"FreeSurfer's copy of a scan that is used: {used}"
    return f"another scan of the session is used: {used}"


def _is_other_series(series: str) -> bool:
    return bool(NOT_SCANS_IN_A_WORD.search(series.lower()) or not NOT_SCANS.isdisjoint(words_of(series)))


def _says_t1(name: str, who: Identity) -> bool:
    """Return whether the file, its folder or its series is called T1-weighted."""
    return not T1_WORDS.isdisjoint([*words_of(who.series), *words_of("/".join(name.split("/")[-2:]))])


def _leave_copies_out(sessions: dict[tuple, list[tuple[tuple[int, bool], Scan]]]) -> None:
    """Count FreeSurfer's copies of a session, wherever they lie, as further files of the session's own scan."""
    owners = {key[1:]: key for key, candidates in sessions.items()
              if any("/mri/" not in scan.name for _, scan in candidates)}
    for key in [key for key, candidates in sessions.items() if key[1:] in owners and key != owners[key[1:]]
                and all("/mri/" in scan.name and scan.name.endswith((".mgz", ".mgh")) for _, scan in candidates)]:
        sessions[owners[key[1:]]] += [((len(FREESURFER_BEST_FIRST) + 1, True), scan) for _, scan in sessions.pop(key)]


def with_mask(scan: Scan, beside: Sequence[str], suffixes: Sequence[str]) -> Scan:
    """Return the scan with the brain mask among the names of files in its folder, if one of them is its own."""
    mask = mask_among(scan.path.name, beside, suffixes)
    return scan if mask is None else replace(scan, mask=scan.path.with_name(mask))


def _walk(folder: Path, suffixes: Sequence[str], mask_suffixes: tuple[str, ...]) -> tuple[
        list[File], list[Scan], dict[str, list[Path]], list[tuple[str, str]], list[str], dict[Path, list[str]]]:
    """Return scans by name, what is refused already, tables by folder, what is left out, unreadable names, and the
    names of masks by folder."""
    found: list[File] = []
    refused: list[Scan] = []
    tables: dict[str, list[Path]] = {}
    seen, left_out, unreadable, masks = set(), [], [], {}
    stems: dict[str, set[str]] = {}

    def refuse_folder(error: OSError) -> None:
        refused.append(_refuse(Path(error.filename), _name(Path(error.filename), folder), "a folder that can be read",
                               (error.strerror or str(error)).lower(), "See its permissions and the disk."))

    for here, folders, files in os.walk(folder, onerror=refuse_folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up, or twice to the same place
            left_out.append((_name(Path(here), folder), f"{NOT_SEARCHED}: a link to one that was"))
            folders.clear()
            continue
        seen.add(real)
        searched = sorted(each for each in folders if _is_searched(each, suffixes))
        if len(searched) < len(folders):
            left_out += [(_name(Path(here, each), folder), f"{NOT_SEARCHED}: {_why_not_searched(each, bool(suffixes))}")
                         for each in sorted({*folders} - {*searched})]
        folders[:] = searched
        there = {each.lower() for each in files}
        own = {each: stem_of(each) for each in files}
        stems[here] = {stem or "" for stem in own.values()} if not suffixes else set()
        masks[Path(here)] = [each for each, stem in own.items() if stem and stem.lower().endswith(mask_suffixes)]
        near = stems[here], stems.get(os.path.dirname(here), set())
        for each in sorted(files):
            path = Path(here, each)
            name = _name(path, folder)
            if TABLE_NAME.fullmatch(each):
                tables.setdefault(str(PurePosixPath(name).parent), []).append(path)
            image = re.fullmatch(r"(.*)\.img(\.gz)?", each.lower()) if ".img" in each.lower() else None
            if image and not there.isdisjoint((f"{image[1]}.hdr", f"{image[1]}.hdr.gz")):
                continue  # the .hdr stands for the pair
            if each.lower().endswith(UNREADABLE) and not each.startswith("."):
                unreadable.append(name)
                left_out.append((name, f"{NOT_READ} {_ending(each)}"))
            suffix, reason = _asked_by(name, own[each], suffixes)
            if suffix is not None and not suffixes:
                reason = _made_from(own[each], near)
            if reason:
                left_out.append((name, reason))
            if suffix is None or reason:
                continue
            if instead := _instead_of_a_file(path):
                refused.append(_refuse(path, name, "a file", instead, "Move it out of the folder of scans."))
            else:
                found.append(File(path, name, suffix))
    return found, refused, tables, left_out, unreadable, masks


def _why_not_searched(folder_name: str, asked: bool) -> str:
    if folder_name.startswith("."):
        return "hidden"
    advice = "" if OTHER_FOLDER.fullmatch(folder_name) else (
        "; only suffixes such as mask or desc-preproc_T1w are looked for there" if asked else "; --suffix")
    return f"{folder_name}{advice}"


def _ending(file_name: str) -> str:
    return max((each for each in UNREADABLE if file_name.lower().endswith(each)), key=len)


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
    words = words_of(stem)
    if part := NOT_SCANS_IN_A_WORD.search(stem.lower()):
        return f'its name says "{next((word for word in words if part[0] in word), part[0])}"'
    if not NOT_SCANS.isdisjoint(words):
        return f'its name says "{next(word for word in words if word in NOT_SCANS)}"'
    if not NOT_SCANS_AS_LAST_WORD.isdisjoint(words[-1:]):
        return f'its name ends with "{words[-1]}"'
    if stem.startswith("sub-"):
        suffixes = [part for part in stem.split("_") if "-" not in part]
        is_channel = suffixes[-1:] and suffixes[-1].isdigit()  # of nnU-Net
        if "part-phase" in stem or not (
                not suffixes or is_channel or not T1_WORDS.isdisjoint(map(str.lower, suffixes))):
            return "its name says that it is no T1-weighted scan of BIDS"
    return ""


def _instead_of_a_file(path: Path) -> str:
    """Return what stands in a file's place, if anything: opened, a pipe would wait for ever for its other end."""
    try:
        kind = stat.filemode(path.stat().st_mode)[0]
    except OSError:  # such as a link to nothing: whoever reads it says so
        return ""
    return {"p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}.get(kind, "")


def _refuse(path: Path, name: str, rule: str, found: str, advice: str) -> Scan:
    return Scan(path, name, "", refused=" ".join(f"expected {rule}, found {found}. {advice}".split()))


def _choose(candidates: list[tuple[tuple[int, bool], Scan]], all_runs: bool) -> list[Scan]:
    """Return the session's first scan, or all of the best rank; two formats of one scan are one."""
    best = min(rank for rank, _ in candidates)
    # An .img stands here only where its .hdr is missing: whatever else there is comes before it.
    ordered = sorted((scan for rank, scan in candidates if rank == best),
                     key=lambda scan: (scan.name.lower().endswith((".img", ".img.gz")), natural_order(scan.name)))
    first_formats = {(scan.name.rpartition("/")[0], stem_of(scan.name)): scan for scan in reversed(ordered)}
    chosen = list(first_formats.values()) if all_runs else ordered[:1]
    used = {scan.name for scan in chosen}
    beaten = tuple(sorted((scan.name for _, scan in candidates if scan.name not in used), key=natural_order))
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
    return name.encode(errors="backslashreplace").decode()


def _composed(text: str) -> str:
    """Return a text in Unicode's NFC: on a macOS disk an accent and its letter are two characters, elsewhere one."""
    return unicodedata.normalize("NFC", text)


def natural_order(name: str) -> list:
    """Return a key for sorting that puts anat2 before anat10."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
