"""Nothing -> the settings of compress and decompress."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.common.errors import expect
from vqvae2.evaluation.prediction import PredictSettings
from vqvae2.settings.checks import SAID, Checked
from vqvae2.slices.settings import MASK_SUFFIXES, Plane

BATCH = ("batch", lambda images: images >= 1, "at least 1", "Give a larger number.")


@dataclass(frozen=True, kw_only=True)
class ModelNames(Checked):
    """The models that write files, or wrote them."""

    vqvae: Annotated[str | None, SAID, tyro.conf.arg(aliases=["-m"])] = None
    """The VQ-VAE: a folder, or a name in results/*/ or pretrained/."""
    top: Annotated[str | None, SAID] = None
    """The prior of its top level."""
    bottom: Annotated[str | None, SAID] = None
    """The prior of its bottom level, if it has one."""
    lossless: Annotated[str | None, SAID] = None
    """In place of these, a network of pixels (`lossless` in pretrained/): grey images come back pixel by pixel, at
    their own size, in files that are larger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(bool(self.vqvae or self.lossless), "--vqvae", "a VQ-VAE, or --lossless NAME", "neither",
               "For example --vqvae vqvae-128 --top top-128 --bottom bottom-128, or --lossless lossless.")
        expect(bool(self.top) == bool(self.vqvae), "--top", "--vqvae and its top prior, or neither",
               self.top or "none", "Name both, and --bottom for a VQ-VAE of two levels.")


@dataclass(frozen=True, kw_only=True)
class CompressSettings(ModelNames):
    """Settings of vqvae2 compress."""

    input: Annotated[tuple[Path, ...], tyro.conf.Positional,
                     tyro.conf.arg(metavar="INPUT ...", help_behavior_hint="(required)")]
    """Images, scans, and folders of images or of scans; any number."""
    out: Path
    """Folder that receives a file for each image and each scan. The same command goes on there where it was stopped."""
    verify: bool = False
    """Decode every file again before it is written, and compare: takes about as long as decompress."""
    batch: int = 32
    """Slices at a time."""
    planes: Annotated[tuple[Plane, ...], SAID, tyro.conf.arg(metavar="{axial,coronal,sagittal}")] = ()
    """The anatomical planes into which scans are cut, one kind. Without it: those of the model's training slices."""
    extent: tuple[float, float] = (0.0, 1.0)
    """Part of the brain that is kept, for scans: fractions from inferior, posterior or left."""
    assume_orientation: Annotated[str | None, SAID] = None
    """The directions in which a scan's three indices grow (RAS, LAS, …), if neither its header nor its layout says."""
    trust: Literal["sform", "qform"] = "sform"
    """The matrix of a NIfTI header that counts where both are set."""
    mask_suffix: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STR ...")] = MASK_SUFFIXES
    """The ends of the names of brain masks. The first that lies beside a scan is applied to it; none applies none."""
    volume: Annotated[int | None, SAID] = None
    """The volume, counted from 0, to take from a file that holds a series. Without it: such files are not read."""
    suffix: Annotated[tuple[str, ...], SAID, tyro.conf.arg(metavar="STR ...")] = ()
    """Endings of the names of scans in folders (T2w, FLAIR, …). Without it: T1-weighted scans."""

    RULES = (BATCH,)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(len(self.input) >= 1, "INPUT", "at least one image, scan or folder", "none",
               "Name it, such as vqvae2 compress brain.png --vqvae vqvae-128 --top top-128 --bottom bottom-128 --out "
               "small.")
        expect(self.lossless is None or self.vqvae is None, "--lossless", "no --vqvae beside it", self.vqvae,
               "Choose one.")
        expect(len(self.planes) <= 1, "--planes", "one kind", " ".join(self.planes), "Compress each into a folder.")
        if self.vqvae is not None:
            self.reading(scans=True)

    def reading(self, *, scans: bool) -> PredictSettings:
        """Return the settings with which predict would read the inputs, as images or as whole scans."""
        of_scans = {"nifti": True, "top": (self.top,), "bottom": (self.bottom,) if self.bottom else ()} if scans else {}
        same = ("input", "out", "batch", "planes", "extent", "assume_orientation", "trust", "mask_suffix", "volume",
                "suffix")
        return PredictSettings(vqvae=(self.vqvae,), **of_scans, **{name: getattr(self, name) for name in same})


@dataclass(frozen=True, kw_only=True)
class DecompressSettings(ModelNames):
    """Settings of vqvae2 decompress."""

    input: Annotated[tuple[Path, ...], tyro.conf.Positional,
                     tyro.conf.arg(metavar="INPUT ...", help_behavior_hint="(required)")]
    """Files of vqvae2 compress, and folders of them; any number."""
    out: Path
    """Folder that receives a PNG for each image, and a NIfTI file for each scan."""
    slices: Annotated[tuple[int, ...], SAID, tyro.conf.arg(metavar="INT ...")] = ()
    """Only these planes of scans, counted from 0 in the file, as PNGs that are named by the plane's index in the scan;
    no others are decoded."""
    batch: int = 32
    """Slices at a time; the result does not depend on it."""

    RULES = (BATCH, ("slices", lambda numbers: all(number >= 0 for number in numbers), "0 or more", "0 is the first."))

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(len(self.input) >= 1, "INPUT", "at least one file or folder", "none", "Name it.")
