"""metrics.json -> the lines and tables that evaluate.py prints and the notebook shows."""

import math
import re
from collections.abc import Iterable, Sequence

from vqvae2.evaluation import anomalies, copies, distances, lesions, probe, rates

FIGURES = (("ssim", "SSIM", 4), ("ms_ssim", "MS-SSIM", 4), ("psnr", "PSNR in dB", 2),
           ("mae", "mean absolute error, images 0…1", 4))
QUANTILES = (("min", "minimum"), ("q05", "5th percentile"), ("median", "median"), ("q95", "95th percentile"),
             ("max", "maximum"))


def headline(report: dict) -> list[tuple[str, str]]:
    """Return the figures of a metrics.json that come first, as (what, value with its unit)."""
    seen, full, brain = report["seen_in_training"], *(report["reconstruction"][area] for area in ("full", "brain"))
    rows = [("warning", one) for one in report["warnings"]]
    rows += [("images", f"{report['images']} of {report['subjects']} subjects, split {report['split']}; "
                       f"{seen['images']} of them and {seen['subjects']} subjects seen in training")]
    for area, one in (("full picture", full), ("inside the brain", brain)):
        ssim = one["ssim"]
        rows.append((f"SSIM, {area}", f"{_text(ssim['mean'], 4)} (95 % interval {_text(ssim['ci_low'], 4)} to "
                                      f"{_text(ssim['ci_high'], 4)}), minimum {_text(ssim['min'], 4)}, "
                                      f"maximum {_text(ssim['max'], 4)}"))
    rows.append(("PSNR, full picture", f"{_text(full['psnr']['mean'], 2)} dB"))
    for level, one in report["codes"].items():
        rows.append((f"{level} codes", f"{one['used']} of {one['size']} used, perplexity "
                                       f"{_text(one['perplexity'], 1)}, shuffle drop {_text(one['shuffle_drop'], 3)}"))
    priors = report["priors"] or {}
    rows += [(f"{level} prior", _prior_text(priors[level])) for level in report["codes"] if level in priors]
    if "bits_per_pixel" in priors:
        rows.append(("all codes", f"{_text(priors['bits_per_pixel'], 4)} bits per pixel, "
                                  f"{priors['bits_per_pixel_is']}; stored as they are "
                                  f"{_text(report['raw_bits_per_pixel'], 4)}"))
    rows += [(f"lesions, {kind}", _lesion_text(report["lesions"][kind])) for kind in (*lesions.KINDS, "all")
             if kind in (report.get("lesions") or {})]
    rows += _sample_lines(report["samples"]) if report["samples"] else []
    return rows


def _prior_text(one: dict) -> str:
    """A prior's bits per code, how far below the best model that only counts, and what those need."""
    ahead, told = one["below_best_reference"], one["condition"]
    lead = "" if ahead is None else (f", {abs(100 * ahead):.1f} % {'below' if ahead >= 0 else 'above'} the best model "
                                     "that counts")
    return (f"{_text(one['bits_per_code'], 3)} bits per code{lead} (neighbours {_text(one['context_model_bits'], 3)}, "
            f"place {_text(one['position_histogram_bits'], 3)}, frequency {_text(one['histogram_bits'], 3)})"
            + (f", told {' '.join(told)}" if told else ""))


def _lesion_text(one: dict) -> str:
    found = (f"{name.replace('_', ' ')} {one[name]['auroc']:.3f} ({one[name]['ci_low']:.3f} to "
             f"{one[name]['ci_high']:.3f})" for name in anomalies.SCORES)
    return f"AUROC by {', '.join(found)}"


def _sample_lines(one: dict) -> list[tuple[str, str]]:
    """What samples come to, each beside what real slices reach."""
    lines = [(f"samples, {figure}", f"{value}; reconstructions {again}; real slices {floor}")
             for figure, value, again, floor in _samples(one)]
    if one["memorisation"]:
        lines += [(f"closer to training than 99 % of unseen slices, by {what}", share)
                  for what, *_, share in copies.rows(one["memorisation"])]
    if one["probe"]:
        lines += [(f"AUROC of the probe, {what}", value) for what, value in probe.rows(one["probe"])]
    return lines


