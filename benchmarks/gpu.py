"""All that is asked of a GPU, in one command of at most 9 minutes: does the chain run there, is it right, is it fast?

    python benchmarks/gpu.py --out gpu                   # on a machine with a GPU
    python benchmarks/gpu.py --out gpu --quick           # tiny, on any machine: does this program itself work?
    python benchmarks/gpu.py --out gpu --only agreement  # one check, or several; the chain's need those before them

The chain is that of 256 x 256 pixels, on made-up pictures, or on --data, a folder that extract_slices.py made: the
VQ-VAE, stopped by a signal and resumed, both priors, samples, evaluation. Speeds are ratios to references of the same
run. Each check is a process with a limit of its own, and the next one runs whatever becomes of it.

OUT/results.json is written after each check, OUT/log.txt as they run: a command that is cut off loses nothing. Beside
them are weights, metrics.json, a grid of samples and a strip of reconstructions: 8 files of at most 16 MB. This
program needs no package. Where others are missing and nothing can be downloaded, put wheels into .whl/ before:
    pip download --no-deps --only-binary=:all: -d .whl tyro docstring-parser typeguard typing-extensions python-dotenv
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
SECONDS, TO_SAVE, QUICK = 530, 12, 8
"""For all checks; for a process to end after SIGTERM; how many times that all may take with --quick, on a CPU."""
LARGEST = 16 * 2**20
"""Bytes of a file that is kept."""
SAVED = 75
"""Exit status of a training that a signal has stopped, with everything saved."""
FIGURE = re.compile(r"^(?:ratio|figure) (.+?) (-?[\d.]+(?:e-?\d+)?)x?(?: .*)?$", re.MULTILINE)
SUBJECTS, SLICES = 40, 20
"""Made-up people, and slices of each."""


@dataclass
class Check:
    """A process, and what became of it.

    Args:
        name: as --only names it. seconds: its limit, after which it gets SIGTERM. command: after the interpreter.
        ends: the statuses that are right. says: words that its output must hold.
    """

    name: str
    seconds: float
    command: list[str]
    ends: tuple[int, ...] = (0,)
    says: str = ""
    status: int | None = None
    took: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    is_right: bool = False


def main() -> int:
    """Run the checks and print a table; return 0 if all are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results")
    parser.add_argument("--data", type=Path, help="slices of 256 x 256 pixels that extract_slices.py made")
    parser.add_argument("--quick", action="store_true", help="tiny: does this program work?")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="run these checks alone")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
        PARTS[given.part](given)
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the running check is then ended too
    with tempfile.TemporaryDirectory() as folder, (given.out / "log.txt").open("w") as log:
        work, began, patience = Path(folder), time.monotonic(), QUICK if given.quick else 1
        data = (given.data or work / "slices").resolve()
        checks = [check for check in all_checks(given, data, work) if not given.only or check.name in given.only]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *wheels(work)]), "PYTHONUNBUFFERED": "1",
                                    "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
        for check in checks:
            check.seconds = min(check.seconds * patience, SECONDS * patience - (time.monotonic() - began) - TO_SAVE)
            run(check, environment, log)
            keep(work, given.out)
            (given.out / "results.json").write_text(json.dumps({"quick": given.quick, "checks": [
                asdict(each) for each in checks if each.status is not None]}, indent=1))
            print(f"{'right' if check.is_right else 'WRONG'}  {check.name:16s} {check.took:6.1f} s of "
                  f"{check.seconds:3.0f}, status {check.status}  " + ", ".join(
                      f"{name} {value:g}" for name, value in list(check.figures.items())[:6]), flush=True)
    print(f"{time.monotonic() - began:.0f} s in all: {given.out / 'results.json'}, {given.out / 'log.txt'}")
    return int(not all(check.is_right for check in checks))


