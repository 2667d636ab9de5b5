"""Time and memory of `vqvae2 predict --nifti` for one scan, above the program with its models loaded.

    python benchmarks/nifti.py sub-01_T1w.nii.gz --vqvae vqvae-128              # as it is, and in three other types
    python benchmarks/nifti.py sub-01_T1w.nii.gz --vqvae vqvae-128 --planes axial coronal sagittal

The scan is written anew as each number type, below --work, and predicted in a process of its own. "seconds" are wall
clock time and processor time from the scan's file to its last file; "memory" is the peak of the resident set above what
it was before, in bytes and in volumes as they are stored. Before that, a scan of 20 x 20 x 20 voxels has gone through
the model, plane by plane: what Python and torch load at first use is the program's. Linux.
"""

import contextlib
import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import tyro

from vqvae2.evaluation import prediction, whole_scans
from vqvae2.scans import volumes

TYPES = ("float32", "int16", "uint8")


@dataclass(frozen=True)
class Given:
    """Settings of the benchmark."""

    scan: Annotated[Path, tyro.conf.Positional]
    """A scan, as NIfTI."""
    vqvae: str = "vqvae-128"
    """The VQ-VAE."""
    planes: tuple[str, ...] = ("axial",)
    """Planes that it is given."""
    batch: int = 2
    """Planes at a time."""
    types: tuple[str, ...] = TYPES
    """Number types as which the scan is written."""
    top: tuple[str, ...] = ()
    """Its top prior, for the likelihood."""
    bottom: tuple[str, ...] = ()
    """Its bottom prior."""
    restore: bool = False
    """Make maps of what does not belong too."""
    work: Path = Path("/tmp/nifti-benchmark")
    """Folder of scans and results."""


def resident(what: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def predict(path: Path, given: Given, batch: int) -> None:
    out = given.work / f"{path.stem}-{time.time_ns()}"
    settings = prediction.PredictSettings(
        vqvae=(given.vqvae,), input=(path,), out=out, nifti=True, planes=given.planes, batch=batch, top=given.top,
        bottom=given.bottom, restore=given.restore)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        whole_scans.predict(settings)


def measure(kind: str, given: Given) -> None:
    """Print the row of one number type."""
    source = nib.load(given.scan)
    values = np.asarray(source.dataobj, np.float32)
    if kind != "float32":
        values = values / values.max() * (200 if kind == "uint8" else 4000)
    path, small = given.work / f"{kind}.nii", given.work / "small.nii"
    nib.save(nib.Nifti1Image(values.astype(kind), source.affine), path)
    nib.save(nib.Nifti1Image(np.pad(np.random.default_rng(0).integers(9, 99, (12,) * 3), 4).astype(np.int16),
                             np.diag([9, 9, 9, 1])), small)
    size = values.size * np.dtype(kind).itemsize
    del values, source
    gc.collect()
    models = whole_scans.load_models(prediction.PredictSettings(
        vqvae=(given.vqvae,), input=(path,), out=given.work, nifti=True, planes=given.planes, top=given.top,
        bottom=given.bottom, restore=given.restore))
    whole_scans.load_models = lambda _: models
    predict(small, given, 1)
    volumes._spare = np.empty(0, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")
    before, began, processor = resident("VmRSS"), time.perf_counter(), time.process_time()
    predict(path, given, given.batch)
    seconds, processor, memory = (time.perf_counter() - began, time.process_time() - processor,
                                  resident("VmHWM") - before)
    print(f"| {kind} | {size / 1e6:.1f} | {seconds:.1f} | {processor:.1f} | {memory / 1e6:.0f} | {memory / size:.2f} |",
          flush=True)


def main() -> None:
    """Print a row for each number type."""
    given = tyro.cli(Given, description=__doc__)
    given.work.mkdir(parents=True, exist_ok=True)
    print(f"| type | volume, MB | wall, s | processor, s | memory, MB | volumes |\n|{'---|' * 6}", flush=True)
    for kind in given.types:
        if (child := os.fork()) == 0:
            measure(kind, given)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
