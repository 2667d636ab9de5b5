"""Compressed slices beside the files of image codecs of as many bytes -> a table and a picture of rates.

    python benchmarks/compression.py slices-128 --vqvae vqvae-128 --top top-128 --bottom bottom-128

Each slice becomes a .vqmri file. Each codec then has as many bytes for that slice, and takes the best of its settings
that need no more: first the whole file beside the whole file, then without headers, which is the stream alone beside
the codec's file less its smallest file of an image of one grey. Where no setting needs so few, the smallest file is
taken; "fits" is the share of the slices for which there was one. Figures are means over the slices; "above 32 cycles"
is the power of frequencies above 32 cycles a picture, as a share of that of the slices themselves. The models know
brains beforehand, and their weights count for nothing; the codecs know nothing of brains.

imagecodecs is needed: pip install 'vqvae2-brain-mri[bench]'.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import torch
import tyro
from common import CodedSlices, processor
from matplotlib.figure import Figure

from vqvae2.common import statistics
from vqvae2.common.progress import Bar
from vqvae2.compression import code_streams, container, models
from vqvae2.evaluation import rates, surprise
from vqvae2.images import dataset
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import similarity, texture
from vqvae2.models import encoding
from vqvae2.sampling import sampler

HIGH = 32
"""Cycles a picture."""
FIGURES = {"ssim": "SSIM", "brain_ssim": "SSIM inside the brain", "psnr": "PSNR", "brain_psnr": "PSNR inside the brain"}


@dataclass(frozen=True)
class Given(CodedSlices):
    """Settings of the benchmark."""

    split: str = "test"
    """The split."""
    images: int = 240
    """Slices, evenly chosen."""
    picture: Path | None = None
    """File that receives a picture of SSIM over the rate."""
    speed: int = 0
    """Only time so many slices: coding beside scoring their NLL, decoding beside sampling as many, on one thread."""
    rounds: int = 3
    """Interleaved rounds of that, of which the least times count."""


def as_colours(image: np.ndarray) -> np.ndarray:
    """Return a grey image as three equal channels, where a codec takes no other, or is lossless with one."""
    return np.repeat(image[..., None], 3, 2)


def grey(decoded: np.ndarray) -> np.ndarray:
    """Return what a codec gives back as `[height, width]`."""
    return decoded if decoded.ndim == 2 else decoded[..., 0]


def webp(image: np.ndarray, quality: float) -> bytes:
    """WebP, its slowest search."""
    return imagecodecs.webp_encode(as_colours(image), level=quality, method=6, lossless=False)


def avif(image: np.ndarray, quality: float) -> bytes:
    """AVIF of one channel."""
    return imagecodecs.avif_encode(as_colours(image), level=quality, speed=2, numthreads=1, pixelformat="400")


def jpeg_xl(image: np.ndarray, distance: float) -> bytes:
    """JPEG XL, without a container."""
    return imagecodecs.jpegxl_encode(image, distance=distance, effort=9, usecontainer=False)


def jpeg_2000(image: np.ndarray, decibels: float) -> bytes:
    """JPEG 2000, the bare codestream."""
    return imagecodecs.jpeg2k_encode(image, level=decibels, codecformat="j2k", reversible=False)


def htj2k(image: np.ndarray, step: float) -> bytes:
    """High-throughput JPEG 2000."""
    return imagecodecs.htj2k_encode(image, level=step, reversible=False)


CODECS: dict[str, tuple[Callable, Callable, Sequence[float]]] = {
    "JPEG XL": (jpeg_xl, imagecodecs.jpegxl_decode, (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25)),
    "WebP": (webp, imagecodecs.webp_decode, (0, 1, 2, 3, 5, 7, 10, 13, 16, 20, 25, 30, 40, 50, 60, 75, 90)),
    "AVIF": (avif, imagecodecs.avif_decode, (0, 2, 4, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 60, 75, 90)),
    "JPEG 2000": (jpeg_2000, imagecodecs.jpeg2k_decode, (16, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 32, 35,
                                                         40)),
    "HTJ2K": (htj2k, imagecodecs.htj2k_decode, (0.9, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.26, 0.22, 0.18, 0.15, 0.12,
                                                 0.1, 0.07, 0.04, 0.02)),
}


def figures_of(originals: torch.Tensor, made: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the figures of each image, and its power above HIGH cycles."""
    found = similarity.image_figures(originals, made)
    high = [low >= HIGH for low, _ in texture.bands(min(originals.shape[2:]))]
    return {"ssim": found["full"]["ssim"].numpy(), "brain_ssim": found["brain"]["ssim"].numpy(),
            "psnr": found["full"]["psnr"].numpy(), "brain_psnr": found["brain"]["psnr"].numpy(),
            "power": texture.band_powers(made)[:, high].sum(1)}


