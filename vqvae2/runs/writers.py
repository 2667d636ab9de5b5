"""A run's figures and pictures -> TensorBoard, Weights & Biases, MLflow, Trackio: what --log takes, by name in WRITERS.

Another service is one more subclass of `Service`, added to WRITERS before the run begins. Rank 0 alone has writers, and
a package is imported only where its service was chosen.

A service outlives the folder of a run, and another person may have a run of the same name. So a run has an identity of
its own in each service. It stands in SERVICES in the run's folder, beside the number of epochs whose rows were sent: a
run that goes on continues there, and no row is sent twice. Rows that a service lacks, such as those of the epochs
before --log named it, are sent with the next row.
"""

import contextlib
import importlib.util
import io
import logging
import os
import re
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.common import files
from vqvae2.common.errors import expect
from vqvae2.settings.stored import as_declared, read_json

SERVICES = "log-services.json"
BOARD_BINS = 30
"""The number of bars that TensorBoard shows."""
SECONDS_TO_UPLOAD = 60
"""For so long the end of a run waits until Weights & Biases has all; `wandb sync` sends what is left."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4"}
"""The seconds that MLflow waits for its server, and how often it asks again, where the environment does not say: less
in all than the other ranks wait for rank 0."""


class TensorBoard:
    """Writes TensorBoard's file into the run's folder.

    Every class in WRITERS has these attributes and methods. `epochs` is the number of epochs whose rows it has.
    """

    package = "tensorboard"
    """What must be installed. The extra of pyproject.toml has the name of the row in WRITERS."""
    writes = "TensorBoard's file"
    """The name of what is written, for the line that ends a run where it cannot be written."""
    advice = "Free some space"
    errors: tuple[type[Exception], ...] = (OSError,)
    """What ends the run with that line."""

    def __init__(self, folder: Path, epochs: int, config: dict):
        """Begin or go on with the run in `folder`, of which `epochs` are done: what is later was dropped."""
        from torch.utils.tensorboard import (
            SummaryWriter,  # loads TensorFlow too where there is one, with lines on stderr
        )

        if getattr(threading.excepthook, "func", None) is not _without_full_disks:
            threading.excepthook = partial(_without_full_disks, threading.excepthook)
        self.epochs = epochs
        self.watch = f"tensorboard --logdir {shlex.quote(str(folder.parent))}"
        """What to type, or where to look, to see the run."""
        self.board = SummaryWriter(str(folder), purge_step=epochs + 1)  # its thread writes at once

    def row(self, epoch: int, row: dict[str, float]) -> None:
        """Show the figures of an epoch."""
        for name, value in grouped(row).items():
            self.board.add_scalar(name, value, epoch)
        self.board.flush()
        self.epochs = epoch

    def picture(self, name: str, epoch: int, picture: Image.Image) -> None:
        """Show a picture of an epoch."""
        # Wide pictures are shrunk to at most 800 pixels, by a whole number: the file keeps those of all epochs.
        shown = picture.convert("RGB").reduce(-(-picture.width // 800))
        self.board.add_image(name, np.array(shown), epoch, dataformats="HWC")
        self.board.flush()

    def histogram(self, name: str, epoch: int, values: np.ndarray) -> None:
        """Show how numbers of an epoch, of any shape, are spread."""
        self.board.add_histogram(name, values, epoch, bins=BOARD_BINS)
        self.board.flush()

    def end_epoch(self, epoch: int) -> None:
        """Know that all of this epoch has been shown."""

    def close(self, ended_well: bool) -> None:
        """End, because the run has made all its epochs, or because it was stopped or failed."""
        self.board.close()


def grouped(row: dict[str, float]) -> dict[str, float]:
    """Return a row with the first word of each name as its group: validate_ssim is validate/ssim."""
    return {name.replace("_", "/", 1): value for name, value in row.items()}


def _without_full_disks(otherwise: Callable, failed: threading.ExceptHookArgs) -> None:
    """Print no traceback of an error that TensorBoard's thread has met: the next `flush` raises it, too."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
        otherwise(failed)


