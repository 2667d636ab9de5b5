"""A run's folder -> metrics.json and figures, for evaluate.py and the notebook alike.

What each figure means is in `metrics.py`; here the figures of one split are gathered, and pictures drawn.
Nothing is reported about images that a model has seen unless it says so: `seen_in_training` counts them, and
`--split test` is refused where there are any.
"""

import csv
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vqvae2 import checkpoints, codes, distributed, metrics, plots, samples
from vqvae2.autoencoder import TrainedVqvae
from vqvae2.config import EvaluateSettings, VqvaeSettings, from_dict
from vqvae2.errors import UserError
from vqvae2.images import Images, ImageSet, load_images, pixel_hash, subject_hash, to_bytes
from vqvae2.prior import Prior

SCHEMA = 1
PICTURED = 8
FIGURES = ("reconstructions", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
           "ssim_histogram", "samples", "strip", "curves", "curves_top", "curves_bottom")
PAIRS = 200


@dataclass(frozen=True)
class Judged:
    """What was judged, for those who draw more figures of it."""

    metrics: dict
    """As in metrics.json."""
    images: ImageSet
    """Of the split."""
    reconstructions: torch.Tensor
    """uint8 `[n, channels, height, width]`."""
    code_maps: codes.CodeMaps
    samples: torch.Tensor | None
    """uint8 `[samples, channels, height, width]`, where there are priors for them."""


def evaluate(settings: EvaluateSettings) -> Judged:
    """Judge a VQ-VAE, and its priors where given, on one split; write metrics.json and figures to settings.out.

    Raises: UserError if models and data do not fit each other, or test images were trained on.
    """
    checkpoints.check_folder(settings.out, "--out")
    device = distributed.pick_device()
    vqvae, priors = samples.load_models(settings.vqvae, settings.top, settings.bottom, device)
    images = _images(vqvae, settings)
    split = images.splits[settings.split]
    if len(split) == 0:
        raise UserError(f"--split {settings.split}: expected at least 1 image, found 0 in {images.folder}. "
                        "Choose another split, or extract with a larger share for it.")
    folders = _folders(settings)
    configs = [checkpoints.load_weights(folder / checkpoints.WEIGHTS)[1] for folder in folders.values()]
    seen = seen_in_training(configs, split)
    if settings.split == "test" and seen["images"]:
        raise UserError(f"--split test: expected images that {' and '.join(folders)} were not trained on, found "
                        f"{seen['images']} of {len(split)} that they were. Give the --data they were trained with.")
    maps, made = _reconstruct(vqvae, split, settings.batch)
    figures = metrics.image_figures(split.bytes(), made)
    report = {
        "schema": SCHEMA, "data": vqvae.config["data"] | {"folder": images.folder.name}, "split": settings.split,
        "subjects": len(set(split.subjects)), "subjects_known": images.subjects_known, "images": len(split),
        "seen_in_training": seen,
        "reconstruction": {area: {name: metrics.summarise(values, split.subjects, settings.seed)
                                  for name, values in one.items()} for area, one in figures.items()},
        "codes": {level: {name: _finite(value) for name, value in one.items()} for level, one in
                  codes.code_figures(vqvae.model, split, maps, settings.batch, settings.seed).items()},
        "raw_bits_per_pixel": metrics.raw_bits_per_pixel(
            [vqvae.model.settings.codebook_size] * len(maps.levels),
            [tuple(one.shape[1:]) for one in maps.levels.values()], math.prod(split.pixels.shape[2:])),
        "ms_ssim_weights": metrics.ms_ssim_scales(min(split.pixels.shape[2:])),
        "priors": _judge_priors(vqvae, priors, images, maps, settings),
        "samples": None, "seed": settings.seed, "vqvae_hash": vqvae.hash, "versions": checkpoints.versions()}
    drawn = None
    if settings.samples and set(priors) == set(vqvae.model.levels):
        drawn = _draw(vqvae, priors, settings)
        report["samples"] = judge_samples(drawn, split, settings.seed)
    judged = Judged(report, split, made, maps, drawn)
    for name in FIGURES:  # of an earlier report in this folder, which may have had models that this one lacks
        (settings.out / f"{name}.png").unlink(missing_ok=True)
    _draw_figures(judged, figures, vqvae, settings.out)
    for name, folder in folders.items():
        if log := read_log(folder):
            plots.curves(log, settings.out / f"curves{'' if name == '--vqvae' else name.replace('--', '_')}.png")
    checkpoints.write_json(settings.out / "metrics.json", report)
    return judged


def seen_in_training(configs: Iterable[dict], split: ImageSet) -> dict[str, int]:
    """Return how many images and subjects of a split the models of these configs were trained on, by their hashes."""
    images, subjects = (set().union(*(one[key] for one in configs)) for key in ("training_images", "training_subjects"))
    return {"images": sum(pixel_hash(picture) in images for picture in split.pixels),
            "subjects": sum(subject_hash(subject) in subjects for subject in set(split.subjects))}


