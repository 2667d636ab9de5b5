"""A folder of DICOM files -> one NIfTI file of its T1-weighted series, made by dcm2niix [1] and kept in a cache.

A folder is a scan: all its DICOM files count, classic ones of a slice each or enhanced ones of a volume, whatever their
names and their order. A folder that holds several series is looked through by `SeriesDescription` and `ProtocolName`;
only the files of the series that is chosen are given to dcm2niix, by links whose names say nothing. What dcm2niix would
convert with a warning is refused instead: slices that are missing or lie at unequal distances, slices without a
position, files that are cut short, files of several people.

The cache holds the NIfTI alone, under the hash of all bytes it was made from: $VQVAE2_CACHE, else
$XDG_CACHE_HOME/vqvae2, else ~/.cache/vqvae2. Where it cannot be written, a scan is converted each time it is read.

dcm2niix and pydicom, the extra `dicom`, are imported when the first DICOM file is read: most processes need neither.

[1] Li, Morgan, Ashburner, Smith, Rorden 2016, doi 10.1016/j.jneumeth.2016.03.001; https://github.com/rordenlab/dcm2niix
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
import resource
import shutil
import subprocess
import tempfile
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from vqvae2.common import memory
from vqvae2.common.files import open_regular, replace_whole, sha256_of_file
from vqvae2.scans.headers import UnusableScan, expect_bytes, expect_usable
from vqvae2.scans.words import natural, says_t1, why_other_description, why_other_scan

ENDINGS = (".dcm", ".ima")
NO_SERIES = frozenset({"DICOMDIR", "README", "LICENSE", "LICENCE", "CHANGES", "CHANGELOG", "VERSION", "COPYING",
                       "LOCKFILE", "MAKEFILE"})
"""Names without an ending that are not looked into."""
INSTALL = "pip install 'vqvae2-brain-mri[dicom]'"
CONTAINERS = frozenset({"dicom", "dicoms", "dcm", "dcms", "ima", "files", "resources", "secondary", "raw"})
"""Words of folders that say nothing about the series in them: XNAT's 3-MPRAGE/resources/DICOM/files."""
MR_IMAGES = {f"1.2.840.10008.5.1.4.1.1.{each}" for each in ("4", "4.1", "4.4")}
"""The storage classes of MR images: classic, enhanced, and classic ones that were converted to enhanced."""
TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
        "ProtocolName", "PatientID", "Modality", "ImageType", "ImageOrientationPatient", "ImagePositionPatient",
        "PixelSpacing", "EchoTime", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel",
        "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
MOST_LOOKED_INTO = 9
"""Files of a folder whose headers are read to see whether it holds several series."""
OPTIONS = ("-d", "0",  # no sub-folders
           "-b", "n", "-c", "",  # no sidecar and no comment: both may name the patient
           "-g", "i",  # whatever this user's own defaults for dcm2niix are
           "-i", "n",  # defaced and reformatted series are called derived too; the series is chosen already
           "-m", "n",  # what differs stays apart
           "-x", "i",  # neither crop nor rotate
           "-l", "o", "-z", "i", "-f", "volume")
"""With each file of the cache belongs to: a change here needs another RECIPE."""
RECIPE = "1"
NOT_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"}
"""Words of ImageType."""
NO_VOLUME = re.compile(r"_(ph|real|imaginary|Eq|Tilt|ROI|MoCo)\w*(?=[_.])")
"""What dcm2niix adds to the names of all that is beside a volume: phases, what it interpolated, regions."""
FURTHER_ECHO = re.compile(r"_e([2-9]|\d\d+)(?=[_.])")
LONGEST_SECONDS = 600
BYTES_A_HEADER_BYTE, LARGEST_HEADER = 100, 1 << 25
"""The memory that pydicom takes for each byte of a header that is full of empty items, and the most bytes of one."""
BYTES_A_CONVERTED_BYTE, BYTES_OF_CONVERTER = 4, 64 << 20
"""The memory that dcm2niix, or putting frames in order, takes for each byte of a volume, and for a tiny one."""
SAME_PLACE_MM = 0.01
MOST_UNEVEN = 0.1
"""Share of the distance of two slices by which it may differ from slice to slice: scanners round positions."""
LONGEST_LIST = 8


