"""Folders of evaluate.py -> one HTML page that can be sent: verdict, pictures, and each metric with how to read it.

The page is made of a folder's files alone: metrics.json, evaluate.json (the record) and the PNGs, so that it can be
made again later. Of several folders it has a column for each. `widgets.py` makes its parts, `verdict.py` its sentences,
`reading.py` its lines on how to read a metric.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import UserError, expect
from vqvae2.common.page import escaped
from vqvae2.common.statistics import as_text
from vqvae2.evaluation import reasons
from vqvae2.evaluation.anatomy import SETS
from vqvae2.evaluation.figures import COUNTING, PAIRS
from vqvae2.evaluation.lesions import KINDS, SCORES
from vqvae2.evaluation.rates import CODECS, POINTS
from vqvae2.evaluation.reading import READINGS
from vqvae2.evaluation.verdict import MARKS, THRESHOLDS, Sentence, verdict
from vqvae2.evaluation.widgets import (
    Cell,
    Embedded,
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
from vqvae2.images.reading import load_picture
from vqvae2.settings.stored import read_json

METRICS, RECORD = "metrics.json", "evaluate.json"
SCHEMA = 1
MOST_REPORTS = 8
MODELS = (("vqvae", "VQ-VAE"), ("top", "top prior"), ("bottom", "bottom prior"), ("decoder", "texture decoder"))
OWN = {"schema", "data", "split", "subjects", "subjects_known", "images", "seen_in_training", "warnings",
       "reconstruction", "codes", "raw_bits_per_pixel", "ms_ssim_weights", "priors", "samples", "rates", "likelihood",
       "lesions", "anatomy", "seed", "vqvae_hash", "decoder_hash", "versions"}
"""Keys of metrics.json that the page shows, or has no use for. The numbers below others stand under Further metrics."""
NOTE = ("Small numbers below a metric are its 95 % interval, by drawing people with replacement. In the software, "
        "docs/reading-your-results.md has every line on how to read a metric, docs/results.md the figures of its own "
        "weights.")
CAPTIONS = {
    "worst": "The lowest SSIM: look for scans that were cut wrongly and for slices unlike the others",
    "best": "The highest SSIM",
    "ssim_histogram": "SSIM of all images",
    "reconstructions": "Evenly chosen images",
    "samples": "Samples, not chosen by hand",
    "code_images_top": "Top codes, a colour for each; codes have no order, and neither have the colours",
    "code_images_bottom": "Bottom codes, likewise",
    "code_histogram": "How often each code stands in these images",
    "likelihood": "What the priors find unusual: bright where a code was improbable. Such a map is no diagnosis",
    "closest": "The samples nearest to a training slice: are they the same brain, or merely as soft?",
    "rates": "Quality over the bits that it costs, beside JPEG, WebP and JPEG 2000",
    "lesions": "Synthetic lesions, and what two scores make of them",
    "anatomy": "What samples were told and what is read from them, and shares of tissue in each slice",
    "curves": "Training of the VQ-VAE",
    "curves_top": "Training of the top prior",
    "curves_bottom": "Training of the bottom prior",
    "curves_decoder": "Training of the texture decoder",
}
"""The pictures of a report that the page shows, and what to look for in each."""


@dataclass(frozen=True)
class Report:
    """What a folder of evaluate.py holds."""

    folder: Path
    name: str
    """How the run is called on the page."""
    metrics: dict
    record: dict
    """The content of evaluate.json; {} where it is not there."""
    images: tuple[dict, ...]
    """The images of pairs.png, each {"name", "ssim"}; none where an earlier version has written the folder."""


@dataclass(frozen=True)
class Row:
    """This is a line of a table for one run: a metric, how to read it, and what is beside it."""

    label: str
    made: Cell
    reading: str = ""
    """Key in READINGS of the line that stands below the label; "" where it stands at a row above."""
    again: Cell | None = None
    """What reconstructions reach."""
    real: Cell | None = None
    """What real slices reach."""


def write(folders: Sequence[Path], out: Path) -> None:
    """Write the page of some reports, each column a folder of evaluate.py in the order given.

    Raises: UserError if a folder is no report, or the page cannot be written.
    """
    files.write_atomically(out, page_bytes(read(folders)))


def is_page(content: bytes) -> bool:
    """Return whether a file is a page that `write`, or a command's own page, would look like."""
    return b'<meta name="generator" content="vqvae2">' in content[:4000]


