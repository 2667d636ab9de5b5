"""Files of vqvae2 compress, and the models that made them -> pictures and scans.

Slices of all files are decoded together, a batch at a time: code after code, as sampling draws them. A slice whose
bytes are damaged, or whose codes this machine computes otherwise, is named and left out; all others are written.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import UserError, expect
from vqvae2.common.folder_lock import claimed
from vqvae2.common.progress import Bar
from vqvae2.compression import code_streams, exact, models
from vqvae2.compression.container import HASH, SUFFIX, Chunk, Compressed
from vqvae2.compression.lossless import ResidualCoder
from vqvae2.compression.scan_geometry import MEANINGLESS, ScanGeometry
from vqvae2.compression.settings import DecompressSettings
from vqvae2.images import dataset
from vqvae2.models import encoding
from vqvae2.models.autoencoder import code_grids
from vqvae2.plots import pictures
from vqvae2.runs.record import RecordedFolder
from vqvae2.settings.parsing import as_dict

RECORD, TABLE = "decompress.json", "damaged.csv"
MANIFEST = "manifest.csv"
"""The name tells a folder of slices, for which decoded pictures would be taken."""
DAMAGED, OTHERWISE = "its bytes are damaged", "this machine decodes other codes than were written"


class DecompressFolder(RecordedFolder):
    """The folder of vqvae2 decompress."""

    command, record, made = "vqvae2 decompress", RECORD, "its images were decoded with"
    own = (TABLE,)
    hashes = MappingProxyType({name: f"{name}_hash" for name in ("vqvae", "top", "bottom", "lossless")})

    def said(self, key: str) -> dict[str, str]:
        """Return what the record says under this key: the hash of each `files` that is decoded, or of which file each
        picture or scan is `made`."""
        return found if isinstance(found := self.found.get(key), dict) else {}

    def refuse_to_replace(self, made: Iterable[str]) -> None:
        """Raise UserError if files of these names are there that the command did not make, or slices of extract."""
        foreign = [name for name in made if name not in self.said("made") and (self.out / name).exists()]
        expect(not foreign, f"--out {self.out}", "a folder without files of these names that vqvae2 decompress did not "
               "make", files.shortened(", ".join(foreign)), "Choose another --out.")
        expect(not (self.out / MANIFEST).exists(), f"--out {self.out}", "a folder of its own", "slices of vqvae2 "
               "extract, with their manifest.csv", "Choose another --out.")


@dataclass
class _File:
    """This is a file that is to be decoded.

    Attributes:
        name: of what is made of it, without its ending.
        sha256: of its bytes.
        geometry: of a scan.
        wanted: the numbers of the slices that are asked for.
        codes: of the slices that are decoded already, by number and level.
    """

    path: Path
    name: str
    sha256: str
    content: Compressed = field(repr=False)
    geometry: ScanGeometry | None
    wanted: Sequence[int]
    codes: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)

    def made(self, *, as_pictures: bool) -> list[str]:
        """Return the names of the files that are made of it."""
        if self.geometry is None:
            return [f"{self.name}.png"]
        place = self.geometry
        return [f"{self.name}_{place.plane}_{place.indices[number]:03d}.png" for number in self.wanted] \
            if as_pictures else [f"{self.name}.nii.gz"]


def decompress(settings: DecompressSettings) -> dict:
    """Write what is in the files; return the number of files and slices, and rows of what could not be read.

    Raises: UserError, before anything is written, if a file that was named is none of vqvae2 compress, has a damaged
        header, or was made with other models.
    """
    with claimed(settings.out, f"--out {settings.out}") as claim:
        DecompressFolder.refuse_foreign(settings.out)
        own = models.load(settings.vqvae, settings.top, settings.bottom) if settings.vqvae else None
        pixel_coder = exact.load(settings.lossless) if settings.lossless else None
        found, lost = _find(settings, own, pixel_coder)
        known = (own.hashes if own else {}) | ({"lossless": pixel_coder.hash} if pixel_coder else {})
        hashes = {f"{name}_hash": known.get(name) for name in DecompressFolder.hashes}
        folder = DecompressFolder(settings.out, as_dict(settings) | hashes | {
            "input": [str(path) for path in settings.input], "out": settings.out.name})
        made = {name: str(file.path) for file in found for name in file.made(as_pictures=bool(settings.slices))}
        folder.refuse_to_replace(made)
        before = folder.said("files")
        claim.remove_left_overs()
        finished = {file.name: file.sha256 for file in found if before.get(file.name) == file.sha256
                    and all((settings.out / name).is_file() for name in file.made(as_pictures=bool(settings.slices)))}
        record = hashes | {"made": made}
        folder.write_record(record | {"files": finished})
        waiting = [file for file in found if file.name not in finished]
        if finished:
            print(f"{len(finished)} of {len(found)} files are there already", flush=True)
        for file, rows in chain(_decoded(settings, own, [file for file in waiting if not file.content.is_exact]),
                                _written_exactly(settings, pixel_coder, [file for file in waiting
                                                                         if file.content.is_exact])):
            if not file.content.is_exact:
                _write(settings, own, file)
            lost += rows
            if not rows:
                finished[file.name] = file.sha256
                folder.write_record(record | {"files": finished})
        (settings.out / TABLE).unlink(missing_ok=True)
        if lost:
            files.write_rows(settings.out / TABLE, lost)
    return {"files": len(found), "slices": sum(len(file.wanted) for file in found), "lost": lost}


def _find(settings: DecompressSettings, own: models.Models | None,
          pixel_coder: ResidualCoder | None) -> tuple[list[_File], list[dict]]:
    """Return the files, and rows of those in folders that cannot be read. Raises: UserError."""
    paths: dict[Path, bool] = {}
    for given in settings.input:
        expect(given.exists(), str(given), f"a {SUFFIX} file or a folder of them", "nothing", "Correct the path.")
        inside = sorted(given.rglob(f"*{SUFFIX}")) if given.is_dir() else [given]
        expect(bool(inside), str(given), f"{SUFFIX} files in this folder", "none", "Correct the path.")
        paths |= {path: not given.is_dir() or paths.get(path, False) for path in inside}
    found, lost, slices = [], [], sorted({*settings.slices})
    for (path, named), name in zip(paths.items(), dataset.unique_names([path.as_posix() for path in paths])):
        try:
            content = Compressed.read(path)
        except UserError as error:
            if named:
                raise
            lost.append({"file": str(path), "slice": "", "reason": str(error).removeprefix(f"{path}: ")})
            continue
        is_missing = pixel_coder is None if content.is_exact else own is None
        expect(not is_missing, "--lossless" if content.is_exact else "--vqvae", f"the models of {path}", "none",
               "Name --lossless." if content.is_exact else "Name --vqvae, --top and --bottom.")
        expect(not slices or bool(content.description), "--slices", "files of scans", f"{path}, of one image",
               "Leave it out, or name the files of scans.")
        try:
            found.append(_opened_exact(path, name, content, pixel_coder) if content.is_exact
                         else _opened(path, name, content, slices, own))
        except UserError as error:
            if named:
                raise
            lost.append({"file": str(path), "slice": "", "reason": str(error).removeprefix(f"{path}: ")})
    expect(bool(found), "INPUT", "at least one file that can be read", f"none among {len(lost)}",
           lost[0]["reason"] if lost else "Correct the path.")
    return found, lost


def _opened_exact(path: Path, name: str, content: Compressed, pixel_coder: ResidualCoder) -> _File:
    models.expect_equal("lossless", pixel_coder.hash[:2 * HASH], " ".join(content.hashes), str(path))
    expect(content.shape[0] == len(content.chunks) == 1 and math.prod(content.shape) > 0 and content.bits in (8, 16),
           str(path), "a grey image of 8 or 16 bits", "something else", "Take another copy of the file.")
    return _File(path, name, hashlib.sha256(content.packed()).hexdigest(), content, None, [0])


def _opened(path: Path, name: str, content: Compressed, slices: Sequence[int], own: models.Models) -> _File:
    own.expect_own(str(path), content.hashes)
    shape = tuple(own.vqvae.config["image_shape"])
    try:
        geometry = ScanGeometry.from_json(content.description) if content.description else None
        fits = content.shape == shape and (len(geometry.indices) if geometry else 1) == len(content.chunks)
    except MEANINGLESS:
        fits = False
    expect(fits, str(path), "slices and a description that fit the models", "others", "Take another copy of the file.")
    count = len(content.chunks)
    expect(all(number < count for number in slices), "--slices", f"numbers below {count}, the slices of {path}",
           " ".join(map(str, slices)), "Correct them.")
    return _File(path, name, hashlib.sha256(content.packed()).hexdigest(), content, geometry,
                 slices or range(count))


def _decoded(settings: DecompressSettings, own: models.Models, waiting: Sequence[_File],
             ) -> Iterator[tuple[_File, list[dict]]]:
    """Decode all files, a batch of slices at a time. Yield each file when it is done, and rows of its lost slices."""
    if not waiting:
        return
    jobs = [(file, number) for file in waiting for number in file.wanted]
    columns, lost = code_streams.columns_of(own.priors), []
    positions = sum(math.prod(grid) for grid in code_grids(own.vqvae).values())
    with Bar(total=positions * -(-len(jobs) // settings.batch), desc="decompressing", unit="code") as bar:
        for first in range(0, len(jobs), settings.batch):
            part, chunks = [], []
            for file, number in jobs[first:first + settings.batch]:
                try:
                    chunks.append(Chunk.unpacked(file.content.chunks[number], len(columns)))
                    part.append((file, number))
                except ValueError:
                    lost.append({"file": str(file.path), "slice": number, "reason": DAMAGED})
            if chunks:
                streams, known = zip(*((chunk.stream, chunk.known) for chunk in chunks))
                known = torch.tensor(known, dtype=torch.float32).view(len(chunks), len(columns))
                levels, readable = code_streams.decode(own.priors, streams, known, bar.update)
            for item, ((file, number), chunk) in enumerate(zip(part, chunks)):
                if readable[item] and code_streams.check_of(levels, item) == chunk.check:
                    file.codes[number] = {level: codes[item] for level, codes in levels.items()}
                else:
                    lost.append({"file": str(file.path), "slice": number, "reason": OTHERWISE})
            done = {id(file): file for file, number in jobs[first:first + settings.batch] if number == file.wanted[-1]}
            for file in done.values():
                yield file, [row for row in lost if row["file"] == str(file.path)]
                file.codes.clear()


def _write(settings: DecompressSettings, own: models.Models, file: _File) -> None:
    """Write the pictures or the scan of a file, of the slices that could be decoded."""
    numbers = [number for number in file.wanted if number in file.codes]
    if not numbers:
        return
    levels = {level: torch.stack([file.codes[number][level] for number in numbers]) for level in own.priors}
    images = dict(zip(numbers, encoding.decoded(own.vqvae.model, levels, settings.batch)))
    names = file.made(as_pictures=bool(settings.slices))
    if file.geometry is not None and not settings.slices:
        slices = (images[number].double().mean(0).numpy() / 255 if number in images else None for number in file.wanted)
        file.geometry.write(settings.out / names[0], slices)
        return
    for number, name in zip(file.wanted, names):
        if number in images:
            pictures.save_picture(pictures.image_grid(images[number][None], 1, gap=0), settings.out / name)


def _written_exactly(settings: DecompressSettings, pixel_coder: ResidualCoder | None, waiting: Sequence[_File],
                     ) -> Iterator[tuple[_File, list[dict]]]:
    """Write the images that come back exactly. Yield each file when it is done, and a row if its image is lost."""
    for first in Bar(range(0, len(waiting), settings.batch), desc="decompressing", unit="batch"):
        part, chunks, rows = [], [], {}
        for file in waiting[first:first + settings.batch]:
            try:
                chunks.append(Chunk.unpacked(file.content.chunks[0], 0))
                part.append(file)
            except ValueError:
                rows[file.name] = DAMAGED
        for file, image in zip(part, exact.decode([file.content for file in part], chunks, pixel_coder)):
            if image is None:
                rows[file.name] = OTHERWISE
            else:
                pictures.save_picture(Image.fromarray(image), settings.out / file.made(as_pictures=True)[0])
        for file in waiting[first:first + settings.batch]:
            yield file, [{"file": str(file.path), "slice": 0, "reason": rows[file.name]}] if file.name in rows else []
