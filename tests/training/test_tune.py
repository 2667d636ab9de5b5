"""vqvae2 tune: what is searched and scored; studies go on after a stop or a kill; the best is a preset.

Most studies here train nothing: `PretendedTrainer` writes the log that a training with these settings would have, so
that the best settings are known. The last class trains for real.
"""

import csv
import fcntl
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY_VQVAE, files_in, on_screen
from matplotlib.colors import to_hex

from vqvae2.commands import train_vqvae, tune
from vqvae2.common import files, folder_lock
from vqvae2.common.errors import UserError
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.settings import parsing
from vqvae2.training import tuning
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.tuning import SPACE, TuneSettings, space_of

ROOT = Path(__file__).parents[2]
needs_optuna = pytest.mark.skipif(tuning.optuna is None, reason="needs the extra tune: pip install -e '.[tune]'")
BEST_RATE = 0.003
SECONDS = 200
"""Within which even a busy machine has started a process, or ended one."""
HEALTHY = {"top_used": 100.0, "top_perplexity": 60.0, "top_shuffle_drop": 0.2,
           "bottom_used": 90.0, "bottom_perplexity": 50.0, "bottom_shuffle_drop": 0.1}
SEARCH = ("--search", "learning_rate=0.0003..0.03", "embedding_dim=4,8")


def settings_of(*flags):
    return parsing.parse(TuneSettings, "", ["--study", "s", "--epochs", "4", "--batch", "8", *map(str, flags)])


class TestScore:
    """One number: SSIM less what is missing in the use of the codes."""

    def test_healthy_codes_cost_nothing(self):
        assert tuning.score({"ssim": 0.9, **HEALTHY}, 128) == 0.9

    def test_a_figure_below_its_floor_costs_in_proportion(self):
        """128 of 512 is half of the floor of half the codebook; perplexity 64 is above 5 %; 0.04 is 4/5 of 0.05."""
        one_level = {"ssim": 0.9, "top_used": 128.0, "top_perplexity": 64.0, "top_shuffle_drop": 0.04}
        assert tuning.score(one_level, 512) == pytest.approx(0.9 - 0.1 * (1 / 2 + 0 + 1 / 5))

    def test_a_level_that_says_nothing_costs_more_than_a_few_hundredths_of_ssim(self):
        """The table of the design, section 6: SSIM 0.806 with an idle top level is behind 0.830 with one that works."""
        idle = {"ssim": 0.851, **HEALTHY, "top_shuffle_drop": 0.0}
        assert tuning.score(idle, 128) == pytest.approx(0.751)
        assert tuning.score(idle, 128) < tuning.score({"ssim": 0.83, **HEALTHY}, 128)

    def test_a_drop_below_0_costs_as_much_as_0(self):
        assert tuning.score({"ssim": 0.8, **HEALTHY, "top_shuffle_drop": -0.3}, 128) == pytest.approx(0.7)

    def test_codes_that_a_prior_would_refuse_are_behind_every_other_trial(self):
        """7 codes: below the 8 that train_pixel_cnn.py asks for. 0.9 - 1 - 0.1 (1 - 7/64) - 0.1 (1 - 2/6.4)."""
        collapsed = {"ssim": 0.9, **HEALTHY, "top_used": 7.0, "top_perplexity": 2.0}
        assert tuning.score(collapsed, 128) == pytest.approx(0.9 - 1 - 0.1 * (57 / 64) - 0.1 * (4.4 / 6.4))
        trial = {**collapsed, "state": "complete", "score": 0.0}
        assert tuning.best_of([trial], 128) is None
        assert tuning.best_of([{**trial, "top_used": 8.0}], 128) is not None

    def test_an_epoch_before_the_codes_are_in_use_has_no_score(self):
        """Without codes a picture is best of all: SSIM 0.99 here."""
        before = {"epoch": "1", "validate_ssim": "0.99", "validate_reconstruction": "0.001", "top_used": ""}
        after = {"epoch": "2", "validate_ssim": "0.8", "validate_reconstruction": "0.01",
                 **{name: str(value) for name, value in HEALTHY.items()}}
        assert tuning.figures_of(before) == {}
        assert tuning.result(0, "complete", {}, [before, after], 128)["ssim"] == 0.8
        assert tuning.result(0, "complete", {}, [before], 128)["state"] == "failed"
        assert tuning.figures_of(after) == {"ssim": 0.8, **HEALTHY}

    def test_the_best_trial_is_complete_and_fit_for_a_prior(self):
        collapsed = {"ssim": 0.99, **HEALTHY, "top_used": 3.0}
        results = [{"trial": number, "state": state, "score": score, **figures} for number, (state, score, figures) in
                   enumerate([("complete", 0.5, HEALTHY), ("pruned", 0.7, HEALTHY), ("complete", 0.6, collapsed),
                              ("complete", 0.5, HEALTHY), ("failed", "", {})])]
        assert tuning.best_of(results, 128)["trial"] == 0
        assert tuning.best_of(results[1:3], 128) is None


