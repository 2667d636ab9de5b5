"""A file that is written is whole or not there, whether its content is bytes or a function that writes them."""

import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from vqvae2.common import files
from vqvae2.common.errors import UserError


@pytest.mark.parametrize("content", [b"abc", memoryview(b"abc"), lambda path: path.write_bytes(b"abc")])
def test_bytes_or_a_function_that_writes_them_become_the_file(content, tmp_path):
    files.write_atomically(tmp_path / "new" / "a.bin", content)
    assert [path.read_bytes() for path in tmp_path.rglob("*.bin")] == [b"abc"]


@pytest.mark.parametrize(("synced", "syncs"), [(True, 1), (False, 0)])
def test_the_disk_is_waited_for_unless_that_is_not_wanted(synced, syncs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "fsync", asked.append)
    files.write_atomically(tmp_path / "a.png", b"abc", synced=synced)
    assert len(asked) == syncs


def test_a_caller_may_have_its_own_words_for_what_goes_wrong(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        files.replace_whole(tmp_path / "file" / "a.txt", b"")
    with pytest.raises(UserError, match=r"a\.txt: expected to write this file, found .*\. Free some space or choose"):
        files.write_atomically(tmp_path / "file" / "a.txt", b"")


def test_what_a_kill_leaves_has_the_suffix_of_the_file_and_is_found_by_the_pattern(tmp_path):
    def killed(temporary: Path) -> None:
        seen.append((temporary.suffix, list(temporary.parent.glob(files.LEFT_OVERS)) == []))
        temporary.touch()
        seen.append(list(temporary.parent.glob(files.LEFT_OVERS)) == [temporary])
        raise KeyboardInterrupt("while writing")

    seen = []
    with pytest.raises(KeyboardInterrupt, match="while writing"):
        files.write_atomically(tmp_path / ("a" * 200 + ".png"), killed)
    assert seen == [(".png", True), True]
    assert list(tmp_path.iterdir()) == []


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # the path of a socket may have 107 bytes
        made.bind(path.name)


@pytest.mark.parametrize(("make", "found"), [
    (os.mkfifo, "Not a regular file but a named pipe"), (make_socket, "Not a regular file but a socket"),
    (Path.mkdir, "Not a regular file but a folder"), (lambda path: path.symlink_to("/dev/zero"), "but a device"),
    (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    (lambda path: path.symlink_to("gone"), "No such file")], ids=["pipe", "socket", "folder", "device", "loop", "gone"])
def test_what_is_no_file_is_refused_at_once(make, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.png")
    with pytest.raises(OSError, match=found):
        files.open_regular(tmp_path / "x.png")


def test_a_file_that_is_no_link_or_one_to_a_file_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    for name in "ab":
        with files.open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"


def test_a_pipe_that_takes_the_files_place_between_two_looks_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    there = os.stat(tmp_path / "a")
    os.mkfifo(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda *_, **__: there)
        with pytest.raises(OSError, match="Not a regular file"):
            files.open_regular(tmp_path / "b")


def test_no_more_is_read_than_asked_for_nor_is_memory_taken_for_what_is_not_there(tmp_path):
    (tmp_path / "a").write_bytes(b"abcd")
    tracemalloc.start()
    try:
        assert files.read_at_most(tmp_path / "a", 2**30) == b"abcd"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert files.read_at_most(tmp_path / "a", 4) == b"abcd"
    with pytest.raises(OSError, match="4 bytes, where 3 are the most"):
        files.read_at_most(tmp_path / "a", 3)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a file whose system tells no size")
def test_a_file_whose_size_is_not_told_is_read_whole():
    assert files.read_at_most(Path("/proc/self/limits"), 2**20).endswith(b"\n")


@pytest.mark.parametrize(("error", "text"), [
    (ValueError("a bomb, perhaps an attack."), "a bomb, perhaps an attack"), (KeyError("shape"), "no shape"),
    (KeyError(), "KeyError"), (OSError(28, "No space left on device", "a.png"), "No space left on device"),
    (FileNotFoundError(2, "No such file", "a"), "no such file"), (ValueError("x" * 200), "x" * 117 + "…"),
    (ValueError("two\n lines"), "two lines")])
def test_an_error_is_told_in_part_of_a_sentence(error, text):
    assert files.in_brief(error) == text
