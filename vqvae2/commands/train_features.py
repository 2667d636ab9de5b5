r"""Images -> a small network in results/<dataset>/<savename>/, whose features serve to judge samples.

One process, on the CPU or on one GPU:
    vqvae2 train-features --dataset oasis --batch 32 --epochs 20 --savename features
One machine with 8 GPUs:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 -m vqvae2 train-features \
        --dataset oasis --batch 4 --epochs 20 --savename features

Train the network on the images that your models are trained on, and give it to evaluate.py by --features; without this
flag the network in vqvae2/evaluation/network is used. The same command goes on where a run was stopped. --batch counts
the images of one process. harms.csv shows what the network notices: MMD and Fréchet distance of validation images after
each kind of harm.
"""

import dataclasses

from vqvae2.evaluation.feature_training import FeatureTrainer
from vqvae2.evaluation.features import FeatureSettings
from vqvae2.settings.parsing import parse, path_from_environment


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    settings = parse(FeatureSettings, __doc__, arguments)
    # The folder is kept in config.json, whether a flag or the environment named it.
    FeatureTrainer(dataclasses.replace(
        settings, data=path_from_environment(settings.data, "SLICES_PATH", "--data"))).run()
