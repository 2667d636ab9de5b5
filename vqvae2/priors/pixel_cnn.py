"""Codes seen so far -> logits of the next one: top PixelCNN with self-attention, bottom PixelCNN given the top.

Both are the same network: gated residual layers in a vertical and a horizontal stack (van den Oord 2016
[1]), self-attention between some of them (PixelSNAIL, Chen 2018 [2]), and for the bottom a network that
turns the top codes into features which every layer is given (Razavi 2019 [3], section 3.2).

NOTE Departures, all because a study has hundreds of scans and not millions of photographs:
- Codes enter by a learned table that starts from the VQ-VAE's codebook, and the same table turns features into
  logits, so that codes that look alike share what is learned. The start alone would not do: the code of "nothing
  to add" is near the mean of the codebook, and a vector of length 0 can be neither seen nor predicted.
- Positions have learned features of their own: brains are centred, so that where a code stands says much.
- Gates are one half of the channels times the sigmoid of the other, without the tanh of [1], which `--network gated`
  brings back together with leaving out attention: the plain gated PixelCNN.

What is known of the image (age, plane, …; `conditions.py`) is one more feature that every layer is given. A prior
that was also trained without it serves classifier-free guidance (Ho and Salimans 2022 [4]).

A prior may be told the same level's codes of the previous slice of the brain, whole or in part, by a network as the one
for the top codes, and how far away it is in mm: so slices of one brain can be sampled one after another.

References
[1] van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders.
[2] Chen et al. 2018, PixelSNAIL: An Improved Autoregressive Generative Model.
[3] Razavi, van den Oord, Vinyals 2019, Generating Diverse High-Fidelity Images with VQ-VAE-2.
[4] Ho and Salimans 2022, Classifier-Free Diffusion Guidance.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from vqvae2.common.errors import expect
from vqvae2.priors import conditions, stepping
from vqvae2.priors.base import Prior
from vqvae2.priors.causal_layers import CausalAttention, HorizontalConv, VerticalConv
from vqvae2.priors.settings import PriorSettings
from vqvae2.priors.stepping import PixelCNNCursor
from vqvae2.runs.config import need
from vqvae2.runs.weights import Pretrained, load_model
from vqvae2.settings.stored import ADVICE, from_dict

CACHE = 8 * 2**20
"""Bytes of keys and values that are drawn from at a time. Most processors have a larger cache, but not alone."""

MAPS_AT_A_TIME = 2
"""Maps that a compiled convolution goes over together, so that they stay in the cache."""


def gate(x: torch.Tensor) -> torch.Tensor:
    """Return one half of the channels (dimension 1) times the sigmoid of the other."""
    return nn.functional.glu(x, 1)


def gate_of_tanh(x: torch.Tensor) -> torch.Tensor:
    """Return the tanh of one half of the channels times the sigmoid of the other ([1] equation 2)."""
    value, opening = x.chunk(2, 1)
    return value.tanh() * opening.sigmoid()


GATES = {"snail": gate, "gated": gate_of_tanh}


class GatedLayer(nn.Module):
    """One layer of both stacks: vertical, then horizontal, which also sees the vertical's result."""

    def __init__(self, channels: int, conditioned: bool, gate: Callable[[torch.Tensor], torch.Tensor] = gate):
        super().__init__()
        self.gate = gate
        self.vertical_in = VerticalConv(channels, channels)
        self.vertical_out = nn.Conv2d(channels, 2 * channels, 1)
        self.horizontal_in = HorizontalConv(channels, channels)
        self.from_vertical = nn.Conv2d(channels, channels, 1)
        self.from_condition = nn.Conv2d(channels, channels, 1) if conditioned else None
        self.horizontal_out = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, vertical: torch.Tensor, horizontal: torch.Tensor, condition: torch.Tensor | None,
                keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Both stacks `[batch, channels, height, width]` to the same; `keep` `[batch, 2, channels]` is dropout."""
        above, left = (None, None) if keep is None else keep[..., None, None].unbind(1)
        vertical = vertical + self._gated(self.vertical_out, self.vertical_in(nn.functional.elu(vertical)), above)
        given = self.from_vertical(nn.functional.elu(vertical))
        if condition is not None:
            given = given + self.from_condition(condition)
        seen = self.horizontal_in(nn.functional.elu(horizontal)) + given
        return vertical, horizontal + self._gated(self.horizontal_out, seen, left)

    def _gated(self, out: nn.Conv2d, seen: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """Return what a stack adds to its features, given what its kernel has seen."""
        seen = nn.functional.elu(seen)
        return self.gate(out(seen if keep is None else seen * keep))


def loops_for(values: torch.Tensor) -> ModuleType | None:
    """Return the module of compiled loops, where it serves for such values: float32 or float64, on a CPU."""
    fits = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return stepping.compiled_loops() if fits and not torch.is_autocast_enabled("cpu") else None


class SubPixelShuffle(nn.Module):
    """`[batch, channels x factor², height, width]` to `[batch, channels, height x factor, width x factor]`.

    Sub-pixel convolution (Shi et al. 2016) of a 1 x 1 kernel. torch's PixelShuffle has no backward pass for an empty
    batch (torch 2.13), which a rank may have.
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the enlarged map."""
        batch, _, height, width = x.shape
        cells = x.unflatten(1, (-1, self.factor, self.factor)).permute(0, 1, 4, 2, 5, 3)
        return cells.reshape(batch, cells.shape[1], height * self.factor, width * self.factor)


class Convolution(nn.Conv2d):
    """A convolution of stride 1 and an odd kernel, padded to the same size; without gradients, on one thread of a CPU,
    by compiled loops where there are any, since torch's is slow in float64."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels_in, height, width]` to `[batch, channels_out, height, width]`."""
        loops = None if torch.is_grad_enabled() or not len(x) or torch.get_num_threads() > 1 else loops_for(x)
        return super().forward(x) if loops is None else torch.cat([loops.convolved(some, self)
                                                                   for some in x.split(MAPS_AT_A_TIME)])


