"""Images, scans and folders as they come -> what a VQ-VAE makes of them: codes, reconstructions, figures, pictures.

Scans are cut into slices by the code of extract_slices.py; pictures are resized in their proportions, and colours are
made grey for a grey model. The image that the model is given after that is the original that its reconstruction is
compared with. A file that cannot be read is an error where the user named the file, and a row in a table where the file
was found in a folder. Images are written as they are made; the record of what is in the folder is written before the
images, the figures of all images last.
"""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from vqvae2 import __version__
from vqvae2.common import distributed, files, memory, statistics
from vqvae2.common.errors import UserError, expect
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.common.names import SUFFIXES
from vqvae2.common.progress import Bar
from vqvae2.evaluation import denoising, prediction_page, unlikeness
from vqvae2.evaluation.widgets import INDEX
from vqvae2.images import dataset, listing
from vqvae2.images.reading import find_pictures, read_picture
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import coding, similarity
from vqvae2.models import autoencoder, code_maps, denoiser, encoding, texture_decoder
from vqvae2.plots import pictures as plots
from vqvae2.runs import weights
from vqvae2.runs.record import PARTS, RecordedFolder
from vqvae2.runs.settings import as_before
from vqvae2.sampling import writing
from vqvae2.scans.dicom import is_dicom_name
from vqvae2.scans.finding import Scan, find_scans, with_mask
from vqvae2.scans.headers import UnusableScan
from vqvae2.scans.identities import SERIES, File, identify, stem_of
from vqvae2.scans.volumes import files_of
from vqvae2.settings.checks import SAID, Checked
from vqvae2.settings.parsing import as_dict
from vqvae2.settings.stored import from_dict
from vqvae2.slices.planes import levels_of
from vqvae2.slices.scan_slices import draw_slices
from vqvae2.slices.settings import MASK_SUFFIXES, ExtractSettings, Plane

RECORD, TABLE, SUMMARY, REJECTED, CODES, GRID = ("predict.json", "metrics.csv", "metrics.json", "rejected.csv",
                                                 "codes.npz", "grid.png")
ORIGINALS, MADE, DENOISED, MAPS, PICTURES = "originals", "reconstructions", "denoised", "code_images", "pictures"
IN_GRID = 8
COMPARED = ("Each image as the model was given it, on 8 bit, with what its codes alone give back. Means are over all "
            "images that were given, whoever they are of: no benchmark.")
# A model's config may say how its slices were cut. The flags beat it, extract_slices.py's defaults follow.
OF_SLICES = ("planes", "extent", "field_of_view", "bits")
WHAT_IS_READ = "an image (PNG, JPEG, TIFF, WebP, BMP, GIF), a scan (NIfTI, Analyze, MGH, DICOM) or a folder of them"
# The descriptions of a change begin with these words.
SLICE, RESIZED, STRETCHED, CROPPED, GREY = CHANGES = ("slice of a scan", "resized", "stretched", "cropped",
                                                      "colours made grey")