class TestSpace:
    """What is searched, and what is refused in one line."""

    def test_by_default_all_that_the_model_has(self):
        assert list(space_of(settings_of())) == ["learning_rate", "codebook_size", "embedding_dim", "commitment",
                                                 "decay", "ssim_weight", "gradient_weight", "prediction"]
        one_level = space_of(settings_of("--levels", 1, "--quantizer", "gradient"))
        assert not {"prediction", "decay"} & set(one_level)

    def test_ranges_and_choices_are_as_given(self):
        found = space_of(settings_of("--search", "embedding-dim=32,8,8", "learning_rate=1e-4..1e-3", "decay"))
        assert found == {"learning_rate": (1e-4, 1e-3), "embedding_dim": (8, 32), "decay": (0.9, 0.999)}

    @pytest.mark.parametrize(("flags", "said"), [
        (["--search", "momentum"], r"--search: expected some of learning_rate, .*, found momentum\. "),
        (["--search", "decay", "decay=0.9..0.99"], "each setting once, found decay twice"),
        (["--search", "learning_rate=1e-3..1e-4"], r"learning_rate: expected LOW\.\.HIGH, .* found 1e-3\.\.1e-4\. "),
        (["--search", "learning_rate=1e-3"], r"expected LOW\.\.HIGH, numbers from 1e-09 to 1, found 1e-3"),
        (["--search", "commitment=nan..1"], r"found nan\.\.1"),
        (["--search", "decay=0.9..1"], r"found 0\.9\.\.1\. For example decay=0\.9\.\.0\.999"),
        (["--search", "codebook_size=1,128"], "whole numbers from 2 to 32767 with .* found 1,128"),
        (["--search", "embedding_dim=8..64"], r"whole numbers .* found 8\.\.64"),
        (["--search", "prediction", "--levels", "1"], "found --levels 1, which has no prediction"),
        (["--search", "decay", "--quantizer", "gradient"], "found --quantizer gradient, which has no decay"),
        (["--trials", "0"], "--trials: expected at least 1, found 0"),
        (["--workers", "0"], "--workers: expected at least 1, found 0"),
        (["--bits-per-pixel", "0"], "--bits-per-pixel: expected a positive number, found 0")])
    def test_what_cannot_be_searched_is_one_line(self, flags, said):
        with pytest.raises(UserError, match=said):
            settings_of(*flags)

    @pytest.mark.parametrize(("flags", "bits"), [(["--codebook-size", 512], 9 * (1024 + 4096) / 65536),
                                                 (["--codebook-size", 256, "--levels", 1, "--downsample", 8], 0.125)])
    def test_bits_are_counted_as_in_the_design(self, flags, bits):
        """9 bits x (32² + 64²) codes / 256² pixels = 0.703; one level of 256 codes at 32²: 8 x 1024 / 65536."""
        flags = [*flags, "--search", "learning_rate"]
        assert tuning.allowed_space(settings_of(*flags, "--bits-per-pixel", bits), 256, 256)
        with pytest.raises(UserError, match=f"found {bits:.3f} for the smallest"):
            tuning.allowed_space(settings_of(*flags, "--bits-per-pixel", bits - 1e-6), 256, 256)

    def test_codebooks_that_would_buy_ssim_with_bits_are_not_tried(self):
        """At 4 2 a code more than 2^9.6 = 776 costs more than 0.75 bits per pixel."""
        assert tuning.allowed_space(settings_of(), 64, 64)["codebook_size"] == (128, 256, 512)
        more = settings_of("--bits-per-pixel", 0.8)
        assert tuning.allowed_space(more, 64, 64)["codebook_size"] == (128, 256, 512, 1024)

    @pytest.mark.parametrize("flags", [["--search", "codebook_size=64,128"], ["--search", "decay"]])
    def test_no_codebook_within_the_bits_is_one_line(self, flags):
        """The finest grid: 64 x 64 pixels to 32² and 16² codes; of 64 codes 6 x 1280 / 4096, of 512 9 x 1280 / 4096."""
        fine = settings_of("--downsample", 2, 2, *flags)
        found = "1.875 for the smallest, 64 codes" if "decay" not in flags else "2.812 for the smallest, 512 codes"
        with pytest.raises(UserError, match=rf"--bits-per-pixel 0\.75: expected at least one codebook within it at 64 "
                                            rf"x 64 pixels and --downsample 2 2, found {found}\. Search smaller"):
            tuning.allowed_space(fine, 64, 64)

    def test_the_nearest_value_stands_in_for_one_that_is_not_searched(self):
        assert [tuning.nearest("decay", (0.1, 1), value) for value in (0.01, 0.5, 7)] == [0.1, 0.5, 1]
        assert [tuning.nearest("codebook_size", (128, 256, 512), value) for value in (16, 181, 182, 1024)] == [
            128, 128, 256, 512]


