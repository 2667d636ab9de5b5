"""A preset's name, or a file -> flags of the commands, and back to a file that reads as documentation.

A preset is a TOML file: comments that explain it, `about`, and tables of settings, named as the flags are with _ for -.

    about = "One line, for --help."
    [extract]               # for extract_slices.py
    per_scan = 20
    [vqvae]                 # for train_vqvae.py
    downsample = [4, 2]
    [prior]                 # for train_pixel_cnn.py at both levels; [top] and [bottom] are for one level
    layers = 8
    [decoder]               # for train_decoder.py
    width = 64
    [sample]                # for sample.py
    temperature = [0.9, 0.7]
    [evaluate]              # for evaluate.py
    samples = 128
    [minutes]               # how long each step takes somewhere, by which `vqvae2 run` guesses what is left
    vqvae = 44

The presets that come with the project lie in vqvae2/presets/. A preset's settings are put before the command line as
flags, so that a flag of the user beats them, and a command's own default holds for what a preset leaves out.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vqvae2.common.errors import UserError, expect, flag

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "presets"
SUFFIX = ".toml"
CHAIN = "chain"
"""TABLE of the settings of a command that runs others, and gives them the preset."""
TABLES = ("extract", "vqvae", "prior", "top", "bottom", "decoder", "sample", "evaluate", "minutes")


def names() -> list[str]:
    """Return the names of the presets that come with the project."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def path_of(name: str) -> Path:
    """Return the file of a preset: `name` itself where it ends in .toml, else that of this name in vqvae2/presets/.

    Raises: UserError if there is none.
    """
    path = Path(os.path.expanduser(name)) if name.endswith(SUFFIX) else FOLDER / f"{name}{SUFFIX}"
    expect(name in names() or (name.endswith(SUFFIX) and path.is_file()), f"--preset {name}",
           f"one of {', '.join(names())}, or a {SUFFIX} file", "neither", "See --help.")
    return path


def load(name: str, *tables: str) -> dict[str, object]:
    """Return what a preset sets: its `tables` (of TABLES), later ones beating earlier ones.

    Raises: UserError if there is no such preset, it cannot be read, or it has a table of another name.
    """
    read = _read(path_of(name))
    return {key: value for table in tables for key, value in read.get(table, {}).items()}


def about(name: str) -> str:
    """Return a preset's line for --help."""
    return str(_read(path_of(name)).get("about", ""))


def is_for_chain(name: str) -> bool:
    """Return whether a preset has what the whole chain needs, from scans to a prior."""
    return load(name, "vqvae").get("dataset") == "oasis" and bool(load(name, "extract") and load(name, "prior"))


def listing(table: str) -> str:
    """Return the presets that come with the project and have a table, or suit CHAIN, a line each, for --help."""
    having = [name for name in names() if (is_for_chain(name) if table == CHAIN else load(name, table))]
    width = max(map(len, having), default=0)
    return "\n".join(["Presets (--preset NAME; each is a file in vqvae2/presets/, and flags beat it):",
                      *(f"    {name:{width}}  {about(name)}" for name in having)])


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


def _models(name: str) -> dict[str, str]:
    """Return the flags for the models that the trainings with a preset have made, under the names that they have."""
    stem = path_of(name).stem
    levels = ("top", "bottom") if load(name, "vqvae").get("levels") != 1 else ("top",)
    return {"vqvae": stem, **{level: f"{stem}-{level}" for level in levels if load(name, "prior")},
            **({"decoder": f"{stem}-decoder"} if load(name, "decoder") else {})}


def _read(path: Path) -> dict:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--preset {path.name}: expected a TOML file, found {' '.join(str(error).split())}. "
                        f"See vqvae2/presets/ for examples.") from None
    for table, values in found.items():
        expect(table == "about" or (table in TABLES and isinstance(values, dict)), f"--preset {path.name}",
               f"about, [{'], ['.join(TABLES)}]", table, "See vqvae2/presets/ for examples.")
    return found


def words(settings: type, arguments: Sequence[str]) -> list[str]:
    """Return the flags that the preset among the arguments stands for; flags after these beat them.

    Raises: UserError if there is no such preset, or it sets what the command does not have.
    """
    given = dict(re.findall(r"^--(preset|level)[=\n](.+)", "\n".join(arguments), re.MULTILINE))
    fields = settings.__dataclass_fields__
    if "preset" not in given or "preset" not in fields or settings.TABLE == CHAIN:
        return []
    name, stem, level = given["preset"], path_of(given["preset"]).stem, given.get("level", "")
    named = {"extract": {}, "vqvae": {"savename": stem}, "prior": {"savename": f"{stem}-{level}", "vqvae": stem},
             "decoder": {"savename": f"{stem}-decoder", "vqvae": stem}}
    named = named[settings.TABLE] if settings.TABLE in named else _models(name)
    values = load(name, *filter(None, (settings.TABLE, level)))
    expect(bool(values), f"--preset {name}", f"a preset with the table [{settings.TABLE}]", "one without it",
           "Give flags, or one of the presets that --help lists.")
    made = []
    for key, value in (named | values).items():
        expect(key in fields and key not in ("preset", "level"), f"--preset {name}",
               f"settings that {Path(sys.argv[0]).name} has", key,
               "They are named as the flags of --help, with _ for -.")
        listed = value if isinstance(value, list) else [] if value is True else [value]
        made += [] if value is False else [flag(key), *map(str, listed)]  # every switch is off by default
    return [*made, "--preset", name]
