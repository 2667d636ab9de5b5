"""A failure -> one line that its user can act on, and the exit status that scripts rely on.

Exit status: 0 done; 2 a user's error; 75 stopped by a signal with everything saved (requeue me). torchrun makes 1 of
any but 0.
Anything else that is raised is our bug and keeps its traceback.
"""

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
    """The one error that a user is meant to read.

    Its text is `<file, flag or parameter>: expected <rule>, found <value>. <What to do now.>`
    """


class Stopped(Exception):
    """Training was stopped by a signal, and all that is needed to go on has been saved."""


class Unreadable(UserError):
    """A file that cannot be read now, though it may be good: the disk, not the file, is to be seen to."""


def expect(ok: bool, what: str, rule: str, found: object, advice: str) -> None:
    """Raise UserError in the project's one form unless `ok`."""
    if not ok:
        raise UserError(f"{what}: expected {rule}, found {found}. {advice}")


def flag(name: str) -> str:
    """Return how a setting is written on the command line: `per_scan` is `--per-scan`."""
    return "--" + name.replace("_", "-")


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call `main`, then exit: 0, or 2 after one line for a `UserError`, or 75 for `Stopped`."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        line = " ".join(str(error).split())
        # Rank 0 speaks. torchrun ends all processes when the first one ends, so the others wait for rank 0 to have
        # spoken; a process that is still alive after that has met an error of its own.
        if launched_rank() != 0:
            time.sleep(5)
        print(line, file=sys.stderr, flush=True)
        _tell_launcher(line)
        raise SystemExit(EXIT_USER_ERROR) from None
    except (Stopped, KeyboardInterrupt) as stop:  # all ranks stop together, and rank 0 speaks for them
        if launched_rank() == 0:
            print(str(stop) or "Stopped by Ctrl-C.", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED) from None
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def launched_rank() -> int:
    """Return the rank that torchrun gave this process; known before the process group starts."""
    return int(os.environ.get("RANK", 0))


def _tell_launcher(line: str) -> None:
    """See to it that an error which only the user can mend is not met again and again.

    `torchrun --max-restarts` starts again whatever the exit status was; a SIGTERM ends it, and all its processes, for
    good. Its own status is 1 for any failure: a batch script that is to tell them apart names a file in
    VQVAE2_USER_ERROR_FILE, which then holds the line.
    """
    if path := os.environ.get("VQVAE2_USER_ERROR_FILE"):
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(f"{line}\n")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        os.kill(os.getppid(), signal.SIGTERM)
