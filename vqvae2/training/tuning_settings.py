"""Nothing -> the settings of vqvae2 tune, and what may be searched: ranges and choices of settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.runs.settings import NOT_PART_OF_A_RUN, changed_settings
from vqvae2.settings.checks import expect, flag
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainVqvae


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`; drawn evenly, or their logarithms are, where `low` is above 0."""

    low: float
    high: float

    @property
    def is_log(self) -> bool:
        """Return whether twice a number is as far as half of it."""
        return self.low > 0

    def nearest(self, value: float) -> float:
        """Return `value`, or the end of the range that is nearer."""
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """Some whole numbers, in ascending order."""

    values: tuple[int, ...]

    def nearest(self, value: float) -> int:
        """Return the choice whose ratio to `value` is nearest to 1."""
        return min(self.values, key=lambda one: abs(math.log(one / value)))

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


Space = dict[str, Range | Choices]
SPACE: Space = {
    "learning_rate": Range(1e-4, 3e-3), "codebook_size": Choices((128, 256, 512, 1024)),
    "embedding_dim": Choices((16, 32, 64, 128)), "commitment": Range(0.05, 1.0), "decay": Range(0.9, 0.999),
    "ssim_weight": Range(0.003, 0.3), "gradient_weight": Range(0.0, 0.1), "prediction": Range(0.05, 1.0)}
"""What can be searched, and where it is if --search does not say. A weight that is 0 by default begins at 0."""
LIMITS = {"codebook_size": (2, 32767), "embedding_dim": (2, 4096), "decay": (0.0, 1 - 1e-6), "learning_rate": (1e-9, 1)}
"""Of what --search may give; other settings are weights, 0 to 1000."""
SAME_FOR_ALL_TRIALS = ("epochs", "batch", "accumulate", "global_batch")
"""Of a run they may change when it goes on; trials of a study could not be compared."""
ONLY_HERE = ("out", "trials", "workers")
"""May change when a study goes on."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainVqvae):
    """Settings of vqvae2 tune: how to search, and all of train_vqvae.py's, which every trial has."""

    savename: Annotated[str, tyro.conf.arg(name="study", aliases=["--savename"])]
    """Name of the study, whose files go to <results>/tune/<savename>/."""
    out: Path | None = None
    """Another folder for the study's files."""
    trials: int = 40
    """Trials in all. A study that has fewer, or was stopped, goes on until it has as many."""
    workers: int = 1
    """Trials trained at the same time, each in a process of its own, on several GPUs in turn."""
    search: tuple[str, ...] = ()
    """What is searched: names, or NAME=LOW..HIGH, or NAME=A,B,C for whole numbers. Default: all that the manual
    names and the model has. The others stay as flags, preset or defaults say."""
    bits_per_pixel: float = 0.75
    """Most raw bits per pixel (log2 of the codebook's size for each code): more codes would always buy SSIM."""
    pruner: Literal["median", "none"] = "median"
    """median ends a trial whose best score so far is below the median of the others' at the same epoch."""
    unpruned: int = 5
    """Trials that are trained to their end before any is pruned."""
    pictures_every: int = 1000
    """Epochs between a trial's pictures; its last epoch is pictured in any case."""

    RULES = (
        ("trials workers unpruned", lambda value: value >= 1, "at least 1", "See --help for defaults."),
        ("bits_per_pixel", lambda bits: bits > 0, "a positive number", "The default is 0.75."))

    def __post_init__(self) -> None:
        super().__post_init__()
        space_of(self)


def space_of(settings: TuneSettings) -> Space:
    """Return what is searched, by the setting's name, in the order of SPACE.

    Raises: UserError for a name that cannot be searched, twice the same, or a range or choice that is none.
    """
    without = {"decay": settings.quantizer == "gradient" and "--quantizer gradient",
               **dict.fromkeys(("codebook_size", "commitment"), settings.quantizer == "fsq" and "--quantizer fsq"),
               "prediction": settings.levels == 1 and "--levels 1"}
    if not settings.search:
        return {name: one for name, one in SPACE.items() if not without.get(name)}
    asked: Space = {}
    for words in settings.search:
        name, _, given = words.partition("=")
        name = name.replace("-", "_")
        expect(name in SPACE, "--search", f"some of {', '.join(SPACE)}", name, "Give the others as flags.")
        expect(name not in asked, "--search", "each setting once", f"{name} twice", "Drop one.")
        expect(not without.get(name), f"--search {name}", "a setting that this model has",
               f"{without.get(name)}, which has no {name}", "Drop one of them.")
        asked[name] = _parsed(name, given) if given else SPACE[name]
    return {name: asked[name] for name in SPACE if name in asked}


def _parsed(name: str, given: str) -> Range | Choices:
    """The range or the choices that `given` stands for."""
    least, most = LIMITS.get(name, (0.0, 1000.0))
    choices = isinstance(SPACE[name], Choices)
    rule = (f"whole numbers from {least} to {most} with commas between" if choices else
            f"LOW..HIGH, numbers from {least:g} to {most:g}")
    try:
        values = [int(one) for one in given.split(",")] if choices else [float(one) for one in given.split("..")]
    except ValueError:
        values = []
    ok = bool(values) and all(least <= one <= most for one in values)
    ok = ok and (choices or (len(values) == 2 and values[0] < values[1]))
    expect(ok, f"--search {name}", rule, given, f"For example {name}={SPACE[name]}.")
    return Choices(tuple(sorted(set(values)))) if choices else Range(*values)


def shared_settings(settings: TuneSettings) -> dict:
    """Return what makes a study what it is, as JSON values: a later start must have the same."""
    space = {"search": [f"{name}={one}" for name, one in space_of(settings).items()]}
    return {name: value for name, value in (as_dict(settings) | space).items()
            if name in SAME_FOR_ALL_TRIALS or name not in {*NOT_PART_OF_A_RUN, *ONLY_HERE}}


def changes(settings: TuneSettings, began_with: dict) -> list[str]:
    """Return what differs from a study's `shared_settings`, such as `--epochs 3 (was 2)`."""
    mine = shared_settings(settings)
    listed = [f"{flag(name)} {mine[name]} (was {began_with[name]})" for name in SAME_FOR_ALL_TRIALS
              if name in began_with and mine[name] != began_with[name]]
    searched = ([] if mine["search"] == began_with.get("search") else
                [f"--search {' '.join(mine['search'])} (was {' '.join(began_with.get('search', []))})"])
    rest = {name: value for name, value in began_with.items() if name not in ("search", *SAME_FOR_ALL_TRIALS)}
    return [*listed, *searched, *changed_settings(settings, rest)]
