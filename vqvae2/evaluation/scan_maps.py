"""A scan and VQ-VAEs -> its reconstruction, codes and likelihood on its own grid, and how near it came.

Every plane of the brain along the normals of the models' planes is drawn, encoded, decoded, and put back on the voxels
that it was drawn from. Where several planes say something of a voxel, their mean counts. All else is the scan's
background; voxels that were not finite are NaN.

Planes go through a model in batches. In memory are the scan, a sum and a count for each voxel of the brain's box, and
codes and maps at the resolution of the model.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from vqvae2.common.names import NORMAL
from vqvae2.common.progress import Bar
from vqvae2.evaluation import restoration, surprise, unlikeness
from vqvae2.evaluation.prediction import SLICE, in_form
from vqvae2.images import dataset
from vqvae2.images.manifest import ImageFile
from vqvae2.metrics import similarity
from vqvae2.models import encoding
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.base import Prior
from vqvae2.runs.weights import TrainedModel
from vqvae2.scans import nifti
from vqvae2.scans.brain import Brain
from vqvae2.scans.finding import Scan
from vqvae2.scans.headers import UnusableScan, expect_bytes, expect_usable
from vqvae2.scans.volumes import Volume
from vqvae2.slices import planes
from vqvae2.slices.scan_slices import image_name, read_brain
from vqvae2.slices.settings import ExtractSettings

BITS, RESTORATION = "bitsperpixel", "restoration"
SHOWN = ("axial", "coronal", "sagittal")
COMPLETIONS = 8
"""Completions at a time: more take memory and little less time."""
BYTES_A_VOXEL = 5
"""The memory for each voxel of the brain's box beside its stored number: a sum and a count."""


@dataclass(frozen=True)
class Model:
    """This is a VQ-VAE, and how the planes that it is given are cut.

    Attributes:
        priors: by level; none where no likelihood is asked for.
        decoder: the texture decoder, if there is one.
        cutting: its extent is the part of the brain that is reconstructed.
        shape: channels, height and width of its images.
        restores: whether unlikely codes are drawn anew, for a map of what does not belong.
    """

    vqvae: TrainedVqvae
    priors: Mapping[str, Prior]
    decoder: TrainedModel | None
    cutting: ExtractSettings
    shape: tuple[int, int, int]
    restores: bool = False

    def has_seen(self, plane: str, place: float, thickness: float) -> bool:
        """Return whether its training slices are known to be of such planes, and of this part of the extent, 0…1; a
        plane of this thickness need only touch it."""
        cut, half = self.vqvae.config["data"].get("extraction") or {}, thickness / 2 + 1e-6
        return not cut or (plane in cut["planes"] and cut["extent"][0] - half <= place <= cut["extent"][1] + half)


@dataclass(frozen=True)
class OpenScan:
    """This is a scan in memory."""

    scan: Scan
    volume: Volume
    brain: Brain
    grid: nifti.Grid
    mask_sha256: str

    @property
    def box(self) -> tuple[slice, ...]:
        """Return the part of the volume in which the brain is."""
        return tuple(self.brain.around(self.volume.voxels.shape))

    def brightness(self, index: int) -> np.ndarray:
        """Return a sagittal plane of the box as float64, DARKEST_BRAIN…1, brain or not; `index` counts in the box."""
        values = self.volume.scaled(self.volume.voxels[self.box][index])
        values = (values - self.brain.low) / (self.brain.high - self.brain.low)
        return np.clip(values, planes.DARKEST_BRAIN, 1, out=values)


@dataclass(frozen=True)
class DrawnSlice(ImageFile):
    """This is the name of a slice that lies in no folder, and what is known of it."""

    row: Mapping[str, str]

    @property
    def facts(self) -> Mapping[str, str]:
        """Return subject, session, plane, index and position_mm."""
        return self.row


class MeanOfPlanes:
    """The mean of what several planes say of each voxel of the brain's box."""

    def __init__(self, box: tuple[slice, ...]):
        self.box = box
        shape = [side.stop - side.start for side in box]
        self.total, self.count = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)

    def add(self, axis: int, index: int, values: np.ndarray, known: np.ndarray) -> None:
        """Add what a plane says of its voxels `[first axis, second axis]`: `values`, 0 where they are not `known`."""
        place = index - self.box[axis].start
        np.moveaxis(self.total, axis, 0)[place] += values
        np.moveaxis(self.count, axis, 0)[place] += known

    def mean(self) -> np.ndarray:
        """Return the mean, 0 where no plane says anything. Nothing can be added after that."""
        return np.divide(self.total, self.count, out=self.total, where=self.count > 0)


