"""Scan files for tests: tiny volumes, written as any format and in any storage order."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import files_in
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff

from vqvae2.scans.volumes import Volume

STORAGES = ["".join(letters) for order in itertools.permutations(("RL", "AP", "SI"))
            for letters in itertools.product(*order)]
"""All 48 orders and flips of three axes."""


def block(shape=(12, 14, 10), margin=2, seed=0) -> np.ndarray:
    """A block of random values 100…199 in a background of 0, int16, in RAS order; no two views of it are alike."""
    voxels = np.zeros(shape, np.int16)
    inside = tuple(slice(margin, length - margin) for length in shape)
    voxels[inside] = np.random.default_rng(seed).integers(100, 200, voxels[inside].shape)
    return voxels


def ellipsoid(shape, radii, middle=None) -> np.ndarray:
    """bool array, True inside; radii in voxels."""
    middle = middle or [length / 2 - 0.5 for length in shape]
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(grid, middle, radii)) <= 1


def volume_of(voxels: np.ndarray, sizes=(1.0, 1.0, 1.0), **more) -> Volume:
    """A volume as it comes from a file in RAS order."""
    return Volume(voxels, sizes, **more)


def stored(ras: np.ndarray, sizes=(1.0, 1.0, 1.0), storage="RAS") -> tuple[np.ndarray, np.ndarray]:
    """Return a RAS array as a scanner would store it, and the matrix that says so."""
    from_ras = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(storage)))
    return apply_orientation(ras, from_ras), np.diag([*sizes, 1.0]) @ inv_ornt_aff(from_ras, ras.shape)


def save(path: Path, ras: np.ndarray, sizes=(1.0, 1.0, 1.0), storage="RAS", kind=nib.Nifti1Image) -> Path:
    """Write a RAS array as a file of the given kind and storage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels, affine = stored(ras, sizes, storage)
    nib.save(kind(voxels, affine), path)
    return path


def save_analyze(path: Path, ras: np.ndarray, sizes=(1.0, 1.0, 1.0), storage="RAS") -> Path:
    """Write an Analyze pair (.hdr and .img), which cannot say how it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels, affine = stored(ras, sizes, storage)
    image = nib.AnalyzeImage(voxels, None)
    image.header.set_zooms(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    nib.save(image, path)
    return path


def save_bids(folder: Path, subjects: int, shape=(12, 14, 10)) -> Path:
    """Write a BIDS tree of different blocks, and its participants.tsv."""
    for number in range(1, subjects + 1):
        save(folder / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz", block(shape, seed=number))
    people = "".join(f"sub-{n:02d}\t{20 + n}\t{'fm'[n % 2]}\n" for n in range(1, subjects + 1))
    (folder / "participants.tsv").write_text("participant_id\tage\tgender\n" + people)
    return folder


def save_series(path: Path, *seeds: int) -> Path:
    """Write a 4-D series of blocks."""
    nib.save(nib.Nifti1Image(np.stack([block(seed=seed) for seed in seeds], -1), np.eye(4)), path)
    return path


def slices_in(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of its bytes, but what the next extraction is told of each scan."""
    return {name: content for name, content in files_in(folder).items() if not name.startswith(".scans/")}
