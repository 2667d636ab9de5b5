"""How long evaluate.py takes and how much memory, beside an earlier version of it, on the same models and images.

    git worktree add ../before 8d00b91
    python benchmarks/evaluate.py data/slices-128 --sampled samples/images --against ../before
    python benchmarks/evaluate.py data/slices-64 --sampled samples/images --against ../before --vqvae vqvae-64 \
        --top top-64 --bottom bottom-64 --rounds 3

`--sampled` is OUT/images of sample.py: drawing has a benchmark of its own. Each version judges them in fresh processes
that take turns, with --probe, --rates and --likelihood, on one thread. Printed are the least processor time of all
rounds, the most resident memory, and the same above what the imports take (that of evaluate.py --help). The second
feature network, which knows photographs and which earlier versions lack, is left out unless --photographs is given.

Then all numbers that both metrics.json have are compared. Those of the probe are listed apart: it may stop early, and
its trainings turn a last digit into a later one. Times are of a whole evaluation: what only one version computes counts
against it.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import CodedSlices, processor

from vqvae2.common.errors import expect, run_script
from vqvae2.runs import weights
from vqvae2.settings import parsing

HERE = Path(__file__).parents[1]
AIMS = {"processor time": 4.0, "peak memory": 2.0, "peak memory above the imports": 2.0}
NEAR = 1e-6
"""Largest relative difference of two numbers that count as equal."""
START = ("import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()));"
         "sys.argv[0] = 'evaluate.py'; runpy.run_path('evaluate.py', run_name='__main__')")
"""The program of a process: its first argument names modules that it must do without."""
PHOTOGRAPHS = "efficientnet_lite_pytorch"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/evaluate.py."""

    coded: tyro.conf.OmitArgPrefixes[CodedSlices]
    sampled: Path
    """Folder of the samples, of the size of the slices."""
    against: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkout of an earlier version; without it this version alone is measured."""
    rounds: int = 1
    """Times that each version is measured."""
    photographs: bool = False
    """With the second feature network, where it is installed."""
    flags: tuple[str, ...] = ("--probe", "--rates", "--likelihood")
    """What evaluate.py is asked for."""

    def __post_init__(self) -> None:
        expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 1.")
        expect(self.against is None or (self.against / "evaluate.py").is_file(), f"--against {self.against}",
               "a checkout of an earlier version", "no evaluate.py in it", "Make one with git worktree add.")


class Cost(NamedTuple):
    """This is what a process needed."""

    seconds: float
    """The time of the processor."""
    megabytes: float
    """Most resident memory."""


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    versions = {"now": HERE} | ({"before": settings.against.resolve()} if settings.against else {})
    print(f"{processor()}, torch {torch.__version__}, 1 thread, {settings.coded.slices.name}", flush=True)
    costs, floors = {}, {name: run(folder, ["--help"], settings).megabytes for name, folder in versions.items()}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(settings.rounds):
            for name, folder in reversed(versions.items()):
                out = Path(scratch, f"{name}-{number}")
                cost = run(folder, arguments_of(settings, out), settings)
                costs.setdefault(name, []).append(cost)
                print(f"{name}: {cost.seconds:.0f} s of the processor, {cost.megabytes:.0f} MB at most, "
                      f"{cost.megabytes - floors[name]:.0f} MB above the imports", flush=True)
        found = {name: json.loads(Path(scratch, f"{name}-0", "metrics.json").read_text()) for name in versions}
    if settings.against:
        least = {name: (min(cost.seconds for cost in own), peak := min(cost.megabytes for cost in own),
                        peak - floors[name]) for name, own in costs.items()}
        for what, before, now in zip(AIMS, least["before"], least["now"]):
            print(f"ratio evaluate.py, {what}: before / now {before / now:.2f}x (aim {AIMS[what]:g}x)")
        compare(found["before"], found["now"])


def arguments_of(settings: BenchmarkSettings, out: Path) -> list[str]:
    """Return the arguments of evaluate.py, the same for both versions but for `out`."""
    coded = settings.coded
    models = [part for flag, name in (("--vqvae", coded.vqvae), ("--top", coded.top), ("--bottom", coded.bottom))
              for part in (flag, str(weights.find_run(name, flag).resolve()))]
    return [*models, "--data", str(coded.slices.resolve()), "--sampled", str(settings.sampled.resolve()), "--out",
            str(out), *settings.flags]


def run(folder: Path, arguments: list[str], settings: BenchmarkSettings) -> Cost:
    """Return what evaluate.py of the version in `folder` needs. Raises: UserError if it fails."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    without = "" if settings.photographs else PHOTOGRAPHS
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-c", START, without, *arguments], cwd=folder, env=environment,
                                   stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines() or [""]
    expect(process.returncode == 0, f"evaluate.py of {folder.name}", "to end well", lines[-1], "Try it by itself.")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 2**(20 if sys.platform == "darwin" else 10))


def compare(before: dict, now: dict) -> None:
    """Print how many numbers are equal, how far apart the others are, and the AUROCs of the probe."""
    numbers = [dict(numbers_of(report)) for report in (before, now)]
    both = [path for path in numbers[0] if path in numbers[1] and "probe" not in path]
    apart = {path: abs(old - new) / max(abs(old), abs(new), 1e-12) for path in both
             if (old := numbers[0][path]) != (new := numbers[1][path])}
    far = {path: share for path, share in apart.items() if share > NEAR}
    print(f"metrics: {len(both)} numbers in both, {len(both) - len(apart)} of them the same to the last digit, "
          f"{len(far)} more than {NEAR:g} apart" + "".join(
              f"\n    {'.'.join(path)}: {numbers[0][path]:.9g}, now {numbers[1][path]:.9g}" for path in far))
    for path in numbers[0]:
        if "probe" in path and path[-1] == "auroc":
            beside = (*path[:-1], "folds_judged")
            print(f"    probe, {path[-2]}: AUROC {numbers[0][path]:.3f}, now {numbers[1].get(path, math.nan):.3f} "
                  f"({numbers[1].get(beside, math.nan):g} folds)")


def numbers_of(report: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield each number of a metrics.json with its path."""
    if isinstance(report, (dict, list)):
        for key, value in report.items() if isinstance(report, dict) else enumerate(report):
            yield from numbers_of(value, (*path, str(key)))
    elif isinstance(report, (int, float)) and not isinstance(report, bool):
        yield path, float(report)


if __name__ == "__main__":
    run_script(main)
