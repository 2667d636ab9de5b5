"""The command line of `vqvae2 tune` -> a frozen dataclass, and the ranges and choices of settings that are searched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from vqvae2.runs.settings import NOT_PART_OF_A_RUN
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainVqvae


class Range(NamedTuple):
    """All numbers from `low` to `high`. Their logarithms are drawn evenly where `low` is above 0, else the numbers."""

    low: float
    high: float

    def nearest(self, value: float) -> float:
        """Return `value`, or the end of the range that is nearer."""
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


class Choices(tuple[int, ...]):
    """Some whole numbers, in ascending order."""

    def nearest(self, value: float) -> int:
        """Return the choice whose ratio to `value` is nearest to 1."""
        return min(self, key=lambda choice: abs(math.log(choice / value)))

    def __str__(self) -> str:
        return ",".join(map(str, self))


Space = dict[str, Range | Choices]
SPACE: Space = {
    "learning_rate": Range(1e-4, 3e-3), "codebook_size": Choices((128, 256, 512, 1024)),
    "embedding_dim": Choices((16, 32, 64, 128)), "commitment": Range(0.05, 1.0), "decay": Range(0.9, 0.999),
    "ssim_weight": Range(0.003, 0.3), "gradient_weight": Range(0.0, 0.1), "prediction": Range(0.05, 1.0)}
"""The settings that can be searched, and the default of each. A weight that is 0 without --search begins at 0."""
LIMITS = {"codebook_size": (2, 32767), "embedding_dim": (2, 4096), "decay": (0.0, 1 - 1e-6), "learning_rate": (1e-9, 1)}
"""The smallest and the largest value that --search takes; the other settings are weights, from 0 to 1000."""
MAY_DIFFER = NOT_PART_OF_A_RUN - {"epochs", "batch", "accumulate", "global_batch"}
"""Settings of a training that do not change its result: trials with other epochs or batches could not be compared."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainVqvae):
    """Settings of `vqvae2 tune`: how to search, and all settings of a training, which the trials have in common."""

    savename: Annotated[str, tyro.conf.arg(name="study", aliases=["--savename"])]
    """Name of the study, whose files go to <results>/tune/<savename>/."""
    out: Path | None = None
    """Another folder for the study's files."""
    trials: int = 40
    """Trials in all. A study that has fewer, or was stopped, goes on until it has as many."""
    workers: int = 1
    """Trials trained at the same time, each in a process of its own, on several GPUs in turn."""
    search: tuple[str, ...] = ()
    """The settings that are searched: names, or NAME=LOW..HIGH, or NAME=A,B,C for whole numbers. Default: all that the
    manual names and the model has. The others stay as flags, preset or defaults say."""
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

    @property
    def folder(self) -> Path:
        """Return the folder of the study's files."""
        return self.out or self.results / "tune" / self.savename


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


def _parsed(name: str, given: str) -> Range | Choices:
    """Return the range or the choices that the words after NAME= stand for."""
    least, most = LIMITS.get(name, (0.0, 1000.0))
    kind = type(SPACE[name])
    number, separator = (int, ",") if kind is Choices else (float, "..")
    rule = (f"whole numbers from {least} to {most} with commas between" if kind is Choices else
            f"LOW..HIGH, numbers from {least:g} to {most:g}")
    try:
        values = [number(word) for word in given.split(separator)]
    except ValueError:
        values = []
    ok = bool(values) and all(least <= value <= most for value in values)
    ok = ok and (kind is Choices or (len(values) == 2 and values[0] < values[1]))
    expect(ok, f"--search {name}", rule, given, f"For example {name}={SPACE[name]}.")
    return Choices(sorted(set(values))) if kind is Choices else Range(*values)


def shared_settings(settings: TuneSettings) -> dict:
    """Return what makes a study what it is, as JSON values, lists as text: a later start must have the same."""
    searched = {"search": [f"{name}={values}" for name, values in space_of(settings).items()]}
    return {name: " ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in (as_dict(settings) | searched).items()
            if name not in MAY_DIFFER | {"out", "trials", "workers"}}
