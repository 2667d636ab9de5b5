"""Scans and VQ-VAEs -> a BIDS derivative of reconstructions, code maps and likelihood, with figures and a page.

    <out>/sub-01/anat/sub-01_desc-reconstruction_T1w.nii.gz      in the scan's own type and units
    <out>/sub-01/anat/sub-01_desc-axialtopcodes_dseg.nii.gz      each level's codes in each plane, int16, -1 elsewhere
    <out>/sub-01/anat/sub-01_desc-bitsperpixel_T1w.nii.gz        what the priors find unlikely, float32, 0 elsewhere
    <out>/sub-01/anat/sub-01_desc-restoration_T1w.nii.gz         what does not belong (--restore), float32, 0 elsewhere

Each has a .json that says by which models and settings it was made. That of the reconstruction also has the scan's
figures; it is written last, and with it the scan is finished: nothing of it is made again.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from vqvae2 import __version__
from vqvae2.common import distributed, files, memory, statistics
from vqvae2.common.errors import UserError, expect
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.common.progress import Bar
from vqvae2.evaluation import prediction_page, restoration, scan_maps
from vqvae2.evaluation.prediction import (
    MOST_SAID,
    RECORD,
    REJECTED,
    SUMMARY,
    TABLE,
    PredictFolder,
    PredictSettings,
    check_out,
    find_sources,
    shape_for,
)
from vqvae2.evaluation.scan_maps import BITS, RESTORATION, Model, OpenScan
from vqvae2.evaluation.unlikeness import LIMITS, WORDS
from vqvae2.evaluation.widgets import INDEX
from vqvae2.images import dataset
from vqvae2.models import texture_decoder
from vqvae2.models.autoencoder import code_grids
from vqvae2.plots import pictures as plots
from vqvae2.runs import weights
from vqvae2.sampling import sampler
from vqvae2.scans import derivatives
from vqvae2.scans.finding import Scan
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.volumes import file_sha256
from vqvae2.settings.parsing import as_dict

SMALL = 128
"""Pixels: up to this size one thread takes hardly longer than two (6.0 and 4.8 s for 141 planes), and on a machine that
other programs use it took 9 s where two took 14, or 98."""
PLANES_ON_A_CPU = 2
"""At a time, at most: more take memory and no less time."""
MOST_BITS = 1.12
"""Bits per code of a whole scan, divided by those of validation images: 22 unseen people have 0.92 to 1.11 (64 by 64
pixels), one scan of another scanner 1.13."""
PICTURES, RECONSTRUCTION, NIFTI, SIDECAR = "pictures", "reconstruction", ".nii.gz", ".json"
WHAT = "Every plane of a scan as its codes in a VQ-VAE-2 alone give it back, on the scan's own grid"
CODES = "Codes of a VQ-VAE-2, each in the voxels whose middle lies in its cell; -1 where there is no brain"
LIKELIHOOD = "What priors find unlikely: the code length of each voxel's place in bits per pixel of the model"
RESTORED = ("What does not belong: where codes that priors find unlikely were sampled anew, 8 times, the mean "
            "difference from the scan, 0…1 from Black to White")
DESCRIPTIONS = {BITS: LIKELIHOOD, RESTORATION: RESTORED}
README = "README.md"
ABOUT = f"""{WHAT}.

- `*_desc-{RECONSTRUCTION}_*{NIFTI}`: in the scan's own type and units; the scan's background stands around the brain.
- `*_desc-*codes_dseg{NIFTI}`: the codes of each level in each plane, {CODES[0].lower()}{CODES[1:]}.
- `*_desc-{BITS}_*{NIFTI}`: {LIKELIHOOD[0].lower()}{LIKELIHOOD[1:]}.
- `*_desc-{RESTORATION}_*{NIFTI}`: {RESTORED[0].lower()}{RESTORED[1:]}.

