"""The same training shared out to 1, 2, 3 and 4 processes and to micro-batches -> a table of what is equal at its end.

    python benchmarks/processes.py --out processes --epochs 1
    python benchmarks/processes.py --out processes --epochs 30 \\
        --more "--channels 16 --residual-channels 8 --embedding-dim 16 --codebook-size 256"

Every row is a training of the demonstration's slices (64 by 64 pixels, fp32, one thread for each process) with a
global batch of 24 images; the last row differs from the first by its seed alone. The other figures compare a row with
the first: the losses of training and validation, the network's weights (the norm of the difference, as a share of the
norm), the embeddings that differ by more than 2 % of their norm, and the codes of the validation images. Trainings that
are done are not repeated.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from vqvae2.commands.steps import Step, demo_slices, run_steps
from vqvae2.evaluation import text
from vqvae2.images import dataset
from vqvae2.models import encoding
from vqvae2.models.autoencoder import Vqvae
from vqvae2.runs.state import load_state
from vqvae2.settings.parsing import parse
from vqvae2.training.settings import TrainVqvae

LAYOUTS = {"1 process": (1, 24, 1, 5), "2 processes": (2, 12, 1, 5), "3 processes": (3, 8, 1, 5),
           "4 processes": (4, 6, 1, 5), "3 micro-batches": (1, 8, 3, 5), "another seed": (1, 24, 1, 6)}
"""Processes, images for each process and micro-batch, micro-batches, seed."""
LEVELS = ("top", "bottom")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the slices and the runs")
    parser.add_argument("--epochs", type=int, default=1, help="of each training; each number has its own runs")
    parser.add_argument("--more", default="", help="flags for every training")
    given = parser.parse_args()
    data, ends = demo_slices(given.out, 64), []
    for layout, (processes, batch, accumulate, seed) in LAYOUTS.items():
        name = f"{layout.replace(' ', '-')}-{given.epochs}"
        arguments = (f"--dataset oasis --data {data} --results {given.out}/results --savename {name} --seed {seed} "
                     f"--batch {batch} --accumulate {accumulate} --epochs {given.epochs} --precision fp32 --threads 1 "
                     f"--pictures-every 0 {given.more}")
        run_steps([Step(layout, "train-vqvae", arguments, processes)])
        ends.append(end_of(parse(TrainVqvae, "", arguments.split())))
    print(text.markdown_table(
        ("training", "loss", "validation SSIM", *(f"{level}: used, shuffle drop" for level in LEVELS), "network",
         *(f"{level} embeddings" for level in LEVELS), *(f"equal {level} codes" for level in LEVELS)),
        [(layout, *compared(end, ends[0])) for layout, end in zip(LAYOUTS, ends)]))


def end_of(settings: TrainVqvae) -> dict:
    """Return the last row of a finished run's log, its tensors, and the codes of the validation images."""
    images = dataset.load_images(settings, ("train", "validate"), 8)
    state = load_state(settings.folder / "state.pt")
    model = Vqvae(settings)
    model.load_state_dict(state["model"])
    codes = encoding.extract(model.eval(), images.splits["validate"], 16).levels
    return {"row": state["rows"][-1], "tensors": state["model"], "codes": codes}


def compared(end: dict, first: dict) -> list[str]:
    """Return the cells of a training's row after its name."""
    ours, theirs = end["tensors"], first["tensors"]
    network = [(values, theirs[name]) for name, values in ours.items() if not name.startswith("quantizers")]
    weights, differences = (torch.cat([f(*pair).flatten() for pair in network])
                            for f in (lambda ours, _: ours, torch.sub))
    books = [(ours[f"quantizers.{level}.codebook"], theirs[f"quantizers.{level}.codebook"]) for level in LEVELS]
    row = end["row"]
    return [f"{row['train_loss']:.5f}", f"{row['validate_ssim']:.4f}",
            *(f"{row[f'{level}_used']:.0f}, {row[f'{level}_shuffle_drop']:.3f}" for level in LEVELS),
            f"{(differences.norm() / weights.norm()).item():.1e}",
            *(f"{((a - b).norm(dim=1) > 0.02 * b.norm(dim=1)).sum().item()} of {len(a)}" for a, b in books),
            *(f"{(end['codes'][level] == first['codes'][level]).float().mean().item():.1%}" for level in LEVELS)]


if __name__ == "__main__":
    main()
