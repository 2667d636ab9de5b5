"""A space of settings -> trials on this machine, kept by Optuna in SQLite, and what each trial reached.

`vqvae2 tune` asks Optuna for the next trial and starts a process that trains it. That process opens the same study: it
reports the score of each epoch, is told whether to prune, and records how the trial ended. So nothing but Optuna's
database goes from process to process.

What is tried is drawn by TPE (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4) of all
settings together, after ten trials at random. Trials that are still being trained count as bad ("constant liar"), so
that workers do not all try the same. The first trial is what the user has now. A trial's draw depends on (seed, its
number, the trials before it) alone: with one worker a study that was stopped and went on is the study that never was.
"""

import fcntl
import multiprocessing
import os
import sqlite3
import warnings
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from vqvae2.common import files, machine, random_numbers
from vqvae2.common.errors import EXIT_STOPPED, Stopped, UserError
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.settings.checks import expect, flag
from vqvae2.training import tuning
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.tuning_settings import Choices, Space, TuneSettings, shared_settings
from vqvae2.training.vqvae import VqvaeTrainer

try:
    import optuna
    from sqlalchemy.exc import DatabaseError
except ImportError:
    optuna = None

DATABASE, LOCK, OUTPUT = "study.db", ".lock", "output.txt"
START_METHOD = "spawn"
"""How a trial's process is started: anew, because a copy of a process that has used CUDA cannot use it."""
AT_RANDOM = 10
"""Trials before TPE has enough to go by; Optuna's own default."""
SECONDS_FOR_DATABASE = 60
"""Time that a process waits while another one, such as a viewer, has locked the database."""
SECONDS_BETWEEN_LOOKS = 0.5
"""Time within which a signal is noticed."""
FAILURES_AT_FIRST = 3
"""After so many failures, if no trial has ended well, the fault lies with what the trials have in common."""


def lock(settings: TuneSettings) -> TextIO:
    """Return a file of the study's folder, which is made; no other `vqvae2 tune` can work there until it is closed.

    Raises: UserError if another one does, or the folder cannot be written.
    """
    files.check_folder(settings.folder, "--out")
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
        file = (settings.folder / LOCK).open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lifts it, however this process ends
    except OSError as error:
        found = "one" if isinstance(error, BlockingIOError) else error.strerror
        raise UserError(f"--savename {settings.savename}: expected a study that no other vqvae2 tune works on, in a "
                        f"folder that can be written, found {found}. Stop it, or name another --out; --workers N "
                        "trains several trials at a time.") from None
    return file


def open_study(settings: TuneSettings) -> "optuna.Study":
    """Return the study in Optuna's database, which is made where there is none.

    Raises: UserError if the database cannot be read.
    """
    path = settings.folder / DATABASE
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=settings.unpruned)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs={  # not every path fits into a URL
            "creator": lambda: sqlite3.connect(path, timeout=SECONDS_FOR_DATABASE, check_same_thread=False)})
        return optuna.create_study(
            study_name="study", storage=storage, load_if_exists=True, direction="maximize",
            pruner=optuna.pruners.NopPruner() if settings.pruner == "none" else pruner)
    except (DatabaseError, sqlite3.DatabaseError) as error:
        raise UserError(f"{path}: expected a study that vqvae2 tune has written, found "
                        f"{files.in_brief(getattr(error, 'orig', error))}. Move it away to begin anew.") from None


def begin(settings: TuneSettings, space: Space, data_hash: str) -> "optuna.Study":
    """Return the study, whose first trial is what the user has now.

    Raises: UserError if the study began with other settings or images, or there is one and --resume is never.
    """
    found = (settings.folder / DATABASE).exists()
    name, advice = f"--savename {settings.savename}", "Give those again, or choose another --savename."
    expect(not found or settings.resume == "auto", name, f"no study in {settings.folder}",
           "one, and --resume is never", "Choose another name, or drop --resume never to go on.")
    study = open_study(settings)
    if "began_with" not in study.user_attrs:
        study.enqueue_trial({setting: _mirrored(setting, values.nearest(getattr(settings, setting)))
                             for setting, values in space.items()})
        study.set_user_attr("began_with", shared_settings(settings) | {"data_hash": data_hash})
    began_with = study.user_attrs["began_with"]
    changed = [f"{flag(setting)} {value} (was {began_with[setting]})" for setting, value
               in shared_settings(settings).items() if began_with.get(setting, value) != value]
    expect(not changed, name, "the settings that this study began with", ", ".join(changed), advice)
    expect(began_with["data_hash"] == data_hash, f"--data {settings.data}",
           f"the images that this study began with ({began_with['data_hash'][:12]})", data_hash[:12], advice)
    return study


def next_trial(study: "optuna.Study", settings: TuneSettings) -> "optuna.Trial | None":
    """Return a new trial; None if the study has as many as were asked for."""
    begun = sum(trial.state != optuna.trial.TrialState.WAITING for trial in study.get_trials(deepcopy=False))
    seed = int(random_numbers.keys(settings.seed, "trial", begun)) % 2**32
    with warnings.catch_warnings():  # Optuna warns in some versions that "multivariate" is experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM, multivariate=True,
                                                   constant_liar=True)
    return study.ask() if begun < settings.trials else None