@dataclass(frozen=True)
class Glance:
    """What a few headers of a folder of DICOM files say."""

    is_mr: bool
    """Whether one of the files is an MR image."""
    description: str = ""
    """What the scanner calls the series; empty if nothing or if there are several series."""
    study: str = ""
    """The UID of the examination; empty if it is not known."""
    number: int | None = None
    """The number of the series in its examination."""


@dataclass(frozen=True)
class _Slice:
    """Where a slice lies, in DICOM's axes: towards left, posterior, superior."""

    orientation: tuple[float, ...]
    """Unit vectors along a row and down a column, 6 numbers."""
    position_mm: tuple[float, ...]
    """The middle of the first pixel."""
    side_mm: tuple[float, float]
    """From the middle of the first pixel to that of the last, along a row and down a column."""


@dataclass(frozen=True)
class _Part:
    """The header of one file: a slice, or all slices of an enhanced object."""

    path: Path
    is_mr: bool
    patient: str
    study: str
    series: str
    number: int | None
    description: str
    kind: tuple[str, ...]
    """ImageType: ORIGINAL or DERIVED, PRIMARY or SECONDARY, and so on."""
    echo_ms: float | None
    """The echo time; None for an enhanced file, which may have several."""
    uid: str
    slices: tuple["_Slice | None", ...]
    """Where each slice lies, in the order of the file; None where it is not said."""
    is_whole: bool
    size: int
    """Bytes of the pixels, inflated."""


class _Beginning(io.BufferedReader):
    """A DICOM file, of which pydicom may read only as much as this process has memory for."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_regular(path).detach())
        self.most = min(LARGEST_HEADER, memory.room() // BYTES_A_HEADER_BYTE)

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return super().read(max(0, min(size, self.most - self.tell())))
        content = super().read(self.most)  # pydicom asks for all of a deflated file, and inflates it
        if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.most)) == self.most:
            raise ValueError("too large")
        return content


def is_installed() -> bool:
    """Return whether the extra `dicom` is there."""
    return all(importlib.util.find_spec(each) is not None for each in ("dcm2niix", "pydicom"))


def is_dicom_name(name: str) -> bool:
    """Return whether a file's name ends as that of a DICOM file."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def may_be_dicom(name: str) -> bool:
    """Return whether a file's name has no ending, or a number for one: IM0001, I.001, MR.1.2.840.113619.2."""
    start, dot, end = name.rpartition(".")
    return (end.isdigit() and bool(start) if dot else name.upper() not in NO_SERIES)


