"""Predicted images and their figures -> index.html: each beside its reconstruction, what was changed, what failed.

The page shows the first MOST_SHOWN images under a slider, as the page of a report does, and says how many more there
are; metrics.csv has them all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.common import files
from vqvae2.common.page import escaped
from vqvae2.evaluation.widgets import (
    Cell,
    Line,
    Pair,
    document,
    embedded,
    facts,
    figure,
    prose,
    section,
    table,
    viewer,
)

MOST_SHOWN, MOST_ROWS = 24, 500
FIGURES = (("noise_before", "noise before", 3), ("noise_after", "noise after", 3), ("ssim", "SSIM", 3),
           ("brain_ssim", "SSIM, brain", 3), ("psnr", "PSNR (dB)", 1), ("mae", "MAE", 4))
"""Columns of metrics.csv that the page shows, where they are there, and the digits behind the point."""
OF_SCANS = (("ssim", "SSIM", 3), ("brain_ssim", "SSIM, brain", 3), ("psnr", "PSNR (dB)", 1),
            ("volume_mae", "MAE, volume", 4), ("resampling_mae", "MAE without a model", 4))
"""The same of whole scans."""


def write(out: Path, originals: Mapping[str, np.ndarray], made: Mapping[str, Path], rows: Sequence[Mapping[str, str]],
          rejected: Sequence[Mapping[str, str]], said: Sequence[str], about: Sequence[tuple[str, str]]) -> None:
    """Write the page.

    Args:
        out: the page.
        originals: the images as the model was given them, uint8 or uint16 `[channels, height, width]`, by name.
        made: the folders of the reconstructions, and of what else is made of each image, by what it is called.
        rows: those of metrics.csv, in the order of `originals`. rejected: rows of input and reason.
        said: what the command says of all images; a line that begins with `warning` is made conspicuous.
        about: facts of the run, as (name, text).
    """
    shown = list(originals)[:MOST_SHOWN]
    figures = [figure for figure in FIGURES if rows and figure[0] in rows[0]]
    pictures = embedded({**{(name, ""): _picture(originals[name]) for name in shown},
                         **{(name, what): folder / f"{name}.png" for name in shown for what, folder in made.items()}})
    pairs = [Pair(name, f"{name}: SSIM {_text(row, 'ssim', 3)}, inside the brain {_text(row, 'brain_ssim', 3)}, PSNR "
                        f"{_text(row, 'psnr', 1)} dB", pictures[name, ""], [pictures[name, what] for what in made])
             for name, row in zip(shown, rows) if all((name, what) in pictures for what in ("", *made))]
    lines = [Line(row["image"], (*(Cell(_text(row, key, digits)) for key, _, digits in figures),
                                 "; ".join(filter(None, (row.get("changes", ""), "seen in training" * (
                                     row.get("seen_in_training") == "1")))) or "–", row["input"]))
             for row in rows[:MOST_ROWS]]
    body = [section("In short", _notices(said)),
            section("Originals and reconstructions", viewer(pairs, list(made)),
                    _more(len(originals) - len(pairs), "image", "in pictures/ and reconstructions/")),
            section("Each image", table(["image", *(title for _, title, _ in figures), "changed", "input"], lines,
                                        "figures of each image"), _more(len(rows) - len(lines), "image",
                                                                        "in metrics.csv")),
            _failed(rejected)]
    head = (f'<h1>Predictions</h1>\n<p class="lead">What a VQ-VAE makes of {len(rows)} '
            f'{"image" if len(rows) == 1 else "images"}. Whoever the people are, this is no benchmark.</p>\n'
            + facts(about))
    files.write_atomically(out, document("Predictions", head, body))


def write_scans(out: Path, folder: Path, pictures: Sequence[Path], rows: Sequence[Mapping[str, object]],
                rejected: Sequence[Mapping[str, str]], said: Sequence[str], about: Sequence[tuple[str, str]]) -> None:
    """Write the page of scans that were reconstructed as a whole.

    Args:
        folder: that of `pictures`, of which each shows planes of one scan, and of metrics.csv.
        rows: those of metrics.csv, one a scan. Other arguments are as for `write`.
    """
    shown = embedded({path: folder / path for path in pictures[:MOST_SHOWN]})
    lines = [Line(str(row["scan"]).rpartition("/")[2], (
        *(Cell("–" if row.get(key) is None else f"{row[key]:.{digits}f}") for key, _, digits in OF_SCANS),
        Cell(f"{row['planes']}"), str(row["input"]))) for row in rows[:MOST_ROWS]]
    body = [section("In short", _notices(said)),
            section("Scans and reconstructions", *(figure(picture, path.stem) for path, picture in shown.items()),
                    _more(len(pictures) - len(shown), "scan", "in pictures/")),
            section("Each scan", table(["scan", *(title for _, title, _ in OF_SCANS), "planes", "input"], lines,
                                       "figures of each scan"), _more(len(rows) - len(lines), "scan",
                                                                      "in metrics.csv")),
            _failed(rejected)]
    head = ('<h1>Predictions</h1>\n<p class="lead">What VQ-VAEs make of '
            f'{len(rows)} {"scan" if len(rows) == 1 else "scans"}. Whoever the people are, this is no benchmark.</p>\n'
            + facts(about))
    files.write_atomically(out, document("Predictions", head, body))


def _notices(said: Sequence[str]) -> str:
    return "".join(f'<p class="{"notice" if line.startswith("warning") else "line"}">{prose(line)}</p>'
                   for line in sorted(said, key=lambda line: not line.startswith("warning")))


def _failed(rejected: Sequence[Mapping[str, str]]) -> str:
    failed = [Line(row["input"], (row["reason"],)) for row in rejected[:MOST_ROWS]]
    return section("Not read", table(["file", "why"], failed, "files that were not read"),
                   _more(len(rejected) - len(failed), "file", "in rejected.csv"))


def _picture(pixels: np.ndarray) -> Image.Image:
    """Return an image as 8 bit."""
    pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _text(row: Mapping[str, str], key: str, digits: int) -> str:
    """Return a figure of metrics.csv, where it is not defined a dash."""
    return f"{float(row[key]):.{digits}f}" if row.get(key) else "–"


def _more(count: int, noun: str, where: str) -> str:
    return f'<p class="dim">and {count:,} more {noun}{"s" * (count != 1)}, {escaped(where)}</p>' if count > 0 else ""
