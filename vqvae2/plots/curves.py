"""Rows of log.csv -> charts of what changes as training goes: of one run, or of several runs on one plot.

Nothing here writes: `plots.curves` and `plots.compare_curves` do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vqvae2.plots.charts import COLOURS, panels, plain, save_chart
from vqvae2.settings.checks import expect

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito again, without yellow, which is hard to see on white."""
RUN_STYLES, RUN_MARKERS = ("-", "--", ":", "-."), "osD^v"
MOST_RUNS = len(RUN_COLOURS) * len(RUN_STYLES)
"""Two numbers without a common divisor: so many runs have a colour and a line style that no other has together."""
FEW_POINTS = 30
"""Lines with fewer points have markers."""
LOSS, ERROR, NLL = "Loss", "Mean squared error", "NLL of the codes"
RECONSTRUCTION, COMMITMENT, CODEBOOK = "Reconstruction", "Commitment", "Codebook"
PREDICTION = "Prediction: what the top misses"
REPEATS = ((RECONSTRUCTION, ERROR, "Reconstruction: mean squared error"),
           (COMMITMENT, CODEBOOK, "Commitment and codebook (equal values)"))
"""Panels that are often the same twice, and what the one that stays is then called: a reconstruction loss of squares
alone, and one distance whose gradient moves the vectors in one term and the embeddings in the other."""
LOG_SCALED = (LOSS, ERROR, RECONSTRUCTION, COMMITMENT, CODEBOOK, PREDICTION, *(title for _, _, title in REPEATS))
PART, DISTANCE = "part of the loss (no unit)", "mean squared distance (no unit)"
COUNTING = {"histogram": "counting: frequency", "position_histogram": "counting: place",
            "context": "counting: neighbours"}
"""What the models of metrics.context_model_bits are called in a legend."""
PANELS = (  # title, unit on the y axis, [(column of log.csv, name in the legend)]
    (LOSS, "loss (no unit, images 0…1)", [("train_loss", "train"), ("validate_loss", "validate")]),
    (RECONSTRUCTION, PART, [("train_reconstruction", "train"), ("validate_reconstruction", "validate")]),
    (ERROR, "MSE (images 0…1)", [("train_mse", "train"), ("validate_mse", "validate")]),
    (COMMITMENT, DISTANCE, [("train_commitment", "train"), ("validate_commitment", "validate")]),
    (CODEBOOK, DISTANCE, [("train_codebook", "train"), ("validate_codebook", "validate")]),
    (PREDICTION, DISTANCE, [("train_prediction", "train"), ("validate_prediction", "validate")]),
    (NLL, "NLL (bits per code)", [("train_bits_per_code", "train"), ("validate_bits_per_code", "validate")]),
    ("Structural similarity", "SSIM (1 is equal)", [("train_ssim", "train"), ("validate_ssim", "validate")]),
    ("Codes in use (validation images)", "codes used (number)", [("top_used", "top"), ("bottom_used", "bottom")]),
    ("Perplexity of the codes (validation images)", "perplexity (number of codes)",
     [("top_perplexity", "top"), ("bottom_perplexity", "bottom")]),
    ("Shuffle drop: what a level carries", "SSIM lost by the exchange", [("top_shuffle_drop", "top"),
                                                                         ("bottom_shuffle_drop", "bottom")]),
)
COMPARED = (  # title, unit on the y axis, columns of log.csv of which the first is taken that any run has
    (LOSS, "loss (no unit, images 0…1)", ("validate_loss", "train_loss")),
    (RECONSTRUCTION, PART, ("validate_reconstruction", "train_reconstruction")),
    (ERROR, "MSE (images 0…1)", ("validate_mse", "train_mse")),
    (COMMITMENT, DISTANCE, ("validate_commitment", "train_commitment")),
    (CODEBOOK, DISTANCE, ("validate_codebook", "train_codebook")),
    (NLL, "NLL (bits per code)", ("validate_bits_per_code", "train_bits_per_code")),
    ("Structural similarity", "SSIM (1 is equal)", ("validate_ssim", "train_ssim")),
    ("Top codes in use", "codes used (number)", ("top_used",)),
    ("Bottom codes in use", "codes used (number)", ("bottom_used",)),
    ("Perplexity of the top codes", "perplexity (number of codes)", ("top_perplexity",)),
    ("Perplexity of the bottom codes", "perplexity (number of codes)", ("bottom_perplexity",)),
    ("Shuffle drop of the top codes", "SSIM lost by the exchange", ("top_shuffle_drop",)),
    ("Shuffle drop of the bottom codes", "SSIM lost by the exchange", ("bottom_shuffle_drop",)),
)
X_LABELS = {"images_seen": "training images seen (number)", "epoch": "epoch"}
CLOCKS = ((3 * 3600, 3600, "hours"), (3 * 60, 60, "minutes"), (0, 1, "seconds"))
"""From so many seconds on, seconds in the unit, its name."""