MOST_SAID = 8


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Checked):
    """Settings of predict.py."""

    vqvae: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-m"], metavar="STR ...")]
    """The VQ-VAE: a folder, or a name in results/*/ or pretrained/. With --nifti there may be several, such as one for
    each plane. Files and folders that stand behind the first are INPUT, unless they are models."""
    input: Annotated[tuple[Path, ...], tyro.conf.Positional,
                     tyro.conf.arg(metavar="INPUT ...", help_behavior_hint="(required)")]
    """Images, scans, and folders of images or of scans; any number."""
    nifti: bool = False
    """Reconstruct whole scans: every plane of the brain, as NIfTI files on the scans' own grids."""
    top: Annotated[tuple[str, ...], SAID, tyro.conf.arg(metavar="STR ...")] = ()
    """With --nifti: the top prior of each VQ-VAE, in their order, for a map of what is unlikely in each scan."""
    bottom: Annotated[tuple[str, ...], SAID, tyro.conf.arg(metavar="STR ...")] = ()
    """With --nifti: the bottom prior of each VQ-VAE that has two levels, in their order."""
    restore: bool = False
    """With --top: also a map of what does not belong in each scan. Unlikely codes are sampled anew, 8 times, and the
    map is how much the scan then differs. This takes a minute or more for each scan."""
    decoder: Annotated[str | None, SAID] = None
    """A texture decoder of train_decoder.py for this VQ-VAE, a folder or a name: reconstructions then have invented
    detail. Without it: the VQ-VAE's own decoder."""
    denoise: Annotated[str | None, SAID] = None
    """A denoiser of `vqvae2 train-denoiser` for this VQ-VAE, a folder or a name: also write images without noise. The
    codes are then those of its encoder, which sees through noise."""
    out: Path
    """Folder that receives all results. The same command goes on there where it was stopped."""
    size: Annotated[int | None, SAID] = None
    """Height and width in pixels of the images that the model gets. Without it: the size that the model was trained
    on."""
    batch: int = 32
    """Images at a time. With --nifti planes, of which a CPU takes 2 at a time at most, for its memory."""
    planes: Annotated[tuple[Plane, ...], SAID, tyro.conf.arg(metavar="{axial,coronal,sagittal} ...")] = ()
    """One or more anatomical planes, for scans; of several VQ-VAEs one for each, in their order. Without it: the planes
    of the model's training slices, if its config has them, else axial."""
    per_scan: int = 1
    """Number of slices per plane, for scans; 1 is the centre of the extent, more are evenly spaced in it."""
    extent: Annotated[tuple[float, float] | None, SAID] = None
    """Part of the brain in which planes are chosen, for scans: fractions from inferior, posterior or left. Without it:
    the part of the model's training slices, if its config has it, else 0.3 0.8; with --nifti all of the brain."""
    field_of_view: Annotated[float | None, SAID] = None
    """Height and width of a slice in mm, for scans. Without it: the value of the model's training slices, if its config
    has it, else 224."""
    assume_orientation: Annotated[str | None, SAID] = None
    """The directions in which a scan's three indices grow (RAS, LAS, …), if neither its header nor its layout says."""
    trust: Literal["sform", "qform"] = "sform"
    """The matrix of a NIfTI header that counts where both are set."""
    mask_suffix: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STR ...")] = MASK_SUFFIXES
    """The ends of the names of brain masks. The first that lies beside a scan is applied to it; none applies none."""
    volume: Annotated[int | None, SAID] = None
    """The volume, counted from 0, to take from a file that holds a series. Without it: such files are not read."""
    suffix: Annotated[tuple[str, ...], SAID, tyro.conf.arg(metavar="STR ...")] = ()
    """Endings of the names of scans in folders (T2w, FLAIR, …). Without it: T1-weighted scans. A scan that is given by
    its own path may have any name."""

    RULES = (("batch", lambda images: images >= 1, "at least 1", "Give a larger number."),)

    def __post_init__(self) -> None:
        super().__post_init__()
        words = (self.vqvae,) if isinstance(self.vqvae, str) else self.vqvae
        # A flag of several values takes the words behind it, also those that are inputs.
        behind = [word for word in words[1:] if self._is_input(Path(word))]
        object.__setattr__(self, "vqvae", (*words[:1], *(word for word in words[1:] if word not in behind)))
        object.__setattr__(self, "input", (*map(Path, behind), *self.input))
        expect(bool(self.vqvae), "--vqvae", "at least one VQ-VAE", "none", "Name it.")
        expect(len(self.input) >= 1, "INPUT", "at least one image, scan or folder", "none",
               "Name it after the other flags' values, such as predict.py --vqvae vqvae-128 brain.png --out predicted.")
        self._check_nifti()
        self.cutting({}, 256)

    def _is_input(self, path: Path) -> bool:
        """Return whether a word that stands behind a VQ-VAE is no VQ-VAE."""
        is_model = (path / weights.WEIGHTS).is_file()
        return not is_model and (not self.nifti or path.exists() or stem_of(path.name) is not None)

    def _check_nifti(self) -> None:
        count, several = len(self.vqvae), " ".join(self.vqvae)
        if not self.nifti:
            expect(count == 1, "--vqvae", "one VQ-VAE, without --nifti", several, "Give --nifti, or one name.")
            expect(not self.restore, "--restore", "--nifti beside it", "none", "Give --nifti, or drop it.")
            for level in ("top", "bottom"):
                expect(not getattr(self, level), f"--{level}", "--nifti beside it", "none", "Give --nifti, or drop it.")
            return
        expect(self.denoise is None, "--denoise", "no --nifti beside it, which is for whole scans", "both",
               "Drop --nifti: slices of a scan are denoised one by one.")
        expect(self.per_scan == 1, "--per-scan", "no number with --nifti, which takes every plane", self.per_scan,
               "Leave it out; --extent takes a part of the brain.")
        expect(bool(self.top) or not self.restore, "--restore", "--top beside it, whose codes are sampled", "none",
               "Name the priors.")
        expect(count == 1 or self.decoder is None, "--decoder", "one VQ-VAE, which it belongs to", several,
               "Leave it out, or give one VQ-VAE.")
        for name in ("top", "bottom", "planes"):
            found = getattr(self, name)
            expect(len(found) in (0, count) or (name == "planes" and count == 1), f"--{name}",
                   f"one for each VQ-VAE ({several})", " ".join(found), "Give as many, in the same order.")

    def given_flags(self) -> dict:
        """Return those of OF_SLICES that a flag says."""
        return {name: value for name in OF_SLICES if (value := getattr(self, name, None)) not in (None, ())}

    def cutting(self, recorded: dict, size: int) -> ExtractSettings:
        """Return how slices are cut out of scans, as extract_slices.py takes it.

        Args:
            recorded: what the model's config says of its own slices; see OF_SLICES.
            size: height and width in pixels, where --size does not say it.
        Raises: UserError where a flag does not fit.
        """
        own = {name: tuple(value) if isinstance(value := recorded[name], list) else value
               for name in OF_SLICES if name in recorded}
        return ExtractSettings(**(own | self.given_flags()), per_scan=self.per_scan, volume=self.volume,
                               suffix=self.suffix, size=size if self.size is None else self.size,
                               assume_orientation=self.assume_orientation, trust=self.trust,
                               mask_suffix=self.mask_suffix)


