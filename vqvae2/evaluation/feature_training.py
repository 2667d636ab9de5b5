"""Slices -> the feature network that judges samples: what its training needs beyond `Trainer`."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vqvae2.common import distributed, files, machine, random_numbers
from vqvae2.common.statistics import evenly
from vqvae2.evaluation import distances, features
from vqvae2.images import augmentation, dataset
from vqvae2.plots import charts
from vqvae2.training.trainer import Share, Trainer

JUDGED = 400
"""Validation images, at most, that are harmed for harms.csv."""


class FeatureTrainer(Trainer):
    """Trains a network to recognise how a picture was harmed, and to redraw it small, from a few features.

    The loss is the squared error of the estimated strengths of the harms plus --redraw times that of the redrawn
    pixels.
    """

    kind = features.KIND

    def start(self) -> None:
        """Read the images, and convert them to the pictures that the network sees."""
        self.images = dataset.load_images(self.settings, ("train", "validate"))
        # float16: 8 bits of grey are exact to a tenth of a step, in half of the memory.
        self.pictures_of = {name: torch.cat([features.as_seen(split.batch(items)).half()
                                             for items in torch.arange(len(split)).split(256)])
                            for name, split in self.images.splits.items() if len(split)}

    def describe(self) -> dict:
        """Return the data's hashes and sizes."""
        return self.images.describe(self.config)

    def count(self, split: str) -> int:
        """Return the number of images."""
        return len(self.images.splits[split])

    def build(self) -> nn.Module:
        """Return the network."""
        return features.FeatureNet(self.settings)

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return for each image the loss and the squared errors of the harms' strengths and of the redrawn pixels."""
        pictures, harms = (machine.to_device(values, self.device) for values in self._harmed(share, model.training))
        answers = model(pictures)
        told = (answers.harms.float() - harms).square().mean(1)
        small = functional.avg_pool2d(pictures, features.SIDE // features.SMALL_SIDE).flatten(1)
        redrawn = (answers.pictures.float() - small).square().mean(1)
        return {"loss": told + self.settings.redraw * redrawn, "harm_mse": told, "redrawn_mse": redrawn}

    def _harmed(self, share: Share, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pictures `[n, 1, 128, 128]` with harm done to them, and how much of each harm, `[n, 6]`.

        The harm of an image depends only on (seed, epoch, its number), and in validation not even on the epoch.
        """
        split, kinds = self.pictures_of["train" if training else "validate"], len(features.HARMS)
        purpose, epoch = ("harm", share.epoch) if training else ("validation harm", 0)
        items = share.items.numpy()
        draws = random_numbers.uniform(self.settings.seed, purpose, epoch, items[:, None],
                                       np.arange(2 * kinds + 7)[None]).float()
        strengths = draws[:, kinds:2 * kinds] * (draws[:, :kinds] < self.settings.harm)
        intensity = features.HARMS.index("intensity")
        strengths[:, intensity] *= torch.where(draws[:, -1] < 0.5, -1.0, 1.0)
        pictures = split[share.items].float()
        if training:
            pictures = augmentation.moved(pictures, draws[:, 2 * kinds:2 * kinds + 5])
        others = split[(draws[:, -2] * len(split)).long().clamp(max=len(split) - 1)].float()
        for i, item in enumerate(items):
            for kind, name in enumerate(features.HARMS):
                generator = random_numbers.generator(self.settings.seed, purpose, epoch, int(item), kind)
                pictures[i, 0] = features.harmed(pictures[i, 0], name, strengths[i, kind].item(), generator,
                                                 others[i, 0])
        return pictures, strengths

    def after_step(self) -> None:
        """At the end of an epoch measure mean and covariance of the training pictures' features, over all ranks."""
        if self.step_in_epoch < self.steps_per_epoch - 1:
            return
        model, dims = self.model.eval(), self.settings.dims
        sums = torch.zeros(dims + dims**2, dtype=self.sum_type, device=self.device)
        with torch.no_grad():
            for share in self.shares_of(self.count("train")):
                pictures = machine.to_device(self.pictures_of["train"][share.items].float(), self.device)
                own = model(pictures).features.to(self.sum_type)
                sums += torch.cat([own.sum(0), (own.T @ own).flatten()])
        means = distributed.sum_over_ranks(sums) / self.count("train")
        model.mean.copy_(means[:dims])
        model.covariance.copy_(means[dims:].view(dims, dims) - torch.outer(means[:dims], means[:dims]))
        model.train()

    def pictures(self, epoch: int) -> None:
        """Plot the curves; at the end write how the best weights respond to harmed validation images."""
        charts.curves(self.rows, self.folder / "losses.png")
        if self.count("validate") == 0 or epoch < self.settings.epochs:
            return
        split = self.images.splits["validate"]
        items = evenly(len(split), JUDGED)
        files.write_rows(self.folder / "harms.csv", distances.harm_figures(
            features.load_extractor(str(self.folder), self.device), split.bytes()[items],
            [split.subjects[i] for i in items], self.settings.seed))
