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

A report stops a comparison whose verdict is clear: the folds are judged one after another, and the remaining ones are
left out once every single one of the bootstrap's draws over the folds so far, not 95 % of them, lies on the same side
of each of LIMITS, the numbers that the verdict compares with; never before FEWEST subjects and fakes were judged. So do
trials that stop early only at a level of 0.001 [3]. `folds_judged` of `folds` is reported; figure and interval are
those of the judged folds. `--probe-whole` judges all folds.

NOTE What stopping does, by 120 simulated cases (12 subjects, 256 fakes) at each of eight AUROCs from 0.55 to 0.995: the
verdict was that of all folds in all 960; the figure was off by at most 0.008 in the mean; but the 95 % interval of a
case that stops is of few people, and too narrow: it held the truth in 72 to 88 of 100 cases where stopping was common,
and that of all folds in about 93. On slices of 64²: 11 cases of three seeds, those near a limit went to the end.
NOTE The interval is over the subjects and samples that were judged. That another training of the classifier, or other
folds, would give another number is not in it. Measured at 128²: 128 samples against reconstructions of 12 subjects
0.66, 0.68 and 0.66 with three seeds; real slices of 17 training subjects against those of 17 others 0.55 (0.42, 0.68).

References
1. Lopez-Paz, Oquab 2017, Revisiting classifier two-sample tests.
2. Hanley, McNeil 1982, The meaning and use of the area under a receiver operating characteristic curve.
3. Peto et al. 1976, Design and analysis of randomized clinical trials requiring prolonged observation of each patient,
   part I.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch

from vqvae2.common import random_numbers
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import ENDS, auroc, by_group, with_interval
from vqvae2.evaluation import reasons
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.evaluation.verdict import THRESHOLDS
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import context_model
from vqvae2.models import classifier, encoding
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.code_maps import CodeMaps

FOLDS = 4
STEPS = 160
CAPABLE = 0.9
"""AUROC on fakes of the neighbours model from which the probe counts."""
LIMITS = (*(THRESHOLDS[name].value for name in ("good probe", "fair probe")), CAPABLE)
"""The AUROCs at which the verdict changes."""
FEWEST = 3
"""Subjects, and fakes, that must have been judged before a comparison may stop."""
ALL_DRAWS = (0.0, 1.0)
"""The ends of an interval that holds every draw of the bootstrap."""