def begins_as_dicom(path: Path) -> bool:
    """Return whether a file's first 132 bytes are those of a DICOM file; anything but a file is none."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"
    return False


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that may be DICOM, by their names, in natural order; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if (is_dicom_name(entry.name) or may_be_dicom(entry.name))
                     and (entry.is_file() or not os.path.exists(entry.path))]  # a link to nothing is a missing slice
    except OSError:
        return ()
    return tuple(folder / name for name in sorted(names, key=natural))


def glance(folder: Path, names: Sequence[str]) -> Glance:
    """Return what the headers of a folder say; one header is read if it says T1, a few if it does not.

    Args:
        folder: the folder.
        names: the names of its DICOM files, in natural order.
    """
    step = max(1, (len(names) - 1) // (MOST_LOOKED_INTO - 1))
    first, several = None, False
    for name in dict.fromkeys([*names[::step][:MOST_LOOKED_INTO], *names[-1:]]):
        part = _read_header(folder / name)
        if part is None or not part.is_mr:
            continue
        several = first is not None and part.series != first.series
        first = first or part
        if several or _is_t1(first):
            break
    if first is None:
        return Glance(False)
    return Glance(True, "" if several else first.description, first.study, None if several else first.number)


@contextlib.contextmanager
def converted(path: Path) -> Iterator[Path]:
    """Yield the NIfTI file of a folder's scan, from the cache or made now.

    Args:
        path: the folder, or a DICOM file in it.
    Raises: UnusableScan if the folder cannot be converted to the one volume that it is asked for.
    """
    folder = path if path.is_dir() else path.parent
    expect_usable(is_installed(), path.name, "the packages dcm2niix and pydicom, which read DICOM", "none",
                  f"Install them: {INSTALL}.")
    files = files_in(folder)
    expect_usable(bool(files), path.name, "a folder of DICOM files", "none in it", "Copy or download them again.")
    place = cache_folder()
    kept = place and place / f"{_hash_of(files)}.nii.gz"
    if kept and _is_whole(kept):
        yield kept
        return
    chosen = _choose(folder, _read_headers(folder, files))
    with tempfile.TemporaryDirectory(prefix="vqvae2-dicom-") as work:
        made = _convert(folder.name, chosen, Path(work))
        if kept:
            with contextlib.suppress(OSError):  # a cache that is full or may not be written
                kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_whole(kept, lambda temporary: shutil.copyfile(made, temporary))
        yield made


def _is_whole(kept: Path) -> bool:
    """Return whether a converted scan is in the cache, may be read, and is not damaged."""
    try:
        with open_regular(kept) as packed, gzip.open(packed) as file:
            while file.read(1 << 20):
                pass
        return True
    except (OSError, EOFError, zlib.error):
        return False


def cache_folder() -> Path | None:
    """Return the folder of converted scans; None if there is no place for one."""
    if place := os.environ.get("VQVAE2_CACHE"):
        return Path(os.path.expanduser(place)).absolute() / "dicom"
    place = os.environ.get("XDG_CACHE_HOME", "")
    place = place if os.path.isabs(place) else os.path.expanduser("~/.cache")
    return Path(place, "vqvae2", "dicom") if os.path.isabs(place) else None


def _hash_of(files: Iterable[Path]) -> str:
    """Return a hash of all that a converted file depends on: two people's scans may be of equal names, sizes and times.
    """
    digest = hashlib.sha256(f"{RECIPE} {importlib.metadata.version('dcm2niix')}\n".encode())
    for file in files:
        digest.update(sha256_of_file(file).digest())
    return digest.hexdigest()[:40]


def _read_header(path: Path) -> _Part | None:
    """Return a file's header; None if it is no DICOM file, or damaged within the header."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _Beginning(path) as file:
            warnings.simplefilter("ignore")
            # Some .dcm files lack the 128 bytes in front and the letters DICM.
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS),
                                     force=is_dicom_name(path.name))
            return _part_of(path, header, os.fstat(file.fileno()).st_size - file.tell())
    except Exception:  # pydicom raises a dozen kinds for damaged headers; none of them is ours
        return None


def _part_of(path: Path, header: object, bytes_left: int) -> _Part:
    """Return the facts of a pydicom.Dataset; it raises many kinds of errors where values are none.

    Args:
        bytes_left: the bytes that follow the header.
    """
    def text(name: str) -> str:
        return str(header.get(name) or "").strip()

    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    frames = int(header.get("NumberOfFrames") or 1)
    size = frames * int(header.get("Rows") or 0) * int(header.get("Columns") or 0) * int(
        header.get("SamplesPerPixel") or 1) * int(header.get("BitsAllocated") or 0) // 8
    packed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
    kind = header.get("ImageType") or ()
    kind_of_object, number = text("SOPClassUID"), text("SeriesNumber")
    if not (kind_of_object or text("SeriesInstanceUID")):
        raise ValueError("no DICOM object")
    return _Part(
        path, kind_of_object in MR_IMAGES or (not kind_of_object and text("Modality") == "MR"), text("PatientID"),
        text("StudyInstanceUID"), text("SeriesInstanceUID"), int(number) if number else None,
        " / ".join(dict.fromkeys(filter(None, (text("SeriesDescription"), text("ProtocolName"))))),
        (kind,) if isinstance(kind, str) else tuple(map(str, kind)),
        float(text("EchoTime")) if text("EchoTime") else None, text("SOPInstanceUID"), tuple(_slices_of(header)),
        packed or bytes_left >= size, size)


