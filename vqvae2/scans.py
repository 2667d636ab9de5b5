"""Folder of raw data -> the scans in it: whose they are, of which visit, one for each session unless all are wanted.

Layouts: OASIS-1 and -2 (`OAS1_0001_MR1/RAW`, `…/PROCESSED/MPRAGE/T88_111`), OASIS-3 and -4 (BIDS, and as
downloaded, `OAS30001_MR_d0129/anat2/NIFTI`), any BIDS tree [1], FreeSurfer's `<subject>/mri`, ADNI's names, and
any other folder, in which a subject is a file, or a folder where file names repeat.
Only paths below the given folder count, so a home folder called `derivatives` hides nothing.
Everything is judged by names; no scan is opened.

[1] Gorgolewski et al. 2016, The brain imaging data structure, doi 10.1038/sdata.2016.44.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

EXTENSIONS = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh")
TABLE = re.compile(r"participants\.tsv|(sub-\w+_)?sessions\.tsv|oasis.*\.csv", re.IGNORECASE)
"""Files that say something about people."""
FREESURFER_BEST_FIRST = ("brain", "brainmask", "norm", "T1", "nu", "orig", "rawavg")
OASIS_BEST_FIRST = (
    (re.compile(r"_t88_masked_gfc$"), "LAS"),
    (re.compile(r"/T88_111/|_t88_gfc$"), "LAS"),
    (re.compile(r"/SUBJ_111/|_sbj_111$"), "ASL"),
    (re.compile(r"/RAW/|_mpr-\d+_anon$"), "ASL"),
    (re.compile(""), None),
)
"""Names in a session of OASIS-1 or -2, and what the three indices of such a file of OASIS-1 grow towards, since its
Analyze header does not say. SUBJ_111 (256 x 256 x 160, 1 mm) as in clinica's oasis_to_bids.py, whose affine is that of
FreeSurfer's converter; RAW (256 x 256 x 128, 1 x 1 x 1.25 mm) is stored likewise. T88_111 (176 x 208 x 176, 1 mm) is in
Analyze's default order, transverse unflipped. No source is known for OASIS-2."""
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
OTHER_FOLDER = re.compile(r"sourcedata|t4_files|mninonlinear|__macosx|previews?|thumbnails?|lost\+found", re.IGNORECASE)
T1_WORDS = frozenset(("t1w", "t1", "mprage", "mpr", "t1mprage"))
GENERIC_WORDS = T1_WORDS | frozenset(re.findall(r"\w+", """
    anat anatomical brain head scan scans image images img volume vol struct structural raw nifti mri orig nu norm anon
    defaced masked stripped skullstripped acpc dc restore"""))
GENERIC_END = re.compile(rf"([-_. ]+({'|'.join(sorted(GENERIC_WORDS, key=len, reverse=True))}))+$", re.IGNORECASE)
SESSION = re.compile(r"(?:sess?(?:ion)?|visit|timepoint|tp)[-_ ]?\w+|baseline|follow[-_]?up\w*", re.IGNORECASE)
UNDECODABLE = re.compile(r"\\ud[0-9a-f]{3}")
"""What is left in a name of a byte that is not UTF-8."""
LONGEST_PREFIX = 150
"""In bytes of UTF-8: with a dot, `_coronal000.png` and `.tmp` it must stay within a file system's 255."""


@dataclass(frozen=True)
class Scan:
    """One file of one session of one subject."""

    path: Path
    """The file; of a pair the .hdr."""
    name: str
    """Its path below the searched folder, with / on every system, and bytes that are not UTF-8 written as \\udcff."""
    subject: str
    """Without `sub-`; empty where `refused` is not."""
    session: str = ""
    """Without `ses-`; empty where the layout has none."""
    run: str = ""
    """As in `run-N`, in OASIS-1 and -2 as in `mpr-N`; mostly empty."""
    storage: str | None = None
    """What its indices grow towards by its layout, for files whose header does not say, such as LAS."""
    prefix: str = ""
    """How the names of its images begin; no two scans share one, also not in upper and lower case."""
    refused: str = ""
    """Why it cannot be used, where its name or place say so already: expected …, found …. What to do."""


