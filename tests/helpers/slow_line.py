"""A script that trains a line as slowly as the environment says, for tests that disturb it from outside.

SLOW_START, SLOW_PASS, SLOW_VALIDATION: seconds that each takes. A file <results>/<phase>-<rank> appears, with
the process's number in it, when the phase begins.
"""

import os
import time

import torch
from torch import nn

from vqvae2.common import distributed
from vqvae2.common.errors import run_script
from vqvae2.settings.parsing import parse
from vqvae2.training.settings import TrainingSettings
from vqvae2.training.trainer import Share, Trainer


class SlowLine(Trainer):
    """y = 3 x - 1 from 40 points."""

    kind = "line"

    def begin(self, phase: str) -> None:
        """Say that a phase has begun, and take the time that it is to take."""
        (self.settings.results / f"{phase}-{distributed.rank()}").write_text(str(os.getpid()))
        time.sleep(float(os.environ.get(f"SLOW_{phase.upper()}", 0)))

    def start(self) -> None:
        """Make the points."""
        self.begin("start")
        self.x = torch.linspace(-1, 1, 40)[:, None]

    def build(self) -> nn.Module:
        """Return the line."""
        return nn.Linear(1, 1)

    def count(self, split: str) -> int:
        """Return the number of points."""
        return {"train": 40, "validate": 10}[split]

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return the squared error of each point."""
        if model.training and len(share.items):
            self.begin("pass")
        x = self.x[share.items] if model.training else self.x[share.items * 4]
        return {"loss": (model(x) - (3 * x - 1)).square()[:, 0]}

    def validate_more(self) -> dict[str, float]:
        """Take a while."""
        self.begin("validation")
        return {}


def main(words: list[str] | None = None) -> None:
    """Train the line as a command line says."""
    SlowLine(parse(TrainingSettings, __doc__, words)).run()


if __name__ == "__main__":
    run_script(main)
