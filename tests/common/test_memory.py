"""The memory that is free is the machine's, or what the tightest control group leaves."""

import gc
import os
from pathlib import Path

import pytest

from vqvae2.common import memory

MACHINE = 8 * 2**30
NO_LIMIT = {"memory.max": "max", "memory.current": 4 * 2**30, "memory.stat": "inactive_file 5\n"}


def write(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def version_2(limit: object, used: int, idle: int, **more: object) -> dict[str, object]:
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 7\ninactive_file {idle}\nfile 9",
            **{f"memory.{name}": value for name, value in more.items()}}


def version_1(limit: int, used: int, idle: int) -> dict[str, object]:
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used,
            "memory.stat": f"inactive_file 3\ntotal_inactive_file {idle}"}


def available(tmp_path: Path, group: str, tree: dict[str, dict[str, object]]) -> int:
    write(tmp_path / "proc", {"meminfo": f"MemTotal: 1 kB\nMemAvailable:   {MACHINE // 1024} kB"})
    write(tmp_path / "proc/self", {"cgroup": group})
    for folder, files in tree.items():
        write(tmp_path / "groups" / folder, files)
    return memory.memory_available(tmp_path / "proc", tmp_path / "groups")


@pytest.mark.parametrize(("group", "tree", "expected"), [
    ("0::/", {}, MACHINE),
    ("0::/a/b", {"": NO_LIMIT, "a": NO_LIMIT, "a/b": version_2(1000, 400, 100)}, 700),
    ("0::/a/b", {"a": version_2(900, 400, 50), "a/b": version_2(1000, 400, 100)}, 550),  # the outer one is tighter
    ("0::/a", {"a": version_2(1000, 400, 100, high=800)}, 500),
    ("0::/a", {"a": version_2("max", 400, 100, high=800)}, 500),
    ("0::/a", {"a": version_2(2**60, 400, 100)}, MACHINE),
    ("0::/a", {"a": version_2(300, 400, 0)}, 0),
    ("5:cpu:/x\n4:memory:/a/b\n0::/", {"memory/a/b": version_1(1000, 300, 200), "memory": version_1(2**63, 1, 0)}, 900),
    ("4:memory:/a/b", {"memory/a": version_1(500, 300, 200), "memory/a/b": version_1(1000, 300, 200)}, 400),
    ("4:memory:/docker/7f", {"memory": version_1(1000, 300, 200)}, 900),  # seen from inside a container
    ("0::/system.slice/7f", {"": version_2(1000, 300, 200)}, 900),
    ("no group", {}, MACHINE)])
def test_the_tightest_limit_around_the_process_counts(tmp_path, group, tree, expected):
    assert available(tmp_path, group, tree) == expected


def test_without_an_estimate_half_of_the_memory_counts(tmp_path):
    assert memory.memory_available(tmp_path, tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def test_here_some_memory_is_free():
    assert 0 < memory.memory_available() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_share_is_what_a_process_may_take_until_the_block_ends(monkeypatch):
    monkeypatch.setattr(memory, "memory_available", lambda: MACHINE)
    assert memory.room() == MACHINE
    with memory.only(5):
        assert memory.room() == 5
        with memory.only(-1):
            assert memory.room() == 0
        assert memory.room() == 5
    assert memory.room() == MACHINE


@pytest.mark.parametrize("was_on", [True, False])
def test_python_looks_for_cycles_afterwards_where_it_did_before(was_on):
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(KeyError, match="it looks: False"), memory.without_collection():
            raise KeyError(f"it looks: {gc.isenabled()}")
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()
