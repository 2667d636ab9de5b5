"""Flags, environment and .env become settings, or one line that says what would fit."""

import dataclasses
import io
import math
from pathlib import Path

import pytest

from vqvae2.commands.demo_scans import DemoScansSettings
from vqvae2.common.errors import UserError
from vqvae2.evaluation.prediction import PredictSettings
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.settings import DataSettings
from vqvae2.runs import settings as settings_module
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings import parsing, stored
from vqvae2.settings.parsing import one_line, parse
from vqvae2.slices.settings import ExtractSettings
from vqvae2.training.settings import TrainPrior, TrainVqvae

RUN = {"savename": "brain", "epochs": 3, "batch": 4}
RUN_FLAGS = ["--savename", "brain", "--epochs", "3", "--batch", "4"]
PRIOR = {**RUN, "level": "top", "vqvae": "brain"}
SAMPLE = {"vqvae": "brain", "top": "brain-top", "out": Path("samples")}


@pytest.fixture(params=["utf-8", "ascii"])
def line(request, monkeypatch):
    """The one line of a command line that does not fit, on terminals with and without box characters."""
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=request.param))

    def of(settings, *arguments):
        with pytest.raises(UserError) as refusal:
            parse(settings, "A manual.", list(arguments))
        return str(refusal.value)
    return of


@pytest.fixture
def data_folder(apart):
    """What --data or SLICES_PATH comes to."""
    return lambda given=None: parsing.path_from_environment(given, "SLICES_PATH", "--data")


class TestPaths:
    def test_a_flag_beats_the_environment_which_beats_env_file(self, apart, monkeypatch, data_folder):
        Path(".env").write_text("SLICES_PATH=/from/file\n")
        assert data_folder() == Path("/from/file")
        monkeypatch.setenv("SLICES_PATH", "/from/environment")
        assert data_folder() == Path("/from/environment")
        assert data_folder(Path("/from/flag")) == Path("/from/flag")

    def test_an_empty_variable_counts_as_none(self, apart, monkeypatch, data_folder):
        Path(".env").write_text("SLICES_PATH=/from/file\n")
        monkeypatch.setenv("SLICES_PATH", "")
        assert data_folder() == Path("/from/file")

    @pytest.mark.parametrize("text", ["~/slices", "~/slices/", '"~/slices/"', "'~/slices'  # a note"])
    def test_home_trailing_slashes_and_quotes_are_understood(self, text, apart, monkeypatch, data_folder):
        monkeypatch.setenv("HOME", "/home/someone")
        Path(".env").write_text(f"# where things are\nOASIS_PATH=\nSLICES_PATH={text}\n")
        assert str(data_folder()) == "/home/someone/slices"
        monkeypatch.setenv("SLICES_PATH", "~/other/")
        assert str(data_folder()) == "/home/someone/other"
        assert str(data_folder(Path("~/flag/"))) == "/home/someone/flag"

    def test_a_path_that_is_nowhere_is_asked_for(self, data_folder):
        with pytest.raises(UserError, match=r"^--data: expected a folder, or SLICES_PATH in the environment or in "
                                            r"\.env, found neither\. Give --data DIR, or copy \.env\.example"):
            data_folder()


