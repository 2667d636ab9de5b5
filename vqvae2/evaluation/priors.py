"""Bits of the codes under their priors -> the priors' part of metrics.json, beside models that only count.

Bits per code are each level's own. Both levels together are given in bits per pixel, which is an upper bound on the
code length of the decoded image (see `likelihood.py`), and is called that. Where a prior is told something of the
image, its bits are given that; the models that count are told nothing.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from vqvae2.common import statistics
from vqvae2.images.dataset import ImageSet
from vqvae2.metrics import coding
from vqvae2.priors import conditions
from vqvae2.priors.pixel_cnn import Prior

REFERENCES = {"context_model_bits": "context", "histogram_bits": "histogram",
              "position_histogram_bits": "position_histogram"}
BOUND = "upper bound on the code length of the decoded image"


def judge(priors: Mapping[str, Prior], bits: Mapping[str, torch.Tensor], levels: Sequence[str], split: ImageSet,
          references: Mapping[str, Mapping[str, float]], seed: int, untold: Mapping[str, torch.Tensor] | None = None,
          ) -> dict | None:
    """Return the priors' part of metrics.json, or None without priors.

    Args:
        bits: what each code of the split costs, for each level that has a prior.
        levels: of the VQ-VAE; bits per pixel are given where each has a prior.
        references: level -> what `metrics.context_model_bits` says of the same codes; may lack a level.
        seed: of the intervals over subjects.
        untold: as `bits`, of the priors that are told something of the images, when they are told nothing.

    below_best_reference: by which share the prior's bits are below the best reference's; negative if they are above.
    condition: columns of the manifest that the prior is told; condition_known: how many of these values are known.
    untold_bits_per_code: what the codes cost if nothing is known, as the references know nothing; None for a prior that
    is told nothing anyway.
    """
    if not priors:
        return None
    report = {level: _of_level(prior, bits[level], split, references.get(level, {}), seed,
                               (untold or {}).get(level)) for level, prior in priors.items()}
    if set(priors) == set(levels):
        cells = {level: one[0].numel() for level, one in bits.items()}
        report["bits_per_pixel"] = coding.bits_per_pixel(
            report["top"]["bits_per_code"], report.get("bottom", {}).get("bits_per_code", 0.0), cells["top"],
            cells.get("bottom", 0), math.prod(split.pixels.shape[2:]))
        told = any(report[level]["condition"] for level in priors)
        report["bits_per_pixel_is"] = BOUND + (", given what the priors are told" if told else "")
    return report


def below_best(bits: float, references: Mapping[str, float | None]) -> float | None:
    """Return by which share of it `bits` lie below the least of the references: 0.25 for 6 beside 8 and 9.

    Below 0 where they lie above it; None where there is no reference, or it costs nothing.
    """
    best = min((one for one in references.values() if one is not None), default=None)
    return 1 - bits / best if best else None


def _of_level(prior: Prior, bits: torch.Tensor, split: ImageSet, references: Mapping[str, float], seed: int,
              untold: torch.Tensor | None) -> dict:
    of_images = statistics.summarise(bits.double().mean((1, 2)), split.subjects, seed)
    counted = {name: references.get(kind) for name, kind in REFERENCES.items()}
    known = conditions.numbers(prior.columns, split.facts)
    return {"bits_per_code": of_images["mean"], "ci_low": of_images["ci_low"], "ci_high": of_images["ci_high"],
            **counted, "below_best_reference": below_best(of_images["mean"], counted),
            "untold_bits_per_code": None if untold is None else untold.double().mean().item(),
            "condition": [column.name for column in prior.columns],
            "condition_known": 1 - known.isnan().double().mean().item() if prior.columns else None}
