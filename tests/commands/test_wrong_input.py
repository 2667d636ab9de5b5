"""Wrong input from the outside: exit status 2, one line on the screen, and nothing that was there is touched."""

import dataclasses
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_PRIOR, TINY_VQVAE, edit_manifest, files_in, on_screen, write_slices

from vqvae2.commands import evaluate, sample, train_vqvae
from vqvae2.commands import train_prior as train_pixel_cnn
from vqvae2.common import files
from vqvae2.models.autoencoder import Vqvae
from vqvae2.runs import state as run_state
from vqvae2.runs import weights
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainVqvae

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tiny_run, apart):
    """A copy of the tiny chain that a test may spoil."""
    shutil.copytree(tiny_run.results, apart / "results")
    folder = apart / "results" / "oasis"
    return dataclasses.replace(tiny_run, results=apart / "results", vqvae=folder / "tiny", top=folder / "tiny-top",
                               bottom=folder / "tiny-bottom")


@pytest.fixture
def check_refused(refusal, apart):
    """Run a main; the line must match, and the working folder, with all results, must stay as it was."""
    def check(said, main, *arguments):
        before = files_in(apart)
        line = refusal(main, *arguments)
        assert re.search(said, line), line
        assert files_in(apart) == before
    return check


@pytest.fixture
def another_vqvae(run):
    """A VQ-VAE that differs from the tiny one in one number."""
    tensors, config = weights.load_weights(run.vqvae / weights.WEIGHTS)
    tensors["decoder.0.bias"][0] += 1
    weights.save_weights(run.results / "oasis" / "another" / weights.WEIGHTS, tensors, config)
    return run.results / "oasis" / "another"


@pytest.fixture
def one_level(run):
    """An untrained VQ-VAE with one level, whose codebook counts as placed."""
    _, config = weights.load_weights(run.vqvae / weights.WEIGHTS)
    settings = TrainVqvae(savename="one", epochs=1, batch=8, levels=1, channels=8, embedding_dim=8,
                             residual_channels=4, codebook_size=16, data=run.data)
    folder = run.results / "oasis" / "one"
    tensors = Vqvae(settings).state_dict()
    tensors["quantizers.top.is_started"].fill_(True)
    weights.save_weights(folder / weights.WEIGHTS, tensors,
                             {**config, "settings": as_dict(settings)})
    return folder


def train(run, *more):
    """What the tiny VQ-VAE was trained with, and more."""
    return ["--data", run.data, "--results", run.results, "--savename", "tiny", *TINY, *TINY_VQVAE, *more]


def train_prior(run, *more, level="top", name="new", vqvae="tiny"):
    return ["--data", run.data, "--results", run.results, "--savename", name, "--level", level, "--vqvae", vqvae, *TINY,
            *TINY_PRIOR, *more]


