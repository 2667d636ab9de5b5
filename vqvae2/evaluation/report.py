"""Models and a data set -> metrics.json and pictures of one split, for evaluate.py and the notebook alike.

JUDGES says who judges, and when. What a judge is given, and what it has to offer, is in `judge.py`. Nothing is reported
of images that a model has seen unless the report says so (`leaks.py`).
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from vqvae2.common import distributed, files
from vqvae2.common.errors import UserError
from vqvae2.common.statistics import evenly
from vqvae2.evaluation import features, leaks, surprise
from vqvae2.evaluation.copies import CopiesJudge
from vqvae2.evaluation.figures import PICTURED, CodesJudge, LikelihoodJudge, PriorsJudge, ReconstructionJudge
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.evaluation.lesions import LesionsJudge
from vqvae2.evaluation.probe import ProbeJudge
from vqvae2.evaluation.rates import RatesJudge
from vqvae2.evaluation.samples import SamplesJudge, draw, read
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import ImageSet, load_images
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import coding, similarity
from vqvae2.models import encoding
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.plots import charts, pictures
from vqvae2.priors.base import Prior
from vqvae2.runs import weights
from vqvae2.sampling import sampler
from vqvae2.settings.parsing import from_dict

SCHEMA, METRICS = 1, "metrics.json"
PICTURES = ("reconstructions", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
            "ssim_histogram", "samples", "strip", "closest", "likelihood", "lesions", "rates", "curves", "curves_top",
            "curves_bottom")
JUDGES: tuple[tuple[Judge, Callable[[Evaluation], object]], ...] = (
    (ReconstructionJudge(), lambda evaluation: True),
    (CodesJudge(), lambda evaluation: True),
    (PriorsJudge(), lambda evaluation: evaluation.priors),
    (SamplesJudge(), lambda evaluation: evaluation.samples is not None),
    (CopiesJudge(), lambda evaluation: evaluation.samples is not None and len(evaluation.trained)),
    (ProbeJudge(), lambda evaluation: evaluation.samples is not None and evaluation.settings.probe),
    (RatesJudge(), lambda evaluation: evaluation.settings.rates),
    (LikelihoodJudge(), lambda evaluation: evaluation.settings.likelihood),
    (LesionsJudge(), lambda evaluation: evaluation.settings.lesions),
)
"""Every judge, and whether it judges an evaluation. They are asked in this order, each after those above it, and their
figures stand in this order in metrics.json and in what is printed; None where a judge is not asked."""


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Judge a VQ-VAE, and its priors where given, on one split; write metrics.json and pictures to settings.out.

    Raises: UserError if models and data do not fit each other, or test images were trained on.
    """
    check_out(settings.out)
    evaluation = load(settings)
    clear(settings.out)
    asked = [judge for judge, is_asked in JUDGES if is_asked(evaluation)]
    for judge in asked:
        above, _, key = judge.name.rpartition(".")
        (figures_of(evaluation.metrics, above) if above else evaluation.metrics)[key] = judge.compute(evaluation)
    for judge in asked:
        if figures := figures_of(evaluation.metrics, judge.name):
            judge.picture(figures, evaluation)
    _draw_strip(evaluation)
    for flag, folder in _folders(settings).items():
        if log := files.read_rows(folder / "log.csv"):
            charts.curves(log, settings.out / f"curves{'' if flag == '--vqvae' else flag.replace('--', '_')}.png",
                          title=f"Training of {folder.name}")
    files.write_json(settings.out / METRICS, evaluation.metrics)
    return evaluation


