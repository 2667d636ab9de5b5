"""A space of settings -> trials on this machine, and what each reached."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vqvae2.common import files, machine
from vqvae2.common.errors import EXIT_STOPPED, EXIT_USER_ERROR, Stopped, UserError
from vqvae2.images import dataset
from vqvae2.runs import state as run_state
from vqvae2.runs import weights as checkpoints
from vqvae2.settings.checks import expect
from vqvae2.training import tuning
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.tuning_settings import TuneSettings
from vqvae2.training.tuning_study import Study
from vqvae2.training.vqvae import VqvaeTrainer

OUTPUT = "output.txt"
SECONDS_BETWEEN_LOOKS = 0.5
"""Within which a signal is noticed."""
MOST_STARTS = 2
"""Of a trial whose process crashes; the second goes on from the last state."""
FAILURES_AT_FIRST = 3
"""After so many, if no trial has ended well, the fault is not the trial's."""


class TrialTrainer(VqvaeTrainer):
    """Trains as train_vqvae.py does, and after each epoch, all being saved, asks whether to go on.

    Args:
        judge: is sent the rows of log.csv so far, and answers True to go on.
        pictures_every: epochs between pictures.
    """

    def __init__(self, settings: TrainVqvae, judge: Connection, pictures_every: int):
        super().__init__(settings)
        self.judge, self.picture_epochs = judge, pictures_every

    def pictures(self, epoch: int) -> None:
        """Ask, then draw where it is time to. Raises: Stopped if the trial is pruned, or nobody answers."""
        try:
            self.judge.send(self.rows)
            goes_on = self.judge.recv()
        except (EOFError, ConnectionError):
            goes_on = False
        if not goes_on:
            raise Stopped("pruned, or vqvae2 tune has ended")
        if epoch % self.picture_epochs == 0 or epoch == self.settings.epochs:
            super().pictures(epoch)


def train(settings: TrainVqvae, judge: Connection, pictures_every: int, gpu: str | None) -> None:
    """Train one trial, in a process of its own, which ends with a script's exit status.

    All that it says goes to OUTPUT in the trial's folder; `judge` is sent the line of a user's error.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    folder = _folder_of(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OUTPUT).open("a") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
        # One that outlived a killed vqvae2 tune is stopping: it holds this until it has saved.
        fcntl.flock(output, fcntl.LOCK_EX)
        try:
            TrialTrainer(settings, judge, pictures_every).run()
        except UserError as error:
            judge.send(str(error))
            raise SystemExit(EXIT_USER_ERROR) from None
        except (Stopped, KeyboardInterrupt):
            raise SystemExit(EXIT_STOPPED) from None


def _folder_of(settings: TrainVqvae) -> Path:
    return settings.results / settings.dataset / settings.savename


def _stop_with_parent() -> None:
    """Let the training save and stop when vqvae2 tune has ended, however it did."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Worker:
    """A trial that is being trained."""

    trial: object
    settings: TrainVqvae
    slot: int
    process: multiprocessing.Process
    judge: Connection
    starts: int = 1
    error: str = ""


