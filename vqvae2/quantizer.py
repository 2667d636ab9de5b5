"""Feature vectors -> codes and their embeddings: a codebook kept by moving averages (EMA).

Each feature vector is replaced by the nearest of `codebook_size` embeddings; its number is the code.
The codebook is not trained by gradient: an embedding is the moving average of the vectors that chose
it (van den Oord 2017, appendix A.1), with the statistics of all ranks and micro-batches summed before
one update a step.

Left to itself a codebook collapses: the encoder's outputs leave it behind within the first hundred
steps, and soon one code serves for everything. Four things here prevent it.

1. For the first steps vectors pass unquantised, so that the encoder learns what to say first.
2. Then k-means places all embeddings at once on current vectors, counts and sums consistent with them; where a step
   has too few vectors for that, those of several steps are gathered first.
3. At first the moving average follows fast, since the encoder moves fast.
4. An embedding that hardly anything chooses is restarted at a current vector that is badly served,
   with *all* of its state: a stale sum or count would pull it back.

NOTE Departures from the paper: (1) to (4). What they bring is measured in docs/results.md.

How it is fast (docs/benchmarks.md): no one-hot matrix is made, and no matrix of distances outlives its block of
rows; counts and sums are added by index; backward needs only the vectors and their embeddings. On CUDA neither
`forward` nor `update` makes the host wait for the GPU, except in the one step in which k-means places the codebook.

References
[1] van den Oord, Vinyals, Kavukcuoglu 2017, Neural Discrete Representation Learning.
[2] Razavi, van den Oord, Vinyals 2019, Generating Diverse High-Fidelity Images with VQ-VAE-2.
[3] Arthur, Vassilvitskii 2007, k-means++ (the choice of badly served vectors).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vqvae2 import distributed, machine, random_numbers

CANDIDATES_PER_CODE = 8
"""Vectors looked at per embedding when embeddings are placed or restarted."""
RESTART_EVERY = 10
"""Steps between restarts."""
RESTART_BELOW = 0.02
"""An embedding chosen less often than this share of the mean since the last restart is restarted."""
RESTART_COUNT = 1.0
"""Its new count, as a share of the mean."""
LARGEST_PERMUTATION = 2**20
KMEANS_ITERATIONS = 10
CATCH_UP = 0.2
"""After n updates the moving average takes at least 1 / (1 + CATCH_UP n) of the step's statistics."""
CPU_BLOCK = 2**20
"""Distances that each CPU thread computes before they are reduced: 4 MB as float32, so that they stay in the cache.

A fourth would be as fast on an idle machine. But each block ends with threads that wait for each other, and where
other processes hold the cores each wait was seen to take 10 ms or more.
"""
GPU_BLOCK = 2**27
"""The same for a whole GPU, which wants large products: 512 MB as float32."""


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of vectors `[batch, dim, height, width]`."""

    vectors: torch.Tensor
    """`[batch, dim, height, width]`: the embeddings, with the gradient passed straight to the input."""
    codes: torch.Tensor
    """`[batch, height, width]`: integers in [0, codebook_size)."""
    commitment: torch.Tensor
    """`[batch]`: mean squared distance from a vector to its embedding (the last term of [1] equation 3)."""


@dataclass(frozen=True)
class Place:
    """Where a share of images stands in the global batch of one step; the same whoever holds it."""

    positions: torch.Tensor
    """`[batch]`: each image's place in the global batch, 0…global_batch-1."""
    global_batch: int
    """Images in this step over all ranks and micro-batches."""
    step: int
    """Number of the step, from 0."""


