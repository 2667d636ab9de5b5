"""Decoded images lie in memory once on each machine, are what one process reads, and leave no file behind."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SLICES_PER_SUBJECT, SUBJECTS, write_slices
from PIL import Image
from ranks import run_on_ranks
from torch.multiprocessing import ProcessExitedException

from vqvae2.common import distributed
from vqvae2.common.errors import UserError
from vqvae2.images import memory as pixel_cache
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings

ROOT = Path(__file__).parents[2]
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def left_in(*folders: Path) -> list[str]:
    return [path.name for folder in folders for path in folder.iterdir()]


def mapping() -> list[tuple[str, str, bool]]:
    """(inode, permissions, whether the name is gone) of each file of pixels that this process has mapped."""
    maps = Path("/proc/self/maps")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines() if pixel_cache.PREFIX in line]
    return [(inode, permissions, path.endswith("(deleted)")) for _, permissions, _, _, inode, path in lines]


def facts(data: Path, dataset: str = "oasis") -> dict:
    """What this rank sees of a data set; the error's text, where there is one."""
    try:
        loaded = load_images(DataSettings(data=data, dataset=dataset))
    except UserError as error:
        return {"error": str(error)}
    return {"pixels": {split: np.array(one.pixels) for split, one in loaded.splits.items()},
            "kinds": {split: type(one.pixels.base).__name__ for split, one in loaded.splits.items()},
            "described": loaded.describe(), "bytes": loaded.splits["train"].bytes(), "mapping": mapping()}


