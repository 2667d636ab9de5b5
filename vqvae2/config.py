"""Command line, environment, .env -> frozen dataclasses; those of two scripts are in {extract,sample}_config.py.

The sentence under a field is what `--help` prints. Cheap checks are made here, before anything is read.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.settings.checks import Checked, check_finite, check_seed, check_split, check_subject_pattern, expect, flag
from vqvae2.settings.parsing import as_dict


@dataclass(frozen=True, kw_only=True)
class DataSettings(Checked):
    """Which images a command reads."""

    dataset: Literal["oasis", "keras_png_slices", "folder"] = "oasis"
    """oasis: made by extract_slices.py. keras_png_slices: --data is the parent of keras_png_slices_train,
    _validate, _test. folder: any pictures, in train, validate and test or unsplit."""
    data: Path | None = None
    """Folder of the images. Default: SLICES_PATH."""
    size: int | None = None
    """Resize images to this height and width in pixels; needed where they differ."""
    fit: Literal["stretch", "crop"] = "stretch"
    """How an image that is not square becomes --size by --size: stretch it, or crop its middle."""
    colours: Literal["auto", "grey", "rgb"] = "auto"
    """auto: grey where all images are. grey and rgb turn all into that."""
    split: tuple[float, float, float] = (64, 16, 20)
    """Shares for train, validate and test where --dataset folder is not split yet."""
    subject_pattern: str | None = None
    """Regular expression whose first group is the subject in an image's name (--dataset folder)."""
    allow_leak: bool = False
    """Go on where a subject is in two splits, as in some public data sets; every report then says so."""
    seed: int = 0
    """Seed of the weights, the order of images and every draw, and of the split where --dataset folder has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.size is None or 8 <= self.size <= 4096, "--size", "8 to 4096 pixels", self.size, "Try 128.")
        check_split(self.split)
        check_subject_pattern(self.subject_pattern)
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Checked):
    """How a training run is named, paced, saved and logged, whatever it trains."""

    savename: str
    """Name of the run; its files go to <results>/<dataset>/<savename>/."""
    epochs: int
    """Passes over the training images."""
    batch: int
    """Images per process and micro-batch. The global batch is processes x batch x accumulation."""
    accumulate: int = 1
    """Micro-batches per step, each of --batch images."""
    global_batch: int | None = None
    """Images per step over all processes, in place of --accumulate: the same whatever the number of processes. Default:
    what the first start makes of processes x batch x accumulation."""
    results: Path = Path("results")
    """Folder that holds all runs."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on where the run of this name stopped; never refuses a folder that holds a run."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto takes bf16 where the device computes it natively."""
    compile: Literal["auto", "never", "always"] = "auto"
    """auto compiles convolutions (torch.compile) on CUDA, where a compiler works; on a CPU it does not pay."""
    learning_rate: float = 1e-3
    """Peak learning rate; it falls to 0 by a cosine over the epochs."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises from 0."""
    clip: float = 0.0
    """Largest norm of the gradient, larger ones are scaled down to it; 0 for no limit."""
    pictures_every: int = 1
    """Epochs between pictures."""
    checkpoint_minutes: float = 10
    """Minutes between saves inside an epoch; the state is saved at the end of each epoch anyway."""
    timeout_minutes: float = 10
    """Minutes that a process waits for the others before it gives up: a machine whose link is cut does not say so."""
    threads: int | None = None
    """CPU threads of each process. Default: the cores divided by the processes of this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch", "accumulate", "pictures_every"):
            value = getattr(self, name)
            expect(value >= 1, flag(name), "at least 1", value, "Give a larger number.")
        check_finite(self, *(one.name for one in dataclasses.fields(self)))
        expect(self.global_batch is None or self.global_batch >= self.batch, "--global-batch",
               f"at least --batch {self.batch}", self.global_batch, "Or leave it out.")
        expect(self.global_batch is None or self.accumulate == 1, "--accumulate", "1 beside --global-batch",
               self.accumulate, "Give one of them.")
        for name in ("warmup_steps", "clip"):
            expect(getattr(self, name) >= 0, flag(name), "0 or more", getattr(self, name), "See --help for defaults.")
        for name in ("checkpoint_minutes", "timeout_minutes"):
            expect(getattr(self, name) > 0, flag(name), "more than 0", getattr(self, name), "The default is 10.")
        expect(self.learning_rate > 0, "--learning-rate", "a positive number", self.learning_rate, "Try 1e-3.")
        expect(self.threads is None or self.threads >= 1, "--threads", "at least 1", self.threads, "Or leave it out.")
        expect(re.fullmatch(r"[\w][\w.+-]*", self.savename) is not None, "--savename",
               "letters, digits and . _ + - only", repr(self.savename), "It names a folder: try brain-128.")


NOT_PART_OF_A_RUN = {"preset", "epochs", "batch", "accumulate", "global_batch", "data", "results", "resume",
                     "pictures_every", "threads", "checkpoint_minutes", "timeout_minutes"}
"""Settings that may change when a run goes on; the global batch and the data's hash may not."""
BEFORE = {"ssim_weight": 0.0, "quantizer": "ema", "norm": "none", "standardise": False, "fit": "stretch",
          "colours": "auto", "allow_leak": False}