class EmaQuantizer(nn.Module):
    """A codebook `[codebook_size, dim]` that follows the vectors which choose it.

    Example: vectors `[32, 64, 16, 16]` with 512 codes give codes `[32, 16, 16]` and embeddings of the
    shape of the vectors. In training mode, `forward` with a `Place` only *collects* statistics;
    `update()` applies them once a step, on all ranks. In eval mode no state changes.

    Args:
        codebook_size: number of embeddings. dim: their dimension.
        restart_every: steps between restarts of dead embeddings; 0 for none.
        decay: share of its past that the moving average keeps at each step.
        start_steps: steps without quantising before the codebook is placed; up to as many again where a step has too
            few vectors for that.
        seed: of the draws of candidates, which depend on (seed, step) and not on the ranks.
    """

    def __init__(self, codebook_size: int, dim: int, decay: float = 0.99, start_steps: int = 100, seed: int = 0,
                 restart_every: int = RESTART_EVERY):
        super().__init__()
        self.codebook_size, self.dim, self.decay, self.start_steps, self.seed, self.restart_every = (
            codebook_size, dim, decay, start_steps, seed, restart_every)
        self.register_buffer("codebook", torch.zeros(codebook_size, dim))
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, dim))
        self.register_buffer("recent", torch.zeros(codebook_size))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("is_started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("step_counts", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("step_sums", torch.zeros(codebook_size, dim), persistent=False)
        self.register_buffer("gathered", torch.zeros(0, dim), persistent=False)  # saved while it holds anything
        self._candidates: torch.Tensor | None = None
        self._wanted: tuple[torch.Tensor, torch.Tensor] | None = None
        self._place: Place | None = None
        self._cells = 0
        self.started = False  # is_started as a Python value: asking a GPU would make every step wait
        self.register_load_state_dict_post_hook(lambda module, _: module._know_whether_started())

    def _know_whether_started(self) -> None:
        self.started = bool(self.is_started)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if len(self.gathered):
            destination[f"{prefix}gathered"] = self.gathered

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *more: object) -> None:
        gathered = state_dict.pop(f"{prefix}gathered", self.gathered[:0])
        self.gathered = gathered.to(self.gathered)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def forward(self, vectors: torch.Tensor, place: Place | None = None) -> Quantized:
        """Quantise `vectors` `[batch, dim, height, width]`; collect statistics if training with a `place`.

        Vectors of any floating type and layout; what is computed has the codebook's type (float32), whatever
        autocast says. Fastest in that type and channels_last, since a cell's vector is then one piece of memory.
        """
        if torch.compiler.is_compiling():
            # A graph break: drawing candidates cannot be traced, and there is little here to fuse. As a decorator
            # it would cost every program a second, to import the compiler.
            return torch.compiler.disable(self._quantise)(vectors, place)
        return self._quantise(vectors, place)

    def _quantise(self, vectors: torch.Tensor, place: Place | None) -> Quantized:
        if vectors.shape[1] != self.dim:
            raise ValueError(f"vectors: expected dimension {self.dim}, found {vectors.shape[1]}")
        batch, _, height, width = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            rows = as_rows(vectors.detach(), self.codebook.dtype)
            # Before the start all embeddings are 0, and so is the lowest code of the nearest.
            codes = nearest(rows, self.codebook) if self.started else rows.new_zeros(len(rows), dtype=torch.long)
            if self.training and place is not None:
                self._collect(rows, codes, place, height * width)
            codes_made = codes.view(batch, height, width)
            if not self.started:
                return Quantized(vectors, codes_made, rows.new_zeros(batch))
            embeddings, commitment = _StraightThrough.apply(vectors, rows, codes, self.codebook)
            return Quantized(embeddings, codes_made, commitment)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `[batch, dim, height, width]` of codes `[batch, height, width]`."""
        return functional.embedding(codes, self.codebook).movedim(-1, 1)

    def _collect(self, rows: torch.Tensor, codes: torch.Tensor, place: Place, cells: int) -> None:
        """Add this share's counts, sums and drawn candidates (`cells` rows an image) to those of the step."""
        if self.started:
            # Not bincount, which on CUDA waits for the GPU; float32 counts ones exactly up to 2**24 of them.
            self.step_counts.index_add_(0, codes, torch.ones_like(codes, dtype=self.step_counts.dtype))
            self.step_sums.index_add_(0, codes, rows)
        if self._place is None or self._place.step != place.step:
            self._place, self._cells = place, cells
            self._candidates, self._wanted = None, self._draw_wanted(place, cells, rows.device)
        if self._wanted is not None and len(rows):
            # Each candidate is a place in the global batch; whoever holds it writes it, and the sum
            # over ranks then has all of them, in an order that does not depend on the ranks.
            image, cell = self._wanted
            held = image[:, None] == machine.to_device(place.positions, rows.device)[None, :]
            found = rows[held.int().argmax(1) * cells + cell] * held.any(1, keepdim=True)
            self._candidates = found if self._candidates is None else self._candidates + found

    def _draw_wanted(self, place: Place, cells: int, device: torch.device) -> tuple | None:
        starting = not self.started and place.step + 1 >= self.start_steps
        restarting = self.started and self.restart_every > 0 and (place.step + 1) % self.restart_every == 0
        if not (starting or restarting):
            return None
        generator = random_numbers.generator(self.seed, "candidates", place.step)
        total, most = place.global_batch * cells, CANDIDATES_PER_CODE * self.codebook_size * 4 ** starting
        # A permutation of millions takes seconds; among so many, hardly a place is drawn twice.
        wanted = (torch.randperm(total, generator=generator)[:most] if total < LARGEST_PERMUTATION else
                  torch.randint(total, (most,), generator=generator))
        return machine.to_device(wanted // cells, device), machine.to_device(wanted % cells, device)

    @torch.no_grad()
    def update(self) -> None:
        """Move the codebook by what `forward` has collected since the last update.

        Every rank must call this once a step; all end with the same codebook. Does nothing if nothing was collected.
        """
        if self._place is None:
            return
        place, candidates = self._place, None
        if self._wanted is not None:
            empty = self.sums.new_zeros(len(self._wanted[0]), self.dim)
            candidates = distributed.sum_over_ranks(empty if self._candidates is None else self._candidates)
        if self.started:
            self._follow()
            if candidates is not None:
                self._restart(candidates, place)
        elif candidates is not None:
            self.gathered = torch.cat([self.gathered, candidates])
            # A run with little to gather starts with what it has, rather than never.
            is_late = place.step + 1 >= 2 * self.start_steps
            if len(self.gathered) >= CANDIDATES_PER_CODE * self.codebook_size or is_late:
                self._start(self.gathered, place)
                self.gathered = self.gathered[:0].clone()
        self._place = self._wanted = self._candidates = None

    def _follow(self) -> None:
        """One step of the moving average ([1] appendix A.1)."""
        statistics = distributed.sum_over_ranks(torch.cat([self.step_counts[:, None], self.step_sums], 1))
        self.recent += statistics[:, 0]
        self.updates += 1
        # Early on the encoder moves fast, and an average over the last 100 steps would stay behind it.
        share = (1 / (1 + self.updates * CATCH_UP)).clamp(min=1 - self.decay)
        self.counts.lerp_(statistics[:, 0], share)
        self.sums.lerp_(statistics[:, 1:], share)
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-12)[:, None])
        self.step_counts.zero_()
        self.step_sums.zero_()

    def _start(self, candidates: torch.Tensor, place: Place) -> None:
        generator = random_numbers.generator(self.seed, "start", place.step)
        codebook, counts = kmeans(candidates.cpu(), self.codebook_size, generator)
        # Rank 0's result for all: k-means takes yes-or-no decisions, which another CPU may take differently.
        self.codebook.copy_(distributed.from_rank_0(codebook.to(self.codebook.device)))
        shares = distributed.from_rank_0(counts.to(self.counts.device)) / len(candidates)
        self.counts.copy_(shares * (place.global_batch * self._cells))
        self.sums.copy_(self.codebook * self.counts[:, None])
        self.is_started.fill_(True)
        self.started = True

    def _restart(self, candidates: torch.Tensor, place: Place) -> None:
        """Move dead embeddings to candidates, drawn with probability proportional to squared error [3]."""
        mean = self.counts.mean()
        dead = self.recent < RESTART_BELOW * self.recent.mean()
        order = dead.cumsum(0) - 1
        dead &= order < len(candidates)  # one candidate for each; the rest must wait
        errors = (candidates - self.codebook[nearest(candidates, self.codebook)]).square().sum(1)
        generator = random_numbers.generator(self.seed, "restart", place.step)
        gumbel = -torch.empty(len(errors)).exponential_(generator=generator).log()
        ranked = (errors.log() + machine.to_device(gumbel, errors.device)).argsort(descending=True)
        replacement = candidates[ranked[order.clamp(0, len(ranked) - 1)]]
        self.counts.copy_(torch.where(dead, RESTART_COUNT * mean, self.counts))
        self.codebook.copy_(torch.where(dead[:, None], replacement, self.codebook))
        self.sums.copy_(torch.where(dead[:, None], replacement * self.counts[:, None], self.sums))
        self.recent.zero_()


