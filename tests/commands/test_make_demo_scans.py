"""`vqvae2 demo-scans`, on a 3 mm template and 4 mm voxels so that the whole file takes seconds."""

import csv
import gzip
import re
import sys

import nibabel
import numpy as np
import pytest
import torch

from vqvae2.commands import demo_brains, demo_scans
from vqvae2.common.errors import UserError

pytest.importorskip("nilearn", reason="the demo extra is not installed")
COARSENESS = 4.0


@pytest.fixture(scope="module")
def atlas():
    return demo_brains.load_atlas(spacing_mm=3)


@pytest.fixture(scope="module")
def tree(atlas, tmp_path_factory):
    """Seven subjects of seed 0; the sixth has two sessions."""
    out = tmp_path_factory.mktemp("demo") / "scans"
    write(atlas, out, subjects=7)
    return out


def jacobian_determinant(displacement_mm: torch.Tensor) -> torch.Tensor:
    """Return det(I + du/dx) [i, j, k] of `displacement_mm` [3, i, j, k]: local volume; above 0 where nothing folds."""
    slopes = torch.stack(torch.gradient(displacement_mm, spacing=demo_brains.FIELD_SPACING_MM, dim=(1, 2, 3)), -1)
    return torch.linalg.det(slopes.movedim(0, -2) + torch.eye(3))


def write(atlas, out, subjects, seed=0):
    people = [demo_scans.make_subject(seed, number) for number in range(1, subjects + 1)]
    settings = demo_scans.DemoScansSettings(out=out, subjects=subjects, seed=seed)
    demo_scans.write_scans(settings, people, lambda subject, session: demo_brains.make_scan(
        atlas, seed, subject, session, COARSENESS))


def scans_of(out):
    return {str(path.relative_to(out)): path for path in sorted(out.rglob("*_T1w.nii.gz"))}


