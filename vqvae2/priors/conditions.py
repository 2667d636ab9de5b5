"""Columns of a manifest, or a command line -> numbers that a prior is given beside the codes.

A column is numeric where every known value is a number, else categorical. Numbers are standardised by the training
images' mean and spread. What is not known, or a category that no training image has, is NaN, for which the prior
has learned an embedding of its own: "unknown" is not 0, which would be the mean person.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from vqvae2.common.errors import expect
from vqvae2.settings.checks import Checked
from vqvae2.settings.stored import from_dict

UNKNOWN = {"", "n/a", "na", "nan", "none", "null"}
MOST_CATEGORIES = 64
RANGE = re.compile(r"(?<!\.)\.\.(?!\.)")
"""Two dots between two numbers; of three nobody knows whether one belongs to a number."""


@dataclass(frozen=True)
class Column(Checked):
    """One column of the manifest that a prior is told, as the training images have it.

    Args:
        categories: sorted; empty for a numeric column.
        mean, spread: mean and standard deviation over the training images, in the column's unit.
        least, most: the range of the training images.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    spread: float = 1.0
    least: float = 0.0
    most: float = 0.0

    RULES = (("spread", lambda spread: spread > 0, "more than 0", "The file is damaged."),)

    def number(self, text: str) -> float:
        """Return what stands for a value: a category's place, a standardised number; NaN for what is not known."""
        text = text.strip()
        if text.lower() in UNKNOWN:
            return math.nan
        if self.categories:
            return float(self.categories.index(text)) if text in self.categories else math.nan
        number = _as_number(text)
        return math.nan if number is None else (number - self.mean) / self.spread

    def is_far(self, number: float) -> bool:
        """Return whether a standardised number is farther outside the training images' range than that range is wide.

        Networks make nothing sensible of it: 70 days for an age of 70 years is a mistake that must not pass.
        """
        width = max(self.most - self.least, self.spread) if not self.categories else math.inf
        return not self.least - width <= number * self.spread + self.mean <= self.most + width

    def words(self) -> str:
        """Return which values the column takes, for a user."""
        return ", ".join(self.categories) or f"numbers, {self.least:g} to {self.most:g} in training"


def fit(facts: Sequence[Mapping[str, str]], names: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns `names` as the training images have them.

    Args:
        facts: for each training image, what its manifest says.
    Raises: UserError if a column is not in the manifest, is unknown for all images, or has too many categories.
    """
    # A row with more cells than the header has them under None.
    known = ", ".join(filter(None, facts[0])) if facts and facts[0] else "none, since there is no manifest.csv"
    for name in names:
        expect(bool(facts) and name in facts[0], f"--condition {name}", "a column of the manifest",
               f"none of that name among {known}", "Correct the name, or extract with --covariates.")
    return tuple(_column(name, [row[name].strip() for row in facts]) for name in names)


def _column(name: str, texts: list[str]) -> Column:
    values = sorted({text for text in texts if text.lower() not in UNKNOWN})
    expect(len(values) > 0, f"--condition {name}", "a value for at least 1 training image", "none",
           "Leave it out, or extract with --covariates.")
    if all(_as_number(value) is not None for value in values):
        numbers = torch.tensor([number for text in texts if (number := _as_number(text)) is not None],
                               dtype=torch.float64)
        least, most, spread = numbers.min().item(), numbers.max().item(), numbers.std(unbiased=False).item()
        # A constant's spread is rounding at best: the mean of 18 times 0.1 is not quite 0.1.
        if least == most or spread == 0:
            return Column(name, (), least, 1.0, least, most)
        return Column(name, (), numbers.mean().item(), spread, least, most)
    expect(len(values) <= MOST_CATEGORIES, f"--condition {name}", f"numbers or at most {MOST_CATEGORIES} categories",
           f"{len(values)} values such as {values[0]}", "Leave it out.")
    return Column(name, tuple(values))


def numbers(columns: Sequence[Column], facts: Sequence[Mapping[str, str]]) -> torch.Tensor:
    """Return float32 `[images, columns]`: each image's values as the prior takes them, NaN for unknown ones."""
    return torch.tensor([[column.number(row.get(column.name, "")) for column in columns] for row in facts],
                        dtype=torch.float32).view(len(facts), len(columns))


def from_texts(columns: Sequence[Column], texts: Sequence[str], draws: torch.Tensor) -> torch.Tensor:
    """Return float32 `[images, columns]` from a command line's NAME=VALUE, unknown where no value is given.

    Args:
        texts: such as "sex=F", "age=70", or "position_mm=-20..30": evenly drawn from a range, for each image.
        draws: `[images, columns]` in [0, 1), one for each value that is drawn.
    Raises: UserError for a column that the prior was not trained with or that is given twice, or a value that it
        cannot take.
    """
    by_name = {column.name: number for number, column in enumerate(columns)}
    trained = ", ".join(f"{column.name} ({column.words()})" for column in columns) or "nothing"
    table = torch.full(draws.shape, math.nan, dtype=torch.float64)
    seen: set[str] = set()
    for text in texts:
        name, flag = name_in(text, by_name), f"--condition {text}"
        value = text[len(name) + 1:]
        expect("=" in text and name in by_name, flag, f"NAME=VALUE for what the prior was trained with, {trained}",
               name, "Correct it, or leave it out.")
        expect(name not in seen, flag, "each column once", f"{name} twice", "Leave one out.")
        seen.add(name)
        number = by_name[name]
        column = columns[number]
        ends = [column.number(end) for end in (RANGE.split(value) if not column.categories else [value])]
        expect(len(ends) <= 2 and not any(map(math.isnan, ends)), flag, f"one of {column.words()}", value,
               f"Leave {name} out for an unknown one.")
        expect(not any(map(column.is_far, ends)), flag, f"a value near those of the training images, {column.words()}",
               value, "Look at its unit.")
        table[:, number] = ends[0] + (ends[-1] - ends[0]) * draws[:, number].double()
    return table.float()


def name_in(text: str, names: Iterable[str]) -> str:
    """Return the NAME of NAME=VALUE: the longest of `names` that it may be (a name may hold "=" itself, as in
    "sex (1=F)"), else what stands before the first "="."""
    return max((name for name in names if text.startswith(f"{name}=")), key=len, default=text.partition("=")[0])


def as_json(columns: Sequence[Column]) -> list[dict]:
    """Return columns as JSON values, for config.json."""
    return [asdict(column) | {"categories": list(column.categories)} for column in columns]


def from_json(values: Sequence[Mapping]) -> tuple[Column, ...]:
    """Return the columns that `as_json` has written. Raises: UserError if a value is of another type."""
    return tuple(from_dict(Column, value, f"config.columns[{number}]") for number, value in enumerate(values))


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    # NaN and larger numbers are no measurements, and their spread could not be computed.
    return number if abs(number) <= 1e30 else None
