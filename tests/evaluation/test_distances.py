"""Figures of samples: held to hand calculations, slow versions, torchmetrics and SciPy; and what a report says."""

import itertools
import json

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from vqvae2.evaluation import distances
from vqvae2.evaluation.distances import (
    frechet_distance,
    harm_figures,
    judge,
    kernel_mmd,
    mmd_interval,
    pairwise_ms_ssim,
    precision_recall,
    rows,
)
from vqvae2.evaluation.features import PROVED_ON, Extractor, load_extractor
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.metrics import similarity, texture

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def kernel(x, y):
    return (float(x @ y) / len(x) + 1) ** 3


def slow_mmd(first, second, first_groups=None, second_groups=None):
    """The three means, one pair at a time."""
    def within(features, groups):
        groups = range(len(features)) if groups is None else groups
        values = [kernel(x, y) for (x, g), (y, h) in itertools.product(zip(features, groups), repeat=2) if g != h]
        return sum(values) / len(values)

    across = [kernel(x, y) for x in first for y in second]
    return within(first, first_groups) + within(second, second_groups) - 2 * sum(across) / len(across)


def in_subjects(rng, subjects, each, dims, spread=1.0, shift=0.0):
    """Features of several images of each subject, which lie around the subject's own place."""
    places = rng.normal(shift, 1, (subjects, 1, dims))
    names = [f"{shift}-{subject}" for subject in range(subjects) for _ in range(each)]
    return (places + spread * rng.normal(size=(subjects, each, dims))).reshape(-1, dims), names


class FirstPixels(nn.Module):
    """A feature network for torchmetrics whose features are the first pixels' values."""

    num_features = 6

    def forward(self, images):
        return images.flatten(1)[:, :6].float()


class TestFrechetDistance:
    def test_two_gaussians_on_a_line_are_apart_by_both_differences_squared(self):
        """Means 0 and 3; standard deviations 1 and 2 (with n - 1): 3² + (1 - 2)² = 10."""
        assert frechet_distance(np.array([[-1.0], [0], [1]]), np.array([[1.0], [3], [5]])) == pytest.approx(10)

    def test_it_equals_the_formula_with_scipys_root_of_the_product(self, rng):
        first, second = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), rng.normal(0.5, 2, (30, 6))
        covariance, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        slow = (np.square(first.mean(0) - second.mean(0)).sum()
                + np.trace(covariance + other - 2 * scipy.linalg.sqrtm(covariance @ other).real))
        assert frechet_distance(first, second) == pytest.approx(slow, rel=1e-9)
        assert frechet_distance(second, first) == pytest.approx(slow, rel=1e-9)

    def test_it_equals_that_of_torchmetrics(self, rng):
        images = torch.from_numpy(rng.integers(0, 50, (40, 3, 8, 8))).to(torch.uint8)
        other = torch.from_numpy(rng.integers(0, 70, (30, 3, 8, 8))).to(torch.uint8)
        theirs = FrechetInceptionDistance(feature=FirstPixels(), input_img_size=(3, 8, 8)).set_dtype(torch.float64)
        theirs.update(images, real=True)
        theirs.update(other, real=False)
        ours = frechet_distance(*(FirstPixels()(pixels).double().numpy() for pixels in (images, other)))
        assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)

    def test_equal_sets_are_0_apart_even_with_fewer_images_than_features(self, rng):
        few = rng.normal(size=(5, 20))
        assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


