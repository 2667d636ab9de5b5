"""A run's folder -> metrics.json and figures, for evaluate.py and the notebook alike.

What each figure means is in `metrics.py`; here the figures of one split are gathered, and pictures drawn. Those of
samples are gathered in `sample_report.py`. Nothing is reported of images that a model has seen unless it says so
(`leaks.py`).
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vqvae2.common import distributed, files, statistics
from vqvae2.common.errors import UserError
from vqvae2.evaluation import anomalies, features, leaks, lesions, likelihood, map_files, rates, samples
from vqvae2.evaluation import priors as prior_figures
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import Images, ImageSet, load_images
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import coding, context_model, similarity
from vqvae2.models import encoding
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.plots import charts, curves, pictures
from vqvae2.priors.pixel_cnn import Prior
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.sampling import sampler
from vqvae2.settings.parsing import from_dict

SCHEMA, METRICS = 1, "metrics.json"
PICTURED, PICTURED_LESIONS, MOST_SAMPLES = 8, 3, 64
FIGURES = ("reconstructions", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
           "ssim_histogram", "samples", "strip", "closest", "likelihood", "lesions", "rates", "curves", "curves_top",
           "curves_bottom")


@dataclass(frozen=True)
class Judged:
    """What was judged, for those who draw more figures of it."""

    metrics: dict
    """As in metrics.json."""
    images: ImageSet
    """Of the split."""
    reconstructions: torch.Tensor
    """uint8 `[n, channels, height, width]`."""
    code_maps: CodeMaps
    samples: torch.Tensor | None
    """uint8 `[samples, channels, height, width]`, where there are any."""


def evaluate(settings: EvaluateSettings) -> Judged:
    """Judge a VQ-VAE, and its priors where given, on one split; write metrics.json and figures to settings.out.

    Raises: UserError if models and data do not fit each other, or test images were trained on.
    """
    check_out(settings.out)
    vqvae, priors = _models(settings)
    all_priors = priors if set(priors) == set(vqvae.model.levels) else {}
    images, seen, warnings = _images(vqvae, settings)
    extractor = _extractor(bool(settings.sampled or (all_priors and settings.samples)), images, warnings, settings)
    split = images.splits[settings.split]
    maps, made = _reconstruct(vqvae, split, settings.batch)
    bits = _code_bits(priors, maps, split, settings.batch, split.facts)
    figures = similarity.image_figures(split.bytes(), made)
    training_codes = _training_codes(vqvae, images, settings)
    references = _references(vqvae, training_codes, maps.levels)
    report = {
        "schema": SCHEMA,
        "data": vqvae.config["data"] | {"folder": images.folder.name,
                                        "shared_subjects": _shared_subjects(images, vqvae)}, "split": settings.split,
        "subjects": len(set(split.subjects)), "subjects_known": images.subjects_known, "images": len(split),
        "seen_in_training": seen, "warnings": warnings,
        **_image_and_code_figures(vqvae, split, maps, figures, settings),
        "priors": _judge_priors(vqvae, priors, bits, maps, split, references, settings), "samples": None,
        "rates": None, "likelihood": None, "lesions": None, "seed": settings.seed, "vqvae_hash": vqvae.hash,
        "versions": weights.versions()}
    drawn = None if extractor is None else _samples(vqvae, all_priors, images, settings)
    (settings.out / METRICS).unlink(missing_ok=True)  # from here on it is no longer true of the pictures beside it
    before = {path: run_state.file_number(path) for path in (settings.out / f"{name}.png" for name in FIGURES)}
    if drawn is not None:
        report["samples"] = _judge_samples(drawn, made, images, training_codes, vqvae, warnings, settings, extractor)
    judged = Judged(report, split, made, maps, drawn)
    _draw_figures(judged, figures, vqvae, settings)
    if settings.rates:
        report["rates"] = _rates(vqvae, all_priors, made, maps, split, training_codes, settings)
    if all_priors:
        map_files.draw_overview(settings.out / "likelihood.png", split, bits, _evenly(len(split)))
    map_files.clear(settings.out / "likelihood")
    if settings.likelihood:
        map_files.write(settings.out / "likelihood", split, bits)
        report["likelihood"] = {"folder": "likelihood", "levels": list(bits), "unit": "bits per code"}
    if settings.lesions:
        report["lesions"] = _find_lesions(vqvae, priors, split, settings)
    for path, number in before.items():  # of an earlier report, which may have had models that this one lacks
        if number is not None and run_state.file_number(path) == number:
            path.unlink()
    files.write_json(settings.out / METRICS, report)
    return judged


def check_out(out: Path) -> None:
    """Raise UserError unless `out` is a folder for a report: nothing else in it is to be written over."""
    files.check_folder(out, "--out")
    if (out / weights.WEIGHTS).exists():
        raise UserError(f"--out {out}: expected a folder for figures, found a model in it. Choose another --out.")
    try:
        there = json.loads((out / METRICS).read_text(encoding="utf-8")) if (out / METRICS).exists() else {"split": ""}
    except (OSError, ValueError):
        there = {}
    if "split" not in there:
        raise UserError(f"--out {out}: expected no {METRICS} but that of evaluate.py, found another one. Choose "
                        "another --out.")


def _models(settings: EvaluateSettings) -> tuple[TrainedVqvae, dict[str, Prior]]:
    """The VQ-VAE and the priors that are given, which are enough for what is asked for."""
    vqvae, priors = sampler.load_models(settings.vqvae, settings.top, settings.bottom, distributed.pick_device())
    missing = [level for level in vqvae.model.levels if level not in priors]
    needing = ["likelihood", "lesions", *(() if settings.sampled else ("probe",))]
    for name in needing if missing else ():
        if getattr(settings, name):
            raise UserError(f"--{name}: expected a prior for each level of --vqvae {settings.vqvae}, found none for "
                            f"{' and '.join(missing)}. Give --{missing[0]}.")
    return vqvae, priors


def _finite(value: float) -> float | None:
    """JSON has no NaN: where a figure is not defined, such as SSIM of images smaller than its window, None stands."""
    return value if math.isfinite(value) else None


def _folders(settings: EvaluateSettings) -> dict[str, Path]:
    """The folder of each model that is given, by its flag."""
    given = {"--vqvae": settings.vqvae, "--top": settings.top, "--bottom": settings.bottom}
    return {flag: weights.find_run(name, flag) for flag, name in given.items() if name}


def _images(vqvae: TrainedVqvae, settings: EvaluateSettings) -> tuple[Images, dict[str, int], list[str]]:
    """The split that is judged, and the training images where something is compared with them, read as the VQ-VAE read
    them; how much of the split was trained on; and warnings."""
    trained = from_dict(DataSettings, vqvae.config["settings"])
    trained = dataclasses.replace(trained, data=settings.data or trained.data)
    needs_training = settings.top or settings.sampled or settings.rates
    images = load_images(trained, tuple({settings.split, "train"} if needs_training else {settings.split}))
    split, expected = images.splits[settings.split], tuple(vqvae.config["image_shape"])
    if len(split) == 0:
        raise UserError(f"--split {settings.split}: expected at least 1 image, found 0 in {images.folder}. "
                        "Choose another split, or extract with a larger share for it.")
    if images.shape != expected:
        raise UserError(f"--data {images.folder}: expected images of shape {expected} as --vqvae {settings.vqvae} "
                        f"was trained on, found {images.shape}. Give the data that it was trained with.")
    configs = _configs(settings)
    seen = leaks.seen_in_training(configs.values(), split)
    return images, seen, [*leaks.shared(_shared_subjects(images, vqvae)),
                          *leaks.check(seen, split, settings.split, configs, allowed=trained.allow_leak)]


def _shared_subjects(images: Images, vqvae: TrainedVqvae) -> int:
    """Subjects in more than one split, of the data that are judged on or were trained with."""
    return max(images.shared_subjects, vqvae.config["data"].get("shared_subjects", 0))


def _configs(settings: EvaluateSettings) -> dict[str, dict]:
    """What each model that is given was trained with and on, by its flag."""
    return {flag: weights.load_weights(folder / weights.WEIGHTS)[1] for flag, folder in
            _folders(settings).items()}


def _reconstruct(vqvae: TrainedVqvae, split: ImageSet, batch: int) -> tuple[CodeMaps, torch.Tensor]:
    with tqdm(total=len(split), desc="encoding", unit="image", leave=False) as bar:
        return encoding.reconstruct(vqvae.model, split, batch, bar.update)


def _image_and_code_figures(vqvae: TrainedVqvae, split: ImageSet, maps: CodeMaps, figures: dict,
                            settings: EvaluateSettings) -> dict:
    """What metrics.json says of the VQ-VAE alone."""
    shape = split.pixels.shape[2:]
    of_codes = encoding.code_figures(vqvae.model, split, maps, settings.batch, settings.seed)
    return {"reconstruction": {area: {name: statistics.summarise(values, split.subjects, settings.seed)
                                      for name, values in one.items()} for area, one in figures.items()},
            "codes": {level: {name: _finite(value) for name, value in one.items()} for level, one in of_codes.items()},
            "raw_bits_per_pixel": _raw_bits_per_pixel(vqvae, maps.levels, math.prod(shape)),
            "ms_ssim_weights": similarity.ms_ssim_scales(min(shape))}


def _raw_bits_per_pixel(vqvae: TrainedVqvae, levels: dict[str, torch.Tensor], pixels: int) -> float:
    return coding.raw_bits_per_pixel([vqvae.model.settings.codebook_size] * len(levels),
                                      [tuple(one.shape[1:]) for one in levels.values()], pixels)


def _code_bits(priors: dict[str, Prior], maps: CodeMaps, split: ImageSet, batch: int,
               facts: Sequence[dict[str, str]]) -> dict[str, torch.Tensor]:
    """What each code of the split costs, given these facts of its image."""
    with tqdm(total=len(priors) * len(split), desc="priors", unit="image", leave=False) as bar:
        return likelihood.code_bits(priors, maps.levels, facts, batch, bar.update)


def _training_codes(vqvae: TrainedVqvae, images: Images, settings: EvaluateSettings) -> CodeMaps | None:
    """Codes of the training images, where something is to be compared with them and there are any."""
    train = images.splits.get("train")
    if train is None or len(train) == 0 or settings.split == "train":  # then they would be judged by themselves
        return None
    stored = CodeMaps.load(vqvae.folder / "codes" / "train.npz", vqvae.hash, images.describe()["data_hash"])
    return stored or encoding.extract(vqvae.model, train, settings.batch)


def _references(vqvae: TrainedVqvae, train: CodeMaps | None,
                levels: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """For each level bits per code of the models that only count, fitted on the training images' codes, if any."""
    size = vqvae.model.settings.codebook_size
    return {} if train is None else {level: context_model.context_model_bits(one.numpy(), levels[level].numpy(), size)
                                     for level, one in train.levels.items()}


