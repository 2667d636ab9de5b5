"""tune.py: what is searched and scored; studies go on after a stop, a kill or a crash; the best is a preset.

Most studies here train nothing: `pretend` writes the log that a training with these settings would have, so that the
best settings are known. The last class trains for real.
"""

import csv
import fcntl
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY_VQVAE, files_in, on_screen

from vqvae2.commands import train_vqvae, tune
from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.settings import parsing
from vqvae2.training import tuner, tuning, tuning_study
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.tuning import TrialResult
from vqvae2.training.tuning_settings import Choices, Range, TuneSettings, space_of

ROOT = Path(__file__).parents[2]
needs_optuna = pytest.mark.skipif(tuning_study.optuna is None, reason="needs the extra tune: pip install -e '.[tune]'")
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
        assert not tuning.is_fit(collapsed, 128)
        assert tuning.is_fit({**collapsed, "top_used": 8.0}, 128)

    def test_an_epoch_before_the_codes_are_in_use_has_no_score(self):
        """Without codes a picture is best of all: SSIM 0.99 here."""
        before = {"epoch": "1", "validate_ssim": "0.99", "validate_reconstruction": "0.001", "top_used": ""}
        after = {"epoch": "2", "validate_ssim": "0.8", "validate_reconstruction": "0.01",
                 **{name: str(value) for name, value in HEALTHY.items()}}
        assert tuning.figures_of(before) is None
        assert tuning.best_row([before, after]) is after
        assert tuning.best_row([before]) is None
        assert tuning.figures_of(after) == {"ssim": 0.8, **HEALTHY}

    def test_the_best_trial_is_complete_and_fit_for_a_prior(self):
        collapsed = {"ssim": 0.99, **HEALTHY, "top_used": 3.0}
        results = [TrialResult(0, "complete", {}, 0.5, 4, {"ssim": 0.5, **HEALTHY}),
                   TrialResult(1, "pruned", {}, 0.7, 2, {"ssim": 0.7, **HEALTHY}),
                   TrialResult(2, "complete", {}, 0.6, 4, collapsed),
                   TrialResult(3, "complete", {}, 0.5, 4, {"ssim": 0.5, **HEALTHY}), TrialResult(4, "failed", {})]
        assert tuning.best_of(results, 128).number == 0
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
        assert found == {"learning_rate": Range(1e-4, 1e-3), "embedding_dim": Choices((8, 32)),
                         "decay": Range(0.9, 0.999)}

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

    def test_bits_are_counted_as_in_the_design(self):
        """9 bits x (32² + 64²) codes / 256² pixels = 0.703; one level of 256 codes at 32²: 8 x 1024 / 65536."""
        assert tuning.raw_bits_per_pixel(512, settings_of(), 256, 256) == 9 * (1024 + 4096) / 65536
        one_level = settings_of("--levels", 1, "--downsample", 8)
        assert tuning.raw_bits_per_pixel(256, one_level, 256, 256) == 0.125

    def test_codebooks_that_would_buy_ssim_with_bits_are_not_tried(self):
        """At 4 2 a code more than 2^9.6 = 776 costs more than 0.75 bits per pixel."""
        assert tuning.allowed_space(settings_of(), 64, 64)["codebook_size"] == Choices((128, 256, 512))
        more = settings_of("--bits-per-pixel", 0.8)
        assert tuning.allowed_space(more, 64, 64)["codebook_size"] == Choices((128, 256, 512, 1024))

    @pytest.mark.parametrize("flags", [["--search", "codebook_size=64,128"], ["--search", "decay"]])
    def test_no_codebook_within_the_bits_is_one_line(self, flags):
        """The finest grid: 64 x 64 pixels to 32² and 16² codes; of 64 codes 6 x 1280 / 4096, of 512 9 x 1280 / 4096."""
        fine = settings_of("--downsample", 2, 2, *flags)
        found = "1.875 for the smallest, 64 codes" if "decay" not in flags else "2.812 for the smallest, 512 codes"
        with pytest.raises(UserError, match=rf"--bits-per-pixel 0\.75: expected at least one codebook within it at 64 "
                                            rf"x 64 pixels and --downsample 2 2, found {found}\. Search smaller"):
            tuning.allowed_space(fine, 64, 64)

    def test_the_nearest_value_stands_in_for_one_that_is_not_searched(self):
        assert [Range(0.1, 1).nearest(one) for one in (0.01, 0.5, 7)] == [0.1, 0.5, 1]
        assert [Choices((128, 256, 512)).nearest(one) for one in (16, 181, 182, 1024)] == [128, 128, 256, 512]