@dataclass(frozen=True)
class Found:
    """What `find_scans` returns."""

    scans: list[Scan]
    """In natural order of their names, those with `refused` among them."""
    further: int
    """Further scans of the same sessions, which are not used."""
    tables: dict[str, list[Path]]
    """Tables about people, by the folder that holds them (its name below the searched one, which itself is ".")."""
    other: int
    """Files that have a scan's extension, but a name of something else, such as a mask or another contrast."""


@dataclass(frozen=True)
class _File:
    """A file that is a scan by its name."""

    path: Path
    name: str
    suffix: str
    """The one of --suffix that asked for it; empty without any."""


@dataclass(frozen=True)
class _Identity:
    """Whose a file is, by its name."""

    root: str
    """The folder in which subjects are told apart; equal names in two of them are two data sets."""
    subject: str
    session: str = ""
    run: str = ""
    rank: int = 0
    """Of several files of a session those with the lowest are taken."""
    storage: str | None = None


def find_scans(folder: Path, *, suffixes: Sequence[str] = (), subject_pattern: str | None = None,
               all_runs: bool = False) -> Found:
    """Return one scan of every session below `folder`, at any depth; links to folders are followed.

    Segmentations, masks, other contrasts, derivatives, previews and hidden files are left out.
    Of several scans of a session the first is taken: in OASIS-1 `T88_111/*_masked_gfc` before `*_t88_gfc`,
    then `SUBJ_111`, then `RAW`.

    Args:
        folder: the searched one.
        suffixes: how the names end of the files that are wanted instead of T1-weighted ones, such as T2w or
            desc-brain_mask, in any case. Each gives a session's first.
        subject_pattern: regular expression, searched in a scan's name. Its group `subject`, or its first, is the
            subject; its group `session`, or its second, the session, which else is that of the layout.
        all_runs: take every scan of a session that is of its best kind; of two formats of one scan still the first.
    The scans that cannot be used by their name or place say so in `refused`, and take no other's place.
    """
    files, refused, tables, other = _walk(folder, [suffix.lstrip("_") for suffix in suffixes])
    sessions: dict[tuple, list[tuple[int, Scan]]] = defaultdict(list)
    for file, who in _identify(files, subject_pattern):
        if who.subject:
            scan = Scan(file.path, file.name, who.subject, who.session, who.run, who.storage)
            sessions[who.root, who.subject, who.session, file.suffix].append((who.rank, scan))
        else:
            refused.append(_refuse(file.path, file.name, "a name in which --subject-pattern finds a subject", file.name,
                                   "Change the pattern, or move the file out of the folder of scans."))
    chosen = [scan for candidates in sessions.values() for scan in _choose(candidates, all_runs)]
    further = sum(map(len, sessions.values())) - len(chosen)
    return Found(sorted(_with_prefixes(chosen) + refused, key=lambda scan: _natural(scan.name)), further, tables,
                 other)


def _walk(folder: Path, suffixes: Sequence[str]) -> tuple[list[_File], list[Scan], dict[str, list[Path]], int]:
    """Return files that are scans by name, what is refused already, tables by folder, and the number of others."""
    found: list[_File] = []
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
            if TABLE.fullmatch(each):
                tables.setdefault(str(PurePosixPath(name).parent), []).append(path)
            if each.lower().endswith(".img") and f"{each[:-4].lower()}.hdr" in there:
                continue  # the .hdr stands for the pair
            if (suffix := _asked_by(name, suffixes)) is None:
                other += _stem(each) is not None and not each.startswith(".")
                continue
            if instead := _instead_of_a_file(path):
                refused.append(_refuse(path, name, "a file", instead, "Move it out of the folder of scans."))
            else:
                found.append(_File(path, name, suffix))
    return found, refused, tables, other


