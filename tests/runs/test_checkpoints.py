"""Files of a run: whole or not there at all, read without executing anything, found by name."""

import errno
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import same_process
import torch
from conftest import files_in

from vqvae2.commands import status as status_command
from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.evaluation.feature_training import FeatureTrainer
from vqvae2.runs import state as run_state
from vqvae2.runs import weights as checkpoints
from vqvae2.runs.log import read_log
from vqvae2.training.decoders import DecoderTrainer
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.vqvae import VqvaeTrainer

TENSORS = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3, 4])}
STATE = {"model": {"weight": torch.arange(4.0)}, "epoch": 3, "best": 0.5, "rows": [{"epoch": 1, "ssim": 0.9}],
         "sums": {}, "average": None}


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def full_disk():
    """No file can grow beyond 5000 bytes: to a writer this looks like a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def large():
    return {"weight": torch.zeros(10_000)}


class TestWriting:
    def test_a_file_appears_with_its_folder_and_nothing_beside_it(self, tmp_path):
        files.write_text(tmp_path / "new" / "folder" / "a.txt", "0…1\n")
        assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == "0…1\n".encode()
        assert list(files_in(tmp_path)) == ["new/folder/a.txt"]

    @pytest.mark.parametrize(("error", "raised", "said"), [
        (OSError(errno.ENOSPC, "No space left on device"), UserError,
         r"a\.txt: expected to write this file, found No space left on device\. Free some space .* is kept"),
        (ValueError("a bug"), ValueError, "a bug"), (KeyboardInterrupt("now"), KeyboardInterrupt, "now")])
    def test_a_writer_that_fails_leaves_the_old_file_and_no_other(self, error, raised, said, tmp_path):
        def write(path):
            path.write_text("half of the new o")
            raise error

        (tmp_path / "a.txt").write_text("the old one")
        before = files_in(tmp_path)
        with pytest.raises(raised, match=said):
            files.write_atomically(tmp_path / "a.txt", write)
        assert files_in(tmp_path) == before

    @pytest.mark.parametrize(("name", "write"), [
        ("state.pt", lambda path: run_state.save_state(path.parent, large())),
        ("w", lambda path: checkpoints.save_weights(path, large(), {})),
        ("a.json", lambda path: files.write_json(path, ["x"] * 5000))])
    def test_a_full_disk_is_one_line_and_keeps_what_was_there(self, name, write, tmp_path, full_disk):
        (tmp_path / name).write_text("the old one")
        with pytest.raises(UserError, match=rf"{name}: expected to write this file, found File too large\. Free some"):
            write(tmp_path / name)
        assert files_in(tmp_path) == {name: hashlib.sha256(b"the old one").hexdigest()}

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"file/a\.txt: expected to write this file, found .*(exists|directory)"):
            files.write_text(tmp_path / "file" / "a.txt", "")

    @pytest.mark.parametrize("out", ["file", "file/new", "file/new/deeper"])
    def test_a_file_in_the_way_of_a_folder_is_found_before_any_work(self, out, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=rf"--out .*{out}: expected a folder or nothing, found a file .*file\."):
            files.check_folder(tmp_path / out, "--out")
        files.check_folder(tmp_path, "--out")
        files.check_folder(tmp_path / "new" / "folder", "--out")

    def test_json_has_no_nan(self, tmp_path):
        with pytest.raises(ValueError, match="Out of range float"):
            files.write_json(tmp_path / "a.json", {"ssim": float("nan")})
        assert files_in(tmp_path) == {}

    def test_rows_have_the_columns_of_all_rows_in_the_order_of_their_coming(self, tmp_path):
        files.write_rows(tmp_path / "log.csv", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "used": 7, "loss": 0.25}])
        assert (tmp_path / "log.csv").read_text() == "epoch,loss,used\n1,0.5,\n2,0.25,7\n"


class TestWeights:
    def test_weights_come_back_with_their_config(self, tmp_path):
        shared = torch.arange(6.0).view(2, 3)
        tensors = {"a": shared, "b.half": torch.ones(2).bfloat16(), "tied": shared, "turned": shared.T,
                   "scalar": torch.tensor(True)}
        config = {"kind": "vqvae", "settings": {"size": None, "split": [64, 16, 20]}}
        checkpoints.save_weights(tmp_path / "w", tensors, config)
        found, found_config = checkpoints.load_weights(tmp_path / "w")
        assert found_config == config
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)

    def test_a_torn_file_is_refused_wherever_it_is_torn(self, tmp_path):
        checkpoints.save_weights(tmp_path / "w", {"a": torch.arange(20.0)}, {"kind": "vqvae"})
        whole = (tmp_path / "w").read_bytes()
        for length in (0, 1, 8, 20, len(whole) // 2, len(whole) - 1):
            (tmp_path / "w").write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"w: expected a weights file .* found .+\. Check the name, or train"):
                checkpoints.load_weights(tmp_path / "w")

    def test_weights_of_another_project_are_refused(self, tmp_path):
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(UserError, match=r"w: expected a weights file of this project, found no config\. Check"):
            checkpoints.load_weights(tmp_path / "w")

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"w: expected a weights file .* found [Nn]o such file.* Check the name"):
            checkpoints.load_weights(tmp_path / "w")


class TestHash:
    """SHA-256 over names, shapes and bytes in the order of the names (design, section 4)."""

    def test_is_what_hashlib_says(self):
        expected = hashlib.sha256(b"a (2,) torch.int64" + np.array([3, 4], "<i8").tobytes() +
                                  b"b (1, 2) torch.float32" + np.array([1, 2], "<f4").tobytes()).hexdigest()
        assert checkpoints.weights_hash(TENSORS) == expected

    def test_does_not_depend_on_the_order_or_on_how_tensors_lie_in_memory(self):
        turned = {"a": TENSORS["a"], "b": torch.tensor([[1.0], [2.0]]).T}
        assert checkpoints.weights_hash(turned) == checkpoints.weights_hash(TENSORS)

    @pytest.mark.parametrize("change", [
        {"b": torch.tensor([[1.0, 2.0000002]])}, {"b": torch.tensor([[1.0], [2.0]])}, {"b": torch.tensor([1.0, 2.0])},
        {"b": torch.tensor([[-1.0, 2.0]])}, {"a": torch.tensor([3, 4], dtype=torch.int32)}, {"c": torch.zeros(0)}],
        ids=["bytes", "shape", "dimensions", "sign", "type", "another name"])
    def test_changes_with_any_name_shape_or_byte(self, change):
        assert checkpoints.weights_hash({**TENSORS, **change}) != checkpoints.weights_hash(TENSORS)

    def test_changes_when_two_tensors_change_names(self):
        zeros, two = torch.zeros(2), torch.ones(2)
        assert checkpoints.weights_hash({"a": zeros, "b": two}) != checkpoints.weights_hash({"a": two, "b": zeros})


def state_at(step: int, run_id: str = "this run") -> dict:
    return {**STATE, "step": step, "run_id": run_id}


class TestState:
    def test_a_state_comes_back(self, tmp_path):
        run_state.save_state(tmp_path, STATE)
        found = run_state.load_state(tmp_path / "state.pt")
        assert torch.equal(found["model"].pop("weight"), STATE["model"]["weight"])
        assert found == {**STATE, "model": {}}

    def test_another_program_reads_it_with_torch_alone(self, tmp_path):
        run_state.save_state(tmp_path, STATE)
        assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 3

    @pytest.mark.parametrize("sealed", [False, True])
    @pytest.mark.parametrize("write", [
        lambda path, value: path.write_bytes(pickle.dumps(value)), lambda path, value: torch.save(value, path),
        lambda path, value: torch.save({"model": {}, "rows": [value]}, path)],
        ids=["a bare pickle", "a torch file", "deep in a state"])
    def test_a_malicious_pickle_is_refused_in_one_line_and_executes_nothing(self, write, sealed, tmp_path, capfd,
                                                                            recwarn):
        path = tmp_path / "state.pt"
        write(path, Malicious(tmp_path / "executed"))
        if sealed:  # whoever writes an evil file can write its checksum too
            path.write_bytes(path.read_bytes() + run_state.SEAL + hashlib.sha256(path.read_bytes()).digest())
        with pytest.raises(UserError, match=r"state\.pt: expected a training state .* found .+\. Delete it to train"):
            run_state.load_state(path)
        assert not (tmp_path / "executed").exists()
        assert capfd.readouterr() == ("", "")
        assert not recwarn.list

    def test_a_file_that_is_torn_anywhere_or_has_one_wrong_bit_is_refused(self, tmp_path):
        run_state.save_state(tmp_path, STATE)
        path = tmp_path / "state.pt"
        whole = path.read_bytes()
        damaged = [whole[:length] for length in range(0, len(whole), 97)] + [whole[:-1], whole + b"x"]
        damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:] for at in range(0, len(whole), 53)]
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"expected a training state .* found an? (torn or foreign|empty) file"
                                                r"\. Delete it to train"):
                run_state.load_state(path)

    def test_a_missing_state_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"s: expected a training state .* found no such file\. Delete it"):
            run_state.load_state(tmp_path / "s")

    def test_the_one_before_the_last_is_kept(self, tmp_path):
        for step in (1, 2, 3):
            run_state.save_state(tmp_path, state_at(step))
        assert sorted(files_in(tmp_path)) == ["state-before.pt", "state.pt"]
        assert run_state.load_state(tmp_path / "state-before.pt")["step"] == 2
        assert run_state.load_last_state(tmp_path)[0]["step"] == 3

    @pytest.mark.parametrize("tear", [lambda content: b"", lambda content: content[:500],
                                      lambda content: content[:200] + b"?" + content[201:],
                                      lambda content: b"x" * 9999], ids=["empty", "truncated", "damaged", "foreign"])
    def test_a_bad_last_state_is_passed_over_for_the_one_before_with_a_warning(self, tear, tmp_path):
        for step in (1, 2):
            run_state.save_state(tmp_path, state_at(step))
        path = tmp_path / "state.pt"
        path.write_bytes(tear(path.read_bytes()))
        state, warning = run_state.load_last_state(tmp_path, "this run")
        assert state["step"] == 1
        assert "state.pt: expected a training state" in warning
        assert "Going on from" in warning
        assert "state-before.pt" in warning

    def test_a_state_of_another_run_is_foreign(self, tmp_path):
        for step, run in ((1, "this run"), (2, "another")):
            run_state.save_state(tmp_path, state_at(step, run))
        state, warning = run_state.load_last_state(tmp_path, "this run")
        assert state["step"] == 1
        assert "expected a training state of this run, found one of another run" in warning

    def test_a_kill_between_the_two_renames_loses_nothing(self, tmp_path):
        run_state.save_state(tmp_path, state_at(1))
        (tmp_path / "state.pt").rename(tmp_path / "state-before.pt")
        state, warning = run_state.load_last_state(tmp_path)
        assert (state["step"], warning) == (1, "")

    def test_without_any_state_there_is_none_and_with_bad_ones_only_all_are_named(self, tmp_path):
        assert run_state.load_last_state(tmp_path) == (None, "")
        (tmp_path / "state.pt").write_bytes(b"x")
        (tmp_path / "state-before.pt").write_bytes(b"")
        with pytest.raises(UserError, match=r"state\.pt: .* found a torn or foreign file\. .*state-before\.pt: .* "
                                            r"found an empty file\. Delete what is named here to train"):
            run_state.load_last_state(tmp_path)


class TestWhereARunStands:
    def test_a_run_is_finished_or_not_or_cannot_be_told(self, tmp_path):
        files.write_json(tmp_path / "config.json", {"settings": {"epochs": 3}})
        assert same_process.ended("status", tmp_path) == (1, "not finished: 0 of 3 epochs, 0 steps\n")
        run_state.save_state(tmp_path, {**STATE, "epoch": 2, "step": 40})
        assert same_process.ended("status", tmp_path) == (1, "not finished: 2 of 3 epochs, 40 steps\n")
        run_state.save_state(tmp_path, {**STATE, "epoch": 3, "step": 60})
        assert same_process.ended("status", tmp_path) == (0, "finished: 3 of 3 epochs, 60 steps\n")
        status, said = same_process.ended("status", tmp_path / "nowhere")
        assert status == 2
        assert re.search(r"nowhere: expected a folder with config\.json, or a name in results/\*/ or pretrained/, "
                         r"found only .*\. Check the name\.$", said.strip())
        (tmp_path / "empty").mkdir()
        assert re.search(r"empty: expected a folder with .*, found a folder without config\.json\. Check the name\.$",
                         same_process.ended("status", tmp_path / "empty")[1].strip())

    def test_the_best_epoch_is_that_of_the_kept_weights_and_epochs_have_a_time(self, tiny_run, capsys):
        for folder, by in ((tiny_run.vqvae, "reconstruction"), (tiny_run.top, "bits_per_code")):
            with pytest.raises(SystemExit, match="False"):
                status_command.main([str(folder)])
            best = run_state.load_last_state(folder)[0]["best"]
            rows = [row for row in read_log(folder / "log.csv") if float(row[f"validate_{by}"]) == best]
            _, second, third = capsys.readouterr().out.splitlines()
            assert second == f"best epoch {rows[0]['epoch']}: {by} {best:.4g} on validation images"
            assert re.fullmatch(r"an epoch took [\d.]+ s \(median, without validation\), all together [\d.]+ "
                                r"(s|min|h)", third)

    def test_an_epoch_of_a_vqvae_before_its_codebooks_were_placed_is_not_its_best(self):
        rows = [{"epoch": str(number), "validate_reconstruction": score, "top_used": used}
                for number, (score, used) in enumerate([("0.1", ""), ("0.4", "9"), ("0.3", "9"), ("0.5", "9")], 1)]
        assert status_command.of_epochs(rows) == ["best epoch 3: reconstruction 0.3 on validation images"]
        assert status_command.of_epochs(rows[:1]) == []

    def test_every_training_keeps_its_weights_by_a_figure_that_status_knows(self):
        for trainer, columns in ((VqvaeTrainer, ("reconstruction", "loss")), (PriorTrainer, ("bits_per_code", "loss")),
                                 (DecoderTrainer, ("texture", "loss")), (FeatureTrainer, ("loss",))):
            row = {"epoch": "1", **{f"validate_{name}": "1" for name in columns}}
            assert status_command.of_epochs([row]) == [f"best epoch 1: {trainer.best_by} 1 on validation images"]

    def test_published_weights_are_known_by_their_name_and_stand_where_their_log_says(self, tmp_path, monkeypatch):
        monkeypatch.chdir(Path(__file__).parents[2])
        said = "finished: 30 of 30 epochs, 3840 steps, weights without a state to go on from\n"
        status, line = same_process.ended("status", "vqvae-64")
        assert (status, line.splitlines(keepends=True)[0]) == (0, said)
        assert "\nbest epoch 29: reconstruction 0.003442 on" in line
        shutil.copytree(Path(__file__).parents[2] / "pretrained" / "vqvae-64", tmp_path / "cut")
        lines = (tmp_path / "cut" / "log.csv").read_text().splitlines(keepends=True)
        (tmp_path / "cut" / "log.csv").write_text("".join(lines[:5]))
        (tmp_path / "spoilt").mkdir()
        for path in (tmp_path / "cut").iterdir():
            shutil.copy(path, tmp_path / "spoilt")
        (tmp_path / "spoilt" / "log.csv").write_text("epoch,step\n1,inf\n")
        status, line = same_process.ended("status", tmp_path / "spoilt")
        assert status == 2
        assert "log.csv: expected a table of numbers that a training has written, found a number that is not" in line
        status, line = same_process.ended("status", tmp_path / "cut")
        assert (status, line.splitlines(keepends=True)[0]) == (
            1, f"not {said}".replace("30 of", "4 of").replace("3840", "512"))


class TestConfig:
    def test_a_config_comes_back(self, tmp_path):
        files.write_json(tmp_path / "config.json", {"kind": "vqvae", "settings": {"size": None}})
        assert checkpoints.read_config(tmp_path) == {"kind": "vqvae", "settings": {"size": None}}

    @pytest.mark.parametrize(("content", "found"), [
        (None, "no such file"), (b'{"kind": ', "Expecting value"), (b"\xff\xfe", "can't decode")])
    def test_what_is_no_config_is_refused(self, content, found, tmp_path):
        if content is not None:
            (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=rf"config\.json: expected the settings of a run, found .*{found}.* Point"):
            checkpoints.read_config(tmp_path)


class TestFindRun:
    @pytest.fixture(autouse=True)
    def runs(self, apart):
        for folder in ("results/oasis/brain", "results/folder/brain", "results/oasis/other", "pretrained/vqvae-128"):
            Path(folder).mkdir(parents=True)
            (Path(folder) / checkpoints.WEIGHTS).touch()
        Path("results/oasis/begun").mkdir()

    @pytest.mark.parametrize(("name", "folder"), [
        ("other", "results/oasis/other"), ("vqvae-128", "pretrained/vqvae-128"),
        ("results/oasis/brain", "results/oasis/brain"), ("results/folder/brain/", "results/folder/brain"),
        ("./pretrained/vqvae-128", "pretrained/vqvae-128")])
    def test_a_run_is_found_by_its_name_or_its_path(self, name, folder):
        assert checkpoints.find_run(name, "--vqvae") == Path(folder)

    def test_home_is_understood(self, monkeypatch):
        monkeypatch.setenv("HOME", str(Path("results").resolve()))
        assert checkpoints.find_run("~/oasis/other", "--vqvae") == Path("results/oasis/other").resolve()

    def test_two_runs_of_one_name_are_both_named(self):
        with pytest.raises(UserError, match=r"^--top brain: expected one run of this name, found results/folder/brain, "
                                            r"results/oasis/brain\. Give the path of one\.$"):
            checkpoints.find_run("brain", "--top")

    def test_a_run_and_its_published_copy_are_one_and_the_run_itself_is_taken(self):
        tensors = {"weight": torch.arange(3)}
        for folder in ("pretrained/brain", "results/oasis/brain"):
            Path(folder).mkdir(exist_ok=True)
            checkpoints.save_weights(Path(folder) / checkpoints.WEIGHTS, tensors, {"settings": {}, "where": folder})
        (Path("results/folder/brain") / checkpoints.WEIGHTS).unlink()
        assert checkpoints.find_run("brain", "--vqvae") == Path("results/oasis/brain")
        elsewhere = Path("results").resolve()  # its name sorts before "pretrained"
        assert checkpoints.find_run("brain", "--vqvae", elsewhere) == elsewhere / "oasis" / "brain"
        other = {"weight": torch.zeros(3)}
        checkpoints.save_weights(Path("pretrained/brain") / checkpoints.WEIGHTS, other, {"settings": {}})
        with pytest.raises(UserError, match=r"found pretrained/brain, results/oasis/brain\."):
            checkpoints.find_run("brain", "--vqvae")

    @pytest.mark.parametrize("name", ["brian", "begun"], ids=["unknown", "no epoch has ended"])
    def test_a_name_without_a_run_lists_those_that_there_are(self, name):
        with pytest.raises(UserError, match=rf"^--vqvae {name}: expected a folder with model\.safetensors, or a name "
                                            r"in results/\*/ or pretrained/, found only brain, other, vqvae-128\. "
                                            r"Check the name, or wait for the first epoch to end\.$"):
            checkpoints.find_run(name, "--vqvae")

    def test_without_any_run_that_is_said(self, tmp_path):
        for weights in Path().rglob(checkpoints.WEIGHTS):
            weights.unlink()
        with pytest.raises(UserError, match=r"^--vqvae brain: .* found no run at all\. Check the name"):
            checkpoints.find_run("brain", "--vqvae")

    def test_other_results_are_looked_up_where_they_are(self, tmp_path):
        Path("results").rename("elsewhere")
        assert checkpoints.find_run("other", "--vqvae", Path("elsewhere")) == Path("elsewhere/oasis/other")


def test_versions_are_plain_text_and_name_what_a_result_depends_on():
    found = checkpoints.versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["numpy"] == np.__version__
    assert json.loads(json.dumps(found)) == found