def read(folders: Sequence[Path]) -> list[Report]:
    """Return the reports of folders; runs of one name are called by their folders too. Raises: UserError."""
    expect(1 <= len(folders) <= MOST_REPORTS, "REPORT", f"1 to {MOST_REPORTS} folders of evaluate.py", len(folders),
           "Name some, such as report.")
    expect(len({folder.resolve() for folder in folders}) == len(folders), "REPORT", "each folder once",
           " ".join(map(str, folders)), "Name different folders.")
    found = []
    for folder in folders:
        metrics = read_json(folder / METRICS, "the figures that evaluate.py wrote", "Give a folder of evaluate.py.")
        expect(metrics.get("schema") == SCHEMA and isinstance(metrics.get("warnings"), list),
               f"{folder / METRICS}", f"figures of schema {SCHEMA} that evaluate.py wrote", "others",
               "Give a folder of evaluate.py.")
        record = read_json(folder / RECORD, "the settings that evaluate.py wrote") if (folder / RECORD).exists() else {}
        images = _images_of(folder / PAIRS)
        run = Path(str(_settings(record).get("vqvae") or folder.resolve().name)).name
        if run == "vqvae":  # as `vqvae2 run` calls each: the folder of the chain tells them apart
            run = folder.resolve().parent.name or run
        warnings = [_without_paths(str(warning), record) for warning in metrics["warnings"]]
        found.append(Report(folder, run, metrics | {"warnings": warnings}, record, images))
    names = [report.name for report in found]
    return [report if names.count(report.name) == 1 else replace(
        report, name=f"{report.name} ({_told_apart(report.folder, folders)})") for report in found]


def _told_apart(folder: Path, folders: Sequence[Path]) -> str:
    """Return the end of a folder's path that no other folder's path has."""
    paths = [each.resolve().parts for each in folders]
    own = folder.resolve().parts
    return "/".join(next(own[-count:] for count in range(1, len(own) + 1)
                         if sum(parts[-count:] == own[-count:] for parts in paths) == 1))


def page_bytes(reports: Sequence[Report]) -> bytes:
    """Return the page. Equal folders give equal bytes.

    Raises: UserError if the figures are not those that evaluate.py writes.
    """
    try:
        pictures = embedded(dict(_pictures(reports)))
        names = " and ".join(report.name for report in reports)
        title = f"{names}: {reports[0].metrics['split']} split"
        return document(title, _head(reports), [
            _notices(reports), _verdicts(reports), *_sections(reports, pictures), f'<p class="dim">{NOTE}</p>'])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{', '.join(str(report.folder / METRICS) for report in reports)}: expected the figures that "
                        f"evaluate.py writes, found {type(error).__name__}: {files.in_brief(error)}. "
                        "Give a folder of this version's evaluate.py.") from error


# The head, what cannot be compared, and the verdict

def _head(reports: Sequence[Report]) -> str:
    first = reports[0].metrics
    one = len(reports) == 1
    heading = reports[0].name if one else " / ".join(report.name for report in reports)
    lead = (f"What a VQ-VAE-2 makes of {first['images']} brain slices of {_people(first)} ({first['split']} split)" if
            one else f"{len(reports)} reports, side by side")
    rows = [(name, [_fact(report, name) for report in reports]) for name in FACTS]
    rows = [(name, texts) for name, texts in rows if any(texts)]
    shown = facts((name, texts[0]) for name, texts in rows) if one else table(
        ["", *(report.name for report in reports)], [Line(name, texts) for name, texts in rows], "about the runs")
    return f'<h1>{escaped(heading)}</h1>\n<p class="lead">{escaped(lead)}.</p>\n{shown}'


