"""The free memory is the least of what the machine and its control groups leave."""

from pathlib import Path

import pytest

from vqvae2.common import memory

GB = 1 << 30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A made-up machine with 8 GB free; write its control groups."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MOUNTED", tmp_path / "mounted")
    monkeypatch.setattr(memory, "_free_on_this_machine", lambda: 8 * GB)

    def write(lines: str, **files: tuple) -> None:
        (tmp_path / "cgroup").write_text(lines)
        for place, (limit, used, cached) in files.items():
            folder = tmp_path / "mounted" / place.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            version_1 = place.startswith("memory")
            names = memory.VERSION_1 if version_1 else memory.VERSION_2
            for name, value in zip(names, (limit, used)):
                (folder / name).write_text(f"{value}\n")
            (folder / "memory.stat").write_text(f"anon 5\n{names[2][0]} 0\n{names[2][1]} {cached}\n")
    return write


def test_a_containers_limit_counts_and_its_cached_files_are_free(groups):
    groups("0::/\n", **{".": (4 * GB, 3 * GB, GB)})
    assert memory.memory_available() == 2 * GB


def test_the_tightest_of_the_groups_above_counts(groups):
    groups("0::/jobs/7/step\n", **{"jobs__7__step": ("max", GB, 0), "jobs__7": (5 * GB, 2 * GB, 0),
                                   "jobs": (7 * GB, GB, 0)})
    assert memory.memory_available() == 3 * GB


def test_the_first_version_of_control_groups_is_known_too(groups):
    groups("9:cpu,cpuacct:/x\n4:memory:/docker/ab\n0::/\n", memory=(2 * GB, GB, GB // 2))  # /docker/ab is not seen here
    assert memory.memory_available() == GB * 3 // 2


@pytest.mark.parametrize("lines", ["", "0::/gone\n", "nonsense\n", "4:memory:/../..\n"])
def test_without_a_limit_the_machine_counts(groups, lines):
    groups(lines, **{".": ("max", GB, 0)})
    assert memory.memory_available() == 8 * GB


def test_the_counters_of_this_machine_can_be_read():
    assert memory.memory_available() > 0
    assert not Path("/proc/meminfo").exists() or memory.memory_available() < 1 << 50


def test_a_share_is_what_a_process_may_take_until_the_block_ends(groups):
    groups("")
    assert memory.room() == 8 * GB
    with memory.only(5):
        assert memory.room() == 5
        with memory.only(-1):
            assert memory.room() == 0
        assert memory.room() == 5
    assert memory.room() == 8 * GB
