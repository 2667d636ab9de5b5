"""Every byte of a training's state flipped, and the state cut before every byte: load_state refuses each.

A try checks a block of bytes, so that a soak reaches all of them. Tries after these write states whose seal is right,
and of which one value is another: the trainer refuses it, or goes on from the state before it.
"""

import io
import random
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from hostile.part import Part, with_one_change
from tiny_models import check_line
from torch import nn

from vqvae2.common.errors import UserError
from vqvae2.runs import state, weights
from vqvae2.training.settings import TrainingSettings
from vqvae2.training.trainer import Share, Trainer

BLOCK, TRIES = 64, 240
"""Bytes of a try; enough tries for all bytes of this state, and a third as many with sealed states."""
VALUES = (None, True, -1, 10**30, 0.5, "x", b"", [], {}, [[]], (), torch.zeros(3), torch.zeros(2, 2, dtype=torch.long),
          torch.full((), torch.nan), torch.zeros(1).expand(10**12))


class Line(Trainer):
    """y = 3 x - 1 from 8 points."""

    kind = "line"

    def start(self) -> None:
        self.x = torch.linspace(-1, 1, 8)[:, None]

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def count(self, split: str) -> int:
        return {"train": 8, "validate": 2}[split]

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        x = self.x[share.items]
        return {"loss": (model(x) - (3 * x - 1)).square()[:, 0]}


def line(results: Path, epochs: int) -> Line:
    return Line(TrainingSettings(savename="line", epochs=epochs, batch=4, results=results, threads=1,
                                 precision="fp32", pictures_every=0))


def prepare(folder: Path) -> None:
    trainer = line(folder, 2)
    trainer.run()


def damaged(number: int, folder: Path, content: bytes) -> str:
    """One block of bytes, each flipped in one bit, and the file cut before each."""
    path, first = folder / state.STATE, number * BLOCK % len(content)
    for at in range(first, min(first + BLOCK, len(content))):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        for wrong in (flipped, content[:at]):
            path.write_bytes(wrong)
            try:
                state.load_state(path)
            except UserError as error:
                check_line(error)
                continue
            raise AssertionError(f"byte {at} of {len(content)}: a damaged state was believed")
    return "refused"


def sealed(number: int, folder: Path, run: Path) -> str:
    """A run whose last state is well sealed and of another form, or even both of its states."""
    chance, there = random.Random(number), folder / "oasis" / "line"
    there.mkdir(parents=True)
    for name in (weights.CONFIG, state.STATE, state.STATE_BEFORE):
        (there / name).write_bytes((run / name).read_bytes())
    if number % 4 == 0:
        (there / state.STATE_BEFORE).unlink()
    state.save_state(folder / "made", with_one_change(
        state.load_state(run / state.STATE), VALUES, chance))
    (there / state.STATE).write_bytes((folder / "made" / state.STATE).read_bytes())
    trainer = line(folder, 3)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            trainer.run()
    except UserError as error:
        check_line(error)
        return "refused"
    assert trainer.epoch >= 3, trainer.epoch
    return "resumed"


def try_one(number: int, folder: Path, prepared: Path) -> str:
    run = prepared / "oasis" / "line"
    content = (run / state.STATE).read_bytes()
    if number % 4 == 3:
        return sealed(number // 4, folder, run)
    return damaged(number - number // 4, folder, content)


PART = Part("states", "states of which every byte is flipped, and cut; sealed states of another form", TRIES,
            try_one, prepare, in_suite=12)
