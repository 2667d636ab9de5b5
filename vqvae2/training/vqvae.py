"""Slices -> a trained VQ-VAE, by the trainer's loop."""

import numpy as np
import torch
from torch import nn

from vqvae2.common import distributed
from vqvae2.common.errors import expect
from vqvae2.images import dataset, mean
from vqvae2.images.augmentation import Augmentation
from vqvae2.metrics import coding, similarity
from vqvae2.models import encoding, losses
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.quantizer import QUANTIZERS, BatchPlace
from vqvae2.plots import charts, pictures
from vqvae2.training.trainer import Share, Trainer


class VqvaeTrainer(Trainer):
    """Trains a VQ-VAE with one level or two; the loss is reconstruction + commitment (+ codebook) + prediction."""

    kind = "vqvae"
    best_by = "reconstruction"
    headline = (("train_loss", "loss"), ("validate_ssim", "validation SSIM"), ("top_used", "used codes"),
                ("bottom_used", "and"))

    def start(self) -> None:
        """Read the images."""
        self.code_counts: dict[str, torch.Tensor] = {}
        self.images = dataset.load_images(self.settings, ("train", "validate"), int(np.prod(self.settings.downsample)))
        expect(any(map(len, self.images.splits.values())), "--data", "at least 1 training image", 0,
               "Give --split a larger first share, or a folder that has some to train.")
        smallest = min(self.images.shape[1:])
        expect(self.settings.ssim_weight == 0 or smallest >= similarity.WINDOW, "--ssim-weight",
               f"0 for images smaller than SSIM's window of {similarity.WINDOW} pixels", self.settings.ssim_weight,
               f"These have a side of {smallest}: give --ssim-weight 0, or a larger --size.")
        self.augmentation = Augmentation(self.settings, self.images.splits["train"].facts, self.images.field_of_view,
                                         self.settings.seed)

    def describe(self) -> dict:
        """Return the data's hashes and sizes."""
        return self.images.describe(self.config)

    def count(self, split: str) -> int:
        """Return the number of images."""
        return len(self.images.splits[split])

    def build(self) -> nn.Module:
        """Return the autoencoder; in a short run quantising begins after a quarter of the steps."""
        steps = self.steps_per_epoch * self.settings.epochs
        seen = self.images.splits["train"].intensities() if self.settings.standardise else None
        model = Vqvae(self.settings, self.images.shape[0], min(self.settings.start_steps, steps // 4), seen,
                      self.settings.seed)
        return model.to(memory_format=torch.channels_last)

    def parts_to_compile(self) -> list[nn.Module]:
        """Return the networks between the codebooks."""
        names = ("encoder", "top_encoder", "top_decoder", "top_upsample", "decoder")
        return [getattr(self.model, name) for name in names if hasattr(self.model, name)]

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return the loss and its parts for each image; SSIM too when validating."""
        training = model.training
        pixels = self.images.splits["train" if training else "validate"].batch(share.items, self.device)
        if training and self.settings.augment:
            pixels = self.augmentation(pixels, share.items, share.epoch)
        place = BatchPlace(share.positions, share.global_batch, share.step) if training else None
        made = model(pixels.contiguous(memory_format=torch.channels_last), place)
        reconstruction = made.images.float()
        mse = losses.error_of_clipped(reconstruction, pixels).square().flatten(1).mean(1)
        error = mse
        if self.settings.ssim_weight:
            error = error + self.settings.ssim_weight * losses.dissimilarity(reconstruction, pixels)
        if self.settings.gradient_weight:
            error = error + self.settings.gradient_weight * losses.gradient_error(reconstruction, pixels)
        if self.settings.standardise:
            error = error / self.model.deviation.square().mean()
        loss = (error + self.settings.commitment * made.commitment + made.codebook
                + self.settings.prediction * made.prediction)
        figures = {"loss": loss, "reconstruction": error, "mse": mse, "commitment": made.commitment,
                   "prediction": made.prediction}
        if QUANTIZERS[self.settings.quantizer].has_codebook_loss:
            figures["codebook"] = made.codebook
        if not training:
            figures["ssim"] = similarity.ssim(dataset.to_bytes(pixels), dataset.to_bytes(made.images))
        return figures

    def coming(self, items: torch.Tensor) -> None:
        """Begin to read images, which matters where they are larger than the memory."""
        self.images.splits["train"].read_ahead(items)

    def after_step(self) -> None:
        """Move the codebooks."""
        self.model.update_codebooks()

    def may_be_best(self) -> bool:
        """Return whether the codebooks are placed: before that, an image without codes would look best."""
        return self.model.is_quantising()

    def validate_more(self) -> dict[str, float]:
        """Return each level's used codes, perplexity and shuffle drop on the validation images."""
        if not self.model.is_quantising():
            return {}
        split = self.images.splits["validate"]
        maps = encoding.extract(self.model, split, self.settings.batch, kind=torch.int16)
        self.code_counts = {level: coding.code_counts(codes, self.settings.codebook_size)
                            for level, codes in maps.levels.items()}
        figures = encoding.code_figures(self.model, split, maps, self.settings.batch)
        return {f"{level}_{name}": value for level, found in figures.items() for name, value in found.items()
                if name != "size"}

    def after_epoch(self) -> None:
        """Write the mean of the training images, by which predict.py tells whether images lie on their side."""
        distributed.on_rank_0(lambda: (self.folder / mean.NAME).exists() or mean.write(
            self.images.splits["train"], self.folder))

    @torch.no_grad()
    def pictures(self, epoch: int) -> None:
        """Draw the curves, the same images' reconstructions, and a GIF of them, code maps, and how codes are used."""
        when = f"Epoch {epoch} of {self.settings.epochs}"
        charts.curves(self.rows, self.folder / "losses.png", title=f"{self.settings.savename}, VQ-VAE: {when.lower()}")
        split = self.images.splits["validate"] if self.count("validate") else self.images.splits["train"]
        ssim = self.rows[-1].get("validate_ssim")
        of = "synthetic " if self.images.word == "synthetic" else ""
        title = when + (f" ({of}training images)" if ssim is None else
                        f", SSIM {ssim:.4f} (mean of all {of}validation images)")
        items = np.linspace(0, len(split) - 1, min(8, len(split))).round().astype(int)
        model = self.model.eval()
        made = model(split.batch(items).to(self.device))
        self.log.picture("reconstructions", epoch, pictures.strip(pictures.compared(
            dataset.to_bytes(split.batch(items)), dataset.to_bytes(made.images)), title=title))
        pictures.animate(self.log.pictures_until("reconstructions", epoch), self.folder / "reconstructions.gif",
                      columns=len(items))
        for level, maps in made.codes.items() if model.is_quantising() else ():
            self.log.picture("code_images", epoch, pictures.code_map_picture(
                maps.cpu(), self.settings.codebook_size, title=f"{when}: {level} codes, a colour for each"), level)
        if self.code_counts:
            self.log.picture("code_histograms", epoch, charts.as_picture(charts.code_histogram(
                self.code_counts, title=f"{when}: codes of all validation images")))
        for level, counts in self.code_counts.items():
            self.log.histogram(f"use_of_codes_percent/{level}", epoch, 100 * counts / counts.sum())
        model.train()
