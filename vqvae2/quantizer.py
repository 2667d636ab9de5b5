"""Feature vectors -> codes and their embeddings: a codebook kept by moving averages (EMA).

Each feature vector is replaced by the nearest of `codebook_size` embeddings; its number is the code.
The codebook is not trained by gradient: an embedding is the moving average of the vectors that chose
it (van den Oord 2017, appendix A.1), with the statistics of all ranks and micro-batches summed before
one update a step.

Left to itself a codebook collapses: the encoder's outputs leave it behind within the first hundred
steps, and soon one code serves for everything. Four things here prevent it.

1. For the first steps vectors pass unquantised, so that the encoder learns what to say first.
2. Then k-means places all embeddings at once on current vectors, counts and sums consistent with them.
3. At first the moving average follows fast, since the encoder moves fast.
4. An embedding that hardly anything chooses is restarted at a current vector that is badly served,
   with *all* of its state: a stale sum or count would pull it back.

NOTE Departures from the paper: (1) to (4). What they bring is measured in docs/results.md.

References
[1] van den Oord, Vinyals, Kavukcuoglu 2017, Neural Discrete Representation Learning.
[2] Razavi, van den Oord, Vinyals 2019, Generating Diverse High-Fidelity Images with VQ-VAE-2.
[3] Arthur, Vassilvitskii 2007, k-means++ (the choice of badly served vectors).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from vqvae2 import distributed, random_numbers

CANDIDATES_PER_CODE = 8
"""Vectors looked at per embedding when embeddings are placed or restarted."""
RESTART_EVERY = 10
"""Steps between restarts."""
RESTART_BELOW = 0.02
"""An embedding chosen less often than this share of the mean since the last restart is restarted."""
RESTART_COUNT = 1.0
"""Its new count, as a share of the mean."""
KMEANS_ITERATIONS = 10
CATCH_UP = 0.2
"""After n updates the moving average takes at least 1 / (1 + CATCH_UP n) of the step's statistics."""


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
        decay: share of its past that the moving average keeps at each step.
        start_steps: steps without quantising before the codebook is placed.
        seed: of the draws of candidates, which depend on (seed, step) and not on the ranks.
    """

    def __init__(self, codebook_size: int, dim: int, decay: float = 0.99, start_steps: int = 100, seed: int = 0):
        super().__init__()
        self.codebook_size, self.dim, self.decay, self.start_steps, self.seed = (
            codebook_size, dim, decay, start_steps, seed)
        self.register_buffer("codebook", torch.zeros(codebook_size, dim))
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, dim))
        self.register_buffer("recent", torch.zeros(codebook_size))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("is_started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("step_counts", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("step_sums", torch.zeros(codebook_size, dim), persistent=False)
        self._candidates: torch.Tensor | None = None
        self._wanted: tuple[torch.Tensor, torch.Tensor] | None = None
        self._place: Place | None = None
        self._cells = 0
        self.started = False  # is_started as a Python value: asking a GPU would make every step wait
        self.register_load_state_dict_post_hook(lambda module, _: module._know_whether_started())

    def _know_whether_started(self) -> None:
        self.started = bool(self.is_started)

    def forward(self, vectors: torch.Tensor, place: Place | None = None) -> Quantized:
        """Quantise `vectors` `[batch, dim, height, width]`; collect statistics if training with a `place`."""
        if vectors.shape[1] != self.dim:
            raise ValueError(f"vectors: expected dimension {self.dim}, found {vectors.shape[1]}")
        collecting = self.training and place is not None
        with torch.autocast(vectors.device.type, enabled=False):
            rows = vectors.float().movedim(1, -1)
            codes = nearest(rows.detach().flatten(0, -2), self.codebook)
            if collecting:
                self._collect(rows.detach(), codes, place)
            if not self.started:
                return Quantized(vectors, codes.view(rows.shape[:-1]), rows.new_zeros(len(rows)))
            embeddings = functional.embedding(codes, self.codebook).view(rows.shape)
            commitment = (rows - embeddings).square().flatten(1).mean(1)
            straight = rows + (embeddings - rows).detach()
            return Quantized(straight.movedim(-1, 1), codes.view(rows.shape[:-1]), commitment)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `[batch, dim, height, width]` of codes `[batch, height, width]`."""
        return functional.embedding(codes, self.codebook).movedim(-1, 1)

    def _collect(self, rows: torch.Tensor, codes: torch.Tensor, place: Place) -> None:
        """Add this share's counts, sums and drawn candidates to those of the step."""
        batch, cells = len(rows), rows.shape[1] * rows.shape[2]
        rows = rows.flatten(0, -2)
        if self.started:
            self.step_counts.index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
            self.step_sums.index_add_(0, codes, rows)
        if self._place is None or self._place.step != place.step:
            self._place, self._cells = place, cells
            self._candidates, self._wanted = None, self._draw_wanted(place, cells, rows.device)
        if self._wanted is not None and batch:
            # Each candidate is a place in the global batch; whoever holds it writes it, and the sum
            # over ranks then has all of them, in an order that does not depend on the ranks.
            image, cell = self._wanted
            held = image[:, None] == place.positions[None, :]
            found = rows[held.int().argmax(1) * cells + cell] * held.any(1, keepdim=True)
            self._candidates = found if self._candidates is None else self._candidates + found

    def _draw_wanted(self, place: Place, cells: int, device: torch.device) -> tuple | None:
        starting = not self.started and place.step + 1 >= self.start_steps
        if not (starting or (self.started and (place.step + 1) % RESTART_EVERY == 0)):
            return None
        generator = random_numbers.generator(self.seed, "candidates", place.step)
        total = place.global_batch * cells
        wanted = torch.randperm(total, generator=generator)[: CANDIDATES_PER_CODE * self.codebook_size * 4 ** starting]
        return (wanted // cells).to(device), (wanted % cells).to(device)

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
            self._start(candidates, place)
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
        errors = (candidates - self.codebook[nearest(candidates, self.codebook)]).square().sum(1)
        generator = random_numbers.generator(self.seed, "restart", place.step)
        gumbel = -torch.empty(len(errors)).exponential_(generator=generator).log()
        ranked = (errors.log() + gumbel.to(errors.device)).argsort(descending=True)
        replacement = candidates[ranked[(dead.cumsum(0) - 1).clamp(0, len(ranked) - 1)]]
        self.counts.copy_(torch.where(dead, RESTART_COUNT * mean, self.counts))
        self.codebook.copy_(torch.where(dead[:, None], replacement, self.codebook))
        self.sums.copy_(torch.where(dead[:, None], replacement * self.counts[:, None], self.sums))
        self.recent.zero_()


def nearest(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the code `[n]` of the embedding nearest to each of `rows` `[n, dim]` (lowest code on a tie).

    |row|² is the same for every embedding, so one matrix product and |embedding|² decide.
    """
    return torch.addmm(codebook.square().sum(1)[None], rows, codebook.T, alpha=-2).argmin(1)


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
