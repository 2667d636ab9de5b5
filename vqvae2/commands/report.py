"""Folders of evaluate.py -> one HTML page that compares them, or one report's page anew.

    vqvae2 report report-a report-b --out comparison.html
The page of one folder, made again from its files:
    vqvae2 report report --out report/index.html

The page needs no network and no other file: send it as it is. It has a column for each report beside the real slices, a
verdict on each, and their pictures side by side; where reports show the same images, one slider compares their
reconstructions. It says where reports differ in split, data or images, so that they are not comparable.

Nothing is computed: the page is made of metrics.json, evaluate.json and the pictures in the folders. A folder that an
earlier version has made lacks pairs.png, and its page the slider.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2.commands import endings
from vqvae2.common.errors import expect
from vqvae2.evaluation import page
from vqvae2.settings.checks import Checked
from vqvae2.settings.parsing import parse


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Checked):
    """Settings of `vqvae2 report`."""

    reports: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="REPORT...")]
    """Folders of evaluate.py, in the order of the columns."""
    out: Path = Path("report.html")
    """The page."""

    RULES = (("out", lambda out: out.suffix.lower() in (".html", ".htm"), "a name that ends in .html",
              "Try report.html."),)


def main(arguments: list[str] | None = None) -> None:
    """Write the page of the reports that the command line names."""
    settings = parse(ReportSettings, __doc__, arguments)
    # Anything else was not made by this software.
    expect(not settings.out.exists() or (settings.out.is_file() and page.is_page(settings.out.read_bytes())),
           f"--out {settings.out}", "nothing, or an earlier page", "another file", "Choose another name.")
    page.write(settings.reports, settings.out)
    endings.say(settings.out)