Each has a `.json` that says by which models and settings. `{TABLE}`, `{SUMMARY}` and `{INDEX}` say how near the
reconstructions come. They are no images of a scanner: do not measure anything in them without that error in mind.
"""
COMPARED = ("Slices: each plane as a model was given it, on 8 bit, with what its codes alone give back. Volume: the "
            "voxels of the brain with those that are written, on a range from 0 (the 0.5th percentile of the brain) to "
            "1 (the 99.5th). Means are over all scans that were given, whoever they are of: no benchmark.")


class ScansFolder(PredictFolder):
    """The folder of predict.py --nifti."""

    made = "its scans were reconstructed with"
    own = (derivatives.DESCRIPTION, derivatives.IGNORED, README, PICTURES, TABLE, SUMMARY, REJECTED, INDEX)
    hashes = MappingProxyType({name: f"{name}_hash" for name in ("vqvae", "decoder", "top", "bottom")})
    lacking = MappingProxyType({**PredictFolder.lacking, "top_hash": None, "bottom_hash": None})

    def figures_of(self, scan: Scan, name: derivatives.Name, models: Sequence[Model]) -> dict | None:
        """Return the figures of a scan that is finished, and has not changed since; else None."""
        there = [name.path(label, NIFTI, suffix_of(label)) for label in (RECONSTRUCTION, *scan_maps.labels_of(models))]
        if not self.before or not all((self.out / path).is_file() for path in (*there, picture_of(name))):
            return None
        said = self.read(name.path(RECONSTRUCTION, SIDECAR).as_posix()) or {}
        figures = said.get("Figures")
        return figures if isinstance(figures, dict) and _hashes_of(scan).items() <= said.items() else None

    def begin_scans(self, claim: Claim, inputs: Sequence[Path], names: Sequence[str]) -> None:
        """Remove what an earlier run wrote of all scans together; write the record and what the data set is.

        names: the files that will be made of scans, below the folder.
        """
        claim.remove_left_overs(PICTURES, *{path.parent.relative_to(self.out).as_posix()
                                            for path in self.out.glob("sub-*/**/anat/*")})
        for name in (INDEX, SUMMARY, TABLE, REJECTED):
            (self.out / name).unlink(missing_ok=True)
        self._write({*self._before(), *names})
        files.write_json(self.out / derivatives.DESCRIPTION, derivatives.description_of(inputs, __version__, WHAT))
        files.write_text(self.out / README, ABOUT)
        ignored = (PICTURES, TABLE, SUMMARY, REJECTED, INDEX, RECORD)
        files.write_text(self.out / derivatives.IGNORED, "".join(f"{name}\n" for name in ignored))

    def keep_only(self, names: Sequence[str]) -> None:
        """Remove the files that an earlier run made of scans that are not given any more."""
        for path in (self.out / name for name in self._before() - {*names}):
            if path.is_file():
                path.unlink()
        self._write(names)

    def _before(self) -> set[str]:
        """Return the files that earlier runs made of scans; a damaged record must not lead elsewhere."""
        found = self.found.get("files")
        return {name for name in (found if isinstance(found, list) else ()) if isinstance(name, str)
                and name.startswith(("sub-", f"{PICTURES}/")) and ".." not in Path(name).parts}

    def _write(self, names: Iterable[str]) -> None:
        self.write_record({name: self.settings[name] for name in self.hashes.values()} | {"files": sorted(names)})


def predict(settings: PredictSettings) -> dict:
    """Reconstruct all scans; write everything to settings.out, and return what is in metrics.json.

    Raises: UserError, before anything is written, if something that was named is no scan that can be read, no scan
        could be, or --out holds what predict.py did not make.
    """
    with claimed(settings.out, f"--out {settings.out}") as claim:
        return _predict(settings, claim)


def _predict(settings: PredictSettings, claim: Claim) -> dict:
    check_out(settings, ScansFolder)
    _check_place(settings)
    models = load_models(settings)
    sources = find_sources(settings.input, settings.suffix, settings.out, models[0].cutting.mask_suffixes)
    odd = [str(source.path) for source in sources if source.scan is None]
    expect(not odd, "INPUT", "scans alone, with --nifti", ", ".join(odd[:3]),
           "Leave pictures out, or predict them without --nifti.")
    names = derivatives.names_of([source.scan for source in sources],
                                 settings.suffix[0] if len(settings.suffix) == 1 else "T1w")
    folder = ScansFolder(settings.out, as_dict(settings) | {
        "input": [str(path) for path in settings.input], "out": settings.out.name,
        "vqvae": settings.vqvae[0] if len(models) == 1 else list(settings.vqvae), **_hashes_of_models(models)})
    finished = [folder.figures_of(source.scan, name, models) for source, name in zip(sources, names)]
    own_files = files_of(names, models)
    free = memory.memory_available()
    waiting = [source.scan for source, there in zip(sources, finished) if there is None and source.named]
    for scan in Bar(waiting if len(waiting) > 1 else (), desc="reading", unit="scan"):
        with memory.only(free):
            scan_maps.open_scan(scan, models[0].cutting)  # an error comes before the first scan is written
    rows, rejected, begun = [], [], False
    for number, (source, name, figures) in enumerate(zip(sources, names, finished), 1):
        if source.scan.refused:
            rejected.append({"input": str(source.path), "reason": source.scan.refused})
            continue
        try:
            with memory.only(free):
                if figures is None:
                    opened = scan_maps.open_scan(source.scan, models[0].cutting)
                    if not begun:
                        folder.begin_scans(claim, settings.input, own_files)
                        begun = True
                    figures = reconstruct(opened, name, models, settings, f"scan {number} of {len(sources)}")
                    del opened  # before the next is read
            rows.append({"scan": name.path(RECONSTRUCTION, NIFTI).as_posix(), "input": str(source.path),
                         "subject": source.scan.subject, "session": source.scan.session, **figures})
        except UnusableScan as error:
            if source.named:
                raise
            rejected.append({"input": str(source.path), "reason": error.reason})
    for row in rejected[:MOST_SAID]:
        print(f"not read: {row['input']}: {row['reason']}", flush=True)
    expect(bool(rows), "INPUT", "at least one scan that can be read", f"none among {len(rejected)}",
           "See the lines above.")
    if not begun:
        print(f"{len(rows)} of {len(rows)} scans are there already", flush=True)
        claim.remove_left_overs()
    folder.keep_only(own_files)
    report = summary(rows, rejected, models, settings)
    (settings.out / REJECTED).unlink(missing_ok=True)
    if rejected:
        files.write_rows(settings.out / REJECTED, rejected)
    files.write_rows(settings.out / TABLE, [{column: "" if value is None else f"{value:.6g}" if isinstance(
        value, float) else value for column, value in row.items()} for row in rows])
    files.write_json(settings.out / SUMMARY, report | {"settings": folder.settings, "versions": weights.versions()})
    prediction_page.write_scans(settings.out / INDEX, settings.out, [picture_of(name) for name in names], rows,
                                rejected, headline(report), [("VQ-VAE", said) for said in report["models"]]
                                + [("software", f"vqvae2 {__version__}")])
    return report


def _check_place(settings: PredictSettings) -> None:
    """Raise UserError if what is written would be found among the scans, where the next run looks for scans."""
    out = settings.out.resolve()
    around = [path for path in settings.input if path.is_dir() and out.is_relative_to(path.resolve())
              and "derivatives" not in out.relative_to(path.resolve()).parts]
    expect(not around, f"--out {settings.out}", "a folder outside of the scans, or below a folder derivatives",
           f"{', '.join(map(str, around))} around it", "Choose another --out.")


def load_models(settings: PredictSettings) -> list[Model]:
    """Return the models, each with its planes. Raises: UserError if one is missing, or what is given does not fit."""
    device, found = distributed.pick_device(), []
    for number, name in enumerate(settings.vqvae):
        vqvae, priors = sampler.load_models(name, *(getattr(settings, level)[number] if getattr(settings, level) else
                                                    None for level in ("top", "bottom")), device)
        missing = [level for level in vqvae.model.levels if level not in priors]
        expect(not priors or not missing, "--top and --bottom", f"a prior for each level of --vqvae {name}",
               f"none for {' and '.join(missing)}", "Name both, or neither.")
        decoder = texture_decoder.attach(vqvae, settings.decoder, 0)
        shape = shape_for(vqvae, settings)
        expect(not priors or shape[1:] == tuple(vqvae.config["image_shape"][1:]), "--size", "no other size beside "
               "--top, whose prior has learned the size of the training images", settings.size, "Drop one of them.")
        expect(shape[1] == shape[2], f"--vqvae {name}", "a model of square images, with --nifti",
               f"{shape[2]} by {shape[1]} pixels", "Give --size.")
        cutting = settings.cutting(vqvae.config["data"].get("extraction") or {}, shape[1])
        cutting = replace(cutting, extent=settings.extent or (0.0, 1.0), planes=cutting.planes if len(
            settings.vqvae) == 1 or not settings.planes else (settings.planes[number],))
        found.append(Model(vqvae, priors, decoder, cutting, shape, settings.restore))
    planes = [plane for model in found for plane in model.cutting.planes]
    expect(len(planes) == len(set(planes)), "--vqvae", "VQ-VAEs of different planes", " ".join(planes),
           "Give one for each plane; --planes says which plane each is given.")
    return found


def _hashes_of_models(models: Sequence[Model]) -> dict[str, str | None]:
    """Return what the record says of all models: of several of a kind their hashes, one after the other."""
    by_kind = {"vqvae": [model.vqvae.hash for model in models],
               "decoder": [model.decoder.hash for model in models if model.decoder],
               **{level: [weights.weights_hash(model.priors[level].state_dict()) for model in models
                          if level in model.priors] for level in ("top", "bottom")}}
    return {f"{kind}_hash": " ".join(hashes) or None for kind, hashes in by_kind.items()}


def _hashes_of(scan: Scan) -> dict[str, str]:
    """Return the hashes of the files that a scan was read from; {} where one cannot be read."""
    try:
        return {"InputSHA256": file_sha256(scan.path),
                "MaskSHA256": "" if scan.mask is None else file_sha256(scan.mask)}
    except UserError:
        return {"InputSHA256": ""}


def suffix_of(label: str) -> str | None:
    """Return the suffix of the file that is called so: codes are labels, and all else is like the scan."""
    return "dseg" if label.endswith("codes") else None


def files_of(names: Sequence[derivatives.Name], models: Sequence[Model]) -> list[str]:
    """Return all files that are made of scans, below the folder."""
    made = [name.path(label, ending, suffix_of(label)) for name in names for ending in (NIFTI, SIDECAR)
            for label in (RECONSTRUCTION, *scan_maps.labels_of(models))]
    return [path.as_posix() for path in (*made, *map(picture_of, names))]


def picture_of(name: derivatives.Name) -> Path:
    """Return the path of a scan's picture below the folder."""
    return Path(PICTURES, f"{name.path(RECONSTRUCTION, '').name}.png")


