"""What run_script makes of each way in which a script can end."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from vqvae2.common import errors, machine
from vqvae2.common.errors import STOP_SIGNALS, Stopped, UserError, run_script

ROOT = Path(__file__).parents[2]


def raiser(error):
    def main():
        raise error
    return main


def status_of(main):
    with pytest.raises(SystemExit) as end:
        run_script(main)
    return end.value.code


def test_a_script_that_ends_well_exits_0_and_says_nothing(capfd):
    assert status_of(lambda: None) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("error", "status", "line"), [
    (UserError("--size: expected 8 to 4096 pixels, found 3.\n    Try 128."), 2,
     "--size: expected 8 to 4096 pixels, found 3. Try 128.\n"),
    (Stopped("Stopped by a signal at step 7, all saved."), 75, "Stopped by a signal at step 7, all saved.\n"),
    (KeyboardInterrupt(), 75, "Stopped by Ctrl-C.\n"),
    (OSError(28, "No space left on device", "/tmp/x"), 2, "/tmp/x: expected a disk that can be written, found No space "
     "left on device. Free some space; TMPDIR may name another folder for temporary files.\n"),
    (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 2, "disk: expected a disk that can be "
     "written, found No usable temporary directory found in ['/tmp']. Free some space; TMPDIR may name another folder "
     "for temporary files.\n"),
    (PermissionError(13, "Permission denied", "/locked/x"), 2, "/locked/x: expected a file or folder that can be used, "
     "found Permission denied. Correct its name or its permissions.\n"),
    (OSError(36, "File name too long", "b" * 5000), 2, f"{'b' * 100}…: expected a file or folder that can be used, "
     "found File name too long. Correct its name or its permissions.\n")])
def test_an_end_that_a_user_caused_is_one_line_on_stderr_and_a_status(error, status, line, capfd):
    assert status_of(raiser(error)) == status
    assert capfd.readouterr() == ("", line)


def test_any_other_exception_is_our_bug_and_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run_script(lambda: 1 / 0)
    with pytest.raises(FileNotFoundError, match="a file of ours"):
        run_script(raiser(FileNotFoundError(2, "a file of ours")))
    with pytest.raises(PermissionError, match="no file"):
        run_script(raiser(PermissionError(1, "no file")))


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [5]), ("7", [5])])
def test_other_ranks_let_rank_0_speak_first_since_torchrun_ends_all_with_the_first(rank, waits, monkeypatch, capfd):
    slept = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(errors.time, "sleep", slept.append)
    assert status_of(raiser(UserError("a line"))) == 2
    assert slept == waits


@pytest.mark.parametrize("lines", [1, 100_000], ids=["buffered to the end", "more than a pipe holds"])
def test_a_reader_that_has_seen_enough_is_no_error(lines):
    """As in `evaluate.py … | head -1`: the reading end of the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    script = f"from vqvae2.common.errors import run_script\nrun_script(lambda: print('0.5\\n' * {lines}))"
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": ""}, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_ranks_that_stop_together_say_so_once(monkeypatch, capsys):
    def stop():
        raise Stopped("Stopped by a signal at step 7, all saved.")

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="75"):
        run_script(stop)
    assert capsys.readouterr().err == ""


def test_a_users_error_is_written_where_a_batch_script_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VQVAE2_USER_ERROR_FILE", str(tmp_path / "error"))
    assert status_of(lambda: None) == 0
    assert status_of(raiser(Stopped("Stopped by a signal."))) == 75
    assert not (tmp_path / "error").exists()
    assert status_of(raiser(UserError("--size: expected 8,\n found 3."))) == 2
    assert (tmp_path / "error").read_text() == "--size: expected 8, found 3.\n"


@pytest.mark.parametrize(("restarts", "made", "ended"), [(None, None, False), ("0", "0", False), ("3", "0", True),
                                                         ("3", "2", True), ("3", "3", False)])
def test_torchrun_is_ended_where_it_would_try_a_users_error_again(restarts, made, ended, monkeypatch):
    sent = []
    for name, value in (("TORCHELASTIC_MAX_RESTARTS", restarts), ("TORCHELASTIC_RESTART_COUNT", made)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(errors.os, "kill", lambda number, what: sent.append((number, what)))
    assert status_of(raiser(UserError("a line"))) == 2
    assert sent == ([(os.getppid(), signal.SIGTERM)] if ended else [])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_terminal_cannot_write_is_escaped(encoding):
    code = ("from vqvae2.common.errors import UserError, run_script\ndef main():\n    print('\\u60a3')\n"
            "    raise UserError('\\u8005')")
    done = subprocess.run([sys.executable, "-c", f"{code}\nrun_script(main)"], check=False, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout, done.stderr) == (2, b"\\u60a3\n", b"\\u8005\n")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"),
                                              (signal.SIGHUP, "SIGHUP"), (signal.SIGUSR1, "SIGUSR1")])
def test_a_signal_ends_any_command_with_75_and_one_line_whatever_the_command_catches(number, name, capfd):
    def main():
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except Exception:
            pytest.fail("the signal was taken for a damaged file")
    assert status_of(main) == 75
    assert capfd.readouterr() == ("", f"Stopped by {name}. Run the same command again to go on.\n")