def _slices_of(header: object) -> Iterator[_Slice | None]:
    """Yield where each slice of an object lies, None for those of which it is not said."""
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or ()), {})
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    for frame in header.get("PerFrameFunctionalGroupsSequence") or (header,):
        def values(group: str, name: str, frame: object = frame) -> tuple[float, ...]:
            places = (next(iter(of.get(group) or ()), {}) for of in (frame, shared))
            found = next(filter(None, (of.get(name) for of in (frame, *places))), ())
            return tuple(map(float, found))

        orientation = values("PlaneOrientationSequence", "ImageOrientationPatient")
        position = values("PlanePositionSequence", "ImagePositionPatient")
        spacing = values("PixelMeasuresSequence", "PixelSpacing")
        yield (_Slice(orientation, position, ((columns - 1) * spacing[1], (rows - 1) * spacing[0]))
               if (len(orientation), len(position), len(spacing)) == (6, 3, 2) else None)


def _read_headers(folder: Path, files: Iterable[Path]) -> list[_Part]:
    """Return the headers of all DICOM files, each object once. Raises: UnusableScan if one is damaged."""
    parts: dict[str, _Part] = {}
    damaged = []
    for file in files:
        if (part := _read_header(file)) is not None:
            parts.setdefault(part.uid or file.name, part)
        if (part is None or not part.is_whole) and (is_dicom_name(file.name) or begins_as_dicom(file)):
            damaged.append(file.name)
    expect_usable(not damaged, folder.name, "whole DICOM files", f"{len(damaged)} cut short or damaged, such as "
                  f"{damaged[0] if damaged else ''}", "Copy or download them again.")
    expect_usable(bool(parts), folder.name, "a folder of DICOM files", "none in it", "Copy or download them again.")
    patients = len({part.patient for part in parts.values()})
    expect_usable(patients == 1, folder.name, "DICOM files of one person", f"{patients} PatientIDs",
                  "Give each person a folder.")
    return list(parts.values())


def _choose(folder: Path, parts: Iterable[_Part]) -> list[_Part]:
    """Return the files of the one series that is meant: of its magnitude and first echo.

    A folder's only series is taken whatever it is called. Of several, it is the T1-weighted one: an original before a
    derived one, then the lowest number. If none is called so, it is the only volume that is not called something else.
    Raises: UnusableScan, with the descriptions of all series, if that leaves none or several.
    """
    groups: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        if part.is_mr:
            groups[part.series].append(part)
    expect_usable(bool(groups), folder.name, "an MR series", "only objects of other kinds", "Leave the folder out.")
    series = sorted(groups.values(), key=lambda group: ("DERIVED" in group[0].kind, group[0].number is None,
                                                        group[0].number or 0, group[0].series))
    called_other = why_other_scan(series_name(folder.parts))  # such as FLAIR, which --suffix asks for
    t1 = [] if called_other else [group for group in series if _is_t1(group[0])]
    volumes = [group for group in series if sum(len(part.slices) for part in group) > 1
               and (called_other or not why_other_description(group[0].description))]
    chosen = series[0] if len(series) == 1 else t1[0] if t1 else volumes[0] if len(volumes) == 1 else None
    if chosen is None:
        called = [group[0].description or "no description" for group in series]
        more = f" and {len(called) - LONGEST_LIST} more" if len(called) > LONGEST_LIST else ""
        raise UnusableScan(folder.name, "a series that is described as T1-weighted",
                           f"{len(called)} series: {', '.join(called[:LONGEST_LIST])}{more}",
                           "Give each series a folder, and leave out those that are not meant.")
    chosen = [part for part in chosen if NOT_MAGNITUDE.isdisjoint(part.kind)] or chosen
    first_echo = min((part.echo_ms for part in chosen if part.echo_ms is not None), default=None)
    chosen = [part for part in chosen if part.echo_ms == first_echo]
    _expect_equal_distances(folder.name, [each for part in chosen for each in part.slices])
    return chosen