def reconstruct(opened: OpenScan, name: derivatives.Name, models: Sequence[Model], settings: PredictSettings,
                said: str) -> dict[str, float | int | None]:
    """Write all that is made of a scan, and return its figures. `said` names the scan while the user waits."""
    out, size = settings.out, models[0].cutting.size
    on_cpu = next(models[0].vqvae.model.parameters()).device.type == "cpu"
    batch = min(settings.batch, PLANES_ON_A_CPU) if on_cpu else settings.batch
    # Each plane goes through the VQ-VAE, and then through each prior.
    count = sum(len(scan_maps.chosen_planes(opened, model, plane)) * (1 + len(model.priors))
                for model in models for plane in model.cutting.planes)
    # Small planes, two at a time, are so little work that threads would mostly wait for each other.
    threads = sampler.one_thread() if on_cpu and size <= SMALL else contextlib.nullcontext()
    with Bar(total=count, desc=said, unit="plane") as bar, scan_maps.numbers_of(opened.scan), threads:
        made = scan_maps.reconstruct(opened, models, batch, bar.update)
        cut = (size, models[0].cutting.field_of_view)
        rows = plots.compared(*(dataset.to_bytes(scan_maps.middle_planes(opened, numbers, *cut))
                                for numbers in (None, made.mean)))
    about = sidecar(opened, models, settings)
    scan_maps.write_reconstruction(out / name.path(RECONSTRUCTION, NIFTI), opened, made)
    figures, encoded, known = made.row(), made.encoded, made.mean > 0
    del made  # for the memory
    for label, numbers, elsewhere in scan_maps.other_maps(opened, encoded, known):
        path = name.path(label, NIFTI, suffix_of(label))
        opened.grid.write(out / path, opened.box, numbers, elsewhere)
        if label == RESTORATION:
            shown = scan_maps.middle_planes(opened, numbers, *cut)
            rows.append(("does not belong", plots.ScaledMaps(shown[:, 0], plots.DIFFERENCE_SCALE)))
        files.write_json(out / str(path).replace(NIFTI, SIDECAR),
                         {"Description": DESCRIPTIONS.get(label, CODES), **about})
    plots.save_picture(plots.strip(rows, captions=scan_maps.SHOWN), out / picture_of(name))
    seen = {subject for model in models for loaded in (model.vqvae, model.decoder) if loaded
            for subject in loaded.config["training_subjects"]}
    row = {key: None if math.isnan(value) else value for key, value in figures.items()} | {
        "subject_seen_in_training": int(dataset.subject_hash(opened.scan.subject) in seen)}
    files.write_json(out / name.path(RECONSTRUCTION, SIDECAR), {"Description": WHAT, **about, "Figures": row})
    return row


