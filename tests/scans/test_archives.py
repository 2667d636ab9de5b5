"""Tests that each archive of the table, and any tree that no row describes, tells whose a scan is."""

import os
import random
import re
from pathlib import Path

import pytest
from test_scans import tree

from vqvae2.commands import extract
from vqvae2.common.errors import UserError
from vqvae2.scans.archives import ARCHIVES, table
from vqvae2.scans.finding import find_scans
from vqvae2.scans.identities import File, identify

# Archive -> two visits of two people where it has visits, with what stands beside them: path -> (subject, session), or
# None for a path that must not be taken.
ROOT = Path(__file__).parents[2]
TREES = {
    "oasis-1": {"OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr": ("OAS1_0001", "MR1"),
                "OAS1_0001_MR2/RAW/OAS1_0001_MR2_mpr-1_anon.hdr": ("OAS1_0001", "MR2"),
                "OAS1_0001_MR1/FSL_SEG/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr": None},
    "oasis-2": {"OAS2_RAW_PART1/OAS2_0002_MR1/RAW/mpr-1.nifti.hdr": ("OAS2_0002", "MR1"),
                "OAS2_RAW_PART1/OAS2_0002_MR2/RAW/mpr-1.nifti.hdr": ("OAS2_0002", "MR2")},
    "oasis-3": {"OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_T1w.nii.gz": ("OAS30001", "d0129"),
                "OAS30001_MR_d0757/anat2/NIFTI/sub-OAS30001_ses-d0757_T1w.nii.gz": ("OAS30001", "d0757"),
                "OAS30001_MR_d0757/func1/NIFTI/sub-OAS30001_ses-d0757_task-rest_bold.nii.gz": None},
    "oasis-4": {"OAS42000/OAS42000_MR_d3016/anat2/NIFTI/sub-OAS42000_sess-d3016_T1w.nii.gz": ("OAS42000", "d3016"),
                "OAS42000/OAS42000_MR_d3500/anat2/NIFTI/sub-OAS42000_sess-d3500_T1w.nii.gz": ("OAS42000", "d3500")},
    "adni": {"002_S_0295/MPRAGE/2006-04-18_08_20_30.0/S13408/ADNI_002_S_0295_MR_MPRAGE_S13408_I45108.nii":
             ("002_S_0295", "2006-04-18"),
             "002_S_0295/MPRAGE/2007-04-18_08_20_30.0/S23408/ADNI_002_S_0295_MR_MPRAGE_S23408_I55108.nii":
             ("002_S_0295", "2007-04-18"),
             "002_S_0295/B1-calibration_Body/2007-04-18_08_20_30.0/S23409/ADNI_002_S_0295_MR_B1-cal_S23409_I55109.nii":
             None,
             "002_S_0295/Axial_rsfMRI/2007-04-18_08_20_30.0/S1/ADNI_002_S_0295_MR_Axial_rsfMRI_S1_I1.nii": None},
    "loni": {f"{study}/{who}/{series}/20{year}-03-29_14_16_19.0/{letter}2694{year}/{study}_{who}_MR_{series}_I2.nii":
             (who, f"20{year}-03-29") for study, who, series, letter in (
                 ("PPMI", "3107", "MPRAGE_GRAPPA", "I"), ("AIBL", "1069", "MPRAGE_ADNI_confirmed", "I"),
                 ("NIFD", "1_S_0001", "t1_mprage", "S")) for year in (11, 12)},
    "hcp": {"100307/T1w/T1w_acpc_dc_restore_brain.nii.gz": ("100307", ""),
            "100408/unprocessed/3T/T1w_MPR1/100408_3T_T1w_MPR1.nii.gz": ("100408", ""),
            "HCA6002236_V1_MR/T1w/T1w_acpc_dc_restore.nii.gz": ("HCA6002236", "V1_MR"),
            "HCA6002236_V2_MR/T1w/T1w_acpc_dc_restore.nii.gz": ("HCA6002236", "V2_MR"),
            "100307/T1w/aparc+aseg.nii.gz": None, "100307/T1w/T1wDividedByT2w.nii.gz": None},
    "brats-2023": {"BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz": ("BraTS-GLI-00001", "000"),
                   "BraTS-GLI-00001-001/BraTS-GLI-00001-001-t1n.nii.gz": ("BraTS-GLI-00001", "001"),
                   "BraTS-GLI-00001-001/BraTS-GLI-00001-001-t1c.nii.gz": None,
                   "BraTS-GLI-00001-001/BraTS-GLI-00001-001-seg.nii.gz": None},
    "brats-2020": {"BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz": ("BraTS20_Training_001", ""),
                   "BraTS2021_00002/BraTS2021_00002_t1.nii.gz": ("BraTS2021_00002", ""),
                   "BraTS2021_00002/BraTS2021_00002_t1ce.nii.gz": None},
    "brats-2018": {"HGG/Brats18_2013_10_1/Brats18_2013_10_1_t1.nii.gz": ("Brats18_2013_10", "1"),
                   "HGG/Brats18_2013_11_1/Brats18_2013_11_1_t1.nii.gz": ("Brats18_2013_11", "1")},
    "uk-biobank": {"1000017_20252_2_0/T1/T1_brain.nii.gz": ("1000017", "2"),
                   "1000017_20252_3_0/T1/T1_brain.nii.gz": ("1000017", "3"),
                   "1000017_20252_3_0/T1/T1_fast/T1_brain_pve_0.nii.gz": None},
    "ixi": {"IXI-T1/IXI002-Guys-0828-T1.nii.gz": ("IXI002-Guys-0828", ""),
            "IXI-T1/IXI012-HH-1211-T1.nii.gz": ("IXI012-HH-1211", "")},
    "miriad": {"miriad_188_AD_M_01_MR_1.nii": ("miriad_188", "01"),
               "miriad_188_AD_M_02_MR_1.nii": ("miriad_188", "02")},
    "msseg": {f"Training/Center_0{c}/Patient_01/Raw_Data/3DT1.nii.gz": (f"Center_0{c}_Patient_01", "") for c in (1, 3)},
    "isbi-ms": {f"training0{k}/preprocessed/training0{k}_0{v}_mprage_pp.nii": (f"training0{k}", f"0{v}")
                for k in (1, 2) for v in (1, 2)},
    "wmh": {"Utrecht/0/pre/T1.nii.gz": ("Utrecht_0", ""), "Utrecht/0/pre/FLAIR.nii.gz": None,
            "Amsterdam/GE3T/100/pre/T1.nii.gz": ("GE3T_100", ""), "Utrecht/2/pre/T1.nii.gz": ("Utrecht_2", "")},
    "mrbrains": {"training/1/pre/reg_T1.nii.gz": ("1", ""), "training/2/pre/reg_T1.nii.gz": ("2", "")},
    "nnunet": {"imagesTr/brain_001_0000.nii.gz": ("brain_001", ""), "imagesTr/brain_002_0000.nii.gz": ("brain_002", ""),
               "labelsTr/brain_001.nii.gz": None},
    "atlas-1": {"Site1/031768/t01/031768_t1w_deface_stx.nii.gz": ("031768", "t01"),
                "Site1/031768/t02/031768_t1w_deface_stx.nii.gz": ("031768", "t02")},
    "mindboggle": {"OASIS-TRT-20_volumes/OASIS-TRT-20-1/t1weighted_brain.nii.gz": ("OASIS-TRT-20-1", ""),
                   "OASIS-TRT-20_volumes/OASIS-TRT-20-2/t1weighted_brain.nii.gz": ("OASIS-TRT-20-2", "")},
    "lpba40": {"native/S01/S01.native.mri.hdr": ("S01", ""), "native/S02/S02.native.mri.hdr": ("S02", "")},
    "ibsr": {"IBSR_01/IBSR_01_ana_strip.nii.gz": ("IBSR_01", ""), "IBSR_02/IBSR_02_ana_strip.nii.gz": ("IBSR_02", ""),
             "IBSR_02/IBSR_02_seg_ana.nii.gz": None},
    "miccai-2012": {"training-images/1000_3.nii": ("1000", "3"), "testing-images/1003_3.nii": ("1003", "3"),
                    "testing-images/1003_4.nii": ("1003", "4")},
    "calgary-campinas": {"Original/CC0001_philips_15_55_M.nii.gz": ("CC0001", ""),
                         "Original/CC0002_siemens_3_56_F.nii.gz": ("CC0002", "")},
    "adhd-200-athena": {"KKI_preproc/1018959/wssd1018959_session_1_anat.nii.gz": ("1018959", "session_1"),
                        "KKI_preproc/1018959/wssd1018959_session_2_anat.nii.gz": ("1018959", "session_2")},
    "indi": {"KKI/0050772/session_1/anat_1/mprage.nii.gz": ("0050772", "session_1"),
             "KKI/0050772/session_2/anat_1/mprage.nii.gz": ("0050772", "session_2"),
             "KKI/0050772/session_2/rest_1/rest.nii.gz": None},
    "fcp-1000": {"Baltimore/sub17017/anat/mprage_skullstripped.nii.gz": ("sub17017", ""),
                 "Baltimore/sub19738/anat/mprage_skullstripped.nii.gz": ("sub19738", "")},
    "xnat": {"S01_MR1/scans/3-MPRAGE/resources/NIFTI/files/T1.nii.gz": ("S01", "MR1"),
             "S01_MR2/scans/4-MPRAGE/resources/NIFTI/files/T1.nii.gz": ("S01", "MR2"),
             "S01_MR2/scans/5-Localizer/resources/NIFTI/files/image.nii.gz": None},
    "bids": {"sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz": ("01", "1"),
             "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz": ("01", "2"),
             "sub-01/ses-2/anat/c1sub-01_ses-2_T1w.nii.gz": None, "derivatives/sub-01/anat/sub-01_T1w.nii.gz": None},
    "freesurfer": {"p01_tp1/mri/brain.mgz": ("p01", "tp1"), "p01_tp2/mri/brain.mgz": ("p01", "tp2"),
                   "p01_tp2/mri/aseg.mgz": None},
    "dcm2niix": {f"p0{k}_t1_mprage_sag_2019031{v}101500_3.nii.gz": (f"p0{k}", f"2019031{v}101500")
                 for k in (1, 2) for v in (2, 3)},
}
BESIDE_THEM = {
    "oasis-2": ["OAS2_RAW_PART1/OAS2_0002_MR2/RAW/mpr-2.nifti.hdr"],
    "oasis-4": ["OAS42000/OAS42000_MR_d3500/anat3/NIFTI/sub-OAS42000_sess-d3500_T2w.nii.gz"],
    "loni": ["PPMI/3107/Axial_FLAIR/2011-03-29_14_16_19.0/I269470/PPMI_3107_MR_Axial_FLAIR_I3.nii",
             "PPMI/3107/2D_GRE-MT/2011-03-29_14_16_19.0/I269471/PPMI_3107_MR_2D_GRE-MT_I4.nii"],
    "brats-2018": ["HGG/Brats18_2013_10_1/Brats18_2013_10_1_t1ce.nii.gz",
                   "HGG/Brats18_2013_10_1/Brats18_2013_10_1_seg.nii.gz"],
    "ixi": ["IXI-T2/IXI002-Guys-0828-T2.nii.gz", "IXI-PD/IXI002-Guys-0828-PD.nii.gz"],
    "miriad": ["miriad_188_AD_M_02_MR_2.nii"],
    "msseg": ["Training/Center_01/Patient_01/Raw_Data/3DFLAIR.nii.gz",
              "Training/Center_01/Patient_01/Masks/Brain_Mask.nii.gz"],
    "isbi-ms": ["training01/preprocessed/training01_01_flair_pp.nii", "training01/masks/training01_01_mask1.nii"],
    "mrbrains": ["training/1/pre/FLAIR.nii.gz", "training/1/segm.nii.gz"],
    "atlas-1": ["Site1/031768/t01/031768_LesionSmooth_stx.nii.gz"],
    "mindboggle": ["OASIS-TRT-20_volumes/OASIS-TRT-20-1/labels.DKT31.manual.nii.gz"],
    "lpba40": ["native/S01/S01.delineation.structure.label.hdr"],
    "miccai-2012": ["training-labels/1000_3_glm.nii"],
    "calgary-campinas": ["Silver-standard/CC0001_philips_15_55_M_staple.nii.gz"],
    "adhd-200-athena": ["KKI_preproc/1018959/wssd1018959_session_1_anat_gm.nii.gz"],
    "fcp-1000": ["Baltimore/sub17017/anat/mprage_anonymized.nii.gz", "Baltimore/sub17017/func/rest.nii.gz"],
    "dcm2niix": ["p01_localizer_20190312101500_1.nii.gz", "p01_t2_flair_20190312101500_5.nii.gz"]}
