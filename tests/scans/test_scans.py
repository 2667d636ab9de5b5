import hashlib
import os
import re
import socket
import unicodedata
from pathlib import Path

import pytest

from vqvae2.scans.finding import find_scans


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, **options) -> list[tuple[str, str, str, str]]:
    return [(scan.name, scan.subject, scan.session, scan.prefix) for scan in find_scans(folder, **options).scans]


def names(folder: Path, **options) -> list[str]:
    return [scan.name for scan in find_scans(folder, **options).scans]


def people(folder: Path, **options) -> list[tuple[str, str]]:
    return [(scan.subject, scan.session) for scan in find_scans(folder, **options).scans]


def hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


LAYOUTS = {
    "BIDS": (["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/func/sub-01_bold.nii.gz",
              "sub-01/anat/sub-01_inplaneT2.nii.gz", "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
              "sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/anat/sub-01_T1w_defacemask.nii.gz", "participants.tsv"],
             [("sub-01/anat/sub-01_T1w.nii.gz", "01", "", "01")]),
    "BIDS with sessions": (["sub-a/ses-2/anat/sub-a_ses-2_T1w.nii", "sub-a/ses-1/anat/sub-a_ses-1_T1w.nii"],
                           [("sub-a/ses-1/anat/sub-a_ses-1_T1w.nii", "a", "1", "a_1"),
                            ("sub-a/ses-2/anat/sub-a_ses-2_T1w.nii", "a", "2", "a_2")]),
    "the first of several runs": (["sub-1/anat/sub-1_run-10_T1w.nii", "sub-1/anat/sub-1_run-2_T1w.nii"],
                                  [("sub-1/anat/sub-1_run-2_T1w.nii", "1", "", "1_run-2")]),
    "OASIS-3 as downloaded": (
        ["OAS30001_MR_d0129/anat10/NIFTI/sub-OAS30001_ses-d0129_run-02_T1w.nii.gz",
         "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
         "OAS30001_MR_d0129/anat1/NIFTI/sub-OAS30001_ses-d0129_T2w.nii.gz",
         "OAS30001_MR_d0129/func1/NIFTI/sub-OAS30001_ses-d0129_task-rest_bold.nii.gz",
         "OAS30001_MR_d0757/anat2/NIFTI/T1w.nii.gz"],
        [("OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz", "OAS30001", "d0129",
          "OAS30001_d0129_run-01"),
         ("OAS30001_MR_d0757/anat2/NIFTI/T1w.nii.gz", "OAS30001", "d0757", "OAS30001_d0757")]),
    "OASIS-3 in BIDS": (["sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_T1w.nii.gz"],
                        [("sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_T1w.nii.gz", "OAS30001", "d0129",
                          "OAS30001_d0129")]),
    "OASIS-1": (
        ["disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr", "disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.img",
         "disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon_sag_66.gif",
         *(f"disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_{end}.{ext}"
           for end in ("gfc", "masked_gfc") for ext in ("hdr", "img")),
         "disc1/OAS1_0001_MR1/FSL_SEG/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr",
         "disc1/OAS1_0001_MR2/RAW/OAS1_0001_MR2_mpr-2_anon.hdr",
         "disc1/OAS1_0001_MR2/RAW/OAS1_0001_MR2_mpr-1_anon.hdr"],
        [("disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr",
          "OAS1_0001", "MR1", "OAS1_0001_MR1"),
         ("disc1/OAS1_0001_MR2/RAW/OAS1_0001_MR2_mpr-1_anon.hdr", "OAS1_0001", "MR2", "OAS1_0001_MR2_run-1")]),
    "OASIS-1 as one folder of files": (
        ["OAS1_0001_MR1_mpr_n4_anon_sbj_111.hdr", "OAS1_0001_MR1_mpr_n3_anon_111_t88_gfc.hdr",
         "OAS1_0002_MR1_mpr-2_anon.hdr"],
        [("OAS1_0001_MR1_mpr_n3_anon_111_t88_gfc.hdr", "OAS1_0001", "MR1", "OAS1_0001_MR1"),
         ("OAS1_0002_MR1_mpr-2_anon.hdr", "OAS1_0002", "MR1", "OAS1_0002_MR1_run-2")]),
    "OASIS-2": (["OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.hdr", "OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.img",
                 "OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-2.nifti.hdr", "OAS2_RAW_PART2/OAS2_0002_MR2/RAW/mpr-1.nii.gz"],
                [("OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.hdr", "OAS2_0002", "MR1", "OAS2_0002_MR1_run-1"),
                 ("OAS2_RAW_PART2/OAS2_0002_MR2/RAW/mpr-1.nii.gz", "OAS2_0002", "MR2", "OAS2_0002_MR2_run-1")]),
    "OASIS-4": (
        ["OAS42000/OAS42000_MR_d3016/anat1/NIFTI/sub-OAS42000_sess-d3016_FLAIR.nii.gz",
         "OAS42000/OAS42000_MR_d3016/anat1/BIDS/sub-OAS42000_sess-d3016_T1w.json",
         "OAS42000/OAS42000_MR_d3016/anat2/NIFTI/sub-OAS42000_sess-d3016_run-01_T1w.nii.gz",
         "OAS42000/OAS42000_MR_d3016/swi1/NIFTI/sub-OAS42000_sess-d3016_part-mag_T1w.nii.gz",
         "OAS42001_MR_d0003/anat3/T1w.nii.gz"],
        [("OAS42000/OAS42000_MR_d3016/anat2/NIFTI/sub-OAS42000_sess-d3016_run-01_T1w.nii.gz", "OAS42000", "d3016",
          "OAS42000_d3016_run-01"),
         ("OAS42001_MR_d0003/anat3/T1w.nii.gz", "OAS42001", "d0003", "OAS42001_d0003")]),
    "OASIS-4 as one folder of files": (["sub-OAS42000_sess-d3016_T1w.nii.gz"],
                                       [("sub-OAS42000_sess-d3016_T1w.nii.gz", "OAS42000", "d3016", "OAS42000_d3016")]),
    "ADNI": (["ADNI/002_S_0295/MPR__N3/2006-04-18_08_20_30.0/S13408/ADNI_002_S_0295_MR_MPR__N3_S13408_I45108.nii",
              "ADNI/002_S_0295/MPR__N3/2006-11-02_08_16_44.0/S21856/ADNI_002_S_0295_MR_MPR__N3_S21856_I40966.nii"],
             [("ADNI/002_S_0295/MPR__N3/2006-04-18_08_20_30.0/S13408/ADNI_002_S_0295_MR_MPR__N3_S13408_I45108.nii",
               "002_S_0295", "2006-04-18", "002_S_0295_2006-04-18"),
              ("ADNI/002_S_0295/MPR__N3/2006-11-02_08_16_44.0/S21856/ADNI_002_S_0295_MR_MPR__N3_S21856_I40966.nii",
               "002_S_0295", "2006-11-02", "002_S_0295_2006-11-02")]),
    "ADNI as one folder of files": (
        ["ADNI_002_S_0295_MR_MP-RAGE_br_raw_20060418193538653_1_S13408_I13722.nii",
         "ADNI_002_S_0295_MR_MPR__N3__Scaled_Br_20070319113623975_S13408_I45108.nii",
         "ADNI_002_S_0295_MR_MP-RAGE_br_raw_20061102123250714_1_S21856_I28561.nii"],
        [("ADNI_002_S_0295_MR_MP-RAGE_br_raw_20060418193538653_1_S13408_I13722.nii", "002_S_0295", "S13408",
          "002_S_0295_S13408"),
         ("ADNI_002_S_0295_MR_MP-RAGE_br_raw_20061102123250714_1_S21856_I28561.nii", "002_S_0295", "S21856",
          "002_S_0295_S21856")]),
    "HCP": (["100307/T1w/T1w_acpc_dc_restore_brain.nii.gz", "100307/T1w/aparc+aseg.nii.gz",
             "100307/T1w/BiasField_acpc_dc.nii.gz", "100307/MNINonLinear/T1w_restore_brain.nii.gz"],
            [("100307/T1w/T1w_acpc_dc_restore_brain.nii.gz", "100307", "", "100307")]),
    "names of one digit": (["1/anat_1/mprage.nii.gz", "1/anat_2/mprage.nii.gz"],
                           [("1/anat_1/mprage.nii.gz", "1", "", "1")]),
    "names in other scripts": (["1²3.mgz", "Åsa Öberg.nii", "Klinik/患者.nii.gz"],
                               [("1²3.mgz", "1²3", "", "1²3"), ("Klinik/患者.nii.gz", "患者", "", "患者"),
                                ("Åsa Öberg.nii", "Åsa Öberg", "", "Åsa-Öberg")]),
    "folders named like scans": (["a.nii/a.nii", "b.nii.gz/T1.nii"],
                                 [("a.nii/a.nii", "a", "", "a"), ("b.nii.gz/T1.nii", "b", "", "b")]),
    "extensions in capitals": (["a.NII.GZ", "b.HDR", "b.IMG", "c.hdr", "c.IMG", "d.img"],
                               [("a.NII.GZ", "a", "", "a"), ("b.HDR", "b", "", "b"), ("c.hdr", "c", "", "c"),
                                ("d.img", "d", "", "d")]),
    "FreeSurfer": (["bert/mri/T1.mgz", "bert/mri/brain.mgz", "bert/mri/aseg.mgz", "bert/mri/orig/001.mgz",
                    "bert/mri/ribbon.mgz"], [("bert/mri/brain.mgz", "bert", "", "bert")]),
    "a flat folder": (["IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz", "PD_004.nii.gz", "x.txt", "y.png",
                       "IXI012-HH-1211-PD.nii.gz", "._PD_004.nii.gz", ".hidden.nii", "case 3_seg.nii", "case 3.nii"],
                      [("IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828", "", "IXI002-Guys-0828"),
                       ("PD_004.nii.gz", "PD_004", "", "PD_004"), ("case 3.nii", "case 3", "", "case-3")]),
    "a folder for each subject": (["p01/T1.nii.gz", "p01/FLAIR.nii.gz", "p02/T1.nii.gz"],
                                  [("p01/T1.nii.gz", "p01", "", "p01"), ("p02/T1.nii.gz", "p02", "", "p02")]),
    "visits in a folder for each subject": (["p01/visit1.nii", "p01/visit2.nii", "p02/visit1.nii"],
                                            [("p01/visit1.nii", "p01", "visit1", "p01_visit1"),
                                             ("p01/visit2.nii", "p01", "visit2", "p01_visit2"),
                                             ("p02/visit1.nii", "p02", "visit1", "p02_visit1")]),
    "session folders": (["0050642/session_1/anat_1/mprage.nii.gz", "0050642/session_2/anat_1/mprage.nii.gz"],
                        [("0050642/session_1/anat_1/mprage.nii.gz", "0050642", "session_1", "0050642_session_1"),
                         ("0050642/session_2/anat_1/mprage.nii.gz", "0050642", "session_2", "0050642_session_2")]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scans_of_a_layout_are_found_with_subject_and_session(tmp_path, layout):
    files, expected = LAYOUTS[layout]
    assert found(tree(tmp_path, *files)) == expected


def test_further_scans_of_a_session_are_counted(tmp_path):
    assert find_scans(tree(tmp_path, *LAYOUTS["OASIS-1"][0])).further == 3


MPRAGE = "OAS1_0001_MR1/PROCESSED/MPRAGE"
OASIS_1_BEST_FIRST = [
    f"{MPRAGE}/T88_111/OAS1_0001_MR1_mpr_n3_anon_111_t88_masked_gfc.hdr",
    f"{MPRAGE}/T88_111/OAS1_0001_MR1_mpr_n3_anon_111_t88_gfc.hdr",
    f"{MPRAGE}/SUBJ_111/OAS1_0001_MR1_mpr_n3_anon_sbj_111.hdr",
    "OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr",
    "OAS1_0001_MR1/FROM_A_COLLEAGUE/OAS1_0001_MR1_n4.nii.gz"]


@pytest.mark.parametrize("best", range(5))
def test_oasis_1_prefers_what_is_masked_then_corrected_then_averaged_then_raw(tmp_path, best):
    folder = tree(tmp_path, *OASIS_1_BEST_FIRST[best:], "OAS1_0001_MR1/FSL_SEG/OAS1_0001_MR1_t88_masked_gfc_fseg.hdr")
    assert names(folder) == names(folder, all_runs=True) == [OASIS_1_BEST_FIRST[best]]
    assert find_scans(folder, all_runs=True).further == 4 - best


@pytest.mark.parametrize("averaged", [3, 4, 5, 6])
def test_oasis_1_averages_any_number_of_runs(tmp_path, averaged):
    name = f"{MPRAGE}/T88_111/OAS1_0001_MR1_mpr_n{averaged}_anon_111_t88_masked_gfc.hdr"
    assert found(tree(tmp_path, name, OASIS_1_BEST_FIRST[3])) == [(name, "OAS1_0001", "MR1", "OAS1_0001_MR1")]


def test_oasis_1_says_how_its_analyze_files_are_stored(tmp_path):
    for number, name in enumerate(OASIS_1_BEST_FIRST):
        tree(tmp_path, f"{number}/{name}")
    assert [scan.storage for scan in find_scans(tmp_path).scans] == ["LAS", "LAS", "ASL", "ASL", None]


@pytest.mark.parametrize("name", ["a.hdr", "RAW/a.hdr", "OAS2_0002_MR1/RAW/mpr-1.nifti.hdr"])
def test_no_storage_is_claimed_without_a_source(tmp_path, name):
    assert [scan.storage for scan in find_scans(tree(tmp_path, name)).scans] == [None]


RUNS = {
    "BIDS": (["sub-1/anat/sub-1_run-1_T1w.nii", "sub-1/anat/sub-1_run-02_T1w.nii", "sub-1/anat/sub-1_run-02_T2w.nii"],
             ["1_run-1", "1_run-02"]),
    "OASIS-2": (["OAS2_0002_MR1/RAW/mpr-1.nifti.hdr", "OAS2_0002_MR1/RAW/mpr-2.nifti.hdr"],
                ["OAS2_0002_MR1_run-1", "OAS2_0002_MR1_run-2"]),
    "OASIS-1, not what an average was made from": (
        [f"{MPRAGE}/SUBJ_111/OAS1_0001_MR1_mpr_n{n}_anon_sbj_111.hdr" for n in (3, 4)] + OASIS_1_BEST_FIRST[3:],
        [f"OAS1_0001_MR1_{hashed(f'{MPRAGE}/SUBJ_111/OAS1_0001_MR1_mpr_n{n}_anon_sbj_111.hdr')}" for n in (3, 4)]),
    "OASIS-3": (["OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_T1w.nii.gz",
                 "OAS30001_MR_d0129/anat3/NIFTI/sub-OAS30001_ses-d0129_run-02_T1w.nii.gz"],
                ["OAS30001_d0129", "OAS30001_d0129_run-02"]),
    "FreeSurfer, not its stages": (["bert/mri/T1.mgz", "bert/mri/brain.mgz", "bert/mri/orig.mgz"], ["bert"]),
}


@pytest.mark.parametrize("layout", RUNS)
def test_all_runs_are_all_scans_of_the_best_kind(tmp_path, layout):
    files, prefixes = RUNS[layout]
    assert [scan.prefix for scan in find_scans(tree(tmp_path, *files), all_runs=True).scans] == prefixes


def test_the_run_stands_beside_the_scan(tmp_path):
    folder = tree(tmp_path, "sub-1/sub-1_run-02_T1w.nii", "OAS2_0002_MR1/RAW/mpr-3.nifti.hdr", "x.nii")
    assert [scan.run for scan in find_scans(folder).scans] == ["3", "02", ""]


@pytest.mark.parametrize(("first", "second"), [
    ("p/a.nii", "p/a.nii.gz"), ("p/x.hdr", "p/x.nii.gz"), ("sub-1_T1w.mgz", "sub-1_T1w.nii"),
    ("OAS2_0002_MR1/RAW/mpr-1.nifti.hdr", "OAS2_0002_MR1/RAW/mpr-1.nii.gz")])
@pytest.mark.parametrize("all_runs", [False, True])
def test_two_formats_of_a_scan_are_one_scan(tmp_path, first, second, all_runs):
    result = find_scans(tree(tmp_path, second, first), all_runs=all_runs)
    assert ([scan.name for scan in result.scans], result.further) == ([first], 1)


def test_an_img_without_its_hdr_gives_way_to_another_format(tmp_path):
    assert names(tree(tmp_path, "x.img", "x.nii.gz")) == ["x.nii.gz"]


CONTRASTS = ["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_desc-defaced_T1w.nii",
             "sub-1/anat/sub-1_T2w.nii", "sub-1/anat/sub-1_FLAIR.nii", "sub-1/anat/sub-1_acq-T2w_PDw.nii",
             "sub-1/anat/._sub-1_T2w.nii", "sub-1/fmap/sub-1_magnitude1.nii",
             "derivatives/prep/sub-1/anat/sub-1_desc-brain_mask.nii", "derivatives/prep/sub-1/anat/sub-1_T2w.nii",
             "derivatives/prep/sub-1/anat/sub-1_desc-preproc_T1w.nii", "sourcedata/sub-1_T2w.nii"]
PREP = "derivatives/prep/sub-1/anat/sub-1_desc-"


@pytest.mark.parametrize(("suffixes", "expected"), [
    (["T2w"], ["sub-1/anat/sub-1_T2w.nii"]), (["flair"], ["sub-1/anat/sub-1_FLAIR.nii"]),
    (["_T2w"], ["sub-1/anat/sub-1_T2w.nii"]), (["2w"], []), (["magnitude1"], ["sub-1/fmap/sub-1_magnitude1.nii"]),
    (["T1w", "T2w"], ["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_T2w.nii"]),
    (["desc-brain_mask"], [f"{PREP}brain_mask.nii"]), (["mask"], [f"{PREP}brain_mask.nii"]),
    (["desc-preproc_T1w"], [f"{PREP}preproc_T1w.nii"]),
    (["T2w", "mask"], [f"{PREP}brain_mask.nii", "sub-1/anat/sub-1_T2w.nii"]),
    (["T1w", "desc-defaced_T1w"], ["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_desc-defaced_T1w.nii"]),
    (["T1w", "desc-preproc_T1w"], [f"{PREP}preproc_T1w.nii", "sub-1/anat/sub-1_T1w.nii"])])
def test_suffixes_alone_decide_what_is_a_scan(tmp_path, suffixes, expected):
    assert names(tree(tmp_path, *CONTRASTS), suffixes=suffixes) == expected


@pytest.mark.parametrize(("name", "suffix"), [
    ("p01/FLAIR.nii", "FLAIR"), ("p01/FLAIR/FLAIR.nii", "flair"), ("p01.FLAIR.nii", "FLAIR"),
    ("p01 flair.nii", "FLAIR"), ("p01-T2.nii.gz", "T2"), ("p01/mri/aseg.mgz", "aseg"), ("masks/p01_mask.nii", "mask")])
def test_a_suffix_is_no_part_of_the_subject(tmp_path, name, suffix):
    assert found(tree(tmp_path, name), suffixes=[suffix]) == [(name, "p01", "", "p01")]


def test_each_suffix_gives_the_first_scan_of_a_session(tmp_path):
    files = ["IXI-T1/IXI002-T1.nii", "IXI-T1/IXI002_a-T1.nii", "IXI-T1/IXI003-T1.nii", "IXI-T2/IXI002-T2.nii"]
    result = find_scans(tree(tmp_path, *files, "IXI-T2/IXI002-T2.nii.gz"), suffixes=["T1", "T2"])
    assert [scan.name for scan in result.scans] == files
    assert [scan.subject for scan in result.scans] == ["IXI002", "IXI002", "IXI003", "IXI002"]
    assert result.further == 1
    assert len({scan.prefix for scan in result.scans}) == 4


PATTERNS = {
    "the first group": (r"case(\d+)", [("07", "day1"), ("07", "day2")]),
    "a named group": (r"(?P<where>left|right)_(?P<subject>case\d+)", [("case07", "day1"), ("case07", "day2")]),
    "the second group": (r"(case\d+)/day(\d)", [("case07", "1"), ("case07", "2")]),
    "two named groups": (r"(?P<subject>case\d+)/(?P<session>day\d)", [("case07", "day1"), ("case07", "day2")]),
    "the other group": (r"(?P<session>day\d)/\w+?(\d+)", [("07", "day1"), ("07", "day2")]),
}


@pytest.mark.parametrize("groups", PATTERNS)
def test_subject_pattern_says_subject_and_session(tmp_path, groups):
    pattern, expected = PATTERNS[groups]
    folder = tree(tmp_path, "case07/day1/left_case07.nii", "case07/day2/left_case07.nii")
    assert people(folder, subject_pattern=pattern) == expected


def test_subject_pattern_leaves_the_session_of_the_layout(tmp_path):
    folder = tree(tmp_path, "sub-c7x/ses-a/sub-c7x_ses-a_T1w.nii", "sub-c7y/ses-a/sub-c7y_ses-a_T1w.nii",
                  "sub-c7y/ses-b/sub-c7y_ses-b_T1w.nii")
    assert people(folder, subject_pattern=r"sub-(c\d)") == [("c7", "a"), ("c7", "b")]


@pytest.mark.parametrize("files", [["p1/visit1.nii", "p1/visit2.nii"], ["p1/ses-1/T1.nii", "p1/ses-2/T1.nii"]])
def test_subject_pattern_leaves_what_calls_itself_a_session(tmp_path, files):
    scans = find_scans(tree(tmp_path, *files), subject_pattern=r"(p\d)/").scans
    assert [scan.name for scan in scans] == files
    assert len({scan.session for scan in scans} - {""}) == 2


def test_subject_pattern_loses_sub_and_ses(tmp_path):
    folder = tree(tmp_path, "data/sub-7/ses-2/sub-7_ses-2_T1w.nii", "data/sub-8/sess-2/sub-8_sess-2_T1w.nii")
    assert people(folder, subject_pattern=r"(sub-\d)/(sess?-\d)") == [("7", "2"), ("8", "2")]


@pytest.mark.parametrize("files", [["siteA/p7_x.nii", "siteB/deep/p7_y.nii", "siteB/p8_y.nii"],
                                   ["siteA/sub-p7_T1w.nii", "siteB/sub-p7_T1w.nii", "siteB/sub-p8_T1w.nii"]])
def test_scans_of_one_subject_and_session_by_the_pattern_are_one_session_wherever_they_lie(tmp_path, files):
    result = find_scans(tree(tmp_path, *files), subject_pattern=r"(p\d)_")
    assert ([scan.name for scan in result.scans], result.further) == ([files[0], files[2]], 1)
    assert len(names(tmp_path, subject_pattern=r"(p\d)_", all_runs=True)) == 3


@pytest.mark.parametrize("pattern", [r"case(\d+)", r"(case|b?)", r"case(\d+)|other"])
def test_a_scan_in_which_the_pattern_finds_no_subject_is_refused(tmp_path, pattern):
    scans = find_scans(tree(tmp_path, "case7.nii", "other 8.nii"), subject_pattern=pattern).scans
    assert [(scan.name, bool(scan.refused)) for scan in scans] == [("case7.nii", False), ("other 8.nii", True)]
    assert re.fullmatch(r"expected a name in which --subject-pattern finds a subject, found other 8\.nii\. \w.+\.",
                        scans[1].refused)


def test_the_folders_above_the_given_one_do_not_count(tmp_path):
    folder = tree(tmp_path / "derivatives/sub-99/masks", "sub-01/anat/sub-01_T1w.nii.gz")
    assert [scan.subject for scan in find_scans(folder).scans] == ["01"]


def test_subjects_of_one_name_in_two_data_sets_get_image_names_apart(tmp_path):
    folder = tree(tmp_path, "a/sub-01/anat/sub-01_T1w.nii", "b/sub-01/anat/sub-01_T1w.nii", "c/sub-02_T1w.nii")
    scans = find_scans(folder).scans
    assert [scan.subject for scan in scans] == ["01", "01", "02"]
    assert scans[0].prefix != scans[1].prefix
    assert scans[0].prefix == "01_" + hashlib.sha256(b"a/sub-01/anat/sub-01_T1w.nii").hexdigest()[:8]
    assert scans[2].prefix == "02"


def test_names_that_differ_in_case_only_get_image_names_apart(tmp_path):
    scans = find_scans(tree(tmp_path, "x/Anna.nii", "y/anna.nii")).scans
    assert len({scan.prefix.casefold() for scan in scans}) == 2


def test_subject_and_session_that_read_like_another_subject_get_image_names_apart(tmp_path):
    scans = find_scans(tree(tmp_path, "x_1.nii", "sub-x/ses-1/sub-x_ses-1_T1w.nii")).scans
    assert {scan.prefix for scan in scans} == {f"x_1_{hashed(scan.name)}" for scan in scans}


def test_digits_that_tell_two_scans_apart_clash_with_no_third(tmp_path):
    clashing = f"01_{hashed('a/sub-01_T1w.nii')}"
    prefixes = {scan.name: scan.prefix for scan in find_scans(tree(
        tmp_path, "a/sub-01_T1w.nii", "b/sub-01_T1w.nii", f"{clashing}.nii")).scans}
    assert prefixes == {"a/sub-01_T1w.nii": clashing, "b/sub-01_T1w.nii": f"01_{hashed('b/sub-01_T1w.nii')}",
                        f"{clashing}.nii": f"{clashing}_{hashed(f'{clashing}.nii')}"}


def test_accents_are_one_character_in_image_names_and_one_person(tmp_path):
    composed, apart = (unicodedata.normalize(form, "sub-Zoë_T1w.nii") for form in ("NFC", "NFD"))
    scans = find_scans(tree(tmp_path, f"x/{apart}", f"y/{composed.upper().replace('SUB', 'sub')}")).scans
    assert [scan.subject for scan in scans] == ["Zoë", "ZOË"]
    assert [scan.prefix for scan in scans] == [f"{scan.subject}_{hashed(scan.name)}" for scan in scans]
    assert [(scan.subject, scan.prefix) for scan in find_scans(tmp_path / "x").scans] == [("Zoë", "Zoë")]


def test_image_names_have_no_character_that_a_disk_or_a_shell_minds(tmp_path):
    assert [scan.prefix for scan in find_scans(tree(tmp_path, "a 'b'\n\"c\"\\d\t:*?.nii")).scans] == ["a-b-c-d-"]


@pytest.mark.parametrize(("stem", "letters"), [("a" * 150, 150), ("a" * 151, 141), ("ä" * 100, 70)])
def test_a_long_image_name_is_cut_between_characters(tmp_path, stem, letters):
    """One letter is 1 or 2 bytes; 141 bytes are left beside _ and 8 digits, which is half of an ä too much."""
    prefix = find_scans(tree(tmp_path, f"{stem}.nii")).scans[0].prefix
    assert prefix == (stem if letters == len(stem) else f"{stem[0] * letters}_{hashed(f'{stem}.nii')}")
    assert len(f".{prefix}_coronal000.png.tmp".encode()) <= 255


def test_long_names_that_differ_at_their_ends_get_image_names_apart(tmp_path):
    scans = find_scans(tree(tmp_path, *(f"{'a' * 200}{end}.nii" for end in "bc"))).scans
    assert len({scan.prefix for scan in scans}) == 2


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_a_name_that_is_no_utf_8_is_written_so_that_it_can_be_read(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    [scan] = find_scans(tmp_path).scans
    assert (scan.name, scan.subject) == (r"caf\udce9.nii", r"caf\udce9")
    assert scan.prefix == "caf-udce9_" + hashlib.sha256(rb"caf\udce9.nii").hexdigest()[:8]
    assert scan.path.exists()


def test_tables_about_people_are_found_by_their_folder(tmp_path):
    tree(tmp_path, "participants.tsv", "Sessions.tsv", "sub-1/sub-1_sessions.tsv", "disc1/oasis_b.csv",
         "disc1/OASIS-a.csv", "scans.tsv", "participants.json", "disc1/my_oasis.csv", "._participants.tsv",
         "derivatives/participants.tsv")
    assert find_scans(tmp_path).tables == find_scans(tmp_path, suffixes=["T2w"]).tables == {
        ".": [tmp_path / "Sessions.tsv", tmp_path / "participants.tsv"],
        "sub-1": [tmp_path / "sub-1/sub-1_sessions.tsv"],
        "disc1": [tmp_path / "disc1/OASIS-a.csv", tmp_path / "disc1/oasis_b.csv"]}


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    """The tests may run as root, whom no permission stops."""
    tree(tmp_path, "a/T1.nii", "locked up/T1.nii", "derivatives/T1.nii")
    list_folder = os.scandir

    def list_unless_locked(folder):
        if Path(folder).name in ("locked up", "derivatives"):
            raise PermissionError(13, "Permission denied", str(folder))
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", list_unless_locked)
    result = find_scans(tmp_path)
    assert [(scan.name, scan.path, scan.refused) for scan in result.scans] == [
        ("a/T1.nii", tmp_path / "a/T1.nii", ""),
        ("locked up", tmp_path / "locked up", "expected a folder that can be read, found permission denied. "
                                              "See its permissions and the disk.")]
    assert result.further == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(("kind", "make"), [
    ("a named pipe", os.mkfifo), ("a socket", lambda path: socket.socket(socket.AF_UNIX).bind(path)),
    ("a device", lambda path: os.symlink("/dev/zero", path))])
def test_what_is_no_file_is_refused_and_takes_no_place(tmp_path, monkeypatch, kind, make):
    tree(tmp_path, "sub-1/sub-1_run-2_T1w.nii")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make("sub-1/sub-1_run-1_T1w.nii")
    result = find_scans(tmp_path)
    assert [(scan.name, scan.refused) for scan in result.scans] == [
        ("sub-1/sub-1_run-1_T1w.nii", f"expected a file, found {kind}. Move it out of the folder of scans."),
        ("sub-1/sub-1_run-2_T1w.nii", "")]
    assert result.further == 0


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_a_link_to_nothing_is_a_scan_like_any_other(tmp_path):
    (tmp_path / "sub-1_T1w.nii.gz").symlink_to(tmp_path / "not downloaded")
    assert [(scan.name, scan.refused) for scan in find_scans(tmp_path).scans] == [("sub-1_T1w.nii.gz", "")]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_links_to_folders_are_followed_once(tmp_path):
    tree(tmp_path / "real", "sub-01/anat/sub-01_T1w.nii")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/data").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    assert [scan.name for scan in find_scans(tmp_path / "scans").scans] == ["data/sub-01/anat/sub-01_T1w.nii"]


VISITS = {
    "visits at the end of names": (["p01_visit1.nii", "p01_visit2.nii", "p02-V1.nii"],
                                   [("p01", "visit1"), ("p01", "visit2"), ("p02", "V1")]),
    "sessions at the end of names": (["p01_ses-1_T1.nii", "p01_ses-2_T1.nii"], [("p01", "ses-1"), ("p01", "ses-2")]),
    "a folder and files named after it": (["p00/p00_visit1.nii", "p00/p00_visit2.nii", "p01/p01_visit1.nii"],
                                          [("p00", "visit1"), ("p00", "visit2"), ("p01", "visit1")]),
    "dates": (["p01/2010-01-01/p01_20100101.nii", "p01/2011-01-01/p01_20110101.nii", "p02/2010-01-01/p02_20100101.nii"],
              [("p01", "2010-01-01"), ("p01", "2011-01-01"), ("p02", "2010-01-01")]),
    "MIRIAD": ([f"miriad_{who}/miriad_{who}_0{visit}_MR_1/miriad_{who}_0{visit}_MR_1.nii"
                for who in ("188_AD_F", "189_HC_M") for visit in (1, 2)],
               [("miriad_188", "01"), ("miriad_188", "02"), ("miriad_189", "01"), ("miriad_189", "02")]),
    "FreeSurfer over time": (["a/mri/brain.mgz", "a_tp1/mri/brain.mgz", "a_tp2.long.a/mri/brain.mgz",
                              "fsaverage/mri/brain.mgz", "fsaverage5/mri/brain.mgz"],
                             [("a", ""), ("a", "tp1"), ("a", "tp2")]),
    "one FreeSurfer subject": (["mri/brain.mgz", "mri/T1.mgz"], [("mri", "")]),
    "a data set named as its files begin": (["study/study_001.nii", "study/study_002.nii"],
                                            [("study_001", ""), ("study_002", "")]),
    "two sites named as their files begin": ([f"{site}/{site}_{n:03d}.nii" for site in ("A", "B") for n in range(21)],
                                             [(f"{site}_{n:03d}", "") for site in ("A", "B") for n in range(21)]),
}


@pytest.mark.parametrize("case", VISITS)
def test_visits_of_one_person_are_never_two_persons(tmp_path, case):
    names, expected = VISITS[case]
    assert [(scan.subject, scan.session) for scan in find_scans(tree(tmp_path, *names)).scans] == expected