class TestNames:
    def test_a_vqvae_that_there_is_not(self, run, check_refused):
        said = (r"^--vqvae tinny: expected a folder with model\.safetensors, or a name in .*results/\*/ or pretrained/"
                r", found only tiny, tiny-bottom, tiny-top\. Check the name")
        check_refused(said, train_pixel_cnn.main, *train_prior(run, vqvae="tinny"))
        check_refused(said, sample.main, "--vqvae", "tinny", "--top", run.top, "--out", "out")
        check_refused(said, evaluate.main, "--vqvae", "tinny", "--out", "out")

    def test_a_name_that_two_runs_have(self, run, check_refused):
        shutil.copytree(run.top, run.results / "folder" / "tiny")
        check_refused(
            r"^--vqvae tiny: expected one run of this name, found .*folder/tiny, .*oasis/tiny\. Give the path",
            train_pixel_cnn.main, *train_prior(run))

    def test_a_prior_in_the_place_of_a_vqvae(self, run, check_refused):
        said = (r"^--vqvae {}: expected a VQ-VAE, found a top prior in .*tiny-top\. Give the name that train_vqvae\.py "
                r"was run with\.$")
        check_refused(said.format("tiny-top"), train_pixel_cnn.main, *train_prior(run, vqvae="tiny-top"))
        check_refused(said.format(".*"), sample.main, "--vqvae", run.top, "--top", run.top, "--out", "out")
        check_refused(said.format("tiny-top"), evaluate.main, "--vqvae", "tiny-top", "--out", "out")

    def test_a_vqvae_or_the_other_level_in_the_place_of_a_prior(self, run, check_refused):
        check_refused(
            r"^--top tiny: expected a top prior, found a vqvae in .*tiny\. Give the name .* --level top was run",
            sample.main, "--vqvae", "tiny", "--top", "tiny", "--out", "out")
        check_refused(r"^--bottom tiny-top: expected a bottom prior, found a top prior in .*\. Give the name .* bottom",
                      sample.main, "--vqvae", "tiny", "--top", "tiny-top", "--bottom", "tiny-top", "--out", "out")

    def test_a_prior_of_another_vqvae(self, run, another_vqvae, check_refused):
        ours, other = (weights.weights_hash(weights.load_weights(folder / weights.WEIGHTS)[0])[:6]
                       for folder in (run.vqvae, another_vqvae))
        said = (rf"^--vqvae: expected the VQ-VAE whose codes --top .*tiny-top learned \({ours}, tiny\), found {other}"
                r"\. Pass --vqvae tiny, or train the prior again\.$")
        check_refused(
            said, sample.main, "--vqvae", "another", "--top", "tiny-top", "--bottom", run.bottom, "--out", "out")
        check_refused(said, evaluate.main, "--vqvae", "another", "--top", run.top, "--out", "out")


class TestLevels:
    def test_a_bottom_prior_for_one_level(self, run, one_level, check_refused):
        check_refused(
            r"^--bottom: expected no bottom prior, since --vqvae one has one level, found tiny-bottom\. Drop",
            sample.main, "--vqvae", "one", "--top", "tiny-top", "--bottom", "tiny-bottom", "--out", "out")
        check_refused(
            r"^--level bottom: expected a level of --vqvae one, found one level, called top\. Use --level top",
            train_pixel_cnn.main, *train_prior(run, level="bottom", vqvae="one"))

    def test_no_bottom_prior_for_two_levels(self, run, check_refused):
        check_refused(
            r"^--bottom: expected the bottom prior of --vqvae tiny, which has 2 levels, found none\. Give --bottom",
            sample.main, "--vqvae", "tiny", "--top", "tiny-top", "--out", "out")

    def test_a_codebook_that_has_collapsed(self, run, another_vqvae, refusal):
        tensors, config = weights.load_weights(another_vqvae / weights.WEIGHTS)
        tensors["quantizers.top.codebook"][:] = 0
        weights.save_weights(another_vqvae / weights.WEIGHTS, tensors, config)
        before = files_in(run.results)
        assert re.search(r"^--vqvae another: expected at least 8 of 16 top codes in use on the training images, found "
                         r"1: its codebook has collapsed\. Train", refusal(train_pixel_cnn.main,
                                                                        *train_prior(run, vqvae="another"),
                                                                        "--copies", "2"))
        # The codes of the training images are whole and right, and are kept; nothing else was encoded.
        assert set(files_in(run.results)) - set(before) == {"oasis/another/codes/train.npz"}


