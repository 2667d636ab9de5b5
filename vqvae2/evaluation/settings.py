"""Command line of evaluate.py -> a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vqvae2.common.errors import expect, flag
from vqvae2.sampling.settings import FREEDOM
from vqvae2.settings.checks import SAID, SEED, Checked

FEWEST_FOR_ANATOMY = 8


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Checked):
    """Settings of evaluate.py."""

    TABLE = "evaluate"
    preset: Annotated[str | None, SAID] = None
    """A preset of the list above, or a .toml file of yours: it names the models that were trained with it, and says
    what is judged. Flags override it."""
    vqvae: Annotated[str, tyro.conf.arg(aliases=["-m"])]
    """The VQ-VAE: a folder, or a name in results/*/ or pretrained/."""
    top: str | None = None
    """The top prior, also a folder or a name: its bits per code are judged, and images are sampled from it."""
    bottom: str | None = None
    """The bottom prior, also a folder or a name."""
    decoder: Annotated[str | None, SAID] = None
    """A texture decoder of train_decoder.py for this VQ-VAE, a folder or a name: reconstructions and samples
    then have invented detail. Without it: the VQ-VAE's own decoder."""
    out: Path
    """Folder that receives metrics.json and the figures."""
    split: Literal["train", "validate", "test"] = "test"
    """Split whose images are judged."""
    data: Path | None = None
    """Folder of the images. Default: the folder that the VQ-VAE was trained on."""
    batch: int = 32
    """Images at a time."""
    samples: int = 64
    """Images sampled from the priors, if priors are given; 0 for none. More samples make their metrics more precise."""
    sampled: Annotated[Path | None, SAID] = None
    """Judge the samples in this folder, such as OUT/images of sample.py, instead of new ones. The samples must have the
    size of the images, and may come from any model."""
    temperature: tuple[float, ...] = (1.0,)
    """Temperature of the samples. One value for both levels, or two: top, bottom."""
    top_k: tuple[int, ...] = (0,)
    """Sample only among the K likeliest codes; 0 for all. One value or two."""
    top_p: tuple[float, ...] = (1.0,)
    """Sample only among the likeliest codes that together have this probability. One value or two."""
    features: Annotated[str | None, SAID] = None
    """Network whose features Fréchet distance, MMD, precision and recall compare: a run of vqvae2 train-features, or a
    TorchScript file such as an Inception of yours. Default: the small network in vqvae2/evaluation/network."""
    probe: bool = False
    """Train a small classifier to tell samples from real images: an AUROC of 0.5 means that it cannot."""
    probe_whole: bool = False
    """Train the classifiers of all folds of --probe, also where the first ones leave no doubt."""
    rates: bool = False
    """Compare bits per pixel, PSNR and SSIM with JPEG, WebP and JPEG 2000."""
    likelihood: bool = False
    """Write a map of the NLL of each image's codes, in the pixels of their cells: <out>/likelihood/*.npy and *.png."""
    lesions: bool = False
    """Put synthetic lesions into the images and judge how well restoration and the NLL of the codes find them, which
    takes a quarter of an hour or more on a CPU."""
    anatomy: bool = False
    """Draw samples that are told what real slices have, such as their positions: is it read back from them, and have
    they as much fluid, grey and white matter?"""
    seed: int = 0
    """Seed of the samples, of the lesions, of the probe, of the anatomy and of the bootstrap."""
    open: bool = False
    """Open the report at the end, where there is a screen."""

    RULES = (*FREEDOM, SEED, ("batch", lambda images: images >= 1, "at least 1", "Give a larger number."),
             ("samples", lambda images: 0 <= images <= 10**6, "0 to 1000000", "Give 0 for none."))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bottom", "likelihood", "lesions", "anatomy"):
            expect(not getattr(self, name) or self.top is not None, flag(name), "--top beside it",
                   f"{flag(name)} alone", "Give --top too.")
        expect(not self.probe or self.sampled is not None or (self.top is not None and self.samples > 0), "--probe",
               "samples: --top and --samples above 0, or --sampled", "none", "Give one of them too.")
        expect(self.probe or not self.probe_whole, "--probe-whole", "--probe beside it", "--probe-whole alone",
               "Give --probe too.")
        expect(not self.anatomy or self.sampled is None, "--anatomy", "samples that are drawn here",
               "--sampled beside it", "Leave one of them out: what samples in a folder were told is not known.")
        expect(not self.anatomy or self.samples >= FEWEST_FOR_ANATOMY, "--anatomy",
               f"--samples {FEWEST_FOR_ANATOMY} or more beside it", self.samples, "Fewer say nothing about all.")
        expect(not self.anatomy or self.split != "train", "--anatomy", "the split of unseen people", "--split train",
               "Choose another split.")
