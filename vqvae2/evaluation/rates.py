"""Reconstructions and what their codes cost -> rate and distortion, beside JPEG, WebP and JPEG 2000 at the same rates.

A VQ-VAE has one distortion, and as many rates as there are ways to write its codes down: as they are; by an ideal
entropy coder that asks the neighbours model (`context_model_bits`); by an ideal entropy coder that asks the priors. The
last two are code lengths, -log2 p, not files; an arithmetic coder needs at most 2 bits more for a whole image [1]. The
codecs' rates are sizes of real files. They are given twice, since a file of 128 x 128 pixels is small beside the header
of its format (222 bytes of JPEG's header are 0.11 bits per pixel):

- bits_per_pixel: the whole file.
- without_header: the file less the smallest file of the same format, at any of the settings, for an image of the same
  size that is all black or all mid-grey. The smallest file also holds the few bytes in which a constant image is coded,
  so that this rate errs in the codec's favour.

Every codec gets the options that make its files small: JPEG its own Huffman tables for each image, WebP its slowest
search, JPEG 2000 the bare codestream. NOTE What both sides must have beforehand counts for neither: the model's
weights, the codecs' programs. The codecs know nothing of brains, and the model knows nothing else. Nothing is known of
the image itself beforehand: the priors' rate is that of priors that are told nothing.
NOTE A finer setting may do worse: where JPEG's step for a block's mean does not divide its range, a black background
becomes 1 or 2 of 255, which the eye misses and SSIM does not: with K1 = 0.01 it is 0.62 where 0 became 2, and the mean
over brain slices fell from 0.96 at quality 30 to 0.89 at 40. So a codec is taken at the best of its settings that
cost no more, and SSIM inside the brain stands beside that of the full picture.

1. Cover and Thomas 2006, Elements of information theory, section 13.3.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, features

from vqvae2.common import files, statistics
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import as_text, evenly
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import context_model, similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"bits_per_pixel": "whole file", "without_header": "without header"}
FIGURES = {"psnr": ("full", "psnr", "PSNR, full picture", "PSNR (dB)"),
           "ssim": ("full", "ssim", "SSIM, full picture", "SSIM (1 is equal)"),
           "brain_ssim": ("brain", "ssim", "SSIM inside the brain", "SSIM (1 is equal)"),
           "brain_psnr": ("brain", "psnr", "PSNR inside the brain", "PSNR (dB)")}
"""Area and name in `similarity.image_figures`, title and unit."""
DRAWN = ("psnr", "ssim", "brain_ssim")
POINTS = {"raw": ("codes as they are", "s"), "context": ("neighbours model", "^"), "prior": ("priors", "o")}
"""The ways in which codes are written down, in the words of figures and tables, and their markers."""
MOST_IMAGES = 240
"""More images are not needed, and each is coded seventy times."""


@dataclass(frozen=True)
class Codec:
    """A format that Pillow writes, and the settings at which it is judged."""

    name: str
    feature: str
    """Pillow's name of the library, for its version and for whether it is there."""
    options: tuple[tuple[float, dict], ...]
    """(quality, or bits per pixel asked for; arguments of Image.save)."""
    colour: str
    """Okabe and Ito's, told apart by colour-blind readers too."""


CODECS = {
    "jpeg": Codec("JPEG", "jpg", tuple(
        (quality, {"format": "JPEG", "quality": quality, "optimize": True})
        for quality in (1, 3, 5, 10, 20, 30, 45, 60, 80, 90, 95)), "#0072B2"),
    "webp": Codec("WebP", "webp", tuple(
        (quality, {"format": "WEBP", "quality": quality, "method": 6})
        for quality in (0, 1, 3, 5, 10, 20, 35, 50, 70, 90, 99)), "#D55E00"),
    "jpeg_2000": Codec("JPEG 2000", "jpg_2000", tuple(
        (bits, {"format": "JPEG2000", "no_jp2": True, "irreversible": True, "quality_mode": "rates",
                "quality_layers": [8 / bits]})
        for bits in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)), "#009E73"),
}


