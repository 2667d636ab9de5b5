"""Figures of a run -> charts (matplotlib), as files or pictures."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vqvae2.common import files
from vqvae2.metrics import coding

DPI = 120
METRIC_TITLES = {"ssim": ("SSIM", "SSIM (1 is equal)"), "ms_ssim": ("MS-SSIM", "MS-SSIM (1 is equal)"),
                 "psnr": ("PSNR", "PSNR (dB)"), "mae": ("Mean absolute error", "mean absolute error (images 0…1)")}


def code_histogram(counts_by_level: Mapping[str, torch.Tensor], out: Path | str | None = None, *,
                   title: str | None = None) -> Figure:
    """Draw how often each code is used, the most used first, a panel for each level; write it to `out`, and return it.

    `counts_by_level`: "top" or "bottom" -> `metrics.code_counts` over a whole split, `[size]`, not all 0.
    `as_picture` makes a picture of what is returned, and `title` stands above all panels.
    """
    figure, axes = panels(len(counts_by_level))
    for axis, (level, counts) in zip(axes, counts_by_level.items()):
        figures = coding.codebook_figures(counts)
        share = counts.cpu().double().sort(descending=True).values / counts.sum().item() * 100
        axis.fill_between(range(1, len(share) + 1), share.numpy(), step="mid", color=COLOURS.get(level))
        axis.axhline(100 / len(share), color="black", linestyle="--", linewidth=1, label="even use")
        axis.set(title=f"{level.capitalize()} codes: {figures['used']} of {figures['size']} used, "
                       f"perplexity {figures['perplexity']:.0f}",
                 xlabel="codes, the most used first (number)", ylabel="share of all codes (%)",
                 xlim=(0.5, len(share) + 0.5), ylim=(0, None))
        axis.legend()
    if title:
        figure.suptitle(title)
    return figure if out is None else save_chart(figure, out)


def metric_histograms(figures: Mapping[str, Mapping[str, torch.Tensor]], out: Path | str,
                      names: Sequence[str] = ("ssim",), *, title: str | None = None) -> Figure:
    """Draw how a metric is spread over images, a panel for each of `names`, mean and minimum marked, a title above all.

    `figures` is what `metrics.image_figures` gives: area -> metric -> `[n]`; nan values are left out.
    """
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names):
        what, unit = METRIC_TITLES[name]
        spread = {area: values[name][~values[name].isnan()].cpu().numpy() for area, values in figures.items()}
        spread = {area: values for area, values in spread.items() if len(values)}
        bins = np.histogram_bin_edges(np.concatenate([*spread.values(), []]), bins=40)
        for area, values in spread.items():
            colour = COLOURS.get(area)
            axis.hist(values, bins=bins, color=colour, alpha=0.5, label=f"{area}: {len(values)} images")
            axis.axvline(values.mean(), color=colour, label=f"mean {values.mean():.4g}")
            axis.axvline(values.min(), color=colour, linestyle=":", label=f"minimum {values.min():.4g}")
        axis.set(title=f"{what} of the images", xlabel=unit, ylabel="images (number)")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        if spread:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize="small")
    if title:
        figure.suptitle(title)
    return save_chart(figure, out)


def as_picture(figure: Figure) -> Image.Image:
    """Return a chart as it would be written to a PNG file."""
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=DPI)
    return Image.open(made).convert("RGB")


def save_chart(figure: Figure, out: Path | str) -> Figure:
    """Write a chart, in the format of the name's ending, and return it; the folder is made."""
    files.write_atomically(Path(out), lambda temporary: figure.savefig(temporary, dpi=DPI))
    return figure


COLOURS = {"train": "#999999", "validate": "#0072B2", "top": "#0072B2", "bottom": "#D55E00", "full": "#0072B2",
           "brain": "#D55E00"}  # Okabe and Ito: told apart by colour-blind readers too


def plain(text: str) -> str:
    """Return a user's text as matplotlib shows it literally: two $ would be a formula, a leading _ hides a label."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of `number` panels, at most three in a row (four from ten on), and its axes.

    pyplot's global state is left alone.
    """
    columns = min(3 if number <= 9 else 4, max(1, number))
    rows = max(1, math.ceil(number / columns))
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, panel + 1) for panel in range(number)]