def all_checks(given: argparse.Namespace, data: Path, work: Path) -> list[Check]:
    """Return the checks in their order: first what is most worth knowing."""
    quick, runs = given.quick, work / "results" / "oasis"

    def part(name: str) -> list[str]:
        return [__file__, "--part", name, "--data", str(data), "--out", str(work), *(["--quick"] if quick else [])]

    common = ["--dataset", "oasis", "--data", str(data), "--results", str(work / "results"), "--pictures-every", "0"]
    models = ["--vqvae", str(runs / "vqvae"), "--top", str(runs / "top"), "--bottom", str(runs / "bottom")]
    size = ["--channels", "8", "--codebook-size", "16"] if quick else ["--codebook-size", "256"]
    layers = ["--channels", "8", "--layers", "2", "--heads", "2"] if quick else []
    vqvae = ["train_vqvae.py", *common, "--savename", "vqvae", "--batch", "8" if quick else "64", *size,
             "--start-steps", "4" if quick else "50", "--augment", "--compile", "never", "--epochs"]
    samples = "2" if quick else "64"
    stopped = (0, SAVED) if quick else (SAVED,)
    speed = ["benchmarks/train.py", *(["--quick"] if quick else ["--sizes", "256", "--rounds", "2"]), "--compile"]
    checks = [Check("machine", 15, part("machine")),
              *([] if given.data else [Check("slices", 20, part("slices"))]),
              Check("no-wait", 30, [*speed, "never", "--sync-check"]),
              Check("agreement", 40, part("agreement")),
              Check("vqvae", 30, [*vqvae, "2" if quick else "400"], stopped),
              Check("vqvae-resumed", 40, [*vqvae, "4" if quick else "400"], (0, SAVED), "going on at")]
    for level in ("top", "bottom"):
        checks.append(Check(level, 25, [
            "train_pixel_cnn.py", "--level", level, "--vqvae", str(runs / "vqvae"), *common, "--savename", level,
            "--copies", "1", "--condition", "position_mm", "--batch", "8" if quick else "32", *layers,
            "--epochs", "1" if quick else "100"], (0, SAVED)))
    return [*checks,
            Check("sample", 30, ["sample.py", *models, "--count", samples, "--batch", "64", "--out",
                                 str(work / "samples")]),
            Check("evaluate", 40, ["evaluate.py", *models, "--data", str(data), "--out", str(work / "report"),
                                   "--samples", samples]),
            Check("quantizer", 25, ["benchmarks/quantizer.py", *(
                ["--rounds", "1", "--vectors", "2048"] if quick else [])]),
            Check("speed", 70, [*speed, "never"]),
            *([] if quick else [Check("speed-compiled", 90, [*speed, "always"])]),
            Check("sampling", 30, ["benchmarks/sampling.py", "--seconds", "1", "--priors", "top", *(
                ["--sides", "4"] if quick else ["bottom", "--sides", "32"])]),
            Check("profile", 30, [*speed, "never", "--profile"])]


def run(check: Check, environment: dict[str, str], log: TextIO) -> None:
    """Run a check within its limit; SIGTERM lets a training save what it has."""
    print(f"\n== {check.name}, {check.seconds:.0f} s: {' '.join(check.command)}", file=log, flush=True)
    start, began = log.tell(), time.monotonic()
    process = subprocess.Popen([sys.executable, *check.command], cwd=ROOT, env=environment, stdout=log,
                               stderr=subprocess.STDOUT, start_new_session=True)
    try:
        process.wait(max(0, check.seconds))
    except subprocess.TimeoutExpired:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(TO_SAVE)
    finally:  # with the processes that it has started
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    check.status, check.took = process.wait(), time.monotonic() - began
    with Path(log.name).open(errors="replace") as file:
        file.seek(start)
        text = file.read()
    check.figures = {name: float(value) for name, value in FIGURE.findall(text)}
    check.is_right = check.status in check.ends and check.says in text


def wheels(work: Path) -> list[str]:
    """Return the folder of what .whl/ holds, installed, and what PYTHONPATH names."""
    found = [str(path) for path in sorted((ROOT / ".whl").glob("*.whl"))]
    if found:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile",
                        "--no-cache-dir", "--target", str(work / "site"), *found], check=True)
    return [*([str(work / "site")] if found else []), *filter(None, [os.environ.get("PYTHONPATH")])]


def keep(work: Path, out: Path) -> None:
    """Copy what is small enough to be kept."""
    runs = work / "results" / "oasis"
    for source, name in ((runs / "vqvae/model.safetensors", "vqvae.safetensors"),
                         (runs / "top/model.safetensors", "top.safetensors"),
                         (runs / "bottom/model.safetensors", "bottom.safetensors"),
                         (work / "report/metrics.json", "metrics.json"), (work / "report/strip.png", "strip.png"),
                         (work / "samples/grid.png", "samples.png")):
        if source.exists() and source.stat().st_size <= LARGEST:
            shutil.copyfile(source, out / name)


# Checks that are not commands of the project -----------------------------------------------------------------