FACTS = ("models", "data", "split", "images", "seen in training", "date", "command", "software")


def _fact(report: Report, name: str) -> str:
    metrics, settings = report.metrics, _settings(report.record)
    if name == "models":
        hashes = {"vqvae": metrics["vqvae_hash"], "decoder": metrics.get("decoder_hash")}
        shown = [f"{what} {Path(str(settings.get(key) or report.name)).name}"
                 + (f" ({found[:8]})" if (found := hashes.get(key) or settings.get(f"{key}_hash")) else "")
                 for key, what in MODELS if key == "vqvae" or settings.get(key)]
        return ", ".join(shown)
    if name == "data":
        found = _images_hash(report)
        return metrics["data"]["folder"] + (f" ({found[:8]})" if found else "")
    if name == "images":
        return f"{metrics['images']} of {_people(metrics)}"
    if name == "seen in training":
        seen = metrics["seen_in_training"]
        return "none of them" if not any(seen.values()) else f"{seen['images']} images, {seen['subjects']} people"
    if name == "software":
        return ", ".join(f"{package} {version}" for package, version in metrics["versions"].items())
    if name == "split":
        return str(metrics["split"])
    return _without_paths(str(report.record.get(name) or ""), report.record)


def _people(metrics: dict) -> str:
    return f"{metrics['subjects']} {'person' if metrics['subjects'] == 1 else 'people'}"


def _notices(reports: Sequence[Report]) -> str:
    """Return what makes the reports no fair comparison."""
    compared = {"split": [report.metrics["split"] for report in reports],
                "images": [_images_hash(report) for report in reports] if all(map(_images_hash, reports)) else [
                    report.metrics["data"]["folder"] for report in reports],
                "number of images": [report.metrics["images"] for report in reports],
                "number of people": [report.metrics["subjects"] for report in reports],
                "number of samples": [(report.metrics.get("samples") or {}).get("count") for report in reports]}
    differing = [name for name, values in compared.items() if len(set(values)) > 1]
    judged = [name for name in differing if name != "number of samples"]
    lines = []
    if judged:
        lines.append(f"These reports are not comparable: they differ in their {', '.join(judged)}. A better figure may "
                     "come from easier images.")
    elif differing:
        lines.append("These reports differ in their number of samples: compare only kernel MMD², spectrum, edges and "
                     "AUROC of their samples, with their intervals.")
    return "".join(f'<section><p class="notice" role="note">{escaped(line)}</p></section>' for line in lines)


def _verdicts(reports: Sequence[Report]) -> str:
    several = len(reports) > 1
    parts = "".join((f"<h3>{escaped(report.name)}</h3>" if several else "") + _verdict(verdict(report.metrics))
                    for report in reports)
    limits = table(["", "value", "what it decides"], [
        Line(name, (Cell(f"{number:g}"), meaning)) for name, (number, meaning) in THRESHOLDS.items()],
        "thresholds")
    return section("Verdict", parts, f"<details><summary>The thresholds behind these sentences</summary>{limits}"
                   "</details>", name="verdict")


def _verdict(sentences: Sequence[Sentence]) -> str:
    return '<ul class="verdict">' + "".join(
        f'<li class="{mark}"><span class="mark {mark}">{MARKS[mark]}</span><b>{escaped(about)}</b>'
        f"<span>{prose(text)}</span></li>" for mark, about, text in sentences) + "</ul>"


# The sections

