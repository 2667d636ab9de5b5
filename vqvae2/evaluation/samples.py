"""Samples, drawn or given -> figures for metrics.json: how like real slices they are, and how varied.

The samples are drawn here as sample.py draws them, each told what the manifest says of one training image, so that they
follow the training images in position, age, and all else that the priors were told. Or they are read from a folder.
They are compared with slices of unseen subjects (`distances.py`), searched for copies of training slices
(`copies.py`), and shown to a classifier (`probe.py`). Each figure has its reference beside it: the same figure of real
slices of unseen subjects.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from vqvae2.common import files, random_numbers
from vqvae2.common.errors import expect
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import evenly
from vqvae2.evaluation import distances, features, reasons
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import ImageSet, to_bytes
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.models import encoding
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.models.code_maps import UNREADABLE, read_arrays
from vqvae2.plots import pictures
from vqvae2.priors import conditions
from vqvae2.priors.base import Prior
from vqvae2.sampling import sampler
from vqvae2.sampling.settings import of_level

AT_A_TIME, PICTURED = 32, 64


def draw(settings: EvaluateSettings, vqvae: TrainedVqvae, priors: Mapping[str, Prior], training: ImageSet,
         parts_of: Path | None = None) -> torch.Tensor:
    """Return settings.samples images, uint8 `[samples, channels, height, width]`, drawn from the priors, each told what
    is known of a training image; `parts_of` as for `draw_told`."""
    known = training.facts or [{}]  # nothing is known where there is no training image
    chosen = random_numbers.uniform(settings.seed, "whose facts a sample is told", np.arange(settings.samples))
    return draw_told(settings, vqvae, priors, [known[item] for item in (chosen * len(known)).long().tolist()], parts_of)


def draw_told(settings: EvaluateSettings, vqvae: TrainedVqvae, priors: Mapping[str, Prior],
              told: Sequence[Mapping[str, str]], parts_of: Path | None = None, name: str = "samples") -> torch.Tensor:
    """Return an image for each of `told`, what a manifest says, uint8 `[n, channels, height, width]`.

    Args:
        parts_of: folder that keeps what has been drawn, AT_A_TIME images a file; what is there is not drawn again.
        name: first part of these files' names.
    """
    rules = {level: sampler.SamplingRule(*(of_level(getattr(settings, name), level) for name in (
        "temperature", "top_k", "top_p"))) for level in priors}
    parts: list[torch.Tensor] = []
    codes = sum(math.prod(prior.shape) for prior in priors.values())
    # A texture decoder takes about as long for an image as drawing its codes.
    decoding = codes if vqvae.model.texture is not None else 0
    with Bar(total=len(told) * (codes + decoding), desc="sampling", unit="code") as bar:
        def decode() -> None:
            bar.say("decoding samples")
            bar.update(decoding)

        for numbers in torch.arange(len(told)).split(AT_A_TIME):
            own = numbers.tolist()
            path = parts_of and parts_of / f"{name}-{own[0]:06d}-{own[-1]:06d}.npz"
            if path and (stored := _stored(path, len(own))) is not None:
                parts.append(stored)
                continue
            facts = {level: conditions.numbers(prior.columns, told[own[0]:own[-1] + 1])
                     for level, prior in priors.items()}
            bar.say("sampling")
            images, _ = sampler.draw_images(vqvae.model, dict(priors), own, settings.seed, rules,
                                            lambda own=own: bar.update(len(own)), facts, decode)
            parts.append(to_bytes(images))
            if path:
                files.write_atomically(path, lambda temporary, made=parts[-1]: np.savez(temporary, images=made))
    return torch.cat(parts)


def _stored(path: Path, count: int) -> torch.Tensor | None:
    with suppress(*UNREADABLE):
        found = torch.from_numpy(read_arrays(path)["images"])
        return found if len(found) == count else None
    return None


def read(folder: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """Return all pictures below a folder, uint8 `[n, channels, height, width]`.

    Raises: UserError if there is none, or one is not of the `shape` (channels, height, width) of the real images.
    """
    # A sample of a model of colours may happen to be grey.
    found = {path: read_picture(path, colours="rgb" if shape[0] == 3 else "auto") for path in pictures_in(folder)}
    expect(bool(found), f"--sampled {folder}", "a folder of pictures", "none", "Give OUT/images of sample.py.")
    for path, pixels in found.items():
        expect(pixels.shape == shape and pixels.dtype == np.uint8, f"--sampled {path}", f"8 bit and shape {shape} as "
               "the real images have", f"{pixels.dtype} and {pixels.shape}", "Give samples of the same size.")
    return torch.from_numpy(np.stack(list(found.values())))


class SamplesJudge(Judge):
    """Likeness of samples to unseen slices, and their variety, beside those of real slices (`distances`)."""

    name = "samples"
    columns = ("figure", "samples", "reconstructions of training slices", "real slices")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the figures of the samples, and `reconstructions`: what samples of perfect priors would reach."""
        drawn, training, codes = evaluation.samples, evaluation.data.splits["train"], evaluation.training_codes
        settings = evaluation.settings
        beside = evaluation.images, training, evaluation.extractor, settings.seed
        other = features.imagenet(next(evaluation.vqvae.model.parameters()).device, evaluation.data.shape[1:])
        source = {"folder": settings.sampled.name} if settings.sampled else {
            **{name: list(getattr(settings, name)) for name in ("temperature", "top_k", "top_p")},
            "told": "what the manifest says of training images"}
        once = distances.keeping()
        report = {"source": source, **distances.judge(drawn, *beside, other=other, once=once), "reconstructions": None,
                  "memorisation": None, "probe": None}
        if codes is not None:
            items = evenly(len(training), len(drawn))
            again = encoding.decoded(evaluation.vqvae.model, {level: maps[items] for level, maps in
                                                              codes.levels.items()}, AT_A_TIME)
            report["reconstructions"] = distances.judge(
                again, *beside, [training.subjects[item] for item in items], other, once)
        return report

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each figure, beside what reconstructions and real slices reach."""
        return [(f"samples, {figure}", f"{value}; reconstructions {again}; real slices {floor}")
                for figure, value, again, floor in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each figure."""
        rows, again = distances.rows(figures), figures["reconstructions"]
        without = [f"– ({reasons.NO_TRAINING})"] * len(rows)
        beside = [value for _, value, _ in distances.rows(again)] if again else without
        return [(figure, value, other, floor) for (figure, value, floor), other in zip(rows, beside)]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write the first samples in a grid."""
        shown, settings = evaluation.samples[:PICTURED], evaluation.settings
        title = "Samples" if settings.sampled else f"{len(shown)} samples, the first of seed {settings.seed}"
        pictures.save_picture(pictures.image_grid(pictures.enlarged(shown), round(len(shown)**0.5), title=title),
                              evaluation.out / "samples.png")
