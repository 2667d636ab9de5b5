"""A command line, the environment, .env -> a frozen dataclass of settings, and such a dataclass -> JSON and back.

The sentence under a field is what `--help` prints. A flag beats the environment, which beats .env."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path
from typing import TypeVar

import tyro

from vqvae2.common.errors import EXIT_USER_ERROR, UserError
from vqvae2.settings import environment, presets
from vqvae2.settings.checks import expect
from vqvae2.settings.messages import TYRO, completed, one_line

Settings = TypeVar("Settings")


def parse(settings: type[Settings], manual: str, arguments: list[str] | None = None) -> Settings:
    """Return the settings that the command line gives; `--help` prints `manual` first and exits 0.

    The flags of a preset come before the others, of which the last counts where a flag is given twice.
    Raises: UserError for a flag or value that does not fit, with what would.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    of_preset = presets.words(settings, arguments)
    arguments = completed([*of_preset, *arguments])
    if {"-h", "--help"} & set(arguments):
        print(manual)  # not as tyro's description: it would join lines, and a command could not be pasted
        if "preset" in settings.__dataclass_fields__:
            print(presets.listing(), *(["\nThe chosen preset stands for", *of_preset] if of_preset else ()))
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(settings, description="", config=TYRO, args=arguments)
    except SystemExit as exit_:
        if exit_.code != EXIT_USER_ERROR:
            raise
    raise UserError(one_line(messages.getvalue(), Path(sys.argv[0]).name)) from None


def path_from_environment(given: Path | None, variable: str, flag_name: str) -> Path:
    """Return the flag's path, or the environment's, or .env's (see `environment.folder_of`), with ~ expanded.

    Raises: UserError if none of them is set, or .env cannot be understood.
    """
    path = environment.folder_of(variable) if given is None else Path(os.path.expanduser(str(given).strip()))
    expect(path is not None, flag_name, f"a folder, or {variable} in the environment or in .env", "neither",
           f"Give {flag_name} DIR, or copy .env.example to .env and edit it.")
    return path


def as_dict(settings: object) -> dict:
    """Return a settings dataclass as JSON values; paths become text."""
    return {key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(settings).items()}


def from_dict(settings: type[Settings], values: dict) -> Settings:
    """Return a settings dataclass from what `as_dict` made of it; values that this version lacks are left out."""
    return settings(**{key: Path(value) if key in ("data", "results") and value is not None else
                       tuple(value) if isinstance(value, list) else value
                       for key, value in values.items() if key in settings.__dataclass_fields__})