for archive, names in BESIDE_THEM.items():
    TREES[archive].update(dict.fromkeys(names))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
def test_each_archive_gives_its_people_and_visits_and_leaves_out_what_is_no_t1(tmp_path, archive):
    files = TREES[archive.name]
    found = find_scans(tree(tmp_path, *files))
    assert {scan.name: (scan.subject, scan.session) for scan in found.scans} == {
        name: who for name, who in files.items() if who}
    assert {scan.archive for scan in found.scans} == {archive.name}
    assert found.doubt is None


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
def test_the_example_of_a_row_is_of_that_row(tmp_path, archive):
    [scan] = find_scans(tree(tmp_path, archive.example)).scans
    assert scan.archive == archive.name
    assert archive.example in table()


@pytest.mark.parametrize("above", ["/home/me/scans", "/home/me/data/mri"])
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
def test_a_file_that_is_named_by_its_whole_path_is_of_the_same_person_as_in_its_folder(archive, above):
    (_, inside), (_, named) = (identify([File(Path(name), name, "")])[0][0] for name in (
        archive.example, f"{above}/{archive.example}"))
    assert (named.subject, named.session, named.archive) == (inside.subject, inside.session, archive.name)


# Trees that no row describes

CERTAIN = {
    "visits in folders": (["{p}/M00/T1.nii", "{p}/M12/T1.nii"], 2), "dates": (["{p}/20190101/T1.nii"], 1),
    "a visit behind the name": (["{p}_ses1/{p}_ses1_T1.nii", "{p}_ses2/{p}_ses2_T1.nii"], 2),
    "a run behind the name": (["{p}_ses-1_run-1_T1w.nii", "{p}_ses-2_run-1_T1w.nii"], 2),
    "a number that may be a run": (["{p}_1.nii", "{p}_2.nii"], 2), "a letter": (["{p}_a.nii", "{p}_b.nii"], 2),
    "groups above": (["controls/{p}/T1.nii", "patients/p9/T1.nii"], 1),
    "sides below": (["{p}/left/T1.nii", "{p}/right/T1.nii"], 1),
    "kinds in front": (["T1_{p}.nii", "MPRAGE_{p}.nii"], 1),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_the_one_part_of_a_path_that_tells_people_apart_is_the_person(tmp_path, case):
    forms, sessions = CERTAIN[case]
    people = [f"p{number:02d}" for number in range(4)]
    found = find_scans(tree(tmp_path, *(form.format(p=person) for form in forms for person in people)))
    assert found.doubt is None
    assert {scan.subject for scan in found.scans} - {"p9"} == set(people)
    assert len({(scan.subject, scan.session) for scan in found.scans}) >= sessions * len(people)


def test_two_parts_that_tell_people_apart_differently_end_with_the_flags_that_confirm_either(tmp_path, refusal):
    tree(tmp_path / "scans", *(f"{lab}/{lab[0]}x{number}q/T1.nii" for lab in ("Oslo", "Rome") for number in range(5)))
    line = refusal(extract.main, "--scans", tmp_path / "scans", "--out", tmp_path / "out")
    assert "--archive plain:1 makes 2 subjects" in line
    assert re.search(r"--archive plain:2 makes 10 subjects \(\S+/T1\.nii -> \w", line)
    assert not (tmp_path / "out").exists()
    for archive, people in (("plain:1", {"Oslo", "Rome"}), ("plain:2", {f"{x}x{n}q" for x in "OR" for n in range(5)})):
        found = find_scans(tmp_path / "scans", archive=archive)
        assert {scan.subject for scan in found.scans} == people


IN_DOUBT = {
    "nobody": ["visit1.nii", "visit2.nii"], "nobody in some": ["a1/T1.nii", "T1.nii", "anat/T1.nii"],
    "case": ["P01_visit1.nii", "p01_visit2.nii"], "zeros": ["sub-1_T1w.nii", "sub-01_ses-2_T1w.nii"],
    "a longer name": ["p01.nii", "p01_left.nii", "p02.nii"],
    "shared endings": ["P001A.nii", "P001B.nii", "P002A.nii", "P003A.nii"],
    "shared beginnings": ["pre_k1.nii", "post_k1.nii", "pre_k2.nii"],
    "groups": ["controls/01/T1.nii", "patients/01/T1.nii", "patients/02/T1.nii"],
    "more endings than visits": [f"S1_{n}.nii" for n in range(1, 9)],
    "experiments of subjects": [f"S0{k}/E{k}00{v}/scans/3-T1/NIFTI/T1.nii" for k in (1, 2) for v in (1, 2)],
}


@pytest.mark.parametrize("case", IN_DOUBT)
def test_names_that_may_be_one_persons_are_in_doubt(tmp_path, case):
    files = IN_DOUBT[case]
    assert find_scans(tree(tmp_path, *files)).doubt is not None


def test_controls_and_patients_with_the_same_numbers_are_people_of_their_own(tmp_path):
    files = [f"{letters}0{number}.nii" for letters in ("c", "p", "AD_", "CN_") for number in range(1, 4)]
    found = find_scans(tree(tmp_path, *files))
    assert (found.doubt, len({scan.subject for scan in found.scans})) == (None, 12)


def test_an_archive_that_is_asked_for_refuses_other_paths(tmp_path):
    scans = find_scans(tree(tmp_path, "sub-01_T1w.nii", "x.nii"), archive="bids").scans
    assert [(scan.subject, bool(scan.refused)) for scan in scans] == [("01", False), ("", True)]
    assert scans[1].refused.startswith("expected a path as --archive bids describes, found x.nii.")


def test_an_archive_that_is_not_known_is_refused(refusal, tmp_path):
    assert "--archive: expected a row of --archives, plain:N or plain:file, found plain:0." in refusal(
        extract.main, "--scans", tmp_path, "--list", "--archive", "plain:0")


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "slices.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| `(\S+)` \| ([\d, ]+) \| ([\d, ]+) \|$", page, re.MULTILINE)
    assert [(name, example) for name, example, _, _ in rows] == [(each.name, each.example) for each in ARCHIVES]
    for name, _, expected, found in rows:
        taken = {path: who for path, who in TREES[name].items() if who}
        counts = [len({who for who, _ in taken.values()}), len({*taken.values()}), len(taken)]
        assert [*map(int, expected.split(", "))][:3] == counts == [*map(int, found.split(", "))][:3]


