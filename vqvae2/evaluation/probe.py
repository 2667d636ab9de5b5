"""Samples and real slices of unseen subjects -> how well a small classifier tells them apart (AUROC).

AUROC is the probability that a sample looks more like a sample than a real slice does. At 0.5 (or a little less, by
chance) the classifier cannot tell samples from real slices, which is the goal. At 1 it always tells them apart. The
classifier is cross-validated: it is trained on the samples and subjects of the other folds and judged on those of its
own fold, so that it has seen neither the person nor the sample.

A stronger classifier may tell what this classifier cannot. So the number counts only if the same probe tells fakes of
the neighbours model, which nobody would take for a brain (`judge_all`). And every VQ-VAE's decoder is soft, which a
classifier of full-resolution pixels notices first, so that against real slices the number is 1 whatever the prior does.
So the number for samples against *reconstructions* of real slices, which are as soft, stands beside it: this second
number says what the prior gets wrong.

Both sides are treated alike: 8 bit, values below FLOOR and above CEILING made equal. Real slices are exactly black
where no brain is and exactly white above the percentile of their scaling, and no decoder does that to the last step;
this is no news and would hide everything else. Nothing else is taken away: size, place, brightness, contrast, softness,
anatomy and variety may all be used. Batches hold as many samples as slices, whatever their numbers are.

NOTE The interval is over the subjects and samples that were judged. That another training of the classifier, or other
folds, would give another number is not in it. Measured at 128²: 128 samples against reconstructions of 12 subjects
0.66, 0.68 and 0.66 with three seeds; real slices of 17 training subjects against those of 17 others 0.55 (0.42, 0.68).

References
1. Lopez-Paz, Oquab 2017, Revisiting classifier two-sample tests.
2. Hanley, McNeil 1982, The meaning and use of the area under a receiver operating characteristic curve.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from vqvae2.common import machine, random_numbers
from vqvae2.common.statistics import auroc, by_group, with_interval
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import context_model
from vqvae2.models import encoding
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.code_maps import CodeMaps

FOLDS = 4
FLOOR, CEILING = 8, 247
"""Darker pixels count as black, brighter ones as white, on the range 0…255."""
WIDTHS, DETAIL = (16, 24, 32, 48, 64), 4.0
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 160, 32, 2e-3, 0.05
CROP, SHIFT = 128, 4
"""Training pictures are windows of at most so many pixels, moved by at most so many; never shrunk."""
CAPABLE = 0.9
"""AUROC on fakes of the neighbours model from which the probe counts."""


class Classifier(nn.Module):
    """Convolutions of stride 2, then mean and maximum over the picture: images of any size to a logit, high for fakes.

    A picture of 128 x 128 becomes 4 x 4 places that see 65 x 65 pixels each. Beside the picture stands what differs
    from the mean of 3 x 3 pixels, enlarged: softness is a weak signal in the brightness, and without this channel 120
    steps did not find it (validation: AUROC 0.78, where the power above 40 cycles a picture alone has 1.00).

    NOTE No normalisation: it would take away how much contrast there is. Weights begin as in He et al. 2015.
    """

    def __init__(self, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((2 * channels, *WIDTHS), WIDTHS):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            nn.init.zeros_(layers[-2].bias)
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(2 * WIDTHS[-1], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch]` of images `[batch, channels, height, width]` that `prepared` has made."""
        mean = functional.avg_pool2d(functional.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
        features = self.layers(torch.cat([images, DETAIL * (images - mean)], 1))
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))[:, 0]


def judge(fakes: torch.Tensor, reals: ImageSet, seed: int, device: torch.device | str = "cpu", *,
          same_subjects: bool = False) -> dict:
    """Return {"auroc", "ci_low", "ci_high", "folds", "fakes", "reals", "subjects"}.

    Args:
        fakes: uint8 `[m, channels, height, width]`, independent of each other. reals: slices of unseen subjects, of the
            same shape.
        seed: of the folds, the classifiers and the bootstrap. On a CPU the same seed gives the same numbers.
        device: where the classifiers are trained.
        same_subjects: whether the fakes were made of the real slices, in their order. A subject's fakes are then in the
            fold of its slices.
    Returns: None for auroc and its 95 % interval where there are fewer than 2 subjects or 2 fakes.

    Scores of different folds come from different classifiers and have no common scale: pairs of a fake and a real slice
    are compared within folds only, and the AUROC is the share of such pairs in the right order, ties counting one half.
    (Put into one list, an offset between two classifiers would count as an error of both.) The interval is from drawing
    subjects and fakes with replacement.
    """
    names, subject = np.unique(reals.subjects, return_inverse=True)
    folds = min(FOLDS, len(names), len(fakes))
    report = {"auroc": None, "ci_low": None, "ci_high": None, "folds": folds, "fakes": len(fakes), "reals": len(reals),
              "subjects": len(names)}
    if folds < 2:
        return report
    fold_of = random_numbers.keys(seed, "probe: folds of subjects", np.arange(len(names))).argsort().argsort() % folds
    real_fold = fold_of[subject]
    fake_fold = real_fold if same_subjects else np.arange(len(fakes)) % folds
    sides = (fakes, fake_fold, np.zeros(len(fakes))), (reals.bytes(), real_fold, np.zeros(len(reals)))
    for fold in range(folds):
        model = _trained([images[own != fold] for images, own, _ in sides], seed, fold, device)
        for images, own, scores in sides:
            scores[own == fold] = _logits(model, images[own == fold], device)
    (*_, of_fakes), (*_, of_reals) = sides
    given = by_group(of_fakes, subject, len(names)) if same_subjects else of_fakes[:, None]
    return report | auroc(given, by_group(of_reals, subject, len(names)), seed, same_subjects=same_subjects,
                          comparable=(fold_of if same_subjects else fake_fold)[:, None] == fold_of)


