"""A run's folder and today's settings -> what the run goes on with: its config, global batch and state; and back.

The first start fixes what a run is: its kind, its settings, its data and its global batch. Later starts may
change the number of processes, of epochs, and whatever else does not change the result.

The state is a torch file that holds tensors and plain values only, ends with its own SHA-256 and is read with
weights_only=True: a torn or foreign file is told, a malicious pickle is refused.
"""

import hashlib
import io
import json
import os
import shlex
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from vqvae2.common import distributed, files
from vqvae2.common.errors import Unreadable, UserError, expect
from vqvae2.common.folder_lock import Claim
from vqvae2.runs import weights
from vqvae2.runs.settings import NOT_PART_OF_A_RUN, RunSettings, changed_settings
from vqvae2.settings.parsing import as_dict

STATE, STATE_BEFORE = "state.pt", "state-before.pt"
CODES = "codes"
DELETE = "Delete it to train from the start."
MISFIT = (UserError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What torch raises where a state is not that of a model or of its optimiser."""
SEAL = b"vqvae2 sha256 "
"""Stands at the end of a state, before the 32 bytes of the SHA-256 of all that comes before it."""


def file_number(path: Path) -> int | None:
    """Return the number of the file that now has this name (its inode), None where there is none."""
    return path.stat().st_ino if path.exists() else None


def save_state(folder: Path, state: dict) -> int | None:
    """Write a training state (tensors and plain values) into a run's folder, atomically; keep the one before it.

    Returns the new file's number. It stays this run's own until the next save but one: the file becomes the one before.
    """
    made = io.BytesIO()
    torch.save(state, made)
    made.write(SEAL + hashlib.sha256(made.getbuffer()).digest())
    files.write_atomically(folder / STATE, made.getbuffer(), keep=folder / STATE_BEFORE)
    return file_number(folder / STATE)


def load_state(path: Path) -> dict:
    """Return a training state, on the CPU.

    Raises: UserError if the file is missing, torn or damaged, or not one that save_state has written; Unreadable if
        the disk does not let it be read.
    """
    try:
        with files.open_regular(path) as file:
            content = file.read()
        body, seal = content[:-len(SEAL) - 32], content[-len(SEAL) - 32:]
        if seal != SEAL + hashlib.sha256(body).digest():
            raise ValueError("a torn or foreign file" if content else "an empty file")
        if sum(member.file_size for member in zipfile.ZipFile(io.BytesIO(body)).infolist()) > len(body):
            raise ValueError("a file that was made smaller")  # torch compresses nothing, and makes room for all of it
        with warnings.catch_warnings():  # torch's about how a file was pickled, which is not the user's business
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}")
        return state
    # Whatever else torch raises, the file is not one that save_state has written.
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise Unreadable(f"{path}: expected to read this file, found {error.strerror or error}. Nothing was "
                             "changed: see to the disk or the permission, then run the same command.") from None
        raise UserError(f"{path}: expected a training state of this project, found {files.in_brief(error)}. {DELETE}"
                        ) from None


def load_last_state(folder: Path, run_id: str | None = None,
                    restore: Callable[[dict], object] = lambda _: None) -> tuple[dict | None, str]:
    """Return a run's last state that can be trusted, None where none was saved, and a warning or "".

    Args:
        run_id: what a state of this run has under "run_id"; another run's is foreign.
        restore: takes a state over, whole, or raises one of MISFIT where it is not the state of this model.
    Raises: UserError if there are states and none can be trusted; Unreadable if the disk does not let one be read.
    """
    failures: list[str] = []
    for path in filter(os.path.lexists, (folder / STATE, folder / STATE_BEFORE)):
        try:
            state = load_state(path)
            expect(run_id in (None, state.get("run_id")), str(path), "a training state of this run",
                   "one of another run", DELETE)
            try:
                restore(state)
            except MISFIT as error:
                raise UserError(f"{path}: expected a training state of this model, found another "
                                f"({files.in_brief(error)}). {DELETE}") from None
            return state, f"warning: {failures[0]} Going on from {path}, the one before it." if failures else ""
        except Unreadable:
            raise
        except UserError as error:
            failures.append(str(error).removesuffix(DELETE).strip())
    if failures:
        raise UserError(f"{' '.join(failures)} Delete what is named here to train from the start.")
    return None, ""


def open_folder(folder: Path, settings: RunSettings, kind: str) -> dict:
    """Return the config of the run in `folder`, {} where there is none; needs no data and no other process.

    Raises: UserError if the folder holds something else, or the run began with other settings.
    """
    if not (folder / weights.CONFIG).exists():
        files.check_folder(folder, "--savename")
        for name in (weights.WEIGHTS, STATE, STATE_BEFORE):
            expect(not os.path.lexists(folder / name), f"--savename {settings.savename}",
                   f"{weights.CONFIG} beside {folder / name}", "none",
                   "Put it back, or choose another name: a new run would write over it.")
        return {}
    config = weights.read_config(folder)
    name = f"--savename {settings.savename}"
    expect(config.get("kind") == kind, name, f"a run of kind {kind} in {folder}", config.get("kind"),
           "Choose another name.")
    expect(settings.resume != "never", name, f"no run in {folder}", "one, and --resume is never",
           "Choose another name, or drop --resume never to go on.")
    changed = changed_settings(settings, config["settings"])
    expect(not changed, name, "the settings that this run began with", ", ".join(changed),
           "Give those again, or choose another --savename.")
    return config


def share_out(settings: RunSettings, config: dict) -> tuple[int, int]:
    """Return the run's global batch, which its first start fixes, and how many micro-batches make it up today.

    Raises: UserError if today's processes and --batch do not divide it.
    """
    per_pass = distributed.world_size() * settings.batch
    asked = settings.global_batch or per_pass * settings.accumulate
    global_batch = config.get("global_batch", asked)
    expect(settings.global_batch in (None, global_batch), "--global-batch",
           f"{global_batch}, with which this run began", settings.global_batch,
           "Drop --global-batch, or choose another --savename.")
    accumulation, rest = divmod(global_batch, per_pass)
    expect(accumulation > 0 and not rest, f"--batch {settings.batch}", "a divisor of this run's global batch of "
           f"{global_batch}", f"{distributed.world_size()} process(es) x {settings.batch} = {per_pass}",
           "Change --batch or the number of processes.")
    expect(settings.accumulate in (1, accumulation, config.get("settings", {}).get("accumulate")), "--accumulate",
           f"{accumulation} for this run's global batch of {global_batch}", settings.accumulate, "Drop --accumulate.")
    return global_batch, accumulation


def describe(settings: RunSettings, kind: str, global_batch: int, data: dict, before: dict) -> dict:
    """Return what config.json is to hold.

    Args:
        data: what the model was given; keys that end in _hash must be those the run began with.
        before: the config of the run so far, or {}.
    Raises: UserError if a hash has changed: other data, or another VQ-VAE.
    """
    hashes = {name: value for name, value in data.items() if name.endswith("_hash")}
    for name, value in hashes.items():
        began = before.get(name, value)
        expect(began == value, f"--savename {settings.savename}", f"the {name[:-5]} that this run began with "
               f"({str(began)[:12]})", value[:12], "Choose another --savename.")
    own = {name: value for name, value in as_dict(settings).items() if name not in NOT_PART_OF_A_RUN}
    run_id = hashlib.sha256(json.dumps([kind, own, global_batch, hashes]).encode()).hexdigest()[:16]
    return {"kind": kind, "settings": as_dict(settings), "global_batch": global_batch, **data,
            "run_id": before.get("run_id") or run_id,
            "versions": weights.versions(), "command": f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"}


def begin(claim: Claim, config: dict) -> None:
    """Write config.json, and remove what a killed run was just writing. For rank 0 alone, before its first save."""
    # Codes are written by the trainings of priors, which claim their folder for themselves.
    claim.remove_left_overs(*(path.name for path in claim.folder.iterdir() if path.is_dir() and path.name != CODES))
    files.write_json(claim.folder / weights.CONFIG, config)


def check_alone(folder: Path, number: int | None, settings: RunSettings) -> None:
    """Raise UserError if the state in `folder` is not the one that this run has read or written last.

    Args:
        number: what state.file_number or save_state said of it.
    Two runs in one folder would each undo the other's work; torchrun starts a second one where it has lost sight of
    a machine that goes on training.
    """
    found = file_number(folder / STATE)
    name = f"--savename {settings.savename}"
    expect(found is not None or number is None, name, f"{folder / STATE} as this run left it", "none",
           "Put it back; the same command goes on from it.")
    expect(found == number, name, f"to be the only run in {folder}", "a state that another has written since",
           "Stop one of them; the same command goes on from that state.")


def resume_state(folder: Path, config: dict, settings: RunSettings, restore: Callable[[dict], object]) -> None:
    """Give `restore` the state that this run goes on from (see `load_last_state`), the same on every rank.

    A state that is torn or foreign is passed over, with a warning, for the one before it, and renamed state-bad.pt.
    Raises: UserError, on all ranks, if no state can be trusted, or machines do not see the same folder (which shows
        once something has been saved).
    """
    state, warning = distributed.together(lambda: load_last_state(folder, config["run_id"], restore))
    found = distributed.gather_objects((config["run_id"], 0 if state is None else state["step"]))
    expect(len(set(found)) == 1, f"--results {settings.results}", "one folder that all machines share",
           f"ranks of run and step {', '.join(f'{run[:6]} {step}' for run, step in found)}", "Put it on a shared disk.")
    if warning and distributed.rank() == 0:
        print(warning, file=sys.stderr, flush=True)
        # Else the next save would keep the bad one as the one before it, and throw the good one away.
        (folder / STATE).replace(folder / "state-bad.pt")