def judge(fakes: torch.Tensor, reals: ImageSet, seed: int, device: torch.device | str = "cpu", *,
          same_subjects: bool = False, whole: bool = True, tell: Callable[[], object] = lambda: None) -> dict:
    """Return {"auroc", "ci_low", "ci_high", "folds", "folds_judged", "fakes", "reals", "subjects"}.

    Args:
        fakes: uint8 `[m, channels, height, width]`, independent of each other. reals: slices of unseen subjects, of the
            same shape.
        seed: of the folds, the classifiers and the bootstrap. On a CPU the same seed gives the same numbers.
        device: where the classifiers are trained.
        same_subjects: whether the fakes were made of the real slices, in their order. A subject's fakes are then in the
            fold of its slices.
        whole: whether all folds are judged, also where the first ones leave no doubt.
        tell: called FOLDS x STEPS times at most: after each step of a classifier's training, and at once for those of
            the folds that are left out.
    Returns: None for auroc and its 95 % interval where there are fewer than 2 subjects or 2 fakes.

    Scores of different folds come from different classifiers and have no common scale: pairs of a fake and a real slice
    are compared within folds only, and the AUROC is the share of such pairs in the right order, ties counting one half.
    (Put into one list, an offset between two classifiers would count as an error of both.) The interval is from drawing
    subjects and fakes with replacement.
    """
    names, subject = np.unique(reals.subjects, return_inverse=True)
    folds = min(FOLDS, len(names), len(fakes))
    report = {"auroc": None, "ci_low": None, "ci_high": None, "folds": folds, "folds_judged": 0, "fakes": len(fakes),
              "reals": len(reals), "subjects": len(names)}
    if folds < 2:
        return report
    fold_of = random_numbers.keys(seed, "probe: folds of subjects", np.arange(len(names))).argsort().argsort() % folds
    real_fold = fold_of[subject]
    fake_fold = real_fold if same_subjects else np.arange(len(fakes)) % folds
    sides = (fakes, fake_fold, np.zeros(len(fakes))), (reals.bytes(), real_fold, np.zeros(len(reals)))
    group_fold = fold_of if same_subjects else fake_fold

    def figures(judged: int, ends: tuple[float, float] = ENDS) -> dict:
        """Return the AUROC over the first folds, and its interval."""
        (*_, of_fakes), (*_, of_reals) = sides
        groups = by_group(of_fakes, subject, len(names)) if same_subjects else of_fakes[:, None]
        people = by_group(of_reals, subject, len(names))
        inside, outside = np.flatnonzero(group_fold < judged), np.flatnonzero(fold_of < judged)
        return auroc([groups[item] for item in inside], [people[item] for item in outside], seed,
                     same_subjects=same_subjects, ends=ends,
                     comparable=group_fold[inside, None] == fold_of[outside])

    for judged in range(1, folds + 1):
        fold = judged - 1
        model = classifier.trained([images[own != fold] for images, own, _ in sides], STEPS,
                                   random_numbers.generator(seed, "probe: training", fold), device, tell)
        for images, own, scores in sides:
            scores[own == fold] = classifier.logits(model, images[own == fold])
        enough = min(np.count_nonzero(own < judged) for own in (fold_of, fake_fold)) >= FEWEST
        if not whole and enough and judged < folds and _is_clear(figures(judged, ALL_DRAWS)):
            break
    for _ in range((folds - judged) * STEPS):
        tell()
    return report | figures(judged) | {"folds_judged": judged}


def _is_clear(figures: dict) -> bool:
    """Return whether no limit lies between the ends of the interval."""
    return not any(figures["ci_low"] <= limit <= figures["ci_high"] for limit in LIMITS)


def judge_all(samples: torch.Tensor, context_model_fakes: torch.Tensor | None, reconstructions: torch.Tensor,
              reals: ImageSet, seed: int, device: torch.device | str = "cpu", *, whole: bool = False) -> dict:
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
    made = dataclasses.replace(reals, pixels=reconstructions.numpy())
    folds = min(FOLDS, len(set(reals.subjects)), len(samples))
    with Bar(total=(3 if context_model_fakes is None else 5) * folds * STEPS, desc="probe: training classifiers",
             unit="step") as bar:
        judged = functools.partial(judge, seed=seed, device=device, whole=whole, tell=bar.update)
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
                         next(model.parameters()).device, whole=settings.probe_whole)

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each pair."""
        return [(f"AUROC of the probe, {what}", value) for what, value in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each pair, and whether the probe is strong enough to count."""
        names = (("samples", "samples, real slices"), ("samples_against_reconstructions", "samples, reconstructions"),
                 ("context_model", "images of the neighbours model, real slices"),
                 ("context_model_against_reconstructions", "images of the neighbours model, reconstructions"),
                 ("reconstructions", "reconstructions, real slices"))
        return [*((what, with_interval(figures.get(name), "auroc", 3, why=reasons.of_probe(figures, name))
                   + _stopped(figures.get(name))) for name, what in names),
                ("does the probe count?", f"{'yes' if figures['counts'] else 'no'}: it has to reach {CAPABLE} on those "
                                          "of the neighbours model")]


def _stopped(figures: dict | None) -> str:
    """Return what a table says of a comparison that stopped early."""
    left_out = 0 if not figures else figures["folds"] - figures.get("folds_judged", figures["folds"])
    return f", clear after {figures['folds_judged']} of {figures['folds']} folds" if left_out else ""
