"""A run's folder -> a folder to share: weights, settings, log, curves and model card, without paths of your machine.

    vqvae2 publish results/oasis/brain-128 pretrained/vqvae-128
With 16-bit weights, half as large (the bits per code of the shipped priors changed by 0.0001 on validation images):
    vqvae2 publish results/oasis/brain-128-top pretrained/top-128 --bf16

A prior is bound to its VQ-VAE by the hash of the VQ-VAE's weights. If the VQ-VAE is to have 16-bit weights, publish it
before its priors are trained, else without --bf16. The folder has the layout of the Hugging Face hub, with a card in
README.md; add the licence and the data to the card yourself. Publishing again writes the folder anew, and
keeps a card that was edited as README-before.md. To upload it:
    huggingface-cli upload NAME/vqvae-128 pretrained/vqvae-128
"""

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from vqvae2.commands import endings
from vqvae2.common import files
from vqvae2.common.errors import UserError, expect, flag
from vqvae2.common.folder_lock import Claim, claimed
from vqvae2.common.names import SPLITS
from vqvae2.evaluation import leaks, text
from vqvae2.evaluation.features import FeatureSettings
from vqvae2.images import mean
from vqvae2.plots import charts
from vqvae2.runs import weights
from vqvae2.runs.config import need
from vqvae2.runs.log import LOG, read_log
from vqvae2.runs.settings import as_before
from vqvae2.settings.parsing import as_dict, parse
from vqvae2.settings.stored import from_dict
from vqvae2.training.settings import TrainDecoder, TrainDenoiser, TrainPrior, TrainVqvae

# Whole numbers, codebooks (a code's embedding is compared with vectors, and there every digit counts) and the mean and
# deviation of the training images' pixels, which a VQ-VAE with --standardise has, keep their type.
EXACT = re.compile(r"quantizers\.|(mean|deviation)$")
CARD = "README.md"
OWN = (weights.CONFIG, LOG, "curves.png", mean.NAME, CARD, "metrics.json")
"""Names of what is written, and of the metrics.json that is removed, since it may speak of other weights."""
# Kind of a model -> tags, and the tables of a metrics.json that belong on its card.
KINDS = {"vqvae": (("vq-vae-2", "vq-vae"), ("reconstruction", "codes", "rates")),
         "prior": (("pixelcnn", "autoregressive"), ("priors", "samples", "memorisation", "probe", "lesions",
                                                        "anatomy")),
         "decoder": (("super-resolution",), ("reconstruction", "samples", "probe")),
         "denoiser": (("image-denoising",), ()),
         "features": (("feature-extraction",), ())}
SETTINGS = {"vqvae": TrainVqvae, "prior": TrainPrior, "decoder": TrainDecoder, "denoiser": TrainDenoiser,
            "features": FeatureSettings}
UNSAID = {"preset", "data", "results", "savename", "vqvae", "threads", "log", "pictures_every"}
TITLES = {"reconstruction": "Reconstruction", "codes": "Codes", "rates": "Rate and distortion",
          "priors": "Bits per code", "samples": "Samples", "memorisation": "Copies of training slices",
          "probe": "Can a classifier tell them?", "lesions": "Synthetic lesions, AUROC per pixel",
          "anatomy": "What samples hold of what they are told, and their tissue"}
LIMITS = """Not for diagnosis, nor for any decision about a person. Not a source of new evidence: a sample shows nobody,
and a study of samples is a study of the training data. Not for images of other kinds: other contrasts, heads with
skull, children, lesions and other scanners are outside of what was learned, and come back as what was. Filled-in parts
are guesses that look likely. Shares of sex and age in samples are those of the training data."""


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """Settings of `vqvae2 publish`."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run: a folder, or a name in results/*/."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder that receives model.safetensors, config.json, log.csv, curves.png, mean.png and README.md."""
    bf16: bool = False
    """Round the weights to 16 bits."""


