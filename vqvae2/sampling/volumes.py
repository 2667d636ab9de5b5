"""Priors that are told where a slice lies -> whole brains, slice by slice, in a millimetre space.

A brain is a stack of slices at equal distances, each told its position_mm. What makes them belong together
(`--coherence`):

- noise: a code's uniform number is that of (seed, brain, level, place in the map), the same for all slices. Slices that
  lie side by side are told nearly the same, so that their logits, and mostly their codes, are alike. Any prior that
  was trained with --condition position_mm can do this. Sharing noise over slices is what [1] does with diffusion.
- previous: the prior was also trained with --condition previous-slice. From the middle of the brain upwards and
  downwards, each slice is told the codes of the one before; each has uniform numbers of its own.
  The freedom that is asked for (--temperature, --top-k, --top-p) is that of the middle slice; the others are drawn as
  learned, since the likeliest codes are those of the slice before, and likelier ones than learned never change.
- both: the previous slice's codes, and shared numbers.
- none: neither, for comparison: each slice is that of another brain.

A slice depends on (seed, number of the brain, place of the slice, the slice before) and not on what is drawn at the
same time.

[1] Inter-slice consistent stochasticity, arXiv 2602.04162.
"""

import dataclasses
import functools
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import expect
from vqvae2.common.names import NORMAL
from vqvae2.images.dataset import to_bytes
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior
from vqvae2.priors.settings import PREVIOUS_MM
from vqvae2.sampling import sampler
from vqvae2.sampling.sampler import SamplingRule
from vqvae2.sampling.settings import SampleSettings, of_level

POSITION = "position_mm"
EVEN = 3**0.5
"""Evenly spread numbers reach so many standard deviations to either side of their mean."""
MOST_SLICES = 2000
ALIGNED = 2
"""NIfTI's code of a space that is not the scanner's: here the middle of the brain's box is at 0, 0, 0 mm."""


@dataclass(frozen=True)
class Stack:
    """The slices of a brain: their plane, their places, and the size of a pixel."""

    plane: str
    positions_mm: tuple[float, ...]
    """The places of the slices along the plane's normal, evenly spaced and growing towards R, A or S."""
    spacing_mm: float
    pixel_mm: float

    @property
    def voxel_size_mm(self) -> tuple[float, ...]:
        """Return the size of a voxel towards R, A, S."""
        return tuple(self.spacing_mm if axis == NORMAL[self.plane] else self.pixel_mm for axis in range(3))

    def affine(self, size: int) -> np.ndarray:
        """Return the matrix [4, 4] from voxels to mm, RAS; `size` is height and width of a slice in pixels."""
        first = [self.positions_mm[0] if axis == NORMAL[self.plane] else (0.5 - size / 2) * self.pixel_mm
                 for axis in range(3)]
        matrix = np.diag([*self.voxel_size_mm, 1.0])
        matrix[:3, 3] = first
        return matrix

    def stacked(self, images: np.ndarray) -> np.ndarray:
        """Return voxels [R, A, S] of slices `[slices, height, width]` in radiological display (see planes.py)."""
        return np.ascontiguousarray(np.moveaxis(images[:, ::-1, ::-1].transpose(0, 2, 1), 0, NORMAL[self.plane]))

    def rounds(self, told_previous: bool, most: int) -> Iterator[list[tuple[int, int | None]]]:
        """Yield the slices that are drawn at the same time, each with the one before it.

        Told the previous slice, these are the middle one, then the two beside what is there; else any `most`.
        """
        count, middle = len(self.positions_mm), len(self.positions_mm) // 2
        if not told_previous:
            for first in range(0, count, most):
                yield [(number, None) for number in range(first, min(first + most, count))]
            return
        yield [(middle, None)]
        for step in range(1, middle + 1):
            yield [(middle + side * step, middle + side * (step - 1)) for side in (-1, 1)
                   if 0 <= middle + side * step < count]


@dataclass(frozen=True)
class FinishedVolume:
    """One brain that has been drawn.

    Args:
        name: the name of its file, without the ending.
        slices: uint8 `[slices, height, width]`, in the order of `Stack.positions_mm`.
        codes: the codes of each level, int64 `[slices, height, width]`, on the CPU.
    """

    name: str
    slices: np.ndarray
    codes: dict[str, torch.Tensor]


