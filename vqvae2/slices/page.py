"""Scans and their thumbnails -> index.html, one page that shows what an extraction took each scan for.

The page needs no server, no network and no other file: page.html is its form, style and script, and this module adds
the facts as JSON and the pictures as sheets of many thumbnails (JPEG, in data URIs), since a browser opens fifty large
pictures in less time than 5,000 small ones. Equal scans give equal bytes.

What people write into file names never becomes a part of the page's form: names stand in the JSON, and the script sets
them as text (`common.page` has the policy).
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from vqvae2.common import page
from vqvae2.common.names import SPLITS
from vqvae2.scans.words import natural

NOT_FROM_THE_HEADER = {"layout": "the archive's layout", "assumed": "--assume-orientation"}
"""What an orientation was taken from, by the manifest's `orientation_from`, where no header gave it."""
THUMBNAIL = 96
"""Pixels each way: a multiple of 8, the side of JPEG's blocks, so that no picture runs into its neighbour."""
ACROSS = 10
"""A sheet has this many thumbnails each way."""
QUALITY = 80
"""JPEG's, from 0 to 95."""
MOST_LEFT_OUT = 200
"""The page names this many left-out files for each reason, and counts the others."""
MOST_REJECTED = 1000
SIDES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""The two sides of the brain's box that lie in a plane; 0 is along R, 1 along A and 2 along S."""
MOST_ANISOTROPIC = 3
PLAUSIBLE_MM = {"zero": ((95, 185), (120, 230), (85, 220)), "otsu": ((110, 280), (140, 320), (120, 350))}
"""The least and the largest side of a person's stripped brain, and of a head with neck, along R, A and S."""


@dataclass(frozen=True)
class ShownScan:
    """What the page tells about one scan."""

    scan: str
    subject: str
    session: str
    run: str
    split: str
    archive: str
    orientation: str
    orientation_from: str
    voxel_mm: str
    """Sides of a voxel along R, A and S, such as `0.868 x 0.868 x 1`."""
    box_mm: str
    """Sides of the box around the brain, in whole millimetres."""
    background: str
    mask: str
    """The brain mask that was applied; mostly empty."""
    images: int
    """The number of the scan's slices."""
    files: tuple[str, ...]
    """The slices that are shown, one of each plane, below the folder of slices."""
    planes: tuple[str, ...]
    """The planes of `files`; without thumbnails there is none."""
    picture: bytes
    """The thumbnails of `planes`, one after the other, each as `thumbnail` makes it."""
    warnings: tuple[str, ...] = ()
    """From `warnings_of`, and others: a kind, or a kind, a colon and more. The page filters by kind."""


def thumbnail(image: np.ndarray) -> bytes:
    """Return a drawn plane [size, size], 0…1, as THUMBNAIL x THUMBNAIL grey bytes, from the 8 bits of its PNG."""
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    return picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0).tobytes()


def _sides(text: str | None) -> tuple[float, ...]:
    """Return the numbers of `0.868x0.868x1`; none where an older manifest lacks them."""
    return tuple(map(float, text.split("x"))) if text else ()


def _not_from_the_header(row: dict, *_: object) -> str:
    source = NOT_FROM_THE_HEADER.get(row.get("orientation_from", ""))
    return f"{row['orientation']} by {source}" if source else ""


def _not_finite(row: dict, *_: object) -> str:
    return "" if row.get("nan_voxels", "0") == "0" else f"{row['nan_voxels']} in the brain"


def _cut_off(row: dict, planes: Sequence[str], field_of_view: float) -> str:
    box = _sides(row.get("brain_mm"))
    longest = max((box[side] for plane in planes for side in SIDES[plane]), default=0) if box else 0
    return f"{longest:g} mm do not fit into {field_of_view:g} mm (--field-of-view)" if longest > field_of_view else ""


def _anisotropic(row: dict, *_: object) -> str:
    voxel = _sides(row.get("voxel_size_mm"))
    return f"one side is {max(voxel) / min(voxel):.3g} times another" if voxel and (
        max(voxel) > MOST_ANISOTROPIC * min(voxel)) else ""


def _unusual_size(row: dict, *_: object) -> str:
    plausible = PLAUSIBLE_MM.get(row.get("background"), PLAUSIBLE_MM["zero"])
    odd = [f"{side:g} mm along {axis}, expected {least} to {most}" for side, axis, (least, most) in zip(
        _sides(row.get("brain_mm")), "RAS", plausible) if not least <= side <= most]
    return "; ".join(odd)


