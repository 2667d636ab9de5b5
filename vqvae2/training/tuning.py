"""A trial's log -> its score; the scores of a study's trials -> a table, a chart, and the best settings as a preset.

One number is maximised: the SSIM of the validation images, less what is missing in the use of the codes. SSIM alone
would choose models whose top level says nothing, and used codes alone prove nothing, because a level may use all of its
codes although none of them matters. So each level is asked for three figures: the share of its codes that are in use,
their perplexity as a share of the codebook, and the SSIM that is lost when its code maps are exchanged between images.
A figure at its floor or above costs nothing, a figure of 0 costs PENALTY, and in between the cost is in proportion:

    score = SSIM - PENALTY x sum over levels and figures of max(0, 1 - figure / floor)

The floors lie below all healthy trainings of this project and far above all collapsed ones. A level whose codes no
prior can learn costs UNFIT more, so that such a trial is behind all others. Epochs before the codes are in use have no
score, because an image that was never quantised looks best of all.

A trial that has ended is known by its row of trials.csv: `trial`, `state` (complete, pruned or failed), `score`,
`epochs`, what was searched, the figures of the epoch that has the score, and the `reason` of a failure. The score of a
complete trial is that of its best epoch, of a pruned one that of its last; it is "" where no epoch has one.
"""

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vqvae2.common import files
from vqvae2.metrics import coding
from vqvae2.models.code_maps import LEVELS
from vqvae2.models.encoding import SMALLEST_SHARE, SMALLEST_USE
from vqvae2.plots.charts import panels, plain, save_chart
from vqvae2.settings import presets
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.tuning_settings import MAY_DIFFER, Choices, Space, TuneSettings, space_of

USED_FLOOR, PERPLEXITY_FLOOR, DROP_FLOOR = 0.5, 0.05, 0.05
PENALTY, UNFIT = 0.1, 1.0
FIGURES = ("used", "perplexity", "shuffle_drop")
NEVER_IN_A_PRESET = MAY_DIFFER | {"savename", "compile"}
COLOURS = {"complete": "#0072B2", "pruned": "#E69F00", "failed": "#E69F00", "best": "#D55E00"}
"""The colour of each kind of trial in the chart (Okabe and Ito)."""
Row = Mapping[str, object]


def score(figures: Row, codebook_size: int) -> float:
    """Return what a study maximises: see above. 1 is a perfect image from codes that are all of use.

    Args:
        figures: ssim and {top,bottom}_{used,perplexity,shuffle_drop}; a level without figures does not count.
    One level, 512 codes, SSIM 0.9, 128 used (half of its floor of 256), perplexity 64, shuffle drop 0.04 (4/5 of its
    floor): 0.9 - 0.1 (1/2 + 0 + 1/5) = 0.83.
    """
    missing = 0.0
    for used, perplexity, drop in _figures_by_level(figures).values():
        reached = (used / codebook_size / USED_FLOOR, perplexity / codebook_size / PERPLEXITY_FLOOR, drop / DROP_FLOOR)
        missing += PENALTY * sum(1 - min(1.0, max(0.0, share)) for share in reached)
        missing += UNFIT * (used < fewest_codes(codebook_size))
    return figures["ssim"] - missing


def _figures_by_level(figures: Row) -> dict[str, list[float]]:
    """Return the FIGURES of each level that has some."""
    return {level: [figures[f"{level}_{name}"] for name in FIGURES] for level in LEVELS if f"{level}_used" in figures}


def fewest_codes(codebook_size: int) -> int:
    """Return how many codes of a level must be in use for a prior to learn them (`encoding.check_codebook_use`)."""
    return max(min(SMALLEST_USE, codebook_size), math.ceil(SMALLEST_SHARE * codebook_size))


def is_fit(figures: Row, codebook_size: int) -> bool:
    """Return whether a prior can learn the codes of every level."""
    return all(used >= fewest_codes(codebook_size) for used, *_ in _figures_by_level(figures).values())


