"""Tables about people -> age, sex and every other column, for each scan by its subject and session.

Tables: participants.tsv and sub-XX_sessions.tsv of BIDS [1], the csv files of OASIS, and any csv or
tsv that `--covariates` names. A row is about a subject, or about one session of a subject: a column
of its own says which (`session_id`), or a name that holds both (`OAS1_0001_MR1`, `sub-01_ses-2`).

[1] Gorgolewski et al. 2016, The brain imaging data structure, doi 10.1038/sdata.2016.44.
"""

import codecs
import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from vqvae2.common import memory
from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import read_at_most
from vqvae2.scans.finding import Scan

SESSIONS_NAME = re.compile(r"(?:sub-(.+)_)?sessions\.tsv", re.IGNORECASE)
SUBJECT_COLUMNS = ("participantid", "participant", "subjectid", "subject", "subjid", "subj", "subid", "sub",
                   "patientid", "oasisid", "mriid", "mrid", "id")
"""In lower case, letters and digits only; the first that a table has is used. `MRI ID` may stand beside `Subject ID`,
and an `ID` beside others may only number the rows, so these come last."""
SESSION_COLUMNS = ("sessionid", "session", "sesid", "ses", "sessionlabel", "oasissessionlabel")
SUBJECT_AND_SESSION = re.compile(
    r"(?:sub-)?(?:(OAS[12]_\d{4})_(MR\d+)|(OAS[34]\d{4})_\w+_(d\d{4,})|(.+)_sess?-([^_]+))")
SEX_COLUMNS = ("sex", "gender", "m/f")
SEX = {"f": "F", "female": "F", "m": "M", "male": "M"}
UNKNOWN = frozenset(("", "n/a", "na", "nan", "none", "."))
COLUMNS_IN_A_MESSAGE = 20
BYTES_A_BYTE = 120
"""The memory that a table takes for each of its bytes, where its cells are a letter each."""


@dataclass(frozen=True)
class Covariates:
    """The values of all columns for each scan."""

    columns: tuple[str, ...]
    """age and sex, then all others in the order of the tables; a table about other people adds none."""
    values: dict[str, dict[str, str]]
    """Every column of each scan, by the scan's name; "" where the value is unknown."""
    missing: tuple[str, ...]
    """The subjects without a row in any table, sorted; empty if there is no table."""
    left_out: tuple[str, ...] = ()
    """A line for each table that was found and cannot be used, with the reason."""


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    rows: dict[str, list[tuple[str, dict[str, str]]]]
    """Every row of each subject: its session ("" where the row names none) and its cells by column."""

    def about(self, scan: Scan) -> dict[str, str] | None:
        """Return the cells in which all rows of the session agree, else all rows of the subject; None without a row."""
        rows = self.rows.get(f"{scan.subject}_{scan.session}") or self.rows.get(scan.subject, [])
        chosen = [cells for session, cells in rows if session == scan.session] or [cells for _, cells in rows]
        if not chosen:
            return None
        if scan.session and len(rows) == 1 and rows[0][0] not in ("", scan.session):
            return {"sex": chosen[0]["sex"]}  # of one other visit: what else is the same at both is not known
        return {column: chosen[0][column] for column in self.columns if len({cells[column] for cells in chosen}) == 1}


