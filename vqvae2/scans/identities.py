"""Names of scan files -> whose each is: subject, session, run, by which archive, and which of a session's come first.

archives.py has the archives whose names are known. In any other tree ("plain") the person is the one part of the paths
that differs from person to person, once visits, runs, series, kinds of scans and groups of people are taken away:

1. Names that differ in nothing but a visit, a run or a series (`p01_visit2`, `p01_run-1_T1w`, `p01/M12`) are one
   person.
2. What stands below several others (`left`, `followup`, `a.nii`) is no person.
3. Where two parts are left that would tell people apart differently, the files are in doubt; the part that makes fewer
   people counts meanwhile, since merging costs a subject where splitting ruins a study.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vqvae2.scans.archives import ARCHIVES, BY_NAME, DATE, FREESURFER_BEST_FIRST, Archive, first_match
from vqvae2.scans.volumes import suffix_of
from vqvae2.scans.words import CONTRAST_AGENT, T1_WORDS, words_of

SERIES = "dicom.dcm"
"""Stands for all DICOM files of a folder; a word that names no person."""
TABLE_NAME = re.compile(r"participants\.tsv|(?:sub-.+_)?sessions\.tsv|oasis.*\.csv", re.IGNORECASE)
"""Whole names of the files that are tables without being named by `--covariates`."""
PLAIN = "plain"
"""The archive of a path that no row of the table describes."""
GENERIC_WORDS = T1_WORDS | CONTRAST_AGENT | frozenset(re.findall(r"\w+", """
    anat anatomical anatomy brain head scan scans image images img volume vol struct structural raw nifti nii mri mr
    orig original nu norm anon anonymized defaced masked stripped skullstripped acpc dc restore data dataset files
    resources t2 t2w flair pd pdw t1ce t1gd dwi pre sag sagittal axial coronal 3d iso reg registered native processed
    preprocessed n3 n4 dicom accelerated freesurfer fs"""))
GENERIC_END = re.compile(rf"([-_. ]+(?:{'|'.join(sorted(map(re.escape, GENERIC_WORDS), key=len, reverse=True))}))+$",
                         re.IGNORECASE)
SURE_VISIT = (r"(?:sess?(?:ion)?|visit|time[-_ ]?point|tp|wave|run|mpr|exam)(?:[-_ ](?:\d\w*|[a-z]+)|[a-z]?\d+[a-z]?)"
              rf"|ses-\w+|(?:baseline|follow[-_]?up|screening|retest)[-_ ]?\d*|base|template|{DATE}")
SHORT_VISIT = (r"(?:time|scan|mri?|m|mo|month|v|t|w|wk|week|y|yr|year|d|day|fu|acq|series|ser|echo|rep|repeat|age)"
               r"[-_ ]?\d{1,4}(?:-\d)?[a-z]?|bl|sc|fu|pre|post|(?:19|20)\d\d")
VISIT = re.compile(f"{SURE_VISIT}|{SHORT_VISIT}", re.IGNORECASE)
"""A whole folder's name, or what ends a name."""
AT_THE_START = re.compile(rf"({'|'.join(sorted(map(re.escape, T1_WORDS), key=len, reverse=True))}|[vt]\d|{SURE_VISIT})"
                          r"[-_. ]+(?=.*\d)", re.IGNORECASE)
SURE_END = re.compile(rf"(?P<person>.+?)[-_. ]+(?P<visit>{SURE_VISIT})", re.IGNORECASE)
SHORT_END = re.compile(rf"(?P<person>.*\d.*?)[-_. ]+(?P<visit>{SHORT_VISIT})", re.IGNORECASE)
WEAK_END = re.compile(r"(?P<person>.*\d.*?)[-_. ](?P<visit>\d{1,2}|[A-Za-z])")
"""p01_2 and p01_b may be a second scan of p01 or another person, so both are p01's."""
GROUP = re.compile(r"""(?x)(?i:training|train|validation|validate|val|testing|test|patients?|controls?|healthy|normals?
    |hc|nc|cn|ad|e?mci|lmci|smc|mild|moderate|demented|non.?demented|hgg|lgg|males?|females?|men|women|cases?|subjects?
    |participants?|images(?:tr|ts|va)
    |(?:site|cent(?:er|re)|group|disc|disk|part|batch|scanner|cohort|fold|release|phase)[-_ ]?\w{0,3})""")
