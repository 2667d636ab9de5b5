"""Names of scan files -> whose each is: subject, session, run, and which of a session's files come first.

Layouts: OASIS-1 and -2 (`OAS1_0001_MR1/RAW`, `…/PROCESSED/MPRAGE/T88_111`), OASIS-3 and -4 (BIDS, and as
downloaded, `OAS30001_MR_d0129/anat2/NIFTI`), any BIDS tree [1], FreeSurfer's `<subject>/mri`, ADNI's names, and
any other folder, in which a subject is a file, or a folder that its files are named after, or where names repeat.
A visit in a name (`p01_visit2`) is a session, never a part of the subject: two visits must not be in two splits.

[1] Gorgolewski et al. 2016, The brain imaging data structure, doi 10.1038/sdata.2016.44.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vqvae2.scans.volumes import suffix_of

TABLE_NAME = re.compile(r"participants\.tsv|(?:sub-.+_)?sessions\.tsv|oasis.*\.csv", re.IGNORECASE)
"""Whole names of the files that are tables without being named by `--covariates`."""
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
T1_WORDS = frozenset(("t1w", "t1", "mprage", "mpr", "t1mprage"))
GENERIC_WORDS = T1_WORDS | frozenset(re.findall(r"\w+", """
    anat anatomical brain head scan scans image images img volume vol struct structural raw nifti mri orig nu norm anon
    defaced masked stripped skullstripped acpc dc restore"""))
GENERIC_END = re.compile(rf"([-_. ]+({'|'.join(sorted(GENERIC_WORDS, key=len, reverse=True))}))+$", re.IGNORECASE)
SESSION = re.compile(r"(?:sess?(?:ion)?|visit|timepoint|tp)[-_ ]?\w+|baseline|follow[-_]?up\w*", re.IGNORECASE)
VISIT_AT_THE_END = re.compile(r"(.+?)[-_. ]+((?:sess?(?:ion)?|visit|time[-_]?point|tp|v)[-_ ]?\d+"
                              r"|baseline|follow[-_]?up[-_ ]?\d*)", re.IGNORECASE)
MOST_SCANS_OF_A_SUBJECT = 20
"""A folder with more, all named after it, is a data set or a site."""


@dataclass(frozen=True)
class File:
    """A file that is a scan by its name."""

    path: Path
    name: str
    suffix: str
    """The value of --suffix that asked for the file; empty without --suffix."""


@dataclass(frozen=True)
class Identity:
    """The subject, session and run of a file, by its name."""

    root: str
    """The folder in which subjects are told apart; equal names in two such folders are two data sets."""
    subject: str
    session: str = ""
    run: str = ""
    rank: int = 0
    """If a session has several files, those of the lowest rank are taken."""
    storage: str | None = None


def identify(files: list[File], subject_pattern: str | None) -> Iterator[tuple[File, Identity]]:
    """Yield each file and whose it is; a subject is empty where `subject_pattern` finds none."""
    by_layout = [_identify_by_layout(file.name) for file in files]
    plain = [file for file, who in zip(files, by_layout) if who is None]
    whose_folder, named_after = _folders_that_are_subjects(plain), _folders_that_files_are_named_after(plain)
    for file, who in zip(files, by_layout):
        if subject_pattern is None:
            yield file, who or _identify_plain(file, whose_folder, named_after)
        else:
            yield file, _identify_by_pattern(subject_pattern, file.name, who or Identity("", "", _visit(file)))


def _identify_by_layout(name: str) -> Identity | None:
    """Return what a name says by its layout; None if it follows no known layout."""
    above, _, last = name.rpartition("/")
    stem = stem_of(name) or ""
    run = _first_group(r"(?:^|_)run-(\w+?)(?=[_.]|$)", stem)
    best_first = FREESURFER_BEST_FIRST if above.rpartition("/")[2] == "mri" else ()
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
        visit, _, base = match[1].partition(".long.")  # FreeSurfer's longitudinal stream
        subject, session = _without_visit(visit)
        subject = base or subject
    elif rank:
        return Identity("", "mri", "", run, rank)
    else:
        return None
    return Identity(name[: match.start(1)].rpartition("/")[0], subject, session, run, rank, storage)


def _identify_by_pattern(pattern: str, name: str, by_layout: Identity) -> Identity:
    """Return the identity with the pattern's subject, empty where it finds none, and its session if it has a group."""
    if (match := re.search(pattern, name)) is None:
        return Identity("", "")
    groups, named = match.re.groups, match.re.groupindex
    subject = named.get("subject") or (2 if named.get("session") == 1 and groups > 1 else 1)
    session = named.get("session") or (2 if subject != 2 and groups > 1 else None)
    found = by_layout.session if session is None else re.sub(r"^sess?-", "", match[session] or "")
    return replace(by_layout, root="", subject=(match[subject] or "").removeprefix("sub-").strip(), session=found)


