"""The base class trains what a 20-line subclass describes; it stops, goes on and refuses as it says."""

import csv
import os
import shutil
import signal

import pytest
import torch
from straight_line import Line
from torch import nn

from vqvae2.common import folder_lock
from vqvae2.common.errors import Stopped, UserError
from vqvae2.runs import state as run_state
from vqvae2.runs import weights as checkpoints
from vqvae2.training.settings import TrainingSettings
from vqvae2.training.trainer import Trainer


class Interrupted(Line):
    """A Ctrl-C after some steps."""

    stop_after = 7

    def after_step(self):
        if self.step + 1 == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)


class Foretold(Line):
    """Writes down which items are said to come, and which then come."""

    def start(self):
        super().start()
        self.foretold, self.came = [], []

    def coming(self, items):
        self.foretold.append(items.tolist())
        self.came.append([])

    def losses(self, model, share):
        if model.training:
            self.came[-1] += share.items.tolist()
        return super().losses(model, share)


@pytest.fixture
def line(tmp_path):
    def make(kind: type[Trainer] = Line, **more: object) -> Trainer:
        options = {"savename": "line", "epochs": 20, "batch": 8, "results": tmp_path, "threads": 1, "warmup_steps": 1,
                   "precision": "fp32", "learning_rate": 0.1, "pictures_every": 0}
        return kind(TrainingSettings(**(options | more)))
    return make


def weights(trainer: Trainer) -> list[float]:
    return [value for tensor in trainer.model.state_dict().values() for value in tensor.flatten().tolist()]


def test_a_line_is_learned(line):
    trainer = line()
    trainer.run()
    assert weights(trainer) == pytest.approx([3, -1], abs=0.05)
    tensors, config = checkpoints.load_weights(trainer.folder / "model.safetensors")
    assert set(tensors) == {"weight", "bias"}
    assert (config["kind"], config["global_batch"]) == ("line", 8)


