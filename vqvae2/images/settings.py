"""Nothing -> the settings that say which images are read, and how they are changed while training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.common.errors import expect, flag
from vqvae2.settings.checks import SEED, SPLIT, SUBJECT_PATTERN, Checked


@dataclass(frozen=True, kw_only=True)
class DataSettings(Checked):
    """Which images a command reads."""

    dataset: Literal["oasis", "keras_png_slices", "folder"] = "oasis"
    """oasis: made by extract_slices.py. keras_png_slices: --data is the parent of keras_png_slices_train,
    _validate, _test. folder: any pictures, in train, validate and test or unsplit."""
    data: Path | None = None
    """Folder of the images. Default: SLICES_PATH."""
    size: int | None = None
    """Resize images to this height and width in pixels; needed if their sizes differ."""
    fit: Literal["stretch", "crop"] = "stretch"
    """How an image that is not square becomes --size by --size: stretch the image, or crop its middle."""
    colours: Literal["auto", "grey", "rgb"] = "auto"
    """auto: grey if all images are grey, else rgb. grey and rgb convert all images."""
    split: tuple[float, float, float] = (64, 16, 20)
    """Shares of train, validate and test, if --dataset folder has no folders for them."""
    subject_pattern: str | None = None
    """Regular expression whose first group is the subject in an image's name (--dataset folder)."""
    allow_leak: bool = False
    """Accept data with a subject in two splits, as in some public data sets; every report then says so."""
    seed: int = 0
    """Seed of the weights, the order of images and all random numbers, and of the split, if --dataset folder has
    none."""

    RULES = (SPLIT, SEED, SUBJECT_PATTERN, ("size", lambda size: 8 <= size <= 4096, "8 to 4096 pixels", "Try 128."))


AUGMENTATION = {"no_mirror": (False, True, ""), "rotate_degrees": (0, 45, "°"), "shift_mm": (0, 50, " mm"),
                "scale_percent": (0, 50, " %"), "elastic_mm": (0, 8, " mm"), "intensity_percent": (0, 50, " %"),
                "picture_mm": (1, 1000, " mm")}
"""Least and most of the settings that --augment uses; up to these the pictures are not folded (augmentation.py)."""


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Checked):
    """Whether a training sees another picture of each image in each epoch, and how far the pictures may differ."""

    augment: bool = False
    """Change each training image at random in each epoch, within the bounds that follow; validation images stay."""
    no_mirror: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Mirror no images. Without it half of them are mirrored left-right, except slices that manifest.csv calls
    sagittal."""
    rotate_degrees: float = 5.0
    """Largest rotation either way; 0 for none, as for the bounds below."""
    shift_mm: float = 5.0
    """Largest shift across, and largest shift down."""
    scale_percent: float = 5.0
    """Largest change of the width, and of the height."""
    elastic_mm: float = 4.0
    """Largest shift by a smooth random field that never folds; its control points lie 32 mm apart."""
    intensity_percent: float = 10.0
    """Largest change of the brightness, and of the contrast."""
    picture_mm: float | None = None
    """Width of an image in mm, for these bounds. Default: the width in extraction.json, or 224 without this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (least, most, unit) in AUGMENTATION.items():
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            expect(value is None or least <= value <= most, flag(name), f"{least} to {most}{unit}", value,
                   "See --help for defaults.")
            expect(self.augment or value == default, flag(name), "--augment beside it", f"{value} alone",
                   "Give --augment too, or leave it out.")
