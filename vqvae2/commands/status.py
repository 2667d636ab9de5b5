"""A run's folder -> how far the run is, its best epoch, and how long its epochs took.

    vqvae2 status results/oasis/brain-128
    vqvae2 status brain-128
Of all runs of a chain (`vqvae2 run`):
    vqvae2 status my-brains

Weights that were published have no state to go on from: their log says how many epochs were made.

Exit status: 0 if the run has made all its epochs, 1 if not, 2 if the run's state cannot be read.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from vqvae2.common import output, progress
from vqvae2.common.errors import expect
from vqvae2.runs.log import LOG, read_log
from vqvae2.runs.state import STATE, load_last_state
from vqvae2.runs.weights import CONFIG, WEIGHTS, find_run, read_config
from vqvae2.settings.stored import as_declared

BEST_BY = ("validate_texture", "validate_bits_per_code", "validate_reconstruction", "validate_loss")
"""Columns of log.csv. The first that a log has chose the weights that its run has kept: the lowest value is best."""


def of_epochs(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return lines about the rows of a log.csv: the best epoch and its score, and the time that the epochs took."""
    by = next((name for name in BEST_BY if any(row.get(name) for row in rows)), "")
    # An epoch without used codes is one in which a VQ-VAE did not quantise yet: its weights were not kept.
    scores = {int(float(row["epoch"])): float(row[by])
              for row in rows if by and row.get(by) and row.get("top_used") != ""}
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    lines = []
    if best := min(scores, key=scores.get, default=None):
        lines.append(f"best epoch {best}: {by.removeprefix('validate_')} {scores[best]:.4g} on validation images")
    if seconds:
        lines.append(f"an epoch took {statistics.median(seconds):.3g} s (median, without validation), all together "
                     f"{progress.in_words(sum(seconds))}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Print where the run in the folder that the command line names stands."""
    words = sys.argv[1:] if arguments is None else arguments
    output.is_result()
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    expect(len(words) == 1, "vqvae2 status", "the folder or the name of one run", f"{len(words)} argument(s)",
           "For example: vqvae2 status results/oasis/brain-128")
    chain = sorted(Path(words[0]).glob(f"results/*/*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if chain and not (Path(words[0]) / CONFIG).exists():
        missing = max([status_of(path.parent, f"{path.parent.name}: ") for path in chain])
        for name in ("samples/grid.png", "report/index.html"):
            is_there = (Path(words[0]) / name).exists()
            print(f"{name}: {'there' if is_there else 'not yet'}")
            missing |= not is_there
        raise SystemExit(missing)
    raise SystemExit(status_of(find_run(words[0], "RUN", file=CONFIG)))


def status_of(folder: Path, name: str = "") -> bool:
    """Print where a run stands, and return whether epochs are missing; `name` begins the first line."""
    config = read_config(folder)
    state, warning = load_last_state(folder, config.get("run_id"))
    epochs = as_declared(config["settings"].get("epochs"), int, f"{folder / CONFIG}.settings.epochs")
    made, step = (as_declared(state.get(key), int, f"{folder / STATE}.{key}") for key in ("epoch", "step")
                  ) if state else (0, 0)
    is_published, rows = state is None and (folder / WEIGHTS).exists(), read_log(folder / LOG)
    if is_published and rows:
        made, step = int(float(rows[-1]["epoch"])), int(float(rows[-1].get("step") or 0))
    print(*filter(None, [warning]), f"{name}{'finished' if made >= epochs else 'not finished'}: {made} of "
          f"{max(made, epochs)} epochs, {step} steps{', weights without a state to go on from' * is_published}")
    print(*(f"{'  ' * bool(name)}{line}\n" for line in of_epochs(rows)), sep="", end="")
    return made < epochs
