"""Codes of training images, and drawn codes -> a critic of candidates, by which `--reject-by classifier` chooses.

The critic is CLASSIFIERS of the probe's classifiers (`models/classifier.py`), which differ in their random numbers.
Each learns to tell images of drawn codes from images of training images' codes, and a candidate's score is the sum of
what they say of it and of its mirror image: the lower, the more it looks like the image of a real slice. Both sides are
decoded softly, so that what decides is what the priors get wrong, and not the decoder.

The drawn codes that it learns from are no candidate's: they have random numbers of their own (LESSON), and no
condition, since the real slices are of all positions. No image of the validation or the test split is in it, so that
the probe of a report is a judge that has not been asked before.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from vqvae2.common import distributed, random_numbers
from vqvae2.common.errors import expect
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import evenly
from vqvae2.models import classifier, encoding
from vqvae2.models.autoencoder import TrainedVqvae, code_grids
from vqvae2.models.classifier import Classifier
from vqvae2.models.code_maps import CodeMaps
from vqvae2.runs import weights

DRAWN, MOST_REAL = 512, 2048
"""Drawn images that the critic learns from; training images, evenly chosen where there are more."""
STEPS, CLASSIFIERS = 500, 3
LESSON = -1
"""Number of the candidate that the critic's own drawings are: no image has one of this number."""


@dataclass(frozen=True)
class Critic:
    """Says of images of codes how little they look like those of real slices."""

    classifiers: Sequence[Classifier]

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores, float64 `[n]`, of softly decoded images, uint8 `[n, channels, height, width]`.

        Images go through the networks one by one, so that the last bits do not depend on the others.
        """
        return sum(classifier.logits(own, images, batch=1).double() for own in self.classifiers)


def learned(vqvae: TrainedVqvae, real: CodeMaps,
            draw: Callable[[list[int], Callable[[], object]], Mapping[str, torch.Tensor]], seed: int,
            batch: int) -> Critic:
    """Return a critic, the same on all ranks, each of which draws a share of what it learns from.

    Args:
        real: codes of the training images, of `training_codes`.
        draw: (numbers of images, what is called after each position) -> each level's codes `[n, height, width]`.
        seed: of the classifiers. batch: images that are drawn at the same time.
    """
    device = next(vqvae.model.parameters()).device
    mine = torch.arange(DRAWN)[distributed.rank()::distributed.world_size()]
    own: dict[int, torch.Tensor] = {}
    with Bar(total=len(mine) * sum(map(math.prod, code_grids(vqvae).values())), desc="drawing for the critic",
              unit="code", disable=distributed.rank() != 0) as bar:
        for numbers in mine.split(batch):
            maps = draw(numbers.tolist(), functools.partial(bar.update, len(numbers)))
            own |= dict(zip(numbers.tolist(), encoding.decoded(vqvae.model, maps, 1, softly=True)))
    drawn = {number: image for share in distributed.gather_objects(own) for number, image in share.items()}

    def train() -> list[Classifier]:
        some = evenly(len(real.names), MOST_REAL)
        sides = (torch.stack([drawn[number] for number in range(DRAWN)]), encoding.decoded(
            vqvae.model, {level: codes[some] for level, codes in real.levels.items()}, 1, softly=True))
        with Bar(total=CLASSIFIERS * STEPS, desc="training the critic", unit="step") as bar:
            return [classifier.trained(sides, STEPS, random_numbers.generator(seed, "critic", number), device,
                                       bar.update) for number in range(CLASSIFIERS)]

    found = distributed.gather_objects(distributed.on_rank_0(train))[0]  # hosts may differ in the last bits
    return Critic([own.to(device) for own in found])


def training_codes(vqvae: TrainedVqvae, top: str) -> CodeMaps:
    """Return the codes of the training images that the VQ-VAE's folder holds.

    Args:
        top: folder or name of the prior that must have been trained on these images; "" where that is not known.
    Raises: UserError if there are none, or those of other images.
    """
    path = vqvae.folder / "codes" / "train.npz"
    learned_from = top and weights.config_in_weights(weights.find_run(top, "--top") / weights.WEIGHTS).get("data_hash")
    found = CodeMaps.load(path, vqvae.hash, learned_from or None, grids=code_grids(vqvae),
                          codebook_size=vqvae.model.settings.codebook_size, quietly=True)
    whose = f" of --top {top}" if top else ""
    expect(found is not None and bool(found.names), "--reject-by classifier", f"the codes of the training images"
           f"{whose} in {path}, where the training of a prior leaves them", "none that are theirs and whole",
           "Train a prior of this VQ-VAE with these images again, or leave --reject and --reject-by out.")
    return found
