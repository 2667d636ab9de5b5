"""How time and memory grow with images, code maps, processes and planes -> a table in Markdown.

    python benchmarks/growth.py                              # about 10 minutes of one core
    python benchmarks/growth.py --scans ~/data/scans         # planes of a real scan instead of a made-up one
    python benchmarks/growth.py --only load "draw top"       # some rows
    python benchmarks/growth.py --quick                      # does it run?

Each figure is that of a fresh process of one thread, by the functions that the commands use: processor time for one
item (an image, a code, a pixel, a slice), and the peak of memory above the process's imports. A line is straight where
an item costs the same in the largest size as in the smallest. Everything is made up from seed 0 but --scans:

    load, epoch         PNGs of 32 x 32 pixels into memory, with their hashes; all batches of an epoch, from memory
    encode              the same images into codes, by a VQ-VAE of 16 channels with fresh weights
    gallery, nearest    what an evaluation prepares of each training image to find copies; one image's search among all
                        of them, for each training image
    train top, bottom   forward and backward of the default priors in fp32, one map of 16 to 128 codes a side
    draw top, bottom    a code of one map, the mean of four evenly spaced rows; what is drawn is the likeliest code
    VQ-VAE              a training step of the default network, two images whose bottom maps have 16 to 128 codes a side
    processes           the same step, 8 images of 128 x 128 pixels shared out to processes; the processor time of all
    planes              60 slices of each plane of one scan, with all that is done for the scan
"""

import contextlib
import functools
import io
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ["OMP_NUM_THREADS"] = "1"

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import forget_peak, peak, processor
from loader import write_pictures
from scan_memory import made_up
from train import BATCHES, Processes, Task, write_images

from vqvae2.common.errors import run_script
from vqvae2.evaluation.copies import Gallery
from vqvae2.evaluation.text import markdown_table
from vqvae2.images import dataset
from vqvae2.images.settings import DataSettings
from vqvae2.models import encoding
from vqvae2.models.autoencoder import Vqvae
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.scans.finding import Scan, find_scans
from vqvae2.settings import checks, parsing
from vqvae2.slices.scan_slices import work_on
from vqvae2.slices.settings import ExtractSettings
from vqvae2.training.settings import TrainPrior, TrainVqvae

SIZE = 32
"""Height and width of the images of which there are many."""
BATCH = 32
CODES, DIM = 512, 64
SCAN = "scan.nii.gz"
UNITS = {"s": 1, "ms": 1e3, "µs": 1e6}
QUERIES, ROWS_TIMED, ROUNDS = 5, 4, 3
STRAIGHT = (0.75, 1.33)
"""What an item costs in the largest size, as a share of what it costs in the smallest, where a line is straight."""
Name = Literal["load", "epoch", "encode", "gallery", "nearest", "train top", "train bottom", "draw top", "draw bottom",
               "VQ-VAE", "processes", "planes"]
