"""A trial's log -> its score; the scores of a study's trials -> a table, a picture, and the best as a preset.

What is maximised is one number, made here: the SSIM of the validation images, less what is missing in the use of the
codes. SSIM alone would choose models whose top level says nothing, and used codes alone prove nothing (a level may use
all of its codes and none of them matter), so each level is asked for three figures (FLOORS): the share of its codes
that are in use, their perplexity as a share of the codebook, and the SSIM that is lost when its maps are exchanged
between images. A figure at its floor or above costs nothing, one at 0 costs PENALTY, in between in proportion:

    score = SSIM - PENALTY x sum over levels and figures of max(0, 1 - figure / floor)

The floors lie where no healthy training of this project came near, and every collapsed one was far below. A level in
which train_pixel_cnn.py would refuse to learn the codes costs UNFIT more, so that such a trial is behind all others.
Epochs before the codes are in use have no score: an image without codes looks best of all.
"""

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from vqvae2.common import files
from vqvae2.metrics import coding
from vqvae2.models.code_maps import LEVELS
from vqvae2.models.encoding import SMALLEST_SHARE, SMALLEST_USE
from vqvae2.plots import charts
from vqvae2.plots.charts import panels, plain
from vqvae2.runs.settings import NOT_PART_OF_A_RUN
from vqvae2.settings import presets
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.tuning_settings import Choices, Range, Space, TuneSettings, space_of

FLOORS = {"used_share": 0.5, "perplexity_share": 0.05, "shuffle_drop": 0.05}
PENALTY, UNFIT = 0.1, 1.0
FIGURES = ("used", "perplexity", "shuffle_drop")
NOT_IN_A_PRESET = (NOT_PART_OF_A_RUN - {"epochs", "batch", "accumulate", "global_batch"}) | {"savename", "compile"}
ALWAYS_IN_A_PRESET = {"dataset", "epochs", "batch", "codebook_size", "embedding_dim", "learning_rate"}
STATES = {"complete": ("o", "#0072B2", "trained to the end"), "pruned": ("x", "#E69F00", "pruned")}
"""Marker and colour (Okabe and Ito), and what the legend says."""


@dataclass(frozen=True)
class TrialResult:
    """What is known of one trial."""

    number: int
    """From 0."""
    state: str
    """complete, pruned, failed, or unfinished."""
    values: dict[str, float | int]
    """What was searched: setting -> value."""
    score: float | None = None
    """Of its best epoch (complete) or of its last (pruned); None where no epoch had one."""
    epochs: int = 0
    """That were trained."""
    figures: dict[str, float] = field(default_factory=dict)
    """ssim, {top,bottom}_{used,perplexity,shuffle_drop} of the epoch that has the score."""
    reason: str = ""
    """Why it failed."""


def score(figures: Mapping[str, float], codebook_size: int) -> float:
    """Return what a study maximises: see above. 1 is a perfect picture from codes that are all of use.

    Args:
        figures: as in TrialResult. One level or two: those that have figures count.
    One level, 512 codes, SSIM 0.9, 128 used (half of its floor of 256), perplexity 64, shuffle drop 0.04 (4/5 of its
    floor): 0.9 - 0.1 (1/2 + 0 + 1/5) = 0.83.
    """
    missing = 0.0
    for level in LEVELS:
        if f"{level}_used" in figures:
            used, perplexity, drop = (figures[f"{level}_{name}"] for name in FIGURES)
            shares = {"used_share": used / codebook_size, "perplexity_share": perplexity / codebook_size,
                      "shuffle_drop": drop}
            missing += PENALTY * sum(min(1.0, max(0.0, 1 - shares[name] / floor)) for name, floor in FLOORS.items())
            missing += UNFIT * (used < fewest_codes(codebook_size))
    return figures["ssim"] - missing


def fewest_codes(codebook_size: int) -> int:
    """Return how many codes of a level must be in use for a prior to learn them (`codes.check_codebook_use`)."""
    return max(min(SMALLEST_USE, codebook_size), math.ceil(SMALLEST_SHARE * codebook_size))


def is_fit(figures: Mapping[str, float], codebook_size: int) -> bool:
    """Return whether a prior could learn the codes of every level."""
    return all(figures[f"{level}_used"] >= fewest_codes(codebook_size) for level in LEVELS
               if f"{level}_used" in figures)


def figures_of(row: Mapping[str, object]) -> dict[str, float] | None:
    """Return what `score` needs of an epoch's row of log.csv, numbers or text; None if no code was in use yet."""
    if row.get("top_used") in (None, ""):
        return None
    found = {"ssim": row["validate_ssim"], **{f"{level}_{name}": row.get(f"{level}_{name}") for level in LEVELS
                                              for name in FIGURES}}
    return {name: float(value) for name, value in found.items() if value not in (None, "")}


