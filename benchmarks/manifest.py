"""How long a manifest of a large archive takes until its first image is read, and how much memory.

    python benchmarks/manifest.py
    python benchmarks/manifest.py --rows 400000 --rounds 1

A manifest as extract_slices.py writes it is made in a temporary folder, of 3 planes of some thousand scans, without
images. A fresh process lists its images, checks that all ranks would see the same, looks for subjects in two splits and
makes the data's hash. Printed are the least times of all rounds, by the clock and of the processor (on a busy machine
the clock's says little), and the most memory, torch included, of which a process takes about 220 MB before it begins.
"""

import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from common import processor

from vqvae2.common.errors import run_script
from vqvae2.settings import checks, parsing
from vqvae2.slices.extraction import COLUMNS

SLICES = 100
"""Slices of each plane of a scan."""
IN_A_FRESH_PROCESS = """
import json, resource, sys, time
from pathlib import Path
from vqvae2.images import dataset, listing, manifest
from vqvae2.images.settings import DataSettings

began, clock = time.process_time(), time.perf_counter()
folder, files = listing.list_files(DataSettings(data=Path(sys.argv[1])))
listed = time.perf_counter() - clock
manifest.in_one_hash(files)
listing.shared_subjects(files)
dataset.hashes_of(files, dict.fromkeys(dataset.SPLITS, ()), [])
print(json.dumps([listed, time.perf_counter() - clock, time.process_time() - began,
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/manifest.py."""

    rows: int = 1_000_000
    """Rows of the manifest."""
    rounds: int = 3
    """Times that it is read; the least time counts."""

    def __post_init__(self) -> None:
        checks.expect(self.rows >= 1, "--rows", "at least 1", self.rows, "The default is 1000000.")
        checks.expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 3.")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its figures."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder) / "manifest.csv", settings.rows)
        print(f"{settings.rows:,} rows of {len(COLUMNS)} columns, "
              f"{(Path(folder) / 'manifest.csv').stat().st_size / 1e6:.0f} MB")
        rounds = [json.loads(subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, folder], cwd=ROOT, check=True,
                                            capture_output=True, text=True).stdout) for _ in range(settings.rounds)]
    listed, all_checks, processor_time, memory = map(min, zip(*rounds))
    print(f"listed after {listed:.1f} s, all checks after {all_checks:.1f} s ({processor_time:.1f} s of the "
          f"processor), {memory / 1e6:.0f} MB at most")


def write_manifest(path: Path, count: int) -> None:
    """Write a manifest of `count` slices of scans of 188 voxels, two sessions of each subject."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number in range(count):
            scan, place = divmod(number, 3 * SLICES)
            plane, index = ("axial", "coronal", "sagittal")[place // SLICES], 40 + place % SLICES
            subject, session = f"OAS3{scan // 2:04d}", f"d{189 + scan % 2 * 365:04d}"
            split = ("train", "train", "validate", "test")[scan // 2 % 4]
            image_hash, scan_hash = (hashlib.sha256(f"{kind}{n}".encode()).hexdigest() for kind, n in (
                ("image", number), ("scan", scan)))
            writer.writerow({
                "image": f"{split}/{subject}_{session}_{plane}{index:03d}.png", "split": split, "subject": subject,
                "session": session, "scan": f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T1w.nii.gz",
                "plane": plane, "index": index, "position_mm": f"{index - 94.5 + scan % 7 / 7:.3f}",
                "low": 200 + scan % 50, "high": 1000 + scan % 300, "sha256": image_hash, "orientation": "RAS",
                "orientation_from": "sform", "background": "zero", "nan_voxels": 0, "age": 60 + scan % 35,
                "sex": "FM"[scan % 2], "scan_sha256": scan_hash, "voxels": f"i2-188x228x200-{scan_hash[:8]}",
                "archive": "bids", "voxel_size_mm": "1x1x1", "brain_mm": f"{140 + scan % 20}x{170 + scan % 15}x156"})


if __name__ == "__main__":
    run_script(main)
