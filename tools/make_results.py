r"""The weights in pretrained/, and scans -> every figure, picture and model card that the documentation shows.

    python -m tools.make_results --scans ~/data/oasis1
or, with a fresh environment:
    make results SCANS=~/data/oasis1
Without touching the documentation of this checkout, nor its cards, and of one size only:
    python -m tools.make_results --scans ~/data/oasis1 --sizes 64 --docs docs-of-mine --no-cards

For each size that has a VQ-VAE in pretrained/ it extracts slices, judges the models on subjects that they were not
trained on, draws samples and completes images, with the project's own scripts, whose commands it prints. Reports and
samples go to --out. Then it copies the pictures to <docs>/pictures, writes the tables into <docs>/results.md, between
the lines <!-- NAME --> and <!-- end -->, and a card for each model. Run it again to go on where it stopped.

The published figures are of the 56 scans named in docs/results.md; with other scans they are figures of transfer.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tools import model_cards
from vqvae2 import __version__
from vqvae2.commands.steps import Step, run_steps
from vqvae2.common import distributed, files
from vqvae2.common.errors import UserError, run_script
from vqvae2.evaluation import surprise
from vqvae2.evaluation import text as report_text
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.models import encoding
from vqvae2.plots import pictures
from vqvae2.runs import weights
from vqvae2.sampling import sampler
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import parse, path_from_environment

PRETRAINED = Path("pretrained")
COOL = "--temperature 0.9 0.7 --top-p 0.9"
AT_1, COOLER = "temperature 1", "temperature 0.9 and 0.7, top-p 0.9"
REPORTS = {"report": AT_1, "report-cool": COOLER, "report-default": "the default of extraction, one slice a scan"}
"""Folder of each report -> what it is called on a card."""
PICTURES = {  # in --out/<size> -> in <docs>/pictures, with the size at the end of the name
    "report/strip.png": "strip", "report/reconstructions.png": "reconstructions", "report/worst.png": "worst",
    "report/best.png": "best", "report/code_histogram.png": "code-histogram", "report/ssim_histogram.png": "ssim",
    "report/likelihood.png": "likelihood", "report/lesions.png": "lesions", "report/rates.png": "rates",
    "report/closest.png": "closest", "report/curves.png": "curves", "report/curves_top.png": "curves-top",
    "report/curves_bottom.png": "curves-bottom", "samples/grid.png": "samples", "samples-cool/grid.png": "samples-cool",
    "completed/grid.png": "completed-right", "completed-left/grid.png": "completed-left"}
COMPLETED = 6
DATA = """OpenNeuro ds002748 version 1.0.5 (CC0; Bezmaternykh et al. 2021, DOI 10.18112/openneuro.ds002748.v1.0.5):
one T1-weighted, skull-stripped scan each of 56 adults, one study, one scanner. Axial slices from the middle half of the
brain, 8 bit, background exactly 0, radiological display, as `extract_slices.py` makes them: {size} by {size} pixels of
{pixel:g} mm."""


@dataclass(frozen=True, kw_only=True)
class ResultsSettings:
    """Settings of make_results.py."""

    scans: Path | None = None
    """Folder of the scans. Default: OASIS_PATH."""
    out: Path = Path("results/published")
    """Folder that receives slices, reports and samples."""
    docs: Path = Path("docs")
    """Folder whose results.md and pictures are written."""
    sizes: tuple[int, ...] = ()
    """Sizes of the models in pretrained/ that are judged. Default: all."""
    samples: int = 256
    """Samples that are judged of each size."""
    per_scan: int = 60
    """Slices of each scan."""
    quick: bool = False
    """Leave out probe, rates, lesions, and the pictures of samples and completions: to see whether figures are the
    same."""
    no_cards: bool = False
    """Leave the model cards in pretrained/ as they are: they speak of the scans named in docs/results.md."""

    def __post_init__(self) -> None:
        expect(self.samples >= 2, "--samples", "at least 2", self.samples, "The default is 256.")
        expect(self.per_scan >= 1, "--per-scan", "at least 1", self.per_scan, "The default is 60.")
        files.check_folder(self.out, "--out")
        files.check_folder(self.docs, "--docs")


def published_sizes() -> list[int]:
    """Return the sizes for which pretrained/ has a VQ-VAE."""
    return sorted(int(path.name.removeprefix("vqvae-")) for path in PRETRAINED.glob("vqvae-*")
                  if path.name.removeprefix("vqvae-").isdigit())


def models_of(size: int) -> dict[str, Path]:
    """Return the folders of the models of a size, by what they are: vqvae, top, bottom."""
    return {what: folder for what in ("vqvae", "top", "bottom")
            if ((folder := PRETRAINED / f"{what}-{size}") / weights.WEIGHTS).is_file()}


def judging(size: int, settings: ResultsSettings, scans: Path) -> list[Step]:
    """Return the steps that lead from scans to the reports of one size."""
    out = shlex.quote(str(settings.out / str(size)))
    models = " ".join(f"--{what} {folder}" for what, folder in models_of(size).items())
    hashes = [weights.weights_hash(weights.load_weights(folder / weights.WEIGHTS)[0])
              for folder in models_of(size).values()]
    key = " ".join([*hashes, __version__])

    def done(report: str) -> Path:
        return settings.out / str(size) / report / ".done"

    has_priors, more = "--top" in models, "" if settings.quick else " --rates"
    if has_priors:
        more += f" --samples {settings.samples}" + ("" if settings.quick else " --probe --lesions")
    steps = [Step(f"slices of {size} by {size}", "extract",
                  f"--scans {shlex.quote(str(scans))} --out {out}/slices --size {size} --per-scan {settings.per_scan}"),
             Step(f"figures, {size} by {size}", "evaluate", f"{models} --data {out}/slices --out {out}/report{more}",
                  note=done("report"), key=key)]
    if not settings.quick:
        steps += [Step(f"one slice of each scan, {size} by {size}", "extract",
                       f"--scans {shlex.quote(str(scans))} --out {out}/slices-default --size {size}"),
                  Step(f"figures of these, {size} by {size}", "evaluate", f"--vqvae {models_of(size)['vqvae']} "
                       f"--data {out}/slices-default --out {out}/report-default",
                       note=done("report-default"), key=key)]
    if has_priors and not settings.quick:
        steps.append(Step(f"figures of likelier samples, {size} by {size}", "evaluate",
                          f"{models} --data {out}/slices --samples {settings.samples} {COOL} --probe --out "
                          f"{out}/report-cool", note=done("report-cool"), key=key))
    return steps


def drawing(size: int, settings: ResultsSettings, told: str) -> list[Step]:
    """Return the steps that draw and complete images of one size, once its slices are there."""
    out = shlex.quote(str(settings.out / str(size)))
    models = " ".join(f"--{what} {folder}" for what, folder in models_of(size).items())
    folder = settings.out / str(size)
    some = _some_test_images(folder / "slices" / "test", folder / "to-complete")
    complete = f"{models} --inpaint {shlex.quote(str(some))} --count 4 {COOL}"
    return [Step("samples", "sample", f"{models} --count 64{told} --out {out}/samples"),
            Step("likelier samples", "sample", f"{models} --count 64{told} {COOL} --out {out}/samples-cool"),
            Step("completions of the right half", "sample", f"{complete} --mask right --out {out}/completed"),
            Step("completions of the left half, the best of eight", "sample",
                 f"{complete} --mask left --reject 8 --out {out}/completed-left")]


def _some_test_images(source: Path, folder: Path) -> Path:
    """Copy evenly chosen images to a folder of their own, and return it."""
    paths = pictures_in(source)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in np.unique(np.linspace(0, len(paths) - 1, COMPLETED).round().astype(int)):
        shutil.copyfile(paths[number], folder / paths[number].name)
    return folder


def told_of(top: Path | None) -> str:
    """Return sample.py's --condition for the range of positions that a prior has learned; "" where it was told none."""
    columns = weights.read_config(top)["columns"] if top else []
    return "".join(f" --condition position_mm={one['least']:g}..{one['most']:g}" for one in columns
                   if one["name"] == "position_mm")


