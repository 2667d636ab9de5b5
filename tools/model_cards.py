"""A published model's folder, and what evaluate.py has found -> its MODEL_CARD.md.

What is written of a model comes from its config.json, its log.csv and a metrics.json, so that a card cannot say
what was not measured; only what the data are, and what the model is not for, are words.
"""

from collections.abc import Mapping
from pathlib import Path

from vqvae2.common import files
from vqvae2.evaluation import leaks, text
from vqvae2.runs import weights
from vqvae2.runs.settings import as_before
from vqvae2.settings.checks import flag
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainPrior, TrainVqvae

CARD = "MODEL_CARD.md"
OF_KIND = {"vqvae": ("reconstruction", "codes", "rates"),
           "prior": ("priors", "samples", "memorisation", "probe", "lesions")}
"""Tables of a metrics.json that belong on the card of a VQ-VAE, and of a prior."""
UNSAID = {"preset", "data", "results", "savename", "vqvae", "threads", "pictures_every"}
TITLES = {"reconstruction": "Reconstruction", "codes": "Codes", "rates": "Rate and distortion",
          "priors": "Bits per code", "samples": "Samples", "memorisation": "Copies of training slices",
          "probe": "Can a classifier tell them?", "lesions": "Synthetic lesions, AUROC per pixel"}
LIMITS = """Not for diagnosis, nor for any decision about a person. Not a source of new evidence: a sample shows nobody,
and a study of samples is a study of the training data. Not for images of other kinds: other contrasts, heads with
skull, children, lesions and other scanners are outside of what was learned, and come back as what was. Filled-in parts
are guesses that look likely. Shares of sex and age in samples are those of the training data."""


def write(folder: Path, data: str, reports: Mapping[str, dict], commands: str) -> None:
    """Write the card of the model in `folder`.

    Args:
        data: what was trained on, in words.
        reports: by name (such as "temperature 1"), metrics.json that this model has a part in; may be empty.
        commands: by which the figures were made.
    """
    files.write_text(folder / CARD, card(folder, data, reports, commands))


def card(folder: Path, data: str, reports: Mapping[str, dict], commands: str) -> str:
    """Return the text of the card. Arguments as for `write`."""
    config = weights.read_config(folder)
    size = (folder / weights.WEIGHTS).stat().st_size / 2**20
    kind = "vqvae" if config["kind"] == "vqvae" else "prior"
    parts = [f"# {folder.name}: {_what(config)}", _summary(config, size), "## Data", data, _split(config),
             "## Settings", f"```sh\n{config['command']}\n```", _settings(config), "## Training",
             _training(folder, config)]
    for name, report in reports.items():
        tables = text.tables(report)
        found = [table for table in OF_KIND[kind] if tables[table][1]]
        if found:
            parts.append(f"## Figures{f', {name}' if name else ''}")
            parts.append(_judged_on(report))
        for table in found:
            parts.append(f"### {TITLES[table]}\n\n{text.markdown_table(*tables[table])}")
    if reports:
        parts += ["Every figure is defined in `vqvae2/metrics/similarity.py` and the modules that it names, and made by",
                  f"```sh\n{commands}\n```"]
    parts += ["## Limits, and what it must not be used for", LIMITS]
    return "\n\n".join(parts) + "\n"


def _what(config: dict) -> str:
    settings, shape = config["settings"], config["image_shape"]
    if config["kind"] == "vqvae":
        levels = "two levels" if settings["levels"] == 2 else "one level"
        return f"VQ-VAE-2, {levels} of {settings['codebook_size']} codes, {shape[1]} by {shape[2]} pixels"
    height, width = config["shape"]
    return f"{config['kind']} of {height} by {width} codes, {shape[1]} by {shape[2]} pixels"


def _summary(config: dict, size: float) -> str:
    if config["kind"] == "vqvae":
        factors = " and ".join(f"1/{factor}" for factor in config["settings"]["downsample"])
        return (f"Images to codes (a grid of {factors} of the one before) and back; {size:.1f} MiB. "
                "How it works: `vqvae2/models/autoencoder.py`.")
    told = ", ".join(column["name"] for column in config.get("columns", [])) or "nothing"
    return (f"Draws codes, or says what they cost; {size:.1f} MiB. It can be told {told}. It belongs to the VQ-VAE "
            f"whose weights have the hash {config['vqvae_hash'][:12]}. How it works: `vqvae2/priors/pixel_cnn.py`.")


def _split(config: dict) -> str:
    images, subjects = (config["data"][key] for key in ("images", "subjects"))
    uses = (("train", "train"), ("validate", "choose the best weights"), ("test", "judge"))
    shares = ", ".join(f"{images[split]:,} images of {subjects[split]} subjects to {what}" for split, what in uses)
    return (f"Split by subject: {shares}. `config.json` has hashes of the training images and subjects, by which "
            "evaluate.py tells what was seen." + "".join(
                f" **{one}**" for one in leaks.shared(config["data"].get("shared_subjects", 0))))


def _settings(config: dict) -> str:
    """The settings that are not the defaults of today; what an old run lacks is what runs then did."""
    found = as_before(config["settings"])
    if config["kind"] == "vqvae":
        default = as_dict(TrainVqvae(savename="x", epochs=1, batch=1, levels=found["levels"]))
    else:
        default = as_dict(TrainPrior(savename="x", epochs=1, batch=1, vqvae="x", level=found["level"]))
    other = [f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"
             for name, value in found.items() if name in default and value != default[name] and name not in UNSAID]
    return (f"Global batch {config['global_batch']}. Apart from defaults: {', '.join(other) or 'none'}. "
            f"torch {config['versions']['torch']}.")


def _training(folder: Path, config: dict) -> str:
    rows = files.read_rows(folder / "log.csv")
    if not rows:
        return "The log of the training was not kept."
    last = rows[-1]
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    shown = ("validate_ssim", "validate_mse", "train_bits_per_code", "validate_bits_per_code")
    figures = ", ".join(f"{name.replace('_', ' ')} {float(last[name]):.4g}" for name in shown if last.get(name))
    return (f"{len(rows)} epochs, {int(float(last['images_seen'])):,} images seen, {minutes:.0f} minutes without "
            f"validation. In the last epoch: {figures}.\n\n![Training curves](curves.png)")


def _judged_on(report: dict) -> str:
    seen = report["seen_in_training"]
    samples = report["samples"]
    source = samples["source"] if samples else {}
    how = f" at temperature {_values(source['temperature'])}, top-p {_values(source['top_p'])}, each told what the " \
          "manifest says of a training image" if "temperature" in source else ""
    drawn = f" {samples['count']} samples{how}." if samples else ""
    return (f"Judged on {report['images']} images of {report['subjects']} subjects, split {report['split']}; "
            f"{seen['images']} of these images and {seen['subjects']} of these subjects were trained on. Seed "
            f"{report['seed']}.{drawn}" + "".join(
                f" **{one}**" for one in report.get("warnings", ()) if one.startswith(leaks.LEAK)))


def _values(values: list[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)
