"""The box that tyro draws around an error -> the one line that the project's errors are.

A box has a title and sections between rules; where it names a flag, with the kind of its value, that stands in a
row of its own, indented by four. Its lines are drawn with box characters, or, where the terminal has none, with
dashes and spaces. What is not known here (tyro may learn to say more) is told in tyro's words.
"""

import re
from collections.abc import Sequence

import tyro

TYRO = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff, tyro.conf.DisallowNone)
"""How all command lines are read."""
RULE = re.compile(r"^[│ ]+[─-]{5,}[│ ]*$", re.MULTILINE)
FLAG_ROW = re.compile(r"^[│ ] {5}(?:-\w \S+, )?(--\S+) ?(.*?)[│ ]*$", re.MULTILINE)
QUOTED = re.compile(r"'([^']*)'")


def one_line(box: str, script: str, answers: Sequence[str] = ()) -> str:
    """Return what a box says, such as `train_vqvae.py: missing --epochs, --batch. See train_vqvae.py --help.`

    `answers`: sentences on what was not recognized (see `spelling.answers`), which are said in place of tyro's guesses.
    """
    said, value = [], "another kind"
    for section in RULE.split("\n".join(box.splitlines()[1:])):
        words = " ".join(re.sub(r"[│╭╮╰╯─]+", " ", section).split())
        rows = FLAG_ROW.findall(section)
        flags = ", ".join(flag for flag, _ in rows)
        if "Missing from" in words:
            said.append(f"missing {flags}.")
        elif found := re.search(r"Unrecognized options: (.*)", words):
            said += [f"unrecognized {found[1].replace(',', '')}.", *answers]
        elif "similar to" in words or "Perhaps you meant" in words:
            said += [] if answers else [f"Perhaps you meant {flags}."]
        elif found := re.search(r"Error parsing \S+: (.*?)(?: Got errors:|$)", words):
            value = " ".join(QUOTED.findall(found[1]))
        elif "Argument helptext" in words:
            said.append(f"{flags}: expected {rows[0][1]}, found {value}.")
        elif found := re.search(r"invalid choice '(.*)' for argument '(.*)'. Expected one of (.*)", words):
            said.append(f"{found[2]}: expected one of {', '.join(QUOTED.findall(found[3]))}, found {found[1]}.")
        elif found := re.search(r"Missing value for argument '(.*)'. Expected (\d+)", words):
            said.append(f"{found[1]}: expected {found[2]} value(s), found fewer.")
        elif words and "full helptext" not in words:
            said.append(f"{words}.")
    if said and not said[0].startswith("-"):
        said.insert(0, f"{script}:")
    return " ".join([*said, f"See {script} --help."])