def each_scenario(folder: str) -> dict[str, dict]:
    """All scenarios one after the other on this rank, in the same two processes: starting them takes long."""
    folder, rank = Path(folder), distributed.rank()
    memory, disk = folder / "memory", folder / "disk"
    os.environ["TMPDIR"] = str(disk)
    pixel_cache.SHARED_MEMORY = memory
    found = {"shared": facts(folder / "slices"), "mixed": facts(folder / "mixed", "folder")}
    found["file of rank 1"] = facts(folder / "bad-last")
    found["files of both"] = facts(folder / "bad-both")
    found["sizes"] = facts(folder / "sizes", "folder")
    found["bad on rank 1"] = facts(folder / ("slices" if rank == 0 else "bad-last"))
    found["no folder"] = facts(folder / ("slices" if rank == 0 else "nothing"))

    room = pixel_cache.room_in
    pixel_cache.room_in = lambda place: 1000 if place == memory else room(place)
    found["small memory"] = facts(folder / "slices")
    pixel_cache.room_in = lambda place: 1000
    found["no room"] = facts(folder / "slices")
    pixel_cache.room_in = room

    available = pixel_cache.memory_available
    pixel_cache.memory_available = lambda: 3000
    found["beyond memory"] = facts(folder / "slices")
    pixel_cache.memory_available = available

    see = pixel_cache._open
    pixel_cache._open = lambda *_: None
    found["unseen"] = facts(folder / "slices")
    pixel_cache._open = see
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    found["two machines"] = facts(folder / "slices")
    return {**found, "left": left_in(memory, disk)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    for name in ("slices", "bad-last", "bad-both"):
        write_slices(folder / name)
    (folder / "bad-last" / "train" / "OAS1_0006_axial072.png").write_bytes(b"no picture")
    for name in ("OAS1_0002_axial071", "OAS1_0006_axial072"):
        (folder / "bad-both" / "train" / f"{name}.png").write_bytes(b"no picture")
    for number, pixels in enumerate((RAMP, np.stack([RAMP, 255 - RAMP, RAMP // 2], -1), RAMP, RAMP * np.uint16(200))):
        save(folder / "mixed" / "train" / f"{number}.png", pixels)
    save(folder / "mixed" / "val" / "a.png", np.stack([RAMP, 255 - RAMP, RAMP // 2], -1))
    for number, side in enumerate((16, 16, 8, 16)):
        save(folder / "sizes" / "train" / f"{number}.png", RAMP[:side])
    for name in ("memory", "disk"):
        (folder / name).mkdir()
    return folder


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def two(folder) -> list[dict]:
    """What each of two ranks sees in each scenario, and what both have left behind on the last rank's end."""
    return run_on_ranks(2, each_scenario, str(folder))


@pytest.fixture(scope="module")
def one(folder) -> dict:
    """What one process sees."""
    names = {"slices": "oasis", "mixed": "folder", "bad-last": "oasis", "bad-both": "oasis", "sizes": "folder"}
    return {name: facts(folder / name, dataset) for name, dataset in names.items()}


def assert_same(two: list[dict], scenario: str, expected: dict) -> None:
    for rank in two:
        found = rank[scenario]
        assert found["described"] == expected["described"]
        assert found["bytes"].equal(expected["bytes"])
        for split, pixels in expected["pixels"].items():
            assert found["pixels"][split].dtype == pixels.dtype
            np.testing.assert_array_equal(found["pixels"][split], pixels)


class TestOneProcess:
    def test_it_holds_a_plain_array_that_it_may_write_to_and_no_file(self, one, folder):
        assert one["slices"]["kinds"] == dict.fromkeys(SUBJECTS, "NoneType")
        assert one["slices"]["mapping"] == []
        assert load_images(DataSettings(data=folder / "slices")).splits["train"].pixels.flags.writeable

    def test_it_maps_a_file_without_a_name_where_the_images_are_larger_than_the_free_memory(
            self, one, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(pixel_cache, "memory_available", lambda: 3000)
        found = facts(folder / "slices")
        assert len(found["mapping"]) == len(SUBJECTS)
        assert {place[1:] for place in found["mapping"]} == {("r--s", True)}
        assert capsys.readouterr().out == (
            f"images: larger than the free memory, so they are mapped from a file in {tmp_path}: more memory, or a "
            "smaller --size, would be faster\n")
        assert left_in(tmp_path) == []
        assert_same([{"beyond": found}], "beyond", one["slices"])

    def test_it_tries_its_own_memory_where_nothing_has_room(self, one, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(pixel_cache, "memory_available", lambda: 3000)
        monkeypatch.setattr(pixel_cache, "room_in", lambda folder: 0)
        found = facts(folder / "slices")
        assert found["mapping"] == []
        assert f"neither memory nor {tmp_path} (TMPDIR) has room" in capsys.readouterr().out
        assert_same([{"full": found}], "full", one["slices"])


class TestTwoProcesses:
    def test_they_map_the_same_files_which_have_no_name_and_which_none_can_write_to(self, two):
        first, second = (rank["shared"]["mapping"] for rank in two)
        assert len(first) == len(SUBJECTS)  # one file for each split
        assert {inode for inode, _, _ in first} == {inode for inode, _, _ in second}
        assert {place[1:] for place in first + second} == {("r--s", True)}

    @pytest.mark.parametrize("scenario", ["shared", "small memory", "no room", "beyond memory", "unseen",
                                          "two machines"])
    def test_they_see_what_one_process_reads_wherever_the_images_lie(self, scenario, one, two):
        assert_same(two, scenario, one["slices"])

    def test_grey_colours_and_sixteen_bits_become_one_array_as_in_one_process(self, one, two):
        assert one["mixed"]["pixels"]["train"].shape == (4, 3, 16, 16)
        assert one["mixed"]["pixels"]["train"].dtype == np.uint16
        assert one["mixed"]["pixels"]["validate"].dtype == np.uint8
        assert_same(two, "mixed", one["mixed"])

    @pytest.mark.parametrize("scenario", ["small memory", "beyond memory"])
    def test_they_share_a_file_on_the_disk_where_memory_is_too_small(self, scenario, two):
        first, second = (rank[scenario]["mapping"] for rank in two)
        assert {inode for inode, _, _ in first} == {inode for inode, _, _ in second}
        assert len(first) == len(SUBJECTS)

    @pytest.mark.parametrize("scenario", ["no room", "unseen", "two machines"])
    def test_each_has_its_own_array_where_they_cannot_share(self, scenario, two):
        assert [rank[scenario]["mapping"] for rank in two] == [[], []]

    @pytest.mark.parametrize(("scenario", "alone"), [("file of rank 1", "bad-last"), ("files of both", "bad-both"),
                                                     ("sizes", "sizes")])
    def test_an_image_that_does_not_fit_is_the_error_of_one_process_on_both(self, scenario, alone, one, two):
        assert [rank[scenario] for rank in two] == [one[alone]] * 2
        assert "expected " in one[alone]["error"]

    @pytest.mark.parametrize(("scenario", "said"), [
        ("no folder", "nothing: expected a folder, found nothing. Run extract_slices.py"),
        ("bad on rank 1", "bad-last/train/OAS1_0006_axial072.png: expected a readable image, found cannot identify")])
    def test_an_error_that_one_rank_alone_meets_is_raised_on_both(self, scenario, said, two):
        assert two[0][scenario] == two[1][scenario]
        assert said in two[0][scenario]["error"]

    def test_other_images_on_another_rank_are_refused_on_both(self, folder, tmp_path):
        found = run_on_ranks(2, facts_of_own_folder, str(folder), str(tmp_path))
        total = sum(SUBJECTS.values()) * SLICES_PER_SUBJECT
        for rank in found:
            assert (f"expected the same images on all machines, found {total} on rank 1 that are not the "
                    f"{total} of rank 0. Copy the folder again") in rank["error"]

    def test_nothing_is_left_behind_after_all_that(self, two, folder):
        assert left_in(folder / "memory", folder / "disk") == []


def facts_of_own_folder(first: str, second: str) -> dict:
    """Rank 1 sees slices of another size, as if it stood on another machine with an older copy."""
    if distributed.rank() == 0:
        return facts(Path(first) / "slices")
    return facts(write_slices(Path(second) / "slices", size=16))


def say_where(folder: str) -> None:
    """Fall back to the disk on two ranks."""
    os.environ["TMPDIR"] = folder
    room = pixel_cache.room_in
    pixel_cache.room_in = lambda place: 0 if place == pixel_cache.SHARED_MEMORY else room(place)
    facts(Path(folder) / "slices")


def test_a_small_shared_memory_is_said_once_by_rank_0(tmp_path, capfd):
    write_slices(tmp_path / "slices")
    run_on_ranks(2, say_where, str(tmp_path))
    assert capfd.readouterr().out == (
        f"images: {pixel_cache.SHARED_MEMORY} is too small for them, so the processes of this machine share a file in "
        f"{tmp_path}; in a container, --shm-size or --ipc=host would be faster\n")


def die_while_decoding(folder: str) -> None:
    """Rank 1 is killed as it decodes its second picture."""
    os.environ["TMPDIR"] = folder
    pixel_cache.SHARED_MEMORY = Path(folder)

    def read(i: int) -> np.ndarray:
        if distributed.rank() == 1 and i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return RAMP[None]
    pixel_cache.decode(8, read)


def test_a_process_that_is_killed_while_it_decodes_leaves_no_file(tmp_path):
    with pytest.raises(ProcessExitedException, match=r"process 1 terminated with signal SIGKILL"):
        run_on_ranks(2, die_while_decoding, str(tmp_path))
    assert left_in(tmp_path) == []


class TestLeftOvers:
    def make(self, folder: Path, ending: str) -> subprocess.Popen:
        """Start a process that has made a file and waits, as if for the others to open it; then `ending`."""
        script = ("import os, sys, time; from contextlib import ExitStack; from pathlib import Path\n"
                  "from vqvae2 import pixel_cache\n"
                  "made = pixel_cache._named_file(Path(sys.argv[1]), 100, ExitStack())\n"
                  f"print('made', flush=True); {ending}")
        process = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"made\n"
        return process

    def test_the_file_of_a_killed_process_goes_and_that_of_a_live_one_stays(self, tmp_path):
        with self.make(tmp_path, "os.kill(os.getpid(), 9)") as dead:
            dead.wait()
        (left,) = tmp_path.iterdir()
        with self.make(tmp_path, "time.sleep(600)") as alive:
            pixel_cache.remove_left_overs(tmp_path)
            (kept,) = tmp_path.iterdir()
            assert kept != left
            with kept.open("rb") as file, pytest.raises(BlockingIOError, match="temporarily unavailable"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alive.kill()
        pixel_cache.remove_left_overs(tmp_path)
        assert left_in(tmp_path) == []

    def test_the_next_start_removes_them(self, tmp_path, monkeypatch, one, folder):
        (tmp_path / f"{pixel_cache.PREFIX}dead").write_bytes(b"")
        (tmp_path / "another-program").write_bytes(b"")
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(pixel_cache, "memory_available", lambda: 3000)
        facts(folder / "slices")
        assert left_in(tmp_path) == ["another-program"]

    def test_a_link_with_such_a_name_is_not_followed(self, tmp_path):
        (tmp_path / "precious").write_bytes(b"")
        (tmp_path / f"{pixel_cache.PREFIX}link").symlink_to(tmp_path / "precious")
        pixel_cache.remove_left_overs(tmp_path)
        assert (tmp_path / "precious").exists()

    def test_a_file_that_another_start_took_for_a_left_over_before_it_was_locked_is_made_again(
            self, tmp_path, monkeypatch):
        make, made = pixel_cache.tempfile.mkstemp, []

        def mkstemp(**options: object) -> tuple[int, str]:
            made.append(make(**options))
            if len(made) == 1:
                pixel_cache.remove_left_overs(tmp_path)
            return made[-1]
        monkeypatch.setattr(pixel_cache.tempfile, "mkstemp", mkstemp)
        with pixel_cache.ExitStack() as until_opened:
            file, path = pixel_cache._named_file(tmp_path, 100, until_opened)
            with file:
                assert path == made[1][1]
                assert [path] == [str(one) for one in tmp_path.iterdir()]
        assert left_in(tmp_path) == []


def test_a_disk_that_fills_up_while_room_is_taken_leaves_no_file_and_the_next_place_serves(tmp_path, monkeypatch):
    def full(number: int, *_: int) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(pixel_cache, "memory_available", lambda: 0)
    monkeypatch.setattr(pixel_cache.os, "posix_fallocate", full)
    pixels, said = pixel_cache.decode(3, lambda i: RAMP[None] + np.uint8(i))
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert "each process tries to hold its own copy" in said
    assert left_in(tmp_path) == []


class TestMemoryAvailable:
    @pytest.fixture
    def control_group(self, tmp_path, monkeypatch) -> Callable[[str, dict[str, str]], None]:
        """Stand in for /proc/self/cgroup and the files below /sys/fs/cgroup."""
        lines = pixel_cache._lines

        def of(line: str, files: dict[str, str]) -> None:
            for name, text in files.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
            monkeypatch.setattr(pixel_cache, "CONTROL_GROUPS", tmp_path)
            monkeypatch.setattr(pixel_cache, "_lines", lambda path: (
                [line] if path == Path("/proc/self/cgroup") else ["MemTotal: 90 kB", "MemAvailable:  50 kB"]
                if path == Path("/proc/meminfo") else lines(path)))
        return of

    def test_without_a_limit_it_is_the_machines(self, control_group):
        control_group("0::/job", {"job/memory.max": "max\n", "job/memory.current": "9\n"})
        assert pixel_cache.memory_available() == 50 * 1024

    def test_a_limit_around_the_group_counts_and_idle_pages_of_files_are_free(self, control_group):
        control_group("0::/slurm/job", {"slurm/memory.max": "20000\n", "slurm/memory.current": "15000\n",
                                        "slurm/memory.stat": "anon 7\ninactive_file 4000\n",
                                        "slurm/job/memory.max": "max\n", "slurm/job/memory.current": "15000\n"})
        assert pixel_cache.memory_available() == 9000

    def test_the_older_control_groups_count_too(self, control_group):
        control_group("4:memory:/job", {"memory/job/memory.limit_in_bytes": "8000\n",
                                        "memory/job/memory.usage_in_bytes": "9000\n"})
        assert pixel_cache.memory_available() == 0
