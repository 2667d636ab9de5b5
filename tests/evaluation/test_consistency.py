"""Equal planes differ by nothing, planes of different people by much, and each figure is what a hand computes."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from vqvae2.evaluation import consistency, features

SIDE, PLANES = 32, 24


@pytest.fixture(scope="module")
def extractor():
    return features.load_extractor(None, torch.device("cpu"))


def heads(seed, count):
    """Slabs of made-up people, uint8 `[count, 24, 32, 32]`: ellipsoids with a dark middle and smooth texture, each of
    its own size and brightness."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(np.linspace(-0.7, 0.7, PLANES), *2 * [np.linspace(-1, 1, SIDE)], indexing="ij")
    made = []
    for _ in range(count):
        wide, long, bright, fluid = rng.uniform((0.6, 0.7, 130, 0.2), (0.8, 0.9, 200, 0.35))
        texture = ndimage.gaussian_filter(rng.normal(size=z.shape), (5, 2, 2))
        brain = np.where((x / wide)**2 + (y / long)**2 + z**2 < 1, bright + 30 * texture / texture.std(), 0)
        made.append(np.where(x**2 + y**2 + (z / 2)**2 < fluid**2, 40, brain).clip(0, 255))
    return np.stack(made).round().astype(np.uint8)


def independent(slabs, seed=0):
    """Each plane from another of the slabs."""
    rng = np.random.default_rng(seed)
    planes = np.arange(slabs.shape[1])
    return np.stack([slabs[rng.integers(len(slabs), size=len(planes)), planes] for _ in slabs])


def squares(*sides, value=200):
    """One slab `[1, planes, 16, 16]`, whose planes have a bright square of these sides in a corner."""
    slab = np.zeros((1, len(sides), 16, 16), np.uint8)
    for plane, side in zip(slab[0], sides):
        plane[:side, :side] = value
    return slab


class TestNeighbourDifferences:
    def test_equal_planes_differ_by_nothing(self):
        found = consistency.neighbour_differences(np.repeat(heads(0, 2)[:, 9:10], 6, axis=1))
        assert {step: shares.value for step, shares in found.items()} == {1: 0, 2: 0, 4: 0}

    def test_it_is_the_mean_over_the_pixels_that_are_brain_in_either_plane(self):
        """4 and 9 pixels of 200: five of nine differ by 200; then 9 equal ones; the first and the third like the first
        and the second."""
        found = consistency.neighbour_differences(squares(2, 3, 3), steps=(1, 2))
        assert found[1].value == pytest.approx((5 * 200 / 255) / (9 + 9))
        assert found[2].value == pytest.approx((5 * 200 / 255) / 9)

    def test_a_drawn_background_that_is_not_quite_black_counts_as_background(self):
        dim = squares(2, 3, 3)
        noise = np.random.default_rng(0).integers(0, 20, dim.shape).astype(np.uint8)
        found = consistency.neighbour_differences(np.where(dim > 0, dim, noise), steps=(2,))[2]
        assert found.wholes.tolist() == [9]

    def test_a_dark_space_inside_the_brain_belongs_to_it(self):
        slab = squares(7, 7)
        slab[0, 0, 3, 3] = 0
        found = consistency.neighbour_differences(slab)
        assert list(found) == [1]  # two planes have no neighbour at 2
        assert found[1].value == pytest.approx(200 / 255 / 49)

    def test_a_set_is_judged_by_all_its_pixels_and_a_set_without_brain_has_no_figure(self):
        both = consistency.neighbour_differences(np.concatenate([squares(2, 3), squares(4, 4)]))[1]
        assert both.value == pytest.approx(5 * 200 / 255 / (9 + 16))
        assert both.interval(0) == pytest.approx((0, 5 * 200 / 255 / 9))
        assert consistency.neighbour_differences(squares(0, 0))[1].value is None


class TestAreaJumps:
    def test_the_brain_jumps_by_its_mean_change_over_its_mean_area(self):
        """Areas 4, 16, 16: changes 12 and 0, mean 6; mean area 12."""
        assert consistency.area_jumps(squares(2, 4, 4))["brain"].value == pytest.approx(0.5)

    def test_ventricles_are_what_is_dark_and_deep(self):
        slab = np.zeros((1, 3, 40, 40), np.uint8)
        slab[:, :, 4:36, 4:36] = 200
        for plane, half in zip(slab[0], (3, 3, 5)):
            plane[20 - half:20 + half, 20 - half:20 + half] = 30
        slab[:, 0, 4:6, :] = 30  # at the edge: not deep
        found = consistency.area_jumps(slab)["ventricles"]
        assert found.value == pytest.approx(32 / (172 / 3), rel=0.1)  # 36, 36 and 100 pixels, less their corners

    def test_where_there_is_no_ventricle_there_is_no_figure(self):
        assert consistency.area_jumps(squares(8, 8))["ventricles"].value is None


