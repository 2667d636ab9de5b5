"""Words of a command line -> the words that were meant, or one line that says how to write them.

What can mean one thing only is taken: --Level, --per_scan, `--dataset OASIS`, `--split val`, `--data=~/slices`. What
may be a slip (`-- level top`, `–level top`, an empty value) is refused with the words that would do. And who comes from
other code finds the flag of a name that is in use there: see KNOWN_AS.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import tyro

from vqvae2.common.errors import UserError

DASHES = "-‐‑‒–—―−"
"""The keyboard's own, and those that word processors make of it."""
LEADING = re.compile(f"^[{DASHES}]+")
CLOSE = 0.8
"""How alike two spellings are (difflib's ratio) before one is taken for a slip of the other."""
VALIDATE = {"val", "valid", "validation", "validating"}
HELP = {"help", "-help", "--h", "-?", "--?", "/?", "/h"}
NO = {"false", "no", "off", "0", "none"}

KNOWN_AS = {
    "preset": "config cfg config-file recipe yaml hparams",
    "savename": "name run-name run run-id exp exp-name experiment experiment-name save-name model-name tag",
    "epochs": "epoch num-epochs n-epochs n-epoch nb-epochs max-epochs total-epochs train-epochs iterations steps "
              "n-updates",
    "batch": "b bs batch-size batchsize train-batch-size mini-batch-size minibatch batch-per-gpu",
    "accumulate": "accumulation grad-accum gradient-accumulation gradient-accumulation-steps accumulate-grad-batches",
    "learning-rate": "lr learningrate base-lr init-lr initial-learning-rate max-lr",
    "warmup-steps": "warmup warm-up warmup-iters n-warmup",
    "clip": "grad-clip clip-grad gradient-clip max-grad-norm clip-grad-norm gradient-clip-val",
    "seed": "random-seed manual-seed random-state rng-seed",
    "threads": "num-threads n-threads n-jobs jobs j cpus omp-num-threads",
    "workers": "num-workers n-workers threads n-jobs jobs j cpus",
    "precision": "amp fp16 bf16 half mixed-precision use-amp dtype",
    "resume": "restart resume-from resume-training continue-training continue",
    "data": "data-dir data-path data-root datadir dataroot dataset-path dataset-dir dataset-root root root-dir img-dir "
            "image-dir image-folder images input input-dir path folder train-dir slices slices-path",
    "dataset": "data-set dataset-name data-name data-type",
    "size": "img-size image-size imsize resolution res resize crop-size input-size image-resolution",
    "results": "log-dir logdir checkpoint-dir checkpoints-dir ckpt-dir result-dir results-dir save-dir save-path "
               "output output-dir out out-dir outdir out-path",
    "codebook-size": "num-embeddings n-embeddings n-embed num-embed nb-embeddings num-codes n-codes codes codebook "
                     "num-codebook-vectors vocab-size num-tokens dict-size k",
    "embedding-dim": "embed-dim emb-dim embedding-size embed-size code-dim code-size codebook-dim latent-dim d z-dim",
    "channels": "num-hiddens n-hiddens hidden-channels hidden-dim hidden-size h-dim num-hidden num-channels n-channels "
                "channel base-channels nb-hidden num-filters n-filters filters dim width features",
    "residual-channels": "num-residual-hiddens n-res-channel n-res-channels res-channels res-channel res-h-dim "
                         "residual-hiddens num-residual-channels",
    "residual-layers": "num-residual-layers n-res-block n-res-blocks num-res-blocks n-res-layers n-residual-layers "
                       "res-blocks residual-blocks",
    "commitment": "commitment-cost commitment-weight commitment-loss-weight commit-weight beta latent-loss-weight",
    "decay": "ema-decay gamma codebook-decay",
    "ema": "ema-decay use-ema",
    "downsample": "downsampling downsample-factor scaling-rates scale factor stride strides",
    "levels": "nb-levels num-levels n-levels hierarchies",
    "quantizer": "vq quantiser codebook-update use-ema ema",
    "norm": "normalization normalisation batch-norm batchnorm group-norm bn",
    "standardise": "standardize normalize normalise mean-std",
    "level": "hier hierarchy prior which",
    "layers": "n-layers num-layers n-layer n-block n-blocks num-blocks depth n-res-block num-res-blocks",
    "heads": "n-heads num-heads n-head nhead attention-heads",
    "network": "arch architecture model-type prior-type pixelcnn pixel-cnn",
    "condition": "cond conditional conditions class classes label labels attributes",
    "weight-decay": "wd l2",
    "dropout": "drop p-drop dropout-rate drop-rate",
    "vqvae": "model vq-vae vqvae2 vq vqvae-path vqvae-dir vq-path checkpoint ckpt model-path model-dir weights load "
             "pretrained vqvae-name model-name",
    "top": "top-prior prior-top pixelsnail-top prior pixelcnn pixel-cnn",
    "bottom": "bottom-prior prior-bottom pixelsnail-bottom",
    "out": "o output output-dir output-path out-dir out-path outdir save-dir save-path result-dir results save "
           "destination dest",
    "count": "n num-samples n-samples nb-samples samples num-images n-images number num n-sample",
    "samples": "n num-samples n-samples nb-samples count n-sample",
    "temperature": "temp t",
    "top-k": "topk k",
    "top-p": "topp p nucleus",
    "guidance": "cfg guidance-scale cfg-scale",
    "inpaint": "inpainting complete image images input",
    "scans": "input input-dir in-dir i data data-dir data-path source src root raw raw-dir scans-dir oasis oasis-path "
             "dataset bids bids-dir",
    "planes": "plane view views axis axes orientation direction",
    "per-scan": "slices num-slices n-slices slices-per-scan slices-per-volume number-of-slices per-volume",
    "field-of-view": "fov fov-mm",
    "subjects": "n count num-subjects n-subjects",
    "split": "splits ratio ratios split-ratio train-val-test subset partition mode phase",
}
"""Our flags, and what the same thing is called elsewhere; a name may stand in several rows, for several scripts."""
DEVICE = ("The device is found without being told; CUDA_VISIBLE_DEVICES chooses GPUs, and torchrun starts a process "
          "for each.")
