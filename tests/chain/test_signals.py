"""SIGTERM, SIGINT, SIGHUP, SIGUSR1, to real processes and at any time: all is saved, together, and the status is 75."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import slow_line
import torch
from ranks import run_on_ranks

from vqvae2.runs import state as run_state

ROOT = Path(__file__).parents[2]
SECONDS = 20
"""Within which a signal must have ended the run (torchrun kills after 30)."""
STOPPED = 75


class Run:
    """A slow line in training, alone or under torchrun."""

    def __init__(self, results: Path, processes: int, *more: str, **seconds: float):
        results.mkdir(exist_ok=True)
        self.results, self.folder, self.log = results, results / "oasis" / "line", results / "said.txt"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={processes}"]
        arguments = [*(launcher if processes > 1 else ()), "tests/helpers/slow_line.py", *words(results, processes),
                     *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                       **{f"SLOW_{phase.upper()}": str(value) for phase, value in seconds.items()}}
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log,
                                            stderr=log, start_new_session=True)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it, and its workers, with SIGKILL; torchrun's do not end with it."""
        numbers = {int(path.read_text()) for path in self.results.glob("start-*") if path.read_text()}
        for number in numbers | {self.process.pid} if self.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, phase: str, rank: int = 0) -> int:
        """Wait until a rank has begun a phase; return its process."""
        path, end = self.results / f"{phase}-{rank}", time.monotonic() + 60
        while not (path.exists() and path.read_text()):
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return int(path.read_text())

    def end(self, seconds: float = 60) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(seconds)


def words(results: Path, processes: int) -> list[str]:
    return ["--savename", "line", "--results", str(results), "--batch", str(8 // processes), "--epochs", "2",
            "--threads", "1", "--precision", "fp32", "--pictures-every", "0"]


def finish(results: Path, processes: int) -> dict[str, torch.Tensor]:
    """Run the same command to its end, undisturbed, and without a new Python; return the weights."""
    if processes > 1:
        run_on_ranks(processes, slow_line.main, words(results, processes))
    else:
        slow_line.main(words(results, processes))
    return run_state.load_state(results / "oasis" / "line" / "state.pt")["model"]


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "two processes"])
def undisturbed(request, tmp_path_factory) -> tuple[int, dict]:
    return request.param, finish(tmp_path_factory.mktemp("whole"), request.param)


def check_same(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("phase", "seconds", "number"), [
    ("start", 30, signal.SIGINT), ("pass", 1, signal.SIGUSR1), ("validation", 30, signal.SIGHUP)])
def test_a_signal_in_any_phase_saves_and_the_run_goes_on_as_if_nothing_had_been(phase, seconds, number, undisturbed,
                                                                                 tmp_path):
    processes, whole = undisturbed
    with Run(tmp_path, processes, **{phase: seconds}) as run:
        for rank in range(processes):
            run.wait_for(phase, rank)
        began = time.monotonic()
        # torchrun forwards SIGTERM, SIGINT and SIGHUP. SIGUSR1 goes to one rank, and all stop together.
        target = run.wait_for(phase, processes - 1) if number == signal.SIGUSR1 else run.process.pid
        os.kill(target, number)
        status = run.end()
        assert time.monotonic() - began < SECONDS
    said = run.log.read_text()
    assert said.count("Stopped by a signal") == 1, said
    assert "The same command goes on from here." in said
    if processes == 1:
        assert status == STOPPED
    elif number == signal.SIGUSR1:
        assert "exitcode  : 75" in said  # torchrun's report; where the signal ended torchrun itself it makes none
    if phase != "start":
        state = run_state.load_state(run.folder / "state.pt")
        assert state["step_in_epoch"] == (5 if phase == "validation" else state["step"] % 5)
        assert state["step"] >= 1
    check_same(finish(tmp_path, processes), whole)


def test_a_signal_between_micro_batches_saves_the_step_before(tmp_path):
    """A step of 8 micro-batches of 3 seconds each: nobody waits for its end."""
    with Run(tmp_path, 1, "--batch", "1", "--accumulate", "8", **{"pass": 3}) as run:
        run.wait_for("pass")
        began = time.monotonic()
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() == STOPPED, run.log.read_text()
        assert time.monotonic() - began < SECONDS
    assert run_state.load_state(run.folder / "state.pt")["step"] == 0


def test_a_killed_run_has_lost_no_more_than_checkpoint_minutes(tmp_path):
    with Run(tmp_path, 2, "--checkpoint-minutes", "0.02", **{"pass": 1.5}) as run:
        run.wait_for("pass")
        time.sleep(4)
        run.kill()
    state = run_state.load_state(run.folder / "state.pt")
    assert (state["epoch"], state["step"] >= 1) == (0, True)
    assert not list(run.folder.glob("*.tmp*"))


def test_a_second_signal_does_not_disturb_the_saving(tmp_path):
    with Run(tmp_path, 1, **{"pass": 0.5}) as run:
        run.wait_for("pass")
        for _ in range(5):
            os.kill(run.process.pid, signal.SIGTERM)
            time.sleep(0.05)
        assert run.end() == STOPPED, run.log.read_text()
    assert run_state.load_state(run.folder / "state.pt")["step"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_at_the_start_reacts_to_a_signal(rank):
    """As where the other was stopped first: torchrun asks the rest to end, and kills them only after 30 seconds."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    code = ("import torch\nfrom vqvae2.common import distributed\nfrom vqvae2.common.errors import run_script\n"
            "def main():\n    print('waiting', flush=True)\n    distributed.start(torch.device('cpu'))\n"
            "run_script(main)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={
        **os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"})
    try:
        assert process.stdout.readline() == "waiting\n"
        if rank == 1:
            store.wait(["vqvae2/question/1"])
        time.sleep(1)
        process.terminate()
        assert process.wait(10) == STOPPED
    finally:
        process.kill()
        process.wait()