class TestKernelMmd:
    def test_four_numbers_by_hand(self):
        """Kernel (xy + 1)³: within 0, 1 it is 1; within 1, 2 it is 27; across 1, 1, 8, 27, so 28 - 2 x 37 / 4."""
        assert kernel_mmd(np.array([[0.0], [1]]), np.array([[1.0], [2]])) == pytest.approx(28 - 18.5)

    @pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
    def test_it_equals_the_slow_one_and_torchmetrics_on_all_pairs(self, rng):
        images = torch.from_numpy(rng.integers(0, 5, (30, 3, 8, 8))).to(torch.uint8)
        other = torch.from_numpy(rng.integers(0, 7, (30, 3, 8, 8))).to(torch.uint8)
        theirs = KernelInceptionDistance(feature=FirstPixels(), subsets=1, subset_size=30)
        theirs.update(images, real=True)
        theirs.update(other, real=False)
        first, second = (FirstPixels()(pixels).double().numpy() for pixels in (images, other))
        assert kernel_mmd(first, second) == pytest.approx(slow_mmd(first, second), rel=1e-9)
        assert kernel_mmd(first, second) == pytest.approx(theirs.compute()[0].item(), rel=1e-3)

    def test_pairs_of_one_subject_are_left_out(self, rng):
        (first, names), (second, others) = in_subjects(rng, 4, 3, 5), in_subjects(rng, 3, 4, 5)
        order = rng.permutation(len(first))  # the images of a subject need not stand together
        shuffled, its_names = first[order], [names[i] for i in order]
        expected = slow_mmd(first, second, names, others)
        assert kernel_mmd(shuffled, second, its_names, others) == pytest.approx(expected, rel=1e-9)
        assert expected != pytest.approx(slow_mmd(first, second), rel=0.05)

    def test_sets_of_other_subjects_of_one_kind_are_0_apart_in_the_mean(self, rng):
        """Without the subjects' names each set counts as far from the other because its own subjects recur."""
        with_names, without = [], []
        for _ in range(200):
            (first, names), (second, others) = in_subjects(rng, 5, 6, 3, 0.3), in_subjects(rng, 6, 5, 3, 0.3)
            with_names.append(kernel_mmd(first, second, names, others))
            without.append(kernel_mmd(first, second))
        error = np.std(with_names) / len(with_names) ** 0.5
        assert abs(np.mean(with_names)) < 3 * error
        assert np.mean(without) > 6 * error

    def test_blocks_of_rows_change_nothing(self, rng, monkeypatch):
        (first, names), (second, others) = in_subjects(rng, 4, 5, 3), in_subjects(rng, 3, 4, 3)
        figures = [kernel_mmd(first, second, names, others), *precision_recall(first, second, 3, names, others)]
        monkeypatch.setattr(distances, "ROWS_AT_A_TIME", 7)
        assert [kernel_mmd(first, second, names, others),
                *precision_recall(first, second, 3, names, others)] == pytest.approx(figures, rel=1e-12)

    def test_one_subject_is_compared_with_nobody(self, rng):
        assert kernel_mmd(rng.normal(size=(4, 2)), rng.normal(size=(4, 2)), None, ["a"] * 4) is None
        assert mmd_interval(rng.normal(size=(4, 2)), rng.normal(size=(4, 2)), None, 0, ["a"] * 4) == (None, None)


class TestInterval:
    def test_each_resample_is_the_figure_of_the_subjects_that_were_drawn(self, rng):
        """Drawn with the generator's own numbers, and figured one pair at a time with each copy's own subject."""
        (first, names), (second, others) = in_subjects(rng, 4, 2, 2), in_subjects(rng, 3, 3, 2)
        draws = np.random.default_rng(7)
        weights = [draws.multinomial(4, np.full(4, 1 / 4), size=40), draws.multinomial(3, np.full(3, 1 / 3), size=40)]

        def drawn(features, groups, counts):
            times = dict(zip(sorted(set(groups)), counts))
            return zip(*[(x, g) for x, g in zip(features, groups) for _ in range(times[g])])

        values = []
        for of_first, of_second in zip(*weights):
            if min(np.count_nonzero(of_first), np.count_nonzero(of_second)) > 1:
                (x, g), (y, h) = drawn(first, names, of_first), drawn(second, others, of_second)
                values.append(slow_mmd(x, y, g, h))
        assert mmd_interval(first, second, names, 7, others, resamples=40) == pytest.approx(
            (np.quantile(values, 0.025), np.quantile(values, 0.975)), rel=1e-9)

    def test_it_holds_the_figure_and_depends_on_the_seed_alone(self, rng):
        (first, _), (second, others) = in_subjects(rng, 40, 1, 4, shift=0.5), in_subjects(rng, 10, 4, 4)
        low, high = mmd_interval(first, second, None, 3, others)
        assert low < kernel_mmd(first, second, None, others) < high
        assert (low, high) == mmd_interval(first, second, None, 3, others)
        assert (low, high) != mmd_interval(first, second, None, 4, others)

    def test_more_subjects_make_it_narrower(self, rng):
        made = rng.normal(size=(100, 4))
        few, many = (in_subjects(rng, subjects, 4, 4) for subjects in (8, 80))
        widths = [np.diff(mmd_interval(made, real, None, 0, names))[0] for real, names in (few, many)]
        assert widths[1] < 0.6 * widths[0]