def figures_of(row: Row) -> dict[str, float] | None:
    """Return what `score` needs of an epoch's row of log.csv, numbers or text; None if no code was in use yet."""
    if row.get("top_used") in (None, ""):
        return None
    found = {"ssim": row["validate_ssim"],
             **{name: row.get(name) for name in (f"{level}_{figure}" for level in LEVELS for figure in FIGURES)}}
    return {name: float(value) for name, value in found.items() if value not in (None, "")}


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the epoch whose weights a run keeps: the lowest error of the reconstruction; None if none has a score."""
    scored = [row for row in rows if figures_of(row) is not None]
    return min(scored, key=lambda row: float(row["validate_reconstruction"]), default=None)


def result(number: int, state: str, values: Row, log: Sequence[Row], codebook_size: int, reason: str = "") -> dict:
    """Return the row of a trial that has ended; a complete trial without any score has failed.

    Args:
        values: what was searched.
        log: rows of the trial's log.csv.
    """
    epoch = best_row(log) if state == "complete" else next((row for row in reversed(log) if figures_of(row)), None)
    if state == "complete" and epoch is None:
        state, reason = "failed", "no epoch had its codes in use: give more --epochs or fewer --start-steps"
    figures = figures_of(epoch) if epoch else {}
    return {"trial": number, "state": state, "score": score(figures, codebook_size) if figures else "",
            "epochs": len(log), **values, **figures, "reason": reason}


def allowed_space(settings: TuneSettings, height: int, width: int) -> Space:
    """Return what is searched, without codebooks that would cost more than --bits-per-pixel.

    Raises: UserError if no codebook is left, or the one that all trials would have costs more.
    """
    space = space_of(settings)
    searched = space.get("codebook_size", Choices([settings.codebook_size]))
    factors = [math.prod(settings.downsample[:level + 1]) for level in range(settings.levels)]
    shapes = [(height // factor, width // factor) for factor in factors]
    bits = {size: coding.raw_bits_per_pixel([size] * len(shapes), shapes, height * width) for size in searched}
    kept = Choices(size for size in searched if bits[size] <= settings.bits_per_pixel)
    expect(len(kept) > 0, f"--bits-per-pixel {settings.bits_per_pixel:g}", "at least one codebook within it at "
           f"{height} x {width} pixels and --downsample {' '.join(map(str, settings.downsample))}",
           f"{bits[searched[0]]:.3f} for the smallest, {searched[0]} codes",
           "Search smaller codebooks or a coarser grid, or give more --bits-per-pixel.")
    return {name: kept if name == "codebook_size" else values for name, values in space.items()}


def trial_settings(settings: TuneSettings, number: int, values: Row, threads: int | None = None) -> TrainVqvae:
    """Return the settings of a trial's training: a run like any other, in <folder>/<dataset>/trial-NNN."""
    common = {field.name: getattr(settings, field.name) for field in dataclasses.fields(TrainVqvae)}
    return TrainVqvae(**common | dict(values) | {"preset": None, "savename": f"trial-{number:03d}", "resume": "auto",
                                                 "results": settings.folder, "threads": threads})


def best_of(rows: Sequence[Row], codebook_size: int) -> Row | None:
    """Return the trial with the highest score among those that were trained to the end and whose codes are fit for a
    prior; the first of equals; None where there is none.

    Args:
        codebook_size: that of the trials if it was not searched.
    """
    fit = [row for row in rows if row["state"] == "complete" and is_fit(row, row.get("codebook_size", codebook_size))]
    return max(fit, key=lambda row: row["score"], default=None)


def in_words(row: Row, settings: TuneSettings) -> str:
    """Return a trial's score and figures in one line, which is empty where it has none."""
    levels = [f"{level} {used:.0f} of {row.get('codebook_size', settings.codebook_size)} codes used, perplexity "
              f"{perplexity:.0f}, shuffle drop {drop:.3f}"
              for level, (used, perplexity, drop) in _figures_by_level(row).items()]
    return "; ".join([f"score {row['score']:.4f}", f"SSIM {row['ssim']:.4f}", *levels]) if levels else ""


