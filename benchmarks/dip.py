"""A VQ-VAE trained from nothing on synthetic slices -> how far it falls back between two epochs, for each seed.

    python benchmarks/dip.py --out dip --seeds 0 1

About three minutes a seed on two cores with native bf16. A collapse in the middle of a training shows here first: SSIM
and the codes in use fall within a few epochs and come back (docs/results.md, "A training without a dip"). The slices
are those of 24 synthetic subjects, 16 a scan, 64 by 64 pixels. Trainings that are done are not repeated.
"""

import argparse
import shlex
import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vqvae2.commands.steps import Step, demo_slices, run_steps
from vqvae2.evaluation import text
from vqvae2.runs.log import read_log

LEVELS = ("top", "bottom")
RECIPE = ("--dataset oasis --batch 16 --epochs 60 --channels 64 --codebook-size 256 --start-steps 200 "
          "--learning-rate 6e-4 --threads 1 --pictures-every 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the slices and the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a training each")
    parser.add_argument("--more", default="", help="flags for every training")
    given = parser.parse_args()
    data, rows = demo_slices(given.out, 64), []
    for seed in given.seeds:
        run_steps([Step(f"seed {seed}", "train-vqvae", f"{RECIPE} --data {shlex.quote(str(data))} --results "
                        f"{shlex.quote(str(given.out / 'results'))} --savename dip-{seed} --seed {seed} {given.more}")])
        rows.append((str(seed), *falls(read_log(given.out / "results" / "oasis" / f"dip-{seed}" / "log.csv"))))
    print(text.markdown_table(("seed", "fall of SSIM", *(f"{level} codes lost (%)" for level in LEVELS),
                               "SSIM in the end"), rows))


def falls(log: list[dict[str, str]]) -> tuple[str, ...]:
    """Return the largest fall of SSIM, and of each level's codes in use in per cent, from an epoch to the next, and the
    last SSIM; of the epochs in which codes were used."""
    epochs = [row for row in log if row.get("top_used")]
    pairs = list(pairwise(epochs))
    lost = [max(1 - float(after[f"{level}_used"]) / float(before[f"{level}_used"]) for before, after in pairs)
            for level in LEVELS]
    fall = max(float(before["validate_ssim"]) - float(after["validate_ssim"]) for before, after in pairs)
    return (f"{max(fall, 0):.3f}", *(f"{100 * max(share, 0):.0f}" for share in lost),
            f"{float(epochs[-1]['validate_ssim']):.3f}")


if __name__ == "__main__":
    main()
