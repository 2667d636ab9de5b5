"""A masked prior (MaskGIT) beside the PixelCNN priors: how fast it draws, and how good its images are.

    cp -r pretrained/vqvae-64 .             # the trainings leave the codes of the images in this folder
    python benchmarks/masked.py train --level top --vqvae vqvae-64 --data slices-64 --dataset oasis --savename m-top \\
        --condition position_mm --copies 5 --channels 128 --heads 4 --layers 6 --batch 8 --learning-rate 7e-4 \\
        --dropout 0.1 --epochs 20
    python benchmarks/masked.py train --level bottom --cell 2 --epochs 30 … --savename m-bottom
    python benchmarks/masked.py draw slices-64 --vqvae vqvae-64 --top m-top --bottom m-bottom --out masked \\
        --judged-by top-64 bottom-64
    python benchmarks/masked.py draw slices-64 … --top top-64 --bottom bottom-64 --passes 0 --precision fp64
    python evaluate.py --vqvae vqvae-64 --data slices-64 --sampled masked --probe --out report

A masked prior is a transformer that sees a whole map but the codes that are hidden, and predicts these [1]. It begins
with a map that is hidden as a whole. In each pass it draws all hidden codes, keeps some and forgets the others; the
number that is still hidden after each pass is a cosine. Which codes are kept:
    confidence   the likeliest ones, with Gumbel noise on log p, times --noise at first and 0 in the last pass, as [1]
    random       those that come next in a random order, whatever their p
    spread       those that come next in an order in which codes of one pass lie far apart (after [2])
The codes of one pass are drawn as if they did not depend on each other. Only with as many passes as codes, where
`random` keeps one a pass, are samples those of what the prior has learned.

Validation is in bits per code: the number of hidden codes is then drawn evenly, and the mean of -log2 p of a hidden
code is the mean over all orders of the cost code by code [3]. A PixelCNN has one order, and its bits can be compared.
In training the share that is hidden is cos(pi u / 2), u in 0…1 [1]. --judged-by prints what samples cost by PixelCNN
priors. Beside what unseen slices cost (evaluate.py), this says whether codes that were drawn apart fit each other.

NOTE Departures from [1]: a 3 x 3 convolution in each layer, since a study has few images; and with --cell 2 the four
codes below a top code have one vector in the network, which is a quarter of the arithmetic.

References
[1] Chang et al. 2022, MaskGIT: Masked Generative Image Transformer.
[2] Besnier et al. 2025, Halton Scheduler for Masked Generative Image Transformer.
[3] Uria, Murray, Larochelle 2014, A Deep and Tractable Density Estimator.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import qmc
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import CodedSlices, processor

from vqvae2.common import random_numbers
from vqvae2.common.errors import run_script
from vqvae2.common.progress import Bar
from vqvae2.images.dataset import load_images, to_bytes
from vqvae2.images.settings import DataSettings
from vqvae2.plots import pictures
from vqvae2.priors import conditions
from vqvae2.priors.pixel_cnn import Conditioner, FactsEncoder, SubPixelShuffle
from vqvae2.runs.weights import load_model
from vqvae2.sampling import sampler
from vqvae2.settings import checks, parsing
from vqvae2.settings.stored import from_dict
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainPrior
from vqvae2.training.trainer import Share

HIDDEN = -1
"""What stands for a code that is hidden."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class TrainMasked(TrainPrior):
    """Settings of `benchmarks/masked.py train`: those of train_pixel_cnn.py, of which --network means nothing here."""

    cell: int = 1
    """Height and width in codes of what has one vector in the network: 1, or 2 for a bottom prior."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings(CodedSlices):
    """Settings of `benchmarks/masked.py draw`: masked priors, or with --passes 0 PixelCNNs; each sample is told what
    the manifest says of one of the training slices."""

    out: Path
    """Folder of the images."""
    results: Path = Path("results")
    """Folder that holds all runs."""
    passes: int = 8
    """Passes over each level's map; 0: the priors are PixelCNNs, which go over it code by code."""
    keep: Literal["confidence", "random", "spread"] = "spread"
    """Which codes of a pass are kept."""
    noise: float = 4.5
    """How much chance there is in what `confidence` keeps."""
    count: int = 256
    """Images."""
    batch: int = 64
    """Images at a time."""
    precision: Literal["fp64", "fp32", "bf16"] = "bf16"
    """The numbers in which the priors compute; sample.py draws in fp64."""
    judged_by: tuple[str, str] | None = None
    """A top and a bottom PixelCNN that say what the codes of the samples cost."""
    seed: int = 0
    """Seed of the samples."""


