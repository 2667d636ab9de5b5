"""The figures of metrics.json -> a report's verdict: sentences in plain words, each good, fair, bad or not known.

THRESHOLDS is the only place with numbers that decide. What decides without a number is an interval: two metrics differ
where the interval of one does not reach the other.
"""

from collections.abc import Iterator
from typing import NamedTuple

from vqvae2.common.statistics import as_text, with_interval
from vqvae2.evaluation import reasons


class Sentence(NamedTuple):
    """This is one sentence of a verdict, or a few that belong together."""

    mark: str
    """One of MARKS."""
    about: str
    """The part of the report that it is about, such as "Samples"."""
    text: str


class Threshold(NamedTuple):
    """This is a number that decides, and what it decides."""

    value: float
    meaning: str


MARKS = {"good": "good", "fair": "fair", "bad": "bad", "unknown": "not known", "warning": "warning"}
THRESHOLDS = {
    "few subjects": Threshold(5, "Intervals over fewer people than this are too narrow: the report warns."),
    "few samples": Threshold(64, "Fewer samples than this leave the metrics of samples uncertain: the report warns."),
    "says nothing": Threshold(0.01, "A level whose shuffle drop (SSIM) is below this says nothing."),
    "says little": Threshold(0.07, "A level whose shuffle drop is below this says little: plain VQ-VAE-2, whose bottom "
                                   "says nearly everything, had 0.04 to 0.07 for the top."),
    "collapsed": Threshold(0.02, "A codebook with a smaller share of its codes in use has collapsed."),
    "few codes": Threshold(0.10, "A codebook with a smaller share of its codes in use uses few."),
    "good SSIM": Threshold(0.95, "A mean SSIM of this or more is good: the aim at 128 by 128 pixels."),
    "fair SSIM": Threshold(0.90, "A mean SSIM below this is bad."),
    "good probe": Threshold(0.60, "An AUROC of the classifier up to this is good: real slices of some people against "
                                  "those of others have 0.55."),
    "fair probe": Threshold(0.75, "An AUROC up to this is fair, above it bad; not known where the interval reaches "
                                  "0.5."),
    "alike": Threshold(0.05, "Samples whose pairs are alike by this much more (MS-SSIM) than real pairs vary too "
                             "little."),
    "widest": Threshold(0.2, "An interval of the share of copies that reaches beyond this says nothing about copies."),
    "copies": Threshold(0.01, "The share of samples near a training slice that is expected without copies."),
}
"""Every number that the verdict compares with, by its name; docs/reading-your-results.md shows this table."""


def verdict(report: dict) -> list[Sentence]:
    """Return the verdict on a metrics.json: warnings first, then each part of the report in its order."""
    return [*_warnings(report), *_levels(report), *_reconstructions(report), *_priors(report), *_samples(report),
            *_copies(report), *_lesions(report), *_anatomy(report)]


def thresholds_as_markdown() -> str:
    """Return THRESHOLDS as a table for docs/reading-your-results.md."""
    return "\n".join(["| threshold | value | what it decides |", "| --- | --- | --- |",
                      *(f"| {name} | {number:g} | {meaning} |" for name, (number, meaning) in THRESHOLDS.items())])


def _limit(name: str) -> float:
    return THRESHOLDS[name].value


def _warnings(report: dict) -> Iterator[Sentence]:
    for warning in report["warnings"]:
        yield Sentence("warning", "Warning", _sentence(warning))
    subjects = report["subjects"]
    if not report.get("subjects_known", True):
        yield Sentence("warning", "People", "Whose the images are is not known: each image counts as a person of its "
                                            "own, so that the intervals are too narrow.")
    elif subjects < _limit("few subjects"):
        yield Sentence("warning", "People", f"The images are of {subjects} {'person' if subjects == 1 else 'people'} "
                                            "alone: intervals are too narrow, and other people may give other figures. "
                                            "Extract again with a larger last share of --split, or another --seed, and "
                                            "train again.")
    if (samples := report.get("samples")) and samples["count"] < _limit("few samples"):
        yield Sentence("warning", "Samples", f"Only {samples['count']} samples were judged: their metrics are "
                                             "uncertain or missing. --samples 256 gives steadier ones.")


