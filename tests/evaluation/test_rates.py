"""Rate and distortion: sizes of real files, figures at equal rates, and what a table and a plot say of them."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from conftest import picture_of
from PIL import Image, features
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqvae2.evaluation import rates
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.metrics import similarity

SIZE = 64
SAVED = {"jpeg": {"format": "JPEG", "quality": 45, "optimize": True},
         "webp": {"format": "WEBP", "quality": 50, "method": 6},
         "jpeg_2000": {"format": "JPEG2000", "no_jp2": True, "irreversible": True, "quality_mode": "rates",
                       "quality_layers": [8 / 0.5]}}
SETTINGS = {"jpeg": 45, "webp": 50, "jpeg_2000": 0.5}


def image_set(pixels):
    """Two images a subject."""
    return ImageSet(tuple(ImageFile(f"{i}.png", "test", f"s{i // 2}", "") for i in range(len(pixels))), pixels)


@pytest.fixture(scope="module")
def split():
    return image_set(np.stack([picture_of(i // 2, i % 2, SIZE)[None] for i in range(6)]))


@pytest.fixture(scope="module")
def made(split):
    noise = np.random.default_rng(0).integers(-12, 13, split.pixels.shape) * (split.pixels > 0)
    return torch.from_numpy((split.pixels + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def report(split, made):
    return rates.measure(split, made, raw=0.5, context=0.3, prior=torch.linspace(0.1, 0.2, 6, dtype=torch.float64))


def file_of(picture, options):
    file = io.BytesIO()
    picture.save(file, **options)
    return file


def point_of(report, codec):
    return next(point for point in report["codecs"][codec] if point["setting"] == SETTINGS[codec])


def curve(*points):
    return [{"bits_per_pixel": rate, "without_header": rate - 0.5, "psnr": value, "ssim": value / 100}
            for rate, value in points]


class TestCodecs:
    @pytest.mark.parametrize("codec", SAVED)
    def test_sizes_and_figures_are_those_of_the_files_that_pillow_writes(self, report, split, codec):
        sizes, decibels, similarities = [], [], []
        for original in split.pixels[:, 0]:
            file = file_of(Image.fromarray(original), SAVED[codec])
            decoded = np.asarray(Image.open(file).convert("L"))
            sizes.append(len(file.getvalue()) * 8 / SIZE**2)
            decibels.append(peak_signal_noise_ratio(original, decoded))
            similarities.append(structural_similarity(original, decoded, gaussian_weights=True, sigma=1.5,
                                                      data_range=255, use_sample_covariance=False))
        point = point_of(report, codec)
        assert point["bits_per_pixel"] == pytest.approx(np.mean(sizes))
        assert point["psnr"] == pytest.approx(np.mean(decibels))
        assert point["ssim"] == pytest.approx(np.mean(similarities), abs=1e-6)
        assert point["psnr_ci_low"] <= point["psnr"] <= point["psnr_ci_high"]
        assert point["ssim_ci_low"] < point["ssim_ci_high"]

    @pytest.mark.parametrize("codec", SAVED)
    def test_the_header_is_the_smallest_file_of_a_constant_image(self, report, codec):
        smallest = min(len(file_of(Image.new("L", (SIZE, SIZE), level), options).getvalue())
                       for level in (0, 128) for _, options in rates.CODECS[codec].options)
        assert report["headers"][codec] == smallest
        for point in report["codecs"][codec]:
            assert point["without_header"] == pytest.approx(point["bits_per_pixel"] - smallest * 8 / SIZE**2)

    @pytest.mark.parametrize("codec", SAVED)
    def test_settings_span_the_rates_of_interest(self, report, codec):
        measured = [point["bits_per_pixel"] for point in report["codecs"][codec]]
        assert measured == sorted(measured)
        assert measured[0] < 0.5
        assert measured[-1] > 1.5

    def test_a_dearer_rate_never_buys_less(self, report):
        for points in report["codecs"].values():
            for figure in rates.FIGURES:
                first, last = points[0]["bits_per_pixel"], points[-1]["bits_per_pixel"]
                bought = [rates.at_rate(points, "bits_per_pixel", figure, rate)
                          for rate in np.linspace(first, last, 50)]
                assert bought == sorted(bought)

    def test_a_codec_that_pillow_lacks_is_left_out_and_named(self, split, made, monkeypatch):
        monkeypatch.setattr(rates.features, "check", lambda name: name == "jpg")
        report = rates.measure(split, made, raw=0.5)
        assert list(report["codecs"]) == list(report["at_equal_ssim"]) == ["jpeg"]
        assert report["versions"] == {"jpeg": features.version("jpg"), "webp": None, "jpeg_2000": None}


class TestModel:
    def test_its_distortion_is_that_of_metrics_and_its_rates_are_given(self, report, split, made):
        figures = similarity.image_figures(split.bytes(), made)
        assert report["model"]["psnr"] == pytest.approx(figures["full"]["psnr"].mean().item())
        assert report["model"]["brain_ssim"] == pytest.approx(figures["brain"]["ssim"].mean().item())
        costs = report["model"]["points"]
        assert {name: cost["bits_per_pixel"] for name, cost in costs.items()} == pytest.approx(
            {"raw": 0.5, "context": 0.3, "prior": 0.15})
        assert costs["prior"]["ci_low"] < 0.15 < costs["prior"]["ci_high"]
        assert costs["raw"]["ci_low"] is None
        assert (report["images"], report["subjects"], report["pixels"]) == (6, 3, SIZE**2)

    def test_images_are_chosen_evenly_for_all_alike(self, split, made, monkeypatch):
        monkeypatch.setattr(rates, "MOST_IMAGES", 3)
        few = rates.measure(split, made, raw=0.5, prior=torch.arange(6.0))
        chosen = image_set(split.pixels[[0, 2, 5]])  # of 0, 2.5, 5, rounded to even
        expected = similarity.image_figures(chosen.bytes(), made[[0, 2, 5]])["full"]["psnr"].mean().item()
        assert few["images"] == 3
        assert few["model"]["psnr"] == pytest.approx(expected)
        assert few["model"]["points"]["prior"]["bits_per_pixel"] == pytest.approx(7 / 3)

    def test_a_perfect_reconstruction_is_beyond_every_codec(self, split):
        report = rates.measure(split, split.bytes(), raw=0.5)
        assert report["model"]["psnr"] == 100
        assert report["model"]["ssim"] == 1
        assert report["at_equal_psnr"]["jpeg"] == {"bits_per_pixel": None, "without_header": None}

    def test_the_same_seed_gives_the_same_report_as_json(self, report, split, made):
        again = rates.measure(split, made, raw=0.5, context=0.3,
                              prior=torch.linspace(0.1, 0.2, 6, dtype=torch.float64))
        assert json.loads(json.dumps(again, allow_nan=False)) == json.loads(json.dumps(report, allow_nan=False))

    def test_colours_16_bits_and_images_smaller_than_the_window_are_judged(self):
        pixels = np.random.default_rng(0).integers(0, 65536, (2, 3, 8, 8)).astype(np.uint16)
        report = rates.measure(image_set(pixels), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), raw=1.0)
        assert report["model"]["psnr"] > 0
        assert report["model"]["ssim"] is None
        assert report["at_equal_ssim"]["webp"] == {"bits_per_pixel": None, "without_header": None}
        assert rates.RatesJudge().table(report, {})[0][1:] == ("1.000", f"{report['model']['psnr']:.2f}", "–", "–")


class TestEqualRates:
    """A curve of which the second point is dearer than the first and worse: nobody would choose it."""

    CURVE = curve((1, 10), (2, 9), (3, 20))

    def test_the_frontier_has_what_nothing_cheaper_beats(self):
        assert rates.frontier(self.CURVE, "bits_per_pixel", "psnr") == [(1, 10), (3, 20)]
        assert rates.frontier(self.CURVE, "without_header", "ssim") == [(0.5, 0.1), (2.5, 0.2)]

    @pytest.mark.parametrize(("rate", "expected"), [(1, 10), (2, 15), (2.5, 17.5), (3, 20), (0.9, None), (3.1, None)])
    def test_a_figure_at_a_rate_is_linear_between_points_and_none_beyond(self, rate, expected):
        assert rates.at_rate(self.CURVE, "bits_per_pixel", "psnr", rate) == expected

    def test_past_the_best_point_more_bits_buy_nothing(self):
        assert rates.at_rate(curve((1, 10), (2, 9)), "bits_per_pixel", "psnr", 1.5) == 10

    @pytest.mark.parametrize(("wanted", "expected"), [(10, 1), (15, 2), (20, 3), (9, None), (21, None), (None, None)])
    def test_the_rate_for_a_figure_is_the_other_way_round(self, wanted, expected):
        assert rates.rate_needed(self.CURVE, "bits_per_pixel", "psnr", wanted) == expected

    def test_without_points_there_is_nothing(self):
        empty = [{"bits_per_pixel": 1.0, "psnr": None}]
        assert rates.at_rate(empty, "bits_per_pixel", "psnr", 1) is None
        assert rates.rate_needed(empty, "bits_per_pixel", "psnr", 1) is None

    def test_the_report_has_them_for_each_point_and_way_to_count(self, report):
        for name, rate in (("raw", 0.5), ("context", 0.3)):
            for codec, points in report["codecs"].items():
                for kind in rates.KINDS:
                    reached = report["at_equal_rate"][name][codec][kind]
                    assert reached["psnr"] == rates.at_rate(points, kind, "psnr", rate)
        for codec, needed in report["at_equal_psnr"].items():
            rate = needed["bits_per_pixel"]
            assert rates.at_rate(report["codecs"][codec], "bits_per_pixel", "psnr", rate) == pytest.approx(
                report["model"]["psnr"])
            assert needed["without_header"] < rate


class TestShown:
    def test_the_table_has_the_model_the_codecs_at_its_rates_and_at_its_ssim(self, report):
        table = rates.RatesJudge().table(report, {})
        assert {len(row) for row in table} == {len(rates.RatesJudge.columns)}
        assert len(table) == 3 * (1 + 3 * 2) + 3 * 2
        model = report["model"]
        assert table[0] == ("VQ-VAE, codes as they are", "0.500", f"{model['psnr']:.2f}", f"{model['ssim']:.4f}",
                            f"{model['brain_ssim']:.4f}")
        assert table[1][:2] == ("JPEG, whole file", "0.500")
        needed = report["at_equal_ssim"]["webp"]["bits_per_pixel"]
        assert next(row for row in table if row[0] == "WebP at the VQ-VAE's SSIM, whole file")[1] == f"{needed:.3f}"

    def test_the_plot_has_titles_units_and_the_models_points(self, report, tmp_path):
        figure = rates.picture(report, tmp_path / "rates.png")
        assert Image.open(tmp_path / "rates.png").width > 1000
        assert [axis.get_title() for axis in figure.axes] == ["PSNR, full picture", "SSIM, full picture",
                                                              "SSIM inside the brain"]
        for axis in figure.axes:
            assert axis.get_xscale() == "log"
            assert axis.get_xlabel() == "rate (bits per pixel, log scale)"
            markers = [marker for marker in axis.get_legend_handles_labels()[0] if hasattr(marker, "has_yerr")]
            assert [marker.lines[0].get_xdata()[0] for marker in markers] == pytest.approx([0.5, 0.3, 0.15])
        [legend] = figure.legends
        words = [text.get_text() for text in legend.get_texts()]
        assert {"JPEG, whole files", "JPEG 2000, without headers", "VQ-VAE, priors: 0.150"} <= set(words)

    def test_a_report_without_ssim_or_priors_can_be_drawn(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8)).astype(np.uint8)
        rates.picture(rates.measure(image_set(pixels), torch.from_numpy(pixels), raw=1.0), tmp_path / "small.png")
        assert (tmp_path / "small.png").is_file()


def test_the_figure_of_one_subject_is_drawn(split, made, tmp_path):
    """Its interval has no width, and lies beside the mean by rounding."""
    alone = dataclasses.replace(split, files=tuple(dataclasses.replace(file, subject="a") for file in split.files))
    report = rates.measure(alone, made, raw=0.5)
    for name in ("psnr", "ssim", "brain_ssim"):
        report["model"][f"{name}_ci_low"] = report["model"][name] + 1e-16 * report["model"][name]
    rates.picture(report, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 1000
