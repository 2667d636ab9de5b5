r"""The weights in pretrained/, and scans -> every table, picture and model card of the documentation.

    python -m tools.make_results --scans ~/data/oasis1
or, with a fresh environment:
    make results SCANS=~/data/oasis1
For one size only, without changing the documentation and the cards of this checkout:
    python -m tools.make_results --scans ~/data/oasis1 --sizes 64 --docs docs-of-mine --no-cards

For each size that has a VQ-VAE in pretrained/ it extracts slices, judges the models on subjects that they were not
trained on, makes samples and completes images, with the project's own scripts, and prints their commands. Where a size
has no priors, reconstructions of validation slices are judged as samples are. Reports and samples go to --out. Then it
copies the pictures that pages in <docs> show to <docs>/pictures, writes the tables into <docs>/results.md, between the
lines <!-- NAME --> and <!-- end -->, and a card for each model. Run it again to go on where it stopped.

The published numbers are of the 56 scans named in docs/results.md; on other scans the numbers show how well the models
transfer.
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

from vqvae2 import __version__, api
from vqvae2.commands import publish
from vqvae2.commands.steps import Step, run_steps
from vqvae2.common import files, statistics
from vqvae2.common.errors import expect, run_script
from vqvae2.evaluation import surprise
from vqvae2.evaluation import text as report_text
from vqvae2.images.dataset import to_bytes
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.plots import pictures
from vqvae2.runs import weights
from vqvae2.settings.checks import Checked
from vqvae2.settings.parsing import parse, path_from_environment

PRETRAINED = Path("pretrained")
COOL = "--temperature 0.9 0.7 --top-p 0.9"
# Folder of each report -> what it is called on a card.
REPORTS = {"report": "temperature 1", "report-cool": "temperature 0.9 and 0.7, top-p 0.9",
           "report-default": "the default of extraction, one slice a scan",
           "report-texture": "temperature 1, decoded by the texture decoder"}
WITHOUT_PRIORS = {"report": "decoded softly", "report-texture": "decoded by the texture decoder"}
CARDS = {"vqvae": ("report", "report-default"), "top": ("report", "report-cool"), "bottom": ("report", "report-cool"),
         "decoder": ("report-texture",), "denoiser": ()}
"""What a model is -> the reports on its card."""
PICTURES = {  # in --out/<size> -> in <docs>/pictures, with the size at the end of the name
    "report/strip.png": "strip", "report/reconstructions.png": "reconstructions", "report/worst.png": "worst",
    "report/best.png": "best", "report/code_histogram.png": "code-histogram", "report/ssim_histogram.png": "ssim",
    "report/likelihood.png": "likelihood", "report/lesions.png": "lesions", "report/rates.png": "rates",
    "report/closest.png": "closest", "report/curves.png": "curves", "report/curves_top.png": "curves-top",
    "report/curves_bottom.png": "curves-bottom", "samples/grid.png": "samples", "samples-cool/grid.png": "samples-cool",
    "completed/grid.png": "completed-right", "completed-left/grid.png": "completed-left",
    "samples-texture/grid.png": "samples-texture", "texture.png": "texture",
    "levels.png": "levels", "overview.png": "overview"}
SHOWN, IMAGES_SHOWN, GIVEN = "shown", 6, "given"
DATA = """OpenNeuro ds002748 version 1.0.5 (CC0; Bezmaternykh et al. 2021, DOI 10.18112/openneuro.ds002748.v1.0.5):
one T1-weighted, skull-stripped scan each of 56 adults, one study, one scanner. Axial slices from the middle half of the
brain, 8 bit, background exactly 0, radiological display, as `extract_slices.py` makes them: {size} by {size} pixels of
{pixel:g} mm."""


@dataclass(frozen=True, kw_only=True)
class ResultsSettings(Checked):
    """Settings of make_results."""

    scans: Path | None = None
    """Folder of the scans. Default: OASIS_PATH."""
    out: Path = Path("results/published")
    """Folder that receives slices, reports and samples."""
    docs: Path = Path("docs")
    """Folder whose results.md and pictures are written."""
    sizes: tuple[int, ...] = ()
    """Sizes of the models in pretrained/ to judge. Default: all sizes."""
    samples: int = 256
    """Number of samples to judge for each size; without priors, of reconstructions of validation slices."""
    per_scan: int = 60
    """Number of slices of each scan."""
    quick: bool = False
    """Make the first report alone, without probe, rates and lesions, and neither pictures of samples nor cards, to
    check quickly whether the numbers are the same."""
    no_cards: bool = False
    """Leave the model cards in pretrained/ as they are: they describe the scans named in docs/results.md."""

    RULES = (("samples", lambda samples: samples >= 2, "at least 2", "The default is 256."),
             ("per_scan", lambda slices: slices >= 1, "at least 1", "The default is 60."))


def models_of(size: int) -> dict[str, Path]:
    """Return the folders of a size's models, by what they are: vqvae, top, bottom, decoder, denoiser."""
    return {what: folder for what in CARDS if (folder := PRETRAINED / f"{what}-{size}").is_dir()}