class TestGoingOn:
    @pytest.mark.parametrize(("flags", "found"), [
        (["--channels", "8"], r"--channels 8 \(was 16\)"), (["--seed", "1"], r"--seed 1 \(was 0\)"),
        (["--split", "1", "2", "3"], r"--split 1\.0 2\.0 3\.0 \(was 64 16 20\)"),
        (["--decay", "0.99", "--size", "16"], r"--size 16 \(was None\), --decay 0\.99 \(was 0\.9\)")])
    def test_a_setting_that_differs_is_named_with_both_values(self, flags, found, run, check_refused):
        check_refused(
            rf"^--savename tiny: expected the settings that this run began with, found {found}\. Give those again",
            train_vqvae.main, *train(run, *flags))

    def test_resume_never_in_a_folder_that_holds_a_run(self, run, check_refused):
        check_refused(
            r"^--savename tiny: expected no run in .*tiny, found one, and --resume is never\. Choose another name",
            train_vqvae.main, *train(run, "--resume", "never"))

    def test_a_folder_that_holds_another_kind_of_model(self, run, check_refused):
        check_refused(
            r"^--savename tiny: expected a run of kind top prior in .*tiny, found vqvae\. Choose another name\.$",
            train_pixel_cnn.main, *train_prior(run, name="tiny"))
        check_refused(
            r"^--savename tiny-top: expected a run of kind bottom prior in .*, found top prior\. Choose another",
            train_pixel_cnn.main, *train_prior(run, level="bottom", name="tiny-top"))

    def test_a_batch_that_does_not_divide_the_global_batch(self, run, check_refused):
        for batch in (5, 16):
            check_refused(
                rf"^--batch {batch}: expected a divisor of this run's global batch of 8, found 1 process\(es\) x "
                rf"{batch} = {batch}\. Change --batch", train_vqvae.main, *train(run, "--batch", batch))

    def test_other_images_than_before(self, run, apart, check_refused):
        other = write_slices(apart / "other")
        for name in ("validate/OAS1_0008_axial071.png", "train/OAS1_0002_axial072.png"):
            shutil.copy(other / "train" / "OAS1_0001_axial070.png", other / name)
        edit_manifest(other, hashed=True)
        said = r"^--data .*other: expected the images that this run began with, found another train/OAS1_0002_axial072"
        check_refused(rf"{said}\.png\. Put back", train_vqvae.main, *train(run, "--data", other))
        train_pixel_cnn.main([str(word) for word in train_prior(run)])
        check_refused(rf"{said}\.png\. Put back", train_pixel_cnn.main, *train_prior(run, "--data", other))

    def test_a_run_of_before_its_images_were_marked_tells_other_data_all_the_same(self, run, apart, check_refused):
        config = weights.read_config(run.vqvae)
        files.write_json(run.vqvae / weights.CONFIG, {name: value for name, value in config.items() if name not in (
            "images_hash", "image_marks")})
        other = write_slices(apart / "other")
        edit_manifest(other, lambda rows: rows.pop())
        check_refused(
            r"^--savename tiny: expected the data that this run began with \([0-9a-f]{12}\), found [0-9a-f]{12}\. "
            r"Choose another --savename", train_vqvae.main, *train(run, "--data", other))
        train_vqvae.main([str(word) for word in train(run, "--epochs", "11")])
        assert weights.read_config(run.vqvae)["images_hash"] == config["images_hash"]

    @pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(path.read_bytes()[:1000]),
                                       lambda path: path.write_bytes(b"")], ids=["torn", "empty"])
    def test_states_that_are_all_damaged(self, spoil, run, refusal):
        spoil(run.vqvae / run_state.STATE)
        spoil(run.vqvae / run_state.STATE_BEFORE)
        said = refusal(train_vqvae.main, *train(run))
        assert re.search(r"state\.pt: expected a training state of this project, found .+state-before\.pt: .+, found "
                         r".+\. Delete what is named here to train from", said)

    @pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(path.read_bytes()[:1000]),
                                       lambda path: path.write_bytes(b"")], ids=["torn", "empty"])
    def test_a_last_state_that_is_damaged_is_passed_over_with_a_warning_and_kept_aside(self, spoil, run, capfd):
        before = run_state.load_state(run.vqvae / run_state.STATE)["model"]
        spoil(run.vqvae / run_state.STATE)
        train_vqvae.main([str(argument) for argument in train(run)])
        said = capfd.readouterr()
        assert "warning: " in said.err
        assert "state-before.pt, the one before it" in said.err
        assert (run.vqvae / "state-bad.pt").exists()
        for name, value in run_state.load_state(run.vqvae / run_state.STATE)["model"].items():
            assert torch.equal(value, before[name]), name

    def test_all_epochs_done_is_no_error_and_changes_no_result(self, run, capfd):
        before = files_in(run.vqvae)
        train_vqvae.main([str(argument) for argument in train(run)])
        assert "all 10 epochs are done: nothing to do" in capfd.readouterr().out
        after = files_in(run.vqvae)
        for name in ("model.safetensors", "log.csv", "state.pt"):
            assert after[name] == before[name]