@dataclass(frozen=True)
class Source:
    """This is a file that is to be read.

    Attributes:
        scan: None for a picture.
        named: True if the user named the file, which must then be readable; False if it was found in a folder.
    """

    path: Path
    scan: Scan | None
    named: bool


@dataclass(frozen=True)
class InputImage:
    """This is one image in the model's form.

    Attributes:
        source: the file that the image comes from, as the user would write it.
        file_name: the path of a picture; the path of a scan and the name that extract_slices.py gives the slice.
        pixels: uint8 or uint16 `[channels, height, width]`.
        changes: the changes that were made; none where the image fitted.
        facts: subject, plane, index and position_mm of a slice; {} for a picture.
    """

    source: str
    file_name: str
    pixels: np.ndarray = field(repr=False)
    changes: tuple[str, ...]
    facts: dict[str, str]


def predict(settings: PredictSettings) -> dict:
    """Send all inputs through the model; write everything to settings.out, and return what is in metrics.json.

    Raises: UserError, before anything is written, if something that was named cannot be read, nothing could be, or
        --out holds what predict.py did not make.
    """
    with claimed(settings.out, f"--out {settings.out}") as claim:
        return _predict(settings, claim)


def _predict(settings: PredictSettings, claim: Claim) -> dict:
    check_out(settings)
    vqvae = autoencoder.load_vqvae(settings.vqvae[0], distributed.pick_device())
    decoder = texture_decoder.attach(vqvae, settings.decoder, 0)
    cleaner = settings.denoise and denoiser.load_denoiser(settings.denoise, vqvae)
    shape = shape_for(vqvae, settings)
    recorded = vqvae.config["data"].get("extraction") or {}
    trained = as_before(vqvae.config["settings"])
    cutting = settings.cutting(recorded, max(shape[1:]))
    sources = find_sources(settings.input, settings.suffix, settings.out, cutting.mask_suffixes)
    given, rejected = read_all(sources, cutting, shape, trained.get("size"), trained["fit"], trained["colours"])
    names = dataset.unique_names([image.file_name for image in given])
    folder = PredictFolder(settings.out, as_dict(settings) | {
        "input": [str(path) for path in settings.input], "out": settings.out.name, "vqvae": settings.vqvae[0],
        "vqvae_hash": vqvae.hash, "decoder_hash": decoder and decoder.hash,
        "denoiser_hash": cleaner and cleaner.hash})
    hashes = {name: dataset.pixel_hash(image.pixels) for name, image in zip(names, given)}
    if (report := folder.finished(hashes)) and report.get("rejected") == len(rejected):
        print(f"{len(names)} of {len(names)} images are there already", flush=True)
        claim.remove_left_overs()
        if rejected:  # as many as before, but perhaps others
            files.write_rows(settings.out / REJECTED, rejected)
        _write_page(settings, given, names, report, rejected)
        folder.tidy()
        return report
    folder.begin(claim, hashes)
    maps, figures = reconstruct_all(vqvae, given, hashes, settings, folder, cleaner and cleaner.model)
    maps.save(settings.out / CODES, vqvae.hash, "")
    if rejected:
        files.write_rows(settings.out / REJECTED, rejected)
    configs = [loaded.config for loaded in (vqvae, decoder, cleaner) if loaded]
    seen = {name: set().union(*(config[name] for config in configs))
            for name in ("training_images", "training_subjects")}
    fits = unlikeness.figures(vqvae, lambda: _batches(given, settings.batch))
    files.write_rows(settings.out / TABLE, table_of(given, names, figures, seen, fits))
    values, said = as_dict(cutting), dict.fromkeys(recorded, "model") | dict.fromkeys(settings.given_flags(), "flag")
    slices = {name: {"value": values[name], "from": said.get(name, "default")} for name in OF_SLICES} | {
        "per_scan": {"value": settings.per_scan, "from": "flag"}}
    report = summary(vqvae, given, maps, figures, rejected, seen) | {
        "decoder_hash": decoder and decoder.hash, "denoiser_hash": cleaner and cleaner.hash,
        "device": str(next(vqvae.model.parameters()).device),
        **unlikeness.summary(fits),
        "slices": slices if any(image.facts for image in given) else None}
    files.write_json(settings.out / SUMMARY, report | {"settings": folder.settings, "versions": weights.versions()})
    _write_page(settings, given, names, report, rejected)
    folder.tidy()
    return report


