"""Images and scans, a VQ-VAE and its priors -> a small file for each image and each scan, and what was lost.

An image is its codes, coded by the priors' probabilities. A scan is one file of all its planes of one kind, each of
which can be read alone, with its NIfTI header and the place of its planes. A file of an earlier start that says the
same is not coded again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from vqvae2.common import files, statistics
from vqvae2.common.errors import UserError, expect
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.common.names import NORMAL
from vqvae2.common.progress import Bar
from vqvae2.compression import code_streams, container, exact, models
from vqvae2.compression.container import SUFFIX, Chunk, Compressed
from vqvae2.compression.scan_geometry import ScanGeometry
from vqvae2.compression.settings import CompressSettings
from vqvae2.evaluation import scan_maps
from vqvae2.evaluation.prediction import (
    MOST_SAID,
    InputImage,
    Source,
    check_out,
    find_sources,
    read_all,
    shape_for,
)
from vqvae2.images import dataset
from vqvae2.metrics import similarity
from vqvae2.models import encoding
from vqvae2.priors import conditions
from vqvae2.runs.record import RecordedFolder
from vqvae2.runs.settings import as_before
from vqvae2.scans.headers import UnusableScan, expect_usable
from vqvae2.scans.identities import stem_of
from vqvae2.settings.parsing import as_dict
from vqvae2.slices import planes

RECORD, TABLE, REJECTED = "compress.json", "sizes.csv", "rejected.csv"
PLANES = 8
"""Planes of a scan are read so many at a time, for the memory."""


class CompressFolder(RecordedFolder):
    """The folder of vqvae2 compress."""

    command, record, made = "vqvae2 compress", RECORD, "its files were made with"
    own = (TABLE, REJECTED)
    hashes = MappingProxyType({name: f"{name}_hash" for name in ("vqvae", "top", "bottom", "lossless")})
    may_differ = frozenset({*RecordedFolder.may_differ, "verify"})


@dataclass(frozen=True)
class Content:
    """This is what will be one file: an image, or the planes of a scan.

    Attributes:
        name: of the file, without its ending.
        source: the file that it comes from, as the user would write it.
        images: its slices, in the form that the model takes.
        geometry: of a scan.
    """

    name: str
    source: str
    images: dataset.ImageSet = field(repr=False)
    geometry: ScanGeometry | None = None


def compress(settings: CompressSettings) -> dict:
    """Write a file for each image and scan; return the figures of all together.

    Raises: UserError, before anything is written, if something that was named cannot be read, or --out holds what this
        command did not make.
    """
    with claimed(settings.out, f"--out {settings.out}") as claim:
        check_out(settings, CompressFolder)
        rows, rejected = (_by_codes if settings.lossless is None else _exactly)(settings, claim)
        for name, table in ((TABLE, rows), (REJECTED, rejected)):
            (settings.out / name).unlink(missing_ok=True)
            if table:
                files.write_rows(settings.out / name, table)
    for row in rejected[:MOST_SAID]:
        print(f"not read: {row['input']}: {row['reason']}", flush=True)
    expect(bool(rows), "INPUT", "at least one image or scan that can be read", f"none among {len(rejected)}",
           "See the lines above.")
    return summary(rows, rejected)


def _begin(settings: CompressSettings, claim: Claim, hashes: Mapping[str, str]) -> None:
    """Write the record, which names the models by their hashes. Raises: UserError if the folder has another."""
    own = {f"{name}_hash": hashes.get(name) for name in CompressFolder.hashes}
    folder = CompressFolder(settings.out, as_dict(settings) | own | {
        "input": [str(path) for path in settings.input], "out": settings.out.name})
    claim.remove_left_overs()
    folder.write_record(own)


def _by_codes(settings: CompressSettings, claim: Claim) -> tuple[list[dict], list[dict]]:
    """Write the files of a VQ-VAE and its priors; return a row for each, and rows of what could not be read."""
    own = models.load(settings.vqvae, settings.top, settings.bottom)
    model = _model(own, settings)
    sources = find_sources(settings.input, settings.suffix, settings.out, model.cutting.mask_suffixes)
    scans = [source for source in sources if source.scan is not None]
    if scans:
        height, width = model.shape[1:]
        expect(height == width, f"--vqvae {settings.vqvae}", "a model of square images, for scans",
               f"{width} by {height} pixels", "Cut slices with vqvae2 extract, and compress those.")
        expect(len(model.cutting.planes) == 1, "--planes", "one kind of planes, into which scans are cut",
               " ".join(model.cutting.planes), "Choose one of these.")
    for source in scans:  # an error comes before the first file is written
        if source.named:
            scan_maps.open_scan(source.scan, model.cutting)
    pictures, rejected = _pictures([source for source in sources if source.scan is None], own, model)
    _begin(settings, claim, own.hashes)
    rows, names = [], _names(sources)
    contents = [Content(names[image.source], image.source, _image_set(image)) for image in pictures]
    for first in Bar(range(0, len(contents), settings.batch), desc="compressing", unit="batch"):
        rows += _write(own, settings, contents[first:first + settings.batch])
    for number, source in enumerate(scans, 1):
        try:
            rows += _write_scan(source, names[str(source.path)], own, model, settings, f"scan {number} of {len(scans)}")
        except UnusableScan as error:
            if source.named:
                raise
            rejected.append({"input": str(source.path), "reason": error.reason})
    return rows, rejected


def _exactly(settings: CompressSettings, claim: Claim) -> tuple[list[dict], list[dict]]:
    """Write the files of a network of pixels; return a row for each, and rows of what could not be read."""
    own = exact.load(settings.lossless)
    sources = find_sources(settings.input, settings.suffix, settings.out)
    scans = [str(source.path) for source in sources if source.scan is not None]
    expect(not scans, "INPUT", "pictures alone, with --lossless", ", ".join(scans[:3]),
           "Cut slices with vqvae2 extract, and compress those.")
    images, rejected = {}, []
    for source in Bar(sources, desc="reading", unit="file"):
        try:
            images[source.path] = exact.read(source.path)
        except UserError as error:
            if source.named:
                raise
            rejected.append({"input": str(source.path), "reason": str(error).removeprefix(f"{source.path}: ")})
    _begin(settings, claim, {"lossless": own.hash})
    names, rows, given = _names(sources), [], list(images.items())
    for first in Bar(range(0, len(given), settings.batch), desc="compressing", unit="batch"):
        part = [(settings.out / f"{names[str(path)]}{SUFFIX}", path, image)
                for path, image in given[first:first + settings.batch]]
        missing = [(path, image) for path, _, image in part if not _says(
            path, exact.plan(image, own), [exact.check_of(image)], np.zeros((1, 0)))]
        made = exact.encode([image for _, image in missing], own, verify=settings.verify)
        for (path, _), content in zip(missing, made):
            files.write_atomically(path, content.packed())
        rows += [_row(path, source, 1, image.size) for path, source, image in part]
    return rows, rejected


def _model(own: models.Models, settings: CompressSettings) -> scan_maps.Model:
    """Return the VQ-VAE with the way in which scans are cut for it."""
    shape = shape_for(own.vqvae, settings.reading(scans=False))
    recorded = own.vqvae.config["data"].get("extraction") or {}
    cutting = settings.reading(scans=True).cutting(recorded, max(shape[1:]))
    return scan_maps.Model(own.vqvae, {}, None, replace(cutting, extent=settings.extent), shape)


def _names(sources: Sequence[Source]) -> dict[str, str]:
    """Return what the file of each source is called, without its ending, by the source's path."""
    stems = [(source.path.with_name(f"{stem_of(source.path.name) or source.path.name}{SUFFIX}") if source.scan
              else source.path).as_posix() for source in sources]
    return dict(zip((str(source.path) for source in sources), dataset.unique_names(stems)))


