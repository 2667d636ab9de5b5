r"""Images -> a trained VQ-VAE-2 in results/<dataset>/<savename>/.

One process, on the CPU or on one GPU:
    python train_vqvae.py --dataset oasis --batch 32 --epochs 60 --savename brain-128
One machine with 8 GPUs:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 train_vqvae.py \
        --dataset oasis --batch 16 --epochs 60 --savename brain-256
Two machines with 8 GPUs each (run on both; HOST is the first one's address):
    python -m torch.distributed.run --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d \
        --rdzv_endpoint=HOST:29500 train_vqvae.py --dataset oasis --batch 16 --epochs 60 --savename brain-256

A preset, on any folder of pictures (the presets are listed below; flags override them):
    python train_vqvae.py --preset own-images --data ~/pictures

The same command goes on where a run was stopped. --batch counts the images of one process. Watch each level's used
codes, perplexity and shuffle drop: a level whose shuffle drop is 0 says nothing.
"""

import dataclasses

from vqvae2.commands import endings
from vqvae2.settings.parsing import parse, path_from_environment
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    settings = parse(TrainVqvae, __doc__, arguments)
    # The folder is kept in config.json, whether a flag or the environment named it: evaluate.py reads it there.
    VqvaeTrainer(dataclasses.replace(
        settings, data=path_from_environment(settings.data, "SLICES_PATH", "--data"))).run()
    endings.after_training(settings.folder, "losses.png", "reconstructions/*.png")
