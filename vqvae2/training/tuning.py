"""Images and a space of settings -> trials on this machine, their scores, a chart, and the best settings as a preset.

`vqvae2 tune` asks Optuna for the next trial and starts a process that trains it. That process opens the same study: it
reports the score of each epoch, is told whether to prune, and records how the trial ended. So nothing but Optuna's
database, in SQLite, goes from process to process.

What is tried is drawn by TPE (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4) of all
settings together, after ten trials at random. Trials that are still being trained count as bad ("constant liar"), so
that workers do not all try the same. The first trial is what the user has now. A trial's draw depends on (seed, its
number, the trials before it) alone: with one worker a study that was stopped and went on is the study that never was.

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

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import multiprocessing
import os
import sqlite3
import statistics
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from matplotlib.figure import Figure

from vqvae2.common import files, machine, output, random_numbers
from vqvae2.common.errors import EXIT_STOPPED, Stopped, UserError, expect
from vqvae2.common.progress import Bar
from vqvae2.metrics import coding
from vqvae2.models import encoding
from vqvae2.models.code_maps import LEVELS
from vqvae2.plots.charts import panels, plain, save_chart
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.runs.settings import NOT_PART_OF_A_RUN
from vqvae2.settings import presets
from vqvae2.settings.parsing import as_dict, changes
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer

try:
    import optuna
    from sqlalchemy.exc import DatabaseError
except ImportError:
    optuna = None

CHOSEN = {"codebook_size", "embedding_dim"}
"""Settings whose values are chosen among some whole numbers; the others are drawn from a range of numbers."""
SPACE = {"learning_rate": (1e-4, 3e-3), "codebook_size": (128, 256, 512, 1024), "embedding_dim": (16, 32, 64, 128),
         "commitment": (0.05, 1.0), "decay": (0.9, 0.999), "ssim_weight": (0.003, 0.3), "gradient_weight": (0.0, 0.1),
         "prediction": (0.05, 1.0)}
"""The settings that can be searched, and by default where: whole numbers in ascending order, or the ends of a range.
Logarithms are drawn evenly where a range begins above 0. A weight that is 0 without --search begins at 0."""
LIMITS = {"codebook_size": (2, 32767), "embedding_dim": (2, 4096), "decay": (0.0, 1 - 1e-6), "learning_rate": (1e-9, 1)}
"""The smallest and the largest value that --search takes; the other settings are weights, from 0 to 1000."""
MAY_DIFFER = NOT_PART_OF_A_RUN - {"epochs", "batch", "accumulate", "global_batch"}
"""Settings of a training that do not change its result: trials with other epochs or batches could not be compared."""
FLOORS = {"used": 0.5, "perplexity": 0.05, "shuffle_drop": 0.05}
PENALTY, UNFIT = 0.1, 1.0
COLOURS = {"complete": "#0072B2", "pruned": "#E69F00", "failed": "#E69F00", "best": "#D55E00"}
"""The colour of each kind of trial in the chart (Okabe and Ito)."""
DATABASE, OUTPUT = "study.db", "output.txt"
START_METHOD = "spawn"
"""How a trial's process is started: anew, because a copy of a process that has used CUDA cannot use it."""
AT_RANDOM = 10
"""Trials before TPE has enough to go by; Optuna's own default."""
Row = Mapping[str, object]
Space = dict[str, tuple]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainVqvae):
    """Settings of `vqvae2 tune`: how to search, and all settings of a training, which the trials have in common."""

    savename: Annotated[str, tyro.conf.arg(name="study", aliases=["--savename"])]
    """Name of the study, whose files go to <results>/tune/<savename>/."""
    out: Path | None = None
    """Another folder for the study's files."""
    trials: int = 40
    """Total number of trials. A study with fewer trials, or a stopped study, goes on until it has this number."""
    workers: int = 1
    """Trials trained at the same time, each in its own process; several GPUs are used in turn."""
    search: tuple[str, ...] = ()
    """The settings that are searched: names, or NAME=LOW..HIGH, or NAME=A,B,C for whole numbers. Default: all settings
    that the manual names and the model has. Other settings come from flags, preset or defaults."""
    bits_per_pixel: float = 0.75
    """Largest number of raw bits per pixel (log2 of the codebook's size for each code): more codes always raise
    SSIM."""
    pruner: Literal["median", "none"] = "median"
    """median: end a trial whose best score so far is below the median of the others' scores at the same epoch."""
    unpruned: int = 5
    """Number of trials that are trained to their end before any trial is pruned."""
    pictures_every: int = 1000
    """Epochs between a trial's pictures; the last epoch has them too; 0 for none."""

    RULES = (
        ("trials workers unpruned", lambda value: value >= 1, "at least 1", "See --help for defaults."),
        ("bits_per_pixel", lambda bits: bits > 0, "a positive number", "The default is 0.75."))

    def __post_init__(self) -> None:
        super().__post_init__()
        space_of(self)

    @property
    def folder(self) -> Path:
        """Return the folder of the study's files."""
        return self.out or self.results / "tune" / self.savename


