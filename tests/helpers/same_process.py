"""A command line of this project -> what it does, in this process, which has loaded torch: a new one needs seconds."""

import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import BinaryIO
from unittest import mock

import pytest
from pasted import module_and_arguments

from vqvae2 import commands
from vqvae2.commands import steps
from vqvae2.common import machine


def run(command: Sequence[str], processes: int = 1, output: BinaryIO | None = None,
        more: dict[str, str] | None = None) -> int:
    """Stand in for `steps.run`: run the command to its end and return 0. Raises: whatever the command raises."""
    assert processes == 1, f"{processes} processes cannot be one: {command}"
    name, arguments = module_and_arguments(list(command))
    with (mock.patch.dict(os.environ, more or {}), _going_to(output),
          mock.patch.object(machine, "set_threads")):  # more than one thread would wait for the other tests' threads
        importlib.import_module(name).main(arguments)
    return 0


@contextmanager
def _going_to(output: BinaryIO | None) -> Iterator[None]:
    if output is None:
        yield
        return
    text = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    with redirect_stdout(text), redirect_stderr(text):
        yield
    text.detach()


def ended(*words: object) -> tuple[int, str]:
    """Return the exit status of `vqvae2 words…`, and all that it prints, as a shell would have them."""
    printed = io.StringIO()
    with (redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as end,
          mock.patch.object(sys, "argv", ["vqvae2", *map(str, words)])):
        commands.main()
    return int(end.value.code or 0), printed.getvalue()


@contextmanager
def chains() -> Iterator[None]:
    """Let the steps of a chain, such as of `vqvae2 run`, run in this process."""
    with mock.patch.object(steps, "run", run):
        yield
