"""How fast images come to a training step, as ratios to the plain way in the same run, on the same files.

    python benchmarks/loader.py
    python benchmarks/loader.py --sizes 256 --images 4000 --rounds 5

Reference: a torch DataLoader over the same PNGs, shuffled, each decoded with PIL when its turn comes, with 0 and 2
worker processes (the workers' start is not counted).

Synthetic PNGs are made in a temporary folder. Measured are the start (listing, decoding, hashing), batches from memory
with and without --augment, one training step of the default network (which says how much of it the loader takes), and
with the largest size the memory of a process (Pss, which counts a page that N processes map as 1/N) with 1 and 2
processes. The least time of all rounds counts; everything is on the CPU.

What it costs that each file is hashed as it is read is measured by starts with and without it, one after the other.
"""

import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from common import processor
from ranks import run_on_ranks

from vqvae2.common import distributed
from vqvae2.common.errors import run_script
from vqvae2.images import dataset, reading
from vqvae2.images.augmentation import Augmentation
from vqvae2.images.settings import DataSettings
from vqvae2.settings import checks, parsing
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.trainer import Share
from vqvae2.training.vqvae import VqvaeTrainer


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/loader.py."""

    sizes: tuple[int, ...] = (64, 128, 256)
    """Heights and widths of the images, one benchmark each."""
    images: int = 2000
    """Number of PNGs of each size."""
    batch: int = 32
    """Images in a batch."""
    rounds: int = 3
    """Times that each is measured; the least counts."""
    threads: int = 1
    """Threads of torch, as each process has where there are as many processes as cores."""

    def __post_init__(self) -> None:
        checks.expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 3.")
        checks.expect(self.images >= self.batch >= 1, "--images", f"at least --batch {self.batch}", self.images,
                      "The default is 2000.")


class Files(Dataset):
    """The plain way: a picture is decoded each time it is asked for."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        with Image.open(self.paths[i]) as picture:
            return torch.from_numpy(np.array(picture))[None].float() / 255


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    torch.set_num_threads(settings.threads)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, {settings.threads} thread(s); torch "
          f"{torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}")
    for size in settings.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder) / "train", settings.images, size)
            measure(settings, Path(folder), size)


def measure(settings: BenchmarkSettings, folder: Path, size: int) -> None:
    """Print one size's figures and ratios."""
    data = DataSettings(dataset="folder", data=folder)
    decoding, hashing = [], []
    for _ in range(settings.rounds):
        decoding.append(seconds(lambda: dataset.load_images(data)))
        loaded = dataset.load_images(data)
        hashing.append(seconds(loaded.describe))
    split = loaded.splits["train"]
    orders = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).split(settings.batch)

    training = TrainVqvae(savename="v", epochs=1, batch=settings.batch, augment=True)
    augmentation = Augmentation(training, split.facts, loaded.field_of_view)

    def augmented() -> Iterable[torch.Tensor]:
        return (augmentation(split.batch(items), items, 1) for items in orders)

    rates = {"start": len(split) / (min(decoding) + min(hashing)),
             "batches": best_rate(settings, len(split), lambda: (split.batch(items) for items in orders)),
             "batches with --augment": best_rate(settings, len(split), augmented)}
    for workers in (0, 2):
        loader = DataLoader(Files(sorted(folder.rglob("*.png"))), settings.batch, shuffle=True, num_workers=workers,
                            persistent_workers=workers > 0)
        exhaust(loader)  # starts the workers
        rates[f"DataLoader, {workers} workers"] = best_rate(settings, len(split), lambda loader=loader: loader)
        del loader
    rates["training step"] = step_rate(settings, folder, size)
    print(f"\n{size}², {len(split)} images, {len(split) * size * size / 1e6:.0f} MB decoded; images/s:")
    for name, rate in rates.items():
        print(f"  {name:24s} {rate:10,.0f}")
    for name in ("batches", "batches with --augment"):
        for reference in ("DataLoader, 0 workers", "DataLoader, 2 workers", "training step"):
            ratio(f"{size}² {name} / {reference}", rates[name] / rates[reference])
    ratio(f"{size}² start / one epoch of DataLoader, 0 workers", rates["start"] / rates["DataLoader, 0 workers"])
    ratio(f"{size}² start with each file's hash / without", cost_of_hashes(settings, data))
    if size == max(settings.sizes):  # of small ones the interpreter's own comings and goings would be most
        print_memory(folder, len(split) * size * size)


