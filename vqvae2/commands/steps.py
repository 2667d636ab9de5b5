"""Commands and their arguments -> the commands run one after the other, each printed so that it can be pasted.

With a log, one line says how far all of them are, and what they print goes to the log.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vqvae2.common import files, progress
from vqvae2.common.errors import EXIT_STOPPED, EXIT_USER_ERROR, stop_signals

SECONDS_TO_GUESS = 10.0
"""The remaining time is said after so many seconds of work of which the progress is known."""
SECONDS_BETWEEN_LINES = 300.0
"""Seconds between lines where the output is no terminal."""


@dataclass(frozen=True)
class Step:
    """This is one command of the chain.

    Attributes:
        name: the command's name after `vqvae2`.
        note: file that notes the finished command, so that it is not run again: for a command that would begin anew.
        key: a text for whatever else the result depends on, such as weights: with another key the command is run again.
        minutes: how long the step takes on some machine, for the shares of the steps in the time of all; 0 if unknown.
        after: called when the step has ended well; it may raise.
    """

    heading: str
    name: str
    arguments: str
    processes: int = 1
    note: Path | None = None
    key: str = ""
    minutes: float = 0.0
    after: Callable[[], None] = lambda: None

    def command(self) -> list[str]:
        """Return the words of the command line, under torchrun where there are to be several processes."""
        launcher = f"-m torch.distributed.run --standalone --nnodes=1 --nproc_per_node={self.processes}"
        return [short(sys.executable), *(launcher.split() if self.processes > 1 else ()), "-m", "vqvae2", self.name,
                *shlex.split(self.arguments)]

    def shown(self) -> str:
        """Return the command line as a user would type it: with the short names of what is on the PATH."""
        words = self.command()
        own = Path(sys.executable).parent
        if self.processes == 1 and _on_path("vqvae2") == own / "vqvae2":
            words = words[2:]
        elif _on_path("python") == own / "python":
            words[0] = "python"
        return shlex.join(words)

    def done(self) -> str:
        """Return what the note of the finished command says."""
        return "\n".join(filter(None, [shlex.join(self.command()), self.key]))

    def is_done(self) -> bool:
        """Return whether this very command is noted as finished."""
        return self.note is not None and self.note.is_file() and self.note.read_text(encoding="utf-8") == self.done()


def run_steps(steps: Sequence[Step], log: Path | None = None) -> None:
    """Run the steps one after the other.

    Args:
        log: file to which all that the commands print is appended; one line on stderr then says how far all steps are.
            Without it the commands' output goes where ours goes.
    Raises: SystemExit with the status of the first step that fails, after one line that says why.
    """
    overview = Overview([step.minutes for step in steps])
    for number, step in enumerate(steps, 1):
        title = f"Step {number} of {len(steps)}: {step.heading}"
        if step.is_done():
            print(f"\n{title}: there already", flush=True)
            continue
        print(f"\n{title}\n$ {step.shown()}", flush=True)
        began = time.monotonic()
        overview.begin(number - 1)
        status, why = _run_beside_line(step, overview, log) if log else (run(step.command(), step.processes), "")
        if status:
            said = f"in {log}" if log else "above"
            end = "was stopped, all saved" if status == EXIT_STOPPED else f"ended with status {status}"
            print(why or f"{title}: vqvae2 {step.name} {end}; what it said stands {said}. The same command goes on "
                  "from here.", file=sys.stderr, flush=True)
            raise SystemExit(status)
        overview.end()
        if log:
            print(f"  done in {progress.in_words(time.monotonic() - began)}", flush=True)
        if step.note:
            files.write_text(step.note, step.done())
        step.after()


class Overview:
    """How long a chain of steps will still take, from the shares of the steps in it and the progress so far.

    Args:
        minutes: of each step, on whatever machine; 0 where that is unknown.
    """

    def __init__(self, minutes: Sequence[float], clock: Callable[[], float] = time.monotonic):
        self.minutes, self.clock = minutes, clock
        self.begin(0)
        self.done_minutes = self.done_seconds = 0.0

    def begin(self, step: int) -> None:
        """Say that this step, counted from 0, begins."""
        self.step, self.began, self.first_share, self.share = step, self.clock(), None, 0.0

    def end(self) -> None:
        """Say that the step has ended."""
        # What was there before this start took no time now: it says nothing about the machine's speed.
        if self.first_share is not None:
            self.done_minutes += self.minutes[self.step] * (1 - self.first_share)
            self.done_seconds += self.clock() - self.began

    def left(self, share: float | None) -> tuple[float | None, float | None]:
        """Return the seconds that this step and all steps will still take, None where that cannot be told yet.

        Args:
            share: how much of the step is done, 0…1; None where that is unknown.
        """
        if share is None:
            return None, None
        if self.first_share is None:
            self.first_share, self.began = share, self.clock()
        # Of a part that has several bars, one after the other, the share falls back in between.
        share = self.share = max(share, self.share)
        seconds, gained = self.clock() - self.began, share - self.first_share
        minutes, later = self.minutes[self.step], self.minutes[self.step + 1:]
        of_step = (1 - share) * seconds / gained if gained > 0 and seconds >= SECONDS_TO_GUESS else None
        worked_seconds, worked_minutes = self.done_seconds + seconds, self.done_minutes + minutes * gained
        if not all(self.minutes[self.step:]) or worked_seconds < SECONDS_TO_GUESS or not worked_minutes:
            return of_step, of_step if not later else None
        speed = worked_seconds / worked_minutes
        return of_step, (minutes * (1 - share) * speed if of_step is None else of_step) + sum(later) * speed


def _run_beside_line(step: Step, overview: Overview, log: Path) -> tuple[int, str]:
    """Run a step, its output going to the log, beside a line on stderr; return its status, and why it failed if the
    user can mend that."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        note, error = folder / "progress", folder / "error"
        stream = stack.enter_context(log.open("ab"))
        stream.write(f"\n$ {step.shown()}\n".encode(errors="surrogateescape"))
        stream.flush()
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(note, overview, len(overview.minutes), ended), daemon=True)
        watcher.start()
        try:
            status = run(step.command(), step.processes, stream, {
                progress.PROGRESS_FILE: str(note), "VQVAE2_USER_ERROR_FILE": str(error)})
        finally:
            ended.set()
            watcher.join()
        why = error.read_text(encoding="utf-8").strip() if error.is_file() else ""
        return (EXIT_USER_ERROR if why else status), why


