"""A run stopped or killed and started again -> what differs, bit for bit, from the end of one never stopped."""

import csv
import os
import signal
from pathlib import Path

import pytest
import torch

from vqvae2.common.errors import Stopped
from vqvae2.runs import state, weights
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


def differences(first: Path, second: Path) -> list[str]:
    """Return what differs between two runs: tensors of weights and state, rows of the log."""
    found = []
    tensors = [weights.load_weights(run / weights.WEIGHTS)[0] for run in (first, second)]
    found += [f"weights {name}" for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])]
    states = [flat(state.load_state(run / state.STATE)) for run in (first, second)]
    found += [f"state {name}" for name in states[0].keys() | states[1].keys()
              if not same(states[0].get(name), states[1].get(name))]
    logs = [list(csv.DictReader((run / "log.csv").open())) for run in (first, second)]
    found += [f"log row {number}: {name}" for number, rows in enumerate(zip(*logs, strict=True), 1) for name in rows[0]
              if name != "seconds" and rows[0][name] != rows[1][name]]
    return found


def flat(value: object, name: str = "") -> dict[str, object]:
    """Return a nested state as one level, without what names the run or tells the time."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for inner, part in items if inner not in ("run_id", "seconds")
                for key, leaf in flat(part, f"{name}/{inner}").items()}
    return {name: value}


def same(value: object, other: object) -> bool:
    """Return whether two values are the same, tensors bit for bit."""
    return torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