def join(scans: Collection[Scan], tables: dict[str, list[Path]], given: Path | None, subject_column: str | None,
         taken: Collection[str]) -> Covariates:
    """Return what the tables know of each scan's subject and session.

    A row of the scan's session is used, or else what all rows of its subject agree in: sex, but not
    the ages at other visits. Of several tables above a scan the nearest that knows a value decides it.
    `sex` is F or M, and the column that it comes from stays beside it if it holds anything else;
    all other columns keep their names and texts, but n/a, NA, nan, None and . become "".

    Args:
        scans: the scans that are used.
        tables: files with a TABLE_NAME (identities.py) by the folder that holds them, below the searched one (".").
            Those that cannot be used are left out.
        given: the file of `--covariates`, which is then the only table.
        subject_column: its column with the subjects; None looks for a usual name.
        taken: names of columns that the manifest has; a table's column of such a name becomes `table_<name>`.

    Raises: UserError if `given` cannot be used.
    """
    left_out: list[str] = []
    read = {".": [read_table(given, subject_column, taken)]} if given is not None else {
        folder: _read_usable(tables[folder], taken, left_out)
        for folder in sorted(tables, key=lambda folder: PurePosixPath(folder).parts)}
    about: dict[str, dict[int, dict[str, str]]] = {}  # by the scan's name, and by the number of the table's object
    for scan in scans:
        above = [table for folder in PurePosixPath(scan.name).parents for table in read.get(str(folder), [])]
        about[scan.name] = {id(table): cells for table in above if (cells := table.about(scan)) is not None}
    used = set().union(*about.values())  # a table of others adds no columns
    columns = tuple(dict.fromkeys(("age", "sex", *(
        column for found in read.values() for table in found if id(table) in used for column in table.columns))))
    values = {name: {column: next((cells[column] for cells in found.values() if cells.get(column)), "")
                     for column in columns} for name, found in about.items()}
    with_row = {scan.subject for scan in scans if about[scan.name]}
    missing = sorted({scan.subject for scan in scans} - with_row) if any(read.values()) else ()
    return Covariates(columns, values, tuple(missing), tuple(left_out))


def _read_usable(paths: list[Path], taken: Collection[str], left_out: list[str]) -> list[_Table]:
    """Return the tables of one folder, and add to `left_out` why one cannot be used.

    First is sessions.tsv, which says more about a scan than participants.tsv.
    """
    usable = []
    for path in sorted(paths, key=lambda path: (not SESSIONS_NAME.fullmatch(path.name), path.name)):
        try:
            usable.append(read_table(path, None, taken))
        except UserError as error:  # nobody asked for this table, so it must not stop an extraction
            left_out.append(f"{path.name} left out: {str(error).removeprefix(f'--covariates {path}: ')}")
    return usable


def read_table(path: Path, subject_column: str | None, taken: Collection[str] = ()) -> _Table:
    """Return a table, for the arguments of `join`.

    Raises: UserError in the name of `--covariates` if the table or `--subject-column` cannot be used.
    """
    what = f"--covariates {path}"
    names, rows = _names_and_rows(path, what)
    whose, visit = _key_columns(names, rows, subject_column)
    match = SESSIONS_NAME.fullmatch(path.name)  # sub-01_sessions.tsv, or sub-01/sessions.tsv
    subject_of_file = (match[1] or path.absolute().parent.name.removeprefix("sub-")) if match else ""
    found = ", ".join(names[:COLUMNS_IN_A_MESSAGE]) + (", …" if len(names) > COLUMNS_IN_A_MESSAGE else "")
    if subject_column:
        expect(bool(whose), what, f"a column {subject_column}", found, "Give --subject-column one of these.")
    expect(bool(whose or subject_of_file), what, "a column of subjects, such as participant_id", found,
           "Name it with --subject-column.")

    keys = {whose, visit, *(name for name in names if _letters(name) in SUBJECT_COLUMNS + SESSION_COLUMNS)}
    covariates = _with_age_and_sex(rows, [name for name in names if name not in keys], taken)
    people = defaultdict(list)
    for row, cells in zip(rows, covariates):
        subject, session = _subject_and_session(row.get(whose, subject_of_file))
        own = _cell_value(row.get(visit, ""))
        people[subject].append((_subject_and_session(own)[1] or re.sub("^sess?-", "", own) or session, cells))
    return _Table(tuple(covariates[0]), dict(people))