def measure(split: ImageSet, made: torch.Tensor, *, raw: float, context: float | None = None,
            prior: torch.Tensor | None = None, seed: int = 0) -> dict:
    """Return rate and distortion of a VQ-VAE and of the codecs on the same images, as JSON values.

    Args:
        split: the originals; judged on 8 bit, at most MOST_IMAGES of them, evenly chosen.
        made: their reconstructions from the codes, uint8 `[n, channels, height, width]`.
        raw: bits per pixel of the codes as they are (`coding.raw_bits_per_pixel`).
        context: bits per pixel of all levels' codes by the neighbours model; None where it was not fitted.
        prior: bits per pixel of each image's codes by the priors, `[n]`; None where a level has no prior.
        seed: of the bootstrap.
    Returns: {"images", "subjects", "pixels", "model", "codecs", "headers", "at_equal_rate", "at_equal_ssim", …,
        "versions"}. Rates are in bits per pixel, PSNR in dB; means over the images, `*_ci_low` and `*_ci_high` the 95 %
        interval over subjects. Figures are those of FIGURES: psnr, ssim, brain_ssim, brain_psnr.
        model: {"psnr", …, "points": {"raw", "context", "prior": {"bits_per_pixel", "ci_low", "ci_high"}}}.
        codecs: codec -> points {"setting", "bits_per_pixel", "without_header", "psnr", …}, by rate.
        headers: codec -> bytes that `without_header` leaves out.
        at_equal_rate: point -> codec -> "bits_per_pixel" and "without_header" -> figures at the point's rate, counted
            in this way: see `at_rate`.
        at_equal_ssim and so on for each figure: codec -> "bits_per_pixel" and "without_header" -> see `rate_needed`.
        versions: codec -> version of its library; a codec that this Pillow lacks has None, and no other figures.
    """
    items = evenly(len(split), MOST_IMAGES)
    chosen = ImageSet(tuple(split.files[item] for item in items), split.pixels[items])
    originals, subjects, pixels = chosen.bytes(), chosen.subjects, math.prod(split.pixels.shape[2:])
    brain = similarity.brain_mask(originals)
    distortion = _distortion(originals, made[items], brain, subjects, seed)
    points = {name: {"bits_per_pixel": rate, "ci_low": None, "ci_high": None}
              for name, rate in (("raw", raw), ("context", context)) if rate is not None}
    if prior is not None:
        found = statistics.summarise(prior[items], subjects, seed)
        points["prior"] = {"bits_per_pixel": found["mean"], "ci_low": found["ci_low"], "ci_high": found["ci_high"]}
    there = {key: codec for key, codec in CODECS.items() if features.check(codec.feature)}
    pictures = [Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()) for image in originals]
    constants = [Image.new("L", pictures[0].size, level).convert(pictures[0].mode) for level in (0, 128)]
    headers = {key: min(_through(image, options)[0] for image in constants for _, options in codec.options)
               for key, codec in there.items()}
    curves = {}
    for key, codec in Bar(there.items(), desc="codecs", unit="codec"):
        curves[key] = []
        for setting, options in codec.options:
            sizes, decoded = zip(*(_through(picture, options) for picture in pictures))
            bits = np.mean(sizes) * 8 / pixels
            curves[key].append({"setting": setting, "bits_per_pixel": float(bits),
                                "without_header": float(bits - headers[key] * 8 / pixels),
                                **_distortion(originals, torch.stack(decoded), brain, subjects, seed)})
        curves[key].sort(key=lambda point: point["bits_per_pixel"])
    return {"images": len(chosen), "subjects": len(set(subjects)), "pixels": pixels,
            "model": distortion | {"points": points}, "codecs": curves, "headers": headers,
            "at_equal_rate": {name: {key: {kind: {figure: at_rate(curve, kind, figure, point["bits_per_pixel"])
                                                  for figure in FIGURES} for kind in KINDS}
                                    for key, curve in curves.items()} for name, point in points.items()},
            **{f"at_equal_{figure}": {key: {kind: rate_needed(curve, kind, figure, distortion[figure])
                                            for kind in KINDS} for key, curve in curves.items()}
               for figure in FIGURES},
            "versions": {key: features.version(codec.feature) if key in there else None
                         for key, codec in CODECS.items()}}


