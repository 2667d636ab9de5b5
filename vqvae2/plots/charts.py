"""Figures of a run, and the rows of its log.csv -> charts (matplotlib), as files or pictures.

matplotlib is loaded where the first chart is made: it takes a second, and most processes make none.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import expect
from vqvae2.metrics import coding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
# Okabe and Ito: told apart by colour-blind readers too. Their yellow, which is hard to see on white, is left out.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
COLOURS = {"train": "#999999", "validate": "#0072B2", "top": "#0072B2", "bottom": "#D55E00", "full": "#0072B2",
           "brain": "#D55E00"}
RUN_STYLES, RUN_MARKERS = ("-", "--", ":", "-."), "osD^v"
# Two numbers without a common divisor: so many runs have a colour and a line style that no other has together.
MOST_RUNS = len(RUN_COLOURS) * len(RUN_STYLES)
FEW_POINTS = 30  # lines with fewer points have markers
LOSS, ERROR, NLL = "Loss", "Mean squared error", "NLL of the codes"
RECONSTRUCTION, COMMITMENT, CODEBOOK = "Reconstruction", "Commitment", "Codebook"
PREDICTION = "Prediction: what the top misses"
# Panels that are often the same twice, and the title of the panel that stays then: a reconstruction loss of squares
# alone, and one distance whose gradient moves the vectors in one term and the embeddings in the other.
REPEATS = {ERROR: (RECONSTRUCTION, "Reconstruction: mean squared error"),
           CODEBOOK: (COMMITMENT, "Commitment and codebook (equal values)")}
LOG_SCALED = (LOSS, ERROR, RECONSTRUCTION, COMMITMENT, CODEBOOK, PREDICTION)
DISTANCE = "mean squared distance (no unit)"
# The names in a legend of the models of metrics/context_model.py.
COUNTING = {"histogram": "counting: frequency", "position_histogram": "counting: place",
            "context": "counting: neighbours"}
MEASURED = (  # title, unit on the y axis, name of the columns train_NAME and validate_NAME of log.csv
    (LOSS, "loss (no unit, images 0…1)", "loss"), (RECONSTRUCTION, "part of the loss (no unit)", "reconstruction"),
    (ERROR, "MSE (images 0…1)", "mse"), (COMMITMENT, DISTANCE, "commitment"), (CODEBOOK, DISTANCE, "codebook"),
    (PREDICTION, DISTANCE, "prediction"), (NLL, "NLL (bits per code)", "bits_per_code"),
    ("Structural similarity", "SSIM (1 is equal)", "ssim"),
    ("Distance from real texture", "power + 10 edges (0 is equal)", "texture"),
    ("Power of the detail", "mean |log2 of power / real power|", "power"),
    ("Distance of fine edges", "distance of histograms (0 is equal)", "edges"))
OF_LEVELS = (  # title, title for one level, unit on the y axis, name of the columns top_NAME and bottom_NAME
    ("Codes in use (validation images)", "{} codes in use", "codes used (number)", "used"),
    ("Perplexity of the codes (validation images)", "Perplexity of the {} codes", "perplexity (number of codes)",
     "perplexity"),
    ("Shuffle drop: what a level carries", "Shuffle drop of the {} codes", "SSIM lost by the exchange", "shuffle_drop"))
CLOCKS = ((3 * 3600, 3600, "hours"), (3 * 60, 60, "minutes"), (0, 1, "seconds"))  # from, seconds in the unit, unit
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}  # a legend's place below its panel

# A row for each epoch, as csv.DictReader gives them: numbers or text, "" or None where there is no value.
Rows = Sequence[Mapping[str, object]]
# The name in the legend -> the points of its line.
Lines = dict[str, list[tuple[float, float]]]
# Title, unit on the y axis, lines.
Panel = tuple[str, str, Lines]


class Run(NamedTuple):
    """This is a run by its name in the legend, with the rows that it has logged so far."""

    name: str
    rows: Rows


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
    return _finished(figure, out, title)


def ssim_histogram(figures: Mapping[str, Mapping[str, torch.Tensor]], out: Path | str | None = None) -> Figure:
    """Draw how SSIM is spread over images, mean and minimum marked; write it to `out`, and return it.

    `figures` is what `metrics.image_figures` gives: area -> metric -> `[n]`; nan values are left out.
    """
    from matplotlib import ticker
    figure, (axis,) = panels(1)
    spread = {area: values["ssim"][~values["ssim"].isnan()].cpu().numpy() for area, values in figures.items()}
    spread = {area: values for area, values in spread.items() if len(values)}
    bins = np.histogram_bin_edges(np.concatenate([*spread.values(), []]), bins=40)
    for area, values in spread.items():
        axis.hist(values, bins=bins, color=COLOURS[area], alpha=0.5, label=f"{area}: {len(values)} images")
        axis.axvline(values.mean(), color=COLOURS[area], label=f"mean {values.mean():.4g}")
        axis.axvline(values.min(), color=COLOURS[area], linestyle=":", label=f"minimum {values.min():.4g}")
    axis.set(title="SSIM of the images", xlabel="SSIM (1 is equal)", ylabel="images (number)")
    axis.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if spread:
        axis.legend(**BELOW, fontsize="small")
    return _finished(figure, out, None)


def anatomy(read: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
            shares: Mapping[str, Mapping[str, np.ndarray]], out: Path | str | None = None) -> Figure:
    """Draw what was read from images over what they were told, and shares of tissue as boxes; write it and return it.

    Args:
        read: column -> set of images -> (told, read), `[n]` each; a panel for each column.
        shares: tissue -> set of images -> `[n]`; nan values are left out. All have the same sets.
    """
    figure, axes = panels(len(read) + 1)
    for axis, (column, sets) in zip(axes, read.items()):
        for number, (name, (told, found)) in reversed([*enumerate(sets.items())]):  # the first on top
            axis.plot(told, found, ".", color=RUN_COLOURS[number], alpha=0.3 if number else 0.9, label=name)
        ends = axis.get_xlim()
        axis.plot(ends, ends, color="black", linewidth=1, linestyle="--")
        axis.set(title=f"{plain(column)}: told and read", xlabel=f"told: {plain(column)}",
                 ylabel=f"read: {plain(column)}")
        axis.legend(fontsize="small")
    sets = list(next(iter(shares.values())))
    for number, (name, colour) in enumerate(zip(sets, RUN_COLOURS)):
        values = [found[name][~np.isnan(found[name])] for found in shares.values()]
        boxes = axes[-1].boxplot(values, positions=np.arange(len(shares)) + 0.25 * (number - 1), widths=0.2,
                                 patch_artist=True, manage_ticks=False, flierprops={"markersize": 2})
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.5)
        axes[-1].plot([], [], "s", color=colour, alpha=0.5, label=name)
    axes[-1].set(title="Shares of tissue", ylabel="share of the brain in a slice", xticks=range(len(shares)),
                 xticklabels=list(shares), ylim=(0, None))
    axes[-1].legend(fontsize="small")
    return _finished(figure, out, None)


def curves(rows: Rows, out: Path | str | None = None, *, title: str | None = None,
           references: Mapping[str, float] | None = None) -> Figure:
    """Draw a run's columns of log.csv over the epochs, a panel for each figure that has a value; write and return it.

    Args:
        title: stands above all panels.
        references: bits per code of other models, by name, drawn as horizontal lines beside a prior's NLL.
    """
    found = _worth_drawing(
        [(name, unit, {part: points(rows, f"{part}_{column}") for part in ("train", "validate")})
         for name, unit, column in MEASURED]
        + [(name, unit, {level: points(rows, f"{level}_{column}") for level in ("top", "bottom")})
           for name, _, unit, column in OF_LEVELS])
    figure, axes = panels(len(found))
    for axis, (name, unit, lines) in zip(axes, found):
        for label, line in lines.items():
            axis.plot(*zip(*line), color=COLOURS[label], label=label, marker="." if len(line) < FEW_POINTS else None)
        others = references if references and name == NLL else {}
        for number, (label, value) in enumerate(others.items()):
            axis.axhline(value, color="black", linewidth=1, linestyle=RUN_STYLES[1 + number % 3],
                         label=COUNTING.get(label, label))
        axis.set(title=name, xlabel="epoch", ylabel=unit)
        _set_scales(axis, name, lines, "epoch")
        axis.legend(**BELOW if others else {})
    return _finished(figure, out, plain(title) if title and found else None)


def compare_curves(runs: Sequence[Run], out: Path | str | None = None, *, x: str = "images_seen",
                   title: str | None = None) -> Figure:
    """Draw several runs' figures of the validation images, a panel for each, a line for each run; write and return it.

    Where no run has a figure of the validation images, that of the training images stands in.

    Args:
        runs: at most MOST_RUNS, whose names differ. VQ-VAEs and priors may be mixed: a run is in the panels whose
            figures it has.
        x: what the lines are drawn over: "images_seen", "epoch", or "seconds" (training time, without validation).
        title: stands above all panels.
    Raises: UserError if there is nothing to draw.
    """
    def lines_of(column: str) -> Lines:
        return {run.name: line for run in runs if (line := points(run.rows, column, x))}

    found = _worth_drawing(
        [(f"{name} (validation images)", unit, lines) if (lines := lines_of(f"validate_{column}")) else
         (f"{name} (training images)", unit, lines_of(f"train_{column}"))
         for name, unit, column in MEASURED if name != PREDICTION]
        + [(f"{name.format(level)} (validation images)".capitalize(), unit, lines_of(f"{level}_{column}"))
           for _, name, unit, column in OF_LEVELS for level in ("top", "bottom")])
    expect(bool(found), "RUN", "a log with a figure that can be drawn",
           f"none in {', '.join(run.name for run in runs)}", "Wait for the first epoch to end.")
    longest = max(place for _, _, lines in found for line in lines.values() for place, _ in line)
    seconds, clock = next((seconds, clock) for least, seconds, clock in CLOCKS if longest >= least)
    figure, axes = panels(len(found))
    x_label = {"images_seen": "training images seen (number)", "epoch": "epoch"}.get(x, f"training time ({clock})")
    for axis, (name, unit, lines) in zip(axes, found):
        for number, run in enumerate(runs):
            if line := lines.get(run.name):
                places, values = zip(*line)
                axis.plot([place / seconds for place in places] if x == "seconds" else places, values,
                          color=RUN_COLOURS[number % len(RUN_COLOURS)], linestyle=RUN_STYLES[number % len(RUN_STYLES)],
                          marker=RUN_MARKERS[number % len(RUN_MARKERS)] if len(line) < FEW_POINTS else None,
                          markersize=3, linewidth=1.4, label=plain(run.name))
        axis.set(title=name, ylabel=unit, xlabel=x_label)
        axis.title.set_fontsize("medium")
        _set_scales(axis, name, lines, x)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    names = [name for name in (plain(run.name) for run in runs) if name in handles]
    room = int(figure.get_figwidth() * 10) // (max(map(len, names)) + 10)
    figure.legend([handles[name] for name in names], names, loc="outside lower center", handlelength=4,
                  ncols=max(1, min(len(names), 5, room)))
    return _finished(figure, out, title and plain(title))


def points(rows: Rows, column: str, x: str = "epoch") -> list[tuple[float, float]]:
    """Return (place, value) of each row that has a value in `column`; "seconds" add up over all rows before it.

    A prior's loss has no points: it is its NLL in another unit, and would only be mistaken for it.
    """
    if column.endswith("_loss") and any(points(rows, f"{part}_bits_per_code", x) for part in ("train", "validate")):
        return []
    seconds = itertools.accumulate(float(row.get("seconds") or 0) for row in rows)
    places = seconds if x == "seconds" else [row.get(x) for row in rows]
    return [(float(place), float(row[column])) for place, row in zip(places, rows)
            if row.get(column) not in (None, "") and place not in (None, "")]


def as_picture(figure: Figure) -> Image.Image:
    """Return a chart as it would be written to a PNG file."""
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=DPI)
    return Image.open(made).convert("RGB")


def save_chart(figure: Figure, out: Path | str) -> Figure:
    """Write a chart, in the format of the name's ending, and return it; the folder is made."""
    files.write_atomically(Path(out), lambda temporary: figure.savefig(temporary, dpi=DPI))
    return figure