def cost_of_hashes(settings: BenchmarkSettings, data: DataSettings) -> float:
    """Return how many times longer a start takes because the files are hashed: the median of interleaved rounds."""
    without = SimpleNamespace(sha256=lambda content: SimpleNamespace(digest=lambda: bytes(range(32))))

    def start() -> None:
        dataset.load_images(data).describe()

    ratios = []
    for _ in range(5 * settings.rounds):
        with mock.patch.object(reading, "hashlib", without):
            before = seconds(start)
        hashed = seconds(start)
        with mock.patch.object(reading, "hashlib", without):
            ratios.append(2 * hashed / (before + seconds(start)))
    return median(ratios)


def print_memory(folder: Path, decoded: int) -> None:
    """Print what the images add to the memory of each process, as ratios to their size, and how long they take."""
    starts = {}
    for ranks in (1, 2):
        found = run_on_ranks(ranks, load_on_rank, str(folder))
        starts[ranks] = max(own["seconds"] for own in found)
        print(f"  {ranks} process(es): {starts[ranks]:.2f} s to load, MB for the images in each: "
              + ", ".join(f"{own['pss'] / 1e6:.1f}" for own in found))
        ratio(f"memory of {ranks} process(es) together / decoded images", sum(own["pss"] for own in found) / decoded)
    ratio("loading by 1 process / by 2 on one machine", starts[1] / starts[2])


def load_on_rank(folder: str) -> dict[str, float]:
    """Return what loading adds to this process's Pss, in bytes, after all ranks have read every page; and its time."""
    before = pss()
    began = time.perf_counter()
    loaded = dataset.load_images(DataSettings(dataset="folder", data=Path(folder)))
    took = time.perf_counter() - began
    loaded.splits["train"].pixels.max()
    distributed.barrier()  # the other rank has mapped its pages too
    gc.collect()
    after = pss()
    distributed.barrier()
    return {"pss": after - before, "seconds": took}


def pss() -> int:
    """Return this process's proportional share of the memory it maps, in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def step_rate(settings: BenchmarkSettings, folder: Path, size: int) -> float:
    """Return images/s of forward, backward and Adam of the default network alone, in fp32."""
    trainer = VqvaeTrainer(TrainVqvae(dataset="folder", data=folder, savename="v", epochs=1, batch=8))
    trainer.device, trainer.steps_per_epoch = torch.device("cpu"), 1000
    trainer.start()
    model = trainer.build().train()
    adam = trainer.optimizer(model.parameters())
    batch = min(settings.batch, max(2, 32 * 64 * 64 // size**2))
    share = Share(torch.arange(batch), torch.arange(batch), batch, 0, 0)

    def step() -> None:
        adam.zero_grad()
        trainer.losses(model, share)["loss"].mean().backward()
        adam.step()

    step()
    return batch / min(seconds(step) for _ in range(settings.rounds))


def best_rate(settings: BenchmarkSettings, count: int, batches: Callable[[], Iterable[torch.Tensor]]) -> float:
    """Return images/s of going through all batches once, the best of all rounds."""
    return count / min(seconds(lambda: exhaust(batches())) for _ in range(settings.rounds))


def exhaust(batches: Iterable[torch.Tensor]) -> None:
    for batch in batches:
        assert batch.dtype == torch.float32


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(name: str, value: float) -> None:
    print(f"ratio {name} {value:.1f}x" if value >= 10 else f"ratio {name} {value:.3f}x", flush=True)


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Write heads of grainy tissue on black, which compress about as far as slices of brains do."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    for number in range(count):
        wide, tall = draws.uniform(0.55, 0.7), draws.uniform(0.75, 0.9)
        tissue = 130 + 60 * np.sin(9 * x + number) * np.sin(7 * y) + draws.normal(0, 6, (size, size))
        head = np.where((x / wide)**2 + (y / tall)**2 < 1, tissue.clip(1, 255), 0)
        Image.fromarray(head.astype(np.uint8)).save(folder / f"{number:06d}.png")


if __name__ == "__main__":
    run_script(main)
