"""A setting -> nothing, or the one line that says what was expected of it."""

from __future__ import annotations

import math
import re

from vqvae2.common.errors import UserError


def expect(ok: bool, what: str, rule: str, found: object, advice: str) -> None:
    """Raise UserError in the project's one form unless `ok`."""
    if not ok:
        raise UserError(f"{what}: expected {rule}, found {found}. {advice}")


class Checked:
    """The end of the chain of `__post_init__`, so that settings can be mixed in any order."""

    def __post_init__(self) -> None:
        """Check nothing; a dataclass that checks its own fields calls this through super() first."""


def flag(name: str) -> str:
    """Return how a setting is written on the command line: `per_scan` is `--per-scan`."""
    return "--" + name.replace("_", "-")


def check_finite(settings: object, *names: str) -> None:
    """Raise UserError if a number among these settings is infinite or not a number."""
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            expect(not isinstance(number, float) or math.isfinite(number), flag(name), "a finite number", number,
                   "See --help for defaults.")


def check_subject_pattern(pattern: str | None) -> None:
    """Raise UserError unless the pattern is a regular expression with a group."""
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"--subject-pattern: expected a regular expression, found {pattern} ({error}). "
                        "For example 'case_(\\d+)'.") from None
    expect(groups >= 1, "--subject-pattern", "a group in brackets for the subject", pattern,
           "For example 'case_(\\d+)'.")


def check_split(split: tuple[float, float, float]) -> None:
    """Raise UserError unless the shares can split subjects in three."""
    expect(all(share >= 0 for share in split) and split[0] > 0, "--split", "three shares, the first above 0",
           " ".join(map(str, split)), "The default is 64 16 20.")


def check_seed(seed: int) -> None:
    """Raise UserError unless torch and NumPy both take the seed."""
    expect(0 <= seed < 2**32, "--seed", "0 to 4294967295", seed, "The default is 0.")
