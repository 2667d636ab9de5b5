r"""A trained VQ-VAE and its images -> an encoder that gives noisy images the codes of clean ones.

    vqvae2 train-encoder --vqvae brain-128 --dataset oasis --batch 16 --epochs 20 --savename brain-128-encoder
Where images are noisier than 0.1 of the range from black to white:
    vqvae2 train-encoder --vqvae brain-128 --dataset oasis --batch 16 --epochs 20 --savename brain-128-encoder \
        --noise 0.2
One machine with 8 GPUs:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 -m vqvae2 train-encoder \
        --vqvae brain-128 --dataset oasis --batch 16 --epochs 60 --savename brain-128-encoder

The encoder begins as a copy of the VQ-VAE's own and is trained on its images with Rician noise, each with another
amount. Codebooks and decoder stay as they are, so that the codes keep their meaning and the priors still fit.
`vqvae2 predict --denoise` takes the encoder. What that is good for, and what it loses: docs/denoising.md.

After each epoch `validate_same_codes` says which share of the codes is that of the clean image; denoised/ shows unseen
slices.
"""

from vqvae2.commands import endings
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.encoders import EncoderTrainer
from vqvae2.training.settings import TrainEncoder


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    settings = parse(TrainEncoder, __doc__, arguments)
    weights.find_run(settings.vqvae, "--vqvae", settings.results)
    EncoderTrainer(settings).run()
    pictures = sorted(settings.folder.glob("denoised/*.png"))
    endings.say(pictures[-1] if pictures else None, "predict", "--vqvae", settings.vqvae, "INPUT", "--denoise",
                settings.folder, "--out", "denoised")