def publish(run: Path, out: Path, bf16: bool = False) -> str:
    """Write what may be passed on of a run to the folder `out`; return the new weights' hash.

    Paths of the machine are left out of config.json, also of the copy inside the weights. Whole numbers and what is
    EXACT keep their type.
    Raises: UserError if `run` holds no weights, or `out` is a file or `run` itself, holds another model, to which
        priors may belong, or files of these names and no model.
    """
    expect((run / weights.WEIGHTS).is_file(), str(run), f"a run with {weights.WEIGHTS}", "none",
           "Give the folder of a finished training.")
    expect(not out.is_file(), "out", "a folder or nothing", f"a file, {out}", "Choose another name.")
    expect(out.resolve() != run.resolve(), str(out), "another folder than the run's",
           "the run itself, whose weights and state belong together", "Choose another folder.")
    with claimed(out, str(out), "folder") as claim:
        return _publish(run, out, bf16, claim)


def _publish(run: Path, out: Path, bf16: bool, claim: Claim) -> str:
    tensors, config = weights.load_weights(run / weights.WEIGHTS)
    earlier = "nothing, or an earlier form of the same run"
    if (out / weights.WEIGHTS).is_file():
        there = weights.load_weights(out / weights.WEIGHTS)[1]
        expect(all(there.get(name) == config.get(name) for name in ("kind", "run_id")), str(out), earlier,
               f"another {there.get('kind')}", "Choose another folder, or delete this one.")
    else:
        names = ", ".join(name for name in OWN if (out / name).exists())
        expect(not names, str(out), earlier, f"{names} and no model", "Choose another folder.")
    _check(config, str(run / weights.WEIGHTS))
    rows = read_log(run / LOG)
    claim.remove_left_overs()
    before = _edited_card(out)
    config = without_paths(config)
    if bf16:
        tensors = {name: tensor.bfloat16() if tensor.dtype == torch.float32 and not EXACT.match(name) else tensor
                   for name, tensor in tensors.items()}
    (out / "metrics.json").unlink(missing_ok=True)
    weights.save_weights(out / weights.WEIGHTS, tensors, config)
    files.write_json(out / weights.CONFIG, config)
    if rows:
        files.write_rows(out / LOG, rows)
        charts.curves(rows, out / "curves.png")
    if (run / mean.NAME).is_file():
        files.write_atomically(out / mean.NAME, (run / mean.NAME).read_bytes())
    files.write_atomically(out / CARD, card(out).encode(errors="backslashreplace"), keep=before)
    if before is not None:
        print(f"{out / CARD} was not as it had been published: what it said is kept as {before.name}")
    return weights.weights_hash(tensors)


def _edited_card(out: Path) -> Path | None:
    """Return the name under which the card of an earlier publication is kept, None where nobody has added to it."""
    with suppress(UserError, OSError, UnicodeDecodeError):
        if not (out / CARD).exists() or (out / CARD).read_text(encoding="utf-8") == card(out):
            return None
    return out / "README-before.md"


def _check(config: dict, where: str) -> None:
    """Raise UserError unless a config has all that is published of it, of the types that its kind of run declares."""
    advice = ("Only what train_vqvae.py, train_pixel_cnn.py, train_decoder.py, vqvae2 train-denoiser and vqvae2 "
              "train-features have trained is published.")
    expect(_kind(config) in KINDS, where, f"a run of kind {', '.join(KINDS)}", str(config["kind"]), advice)
    need(config, "global_batch", "data", "image_shape", "versions", "command",
         *{"prior": ("shape", "vqvae_hash"), "decoder": ("vqvae_hash",),
           "denoiser": ("vqvae_hash", "vqvae_settings")}.get(_kind(config), ()))
    from_dict(SETTINGS[_kind(config)], config["settings"], where)
    counts = [config["data"].get(name, {}).keys() >= set(SPLITS) for name in ("images", "subjects")]
    try:
        words = shlex.split(config["command"])
    except ValueError:
        words = []
    expect(all(counts) and bool(words) and "torch" in config["versions"], where, "the counts of each split, the "
           "command and the version of torch", "others", advice)