class ResidualBlock(nn.Module):
    """Two convolutions that see 3 x 3 positions all around, added to their input, where nothing need be causal."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(nn.ELU(), Convolution(channels, channels, 3), nn.ELU(),
                                    Convolution(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, height, width]` to the same shape."""
        return x + self.layers(x)


class Conditioner(nn.Module):
    """Top codes -> features for every bottom code, each of which has seen all top codes ([3] section 3.2).

    It serves for the codes of the previous slice too, whose map is as large as the one that is predicted (factor 1).

    Residual blocks see the neighbourhood, one full (not causal) attention sees the whole map. Each bottom code in the
    cell of a top code has features of its own: features that were only repeated would leave it to the masked layers to
    find out which of the cell's codes they are at.
    """

    def __init__(self, embeddings: torch.Tensor, channels: int, heads: int, shape: tuple[int, int], factor: int):
        super().__init__()
        self.table = nn.Parameter(_start_of_table(embeddings))
        self.enter = Convolution(embeddings.shape[1], channels, 3)
        self.place = nn.Parameter(torch.randn(channels, *shape) * 0.02)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(3)))
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.enlarge = nn.Sequential(nn.ELU(), Convolution(channels, channels * factor**2, 1), SubPixelShuffle(factor))
        self.fine_blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(2)))

    def forward(self, top_codes: torch.Tensor) -> torch.Tensor:
        """`[batch, top height, top width]` to `[batch, channels, bottom height, bottom width]`."""
        x = self.blocks(self.enter(nn.functional.embedding(top_codes, self.table).movedim(-1, 1)) + self.place)
        cells = x.flatten(2).transpose(1, 2)
        seen = self.attention(cells, cells, cells, need_weights=False)[0]
        x = x + seen.transpose(1, 2).reshape(x.shape)
        return nn.functional.elu(self.fine_blocks(self.enlarge(x)))


class FactsEncoder(nn.Module):
    """Facts of an image -> one feature vector for all of its codes; an unknown value has a learned vector."""

    FREQUENCIES = (1.0, 2.0, 4.0)
    """The frequencies of the waves that stand for a number, in radians for each standard deviation."""

    def __init__(self, columns: Sequence[conditions.Column], channels: int):
        super().__init__()
        # A category, or what stands for a number, enters by a table; the last row is "unknown".
        self.sizes = [len(column.categories) for column in columns]
        self.tables = nn.ModuleList(nn.Embedding(size + 1, channels) for size in self.sizes)
        self.enters = nn.ModuleList(
            nn.Linear(1 + 2 * len(self.FREQUENCIES), channels) if not size else nn.Identity() for size in self.sizes)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, known: torch.Tensor) -> torch.Tensor:
        """`[batch, columns]`, NaN for unknown (see `conditions.numbers`), to `[batch, channels, 1, 1]`."""
        total = 0
        for column, size in enumerate(self.sizes):
            values = known[:, column]
            absent = values.isnan()
            values = values.nan_to_num()
            if size:
                total = total + self.tables[column](values.long().masked_fill(absent, size))
            else:
                waves = [wave(frequency * values) for frequency in self.FREQUENCIES for wave in (torch.sin, torch.cos)]
                here = self.enters[column](torch.stack([values, *waves], 1).to(self.tables[column].weight.dtype))
                total = total + torch.where(absent[:, None], self.tables[column].weight[0].to(here.dtype), here)
        return self.out(nn.functional.elu(total)[:, :, None, None])


