r"""A VQ-VAE and its priors -> new images, a grid of them, and their codes.

    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 64 --out samples
Likelier and less varied, the bottom level more so:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-cool \
        --count 16 --temperature 0.9 0.8

--out receives images/NNNNNN.png, grid.png, codes.npz (see design: codes/<split>.npz) and sample.json.
"""

import math
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from vqvae2 import autoencoder, checkpoints, distributed, plots, prior, samples
from vqvae2.codes import CodeMaps
from vqvae2.config import SampleSettings, as_dict, parse
from vqvae2.errors import UserError, run_script
from vqvae2.images import to_bytes


def main(arguments: list[str] | None = None) -> None:
    """Sample as the command line says."""
    settings = parse(SampleSettings, __doc__, arguments)
    checkpoints.check_folder(settings.out, "--out")
    device = distributed.pick_device()
    vqvae, priors = samples.load_models(settings.vqvae, settings.top, settings.bottom, device)
    missing = [level for level in vqvae.model.levels if level not in priors]
    if missing:
        raise UserError(f"--{missing[0]}: expected the {missing[0]} prior of --vqvae {settings.vqvae}, which has "
                        f"{len(vqvae.model.levels)} levels, found none. Give --{missing[0]} NAME.")
    tastes = {level: samples.Taste(*(values[min(i, len(values) - 1)] for values in
                                     (settings.temperature, settings.top_k, settings.top_p, settings.guidance)))
              for i, level in enumerate(("top", "bottom"))}
    write_samples(vqvae, priors, tastes, settings)
    print(f"{settings.count} images: {settings.out / 'images'}, all at once: {settings.out / 'grid.png'}")


def write_samples(vqvae: autoencoder.TrainedVqvae, priors: dict[str, prior.Prior], tastes: dict[str, samples.Taste],
                  settings: SampleSettings) -> None:
    """Draw and write images batch by batch, then the grid, the codes and the settings."""
    positions = sum(math.prod(one.shape) for one in priors.values())
    images, maps = [], []
    with tqdm(total=positions * settings.count, desc="sampling", unit="code", leave=False) as bar:
        for first in range(0, settings.count, settings.batch):
            numbers = list(range(first, min(first + settings.batch, settings.count)))
            advance = partial(bar.update, len(numbers))
            drawn, codes = samples.draw_images(vqvae.model, priors, numbers, settings.seed, tastes,
                                               settings.condition, advance)
            images.append(to_bytes(drawn))
            maps.append(codes)
            for number, image in zip(numbers, images[-1]):
                plots.save_picture(plots.image_grid(image[None], 1, gap=0), image_path(settings.out, number))
    for old in (settings.out / "images").glob("[0-9]" * 6 + ".png"):
        if int(old.stem) >= settings.count:  # of an earlier, larger run: not in this grid, nor in codes.npz
            old.unlink()
    plots.save_picture(plots.image_grid(plots.enlarged(torch.cat(images)), columns=max(1, round(settings.count**0.5))),
                       settings.out / "grid.png")
    levels = {level: torch.cat([one[level] for one in maps]).cpu() for level in vqvae.model.levels}
    names = [image_path(settings.out, number).relative_to(settings.out).as_posix() for number in range(settings.count)]
    CodeMaps(names, levels).save(settings.out / "codes.npz", vqvae.hash, "")
    written = {**as_dict(settings), "out": settings.out.name, "vqvae_hash": vqvae.hash}
    checkpoints.write_json(settings.out / "sample.json", {"settings": written, "versions": checkpoints.versions()})


def image_path(out: Path, number: int) -> Path:
    """Return where image `number` is written."""
    return out / "images" / f"{number:06d}.png"


if __name__ == "__main__":
    run_script(main)
