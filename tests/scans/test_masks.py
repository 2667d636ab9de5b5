import nibabel as nib
import numpy as np
import pytest
from scan_files import ellipsoid, save

from vqvae2.commands import extract as extract_slices
from vqvae2.scans.finding import find_scans
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.masks import mask_among, within_mask
from vqvae2.scans.volumes import read_volume
from vqvae2.slices.settings import MASK_SUFFIXES


@pytest.mark.parametrize(("scan", "beside", "expected"), [
    ("sub-01_T1w.nii.gz", ["sub-01_desc-brain_mask.nii.gz"], "sub-01_desc-brain_mask.nii.gz"),
    ("sub-01_ses-1_desc-preproc_T1w.nii", ["sub-01_ses-1_desc-brain_mask.nii"], "sub-01_ses-1_desc-brain_mask.nii"),
    ("sub-01_T1w.nii", ["sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii", "sub-01_label-lesion_mask.nii"], None),
    ("sub-01_run-1_T1w.nii", ["sub-01_desc-brain_mask.nii", "sub-01_run-2_desc-brain_mask.nii"], None),
    ("T1.mgz", ["brainmask.mgz", "brain.mgz"], "brainmask.mgz"),
    ("brain.mgz", ["brainmask.mgz"], None), ("brainmask.mgz", ["brainmask.mgz"], None),
    ("p01_T1.nii.gz", ["p01_brain_mask.nii.gz"], "p01_brain_mask.nii.gz"),
    ("p01_T1.nii.gz", ["p01_T1_brain_mask.nii.gz"], "p01_T1_brain_mask.nii.gz"),
    ("p01_T1.nii.gz", ["p01_T1_BrainMask.nii"], "p01_T1_BrainMask.nii"),
    ("p01_2_T1.nii.gz", ["p01_brain_mask.nii.gz"], None), ("p01.nii.gz", ["p010_brain_mask.nii.gz"], None),
    ("p01_T1_brain.nii.gz", ["p01_T1_brain_mask.nii.gz"], None), ("p06_T1.nii", ["p06_FLAIR_brain_mask.nii"], None),
    ("sub-14_T1w.nii", ["sub-14_T2w_brain_mask.nii", "sub-14_bold_desc-brain_mask.nii"], None),
    ("sub-14_T1w.nii", ["sub-14_T1w_lesion_brain_mask.nii"], None),
    ("sub-14_T1w.nii", ["sub-14_T1w_brain_mask.nii"], "sub-14_T1w_brain_mask.nii"),
    ("sub-7_rec-norm_T1w.nii", ["sub-7_rec-norm_desc-brain_mask.nii"], "sub-7_rec-norm_desc-brain_mask.nii"),
    ("sub-7_desc-brain_T1w.nii", ["sub-7_desc-brain_mask.nii"], None), ("T1", ["FLAIR_brain_mask.nii"], None),
    ("BRAIN_001_T1.nii", ["BRAIN_001_brain_mask.nii"], "BRAIN_001_brain_mask.nii"),
    ("p01.nii", ["p01_mask.nii", "p01_brain.nii"], None)])
def test_a_mask_is_a_scans_own_only_if_its_name_says_so(scan, beside, expected):
    assert mask_among(scan, beside, MASK_SUFFIXES) == expected


def head(shape=(40, 48, 40)) -> tuple[np.ndarray, np.ndarray]:
    """A head: a bright skull around a brain, in noisy air; and where its brain is."""
    noise = np.random.default_rng(0).integers(1, 12, shape).astype(np.int16)
    brain = ellipsoid(shape, (11, 14, 11))
    skull = ellipsoid(shape, (16, 20, 16)) & ~ellipsoid(shape, (13, 16, 13))
    return (noise + 200 * skull + 100 * brain).astype(np.int16), brain


def volume_in(folder, name, voxels, **more):
    return read_volume(save(folder / name, voxels, **more))


