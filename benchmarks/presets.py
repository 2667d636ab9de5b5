"""Every preset, trained on the same slices for the same number of images -> the table of docs/coming-from.md.

    python extract_slices.py --scans scans --out slices-256 --per-scan 20
    python extract_slices.py --scans scans --out slices-128 --size 128 --per-scan 20
    python extract_slices.py --scans scans --out slices-64 --size 64 --per-scan 20
    python benchmarks/presets.py --slices slices-256 slices-128 slices-64 --out presets-trained

Each is trained as its file in vqvae2/presets/ says but for the data (slices with their manifest, for all), the epochs
that make --images-seen, and micro-batches that fit a small machine (the global batch stays the preset's). Those of
large batches are trained once more with small ones. Beside each stands the recipe of vqvae2-256 at the same size. All
are judged on the test subjects' slices. Run it again to go on where it stopped; --only does some of them, --table
writes the table of what is done and trains nothing.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch
from common import processor
from PIL import Image

from vqvae2.common import files
from vqvae2.evaluation import text as report_text
from vqvae2.settings import presets

IMAGES_SEEN, MICRO_BATCH = 13_600, 8
BEST = "vqvae2-256"
LARGE_BATCH, SMALL_BATCH = 64, 8
"""A preset of large batches is trained a second time with small ones: of the same images they make more steps."""
PAGE = ROOT / "docs" / "coming-from.md"
MARK = "presets"


class Training(NamedTuple):
    """One row of the table."""

    preset: str
    size: int
    global_batch: int

    def run(self, out: Path) -> Path:
        """Return the folder of the trained model."""
        return out / "oasis" / f"{self.preset}-at-{self.size}{self._batch_if_other('-batch-')}"

    def report(self, out: Path) -> Path:
        """Return the folder that evaluate.py writes to."""
        return out / "reports" / self.run(out).name

    def label(self) -> str:
        """Return how its command differs from that of another preset."""
        size = "" if self.size == presets.load(self.preset, "vqvae")["size"] else f" --size {self.size}"
        return f"`{self.preset}{size}{self._batch_if_other(' --batch ')}`"

    def _batch_if_other(self, before: str) -> str:
        own = presets.load(self.preset, "vqvae")["batch"]
        return "" if self.global_batch == own else f"{before}{self.global_batch}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", nargs="+", type=Path, required=True, metavar="FOLDER",
                        help="slices of the same scans, a folder for each size")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the reports and the table")
    parser.add_argument("--only", nargs="+", choices=presets.names(), help="presets to train")
    parser.add_argument("--images-seen", type=int, default=IMAGES_SEEN, help="by each training")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="flags for every training, last of all")
    given = parser.parse_args()
    folders = {size_of(folder): folder for folder in given.slices}
    given.out.mkdir(parents=True, exist_ok=True)
    for training in trainings(given.only or presets.names()):
        if training.size in folders and not given.table and not done(training, given.out):
            train_and_judge(training, folders[training.size], given)
    write({training: report for training in trainings(presets.names()) if (report := done(training, given.out))}, given)


def trainings(names: list[str]) -> list[Training]:
    """Return all trainings: each preset as it is, large batches made small, and the best one's recipe at each size."""
    wanted = set()
    for name in names:
        own = presets.load(name, "vqvae")
        wanted |= {Training(name, own["size"], own["batch"]),
                   Training(BEST, own["size"], presets.load(BEST, "vqvae")["batch"])}
        if own["batch"] >= LARGE_BATCH:
            wanted.add(Training(name, own["size"], SMALL_BATCH))
    return sorted(wanted, key=lambda training: (
        training.size, training.preset == BEST, training.preset, -training.global_batch))


def size_of(folder: Path) -> int:
    """Return the height of a folder's images."""
    with Image.open(next((folder / "train").glob("*.png"))) as picture:
        return picture.height


def done(training: Training, out: Path) -> dict | None:
    """Return what evaluate.py has written of a training; None where it is not done."""
    path = training.report(out) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def last_row(training: Training, out: Path) -> dict[str, str]:
    """Return the last row of a training's log."""
    return files.read_rows(training.run(out) / "log.csv")[-1]


def train_and_judge(training: Training, slices: Path, given: argparse.Namespace) -> None:
    """Train a preset, or go on, and judge it."""
    epochs = max(1, given.images_seen // len(list((slices / "train").glob("*.png"))))
    print(f"{training.label()} at {training.size} x {training.size}", flush=True)
    script("train_vqvae.py", "--preset", training.preset, "--dataset", "oasis", "--data", slices,
           "--size", training.size, "--savename", training.run(given.out).name, "--results", given.out,
           "--epochs", epochs, "--batch", min(training.global_batch, MICRO_BATCH), "--global-batch",
           training.global_batch, "--pictures-every", epochs, *given.more)
    script("evaluate.py", "--vqvae", training.run(given.out), "--data", slices, "--out", training.report(given.out))


def script(name: str, *arguments: object) -> None:
    """Run one of the project's scripts."""
    subprocess.run([sys.executable, str(ROOT / name), *map(str, arguments)], check=True)


def write(found: dict[Training, dict], given: argparse.Namespace) -> None:
    """Write the table, and what it is of, into the page."""
    if not found:
        print("nothing is trained yet: no table")
        return
    columns = ("preset", "size", "raw bits per pixel", "steps", "SSIM mean", "min", "max", "brain, mean",
               f"{BEST} at this size: SSIM mean", "codes used: top, bottom")
    best = {training.size: f"{report['reconstruction']['full']['ssim']['mean']:.3f}"
            for training, report in found.items() if training.preset == BEST}
    rows = []
    for training, report in found.items():
        full, brain = (report["reconstruction"][area]["ssim"] for area in ("full", "brain"))
        rows.append((training.label(), str(training.size), f"{report['raw_bits_per_pixel']:.3f}",
                     last_row(training, given.out)["step"], *(f"{full[key]:.3f}" for key in ("mean", "min", "max")),
                     f"{brain['mean']:.3f}", "" if training.preset == BEST else best.get(training.size, "–"),
                     ", ".join(f"{level['used']:.0f} of {level['size']}" for level in report["codes"].values())))
    seen = sorted({int(last_row(training, given.out)["images_seen"]) for training in found})
    judged = next(iter(found.values()))
    said = (f"{' or '.join(f'{number:,}' for number in seen)} images seen by each, one run, seed 0; {judged['images']} "
            f"test slices of {judged['subjects']} unseen subjects. {processor()}, no GPU, torch "
            f"{torch.__version__.split('+')[0]}.")
    text = given.page.read_text(encoding="utf-8")
    if f"<!-- {MARK} -->" not in text:
        sys.exit(f"{given.page}: expected the lines <!-- {MARK} --> and <!-- end -->, found none. Put them back.")
    files.write_text(given.page, report_text.fill(
        text, MARK, f"{report_text.markdown_table(columns, rows)}\n\n{said}"))
    print(f"written: {given.page}, {len(rows)} trainings")


if __name__ == "__main__":
    main()