def row(name: str, sizes: np.ndarray, fits: float, found: dict[str, np.ndarray], originals: torch.Tensor) -> str:
    """Return a row of the table. sizes: bytes of each image."""
    power = found["power"].mean() / figures_of(originals, originals)["power"].mean()
    return (f"| {name} | {sizes.mean():.0f} | {sizes.mean() * 8 / math.prod(originals.shape[2:]):.3f} | {fits:.0%} | "
            f"{found['ssim'].mean():.3f} | {np.nanmean(found['brain_ssim']):.3f} | {found['psnr'].mean():.2f} | "
            f"{np.nanmean(found['brain_psnr']):.2f} | {power:.2f} |")


def main() -> None:
    given = tyro.cli(Given, description=__doc__)
    torch.set_num_threads(1)
    own = models.load(given.vqvae, given.top, given.bottom)
    split = dataset.load_images(DataSettings(data=given.slices), (given.split,)).splits[given.split]
    items = statistics.evenly(len(split), given.speed or given.images)
    split = dataset.ImageSet(tuple(split.files[item] for item in items), split.pixels[items])
    if given.speed:
        return speed(given, own, split)
    maps, made = encoding.reconstruct(own.vqvae.model, split, 32)
    known = torch.full((len(split), len(code_streams.columns_of(own.priors))), math.nan)
    with Bar(total=len(split), desc="coding", unit="slice") as bar:
        streams = code_streams.encode(own.priors, maps.levels, known, 32, bar.update)
    chunks = [container.Chunk(code_streams.check_of(maps.levels, item), tuple(known[item].tolist()), stream).packed()
              for item, stream in enumerate(streams)]
    whole = np.array([len(container.Compressed(container.IMAGES, tuple(own.hashes.values()), split.pixels.shape[1:], 8,
                                               [chunk]).packed()) for chunk in chunks])
    bare = np.array([len(stream) for stream in streams])
    originals, height, width = split.bytes(), *split.pixels.shape[2:]
    images = originals[:, 0].numpy()
    print(f"{len(split)} slices of {len(set(split.subjects))} people ({given.split}), {width} by {height} pixels, 8 "
          f"bit; imagecodecs {imagecodecs.__version__}; {processor()}\n")
    head = ("| | bytes | bits a pixel | fits | SSIM | SSIM inside the brain | PSNR (dB) | PSNR inside | "
            "above 32 cycles |")
    own_figures = figures_of(originals, made)
    tables = {"Whole files": [row("**VQ-VAE and priors**", whole, 1, own_figures, originals)],
              "Without headers": [row("**VQ-VAE and priors**", bare, 1, own_figures, originals)]}
    curves: dict[str, list[dict[str, float]]] = {}
    for name, (encode, decode, settings) in Bar(CODECS.items(), desc="codecs", unit="codec"):
        files = [[encode(image, setting) for image in images] for setting in settings]
        sizes = np.array([[len(data) for data in row] for row in files])  # [settings, images]
        found = [figures_of(originals, torch.from_numpy(np.stack([grey(decode(data)) for data in row]))[:, None])
                 for row in files]
        ssim = np.stack([each["ssim"] for each in found])
        curves[name] = [{"bits_per_pixel": size, **{key: float(np.nanmean(values)) for key, values in each.items()}}
                        for size, each in zip((sizes.mean(1) * 8 / (height * width)).tolist(), found)]
        least = min(len(encode(np.full((height, width), level, np.uint8), setting))
                    for level in (0, 128) for setting in settings)
        for title, cost, budget in (("Whole files", sizes, whole), ("Without headers", sizes - least, bare)):
            affordable = cost <= budget
            choice = np.where(affordable.any(0), np.where(affordable, ssim, -2).argmax(0), cost.argmin(0))
            at = choice, np.arange(len(images))
            chosen = {key: np.stack([each[key] for each in found])[at] for key in found[0]}
            note = "" if title == "Whole files" else f" ({least} bytes of header left out)"
            tables[title].append(row(name + note, cost[at], affordable.any(0).mean(), chosen, originals))
    for title, rows in tables.items():
        print(f"{title}:\n\n{head}\n|---|" + "---:|" * 8)
        print("\n".join(rows) + "\n")
    own_means = {key: float(np.nanmean(values)) for key, values in own_figures.items()}
    print("Bits a pixel of whole files for figures as good:\n\n| | " + " | ".join(FIGURES.values()) + " |\n|---|" +
          "---:|" * len(FIGURES))
    for name, points in curves.items():
        needed = (rates.rate_needed(points, "bits_per_pixel", key, own_means[key]) for key in FIGURES)
        print(f"| {name} | " + " | ".join("–" if rate is None else f"{rate:.2f}" for rate in needed) + " |")
    if given.picture is not None:
        draw(given.picture, curves, whole.mean() * 8 / (height * width), bare.mean() * 8 / (height * width), own_means)