def _pictures(sources: Sequence[Source], own: models.Models, model: scan_maps.Model,
              ) -> tuple[list[InputImage], list[dict[str, str]]]:
    """Return the images of pictures, and rows of those in folders that cannot be read."""
    trained = as_before(own.vqvae.config["settings"])
    return read_all(sources, model.cutting, model.shape, trained.get("size"), trained["fit"],
                    trained["colours"]) if sources else ([], [])


def _image_set(image: InputImage) -> dataset.ImageSet:
    return dataset.ImageSet((scan_maps.DrawnSlice(image.file_name, "", "", "", {}),), image.pixels[None])


def _write_scan(source: Source, name: str, own: models.Models, model: scan_maps.Model, settings: CompressSettings,
                said: str) -> list[dict]:
    """Write the file of a scan, and return its row. Raises: UnusableScan."""
    expect_usable(not source.scan.refused, source.path.name, "a scan that can be read", source.scan.refused,
                  "Leave it out.")
    [plane] = model.cutting.planes
    opened = scan_maps.open_scan(source.scan, model.cutting)
    with scan_maps.numbers_of(source.scan):
        chosen, parts, indices = scan_maps.chosen_planes(opened, model, plane), [], []
        for first in range(0, len(chosen), PLANES):
            drawn = [(index, seen) for index in chosen[first:first + PLANES] if (seen := planes.plane_of(
                opened.volume, opened.brain, NORMAL[plane], index)).inside.any()]
            if drawn:
                parts.append(scan_maps.images_of(opened, model, plane, drawn))
                indices += [index for index, _ in drawn]
    expect_usable(bool(indices), source.path.name, "brain in the planes that are kept", "none",
                  "Leave the scan out, or choose another --extent.")
    geometry = ScanGeometry.of(opened, plane, model.cutting.field_of_view, indices)
    with Bar(total=len(indices), desc=said, unit="plane") as bar:
        return _write(own, settings, [Content(name, str(source.path), _joined(parts), geometry)], bar.update)