def preset_of(values, flags=(), size=64):
    """The text of a preset whose best trial had these values."""
    settings = settings_of(*flags)
    best = TrialResult(3, "complete", values, 0.81, 4, {"ssim": 0.82, **HEALTHY})
    data = {"data": {"images": {"train": 680, "validate": 200}}, "image_shape": [1, size, size], "data_hash": "ab" * 32}
    return tuning.preset_text(best, [TrialResult(0, "pruned", {}), best], settings, space_of(settings), data)


class TestPreset:
    """The best trial, for train_vqvae.py --preset."""

    def test_a_training_with_it_has_the_settings_of_the_trial(self, tmp_path):
        values = {"learning_rate": 0.0007233, "codebook_size": 256, "embedding_dim": 16, "decay": 0.98195,
                  "gradient_weight": 0.01, "prediction": 0.5}
        flags = ("--channels", 32, "--levels", 2, "--downsample", 2, 4, "--size", 64, "--threads", 1, "--seed", 5)
        (tmp_path / "best.toml").write_text(preset_of(values, flags), encoding="utf-8")
        found = parsing.parse(TrainVqvae, "", ["--preset", str(tmp_path / "best.toml"), "--savename", "x"])
        trained = tuning.trial_settings(settings_of(*flags), 3, values, Path("results"), 1)
        differ = {name for name, value in vars(found).items() if value != getattr(trained, name)}
        assert differ == {"preset", "savename", "threads"}
        assert (found.learning_rate, found.decay, found.downsample, found.epochs) == (0.0007233, 0.98195, (2, 4), 4)

    def test_it_says_where_it_comes_from_and_names_no_path(self):
        text = preset_of({"learning_rate": 0.001}, ("--data", "/home/somebody/slices", "--out", "/home/somebody/s"))
        assert "home" not in text
        assert "trial 3 of the study s, best of 2 (1 complete, 1 pruned)" in text
        assert "680 training and 200 validation images of 64 x 64 pixels, hash abababababab" in text
        assert "0.8100. SSIM 0.8200; top 100 of 512 codes used, perplexity 60, shuffle drop 0.200" in " ".join(
            text.replace("\n#", "").split())
        assert max(map(len, text.splitlines())) <= 120


def pretend(settings, judge, pictures_every, gpu, misfortune=""):
    """As tune.train, without training: SSIM rises over the epochs to 1 less the distance of the learning rate from
    BEST_RATE in powers of ten. In the first epoch no codes are in use. It goes on after its log's last row.

    misfortune: "crash once", "crash" or "diverge", in the second epoch of trials with 8 dimensions.
    """
    folder = settings.results / settings.dataset / settings.savename
    rows = files.read_rows(folder / "log.csv")
    with (folder.parent.parent / "told.txt").open("a") as file:
        file.write(f"{settings.savename} from {len(rows)} on GPU {gpu}, {settings.threads} thread(s)\n")
    best = 1 - abs(math.log10(settings.learning_rate / BEST_RATE))
    while len(rows) < settings.epochs:
        epoch = len(rows) + 1
        ssim = best * epoch / settings.epochs
        rows.append({"epoch": epoch, "validate_ssim": 1.0 if epoch == 1 else ssim, "validate_reconstruction": 1 - ssim,
                     **({} if epoch == 1 else HEALTHY)})
        files.write_rows(folder / "log.csv", rows)
        if epoch == 2 and settings.embedding_dim == 8 and misfortune:
            if misfortune == "diverge":
                judge.send("--learning-rate 9: expected a finite loss, found nan at step 7. Lower it.")
                raise SystemExit(2)
            if misfortune == "crash":
                (folder / "log.csv").unlink()
            os._exit(3)
        judge.send(rows)
        if not judge.recv():
            raise SystemExit(75)


def meet(settings, judge, pictures_every, gpu):
    """As `pretend`, but a training begins only when its neighbour does: trial 0 with 1, 2 with 3, 4 with 5."""
    begun = settings.results / "begun"
    begun.mkdir(exist_ok=True)
    number = int(settings.savename.removeprefix("trial-"))
    (begun / str(number)).touch()
    end = time.monotonic() + 60
    while not (begun / str(number ^ 1)).exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    pretend(settings, judge, pictures_every, gpu)


