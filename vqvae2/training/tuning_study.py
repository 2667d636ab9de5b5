"""A study's folder -> its trials, kept by Optuna in SQLite: what to try next, what to prune, what came out.

One process alone, vqvae2 tune's, opens a study; its workers only train and never see the database. So SQLite is never
waited for, and the trials that a kill has left unfinished are known for sure: nobody else can be training them.

What is tried is drawn by TPE (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4) of all
settings together, after a tenth of the trials at random or ten. Trials that are still being trained count as bad ones
("constant liar"), so that workers do not all try the same. The first trial is what the user has now. A trial's draw
depends on (seed, its number, the trials before it) alone: with one worker a study that was killed and went on is the
study that never was.
"""

import fcntl
import json
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vqvae2.common import files, random_numbers
from vqvae2.common.errors import UserError
from vqvae2.settings.checks import expect
from vqvae2.training import tuning
from vqvae2.training.tuning import TrialResult
from vqvae2.training.tuning_settings import Choices, Range, Space, TuneSettings, changes, shared_settings

try:
    import optuna
    from sqlalchemy.exc import DatabaseError
except ImportError:
    optuna = None

DATABASE, LOCK = "study.db", ".lock"
AT_RANDOM = 10
"""Trials before TPE has enough to go by; Optuna's own default."""
SECONDS_FOR_DATABASE = 60
"""That SQLite waits where another program (a viewer) has locked the file."""
SHOWN_DIGITS = 4
"""Of a value that is tried: as many as a person would write, so that the preset is what was trained."""


