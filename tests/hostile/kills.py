"""A command killed at a random moment, and started again -> the results of one that was never killed."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import tiny_chain
from hostile.part import Part

LONGEST = 3.0
"""Seconds between a start and its kill, at most; a command that has ended by then was not killed."""


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Kill a command, perhaps twice, and let the same command go on."""
    draws, name = random.Random(number), list(tiny_chain.COMMANDS)[number % len(tiny_chain.COMMANDS)]
    words, root = tiny_chain.COMMANDS[name].split(), tiny_chain.copied(prepared, folder / "killed")

    def kill(process: int) -> None:
        time.sleep(draws.uniform(0, LONGEST))
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(process, signal.SIGKILL)

    kills = sum(tiny_chain.start(words, root, while_running=kill).status == -signal.SIGKILL
                for _ in range(draws.randint(1, 2)))
    ended = tiny_chain.start(words, root)
    assert ended.status == 0, f"{name}: {ended.status} {ended.err}"
    tiny_chain.assert_as_undisturbed(name, root, prepared, folder)
    return "resumed" if kills else "done"


PART = Part("kills", "commands killed (kill -9) at random moments and started again: " + ", ".join(tiny_chain.COMMANDS),
            180, try_one, tiny_chain.prepare, in_suite=1)