def judge_all(samples: torch.Tensor, context_model_fakes: torch.Tensor | None, reconstructions: torch.Tensor,
              reals: ImageSet, seed: int, device: torch.device | str = "cpu") -> dict:
    """Return the probe's part of metrics.json, each a report of `judge`, or None where it cannot be made.

    Args:
        samples: uint8 `[m, channels, height, width]`. context_model_fakes: of `context_model_fakes`, or None.
        reconstructions: of `reals`, in their order. The others as for `judge`.
    Returns:
        samples: samples against real slices. samples_against_reconstructions: the same without what the decoder does to
        every image, its softness first. context_model, context_model_against_reconstructions: the fakes of the
        neighbours model likewise. counts: whether these two reach 0.9; if not, or where there are no such fakes, the
        probe may be too weak and the others mean nothing. reconstructions: against real slices, what the decoder alone
        does.
    """
    judged = functools.partial(judge, seed=seed, device=device)
    made = dataclasses.replace(reals, pixels=reconstructions.numpy())
    baseline, softened = (None, None) if context_model_fakes is None else (
        judged(context_model_fakes, against) for against in (reals, made))
    return {"samples": judged(samples, reals), "samples_against_reconstructions": judged(samples, made),
            "context_model": baseline, "context_model_against_reconstructions": softened,
            "reconstructions": judged(reconstructions, reals, same_subjects=True),
            "counts": all(found is not None and (found["auroc"] or 0) >= CAPABLE for found in (baseline, softened))}


def context_model_fakes(model: Vqvae, train: CodeMaps, count: int, seed: int, batch: int) -> torch.Tensor:
    """Return images of code maps that the neighbours model draws, level by level: uint8 `[count, c, height, width]`.

    `train` are the codes of the training images. The bottom level knows nothing of the top: this is the baseline.
    """
    return encoding.decoded(model, {level: context_model.draw(codes, model.settings.codebook_size, count, seed, level)
                                    for level, codes in train.levels.items()}, batch)


class ProbeJudge(Judge):
    """AUROC of a small classifier that is to tell samples from real slices, and from reconstructions."""

    name = "samples.probe"
    columns = ("what is told from what", "AUROC")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the report of `judge_all`."""
        settings, model, codes = evaluation.settings, evaluation.vqvae.model, evaluation.training_codes
        fakes = None if codes is None else context_model_fakes(model, codes, len(evaluation.samples), settings.seed,
                                                               settings.batch)
        return judge_all(evaluation.samples, fakes, evaluation.reconstructions, evaluation.images, settings.seed,
                         next(model.parameters()).device)

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each pair."""
        return [(f"AUROC of the probe, {what}", value) for what, value in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each pair, and whether the probe is strong enough to count."""
        names = (("samples", "samples, real slices"), ("samples_against_reconstructions", "samples, reconstructions"),
                 ("context_model", "images of the neighbours model, real slices"),
                 ("context_model_against_reconstructions", "images of the neighbours model, reconstructions"),
                 ("reconstructions", "reconstructions, real slices"))
        return [*((what, with_interval(figures.get(name), "auroc", 3)) for name, what in names),
                ("does the probe count?", f"{'yes' if figures['counts'] else 'no'}: it has to reach {CAPABLE} on those "
                                          "of the neighbours model")]


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as the classifier sees them: float32, from FLOOR to CEILING -1…1."""
    return (images.float().clamp(FLOOR, CEILING) - FLOOR) / (CEILING - FLOOR) * 2 - 1


@torch.no_grad()
def _logits(model: Classifier, images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return the logits of uint8 images, each the sum of the image's own and its mirror image's."""
    shown = (prepared(some).to(device) for some in images.split(BATCH))
    return torch.cat([(model(batch) + model(batch.flip(3))).cpu() for batch in shown])


def _trained(sides: Sequence[torch.Tensor], seed: int, fold: int, device: torch.device | str) -> Classifier:
    """Return a classifier trained on fakes and real slices, the two `sides`."""
    generator = random_numbers.generator(seed, "probe: training", fold)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        model = Classifier(sides[0].shape[1]).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
    labels = torch.tensor([1.0, 0.0], device=device).repeat_interleave(BATCH // 2)
    for _ in tqdm(range(STEPS), "probe", unit="step", leave=False):
        batch = prepared(torch.cat([_pictures(images, generator) for images in sides]))
        loss = functional.binary_cross_entropy_with_logits(model(machine.to_device(batch, labels.device)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _pictures(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return half a batch, uint8: windows of images drawn at random, moved and mirrored or not."""
    count, (height, width) = BATCH // 2, (min(side, CROP) for side in images.shape[2:])
    framed = functional.pad(images[torch.randint(len(images), (count,), generator=generator)], [SHIFT] * 4)
    starts = [torch.randint(whole - side + 1, (count,), generator=generator).tolist()
              for whole, side in zip(framed.shape[2:], (height, width))]
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
    windows = [image[:, top:top + height, left:left + width] for image, top, left in zip(framed, *starts)]
    return torch.stack([window.flip(2) if flip else window for window, flip in zip(windows, mirrored)])