def _is_t1(part: _Part) -> bool:
    return says_t1(part.description) and not why_other_description(part.description)


def _expect_equal_distances(name: str, slices: Sequence[_Slice | None]) -> None:
    """Raise UnusableScan unless slices lie parallel at equal distances, as many of them at each place."""
    expect_usable(None not in slices, name, "slices with a position, an orientation and a pixel size",
                  f"{slices.count(None)} without", "Nothing is guessed: leave the scan out.")
    turned = np.array([each.orientation for each in slices])
    expect_usable(bool(np.allclose(turned, turned[0], atol=1e-3)), name, "parallel slices", "slices that are turned "
                  "against each other", "It looks like a localizer or a projection: leave it out.")
    places = np.sort(_depths(slices))
    ends = np.flatnonzero(np.diff(places) > SAME_PLACE_MM) + 1
    groups = np.split(places, ends)
    counts = Counter(map(len, groups))
    expect_usable(len(counts) == 1, name, "as many slices at each place", f"{min(counts)} to {max(counts)}",
                  "A slice is missing: copy or download the series again.")
    distances = np.diff([group[0] for group in groups])
    if len(distances):
        usual = np.median(distances)
        expect_usable(bool((abs(distances - usual) <= MOST_UNEVEN * usual).all()), name,
                      "slices at equal distances", f"{distances.min():.3g} to {distances.max():.3g} mm",
                      "A slice is missing: copy or download the series again.")


def _depths(slices: Sequence[_Slice]) -> np.ndarray:
    """Return the positions of slices across their plane, in mm."""
    row, column = np.reshape(slices[0].orientation, (2, 3))
    return np.array([each.position_mm for each in slices]) @ np.cross(row, column)


def _expect_in_place(name: str, parts: Sequence[_Part], made: Path) -> None:
    """Raise UnusableScan unless the corners of a converted volume are where the headers say, within half a voxel.

    Of an enhanced file whose frames lie in another order than in space, dcm2niix 1.0.20260724 sorts the voxels, and
    takes the distance of the slices from the first and the last frame of the file.
    """
    slices = [each for part in parts for each in part.slices]
    if any("MOSAIC" in part.kind for part in parts):  # many slices in one picture, whose corner is given
        return
    depths = _depths(slices)
    told = np.array([np.add(each.position_mm, along * each.side_mm[0] * np.array(each.orientation[:3])
                            + down * each.side_mm[1] * np.array(each.orientation[3:])) * (-1, -1, 1)
                     for each in (slices[depths.argmin()], slices[depths.argmax()])
                     for along in (0, 1) for down in (0, 1)])
    image = nib.load(made)
    ends = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(image.shape[:3]) - 1)
    found = nib.affines.apply_affine(image.affine, ends)
    apart = np.linalg.norm(told[:, None] - found, axis=2)
    most = max(apart.min(axis=0).max(), apart.min(axis=1).max())
    expect_usable(bool(most <= min(image.header.get_zooms()[:3]) / 2), name,
                  "a converted volume that lies where the DICOM headers say", f"its corners {most:.3g} mm away",
                  "Convert it by hand, and compare it with the scanner's pictures.")


def _with_frames_in_order(part: _Part, path: Path) -> None:
    """Write an enhanced file with its frames in the order in which they lie in space, as `_expect_in_place` needs."""
    import pydicom.encaps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, order = pydicom.dcmread(part.path), np.argsort(_depths(part.slices), kind="stable")
        frames, size = len(part.slices), len(data.PixelData) // len(part.slices)
        packed = data.file_meta.TransferSyntaxUID.is_compressed
        pixels = (list(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=frames)) if packed else
                  [data.PixelData[at * size:(at + 1) * size] for at in range(frames)])
        pixels = [pixels[at] for at in order]
        data.PixelData = pydicom.encaps.encapsulate(pixels) if packed else b"".join(pixels)
        groups = data.PerFrameFunctionalGroupsSequence
        data.PerFrameFunctionalGroupsSequence = [groups[at] for at in order]
        data.save_as(path)


