"""Command line of predict.py -> a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vqvae2.settings.checks import SAID, Checked, expect
from vqvae2.slices.settings import ExtractSettings, Plane

OF_SLICES = ("planes", "extent", "field_of_view", "bits")
"""A model's config may say how its slices were cut. The flags beat it, extract_slices.py's defaults follow."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Checked):
    """Settings of predict.py."""

    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE: a folder, or a name in results/*/ or pretrained/."""
    input: Annotated[tuple[Path, ...], tyro.conf.Positional,
                     tyro.conf.arg(metavar="INPUT ...", help_behavior_hint="(required)")]
    """Images, scans, and folders of images or of scans; any number."""
    out: Path
    """Folder that receives everything. One that predict.py made before is replaced."""
    size: Annotated[int | None, SAID] = None
    """Height and width in pixels at which images go through the model. Without it: those it was trained on."""
    batch: int = 32
    """Images at a time."""
    planes: Annotated[tuple[Plane, ...], SAID, tyro.conf.arg(metavar="{axial,coronal,sagittal} ...")] = ()
    """One or more anatomical planes, for scans. Without it: as the model's own slices, if it knows, or axial."""
    per_scan: int = 1
    """Number of slices per plane, for scans; 1 is the centre of the extent, more are evenly spaced in it."""
    extent: Annotated[tuple[float, float] | None, SAID] = None
    """Part of the brain that planes come from, for scans: fractions from inferior, posterior or left. Without it: as
    the model's own slices, if it knows, or 0.3 0.8."""
    field_of_view: Annotated[float | None, SAID] = None
    """Height and width of a slice in mm, for scans. Without it: as the model's own slices, if it knows, or 224."""
    assume_orientation: Annotated[str | None, SAID] = None
    """Direction in which the indices of scans grow (RAS, LAS, …) where neither header nor known layout says it."""
    volume: Annotated[int | None, SAID] = None
    """Number of the volume, from 0, that is taken from a series of volumes. Without it: a series is not read."""
    suffix: Annotated[tuple[str, ...], SAID, tyro.conf.arg(metavar="STR ...")] = ()
    """Endings of the names of scans in folders (T2w, FLAIR, …). Without it: T1-weighted scans. A scan that is
    named itself may be called anything."""

    RULES = (("batch", lambda images: images >= 1, "at least 1", "Give a larger number."),)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(len(self.input) >= 1, "INPUT", "at least one image, scan or folder", "none",
               "Name it after the other flags' values, such as predict.py --vqvae vqvae-128 brain.png --out predicted.")
        self.cutting({}, 256)

    def cutting(self, recorded: dict, size: int) -> ExtractSettings:
        """Return how slices are cut out of scans, as extract_slices.py takes it.

        Args:
            recorded: what the model's config says of its own slices; see OF_SLICES.
            size: height and width in pixels, where --size does not say it.
        Raises: UserError where a flag does not fit.
        """
        own = {name: tuple(value) if isinstance(value := recorded[name], list) else value
               for name in OF_SLICES if name in recorded}
        given = {name: getattr(self, name) for name in OF_SLICES if self.is_given(name)}
        return ExtractSettings(**(own | given), per_scan=self.per_scan, volume=self.volume, suffix=self.suffix,
                               size=size if self.size is None else self.size,
                               assume_orientation=self.assume_orientation)

    def is_given(self, name: str) -> bool:
        """Return whether a flag says one of OF_SLICES."""
        return getattr(self, name, None) not in (None, ())
