"""A VQ-VAE or a prior that was stopped anywhere and goes on ends with bitwise the weights of one never stopped."""


import pytest
from conftest import TINY, TINY_PRIOR, TINY_VQVAE
from resuming import check_bitwise

from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainPrior, TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer


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