def _levels(report: dict) -> Iterator[Sentence]:
    levels = report["codes"]
    if not levels:
        return
    for level, found in levels.items():
        share = found["used"] / found["size"]
        if share < _limit("few codes"):
            how = "has collapsed" if share < _limit("collapsed") else "is hardly used"
            yield Sentence("bad", "Codes", f"The {level} codebook {how}: {found['used']} of {found['size']} codes are "
                                           "in use. Train the VQ-VAE longer, or with more --start-steps.")
    drops = {level: found["shuffle_drop"] for level, found in levels.items()}
    if report["images"] < 2 or None in drops.values():
        why = "one image has no other to exchange codes with" if report["images"] < 2 else reasons.SMALL
        yield Sentence("unknown", "Codes", f"What the codes say is not known: {why}.")
        return
    empty, poor = ([level for level, drop in drops.items() if drop < _limit(name)]
                   for name in ("says nothing", "says little"))
    for level in empty:
        others = [other for other in levels if other != level]
        rest = f"the {others[0]}'s say everything" if others else "the decoder ignores them"
        yield Sentence("bad", "Codes", f"The {level} level says nothing: images lose {as_text(drops[level], 3)} of "
                                       f"SSIM when they exchange its codes, so that {rest}.")
    if len(empty) == len(drops):
        return
    kept = [level for level in drops if level not in empty]
    little = [level for level in poor if level in kept]
    lost = [f"{as_text(drops[level], 2)} of SSIM without the {level} codes' information" if level == kept[0] else
            f"{as_text(drops[level], 2)} without the {level}'s" for level in kept]
    subject = "Both levels are in use" if len(kept) == 2 else (
        "The codes are in use" if len(drops) == 1 else f"The {kept[0]} level is in use")
    yield Sentence("fair" if little or empty else "good", "Codes", f"{subject}: images lose {', '.join(lost)}."
                   + "".join(f" The {level} level says little." for level in little))


def _reconstructions(report: dict) -> Iterator[Sentence]:
    ssim = report["reconstruction"]["full"]["ssim"]
    own = report["reconstruction"].get("own_decoder", {}).get("ssim", ssim)
    if ssim["mean"] is None:
        yield Sentence("unknown", "Reconstructions", f"SSIM is not known: it {reasons.of_similarity(report, 'full')}.")
        return
    mark = next((mark for mark in ("good", "fair") if own["mean"] >= _limit(f"{mark} SSIM")), "bad")
    rates = report.get("rates")
    beside = f"; {_beside_jpeg(rates)}" if rates else ""
    text = f"Mean SSIM {with_interval(ssim, 'mean', 3)}, {as_text(ssim['min'], 3)} for the worst image{beside}."
    if own is not ssim:
        text = f"Mean SSIM {with_interval(own, 'mean', 3)}. With the texture decoder, whose detail is invented: {text}"
    yield Sentence(mark, "Reconstructions", text.replace(": Mean", ": mean"))
    if not rates:
        yield Sentence("unknown", "Rates", "How this compares with JPEG at the same bits was not asked: --rates would "
                                           "tell.")


def _beside_jpeg(rates: dict) -> str:
    """Return how the model's SSIM compares with that of JPEG files of as many bits as the codes as they are."""
    model, jpeg = rates["model"], rates["at_equal_rate"]["raw"].get("jpeg")
    if jpeg is None:
        return "this Pillow has no JPEG to compare with"
    whole, bare = (jpeg[kind]["ssim"] for kind in ("bits_per_pixel", "without_header"))
    if whole is None:
        return "no JPEG file is so small" + (f" (without its header JPEG has {as_text(bare, 3)})" if bare is not None
                                             else "")
    words = "better than" if model["ssim_ci_low"] > whole else (
        "worse than" if model["ssim_ci_high"] < whole else "about as good as")
    return (f"{words} JPEG at the same bits ({as_text(whole, 3)}"
            + (f", {as_text(bare, 3)} if its header cost nothing" if bare is not None else "") + ")")


def _priors(report: dict) -> Iterator[Sentence]:
    found = {level: figures for level, figures in (report.get("priors") or {}).items() if level in report["codes"]}
    ahead = {level: figures["below_best_reference"] for level, figures in found.items()}
    if not found:
        return
    if None in ahead.values():
        yield Sentence("unknown", "Priors", "Whether the priors beat models that only count is not known: "
                                            f"{reasons.of_counting(report)}.")
        return
    for level in [level for level, share in ahead.items() if share <= 0]:
        yield Sentence("bad", "Priors", f"The {level} prior has learned nothing that counting does not give: it needs "
                                        f"{-100 * ahead[level]:.0f} % more bits than the best model that counts.")
    if better := [f"the {level} prior needs {100 * share:.0f} % fewer bits"
                  for level, share in ahead.items() if share > 0]:
        yield Sentence("good", "Priors", _sentence(f"{' and '.join(better)} than the best model that only counts"))


