"""Commands and their arguments -> the commands run one after the other, each printed so that it can be pasted."""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vqvae2.common import files
from vqvae2.common.errors import EXIT_STOPPED, stop_signals


@dataclass(frozen=True)
class Step:
    """This is one command of the chain.

    Attributes:
        name: the command's name after `vqvae2`.
        note: file that notes the finished command, so that it is not run again: for a command that would begin anew.
        key: a text for whatever else the result depends on, such as weights: with another key the command is run again.
    """

    heading: str
    name: str
    arguments: str
    processes: int = 1
    note: Path | None = None
    key: str = ""

    def command(self) -> list[str]:
        """Return the words of the command line, under torchrun where there are to be several processes."""
        launcher = f"-m torch.distributed.run --standalone --nnodes=1 --nproc_per_node={self.processes}"
        return [short(sys.executable), *(launcher.split() if self.processes > 1 else ()), "-m", "vqvae2", self.name,
                *shlex.split(self.arguments)]

    def done(self) -> str:
        """Return what the note of the finished command says."""
        return "\n".join(filter(None, [shlex.join(self.command()), self.key]))

    def is_done(self) -> bool:
        """Return whether this very command is noted as finished."""
        return self.note is not None and self.note.is_file() and self.note.read_text(encoding="utf-8") == self.done()


def run_steps(steps: list[Step]) -> None:
    """Run the steps one after the other, their output going where ours goes.

    Raises: SystemExit with the status of the first step that fails.
    """
    for number, step in enumerate(steps, 1):
        title, command = f"Step {number} of {len(steps)}: {step.heading}", step.command()
        if step.is_done():
            print(f"\n{title}: there already", flush=True)
            continue
        print(f"\n{title}\n$ {shlex.join(command)}", flush=True)
        if status := run(command, step.processes):
            print(f"{title}: vqvae2 {step.name} ended with status {status}; what it said stands above. "
                  "The same command goes on from here.", file=sys.stderr, flush=True)
            raise SystemExit(status)
        if step.note:
            files.write_text(step.note, step.done())


def run(command: list[str], processes: int) -> int:
    """Run a command to its end and return its exit status, 128 + N where signal N ended it, as a shell has it."""
    # torchrun would say that it sets this to 1; the commands share the cores out by themselves.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}
    child, came, stopped = None, False, False

    def ask(number: int, _: object) -> None:
        nonlocal came, stopped
        stopped = True
        came = came or number != signal.SIGINT  # Ctrl-C reaches the child by itself
        if child and came:
            child.terminate()  # it saves its state, and we wait for that

    before = {number: signal.signal(number, ask) for number in stop_signals()}
    try:
        child = subprocess.Popen(command, env={**threads, **os.environ})
        if came:
            child.terminate()
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped and processes > 1 and status:
        return EXIT_STOPPED  # torchrun ends with 1 whatever its processes ended with
    return 128 - status if status < 0 else status


def short(path: Path | str) -> str:
    """Return the path as it is or relative to the working folder, whichever is shorter; both can be pasted."""
    return min(str(path), os.path.relpath(path), key=len)


def demo_slices(folder: Path, size: int, subjects: int = 24, per_scan: int = 16) -> Path:
    """Make synthetic scans and their slices of `size` by `size` pixels below `folder`, where they are not there yet.

    Returns the folder of the slices, for --data. About a minute the first time.
    """
    scans, slices = folder / "scans", folder / f"slices-{size}"
    run_steps([Step("synthetic scans", "demo-scans", f"--out {shlex.quote(str(scans))} --subjects {subjects}",
                    note=scans / ".done"),
               Step("slices", "extract", shlex.join(["--scans", str(scans), "--out", str(slices), "--size", str(size),
                                                     "--per-scan", str(per_scan)]))])
    return slices
