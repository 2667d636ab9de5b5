"""Nothing -> the settings of a prior."""

from dataclasses import dataclass
from typing import Literal

from vqvae2.common.errors import expect
from vqvae2.settings.checks import Checked


@dataclass(frozen=True, kw_only=True)
class PriorSettings(Checked):
    """The architecture of a prior."""

    level: Literal["top", "bottom"]
    """The level of the codes to learn: top, or bottom given the top codes."""
    channels: int = 128
    """Width of the network."""
    layers: int = 8
    """Gated residual layers."""
    network: Literal["snail", "gated"] = "snail"
    """snail: PixelSNAIL, gated residual layers and, in the top prior, self-attention. gated: gated PixelCNN, no
    attention."""
    attention_every: int = 4
    """Layers between self-attention blocks in the top prior; 0 for none."""
    heads: int = 4
    """Attention heads."""
    condition: tuple[str, ...] = ()
    """Columns of the manifest that the prior is conditioned on, such as age sex position_mm; a value may be unknown."""
    dropout: float = 0.2
    """Share of channels dropped in each layer while training."""

    FORM = ("level", "network", "channels", "layers", "attention_every", "heads", "condition")
    RULES = (
        ("channels", lambda channels: 2 <= channels <= 16384, "2 to 16384", "The default is 128."),
        ("heads", lambda heads: heads >= 1, "at least 1", "The default is 4."),
        ("layers", lambda layers: 1 <= layers <= 256, "1 to 256", "The default is 8."),
        ("attention_every", lambda layers: layers >= 0, "0 or more", "See --help for defaults."),
        ("condition", lambda names: len(set(names)) == len(names), "each column once",
         "For example --condition age sex."),
        ("dropout", lambda share: 0 <= share < 1, "0 <= SHARE < 1", "The default is 0.2."))

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.channels % self.heads == 0, "--channels",
               f"a multiple of --heads {self.heads}", self.channels, "For example 128.")
