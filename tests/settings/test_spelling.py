"""What people type first is taken where it can mean one thing only, and answered in one line where it cannot."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vqvae2.common.errors import UserError
from vqvae2.evaluation.predict_settings import PredictSettings
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings import spelling
from vqvae2.settings.parsing import parse
from vqvae2.slices.settings import ExtractSettings
from vqvae2.training.settings import TrainPrior, TrainVqvae

ROOT = Path(__file__).parents[2]
RUN = ["--savename", "brain", "--epochs", "3", "--batch", "4"]
PRIOR = [*RUN, "--vqvae", "a"]
EVALUATE = ["--vqvae", "a", "--out", "report"]
SAMPLE = ["--vqvae", "a", "--top", "b", "--out", "samples"]
ALL = (TrainVqvae, TrainPrior, SampleSettings, EvaluateSettings, ExtractSettings, PredictSettings)


@pytest.fixture
def said(monkeypatch):
    """The one line that a command line gets."""
    monkeypatch.setattr("sys.argv", ["/somewhere/script.py"])

    def of(settings, *arguments):
        with pytest.raises(UserError) as refusal:
            parse(settings, "A manual.", list(arguments))
        assert "\n" not in str(refusal.value)
        return str(refusal.value)
    return of


class TestTaken:
    @pytest.mark.parametrize("words", [["--level=top"], ["--Level", "top"], ["--LEVEL=Top"], ["--level", "TOP"],
                                       ["--level", " top "]])
    def test_letters_of_any_case(self, words):
        assert parse(TrainPrior, "", [*words, *PRIOR]).level == "top"

    @pytest.mark.parametrize(("words", "name", "value"), [
        (["--embedding_dim", "8"], "embedding_dim", 8), (["--Embedding-Dim=8"], "embedding_dim", 8),
        (["--codebook_size=8"], "codebook_size", 8), (["--learning_rate", "1e-4"], "learning_rate", 1e-4),
        (["--dataset", "OASIS"], "dataset", "oasis"), (["--dataset=Keras-PNG-Slices"], "dataset", "keras_png_slices"),
        (["--precision", "FP32"], "precision", "fp32"), (["--resume", "Never"], "resume", "never")])
    def test_dashes_for_underscores_and_the_reverse(self, words, name, value):
        assert getattr(parse(TrainVqvae, "", [*RUN, *words]), name) == value

    @pytest.mark.parametrize("word", ["val", "valid", "validation", "Val", "VALIDATION", "validate"])
    def test_every_name_of_the_validation_split(self, word):
        assert parse(EvaluateSettings, "", [*EVALUATE, "--split", word]).split == "validate"
        assert parse(EvaluateSettings, "", [*EVALUATE, f"--split={word}"]).split == "validate"

    def test_planes_in_letters_of_any_case(self):
        assert parse(ExtractSettings, "", ["--planes", "Axial", "CORONAL", "--size", "64"]).planes == (
            "axial", "coronal")

    @pytest.mark.parametrize(("settings", "more"), [
        (TrainPrior, [*RUN, "--level", "top"]), (SampleSettings, ["--top", "b", "--out", "o"]),
        (EvaluateSettings, ["--out", "o"]), (PredictSettings, ["--out", "o", "--batch", "8", "a.png"])])
    def test_m_is_vqvae_wherever_a_vqvae_is_taken(self, settings, more):
        for words in (["-m", "brain"], ["-m=brain"]):
            assert parse(settings, "", [*more, *words]) == parse(settings, "", [*more, "--vqvae", "brain"])

    def test_home_in_every_path(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        settings = parse(TrainVqvae, "", [*RUN, "--data=~/slices/", "--results", "~"])
        assert (settings.data, settings.results) == (Path("/home/me/slices"), Path("/home/me"))
        assert parse(SampleSettings, "", [*SAMPLE[:-1], "~/out", "--mask=~/m.png", "--inpaint", "~/i"]) == (
            SampleSettings(vqvae="a", top="b", out=Path("/home/me/out"), mask="/home/me/m.png",
                           inpaint=Path("/home/me/i")))
        settings = parse(PredictSettings, "", ["-m=~/run", "--out=~/p", "--", "~/a.png", "b.png"])
        assert (settings.vqvae, settings.out, settings.input) == (
            "/home/me/run", Path("/home/me/p"), (Path("/home/me/a.png"), Path("b.png")))

    @pytest.mark.parametrize("word", ["help", "-help", "--help", "-h", "-?", "--Help"])
    def test_whatever_asks_for_help(self, word, capsys):
        with pytest.raises(SystemExit) as end:
            parse(TrainVqvae, "A manual.", [word])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith("A manual.\n")

    def test_values_that_look_like_slips_but_are_none(self):
        settings = parse(SampleSettings, "", [*SAMPLE, "--condition", "age=70,5", "note=a–b", "--top-p", "0.9", "1"])
        assert settings.condition == ("age=70,5", "note=a–b")
        assert settings.top_p == (0.9, 1.0)
        pattern = parse(TrainVqvae, "", [*RUN, "--subject-pattern", "Case_(\\d+),-"]).subject_pattern
        assert pattern == "Case_(\\d+),-"
        assert parse(PredictSettings, "", ["-m", "a", "--out", "o", "--", "size.png", "--vqvae"]).input == (
            Path("size.png"), Path("--vqvae"))

    def test_a_file_that_is_called_like_a_flag(self, apart):
        (apart / "size").touch()
        assert parse(PredictSettings, "", ["-m", "a", "--out", "o", "--", "size"]).input == (Path("size"),)


@pytest.mark.parametrize(("settings", "words", "line"), [
    (TrainPrior, ["--", "level", "top", *PRIOR],
     "--level: expected no space after the dashes, found `-- level`: a space too many. Write --level top."),
    (TrainPrior, [*PRIOR, "--", "level=top"],
     "--level: expected no space after the dashes, found `-- level=top`: a space too many. Write --level=top."),
    (TrainPrior, [*PRIOR, "—", "level", "top"],
     "--level: expected no space after the dashes, found `— level`: a space too many. Write --level top."),
    (SampleSettings, [*SAMPLE, "--", "top_k", "5"],
     "--top-k: expected no space after the dashes, found `-- top_k`: a space too many. Write --top-k 5."),
    (PredictSettings, ["-m", "a", "a.png", "--", "out", "--size", "64"],
     "--out: expected no space after the dashes, found `-- out`: a space too many. Write --out."),
    (TrainPrior, ["—level", "top", *PRIOR],
     "--level: expected it written so, found —level: a dash that a word processor made. Write --level."),
    (TrainPrior, ["–level=top", *PRIOR],
     "--level: expected it written so, found –level: a dash that a word processor made. Write --level=top."),
    (TrainVqvae, [*RUN, "--learning‑rate", "1"], "--learning-rate: expected it written so, found --learning‑rate: "
     "a dash that a word processor made. Write --learning-rate."),
    (TrainPrior, ["-level", "top", *PRIOR],
     "--level: expected it written so, found -level: one dash in place of --. Write --level."),
    (TrainPrior, ["---level", "top", *PRIOR],
     "--level: expected it written so, found ---level: more dashes in place of --. Write --level."),
    (EvaluateSettings, ["--m", "a", "--out", "o"],
     "-m: expected it written so, found --m: more dashes in place of -. Write -m."),
    (TrainPrior, ["--level", "=", "top", *PRIOR], "--level: expected no spaces around =, found some. Write --level "
     "top."),
    (TrainVqvae, [*RUN, "--data", ""],
     "--data: expected a value, found nothing. Give one, or leave the flag out; is a shell variable not set?"),
    (TrainVqvae, [*RUN, "--data="],
     "--data: expected a value, found nothing. Give one, or leave the flag out; is a shell variable not set?"),
    (PredictSettings, ["", "-m", "a", "--out", "o"],
     "command line: expected a value, found nothing. Give one, or leave the flag out; is a shell variable not set?"),
    (TrainVqvae, [*RUN, "\r"], "--batch: expected a value, found a Windows line end. Turn the script's line ends "
     "into those of Unix: sed -i 's/\\r$//' SCRIPT."),
    (TrainVqvae, [*RUN, "--data", "“/my", "slices”"],
     "--data: expected a value in plain quotes, found “/my, whose quotes a word processor made. Write '…' or \"…\"."),
    (TrainVqvae, [*RUN, "--downsample", "4,2"],
     "--downsample: expected spaces between values, found 4,2. Write --downsample 4 2; decimals have a point."),
    (TrainVqvae, [*RUN, "--split=64,16,20"],
     "--split: expected spaces between values, found 64,16,20. Write --split 64 16 20; decimals have a point."),
    (ExtractSettings, ["--planes", "axial,coronal"],
     "--planes: expected spaces between values, found axial,coronal. Write --planes axial coronal; decimals have a "
     "point.")])
def test_a_slip_is_shown_with_the_words_that_would_do(settings, words, line, said):
    assert said(settings, *words) == line


MEANT = "script.py: unrecognized {}. Perhaps you meant {}. See script.py --help."


class TestNamesOfOtherCode:
    @pytest.mark.parametrize(("words", "meant"), [
        ("--num_embeddings 64", "--codebook-size"), ("--n_embed 64", "--codebook-size"),
        ("--embed_dim 64", "--embedding-dim"), ("--num_hiddens 64", "--channels"),
        ("--hidden_channels 64", "--channels"), ("--num-residual-hiddens 8", "--residual-channels"),
        ("--num_residual_layers 2", "--residual-layers"), ("--commitment_cost 1", "--commitment"),
        ("--beta 1", "--commitment"), ("--lr 1", "--learning-rate"), ("--LR=1", "--learning-rate"),
        ("--bs 8", "--batch"), ("--batch_size 8", "--batch"), ("--batch-size=8", "--batch"), ("-b 8", "--batch"),
        ("--epoch 3", "--epochs"), ("--num_epochs 3", "--epochs"), ("--data_dir x", "--data"),
        ("--data-path x", "--data"), ("--img_size 64", "--size"), ("--amp", "--precision"),
        ("--output_dir x", "--results"), ("--name x", "--savename"), ("--nb-levels 2", "--levels"),
        ("--presets x", "--preset"), ("--codebok-size 64", "--codebook-size")])
    def test_of_a_vqvae_lead_to_ours(self, words, meant, said):
        assert said(TrainVqvae, *RUN, *words.split()) == MEANT.format(words, meant)

    @pytest.mark.parametrize(("settings", "start", "words", "meant"), [
        (TrainPrior, [*PRIOR, "--level", "top"], "--n_layers 8", "--layers"),
        (TrainPrior, [*PRIOR, "--level", "top"], "--arch x", "--network"),
        (SampleSettings, SAMPLE, "--num-samples 8", "--count"), (SampleSettings, SAMPLE, "--temp 1", "--temperature"),
        (SampleSettings, SAMPLE, "--model x", "--vqvae"), (EvaluateSettings, EVALUATE, "--ckpt x", "--vqvae"),
        (ExtractSettings, [], "--num_workers 2", "--workers"), (ExtractSettings, [], "--input x", "--scans"),
        (ExtractSettings, [], "--slices 20", "--per-scan"), (ExtractSettings, [], "--fov 200", "--field-of-view")])
    def test_of_other_scripts_lead_to_ours(self, settings, start, words, meant, said):
        assert said(settings, *start, *words.split()) == MEANT.format(words, meant)

    def test_two_at_once_are_both_answered_and_what_is_missing_is_named(self, said):
        assert said(TrainVqvae, "--savename", "a", "--batch_size", "4", "--lr", "1", "--epochs", "1") == (
            "script.py: missing --batch. unrecognized --batch_size 4 --lr 1. Perhaps you meant --batch. Perhaps you "
            "meant --learning-rate. See script.py --help.")

    def test_the_older_ways_of_the_launcher_are_answered(self, said):
        for words in (["--local_rank", "0"], ["--gpu", "0"], ["--device", "cuda"]):
            assert f"unrecognized {' '.join(words)}. The device is found without being told; CUDA_VIS" in said(
                TrainVqvae, *RUN, *words)
        assert said(TrainVqvae, *RUN, "--nproc_per_node=8") == (
            "script.py: unrecognized --nproc_per_node=8. It goes before the script: python -m torch.distributed.run "
            "--standalone --nnodes=1 --nproc_per_node=8 SCRIPT. See script.py --help.")

    @pytest.mark.parametrize(("words", "answer"), [
        (["-m", "a"], "This script takes no VQ-VAE; train_vqvae.py names the one that it trains by --savename."),
        (["--level", "top"], "Levels are chosen in train_pixel_cnn.py: --level top or --level bottom."),
        (["--num_workers", "4"], "Images are kept in memory: no workers are needed."),
        (["--optimizer", "sgd"], "The optimiser is Adam (AdamW for a prior), and its rate falls by a cosine to 0."),
        (["--no-standardise"], "It is off unless --standardise is given."),
        (["--standardise", "True"], "--standardise takes no value."),
        (["--standardise=false"], "--standardise takes no value: leave it out."),
        (["--size", "64", "64"], "--size takes 1 value(s)."), (["epochs=3"], "Perhaps you meant --epochs."),
        (["size", "64"], "Perhaps you meant --size.")])
    def test_what_train_vqvae_has_no_flag_for_is_answered(self, words, answer, said):
        assert f" {answer} See script.py --help." in said(TrainVqvae, *RUN, *words)

    def test_a_report_cannot_allow_a_leak_that_the_training_did_not(self, said):
        """layouts.py's refusal names the flag, whichever script has met the folder."""
        assert " It is a flag of train_vqvae.py, whose priors and reports follow it. See" in said(
            EvaluateSettings, *EVALUATE, "--allow-leak")

    def test_inputs_of_predict_are_said_to_need_no_flag(self, said):
        for flag in ("--input", "--image", "-i", "--data"):
            assert said(PredictSettings, "-m", "a", "--out", "o", flag, "a.png") == (
                f"script.py: unrecognized {flag} a.png. Images and scans are named without a flag. See script.py "
                "--help.")

    def test_a_name_that_nobody_uses_is_left_to_tyro(self, said):
        assert said(TrainVqvae, *RUN, "--zzz", "2") == "script.py: unrecognized --zzz 2. See script.py --help."