def best_row(rows: Sequence[Mapping[str, object]]) -> Mapping[str, object] | None:
    """Return the epoch whose weights a run keeps: the lowest error of the reconstruction; None if none is fit."""
    scored = [row for row in rows if figures_of(row) is not None]
    return min(scored, key=lambda row: float(row["validate_reconstruction"]), default=None)


def raw_bits_per_pixel(codebook_size: int, settings: TrainVqvae, height: int, width: int) -> float:
    """Return what the codes of an image cost without a prior (design: at most 0.75)."""
    bottom = (height // settings.downsample[0], width // settings.downsample[0])
    factor = settings.downsample[1] if settings.levels == 2 else 1
    shapes = [(bottom[0] // factor, bottom[1] // factor), bottom][: settings.levels]
    return coding.raw_bits_per_pixel([codebook_size] * settings.levels, shapes, height * width)


def allowed_space(settings: TuneSettings, height: int, width: int) -> Space:
    """Return what is searched, without codebooks that would cost more than --bits-per-pixel.

    Raises: UserError if no codebook is left, or the one that all trials would have costs more.
    """
    space = space_of(settings)
    searched = space.get("codebook_size", Choices((settings.codebook_size,)))
    bits = {size: raw_bits_per_pixel(size, settings, height, width) for size in searched.values}
    kept = tuple(size for size in searched.values if bits[size] <= settings.bits_per_pixel)
    least = min(bits, key=bits.get)
    grid = " ".join(map(str, settings.downsample))
    expect(bool(kept), f"--bits-per-pixel {settings.bits_per_pixel:g}",
           f"at least one codebook within it at {height} x {width} pixels and --downsample {grid}",
           f"{bits[least]:.3f} for the smallest, {least} codes", "Search smaller codebooks or a coarser grid, or "
           "give more --bits-per-pixel.")
    return space | ({"codebook_size": Choices(kept)} if "codebook_size" in space else {})


def trial_settings(settings: TuneSettings, number: int, values: Mapping[str, float | int], folder: Path,
                   threads: int) -> TrainVqvae:
    """Return the settings of a trial's training: a run like any other, in <folder>/<dataset>/trial-NNN."""
    own = {one.name: getattr(settings, one.name) for one in dataclasses.fields(TrainVqvae)}
    return TrainVqvae(**{**own, **values, "preset": None, "savename": f"trial-{number:03d}", "results": folder,
                            "resume": "auto", "threads": threads, "pictures_every": 1})


def best_of(results: Sequence[TrialResult], codebook_size: int) -> TrialResult | None:
    """Return the trial with the highest score among those that were trained to the end and whose codes are fit for a
    prior; the first of equals; None where there is none.

    Args:
        codebook_size: of trials for which it was not searched.
    """
    fit = [one for one in results if one.state == "complete" and one.score is not None
           and is_fit(one.figures, int(one.values.get("codebook_size", codebook_size)))]
    return max(fit, key=lambda one: one.score, default=None)


def table(results: Sequence[TrialResult]) -> list[dict]:
    """Return a row for each trial, for trials.csv."""
    return [{"trial": one.number, "state": one.state, "score": "" if one.score is None else one.score,
             "epochs": one.epochs, **one.values, **one.figures, "reason": one.reason}
            for one in sorted(results, key=lambda one: one.number)]


def in_words(one: TrialResult, codebook_size: int) -> str:
    """Return a trial's figures in one line."""
    size = int(one.values.get("codebook_size", codebook_size))
    levels = [f"{level} {one.figures[f'{level}_used']:.0f} of {size} codes used, perplexity "
              f"{one.figures[f'{level}_perplexity']:.0f}, shuffle drop {one.figures[f'{level}_shuffle_drop']:.3f}"
              for level in LEVELS if f"{level}_used" in one.figures]
    ssim = [f"SSIM {one.figures['ssim']:.4f}"] if "ssim" in one.figures else []
    return "; ".join([*ssim, *levels])


def preset_text(best: TrialResult, results: Sequence[TrialResult], settings: TuneSettings, space: Space,
                data: Mapping[str, object]) -> str:
    """Return the best trial as a preset for train_vqvae.py; equal work gives equal text.

    Args:
        data: `Images.describe()`: where from and how many.
    """
    trained = trial_settings(settings, best.number, best.values, Path(), 1)
    given, default = as_dict(trained), {one.name: one.default for one in dataclasses.fields(TrainVqvae)}
    default = {name: list(value) if isinstance(value, tuple) else value for name, value in default.items()}
    default["downsample"] = [4, 2][: trained.levels]
    kept = {name: value for name, value in given.items() if name not in NOT_IN_A_PRESET and value is not None
            and (name in ALWAYS_IN_A_PRESET or name in best.values or value != default[name])}
    counts = {state: sum(one.state == state for one in results) for state in ("complete", "pruned", "failed")}
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    images, (_, height, width) = data["data"]["images"], data["image_shape"]
    paragraphs = (
        f"Found by vqvae2 tune: trial {best.number} of the study {settings.savename}, best of {len(results)} ({told}).",
        f"Data: {settings.dataset}, {images['train']} training and {images['validate']} validation images of "
        f"{height} x {width} pixels, hash {data['data_hash'][:12]}.",
        f"Score on the validation images after {trained.epochs} epochs, with at most {settings.bits_per_pixel:g} raw "
        f"bits per pixel: {best.score:.4f}. {in_words(best, settings.codebook_size)}.",
        f"Searched: {', '.join(f'{name}={one}' for name, one in space.items())}.", "",
        "    python train_vqvae.py --preset best.toml --savename NAME", "",
        "More --epochs make it better. The score is that of the best of several, on the images by which it was chosen: "
        "evaluate.py on the test split says what the settings are worth.")
    comments = "\n".join(line for one in paragraphs for line in textwrap.wrap(one, 110) or [""])
    about = f"trial {best.number} of the study {settings.savename}: validation SSIM {best.figures['ssim']:.4f}"
    return presets.text(about, comments, {"vqvae": kept})


def write_results(folder: Path, results: Sequence[TrialResult], settings: TuneSettings, space: Space,
                  data: Mapping[str, object]) -> TrialResult | None:
    """Write trials.csv, trials.png and, where a trial is fit for it, best.toml; return the best trial."""
    best = best_of(results, settings.codebook_size)
    files.write_rows(folder / "trials.csv", table(results))
    if best is not None:
        files.write_text(folder / "best.toml", preset_text(best, results, settings, space, data))
    if any(one.score is not None for one in results):
        draw(results, space, best, folder / "trials.png", settings.savename)
    return best


def draw(results: Sequence[TrialResult], space: Space, best: TrialResult | None, out: Path, name: str) -> Figure:
    """Draw the score of each trial in its turn, and over each setting that was searched, on all of its range.

    Trials without a score are left out. Those that are far below the others stand at the lower edge, as triangles.
    """
    scored = sorted((one for one in results if one.score is not None), key=lambda one: one.number)
    figure, axes = panels(1 + len(space))
    _scatter(axes[0], scored, [one.number for one in scored], best)
    complete = [one for one in scored if one.state == "complete"]
    if complete:
        lowest = lowest_drawn(scored)
        tops = [max(lowest, *(one.score for one in complete[: i + 1])) for i in range(len(complete))]
        axes[0].step([one.number for one in complete], tops, where="post", color="#999999", linewidth=1,
                     label="highest so far", zorder=1)
    axes[0].set(title="trials in their order", ylabel="score (1 is best)")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    for axis, (setting, one) in zip(axes[1:], space.items()):
        places = [trial.values[setting] for trial in scored]
        if setting == "decay":  # what counts is how far it is from 1
            setting, places, one = "1 - decay", [1 - place for place in places], Range(1 - one.high, 1 - one.low)
        _scatter(axis, scored, places, best)
        axis.set(title=setting, ylabel="score (1 is best)")
        _set_scale(axis, one)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    figure.suptitle(plain(f"Study {name}: validation SSIM, less what is missing in the use of codes"))
    return charts.save_chart(figure, out)


def lowest_drawn(scored: Sequence[TrialResult]) -> float:
    """Return the score below which trials stand at the edge: three times as far from the highest as the median is."""
    scores = [one.score for one in scored]
    return max(min(scores), max(scores) - 3 * max(max(scores) - statistics.median(scores), 0.01))


def _scatter(axis: Axes, scored: Sequence[TrialResult], places: Sequence[float], best: TrialResult | None) -> None:
    lowest = lowest_drawn(scored)
    for place, one in zip(places, scored):
        marker, colour, label = STATES["pruned" if one.state == "pruned" else "complete"]
        if one is best:
            axis.scatter([place], [one.score], marker="*", s=150, color="#D55E00", label="best", zorder=3)
        elif one.score < lowest:
            axis.scatter([place], [lowest], marker="v", s=28, color=colour, label=f"{label}, lower than drawn")
        else:
            axis.scatter([place], [one.score], marker=marker, s=28, color=colour, label=label, zorder=2)


def _set_scale(axis: Axes, one: Range | Choices) -> None:
    low, high = (one.values[0], one.values[-1]) if isinstance(one, Choices) else (one.low, one.high)
    if low > 0:
        axis.set_xscale("log")
        axis.set_xlim(low / (margin := (high / low)**0.05 if high > low else 1.1), high * margin)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axis.set_xlim(low - (margin := 0.05 * (high - low)), high + margin)
    if isinstance(one, Choices):
        axis.set_xticks(one.values, [str(value) for value in one.values])
        axis.minorticks_off()
