"""planes.put_back and put_map_back: pictures of a plane -> its voxels, as draw_plane draws them the other way round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scan_files import ellipsoid, volume_of

from vqvae2.scans.brain import Brain
from vqvae2.slices.planes import DARKEST_BRAIN, draw_plane, plane_of, put_back, put_map_back

SHAPE = 24, 30, 20
WAVES = sum(np.sin(np.linspace(0, 3 + axis, length)).reshape([-1 if each == axis else 1 for each in range(3)])
            for axis, length in enumerate(SHAPE))


def head(sizes=(1.0, 1.0, 1.0), values=WAVES):
    """A stripped brain of smooth brightness 0.2…1, and its box, which has an even number of voxels each way."""
    inside = ellipsoid(SHAPE, (9.5, 12.5, 7.5))
    values = 0.2 + 0.8 * (values - values.min()) / max(np.ptp(values), 1e-9)
    places = np.argwhere(inside)
    start, stop = places.min(0), places.max(0) + 1
    assert not ((stop - start) % 2).any()
    return volume_of(values * inside, sizes), Brain(tuple(start.tolist()), tuple(stop.tolist()), 0.0, 1.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pixels_that_are_voxels_give_back_the_voxels(axis):
    volume, brain = head()
    for index in range(brain.start[axis], brain.stop[axis]):
        plane = plane_of(volume, brain, axis, index)
        made, known = put_back(draw_plane(volume, brain, axis, index, 32, 32), volume, brain, axis, plane, 32)
        assert np.array_equal(known, plane.inside)
        assert np.allclose(made, plane.brightness, rtol=0, atol=1e-12)
        whole = np.zeros(SHAPE)
        whole[plane.part] = made
        assert np.allclose(np.take(whole, index, axis), np.take(volume.voxels, index, axis), atol=1e-12)


@given(sizes=st.tuples(*[st.floats(0.7, 1.6)] * 3), axis=st.integers(0, 2), pixel_mm=st.floats(0.4, 2.2))
def test_a_smooth_picture_comes_back_nearly_as_it_was(sizes, axis, pixel_mm):
    volume, brain = head(sizes)
    index, size = (brain.start[axis] + brain.stop[axis]) // 2, int(64 / pixel_mm)
    plane = plane_of(volume, brain, axis, index)
    made, known = put_back(draw_plane(volume, brain, axis, index, size, size * pixel_mm), volume, brain, axis, plane,
                           size * pixel_mm)
    assert np.array_equal(known, plane.inside)
    assert np.abs(made - plane.brightness).mean(where=known) < 0.03
    assert np.abs(made - plane.brightness).max() < 0.2
    assert not made[~known].any()


@pytest.mark.parametrize("pixel_mm", [0.5, 1.7, 3.0])
def test_an_even_brain_stays_even_up_to_its_edge(pixel_mm):
    """Pixels at the edge are dark, since part of them is background; that must not darken the voxels there."""
    volume, brain = head((1.1, 0.9, 1.3), np.zeros(SHAPE))
    plane = plane_of(volume, brain, 2, 10)
    size = round(60 / pixel_mm)
    drawn = draw_plane(volume, brain, 2, 10, size, size * pixel_mm)
    assert np.unique(drawn[drawn > 0].round(9)).size > 1
    made, known = put_back(drawn, volume, brain, 2, plane, size * pixel_mm)
    assert np.allclose(made[known], 0.2)
    assert np.array_equal(known, plane.inside)


def test_nothing_is_known_beyond_the_field_of_view():
    volume, brain = head()
    plane = plane_of(volume, brain, 2, 10)
    made, known = put_back(draw_plane(volume, brain, 2, 10, 10, 10), volume, brain, 2, plane, 10)
    middle = np.zeros_like(known)
    first, second = (length // 2 for length in known.shape)
    middle[first - 5:first + 5, second - 5:second + 5] = True
    assert np.array_equal(known, plane.inside & middle)
    assert not made[~known].any()


def test_what_a_model_makes_of_the_brain_is_never_background():
    volume, brain = head()
    plane = plane_of(volume, brain, 1, 15)
    made, known = put_back(np.zeros((32, 32)), volume, brain, 1, plane, 32)
    assert np.unique(made[known]).tolist() == [DARKEST_BRAIN]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cells", [4, 7, 40])
def test_codes_are_taken_from_the_cell_in_which_a_voxels_middle_lies(axis, cells):
    sizes = (1.1, 0.9, 1.3)
    volume, brain = head(sizes)
    codes = np.arange(cells * cells).reshape(cells, cells)
    made, within = put_map_back(codes, volume, brain, axis, 28.0, nearest=True)
    first, second = (each for each in range(3) if each != axis)
    box = brain.around(SHAPE)
    for place in np.ndindex(*made.shape):
        # mm from the middle of the brain, towards right (anterior) and up
        right, up = ((at + 0.5 + box[each].start - (brain.start[each] + brain.stop[each]) / 2) * sizes[each]
                     for at, each in zip(place, (first, second)))
        row, column = np.floor((14 - up) / 28 * cells), np.floor((14 - right) / 28 * cells)
        if max(abs(right), abs(up)) < 14 - 1:
            near = {codes[int(r), int(c)] for r in {row, np.floor((14 - up - 1e-9) / 28 * cells)}
                    for c in {column, np.floor((14 - right - 1e-9) / 28 * cells)}}
            assert within[place]
            assert made[place] in near, (place, row, column)
        elif max(abs(right), abs(up)) > 14 + 1:
            assert not within[place]


@pytest.mark.parametrize("cells", [5, 64])
def test_a_map_of_one_number_has_it_everywhere_within_the_field_of_view(cells):
    volume, brain = head((1.1, 0.9, 1.3))
    made, within = put_map_back(np.full((cells, cells), 0.7), volume, brain, 1, 20.0)
    assert np.allclose(made[within], 0.7)
    assert 0 < within.sum() < within.size
    assert not made[~within].any()