def _samples(report: dict) -> Iterator[Sentence]:
    found = report.get("samples")
    if not found:
        if not any(warning.startswith("samples are not judged") for warning in report["warnings"]):
            why = "the train split would be compared with itself" if report["split"] == "train" else (
                "--top and --bottom name the priors to sample from, --sampled a folder of samples")
            yield Sentence("unknown", "Samples", f"No samples were judged: {why}.")
        return
    probe = found.get("probe")
    if probe and probe["samples"]["auroc"] is not None:
        yield _of_probe(probe)
    else:
        yield _of_mmds(found)
        yield Sentence("unknown", "Classifier", "Whether a classifier can tell samples from real slices is not known: "
                       + (reasons.of_probe(probe, "samples") if probe else "--probe would tell") + ".")
    alike, real = found["pairwise_ms_ssim"], found["real_pairwise_ms_ssim"]
    if None not in (alike, real):
        much = alike - real > _limit("alike")
        few = found["count"] < _limit("few samples")
        advice = (" So few samples say little: draw more." if few else
                  " Draw with --temperature and --top-p nearer to 1.") if much else ""
        yield Sentence(("unknown" if few else "bad") if much else "good", "Variety",
                       f"Two samples are {'more alike than' if much else 'as different as'} slices of two people "
                       f"(MS-SSIM of pairs {as_text(alike, 3)}, real {as_text(real, 3)}).{advice}")


def _of_probe(probe: dict) -> Sentence:
    """Return what the classifier makes of samples and real slices. AUROC is a share of pairs, not of cases."""
    found, soft = probe["samples"], probe["samples_against_reconstructions"]
    text = (f"Of a pair of a sample and a real slice, a classifier picks the sample in {_of_ten(found['auroc'])} pairs "
            f"(AUROC {with_interval(found, 'auroc', 2)}; 0.5 would be perfect)")
    if soft["auroc"] is not None:
        text += f", and in {_of_ten(soft['auroc'])} beside reconstructions, which have passed the same decoder"
    if not probe["counts"]:
        return Sentence("unknown", "Samples", f"{text}; but the classifier is too weak to count: it does not even tell "
                                              "obvious fakes.")
    low = found["auroc"] if found["ci_low"] is None else found["ci_low"]
    if found["auroc"] > _limit("good probe") and low <= 0.5:
        return Sentence("unknown", "Samples", f"{text}. The interval reaches 0.5: samples or people are too few to "
                                              "tell.")
    mark = next((mark for mark in ("good", "fair") if found["auroc"] <= _limit(f"{mark} probe")), "bad")
    return Sentence(mark, "Samples", f"{text}.")


def _of_mmds(found: dict) -> Sentence:
    """Return whether samples are further from slices of unseen people than other real slices are, in the features of
    the network that says the worse."""
    few = found["count"] < _limit("few samples")
    verdicts = [_of_mmd(found[key], name, few) for key, name in (
        ("mmd", "kernel MMD²"), ("other_mmd", "kernel MMD², photographs")) if found.get(key)]
    return min(verdicts, key=lambda sentence: ("bad", "unknown", "good").index(sentence.mark))


def _of_mmd(mmd: dict, name: str, few_samples: bool) -> Sentence:
    value, floor = mmd["value"], mmd["real_floor"]
    few = "How near samples are to real slices is not known: too few " + (
        "samples" if few_samples else "people, or samples")
    if None in (value, floor, mmd["ci_low"], mmd["real_floor_ci_high"]):
        return Sentence("unknown", "Samples", f"{few}.")
    further, shown = mmd["ci_low"] > mmd["real_floor_ci_high"], (
        f"{name} {with_interval(mmd, 'value', 2)}; real slices {as_text(floor, 2)}")
    if not further and (few_samples or value > mmd["real_floor_ci_high"]):
        return Sentence("unknown", "Samples", f"{few}, for the intervals of samples and of real slices meet ({shown}).")
    return Sentence("bad" if further else "good", "Samples",
                    f"Samples are {'further from' if further else 'as near to'} slices of unseen people "
                    f"{'than' if further else 'as'} slices of other people are ({shown}).")