WARNINGS: dict[str, Callable[[dict, Sequence[str], float], str]] = {
    "orientation not from the header": _not_from_the_header,
    "head with skull": lambda row, *_: ("the weights of this project have seen stripped brains only"
                                        if row.get("background") == "otsu" else ""),
    "geometry": lambda row, *_: row.get("geometry", ""),
    "NaN voxels": _not_finite,
    "cut off": _cut_off,
    "long voxels": _anisotropic,
    "unusual size": _unusual_size,
}
"""Each kind of warning, and what makes its text from a row of the manifest, the planes and the field of view; empty
where there is nothing to warn of."""


def warnings_of(row: dict, planes: Sequence[str] = (), field_of_view: float = math.inf) -> tuple[str, ...]:
    """Return what a person should look at in a scan, by the first of its manifest rows, as `kind: more`.

    Args:
        row: the row; columns that an older manifest lacks warn of nothing.
        planes: the planes that were drawn.
        field_of_view: width of a slice in mm.
    """
    return tuple(f"{kind}: {text}" for kind, make in WARNINGS.items() if (text := make(row, planes, field_of_view)))


def page_bytes(shown: Sequence[ShownScan], rejected: Sequence[tuple[str, str]] = (),
               left_out: Sequence[tuple[str, str]] = (), *, synthetic: bool = False) -> bytes:
    """Return the page: no time, host or path of the machine is in it, so equal scans give equal bytes.

    Args:
        shown: the scans, in any order.
        rejected: scans that cannot be used, each with its reason.
        left_out: other files and folders, each with its reason, whose part before a colon is the group it stands in.
        synthetic: whether the scans are of nobody, which the page says.
    """
    ordered = sorted(shown, key=lambda scan: [natural(text) for text in (scan.subject, scan.session, scan.scan)])
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in left_out:
        group, _, more = reason.partition(": ")
        groups.setdefault(group, []).append((name, more))
    names = [field.name for field in fields(ShownScan) if field.name != "picture"]
    facts = {
        "synthetic": synthetic, "splits": SPLITS, "thumbnail": THUMBNAIL, "across": ACROSS, "fields": names,
        "scans": [[value for field, value in zip(fields(scan), astuple(scan)) if field.name in names]
                  for scan in (_with_links(scan) for scan in ordered)],
        "rejected": {"count": len(rejected), "rows": rejected[:MOST_REJECTED]},
        "leftOut": [{"reason": group, "count": len(rows), "rows": rows[:MOST_LEFT_OUT]}
                    for group, rows in groups.items()]}
    form = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return page.filled(form, facts=page.as_json(facts),
                       sheets=_style_of_sheets(b"".join(scan.picture for scan in ordered)))


def _with_links(scan: ShownScan) -> ShownScan:
    """Return the scan with its files as parts of a URL."""
    return ShownScan(**{field.name: getattr(scan, field.name) for field in fields(scan)} | {
        "files": tuple(quote(file, errors="surrogateescape") for file in scan.files)})


def _style_of_sheets(cells: bytes) -> str:
    """Return a style sheet with a class for each sheet of thumbnails, s0, s1, …; the last sheet ends with its last row.

    Args:
        cells: thumbnails, one after the other.
    """
    pictures = np.frombuffer(cells, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)
    rules = []
    for first in range(0, len(pictures), ACROSS * ACROSS):
        some = pictures[first:first + ACROSS * ACROSS]
        down = -(-len(some) // ACROSS)
        sheet = np.zeros((down * ACROSS, THUMBNAIL, THUMBNAIL), np.uint8)
        sheet[:len(some)] = some
        sheet = sheet.reshape(down, ACROSS, THUMBNAIL, THUMBNAIL).transpose(0, 2, 1, 3)
        content = io.BytesIO()
        Image.fromarray(sheet.reshape(down * THUMBNAIL, ACROSS * THUMBNAIL)).save(
            content, format="JPEG", quality=QUALITY, optimize=True)
        rules.append(f".s{len(rules)}{{background-image:url({page.data_uri(content.getvalue(), 'jpeg')})}}\n")
    return "".join(rules)