class TestPrecisionRecall:
    def test_a_line_by_hand(self):
        """Real at 0, 1, 2, 10: balls to the first neighbour reach 1, 1, 1, 8, and hold -1…3 and 2…18. Made at 1.5, 4,
        30: balls of 2.5, 2.5, 26 hold -1…6.5 and 4…56."""
        real, made = np.array([[0.0], [1], [2], [10]]), np.array([[1.5], [4], [30]])
        assert precision_recall(real, made, neighbours=1) == (pytest.approx(2 / 3), 1.0)
        assert precision_recall(made, real, neighbours=1) == (1.0, pytest.approx(2 / 3))

    def test_it_equals_the_slow_one(self, rng):
        (real, names), (made, others) = in_subjects(rng, 6, 5, 3), in_subjects(rng, 20, 1, 3, shift=0.7)

        def share(points, centres, groups):
            def reach(i):
                return sorted(np.linalg.norm(centres[i] - other) for other, group in zip(centres, groups)
                              if group != groups[i])[2]
            balls = [reach(i) for i in range(len(centres))]
            return np.mean([any(np.linalg.norm(point - centre) <= ball for centre, ball in zip(centres, balls))
                            for point in points])

        expected = share(made, real, names), share(real, made, others)
        assert 0 < expected[1] < 1
        assert precision_recall(real, made, 3, names, others) == pytest.approx(expected)

    def test_slices_of_one_subject_do_not_make_the_balls_small(self, rng):
        """Ten images at each of five places, a hair apart: among all of them no other place would ever be reached."""
        (real, names), (made, others) = (in_subjects(rng, 5, 10, 2, 1e-6) for _ in range(2))
        assert precision_recall(real, made)[0] == 0
        assert precision_recall(real, made, 3, names, others)[0] > 0.5

    def test_where_an_image_has_too_few_neighbours_there_is_no_figure(self, rng):
        points = rng.normal(size=(6, 2))
        assert precision_recall(points, points[:3]) == (None, None)
        assert precision_recall(points, points, 3, list("aaaabb"), None) == (None, None)


class TestVariety:
    def test_it_is_the_mean_over_all_pairs_where_they_are_few(self, rng):
        images = torch.from_numpy(rng.integers(0, 255, (5, 1, 24, 24))).to(torch.uint8)
        pairs = np.array(list(itertools.combinations(range(5), 2)))
        expected = similarity.image_figures(images[pairs[:, 0]], images[pairs[:, 1]])["full"]["ms_ssim"].mean().item()
        assert pairwise_ms_ssim(images, None, 0) == pytest.approx(expected, rel=1e-12)

    def test_pairs_of_one_subject_do_not_count(self, rng):
        """Two subjects, each with one picture twice: a pair within would be 1."""
        image, other = torch.from_numpy(rng.integers(0, 255, (2, 1, 1, 24, 24))).to(torch.uint8)
        expected = similarity.image_figures(image, other)["full"]["ms_ssim"].item()
        assert pairwise_ms_ssim(torch.cat([image, image, other, other]), list("aabb"), 0) == pytest.approx(expected)

    def test_equal_images_have_1_and_a_single_one_nothing(self):
        image = torch.full((1, 1, 24, 24), 90, dtype=torch.uint8)
        assert pairwise_ms_ssim(image.expand(3, -1, -1, -1), None, 0) == pytest.approx(1)
        assert pairwise_ms_ssim(image, None, 0) is None
        assert pairwise_ms_ssim(image.expand(3, -1, -1, -1), list("aaa"), 0) is None
        assert pairwise_ms_ssim(image[..., :8, :8].expand(3, -1, -1, -1), None, 0) is None


def mean_and_spread(images):
    """Four features that a hand could work out: means of the quarters of a picture."""
    return torch.nn.functional.adaptive_avg_pool2d(images.double().mean(1, keepdim=True), 2).flatten(1) / 64