def _rates(vqvae: TrainedVqvae, priors: dict[str, Prior], made: torch.Tensor, maps: CodeMaps, split: ImageSet,
           training_codes: CodeMaps | None, settings: EvaluateSettings) -> dict:
    """Rate and distortion beside common codecs, and rates.png. All is of the same images; the priors are told nothing
    of them, as the codecs are not."""
    pixels, items = math.prod(split.pixels.shape[2:]), rates.chosen_items(len(split))
    chosen = ImageSet(tuple(split.files[item] for item in items), split.pixels[items])
    levels = {level: one[items] for level, one in maps.levels.items()}
    counted = _references(vqvae, training_codes, levels)
    context = sum(counted[level]["context"] * one[0].numel() for level, one in levels.items()) / pixels \
        if counted else None
    bits = _code_bits(priors, CodeMaps(chosen.names, levels), chosen, settings.batch, [{}] * len(chosen))
    prior = sum(one.double().sum((1, 2)) for one in bits.values()) / pixels if bits else None
    found = rates.measure(chosen, made[items], raw=_raw_bits_per_pixel(vqvae, levels, pixels), context=context,
                          prior=prior, seed=settings.seed)
    rates.picture(found, settings.out / "rates.png")
    return found


def _judge_priors(vqvae: TrainedVqvae, priors: dict[str, Prior], bits: dict[str, torch.Tensor], maps: CodeMaps,
                  split: ImageSet, references: dict, settings: EvaluateSettings) -> dict | None:
    told = {level: prior for level, prior in priors.items() if prior.columns}
    untold = _code_bits(told, maps, split, settings.batch, [{}] * len(split))
    return prior_figures.judge(priors, bits, vqvae.model.levels, split, references, settings.seed, untold)


