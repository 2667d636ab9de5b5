"""How fast extract_slices.py is, as ratios to named references in the same run, on the same files.

    python benchmarks/extract.py --scans ~/data/scans
    python benchmarks/extract.py --scans ~/data/scans --planes axial coronal sagittal --per-scan 60 --most 8
    python benchmarks/extract.py --scans ~/data/scans --write-to /dev/shm       # without the disk

Extraction is all that is done for a scan (scan_slices.work_on). References, for each file:
    nibabel       nibabel.load(f).get_fdata(), brought to RAS, and the same slices drawn, encoded and written
    inflation     the file inflated by the same library, in chunks into memory that is used again: the fastest way known
    one call      the same by the library's own decompress(), which finds new memory for each file
    encoding      the same pictures, drawn before, encoded as PNGs

Each is timed on one core and on all, one after the other for each scan, in processor time, so that other work on the
machine counts little; the least of all rounds counts for each scan. Files are read once before. Peak memory is that of
a fresh process, above what it needs for its imports.
"""

import os

for library in ("OMP", "OPENBLAS", "MKL"):  # before numpy is imported
    os.environ[f"{library}_NUM_THREADS"] = "1"

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import forget_peak, peak, processor

from vqvae2.common.errors import run_script
from vqvae2.common.memory import memory_available, set_room
from vqvae2.common.names import NORMAL, SPLITS
from vqvae2.scans import volumes
from vqvae2.scans.brain import find_brain
from vqvae2.scans.finding import Scan, find_scans
from vqvae2.scans.volumes import Volume, read_volume
from vqvae2.settings import checks, parsing
from vqvae2.slices.planes import draw_plane, encode_png, plane_indices
from vqvae2.slices.scan_slices import SIDECARS, work_on, write
from vqvae2.slices.settings import ExtractSettings, Plane

try:
    from isal.igzip import decompress
except ImportError:
    from gzip import decompress


AIM = 1.25
"""The most times of inflation and encoding together that extraction may take, with 60 slices of a plane or more."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/extract.py."""

    scans: Path | None = None
    """Folder of raw scans. Default: OASIS_PATH."""
    per_scan: tuple[int, ...] = (1, 60)
    """Slices per plane and scan, one benchmark each."""
    planes: tuple[Plane, ...] = ("axial",)
    """Planes that are drawn."""
    most: int = 0
    """Use so many scans only; 0 for all."""
    write_to: Path | None = None
    """Existing folder for the slices, which are removed again. Default: the system's temporary folder."""
    rounds: int = 3
    """Times that each is measured; the least counts."""
    cores: tuple[int, ...] = ()
    """Numbers of worker processes. Default: 1, and all cores."""

    def __post_init__(self) -> None:
        checks.expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 3.")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    folder = parsing.path_from_environment(settings.scans, "OASIS_PATH", "--scans")
    checks.expect(folder.is_dir(), f"--scans {folder}", "a folder of scans", "nothing", "Give another one.")
    scans = find_scans(folder).scans[: settings.most or None]
    checks.expect(bool(scans), f"--scans {folder}", "scans", "none", "Give another folder.")
    for scan in scans:
        scan.path.read_bytes()
    first = read_volume(scans[0].path)
    print(f"{len(scans)} scans, the first {' x '.join(map(str, first.voxels.shape))} {first.voxels.dtype}, "
          f"{first.voxels.nbytes / 1e6:.1f} MB; {volumes.GzipFile.__module__}; {processor()}")
    for per_scan in settings.per_scan:
        asked = ExtractSettings(per_scan=per_scan, planes=settings.planes)
        for cores in settings.cores or dict.fromkeys((1, os.cpu_count() or 1)):
            compare(scans, asked, cores, settings.rounds, settings.write_to)
    if Path("/proc/self/clear_refs").exists():
        print_memory(scans[0], settings.planes, first.voxels.nbytes)