def stack_of(settings: SampleSettings, vqvae: TrainedVqvae, priors: Mapping[str, Prior]) -> Stack:
    """Return the slices that a brain has: from the range of --condition position_mm, else from where training slices
    lay, at --spacing.

    Raises: UserError if the models do not say how slices lie in space, or a flag does not fit them.
    """
    cutting = vqvae.config["data"].get("extraction") or {}
    planes = cutting.get("planes") or ()
    expect(len(planes) == 1, f"--vqvae {settings.vqvae}", "a model of slices of one plane that vqvae2 extract cut, for "
           "--nifti", " and ".join(planes) or "no record of a plane", "Train it with slices of one plane.")
    for level, prior in priors.items():
        columns = {column.name: column for column in prior.columns}
        name = getattr(settings, level)
        expect(POSITION in columns, f"--{level} {name}", f"a prior that is told where a slice lies, for --nifti "
               f"(--condition {POSITION})", ", ".join(columns) or "one that is told nothing", "Train it with that.")
        expect(not is_told_previous(settings, priors) or PREVIOUS_MM in columns, f"--{level} {name}",
               f"a prior that was trained with --condition previous-slice, for --coherence {settings.coherence}",
               "another", "Give --coherence noise, or train it with that.")
    column = next(column for column in priors["top"].columns if column.name == POSITION)
    given = [text for text in settings.condition if conditions.name_in(text, [POSITION]) == POSITION]
    ends = conditions.RANGE.split(given[0].partition("=")[2]) if given else [
        str(max(column.least, column.mean - EVEN * column.spread)),
        str(min(column.most, column.mean + EVEN * column.spread))]
    expect(len(ends) == 2, f"--condition {given and given[0]}", f"a range of positions for --nifti, {POSITION}=A..B",
           "one position", "Leave it out for all places that the priors have learned.")
    low, high = sorted(map(float, ends))
    count = int((high - low) / settings.spacing + 1e-6) + 1
    expect(2 <= count <= MOST_SLICES, f"--spacing {settings.spacing:g}", f"2 to {MOST_SLICES} slices from {low:g} to "
           f"{high:g} mm", count, "Give another --spacing, or another range.")
    if is_told_previous(settings, priors):
        most = next(column.most for column in priors["top"].columns if column.name == PREVIOUS_MM)
        expect(settings.spacing <= most, f"--spacing {settings.spacing:g}", f"at most {most:g} mm, the distance of "
               "slices of which the priors have learned", "more", "Give a smaller one, or --coherence noise.")
    size = vqvae.config["image_shape"][2]
    # In the middle of the range, so that both ends are left out alike.
    start = (low + high - (count - 1) * settings.spacing) / 2
    return Stack(planes[0], tuple(round(start + number * settings.spacing, 4) for number in range(count)),
                 settings.spacing, cutting["field_of_view"] / size)


def is_told_previous(settings: SampleSettings, priors: Mapping[str, Prior]) -> bool:
    """Return whether each slice is told the one before it: by --coherence, else where the priors can be told it."""
    can = all(any(column.name == PREVIOUS_MM for column in prior.columns) for prior in priors.values())
    return settings.coherence in ("previous", "both") or (settings.coherence == "auto" and can)


def shares_numbers(settings: SampleSettings, priors: Mapping[str, Prior]) -> bool:
    """Return whether all slices of a brain have the same uniform numbers."""
    return settings.coherence in ("noise", "both") or (
        settings.coherence == "auto" and not is_told_previous(settings, priors))


