"""launch/two_hosts.sh on two hosts: two network namespaces of this machine, which the tests make and take away again.

Each has its own loopback and one end of a cable, and sees no other network; the disk is shared, as a cluster's is.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from test_restarts import GLOBAL_BATCH, QUICK_RENDEZVOUS, ROOT, Launched, assert_same_end, training, wait_for_mid_epoch
from test_restarts import slices as slices
from test_restarts import undisturbed as undisturbed

ADDRESSES = ("10.123.45.1", "10.123.45.2")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Hosts:
    """Two hosts with a cable between them."""

    def __init__(self):
        self.names = [f"vqvae2-{uuid.uuid4().hex[:8]}-{number}" for number in (1, 2)]

    def plug_in(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, address in zip(self.names, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")

    def cable(self, state: str) -> None:
        """Cut the cable (down), or mend it (up)."""
        ip("-n", self.names[0], "link", "set", "eth0", state)

    def take_away(self) -> None:
        """End what still runs there, and remove both."""
        for name in self.names:
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for process in listed.split():
                os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def launch(self, number: int, results: Path, slices: Path, *flags: str, name: str = "") -> Launched:
        """The line that a person types on host 1 or 2, with one process."""
        command = ["ip", "netns", "exec", self.names[number - 1], "bash", "launch/two_hosts.sh", ADDRESSES[0], *flags,
                   "--", *training(slices, results, GLOBAL_BATCH // 2)]
        return Launched(command, results / f"host-{number}{name}.txt", PYTHON=sys.executable, PROCESSES="1",
                        RDZV_CONF=QUICK_RENDEZVOUS)


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed, which makes network namespaces")
    made = Hosts()
    try:
        try:
            made.plug_in()
        except OSError as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        yield made
    finally:
        made.take_away()


def test_two_hosts_train_to_the_same_end_as_one(hosts, slices, undisturbed, tmp_path):
    with hosts.launch(1, tmp_path, slices) as first, hosts.launch(2, tmp_path, slices) as second:
        assert (first.status(), second.status()) == (0, 0), first.printed()[-4000:] + second.printed()[-4000:]
    assert f"master_addr={ADDRESSES[0]}" in second.printed()
    assert "global batch 8 = 2 process(es) x 4 x accumulation 1" in first.printed()
    assert_same_end(tmp_path, undisturbed)


def test_a_host_whose_cable_is_cut_is_given_up_and_joins_again_when_it_is_back(hosts, slices, undisturbed, tmp_path):
    elastic = ("--nnodes=1:2", "--max_restarts=3")
    with hosts.launch(1, tmp_path, slices, *elastic) as first:
        with hosts.launch(2, tmp_path, slices, *elastic) as second:
            wait_for_mid_epoch(tmp_path, first)
            hosts.cable("down")
            first.wait_for("1 process.es. x 4 x accumulation 2")
            # It would wait for its store for minutes: a person would start that host again.
            second.kill()
        alone, = (worker for worker in first.workers() if "train_vqvae" in command_of(worker))
        os.kill(alone, signal.SIGSTOP)  # so that it is not done before the second host is back
        hosts.cable("up")
        with hosts.launch(2, tmp_path, slices, *elastic, name="-again") as second:
            first.wait_for("Detected 1 new nodes")
            os.kill(alone, signal.SIGCONT)
            assert (first.status(), second.status()) == (0, 0), first.printed()[-4000:] + second.printed()[-4000:]
    ranks = [int(number) for number in re.findall(r"global batch 8 = (\d) process", first.printed())]
    assert ranks == [2, 1, 2]
    assert_same_end(tmp_path, undisturbed, bitwise=False)


def command_of(process: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(process)], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(("words", "line"), [
    ([], "Trains on two hosts with plain torchrun"), (["10.0.0.1"], "HOST -- train_vqvae.py"),
    (["no-such-host.invalid", "--", "train_vqvae.py"],
     "no-such-host.invalid: expected the first host's name or address, found one that this host cannot reach")])
def test_a_wrong_line_is_answered_with_what_would_be_right(words, line):
    done = subprocess.run(["bash", "launch/two_hosts.sh", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 2
    assert line in done.stderr