def test_the_table_is_printed(capsys):
    extract.main(["--archives"])
    assert capsys.readouterr().out.count("\n") == 2 * len(ARCHIVES)


# The T1

BESIDE = {"the T1 says so": (["p1/M01/brain.nii", "p1/M01/MPRAGE.nii", "p1/M01/a scan.nii"],
                               "p1/M01/MPRAGE.nii"),
          "SPM's maps": (["sub-1_T1w.nii", "c1sub-1_T1w.nii", "msub-1_T1w.nii", "y_sub-1_T1w.nii"], "sub-1_T1w.nii"),
          "CAT12's folder": (["p1/p1T1.nii", "p1/mri/mwp1p1T1.nii", "p1/mri/p0p1T1.nii"], "p1/p1T1.nii"),
          "fsl_anat's folder": (["p1/T1.nii", "p1/p1.anat/T1_biascorr.nii", "p1/p1.anat/T1_fast_pve_1.nii"],
                                "p1/T1.nii"),
          "one after a contrast agent": (["p1/T1_Gd.nii", "p1/T1.nii"], "p1/T1.nii"),
          "a contrast agent in BIDS": (["sub-1/anat/sub-1_ce-gadolinium_T1w.nii", "sub-1/anat/sub-1_run-2_T1w.nii"],
                                       "sub-1/anat/sub-1_run-2_T1w.nii"),
          "a contrast agent alone": (["p1/T1_postgd.nii", "p1/x.nii"], "p1/T1_postgd.nii"),
          "a name that says nothing": (["p1/T1.nii", "p1/result.nii"], "p1/T1.nii"),
          "ground truth": (["p1/brain_gt.nii", "p1/x.nii"], "p1/x.nii"),
          "FreeSurfer's copy": (["raw/sub-1/anat/sub-1_T1w.nii", "fs/sub-1/mri/brain.mgz"],
                                "raw/sub-1/anat/sub-1_T1w.nii")}