"""A folder of people, such as controls or site2."""
FREE_NAMES = {PLAIN, "nnunet", "loni", "xnat", "freesurfer", "dcm2niix"}
"""The archives in which people have names that somebody has chosen."""
MOST_VISITS = 6
"""More endings than these behind one name, which a weak rule takes for visits, are in doubt."""


MOST_SCANS_OF_A_SUBJECT = 20
"""A folder with more, all named after it, is a data set or a site."""


@dataclass(frozen=True)
class File:
    """A file that is a scan by its name, or a folder that is one, since there are DICOM files in it."""

    path: Path
    name: str
    """The path below the searched folder; that of a folder ends with SERIES, since its files' own names say nothing."""
    suffix: str
    """The value of --suffix that asked for the file; empty without --suffix."""
    series: str = ""
    """What a folder of DICOM files and a header in it call the series; empty for a file."""
    series_level: int | None = None
    """The index of the folder that is the series' own, if the headers say so: it is no person."""

    @property
    def scan_name(self) -> str:
        """Return the path of what the user sees, which is "." where the searched folder itself is the scan."""
        return (self.name.removesuffix(SERIES).rstrip("/") or ".") if self.name.endswith(SERIES) else self.name


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
    archive: str = PLAIN
    """The row of the table, "plain" or, with --subject-pattern, "pattern"."""
    series: str = ""
    """What the path calls the scan's series, such as MPRAGE; mostly empty."""
    is_rest: bool = False
    """True where the session is only what is left of the file's name, and does not call itself a visit."""


@dataclass(frozen=True)
class Choice:
    """One way to tell people apart in a tree that is in doubt."""

    archive: str
    """The value of --archive that confirms it: plain:2 takes the second folder's name, plain:file the file's own."""
    people: int
    examples: tuple[tuple[str, str], ...]
    """Paths, each with the subject that it would be of."""


@dataclass(frozen=True)
class Doubt:
    """A tree whose paths could be read in several ways."""

    files: int
    """The number of files whose person is in doubt."""
    choices: tuple[Choice, ...]


def identify(files: Sequence[File], subject_pattern: str | None = None,
             archive: str | None = None) -> tuple[list[tuple[File, Identity]], Doubt | None]:
    """Return each file and whose it is, and the doubt that remains; a subject is empty where none is found.

    Args:
        files: of one tree.
        subject_pattern: as find_scans has it; then nothing is in doubt.
        archive: the only archive to look for, plain:N or plain:file; then nothing is in doubt either.
    """
    if archive is not None and archive.startswith(f"{PLAIN}:"):
        known = [_at_level(file, _level_of(archive)) for file in files]
    else:
        rows = ARCHIVES if archive is None else (BY_NAME[archive],)
        known = [_by_archive(file.name, rows) for file in files]
    if subject_pattern is not None:
        return [(file, _identify_by_pattern(subject_pattern, file.name, who or Identity("", "", _visit(file))))
                for file, who in zip(files, known)], None
    if archive is not None:
        return [(file, who or Identity("", "")) for file, who in zip(files, known)], None
    plain = [file for file, who in zip(files, known) if who is None]
    told, doubt = _identify_plain(plain)
    found = [(file, who or told[file.name]) for file, who in zip(files, known)]
    return found, doubt or _doubt_about_names(found)