def frontier(curve: Sequence[Mapping[str, float]], kind: str, figure: str) -> list[tuple[float, float]]:
    """Return (rate, figure) of those points of a curve that are better than all cheaper points, by rate.

    Args:
        curve: points as in `measure`. kind: which rate, one of KINDS. figure: one of FIGURES.
    """
    points = sorted((point[kind], point[figure]) for point in curve if point[figure] is not None)
    return [point for number, point in enumerate(points) if all(point[1] > other[1] for other in points[:number])]


def at_rate(curve: Sequence[Mapping[str, float]], kind: str, figure: str, rate: float | None) -> float | None:
    """Return a curve's figure at a rate, linear between the points of its `frontier`; None below the curve's cheapest
    point, above its dearest point, and for no rate."""
    best, rates = frontier(curve, kind, figure), [point[kind] for point in curve]
    if rate is None or not best or not min(rates) <= rate <= max(rates):
        return None
    return float(np.interp(rate, *zip(*best)))


def rate_needed(curve: Sequence[Mapping[str, float]], kind: str, figure: str, wanted: float | None) -> float | None:
    """Return the least rate at which a curve has the figure `wanted`, linear between the points of its `frontier`; None
    where `wanted` is below the first point's figure, above the last point's, or None."""
    best = frontier(curve, kind, figure)
    if wanted is None or not best or not best[0][1] <= wanted <= best[-1][1]:
        return None
    return float(np.interp(wanted, [value for _, value in best], [rate for rate, _ in best]))


