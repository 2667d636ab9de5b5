"""A run's figures and pictures -> the terminal, log.csv, PNGs, and each of WRITERS; rank 0 speaks for all.

TensorBoard is one of WRITERS. Another service, such as wandb, is a class with the methods of
`TensorBoard`, added to WRITERS
before the run begins:

    class Wandb:
        writes = "wandb's files"

        def __init__(self, folder, epochs):
            self.run = wandb.init(dir=folder, id=folder.name, resume="allow")

        def row(self, epoch, row):
            self.run.log(row, step=epoch)

        def picture(self, name, epoch, picture):
            self.run.log({name: wandb.Image(picture)}, step=epoch)

        def histogram(self, name, epoch, values):
            self.run.log({name: wandb.Histogram(values)}, step=epoch)

        def close(self):
            self.run.finish()

    log.WRITERS.append(Wandb)
"""

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2.common import distributed, files
from vqvae2.common.errors import UserError

LOG = "log.csv"
BOARD_BINS = 30
"""The number of bars that TensorBoard shows."""


class TensorBoard:
    """Writes TensorBoard's file into the run's folder, on rank 0.

    Every class in WRITERS must have these methods. An OSError that a method raises ends the run with one line.
    """

    writes = "TensorBoard's file"
    """The name of what is written, for that line."""

    def __init__(self, folder: Path, epochs: int):
        """Begin or go on with the run in `folder`, of which `epochs` are done: what is later was dropped."""
        from torch.utils.tensorboard import (
            SummaryWriter,  # loads TensorFlow too where there is one, with lines on stderr
        )

        if getattr(threading.excepthook, "func", None) is not _without_full_disks:
            threading.excepthook = partial(_without_full_disks, threading.excepthook)
        self.board = SummaryWriter(str(folder), purge_step=epochs + 1)  # its thread writes at once

    def row(self, epoch: int, row: dict[str, float]) -> None:
        """Show the figures of an epoch."""
        for name, value in row.items():
            self.board.add_scalar(name.replace("_", "/", 1), value, epoch)
        self.board.flush()

    def picture(self, name: str, epoch: int, picture: Image.Image) -> None:
        """Show a picture of an epoch."""
        # Wide pictures are shrunk to at most 800 pixels, by a whole number: the file keeps those of all epochs.
        shown = picture.convert("RGB").reduce(-(-picture.width // 800))
        self.board.add_image(name, np.array(shown), epoch, dataformats="HWC")
        self.board.flush()

    def histogram(self, name: str, epoch: int, values: np.ndarray) -> None:
        """Show how numbers of an epoch, of any shape, are spread."""
        self.board.add_histogram(name, values, epoch, bins=BOARD_BINS)
        self.board.flush()

    def close(self) -> None:
        """Close the file."""
        self.board.close()


def _without_full_disks(otherwise: Callable, failed: threading.ExceptHookArgs) -> None:
    """Print no traceback of an error that TensorBoard's thread has met: the next `flush` raises it, too."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
        otherwise(failed)


WRITERS: list[type] = [TensorBoard]


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log.csv; none where there is no file.

    Raises: UserError if a row lacks its epoch, or a cell is neither a number nor empty.
    """
    rows = files.read_rows(path)
    try:
        for row in rows:
            numbers = {name: float(cell or 0) for name, cell in row.items()}
            if not all(math.isfinite(number) for number in (
                    numbers["epoch"], *(numbers.get(name, 0) for name in ("step", "images_seen", "seconds")))):
                raise ValueError("a number that is not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected a table of numbers that a training has written, found "
                        f"{files.in_brief(error)}. Copy it again from where it came, or delete it.") from None
    return rows


def say(line: str) -> None:
    """Print `line` on rank 0, before or after the processes have joined."""
    if distributed.launched_rank() == 0:
        print(line, flush=True)


class RunLog:
    """A run's rows of figures, its pictures and histograms; on ranks other than 0 nothing is shown or written.

    Args:
        folder: the run's folder.
        epochs: number of epochs that are done; what an earlier start wrote about later ones is dropped.
    """

    def __init__(self, folder: Path, epochs: int):
        self.folder = folder
        self.writers = [self._written(kind.writes, kind, folder, epochs)
                        for kind in WRITERS if distributed.rank() == 0]

    def write(self, rows: list[dict], epochs: int) -> None:
        """Write all rows, and show the last, which is of epoch `len(rows)` of `epochs`; on rank 0 alone.

        The terminal shows some of an epoch's figures; log.csv has all.
        """
        files.write_rows(self.folder / LOG, rows)
        self._show("row", len(rows), rows[-1])
        say(f"epoch {len(rows)}/{epochs}: " + ", ".join(
            f"{name} {value:.4g}" for name, value in rows[-1].items() if name.startswith((
                "train_loss", "validate_", "top_", "bottom_"))))

    def picture(self, name: str, epoch: int, picture: Image.Image, part: str = "") -> Path | None:
        """Write a picture of an epoch to <folder>/<name>/<epoch>[_<part>].png, and show it.

        Returns its path; None on ranks other than 0, which do nothing. Raises: UserError if it cannot be written.
        """
        if distributed.rank() != 0:
            return None
        path = self.folder / name / f"{epoch:04d}{part and '_' + part}.png"
        files.write_atomically(path, lambda temporary: picture.save(temporary))
        self._show("picture", f"{name}/{part}" if part else name, epoch, picture)
        return path

    def pictures_until(self, name: str, epoch: int) -> list[Path]:
        """Return the pictures without a part in <folder>/<name>/, in order, up to this epoch.

        Later ones may be there: of a run that went on from an older state, or was copied.
        """
        found = {int(path.stem): path for path in (self.folder / name).glob("*.png") if path.stem.isdecimal()}
        return [path for number, path in sorted(found.items()) if number <= epoch]

    def histogram(self, name: str, epoch: int, values: torch.Tensor) -> None:
        """Show how numbers of an epoch, of any shape, are spread."""
        self._show("histogram", name, epoch, values.cpu().numpy())

    def close(self) -> None:
        """Close what the writers have open."""
        for writer in self.writers:
            with suppress(OSError):  # all is written; a full disk now must not hide why the run ends
                writer.close()

    def _show(self, method: str, *values: object) -> None:
        for writer in self.writers:
            self._written(writer.writes, getattr(writer, method), *values)

    def _written(self, what: str, write: Callable, *values: object) -> object:
        try:
            return write(*values)
        except OSError as error:
            raise UserError(f"{self.folder}: expected to write {what}, found {error.strerror or error}. "
                            "Free some space; the last good state is kept.") from error