class TestReslices:
    def test_superior_is_up_and_the_other_axes_are_those_of_the_slices(self):
        """Brightest at the upper plane; darker from the left to the right and from anterior to posterior."""
        slab = (np.linspace(60, 120, 8)[:, None, None] + np.linspace(60, 0, 8)[None, :, None]
                + np.linspace(70, 0, 8)[None, None]).round().astype(np.uint8)[None]
        found = consistency.reslices(slab, plane_mm=1, pixel_mm=1, places=3)
        for name in ("coronal", "sagittal"):
            assert found[name].shape == (3, 1, 8, 8)
            assert (found[name][:, 0, 0] > found[name][:, 0, -1]).all()
            assert (found[name][:, 0, :, 0] > found[name][:, 0, :, -1]).all()
        # From anterior to posterior, and from the picture's left to its right, through the middle half.
        assert found["coronal"][1, 0].tolist() == slab[0, ::-1, 4].tolist()
        assert found["sagittal"][1, 0].tolist() == slab[0, ::-1, :, 4].tolist()

    @pytest.mark.parametrize(("plane_mm", "pixel_mm", "planes", "height", "side"), [
        (1.0, 3.5, 28, 8, 16), (4.0, 1.0, 3, 12, 16), (2.0, 1.0, 16, 32, 32)])
    def test_pixels_are_square_in_millimetres_and_so_is_the_picture(self, plane_mm, pixel_mm, planes, height, side):
        slab = np.full((1, planes, 16, 16), 200, np.uint8)
        for cut in consistency.reslices(slab, plane_mm, pixel_mm, places=2).values():
            assert cut.shape == (2, 1, side, side)
            bright = cut[0, 0] > 0
            assert (bright.any(1).sum(), bright.any(0).sum()) == (height, 16)
            rows = np.flatnonzero(bright.any(1))
            assert rows[0] == (side - height) // 2

    def test_several_planes_in_one_pixel_are_averaged(self):
        slab = np.zeros((1, 16, 16, 16), np.uint8)
        slab[:, ::2] = 200
        cut = consistency.reslices(slab, 1, 4, places=1)["coronal"]
        assert abs(int(cut[0, 0, 8, 8]) - 100) < 10

    def test_a_slab_without_brain_is_cut_all_the_same(self):
        assert consistency.reslices(squares(0, 0), 1, 1)["coronal"].max() == 0


@pytest.fixture(scope="module")
def table(extractor):
    real, other = heads(0, 8), heads(1, 8)
    sets = {"same": heads(2, 8), "independent": independent(other), "still": np.repeat(other[:, 9:10], PLANES, 1)}
    return consistency.figures(sets, real, other, 1.0, 1.0, extractor, seed=0)


class TestFigures:
    def test_every_figure_has_every_set_and_real_volumes_and_is_json(self, table):
        assert list(table) == ["difference of planes 1 apart", "difference of planes 2 apart",
                               "difference of planes 4 apart", "jumps of the area, brain",
                               "jumps of the area, ventricles", "kernel MMD², coronal", "kernel MMD², sagittal"]
        assert list(table["difference of planes 1 apart"]) == ["real", "other_real", "same", "independent", "still"]
        assert list(table["kernel MMD², coronal"]) == ["other_real", "same", "independent", "still"]
        assert json.loads(json.dumps(table, allow_nan=False)) == table

    def test_other_volumes_of_the_same_kind_are_within_the_aim_and_independent_planes_far_off(self, table):
        for figure, row in table.items():
            assert row["same"]["within_aim"] is True, (figure, row)
            assert row["independent"]["value"] > 1.5 * row["same"]["value"], (figure, row)
        near = [figure for figure, row in table.items() if row["independent"]["within_aim"]]
        assert near == []

    def test_planes_that_do_not_change_are_off_the_aim_too(self, table):
        row = table["difference of planes 1 apart"]
        assert (row["still"]["ratio"], row["still"]["within_aim"]) == (0, False)
        assert row["real"]["ratio"] == 1

    def test_ratios_are_to_real_volumes(self, table):
        for figure, row in table.items():
            if "real" in row:
                assert row["independent"]["ratio"] == pytest.approx(row["independent"]["value"] / row["real"]["value"])
            assert row["independent"]["ci_low"] <= row["independent"]["value"] <= row["independent"]["ci_high"], figure

    def test_the_ratio_of_an_mmd_is_left_out_where_that_of_real_people_may_be_0(self):
        def row(low):
            floor = {"value": 0.2, "ci_low": low, "ci_high": 0.5}
            return consistency._beside_other_real({
                "other_real": floor, "near": {"value": 0.9, "ci_low": 0.7, "ci_high": 1.2},
                "far": {"value": 0.9, "ci_low": 0.8, "ci_high": 1.2}})
        assert [row(low)["far"]["ratio"] for low in (-0.1, 0.1)] == [None, pytest.approx(4.5)]
        assert [row(0.1)[name]["within_aim"] for name in ("near", "far")] == [True, False]

    def test_one_volume_alone_has_no_mmd(self, extractor):
        one = consistency.figures({"one": heads(2, 1)}, heads(0, 2), heads(1, 2), 1.0, 1.0, extractor, seed=0)
        assert one["kernel MMD², coronal"]["one"] == {"value": None, "ci_low": None, "ci_high": None, "ratio": None,
                                                      "within_aim": None}
        assert one["difference of planes 1 apart"]["one"]["value"] > 0