class Service:
    """A service of another package. A subclass has TensorBoard's methods, and calls `sent` when it has sent a row."""

    package: str
    writes: str
    advice = "See to the service, or give another --log"
    errors = (Exception,)  # a service raises what it likes, its own errors and those of what it is made of
    watch = ""

    def __init__(self, folder: Path, config: dict):
        self.folder, self.settings = folder, config["settings"]
        path = folder / SERVICES
        known = as_declared(read_json(path, "what a training has written"), dict[str, dict[str, object]], str(path)
                            ) if path.exists() else {}
        found = known.get(self.package, {})
        self.epochs = as_declared(found.get("epochs", 0), int, f"{path}.epochs")
        """The number of epochs whose rows the service has."""
        self.run_id = as_declared(found.get("run", uuid.uuid4().hex), str, f"{path}.run")
        """The run's identity in the service."""

    def sent(self, epochs: int) -> None:
        """Keep that the service has the rows of these epochs."""
        self.epochs = epochs
        path = self.folder / SERVICES
        known = read_json(path, "what a training has written") if path.exists() else {}
        files.write_json(path, known | {self.package: {"run": self.run_id, "epochs": epochs}})

    def histogram(self, name: str, epoch: int, values: np.ndarray) -> None:
        """Show nothing, where the service has no histograms."""

    def end_epoch(self, epoch: int) -> None:
        """Know that all of this epoch has been shown."""


class Wandb(Service):
    """Writes to Weights & Biases, or into wandb/ in the run's folder, which `wandb sync` sends later.

    Without WANDB_MODE the run is sent at once where an API key is known, and else kept in the folder. WANDB_DIR,
    WANDB_PROJECT and WANDB_NAME come first, too. An epoch is one step of wandb, sent when all of the epoch has been
    shown. Where the service cannot be reached later on, wandb goes on trying, and keeps all in the folder.

    NOTE: wandb writes its file every 15 seconds: a run that is killed (not stopped) and was not online loses the epochs
    of so many seconds there. Each start has a file of its own in the folder, and `wandb sync` makes one run of them.
    """

    package = "wandb"
    writes = "to Weights & Biases"
    advice = "See to the service, or keep the figures in the run's folder: WANDB_MODE=offline"

    def __init__(self, folder: Path, epochs: int, config: dict):
        import wandb

        super().__init__(folder, config)
        self.wandb = wandb
        wandb.setup(wandb.Settings(silent=True))  # else it says some lines at each start
        mode = "online" if "WANDB_MODE" not in os.environ and wandb.login(prompt=False, verify=False) else "offline"
        given = {"mode": mode, "dir": str(folder), "project": self.settings["dataset"], "name": folder.name}
        self.run = wandb.init(
            id=self.run_id, resume="allow", config=parameters(config), allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, finish_timeout=SECONDS_TO_UPLOAD),
            **{name: value for name, value in given.items() if f"WANDB_{name.upper()}" not in os.environ})
        kept = Path(self.run.settings.wandb_dir)
        self.watch = self.run.url or (f"wandb sync {shlex.quote(str(kept))}/offline-run-*" if self.run.offline else "")
        self.sent(self.epochs)
        self.latest = self.epochs

    def row(self, epoch: int, row: dict[str, float]) -> None:
        """Show the figures of an epoch, when it ends."""
        self.run.log(grouped(row), step=epoch)
        self.latest = epoch

    def picture(self, name: str, epoch: int, picture: Image.Image) -> None:
        """Show a picture of an epoch, when it ends."""
        if epoch > self.epochs:
            self.run.log({name: self.wandb.Image(picture)}, step=epoch)

    def histogram(self, name: str, epoch: int, values: np.ndarray) -> None:
        """Show how numbers of an epoch, of any shape, are spread, when it ends."""
        if epoch > self.epochs:
            self.run.log({name: self.wandb.Histogram(values.flatten(), num_bins=BOARD_BINS)}, step=epoch)

    def end_epoch(self, epoch: int) -> None:
        """Send all that was shown of this epoch."""
        if epoch > self.epochs:
            self.run.log({}, step=epoch, commit=True)
            self.sent(epoch)

    def close(self, ended_well: bool) -> None:
        """End the run there; it may go on."""
        self.run.finish(exit_code=int(not ended_well))
        self.sent(self.latest)


