"""The most memory that reading and drawing a scan takes, for each voxel, beside what is asked for by its header.

    python benchmarks/scan_memory.py              # 128 and 256 voxels a side

"asked" must be above "peak" in every row; the two differ most for small scans, where BYTES_BESIDE is most of it.
"""

import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np

from vqvae2.scans import headers, volumes
from vqvae2.scans.finding import Scan
from vqvae2.slices.scan_slices import draw_slices
from vqvae2.slices.settings import ExtractSettings

SETTINGS = ExtractSettings(planes=("axial", "coronal", "sagittal"), per_scan=3)


def made_up(side: int) -> dict[str, np.ndarray]:
    """Return balls of noise, each of another kind."""
    grid = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32)] * 3, indexing="ij")
    radius = sum(axis**2 for axis in grid)
    noise = np.random.default_rng(0).normal(0, 1, (side,) * 3).astype(np.float32)
    stripped = np.where(radius < 0.6, 500 + 50 * noise, 0)
    head = np.where((radius < 0.9) & (radius > 0.8), 800, stripped) + abs(noise) * 9 + 3
    return {"uint8": (stripped / 4).clip(0, 255).astype(np.uint8), "int16": stripped.astype(np.int16),
            "float32": stripped, "float64": stripped.astype(np.float64), "head, int16": head.astype(np.int16),
            "float32, NaN outside": np.where(radius < 0.6, stripped, np.nan).astype(np.float32)}


def measured(path: Path) -> tuple[int, int]:
    """Return the peak of memory, and the most bytes that were asked for."""
    asked, real = [], headers.expect_bytes
    headers.expect_bytes = lambda name, needed, what: asked.append(needed) or real(name, needed, what)
    volumes._spare = np.empty(0, np.uint8)  # the voxels of the scan before are used again otherwise
    tracemalloc.start()
    list(draw_slices(Scan(path, path.name, "p"), SETTINGS, {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    headers.expect_bytes = real
    return peak, max(asked)


def main() -> None:
    """Print a row for each kind and size."""
    print("| voxels a side | kind | peak, bytes a voxel | asked, bytes a voxel |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side in (128, 256):
            for kind, voxels in made_up(side).items():
                path = Path(folder, "a.nii")
                nib.save(nib.Nifti1Image(voxels, np.diag([224 / side] * 3 + [1])), path)
                peak, asked = measured(path)
                print(f"| {side} | {kind} | {peak / side**3:.2f} | {asked / side**3:.2f} |", flush=True)


if __name__ == "__main__":
    main()
