"""How fast vqvae2/models/quantizer.py is, as ratios to named references in the same run, at the same shapes.

    python benchmarks/quantizer.py
    python benchmarks/quantizer.py --threads 2 --rounds 20
    python benchmarks/quantizer.py --device cuda --vectors 1048576

Vectors `[images, dim, 32, 32]`, all in training mode with a moving average, decay 0.99, no k-means start, no restarts:
    ours              EmaQuantizer; channels_last vectors as in training here, and contiguous ones
    matmul            vectors x codebook into memory that is there already (out=): nothing but the product
    matmul, new       the same into new memory, as `vectors @ codebook.T` does
    textbook          one-hot matrix and distances as in most public code, written below
    vector-quantize   VectorQuantize of vector-quantize-pytorch, straight-through (no rotation trick), vectors as rows
    monai             VectorQuantizer(EMAQuantizer) of MONAI, contiguous or channels_last, whichever is faster

`forward` is a forward pass that collects statistics (where a reference updates its codebook in its forward, that is
in it); `step` is forward, backward and update. All are timed in turn; the least time of all rounds counts, and the
median is printed beside it. Peak memory is that of one step in a fresh process, above what it had before: on a CPU
the most resident memory (so also what the allocator keeps), on CUDA the most that PyTorch has allocated.
"""

import functools
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import processor

from vqvae2.common import distributed
from vqvae2.common.errors import run_script
from vqvae2.models.quantizer import BatchPlace, EmaQuantizer
from vqvae2.settings import checks, parsing

try:
    from vector_quantize_pytorch import VectorQuantize
except ImportError:
    VectorQuantize = None
try:
    from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer
except ImportError:
    EMAQuantizer = VectorQuantizer = None

SIDE = 32
DECAY = 0.99
TIMED_AT_ONCE = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/quantizer.py."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    threads: int = 1
    """CPU threads."""
    rounds: int = 10
    """Times that each is measured."""
    vectors: int = 65536
    """Vectors, a multiple of 1024 (32 x 32 an image)."""
    dim: int = 64
    """Their dimension."""
    codes: int = 512
    """Embeddings in the codebook."""

    def __post_init__(self) -> None:
        checks.expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 10.")
        checks.expect(self.threads >= 1, "--threads", "at least 1", self.threads, "The default is 1.")
        checks.expect(self.vectors >= SIDE**2 and self.vectors % SIDE**2 == 0, "--vectors",
                      f"a multiple of {SIDE**2}", self.vectors, "The default is 65536.")
        checks.expect(self.device != "cuda" or torch.cuda.is_available(), "--device cuda", "a GPU that PyTorch can use",
                      "none", "Use --device cpu.")

    @property
    def place(self) -> torch.device:
        """The device that is meant."""
        return distributed.pick_device() if self.device == "auto" else torch.device(self.device)


class Textbook(nn.Module):
    """A quantizer by one-hot matrix, as most public code has it (after van den Oord 2017, appendix A.1)."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings of the shape of `vectors` `[batch, dim, height, width]`, and the commitment."""
        moved = vectors.permute(0, 2, 3, 1).contiguous()
        rows = moved.view(-1, moved.shape[-1])
        distances = rows.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * rows @ self.codebook.T
        one_hot = torch.zeros_like(distances).scatter_(1, distances.argmin(1, keepdim=True), 1)
        embeddings = (one_hot @ self.codebook).view(moved.shape)
        with torch.no_grad():
            self.counts.mul_(DECAY).add_(one_hot.sum(0), alpha=1 - DECAY)
            self.sums.mul_(DECAY).add_(one_hot.T @ rows, alpha=1 - DECAY)
            self.codebook.copy_(self.sums / self.counts[:, None])
        commitment = functional.mse_loss(moved, embeddings.detach())
        return (moved + (embeddings - moved).detach()).permute(0, 3, 1, 2), commitment


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    torch.set_num_threads(settings.threads)
    on_gpu = settings.place.type == "cuda"
    name = torch.cuda.get_device_name(settings.place) if on_gpu else processor()
    print(f"{settings.vectors} vectors of dimension {settings.dim}, {settings.codes} codes; {name}, torch "
          f"{torch.__version__}, {settings.threads} thread(s)")
    for package, found in (("vector-quantize-pytorch", VectorQuantize), ("monai", VectorQuantizer)):
        if found is None:
            print(f"{package} is not installed and left out: pip install {package}")
    print_times(time_all(settings))
    print_memory(settings)
    if on_gpu:
        print(f"host synchronisation in a step: {synchronisations(settings)}")


