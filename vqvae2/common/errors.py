"""A failure -> one line that its user can act on, and the exit status that scripts rely on.

Exit status: 0 done; 2 an error of the user; 75 stopped by a signal with everything saved (start the same command
again). torchrun turns every status except 0 into 1. Every other exception is a bug of this project and keeps its
traceback.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75


class UserError(Exception):
    """An error that the user can mend, and whose text is written for the user.

    Its text is `<file, flag or parameter>: expected <rule>, found <value>. <What to do now.>`
    """


class Stopped(Exception):
    """Training was stopped by a signal, and all that is needed to go on has been saved."""


class Unreadable(UserError):
    """A file cannot be read now, although it may be good: the fault may lie with the disk."""


def expect(ok: bool, what: str, rule: str, found: object, advice: str) -> None:
    """Raise UserError in the project's one form unless `ok`."""
    if not ok:
        raise UserError(f"{what}: expected {rule}, found {found}. {advice}")


def flag(name: str) -> str:
    """Return how a setting is written on the command line: `per_scan` is `--per-scan`."""
    return "--" + name.replace("_", "-")


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call `main`, then exit: 0, or 2 after one line for a `UserError`, or 75 for `Stopped`."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot write is no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        line = " ".join(str(error).split())
        # Only rank 0 prints. torchrun ends all processes when the first process ends, so the others wait until rank 0
        # has printed; a process that is still alive after that has met an error of its own.
        if launched_rank() != 0:
            time.sleep(5)
        print(line, file=sys.stderr, flush=True)
        _tell_launcher(line)
        raise SystemExit(EXIT_USER_ERROR) from None
    except (Stopped, KeyboardInterrupt) as stop:  # all ranks stop together, and rank 0 prints the line
        if launched_rank() == 0:
            print(str(stop) or "Stopped by Ctrl-C.", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED) from None
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def launched_rank() -> int:
    """Return the rank that torchrun gave this process; it is known before the process group starts."""
    return int(os.environ.get("RANK", 0))


def _tell_launcher(line: str) -> None:
    """Keep torchrun from repeating a command whose error only the user can mend.

    `torchrun --max-restarts` restarts the processes whatever their exit status was; a SIGTERM ends torchrun and all its
    processes for good. Its own status is 1 for any failure, so a batch script that must recognise a user error sets
    VQVAE2_USER_ERROR_FILE to the name of a file, into which this function writes the line.
    """
    if path := os.environ.get("VQVAE2_USER_ERROR_FILE"):
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(f"{line}\n")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        os.kill(os.getppid(), signal.SIGTERM)
