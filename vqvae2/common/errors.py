"""A failure or a signal -> one line that its user can act on, and the exit status that scripts rely on.

Exit status: 0 done; 2 an error of the user; 75 stopped by a signal with everything saved (start the same command
again). torchrun turns every status except 0 into 1. Every other exception is a bug of this project and keeps its
traceback.
"""

import atexit
import errno
import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from vqvae2.common import output

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
                     if hasattr(signal, name))
"""Signals that ask a process to save and end, those of them that this system has. A closed terminal sends SIGHUP."""
FULL_DISK = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)
SECONDS_TO_END = 5.0
"""For so long a second signal leaves a process alone that is ending: one request often comes as several signals."""
SECONDS_TO_IMPORT = 0.1
"""After so long a signal comes again that found the process importing."""
HAS_TIMERS = hasattr(signal, "setitimer")


class UserError(Exception):
    """An error that the user can mend, and whose text is written for the user.

    Its text is `<file, flag or parameter>: expected <rule>, found <value>. <What to do now.>`
    """


class Stopped(BaseException):
    """A signal stopped the work, and all that is needed to go on has been saved.

    This is not an Exception: code that catches whatever a damaged file may raise must let it pass.
    """


class Unreadable(UserError):
    """A file cannot be read now, although it may be good: the fault may lie with the disk."""


def expect(ok: bool, what: str, rule: str, found: object, advice: str) -> None:
    """Raise UserError in the project's one form unless `ok`."""
    if not ok:
        raise UserError(f"{what}: expected {rule}, found {found}. {advice}")


def flag(name: str) -> str:
    """Return how a setting is written on the command line: `per_scan` is `--per-scan`."""
    return "--" + name.replace("_", "-")


def stop_signals() -> list[signal.Signals]:
    """Return STOP_SIGNALS without those that are ignored: what `nohup`, or a shell for a job in the background, has
    told a command to ignore stays ignored."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class Stopping:
    """Raises Stopped at a signal, until that has got through to whoever ends the work.

    Not while a module is imported: libraries catch whatever an import of theirs may raise, and go on without a part of
    themselves. Once more after SECONDS_TO_END where it is not on its way any longer: an exception in a destructor, or
    below code that catches everything, is lost. (A system without timers does neither.) And what a library makes of
    Stopped, an error of its own, is Stopped. `asked` is whether any signal has come, even one that raised nothing yet.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deaf_until = 0.0
        self._raised: Stopped | None = None
        self._alarm_before: Callable | int | None = None

    def raise_it(self, number: int, frame: FrameType | None, message: str) -> None:
        """Raise Stopped with `message`: the handler of signal `number`, which has interrupted `frame`, calls this."""
        self.asked = True
        now = time.monotonic()
        if now < self._deaf_until:
            return
        wait = HAS_TIMERS and _is_importing(frame)
        if not wait:
            self._deaf_until, self._raised = now + SECONDS_TO_END, Stopped(message)
        if HAS_TIMERS:
            before = signal.signal(signal.SIGALRM, lambda *_: self._come_again(number))
            self._alarm_before = before if self._alarm_before is None else self._alarm_before
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_IMPORT if wait else SECONDS_TO_END)
        if not wait:
            raise self._raised

    def _come_again(self, number: int) -> None:
        if self._deaf_until == math.inf:  # the work has ended while this was on its way
            return
        handled = sys.exc_info()[1]
        while handled is not None and handled is not self._raised:
            handled = handled.__context__
        if handled is None:
            self._deaf_until = 0.0
            signal.raise_signal(number)
        else:  # what cleans up has all the time that it needs
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_END)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Be around the work that may be stopped; when it ends, signals change nothing any more."""
        try:
            yield
        except Exception as error:
            if self._raised is None:
                raise
            raise self._raised from error
        finally:
            self._deaf_until = math.inf
            if self._alarm_before is not None:  # a program of which this is a part may have an alarm of its own
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, self._alarm_before)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call `main`, then exit: 0, or 2 after one line for a `UserError`, or 75 for `Stopped` or a signal.

    Text that cannot be written changes nothing, unless the command gives nothing else (`output.is_result`).
    """
    output.guard()
    # At its end Python would look for cycles among all objects of all modules, half a second after torch was imported.
    atexit.register(gc.freeze)
    status, stopping = 0, Stopping()

    def stop(number: int, frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        stopping.raise_it(number, frame, f"Stopped by {name}. Run the same command again to go on.")

    try:
        try:
            for number in stop_signals():
                signal.signal(number, stop)
            with stopping.around():
                main()
        except SystemExit as end:
            status = end.code
        except OSError as error:  # what reads and writes files says it better; this is for what it did not think of
            if error.errno in UNUSABLE and error.filename:
                name = str(error.filename)
                raise UserError(f"{name if len(name) < 200 else name[:100] + '…'}: expected a file or folder that can "
                                f"be used, found {error.strerror}. Correct its name or its permissions.") from error
            if error.errno not in FULL_DISK and "usable temporary directory" not in str(error):
                raise
            raise UserError(f"{error.filename or 'disk'}: expected a disk that can be written, found {error.strerror}. "
                            "Free some space; TMPDIR may name another folder for temporary files.") from error
        lost = output.lost_result()
        expect(lost is None, "standard output", "to write what was asked for", getattr(lost, "strerror", lost),
               "Free some space, or write it elsewhere.")
    except UserError as error:
        line = " ".join(str(error).split())
        # Only rank 0 prints. torchrun ends all processes when the first process ends, so the others wait until rank 0
        # has printed; a process that is still alive after that has met an error of its own.
        if launched_rank() != 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which torchrun ends the wait
            if stopping.asked:  # it has ended the wait already: the signal came inside an import, or just now
                raise SystemExit(EXIT_STOPPED) from None
            time.sleep(5)
        print(line, file=sys.stderr, flush=True)
        _tell_launcher(line)
        raise SystemExit(EXIT_USER_ERROR) from None
    except (Stopped, KeyboardInterrupt) as stopped:  # all ranks stop together, and rank 0 prints the line
        if launched_rank() == 0:
            print(str(stopped) or "Stopped by Ctrl-C.", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_STOPPED) from None
    raise SystemExit(status)


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
