"""A run's folder -> a folder that may be passed on: weights, settings, log, curves, card; without paths of the machine.

    vqvae2 publish results/oasis/brain-128 pretrained/vqvae-128
With 16-bit weights, half as large (the bits per code of the shipped priors changed by 0.0001 on validation images):
    vqvae2 publish results/oasis/brain-128-top pretrained/top-128 --bf16

A prior belongs to its VQ-VAE by the hash of the VQ-VAE's weights: publish a VQ-VAE before its priors are trained if
the VQ-VAE is to have 16-bit weights, else as it is. The folder has the layout of the Hugging Face hub, with a card in
README.md, whose licence and data are yours to add; publishing again writes it anew:
    huggingface-cli upload NAME/vqvae-128 pretrained/vqvae-128
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vqvae2.commands import cards
from vqvae2.common import files
from vqvae2.plots import charts
from vqvae2.runs import weights
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import parse

# Whole numbers, codebooks (a code's embedding is compared with vectors, and there every digit counts) and the mean and
# deviation of the training images' pixels, which a VQ-VAE with --standardise has, keep their type.
EXACT = re.compile(r"quantizers\.|(mean|deviation)$")


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """Settings of `vqvae2 publish`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder that receives model.safetensors, config.json, log.csv, curves.png and README.md."""
    bf16: bool = False
    """Round the weights to 16 bit."""


def publish(run: Path, out: Path, bf16: bool = False) -> str:
    """Write what may be passed on of a run to the folder `out`; return the new weights' hash.

    Paths of the machine are left out of config.json, also of the copy inside the weights. Whole numbers and what is
    EXACT keep their type.
    Raises: UserError if `run` holds no weights, or `out` is a file or `run` itself, holds another model, to which
        priors may belong, or a page of somebody's own.
    """
    expect((run / weights.WEIGHTS).is_file(), str(run), f"a run with {weights.WEIGHTS}", "none",
           "Give the folder of a finished training.")
    expect(not out.is_file(), "out", "a folder or nothing", f"a file, {out}", "Choose another one.")
    expect(out.resolve() != run.resolve(), str(out), "another folder than the run's",
           "the run itself, whose weights and state belong together", "Choose another one.")
    tensors, config = weights.load_weights(run / weights.WEIGHTS)
    earlier = "nothing, or an earlier form of the same run"
    if (out / weights.WEIGHTS).is_file():
        there = weights.load_weights(out / weights.WEIGHTS)[1]
        expect(all(there.get(name) == config.get(name) for name in ("kind", "run_id")), str(out), earlier,
               f"another {there.get('kind')}", "Choose another folder, or delete this one.")
    else:
        expect(not (out / cards.CARD).exists(), str(out), earlier, f"a {cards.CARD} and no model",
               "Choose another folder.")
    config = without_paths(config)
    if bf16:
        tensors = {name: tensor.bfloat16() if tensor.dtype == torch.float32 and not EXACT.match(name) else tensor
                   for name, tensor in tensors.items()}
    (out / "metrics.json").unlink(missing_ok=True)  # it may speak of other weights
    weights.save_weights(out / weights.WEIGHTS, tensors, config)
    files.write_json(out / weights.CONFIG, config)
    if rows := files.read_rows(run / "log.csv"):
        files.write_rows(out / "log.csv", rows)
        charts.curves(rows, out / "curves.png")
    files.write_text(out / cards.CARD, cards.card(out))
    return weights.weights_hash(tensors)


def without_paths(config: dict) -> dict:
    """Return a run's config without the folders of the machine that it was trained on, of which only names stay."""
    settings = {name: Path(value).name if name in ("data", "results", "vqvae", "preset") and value else value
                for name, value in config["settings"].items()}
    words = [re.sub(r"(?s)^(--[^=]*=)?(.*/.*)$", lambda found: (found[1] or "") + Path(found[2]).name, word)
             for word in shlex.split(config.get("command", ""))]
    return config | {"settings": settings, "command": shlex.join(words)}


def main(arguments: list[str] | None = None) -> None:
    """Publish as the command line says."""
    settings = parse(PublishSettings, __doc__, arguments)
    found = publish(settings.run, settings.out, settings.bf16)
    print(f"written: {settings.out}, weights {found[:12]}")
