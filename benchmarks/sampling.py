"""How fast vqvae2/priors/stepping.py draws codes, as ratios to the slow way and to reading weights, in the same run.

    python benchmarks/sampling.py                    # 8 images at a time; 4 minutes of one core's time
    python benchmarks/sampling.py --full             # 1, 8 and 64 images at a time; half an hour of it
    python benchmarks/sampling.py --device cuda --full
    python benchmarks/sampling.py --precision fp64   # as sample.py draws unless it is told otherwise

Priors with fresh weights and codes drawn as sample.py --precision fp32 draws them, each number the time of one image:
    cached     PixelCNNCursor: a position is a step, a choice and telling it. Timed are the start and evenly spaced rows
    half       the same with the layers' weights in 16 bits
    slow       Prior.forward on the whole map for each position, and a choice. All positions cost the same: a few are
               timed and the time is multiplied by their number, as are more than 8 images, of which 8 are timed
    matvecs    every matrix that a position needs times one vector, nothing else: what one image at a time can cost
               at least, by products of the same library
    reading    the sum over the same matrices: what the memory gives

top is the default top prior, bottom the default bottom prior (no attention, conditioned on a top map of half the side),
large a top prior of about 85 million weights, after the VQ-VAE-2 paper (Razavi 2019, appendix). The ways take turns,
and the least time of each counts; with one CPU thread that is processor time, which hardly depends on other programs.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import processor

from vqvae2.common import distributed
from vqvae2.common.errors import run_script
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


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/sampling.py."""

    full: bool = False
    """1, 8 and 64 images at a time instead of 8 alone."""
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
    for kind in settings.priors:
        costs = {}
        for side in settings.sides:
            prior = make(kind, side, place).to(settings.dtype)
            for batch in (1, 8, 64) if settings.full else (8,):
                costs[side, batch] = compare(f"{kind} {side}²", prior, batch, settings.seconds)
        print_growth(kind, costs)
        bound(kind, make(kind, min(32, max(settings.sides)), place).to(settings.dtype), settings.seconds)


def make(kind: str, side: int, place: torch.device) -> PixelCNN:
    """Return a prior of that kind for maps of `side` x `side` codes, with fresh weights."""
    torch.manual_seed(0)
    options = TrainPrior(savename="x", epochs=1, batch=1, vqvae="x", **PRIORS[kind])
    top = (torch.randn(CODES, DIM), (side // 2, side // 2)) if kind == "bottom" else (None, None)
    return PixelCNN(options, torch.randn(CODES, DIM), (side, side), *top).to(place).eval()


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
        self.least_of_rows: dict[tuple[bool, int], float] = {}

    def slow(self) -> float:
        """One position on at most 8 maps."""
        batch = min(self.batch, SLOW_AT_ONCE)
        codes = torch.zeros(batch, self.side, self.side, dtype=torch.long, device=self.place)
        top_codes = None if self.top_codes is None else self.top_codes[:batch]
        took = seconds(self.place, lambda: choose(self.prior(codes, top_codes)[:, :, -1, -1], self.uniform[:batch],
                                                  self.rule))
        return took * self.side**2 * self.batch / batch

    def cached(self, half: bool = False) -> float:
        """The start, and the mean of evenly spaced rows, each at its fastest so far: attention's cost is linear."""
        states = []
        start = seconds(self.place, lambda: states.append(
            PixelCNNCursor(self.prior, self.batch, self.top_codes, half=half)))
        self.bytes = self.bytes if half else bytes_of(states[0], self.prior)
        count = min(ROWS_TIMED, self.side)
        rows = [int((i + 0.5) * self.side / count) for i in range(count)]
        for row in rows:
            took = seconds(self.place, lambda row=row: self.draw_row(states[0], row))
            self.least_of_rows[half, row] = min(took, self.least_of_rows.get((half, row), math.inf))
        return start + self.side * sum(self.least_of_rows[half, row] for row in rows) / count

    def half(self) -> float:
        """The same in 16 bits."""
        return self.cached(half=True)

    def draw_row(self, state: PixelCNNCursor, row: int) -> None:
        """Draw a row of codes."""
        for column in range(self.side):
            state.tell(column, choose(state.step(row, column), self.uniform, self.rule))


def compare(name: str, prior: PixelCNN, batch: int, least_seconds: float) -> float:
    """Print seconds for an image by each way, and their ratios; return the cached way's for a code."""
    methods, least, began, rounds = DrawingMethods(prior, batch), {}, time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - began < least_seconds:
        # A whole map of a large prior takes a minute: once is enough.
        late = rounds > 0 and time.perf_counter() - began > least_seconds
        for way in (methods.cached, methods.half) if late else (methods.slow, methods.cached, methods.half):
            least[way.__name__] = min(way(), least.get(way.__name__, math.inf))
        rounds += 1
    each = {way: took / batch for way, took in least.items()}
    scaled = f"1 of {prior.shape[0] ** 2} positions timed and scaled" + (
        f", {SLOW_AT_ONCE} of {batch} images" if batch > SLOW_AT_ONCE else "")
    print(f"{name}, batch {batch}, {rounds} round(s): seconds an image: slow {each['slow']:.4g} ({scaled}), "
          f"cached {each['cached']:.4g}, half {each['half']:.4g}; {1 / each['cached']:.3g} images/s; "
          f"state and copied weights {methods.bytes / 1e6:.4g} MB")
    print(f"ratio {name}, batch {batch}: slow / cached {each['slow'] / each['cached']:.1f}x")
    print(f"ratio {name}, batch {batch}: cached / half {each['cached'] / each['half']:.2f}x", flush=True)
    return least["cached"] / prior.shape[0] ** 2


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
             "half": lambda: methods.half() / prior.shape[0] ** 2,
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
        print(f"ratio {kind}, batch 1: cached / {name} {least['cached'] / least[name]:.2f}x", flush=True)


def matrices_of(state: PixelCNNCursor) -> list[torch.Tensor]:
    """Return the matrices by which a position is multiplied, in order."""
    products = [product for i, layer in enumerate(state.layers) for product in (
        layer.horizontal_in, layer.horizontal_out,
        *((state.attentions[i].query_key_value, state.attentions[i].out) if i in state.attentions else ()))]
    return [product.matrix for product in products + state.head] + [state.table]


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


def bytes_of(state: PixelCNNCursor, prior: PixelCNN) -> int:
    """Return the memory of all tensors that `state` keeps, above the weights of `prior`."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_of(state)}
    own = {weight.untyped_storage().data_ptr() for weight in prior.parameters()}
    return sum(size for place, size in storages.items() if place not in own)


def tensors_of(thing: object) -> list[torch.Tensor]:
    """Return the tensors in `thing`, in lists and dicts in it, and in what vqvae2/priors/stepping.py defines."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, (list, tuple, dict)):
        return [tensor for part in (thing.values() if isinstance(thing, dict) else thing)
                for tensor in tensors_of(part)]
    return tensors_of(vars(thing)) if type(thing).__module__ == PixelCNNCursor.__module__ else []


if __name__ == "__main__":
    run_script(main)
