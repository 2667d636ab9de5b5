"""A run's figures and pictures -> the terminal, log.csv, PNGs, and each writer of --log; rank 0 speaks for all."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image

from vqvae2.common import distributed, files
from vqvae2.common.errors import UserError
from vqvae2.runs import writers

LOG = "log.csv"


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
        names: what --log says. config: the run's.
    Raises: UserError if a writer of these names cannot begin.
    """

    def __init__(self, folder: Path, epochs: int, names: Sequence[str] = ("tensorboard",), config: dict | None = None):
        self.folder = folder
        self.writers = [self._written(kind, kind, folder, epochs, config or {})
                        for name, kind in writers.WRITERS.items() if name in names and distributed.rank() == 0]

    def write(self, rows: list[dict], line: str) -> None:
        """Write all rows, show what is new, and print `line`, some figures of the last row; on rank 0 alone."""
        files.write_rows(self.folder / LOG, rows)
        for writer in self.writers:
            for epoch in range(writer.epochs + 1, len(rows) + 1):
                self._written(writer, writer.row, epoch, rows[epoch - 1])
        say(line)

    def picture(self, name: str, epoch: int, picture: Image.Image, part: str = "") -> Path | None:
        """Write a picture of an epoch to <folder>/<name>/<epoch>[_<part>].png, and show it.

        Returns its path; None on ranks other than 0, which do nothing. Raises: UserError if it cannot be written.
        """
        if distributed.rank() != 0:
            return None
        path = self.folder / name / f"{epoch:04d}{part and '_' + part}.png"
        files.write_atomically(path, lambda temporary: picture.save(temporary))
        self._show("picture", epoch, f"{name}/{part}" if part else name, epoch, picture)
        return path

    def pictures_until(self, name: str, epoch: int) -> list[Path]:
        """Return the pictures without a part in <folder>/<name>/, in order, up to this epoch.

        Later ones may be there: of a run that went on from an older state, or was copied.
        """
        found = {int(path.stem): path for path in (self.folder / name).glob("*.png") if path.stem.isdecimal()}
        return [path for number, path in sorted(found.items()) if number <= epoch]

    def histogram(self, name: str, epoch: int, values: torch.Tensor) -> None:
        """Show how numbers of an epoch, of any shape, are spread."""
        self._show("histogram", epoch, name, epoch, values.cpu().numpy())

    def end_epoch(self, epoch: int) -> None:
        """Tell the writers that all of this epoch has been shown."""
        self._show("end_epoch", epoch, epoch)

    def close(self, ended_well: bool) -> None:
        """Close what the writers have open; `ended_well` where the run has made all its epochs."""
        for writer in self.writers:
            with suppress(*writer.errors):  # all is written; a full disk now must not hide why the run ends
                writer.close(ended_well)

    def _show(self, method: str, epoch: int, *values: object) -> None:
        for writer in self.writers:
            # A service takes nothing back: where a run goes on from an older state, it has had these epochs.
            if epoch >= writer.epochs:
                self._written(writer, getattr(writer, method), *values)

    def _written(self, writer: object, write: Callable, *values: object) -> object:
        try:
            return write(*values)
        except UserError:
            raise
        except writer.errors as error:
            raise UserError(f"{self.folder}: expected to write {writer.writes}, found {files.in_brief(error)}. "
                            f"{writer.advice}; the last good state is kept.") from error
