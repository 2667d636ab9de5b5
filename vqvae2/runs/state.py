"""A training's state -> a sealed file in its run's folder, and back.

The state is a torch file that holds tensors and plain values only, ends with its own SHA-256 and is read with
weights_only=True: a torn or foreign file is told, a malicious pickle is refused."""

import hashlib
import io
import os
import warnings
from pathlib import Path

import torch

from vqvae2.common.errors import Unreadable, UserError
from vqvae2.common.files import in_brief, write_atomically

STATE, STATE_BEFORE = "state.pt", "state-before.pt"
SEAL = b"vqvae2 sha256 "
"""Stands at the end of a state, before the 32 bytes of the SHA-256 of all that comes before it."""


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
    write_atomically(folder / STATE, made.getbuffer(), keep=folder / STATE_BEFORE)
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