def compare(scans: list[Scan], asked: ExtractSettings, cores: int, rounds: int, write_to: Path | None) -> None:
    """Time everything with this number of processes and print the ratios."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=write_to) as folder, ProcessPoolExecutor(
            cores, context, set_room, (memory_available() // cores,)) as pool:
        tasks = [(scan, asked, Path(folder, str(number))) for number, scan in enumerate(scans)]
        least = np.min([list(pool.map(times_of, tasks)) for _ in range(rounds + 1)], axis=0)
    seconds = dict(zip(KINDS, least.mean(0) / cores))
    print(f"\n{asked.per_scan} slice(s) a scan in each of {len(asked.planes)} plane(s), {cores} core(s)")
    for name in KINDS:
        print(f"  {name:10s} {1000 * seconds[name]:8.1f} ms a scan")
    name = f"{asked.per_scan}-slices-{len(asked.planes)}-planes-{cores}-cores"
    print(f"  {1 / seconds['extract']:.1f} scans per second")
    print(f"ratio nibabel/extract-{name} {seconds['nibabel'] / seconds['extract']:.2f}x")
    print(f"ratio extract/inflation-{name} {seconds['extract'] / seconds['inflation']:.2f}x")
    print(f"ratio extract/inflation-in-one-call-{name} {seconds['extract'] / seconds['one call']:.2f}x")
    print(f"ratio extract/inflation+encoding-{name} "
          f"{seconds['extract'] / (seconds['inflation'] + seconds['encoding']):.3f}x (aim: at most {AIM}x)")


def times_of(task: tuple) -> list[float]:
    """Return the processor seconds of each of KINDS for one scan."""
    scan, asked, out = task
    pictures = draw_all(read_volume(scan.path), asked)
    seconds = []
    for work in KINDS.values():
        for folder in (*SPLITS, SIDECARS):
            (out / folder).mkdir(parents=True)
        begin = time.process_time()
        work(scan, asked, out, pictures)
        seconds.append(time.process_time() - begin)
        shutil.rmtree(out)  # to write over a file takes longer than to write a new one
    return seconds


def extract(scan: Scan, asked: ExtractSettings, out: Path, _: list | None = None) -> None:
    work_on(scan, asked, out, "", "")


def by_nibabel(scan: Scan, asked: ExtractSettings, out: Path, _: list) -> None:
    image = nib.as_closest_canonical(nib.load(scan.path))
    volume = Volume(image.get_fdata(), tuple(map(float, image.header.get_zooms()[:3])))
    for plane, index, picture in draw_all(volume, asked):
        write(out / "train" / f"{scan.prefix}_{plane}{index:03d}.png", encode_png(picture, asked.bits), synced=False)


def draw_all(volume: Volume, asked: ExtractSettings) -> list[tuple[str, int, np.ndarray]]:
    """Return plane, index and picture of each slice."""
    brain = find_brain(volume)
    return [(plane, index, draw_plane(volume, brain, NORMAL[plane], index, asked.size, asked.field_of_view))
            for plane in asked.planes for index in plane_indices(brain, NORMAL[plane], asked.per_scan, asked.extent)]


memory = np.empty(0, np.uint8)


def inflate_only(scan: Scan, *_: object) -> None:
    global memory
    if not memory.size:
        memory = np.empty(read_volume(scan.path).voxels.nbytes + volumes.BEGINNING_BYTES, np.uint8)
    with volumes.opened(scan.path, scan.path) as (stream, _):
        place = 0
        while count := stream.readinto(memory[place:place + volumes.CHUNK]):
            place = (place + count) % len(memory)


def inflate_in_one_call(scan: Scan, *_: object) -> None:
    decompress(scan.path.read_bytes())


def encode_only(_: Scan, asked: ExtractSettings, __: Path, pictures: list) -> None:
    for _, _, picture in pictures:
        encode_png(picture, asked.bits)


KINDS: dict[str, Callable] = {"extract": extract, "nibabel": by_nibabel, "inflation": inflate_only,
                              "one call": inflate_in_one_call, "encoding": encode_only}
"""What is timed, by its name: a function of a scan, the settings, a folder to write to, and the scan's pictures."""


def print_memory(scan: Scan, planes: tuple[Plane, ...], volume_bytes: int) -> None:
    """Print how much memory a worker takes for one scan."""
    with tempfile.TemporaryDirectory() as folder:
        for per_scan in (1, 60):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                task = (scan, ExtractSettings(per_scan=per_scan, planes=planes), Path(folder, str(per_scan)))
                before, most = pool.submit(peak_of_a_scan, task).result()
            taken = most - before
            print(f"\npeak memory, {per_scan} slice(s): {taken / 1e6:.0f} MB above {before / 1e6:.0f} MB of imports\n"
                  f"ratio memory/volume-{per_scan}-slices {taken / volume_bytes:.2f}x")


def peak_of_a_scan(task: tuple) -> tuple[int, int]:
    """Return the bytes that this process has before it extracts a scan, and the most that it has meanwhile."""
    before = forget_peak()
    extract(*task)
    return before, peak()


if __name__ == "__main__":
    run_script(main)
