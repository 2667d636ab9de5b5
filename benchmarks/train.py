"""How fast a training step of train_vqvae.py is, as ratios to named references in the same run, on the same images.

    python benchmarks/train.py
    python benchmarks/train.py --sizes 256 --rounds 10 --threads 1
    python benchmarks/train.py --device cuda --compile always
    python benchmarks/train.py --sync-check          # does any step make the host wait for the GPU?
    python benchmarks/train.py --sizes 256 --profile # what a step consists of, by operation

A step is what the trainer does for it: batch from memory, forward, loss, backward, optimiser, codebooks. Codebooks are
placed; the default network; synthetic images. References:
    peer       the network of rosinality/vq-vae-2-pytorch, written anew below, with its loss (no SSIM) and quantizer, at
               its default widths and depths, which are ours, for grey pictures: channels_last, bf16 where ours has it,
               Adam in one kernel. 22 GFLOP an image of 256 x 256, as ours
    no SSIM    our step with --ssim-weight 0
    plain      the same network, weights and batch as most public code trains it: fp32, contiguous, eager, Adam as it
               comes, a quantizer with a one-hot matrix and distances; written below
    matmul     the machine's own rate: a large matrix product in fp32 and in bf16, into memory that is there already
    loader     the batches alone
    processes  two processes of one thread (each GPU its process, on CUDA) beside one process, at the same global batch

Each has processes of its own, which take turns; the least time of all rounds counts, so that other programs disturb
little. On a CPU the ratio of processor times is printed beside that of times, and hardly depends on other programs.
Peak memory is that of such a process above what it needs for its imports: on a CPU the most resident memory, on CUDA
the most that PyTorch has allocated.
"""

import contextlib
import io
import math
import multiprocessing
import os
import platform
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import processor

from vqvae2.common import distributed, machine
from vqvae2.common.errors import run_script
from vqvae2.common.folder_lock import claimed
from vqvae2.images import dataset
from vqvae2.metrics import similarity
from vqvae2.models import losses
from vqvae2.models.autoencoder import Vqvae
from vqvae2.settings import checks, parsing
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer

STEPS_BEFORE = 6
"""Untimed, once the codebooks are placed."""
MOST_STEPS_TO_START = 300
"""Codebooks are placed as soon as there were vectors enough, which takes more steps where batches are small."""
BATCHES = 4
"""Batches that there are images for."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/train.py."""

    sizes: tuple[int, ...] = (64, 128, 256)
    """Heights and widths of the images, one benchmark each."""
    rounds: int = 5
    """Times that each is measured; the least counts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    threads: int = 0
    """CPU threads of the one-process benchmarks; 0: all cores."""
    batch: int = 0
    """Images in a batch; 0: 32 at 64 pixels, 16 at 128, 8 at 256 on a CPU, 16 times as many on CUDA."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of our step, as --precision of train_vqvae.py."""
    compile: Literal["auto", "never", "always"] = "auto"
    """Whether the networks of our step are compiled."""
    quick: bool = False
    """64 pixels, batches of 4, one round: does it run?"""
    sync_check: bool = False
    """Only: 25 steps in which waiting for the GPU is an error."""
    profile: bool = False
    """Only: a table of what two of our steps consist of."""

    def __post_init__(self) -> None:
        checks.expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 5.")
        checks.expect(all(size >= 8 and size % 8 == 0 for size in self.sizes), "--sizes", "multiples of 8",
                      self.sizes, "For example 64 128 256.")
        for name in ("threads", "batch"):
            checks.expect(getattr(self, name) >= 0, f"--{name}", "0 or more", getattr(self, name), "Leave it out.")
        checks.expect(self.device != "cuda" or torch.cuda.is_available(), "--device cuda",
                      "a GPU that PyTorch can use", "none", "Use --device cpu.")


@dataclass(frozen=True)
class Task:
    """The step that every process measures."""

    kind: Literal["ours", "ours fp32", "no SSIM", "plain", "peer", "matmul"]
    size: int
    batch: int
    """Images of the global batch."""
    device: str
    threads: int
    """Threads of each process."""
    ranks: int
    precision: str
    compile: str
    images: str
    """Folder of the images."""
    results: str
    """Folder for runs."""


