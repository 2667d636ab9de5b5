"""Images with noise, codes without -> a trained encoder of noisy images, by the trainer's loop; the VQ-VAE stays."""

import copy

import numpy as np
import torch
from torch import nn

from vqvae2.common import machine, random_numbers
from vqvae2.common.statistics import evenly
from vqvae2.images.dataset import to_bytes
from vqvae2.metrics import noise, similarity
from vqvae2.models import losses
from vqvae2.models.denoising_encoder import DenoisingEncoder
from vqvae2.plots import charts, pictures
from vqvae2.settings.parsing import as_dict
from vqvae2.training.after_vqvae import AfterVqvae
from vqvae2.training.settings import TrainEncoder
from vqvae2.training.trainer import Share

BLACK = 0.5
"""Share of the training images whose background stays black, as it is where the skull was removed after the scan."""
MEASURED, SHOWN = 64, 4
"""Training images, at most, whose fine detail is measured; and validation images that are shown."""


class EncoderTrainer(AfterVqvae):
    """Trains a copy of a VQ-VAE's encoder on images with Rician noise, for the codes and the pixels without.

    The loss of an image is the error of two pictures, one of the nearest codes and one of the vectors themselves, as in
    the training of the VQ-VAE, and half the squared distance of the vectors from the embeddings of the clean image.
    """

    kind = "encoder"
    headline = (("train_loss", "loss"), ("validate_loss", "validation loss"), ("validate_ssim", "SSIM"),
                ("validate_same_codes", "same codes"))

    def start(self) -> None:
        """Load the VQ-VAE, its images, and their codes."""
        self.images = self.load()
        self.check_init_from(self.data)
        self.maps = {split: self.codes_of(split, self.images.splits[split]) for split in ("train", "validate")}
        self.vqvae.model.requires_grad_(False)

    def describe(self) -> dict:
        """Return what an encoder must remember: its VQ-VAE, whose form it has, and the data."""
        return {**self.data, "vqvae_hash": self.vqvae.hash, "vqvae_settings": as_dict(self.vqvae.model.settings)}

    def count(self, split: str) -> int:
        """Return the number of images."""
        return len(self.images.splits[split])

    @torch.no_grad()
    def build(self) -> nn.Module:
        """Return a copy of the VQ-VAE's encoder, with the detail that its pictures lack."""
        vqvae, found = self.vqvae.model, []
        for item in evenly(self.count("train"), MEASURED):
            pixels = self.images.splits["train"].batch([item])
            made = vqvae.decode_vectors(vqvae.vectors(pixels.to(self.device))).cpu()
            found.append(noise.estimate(pixels - made, similarity.brain_mask(pixels)))
        detail = torch.cat(found).nanmean().nan_to_num().item()
        encoder = DenoisingEncoder(copy.deepcopy(vqvae), detail).requires_grad_(True)
        return encoder.to(memory_format=torch.channels_last)

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
        images = machine.to_device(self.noisy(clean, split, share.items, epoch), self.device)
        pixels = machine.to_device(clean, self.device)
        codes = {level: machine.to_device(maps[share.items].long(), self.device)
                 for level, maps in self.maps[split].levels.items()}
        vectors, wanted = model(images.contiguous(memory_format=torch.channels_last)), vqvae.lookup(codes)
        distance = sum((vectors[level].float() - wanted[level].float()).square().flatten(1).mean(1)
                       for level in vectors)
        made = vqvae.reconstructed(vectors)
        coded, direct = (self._error(images.float(), pixels) for images in (made.images, vqvae.decode_vectors(vectors)))
        figures = {"loss": coded + direct + (made.commitment + distance) / 2, "coded": coded, "direct": direct,
                   "distance": distance}
        if not model.training:
            figures["ssim"] = similarity.ssim(to_bytes(pixels), to_bytes(made.images))
            figures["same_codes"] = sum((made.codes[level] == codes[level]).flatten(1).float().mean(1)
                                        for level in codes) / len(codes)
        return figures

    def _error(self, made: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Return the error of pictures, as in the training of the VQ-VAE with its default weights."""
        weight = self.vqvae.model.settings.ssim_weight
        error = losses.error_of_clipped(made, pixels).square().flatten(1).mean(1)
        return error + weight * losses.dissimilarity(made, pixels) if weight else error

    def pictures(self, epoch: int) -> None:
        """Draw the curves; validation images, the same with noise, and what the encoder makes of these."""
        charts.curves(self.rows, self.folder / "losses.png",
                      title=f"{self.settings.savename}, encoder of noisy images: epoch {epoch} of {self.settings.epochs}")
        if not self.count("validate"):
            return
        items = torch.from_numpy(evenly(self.count("validate"), SHOWN))
        clean, vqvae = self.images.splits["validate"].batch(items), self.vqvae.model
        images = self.noisy(clean, "validate", items, 0)
        with torch.no_grad():
            vectors = self.model.eval()(images.to(self.device))
            made = vqvae.reconstructed(vectors).images, vqvae.decode_vectors(vectors)
        rows = zip((self.images.word, "noisy", "its codes", "its vectors"), (clean, images, *made))
        self.log.picture("denoised", epoch, pictures.strip(
            [(name, pictures.enlarged(to_bytes(shown))) for name, shown in rows],
            title=f"Epoch {epoch} of {self.settings.epochs}: unseen slices, with noise and decoded"))
        self.model.train()
