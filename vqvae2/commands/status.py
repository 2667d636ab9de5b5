"""A run's folder -> how far the run is.

    vqvae2 status results/oasis/brain-128
    vqvae2 status brain-128

Exit status: 0 if the run has made all its epochs, 1 if not, 2 if the run's state cannot be read.
"""

import sys

from vqvae2.common import output
from vqvae2.common.errors import UserError, expect
from vqvae2.runs.state import load_last_state
from vqvae2.runs.weights import CONFIG, find_run, read_config


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
    try:
        epochs = int(config["settings"]["epochs"])
        made, step = (state["epoch"], state["step"]) if state else (0, 0)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder}: expected a training run, found other files of these names. Point at a folder that "
                        "a training script made.") from None
    print(*filter(None, [warning]), f"{'finished' if made >= epochs else 'not finished'}: {made} of {epochs} epochs, "
          f"{step} steps")
    raise SystemExit(made < epochs)
