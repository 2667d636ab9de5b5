"""A trainer stopped by a signal and started again -> the end of one never stopped, bit for bit."""

import os
import signal
from pathlib import Path

import pytest
import torch

from vqvae2.common.errors import Stopped
from vqvae2.settings.parsing import parse


def signalled(trainer_class: type, step: int) -> type:
    """The same trainer, which gets a SIGTERM in this step."""
    class Signalled(trainer_class):
        def after_step(self):
            super().after_step()
            if self.step + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)
    return Signalled


def outcome(trainer) -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    files = {path.name: path.read_bytes() for path in sorted(trainer.folder.glob("model.safetensors"))}
    return trainer.model.state_dict(), files


def check_bitwise(trainer_class: type, settings_class: type, arguments: list[str], results: Path, step: int) -> None:
    def made(kind: type, folder: str):
        return kind(parse(settings_class, "", [*arguments, "--results", str(results / folder)]))

    whole = made(trainer_class, "whole")
    whole.run()
    with pytest.raises(Stopped, match=rf"at step {step}, all saved: .* The same command goes on"):
        made(signalled(trainer_class, step), "stopped").run()
    again = made(trainer_class, "stopped")
    again.run()
    for name, value in outcome(whole)[0].items():
        assert torch.equal(outcome(again)[0][name], value), name
    tensors = [outcome(results)[1]["model.safetensors"][-1000:] for results in (whole, again)]
    assert tensors[0] == tensors[1]  # the tensors end the file; the config before them names another folder
