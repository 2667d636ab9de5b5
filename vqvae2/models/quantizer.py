"""Feature vectors -> codes and their embeddings, by one of the rules in the table QUANTIZERS.

`Quantizer` says what every rule gets and returns; docs/extending.md adds one. `FiniteScalarQuantizer` (Mentzer 2023
[4]) rounds a few numbers and has no codebook to learn. Under the other two rules (van den Oord 2017 [1]) each feature
vector is replaced by the nearest of `codebook_size` embeddings, and the codebook follows the vectors:

`EmaQuantizer`: an embedding is the moving average of the vectors that chose it (appendix A.1), with the statistics of
all ranks and micro-batches summed before one update a step. No gradient moves it.
`GradientQuantizer`: an embedding is a parameter, which the optimiser moves by the gradient of its squared distance to
the vectors that chose it (equation 3, second term).

Left to itself a codebook collapses: the encoder's outputs leave it behind within the first hundred
steps, and soon one code serves for everything. Four things here prevent it.

1. For the first steps vectors pass unquantised, so that the encoder learns what to say first.
2. Then k-means places all embeddings at once on current vectors, counts and sums consistent with them; where a step
   has too few vectors for that, those of several steps are gathered first.
3. The moving average follows fast (gamma 0.9, not 0.99), at first even faster. What passes straight through moves the
   vectors until the embeddings follow; where these stay far behind, the vectors swing about them, ever wider.
4. An embedding that hardly anything chooses is restarted at a current vector that is badly served,
   with *all* of its state: a stale sum or count would pull it back. (Of a gradient codebook the optimiser's own
   averages stay; what nothing chose had no gradient of late, so that little of them is left to pull.)

NOTE Departures from the paper: (1) to (4). What they bring is measured in docs/results.md.

How it is fast (docs/benchmarks.md): no one-hot matrix is made, and no matrix of distances outlives its block of
rows (nearest.py); counts and sums are added by index; backward needs only the vectors and their embeddings. On CUDA
neither `forward` nor `update` makes the host wait for the GPU, except in the one step in which k-means places the
codebook.

References
[1] van den Oord, Vinyals, Kavukcuoglu 2017, Neural Discrete Representation Learning.
[2] Razavi, van den Oord, Vinyals 2019, Generating Diverse High-Fidelity Images with VQ-VAE-2.
[3] Arthur, Vassilvitskii 2007, k-means++ (the choice of badly served vectors).
[4] Mentzer, Minnen, Agustsson, Tschannen 2023, Finite Scalar Quantization: VQ-VAE Made Simple (arXiv 2309.15505).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from vqvae2.common import distributed, machine, random_numbers
from vqvae2.models.nearest import as_rows, kmeans, mean_squares, nearest
from vqvae2.models.settings import VqvaeSettings

CANDIDATES_PER_CODE = 8
"""Vectors looked at per embedding when embeddings are placed or restarted."""
RESTART_EVERY = 10
"""Steps between restarts."""
RESTART_BELOW = 0.02
"""An embedding chosen less often than this share of the mean since the last restart is restarted."""
LARGEST_PERMUTATION = 2**20
CATCH_UP = 0.2
"""After n updates the moving average takes at least 1 / (1 + CATCH_UP n) of the step's statistics."""


