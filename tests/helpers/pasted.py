"""A text -> the commands in it that a person would paste, and the settings that each command gives."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from vqvae2.commands import COMMANDS
from vqvae2.settings import parsing

PARSE = parsing.parse
MODULES = {word: word.replace("-", "_") for word in COMMANDS} | {
    "extract_slices.py": "extract", "train_pixel_cnn.py": "train_prior", "make_demo_scans.py": "demo_scans",
    **{f"{name}.py": name for name in ("train_vqvae", "train_decoder", "sample", "evaluate", "predict")}}
"""A word or script on a command line -> the module in vqvae2/commands/ that reads the words after it."""
PYTHON = r"([.\w/]*/)?python3? (-m (torch\.distributed\.run|vqvae2|tools\.\w+) |\w+\.py\b)"
COMMAND = re.compile(rf"\s*(\$ )?(\w+=\S+ )*({PYTHON}|vqvae2 )")


def commands_in(text: str) -> list[list[str]]:
    """Return the commands of this project in a text, as lists of words; a backslash continues a line."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [shlex.split(line, comments=True) for line in lines if COMMAND.match(line)]


def module_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    """Return the module that a command runs, and the words that the module's main takes."""
    for number, word in enumerate(words):
        if word == "vqvae2":
            return f"vqvae2.commands.{MODULES[words[number + 1]]}", words[number + 2:]
        if word.startswith("tools."):
            return word, words[number + 1:]
        if word.endswith(".py"):
            return f"vqvae2.commands.{MODULES[Path(word).name]}", words[number + 1:]
    raise AssertionError(f"no command of this project: {words}")


def settings_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return the settings that a command gives; nothing but the parsing of the command line is run."""
    name, arguments = module_and_arguments(words)
    if "torch.distributed.run" in words:
        launcher = words[words.index("torch.distributed.run") + 1:]
        parse_args(launcher)
    module = importlib.import_module(name)

    class ParsedError(Exception):
        pass

    def parse(settings, manual, arguments=None):
        raise ParsedError(PARSE(settings, manual, arguments))

    for holder in (module, parsing):
        monkeypatch.setattr(holder, "parse", parse, raising=False)
    with pytest.raises(ParsedError) as parsed:
        module.main(arguments)
    return parsed.value.args[0]