def _write_page(settings: PredictSettings, given: Sequence[InputImage], names: Sequence[str], report: dict,
                rejected: Sequence[dict[str, str]]) -> None:
    """Write index.html, of what was given and of the files that are there."""
    hashes = {name: report.get(f"{name}_hash") for name in ("vqvae", "decoder", "denoiser")}
    runs = (("vqvae", "VQ-VAE", settings.vqvae[0]), ("decoder", "texture decoder", settings.decoder),
            ("denoiser", "denoiser", settings.denoise))
    made = {"reconstruction": settings.out / MADE} | ({"denoised": settings.out / DENOISED} if settings.denoise else {})
    about = [(what, f"{Path(run).name} ({hashes[key][:8]})") for key, what, run in runs if run and hashes[key]]
    prediction_page.write(settings.out / INDEX, {name: image.pixels for name, image in zip(names, given)},
                          made, files.read_rows(settings.out / TABLE), rejected, headline(report),
                          [*about, ("software", f"vqvae2 {__version__}")])


class PredictFolder(RecordedFolder):
    """The folder of predict.py. An image's codes and figures wait in parts/ until all images are done."""

    command, record, made = "predict.py", RECORD, "its images were made with"
    own = (ORIGINALS, MADE, DENOISED, MAPS, PICTURES, PARTS, CODES, GRID, TABLE, SUMMARY, REJECTED, INDEX)
    hashes = MappingProxyType({"vqvae": "vqvae_hash", "decoder": "decoder_hash", "denoise": "denoiser_hash"})
    lacking = MappingProxyType({"decoder": None, "decoder_hash": None, "denoise": None, "denoiser_hash": None,
                                "nifti": False, "restore": False})

    def changed(self) -> list[str]:
        """Return what differs from the settings before."""
        return [re.sub(r"^--input", "INPUT", text) for text in super().changed()]

    @property
    def images(self) -> dict[str, str]:
        """The images of an earlier run by their names, with the hashes of their pixels; "" where it kept no hashes."""
        names, hashes = (found if isinstance(found := self.found.get(key), list) else []
                         for key in ("images", "pixels"))
        # A damaged record must not lead elsewhere.
        return {name: pixels for name, pixels in itertools.zip_longest(names, hashes[:len(names)], fillvalue="")
                if isinstance(name, str) and name == Path(name).name}

    def finished(self, images: Mapping[str, str]) -> dict | None:
        """Return metrics.json if it is of these images and their pictures are there."""
        if self.images != images or not all((self.out / PICTURES / f"{name}.png").exists() for name in images):
            return None
        report = self.read(SUMMARY)
        return report and {name: value for name, value in report.items() if name not in ("settings", "versions")}

    def begin(self, claim: Claim, images: Mapping[str, str]) -> None:
        """Remove what an earlier run wrote of all images together, and of images that are not given any more; write the
        record."""
        claim.remove_left_overs(ORIGINALS, MADE, DENOISED, MAPS, PICTURES, PARTS)
        gone = [name for name, pixels in self.images.items() if images.get(name) != pixels]
        for old in (INDEX, SUMMARY, TABLE, REJECTED, CODES, GRID,
                    *(f"{folder}/{name}.png" for folder in (ORIGINALS, MADE, DENOISED, PICTURES) for name in gone),
                    *(f"{MAPS}/{name}_{level}.png" for level in ("top", "bottom") for name in gone)):
            (self.out / old).unlink(missing_ok=True)
        self.write_record({"vqvae_hash": self.settings["vqvae_hash"], "images": list(images),
                           "pixels": list(images.values())})

    def keep(self, name: str, pixels: str, levels: Mapping[str, torch.Tensor],
             figures: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Write the codes and figures of an image whose pictures are there."""
        scores = {f"{area} {figure}": values for area, of_area in figures.items() for figure, values in of_area.items()}
        code_maps.CodeMaps([name], dict(levels), scores).save(self._part(name), self.settings["vqvae_hash"], pixels)

    def part(self, name: str, pixels: str) -> tuple[dict, dict] | None:
        """Return codes and figures of an image as `keep` got them; None where they are not there."""
        found = code_maps.CodeMaps.load(self._part(name), self.settings["vqvae_hash"], pixels)
        if found is None or not (self.out / PICTURES / f"{name}.png").exists():
            return None
        figures: dict[str, dict[str, torch.Tensor]] = {}
        for key, values in found.scores.items():
            area, _, figure = key.partition(" ")
            figures.setdefault(area, {})[figure] = values
        return found.levels, figures

    def _part(self, name: str) -> Path:
        return self.out / PARTS / f"{name}.npz"


def find_sources(inputs: Sequence[Path], suffixes: Sequence[str], out: Path,
                 mask_suffixes: Sequence[str] = ()) -> list[Source]:
    """Return the files that the inputs are, or hold, each once, in order.

    Args:
        suffixes: endings of the names of the scans that are wanted of a folder; () for T1-weighted ones.
        out: folder whose pictures are not read.
        mask_suffixes: endings of the names of brain masks that lie beside scans.
    Raises: UserError for an input that is not there or of another kind, and for a folder that holds nothing to read.
    """
    found: dict[tuple[str, ...], Source] = {}
    for given in inputs:
        expect(given.exists(), str(given), WHAT_IS_READ, "nothing", "Correct the path.")
        is_scan = stem_of(given.name) is not None
        if given.is_dir():
            sources = _in_folder(given, suffixes, out, mask_suffixes)
        else:
            expect(is_scan or given.suffix.lower() in SUFFIXES, str(given), WHAT_IS_READ, "a file of another kind",
                   "Leave it out, or convert it; of DICOM files without an ending name the folder.")
            sources = [Source(given, _named_scan(given, mask_suffixes) if is_scan else None, True)]
        for source in sources:
            key = tuple(os.path.realpath(path) for path in files_of(source.path))  # a pair's two files are one scan
            if key not in found or source.named:
                found[key] = source
    return list(found.values())


def _in_folder(folder: Path, suffixes: Sequence[str], out: Path, mask_suffixes: Sequence[str]) -> list[Source]:
    inside = find_scans(folder, suffixes=suffixes, mask_suffixes=mask_suffixes)
    found, odd = find_pictures(folder)
    pictures = [path for path in found if not path.resolve().is_relative_to(out.resolve())
                and not (path.name == writing.GRID and (path.parent / writing.RECORD).is_file())]  # all samples in one
    others = f"{inside.other} scans whose names are not of T1-weighted ones"
    if not inside.scans:
        found, advice = (f"only {others}", "Give --suffix, or name the files.") if inside.other else (
            "none", "Correct the path.")
        pictures = sorted([*pictures, *odd])  # those that are no files are told as not read
        expect(bool(pictures), str(folder), "images or scans in this folder", found, advice)
        return [Source(path, None, False) for path in pictures]
    left_out = [said for number, said in (
        (len(pictures), f"{len(pictures)} pictures, as in a folder of scans they are previews"),
        (inside.further, f"{inside.further} further scans of the same sessions"),
        (inside.other, f"{others} (--suffix)")) if number]
    if left_out:
        print(f"{folder}: left out {', '.join(left_out)}; name a file itself to have it read", flush=True)
    # A folder of DICOM files that was named itself has its mask beside it, outside of what was searched.
    return [Source(scan.path, with_mask(scan, os.listdir(folder.absolute().parent), mask_suffixes)
                   if scan.path == folder else scan, False) for scan in inside.scans
            if not scan.path.resolve().is_relative_to(out.resolve())]  # --nifti has made those in it


def _named_scan(path: Path, mask_suffixes: Sequence[str]) -> Scan:
    """Return a scan that may have any name; its layout, its subject and its brain mask are told by where it lies."""
    in_series = is_dicom_name(path.name)
    header = path.parent if in_series else files_of(path)[0]
    header = header if header.exists() else path
    name = header.resolve() / SERIES if in_series else header.resolve()
    [(_, who)] = identify([File(header, name.as_posix(), "")])[0]
    scan = Scan(header, str(header), who.subject, who.session, who.run, who.storage, stem_of(header.name) or "scan")
    return with_mask(scan, os.listdir(header.absolute().parent), mask_suffixes)


def read_all(sources: Sequence[Source], cutting: ExtractSettings, shape: tuple[int, int, int],
             size: int | None, fit: str = "stretch",
             colours: str = "auto") -> tuple[list[InputImage], list[dict[str, str]]]:
    """Return all images in the model's form, and rows (input, reason) of files in folders that cannot be read.

    Args:
        cutting: how slices are cut out of scans.
        shape: (channels, height, width) of the model's images.
        size: --size that the model was trained with; None for a model without --size, whose images keep their
            proportions.
        fit, colours: the flags that the model was trained with.
    Raises: UserError for the first file that was named itself and cannot be read, or if none could be.
    """
    given: list[InputImage] = []
    rejected: list[dict[str, str]] = []
    free = memory.memory_available()
    for source in Bar(sources, desc="reading", unit="file"):
        try:
            with memory.only(free):
                given += (_read_picture(source.path, shape, size, fit, colours) if source.scan is None
                          else _read_scan(source.scan, cutting, shape))
        except UserError as error:
            if source.named:
                raise
            reason = getattr(error, "reason", str(error).removeprefix(f"{source.path}: "))
            rejected.append({"input": str(source.path), "reason": reason})
    for row in rejected[:MOST_SAID]:
        print(f"not read: {row['input']}: {row['reason']}", flush=True)
    expect(bool(given), "INPUT", "at least one image or scan that can be read",
           f"none among {len(rejected)}" + (f", such as {rejected[0]['input']}" if rejected else ""),
           "See the lines above.")
    return given, rejected


def _read_picture(path: Path, shape: tuple[int, int, int], size: int | None, fit: str,
                  colours: str) -> list[InputImage]:
    pixels, changes = read_picture(path), []
    if len(pixels) == 3 and colours == "grey":
        changes.append(GREY)
    if resized_so := pixels.shape[1:] != shape[1:] == (size, size):
        cropped = fit == "crop" and pixels.shape[1] != pixels.shape[2]
        changes.append(f"{CROPPED if cropped else STRETCHED} from {_size(pixels)}")
    if changes:  # bit for bit as the training read the picture
        pixels = read_picture(path, size if resized_so else None, fit, colours)
    return [in_form(str(path), str(path), pixels, shape, changes, {})]


def _read_scan(scan: Scan, cutting: ExtractSettings, shape: tuple[int, int, int]) -> list[InputImage]:
    """Return the slices that extract_slices.py would cut. Raises: UserError."""
    if scan.refused:
        raise UserError(f"{scan.path}: {scan.refused}")
    try:
        with np.errstate(all="ignore"):
            return [in_form(str(scan.path), f"{scan.path}/{row['image']}",
                            levels_of(image, cutting.bits)[None], shape, [SLICE],
                            {name: row[name] for name in ("subject", "plane", "index", "position_mm")})
                    for image, row in draw_slices(scan, cutting)]
    except (ArithmeticError, ValueError, MemoryError) as error:  # numbers near the largest, or a giant
        raise UnusableScan(scan.path.name, "voxels that can be computed with", error or "too many of them",
                           "Repair the scan, or leave it out.") from None


def in_form(source: str, file_name: str, pixels: np.ndarray, shape: tuple[int, int, int], changes: list[str],
            facts: dict[str, str]) -> InputImage:
    """Give an image the model's channels and size."""
    if len(pixels) == 3 and shape[0] == 1:
        changes.append(GREY)
        pixels = pixels.mean(0, keepdims=True).round().astype(pixels.dtype)
    elif len(pixels) == 1:
        pixels = pixels.repeat(shape[0], 0)
    if pixels.shape != shape:
        square = pixels.shape[1] * shape[2] == pixels.shape[2] * shape[1]
        changes.append(f"{RESIZED} from {_size(pixels)}" + ("" if square else ", black borders"))
        pixels = resized(pixels, shape[1], shape[2])
    return InputImage(source, file_name, pixels, tuple(changes), facts)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `[channels, height, width]` of pixels `[channels, h, w]`, in their proportions, black borders where these
    differ; uint8 or uint16 as given. Shrinking averages areas, enlarging is linear, as when training resizes."""
    _, old_height, old_width = pixels.shape
    scale = min(height / old_height, width / old_width)
    inner = max(1, round(old_height * scale)), max(1, round(old_width * scale))
    kind = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    made = np.zeros((len(pixels), height, width), pixels.dtype)
    for channel, into in zip(pixels, made):
        picture = Image.fromarray(channel.astype(np.float32)).resize(inner[::-1], kind)
        into[top:top + inner[0], left:left + inner[1]] = np.asarray(picture).round()
    return made


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]} by {pixels.shape[1]}"


def check_out(settings: PredictSettings, kind: type[RecordedFolder] = PredictFolder) -> None:
    """Raise UserError if --out holds what predict.py did not make and would replace, or the inputs themselves.

    kind: the folder that it makes.
    """
    out = settings.out
    kind.refuse_foreign(out)
    inside = [str(path) for path in settings.input if path.resolve().is_relative_to(out.resolve())]
    expect(not inside, f"--out {out}", "a folder that holds none of the inputs", f"{', '.join(inside)} in it",
           "Choose another --out.")


def shape_for(vqvae: autoencoder.TrainedVqvae, settings: PredictSettings) -> tuple[int, int, int]:
    """Return (channels, height, width) of what the model is given. Raises: UserError if --size does not fit it."""
    channels, height, width = vqvae.config["image_shape"]
    cell, size = math.prod(vqvae.model.settings.downsample), settings.size
    expect(size is None or size % cell == 0, "--size", f"a multiple of {cell}, the pixels of a top code of --vqvae "
           f"{vqvae.folder.name}", size, f"For example {max(cell, (size or 0) // cell * cell)}.")
    return (channels, height, width) if size is None else (channels, size, size)


def reconstruct_all(vqvae: autoencoder.TrainedVqvae, given: Sequence[InputImage], hashes: Mapping[str, str],
                    settings: PredictSettings, folder: PredictFolder, cleaner: denoiser.Denoiser | None = None,
                    ) -> tuple[code_maps.CodeMaps, dict[str, dict[str, torch.Tensor]]]:
    """Send images through the codes, write their pictures and the grid; return all codes, and the figures of each.

    With a denoiser, the codes are those of its encoder, and "noise" is one more area of the figures.
    What is there already is not made again, where all images of a batch are there: the last bits of a network's sums
    depend on the batch.
    """
    size, levels, figures, grid, names = vqvae.model.settings.codebook_size, [], [], [], list(hashes)
    with Bar(total=len(given), desc="reconstructing", unit="image") as bar:
        for start in range(0, len(given), settings.batch):
            part = given[start:start + settings.batch]
            there = [folder.part(name, hashes[name]) for name in names[start:start + settings.batch]]
            if start >= IN_GRID and None not in there:
                levels.append(_joined([codes for codes, _ in there]))
                figures.append({area: _joined([found[area] for _, found in there]) for area in there[0][1]})
                bar.update(len(part))
                continue
            split = dataset.ImageSet(
                tuple(listing.ImageFile(name, "", "", "") for name in names[start:start + settings.batch]),
                _stacked([image.pixels for image in part]))
            if cleaner is None:
                (maps, made), cleaned, of_noise = encoding.reconstruct(vqvae.model, split, settings.batch), None, {}
            else:
                maps, cleaned, estimates = denoising.denoise(vqvae.model, cleaner, split)
                made, of_noise = encoding.decoded(vqvae.model, maps.levels, settings.batch), {"noise": estimates}
            originals = split.bytes()
            levels.append(maps.levels)
            figures.append(similarity.image_figures(originals, made) | of_noise)
            for item, image in enumerate(part):
                own = {level: codes[item:item + 1] for level, codes in maps.levels.items()}
                rows = _rows(originals[item:item + 1], made[item:item + 1], own, size)
                if cleaned is not None:
                    rows.append(("denoised", cleaned[item:item + 1]))
                _write(settings.out, image, split.names[item], rows, own, size,
                       {f"{area} {name}": values[item].item() for area, of_area in figures[-1].items()
                        for name, values in of_area.items()})
                folder.keep(split.names[item], hashes[split.names[item]], own, {
                    area: {name: values[item:item + 1] for name, values in of_area.items()}
                    for area, of_area in figures[-1].items()})
                bar.update()
            if len(grid) < IN_GRID:
                grid += zip(originals, made, *maps.levels.values())
    originals, made, *first = (torch.stack(images[:IN_GRID]) for images in zip(*grid))
    rows = _rows(originals, made, dict(zip(vqvae.model.levels, first)), size)
    title = "The finest detail of the reconstructions is invented." if settings.decoder else None
    plots.save_picture(plots.strip(rows, captions=names[:IN_GRID], title=title), settings.out / GRID)
    return (code_maps.CodeMaps([f"{MADE}/{name}.png" for name in names], _joined(levels)),
            {area: _joined([of[area] for of in figures]) for area in figures[0]})


def _batches(given: Sequence[InputImage], batch: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(given), batch):
        yield dataset.from_bytes(torch.from_numpy(_stacked([image.pixels for image in given[start:start + batch]])))


def _joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _stacked(pixels: list[np.ndarray]) -> np.ndarray:
    """Return one array of 8-bit and 16-bit images: 255 and 65535 are both white, and x / 255 = 257 x / 65535."""
    if len({image.dtype for image in pixels}) > 1:
        pixels = [image.astype(np.uint16) * 257 if image.dtype == np.uint8 else image for image in pixels]
    return np.stack(pixels)


def _write(out: Path, given: InputImage, name: str, rows: Sequence[plots.Row],
           levels: Mapping[str, torch.Tensor], size: int, figures: Mapping[str, float]) -> None:
    """Write the pictures of one image, whose `_rows` these are, and its code maps `[1, height, width]`."""
    (_, original), (_, made), *_ = rows
    if given.changes:  # PNG files that Pillow writes have no colours of 16 bit
        picture = Image.fromarray(given.pixels[0]) if len(given.pixels) == 1 else plots.image_grid(original, 1, gap=0)
        plots.save_picture(picture, out / ORIGINALS / f"{name}.png")
    plots.save_picture(plots.image_grid(made, 1, gap=0), out / MADE / f"{name}.png")
    for level, codes in levels.items():
        plots.save_picture(plots.code_map_picture(codes, size), out / MAPS / f"{name}_{level}.png")
    texts = [name, f"SSIM {figures['full ssim']:.3f}, PSNR {figures['full psnr']:.1f} dB",
             f"mean {figures['full mae']:.4f} of 0…1",
             *(f"{codes.shape[2]} by {codes.shape[1]} codes" for codes in levels.values())]
    if "noise before" in figures:
        plots.save_picture(plots.image_grid(rows[-1][1], 1, gap=0), out / DENOISED / f"{name}.png")
        texts.append(f"noise {figures['noise before']:.3f} before, {figures['noise after']:.3f} after")
    plots.save_picture(plots.side_by_side([plots.strip([row], captions=[text]) for row, text in zip(rows, texts)]),
                       out / PICTURES / f"{name}.png")


def _rows(originals: torch.Tensor, made: torch.Tensor, levels: dict[str, torch.Tensor],
          size: int) -> list[plots.Row]:
    """Return rows for `plots.strip`: original, reconstruction, |difference|, code maps as large as the images."""
    rows = plots.compared(originals, made)
    for level, maps in levels.items():
        cell = originals.shape[-1] // maps.shape[-1]
        large = maps.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        rows.append((f"{level} codes", plots.code_colours(large, size)))
    return rows


def table_of(given: Sequence[InputImage], names: Sequence[str], figures: dict[str, dict[str, torch.Tensor]],
             trained: Mapping[str, set[str]], fits: Mapping[str, Sequence[float] | None] = MappingProxyType({}),
             ) -> list[dict]:
    """Return the rows of metrics.csv; a figure that is not defined is empty.

    Args:
        trained: as for `summary`. fits: `unlikeness.figures`.
    """
    seen, columns = trained["training_images"], {}
    for area, of_area in figures.items():
        for name, values in of_area.items():
            columns[name if area == "full" else f"{area}_{name}"] = [
                "" if math.isnan(value) else f"{value:.6g}" for value in values.tolist()]
    for name, values in fits.items():
        columns[name] = ["" if math.isnan(value) else f"{value:.3g}" for value in values or [math.nan] * len(given)]
    return [{"image": name, "input": image.source, **{column: texts[i] for column, texts in columns.items()},
             "seen_in_training": int(dataset.pixel_hash(image.pixels) in seen), "changes": "; ".join(image.changes),
             **image.facts} for i, (name, image) in enumerate(zip(names, given))]


def summary(vqvae: autoencoder.TrainedVqvae, given: Sequence[InputImage], maps: code_maps.CodeMaps,
            figures: dict[str, dict[str, torch.Tensor]], rejected: Sequence[dict],
            seen: Mapping[str, set[str]]) -> dict:
    """Return what metrics.json says of all images together; names as in evaluate.py's.

    Args:
        seen: the hashes under "training_images" and "training_subjects" of all models.
    """
    size, (_, height, width) = vqvae.model.settings.codebook_size, given[0].pixels.shape
    trained = from_dict(DataSettings, vqvae.config["settings"])
    named = [image.facts.get("subject") or listing.subject_in_name(image.file_name, trained) for image in given]
    subjects = [name or image.file_name for name, image in zip(named, given)]
    grids = [tuple(codes.shape[1:]) for codes in maps.levels.values()]
    of_all = {area: {name: statistics.summarise(values, subjects, 0) for name, values in of_area.items()}
              for area, of_area in figures.items()}
    return {
        "schema": 1, "made_by": "predict.py", "compared": COMPARED, "images": len(given),
        "rejected": len(rejected),
        "subjects": len(set(subjects)), "subjects_known": all(named), "size": [height, width],
        "trained_at": list(vqvae.config["image_shape"][1:]),
        "changes": {what: sum(change.startswith(what) for image in given for change in image.changes)
                    for what in CHANGES},
        "seen_in_training": {
            "images": sum(dataset.pixel_hash(image.pixels) in seen["training_images"] for image in given),
            "subjects": len({name for name in named
                             if name and dataset.subject_hash(name) in seen["training_subjects"]})},
        "reconstruction": {area: of_all[area] for area in ("full", "brain")},
        **({"noise": of_all["noise"]} if "noise" in of_all else {}),
        "codes": {level: coding.codebook_figures(coding.code_counts(codes, size))
                  for level, codes in maps.levels.items()},
        "raw_bits_per_pixel": coding.raw_bits_per_pixel([size] * len(grids), grids, height * width),
        "ms_ssim_weights": similarity.ms_ssim_scales(min(height, width)), "vqvae_hash": vqvae.hash}


def headline(report: dict) -> list[str]:
    """Return what is printed in the end: figures, what was done to the inputs, warnings."""
    seen, (height, width) = report["seen_in_training"], report["size"]

    def said(name: str, form: str) -> str:
        values = report["reconstruction"]["full"][name]
        return "not defined" if values["mean"] is None else (
            f"{form.format(values['mean'])} mean, {form.format(values['min'])} minimum")

    lines = [f"{report['images']} image(s) of {width} by {height} pixels on {report['device']}; "
             f"{report['rejected']} file(s) not read", f"SSIM, full picture: {said('ssim', '{:.4f}')}",
             f"PSNR, full picture: {said('psnr', '{:.2f} dB')}"]
    if slices := report["slices"]:
        how = ", ".join(f"{name.replace('_', ' ')} {' '.join(map(str, np.atleast_1d(cut['value']).tolist()))}"
                        for name, cut in slices.items())
        guessed = any(cut["from"] == "default" for cut in slices.values())
        lines.append(f"slices: {how}" + guessed * ("; the model does not say how its own were cut, so these are "
                                                   "extract_slices.py's defaults"))
    to_size = ", to the size that the model was trained at; --size N for another" if report["trained_at"] == report[
        "size"] else ", to --size; the model was trained at {1} by {0} pixels".format(*report["trained_at"])
    lines += [f"{what}: {number} of {report['images']} image(s){to_size * (what != GREY)} (see {TABLE})"
              for what, number in report["changes"].items() if number and what != SLICE]
    if found := report.get("noise"):
        before, after = (statistics.as_text(found[when]["mean"], 3) for when in ("before", "after"))
        lines += [f"noise inside the brain, estimated: {before} before, {after} after, on the range 0…1 (fine anatomy "
                  "counts as noise)", "warning: what is small or faint may be weaker in denoised/, or gone: measure in "
                  "the originals (docs/denoising.md says how much is lost)"]
    if report.get("decoder_hash"):
        lines.append("warning: --decoder has invented the finest detail of these reconstructions")
    for name, (what, question) in unlikeness.WORDS.items():
        if (found := report.get(name)) and found["images_above"]:
            lines.append(f"warning: {found['images_above']} of {report['images']} image(s) {what}: {name} up to "
                         f"{found['max']:.2f}, where {found['limit']:g} is the most that is usual (see {TABLE}). "
                         f"{question}")
    if seen["images"] or seen["subjects"]:
        lines.append(f"warning: the model was trained on {seen['images']} of these images, and on {seen['subjects']} "
                     "subjects of these names: its figures on them say nothing about new ones")
    return lines