def _by_archive(name: str, rows: Sequence[Archive]) -> Identity | None:
    """Return what a name says by the first row that describes it; None if none does."""
    if (found := first_match(name, rows)) is None:
        return None
    row, match = found
    said = {key: value or "" for key, value in match.groupdict().items()}
    above, stem = name.rpartition("/")[0], stem_of(name) or ""
    start = min((match.start(key) for key in ("subject", "label") if said.get(key)), default=0)
    below = f"{above[start:]}/{stem}"
    subject, session = said.get("subject", ""), said.get("session", "")
    if "label" in said:
        person, visit = _split_weak(said["label"])
        session = session or visit or (said["label"] if subject else "")  # FreeSurfer's time1.long.p01
        subject = _split_weak(subject)[0] or subject or person
        if said["label"] and not subject:  # v1/mri, below a folder that says whose visit it is
            return None
        subject = subject or "mri"
    elif row.name in FREE_NAMES:
        person, visit = _split_weak(subject)
        subject, session = person or subject, session or visit
    session = session or _first_group(row.session, name)
    run = said.get("run") or _first_group(r"(?:^|_)run-(\w+?)(?=[_.]|$)", stem) or _first_group(row.run, stem)
    kind = next((i for i, each in enumerate(row.best_first) if re.search(each, below)), len(row.best_first))
    if stem in FREESURFER_BEST_FIRST and above.rpartition("/")[2] == "mri":
        kind = FREESURFER_BEST_FIRST.index(stem) + 1
    storage = row.storage[kind] if kind < len(row.storage) else None
    root = name[:start].rpartition("/")[0] if start or row.name != "freesurfer" else ""
    return Identity(root, subject.replace("/", "_"), session, run, kind, storage, row.name, said.get("series", ""))


def _identify_by_pattern(pattern: str, name: str, known: Identity) -> Identity:
    """Return the identity with the pattern's subject, empty where it finds none, and its session if it has a group."""
    if (match := re.search(pattern, name)) is None:
        return Identity("", "")
    groups, named = match.re.groups, match.re.groupindex
    subject = named.get("subject") or (2 if named.get("session") == 1 and groups > 1 else 1)
    session = named.get("session") or (2 if subject != 2 and groups > 1 else None)
    found = known.session if session is None else re.sub(r"^sess?-", "", match[session] or "")
    return replace(known, root="", subject=(match[subject] or "").removeprefix("sub-").strip(), session=found,
                   archive="pattern")


def split_visit(text: str) -> tuple[str, str]:
    """Return the person in a folder's or file's name, "" if it says none, and the visit: p01_visit2 -> p01, visit2."""
    visits: list[str] = []
    if not VISIT.fullmatch(text) and (match := AT_THE_START.match(text)):
        text, visits = text[match.end():], [match[1]] if match[1].lower() not in T1_WORDS else []
    while True:
        text = GENERIC_END.sub("", text)
        if _is_generic(text) or GROUP.fullmatch(text):
            return "", "_".join(visits)
        if VISIT.fullmatch(text):
            return "", "_".join([text, *visits])
        if not (match := SURE_END.fullmatch(text) or SHORT_END.fullmatch(text)):
            return text, "_".join(visits)
        text, visits = match["person"], [match["visit"], *visits]


def _split_weak(text: str) -> tuple[str, str]:
    """Return the same, and p01, 2 for p01_2, which may be a second scan or another person."""
    person, visit = split_visit(text)
    if match := WEAK_END.fullmatch(person):
        return match["person"], "_".join(filter(None, (match["visit"], visit)))
    return person, visit


@dataclass(frozen=True)
class _Part:
    """A part of a path that may be the person: the index of its folder, -1 for the file's own name."""

    level: int
    person: str


def _at_level(file: File, level: int) -> Identity | None:
    """Return the identity if the person is the folder of this index, or with -1 the file; None if there is none."""
    folders = PurePosixPath(file.name).parts[:-1]
    if level >= len(folders):
        return None
    part = folders[level] if level >= 0 else _label(file)
    person, visit = split_visit(part)
    person = person or stem_of(part) or part
    if level < 0:
        return Identity("/".join(folders), person, visit or _visit(file, whole=False))
    said, rest = _visit_below(file, level, person, visit)
    return Identity("/".join(folders[:level]), stem_of(person) or person, said or rest, is_rest=not said and bool(rest))


def _visit_below(file: File, level: int, person: str, visit: str) -> tuple[str, str]:
    """Return what calls itself a visit, of a file whose person is the folder of this index, and what is left of the
    file's name."""
    below = [part for i, part in enumerate(PurePosixPath(file.name).parts[:-1]) if i > level and i != file.series_level]
    label = _label(file)
    if label.lower().startswith(person.lower()):
        label = label[len(person):].strip("-_. ")
    rest, of_label = split_visit(label) if label else ("", "")
    told = [visit, *(part for part in below if VISIT.fullmatch(part)), *(split_visit(part)[1] for part in below
                                                                      if not VISIT.fullmatch(part)), of_label]
    return next(filter(None, told), ""), rest