class VolumeSampler:
    """Draws brains.

    Args:
        priors: the prior of each level that the VQ-VAE has.
    Raises: UserError as `stack_of` does.
    """

    def __init__(self, vqvae: TrainedVqvae, priors: Mapping[str, Prior], settings: SampleSettings):
        self.vqvae, self.settings = vqvae, settings
        own = {level: priors[level] for level in vqvae.model.levels}
        sampler.condition_values(own, settings.condition, [0], settings.seed)  # raises where --condition does not fit
        self.stack = stack_of(settings, vqvae, own)
        self.told_previous, self.shared = is_told_previous(settings, own), shares_numbers(settings, own)
        self.priors = sampler.in_float64(own) if settings.precision == "auto" else own
        self.rules = {level: SamplingRule(*(of_level(getattr(settings, name), level) for name in (
            "temperature", "top_k", "top_p", "guidance"))) for level in vqvae.model.levels}
        self.as_learned = {level: SamplingRule(guidance=rule.guidance) for level, rule in self.rules.items()}

    @property
    def words(self) -> str:
        """Return what makes slices belong together, for the user."""
        told = ["each slice is told the one before"] * self.told_previous
        shared = "all slices of a brain share their random numbers" + (
            "" if self.told_previous else ", which makes neighbours alike and no whole brain (docs/volumes.md)")
        return " and ".join([*told, *[shared] * self.shared]) or "nothing makes slices belong together"

    def beyond(self) -> str:
        """Return a warning where slices lie beyond those of training, else nothing."""
        column = next(column for column in self.priors["top"].columns if column.name == POSITION)
        places = self.stack.positions_mm
        if column.least - self.stack.spacing_mm <= places[0] and places[-1] <= column.most + self.stack.spacing_mm:
            return ""
        return (f"warning: slices from {places[0]:.4g} to {places[-1]:.4g} mm; the priors have learned "
                f"{column.least:.4g} to {column.most:.4g} mm, and what lies beyond is a guess")

    def draw(self, numbers: Sequence[int], on_codes: Callable[[int], object] = lambda _: None,
             ) -> Iterator[FinishedVolume]:
        """Yield the brains with these numbers, in order. `on_codes` is told how many codes have been drawn since."""
        # Told the previous slice, one brain has two slices at a time at most, and several brains are drawn together.
        together = max(1, self.settings.batch // 2) if self.told_previous else 1
        for first in range(0, len(numbers), together):
            yield from self._draw_some(numbers[first:first + together], on_codes)

    @torch.no_grad()
    def _draw_some(self, numbers: Sequence[int], on_codes: Callable[[int], object]) -> Iterator[FinishedVolume]:
        drawn: dict[int, dict[str, torch.Tensor]] = {}
        for pairs in self.stack.rounds(self.told_previous, self.settings.batch):
            own = [number for _ in pairs for number in numbers]
            slices = [place for place, _ in pairs for _ in numbers]
            before = None if pairs[0][1] is None else {
                level: torch.cat([drawn[previous][level] for _, previous in pairs]) for level in self.priors}
            rules = self.rules if before is None else self.as_learned
            maps = sampler.draw_maps(self.priors, own, self.settings.seed, rules, self._facts(numbers, pairs),
                                     functools.partial(on_codes, len(own)), None,
                                     [0 if self.shared else place + 1 for place in slices], before)
            for item, (place, _) in enumerate(pairs):
                part = slice(item * len(numbers), (item + 1) * len(numbers))
                drawn[place] = {level: codes[part] for level, codes in maps.items()}
        for item, number in enumerate(numbers):
            codes = {level: torch.stack([drawn[place][level][item] for place in range(len(drawn))])
                     for level in self.priors}
            on_cpu = {level: own.cpu() for level, own in codes.items()}
            yield FinishedVolume(f"{number:06d}", self._images(number, codes), on_cpu)

    def _facts(self, numbers: Sequence[int], pairs: Sequence[tuple[int, int | None]]) -> dict[str, torch.Tensor]:
        """Return what each prior is told of each slice of each brain, `[slices x brains, columns]`."""
        others = [text for text in self.settings.condition if conditions.name_in(text, [POSITION]) != POSITION]
        places, parts = self.stack.positions_mm, []
        for place, previous in pairs:
            texts = [*others, f"{POSITION}={places[place]}"]
            if previous is not None:
                texts.append(f"{PREVIOUS_MM}={places[previous] - places[place]:.4f}")
            parts.append(sampler.condition_values(self.priors, texts, numbers, self.settings.seed))
        return {level: torch.cat([part[level] for part in parts]) for level in self.priors}

    def _images(self, number: int, codes: Mapping[str, torch.Tensor]) -> np.ndarray:
        """Return slices `[slices, height, width]` of codes, decoded one by one lest the last bits depend on the others.

        A texture decoder has the same noise in all slices of a brain. A model of colours gives the mean of the colours.
        """
        model, count = self.vqvae.model, len(codes["top"])
        if model.texture is not None:
            model.texture = dataclasses.replace(model.texture, number=number)
        images = [model.decode({level: own[i:i + 1] for level, own in codes.items()}) for i in range(count)]
        return to_bytes(torch.cat(images).mean(1)).numpy()


def write_nifti(path: Path, stack: Stack, slices: np.ndarray) -> None:
    """Write slices uint8 `[slices, height, width]` as a NIfTI volume in mm, RAS, atomically."""
    import nibabel as nib  # takes a second, which samples without --nifti need not wait

    image = nib.Nifti1Image(stack.stacked(slices), stack.affine(slices.shape[2]), dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, ALIGNED)
    image.set_qform(image.affine, ALIGNED)
    files.write_atomically(path, gzip.compress(image.to_bytes(), mtime=0))  # no time, so that equal work is equal bytes


def read_nifti(path: Path) -> np.ndarray:
    """Return the voxels [R, A, S] of a brain that `write_nifti` wrote."""
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj)


def three_planes(stack: Stack, voxels: np.ndarray) -> np.ndarray:
    """Return the axial, coronal and sagittal plane through the middle of a brain [R, A, S], `[3, 1, size, size]`.

    They are in radiological display, with square pixels as large as those of the slices; what is beyond the stack is
    black.
    """
    size = voxels.shape[0 if stack.plane != "sagittal" else 1]
    planes = np.zeros((3, 1, size, size), np.uint8)
    for shown, axis in zip(planes[:, 0], (2, 1, 0)):
        plane = np.moveaxis(voxels, axis, 0)[voxels.shape[axis] // 2].T[::-1, ::-1]  # up is A or S, left is R or A
        sizes = [voxel for other, voxel in enumerate(stack.voxel_size_mm) if other != axis][::-1]
        inner = [max(1, round(length * voxel / stack.pixel_mm)) for length, voxel in zip(plane.shape, sizes)]
        drawn = np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(inner[::-1], Image.Resampling.BILINEAR))
        cut = tuple(slice(max(0, (length - size) // 2), max(0, (length - size) // 2) + size) for length in inner)
        drawn = drawn[cut]
        top, left = ((size - length) // 2 for length in drawn.shape)
        shown[top:top + drawn.shape[0], left:left + drawn.shape[1]] = drawn
    return planes
