"""A VQ-VAE, its priors and a split -> figures and pictures of reconstructions, of codes, and of their NLL.

Bits per code are given for each level separately. Both levels together are given in bits per pixel, which is an upper
bound on the code length of the decoded image (see `surprise.py`), and is called that. Where a prior is given facts
about the image, its bits are conditional on them; the counting models are given none.
"""

import json
import math
from collections.abc import Mapping

import torch

from vqvae2.common.statistics import as_text, evenly, summarise, with_interval
from vqvae2.evaluation import reasons, surprise
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.metrics import coding, similarity
from vqvae2.models import encoding
from vqvae2.plots import charts, pictures
from vqvae2.priors import conditions

PICTURED = 8
PAIRS, MOST_PIXELS = "pairs.png", 8_000_000
"""Evenly chosen originals above their reconstructions, for the slider of the page: a row each, and no more pixels than
this together. The file says, as JSON under its key `pairs`, the name and SSIM of each image."""
FIGURES = (("ssim", "SSIM", 4), ("ms_ssim", "MS-SSIM", 4), ("psnr", "PSNR in dB", 2),
           ("mae", "mean absolute error, images 0…1", 4))  # key, name, digits behind the point
QUANTILES = (("min", "minimum"), ("q05", "5th percentile"), ("median", "median"), ("q95", "95th percentile"),
             ("max", "maximum"))
# The counting models: the name in text, the key in metrics.json, the key in `context_model_bits`.
COUNTING = (("neighbours", "context_model_bits", "context"), ("place", "position_histogram_bits", "position_histogram"),
            ("frequency", "histogram_bits", "histogram"))
BOUND = "upper bound on the code length of the decoded image"


