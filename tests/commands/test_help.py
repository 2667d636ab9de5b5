"""--help of every script is its docstring and all flags, and every command that we tell people to paste would run."""

import dataclasses
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from pasted import commands_in, module_and_arguments, settings_of

from vqvae2.commands import COMMANDS
from vqvae2.common.errors import UserError
from vqvae2.settings import checks

ROOT = Path(__file__).parents[2]
FRONT_DOORS = {"extract_slices": "extract", "train_vqvae": "train-vqvae", "train_pixel_cnn": "train-prior",
               "train_decoder": "train-decoder", "sample": "sample", "evaluate": "evaluate", "predict": "predict",
               "make_demo_scans": "demo-scans"}
WITH_FLAGS = [*(f"vqvae2.commands.{word.replace('-', '_')}" for word in COMMANDS if word != "status"),
              "tools.make_results"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "launch").rglob("*")),
         *sorted((ROOT / "pretrained").rglob("*.md"))]
PAGES.remove(ROOT / "docs/commands.md")  # the manuals, whose commands are tried one test above


def commands_of(page):
    return commands_in(page.read_text(encoding="utf-8")) if page.is_file() else []


@pytest.mark.parametrize(("script", "command"), FRONT_DOORS.items())
def test_a_script_of_the_design_is_a_front_door_to_its_command(script, command, monkeypatch):
    called = []
    room = importlib.import_module(f"vqvae2.commands.{command.replace('-', '_')}")
    monkeypatch.setattr(room, "main", called.append)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--some", "words"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert (called, sys.argv[0]) == ([["--some", "words"]], f"{script}.py")
    assert f"vqvae2 {command}" in importlib.import_module(script).__doc__


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_help_is_the_docstring_word_for_word_and_every_flag(name, capsys):
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    shown = capsys.readouterr()
    assert (end.value.code, shown.err) == (0, "")
    assert shown.out.startswith(module.__doc__.rstrip())
    own = re.search(r"parse\(([\w.]+), __doc__", Path(module.__file__).read_text(encoding="utf-8"))[1]
    for field in attrgetter(own)(module).__dataclass_fields__:
        flag = {"input": "INPUT", "run": "RUN", "runs": "RUN", "reports": "REPORT",
                "out": "(--out|OUT)"}.get(field) or checks.flag(field)
        assert re.search(rf"^\W*(-\w \w+, )?{flag}\b", shown.out, re.M), field


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_every_command_in_a_manual_is_one_that_is_taken(name, monkeypatch):
    commands = commands_in(importlib.import_module(name).__doc__)
    assert any(module_and_arguments(words)[0] == name for words in commands)
    for words in commands:
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
        with pytest.raises(UserError, match=r"unrecognized --planets axial\. Perhaps you meant --planes\."):
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
