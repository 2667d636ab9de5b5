r"""Folders of slices -> the network of pixels by which slices are compressed without loss.

    python -m tools.train_lossless --data slices-64 slices-128 slices-256 --out pretrained/lossless
or, to go on with slices of your own scanner:
    python -m tools.train_lossless --data slices --start pretrained/lossless --steps 4000 --rate 5e-4 --out lossless-own
or, for what a VQ-VAE leaves over, of which the network then sees the reconstruction:
    python -m tools.train_lossless --data slices-128 --vqvae pretrained/vqvae-128 --out residual-128

Weights and activations are rounded in each step of the training to the whole numbers that they will be, and gradients
pass the rounding as if it were not there [1]; so what is trained is what is stored. The loss is the length of the code
in bits. Each batch has equally many pixels of each folder; a folder may be named twice. Pixels that see only zeros all
get the same answer, so that how often each grey value occurs among them is all that counts. The last weights are a
running mean of those of the steps.

1. Bengio, Leonard and Courville 2013, Estimating or propagating gradients through stochastic neurons.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vqvae2 import api
from vqvae2.common import files, statistics
from vqvae2.common.errors import expect, run_script
from vqvae2.compression import lossless, pixel_network
from vqvae2.compression.lossless import ResidualCoder
from vqvae2.compression.pixel_network import ANSWERS, COMPONENTS, LAYER_BITS, LINE, NATS, SCALES
from vqvae2.images.dataset import subject_hash, to_bytes
from vqvae2.runs import weights
from vqvae2.settings.checks import Checked
from vqvae2.settings.parsing import as_dict, parse

WEIGHT_STEP = 2.0**-LAYER_BITS
BIAS_STEP = WEIGHT_STEP / LINE
MOST_SUM = 0.9 * pixel_network.MOST
RESERVE = 1e-3
"""The share of pixel_network.FLOOR, in all."""
EVEN_SHARE = 0.4
"""For this share of the steps the learning rate stays as it is; then it falls to a hundredth."""
REPORTS = 20


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Checked):
    """Settings of train_lossless."""

    data: tuple[Path, ...]
    """Folders of slices."""
    out: Path
    """Folder that receives the network."""
    vqvae: Path | None = None
    """A VQ-VAE whose reconstructions the network sees, of the size of the slices. Default: it sees none."""
    start: Path | None = None
    """A network to go on with, of the same widths and reach. Default: random weights."""
    steps: int = 20000
    """Steps of the training."""
    batch: int = 8192
    """Pixels in a step."""
    rate: float = 2e-3
    """Learning rate."""
    widths: tuple[int, ...] = (160, 96, 64)
    """Activations of each layer."""
    reach: float = 6.5
    """Pixels to the farthest neighbour."""
    reconstruction_reach: float = 4.3
    """Pixels to the farthest one that is seen of a reconstruction."""
    judged: int = 30
    """Slices of each folder's split validate that are judged."""

    RULES = (("steps batch judged", lambda number: number >= 1, "1 or more", "See --help for defaults."),
             ("rate", lambda rate: rate > 0, "above 0", "The default is 0.002."),
             ("reach", lambda reach: reach >= 1, "1 or more", "The default is 6.5."),
             ("widths", lambda widths: min(widths, default=0) >= 1, "1 or more in each of 1 layer or more",
              "The default is 160 96 64."))


def neighbours(reach: float) -> np.ndarray:
    """Return rows and columns to the pixels no farther than `reach` that are decoded before the one in the middle.

    They stand by their distance; the first is the left neighbour."""
    return np.array([place for place in surroundings(reach).tolist()
                     if place[0] <= 0 and place[1] + lossless.SLOPE * place[0] < 0])