"""What runs did whose config.json lacks a setting: a VQ-VAE's, or of how images are read."""
BEFORE_AUGMENTED = {"rotate_degrees": 0.0, "shift_mm": "3 % of the picture", "elastic_mm": 0.0}
"""Likewise, with --augment: their shift was no number of mm, so that none of them goes on."""
AUGMENTATION = {"no_mirror": (False, True, ""), "rotate_degrees": (0, 45, "°"), "shift_mm": (0, 50, " mm"),
                "scale_percent": (0, 50, " %"), "elastic_mm": (0, 8, " mm"), "intensity_percent": (0, 50, " %"),
                "picture_mm": (1, 1000, " mm")}
"""Least and most of the settings that --augment uses; up to these the pictures are not folded (augmentation.py)."""


@dataclass(frozen=True, kw_only=True)
class PresetSettings(Checked):
    """What the training runs share that a preset has tables for."""

    preset: str | None = None
    """Other defaults, listed above by their names, or a .toml file of yours; flags beat them. Then --savename is the
    preset's name (a prior's with the level), and --vqvae likewise, if they are not given."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.downsample:
            object.__setattr__(self, "downsample", (4, 2)[: self.levels])
        expect(len(self.downsample) == self.levels, "--downsample",
               f"{self.levels} value(s) for --levels {self.levels}", " ".join(map(str, self.downsample)),
               f"For example --downsample {'4 2' if self.levels == 2 else '4'}.")
        expect(all(f >= 2 and f & (f - 1) == 0 for f in self.downsample), "--downsample", "powers of 2, from 2",
               " ".join(map(str, self.downsample)), "For example --downsample 4 2.")
        expect(2 <= self.codebook_size <= 32767, "--codebook-size", "2 to 32767", self.codebook_size,
               "Codes are stored as int16. The default is 512.")
        expect(0 <= self.decay < 1, "--decay", "0 <= DECAY < 1", self.decay, "The default is 0.99.")
        for least, names in ((2, ("embedding_dim", "channels", "residual_channels")),
                             (0, ("residual_layers", "commitment", "prediction", "start_steps", "restart_every",
                                  "ssim_weight", "gradient_weight"))):
            for name in names:
                value = getattr(self, name)
                expect(value >= least, flag(name), f"at least {least}", value, "See --help for defaults.")


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Checked):
    """Whether a training sees another picture of each image in each epoch, and how far the pictures may differ."""

    augment: bool = False
    """Train on another picture of each image in each epoch, within the bounds that follow; validation never does."""
    no_mirror: bool = False
    """Mirror none. Otherwise half of the images are, left-right, except those that manifest.csv calls sagittal."""
    rotate_degrees: float = 5.0
    """Largest rotation either way; 0 for none, here and below."""
    shift_mm: float = 5.0
    """Largest shift across, and largest shift down."""
    scale_percent: float = 5.0
    """Largest change of the width, and of the height."""
    elastic_mm: float = 4.0
    """Largest shift by a smooth random field that never folds; its control points lie 32 mm apart."""
    intensity_percent: float = 10.0
    """Largest change of the brightness, and of the contrast."""
    picture_mm: float | None = None
    """Width of an image in mm, for these bounds. Default: what extraction.json says, or 224 where there is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (least, most, unit) in AUGMENTATION.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            expect(value is None or least <= value <= most, flag(name), f"{least} to {most}{unit}", value,
                   "See --help for defaults.")
            expect(self.augment or value == default, flag(name), "--augment beside it", f"{value} alone",
                   "Give --augment too, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class PriorSettings(Checked):
    """What a prior is."""

    level: Literal["top", "bottom"]
    """Which codes to learn: top, or bottom given top."""
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


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(RunSettings, DataSettings):
    """What every training takes: how the run goes, and which images it reads."""


@dataclass(frozen=True, kw_only=True)
class TrainVqvae(AugmentationSettings, VqvaeSettings, PresetSettings, TrainingSettings):
    """Settings of train_vqvae.py."""


@dataclass(frozen=True, kw_only=True)
class TrainPrior(PriorSettings, PresetSettings, TrainingSettings):
    """Settings of train_pixel_cnn.py."""

    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE whose codes are learned: a folder, or a name in results/*/ or pretrained/."""
    condition_dropout: float = 0.1
    """While training, this share of the images is told nothing, and of the others' values this share is unknown."""
    copies: int = 0
    """Augmented copies (mirrored, shifted, scaled) of each training image whose codes are learned too."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""
    ema: float = 0.999
    """Decay of the averaged weights that are validated and saved; 0 keeps the plain ones."""
    clip: float = 1.0
    """Largest norm of the gradient, larger ones are scaled down to it; 0 for no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("copies", "weight_decay"):
            expect(getattr(self, name) >= 0, flag(name), "0 or more", getattr(self, name), "See --help for defaults.")
        expect(0 <= self.condition_dropout < 1, "--condition-dropout", "0 <= SHARE < 1", self.condition_dropout,
               "The default is 0.1.")
        expect(0 <= self.ema < 1, "--ema", "0 <= DECAY < 1", self.ema, "The default is 0.999.")


def as_before(old: dict) -> dict:
    """Return the settings of a config.json, with what its run did where it lacks one."""
    return BEFORE | (BEFORE_AUGMENTED if old.get("augment") else {}) | old


def changed_settings(new: RunSettings, old: dict) -> list[str]:
    """Return what differs from the settings that a run began with, such as `--seed 5 (was 0)`."""
    def words(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    old = as_before(old)
    return [f"{flag(key)} {words(value)} (was {words(old[key])})" for key, value in as_dict(new).items()
            if key not in NOT_PART_OF_A_RUN and key in old and old[key] != value]
