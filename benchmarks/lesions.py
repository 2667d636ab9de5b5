"""How well scores find lesions, synthetic or of one real scan -> tables in Markdown, as in docs/volumes.md.

Synthetic ones, of reports that `python evaluate.py … --lesions` has written:
    python benchmarks/lesions.py reports report-64 report-128
Of one T1-weighted scan without skull, with a mask of its lesions on the same grid; training slices make the atlas:
    python benchmarks/lesions.py scan T1.nii.gz lesions.nii.gz --models vqvae-64 top-64 bottom-64 --data slices-64 \
        --picture lesions.png
The slices are cut as the model's own were, and with --match the intensities of all its brain take the distribution of
those of the training slices; a pixel is of a lesion where more than half of it is. Lesions are pieces that hang
together over planes. One brain proves nothing, and a baseline has the best of its forms.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from scipy import ndimage

from vqvae2.common.statistics import as_text
from vqvae2.evaluation import lesions, unlikeness
from vqvae2.evaluation.text import markdown_table
from vqvae2.images.dataset import ImageSet, load_images
from vqvae2.images.manifest import ImageFile
from vqvae2.images.settings import DataSettings
from vqvae2.metrics import detection, similarity
from vqvae2.plots import pictures
from vqvae2.sampling import sampler
from vqvae2.scans.brain import find_brain
from vqvae2.scans.volumes import read_volume
from vqvae2.slices.planes import NORMAL, draw_plane, plane_indices, position_mm

COLUMNS = ("score", "AUPRC", "best Dice", "Dice at 5 %", "detected")


class Cut(ImageFile):
    """A slice with its place."""

    @property
    def facts(self) -> dict[str, str]:
        """Return plane and position, which are the name."""
        return dict(zip(("plane", "position_mm"), self.name.split(" ")))


def of_reports(folders: list[Path]) -> None:
    """Print a table for each report, kind and third."""
    for folder in folders:
        report = json.loads((folder / "metrics.json").read_text())
        for kind, found in report["lesions"].items():
            if not isinstance(found, dict):
                continue
            print(f"\n{folder.name}, split {report['split']}, {kind}: {found['images']} images of "
                  f"{found['subjects']} people, {100 * found['share']:.1f} % of the brain\n")
            rows = [(name, as_text(found[name]["auroc"], 3), *rest)
                    for name, *rest in lesions.detection_table(found)]
            print(markdown_table(("score", "AUROC", *COLUMNS[1:]), rows))
            names = [name for name, *_ in rows]
            thirds = [(what, third, part) for what, parts in found.get("by", {}).items()
                      for third, part in parts.items()]
            if thirds:
                print()
                print(markdown_table(("AUPRC, thirds by", "from", "to", *names), [
                    (f"{what}: {third}", as_text(part["from"], 3), as_text(part["to"], 3),
                     *(as_text(part[name], 3) for name in names)) for what, third, part in thirds]))


def slices_of(scan: Path, mask: Path, cutting: dict, size: int, each: int) -> tuple[ImageSet, np.ndarray]:
    """Return axial slices of a scan, and bool `[n, height, width]`: where its lesions are."""
    volume, marked = read_volume(scan), read_volume(mask)
    brain, axis = find_brain(volume), NORMAL["axial"]
    as_mask = dataclasses.replace(brain, low=0, high=1, head=None)
    files, images, masks = [], [], []
    for index in plane_indices(brain, axis, each, tuple(cutting["extent"])):
        place = position_mm(brain, axis, index, volume.voxel_size_mm[axis])
        files.append(Cut(f"axial {place:.3f}", "test", scan.name, ""))
        made, lesion = (draw_plane(values, own, axis, index, size, cutting["field_of_view"])
                        for values, own in ((volume, brain), (marked, as_mask)))
        images.append(np.rint(made * 255).astype(np.uint8)[None])
        masks.append(lesion > 0.5)
    return ImageSet(tuple(files), np.stack(images)), np.stack(masks)


def matched(images: ImageSet, train: ImageSet) -> ImageSet:
    """Return images, uint8, whose pixels above 0 have the quantiles of those of the training images above 0."""
    counts, wanted = (np.bincount(split.pixels.ravel(), minlength=256)[1:].cumsum() for split in (images, train))
    # The middle of each grey value's pixels, as a share of all; the grey value that has the same share in training.
    shares = (np.r_[0, counts[:-1]] + counts) / 2 / counts[-1]
    table = np.r_[0, np.interp(shares, wanted / wanted[-1], np.arange(1, 256)).round()].astype(np.uint8)
    return dataclasses.replace(images, pixels=table[images.pixels])


def of_scan(given: argparse.Namespace) -> None:
    """Score the slices of a scan and print how well its lesions are found."""
    torch.set_num_threads(1)
    vqvae, priors = sampler.load_models(*given.models, torch.device("cpu"))
    size = vqvae.config["image_shape"][1]
    images, masks = slices_of(given.scan, given.mask, vqvae.config["data"]["extraction"], size, given.planes)
    train = load_images(DataSettings(data=given.data), ("train",)).splits["train"]
    if given.match:
        images = matched(images, train)
    brain = similarity.brain_mask(images.bytes()).numpy()
    unlike = unlikeness.unlikeness(vqvae, images.batch(np.arange(len(images))).split(32))
    began = time.perf_counter()
    scores = lesions.scores_of(vqvae, priors, images, train, brain, 32, 0, given.scan.name)
    numbers, count = ndimage.label(masks & brain, np.ones((3, 3, 3)))
    print(f"\n{given.scan.name} at {size}: {len(images)} slices, {count} lesions, {(masks & brain).sum()} pixels, "
          f"{100 * (masks & brain).sum() / brain.sum():.2f} % of the brain; {time.perf_counter() - began:.0f} s; "
          f"unlikeness {min(unlike):.2f} to {max(unlike):.2f}\n")
    rows = []
    for name, forms in scores.items():
        found = {form: detection.figures(values[brain], numbers[brain] - 1, np.zeros(brain.sum(), int))
                 for form, values in forms.items()}
        best = max(found, key=lambda form: found[form]["auprc"])
        rows.append((f"{name} ({best})", *(as_text(found[best][figure], 3) for figure in detection.FIGURES)))
    print(markdown_table(COLUMNS, rows))
    if given.picture:
        largest = np.argsort(-masks.sum((1, 2)), kind="stable")
        chosen = sorted([item for place, item in enumerate(largest) if all(
            abs(item - other) > 4 for other in largest[:place])][:4])
        likely, plain, atlas = (torch.from_numpy(scores[name][form][chosen]) for name, form in (
            ("restoration_times_likelihood", lesions.RESTORATION), ("restoration", lesions.RESTORATION),
            ("atlas", lesions.ERROR)))
        pictures.save_picture(pictures.strip([
            ("scan", images.bytes()[chosen]), ("lesions", torch.from_numpy(masks[chosen])[:, None].byte() * 255),
            ("restoration", pictures.ScaledMaps(plain, pictures.DIFFERENCE_SCALE)),
            ("times likelihood", pictures.ScaledMaps(likely, 0.1)),
            ("atlas", pictures.ScaledMaps(atlas, 4.0))]), given.picture)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    reports, scan = ways.add_parser("reports"), ways.add_parser("scan")
    reports.add_argument("folders", nargs="+", type=Path)
    for name in ("scan", "mask"):
        scan.add_argument(name, type=Path)
    scan.add_argument("--models", nargs=3, required=True, metavar=("VQVAE", "TOP", "BOTTOM"))
    scan.add_argument("--data", type=Path, required=True)
    scan.add_argument("--planes", type=int, default=60)
    scan.add_argument("--match", action="store_true")
    scan.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.way == "reports":
        of_reports(given.folders)
    else:
        of_scan(given)


if __name__ == "__main__":
    main()
