import numpy as np
import pytest
from scan_files import ellipsoid, volume_of
from scipy import ndimage
from skimage.filters import threshold_otsu

from vqvae2.scans import brain as brain_module
from vqvae2.scans.brain import MOST_EQUAL_NEIGHBOURS, find_brain, otsu_threshold, share_of_equal_neighbours
from vqvae2.scans.headers import UnusableScan
from vqvae2.slices.planes import DARKEST_BRAIN, draw_plane


def test_a_head_in_noisy_air_gets_a_background_of_exactly_0_and_keeps_its_dark_inside():
    rng = np.random.default_rng(0)
    head = ellipsoid((40, 44, 42), (14, 17, 15))
    ventricle = ellipsoid((40, 44, 42), (3, 4, 3))
    voxels = rng.integers(0, 12, head.shape).astype(np.int16)
    voxels[head] += 300
    voxels[ventricle] = 5
    voxels[1, 1, 1] = 400  # a spike in the air is not the head
    brain = find_brain(volume_of(voxels))
    assert (brain.start, brain.stop) == ((6, 5, 6), (34, 39, 36))
    image = draw_plane(volume_of(voxels), brain, 2, 20, 60, 60.0)
    expected = head[:, :, 20].T[::-1, ::-1]
    np.testing.assert_array_equal(image[8:52, 10:50] > 0, expected)
    assert np.count_nonzero(image) == np.count_nonzero(expected)
    assert image[30, 30] == pytest.approx(DARKEST_BRAIN)


