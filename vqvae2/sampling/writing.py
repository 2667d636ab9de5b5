"""A VQ-VAE, its priors and a request -> a folder of samples, shared out over processes: the work of `vqvae2 sample`.

    images/<name>.png     each written as soon as it is drawn
    parts/<name>.npz      its codes, and what its candidates came to; all of them become codes.npz in the end
    sample.json           what all images of the folder have in common; written first
    grid.png, codes.npz   written last

An image is there when its picture is and its codes are, in parts/ or in codes.npz. Every file is whole or not there,
and parts/ goes last: a kill at any moment loses no image that was finished. Several processes write different images.
"""

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from vqvae2.common import distributed, files
from vqvae2.common.errors import UserError, expect
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.common.progress import Bar
from vqvae2.images.reading import BrokenPicture, load_picture
from vqvae2.models import texture_decoder
from vqvae2.models.code_maps import CodeMaps
from vqvae2.plots import pictures as plots
from vqvae2.runs import weights
from vqvae2.runs.record import PARTS, RecordedFolder
from vqvae2.sampling import critic, inpainting, sampler
from vqvae2.sampling.sampler import FinishedImage, ImageSampler
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings.parsing import as_dict

MOST_IN_GRID, MOST_ROWS, MOST_COMPLETIONS = 400, 16, 8
"""Images in a grid; images that were completed, and completions of each, in theirs."""
RECORD, CODES, GRID, IMAGES = "sample.json", "codes.npz", "grid.png", "images"


class SampleFolder(RecordedFolder):
    """The folder of sample.py; its settings have "vqvae_hash" among them. A later run may add images."""

    command, record, own, made = "sample.py", RECORD, (IMAGES, CODES, GRID, PARTS), "its images were drawn with"
    hashes = MappingProxyType({"vqvae": "vqvae_hash", "top": "top_hash", "bottom": "bottom_hash",
                               "inpaint": "images_hash", "mask": "mask_hash", "decoder": "decoder_hash"})
    lacking = MappingProxyType({"decoder": None, "decoder_hash": None})
    may_differ = RecordedFolder.may_differ | {"count"}

    def begin(self, claim: Claim) -> None:
        """Write what the images have in common, and remove what a killed run was just writing. For rank 0 alone."""
        if not self.before:  # what an earlier version has left here is drawn anew
            (self.out / CODES).unlink(missing_ok=True)
            self.tidy()
        claim.remove_left_overs(IMAGES, PARTS)
        self.write_record({})

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those of the images `names` that are still to be drawn, in order."""
        coded = {Path(name).stem for name in self._stored().names} | {
            path.stem for path in (self.out / PARTS).glob("*.npz")}
        pictures = {path.stem for path in (self.out / IMAGES).glob("*.png")}
        return [name for name in names if name not in coded or name not in pictures]

    def keep(self, finished: FinishedImage) -> None:
        """Write an image and its codes."""
        picture = _picture(finished.name)
        plots.save_picture(plots.image_grid(finished.image[None], 1, gap=0), self.out / picture)
        scores = {name: torch.tensor([value], dtype=torch.float64) for name, value in finished.scores.items()}
        CodeMaps([picture], {level: codes[None] for level, codes in finished.codes.items()}, scores).save(
            self.out / PARTS / f"{finished.name}.npz", self.settings["vqvae_hash"], "")

    def collect(self, names: Sequence[str]) -> CodeMaps:
        """Return the codes of the images `names`, which are all there, in this order.

        Raises: UserError if one is not: processes on machines that do not share the folder.
        """
        stored = self._stored()
        found = {Path(name).stem: (stored, i) for i, name in enumerate(stored.names)} | {
            name: (part, 0) for name in names if (part := self._load(f"{PARTS}/{name}.npz"))}
        missing = [name for name in names if name not in found]
        expect(not missing, f"--out {self.out}", f"{len(names)} images",
               f"all but {len(missing)}, such as {' '.join(missing[:1])}",
               "All machines must share this folder; run the same command again.")
        chosen = [found[name] for name in names]
        first = chosen[0][0]
        return CodeMaps([_picture(name) for name in names],
                        {level: torch.stack([maps.levels[level][i] for maps, i in chosen]) for level in first.levels},
                        {score: torch.stack([maps.scores[score][i] for maps, i in chosen]) for score in first.scores})

    def picture(self, name: str) -> torch.Tensor:
        """Return an image that is there, uint8 `[channels, height, width]`. Raises: UserError if it cannot be read."""
        path = self.out / _picture(name)
        try:
            pixels = torch.from_numpy(np.array(load_picture(path)))
        except BrokenPicture as error:
            raise UserError(f"{path}: expected an image that sample.py wrote, found {error.why}. Delete it and run the "
                            "same command again.") from None
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def finish(self, maps: CodeMaps, grid: Image.Image, report: dict) -> None:
        """Write the grid, the codes and the report; remove images of an earlier, larger run. For rank 0 alone.

        sample.py names its images 000012, or with --inpaint brain-000003: only such images are removed.
        """
        plots.save_picture(grid, self.out / GRID)
        maps.save(self.out / CODES, self.settings["vqvae_hash"], "")
        wanted = {Path(name).stem for name in maps.names}
        for path in (self.out / IMAGES).glob("*.png"):
            if re.fullmatch(r"(.+-)?\d{6,}", path.stem) and path.stem not in wanted:
                path.unlink(missing_ok=True)
        self.write_record(report)
        self.tidy()

    def _load(self, name: str) -> CodeMaps | None:
        return CodeMaps.load(self.out / name, self.settings["vqvae_hash"])

    def _stored(self) -> CodeMaps:
        """Return the codes that an earlier run has finished with; codes of an unknown past do not count."""
        return (self._load(CODES) if self.before else None) or CodeMaps([], {})


def _picture(name: str) -> str:
    return f"{IMAGES}/{name}.png"


def run(settings: SampleSettings) -> None:
    """Make all checks, then draw this process's share of the images; rank 0 writes what they have in common."""
    files.check_folder(settings.out, "--out")
    if settings.inpaint is not None:
        inpainting.check(settings)
    device = distributed.pick_device()
    vqvae, priors = sampler.load_models(settings.vqvae, settings.top, settings.bottom, device)
    for level in vqvae.model.levels:
        expect(level in priors, f"--{level}", f"the {level} prior of --vqvae {settings.vqvae}, which has "
               f"{len(vqvae.model.levels)} levels", "none", f"Give --{level} NAME.")
    sampler.condition_values(priors, settings.condition, [0], settings.seed)  # raises where --condition does not fit
    if settings.reject_by == "classifier":
        critic.training_codes(vqvae, settings.top)  # raises where there are none
    incomplete = None if settings.inpaint is None else inpainting.load(settings, vqvae)
    hashes = {f"{level}_hash": weights.weights_hash(priors[level].state_dict()) if level in priors else None
              for level in ("top", "bottom")}
    decoder = texture_decoder.attach(vqvae, settings.decoder, settings.seed)
    hashes["decoder_hash"] = decoder and decoder.hash
    # A process that has drawn its share waits for the others, for a week at most; if one fails, torchrun ends them all.
    distributed.start(device, minutes=7 * 24 * 60)
    held = ExitStack()
    try:
        claim = distributed.on_rank_0(lambda: held.enter_context(claimed(settings.out, f"--out {settings.out}")))
        folder = distributed.together(lambda: SampleFolder(settings.out, {
            **as_dict(settings), "out": settings.out.name, "vqvae_hash": vqvae.hash, **hashes, "images_hash": None,
            "mask_hash": None, **(incomplete.hashes if incomplete else {})}))
        distributed.on_rank_0(lambda: folder.begin(claim))
        write_samples(ImageSampler(vqvae, priors, settings, incomplete), folder)
    finally:
        held.close()
        distributed.stop()


