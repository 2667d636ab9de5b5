"""What each service of --log gets from a run, once, also where the run was stopped; and how its absence is told.

wandb (offline) and MLflow (a folder) are the real packages; Trackio too where it is installed, and else one made here.
"""

import json
import os
import sqlite3
import struct
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from ranks import run_on_ranks
from straight_line import Line

from vqvae2.common import distributed
from vqvae2.common.errors import UserError
from vqvae2.runs import writers
from vqvae2.runs.log import RunLog
from vqvae2.training.settings import TrainingSettings

SMALL = Image.new("RGB", (40, 30), (10, 20, 30))
CONFIG = {"kind": "line", "global_batch": 8, "settings": {"dataset": "oasis", "seed": 5, "split": [64, 16, 20]},
          "training_subjects": ["sub-01"]}
ROWS = [{"epoch": epoch, "step": 5 * epoch, "train_loss": 1 / epoch, "validate_loss": 2 / epoch}
        for epoch in range(1, 6)]
OWN = ("WANDB_", "MLFLOW_", "TRACKIO_")


class Pictured(Line):
    """Shows a picture and a histogram after each epoch."""

    def pictures(self, epoch):
        self.log.picture("odd", epoch, SMALL, "top")
        self.log.histogram("use/top", epoch, torch.arange(4))


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """No key, no setting and no file of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(OWN)]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(tmp_path):
    """Train the line for some epochs, or go on with it; return its folder."""
    def train(epochs, *names):
        trainer = Pictured(TrainingSettings(savename="line", epochs=epochs, batch=8, results=tmp_path / "results",
                                            threads=1, precision="fp32", log=names))
        trainer.run()
        return trainer.folder
    return train


def show(folder, name, epochs, rows):
    """Show rows, and a picture for each, as a start of a run does of which `epochs` are done."""
    log = RunLog(folder, epochs, (name,), CONFIG)
    for number in range(epochs + 1, len(rows) + 1):
        log.write(rows[:number], "")
        log.picture("odd", number, SMALL)
        log.end_epoch(number)
    log.close(ended_well=True)
    return log.writers[0]


@pytest.fixture
def wandb():
    module = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    yield module
    module.teardown()


@pytest.fixture
def mlflow():
    return pytest.importorskip("mlflow", reason="the extra mlflow is not installed")


def records(path):
    """The records of a .wandb file: LevelDB's log format after 7 bytes of its own, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[at:at + 7])
        whole += content[at + 7:at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def offline_runs(folder):
    """The starts of a run, in order, each with the run's id, its config, and {step: figures} of its history."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        run, steps = None, {}
        for record in records(path):
            if record.HasField("run"):
                run = record.run
            elif record.HasField("history"):
                figures = {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                           for item in record.history.item}
                assert figures["_step"] not in steps
                steps[figures["_step"]] = figures
        found.append((run, {item.key: json.loads(item.value_json) for item in run.config.update}, steps))
    return found


class TestWandb:
    def test_without_a_key_an_epoch_is_a_step_in_the_runs_folder_and_a_run_that_goes_on_is_the_same_run(
            self, wandb, trained, capsys):
        trained(2, "wandb")
        folder = trained(3, "wandb")
        (first, config, before), (second, _, after) = offline_runs(folder)
        assert first.run_id == second.run_id != "line"
        assert (first.project, first.display_name) == ("oasis", "line")
        assert (config["kind"], config["global_batch"]) == ("line", 8)
        assert (sorted(before), sorted(after)) == ([1, 2], [3])
        figures = before[1]
        assert min(figures["train/loss"], figures["validate/loss"]) > 0
        assert (figures["odd/top/_type"], figures["use/top/_type"]) == ("image-file", "histogram")
        assert f"watch it: wandb sync {folder}/wandb/offline-run-*" in capsys.readouterr().out

    def test_a_row_that_the_state_lacks_is_not_sent_again(self, wandb, tmp_path):
        show(tmp_path, "wandb", 0, ROWS[:3])
        show(tmp_path, "wandb", 1, ROWS[:4])
        assert [sorted(steps) for *_, steps in offline_runs(tmp_path)] == [[1, 2, 3], [4]]

    def test_the_last_epoch_before_a_stop_is_sent_once(self, wandb, tmp_path):
        log = RunLog(tmp_path, 0, ("wandb",), CONFIG)
        log.write(ROWS[:1], "")
        log.close(ended_well=False)
        show(tmp_path, "wandb", 1, ROWS[:2])
        assert [sorted(steps) for *_, steps in offline_runs(tmp_path)] == [[1], [2]]

    def test_the_users_environment_comes_first(self, wandb, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        for name, value in (("DIR", tmp_path / "elsewhere"), ("PROJECT", "mine"), ("MODE", "offline")):
            monkeypatch.setenv(f"WANDB_{name}", str(value))
        writer = show(tmp_path / "run", "wandb", 0, ROWS[:1])
        ((run, *_),) = offline_runs(tmp_path / "elsewhere")
        assert run.project == "mine"
        assert not (tmp_path / "run/wandb").exists()
        assert writer.watch == f"wandb sync {tmp_path}/elsewhere/wandb/offline-run-*"

    def test_a_service_that_is_lost_while_writing_ends_the_run_with_one_line_and_keeps_its_state(
            self, wandb, trained, monkeypatch):
        trained(1, "wandb")

        def lost(*_, **__):
            raise wandb.Error("connection lost.")

        monkeypatch.setattr(wandb.Run, "log", lost)
        with pytest.raises(UserError, match=r"line: expected to write to Weights & Biases, found connection lost\. See "
                                            r"to the service, .* WANDB_MODE=offline; the last good state is kept\."):
            trained(2, "wandb")
        monkeypatch.undo()
        folder = trained(3, "none")
        assert (folder / "log.csv").read_text().count("\n") == 4


class TestMlflow:
    def runs_in(self, mlflow, folder):
        client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("oasis")
        return client, client.search_runs([experiment.experiment_id])

    def test_all_starts_of_a_run_are_one_run_in_its_folder(self, mlflow, trained, capsys):
        trained(2, "mlflow")
        folder = trained(3, "mlflow")
        client, (run,) = self.runs_in(mlflow, folder)
        assert (run.info.run_name, run.info.status) == ("line", "FINISHED")
        assert (run.data.params["kind"], run.data.params["learning_rate"]) == ("line", "0.001")
        for name in ("train/loss", "validate/loss"):
            assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]
        steps = [file.path.split("+")[2] for file in client.list_artifacts(run.info.run_id, "images")
                 if file.path.endswith(".png")]
        assert sorted(steps) == ["1", "2", "3"]
        assert list((folder / "mlflow").rglob("*.png"))
        uri = f"sqlite:///{folder}/mlflow.db"
        assert f"watch it: mlflow ui --backend-store-uri {uri}\n" in capsys.readouterr().out

    def test_a_row_that_the_state_lacks_is_not_sent_again_and_rows_from_before_it_was_chosen_are(
            self, mlflow, tmp_path):
        log = RunLog(tmp_path, 2, ("mlflow",), CONFIG)
        log.write(ROWS[:3], "")
        log.close(ended_well=False)
        show(tmp_path, "mlflow", 1, ROWS[:4])
        client, (run,) = self.runs_in(mlflow, tmp_path)
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(metric.step, metric.value) for metric in history] == [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
        pictures = client.list_artifacts(run.info.run_id, "images")
        assert sorted(file.path.split("+")[2] for file in pictures if file.path.endswith(".png")) == ["3", "4"]

    def test_nothing_about_people_is_a_parameter(self, mlflow, tmp_path):
        show(tmp_path, "mlflow", 0, ROWS[:1])
        _, (run,) = self.runs_in(mlflow, tmp_path)
        assert run.data.params == {"kind": "line", "global_batch": "8", "dataset": "oasis", "seed": "5",
                                   "split": "[64, 16, 20]"}

    def test_two_runs_of_one_name_are_two_in_a_shared_store(self, mlflow, tmp_path, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        for person in ("one", "two"):
            show(tmp_path / person / "brain", "mlflow", 0, ROWS[:1])
            assert not (tmp_path / person / "brain/mlflow.db").exists()
        _, runs = self.runs_in(mlflow, tmp_path)
        assert [run.info.run_name for run in runs] == ["brain", "brain"]

    def test_a_store_that_does_not_know_the_run_gets_all_its_rows(self, mlflow, tmp_path, monkeypatch):
        show(tmp_path, "mlflow", 0, ROWS[:2])
        other = tmp_path / "other"
        other.mkdir()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}/mlflow.db")
        show(tmp_path, "mlflow", 2, ROWS[:3])
        client, (run,) = self.runs_in(mlflow, other)
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, "epoch")] == [1, 2, 3]

    def test_a_server_that_is_not_there_is_one_line_before_training(self, mlflow, trained, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(UserError, match=r"to write to MLflow, found API request to http://127\.0\.0\.1:9.* "
                                            "See to the service, or give another --log"):
            trained(1, "mlflow")


FAKE_TRACKIO = """
import json, pathlib

def said(*words):
    with open("trackio.jsonl", "a") as file:
        file.write(json.dumps(words) + "\\n")

class Image:
    def __init__(self, picture): self.shown = ["image", *picture.size]

class Histogram:
    def __init__(self, values, num_bins): self.shown = ["histogram", len(values)]

class Run:
    def log(self, figures, step):
        said("log", step, {name: getattr(value, "shown", value) for name, value in figures.items()})

def init(**given):
    print("* Trackio project initialized")
    said("init", given)
    return Run()

def finish():
    said("finish")
"""


@pytest.fixture
def fake_trackio(tmp_path, monkeypatch):
    real = sys.modules.pop("trackio", None)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/trackio.py").write_text(FAKE_TRACKIO)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    del sys.modules["trackio"]
    sys.modules.update({} if real is None else {"trackio": real})


class TestTrackio:
    def test_its_run_has_a_name_of_its_own_and_goes_on(self, fake_trackio, trained, capsys):
        trained(1, "trackio")
        folder = trained(2, "trackio")
        said = [json.loads(line) for line in Path("trackio.jsonl").read_text().splitlines()]
        starts = [words[1] for words in said if words[0] == "init"]
        own = json.loads((folder / writers.SERVICES).read_text())["trackio"]["run"]
        assert [(start["project"], start["name"], start["resume"]) for start in starts] == [
            ("oasis", f"line-{own[:8]}", "allow")] * 2
        assert starts[0]["config"]["learning_rate"] == 0.001
        rows = [(step, figures) for word, step, figures in [words for words in said if words[0] == "log"]]
        assert [step for step, figures in rows if "train/loss" in figures] == [1, 2]
        assert "step" not in rows[0][1]
        assert (1, {"odd/top": ["image", 40, 30]}) in rows
        assert (2, {"use/top": ["histogram", 4]}) in rows
        assert said[-1] == ["finish"]
        out = capsys.readouterr().out
        assert "watch it: trackio show --project oasis\n" in out
        assert "* Trackio" not in out

    def test_the_real_one_has_each_row_once(self, tmp_path):
        pytest.importorskip("trackio", reason="trackio is not among the pinned packages: it needs pillow below 13")
        show(tmp_path / "brain", "trackio", 0, ROWS[:3])
        show(tmp_path / "brain", "trackio", 2, ROWS[:4])
        (path,) = Path(os.environ["TRACKIO_DIR"]).glob("*.db")
        found = sqlite3.connect(path).execute("select run_name, step, metrics from metrics order by id").fetchall()
        assert [step for *_, step, figures in found if b"train/loss" in figures] == [1, 2, 3, 4]
        assert len({name for name, *_ in found}) == 1


def refusal_of_a_full_disk(method, results):
    """Train on a rank of several, where rank 0's writer cannot write; return the refusal, and whose writer it was."""
    def full(*_):
        begun.append(distributed.rank())
        raise OSError(28, "No space left on device")

    begun = []
    writers.WRITERS["full"] = type("Full", (writers.TensorBoard,), {method: full})
    try:
        Pictured(TrainingSettings(savename="line", epochs=1, batch=8, results=results, threads=1, log=("full",))).run()
    except UserError as error:
        return str(error), begun


@pytest.mark.parametrize("method", ["__init__", "row", "picture"])
def test_all_ranks_end_with_one_line_where_rank_0_alone_cannot_write(tmp_path, method):
    (first, begun), (second, other) = run_on_ranks(2, refusal_of_a_full_disk, method, tmp_path)
    assert first == second
    assert "expected to write TensorBoard's file, found No space left on device. Free some space" in first
    assert (begun, other) == ([0], [])


class TestChoice:
    @pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("trackio", "trackio")])
    def test_a_missing_package_names_the_extra_before_anything_is_made(
            self, trained, tmp_path, monkeypatch, name, package):
        """A folder that wandb left where it ran is no package."""
        (tmp_path / package).mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
        monkeypatch.delitem(sys.modules, package, raising=False)
        with pytest.raises(UserError, match=rf"^--log {name}: expected the package {package}, found none\. "
                                            rf"Install it: pip install -e '\.\[{name}\]'$"):
            trained(1, name)
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize("names", [("wandb", "papers"), ("none", "mlflow"), ("wandb", "wandb")])
    def test_other_words_are_refused(self, names):
        with pytest.raises(UserError, match="--log: expected none, or some of tensorboard, wandb, mlflow, trackio, "
                                            f"each once, found {' '.join(names)}"):
            TrainingSettings(savename="a", epochs=1, batch=1, log=names)

    def test_a_run_may_go_on_with_another_choice_and_none_writes_nothing(self, trained, capsys):
        folder = trained(1, "none")
        assert not list(folder.glob("events.*"))
        assert "watch it" not in capsys.readouterr().out
        trained(2, "tensorboard")
        assert len(list(folder.glob("events.*"))) == 1
        assert f"watch it: tensorboard --logdir {folder.parent}\n" in capsys.readouterr().out

    def test_what_to_type_can_be_pasted(self, tmp_path):
        log = RunLog(tmp_path / "my results/oasis/brain", 0)
        log.close(ended_well=True)
        assert log.writers[0].watch == f"tensorboard --logdir '{tmp_path}/my results/oasis'"

    def test_a_damaged_record_of_services_says_what_to_do(self, mlflow, tmp_path):
        (tmp_path / writers.SERVICES).write_text('{"mlflow": {"run": 5}}')
        with pytest.raises(UserError, match=r"log-services\.json\.run: expected text, found 5\. Copy the file again"):
            RunLog(tmp_path, 0, ("mlflow",), CONFIG)