def machine(given: argparse.Namespace) -> None:
    """Say what machine this is."""
    import platform

    import torch
    print("torch", torch.__version__, "Python", platform.python_version(), "CUDA", torch.version.cuda)
    print(*[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["no GPU"])
    assert given.quick or torch.cuda.is_available(), "expected a GPU, found none; --quick needs none"


def slices(given: argparse.Namespace) -> None:
    """Write made-up slices of made-up people as extract_slices.py lays them out."""
    import csv
    import hashlib

    from train import write_images
    people, each, side = (10, 2, 64) if given.quick else (SUBJECTS, SLICES, 256)
    write_images(given.data / "all", people * each, side)
    rows = []
    for number, path in enumerate(sorted((given.data / "all").iterdir())):
        person, index = divmod(number, each)
        split = ("train", "train", "train", "validate", "test")[person % 5]
        name = f"{split}/OAS1_{person + 1:04d}_axial{70 + index:03d}.png"
        (given.data / name).parent.mkdir(exist_ok=True)
        path.rename(given.data / name)
        rows.append({"image": name, "split": split, "subject": f"OAS1_{person + 1:04d}", "session": "MR1",
                     "scan": f"{person + 1}.nii", "plane": "axial", "index": 70 + index, "position_mm": index, "low": 0,
                     "high": 1, "sha256": hashlib.sha256((given.data / name).read_bytes()).hexdigest()})
    (given.data / "all").rmdir()
    with (given.data / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def agreement(given: argparse.Namespace) -> None:
    """Compare the networks on the GPU with the CPU: figures of the same weights, the same pictures, the same codes."""
    import copy

    import torch

    from vqvae2.common import distributed
    from vqvae2.images import dataset
    from vqvae2.metrics import similarity
    from vqvae2.models.nearest import nearest
    from vqvae2.sampling import sampler
    from vqvae2.training.settings import TrainVqvae
    torch.manual_seed(0)
    device = distributed.pick_device()
    assert given.quick or device.type == "cuda", f"expected CUDA, found {device}"
    rows, codebook = torch.randn(100_000, 64), torch.randn(512, 64)
    found = nearest(rows.to(device), codebook.to(device)).cpu() == nearest(rows, codebook)
    figure("nearest codes that are equal", found.double().mean().item(), 0.9999, 1)

    trained, priors = sampler.load_models(*(str(ROOT / "pretrained" / f"{name}-128") for name in (
        "vqvae", "top", "bottom")), torch.device("cpu"))
    vqvae = trained.model
    images = dataset.load_images(TrainVqvae(savename="x", epochs=1, batch=8, data=given.data, size=128)
                                 ).splits["test"].batch(range(4))
    there = copy.deepcopy(vqvae).to(device)
    with torch.no_grad():
        here, made = vqvae(images), there(images.to(device))
        with torch.autocast(device.type, torch.bfloat16):
            half = there(images.to(device))
        for level, codes in here.codes.items():
            equal = (made.codes[level].cpu() == codes).double().mean().item()
            figure(f"{level} codes that are equal, fp32", equal, 0.9, 1)  # a GPU rounds convolutions to TF32
            figure(f"{level} codes that are equal, bf16",
                   (half.codes[level].cpu() == codes).double().mean().item(), 0.8, 1)
        again = vqvae.decode(here.codes), there.decode({name: codes.to(device) for name, codes in here.codes.items()})
        figure("pixels decoded, largest difference", (again[0] - again[1].cpu()).abs().max().item(), 0, 0.01)
        pairs = [torch.stack([dataset.to_bytes(images), dataset.to_bytes(again[0])]).to(place)
                 for place in ("cpu", device)]
        first, second = (similarity.image_figures(*pair)["brain"]["ms_ssim"] for pair in pairs)
        figure("MS-SSIM, largest difference", (first - second).abs().max().item(), 0, 1e-9)
        for level, prior in priors.items():
            top = here.codes["top"] if level == "bottom" else None
            other = copy.deepcopy(prior).to(device)
            logits = prior(here.codes[level], top)
            away = other(here.codes[level].to(device), None if top is None else top.to(device)).cpu()
            figure(f"{level} logits, largest difference in standard deviations",
                   ((logits - away).abs().max() / logits.std()).item(), 0, 0.1)
        prior = priors["top"].double()
        drawn = [sampler.draw_codes(prior.to(place), [0, 1], 0, "top").cpu() for place in ("cpu", device)]
        figure("sampled codes that are equal, fp64", (drawn[0] == drawn[1]).double().mean().item(), 1, 1)
    assert not wrong, f"out of range: {wrong}"


wrong: list[str] = []


def figure(name: str, value: float, least: float, most: float) -> None:
    """Print a figure, for results.json too, and note where it is out of range."""
    print(f"figure {name} {value:.6g} (expected {least:g} to {most:g})", flush=True)
    if not least <= value <= most:
        wrong.append(name)


PARTS = {"machine": machine, "slices": slices, "agreement": agreement}

if __name__ == "__main__":
    sys.exit(main())