def load(settings: EvaluateSettings) -> Evaluation:
    """Return models, images and samples as the settings say, and the part of metrics.json that no judge writes.

    Raises: as `evaluate`.
    """
    vqvae, priors = _models(settings)
    read_as = from_dict(DataSettings, vqvae.config["settings"])
    read_as = dataclasses.replace(read_as, data=settings.data or read_as.data)
    needs_training = settings.top or settings.sampled or settings.rates
    data = load_images(read_as, tuple({settings.split, "train"} if needs_training else {settings.split}))
    split, expected = data.splits[settings.split], tuple(vqvae.config["image_shape"])
    if len(split) == 0:
        raise UserError(f"--split {settings.split}: expected at least 1 image, found 0 in {data.folder}. "
                        "Choose another split, or extract with a larger share for it.")
    if data.shape != expected:
        raise UserError(f"--data {data.folder}: expected images of shape {expected} as --vqvae {settings.vqvae} "
                        f"was trained on, found {data.shape}. Give the data that it was trained with.")
    configs = {flag: weights.load_weights(folder / weights.WEIGHTS)[1] for flag, folder in _folders(settings).items()}
    seen = leaks.seen_in_training(configs.values(), split)
    shared = max(data.shared_subjects, vqvae.config["data"].get("shared_subjects", 0))
    warnings = [*leaks.shared(shared), *leaks.check(seen, split, settings.split, configs, allowed=read_as.allow_leak)]
    extractor, samples, trained = None, None, ImageSet((), split.pixels[:0])
    if settings.sampled or (set(priors) == set(vqvae.model.levels) and settings.samples):
        extractor = _extractor(settings, data.shape, warnings)
    if extractor:
        train = data.splits["train"]
        trained = leaks.trained_on(configs.values(), train)
        if len(trained) < len(train):
            warnings.append(f"{len(train) - len(trained)} of {len(train)} images of the train split were not trained "
                            "on: " + ("copies are looked for among the others alone." if len(trained) else
                                      "no copies are looked for."))
        if extractor.config:
            warnings += leaks.check(leaks.seen_in_training([extractor.config], split), split, settings.split,
                                    ["--features"], allowed=read_as.allow_leak)
        samples = read(settings.sampled, data.shape) if settings.sampled else draw(
            settings, vqvae, priors, train)
    with tqdm(total=len(split), desc="encoding", unit="image", leave=False) as bar:
        maps, made = encoding.reconstruct(vqvae.model, split, settings.batch, bar.update)
    shape, sizes = split.pixels.shape[2:], [tuple(codes.shape[1:]) for codes in maps.levels.values()]
    return Evaluation(settings, vqvae, priors, data, maps, made, trained, extractor, samples, {
        "schema": SCHEMA, "data": vqvae.config["data"] | {"folder": data.folder.name, "shared_subjects": shared},
        "split": settings.split, "subjects": len(set(split.subjects)), "subjects_known": data.subjects_known,
        "images": len(split), "seen_in_training": seen, "warnings": warnings, "reconstruction": None, "codes": None,
        "raw_bits_per_pixel": coding.raw_bits_per_pixel([vqvae.model.settings.codebook_size] * len(sizes), sizes,
                                                        math.prod(shape)),
        "ms_ssim_weights": similarity.ms_ssim_scales(min(shape)),
        **{judge.name: None for judge, _ in JUDGES[2:] if "." not in judge.name},
        "seed": settings.seed, "vqvae_hash": vqvae.hash, "versions": weights.versions()})


def figures_of(report: dict, name: str) -> dict | None:
    """Return the figures of the judge with this name in a metrics.json; None where there are none."""
    for key in name.split("."):
        report = (report or {}).get(key)
    return report


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


def clear(out: Path) -> None:
    """Remove what an earlier report, which may have had other models, wrote to this folder."""
    for path in (out / METRICS, *(out / f"{name}.png" for name in (*PICTURES, *(judge.name for judge, _ in JUDGES)))):
        path.unlink(missing_ok=True)
    surprise.clear(out / "likelihood")


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


def _folders(settings: EvaluateSettings) -> dict[str, Path]:
    """The folder of each model that is given, by its flag."""
    given = {"--vqvae": settings.vqvae, "--top": settings.top, "--bottom": settings.bottom}
    return {flag: weights.find_run(name, flag) for flag, name in given.items() if name}


def _extractor(settings: EvaluateSettings, shape: tuple[int, int, int],
               warnings: list[str]) -> features.Extractor | None:
    """The network in whose features samples are judged; None, with a warning, where they cannot be."""
    if settings.split == "train":
        warnings.append("samples are not judged: the train split would be compared with itself. Choose another split.")
        return None
    found = features.load_extractor(settings.features, distributed.pick_device())
    if found.is_own and min(shape[1:]) < features.SMALLEST:
        warnings.append(f"samples are not judged: the feature network takes images of {features.SMALLEST} pixels or "
                        f"more, these have {shape[1]} by {shape[2]}. Give --features another one.")
        return None
    return found


def _draw_strip(evaluation: Evaluation) -> None:
    """Write strip.png: evenly chosen images, their reconstructions, and samples where there are any."""
    even = evenly(len(evaluation.images), PICTURED)
    rows = [("real", evaluation.images.bytes()[even]), ("reconstruction", evaluation.reconstructions[even])]
    if evaluation.samples is not None:
        rows.append(("sample", evaluation.samples[:PICTURED]))
    pictures.save_picture(pictures.strip(rows), evaluation.out / "strip.png")