def table(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def search(tiny_slices, apart, monkeypatch):
    """Run a study of pretended trainings in a folder; return its table. Charts take longer than all else: none."""
    def run(folder, *flags, training=pretend):
        monkeypatch.setattr(tuner, "train", training)
        monkeypatch.setattr(tuning, "draw", lambda *_: None)
        monkeypatch.setattr(tuning_study, "AT_RANDOM", 3)
        tune.main([*map(str, ("--study", "s", "--data", tiny_slices, "--out", folder, "--epochs", 4, "--batch", 8,
                              "--codebook-size", 128, "--bits-per-pixel", 9, *SEARCH, *flags))])
        return table(Path(folder))
    return run


@needs_optuna
class TestStudy:
    """Trials, in an order that depends on the seed alone, each told apart."""

    def test_the_first_trial_is_what_the_user_has_and_the_best_becomes_the_preset(self, search, apart, capsys):
        rows = search("one", "--trials", 8, "--unpruned", 100, "--learning-rate", 0.02, "--embedding-dim", 64)
        assert [row["trial"] for row in rows] == [str(number) for number in range(8)]
        assert (float(rows[0]["learning_rate"]), rows[0]["embedding_dim"]) == (0.02, "8")  # the nearest of 4 and 8
        assert len({row["learning_rate"] for row in rows}) == 8
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
        assert sum(line.startswith("trial ") for line in shown) == 8
        assert shown[-1].startswith(f"Done: one/best.toml, trial {best['trial']}, score {float(best['score']):.4f}")

    def test_the_chart_has_a_panel_for_each_setting_and_marks_the_best(self, apart):
        """Of scores 0.1 to 0.6 and one of -9, which stands at the edge: three times as far from 0.6 as the median."""
        space = {"learning_rate": Range(1e-4, 1e-2), "decay": Range(0.9, 0.999), "embedding_dim": Choices((4, 8)),
                 "gradient_weight": Range(0, 0.1)}
        results = [TrialResult(number, "pruned" if number == 3 else "complete",
                               {"learning_rate": 1e-3, "decay": 0.99, "embedding_dim": 4, "gradient_weight": 0.0}, one)
                   for number, one in enumerate((-9.0, 0.5, 0.6, 0.4, None))]
        scored = results[:4]
        assert tuning.lowest_drawn(scored) == pytest.approx(0.6 - 3 * (0.6 - 0.45))
        figure = tuning.draw(results, space, results[2], apart / "trials.png", "$s")
        assert [axis.get_title() for axis in figure.axes] == [
            "trials in their order", "learning_rate", "1 - decay", "embedding_dim", "gradient_weight"]
        shown = [text.get_text() for text in figure.legends[0].get_texts()]
        assert sorted(shown) == ["best", "highest so far", "pruned", "trained to the end",
                                 "trained to the end, lower than drawn"]
        assert figure.axes[2].get_xlim()[0] < 0.001 < 0.1 < figure.axes[2].get_xlim()[1]
        assert (apart / "trials.png").is_file()

    def test_a_trial_below_the_median_of_the_same_epoch_is_pruned_but_none_of_the_first(self, search, apart):
        rows = search("one", "--trials", 9, "--unpruned", 3)
        assert {row["state"] for row in rows[:3]} == {"complete"}
        assert {row["state"] for row in rows} == {"complete", "pruned"}
        scores = []
        for row in rows:  # by hand: at epoch e the score is e/4 of the last one, so that the second epoch decides
            last = 1 - abs(math.log10(float(row["learning_rate"]) / BEST_RATE))
            is_pruned = len(scores) >= 3 and last < torch.tensor(scores, dtype=torch.float64).quantile(0.5)
            assert (row["state"], row["epochs"]) == (("pruned", "2") if is_pruned else ("complete", "4"))
            assert float(row["score"]) == pytest.approx(last / 2 if is_pruned else last)
            scores += [] if is_pruned else [last]
        unpruned = search("two", "--trials", 5, "--unpruned", 1, "--pruner", "none")
        assert {row["state"] for row in unpruned} == {"complete"}

    def test_more_trials_are_added_and_are_those_of_one_long_study(self, search, apart):
        search("one", "--trials", 3)
        before = files_in(apart / "one" / "oasis")
        assert [row["state"] for row in search("one", "--trials", 3)] == ["complete"] * 3
        assert files_in(apart / "one" / "oasis") == before
        longer = search("one", "--trials", 6)
        assert before.items() <= files_in(apart / "one" / "oasis").items()
        assert longer == search("two", "--trials", 6)
        assert (apart / "one" / "best.toml").read_text() == (apart / "two" / "best.toml").read_text()
        assert longer[:3] != search("three", "--trials", 3, "--seed", 1)

    def test_two_workers_share_a_study_and_its_processors(self, search, apart):
        rows = search("one", "--trials", 6, "--workers", 2, "--threads", 3, "--unpruned", 100, training=meet)
        assert [(row["trial"], row["state"]) for row in rows] == [(str(number), "complete") for number in range(6)]
        told = (apart / "one" / "told.txt").read_text().splitlines()
        assert sorted(told) == [f"trial-00{number} from 0 on GPU None, 3 thread(s)" for number in range(6)]

    def test_a_process_that_crashes_is_started_again_and_goes_on(self, search, apart):
        rows = search("one", "--trials", 3, "--embedding-dim", 8, training=partial(pretend, misfortune="crash once"))
        assert {row["state"] for row in rows} == {"complete"}
        assert "trial-000 from 2 on GPU None" in (apart / "one" / "told.txt").read_text()

    def test_a_trial_that_always_crashes_fails_alone(self, search):
        rows = search("one", "--trials", 6, "--embedding-dim", 4, "--workers", 2,
                      training=partial(pretend, misfortune="crash"))
        assert {(row["embedding_dim"], row["state"]) for row in rows} == {("4", "complete"), ("8", "failed")}
        failed = next(row for row in rows if row["state"] == "failed")
        assert failed["reason"] == (f"its process ended with status 3, twice: see one/oasis/trial-00{failed['trial']}/"
                                    "output.txt")

    def test_a_user_error_in_a_trial_is_its_reason(self, search):
        rows = search("one", "--trials", 6, "--embedding-dim", 4, training=partial(pretend, misfortune="diverge"))
        reasons = {row["reason"] for row in rows if row["state"] == "failed"}
        assert reasons == {"--learning-rate 9: expected a finite loss, found nan at step 7. Lower it."}

    def test_an_error_of_each_of_the_first_trials_ends_the_study_with_that_line(self, search, refusal):
        line = refusal(lambda _: search("one", "--embedding-dim", 8, "--search", "embedding_dim=8", "learning_rate",
                                        training=partial(pretend, misfortune="diverge")))
        assert line == ("--learning-rate 9: expected a finite loss, found nan at step 7. Lower it. So ended each of "
                        "the first 3 trials.")
        assert len(table(Path("one"))) == 3
        rows = search("one", "--embedding-dim", 8, "--search", "embedding_dim=8", "learning_rate", "--trials", 4)
        assert [row["state"] for row in rows] == ["failed"] * 3 + ["complete"]

    def test_a_study_whose_few_trials_all_failed_ends_with_the_last_ones_reason(self, search, refusal):
        line = refusal(lambda _: search("one", "--trials", 1, "--embedding-dim", 8, "--search", "embedding_dim=8",
                                        training=partial(pretend, misfortune="diverge")))
        assert re.match(r"--savename s: expected a trial that ends well, found none of 1\. The last one's reason: "
                        r"--learning-rate 9: expected a finite loss, found nan", line)

    def test_without_a_trial_fit_for_a_prior_there_is_no_preset(self, search, refusal, apart, monkeypatch):
        monkeypatch.setattr(tuning, "fewest_codes", lambda size: 99)
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
    def test_another_setting_is_named(self, flags, found, search, refusal, apart):
        search("one", "--trials", 1)
        before = files_in(apart)
        line = refusal(lambda _: search("one", "--trials", 2, *flags))
        assert line == (f"--savename s: expected the settings that this study began with, found {found}. Give those "
                        "again, or choose another --savename.")
        assert files_in(apart) == before

    def test_other_images_are_told(self, search, refusal, tiny_slices, apart):
        search("one", "--trials", 1)
        rows = (tiny_slices / "manifest.csv").read_text().splitlines()
        fewer = apart / "fewer"
        fewer.mkdir()
        for split in ("train", "validate", "test"):
            (fewer / split).symlink_to(tiny_slices / split)
        (fewer / "manifest.csv").write_text("\n".join([rows[0], *rows[2:]]) + "\n")
        line = refusal(lambda _: search("one", "--trials", 2, "--data", fewer))
        assert re.match(rf"--data {fewer}: expected the images that this study began with \([0-9a-f]{{12}}\), found "
                        r"[0-9a-f]{12}\. Give those again", line)

    def test_a_study_is_not_begun_again_with_resume_never(self, search, refusal):
        search("one", "--trials", 1)
        line = refusal(lambda _: search("one", "--resume", "never"))
        assert line == ("--savename s: expected no study in one, found one, and --resume is never. Choose another "
                        "name, or drop --resume never to go on.")

    def test_a_second_tune_on_the_same_study_is_told(self, search, refusal, apart):
        (apart / "one").mkdir()
        with (apart / "one" / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            line = refusal(lambda _: search("one"))
        assert line.startswith("--savename s: expected a study that no other tune.py works on, found one. Stop it;")

    def test_a_database_of_another_kind_is_told(self, search, refusal, apart):
        (apart / "one").mkdir()
        (apart / "one" / "study.db").write_text("not a database at all, but long enough to look like one " * 10)
        line = refusal(lambda _: search("one"))
        assert line == ("one/study.db: expected a study that tune.py has written, found file is not a database. Move "
                        "it away to begin anew.")

    def test_impossible_bits_are_told_before_anything_is_made(self, search, refusal, apart):
        """32 x 32 pixels, 8² and 4² codes of 128: 7 x 80 / 1024."""
        line = refusal(lambda _: search("one", "--bits-per-pixel", 0.1))
        assert line.startswith("--bits-per-pixel 0.1: expected at least one codebook within it at 32 x 32 pixels and "
                               "--downsample 4 2, found 0.547 for the smallest, 128 codes. ")
        assert set(files_in(apart)) == {"one/.lock"}

    def test_torchrun_is_told(self, search, refusal, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        line = refusal(lambda _: search("one"))
        assert line == ("tune.py: expected to be started without torchrun, found 2 processes. --workers N trains "
                        "several trials at a time.")


def test_without_optuna_one_line_says_how_to_install_it(monkeypatch, refusal, tiny_slices, apart):
    monkeypatch.setattr(tuning_study, "optuna", None)
    line = refusal(tune.main, "--study", "s", "--data", tiny_slices, "--epochs", 1, "--batch", 8)
    assert line == "tune.py: expected the package optuna, found none. Install it: pip install -e '.[tune]'"
    assert not list(apart.iterdir())


@needs_optuna
class TestRealTrainings:
    """Each trial is what train_vqvae.py makes of its settings, bit for bit, also after signals and kills."""

    @staticmethod
    def flags(tiny_slices):
        return ["--data", str(tiny_slices), "--batch", "8", "--threads", "1", "--precision", "fp32", *TINY_VQVAE]

    def test_the_best_preset_trains_the_best_trial_again(self, tiny_slices, apart):
        tune.main([*self.flags(tiny_slices), "--study", "s", "--trials", "2", "--search", "learning_rate=0.005..0.02"])
        study = apart / "results" / "tune" / "s"
        rows = table(study)
        assert [row["state"] for row in rows] == ["complete", "complete"]
        best = max(rows, key=lambda row: float(row["score"]))
        train_vqvae.main(["--preset", str(study / "best.toml"), "--savename", "x", "--data", str(tiny_slices),
                          "--threads", "1", "--pictures-every", "10"])
        trained = study / "oasis" / f"trial-00{best['trial']}"
        check_same_weights(trained, apart / "results" / "oasis" / "x")
        logged = files.read_rows(trained / "log.csv")
        row = tuning.best_row(logged)
        assert float(best["ssim"]) == float(row["validate_ssim"])
        assert not (trained / "state.pt").exists()
        assert "Done: " in (trained / "output.txt").read_text()

    def test_a_study_that_was_stopped_and_then_killed_goes_on_in_the_middle_of_a_trial(self, tiny_slices, apart):
        """SIGTERM in the first start, SIGKILL in the second: its training, left alone, saves and ends."""
        flags = [*self.flags(tiny_slices), "--epochs", "40", "--study", "s", "--trials", "1", "--search", "commitment"]
        run = apart / "results" / "tune" / "s" / "oasis" / "trial-000"
        epochs = 0
        for number in (signal.SIGTERM, signal.SIGKILL):
            with (apart / "said.txt").open("a") as said:
                process = subprocess.Popen([sys.executable, ROOT / "tune.py", *flags], stdout=said, stderr=said,
                                           env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
            try:
                wait_for(partial(has_rows, run / "log.csv", epochs + 2), process)
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
        assert [row.state for row in opened(apart, flags)] == ["unfinished"]
        tune.main(flags)
        assert [row["state"] for row in table(run.parents[1])] == ["complete"]
        train_vqvae.main([*self.flags(tiny_slices), "--epochs", "40", "--savename", "x", "--pictures-every", "40"])
        check_same_weights(run, apart / "results" / "oasis" / "x")


def opened(folder, flags):
    settings = parsing.parse(TuneSettings, "", flags)
    data_hash = weights.read_config(folder / "results/tune/s/oasis/trial-000")["data_hash"]
    return tuning_study.Study(folder / "results/tune/s", settings, space_of(settings), data_hash).results()


def has_rows(log, number):
    return len(files.read_rows(log)) >= number


def wait_for(is_so, process):
    end = time.monotonic() + SECONDS
    while not is_so():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def check_same_weights(one, other):
    found, expected = (weights.load_weights(folder / weights.WEIGHTS)[0] for folder in (one, other))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