SHARED = "what is done once is shared by more items"
ATTENTION = "attention: each code looks at all before it, so a map costs the square of its codes"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/growth.py."""

    images: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of images."""
    sides: tuple[int, ...] = (16, 32, 64, 128)
    """Heights and widths of code maps, multiples of 16."""
    only: tuple[Name, ...] = ()
    """Rows of the table. Default: all."""
    scans: Path | None = None
    """Folder of raw scans, of which the first is cut. Default: a ball of noise, 192 voxels a side."""
    quick: bool = False
    """Few images and small maps, all in this process: does it run? Its memory means nothing."""

    def __post_init__(self) -> None:
        checks.expect(all(count >= 1 for count in self.images), "--images", "1 or more", self.images,
                      "For example 1000 10000.")
        checks.expect(all(side >= 16 and side % 16 == 0 for side in self.sides), "--sides", "multiples of 16",
                      self.sides, "For example 16 32.")


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    item: str
    """What the cost is of."""
    sizes: tuple[int, ...]
    work: Callable[[Path, int], tuple[float, float]]
    """A function of the folder of what was made up, and a size: processor seconds of an item, and bytes of memory."""
    why: str
    """Why the line bends upwards, if it does; "" where nothing is known that bends it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    print(f"{processor()}; torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}")
    images, sides = ((40, 80), (16, 32)) if settings.quick else (settings.images, settings.sides)
    in_process = alone if settings.quick else fresh

    def row(item: str, sizes: tuple[int, ...], work: Callable, why: str = "") -> Row:
        return Row(item, sizes, functools.partial(in_process, work), why)

    rows = {"load": row("image", images, load), "epoch": row("image", images, epoch),
            "encode": row("image", images, encode), "gallery": row("image", images, gallery),
            "nearest": row("pair", images, nearest),
            **{f"{verb} {level}": row("code", sides, functools.partial(work, level), why)
               for verb, work in (("train", train), ("draw", draw))
               for level, why in (("top", ATTENTION), ("bottom", ""))},
            "VQ-VAE": Row("pixel", sides, step_of_vqvae, ""),
            "processes": Row("image", (1, 2), step_of_processes, ""),
            "planes": row("slice", (1, 3), functools.partial(planes, settings.scans))}
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        if settings.scans is None:
            nib.save(nib.Nifti1Image(made_up(32 if settings.quick else 192)["float32"], np.eye(4)), Path(folder, SCAN))
        for count in images:
            write_pictures(Path(folder, f"images-{count}", "train"), count, SIZE)
        for name in settings.only or rows:
            found = [rows[name].work(Path(folder), size) for size in rows[name].sizes]
            cells.append(cells_of(name, rows[name], found))
            print(" | ".join(cells[-1]), file=sys.stderr, flush=True)
    print(markdown_table(("what", "sizes", "processor time of an item", "peak memory, MB", "largest / smallest",
                          "straight?"), cells))


def cells_of(name: str, row: Row, found: list[tuple[float, float]]) -> tuple[str, ...]:
    """Return the cells of a row; the times have the unit in which the smallest is 1 or more."""
    times = [seconds for seconds, _ in found]
    unit, scale = next((each for each in UNITS.items() if min(times) * each[1] >= 1), ("ns", 1e9))
    growth = times[-1] / times[0]
    why = f"no{row.why and ': '}{row.why}" if growth > STRAIGHT[1] else f"better: {SHARED}"
    straight = "yes" if STRAIGHT[0] <= growth <= STRAIGHT[1] else why
    return (name, ", ".join(f"{size:,}" for size in row.sizes),
            ", ".join(f"{seconds * scale:.3g}" for seconds in times) + f" {unit} ({row.item})",
            ", ".join(f"{taken / 1e6:,.0f}" for _, taken in found), f"{growth:.2f}x", straight)


# In the processes ---------------------------------------------------------------------------------


def fresh(work: Callable, folder: Path, size: int) -> tuple[float, float]:
    """Return what `alone` returns in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(alone, work, folder, size).result()


def alone(work: Callable, folder: Path, size: int) -> tuple[float, float]:
    """Return the processor seconds of an item, and the peak of memory above what there is now."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = forget_peak()
    with contextlib.redirect_stdout(io.StringIO()):
        seconds = work(folder, size)
    return seconds, peak() - before


def seconds_of(work: Callable[[], object]) -> float:
    """Return the processor seconds that it takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def data(folder: Path, count: int) -> DataSettings:
    return DataSettings(dataset="folder", data=folder / f"images-{count}")


def split(folder: Path, count: int) -> dataset.ImageSet:
    """Return `count` images in memory."""
    return dataset.load_images(data(folder, count)).splits["train"]


def load(folder: Path, count: int) -> float:
    where = data(folder, count)
    return seconds_of(lambda: dataset.load_images(where)) / count


def epoch(folder: Path, count: int) -> float:
    images, order = split(folder, count), torch.randperm(count).split(BATCH)
    return seconds_of(lambda: [images.batch(items) for items in order] and None) / count