def preset_of(values, flags=(), size=64):
    """The text of a preset whose best trial had these values."""
    settings = settings_of(*flags)
    best = {"trial": 3, "state": "complete", "score": 0.81, "epochs": 4, **values, "ssim": 0.82, **HEALTHY}
    data = {"data": {"images": {"train": 680, "validate": 200}}, "image_shape": [1, size, size], "data_hash": "ab" * 32}
    return tuning.preset_text(best, [{"state": "pruned"}, best], settings, {name: SPACE[name] for name in values}, data)


class TestPreset:
    """The best trial, for train_vqvae.py --preset."""

    def test_a_training_with_it_has_the_settings_of_the_trial(self, tmp_path):
        values = {"learning_rate": 0.0007233, "codebook_size": 256, "embedding_dim": 16, "decay": 0.98195,
                  "gradient_weight": 0.01, "prediction": 0.5}
        flags = ("--channels", 32, "--levels", 2, "--downsample", 2, 4, "--size", 64, "--threads", 1, "--seed", 5)
        (tmp_path / "best.toml").write_text(preset_of(values, flags), encoding="utf-8")
        found = parsing.parse(TrainVqvae, "", ["--preset", str(tmp_path / "best.toml"), "--savename", "x"])
        trained = tuning.trial_settings(settings_of(*flags), 3, values, threads=1)
        differ = {name for name, value in vars(found).items() if value != getattr(trained, name)}
        assert differ == {"preset", "savename", "results", "threads", "pictures_every"}
        assert (found.learning_rate, found.decay, found.downsample, found.epochs) == (0.0007233, 0.98195, (2, 4), 4)

    def test_it_says_where_it_comes_from_and_names_no_path(self):
        text = preset_of({"learning_rate": 0.001}, ("--data", "/home/somebody/slices", "--out", "/home/somebody/s"))
        assert "home" not in text
        assert "trial 3 of the study s, best of 2 (1 complete, 1 pruned)" in text
        assert "680 training and 200 validation images of 64 x 64 pixels, hash abababababab" in text
        assert "score 0.8100; SSIM 0.8200; top 100 of 512 codes used, perplexity 60, shuffle drop 0.200" in " ".join(
            text.replace("\n#", "").split())
        assert max(map(len, text.splitlines())) <= 120