class TestData:
    def test_test_images_that_were_trained_on(self, run, apart, check_refused):
        other = write_slices(apart / "other")
        shutil.copy(other / "train" / "OAS1_0001_axial070.png", other / "test" / "OAS1_0009_axial071.png")
        edit_manifest(other, hashed=True)
        check_refused(r"^--split test: expected images that --vqvae .* not trained on, found 1 of 9 that .*\. Give the",
                      evaluate.main, "--vqvae", "tiny", "--data", other, "--out", "out")

    def test_images_of_another_shape(self, run, apart, check_refused):
        other = write_slices(apart / "other", size=64)
        check_refused(r"^--data .*other: expected images of shape \(1, 32, 32\) as --vqvae tiny was trained on, found "
                      r"\(1, 64, 64\)\. Give", evaluate.main, "--vqvae", "tiny", "--data", other, "--out", "out")
        check_refused(r"^--data .*other: expected images of shape \(1, 32, 32\) as --vqvae tiny was trained on, found "
                      r"\(1, 64, 64\)\. Give", train_pixel_cnn.main, *train_prior(run, "--data", other))

    def test_no_data_folder_at_all(self, apart, check_refused):
        check_refused(
            r"^--data: expected a folder, or SLICES_PATH in the environment or in \.env, found neither\. Give",
            train_vqvae.main, "--savename", "new", *TINY, *TINY_VQVAE)

    @pytest.mark.parametrize("main", [evaluate.main, train_pixel_cnn.main], ids=["evaluate", "a prior"])
    def test_weights_whose_images_are_on_another_machine_ask_for_the_users_own(self, main, run, check_refused):
        path = run.vqvae / weights.WEIGHTS
        tensors, config = weights.load_weights(path)
        config["settings"]["data"] = "of-the-author"
        weights.save_weights(path, tensors, config)
        prior = ["--level", "top", "--savename", "new", *TINY, *TINY_PRIOR]
        words = ["--vqvae", "tiny", *(["--out", "out"] if main is evaluate.main else prior)]
        check_refused(r"^--data: expected the folder of your slices, found none, and the images that --vqvae tiny was "
                      r"trained on are not on this machine\. Give --data FOLDER\.$", main, *words)
        check_refused(r"^--data nowhere: expected a folder, found nothing\.", main, *words, "--data", "nowhere")

    def test_a_split_without_an_image(self, run, apart, check_refused):
        other = write_slices(apart / "other")
        manifest = (other / "manifest.csv").read_text().splitlines()
        (other / "manifest.csv").write_text("\n".join(line for line in manifest if not line.startswith("test/")))
        check_refused(r"^--split test: expected at least 1 image, found 0 in .*other\. Choose another split",
                      evaluate.main, "--vqvae", "tiny", "--data", other, "--out", "out")

    def test_a_learning_rate_that_loses_the_loss_keeps_the_folder_usable(self, run, apart, refusal):
        line = refusal(train_vqvae.main, "--data", run.data, "--results", run.results, "--savename", "lost", *TINY,
                       *TINY_VQVAE, "--learning-rate", "1e30", "--warmup-steps", "0", "--start-steps", "1000")
        assert re.search(r"^--learning-rate 1e\+30: expected a finite loss, found (nan|inf) at step \d+\. Lower", line)
        assert not list((run.results / "oasis" / "lost").glob("*.tmp*"))