def flags_of(size: int, *more: str) -> str:
    """Return the flags that name the models of a size; "decoder" among `more` for the texture decoder too."""
    return " ".join(f"--{what} {folder}" for what, folder in models_of(size).items()
                    if what in ("vqvae", "top", "bottom", *more))


def judging(size: int, settings: ResultsSettings, scans: Path) -> list[Step]:
    """Return the steps that lead from scans to the reports of one size."""
    folder, models = settings.out / str(size), models_of(size)
    out, priors = shlex.quote(str(folder)), "top" in models
    hashes = {what: weights.weights_hash(weights.load_weights(model / weights.WEIGHTS)[0])
              for what, model in models.items()}

    def cut(heading: str, name: str, more: str = "") -> tuple[str, str, str, str]:
        return heading, "extract", name, f"--scans {shlex.quote(str(scans))} --out {out}/{name} --size {size}{more}"

    def judge(heading: str, name: str, what: str, slices: str = "slices") -> tuple[str, str, str, str]:
        return f"figures{heading}", "evaluate", name, f"{what} --data {out}/{slices} --out {out}/{name}"

    drawn, plain = f" --samples {settings.samples}" * priors, flags_of(size)

    def probed(heading: str, ending: str, flags: str, more: str = "") -> list[tuple[str, str, str, str]]:
        made = f"validate{ending}"
        told = drawn or f" --sampled {out}/{made}/reconstructions"
        predicted = (f"reconstructions{heading}", "predict", made, f"{flags} {out}/{GIVEN} --out {out}/{made}")
        return [*([] if drawn else [predicted]), judge(heading, f"report{ending}", f"{flags}{told} --probe{more}")]

    rows = [cut("slices", "slices", f" --per-scan {settings.per_scan}")]
    if settings.quick:
        rows.append(judge("", "report", plain + drawn))
    else:
        rows += [*probed("", "", plain, " --rates" + " --lesions" * priors),
                 cut("one slice of each scan", "slices-default"),
                 judge(" of one slice of each scan", "report-default", f"--vqvae {models['vqvae']}", "slices-default")]
        if priors:
            rows.append(judge(" of likelier samples", "report-cool", f"{plain}{drawn} {COOL} --probe"))
        if "decoder" in models:
            rows += probed(" with texture", "-texture", flags_of(size, "decoder"))
    return [Step(f"{heading}, {size} by {size}", command, arguments,
                 note=folder / name / ".done" if command == "evaluate" else None,
                 key=" ".join([*(own for what, own in hashes.items() if f"--{what} " in arguments), __version__]))
            for heading, command, name, arguments in rows]


def choose(slices: Path, folder: Path, count: int) -> None:
    """Copy at most `count` of the slices of a folder, evenly spaced, to `folder`, which then has no others."""
    paths = pictures_in(slices)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in statistics.evenly(len(paths), count):
        shutil.copy(paths[number], folder)


