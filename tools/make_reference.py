"""What `--help` of every command prints -> docs/commands.md, the reference of all flags.

    python -m tools.make_reference

Run it after a change of a command, a flag or the sentence under a field; a test fails until then.
"""

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path
from unittest import mock

from vqvae2.commands import COMMANDS
from vqvae2.common import files

PAGE = Path(__file__).parents[1] / "docs/commands.md"
HEAD = """# Every command and every flag

`python -m tools.make_reference` makes this page from what `--help` prints. Each section has a command's manual and a
table of its flags. A flag without a value is a switch. An empty default means that nothing is set, and the sentence
says what happens then. A preset, the environment and `.env` set other defaults ([coming-from.md](coming-from.md)).

| command | what it makes of what |
|---|---|
"""
ROW = re.compile(r"│ (\S.*?)(?: {2,}(\S.*?))? *│")
"""A flag with the kind of its value in the box that tyro draws, and the sentence where there is room beside it."""
GOES_ON = re.compile(r"│ {2,}(\S.*?) *│")
SWITCH = re.compile(r"(--\S+), --no-\S+")
SENTENCE = re.compile(r"(.*?) *(?:\((?:default: (.*)|(required))\))?")
DEFAULTS = {"None": "", "False": "off", "True": "on"}


def help_of(command: str) -> str:
    """Return what `vqvae2 COMMAND --help` prints in a terminal wide enough for every line."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with (mock.patch.object(sys, "argv", [f"vqvae2 {command}"]), mock.patch.dict("os.environ", COLUMNS="10000"),
          contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit)):
        importlib.import_module(f"vqvae2.commands.{command.replace('-', '_')}").main(["--help"])
    shown.flush()
    return shown.buffer.getvalue().decode()


def flags_of(shown: str) -> list[tuple[str, str, str]]:
    """Return the flags of a help text in its order: flag and kind of value, default, sentence."""
    rows = []
    for line in shown.splitlines():
        if found := ROW.fullmatch(line):
            rows.append([found[1], found[2] or ""])
        elif found := GOES_ON.fullmatch(line):
            rows[-1][1] = f"{rows[-1][1]} {found[1]}".strip()
    flags = []
    for name, words in rows:
        sentence, default, required = SENTENCE.fullmatch(words).groups("")
        flags.append((SWITCH.sub(r"\1", name), DEFAULTS.get(default, default) or required, sentence))
    return [flag for flag in flags if flag[0] != "-h, --help"]


def section(command: str, shown: str) -> str:
    """Return a command's section of the page, from what its `--help` prints."""
    manual, _, usage = shown.partition("\nusage: ")
    rows = "".join(f"| `{flag}` | {_text(default)} | {_text(sentence)} |\n"
                   for flag, default, sentence in flags_of(usage))
    table = f"\n| flag | default | what it is |\n|---|---|---|\n{rows}" if rows else ""
    return f"\n## vqvae2 {command}\n\n```text\n{manual.strip()}\n```\n{table}"


def _text(words: str) -> str:
    """Return a sentence in which nothing is a mark of Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", words).replace("<", "&lt;")


def page() -> str:
    """Return the whole page."""
    contents = "".join(f"| [{name}](#vqvae2-{name}) | {what} |\n" for name, what in COMMANDS.items())
    return HEAD + contents + "".join(section(name, help_of(name)) for name in COMMANDS)


if __name__ == "__main__":
    files.write_text(PAGE, page())