# What is searched ---------------------------------------------------------------------------------------

def space_of(settings: TuneSettings) -> Space:
    """Return what is searched, by the setting's name, in the order of SPACE.

    Raises: UserError for a name that cannot be searched or is given twice, and for a wrong range or choice.
    """
    lacking = {"decay": settings.quantizer == "gradient" and "--quantizer gradient",
               **dict.fromkeys(("codebook_size", "commitment"), settings.quantizer == "fsq" and "--quantizer fsq"),
               "prediction": settings.levels == 1 and "--levels 1"}
    asked: Space = {}
    for words in settings.search or [name for name in SPACE if not lacking.get(name)]:
        name, _, given = words.partition("=")
        name = name.replace("-", "_")
        expect(name in SPACE, "--search", f"some of {', '.join(SPACE)}", name, "Give the others as flags.")
        expect(name not in asked, "--search", "each setting once", f"{name} twice", "Drop one.")
        expect(not lacking.get(name), f"--search {name}", "a setting that this model has",
               f"{lacking.get(name)}, which has no {name}", "Drop one of them.")
        asked[name] = _parsed(name, given) if given else SPACE[name]
    return {name: asked[name] for name in SPACE if name in asked}


def _parsed(name: str, given: str) -> tuple:
    """Return the range or the choices that the words after NAME= stand for."""
    least, most = LIMITS.get(name, (0.0, 1000.0))
    number, separator, rule = (
        (int, ",", f"whole numbers from {least} to {most} with commas between") if name in CHOSEN else
        (float, "..", f"LOW..HIGH, numbers from {least:g} to {most:g}"))
    with contextlib.suppress(ValueError):
        values = tuple(number(word) for word in given.split(separator))
        is_range = len(values) == 2 and values[0] < values[1]
        if all(least <= value <= most for value in values) and (is_range or name in CHOSEN):
            return tuple(sorted(set(values)))
    raise UserError(f"--search {name}: expected {rule}, found {given}. For example {in_words(name, SPACE[name])}.")


def in_words(name: str, values: tuple) -> str:
    """Return what is searched of a setting as --search takes it, such as `decay=0.9..0.999`."""
    return f"{name}={','.join(map(str, values)) if name in CHOSEN else '{:g}..{:g}'.format(*values)}"


def nearest(name: str, values: tuple, value: float) -> float:
    """Return the end of a range that is nearer, `value` itself inside; of choices that with the ratio nearest to 1."""
    if name in CHOSEN:
        return min(values, key=lambda choice: abs(math.log(choice / value)))
    return min(max(value, values[0]), values[1])


