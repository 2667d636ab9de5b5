r"""Logs of training runs -> their curves on one plot, with a panel for each metric and a line for each run.

Two runs, by name or by folder; a run that is still going is plotted as far as it is:
    vqvae2 curves brain-128 results/oasis/brain-256 --out curves.png
All runs of a data set over the time that they took:
    vqvae2 curves results/oasis/* --x seconds --out curves.png

Metrics are those of the validation images, or of the training images if no run has validation images. VQ-VAEs and
priors may be mixed: a panel shows the runs that have its metric. Compare a loss only between runs with the same weights
of the loss's parts.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.commands import endings
from vqvae2.common.errors import UserError, expect
from vqvae2.plots.charts import MOST_RUNS, Run, compare_curves
from vqvae2.runs import weights
from vqvae2.runs.log import LOG, read_log
from vqvae2.settings.checks import Checked
from vqvae2.settings.parsing import parse

FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Checked):
    """Settings of `vqvae2 curves`."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Runs: folders that have a log.csv, or names in <results>/*/ or pretrained/."""
    out: Path = Path("curves.png")
    """The plot: .png, .pdf or .svg."""
    x: Literal["images_seen", "epoch", "seconds"] = "images_seen"
    """The horizontal axis: compare runs with different batches and data by images seen, or by time."""
    title: str = "Training curves"
    """Title above the plot."""
    results: Path = Path("results")
    """Folder that holds all runs."""

    RULES = (("out", lambda out: out.suffix.lower() in FORMATS, f"a name that ends in {', '.join(FORMATS)}",
              "Try curves.png."),)


def read_runs(names: Sequence[str], results: Path = Path("results")) -> list[Run]:
    """Return the logs of some runs; a run is called by its folder, by its whole path where two have the same name.

    Raises: UserError if there are none or too many, a run is not found or given twice, or its log is empty or holds
        something else than numbers.
    """
    expect(1 <= len(names) <= MOST_RUNS, "RUN", f"1 to {MOST_RUNS} runs", len(names),
           "Name some, such as results/oasis/brain-128; about ten can be told apart easily.")
    found: dict[Path, Path] = {}
    for name in names:
        folder = weights.find_run(name, "RUN", results, LOG)  # a young run has no weights yet
        expect(folder.resolve() not in found, f"RUN {name}", "each run once", f"{folder} twice", "Drop one.")
        found[folder.resolve()] = folder
    logs = [read_log(folder / LOG) for folder in found.values()]
    for folder, rows in zip(found.values(), logs):
        expect(bool(rows), str(folder / LOG), "a table with a row for each epoch", "0 rows",
               "Point at a folder in which a training script is running or has run.")
    short = [folder.name for folder in found]
    return [Run((name if short.count(name) == 1 else str(folder)) + _kind(folder), rows)
            for name, folder, rows in zip(short, found.values(), logs)]


def _kind(folder: Path) -> str:
    """Return what a run has learned, for the legend, where its config.json says so and it is no VQ-VAE."""
    with suppress(UserError):
        kind = weights.read_config(folder).get("kind", "vqvae")
        return "" if kind == "vqvae" else f" ({kind})"
    return ""


def main(arguments: list[str] | None = None) -> None:
    """Draw the curves of the runs that the command line names on one plot."""
    settings = parse(CompareSettings, __doc__, arguments)
    # matplotlib signs what it draws; anything else was not drawn by this command.
    expect(not settings.out.exists() or (settings.out.is_file() and b"atplotlib" in settings.out.read_bytes()),
           f"--out {settings.out}", "nothing, or earlier curves", "another file", "Choose another name.")
    runs = read_runs(settings.runs, settings.results)
    figure = compare_curves(runs, settings.out, x=settings.x, title=settings.title)
    print(f"{settings.out}: {len(runs)} run(s), {len(figure.axes)} panel(s)")
    endings.say(settings.out)
