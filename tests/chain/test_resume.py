"""A VQ-VAE or a prior that was stopped anywhere and goes on ends with bitwise the weights of one never stopped."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_PRIOR, TINY_VQVAE

from vqvae2.common.errors import Stopped
from vqvae2.settings.parsing import parse
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainPrior, TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer


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
    tensors = [outcome(one)[1]["model.safetensors"][-1000:] for one in (whole, again)]
    assert tensors[0] == tensors[1]  # the tensors end the file; the config before them names another folder


# 18 images, batch 8: 3 steps an epoch, the codebooks are placed at step 6 and restarted at step 10.
@pytest.mark.parametrize("step", [1, 3, 5, 7, 11])
def test_a_stopped_vqvae_goes_on_as_if_it_had_not_been(tiny_slices, tmp_path, step):
    arguments = ["--data", str(tiny_slices), "--savename", "x", *TINY, *TINY_VQVAE, "--epochs", "5"]
    check_bitwise(VqvaeTrainer, TrainVqvae, arguments, tmp_path, step)


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_stopped_prior_goes_on_as_if_it_had_not_been(tiny_run, tmp_path, level):
    arguments = ["--data", str(tiny_run.data), "--savename", "x", "--level", level, "--vqvae", str(tiny_run.vqvae),
                 *TINY, *TINY_PRIOR, "--copies", "1"]
    check_bitwise(PriorTrainer, TrainPrior, arguments, tmp_path, 4)
