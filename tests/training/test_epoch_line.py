"""An epoch is one line of at most 100 characters, with what matters most and how long the rest of the run takes."""

from types import SimpleNamespace

import pytest
from straight_line import Line

from vqvae2.evaluation.feature_training import FeatureTrainer
from vqvae2.evaluation.features import FeatureSettings
from vqvae2.training import trainer as loop
from vqvae2.training.decoders import DecoderTrainer
from vqvae2.training.denoisers import DenoiserTrainer
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainDecoder, TrainDenoiser, TrainingSettings, TrainPrior, TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer

TRAINERS = {"vqvae": (VqvaeTrainer, TrainVqvae, {}),
            "prior": (PriorTrainer, TrainPrior, {"vqvae": "v", "level": "top"}),
            "decoder": (DecoderTrainer, TrainDecoder, {"vqvae": "v"}),
            "denoiser": (DenoiserTrainer, TrainDenoiser, {"vqvae": "v"}),
            "features": (FeatureTrainer, FeatureSettings, {}), "another": (Line, TrainingSettings, {})}


@pytest.fixture
def standing(monkeypatch):
    """Return a trainer of this kind after an epoch with this row, `seconds` and `steps` after its start."""
    def at(name, epoch, epochs, row, seconds=0.0, steps=0, best=float("inf")):
        kind, settings, more = TRAINERS[name]
        trainer = kind(settings(savename="a", epochs=epochs, batch=1, **more))
        trainer.epoch, trainer.rows, trainer.best = epoch, [row], best
        trainer.steps_per_epoch, trainer.step = 10, 10 * epoch
        trainer.began_at = 100.0, trainer.step - steps
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 100.0 + seconds))
        return trainer
    return at


@pytest.mark.parametrize("name", TRAINERS)
def test_the_line_of_each_training_has_its_figures_in_100_characters(standing, name):
    used = dict.fromkeys(("top_used", "bottom_used"), 32767)
    row = dict.fromkeys((column for column, _ in TRAINERS[name][0].headline), 1.2345e-05) | used
    trainer = standing(name, 1000, 1119, row, seconds=60.0, steps=10, best=1.2345e-05)
    line = trainer.epoch_line()
    assert len(line) <= 100
    assert line.startswith("epoch 1000/1119: ")
    assert line.endswith(", 2.0 h left")
    assert 3 <= len(trainer.headline) <= 4
    for column, words in trainer.headline:
        assert f"{words} {'32767' if column in used else '1.234e-05'}" in line


def test_a_line_says_how_a_vqvae_does_in_the_terms_of_its_log(standing):
    row = {"train_loss": 0.012345, "validate_ssim": 0.95123, "top_used": 128.0, "bottom_used": 127.0, "validate_mse": 1}
    assert standing("vqvae", 12, 60, row, 540, 120).epoch_line() == (
        "epoch 12/60: loss 0.01235, validation SSIM 0.9512, used codes 128 and 127, 36 min left")


def test_what_an_epoch_lacks_is_left_out(standing):
    assert standing("vqvae", 1, 2, {"train_loss": 0.5}).epoch_line() == "epoch 1/2: loss 0.5"
    one_level = {"train_loss": 0.5, "validate_ssim": 0.9, "top_used": 16}
    assert standing("vqvae", 2, 2, one_level).epoch_line() == (
        "epoch 2/2: loss 0.5, validation SSIM 0.9, used codes 16")


@pytest.mark.parametrize(("seconds", "steps", "said"), [
    (0.0, 0, ""), (2.0, 10, ", 20 s left"), (8.9, 10, ", 89 s left"), (12.0, 10, ", 2 min left"),
    (60.0, 10, ", 10 min left"), (60.0, 5, ", 20 min left"), (9000.0, 100, ", 2.5 h left"),
    (36000.0, 10, ", 4.2 days left")])
def test_the_time_left_is_reckoned_from_the_steps_of_this_start(standing, seconds, steps, said):
    assert standing("another", 10, 20, {"train_loss": 1.0}, seconds, steps).epoch_line() == f"epoch 10/20: loss 1{said}"


def test_nothing_is_left_after_the_last_epoch(standing):
    assert standing("another", 20, 20, {"train_loss": 1.0}, 50.0, 10).epoch_line() == "epoch 20/20: loss 1"


def test_the_bar_of_an_epoch_knows_its_end_and_that_of_the_run(tmp_path, capsys):
    class Watched(Line):
        def after_step(self):
            if self.step_in_epoch:
                bars.append((self.bar.total, self.bar.n, self.bar.postfix))

    bars = []
    Watched(TrainingSettings(savename="line", epochs=2, batch=8, results=tmp_path, threads=1, precision="fp32",
                             pictures_every=0)).run()
    assert [bar[:2] for bar in bars] == [(5, step) for step in (1, 2, 3, 4)] * 2
    assert all("loss " in words and "the whole run: 0 s left" in words for *_, words in bars)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2: loss ")
