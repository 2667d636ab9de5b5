"""Figures of images and codes, held to scikit-image, torchmetrics, hand calculations and slow obvious versions."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from vqvae2.common import statistics
from vqvae2.metrics import coding, context_model
from vqvae2.metrics import similarity as metrics

SCANS = Path(__file__).parents[2] / "shared" / "data" / "scans"
SKIMAGE = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def pictures(n=3, size=64, channels=1, seed=0):
    """Smooth random originals inside a dark frame, and noisy copies of them."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.random((n, channels, size, size)), (0, 0, 3, 3))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    smooth[..., : size // 5, :] = 0
    smooth[..., -size // 5:] = 0
    noisy = (0.9 * smooth + 0.1 * rng.random(smooth.shape)).clip(0, 1)
    return (torch.from_numpy((255 * images).round().astype(np.uint8)) for images in (smooth, noisy))


def as_floats(images):
    return images[:, 0].numpy() / 255


def slow_maps(first, second):
    """SSIM and contrast maps of two 2-D pictures, term by term after Wang 2004, 5-pixel border removed."""
    def blur(picture):
        return gaussian_filter(picture, 1.5, truncate=3.5)[5:-5, 5:-5]
    m1, m2 = blur(first), blur(second)
    v1, v2, cov = blur(first**2) - m1**2, blur(second**2) - m2**2, blur(first * second) - m1 * m2
    contrast = (2 * cov + 0.03**2) / (v1 + v2 + 0.03**2)
    return (2 * m1 * m2 + 0.01**2) / (m1**2 + m2**2 + 0.01**2) * contrast, contrast


def slow_ms_ssim(first, second, mask, weights):
    product = 1.0
    for scale, weight in enumerate(weights):
        similarity, contrast = slow_maps(first, second)
        inner = mask[5:-5, 5:-5]
        chosen = similarity if scale == len(weights) - 1 else contrast
        product *= ((chosen * inner).sum() / inner.sum()) ** weight
        first, second, mask = (p.reshape(p.shape[0] // 2, 2, p.shape[1] // 2, 2).mean((1, 3))
                               for p in (first, second, mask))
    return product


@pytest.mark.parametrize("size", [11, 40, 64, 97])
def test_full_figures_equal_those_of_scikit_image(size):
    originals, reconstructions = pictures(size=size)
    figures = metrics.image_figures(originals, reconstructions)["full"]
    pairs = list(zip(as_floats(originals), as_floats(reconstructions)))
    np.testing.assert_allclose(figures["ssim"], [structural_similarity(a, b, **SKIMAGE) for a, b in pairs], rtol=1e-9)
    np.testing.assert_allclose(figures["psnr"], [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs])
    np.testing.assert_allclose(figures["mae"], [abs(a - b).mean() for a, b in pairs])


def test_brain_figures_are_means_of_scikit_images_map_over_the_brain():
    originals, reconstructions = pictures()
    originals[:, :, 30:34, 20:24] = 0  # a hole in the brain, which counts as brain
    figures = metrics.image_figures(originals, reconstructions)["brain"]
    mask = np.zeros((64, 64), bool)
    mask[12:, :51] = True  # 64 // 5 rows, 64 - 13 columns
    for number, (first, second) in enumerate(zip(as_floats(originals), as_floats(reconstructions))):
        similarity = structural_similarity(first, second, full=True, **SKIMAGE)[1]
        assert figures["ssim"][number] == pytest.approx(similarity[5:-5, 5:-5][mask[5:-5, 5:-5]].mean(), rel=1e-9)
        assert figures["mae"][number] == pytest.approx(abs(first - second)[mask].mean())
        assert figures["psnr"][number] == pytest.approx(-10 * math.log10(mean_squared_error(first[mask], second[mask])))


def test_colour_images_give_the_mean_over_channels():
    originals, reconstructions = pictures(n=1, channels=3)
    expected = structural_similarity(originals[0].numpy() / 255, reconstructions[0].numpy() / 255, channel_axis=0,
                                     **SKIMAGE)
    assert metrics.image_figures(originals, reconstructions)["full"]["ssim"].item() == pytest.approx(expected)


@pytest.mark.parametrize(("size", "number"), [(32, 2), (64, 3), (128, 4), (256, 5)])
def test_ms_ssim_equals_the_slow_product_over_scales(size, number):
    originals, reconstructions = pictures(n=1, size=size)
    figures = metrics.image_figures(originals, reconstructions)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:number]
    brain = np.zeros((size, size))
    brain[size // 5:, : size + (-size // 5)] = 1
    for area, mask in (("full", np.ones((size, size))), ("brain", brain)):
        expected = slow_ms_ssim(as_floats(originals)[0], as_floats(reconstructions)[0], mask, weights / weights.sum())
        assert figures[area]["ms_ssim"].item() == pytest.approx(expected, rel=1e-9), area


def test_the_contrast_factor_of_ms_ssim_is_that_of_torchmetrics():
    """At 32² there are two scales: fine contrast to the power .0448, coarse SSIM to .2856, over their sum."""
    originals, reconstructions = (images.double() / 255 for images in pictures(n=2, size=32))
    contrast = structural_similarity_index_measure(reconstructions, originals, data_range=1.0, reduction="none",
                                                   return_contrast_sensitivity=True)[1]
    coarse = [torch.nn.functional.avg_pool2d(images, 2) for images in (reconstructions, originals)]
    similarity = structural_similarity_index_measure(*coarse, data_range=1.0, reduction="none",
                                                     return_full_image=True)[1][..., 5:-5, 5:-5].mean((1, 2, 3))
    expected = contrast ** (0.0448 / 0.3304) * similarity ** (0.2856 / 0.3304)
    found = metrics.image_figures(*pictures(n=2, size=32))["full"]["ms_ssim"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("size", "number"), [(10, 0), (11, 1), (16, 1), (32, 2), (64, 3), (87, 3), (88, 4), (128, 4),
                                              (175, 4), (176, 5), (256, 5), (1024, 5)])
def test_ms_ssim_has_the_scales_that_the_window_fits_into(size, number):
    weights = metrics.ms_ssim_scales(size)
    assert len(weights) == number
    assert sum(weights) == pytest.approx(1 if number else 0)
    if number == 5:
        assert weights == pytest.approx([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], rel=1e-3)


def test_equal_images_have_similarity_1_and_100_db_so_that_json_can_hold_it():
    originals, _ = pictures()
    for figures in metrics.image_figures(originals, originals).values():
        assert figures["ssim"].tolist() == pytest.approx([1] * 3)
        assert figures["ms_ssim"].tolist() == pytest.approx([1] * 3)
        assert figures["psnr"].tolist() == pytest.approx([100] * 3)
        assert figures["mae"].tolist() == [0] * 3


def test_one_pixel_one_step_off_is_told_from_equal_at_256():
    originals = torch.zeros(1, 1, 256, 256, dtype=torch.uint8)
    other = originals.clone()
    other[0, 0, 100, 100] = 1
    psnr = metrics.image_figures(originals, other)["full"]["psnr"].item()
    assert psnr == pytest.approx(20 * math.log10(255) + 10 * math.log10(256 * 256))
    assert psnr < 97


def test_an_image_without_brain_has_nan_for_the_brain_and_figures_for_the_whole():
    originals, reconstructions = pictures(n=2)
    originals[1] = 0
    figures = metrics.image_figures(originals, reconstructions)
    for name in ("ssim", "ms_ssim", "psnr", "mae"):
        assert figures["brain"][name].isnan().tolist() == [False, True], name
        assert not figures["full"][name].isnan().any(), name


def test_a_brain_mask_fills_what_it_encloses_and_leaves_what_is_open():
    ring, bay = torch.zeros(2, 1, 7, 7, dtype=torch.uint8)[:, 0]
    ring[1:6, 1:6], ring[2:5, 2:5] = 9, 0
    bay[1:6, 1:6], bay[2:5, 2:7] = 9, 0
    mask = metrics.brain_mask(torch.stack([ring, bay])[:, None])
    assert mask[0].sum() == 25
    assert mask[1].sum() == 5 + 5 + 3


def test_images_smaller_than_the_window_have_no_ssim_but_psnr():
    originals, reconstructions = pictures(size=10)
    figures = metrics.image_figures(originals, reconstructions)["full"]
    assert figures["ssim"].isnan().all()
    assert figures["ms_ssim"].isnan().all()
    assert metrics.ssim(originals, reconstructions).isnan().all()
    assert figures["psnr"].isfinite().all()


def test_an_images_figures_do_not_depend_on_how_many_there_are_or_on_what_is_asked_for():
    originals, reconstructions = pictures(n=metrics.AT_A_TIME + 3, size=32)
    figures = metrics.image_figures(originals, reconstructions)
    last = metrics.image_figures(originals[-1:], reconstructions[-1:])
    brain = metrics.brain_mask(originals)
    fewer = metrics.image_figures(originals, reconstructions, brain=brain, multiscale=False)
    for area, own in figures.items():
        for name, values in own.items():
            assert last[area][name].item() == pytest.approx(values[-1].item(), rel=1e-12)
            if name == "ms_ssim":
                assert fewer[area][name].isnan().all()
            else:
                assert torch.equal(fewer[area][name], values)
    none = metrics.image_figures(originals, reconstructions, brain=torch.zeros_like(brain))["brain"]["psnr"]
    assert none.isnan().all()


def test_a_rank_without_images_gets_empty_figures():
    nothing = torch.zeros(0, 1, 64, 64, dtype=torch.uint8)
    for figures in metrics.image_figures(nothing, nothing).values():
        assert {name: values.shape for name, values in figures.items()} == dict.fromkeys(
            ("ssim", "ms_ssim", "psnr", "mae"), (0,))
    assert metrics.ssim(nothing, nothing).shape == (0,)


def test_ssim_alone_is_the_full_ssim():
    originals, reconstructions = pictures()
    full = metrics.image_figures(originals, reconstructions)["full"]["ssim"]
    torch.testing.assert_close(metrics.ssim(originals, reconstructions), full)


def test_an_images_figures_do_not_depend_on_its_batch():
    originals, reconstructions = pictures(n=4)
    together = metrics.image_figures(originals, reconstructions)
    alone = metrics.image_figures(originals[2:3], reconstructions[2:3])
    for area in ("full", "brain"):
        for name, values in alone[area].items():
            torch.testing.assert_close(together[area][name][2:3], values)


def test_mixed_precision_around_the_call_changes_nothing():
    originals, reconstructions = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        inside = metrics.ssim(originals, reconstructions)
    assert inside.tolist() == metrics.ssim(originals, reconstructions).tolist()


def test_images_that_are_not_8_bit_are_refused():
    originals, reconstructions = pictures()
    with pytest.raises(TypeError, match=r"reconstructions: expected uint8 .* found torch.float32 \[3, 1, 64, 64\]"):
        metrics.image_figures(originals, reconstructions.float())
    with pytest.raises(ValueError, match=r"expected shape \[3, 1, 64, 64\], found \[2, 1, 64, 64\]"):
        metrics.ssim(originals, reconstructions[:2])


def test_real_slices_have_scikit_images_ssim_and_a_background_that_flatters():
    nibabel = pytest.importorskip("nibabel")
    files = sorted(SCANS.glob("sub-*/anat/*.nii.gz"))[:2]
    if not files:
        pytest.skip("no real scans beside the checkout")
    originals = []
    for file in files:
        volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(file)).dataobj, dtype=float).squeeze()
        middle = volume[:, :, volume.shape[2] // 2][::2, ::2]
        originals.append(255 * (middle / np.percentile(middle, 99.5)).clip(0, 1))
    originals = torch.from_numpy(np.array(originals).astype(np.uint8))[:, None]
    blurred = torch.from_numpy(gaussian_filter(originals.numpy(), (0, 0, 1.5, 1.5)))
    figures = metrics.image_figures(originals, blurred)
    expected = [structural_similarity(a, b, **SKIMAGE) for a, b in zip(as_floats(originals), as_floats(blurred))]
    np.testing.assert_allclose(figures["full"]["ssim"], expected, rtol=1e-9)
    assert (figures["brain"]["ssim"] < figures["full"]["ssim"]).all()


# Summaries over images and subjects


def test_a_summary_has_the_quantiles_of_its_values():
    found = statistics.summarise(torch.arange(101.0), [str(number) for number in range(101)], seed=0)
    expected = {"mean": 50, "min": 0, "max": 100, "q05": 5, "median": 50, "q95": 95}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    # The mean of 101 draws has standard deviation sqrt((101² - 1) / 12 / 101) = 2.90; 1.96 of them each way.
    assert found["ci_low"] == pytest.approx(50 - 1.96 * 2.90, abs=0.7)
    assert found["ci_high"] == pytest.approx(50 + 1.96 * 2.90, abs=0.7)


def test_the_interval_comes_from_subjects_and_not_from_images():
    """100 copies of each subject's image are no news: the interval is that of 10 subjects, not of 1000 images."""
    values = torch.arange(10.0)
    single = statistics.summarise(values, [f"s{n}" for n in range(10)], seed=1, resamples=4000)
    copies = statistics.summarise(values.repeat(100), [f"s{n}" for n in range(10)] * 100, seed=1, resamples=4000)
    assert copies["ci_low"] == pytest.approx(single["ci_low"])
    assert copies["ci_high"] == pytest.approx(single["ci_high"])
    assert single["ci_high"] - single["ci_low"] > 3


def test_the_bootstrap_of_two_subjects_weighs_them_by_their_images():
    """Subject a has 3 images of 0, b one of 1: a draw is aa (0), bb (1) or ab (1/4), the quantiles 0 and 1."""
    found = statistics.summarise(torch.tensor([0.0, 0, 0, 1]), ["a", "a", "a", "b"], seed=0, resamples=4000)
    assert (found["mean"], found["ci_low"], found["ci_high"]) == (0.25, 0, 1)


def test_one_subject_gives_an_interval_without_width():
    found = statistics.summarise(torch.tensor([0.0, 1.0]), ["a", "a"], seed=0)
    assert (found["ci_low"], found["mean"], found["ci_high"]) == (0.5, 0.5, 0.5)


def test_nan_is_left_out_and_nothing_left_is_null_in_json():
    found = statistics.summarise(torch.tensor([1.0, math.nan, 3.0]), ["a", "b", "c"], seed=0)
    assert (found["mean"], found["min"], found["max"]) == (2, 1, 3)
    nothing = statistics.summarise(torch.tensor([math.nan]), ["a"], seed=0)
    assert nothing.keys() == found.keys()
    assert set(json.loads(json.dumps(nothing)).values()) == {None}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcde")), min_size=1, max_size=30), st.randoms())
def test_a_summary_does_not_depend_on_the_order_of_images(images, shuffler):
    shuffled = list(images)
    shuffler.shuffle(shuffled)
    first, second = (statistics.summarise(torch.tensor([value for value, _ in some], dtype=torch.float64),
                                       [subject for _, subject in some], seed=3) for some in (images, shuffled))
    assert first == pytest.approx(second)
    assert first["min"] - 1e-9 <= first["ci_low"] <= first["ci_high"] <= first["max"] + 1e-9


def test_a_summary_without_a_subject_for_each_value_is_refused():
    with pytest.raises(ValueError, match="one for each of 2 values, found 1"):
        statistics.summarise(torch.zeros(2), ["a"], seed=0)


# Codes


def test_counts_are_how_often_each_code_stands():
    assert coding.code_counts(torch.tensor([[0, 3], [3, 1]], dtype=torch.int16), 5).tolist() == [1, 1, 0, 2, 0]
    assert coding.code_counts(torch.zeros(0, 4, 4, dtype=torch.int64), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("code", "found"), [(-1, "found -1 to 2"), (4, "found 2 to 4")])
def test_counting_a_code_outside_the_codebook_is_refused(code, found):
    with pytest.raises(ValueError, match=rf"\[0, 4\), {found}"):
        coding.code_counts(torch.tensor([2, code]), 4)


def test_codebook_figures_of_known_distributions():
    assert coding.codebook_figures(torch.tensor([0, 9, 0, 0])) == {"size": 4, "used": 1, "perplexity": 1}
    assert coding.codebook_figures(torch.full((512,), 7))["perplexity"] == pytest.approx(512)
    half = coding.codebook_figures(torch.tensor([2, 1, 1, 0]))  # entropy 1.5 bits
    assert half == {"size": 4, "used": 3, "perplexity": pytest.approx(2**1.5)}


def test_an_empty_codebook_has_no_figures():
    with pytest.raises(ValueError, match="found 0 in a codebook of 8"):
        coding.codebook_figures(torch.zeros(8, dtype=torch.int64))


def test_bits_per_pixel_adds_the_bits_of_both_levels():
    assert coding.bits_per_pixel(8.0, 4.0, 1024, 4096, 65536) == pytest.approx((8192 + 16384) / 65536)
    assert coding.bits_per_pixel(8.0, 0.0, 1024, 0, 65536) == pytest.approx(0.125)


def test_raw_bits_per_pixel_at_the_defaults_are_those_of_the_design_page():
    assert coding.raw_bits_per_pixel([512, 512], [(32, 32), (64, 64)], 256 * 256) == pytest.approx(0.703, abs=5e-4)


# Reference models of codes


def slow_context_bits(train, test, size, k):
    """The three estimates for given concentrations, one code at a time, with dictionaries."""
    def seen(maps):
        for codes in maps:
            for row in range(codes.shape[0]):
                for column in range(codes.shape[1]):
                    left = int(codes[row, column - 1]) if column else "edge"
                    above = int(codes[row - 1, column]) if row else "edge"
                    yield int(codes[row, column]), {"all": 0, "place": (row, column), "left": left, "above": above,
                                                    "both": (left, above)}
    pairs, contexts = Counter(), Counter()
    for code, context in seen(train):
        for kind, value in context.items():
            pairs[kind, value, code] += 1
            contexts[kind, value] += 1
    bits = Counter()
    for code, context in seen(test):
        def estimate(kind, coarser, code=code, context=context):
            value = context[kind]
            return (pairs[kind, value, code] + k[kind] * coarser) / (contexts[kind, value] + k[kind])
        histogram = estimate("all", 1 / size)
        both = estimate("both", (estimate("left", histogram) + estimate("above", histogram)) / 2)
        for name, probability in (("histogram", histogram), ("position_histogram", estimate("place", histogram)),
                                  ("context", both)):
            bits[name] -= math.log2(probability) / test.size
    return bits


def test_reference_models_equal_the_slow_version_at_the_best_concentrations(monkeypatch):
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 5, (10, 4, 6)), rng.integers(0, 5, (3, 4, 6))
    train[:, :, 1:] = np.where(rng.random((10, 4, 5)) < 0.6, train[:, :, :-1], train[:, :, 1:])
    grid = (0.25, 2.0, 32.0)
    monkeypatch.setattr(context_model, "CONCENTRATIONS", np.array(grid))
    chosen = dict.fromkeys(("all", "place", "left", "above", "both"), 1.0)
    judged_by = {"all": "histogram", "place": "position_histogram", "both": "context"}
    for kind, name in judged_by.items():
        if kind == "both":  # the neighbours are chosen before, each judged alone
            for neighbour in ("left", "above"):
                chosen[neighbour] = min(grid, key=lambda k, kind=neighbour: slow_neighbour_bits(
                    train[:8], train[8:], kind, k, chosen["all"]))
        chosen[kind] = min(grid, key=lambda k, kind=kind, name=name: slow_context_bits(
            train[:8], train[8:], 5, chosen | {kind: k})[name])
    expected = slow_context_bits(train, test, 5, chosen)
    assert context_model.context_model_bits(train, test, 5) == pytest.approx(expected)


