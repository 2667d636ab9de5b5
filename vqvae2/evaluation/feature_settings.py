"""Command line of vqvae2 train-features -> a frozen dataclass, as config.py has one for most other scripts."""

from __future__ import annotations

from dataclasses import dataclass

from vqvae2.settings.checks import expect, flag
from vqvae2.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(TrainingSettings):
    """Settings of vqvae2 train-features."""

    dims: int = 32
    """Features of an image. A Fréchet distance needs more unseen images, of many subjects, than features."""
    channels: int = 32
    """Width of the first convolution, a multiple of 4; the others are twice as wide."""
    redraw: float = 3.0
    """Weight of the small picture that is to be redrawn from the features, beside the harm that they are to tell."""
    harm: float = 0.25
    """Share of the training pictures that each kind of harm is done to; several may come together."""

    learning_rate: float = 2e-3
    """Peak learning rate; it falls to 0 by a cosine over the epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(2 <= self.dims <= 2048, "--dims", "2 to 2048", self.dims, "The default is 32.")
        expect(self.channels >= 4 and self.channels % 4 == 0, "--channels", "a multiple of 4", self.channels,
               "The default is 32.")
        expect(self.redraw >= 0, flag("redraw"), "0 or more", self.redraw, "The default is 3.")
        expect(0 < self.harm <= 1, flag("harm"), "0 < SHARE <= 1", self.harm, "The default is 0.25.")