def _extractor(there_are_samples: bool, images: Images, warnings: list[str],
               settings: EvaluateSettings) -> features.Extractor | None:
    """The network in whose features samples are judged; None, with a warning, where they cannot be."""
    if not there_are_samples:
        return None
    if settings.split == "train":
        warnings.append("samples are not judged: the train split would be compared with itself. Choose another split.")
        return None
    found = features.load_extractor(settings.features, distributed.pick_device())
    if found.is_own and min(images.shape[1:]) < features.SMALLEST:
        warnings.append(f"samples are not judged: the feature network takes images of {features.SMALLEST} pixels or "
                        f"more, these have {images.shape[1]} by {images.shape[2]}. Give --features another one.")
        return None
    return found


def _samples(vqvae: TrainedVqvae, priors: dict[str, Prior], images: Images,
             settings: EvaluateSettings) -> torch.Tensor:
    """The samples that are to be judged: given, or drawn."""
    if settings.sampled:
        return samples.read(settings.sampled, images.shape)
    return samples.draw(settings, vqvae, priors, images.splits["train"])


def _judge_samples(drawn: torch.Tensor, made: torch.Tensor, images: Images, training_codes: CodeMaps | None,
                   vqvae: TrainedVqvae, warnings: list[str], settings: EvaluateSettings,
                   extractor: features.Extractor) -> dict:
    """The samples' part of metrics.json. Warnings are added where the train split is not what was trained on, and
    where the feature network was trained on what it is to judge."""
    train, split = images.splits["train"], images.splits[settings.split]
    trained = leaks.trained_on(_configs(settings).values(), train)
    if len(trained) < len(train):
        warnings.append(f"{len(train) - len(trained)} of {len(train)} images of the train split were not trained on: "
                        + ("copies are looked for among the others alone." if len(trained) else
                           "no copies are looked for."))
    if extractor.config:
        seen = leaks.seen_in_training([extractor.config], split)
        warnings += leaks.check(seen, split, settings.split, ["--features"],
                                allowed=vqvae.config["settings"].get("allow_leak", False))
    return samples.judge(drawn, made, split, train, trained, training_codes, vqvae, settings, extractor)