class Tuner:
    """Keeps up to --workers trials in training until the study has --trials."""

    def __init__(self, settings: TuneSettings, folder: Path, study: Study, data: dict):
        self.settings, self.folder, self.study, self.data = settings, folder, study, data
        self.workers: list[Worker] = []
        self.signals = machine.Signals()
        self.context = _context()
        self.threads = settings.threads or max(1, machine.cores() // settings.workers)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        self.gpus = visible.split(",") if torch.cuda.device_count() > 1 else []

    def run(self) -> None:
        """Train what is still to be trained. Raises: Stopped if a signal came; UserError if no trial can be trained."""
        with self.signals:
            try:
                self._run()
            finally:
                self._end_workers()
            if self.signals.came:
                raise Stopped(f"Stopped by a signal, all saved: {self.folder}. The same command goes on from here.")

    def _run(self) -> None:
        begun = self.study.unfinished()
        with tqdm(total=self.settings.trials, unit="trial", leave=False, desc="trials",
                  initial=self._number_ended()) as self.bar:
            while not self.signals.came:
                while len(self.workers) < self.settings.workers and (
                        trial := begun.pop(0) if begun else self.study.next()) is not None:
                    self._start(trial)
                if not self.workers:
                    return
                ready = connection.wait([one for worker in self.workers for one in
                                         (worker.judge, worker.process.sentinel)], SECONDS_BETWEEN_LOOKS)
                for worker in list(self.workers):
                    if worker.judge in ready:
                        self._hear(worker)
                    elif worker.process.sentinel in ready:
                        self._end(worker)

    def _number_ended(self) -> int:
        return sum(one.state != "unfinished" for one in self.study.results())

    def _start(self, trial: object) -> None:
        """Train a trial, unless an earlier start was killed between an epoch that ends it and the telling."""
        settings = tuning.trial_settings(self.settings, trial.number, self.study.values(trial), self.folder,
                                         self.threads)
        if self.study.report(trial, files.read_rows(_folder_of(settings) / "log.csv")):
            self._record(trial, settings, "pruned")
            return
        slot = min(set(range(self.settings.workers)) - {worker.slot for worker in self.workers})
        self.workers.append(Worker(trial, settings, slot, *self._launch(settings, slot)))

    def _launch(self, settings: TrainVqvae, slot: int) -> tuple[multiprocessing.Process, Connection]:
        ours, theirs = self.context.Pipe()
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        process = self.context.Process(target=train, args=(settings, theirs, self.settings.pictures_every, gpu))
        process.start()
        theirs.close()
        return process, ours

    def _hear(self, worker: Worker) -> None:
        """Answer a training that has made an epoch; note an error; see to one that has ended."""
        try:
            said = worker.judge.recv()
            if isinstance(said, str):
                worker.error = said
                return
            is_pruned = self.study.report(worker.trial, said)
            worker.judge.send(not is_pruned)
        except (EOFError, OSError):  # the pipe has no other end any more
            self._end(worker)
            return
        if is_pruned:
            self._leave(worker)
            self._record(worker.trial, worker.settings, "pruned")

    def _end(self, worker: Worker) -> None:
        """Record how a training ended by itself; start it once more where its process has crashed."""
        self._leave(worker)
        status = worker.process.exitcode
        if status == 0:
            # Rows that it could not tell: all were told by an earlier start, or it was killed before it told them.
            self.study.report(worker.trial, files.read_rows(_folder_of(worker.settings) / "log.csv"))
            self._record(worker.trial, worker.settings, "complete")
        elif status == EXIT_USER_ERROR:
            self._record(worker.trial, worker.settings, "failed", worker.error)
        elif self.signals.came:
            return  # stopped likewise; it goes on at the next start
        elif worker.starts < MOST_STARTS:
            worker.process, worker.judge = self._launch(worker.settings, worker.slot)
            worker.starts += 1
            self.workers.append(worker)
        else:
            self._record(worker.trial, worker.settings, "failed", f"its process ended with status {status}, twice: see "
                         f"{_folder_of(worker.settings) / OUTPUT}")

    def _leave(self, worker: Worker) -> None:
        """Wait for a process that is ending, and hear its last words."""
        worker.process.join()
        with suppress(EOFError, OSError):
            while worker.judge.poll():
                said = worker.judge.recv()
                worker.error = said if isinstance(said, str) else worker.error
        worker.judge.close()
        self.workers.remove(worker)

    def _record(self, trial: object, settings: TrainVqvae, state: str, reason: str = "") -> None:
        """Note how a trial ended, remove what was only there to go on from, and tell."""
        run = _folder_of(settings)
        self.study.finish(trial, state, files.read_rows(run / "log.csv"), reason)
        weights = [] if state == "complete" else [checkpoints.WEIGHTS]
        for name in (run_state.STATE, run_state.STATE_BEFORE, *weights):
            (run / name).unlink(missing_ok=True)
        self._tell(trial.number)

    def _tell(self, number: int) -> None:
        """Write the study's files and a line about the trial that has ended."""
        results = self.study.results()
        best = tuning.write_results(self.folder, results, self.settings, self.study.space, self.data)
        one = next(one for one in results if one.number == number)
        words = {"pruned": f"pruned after epoch {one.epochs}", "failed": f"failed: {one.reason}"}.get(one.state, "")
        figures = tuning.in_words(one, self.settings.codebook_size)
        score = "" if one.score is None else f"score {one.score:.4f} ({figures})"
        so_far = "" if best is None else f"best is trial {best.number}, {best.score:.4f}"
        tqdm.write("; ".join(filter(None, [f"trial {number}: {words or score}", words and score, so_far])))
        sys.stdout.flush()
        self.bar.update()
        ended = [other.state for other in results if other.state != "unfinished"]
        if one.state == "failed" and set(ended) == {"failed"} and len(ended) >= FAILURES_AT_FIRST:
            raise UserError(f"{one.reason} So ended each of the first {len(ended)} trials.")

    def _end_workers(self) -> None:
        """Let all trainings save and stop; they go on at the next start."""
        for worker in self.workers:
            worker.judge.close()
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()


def _context() -> multiprocessing.context.BaseContext:
    """How a trial's process is started: from a server that has imported everything and computed nothing, where the
    system can fork safely."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tune"])
    here, before = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, before]))  # the server finds its modules by this
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def describe_data(settings: TuneSettings) -> dict:
    """Return the images' hashes, sizes and numbers. Raises: UserError where no study can be made of them."""
    read = dataset.load_images(settings, ("train", "validate"), int(np.prod(settings.downsample)))
    for split in ("train", "validate"):
        expect(len(read.splits[split]) > 0, "--data", f"at least 1 image to {split}", "0", "Give --split other shares.")
    return read.describe()