@pytest.mark.parametrize("values", [1, 255, 0.7])
def test_outside_of_the_mask_is_background_in_any_storage(tmp_path, values):
    voxels, brain = head()
    mask = volume_in(tmp_path, "mask.nii", (brain * values).astype(np.float32), storage="PIR")
    within = within_mask(volume_in(tmp_path, "a.nii", voxels, storage="LAS"), mask)
    np.testing.assert_array_equal(within.voxels, voxels * brain)


def test_voxels_that_somebody_removed_from_freesurfers_mask_by_hand_are_no_brain(tmp_path):
    voxels, brain = head()
    by_hand = np.where(brain, voxels, 0)
    by_hand[20, 20, 15:25] = 1
    within = within_mask(volume_in(tmp_path, "T1.nii", voxels),
                         volume_in(tmp_path, "brainmask.mgz", by_hand, kind=nib.MGHImage))
    assert not within.voxels[20, 20, 15:25].any()
    assert within.voxels[20, 22, 20]


@pytest.mark.parametrize(("values", "found"), [
    ((1, 2, 3), "values from 1 to 3"), ((5, 50, 100), "values from 5 to 100"), ((-1, 0.5, 1), "values from -1 to 1")])
def test_labels_and_percentages_are_no_mask(tmp_path, values, found):
    voxels, brain = head()
    mask = np.where(brain, np.random.default_rng(0).choice(values, brain.shape), 0).astype(np.float32)
    with pytest.raises(UnusableScan, match=rf"expected one value beside 0 in its brain mask m\.nii, or probabilities "
                                           rf"up to 1, found {found}\. Make a mask of 0 and 1"):
        within_mask(volume_in(tmp_path, "a.nii", voxels), volume_in(tmp_path, "m.nii", mask))


def test_of_probabilities_what_is_above_a_half_is_brain(tmp_path):
    voxels, brain = head()
    mask = np.where(brain, 0.9, 0.2).astype(np.float32)
    mask[20, 20, 20] = 0.4
    within = within_mask(volume_in(tmp_path, "a.nii", voxels), volume_in(tmp_path, "m.nii", mask))
    assert (within.voxels != 0).sum() == brain.sum() - 1


def test_what_other_programs_take_otherwise_of_a_mask_is_said_of_its_scan(tmp_path):
    voxels, brain = head()
    image = nib.Nifti1Image(brain.astype(np.uint8), np.eye(4))
    image.set_sform(np.eye(4), 2)
    image.set_qform(np.diag([-1, 1, 1, 1]), 1)
    nib.save(image, tmp_path / "m.nii")
    within = within_mask(volume_in(tmp_path, "a.nii", voxels), read_volume(tmp_path / "m.nii"))
    assert within.geometry == "its mask: sform RAS 1 x 1 x 1 mm, qform LAS 1 x 1 x 1 mm"


def test_where_no_stored_number_stands_for_0_the_outside_is_0_all_the_same(tmp_path):
    voxels, brain = head()
    image = nib.Nifti1Image(voxels.astype(np.uint8), np.eye(4))
    image.header.set_slope_inter(1, 5)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.background is None
    within = within_mask(volume, volume_in(tmp_path, "mask.nii", brain.astype(np.int16)))
    np.testing.assert_array_equal(within.scaled(within.voxels), (voxels.astype(np.uint8) + 5.0) * brain)


@pytest.mark.parametrize(("shape", "sizes", "shift"), [((38, 48, 40), (1, 1, 1), 0), ((40, 48, 40), (1, 1, 1.1), 0),
                                                       ((40, 48, 40), (1, 1, 1), 3)])
def test_a_mask_on_another_grid_is_refused(tmp_path, shape, sizes, shift):
    mask = nib.Nifti1Image(ellipsoid(shape, (9, 9, 9)).astype(np.uint8), np.diag([*sizes, 1]))
    mask.affine[0, 3] = shift
    nib.save(mask, tmp_path / "mask.nii")
    with pytest.raises(UnusableScan, match=r"expected its brain mask mask\.nii on the same grid, found .* Resample"):
        within_mask(volume_in(tmp_path, "a.nii", head()[0]), read_volume(tmp_path / "mask.nii"))