def _watch(note: Path, overview: Overview, steps: int, ended: threading.Event) -> None:
    """Keep a line on stderr until `ended`: rewritten on a terminal, else a new one every few minutes."""
    is_terminal, said = sys.stderr.isatty(), time.monotonic()
    while not ended.wait(1.0 if is_terminal else 5.0):
        found = progress.read_note(note)
        share = found.get("share") if found.get("is_all") else None
        of_step, of_all = overview.left(share)
        done = found.get("share") if share is None else overview.share
        is_last = overview.step + 1 == steps
        parts = [str(found.get("what") or "starting"), *([f"{done:.0%}"] if found else ()),
                 *([f"{progress.in_words(of_step)} left in this step"] if of_step is not None and not is_last else ()),
                 *([f"about {progress.in_words(of_all)} left for all steps"] if of_all is not None else ())]
        line = f"  [{overview.step + 1}/{steps}] {', '.join(parts)}"
        if is_terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"\r\033[K{line[:width - 1]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            print(line, file=sys.stderr, flush=True)
            said = time.monotonic()
    if is_terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def run(command: list[str], processes: int, output: object = None, more: dict[str, str] | None = None) -> int:
    """Run a command to its end and return its exit status, 128 + N where signal N ended it, as a shell has it.

    Args:
        output: file for what it prints, instead of our own stdout and stderr. more: variables of its environment.
    """
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
        child = subprocess.Popen(command, env={**threads, **os.environ, **(more or {})}, stdout=output,
                                 stderr=output and subprocess.STDOUT)
        if came:
            child.terminate()
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped and processes > 1 and status:
        return EXIT_STOPPED  # torchrun ends with 1 whatever its processes ended with
    return 128 - status if status < 0 else status


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


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