def preset_text(best: Row, rows: Sequence[Row], settings: TuneSettings, space: Space, data: Row) -> str:
    """Return the best trial as a preset for `vqvae2 train-vqvae`; equal work gives equal text.

    Args:
        data: `Images.describe()`.
    """
    trained = as_dict(trial_settings(settings, 0, {name: best[name] for name in space}))
    kept = {name: value for name, value in trained.items() if name not in NEVER_IN_A_PRESET and value is not None}
    states = [row["state"] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)
    images, (_, height, width) = data["data"]["images"], data["image_shape"]
    paragraphs = (
        f"Found by vqvae2 tune: trial {best['trial']} of the study {settings.savename}, best of {len(rows)} "
        f"({counts}).",
        f"Data: {settings.dataset}, {images['train']} training and {images['validate']} validation images of "
        f"{height} x {width} pixels, hash {data['data_hash'][:12]}.",
        f"On the validation images after {settings.epochs} epochs, with at most {settings.bits_per_pixel:g} raw bits "
        f"per pixel: {in_words(best, settings)}.",
        f"Searched: {', '.join(f'{name}={values}' for name, values in space.items())}.", "",
        "    python train_vqvae.py --preset best.toml --savename NAME", "",
        "More --epochs make it better. The score is that of the best of several, on the images by which it was chosen: "
        "evaluate.py on the test split says what the settings are worth.")
    comments = "\n".join(line for paragraph in paragraphs for line in textwrap.wrap(paragraph, 110) or [""])
    about = f"trial {best['trial']} of the study {settings.savename}: validation SSIM {best['ssim']:.4f}"
    return presets.text(about, comments, {"vqvae": kept})


def write_results(rows: Sequence[Row], settings: TuneSettings, space: Space, data: Row) -> Row | None:
    """Write trials.csv, trials.png and, where a trial is fit for it, best.toml; return the best trial."""
    best = best_of(rows, settings.codebook_size)
    files.write_rows(settings.folder / "trials.csv", list(rows))
    if best is not None:
        files.write_text(settings.folder / "best.toml", preset_text(best, rows, settings, space, data))
    if any(row["score"] != "" for row in rows):
        draw(rows, space, best, settings.folder / "trials.png", settings.savename)
    return best


def draw(rows: Sequence[Row], space: Space, best: Row | None, out: Path, name: str) -> Figure:
    """Draw the score of each trial in its turn, and over each setting that was searched, on all of its range.

    Trials without a score are left out. Scores far below the others lie below the chart: its lower edge is at most
    three times as far from the highest score as the median is.
    """
    scored = [row for row in rows if row["score"] != ""]
    scores = [row["score"] for row in scored]
    lowest = max(min(scores), max(scores) - 3 * max(max(scores) - statistics.median(scores), 0.01))
    figure, axes = panels(1 + len(space))
    for axis, column in zip(axes, ["trial", *space]):
        axis.scatter([row[column] for row in scored], scores, s=28,
                     c=[COLOURS["best" if row is best else row["state"]] for row in scored])
        axis.set(title=column, ylabel="score (1 is best)", ylim=(lowest - 0.01, max(scores) + 0.01))
        low, *_, high = space.get(column, (0, len(rows)))
        if low > 0 and column != "decay":
            axis.set(xscale="log", xlim=(low / 1.2, high * 1.2))
        else:
            axis.set_xlim(low - (high - low) / 20, high + (high - low) / 20)
    figure.suptitle(plain(f"Study {name}: validation SSIM, less what is missing in the use of codes\n"
                          "(red: best, blue: trained to the end, amber: pruned)"))
    return save_chart(figure, out)