class TestCommandLine:
    def test_flags_become_settings(self):
        settings = parse(TrainVqvae, "", [*RUN_FLAGS, "--dataset", "folder", "--data", "pictures", "--downsample",
                                             "8", "4", "--split", "70", "10", "20", "--subject-pattern", "case_(\\d+)"])
        assert (settings.savename, settings.epochs, settings.batch) == ("brain", 3, 4)
        assert (settings.dataset, settings.data, settings.subject_pattern) == (
            "folder", Path("pictures"), "case_(\\d+)")
        assert (settings.downsample, settings.split) == ((8, 4), (70.0, 10.0, 20.0))

    @pytest.mark.parametrize(("arguments", "factors"), [([], (4, 2)), (["--levels", "1"], (4,))])
    def test_downsample_follows_levels(self, arguments, factors):
        assert parse(TrainVqvae, "", [*RUN_FLAGS, *arguments]).downsample == factors

    def test_m_is_the_same_as_vqvae(self):
        arguments = ["--out", "report", "--split", "validate"]
        assert parse(EvaluateSettings, "", ["-m", "a", *arguments]) == parse(
            EvaluateSettings, "", ["--vqvae", "a", *arguments])

    def test_an_underscore_serves_as_a_dash(self):
        assert parse(TrainVqvae, "", [*RUN_FLAGS, "--codebook_size", "64"]).codebook_size == 64

    @pytest.mark.parametrize(("settings", "arguments", "said"), [
        (TrainVqvae, [], "train.py: missing --savename, --epochs, --batch."),
        (SampleSettings, ["--top", "t"], "train.py: missing --vqvae, --out."),
        (TrainVqvae, [*RUN_FLAGS, "--levl", "2"], "train.py: unrecognized --levl 2. Perhaps you meant --levels."),
        (TrainVqvae, [*RUN_FLAGS, "--zzz", "2"], "train.py: unrecognized --zzz 2."),
        (TrainVqvae, [*RUN_FLAGS, "extra", "words"], "train.py: unrecognized extra words."),
        (TrainVqvae, [*RUN_FLAGS, "--standardise=false"], "train.py: unrecognized false."),
        (TrainVqvae, ["--levl", "2"], "train.py: missing --savename, --epochs, --batch. unrecognized --levl 2."),
        (TrainVqvae, [*RUN_FLAGS, "--size", "x"], "--size: expected INT, found x."),
        (TrainVqvae, [*RUN_FLAGS, "--epochs", "1.5"], "--epochs: expected INT, found 1.5."),
        (TrainVqvae, [*RUN_FLAGS, "--learning-rate", "fast"], "--learning-rate: expected FLOAT, found fast."),
        (TrainVqvae, [*RUN_FLAGS, "--split", "1", "b", "2"], "--split: expected FLOAT FLOAT FLOAT, found 1 b 2."),
        (TrainVqvae, [*RUN_FLAGS, "--split", "1", "2"], "--split: expected 3 value(s), found fewer."),
        (TrainVqvae, [*RUN_FLAGS, "--results"], "--results: expected 1 value(s), found fewer."),
        (TrainVqvae, [*RUN_FLAGS, "--levels", "3"], "--levels: expected one of 1, 2, found 3."),
        (TrainVqvae, [*RUN_FLAGS, "--dataset", "brats-2021-training-set-of-a-long-name"],
         "--dataset: expected one of oasis, keras_png_slices, folder, found brats-2021-training-set-of-a-long-name.")])
    def test_what_does_not_fit_is_one_line_that_reads_well(self, settings, arguments, said, line):
        assert line(settings, *arguments) == f"{said} See train.py --help."

    @pytest.mark.parametrize("word", ["val", "valid", "validation", "Val", "validate"])
    def test_every_name_of_the_validation_split(self, word):
        arguments = ["-m", "a", "--out", "o"]
        assert parse(EvaluateSettings, "", [*arguments, "--split", word]).split == "validate"
        assert parse(EvaluateSettings, "", [*arguments, f"--split={word}"]).split == "validate"

    def test_home_in_every_path(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        settings = parse(TrainVqvae, "", [*RUN_FLAGS, "--data=~/slices/", "--results", "~"])
        assert (settings.data, settings.results) == (Path("/home/me/slices"), Path("/home/me"))
        settings = parse(SampleSettings, "", ["-m=~/a", "--top", "b", "--out", "~/out", "--mask=~/m.png", "--inpaint",
                                              "~/i"])
        assert settings == SampleSettings(vqvae="/home/me/a", top="b", out=Path("/home/me/out"),
                                          mask="/home/me/m.png", inpaint=Path("/home/me/i"))
        settings = parse(PredictSettings, "", ["-m", "a", "--out=~/p", "--", "~/a.png", "--vqvae"])
        assert (settings.out, settings.input) == (Path("/home/me/p"), (Path("/home/me/a.png"), Path("--vqvae")))

    @pytest.mark.parametrize(("arguments", "flag"), [
        (["--data", ""], "--data"), (["--data="], "--data"), (["--data", " "], "--data"), ([""], "command line"),
        (["--batch", "4", "\r"], "--batch")])
    def test_an_empty_value_is_refused(self, arguments, flag, line):
        assert line(TrainVqvae, *arguments) == (f"{flag}: expected a value, found nothing. Give one, or leave the flag "
                                                "out; is a shell variable not set?")

    def test_values_with_commas_dashes_and_equals_signs_are_left_as_they_are(self):
        settings = parse(SampleSettings, "", ["-m", "a", "--top", "b", "--out", "o", "--condition", "age=70,5",
                                              "note=a–b", "position_mm=-20..30", "--top-p", "0.9", "1"])
        assert settings.condition == ("age=70,5", "note=a–b", "position_mm=-20..30")
        pattern = parse(TrainVqvae, "", [*RUN_FLAGS, "--subject-pattern", "Case_(\\d+),-"]).subject_pattern
        assert pattern == "Case_(\\d+),-"

    def test_a_box_that_is_not_known_is_told_in_its_own_words(self, line):
        box = "╭─ News ────────╮\n│ Something new │\n│ came up       │\n╰───────────────╯\n"
        assert one_line(box, "train.py") == "train.py: Something new came up. See train.py --help."

    def test_help_prints_the_manual_as_it_was_written_and_each_field_with_its_kind(self, capsys):
        manual = "A manual.\n\nTo paste:\n    python a.py \\\n        --flag\nThe end of it."
        with pytest.raises(SystemExit) as end:
            parse(TrainVqvae, manual, ["--help"])
        shown = capsys.readouterr()
        assert (end.value.code, shown.err) == (0, "")
        assert shown.out.startswith(manual + "\n")
        assert "--data PATH" in shown.out
        assert "{None}" not in shown.out
        assert "Passes over the training images." in shown.out


@pytest.mark.parametrize(("settings", "values", "said"), [
    (DemoScansSettings, {"out": Path("o"), "subjects": 0}, r"--subjects: expected 1 to 100000, found 0\. For"),
    (DemoScansSettings, {"out": Path("o"), "subjects": 10**9}, r"--subjects: expected 1 to 100000, found 1000000000\."),
    (DemoScansSettings, {"out": Path("o"), "seed": -1}, r"--seed: expected 0 to 4294967295, found -1\. The default"),
    (ExtractSettings, {"planes": ()}, r"--planes: expected axial, .* found none\. Name at"),
    (ExtractSettings, {"planes": ("axial", "axial")}, r"--planes: expected .* at most once, found axial axial\. Name"),
    (ExtractSettings, {"per_scan": 0}, r"--per-scan: expected at least 1, found 0\. Give"),
    (ExtractSettings, {"extent": (0.8, 0.3)}, r"--extent: expected two fractions, .* found 0\.8 0\.3\. For example"),
    (ExtractSettings, {"extent": (0.3, 1.2)}, r"--extent: expected two fractions, .* found 0\.3 1\.2\. For example"),
    (ExtractSettings, {"size": 4}, r"--size: expected 8 to 4096 pixels, found 4\. The default is 256"),
    (ExtractSettings, {"field_of_view": 0}, r"--field-of-view: expected 1 to 1000 mm, found 0\. A head fits"),
    (ExtractSettings, {"workers": 0}, r"--workers: expected at least 1, found 0\. Give"),
    (ExtractSettings, {"split": (0, 0, 0)}, r"--split: expected three shares .* found 0 0 0\. The default"),
    (ExtractSettings, {"assume_orientation": "RAX"}, r"--assume-orientation: expected one letter each .* RAX\. For"),
    (ExtractSettings, {"assume_orientation": "RLS"}, r"--assume-orientation: expected one letter each .* RLS\. For"),
    (ExtractSettings, {"assume_orientation": "RA"}, r"--assume-orientation: expected one letter each .* RA\. For"),
    (ExtractSettings, {"seed": 2**32}, r"--seed: expected 0 to 4294967295, found 4294967296\. The default"),
    (DataSettings, {"size": 5000}, r"--size: expected 8 to 4096 pixels, found 5000\. Try 128"),
    (DataSettings, {"split": (64, -1, 20)}, r"--split: expected three shares .* found 64 -1 20\. The default"),
    (DataSettings, {"split": (math.nan, 1, 1)}, r"--split: expected a finite number, found nan\. See"),
    (DataSettings, {"subject_pattern": "case_("}, r"--subject-pattern: expected a regular .* case_\( \(.*For example"),
    (DataSettings, {"subject_pattern": "case"}, r"--subject-pattern: expected a group in brackets .* case\. For"),
    (TrainVqvae, {**RUN, "epochs": 0}, r"--epochs: expected at least 1, found 0\. Give"),
    (TrainVqvae, {**RUN, "pictures_every": -1}, r"--pictures-every: expected 0 or more, found -1\. See"),
    (TrainVqvae, {**RUN, "savename": "../up"}, r"--savename: expected letters, .* found '\.\./up'\. It names"),
    (TrainVqvae, {**RUN, "savename": ""}, r"--savename: expected letters, .* found ''\. It names"),
    (TrainVqvae, {**RUN, "warmup_steps": -1}, r"--warmup-steps: expected 0 or more, found -1\. See"),
    (TrainVqvae, {**RUN, "clip": -1.0}, r"--clip: expected 0 or more, found -1\.0\. See"),
    (TrainVqvae, {**RUN, "threads": 0}, r"--threads: expected at least 1, found 0\. Or leave it out"),
    (TrainVqvae, {**RUN, "seed": 10**30}, r"--seed: expected 0 to 4294967295, found 10{30}\. The default"),
    (TrainVqvae, {**RUN, "downsample": (4,)}, r"--downsample: expected 2 value\(s\) for --levels 2, found 4\. For"),
    (TrainVqvae, {**RUN, "levels": 1, "downsample": (4, 2)},
     r"--downsample: expected 1 value\(s\) for --levels 1, found 4 2\. For example --downsample 4\.$"),
    (TrainVqvae, {**RUN, "downsample": (4, 3)}, r"--downsample: expected powers of 2, from 2 to 4096, found 4 3\. For"),
    (TrainVqvae, {**RUN, "downsample": (4, 1)}, r"--downsample: expected powers of 2, from 2 to 4096, found 4 1\. For"),
    (TrainVqvae, {**RUN, "codebook_size": 40000}, r"--codebook-size: expected 2 to 32767, found 40000\. Codes"),
    (TrainVqvae, {**RUN, "channels": 1}, r"--channels: expected 2 to 16384, found 1\. See"),
    (TrainVqvae, {**RUN, "decay": 1.0}, r"--decay: expected 0 <= DECAY < 1, found 1\.0\. The default"),
    (TrainVqvae, {**RUN, "learning_rate": math.nan}, r"--learning-rate: expected a finite number, found nan\. See"),
    (TrainVqvae, {**RUN, "commitment": -0.1}, r"--commitment: expected at least 0, found -0\.1\. See"),
    (TrainPrior, {**PRIOR, "heads": 3}, r"--channels: expected a multiple of --heads 3, found 128\. For"),
    (TrainPrior, {**PRIOR, "heads": 0}, r"--heads: expected at least 1, found 0\. The default is 4"),
    (TrainPrior, {**PRIOR, "layers": 0}, r"--layers: expected 1 to 256, found 0\. The default is 8"),
    (TrainPrior, {**PRIOR, "attention_every": -1}, r"--attention-every: expected 0 or more, found -1\. See"),
    (TrainPrior, {**PRIOR, "weight_decay": -0.1}, r"--weight-decay: expected 0 or more, found -0\.1\. See"),
    (TrainPrior, {**PRIOR, "dropout": 1.0}, r"--dropout: expected 0 <= SHARE < 1, found 1\.0\. The default"),
    (TrainPrior, {**PRIOR, "ema": 1.5}, r"--ema: expected 0 <= DECAY < 1, found 1\.5\. The default"),
    (SampleSettings, {**SAMPLE, "count": 0}, r"--count: expected 1 to 1000000, found 0\. Draw"),
    (SampleSettings, {**SAMPLE, "count": 10**12}, r"--count: expected 1 to 1000000, found 1000000000000\. Draw"),
    (SampleSettings, {**SAMPLE, "temperature": (0.0,)}, r"--temperature: expected one value .* above 0, found 0\.0\."),
    (SampleSettings, {**SAMPLE, "temperature": (1.0, 1.0, 1.0)}, r"--temperature: .* or two .* found 1\.0 1\.0 1\.0\."),
    (SampleSettings, {**SAMPLE, "top_p": (1.0, 0.0)}, r"--top-p: expected one value .* 0 < P <= 1, found 1\.0 0\.0\."),
    (SampleSettings, {**SAMPLE, "top_k": (-1,)}, r"--top-k: expected one value .* 0 or more, found -1\. See"),
    (SampleSettings, {**SAMPLE, "reject": 0}, r"--reject: expected 1 to 10000, found 0\. For"),
    (SampleSettings, {**SAMPLE, "reject_by": "agreement"}, r"--reject-by: expected --reject N .* found --reject 1\."),
    (SampleSettings, {**SAMPLE, "mask": "left"}, r"--mask: expected --inpaint .* found --mask left alone\. Give"),
    (SampleSettings, {**SAMPLE, "blend": 2}, r"--blend: expected --inpaint .* found --blend 2 alone\. Give"),
    (SampleSettings, {**SAMPLE, "inpaint": Path("d")}, r"--mask: expected left, .* found none\. For"),
    (SampleSettings, {**SAMPLE, "inpaint": Path("d"), "mask": "left", "blend": -1}, r"--blend: .* found -1\. For"),
    (SampleSettings, {**SAMPLE, "inpaint": Path("c.npz"), "mask": "left"}, r"--mask: expected none .* found left\. Le"),
    (SampleSettings, {**SAMPLE, "inpaint": Path("c.npz"), "blend": 2}, r"--blend: expected none .* found 2\. Leave"),
    (EvaluateSettings, {"vqvae": "a", "out": Path("o"), "bottom": "b"}, r"--bottom: expected --top .* alone\. Give"),
    (EvaluateSettings, {"vqvae": "a", "out": Path("o"), "seed": -1}, r"--seed: expected 0 to 4294967295, found -1\.")])
def test_a_value_out_of_range_is_refused_with_the_range_the_value_and_advice(settings, values, said):
    with pytest.raises(UserError, match=f"^{said}"):
        settings(**values)


def test_letters_of_an_assumed_orientation_may_be_small():
    assert ExtractSettings(assume_orientation="asl").assume_orientation == "ASL"


def test_settings_are_the_same_after_they_were_json():
    settings = TrainPrior(**PRIOR, data=Path("/slices"), split=(1, 2, 3), size=64)
    values = parsing.as_dict(settings)
    assert values["data"] == "/slices"
    assert values["split"] == [1, 2, 3]
    assert stored.from_dict(TrainPrior, values) == settings


def test_settings_of_a_later_version_are_read_without_what_is_not_known_here():
    settings = TrainVqvae(**RUN)
    assert stored.from_dict(TrainVqvae, {**parsing.as_dict(settings), "not_invented_yet": 3}) == settings


def test_what_may_change_when_a_run_goes_on_are_settings():
    known = {name for kind in (TrainVqvae, TrainPrior) for name in kind.__dataclass_fields__}
    assert known >= settings_module.NOT_PART_OF_A_RUN


def test_a_run_of_before_a_setting_is_not_gone_on_with_under_its_new_default():
    new = TrainVqvae(savename="a", epochs=1, batch=1)
    old = {name: value for name, value in parsing.as_dict(new).items() if name != "ssim_weight"}
    assert settings_module.changed_settings(new, old) == ["--ssim-weight 0.03 (was 0.0)"]
    assert settings_module.changed_settings(dataclasses.replace(new, ssim_weight=0.0), old) == []


@pytest.mark.parametrize(("name", "value", "said"), [
    ("quantizer", "gradient", "--quantizer gradient (was ema)"), ("norm", "group", "--norm group (was none)"),
    ("standardise", True, "--standardise True (was False)"), ("fit", "crop", "--fit crop (was stretch)"),
    ("colours", "rgb", "--colours rgb (was auto)"), ("allow_leak", True, "--allow-leak True (was False)")])
def test_a_run_of_before_there_was_a_choice_does_not_go_on_with_another(name, value, said):
    new = TrainVqvae(**RUN)
    old = {key: setting for key, setting in parsing.as_dict(new).items() if key != name}
    assert settings_module.changed_settings(new, old) == []
    assert settings_module.changed_settings(dataclasses.replace(new, **{name: value}), old) == [said]