@pytest.mark.parametrize("steps", [(1, 1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_head_is_found_alike_however_its_voxels_lie_in_memory(monkeypatch, order, steps):
    """With statistics from every second voxel, as in a large scan."""
    monkeypatch.setattr(brain_module, "VOXELS_FOR_STATISTICS", 40 * 45 * 42 // 8)
    rng = np.random.default_rng(0)
    head = ellipsoid((40, 45, 42), (14, 17, 15))
    voxels = np.where(head, 300, 0) + rng.integers(0, 12, head.shape)
    voxels[1:4, 1:4, 1:4] = 400  # a piece of something in the air
    there = np.ascontiguousarray(voxels[tuple(slice(None, None, step) for step in steps)].transpose(order))
    view = there.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    found = find_brain(volume_of(view))
    assert (found.start, found.stop) == ((6, 6, 6), (34, 39, 36))
    for axis in range(3):
        plane = head.take(20, axis)
        part = tuple(20 if each == axis else slice(0, view.shape[each]) for each in range(3))
        np.testing.assert_array_equal(found.inside(view[part].astype(float), part), plane)


def head_in_air(shape=(48, 50, 46)):
    """Brain 300, dark skull 20 with a hole for the spine, bright scalp 400, air of noise about 10."""
    middle = [length / 2 - 0.5 for length in shape]
    voxels = np.random.default_rng(0).integers(0, 20, shape)
    for radii, value in (((20, 21, 19), 400), ((17, 18, 16), 20), ((15, 16, 14), 300)):
        voxels[ellipsoid(shape, radii, middle)] = value + np.random.default_rng(1).integers(0, 10)
    voxels[22:26, 23:27, 5:12] = 300
    return voxels.astype(np.int16)


@pytest.mark.parametrize("cut", ["corners", "cylinder"])
def test_a_head_whose_corners_are_0_is_still_a_head_in_air(cut):
    """Resampling to another orientation leaves such scans, and a scanner's correction of its gradients does."""
    voxels = head_in_air()
    if cut == "corners":
        grid = np.meshgrid(*(np.abs(np.linspace(-1, 1, length)) for length in voxels.shape), indexing="ij")
        voxels[sum(grid) > 2.1] = 0
    else:
        voxels[~ellipsoid(voxels.shape, (23, 24, 1000))] = 0
    whole, found = find_brain(volume_of(head_in_air())), find_brain(volume_of(voxels))
    assert found.head is not None
    assert (found.start, found.stop) == (whole.start, whole.stop) == ((4, 4, 4), (44, 46, 42))
    image = draw_plane(volume_of(voxels), found, 2, 23, 60, 60.0)
    assert image[:8].max() == 0
    np.testing.assert_array_equal(image[5:55, 6:54] > 0, ellipsoid(voxels.shape, (20, 21, 19))[:, :, 23].T[::-1, ::-1])


def test_the_dark_inside_of_a_head_is_not_all_black():
    """Skull is darker than Otsu's threshold; the percentiles see it, so what is brighter stays apart from it."""
    brain = find_brain(volume_of(head_in_air()))
    assert brain.low < 30
    assert brain.high >= 400


def test_strong_noise_in_the_air_is_still_air():
    voxels = head_in_air() + np.abs(np.random.default_rng(2).normal(0, 90, (48, 50, 46)))
    assert find_brain(volume_of(voxels)).head is not None


def test_a_block_cut_out_of_a_brain_is_all_brain():
    voxels = np.random.default_rng(0).integers(200, 400, (20, 20, 20))
    assert find_brain(volume_of(voxels)).head is None


def test_where_the_background_is_0_dark_tissue_is_not_taken_for_it():
    """The two halves of this brain are as far apart as head and air, but its corners are 0."""
    brain = ellipsoid((30, 30, 30), (10, 10, 10))
    voxels = np.where(brain, 20, 0).astype(np.int16)
    voxels[15:][brain[15:]] = 400
    found = find_brain(volume_of(voxels))
    assert (found.start, found.stop) == ((5, 5, 5), (25, 25, 25))
    for index in range(30):
        part = (index, slice(0, 30), slice(0, 30))
        np.testing.assert_array_equal(found.inside(voxels[part].astype(float), part), brain[index])


def test_a_scan_with_values_below_0_keeps_them_apart_from_the_background():
    brain = ellipsoid((20, 20, 20), (8, 8, 8))
    voxels = np.where(brain, np.random.default_rng(0).normal(size=brain.shape), 0).astype(np.float32)
    image = draw_plane(volume_of(voxels), find_brain(volume_of(voxels)), 2, 10, 20, 20.0)
    np.testing.assert_array_equal(image > 0, brain[:, :, 10].T[::-1, ::-1])


def test_otsu_separates_two_clusters():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 2, 5000), rng.normal(100, 10, 2000)])
    assert otsu_threshold(values) == pytest.approx(threshold_otsu(values), abs=2)
    assert 15 < otsu_threshold(np.append(values, 1e6)) < 70




# Scaled and damaged values

@pytest.mark.parametrize(("slope", "inter", "background"), [(0.5, 0.0, 0), (2.0, -200.0, 100), (-0.25, 25.0, 100)])
def test_scaled_voxels_count_as_what_they_stand_for(slope, inter, background):
    """The number that stands for 0 is background; others are as bright as their scaled values, whatever the slope."""
    inside = ellipsoid((20, 20, 20), (7, 7, 7))
    stored = np.full(inside.shape, background, np.int16)
    stored[inside] = np.random.default_rng(0).integers(101, 300, inside.sum())
    scan = volume_of(stored, slope=slope, inter=inter, background=background)
    values = np.where(inside, stored * slope + inter, 0.0)
    plain, found = find_brain(volume_of(values)), find_brain(scan)
    assert (found.start, found.stop) == (plain.start, plain.stop) == ((3, 3, 3), (17, 17, 17))
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    np.testing.assert_array_equal(draw_plane(scan, found, 2, 10, 20, 20.0),
                                  draw_plane(volume_of(values), plain, 2, 10, 20, 20.0))


def damaged(where, background_too=False):
    """A ball of random values, not finite in `where`, and outside of the ball if `background_too`."""
    inside = ellipsoid((30, 30, 30), (12, 12, 12))
    voxels = np.where(inside, np.random.default_rng(0).uniform(100, 200, inside.shape), 0).astype(np.float32)
    lost = where | (~inside if background_too else False)
    voxels[lost] = 0
    return volume_of(voxels, not_finite=lost, name="a.nii"), inside


def at(*indices):
    where = np.zeros((30, 30, 30), bool)
    where[indices] = True
    return where


@pytest.mark.parametrize("background_too", [True, False])
def test_nan_outside_of_the_brain_is_background_and_inside_is_counted(background_too):
    scan, _ = damaged(at(slice(14, 16), 15, 15), background_too)
    assert find_brain(scan).not_finite == 2
    assert find_brain(damaged(at(0, 0, 0), background_too)[0]).not_finite == 0


def test_a_voxel_of_the_brains_surface_is_the_brains_if_the_background_is_finite():
    scan, inside = damaged(at(15, 15, 3))
    assert inside[15, 15, 3]
    assert not inside[15, 15, 2]
    assert find_brain(scan).not_finite == 1


def test_more_than_1_percent_of_nan_is_refused_and_less_is_not():
    """The ball has 7,208 voxels."""
    inside = ellipsoid((30, 30, 30), (12, 12, 12))
    assert inside.sum() == 7208
    for count, refused in ((72, False), (73, True)):
        where = np.zeros(inside.shape, bool)
        where.ravel()[np.random.default_rng(1).choice(np.flatnonzero(ellipsoid((30, 30, 30), (9, 9, 9))), count,
                                                      replace=False)] = True
        if refused:
            with pytest.raises(UnusableScan, match=r"^a\.nii: expected at most 1% of the brain NaN or infinite, found "
                                                   r"1\.01% \(73 voxels\)\. Repair the scan"):
                find_brain(damaged(where)[0])
        else:
            assert find_brain(damaged(where)[0]).not_finite == 72


def test_whole_planes_of_nan_within_the_brain_are_refused():
    with pytest.raises(UnusableScan, match=r"expected a brain without gaps, found whole planes of NaN .*Repair"):
        find_brain(damaged(at(slice(4, 26, 2)), background_too=True)[0])


def test_a_scan_of_one_voxel_is_no_brain():
    voxels = np.zeros((9, 9, 9))
    voxels[4, 4, 4:6] = 1
    with pytest.raises(UnusableScan, match=r"expected a brain of 2 voxels each way or more, found 1 x 1 x 2\. Leave"):
        find_brain(volume_of(voxels, name="a.nii"))


def test_a_scan_of_nothing_but_background_is_refused():
    with pytest.raises(UnusableScan, match=r"expected a brain, found nothing but background\. Leave"):
        find_brain(volume_of(np.full((5, 5, 5), 7, np.int16), inter=-7.0, background=7, name="a.nii"))


def test_a_scan_stays_as_it_is_stored_and_is_not_copied():
    voxels = np.zeros((20, 20, 20), np.uint8)
    voxels[5:15, 5:15, 5:15] = 200
    scan = volume_of(voxels)
    find_brain(scan)
    assert scan.voxels is voxels
    assert scan.voxels.dtype == np.uint8


@pytest.mark.parametrize("stray", [np.s_[1, 1, 1], np.s_[0, :, 0]])
def test_a_stray_voxel_or_a_line_at_the_edge_does_not_move_the_box(stray):
    voxels = ellipsoid((60, 60, 60), (12, 14, 12)).astype(np.float32) * 100
    whole = find_brain(volume_of(voxels))
    voxels[stray] = 90
    moved = find_brain(volume_of(voxels))
    assert (moved.start, moved.stop) == (whole.start, whole.stop)


def test_two_large_pieces_are_both_in_the_box():
    voxels = np.zeros((60, 40, 40), np.float32)
    voxels[5:15, 10:30, 10:30], voxels[40:50, 10:30, 10:30] = 100, 90
    brain = find_brain(volume_of(voxels))
    assert (brain.start[0], brain.stop[0]) == (5, 50)


@pytest.mark.parametrize(("levels", "is_map"), [(1, True), (3, True), (50, False), (255, False)])
def test_a_label_map_has_equal_neighbours_and_a_scan_in_few_grey_levels_has_not(levels, is_map):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 40, 40)), 2)
    voxels = np.ceil((smooth - smooth.min()) / np.ptp(smooth) * levels + 1e-6) * ellipsoid((40, 40, 40), (16, 16, 16))
    volume = volume_of(voxels.astype(np.uint8))
    assert (share_of_equal_neighbours(volume, find_brain(volume)) > MOST_EQUAL_NEIGHBOURS) == is_map
