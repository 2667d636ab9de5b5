"""Models and a data set -> metrics.json and pictures of one split, for evaluate.py and the notebook alike.

The table JUDGES has every judge and when it is asked. `judge.py` defines what a judge is given, and what it has to
offer. Nothing is reported of images that a model has seen unless the report says so (`leaks.py`).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from vqvae2 import __version__
from vqvae2.common import distributed, files, progress
from vqvae2.common.errors import expect
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.common.statistics import evenly
from vqvae2.evaluation import features, leaks, page
from vqvae2.evaluation.anatomy import AnatomyJudge
from vqvae2.evaluation.copies import CopiesJudge
from vqvae2.evaluation.figures import PICTURED, CodesJudge, LikelihoodJudge, PriorsJudge, ReconstructionJudge
from vqvae2.evaluation.judge import Evaluation, Judge
from vqvae2.evaluation.lesions import LesionsJudge
from vqvae2.evaluation.page import METRICS, SCHEMA
from vqvae2.evaluation.probe import ProbeJudge
from vqvae2.evaluation.rates import RatesJudge
from vqvae2.evaluation.samples import SamplesJudge, draw, read
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.evaluation.widgets import INDEX
from vqvae2.images.dataset import ImageSet, load_images, pixel_hash
from vqvae2.images.listing import given_or_recorded
from vqvae2.images.manifest import in_one_hash
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import coding, similarity
from vqvae2.models import texture_decoder
from vqvae2.plots import charts, pictures
from vqvae2.runs import weights
from vqvae2.runs.log import LOG, read_log
from vqvae2.runs.record import PARTS, RecordedFolder
from vqvae2.sampling import sampler
from vqvae2.settings.parsing import as_command, as_dict
from vqvae2.settings.stored import from_dict

ADDED = ("probe", "rates", "likelihood", "lesions", "anatomy")
"""Flags of sections that may be added to a report."""
PICTURES = ("reconstructions", "pairs", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
            "ssim_histogram", "samples", "strip", "closest", "likelihood", "lesions", "anatomy", "rates", "curves",
            "curves_top", "curves_bottom", "curves_decoder")
JUDGES: tuple[tuple[Judge, Callable[[Evaluation], object]], ...] = (
    (ReconstructionJudge(), lambda evaluation: True),
    (CodesJudge(), lambda evaluation: True),
    (PriorsJudge(), lambda evaluation: evaluation.priors),
    (SamplesJudge(), lambda evaluation: evaluation.draw),
    (CopiesJudge(), lambda evaluation: evaluation.draw and len(evaluation.trained)),
    (ProbeJudge(), lambda evaluation: evaluation.draw and evaluation.settings.probe),
    (RatesJudge(), lambda evaluation: evaluation.settings.rates),
    (LikelihoodJudge(), lambda evaluation: evaluation.settings.likelihood),
    (LesionsJudge(), lambda evaluation: evaluation.settings.lesions),
    (AnatomyJudge(), lambda evaluation: evaluation.settings.anatomy),
)
"""Every judge, and whether it judges an evaluation. They are asked in this order, each after those above it, and their
figures stand in this order in metrics.json and in what is printed; None where a judge is not asked."""


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Judge a VQ-VAE, and its priors where given, on one split; write metrics.json and pictures to settings.out.

    Raises: UserError if models and data do not fit each other, or test images were trained on.
    """
    check_out(settings.out)
    with claimed(settings.out, f"--out {settings.out}") as claim:
        ReportFolder.refuse_foreign(settings.out)
        evaluation = load(settings)
        folder = ReportFolder(settings.out, {**as_dict(settings), "out": settings.out.name, **hashes_of(evaluation)})
        folder.command_line = as_command("evaluate", dataclasses.replace(
            settings, out=Path(settings.out.name) if settings.out.is_absolute() else settings.out))
        asked = [judge for judge, is_asked in JUDGES if is_asked(evaluation)]
        there = [judge.name for judge in asked if folder.section(judge.name) is not None]
        if there:
            print(f"{len(there)} of {len(asked)} sections are there already: {', '.join(there)}", flush=True)
        if folder.is_finished(asked):
            evaluation.metrics.update(folder.metrics)
            if not (settings.out / INDEX).exists():  # a stopped run, or an earlier version, has written none
                claim.remove_left_overs()
                page.write([settings.out], settings.out / INDEX)
            folder.tidy()
        else:
            folder.begin(claim)
            _judge(asked, evaluation, folder)
        return evaluation


