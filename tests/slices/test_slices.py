import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scan_files import STORAGES, block, save, volume_of

from vqvae2.common.names import NORMAL, SPLITS
from vqvae2.scans.brain import Brain, find_brain
from vqvae2.scans.volumes import read_volume
from vqvae2.slices.planes import (
    DARKEST_BRAIN,
    draw_plane,
    encode_png,
    plane_indices,
    position_mm,
    resampling_matrix,
)
from vqvae2.slices.splits import own_split, split_subjects, subject_number

SHARES = (64.0, 16.0, 20.0)
subjects = st.sets(st.text("abcdefgh0123456789", min_size=1, max_size=6), min_size=1, max_size=40)


# What an image shows, and where

def test_every_plane_is_the_same_image_from_all_48_storages(tmp_path):
    """One asymmetric volume, anisotropic voxels; shrinking and enlarging, all three planes."""
    images = set()
    for storage in STORAGES:
        volume = read_volume(save(tmp_path / f"{storage}.nii", block((12, 14, 10)), (1.0, 0.8, 1.5), storage))
        brain = find_brain(volume)
        images.add(tuple(
            hashlib.sha256(encode_png(draw_plane(volume, brain, axis, index, size, 24.0), 8)).hexdigest()
            for axis in range(3) for index in plane_indices(brain, axis, 2, (0.3, 0.8)) for size in (16, 40)))
    assert len(images) == 1


@pytest.mark.parametrize(("plane", "marker", "where"), [
    ("axial", "left", "right"), ("axial", "anterior", "upper"),
    ("coronal", "left", "right"), ("coronal", "superior", "upper"),
    ("sagittal", "anterior", "left"), ("sagittal", "superior", "upper")])
@pytest.mark.parametrize("storage", ["RAS", "LPI", "ASL"])
def test_a_marker_lies_where_radiologists_expect_it(tmp_path, plane, marker, where, storage):
    voxels = block((20, 20, 20))
    low, high = slice(2, 8), slice(12, 18)
    at = {"left": (low, slice(2, 18), slice(2, 18)), "anterior": (slice(2, 18), high, slice(2, 18)),
          "superior": (slice(2, 18), slice(2, 18), high)}[marker]
    voxels[at] = 1000
    volume = read_volume(save(tmp_path / "a.nii", voxels, storage=storage))
    image = draw_plane(volume, find_brain(volume), NORMAL[plane], 9, 20, 20.0)
    half = {"right": image[:, 10:], "left": image[:, :10], "upper": image[:10], "lower": image[10:]}
    assert half[where].sum() > 0.9 * image.sum()


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (3.0, 0.5, 1.2)])
@pytest.mark.parametrize("plane", NORMAL)
def test_anisotropic_scans_keep_their_true_proportions(sizes, plane):
    """A block of 24 x 36 x 48 mm is that large in the picture whatever its voxels are; 1 pixel is 1 mm."""
    extent_mm = (24, 36, 48)
    voxels = np.zeros([round(mm / size) + 4 for mm, size in zip(extent_mm, sizes)], np.int16)
    voxels[2:-2, 2:-2, 2:-2] = 100
    axis = NORMAL[plane]
    image = draw_plane(volume_of(voxels, sizes), find_brain(volume_of(voxels)), axis, voxels.shape[axis] // 2, 64, 64.0)
    across, up = (mm for i, mm in enumerate(extent_mm) if i != axis)
    # Where large voxels are enlarged, the edge is a slope that is 0.5 at the block's edge.
    assert (image > 0.5).any(axis=0).sum() == across
    assert (image > 0.5).any(axis=1).sum() == up
    # Centred: as far from the left as from the right, from the top as from the bottom.
    np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-9)


def test_the_picture_is_centred_on_the_brain_not_on_the_volume():
    voxels = np.zeros((40, 40, 40), np.int16)
    voxels[1:7, 3:11, 5:9] = 100
    image = draw_plane(volume_of(voxels), find_brain(volume_of(voxels)), 2, 6, 20, 20.0)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (6, 13, 7, 12)


# Resampling

def test_shrinking_averages_the_area_by_overlap():
    """3 voxels of 1 mm on 2 pixels of 1.5 mm: each takes a whole voxel and half of the middle one."""
    weights = resampling_matrix(3, 1.0, 1.5, 2, 1.5).toarray()
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])


def test_enlarging_interpolates_linearly_between_voxel_centres():
    """2 voxels of 2 mm on 4 pixels of 1 mm: their centres lie at 0.5, 1.5, 2.5, 3.5 mm, the voxels' at 1 and 3."""
    weights = resampling_matrix(2, 2.0, 1.0, 4, 1.0).toarray()
    np.testing.assert_allclose(weights, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_equal_sizes_change_nothing():
    np.testing.assert_array_equal(resampling_matrix(4, 0.9, 2.0, 4, 0.9).toarray(), np.eye(4))


@given(voxels=st.integers(2, 40), voxel_mm=st.floats(0.3, 4), pixels=st.integers(2, 60), pixel_mm=st.floats(0.3, 4),
       part=st.floats(0, 1))
def test_resampling_keeps_a_constant_inside_and_is_0_outside(voxels, voxel_mm, pixels, pixel_mm, part):
    centre = part * voxels
    sums = resampling_matrix(voxels, voxel_mm, centre, pixels, pixel_mm).sum(axis=1)
    left = centre * voxel_mm + (np.arange(pixels) - pixels / 2) * pixel_mm
    inside = (left >= 0) & (left + pixel_mm <= voxels * voxel_mm)
    outside = (left + pixel_mm <= 0) | (left >= voxels * voxel_mm)
    np.testing.assert_allclose(sums[inside], 1, atol=1e-6)
    np.testing.assert_allclose(sums[outside], 0, atol=1e-6)
    assert (sums <= 1 + 1e-6).all()


# Which planes

def test_one_plane_is_the_centre_of_the_extent_and_more_are_evenly_spaced():
    voxels = np.zeros((4, 4, 120), np.int16)
    voxels[1:3, 1:3, 10:110] = block((2, 2, 100), margin=0)
    brain = find_brain(volume_of(voxels))
    assert plane_indices(brain, 2, 1, (0.3, 0.8)) == [65]  # 10 + 0.55 * 100
    assert plane_indices(brain, 2, 5, (0.3, 0.8)) == [45, 55, 65, 75, 85]
    assert plane_indices(brain, 2, 1, (0.0, 1.0)) == [60]


@given(start=st.integers(0, 50), length=st.integers(1, 200), per_scan=st.integers(1, 60),
       extent=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: pair[0] < pair[1]))