class TestOut:
    @pytest.mark.parametrize("out", ["file", "file/deeper"])
    def test_a_file_where_a_folder_must_be(self, out, run, apart, check_refused):
        (apart / "file").write_text("precious")
        said = rf"^--out {out}: expected a folder or nothing, found a file file\. Choose another name\.$"
        check_refused(
            said, sample.main, "--vqvae", "tiny", "--top", "tiny-top", "--bottom", "tiny-bottom", "--out", out)
        check_refused(said, evaluate.main, "--vqvae", "tiny", "--out", out)

    def test_results_that_are_a_file(self, tiny_slices, apart, check_refused):
        (apart / "file").write_text("precious")
        check_refused(
            r"^--savename file/oasis/new: expected a folder or nothing, found a file file\. Choose another name",
            train_vqvae.main, "--data", tiny_slices, "--results", "file", "--savename", "new", *TINY, *TINY_VQVAE)


def test_a_folder_with_test_images_alone_has_none_to_train(tiny_slices, apart, refusal):
    shutil.copytree(tiny_slices / "test", apart / "data" / "test")
    assert refusal(train_vqvae.main, "--preset", "own-images", "--data", "data", "--size", "32") == (
        "--data: expected at least 1 training image, found 0. Give --split a larger first share, or a folder that has "
        "some to train.")


def test_a_prior_splits_unsplit_images_as_its_vqvae_did_whatever_its_own_seed(tiny_slices, apart):
    """Otherwise it would learn the codes of images that its VQ-VAE is tested on."""
    for path in tiny_slices.rglob("*.png"):
        (apart / "flat").mkdir(exist_ok=True)
        shutil.copy(path, apart / "flat")
    common = ["--dataset", "folder", "--data", "flat", *TINY]
    train_vqvae.main([*common, "--savename", "v", *TINY_VQVAE, "--seed", "1", "--subject-pattern", "(OAS1_\\d+)"])
    train_pixel_cnn.main([*common, "--savename", "p", *TINY_PRIOR, "--seed", "2", "--level", "bottom", "--vqvae", "v"])
    vqvae, prior = (weights.read_config(Path("results/folder") / name) for name in "vp")
    assert prior["training_images"] == vqvae["training_images"]
    assert prior["data_hash"] == vqvae["data_hash"]
    assert prior["settings"]["seed"] == 2


@pytest.mark.parametrize(("command", "said"), [
    (["train_vqvae.py", "--levl", "2"], "train_vqvae.py: missing --savename, --epochs, --batch."),
    (["evaluate.py", "--vqvae", "nowhere", "--out", "out"], "--vqvae nowhere: expected a folder with model.")])
def test_a_real_process_says_one_line_and_exits_2(command, said, apart):
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = on_screen(done.stderr)
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert files_in(apart) == {}


NO_NAME = "a" * 5000


@pytest.mark.parametrize("words", [
    "sample --vqvae {v} --top {t} --bottom {b} --count 1 --out {no}", "predict {data} --vqvae {v} --out {no}",
    "predict {no} --vqvae {v} --out o", "extract --scans {no} --out o", "extract --scans . --out {no}",
    "train-vqvae --data {no} --savename x --epochs 1 --batch 2", "evaluate --vqvae {v} --data {no} --out o",
    "train-prior --level top --vqvae {no} --savename x --epochs 1 --batch 2", "status {no}", "curves {no}",
    "demo-scans --out {no}", "publish {no} o", "publish {v} {no}"])
def test_a_name_that_no_file_system_takes_is_refused_by_every_command(check_refused, tiny_run, words):
    word, *arguments = words.format(v=tiny_run.vqvae, t=tiny_run.top, b=tiny_run.bottom, data=tiny_run.data,
                                    no=NO_NAME).split()
    main = importlib.import_module(f"vqvae2.commands.{word.replace('-', '_')}").main
    check_refused(r"a{20}.* File name too long", main, *arguments)