def tables(report: dict) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return the tables of a metrics.json by name, (columns, rows) each; those that lack their figures are empty.

    reconstruction, codes, priors, samples, memorisation, probe, rates, lesions.
    """
    found, parts = report["samples"] or {}, {
        "reconstruction": (("figure", "full picture", "inside the brain"), _reconstruction(report)),
        "codes": (("level", "used", "perplexity", "shuffle drop (SSIM)"), [
            (level, f"{one['used']} of {one['size']}", _text(one["perplexity"], 1), _text(one["shuffle_drop"], 3))
            for level, one in report["codes"].items()]),
        "priors": (("level", "prior", "told nothing", "neighbours", "place", "frequency", "blind guess"),
                   _priors(report))}
    parts["samples"] = (("figure", "samples", "reconstructions of training slices", "real slices"),
                        _samples(found) if found else [])
    given = {"memorisation": (("distance to the nearest training slice", "median", "median of unseen slices",
                               "1st percentile of these", "share closer than that"), copies,
                              found.get("memorisation")),
             "probe": (("what is told from what", "AUROC"), probe, found.get("probe")),
             "rates": (rates.COLUMNS, rates, report.get("rates"))}
    parts |= {name: (columns, module.rows(one) if one else []) for name, (columns, module, one) in given.items()}
    parts["lesions"] = (("lesions", "images", *(name.replace("_", " ") for name in anomalies.SCORES)), [
        (kind, str(one["images"]), *(_with_interval(one[name], "auroc", 3) for name in anomalies.SCORES))
        for kind, one in (report.get("lesions") or {}).items() if kind in (*lesions.KINDS, "all")])
    return parts


def _samples(one: dict) -> list[tuple[str, ...]]:
    """Rows (figure, samples, what perfect priors would reach, what real slices reach)."""
    again = distances.rows(one["reconstructions"]) if one["reconstructions"] else None
    return [(figure, value, again[number][1] if again else "–", floor)
            for number, (figure, value, floor) in enumerate(distances.rows(one))]


def _reconstruction(report: dict) -> list[tuple[str, ...]]:
    areas, rows = [report["reconstruction"][area] for area in ("full", "brain")], []
    for name, title, digits in FIGURES:
        rows.append((f"{title}, mean (95 % interval over subjects)",
                     *(_with_interval(area[name], "mean", digits) for area in areas)))
        if name == "ssim":
            rows += [(f"{title}, {what}", *(_text(area[name][key], digits) for area in areas))
                     for key, what in QUANTILES]
    return rows


def _priors(report: dict) -> list[tuple[str, ...]]:
    """Rows (level, prior, the same told nothing, three models that only count, a blind guess) in bits per code."""
    names = ("untold_bits_per_code", "context_model_bits", "position_histogram_bits", "histogram_bits")
    return [(level, _with_interval(one, "bits_per_code", 3), *(_text(one[name], 3) for name in names),
             _text(math.log2(report["codes"][level]["size"]), 3))
            for level, one in (report["priors"] or {}).items() if level in report["codes"]]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.000


def _with_interval(one: dict, key: str, digits: int) -> str:
    """A figure, and its 95 % interval where there is one."""
    if one.get("ci_low") is None:
        return _text(one[key], digits)
    return f"{_text(one[key], digits)} ({_text(one['ci_low'], digits)} to {_text(one['ci_high'], digits)})"


def fill(text: str, name: str, content: str) -> str:
    """Return a page with `content` between <!-- name --> and the next <!-- end -->, where it has these lines."""
    return re.sub(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{content}\n{found[2]}",
                  text, flags=re.DOTALL)