class ReconstructionJudge(Judge):
    """This judge computes SSIM, MS-SSIM, PSNR and mean absolute error of the full picture and inside the brain."""

    name = "reconstruction"
    columns = ("figure", "full picture", "inside the brain")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return area -> figure -> its distribution over the images; with a texture decoder also `own_decoder`, the
        figures of the full picture without it."""
        def summaries(figures: dict) -> dict:
            return {name: summarise(values, evaluation.images.subjects, evaluation.settings.seed)
                    for name, values in figures.items()}

        areas = {area: summaries(figures) for area, figures in evaluation.similarity.items()}
        if evaluation.vqvae.model.texture is None:
            return areas
        # The detail of a texture decoder is invented: what the codes say is seen without it.
        own = encoding.decoded(evaluation.vqvae.model, evaluation.code_maps.levels, evaluation.settings.batch,
                               softly=True)
        return areas | {"own_decoder": summaries(similarity.image_figures(evaluation.images.bytes(), own)["full"])}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return SSIM of both areas, and PSNR."""
        rows = []
        for area, title in (("full", "full picture"), ("brain", "inside the brain")):
            ssim = figures[area]["ssim"]
            text = with_interval(ssim, "mean", 4, before="95 % interval ", why=reasons.of_similarity(report, area))
            ends = f", minimum {as_text(ssim['min'], 4)}, maximum {as_text(ssim['max'], 4)}"
            rows.append((f"SSIM, {title}", text + ends * (ssim["mean"] is not None)))
        if own := figures.get("own_decoder"):
            rows.append(("SSIM, full picture, by the VQ-VAE's own decoder", with_interval(own["ssim"], "mean", 4)))
        return [*rows, ("PSNR, full picture", f"{as_text(figures['full']['psnr']['mean'], 2)} dB")]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return the mean of each figure in both areas, and of SSIM the quantiles too."""
        rows = []
        for name, title, digits in FIGURES:
            areas = [figures[area][name] for area in ("full", "brain")]
            rows.append((f"{title}, mean (95 % interval over subjects)",
                         *(with_interval(area, "mean", digits) for area in areas)))
            if name == "ssim":
                rows += [(f"{title}, {what}", *(as_text(area[key], digits) for area in areas))
                         for key, what in QUANTILES]
        return rows

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write evenly chosen images, the worst and the best of them, and the histogram of SSIM."""
        originals, made = evaluation.images.bytes(), evaluation.reconstructions
        split, ssim = f"{evaluation.settings.split} images", evaluation.similarity["full"]["ssim"]
        order = ssim.argsort().numpy()
        for name, title, chosen in (("reconstructions", f"Evenly chosen {split}", evenly(len(order), PICTURED)),
                                    ("worst", f"Lowest SSIM of {len(order)} {split}", order[:PICTURED]),
                                    ("best", f"Highest SSIM of {len(order)} {split}", order[::-1][:PICTURED].copy())):
            picture = pictures.strip(pictures.compared(originals[chosen], made[chosen]),
                                                   title=f"{title}; difference on images 0…1",
                                                   captions=[f"SSIM {ssim[i]:.3f}" for i in chosen])
            pictures.save_picture(picture, evaluation.out / f"{name}.png")
        pixels = math.prod(originals.shape[1:])
        chosen = evenly(len(order), max(1, min(PICTURED, MOST_PIXELS // (2 * pixels))))
        told = [{"name": evaluation.images.names[i], "ssim": value if math.isfinite(value := ssim[i].item()) else None}
                for i in chosen]
        pictures.save_picture(pictures.image_grid(torch.cat([originals[chosen], made[chosen]]), len(chosen), gap=0),
                              evaluation.out / PAIRS, {"pairs": json.dumps(told)})
        charts.ssim_histogram(evaluation.similarity, evaluation.out / "ssim_histogram.png")


class CodesJudge(Judge):
    """This judge computes how many codes of each level are in use, their perplexity, and the shuffle drop, the SSIM
    that is lost without the level."""

    name = "codes"
    columns = ("level", "used", "perplexity", "shuffle drop (SSIM)")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return level -> {"size", "used", "perplexity", "shuffle_drop"}; None where a metric is not defined."""
        model = evaluation.vqvae.model
        known = None if model.texture else evaluation.similarity["full"]["ssim"].mean().item()
        figures = encoding.code_figures(model, evaluation.images, evaluation.code_maps, evaluation.at_a_time,
                                        evaluation.settings.seed, ssim=known)
        return {level: {name: value if math.isfinite(value) else None for name, value in of_level.items()}
                for level, of_level in figures.items()}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each level."""
        return [(f"{level} codes", f"{used} used, perplexity {perplexity}, shuffle drop {drop}")
                for level, used, perplexity, drop in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each level."""
        return [(level, f"{found['used']} of {found['size']}", as_text(found["perplexity"], 1),
                 as_text(found["shuffle_drop"], 3, reasons.SMALL)) for level, found in figures.items()]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write code maps of evenly chosen images for each level, and the histogram of the codes."""
        size, counts = evaluation.vqvae.model.settings.codebook_size, {}
        for level, maps in evaluation.code_maps.levels.items():
            picture = pictures.code_map_picture(
                maps[evenly(len(maps), PICTURED)], size,
                title=f"{level.capitalize()} codes of evenly chosen {evaluation.settings.split} images: a colour for "
                      f"each of {size}")
            pictures.save_picture(picture, evaluation.out / f"code_images_{level}.png")
            counts[level] = coding.code_counts(maps, size)
        charts.code_histogram(counts, evaluation.out / "code_histogram.png")


class PriorsJudge(Judge):
    """This judge computes the bits of the codes under their priors.

    below_best_reference: share by which the prior's bits are below those of the best counting model; negative if above.
    condition: columns of the manifest that the prior is given.
    condition_known: share of these values that are known.
    untold_bits_per_code: bits per code if the prior is given no facts, as the counting models are given none; None for
        a prior without a condition.
    bits_per_pixel: of all levels together, where each level has a prior.
    """

    name = "priors"
    columns = ("level", "prior", "told nothing", *(name for name, _, _ in COUNTING), "blind guess")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return the figures of each level that has a prior."""
        split, seed, report = evaluation.images, evaluation.settings.seed, {}
        for level, prior in evaluation.priors.items():
            bits = evaluation.code_bits[level].double()
            of_images = summarise(bits.mean((1, 2)), split.subjects, seed)
            counted = evaluation.counting_bits.get(level, {})
            references = {key: counted.get(kind) for key, kind in sorted((key, kind) for _, key, kind in COUNTING)}
            known = conditions.numbers(prior.columns, split.facts)
            report[level] = {
                "bits_per_code": of_images["mean"], "ci_low": of_images["ci_low"], "ci_high": of_images["ci_high"],
                **references, "below_best_reference": below_best(of_images["mean"], references),
                "untold_bits_per_code": evaluation.untold_code_bits[level].double().mean().item()
                if prior.columns else None,
                "condition": [column.name for column in prior.columns],
                "condition_known": 1 - known.isnan().double().mean().item() if prior.columns else None}
        if evaluation.has_all_priors:
            cells = {level: bits[0].numel() for level, bits in evaluation.code_bits.items()}
            report["bits_per_pixel"] = coding.bits_per_pixel(
                report["top"]["bits_per_code"], report.get("bottom", {}).get("bits_per_code", 0.0), cells["top"],
                cells.get("bottom", 0), math.prod(split.pixels.shape[2:]))
            told = any(prior.columns for prior in evaluation.priors.values())
            report["bits_per_pixel_is"] = BOUND + (", given what the priors are told" if told else "")
        return report

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each prior, and a line for all codes."""
        rows = []
        for level in filter(figures.get, report["codes"]):
            found, ahead = figures[level], figures[level]["below_best_reference"]
            lead = "" if ahead is None else (
                f", {abs(100 * ahead):.1f} % {'below' if ahead >= 0 else 'above'} the best model that counts")
            references = ", ".join(f"{name} {as_text(found[key], 3)}" for name, key, _ in COUNTING
                                   if found[key] is not None) or f"models that count – ({reasons.of_counting(report)})"
            told = f", told {' '.join(found['condition'])}" if found["condition"] else ""
            rows.append((f"{level} prior", f"{as_text(found['bits_per_code'], 3)} bits per code{lead} ({references})"
                                           f"{told}"))
        if "bits_per_pixel" in figures:
            rows.append(("all codes", f"{as_text(figures['bits_per_pixel'], 4)} bits per pixel, "
                                      f"{figures['bits_per_pixel_is']}; stored as they are "
                                      f"{as_text(report['raw_bits_per_pixel'], 4)}"))
        return rows

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each prior, in bits per code."""
        return [(level, with_interval(found, "bits_per_code", 3),
                 *(as_text(found[key], 3) for key in ("untold_bits_per_code", *(key for _, key, _ in COUNTING))),
                 as_text(math.log2(report["codes"][level]["size"]), 3))
                for level, found in figures.items() if level in report["codes"]]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write likelihood.png, where each level has a prior."""
        if evaluation.has_all_priors:
            shown = evenly(len(evaluation.images), PICTURED)
            rows = surprise.rows_of(evaluation.images, evaluation.code_bits, shown)
            pictures.save_picture(pictures.strip(
                rows, captions=[f"{bits.mean():.3f} bits per pixel" for bits in rows[-1][1].values],
                title="NLL of the codes: bits per code, all in bits per pixel"), evaluation.out / "likelihood.png")


class LikelihoodJudge(Judge):
    """This judge writes the NLL of the codes of every image to files: see `surprise`."""

    name = "likelihood"
    columns = ()

    def compute(self, evaluation: Evaluation) -> dict:
        """Write the files and return where they are."""
        surprise.write(evaluation.out / self.name, evaluation.images, evaluation.code_bits)
        return {"folder": self.name, "levels": list(evaluation.code_bits), "unit": "bits per code"}


def below_best(bits: float, references: Mapping[str, float | None]) -> float | None:
    """Return the share by which `bits` is below the smallest reference: 0.25 for 6 and the references 8 and 9.

    The share is negative where `bits` is larger; None where there is no reference, or the smallest is 0.
    """
    best = min((bits for bits in references.values() if bits is not None), default=None)
    return 1 - bits / best if best else None