@dataclass(frozen=True)
class EncodedPlanes:
    """These are the planes of a scan in one direction, as a model has them.

    Attributes:
        levels: each level's codes, int16 `[n, height, width]`.
        maps: what is known of each pixel besides brightness, float32 `[n, height, width]`, by what its file is called.
    """

    model: Model
    plane: str
    indices: list[int]
    levels: dict[str, torch.Tensor]
    maps: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Reconstructed:
    """This is what models make of a scan.

    Attributes:
        mean: float32, 0…1, in the brain's box; 0 where there is no brain, or no plane of it.
        figures: of each slice.
        tally: sums over voxels and planes, from which `row` makes shares and means.
    """

    mean: np.ndarray = field(repr=False)
    encoded: list[EncodedPlanes]
    figures: list[dict[str, float]]
    tally: Counter

    def row(self) -> dict[str, float | int]:
        """Return the scan's figures, with the names of evaluate.py's where they are the same; nan where one is not
        defined.

        Figures of slices are means over all planes; of `unlikeness`, `turned` and `inverted` (see unlikeness.py), and
        of the NLL `bits_per_code`, over those planes whose place the model has seen. `volume_mae` is the mean absolute
        difference inside the brain between what is written and the scan, 0…1; `resampling_mae` is the same of the
        slices that the models were given, put back without any model: nothing can be better. `beyond` is the share of
        the brain that no plane reaches.
        """
        def mean(values: Sequence[float]) -> float:
            known = [value for value in values if not math.isnan(value)]
            return sum(known) / len(known) if known else math.nan

        tally = self.tally
        return {"planes": tally["planes"], **{name: mean([each[name] for each in self.figures])
                                              for name in self.figures[0]},
                "volume_mae": tally["volume"] / tally["voxels"],
                "resampling_mae": tally["resampling"] / max(tally["put back"], 1),
                "beyond": max(0.0, 1 - tally["voxels"] / max(tally["brain"], 1)),
                "planes_unlike_training": tally["unlike"], "planes_seen_in_training": tally["seen"]}


def open_scan(scan: Scan, cutting: ExtractSettings) -> OpenScan:
    """Return a scan, read whole. Raises: UnusableScan."""
    with numbers_of(scan):
        volume, brain, mask_sha256 = read_brain(scan, cutting)
        opened = OpenScan(scan, volume, brain, nifti.grid_of(scan.path, volume), mask_sha256)
    voxels = math.prod(side.stop - side.start for side in opened.box)
    expect_bytes(scan.path.name, voxels * (BYTES_A_VOXEL + volume.voxels.itemsize), "its reconstruction")
    return opened


