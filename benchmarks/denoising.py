"""How well noise is taken out of unseen slices, beside classical filters, and what becomes of lesions.

    vqvae2 train-denoiser --vqvae vqvae-128 --data slices-128 --batch 16 --epochs 15 --savename denoiser-128
    python benchmarks/denoising.py --data slices-128 --vqvae vqvae-128 --denoiser denoiser-128 --out denoising

Rician noise of known deviation is put on slices (vqvae2/metrics/noise.py) and rounded to 8 bit. The classical filters
are those of scikit-image: non-local means, total variation and wavelets (BayesShrink, averaged over shifts). They are
told the true deviation, and for each case and filter the settings are chosen on validation people, by the mean of PSNR
in the full picture and PSNR inside the brain. They get the correction of the Rician bias: a multiple of the
deviation's square is taken from the square of the result, and non-local means may average squares, as Wiest-Daessle
2008 and Manjon 2010 do. The models are told nothing. BM3D is not among them: the licence of the package bm3d does not
allow commercial use.

    codes, VQ-VAE      the picture of the codes that the VQ-VAE itself gives to a noisy slice
    blend, VQ-VAE      the same, mixed with the noisy slice; the share is chosen as the filters' settings are
    codes, denoiser    the picture of the codes that the denoiser's encoder gives
    denoised           what `vqvae2 predict --denoise` writes
    plain network      with --plain: the same network, trained alike, without the picture of the codes

Lesions are those of vqvae2/evaluation/lesions.py, as they are, and small (half axes of 1 to 2.5 pixels at 128 by 128)
with a quarter of their contrast. A lesion's contrast is the mean over its pixels of the slice with lesion - the slice
without; what is left of it is the same difference after both had the same noise and were denoised. Written are
denoising.md, denoising.json and denoising.png.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from skimage import restoration

sys.path.insert(0, str(Path(__file__).parents[1]))

from vqvae2.common import files, statistics
from vqvae2.common.errors import run_script
from vqvae2.common.progress import Bar
from vqvae2.evaluation import lesions
from vqvae2.evaluation.text import markdown_table
from vqvae2.images.dataset import ImageSet, from_bytes, load_images, to_bytes
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import noise, similarity
from vqvae2.models import autoencoder
from vqvae2.models.denoiser import SCALE, Denoiser, load_denoiser
from vqvae2.models.texture_decoder import centred
from vqvae2.plots import pictures
from vqvae2.settings import parsing
from vqvae2.training.denoisers import DenoiserTrainer
from vqvae2.training.settings import TrainDenoiser

DEVIATIONS = (0.03, 0.06, 0.09)
LESIONS = {"as drawn": (lesions.RADII, 1.0), "small and faint": ((0.015, 0.03), 0.25)}
"""Half axes of lesions, as shares of the root of the brain's area, and the share of their contrast that is kept."""
BATCH = 32
PICTURED, SHOWN = 5, ("noisy", "non-local means", "codes, denoiser", "denoised")
"""Test slices, evenly chosen, and what is made of them, in the picture."""
SQUARES = 1e-3
"""Squares are a second channel, so faint that it has no say in which patches are alike."""
Filter = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/denoising.py."""

    data: Path
    """Folder of slices of the VQ-VAE's size."""
    vqvae: str
    """The VQ-VAE, a folder or a name."""
    denoiser: str
    """Its denoiser, a folder or a name."""
    plain: str | None = None
    """Name of a network in results/ that is trained as the denoiser was, but sees no picture of codes; it is trained
    now if there is none."""
    tuning: int = 30
    """Validation slices on which settings are chosen."""
    images: int = 240
    """Test slices, evenly chosen."""
    lesions: int = 120
    """Test slices that get a lesion of each kind."""
    seed: int = 0
    """Seed of noise, lesions and intervals."""
    out: Path
    """Folder that receives denoising.md, denoising.json and denoising.png."""


class Plain(Denoiser):
    """The network of a denoiser, which is shown black instead of the picture of the codes."""

    def forward(self, images, vqvae):
        with torch.no_grad():
            vectors = vqvae.vectors(images)
            coded = vqvae.reconstructed(vectors)
        return coded, vectors, images + SCALE * self.finish(torch.cat([centred(images), centred(0 * images)], 1))


