r"""A trained VQ-VAE and its images -> a denoiser: an encoder that gives noisy images the codes of clean ones, and more.

    vqvae2 train-denoiser --vqvae brain-128 --dataset oasis --batch 16 --epochs 20 --savename brain-128-denoiser
Where images are noisier than 0.1 of the range from black to white:
    vqvae2 train-denoiser --vqvae brain-128 --dataset oasis --batch 16 --epochs 20 --savename brain-128-denoiser \
        --noise 0.2
One machine with 8 GPUs:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 -m vqvae2 train-denoiser \
        --vqvae brain-128 --dataset oasis --batch 16 --epochs 60 --savename brain-128-denoiser

It is trained on the images of the VQ-VAE, with Rician noise, each with another amount. The encoder begins as a copy of
the VQ-VAE's own. Codebooks and decoder stay as they are, so that codes keep their meaning and priors still fit. A
second network makes the denoised image of the noisy one and the picture of its codes. `vqvae2 predict --denoise` takes
both. What that is good for, and what it loses: docs/denoising.md.

After each epoch `validate_mse` says how far denoised images are from clean ones, and `validate_same_codes` which share
of the codes is that of the clean image; the epoch with the least error is kept. denoised/ shows unseen slices.
"""

from vqvae2.commands import endings
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.denoisers import DenoiserTrainer
from vqvae2.training.settings import TrainDenoiser


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    settings = parse(TrainDenoiser, __doc__, arguments)
    weights.find_run(settings.vqvae, "--vqvae", settings.results)
    DenoiserTrainer(settings).run()
    pictures = sorted(settings.folder.glob("denoised/*.png"))
    endings.say(pictures[-1] if pictures else None, "predict", "--vqvae", settings.vqvae, "INPUT", "--denoise",
                settings.folder, "--out", "denoised")