def _names_and_rows(path: Path, what: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns' names, and of each row (at least one) the stripped cells by them."""
    text = _text(path, what)
    header = re.sub(r'"[^"]*"', "", next((line for line in text.splitlines() if line.strip()), ""))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)  # Excel in Europe writes ;
    try:
        reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, skipinitialspace=True)
        lines = [cells for line in reader if any(cells := [cell.strip() for cell in line])]
    except csv.Error as error:
        raise UserError(f"{what}: expected a table of text, found {error}. Export it as csv.") from None
    if lines and len(lines[0]) <= 2 and lines[0][0].lower().startswith("sep="):  # Excel's note to itself
        lines = lines[1:]
    expect(len(lines) > 1, what, "a line of column names and a row for each subject", f"{len(lines)} line(s)",
           "Export it again, or correct the path.")
    names = [name for name in lines[0] if name]
    long = next((line for line in lines[1:] if any(line[len(lines[0]):])), None)
    expect(long is None, what, f"at most {len(lines[0])} cells in a row, as in its first line", f"{len(long or ())} in "
           f"that of {(long or [''])[0]}", "Are there decimal commas? Export it with semicolons or tabs.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    expect(not twice, what, "columns of different names", f"{', '.join(twice)} more than once", "Rename or remove one.")
    return names, [{name: cell for name, cell in zip_longest(lines[0], line, fillvalue="") if name}
                   for line in lines[1:]]


def _text(path: Path, what: str) -> str:
    try:
        expect(path.exists() and not path.is_dir(), what, "a table", "a folder" if path.is_dir() else "no file",
               "Correct the path.")
        data = read_at_most(path, memory.room() // BYTES_A_BYTE)
    except OSError as error:
        raise UserError(f"{what}: expected a file that can be read, found {(error.strerror or '').lower()}. "
                        "Correct the path or its permissions, or give fewer columns.") from None
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    expect(utf16 or b"\0" not in data, what, "a table of text", "a binary file, such as xlsx", "Export it as csv.")
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # which takes any bytes


def _key_columns(names: list[str], rows: list[dict[str, str]], subject_column: str | None) -> tuple[str, str]:
    """Return the names of the columns of subjects and of sessions, "" where there is none."""
    filled = {name: [row[name] for row in rows if row[name]] for name in names}
    # Cells such as OAS1_0001_MR1 name a subject and its session.
    both = next((name for name in names if filled[name] and all(map(SUBJECT_AND_SESSION.fullmatch, filled[name]))), "")
    named = {_letters(name): name for name in names}
    visit = next((named[each] for each in SESSION_COLUMNS if each in named), both)
    if subject_column:
        return subject_column if subject_column in names else "", visit
    return next((named[each] for each in SUBJECT_COLUMNS if each in named), both), visit


def _with_age_and_sex(rows: list[dict[str, str]], names: list[str], taken: Collection[str]) -> list[dict[str, str]]:
    """Return age, sex and the columns `names` of each row."""
    age = next((name for name in names if name.lower() == "age"), "")
    sexes = [name for name in names if name.lower() in SEX_COLUMNS]
    result = [{"age": _cell_value(row.get(age, "")),
               "sex": next((SEX[row[name].lower()] for name in sexes if row[name].lower() in SEX), "")} for row in rows]
    # 1 and 2 may mean either sex: a column of them stays, for someone who knows.
    said = {name for name in sexes if all(_cell_value(row[name]) == "" or SEX.get(row[name].lower()) == new["sex"]
                                          for row, new in zip(rows, result))}
    for name in (name for name in names if name not in said | {age}):
        column = name
        while column in taken or column in result[0]:
            column = f"table_{column}"
        for row, new in zip(rows, result):
            new[column] = _cell_value(row[name])
    return result


def _subject_and_session(name: str) -> tuple[str, str]:
    """OAS30001_MR_d0129 -> OAS30001, d0129; sub-01 -> 01 and no session."""
    match = SUBJECT_AND_SESSION.fullmatch(name)
    subject, session = filter(None, match.groups()) if match else (name.removeprefix("sub-"), "")
    return subject, session


def _cell_value(cell: str) -> str:
    return "" if cell.lower() in UNKNOWN else cell


def _letters(name: str) -> str:
    """`MRI ID`, `mri_id` -> mriid."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
