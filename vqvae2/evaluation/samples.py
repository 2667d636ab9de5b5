"""Samples, drawn or given -> what metrics.json says of them: how like real slices, how varied, whose copies.

The samples are drawn here as sample.py draws them, each told what the manifest says of one training image, so that they
follow the training images in position, age, and all else that the priors were told. Or they are read from a folder.
They are compared with slices of unseen subjects (`sample_figures.py`), searched for copies of training slices
(`memorisation.py`), and shown to a classifier (`probe.py`). Each has its reference beside it: what the same figure
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
from vqvae2.evaluation import copies, distances, features, probe
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.models import code_maps
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.plots import pictures as plots
from vqvae2.priors import conditions
from vqvae2.priors.pixel_cnn import Prior
from vqvae2.sampling import sampler
from vqvae2.sampling.settings import of_level

AT_A_TIME = 32
CLOSEST = "closest.png"


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
    pictures = []
    for path in paths:
        pixels = read_picture(path, colours="rgb" if shape[0] == 3 else "auto")  # one of them may happen to be grey
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise UserError(f"--sampled {path}: expected 8 bit and shape {shape} as the real images have, found "
                            f"{pixels.dtype} and {pixels.shape}. Give samples of the same size.")
        pictures.append(pixels)
    return torch.from_numpy(np.stack(pictures))


def judge(drawn: torch.Tensor, reconstructions: torch.Tensor, unseen: ImageSet, training: ImageSet,
          trained: ImageSet, training_codes: code_maps.CodeMaps | None, vqvae: TrainedVqvae,
          settings: EvaluateSettings, extractor: features.Extractor) -> dict:
    """Return the samples' part of metrics.json; write closest.png to settings.out.

    Args:
        drawn: uint8 `[samples, channels, height, width]`.
        reconstructions: of the unseen images, likewise.
        unseen: of the split that is judged; training: the data's train split, for what real slices reach.
        trained: what of it the models were really trained on: what a sample may be a copy of. Either may be empty.
        training_codes: of the train split, for what reconstructions reach, and for the fakes that judge the probe.
    """
    device = next(vqvae.model.parameters()).device
    report = {"source": _source(settings), **distances.judge(drawn, unseen, training, extractor, settings.seed),
              "reconstructions": None, "memorisation": None, "probe": None}
    if training_codes is not None:
        items = _evenly(len(training), len(drawn))
        again = _reconstructions(training_codes, vqvae, items)
        report["reconstructions"] = distances.judge(again, unseen, training, extractor, settings.seed,
                                                         [training.subjects[item] for item in items])
    if len(trained):
        soft = reconstructions[_evenly(len(reconstructions), len(drawn))]
        vectors = [extractor(images) for images in (drawn, unseen.bytes(), trained.bytes(), soft)]
        vectors = distances.whitened(extractor, vectors[2], *vectors)
        with tqdm(desc="nearest training slices", unit="image", leave=False) as bar:
            report["memorisation"], pairs = copies.judge(drawn, unseen, trained, vectors, settings.seed,
                                                               bar.update, soft)
        title = "The samples nearest to a training slice: RMS distance (1st percentile of unseen slices), images 0…1"
        plots.save_picture(plots.titled(copies.picture(pairs), title), settings.out / CLOSEST)
    if settings.probe:
        fakes = None if training_codes is None else probe.context_model_fakes(
            vqvae.model, training_codes, len(drawn), settings.seed, settings.batch)
        with tqdm(desc="probe", unit="step", leave=False) as bar:
            report["probe"] = probe.judge_all(drawn, fakes, reconstructions, unseen, settings.seed, device=device,
                                              on_step=bar.update)
    return report


@torch.no_grad()
def _reconstructions(training_codes: code_maps.CodeMaps, vqvae: TrainedVqvae, items: torch.Tensor) -> torch.Tensor:
    """What these training images come back as: samples of perfect priors would be like these."""
    device = next(vqvae.model.parameters()).device
    return torch.cat([to_bytes(vqvae.model.decode({level: maps[some].to(device)
                                                   for level, maps in training_codes.levels.items()}))
                      for some in items.split(AT_A_TIME)])


def _evenly(number: int, most: int) -> torch.Tensor:
    """At most `most` of so many numbers, evenly chosen."""
    return torch.from_numpy(np.unique(np.linspace(0, number - 1, min(most, number)).round().astype(int)))


def _source(settings: EvaluateSettings) -> dict:
    if settings.sampled:
        return {"folder": settings.sampled.name}
    return {name: list(getattr(settings, name)) for name in ("temperature", "top_k", "top_p")} | {
        "told": "what the manifest says of training images"}


def _facts(prior: Prior, training: ImageSet, settings: EvaluateSettings) -> torch.Tensor:
    """`[samples, columns]`: for each sample what is known of one training image; nothing where there is none."""
    draws = random_numbers.uniform(settings.seed, "whose facts a sample is told", np.arange(settings.samples))
    if len(training) == 0:
        return torch.full((settings.samples, len(prior.columns)), torch.nan)
    chosen = (draws * len(training)).long().tolist()
    return conditions.numbers(prior.columns, [training.facts[item] for item in chosen])