def without_paths(config: dict) -> dict:
    """Return a run's config without the folders of the machine that it was trained on, of which only names stay."""
    paths = ("data", "results", "vqvae", "init_from", "preset")
    settings = {name: Path(value).name if name in paths and value else value
                for name, value in config["settings"].items()}
    words = [re.sub(r"(?s)^(--[^=]*=)?(.*/.*)$", lambda found: (found[1] or "") + Path(found[2]).name, word)
             for word in shlex.split(config.get("command", ""))]
    return config | {"settings": settings, "command": shlex.join(words)}


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
    counts = config["data"]
    shares = ", ".join(f"{counts['images'][split]:,} images of {counts['subjects'][split]} subjects to {what}"
                       for split, what in (("train", "train"), ("validate", "choose the best weights"),
                                           ("test", "judge")))
    parts = [head(folder, next(iter(reports.values()), None), published or {}) + _introduction(folder, config),
             "## Data", *filter(None, [data]), f"Split by subject: {shares}. `config.json` has hashes of the training "
             "images and subjects, by which evaluate.py tells what was seen." + "".join(
                 f" **{leak}**" for leak in leaks.shared(counts.get("shared_subjects", 0))),
             "## Settings", f"```sh\n{config['command']}\n```", _settings(config), "## Training", _training(folder)]
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
        task = "image-to-image" if config["kind"] in ("vqvae", "decoder") else "unconditional-image-generation"
        values |= {"metrics": [kind for kind, _, _ in figures], "model-index": [{"name": folder.name, "results": [{
            "task": {"type": task}, "dataset": {"type": data, "name": data, "split": report["split"]},
            "metrics": [{"type": kind, "name": name, "value": value} for kind, name, value in figures]}]}]}
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    return f"---\n{''.join(lines)}---\n\n"


def _figures(config: dict, report: dict) -> list[tuple[str, str, float]]:
    """Return the figures of a report that a head has, as (type, name, value)."""
    if config["kind"] in ("vqvae", "decoder"):
        full = report["reconstruction"]["full"]
        return [(key, name, full[key]["mean"]) for key, name in (
            ("ssim", "SSIM, full picture, mean"), ("ms_ssim", "MS-SSIM, full picture, mean"),
            ("psnr", "PSNR in dB, full picture, mean"), ("mae", "mean absolute error, images 0…1"))]
    level = config["kind"].split()[0]
    judged = (report["priors"] or {}).get(level)
    return [("bits_per_code", f"bits per {level} code", judged["bits_per_code"])] if judged else []


def _kind(config: dict) -> str:
    """Return vqvae, prior, decoder, denoiser or features."""
    return (config.get("kind") or "none").split()[-1]


def _introduction(folder: Path, config: dict) -> str:
    """Return the title of a card, and a paragraph that says what the model does."""
    kind, (_, height, width) = _kind(config), config["image_shape"]
    settings = as_dict(from_dict(SETTINGS[kind], as_before(config["settings"])))
    if kind == "vqvae":
        factors = " and ".join(f"1/{factor}" for factor in settings["downsample"])
        levels = "two levels" if settings["levels"] == 2 else "one level"
        what, more = f"VQ-VAE-2, {levels} of {settings['codebook_size']} codes", ""
        does, how = f"Images to codes (a grid of {factors} of the one before) and back", "models/autoencoder.py"
    elif kind == "prior":
        told = ", ".join(column["name"] for column in config.get("columns") or []) or "nothing"
        what = "{} of {} by {} codes".format(config["kind"], *config["shape"])
        does, how = "Draws codes, or says what they cost", "priors/pixel_cnn.py"
        more = f"It can be told {told}. {_belongs(config)}"
    elif kind == "decoder":
        what = "a flow" if settings["network"] == "flow" else "an adversarial decoder"
        what, does, how = f"{what} for texture", "Codes to sharp images", "models/texture_decoder.py"
        more = f"**The finest detail of its images is invented.** {_belongs(config)}"
    elif kind == "denoiser":
        what, does, how = "a denoiser", "Noisy images to their codes and to clean images", "models/denoiser.py"
        more = f"**What is small or faint may be lost: docs/denoising.md.** {_belongs(config)}"
    else:
        what, does = f"{settings['dims']} features of an image", "Features in which samples and images are compared"
        more, how = "", "evaluation/features.py"
    if first := settings.get("init_from"):
        more += (f"It began with the weights of {first} ({str(config.get('init_hash'))[:12]}): what these were "
                 "trained on counts too. ")
    size = (folder / weights.WEIGHTS).stat().st_size / 2**20
    return (f"# {folder.name}: {what}, {height} by {width} pixels\n\n{does}; {size:.1f} MiB. {more}How it works: "
            f"`vqvae2/{how}`.")


