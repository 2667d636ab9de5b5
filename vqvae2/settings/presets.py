"""A name, or a file -> defaults of the training scripts, and back to a file that can be read as documentation.

A preset is a TOML file: comments that explain it, `about`, and tables of settings, named as the flags are with _ for -.

    about = "One line, for --help."
    [vqvae]                 # train_vqvae.py
    downsample = [4, 2]
    [prior]                 # train_pixel_cnn.py, whichever level; [top] and [bottom] are of one alone
    layers = 8

Those that come with the project lie in vqvae2/presets/. A flag beats them, and what they leave out is the
scripts' own default.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import TypeVar, get_type_hints

import tyro

from vqvae2.common.errors import UserError
from vqvae2.settings.messages import TYRO

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "presets"
SUFFIX = ".toml"
TABLES = ("vqvae", "prior", "top", "bottom")
Settings = TypeVar("Settings")


def names() -> list[str]:
    """Return the names of the presets that come with the project."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def path_of(name: str) -> Path:
    """Return the file of a preset: `name` itself where it ends in .toml, else that of this name in vqvae2/presets/.

    Raises: UserError if there is none.
    """
    path = Path(os.path.expanduser(name)) if name.endswith(SUFFIX) else FOLDER / f"{name}{SUFFIX}"
    if not (name in names() or (name.endswith(SUFFIX) and path.is_file())):
        raise UserError(f"--preset {name}: expected one of {', '.join(names())}, or a {SUFFIX} file, found neither. "
                        "See --help.")
    return path


def load(name: str, *tables: str) -> dict[str, object]:
    """Return what a preset sets: its `tables` (of TABLES), later ones beating earlier ones; lists become tuples.

    Raises: UserError if there is no such preset, it cannot be read, or it has a table of another name.
    """
    read = _read(path_of(name))
    return {key: tuple(value) if isinstance(value, list) else value
            for table in tables for key, value in read.get(table, {}).items()}


def about(name: str) -> str:
    """Return a preset's line for --help."""
    return str(_read(path_of(name)).get("about", ""))


def listing() -> str:
    """Return the presets that come with the project, a line each, for --help."""
    width = max((len(name) for name in names()), default=0)
    return "\n".join(["Presets (--preset NAME; each is a file in vqvae2/presets/, and flags beat it):",
                      *(f"    {name:{width}}  {about(name)}" for name in names())])


def text(about: str, comments: str, tables: dict[str, dict[str, object]]) -> str:
    """Return the text of a preset.

    Args:
        about: its line for --help. comments: what explains it, some lines.
        tables: of TABLES, settings of JSON's kinds by their field's name.
    """
    lines = [f"# {line}".rstrip() for line in comments.splitlines()]
    lines += ["", f"about = {json.dumps(about, ensure_ascii=False)}"]
    for table, values in tables.items():
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}"
                                      for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--preset {path.name}: expected a TOML file, found {' '.join(str(error).split())}. "
                        f"See vqvae2/presets/ for examples.") from None
    for table, values in found.items():
        if table != "about" and not (table in TABLES and isinstance(values, dict)):
            raise UserError(f"--preset {path.name}: expected about, [{'], ['.join(TABLES)}], found {table}. "
                            "See vqvae2/presets/ for examples.")
    return found


def has_one(settings: type) -> bool:
    """Return whether a settings dataclass has a field `preset`."""
    return any(one.name == "preset" for one in dataclasses.fields(settings))


def as_default(settings: type[Settings], arguments: list[str]) -> dict[str, Settings]:
    """Return what tyro is to be told where --preset is among the arguments: other defaults, else nothing.

    Raises: UserError if there is no such preset, or it sets what the script does not have.
    """
    name = _last_given("--preset", arguments)
    if name is None or not has_one(settings):
        return {}
    if name.startswith("-"):
        raise UserError(f"--preset: expected one of {', '.join(names())}, or a {SUFFIX} file, found {name}. "
                        "Give one, or leave the flag out.")
    stem = path_of(name).stem
    if "level" in get_type_hints(settings):
        level = _last_given("--level", arguments)
        values = {"savename": f"{stem}-{level or 'top'}", "vqvae": stem} | _typed(
            settings, name, load(name, "prior", str(level)))
    else:
        values = {"savename": stem} | _typed(settings, name, load(name, "vqvae"))
    made = object.__new__(settings)  # __post_init__ is for the whole, of which the flags are still to come
    for one in dataclasses.fields(settings):
        default = tyro.MISSING if one.default is dataclasses.MISSING else one.default
        object.__setattr__(made, one.name, values.get(one.name, default))
    return {"default": made}


def without_switches_that_are_on(arguments: list[str], default: object = None) -> list[str]:
    """Return a command line without switches that a preset has on: of those tyro knows no more than --no-standardise.

    Where both --standardise and --no-standardise are given, the last one counts, as with any flag.
    """
    for one in dataclasses.fields(default) if default else ():
        if getattr(default, one.name) is True:
            on, off = (f"--{no}{one.name}".replace("_", "-") for no in ("", "no-"))
            given = [word for word in arguments if word.replace("_", "-") in (on, off)]
            stays_on = given[-1:] and given[-1].replace("_", "-") == on
            arguments = [word for word in arguments if word.replace("_", "-") not in ((on, off) if stays_on else (on,))]
    return arguments


def _typed(settings: type, name: str, values: dict[str, object]) -> dict[str, object]:
    """Return a preset's values as those of the settings' own types, read as on the command line. Raises: UserError."""
    kinds, typed = get_type_hints(settings), {}
    for key, value in values.items():
        if key not in kinds or key in ("preset", "level"):  # a level's settings have a table
            raise UserError(f"--preset {name}: expected settings that {Path(sys.argv[0]).name} has, found {key}. "
                            "They are named as the flags of --help, with _ for -.")
        words = [os.path.expanduser(str(one)) for one in (value if isinstance(value, tuple) else (value,))]
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                typed[key] = tyro.cli(kinds[key], args=words, config=TYRO)
        except SystemExit:
            raise UserError(f"--preset {name}: expected {key} as --{key.replace('_', '-')} takes it, found "
                            f"{' '.join(words)}. See --help.") from None
    return typed


def _last_given(flag: str, arguments: list[str]) -> str | None:
    """Return the value of a flag among the words of a command line, None if it is not there."""
    values = [word.split("=", 1)[1] if "=" in word else after
              for word, after in zip(arguments, [*arguments[1:], ""]) if word.split("=", 1)[0] == flag]
    return values[-1] if values and values[-1] else None
