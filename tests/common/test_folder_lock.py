"""A folder that one process writes to is closed to the others while it lives, and its dead processes' files go."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vqvae2.common import folder_lock
from vqvae2.common.errors import UserError
from vqvae2.common.folder_lock import LOCK, claimed

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from vqvae2.common.folder_lock import claimed
with claimed(Path(sys.argv[1]), "--out x"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed <tmp_path>/out."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)


def test_the_lock_leaves_nothing_in_the_folder_and_a_folder_that_stays_empty_goes(tmp_path):
    with claimed(tmp_path / "a" / "b", "--out a/b") as claim:
        assert claim.alone
        assert json.loads((tmp_path / "a" / "b" / LOCK).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a", "--out a"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_a_second_start_is_told_who_writes_there_and_what_to_do(holder, impatient, tmp_path, capsys):
    line = (rf"^--out out: expected a folder that no other process writes to, found process {holder.pid} on \S+\. "
            r"Wait for it to end, or choose another --out\. \(If")
    with pytest.raises(UserError, match=line), claimed(tmp_path / "out", "--out out"):
        raise AssertionError("it got in")
    assert capsys.readouterr().out == (f"--out out: process {holder.pid} on {os.uname().nodename} is still writing "
                                       "there; waiting for it to end, 0.1 seconds at most\n")


def test_a_start_goes_on_as_soon_as_the_one_before_has_ended_however_it_ended(holder, tmp_path):
    threading.Timer(0.3, holder.kill).start()
    with claimed(tmp_path / "out", "--out out") as claim:
        assert claim.alone
        assert holder.wait() == -signal.SIGKILL
    assert list((tmp_path / "out").iterdir()) == []


def test_of_many_that_come_and_go_never_two_are_inside(tmp_path):
    """Each removes the lock's file and the folder as it leaves, while others are about to open them."""
    inside, most = [], []

    def come_and_go():
        for _ in range(30):
            with claimed(tmp_path / "out", "--out out"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (120, 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_killed_processes_left_is_removed_by_whoever_holds_the_folder(tmp_path):
    for name in (".1.tmp.png", "inner/.2.tmp", "other/.3.tmp.npz", "kept.tmp.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with claimed(tmp_path, "--out out") as claim:
        claim.remove_left_overs("inner", "absent")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".3.tmp.npz", "kept.tmp.png"]


@pytest.mark.parametrize("how", [OSError(errno.ENOLCK, "no locks"), OSError(errno.ENOTSUP, "not supported"), None])
def test_where_there_are_no_locks_nobody_is_refused_and_fresh_half_written_files_stay(how, tmp_path, monkeypatch):
    def unsupported(*_):
        raise how
    if how is None:
        monkeypatch.setattr(folder_lock, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".fresh.tmp").touch()
    (tmp_path / ".old.tmp").touch()
    os.utime(tmp_path / ".old.tmp", (0, 0))
    with claimed(tmp_path, "--out out") as claim, claimed(tmp_path, "--out out"):
        assert not claim.alone
        claim.remove_left_overs()
    assert [path.name for path in tmp_path.iterdir()] == [".fresh.tmp"]


@pytest.mark.parametrize(("environment", "held_by", "is_ours"), [
    ({"TORCHELASTIC_RUN_ID": "job-7"}, {"start": "job-7"}, True),  # elastic, and a machine was lost
    ({"TORCHELASTIC_RUN_ID": "job-8"}, {"start": "job-7"}, False),
    ({"TORCHELASTIC_RUN_ID": "none"}, {"start": None}, False),  # two starts without an id
    ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, {"start": None}, True),
    ({"SLURM_JOB_ID": "7"}, {"job": "7", "host": "another"}, True),  # requeued after its node crashed
    ({"SLURM_JOB_ID": "7"}, {"job": "7"}, False)])  # two starts inside one allocation
def test_a_process_that_a_launcher_started_in_place_of_a_lost_one_goes_on(environment, held_by, is_ours, impatient,
                                                                          tmp_path, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with claimed(tmp_path, "--out out"):
        (tmp_path / LOCK).write_text(json.dumps({"process": 1, "host": os.uname().nodename} | held_by))
        if is_ours:
            with claimed(tmp_path, "--out out") as claim:
                assert not claim.alone
        else:
            with pytest.raises(UserError, match=r"found process 1 on"), claimed(tmp_path, "--out out"):
                raise AssertionError("it got in")
        assert (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    line = r"^--out x: expected a folder that can be written, found .*\. Choose another --out"
    with pytest.raises(UserError, match=line), claimed(Path("/proc/x"), "--out x"):
        raise AssertionError("it got in")