def test_the_log_has_one_row_an_epoch_with_means_over_items(line):
    trainer = line(epochs=3, batch=40)
    trainer.run()
    with (trainer.folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["images_seen"] for row in rows] == ["40", "80", "120"]
    start = nn.Linear(1, 1)
    torch.manual_seed(0)
    start.reset_parameters()
    x = trainer.x
    assert float(rows[0]["train_loss"]) == pytest.approx((start(x) - (3 * x - 1)).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("stop_after", [1, 7, 10])
def test_stopping_and_going_on_equals_never_stopping_bitwise(line, tmp_path, stop_after):
    whole = line(results=tmp_path / "whole")
    whole.run()
    stopped = line(Interrupted)
    stopped.stop_after = stop_after
    with pytest.raises(Stopped, match=rf"at step {stop_after}, all saved: .* same command goes on"):
        stopped.run()
    again = line()
    again.run()
    assert weights(again) == weights(whole)
    drop = ("seconds",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in again.rows] == [
        {k: v for k, v in row.items() if k not in drop} for row in whole.rows]


def test_items_are_foretold_one_step_ahead_in_each_epoch(line):
    trainer = line(Foretold, epochs=2, batch=3, global_batch=12)
    trainer.run()
    assert [len(items) for items in trainer.came] == [12, 12, 12, 4] * 2
    for epoch in (0, 4):
        came, foretold = (of[epoch:epoch + 4] for of in (trainer.came, trainer.foretold))
        assert [sorted(items) for items in foretold] == [*(sorted(items) for items in came[1:]), []]


def test_more_epochs_go_on_from_the_last_one_and_done_runs_end_at_once(line, capsys):
    line(epochs=2).run()
    before = (line().folder / "state.pt").read_bytes()
    line(epochs=2).run()
    assert "all 2 epochs are done" in capsys.readouterr().out
    assert (line().folder / "state.pt").read_bytes() == before
    longer = line(epochs=3)
    longer.run()
    assert len(longer.rows) == 3


def test_accumulated_micro_batches_are_the_same_step(line, tmp_path):
    whole, parts = line(batch=8, results=tmp_path / "a"), line(batch=2, accumulate=4, results=tmp_path / "b")
    whole.run()
    parts.run()
    assert weights(parts) == pytest.approx(weights(whole), abs=1e-5)


def test_the_first_start_fixes_the_global_batch(line):
    line(epochs=1, batch=8).run()
    on = line(epochs=2, batch=4)
    on.run()
    assert (on.global_batch, on.accumulation) == (8, 2)
    with pytest.raises(UserError, match=r"--batch 3: expected a divisor of this run's global batch of 8, found .*= 3"):
        line(epochs=3, batch=3).run()


def test_a_changed_setting_is_refused_with_its_flag(line):
    line(epochs=1).run()
    with pytest.raises(UserError, match=r"found --seed 5 \(was 0\), --warmup-steps 9 \(was 1\)\. Give those again"):
        line(seed=5, warmup_steps=9).run()


def test_resume_never_refuses_a_folder_that_holds_a_run(line):
    line(epochs=1).run()
    with pytest.raises(UserError, match=r"found one, and --resume is never\. Choose another name"):
        line(resume="never").run()


def test_a_folder_of_another_kind_of_model_is_refused(line):
    class Curve(Line):
        kind = "curve"

    line(epochs=1).run()
    with pytest.raises(UserError, match=r"expected a run of kind curve in .*, found line\. Choose another name"):
        line(Curve).run()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state(line):
    class Lost(Line):
        def losses(self, model, share):
            return {"loss": super().losses(model, share)["loss"] * (float("nan") if share.step >= 5 else 1)}

    with pytest.raises(UserError, match=r"--learning-rate .*: expected a finite loss, found nan at step 6\. Lower it"):
        line(Lost).run()
    assert run_state.load_state(line().folder / "state.pt")["step"] == 5


@pytest.mark.parametrize(("locks", "found"), [
    (True, r"a folder that no other process writes to, found process \d+ on"),
    (False, r"to be the only run in .*line, found a state that another has written since\. Stop one of them")])
def test_a_second_run_in_the_same_folder_is_noticed_before_it_undoes_the_first(locks, found, line, monkeypatch):
    """Where the disk has no locks, the first notices that the second has written."""
    monkeypatch.setattr(folder_lock, "PATIENCE", 0)
    if not locks:
        monkeypatch.setattr(folder_lock, "fcntl", None)

    class Doubled(Line):
        def pictures(self, epoch):
            if epoch == 1:
                super(Doubled, other).run()

    first, other = (line(Doubled, epochs=epochs, pictures_every=1) for epochs in (3, 2))
    with pytest.raises(UserError, match=f"--savename line: expected {found}"):
        first.run()
    assert run_state.load_state(line().folder / "state.pt")["epoch"] == (1 if locks else 2)


def test_what_a_killed_run_left_half_written_goes_and_codes_that_others_write_stay(line):
    first = line(epochs=1)
    for name in (".1.tmp.pt", "reconstructions/.2.tmp.png", "codes/.3.tmp.npz"):
        (first.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (first.folder / name).touch()
    first.run()
    assert [path.name for path in first.folder.rglob(".*")] == [".3.tmp.npz"]


def test_the_global_batch_can_be_given_whatever_the_number_of_micro_batches(line):
    first = line(epochs=1, batch=2, global_batch=8)
    first.run()
    assert (first.global_batch, first.accumulation) == (8, 4)
    again = line(epochs=2, batch=4)
    again.run()
    assert (again.global_batch, again.accumulation) == (8, 2)
    with pytest.raises(UserError, match=r"--global-batch: expected 8, with which this run began, found 16\. Drop"):
        line(epochs=3, batch=4, global_batch=16).run()
    with pytest.raises(UserError, match=r"--accumulate: expected 1 beside --global-batch, found 2\. Give one"):
        line(batch=2, accumulate=2, global_batch=8)
    with pytest.raises(UserError, match=r"--global-batch: expected at least --batch 8, found 4\. Or leave"):
        line(batch=8, global_batch=4)


def test_the_accumulation_that_the_run_began_with_may_be_given_again(line):
    line(epochs=1, batch=2, accumulate=4).run()
    on = line(epochs=2, batch=8, accumulate=4)
    on.run()
    assert on.accumulation == 1
    with pytest.raises(UserError, match=r"--accumulate: expected 2 for this run's global batch of 8, found 3\. Drop"):
        line(epochs=3, batch=4, accumulate=3).run()


def test_what_follows_an_epoch_sees_its_saved_row_and_may_end_the_run(line):
    class EnoughEpochs(Exception):
        pass

    class Watched(Line):
        def after_epoch(self):
            saved = run_state.load_state(self.folder / "state.pt")
            seen.append((self.epoch, saved["epoch"], saved["rows"][-1] == self.rows[-1]))
            if self.epoch == 2:
                raise EnoughEpochs("after epoch 2")

    seen = []
    with pytest.raises(EnoughEpochs, match="after epoch 2"):
        line(Watched).run()
    assert seen == [(1, 1, True), (2, 2, True)]
    again = line(epochs=3)
    again.run()
    assert [row["epoch"] for row in again.rows] == [1, 2, 3]


def test_best_weights_are_those_of_the_lowest_validation_loss(line):
    class Worse(Line):
        def losses(self, model, share):
            figures = super().losses(model, share)
            return figures if model.training else {"loss": figures["loss"] * 0 + abs(self.epoch - 2)}

    trainer = line(Worse, epochs=5)
    trainer.run()
    assert trainer.best == 0
    third = line(epochs=5, results=trainer.settings.results / "other")
    third.run()
    tensors, _ = checkpoints.load_weights(trainer.folder / "model.safetensors")
    assert tensors["weight"].item() != trainer.model.state_dict()["weight"].item()


def test_averaged_weights_are_what_is_validated_and_saved(line):
    class Averaged(Line):
        ema_decay = 0.9

    trainer = line(Averaged, epochs=4)
    trainer.run()
    tensors, _ = checkpoints.load_weights(trainer.folder / "model.safetensors")
    assert trainer.best_model is trainer.average
    assert tensors["weight"].item() == trainer.average.weight.item()  # the loss fell to the end: the last is the best
    assert trainer.average.weight.item() != trainer.model.weight.item()


def test_a_data_set_smaller_than_the_batch_trains(line):
    trainer = line(epochs=2, batch=64)
    trainer.run()
    assert (trainer.steps_per_epoch, trainer.step) == (1, 2)


class Told(Line):
    """Says whom it trains on and whom it holds out."""

    trained, held_out = ["c", "d"], ["e"]

    def describe(self):
        return {"training_images": self.trained, "training_subjects": self.trained, "held_out_subjects": self.held_out}


def test_a_run_can_begin_with_the_weights_of_another(line):
    first = line(savename="first")
    first.run()
    second = line(savename="second", init_from="first", epochs=1, learning_rate=1e-9)
    second.run()
    assert weights(second) == pytest.approx(weights(first), abs=1e-6)
    new = line(savename="new", epochs=1, learning_rate=1e-9)
    new.run()
    assert weights(new) != pytest.approx(weights(first), abs=0.1)


def test_what_the_first_weights_have_seen_counts_as_training_data_and_stays_when_the_run_goes_on(line, tmp_path):
    class Before(Told):
        trained, held_out = ["a", "c"], []

    line(Before, savename="first", epochs=1).run()
    line(Told, savename="second", init_from="first", epochs=1).run()
    shutil.rmtree(tmp_path / "oasis" / "first")
    again = line(Told, savename="second", init_from="first", epochs=2)
    again.run()
    for name in ("training_images", "training_subjects"):
        assert again.config[name] == checkpoints.read_config(again.folder)[name] == ["a", "c", "d"]


def test_a_run_that_was_killed_before_its_first_state_begins_with_the_same_weights_again(line, tmp_path):
    line(savename="first").run()
    wanted = line(savename="second", init_from="first", epochs=1)
    wanted.run()
    for name in ("state.pt", "state-before.pt", "model.safetensors", "log.csv"):
        (wanted.folder / name).unlink()
    again = line(savename="second", init_from="first", epochs=1)
    again.run()
    assert weights(again) == weights(wanted)
    line(savename="first", epochs=21).run()
    for name in ("state.pt", "state-before.pt"):
        (wanted.folder / name).unlink()
    with pytest.raises(UserError, match="expected the init that this run began with"):
        line(savename="second", init_from="first", epochs=1).run()


def test_weights_that_know_someone_held_out_are_refused_unless_that_is_allowed(line):
    class Before(Told):
        trained, held_out = ["e"], []

    line(Before, savename="first", epochs=1).run()
    with pytest.raises(UserError, match=r"--init-from first: expected weights .* found 1 such subject"):
        line(Told, savename="second", init_from="first", epochs=1).run()
    line(Told, savename="second", init_from="first", epochs=1, allow_leak=True).run()
    line(savename="silent", epochs=1).run()
    with pytest.raises(UserError, match=r"found some that do not say whom they were trained on"):
        line(Told, savename="third", init_from="silent", epochs=1).run()


def test_a_run_begins_with_the_weights_of_its_own_kind_and_form_only(line):
    class Plane(Line):
        def build(self):
            return nn.Linear(2, 1)

    class Curve(Line):
        kind = "curve"

    line(savename="first", epochs=1).run()
    with pytest.raises(UserError, match=r"--init-from first: expected a curve, found a line"):
        line(Curve, savename="second", init_from="first").run()
    with pytest.raises(UserError, match=r"tensor weight: expected float \[1, 2\].*found float \[1, 1\]"):
        line(Plane, savename="second", init_from="first").run()
    with pytest.raises(UserError, match=r"--init-from nobody: expected a folder with model.safetensors"):
        line(savename="second", init_from="nobody").run()