def check_optuna() -> None:
    """Raise UserError where Optuna is not installed."""
    expect(optuna is not None, "vqvae2 tune", "the package optuna", "none", "Install it: pip install -e '.[tune]'")


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """Let no other vqvae2 tune work on the study in `folder` meanwhile. Raises: UserError if one does."""
    files.check_folder(folder, "--out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"--out {folder}: expected a folder that can be written, found {error.strerror or error}. "
                        "Name another.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lifts it, however this process ends
        except BlockingIOError:
            raise UserError(f"--savename {name}: expected a study that no other vqvae2 tune works on, found one. Stop it; "
                            "--workers N trains several trials at a time.") from None
        yield


class Study:
    """The trials of a study.

    Args:
        folder: of the study; made by `only_one`.
        space: what is searched.
        data_hash: of the images.
    Raises: UserError if the folder's study began with other settings or data, or its database cannot be read.
    """

    def __init__(self, folder: Path, settings: TuneSettings, space: Space, data_hash: str):
        self.settings, self.space = settings, space
        self.reported: dict[int, int] = {}
        path = folder / DATABASE
        found = path.exists()
        expect(not found or settings.resume == "auto", f"--savename {settings.savename}", f"no study in {folder}",
               "one, and --resume is never", "Choose another name, or drop --resume never to go on.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(
                study_name="study", storage=_storage(path), load_if_exists=True, direction="maximize",
                pruner=optuna.pruners.NopPruner() if settings.pruner == "none" else optuna.pruners.MedianPruner(
                    n_startup_trials=settings.unpruned))
            began_with = json.loads(self.study.user_attrs.get("settings", "null"))
        except (DatabaseError, sqlite3.DatabaseError, ValueError) as error:
            words = " ".join(str(getattr(error, "orig", error)).split())
            raise UserError(f"{path}: expected a study that vqvae2 tune has written, found {words}. "
                            "Move it away to begin anew.") from None
        own = shared_settings(settings)
        if began_with is None:
            self.study.set_user_attr("settings", json.dumps(own | {"data_hash": data_hash}))
        else:
            self._check_same(began_with, data_hash)
        if not self.study.trials:
            self.study.enqueue_trial({name: _from_value(name, self.space[name].nearest(getattr(settings, name)))
                                      for name in space})

    def _check_same(self, began_with: dict, data_hash: str) -> None:
        before = began_with.pop("data_hash")
        changed = changes(self.settings, began_with)
        name, advice = f"--savename {self.settings.savename}", "or choose another --savename."
        expect(not changed, name, "the settings that this study began with", ", ".join(changed),
               f"Give those again, {advice}")
        expect(before == data_hash, f"--data {self.settings.data}", f"the images that this study began with "
               f"({before[:12]})", data_hash[:12], f"Give those again, {advice}")

    def unfinished(self) -> list["optuna.Trial"]:
        """Return the trials that an earlier start has begun and not ended."""
        found = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return [self._attach(one._trial_id, one.number) for one in found]  # there is no other way to go on with one

    def _attach(self, trial_id: int, number: int) -> "optuna.Trial":
        self.study.sampler = self._sampler(number)
        return optuna.Trial(self.study, trial_id)

    def next(self) -> "optuna.Trial | None":
        """Return the next new trial; None if there are as many as were asked for."""
        trials = self.study.get_trials(deepcopy=False)
        begun = sum(one.state != optuna.trial.TrialState.WAITING for one in trials)
        if begun >= self.settings.trials:
            return None
        self.study.sampler = self._sampler(begun)
        return self.study.ask()

    def _sampler(self, number: int) -> "optuna.samplers.TPESampler":
        seed = int(random_numbers.keys(self.settings.seed, "trial", number)) % 2**32
        with warnings.catch_warnings():  # that "multivariate" is experimental, in some versions
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM, multivariate=True,
                                              constant_liar=True)

    def values(self, trial: "optuna.Trial") -> dict[str, float | int]:
        """Return what a trial is to try, the same whenever asked: setting -> value."""
        return {name: _to_value(name, one, _suggest(trial, name, one)) for name, one in self.space.items()}

    def codebook_size(self, values: Mapping[str, float | int]) -> int:
        """Return the codebook's size in a trial with these values."""
        return int(values.get("codebook_size", self.settings.codebook_size))

    def report(self, trial: "optuna.Trial", rows: Sequence[Mapping[str, object]]) -> bool:
        """Tell the scores of a trial's epochs so far; return whether it is to be pruned.

        Args:
            rows: of log.csv, from the first epoch; those told before are passed over.
        """
        size, before = self.codebook_size(self.values(trial)), self.reported.get(trial.number, 0)
        self.reported[trial.number] = max(len(rows), before)
        for row in rows[before:]:
            if (figures := tuning.figures_of(row)) is not None:
                with warnings.catch_warnings():  # that an earlier start has told this epoch: it was the same
                    warnings.simplefilter("ignore")
                    trial.report(tuning.score(figures, size), int(row["epoch"]))
                if int(row["epoch"]) < self.settings.epochs and trial.should_prune():
                    return True
        return False

    def finish(self, trial: "optuna.Trial", state: str, rows: Sequence[Mapping[str, object]], reason: str = "") -> None:
        """Record how a trial ended.

        Args:
            state: complete, pruned or failed. A complete one without any score counts as failed.
            rows: of its log.csv.
        """
        scored = [row for row in rows if tuning.figures_of(row) is not None]
        row = tuning.best_row(rows) if state == "complete" else scored[-1] if scored else None
        value = None if row is None else tuning.score(tuning.figures_of(row), self.codebook_size(self.values(trial)))
        if state == "complete" and value is None:
            state, reason = "failed", "no epoch had its codes in use: give more --epochs or fewer --start-steps"
        trial.set_user_attr("figures", tuning.figures_of(row) if row else {})
        trial.set_user_attr("epochs", len(rows))
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("score", value)
        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        self.study.tell(trial, value if state == "complete" else None, state=optuna.trial.TrialState[states[state]])

    def results(self) -> list[TrialResult]:
        """Return all trials that were begun."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
        return [TrialResult(one.number, names[one.state.name],
                            {name: _to_value(name, self.space[name], one.params[name]) for name in self.space
                             if name in one.params},
                            one.user_attrs.get("score"), one.user_attrs.get("epochs", 0),
                            one.user_attrs.get("figures", {}), one.user_attrs.get("reason", ""))
                for one in self.study.get_trials(deepcopy=False) if one.state.name in names]


def _storage(path: Path) -> "optuna.storages.RDBStorage":
    """SQLite at `path`, whatever characters are in it: a URL would ask for some of them to be escaped."""
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=SECONDS_FOR_DATABASE, check_same_thread=False)

    return optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs={"creator": connect})


def _suggest(trial: "optuna.Trial", name: str, one: Range | Choices) -> float | int:
    """Draw; the database holds the distance of a decay from 1, whose logarithm is what is drawn evenly."""
    if isinstance(one, Choices):
        return trial.suggest_categorical(name, one.values)
    low, high = (_from_value(name, one.high), _from_value(name, one.low)) if name == "decay" else (one.low, one.high)
    return trial.suggest_float(name, low, high, log=low > 0)


def _from_value(name: str, value: float | int) -> float | int:
    """What the database holds for a setting's value."""
    return 1 - value if name == "decay" else value


def _to_value(name: str, one: Range | Choices, drawn: float | int) -> float | int:
    """The setting's value, with as many digits as a person would write."""
    if isinstance(one, Choices):
        return int(drawn)
    short = float(f"{drawn:.{SHOWN_DIGITS}g}")
    return round(1 - short, 8) if name == "decay" else short
