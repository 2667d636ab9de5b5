"""A folder of scans -> slices, a VQ-VAE, its priors, new images and a report: the whole chain, by one command.

    vqvae2 run --preset brain-128 --scans scans --out my-brains
To see within two minutes whether all is installed and your scans can be read; nothing is learned:
    vqvae2 run --preset smoke --scans scans --out smoke
Scans of which the names must be explained, with flags of `vqvae2 extract`:
    vqvae2 run --preset brain-128 --scans scans --out my-brains --extract-flags="--archive plain:1"

It runs the commands that you would run one by one, and prints each of them before it starts, so that you can paste and
change it. One line says how far the whole chain is. What the commands print goes to --out/run.log, and what they make:

    slices/  results/oasis/{vqvae,top,bottom,decoder}/  samples/  report/index.html  run.json (what it is made with)

The same command goes on after Ctrl-C, a signal, a kill or an error: each step goes on where it stopped, and finished
steps are looked at and passed over. More epochs, or one step again with other settings: run that step by itself.
"""

import csv
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from vqvae2.commands import endings
from vqvae2.commands.steps import Step, run_steps
from vqvae2.common import files, machine
from vqvae2.common.errors import expect
from vqvae2.common.folder_lock import claimed
from vqvae2.settings import presets
from vqvae2.settings.checks import SAID, Checked
from vqvae2.settings.parsing import changes, parse, path_from_environment
from vqvae2.settings.stored import read_json
from vqvae2.slices.extraction import check_out
from vqvae2.slices.splits import split_subjects

FEWEST = 2
"""People in the test split: distances of samples need two."""
FEW = 5
"""Below so many the report warns."""
SEEDS_TRIED = 1000
MOST_CPU_PROCESSES = 4
"""More processes on one machine's CPU gain little, as each step has few images."""


@dataclass(frozen=True, kw_only=True)
class ChainSettings(Checked):
    """Settings of `vqvae2 run`."""

    TABLE = presets.CHAIN
    preset: str
    """The recipe: a preset for scans, such as brain-128, or a .toml file of yours. Its tables set the flags of each
    command."""
    scans: Annotated[Path | None, SAID] = None
    """Folder of raw scans, searched to any depth. Without it: OASIS_PATH."""
    out: Path
    """Folder that receives all files. The same command goes on there."""
    extract_flags: str = ""
    """More flags for the extraction, in quotes, as `vqvae2 extract --help` has them."""
    processes: Annotated[int | None, SAID] = None
    """Processes of each training. Without it: as many as there are GPUs, or as CPU cores up to 4, where the preset's
    batch can be shared out evenly."""
    allow_few: bool = False
    """Go on where so few people are in the test split that the report cannot judge samples."""
    open: bool = False
    """Open the report at the end, where there is a screen."""

    RULES = (("processes", lambda number: number >= 1, "at least 1", "Or leave it out."),)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(presets.is_for_chain(self.preset), f"--preset {self.preset}", "a preset for scans with the tables "
               "[extract], [vqvae] and [prior]", "another",
               "Take brain-128, or run the commands one by one (docs/first-day.md).")
        try:
            shlex.split(self.extract_flags)
        except ValueError as error:
            expect(False, "--extract-flags", "words as on a command line", f"{self.extract_flags} ({error})",
                   "Close each quote.")