def sidecar(opened: OpenScan, models: Sequence[Model], settings: PredictSettings) -> dict:
    """Return what the .json of each file says: where the scan came from, and by what the file was made."""
    brain, volume = opened.brain, opened.volume
    used = [{"Name": Path(name).name, "Hash": model.vqvae.hash, "Planes": list(model.cutting.planes),
             "Extent": list(model.cutting.extent), "ImageSize": model.cutting.size,
             "FieldOfView": model.cutting.field_of_view, "Bits": model.cutting.bits,
             **({"DecoderHash": model.decoder.hash} if model.decoder else {}),
             **{f"{level.title()}PriorHash": weights.weights_hash(prior.state_dict())
                for level, prior in model.priors.items()}} for name, model in zip(settings.vqvae, models)]
    return {"Sources": [derivatives.place_of(opened.scan.path)], "InputSHA256": volume.sha256,
            "MaskSHA256": opened.mask_sha256, "SpatialReference": "orig", "SkullStripped": brain.head is None,
            "Orientation": volume.orientation, "OrientationFrom": volume.orientation_from, "Volume": volume.number,
            "Black": brain.low, "White": brain.high, "VQVAE": used, "Version": __version__}


def summary(rows: Sequence[Mapping], rejected: Sequence[Mapping], models: Sequence[Model],
            settings: PredictSettings) -> dict:
    """Return what metrics.json says of all scans together."""
    subjects = [row["subject"] or row["scan"] for row in rows]
    columns = [name for name in rows[0] if isinstance(rows[0][name], float) or rows[0][name] is None]
    return {
        "schema": 1, "made_by": "predict.py --nifti", "compared": COMPARED, "scans": len(rows),
        "rejected": len(rejected), "subjects": len(set(subjects)),
        "subjects_known": all(row["subject"] for row in rows),
        "planes": sum(row["planes"] for row in rows),
        "planes_unlike_training": sum(row["planes_unlike_training"] for row in rows),
        "unlike_training": {name: [row["scan"] for row in rows if row[name] is not None and row[name] > limit]
                            for name, limit in LIMITS.items()},
        "seen_in_training": {"planes": sum(row["planes_seen_in_training"] for row in rows),
                             "scans": sum(row["subject_seen_in_training"] for row in rows)},
        "reconstruction": {name: statistics.summarise(torch.tensor(
            [math.nan if row[name] is None else row[name] for row in rows], dtype=torch.float64), subjects, 0)
            for name in columns},
        "models": [f"{Path(name).name} ({model.vqvae.hash[:8]}): {', '.join(model.cutting.planes)}, "
                   f"{model.cutting.size} by {model.cutting.size} pixels over {model.cutting.field_of_view:g} mm"
                   for name, model in zip(settings.vqvae, models)],
        "usual_bits_per_code": [_usual_bits(model, settings, number) for number, model in enumerate(models)],
        **_hashes_of_models(models)}


