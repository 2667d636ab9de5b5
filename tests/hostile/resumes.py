"""Trainings killed at random moments, again and again -> do they end like those that never were?

Each of three trainings (a VQ-VAE alone, a VQ-VAE on two processes under torchrun, a top prior alone) is run once
without disturbance, and again with: a random signal (half of them SIGKILL) to the launcher or to a worker after a
random time, and now and then a torn state.pt as well. After each kill the same command goes on. In the end the weights,
the whole state of the optimiser and codebooks and all figures of the log must be the same, bit for bit.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from conftest import write_slices
from hostile.part import Part
from resuming import differences

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
KILLS = 5
"""In each try."""
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


TRAININGS = {"two-processes": (TWO + VQVAE, 4), "alone": (VQVAE, 8), "top-prior": (PRIOR, 8)}
"""The commands, and the images that each process takes at a time."""


@dataclass
class Training:
    """One command, run undisturbed or disturbed."""

    name: str
    prepared: Path
    folder: Path
    """Folder for its results and its log."""
    seed: int
    counts: Counter = field(default_factory=Counter)
    stuck: list[str] = field(default_factory=list)
    """Signals after which it did not end in time, and to which process."""

    @property
    def killed(self) -> int:
        """How many kills there were."""
        return sum(self.counts[kind.name] for kind in set(SIGNALS))

    @property
    def log(self) -> Path:
        """What all starts have printed."""
        return self.folder / "log"

    def start(self) -> subprocess.Popen:
        """Start the command as leader of a new process group, so that a Ctrl-C here does not reach it."""
        command, batch = TRAININGS.get(self.name) or (VQVAE.replace("150", "10"), 8)
        words = f"{command} {COMMON}".format(
            batch=batch, results=self.folder / "results", slices=self.prepared / "slices",
            vqvae=self.prepared / "vqvae" / "results" / "oasis" / "soak").split()
        with self.log.open("a") as file:
            # A worker of the soak ignores Ctrl-C, and what it starts would inherit that.
            return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=file,
                                    start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

    def undisturbed(self) -> Path:
        """Run to the end; return the run's folder."""
        self.folder.mkdir(exist_ok=True)
        status = self.start().wait()
        assert status == 0, f"{self.name} ended with {status} undisturbed:\n{self.log.read_text()[-3000:]}"
        return self.folder / "results" / "oasis" / "soak"

    def disturbed(self) -> Path:
        """Kill and go on until there were enough kills, then run to the end; return the run's folder."""
        draws, run = random.Random(self.seed), self.folder / "results" / "oasis" / "soak"
        while self.killed < KILLS:
            process = self.start()
            try:
                status = process.wait(draws.uniform(0, LONGEST_LIFE))
            except subprocess.TimeoutExpired:
                self._kill(process, draws)
            else:
                assert status == 0, f"{self.name} ended with {status} by itself:\n{self.log.read_text()[-3000:]}"
                shutil.move(run.parents[1], self.folder / f"done-{len(list(self.folder.glob('done-*')))}")
                continue
            if draws.random() < TORN and (run / "state.pt").exists() and (run / "state-before.pt").exists():
                content = (run / "state.pt").read_bytes()
                (run / "state.pt").write_bytes(content[: draws.randrange(len(content))])
                self.counts["torn state"] += 1
        return self.undisturbed()

    def _kill(self, process: subprocess.Popen, draws: random.Random) -> None:
        """Send a signal to one of the run's processes; kill what is left when it has ended, or has not in time."""
        members = family(process.pid)
        number = draws.choice(SIGNALS)
        member, words = draws.choice(members), ""
        with suppress(ProcessLookupError, FileNotFoundError):
            words = Path(f"/proc/{member}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
            os.kill(member, number)
        self.counts[number.name] += 1
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.stuck.append(f"{number.name} to {words}")
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


def prepare(folder: Path) -> None:
    """Train all of TRAININGS undisturbed, into folders of their names; the VQ-VAE of the prior is the first."""
    write_slices(folder / "slices")
    for name in ("vqvae", *TRAININGS):
        Training(name, folder, folder / name, 0).undisturbed()


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Kill a training and go on, KILLS times, then run it to its end, which must be that of the undisturbed one."""
    name = list(TRAININGS)[number % len(TRAININGS)]
    training = Training(name, prepared, folder, number)
    killed = training.disturbed()
    found = [f"not ended {SECONDS_TO_END} s after {signal}" for signal in training.stuck]
    for run in [*(done / "oasis" / "soak" for done in sorted(folder.glob("done-*"))), killed]:
        found += differences(prepared / name / "results" / "oasis" / "soak", run)
    assert not found, f"{name} after {dict(training.counts)}: {', '.join(found[:5])}"
    return "same"


PART = Part("resumes", f"trainings killed {KILLS} times each, bit for bit the same in the end", 21, try_one, prepare,
            in_suite=0)
