"""How fast a VQ-VAE trains on images that are larger than the memory, as a ratio to images in memory.

    python benchmarks/larger_than_memory.py
    python benchmarks/larger_than_memory.py --limit-mb 1000 --times 3 --steps 40 --rounds 8 --plain

A folder of PNGs is made whose decoded images take --times the limit. Two processes then train the same network on them
in the same shuffled order: one with all the memory that it wants, one in a control group (cgroup) with the limit, which
must find by itself that the images do not fit and map them from a file in TMPDIR or /var/tmp. They take turns of
--steps steps, so that what else the machine does troubles both alike. The network is small, so that reading matters
more than it would in earnest. Printed are images/s of each, the time of each start, and the ratio of the rates, the
median of all rounds.

It needs Linux, and a control group: with version 1 of the kernel's interface the right to make one (root); with version
2 systemd-run, as root or for a user's own session. The disk needs room for the images, and the machine memory for them
and the limit. Where the disk is a virtual machine's, the host may keep it in its own memory.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from common import processor
from loader import write_pictures

from vqvae2.common.errors import UserError, expect, run_script
from vqvae2.images import decoding
from vqvae2.settings import checks, parsing
from vqvae2.training import trainer
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer

DIFFERENT = 1000
"""PNGs that are drawn; the others are further names of the same files, and decoded like any other."""
IN_MEMORY, LIMITED, PLAIN = "in memory", "in the group", "in the group by mapping alone"
VERSION_1 = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/larger_than_memory.py."""

    limit_mb: int = 1000
    """Limit of the control group in MB; the interpreter, torch and the network need about 500 of them."""
    times: float = 3.0
    """Size of the decoded images, as a multiple of the limit."""
    size: int = 256
    """Height and width of the images."""
    batch: int = 32
    """Images in a batch."""
    steps: int = 40
    """Steps of a turn."""
    rounds: int = 8
    """Turns of each process; the first, in which the network is warmed up, does not count."""
    channels: int = 2
    """Width of the network."""
    threads: int = 1
    """Threads of torch."""
    plain: bool = False
    """Train a third process too, in a group of its own, which leaves all reading to the mapping."""
    work: Path | None = None
    """A folder in which the PNGs stay, for another time with the same sizes. Default: a new one, which is deleted."""
    turn: str = ""
    """Only for the processes that this benchmark starts."""

    def __post_init__(self) -> None:
        checks.expect(self.rounds >= 2, "--rounds", "at least 2", self.rounds, "The default is 8.")
        checks.expect(self.limit_mb >= 600, "--limit-mb", "at least 600", self.limit_mb, "The default is 1000.")

    @property
    def images(self) -> int:
        """Return the number of training images."""
        return round(self.times * self.limit_mb * 1e6 / self.size**2)