def surroundings(reach: float) -> np.ndarray:
    """Return rows and columns to all pixels no farther than `reach`, the one in the middle first."""
    far = range(-int(reach), int(reach) + 1)
    places = [(row, column) for row in far for column in far if math.hypot(row, column) <= reach]
    return np.array(sorted(places, key=lambda place: (math.hypot(*place), -place[0], place[1])))


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

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip((inputs, *widths), widths))
        self.last = nn.Linear(widths[-1] + inputs, ANSWERS)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.weight[:, widths[-1]:] = 0
            self.last.weight[:COMPONENTS, widths[-1]] = 1  # the means begin at the first neighbour
            self.last.bias[:COMPONENTS] += torch.linspace(-0.1, 0.1, COMPONENTS)
            self.last.bias[COMPONENTS:2 * COMPONENTS] -= 2

    @property
    def layers(self) -> list[nn.Linear]:
        """Return the layers, the last one too."""
        return [*self.hidden, self.last]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the answers `[n, ANSWERS]` for inputs `[n, p + q]` as `Pixels.batch` gives them."""
        found = inputs
        for layer in self.hidden:
            found = Activation.apply(self._rounded(layer, found))
        return self._rounded(self.last, torch.cat([found, inputs], 1))

    def _rounded(self, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, Rounding.apply(layer.weight, WEIGHT_STEP), Rounding.apply(layer.bias, BIAS_STEP))

    def read(self, folder: Path) -> None:
        """Take the weights of a stored network. Raises: UserError if it is none, or another one."""
        found = ResidualCoder.load(folder).network.layers
        forms = [[*weight.shape] for weight, _ in found], [[*layer.weight.T.shape] for layer in self.layers]
        expect(forms[0] == forms[1], f"--start {folder}", f"layers of {forms[1]} inputs and outputs", forms[0],
               "Give its --widths and --reach.")
        for layer, (weight, bias) in zip(self.layers, found):
            layer.weight.copy_(torch.from_numpy(weight.T * WEIGHT_STEP))
            layer.bias.copy_(torch.from_numpy(bias * BIAS_STEP))

    def keep_exact(self) -> None:
        """Make the weights smaller of which a sum might not be exact in float32, with room for bias and rounding."""
        width = 0
        for number, layer in enumerate(self.layers):
            signed = pixel_network.signed_inputs(number, width)
            sums = pixel_network.largest_sums(layer.weight.numpy() / WEIGHT_STEP, signed)
            layer.weight.mul_(torch.from_numpy(np.minimum(1, MOST_SUM / sums))[:, None])
            width = len(layer.bias)

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
        (count, height, width), line = images.shape, images.shape[2] + 2 * margin
        self.seen, busy = [], np.zeros(images.shape, bool)
        for array, places in ((images, past), (reconstructions, reconstruction)):
            if array is not None:
                padded = np.pad(array, ((0, 0), (margin, margin), (margin, margin)))
                self.seen.append((torch.from_numpy(padded.ravel()), torch.from_numpy(places @ [line, 1])))
                for row, column in places + margin:
                    busy |= padded[:, row:row + height, column:column + width] > 0
        inside = ((np.arange(height)[:, None] + margin) * line + np.arange(width) + margin).ravel()
        every = torch.from_numpy(np.arange(count)[:, None] * (height + 2 * margin) * line + inside).flatten()
        busy = torch.from_numpy(busy.ravel())
        self.items, self.all_pixels = every[busy], len(every)
        self.quiet = torch.bincount(self.seen[0][0][every[~busy]].long(), minlength=256)
        """How often each grey value occurs where only zeros are seen: `[256]`."""

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs `[n, p + q]`, by LINE, of which all but the first are differences from it, and grey values."""
        places = self.items[chosen]
        inputs = torch.cat([array[places[:, None] + around] for array, around in self.seen], 1).float() / LINE
        inputs[:, 1:] -= inputs[:, :1].clone()
        return inputs, self.seen[0][0][places].float()


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


def train(network: Network, averaged: Network, training: list[Pixels], settings: TrainSettings,
          report: Callable[[int], None]) -> None:
    """Train; leave the running mean of the weights in `averaged`; call `report(step)` now and then."""
    optimiser = torch.optim.AdamW(network.parameters(), settings.rate, betas=(0.9, 0.98), weight_decay=1e-3)
    for step in range(1, settings.steps + 1):
        left = (1 - step / settings.steps) / (1 - EVEN_SHARE)
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min(1, step / 100, max(0.01, left))
        parts = [pixels.batch(torch.randint(len(pixels.items), (-(-settings.batch // len(training)),)))
                 for pixels in training]
        inputs, values = map(torch.cat, zip(*parts))
        quiet = sum(quiet_bits(network, pixels) / len(pixels.items) for pixels in training) / len(training)
        optimiser.zero_grad()
        (bits(network(inputs), values).mean() + quiet).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            network.keep_exact()
            for mean, current in zip(averaged.parameters(), network.parameters()):
                mean.lerp_(current, max(0.005, 20 / (step + 20)))
        if step % -(-settings.steps // REPORTS) == 0 or step == settings.steps:
            report(step)


def main(arguments: list[str] | None = None) -> None:
    """Read the slices, train, and write the folder, anew at each report."""
    settings = parse(TrainSettings, __doc__, arguments)
    files.check_folder(settings.out, "--out")
    torch.manual_seed(0)
    vqvae = None if settings.vqvae is None else api.load_vqvae(settings.vqvae)
    past = neighbours(settings.reach)
    around = np.zeros((0, 2), int) if vqvae is None else surroundings(settings.reconstruction_reach)

    def pixels(images: np.ndarray) -> Pixels:
        made = None if vqvae is None else to_bytes(api.decode(vqvae, api.encode(vqvae, images)))[:, 0].numpy()
        return Pixels(images[:, 0], made, past, around)

    training, judged, subjects = [], [], set()
    for data in settings.data:
        splits = api.load_images(data, ("train", "validate")).splits
        subjects |= {*map(subject_hash, splits["train"].subjects)}
        training.append(pixels(splits["train"].pixels))
        judged.append(pixels(splits["validate"].pixels[statistics.evenly(len(splits["validate"]), settings.judged)]))
    network, averaged = (Network(len(past) + len(around), settings.widths) for _ in range(2))
    if settings.start is not None:
        with torch.no_grad():
            network.read(settings.start)
    averaged.load_state_dict(network.state_dict())

    def report(step: int) -> None:
        found = [bits_per_pixel(averaged, pixels) for pixels in judged]
        print(f"step {step} of {settings.steps}: {', '.join(f'{each:.4f}' for each in found)} bits per pixel of "
              "validate", flush=True)
        told = {key: value for key, value in as_dict(settings).items() if key not in ("data", "out", "start", "vqvae")}
        config = {"kind": lossless.KIND, "settings": told, "training_subjects": sorted(subjects),
                  "versions": weights.versions()}
        weights.save_weights(settings.out / weights.WEIGHTS, averaged.tensors(past, around), config)
        files.write_json(settings.out / weights.CONFIG, config)

    train(network, averaged, training, settings, report)


if __name__ == "__main__":
    run_script(main)
