import hashlib
import os
from pathlib import Path

import pytest

from vqvae2.scans import find_scans


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path) -> list[tuple[str, str, str, str]]:
    return [(scan.name, scan.subject, scan.session, scan.prefix) for scan in find_scans(folder).scans]


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
         ("disc1/OAS1_0001_MR2/RAW/OAS1_0001_MR2_mpr-1_anon.hdr", "OAS1_0001", "MR2", "OAS1_0001_MR2")]),
    "OASIS-2": (["OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.hdr", "OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.img",
                 "OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-2.nifti.hdr"],
                [("OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.hdr", "OAS2_0002", "MR1", "OAS2_0002_MR1")]),
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
    names, expected = LAYOUTS[layout]
    assert found(tree(tmp_path, *names)) == expected


def test_further_scans_of_a_session_are_counted(tmp_path):
    assert find_scans(tree(tmp_path, *LAYOUTS["OASIS-1"][0])).further == 3


def test_oasis_1_says_how_its_analyze_files_are_stored(tmp_path):
    scans = find_scans(tree(tmp_path, *LAYOUTS["OASIS-1"][0])).scans
    assert [scan.storage for scan in scans] == ["LAS", "ASL"]
    assert find_scans(tree(tmp_path / "other", "a.hdr", "a.img")).scans[0].storage is None


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


def test_age_and_sex_come_from_the_nearest_table(tmp_path):
    tree(tmp_path, *(f"sub-{n}/anat/sub-{n}_T1w.nii" for n in range(1, 5)), "disc1/OAS1_0001_MR1/RAW/mpr-1.hdr")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tgender\nsub-1\t39\tm\nsub-2\t20.5\tFemale\nsub-3\tn/a\tn/a\n")
    (tmp_path / "disc1/oasis_cross-sectional.csv").write_text("ID,M/F,Hand,Age\nOAS1_0001_MR1,F,R,74\n")
    assert [(scan.subject, scan.age, scan.sex) for scan in find_scans(tmp_path).scans] == [
        ("OAS1_0001", "74", "F"), ("1", "39", "M"), ("2", "20.5", "F"), ("3", "", ""), ("4", "", "")]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_links_to_folders_are_followed_once(tmp_path):
    tree(tmp_path / "real", "sub-01/anat/sub-01_T1w.nii")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/data").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    assert [scan.name for scan in find_scans(tmp_path / "scans").scans] == ["data/sub-01/anat/sub-01_T1w.nii"]
