"""Command lines made at random from the settings' own types, mostly with values that fit, on a tiny trained chain."""

import dataclasses
import random
import shutil
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Union

from conftest import TINY, TINY_PRIOR, TINY_VQVAE, train_chain, write_slices
from hostile.part import ALLOWED, Part, command
from scan_files import save_bids

from vqvae2.commands.curves import CompareSettings
from vqvae2.commands.publish import PublishSettings
from vqvae2.common.errors import UserError
from vqvae2.compression.settings import CompressSettings
from vqvae2.evaluation.prediction import PredictSettings
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings.parsing import parse
from vqvae2.slices.settings import ExtractSettings
from vqvae2.training.settings import TrainPrior, TrainVqvae

MODELS = ["--vqvae", "tiny", "--top", "tiny-top", "--bottom", "tiny-bottom"]
QUICK = ["--dataset", "oasis", "--data", "slices", "--savename", "new", *TINY]
COMMANDS = {
    "extract": (ExtractSettings, ["--scans", "scans", "--out", "out", "--size", "32", "--workers", "1"]),
    "train-vqvae": (TrainVqvae, [*QUICK, *TINY_VQVAE, "--epochs", "1"]),
    "train-prior": (TrainPrior, [*QUICK, *TINY_PRIOR, "--vqvae", "tiny", "--level", "top", "--epochs", "1"]),
    "sample": (SampleSettings, [*MODELS, "--count", "2", "--out", "out"]),
    "evaluate": (EvaluateSettings, [*MODELS, "--data", "slices", "--samples", "4", "--out", "out"]),
    "predict": (PredictSettings, ["--vqvae", "tiny", "scans", "--out", "out"]),
    "compress": (CompressSettings, [*MODELS, "slices/test", "--out", "out"]),
    "curves": (CompareSettings, ["tiny", "tiny-top", "--out", "curves.png"]),
    "publish": (PublishSettings, ["results/oasis/tiny", "out"])}
"""Each command with its settings, and words with which it takes a second or two; a later flag beats an earlier one."""
LEFT_OUT = {"preset", "compile", "workers", "shard", "merge", "archives", "list", "lesions", "anatomy", "probe",
            "rates",            "features", "savename", "runs", "run", "input", "threads", "timeout_minutes", "data",
            "results", "channels", "out"}
"""Settings that take minutes, make other commands of these, or name what the words above name."""
SMALL = {"epochs": (1, 2), "batch": (1, 3, 8, 64), "size": (16, 32, 64), "per_scan": (1, 2, 5), "copies": (0, 1),
         "count": (1, 3), "samples": (2, 8), "reject": (1, 2), "layers": (1, 2), "residual_layers": (0, 1, 2),
         "embedding_dim": (2, 8), "residual_channels": (2, 8), "codebook_size": (2, 16, 64), "accumulate": (1, 2),
         "start_steps": (0, 3, 50), "restart_every": (0, 1, 10), "global_batch": (4, 8), "seed": (0, 7),
         "fsq_levels": ((8, 8), (5, 5, 5), (3,)), "downsample": ((4, 2), (2, 2), (8, 2), (2,)),
         "split": ((64, 16, 20), (50, 25, 25), (1, 0, 0)), "assume_orientation": ("LAS", "RAS"), "bits": (8, 16),
         "archive": ("bids", "plain:1", "plain:file"), "subject_pattern": (r"sub-(\d+)", r"OAS1_(\d+)"),
         "suffix": (("T1w",), ("T2w",)), "mask_suffix": (("none",), ("mask",)), "volume": (0, 3),
         "covariates": ("scans/participants.tsv",), "subject_column": ("participant_id",), "mask": ("left", "upper"),
         "inpaint": ("slices/test",), "condition": (("position_mm",), ("sex=F",), ("age",)), "title": ("é 患者",),
         "level": ("top", "bottom"), "vqvae": ("tiny", "results/oasis/tiny"), "top": ("tiny-top",),
         "bottom": ("tiny-bottom",), "lossless": ("tiny",),
         "planes": (("axial",), ("axial", "coronal")), "extent": ((0.2, 0.9), (0.5, 0.6)),
         "scans": ("scans",), "sampled": ("slices/test",), "field_of_view": (20.0, 224.0), "blend": (0, 2),
         "temperature": ((1.0,), (0.5, 0.9), (0.0,)), "top_k": ((0,), (5, 3)), "top_p": ((1.0,), (0.5,)),
         "guidance": ((1.0,), (2.0,))}
