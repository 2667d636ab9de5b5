"""A run's folder -> a folder that may be passed on: weights, settings, log and curves, without anything of the machine.

    python -m vqvae2.publishing results/oasis/brain-128 pretrained/vqvae-128
With 16-bit weights, half as large (a prior's bits per code change in the fifth digit; see docs/results.md):
    python -m vqvae2.publishing results/oasis/brain-128-top pretrained/top-128 --bf16

A prior belongs to its VQ-VAE by the hash of that one's weights: publish a VQ-VAE before its priors are trained if it is
to have 16-bit weights, else as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vqvae2 import checkpoints, plots
from vqvae2.config import expect, parse
from vqvae2.errors import run_script

LOG, CURVES = "log.csv", "curves.png"


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """Settings of this script."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder that receives model.safetensors, config.json, log.csv and curves.png."""
    bf16: bool = False
    """Round the weights to 16 bit."""

    def __post_init__(self) -> None:
        expect((self.run / checkpoints.WEIGHTS).is_file(), str(self.run), f"a run with {checkpoints.WEIGHTS}", "none",
               "Give the folder of a finished training.")
        checkpoints.check_folder(self.out, str(self.out))


def publish(run: Path, out: Path, bf16: bool = False) -> str:
    """Write what may be passed on of a run to the folder `out`; return the new weights' hash.

    Paths of the machine are left out of config.json, also of the copy inside the weights. Whole numbers and codebooks
    keep their type: a code's embedding is compared with vectors, and there every digit counts.
    """
    tensors, config = checkpoints.load_weights(run / checkpoints.WEIGHTS)
    config = without_paths(config)
    if bf16:
        tensors = {name: tensor.bfloat16() if tensor.dtype == torch.float32 and not name.startswith("quantizers.")
                   else tensor for name, tensor in tensors.items()}
    checkpoints.save_weights(out / checkpoints.WEIGHTS, tensors, config)
    checkpoints.write_json(out / checkpoints.CONFIG, config)
    if rows := checkpoints.read_rows(run / LOG):
        checkpoints.write_rows(out / LOG, rows)
        plots.curves(rows, out / CURVES)
    return checkpoints.weights_hash(tensors)


def without_paths(config: dict) -> dict:
    """Return a run's config without the folders of the machine that it was trained on, of which only names stay."""
    settings = {name: Path(value).name if name in ("data", "results", "vqvae") and value else value
                for name, value in config["settings"].items()}
    words = [Path(word).name if "/" in word else word for word in config.get("command", "").split()]
    return config | {"settings": settings, "command": " ".join(words)}


def main() -> None:
    """Publish as the command line says."""
    settings = parse(PublishSettings, __doc__)
    found = publish(settings.run, settings.out, settings.bf16)
    print(f"written: {settings.out}, weights {found[:12]}")


if __name__ == "__main__":
    run_script(main)
