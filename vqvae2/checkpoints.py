"""A run's state <-> files: written atomically, read without executing anything, found by name.

Weights are safetensors with the run's config in their metadata, so that they load without the code's
defaults. The training state is a torch file that holds tensors and plain values only, ends with its own
SHA-256 and is read with weights_only=True: a torn or foreign file is told, a malicious pickle is refused.

    python -m vqvae2.checkpoints results/oasis/brain-128

says where a run stands: exit status 0 if it has made all its epochs, 1 if not, 2 if that cannot be told.
"""

import hashlib
import io
import json
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vqvae2 import __version__
from vqvae2.common.errors import Unreadable, UserError, run_script
from vqvae2.common.files import in_brief, write_atomically

CONFIG, WEIGHTS, STATE, STATE_BEFORE = "config.json", "model.safetensors", "state.pt", "state-before.pt"
SEAL = b"vqvae2 sha256 "
"""Stands at the end of a state, before the 32 bytes of the SHA-256 of all that comes before it."""


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], config: dict) -> None:
    """Write `tensors` as safetensors with `config` in the metadata, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Made in memory: a full disk is then an OSError, as everywhere, and not the library's own kind of error.
    write_atomically(path, partial(Path.write_bytes, data=save(plain, {"config": json.dumps(config)})))


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


def file_number(path: Path) -> int | None:
    """Return the number of the file that now has this name (its inode), None where there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def save_state(folder: Path, state: dict) -> int | None:
    """Write a training state (tensors and plain values) into a run's folder, atomically; keep the one before it.

    Returns the new file's number. It stays this run's own until the next save but one: the file becomes the one before.
    """
    made = io.BytesIO()
    torch.save(state, made)
    made.write(SEAL + hashlib.sha256(made.getbuffer()).digest())
    write_atomically(folder / STATE, partial(Path.write_bytes, data=made.getbuffer()), keep=folder / STATE_BEFORE)
    return file_number(folder / STATE)


def load_state(path: Path) -> dict:
    """Return a training state, on the CPU.

    Raises: UserError if the file is missing, torn or damaged, or not one that save_state has written; Unreadable if
        the disk does not let it be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: expected a training state of this project, found no such file. "
                        "Delete it to train from the start.") from None
    except OSError as error:
        raise Unreadable(f"{path}: expected to read this file, found {error.strerror or error}. Nothing was changed: "
                         "see to the disk or the permission, then run the same command.") from None
    try:
        body, seal = content[:-len(SEAL) - 32], content[-len(SEAL) - 32:]
        if seal != SEAL + hashlib.sha256(body).digest():
            raise ValueError("a torn or foreign file" if content else "an empty file")
        with warnings.catch_warnings():  # torch's about how a file was pickled, which is not the user's business
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}")
        return state
    # Whatever torch raises, the file is not one that save_state has written.
    except Exception as error:
        raise UserError(f"{path}: expected a training state of this project, found {in_brief(error)}. "
                        "Delete it to train from the start.") from None


def load_last_state(folder: Path, run_id: str | None = None) -> tuple[dict | None, str]:
    """Return a run's last state that can be trusted, None where none was saved, and a warning or "".

    Args:
        run_id: what a state of this run has under "run_id"; another run's is foreign.
    Raises: UserError if there are states and none can be trusted; Unreadable if the disk does not let one be read.
    """
    failures: list[str] = []
    for path in (folder / STATE, folder / STATE_BEFORE):
        try:
            if os.path.lexists(path):
                state = load_state(path)
                if run_id is not None and state.get("run_id") != run_id:
                    raise UserError(f"{path}: expected a training state of this run, found one of another run. "
                                    "Delete it to train from the start.")
                return state, f"warning: {failures[0]} Going on from {path}, the one before it." if failures else ""
        except Unreadable:
            raise
        except UserError as error:
            failures.append(str(error).removesuffix("Delete it to train from the start.").strip())
    if failures:
        raise UserError(f"{' '.join(failures)} Delete what is named here to train from the start.")
    return None, ""


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


def find_run(name: str, flag: str, results: Path = Path("results")) -> Path:
    """Return the folder of a run: `name` as a path, or looked up in <results>/*/ and pretrained/.

    Raises: UserError, naming what was found, if there is none or more than one.
    """
    if (Path(os.path.expanduser(name)) / WEIGHTS).is_file():
        return Path(os.path.expanduser(name))
    runs = sorted(path.parent for paths in (results.glob(f"*/*/{WEIGHTS}"), Path("pretrained").glob(f"*/{WEIGHTS}"))
                  for path in paths)
    found = [folder for folder in runs if folder.name == name]
    if len(found) > 1:
        raise UserError(f"{flag} {name}: expected one run of this name, found {', '.join(map(str, found))}. "
                        f"Give the path of one.")
    if not found:
        known = sorted({folder.name for folder in runs})
        raise UserError(f"{flag} {name}: expected a folder with {WEIGHTS}, or a name in {results}/*/ or pretrained/, "
                        f"found {'only ' + ', '.join(known) if known else 'no run at all'}. "
                        "Check the name, or wait for the first epoch to end.")
    return found[0]


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"vqvae2": __version__, "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "torchmetrics")}}


def main() -> None:
    """Print where the run in the folder that the command line names stands."""
    if len(sys.argv) != 2:
        raise UserError(f"checkpoints: expected the folder of one run, found {len(sys.argv) - 1} argument(s). "
                        "For example: python -m vqvae2.checkpoints results/oasis/brain-128")
    folder = Path(sys.argv[1])
    config = read_config(folder)
    state, warning = load_last_state(folder, config.get("run_id"))
    try:
        epochs = int(config["settings"]["epochs"])
        made, step = (state["epoch"], state["step"]) if state else (0, 0)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder}: expected a training run, found other files of these names. Point at a folder that "
                        "a training script made.") from None
    print(*filter(None, [warning]), f"{'finished' if made >= epochs else 'not finished'}: {made} of {epochs} epochs, "
          f"{step} steps")
    raise SystemExit(made < epochs)


if __name__ == "__main__":
    run_script(main)