def _sections(reports: Sequence[Report], pictures: Mapping) -> Iterator[str]:
    def shown(*names: str) -> list[str]:
        return [_side_by_side(reports, [figure(pictures.get((number, name)), CAPTIONS[name])
                                        for number in range(len(reports))]) for name in names]

    def metrics(rows: Callable[[dict], Iterator[Row]], label: str, made: str = "found") -> str:
        return _metrics(reports, [list(rows(report.metrics)) for report in reports], label, made)

    sliders = _viewers(reports, pictures)
    yield section("Reconstructions", sliders, *shown("reconstructions"),
                  metrics(_reconstruction, "quality of reconstructions"), *shown("worst", "best", "ssim_histogram"),
                  name="reconstructions")
    yield section("Samples", *shown("samples"), metrics(_samples, "metrics of samples", "samples"), name="samples")
    yield section("Codes", metrics(_codes, "use of the codes"),
                  *shown("code_images_top", "code_images_bottom", "code_histogram"), name="codes")
    yield section("Likelihood under the priors", metrics(_priors, "bits of the codes"), *shown("likelihood"),
                  name="priors")
    yield section("Copies of training slices", metrics(_copies, "distances to training slices", "samples"),
                  *shown("closest"), name="copies")
    yield section("Rates", metrics(_rates, "quality at the same bits"), *shown("rates"), name="rates")
    yield section("Synthetic lesions", metrics(_lesions, "AUROC of lesions"), *shown("lesions"), name="lesions")
    yield section("Anatomy of samples", metrics(_anatomy, "anatomy of samples", "samples"), *shown("anatomy"),
                  name="anatomy")
    yield section("Further metrics", metrics(_further, "further metrics"), name="further")
    yield section("Training", *shown("curves", "curves_top", "curves_bottom", "curves_decoder"), name="training")


def _side_by_side(reports: Sequence[Report], parts: Sequence[str]) -> str:
    if len(reports) == 1 or not any(parts):
        return "".join(parts)
    return '<div class="runs">' + "".join(
        f"<div>{f'<h3>{escaped(report.name)}</h3>{part}' if part else ''}</div>"
        for report, part in zip(reports, parts) if part) + "</div>"


def _metrics(reports: Sequence[Report], rows: Sequence[Sequence[Row]], label: str, made: str) -> str:
    """Return the table of the same rows of each run, beside what reconstructions and real slices reach."""
    of_runs = [{row.label: row for row in of_run} for of_run in rows]
    order = list(dict.fromkeys(name for of_run in of_runs for name in of_run))
    one = len(reports) == 1
    has_again = one and any(row.again for row in rows[0])
    has_real = any(row.real for of_run in rows for row in of_run)
    columns = ["", *([made] if one else [report.name for report in reports]), *["reconstructions"] * has_again,
               *["real slices"] * has_real]
    lines = []
    for name in order:
        there = [of_run.get(name) for of_run in of_runs]
        known = next(filter(None, there))
        cells = [row.made if row else Cell("", why="not in this report") for row in there]
        if not one:  # what they reach may differ from run to run
            cells = [cell if not (row and row.again) or row.again.value == "–" else cell._replace(
                more=(*cell.more, f"reconstructions {row.again.value}")) for row, cell in zip(there, cells)]
        beside = [*[known.again or Cell("")] * has_again, *[known.real or Cell("")] * has_real]
        lines.append(Line(name, (*cells, *beside), READINGS[known.reading].clauses() if known.reading else (),
                          belongs=not known.reading))
    return table(columns, lines, label)


def _cell(found: Mapping | None, key: str, digits: int, why: str = "", of: str | None = None) -> Cell:
    """Return a metric; a dash with the reason where it is not defined.

    Args:
        of: prefix of the keys of its interval's ends; None where it has no interval.
    """
    value = found and found.get(key)
    if value is None:
        return Cell("–", why=why)
    ends = [None if of is None else found.get(f"{of}{end}") for end in ("ci_low", "ci_high")]
    return Cell(as_text(value, digits), () if None in ends else (" to ".join(as_text(end, digits) for end in ends),))


