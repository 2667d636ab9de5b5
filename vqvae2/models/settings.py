"""Nothing -> the settings of a VQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqvae2.settings.checks import Checked, expect


@dataclass(frozen=True, kw_only=True)
class VqvaeSettings(Checked):
    """What a VQ-VAE is, and the weights of its losses."""

    quantizer: Literal["ema", "gradient"] = "ema"
    """ema: embeddings are moving averages of the vectors that choose them. gradient: the optimiser moves them."""
    norm: Literal["none", "group"] = "none"
    """group: GroupNorm after each convolution inside the networks."""
    standardise: bool = False
    """Give the network images less their mean and divided by their standard deviation, both over all training images;
    the reconstruction's error is divided by the variance likewise."""
    levels: Literal[1, 2] = 2
    """2: VQ-VAE-2, a top and a bottom code map. 1: plain VQ-VAE, one code map, called top."""
    downsample: tuple[int, ...] = ()
    """Image pixels per bottom code, then bottom codes per top code (each a power of 2). Default: 4 2, or 4
    for one level."""
    codebook_size: int = 512
    """Embeddings in each codebook."""
    embedding_dim: int = 64
    """Dimension of an embedding."""
    channels: int = 128
    """Width of the encoders and decoders."""
    residual_channels: int = 32
    """Width inside a residual block."""
    residual_layers: int = 2
    """Residual blocks in each encoder and decoder."""
    commitment: float = 0.25
    """Weight of the commitment loss (beta in van den Oord 2017, equation 3)."""
    decay: float = 0.99
    """Share of its past that a codebook keeps at each step (gamma in its appendix A.1); --quantizer ema alone."""
    restart_every: int = 10
    """Steps between restarts of embeddings that are not in use; 0 for none, and most of them will never be."""
    start_steps: int = 100
    """Steps without quantising before k-means places the codebooks."""
    prediction: float = 0.25
    """Weight of the error of what the top predicts of the bottom's features."""
    ssim_weight: float = 0.03
    """Weight of 1 - SSIM of the reconstruction, beside its squared error."""
    gradient_weight: float = 0.0
    """Weight of the absolute error of neighbouring pixels' differences."""

    RULES = (
        ("downsample", lambda factors: all(f >= 2 and f & (f - 1) == 0 for f in factors), "powers of 2, from 2",
         "For example --downsample 4 2."),
        ("codebook_size", lambda size: 2 <= size <= 32767, "2 to 32767",
         "Codes are stored as int16. The default is 512."),
        ("decay", lambda decay: 0 <= decay < 1, "0 <= DECAY < 1", "The default is 0.99."),
        ("embedding_dim channels residual_channels", lambda value: value >= 2, "at least 2",
         "See --help for defaults."),
        ("residual_layers commitment prediction start_steps restart_every ssim_weight gradient_weight",
         lambda value: value >= 0, "at least 0", "See --help for defaults."))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.downsample:
            object.__setattr__(self, "downsample", (4, 2)[: self.levels])
        expect(len(self.downsample) == self.levels, "--downsample",
               f"{self.levels} value(s) for --levels {self.levels}", " ".join(map(str, self.downsample)),
               f"For example --downsample {'4 2' if self.levels == 2 else '4'}.")