@contextmanager
def numbers_of(scan: Scan) -> Iterator[None]:
    """Turn what NumPy raises of numbers near the largest, or of a giant, into an UnusableScan."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise UnusableScan(scan.path.name, "voxels that can be computed with", error or "too many of them",
                           "Repair the scan, or leave it out.") from None


def chosen_planes(opened: OpenScan, model: Model, plane: str) -> list[int]:
    """Return the indices of all planes of a direction that a model is given."""
    return planes.plane_indices(opened.brain, NORMAL[plane], "all", model.cutting.extent)


def reconstruct(opened: OpenScan, models: Sequence[Model], batch: int,
                on_planes: Callable[[int], object] = lambda _: None) -> Reconstructed:
    """Return what the models make of a scan together.

    Args:
        batch: planes at a time. on_planes: told how many more planes are done.
    Raises: UnusableScan if there is no brain in the planes that were asked for.
    """
    mean, tally, figures = MeanOfPlanes(opened.box), Counter(), []
    encoded = [_encoded(opened, model, plane, batch, mean, tally, figures, on_planes)
               for model in models for plane in model.cutting.planes]
    made = Reconstructed(mean.mean(), encoded, figures, tally)
    expect_usable(made.mean.any(), opened.scan.path.name, "brain in the planes that are reconstructed", "none",
                  "Leave the scan out, or choose another --extent.")
    for index, plane in enumerate(made.mean):
        known = plane > 0
        tally["volume"] += float(np.abs(plane - opened.brightness(index)).sum(where=known))
        tally["voxels"] += int(known.sum())
    axis = NORMAL[models[0].cutting.planes[0]]
    tally["brain"] = sum(int(planes.plane_of(opened.volume, opened.brain, axis, index).inside.sum())
                         for index in range(opened.brain.start[axis], opened.brain.stop[axis]))
    return made


def _encoded(opened: OpenScan, model: Model, plane: str, batch: int, mean: MeanOfPlanes, tally: Counter,
             figures: list[dict[str, float]], on_planes: Callable[[int], object]) -> EncodedPlanes:
    """Send the planes of one direction through a model; add them to `mean`, `tally` and `figures`."""
    volume, brain, axis = opened.volume, opened.brain, NORMAL[plane]
    width, trained = model.cutting.field_of_view, set(model.vqvae.config["training_images"])
    chosen, found, given_images, is_known_place = chosen_planes(opened, model, plane), [], [], []
    for first in range(0, len(chosen), batch):
        drawn = [(index, seen) for index in chosen[first:first + batch]
                 if (seen := planes.plane_of(volume, brain, axis, index)).inside.any()]
        if drawn:
            split = images_of(opened, model, plane, drawn)
            given_images.append(split)
            codes, made = encoding.reconstruct(model.vqvae.model, split, batch)
            found.append(([index for index, _ in drawn], codes.levels))
            originals = split.bytes()
            by_area = similarity.image_figures(originals, made)
            columns = {name if area == "full" else f"{area}_{name}": values.tolist()
                       for area, of_area in by_area.items() for name, values in of_area.items()}
            columns |= _fit(model, split)
            figures += [{name: values[item] for name, values in columns.items()} for item in range(len(drawn))]
            for item, (index, seen) in enumerate(drawn):
                height = brain.stop[axis] - brain.start[axis]
                place = (index + 0.5 - brain.start[axis]) / height
                given, back = (images[item].double().mean(0).numpy() / 255 for images in (originals, made))
                values, known = planes.put_back(back, volume, brain, axis, seen, width)
                mean.add(axis, index, values, known)
                undecoded, _ = planes.put_back(given, volume, brain, axis, seen, width)
                tally["resampling"] += float(np.abs(undecoded - seen.brightness).sum(where=known))
                is_known_place.append(model.has_seen(plane, place, 1 / height))
                if not is_known_place[-1]:  # what is usual there is not known
                    figures[item - len(drawn)] |= dict.fromkeys(unlikeness.LIMITS, math.nan)
                tally.update({"put back": int(known.sum()), "planes": 1, "unlike": int(not is_known_place[-1]),
                              "seen": int(dataset.pixel_hash(split.pixels[item]) in trained)})
        on_planes(len(chosen[first:first + batch]))
    levels, maps = _joined([levels for _, levels in found], torch.int16), {}
    if model.priors and found:
        images = dataset.ImageSet(tuple(file for split in given_images for file in split.files),
                                  np.concatenate([split.pixels for split in given_images]))
        codes = CodeMaps(images.names, {level: own.long() for level, own in levels.items()})
        bits = surprise.code_bits(model.priors, codes.levels, images.facts, 1, on_planes, tell_previous=True)
        maps[BITS] = surprise.bits_per_pixel_maps(bits, model.shape[1:])
        of_images = torch.cat([own.flatten(1) for own in bits.values()], 1).mean(1).tolist()
        for own, is_known, value in zip(figures[-len(images):], is_known_place, of_images):
            own["bits_per_code"] = value if is_known else math.nan
        if model.restores:
            with Bar(total=restoration.codes_to_settle(model.vqvae, images), desc="what does not belong",
                     unit="code") as bar:
                maps[RESTORATION] = torch.from_numpy(restoration.restore(
                    model.vqvae, model.priors, images, batch=COMPLETIONS, codes=codes, on_codes=bar.update).maps)
    return EncodedPlanes(model, plane, [index for indices, _ in found for index in indices], levels, maps)


def _fit(model: Model, split: dataset.ImageSet) -> dict[str, list[float]]:
    """Return how far each image is from those of training (see unlikeness.py); nan where that is not known."""
    images = split.batch(np.arange(len(split)))
    return {name: values or [math.nan] * len(images)
            for name, values in unlikeness.figures(model.vqvae, lambda: [images]).items()}


def _joined(parts: Sequence[Mapping[str, torch.Tensor]], kind: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name].to(kind) for part in parts]) for name in (parts[0] if parts else ())}


def images_of(opened: OpenScan, model: Model, plane: str,
            drawn: Sequence[tuple[int, planes.BrainPlane]]) -> dataset.ImageSet:
    """Return planes as the model is given them, bit for bit as predict.py without --nifti gives it its slices."""
    axis, cutting, scan, pixels, names = NORMAL[plane], model.cutting, opened.scan, [], []
    for index, seen in drawn:
        image = planes.picture_of(seen, opened.volume, opened.brain, axis, cutting.size, cutting.field_of_view)
        numbers = np.rint(image * (2**cutting.bits - 1)).astype(f"uint{cutting.bits}")[None]
        position = planes.position_mm(opened.brain, axis, index, opened.volume.voxel_size_mm[axis])
        name = image_name(scan.prefix, plane, index)
        pixels.append(in_form(str(scan.path), name, numbers, model.shape, [SLICE], {}).pixels)
        names.append(DrawnSlice(name, "", scan.subject, "", {
            "subject": scan.subject, "session": scan.session, "scan": scan.name, "plane": plane, "index": str(index),
            "position_mm": f"{position:.3f}"}))
    return dataset.ImageSet(tuple(names), np.stack(pixels))


def labels_of(models: Sequence[Model]) -> list[str]:
    """Return what the files beside a reconstruction are called: desc of their names, in the order of `other_maps`."""
    codes = [f"{plane}{level}codes" for model in models for plane in model.cutting.planes
             for level in model.vqvae.model.levels]
    return codes + [BITS] * any(model.priors for model in models) + [RESTORATION] * any(
        model.restores for model in models)


def other_maps(opened: OpenScan, encoded: Sequence[EncodedPlanes],
               known: np.ndarray) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield what is written beside the reconstruction: what its file is called, the numbers in the brain's box in RAS
    order, and the number everywhere else. One at a time, for the memory.

    known: where the reconstruction has a voxel, bool, in the brain's box.
    """
    for each in encoded:
        for level, codes in each.levels.items():
            placed = np.full(known.shape, -1, np.int16)
            for index, values, within in _put_back(opened, each, codes):
                at = np.moveaxis(placed, NORMAL[each.plane], 0)[index]
                at[within] = values[within]
            placed[~known] = -1
            yield f"{each.plane}{level}codes", placed, -1
    for label in dict.fromkeys(label for each in encoded for label in each.maps):
        mean = MeanOfPlanes(tuple(slice(0, length) for length in known.shape))
        for each in encoded:
            for index, values, within in _put_back(opened, each, each.maps[label]):
                mean.add(NORMAL[each.plane], index, values, within)
        yield label, np.multiply(mean.mean(), known, out=mean.total), 0


