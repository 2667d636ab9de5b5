"""A folder, a run's name or a model's id on the Hugging Face hub -> the model, its weights and config; and back.

Weights are safetensors with the run's config in their metadata, so that they load without the code's defaults and
without executing anything. A run's folder already has the hub's layout: `model.safetensors` and `config.json`. Only
reaching the hub itself needs the package huggingface_hub (`pip install vqvae2-brain-mri[hub]`).

A model may come from a stranger, or over a bad line. So its config is checked field by field, its weights must have the
hash that the file says and be numbers that a trained network can have, and a model that is larger than its weights is
not built to its end. Files of older versions say no hashes.
"""

import hashlib
import importlib
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.overrides import TorchFunctionMode

from vqvae2 import __version__
from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import in_brief, write_atomically, write_json
from vqvae2.runs import config as run_config
from vqvae2.settings import stored

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HASH, CONFIG_HASH = "sha256", "config_sha256"
"""Names in the metadata of a weights file: of the `weights_hash` of its tensors, and the SHA-256 of its config."""
MOST_HEADER, MOST_TENSORS = 64 * 2**20, 20_000
"""Bytes of a header and tensors in it; a model of this project has hundreds."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ALWAYS_BUILT = 5_000_000
"""Numbers, at most, of a model's tables that its weights file does not hold."""
LARGEST, LARGEST_STATISTIC = 1e6, 1e18
"""The largest weight, and the largest count of vectors or sum of them: trained weights stay below a thousand, and the
square of a statistic is still a float32."""
STATISTICS = {"counts", "recent", "sums", "updates"}
"""The last part of the names of counts and sums that a codebook keeps for its training."""
DAMAGED = "Copy it again from where it came, or train the model again."
SAME_KIND = "Only a run of the same kind can be gone on from."
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""An owner and a name, such as ada/vqvae-128."""


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], config: dict) -> None:
    """Write `tensors` as safetensors with `config` and the hashes of both in the metadata, atomically."""
    plain = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
             for name, tensor in tensors.items()}
    text = json.dumps(config)
    # Made in memory: a full disk is then an OSError, as everywhere, and not the library's own kind of error.
    made = memoryview(save(plain, {"config": text, HASH: weights_hash(plain), CONFIG_HASH: _hash_of(text)}))
    end = 8 + int.from_bytes(made[:8], "little")
    # The library writes the metadata in a random order; equal weights give equal bytes.
    header = json.dumps(json.loads(bytes(made[8:end])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_atomically(path, b"".join([len(header).to_bytes(8, "little"), header, made[end:]]))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict, str | None]]:
    """Open a weights file; give its config, which is checked, and the hash that its tensors should have.

    Raises: UserError, also for what is done with the file, if it is missing, damaged or not one of this project.
    """
    try:
        with path.open("rb") as raw:
            header = raw.read(min(int.from_bytes(raw.read(8), "little"), MOST_HEADER + 1))
        if len(header) > MOST_HEADER or header.count(b"{") > MOST_TENSORS:
            raise ValueError("a header that is larger than any of this project")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            config = stored.parse(metadata["config"])
            if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
                raise KeyError("settings in its config")
            if metadata.get(CONFIG_HASH) not in (None, _hash_of(metadata["config"])):
                raise ValueError("a config that has changed since it was written")
            yield file, run_config.checked(config, f"{path}: config"), metadata.get(HASH)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: expected a weights file of this project, found {in_brief(error)}. "
                        "Check the name, or train the model again.") from None


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and the config of a weights file.

    Raises: UserError if it is missing, damaged or not a weights file of this project.
    """
    with _opened(path) as (file, config, wanted):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if wanted is not None:
        found = weights_hash(tensors)
        expect(found == wanted, str(path), f"tensors of the hash {wanted[:12]}", found[:12], DAMAGED)
    return tensors, config


def config_in_weights(path: Path) -> dict:
    """Return the config of a weights file. Raises: as `load_weights`, but for the tensors, which stay unread."""
    with _opened(path) as (_, config, _):
        return config


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def weights_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, shapes and bytes of `tensors`, sorted by name, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        # Not contiguous(), which leaves odd strides to dimensions of size 1.
        tensor = tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> dict:
    """Return a run's config.json. Raises: UserError if it is missing, not JSON, or a value is of another type."""
    path = folder / CONFIG
    config = stored.read_json(path, "the settings of a run", "Point at a folder that a training script made.")
    return run_config.checked(config, str(path))


