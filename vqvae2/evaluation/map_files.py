"""What each code costs -> files for each image: maps as .npy, pictures, and a table of the images.

<out>/likelihood/index.csv        image, subject, file, bits per code of each level, bits per pixel
<out>/likelihood/<file>.npy       float32 [levels, height, width], coarse first: NLL in bits per code, a code's value in
                                  all pixels of its cell
<out>/likelihood/<file>.png       the image, each level's map, and their sum in bits per pixel
<out>/likelihood.png              the same of evenly chosen images
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vqvae2.common import files
from vqvae2.evaluation import likelihood, map_pictures
from vqvae2.images.dataset import ImageSet, to_bytes, unique_names
from vqvae2.plots import pictures

INDEX = "index.csv"
BIT_DIGITS = 6


def write(folder: Path, split: ImageSet, bits: Mapping[str, torch.Tensor]) -> None:
    """Write each image's maps and picture, then index.csv.

    `folder` is <out>/likelihood. One image at a time: all maps at once would be as large as the data set, as floats.
    Raises: UserError if a file cannot be written.
    """
    rows, names = [], unique_names(split.names)
    for number, (file, name) in enumerate(zip(split.files, tqdm(names, desc="likelihood maps", unit="image",
                                                                leave=False))):
        nll = {level: one[number:number + 1] for level, one in bits.items()}
        maps, total = _maps(nll, split)
        array = torch.stack([one[0] for one in maps.values()]).numpy()
        files.write_atomically(folder / f"{name}.npy", lambda temporary, array=array: np.save(temporary, array))
        picture = map_pictures.likelihood_panels(to_bytes(split.batch([number]))[0],
                                               {level: one[0] for level, one in maps.items()}, total[0])
        pictures.save_picture(picture, folder / f"{name}.png")
        rows.append({"image": file.name, "subject": file.subject, "file": name,
                     **{f"{level}_bits_per_code": round(one.mean().item(), BIT_DIGITS) for level, one in nll.items()},
                     "bits_per_pixel": round(total.mean().item(), BIT_DIGITS)})
    files.write_rows(folder / INDEX, rows)


def clear(folder: Path) -> None:
    """Remove what an earlier report has written: the files that its index.csv names, and index.csv."""
    for name in _files_of(folder):
        for ending in (".npy", ".png"):
            (folder / f"{name}{ending}").unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)


def draw_overview(path: Path, split: ImageSet, bits: Mapping[str, torch.Tensor], items: Sequence[int]) -> None:
    """Draw the maps of the images with these numbers, their bits per pixel under each."""
    maps, total = _maps({level: one[items] for level, one in bits.items()}, split)
    captions = [f"{one.mean():.3f} bits per pixel" for one in total]
    pictures.save_picture(map_pictures.likelihood_rows(to_bytes(split.batch(items)), maps, total, captions=captions,
                                                  title="NLL of the codes: bits per code, all in bits per pixel"), path)


def _maps(nll: Mapping[str, torch.Tensor], split: ImageSet) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Each level's bits per code, and the bits per pixel of all, `[n, height, width]`."""
    size = tuple(split.pixels.shape[2:])
    return (dict(zip(nll, likelihood.pixel_maps(nll, size).unbind(1))), likelihood.bits_per_pixel_maps(nll, size))


def _files_of(folder: Path) -> set[str]:
    """Names in the index.csv of an earlier report, without a path that could lead out of the folder."""
    try:
        with (folder / INDEX).open(newline="", encoding="utf-8") as file:
            return {Path(row["file"]).name for row in csv.DictReader(file) if row.get("file")}
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()