@pytest.mark.parametrize("case", BESIDE)
def test_of_a_session_the_scan_itself_is_taken(tmp_path, case):
    files, best = BESIDE[case]
    assert [scan.name for scan in find_scans(tree(tmp_path, *files)).scans] == [best]


def test_a_list_says_which_files_a_scan_was_taken_instead_of(tmp_path, capsys):
    extract.main(["--scans", str(tree(tmp_path, "sub-1_run-1_T1w.nii", "sub-1_run-2_T1w.nii", "x.nrrd")), "--list"])
    out = capsys.readouterr().out
    assert "\tsub-1_run-1_T1w.nii\tinstead of sub-1_run-2_T1w.nii\n" in out
    assert "not read: 1 file in a format that is not supported, such as x.nrrd" in out


# Trees made at random

NUMBER_OF_TREES = int(os.environ.get("VQVAE2_RANDOM_TREES", 300))
VISIT_FORMS = ("ses-{}", "visit{}", "M{}", "V{}", "2019010{}", "wave{}", "tp{}", "baseline_{}", "run-{}")


def tree_of(random_numbers: random.Random) -> dict[str, str]:
    """Return paths with the made-up person of each: any order of folders, visits, runs, groups and prefixes."""
    pick = random_numbers.choice
    form, visit = pick(("{:03d}", "p{:02d}", "sub-{:02d}", "S{:02d}X", "NDAR{:04d}", "anna{:02d}")), pick(VISIT_FORMS)
    group, kind = pick(("", "controls/", "train/", "site{}/")), pick(("T1", "mprage", "T1w", "anat", ""))
    shape = pick(("{g}{p}/{v}/{k}", "{g}{p}_{v}/{k}", "{g}{p}/{p}_{v}_{k}", "{g}{p}_{v}_{k}", "{v}/{p}_{k}",
                  "{v}/{p}/{k}", "{g}{p}/{v}/anat/{p}_{v}_{k}", "{p}/{p}_{v}/{k}", "T1_{p}_{v}", "{p}/{k}_{v}"))
    people = random_numbers.sample(range(1, 90), pick((3, 5, 9)))
    visits = [(who, number) for who in people for number in range(1, pick((1, 2, 3)) + 1)]
    return {shape.format(g=group.format(who % 3), p=form.format(who), v=visit.format(number), k=kind or "scan")
            + ".nii": str(who) for who, number in visits}


@pytest.mark.parametrize("seed", range(NUMBER_OF_TREES))
def test_no_person_of_a_tree_made_at_random_is_two_subjects(tmp_path, seed):
    people = tree_of(random.Random(seed))
    found = find_scans(tree(tmp_path, *people))
    subjects = {who: {scan.subject for scan in found.scans if people[scan.name] == who} for who in people.values()}
    assert found.doubt is not None or all(len(names) <= 1 for names in subjects.values()), subjects


def test_most_trees_made_at_random_are_told_without_help_and_people_stay_apart(tmp_path):
    told = 0
    for seed in range(300):
        people = tree_of(random.Random(seed))
        found = find_scans(tree(tmp_path / str(seed), *people))
        if found.doubt is None:
            owners = {}
            for scan in found.scans:
                owners.setdefault(scan.subject, set()).add(people[scan.name])
            told += all(len(each) == 1 for each in owners.values())
    assert told > 240


def test_a_name_without_a_scan_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="expected T1-weighted scans"):
        extract.main(["--scans", str(tree(tmp_path, "p1/p1.anat/T1.nii")), "--list"])
