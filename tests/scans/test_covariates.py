import re
import zipfile
from pathlib import Path

import pytest

from vqvae2.common.errors import UserError
from vqvae2.scans import covariates
from vqvae2.scans.covariates import Covariates, join, read_table
from vqvae2.scans.finding import Scan
from vqvae2.scans.identities import TABLE_NAME

BIDS = "participant_id\tage\tsex\thandedness\nsub-01\t39\tM\tR\nsub-02\t20.5\tF\tL\n"


def scan_of(name: str, subject: str, session: str) -> Scan:
    """A scan of which nothing but whose it is matters here."""
    return Scan(Path(name), name, subject, session)


ANNA, BO = scan_of("sub-01/anat/sub-01_T1w.nii", "01", ""), scan_of("sub-02/anat/sub-02_T1w.nii", "02", "")
MANIFEST = ("image", "split", "subject", "session", "scan")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def visits(subject: str, *sessions: str) -> list[Scan]:
    """One scan for each session; its name says nothing else."""
    return [scan_of(f"{subject}/{session}/T1.nii", subject, session) for session in sessions]


def join_given(folder: Path, text: str, people, subject_column=None, name="table.csv") -> Covariates:
    return join(people, {}, write(folder / name, text), subject_column, MANIFEST)


def cells(covariates: Covariates, column: str) -> list[str]:
    """The covariates of every scan, in their order."""
    return [row[column] for row in covariates.values.values()]


# Which files are tables

@pytest.mark.parametrize("name", [
    "participants.tsv", "Participants.TSV", "sub-01_sessions.tsv", "sessions.tsv", "OASIS3_demographics.csv",
    "oasis_cross-sectional.csv", "oasis_cross-sectional-5708aa0a98d82080.csv", "oasis_longitudinal.csv",
    "oasis_longitudinal_demographics-8d83e569fa2e2d30.csv"])
def test_the_tables_of_bids_and_oasis_are_known_by_name(name):
    assert TABLE_NAME.fullmatch(name)


@pytest.mark.parametrize("name", [
    "participants.json", "my_participants.tsv", "participants.tsv.bak", "sub-01_scans.tsv", "oasis.xlsx", "notes.csv",
    "._participants.tsv"])
def test_other_files_are_no_tables(name):
    assert not TABLE_NAME.fullmatch(name)


# What a row says

def test_participants_join_by_subject(tmp_path):
    table = write(tmp_path / "participants.tsv", BIDS)
    assert join([ANNA, BO], {".": [table]}, None, None, MANIFEST) == Covariates(
        ("age", "sex", "handedness"),
        {ANNA.name: {"age": "39", "sex": "M", "handedness": "R"}, BO.name: {"age": "20.5", "sex": "F",
                                                                            "handedness": "L"}}, ())


def test_the_table_of_oasis_1_joins_by_subject_and_session(tmp_path):
    table = write(tmp_path / "disc1/oasis_cross-sectional.csv", "ID,M/F,Hand,Age,Educ,CDR,Delay\n"
                  "OAS1_0001_MR1,F,R,74,2,0.5,N/A\nOAS1_0061_MR1,F,R,20,,,\nOAS1_0061_MR2,F,R,20,,,40\n")
    people = [scan_of(f"disc1/{subject}_{session}/RAW/x.hdr", subject, session)
              for subject, session in (("OAS1_0001", "MR1"), ("OAS1_0061", "MR2"))]
    joined = join(people, {"disc1": [table]}, None, None, MANIFEST)
    assert joined.columns == ("age", "sex", "Hand", "Educ", "CDR", "Delay")
    assert [list(row.values()) for row in joined.values.values()] == [
        ["74", "F", "R", "2", "0.5", ""], ["20", "F", "R", "", "", "40"]]


def test_the_table_of_oasis_2_joins_by_its_mri_id(tmp_path):
    joined = join_given(tmp_path, "Subject ID,MRI ID,Group,Visit,M/F,Age,CDR\nOAS2_0002,OAS2_0002_MR1,Demented,1,M,75,0"
                        "\nOAS2_0002,OAS2_0002_MR2,Demented,2,M,76,0.5\n", visits("OAS2_0002", "MR1", "MR2"))
    assert joined.columns == ("age", "sex", "Group", "Visit", "CDR")
    assert (cells(joined, "age"), cells(joined, "CDR")) == (["75", "76"], ["0", "0.5"])


