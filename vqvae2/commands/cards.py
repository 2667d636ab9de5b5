"""A published model's folder, and what was measured of it -> its card, README.md, with a head that the hub reads.

What a card says of a model comes from its config.json, its log.csv and metrics.json of reports, so that a card cannot
say what was not measured; only what the data are, and what the model is not for, are words.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from vqvae2.common import files
from vqvae2.evaluation import leaks, text
from vqvae2.evaluation.features import FeatureSettings
from vqvae2.runs import weights
from vqvae2.runs.settings import as_before
from vqvae2.settings.checks import flag
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainPrior, TrainVqvae

CARD = "README.md"
# Kind of a model -> tags, and the tables of a metrics.json that belong on its card.
KINDS = {"vqvae": (("vq-vae-2", "vq-vae"), ("reconstruction", "codes", "rates")),
         "prior": (("pixelcnn", "autoregressive"), ("priors", "samples", "memorisation", "probe", "lesions")),
         "features": (("feature-extraction",), ())}
UNSAID = {"preset", "data", "results", "savename", "vqvae", "threads", "pictures_every"}
TITLES = {"reconstruction": "Reconstruction", "codes": "Codes", "rates": "Rate and distortion",
          "priors": "Bits per code", "samples": "Samples", "memorisation": "Copies of training slices",
          "probe": "Can a classifier tell them?", "lesions": "Synthetic lesions, AUROC per pixel"}
LIMITS = """Not for diagnosis, nor for any decision about a person. Not a source of new evidence: a sample shows nobody,
and a study of samples is a study of the training data. Not for images of other kinds: other contrasts, heads with
skull, children, lesions and other scanners are outside of what was learned, and come back as what was. Filled-in parts
are guesses that look likely. Shares of sex and age in samples are those of the training data."""


def card(folder: Path, data: str = "", reports: Mapping[str, dict] | None = None, commands: str = "",
         published: Mapping[str, object] | None = None) -> str:
    """Return the text of the card of the model in `folder`.

    Args:
        data: what was trained on, in words.
        reports: by name (such as "temperature 1"), metrics.json that this model has a part in; may be empty. The
            figures of the first are in the head.
        commands: by which the figures were made.
        published: what else the head says, such as {"license": "mit", "datasets": ["ds002748"]}.
    """
    config, reports = weights.read_config(folder), reports or {}
    parts = [head(folder, next(iter(reports.values()), None), published or {}) + _introduction(folder, config),
             "## Data", *filter(None, [data]), _split(config), "## Settings", f"```sh\n{config['command']}\n```",
             _settings(config), "## Training", _training(folder)]
    for name, report in reports.items():
        tables = {table: rows for table, rows in text.tables(report).items() if rows[1]}
        found = [f"### {TITLES[table]}\n\n{text.markdown_table(*tables[table])}"
                 for table in KINDS[_kind(config)][1] if table in tables]
        parts += [f"## Figures, {name}", _judged_on(report), *found] if found else []
    if reports:
        parts += ["Every figure is defined in `vqvae2/metrics/similarity.py` and the modules that it names, and made "
                  "by", f"```sh\n{commands}\n```"]
    return "\n\n".join([*parts, "## Limits, and what it must not be used for", LIMITS]) + "\n"


def head(folder: Path, report: dict | None, published: Mapping[str, object]) -> str:
    """Return the YAML between --- and --- that the Hugging Face hub reads; figures are those of `report` alone.

    Each value is JSON, which is YAML too.
    """
    config = weights.read_config(folder)
    values = {**published, "library_name": "vqvae2", "tags": [*KINDS[_kind(config)][0], "brain-mri", "medical-imaging"]}
    if figures := _figures(config, report) if report else []:
        data = ", ".join(published.get("datasets") or [report["data"]["folder"]])
        task = "image-to-image" if config["kind"] == "vqvae" else "unconditional-image-generation"
        values |= {"metrics": [kind for kind, _, _ in figures], "model-index": [{"name": folder.name, "results": [{
            "task": {"type": task}, "dataset": {"type": data, "name": data, "split": report["split"]},
            "metrics": [{"type": kind, "name": name, "value": value} for kind, name, value in figures]}]}]}
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    return f"---\n{''.join(lines)}---\n\n"


def _figures(config: dict, report: dict) -> list[tuple[str, str, float]]:
    """Return the figures of a report that a head has, as (type, name, value)."""
    if config["kind"] == "vqvae":
        full = report["reconstruction"]["full"]
        return [(key, name, full[key]["mean"]) for key, name in (
            ("ssim", "SSIM, full picture, mean"), ("ms_ssim", "MS-SSIM, full picture, mean"),
            ("psnr", "PSNR in dB, full picture, mean"), ("mae", "mean absolute error, images 0…1"))]
    level = config["kind"].split()[0]
    judged = (report["priors"] or {}).get(level)
    return [("bits_per_code", f"bits per {level} code", judged["bits_per_code"])] if judged else []


def _kind(config: dict) -> str:
    """Return vqvae, prior or features."""
    return config["kind"].split()[-1]


def _introduction(folder: Path, config: dict) -> str:
    """Return the title of a card, and a paragraph that says what the model does."""
    settings, (_, height, width), kind = config["settings"], config["image_shape"], _kind(config)
    if kind == "vqvae":
        factors = " and ".join(f"1/{factor}" for factor in settings["downsample"])
        levels = "two levels" if settings["levels"] == 2 else "one level"
        what, more = f"VQ-VAE-2, {levels} of {settings['codebook_size']} codes", ""
        does, how = f"Images to codes (a grid of {factors} of the one before) and back", "models/autoencoder.py"
    elif kind == "prior":
        told = ", ".join(column["name"] for column in config.get("columns", [])) or "nothing"
        what = "{} of {} by {} codes".format(config["kind"], *config["shape"])
        does, how = "Draws codes, or says what they cost", "priors/pixel_cnn.py"
        more = f"It can be told {told}. It belongs to the VQ-VAE whose weights have the hash " \
               f"{config['vqvae_hash'][:12]}. "
    else:
        what, does = f"{settings['dims']} features of an image", "Features in which samples and images are compared"
        more, how = "", "evaluation/features.py"
    size = (folder / weights.WEIGHTS).stat().st_size / 2**20
    return (f"# {folder.name}: {what}, {height} by {width} pixels\n\n{does}; {size:.1f} MiB. {more}How it works: "
            f"`vqvae2/{how}`.")


def _split(config: dict) -> str:
    data = config["data"]
    shares = ", ".join(f"{data['images'][split]:,} images of {data['subjects'][split]} subjects to {what}"
                       for split, what in (("train", "train"), ("validate", "choose the best weights"),
                                           ("test", "judge")))
    return (f"Split by subject: {shares}. `config.json` has hashes of the training images and subjects, by which "
            "evaluate.py tells what was seen." + "".join(
                f" **{leak}**" for leak in leaks.shared(data.get("shared_subjects", 0))))


def _settings(config: dict) -> str:
    """Return the settings that are not today's defaults; what an old run lacks is what runs did then."""
    found, named = as_before(config["settings"]), {"savename": "x", "epochs": 1, "batch": 1}
    default = as_dict({"vqvae": lambda: TrainVqvae(**named, levels=found["levels"]),
                       "prior": lambda: TrainPrior(**named, vqvae="x", level=found["level"]),
                       "features": lambda: FeatureSettings(**named)}[_kind(config)]())
    other = [f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"
             for name, value in found.items() if name in default and value != default[name] and name not in UNSAID]
    return (f"Global batch {config['global_batch']}. Apart from defaults: {', '.join(other) or 'none'}. "
            f"torch {config['versions']['torch']}.")


