"""Images with noise, codes without -> a trained denoiser, by the trainer's loop; the VQ-VAE stays as it is."""

import copy

import torch
from torch import nn

from vqvae2.common import machine, random_numbers
from vqvae2.common.statistics import evenly
from vqvae2.images.dataset import to_bytes
from vqvae2.metrics import noise, similarity
from vqvae2.models import losses
from vqvae2.models.denoiser import Denoiser
from vqvae2.plots import charts, pictures
from vqvae2.settings.parsing import as_dict
from vqvae2.training.after_vqvae import AfterVqvae
from vqvae2.training.trainer import Share

ENCODER_RATE = 0.5
"""The learning rate of the encoder, in learning rates of the new network."""
BLACK = 0.5
"""Share of the training images whose background stays black, as it is where the skull was removed after the scan."""
SHOWN = 4
"""Validation images, at most, that are shown."""


class DenoiserTrainer(AfterVqvae):
    """Trains a copy of a VQ-VAE's encoder on images with Rician noise, and a network that finishes their pictures.

    The loss of an image is the squared error of the denoised image; the error of the picture of its codes, as in the
    training of the VQ-VAE; and half of two squared distances of its vectors, one from the nearest embeddings, one from
    the embeddings of the clean image.
    """

    kind = "denoiser"
    best_by = "mse"
    headline = (("train_loss", "loss"), ("validate_mse", "error"), ("validate_ssim", "SSIM"),
                ("validate_same_codes", "same codes"))

    def start(self) -> None:
        """Load the VQ-VAE, its images, and their codes."""
        self.images = self.load()
        self.check_init_from(self.data)
        self.maps = {split: self.codes_of(split, self.images.splits[split]) for split in ("train", "validate")}
        self.vqvae.model.requires_grad_(False)

    def describe(self) -> dict:
        """Return what a denoiser must remember: its VQ-VAE, whose encoder's form it has, and the data."""
        return {**self.data, "vqvae_hash": self.vqvae.hash, "vqvae_settings": as_dict(self.vqvae.model.settings)}

    def count(self, split: str) -> int:
        """Return the number of images."""
        return len(self.images.splits[split])

    def build(self) -> nn.Module:
        """Return a copy of the VQ-VAE's encoder, and a new network."""
        return Denoiser(copy.deepcopy(self.vqvae.model)).requires_grad_(True).to(memory_format=torch.channels_last)

    def optimizer(self, parameters: object) -> torch.optim.Optimizer:
        """Return Adam, whose rate for what was trained before is lower."""
        groups = [{"params": list(self.model.finish.parameters()), "rate": 1.0},
                  {"params": list(self.model.encoder.parameters()), "rate": ENCODER_RATE}]
        return torch.optim.Adam(groups, lr=self.settings.learning_rate, fused=self.device.type != "mps")

    def coming(self, items: torch.Tensor) -> None:
        """Begin to read images, which matters where they are larger than the memory."""
        self.images.splits["train"].read_ahead(items)

    def noisy(self, pixels: torch.Tensor, split: str, items: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return images `[n, channels, height, width]` with noise, the amount of which is drawn for each."""
        seed, numbers = self.settings.seed, items.numpy()
        amounts = random_numbers.uniform(seed, f"{split}: amount", epoch, numbers) * self.settings.noise
        made = noise.add_rician(pixels, amounts, seed, f"{split}: noise", items.tolist(), epoch)
        stays_black = random_numbers.uniform(seed, f"{split}: black", epoch, numbers) < BLACK
        return made * (similarity.brain_mask(pixels) | ~stays_black[:, None, None])[:, None]

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for each image; when validating also SSIM, and the share of equal codes."""
        split, epoch = ("train", share.epoch) if model.training else ("validate", 0)
        clean, vqvae = self.images.splits[split].batch(share.items), self.vqvae.model
        noisy = machine.to_device(self.noisy(clean, split, share.items, epoch), self.device)
        pixels = machine.to_device(clean, self.device)
        codes = {level: machine.to_device(maps[share.items].long(), self.device)
                 for level, maps in self.maps[split].levels.items()}
        coded, vectors, made = model(noisy.contiguous(memory_format=torch.channels_last), vqvae)
        distance = sum((vectors[level].float() - embeddings.float()).square().flatten(1).mean(1)
                       for level, embeddings in vqvae.lookup(codes).items())
        shown, weight = coded.images.float(), vqvae.settings.ssim_weight
        of_codes = losses.error_of_clipped(shown, pixels).square().flatten(1).mean(1)
        if weight:
            of_codes = of_codes + weight * losses.dissimilarity(shown, pixels)
        mse = losses.error_of_clipped(made.float(), pixels).square().flatten(1).mean(1)
        figures = {"loss": mse + of_codes + (coded.commitment + distance) / 2, "mse": mse, "of_codes": of_codes,
                   "distance": distance}
        if not model.training:
            figures["ssim"] = similarity.ssim(to_bytes(pixels), to_bytes(made))
            figures["same_codes"] = sum((coded.codes[level] == codes[level]).flatten(1).float().mean(1)
                                        for level in codes) / len(codes)
        return figures

    def pictures(self, epoch: int) -> None:
        """Draw the curves; validation images, the same with noise, and what the encoder makes of these."""
        charts.curves(self.rows, self.folder / "losses.png",
                      title=f"{self.settings.savename}, denoiser: epoch {epoch} of {self.settings.epochs}")
        if not self.count("validate"):
            return
        items = torch.from_numpy(evenly(self.count("validate"), SHOWN))
        clean = self.images.splits["validate"].batch(items)
        noisy = self.noisy(clean, "validate", items, 0)
        with torch.no_grad():
            coded, _, made = self.model.eval()(noisy.to(self.device), self.vqvae.model)
        rows = zip((self.images.word, "noisy", "its codes", "denoised"), (clean, noisy, coded.images, made))
        self.log.picture("denoised", epoch, pictures.strip(
            [(name, pictures.enlarged(to_bytes(shown))) for name, shown in rows],
            title=f"Epoch {epoch} of {self.settings.epochs}: unseen slices, with noise and decoded"))
        self.model.train()
