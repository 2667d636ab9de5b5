r"""Folders of slices -> the network of pixels by which slices are compressed without loss.

    python -m tools.train_lossless --data slices-64 slices-128 slices-256 --minutes 60 --out pretrained/lossless
or, for the residual beside the codes of a VQ-VAE, of which the network then sees the reconstruction:
    python -m tools.train_lossless --data slices-128 --vqvae pretrained/vqvae-128 --minutes 60 --out residual-128

Weights and activations are rounded in each step of the training to the whole numbers that they will be, and gradients
pass the rounding as if it were not there [1]; so what is trained is what is stored. The loss is the length of the code
in bits. Each batch has equally many pixels of each folder. Pixels that see only zeros all get the same answer, so that
how often each grey value occurs among them is all that counts.

1. Bengio, Leonard and Courville 2013, Estimating or propagating gradients through stochastic neurons.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vqvae2 import api
from vqvae2.common import files
from vqvae2.common.errors import run_script
from vqvae2.compression import lossless, pixel_network
from vqvae2.compression.pixel_network import ANSWERS, COMPONENTS, LAYER_BITS, LINE, NATS, SCALES
from vqvae2.runs import weights

WEIGHT_STEP = 2.0**-LAYER_BITS
BIAS_STEP = WEIGHT_STEP / LINE
RESERVE = 1e-3
"""The share of pixel_network.FLOOR, in all."""
EVEN_SHARE = 0.4
"""For this share of the time the learning rate stays as it is; then it falls to a hundredth."""


def neighbours(reach: float) -> np.ndarray:
    """Return rows and columns to the pixels no farther than `reach` that are decoded before the one in the middle."""
    far = range(-int(reach), int(reach) + 1)
    return np.array([(row, column) for row in far for column in far
                     if row <= 0 and column + lossless.SLOPE * row < 0 and math.hypot(row, column) <= reach])


def surroundings(reach: float) -> np.ndarray:
    """Return rows and columns to all pixels no farther than `reach`, the one in the middle among them."""
    far = range(-int(reach), int(reach) + 1)
    return np.array([(row, column) for row in far for column in far if math.hypot(row, column) <= reach])


class Rounding(torch.autograd.Function):
    """The nearest multiple of `step`; the gradient is that of the number itself."""

    @staticmethod
    def forward(_: object, number: torch.Tensor, step: float) -> torch.Tensor:
        """Return the rounded numbers."""
        return number.div(step).add_(0.5).floor_().mul_(step)

    @staticmethod
    def backward(_: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient as it is."""
        return gradient, None


class Activation(torch.autograd.Function):
    """A number rounded down to steps of 1 / LINE, from 0 to 255 of them; between its ends the gradient passes."""

    @staticmethod
    def forward(context: object, number: torch.Tensor) -> torch.Tensor:
        """Return the activations."""
        steps = number.mul(LINE).floor_()
        found = steps.clamp(0, 255)
        context.save_for_backward(steps == found)
        return found.mul_(1 / LINE)

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient where the number was not clipped."""
        return gradient * context.saved_tensors[0]


class Network(nn.Module):
    """The network of pixel_network.py in floating-point numbers, 1 for LINE of its whole numbers."""

    def __init__(self, inputs: int, widths: list[int]):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip([inputs, *widths], widths))
        self.last = nn.Linear(widths[-1] + inputs, ANSWERS)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.weight[:, widths[-1]:] = 0
            self.last.bias[:COMPONENTS] += torch.linspace(-0.1, 0.1, COMPONENTS)
            self.last.bias[COMPONENTS:2 * COMPONENTS] -= 2

    @property
    def layers(self) -> list[nn.Linear]:
        """Return the layers, the last one too."""
        return [*self.hidden, self.last]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the answers `[n, ANSWERS]` for inputs `[n, p + q]`, grey values by LINE."""
        found = inputs
        for layer in self.hidden:
            found = Activation.apply(self._apply(layer, found))
        return self._apply(self.last, torch.cat([found, inputs], 1))

    def _apply(self, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, Rounding.apply(layer.weight, WEIGHT_STEP), Rounding.apply(layer.bias, BIAS_STEP))

    def tensors(self, past: np.ndarray, reconstruction: np.ndarray) -> dict[str, torch.Tensor]:
        """Return what PixelNetwork reads, in the smallest types."""
        found = {"past": past.astype(np.int8), "reconstruction": reconstruction.astype(np.int8),
                 **{name: table.astype(np.int32) for name, table in pixel_network.tables().items()}}
        for number, layer in enumerate(self.layers):
            found[f"weights.{number}"] = (layer.weight / WEIGHT_STEP + 0.5).floor().short().numpy()
            found[f"bias.{number}"] = (layer.bias / BIAS_STEP + 0.5).floor().int().numpy()
        return {name: torch.from_numpy(array) for name, array in found.items()}