def _put_back(opened: OpenScan, encoded: EncodedPlanes,
              maps: torch.Tensor) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield for each plane its index in the box, its values, and where these lie within the field of view."""
    axis, is_codes = NORMAL[encoded.plane], not maps.is_floating_point()
    for index, values in zip(encoded.indices, maps.numpy()):
        placed, within = planes.put_map_back(values, opened.volume, opened.brain, axis,
                                             encoded.model.cutting.field_of_view, nearest=is_codes)
        yield index - opened.box[axis].start, placed, within


def write_reconstruction(path: Path, opened: OpenScan, made: Reconstructed) -> None:
    """Write the reconstruction in the scan's own type and units. Raises: UserError if it cannot be written."""
    grid, brain, lost = opened.grid, opened.brain, opened.volume.not_finite
    box = opened.box
    part = box if lost is None else tuple(slice(0, length) for length in lost.shape)
    stored = np.full([side.stop - side.start for side in part], grid.background, grid.number_type)
    if lost is not None:
        stored[lost] = np.nan
    inside = stored[tuple(slice(side.start - whole.start, side.stop - whole.start) for side, whole in zip(box, part))]
    for plane, into in zip(made.mean, inside):
        known = plane > 0
        into[known] = grid.stored(brain.low + plane[known].astype(np.float64) * (brain.high - brain.low))
    grid.write(path, part, stored)


def middle_planes(opened: OpenScan, numbers: np.ndarray | None, size: int, field_of_view: float) -> torch.Tensor:
    """Return the middle plane of each of SHOWN as pictures `[3, 1, size, size]` in 0…1.

    numbers: in the brain's box in RAS order, 0…1; None for the scan itself.
    """
    volume, where = opened.volume, opened.brain
    if numbers is not None:
        start, stop = (tuple(at - side.start for at, side in zip(places, opened.box))
                       for places in (where.start, where.stop))
        volume = Volume(numbers, volume.voxel_size_mm)
        where = replace(where, start=start, stop=stop, low=0.0, high=1.0, head=None)
    drawn = [planes.draw_plane(volume, where, axis, (where.start[axis] + where.stop[axis]) // 2, size, field_of_view)
             for axis in map(NORMAL.get, SHOWN)]
    return torch.from_numpy(np.stack(drawn))[:, None]