def drawn(trial: "optuna.Trial", space: Space) -> dict[str, float | int]:
    """Return what a trial tries, the same whenever asked: setting -> value, with four digits as a person would write.
    """
    values = {}
    for name, searched in space.items():
        if isinstance(searched, Choices):
            values[name] = trial.suggest_categorical(name, tuple(searched))
        else:
            low, high = sorted(_mirrored(name, end) for end in searched)
            number = float(f"{trial.suggest_float(name, low, high, log=low > 0):.4g}")
            values[name] = float(f"{_mirrored(name, number):.8g}")
    return values


def _mirrored(name: str, value: float | int) -> float | int:
    """Return what the database holds for a setting's value, or the value for what it holds.

    Of a decay that is the distance from 1, whose logarithm is drawn evenly.
    """
    return 1 - value if name == "decay" else value


def results(study: "optuna.Study") -> list[dict]:
    """Return the rows of all trials that have ended; see `tuning`."""
    return [trial.user_attrs["row"] for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def record(trial: "optuna.Trial", run: TrainVqvae, values: Mapping[str, float | int], state: str,
           reason: str = "") -> None:
    """Record how a trial ended, and remove what was only there to go on from."""
    row = tuning.result(trial.number, state, values, files.read_rows(_folder_of(run) / "log.csv"), run.codebook_size,
                        reason)
    is_complete = row["state"] == "complete"
    trial.set_user_attr("row", row)
    trial.study.tell(trial, row["score"] if is_complete else None, state=getattr(
        optuna.trial.TrialState, {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[row["state"]]))
    for name in (run_state.STATE, run_state.STATE_BEFORE, *([] if is_complete else [weights.WEIGHTS])):
        (_folder_of(run) / name).unlink(missing_ok=True)


def _folder_of(run: TrainVqvae) -> Path:
    return run.results / run.dataset / run.savename


class TrialTrainer(VqvaeTrainer):
    """Trains as `vqvae2 train-vqvae` does, and reports the score of each epoch.

    Args:
        settings: of the training.
        trial: Optuna's, to which the scores are reported.
    """

    def __init__(self, settings: TrainVqvae, trial: "optuna.Trial"):
        super().__init__(settings)
        self.trial = trial

    def after_epoch(self) -> None:
        """Report the epoch. Raises: TrialPruned if the trial is not worth going on; Stopped if `vqvae2 tune` died."""
        super().after_epoch()
        if figures := tuning.figures_of(self.rows[-1]):
            self.trial.report(tuning.score(figures, self.settings.codebook_size), self.epoch)
            if self.epoch < self.settings.epochs and self.trial.should_prune():
                raise optuna.TrialPruned
        if not multiprocessing.parent_process().is_alive():
            raise Stopped("vqvae2 tune has ended")


def train(settings: TuneSettings, run: TrainVqvae, values: Mapping[str, float | int], trial_id: int,
          gpu: str | None) -> None:
    """Train a trial, in a process of its own, and record how it ended; it stays unfinished where a signal came.

    All that the training says goes to OUTPUT in the trial's folder.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    _folder_of(run).mkdir(parents=True, exist_ok=True)
    with (_folder_of(run) / OUTPUT).open("a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        fcntl.flock(output, fcntl.LOCK_EX)  # a training that outlived a killed `vqvae2 tune` lets go when it has saved
        trial, reason = optuna.Trial(open_study(settings), trial_id), ""
        try:
            TrialTrainer(run, trial).run()
            state = "complete"
        except optuna.TrialPruned:
            state = "pruned"
        except UserError as error:
            state, reason = "failed", str(error)
        except (Stopped, KeyboardInterrupt):
            raise SystemExit(EXIT_STOPPED) from None
        record(trial, run, values, state, reason)


def search(settings: TuneSettings, study: "optuna.Study", space: Space, data: dict) -> None:
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
    with signals, tqdm(total=settings.trials, initial=before, unit="trial", leave=False, desc="trials") as bar:
        try:
            while not signals.came:
                rows = results(study)
                is_hopeless = len(rows) - before >= FAILURES_AT_FIRST and {row["state"] for row in rows} == {"failed"}
                while len(running) < settings.workers and not is_hopeless and (
                        trial := begun.pop(0) if begun else next_trial(study, settings)):
                    worker = min(set(range(settings.workers)) - set(running))
                    values = drawn(trial, space)
                    run = tuning.trial_settings(settings, trial.number, values, threads)
                    process = multiprocessing.get_context(START_METHOD).Process(target=train, args=(
                        settings, run, values, trial._trial_id, gpus[worker % len(gpus)] if len(gpus) > 1 else None))
                    process.start()
                    running[worker] = process, trial, run, values
                if not running:
                    return
                connection.wait([process.sentinel for process, *_ in running.values()], SECONDS_BETWEEN_LOOKS)
                for worker, (process, trial, run, values) in list(running.items()):
                    if not (process.is_alive() or signals.came):
                        del running[worker]
                        if not study.trials[trial.number].state.is_finished():
                            record(trial, run, values, "failed", f"its process ended with status {process.exitcode}: "
                                   f"see {_folder_of(run) / OUTPUT}")
                        tuning.write_results(results(study), settings, space, data)
                        row = study.trials[trial.number].user_attrs["row"]
                        tqdm.write("; ".join(filter(None, [
                            f"trial {row['trial']}: {row['state']} after {row['epochs']} epochs", row["reason"],
                            tuning.in_words(row, settings)])))
                        bar.update()
        finally:  # the trainings save and stop; they go on at the next start
            for process, *_ in running.values():
                process.terminate()
            for process, *_ in running.values():
                process.join()
        raise Stopped(f"Stopped by a signal, all saved: {settings.folder}. The same command goes on from here.")
