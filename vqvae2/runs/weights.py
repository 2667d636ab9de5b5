"""A run's weights and config <-> files, and the folder of a run found by its name.

Weights are safetensors with the run's config in their metadata, so that they load without the code's
defaults and without executing anything.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from vqvae2 import __version__
from vqvae2.common.errors import UserError
from vqvae2.common.files import in_brief, write_atomically
from vqvae2.settings.checks import expect

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], config: dict) -> None:
    """Write `tensors` as safetensors with `config` in the metadata, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Made in memory: a full disk is then an OSError, as everywhere, and not the library's own kind of error.
    write_atomically(path, save(plain, {"config": json.dumps(config)}))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and the config of a weights file.

    Raises: UserError if it is missing or not a weights file of this project.
    """
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
                raise KeyError("settings in its config")
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected a weights file of this project, found {in_brief(error)}. "
                        "Check the name, or train the model again.") from None


def weights_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, shapes and bytes of `tensors`, sorted by name, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> dict:
    """Return a run's config.json. Raises: UserError if it is missing or not JSON."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise ValueError("other JSON")
        return config
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: expected the settings of a run, found {in_brief(error)}. "
                        "Point at a folder that a training script made.") from None


def find_run(name: str, flag: str, results: Path = Path("results"), file: str = WEIGHTS) -> Path:
    """Return the folder of a run that has `file`: `name` as a path, or looked up in <results>/*/ and pretrained/.

    Raises: UserError, naming what was found, if there is none or more than one.
    """
    if (Path(os.path.expanduser(name)) / file).is_file():
        return Path(os.path.expanduser(name))
    runs = sorted(path.parent for paths in (results.glob(f"*/*/{file}"), Path("pretrained").glob(f"*/{file}"))
                  for path in paths)
    found = [folder for folder in runs if folder.name == name]
    expect(len(found) < 2, f"{flag} {name}", "one run of this name", ", ".join(map(str, found)),
           "Give the path of one.")
    known = ", ".join(sorted({folder.name for folder in runs}))
    expect(bool(found), f"{flag} {name}", f"a folder with {file}, or a name in {results}/*/ or pretrained/",
           f"only {known}" if known else "no run at all", "Check the name, or wait for the first epoch to end.")
    return found[0]


class Loaded(NamedTuple):
    """A model that was trained, in eval mode on the CPU, and where it comes from."""

    model: nn.Module
    config: dict
    tensors: dict[str, torch.Tensor]
    """The weights as they are in the file."""
    folder: Path


def load_model(name: str, flag: str, kind: str, build: Callable[[dict, dict[str, torch.Tensor]], nn.Module],
               results: Path = Path("results"), *, words: str, advice: str) -> Loaded:
    """Return the model in the folder `name`, or of that name in <results>/*/ or pretrained/.

    Args:
        flag: of the command line, for error messages, which say `words` ("a VQ-VAE") and `advice` for another kind.
        kind: what the run's config must have under "kind".
        build: returns the model, its weights being anything, for a config and the weights in the file.
    Raises: UserError if there is none, or the folder holds another kind of model or weights of another form.
    """
    folder = find_run(name, flag, results)
    tensors, config = load_weights(folder / WEIGHTS)
    expect(config.get("kind") == kind, f"{flag} {name}", words, f"a {config.get('kind')} in {folder}", advice)
    model = build(config, tensors)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{flag} {name}: expected weights that this version of the code reads, found others "
                        f"({' '.join(str(error).split())[:150]}). Train the model again.") from None
    return Loaded(model.eval(), config, tensors, folder)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"vqvae2": __version__, "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy")}}
