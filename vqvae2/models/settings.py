"""Nothing -> the settings of a VQ-VAE."""

# Names that QUANTIZER_NAMES gets later count too.
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vqvae2.common.errors import expect
from vqvae2.settings.checks import Checked

QUANTIZER_NAMES = ["ema", "gradient", "fsq"]
"""The keys of models/quantizer.py's table, which cannot be read here, where nothing may import torch."""
FSQ_LEVELS = ((4, 4), (8, 8), (5, 5, 5), (8, 6, 5), (8, 8, 8), (8, 5, 5, 5), (8, 8, 6, 5), (7, 5, 5, 5, 5),
              (8, 8, 5, 5, 5), (8, 8, 8, 6, 5))
"""Levels for about 2^4, 2^6, … 2^14 codes. Those for 2^8, 2^10, 2^12 and 2^14 are Mentzer 2023's (table 1); its row for
2^16 has more codes than an int16 can name; the others follow its rule of at least 5 levels where 2^6 codes allow it."""


@dataclass(frozen=True, kw_only=True)
class VqvaeSettings(Checked):
    """The architecture of a VQ-VAE, and the weights of its losses."""

    quantizer: Literal[tuple(QUANTIZER_NAMES)] = "ema"
    """ema: embeddings are moving averages of the vectors that choose them. gradient: the optimiser moves them. fsq:
    finite scalar quantisation, a few numbers rounded to a few levels each, with no codebook to learn."""
    norm: Literal["none", "group"] = "none"
    """group: GroupNorm after each convolution inside the networks."""
    standardise: bool = False
    """Subtract the mean of all training images from each image and divide by their standard deviation; the
    reconstruction's error is divided by their variance."""
    levels: Literal[1, 2] = 2
    """2: VQ-VAE-2, a top and a bottom code map. 1: plain VQ-VAE, one code map, called top."""
    downsample: tuple[int, ...] = ()
    """Image pixels per bottom code, then bottom codes per top code (each a power of 2). Default: 4 2, or 4
    for one level."""
    codebook_size: int = 512
    """Embeddings in each codebook. With --quantizer fsq it becomes the product of --fsq-levels."""
    fsq_levels: tuple[int, ...] = ()
    """Levels of each rounded number, only for --quantizer fsq, such as 8 6 5 for 240 codes. Default: the recommended
    levels whose product is nearest to --codebook-size."""
    embedding_dim: int = 64
    """Dimension of an embedding."""
    channels: int = 128
    """Width of the encoders and decoders."""
    residual_channels: int = 32
    """Width inside a residual block."""
    residual_layers: int = 2
    """Residual blocks in each encoder and decoder."""
    commitment: float = 0.5
    """Weight of the commitment loss (beta in van den Oord 2017, equation 3); --quantizer fsq has none."""
    decay: float = 0.9
    """Share of its past that a codebook keeps at each step (gamma in van den Oord 2017, appendix A.1); with --quantizer
    fsq, share that the mean and deviation of the rounded numbers keep. Not for --quantizer gradient."""
    restart_every: int = 10
    """Steps between restarts of unused embeddings; 0 for no restarts, and most embeddings then stay unused. Not for
    --quantizer fsq."""
    start_steps: int = 100
    """Steps without quantising before k-means places the codebooks. Not for --quantizer fsq."""
    prediction: float = 0.25
    """Weight of the error of the top's prediction of the bottom's features."""
    ssim_weight: float = 0.03
    """Weight of 1 - SSIM of the reconstruction; the weight of its squared error is 1."""
    gradient_weight: float = 0.0
    """Weight of the absolute error of the differences between neighbouring pixels."""

    FORM = ("quantizer", "norm", "standardise", "levels", "downsample", "codebook_size", "fsq_levels", "embedding_dim",
            "channels", "residual_channels", "residual_layers")
    """The settings in which two models must agree where one begins with the other's weights."""
    RULES = (
        ("downsample", lambda factors: all(2 <= f <= 4096 and f & (f - 1) == 0 for f in factors),
         "powers of 2, from 2 to 4096",
         "For example --downsample 4 2."),
        ("codebook_size", lambda size: 2 <= size <= 32767, "2 to 32767",
         "Codes are stored as int16. The default is 512."),
        ("decay", lambda decay: 0 <= decay < 1, "0 <= DECAY < 1", "The default is 0.9."),
        ("embedding_dim channels residual_channels", lambda value: 2 <= value <= 16384, "2 to 16384",
         "See --help for defaults."),
        ("residual_layers", lambda layers: 0 <= layers <= 256, "0 to 256", "The default is 2."),
        ("commitment prediction start_steps restart_every ssim_weight gradient_weight",
         lambda value: value >= 0, "at least 0", "See --help for defaults."))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.downsample:
            object.__setattr__(self, "downsample", (4, 2)[: self.levels])
        expect(len(self.downsample) == self.levels, "--downsample",
               f"{self.levels} value(s) for --levels {self.levels}", " ".join(map(str, self.downsample)),
               f"For example --downsample {'4 2' if self.levels == 2 else '4'}.")
        given = " ".join(map(str, self.fsq_levels))
        expect(self.quantizer == "fsq" or not given, "--fsq-levels", "--quantizer fsq beside it",
               f"--quantizer {self.quantizer}", "Leave it out, or give --quantizer fsq.")
        if self.quantizer == "fsq":
            levels = self.fsq_levels or min(FSQ_LEVELS, key=lambda levels: abs(
                math.log(math.prod(levels) / self.codebook_size)))
            expect(all(3 <= level <= 255 for level in levels) and math.prod(levels) <= 32767, "--fsq-levels",
                   "numbers from 3 to 255 whose product is at most 32767", given, "For example --fsq-levels 8 6 5.")
            object.__setattr__(self, "fsq_levels", tuple(levels))
            object.__setattr__(self, "codebook_size", math.prod(levels))


@dataclass(frozen=True, kw_only=True)
class DecoderSettings(Checked):
    """The architecture of a texture decoder."""

    network: Literal["flow", "adversarial"] = "flow"
    """flow: a rectified flow from noise to detail, in a few passes. adversarial: one pass, trained against a network
    that is to tell its pictures from real ones."""
    width: int = 48
    """Channels of the network."""
    blocks: int = 5
    """Residual blocks of the network."""
    flow_steps: int = 8
    """Steps from noise to detail, each of two passes but the last; only for --network flow."""
    noise_channels: int = 3
    """Channels of noise beside the soft picture; only for --network adversarial."""

    FORM = ("network", "width", "blocks", "noise_channels")
    RULES = (
        ("width", lambda width: 2 <= width <= 4096, "2 to 4096", "The default is 48."),
        ("blocks", lambda blocks: 1 <= blocks <= 256, "1 to 256", "The default is 5."),
        ("flow_steps", lambda steps: 1 <= steps <= 1000, "1 to 1000", "The default is 8."),
        ("noise_channels", lambda channels: 1 <= channels <= 64, "1 to 64", "The default is 3."))
