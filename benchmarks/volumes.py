"""How well the planes of drawn volumes fit each other, beside real volumes and beside planes drawn independently.

    python benchmarks/volumes.py --slices slices-all --out volumes --vqvae vqvae-64 --drawn noise:brains previous:others
    python benchmarks/volumes.py --slices slices-all --out volumes      # real volumes alone, and independent planes

A way of drawing is NAME:FOLDER, the --out of `sample.py --nifti`. Real volumes are put together from slices of all
axial planes (extract_slices.py --planes axial --per-scan 400 --extent 0 1), at the planes of the drawn volumes: the
nearest to each in mm from the middle of the brain. `real` are those of --real, and all others are compared with them:

    other people       those of --other, who say what real volumes reach
    reconstructions    the real volumes, slice by slice, of their codes (with --vqvae): what this decoder allows
    independent        each plane from another of the other people: every plane is real, and none belongs to the next

vqvae2/evaluation/consistency.py defines the figures. Written are volumes.md (a table), volumes.json (the same with
intervals) and volumes.png (a brain of each in three planes).
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import processor

from vqvae2.common import files, random_numbers
from vqvae2.common.errors import expect, run_script
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import as_text
from vqvae2.evaluation import consistency, features
from vqvae2.evaluation.text import markdown_table
from vqvae2.images.dataset import ImageSet, load_images
from vqvae2.images.settings import DataSettings
from vqvae2.models import encoding
from vqvae2.plots import pictures
from vqvae2.sampling import sampler
from vqvae2.settings import checks, parsing

REAL, OTHER, AGAIN, INDEPENDENT = "real", "other people", "reconstructions", "independent"
BATCH = 32
NEAR_MM = 0.01
"""Distances of planes and pixels may differ by so much: a header's numbers are rounded."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/volumes.py."""

    slices: Path
    """Folder of slices of all axial planes, with its manifest."""
    drawn: tuple[str, ...] = ()
    """Ways of drawing, NAME:FOLDER each; all volumes lie on one grid."""
    real: Literal["train", "validate", "test"] = "test"
    """Split of the people whom all are compared with."""
    other: Literal["train", "validate", "test"] = "train"
    """Split of the people who say what real volumes reach. The features of the MMD² are whitened by their pictures, for
    which ten people are few."""
    range_mm: tuple[float, float] = (-25.0, 36.0)
    """Range of planes where nothing is drawn, 1 mm apart."""
    vqvae: str | None = None
    """The VQ-VAE of the drawn volumes, a folder or a name, which reconstructs the real ones."""
    seed: int = 0
    """Seed of the independent planes and of the bootstrap."""
    out: Path
    """Folder that receives volumes.md, volumes.json and volumes.png."""

    def __post_init__(self) -> None:
        checks.expect(self.slices.is_dir(), f"--slices {self.slices}", "a folder", "none", "Correct the path.")
        checks.expect(self.real != self.other, f"--other {self.other}", "other people than --real", "the same",
                      "Give another split.")
        names = [way.partition(":")[0] for way in self.drawn]
        for way, name in zip(self.drawn, names):
            checks.expect(Path(way.partition(":")[2]).is_dir() and name not in ("", REAL, OTHER, AGAIN, INDEPENDENT)
                          and names.count(name) == 1, f"--drawn {way}", "NAME:FOLDER, each name once", way,
                          "Give for example shared:volumes-shared.")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write its figures."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    sets, grids = {}, []
    for way in settings.drawn:
        name, _, folder = way.partition(":")
        sets[name], grid = read_volumes(Path(folder))
        grids.append(grid)
        expect(np.allclose(grid[0], grids[0][0], atol=NEAR_MM) and len(grid[0]) == len(grids[0][0]), f"--drawn {way}",
               "the planes of the ways before", f"{grid[0][0]:g} to {grid[0][-1]:g} mm", "Draw them on one grid.")
    images = load_images(DataSettings(dataset="oasis", data=settings.slices), (settings.real, settings.other))
    expect(images.field_of_view is not None and images.shape[0] == 1, f"--slices {settings.slices}",
           "grey slices of extract_slices.py", "others", "Run extract_slices.py.")
    pixel_mm = images.field_of_view / images.shape[2]
    planes = grids[0][0] if grids else np.arange(settings.range_mm[0], settings.range_mm[1])
    for way, grid in zip(settings.drawn, grids):
        expect(abs(grid[1] - pixel_mm) < NEAR_MM, f"--drawn {way}", f"pixels of {pixel_mm:g} mm as --slices has them",
               f"{grid[1]:g} mm", "Extract slices of that size.")
    real, other = (real_slabs(images.splits[split], planes) for split in (settings.real, settings.other))
    everything = {INDEPENDENT: independent(other, settings.seed), **sets}
    if settings.vqvae:
        model, split = sampler.load_models(settings.vqvae, None, None, torch.device("cpu"))[0].model, images.splits[
            settings.real]
        with Bar(total=len(split), desc="reconstructions", unit="image") as bar:
            made = encoding.reconstruct(model, split, BATCH, bar.update)[1]
        everything = {AGAIN: real_slabs(dataclasses.replace(split, pixels=made.numpy()), planes), **everything}
    plane_mm = float(np.diff(planes).mean())
    table = consistency.figures(everything, real, other, plane_mm, pixel_mm,
                                features.load_extractor(None, torch.device("cpu")), settings.seed)
    table = {figure: {OTHER if name == "other_real" else name: own for name, own in row.items()}
             for figure, row in table.items()}
    counts = {REAL: len(real), OTHER: len(other), **{name: len(slabs) for name, slabs in everything.items()}}
    heading = (f"{len(planes)} planes, {planes[0]:g} to {planes[-1]:g} mm, {plane_mm:g} mm apart; pixels of "
               f"{pixel_mm:g} mm; seed {settings.seed}; {processor()}")
    text = markdown(table, counts)
    files.write_text(settings.out / "volumes.md", f"{heading}\n\n{text}\n")
    files.write_json(settings.out / "volumes.json", {
        "planes_mm": planes.tolist(), "pixel_mm": pixel_mm, "seed": settings.seed, "volumes": counts,
        "aim": consistency.AIM, "figures": table})
    pictures.save_picture(three_planes({REAL: real, **everything}, plane_mm, pixel_mm),
                          settings.out / "volumes.png")
    print(f"{heading}\n\n{text}")


