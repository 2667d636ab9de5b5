"""How fast code maps are drawn, as ratios to the slow way, an earlier commit and reading weights, in the same run.

    python benchmarks/sampling.py                    # 8 images at a time; 4 minutes of one core's time
    python benchmarks/sampling.py --full             # 1, 8 and 64 images at a time; half an hour of it
    python benchmarks/sampling.py --device cuda --full
    python benchmarks/sampling.py --precision fp64   # as sample.py draws unless it is told otherwise
    git worktree add ../before 8d00b91
    python benchmarks/sampling.py --batches 1 64 --sides 32 64 --priors top bottom --slow no --against ../before

Priors with fresh weights and codes drawn as sample.py --precision fp32 draws them, each number the time of one image:
    cached     as sample.py draws: by compiled loops on a CPU with numba, in groups that fit the cache. A position is a
               step, a choice and telling it. Timed are the start and evenly spaced rows
    torch      PixelCNNCursor, all images together: what a GPU does, and a CPU without numba
    before     the cached way of the earlier commit in --against, in a process of its own
    slow       Prior.forward on the whole map for each position, and a choice. All positions cost the same: a few are
               timed and the time is multiplied by their number, as are more than 8 images, of which 8 are timed
    matvecs    every matrix that a position needs times one vector, nothing else: what one image at a time can cost
               at least, by products of torch
    reading    the sum over the same matrices: what the memory gives

top is the default top prior, bottom the default bottom prior (no attention, conditioned on a top map of half the side),
large a top prior of about 85 million weights, after the VQ-VAE-2 paper (Razavi 2019, appendix). The ways take turns,
and the least time of each counts; with one CPU thread that is processor time, which hardly depends on other programs.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import processor

from vqvae2.common import distributed
from vqvae2.common.errors import run_script
from vqvae2.priors import stepping
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.priors.stepping import PixelCNNCursor
from vqvae2.sampling.sampler import SamplingRule, choose
from vqvae2.settings import checks, parsing
from vqvae2.training.settings import TrainPrior

CODES, DIM = 512, 64
PRIORS = {"top": {"level": "top"}, "bottom": {"level": "bottom"},
          "large": {"level": "top", "channels": 512, "layers": 24, "attention_every": 6, "heads": 8}}
ROWS_TIMED = 4
SLOW_AT_ONCE = 8
"""Images at most for which the slow way is timed."""
GOALS = {("cached", "matvecs"): "at most 2x", ("before", "cached"): "at least 2x with 64 images"}
CURSORS = "vqvae2.priors.stepping", "vqvae2.priors.compiled"
"""The modules of what a cursor consists of."""
WORKER = """
import json, sys, torch
sys.path.insert(0, "benchmarks")
import sampling
methods_of = getattr(sampling, "DrawingMethods", None) or sampling.Ways  # its name at 8d00b91
torch.set_num_threads(1)
made = {}
for line in sys.stdin:
    kind, side, batch, precision = key = tuple(json.loads(line))
    if key not in made:
        prior = sampling.make(kind, side, torch.device("cpu")).to(getattr(torch, precision))
        made = {key: methods_of(prior, batch)}
    with torch.no_grad():
        print(made[key].cached(), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/sampling.py."""

    full: bool = False
    """1, 8 and 64 images at a time instead of --batches."""
    batches: tuple[int, ...] = (8,)
    """Images at a time."""
    against: Path | None = None
    """A checkout of an earlier commit, on the CPU."""
    slow: Literal["yes", "no"] = "yes"
    """Whether the slow way is timed."""
    sides: tuple[int, ...] = (16, 32, 64)
    """Heights and widths of the code maps, even."""
    priors: tuple[Literal["top", "bottom", "large"], ...] = ("top", "bottom", "large")
    """Which priors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    precision: Literal["fp32", "fp64"] = "fp32"
    """fp64 is what sample.py draws in by default."""
    threads: int = 1
    """CPU threads; sampling uses one."""
    seconds: float = 10
    """For each prior, size and batch: rounds go on until then, and there are at least two (of the slow way one)."""

    def __post_init__(self) -> None:
        checks.expect(self.threads >= 1, "--threads", "at least 1", self.threads, "The default is 1.")
        checks.expect(all(side >= 2 and side % 2 == 0 for side in self.sides), "--sides", "even numbers of 2 or more",
                      " ".join(map(str, self.sides)), "For example 16 32.")
        checks.expect(self.device != "cuda" or torch.cuda.is_available(), "--device cuda", "a GPU that PyTorch can use",
                      "none", "Use --device cpu.")

    @property
    def dtype(self) -> torch.dtype:
        """The data type in which the priors compute."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    @property
    def place(self) -> torch.device:
        """The device that is meant."""
        return distributed.pick_device() if self.device == "auto" else torch.device(self.device)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    torch.set_num_threads(settings.threads)
    place = settings.place
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else processor()
    print(f"{name}, torch {torch.__version__}, {settings.threads} thread(s), {settings.precision}")
    before = Before(settings.against) if settings.against else None
    for kind in settings.priors:
        costs = {}
        for side in settings.sides:
            prior = make(kind, side, place).to(settings.dtype)
            for batch in (1, 8, 64) if settings.full else settings.batches:
                methods = DrawingMethods(prior, batch)
                ways = {"cached": methods.cached, "torch": methods.uncompiled}
                if before is not None:
                    ways["before"] = lambda own=(kind, side, batch): before.seconds(*own, settings.dtype)
                if settings.slow == "yes":
                    ways["slow"] = methods.slow
                costs[side, batch] = compare(f"{kind} {side}²", methods, ways, settings.seconds)
        print_growth(kind, costs)
        bound(kind, make(kind, min(32, max(settings.sides)), place).to(settings.dtype), settings.seconds)


def make(kind: str, side: int, place: torch.device) -> PixelCNN:
    """Return a prior of that kind for maps of `side` x `side` codes, with fresh weights."""
    torch.manual_seed(0)
    options = TrainPrior(savename="x", epochs=1, batch=1, vqvae="x", **PRIORS[kind])
    top = (torch.randn(CODES, DIM), (side // 2, side // 2)) if kind == "bottom" else (None, None)
    return PixelCNN(options, torch.randn(CODES, DIM), (side, side), *top).to(place).eval()


class Before:
    """The cached way of an earlier commit, timed in a process of its own."""

    def __init__(self, folder: Path):
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], cwd=folder, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def seconds(self, kind: str, side: int, batch: int, dtype: torch.dtype) -> float:
        """Return the seconds of a map of each of `batch` images."""
        self.process.stdin.write(json.dumps([kind, side, batch, str(dtype).removeprefix("torch.")]) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


class DrawingMethods:
    """The ways to sample `batch` maps of a prior; each method returns the seconds of a whole map, timed on a part."""

    def __init__(self, prior: PixelCNN, batch: int):
        self.prior, self.batch, self.side, self.place = prior, batch, prior.shape[0], prior.bias.device
        side = self.side // 2
        self.top_codes = None if prior.conditioner is None else torch.randint(
            CODES, (batch, side, side), device=self.place)
        self.uniform = torch.rand(batch, dtype=torch.float64, device=self.place)
        self.rule = SamplingRule()
        self.bytes = 0
        self.least_of_rows: dict[tuple[str, int], float] = {}

    def slow(self) -> float:
        """One position on at most 8 maps."""
        batch = min(self.batch, SLOW_AT_ONCE)
        codes = torch.zeros(batch, self.side, self.side, dtype=torch.long, device=self.place)
        top_codes = None if self.top_codes is None else self.top_codes[:batch]
        took = seconds(self.place, lambda: choose(self.prior(codes, top_codes)[:, :, -1, -1], self.uniform[:batch],
                                                  self.rule))
        return took * self.side**2 * self.batch / batch

    def cached(self) -> float:
        """Groups of images, one after the other."""
        at_once = min(self.batch, self.prior.maps_at_once or self.batch)
        return self._timed("cached", self.prior.cursor, at_once) * self.batch / at_once

    def uncompiled(self) -> float:
        """All images together, by operations of torch."""
        with mock.patch.object(stepping, "compiled_loops", return_value=None):
            return self._timed("torch", self.prior.cursor, self.batch)

    def _timed(self, name: str, make_cursor: Callable, batch: int) -> float:
        """The start, and the mean of evenly spaced rows, each at its fastest so far: attention's cost is linear."""
        cursors, top_codes = [], None if self.top_codes is None else self.top_codes[:batch]
        start = seconds(self.place, lambda: cursors.append(make_cursor(batch, top_codes)))
        if name == "cached":
            self.bytes = bytes_of(cursors[0], self.prior)
        count = min(ROWS_TIMED, self.side)
        rows = [int((i + 0.5) * self.side / count) for i in range(count)]
        for row in rows:
            took = seconds(self.place, lambda row=row: self.draw_row(cursors[0], row, self.uniform[:batch]))
            self.least_of_rows[name, row] = min(took, self.least_of_rows.get((name, row), math.inf))
        return start + self.side * sum(self.least_of_rows[name, row] for row in rows) / count

    def draw_row(self, cursor: PixelCNNCursor, row: int, uniform: torch.Tensor) -> None:
        """Draw a row of codes."""
        for column in range(self.side):
            cursor.tell(column, choose(cursor.step(row, column), uniform, self.rule))


def compare(name: str, methods: DrawingMethods, ways: dict[str, Callable[[], float]], least_seconds: float) -> float:
    """Print seconds for an image by each way, and their ratios; return the cached way's for a code."""
    least, began, rounds, batch, positions = {}, time.perf_counter(), 0, methods.batch, methods.side**2
    while rounds < 2 or time.perf_counter() - began < least_seconds:
        # A whole map of a large prior takes a minute: once is enough.
        late = rounds > 0 and time.perf_counter() - began > least_seconds
        for way, time_of in ways.items():
            if not late or way != "slow":
                least[way] = min(time_of(), least.get(way, math.inf))
        rounds += 1
    each = {way: took / batch for way, took in least.items()}
    print(f"{name}, batch {batch}, {rounds} round(s): seconds an image: "
          + ", ".join(f"{way} {took:.4g}" for way, took in each.items())
          + (f" (slow: 1 of {positions} positions and {min(batch, SLOW_AT_ONCE)} of {batch} images timed and scaled)"
             if "slow" in ways else "")
          + f"; {1 / each['cached']:.3g} images/s; state and copied weights {methods.bytes / 1e6:.4g} MB")
    for way in [way for way in ways if way != "cached"]:
        print_ratio(f"{name}, batch {batch}", way, "cached", each[way] / each["cached"])
    return least["cached"] / positions


def print_ratio(name: str, way: str, other: str, ratio: float) -> None:
    """Print a ratio, and its goal."""
    goal = GOALS.get((way, other))
    print(f"ratio {name}: {way} / {other} {ratio:.2f}x" + (f" (goal: {goal})" if goal else ""), flush=True)


def print_growth(kind: str, costs: dict[tuple[int, int], float]) -> None:
    """Print how much more a code costs in the largest map than in the smallest: 1 is growth linear in the codes."""
    sides, note = sorted({side for side, _ in costs}), "" if kind == "bottom" else ", with attention"
    for batch in sorted({batch for _, batch in costs}) if len(sides) > 1 else []:
        print(f"ratio {kind}, batch {batch}: cost of a code at {sides[-1]}² / at {sides[0]}²{note} "
              f"{costs[sides[-1], batch] / costs[sides[0], batch]:.2f}x")


def bound(kind: str, prior: PixelCNN, least_seconds: float) -> None:
    """Print how near one image at a time comes to reading each weight that a position needs once."""
    methods, place, began, least = DrawingMethods(prior, 1), prior.bias.device, time.perf_counter(), {}
    matrices = matrices_of(PixelCNNCursor(prior, 1, methods.top_codes))
    vectors = [matrix.new_ones(1, len(matrix)) for matrix in matrices]
    results = [matrix.new_empty(1, matrix.shape[1]) for matrix in matrices]
    timed = {"cached": lambda: methods.cached() / prior.shape[0] ** 2,
             "matvecs": lambda: seconds(place, lambda: [torch.mm(vector, matrix, out=result) for vector, matrix, result
                                                        in zip(vectors, matrices, results)]),
             "reading": lambda: seconds(place, lambda: [matrix.sum() for matrix in matrices])}
    while not least or time.perf_counter() - began < least_seconds:
        for name, time_of in timed.items():
            times = 10 if name in ("matvecs", "reading") else 1
            least[name] = min([time_of() for _ in range(times)] + [least.get(name, math.inf)])
    read = sum(matrix.nbytes for matrix in matrices)
    print(f"{kind} {prior.shape[0]}², batch 1: ms a code: " + ", ".join(f"{name} {took * 1e3:.3g}" for name, took in
                                                                   least.items())
          + f"; {read / 1e6:.3g} MB of weights, {read / least['reading'] / 1e9:.3g} GB/s")
    for name in ("matvecs", "reading"):
        print_ratio(f"{kind}, batch 1", "cached", name, least["cached"] / least[name])


def matrices_of(cursor: PixelCNNCursor) -> list[torch.Tensor]:
    """Return the matrices by which a position is multiplied, in order."""
    products = [product for i, layer in enumerate(cursor.layers) for product in (
        layer.horizontal_in, layer.horizontal_out,
        *((cursor.attentions[i].query_key_value, cursor.attentions[i].out) if i in cursor.attentions else ()))]
    return [product.matrix for product in products + cursor.head] + [cursor.table]


def seconds(place: torch.device, work: Callable[[], object]) -> float:
    """Return how long `work` takes, with all that it leaves to a GPU."""
    on_gpu = place.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    wait()
    began = clock()
    work()
    wait()
    return clock() - began


def bytes_of(cursor: PixelCNNCursor, prior: PixelCNN) -> int:
    """Return the memory of all arrays and tensors that a cursor keeps, above the weights of `prior`."""
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_of(cursor)}
    own = {weight.untyped_storage().data_ptr() for weight in prior.parameters()}
    return sum(size for place, size in kept.items() if place not in own)


def tensors_of(thing: object) -> list[torch.Tensor]:
    """Return the tensors, and the arrays as tensors, in `thing`, in lists and dicts in it, and in a cursor's parts."""
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return [torch.as_tensor(thing)]
    if isinstance(thing, (list, tuple, dict)):
        return [tensor for part in (thing.values() if isinstance(thing, dict) else thing)
                for tensor in tensors_of(part)]
    return tensors_of(vars(thing)) if type(thing).__module__ in CURSORS else []


if __name__ == "__main__":
    run_script(main)