def _usual_bits(model: Model, settings: PredictSettings, number: int) -> float | None:
    """Return the bits per code of the images that a model's priors were validated on; None where that is not known."""
    folders = {level: weights.find_run(getattr(settings, level)[number], f"--{level}") for level in model.priors}
    return restoration.typical_bits(folders, code_grids(model.vqvae)) if folders else None


def headline(report: Mapping) -> list[str]:
    """Return what is printed in the end: figures, and warnings."""
    def said(name: str, form: str) -> str:
        value = report["reconstruction"][name]["mean"]
        return "not defined" if value is None else form.format(value)

    seen = report["seen_in_training"]
    lines = [f"{report['scans']} scan(s), {report['planes']} planes; {report['rejected']} file(s) not read",
             f"slices: SSIM {said('ssim', '{:.4f}')}, PSNR {said('psnr', '{:.2f} dB')}",
             f"volumes: mean absolute difference inside the brain {said('volume_mae', '{:.4f}')} of 0…1; "
             f"{said('resampling_mae', '{:.4f}')} of it without any model, by cutting slices and putting them back"]
    if report["top_hash"]:
        usual, found = report["usual_bits_per_code"][0], report["reconstruction"]["bits_per_code"]
        lines.append(f"codes: {said('bits_per_code', '{:.2f}')} bits each, where the models were trained" + (
            "" if usual is None else f"; their validation images need {usual:.2f}"))
        if len(report["usual_bits_per_code"]) == 1 and usual and (found["max"] or 0) > MOST_BITS * usual:
            lines.append(f"warning: the codes of a scan need {found['max'] / usual:.2f} times as many bits as those of "
                         f"the validation images, where {MOST_BITS:g} is the most that is usual: do not rely on maps "
                         "of what is unlikely there. Is the contrast or the scanner another, or --extent a small part?")
    if report["reconstruction"]["beyond"]["mean"]:
        lines.append(f"warning: {said('beyond', '{:.1%}')} of the brain lies beyond the planes or the field of view; "
                     "background stands there")
    if report["planes_unlike_training"]:
        lines.append(f"warning: {report['planes_unlike_training']} of {report['planes']} planes have a direction, or "
                     "lie in a part of the brain, that the models were not trained on; --planes and --extent choose")
    for name, scans in report["unlike_training"].items():
        if scans:
            what, question = WORDS[name]
            lines.append(f"warning: the planes of {len(scans)} scan(s), such as {scans[0]}, {what} ({name} above "
                         f"{LIMITS[name]:g} in {TABLE}). {question}")
    if report["decoder_hash"]:
        lines.append("warning: --decoder has invented the finest detail of these reconstructions")
    if seen["planes"] or seen["scans"]:
        lines.append(f"warning: models were trained on {seen['planes']} of these planes, and on the subjects of "
                     f"{seen['scans']} scan(s): their figures on these say nothing about new ones")
    return lines
