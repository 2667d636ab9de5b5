"""Nothing -> the settings of a prior."""

from dataclasses import dataclass
from typing import Literal

from vqvae2.common.errors import expect
from vqvae2.settings.checks import Checked

PREVIOUS, PREVIOUS_MM = "previous-slice", "previous_mm"
"""The word of --condition for the codes of a neighbouring slice, and the column that says how far away it is."""


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
    """Columns of the manifest that the prior is conditioned on, such as age sex position_mm; a value may be unknown.
    previous-slice stands for the codes of a neighbouring slice of the same scan (slices of --per-scan all), by which
    whole brains are sampled (vqvae2 sample --nifti)."""
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

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of the manifest among `condition`."""
        return tuple(name for name in self.condition if name != PREVIOUS)

    @property
    def told_previous(self) -> bool:
        """Return whether the prior is told the codes of the previous slice."""
        return PREVIOUS in self.condition

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.channels % self.heads == 0, "--channels",
               f"a multiple of --heads {self.heads}", self.channels, "For example 128.")
