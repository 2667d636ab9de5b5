"""A VQ-VAE, its priors and a request -> a folder of samples, shared out over processes: the work of `vqvae2 sample`."""

import math

import torch
from PIL import Image
from tqdm import tqdm

from vqvae2.common import distributed, files
from vqvae2.common.errors import UserError
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.plots import pictures
from vqvae2.priors.base import Prior
from vqvae2.runs import weights
from vqvae2.sampling import candidates, inpainting, sampler
from vqvae2.sampling.folder import SampleFolder
from vqvae2.sampling.inpainting import Incomplete
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings.parsing import as_dict

MOST_IN_GRID, MOST_ROWS, MOST_COMPLETIONS = 400, 16, 8
"""Images in a grid; images that were completed, and completions of each, in theirs."""
MINUTES_FOR_OTHERS = 7 * 24 * 60
"""A process that has drawn its share waits for the others; if one fails, torchrun ends them all."""


def run(settings: SampleSettings) -> None:
    """Make all checks, then draw this process's share of the images; rank 0 writes what they have in common."""
    files.check_folder(settings.out, "--out")
    if settings.inpaint is not None:
        inpainting.check(settings)
    device = distributed.pick_device()
    vqvae, priors = sampler.load_models(settings.vqvae, settings.top, settings.bottom, device)
    missing = [level for level in vqvae.model.levels if level not in priors]
    if missing:
        raise UserError(f"--{missing[0]}: expected the {missing[0]} prior of --vqvae {settings.vqvae}, which has "
                        f"{len(vqvae.model.levels)} levels, found none. Give --{missing[0]} NAME.")
    sampler.known_of(priors, settings.condition, [0], settings.seed)  # raises where --condition does not fit
    incomplete = None if settings.inpaint is None else inpainting.load(settings, vqvae)
    folder = SampleFolder(settings.out, describe(settings, vqvae, priors, incomplete))
    distributed.start(device, MINUTES_FOR_OTHERS)
    try:
        write_samples(candidates.Drawer(vqvae, priors, settings, incomplete), folder)
    finally:
        distributed.stop()


def describe(settings: SampleSettings, vqvae: TrainedVqvae, priors: dict[str, Prior],
             incomplete: Incomplete | None) -> dict:
    """Return the settings as sample.json has them, with hashes of all that the images depend on."""
    hashes = {f"{level}_hash": weights.weights_hash(priors[level].state_dict()) if level in priors else None
              for level in ("top", "bottom")}
    return {**as_dict(settings), "out": settings.out.name, "vqvae_hash": vqvae.hash, **hashes, "images_hash": None,
            "mask_hash": None, **(incomplete.hashes if incomplete else {})}


def write_samples(drawer: candidates.Drawer, folder: SampleFolder) -> None:
    """Draw and write what is not there yet, shared out over the processes; then the grid, the codes, the settings."""
    settings = drawer.settings
    requests = candidates.requests_of(settings, drawer.incomplete)
    names = [request.name for request in requests]
    distributed.on_rank_0(folder.begin)
    missing = set(distributed.gather_objects(folder.missing(names) if distributed.rank() == 0 else [])[0])
    if distributed.rank() == 0 and len(missing) < len(requests):
        print(f"{len(requests) - len(missing)} of {len(requests)} images are there already", flush=True)
    mine = [request for request in requests if request.name in missing][distributed.rank()::distributed.world_size()]
    distributed.together(lambda: draw(drawer, mine, folder))
    distributed.on_rank_0(lambda: finish(drawer, folder, names))


def draw(drawer: candidates.Drawer, requests: list[candidates.Request], folder: SampleFolder) -> None:
    """Draw and write these images; progress is rank 0's own."""
    codes = sum(math.prod(prior.shape) for prior in drawer.priors.values()) * drawer.settings.reject
    with tqdm(total=codes * len(requests), desc="sampling", unit="code", leave=False,
              disable=distributed.rank() != 0) as bar:
        for image in drawer.draw(requests, bar.update):
            folder.keep(image)


def finish(drawer: candidates.Drawer, folder: SampleFolder, names: list[str]) -> None:
    """Write what shows or says something of all images, and print where it is. For rank 0 alone."""
    maps = folder.collect(names)
    report = candidates.rejection_report(drawer.settings, maps)
    grid = new_images(folder, names) if drawer.incomplete is None else completions(folder, drawer)
    folder.finish(maps, grid, report)
    for rejection in report.values():
        print("kept 1 of {candidates} candidates of each image ({share_kept:.1%}) by {by}: {words} {mean_kept:.4g}, of "
              "all candidates {mean_of_all:.4g}".format(words=rejection["unit"].replace("_", " "), **rejection))
    print(f"{len(names)} images: {folder.out / 'images'}, all at once: {folder.out / 'grid.png'}", flush=True)


def new_images(folder: SampleFolder, names: list[str]) -> Image.Image:
    """Return a grid of the images, of the first MOST_IN_GRID of them where there are more."""
    images = [folder.picture(name) for name in names[:MOST_IN_GRID]]
    return pictures.image_grid(pictures.enlarged(torch.stack(images)), columns=max(1, round(len(images)**0.5)))


def completions(folder: SampleFolder, drawer: candidates.Drawer) -> Image.Image:
    """Return a row for each of the first MOST_ROWS images: what was given, and its first MOST_COMPLETIONS."""
    number, rows = min(drawer.settings.count, MOST_COMPLETIONS), []
    for item, name in enumerate(drawer.incomplete.names[:MOST_ROWS]):
        made = [folder.picture(f"{name}-{completion:06d}") for completion in range(number)]
        given = drawer.incomplete.given(item, made[0])
        rows.append((name, torch.stack([*given, *made])))
    columns = ["original", "masked"][-len(given):] + [f"completion {completion}" for completion in range(number)]
    return pictures.strip(rows, header=columns)
