"""Nothing -> the settings of a run, whatever it trains, and which of them may change when it goes on."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqvae2.common.errors import expect
from vqvae2.runs import writers
from vqvae2.settings.checks import Checked
from vqvae2.settings.parsing import as_dict, changes


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
    """Images per step over all processes, in place of --accumulate; it stays the same for any number of processes.
    Default: processes x batch x accumulation of the first start."""
    results: Path = Path("results")
    """Folder that holds all runs."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on where the run of this name stopped. never: refuse a folder that holds a run."""
    init_from: str | None = None
    """Begin with the weights of another run of the same kind and architecture, a folder or a name, instead of new ones.
    What that run was trained on then counts as this run's training data too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 if the device computes it natively, else fp32."""
    compile: Literal["auto", "never", "always"] = "auto"
    """auto: compile convolutions (torch.compile) on CUDA if a compiler works; on a CPU compiling does not pay."""
    learning_rate: float = 1e-3
    """Peak learning rate; it falls to 0 by a cosine over the epochs."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises from 0."""
    clip: float = 0.0
    """Largest norm of the gradient; larger gradients are scaled down to this norm; 0 for no limit."""
    log: tuple[str, ...] = ("tensorboard",)
    """Where figures and pictures are shown, beside log.csv and the run's folder: some of tensorboard, wandb, mlflow,
    trackio, or none."""
    pictures_every: int = 1
    """Epochs between pictures; the last epoch has them too; 0 for none."""
    checkpoint_minutes: float = 10
    """Minutes between saves inside an epoch; the state is also saved at the end of each epoch."""
    timeout_minutes: float = 10
    """Minutes that a process waits for the others before it gives up; a machine whose link is cut sends no notice."""
    threads: int | None = None
    """CPU threads of each process. Default: the cores divided by the processes of this machine."""

    RULES = (
        writers.CHOICE,
        ("epochs batch accumulate", lambda value: value >= 1, "at least 1", "Give a larger number."),
        ("warmup_steps clip pictures_every", lambda value: value >= 0, "0 or more", "See --help for defaults."),
        ("checkpoint_minutes timeout_minutes", lambda value: value > 0, "more than 0", "The default is 10."),
        ("learning_rate", lambda value: value > 0, "a positive number", "Try 1e-3."),
        ("threads", lambda value: value >= 1, "at least 1", "Or leave it out."))

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.global_batch is None or self.global_batch >= self.batch, "--global-batch",
               f"at least --batch {self.batch}", self.global_batch, "Or leave it out.")
        expect(self.global_batch is None or self.accumulate == 1, "--accumulate", "1 beside --global-batch",
               self.accumulate, "Give one of them.")
        expect(re.fullmatch(r"[\w][\w.+-]*", self.savename) is not None, "--savename",
               "letters, digits and . _ + - only", repr(self.savename), "It names a folder: try brain-128.")


NOT_PART_OF_A_RUN = {"preset", "epochs", "batch", "accumulate", "global_batch", "data", "results", "resume",
                     "log", "pictures_every", "threads", "checkpoint_minutes", "timeout_minutes"}
"""Settings that may change when a run goes on; the global batch and the data's hash may not."""
BEFORE = {"init_from": None, "ssim_weight": 0.0, "quantizer": "ema", "fsq_levels": [], "norm": "none",
          "standardise": False, "fit": "stretch", "colours": "auto", "allow_leak": False}
"""The value of each of these settings in a run whose config.json lacks it, because the run is older."""
BEFORE_AUGMENTED = {"rotate_degrees": 0.0, "shift_mm": "3 % of the picture", "elastic_mm": 0.0}
"""The same of a run with --augment. Its shift was no number of mm, so no such run goes on."""


@dataclass(frozen=True, kw_only=True)
class PresetSettings(Checked):
    """The setting of trainings for which a preset has a table: TABLE of their class, one of `presets.TABLES`."""

    preset: str | None = None
    """A preset of the list above, or a .toml file of yours: it sets other defaults, and flags override them. Without
    --savename the run has the preset's name, a prior's also the level, and a texture decoder's ends with -decoder; the
    default of --vqvae is the preset's name."""


def as_before(old: dict) -> dict:
    """Return the settings of a config.json, completed with what its run did where it lacks a setting."""
    return BEFORE | (BEFORE_AUGMENTED if old.get("augment") else {}) | old


def changed_settings(new: RunSettings, old: dict) -> list[str]:
    """Return what differs from the settings that a run began with, such as `--seed 5 (was 0)`."""
    return changes({name: value for name, value in as_dict(new).items() if name not in NOT_PART_OF_A_RUN},
                   as_before(old))
