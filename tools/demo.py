"""Nothing -> demo scans, slices, models, new images and figures: the whole chain, on two cores in minutes.

    python -m tools.demo
In another folder, with models too small to learn, to check within two minutes whether all is installed:
    python -m tools.demo --out demo-tiny --subjects 6 --tiny

The demonstration runs the commands that you would run on your own scans and prints each command before it starts, so
that you can paste and change it. All files go to --out, with the usual names where possible:

    scans/  slices/  results/oasis/{vqvae,top,bottom}/  samples/  report/

Run the same command again to go on where it stopped. The brains are synthetic: they show what the software does, and
say nothing about people. See vqvae2 demo-scans --help.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vqvae2.commands.steps import Step, run_steps, short
from vqvae2.common import files
from vqvae2.common.errors import run_script
from vqvae2.evaluation import text
from vqvae2.settings.checks import Checked
from vqvae2.settings.parsing import parse

PROCESSES, GLOBAL_BATCH = 2, 16


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Checked):
    """Settings of the demonstration."""

    out: Path = Path("demo")
    """Folder that receives all files."""
    subjects: int = 24
    """Number of synthetic subjects; every sixth is scanned twice."""
    tiny: bool = False
    """Small images, and models too small to learn: a test of the installation."""

    RULES = (("subjects", lambda subjects: 3 <= subjects <= 10**5, "3 to 100000",
              "Each split needs one. The default is 24."),)


@dataclass(frozen=True)
class Recipe:
    """The arguments that make a demonstration small, for each command, and the number of samples."""

    slices: str
    vqvae: str
    top: str
    bottom: str
    count: int


# About six minutes on two cores without native bf16; nearly all of it is training.
SMALL = Recipe(
    slices="--size 64 --per-scan 16",
    vqvae="--epochs 60 --channels 64 --codebook-size 256 --start-steps 200 --learning-rate 6e-4 --pictures-every 10",
    top="--epochs 40 --channels 64 --layers 6 --pictures-every 10",
    bottom="--epochs 36 --channels 64 --layers 6 --pictures-every 10", count=16)
TINY = Recipe(
    slices="--size 32 --per-scan 12",
    vqvae="--preset vqvae2-tiny --size 32 --epochs 12 --channels 16 --residual-channels 8 --embedding-dim 8 "
          "--codebook-size 16 --start-steps 6 --learning-rate 0.01 --pictures-every 12",
    top="--epochs 2 --channels 8 --layers 2 --heads 2 --pictures-every 2",
    bottom="--epochs 2 --channels 8 --layers 2 --heads 2 --pictures-every 2", count=4)


def make_steps(settings: DemoSettings, recipe: Recipe, processes: int) -> list[Step]:
    """Return the whole chain, in order; training runs on `processes`, which divide GLOBAL_BATCH."""
    out = shlex.quote(str(settings.out))
    run = f"--results {out}/results --dataset oasis --data {out}/slices --batch {GLOBAL_BATCH // processes}"
    vqvae, top, bottom = (f"--{name} {out}/results/oasis/{name}" for name in ("vqvae", "top", "bottom"))
    return [
        Step("synthetic scans", "demo-scans", f"--out {out}/scans --subjects {settings.subjects}",
             note=settings.out / "scans" / ".done"),
        Step("slices", "extract", f"--scans {out}/scans --out {out}/slices {recipe.slices}"),
        Step("VQ-VAE-2", "train-vqvae", f"{run} --savename vqvae {recipe.vqvae}", processes),
        Step("prior of the top codes", "train-prior", f"--level top {vqvae} {run} --savename top {recipe.top}",
             processes),
        Step("prior of the bottom codes", "train-prior",
             f"--level bottom {vqvae} {run} --savename bottom {recipe.bottom}", processes),
        # Priors of a minute each do not know much: their likelier codes are shown.
        Step("new images", "sample",
             f"{vqvae} {top} {bottom} --count {recipe.count} --temperature 0.6 0.3 --top-p 0.8 --out {out}/samples"),
        Step("figures", "evaluate",
             f"{vqvae} {top} {bottom} --data {out}/slices --samples {recipe.count} --out {out}/report"),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the demonstration that the command line asks for, and print where the pictures and figures are."""
    settings = parse(DemoSettings, __doc__, arguments)
    out, began = settings.out, time.monotonic()
    files.check_folder(out, "--out")
    # Two processes cannot share one GPU under NCCL.
    processes = min(PROCESSES, torch.cuda.device_count() or PROCESSES)
    run_steps(make_steps(settings, TINY if settings.tiny else SMALL, processes))
    figures = dict(text.headline(json.loads((out / "report" / "metrics.json").read_text(encoding="utf-8"))))
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. Look at:")
    for path, what in (("report/strip.png", "real, reconstructed and new images"), ("samples/grid.png", "new images"),
                       ("report/reconstructions.png", "where reconstructions differ"),
                       ("report/curves.png", "the training; curves_top.png and curves_bottom.png: the priors"),
                       ("report/metrics.json", f"all figures; SSIM {figures['SSIM, full picture']}")):
        print(f"  {out / path}: {what}")
    models = " ".join(f"{name.upper()}={out / 'results' / 'oasis' / name}" for name in ("vqvae", "top", "bottom"))
    print(f"All of them on one page: {models} DATA={out / 'slices'} {short(sys.executable)} -m nbconvert "
          "--to html --execute evaluate.ipynb")


if __name__ == "__main__":
    run_script(main)