EXTRACTOR = Extractor("quarters", "0" * 64, 4, mean_and_spread)


def slices(rng, subjects, each, shift=0, darkest=60, brightest=160):
    """An image set of noise around each subject's own grey."""
    greys = rng.integers(darkest, brightest, (subjects, 1, 1, 1, 1))
    pixels = (greys + shift + rng.integers(-40, 40, (subjects, each, 1, 24, 24))).clip(0, 255).astype(np.uint8)
    files = tuple(ImageFile(f"{subject}-{i}.png", "test", f"{shift} {subject}", "")
                  for subject in range(subjects) for i in range(each))
    return ImageSet(files, pixels.reshape(-1, 1, 24, 24))


class TestJudge:
    def test_samples_that_are_further_off_than_people_are_have_worse_figures_than_the_floor(self, rng):
        unseen, training = slices(rng, 12, 4), slices(rng, 20, 4)
        good, bad = slices(rng, 30, 1).bytes(), slices(rng, 30, 1, 60).bytes()
        fair, off = (judge(drawn, unseen, training, EXTRACTOR, 0) for drawn in (good, bad))
        assert off["mmd"]["ci_low"] > off["mmd"]["real_floor"]
        assert off["mmd"]["ci_low"] > fair["mmd"]["ci_high"]
        assert off["frechet"]["value"] > 3 * off["frechet"]["real_floor"]
        assert off["precision"]["value"] < 0.7 < fair["precision"]["value"]
        assert fair["mmd"]["real_floor"] == off["mmd"]["real_floor"]
        assert fair["mmd"]["real_floor_ci_low"] < 0.5 * off["mmd"]["ci_low"]

    def test_each_figure_is_that_of_the_functions_on_the_features(self, rng):
        unseen, training, drawn = slices(rng, 8, 3), slices(rng, 9, 3), slices(rng, 10, 1).bytes()
        report = judge(drawn, unseen, training, EXTRACTOR, 5)
        made, real, known = (EXTRACTOR(images) for images in (drawn, unseen.bytes(), training.bytes()))
        assert report["mmd"]["value"] == pytest.approx(slow_mmd(made, real, None, unseen.subjects), rel=1e-9)
        assert report["mmd"]["real_floor"] == pytest.approx(
            slow_mmd(known, real, training.subjects, unseen.subjects), rel=1e-9)
        assert report["frechet"]["value"] == frechet_distance(made, real)
        assert [report[name]["value"] for name in ("precision", "recall")] == pytest.approx(
            precision_recall(real, made, 3, unseen.subjects))
        assert report["pairwise_ms_ssim"] == pairwise_ms_ssim(drawn, None, 5)
        assert report["features"] == {"name": "quarters", "hash": "0" * 64, "dims": 4, "whitened_by": None}
        assert (report["count"], report["compared"], report["seed"]) == (10, 10, 5)
        assert report == judge(drawn, unseen, training, EXTRACTOR, 5)

    def test_what_is_known_of_the_real_slices_is_kept_for_the_next_set_and_changes_no_figure(self, rng):
        unseen, training = slices(rng, 8, 3), slices(rng, 9, 3)
        sets = slices(rng, 10, 1), slices(rng, 5, 2, 30), slices(rng, 6, 2, 30)
        asked, once = [], distances.keeping()
        spy = Extractor("spy", "", 4, lambda images: asked.append(len(images)) or mean_and_spread(images))
        found = [judge(drawn.bytes(), unseen, training, spy, 0, drawn.subjects, spy, once) for drawn in sets]
        assert sum(asked) == sum(map(len, (unseen, training, *sets)))
        plain = Extractor("spy", "", 4, mean_and_spread)
        assert found == [judge(drawn.bytes(), unseen, training, plain, 0, drawn.subjects, plain) for drawn in sets]

    def test_floors_are_of_as_many_training_slices_as_there_are_samples(self, rng, monkeypatch):
        """And where those are fewer, of so many samples."""
        sizes = []
        monkeypatch.setattr(distances, "frechet_distance", lambda made, real: sizes.append(len(made)) or 1.0)
        unseen = slices(rng, 4, 3)
        judge(slices(rng, 7, 1).bytes(), unseen, slices(rng, 10, 2), EXTRACTOR, 0)
        assert sizes == [7] * 6
        sizes.clear()
        judge(slices(rng, 30, 1).bytes(), unseen, slices(rng, 5, 2), EXTRACTOR, 0)
        assert sizes == [10] * 10

    def test_features_of_an_own_network_are_made_white_by_the_training_slices(self, rng):
        """Where features lie, and in which unit, changes no figure; a network of others is left as it is."""
        unseen, training, drawn = slices(rng, 8, 3), slices(rng, 9, 3), slices(rng, 10, 1).bytes()
        far = Extractor("far", "", 4, lambda images: 1000 - 7 * mean_and_spread(images), config={})
        own = Extractor("near", "", 4, mean_and_spread, config={})
        reports = [judge(drawn, unseen, training, extractor, 0) for extractor in (own, far, EXTRACTOR)]
        assert [report["features"]["whitened_by"] for report in reports] == ["training slices"] * 2 + [None]
        for name in ("mmd", "frechet"):
            near, moved, plain = ([report[name][key] for key in ("value", "real_floor")] for report in reports)
            assert near == pytest.approx(moved, rel=1e-4)
            assert near != pytest.approx(plain, rel=0.1)

    @pytest.mark.parametrize(("count", "subjects", "training"), [(1, 1, 0), (2, 2, 1), (3, 1, 3), (16, 3, 2)])
    def test_what_is_not_defined_is_none_and_everything_is_json(self, rng, count, subjects, training):
        known = slices(rng, training, 1) if training else ImageSet((), np.zeros((0, 1, 24, 24), np.uint8))
        report = judge(slices(rng, count, 1).bytes(), slices(rng, subjects, 2), known, EXTRACTOR, 0)
        json.dumps(report, allow_nan=False)
        assert (report["mmd"]["value"] is None) == (min(count, subjects) < 2)
        assert (report["mmd"]["real_floor"] is None) == (min(training, subjects) < 2)
        assert (report["frechet"]["value"] is None) == (2 * subjects <= 4 or report["compared"] <= 4)
        assert all(len(row) == 3 and all(isinstance(cell, str) and "nan" not in cell for cell in row)
                   for row in rows(report))

    def test_the_table_says_figure_samples_and_floor(self):
        interval = {"value": 1.25, "ci_low": 1.0, "ci_high": 1.5, "real_floor": -0.00001, "real_floor_ci_low": None,
                    "real_floor_ci_high": None}
        report = {"features": {"name": "net", "dims": 4}, "pairwise_ms_ssim": 0.5, "real_pairwise_ms_ssim": None,
                  "count": 8, "compared": 8, "compared_with": {"images": 3, "subjects": 1},
                  "mmd": interval, "other_mmd": None,
                  **{name: {"value": 0.25, "real_floor": 0.75} for name in ("frechet", "precision", "recall")}}
        older = [
            ("kernel MMD², 4 features of net", "1.2500 (95 % interval 1.0000 to 1.5000)", "0.0000"),
            ("kernel MMD², a network trained on photographs",
             "not computed without pip install 'vqvae2-brain-mri[imagenet]'", "–"),
            ("Fréchet distance²", "0.250", "0.750"), ("precision", "0.250", "0.750"), ("recall", "0.250", "0.750"),
            ("MS-SSIM of pairs", "0.500", "– (needs slices of 2 people, found slices of 1 unseen person)")]
        assert rows(report) == older
        del report["other_mmd"]  # as before there was such a network
        assert rows(report) == [older[0], *older[2:]]
        other = interval | {"features": {"name": "other", "dims": 9}}
        texture = {"spectrum": {"value": [1.0, 0.5, None], "real_floor": [1.0, 1.125, 0.25]},
                   "edges": {"fine": interval, "coarse": interval}}
        found = rows(report | texture | {"other_mmd": other})
        assert found[1] == ("kernel MMD², 9 features of other", *older[0][1:])
        assert found[:1] + found[2:] == [older[0], *older[2:],
                         ("power / real slices, by 8 cycles a picture", "1.00 0.50 –", "1.00 1.12 0.25"),
                         ("distance of fine edges", *older[0][1:]), ("distance of coarse edges", *older[0][1:])]

    def test_spectrum_and_edges_are_those_of_the_metrics_with_the_training_slices_as_floor(self, rng):
        unseen, training, drawn = slices(rng, 5, 2), slices(rng, 4, 3), slices(rng, 6, 1)
        report = judge(drawn.bytes(), unseen, training, EXTRACTOR, 3)
        powers = [texture.band_powers(each.bytes()) for each in (drawn, training, unseen)]
        made, floor = (texture.power_ratios(own, powers[2], groups, unseen.subjects, 3) for own, groups in (
            (powers[0], None), (powers[1], training.subjects)))
        assert report["spectrum"] == {"cycles": [(0, 8), (8, 12)], **made, "real_floor": floor["value"],
                                      "real_floor_ci_low": floor["ci_low"], "real_floor_ci_high": floor["ci_high"]}
        for name, side in (("fine", 1), ("coarse", 2)):
            shares = [texture.gradient_shares(each.bytes(), side) for each in (drawn, training, unseen)]
            made, floor = (texture.edge_distance(own, shares[2], groups, unseen.subjects, 3) for own, groups in (
                (shares[0], None), (shares[1], training.subjects)))
            assert report["edges"][name] == {**made, **{f"real_floor{end}": floor[f"{end or '_value'}".lstrip("_")]
                                                        for end in ("", "_ci_low", "_ci_high")}}

    def test_a_second_network_is_asked_for_as_many_images_as_it_may_see(self, rng, monkeypatch):
        unseen, training, drawn = slices(rng, 5, 2), slices(rng, 4, 3), slices(rng, 6, 1)
        assert judge(drawn.bytes(), unseen, training, EXTRACTOR, 0)["other_mmd"] is None
        report = judge(drawn.bytes(), unseen, training, EXTRACTOR, 0, other=EXTRACTOR)["other_mmd"]
        assert report["images"] == [6, 12, 10]
        features = [EXTRACTOR(each.bytes()) for each in (drawn, training, unseen)]
        assert report["value"] == kernel_mmd(features[0], features[2], None, unseen.subjects)
        assert report["real_floor"] == kernel_mmd(features[1], features[2], training.subjects, unseen.subjects)
        monkeypatch.setattr(distances, "MOST_OTHER", 4)
        assert judge(drawn.bytes(), unseen, training, EXTRACTOR, 0, other=EXTRACTOR)["other_mmd"]["images"] == [4, 4, 4]