def layouts(settings: BenchmarkSettings) -> dict[str, torch.Tensor]:
    """Return the same vectors in each way to store them: contiguous, channels_last, rows `[images, cells, dim]`."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(settings.vectors // SIDE**2, settings.dim, SIDE, SIDE, generator=generator)
    made = {"contiguous": vectors, "channels_last": vectors.contiguous(memory_format=torch.channels_last),
            "rows": vectors.flatten(2).mT.contiguous()}
    return {name: tensor.to(settings.place).requires_grad_() for name, tensor in made.items()}


def quantizers() -> list[str]:
    """Return the names of what can be measured here: kind, and how its vectors are stored."""
    names = ["ours, channels_last", "ours, contiguous", "textbook, channels_last", "textbook, contiguous"]
    names += ["vector-quantize, rows"] if VectorQuantize else []
    return names + (["monai, channels_last", "monai, contiguous"] if VectorQuantizer else [])


def make(name: str, settings: BenchmarkSettings) -> tuple[Callable, Callable]:
    """Return forward, from vectors to embeddings and commitment, and update, of a new quantizer in training mode."""
    torch.manual_seed(0)
    kind, codes, dim = name.split(",")[0], settings.codes, settings.dim
    if kind == "ours":
        return make_ours(settings)
    if kind == "textbook":
        return Textbook(codes, dim).to(settings.place).train(), no_update
    if kind == "vector-quantize":
        layer = VectorQuantize(dim, codes, decay=DECAY, commitment_weight=1.0, kmeans_init=False,
                               threshold_ema_dead_code=0, rotation_trick=False).to(settings.place).train()
        return lambda vectors: layer(vectors)[::2], no_update
    layer = VectorQuantizer(EMAQuantizer(2, codes, dim, decay=DECAY, commitment_cost=1.0)).to(settings.place).train()
    return lambda vectors: layer(vectors)[::-1], no_update


def no_update() -> None:
    """Update nothing: the forward pass has updated the codebook."""


def make_ours(settings: BenchmarkSettings, step: int = 0) -> tuple[Callable, Callable]:
    """As `make`; with `step` 0 no candidates are drawn, with RESTART_EVERY - 1 embeddings are restarted."""
    layer = EmaQuantizer(settings.codes, settings.dim, DECAY).train()
    layer.codebook.normal_()
    layer.counts.fill_(settings.vectors / settings.codes)
    layer.sums.copy_(layer.codebook * layer.counts[:, None])
    layer.updates.fill_(1e6)
    layer.is_started.fill_(True)
    layer.started = True
    layer.to(settings.place)
    images = settings.vectors // SIDE**2
    place = BatchPlace(torch.arange(images, device=settings.place), images, step)

    def forward(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = layer(vectors, place)
        return made.vectors, made.commitment
    return forward, layer.update


def train(forward: Callable, update: Callable, vectors: torch.Tensor, gradient: torch.Tensor) -> None:
    """Do a step: forward, backward from a gradient that is there already, update."""
    embeddings, commitment = forward(vectors)
    torch.autograd.backward([embeddings, commitment], [gradient, torch.ones_like(commitment)])
    update()
    vectors.grad = None


def time_all(settings: BenchmarkSettings) -> dict[str, list[float]]:
    """Return the seconds of each piece of work in each round."""
    stored = layouts(settings)
    gradients = {name: torch.randn_like(tensor) for name, tensor in stored.items()}  # in the same layout
    rows = stored["rows"].detach().flatten(0, 1)
    codebook = torch.randn(settings.codes, settings.dim, device=settings.place)
    product = rows.new_empty(settings.vectors, settings.codes)
    works = {"matmul": lambda: torch.mm(rows, codebook.T, out=product), "matmul, new": lambda: rows @ codebook.T}
    for name in quantizers():
        layout = name.split(", ")[1]
        forward, update = make(name, settings)
        works[f"forward, {name}"] = functools.partial(forward, stored[layout])
        works[f"step, {name}"] = functools.partial(train, forward, update, stored[layout], gradients[layout])
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(settings.rounds):
        for name, work in works.items():
            seconds[name].append(time_of(work, settings.place))
    return seconds


def time_of(work: Callable, device: torch.device) -> float:
    """Return the seconds that it takes; on a GPU between events, many at once, so that the host is not in it."""
    if device.type == "cpu":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(TIMED_AT_ONCE["cuda"]):
        work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000 / TIMED_AT_ONCE["cuda"]


def print_times(seconds: dict[str, list[float]]) -> None:
    """Print each time, and the ratios of the least ones."""
    print(f"\n{'milliseconds':44s} {'least':>8s} {'median':>8s}")
    for name, each in seconds.items():
        print(f"  {name:42s} {1000 * min(each):8.2f} {1000 * statistics.median(each):8.2f}")
    for what in ("forward", "step"):
        least = {name.removeprefix(f"{what}, "): min(each) for name, each in seconds.items() if name.startswith(what)}
        ours = least["ours, channels_last"]
        print(f"ratio {what}/matmul {ours / min(seconds['matmul']):.2f}x")
        print(f"ratio {what}-contiguous/matmul {least['ours, contiguous'] / min(seconds['matmul']):.2f}x")
        print(f"ratio {what}/matmul-new-memory {ours / min(seconds['matmul, new']):.2f}x")
        for kind in dict.fromkeys(name.split(", ")[0] for name in least):
            if kind != "ours":
                best = min(value for name, value in least.items() if name.startswith(kind))
                print(f"ratio {kind}/{what} {best / ours:.2f}x")


def print_memory(settings: BenchmarkSettings) -> None:
    """Print the peak memory of a step of each, and the ratios to ours."""
    if settings.place.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        return
    peaks = {}
    for name in ("matmul", *quantizers()):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_of_a_step, name, settings).result()
    print(f"\npeak memory of a step, MB above the vectors and their gradient "
          f"({2 * 4e-6 * settings.vectors * settings.dim:.0f} MB)")
    for name, peak in peaks.items():
        print(f"  {name:42s} {peak / 1e6:8.1f}")
    for name, peak in peaks.items():
        if not name.startswith("ours"):
            print(f"ratio memory-{name.replace(', ', '-')}/ours {peak / peaks['ours, channels_last']:.1f}x")


def peak_of_a_step(name: str, settings: BenchmarkSettings) -> int:
    """Return the bytes that the first large step takes at most, after a small one that loads what is loaded once."""
    torch.set_num_threads(settings.threads)
    layout = name.split(", ")[-1]
    for images in (1, settings.vectors // SIDE**2):
        stored = layouts(settings)["rows" if name == "matmul" else layout].detach()[:images].clone(
            memory_format=torch.preserve_format).requires_grad_()
        gradient = torch.ones_like(stored)
        if name == "matmul":
            rows, codebook = stored.detach().flatten(0, 1), torch.randn(settings.codes, settings.dim).to(stored.device)
            work = functools.partial(torch.mm, rows, codebook.T)
        else:
            smaller = BenchmarkSettings(**{**vars(settings), "vectors": images * SIDE**2})
            work = functools.partial(train, *make(name, smaller), stored, gradient)
        peak = peak_of(work, settings.place)
    return peak


def peak_of(work: Callable, device: torch.device) -> int:
    """Return by how many bytes memory grows at most while this runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    status = Path("/proc/self/status")

    def read(what: str) -> int:
        return 1024 * int(re.search(rf"{what}:\s*(\d+) kB", status.read_text())[1])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def synchronisations(settings: BenchmarkSettings) -> str:
    """Return "ok" if a step, and one with restarts, never make the host wait for the GPU; else what did."""
    vectors = layouts(settings)["channels_last"]
    gradient = torch.randn_like(vectors)
    for step in (0, 9):
        forward, update = make_ours(settings, step)
        train(forward, update, vectors, gradient)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(forward, update, vectors, gradient)
        except RuntimeError as error:
            return f"step {step}: {error}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "ok"


if __name__ == "__main__":
    run_script(main)