def on_common_grid(image):
    """The scan in steps of 4 mm between the same corners of the world, background 0, mean in the brain 1."""
    places = np.stack(np.meshgrid(*(np.arange(low, high, 4.0) for low, high in ((-70, 70), (-100, 70), (-60, 80))),
                                  indexing="ij"), -1)
    to_voxel = np.linalg.inv(image.affine)
    nearest = np.rint(places @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    data = image.get_fdata()
    values = data[tuple(np.clip(nearest, 0, np.array(data.shape) - 1).reshape(-1, 3).T)]
    return values / values[values > 0].mean()


def test_paths_are_those_of_oasis_3_and_every_sixth_subject_has_two_sessions(tree):
    paths = list(scans_of(tree))
    assert all(re.fullmatch(r"(sub-OAS3\d{4})/(ses-d\d{4})/anat/\1_\2_T1w\.nii\.gz", path) for path in paths)
    per_subject = [sum(path.startswith(f"sub-OAS3{number:04d}/") for path in paths) for number in range(1, 8)]
    assert per_subject == [1, 1, 1, 1, 1, 2, 1]


def test_participants_have_an_age_and_a_sex_and_the_readme_says_synthetic(tree):
    with open(tree / "participants.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == [f"sub-OAS3{number:04d}" for number in range(1, 8)]
    assert all(42 <= int(row["age"]) <= 95 and row["sex"] in "MF" for row in rows)
    assert {row["sex"] for row in rows} == {"M", "F"}
    assert "synthetic" in (tree / "README").read_text()


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_subjects_or_the_time(tree, atlas, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e9)  # gzip would store it
    write(atlas, tmp_path, subjects=2)
    again = {name: path.read_bytes() for name, path in scans_of(tmp_path).items()}
    assert len(again) == 2
    assert again == {name: path.read_bytes() for name, path in scans_of(tree).items() if name in again}


def test_another_seed_gives_other_scans_under_the_same_names(tree, atlas, tmp_path):
    write(atlas, tmp_path, subjects=1, seed=1)
    (name, path), = scans_of(tmp_path).items()
    assert not np.array_equal(nibabel.load(path).dataobj, nibabel.load(tree / name).dataobj)


def test_the_brain_is_above_0_without_holes_and_the_air_is_exactly_0(tree):
    for path in scans_of(tree).values():
        image = nibabel.load(path)
        brain = image.get_fdata() > 0
        litres = brain.sum() * np.prod(image.header.get_zooms()) / 1e6
        assert 1.0 < litres < 2.6, path.name  # the template's mask has 1.88, all spaces of CSF included
        assert np.count_nonzero(image.dataobj) == brain.sum(), path.name  # nothing below 0, no NaN
        for axis in range(3):
            assert not brain.take([0, -1], axis).any(), f"{path.name} is cut off at axis {axis}"


def test_axis_orders_data_types_and_voxel_sizes_vary(tree):
    images = [nibabel.load(path) for path in scans_of(tree).values()]
    assert {"".join(nibabel.aff2axcodes(image.affine)) for image in images} >= {"RAS", "LAS", "PIR", "ASL"}
    assert {str(image.get_data_dtype()) for image in images} == {"int16", "uint8", "float32", "uint16"}
    zooms = {tuple(np.round(image.header.get_zooms(), 3)) for image in images}
    assert len(zooms) >= 5
    assert sum(len(set(sizes)) > 1 for sizes in zooms) >= 2


@pytest.mark.parametrize("order", demo_brains.ORDERS)
def test_the_affine_of_every_order_leads_to_the_same_middle(order):
    shape, affine = demo_brains.make_grid(order, (1.0, 0.9, 1.2))
    assert "".join(nibabel.aff2axcodes(affine)) == order
    middle = affine @ [*((np.array(shape) - 1) / 2), 1]
    assert middle[:3] == pytest.approx(demo_brains.CENTRE_MM)
    assert nibabel.affines.voxel_sizes(affine) == pytest.approx([1.0, 0.9, 1.2])


def test_left_and_right_are_where_the_affine_says(atlas, monkeypatch):
    """One head in four orders; a left half that is made darker is dark at negative world x."""
    dark_left = atlas.maps.clone()
    dark_left[3, : dark_left.shape[1] // 2] -= 0.5
    lopsided = demo_brains.Atlas(dark_left, atlas.ventricle_flow, atlas.origin_mm, atlas.spacing_mm)
    subject = demo_scans.make_subject(0, 1)
    for order in ("RAS", "LAS", "PIR", "SPL"):
        monkeypatch.setattr(demo_brains, "ORDERS", (order,))
        image = demo_brains.make_scan(lopsided, 0, subject, 0, COARSENESS)
        values = on_common_grid(image).reshape(35, -1)  # x in 35 steps of 4 mm, from left to right
        left, right = values[:17][values[:17] > 0].mean(), values[18:][values[18:] > 0].mean()
        assert left < 0.7 * right, f"{order}: left {left:.2f}, right {right:.2f}"


def test_scl_slope_is_stored_and_gives_back_the_intensities(tree):
    images = [nibabel.load(path) for path in scans_of(tree).values()]
    scaled = [image for image in images if image.dataobj.slope != 1]
    assert [image.dataobj.slope for image in scaled] == [0.125]
    # White matter is 300 in the unit of the scan, 2,400 as stored.
    data = scaled[0].get_fdata()
    assert 250 < np.percentile(data[data > 0], 90) < 400
    assert np.array_equal(data, scaled[0].dataobj.get_unscaled() * 0.125)


def test_the_warp_is_a_diffeomorphism_from_the_widest_ventricles_to_the_narrowest(atlas):
    subjects = sorted((demo_scans.make_subject(0, number) for number in range(1, 61)),
                      key=lambda subject: demo_brains.ageing(0, subject, 0)[0])
    for subject in (*subjects[:2], *subjects[-3:]):
        smallest = jacobian_determinant(demo_brains.make_warp(atlas, 0, subject, 0)).min()
        assert smallest > 0, f"{subject.name}: smallest Jacobian determinant {smallest:.3f}"


def test_the_jacobian_determinant_of_a_known_map_is_its_change_of_volume():
    """u(x) = (0.1 x, 0, -0.2 z) stretches by 1.1 and shrinks by 0.8; x is in mm."""
    i, j, k = torch.meshgrid(*[3.0 * torch.arange(5)] * 3, indexing="ij")
    volume = jacobian_determinant(torch.stack([0.1 * i, 0 * j, -0.2 * k]))
    assert volume.flatten().tolist() == pytest.approx([1.1 * 0.8] * 125)


def test_the_flow_of_a_linear_velocity_is_an_exponential():
    """dx/dt = 0.2 (x - c) has the solution (x - c) e^0.2, whose displacement is (x - c)(e^0.2 - 1)."""
    x = torch.stack(torch.meshgrid(*[3.0 * torch.arange(21)] * 3, indexing="ij")) - 30
    displacement = demo_brains.integrate(0.2 * x)
    inner = slice(6, 15)  # further out the flow leaves the grid
    expected = x * (np.exp(0.2) - 1)
    assert torch.allclose(displacement[:, inner, inner, inner], expected[:, inner, inner, inner], atol=0.02)


def test_random_fields_have_the_deviation_and_the_smoothness_that_were_asked_for():
    field = demo_brains.random_fields(np.random.default_rng(0), (4, 60, 60, 60), {6: 2.0})
    assert field.std().item() == pytest.approx(2.0, rel=0.1)
    # Power exp(-(2 pi f r)^2) is the covariance exp(-d^2 / (4 r^2)): at d = 12 mm, r = 6 mm that is 1/e.
    shifted = torch.roll(field, 4, dims=1)
    assert ((field * shifted).mean() / field.var()).item() == pytest.approx(np.exp(-1), abs=0.08)


def test_rician_noise_of_no_signal_has_the_mean_of_a_rayleigh_distribution():
    noise = demo_brains.rician(torch.zeros(100_000), 2.0, np.random.default_rng(0))
    assert noise.mean().item() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.01)
    assert noise.min() >= 0


def test_ventricles_grow_with_age_and_between_sessions(atlas):
    subjects = [demo_scans.make_subject(0, number) for number in range(1, 61)]
    opened_mm = [demo_brains.ageing(0, subject, 0)[0] for subject in subjects]
    assert np.corrcoef([subject.age for subject in subjects], opened_mm)[0, 1] > 0.5
    assert max(opened_mm) - min(opened_mm) > 6
    twice = [subject for subject in subjects if len(subject.session_days) == 2]
    assert len(twice) == 10
    for subject in twice:
        first, second = (demo_brains.ageing(0, subject, session) for session in (0, 1))
        assert first <= second, f"{subject.name}: {first} then {second}"


def test_sessions_of_one_subject_resemble_each_other_more_than_other_subjects(tree):
    scans = {name: on_common_grid(nibabel.load(path)) for name, path in scans_of(tree).items()}
    first, second = (scan for name, scan in scans.items() if name.startswith("sub-OAS30006"))
    others = [scan for name, scan in scans.items() if not name.startswith("sub-OAS30006")]
    assert not np.array_equal(first, second)
    same = np.corrcoef(first, second)[0, 1]
    different = [np.corrcoef(first, other)[0, 1] for other in others]
    assert same > max(different), f"{same:.3f} against {different}"


def test_a_file_as_out_is_a_user_error(tmp_path):
    file = tmp_path / "scans.txt"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"scans\.txt: expected a folder or nothing, found a file .*\. Choose another"):
        demo_scans.main(["--out", str(file)])
    assert file.read_text() == "mine"


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "sub-OAS30001").mkdir()
    with pytest.raises(UserError, match=r"expected an empty folder or earlier demo scans, found sub-OAS30001\. Give"):
        demo_scans.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["sub-OAS30001"]