class Block(nn.Module):
    """A layer of a transformer, normalised first: attention, a look at the 3 x 3 neighbours, two linear layers."""

    def __init__(self, channels: int, heads: int, shape: tuple[int, int], dropout: float):
        super().__init__()
        self.heads, self.shape, self.dropout = heads, shape, nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.query_key_value, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.beside = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, positions, channels]` to the same shape."""
        split = self.query_key_value(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.dropout(self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)))
        x = x + self.beside(x.transpose(1, 2).unflatten(2, self.shape)).flatten(2).transpose(1, 2)
        return x + self.dropout(self.narrow(functional.gelu(self.widen(self.norms[1](x)))))


class MaskedPrior(nn.Module):
    """p(a hidden code | all that are not hidden, condition) for one level's code maps; arguments as PixelCNN's."""

    def __init__(self, settings: TrainMasked, embeddings: torch.Tensor, shape: tuple[int, int],
                 top_embeddings: torch.Tensor | None = None, top_shape: tuple[int, int] | None = None,
                 columns: Sequence[conditions.Column] = ()):
        super().__init__()
        channels, cell, dim = settings.channels, settings.cell, embeddings.shape[1]
        self.shape, self.codebook_size, self.columns = tuple(shape), len(embeddings), tuple(columns)
        coarse = shape[0] // cell, shape[1] // cell
        white = functional.normalize((embeddings - embeddings.mean(0)) / embeddings.std(0).clamp(min=1e-6), dim=1)
        self.table = nn.Parameter(torch.cat([white * dim**0.5, torch.zeros(1, dim)]))  # the last row: hidden
        self.table.data += 0.5 * torch.randn_like(self.table)
        self.enter = nn.Conv2d(dim, channels, cell + 2, stride=cell, padding=1)
        self.place = nn.Parameter(torch.randn(channels, *coarse) * 0.02)
        self.top = None if top_embeddings is None else Conditioner(
            top_embeddings, channels, settings.heads, top_shape, coarse[0] // top_shape[0])
        self.known = FactsEncoder(columns, channels) if columns else None
        self.blocks = nn.Sequential(*(Block(channels, settings.heads, coarse, settings.dropout)
                                      for _ in range(settings.layers)), nn.LayerNorm(channels))
        self.leave = nn.Sequential(nn.Conv2d(channels, dim * cell**2, 1), SubPixelShuffle(cell))
        self.bias = nn.Parameter(torch.zeros(self.codebook_size))

    @classmethod
    def from_config(cls, config: dict, tensors: Mapping[str, torch.Tensor]) -> "MaskedPrior":
        """Return a prior of a run's config and the shapes of its weights, which are still to be loaded."""
        top = (tensors["top.table"], config["top_shape"]) if "top.table" in tensors else (None, None)
        return cls(from_dict(TrainMasked, config["settings"]), tensors["table"][:-1], config["shape"], *top,
                   conditions.from_json(config["columns"]))

    def told(self, top_codes: torch.Tensor | None, known: torch.Tensor | None) -> torch.Tensor:
        """Return what does not change from pass to pass, `[batch or 1, channels, height, width]`."""
        total = self.place[None]
        total = total if self.top is None else total + self.top(top_codes)
        return total if self.known is None else total + self.known(known)

    def forward(self, codes: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch, height, width, codebook_size]`; `codes` `[batch, height, width]` may be HIDDEN."""
        rows = codes.masked_fill(codes == HIDDEN, self.codebook_size)
        x = self.enter(functional.embedding(rows, self.table).movedim(-1, 1)) + told
        x = self.blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        table = self.table[:-1]
        return functional.linear(self.leave(x).movedim(1, -1), table * table.shape[1]**-0.5, self.bias)


class MaskedTrainer(PriorTrainer):
    """Trains a masked prior as PixelCNNs are trained: the same codes, facts, optimiser, averages, choice of epoch."""

    def build(self) -> nn.Module:
        """Return the prior of this level."""
        books = {level: rule.codebook.detach().cpu() for level, rule in self.vqvae.model.quantizers.items()}
        shapes = {level: tuple(maps.shape[1:]) for level, maps in self.maps["train"].levels.items()}
        top = (books["top"], shapes["top"]) if self.settings.level == "bottom" else (None, None)
        return MaskedPrior(self.settings, books[self.settings.level], shapes[self.settings.level], *top, self.columns)

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return each map's NLL: "loss" over all of its codes, those not hidden costing nothing, and bits per code."""
        maps = self._maps(share, model.training)
        codes = maps[self.settings.level]
        hidden = self._hidden(share, codes.shape, model.training)
        told = model.told(maps["top"], self._known_facts(share, model.training))
        logits = model(codes.masked_fill(hidden, HIDDEN), told).float()
        nats = functional.cross_entropy(logits.movedim(-1, 1), codes, reduction="none") * hidden
        of_hidden = nats.detach().flatten(1).sum(1) / hidden.flatten(1).sum(1)
        return {"loss": nats.flatten(1).mean(1), "bits_per_code": of_hidden / math.log(2)}

    def _hidden(self, share: Share, shape: torch.Size, training: bool) -> torch.Tensor:
        """Return which codes are hidden: by a cosine while training, else evenly, the same in every epoch."""
        positions, epoch = shape[1] * shape[2], share.epoch if training else 0
        items = share.items.numpy()[:, None] if training else 10**9 + share.items.numpy()[:, None]
        numbers = random_numbers.uniform(self.settings.seed, "hidden", epoch, items, np.arange(positions + 1)[None])
        part = torch.cos(numbers[:, :1] * math.pi / 2) if training else numbers[:, :1]
        count = 1 + (part * positions).long().clamp(max=positions - 1)
        return (numbers[:, 1:].argsort(1).argsort(1) < count).view(shape)