def _reconstruction(report: dict) -> Iterator[Row]:
    areas = report["reconstruction"]
    for key, label, digits in (("ssim", "", 3), ("ms_ssim", "MS-SSIM", 3), ("psnr", "PSNR (dB)", 2),
                               ("mae", "mean absolute error", 4)):
        for area, where in (("full", "full picture"), ("brain", "inside the brain")):
            reading = ("ssim" if area == "full" else "brain_ssim") if key == "ssim" else key if area == "full" else ""
            name = READINGS[reading].title if key == "ssim" else label + f", {where}" * (area == "brain")
            yield Row(name, _cell(areas[area][key], "mean", digits, reasons.of_similarity(report, area), ""), reading)
        if key == "ssim":
            lowest = _cell(areas["full"]["ssim"], "min", 3, reasons.SMALL)
            yield Row(READINGS["lowest_ssim"].title, lowest, "lowest_ssim")


def _codes(report: dict) -> Iterator[Row]:
    for name, digits in (("used", 0), ("perplexity", 1), ("shuffle_drop", 3)):
        for level, found in report["codes"].items():
            cell = Cell(f"{found['used']} of {found['size']}") if name == "used" else _cell(found, name, digits,
                                                                                             reasons.SMALL)
            yield Row(f"{level}: {READINGS[name].title}", cell, name * (level == next(iter(report["codes"]))))


def _priors(report: dict) -> Iterator[Row]:
    found = report.get("priors") or {}
    levels = {level: found[level] for level in report["codes"] if level in found}
    for number, (level, of_level) in enumerate(levels.items()):
        why, first = reasons.of_counting(report), number == 0
        ahead = of_level["below_best_reference"]
        lead = "" if ahead is None else (
            f"{abs(100 * ahead):.1f} % {'below' if ahead >= 0 else 'above'} the best counting")
        cell = _cell(of_level, "bits_per_code", 3, of="")
        yield Row(f"{level}: {READINGS['bits_per_code'].title}", cell._replace(more=(*cell.more, *filter(
            None, (lead,)))), "bits_per_code" * first)
        if of_level["condition"]:
            yield Row(f"{level}: the same, told nothing (else told {' '.join(map(str, of_level['condition']))})",
                      _cell(of_level, "untold_bits_per_code", 3, reasons.TOLD_NOTHING))
        for place, (name, key, _) in enumerate(COUNTING):
            yield Row(f"{level}: counting, {name}", _cell(of_level, key, 3, why), "counting" * (first and place == 0))
        yield Row(f"{level}: blind guess", Cell(as_text(math.log2(report["codes"][level]["size"]), 3)))
    if "bits_per_pixel" in found:
        yield Row(READINGS["bits_per_pixel"].title, Cell(as_text(found["bits_per_pixel"], 3)), "bits_per_pixel")
        yield Row("codes as they are stored, bits per pixel", Cell(as_text(report["raw_bits_per_pixel"], 3)))


def _samples(report: dict) -> Iterator[Row]:
    found = report.get("samples")
    if not found:
        return
    again = found.get("reconstructions")

    def row(label: str, reading: str, name: str, digits: int, pick: Callable[[dict], dict],
            keys: tuple[str, str] = ("value", "real_floor")) -> Row:
        made, beside = (_cell(of and pick(of), keys[0], digits, reasons.of_samples(of, name) if of else
                              reasons.NO_TRAINING, "") for of in (found, again))
        of = "real_floor_" if keys[1] == "real_floor" else "real_"
        return Row(label, made, reading, beside, _cell(pick(found), keys[1], digits, reasons.of_samples(
            found, name, is_real=True), of))

    yield row(READINGS["mmd"].title, "mmd", "mmd", 3, lambda of: of["mmd"])
    if found.get("other_mmd"):
        yield row(READINGS["other_mmd"].title, "other_mmd", "other_mmd", 3, lambda of: of.get("other_mmd"))
    for name in ("frechet", "precision", "recall"):
        yield row(READINGS[name].title, name, name, 2 if name == "frechet" else 3, lambda of, name=name: of[name])
    yield row(READINGS["pairs"].title, "pairs", "pairwise_ms_ssim", 3, lambda of: of,
              ("pairwise_ms_ssim", "real_pairwise_ms_ssim"))
    if found.get("spectrum"):
        for band, (least, most) in enumerate(found["spectrum"]["cycles"]):
            yield row(f"{READINGS['spectrum'].title}, {least:g} to {most:g} cycles a picture", "spectrum" * (band == 0),
                      "spectrum", 2, lambda of, band=band: {key: values[band] for key, values in of["spectrum"].items()
                                                            if isinstance(values, list) and band < len(values)})
        for number, scale in enumerate(found["edges"]):
            yield row(f"distance of {scale} edges", "edges" * (number == 0), "edges", 4,
                      lambda of, scale=scale: of["edges"][scale])
    probe = found.get("probe")
    if probe:
        for number, (key, label) in enumerate((
                ("samples", "samples, real slices"), ("samples_against_reconstructions", "samples, reconstructions"),
                ("context_model", "images of the neighbours model, real slices"),
                ("reconstructions", "reconstructions, real slices"))):
            yield Row(f"{READINGS['probe'].title}: {label}", _cell(probe.get(key), "auroc", 3, reasons.of_probe(
                probe, key), ""), "probe" * (number == 0))
        yield Row("does the classifier count?", Cell("yes" if probe["counts"] else "no"))