class PretendedTrainer(tuning.TrialTrainer):
    """Trains nothing: SSIM rises over the epochs to 1 less the distance of the learning rate from BEST_RATE in powers
    of ten. In the first epoch no codes are in use.

    misfortune: "crash" or "diverge", in the second epoch of trials with 8 dimensions.
    meets: a training begins only when its neighbour does: trial 0 with 1, 2 with 3.
    """

    def __init__(self, settings, trial, misfortune="", meets=False):
        super().__init__(settings, trial)
        self.misfortune, self.meets = misfortune, meets

    def run(self):
        study = self.folder.parents[1]
        with (study / "told.txt").open("a") as file:
            file.write(f"{self.folder.name} on GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}, "
                       f"{self.settings.threads} thread(s)\n")
        if self.meets:
            wait_for(lambda: f"trial-{self.trial.number ^ 1:03d}" in (study / "told.txt").read_text())
        best = 1 - abs(math.log10(self.settings.learning_rate / BEST_RATE))
        for epoch in range(1, self.settings.epochs + 1):
            ssim = best * epoch / self.settings.epochs
            self.rows.append({"epoch": epoch, "validate_ssim": 1.0 if epoch == 1 else ssim,
                              "validate_reconstruction": 1 - ssim, **({} if epoch == 1 else HEALTHY)})
            self.epoch = epoch
            files.write_rows(self.folder / "log.csv", self.rows)
            if epoch == 2 and self.settings.embedding_dim == 8 and self.misfortune == "crash":
                os._exit(3)
            if epoch == 2 and self.settings.embedding_dim == 8 and self.misfortune == "diverge":
                raise UserError("--learning-rate 9: expected a finite loss, found nan at step 7. Lower it.")
            self.after_epoch()


