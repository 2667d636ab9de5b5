"""Nothing -> the settings of a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqvae2.settings.checks import Checked, expect


@dataclass(frozen=True, kw_only=True)
class PriorSettings(Checked):
    """The architecture of a prior."""

    level: Literal["top", "bottom"]
    """The codes to learn: top, or bottom given top."""
    channels: int = 128
    """Width of the network."""
    layers: int = 8
    """Gated residual layers."""
    network: Literal["snail", "gated"] = "snail"
    """snail: PixelSNAIL, gated residual layers and, in the top prior, self-attention. gated: gated PixelCNN without."""
    attention_every: int = 4
    """Layers between self-attention blocks in the top prior; 0 for none."""
    heads: int = 4
    """Attention heads."""
    condition: tuple[str, ...] = ()
    """Columns of the manifest that the prior is told, such as age sex position_mm; a value may be unknown."""
    dropout: float = 0.2
    """Share of channels dropped in each layer while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.heads >= 1, "--heads", "at least 1", self.heads, "The default is 4.")
        expect(self.channels >= 2 and self.channels % self.heads == 0, "--channels",
               f"a multiple of --heads {self.heads}", self.channels, "For example 128.")
        expect(self.layers >= 1, "--layers", "at least 1", self.layers, "The default is 8.")
        expect(self.attention_every >= 0, "--attention-every", "0 or more", self.attention_every,
               "See --help for defaults.")
        expect(len(set(self.condition)) == len(self.condition), "--condition", "each column once",
               " ".join(self.condition), "For example --condition age sex.")
        expect(0 <= self.dropout < 1, "--dropout", "0 <= SHARE < 1", self.dropout, "The default is 0.2.")