class _StraightThrough(torch.autograd.Function):
    """Vectors -> their embeddings, with the gradient passed to the vectors, and the commitment ([1] equation 3).

    What autograd would record is a chain of differences of the size of the vectors; here it keeps the vectors
    and the embeddings, which the layers on both sides hold anyway. No gradient goes to the codebook.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, vectors: torch.Tensor, rows: torch.Tensor,
                codes: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings `[batch, dim, height, width]` (channels_last) and commitment `[batch]`."""
        batch, dim, height, width = vectors.shape
        embeddings = functional.embedding(codes, codebook)
        commitment = mean_squares(rows, embeddings, batch, height * width)
        embeddings = embeddings.view(batch, height, width, dim).movedim(-1, 1)
        ctx.save_for_backward(vectors, embeddings)
        ctx.set_materialize_grads(False)
        return embeddings, commitment

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, of_embeddings: torch.Tensor | None,
                 of_commitment: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None, None]:
        """Return the gradient of the vectors, in their own type."""
        vectors, embeddings = ctx.saved_tensors
        gradient = of_embeddings
        if of_commitment is not None:
            share = of_commitment * (2 / max(1, math.prod(vectors.shape[1:])))
            gradient = (vectors.to(embeddings.dtype) - embeddings).mul_(share[:, None, None, None])
            gradient = gradient if of_embeddings is None else gradient.add_(of_embeddings)
        return None if gradient is None else gradient.to(vectors.dtype), None, None, None