def _copies(report: dict) -> Iterator[Sentence]:
    found = (report.get("samples") or {}).get("memorisation")
    if not found:
        if report.get("samples"):
            yield Sentence("unknown", "Copies", "Copies of training slices were not looked for: none of the training "
                                                "slices was there.")
        return
    shares = {name: found[name] for name in ("pixels", "features")}
    if shares["pixels"]["ci_low"] is None:
        yield Sentence("unknown", "Copies", "Whether samples are copies is not known: slices of one unseen person are "
                                            "too few to compare with.")
        return
    copied = {name: figures for name, figures in shares.items() if figures["ci_low"] > _limit("copies")}
    if not copied:
        shown = "; ".join(f"{_share(figures)} by {name}, " + " to ".join(
            f"{100 * figures[end]:.1f}" for end in ("ci_low", "ci_high")) for name, figures in shares.items())
        if max(figures["ci_high"] for figures in shares.values()) > _limit("widest"):
            yield Sentence("unknown", "Copies", "Whether samples are copies is not known: too few samples, or too few "
                                                f"people, for a narrow interval ({shown}; 1 is expected).")
            return
        yield Sentence("good", "Copies", "No more samples lie near a training slice than slices of unseen people do, "
                                         f"as far as {found['samples']} samples can tell ({shown}; 1 is expected).")
        return
    few = found["samples"] < _limit("few samples")
    soft = all(found["reconstructions"][name]["closer_share"] >= figures["closer_share"]
               for name, figures in copied.items())
    shown = " and ".join(f"{_share(figures)} by {name}" for name, figures in copied.items())
    yield Sentence("fair" if soft else "unknown" if few else "bad", "Copies", f"More samples lie near a training slice "
                   f"than slices of unseen people do: {shown}, where 1 % is expected. " + (
                       "Softness alone explains it: as many reconstructions of unseen people do." if soft else
                       f"{found['samples']} samples are too few to tell: draw more, and look at the closest pairs."
                       if few else "Look at the closest pairs: some samples may be copies."))


def _lesions(report: dict) -> Iterator[Sentence]:
    if found := (report.get("lesions") or {}).get("all"):
        ours, best = found["likelihood"]["auroc"], max(
            ("intensity", "reconstruction_error"), key=lambda name: found[name]["auroc"])
        is_best = ours > found[best]["auroc"]
        yield Sentence("good" if is_best else "fair", "Lesions",
                       f"Likelihood maps find synthetic lesions {'better' if is_best else 'less well'} than "
                       f"{'an intensity threshold' if best == 'intensity' else 'the reconstruction error'} does "
                       f"(AUROC per pixel {as_text(ours, 2)} and {as_text(found[best]['auroc'], 2)}). These lesions "
                       "are drawn.")


def _anatomy(report: dict) -> Iterator[Sentence]:
    found = report.get("anatomy") or {"told": {}, "tissue": {}}
    for column, of in found["told"].items():
        made, again, real = (of[own] for own in ("samples", "reconstructions", "real"))
        shown = (f"R² of what is read from samples {with_interval(made, 'r2', 2, of='r2_')}, reconstructions "
                 f"{as_text(again['r2'], 2)}, real slices {with_interval(real, 'r2', 2, of='r2_')}")
        ends = made["r2_ci_low"], made["r2_ci_high"], again["r2_ci_low"]
        if real["r2_ci_low"] is None or real["r2_ci_low"] <= 0 or None in ends:
            yield Sentence("unknown", "Anatomy", f"Whether samples hold the {column} that they are told is not known: "
                                                 f"it cannot be read from real slices either ({shown}).")
        elif ends[0] <= 0:
            yield Sentence("bad", "Anatomy", f"Samples do not hold the {column} that they are told ({shown}).")
        elif ends[1] < ends[2]:
            yield Sentence("fair", "Anatomy", f"Samples hold the {column} that they are told less well than "
                                              f"reconstructions do ({shown}).")
        else:
            yield Sentence("good", "Anatomy", f"Samples hold the {column} that they are told ({shown}).")
    known = {name: sets for name, sets in found["tissue"].items()
             if sets["real"]["distance_ci_high"] is not None and sets["samples"]["distance"] is not None}
    if not known:
        return
    far = {name: sets for name, sets in known.items()
           if sets["samples"]["distance"] > sets["real"]["distance_ci_high"]}
    if not far:
        yield Sentence("good", "Tissue", "Samples have as much fluid, grey and white matter as real slices: no share "
                                         "is further from theirs than one half of the people is from the other.")
        return
    soft = all(sets["samples"]["ci_low"] <= sets["reconstructions"]["ci_high"]
               and sets["reconstructions"]["ci_low"] <= sets["samples"]["ci_high"] for sets in far.values())
    shares = ", ".join(f"{name} {100 * sets['samples']['mean']:.0f} % (reconstructions "
                       f"{100 * sets['reconstructions']['mean']:.0f}, real {100 * sets['real']['mean']:.0f})"
                       for name, sets in far.items())
    yield Sentence("fair" if soft else "bad", "Tissue", f"Samples have other shares of tissue than real slices: "
                   f"{shares}." + " Reconstructions have the same shares: the decoder's softness explains it." * soft)


def _of_ten(auroc: float) -> str:
    return f"{round(10 * auroc)} of 10"


def _share(figures: dict) -> str:
    return f"{100 * figures['closer_share']:.1f} %"


def _sentence(text: str) -> str:
    """Return a text that begins with a large letter, but for flags, and ends with a full stop."""
    return text[:1].upper() + text[1:] + "." * (not text.endswith((".", "!", "?")))
