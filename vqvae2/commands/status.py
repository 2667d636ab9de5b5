"""A run's folder -> how far the run is.

    vqvae2 status results/oasis/brain-128
    vqvae2 status brain-128

Weights that were published have no state to go on from: their log says how many epochs were made.

Exit status: 0 if the run has made all its epochs, 1 if not, 2 if the run's state cannot be read.
"""

import sys

from vqvae2.common import output
from vqvae2.common.errors import expect
from vqvae2.runs.log import LOG, read_log
from vqvae2.runs.state import STATE, load_last_state
from vqvae2.runs.weights import CONFIG, WEIGHTS, find_run, read_config
from vqvae2.settings.stored import as_declared


def main(arguments: list[str] | None = None) -> None:
    """Print where the run in the folder that the command line names stands."""
    words = sys.argv[1:] if arguments is None else arguments
    output.is_result()
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    expect(len(words) == 1, "vqvae2 status", "the folder or the name of one run", f"{len(words)} argument(s)",
           "For example: vqvae2 status results/oasis/brain-128")
    folder = find_run(words[0], "RUN", file=CONFIG)
    config = read_config(folder)
    state, warning = load_last_state(folder, config.get("run_id"))
    epochs = as_declared(config["settings"].get("epochs"), int, f"{folder / CONFIG}.settings.epochs")
    made, step = (as_declared(state.get(name), int, f"{folder / STATE}.{name}") for name in ("epoch", "step")
                  ) if state else (0, 0)
    is_published = state is None and (folder / WEIGHTS).exists()
    if is_published and (rows := read_log(folder / LOG)):
        made, step = int(float(rows[-1]["epoch"])), int(float(rows[-1].get("step") or 0))
    print(*filter(None, [warning]), f"{'finished' if made >= epochs else 'not finished'}: {made} of "
          f"{max(made, epochs)} epochs, {step} steps{', weights without a state to go on from' * is_published}")
    raise SystemExit(made < epochs)