def series_name(folders: Sequence[str]) -> str:
    """Return the last of the names of a path's folders that says more than that there is DICOM; else the last."""
    names = list(folders) or [""]
    return names[series_level(names)]


def series_level(folders: Sequence[str]) -> int:
    """Return the index of the folder that `series_name` returns."""
    last = len(folders) - 1
    return next((level for level in range(last, -1, -1)
                 if not set(re.split(r"[\W_]+", folders[level].lower())) <= CONTAINERS), last)


def _convert(name: str, parts: Sequence[_Part], work: Path) -> Path:
    """Return the NIfTI file that dcm2niix makes in `work` from these files. Raises: UnusableScan if it makes none."""
    import dcm2niix

    expect_bytes(name, sum(part.size for part in parts) * BYTES_A_CONVERTED_BYTE + BYTES_OF_CONVERTER, "its pixels")
    source, out = work / "in", work / "out"
    source.mkdir()
    out.mkdir()
    for number, part in enumerate(parts):
        link, steps = source / f"{number:06d}.dcm", np.diff(_depths(part.slices))
        # Of several volumes in one file the frames are in no one order.
        if len(set(_depths(part.slices).round(2))) == len(part.slices) and min(steps, default=0) < 0 < max(steps):
            try:
                _with_frames_in_order(part, link)
            except Exception as error:  # pydicom's, of damaged pixels
                raise UnusableScan(name, "frames that can be put in order", error,
                                   "Copy or download it again.") from None
        else:
            link.symlink_to(part.path.absolute())
    try:
        done = _run([dcm2niix.bin, *OPTIONS, "-o", str(out), str(source)])
    except subprocess.TimeoutExpired:
        raise UnusableScan(name, "a series that dcm2niix converts", f"nothing after {LONGEST_SECONDS} seconds",
                           "Convert it by hand, or leave it out.") from None
    except OSError as error:
        raise UnusableScan(name, "dcm2niix to start", (error.strerror or str(error)).lower(),
                           f"Install it again: {INSTALL}.") from None
    made = sorted(path for path in out.glob("*.nii.gz") if not NO_VOLUME.search(path.name))
    made = [path for path in made if not FURTHER_ECHO.search(path.name)] or made  # of an enhanced file
    said = _last_words(done.stdout.decode(errors="replace").replace(f"{work}{os.sep}", ""))
    expect_usable(done.returncode == 0 and bool(made), name, "a series that dcm2niix converts",
                  said or f"status {done.returncode}", "Copy or download it again, or leave it out.")
    expect_usable(len(made) == 1, name, "one volume", f"{len(made)}: {', '.join(path.name for path in made)}",
                  "Give each volume a folder.")
    _expect_in_place(name, parts, made[0])
    return made[0]


def _run(words: Sequence[str]) -> subprocess.CompletedProcess:
    """Return how a program ended that may take no more memory than this process. Raises: TimeoutExpired, OSError."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            with contextlib.suppress(AttributeError, OSError):  # only Linux can do this
                resource.prlimit(process.pid, resource.RLIMIT_AS, (memory.room(),) * 2)
            said, _ = process.communicate(timeout=LONGEST_SECONDS)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, said)


def _last_words(output: str) -> str:
    """Return the last line that says what went wrong, else the last line, of what dcm2niix has printed."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Chris Rorden", "Defaults ignored", "Conversion required"))]
    wrong = [line for line in lines if re.match(r"(?i)error|warning|unable|unsupported", line)
             and "Patient Position" not in line]
    return next(iter((wrong or lines)[-1:]), "").rstrip(".")