@torch.no_grad()
def draw_map(prior: MaskedPrior, numbers: Sequence[int], level: str, settings: DrawSettings,
             top_codes: torch.Tensor | None, known: torch.Tensor) -> torch.Tensor:
    """Return code maps `[batch, height, width]` of the images with these `numbers`; `known` as for a PixelCNN."""
    positions = math.prod(prior.shape)
    passes = min(settings.passes, positions)
    uniform, others = random_numbers.uniform(
        settings.seed, f"masked {level}", np.asarray(numbers)[:, None, None], np.arange(passes)[:, None],
        np.arange(2 * positions)).float().split(positions, 2)
    told = prior.told(top_codes, known)
    codes = torch.full((len(numbers), positions), HIDDEN)
    rank = others[:, 0].argsort(1).argsort(1) if settings.keep == "random" else spread_order(
        prior.shape, others[:, 0, :2])
    for done in range(1, passes + 1):
        shares = prior(codes.view(-1, *prior.shape), told).flatten(1, 2).float().softmax(2)
        cumulative = shares.cumsum(2)
        drawn = torch.searchsorted(cumulative, uniform[:, done - 1, :, None] * cumulative[:, :, -1:], right=True)
        drawn = drawn.clamp(max=prior.codebook_size - 1)
        if settings.keep == "confidence":
            gumbel = -others[:, done - 1].clamp(1e-7, 1 - 1e-7).log().neg().log()
            sure = shares.gather(2, drawn)[:, :, 0].log() + settings.noise * (1 - done / passes) * gumbel
            rank = sure.masked_fill(codes != HIDDEN, torch.inf).argsort(1, descending=True).argsort(1)
        kept = done if passes == positions else positions - int(positions * math.cos(math.pi / 2 * done / passes))
        codes = torch.where((codes == HIDDEN) & (rank < kept), drawn[:, :, 0], codes)
    return codes.view(-1, *prior.shape)


def spread_order(shape: tuple[int, int], shifts: torch.Tensor) -> torch.Tensor:
    """Return the place of each position in an order, `[batch, positions]`: that in which the points of a Halton
    sequence, moved around the map by `shifts` `[batch, 2]` in 0…1, first come to the positions."""
    positions = math.prod(shape)
    points = torch.from_numpy(qmc.Halton(2, scramble=False).random(40 * positions)).float()
    rows, columns = ((points + shifts[:, None]) % 1 * torch.tensor(shape)).long().unbind(2)
    first = torch.full((len(shifts), positions), len(points)).scatter_reduce(
        1, rows * shape[1] + columns, torch.arange(len(points)).expand_as(rows), "amin")
    return first.argsort(1).argsort(1)