def allowed_space(settings: TuneSettings, height: int, width: int) -> Space:
    """Return what is searched, without codebooks that would cost more than --bits-per-pixel.

    Raises: UserError if no codebook is left, or the one that all trials would have costs more.
    """
    space = space_of(settings)
    searched = space.get("codebook_size", (settings.codebook_size,))
    factors = [math.prod(settings.downsample[:level + 1]) for level in range(settings.levels)]
    shapes = [(height // factor, width // factor) for factor in factors]
    bits = {size: coding.raw_bits_per_pixel([size] * len(shapes), shapes, height * width) for size in searched}
    kept = tuple(size for size in searched if bits[size] <= settings.bits_per_pixel)
    expect(len(kept) > 0, f"--bits-per-pixel {settings.bits_per_pixel:g}", "at least one codebook within it at "
           f"{height} x {width} pixels and --downsample {' '.join(map(str, settings.downsample))}",
           f"{bits[searched[0]]:.3f} for the smallest, {searched[0]} codes",
           "Search smaller codebooks or a coarser grid, or give more --bits-per-pixel.")
    return {name: kept if name == "codebook_size" else values for name, values in space.items()}


# Scores -------------------------------------------------------------------------------------------------

def score(figures: Row, codebook_size: int) -> float:
    """Return what a study maximises: see above. 1 is a perfect image from codes that are all of use.

    Args:
        figures: ssim and {top,bottom}_{used,perplexity,shuffle_drop}; a level without figures does not count.
    One level, 512 codes, SSIM 0.9, 128 used (half of its floor of 256), perplexity 64, shuffle drop 0.04 (4/5 of its
    floor): 0.9 - 0.1 (1/2 + 0 + 1/5) = 0.83.
    """
    missing = 0.0
    for used, perplexity, drop in _figures_by_level(figures):
        reached = (used / codebook_size / FLOORS["used"], perplexity / codebook_size / FLOORS["perplexity"],
                   drop / FLOORS["shuffle_drop"])
        missing += PENALTY * sum(1 - min(1.0, max(0.0, share)) for share in reached)
        missing += UNFIT * (used < encoding.fewest_codes(codebook_size))
    return figures["ssim"] - missing


def _figures_by_level(figures: Row) -> list[list[float]]:
    """Return the figures of each level, in the order of FLOORS; top first."""
    return [[figures[f"{level}_{name}"] for name in FLOORS] for level in LEVELS if f"{level}_used" in figures]


def figures_of(row: Row) -> dict[str, float]:
    """Return what `score` needs of an epoch's row of log.csv, numbers or text; {} if no code was in use yet."""
    if row.get("top_used") in (None, ""):
        return {}
    found = {"ssim": row["validate_ssim"],
             **{name: row.get(name) for name in (f"{level}_{figure}" for level in LEVELS for figure in FLOORS)}}
    return {name: float(value) for name, value in found.items() if value not in (None, "")}


def result(number: int, state: str, values: Row, log: Sequence[Row], codebook_size: int, reason: str = "") -> dict:
    """Return the row of a trial that has ended; a complete trial without any score has failed.

    A complete trial has the figures of the epoch whose weights its run keeps: the lowest error of the reconstruction.

    Args:
        values: what was searched.
        log: rows of the trial's log.csv.
    """
    scored = list(filter(figures_of, log))
    best = min(scored, key=lambda row: float(row["validate_reconstruction"]), default={})
    figures = figures_of(best if state == "complete" else (scored or [{}])[-1])
    if state == "complete" and not figures:
        state, reason = "failed", "no epoch had its codes in use: give more --epochs or fewer --start-steps"
    return {"trial": number, "state": state, "score": score(figures, codebook_size) if figures else "",
            "epochs": len(log), **values, **figures, "reason": reason}


def best_of(rows: Sequence[Row], codebook_size: int) -> Row | None:
    """Return the trial with the highest score among those that were trained to the end and all of whose levels have
    codes that a prior can learn; the first of equals; None where there is none.

    Args:
        codebook_size: that of the trials if it was not searched.
    """
    fit = [row for row in rows if row["state"] == "complete" and all(
        used >= encoding.fewest_codes(row.get("codebook_size", codebook_size)) for used, *_ in _figures_by_level(row))]
    return max(fit, key=lambda row: row["score"], default=None)


# The study ----------------------------------------------------------------------------------------------

def open_study(settings: TuneSettings) -> optuna.Study:
    """Return the study in Optuna's database, which is made where there is none.

    Raises: UserError if the database cannot be read.
    """
    path = settings.folder / DATABASE
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # Not every path fits into a URL; another process, such as a viewer, may lock the database for some seconds.
        storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs={
            "creator": lambda: sqlite3.connect(path, timeout=60, check_same_thread=False)})
        return optuna.create_study(
            study_name="study", storage=storage, load_if_exists=True, direction="maximize",
            pruner=optuna.pruners.NopPruner() if settings.pruner == "none" else
            optuna.pruners.MedianPruner(n_startup_trials=settings.unpruned))
    except (DatabaseError, sqlite3.DatabaseError) as error:
        raise UserError(f"{path}: expected a study that vqvae2 tune has written, found "
                        f"{files.in_brief(getattr(error, 'orig', error))}. Move it away to begin anew.") from None


def begin(settings: TuneSettings, space: Space, data_hash: str) -> optuna.Study:
    """Return the study, whose first trial is what the user has now.

    Raises: UserError if the study began with other settings or images, or there is one and --resume is never.
    """
    found = (settings.folder / DATABASE).exists()
    name, advice = f"--savename {settings.savename}", "Give those again, or choose another --savename."
    expect(not found or settings.resume == "auto", name, f"no study in {settings.folder}",
           "one, and --resume is never", "Choose another name, or drop --resume never to go on.")
    study = open_study(settings)
    own = as_dict(settings) | {"search": [in_words(*searched) for searched in space_of(settings).items()]}
    own = {setting: " ".join(map(str, value)) if isinstance(value, list) else value for setting, value in own.items()
           if setting not in MAY_DIFFER | {"out", "trials", "workers"}}
    if "began_with" not in study.user_attrs:
        study.enqueue_trial({setting: _mirrored(setting, nearest(setting, values, getattr(settings, setting)))
                             for setting, values in space.items()})
        study.set_user_attr("began_with", own | {"data_hash": data_hash})
    began_with = study.user_attrs["began_with"]
    changed = changes(own, began_with)
    expect(not changed, name, "the settings that this study began with", ", ".join(changed), advice)
    expect(began_with["data_hash"] == data_hash, f"--data {settings.data}",
           f"the images that this study began with ({began_with['data_hash'][:12]})", data_hash[:12], advice)
    return study


def next_trial(study: optuna.Study, settings: TuneSettings) -> optuna.Trial | None:
    """Return a new trial; None if the study has as many as were asked for."""
    begun = sum(trial.state != optuna.trial.TrialState.WAITING for trial in study.get_trials(deepcopy=False))
    seed = int(random_numbers.keys(settings.seed, "trial", begun)) % 2**32
    with warnings.catch_warnings():  # Optuna warns in some versions that "multivariate" is experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM, multivariate=True,
                                                   constant_liar=True)
    return study.ask() if begun < settings.trials else None


