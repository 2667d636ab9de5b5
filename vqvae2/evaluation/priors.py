"""Bits of the codes under their priors -> the priors' part of metrics.json, beside models that only count.

Bits per code are each level's own. Both levels together are given in bits per pixel, which is an upper bound on the
code length of the decoded image (see `surprise.py`), and is called that. Where a prior is told something of the
image, its bits are given that; the models that count are told nothing.
"""

import math
from collections.abc import Mapping

from vqvae2.common import statistics
from vqvae2.common.statistics import as_text, evenly, with_interval
from vqvae2.evaluation import surprise
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.metrics import coding
from vqvae2.plots import pictures
from vqvae2.priors import conditions

REFERENCES = {"context_model_bits": "context", "histogram_bits": "histogram",
              "position_histogram_bits": "position_histogram"}
"""Keys of the models that only count: in metrics.json, and in `context_model_bits`."""
NAMES = {"neighbours": "context_model_bits", "place": "position_histogram_bits", "frequency": "histogram_bits"}
"""The names of these models in text, and their keys in metrics.json."""
PICTURED = 8
BOUND = "upper bound on the code length of the decoded image"


class PriorsJudge(Judge):
    """Bits of the codes under their priors.

    below_best_reference: by which share the prior's bits are below the best reference's; negative if they are above.
    condition: columns of the manifest that the prior is told; condition_known: how many of these values are known.
    untold_bits_per_code: what the codes cost if nothing is known, as the references know nothing; None for a prior that
    is told nothing anyway.
    bits_per_pixel: of all levels together, where each level has a prior.
    """

    name = "priors"
    columns = ("level", "prior", "told nothing", *NAMES, "blind guess")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the figures of each level that has a prior."""
        split, seed, report = evaluation.images, evaluation.settings.seed, {}
        for level, prior in evaluation.priors.items():
            bits = evaluation.code_bits[level].double()
            of_images = statistics.summarise(bits.mean((1, 2)), split.subjects, seed)
            counted = evaluation.counting_bits.get(level, {})
            references = {name: counted.get(kind) for name, kind in REFERENCES.items()}
            known = conditions.numbers(prior.columns, split.facts)
            report[level] = {
                "bits_per_code": of_images["mean"], "ci_low": of_images["ci_low"], "ci_high": of_images["ci_high"],
                **references, "below_best_reference": below_best(of_images["mean"], references),
                "untold_bits_per_code": evaluation.untold_code_bits[level].double().mean().item()
                if prior.columns else None,
                "condition": [column.name for column in prior.columns],
                "condition_known": 1 - known.isnan().double().mean().item() if prior.columns else None}
        if evaluation.has_all_priors:
            cells = {level: one[0].numel() for level, one in evaluation.code_bits.items()}
            report["bits_per_pixel"] = coding.bits_per_pixel(
                report["top"]["bits_per_code"], report.get("bottom", {}).get("bits_per_code", 0.0), cells["top"],
                cells.get("bottom", 0), math.prod(split.pixels.shape[2:]))
            told = any(prior.columns for prior in evaluation.priors.values())
            report["bits_per_pixel_is"] = BOUND + (", given what the priors are told" if told else "")
        return report

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each prior, and a line for all codes."""
        rows = [(f"{level} prior", _in_words(figures[level])) for level in report["codes"] if level in figures]
        if "bits_per_pixel" in figures:
            rows.append(("all codes", f"{as_text(figures['bits_per_pixel'], 4)} bits per pixel, "
                                      f"{figures['bits_per_pixel_is']}; stored as they are "
                                      f"{as_text(report['raw_bits_per_pixel'], 4)}"))
        return rows

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each prior, in bits per code."""
        return [(level, with_interval(one, "bits_per_code", 3),
                 *(as_text(one[name], 3) for name in ("untold_bits_per_code", *NAMES.values())),
                 as_text(math.log2(report["codes"][level]["size"]), 3))
                for level, one in figures.items() if level in report["codes"]]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write likelihood.png, where each level has a prior."""
        if evaluation.has_all_priors:
            shown = evenly(len(evaluation.images), PICTURED)
            pictures.save_picture(surprise.overview(evaluation.images, evaluation.code_bits, shown),
                                  evaluation.out / "likelihood.png")


class LikelihoodJudge(Judge):
    """The NLL of the codes of every image as files: see `surprise`."""

    name = "likelihood"
    columns = ()

    def compute(self, evaluation: Evaluation) -> dict:
        """Write the files and return where they are."""
        surprise.write(evaluation.out / self.name, evaluation.images, evaluation.code_bits)
        return {"folder": self.name, "levels": list(evaluation.code_bits), "unit": "bits per code"}


def below_best(bits: float, references: Mapping[str, float | None]) -> float | None:
    """Return by which share of it `bits` lie below the least of the references: 0.25 for 6 beside 8 and 9.

    Below 0 where they lie above it; None where there is no reference, or it costs nothing.
    """
    best = min((one for one in references.values() if one is not None), default=None)
    return 1 - bits / best if best else None


def _in_words(one: dict) -> str:
    """A prior's bits per code, how far below the best model that only counts, and what those need."""
    ahead, told = one["below_best_reference"], one["condition"]
    lead = "" if ahead is None else (f", {abs(100 * ahead):.1f} % {'below' if ahead >= 0 else 'above'} the best model "
                                     "that counts")
    references = ", ".join(f"{word} {as_text(one[name], 3)}" for word, name in NAMES.items())
    return (f"{as_text(one['bits_per_code'], 3)} bits per code{lead} ({references})"
            + (f", told {' '.join(told)}" if told else ""))