def test_the_table_of_harms_has_a_floor_and_grows_for_a_network_that_sees_brightness(rng):
    """The extractor knows the greys of quarters only, beside 100: it sees another gamma, and hardly a swap."""
    unseen = slices(rng, 8, 3, 0, 90, 110)
    pixels = torch.from_numpy(np.kron(unseen.pixels, np.ones((2, 2), np.uint8)))
    centred = Extractor("quarters", "", 4, lambda images: mean_and_spread(images) * 6.4 - 10)
    table = harm_figures(centred, pixels, unseen.subjects, 0, strengths=(0.5, 1.0))
    assert [(row["harm"], row["strength"]) for row in table] == [
        ("none", 0.0), *((kind, strength) for kind in PROVED_ON for strength in (0.5, 1.0))]
    found = {(row["harm"], row["strength"]): row["mmd"] for row in table}
    assert found["none", 0.0] < found["intensity", 0.5] < found["intensity", 1.0]
    assert abs(found["swap", 1.0] - found["none", 0.0]) < 0.1 * found["intensity", 1.0]


def test_the_shipped_network_tells_whole_people_from_blurred_ones(rng):
    """On noise around greys, which it has never seen: no more is asked than that the chain works, and sees a blur."""
    unseen, training = slices(rng, 6, 2), slices(rng, 6, 2)
    large = [ImageSet(small.files, np.kron(small.pixels, np.ones((2, 2), np.uint8))) for small in (unseen, training)]
    soft = torch.nn.functional.avg_pool2d(large[1].bytes().float(), 5, 1, 2).to(torch.uint8)
    report = judge(soft, *large, load_extractor(None, CPU), 0)
    assert report["mmd"]["value"] > 10 * abs(report["mmd"]["real_floor"])
    assert report["frechet"] == {"value": None, "real_floor": None}