class PixelCNN(Pretrained, Prior):
    """p(code | codes before it in raster order, condition) for one level's code maps.

    Example: a top prior on 16 x 16 maps of 512 codes turns codes `[8, 16, 16]` into logits `[8, 512, 16, 16]`;
    those at a position do not depend on the code there or on any after it.

    Args:
        settings: widths and depth.
        embeddings: `[codebook_size, dim]`, the codebook of the level that is learned.
        shape: height and width of its code maps.
        top_embeddings, top_shape: the same of the top level, for a bottom prior.
        columns: what the prior is told of each image.
    """

    kind = "prior"

    def __init__(self, settings: PriorSettings, embeddings: torch.Tensor, shape: tuple[int, int],
                 top_embeddings: torch.Tensor | None = None, top_shape: tuple[int, int] | None = None,
                 columns: Sequence[conditions.Column] = ()):
        super().__init__()
        channels, dim = settings.channels, embeddings.shape[1]
        self.settings, self.shape, self.codebook_size = settings, tuple(shape), len(embeddings)
        self.columns = tuple(columns)
        self.conditioner = None if top_embeddings is None else Conditioner(
            top_embeddings, channels, settings.heads, top_shape, shape[0] // top_shape[0])
        self.known = FactsEncoder(columns, channels) if columns else None
        # One row more, the last, for a code that is unknown.
        self.previous = Conditioner(torch.cat([embeddings, embeddings.mean(0, keepdim=True)]), channels, settings.heads,
                                    shape, 1) if settings.told_previous else None
        self.table = nn.Parameter(_start_of_table(embeddings))
        self.vertical_first = VerticalConv(dim, channels, first=True)
        self.horizontal_first = HorizontalConv(dim, channels, first=True)
        self.vertical_place = nn.Parameter(torch.randn(channels, *shape) * 0.02)
        self.horizontal_place = nn.Parameter(torch.randn(channels, *shape) * 0.02)
        conditioned = any(part is not None for part in (self.conditioner, self.known, self.previous))
        self.layers = nn.ModuleList(GatedLayer(channels, conditioned, GATES[settings.network])
                                    for _ in range(settings.layers))
        # The bottom has the whole top map for what is far away; attention over its own map would cost most.
        every = 0 if self.conditioner is not None or settings.network == "gated" else settings.attention_every
        self.attentions = nn.ModuleDict({str(i): CausalAttention(channels, settings.heads)
                                         for i in range(settings.layers) if every and (i + 1) % every == 0})
        self.head = nn.Sequential(nn.ELU(), nn.Conv2d(channels, channels, 1), nn.ELU(), nn.Conv2d(channels, dim, 1))
        self.bias = nn.Parameter(torch.zeros(self.codebook_size))

    @classmethod
    def from_config(cls, config: dict, tensors: Mapping[str, torch.Tensor]) -> "PixelCNN":
        """Return a prior of a run's config and the shapes of its weights, which are still to be loaded.

        Raises: UserError if config or weights are those of no prior.
        """
        need(config, "shape", "vqvae_hash", "training_images", "training_subjects")
        settings, shape = from_dict(PriorSettings, config["settings"]), config["shape"]
        expect(config["kind"] == f"{settings.level} prior", "config.kind", f"{settings.level} prior, the level of its "
               "settings", config["kind"], ADVICE)
        names = ["table", "conditioner.table"][: 1 + (settings.level == "bottom")]
        for name in names:
            form = list(tensors[name].shape) if name in tensors else []
            expect(len(form) == 2 and 0 not in form, f"tensor {name}", "a row for each code", form, ADVICE)
        table, *top_table = (tensors[name].float() for name in names)  # stored in 16 bit, the model is built in 32
        if top_table:
            need(config, "top_shape")
            factor = shape[0] // config["top_shape"][0]
            expect([factor * side for side in config["top_shape"]] == list(shape), "config.top_shape",
                   f"a height and a width that fit into those of the bottom, {shape}", config["top_shape"], ADVICE)
        return cls(settings, table, shape, *top_table, **({"top_shape": config["top_shape"]} if top_table else {}),
                   columns=conditions.from_json(config.get("columns") or []))

    def forward(self, codes: torch.Tensor, top_codes: torch.Tensor | None = None,
                known: torch.Tensor | None = None, keep: torch.Tensor | None = None,
                previous: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits `[batch, codebook_size, height, width]` of `codes` `[batch, height, width]`.

        Args:
            top_codes: `[batch, top height, top width]`, for a bottom prior.
            known: `[batch, columns]`, what is known of each image, NaN where it is not; None for nothing at all.
            keep: `[batch, layers, 2, channels]`, 0 or 1 / (1 - dropout): the channels that dropout leaves.
            previous: `[batch, height, width]`, this level's codes of the previous slice, -1 where one is unknown; None
                for nothing at all.
        """
        embedded = self.embed(codes)
        condition = self.condition(len(codes), top_codes, known, previous)
        vertical = self.vertical_first(embedded) + self.vertical_place
        horizontal = self.horizontal_first(embedded) + self.horizontal_place
        for i, layer in enumerate(self.layers):
            vertical, horizontal = layer(vertical, horizontal, condition, None if keep is None else keep[:, i])
            if str(i) in self.attentions:
                horizontal = self.attentions[str(i)](horizontal)
        features = self.head(horizontal)
        logits = torch.einsum("bdhw,kd->bkhw", features, self.table.to(features.dtype) * features.shape[1] ** -0.5)
        return (logits.float() if features.dtype == torch.bfloat16 else logits) + self.bias[:, None, None]

    def condition(self, batch: int, top_codes: torch.Tensor | None, known: torch.Tensor | None,
                  previous: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return what every layer is given beside the codes: None, `[batch, channels, height, width]`, or with 1, 1 at
        the end where it is the same everywhere."""
        if self.known is not None and known is None:
            known = self.bias.new_full((batch, len(self.columns)), torch.nan)
        if self.previous is not None:
            shown = self.bias.new_full((batch, *self.shape), -1, dtype=torch.long) if previous is None else previous
            previous = shown.masked_fill(shown < 0, self.codebook_size)
        given = ((self.conditioner, top_codes), (self.known, known), (self.previous, previous))
        parts = [part(values) for part, values in given if part is not None]
        return sum(parts[1:], parts[0]) if parts else None

    @torch.no_grad()
    def logits(self, codes: torch.Tensor, top_codes: torch.Tensor | None = None, known: torch.Tensor | None = None,
               previous: torch.Tensor | None = None) -> torch.Tensor:
        """Return what `forward` returns, but for rounding: row by row by compiled loops, where there are any.

        Loops compute on one thread: where torch has more of them, it is as fast or faster.
        """
        if loops_for(self.bias) is None or not len(codes) or torch.get_num_threads() > 1:
            return self(codes, top_codes, known, previous=previous)
        cursor = self.cursor(len(codes), top_codes, known, previous)
        rows = [cursor.read_row(row, own.T) for row, own in enumerate(codes.unbind(1))]
        return torch.stack(rows).permute(2, 3, 0, 1)

    def cursor(self, batch: int, top_codes: torch.Tensor | None = None, known: torch.Tensor | None = None,
               previous: torch.Tensor | None = None) -> PixelCNNCursor:
        """Return a cursor that keeps what each layer has seen, so that a position costs one position and not a map."""
        loops = loops_for(self.bias)
        make = PixelCNNCursor if loops is None else loops.CompiledCursor
        return make(self, batch, top_codes, known, previous)

    @property
    def maps_at_once(self) -> int | None:
        """How many maps are drawn together: as many as have their keys and values in the processor's cache."""
        of_a_map = 2 * len(self.attentions) * self.vertical_place.nbytes
        return max(1, CACHE // of_a_map) if of_a_map and loops_for(self.bias) is not None else None

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Return `[batch, dim, height, width]` of codes `[batch, height, width]`."""
        return nn.functional.embedding(codes, self.table).movedim(-1, 1)


def _start_of_table(embeddings: torch.Tensor) -> torch.Tensor:
    """Return directions of `embeddings` `[codebook_size, dim]` in lengths of about 1 per dimension, with noise
    that tells apart codes whose embeddings are alike."""
    spread = embeddings.std(0, unbiased=False).clamp(min=1e-6)
    white = nn.functional.normalize((embeddings - embeddings.mean(0)) / spread, dim=1) * embeddings.shape[1] ** 0.5
    return white + 0.5 * torch.randn_like(white)


def load_prior(name: str, level: str, vqvae_hash: str, device: torch.device,
               results: Path = Path("results")) -> Prior:
    """Return a trained prior in eval mode, from its folder or by its name.

    Raises: UserError if it is missing, of another level, or learned from another VQ-VAE's codes.
    """
    prior = load_model(name, f"--{level}", f"{level} prior", PixelCNN.from_config, results, words=f"a {level} prior",
                       advice=f"Give the name that train_pixel_cnn.py --level {level} was run with.").model
    learned, own = prior.config["vqvae_hash"], prior.config["settings"].get("vqvae")
    expect(learned == vqvae_hash, "--vqvae", f"the VQ-VAE whose codes --{level} {name} learned ({learned[:6]}, {own})",
           vqvae_hash[:6], f"Pass --vqvae {own}, or train the prior again.")
    return prior.to(device)