def _find_lesions(vqvae: TrainedVqvae, priors: dict[str, Prior], split: ImageSet,
                  settings: EvaluateSettings) -> dict | None:
    """Figures of the scores that look for synthetic lesions, and lesions.png; None where no image has place for one."""
    scored = {kind: anomalies.score(vqvae.model, priors, split, kind, settings.batch, settings.seed)
              for kind in lesions.KINDS}
    scored = {kind: one for kind, one in scored.items() if one is not None}
    if not scored:
        return None
    pictures.save_picture(anomalies.picture(scored, PICTURED_LESIONS), settings.out / "lesions.png")
    return {"seed": settings.seed, "score": anomalies.LIKELIHOOD, **anomalies.judge(scored, settings.seed)}


def _evenly(images: int) -> np.ndarray:
    """Numbers of the images that are pictured."""
    return np.linspace(0, images - 1, min(PICTURED, images)).round().astype(int)


def _draw_figures(judged: Judged, figures: dict, vqvae: TrainedVqvae, settings: EvaluateSettings) -> None:
    """Pictures of even choice, of the worst and the best images, of codes and samples; curves of the trainings."""
    out, split = settings.out, f"{settings.split} images"
    originals, made = judged.images.bytes(), judged.reconstructions
    even = _evenly(len(originals))
    ssim = figures["full"]["ssim"]
    order = ssim.argsort().numpy()
    for name, title, chosen in (("reconstructions", f"Evenly chosen {split}", even),
                                ("worst", f"Lowest SSIM of {len(order)} {split}", order[:PICTURED]),
                                ("best", f"Highest SSIM of {len(order)} {split}", order[::-1][:PICTURED].copy())):
        picture = pictures.reconstruction_rows(originals[chosen], made[chosen], title=f"{title}; difference on images 0…1",
                                            captions=[f"SSIM {ssim[i]:.3f}" for i in chosen])
        pictures.save_picture(picture, out / f"{name}.png")
    size = vqvae.model.settings.codebook_size
    counts = {}
    for level, maps in judged.code_maps.levels.items():
        title = f"{level.capitalize()} codes of evenly chosen {split}: a colour for each of {size}"
        pictures.save_picture(pictures.code_map_picture(maps[even], size, title=title), out / f"code_images_{level}.png")
        counts[level] = coding.code_counts(maps, size)
    charts.code_histogram(counts, out / "code_histogram.png")
    charts.metric_histograms(figures, out / "ssim_histogram.png")
    rows = [("real", originals[even]), ("reconstruction", made[even])]
    if judged.samples is not None:
        shown = judged.samples[:MOST_SAMPLES]
        title = f"{len(shown)} samples, the first of seed {settings.seed}" if not settings.sampled else "Samples"
        grid = pictures.image_grid(pictures.enlarged(shown), round(len(shown)**0.5), title=title)
        pictures.save_picture(grid, out / "samples.png")
        rows.append(("sample", shown[:PICTURED]))
    pictures.save_picture(pictures.strip(rows), out / "strip.png")
    for name, folder in _folders(settings).items():
        if log := files.read_rows(folder / "log.csv"):
            curves.curves(log, out / f"curves{'' if name == '--vqvae' else name.replace('--', '_')}.png",
                         title=f"Training of {folder.name}")
