"""A VQ-VAE, its priors and a request -> a folder of samples, shared out over processes: the work of `vqvae2 sample`.

    images/<name>.png     each written as soon as it is drawn; with --nifti volumes/<name>.nii.gz
    parts/<name>.npz      its codes, and what its candidates came to; all of them become codes.npz in the end
    sample.json           what all images of the folder have in common; written first
    grid.png, codes.npz   written last

An image is there when its picture is and its codes are, in parts/ or in codes.npz. Every file is whole or not there,
and parts/ goes last: a kill at any moment loses no image that was finished. Several processes write different images.
"""

import math
import re
from collections.abc import Mapping, Sequence
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
from vqvae2.priors.base import Prior
from vqvae2.runs import weights
from vqvae2.runs.record import PARTS, RecordedFolder
from vqvae2.sampling import critic, inpainting, sampler, volumes
from vqvae2.sampling.sampler import FinishedImage, ImageSampler
from vqvae2.sampling.settings import SampleSettings
from vqvae2.sampling.volumes import FinishedVolume, VolumeSampler
from vqvae2.settings.parsing import as_dict

MOST_IN_GRID, MOST_ROWS, MOST_COMPLETIONS = 400, 16, 8
"""Images in a grid; images that were completed, and completions of each, in theirs."""
RECORD, CODES, GRID, IMAGES, VOLUMES = "sample.json", "codes.npz", "grid.png", "images", "volumes"


