"""A training that is killed at random moments, again and again -> does it end like one that never was?

    make soak                     # 100 kills, at most 20 minutes on two cores
    PYTHONPATH=tests python tests/chain/soak.py --kills 20 --minutes 5 --seed 1

Each of three trainings (a VQ-VAE alone, a VQ-VAE on two processes under torchrun, a top prior alone) is run once
without disturbance, and once with: a random signal (half of them SIGKILL) to the launcher or to a worker after a random
time, and now and then a torn state.pt as well. After each kill the same command goes on. In the end the weights, the
whole state of the optimiser and codebooks and all figures of the log must be the same, bit for bit.

Exit status: 0 if they are, 1 if not or if a run did not end within 20 seconds of a signal, 3 if the time was over.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from conftest import write_slices

from vqvae2.runs import state as run_state
from vqvae2.runs import weights as checkpoints

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LONGEST_LIFE = 9.0
"""Seconds between a start and its kill, at most; importing alone takes two to four."""
SECONDS_TO_END = 20
"""Within which a run must have ended after a signal."""
TORN = 0.1
"""Share of the kills after which the last state is cut short as well."""
COMMON = ("--threads 1 --precision fp32 --pictures-every 0 --checkpoint-minutes 0.004 --batch {batch} "
          "--data {slices} --results {results} --savename soak")
VQVAE = ("train_vqvae.py --epochs 150 --channels 16 --embedding-dim 8 --residual-channels 8 --codebook-size 16 "
         "--start-steps 6 --learning-rate 0.003")
TWO = "-m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=2 "
PRIOR = ("train_pixel_cnn.py --level top --vqvae {vqvae} --epochs 150 --channels 8 --layers 2 --heads 2 "
         "--attention-every 2 --copies 1")


@dataclass
class Training:
    """One command, run undisturbed and disturbed."""

    name: str
    command: str
    batch: int
    kills: int
    folder: Path
    given: dict[str, str]
    seed: int
    counts: Counter = field(default_factory=Counter)
    stuck: list[str] = field(default_factory=list)
    """Signals after which it did not end in time."""

    @property
    def killed(self) -> int:
        """How many kills there were."""
        return sum(self.counts[kind.name] for kind in set(SIGNALS))

    def start(self, results: Path, log: Path) -> subprocess.Popen:
        """Start the command as leader of a new process group, so that a Ctrl-C here does not reach it."""
        words = f"{self.command} {COMMON}".format(batch=self.batch, results=results, **self.given).split()
        with log.open("a") as file:
            return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=file,
                                    start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def undisturbed(self) -> Path:
        """Run to the end; return the run's folder."""
        log = self.folder / "whole.log"
        if self.start(self.folder / "whole", log).wait():
            raise SystemExit(f"{self.name}: failed undisturbed:\n{log.read_text()[-3000:]}")
        return self.folder / "whole" / "oasis" / "soak"

    def disturbed(self, until: float) -> Path | None:
        """Kill and go on until there were enough kills; then run to the end. None if the time is over."""
        draws, results, log = random.Random(self.seed), self.folder / "killed", self.folder / "killed.log"
        run = results / "oasis" / "soak"
        while self.killed < self.kills:
            if time.monotonic() > until:
                return None
            process = self.start(results, log)
            try:
                status = process.wait(draws.uniform(0, LONGEST_LIFE))
            except subprocess.TimeoutExpired:
                self._kill(process, draws)
            else:
                if status:
                    raise SystemExit(f"{self.name}: ended with {status} by itself:\n{log.read_text()[-3000:]}")
                shutil.move(results, self.folder / f"done-{len(list(self.folder.glob('done-*')))}")
                continue
            if draws.random() < TORN and (run / "state.pt").exists() and (run / "state-before.pt").exists():
                content = (run / "state.pt").read_bytes()
                (run / "state.pt").write_bytes(content[: draws.randrange(len(content))])
                self.counts["torn state"] += 1
        last = self.start(results, log)
        try:
            status = last.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._end(family(last.pid), last)
            return None
        if status:
            raise SystemExit(f"{self.name}: the last start failed:\n{log.read_text()[-3000:]}")
        return run

    def _kill(self, process: subprocess.Popen, draws: random.Random) -> None:
        """Send a signal to one of the run's processes; kill what is left when it has ended, or has not in time."""
        members = family(process.pid)
        number = draws.choice(SIGNALS)
        with suppress(ProcessLookupError):
            os.kill(draws.choice(members), number)
        self.counts[number.name] += 1
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.stuck.append(number.name)
        self._end(members, process)

    def _end(self, members: list[int], process: subprocess.Popen) -> None:
        """Kill what is left of a run."""
        for member in {*members, *family(process.pid)}:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait()


