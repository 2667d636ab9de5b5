"""Code maps of some images <-> an .npz file, tied to their VQ-VAE by its hash.

A prior is trained on codes/<split>.npz in the VQ-VAE's folder, extracted once for both levels:
`image` (names), `top` and `bottom` (int16 `[n, height, width]`, -1 = to be drawn), `vqvae_hash`, `data_hash`."""

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vqvae2.common import files

LEVELS = ("top", "bottom")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""The exceptions of numpy.load, and of reading its arrays, where a file is another program's or damaged."""


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
    def load(cls, path: Path, vqvae_hash: str, data_hash: str | None = None,
             kind: torch.dtype = torch.int64) -> "CodeMaps | None":
        """Return stored maps of integers `kind`, or None where there are none, or they are another VQ-VAE's or another
        data set's."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["vqvae_hash"]) != vqvae_hash or data_hash not in (None, str(file["data_hash"])):
                    return None
                return cls([str(name) for name in file["image"]],
                           {level: torch.from_numpy(file[level]).to(kind) for level in LEVELS if level in file},
                           {name: torch.from_numpy(file[name]) for name in file
                            if name not in (*LEVELS, "image", "vqvae_hash", "data_hash")})
        except UNREADABLE:
            return None