def test_mr_sessions_of_oasis_3_join_by_their_day(tmp_path):
    joined = join_given(tmp_path, "MR ID,Subject,Age,M/F\nOAS30001_MR_d0129,OAS30001,65.2,F\n"
                        "OAS30001_MR_d0757,OAS30001,66.9,F\n", visits("OAS30001", "d0129", "d0757"))
    assert (joined.columns, cells(joined, "age")) == (("age", "sex"), ["65.2", "66.9"])


def test_clinical_visits_of_oasis_3_give_a_scan_of_another_day_only_what_they_agree_in(tmp_path):
    joined = join_given(tmp_path, "ADRC_ADRCCLINICALDATA ID,Subject,Age,M/F,cdr,apoe\n"
                        "OAS30001_ClinicalData_d0000,OAS30001,65,F,0,23\n"
                        "OAS30001_ClinicalData_d0339,OAS30001,66,F,0,23\n", visits("OAS30001", "d0129", "d0339"))
    assert joined.columns == ("age", "sex", "cdr", "apoe")
    assert [list(row.values()) for row in joined.values.values()] == [["", "F", "0", "23"], ["66", "F", "0", "23"]]


def test_rows_of_one_session_that_disagree_leave_the_column_unknown(tmp_path):
    joined = join_given(tmp_path, "subject,session,run,age\n01,1,a,40\n01,1,b,40\n01,2,a,41\n", visits("01", "1"))
    assert joined.values == {"01/1/T1.nii": {"age": "40", "sex": "", "run": ""}}


def test_an_unknown_value_disagrees_with_a_known_one(tmp_path):
    """Otherwise the age at one visit would stand for the age at all visits."""
    joined = join_given(tmp_path, "subject,session,age\n01,1,40\n01,2,n/a\n", visits("01", "3"))
    assert cells(joined, "age") == [""]


@pytest.mark.parametrize(("header", "row"), [
    ("participant_id,session_id", "sub-01,ses-2"), ("Subject,Session", "01,2"), ("SUBJECT_ID,ses", "01,ses-2"),
    ("participant_id", "sub-01_ses-2"), ("participant_id,session_id", "sub-01,sub-01_ses-2"),
    ("Subject ID,scan_file", "sub-01,sub-01_ses-2"), ("scan_file", "sub-01_ses-2"), ("id", "01_2"),
    ("ID,participant_id,session", "1,01,2"), ("OASISID,session_label", "01,ses-2")])
def test_subject_and_session_are_found_under_many_names(tmp_path, header, row):
    other = row.replace("2", "3")
    joined = join_given(tmp_path, f"{header},dose\n{other},9\n{row},7\n", visits("01", "2"))
    assert (joined.columns[2:], cells(joined, "dose"), joined.missing) == (("dose",), ["7"], ())


def test_subject_column_names_any_column_and_its_cells_may_hold_the_session_too(tmp_path):
    text = "Code,ID,dose\nOAS1_0001_MR1,5,7\nOAS1_0001_MR2,6,8\n"
    joined = join_given(tmp_path, text, visits("OAS1_0001", "MR2"), "Code")
    assert joined.values == {"OAS1_0001/MR2/T1.nii": {"age": "", "sex": "", "dose": "8"}}


def test_a_cell_may_hold_the_session_where_others_do_not(tmp_path):
    joined = join_given(tmp_path, "subject,empty,age\nsub-01_ses-1,,39\nsub-01_ses-2,,40\nsub-02,,50\n",
                        visits("01", "1", "2") + visits("02", "1"))
    assert (joined.columns, cells(joined, "age")) == (("age", "sex", "empty"), ["39", "40", "50"])


def test_a_subject_called_na_is_a_subject(tmp_path):
    assert cells(join_given(tmp_path, "subject,age\nNA,39\n", visits("NA", "")), "age") == ["39"]


# Age, sex and the names of the others

@pytest.mark.parametrize("column", ["sex", "gender", "Sex", "Gender", "SEX", "M/F"])
@pytest.mark.parametrize(("written", "sex"), [("f", "F"), ("Female", "F"), ("M", "M"), ("male", "M"), ("n/a", "")])
def test_every_way_to_write_the_sex_becomes_f_or_m(tmp_path, column, written, sex):
    joined = join_given(tmp_path, f"subject,{column}\n01,{written}\n", visits("01", ""))
    assert joined.values == {"01//T1.nii": {"age": "", "sex": sex}}