LAUNCHER = ("It goes before the script: python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=8 "
            "SCRIPT.")
ANSWERS = {
    **dict.fromkeys(("gpu", "gpus", "gpu-id", "gpu-ids", "n-gpu", "num-gpus", "device", "devices", "cuda", "use-cuda",
                     "no-cuda", "cpu", "local-rank", "rank", "world-size", "ddp", "distributed", "dist-url", "backend",
                     "accelerator", "strategy"), DEVICE),
    **dict.fromkeys(("nproc-per-node", "nproc", "nnodes", "node-rank", "rdzv-endpoint", "rdzv-backend", "standalone",
                     "max-restarts", "master-addr", "master-port", "n-machine", "num-machines"), LAUNCHER),
    **dict.fromkeys(("m", "vqvae", "model"), "This script takes no VQ-VAE; train_vqvae.py names the one that it trains "
                                             "by --savename."),
    **dict.fromkeys(("level", "hier"), "Levels are chosen in train_pixel_cnn.py: --level top or --level bottom."),
    **dict.fromkeys(("optimizer", "optimiser", "optim", "sched", "scheduler", "lr-schedule", "momentum"),
                    "The optimiser is Adam (AdamW for a prior), and its rate falls by a cosine to 0."),
    **dict.fromkeys(("in-channels", "input-channels", "in-channel", "image-channels", "grey", "gray", "grayscale",
                     "rgb", "color", "colour"), "Images say themselves whether they are grey; see --colours."),
    **dict.fromkeys(("workers", "num-workers", "n-workers", "pin-memory"), "Images are kept in memory: no workers are "
                                                                          "needed."),
    "allow-leak": "It is a flag of train_vqvae.py, whose priors and reports follow it.",
    **dict.fromkeys(("verbose", "v", "quiet", "debug", "progress", "log-interval", "print-every", "tqdm"),
                    "A bar shows how far it is; figures are in the run's log.csv."),
}
"""What to say to names for which the script has no flag of another name either."""


