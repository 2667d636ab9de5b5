"""A folder, a run's name or a model's id on the Hugging Face hub -> a model, and a model -> such a folder or the hub.

A run's folder already has the hub's layout: `model.safetensors` and `config.json`. Only reaching the hub itself needs
the package huggingface_hub (`pip install vqvae2-brain-mri[hub]`).
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch

from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.runs import weights
from vqvae2.settings.checks import expect

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""An owner and a name, such as ada/vqvae-128."""
INSTALL = "Install it with: pip install vqvae2-brain-mri[hub]"


class Pretrained:
    """The part of a model that reads it from, and writes it to, a folder in the layout of the Hugging Face hub.

    A class provides `kind`, with which the kind in its config.json ends, and `_from_config(config, tensors)`, which
    returns a model without these weights yet.
    """

    kind: str
    config: Mapping[str, object] = {}
    """The settings and data of the training, as in config.json; empty for a model that was not loaded."""

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str = "cpu", *,
                        results: Path = Path("results"), **download: object) -> Pretrained:
        """Return the model in eval mode.

        Args:
            name: a folder, the name of a run in <results>/*/ or pretrained/, or a hub id such as "ada/vqvae-128".
            device: where the model computes.
            download: what else huggingface_hub.snapshot_download takes, such as `revision` and `token`.
        Raises: UserError if there is no such model, or it is of another kind.
        """
        folder = find_model(str(name), "from_pretrained", results, **download)
        tensors, config = weights.load_weights(folder / weights.WEIGHTS)
        expect(str(config.get("kind")).endswith(cls.kind), f"from_pretrained {name}", f"a {cls.kind}",
               f"a {config.get('kind')} in {folder}", "Give another name, or load it with its own class.")
        model = cls._from_config(config, tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"from_pretrained {name}: expected weights that this version of the code reads, found "
                            f"others ({files.in_brief(error)}). Train the model again.") from None
        model.config = config
        return model.to(device).eval()

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
        weights.save_weights(Path(folder) / weights.WEIGHTS, self.state_dict(), config)
        files.write_json(Path(folder) / weights.CONFIG, config)

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


def find_model(name: str, flag: str, results: Path = Path("results"), **download: object) -> Path:
    """Return the folder of a model: `name` as a path or a run's name, else downloaded from the hub.

    Raises: UserError if there is none, or if huggingface_hub is needed and not installed.
    """
    try:
        return weights.find_run(name, flag, results)
    except UserError:
        if not HUB_ID.fullmatch(name) or Path(name).exists():
            raise
    return Path(_ask_hub(name, lambda hub: hub.snapshot_download(
        name, allow_patterns=[weights.WEIGHTS, weights.CONFIG], **download)))


def _ask_hub(name: str, question: Callable[[ModuleType], object]) -> object:
    """Return what the hub's client answers. Raises: UserError if it is not installed, or whatever it raises."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{name}: expected a folder with {weights.WEIGHTS}, or the package huggingface_hub to look for "
                        f"{name} on the Hugging Face hub, found neither. {INSTALL}") from None
    try:
        return question(hub)
    except Exception as error:  # each version of the client has error classes of its own
        raise UserError(f"{name}: expected an answer of the Hugging Face hub, found {files.in_brief(error)}. Check the "
                        "id, the network and the token.") from None