def judge_samples(drawn: torch.Tensor, real: ImageSet, seed: int) -> dict:
    """Return how varied samples are, beside how varied real images of different subjects are.

    Pairwise MS-SSIM near 1 means that all images are alike; samples should be about as far apart as real ones.
    """
    generator = np.random.default_rng(seed)
    pairs = list(itertools.combinations(range(len(drawn)), 2))
    others = [(i, j) for i, j in generator.integers(0, len(real), (4 * PAIRS, 2))
              if real.subjects[i] != real.subjects[j]]
    return {"count": len(drawn), "seed": seed,
            "pairwise_ms_ssim": _mean_ms_ssim(drawn, generator.permutation(pairs)[:PAIRS]),
            "real_pairwise_ms_ssim": _mean_ms_ssim(real.bytes(), np.array(others[:PAIRS]))}


def read_log(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's log.csv, none if there is no log."""
    path = folder / "log.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def headline(report: dict) -> list[tuple[str, str]]:
    """Return the figures of a metrics.json that come first, as (what, value with its unit)."""
    seen, full, brain = report["seen_in_training"], *(report["reconstruction"][area] for area in ("full", "brain"))
    rows = [("images", f"{report['images']} of {report['subjects']} subjects, split {report['split']}; "
                       f"{seen['images']} of them and {seen['subjects']} subjects seen in training")]
    for area, one in (("full picture", full), ("inside the brain", brain)):
        ssim = one["ssim"]
        rows.append((f"SSIM, {area}", f"{_text(ssim['mean'], 4)} (95 % interval {_text(ssim['ci_low'], 4)} to "
                                      f"{_text(ssim['ci_high'], 4)}), minimum {_text(ssim['min'], 4)}"))
    rows.append(("PSNR, full picture", f"{_text(full['psnr']['mean'], 2)} dB"))
    for level, one in report["codes"].items():
        rows.append((f"{level} codes", f"{one['used']} of {one['size']} used, perplexity "
                                       f"{_text(one['perplexity'], 1)}, shuffle drop {_text(one['shuffle_drop'], 3)}"))
    priors = report["priors"] or {}
    for level in (level for level in report["codes"] if level in priors):
        one = priors[level]
        rows.append((f"{level} prior", f"{_text(one['bits_per_code'], 3)} bits per code; counting neighbours "
                                       f"{_text(one['context_model_bits'], 3)}"))
    if "bits_per_pixel" in priors:
        rows.append(("all codes", f"{_text(priors['bits_per_pixel'], 4)} bits per pixel; stored as they are "
                                  f"{_text(report['raw_bits_per_pixel'], 4)}"))
    if report["samples"]:
        one = report["samples"]
        rows.append(("variety of samples", f"MS-SSIM of pairs {_text(one['pairwise_ms_ssim'], 3)}; real pairs "
                                           f"{_text(one['real_pairwise_ms_ssim'], 3)}"))
    return rows


def prior_bits(report: dict) -> list[tuple[str, ...]]:
    """Return rows (level, prior, three models that only count) in bits per code, a blind guess last."""
    names = ("bits_per_code", "context_model_bits", "position_histogram_bits", "histogram_bits")
    return [(level, *(_text(one[name], 3) for name in names), _text(math.log2(report["codes"][level]["size"]), 3))
            for level, one in (report["priors"] or {}).items() if level in report["codes"]]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.000


def _finite(value: float) -> float | None:
    """JSON has no NaN: where a figure is not defined, such as SSIM of images smaller than its window, None stands."""
    return value if math.isfinite(value) else None


def _folders(settings: EvaluateSettings) -> dict[str, Path]:
    """The folder of each model that is given, by its flag."""
    given = {"--vqvae": settings.vqvae, "--top": settings.top, "--bottom": settings.bottom}
    return {flag: checkpoints.find_run(name, flag) for flag, name in given.items() if name}


def _images(vqvae: TrainedVqvae, settings: EvaluateSettings) -> Images:
    """The split that is judged, and for the reference models the training images, read as the VQ-VAE read them."""
    trained = from_dict(VqvaeSettings, vqvae.config["settings"])
    trained = dataclasses.replace(trained, data=settings.data or trained.data)
    images = load_images(trained, tuple({settings.split, "train"} if settings.top else {settings.split}))
    expected = tuple(vqvae.config["image_shape"])
    if len(images.splits[settings.split]) and images.shape != expected:
        raise UserError(f"--data {images.folder}: expected images of shape {expected} as --vqvae {settings.vqvae} "
                        f"was trained on, found {images.shape}. Give the data that it was trained with.")
    return images


@torch.no_grad()
def _reconstruct(vqvae: TrainedVqvae, split: ImageSet, batch: int) -> tuple[codes.CodeMaps, torch.Tensor]:
    """Codes of a split, and the images that the codes alone give back: what a user of the codes would see."""
    device = next(vqvae.model.parameters()).device
    with tqdm(total=len(split), desc="encoding", unit="image", leave=False) as bar:
        maps = codes.extract(vqvae.model, split, batch, bar.update)
    made = [to_bytes(vqvae.model.decode({level: one[items].to(device) for level, one in maps.levels.items()}))
            for items in torch.arange(len(split)).split(batch)]
    return maps, torch.cat(made)


@torch.no_grad()
def _judge_priors(vqvae: TrainedVqvae, priors: dict[str, Prior], images: Images, maps: codes.CodeMaps,
                  settings: EvaluateSettings) -> dict | None:
    """Bits per code of each prior on the split, beside the reference models fitted on the training images' codes."""
    if not priors:
        return None
    stored = codes.CodeMaps.load(vqvae.folder / "codes" / "train.npz", vqvae.hash, images.describe()["data_hash"])
    train = stored or (codes.extract(vqvae.model, images.splits["train"], settings.batch)
                       if len(images.splits["train"]) else None)
    size, report = vqvae.model.settings.codebook_size, {}
    for level, prior in priors.items():
        nats = 0.0
        device = prior.bias.device
        for items in tqdm(torch.arange(len(maps.names)).split(settings.batch), desc=f"{level} prior", unit="batch",
                          leave=False):
            wanted, top = maps.levels[level][items].to(device), maps.levels["top"][items].to(device)
            logits = prior(wanted, top if level == "bottom" else None)
            nats += torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum").item()
        references = metrics.context_model_bits(train.levels[level].numpy(), maps.levels[level].numpy(),
                                                size) if train else {}
        report[level] = {"bits_per_code": metrics.bits_per_code(nats, maps.levels[level].numel()),
                         "context_model_bits": references.get("context"),
                         "histogram_bits": references.get("histogram"),
                         "position_histogram_bits": references.get("position_histogram")}
    if set(priors) == set(vqvae.model.levels):
        cells = {level: one[0].numel() for level, one in maps.levels.items()}
        report["bits_per_pixel"] = metrics.bits_per_pixel(
            report["top"]["bits_per_code"], report.get("bottom", {}).get("bits_per_code", 0.0), cells["top"],
            cells.get("bottom", 0), math.prod(images.splits[settings.split].pixels.shape[2:]))
    return report


def _draw(vqvae: TrainedVqvae, priors: dict[str, Prior], settings: EvaluateSettings) -> torch.Tensor:
    tastes = dict.fromkeys(priors, samples.Taste())
    with tqdm(total=sum(math.prod(one.shape) for one in priors.values()), desc="sampling", unit="code",
              leave=False) as bar:
        images, _ = samples.draw_images(vqvae.model, priors, list(range(settings.samples)), settings.seed, tastes,
                                        on_code=bar.update)
    return to_bytes(images)


def _mean_ms_ssim(images: torch.Tensor, pairs: np.ndarray) -> float | None:
    if len(pairs) == 0:
        return None
    first, second = (images[pairs[:, i]] for i in (0, 1))
    return _finite(metrics.image_figures(first, second)["full"]["ms_ssim"].mean().item())


def _draw_figures(judged: Judged, figures: dict, vqvae: TrainedVqvae, out: Path) -> None:
    """Pictures of even choice, of the worst and the best images, of codes and samples."""
    originals, made = judged.images.bytes(), judged.reconstructions
    even = np.linspace(0, len(originals) - 1, min(PICTURED, len(originals))).round().astype(int)
    plots.save_picture(plots.reconstruction_rows(originals[even], made[even]), out / "reconstructions.png")
    ssim = figures["full"]["ssim"]
    order = ssim.argsort().numpy()
    for name, chosen in (("worst", order[:PICTURED]), ("best", order[::-1][:PICTURED].copy())):
        captions = [f"SSIM {ssim[i]:.3f}" for i in chosen]
        plots.save_picture(plots.reconstruction_rows(originals[chosen], made[chosen], captions=captions),
                           out / f"{name}.png")
    size = vqvae.model.settings.codebook_size
    for level, maps in judged.code_maps.levels.items():
        plots.save_picture(plots.code_map_picture(maps[even], size), out / f"code_images_{level}.png")
    plots.code_histogram({level: metrics.code_counts(maps, size) for level, maps in judged.code_maps.levels.items()},
                         out / "code_histogram.png")
    plots.metric_histograms(figures, out / "ssim_histogram.png")
    rows = [("real", originals[even]), ("reconstruction", made[even])]
    if judged.samples is not None:
        grid = plots.image_grid(plots.enlarged(judged.samples), round(len(judged.samples)**0.5))
        plots.save_picture(grid, out / "samples.png")
        rows.append(("sample", judged.samples[:PICTURED]))
    plots.save_picture(plots.strip(rows), out / "strip.png")