def _identify_plain(file: File, whose_folder: set[str], named_after: set[str]) -> Identity:
    """Take a file for a subject, or for a visit if its folder is a subject, or one above that it is named after."""
    *folders, _ = PurePosixPath(file.name).parts
    above, label = "/".join(folders), _label(file)
    for i, folder in enumerate(folders):
        if "/".join(folders[: i + 1]) in named_after:
            return Identity("/".join(folders[:i]), folder, _visit(file) or label[len(folder):].strip("-_. "))
    owners = [i for i, part in enumerate(folders) if not SESSION.fullmatch(part) and not _is_generic(part)
              and part.lower() != file.suffix.lower()]
    if above not in whose_folder or not owners:
        subject, session = _without_visit(label or stem_of(file.name) or file.name)
        return Identity(above, subject, session)
    session = _visit(file) or ("" if _is_generic(label) else label)
    return Identity("/".join(folders[: owners[-1]]), stem_of(folders[owners[-1]]) or folders[owners[-1]], session)


def _without_visit(label: str) -> tuple[str, str]:
    """p01_visit2 -> p01, visit2."""
    match = VISIT_AT_THE_END.fullmatch(label)
    return (match[1], match[2]) if match else (label, "")


def _visit(file: File) -> str:
    """Return the first part of the path that calls itself a session, such as visit1 or session_2."""
    parts = (*PurePosixPath(file.name).parts[:-1], _label(file))
    return next(filter(SESSION.fullmatch, parts), "")


def _folders_that_are_subjects(plain: list[File]) -> set[str]:
    """Return folders in which a file has a name that says nothing (T1.nii.gz) or that stands in another folder too."""
    labels = [(file.name.rpartition("/")[0], file.suffix, _label(file)) for file in plain]
    places = Counter((suffix, label) for _, suffix, label in set(labels))
    return {folder for folder, suffix, label in labels
            if places[suffix, label] > 1 or label.lower() in T1_WORDS
            or (_is_generic(label) and not label[-1:].isdigit())}


def _folders_that_files_are_named_after(plain: list[File]) -> set[str]:
    """Return folders such as p01 of p01/p01_a.nii and p01/x/p01_b.nii, each file's highest, if there are several."""
    named_after: Counter[str] = Counter()
    for file in plain:
        folders, label = PurePosixPath(file.name).parts[:-1], _label(file)
        highest = next((i for i, folder in enumerate(folders)
                        if re.match(rf"{re.escape(folder)}([-_. ]|$)", label)), None)
        if highest is not None:
            named_after["/".join(folders[: highest + 1])] += 1
    subjects = {folder for folder, files in named_after.items() if files <= MOST_SCANS_OF_A_SUBJECT}
    return subjects if len(subjects) > 1 else set()


def stem_of(name: str) -> str | None:
    """Return a file's name without the end that says its format; None if the format is not known."""
    last = PurePosixPath(name).name
    suffix = suffix_of(last)
    return last[: -len(suffix)].removesuffix(".nifti") if suffix else None


def _label(file: File) -> str:
    """Return the part of a file's name that names its subject: IXI002-Guys-T1 -> IXI002-Guys; T1 stays T1."""
    stem = stem_of(file.name) or ""
    stem = stem[: len(stem) - len(file.suffix)].rstrip("-_. ") if file.suffix else stem
    return GENERIC_END.sub("", stem) or stem


def words_of(text: str) -> list[str]:
    """Return its words in lower case."""
    return [word for word in re.split(r"[\W_]+", text.lower()) if word]


def _is_generic(text: str) -> bool:
    """Return whether the words say only what kind of file it is: T1, anat_1, mprage."""
    return all(word.rstrip("0123456789") in GENERIC_WORDS or word in GENERIC_WORDS or word.isdigit()
               for word in words_of(text)) and not text.isdigit()


def _first_group(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""
