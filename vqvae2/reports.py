"""A run's folder -> metrics.json and figures, for evaluate.py and the notebook alike.

What each figure means is in `metrics.py`; here the figures of one split are gathered, and pictures drawn.
Nothing is reported about images that a model has seen unless it says so: `seen_in_training` counts them, and
`--split test` is refused where there are any.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vqvae2 import (
    anomalies,
    checkpoints,
    codes,
    distributed,
    lesions,
    likelihood,
    map_files,
    metrics,
    plots,
    prior_figures,
    samples,
)
from vqvae2.autoencoder import TrainedVqvae
from vqvae2.config import VqvaeSettings, from_dict
from vqvae2.errors import UserError
from vqvae2.evaluate_config import EvaluateSettings
from vqvae2.images import Images, ImageSet, load_images, to_bytes
from vqvae2.leaks import check, seen_in_training
from vqvae2.prior import Prior

SCHEMA = 1
PICTURED, PICTURED_LESIONS = 8, 3
FIGURES = ("reconstructions", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
           "ssim_histogram", "samples", "strip", "likelihood", "lesions", "curves", "curves_top", "curves_bottom")
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
    vqvae, priors = samples.load_models(settings.vqvae, settings.top, settings.bottom, distributed.pick_device())
    missing = [level for level in vqvae.model.levels if level not in priors]
    if missing and (settings.likelihood or settings.lesions):
        raise UserError(f"--{'likelihood' if settings.likelihood else 'lesions'}: expected a prior for each level of "
                        f"--vqvae {settings.vqvae}, found none for {' and '.join(missing)}. Give --{missing[0]}.")
    images, seen, warnings = _images(vqvae, settings)
    split = images.splits[settings.split]
    maps, made = _reconstruct(vqvae, split, settings.batch)
    bits = _code_bits(priors, maps, split, settings.batch, split.facts)
    told = {level: prior for level, prior in priors.items() if prior.columns}
    figures = metrics.image_figures(split.bytes(), made)
    report = {
        "schema": SCHEMA, "data": vqvae.config["data"] | {"folder": images.folder.name}, "split": settings.split,
        "subjects": len(set(split.subjects)), "subjects_known": images.subjects_known, "images": len(split),
        "seen_in_training": seen, "warnings": warnings, **_image_and_code_figures(vqvae, split, maps, figures, settings),
        "priors": prior_figures.judge(priors, bits, vqvae.model.levels, split,
                                      _references(vqvae, images, maps, priors, settings.batch), settings.seed,
                                      _code_bits(told, maps, split, settings.batch, [{}] * len(split))),
        "samples": None, "likelihood": None, "lesions": None, "seed": settings.seed, "vqvae_hash": vqvae.hash,
        "versions": checkpoints.versions()}
    drawn = _draw(vqvae, priors, settings) if settings.samples and not missing else None
    if drawn is not None:
        report["samples"] = judge_samples(drawn, split, settings.seed)
    for name in FIGURES:  # of an earlier report in this folder, which may have had models that this one lacks
        (settings.out / f"{name}.png").unlink(missing_ok=True)
    judged = Judged(report, split, made, maps, drawn)
    _draw_figures(judged, figures, vqvae, settings)
    if not missing:
        map_files.draw_overview(settings.out / "likelihood.png", split, bits, _evenly(len(split)))
    map_files.clear(settings.out / "likelihood")
    if settings.likelihood:
        map_files.write(settings.out / "likelihood", split, bits)
        report["likelihood"] = {"folder": "likelihood", "levels": list(bits), "unit": "bits per code"}
    if settings.lesions:
        report["lesions"] = _find_lesions(vqvae, priors, split, settings)
    checkpoints.write_json(settings.out / "metrics.json", report)
    return judged


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


def _finite(value: float) -> float | None:
    """JSON has no NaN: where a figure is not defined, such as SSIM of images smaller than its window, None stands."""
    return value if math.isfinite(value) else None


def _folders(settings: EvaluateSettings) -> dict[str, Path]:
    """The folder of each model that is given, by its flag."""
    given = {"--vqvae": settings.vqvae, "--top": settings.top, "--bottom": settings.bottom}
    return {flag: checkpoints.find_run(name, flag) for flag, name in given.items() if name}


def _images(vqvae: TrainedVqvae, settings: EvaluateSettings) -> tuple[Images, dict[str, int], list[str]]:
    """The split that is judged, and for the reference models the training images, read as the VQ-VAE read them; and
    how much of the split was trained on."""
    trained = from_dict(VqvaeSettings, vqvae.config["settings"])
    trained = dataclasses.replace(trained, data=settings.data or trained.data)
    images = load_images(trained, tuple({settings.split, "train"} if settings.top else {settings.split}))
    split, expected = images.splits[settings.split], tuple(vqvae.config["image_shape"])
    if len(split) == 0:
        raise UserError(f"--split {settings.split}: expected at least 1 image, found 0 in {images.folder}. "
                        "Choose another split, or extract with a larger share for it.")
    if images.shape != expected:
        raise UserError(f"--data {images.folder}: expected images of shape {expected} as --vqvae {settings.vqvae} "
                        f"was trained on, found {images.shape}. Give the data that it was trained with.")
    folders = _folders(settings)
    seen = seen_in_training([checkpoints.load_weights(folder / checkpoints.WEIGHTS)[1] for folder in folders.values()],
                            split)
    return images, seen, check(seen, split, settings.split, folders)


def _reconstruct(vqvae: TrainedVqvae, split: ImageSet, batch: int) -> tuple[codes.CodeMaps, torch.Tensor]:
    with tqdm(total=len(split), desc="encoding", unit="image", leave=False) as bar:
        return codes.reconstruct(vqvae.model, split, batch, bar.update)


def _image_and_code_figures(vqvae: TrainedVqvae, split: ImageSet, maps: codes.CodeMaps, figures: dict,
                            settings: EvaluateSettings) -> dict:
    """What metrics.json says of the VQ-VAE alone."""
    size, shape = vqvae.model.settings.codebook_size, split.pixels.shape[2:]
    of_codes = codes.code_figures(vqvae.model, split, maps, settings.batch, settings.seed)
    return {"reconstruction": {area: {name: metrics.summarise(values, split.subjects, settings.seed)
                                      for name, values in one.items()} for area, one in figures.items()},
            "codes": {level: {name: _finite(value) for name, value in one.items()} for level, one in of_codes.items()},
            "raw_bits_per_pixel": metrics.raw_bits_per_pixel(
                [size] * len(maps.levels), [tuple(one.shape[1:]) for one in maps.levels.values()], math.prod(shape)),
            "ms_ssim_weights": metrics.ms_ssim_scales(min(shape))}


def _code_bits(priors: dict[str, Prior], maps: codes.CodeMaps, split: ImageSet, batch: int,
               facts: Sequence[dict[str, str]]) -> dict[str, torch.Tensor]:
    """What each code of the split costs, given these facts of its image."""
    with tqdm(total=len(priors) * len(split), desc="priors", unit="image", leave=False) as bar:
        return likelihood.code_bits(priors, maps.levels, facts, batch, bar.update)


def _references(vqvae: TrainedVqvae, images: Images, maps: codes.CodeMaps, levels: Collection[str],
                batch: int) -> dict[str, dict[str, float]]:
    """Bits per code of the models that only count, fitted on the training images' codes; none for no levels."""
    if not levels:
        return {}
    train = codes.CodeMaps.load(vqvae.folder / "codes" / "train.npz", vqvae.hash, images.describe()["data_hash"])
    if train is None:
        if len(images.splits["train"]) == 0:
            return {}
        train = codes.extract(vqvae.model, images.splits["train"], batch)
    size = vqvae.model.settings.codebook_size
    return {level: metrics.context_model_bits(train.levels[level].numpy(), maps.levels[level].numpy(), size)
            for level in levels}