class Plain(nn.Module):
    """The default network as most public code has it; its weights have the names that they have in Vqvae."""

    def __init__(self, like: Vqvae):
        super().__init__()
        settings = like.settings
        full, half, dim = settings.channels, settings.channels // 2, settings.embedding_dim

        def blocks() -> list[nn.Module]:
            return [*(PlainBlock(full, settings.residual_channels) for _ in range(settings.residual_layers)), nn.ReLU()]

        def double(channels_in: int, channels_out: int) -> nn.Module:
            return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)

        self.encoder = nn.Sequential(
            nn.Conv2d(1, half, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(half, full, 4, stride=2, padding=1),
            nn.ReLU(), nn.Conv2d(full, full, 3, padding=1), *blocks())
        self.top_encoder = nn.Sequential(
            nn.Conv2d(full, half, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(half, full, 3, padding=1), *blocks())
        self.top_decoder = nn.Sequential(nn.Conv2d(dim, full, 3, padding=1), *blocks(), double(full, dim))
        self.top_upsample = nn.Sequential(double(dim, dim))
        self.to_top, self.to_bottom = nn.Conv2d(full, dim, 1), nn.Conv2d(full, dim, 1)
        self.decoder = nn.Sequential(nn.Conv2d(2 * dim, full, 3, padding=1), *blocks(), double(full, half), nn.ReLU(),
                                     double(half, 1))
        self.quantizers = nn.ModuleDict({level: PlainQuantizer(settings.codebook_size, dim, settings.decay)
                                         for level in ("top", "bottom")})
        names = self.load_state_dict(like.state_dict(), strict=False)
        assert not names.missing_keys, names.missing_keys  # weights and codebooks: the same network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reconstructions, commitment and prediction error."""
        features = self.encoder(images - 0.5)
        top, top_commitment = self.quantizers["top"](self.to_top(self.top_encoder(features)))
        wanted, predicted = self.to_bottom(features), self.top_decoder(top)
        bottom, bottom_commitment = self.quantizers["bottom"](wanted - predicted)
        made = self.decoder(torch.cat([self.top_upsample(top), predicted + bottom], 1)) + 0.5
        return made, top_commitment + bottom_commitment, (wanted.detach() - predicted).square().mean()


class PlainBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x))))."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, inner, 3, padding=1), nn.ReLU(),
                                    nn.Conv2d(inner, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class PlainQuantizer(nn.Module):
    """A codebook by one-hot matrix and distances, moved in its forward (van den Oord 2017, appendix A.1)."""

    def __init__(self, codes: int, dim: int, decay: float):
        super().__init__()
        self.decay = decay
        self.codebook = nn.Parameter(torch.zeros(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings of the shape of `vectors` `[batch, dim, height, width]`, and the commitment."""
        moved = vectors.permute(0, 2, 3, 1).contiguous()
        rows = moved.view(-1, moved.shape[-1])
        distances = rows.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * rows @ self.codebook.T
        one_hot = torch.zeros_like(distances).scatter_(1, distances.argmin(1, keepdim=True), 1)
        embeddings = (one_hot @ self.codebook).view(moved.shape)
        if self.training:
            with torch.no_grad():
                self.counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
                self.sums.mul_(self.decay).add_(one_hot.T @ rows, alpha=1 - self.decay)
                self.codebook.data = self.sums / self.counts.clamp(min=1e-5)[:, None]
        commitment = functional.mse_loss(moved, embeddings.detach())
        return (moved + (embeddings - moved).detach()).permute(0, 3, 1, 2), commitment


class Peer(nn.Module):
    """The network of rosinality/vq-vae-2-pytorch at its own default widths, which are ours, for grey pictures.

    It differs from ours in what the bottom quantises: a mixture, by a 1 x 1 convolution, of its features and the
    decoded top (Razavi 2019, algorithm 1).
    """

    def __init__(self, full: int = 128, inner: int = 32, dim: int = 64, codes: int = 512):
        super().__init__()
        half = full // 2

        def blocks() -> list[nn.Module]:
            return [*(PeerBlock(full, inner) for _ in range(2)), nn.ReLU(inplace=True)]

        def double(channels_in: int, channels_out: int) -> nn.Module:
            return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)

        self.encoder = nn.Sequential(
            nn.Conv2d(1, half, 4, stride=2, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(half, full, 4, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(full, full, 3, padding=1),
            *blocks())
        self.top_encoder = nn.Sequential(
            nn.Conv2d(full, half, 4, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(half, full, 3, padding=1),
            *blocks())
        self.to_top, self.to_bottom = nn.Conv2d(full, dim, 1), nn.Conv2d(dim + full, dim, 1)
        self.top_decoder = nn.Sequential(nn.Conv2d(dim, full, 3, padding=1), *blocks(), double(full, dim))
        self.top_upsample = double(dim, dim)
        self.decoder = nn.Sequential(nn.Conv2d(2 * dim, full, 3, padding=1), *blocks(), double(full, half),
                                     nn.ReLU(inplace=True), double(half, 1))
        self.top_quantizer, self.bottom_quantizer = PeerQuantizer(codes, dim), PeerQuantizer(codes, dim)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return reconstructions and the sum of the levels' commitments."""
        features = self.encoder(images)
        top, top_commitment = self.top_quantizer(self.to_top(self.top_encoder(features)))
        mixture = self.to_bottom(torch.cat([self.top_decoder(top), features], 1))
        bottom, bottom_commitment = self.bottom_quantizer(mixture)
        return self.decoder(torch.cat([self.top_upsample(top), bottom], 1)), top_commitment + bottom_commitment


class PeerBlock(PlainBlock):
    """The same block; the peer's second ReLU and its sum are in place."""

    def __init__(self, channels: int, inner: int):
        super().__init__(channels, inner)
        self.layers[2].inplace = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).add_(x)


class PeerQuantizer(nn.Module):
    """The peer's codebook: squared distances to all embeddings, a one-hot matrix of integers made float, EMA."""

    def __init__(self, codes: int, dim: int, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", torch.randn(dim, codes))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings of the shape of `vectors` `[batch, dim, height, width]`, and the commitment."""
        moved = vectors.permute(0, 2, 3, 1)
        rows, size = moved.reshape(-1, moved.shape[-1]), self.codebook.shape[1]
        distances = rows.pow(2).sum(1, keepdim=True) - 2 * rows @ self.codebook + self.codebook.pow(2).sum(
            0, keepdim=True)
        codes = (-distances).max(1)[1]
        one_hot = functional.one_hot(codes, size).type(rows.dtype)
        embeddings = functional.embedding(codes.view(moved.shape[:-1]), self.codebook.T)
        with torch.no_grad():
            self.counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
            self.sums.mul_(self.decay).add_(rows.T @ one_hot, alpha=1 - self.decay)
            total = self.counts.sum()
            self.codebook.copy_(self.sums / ((self.counts + 1e-5) / (total + size * 1e-5) * total))
        commitment = (embeddings.detach() - moved).pow(2).mean()
        return (moved + (embeddings - moved).detach()).permute(0, 3, 1, 2), commitment


def settings_of(task: Task) -> TrainVqvae:
    """Return the settings of our training."""
    return TrainVqvae(
        savename=f"{task.kind}-{task.ranks}".replace(" ", "-"), epochs=10**6, batch=task.batch // task.ranks,
        dataset="folder", data=Path(task.images), results=Path(task.results), split=(1, 0, 0), start_steps=2,
        precision="fp32" if task.kind == "ours fp32" else task.precision, compile=task.compile, threads=task.threads,
        **({"ssim_weight": 0.0} if task.kind == "no SSIM" else {}))


class Ours:
    """The steps of VqvaeTrainer, made one by one."""

    def __init__(self, task: Task):
        self.trainer = trainer = VqvaeTrainer(settings_of(task))
        trainer.config, trainer.device, trainer.sum_type = {}, torch.device(task.device), torch.float64
        if task.device == "cuda":
            trainer.device = torch.device("cuda", distributed.launched_rank())
        distributed.start(trainer.device)
        with contextlib.redirect_stdout(io.StringIO()):
            self.held = contextlib.ExitStack()  # the run's folder, for as long as this process lives
            trainer._prepare(distributed.on_rank_0(lambda: self.held.enter_context(
                claimed(trainer.folder, "--savename", "--savename"))))
        compiled, why = trainer.compiled
        precision = str(trainer.precision[0]).removeprefix("torch.")
        self.how = f"{precision} ({trainer.precision[1]}), {'compiled' if compiled else 'eager'} ({why})"
        trainer.passes, trainer.passes_to_look, trainer.running = 0, math.inf, {}
        trainer.wrapped.train()
        self.loss = math.nan
        while not trainer.model.is_quantising():  # till then a step does less, and timing it would flatter us
            assert trainer.step < MOST_STEPS_TO_START, "the codebooks are not placed"
            self.step()

    def step(self) -> None:
        """As in Trainer._train_epoch."""
        trainer = self.trainer
        first = trainer.step % BATCHES * trainer.global_batch
        figures = trainer._train_step(torch.arange(first, first + trainer.global_batch))
        trainer.running = {name: trainer.running.get(name, 0) + value for name, value in figures.items()}
        self.loss = figures["loss"] / trainer.global_batch
        trainer.step += 1

    def load(self) -> None:
        """Only the batch of the next step, as VqvaeTrainer.losses gets it."""
        trainer = self.trainer
        share = trainer._share(torch.arange(trainer.global_batch), 0)
        trainer.images.splits["train"].batch(share.items, trainer.device)
        trainer.step += 1


class PlainSteps:
    """Steps of the plain network, from our weights once our codebooks are placed."""

    def __init__(self, task: Task):
        ours = Ours(Task(**{**task.__dict__, "kind": "ours fp32", "compile": "never"}))
        self.images, self.settings = ours.trainer.images.splits["train"], ours.trainer.settings
        self.device, self.batch, self.number, self.how = (
            ours.trainer.device, task.batch, ours.trainer.step, "fp32, eager")
        self.model = Plain(ours.trainer.model.cpu().to(memory_format=torch.contiguous_format)).to(self.device)
        weights = [weight for name, weight in self.model.named_parameters() if not name.startswith("quantizers")]
        self.optimizer = torch.optim.Adam(weights, lr=1e-3)
        ours.step()
        self.step()
        # The same network, from the same weights, with the same images: else the ratios would mean nothing.
        torch.testing.assert_close(self.loss.cpu().double(), ours.loss.detach().cpu().double(), rtol=1e-3, atol=0)

    def step(self) -> None:
        """Batch, forward, loss, backward, optimiser; the codebooks move in forward."""
        for group in self.optimizer.param_groups:  # as low as ours in its warm-up
            group["lr"] = 1e-3 * min(1, (self.number + 1) / 100)
        first = self.number % BATCHES * self.batch
        pixels = self.images.batch(torch.arange(first, first + self.batch)).to(self.device)
        made, commitment, prediction = self.model(pixels)
        loss = (losses.error_of_clipped(made, pixels).square().mean()
                + self.settings.ssim_weight * (1 - similarity.similarity_maps(made.clamp(0, 1), pixels)[0].mean())
                + self.settings.commitment * commitment + self.settings.prediction * prediction)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.number, self.loss = self.number + 1, loss.detach()


class PeerSteps:
    """Steps of the peer's network as its training script makes them, but with all that speeds them up and costs it no
    line of its own: channels_last, bf16 where ours has it, Adam in one kernel. Its loss has no SSIM."""

    def __init__(self, task: Task):
        self.images = dataset.load_images(settings_of(task), ("train", "validate"), 8).splits["train"]
        self.device, self.batch, self.number = torch.device(task.device), task.batch, 0
        precision = machine.choose_precision(task.precision, self.device)[0]
        self.autocast = torch.autocast(task.device, torch.bfloat16, enabled=precision == torch.bfloat16)
        self.how = f"{str(precision).removeprefix('torch.')}, eager"
        self.model = Peer().to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4, fused=True)

    def step(self) -> None:
        """Batch, forward, loss, backward, optimiser; the codebooks move in forward."""
        first = self.number % BATCHES * self.batch
        pixels = self.images.batch(torch.arange(first, first + self.batch)).to(self.device)
        pixels = ((pixels - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)  # -1 to 1
        self.optimizer.zero_grad()
        with self.autocast:
            made, commitment = self.model(pixels)
            loss = functional.mse_loss(made, pixels) + 0.25 * commitment
        loss.backward()
        self.optimizer.step()
        self.number, self.loss = self.number + 1, loss.detach()


class Matmul:
    """A large matrix product; `side` is such that it fills the machine and takes a fraction of a second."""

    def __init__(self, task: Task):
        self.side = 8192 if task.device == "cuda" else 2048
        self.how, self.loss = f"{self.side}³", math.nan
        a = torch.randn(self.side, self.side, device=task.device)
        self.values = {name: (a.to(kind), a.T.contiguous().to(kind), a.to(kind))
                       for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))}

    def product(self, precision: str) -> None:
        """One product."""
        a, b, out = self.values[precision]
        torch.mm(a, b, out=out)


# In the processes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The answer of a process that is ready to be timed."""

    how: str
    loss: float
    """This rank's part of the mean loss of the last step before the timed steps."""
    flops: float
    """Floating-point operations of one step in matrix products and convolutions."""


def begin(task: Task, rank: int, port: int) -> Report:
    """Become rank `rank` of the task's processes, build what is measured and make its first steps."""
    global run, work, memory_before
    if task.ranks > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(task.ranks),
                          LOCAL_WORLD_SIZE=str(task.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    work = task
    machine.set_threads(task.threads)
    if task.kind.startswith(("ours", "no SSIM")):
        machine.keep_memory()  # as Trainer.run does
    forget_peak(task)
    run = {"plain": PlainSteps, "peer": PeerSteps, "matmul": Matmul}.get(task.kind, Ours)(task)
    if task.kind == "matmul":
        return Report(run.how, math.nan, math.nan)
    for _ in range(STEPS_BEFORE - (task.kind == "plain")):
        run.step()
    loss, flops = float(run.loss), math.nan
    if task.ranks == 1 and run.how.find("compiled") < 0:
        with FlopCounterMode(display=False) as counter:
            run.step()
        flops = counter.get_total_flops()
    return Report(run.how, loss, flops)


def forget_peak(task: Task) -> None:
    """Measure the peak from here on."""
    global memory_before
    if task.device == "cuda":
        torch.zeros(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        memory_before = 0
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak of what was here before exec, which getrusage counts
        memory_before = resident("VmRSS")


def peak() -> float:
    """Return the most bytes that this process has had since it began, above what it began with."""
    if work.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - memory_before if Path("/proc/self/status").exists() else math.nan


def resident(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def seconds_of(what: str, times: int) -> tuple[float, float]:
    """Return seconds and processor seconds of one `step`, `load`, `fp32` or `bf16` product, the mean of `times`."""
    action: Callable[[], None] = (lambda: run.product(what)) if what in ("fp32", "bf16") else getattr(run, what)
    wait = torch.cuda.synchronize if work.device == "cuda" else lambda: None
    if what != "step":
        action()
    wait()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        action()
    wait()
    return (time.perf_counter() - begin) / times, (time.process_time() - begin_cpu) / times


def leave() -> None:
    """Leave the process group."""
    if isinstance(run, Ours):
        run.trainer.wrapped = None
    distributed.stop()


class Processes:
    """The processes of a task; they stay, and work when they are called."""

    def __init__(self, task: Task):
        self.task = task
        spawn = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pools = [ProcessPoolExecutor(1, spawn) for _ in range(task.ranks)]
        answers = [pool.submit(begin, task, rank, port) for rank, pool in enumerate(self.pools)]
        reports: list[Report] = [answer.result() for answer in answers]
        self.report, self.loss = reports[0], sum(report.loss for report in reports)
        self.times: dict[str, list[tuple[float, float]]] = {}

    def ask(self, function: Callable, *arguments: object) -> list:
        """Return what the function returns on each rank."""
        return [answer.result() for answer in [pool.submit(function, *arguments) for pool in self.pools]]

    def measure(self, what: str, times: int) -> None:
        """Time it once more; the slowest rank counts, and the processor time of all."""
        walls, cpus = zip(*self.ask(seconds_of, what, times))
        self.times.setdefault(what, []).append((max(walls), sum(cpus)))

    def least(self, what: str) -> float:
        """Return the least seconds so far."""
        return min(wall for wall, _ in self.times[what])

    def least_cpu(self, what: str) -> float:
        """Return the least processor seconds so far."""
        return min(cpu for _, cpu in self.times[what])

    def median(self, what: str) -> float:
        """Return the median of the seconds so far."""
        return statistics.median(wall for wall, _ in self.times[what])

    def end(self) -> float:
        """End the processes; return the most memory that one of them has had."""
        most = max(self.ask(peak))
        self.ask(leave)
        for pool in self.pools:
            pool.shutdown()
        return most


# The benchmarks -----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks and print their ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.threads or cores
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else processor()}, {cores} cores, {threads} thread(s); "
          f"torch {torch.__version__}, Python {platform.python_version()}")
    for size in (64,) if settings.quick else settings.sizes:
        largest = max(1, 32 * 64 // size)
        batch = 4 if settings.quick else settings.batch or largest * (16 if device == "cuda" else 1)
        with tempfile.TemporaryDirectory() as folder:
            images, results = Path(folder) / "images", Path(folder) / "results"
            write_images(images / "train", BATCHES * batch, size)
            task = Task("ours", size, batch, device, threads, 1, settings.precision, settings.compile, str(images),
                        str(results))
            if settings.sync_check:
                check_synchronisations(task)
            elif settings.profile:
                profile(task)
            else:
                compare(task, 1 if settings.quick else settings.rounds)
                compare_memory(task)
                compare_processes(task, 1 if settings.quick else settings.rounds, cores)


def compare(task: Task, rounds: int) -> None:
    """Time our step, the plain one, the loader and matrix products in turn, and print the ratios."""
    def processes(kind: str) -> Processes:
        return Processes(Task(**{**task.__dict__, "kind": kind}))

    ours, plain, peer, without, matmul = map(processes, ("ours", "plain", "peer", "no SSIM", "matmul"))
    fp32 = processes("ours fp32") if ours.report.how.startswith("bfloat16") else None
    # A CPU that has no bf16 needs minutes for the product that another makes in a tenth of a second.
    precisions = ("fp32",) if fp32 is None else ("fp32", "bf16")
    for _ in range(rounds):
        for timed in filter(None, (peer, ours, without, plain, fp32)):
            timed.measure("step", steps_at_once(task))
        ours.measure("load", 10)
        for precision in precisions:
            matmul.measure(precision, 1 if task.device == "cpu" else 10)
    name, side = f"{task.size}", 8192 if task.device == "cuda" else 2048
    rates = {precision: 2 * side**3 / matmul.least(precision) for precision in precisions}
    print(f"\n{task.size} x {task.size} pixels, batches of {task.batch}; ours: {ours.report.how}\n"
          f"  loss {STEPS_BEFORE} steps after the codebooks were placed: ours {ours.loss:.5f}, plain {plain.loss:.5f}\n"
          "  matrix products, GFLOP/s: " + ", ".join(f"{rate / 1e9:.0f} in {name}" for name, rate in rates.items()))
    for kind, timed in (("ours", ours), ("no SSIM", without), ("peer", peer), ("ours fp32", fp32), ("plain", plain)):
        if timed is not None:
            print(f"  {kind:10s} {1000 * timed.least('step'):8.1f} ms a step "
                  f"(median {1000 * timed.median('step'):.1f}, processor {1000 * timed.least_cpu('step'):.1f}), "
                  f"{task.batch / timed.least('step'):8.1f} images/s")
    print(f"  loader     {1000 * ours.least('load'):8.1f} ms a batch, {task.batch / ours.least('load'):8.1f} images/s")
    print(f"ratio peer/ours-{name} {peer.least('step') / ours.least('step'):.2f}x "
          f"(of processor time {peer.least_cpu('step') / ours.least_cpu('step'):.2f}x, aim at least 1.5x; "
          f"{peer.report.flops / task.batch / 1e9:.1f} GFLOP an image)")
    print(f"share SSIM-{name} {1 - without.least('step') / ours.least('step'):.3f} "
          f"(of processor time {1 - without.least_cpu('step') / ours.least_cpu('step'):.3f}, aim at most 0.03)")
    for kind, timed in (("ours", ours), ("ours-fp32", fp32)):
        if timed is None:
            continue
        precision = "bf16" if timed.report.how.startswith("bfloat16") else "fp32"
        print(f"ratio plain/{kind}-{name} {plain.least('step') / timed.least('step'):.2f}x "
              f"(of processor time {plain.least_cpu('step') / timed.least_cpu('step'):.2f}x"
              f"{', aim at least 1.3x' if precision == 'fp32' else ''})")
        if math.isfinite(timed.report.flops):
            share = timed.report.flops / timed.least("step") / rates[precision]
            print(f"ratio rate/{precision}-matmul-{kind}-{name} {share:.2f}x "
                  f"({timed.report.flops / task.batch / 1e9:.1f} GFLOP an image)")
    print(f"ratio step/loader-{name} {ours.least('step') / ours.least('load'):.1f}x")
    memory = {kind: timed.end() for kind, timed in (
        ("ours", ours), ("ours-fp32", fp32), ("plain", plain), ("peer", peer), ("no SSIM", without),
        ("matmul", matmul)) if timed is not None}
    for other in ("plain", "peer"):
        for kind in [kind for kind in memory if kind.startswith("ours")]:
            print(f"ratio memory-{other}/{kind}-{name} {memory[other] / memory[kind]:.2f}x "
                  f"({memory[other] / 1e6:.0f} MB, {memory[kind] / 1e6:.0f} MB)")


def compare_memory(task: Task) -> None:
    """Print the peak memory of our steps beside that of the peer's, at twice the batch, each in a fresh process."""
    batch = 2 * task.batch
    write_images(Path(task.images) / "train", BATCHES * batch, task.size)
    most = {kind: Processes(Task(**{**task.__dict__, "kind": kind, "batch": batch})).end() for kind in ("peer", "ours")}
    print(f"ratio memory-peer/ours-{task.size}-batch-{batch} {most['peer'] / most['ours']:.2f}x (aim at least 1x; "
          f"{most['peer'] / 1e6:.0f} MB, {most['ours'] / 1e6:.0f} MB)")


def compare_processes(task: Task, rounds: int, cores: int) -> None:
    """Time several processes beside a single process with all cores, at the same global batch; on CUDA one per GPU."""
    ranks = torch.cuda.device_count() if task.device == "cuda" else 2
    if ranks < 2 or (task.device == "cpu" and cores < 2):
        print(f"  several processes: not measured, there is 1 {'GPU' if task.device == 'cuda' else 'core'}")
        return
    threads = cores // ranks * ranks if task.device == "cpu" else task.threads
    single = Processes(Task(**{**task.__dict__, "threads": threads}))
    # On GPUs, each of several processes has a batch as large as the single process: several GPUs are used for that.
    batch = task.batch * (ranks if task.device == "cuda" else 1)
    write_images(Path(task.images) / "train", BATCHES * batch, task.size)
    many = Processes(Task(**{**task.__dict__, "ranks": ranks, "threads": max(1, threads // ranks), "batch": batch}))
    for _ in range(rounds):
        for processes in (single, many):
            processes.measure("step", steps_at_once(task))
    rate = {processes: processes.task.batch / processes.least("step") for processes in (single, many)}
    print(f"  1 process, {single.task.threads} thread(s) {rate[single]:8.1f} images/s (loss {single.loss:.5f}); "
          f"{ranks} processes, {many.task.threads} thread(s) each {rate[many]:8.1f} (loss {many.loss:.5f})")
    print(f"ratio {ranks}-processes/1-process-{task.size} {rate[many] / rate[single]:.2f}x")
    single.end()
    many.end()


def check_synchronisations(task: Task) -> None:
    """Make 25 steps in which waiting for the GPU raises; they hold two restarts of codes."""
    ours = Ours(task)
    for _ in range(STEPS_BEFORE):
        ours.step()
    if task.device != "cuda":
        print("sync check: needs a GPU; the same steps ran on the CPU")
    else:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(25):
        ours.step()
    if task.device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        print(f"sync check, {task.size} pixels, {ours.how}: 25 steps, none waited for the GPU")


def profile(task: Task) -> None:
    """Print what two of our steps consist of."""
    machine.set_threads(task.threads)
    machine.keep_memory()
    ours = Ours(task)
    for _ in range(STEPS_BEFORE):
        ours.step()
    with torch.profiler.profile() as profiler:
        for _ in range(2):
            ours.step()
        if task.device == "cuda":
            torch.cuda.synchronize()
    print(f"{task.size} x {task.size} pixels, batches of {task.batch}, {ours.how}")
    print(profiler.key_averages().table(sort_by=f"self_{task.device}_time_total", row_limit=25,
                                        max_name_column_width=60))


def steps_at_once(task: Task) -> int:
    """Return how many steps to time together: about a second's on a CPU."""
    return 20 if task.device == "cuda" else max(1, 256 // task.size)


def write_images(folder: Path, count: int, size: int) -> None:
    """Write pictures of smooth blobs inside an ellipse on black, as a slice of a brain has them, up to `count`."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = torch.linspace(-1, 1, size)
    inside = (grid[:, None] / 0.85) ** 2 + (grid[None, :] / 0.7) ** 2 < 1
    for number in range(count):
        path = folder / f"{number:05d}.png"
        if path.exists():
            continue
        blobs = max(4, size // 12)
        noise = torch.rand(1, 1, blobs, blobs, generator=torch.Generator().manual_seed(number))
        blobs = functional.interpolate(noise, (size, size), mode="bicubic", align_corners=True)[0, 0].clamp(0, 1)
        Image.fromarray(((0.2 + 0.8 * blobs) * inside * 255).numpy().astype(np.uint8)).save(path)


if __name__ == "__main__":
    run_script(main)