def picture(report: dict, path: Path | str) -> "Figure":
    """Draw the figures of DRAWN over the rate, a panel each, from `measure`'s report; write and return it.

    Dots are codecs at their settings, joined where they are the best for their rate: solid for whole files, dashed
    without headers. Markers are the model's rates, with the 95 % interval of the model's distortion.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5.2 * len(DRAWN), 5.6), layout="constrained")
    panels = figure.subplots(1, len(DRAWN))
    for axis, name in zip(panels, DRAWN):
        _draw(axis, report, name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle(f"Rate and distortion on {report['images']} images of {report['subjects']} subjects; bars are 95 % "
                    "intervals over subjects")
    files.write_atomically(Path(path), lambda temporary: figure.savefig(temporary, dpi=120))
    return figure


def _draw(axis: "Axes", report: dict, name: str) -> None:
    """Draw a panel of `picture`."""
    model, costs = report["model"], report["model"]["points"]
    rates = [point["bits_per_pixel"] for points in (*report["codecs"].values(), costs.values()) for point in points]
    least = min(rates) / 1.5
    for key, curve in report["codecs"].items():
        for kind, style, what in zip(KINDS, ("-", "--"), ("whole files", "without headers")):
            shown = [point for point in curve if point[kind] >= least and point[name] is not None]
            if best := frontier(shown, kind, name):
                axis.plot(*zip(*best), style, color=CODECS[key].colour, linewidth=1.4,
                          label=f"{CODECS[key].name}, {what}")
                axis.plot([point[kind] for point in shown], [point[name] for point in shown], ".",
                          color=CODECS[key].colour, markersize=4)
    for point, cost in costs.items():
        if model[name] is not None:
            words, marker = POINTS[point]
            bar = np.clip([[model[name] - model[f"{name}_ci_low"]], [model[f"{name}_ci_high"] - model[name]]], 0, None)
            # Clipped: one subject's interval has no width, and may miss the mean by rounding.
            axis.errorbar(cost["bits_per_pixel"], model[name], yerr=bar, fmt=marker, color="black", markersize=7,
                          capsize=4, label=f"VQ-VAE, {words}: {cost['bits_per_pixel']:.3f}")
    *_, title, unit = FIGURES[name]
    axis.set(title=title, xlabel="rate (bits per pixel, log scale)", ylabel=unit, xscale="log")
    axis.set_xticks((0.05, 0.1, 0.2, 0.5, 1, 2), ("0.05", "0.1", "0.2", "0.5", "1", "2"))
    axis.minorticks_off()
    axis.set_xlim(least, 1.2 * max(rates))
    axis.grid(alpha=0.3)


class RatesJudge(Judge):
    """Rate and distortion of the VQ-VAE beside common codecs, on the same images."""

    name = "rates"
    columns = ("what", "bits per pixel", "PSNR (dB)", "SSIM", "SSIM inside the brain")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the report of `measure`. The priors are told nothing of the images, as the codecs are not."""
        split, counted = evaluation.images, evaluation.training_codes
        size = evaluation.vqvae.model.settings.codebook_size
        pixels, items = math.prod(split.pixels.shape[2:]), evenly(len(split), MOST_IMAGES)
        context = None if counted is None else sum(
            context_model.context_model_bits(counted.levels[level].numpy(), codes[items].numpy(), size)["context"]
            * codes[0].numel() for level, codes in evaluation.code_maps.levels.items()) / pixels
        prior = sum(bits.double().sum((1, 2)) for bits in evaluation.untold_code_bits.values()) / pixels \
            if evaluation.has_all_priors else None
        return measure(split, evaluation.reconstructions, raw=evaluation.metrics["raw_bits_per_pixel"],
                       context=context, prior=prior, seed=evaluation.settings.seed)

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return rows of the model, of each codec at the model's rates, and of each codec at the model's SSIM."""
        rows = []
        for name, point in figures["model"]["points"].items():
            rate = point["bits_per_pixel"]
            rows += [(f"VQ-VAE, {POINTS[name][0]}", rate, figures["model"]), *(
                (f"{CODECS[key].name}, {what}", rate, reached[kind])
                for key, reached in figures["at_equal_rate"][name].items() for kind, what in KINDS.items())]
        for key, needed in figures["at_equal_ssim"].items():
            rows += [(f"{CODECS[key].name} at the VQ-VAE's SSIM, {KINDS[kind]}", rate,
                      {name: at_rate(figures["codecs"][key], kind, name, rate) for name in DRAWN})
                     for kind, rate in needed.items()]
        return [(what, as_text(rate, 3), *(as_text(reached[name], 2 if name == "psnr" else 4) for name in DRAWN))
                for what, rate, reached in rows]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write rates.png."""
        picture(figures, evaluation.out / "rates.png")


def _distortion(originals: torch.Tensor, made: torch.Tensor, brain: torch.Tensor, subjects: Sequence[str],
                seed: int) -> dict:
    """Return the means of FIGURES over uint8 images, with their intervals; None where they are not defined."""
    figures, report = similarity.image_figures(originals, made, brain=brain, multiscale=False), {}
    for name, (area, figure, *_) in FIGURES.items():
        found = statistics.summarise(figures[area][figure], subjects, seed)
        report |= {name: found["mean"], f"{name}_ci_low": found["ci_low"], f"{name}_ci_high": found["ci_high"]}
    return report


def _through(image: Image.Image, options: Mapping[str, object]) -> tuple[int, torch.Tensor]:
    """Return the size of an image's file in bytes, and the image in the file, uint8 `[channels, height, width]`."""
    file = io.BytesIO()
    image.save(file, **options)
    with Image.open(file) as decoded:  # WebP gives colours for a grey image
        pixels = np.atleast_3d(decoded.convert(image.mode)).transpose(2, 0, 1)
    return len(file.getvalue()), torch.tensor(pixels)