def _training(folder: Path) -> str:
    rows = files.read_rows(folder / "log.csv")
    if not rows:
        return "The log of the training was not kept."
    last, minutes = rows[-1], sum(float(row["seconds"]) for row in rows) / 60
    shown = ("validate_ssim", "validate_mse", "train_bits_per_code", "validate_bits_per_code")
    figures = ", ".join(f"{name.replace('_', ' ')} {float(last[name]):.4g}" for name in shown if last.get(name))
    return (f"{len(rows)} epochs, {int(float(last['images_seen'])):,} images seen, {minutes:.0f} minutes without "
            f"validation. In the last epoch: {figures}.\n\n![Training curves](curves.png)")


def _judged_on(report: dict) -> str:
    seen, samples, drawn = report["seen_in_training"], report["samples"], ""
    if samples:
        temperature, top_p = (" and ".join(f"{value:g}" for value in samples["source"].get(name, ()))
                              for name in ("temperature", "top_p"))
        how = f" at temperature {temperature}, top-p {top_p}, each told what the manifest says of a training image"
        drawn = f" {samples['count']} samples{how if temperature else ''}."
    return (f"Judged on {report['images']} images of {report['subjects']} subjects, split {report['split']}; "
            f"{seen['images']} of these images and {seen['subjects']} of these subjects were trained on. Seed "
            f"{report['seed']}.{drawn}" + "".join(
                f" **{warning}**" for warning in report.get("warnings", ()) if warning.startswith(leaks.LEAK)))