def find_run(name: str, flag: str, results: Path = Path("results"), file: str = WEIGHTS) -> Path:
    """Return the folder of a run that has `file`: `name` as a path, or looked up in <results>/*/ and pretrained/.

    Of several whose weights are equal, such as a run and what was published of it, a run in <results> is returned: it
    has the state, the code maps and the whole log.
    Raises: UserError, naming what was found, if there is none, or if there are several whose weights differ.
    """
    if (Path(os.path.expanduser(name)) / file).is_file():
        return Path(os.path.expanduser(name))
    runs = [path.parent for paths in (Path("pretrained").glob(f"*/{file}"), results.glob(f"*/*/{file}"))
            for path in sorted(paths)]
    found = [folder for folder in runs if folder.name == name]
    expect(len(found) < 2 or _have_the_same_weights(found), f"{flag} {name}", "one run of this name",
           ", ".join(map(str, found)), "Give the path of one.")
    known = ", ".join(sorted({folder.name for folder in runs}))
    known = f"only {known}" if known else "no run at all"
    expect(bool(found), f"{flag} {name}", f"a folder with {file}, or a name in {results}/*/ or pretrained/",
           f"a folder without {file}" if Path(os.path.expanduser(name)).is_dir() else known,
           "Check the name." if file == CONFIG else "Check the name, or wait for the first epoch to end.")
    return found[-1]


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
    def built(config: dict, tensors: dict[str, torch.Tensor]) -> nn.Module:
        with _Budget(3 * sum(tensor.numel() for tensor in tensors.values()) + ALWAYS_BUILT):
            return build(config, tensors)

    loaded = _filled(name, flag, kind, built, results, words=words, advice=advice)
    loaded.model.eval().config = loaded.config
    return loaded


def check_run(name: str, flag: str, kind: str, results: Path = Path("results"),
              check: Callable[[dict], None] = lambda _: None, *, words: str = "", advice: str = SAME_KIND) -> Path:
    """Return the folder of a run, of which the config alone is read. Arguments and errors are those of `load_into`."""
    folder = find_run(name, flag, results)
    config = config_in_weights(folder / WEIGHTS)
    found = str(config.get("kind"))
    expect(found.endswith(kind), f"{flag} {name}", words or f"a {kind}", f"a {found} in {folder}", advice)
    check(config)
    return folder


def load_into(model: nn.Module, name: str, flag: str, kind: str, results: Path = Path("results"),
              check: Callable[[dict], None] = lambda _: None) -> TrainedModel:
    """Give `model` the weights of the run `name`, which must be of the same `kind` and architecture.

    Args:
        check: raises UserError where a run of this config is none to begin with. Other arguments, and errors, are as
            for `load_model`.
    """
    return _filled(name, flag, kind, lambda *_: model, results, check)


def _filled(name: str, flag: str, kind: str, build: Callable[[dict, dict[str, torch.Tensor]], nn.Module],
            results: Path, check: Callable[[dict], None] = lambda _: None, **said: str) -> TrainedModel:
    """Find a run, check what it holds, and put its weights into the model that `build` returns."""
    folder = check_run(name, flag, kind, results, check, **said)
    path = folder / WEIGHTS
    tensors, config = load_weights(path)
    try:
        _check_values(tensors)
        model = build(config, tensors)
        _check_forms(model.state_dict(), tensors)
        model.load_state_dict(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return TrainedModel(model, config, weights_hash(tensors), folder)


class _Budget(TorchFunctionMode):
    """Inside this context, tensors of at most so many new numbers are made: a config may ask for any size."""

    def __init__(self, numbers: int):
        super().__init__()
        self.numbers = self.left = numbers

    def __torch_function__(self, function: Callable, _: object, args: tuple = (),
                           options: dict | None = None) -> object:
        if function in (torch.empty, torch.zeros, torch.ones, torch.randn):
            self.left -= math.prod(args[0] if args and isinstance(args[0], (tuple, list)) else args)
            expect(self.left >= 0, "config", f"settings of a model of the {self.numbers} numbers that the file may "
                   "need", "those of a larger one", DAMAGED)
        return function(*args, **options or {})


def _check_forms(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError unless the tensors are those of the model; floats may be stored in other sizes."""
    for name in sorted(wanted.keys() | found.keys()):
        ours, theirs = (f"{'float' if of[name].dtype in FLOATS else str(of[name].dtype).removeprefix('torch.')} "
                        f"{list(of[name].shape)}" if name in of else "none" for of in (wanted, found))
        expect(ours == theirs, f"tensor {name[:80]}", f"{ours}, which config and version of the code say", theirs,
               "Train the model again.")


def _check_values(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError where a tensor is not finite, or holds numbers that no trained network has."""
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS and tensor.numel():
            largest = max(-tensor.min().item(), tensor.max().item())
            most = LARGEST_STATISTIC if name.rpartition(".")[2] in STATISTICS else LARGEST
            expect(largest <= most, f"tensor {name[:80]}", f"finite numbers up to {most:g}", f"{largest:g}", DAMAGED)


class Pretrained:
    """The part of a model that reads it from, and writes it to, a folder in the layout of the Hugging Face hub.

    A class provides `kind`, with which the kind in its config.json ends, and `from_config(config, tensors)`, which
    returns a model without these weights yet, or raises UserError where config or weights make no model.
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