def bits(answers: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the length of each pixel's code `[n]`, given the answers and its grey value 0…255."""
    means, scales, shares = (answers[:, part * COMPONENTS:(part + 1) * COMPONENTS] for part in range(3))
    inverse = torch.exp(-scales.clamp(SCALES[0] / NATS, SCALES[1] / NATS))
    middle = values[:, None] / LINE
    above = torch.sigmoid((middle + 0.5 / LINE - means) * inverse).where(values[:, None] < 255, 1)
    below = torch.sigmoid((middle - 0.5 / LINE - means) * inverse).where(values[:, None] > 1, 0)
    share = ((above - below) * F.softmax(shares, 1)).sum(1) * (1 - RESERVE) + RESERVE / 255
    zero = answers[:, -1]
    return torch.where(values == 0, F.softplus(-zero), F.softplus(zero) - share.log()) / math.log(2)


class Pixels:
    """The pixels of a folder's split: those that see anything, in batches, and how often the others have each value."""

    def __init__(self, images: np.ndarray, reconstructions: np.ndarray | None, past: np.ndarray,
                 reconstruction: np.ndarray):
        margin = int(max(np.abs(past).max(), np.abs(reconstruction).max(initial=0)))
        count, height, width = images.shape
        padded = [np.pad(array, ((0, 0), (margin, margin), (margin, margin))) for array in (images, reconstructions)
                  if array is not None]
        line = width + 2 * margin
        self.seen = [(torch.from_numpy(array.ravel()), torch.from_numpy(places @ [line, 1]))
                     for array, places in zip(padded, (past, reconstruction))]
        inside = ((np.arange(height)[:, None] + margin) * line + np.arange(width) + margin).ravel()
        every = torch.from_numpy(np.arange(count)[:, None] * (height + 2 * margin) * line + inside).flatten()
        busy = torch.zeros(len(every), dtype=torch.bool)
        for array, places in self.seen:
            for place in places:
                busy |= array[every + place] > 0
        self.items, self.all_pixels = every[busy], len(every)
        self.quiet = torch.bincount(self.seen[0][0][every[~busy]].long(), minlength=256)
        """How often each grey value occurs where only zeros are seen: `[256]`."""

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs `[n, p + q]` and grey values `[n]`."""
        places = self.items[chosen]
        inputs = torch.cat([array[places[:, None] + around] for array, around in self.seen], 1)
        return inputs.float() / LINE, self.seen[0][0][places].float()


def quiet_bits(network: Network, pixels: Pixels) -> torch.Tensor:
    """Return the length of the code of all pixels that see only zeros."""
    answer = network(torch.zeros(1, sum(len(places) for _, places in pixels.seen)))
    return (bits(answer.expand(256, -1), torch.arange(256.0)) * pixels.quiet).sum()


@torch.no_grad()
def bits_per_pixel(network: Network, pixels: Pixels) -> float:
    """Return the mean length of the code of a pixel."""
    found = quiet_bits(network, pixels).item()
    for part in torch.arange(len(pixels.items)).split(16384):
        inputs, values = pixels.batch(part)
        found += bits(network(inputs), values).double().sum().item()
    return found / pixels.all_pixels


def train(network: Network, averaged: Network, training: list[Pixels], judged: list[Pixels], minutes: float,
          batch: int, rate: float) -> list[float]:
    """Train for so many minutes; leave the running mean of the weights in `averaged`; return its bits per pixel."""
    optimiser = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3)
    begin, step, said = time.monotonic(), 0, 0.0
    while (passed := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100, max(0.01, (1 - passed) / (1 - EVEN_SHARE)))
        parts = [pixels.batch(torch.randint(len(pixels.items), (batch // len(training),))) for pixels in training]
        inputs, values = map(torch.cat, zip(*parts))
        loss = bits(network(inputs), values).mean()
        quiet = sum(quiet_bits(network, pixels) / len(pixels.items) for pixels in training) / len(training)
        optimiser.zero_grad()
        (loss + quiet).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for mean, current in zip(averaged.parameters(), network.parameters()):
                mean.lerp_(current, max(0.005, 20 / (step + 20)))
        if time.monotonic() - said > 120:
            said = time.monotonic()
            print(f"{passed:.2f} step {step}: train {loss.item():.3f} bits per pixel that sees anything, validate "
                  f"{[round(bits_per_pixel(averaged, pixels), 4) for pixels in judged]} of all", flush=True)
    return [bits_per_pixel(averaged, pixels) for pixels in judged]


def main() -> None:
    """Read the slices, train, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of slices")
    parser.add_argument("--vqvae", help="its reconstructions are seen by the network; its size must be that of --data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 96, 64], help="of the layers")
    parser.add_argument("--reach", type=float, default=6.5, help="pixels to the farthest neighbour")
    parser.add_argument("--reconstruction-reach", type=float, default=4.3)
    parser.add_argument("--batch", type=int, default=8192, help="pixels")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--judged", type=int, default=120, help="slices of each folder's split validate")
    given = parser.parse_args()
    torch.manual_seed(0)
    past = neighbours(given.reach)
    around = surroundings(given.reconstruction_reach) if given.vqvae else np.zeros((0, 2), int)
    vqvae = api.load_vqvae(given.vqvae) if given.vqvae else None

    def pixels(images: np.ndarray) -> Pixels:
        seen = None if vqvae is None else api.decode(vqvae, api.encode(vqvae, images))[:, 0].mul(255).round().byte()
        return Pixels(images[:, 0], None if seen is None else seen.numpy(), past, around)
    training, judged, subjects = [], [], set()
    for data in given.data:
        splits = api.load_images(data, ("train", "validate")).splits
        subjects |= {*splits["train"].subjects}
        training.append(pixels(splits["train"].pixels))
        judged.append(pixels(splits["validate"].pixels[::-(-len(splits["validate"]) // given.judged)]))
    network, averaged = (Network(len(past) + len(around), given.widths) for _ in range(2))
    averaged.load_state_dict(network.state_dict())
    found = train(network, averaged, training, judged, given.minutes, given.batch, given.rate)
    settings = {name: value for name, value in vars(given).items() if name not in ("data", "out", "vqvae")}
    config = {"kind": lossless.KIND, "settings": settings, "training_subjects": sorted(subjects),
              "validate_bits_per_pixel": found}
    weights.save_weights(given.out / weights.WEIGHTS, averaged.tensors(past, around), config)
    files.write_json(given.out / weights.CONFIG, config)


if __name__ == "__main__":
    run_script(main)