def family(number: int) -> list[int]:
    """Return a process and all that descend from it."""
    children = Path(f"/proc/{number}/task/{number}/children")
    below = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [number, *(deeper for child in below for deeper in family(child))]


def differences(first: Path, second: Path) -> list[str]:
    """Return what differs between two runs: tensors of weights and state, rows of the log."""
    found = []
    weights = [checkpoints.load_weights(run / checkpoints.WEIGHTS)[0] for run in (first, second)]
    found += [f"weights {name}" for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    states = [flat(run_state.load_state(run / run_state.STATE)) for run in (first, second)]
    found += [f"state {name}" for name in states[0].keys() | states[1].keys()
              if not same(states[0].get(name), states[1].get(name))]
    logs = [list(csv.DictReader((run / "log.csv").open())) for run in (first, second)]
    found += [f"log row {number}: {name}" for number, rows in enumerate(zip(*logs, strict=True), 1) for name in rows[0]
              if name != "seconds" and rows[0][name] != rows[1][name]]
    return found


def flat(value: object, name: str = "") -> dict[str, object]:
    """Return a nested state as one level, without what names the run or tells the time."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for inner, part in items if inner not in ("run_id", "seconds")
                for key, leaf in flat(part, f"{name}/{inner}").items()}
    return {name: value}


def same(value: object, other: object) -> bool:
    """Return whether two values are the same, tensors bit for bit."""
    return torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def main() -> None:
    """Run all trainings, two at a time, and say how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="over all trainings (default 100)")
    parser.add_argument("--minutes", type=float, default=20, help="after which no more kills are made (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, signals and targets (default 0)")
    asked = parser.parse_args()
    # A shell that starts this in the background ignores SIGINT for it, and what it starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = {"slices": str(write_slices(folder / "slices")), "vqvae": str(folder / "vqvae" / "oasis" / "soak")}
        first = Training("VQ-VAE for the prior", VQVAE.replace("150", "10"), 8, 0, folder, given, 0)
        if first.start(folder / "vqvae", folder / "vqvae.log").wait():
            raise SystemExit((folder / "vqvae.log").read_text()[-3000:])
        share = [asked.kills // 3, asked.kills // 3, asked.kills - 2 * (asked.kills // 3)]
        trainings = [Training("VQ-VAE, two processes", TWO + VQVAE, 4, share[0], folder / "two", given, asked.seed),
                     Training("VQ-VAE, alone", VQVAE, 8, share[1], folder / "alone", given, asked.seed + 1),
                     Training("top prior, alone", PRIOR, 8, share[2], folder / "prior", given, asked.seed + 2)]

        def soak(training: Training) -> tuple[Training, list[str] | None]:
            training.folder.mkdir()
            whole, killed = training.undisturbed(), training.disturbed(began + asked.minutes * 60)
            done = [folder / "oasis" / "soak" for folder in sorted(training.folder.glob("done-*"))]
            stuck = [f"not ended {SECONDS_TO_END} s after {name}" for name in training.stuck]
            return training, None if killed is None else stuck + [
                text for run in [*done, killed] for text in differences(whole, run)]

        status = 0
        with ThreadPoolExecutor(2) as pool:
            for training, found in pool.map(soak, trainings):
                end = f"DIFFERENT: {', '.join(found[:5])}" if found else "the same bits"
                end = "TIME OVER" if found is None else end
                counts = ", ".join(f"{name} {count}" for name, count in sorted(training.counts.items()))
                print(f"{training.name}: {end} after {counts}", flush=True)
                status = max(status, 3 if found is None else bool(found))
        print(f"{(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