class TestTable:
    def test_every_row_is_a_flag_of_some_script(self):
        known = {name for settings in ALL for name in spelling.flags_of(settings)[0]} | {"subjects"}
        assert set(spelling.KNOWN_AS) <= known

    def test_no_flag_of_ours_is_told_to_be_another_one(self):
        """A name in a row is only looked up where the script has no flag of that name; a row has not its own name."""
        for flag, names in spelling.KNOWN_AS.items():
            assert flag not in names.split(), flag
            assert len(set(names.split())) == len(names.split()), flag
            assert names == names.lower().replace("_", "-"), flag

    def test_flags_say_how_many_values_they_take(self):
        flags, stand_alone = spelling.flags_of(PredictSettings)
        assert stand_alone
        assert (flags["extent"].values, flags["planes"].values, flags["batch"].values, flags["help"].values) == (
            2, None, 1, 0)
        assert flags["planes"].choices == ("axial", "coronal", "sagittal")
        assert (flags["m"].name, flags["m"].values) == ("-m", 1)
        assert "input" not in flags

    @pytest.mark.parametrize("script", sorted(path.stem for path in ROOT.glob("*.py")
                                              if "parse(" in path.read_text(encoding="utf-8")))
    def test_every_flag_of_every_script_is_left_as_it_is(self, script):
        module = importlib.import_module(script)
        settings = getattr(module, re.search(r"parse\((\w+), __doc__", Path(module.__file__).read_text())[1])
        for flag in spelling.flags_of(settings)[0].values():
            words = [flag.name, *(flag.choices[:1] or ["7"])] if flag.values != 0 else [flag.name]
            assert spelling.corrected(words, settings) == words


def test_a_real_process_answers_the_space_too_many(apart):
    done = subprocess.run([sys.executable, ROOT / "train_pixel_cnn.py", "--", "level", "top", *PRIOR],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("--level: expected no space after the dashes, found `-- level`: a space too many. Write "
                           "--level top.\n")
    assert not list(apart.iterdir())


def test_words_after_two_dashes_are_not_read_as_flags():
    assert spelling.corrected(["--", "--Level", "Top"], TrainPrior) == ["--", "--Level", "Top"]