@pytest.mark.parametrize(("column", "kept"), [("gender", "gender"), ("Sex", "Sex"), ("sex", "table_sex")])
def test_a_sex_in_other_words_is_unknown_and_its_column_is_kept(tmp_path, column, kept):
    joined = join_given(tmp_path, f"subject,{column}\n01,2\n02,f\n", visits("01", "") + visits("02", ""))
    assert joined.columns == ("age", "sex", kept)
    assert (cells(joined, "sex"), cells(joined, kept)) == (["", "F"], ["2", "f"])


def test_sex_and_gender_are_both_used_and_the_one_that_differs_is_kept(tmp_path):
    joined = join_given(tmp_path, "subject,sex,Gender\n01,M,F\n02,n/a,F\n", visits("01", "") + visits("02", ""))
    assert joined.columns == ("age", "sex", "Gender")
    assert (cells(joined, "sex"), cells(joined, "Gender")) == (["M", "F"], ["F", "F"])


@pytest.mark.parametrize("column", ["age", "Age", "AGE"])
def test_age_keeps_its_text(tmp_path, column):
    assert join_given(tmp_path, f"subject,{column}\n01,89+\n", visits("01", "")).values == {
        "01//T1.nii": {"age": "89+", "sex": ""}}


@pytest.mark.parametrize("unknown", ["n/a", "N/A", "NA", "nan", "NaN", "None", ".", ""])
def test_words_for_unknown_become_empty(tmp_path, unknown):
    row = ",".join(["01", *3 * [unknown], "Nantes"])
    joined = join_given(tmp_path, f"subject,age,CDR,sex,site\n{row}\n", visits("01", ""))
    assert joined.values == {"01//T1.nii": {"age": "", "sex": "", "CDR": "", "site": "Nantes"}}


def test_columns_of_the_manifest_are_not_overwritten(tmp_path):
    joined = join_given(tmp_path, "participant_id,scan,split,table_split,Scan\n01,3 T,x,y,z\n", visits("01", ""))
    assert joined.values == {"01//T1.nii": {"age": "", "sex": "", "table_scan": "3 T", "table_split": "x",
                                            "table_table_split": "y", "Scan": "z"}}


# Several tables, or none

def test_a_nearer_table_wins_and_a_further_one_fills_in(tmp_path):
    tables = {".": [write(tmp_path / "participants.tsv", BIDS)],
              "sub-01": [write(tmp_path / "sub-01/sub-01_sessions.tsv",
                               "session_id\tage\tmmse\nses-1\t40\t30\nses-2\t41\tn/a\nses-3\tn/a\t28\n")]}
    people = [scan_of(f"sub-01/ses-{n}/anat/T1w.nii", "01", n) for n in "123"] + [BO]
    joined = join(people, tables, None, None, MANIFEST)
    assert joined.columns == ("age", "sex", "handedness", "mmse")
    assert [list(row.values()) for row in joined.values.values()] == [
        ["40", "M", "R", "30"], ["41", "M", "R", ""], ["39", "M", "R", "28"], ["20.5", "F", "L", ""]]


def test_a_table_of_sessions_may_have_its_subject_in_the_name_of_its_folder(tmp_path, monkeypatch):
    table = write(tmp_path / "sub-01/sessions.tsv", "session_id\tage\nses-1\t40\nses-2\t41\n")
    monkeypatch.chdir(table.parent)
    for path in (table, Path(table.name)):
        joined = join([scan_of("sub-01/ses-2/T1w.nii", "01", "2"), BO], {"sub-01": [path]}, None, None, MANIFEST)
        assert (cells(joined, "age"), joined.missing) == (["41", ""], ("02",))


def test_of_two_tables_in_one_folder_that_of_sessions_wins(tmp_path):
    tables = [write(tmp_path / "participants.tsv", BIDS),
              write(tmp_path / "sessions.tsv", "participant_id\tsession_id\tage\nsub-01\tses-1\t40\n")]
    people = [scan_of("sub-01/ses-1/T1w.nii", "01", "1"), BO]
    for order in (tables, tables[::-1]):
        assert cells(join(people, {".": order}, None, None, MANIFEST), "age") == ["40", "20.5"]


def test_a_table_says_nothing_of_scans_outside_of_its_folder(tmp_path):
    table = write(tmp_path / "a/participants.tsv", BIDS)
    people = [scan_of("a/sub-01_T1w.nii", "01", ""), scan_of("b/sub-01_T1w.nii", "01", ""), scan_of("b/x.nii", "x", "")]
    joined = join(people, {"a": [table]}, None, None, MANIFEST)
    assert (cells(joined, "age"), joined.missing) == (["39", "", ""], ("x",))