def write_samples(image_sampler: ImageSampler, folder: SampleFolder) -> None:
    """Draw and write what is not there yet, shared out over the processes; then the grid, the codes, the settings."""
    settings = image_sampler.settings
    requests = sampler.requests_of(settings, image_sampler.incomplete)
    names = [request.name for request in requests]
    missing = set(distributed.gather_objects(folder.missing(names) if distributed.rank() == 0 else [])[0])
    if distributed.rank() == 0 and len(missing) < len(requests):
        print(f"{len(requests) - len(missing)} of {len(requests)} images are there already", flush=True)
    mine = [request for request in requests if request.name in missing][distributed.rank()::distributed.world_size()]

    if missing:
        image_sampler.learn()

    def draw() -> None:  # progress is rank 0's own
        codes = sum(math.prod(prior.shape) for prior in image_sampler.priors.values()) * settings.reject
        with Bar(total=codes * len(mine), of_all=(0, codes * len(mine)), desc="sampling", unit="code",
                 disable=distributed.rank() != 0) as bar:
            for image in image_sampler.draw(mine, bar.update):
                folder.keep(image)

    distributed.together(draw)
    distributed.on_rank_0(lambda: finish(image_sampler, folder, names))


def finish(image_sampler: ImageSampler, folder: SampleFolder, names: list[str]) -> None:
    """Write what shows or says something of all images, and print where it is. For rank 0 alone."""
    maps = folder.collect(names)
    report = sampler.rejection_report(image_sampler.settings, maps)
    if image_sampler.incomplete is None:
        images = torch.stack([folder.picture(name) for name in names[:MOST_IN_GRID]])
        of = image_sampler.vqvae.config["data"].get("synthetic") and "drawn by a model of synthetic scans"
        grid = plots.image_grid(plots.enlarged(images), columns=max(1, round(len(images)**0.5)), title=of or None)
        shown = len(images)
    else:
        grid = completions(folder, image_sampler)
        shown = min(len(image_sampler.incomplete.names), MOST_ROWS) * min(image_sampler.settings.count,
                                                                          MOST_COMPLETIONS)
    folder.finish(maps, grid, report)
    for rejection in report.values():
        print("kept 1 of {candidates} candidates of each image ({share_kept:.1%}) by {by}: {words} {mean_kept:.4g}, of "
              "all candidates {mean_of_all:.4g}".format(words=rejection["unit"].replace("_", " "), **rejection))
    print(f"{len(names)} images: {folder.out / 'images'}, "
          f"{'all' if shown == len(names) else f'{shown} of them'} at once: {folder.out / 'grid.png'}", flush=True)


def completions(folder: SampleFolder, image_sampler: ImageSampler) -> Image.Image:
    """Return a row for each of the first MOST_ROWS images: what was given, and its first MOST_COMPLETIONS."""
    number, rows = min(image_sampler.settings.count, MOST_COMPLETIONS), []
    for item, name in enumerate(image_sampler.incomplete.names[:MOST_ROWS]):
        made = [folder.picture(f"{name}-{completion:06d}") for completion in range(number)]
        given = image_sampler.incomplete.inputs(item, made[0])
        rows.append((name, torch.stack([*given, *made])))
    columns = ["original", "masked"][-len(given):] + [f"completion {completion}" for completion in range(number)]
    return plots.strip(rows, header=columns)