def _find_lesions(vqvae: TrainedVqvae, priors: dict[str, Prior], split: ImageSet,
                  settings: EvaluateSettings) -> dict | None:
    """Figures of the scores that look for synthetic lesions, and lesions.png; None where no image has place for one."""
    scored = {kind: anomalies.score(vqvae.model, priors, split, kind, settings.batch, settings.seed)
              for kind in lesions.KINDS}
    scored = {kind: one for kind, one in scored.items() if one is not None}
    if not scored:
        return None
    plots.save_picture(anomalies.picture(scored, PICTURED_LESIONS), settings.out / "lesions.png")
    return {"seed": settings.seed, "score": anomalies.LIKELIHOOD, **anomalies.judge(scored, settings.seed)}


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


def _evenly(images: int) -> np.ndarray:
    """Numbers of the images that are pictured."""
    return np.linspace(0, images - 1, min(PICTURED, images)).round().astype(int)


def _draw_figures(judged: Judged, figures: dict, vqvae: TrainedVqvae, settings: EvaluateSettings) -> None:
    """Pictures of even choice, of the worst and the best images, of codes and samples; curves of the trainings."""
    out = settings.out
    originals, made = judged.images.bytes(), judged.reconstructions
    even = _evenly(len(originals))
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
    for name, folder in _folders(settings).items():
        if log := checkpoints.read_rows(folder / "log.csv"):
            plots.curves(log, out / f"curves{'' if name == '--vqvae' else name.replace('--', '_')}.png")
