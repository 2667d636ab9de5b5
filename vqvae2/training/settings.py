"""Nothing -> the settings of each training, mixed from those of its parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2.images.settings import AugmentationSettings, DataSettings
from vqvae2.models.settings import DecoderSettings, VqvaeSettings
from vqvae2.priors.settings import PriorSettings
from vqvae2.runs.settings import PresetSettings, RunSettings


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings, DataSettings):
    """The settings that every training takes: how the run goes, and which images it reads."""

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return self.results / self.dataset / self.savename


@dataclass(frozen=True, kw_only=True)
class TrainVqvae(AugmentationSettings, VqvaeSettings, PresetSettings, TrainingSettings):
    """Settings of train_vqvae.py."""

    TABLE = "vqvae"


@dataclass(frozen=True, kw_only=True)
class TrainPrior(PriorSettings, PresetSettings, TrainingSettings):
    """Settings of train_pixel_cnn.py."""

    TABLE = "prior"
    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE whose codes are learned: a folder, or a name in results/*/ or pretrained/."""
    condition_dropout: float = 0.1
    """While training, this share of the images has no condition, and this share of the other images' values is
    unknown."""
    copies: int = 0
    """Augmented copies (mirrored, shifted, scaled) of each training image whose codes are learned too."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""
    ema: float = 0.999
    """Decay of the averaged weights that are validated and saved; 0 keeps the plain weights."""
    clip: float = 1.0
    """Largest norm of the gradient; larger gradients are scaled down to this norm; 0 for no limit."""

    RULES = (
        ("copies weight_decay", lambda value: value >= 0, "0 or more", "See --help for defaults."),
        ("condition_dropout", lambda share: 0 <= share < 1, "0 <= SHARE < 1", "The default is 0.1."),
        ("ema", lambda decay: 0 <= decay < 1, "0 <= DECAY < 1", "The default is 0.999."))


@dataclass(frozen=True, kw_only=True)
class TrainDecoder(DecoderSettings, PresetSettings, TrainingSettings):
    """Settings of train_decoder.py."""

    TABLE = "decoder"
    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE whose codes are decoded: a folder, or a name in results/*/ or pretrained/."""
    crop: int = 64
    """Height and width in pixels of the part of each training image that a step sees; 0 for whole images."""
    ema: float = 0.999
    """Decay of the averaged weights that are validated and saved; 0 keeps the plain weights."""
    ssim_weight: float = 0.03
    """Weight of 1 - SSIM beside the absolute error; only for --network adversarial."""
    adversarial_weight: float = 0.02
    """Weight of what the discriminator says, in the end; only for --network adversarial."""
    adversarial_steps: int = 1000
    """Steps in which this weight rises from 0; only for --network adversarial."""

    RULES = (
        ("crop", lambda pixels: pixels == 0 or (16 <= pixels <= 8192 and pixels % 2 == 0), "0, or an even number from "
         "16 to 8192", "The default is 64."),
        ("ema", lambda decay: 0 <= decay < 1, "0 <= DECAY < 1", "The default is 0.999."),
        ("ssim_weight adversarial_weight adversarial_steps", lambda value: value >= 0, "0 or more",
         "See --help for defaults."))


@dataclass(frozen=True, kw_only=True)
class TrainDenoiser(TrainingSettings):
    """Settings of `vqvae2 train-denoiser`."""

    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE whose codes noisy images are to have: a folder, or a name in results/*/ or pretrained/."""
    noise: float = 0.1
    """Largest deviation of the Rician noise on images of 0…1; each image has its own amount, from 0 to this."""

    RULES = (("noise", lambda deviation: 0 < deviation <= 0.5, "0 < DEVIATION <= 0.5", "The default is 0.1."),)
