"""Code files of strangers, given to --inpaint or in a VQ-VAE's folder: arrays that do not fit, or claim too much.

A try ends as "refused", or as "same" where the change harms nothing and the same maps are read.
"""

import random
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from hostile.part import Part
from tiny_models import CODES, check_line, write_vqvae

from vqvae2.common.errors import UserError
from vqvae2.models.autoencoder import code_grids, load_vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.sampling import inpainting
from vqvae2.sampling.settings import SampleSettings

CPU, IMAGES = torch.device("cpu"), 5
MOST_TAKEN = 80 * 2**20


def prepare(folder: Path) -> None:
    write_vqvae(folder / "vqvae")


def maps_of(chance: random.Random) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(chance.randrange(2**32))
    return {"image": np.array([f"train/{i}.png" for i in range(IMAGES)]),
            "top": draws.integers(0, CODES, (IMAGES, 2, 2)).astype(np.int16),
            "bottom": draws.integers(0, CODES, (IMAGES, 4, 4)).astype(np.int16)}


def spoil(path: Path, arrays: dict[str, np.ndarray], chance: random.Random) -> None:
    """Write arrays with one thing wrong."""
    kind = chance.randrange(9)
    name = chance.choice(["image", "top", "bottom"] if kind == 1 else sorted(arrays))
    array = arrays[name]
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = chance.choice([array[:3], array[:0], array[None], array.ravel()[:1],
                                      np.concatenate([array] * 2)])
    elif kind == 2:
        arrays[name] = chance.choice([np.zeros(array.shape), np.zeros(array.shape, complex), np.array("x"),
                                      np.full(array.shape, 2**63, np.uint64), np.zeros(0)])
    elif kind == 3:
        arrays["image"] = np.array(["a"] * IMAGES)
    elif kind == 4:
        arrays[chance.choice(["top", "bottom"])].flat[chance.randrange(20)] = chance.choice([CODES, -2, 32767, -32768])
    elif kind == 5:
        arrays[name] = np.broadcast_to(np.int16(0), (50_000_000,))  # 100 MB that are next to nothing on the disk
    elif kind == 6:
        arrays[name] = np.array([{}, 5], dtype=object)
    np.savez_compressed(path, **arrays) if kind != 5 else claim(path, arrays, name)
    if kind in (7, 8):
        content = bytearray(path.read_bytes())
        at = chance.randrange(len(content))
        content[at:at + chance.choice([1, 8])] = chance.randbytes(chance.choice([0, 1, 8]))
        path.write_bytes(content[:at] if kind == 8 else content)


def claim(path: Path, arrays: dict[str, np.ndarray], name: str) -> None:
    """Write arrays of which one is 100 MB of zeros, without making it."""
    shape = arrays.pop(name).shape
    np.savez_compressed(path, **arrays)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}".encode()
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")
        for _ in range(10):
            file.write(bytes(10_000_000))


def try_one(number: int, folder: Path, prepared: Path) -> str:
    chance = random.Random(number)
    vqvae, arrays = load_vqvae(str(prepared / "vqvae"), CPU), maps_of(chance)
    names, grids = list(arrays["image"]), code_grids(vqvae)
    whole = {name: array.copy() for name, array in arrays.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    path = folder / "codes.npz"
    if is_users := number % 2 == 0:
        arrays["top"][0, 0, 0] = whole["top"][0, 0, 0] = -1
    spoil(path, arrays | {"vqvae_hash": np.array(vqvae.hash), "data_hash": np.array("data")}, chance)
    if is_users:
        settings = SampleSettings(vqvae="v", top="t", bottom="b", out=folder / "out", inpaint=path)
        try:
            found = inpainting.load(settings, vqvae).codes
        except UserError as error:
            check_line(error)
            found = None
    else:
        maps = CodeMaps.load(path, vqvae.hash, "data", names, grids, CODES)
        found = maps and maps.levels
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert taken < MOST_TAKEN, f"{taken:,} bytes were taken"
    if found is None:
        return "refused"
    for level, codes in found.items():
        assert codes.shape[1:] == grids[level], level
        assert codes.min() >= (-1 if is_users else 0), level
        assert codes.max() < CODES, level
    same = all(np.array_equal(found[level].numpy(), whole[level]) for level in grids)
    assert same or is_users, "other maps were believed"
    return "same" if same else "different"


PART = Part("codes", "code files whose arrays do not fit, or claim too much", 1000, try_one, prepare, in_suite=24)
