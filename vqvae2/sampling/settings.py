"""Command line -> the settings of `vqvae2 sample`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.common.errors import expect, flag
from vqvae2.priors.settings import PREVIOUS_MM
from vqvae2.settings.checks import SAID, SEED, Checked

CODE_FILE = ".npz"


def one_or_two(name: str, holds: Callable[[float], bool], rule: str) -> tuple:
    """Return the rule (see Checked) of a setting that has one value for both levels, or two."""
    return (name, lambda values: len(values) in (1, 2) and all(map(holds, values)),
            f"one value for both levels or two (top, bottom), each {rule}", "See --help.")


FREEDOM = (one_or_two("temperature", lambda value: value > 0, "above 0"),
           one_or_two("top_k", lambda value: value >= 0, "0 or more"),
           one_or_two("top_p", lambda value: 0 < value <= 1, "0 < P <= 1"))
"""Rules of the settings that say how freely codes are drawn."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings(Checked):
    """Settings of sample.py."""

    TABLE = "sample"
    preset: Annotated[str | None, SAID] = None
    """A preset of the list above, or a .toml file of yours: it names the models that were trained with it, and says how
    freely codes are drawn. Flags override it."""
    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE: a folder, or a name in results/*/ or pretrained/."""
    top: str
    """The top prior, also a folder or a name."""
    bottom: str | None = None
    """The bottom prior, also a folder or a name; a one-level VQ-VAE has none."""
    decoder: Annotated[str | None, SAID] = None
    """A texture decoder of train_decoder.py for this VQ-VAE, a folder or a name: sharp images, with invented detail.
    Without it: the VQ-VAE's own decoder."""
    out: Path
    """Folder that receives the images and a grid of them. A folder that already holds some of the images is
    completed."""
    count: Annotated[int | None, SAID] = None
    """Number of images, 64 if not given; of brains with --nifti, 4 if not given; with --inpaint of completions of each
    image, 4 if not given."""
    temperature: tuple[float, ...] = (1.0,)
    """One value for both levels, or two: top, bottom. Values below 1 give likelier codes."""
    top_k: tuple[int, ...] = (0,)
    """Sample only among the K likeliest codes; 0 for all. One value or two."""
    top_p: tuple[float, ...] = (1.0,)
    """Sample only among the likeliest codes that together have this probability. One value or two."""
    condition: tuple[str, ...] = ()
    """Facts of the images, as NAME=VALUE of columns in the priors' own --condition: age=70 sex=F. A range such as
    position_mm=-20..30 gives each image its own value. Columns that are not given are unknown."""
    guidance: tuple[float, ...] = (1.0,)
    """Strength of --condition, and of the position of each slice with --nifti: 1 is as learned, 2 twice as strong (each
    code then takes twice the time). One value or two."""
    inpaint: Annotated[Path | None, SAID] = None
    """Complete these images instead of making new ones: a folder of images, with --mask; or a code file (.npz, like
    codes/<split>.npz), whose codes marked -1 are sampled."""
    mask: Annotated[str | None, SAID] = None
    """The part of each image of --inpaint that is made anew: left, right, upper or lower half of the picture as it is
    seen, or an image file of the same size that is white in this part."""
    blend: int = 0
    """Pixels beside the mask over which a completion fades into the original; 0 leaves every visible pixel alone."""
    reject: int = 1
    """Sample so many candidates for each image and keep the best. The likeliest image is not the most typical: see
    above."""
    reject_by: Literal["likelihood", "agreement", "classifier"] = "likelihood"
    """likelihood: the best candidate has the likeliest codes (both levels, temperature 1). agreement: the best
    candidate has the most codes that are the same after decoding and encoding. classifier: the best candidate looks
    most like the image of a real slice to classifiers that are trained first (minutes on a CPU)."""
    nifti: bool = False
    """Sample whole brains: each is a stack of slices that belong together, as a NIfTI file in millimetres. The priors
    must have been trained with --condition position_mm."""
    spacing: float = 1.0
    """Distance of the slices of a brain in mm, for --nifti."""
    coherence: Literal["auto", "none", "noise", "previous", "both"] = "auto"
    """What makes the slices of a brain belong together, for --nifti. noise: they have the same random numbers.
    previous: each is told the codes of the one before (priors trained with --condition previous-slice). both: the two
    together. none: nothing, for comparison. auto: previous if the priors can, else noise."""
    precision: Literal["auto", "fp32"] = "auto"
    """auto: sample in float64 if the device has it, so that no image depends on --batch. fp32: half the time, but about
    one image in 64 changes with --batch."""
    seed: int = 0
    """Image (or completion) N depends only on (seed, N), not on the batch or the number of processes."""
    batch: int = 16
    """Images that each process samples at the same time."""
    open: bool = False
    """Open the grid of images at the end, where there is a screen."""

    RULES = (*FREEDOM, one_or_two("guidance", lambda value: value >= 0, "0 or more"), SEED,
             ("count", lambda count: 1 <= count <= 10**6, "1 to 1000000", "Draw more with another --seed and --out."),
             ("spacing", lambda distance: 0.05 <= distance <= 50, "0.05 to 50 mm", "For example 1."),
             ("batch", lambda images: images >= 1, "at least 1", "The default is 16."),
             ("reject", lambda candidates: 1 <= candidates <= 10**4, "1 to 10000", "For example 4."),
             ("blend", lambda pixels: pixels >= 0, "0 or more pixels", "For example 4."))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count is None:
            object.__setattr__(self, "count", 4 if self.nifti or self.inpaint is not None else 64)
        expect(bool(self.condition) or self.nifti or set(self.guidance) == {1.0}, "--guidance", "--condition beside it",
               f"--guidance {' '.join(map(str, self.guidance))} alone", "Give --condition NAME=VALUE too.")
        expect(self.reject > 1 or self.reject_by == "likelihood", "--reject-by", "--reject N beside it, N at least 2",
               f"--reject {self.reject}", "For example --reject 4.")
        told = [text for text in self.condition if text.startswith(f"{PREVIOUS_MM}=")]
        expect(not told, "--condition", "facts of an image", " ".join(told), "Leave it out: --spacing says how far "
               "away the previous slice lies.")
        for name, given in (("inpaint", self.inpaint is not None), ("reject", self.reject > 1)):
            expect(not given or not self.nifti, flag(name), "none beside --nifti, which samples new brains, each once",
                   f"{flag(name)} {getattr(self, name)}", "Leave one of the two out.")
        for name, default in (("spacing", 1.0), ("coherence", "auto")):
            expect(self.nifti or getattr(self, name) == default, flag(name), "--nifti beside it",
                   f"{flag(name)} {getattr(self, name)} alone", "Give --nifti too.")
        takes_mask = self.inpaint is not None and self.inpaint.suffix != CODE_FILE
        for name, given in (("mask", self.mask), ("blend", self.blend or None)):
            expect(given is None or self.inpaint is not None, flag(name), "--inpaint beside it",
                   f"{flag(name)} {given} alone", "Give --inpaint DIR too.")
            expect(given is None or takes_mask, flag(name), f"none beside --inpaint {self.inpaint}, whose codes marked "
                   "-1 are drawn", given, "Leave it out.")
        expect(self.mask is not None or not takes_mask, "--mask", "left, right, upper, lower or an image file beside "
               "--inpaint", "none", "For example --mask left.")


def of_level(values: tuple[float, ...], level: Literal["top", "bottom"]) -> float:
    """Return the only value, or the level's own of two."""
    return values[-1] if level == "bottom" else values[0]