def _identify_plain(files: Sequence[File]) -> tuple[dict[str, Identity], Doubt | None]:
    """Return whose each file of a plain tree is, by its name, and the doubt about it."""
    parts = {file.name: _parts_that_may_be_people(file) for file in files}
    _drop(parts, lambda level, of_level: len(of_level) > 1 and len({part.person for part in of_level.values()}) == 1)
    _drop(parts, lambda level, of_level: _is_a_data_set(level, of_level, parts))
    for name, found in parts.items():
        parts[name] = [part for i, part in enumerate(found) if not any(_begins(part, above) for above in found[:i])]
    _drop(parts, lambda level, of_level: _stands_below_several(level, of_level, parts))
    levels = sorted({part.level for found in parts.values() for part in found}, key=_depth)
    told = {level: {file.name: _person_at(parts[file.name], level) or _label(file) for file in files}
            for level in levels}
    choices = {level: _partition(people) for level, people in told.items()}
    by_file = {file.name: file for file in files}
    certain = len(set(choices.values())) <= 1
    level = levels[-1] if certain and levels else min(levels, key=lambda level: len(choices[level]), default=-1)
    identities = {}
    weak: dict[str, set[str]] = defaultdict(set)
    for name, file in by_file.items():
        own = [part.level for part in parts[name]] or [-1]
        who = _at_level(file, level if level in own else own[-1]) or Identity("", _label(file))
        if match := WEAK_END.fullmatch(who.subject):
            weak[match["person"]].add(match["visit"])
            who = replace(who, subject=match["person"], session="_".join(filter(None, (match["visit"], who.session))))
        identities[name] = who
    nobody = [name for name, found in parts.items() if not found]
    crowded = [person for person, visits in weak.items() if len(visits) > MOST_VISITS]
    if certain and not crowded and not (len(nobody) > 1 and _is_same_for_several(nobody, by_file)):
        return identities, None
    ways = [f"{PLAIN}:file" if level < 0 else f"{PLAIN}:{level + 1}" for level in
            (sorted({*levels, -1}, key=_depth) if not certain else levels or [-1])]
    return identities, Doubt(len(files), tuple(_choice(way, files) for way in ways))


def _doubt_about_names(found: Sequence[tuple[File, Identity]]) -> Doubt | None:
    """Return the doubt whether subjects whose names anybody may choose are visits of each other."""
    free = [(file, who) for file, who in found if who.archive in FREE_NAMES]
    own, others = {who.subject for _, who in free}, {who.subject for _, who in found}
    if not (_may_be_visits(own, others) or _may_share_beginnings(own) or _may_be_below_people(free)):
        return None
    doubtful, choices = free or list(found), []
    for archive in dict.fromkeys(who.archive for _, who in doubtful):
        people = {who.subject: file.scan_name for file, who in reversed(doubtful) if who.archive == archive}
        choices.append(Choice(archive if archive != PLAIN else f"{PLAIN}:{_usual_level(doubtful)}", len(people),
                              tuple((name, subject) for subject, name in list(people.items())[-2:])))
    return Doubt(len(doubtful), tuple(choices))


def _usual_level(found: Sequence[tuple[File, Identity]]) -> str:
    """Return N of plain:N, or "file", for the folder in which most of these files have their person."""
    levels = Counter("file" if (depth := len(PurePosixPath(who.root).parts)) >= file.name.count("/") else str(depth + 1)
                     for file, who in found if who.archive == PLAIN)
    return levels.most_common(1)[0][0]


def _may_be_below_people(found: Sequence[tuple[File, Identity]]) -> bool:
    """Return whether folders look as if each were a person's, or names below groups of people are not people's own.

    S01/E1001 and S01/E1002 beside S02/E1003; controls/01 and patients/01.
    """
    below, above = defaultdict(set), defaultdict(set)
    for _, who in found:
        folder = who.root.rpartition("/")[2]
        above[who.subject].update([folder] if GROUP.fullmatch(folder) else ())
        if who.archive != PLAIN and split_visit(folder)[0]:
            below[who.root].add(who.subject)
    several = [len(subjects) for subjects in below.values()]
    return any(len(groups) > 1 for groups in above.values()) or (
        len(several) > 1 and 1 < max(several) <= MOST_VISITS)