def test_planes_lie_in_the_extent_and_none_is_taken_twice(start, length, per_scan, extent):
    brain = Brain((start,) * 3, (start + length,) * 3, 0, 1)
    indices = plane_indices(brain, 0, per_scan, extent)
    assert indices == sorted(set(indices))
    assert 1 <= len(indices) <= min(per_scan, length)
    assert indices[0] >= start + int(extent[0] * length)
    assert indices[-1] <= start + min(length - 1, extent[1] * length)


def test_all_planes_are_those_of_the_extent_without_a_gap():
    brain = Brain((10,) * 3, (110,) * 3, 0, 1)
    assert plane_indices(brain, 2, "all", (0.0, 1.0)) == list(range(10, 110))
    assert plane_indices(brain, 2, "all", (0.3, 0.8)) == list(range(40, 90))


def test_the_position_is_0_in_the_centre_of_the_box_and_positive_upwards():
    voxels = np.zeros((8, 8, 30), np.int16)
    voxels[2:6, 2:6, 10:21] = 5  # 11 planes: plane 15 is the middle one
    brain = find_brain(volume_of(voxels))
    assert position_mm(brain, 2, 15, 1.5) == 0
    assert position_mm(brain, 2, 17, 1.5) == 3.0
    assert position_mm(brain, 2, 12, 1.5) == -4.5


# Intensities

def test_a_bright_voxel_does_not_darken_the_rest_and_the_background_stays_0():
    voxels = block((30, 30, 30)).astype(np.float32)
    voxels[15, 15, 15] = 1e6
    brain = find_brain(volume_of(voxels))
    assert 100 <= brain.low < brain.high <= 200
    image = draw_plane(volume_of(voxels), brain, 2, 15, 30, 30.0)
    assert image.max() == 1
    inside = image[2:-2, 2:-2]
    assert inside.min() >= DARKEST_BRAIN
    assert inside.mean() == pytest.approx(0.5, abs=0.05)
    assert image.sum() == pytest.approx(inside.sum())


@pytest.mark.parametrize(("bits", "brightest"), [(8, 255), (16, 65535)])
def test_pngs_have_the_bits_asked_for_and_no_metadata(bits, brightest):
    content = encode_png(np.array([[0.0, 0.5], [1.0, 1 / 255]]), bits)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(np.asarray(image), [[0, (brightest + 1) // 2], [brightest, brightest // 255]])
        assert image.info == {}
    assert content == encode_png(np.array([[0.0, 0.5], [1.0, 1 / 255]]), bits)


# The split

@given(some=subjects, more=subjects, seed=st.integers(0, 5))
def test_adding_subjects_moves_nobody_who_was_not_lent(some, more, seed):
    before, lent = split_subjects(some, SHARES, seed)
    after, lent_after = split_subjects(some | more, SHARES, seed)
    for subject in some - set(lent) - set(lent_after):
        assert before[subject] == after[subject] == own_split(subject, SHARES, seed)
    for subject in set(lent) - set(lent_after):
        assert after[subject] == lent[subject]


@given(some=subjects, seed=st.integers(0, 5))
def test_no_split_is_empty_while_there_are_three_subjects(some, seed):
    splits, lent = split_subjects(some, SHARES, seed)
    assert set(splits) == some
    assert len(set(splits.values())) == min(3, len(some))
    assert "train" in splits.values()
    assert all(own_split(subject, SHARES, seed) == origin != splits[subject] for subject, origin in lent.items())


def test_the_subject_with_the_nearest_number_is_lent_to_an_empty_split():
    names = [f"s{n}" for n in range(200)]
    train = sorted((name for name in names if own_split(name, SHARES, 0) == "train"),
                   key=lambda name: subject_number(name, 0))
    test = next(name for name in names if own_split(name, SHARES, 0) == "test")
    splits, lent = split_subjects([train[0], train[1], train[2], test], SHARES, 0)
    assert lent == {train[2]: "train"}  # 0.64…0.80 is empty; the largest number below it is nearest
    assert splits == {train[0]: "train", train[1]: "train", train[2]: "validate", test: "test"}


def test_a_split_of_share_0_stays_empty():
    splits, lent = split_subjects([f"s{n}" for n in range(30)], (80, 0, 20), 0)
    assert set(splits.values()) == {"train", "test"}
    assert not lent


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_shares_are_met_by_many_subjects(seed):
    splits, _ = split_subjects((f"sub{n}" for n in range(4000)), SHARES, seed)
    counts = [list(splits.values()).count(split) / 4000 for split in SPLITS]
    # 3.5 standard deviations of a share of 0.64 in 4000 draws are 0.027
    assert counts == pytest.approx([0.64, 0.16, 0.20], abs=0.027)


def test_another_seed_is_another_split():
    names = [f"s{n}" for n in range(40)]
    assert split_subjects(names, SHARES, 0)[0] != split_subjects(names, SHARES, 1)[0]
