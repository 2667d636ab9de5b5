"""A folder, a run's name or a model's id on the Hugging Face hub -> the model, its weights and config; and back.

Weights are safetensors with the run's config in their metadata, so that they load without the code's defaults and
without executing anything. A run's folder already has the hub's layout: `model.safetensors` and `config.json`. Only
reaching the hub itself needs the package huggingface_hub (`pip install vqvae2-brain-mri[hub]`).
"""

import hashlib
import importlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from vqvae2 import __version__
from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import in_brief, write_atomically, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""An owner and a name, such as ada/vqvae-128."""


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

    Raises: UserError, naming what was found, if there is none, or if there are several whose weights differ.
    """
    if (Path(os.path.expanduser(name)) / file).is_file():
        return Path(os.path.expanduser(name))
    runs = sorted(path.parent for paths in (results.glob(f"*/*/{file}"), Path("pretrained").glob(f"*/{file}"))
                  for path in paths)
    found = [folder for folder in runs if folder.name == name]
    expect(len(found) < 2 or _have_the_same_weights(found), f"{flag} {name}", "one run of this name",
           ", ".join(map(str, found)), "Give the path of one.")
    known = ", ".join(sorted({folder.name for folder in runs}))
    expect(bool(found), f"{flag} {name}", f"a folder with {file}, or a name in {results}/*/ or pretrained/",
           f"only {known}" if known else "no run at all", "Check the name, or wait for the first epoch to end.")
    return found[-1]  # a run in results/ before what was published of it


def _have_the_same_weights(folders: Sequence[Path]) -> bool:
    try:
        return len({weights_hash(load_weights(folder / WEIGHTS)[0]) for folder in folders}) == 1
    except UserError:
        return False


def find_model(name: str, flag: str, results: Path = Path("results"), **download: object) -> Path:
    """Return the folder of a model: `name` as a path or a run's name, else downloaded from the hub.

    Raises: UserError if there is none, or if huggingface_hub is needed and not installed.
    """
    try:
        return find_run(name, flag, results)
    except UserError:
        if not HUB_ID.fullmatch(name) or Path(name).exists():
            raise
    return Path(_ask_hub(name, lambda hub: hub.snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG], **download)))


def _ask_hub(name: str, question: Callable[[ModuleType], object]) -> object:
    """Return what the hub's client answers. Raises: UserError if it is not installed, or whatever it raises."""
    try:
        return question(importlib.import_module("huggingface_hub"))
    except ImportError:
        raise UserError(f"{name}: expected a folder with {WEIGHTS}, or the package huggingface_hub to look for {name} "
                        "on the Hugging Face hub, found neither. Install it with: pip install vqvae2-brain-mri[hub]"
                        ) from None
    except Exception as error:  # each version of the client has error classes of its own
        raise UserError(f"{name}: expected an answer of the Hugging Face hub, found {in_brief(error)}. Check the id, "
                        "the network and the token.") from None


@dataclass(frozen=True)
class TrainedModel:
    """A model read from its folder.

    Args:
        model: the network, in eval mode.
        config: the settings and the data that it was trained with.
        hash: the hash of its weights, to which code maps and priors are tied.
    """

    model: nn.Module
    config: dict
    hash: str
    folder: Path


def load_model(name: str, flag: str, kind: str, build: Callable[[dict, dict[str, torch.Tensor]], nn.Module],
               results: Path = Path("results"), *, words: str, advice: str) -> TrainedModel:
    """Return the model in the folder `name`, or of that name in <results>/*/ or pretrained/, on the CPU.

    Args:
        flag: of the command line, for error messages, which say `words` ("a VQ-VAE") and `advice` for another kind.
        kind: the end of what the run's config must have under "kind".
        build: returns the model, its weights being anything, for a config and the weights in the file.
    Raises: UserError if there is none, or the folder holds another kind of model or weights of another form.
    """
    folder = find_run(name, flag, results)
    tensors, config = load_weights(folder / WEIGHTS)
    found = str(config.get("kind"))
    expect(found.endswith(kind), f"{flag} {name}", words, f"a {found} in {folder}", advice)
    model = build(config, tensors)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{flag} {name}: expected weights that this version of the code reads, found others "
                        f"({in_brief(error)}). Train the model again.") from None
    model.config = config
    return TrainedModel(model.eval(), config, weights_hash(tensors), folder)


class Pretrained:
    """The part of a model that reads it from, and writes it to, a folder in the layout of the Hugging Face hub.

    A class provides `kind`, with which the kind in its config.json ends, and `from_config(config, tensors)`, which
    returns a model without these weights yet.
    """

    kind: str
    config: Mapping[str, object] = {}
    """The settings and data of the training, as in config.json; empty for a model that was not loaded."""

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str = "cpu", *,
                        results: Path = Path("results"), **download: object) -> "Pretrained":
        """Return the model in eval mode.

        Args:
            name: a folder, the name of a run in <results>/*/ or pretrained/, or a hub id such as "ada/vqvae-128".
            device: where the model computes.
            download: what else huggingface_hub.snapshot_download takes, such as `revision` and `token`.
        Raises: UserError if there is no such model, or it is of another kind.
        """
        folder = find_model(str(name), "from_pretrained", results, **download)
        return load_model(str(folder), "from_pretrained", cls.kind, cls.from_config, words=f"a {cls.kind}",
                          advice="Give another name, or load it with its own class.").model.to(device)

    def save_pretrained(self, folder: str | Path, config: Mapping[str, object] | None = None) -> None:
        """Write model.safetensors and config.json to `folder`.

        Args:
            config: what the model was trained with and on, as a run's config.json has it. Default: what it was loaded
                with.
        Raises: UserError if the model was not loaded and no config is given.
        """
        config = dict(config or self.config)
        expect(bool(config), "config", "what the model was trained with and on", "nothing",
               "Load the model by from_pretrained, or give the config of its run.")
        save_weights(Path(folder) / WEIGHTS, self.state_dict(), config)
        write_json(Path(folder) / CONFIG, config)

    def push_to_hub(self, name: str, config: Mapping[str, object] | None = None, **repository: object) -> None:
        """Upload model.safetensors and config.json to the hub; a repository of this name is made if there is none.

        Args:
            name: the hub id, such as "ada/vqvae-128".
            config: as for `save_pretrained`.
            repository: what else huggingface_hub.create_repo takes, such as `private`.
        Paths of this machine are in a run's config: upload what `vqvae2 publish` has written, or a model loaded from
        there.
        Raises: UserError if huggingface_hub is not installed, or the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, config)
            _ask_hub(name, lambda hub: hub.create_repo(name, exist_ok=True, **repository))
            _ask_hub(name, lambda hub: hub.upload_folder(repo_id=name, folder_path=folder))


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"vqvae2": __version__, "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy")}}