def _may_be_visits(subjects: set[str], others: set[str]) -> bool:
    """Return whether some names differ as visits do: in case or zeros, in an ending or beginning that others share.

    p1 and p01; p01 and p01pre; p01pre, p01post and p02pre; pre_p01, post_p01 and pre_p02.

    Args:
        subjects: names that somebody has chosen.
        others: all names; those of an archive's own form may be written twice, but have no endings.
    """
    def parts_of(subject: str) -> tuple[str, ...]:
        parts = [part.lstrip("0") or "0" for part in re.findall(r"[^\W\d_]+|\d+", subject.casefold())]
        return tuple(parts[1:] if len(parts) > 1 and parts[0] in ("sub", "subj", "subject", "adni") else parts)

    everybody = {parts_of(subject) for subject in others}
    known = {parts_of(subject) for subject in subjects}
    if len(everybody) < len(others) or any(
            name[:end] in everybody for name in known for end in range(1, len(name))) or any(
            name[:end] in known for name in everybody for end in range(1, len(name))):
        return True
    # c01 and p01 are two people, as AD_001 and CN_001 are: letters and one number are a whole name.
    longer = [name for name in known if len(name) > 1 and not (
        name[-1].isdigit() and not any(map(str.isdigit, name[:-1])))]
    behind = [(name[:-1], name[-1]) for name in longer]
    in_front = [(name[1:], name[0]) for name in known if len(name) > 1 and not all(map(str.isdigit, name[1:]))]
    for split in (behind, in_front):
        ends, owners = defaultdict(set), defaultdict(set)
        for rest, end in split:
            ends[rest].add(end)
            owners[end].add(rest)
        if any(len(same) > 1 and any(len(owners[end]) > 1 for end in same) for same in ends.values()):
            return True
    return False


def _may_share_beginnings(subjects: set[str]) -> bool:
    """Return whether a few names begin alike beside others that do not: p01_3T and p01_7T beside p02."""
    rests: dict[str, set[str]] = defaultdict(set)
    for subject in subjects:
        beginning, *rest = re.split(r"[-_. ]+", subject.casefold(), maxsplit=1)
        if not GROUP.fullmatch(beginning):
            rests[beginning].update(rest)
    return len(rests) > 1 and 1 < max(map(len, rests.values())) <= MOST_VISITS


def _is_same_for_several(nobody: Sequence[str], by_file: dict[str, File]) -> bool:
    labels = [_label(by_file[name]).lower() for name in nobody]
    return len(set(labels)) < len(labels) or any(VISIT.fullmatch(label) for label in labels)


def _choice(archive: str, files: Sequence[File]) -> Choice:
    told = [(file.scan_name, _at_level(file, _level_of(archive))) for file in files]
    firsts = {who.subject: name for name, who in reversed(told) if who}
    return Choice(archive, len(firsts), tuple((name, subject) for subject, name in list(firsts.items())[-2:]))


def _level_of(archive: str) -> int:
    """Return the index of the folder that plain:N means, -1 for plain:file."""
    return -1 if archive == f"{PLAIN}:file" else int(archive.partition(":")[2]) - 1


def _parts_that_may_be_people(file: File) -> list[_Part]:
    """Return the parts of a path that are no visit, kind or group."""
    found: list[_Part] = []
    *folders, _ = PurePosixPath(file.name).parts
    for level, part in [*enumerate(folders), (-1, _label(file))]:
        if level == file.series_level or (level >= 0 and part.lower() == file.suffix.lower()):
            continue
        person = split_visit(part)[0]
        if person:
            found.append(_Part(level, person))
    if not found:  # scan1.nii, brain_002.nii: the number is the person's
        numbered = [(level, part) for level, part in [*enumerate(folders), (-1, _label(file))]
                    if part[-1:].isdigit() and level != file.series_level and not VISIT.fullmatch(part)
                    and part.lower() not in T1_WORDS]
        found = [_Part(*numbered[-1])] if numbered else []
    return found


