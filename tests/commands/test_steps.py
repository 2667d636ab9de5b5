"""A chain of commands: what becomes of the one at work when a signal comes."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from vqvae2.commands import steps

CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open("ready", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_command_is_waited_for(number, apart):
    def send() -> None:
        while not Path("ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    assert steps.run([sys.executable, "-c", CHILD], 1) == 75
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("signalled", "expected"), [(True, 75), (False, 1)])
def test_a_launcher_that_a_signal_ended_counts_as_stopped_whatever_its_status(apart, signalled, expected):
    """torchrun ends with 1 after a signal, as after any failure."""
    if signalled:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert steps.run([sys.executable, "-c", "import sys, time; time.sleep(1); sys.exit(1)"], 2) == expected


def test_a_signal_before_the_command_has_begun_is_not_lost(apart, monkeypatch):
    start = steps.subprocess.Popen

    def signalled(*arguments: object, **more: object) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        return start(*arguments, **more)
    monkeypatch.setattr(steps.subprocess, "Popen", signalled)
    assert steps.run([sys.executable, "-c", "import time; time.sleep(60)"], 1) == 128 + signal.SIGTERM
