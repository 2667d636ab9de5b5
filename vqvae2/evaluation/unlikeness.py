"""A VQ-VAE and images -> how much worse it serves them than the images that it was validated on: whether they belong.

An image's unlikeness is the larger of two ratios: the mean squared distance of its vectors to their embeddings (the
commitment), and the mean squared error of its reconstruction, each divided by what the model's log.csv says of the
validation images at the epoch whose weights were kept. About 1 is usual, LIMIT or more is not: another contrast, a
picture of something else, a head whose skull was not removed. It needs no prior and costs a second reconstruction.

Measured with the weights of this project on slices of real people (12 of the test and 10 of the validate split) and on
the same with the named change: docs/volumes.md.

A convolution finds the same edges in a brain on its side. So that is looked at apart: an image that, turned by 90
degrees, would correlate better with the mean of the training images (images/mean.py) looks turned.

NOTE Neither sees everything: blurred and dimmed images are served better than usual, and a brain upside down passes.
"""

from collections.abc import Iterable

import torch

from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.runs.log import LOG, read_log

LIMIT = 3.0
"""Of 1,320 slices of unseen people, 64 by 64 pixels, the largest had 2.95."""
TURNED = 0.0
"""Correlation gained by turning above which an image looks turned: none of the same slices gained any, all of them did
when they had been turned."""


def usual(vqvae: TrainedVqvae) -> dict[str, float]:
    """Return the commitment and the mse of the validation images at the epoch that was kept, where they are above 0.

    {} without a log.csv beside the weights, or without validation images; no commitment where codes are not learned.
    """
    rows = [row for row in read_log(vqvae.folder / LOG) if row.get("validate_reconstruction")]
    if not rows:
        return {}
    kept = min(rows, key=lambda row: float(row["validate_reconstruction"]))
    found = {name: float(kept.get(f"validate_{name}") or 0) for name in ("commitment", "mse")}
    return {name: value for name, value in found.items() if value > 0}


@torch.no_grad()
def unlikeness(vqvae: TrainedVqvae, batches: Iterable[torch.Tensor]) -> list[float] | None:
    """Return the unlikeness of each image, or None where the model's log does not say what is usual.

    Args:
        batches: images `[batch, channels, height, width]` in 0…1, of the size that the model was trained on.
    """
    beside, device = usual(vqvae), next(vqvae.model.parameters()).device
    if not beside:
        return None
    found: list[float] = []
    for images in batches:
        images = images.to(device)
        made = vqvae.model(images)
        own = {"commitment": made.commitment, "mse": (made.images.clamp(0, 1) - images).square().flatten(1).mean(1)}
        found += torch.stack([own[name] / value for name, value in beside.items()]).amax(0).tolist()
    return found
