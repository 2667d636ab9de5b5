"""A disk that is full, from the start or from a random moment on -> one line; with space again the same results.

A limit on the size of each file stands for the full disk: it makes each write past that size fail, in every library
that a command uses, and needs no rights. Files that cannot be begun at all have the limit 0.
"""

import json
import os
import random
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import tiny_chain
from conftest import on_screen
from hostile.part import Part
from PIL import Image
from safetensors import safe_open

MOST = 40
"""Files that are written, at most, before the disk is full; a command may write fewer."""


def check_json(path: Path) -> None:
    """Raise ValueError if this is half a JSON file."""
    json.loads(path.read_text(encoding="utf-8"))


def check_picture(path: Path) -> None:
    """Raise OSError if this is half a picture."""
    with Image.open(path) as picture:
        picture.load()


def check_arrays(path: Path) -> None:
    """Raise OSError or ValueError if this is half an archive of arrays."""
    with np.load(path) as arrays:
        [arrays[name] for name in arrays.files]


def check_text(path: Path) -> None:
    """Raise ValueError if the last line is not whole."""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError(f"ends with {text[-20:]!r}")


WHOLE: dict[str, Callable[[Path], object]] = {
    ".json": check_json, ".png": check_picture, ".gif": check_picture, ".npz": check_arrays, ".csv": check_text,
    ".safetensors": lambda path: safe_open(path, "np")}
"""A file's suffix -> what raises an error if the file is not whole."""


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Fill the disk of a command, then give it space again and let the same command go on."""
    if not hasattr(resource, "prlimit"):
        return "skipped"  # only Linux lets one process limit another
    draws, name = random.Random(number), list(tiny_chain.COMMANDS)[number % len(tiny_chain.COMMANDS)]
    words, root = tiny_chain.COMMANDS[name].split(), tiny_chain.copied(prepared, folder / "full")
    moment = draws.choice([0, draws.randrange(1, MOST)])
    limit = draws.choice([0, int(2 ** draws.uniform(0, 18))])
    said = root / "first" / ".stderr"
    said.parent.mkdir()
    os.mkfifo(said)  # what the command says must not lie on the full disk
    lines: list[str] = []

    def listen() -> None:
        text = said.read_bytes()
        lines.extend(on_screen(text.decode()))
        said.write_bytes(text)  # for whoever reads the file next

    def fill(process: int) -> None:
        threading.Thread(target=listen, daemon=True).start()
        seen: set[tuple] = set()
        while len(seen) < moment and Path(f"/proc/{process}").exists():
            time.sleep(0.002)
            with suppress(FileNotFoundError):  # a file that has just got another name
                seen.update((path, path.stat().st_mtime_ns) for path in (root / "out").rglob("[!.]*"))
        with suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    ended = tiny_chain.start(words, root, while_running=fill)
    what = f"{name}, {limit} bytes after {moment} files: status {ended.status}, {ended.err}"
    assert ended.status in (0, 2), what
    assert len(lines) == 1 or ended.status == 0, what
    for path in (root / "out").rglob("[!.]*"):
        if check := WHOLE.get(path.suffix):
            check(path)
    again = tiny_chain.start(words, root)
    assert again.status == 0, f"{what}; then {again.status} {again.err}"
    tiny_chain.assert_as_undisturbed(name, root, prepared, folder)
    return "refused" if ended.status == 2 else "done"


PART = Part("full_disk", "full disks, from the start or a random moment on: " + ", ".join(tiny_chain.COMMANDS), 180,
            try_one, tiny_chain.prepare, in_suite=2)
