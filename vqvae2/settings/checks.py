"""A setting -> nothing, or the one line that says what was expected of it."""

import dataclasses
import math
import re

import tyro

from vqvae2.common.errors import UserError, expect, flag

SAID = tyro.conf.arg(help_behavior_hint="")
"""The mark of a field whose sentence says what happens without it: `--help` adds no (default: None)."""
SEED = ("seed", lambda seed: 0 <= seed < 2**32, "0 to 4294967295", "The default is 0.")
SPLIT = ("split", lambda split: min(split) >= 0 < sum(split), "three shares of 0 or more, one above 0",
         "The default is 64 16 20.")

CUTTING = (
    ("planes", lambda planes: 0 < len(planes) == len(set(planes)), "axial, coronal, sagittal, each at most once",
     "Name at least one."),
    ("extent", lambda extent: 0 <= extent[0] < extent[1] <= 1, "two fractions, 0 <= LOW < HIGH <= 1",
     "For example 0.3 0.8."),
    ("size", lambda size: 8 <= size <= 4096, "8 to 4096 pixels", "The default is 256."),
    ("field_of_view", lambda width: 1 <= width <= 1000, "1 to 1000 mm", "A head fits into the default of 224."))
"""Rules of the settings that say how slices are cut out of scans."""


class Checked:
    """Settings whose numbers are finite and which follow the RULES of their class and of its parents.

    A rule is a tuple: names of settings with spaces between, the test of a value, the test in words, and advice. None
    passes every rule. A dataclass whose rules join several settings checks these in its own `__post_init__`, which
    calls this one first through super(), so that settings can be mixed in any order.
    """

    RULES = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                expect(not isinstance(number, float) or math.isfinite(number), flag(field.name), "a finite number",
                       number, "See --help for defaults.")
        for names, holds, rule, advice in [rule for kind in type(self).__mro__ for rule in vars(kind).get("RULES", ())]:
            for name in names.split():
                value = getattr(self, name)
                found = (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else value
                expect(value is None or holds(value), flag(name), rule, found, advice)


def has_group(pattern: str) -> bool:
    """Return whether a regular expression has a group. Raises: UserError if the pattern is no regular expression."""
    try:
        return re.compile(pattern).groups >= 1
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--subject-pattern: expected a regular expression, found {pattern} ({error}). "
                        "For example 'case_(\\d+)'.") from None


SUBJECT_PATTERN = ("subject_pattern", has_group, "a group in brackets for the subject", "For example 'case_(\\d+)'.")