def _copies(report: dict) -> Iterator[Row]:
    found = (report.get("samples") or {}).get("memorisation")
    for name in ("pixels", "features") if found else ():
        cells = []
        for of in (found[name], found["reconstructions"][name]):
            ends = [of["ci_low"], of["ci_high"]]
            cells.append(Cell(f"{100 * of['closer_share']:.1f} %", () if None in ends else (
                " to ".join(f"{100 * end:.1f}" for end in ends),)))
        yield Row(f"{READINGS['closer'].title}, by {name}", cells[0], "closer" * (name == "pixels"), cells[1],
                  Cell("1 %", ("by definition",)))
        yield Row(f"median distance to the nearest, by {name}", _cell(found[name], "samples_median", 3), "",
                  _cell(found["reconstructions"][name], "samples_median", 3), _cell(found[name], "unseen_median", 3))


def _rates(report: dict) -> Iterator[Row]:
    found = report.get("rates")
    if not found:
        return
    points = found["model"]["points"]
    for name, point in points.items():
        yield Row(f"bits per pixel, {POINTS[name][0]}", _cell(point, "bits_per_pixel", 3, of=""))
    for figure_, where in (("ssim", "full picture"), ("brain_ssim", "inside the brain")):
        yield Row(f"{READINGS['rates'].title}, {where}", _cell(found["model"], figure_, 3, of=f"{figure_}_"),
                  "rates" * (figure_ == "ssim"))
        for key, reached in found["at_equal_rate"]["raw"].items():
            for kind, what in (("bits_per_pixel", "whole file"), ("without_header", "without header")):
                yield Row(f"{CODECS[key].name}, {what}, {where}", _cell(reached[kind], figure_, 3, reasons.of_rate(
                    CODECS[key].name)))


def _lesions(report: dict) -> Iterator[Row]:
    found = report.get("lesions") or {}
    for number, kind in enumerate(kind for kind in ("all", *KINDS) if kind in found):
        for place, name in enumerate(SCORES):
            yield Row(f"{kind} lesions: {name.replace('_', ' ')}", _cell(found[kind][name], "auroc", 3, of=""),
                      "lesions" * (number == place == 0))


def _anatomy(report: dict) -> Iterator[Row]:
    found = report.get("anatomy") or {"told": {}, "tissue": {}}
    for number, (column, of) in enumerate(found["told"].items()):
        for key, name, digits in (("mae", READINGS["told"].title, 2), ("r2", "the same, R²", 3)):
            made, again, real = (_cell(of[own], key, digits, reasons.NOTHING_KNOWN, f"{key}_") for own in SETS)
            yield Row(f"{column}: {name}", made, "told" * (number == 0 and key == "mae"), again, real)
        yield Row(f"{column}: error of a blind guess", Cell(""), "", Cell(""), _cell(of, "blind_mae", 2,
                                                                                     reasons.NOTHING_KNOWN))
    for key, reading, digits, of in (("mean", "tissue", 3, ""), ("distance", "tissue_distance", 4, "distance_")):
        for number, (name, sets) in enumerate(found["tissue"].items()):
            made, again, real = (_cell(sets[own], key, digits, reasons.of_tissue(own, key), of) for own in SETS)
            yield Row(f"{name}: {READINGS[reading].title}", made, reading * (number == 0), again, real)