def _judge(asked: Sequence[Judge], evaluation: Evaluation, folder: "ReportFolder") -> None:
    """Compute and write each section that is not there, and then what all of them belong to."""
    settings = evaluation.settings
    logs = {flag: (run.name, read_log(run / LOG)) for flag, run in _folders(settings).items()}
    for number, judge in enumerate(asked):
        above, _, key = judge.name.rpartition(".")
        figures = folder.section(judge.name)
        if figures is None:
            with progress.part(number, len(asked)):
                figures = judge.compute(evaluation)
                if figures:
                    judge.picture(figures, evaluation)
            figures = folder.keep(judge.name, figures)
        figures_of(evaluation.metrics, above)[key] = figures
    even = evenly(len(evaluation.images), PICTURED)
    samples = [] if evaluation.samples is None else [("sample", evaluation.samples[:PICTURED])]
    pictures.save_picture(pictures.strip([
        (evaluation.data.word, evaluation.images.bytes()[even]),
        ("reconstruction", evaluation.reconstructions[even]), *samples]),
        settings.out / "strip.png")
    for flag, (name, log) in logs.items():
        if log:
            charts.curves(log, settings.out / f"curves{'' if flag == '--vqvae' else flag.replace('--', '_')}.png",
                          title=f"Training of {name}")
    folder.finish(evaluation.metrics)


class ReportFolder(RecordedFolder):
    """The folder of evaluate.py. A later run may add sections; metrics.json is there only when it is whole.

        evaluate.json             settings, and hashes of models and data; written first
        parts/<section>.json      figures of a section, written when its pictures are there
        parts/samples-*.npz       samples, as they are drawn
        parts/metrics.json        the metrics.json of an earlier run, to which sections are added
        metrics.json              all figures; written when there are no more, and parts/ goes
        index.html                the page of all these; written last
    """

    command, record, made = "evaluate.py", page.RECORD, "its figures were made with"
    own = (METRICS, INDEX, PARTS, "likelihood", *(f"{name}.png" for name in PICTURES))
    hashes = MappingProxyType({name: f"{name}_hash" for name in (
        "vqvae", "top", "bottom", "decoder", "data", "features", "sampled")})
    lacking = MappingProxyType({"decoder": None, "decoder_hash": None, "anatomy": False})
    command_line: str
    """The command that makes the folder, for the record."""

    def changed(self) -> list[str]:
        """Return what differs; not what is judged besides."""
        self.added = {name for name in ADDED if self.settings[name] and self.before.get(name) is False}
        self.may_differ = RecordedFolder.may_differ | self.added | {"images_hash"}  # data_hash differs too
        self.may_differ |= {"probe_whole"} if "probe" in self.added else set()
        return super().changed()

    @cached_property
    def metrics(self) -> dict:
        """The metrics.json of an earlier run with fewer sections or the same; {} where there is none."""
        return self.before and (self.read(METRICS) or self.read(f"{PARTS}/{METRICS}") or {})

    def is_finished(self, asked: Sequence[Judge]) -> bool:
        """Return whether metrics.json has all sections that are asked for."""
        return (self.out / METRICS).is_file() and not self.added and all(
            judge.name.split(".")[0] in self.metrics for judge in asked)

    def begin(self, claim: Claim) -> None:
        """Write the record, after putting aside the figures of a run to which sections are added.

        Raises: UserError if another version has made sections of it; a report that is finished is read by every one.
        """
        made_by = self.found.get("versions", {}).get("vqvae2", __version__) if self.before else __version__
        expect(made_by == __version__, f"--out {self.out}", f"all figures to be made by one version, vqvae2 {made_by}",
               f"vqvae2 {__version__}", "Choose another --out.")
        claim.remove_left_overs(PARTS, "likelihood")
        if self.metrics:
            files.write_json(self.out / PARTS / METRICS, self.metrics)
        for name in (METRICS, INDEX):
            (self.out / name).unlink(missing_ok=True)
        self.write_record({"command": self.command_line, "date": datetime.now(timezone.utc).date().isoformat()})

    def section(self, name: str) -> dict | None:
        """Return the figures of a section that is there."""
        part = self.read(f"{PARTS}/{name}.json") if self.before else None
        return part or figures_of(self.metrics, name)

    def keep(self, name: str, figures: dict | None) -> dict | None:
        """Write the figures of a section; return them as they will be read."""
        files.write_json(self.out / PARTS / f"{name}.json", figures)
        return json.loads(json.dumps(figures))

    def finish(self, metrics: dict) -> None:
        """Write metrics.json and the page; what metrics.json was made of goes."""
        files.write_json(self.out / METRICS, metrics)
        page.write([self.out], self.out / INDEX)
        self.tidy()