def read_volumes(folder: Path) -> tuple[np.ndarray, tuple[np.ndarray, float]]:
    """Return the volumes of a folder as slabs, uint8 `[n, planes, height, width]`, with the places of their planes in
    mm and the width of a pixel in mm.

    Raises: UserError if there is none, or they have different grids, or a grid is not one of equal axial planes.
    """
    paths = sorted(path for path in folder.rglob("*.nii*") if path.name.endswith((".nii", ".nii.gz")))
    expect(bool(paths), f"--drawn {folder}", "NIfTI files", "none", "Give --out of sample.py --nifti.")
    slabs, grids = [], []
    for path in paths:
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        voxels, affine = np.asarray(volume.dataobj, dtype=np.float32), volume.affine
        is_axial = np.allclose(affine[:3, :3], np.diag([affine[0, 0], affine[0, 0], affine[2, 2]]), atol=NEAR_MM)
        expect(is_axial and voxels.ndim == 3 and voxels.shape[2] > 1, str(path), "a 3-D volume of axial planes with "
               "square pixels", f"shape {voxels.shape}, affine {affine.round(2).tolist()}",
               "Give --out of sample.py --nifti.")
        # [x, y, z] to [plane, row, column] as slices show them: anterior at the top, the subject's left at the right.
        slabs.append(voxels.transpose(2, 1, 0)[:, ::-1, ::-1].clip(0, 255).round().astype(np.uint8))
        grids.append((affine[2, 3] + affine[2, 2] * np.arange(voxels.shape[2]), float(affine[0, 0])))
        expect(slabs[-1].shape == slabs[0].shape and np.allclose(grids[-1][0], grids[0][0], atol=NEAR_MM), str(path),
               f"the grid of {paths[0].name}", f"shape {voxels.shape}, planes from {grids[-1][0][0]:g} mm",
               "Draw all of a folder on one grid.")
    return np.stack(slabs), grids[0]


def real_slabs(split: ImageSet, planes_mm: np.ndarray) -> np.ndarray:
    """Return a slab of each scan that reaches all planes, uint8 `[n, planes, height, width]`: its nearest slices."""
    half = np.diff(planes_mm).mean() / 2 + NEAR_MM
    by_scan: dict[str, list[int]] = {}
    for item, facts in enumerate(split.facts):
        by_scan.setdefault(facts["scan"], []).append(item)
    slabs = []
    for items in by_scan.values():
        distances = np.abs(planes_mm[:, None] - [float(split.facts[item]["position_mm"]) for item in items])
        if distances.min(1).max() <= half:
            slabs.append(split.bytes()[np.array(items)[distances.argmin(1)], 0].numpy())
    if len(slabs) < len(by_scan):
        print(f"{len(by_scan) - len(slabs)} of {len(by_scan)} real scans do not reach all planes and are left out")
    expect(len(slabs) > 1, "--slices", f"2 scans or more with a plane near each of {planes_mm[0]:g} to "
           f"{planes_mm[-1]:g} mm", len(slabs), "Extract all planes: --per-scan 400 --extent 0 1.")
    return np.stack(slabs)


def independent(slabs: np.ndarray, seed: int) -> np.ndarray:
    """Return as many slabs, each plane of which is from a slab drawn at random."""
    numbers, planes = np.arange(len(slabs))[:, None], np.arange(slabs.shape[1])
    whose = (random_numbers.uniform(seed, "independent planes", numbers, planes) * len(slabs)).long().numpy()
    return slabs[whose, planes]


def markdown(table: dict[str, dict], counts: dict[str, int]) -> str:
    """Return the figures as a table in Markdown: ratios to real volumes in brackets, an asterisk outside of the aim."""
    def cell(own: dict | None) -> str:
        if own is None or own["value"] is None:
            return "–"
        ratio = "" if own["ratio"] is None or own["ratio"] == 1 else f" (ratio {own['ratio']:.2f})"
        return as_text(own["value"], 4 if own["value"] < 1 else 2) + ratio + " *" * (own["within_aim"] is False)

    return markdown_table(["figure", *(f"{name} ({count})" for name, count in counts.items())],
                          [(figure, *(cell(row.get(name)) for name in counts)) for figure, row in table.items()])


def three_planes(sets: dict[str, np.ndarray], plane_mm: float, pixel_mm: float) -> Image.Image:
    """Return the first volume of each set through its middle: a row each of an axial, coronal and sagittal picture."""
    finest, rows = min(plane_mm, pixel_mm), []
    for name, slabs in sets.items():
        slab = torch.from_numpy(slabs[0])
        _, height, width = slab.shape
        cuts = ((slab[len(slab) // 2], pixel_mm), (slab[:, height // 2].flip(0), plane_mm),
                (slab[:, :, width // 2].flip(0), plane_mm))
        rows.append((name, torch.cat([consistency.squared(cut[None, None], (down_mm, pixel_mm), finest)
                                      for cut, down_mm in cuts])))
    return pictures.strip(rows, header=("axial", *consistency.DIRECTIONS))


if __name__ == "__main__":
    run_script(main)
