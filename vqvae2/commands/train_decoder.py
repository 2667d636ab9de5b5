r"""Codes of a trained VQ-VAE -> a trained texture decoder in results/<dataset>/<savename>/.

A flow, which makes the detail of an image in 8 steps:
    python train_decoder.py --vqvae brain-128 --dataset oasis --batch 16 --epochs 40 --savename brain-128-decoder
The decoder of a VQ-VAE that was trained with a preset:
    python train_decoder.py --preset brain-128 --data ~/data/oasis-slices-128
A decoder of one pass, trained against a discriminator:
    python train_decoder.py --vqvae brain-128 --dataset oasis --batch 16 --epochs 40 --savename brain-128-sharp \
        --network adversarial --learning-rate 2e-4
One machine with 8 GPUs:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 train_decoder.py \
        --vqvae brain-256 --dataset oasis --batch 16 --epochs 60 --savename brain-256-texture

A VQ-VAE's own decoder is faithful and soft: its codes do not hold the finest detail. A texture decoder invents likely
detail. It is trained on the same codes; the VQ-VAE and its priors stay as they are, and give it to sample.py,
predict.py and evaluate.py by --decoder. Do not measure anything in the detail that it makes.

After each epoch `validate_texture` says how far spectrum and edges of unseen slices are from real ones (lower is
better); the epoch where it is lowest is kept. textures/ shows unseen slices.
"""

from vqvae2.commands import endings
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.decoders import DecoderTrainer
from vqvae2.training.settings import TrainDecoder


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    settings = parse(TrainDecoder, __doc__, arguments)
    weights.find_run(settings.vqvae, "--vqvae", settings.results)
    DecoderTrainer(settings).run()
    endings.after_training(settings.folder, "losses.png", "textures/*.png")
