"""Trainings of the VQ-VAE that differ in one setting each -> a table: what the setting brings, and what it costs.

    python extract_slices.py --scans scans --out slices-64 --size 64 --per-scan 20
    python extract_slices.py --scans scans --out slices-64-5 --size 64 --per-scan 5
    python extract_slices.py --scans scans --out slices-64-60 --size 64 --per-scan 60
    python benchmarks/ablations.py --slices 5:slices-64-5 20:slices-64 60:slices-64-60 --out ablations

Every training sees the same number of images, and is judged on the same ones: the validation images of the
slices that come 20 a scan, so that choosing by this table leaves the test subjects alone. Run it again to go on where
it stopped; --only loss codes … does some groups alone, --table writes the table of what is done. Cost is the processor
time of an epoch, as a ratio to the default's: of a run of two epochs less that of a run of one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vqvae2.common import files
from vqvae2.evaluation import text

IMAGES_SEEN, JUDGED_ON = 20_400, "20"
DEFAULT = "default"
VARIANTS = {  # group -> {what: flags}; a key "slices" chooses the data
    "seed": {"seed 1": "--seed 1", "seed 2": "--seed 2"},
    "loss": {"squared error alone": "--ssim-weight 0", "squared error + 0.01 (1 - SSIM)": "--ssim-weight 0.01",
             "squared error + 0.1 (1 - SSIM)": "--ssim-weight 0.1",
             "squared error + 0.1 gradient error": "--ssim-weight 0 --gradient-weight 0.1"},
    "codes": {"128 codes a level": "--codebook-size 128", "256 codes a level": "--codebook-size 256",
              "1024 codes a level": "--codebook-size 1024"},
    "dimension": {"16 dimensions": "--embedding-dim 16", "128 dimensions": "--embedding-dim 128"},
    "decay": {"EMA decay 0.9": "--decay 0.9", "EMA decay 0.999": "--decay 0.999"},
    "restarts": {"no restarts": "--restart-every 0", "restarts every 100 steps": "--restart-every 100"},
    "augmentation": {"augmented": "--augment"},
    "slices": {"5 slices a scan": "5", "60 slices a scan": "60"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", nargs="+", required=True, metavar="N:FOLDER",
                        help="slices a scan, and where they are")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the reports and the table")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="groups to do")
    parser.add_argument("--images-seen", type=int, default=IMAGES_SEEN, help="by each training")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--more", default="", help="flags for every training, such as '--threads 1'")
    given = parser.parse_args()
    folders = dict(pair.split(":", 1) for pair in given.slices)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    variants = [(group, what, flags) for group in given.only for what, flags in VARIANTS[group].items()]
    for group, what, flags in [("", DEFAULT, ""), *variants]:
        data = folders[flags if group == "slices" else JUDGED_ON]
        row = measure(given, Path(data), Path(folders[JUDGED_ON]), group, what, "" if group == "slices" else flags)
        if row:
            rows.append(row)
            write(rows, given.out)


def measure(given: argparse.Namespace, data: Path, judged: Path, group: str, what: str, flags: str) -> dict | None:
    """Train, or go on, and judge one variant; None where it is not done and may not be trained."""
    name = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{group} {what}".strip()).replace("--", "-")
    run, report = given.out / "oasis" / name, given.out / "reports" / name
    if not (report / "metrics.json").is_file():
        if given.table:
            return None
        images = len(list((data / "train").glob("*.png")))
        print(f"{group} {what}: {flags or 'as it comes'}", flush=True)
        epochs = max(1, given.images_seen // images)
        run_script("train_vqvae.py", f"--dataset oasis --data {data} --batch 16 --epochs {epochs} "
                                     f"--pictures-every 1000 --results {given.out} --savename {name} {flags} "
                                     f"{given.more}")
        run_script("evaluate.py", f"--vqvae {run} --data {judged} --split validate --out {report}")
    figures = json.loads((report / "metrics.json").read_text())
    full, brain = (figures["reconstruction"][area] for area in ("full", "brain"))
    cost = report / "processor_seconds.json"
    if not cost.is_file() and not given.table:
        one_epoch, two_epochs = (epoch_seconds(data, flags, epochs, given.more) for epochs in (1, 2))
        cost.write_text(json.dumps(1000 * (two_epochs - one_epoch) / len(list((data / "train").glob("*.png")))))
    return {"group": group, "what": what, "flags": flags, "seed": int(what.split()[1]) if group == "seed" else 0,
            "images_seen": int(files.read_rows(run / "log.csv")[-1]["images_seen"]),
            "processor_seconds_per_1000_images": json.loads(cost.read_text()) if cost.is_file() else None,
            "ssim": full["ssim"]["mean"], "ssim_min": full["ssim"]["min"], "ssim_brain": brain["ssim"]["mean"],
            "psnr": full["psnr"]["mean"], "raw_bits_per_pixel": figures["raw_bits_per_pixel"],
            "codes": figures["codes"]}


def epoch_seconds(data: Path, flags: str, epochs: int, more: str) -> float:
    """Processor seconds of a training of so many epochs, all of it; what others do on the machine hardly counts."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_script("train_vqvae.py", f"--dataset oasis --data {data} --batch 16 --epochs {epochs} --pictures-every 9 "
                                     f"--start-steps 5 --results {folder} --savename cost {flags} {more}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))


def run_script(script: str, arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *arguments.split()], check=True)


def write(rows: list[dict], out: Path) -> None:
    """Write ablations.json and ablations.md."""
    (out / "ablations.json").write_text(json.dumps(rows, indent=1) + "\n")
    key = "processor_seconds_per_1000_images"
    default = next((row[key] for row in rows if row["what"] == DEFAULT), None)
    costs = [row[key] / default if row[key] and default else None for row in rows]
    table = [(row["what"], str(row["seed"]), f"{row['ssim']:.3f}", f"{row['ssim_min']:.3f}", f"{row['ssim_brain']:.3f}",
              f"{row['psnr']:.2f}", f"{row['raw_bits_per_pixel']:.3f}",
              *(f"{row['codes'][level]['used']:.0f}, {row['codes'][level]['perplexity']:.0f}, "
                f"{row['codes'][level]['shuffle_drop']:.3f}" for level in ("top", "bottom")),
              "–" if cost is None else f"{cost:.2f}") for row, cost in zip(rows, costs)]
    columns = ("variant", "seed", "SSIM", "minimum", "brain", "PSNR (dB)", "raw bits per pixel",
               "top: used, perplexity, drop", "bottom: the same", "cost")
    (out / "ablations.md").write_text(text.markdown_table(columns, table) + "\n")


if __name__ == "__main__":
    main()
