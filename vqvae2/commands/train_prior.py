r"""Codes of a trained VQ-VAE -> a trained PixelCNN prior in results/<dataset>/<savename>/.

The top prior, then the bottom prior, which is conditioned on the top codes (in any order):
    python train_pixel_cnn.py --level top --vqvae brain-128 \
        --dataset oasis --batch 16 --epochs 100 --savename brain-128-top
    python train_pixel_cnn.py --level bottom --vqvae brain-128 \
        --dataset oasis --batch 16 --epochs 60 --savename brain-128-bottom
A prior conditioned on the position of a slice, with more code maps: of mirrored, shifted and scaled images:
    python train_pixel_cnn.py --level top --vqvae brain-128 --dataset oasis --batch 4 --epochs 30 \
        --savename brain-128-top-told --condition position_mm --copies 5
The single level of a plain VQ-VAE, with a gated PixelCNN without attention:
    python train_pixel_cnn.py --level top --vqvae brain-128-plain --network gated \
        --dataset oasis --batch 4 --epochs 30 --savename brain-128-plain-top
The prior of a VQ-VAE that was trained with a preset:
    python train_pixel_cnn.py --preset own-images --level top --data ~/pictures
One machine with 8 GPUs:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 train_pixel_cnn.py \
        --level top --vqvae brain-256 --dataset oasis --batch 16 --epochs 100 --savename brain-256-top
Two machines (run on both; HOST is the first one's address):
    python -m torch.distributed.run --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d \
        --rdzv_endpoint=HOST:29500 train_pixel_cnn.py \
        --level bottom --vqvae brain-256 --dataset oasis --batch 16 --epochs 60 --savename brain-256-bottom

The codes are extracted once into the VQ-VAE's folder, for both levels. Losses are bits per code, and stand beside the
bits of three reference models that only count. A prior that does not beat these models has learned nothing.
"""



from vqvae2.commands import endings
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainPrior


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    settings = parse(TrainPrior, __doc__, arguments)
    weights.find_run(settings.vqvae, "--vqvae", settings.results)
    PriorTrainer(settings).run()
    endings.after_training(settings.folder, "losses.png")