def test_fewer_subjects_than_before_would_leave_old_ones_and_are_refused(tree):
    with pytest.raises(UserError, match=r"at most the 6 subject\(s\).* found sub-OAS30007 .*larger --subjects"):
        demo_scans.main(["--out", str(tree), "--subjects", "6"])


def test_a_second_run_overwrites_the_first_and_mends_what_is_broken(atlas, tmp_path):
    write(atlas, tmp_path, subjects=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (scan,) = scans_of(tmp_path).values()
    scan.write_bytes(b"cut off")
    write(atlas, tmp_path, subjects=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert gzip.decompress(scan.read_bytes())[344:347] == b"n+1"


def test_without_nilearn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(UserError, match=r"nilearn: .* found none\. Install it with: pip install -e \.\[demo\]"):
        demo_brains.load_atlas()


def test_scans_of_another_seed_are_not_replaced(tmp_path):
    people = [demo_scans.make_subject(0, 1)]
    (tmp_path / "dataset_description.json").write_text(f"{demo_scans.NAME} --seed 0")
    demo_scans.check_out(tmp_path, people, 0)
    with pytest.raises(UserError, match=r"--out .*: expected scans of --seed 7, found those of --seed 0\. Give th"):
        demo_scans.check_out(tmp_path, people, 7)


def test_a_negative_seed_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"--seed: expected 0 to 4294967295, found -1"):
        demo_scans.main(["--out", str(tmp_path / "new"), "--seed", "-1"])
    assert not (tmp_path / "new").exists()
