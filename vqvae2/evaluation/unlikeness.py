"""A VQ-VAE and images -> how much worse it serves them than the images that it was validated on: whether they belong.

An image's unlikeness is the larger of two ratios: the mean squared distance of its vectors to their embeddings (the
commitment), and the mean squared error of its reconstruction, each divided by what the model's log.csv says of the
validation images at the epoch whose weights were kept. About 1 is usual, above 3 (see LIMITS) is not: a picture
of something else, a head whose skull was not removed. It needs no prior and costs a second reconstruction.

Measured with the weights of this project on slices of real people (12 of the test and 10 of the validate split) and on
the same with the named change: docs/volumes.md.

A convolution finds the same edges in a brain on its side. So that is looked at apart: an image that, turned by 90
degrees, would correlate better with the mean of the training images (images/mean.py) looks turned.

Nor does the contrast alone raise the error where the edge of the brain is dark, as in slices that are cut from scans:
an image whose brain is dark where the mean of the training images is bright looks inverted, as T2 beside T1.

NOTE None of these sees everything: blurred and dimmed images are served better than usual, and a brain upside down
passes.
"""

import math
from collections.abc import Callable, Iterable

import torch

from vqvae2.images import mean
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.runs.log import LOG, read_log

LIMITS = {"unlikeness": 3.0, "turned": 0.0, "inverted": 0.0}
"""The figures of an image, and the value above which it does not belong. The largest unlikeness of 1,320 slices of
unseen people, 64 by 64 pixels, was 2.95; none of them gained correlation by turning, all did when they had been turned;
none was inverted, all were when they had been."""
WORDS = {"unlikeness": ("are unlike those of training", "Is the contrast another, is the skull not removed, is there "
                        "much noise, is it no brain?"),
         "turned": ("look turned by 90 degrees beside those of training", "Is the orientation, or the plane, another?"),
         "inverted": ("are dark where those of training are bright", "Is the contrast another, such as T2?")}
"""What is said of such images, and what the user is asked."""


def figures(vqvae: TrainedVqvae, batches: Callable[[], Iterable[torch.Tensor]]) -> dict[str, list[float] | None]:
    """Return for each of LIMITS the figure of each image, None where the model's folder does not say what is usual.

    Args:
        batches: returns images `[batch, channels, height, width]` in 0…1, all of one size.
    """
    beside = mean.read(vqvae.folder)
    is_own_size = all(images.shape[1:] == tuple(vqvae.config["image_shape"]) for images in batches())
    found = {"unlikeness": unlikeness(vqvae, batches()) if is_own_size else None}
    for name, figure in (("turned", mean.better_turned), ("inverted", mean.inverted)):
        found[name] = None if beside is None else torch.cat([figure(images, beside) for images in batches()]).tolist()
    return found


def summary(found: dict[str, list[float] | None]) -> dict[str, dict | None]:
    """Return what metrics.json says of `figures`; NaN counts as usual."""
    report: dict[str, dict | None] = {}
    for name, values in found.items():
        known = sorted(value for value in values or () if not math.isnan(value))
        report[name] = {"limit": LIMITS[name], "images_above": sum(value > LIMITS[name] for value in known),
                        "median": known[len(known) // 2], "max": known[-1]} if known else None
    return report


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