def sampling(size: int, settings: ResultsSettings) -> list[Step]:
    """Return the steps that sample and complete images of one size that has priors."""
    folder, top = settings.out / str(size), models_of(size)["top"]
    # The range of positions that the prior has learned; nothing where the prior was told none.
    places = "".join(f" --condition position_mm={column['least']:g}..{column['most']:g}"
                     for column in weights.read_config(top)["columns"] if column["name"] == "position_mm")
    out, new, decoder = shlex.quote(str(folder)), f"{flags_of(size)} --count 64{places}", models_of(size).get("decoder")
    complete = f"{flags_of(size)} --inpaint {out}/{SHOWN} --count 4 {COOL}"
    return [Step("samples", "sample", f"{new} --out {out}/samples"),
            *([Step("samples with texture", "sample", f"{new} --decoder {decoder} --out {out}/samples-texture")]
              if decoder else ()),
            Step("likelier samples", "sample", f"{new} {COOL} --out {out}/samples-cool"),
            Step("completions of the right half", "sample", f"{complete} --mask right --out {out}/completed"),
            Step("completions of the left half, the best of eight", "sample",
                 f"{complete} --mask left --reject 8 --out {out}/completed-left")]


def overview(size: int, settings: ResultsSettings) -> Image.Image:
    """Return the README's picture: some test images, what the models make of them, and new images, a row each."""
    out, models = settings.out / str(size), models_of(size)
    paths = pictures_in(out / SHOWN)
    real, vqvae = _stacked(paths), api.load_vqvae(models.pop("vqvae"))
    models.pop("decoder", None)
    codes = api.encode(vqvae, real)
    bits = surprise.code_bits({level: api.load_prior(folder, level, vqvae) for level, folder in models.items()},
                                codes, [{}] * len(paths), len(paths))
    masked = real.clone()
    masked[..., size // 2:] = 0
    return pictures.strip([("real, unseen", real), ("reconstruction", to_bytes(api.decode(vqvae, codes))),
                           ("unusual, bits", pictures.ScaledMaps(surprise.bits_per_pixel_maps(bits, real.shape[2:]),
                                                                 surprise.BITS_PER_PIXEL)),
                           ("half hidden", masked),
                           ("completed", _stacked([out / "completed" / "images" / f"{path.stem}-000000.png"
                                                   for path in paths])),
                           ("new", _stacked(pictures_in(out / "samples-cool" / "images")[:len(paths)]))])


def textures(size: int, settings: ResultsSettings) -> Image.Image:
    """Return test images at full size, what the VQ-VAE's own decoder makes of their codes, and the texture decoder."""
    paths, models = pictures_in(settings.out / str(size) / SHOWN), models_of(size)
    real = _stacked(paths)
    soft, sharp = (api.load_vqvae(models["vqvae"], decoder=decoder) for decoder in (None, models["decoder"]))
    codes = api.encode(soft, real)
    return pictures.strip([(name, pictures.enlarged(images)) for name, images in (
        ("real, unseen", real), ("soft", to_bytes(api.decode(soft, codes))),
        ("with texture", to_bytes(api.decode(sharp, codes))))])


@torch.no_grad()
def levels_shown(size: int, settings: ResultsSettings) -> Image.Image:
    """Return test images, their codes in colours, and what the top codes alone and both levels give back."""
    vqvae = api.load_vqvae(models_of(size)["vqvae"])
    real, model = _stacked(pictures_in(settings.out / str(size) / SHOWN)), vqvae.model
    codes = api.encode(vqvae, real)
    colours = [(f"{level} codes", pictures.code_colours(maps, model.settings.codebook_size))
               for level, maps in codes.items()]
    return pictures.strip([("image", real), *colours, ("from the top", to_bytes(model.decode({"top": codes["top"]}))),
                           ("from both", to_bytes(model.decode(codes)))])


def _stacked(paths: list[Path]) -> torch.Tensor:
    """Return pictures as uint8 `[n, channels, height, width]`."""
    return torch.from_numpy(np.stack([read_picture(path) for path in paths]))


def read_reports(out: Path) -> dict[str, dict]:
    """Return the metrics.json of each of the REPORTS that is there, by its folder."""
    return {folder: json.loads((out / folder / "metrics.json").read_text(encoding="utf-8"))
            for folder in REPORTS if (out / folder / "metrics.json").is_file()}


def write_documents(size: int, settings: ResultsSettings) -> None:
    """Copy the pictures of one size that pages show (all of them where there is no page); fill in results.md."""
    out, page = settings.out / str(size), settings.docs / "results.md"
    (settings.docs / "pictures").mkdir(parents=True, exist_ok=True)
    pages = [*settings.docs.glob("*.md"), *settings.docs.parent.glob("README.md")] if page.is_file() else []
    shown = "".join(path.read_text(encoding="utf-8") for path in pages)
    for source, name in PICTURES.items():
        if (out / source).is_file() and (f"/{name}-{size}.png" in shown or not pages):
            shutil.copyfile(out / source, settings.docs / "pictures" / f"{name}-{size}.png")
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        for folder, report in read_reports(out).items():
            for name, (columns, rows) in report_text.tables(report).items():
                if rows:
                    text = report_text.fill(text, f"{name}-{size}{folder.removeprefix('report')}",
                                            report_text.markdown_table(columns, rows))
        files.write_text(page, text)


def write_cards(size: int, settings: ResultsSettings, commands: list[Step]) -> None:
    """Write the card of each model of a size; VQ-VAE and texture decoder also get the metrics.json of their report."""
    reports, models = read_reports(settings.out / str(size)), models_of(size)
    titles = REPORTS if "top" in models else REPORTS | WITHOUT_PRIORS
    said = "\n".join(f"vqvae2 {step.name} {step.arguments}" for step in commands)
    # The places of files on this machine are left out.
    said = re.sub(r"--scans ('[^']*'|\S+)", "--scans scans", said).replace(shlex.quote(str(settings.out)),
                                                                           "results/published")
    for what, folder in models.items():
        files.write_text(folder / publish.CARD, publish.card(
            folder, DATA.format(size=size, pixel=224 / size),
            {titles[name]: report for name, report in reports.items() if name in CARDS[what]}, said,
            {"license": "mit", "datasets": ["ds002748"]}))
        if what in ("vqvae", "decoder"):
            files.write_json(folder / "metrics.json", reports[CARDS[what][0]])


def main(arguments: list[str] | None = None) -> None:
    """Make the results as the command line says."""
    settings = parse(ResultsSettings, __doc__, arguments)
    files.check_folder(settings.out, "--out")
    files.check_folder(settings.docs, "--docs")
    scans = path_from_environment(settings.scans, "OASIS_PATH", "--scans")
    published = sorted(int(path.name.split("-")[1]) for path in PRETRAINED.glob("vqvae-[0-9]*"))
    for size in settings.sizes:
        expect(size in published, f"--sizes {size}", f"a size of which {PRETRAINED}/ has a VQ-VAE",
               ", ".join(map(str, published)) or "none at all", "Choose among these.")
    for size in settings.sizes or published:
        steps = judging(size, settings, scans)
        for step in steps:  # a whole report of other weights, flags or code is made anew
            if step.note and step.note.is_file() and not step.is_done():
                shutil.rmtree(step.note.parent, ignore_errors=True)
        run_steps(steps[:1])
        folder = settings.out / str(size)
        choose(folder / "slices" / "test", folder / SHOWN, IMAGES_SHOWN)
        if "top" not in models_of(size):
            choose(folder / "slices" / "validate", folder / GIVEN, settings.samples)
        run_steps(steps[1:])
        if not settings.quick:
            if "top" in models_of(size):
                run_steps(sampling(size, settings))
                pictures.save_picture(overview(size, settings), folder / "overview.png")
            pictures.save_picture(levels_shown(size, settings), folder / "levels.png")
            if "decoder" in models_of(size):
                pictures.save_picture(textures(size, settings), folder / "texture.png")
        write_documents(size, settings)
        if not settings.quick and not settings.no_cards:
            write_cards(size, settings, steps)
    print(f"written: {settings.out}, {settings.docs}"
          + ("" if settings.quick or settings.no_cards else f" and the cards in {PRETRAINED}"))


if __name__ == "__main__":
    run_script(main)