@dataclass(frozen=True)
class Flag:
    """What may be written after a flag."""

    name: str
    """As it is written: --per-scan, -m."""
    values: int | None
    """How many; None for any number."""
    choices: tuple[str, ...] = ()
    """All that are possible; empty where there is no such list."""
    is_free: bool = True
    """Whether a comma may be part of a value."""

    def meant(self, value: str) -> str:
        """Return the choice that is meant, or the value itself."""
        plain = value.strip().lower().replace("-", "_")
        if "validate" in self.choices and plain in VALIDATE:
            return "validate"
        return next((choice for choice in self.choices if choice.lower() == plain), value)


def flags_of(settings: type) -> tuple[dict[str, Flag], bool]:
    """Return the flags of a settings dataclass by their names without dashes, and whether words may stand alone."""
    flags, stand_alone = {"help": Flag("--help", 0)}, False
    hints = get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        kind, *marks = get_args(hint) if hasattr(hint, "__metadata__") else [hint]
        if tyro.conf.Positional in marks:
            stand_alone = True
            continue
        name = field.name.replace("_", "-")
        flags[name] = _flag(f"--{name}", kind)
        for alias in (alias for mark in marks for alias in getattr(mark, "aliases", None) or ()):
            flags[alias.strip("-")] = dataclasses.replace(flags[name], name=alias)
    return flags, stand_alone


def _flag(name: str, kind: object) -> Flag:
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) not in (tuple, Literal) and len(parts) == 1:  # an optional one
        return _flag(name, parts[0])
    if get_origin(kind) is tuple:
        one = _flag(name, parts[0])
        return dataclasses.replace(one, values=None if parts[-1] is Ellipsis else len(parts))
    choices = tuple(map(str, parts)) if get_origin(kind) is Literal else ()
    return Flag(name, 0 if kind is bool else 1, choices, not choices and kind not in (int, float))


def corrected(arguments: list[str], settings: type) -> list[str]:
    """Return a command line as it was meant.

    Raises: UserError for a flag that is spelled so that it may be something else, and for an empty value.
    """
    flags, stand_alone = flags_of(settings)
    if len(arguments) == 1 and arguments[0].lower() in HELP:
        return ["--help"]
    made: list[str] = []
    current = None
    for place, word in enumerate(arguments):
        following = arguments[place + 1:]
        if not LEADING.sub("", word) and word:
            _refuse_lone_dashes(word, following, flags, stand_alone)
            if word == "--":
                return made + [word] + [os.path.expanduser(one) for one in following]
        named = _named(word, flags)
        if named or word.startswith("-"):
            current = named
            if named:
                _refuse_dashes(word, named)
        label = current.name if current else word if word.startswith("-") else "command line"
        if word == "=" and current:
            raise UserError(f"{label}: expected no spaces around =, found some. Write {label} "
                            f"{''.join(following[:1])}.")
        _refuse_value(label, word.partition("=")[2] if named and "=" in word else word)
        if named:
            _, equals, value = word.partition("=")
            made.append(named.name + equals + (_value(value, named) if equals else ""))
        else:
            made.append(_value(word, current))
    return made


def _named(word: str, flags: dict[str, Flag]) -> Flag | None:
    """The flag that a word names, with whatever dashes; None if it has none in front, or there is no such flag."""
    return flags.get(_bare(word)) if LEADING.match(word) else None


def _bare(word: str) -> str:
    name = LEADING.sub("", word).partition("=")[0].lower().replace("_", "-")
    return re.sub(f"[{DASHES}]", "-", name)


