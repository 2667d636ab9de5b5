"""docs/commands.md is what `--help` prints, and the site that MkDocs builds finds links that lead nowhere."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tools import make_reference
from vqvae2.commands import COMMANDS

ROOT = Path(__file__).parents[2]
SHOWN = """Scans -> slices.

    vqvae2 extract --out a

usage: vqvae2 extract [-h] [OPTIONS]

╭─ options ─────────────────────────────────────────────╮
│ -h, --help    show this help message and exit         │
│ --out PATH    Folder, or <out>/a_b_*. (required)      │
│ --size INT    Pixels. (default: 256)                  │
│ --list, --no-list                                     │
│               Print the scans. (default: False)       │
│ --planes {axial,coronal} ...                          │
│               One plane                               │
│               or more. (default: axial)               │
│ --mask PATH   A picture (PNG). (default: None)        │
│ --scans PATH  Without it: OASIS_PATH.                 │
╰───────────────────────────────────────────────────────╯
"""


@pytest.fixture(scope="module")
def page():
    return make_reference.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_help_prints(page):
    assert make_reference.page() == page, "docs/commands.md differs from --help. Run: python -m tools.make_reference"


def test_the_page_has_a_section_for_every_command_and_no_other(page):
    assert re.findall(r"^## vqvae2 (.*)$", page, re.MULTILINE) == list(COMMANDS)


def test_flags_have_their_kind_of_value_their_default_and_their_sentence():
    assert make_reference.flags_of(SHOWN) == [
        ("--out PATH", "required", "Folder, or <out>/a_b_*."), ("--size INT", "256", "Pixels."),
        ("--list", "off", "Print the scans."), ("--planes {axial,coronal} ...", "axial", "One plane or more."),
        ("--mask PATH", "", "A picture (PNG)."), ("--scans PATH", "", "Without it: OASIS_PATH.")]


def test_a_section_is_the_manual_and_a_table_in_which_nothing_is_taken_for_markdown():
    section = make_reference.section("extract", SHOWN)
    assert section.startswith("\n## vqvae2 extract\n\n```text\nScans -> slices.\n")
    assert "\n\n    vqvae2 extract --out a\n```\n\n| flag | default | what it is |\n|---|---|---|\n| `--out" in section
    assert "| `--out PATH` | required | Folder, or &lt;out>/a\\_b\\_\\*. |\n" in section


def test_a_command_without_flags_has_its_manual_alone():
    assert make_reference.section("status", "A run -> how far it is.\n") == (
        "\n## vqvae2 status\n\n```text\nA run -> how far it is.\n```\n")


@pytest.fixture
def build_page(tmp_path):
    """Build a site of one page with this project's settings, and return the page's HTML."""
    def build_one(text):
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs/index.md").write_text(text)
        (tmp_path / "LICENSE").touch()
        build(load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(tmp_path / "docs"), site_dir=str(tmp_path / "site"),
                          nav=["index.md"], strict=True))
        return (tmp_path / "site/index.html").read_text()
    return build_one


def test_a_link_to_a_file_outside_the_site_becomes_its_name(build_page):
    shown = build_page("# A\n\nUnder the [MIT\nlicence](../LICENSE), [LICENSE](../LICENSE).\n")
    assert "Under the MIT\nlicence (<code>LICENSE</code>), LICENSE." in shown


@pytest.mark.parametrize("link", ["../GONE", "gone.md", "#gone", "gone.png"])
def test_a_link_that_leads_nowhere_fails_the_build(build_page, link):
    with pytest.raises(Abort, match="1 warnings in strict mode"):
        build_page(f"# A\n\n[b]({link})\n")


def test_no_page_of_the_site_asks_the_network_for_anything(build_page):
    shown = build_page("# A\n\n```sh\nls\n```\n")
    assert re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//', shown) == []
