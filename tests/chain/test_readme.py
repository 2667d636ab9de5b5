"""The README is a program: its blocks run in order in one folder, and what stands beside them is true."""

import re
import shutil
from pathlib import Path

import pytest
import same_process
from matplotlib.figure import Figure
from pasted import commands_in

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
MOST_WORDS = 750
SMALL = "--preset smoke --processes 1"
AT_TINY_SIZE = {"make venv && source .venv/bin/activate": "", "make demo": "the recipe of make demo",
                "--preset pretrained-128": "--preset pretrained-128 --count 2",
                "--preset brain-128": SMALL}
"""What the test runs in place of what the README says, so that no model is trained for hours."""


def recipe_of_make_demo():
    """The commands of `make demo`, with fewer people and the preset of the smallest models."""
    recipe = re.search(r"^demo: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    commands = [re.search(r"-m (vqvae2 [^>]+)", line)[1] for line in recipe.splitlines()]
    assert [command.split()[1] for command in commands] == ["demo-scans", "run"]
    text = "\n".join(commands)
    assert "--subjects 12" in text
    assert "--preset demo" in text
    return text.replace("--subjects 12", "--subjects 6").replace("--preset demo", SMALL)


def commands_of_the_blocks():
    """The words of each command, in order; every line of the blocks is a command, or is made one by the test."""
    text = "\n".join(BLOCKS)
    for said, run in {**AT_TINY_SIZE, "make demo": f"{recipe_of_make_demo()}\n"}.items():
        text = text.replace(said, run)
    commands = commands_in(text)
    assert len(commands) == len([line for line in text.splitlines() if line.partition("#")[0].strip()])
    return commands


@pytest.fixture(scope="module")
def folder(demo_people, tmp_path_factory):
    """A copy of the checkout in which all blocks were run; the scans of `make demo` were there already."""
    copy = tmp_path_factory.mktemp("readme") / "copy"
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: [name for name in names if name in (
        "tests", ".git", "__pycache__", "brains", "demo", "scans", "predicted", "my-brains", "results", "docs")
        or name.startswith(".")])
    shutil.copytree(demo_people, copy / "demo" / "scans")
    (copy / "scans").symlink_to("demo/scans")
    with pytest.MonkeyPatch.context() as patch, same_process.chains():
        patch.setattr(Figure, "draw", lambda figure, renderer: None)  # test_run.py draws them
        patch.chdir(copy)
        for name in ("OASIS_PATH", "SLICES_PATH", "DISPLAY"):
            patch.delenv(name, raising=False)
        for words in commands_of_the_blocks():
            same_process.run(words)
    return copy


def test_it_is_short():
    words = re.findall(r"[^\W_][\w.'/-]*", re.sub(r"!\[.*?\]\(.*?\)|\]\(.*?\)", "", README, flags=re.DOTALL))
    assert len(words) <= MOST_WORDS


def test_nothing_of_its_blocks_is_left_out_but_the_installation():
    assert len(BLOCKS) == 2
    for said in AT_TINY_SIZE:
        assert sum(block.count(said) for block in BLOCKS) == 1, said


def test_every_file_that_it_names_is_there_when_its_blocks_have_run(folder):
    named = re.findall(r"`((?:brains|demo|my-brains|predicted)/[^`]+)`", README)
    assert len(named) >= 6
    assert [name for name in named if not (folder / name).exists()] == []
    assert (folder / "predicted" / "index.html").exists()


def test_its_minutes_are_those_of_the_table_of_times():
    table = (ROOT / "docs/installation.md").read_text(encoding="utf-8").split("## How long things take")[1]
    for command, words in (("`make venv`", "2 to 3 minutes"), ("`make demo`", "4 minutes"), ("16 new brains", "20 s"),
                           ("the weights in `pretrained/` at 128 x 128", "44, 25, 70 and 12 minutes")):
        row = next(line for line in table.splitlines() if line.startswith("| ") and command in line)
        assert words in row, row
        assert words in README, words


def test_its_figures_are_those_of_the_results():
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8").split("## Where the figures come from")[0]
    exact = [float(number) for number in re.findall(r"\d+\.\d{2,}", results)]
    table = README.split("## What it reaches")[1].split("\n## ")[0]
    figures = [number for number in re.findall(r"\d+\.\d+", table) if number != "0.5"]
    assert len(figures) >= 11
    for figure in figures:
        near = 0.5 * 10 ** -len(figure.partition(".")[2]) + 1e-9
        assert any(abs(number - float(figure)) <= near for number in exact), figure