def _value(word: str, flag: Flag | None) -> str:
    if word.startswith("~"):  # after `--data=` most shells leave it alone
        return os.path.expanduser(word)
    if flag is None:
        return word
    if flag.values != 1 and not flag.is_free and "," in word and not word.startswith("-"):
        raise UserError(f"{flag.name}: expected spaces between values, found {word}. Write {flag.name} "
                        f"{' '.join(filter(None, word.split(',')))}; decimals have a point.")
    return flag.meant(word)


def _refuse_value(label: str, value: str) -> None:
    if not value.strip():
        found = "a Windows line end" if "\r" in value else "nothing"
        raise UserError(f"{label}: expected a value, found {found}. " + (
            "Turn the script's line ends into those of Unix: sed -i 's/\\r$//' SCRIPT." if "\r" in value else
            "Give one, or leave the flag out; is a shell variable not set?"))
    if value[0] in "“”„«" or value[-1] in "“”»":
        raise UserError(f"{label}: expected a value in plain quotes, found {value}, whose quotes a word processor "
                        "made. Write '…' or \"…\".")


def _refuse_lone_dashes(word: str, following: list[str], flags: dict[str, Flag], stand_alone: bool) -> None:
    """`-- level top`; but after -- may come any file, where files are taken."""
    named = flags.get(_bare(following[0])) if following and not LEADING.match(following[0]) else None
    if named and not (word == "--" and stand_alone and Path(following[0]).exists()):
        name, *values = following[:2]
        words = [named.name + "".join(name.partition("=")[1:])] + [v for v in values if not LEADING.match(v)]
        raise UserError(f"{named.name}: expected no space after the dashes, found `{word} {name}`: a space too many. "
                        f"Write {' '.join(words)}.")


def _refuse_dashes(word: str, named: Flag) -> None:
    written = word.partition("=")[0]
    name = named.name.lstrip("-")
    if written[:-len(name)] == named.name[:-len(name)] and set(written) & set(DASHES) <= {"-"}:
        return
    why = ("a dash that a word processor made" if set(written) & set(DASHES[1:]) else
           f"{'one dash' if len(written) - len(name) == 1 else 'more dashes'} in place of {named.name[:-len(name)]}")
    raise UserError(f"{named.name}: expected it written so, found {written}: {why}. Write {named.name}"
                    f"{''.join(word.partition('=')[1:])}.")


def answers(arguments: list[str], settings: type) -> list[str]:
    """Return what may be said of the words of a command line that do not fit, without repetition."""
    flags, stand_alone = flags_of(settings)
    said: list[str] = []
    current, room = None, 0.0
    for word in arguments:
        dashed, value = LEADING.match(word), word.partition("=")[2]
        named = flags.get(_bare(word)) if dashed or (room < 1 and not stand_alone) else None
        if named:
            current, room = named, (math.inf if named.values is None else named.values) - ("=" in word)
            said += [] if dashed else [f"Perhaps you meant {named.name}."]
        elif dashed and not re.match(rf"[{DASHES}][\d.]", word):
            said += _answer(_bare(word), flags, stand_alone)
            current, room = None, math.inf
        else:
            room, value = room - 1, word
        if room < 0 and current and not stand_alone:
            many = f"{current.values} value(s)" if current.values else "no value"
            said.append(f"{current.name} takes {many}{': leave it out' if value.lower() in NO else ''}.")
    return list(dict.fromkeys(said))


def _answer(name: str, flags: dict[str, Flag], stand_alone: bool) -> list[str]:
    ours = [flags[flag].name for flag, names in KNOWN_AS.items() if flag in flags and name in names.split()]
    if stand_alone and name in {*KNOWN_AS["data"].split(), "data", "i", "scan", "scans", "file", "image"}:
        return ["Images and scans are named without a flag."]
    if ours:
        return [f"Perhaps you meant {' or '.join(ours)}."]
    if name.startswith("no-") and name[3:] in flags and flags[name[3:]].values == 0:
        return [f"It is off unless {flags[name[3:]].name} is given."]
    if name in ANSWERS:
        return [ANSWERS[name]]
    return [f"Perhaps you meant {flags[flag].name}." for flag in difflib.get_close_matches(name, flags, 1, CLOSE)]
