"""Models and a data set -> metrics.json and pictures of one split, for evaluate.py and the notebook alike.

The table JUDGES has every judge and when it is asked. `judge.py` defines what a judge is given, and what it has to
offer. Nothing is reported of images that a model has seen unless the report says so (`leaks.py`).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from vqvae2.common import distributed, files
from vqvae2.common.errors import expect
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
from vqvae2.plots import charts, pictures
from vqvae2.runs import weights
from vqvae2.sampling import sampler
from vqvae2.settings.stored import from_dict

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
    for judge in [judge for judge, is_asked in JUDGES if is_asked(evaluation)]:
        above, _, key = judge.name.rpartition(".")
        figures_of(evaluation.metrics, above)[key] = figures = judge.compute(evaluation)
        if figures:
            judge.picture(figures, evaluation)
    even = evenly(len(evaluation.images), PICTURED)
    samples = [] if evaluation.samples is None else [("sample", evaluation.samples[:PICTURED])]
    pictures.save_picture(pictures.strip([
        ("real", evaluation.images.bytes()[even]), ("reconstruction", evaluation.reconstructions[even]), *samples]),
        settings.out / "strip.png")
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
    vqvae, priors = sampler.load_models(settings.vqvae, settings.top, settings.bottom, distributed.pick_device())
    missing = [level for level in vqvae.model.levels if level not in priors]
    for name in ("likelihood", "lesions", *(() if settings.sampled else ("probe",))):
        expect(not (missing and getattr(settings, name)), f"--{name}",
               f"a prior for each level of --vqvae {settings.vqvae}", f"none for {' and '.join(missing)}",
               f"Give --{' and --'.join(missing)}.")
    read_as = from_dict(DataSettings, vqvae.config["settings"])
    read_as = dataclasses.replace(read_as, data=settings.data or read_as.data)
    needs_training = settings.top or settings.sampled or settings.rates
    data = load_images(read_as, tuple({settings.split, "train"} if needs_training else {settings.split}))
    split, expected = data.splits[settings.split], tuple(vqvae.config["image_shape"])
    expect(len(split) > 0, f"--split {settings.split}", "at least 1 image", f"0 in {data.folder}",
           "Choose another split, or extract with a larger share for it.")
    expect(data.shape == expected, f"--data {data.folder}", f"images of shape {expected} as --vqvae {settings.vqvae} "
           "was trained on", data.shape, "Give the data that it was trained with.")
    configs = {flag: weights.config_in_weights(folder / weights.WEIGHTS) for flag, folder in _folders(settings).items()}
    seen = leaks.seen_in_training(configs.values(), split)
    shared = max(data.shared_subjects, vqvae.config["data"].get("shared_subjects", 0))
    warnings = [*leaks.shared(shared), *leaks.check(seen, split, settings.split, configs, allowed=read_as.allow_leak)]
    extractor, samples, trained = None, None, ImageSet((), split.pixels[:0])
    if settings.sampled or (settings.samples and not missing):
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
        samples = read(settings.sampled, data.shape) if settings.sampled else draw(settings, vqvae, priors, train)
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
    """Return the figures of the judge with this name in a metrics.json, None where there are none; of "" all of it."""
    for key in filter(None, name.split(".")):
        report = (report or {}).get(key)
    return report


def check_out(out: Path) -> None:
    """Raise UserError unless `out` is a folder for a report: nothing else in it is to be written over."""
    files.check_folder(out, "--out")
    expect(not (out / weights.WEIGHTS).exists(), f"--out {out}", "a folder for figures", "a model in it",
           "Choose another --out.")
    there = out / METRICS
    expect(not there.exists() or '"split":' in there.read_text(encoding="utf-8", errors="replace"), f"--out {out}",
           f"no {METRICS} except that of evaluate.py", "another one", "Choose another --out.")


def clear(out: Path) -> None:
    """Remove what an earlier report, which may have had other models, wrote to this folder."""
    for path in (out / METRICS, *(out / f"{name}.png" for name in (*PICTURES, *(judge.name for judge, _ in JUDGES)))):
        path.unlink(missing_ok=True)
    surprise.clear(out / "likelihood")


def _folders(settings: EvaluateSettings) -> dict[str, Path]:
    """Return the folder of each model that is given, by its flag."""
    return {flag: weights.find_run(name, flag) for flag, name in (
        ("--vqvae", settings.vqvae), ("--top", settings.top), ("--bottom", settings.bottom)) if name}


def _extractor(settings: EvaluateSettings, shape: tuple[int, int, int],
               warnings: list[str]) -> features.Extractor | None:
    """Return the network in whose features samples are judged; None, with a warning, where they cannot be judged."""
    found = features.load_extractor(settings.features, distributed.pick_device(), shape[1:])
    refusals = [why for is_so, why in (
        (settings.split == "train", "the train split would be compared with itself. Choose another split."),
        (found.config and min(shape[1:]) < features.SMALLEST,
         f"the feature network takes images of {features.SMALLEST} pixels or more, these have {shape[1]} by "
         f"{shape[2]}. Give --features another network.")) if is_so]
    warnings += [f"samples are not judged: {why}" for why in refusals]
    return None if refusals else found