def load(settings: DrawSettings) -> dict[str, nn.Module]:
    """Return the priors of both levels, which compute in settings.precision."""
    if settings.passes:
        priors = {level: load_model(name, f"--{level}", f"{level} prior", MaskedPrior.from_config, settings.results,
                                    words=f"a masked {level} prior", advice="Train it, or give --passes 0.").model
                  for level, name in (("top", settings.top), ("bottom", settings.bottom))}
    else:
        _, priors = sampler.load_models(settings.vqvae, settings.top, settings.bottom, CPU, settings.results)
    types = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
    return {level: prior.to(types[settings.precision]) for level, prior in priors.items()}


def draw_maps(priors: Mapping[str, nn.Module], numbers: Sequence[int], settings: DrawSettings,
              facts: Sequence[Mapping[str, str]]) -> dict[str, torch.Tensor]:
    """Return each level's code maps of the images with these `numbers`, each told its own facts."""
    maps: dict[str, torch.Tensor] = {}
    for level, prior in priors.items():
        known = conditions.numbers(prior.columns, facts)
        maps[level] = draw_map(prior, numbers, level, settings, maps.get("top"), known) if settings.passes else \
            sampler.draw_codes(prior, numbers, settings.seed, level, top_codes=maps.get("top"), known=known)
    return maps


def draw(settings: DrawSettings) -> None:
    """Draw images, write them, and print what an image took, and what its codes say of it."""
    torch.set_num_threads(1)
    priors = load(settings)
    vqvae, judges = sampler.load_models(settings.vqvae, *settings.judged_by or (None, None), CPU, settings.results)
    training = load_images(DataSettings(data=settings.slices), ("train",)).splits["train"].facts
    chosen = random_numbers.uniform(settings.seed, "whose facts a sample is told", np.arange(settings.count))
    facts = [training[item] for item in (chosen * len(training)).long().tolist()]
    seconds, agreed, bits = [], [], []
    for numbers in Bar(torch.arange(settings.count).split(settings.batch), desc="drawing", unit="batch"):
        told, began = [facts[number] for number in numbers], time.process_time()
        maps = draw_maps(priors, numbers.tolist(), settings, told)
        seconds.append((time.process_time() - began) / len(numbers))
        for i, number in enumerate(numbers):
            codes = {level: own[i:i + 1] for level, own in maps.items()}
            image = to_bytes(vqvae.model.decode(codes))
            agreed.append(sampler.agreement(vqvae.model, image, codes).item())
            pictures.save_picture(pictures.image_grid(image, 1, 0), settings.out / f"{number:06d}.png")
        if judges:
            known = {level: conditions.numbers(judge.columns, told) for level, judge in judges.items()}
            bits.append(sampler.bits_per_code(judges, maps, known))
    weights = sum(values.numel() for prior in priors.values() for values in prior.parameters()) / 1e6
    way = f"{settings.passes} passes, {settings.keep}" if settings.passes else "PixelCNN"
    print(f"{processor()}, torch {torch.__version__}, one thread: {way}, {settings.precision}, {weights:.1f} million "
          f"weights, batch {settings.batch}: {1000 * min(seconds):.1f} ms an image, without decoding it; "
          f"codes that come back {np.mean(agreed):.3f}"
          + (f"; bits per code by the PixelCNN {torch.cat(bits).mean():.3f}" if judges else ""))


def main() -> None:
    """Train a masked prior, or draw images."""
    command, *arguments = sys.argv[1:] or [""]
    checks.expect(command in ("train", "draw"), "benchmarks/masked.py", "train or draw", command or "nothing",
                  "The first lines of the file have examples.")
    if command == "train":
        MaskedTrainer(parsing.parse(TrainMasked, __doc__, arguments)).run()
    else:
        draw(parsing.parse(DrawSettings, __doc__, arguments))


if __name__ == "__main__":
    run_script(main)
