"""What the commands of the pages write into a checkout is ignored by git, and nothing of the project is."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from pasted import commands_in

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a checkout")


def git(*words: str) -> list[str]:
    return subprocess.run(["git", "-c", f"safe.directory={ROOT}", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False).stdout.splitlines()


def outputs_in(text: str) -> set[str]:
    """The values of --out that lead into the checkout."""
    return {value for words in commands_in(text) for flag, value in itertools.pairwise(words)
            if flag == "--out" and not value.startswith(("~", "/", "$"))}


def test_outputs_are_found_in_a_page():
    page = "```sh\npython sample.py --count 3 \\\n    --out samples\nvqvae2 extract --out ~/slices\n```"
    assert outputs_in(page) == {"samples"}
    assert len(outputs_in(PAGES[0].read_text(encoding="utf-8"))) > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_writes_with_out_is_ignored(page):
    named = sorted(outputs_in(page.read_text(encoding="utf-8")))
    inside = [name if Path(name).suffix else f"{name}/file" for name in named]
    assert set(inside) - set(git("check-ignore", *inside) if inside else ()) == set()


@pytest.mark.parametrize("name", ["brains", "demo", "my-brains", "predicted", "report", "samples", "completed",
                                  "slices", "results", "data", "site", "wandb", "mlruns"])
def test_outputs_are_ignored_at_the_root_and_nowhere_else(name):
    assert git("check-ignore", f"{name}/x.png", f"vqvae2/{name}/x.png") == [f"{name}/x.png"]


def test_no_file_of_the_project_is_ignored():
    assert len(git("ls-files")) > 100
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
