"""Code maps of some images <-> an .npz file, tied to their VQ-VAE by its hash.

A prior is trained on codes/<split>.npz in the VQ-VAE's folder, extracted once for both levels:
`image` (names), `top` and `bottom` (int16 `[n, height, width]`, -1 = to be drawn), `vqvae_hash`, `data_hash`."""

import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from vqvae2.common import distributed, files

LEVELS = ("top", "bottom")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
              struct.error)
"""The exceptions of `read_arrays` where a file is another program's or damaged."""
MOST_ARRAYS, LITTLE, MOST_TIMES = 64, 64 * 2**20, 50
"""The most arrays of a file; a file that grows to more bytes than LITTLE may grow to MOST_TIMES its size: codes are
hard to compress, while zeros shrink to a thousandth."""


@dataclass(frozen=True)
class CodeMaps:
    """The codes of some images.

    Args:
        levels: the code maps of each level, coarse first, `[n, height, width]`: int64, or int16 where a whole split is
            held, a quarter of the memory.
        scores: further numbers of each image by their names, float64 `[n]`.
    """

    names: list[str]
    levels: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path, vqvae_hash: str, data_hash: str) -> None:
        """Write the maps as .npz, atomically."""
        arrays = {level: codes.numpy().astype(np.int16, copy=False) for level, codes in self.levels.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, image=np.array(self.names), vqvae_hash=vqvae_hash, data_hash=data_hash,
                                    **arrays, **{name: score.numpy() for name, score in self.scores.items()})
        files.write_atomically(path, write)

    @classmethod
    def load(cls, path: Path, vqvae_hash: str, data_hash: str | None = None, names: Sequence[str] | None = None,
             grids: Mapping[str, tuple[int, int]] | None = None, codebook_size: int | None = None,
             kind: torch.dtype = torch.int64, *, quietly: bool = False) -> "CodeMaps | None":
        """Return stored maps of integers `kind`; None where there are none, or another VQ-VAE's or another data set's.

        None too where the file is damaged, which is said in a line, unless this is to be done `quietly`.

        Args:
            names: the images, if the maps must be theirs. grids: height and width of each level's maps.
            codebook_size: the number of codes of a level, if every code must be one of them: none is to be drawn.
        """
        if not path.is_file():
            return None
        try:
            arrays = read_arrays(path)
            made_by, made_of = str(arrays.pop("vqvae_hash")), str(arrays.pop("data_hash", ""))
            if made_by != vqvae_hash or data_hash not in (None, made_of):
                return None
            found = _checked(arrays, grids, (-1, np.iinfo(np.int16).max) if codebook_size is None else
                             (0, codebook_size - 1), kind)
            if names is not None and found.names != list(names):
                raise ValueError("other images")
            return found
        except UNREADABLE as error:
            if distributed.rank() == 0 and not quietly:
                print(f"warning: {path}: expected code maps that this project wrote, found {files.in_brief(error)}. "
                      "They are made anew.", file=sys.stderr, flush=True)
            return None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, whose sizes are looked at before any of it is inflated.

    Raises: one of UNREADABLE if it is no such file, holds other than numbers and text, or would grow too large.
    """
    arrays = {}
    with files.open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
        members = archive.infolist()
        total, most = sum(member.file_size for member in members), max(LITTLE, MOST_TIMES * path.stat().st_size)
        if total > most or len(members) > MOST_ARRAYS:
            raise ValueError(f"{len(members)} arrays of {total:,} bytes in {path.stat().st_size:,}")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"another compression of {member.filename[:60]}")
            with archive.open(member) as file:  # numpy makes room for what the header says, whatever there is
                _check_header(file, member)
            with archive.open(member) as file:
                arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file)
    return arrays


def _check_header(file: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Raise ValueError unless the array has as many bytes as its header says."""
    is_first = np.lib.format.read_magic(file) == (1, 0)
    shape, _, kind = (np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0)(file)
    bytes_left = member.file_size - file.tell()
    if math.prod(shape) * kind.itemsize != bytes_left or math.prod(shape) > bytes_left:
        raise ValueError(f"{member.filename[:60]} of shape {shape} in {bytes_left} bytes")


def _checked(arrays: dict[str, np.ndarray], grids: Mapping[str, tuple[int, int]] | None,
             limits: tuple[int, int], kind: torch.dtype) -> CodeMaps:
    """Return the maps in `arrays`. Raises: ValueError where they do not fit together; KeyError where one is missing."""
    names, levels = [str(name) for name in arrays.pop("image")], {}
    if len(set(names)) < len(names):
        raise ValueError("two maps of one name")
    for level in LEVELS if grids is None else grids:
        if level not in arrays and grids is None:
            continue
        codes = arrays.pop(level)
        form = codes.shape[1:] if grids is None and codes.ndim == 3 else (grids or {}).get(level)
        if codes.shape != (len(names), *(form or ())) or codes.dtype.kind not in "iu":
            raise ValueError(f"{level} codes of shape {codes.shape}, {codes.dtype}, for {len(names)} images")
        if codes.size and not limits[0] <= codes.min() <= codes.max() <= limits[1]:
            raise ValueError(f"{level} codes from {codes.min()} to {codes.max()}")
        levels[level] = torch.from_numpy(codes.astype(str(kind).removeprefix("torch.")))
    for name, score in arrays.items():
        if score.shape != (len(names),) or score.dtype.kind != "f" or np.isinf(score).any():
            raise ValueError(f"{name[:60]} that is no number for each image")
    return CodeMaps(names, levels, {name: torch.from_numpy(score) for name, score in arrays.items()})