def tree(folder):
    """Three heads with masks beside them, one on another grid, and one without."""
    voxels, brain = head()
    for number in range(1, 4):
        stem = folder / f"sub-{number:02d}/anat/sub-{number:02d}"
        save(stem.with_name(f"{stem.name}_T1w.nii.gz"), voxels + number)
        if number < 3:
            save(stem.with_name(f"{stem.name}_desc-brain_mask.nii.gz"), brain[number - 1:].astype(np.int16))
    return folder


def test_extraction_draws_the_brain_within_its_mask_and_says_so(tmp_path, capsys):
    scans, out = tree(tmp_path / "scans"), tmp_path / "out"

    def extract(*more):
        extract_slices.main(["--scans", str(scans), "--out", str(out), "--size", "16", "--workers", "1", *more])
        rows = [line.split(",") for line in (out / "manifest.csv").read_text().splitlines()]
        return [dict(zip(rows[0], row)) for row in rows[1:]], capsys.readouterr().out

    rows, said = extract()
    assert {row["subject"]: (row["background"], row["mask"]) for row in rows} == {
        "01": ("zero", "sub-01/anat/sub-01_desc-brain_mask.nii.gz"), "03": ("otsu", "")}
    assert "head: 1 scan with skull and air around it, such as sub-03/anat/sub-03_T1w.nii.gz;" in said
    assert "sub-02/anat/sub-02_T1w.nii.gz,\"expected its brain mask" in (out / "rejected.csv").read_text()
    assert "(2 of them unchanged" in extract()[1]

    mask = scans / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    save(mask, ellipsoid((40, 48, 40), (8, 9, 9)).astype(np.int16))
    again, said = extract()
    assert "(1 of them unchanged" in said
    assert again[0]["sha256"] != rows[0]["sha256"]
    without, _ = extract("--mask-suffix", "none")
    assert [(row["background"], row["mask"]) for row in without] == [("otsu", "")] * 3
    mask.unlink()
    assert [row["mask"] for row in extract()[0]] == ["", ""]


def test_slices_of_a_scan_that_is_gone_need_prune_where_its_mask_is_not_asked_for_any_more(tmp_path, refusal):
    scans, out = tree(tmp_path / "scans"), tmp_path / "out"
    command = ["--scans", str(scans), "--out", str(out), "--size", "16", "--workers", "1"]
    extract_slices.main(command)
    (scans / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    extract_slices.main(command)
    assert "--prune" in refusal(extract_slices.main, *command, "--mask-suffix", "none")


@pytest.mark.parametrize("suffixes", [["none", "brain_mask"], ["brain_mask.nii.gz"], ["NONE"], ["_"]])
def test_a_mask_suffix_that_would_find_nothing_is_refused(tmp_path, refusal, suffixes):
    assert "--mask-suffix: expected ends of names without .nii, or none alone" in refusal(
        extract_slices.main, "--scans", str(tmp_path), "--list", "--mask-suffix", *suffixes)


def test_the_list_names_masks(tmp_path, capsys):
    extract_slices.main(["--scans", str(tree(tmp_path / "scans")), "--list"])
    assert "sub-01/anat/sub-01_T1w.nii.gz\twithin the mask sub-01/anat/sub-01_desc-brain_mask.nii.gz" in (
        capsys.readouterr().out)


def test_a_mask_that_cannot_be_read_rejects_its_scan(tmp_path):
    scans = tree(tmp_path / "scans")
    (scans / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").write_text("no image")
    extract_slices.main(["--scans", str(scans), "--out", str(tmp_path / "out"), "--workers", "1"])
    rejected = (tmp_path / "out/rejected.csv").read_text()
    assert "a brain mask beside it that can be used, found sub-01_desc-brain_mask.nii.gz: expected a NIfTI" in rejected


def test_masks_are_looked_for_only_where_they_are_asked_for(tmp_path):
    scans = tree(tmp_path / "scans")
    assert [scan.mask for scan in find_scans(scans).scans] == [None] * 3
    assert find_scans(scans, mask_suffixes=["desc-brain_mask"]).scans[0].mask is not None