def _is_searched(folder_name: str, suffixes: Sequence[str]) -> bool:
    if folder_name.startswith(".") or OTHER_FOLDER.fullmatch(folder_name):
        return False
    if SEGMENTATION_FOLDER.fullmatch(folder_name):
        return any(map(_says_more_than_contrast, suffixes))
    return bool(suffixes) or not CONTRAST_FOLDER.fullmatch(folder_name)


def _says_more_than_contrast(suffix: str) -> bool:
    """Whether it names what is derived from scans: desc-preproc_T1w, dseg, mask."""
    return "-" in suffix or not SEGMENTATIONS.isdisjoint(_words(suffix))


def _asked_by(name: str, suffixes: Sequence[str]) -> str | None:
    """Return the suffix that asks for a file; "" where there is none and it may be T1-weighted; else None."""
    *folders, last = PurePosixPath(name).parts
    stem = _stem(name)
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
    words = _words(stem)
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


def _identify(files: list[_File], subject_pattern: str | None) -> Iterator[tuple[_File, _Identity]]:
    by_layout = [_identify_by_layout(file.name) for file in files]
    whose_folder = _folders_that_are_subjects([file for file, who in zip(files, by_layout) if who is None])
    for file, who in zip(files, by_layout):
        if subject_pattern is None:
            yield file, who or _identify_plain(file, whose_folder)
        else:
            yield file, _identify_by_pattern(subject_pattern, file.name, who or _Identity("", "", _visit(file)))


def _identify_by_layout(name: str) -> _Identity | None:
    """None where the name follows no known layout."""
    above, _, last = name.rpartition("/")
    stem = _stem(name) or ""
    run = _first_group(r"(?:^|_)run-(\w+?)(?=[_.]|$)", stem)
    best_first = FREESURFER_BEST_FIRST if above.endswith("/mri") else ()
    rank, storage = best_first.index(stem) + 1 if stem in best_first else 0, None
    if match := re.search(r"(?:^|[/_-])(OAS[12]_\d{4})_(MR\d+)", name):
        subject, session = match.groups()
        run = run or _first_group(r"(?:^|_)mpr-(\d+)", stem)
        below = f"{above[match.start(1):]}/{stem}"
        kind, storage = next((i, storage) for i, (where, storage) in enumerate(OASIS_BEST_FIRST) if where.search(below))
        rank += kind
        storage = storage if subject.startswith("OAS1") else None
    elif match := re.search(r"(?:^|[/_-])(OAS[34]\d{4})_\w+?_(d\d{4})", name):
        subject, session = match.groups()
    elif match := re.search(r"(?:^|[/_-])(\d{3}_S_\d{4,5})(?=[/_.])", name):  # ADNI
        # Its folders say the day; its file names only the series, the number between S and the image's I.
        session = _first_group(r"/(\d{4}-\d\d-\d\d)_[\d_.]+/", name) or _first_group(r"_(S\d+)_I\d+", last)
        subject = match[1]
    elif match := re.search(r"(?:^|[/_])sub-([^_/.]+)", name):
        subject = re.findall(r"(?:^|[/_])sub-([^_/.]+)", name)[-1]
        session = (re.findall(r"[/_]sess?-([^_/.]+)", name) or [""])[-1]
    elif rank and (match := re.search(r"([^/]+)/mri/[^/]+$", name)):
        subject, session = match[1], ""
    else:
        return None
    return _Identity(name[: match.start(1)].rpartition("/")[0], subject, session, run, rank, storage)