def _drop(parts: dict[str, list[_Part]], is_nobody: Callable[[int, dict[str, _Part]], bool]) -> None:
    """Take the levels away that are no people, while a file keeps one that may be."""
    levels = sorted({part.level for found in parts.values() for part in found}, key=_depth)
    for level in levels:
        of_level = {name: part for name, found in parts.items() if len(found) > 1
                    for part in found if part.level == level}
        if of_level and is_nobody(level, of_level):
            for name in of_level:
                parts[name] = [part for part in parts[name] if part.level != level]


def _begins(part: _Part, above: _Part) -> bool:
    """Return whether a name begins with the name of a folder above it: p01_a of p01."""
    return re.match(rf"{re.escape(above.person)}(?![^\W_])", part.person, re.IGNORECASE) is not None


def _is_a_data_set(level: int, of_level: dict[str, _Part], parts: dict[str, list[_Part]]) -> bool:
    """Return whether a folder of a level has more files named after it than a person has scans."""
    named_after = Counter(part.person for name, part in of_level.items()
                          if any(_begins(other, part) for other in parts[name] if _depth(other.level) > _depth(level)))
    return max(named_after.values(), default=0) > MOST_SCANS_OF_A_SUBJECT


def _stands_below_several(level: int, of_level: dict[str, _Part], parts: dict[str, list[_Part]]) -> bool:
    """Return whether each name of a level stands below several others, a few of them below each."""
    above: dict[str, set] = defaultdict(set)
    below: dict[tuple, set] = defaultdict(set)
    for name, part in of_level.items():
        parents = tuple(other.person for other in parts[name] if _depth(other.level) < _depth(level))
        above[part.person].add(parents)
        below[parents].add(part.person)
    return all(len(parents) > 1 and () not in parents for parents in above.values()) and all(
        len(names) <= MOST_VISITS for names in below.values())


def _depth(level: int) -> float:
    """Return a key that sorts the file's own name, -1, after all folders."""
    return level if level >= 0 else math.inf


def _person_at(found: list[_Part], level: int) -> str:
    return next((part.person for part in found if part.level == level), found[-1].person if found else "")


def _partition(people: dict[str, str]) -> frozenset[frozenset[str]]:
    """Return the files that are of one person each, whatever the persons' names."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name, person in people.items():
        groups[person.casefold()].add(name)
    return frozenset(map(frozenset, groups.values()))


def _visit(file: File, whole: bool = True) -> str:
    """Return the first part of the path that calls itself a session, such as visit1 or session_2."""
    folders = [part for i, part in enumerate(PurePosixPath(file.name).parts[:-1]) if i != file.series_level]
    parts = (*folders, *([_label(file)] if whole else []))
    return next(filter(VISIT.fullmatch, parts), "")


def stem_of(name: str) -> str | None:
    """Return a file's name without the end that says its format; None if the format is not known."""
    last = name.rpartition("/")[2]
    suffix = suffix_of(last)
    return last[: -len(suffix)].removesuffix(".nifti") if suffix else None


def _label(file: File) -> str:
    """Return the part of a file's name that names its subject: IXI002-Guys-T1 -> IXI002-Guys; T1 stays T1."""
    stem = stem_of(file.name) or ""
    if file.suffix and not file.name.endswith(SERIES):
        stem = stem[: len(stem) - len(file.suffix)].rstrip("-_. ")
    return GENERIC_END.sub("", stem) or stem


def bare_name(stem: str) -> str:
    """Return a file's name without the words that say what kind of scan it is: P01_T1w_brain -> p01, T1 -> nothing."""
    return GENERIC_END.sub("", f"_{stem}").strip("-_. ").casefold()


def _is_generic(text: str) -> bool:
    """Return whether the words say only what kind of file it is: T1, anat_1, mprage."""
    words = words_of(text)
    return all(word.rstrip("0123456789") in GENERIC_WORDS or word in GENERIC_WORDS or word.isdigit()
               for word in words) and not all(map(str.isdigit, words))


def _first_group(pattern: str, text: str) -> str:
    match = re.search(pattern, text) if pattern else None
    return next(filter(None, match.groups()), "") if match else ""