def _further(report: dict) -> Iterator[Row]:
    """Return the numbers of judges that are not part of this software."""
    def numbers(tree: object, name: str) -> Iterator[Row]:
        if isinstance(tree, dict):
            for key, value in tree.items():
                yield from numbers(value, f"{name}, {key}" if name else str(key))
        elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
            yield Row(name, Cell(f"{tree:.4g}"))

    yield from numbers({key: value for key, value in report.items() if key not in OWN}, "")


# Pictures

def _pictures(reports: Sequence[Report]) -> Iterator[tuple[tuple, Path | Image.Image]]:
    """Return the pictures of all runs by (number of the run, name), and the halves of the pairs."""
    for number, report in enumerate(reports):
        has_pairs = bool(report.images)
        for name in CAPTIONS:
            if (report.folder / f"{name}.png").is_file() and not (name == "reconstructions" and has_pairs):
                yield (number, name), report.folder / f"{name}.png"
    for group in _groups(reports):
        for number in group:
            images = reports[number].images
            sheet = load_picture(reports[number].folder / PAIRS)
            width, height = sheet.width // len(images), sheet.height // 2
            for item in range(len(images)):
                for side in (0, 1)[number != group[0]:]:  # equal originals are embedded once
                    box = (item * width, side * height, (item + 1) * width, (side + 1) * height)
                    yield (number, item, side), sheet.crop(box)


def _groups(reports: Sequence[Report]) -> list[list[int]]:
    """Return the numbers of the runs that have pairs, those with the same images together."""
    groups: dict[tuple, list[int]] = {}
    for number, report in enumerate(reports):
        if report.images:
            images = _images_hash(report) or str(report.folder), *(image["name"] for image in report.images)
            groups.setdefault(images, []).append(number)
    return list(groups.values())


def _viewers(reports: Sequence[Report], pictures: Mapping[tuple, Embedded]) -> str:
    """Return a slider for each group of runs that show the same images."""
    made = []
    for group in _groups(reports):
        labels = ["reconstruction" if len(reports) == 1 else reports[number].name for number in group]
        pairs = []
        for item, image in enumerate(reports[group[0]].images):
            keys = [(group[0], item, 0), *((number, item, 1) for number in group)]
            if all(key in pictures for key in keys):
                scores = ", ".join(f"{label}: SSIM {as_text(reports[number].images[item]['ssim'], 3)}"
                                   for label, number in zip(labels, group))
                pairs.append(Pair(image["name"], f"{image['name']}. {scores}", pictures[keys[0]],
                                  [pictures[key] for key in keys[1:]]))
        made.append(viewer(pairs, labels))
    return "".join(made)


def _images_of(path: Path) -> tuple[dict, ...]:
    """Return what pairs.png says of its images; none where it is not there, or damaged."""
    with suppress(OSError, UserError, ValueError, TypeError, KeyError, SyntaxError):
        load_picture(path)
        with Image.open(path) as sheet:
            found = json.loads(sheet.text["pairs"])
        return tuple({"name": str(image["name"]), "ssim": None if image["ssim"] is None else float(image["ssim"])}
                     for image in found)
    return ()


def _images_hash(report: Report) -> str:
    """Return the hash of the judged images; "" where an earlier version has written the folder."""
    return str(_settings(report.record).get("images_hash") or "")


def _settings(record: dict) -> dict:
    return record["settings"] if isinstance(record.get("settings"), dict) else {}


def _without_paths(text: str, record: dict) -> str:
    """Return a text with the names of runs and folders in place of their paths, which are one machine's own."""
    for value in _settings(record).values():
        if isinstance(value, str) and Path(value).is_absolute():
            text = text.replace(value, Path(value).name)
    return text