class TakingTurns(VqvaeTrainer):
    """Trains --steps steps for each line that it reads, and writes a line with the seconds that they took."""

    turn_steps = 0

    def start(self) -> None:
        """Read the images, and say how long this takes and where they lie."""
        began = time.perf_counter()
        super().start()
        pixels = self.images.splits["train"].pixels
        self.describe()
        print(f"turn {time.perf_counter() - began:.2f} {'memory' if pixels.flags.writeable else 'file'}", flush=True)
        self.steps_left = 0

    def coming(self, items: torch.Tensor) -> None:
        """Wait for the turn before its first step."""
        if self.steps_left == 0:
            if not sys.stdin.readline():
                os._exit(0)
            self.steps_left, self.turn_began = self.turn_steps, (time.perf_counter(), time.process_time())
        super().coming(items)

    def after_step(self) -> None:
        """Say how long the turn took after its last step."""
        super().after_step()
        self.steps_left -= 1
        if self.steps_left == 0:
            wall, cpu = (now - then for now, then in zip((time.perf_counter(), time.process_time()), self.turn_began))
            print(f"turn {wall:.4f} {cpu:.4f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    if settings.turn:
        take_turns(settings)
        return
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, {settings.threads} thread(s); torch "
          f"{torch.__version__}; {settings.images:,} images of {settings.size}², "
          f"{settings.images * settings.size**2 / 1e6:,.0f} MB decoded, limit {settings.limit_mb:,} MB", flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        folder = settings.work or Path(made)
        if not (folder / "train").exists():
            write_set(folder / "train", settings)
        compare(settings, folder)


def write_set(folder: Path, settings: BenchmarkSettings) -> None:
    """Write the PNGs: some that differ, and further names of these."""
    write_pictures(folder, min(DIFFERENT, settings.images), settings.size)
    drawn = sorted(folder.iterdir())
    for number in range(len(drawn), settings.images):
        os.link(drawn[number % len(drawn)], folder / f"{number:06d}.png")


def compare(settings: BenchmarkSettings, folder: Path) -> None:
    """Let the processes take turns; print their rates and ratios."""
    kinds = [IN_MEMORY, LIMITED, *[PLAIN] * settings.plain]
    seconds: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        processes = {kind: stack.enter_context(started(settings, folder, kind)) for kind in kinds}
        for kind, process in processes.items():
            took, place = answer(process, kind).split()
            expect(place == ("memory" if kind == IN_MEMORY else "file"), kind, "images in memory where there is no "
                   "limit, and else in a file", f"images in {place}", "Give another --limit-mb, or free some memory.")
            print(f"{kind}: images in {place} after {took} s", flush=True)
        for _ in range(settings.rounds):
            for kind, process in processes.items():
                print("go", file=process.stdin, flush=True)
                seconds[kind].append([float(figure) for figure in answer(process, kind).split()])
    for kind, turns in seconds.items():
        rates = [settings.steps * settings.batch / wall for wall, _ in turns[1:]]
        print(f"{kind}: {median(rates):,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}); CPU time "
              f"{1000 * median(cpu for _, cpu in turns[1:]) / settings.steps:.0f} ms a step")
    for kind in kinds[1:]:
        ratios = [here / there for (here, _), (there, _) in zip(seconds[IN_MEMORY][1:], seconds[kind][1:])]
        print(f"ratio training {kind} / {IN_MEMORY} {median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def started(settings: BenchmarkSettings, folder: Path, kind: str) -> Iterator[subprocess.Popen]:
    """Start one of the processes, with the limit or without; end it, and its group, behind the context."""
    command = [sys.executable, __file__, "--turn", kind, "--work", str(folder)]
    for name in ("batch", "channels", "size", "steps", "threads"):
        command += [f"--{name}", str(getattr(settings, name))]
    with ExitStack() as stack:
        results = stack.enter_context(tempfile.TemporaryDirectory())
        if kind != IN_MEMORY:
            command = [*stack.enter_context(limited(settings.limit_mb * 10**6)), *command]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=results)
        stack.callback(process.wait)
        stack.callback(process.stdin.close)
        yield process


@contextmanager
def limited(limit: int) -> Iterator[list[str]]:
    """Yield what stands before a command so that it runs in a new control group of `limit` bytes."""
    if not VERSION_1.is_dir():
        user = [] if os.geteuid() == 0 else ["--user"]
        yield ["systemd-run", *user, "--scope", "--quiet", "-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0"]
        return
    own = next(line.split(":")[2].strip() for line in Path("/proc/self/cgroup").read_text().splitlines()
               if line.split(":")[1] == "memory")
    group = Path(tempfile.mkdtemp(prefix="larger-than-memory-", dir=VERSION_1 / own.strip("/")))
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "memory.swappiness").write_text("0")
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        time.sleep(0.2)  # the kernel lets go of an ended process a moment after its parent has seen the end
        group.rmdir()


def answer(process: subprocess.Popen, kind: str) -> str:
    """Return what the process says next after the word "turn"."""
    for line in process.stdout:
        if line.startswith("turn "):
            return line.removeprefix("turn ").strip()
    raise UserError(f"{kind}: expected a process that trains, found status {process.wait()}. A larger --limit-mb helps "
                    "where the group's limit has ended it (-9).")


def take_turns(settings: BenchmarkSettings) -> None:
    """Be one of the processes: train whenever a line says so."""
    trainer.tqdm = partial(tqdm, file=io.StringIO())  # bars of processes that take turns cannot be read
    if settings.turn == PLAIN:
        decoding.read_ahead = lambda pixels, items: None
    TakingTurns.turn_steps = settings.steps
    TakingTurns(TrainVqvae(
        dataset="folder", data=settings.work, savename="v", epochs=100, batch=settings.batch, threads=settings.threads,
        channels=settings.channels, residual_channels=2, residual_layers=0, embedding_dim=2, codebook_size=16,
        ssim_weight=0, levels=1, downsample=(8,))).run()


if __name__ == "__main__":
    run_script(main)