def table(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_study(monkeypatch, slices, folder, *flags, **kind_of_training):
    """Run a study of pretended trainings in a folder; return its table. Charts take longer than all else: none."""
    monkeypatch.setattr(tuning, "START_METHOD", "fork")  # the copy has the pretended trainer, and is there at once
    monkeypatch.setattr(tuning, "TrialTrainer", partial(PretendedTrainer, **kind_of_training))
    monkeypatch.setattr(tuning, "draw", lambda *_: None)
    monkeypatch.setattr(tuning, "AT_RANDOM", 3)
    tune.main([*map(str, ("--study", "s", "--data", slices, "--out", folder, "--epochs", 4, "--batch", 8,
                          "--codebook-size", 128, "--bits-per-pixel", 9, *SEARCH, *flags))])
    return table(Path(folder))


@pytest.fixture
def search(tiny_slices, apart, monkeypatch):
    """`run_study` on the tiny slices, in an empty folder."""
    return partial(run_study, monkeypatch, tiny_slices)


@pytest.fixture(scope="session")
def study_of_one_trial(tiny_slices, tmp_path_factory):
    """The folder of a study that is only there to be gone on with."""
    folder = tmp_path_factory.mktemp("study") / "one"
    with pytest.MonkeyPatch.context() as patch:
        run_study(patch, tiny_slices, folder, "--trials", 1)
    return folder


@needs_optuna
class TestStudy:
    """Trials, in an order that depends on the seed alone, each told apart."""

    def test_the_first_trial_is_what_the_user_has_and_the_best_becomes_the_preset(self, search, apart, capsys):
        rows = search("one", "--trials", 6, "--unpruned", 100, "--learning-rate", 0.02, "--embedding-dim", 64)
        assert [row["trial"] for row in rows] == [str(number) for number in range(6)]
        assert (float(rows[0]["learning_rate"]), rows[0]["embedding_dim"]) == (0.02, "8")  # the nearest of 4 and 8
        assert len({row["learning_rate"] for row in rows}) == 6
        for row in rows:
            expected = 1 - abs(math.log10(float(row["learning_rate"]) / BEST_RATE))
            assert (row["state"], row["epochs"]) == ("complete", "4")
            assert float(row["score"]) == pytest.approx(expected)
        best = max(rows, key=lambda row: float(row["score"]))
        assert float(best["score"]) > float(rows[0]["score"])
        found = parsing.parse(TrainVqvae, "", ["--preset", "one/best.toml", "--savename", "x"])
        assert (str(found.learning_rate), str(found.embedding_dim)) == (best["learning_rate"], best["embedding_dim"])
        assert (found.epochs, found.batch, found.codebook_size) == (4, 8, 128)
        shown = on_screen(capsys.readouterr().out)
        assert sum(line.startswith("trial ") for line in shown) == 6
        assert shown[-2].startswith(f"Done: one/best.toml, trial {best['trial']}, score {float(best['score']):.4f}")

    def test_the_chart_has_a_panel_for_each_setting_and_marks_the_best(self, apart):
        """Scores lie at 0.4 to 0.6 and one at -9, which is not shown: it is three medians (0.45) below 0.6."""
        space = {"learning_rate": (1e-4, 1e-2), "decay": (0.9, 0.999), "embedding_dim": (4, 8),
                 "gradient_weight": (0, 0.1)}
        rows = [{"trial": number, "state": "pruned" if number == 3 else "complete", "learning_rate": 1e-3,
                 "decay": 0.99, "embedding_dim": 4, "gradient_weight": 0.0, "score": score}
                for number, score in enumerate((-9.0, 0.5, 0.6, 0.4, ""))]
        figure = tuning.draw(rows, space, rows[2], apart / "trials.png", "$s")
        assert [axis.get_title() for axis in figure.axes] == ["trial", *space]
        for axis, values in zip(figure.axes[1:], space.values()):
            (drawn,) = axis.collections
            assert drawn.get_offsets()[:, 1].tolist() == [-9.0, 0.5, 0.6, 0.4]
            assert [to_hex(colour).upper() for colour in drawn.get_facecolors()] == [
                tuning.COLOURS[kind] for kind in ("complete", "complete", "best", "pruned")]
            assert axis.get_ylim()[0] == pytest.approx(0.6 - 3 * (0.6 - 0.45), abs=0.011)
            assert axis.get_xlim()[0] < values[0] < values[-1] < axis.get_xlim()[1]
        assert (apart / "trials.png").is_file()

    def test_a_trial_below_the_median_of_the_same_epoch_is_pruned_but_none_of_the_first(self, search, apart):
        rows = search("one", "--trials", 7, "--unpruned", 3)
        assert {row["state"] for row in rows[:3]} == {"complete"}
        assert {row["state"] for row in rows} == {"complete", "pruned"}
        scores = []
        for row in rows:  # by hand: at epoch e the score is e/4 of the last one, so that the second epoch decides
            last = 1 - abs(math.log10(float(row["learning_rate"]) / BEST_RATE))
            is_pruned = len(scores) >= 3 and last < torch.tensor(scores, dtype=torch.float64).quantile(0.5)
            assert (row["state"], row["epochs"]) == (("pruned", "2") if is_pruned else ("complete", "4"))
            assert float(row["score"]) == pytest.approx(last / 2 if is_pruned else last)
            scores += [] if is_pruned else [last]
        unpruned = search("two", "--trials", 4, "--unpruned", 1, "--pruner", "none")
        assert {row["state"] for row in unpruned} == {"complete"}

    def test_more_trials_are_added_and_are_those_of_one_long_study(self, search, apart):
        search("one", "--trials", 3)
        before = files_in(apart / "one" / "oasis")
        assert [row["state"] for row in search("one", "--trials", 3)] == ["complete"] * 3
        assert files_in(apart / "one" / "oasis") == before
        longer = search("one", "--trials", 5)
        assert before.items() <= files_in(apart / "one" / "oasis").items()
        assert longer == search("two", "--trials", 5)
        assert (apart / "one" / "best.toml").read_text() == (apart / "two" / "best.toml").read_text()
        assert longer[:3] != search("three", "--trials", 3, "--seed", 1)

    def test_two_workers_train_at_the_same_time_and_share_out_the_gpus(self, search, apart, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        rows = search("one", "--trials", 4, "--workers", 2, "--threads", 3, "--unpruned", 100, meets=True)
        assert [(row["trial"], row["state"]) for row in rows] == [(str(number), "complete") for number in range(4)]
        told = (apart / "one" / "told.txt").read_text().splitlines()
        assert sorted(re.sub(r"[47],", "N,", line) for line in told) == [
            f"trial-00{number} on GPU N, 3 thread(s)" for number in range(4)]
        assert {line.split()[3] for line in told[:2]} == {"4,", "7,"}

    def test_a_trial_whose_process_crashes_fails_alone(self, search):
        rows = search("one", "--trials", 5, "--embedding-dim", 4, "--workers", 2, misfortune="crash")
        assert {(row["embedding_dim"], row["state"]) for row in rows} == {("4", "complete"), ("8", "failed")}
        failed = next(row for row in rows if row["state"] == "failed")
        assert failed["reason"] == (f"its process ended with status 3: see one/oasis/trial-00{failed['trial']}/"
                                    "output.txt")

    def test_a_user_error_in_a_trial_is_its_reason(self, search):
        rows = search("one", "--trials", 5, "--embedding-dim", 4, misfortune="diverge")
        reasons = {row["reason"] for row in rows if row["state"] == "failed"}
        assert reasons == {"--learning-rate 9: expected a finite loss, found nan at step 7. Lower it."}

    def test_a_study_whose_first_trials_all_fail_ends_with_the_last_ones_reason_and_can_go_on(self, search, refusal):
        flags = ["--embedding-dim", 8, "--search", "embedding_dim=8", "learning_rate"]
        line = refusal(lambda _: search("one", *flags, misfortune="diverge"))
        assert line == ("--savename s: expected a trial that ends well, found none of 3. The last one's reason: "
                        "--learning-rate 9: expected a finite loss, found nan at step 7. Lower it.")
        rows = search("one", *flags, "--trials", 4)
        assert [row["state"] for row in rows] == ["failed"] * 3 + ["complete"]

    def test_without_a_trial_fit_for_a_prior_there_is_no_preset(self, search, refusal, apart, monkeypatch):
        monkeypatch.setattr(tuning.encoding, "fewest_codes", lambda size: 99)
        line = refusal(lambda _: search("one", "--trials", 2))
        assert re.match(r"--savename s: expected a trial whose codes are fit for a prior, found none of 2\. one/trials",
                        line)
        assert not (apart / "one" / "best.toml").exists()


@needs_optuna
class TestRefusals:
    """One line, exit 2, and nothing changed."""

    @pytest.mark.parametrize(("flags", "found"), [
        (["--epochs", 5], "--epochs 5 (was 4)"), (["--batch", 4], "--batch 4 (was 8)"),
        (["--channels", 64], "--channels 64 (was 128)"), (["--seed", 1], "--seed 1 (was 0)"),
        (["--search", "commitment"], "--search commitment=0.05..1 (was learning_rate=0.0003..0.03 embedding_dim=4,8)"),
        (["--unpruned", 7], "--unpruned 7 (was 5)"), (["--bits-per-pixel", 8], "--bits-per-pixel 8.0 (was 9.0)")])
    def test_another_setting_is_named(self, flags, found, search, refusal, apart, study_of_one_trial):
        shutil.copytree(study_of_one_trial, "one")
        before = files_in(apart)
        line = refusal(lambda _: search("one", "--trials", 2, *flags))
        assert line == (f"--savename s: expected the settings that this study began with, found {found}. Give those "
                        "again, or choose another --savename.")
        assert files_in(apart) == before

    def test_other_images_are_told(self, search, refusal, tiny_slices, apart, study_of_one_trial):
        shutil.copytree(study_of_one_trial, "one")
        rows = (tiny_slices / "manifest.csv").read_text().splitlines()
        fewer = apart / "fewer"
        fewer.mkdir()
        for split in ("train", "validate", "test"):
            shutil.copytree(tiny_slices / split, fewer / split)
        (fewer / "manifest.csv").write_text("\n".join([rows[0], *rows[2:]]) + "\n")
        line = refusal(lambda _: search("one", "--trials", 2, "--data", fewer))
        assert re.match(rf"--data {fewer}: expected the images that this study began with \([0-9a-f]{{12}}\), found "
                        r"[0-9a-f]{12}\. Give those again", line)

    def test_a_study_is_not_begun_again_with_resume_never(self, search, refusal, study_of_one_trial):
        shutil.copytree(study_of_one_trial, "one")
        line = refusal(lambda _: search("one", "--resume", "never"))
        assert line == ("--savename s: expected no study in one, found one, and --resume is never. Choose another "
                        "name, or drop --resume never to go on.")

    def test_a_second_tune_on_the_same_study_is_told(self, search, refusal, apart, monkeypatch):
        monkeypatch.setattr(folder_lock, "PATIENCE", 0)
        with folder_lock.claimed(apart / "one", "the first"):
            line = refusal(lambda _: search("one"))
        assert line.startswith("--savename s: expected a folder that no other process writes to, found process ")

    def test_a_database_of_another_kind_is_told(self, search, refusal, apart):
        (apart / "one").mkdir()
        (apart / "one" / "study.db").write_text("not a database at all, but long enough to look like one " * 10)
        line = refusal(lambda _: search("one"))
        assert line == ("one/study.db: expected a study that vqvae2 tune has written, found file is not a database. "
                        "Move it away to begin anew.")

    def test_impossible_bits_are_told_before_anything_is_made(self, search, refusal, apart):
        """32 x 32 pixels, 8² and 4² codes of 128: 7 x 80 / 1024."""
        line = refusal(lambda _: search("one", "--bits-per-pixel", 0.1))
        assert line.startswith("--bits-per-pixel 0.1: expected at least one codebook within it at 32 x 32 pixels and "
                               "--downsample 4 2, found 0.547 for the smallest, 128 codes. ")
        assert not files_in(apart)

    def test_torchrun_is_told(self, search, refusal, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        line = refusal(lambda _: search("one"))
        assert line == ("vqvae2 tune: expected to be started without torchrun, found 2 processes. --workers N trains "
                        "several trials at a time.")


def test_without_optuna_one_line_says_how_to_install_it(monkeypatch, refusal, tiny_slices, apart):
    monkeypatch.setattr(tuning, "optuna", None)
    line = refusal(tune.main, "--study", "s", "--data", tiny_slices, "--epochs", 1, "--batch", 8)
    assert line == "vqvae2 tune: expected the package optuna, found none. Install it: pip install -e '.[tune]'"
    assert not list(apart.iterdir())


@needs_optuna
def test_a_study_that_was_stopped_and_then_killed_goes_on_in_the_middle_of_a_trial(tiny_slices, apart):
    """SIGTERM in the first start, SIGKILL in the second, whose training, left alone, saves and ends. What comes out is
    what `vqvae2 train-vqvae` makes of best.toml undisturbed, bit for bit."""
    common = ["--data", str(tiny_slices), "--threads", "1"]
    flags = [*common, "--batch", "8", "--precision", "fp32", *TINY_VQVAE, "--epochs", "40", "--study", "s",
             "--trials", "1", "--search", "commitment"]
    study = apart / "results" / "tune" / "s"
    run = study / "oasis" / "trial-000"
    epochs = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        with (apart / "said.txt").open("a") as said:
            process = subprocess.Popen([sys.executable, "-m", "vqvae2", "tune", *flags], stdout=said, stderr=said,
                                       env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        try:
            wait_for(lambda least=epochs + 2: len(files.read_rows(run / "log.csv")) >= least, process)
            process.send_signal(number)
            status = process.wait(SECONDS)
        finally:
            process.kill()
        assert status == (75 if number == signal.SIGTERM else -9), (apart / "said.txt").read_text()
        with (run / "output.txt").open("a") as output:
            fcntl.flock(output, fcntl.LOCK_EX)  # the training has ended
        before, epochs = epochs, run_state.load_state(run / "state.pt")["epoch"]
        assert before < epochs < 40
    assert "Stopped by a signal, all saved: results/tune/s. The same command" in (apart / "said.txt").read_text()
    tune.main(flags)
    ((row),) = table(study)
    assert (row["trial"], row["state"], row["epochs"]) == ("0", "complete", "40")
    quantised = [epoch for epoch in files.read_rows(run / "log.csv") if epoch["top_used"]]
    best = min(quantised, key=lambda epoch: float(epoch["validate_reconstruction"]))
    assert float(row["ssim"]) == float(best["validate_ssim"])
    assert not (run / "state.pt").exists()
    assert "Done: " in (run / "output.txt").read_text()
    train_vqvae.main(["--preset", str(study / "best.toml"), "--savename", "x", *common, "--pictures-every", "40"])
    found, expected = (weights.load_weights(folder / weights.WEIGHTS)[0] for folder in (run, apart / "results/oasis/x"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def wait_for(is_so, process=None):
    end = time.monotonic() + SECONDS
    while not is_so():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
