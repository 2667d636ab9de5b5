"""Decoded images lie in memory once on each machine, are what one process reads, and leave no file behind."""

import csv
import ctypes
import errno
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SLICES_PER_SUBJECT, SUBJECTS, TINY, TINY_VQVAE, write_slices
from PIL import Image
from ranks import run_on_ranks
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException

from vqvae2.commands import train_vqvae
from vqvae2.common import distributed
from vqvae2.common.errors import UserError
from vqvae2.images import decoding
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def left_in(*folders: Path) -> list[str]:
    return [path.name for folder in folders for path in folder.iterdir()]


def mapping() -> list[tuple[str, str, bool]]:
    """(inode, permissions, whether the name is gone) of each file of pixels that this process has mapped."""
    maps = Path("/proc/self/maps")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines() if decoding.PREFIX in line]
    return [(inode, permissions, path.endswith("(deleted)")) for _, permissions, _, _, inode, path in lines]


def facts(data: Path, dataset: str = "oasis") -> dict:
    """Return what this rank sees of a data set, or the text of the error."""
    try:
        loaded = load_images(DataSettings(data=data, dataset=dataset))
    except UserError as error:
        return {"error": str(error)}
    return {"pixels": {split: np.array(image_set.pixels) for split, image_set in loaded.splits.items()},
            "kinds": {split: type(image_set.pixels.base).__name__ for split, image_set in loaded.splits.items()},
            "described": loaded.describe(), "intensities": torch.cat(loaded.splits["train"].intensities()).tolist(),
            "bytes": loaded.splits["train"].bytes(), "mapping": mapping()}


def full(*places: Path) -> Callable[..., None]:
    """Stand in for posix_fallocate where these places have no room."""
    allocate = os.posix_fallocate

    def refuse(number: int, *rest: int) -> None:
        if os.readlink(f"/proc/self/fd/{number}").startswith(tuple(map(str, places))):
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(number, *rest)
    return refuse