"""Values that mostly fit, and with which a command ends soon; other settings get what their type says."""
WRONG = ("-1", "0", "7", "nan", "inf", "1e400", "x", " ", "é", "slices", "tiny-top", "--",
         "99999999999999999999", "../..", "/dev/null", "null", "0.5", "%s", "\\", "a" * 5000)
SHARE_OF_WRONG = 0.3


def words_of(number: int) -> list[str]:
    """Return the words of a command line."""
    draws = random.Random(number)
    name = draws.choice(list(COMMANDS))
    settings, words = COMMANDS[name]
    hints = typing.get_type_hints(settings, include_extras=True)
    fields = [field.name for field in dataclasses.fields(settings) if field.name not in LEFT_OUT]
    words = [name, *words]
    for field in draws.sample(fields, min(len(fields), draws.randint(0, 4))):
        value = draws.choice(SMALL[field]) if field in SMALL else fitting(hints[field], settings, field, draws)
        flag = "--" + field.replace("_", "-")
        if isinstance(value, bool):
            words += [flag if value or field == "no_mirror" else flag.replace("--", "--no-", 1)]
        elif value is not None:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    if draws.random() < SHARE_OF_WRONG:
        place = draws.randrange(1, len(words) + 1)
        change = draws.randrange(3)
        words[place:place + (change > 0)] = [] if change == 2 else [draws.choice(WRONG)]
    return words


def fitting(hint: object, settings: type, field: str, draws: random.Random) -> object:
    """Return a value of a setting's type, near its default where it is a number; None where nothing is known."""
    default = settings.__dataclass_fields__[field].default
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return fitting(typing.get_args(hint)[0], settings, field, draws)
    if origin in (Union, types.UnionType):
        return fitting(next(each for each in typing.get_args(hint) if each is not type(None)), settings, field, draws)
    if origin is Literal:
        return draws.choice(typing.get_args(hint))
    if hint is bool:
        return draws.random() < 0.7
    if hint in (int, float) and isinstance(default, int | float):
        return hint(default * draws.choice((0.5, 1, 2)))
    return None


def prepare(folder: Path) -> None:
    """Train a tiny chain, as a user would lay it out."""
    write_slices(folder / "slices")
    save_bids(folder / "scans", 4)
    train_chain(folder / "slices", folder / "results")


def try_one(number: int, folder: Path, prepared: Path) -> str:
    """Run a command line; return whether it was done, refused by its arguments or refused later."""
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    words = words_of(number)
    ended = command(words, folder, environment={"OASIS_PATH": "", "SLICES_PATH": ""})
    assert ended.status in ALLOWED, f"status {ended.status} of {words}: {ended.err[-2000:]}"
    if ended.status != 2:
        return "done" if ended.status == 0 else "stopped"
    assert ": " in last_line(ended.err), f"{words}: {ended.err[-2000:]}"
    return "refused-later" if is_parsed(lambda: parse(COMMANDS[words[0]][0], "", words[1:])) else "refused-by-arguments"


def is_parsed(parsed: Callable[[], object]) -> bool:
    """Return whether a command line gets past the checks of its arguments."""
    try:
        parsed()
    except (UserError, SystemExit):
        return False
    return True


def last_line(text: str) -> str:
    """Return the last line that a terminal shows."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


PART = Part("command_lines", "random command lines of 8 commands", 500, try_one, prepare, in_suite=4)