def hashes_of(evaluation: Evaluation) -> dict[str, str | None]:
    """Return the hashes of all that the settings name: models, images, feature network and given samples.

    images_hash is of the judged images alone, whatever the models were trained on: it says whether two reports may be
    compared.
    """
    judged = [*map(pixel_hash, evaluation.images.pixels)]
    images = [in_one_hash(evaluation.data.files), *judged, *map(pixel_hash, evaluation.trained.pixels)]
    given = evaluation.samples if evaluation.settings.sampled else None
    return {"vqvae_hash": evaluation.vqvae.hash, "decoder_hash": evaluation.metrics["decoder_hash"],
            **{f"{level}_hash": weights.weights_hash(evaluation.priors[level].state_dict())
               if level in evaluation.priors else None for level in ("top", "bottom")},
            "data_hash": hashlib.sha256(repr(images).encode()).hexdigest(),
            "images_hash": hashlib.sha256(repr(judged).encode()).hexdigest(),
            "features_hash": None if evaluation.extractor is None else evaluation.extractor.hash,
            "sampled_hash": None if given is None else hashlib.sha256(given.numpy()).hexdigest()}


def load(settings: EvaluateSettings) -> Evaluation:
    """Return models, images and samples as the settings say, and the part of metrics.json that no judge writes.

    Raises: as `evaluate`.
    """
    vqvae, priors = sampler.load_models(settings.vqvae, settings.top, settings.bottom, distributed.pick_device())
    decoder = texture_decoder.attach(vqvae, settings.decoder, settings.seed)
    missing = [level for level in vqvae.model.levels if level not in priors]
    for name in ("likelihood", "lesions", "anatomy", *(() if settings.sampled else ("probe",))):
        expect(not (missing and getattr(settings, name)), f"--{name}",
               f"a prior for each level of --vqvae {settings.vqvae}", f"none for {' and '.join(missing)}",
               f"Give --{' and --'.join(missing)}.")
    read_as = from_dict(DataSettings, vqvae.config["settings"])
    read_as = dataclasses.replace(read_as, data=given_or_recorded(settings.data, read_as.data, settings.vqvae))
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
    if decoder:
        what = "reconstructions" if settings.sampled else "reconstructions and samples"
        warnings.append(f"--decoder {settings.decoder} has invented the finest detail of {what}: measure nothing in "
                        "it.")
    if data.word == "synthetic":
        warnings.append("the slices are synthetic: nobody was scanned, and these figures say nothing about people.")
    extractor, drawn, trained = None, None, ImageSet((), split.pixels[:0])
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
        drawn = (lambda: read(settings.sampled, data.shape)) if settings.sampled else (
            lambda: draw(settings, vqvae, priors, train, settings.out / PARTS))
    shape = split.pixels.shape[2:]
    sizes = [*vqvae.model.grids(shape).values()]
    return Evaluation(settings, vqvae, priors, data, trained, extractor, drawn, {
        "schema": SCHEMA, "data": vqvae.config["data"] | {"folder": data.folder.name, "shared_subjects": shared},
        "split": settings.split, "subjects": len(set(split.subjects)), "subjects_known": data.subjects_known,
        "images": len(split), "seen_in_training": seen, "warnings": warnings, "reconstruction": None, "codes": None,
        "raw_bits_per_pixel": coding.raw_bits_per_pixel([vqvae.model.settings.codebook_size] * len(sizes), sizes,
                                                        math.prod(shape)),
        "ms_ssim_weights": similarity.ms_ssim_scales(min(shape)),
        **{judge.name: None for judge, _ in JUDGES[2:] if "." not in judge.name},
        "seed": settings.seed, "vqvae_hash": vqvae.hash, "decoder_hash": decoder and decoder.hash,
        "versions": weights.versions()})


def figures_of(report: dict, name: str) -> dict | None:
    """Return the figures of the judge with this name in a metrics.json, None where there are none; of "" all of it."""
    for key in filter(None, name.split(".")):
        report = report.get(key) if isinstance(report, dict) else None
    return report if isinstance(report, dict) else None


def check_out(out: Path) -> None:
    """Raise UserError if the folder holds a model."""
    expect(not (out / weights.WEIGHTS).exists(), f"--out {out}", "a folder for figures", "a model in it",
           "Choose another --out.")


def _folders(settings: EvaluateSettings) -> dict[str, Path]:
    """Return the folder of each model that is given, by its flag."""
    return {flag: weights.find_run(name, flag) for flag, name in (
        ("--vqvae", settings.vqvae), ("--top", settings.top), ("--bottom", settings.bottom),
        ("--decoder", settings.decoder)) if name}


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