def steps_of(settings: ChainSettings, scans: Path) -> list[Step]:
    """Return the commands of the chain, in order."""
    preset, out = settings.preset, settings.out
    minutes = presets.load(preset, "minutes")
    models: list[object] = []

    def training(heading: str, command: str, table: str, *more: object) -> Step:
        tables = ("prior", table) if table in ("top", "bottom") else (table,)
        batch = presets.load(preset, *tables).get("batch", 0)
        processes = _processes(settings.processes, batch)
        words = ["--preset", preset, *more, "--data", out / "slices", "--results", out / "results",
                 "--savename", table, *(["--batch", batch // processes] if processes > 1 else [])]
        models.extend([f"--{table}", out / "results" / "oasis" / table])
        return Step(heading, command, _words(words), processes, minutes=minutes.get(table, 0))

    def judging(heading: str, command: str, *more: object) -> Step:
        given = ["--preset", preset] if presets.load(preset, command) else []
        return Step(heading, command, _words([*given, *models, *more]), minutes=minutes.get(command, 0))

    extraction = _words(["--preset", preset, "--scans", scans, "--out", out / "slices"])
    steps = [Step("slices of the scans", "extract", f"{extraction} {settings.extract_flags}".strip(),
                  minutes=minutes.get("extract", 0), after=lambda: check_people(out / "slices", settings)),
             training("the VQ-VAE", "train-vqvae", "vqvae")]
    vqvae = ["--vqvae", out / "results" / "oasis" / "vqvae"]
    for level in ("top", "bottom") if presets.load(preset, "vqvae").get("levels") != 1 else ("top",):
        steps.append(training(f"the prior of the {level} codes", "train-prior", level, "--level", level, *vqvae))
    if presets.load(preset, "decoder"):
        steps.append(training("the texture decoder", "train-decoder", "decoder", *vqvae))
    return [*steps, judging("new images", "sample", "--out", out / "samples"),
            judging("the report", "evaluate", "--data", out / "slices", "--out", out / "report")]


def main(arguments: list[str] | None = None) -> None:
    """Run the chain that the command line asks for, and print where its report is."""
    settings = parse(ChainSettings, __doc__, arguments)
    scans = path_from_environment(settings.scans, "OASIS_PATH", "--scans")
    expect(scans.is_dir(), f"--scans {scans}", "a folder of scans", "none", "Correct the path.")
    files.check_folder(settings.out, "--out")
    check_out(scans, settings.out / "slices")
    with claimed(settings.out, f"--out {settings.out}"):
        _go_on_with(settings)
        _run(settings, scans)


def _go_on_with(settings: ChainSettings) -> None:
    """Note what the chain in the folder is made with. Raises: UserError, before anything changes, if it is another.

    While no model is there, another extraction may be asked for, as where too few people would be tested.
    """
    path, own = settings.out / "run.json", {"preset": settings.preset, "extract_flags": settings.extract_flags}
    before = read_json(path, "what a chain is made with", "Choose another --out.") if path.exists() else own
    changed = changes(own, before) if (settings.out / "results").exists() else []
    expect(not changed, f"--out {settings.out}", "the chain that is there to go on with its own settings",
           ", ".join(changed), "Give those again, or choose another --out.")
    files.write_json(path, own)


def _run(settings: ChainSettings, scans: Path) -> None:
    steps, log = steps_of(settings, scans), settings.out / "run.log"
    print(f"{len(steps)} steps. What they print goes to {log}. After a stop the same command goes on.", flush=True)
    run_steps(steps, log)
    print(f"\nnew images: {settings.out / 'samples' / 'grid.png'}")
    synthetic = read_json(settings.out / "slices" / "extraction.json", "what extract wrote").get("synthetic")
    following = ["run", "--preset", "brain-128", "--scans", "SCANS", "--out", "my-brains"] if synthetic else [
        "predict", "--vqvae", settings.out / "results" / "oasis" / "vqvae", "--out", settings.out / "predicted", "SCAN"]
    endings.say(settings.out / "report" / "index.html", *following, show=settings.open)


def check_people(slices: Path, settings: ChainSettings) -> None:
    """Print how many people are in each split, and the page that shows each scan.

    Raises: UserError if so few are in the test split that hours later the report could not judge samples.
    """
    record = read_json(slices / "extraction.json", "what extract wrote")
    counts, shares = record["counts"]["subjects"], tuple(record["settings"]["split"])
    print(f"  people: {', '.join(f'{split} {number}' for split, number in counts.items())}; "
          f"look at each scan: {slices / 'index.html'}", flush=True)
    if FEWEST <= counts["test"] < FEW:
        print(f"  with fewer than {FEW} people to test the report says little about others; "
              '--extract-flags="--split 50 20 30" tests more of them', flush=True)
    if counts["test"] >= FEWEST or settings.allow_few:
        return
    with (slices / "manifest.csv").open(newline="", encoding="utf-8") as file:
        people = {row["subject"] for row in csv.DictReader(file)}
    wanted = max(FEWEST, round(shares[2] / sum(shares) * len(people)))
    drawn = {seed: Counter(split_subjects(people, shares, seed)[0].values()) for seed in range(SEEDS_TRIED)}
    # Of the seeds with people enough to test and to validate, the first.
    seed = next((seed for seed, found in drawn.items() if wanted <= found["test"] <= wanted + 1 and found[
        "validate"] >= min(2, wanted)), None)
    advice = "Give more people" if seed is None or len(people) < 3 * FEWEST else (
        f'Give the same command with --extract-flags="--seed {seed}" ({drawn[seed]["train"]} people to train, '
        f'{drawn[seed]["validate"]} to validate, {drawn[seed]["test"]} to test)')
    expect(False, f"--scans, {len(people)} people", f"at least {FEWEST} of them in the test split, beside whom samples "
           "are judged", counts["test"], f"{advice}, or --allow-few to go on.")


def _words(words: list[object]) -> str:
    return shlex.join(map(str, words))


def _processes(asked: int | None, batch: int) -> int:
    """Return how many processes a training has: a divisor of its batch, so that each has as many images."""
    devices = torch.cuda.device_count() or min(machine.cores(), MOST_CPU_PROCESSES)
    most = min(asked or devices, batch) if batch else 1
    return max(number for number in range(1, most + 1) if batch % number == 0)