@dataclass(frozen=True)
class Quantized:
    """A quantizer's result for vectors `[batch, dim, height, width]`.

    Args:
        vectors: `[batch, dim, height, width]`: the embeddings, with the gradient passed straight to the input.
        codes: `[batch, height, width]`: integers in [0, codebook_size).
        commitment: `[batch]`: mean squared distance from a vector to its embedding, whose gradient moves the vectors
            ([1] equation 3, last term).
        codebook: `[batch]`: the same distance, whose gradient moves the embeddings (second term); 0 where none does.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    commitment: torch.Tensor
    codebook: torch.Tensor


@dataclass(frozen=True)
class BatchPlace:
    """The place of a share of images in the global batch of one step; whichever rank holds them.

    Args:
        positions: `[batch]`: each image's place in the global batch, 0…global_batch-1.
        global_batch: images in this step over all ranks and micro-batches.
        step: number of the step, from 0.
    """

    positions: torch.Tensor
    global_batch: int
    step: int


class Quantizer(nn.Module):
    """The protocol of a codebook update rule: vectors -> codes and embeddings, and how the codebook moves.

    A rule provides `codebook`, `from_settings`, `forward` and, where the optimiser does not do all of the work,
    `update`. Example: vectors `[32, 64, 16, 16]` with 512 codes give codes `[32, 16, 16]` and embeddings of the
    vectors' shape.

    What must be equal on all ranks: the parameters and buffers after each step. Parameters are equal because DDP
    averages their gradients; a buffer is equal if `update` computes it from sums over all ranks
    (`distributed.sum_over_ranks`) and from random numbers of (seed, step). DDP copies no buffer.
    What must survive a stop: everything that the next step needs is in `state_dict()`, which `state.pt` holds.
    """

    codebook: torch.Tensor
    """`[codebook_size, dim]`: a buffer, a parameter or a property; row `code` is the embedding of a code. Who keeps it
    must detach it."""
    started = True
    """False while vectors pass unquantised and codes mean nothing."""
    has_codebook_loss = False
    """Whether `Quantized.codebook` has a gradient, and so belongs in the log."""

    def __init__(self, codebook_size: int, dim: int):
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim

    @classmethod
    def from_settings(cls, settings: VqvaeSettings, start_steps: int, seed: int) -> "Quantizer":
        """Return the quantizer of one level.

        Args:
            settings: `codebook_size`, `embedding_dim` (the vectors' dimension) and what else the rule needs.
            start_steps: steps without quantising that the rule may take; at most `settings.start_steps`.
            seed: of the rule's random numbers; each level has its own.
        """
        raise AssertionError("a rule provides from_settings()")

    def forward(self, vectors: torch.Tensor, place: BatchPlace | None = None) -> Quantized:
        """Quantise `vectors` `[batch, dim, height, width]`, of any floating type; nothing here waits for other ranks.

        Args:
            place: where this rank's images stand in the step; None outside of training, when no state may change.
        """
        raise AssertionError("a rule provides forward()")

    def update(self) -> None:
        """Move the codebook by what `forward` has collected. Every rank calls this once a step, after the optimiser."""

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `[batch, dim, height, width]` of codes `[batch, height, width]`."""
        return nn.functional.embedding(codes, self.codebook).movedim(-1, 1)


class LearnedCodebook(Quantizer):
    """A codebook that k-means places and restarts keep in use: what `ema` and `gradient` have in common.

    In training mode, `forward` with a `BatchPlace` only *collects* statistics; `update()` applies them once a step, on
    all ranks. In eval mode no state changes.

    Args:
        codebook_size: number of embeddings. dim: their dimension. The subclass registers `codebook`, as a buffer or as
            a parameter.
        decay: share of its past that a moving average keeps at each step (gamma), where the rule has one.
        start_steps: steps without quantising before the codebook is placed; up to as many again where a step has too
            few vectors for that.
        seed: of the draws of candidates, which depend on (seed, step) and not on the ranks.
        restart_every: steps between restarts of dead embeddings; 0 for none.
    """

    def __init__(self, codebook_size: int, dim: int, decay: float = 0.9, start_steps: int = 100, seed: int = 0,
                 restart_every: int = RESTART_EVERY):
        super().__init__(codebook_size, dim)
        self.decay, self.start_steps, self.seed, self.restart_every = decay, start_steps, seed, restart_every
        self.register_buffer("recent", torch.zeros(codebook_size))
        self.register_buffer("is_started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("step_counts", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("gathered", torch.zeros(0, dim), persistent=False)  # saved while it holds anything
        self._candidates: torch.Tensor | None = None
        self._wanted: tuple[torch.Tensor, torch.Tensor] | None = None
        self._place: BatchPlace | None = None
        self._cells = 0
        self.started = False  # is_started as a Python value: asking a GPU would make every step wait

    @classmethod
    def from_settings(cls, settings: VqvaeSettings, start_steps: int, seed: int) -> "Quantizer":
        """Return the quantizer of one level."""
        return cls(settings.codebook_size, settings.embedding_dim, settings.decay, start_steps, seed,
                   settings.restart_every)

    # What a kind of codebook provides ---------------------------------------------------------

    def _count(self, rows: torch.Tensor, codes: torch.Tensor) -> None:
        """Add to the step's statistics."""
        # Not bincount, which on CUDA waits for the GPU; float32 counts ones exactly up to 2**24 of them.
        self.step_counts.index_add_(0, codes, torch.ones_like(codes, dtype=self.step_counts.dtype))

    def _follow(self) -> None:
        """Apply the step's statistics, summed over all ranks, and forget them."""
        self.recent += distributed.sum_over_ranks(self.step_counts)
        self.step_counts.zero_()

    def _settle(self, moved: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        """Make all other state consistent with embeddings that k-means or a restart has moved.

        Args:
            moved: `[codebook_size]`, which of the embeddings have moved.
            counts: `[codebook_size]`, as of one step; the mean of all embeddings if they are not given.
        """

    # What is common to all --------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if len(self.gathered):
            destination[f"{prefix}gathered"] = self.gathered

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *more: object) -> None:
        gathered = state_dict.pop(f"{prefix}gathered", self.gathered[:0])
        if not isinstance(gathered, torch.Tensor) or gathered.shape[1:] != (self.dim,) or len(
                gathered) >= CANDIDATES_PER_CODE * self.codebook_size:
            raise ValueError(f"{prefix}gathered: expected fewer vectors of dimension {self.dim}")
        self.gathered = gathered.to(self.gathered)
        super()._load_from_state_dict(state_dict, prefix, *more)
        self.started = bool(self.is_started)

    def forward(self, vectors: torch.Tensor, place: BatchPlace | None = None) -> Quantized:
        """Quantise `vectors` `[batch, dim, height, width]`; collect statistics if training with a `place`.

        Vectors of any floating type and layout; what is computed has the codebook's type (float32), whatever
        autocast says. Fastest in that type and channels_last, since a cell's vector is then one piece of memory.
        """
        if torch.compiler.is_compiling():
            # A graph break: drawing candidates cannot be traced, and there is little here to fuse. As a decorator
            # it would cost every program a second, to import the compiler.
            return torch.compiler.disable(self._quantise)(vectors, place)
        return self._quantise(vectors, place)

    def _quantise(self, vectors: torch.Tensor, place: BatchPlace | None) -> Quantized:
        if vectors.shape[1] != self.dim:
            raise ValueError(f"vectors: expected dimension {self.dim}, found {vectors.shape[1]}")
        batch, _, height, width = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            rows = as_rows(vectors.detach(), self.codebook.dtype)
            # Before the start all embeddings are 0, and so is the lowest code of the nearest.
            codes = nearest(rows, self.codebook) if self.started else rows.new_zeros(len(rows), dtype=torch.long)
            if self.training and place is not None:
                self._collect(rows, codes, place, height * width)
            made, commitment, term = _StraightThrough.apply(vectors, rows, codes, self.codebook, self.started)
            return Quantized(made, codes.view(batch, height, width), commitment, term)

    def _collect(self, rows: torch.Tensor, codes: torch.Tensor, place: BatchPlace, cells: int) -> None:
        """Add this share's counts, sums and drawn candidates (`cells` rows an image) to those of the step."""
        if self.started:
            self._count(rows, codes)
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

    def _draw_wanted(self, place: BatchPlace, cells: int, device: torch.device) -> tuple | None:
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
            empty = self.recent.new_zeros(len(self._wanted[0]), self.dim)
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

    def _start(self, candidates: torch.Tensor, place: BatchPlace) -> None:
        generator = random_numbers.generator(self.seed, "start", place.step)
        codebook, counts = kmeans(candidates.cpu(), self.codebook_size, generator)
        # Rank 0's result for all: k-means takes yes-or-no decisions, which another CPU may take differently.
        self.codebook.copy_(distributed.from_rank_0(codebook.to(self.codebook.device)))
        shares = distributed.from_rank_0(counts.to(self.recent.device)) / len(candidates)
        self._settle(torch.ones_like(self.recent, dtype=torch.bool), shares * (place.global_batch * self._cells))
        self.is_started.fill_(True)
        self.started = True

    def _restart(self, candidates: torch.Tensor, place: BatchPlace) -> None:
        """Move each dead embedding to one of its own candidates, drawn with probability proportional to error [3].

        If all dead embeddings drew from one list, the last bit of one vector, which decides whether one embedding is
        dead or which of two candidates comes first, would move all those that follow in the list.
        """
        count, size = len(candidates), self.codebook_size
        errors = (candidates - self.codebook[nearest(candidates, self.codebook)]).square().sum(1)
        generator = random_numbers.generator(self.seed, "restart", place.step)
        gumbel = machine.to_device(-torch.empty(count).exponential_(generator=generator).log(), errors.device)
        # Column k holds the candidates of an embedding; where there are fewer than embeddings, they take turns.
        scores = nn.functional.pad(errors.log() + gumbel, (0, -count % size), value=-torch.inf).view(-1, size)
        best, row = scores.max(0)
        own = (row * size + torch.arange(size, device=row.device)).clamp(max=count - 1)
        turn = place.step // self.restart_every * count % size
        dead = (self.recent < RESTART_BELOW * self.recent.mean()) & best.isfinite().roll(turn)
        self.codebook.copy_(torch.where(dead[:, None], candidates[own].roll(turn, 0), self.codebook))
        self._settle(dead)
        self.recent.zero_()


class EmaQuantizer(LearnedCodebook):
    """A codebook of moving averages ([1] appendix A.1); its arguments are those of `LearnedCodebook`."""

    def __init__(self, codebook_size: int, dim: int, *options: object, **more: object):
        super().__init__(codebook_size, dim, *options, **more)
        for name, shape in {"codebook": (codebook_size, dim), "counts": (codebook_size,), "sums": (codebook_size, dim),
                            "updates": ()}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("step_sums", torch.zeros(codebook_size, dim), persistent=False)

    def _count(self, rows: torch.Tensor, codes: torch.Tensor) -> None:
        super()._count(rows, codes)
        self.step_sums.index_add_(0, codes, rows)

    def _follow(self) -> None:
        statistics = distributed.sum_over_ranks(torch.cat([self.step_counts[:, None], self.step_sums], 1))
        self.recent += statistics[:, 0]
        self.updates += 1
        # Early on the encoder moves fast, and the average of many steps would stay behind it.
        share = (1 / (1 + self.updates * CATCH_UP)).clamp(min=1 - self.decay)
        self.counts.lerp_(statistics[:, 0], share)
        self.sums.lerp_(statistics[:, 1:], share)
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-12)[:, None])
        self.step_counts.zero_()
        self.step_sums.zero_()

    def _settle(self, moved: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        self.counts.copy_(torch.where(moved, self.counts.mean() if counts is None else counts, self.counts))
        self.sums.copy_(torch.where(moved[:, None], self.codebook * self.counts[:, None], self.sums))


class GradientQuantizer(LearnedCodebook):
    """A codebook that the optimiser moves: `forward` returns the term whose gradient does ([1] equation 3, second).

    What `Quantized.codebook` is multiplied with in the loss (1 in the paper) hardly matters to Adam, which divides a
    gradient by its own size. With several ranks DDP averages the gradient, as of any parameter.
    """

    has_codebook_loss = True

    def __init__(self, codebook_size: int, dim: int, *options: object, **more: object):
        super().__init__(codebook_size, dim, *options, **more)
        self.codebook = nn.Parameter(torch.zeros(codebook_size, dim))


class FiniteScalarQuantizer(Quantizer):
    """A grid of codes that is not learned ([4]): few numbers, each bounded and rounded to one of a few levels.

    A vector z of `dim` numbers becomes d = len(levels) scalars s = (W z + b - mean) / deviation. Scalar i is bounded
    and rounded ([4] section 3.1 and the listing in its appendix, L = levels[i]; the factor is a thousandth less there
    and here):

        f(s) = (L - 1) / 2 * tanh(s + shift) - offset,    offset = 1/2 for an even L, else 0;    q = round(f(s)),

    where the shift makes f(0) = 0. So q takes L whole numbers: -2 … 2 for L = 5, -4 … 3 for L = 8. The code is the
    number with the digits q + L // 2, the first digit the lowest. The embedding is V (q / (L // 2)) + c. V, c, W and b
    are two 1 x 1 convolutions, which the optimiser learns with the rest of the network; with them `embedding_dim` means
    what it means for the other rules, and encoders, decoders and the difference that the bottom quantises stay as they
    are. The gradient of q passes straight to f(s). There is no commitment loss and no codebook loss, nothing to place
    and nothing to restart.

    Mean and deviation of W z + b are moving averages over the vectors of all ranks, as an EMA codebook is; each step
    uses those of the steps before it, so that images do not depend on each other.

    Example: levels (8, 6, 5) make 240 codes; vectors `[32, 64, 16, 16]` become codes `[32, 16, 16]`.
    NOTE Departures from [4]: (1) It has no mean and deviation. Without them all vectors round to one code at first, the
    decoder learns to do without the top level, and nothing spreads its vectors again: with them the levels are in
    nearly even use from the second step, since tanh makes a normal distribution nearly even. (2) The listing has
    tan(offset / reach) for the shift; atanh makes f(0) exactly 0.
    """

    def __init__(self, levels: Sequence[int], dim: int, decay: float = 0.9):
        super().__init__(math.prod(levels), dim)
        self.decay = decay
        for name, value in {"mean": torch.zeros(len(levels)), "variance": torch.ones(len(levels)),
                            "updates": torch.zeros(())}.items():
            self.register_buffer(name, value)
        self.register_buffer("step_sums", torch.zeros(3, len(levels)), persistent=False)
        self._has_collected = False
        self.to_scalars, self.from_scalars = nn.Linear(dim, len(levels)), nn.Linear(len(levels), dim)
        sizes = torch.tensor(levels)
        places = sizes.cumprod(0) // sizes
        digits = torch.arange(self.codebook_size)[:, None] // places % sizes
        reach, offset = (sizes - 1) * (1 - 1e-3) / 2, (1 - sizes % 2) / 2
        for name, value in {"places": places, "middle": sizes // 2, "reach": reach, "offset": offset,
                            "shift": (offset / reach).atanh(), "grid": (digits - sizes // 2) * 1.0}.items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def from_settings(cls, settings: VqvaeSettings, start_steps: int, seed: int) -> "Quantizer":
        """Return the quantizer of one level."""
        return cls(settings.fsq_levels, settings.embedding_dim, settings.decay)

    @property
    def codebook(self) -> torch.Tensor:
        """`[codebook_size, dim]`: the embedding of every code."""
        return self.from_scalars(self.grid / self.middle)

    def forward(self, vectors: torch.Tensor, place: BatchPlace | None = None) -> Quantized:
        """Quantise `vectors` `[batch, dim, height, width]`; computed in the weights' type whatever autocast says."""
        batch, _, height, width = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            scalars = self.to_scalars(as_rows(vectors, self.grid.dtype))
            if self.training and place is not None:
                # Differences from the last mean, whose squares lose no digits to a mean that is large.
                given, self._has_collected = scalars.detach() - self.mean, True
                self.step_sums += torch.stack([torch.ones_like(given), given, given.square()]).sum(1)
            normal = (scalars - self.mean) * self.variance.clamp(min=1e-12).rsqrt()
            bounded = (normal + self.shift).tanh() * self.reach - self.offset
            rounded = bounded.detach().round()
            codes = ((rounded.long() + self.middle) * self.places).sum(1)
            # What is added to the codebook's rows is 0 and passes the gradient on, so that they stay the rows' bits.
            passing = (bounded - bounded.detach()) / self.middle
            embeddings = nn.functional.embedding(codes, self.codebook) + nn.functional.linear(
                passing, self.from_scalars.weight.detach())
        none = embeddings.new_zeros(batch)
        return Quantized(embeddings.view(batch, height, width, self.dim).movedim(-1, 1),
                         codes.view(batch, height, width), none, none)

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean and the variance by the step's vectors, summed over all ranks."""
        if not self._has_collected:
            return
        count, total, squares = distributed.sum_over_ranks(self.step_sums)
        share = (1 / (1 + self.updates * CATCH_UP)).clamp(min=1 - self.decay)
        self.variance.lerp_((squares / count - (total / count).square()).clamp(min=0), share)
        self.mean += share * total / count
        self.updates += 1
        self.step_sums.zero_()
        self._has_collected = False


class _StraightThrough(torch.autograd.Function):
    """Vectors -> their embeddings, with the gradient passed to the vectors, and the two distances of [1] equation 3.

    The gradient of the commitment goes to the vectors alone; that of the codebook's term, which has the same values,
    goes to the codebook alone, where that is a parameter. What autograd would record is a chain of differences of the
    size of the vectors; here it keeps the vectors and the embeddings, which the layers on both sides hold anyway.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, vectors: torch.Tensor, rows: torch.Tensor,
                codes: torch.Tensor, codebook: torch.Tensor, started: bool) -> tuple[torch.Tensor, ...]:
        """Return embeddings `[batch, dim, height, width]` (channels_last), commitment and codebook term `[batch]`.

        Before the start these are the vectors themselves, 0 and 0.
        """
        batch, dim, height, width = vectors.shape
        ctx.started = started
        ctx.set_materialize_grads(False)
        if started:
            found = nn.functional.embedding(codes, codebook)
            commitment = mean_squares(rows, found, batch, height * width)
            made = found.view(batch, height, width, dim).movedim(-1, 1)
        else:
            commitment, made = rows.new_zeros(batch), vectors.view_as(vectors)
        ctx.save_for_backward(vectors, made, *((rows, codes, codebook) if ctx.needs_input_grad[3] else ()))
        term = commitment.clone()
        if not ctx.needs_input_grad[3]:
            ctx.mark_non_differentiable(term)
            term.zero_()
        return made, commitment, term

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, of_made: torch.Tensor | None,
                 of_commitment: torch.Tensor | None, of_term: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the vectors, in their own type, and that of the codebook.

        The latter is 2 (embedding - vector) / numbers of an image, summed by code.
        """
        vectors, made, *learned = ctx.saved_tensors
        gradient, of_codebook = of_made, None
        if of_commitment is not None and ctx.started:
            share = of_commitment * (2 / max(1, math.prod(vectors.shape[1:])))
            gradient = (vectors.to(made.dtype) - made).mul_(share[:, None, None, None])
            gradient = gradient if of_made is None else gradient.add_(of_made)
        if learned:  # before the start the gradient is 0: DDP wants every parameter to have one
            rows, codes, codebook = learned
            of_codebook = torch.zeros_like(codebook)
            if of_term is not None and ctx.started and len(rows):
                cells = len(rows) // len(of_term)
                share = (of_term * (2 / (cells * rows.shape[1]))).repeat_interleave(cells)
                of_codebook.index_add_(0, codes, (nn.functional.embedding(codes, codebook) - rows).mul_(share[:, None]))
        return None if gradient is None else gradient.to(vectors.dtype), None, None, of_codebook, None


QUANTIZERS: dict[str, type[Quantizer]] = {"ema": EmaQuantizer, "gradient": GradientQuantizer,
                                          "fsq": FiniteScalarQuantizer}
"""Codebook update rules by their names on the command line, which settings.QUANTIZER_NAMES repeats without torch."""
