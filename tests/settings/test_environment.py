"""However a folder is written in .env or in the environment, it is found, or one line says what to mend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqvae2.commands import predict, train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.settings import parsing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slices(apart, monkeypatch):
    """What SLICES_PATH comes to with a .env of these bytes or this text; its home is /home/me."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)

    def of(content=None):
        if content is not None:
            Path(".env").write_bytes(content if isinstance(content, bytes) else content.encode())
        return parsing.folder_of("SLICES_PATH")
    return of


@pytest.mark.parametrize(("written", "meant"), [
    ("/a/b", "/a/b"), ("/a/b/", "/a/b"), ("/a/b//", "/a/b"), ("'/a/b'", "/a/b"), ('"/a/b/"', "/a/b"),
    ("' /a/b '", "/a/b"), ("/a/my files/b", "/a/my files/b"),
    ("'/a/my files/b'  # mine", "/a/my files/b"), ("/a/b   # a note", "/a/b"), ("/a/b#1", "/a/b#1"),
    ("~/b", "/home/me/b"), ("~", "/home/me"), ('"~/b/"', "/home/me/b"), ("$HOME/b", "/home/me/b"),
    ("${HOME}/b", "/home/me/b"), ('"$HOME/b"', "/home/me/b"), ("/a/$NOWHERE/b", "/a/$NOWHERE/b"),
    ("data/slices", "data/slices"), ("./slices/", "slices"), ("/a/b\r", "/a/b"), ("/größe/b", "/größe/b")])
def test_a_folder_is_understood_however_it_is_written(written, meant, slices):
    assert str(slices(f"OASIS_PATH=/x\nSLICES_PATH={written}\n")) == meant
    assert str(slices(f"  export SLICES_PATH = {written}\n")) == meant
    assert str(slices(f"SLICES_PATH={written}")) == meant


def test_the_home_of_somebody_unknown_is_a_folder_that_is_not_there(slices, refusal):
    assert str(slices("SLICES_PATH=~nobody-here/b\n")).endswith("~nobody-here/b")
    for arguments in (["--data", "~nobody-here/b"], ["--data=~nobody-here/b"], []):
        assert refusal(train_vqvae.main, "--preset", "own-images", *arguments) == (
            "--data ~nobody-here/b: expected a folder, found nothing. Run extract_slices.py first, or correct the "
            "path.")
    assert "--vqvae ~nobody-here/b: expected a folder with" in refusal(
        predict.main, "--vqvae", "~nobody-here/b", "~nobody-here/c.png", "--out", "predicted")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_of_any_editor_are_understood(encoding, line_end, slices):
    text = line_end.join(["# mine", "", "SLICES_PATH=~/größe", "OASIS_PATH=/x", ""])
    assert slices(text.encode(encoding)) == Path("/home/me/größe")


@pytest.mark.parametrize("text", ["", "SLICES_PATH=\n", 'SLICES_PATH=""\n', "SLICES_PATH=   # later\n",
                                  "# SLICES_PATH=/a\n", "SLICES_PATH=/a\nSLICES_PATH=\n", "OASIS_PATH=/x\n"])
def test_an_empty_value_is_none(text, slices):
    assert slices(text) is None


def test_no_file_and_a_folder_of_its_name_are_none(slices):
    assert slices() is None
    Path(".env").mkdir()  # some keep a virtual environment there
    assert slices() is None
    with pytest.raises(UserError, match=r"^--data: .* found neither\. Give --data DIR, or copy \.env\.example to"):
        parsing.path_from_environment(None, "SLICES_PATH", "--data")


@pytest.mark.parametrize("line", ["SLICES_PATH: /a/b", "set SLICES_PATH=/a/b", "setenv SLICES_PATH /a/b", "SLICES_PATH",
                                  "slices_path=/a/b", "SLICES_PATH='/a/b", 'SLICES_PATH="/a"/b', "$SLICES_PATH=/a/b"])
def test_a_line_that_says_nothing_is_shown_with_what_it_should_be(line, slices, capfd):
    with pytest.raises(UserError) as refusal:
        slices(f"# the slices\n{line}\nOASIS_PATH=/x\n")
    assert str(refusal.value) == f".env: expected SLICES_PATH=FOLDER, found {line}. Correct that line."
    assert capfd.readouterr() == ("", "")


def test_a_value_that_has_the_variables_name_in_it_is_no_line_of_it(slices):
    assert slices("OASIS_PATH=/data/slices_path\nOTHER=$SLICES_PATH\n") is None


@pytest.mark.parametrize("content", [b"SLICES_PATH=/a/\xe9\n", b"\x80\x02PK\x03"])
def test_a_file_that_is_no_text_is_refused(content, slices):
    with pytest.raises(UserError, match=r"^\.env: expected a file in UTF-8 that can be read, found 'utf-8' codec"):
        slices(content)


def test_a_file_that_may_not_be_read_is_refused(slices, monkeypatch):
    slices("SLICES_PATH=/a\n")

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # who runs this may be root, whom no permission stops
    with pytest.raises(UserError, match=r"^\.env: .* that can be read, found .*Permission denied\. Change its"):
        slices()


def test_a_flag_or_variable_is_taken_whatever_is_in_the_file(slices, monkeypatch):
    monkeypatch.setenv("SLICES_PATH", "/b")
    assert slices(b"\xff\xfe\xff") == Path("/b")
    assert parsing.path_from_environment(Path("~/c"), "SLICES_PATH", "--data") == Path("/home/me/c")


@pytest.mark.parametrize("written", ["~/b/", '"~/b"', "'$HOME/b'", " ~/b "])
def test_a_variable_is_understood_as_docker_hands_it_on(written, slices, monkeypatch):
    monkeypatch.setenv("SLICES_PATH", written)
    assert slices() == Path("/home/me/b")


class TestPlace:
    @pytest.fixture
    def script(self, apart, monkeypatch):
        """A script in another folder than the working folder, with a .env beside it."""
        folder = apart / "repository"
        folder.mkdir()
        (folder / ".env").write_text("SLICES_PATH=data/slices\nOASIS_PATH=/beside\n")
        monkeypatch.setattr("sys.argv", [str(folder / "train_vqvae.py")])
        return folder

    def test_the_file_beside_the_script_serves_from_any_folder(self, script):
        assert parsing.folder_of("OASIS_PATH") == Path("/beside")

    def test_a_relative_folder_starts_where_its_file_is(self, script):
        assert parsing.folder_of("SLICES_PATH") == script / "data/slices"

    def test_the_working_folder_comes_first_for_what_it_names(self, script, apart):
        (apart / ".env").write_text("OASIS_PATH=/here\nSLICES_PATH=\n")
        assert parsing.folder_of("OASIS_PATH") == Path("/here")
        assert parsing.folder_of("SLICES_PATH") == script / "data/slices"


def test_a_real_process_says_one_line_of_a_file_that_it_cannot_understand(apart):
    (apart / ".env").write_text("SLICES_PATH: ~/slices\n")
    done = subprocess.run([sys.executable, ROOT / "train_vqvae.py", "--savename", "a", "--epochs", "1", "--batch", "1"],
                          capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ".env: expected SLICES_PATH=FOLDER, found SLICES_PATH: ~/slices. Correct that line.\n"


def test_the_example_says_what_is_done_and_its_values_are_understood(slices):
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert slices(text) == Path("/home/me/data/oasis-slices")
    assert parsing.folder_of("OASIS_PATH") == Path("/home/me/data/oasis")
