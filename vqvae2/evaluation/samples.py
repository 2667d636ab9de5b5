"""Samples, drawn or given -> what metrics.json says of them: how like real slices, how varied.

The samples are drawn here as sample.py draws them, each told what the manifest says of one training image, so that they
follow the training images in position, age, and all else that the priors were told. Or they are read from a folder.
They are compared with slices of unseen subjects (`distances.py`), searched for copies of training slices
(`copies.py`), and shown to a classifier (`probe.py`). Each has its reference beside it: what the same figure
is for real slices of unseen subjects.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vqvae2.common import random_numbers
from vqvae2.common.errors import UserError
from vqvae2.common.statistics import evenly
from vqvae2.evaluation import distances
from vqvae2.evaluation.judge import Evaluation, Judge, decoded
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.plots import pictures
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior
from vqvae2.sampling import sampler
from vqvae2.sampling.settings import of_level

AT_A_TIME = 32
PICTURED = 64


def draw(settings: EvaluateSettings, vqvae: TrainedVqvae, priors: Mapping[str, Prior],
         training: ImageSet) -> torch.Tensor:
    """Return settings.samples images, uint8 `[samples, channels, height, width]`, drawn from the priors."""
    numbers = list(range(settings.samples))
    tastes = {level: sampler.SamplingRule(*(of_level(getattr(settings, name), level) for name in (
        "temperature", "top_k", "top_p"))) for level in priors}
    facts = {level: _facts(prior, training, settings) for level, prior in priors.items()}
    parts = []
    with tqdm(total=len(numbers) * sum(math.prod(one.shape) for one in priors.values()), desc="sampling",
              unit="code", leave=False) as bar:
        for first in range(0, len(numbers), AT_A_TIME):
            own = numbers[first:first + AT_A_TIME]
            told = {level: one[own] for level, one in facts.items()}
            images, _ = sampler.draw_images(vqvae.model, dict(priors), own, settings.seed, tastes,
                                            lambda own=own: bar.update(len(own)), told)
            parts.append(to_bytes(images))
    return torch.cat(parts)


def read(folder: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """Return all pictures below a folder, uint8 `[n, channels, height, width]`.

    Raises: UserError if there is none, or one is not of the `shape` (channels, height, width) of the real images.
    """
    paths = pictures_in(folder) if folder.is_dir() else []
    if not paths:
        raise UserError(f"--sampled {folder}: expected a folder of pictures, found none. Give OUT/images of sample.py.")
    found = []
    for path in paths:
        pixels = read_picture(path, colours="rgb" if shape[0] == 3 else "auto")  # one of them may happen to be grey
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise UserError(f"--sampled {path}: expected 8 bit and shape {shape} as the real images have, found "
                            f"{pixels.dtype} and {pixels.shape}. Give samples of the same size.")
        found.append(pixels)
    return torch.from_numpy(np.stack(found))


class SamplesJudge(Judge):
    """Likeness of samples to unseen slices, and their variety, beside those of real slices (`distances`)."""

    name = "samples"
    columns = ("figure", "samples", "reconstructions of training slices", "real slices")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the figures of the samples, and `reconstructions`: what samples of perfect priors would reach."""
        drawn, training, codes = evaluation.samples, evaluation.data.splits["train"], evaluation.training_codes
        beside = evaluation.images, training, evaluation.extractor, evaluation.settings.seed
        settings = evaluation.settings
        source = {"folder": settings.sampled.name} if settings.sampled else {
            **{name: list(getattr(settings, name)) for name in ("temperature", "top_k", "top_p")},
            "told": "what the manifest says of training images"}
        report = {"source": source, **distances.judge(drawn, *beside), "reconstructions": None,
                  "memorisation": None, "probe": None}
        if codes is not None:
            items = evenly(len(training), len(drawn))
            levels = {level: maps[items] for level, maps in codes.levels.items()}
            again = decoded(evaluation.vqvae.model, levels, AT_A_TIME)
            report["reconstructions"] = distances.judge(again, *beside, [training.subjects[item] for item in items])
        return report

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each figure, beside what reconstructions and real slices reach."""
        return [(f"samples, {figure}", f"{value}; reconstructions {again}; real slices {floor}")
                for figure, value, again, floor in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each figure."""
        rows, again = (distances.rows(one) if one else None for one in (figures, figures["reconstructions"]))
        again = again or [("", "–", "")] * len(rows)
        return [(figure, value, beside, floor) for (figure, value, floor), (_, beside, _) in zip(rows, again)]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write the first samples in a grid."""
        shown, settings = evaluation.samples[:PICTURED], evaluation.settings
        title = "Samples" if settings.sampled else f"{len(shown)} samples, the first of seed {settings.seed}"
        grid = pictures.image_grid(pictures.enlarged(shown), round(len(shown)**0.5), title=title)
        pictures.save_picture(grid, evaluation.out / "samples.png")


def _facts(prior: Prior, training: ImageSet, settings: EvaluateSettings) -> torch.Tensor:
    """`[samples, columns]`: for each sample what is known of one training image; nothing where there is none."""
    draws = random_numbers.uniform(settings.seed, "whose facts a sample is told", np.arange(settings.samples))
    if len(training) == 0:
        return torch.full((settings.samples, len(prior.columns)), torch.nan)
    chosen = (draws * len(training)).long().tolist()
    return conditions.numbers(prior.columns, [training.facts[item] for item in chosen])