def encode(folder: Path, count: int) -> float:
    images = split(folder, count)
    model = Vqvae(TrainVqvae(savename="v", epochs=1, batch=1, channels=16, residual_channels=8, embedding_dim=16,
                             codebook_size=64)).eval()
    return seconds_of(lambda: encoding.extract(model, images, BATCH)) / count


def gallery(folder: Path, count: int) -> float:
    images = split(folder, count)
    return seconds_of(lambda: Gallery(images.pixels)) / count


def nearest(folder: Path, count: int) -> float:
    """The queries are training images with noise, each of which has one that is near."""
    images = split(folder, count)
    known, noise = Gallery(images.pixels), np.random.default_rng(0)
    queries = [np.clip(images.pixels[item] + noise.normal(0, 20, images.pixels[item].shape), 0, 255).astype(np.uint8)
               for item in range(QUERIES)]
    return seconds_of(lambda: [known.nearest(query) for query in queries]) / count / QUERIES


def prior_of(level: str, side: int) -> tuple[PixelCNN, torch.Tensor, torch.Tensor | None]:
    """Return a default prior with fresh weights, codes of its level, and top codes, if it is told any."""
    half = side // 2
    top = (torch.randn(CODES, DIM), (half, half)) if level == "bottom" else (None, None)
    prior = PixelCNN(TrainPrior(savename="x", epochs=1, batch=1, vqvae="x", level=level), torch.randn(CODES, DIM),
                     (side, side), *top)
    return prior, torch.randint(CODES, (1, side, side)), torch.randint(CODES, (1, half, half)) if top[1] else None


def train(level: str, _: Path, side: int) -> float:
    prior, codes, top_codes = prior_of(level, side)

    def step() -> None:
        prior.zero_grad()
        functional.cross_entropy(prior(codes, top_codes), codes).backward()
    step()
    return min(seconds_of(step) for _ in range(ROUNDS if side <= 64 else 1)) / side**2


@torch.no_grad()
def draw(level: str, _: Path, side: int) -> float:
    prior, _, top_codes = prior_of(level, side)
    state = prior.eval().cursor(1, top_codes)

    def draw_row(row: int) -> None:
        for column in range(side):
            state.tell(column, state.step(row, column).argmax(1))
    draw_row(0)  # compiles the loops
    rows = [int((i + 0.5) * side / ROWS_TIMED) for i in range(ROWS_TIMED)]
    return sum(min(seconds_of(lambda row=row: draw_row(row)) for _ in range(ROUNDS)) for row in rows) / side / len(rows)


def planes(scans: Path | None, folder: Path, count: int) -> float:
    """The brain mask of the first scan, if it has one, is left out."""
    scan = Scan(folder / SCAN, SCAN, "scan") if scans is None else find_scans(scans, mask_suffixes=()).scans[0]
    asked = ExtractSettings(per_scan=60, planes=("axial", "coronal", "sagittal")[:count])
    rows, least = [], np.inf
    for number in range(ROUNDS):
        least = min(least, seconds_of(
            lambda number=number: rows.extend(work_on(scan, asked, folder / f"slices-{count}-{number}", "", "").rows)))
    return least * ROUNDS / len(rows)


# Trainings have processes of their own --------------------------------------------------------------


def step_of_vqvae(folder: Path, side: int) -> tuple[float, float]:
    return vqvae_step(folder, 4 * side, 2, 1, 2 * (4 * side)**2)


def step_of_processes(folder: Path, ranks: int) -> tuple[float, float]:
    return vqvae_step(folder, 128, 8, ranks, 8)


def vqvae_step(folder: Path, size: int, batch: int, ranks: int, items: int) -> tuple[float, float]:
    """Return the processor seconds of an item of a training step, in all processes, and the most memory of one."""
    images = folder / f"images-of-{size}"
    write_images(images / "train", BATCHES * batch, size)
    processes = Processes(Task("ours", size, batch, "cpu", 1, ranks, "auto", "never", str(images),
                               str(folder / f"runs-{size}-{ranks}")))
    for _ in range(ROUNDS):
        processes.measure("step", 1)
    return processes.least_cpu("step") / items, processes.end()


if __name__ == "__main__":
    run_script(main)