class Mlflow(Service):
    """Writes to MLflow: to MLFLOW_TRACKING_URI, or into mlflow.db and mlflow/ in the run's folder.

    The experiment is MLFLOW_EXPERIMENT_NAME, or else the run's --dataset. MLflow has no histograms. It keeps the
    parameters that a run began with: those that may change when a run goes on, such as --epochs, stay the first.

    NOTE: pictures of one epoch may be shown twice, where a run went on from an older state; MLflow takes nothing back.
    """

    package = "mlflow"
    writes = "to MLflow"

    def __init__(self, folder: Path, epochs: int, config: dict):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        super().__init__(folder, config)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells how it makes its tables
        self.metric = mlflow.entities.Metric
        own = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or own
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.run_id, self.epochs = self._begin(uri == own, mlflow.entities.Param, config), 0
        self.sent(self.epochs)
        self.watch = (re.sub("//[^/@]*@", "//", uri) if uri.startswith("http") else  # without a password
                      f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite") else "")

    def _begin(self, is_own: bool, param: Callable, config: dict) -> str:
        """Return the id of a new run."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.settings["dataset"]
        found = self.client.get_experiment_by_name(name)
        place = (self.folder / "mlflow").resolve().as_uri() if is_own else None
        number = found.experiment_id if found else self.client.create_experiment(name, artifact_location=place)
        run = self.client.create_run(number, run_name=self.folder.name).info.run_id
        self.client.log_batch(run, params=[param(key, str(value)) for key, value in parameters(config).items()])
        return run

    def row(self, epoch: int, row: dict[str, float]) -> None:
        """Show the figures of an epoch."""
        now = int(1000 * time.time())
        self.client.log_batch(self.run_id, metrics=[self.metric(name, float(value), now, epoch)
                                                    for name, value in grouped(row).items()])
        self.sent(epoch)

    def picture(self, name: str, epoch: int, picture: Image.Image) -> None:
        """Show a picture of an epoch."""
        self.client.log_image(self.run_id, picture, key=name, step=epoch)

    def close(self, ended_well: bool) -> None:
        """End the run there; it may go on."""
        self.client.set_terminated(self.run_id, "FINISHED" if ended_well else "KILLED")


class Trackio(Service):
    """Writes to Trackio, whose files are in TRACKIO_DIR, by default in Hugging Face's cache; TRACKIO_SPACE_ID is known.

    Trackio knows a run by its name, so the name ends with a part of the run's identity.

    NOTE: Trackio never fails: what it cannot write or send it keeps for later, or warns that it is lost. Pictures of
    one epoch may be shown twice, where a run went on from an older state.
    """

    package = "trackio"
    writes = "to Trackio"

    def __init__(self, folder: Path, epochs: int, config: dict):
        import trackio

        super().__init__(folder, config)
        self.trackio, project = trackio, self.settings["dataset"]
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(project=project, name=f"{folder.name}-{self.run_id[:8]}", resume="allow",
                                    config=parameters(config), embed=False)
        self.watch = f"trackio show --project {shlex.quote(project)}"
        self.sent(self.epochs)

    def row(self, epoch: int, row: dict[str, float]) -> None:
        """Show the figures of an epoch."""
        # Trackio keeps "step" for itself.
        self.run.log({"steps" if name == "step" else name: value for name, value in grouped(row).items()}, step=epoch)
        self.sent(epoch)

    def picture(self, name: str, epoch: int, picture: Image.Image) -> None:
        """Show a picture of an epoch."""
        self.run.log({name: self.trackio.Image(picture.convert("RGB"))}, step=epoch)

    def histogram(self, name: str, epoch: int, values: np.ndarray) -> None:
        """Show how numbers of an epoch, of any shape, are spread."""
        self.run.log({name: self.trackio.Histogram(values, num_bins=BOARD_BINS)}, step=epoch)

    def close(self, ended_well: bool) -> None:
        """End the run there; it may go on."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()


def parameters(config: dict) -> dict[str, object]:
    """Return what a service shows as a run's parameters: its settings, nothing about people."""
    return {**config["settings"], "kind": config["kind"], "global_batch": config["global_batch"]}


WRITERS: dict[str, type] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
NONE = "none"
CHOICE = ("log", lambda names: names in ((), (NONE,)) or (len(set(names)) == len(names) and set(names) <= {*WRITERS}),
          f"{NONE}, or some of {', '.join(WRITERS)}, each once", "The default is tensorboard.")
"""The rule of the setting --log."""


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError if the package of a writer is not installed; needs no data and imports nothing."""
    for name in filter(WRITERS.get, names):
        package = WRITERS[name].package
        spec = importlib.util.find_spec(package)
        # wandb leaves a folder of its name where it ran, which Python takes for a package without a file.
        expect(spec is not None and spec.origin is not None, f"--log {name}", f"the package {package}", "none",
               f"Install it: pip install -e '.[{name}]'")
