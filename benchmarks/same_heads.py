"""How surely the same head is found under two names, and how long 3,000 scans take.

    python benchmarks/same_heads.py --scans scans

Each scan is copied in several ways on a grid of 2 mm, and the copies of each kind are compared with all scans as they
are. A copy is found if `likely_same` names its pair; a pair of two people that it names is false. The kinds:

    warped       displaced smoothly by 2 mm (standard deviation), each axis longer or shorter by up to 3 %
    noisy        noise of 6 % of the brightest voxels
    re-cropped   8 to 20 mm missing at the bottom, in half of the copies 4 to 8 mm at the back, other edges of the mask
    re-scanned   turned by 4 degrees about each axis (standard deviation) and shifted, brightness uneven by 8 % and on
                 another curve (exponents 0.85 to 1.2), noise of 3 %, other edges of the mask
    all at once  all of these, turned by 8 degrees, uneven by 15 %, exponents 0.7 to 1.4: beyond what is promised
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from common import processor

from vqvae2.common.errors import run_script
from vqvae2.scans import same_heads
from vqvae2.scans.brain import find_brain
from vqvae2.scans.finding import find_scans
from vqvae2.scans.volumes import Volume, read_volume
from vqvae2.settings import checks, parsing

SIDE, MM = 112, 2.0
KINDS = ("warped", "noisy", "re-cropped", "re-scanned", "all at once")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/same_heads.py."""

    scans: Path
    """Folder of stripped T1-weighted scans, of one person each."""
    seed: int = 0
    """Seed of the copies."""
    many: int = 3000
    """Number of scans whose comparison is timed: the scans, over and over, with other noise."""

    def __post_init__(self) -> None:
        checks.expect(self.scans.is_dir(), f"--scans {self.scans}", "a folder", "none", "Correct the path.")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its figures."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    heads, copies = [], {kind: [] for kind in KINDS}
    seconds = 0.0
    for number, scan in enumerate(tqdm(find_scans(settings.scans).scans, unit="scan", leave=False)):
        volume = read_volume(scan.path)
        brain = find_brain(volume)
        start = time.process_time()
        heads.append(same_heads.coarse_head(volume, brain))
        seconds += time.process_time() - start
        whole = on_2_mm(volume)
        for kind in KINDS:
            random = np.random.default_rng([settings.seed, number, KINDS.index(kind)])
            copy = Volume(copied(whole, kind, random), (MM,) * 3)
            copies[kind].append(same_heads.coarse_head(copy, find_brain(copy)))
    people = list(range(len(heads)))
    print(f"{len(heads)} scans, {processor()}; a coarse head takes {1000 * seconds / len(heads):.1f} ms of CPU")
    print(f"pairs of different people that are named: {len(same_heads.likely_same(heads, people))} of "
          f"{len(heads) * (len(heads) - 1) // 2}")
    for kind, others in copies.items():
        pairs = same_heads.likely_same([*heads, *others], [*people, *(-1 - person for person in people)])
        right = {first for first, second, _ in pairs if second == first + len(heads)}
        alone = sum(bool(same_heads.likely_same([head, other], ["a", "b"])) for head, other in zip(heads, others))
        print(f"{kind:12} found {len(right)} of {len(others)} ({len(right) / len(others):.1%}), beside nothing else "
              f"{alone}; pairs of different people that are named: {len(pairs) - len(right)}")
    random = np.random.default_rng(settings.seed)
    many = [np.clip(heads[i % len(heads)] + random.integers(-20, 21, heads[0].shape), 0, 255).astype(np.uint8)
            for i in range(settings.many)]
    start = time.monotonic()
    pairs = same_heads.likely_same(many, list(range(len(many))))
    print(f"{len(many)} scans are compared in {time.monotonic() - start:.0f} s; {len(pairs)} pairs")


def on_2_mm(volume: Volume) -> np.ndarray:
    """Return a volume's brain in the middle of a grid of 2 mm, 1 for its brightest."""
    brain = find_brain(volume)
    part = brain.around(volume.voxels.shape)
    voxels = volume.scaled(volume.voxels[tuple(part)]).astype(np.float32)
    for axis in range(3):
        length = part[axis].stop - part[axis].start
        overlaps = same_heads.overlaps(length, length / 2, MM / volume.voxel_size_mm[axis], SIDE)
        voxels = np.moveaxis(np.tensordot(overlaps, voxels, (1, axis)), 0, axis)
    return np.clip(voxels / brain.high, 0, 1.2)


def copied(whole: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """Return a copy of a head of one of KINDS, float32 [112, 112, 112]."""
    every = kind == "all at once"
    voxels = whole
    if every or kind in ("warped", "re-scanned"):
        mapped = np.eye(3)
        if kind != "warped":
            degrees = np.clip(random.normal(0, 8 if every else 4, 3), -15, 15)
            mapped = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
        if kind != "re-scanned":
            mapped = mapped @ np.diag(random.uniform(0.97, 1.03, 3))
        places = np.indices(voxels.shape).astype(np.float32) - (SIDE - 1) / 2
        if kind != "re-scanned":
            places += np.stack([smooth(random, 6.0, 2.0 / MM) for _ in range(3)])
        places = np.tensordot(mapped.astype(np.float32), places, 1)
        places += (random.uniform(-6, 6, 3).astype(np.float32) + (SIDE - 1) / 2)[:, None, None, None]
        voxels = ndimage.map_coordinates(voxels, places, order=1, prefilter=False)
    inside = voxels > 0.1
    if every or kind == "re-scanned":
        voxels = voxels * np.exp(smooth(random, 14.0, 0.15 if every else 0.08))
        voxels = np.maximum(voxels, 0) ** (random.uniform(0.7, 1.4) if every else random.uniform(0.85, 1.2))
    if every or kind in ("noisy", "re-scanned"):
        voxels = voxels + random.normal(0, 0.06 if kind == "noisy" else 0.03, voxels.shape).astype(np.float32)
    if every or kind in ("re-cropped", "re-scanned"):
        inside &= ndimage.gaussian_filter(inside.astype(np.float32), 2.0) > random.uniform(0.3, 0.7)
    voxels = np.where(inside, np.maximum(voxels, 0.01), 0)
    if every or kind == "re-cropped":
        voxels[:, :, :np.flatnonzero(inside.any((0, 1)))[0] + random.integers(4, 11)] = 0
        if random.random() < 0.5:
            voxels[:, :np.flatnonzero(inside.any((0, 2)))[0] + random.integers(2, 5)] = 0
    return voxels.astype(np.float32)


def smooth(random: np.random.Generator, width: float, deviation: float) -> np.ndarray:
    """Return smooth noise of this standard deviation on the grid; `width` is in its cells."""
    coarse = ndimage.gaussian_filter(random.normal(size=(SIDE // 2,) * 3), width / 2)
    noise = ndimage.zoom(coarse, 2, order=1)
    return (noise * deviation / noise.std()).astype(np.float32)


if __name__ == "__main__":
    run_script(main)
