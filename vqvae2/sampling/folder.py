"""Drawn images -> the folder of sample.py, one by one, so that a run that is stopped goes on where it was.

    images/<name>.png     each written as soon as it is drawn
    parts/<name>.npz      its codes, and what its candidates came to; all of them become codes.npz in the end
    sample.json           what all images of the folder have in common; written first
    grid.png, codes.npz   written last

An image is there when its picture is and its codes are, in parts/ or in codes.npz. Every file is whole or not there,
and parts/ goes last: a kill at any moment loses no image that was finished. Several processes write different images.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.models.code_maps import CodeMaps
from vqvae2.plots import pictures as plots
from vqvae2.runs import weights
from vqvae2.settings.checks import flag

RECORD, CODES, GRID, PARTS, IMAGES = "sample.json", "codes.npz", "grid.png", "parts", "images"
NAME = re.compile(r"(.+-)?\d{6,}")
"""The names that sample.py gives to images: 000012, or with --inpaint brain-000003."""
MAY_DIFFER = {"count", "batch", "out"}
"""Settings that may change when a folder is gone on with."""
HASHED = {"vqvae": "vqvae_hash", "top": "top_hash", "bottom": "bottom_hash", "inpaint": "images_hash",
          "mask": "mask_hash"}
"""Settings that may change as long as the hash of what they name is the same."""


@dataclass(frozen=True)
class Finished:
    """One image that has been drawn."""

    name: str
    """The name of its file, without the ending."""
    image: torch.Tensor
    """uint8 `[channels, height, width]`."""
    codes: dict[str, torch.Tensor]
    """The codes of each level, int64 `[height, width]`, on the CPU."""
    scores: dict[str, float] = field(default_factory=dict)
    """The scores of its candidates, where there are several."""


class SampleFolder:
    """The folder of sample.py.

    Args:
        out: the folder; it need not exist.
        settings: what its images have in common, as JSON values, with "vqvae_hash" among them (see HASHED).
    Raises: UserError if the folder holds images that were drawn with other settings, or what sample.py did not make and
        would replace. Nothing is written yet.
    """

    def __init__(self, out: Path, settings: dict):
        self.out, self.settings = out, settings
        foreign = [name for name in (IMAGES, CODES, GRID, PARTS) if (out / name).exists()]
        if foreign and not (out / RECORD).exists():  # perhaps the very files that are to be completed
            names = ", ".join(foreign)
            raise UserError(f"--out {out}: expected a folder that sample.py made, or one without {names}, found "
                            f"{names} and no {RECORD}. Choose another --out.")
        self.before = self._settings_before()
        changed = changed_settings(settings, self.before)
        if changed:
            raise UserError(f"--out {out}: expected the settings that its images were drawn with, found "
                            f"{', '.join(changed)}. Give those again, or choose another --out.")

    def begin(self) -> None:
        """Write what the images have in common, and remove what a killed run was just writing. For rank 0 alone."""
        if not self.before:  # what an earlier version has left here is drawn anew
            (self.out / CODES).unlink(missing_ok=True)
            shutil.rmtree(self.out / PARTS, ignore_errors=True)
        for folder in (self.out, self.out / IMAGES, self.out / PARTS):
            for path in folder.glob(".*.tmp*"):
                path.unlink(missing_ok=True)
        self._write_record({})

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return those of the images `names` that are still to be drawn, in order."""
        stored = self._stored()
        coded = {Path(name).stem for name in (stored.names if stored else ())} | {
            path.stem for path in (self.out / PARTS).glob("*.npz")}
        pictures = {path.stem for path in (self.out / IMAGES).glob("*.png")}
        return [name for name in names if name not in coded or name not in pictures]

    def keep(self, finished: Finished) -> None:
        """Write an image and its codes."""
        picture = _picture(finished.name)
        plots.save_picture(plots.image_grid(finished.image[None], 1, gap=0), self.out / picture)
        scores = {name: torch.tensor([value], dtype=torch.float64) for name, value in finished.scores.items()}
        CodeMaps([picture], {level: codes[None] for level, codes in finished.codes.items()}, scores).save(
            self._part(finished.name), self.settings["vqvae_hash"], "")

    def collect(self, names: Sequence[str]) -> CodeMaps:
        """Return the codes of the images `names`, which are all there, in this order.

        Raises: UserError if one is not: processes on machines that do not share the folder.
        """
        stored = self._stored()
        found = {Path(name).stem: (stored, i) for i, name in enumerate(stored.names)} if stored else {}
        found |= {name: (part, 0) for name in names
                  if (part := CodeMaps.load(self._part(name), self.settings["vqvae_hash"]))}
        if missing := [name for name in names if name not in found]:
            raise UserError(f"--out {self.out}: expected {len(names)} images, found all but {len(missing)}, such as "
                            f"{missing[0]}. All machines must share this folder; run the same command again.")
        chosen = [found[name] for name in names]
        first = chosen[0][0]
        return CodeMaps([_picture(name) for name in names],
                        {level: torch.stack([maps.levels[level][i] for maps, i in chosen]) for level in first.levels},
                        {score: torch.stack([maps.scores[score][i] for maps, i in chosen]) for score in first.scores})

    def picture(self, name: str) -> torch.Tensor:
        """Return an image that is there, uint8 `[channels, height, width]`. Raises: UserError if it cannot be read."""
        path = self.out / _picture(name)
        try:
            with Image.open(path) as picture:
                pixels = torch.from_numpy(np.array(picture))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: expected an image that sample.py wrote, found {error}. Delete it and run the "
                            "same command again.") from None
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def finish(self, maps: CodeMaps, grid: Image.Image, report: dict) -> None:
        """Write the grid, the codes and the report; remove images of an earlier, larger run. For rank 0 alone."""
        plots.save_picture(grid, self.out / GRID)
        maps.save(self.out / CODES, self.settings["vqvae_hash"], "")
        wanted = {Path(name).stem for name in maps.names}
        for path in (self.out / IMAGES).glob("*.png"):
            if NAME.fullmatch(path.stem) and path.stem not in wanted:
                path.unlink(missing_ok=True)
        self._write_record(report)
        shutil.rmtree(self.out / PARTS, ignore_errors=True)

    def _part(self, name: str) -> Path:
        return self.out / PARTS / f"{name}.npz"

    def _stored(self) -> CodeMaps | None:
        return CodeMaps.load(self.out / CODES, self.settings["vqvae_hash"]) if self.before else None

    def _write_record(self, report: dict) -> None:
        files.write_json(self.out / RECORD, {"settings": self.settings, **report,
                                                   "versions": weights.versions()})

    def _settings_before(self) -> dict:
        """Return the settings of the images in the folder, {} where there are none that can be gone on with."""
        try:
            settings = json.loads((self.out / RECORD).read_text(encoding="utf-8"))["settings"]
            return settings if set(HASHED.values()) <= set(settings) else {}  # an earlier version wrote no hashes
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.out / RECORD}: expected settings that sample.py wrote, found {error}. Delete it "
                            "to draw all images anew, or choose another --out.") from None


def changed_settings(new: dict, old: dict) -> list[str]:
    """Return what differs from the settings with which images were drawn, such as `--seed 5 (was 0)`."""
    def words(value: object) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    def meant(value: object) -> object:  # one value for both levels is the same as two equal ones
        return value * 2 if isinstance(value, list) and len(value) == 1 else value

    def same(name: str) -> bool:
        key = HASHED.get(name, name)
        return name in MAY_DIFFER or name in HASHED.values() or key not in old or meant(new[key]) == meant(old[key])

    return [f"{flag(name)} {words(value)} (was {words(old[name])}{', which has changed' * (value == old[name])})"
            for name, value in new.items() if not same(name)]


def _picture(name: str) -> str:
    return f"{IMAGES}/{name}.png"