def test_signals_while_a_command_ends_change_nothing(monkeypatch, capfd):
    """A closed terminal and torchrun both send one: what is in `finally` is done to its end."""
    done = []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            for number in STOP_SIGNALS:
                os.kill(os.getpid(), number)
            done.append("cleaned")
    assert status_of(main) == 75
    assert done == ["cleaned"]
    assert capfd.readouterr().err.count("Stopped by SIGHUP") == 1
    monkeypatch.setattr(errors.output, "lost_result", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert status_of(lambda: None) == 0


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(number):
    """As SIGHUP under nohup, and SIGINT in the background of a shell without job control."""
    went_on = []

    def main():
        with machine.Signals() if went_on else nullcontext():
            os.kill(os.getpid(), number)
        went_on.append(signal.getsignal(number))
    signal.signal(number, signal.SIG_IGN)
    assert [status_of(main), status_of(main)] == [0, 0]
    assert went_on == [signal.SIG_IGN] * 2


def test_a_system_without_some_of_the_signals_has_the_others():
    code = ("import signal; del signal.SIGHUP, signal.SIGUSR1; from vqvae2.common import errors, machine;"
            "print(*(number.name for number in errors.STOP_SIGNALS))")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "SIGINT SIGTERM\n"


SWALLOWS = {
    "import": """
with open("part.py", "w") as file:
    file.write("import os, signal\\ntry:\\n    os.kill(os.getpid(), signal.SIGTERM)\\n"
               "except BaseException:\\n    pass\\n")
sys.path.insert(0, "")
import part
""",
    "destructor": """
class Part:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
Part()
""",
    "bare except": """
try:
    os.kill(os.getpid(), signal.SIGTERM)
except:
    pass
""",
    "an error of its own": """
try:
    os.kill(os.getpid(), signal.SIGTERM)
except BaseException:
    raise errors.UserError("weights: expected a file of this project, found something.") from None
"""}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("where", SWALLOWS)
@pytest.mark.parametrize("work", ["nullcontext()", "machine.going_on_later('images', Path('out'))"])
def test_a_signal_that_a_library_swallows_ends_the_command_all_the_same(where, work, tmp_path):
    code = (f"import os, signal, sys, time\nfrom contextlib import nullcontext\nfrom pathlib import Path\n"
            f"from vqvae2.common import errors, machine\nerrors.SECONDS_TO_END = 0.5\ndef main():\n  with {work}:\n"
            f"{textwrap.indent(SWALLOWS[where], '    ')}\n    time.sleep(20)\nerrors.run_script(main)")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("Stopped by ")
    assert len(done.stderr.splitlines()) == 1 or where == "destructor"  # of which Python itself says something


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_rank_that_is_told_to_end_while_it_imports_does_not_say_the_error_again(tmp_path):
    """torchrun sends SIGTERM to all when rank 0 has printed; an import defers it, and then the error comes first."""
    (tmp_path / "part.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    code = ("from vqvae2.common.errors import UserError, run_script\ndef main():\n  import part\n"
            "  raise UserError('a line')\nrun_script(main)")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "RANK": "1", "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (75, "")


CLEANING = {
    "slowly": "time.sleep(1)",
    "after an error of its own": "try:\n  pathlib.Path('none').unlink()\nexcept OSError:\n  time.sleep(1)",
    "in a context": "with contextlib.closing(Slow()):\n  pass"}


@pytest.mark.parametrize("cleaning", CLEANING)
def test_what_cleans_up_after_a_signal_has_all_the_time_that_it_needs(cleaning, tmp_path):
    code = ("import contextlib, os, pathlib, signal, time\nfrom vqvae2.common import errors\n"
            "errors.SECONDS_TO_END = 0.2\nclass Slow:\n  def close(self):\n    time.sleep(1)\n"
            "def main():\n  try:\n    os.kill(os.getpid(), signal.SIGTERM)\n  finally:\n"
            f"{textwrap.indent(CLEANING[cleaning], '    ')}\n    print('cleaned')\nerrors.run_script(main)")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr.count("Stopped")) == (75, "cleaned\n", 1), done.stderr


def test_an_alarm_of_the_program_around_is_left_alone_and_comes_back(monkeypatch):
    rung, before = [], signal.signal(signal.SIGALRM, lambda *_: rung.append("rung"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert status_of(lambda: None) == 0
        time.sleep(0.5)
        assert rung == ["rung"]
        assert status_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 75
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        time.sleep(0.3)
        assert rung == ["rung", "rung"]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_got_through_does_not_come_again(tmp_path):
    code = ("import os, signal, time\nfrom vqvae2.common import errors, machine\nerrors.SECONDS_TO_END = 0.2\n"
            "signals = machine.Signals()\ntry:\n    with signals, signals.stopping_at_once('Stopped.'):\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\nexcept errors.Stopped:\n    pass\n"
            "signal.signal(signal.SIGTERM, signal.SIG_DFL)\ntime.sleep(0.6)\nprint('alive')")
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout == "alive\n"