def speed(given: Given, own: models.Models, split: dataset.ImageSet) -> None:
    """Print how long coding and decoding take, beside what they are measured against."""
    _, priors = sampler.load_models(given.vqvae, given.top, given.bottom, own.priors["top"].device)
    levels = encoding.extract(own.vqvae.model, split, 32).levels
    known = torch.full((len(split), len(code_streams.columns_of(own.priors))), math.nan)
    streams, rules = code_streams.encode(own.priors, levels, known, 32), dict.fromkeys(priors, sampler.SamplingRule())
    untold = {level: torch.full((len(split), len(prior.columns)), math.nan) for level, prior in priors.items()}
    work = {"scoring": lambda: surprise.code_bits(priors, levels, [{}] * len(split), 32),
            "coding": lambda: code_streams.encode(own.priors, levels, known, 32),
            "sampling": lambda: sampler.draw_maps(own.priors, range(len(split)), 0, rules, untold),
            "decoding": lambda: code_streams.decode(own.priors, streams, known)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in Bar(range(given.rounds), desc="timing", unit="round"):
        for name, do in work.items():
            began = time.process_time()
            do()
            seconds[name].append(time.process_time() - began)
    best = {name: min(values) for name, values in seconds.items()}
    print(f"{len(split)} slices, processor time on one thread, the least of {given.rounds} rounds; {processor()}\n")
    print("| | seconds | slices a second | ratio |\n|---|---:|---:|---:|")
    for name, reference in (("scoring", ""), ("coding", "scoring"), ("sampling", ""), ("decoding", "sampling")):
        ratio = f"{best[name] / best[reference]:.2f} times {reference}" if reference else "1"
        print(f"| {name} | {best[name]:.1f} | {len(split) / best[name]:.1f} | {ratio} |")


def draw(path: Path, curves: dict, whole: float, bare: float, own: dict[str, float]) -> None:
    """Write a picture of SSIM over the rate, in the full picture and inside the brain."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axis, key in zip(figure.subplots(1, 2), ("ssim", "brain_ssim")):
        for (name, points), colour in zip(curves.items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")):
            points = sorted(points, key=lambda point: point["bits_per_pixel"])
            axis.plot([point["bits_per_pixel"] for point in points], [point[key] for point in points], ".-",
                      color=colour, label=f"{name}, whole files")
        axis.plot([whole], [own[key]], "ko", label="VQ-VAE and priors, whole file")
        axis.plot([bare], [own[key]], "k^", label="VQ-VAE and priors, without header")
        axis.set(xscale="log", xlabel="rate (bits a pixel, log scale)", ylabel=FIGURES[key], xlim=(0.1, 2.5),
                 ylim=(0.5, 1))
        axis.set_xticks((0.1, 0.2, 0.5, 1, 2), ("0.1", "0.2", "0.5", "1", "2"))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