def as_rows(vectors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `vectors` `[batch, dim, height, width]` as rows `[batch height width, dim]`, a view where it can be."""
    vectors = vectors.to(dtype, memory_format=torch.channels_last)
    return vectors.movedim(1, -1).reshape(-1, vectors.shape[1])


def mean_squares(rows: torch.Tensor, others: torch.Tensor, batch: int, cells: int) -> torch.Tensor:
    """Return the mean squared difference of each image's `cells` rows `[batch cells, dim]`: `[batch]`."""
    numbers = cells * rows.shape[1]
    ours, theirs = rows.reshape(batch, numbers), others.reshape(batch, numbers)
    images = max(1, block_size(rows.device) // max(1, numbers))
    return torch.cat([(one - other).square_().mean(1) for one, other in zip(ours.split(images), theirs.split(images))])


def block_size(device: torch.device) -> int:
    """Return how many numbers to compute at once, before they are reduced to fewer."""
    return CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK


@torch.no_grad()
def nearest(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the code `[n]` of the embedding nearest to each of `rows` `[n, dim]` (lowest code on a tie).

    |row|² is the same for every embedding, so one matrix product and |embedding|² decide. Distances are
    computed for a block of rows at a time, which stays in the cache until the smallest is found.
    """
    if rows.device.type == "cpu":
        return _nearest_on_cpu(rows, codebook)
    squares = codebook.square().sum(1)[None]
    blocks = rows.split(max(1, block_size(rows.device) // len(codebook)))
    return torch.cat([torch.addmm(squares, block, codebook.T, alpha=-2).argmin(1) for block in blocks])


def _nearest_on_cpu(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """As `nearest`, by max_pool2d of `2 row · embedding - |embedding|²`.

    argmin looks at one number after another, which takes half as long as the product itself. Pooling in
    channels_last finds the largest number *and its place* for sixteen channels at once, the first on a tie. So rows
    are its channels, embeddings its height: `[blocks, rows, codes, 1]`, stored as `[blocks, codes, rows]`.
    """
    size, dim = len(codebook), rows.shape[1]
    blocks = 4 * torch.get_num_threads()
    width = min(1024, max(16, block_size(rows.device) // (blocks * size)))
    twice, squares = (2 * codebook)[None], -codebook.square().sum(1)[None, :, None]
    codes = torch.empty(len(rows), dtype=torch.long)
    if not len(rows):
        return codes
    scores = rows.new_empty(blocks, size, width)
    for some, found in zip(rows.split(blocks * width), codes.split(blocks * width)):
        if len(some) < blocks * width:  # the last: one block of its own size
            blocks, width = 1, len(some)
            scores = rows.new_empty(1, size, width)
        torch.baddbmm(squares.expand_as(scores), twice.expand(blocks, size, dim),
                      some.view(blocks, width, dim).transpose(1, 2), out=scores)
        pixels = scores[:, :, None].permute(0, 3, 1, 2)
        found.copy_(functional.max_pool2d(pixels, (size, 1), return_indices=True)[1].flatten())
    return codes


def kmeans(rows: torch.Tensor, clusters: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centres `[clusters, dim]` of `rows` `[n, dim]` and how many rows each has `[clusters]` (Lloyd 1982).

    Starts from rows drawn without repetition; where there are fewer rows than clusters, the centres left
    over repeat rows and have count 0, so that they are restarted with later vectors.
    """
    order = torch.randperm(len(rows), generator=generator)
    centres = rows[order[torch.arange(clusters) % len(rows)]].clone()
    for _ in range(KMEANS_ITERATIONS):
        codes = nearest(rows, centres)
        counts = torch.bincount(codes, minlength=clusters).to(rows.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, rows)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    counts = torch.bincount(nearest(rows, centres), minlength=clusters).to(rows.dtype)
    return centres, counts