def test_the_order_in_which_tables_were_found_does_not_matter(tmp_path):
    tables = {folder: [write(tmp_path / folder / "participants.tsv", f"participant_id\t{columns}\nsub-01\t1\t2\n")]
              for folder, columns in ((".", "b\ta"), ("x", "d\tc"), ("x/sub-01", "e\ta"))}
    backwards = dict(reversed(list(tables.items())))
    person = scan_of("x/sub-01/T1.nii", "01", "")
    joined = join([person], tables, None, None, MANIFEST)
    assert joined.columns == ("age", "sex", "b", "a", "d", "c", "e")
    assert join([person], backwards, None, None, MANIFEST).columns == joined.columns


def test_the_given_table_is_the_only_one(tmp_path):
    found = write(tmp_path / "participants.tsv", BIDS)
    given = write(tmp_path / "mine.csv", "subject,mmse\n01,30\n")
    joined = join([ANNA, BO], {".": [found]}, given, None, MANIFEST)
    assert (joined.columns, cells(joined, "mmse"), joined.missing) == (("age", "sex", "mmse"), ["30", ""], ("02",))


def test_missing_subjects_are_sorted_and_named_once(tmp_path):
    people = visits("b", "1", "2") + visits("a", "1") + visits("01", "1")
    assert join_given(tmp_path, "subject,age\n01,39\n", people).missing == ("a", "b")


def test_without_a_table_all_is_unknown_and_nobody_missing():
    assert join([ANNA], {}, None, None, MANIFEST) == Covariates(
        ("age", "sex"), {ANNA.name: {"age": "", "sex": ""}}, ())


def test_found_tables_that_cannot_be_used_are_left_out(tmp_path):
    tables = [write(tmp_path / "participants.tsv", BIDS), tmp_path / "gone/participants.tsv",
              write(tmp_path / "oasis_binary.csv", "PK\0\1"), write(tmp_path / "oasis_empty.csv", ""),
              write(tmp_path / "oasis_names.csv", "Name,Age\nA,1\n"),
              write(tmp_path / "oasis_twice.csv", "ID,x,x\n1,2,3\n")]
    joined = join([ANNA, BO], {".": tables}, None, None, MANIFEST)
    assert (joined.columns, cells(joined, "age")) == (("age", "sex", "handedness"), ["39", "20.5"])
    assert join([ANNA], {".": tables[1:]}, None, None, MANIFEST).missing == ()


# How a table is written

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_line_ends_make_no_difference(tmp_path, encoding, delimiter, newline):
    lines = ["age|subject|site", "39|01|Zürich", "40|02|Genève", ""]
    table = write(tmp_path / "t.csv", newline.join(lines).replace("|", delimiter), encoding)
    joined = join([ANNA, BO], {}, table, None, MANIFEST)
    assert joined.values == {ANNA.name: {"age": "39", "sex": "", "site": "Zürich"},
                             BO.name: {"age": "40", "sex": "", "site": "Genève"}}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_read_in_both_byte_orders(tmp_path, encoding):
    table = write(tmp_path / "t.csv", "\ufeffsubject;age\n01;39\n", encoding)
    assert cells(join([ANNA], {}, table, None, MANIFEST), "age") == ["39"]


def test_the_header_line_tells_the_delimiter_and_quotes_hide_others(tmp_path):
    joined = join_given(tmp_path, '"subject";"dose, a, b, c; all";note\n"01"; "39, 2";"a;b"\n', visits("01", ""))
    assert joined.values == {"01//T1.nii": {"age": "", "sex": "", "dose, a, b, c; all": "39, 2", "note": "a;b"}}


def test_a_quoted_cell_may_stand_after_a_space(tmp_path):
    assert cells(join_given(tmp_path, 'subject, site\n01, "Bonn, west"\n', visits("01", "")), "site") == ["Bonn, west"]


def test_tsv_is_parted_by_tabs_whatever_else_its_header_has(tmp_path):
    joined = join_given(tmp_path, "subject\ta,b,c,d\n01\t1,2\n", visits("01", ""), name="t.TSV")
    assert joined.columns == ("age", "sex", "a,b,c,d")


def test_blank_lines_spaces_ragged_rows_and_nameless_columns_are_harmless(tmp_path):
    text = "\n , ,\n subject , age,, site,\n\n01 , 39,lost, Bonn,more\n,,,\n02\n,50,,Nowhere\n"
    joined = join_given(tmp_path, text, visits("01", "") + visits("02", ""))
    assert joined.values == {"01//T1.nii": {"age": "39", "sex": "", "site": "Bonn"},
                             "02//T1.nii": {"age": "", "sex": "", "site": ""}}
    assert joined.missing == ()