def slow_neighbour_bits(counted, judged, kind, k, k_all):
    """Bits of p(code | left), or p(code | above): that of the left in maps whose rows and columns are exchanged."""
    if kind == "above":
        counted, judged = counted.transpose(0, 2, 1), judged.transpose(0, 2, 1)
    histogram = (np.bincount(counted.ravel(), minlength=5) + k_all / 5) / (counted.size + k_all)
    bits = 0.0
    for codes in judged:
        for row in codes:
            for column, code in enumerate(row):
                if column:
                    matches = ((counted[:, :, :-1] == row[column - 1]) & (counted[:, :, 1:] == code)).sum()
                    total = (counted[:, :, :-1] == row[column - 1]).sum()
                else:
                    matches, total = (counted[:, :, 0] == code).sum(), counted[:, :, 0].size
                bits -= math.log2((matches + k * histogram[code]) / (total + k))
    return bits


def test_codes_without_structure_cost_log2_of_the_size_under_every_model():
    rng = np.random.default_rng(1)
    found = context_model.context_model_bits(rng.integers(0, 8, (200, 8, 8)), rng.integers(0, 8, (50, 8, 8)), 8)
    assert found == {name: pytest.approx(3, abs=0.02) for name in ("histogram", "position_histogram", "context")}


def test_codes_that_their_place_decides_are_free_for_the_model_that_knows_the_place():
    """One fixed random map, drawn evenly from 16 codes: 4 bits by the histogram, none by the place."""
    picture = np.random.default_rng(2).permutation(np.repeat(np.arange(16), 16)).reshape(1, 16, 16)
    found = context_model.context_model_bits(picture.repeat(40, 0), picture.repeat(5, 0), 16)
    assert found["histogram"] == pytest.approx(4, abs=0.01)
    assert found["position_histogram"] < 0.01


