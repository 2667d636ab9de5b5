"""What a training run has to say -> the terminal, log.csv, pictures and TensorBoard; rank 0 speaks for all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae2.common import distributed, files, rendezvous
from vqvae2.common.errors import UserError

SHOWN = ("train_loss", "validate_", "top_", "bottom_")
"""Figures of an epoch that the terminal shows begin with one of these; log.csv has all."""
BOARD_WIDTH = 800
"""Wider pictures are shrunk for TensorBoard, by a whole number: its file keeps those of all epochs."""
BOARD_BINS = 30
"""As many as TensorBoard shows."""


def say(line: str) -> None:
    """Print `line` on rank 0, before or after the processes have joined."""
    if rendezvous.launched_rank() == 0:
        print(line, flush=True)


class RunLog:
    """A run's rows of figures; on ranks other than 0 nothing is shown or written.

    Args:
        folder: of the run.
        epochs: that are done; what an earlier start wrote about later ones is dropped.
    """

    def __init__(self, folder: Path, epochs: int):
        self.folder = folder
        self.board = None
        if distributed.rank() == 0:
            with self._writing():
                self.board = SummaryWriter(str(folder), purge_step=epochs + 1)

    def write(self, rows: list[dict], epochs: int) -> None:
        """Write all rows, and show the last, which is of epoch `len(rows)` of `epochs`."""
        if self.board is None:
            return
        files.write_rows(self.folder / "log.csv", rows)
        with self._writing():
            for name, value in rows[-1].items():
                self.board.add_scalar(name.replace("_", "/", 1), value, len(rows))
            self.board.flush()
        say(f"epoch {len(rows)}/{epochs}: " + ", ".join(
            f"{name} {value:.4g}" for name, value in rows[-1].items() if name.startswith(SHOWN)))

    def picture(self, name: str, epoch: int, picture: Image.Image, part: str = "") -> Path | None:
        """Write a picture of an epoch to <folder>/<name>/<epoch>[_<part>].png, and show it in TensorBoard.

        Returns its path; None on ranks other than 0, which do nothing. Raises: UserError if it cannot be written.
        """
        if self.board is None:
            return None
        path = self.folder / name / f"{epoch:04d}{part and '_' + part}.png"
        files.write_atomically(path, lambda temporary: picture.save(temporary))
        shown = picture.convert("RGB").reduce(-(-picture.width // BOARD_WIDTH))
        with self._writing():
            self.board.add_image(f"{name}/{part}" if part else name, np.array(shown), epoch, dataformats="HWC")
            self.board.flush()
        return path

    def pictures_until(self, name: str, epoch: int) -> list[Path]:
        """Return the pictures without a part in <folder>/<name>/, in order, up to this epoch.

        Later ones may be there: of a run that went on from an older state, or was copied.
        """
        found = {int(path.stem): path for path in (self.folder / name).glob("*.png") if path.stem.isdecimal()}
        return [path for number, path in sorted(found.items()) if number <= epoch]

    def histogram(self, name: str, epoch: int, values: torch.Tensor) -> None:
        """Show in TensorBoard how numbers of an epoch, of any shape, are spread."""
        if self.board is not None:
            with self._writing():
                self.board.add_histogram(name, values.cpu(), epoch, bins=BOARD_BINS)
                self.board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.board is not None:
            with suppress(OSError):  # all is written; a full disk now must not hide why the run ends
                self.board.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: expected to write TensorBoard's file, found {error.strerror or error}. "
                            "Free some space; the last good state is kept.") from error


def bar(title: str, done: int, total: int) -> tqdm:
    """Return a progress bar of an epoch's steps, of which some may have been done before."""
    return tqdm(total=total, initial=done, unit="step", leave=False, desc=title, disable=distributed.rank() != 0)
