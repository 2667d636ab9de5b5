r"""A VQ-VAE and its priors -> new images, or completions of images that are given, a grid of them, and their codes.

New images:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 64 --out samples
Likelier and less varied, the bottom level more so (one value serves both levels, two are top, bottom):
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-cool \
        --count 16 --temperature 0.9 0.8 --top-k 0 100 --top-p 1 0.95
Of women of 60 to 80 years, where the priors were trained with --condition age sex; twice as strictly as learned:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-women \
        --condition sex=F age=60..80 --guidance 2
The likeliest of 4 candidates for each image, or the one whose codes survive decoding and encoding best:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-likely --reject 4
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-stable \
        --reject 4 --reject-by agreement
On 4 GPUs, or on 4 cores; the images are those of one process:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=4 \
        sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 5000 --out samples

The left half of each test picture (as it is seen: the subject's right) drawn anew, 4 times:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed \
        --inpaint data/oasis-2d/test --mask left
What is white in a picture of the same size drawn anew, 8 times, with a seam of 4 pixels:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed-hole \
        --inpaint data/oasis-2d/test --mask hole.png --count 8 --blend 4
The codes marked -1 in a code file:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed-codes \
        --inpaint codes.npz

--out receives images/NNNNNN.png (with --inpaint images/<name>-NNNNNN.png), grid.png, codes.npz (as
codes/<split>.npz of a VQ-VAE) and sample.json. Images are written as they are finished. The same command goes on after
Ctrl-C, a signal or a kill; one with a larger --count adds images, one with a smaller removes those beyond it.
Another --batch or number of processes gives the same images.

A mask hides pixels: they are 0 before the image is encoded, and every code above one of them is drawn anew, so that
nothing of them can get into a completion. Visible pixels stay the original's; --blend fades beside the mask. Codes
are drawn in raster order, from the top left: those of an upper or left part do not see what stays below them or at
their right, and --reject 8, which counts how likely that then is, keeps completions that fit it. 16-bit images become
8-bit ones.

--reject keeps the likeliest codes, which is not the same as the most typical image: likely images have small brains and
much background, and many candidates cost variety, as a low temperature does. sample.json says what share was kept and
how it compares with all.
"""

import math

import torch
from PIL import Image
from tqdm import tqdm

from vqvae2.common import distributed, files, machine
from vqvae2.common.errors import UserError, run_script
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.plots import pictures
from vqvae2.priors.pixel_cnn import Prior
from vqvae2.runs import weights
from vqvae2.sampling import candidates, inpainting, sampler
from vqvae2.sampling.folder import SampleFolder
from vqvae2.sampling.inpainting import Unfinished
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings.parsing import as_dict, parse

MOST_IN_GRID, MOST_ROWS, MOST_COMPLETIONS = 400, 16, 8
"""Images in a grid; images that were completed, and completions of each, in theirs."""
MINUTES_FOR_OTHERS = 7 * 24 * 60
"""A process that has drawn its share waits for the others; if one fails, torchrun ends them all."""


def main(arguments: list[str] | None = None) -> None:
    """Sample as the command line says."""
    settings = parse(SampleSettings, __doc__, arguments)
    signals = machine.Signals()
    stopped = f"Stopped by a signal, all finished images saved: {settings.out}. The same command goes on from here."
    # On one thread also what is not drawn: with another number of threads the last bits might be others.
    with signals, signals.stopping_at_once(stopped), sampler.one_thread():
        run(settings)


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
    unfinished = None if settings.inpaint is None else inpainting.load(settings, vqvae)
    folder = SampleFolder(settings.out, describe(settings, vqvae, priors, unfinished))
    distributed.start(device, MINUTES_FOR_OTHERS)
    try:
        write_samples(candidates.Drawer(vqvae, priors, settings, unfinished), folder)
    finally:
        distributed.stop()


def describe(settings: SampleSettings, vqvae: TrainedVqvae, priors: dict[str, Prior],
             unfinished: Unfinished | None) -> dict:
    """Return the settings as sample.json has them, with hashes of all that the images depend on."""
    hashes = {f"{level}_hash": weights.weights_hash(priors[level].state_dict()) if level in priors else None
              for level in ("top", "bottom")}
    return {**as_dict(settings), "out": settings.out.name, "vqvae_hash": vqvae.hash, **hashes, "images_hash": None,
            "mask_hash": None, **(unfinished.hashes if unfinished else {})}


def write_samples(drawer: candidates.Drawer, folder: SampleFolder) -> None:
    """Draw and write what is not there yet, shared out over the processes; then the grid, the codes, the settings."""
    settings = drawer.settings
    wishes = candidates.wishes_of(settings, drawer.unfinished)
    names = [wish.name for wish in wishes]
    distributed.on_rank_0(folder.begin)
    missing = set(distributed.gather_objects(folder.missing(names) if distributed.rank() == 0 else [])[0])
    if distributed.rank() == 0 and len(missing) < len(wishes):
        print(f"{len(wishes) - len(missing)} of {len(wishes)} images are there already", flush=True)
    mine = [wish for wish in wishes if wish.name in missing][distributed.rank()::distributed.world_size()]
    distributed.together(lambda: draw(drawer, mine, folder))
    distributed.on_rank_0(lambda: finish(drawer, folder, names))


def draw(drawer: candidates.Drawer, wishes: list[candidates.Wish], folder: SampleFolder) -> None:
    """Draw and write these images; progress is rank 0's own."""
    codes = sum(math.prod(prior.shape) for prior in drawer.priors.values()) * drawer.settings.reject
    with tqdm(total=codes * len(wishes), desc="sampling", unit="code", leave=False,
              disable=distributed.rank() != 0) as bar:
        for image in drawer.draw(wishes, bar.update):
            folder.keep(image)


def finish(drawer: candidates.Drawer, folder: SampleFolder, names: list[str]) -> None:
    """Write what shows or says something of all images, and print where it is. For rank 0 alone."""
    maps = folder.collect(names)
    report = candidates.rejection_report(drawer.settings, maps)
    grid = new_images(folder, names) if drawer.unfinished is None else completions(folder, drawer)
    folder.finish(maps, grid, report)
    for one in report.values():
        print(f"kept 1 of {one['candidates']} candidates of each image ({one['share_kept']:.1%}) by {one['by']}: "
              f"{one['unit'].replace('_', ' ')} {one['mean_kept']:.4g}, of all candidates {one['mean_of_all']:.4g}")
    print(f"{len(names)} images: {folder.out / 'images'}, all at once: {folder.out / 'grid.png'}", flush=True)


def new_images(folder: SampleFolder, names: list[str]) -> Image.Image:
    """Return a grid of the images, of the first MOST_IN_GRID of them where there are more."""
    images = [folder.picture(name) for name in names[:MOST_IN_GRID]]
    return pictures.image_grid(pictures.enlarged(torch.stack(images)), columns=max(1, round(len(images)**0.5)))


def completions(folder: SampleFolder, drawer: candidates.Drawer) -> Image.Image:
    """Return a row for each of the first MOST_ROWS images: what was given, and its first MOST_COMPLETIONS."""
    number, rows = min(drawer.settings.count, MOST_COMPLETIONS), []
    for item, name in enumerate(drawer.unfinished.names[:MOST_ROWS]):
        made = [folder.picture(f"{name}-{completion:06d}") for completion in range(number)]
        given = drawer.unfinished.given(item, made[0])
        rows.append((name, torch.stack([*given, *made])))
    columns = ["original", "masked"][-len(given):] + [f"completion {completion}" for completion in range(number)]
    return pictures.completion_rows(rows, columns)


if __name__ == "__main__":
    run_script(main)
