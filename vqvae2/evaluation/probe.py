"""Samples and real slices of unseen subjects -> how well a small classifier tells them apart (AUROC).

0.5 (or a little less, by chance): it cannot tell samples from real slices, which is the goal. 1: it tells at once.
AUROC is the probability that a sample looks more like a sample than a real slice does. The classifier is
cross-validated: it is trained on the samples and subjects of the other folds and judged on those of its own, so that it
has seen neither the person nor the sample.

A stronger classifier may tell what this one cannot. So the number counts only if the same probe tells fakes of the
neighbours model, which no one would take for a brain (`judge_all`). And every VQ-VAE's decoder is soft, which a
classifier of full-resolution pixels notices first, so that against real slices the number is 1 whatever the prior does:
beside it stands samples against *reconstructions* of real slices, which are as soft. That is what the prior gets wrong.

What both sides are given alike: 8 bit, values below FLOOR and above CEILING made equal, since real slices are exactly
black where no brain is and exactly white above the percentile of their scaling, and no decoder does that to the last
step; this is no news and would hide everything else. Nothing else is taken away: size, place, brightness, contrast,
softness, anatomy and variety may all be used. Batches hold as many samples as slices, whatever their numbers are.

NOTE The interval is over the subjects and samples that were judged. That another training of the classifier, or other
folds, would give another number is not in it. Measured at 128²: 128 samples against reconstructions of 12 subjects
0.66, 0.68 and 0.66 with three seeds; real slices of 17 training subjects against those of 17 others 0.55 (0.42, 0.68).

References
1. Lopez-Paz, Oquab 2017, Revisiting classifier two-sample tests.
2. Hanley, McNeil 1982, The meaning and use of the area under a receiver operating characteristic curve.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from vqvae2.common import random_numbers
from vqvae2.common.statistics import auroc, by_group, with_interval
from vqvae2.evaluation.judge import Evaluation, Judge, decoded
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import context_model
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.code_maps import CodeMaps

FOLDS = 4
FLOOR, CEILING = 8, 247
"""Darker pixels count as black, brighter ones as white, on the range 0…255."""
WIDTHS = (16, 24, 32, 48, 64)
DETAIL = 4.0
STEPS, BATCH = 160, 32
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
CROP, SHIFT = 128, 4
"""Training pictures are windows of at most so many pixels, moved by at most so many; never shrunk."""
CPU = torch.device("cpu")
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
        """`[batch, channels, height, width]`, as `prepared` makes them, to logits `[batch]`."""
        mean = functional.avg_pool2d(functional.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
        features = self.layers(torch.cat([images, DETAIL * (images - mean)], 1))
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))[:, 0]


def judge(fakes: torch.Tensor, reals: ImageSet, seed: int, fake_subjects: Sequence[str] | None = None, *,
          device: torch.device = CPU, on_step: Callable[[int], object] = lambda _: None) -> dict:
    """Return {"auroc", "ci_low", "ci_high", "folds", "fakes", "reals", "subjects"}.

    Args:
        fakes: uint8 `[m, channels, height, width]`. reals: slices of unseen subjects, of the same shape.
        seed: of the folds, the classifiers and the bootstrap. On a CPU the same seed gives the same numbers.
        fake_subjects: whose fake each is, where fakes are not independent (real slices of others, to see what real
            against real comes to): a subject's fakes stay in one fold. By default fake k is in fold k modulo folds.
        device: where the classifiers are trained. on_step: told how many training steps have been done since.
    Returns: None for auroc and its 95 % interval where there are fewer than 2 subjects or 2 fakes.
    Raises: ValueError if shapes differ.

    Scores of different folds come from different classifiers and have no common scale: pairs of a fake and a real slice
    are compared within folds only, and the AUROC is the share of such pairs in the right order, ties counting one half.
    (Put into one list, an offset between two classifiers would count as an error of both.) The interval is from drawing
    subjects and fakes with replacement.
    """
    if tuple(fakes.shape[1:]) != reals.pixels.shape[1:]:
        raise ValueError(f"fakes: expected shape {reals.pixels.shape[1:]}, found {tuple(fakes.shape[1:])}.")
    names, subject = np.unique(np.asarray(reals.subjects, dtype=str), return_inverse=True)
    others, group = np.unique(np.asarray(fake_subjects if fake_subjects is not None else range(len(fakes))),
                              return_inverse=True)
    folds = min(FOLDS, len(names), len(others))
    report = {"auroc": None, "ci_low": None, "ci_high": None, "folds": folds, "fakes": len(fakes), "reals": len(reals),
              "subjects": len(names)}
    if folds < 2:
        return report
    fold_of = random_numbers.keys(seed, "probe: folds of subjects", np.arange(len(names))).argsort().argsort() % folds
    real_fold, fake_fold = fold_of[subject], group % folds
    slices = reals.bytes()
    scores = [_scores(fakes.cpu(), slices, fake_fold, real_fold, fold, seed, device, on_step) for fold in range(folds)]
    of_fakes, of_reals = (np.stack(part).sum(0) for part in zip(*scores))
    return report | auroc(by_group(of_fakes, group, len(others)), by_group(of_reals, subject, len(names)), seed,
                          comparable=np.arange(len(others))[:, None] % folds == fold_of)


def judge_all(samples: torch.Tensor, context_model_fakes: torch.Tensor | None, reconstructions: torch.Tensor,
              reals: ImageSet, seed: int, *, device: torch.device = CPU,
              on_step: Callable[[int], object] = lambda _: None) -> dict:
    """Return what metrics.json says of the probe, each a report of `judge`, or None where it cannot be made.

    Args:
        samples: uint8 `[m, channels, height, width]`. context_model_fakes: of `context_model_fakes`, or None.
        reconstructions: of `reals`, in their order. The others as for `judge`.
    Returns:
        samples: samples against real slices. samples_against_reconstructions: what the decoder does to every image, its
        softness first, set apart. context_model, context_model_against_reconstructions: its fakes likewise. counts:
        whether these two reach 0.9; if not, or where there are no such fakes, the probe may be too weak and the others
        mean nothing.
    """
    def of(fakes: torch.Tensor, against: ImageSet) -> dict:
        return judge(fakes, against, seed, device=device, on_step=on_step)

    made = dataclasses.replace(reals, pixels=reconstructions.cpu().numpy())
    baseline, against = (None, None) if context_model_fakes is None else (
        of(context_model_fakes, one) for one in (reals, made))
    return {"samples": of(samples, reals), "samples_against_reconstructions": of(samples, made),
            "context_model": baseline, "context_model_against_reconstructions": against,
            "counts": all(one is not None and one["auroc"] is not None and one["auroc"] >= CAPABLE
                          for one in (baseline, against))}


def context_model_fakes(model: Vqvae, train: CodeMaps, count: int, seed: int, batch: int) -> torch.Tensor:
    """Return images of code maps that the neighbours model draws, level by level: uint8 `[count, c, height, width]`.

    `train` are the codes of the training images. The bottom level knows nothing of the top: this is the baseline.
    """
    return decoded(model, {level: context_model.draw(codes, model.settings.codebook_size, count, seed, level)
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
        with tqdm(desc="probe", unit="step", leave=False) as bar:
            return judge_all(evaluation.samples, fakes, evaluation.reconstructions, evaluation.images, settings.seed,
                             device=next(model.parameters()).device, on_step=bar.update)

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each pair."""
        return [(f"AUROC of the probe, {what}", value) for what, value in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each pair, and whether the probe is strong enough to count."""
        names = (("samples", "samples, real slices"), ("samples_against_reconstructions", "samples, reconstructions"),
                 ("context_model", "images of the neighbours model, real slices"),
                 ("context_model_against_reconstructions", "images of the neighbours model, reconstructions"))
        return [*((what, with_interval(figures[name], "auroc", 3)) for name, what in names),
                ("does the probe count?", f"{'yes' if figures['counts'] else 'no'}: it has to reach {CAPABLE} on the "
                                          "last two")]


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as the classifier sees them: float32, from FLOOR to CEILING -1…1."""
    return (images.float().clamp(FLOOR, CEILING) - FLOOR) / (CEILING - FLOOR) * 2 - 1


def _scores(fakes: torch.Tensor, reals: torch.Tensor, fake_fold: np.ndarray, real_fold: np.ndarray, fold: int,
            seed: int, device: torch.device, on_step: Callable[[int], object]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of one fold's fakes and real slices by a classifier trained on the others; 0 for the others."""
    sides = [(images, torch.from_numpy(np.flatnonzero(folds != fold)), torch.from_numpy(np.flatnonzero(folds == fold)))
             for images, folds in ((fakes, fake_fold), (reals, real_fold))]
    model = _trained([images[train] for images, train, _ in sides], seed, fold, device, on_step)
    found = []
    for images, _, own in sides:
        scores = torch.zeros(len(images))
        with torch.no_grad():
            for items in own.split(BATCH):
                one = prepared(images[items]).to(device)
                scores[items] = (model(one) + model(one.flip(3))).cpu()
        found.append(scores.double().numpy())
    return found[0], found[1]


def _trained(sides: Sequence[torch.Tensor], seed: int, fold: int, device: torch.device,
             on_step: Callable[[int], object]) -> Classifier:
    generator = random_numbers.generator(seed, "probe: training", fold)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        model = Classifier(sides[0].shape[1]).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
    labels = torch.tensor([1.0, 0.0], device=device).repeat_interleave(BATCH // 2)
    for _ in range(STEPS):
        batch = prepared(torch.cat([_pictures(images, generator) for images in sides])).to(device)
        loss = functional.binary_cross_entropy_with_logits(model(batch), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        on_step(1)
    return model.eval()


def _pictures(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half a batch, uint8: windows of images drawn at random, moved and mirrored or not."""
    count, (height, width) = BATCH // 2, images.shape[2:]
    chosen = images[torch.randint(len(images), (count,), generator=generator)]
    framed = functional.pad(chosen, [SHIFT] * 4)
    sides = min(height, CROP), min(width, CROP)
    starts = [torch.randint(whole + 2 * SHIFT - side + 1, (count,), generator=generator).tolist()
              for whole, side in zip((height, width), sides)]
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
    windows = [one[:, top:top + sides[0], left:left + sides[1]] for one, top, left in zip(framed, *starts)]
    return torch.stack([one.flip(2) if flip else one for one, flip in zip(windows, mirrored)])
