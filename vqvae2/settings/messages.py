"""Words of a command line -> the words that tyro reads, and the box that tyro draws around an error -> one line.

A box has a title and sections between rules; where it names a flag, with the kind of its value, that stands in a
row of its own, indented by four. Its lines are drawn with box characters, or, where the terminal has none, with
dashes and spaces. A section that no pattern fits is told in tyro's words.
"""

import os
import re
from collections.abc import Sequence

import tyro

from vqvae2.settings.checks import expect

TYRO = (tyro.conf.HelptextFromCommentsOff, tyro.conf.DisallowNone)
"""How all command lines are read."""
RULE = re.compile(r"^[│ ]+[─-]{5,}[│ ]*$(?!\n│? *Argument helptext)", re.MULTILINE)
FLAG_ROW = re.compile(r"^[│ ] {5}(?:-\w \S+, )?(--\S+) ?(.*?)[│ ]*$", re.MULTILINE)
QUOTED = re.compile(r"'([^']*)'")
SAID = {
    r"full helptext": "",
    r"Missing from": "missing {flags}.",
    r"Unrecognized options: (?P<words>.*)": "unrecognized {words}.",
    r"similar to|Perhaps you meant": "Perhaps you meant {flags}.",
    r"Error parsing \S+: (?P<words>.*?)(?: Got errors:.*)? Argument helptext":
        "{flags}: expected {kind}, found {words}.",
    r"invalid choice (?P<words>'.*') for argument '(?P<flag>.*)'. Expected one of (?P<choices>.*)":
        "{flag}: expected one of {choices}, found {words}.",
    r"Missing value for argument '(?P<flag>.*)'. Expected (?P<count>\d+)":
        "{flag}: expected {count} value(s), found fewer."}
"""A pattern of a section's words -> what is said in their place."""


def completed(arguments: Sequence[str]) -> list[str]:
    """Return a command line with home folders in place of `~`, and `validate` for other names of that split.

    Most shells leave the ~ of `--data=~/slices` alone.
    Raises: UserError for an empty value.
    """
    words, flag = [], "command line"
    for word in arguments:
        start, value = re.fullmatch(r"(-[^=]+=?|)(.*)", word, re.DOTALL).groups()
        flag = start.rstrip("=") or flag
        expect(bool(value.strip()) or start[-1:] not in ("", "="), flag, "a value", "nothing",
               "Give one, or leave the flag out; is a shell variable not set?")
        is_validate = flag == "--split" and value.lower() in ("val", "valid", "validation")
        words.append(start + ("validate" if is_validate else os.path.expanduser(value)))
    return words


def one_line(box: str, script: str) -> str:
    """Return what a box says, such as `train_vqvae.py: missing --epochs, --batch. See train_vqvae.py --help.`"""
    said = []
    for section in RULE.split("\n".join(box.splitlines()[1:])):
        words = " ".join(re.sub(r"[│╭╮╰╯─]+|-{5,}", " ", section).split())
        rows = FLAG_ROW.findall(section)
        known = {"flags": ", ".join(name for name, _ in rows), "kind": "".join(kind for _, kind in rows[:1])}
        for pattern, saying in SAID.items():
            if found := re.search(pattern, words):
                said.append(saying.format(**known, **{
                    name: (", " if name == "choices" else " ").join(QUOTED.findall(text) or [text.replace(",", "")])
                    for name, text in found.groupdict().items()}))
                break
        else:
            said.append(words and f"{words}.")
    said = list(filter(None, said))
    named = [] if said and said[0].startswith("-") else [f"{script}:"]
    return " ".join([*named, *said, f"See {script} --help."])
