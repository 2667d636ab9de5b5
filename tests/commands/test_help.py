"""--help of every script is its docstring and all flags, and every command that we tell people to paste would run."""

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from vqvae2 import config
from vqvae2.settings import checks, parsing

ROOT = Path(__file__).parents[2]
PARSE = parsing.parse
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if "parse(" in path.read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "launch").rglob("*")),
         *sorted((ROOT / "pretrained").rglob("*.md"))]


def commands_in(text):
    """Commands that start with python in a text, as lists of words; a backslash continues a line."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [shlex.split(line, comments=True) for line in lines
            if re.match(r"\s*(\$ )?([.\w/]*/)?python3? (-m torch\.distributed\.run |\w+\.py\b)", line)]


def settings_of(words, monkeypatch):
    """The settings that a command gives its script; no more of the script than its parsing is run."""
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    if "torch.distributed.run" in words[:at]:
        parse_args(words[words.index("torch.distributed.run") + 1:])
    module = importlib.import_module(Path(words[at]).stem)

    class ParsedError(Exception):
        pass

    def parse(settings, manual, arguments=None):
        raise ParsedError(PARSE(settings, manual, arguments))

    for holder in (module, config):
        monkeypatch.setattr(holder, "parse", parse, raising=False)
    with pytest.raises(ParsedError) as parsed:
        module.main(words[at + 1:])
    return parsed.value.args[0]


def docstring_of(script):
    return ast.get_docstring(ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8")), clean=False)


def commands_of(page):
    return commands_in(page.read_text(encoding="utf-8")) if page.is_file() else []


def test_the_scripts_of_the_design_are_here():
    assert {"make_demo_scans", "train_vqvae", "train_pixel_cnn", "sample", "evaluate", "predict"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_docstring_word_for_word_and_every_flag(script, capsys):
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    shown = capsys.readouterr()
    assert (end.value.code, shown.err) == (0, "")
    assert shown.out.startswith(docstring_of(script).rstrip())
    own = re.search(r"parse\((\w+), __doc__", (ROOT / f"{script}.py").read_text(encoding="utf-8"))[1]
    for name in getattr(module, own).__dataclass_fields__:
        flag = "INPUT" if name == "input" else checks.flag(name)  # the one thing that is named without a flag
        assert re.search(rf"^\W*(-\w \w+, )?{flag}\b", shown.out, re.M), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_in_a_docstring_is_one_that_its_script_takes(script, monkeypatch):
    commands = commands_in(docstring_of(script))
    assert commands
    for words in commands:
        assert f"{script}.py" in words
        assert dataclasses.is_dataclass(settings_of(words, monkeypatch)), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one_that_its_script_takes(page, monkeypatch):
    commands = commands_of(page)
    if not commands:
        pytest.skip("no command on it")
    for words in commands:
        assert dataclasses.is_dataclass(settings_of(words, monkeypatch)), words


def test_every_target_of_make_that_the_readme_names_exists():
    named = set(re.findall(r"^\s*(?:\$ )?make ([a-z]+)\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    assert named <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


class TestReading:
    """What these tests read is what a person would paste."""

    def test_a_command_goes_on_after_a_backslash(self):
        text = ("One process:\n    python sample.py --vqvae a \\\n        --top 'b c'   # a note\nTwo:\n"
                "    $ .venv/bin/python -m torch.distributed.run --nnodes=1 train_vqvae.py --batch 2\n"
                "python is a snake\n")
        assert commands_in(text) == [
            ["python", "sample.py", "--vqvae", "a", "--top", "b c"],
            ["$", ".venv/bin/python", "-m", "torch.distributed.run", "--nnodes=1", "train_vqvae.py", "--batch", "2"]]

    def test_a_command_that_has_gone_stale_is_found(self, monkeypatch):
        with pytest.raises(config.UserError, match=r"unrecognized --planets axial\. Perhaps you meant --planes\."):
            settings_of(["python", "extract_slices.py", "--planets", "axial"], monkeypatch)
        with pytest.raises(SystemExit, match="2"):
            settings_of(["python", "-m", "torch.distributed.run", "--nprocs=8", "train_vqvae.py"], monkeypatch)

    def test_settings_are_those_of_the_command(self, monkeypatch):
        words = shlex.split("python -m torch.distributed.run --standalone --nproc_per_node=8 train_vqvae.py --batch 16 "
                            "--epochs 60 --savename brain-256")
        settings = settings_of(words, monkeypatch)
        assert (settings.batch, settings.epochs, settings.savename) == (16, 60, "brain-256")


def test_a_real_process_prints_help_and_exits_0(apart):
    done = subprocess.run([sys.executable, ROOT / "make_demo_scans.py", "--help"], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--subjects INT" in done.stdout
