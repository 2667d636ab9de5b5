"""metrics.json -> the lines and tables that evaluate.py prints and the notebook shows."""

import math
from collections.abc import Iterable, Sequence

from vqvae2 import anomalies, lesions


def headline(report: dict) -> list[tuple[str, str]]:
    """Return the figures of a metrics.json that come first, as (what, value with its unit)."""
    seen, full, brain = report["seen_in_training"], *(report["reconstruction"][area] for area in ("full", "brain"))
    rows = [("warning", one) for one in report["warnings"]]
    rows += [("images", f"{report['images']} of {report['subjects']} subjects, split {report['split']}; "
                       f"{seen['images']} of them and {seen['subjects']} subjects seen in training")]
    for area, one in (("full picture", full), ("inside the brain", brain)):
        ssim = one["ssim"]
        rows.append((f"SSIM, {area}", f"{_text(ssim['mean'], 4)} (95 % interval {_text(ssim['ci_low'], 4)} to "
                                      f"{_text(ssim['ci_high'], 4)}), minimum {_text(ssim['min'], 4)}"))
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
    if report["samples"]:
        one = report["samples"]
        rows.append(("variety of samples", f"MS-SSIM of pairs {_text(one['pairwise_ms_ssim'], 3)}; real pairs "
                                           f"{_text(one['real_pairwise_ms_ssim'], 3)}"))
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


def prior_bits(report: dict) -> list[tuple[str, ...]]:
    """Return rows (level, prior, three models that only count) in bits per code, a blind guess last."""
    names = ("bits_per_code", "context_model_bits", "position_histogram_bits", "histogram_bits")
    return [(level, *(_text(one[name], 3) for name in names), _text(math.log2(report["codes"][level]["size"]), 3))
            for level, one in (report["priors"] or {}).items() if level in report["codes"]]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.000
