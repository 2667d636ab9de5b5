"""Images, their codes and reconstructions -> what metrics.json says of a VQ-VAE alone, and pictures."""

import math

from vqvae2.common import statistics
from vqvae2.common.statistics import as_text, evenly, with_interval
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.metrics import coding
from vqvae2.models import encoding
from vqvae2.plots import charts, pictures

PICTURED = 8
FIGURES = (("ssim", "SSIM", 4), ("ms_ssim", "MS-SSIM", 4), ("psnr", "PSNR in dB", 2),
           ("mae", "mean absolute error, images 0…1", 4))
"""Key, name and digits behind the point."""
QUANTILES = (("min", "minimum"), ("q05", "5th percentile"), ("median", "median"), ("q95", "95th percentile"),
             ("max", "maximum"))


class ReconstructionJudge(Judge):
    """SSIM, MS-SSIM, PSNR and mean absolute error, of the full picture and inside the brain."""

    name = "reconstruction"
    columns = ("figure", "full picture", "inside the brain")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return area -> figure -> its distribution over the images."""
        return {area: {name: statistics.summarise(values, evaluation.images.subjects, evaluation.settings.seed)
                       for name, values in figures.items()} for area, figures in evaluation.similarity.items()}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return SSIM of both areas, and PSNR."""
        rows = []
        for area, ssim in (("full picture", figures["full"]["ssim"]), ("inside the brain", figures["brain"]["ssim"])):
            mean, low, high, least, most = (as_text(ssim[key], 4)
                                            for key in ("mean", "ci_low", "ci_high", "min", "max"))
            rows.append((f"SSIM, {area}", f"{mean} (95 % interval {low} to {high}), minimum {least}, maximum {most}"))
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
        charts.ssim_histogram(evaluation.similarity, evaluation.out / "ssim_histogram.png")


class CodesJudge(Judge):
    """Number of codes of each level in use, their perplexity, and the SSIM that depends on the level."""

    name = "codes"
    columns = ("level", "used", "perplexity", "shuffle drop (SSIM)")

    def compute(self, evaluation: Evaluation) -> dict:
        """Return level -> {"size", "used", "perplexity", "shuffle_drop"}; None stands for what is not defined."""
        figures = encoding.code_figures(evaluation.vqvae.model, evaluation.images, evaluation.code_maps,
                                        evaluation.settings.batch, evaluation.settings.seed)
        return {level: {name: value if math.isfinite(value) else None for name, value in of_level.items()}
                for level, of_level in figures.items()}

    def rows(self, figures: dict, report: dict) -> list[tuple[str, str]]:
        """Return a line for each level."""
        return [(f"{level} codes", f"{used} used, perplexity {perplexity}, shuffle drop {drop}")
                for level, used, perplexity, drop in self.table(figures, report)]

    def table(self, figures: dict, report: dict) -> list[tuple[str, ...]]:
        """Return a row for each level."""
        return [(level, f"{one['used']} of {one['size']}", as_text(one["perplexity"], 1),
                 as_text(one["shuffle_drop"], 3)) for level, one in figures.items()]

    def picture(self, figures: dict, evaluation: Evaluation) -> None:
        """Write code maps of evenly chosen images for each level, and the histogram of the codes."""
        size, counts = evaluation.vqvae.model.settings.codebook_size, {}
        for level, maps in evaluation.code_maps.levels.items():
            title = (f"{level.capitalize()} codes of evenly chosen {evaluation.settings.split} images: a colour for "
                     f"each of {size}")
            picture = pictures.code_map_picture(maps[evenly(len(maps), PICTURED)], size, title=title)
            pictures.save_picture(picture, evaluation.out / f"code_images_{level}.png")
            counts[level] = coding.code_counts(maps, size)
        charts.code_histogram(counts, evaluation.out / "code_histogram.png")