def drawn(trial: optuna.Trial, space: Space) -> dict[str, float | int]:
    """Return what a trial tries, the same whenever asked: setting -> value, with four digits as a person would write.
    """
    values = {}
    for name, searched in space.items():
        if name in CHOSEN:
            values[name] = trial.suggest_categorical(name, searched)
        else:
            low, high = sorted(_mirrored(name, end) for end in searched)
            number = float(f"{trial.suggest_float(name, low, high, log=low > 0):.4g}")
            values[name] = float(f"{_mirrored(name, number):.8g}")
    return values


def _mirrored(name: str, value: float | int) -> float | int:
    """Return what the database holds for a setting's value, or the value for what it holds.

    For a decay that is the distance from 1, whose logarithm is drawn evenly.
    """
    return 1 - value if name == "decay" else value


def results(study: optuna.Study) -> list[dict]:
    """Return the rows of all trials that have ended."""
    return [trial.user_attrs["row"] for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def record(trial: optuna.Trial, run: TrainVqvae, values: Row, state: str, reason: str = "") -> None:
    """Record how a trial ended, and remove what was only there to go on from."""
    row = result(trial.number, state, values, files.read_rows(run.folder / "log.csv"), run.codebook_size, reason)
    is_complete = row["state"] == "complete"
    trial.set_user_attr("row", row)
    trial.study.tell(trial, row["score"] if is_complete else None, state=getattr(
        optuna.trial.TrialState, {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[row["state"]]))
    for name in (run_state.STATE, run_state.STATE_BEFORE, *([] if is_complete else [weights.WEIGHTS])):
        (run.folder / name).unlink(missing_ok=True)


# Trials -------------------------------------------------------------------------------------------------

def trial_settings(settings: TuneSettings, number: int, values: Row, threads: int | None = None) -> TrainVqvae:
    """Return the settings of a trial's training: a run like any other, in <folder>/<dataset>/trial-NNN."""
    common = {field.name: getattr(settings, field.name) for field in dataclasses.fields(TrainVqvae)}
    return TrainVqvae(**common | dict(values) | {"preset": None, "savename": f"trial-{number:03d}", "resume": "auto",
                                                 "results": settings.folder, "threads": threads})


class TrialTrainer(VqvaeTrainer):
    """Trains as `vqvae2 train-vqvae` does, and reports the score of each epoch.

    Args:
        settings: of the training.
        trial: Optuna's, to which the scores are reported.
    """

    def __init__(self, settings: TrainVqvae, trial: optuna.Trial):
        super().__init__(settings)
        self.trial = trial

    def after_epoch(self) -> None:
        """Report the epoch. Raises: TrialPruned if the trial is not worth going on; Stopped if `vqvae2 tune` died."""
        if figures := figures_of(self.rows[-1]):
            self.trial.report(score(figures, self.settings.codebook_size), self.epoch)
            if self.epoch < self.settings.epochs and self.trial.should_prune():
                raise optuna.TrialPruned
        if not multiprocessing.parent_process().is_alive():
            raise Stopped("vqvae2 tune has ended")


def train(settings: TuneSettings, run: TrainVqvae, values: Row, trial_id: int, gpu: str | None) -> None:
    """Train a trial, in a process of its own, and record how it ended; it stays unfinished where a signal came.

    All that the training says goes to OUTPUT in the trial's folder.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / OUTPUT).open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        output.guard()
        fcntl.flock(log, fcntl.LOCK_EX)  # a training that outlived a killed `vqvae2 tune` lets go when it has saved
        trial, state, reason = optuna.Trial(open_study(settings), trial_id), "complete", ""
        try:
            TrialTrainer(run, trial).run()
        except optuna.TrialPruned:
            state = "pruned"
        except UserError as error:
            state, reason = "failed", str(error)
        except (Stopped, KeyboardInterrupt):
            raise SystemExit(EXIT_STOPPED) from None
        record(trial, run, values, state, reason)


def search(settings: TuneSettings, study: optuna.Study, space: Space, data: dict) -> None:
    """Keep --workers trials in training until the study has --trials; those that an earlier start has begun come first.

    Args:
        data: `Images.describe()`, for the preset.
    Raises: Stopped if a signal came.
    """
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    threads = settings.threads or max(1, machine.cores() // settings.workers)
    begun = [optuna.Trial(study, trial._trial_id)  # there is no other way to go on with a trial
             for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING])]
    before = len(results(study))
    running: dict[int, tuple] = {}  # the worker's number -> its process, and what `record` takes
    signals = machine.Signals()
    with signals, Bar(total=settings.trials, initial=before, unit="trial", desc="trials") as bar:
        try:
            while not signals.came:
                rows = results(study)
                # If the first three all fail, the fault lies with what the trials have in common.
                is_hopeless = len(rows) - before >= 3 and {row["state"] for row in rows} == {"failed"}
                while len(running) < settings.workers and not is_hopeless and (
                        trial := begun.pop(0) if begun else next_trial(study, settings)):
                    worker = min(set(range(settings.workers)) - set(running))
                    values = drawn(trial, space)
                    run = trial_settings(settings, trial.number, values, threads)
                    process = multiprocessing.get_context(START_METHOD).Process(target=train, args=(
                        settings, run, values, trial._trial_id, gpus[worker % len(gpus)] if len(gpus) > 1 else None))
                    process.start()
                    running[worker] = process, trial, run, values
                if not running:
                    return
                connection.wait([process.sentinel for process, *_ in running.values()], timeout=0.5)
                for worker, (process, trial, run, values) in list(running.items()):
                    if not (process.is_alive() or signals.came):
                        del running[worker]
                        if not study.trials[trial.number].state.is_finished():
                            record(trial, run, values, "failed", f"its process ended with status {process.exitcode}: "
                                   f"see {run.folder / OUTPUT}")
                        write_results(results(study), settings, space, data)
                        row = study.trials[trial.number].user_attrs["row"]
                        Bar.write("; ".join(filter(None, [
                            f"trial {row['trial']}: {row['state']} after {row['epochs']} epochs", row["reason"],
                            summary_line(row, settings)])))
                        bar.update()
        finally:  # the trainings save and stop; they go on at the next start
            for process, *_ in running.values():
                process.terminate()
            for process, *_ in running.values():
                process.join()
        raise Stopped(f"Stopped by a signal, all saved: {settings.folder}. The same command goes on from here.")


# What is written ----------------------------------------------------------------------------------------

def summary_line(row: Row, settings: TuneSettings) -> str:
    """Return a trial's score and figures in one line, which is empty where it has none."""
    levels = [f"{level} {used:.0f} of {row.get('codebook_size', settings.codebook_size)} codes used, perplexity "
              f"{perplexity:.0f}, shuffle drop {drop:.3f}"
              for level, (used, perplexity, drop) in zip(LEVELS, _figures_by_level(row))]
    return "; ".join([f"score {row['score']:.4f}", f"SSIM {row['ssim']:.4f}", *levels]) if levels else ""


def preset_text(best: Row, rows: Sequence[Row], settings: TuneSettings, space: Space, data: Row) -> str:
    """Return the best trial as a preset for `vqvae2 train-vqvae`; equal work gives equal text.

    Args:
        data: `Images.describe()`.
    """
    trained = as_dict(trial_settings(settings, 0, {name: best[name] for name in space}))
    kept = {name: value for name, value in trained.items()
            if name not in MAY_DIFFER | {"savename", "compile"} and value is not None}
    states = [row["state"] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)
    images, (_, height, width) = data["data"]["images"], data["image_shape"]
    paragraphs = (
        f"Found by vqvae2 tune: trial {best['trial']} of the study {settings.savename}, best of {len(rows)} "
        f"({counts}).",
        f"Data: {settings.dataset}, {images['train']} training and {images['validate']} validation images of "
        f"{height} x {width} pixels, hash {data['data_hash'][:12]}.",
        f"On the validation images after {settings.epochs} epochs, with at most {settings.bits_per_pixel:g} raw bits "
        f"per pixel: {summary_line(best, settings)}.",
        f"Searched: {', '.join(in_words(*searched) for searched in space.items())}.", "",
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