Lines = Mapping[str, Sequence[tuple[float, float]]]
"""Name in the legend -> its points."""
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Run:
    """What a run has logged so far."""

    name: str
    """In the legend."""
    rows: Sequence[Mapping[str, object]]
    """One an epoch, as csv.DictReader gives them: numbers or text, "" or None where there is no value."""


def draw(rows: Sequence[Mapping[str, object]], title: str | None = None,
         references: Mapping[str, float] | None = None) -> Figure:
    """Draw one run's figures over its epochs: see `plots.curves`."""
    found = [(name, unit, [(points(rows, column), label) for column, label in lines if points(rows, column)])
             for name, unit, lines in PANELS]
    found = [panel for panel in found if panel[2]]
    # A prior's loss is its NLL in another unit, which would only ask to be mistaken for it.
    found = [panel for panel in found if panel[0] != LOSS or NLL not in [name for name, *_ in found]]
    values = {name: [value for line, _ in lines for _, value in line] for name, _, lines in found}
    found = [panel for panel in found if panel[0] != PREDICTION or any(values[PREDICTION])]  # 0 with one level
    found = _without_repeats(found, lambda lines: {label: line for line, label in lines})
    figure, axes = panels(len(found))
    for axis, (name, unit, lines) in zip(axes, found):
        for line, label in lines:
            axis.plot(*zip(*line), color=COLOURS[label], label=label, marker="." if len(line) < FEW_POINTS else None)
        others = references if references and name == NLL else {}
        for number, (label, value) in enumerate(others.items()):
            axis.axhline(value, color="black", linewidth=1, linestyle=RUN_STYLES[1 + number % 3],
                         label=COUNTING.get(label, label))
        axis.set(title=name, xlabel="epoch", ylabel=unit)
        _set_scales(axis, name, [value for line, _ in lines for _, value in line], "epoch")
        axis.legend(**{"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2} if others else {})
    if title and found:
        figure.suptitle(plain(title))
    return figure


def draw_comparison(runs: Sequence[Run], x: str = "images_seen", title: str | None = None) -> Figure:
    """Draw figures of several runs, a panel for each figure, a line for each run: see `plots.compare_curves`."""
    lines = {column: {run.name: found for run in runs if (found := points(run.rows, column, x))}
             for _, _, columns in COMPARED for column in columns}
    for run in runs:
        if points(run.rows, "validate_bits_per_code", x) or points(run.rows, "train_bits_per_code", x):
            for column in ("validate_loss", "train_loss"):  # the same in nats: see `draw`
                lines[column].pop(run.name, None)
    chosen = [(name, unit, next((column for column in columns if lines[column]), None))
              for name, unit, columns in COMPARED]
    chosen = _without_repeats([panel for panel in chosen if panel[2] is not None], lambda column: lines[column])
    expect(bool(chosen), "RUN", "a log with a figure that can be drawn", f"none in {_names(runs)}",
           "Wait for the first epoch to end.")
    longest = max(place for _, _, column in chosen for line in lines[column].values() for place, _ in line)
    seconds, clock = next((one, name) for least, one, name in CLOCKS if longest >= least)
    figure, axes = panels(len(chosen))
    for axis, (name, unit, column) in zip(axes, chosen):
        for number, run in enumerate(runs):
            if line := lines[column].get(run.name):
                places, values = zip(*line)
                axis.plot([place / seconds for place in places] if x == "seconds" else places, values,
                          color=RUN_COLOURS[number % len(RUN_COLOURS)], linestyle=RUN_STYLES[number % len(RUN_STYLES)],
                          marker=RUN_MARKERS[number % len(RUN_MARKERS)] if len(line) < FEW_POINTS else None,
                          markersize=3, linewidth=1.4, label=plain(run.name))
        whose = "training" if column.startswith("train_") else "validation"
        axis.set(title=f"{name} ({whose} images)", ylabel=unit, xlabel=X_LABELS.get(x, f"training time ({clock})"))
        axis.title.set_fontsize("medium")
        _set_scales(axis, name, [value for line in lines[column].values() for _, value in line], x)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    names = [name for name in (plain(run.name) for run in runs) if name in handles]
    widest = max(len(name) for name in names)
    figure.legend([handles[name] for name in names], names, loc="outside lower center", handlelength=4,
                  ncols=max(1, min(len(names), 5, int(figure.get_figwidth() * 10) // (widest + 10))))
    if title:
        figure.suptitle(plain(title))
    return figure


def points(rows: Sequence[Mapping[str, object]], column: str, x: str = "epoch") -> list[tuple[float, float]]:
    """Return (place, value) of each row that has a value in `column`; "seconds" add up over all rows before it."""
    found, seconds = [], 0.0
    for row in rows:
        seconds += float(row.get("seconds") or 0)
        place = seconds if x == "seconds" else row.get(x)
        if row.get(column) not in (None, "") and place not in (None, ""):
            found.append((float(place), float(row[column])))
    return found


def _without_repeats(found: list[tuple[str, str, Drawn]], lines_of: Callable[[Drawn], Lines],
                     ) -> list[tuple[str, str, Drawn]]:
    """Leave out a panel (title, unit, what is drawn) whose lines an earlier one has; see REPEATS."""
    by_title = {panel[0]: panel for panel in found}
    for first, second, title in REPEATS:
        if {first, second} <= set(by_title) and _same(*(lines_of(by_title[one][2]) for one in (first, second))):
            unit = by_title[second][1]
            found = [(title, unit, panel[2]) if panel[0] == first else panel for panel in found if panel[0] != second]
    return found


def _same(one: Lines, other: Lines) -> bool:
    """Whether lines have the same names, places and, but for rounding, values."""
    return one.keys() == other.keys() and all(
        len(line) == len(other[name]) and all(place == there and math.isclose(value, again, rel_tol=1e-5)
                                              for (place, value), (there, again) in zip(line, other[name]))
        for name, line in one.items())


def _set_scales(axis: Axes, name: str, values: Sequence[float], x: str) -> None:
    if x == "images_seen":
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(integer=x != "seconds", min_n_ticks=1, nbins=6))
    above_0 = [value for value in values if value > 0]  # before codebooks are placed a distance to them is 0
    if name in LOG_SCALED and above_0 and min(values) >= 0 and 10 * min(above_0) < max(above_0):
        axis.set_yscale("log", nonpositive="mask")


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.name for run in runs)


def curves(rows: Sequence[Mapping[str, object]], out: Path | str, *, title: str | None = None,
           references: Mapping[str, float] | None = None) -> Figure:
    """Draw the columns of log.csv over the epochs, a panel for each figure that has a value; write and return it.

    Args:
        rows: dicts as csv.DictReader gives them, numbers or text; empty values are left out. See PANELS.
        title: stands above all panels.
        references: bits per code of other models, by name, drawn as horizontal lines beside a prior's NLL.
    """
    return save_chart(draw(rows, title, references), out)


def compare_curves(runs: Sequence[Run], out: Path | str, *, x: str = "images_seen",
                   title: str | None = None) -> Figure:
    """Draw several runs' figures of the validation images, a panel for each, a line for each run; write and return it.

    Where no run has a figure of the validation images, that of the training images stands in.

    Args:
        runs: as `read_runs` finds them, at most MOST_RUNS; names differ. VQ-VAEs and priors may
            be mixed: a run is in the panels whose figures it has.
        x: what the lines are drawn over: "images_seen", "epoch", or "seconds" (training time, without validation).
        title: stands above all panels.
    Raises: UserError if there is nothing to draw.
    """
    return save_chart(draw_comparison(runs, x, title), out)