def plain(text: str) -> str:
    """Return a user's text as matplotlib shows it literally: two $ would be a formula, a leading _ hides a label."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of `number` panels, at most three in a row (four from ten on), and its axes.

    pyplot's global state is left alone.
    """
    from matplotlib.figure import Figure
    columns = min(3 if number <= 9 else 4, max(1, number))
    rows = max(1, math.ceil(number / columns))
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, panel + 1) for panel in range(number)]


def _finished(figure: Figure, out: Path | str | None, title: str | None) -> Figure:
    """Put a title above all panels, where there is one, and write the chart, where it has a place."""
    if title:
        figure.suptitle(title)
    return figure if out is None else save_chart(figure, out)


def _worth_drawing(found: list[Panel]) -> list[Panel]:
    """Leave out panels without a value, and those whose lines an earlier panel has; see REPEATS."""
    kept: dict[str, Panel] = {}
    for title, unit, lines in found:
        lines = {name: line for name, line in lines.items() if line}
        name, bracket, images = title.partition(" (")
        first, both = REPEATS.get(name, (None, None))
        if not lines or (name == PREDICTION and not any(value for line in lines.values() for _, value in line)):
            continue  # with one level there is nothing to predict
        others = kept[first][2] if first in kept else {}
        if lines.keys() == others.keys() and all(  # the same names, places and, but for rounding, values
                np.shape(line) == np.shape(others[name]) and np.allclose(line, others[name], rtol=1e-5, atol=0)
                for name, line in lines.items()):
            kept[first] = (f"{both}{bracket}{images}", unit, lines)
        else:
            kept[name] = (title, unit, lines)
    return list(kept.values())


def _set_scales(axis: Axes, title: str, lines: Lines, x: str) -> None:
    from matplotlib import ticker
    if x == "images_seen":
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=x != "seconds", min_n_ticks=1, nbins=6))
    values = [value for line in lines.values() for _, value in line]
    above_0 = [value for value in values if value > 0]  # before codebooks are placed a distance to them is 0
    if title.startswith(LOG_SCALED) and above_0 and min(values) >= 0 and 10 * min(above_0) < max(above_0):
        axis.set_yscale("log", nonpositive="mask")
