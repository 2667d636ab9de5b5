"""Nothing -> the settings of vqvae2 train-features."""

from __future__ import annotations

from dataclasses import dataclass

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

    RULES = (
        ("dims", lambda dims: 2 <= dims <= 2048, "2 to 2048", "The default is 32."),
        ("channels", lambda channels: channels >= 4 and channels % 4 == 0, "a multiple of 4", "The default is 32."),
        ("redraw", lambda weight: weight >= 0, "0 or more", "The default is 3."),
        ("harm", lambda share: 0 < share <= 1, "0 < SHARE <= 1", "The default is 0.25."))