class SampleFolder(RecordedFolder):
    """The folder of sample.py; its settings have "vqvae_hash" among them. A later run may add images."""

    command, record, made = "sample.py", RECORD, "its images were drawn with"
    own = (IMAGES, VOLUMES, CODES, GRID, PARTS)
    kind, ending = IMAGES, ".png"
    """The folder of the samples, and the ending of their files."""
    hashes = MappingProxyType({"vqvae": "vqvae_hash", "top": "top_hash", "bottom": "bottom_hash",
                               "inpaint": "images_hash", "mask": "mask_hash", "decoder": "decoder_hash"})
    lacking = MappingProxyType({"decoder": None, "decoder_hash": None, "nifti": False})
    may_differ = RecordedFolder.may_differ | {"count"}

    def begin(self, claim: Claim) -> None:
        """Write what the images have in common, and remove what a killed run was just writing. For rank 0 alone."""
        if not self.before:  # what an earlier version has left here is drawn anew
            (self.out / CODES).unlink(missing_ok=True)
            self.tidy()
        claim.remove_left_overs(self.kind, PARTS)
        self.write_record({})

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those of the samples `names` that are still to be drawn, in order."""
        coded = {self.sample_of(name) for name in self._stored().names} | {
            path.stem for path in (self.out / PARTS).glob("*.npz")}
        there = {path.name.removesuffix(self.ending) for path in (self.out / self.kind).glob(f"*{self.ending}")}
        return [name for name in names if name not in coded or name not in there]

    def sample_of(self, name: str) -> str:
        """Return the name of the sample that a code map of this name belongs to."""
        return Path(name).stem

    def keep(self, finished: FinishedImage) -> None:
        """Write an image and its codes."""
        plots.save_picture(plots.image_grid(finished.image[None], 1, gap=0), self.path(finished.name))
        scores = {name: torch.tensor([value], dtype=torch.float64) for name, value in finished.scores.items()}
        self.keep_codes(finished.name, CodeMaps([f"{IMAGES}/{finished.name}.png"], {
            level: codes[None] for level, codes in finished.codes.items()}, scores))

    def keep_codes(self, name: str, maps: CodeMaps) -> None:
        """Write the codes of a sample whose file is there."""
        maps.save(self.out / PARTS / f"{name}.npz", self.settings["vqvae_hash"], "")

    def path(self, name: str) -> Path:
        """Return the file of a sample."""
        return self.out / self.kind / f"{name}{self.ending}"

    def collect(self, names: Sequence[str]) -> CodeMaps:
        """Return the codes of the samples `names`, which are all there, in this order.

        Raises: UserError if one is not: processes on machines that do not share the folder.
        """
        stored = self._stored()
        found: dict[str, list[tuple[CodeMaps, int]]] = {}
        for i, name in enumerate(stored.names):
            found.setdefault(self.sample_of(name), []).append((stored, i))
        found |= {name: [(part, i) for i in range(len(part.names))] for name in names
                  if (part := self._load(f"{PARTS}/{name}.npz"))}
        missing = [name for name in names if name not in found]
        expect(not missing, f"--out {self.out}", f"{len(names)} {self.kind}",
               f"all but {len(missing)}, such as {' '.join(missing[:1])}",
               "All machines must share this folder; run the same command again.")
        chosen = [own for name in names for own in found[name]]
        first = chosen[0][0]
        return CodeMaps([maps.names[i] for maps, i in chosen],
                        {level: torch.stack([maps.levels[level][i] for maps, i in chosen]) for level in first.levels},
                        {score: torch.stack([maps.scores[score][i] for maps, i in chosen]) for score in first.scores})

    def picture(self, name: str) -> torch.Tensor:
        """Return an image that is there, uint8 `[channels, height, width]`. Raises: UserError if it cannot be read."""
        path = self.path(name)
        try:
            pixels = torch.from_numpy(np.array(load_picture(path)))
        except BrokenPicture as error:
            raise UserError(f"{path}: expected an image that sample.py wrote, found {error.why}. Delete it and run the "
                            "same command again.") from None
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def finish(self, maps: CodeMaps, grid: Image.Image, report: dict) -> None:
        """Write the grid, the codes and the report; remove samples of an earlier, larger run. For rank 0 alone.

        sample.py names its samples 000012, or with --inpaint brain-000003: only such files are removed.
        """
        plots.save_picture(grid, self.out / GRID)
        maps.save(self.out / CODES, self.settings["vqvae_hash"], "")
        wanted = {self.path(self.sample_of(name)) for name in maps.names}
        for path in (self.out / self.kind).glob(f"*{self.ending}"):
            if re.fullmatch(r"(.+-)?\d{6,}", path.name.removesuffix(self.ending)) and path not in wanted:
                path.unlink(missing_ok=True)
        self.write_record(report)
        self.tidy()

    def _load(self, name: str) -> CodeMaps | None:
        return CodeMaps.load(self.out / name, self.settings["vqvae_hash"])

    def _stored(self) -> CodeMaps:
        """Return the codes that an earlier run has finished with; codes of an unknown past do not count."""
        return (self._load(CODES) if self.before else None) or CodeMaps([], {})


class VolumeFolder(SampleFolder):
    """The folder of `sample --nifti`: brains as NIfTI files. Each slice has a code map of its own."""

    kind, ending = VOLUMES, ".nii.gz"

    def sample_of(self, name: str) -> str:
        """Return the name of the brain that a slice of this name belongs to."""
        return Path(name).parent.name

    def keep_volume(self, finished: FinishedVolume, stack: volumes.Stack) -> None:
        """Write a brain and the codes of its slices."""
        volumes.write_nifti(self.path(finished.name), stack, finished.slices)
        names = [f"{VOLUMES}/{finished.name}/{number:04d}" for number in range(len(finished.slices))]
        self.keep_codes(finished.name, CodeMaps(names, finished.codes))


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
    drawing = VolumeSampler(vqvae, priors, settings) if settings.nifti else ImageSampler(vqvae, priors, settings,
                                                                                         incomplete)
    # A process that has drawn its share waits for the others, for a week at most; if one fails, torchrun ends them all.
    distributed.start(device, minutes=7 * 24 * 60)
    held = ExitStack()
    try:
        claim = distributed.on_rank_0(lambda: held.enter_context(claimed(settings.out, f"--out {settings.out}")))
        folder = distributed.together(lambda: (VolumeFolder if settings.nifti else SampleFolder)(settings.out, {
            **as_dict(settings), "out": settings.out.name, "vqvae_hash": vqvae.hash, **hashes, "images_hash": None,
            "mask_hash": None, **(incomplete.hashes if incomplete else {})}))
        distributed.on_rank_0(lambda: folder.begin(claim))
        (write_volumes if settings.nifti else write_samples)(drawing, folder)
    finally:
        held.close()
        distributed.stop()


def write_samples(image_sampler: ImageSampler, folder: SampleFolder) -> None:
    """Draw and write what is not there yet, shared out over the processes; then the grid, the codes, the settings."""
    settings = image_sampler.settings
    requests = sampler.requests_of(settings, image_sampler.incomplete)
    names = [request.name for request in requests]
    missing = _missing(folder, names)
    mine = [request for request in requests if request.name in missing][distributed.rank()::distributed.world_size()]

    if missing:
        image_sampler.learn()

    def draw() -> None:
        with _bar(image_sampler.priors, len(mine) * settings.reject) as bar:
            for image in image_sampler.draw(mine, bar.update):
                folder.keep(image)

    distributed.together(draw)
    distributed.on_rank_0(lambda: finish(image_sampler, folder, names))


def write_volumes(drawing: VolumeSampler, folder: VolumeFolder) -> None:
    """Draw and write the brains that are not there yet, shared out over the processes; then what they have in common.
    """
    names = [f"{number:06d}" for number in range(drawing.settings.count)]
    missing, stack = _missing(folder, names), drawing.stack
    mine = [int(name) for name in names if name in missing][distributed.rank()::distributed.world_size()]
    if distributed.rank() == 0:
        print(f"brains: {len(names)}, each of {len(stack.positions_mm)} {stack.plane} slices, "
              f"{stack.positions_mm[0]:.4g} to {stack.positions_mm[-1]:.4g} mm; {drawing.words}", flush=True)
        if beyond := drawing.beyond():
            print(beyond, flush=True)

    def draw() -> None:
        with _bar(drawing.priors, len(mine) * len(stack.positions_mm)) as bar:
            for volume in drawing.draw(mine, bar.update):
                folder.keep_volume(volume, stack)

    distributed.together(draw)

    def finish() -> None:
        shown = names[:MOST_ROWS]
        rows = [(name, torch.from_numpy(volumes.three_planes(stack, volumes.read_nifti(folder.path(name)))))
                for name in shown]
        folder.finish(folder.collect(names), plots.strip(rows, header=["axial", "coronal", "sagittal"]), {
            "coherence": drawing.words, "positions_mm": list(stack.positions_mm)})
        print(f"written: {folder.out / VOLUMES}, and three planes of "
              f"{'all' if len(shown) == len(names) else f'{len(shown)} of them'}: {folder.out / GRID}", flush=True)

    distributed.on_rank_0(finish)


def _missing(folder: SampleFolder, names: Sequence[str]) -> set[str]:
    """Return, on all ranks, the samples that are still to be drawn; say how many are there."""
    missing = set(distributed.gather_objects(folder.missing(names) if distributed.rank() == 0 else [])[0])
    if distributed.rank() == 0 and len(missing) < len(names):
        print(f"{len(names) - len(missing)} of {len(names)} {folder.kind} are there already", flush=True)
    return missing


def _bar(priors: Mapping[str, Prior], maps: int) -> Bar:
    """Return the progress bar of drawing `maps` maps of each level; rank 0 alone shows its own."""
    total = maps * sum(math.prod(prior.shape) for prior in priors.values())
    return Bar(total=total, of_all=(0, total), desc="sampling", unit="code", disable=distributed.rank() != 0)


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
