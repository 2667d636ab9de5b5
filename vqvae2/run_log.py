"""What a training run has to say -> the terminal, log.csv and TensorBoard; rank 0 speaks for all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae2 import checkpoints, distributed
from vqvae2.errors import UserError

SHOWN = ("train_loss", "validate_", "top_", "bottom_")
"""Figures of an epoch that the terminal shows begin with one of these; log.csv has all."""


def say(line: str) -> None:
    """Print `line` on rank 0, before or after the processes have joined."""
    if distributed.launched_rank() == 0:
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
        checkpoints.write_rows(self.folder / "log.csv", rows)
        with self._writing():
            for name, value in rows[-1].items():
                self.board.add_scalar(name.replace("_", "/", 1), value, len(rows))
            self.board.flush()
        say(f"epoch {len(rows)}/{epochs}: " + ", ".join(
            f"{name} {value:.4g}" for name, value in rows[-1].items() if name.startswith(SHOWN)))

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