def _belongs(config: dict) -> str:
    return f"It belongs to the VQ-VAE whose weights have the hash {config['vqvae_hash'][:12]}. "


def _settings(config: dict) -> str:
    """Return the settings that are not today's defaults; what an old run lacks is what runs did then."""
    found, named = as_before(config["settings"]), {"savename": "x", "epochs": 1, "batch": 1}
    default = as_dict({"vqvae": lambda: TrainVqvae(**named, levels=found.get("levels", 2)),
                       "prior": lambda: TrainPrior(**named, vqvae="x", level=found["level"]),
                       "decoder": lambda: TrainDecoder(**named, vqvae="x"),
                       "denoiser": lambda: TrainDenoiser(**named, vqvae="x"),
                       "features": lambda: FeatureSettings(**named)}[_kind(config)]())
    other = [f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, list) else value}"
             for name, value in found.items() if name in default and value != default[name] and name not in UNSAID]
    return (f"Global batch {config['global_batch']}. Apart from defaults: {', '.join(other) or 'none'}. "
            f"torch {config['versions']['torch']}.")


def _training(folder: Path) -> str:
    rows = read_log(folder / LOG)
    if not rows:
        return "The log of the training was not kept."
    last, minutes = rows[-1], sum(float(row.get("seconds") or 0) for row in rows) / 60
    shown = ("validate_ssim", "validate_mse", "train_bits_per_code", "validate_bits_per_code",
             "validate_texture", "validate_same_codes")
    figures = ", ".join(f"{name.replace('_', ' ')} {float(last[name]):.4g}" for name in shown if last.get(name))
    images = int(float(last.get("images_seen") or 0))
    judged = {row["epoch"]: float(row["validate_texture"]) for row in rows if row.get("validate_texture")}
    best = min(judged, key=judged.get, default=None)
    kept = f" The weights are those of epoch {best}: validate texture {judged[best]:.4g}." if judged else ""
    return (f"{len(rows)} epochs, {images:,} images seen, {minutes:.0f} minutes without validation. "
            f"In the last epoch: {figures}.{kept}\n\n![Training curves](curves.png)")


def _judged_on(report: dict) -> str:
    seen, samples, drawn = report["seen_in_training"], report["samples"], ""
    if samples:
        temperature, top_p = (" and ".join(f"{value:g}" for value in samples["source"].get(name, ()))
                              for name in ("temperature", "top_p"))
        how = f" at temperature {temperature}, top-p {top_p}, each told what the manifest says of a training image"
        drawn = (f" {samples['count']} samples{how}." if temperature else
                 f" Judged as samples: {samples['count']} given pictures.")
    return (f"Judged on {report['images']} images of {report['subjects']} subjects, split {report['split']}; "
            f"{seen['images']} of these images and {seen['subjects']} of these subjects were trained on. Seed "
            f"{report['seed']}.{drawn}" + "".join(
                f" **{warning}**" for warning in report.get("warnings", ()) if warning.startswith(leaks.LEAK)))


def main(arguments: list[str] | None = None) -> None:
    """Publish as the command line says."""
    settings = parse(PublishSettings, __doc__, arguments)
    run = weights.find_run(settings.run, "RUN")
    print(f"written: {settings.out}, weights {publish(run, settings.out, settings.bf16)[:12]}")
    endings.say(settings.out / CARD)
