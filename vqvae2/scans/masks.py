"""Volume and the brain mask that lies beside it -> the volume without what is outside of the mask.

A mask is a scan's own if it is in the scan's folder and their names differ in nothing but what they are of:

    sub-01_ses-1_desc-preproc_T1w.nii.gz    sub-01_ses-1_desc-brain_mask.nii.gz    (BIDS: the other entities are equal)
    mri/T1.mgz                              mri/brainmask.mgz                      (FreeSurfer)
    p01_T1.nii.gz                           p01_brain_mask.nii.gz, p01_T1_brain_mask.nii.gz
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from vqvae2.scans.headers import MOST_DIFFERENCE_OF_SIZES, expect_bytes, expect_usable
from vqvae2.scans.identities import bare_name, stem_of
from vqvae2.scans.volumes import Volume
from vqvae2.scans.words import words_of

STRIPPED = re.compile(r"(?:^|[-_. ])(?:brain|brainmask|bet|strip|(?:skull)?stripped|masked)(?:[-_. ](?:t1w?|gfc))*$"
                      r"|^norm$|_desc-(?:brain|bet|stripped|skullstripped|masked)_", re.IGNORECASE)
"""Names of scans from which the skull was removed already: they need no mask."""
BYTES_IF_SCALED = 28
"""The memory for each voxel of a mask or a scan that becomes float64."""
MOST_APART_VOXELS = 0.5
"""How far the corners of a scan and of its mask may lie apart, in voxels."""


def mask_among(scan: str, beside: Iterable[str], suffixes: Sequence[str]) -> str | None:
    """Return the name of a scan's mask among the names of the files in its folder; None if there is none.

    Args:
        scan: the scan's file name.
        beside: the file names in its folder.
        suffixes: how names of masks end, without the format; an earlier one counts before a later one.
    """
    stem = stem_of(scan) or scan
    if STRIPPED.search(stem):
        return None
    candidates = [(name, mask) for name in sorted(beside) if (mask := stem_of(name)) is not None and name != scan]
    for suffix in suffixes:
        for name, mask in candidates:
            if (end := re.search(rf"(?:^|[-_. ]){re.escape(suffix)}$", mask, re.IGNORECASE)) and _is_of(
                    stem, mask[:end.start()]):
                return name
    return None


def _is_of(stem: str, rest: str) -> bool:
    """Return whether a scan's name and what is left of a mask's name, without its ending, are of the same image."""
    if not {*words_of(rest)} <= {*words_of(stem)} | {"desc"}:  # FLAIR_brain_mask, or lesion_brain_mask, beside a T1
        return False
    if stem.startswith("sub-"):
        return _entities(stem) == _entities(rest)
    return bare_name(stem) == bare_name(rest)


def _entities(stem: str) -> frozenset[str]:
    """Return BIDS entities, such as run-1, but the description."""
    return frozenset(part for part in stem.split("_") if "-" in part and not part.startswith("desc-"))


def within_mask(volume: Volume, mask: Volume) -> Volume:
    """Return the volume with background outside of the mask; the voxels of `volume` are overwritten.

    Args:
        volume: a scan.
        mask: on the same grid. One value beside 0 is brain, and of probabilities (0…1) what is above a half. In an MGH
            file, such as FreeSurfer's brainmask, what is above 1, since 1 stands for voxels removed by hand.
    Raises: UnusableScan if the grids differ, if the mask has other values (labels, percentages), or is empty.
    """
    same = volume.voxels.shape == mask.voxels.shape and np.allclose(
        volume.voxel_size_mm, mask.voxel_size_mm, rtol=MOST_DIFFERENCE_OF_SIZES)
    if same and volume.affine is not None and mask.affine is not None:
        corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(volume.voxels.shape) - 1)
        apart = (corners @ (volume.affine - mask.affine)[:3, :3].T + (volume.affine - mask.affine)[:3, 3])
        same = bool(np.abs(apart).max() <= MOST_APART_VOXELS * min(volume.voxel_size_mm))
    expect_usable(same, volume.name, f"its brain mask {mask.name} on the same grid", f"{_grid(mask)} beside "
                  f"{_grid(volume)} of the scan", "Resample the mask, or give --mask-suffix none.")
    becomes_float = (mask.slope, mask.inter) != (1, 0) or volume.background is None
    a_voxel = volume.voxels.itemsize + 2 * mask.voxels.itemsize + (BYTES_IF_SCALED if becomes_float else 2)
    expect_bytes(volume.name, volume.voxels.size * a_voxel, f"its brain mask {mask.name}")
    values = mask.scaled(mask.voxels) if (mask.slope, mask.inter) != (1, 0) else mask.voxels
    positive = values[values != 0]
    least, largest = (positive.min(), positive.max()) if positive.size else (1, 1)
    is_intensity = mask.name.lower().endswith((".mgz", ".mgh")) and largest > 1
    expect_usable(is_intensity or least == largest > 0 or 0 < least <= largest <= 1, volume.name,
                  f"one value beside 0 in its brain mask {mask.name}, or probabilities up to 1",
                  f"values from {least:g} to {largest:g}", "Make a mask of 0 and 1, or give --mask-suffix none.")
    outside = values <= (1 if is_intensity else 0 if least == largest else 0.5)
    expect_usable(not outside.all(), volume.name, f"a brain in its mask {mask.name}", "an empty one",
                  "Repair the mask, or give --mask-suffix none.")
    if volume.background is None:  # no stored number stands for 0
        volume = replace(volume, voxels=volume.scaled(volume.voxels).astype(np.float32), slope=1.0, inter=0.0,
                         background=0.0)
    volume.voxels[outside] = volume.background
    if mask.geometry:
        volume = replace(volume, geometry="; ".join(filter(None, (volume.geometry, f"its mask: {mask.geometry}"))))
    return volume if volume.not_finite is None else replace(volume, not_finite=volume.not_finite & ~outside)


def _grid(volume: Volume) -> str:
    shape, sizes = (" x ".join(f"{each:.4g}" for each in of) for of in (volume.voxels.shape, volume.voxel_size_mm))
    place = "" if volume.affine is None else " from " + ", ".join(f"{at:.4g}" for at in volume.affine[:3, 3])
    return f"{shape} voxels of {sizes} mm{place}"
