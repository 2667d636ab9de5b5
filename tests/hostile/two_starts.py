"""Two starts of one command, into one folder, at about the same time -> the results of one start."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import tiny_chain
from hostile.part import Part

LONGEST = 3.0
"""Seconds between the first start and the second, at most."""
REFUSED = ("expected a folder that no other process writes to, found ",
           "expected a folder in which no other extraction is at work, found ")


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Start a command twice. In every other round the first is halted until the second has ended."""
    draws, name = random.Random(number), list(tiny_chain.COMMANDS)[number % len(tiny_chain.COMMANDS)]
    words, root = tiny_chain.COMMANDS[name].split(), tiny_chain.copied(prepared, folder / "twice")
    is_halted, halted = number // len(tiny_chain.COMMANDS) % 2, []

    def halt(process: int) -> None:
        time.sleep(draws.uniform(0, LONGEST))
        with suppress(ProcessLookupError):  # it has ended by itself
            if is_halted:
                os.kill(process, signal.SIGSTOP)
        halted.append(process)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(tiny_chain.start, words, root, "first", halt)
        while not halted and not first.done():
            time.sleep(0.01)
        second = tiny_chain.start(words, root, "second")
        with suppress(ProcessLookupError):
            os.kill(halted[0], signal.SIGCONT)
        ends = [first.result(), second]
    assert sorted(ended.status for ended in ends) in ([0, 0], [0, 2]), [(ended.status, ended.err) for ended in ends]
    for ended in ends:
        if ended.status:
            line = ended.err.rstrip("\n").rsplit("\r", 1)[-1]
            assert "\n" not in line, ended.err
            assert any(words in line for words in REFUSED), ended.err
    tiny_chain.assert_as_undisturbed(name, root, prepared, folder)
    return "refused" if any(ended.status for ended in ends) else "both"


PART = Part("two_starts", "pairs of starts of one command into one folder: " + ", ".join(tiny_chain.COMMANDS), 120,
            try_one, tiny_chain.prepare, in_suite=1)