def overview(size: int, settings: ResultsSettings) -> Image.Image:
    """Return the README's picture: some test images, what the models make of them, and new images, a row each."""
    out, models = settings.out / str(size), models_of(size)
    paths = pictures_in(out / "to-complete")
    real = _stacked(paths)
    vqvae, priors = sampler.load_models(*(str(models[what]) for what in ("vqvae", "top", "bottom")),
                                        distributed.pick_device())
    split = ImageSet(tuple(ImageFile(path.name, "test", path.name, "") for path in paths), real.numpy())
    maps, made = encoding.reconstruct(vqvae.model, split, len(paths))
    bits = surprise.code_bits(priors, maps.levels, [{}] * len(paths), len(paths))
    unusual = surprise.bits_per_pixel_maps(bits, real.shape[2:])
    masked = real.clone()
    masked[..., size // 2:] = 0
    completed = _stacked([out / "completed" / "images" / f"{path.stem}-000000.png" for path in paths])
    new = _stacked(pictures_in(out / "samples-cool" / "images")[:len(paths)])
    return pictures.strip([("real, unseen", real), ("reconstruction", made),
                        ("unusual, bits", pictures.Scaled(unusual, surprise.BITS_PER_PIXEL)),
                        ("half hidden", masked), ("completed", completed), ("new", new)])


def _stacked(paths: list[Path]) -> torch.Tensor:
    """Pictures as uint8 `[n, channels, height, width]`."""
    return torch.from_numpy(np.stack([read_picture(path) for path in paths]))


def read_report(path: Path) -> dict | None:
    """Return a metrics.json, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_documents(size: int, settings: ResultsSettings) -> None:
    """Copy the pictures of one size, and write its tables into results.md."""
    out, page = settings.out / str(size), settings.docs / "results.md"
    for source, name in PICTURES.items():
        if (out / source).is_file():
            (settings.docs / "pictures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / source, settings.docs / "pictures" / f"{name}-{size}.png")
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    for folder in REPORTS:
        report = read_report(out / folder / "metrics.json")
        for name, (columns, rows) in report_text.tables(report).items() if report else ():
            if rows:
                text = report_text.fill(text, f"{name}-{size}" + folder.removeprefix("report"),
                            report_text.markdown_table(columns, rows))
    if text:
        files.write_text(page, text)


def write_cards(size: int, settings: ResultsSettings, commands: list[Step]) -> None:
    """Write the card of each model of a size, and its metrics.json beside the VQ-VAE."""
    out, models = settings.out / str(size), models_of(size)
    reports = {title: report for folder, title in REPORTS.items()
               if (report := read_report(out / folder / "metrics.json"))}
    said = "\n".join(f"vqvae2 {step.name} {step.arguments}" for step in commands)
    # Where things lie is this machine's business.
    said = re.sub(r"--scans ('[^']*'|\S+)", "--scans scans", said).replace(shlex.quote(str(settings.out)),
                                                                           "results/published")
    for what, folder in models.items():
        about = DATA.format(size=size, pixel=224 / size)
        left_out = COOLER if what == "vqvae" else REPORTS["report-default"]
        model_cards.write(folder, about, {name: one for name, one in reports.items() if name != left_out}, said)
    if AT_1 in reports:
        files.write_json(models["vqvae"] / "metrics.json", reports[AT_1])


def main(arguments: list[str] | None = None) -> None:
    """Make the results as the command line says."""
    settings = parse(ResultsSettings, __doc__, arguments)
    scans = path_from_environment(settings.scans, "OASIS_PATH", "--scans")
    sizes = settings.sizes or tuple(published_sizes())
    for size in sizes:
        if "vqvae" not in models_of(size):
            raise UserError(f"--sizes {size}: expected a size of which {PRETRAINED}/ has a VQ-VAE, found "
                            f"{', '.join(map(str, published_sizes())) or 'none at all'}. Choose among these.")
    for size in sizes:
        steps = judging(size, settings, scans)
        run_steps(steps)
        if len(models_of(size)) == 3 and not settings.quick:
            run_steps(drawing(size, settings, told_of(models_of(size).get("top"))))
            pictures.save_picture(overview(size, settings), settings.docs / "pictures" / f"overview-{size}.png")
        write_documents(size, settings)
        if not settings.quick and not settings.no_cards:
            write_cards(size, settings, steps)
    cards = "" if settings.quick or settings.no_cards else f" and the cards in {PRETRAINED}"
    print(f"written: {settings.out}, {settings.docs}{cards}")


if __name__ == "__main__":
    run_script(main)