def test_codes_that_their_neighbours_decide_are_free_for_the_model_that_knows_them():
    """Each code is left + above modulo 7 inside, random on the edges: only both neighbours together tell it."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 7, (300, 12, 12))
    for row in range(1, 12):
        for column in range(1, 12):
            codes[:, row, column] = (codes[:, row, column - 1] + codes[:, row - 1, column]) % 7
    found = context_model.context_model_bits(codes[:250], codes[250:], 7)
    assert found["histogram"] == pytest.approx(math.log2(7), abs=0.01)
    assert found["position_histogram"] == pytest.approx(math.log2(7), abs=0.03)
    assert found["context"] == pytest.approx(23 / 144 * math.log2(7), abs=0.05)  # 23 of 144 codes are on an edge


def test_a_code_that_training_never_had_still_has_a_finite_cost():
    found = context_model.context_model_bits(np.zeros((1, 4, 4), np.int16), np.full((1, 4, 4), 3, np.int16), 4)
    assert all(math.isfinite(bits) and bits > 2 for bits in found.values())


def test_reference_models_take_tensors_and_refuse_codes_yet_to_be_drawn():
    codes = torch.zeros(3, 4, 4, dtype=torch.int16)
    assert context_model.context_model_bits(codes, codes, 2)["histogram"] < 0.2
    with pytest.raises(ValueError, match=r"test_codes: .*\[0, 2\).* with -1 to -1"):
        context_model.context_model_bits(codes, codes - 1, 2)
    with pytest.raises(ValueError, match=r"test_codes: expected code maps of shape \(4, 4\), found \(4, 3\)"):
        context_model.context_model_bits(codes, codes[:, :, :3], 2)
    with pytest.raises(ValueError, match=r"train_codes: .* found \(0, 4, 4\)"):
        context_model.context_model_bits(codes[:0], codes, 2)
