"""What several test files share: a tiny data set, a tiny trained chain, and how a refusal is judged."""

import csv
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image
from tiny_prior import prior

from vqvae2.commands import demo_scans, train_prior, train_vqvae
from vqvae2.common.errors import STOP_SIGNALS, run_script
from vqvae2.priors import stepping

COLUMNS = ["image", "split", "subject", "session", "scan", "plane", "index", "position_mm", "low", "high", "sha256"]
SUBJECTS = {"train": 6, "validate": 2, "test": 3}
SLICES_PER_SUBJECT = 3
TINY = ["--batch", "8", "--threads", "1", "--precision", "fp32", "--pictures-every", "0"]
TINY_VQVAE = ["--epochs", "10", "--channels", "16", "--embedding-dim", "8", "--residual-channels", "8",
              "--codebook-size", "16", "--start-steps", "6", "--learning-rate", "0.01"]
TINY_PRIOR = ["--epochs", "2", "--channels", "8", "--layers", "2", "--heads", "2", "--attention-every", "2"]
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start: waiting threads would take the other tests' cores
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads of a command that asks for several all the same wait asleep
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
for number in STOP_SIGNALS:  # pytest in the background of a shell, or under nohup, would have its children ignore them
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)


@dataclass(frozen=True)
class TinyRun:
    """Folders of a chain that was really trained."""

    data: Path
    results: Path
    vqvae: Path
    top: Path
    bottom: Path


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the loops of a fresh checkout before xdist starts its workers, which would each do it."""
    its_cache = (Path(stepping.__file__).parent / "__pycache__").glob("compiled.*.nbi")
    if hasattr(session.config, "workerinput") or any(its_cache) or stepping.compiled_loops() is None:
        return
    for number in (torch.float32, torch.float64):
        stepping.compiled_loops().CompiledCursor(prior("top").to(number), 1)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """After each test signals do what they did before, and torch has one thread: run_script and trainings, made for the
    last thing of a process, change it."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    torch.set_num_threads(1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_slices(tmp_path_factory) -> Path:
    """Three slices each of 11 subjects, as extract_slices.py lays them out: 32 x 32 pixels, 8 bit."""
    return write_slices(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="session")
def tiny_run(tiny_slices, tmp_path_factory) -> TinyRun:
    """A tiny chain that was really trained, once for all tests."""
    results = tmp_path_factory.mktemp("chain") / "results"
    train_chain(tiny_slices, results)
    folder = results / "oasis"
    return TinyRun(tiny_slices, results, folder / "tiny", folder / "tiny-top", folder / "tiny-bottom")


@pytest.fixture(scope="session")
def told_top(tiny_run, tmp_path_factory) -> Path:
    """A top prior of the tiny chain that was told the position of each image."""
    results = tmp_path_factory.mktemp("told")
    train_prior.main(["--data", str(tiny_run.data), "--results", str(results), *TINY, *TINY_PRIOR, "--savename",
                      "told", "--level", "top", "--vqvae", str(tiny_run.vqvae), "--condition", "position_mm"])
    return results / "oasis" / "told"


@pytest.fixture(scope="session")
def demo_people(tmp_path_factory) -> Path:
    """The scans of six synthetic people, as `vqvae2 demo-scans --subjects 6` makes them, once for all tests."""
    pytest.importorskip("nilearn", reason="the synthetic scans are made with nilearn")
    folder = tmp_path_factory.mktemp("people") / "scans"
    demo_scans.main(["--out", str(folder), "--subjects", "6"])
    return folder


@pytest.fixture
def apart(tmp_path, monkeypatch) -> Path:
    """An empty working folder, without any path of this machine in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("OASIS_PATH", "SLICES_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def blank_charts(monkeypatch) -> None:
    """Charts are made and written, without what is drawn on them: to draw text takes a quarter of a tiny chain."""
    monkeypatch.setattr(Figure, "draw", lambda figure, renderer: None)


@pytest.fixture
def refusal(capfd) -> Callable[..., str]:
    """Run a script's main as the command line would; return the one line that it leaves on the screen."""
    def run(main: Callable[[list[str]], None], *arguments: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            run_script(lambda: main([str(argument) for argument in arguments]))
        assert end.value.code == 2
        lines = on_screen(capfd.readouterr().err)
        assert len(lines) == 1, lines
        return lines[0]
    return run


def on_screen(text: str) -> list[str]:
    """Lines that a terminal still shows: a progress bar that was wiped is not among them."""
    return [shown for line in text.split("\n") if (shown := line.rstrip("\r").rsplit("\r", 1)[-1].strip())]


def files_in(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with a hash of its bytes."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def train_chain(data: Path, results: Path) -> None:
    """Train a VQ-VAE-2 (bottom codes 8 x 8, top 4 x 4) and both priors for seconds: tiny, tiny-top, tiny-bottom."""
    common = ["--data", str(data), "--results", str(results), *TINY]
    train_vqvae.main([*common, "--savename", "tiny", *TINY_VQVAE])
    for level in ("top", "bottom"):
        train_prior.main([*common, "--savename", f"tiny-{level}", "--level", level, "--vqvae", "tiny", *TINY_PRIOR])


def write_slices(folder: Path, size: int = 32) -> Path:
    """Write the tiny data set: blurred ellipses that differ in form and brightness from subject to subject."""
    rows, number = [], 0
    for split, subjects in SUBJECTS.items():
        for _ in range(subjects):
            subject = f"OAS1_{number + 1:04d}"
            for index in range(SLICES_PER_SUBJECT):
                name = f"{split}/{subject}_axial{70 + index:03d}.png"
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture_of(number, index, size)).save(path)
                rows.append([name, split, subject, "", f"{subject}.nii.gz", "axial", 70 + index, float(index), 0.0,
                             1.0, hashlib.sha256(path.read_bytes()).hexdigest()])
            number += 1
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


def edit_manifest(folder: Path, change: Callable[[list[dict[str, str]]], object] = lambda rows: None, *,
                  hashed: bool = False) -> None:
    """Rewrite manifest.csv with `change` applied to its rows, and with the hashes that the images have now if `hashed`.
    """
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    for row in rows if hashed else ():
        row["sha256"] = hashlib.sha256((folder / row["image"]).read_bytes()).hexdigest()
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def picture_of(subject: int, index: int, size: int = 32) -> np.ndarray:
    """A head-like ellipse with two dark ventricles, uint8 `[size, size]`."""
    draws = np.random.default_rng(subject)
    wide, tall, tilt, ventricle = draws.uniform((0.55, 0.7, -0.2, 0.1), (0.75, 0.9, 0.2, 0.3))
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    x, y = x + tilt * y, y * (1 + 0.05 * index)

    def inside(middle, width, height):
        return 1 / (1 + np.exp(np.minimum(8 * (((x - middle) / width)**2 + (y / height)**2 - 1), 50)))

    brain = inside(0, wide, tall) * (0.7 + 0.2 * np.sin(9 * x + subject) * np.sin(7 * y))
    for side in (-0.2, 0.2):
        brain *= 1 - 0.8 * inside(side, ventricle * 0.6, ventricle * 1.5)
    return np.where(brain > 0.05, (brain * 255).round(), 0).astype(np.uint8)