def each_scenario(folder: str) -> dict[str, dict]:
    """Run all scenarios one after the other on this rank: starting two processes for each would take long."""
    folder, rank = Path(folder), distributed.rank()
    shared, disk = folder / "memory", folder / "disk"
    os.environ["TMPDIR"] = str(disk)
    decoding.SHARED_MEMORY = shared
    found = {"shared": facts(folder / "slices"), "mixed": facts(folder / "mixed", "folder")}
    found["file of rank 1"] = facts(folder / "bad-last")
    found["files of both"] = facts(folder / "bad-both")
    found["all bad"] = facts(folder / "all-bad", "folder")
    found["sizes"] = facts(folder / "sizes", "folder")
    found["bad on rank 1"] = facts(folder / ("slices" if rank == 0 else "bad-last"))
    found["no folder"] = facts(folder / ("slices" if rank == 0 else "nothing"))

    allocate = os.posix_fallocate
    os.posix_fallocate = full(shared)
    found["small memory"] = facts(folder / "slices")
    os.posix_fallocate = full(shared, disk)
    found["no room"] = facts(folder / "slices")
    os.posix_fallocate = allocate

    available = decoding.memory_available
    decoding.memory_available = lambda: 3000
    found["beyond memory"] = facts(folder / "slices")
    decoding.memory_available = available

    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    found["two machines"] = facts(folder / "slices")
    found["other on rank 1"] = facts(folder / ("plain" if rank == 0 else "plain-other"), "folder")
    return {**found, "left": left_in(shared, disk)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    for name in ("slices", "bad-last", "bad-both"):
        write_slices(folder / name)
    (folder / "bad-last" / "train" / "OAS1_0006_axial072.png").write_bytes(b"no picture")
    for name in ("OAS1_0002_axial071", "OAS1_0006_axial072"):
        (folder / "bad-both" / "train" / f"{name}.png").write_bytes(b"no picture")
    colours = np.stack([RAMP, 255 - RAMP, RAMP // 2], -1)
    for number, pixels in enumerate((RAMP, colours, RAMP, RAMP.astype(np.uint16) * 200)):
        save(folder / "mixed" / "train" / f"{number}.png", pixels)
    save(folder / "mixed" / "val" / "a.png", colours)
    for number, side in enumerate((16, 16, 8, 16)):
        save(folder / "sizes" / "train" / f"{number}.png", RAMP[:side])
    for number in range(3):
        save(folder / "all-bad" / "train" / f"{number}.png", RAMP).write_bytes(b"no picture")
    for name in ("plain", "plain-other"):
        for number in range(5):
            save(folder / name / "train" / f"{number}.png", RAMP + number * (name == "plain" or number < 3))
    for name in ("memory", "disk"):
        (folder / name).mkdir()
    return folder


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def two(folder) -> list[dict]:
    """Return what each of two ranks sees in each scenario, and what both have left behind at the end."""
    return run_on_ranks(2, each_scenario, str(folder))


@pytest.fixture(scope="module")
def single(folder) -> dict:
    """Return what one process sees."""
    names = {"slices": "oasis", "mixed": "folder", "bad-last": "oasis", "bad-both": "oasis", "sizes": "folder",
             "all-bad": "folder"}
    return {name: facts(folder / name, dataset) for name, dataset in names.items()}


def assert_same(two: list[dict], scenario: str, expected: dict) -> None:
    for rank in two:
        found = rank[scenario]
        assert (found["described"], found["intensities"]) == (expected["described"], expected["intensities"])
        assert found["bytes"].equal(expected["bytes"])
        for split, pixels in expected["pixels"].items():
            assert found["pixels"][split].dtype == pixels.dtype
            np.testing.assert_array_equal(found["pixels"][split], pixels)


class TestOneProcess:
    def test_it_holds_a_plain_array_that_it_may_write_to_and_no_file(self, single, folder):
        assert single["slices"]["kinds"] == dict.fromkeys(SUBJECTS, "NoneType")
        assert single["slices"]["mapping"] == []
        assert load_images(DataSettings(data=folder / "slices")).splits["train"].pixels.flags.writeable

    def test_it_maps_a_file_without_a_name_where_the_images_are_larger_than_the_free_memory(
            self, single, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(decoding, "memory_available", lambda: 3000)
        found = facts(folder / "slices")
        assert len(found["mapping"]) == len(SUBJECTS)
        assert {place[1:] for place in found["mapping"]} == {("r--s", True)}
        assert capsys.readouterr().out == (
            f"images: larger than the free memory, so they are mapped from a file in {tmp_path}: more memory, or a "
            "smaller --size, would be faster\n")
        assert left_in(tmp_path) == []
        assert_same([{"beyond": found}], "beyond", single["slices"])

    def test_where_nothing_has_room_one_line_says_how_much_is_needed_and_what_to_do(
            self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(decoding, "memory_available", lambda: 3000)
        monkeypatch.setattr(decoding.os, "posix_fallocate", full(tmp_path))
        assert facts(folder / "slices") == {"error": f"images: expected room for 18,432 bytes in {tmp_path}, found No "
                                            "space left on device. Let TMPDIR name a folder with room, or give a "
                                            "smaller --size."}
        assert left_in(tmp_path) == []


class TestTwoProcesses:
    def test_they_map_the_same_files_which_have_no_name_and_which_none_can_write_to(self, two):
        first, second = (rank["shared"]["mapping"] for rank in two)
        assert len(first) == len(SUBJECTS)  # one file for each split
        assert {inode for inode, _, _ in first} == {inode for inode, _, _ in second}
        assert {place[1:] for place in first + second} == {("r--s", True)}

    @pytest.mark.parametrize("scenario", ["shared", "small memory", "beyond memory", "two machines"])
    def test_they_see_what_one_process_reads_wherever_the_images_lie(self, scenario, single, two):
        assert_same(two, scenario, single["slices"])

    def test_grey_colours_and_sixteen_bits_become_one_array_as_in_one_process(self, single, two):
        assert single["mixed"]["pixels"]["train"].shape == (4, 3, 16, 16)
        assert single["mixed"]["pixels"]["train"].dtype == np.uint16
        assert single["mixed"]["pixels"]["validate"].dtype == np.uint8
        assert_same(two, "mixed", single["mixed"])

    @pytest.mark.parametrize("scenario", ["small memory", "beyond memory"])
    def test_they_share_a_file_on_the_disk_where_memory_is_too_small(self, scenario, two):
        first, second = (rank[scenario]["mapping"] for rank in two)
        assert {inode for inode, _, _ in first} == {inode for inode, _, _ in second}
        assert len(first) == len(SUBJECTS)

    def test_each_has_its_own_array_on_a_machine_of_its_own(self, two):
        assert [rank["two machines"]["mapping"] for rank in two] == [[], []]

    def test_where_no_place_has_room_both_raise_what_to_do(self, two):
        assert two[0]["no room"] == two[1]["no room"]
        assert re.fullmatch(r"images: expected room for 18,432 bytes in .*/memory or .*/disk, found No space left on "
                            r"device\. Let TMPDIR name a folder with room, or .*", two[0]["no room"]["error"])

    @pytest.mark.parametrize(("scenario", "alone"), [("file of rank 1", "bad-last"), ("files of both", "bad-both"),
                                                     ("all bad", "all-bad"), ("sizes", "sizes")])
    def test_an_image_that_does_not_fit_is_the_error_of_one_process_on_both(self, scenario, alone, single, two):
        assert [rank[scenario] for rank in two] == [single[alone]] * 2
        assert "expected " in single[alone]["error"]

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

    def test_an_image_that_is_another_on_another_machine_is_named_on_both(self, two):
        for rank in two:
            assert ("expected the same images on all machines, found another train/3.png on rank 1. Copy the folder "
                    "again") in rank["other on rank 1"]["error"]

    def test_nothing_is_left_behind_after_all_that(self, two, folder):
        assert left_in(folder / "memory", folder / "disk") == []


def facts_of_own_folder(first: str, second: str) -> dict:
    """Rank 1 sees slices of another size, as if it stood on another machine with an older copy."""
    if distributed.rank() == 0:
        return facts(Path(first) / "slices")
    return facts(write_slices(Path(second) / "slices", size=16))


def in_memory(path: Path) -> list[int]:
    """Return the numbers of a file's pages that the system holds in memory, without reading any."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        start = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), pages) == 0
    return [number for number, state in enumerate(pages) if state & 1]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only Linux can say which pages are in memory")
@pytest.mark.parametrize(("side", "items", "expected"), [
    (64, [5, 2], {2, 5}),  # a page each
    (128, [3, -1], {12, 13, 14, 15, 28, 29, 30, 31}),  # four pages each; the last picture
    (48, [1, 4], {0, 1, 2}),  # 2304 bytes: 2304 to 4607 and 9216 to 11519
    (64, [], set())])
def test_of_a_file_only_the_pages_of_the_coming_pictures_are_read(tmp_path, side, items, expected):
    path = tmp_path / "pixels"
    path.write_bytes(np.random.default_rng(0).bytes(8 * side**2))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path):
        pytest.skip("this file system lies in memory")
    pixels = np.asarray(np.memmap(path, np.uint8, "r", 0, (8, 1, side, side)))
    decoding.read_ahead(pixels, np.array(items, np.int64))
    until = time.monotonic() + 5
    while set(in_memory(path)) != expected and time.monotonic() < until:
        time.sleep(0.01)
    assert set(in_memory(path)) == expected


def test_pictures_of_an_array_of_its_own_have_nothing_to_wait_for():
    for count, items in ((3, [0, 2]), (0, [])):
        pixels = np.full((count, 1, 8, 8), 7, np.uint8)
        decoding.read_ahead(pixels, np.array(items, np.int64))
        assert (pixels == 7).all()


def test_a_training_is_the_same_from_a_file_as_from_memory(tmp_path, monkeypatch, capsys):
    write_slices(tmp_path / "slices")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    logs, weights = [], []
    for free in (2**40, 3000):
        monkeypatch.setattr(decoding, "memory_available", lambda free=free: free)
        train_vqvae.main(["--data", str(tmp_path / "slices"), "--results", str(tmp_path / f"{free}"), "--savename", "v",
                          "--epochs", "2", "--batch", "8", *TINY[2:], *TINY_VQVAE[2:]])
        run = tmp_path / f"{free}" / "oasis" / "v"
        weights.append(load_file(run / "model.safetensors"))
        logs.append([{name: value for name, value in row.items() if name != "seconds"}
                     for row in csv.DictReader((run / "log.csv").read_text().splitlines())])
        assert ("larger than the free memory" in capsys.readouterr().out) == (free == 3000)
    assert logs[0] == logs[1]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def say_where(folder: str) -> None:
    """Fall back to the disk on two ranks."""
    os.environ["TMPDIR"] = folder
    os.posix_fallocate = full(decoding.SHARED_MEMORY)
    facts(Path(folder) / "slices")


def test_a_small_shared_memory_is_said_once_by_rank_0(tmp_path, capfd):
    write_slices(tmp_path / "slices")
    run_on_ranks(2, say_where, str(tmp_path), start_method="spawn")  # a fork server's output is not this test's
    assert capfd.readouterr().out == (
        f"images: {decoding.SHARED_MEMORY} is too small for them, so the processes of this machine share a file in "
        f"{tmp_path}; in a container, --shm-size or --ipc=host would be faster\n")


def die_while_decoding(folder: str) -> None:
    """Rank 1 is killed as it decodes its second picture."""
    os.environ["TMPDIR"] = folder
    decoding.SHARED_MEMORY = Path(folder)

    def read(i: int) -> np.ndarray:
        if distributed.rank() == 1 and i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return RAMP[None]
    decoding.decode(8, read)


def test_a_process_that_is_killed_while_it_decodes_leaves_no_file(tmp_path):
    with pytest.raises(ProcessExitedException, match=r"process 1 terminated with signal SIGKILL"):
        run_on_ranks(2, die_while_decoding, str(tmp_path))
    assert left_in(tmp_path) == []


def test_a_stop_does_not_wait_for_the_pictures_that_are_being_decoded():
    """Nor does the process, though one picture takes for ever."""
    script = """
import os, signal, threading
from vqvae2.common.errors import Stopped, run_script
from vqvae2.common.machine import Signals
from vqvae2.images import decoding
import numpy as np

def read(i):
    if i == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    if i:
        threading.Event().wait()
    return np.zeros((1, 8, 8), np.uint8)

def main():
    signals = Signals()
    with signals, signals.stopping_at_once("Stopped while getting ready."):
        decoding.decode(1000, read)

run_script(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (75, "Stopped while getting ready.")


def test_an_error_in_a_thread_is_raised_where_the_pictures_are_wanted():
    def read(i: int) -> np.ndarray:
        if i == 50:
            raise ZeroDivisionError("a bug")
        return RAMP[None]
    with pytest.raises(ZeroDivisionError, match="a bug"):
        decoding.decode(100, read)