def _identify_by_pattern(pattern: str, name: str, by_layout: _Identity) -> _Identity:
    """Return the identity with the pattern's subject, empty where it finds none, and its session if it has a group."""
    if (match := re.search(pattern, name)) is None:
        return _Identity("", "")
    groups, named = match.re.groups, match.re.groupindex
    subject = named.get("subject") or (2 if named.get("session") == 1 and groups > 1 else 1)
    session = named.get("session") or (2 if subject != 2 and groups > 1 else None)
    found = by_layout.session if session is None else re.sub(r"^sess?-", "", match[session] or "")
    return replace(by_layout, root="", subject=(match[subject] or "").removeprefix("sub-").strip(), session=found)


def _identify_plain(file: _File, whose_folder: set[str]) -> _Identity:
    """A file is a subject, unless `whose_folder` says that its folder is one; then the file is a visit."""
    *folders, _ = PurePosixPath(file.name).parts
    above, label = "/".join(folders), _label(file)
    owners = [i for i, part in enumerate(folders) if not SESSION.fullmatch(part) and not _is_generic(part)
              and part.lower() != file.suffix.lower()]
    if above not in whose_folder or not owners:
        return _Identity(above, label or _stem(file.name) or file.name)
    session = _visit(file) or ("" if _is_generic(label) else label)
    return _Identity("/".join(folders[: owners[-1]]), _stem(folders[owners[-1]]) or folders[owners[-1]], session)


def _visit(file: _File) -> str:
    """Return the first part of the path that calls itself a session, such as visit1 or session_2."""
    parts = (*PurePosixPath(file.name).parts[:-1], _label(file))
    return next(filter(SESSION.fullmatch, parts), "")


def _folders_that_are_subjects(plain: list[_File]) -> set[str]:
    """Folders in which a file has a name that says nothing (T1.nii.gz) or that stands in another folder too."""
    labels = [(file.name.rpartition("/")[0], file.suffix, _label(file)) for file in plain]
    places = Counter((suffix, label) for _, suffix, label in set(labels))
    return {folder for folder, suffix, label in labels
            if places[suffix, label] > 1 or label.lower() in T1_WORDS
            or (_is_generic(label) and not label[-1:].isdigit())}


def _choose(candidates: list[tuple[int, Scan]], all_runs: bool) -> list[Scan]:
    """Return the session's first scan, or all of the best rank; two formats of one scan are one."""
    best = min(rank for rank, _ in candidates)
    # An .img stands here only where its .hdr is missing: whatever else there is comes before it.
    ordered = sorted((scan for rank, scan in candidates if rank == best),
                     key=lambda scan: (scan.name.lower().endswith(".img"), _natural(scan.name)))
    first_formats = {(scan.name.rpartition("/")[0], _stem(scan.name)): scan for scan in reversed(ordered)}
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


def _stem(name: str) -> str | None:
    """The file's name without its extension; None where it is none of ours."""
    last = PurePosixPath(name).name
    extension = next((each for each in EXTENSIONS if last.lower().endswith(each)), None)
    return last[: -len(extension)].removesuffix(".nifti") if extension else None


def _label(file: _File) -> str:
    """What the file's name says of whose it is: IXI002-Guys-0828-T1 -> IXI002-Guys-0828; T1 stays T1."""
    stem = _stem(file.name) or ""
    stem = stem[: len(stem) - len(file.suffix)].rstrip("-_. ") if file.suffix else stem
    return GENERIC_END.sub("", stem) or stem


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", text.lower()) if word]


def _is_generic(text: str) -> bool:
    """Whether the words say only what kind of file it is: T1, anat_1, mprage."""
    return all(word.rstrip("0123456789") in GENERIC_WORDS or word in GENERIC_WORDS or word.isdigit()
               for word in _words(text)) and not text.isdigit()


def _first_group(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def _composed(text: str) -> str:
    """In Unicode's NFC: an accent and its letter are two characters on a macOS disk, and one elsewhere."""
    return unicodedata.normalize("NFC", text)


def _natural(name: str) -> list:
    """Sort key in which anat2 stands before anat10."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
