"""A command line, the environment, .env -> a frozen dataclass of settings, and such a dataclass -> JSON.

The sentence under a field is what `--help` prints. A flag beats the environment, which beats .env.

A `.env` has lines such as SLICES_PATH=~/slices, which python-dotenv reads: quotes, `export`, notes after # and ${HOME}
are understood. `docker --env-file` and the like hand quotes and `~` on as they are written, so a variable of the
environment is read in the same way.

tyro draws a box around an error, which becomes one line here. A box has a title and sections between rules; where it
names a flag, with the kind of its value, that stands in a row of its own, indented by four. Its lines are drawn with
box characters, or, where the terminal has none, with dashes and spaces. A section that no pattern fits is told in
tyro's words.
"""

import codecs
import contextlib
import dataclasses
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro
from dotenv import dotenv_values

from vqvae2.common import output
from vqvae2.common.errors import EXIT_USER_ERROR, UserError, expect, flag
from vqvae2.settings import presets

Settings = TypeVar("Settings")
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

logging.getLogger("dotenv").setLevel(logging.ERROR)  # its warning says less than `_in_file` does, in a second line


def parse(settings: type[Settings], manual: str, arguments: list[str] | None = None) -> Settings:
    """Return the settings that the command line gives; `--help` prints `manual` first and exits 0.

    The flags of a preset come before the others, of which the last counts where a flag is given twice.
    Raises: UserError for a flag or value that does not fit, with what would.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    of_preset = presets.words(settings, arguments)
    arguments = completed([*of_preset, *arguments])
    if {"-h", "--help"} & set(arguments):
        output.is_result()
        print(manual)  # not as tyro's description: it would join lines, and a command could not be pasted
        if "preset" in settings.__dataclass_fields__:
            print(presets.listing(settings.TABLE),
                  *(["\nThe chosen preset stands for", *of_preset] if of_preset else ()))
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(settings, description="", args=arguments,
                            config=(tyro.conf.HelptextFromCommentsOff, tyro.conf.DisallowNone))
    except SystemExit as exit_:
        if exit_.code != EXIT_USER_ERROR:
            raise
    raise UserError(one_line(messages.getvalue(), Path(sys.argv[0]).name)) from None


def path_from_environment(given: Path | None, variable: str, flag_name: str) -> Path:
    """Return the flag's path, or the environment's, or .env's (see `folder_of`), with ~ expanded.

    Raises: UserError if none of them is set, or .env cannot be understood.
    """
    path = folder_of(variable) if given is None else Path(os.path.expanduser(str(given).strip()))
    expect(path is not None, flag_name, f"a folder, or {variable} in the environment or in .env", "neither",
           f"Give {flag_name} DIR, or copy .env.example to .env and edit it.")
    return path


def as_dict(settings: object) -> dict:
    """Return a settings dataclass as JSON values; paths become text."""
    return {key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(settings).items()}


def as_command(name: str, settings: object) -> str:
    """Return the command line of `vqvae2 name` that gives these settings, without flags at their defaults.

    A path below the working folder is relative to it, and one below the home folder begins with ~. Settings have no
    positional words.
    """
    words = ["vqvae2", name]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default or value is None:
            continue
        words.append(flag(field.name) if value is not False else f"--no-{field.name.replace('_', '-')}")
        if not isinstance(value, bool):
            words += [_pasted(str(each)) for each in (value if isinstance(value, tuple) else (value,))]
    return " ".join(words)


def _pasted(text: str) -> str:
    """Return a value as it is written in a shell, its path shortened."""
    path, home = Path(text), Path(os.path.expanduser("~"))
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return shlex.quote(str(path.relative_to(Path.cwd())))
    if path.is_absolute() and len(home.parts) > 1 and path.is_relative_to(home):
        return f"~/{shlex.quote(str(path.relative_to(home)))}"
    return shlex.quote(text)


def changes(new: dict, old: dict) -> list[str]:
    """Return how settings differ from older ones, such as `--seed 5 (was 0)`; what `old` lacks is left out."""
    def words(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    return [f"{flag(name)} {words(value)} (was {words(old[name])})" for name, value in new.items()
            if old.get(name, value) != value]


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


def folder_of(variable: str) -> Path | None:
    """Return the folder that `variable` names in the environment, else in .env; None if neither does.

    .env is looked for in the working folder, then beside the script that was started, and an empty value counts as
    none. A relative path in it starts from the folder that it is in.
    Raises: UserError where .env cannot be read, or its line for the variable cannot be understood.
    """
    for folder in (None, Path(), Path(sys.argv[0]).resolve().parent):
        text = os.environ.get(variable, "") if folder is None else _in_file(folder / ".env", variable)
        if text := text.strip(" '\"\r\n"):
            return (folder or Path()) / os.path.expanduser(os.path.expandvars(text))
    return None


def _in_file(path: Path, variable: str) -> str:
    """Return the variable's value in a .env, "" if there is none."""
    if not path.is_file():  # some keep a virtual environment in a folder of that name
        return ""
    try:
        raw = path.read_bytes()
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's echo writes it
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a file in UTF-8 that can be read, found {error}. Change its permissions or "
                        "encoding, or give the folder by its flag.") from None
    value = dotenv_values(stream=io.StringIO(text)).get(variable)
    lines = re.findall(rf"^[^\n#=]*\b{variable}\b.*", text, re.MULTILINE | re.IGNORECASE)
    expect(value is not None or not lines, str(path), f"{variable}=FOLDER", "".join(lines[:1]).strip(),
           "Correct that line.")
    return value or ""
