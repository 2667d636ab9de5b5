"""A file that is written is whole or not there, whether its content is bytes or a function that writes them."""

import os
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
