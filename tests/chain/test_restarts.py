"""torchrun starts workers again: what they go on from, what is not tried again, and what changes with their number.

Also what the other tests of launched runs share: a data set of some hundred images, the command line of a tiny run,
and processes that are watched and always ended.
"""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import conftest
import pytest
import torch
from ranks import run_on_ranks

from vqvae2.commands import train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.runs import state as run_state

ROOT = Path(__file__).parents[2]
SECONDS = 90
"""Deadline of whatever is waited for; on two idle cores each takes less than 15."""
GLOBAL_BATCH = 8
STEPS_PER_EPOCH, EPOCHS = 30, 4
TINY = ["--dataset", "oasis", "--epochs", str(EPOCHS), "--threads", "1", "--precision", "fp32",
        "--pictures-every", "0", "--channels", "8", "--residual-channels", "8", "--embedding-dim", "8",
        "--codebook-size", "16", "--start-steps", "6", "--warmup-steps", "2", "--learning-rate", "1e-4",
        "--timeout-minutes", "0.25", "--checkpoint-minutes", "0.001"]
QUICK_RENDEZVOUS = ("join_timeout=60,last_call_timeout=1,close_timeout=2,read_timeout=20,"
                    "keep_alive_interval=1,keep_alive_max_attempt=5")
"""Short, but not shorter: an agent whose heartbeats come late is taken for dead, and the others go on without it."""
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it a host cannot join a run in torch 2.13: it waits for an address that was only given at the first start."""


class Launched:
    """A command that runs in the background; what it prints is in `path`. When the context ends, so does all of it."""

    def __init__(self, command: list[object], path: Path, **environment: str):
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("PET_", "TORCHELASTIC_", "SLURM_")) and name not in ("SLICES_PATH", "RANK")}
        self.path = path
        with path.open("ab") as file:
            self.process = subprocess.Popen(
                [str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env={**kept, "OMP_NUM_THREADS": "1", "LOGLEVEL": "INFO", "PYTHONUNBUFFERED": "1", **environment})

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill the process and all that it has started, as when a machine goes down."""
        for process in (self.process.pid, *descendants(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def printed(self) -> str:
        return self.path.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        """Wait until it has printed something that matches."""
        wait_until(lambda: re.search(pattern, self.printed()) or self.process.poll() is not None,
                   lambda: f"{pattern!r} was not printed:\n{self.printed()[-6000:]}")
        assert re.search(pattern, self.printed()), f"ended without printing {pattern!r}:\n{self.printed()[-6000:]}"

    def status(self) -> int:
        """Wait for its end; return its exit status."""
        wait_until(lambda: self.process.poll() is not None,
                   lambda: f"still runs after {SECONDS} seconds:\n{self.printed()[-6000:]}")
        return self.process.returncode

    def workers(self) -> list[int]:
        """Process ids of the training processes that torchrun has started."""
        wait_until(lambda: descendants(self.process.pid), lambda: f"no worker:\n{self.printed()[-6000:]}")
        return descendants(self.process.pid)


def wait_until(condition, message) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.01)


def descendants(process: int) -> list[int]:
    """Process ids of the children of a process, their children, and so on."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, new = [], [process]
    while new:
        new = [child for child, parent in pairs if parent in new]
        found += new
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(*flags: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def training(data: Path, results: Path, batch: int, *more: str) -> list[object]:
    return ["train_vqvae.py", *TINY, "--data", data, "--results", results, "--savename", "x", "--batch", batch, *more]


def state_of(results: Path) -> dict | None:
    """The state of the run, or None where there is none yet, or where it is just being replaced."""
    try:
        return run_state.load_state(results / "oasis" / "x" / run_state.STATE)
    except UserError:
        return None


def wait_for_mid_epoch(results: Path, launched: Launched, epoch: int = 0) -> dict:
    """Wait for a state that was saved inside an epoch, later than the first `epoch` ones; return it."""
    found: list[dict] = []

    def is_there() -> bool:
        assert launched.process.poll() is None, launched.printed()[-6000:]
        state = state_of(results)
        if state and state["epoch"] >= epoch and state["step_in_epoch"]:
            found.append(state)
        return bool(found)

    wait_until(is_there, lambda: f"no state from inside an epoch:\n{launched.printed()[-6000:]}")
    return found[0]


def assert_same_end(results: Path, reference: Path, bitwise: bool = True) -> None:
    """Compare the ends of two runs: the models bitwise, or where floats were summed in another order the figures.

    A vector halfway between two embeddings may then choose the other one, and after a hundred steps two codebooks
    differ in a few rows (seen: 0.02), though nothing that is reported does (test_two_processes.py compares steps).
    """
    ours, theirs = state_of(results), state_of(reference)
    assert (ours["epoch"], ours["step"]) == (theirs["epoch"], theirs["step"]) == (EPOCHS, EPOCHS * STEPS_PER_EPOCH)
    for name, value in theirs["model"].items() if bitwise else ():
        assert torch.equal(ours["model"][name], value), name
    for our_row, their_row in zip(ours["rows"], theirs["rows"], strict=True):
        for name in ("images_seen", "learning_rate", "train_loss", "train_mse", "validate_mse"):
            assert our_row[name] == pytest.approx(their_row[name], rel=0.02), name


@functools.cache  # pytest takes a fixture of the session that a module imports for another one
def many_slices(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "SLICES_PER_SUBJECT", 40)
        return conftest.write_slices(folder / "many")


@functools.cache
def trained_undisturbed(folder: Path) -> Path:
    words = training(many_slices(folder), folder / "undisturbed", GLOBAL_BATCH // 2)[1:]
    run_on_ranks(2, train_vqvae.main, list(map(str, words)))
    return folder / "undisturbed"


@pytest.fixture(scope="session")
def slices(tmp_path_factory) -> Path:
    """240 training and 80 validation images of 32 x 32."""
    return many_slices(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    """The results of two processes that nothing has disturbed."""
    return trained_undisturbed(tmp_path_factory.getbasetemp())


def starts(printed: str) -> int:
    """How often torchrun has started its workers, by its own log."""
    return len(re.findall(r"Starting worker group", printed))


def test_a_worker_killed_in_mid_epoch_is_started_again_and_the_end_is_bitwise_that_of_an_undisturbed_run(
        slices, undisturbed, tmp_path):
    command = torchrun("--standalone", "--nproc_per_node=2", "--max_restarts=2") + training(
        slices, tmp_path, GLOBAL_BATCH // 2)
    with Launched(command, tmp_path / "printed.txt") as run:
        seen = wait_for_mid_epoch(tmp_path, run, epoch=1)
        os.kill(run.workers()[-1], signal.SIGKILL)
        assert run.status() == 0, run.printed()[-6000:]
    assert starts(run.printed()) == 2
    went_on_at = int(re.search(r"going on at epoch \d+, step (\d+)", run.printed())[1])
    assert went_on_at >= seen["step"] > STEPS_PER_EPOCH, "it went on from an older state than it had saved"
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize(("wrong", "line"), [
    (["--embedding-dim", "0"], "--embedding-dim: expected 2 to 16384, found 0."),  # before the processes join
    (["--data", "nowhere"], "nowhere: expected")])  # after
def test_a_users_error_is_said_once_and_not_tried_again(slices, tmp_path, wrong, line):
    command = torchrun("--standalone", "--nproc_per_node=2", "--max_restarts=2") + training(slices, tmp_path, 4, *wrong)
    with Launched(command, tmp_path / "printed.txt") as run:
        assert run.status() != 0
    assert (starts(run.printed()), run.printed().count(line)) == (1, 1), run.printed()[-6000:]


def agent(port: int, results: Path, slices: Path, name: str) -> Launched:
    """torchrun as on one of two hosts, with one process."""
    command = torchrun("--nnodes=1:2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}",
                       "--rdzv_id=elastic", "--max_restarts=2", f"--rdzv_conf={QUICK_RENDEZVOUS}")
    return Launched([*command, *training(slices, results, GLOBAL_BATCH // 2, "--accumulate", "2")],
                    results / f"{name}.txt", **OWN_STORE)


def test_a_second_agent_joins_and_the_run_goes_on_with_twice_the_processes_and_the_same_global_batch(
        slices, undisturbed, tmp_path):
    port = free_port()
    with agent(port, tmp_path, slices, "first") as first:
        wait_for_mid_epoch(tmp_path, first)
        assert "global batch 8 = 1 process(es) x 4 x accumulation 2" in first.printed()
        alone, = first.workers()
        os.kill(alone, signal.SIGSTOP)  # so that it is not done before the second one is there
        with agent(port, tmp_path, slices, "second") as second:
            first.wait_for("Detected 1 new nodes")
            os.kill(alone, signal.SIGCONT)
            assert (first.status(), second.status()) == (0, 0), first.printed()[-6000:] + second.printed()[-6000:]
    both = first.printed() + second.printed()
    assert "Stopped by a signal at step" in first.printed()
    assert "global batch 8 = 2 process(es) x 4 x accumulation 1" in both
    assert re.search(r"going on at epoch \d+, step \d+", both)
    assert_same_end(tmp_path, undisturbed, bitwise=False)