def _joined(sets: Sequence[dataset.ImageSet]) -> dataset.ImageSet:
    """Return all images in one set, of 16 bits if some have 16: x / 255 = 257 x / 65535."""
    is_mixed = len({each.pixels.dtype for each in sets}) > 1
    return dataset.ImageSet(tuple(file for each in sets for file in each.files), np.concatenate([
        each.pixels.astype(np.uint16) * 257 if is_mixed and each.pixels.dtype == np.uint8 else each.pixels
        for each in sets]))


def _write(own: models.Models, settings: CompressSettings, contents: Sequence[Content],
           on_slices: Callable[[int], object] = lambda _: None) -> list[dict]:
    """Write the files of some contents, whose slices are coded together; return a row for each."""
    split = _joined([content.images for content in contents])
    maps, made = encoding.reconstruct(own.vqvae.model, split, settings.batch)
    known = conditions.numbers(code_streams.columns_of(own.priors), split.facts)
    ends = np.cumsum([len(content.images) for content in contents])
    owners = [slice(end - len(content.images), end) for content, end in zip(contents, ends)]
    checks = [code_streams.check_of(maps.levels, item) for item in range(len(split))]
    figures = similarity.image_figures(split.bytes(), made)
    plans = [_plan(content, own) for content in contents]
    is_there = [_says(settings.out / f"{content.name}{SUFFIX}", plan, checks[owner], known[owner].numpy())
                for content, plan, owner in zip(contents, plans, owners)]
    waiting = [item for owner, there in zip(owners, is_there) if not there for item in range(len(split))[owner]]
    on_slices(len(split) - len(waiting))
    levels = {level: codes[waiting] for level, codes in maps.levels.items()}
    streams = dict(zip(waiting, code_streams.encode(own.priors, levels, known[waiting], settings.batch, on_slices,
                                                    verify=settings.verify)))
    rows = []
    for content, owner, plan, there in zip(contents, owners, plans, is_there):
        path = settings.out / f"{content.name}{SUFFIX}"
        if not there:
            chunks = [Chunk(checks[item], tuple(known[item].tolist()), streams[item]).packed()
                      for item in range(len(split))[owner]]
            files.write_atomically(path, replace(plan, chunks=chunks).packed())
        rows.append(_row(path, content.source, len(content.images), len(content.images) * math.prod(plan.shape[1:])) | {
            name if area == "full" else f"{area}_{name}": values[owner].nanmean().item()
            for area, of_area in figures.items() for name, values in of_area.items()})
    return rows


def _row(path: Path, source: Path | str, slices: int, pixels: int) -> dict:
    """Return the row of a file that is written: how large it is."""
    size = path.stat().st_size
    return {"file": path.name, "input": str(source), "slices": slices, "bytes": size,
            "bits_per_pixel": size * 8 / pixels}


def _says(path: Path, plan: Compressed, checks: Sequence[int], known: np.ndarray) -> bool:
    """Return whether a file is there, whole, and says what is planned: an earlier start wrote it."""
    with suppress(UserError, ValueError):
        found = Compressed.read(path)
        chunks = [Chunk.unpacked(chunk, known.shape[1]) for chunk in found.chunks]
        return replace(found, chunks=()) == plan and [chunk.check for chunk in chunks] == list(checks) and \
            np.array_equal(np.float32([chunk.known for chunk in chunks]), known, equal_nan=True)
    return False


def _plan(content: Content, own: models.Models) -> Compressed:
    """Return the file of a content, still without chunks."""
    pixels = content.images.pixels
    kind, said = (container.IMAGES, {}) if content.geometry is None else (container.SCAN, content.geometry.as_json())
    return Compressed(kind, tuple(own.hashes.values()), pixels.shape[1:], 8 * pixels.dtype.itemsize, (), said)


def summary(rows: Sequence[dict], rejected: Sequence[dict]) -> dict:
    """Return the figures of all files together: their number and bytes, and means over them."""
    return {"files": len(rows), "rejected": len(rejected), "slices": sum(row["slices"] for row in rows),
            "bytes": sum(row["bytes"] for row in rows),
            **{name: statistics.summarise(torch.tensor([row[name] for row in rows], dtype=torch.float64),
                                          [row["input"] for row in rows], 0)["mean"]
               for name in ("bits_per_pixel", "ssim", "psnr", "brain_ssim") if name in rows[0]}}


def headline(report: dict) -> list[str]:
    """Return what is printed in the end."""
    def said(name: str, form: str) -> str:
        return "not defined" if report[name] is None else form.format(report[name])

    lost = f"SSIM {said('ssim', '{:.4f}')}, inside the brain {said('brain_ssim', '{:.4f}')}; PSNR " \
        f"{said('psnr', '{:.2f} dB')} (means over files)" if "ssim" in report else "every pixel comes back"
    return [f"{report['files']} file(s) of {report['slices']} slice(s), {report['bytes']:,} bytes; "
            f"{report['rejected']} file(s) not read",
            f"{said('bits_per_pixel', '{:.3f}')} bits a pixel; {lost}"]