class PlainTrainer(DenoiserTrainer):
    """Trains a `Plain`."""

    def build(self):
        self.vqvae.model.requires_grad_(False)
        made = super().build()
        made.__class__ = Plain
        return made


def filtered(images: torch.Tensor, one: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """Return grey images `[n, 1, height, width]`, each of which has gone through `one`."""
    return torch.from_numpy(np.stack([one(image).astype(np.float32) for image in images[:, 0].numpy()])[:, None])


def unbiased(images: torch.Tensor, deviation: float, multiple: float) -> torch.Tensor:
    """Return images without the Rician bias of their squares; as they are where the multiple is 0."""
    return images if multiple == 0 else (images.square() - multiple * deviation**2).clamp(min=0).sqrt()


def non_local_means(images, deviation, squares, patch, reach, strength):
    options = {"patch_size": patch, "patch_distance": reach, "h": strength * deviation}
    if not squares:
        return filtered(images, lambda image: restoration.denoise_nl_means(image, sigma=deviation, **options))
    return filtered(images, lambda image: restoration.denoise_nl_means(
        np.stack([image, SQUARES * image**2], -1), channel_axis=-1, **options)[..., 1] / SQUARES).clamp(min=0).sqrt()


def total_variation(images, deviation, weight):
    return filtered(images, lambda image: restoration.denoise_tv_chambolle(image, weight=weight * deviation))


def wavelets(images, deviation, wavelet, strength):
    options = {"sigma": strength * deviation, "wavelet": wavelet, "method": "BayesShrink", "mode": "soft"}
    return filtered(images, lambda image: restoration.cycle_spin(image, restoration.denoise_wavelet, max_shifts=3,
                                                                 func_kw=options, workers=1))


MULTIPLES = (0, 1, 1.57, 2, 2.5)
FILTERS: dict[str, tuple[Filter, tuple, tuple]] = {
    "non-local means": (non_local_means, ((False, True), (3, 5), (5, 9), (0.4, 0.6, 0.8, 1.0)), MULTIPLES),
    "total variation": (total_variation, ((0.4, 0.6, 0.8, 1.0),), MULTIPLES),
    "wavelets": (wavelets, (("db2", "sym4"), (0.6, 0.8, 1.0)), MULTIPLES)}
"""Classical filters, the values of each setting that are tried, and the multiples of the bias."""


class Models:
    """The filters that are networks; each takes noisy images `[n, 1, height, width]` and a deviation that it ignores.
    """

    def __init__(self, settings: BenchmarkSettings):
        device = torch.device("cpu")
        self.vqvae = autoencoder.load_vqvae(settings.vqvae, device)
        self.denoiser = load_denoiser(settings.denoiser, self.vqvae)
        self.plain = None
        if settings.plain:
            given = self.denoiser.config["settings"]
            options = {name: given[name] for name in ("epochs", "batch", "noise", "learning_rate", "threads", "seed")}
            PlainTrainer(TrainDenoiser(savename=settings.plain, vqvae=settings.vqvae, data=settings.data, log=("none",),
                                       pictures_every=0, **options)).run()
            self.plain = load_denoiser(settings.plain, self.vqvae)
            self.plain.model.__class__ = Plain

    @torch.no_grad()
    def codes_of_vqvae(self, images, _):
        return torch.cat([self.vqvae.model(part).images.clamp(0, 1) for part in images.split(BATCH)])

    def blend(self, images, deviation, share):
        return images + share * (self.codes_of_vqvae(images, deviation) - images)

    @torch.no_grad()
    def codes_of_denoiser(self, images, _):
        return torch.cat([self.denoiser.model(part, self.vqvae.model)[0].images for part in images.split(BATCH)])

    @torch.no_grad()
    def denoised(self, images, _):
        return torch.cat([self.denoiser.model(part, self.vqvae.model)[2] for part in images.split(BATCH)])

    @torch.no_grad()
    def without_codes(self, images, _):
        return torch.cat([self.plain.model(part, self.vqvae.model)[2] for part in images.split(BATCH)])


    @torch.no_grad()
    def same_codes(self, clean, given):
        """Return for each encoder and level the share of codes of noisy images that are those of the clean ones."""
        found: dict[str, list[float]] = {}
        for part, wanted in zip(given.split(BATCH), clean.split(BATCH)):
            true = self.vqvae.model.encode(wanted)
            for name, codes in (("VQ-VAE", self.vqvae.model.encode(part)),
                                ("denoiser", self.denoiser.model(part, self.vqvae.model)[0].codes)):
                for level, own in codes.items():
                    found.setdefault(f"{name}, {level}", []).extend(
                        (own == true[level]).flatten(1).float().mean(1).tolist())
        return {name: float(np.mean(values)) for name, values in found.items()}


def noisy(images: torch.Tensor, deviation: float, seed: int, is_black: bool = False) -> torch.Tensor:
    """Return images with noise, on 8 bit; with `is_black` their background stays black."""
    made = noise.add_rician(images, torch.full((len(images),), deviation), seed, "benchmark", range(len(images)))
    made = made * similarity.brain_mask(images)[:, None] if is_black else made
    return from_bytes(to_bytes(made))


def figures(clean: torch.Tensor, made: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return `[n]` of each figure."""
    found = similarity.image_figures(to_bytes(clean), to_bytes(made))
    return {f"{area} {name}": found[area][name] for area in ("full", "brain") for name in ("psnr", "ssim")}


@dataclass(frozen=True)
class Method:
    """A filter with its settings."""

    filter: Filter
    options: tuple = ()
    multiple: float = 0

    def __call__(self, images: torch.Tensor, deviation: float) -> torch.Tensor:
        return unbiased(self.filter(images, deviation, *self.options), deviation, self.multiple)


def tuned(clean: torch.Tensor, given: torch.Tensor, deviation: float, one: Filter, grid: tuple,
          multiples: tuple = (0,)) -> Method:
    """Return the filter with the settings that give the highest mean of the two PSNR."""
    best, goodness = Method(one), -np.inf
    for options in itertools.product(*grid):
        made = one(given, deviation, *options)
        for multiple in multiples:
            found = figures(clean, unbiased(made, deviation, multiple))
            mean = (found["full psnr"] + found["brain psnr"]).mean().item()
            if mean > goodness:
                best, goodness = Method(one, options, multiple), mean
    return best


@dataclass(frozen=True)
class Patients:
    """Slices with and without a lesion, `[n, 1, height, width]`; where the lesion is; whose the slices are."""

    healthy: torch.Tensor
    ill: torch.Tensor
    masks: torch.Tensor
    subjects: list[str]


def patients(split: ImageSet, settings: BenchmarkSettings, kind: str, radii: tuple[float, float],
             share: float) -> Patients:
    """Return slices with a lesion of this kind and size, and of this share of the contrast that it is drawn with."""
    items = statistics.evenly(len(split), settings.lesions)
    images = split.batch(items)
    with mock.patch.object(lesions, "RADII", radii):
        made = [lesions.add(kind, image, brain, settings.seed, int(item)) for item, image, brain in zip(
            items, images.numpy(), similarity.brain_mask(images).numpy())]
    kept = [number for number, lesion in enumerate(made) if lesion]
    healthy, found = images[kept], [made[number] for number in kept]
    ill = healthy + share * (torch.from_numpy(np.stack([lesion.image for lesion in found])) - healthy)
    return Patients(healthy, ill, torch.from_numpy(np.stack([lesion.mask for lesion in found])),
                    [split.subjects[items[number]] for number in kept])


def kept_contrast(method: Method, deviation: float, of: Patients, seed: int) -> torch.Tensor:
    """Return `[n]`: which share of each lesion's contrast is left."""
    with_lesion, without = (method(noisy(images, deviation, seed), deviation) for images in (of.ill, of.healthy))
    left, own = (((first - second)[:, 0] * of.masks).sum((1, 2)) for first, second in (
        (with_lesion, without), (of.ill, of.healthy)))
    return left / own


def main() -> None:
    settings = parsing.parse(BenchmarkSettings, __doc__, None)
    models = Models(settings)
    loaded = load_images(DataSettings(data=settings.data), ("validate", "test"))
    validate, test = loaded.splits["validate"], loaded.splits["test"]
    tuned_on = validate.batch(statistics.evenly(len(validate), settings.tuning))
    items = statistics.evenly(len(test), settings.images)
    clean, subjects = test.batch(items), [test.subjects[item] for item in items]
    shares = (tuple(round(0.1 * tenths, 1) for tenths in range(10)),)
    methods = {"noisy": (lambda images, _: images, ()), **FILTERS, "codes, VQ-VAE": (models.codes_of_vqvae, ()),
               "blend, VQ-VAE": (models.blend, shares), "codes, denoiser": (models.codes_of_denoiser, ()),
               "denoised": (models.denoised, ())}
    if models.plain:
        methods["plain network"] = (models.without_codes, ())
    ill = {f"{kind}, {how}": patients(test, settings, kind, *options) for kind in ("bright", "dark")
           for how, options in LESIONS.items()}
    report: dict = {"figures": {}, "codes": {}, "lesions": {name: {} for name in ill}, "settings": {}}
    pictured = statistics.evenly(len(clean), PICTURED + 2)[1:-1]
    shown = [("slice", to_bytes(clean[pictured]))]
    cases = list(itertools.product(DEVIATIONS, (False, True)))
    for deviation, is_black in Bar(cases, desc="noise", unit="case"):
        case = f"{deviation:g}, {'black' if is_black else 'noisy'} background"
        given = noisy(tuned_on, deviation, settings.seed + 1, is_black)
        ready = {name: tuned(tuned_on, given, deviation, *method) for name, method in methods.items()}
        report["settings"][case] = {name: (*method.options, method.multiple) for name, method in ready.items()}
        given = noisy(clean, deviation, settings.seed, is_black)
        report["figures"][case] = {}
        report["codes"][case] = models.same_codes(clean, given)
        for name, method in ready.items():
            made = method(given, deviation)
            report["figures"][case][name] = {key: statistics.summarise(values, subjects, settings.seed)
                                             for key, values in figures(clean, made).items()}
            if deviation == DEVIATIONS[-1] and not is_black and name in SHOWN:
                shown.append((name, to_bytes(made[pictured])))
            if is_black:
                continue
            for lesion, of in ill.items():
                left = kept_contrast(method, deviation, of, settings.seed)
                report["lesions"][lesion].setdefault(name, {})[f"{deviation:g}"] = {
                    "below_half": (left < 0.5).float().mean().item(),
                    **statistics.summarise(left, of.subjects, settings.seed)}
    write(settings.out, report)
    pictures.save_picture(pictures.strip(shown, title=f"Unseen slices, noise of {DEVIATIONS[-1]:g}"),
                          settings.out / "denoising.png")


def write(out: Path, report: dict) -> None:
    """Write the figures, as they are and as tables."""
    parts, cases = [], report["figures"]
    for background, area in itertools.product(("noisy background", "black background"), ("brain", "full")):
        of = [cases[f"{deviation:g}, {background}"] for deviation in DEVIATIONS]
        columns = [f"{figure}, {deviation:g}" for figure in ("PSNR", "SSIM") for deviation in DEVIATIONS]
        rows = [(name, *(statistics.with_interval(case[name][f"{area} psnr"], "mean", 2) for case in of),
                 *(statistics.as_text(case[name][f"{area} ssim"]["mean"], 3) for case in of)) for name in of[0]]
        parts.append(f"### {background}, {area}\n\n" + markdown_table(("method", *columns), rows))
    names = list(next(iter(report["codes"].values())))
    parts.append("### Codes that are those of the clean slice\n\n" + markdown_table(("noise", *names), [
        (case, *(f"{shares[name]:.0%}" for name in names)) for case, shares in report["codes"].items()]))
    for title, methods in report["lesions"].items():
        rows = [(name, *(f"{statistics.with_interval(own, 'mean', 2)}; {own['below_half']:.0%}"
                         for own in found.values())) for name, found in methods.items()]
        parts.append(f"### {title}: contrast left; lesions that lost more than half of it\n\n" + markdown_table(
            ("method", *(f"noise {deviation:g}" for deviation in DEVIATIONS)), rows))
    parts += [f"settings, {case}: {options}" for case, options in report["settings"].items()]
    text = "\n\n".join(parts) + "\n"
    print(text)
    files.write_json(out / "denoising.json", report)
    files.write_atomically(out / "denoising.md", text.encode())


if __name__ == "__main__":
    run_script(main)
