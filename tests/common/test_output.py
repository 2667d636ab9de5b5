"""Output that cannot be written: the work goes on and its status says how it ended."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
from tqdm import tqdm

from vqvae2 import commands
from vqvae2.commands import train_vqvae
from vqvae2.common import output
from vqvae2.common.errors import run_script

ROOT = Path(__file__).parents[2]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
WORK = """
import sys, warnings
from tqdm import tqdm
from vqvae2.common import output
from vqvae2.common.errors import run_script
def main():
    for _ in tqdm(range(3), "\\u60a3\\u8005"):
        print("\\u60a3\\u8005 \\xe9")
    warnings.warn("\\xe9")
    open("done", "w").write("all")
    {}
run_script(main)
"""


class Failing(io.StringIO):
    """A stream each of whose writes, or only whose flush, fails."""

    def __init__(self, error: Exception, only_flush: bool = False):
        super().__init__()
        self.error, self.only_flush = error, only_flush

    def write(self, text: str) -> int:
        if not self.only_flush:
            raise self.error
        return len(text)

    def flush(self) -> None:
        raise self.error


FAILURES = {"full disk": Failing(OSError(errno.ENOSPC, "No space left on device")),
            "full disk at the flush": Failing(OSError(errno.ENOSPC, "No space left on device"), only_flush=True),
            "terminal gone": Failing(OSError(errno.EIO, "Input/output error")),
            "pipe gone": Failing(BrokenPipeError(errno.EPIPE, "Broken pipe")),
            "closed by someone": Failing(ValueError("I/O operation on closed file.")),
            "closed at the start": None}
each_failure = pytest.mark.parametrize("stream", FAILURES.values(), ids=FAILURES)


def shell(folder: Path, code: str, redirections: str, **environment: str) -> tuple[int, str, str]:
    """Run code whose streams a shell has redirected; return its status and what still came out."""
    done = subprocess.run(["bash", "-c", f'"$0" -c "$1" {redirections}; exit ${{PIPESTATUS[0]}}', sys.executable, code],
                          cwd=folder, capture_output=True, text=True, errors="replace", check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    return done.returncode, done.stdout, done.stderr


@FULL
@pytest.mark.parametrize("redirections", [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", ">&- 2>&-",
                                          "| true", "2>&1 | true", "</dev/null 2>&1 | head -c 1"])
def test_work_is_done_with_status_0_whatever_becomes_of_its_output(redirections, tmp_path):
    status, _, said = shell(tmp_path, WORK.format("pass"), redirections)
    assert (status, (tmp_path / "done").read_text()) == (0, "all")
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@FULL
@pytest.mark.parametrize(("redirections", "status"), [(">/dev/full", 2), (">&-", 2), ("| true", 0), ("", 0)])
def test_a_command_that_only_prints_has_failed_where_that_is_lost_and_not_where_its_reader_has_seen_enough(
        redirections, status, tmp_path):
    ended, _, said = shell(tmp_path, WORK.format("output.is_result()"), redirections)
    assert ended == status, said
    assert ("standard output: expected to write what was asked for, found " in said) == (status == 2)
    assert "Traceback" not in said


@pytest.mark.parametrize("words", ["--help", "--version", "extract --archives", "extract --help", "status --help"])
def test_help_and_listings_have_failed_where_they_are_lost(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", FAILURES["full disk"])
    monkeypatch.setattr(sys, "argv", ["vqvae2", *words.split()])
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == ("standard output: expected to write what was asked for, found No space left on "
                                       "device. Free some space, or write it elsewhere.\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_progress_bars_warnings_and_lines_are_escaped_where_a_terminal_cannot_write_them(encoding, tmp_path):
    status, said, shown = shell(tmp_path, WORK.format("pass"), "", PYTHONIOENCODING=encoding)
    assert status == 0, shown
    assert said.count(r"\u60a3\u8005") == 3
    assert r"\u60a3\u8005: 100%" in shown


@FULL
def test_an_error_whose_line_cannot_be_written_has_its_status(tmp_path):
    code = ("from vqvae2.common.errors import Stopped, UserError, run_script\ndef main():\n    raise {}('x')\n"
            "run_script(main)")
    for kind, expected in (("UserError", 2), ("Stopped", 75)):
        for redirections in ("2>/dev/full", "2>&-", "2>&1 >/dev/full | true"):
            assert shell(tmp_path, code.format(kind), redirections)[0] == expected


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path):
    """What a C library writes to number 2 would go into the file."""
    code = ("import os\nfrom vqvae2.common.errors import run_script\ndef main():\n    file = open('kept', 'w')\n"
            "    os.write(1, b'one')\n    os.write(2, b'two')\n    file.write('whole')\n    file.close()\n"
            "run_script(main)")
    assert shell(tmp_path, code, ">&- 2>&- <&-")[0] == 0
    assert (tmp_path / "kept").read_text() == "whole"


@each_failure
def test_prints_and_progress_bars_go_on_and_the_last_error_is_known(stream, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    output.guard()
    print("line", flush=True)
    sys.stderr.writelines(["a", "b"])
    assert list(tqdm(range(3))) == [0, 1, 2]
    tqdm.write("line")
    assert isinstance(sys.stdout.lost, (OSError, ValueError))
    output.is_result()
    assert (output.lost_result() is None) == isinstance(sys.stdout.lost, BrokenPipeError)


def test_a_log_goes_on_when_its_disk_has_space_again(monkeypatch):
    stream = Failing(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(sys, "stdout", stream)
    output.guard()
    print("lost")
    monkeypatch.setattr(stream, "write", written := io.StringIO().write)
    print("there")
    assert written.__self__.getvalue() == "there\n"


@pytest.mark.parametrize("failure", ["full disk", "closed at the start"])
def test_a_training_ends_well_and_has_written_all_though_nothing_can_be_printed(failure, tiny_slices, tmp_path,
                                                                                monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, FAILURES[failure])
    with pytest.raises(SystemExit) as end:
        run_script(lambda: train_vqvae.main([
            "--data", str(tiny_slices), "--results", str(tmp_path), "--savename", "quiet", *conftest.TINY,
            *conftest.TINY_VQVAE, "--epochs", "1"]))
    assert end.value.code == 0
    folder = tmp_path / "oasis" / "quiet"
    assert {"state.pt", "model.safetensors", "log.csv", "config.json"} <= {path.name for path in folder.iterdir()}