# What is refused

def refusal(path, subject_column=None):
    """Return the message with which read_table and join refuse the table alike."""
    messages = []
    for use in (lambda: read_table(path, subject_column), lambda: join([ANNA], {}, path, subject_column, MANIFEST)):
        with pytest.raises(UserError, match=r"^--covariates .*: expected .*, found .*\. \w") as caught:
            use()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


def test_a_good_table_passes_the_check(tmp_path):
    assert read_table(write(tmp_path / "t.csv", "code,age\n1,2\n"), "code").columns == ("age", "sex")
    assert read_table(write(tmp_path / "participants.tsv", BIDS), None).columns == ("age", "sex", "handedness")


def test_a_missing_file_is_refused(tmp_path):
    assert re.search(r"--covariates .*no\.csv: expected a table, found no file\. Correct the path\.",
                     refusal(tmp_path / "no.csv"))


def test_a_folder_is_refused(tmp_path):
    assert re.search(r"expected a table, found a folder\. Correct the path\.", refusal(tmp_path))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    """Not by chmod: root reads everything."""
    def read_at_most(path, most):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(covariates, "read_at_most", read_at_most)
    assert re.search(r"found permission denied\. Correct the path or its permissions",
                     refusal(write(tmp_path / "t.csv", "subject\n1\n")))


def test_a_spreadsheet_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "oasis.xlsx"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    assert re.search(r"oasis\.xlsx: expected a table of text, found a binary file, such as xlsx\. Export it as csv\.",
                     refusal(path))


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("\n \n,,\n", 0), ("subject,age\n", 1)])
def test_a_table_without_rows_is_refused(tmp_path, text, lines):
    assert re.search(rf"a row for each subject, found {lines} line\(s\)\. Export it again",
                     refusal(write(tmp_path / "t.csv", text)))


def test_a_cell_without_end_is_refused(tmp_path):
    assert re.search(r"found field larger .*Export it as csv\.",
                     refusal(write(tmp_path / "t.csv", 'subject,age\n01,"' + "x" * 200_000)))


def test_columns_of_one_name_are_refused(tmp_path):
    assert re.search(r"different names, found age, x more than once\. Rename or remove one\.",
                     refusal(write(tmp_path / "t.csv", "subject,age,x,age,x\n01,1,2,3,4\n")))


def test_a_table_without_a_known_subject_column_asks_for_its_name(tmp_path):
    assert re.search(r"such as participant_id, found Name, Age\. Name it with --subject-column\.",
                     refusal(write(tmp_path / "t.csv", "Name,Age\nA,1\n")))


def test_a_subject_column_that_is_not_there_names_those_that_are(tmp_path):
    path = write(tmp_path / "t.csv", "ID,Age\n1,2\n")
    assert re.search(r"expected a column Code, found ID, Age\. Give --subject-column one of these\.",
                     refusal(path, "Code"))


def test_of_very_many_columns_the_message_names_the_first(tmp_path):
    names = ",".join(f"c{i}" for i in range(300))
    assert re.search(r"found c0, c1, .*, c19, …\. Name it", refusal(write(tmp_path / "t.csv", f"{names}\n{names}\n")))


def test_a_decimal_comma_that_makes_a_cell_too_many_is_refused(tmp_path):
    (tmp_path / "people.csv").write_text("ID,Age,Sex\n01,39,F\n02,39,5,F\n")
    with pytest.raises(UserError, match=r"at most 3 cells in a row, .*found 4 in that of 02\. Are there"):
        read_table(tmp_path / "people.csv", None)


def test_excels_first_line_about_its_delimiter_is_no_header(tmp_path):
    (tmp_path / "people.csv").write_text("sep=;\nID;Age;Sex\n01;39,5;F\n")
    known = join([scan_of("a.nii", "01", "")], {}, tmp_path / "people.csv", None, ())
    assert known.values["a.nii"] == {"age": "39,5", "sex": "F"}


def test_a_found_table_that_is_left_out_is_named_with_its_reason(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id,age\nsub-01,39\n")
    known = join([scan_of("a.nii", "01", "")], {".": [tmp_path / "participants.tsv"]}, None, None, ())
    assert len(known.left_out) == 1
    assert known.left_out[0].startswith("participants.tsv left out: expected a column of subjects, such as")
