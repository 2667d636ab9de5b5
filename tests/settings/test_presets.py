"""--preset NAME: its file, how it becomes defaults, and each preset from training to figures at tiny size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRIOR, TINY_VQVAE, picture_of
from pasted import commands_in, settings_of
from PIL import Image
from resuming import check_bitwise
from safetensors.torch import load_file

from vqvae2.commands import evaluate, sample, train_decoder, train_prior, train_vqvae
from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.evaluation.features import FeatureSettings
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.models.autoencoder import Vqvae, load_vqvae
from vqvae2.runs import weights
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings import presets
from vqvae2.settings.parsing import parse
from vqvae2.slices.settings import ExtractSettings
from vqvae2.training import settings
from vqvae2.training.settings import TrainDecoder, TrainPrior, TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer

OF_OTHERS = ["demo", "pretrained-128", "smoke"]
"""Presets that are not there for a training by itself."""
NAMES = ["brain-128", "brain-64", "keras-oasis-256", "oasis-128", "own-images", "vqvae-256", "vqvae2-256",
         "vqvae2-64", "vqvae2-tiny", "volume-64"]
SMALL_VQVAE = [*TINY, *TINY_VQVAE, "--size", "32", "--ssim-weight", "0.03", "--seed", "1"]
SMALL_PRIOR = [*TINY, *TINY_PRIOR, "--copies", "0"]


@pytest.fixture(scope="session")
def tiny_folders(tiny_slices, tmp_path_factory) -> dict[str, Path]:
    """The tiny slices as each kind of data set has them; own pictures are in colour, not square, and JPEG files."""
    keras, split, own = (tmp_path_factory.mktemp(name) for name in ("keras", "split", "own"))
    for number, path in enumerate(sorted(tiny_slices.glob("*/*.png"))):
        case, index = int(path.name[5:9]), number % 3
        shutil.copyfile(path, folder(keras, f"keras_png_slices_{path.parent.name}") /
                        f"case_{case:03d}_slice_{index}.nii.png")
        shutil.copyfile(path, folder(split, {"validate": "val"}.get(path.parent.name, path.parent.name)) / path.name)
    for number in range(24):
        grey = picture_of(number, 0, 40)[:, :36]
        Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1)).save(own / f"picture {number}.jpg", quality=95)
    return {"oasis": tiny_slices, "keras_png_slices": keras, "folder": split, "own-images": own}


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir(exist_ok=True)
    return parent / name


def vqvae_of(*arguments: str) -> TrainVqvae:
    return parse(TrainVqvae, "", [*arguments])


def prior_of(*arguments: str) -> TrainPrior:
    return parse(TrainPrior, "", [*arguments])


# The files ------------------------------------------------------------------------------------


def test_the_presets_are_there():
    assert presets.names() == sorted([*NAMES, *OF_OTHERS])


@pytest.mark.parametrize("name", OF_OTHERS)
def test_a_preset_for_other_commands_than_trainings_names_commands_that_take_it(name, monkeypatch):
    text = presets.path_of(name).read_text(encoding="utf-8")
    commands = commands_in("\n".join(line[1:] for line in text.splitlines() if line.startswith("#")))
    given = [settings_of(words, monkeypatch) for words in commands]
    assert name in [getattr(settings, "preset", None) for settings in given]


def test_a_preset_of_sampling_names_the_models_that_its_trainings_make():
    samples = parse(SampleSettings, "", ["--preset", "brain-128", "--out", "x", "--count", "3"])
    assert (samples.vqvae, samples.top, samples.bottom, samples.decoder) == (
        "brain-128", "brain-128-top", "brain-128-bottom", "brain-128-decoder")
    assert (samples.count, samples.temperature, samples.condition) == (3, (0.9, 0.7), ("position_mm=-28..42",))
    shipped = parse(SampleSettings, "", ["--preset", "pretrained-128", "--out", "x"])
    assert (shipped.vqvae, shipped.decoder, shipped.count) == ("vqvae-128", "decoder-128", 16)
    report = parse(EvaluateSettings, "", ["--preset", "brain-64", "--out", "x"])
    assert (report.bottom, report.samples, report.probe) == ("brain-64-bottom", 128, True)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_all_that_a_command_needs(name):
    """One command: only the data is the user's."""
    vqvae, levels = vqvae_of("--preset", name), ("top", "bottom")
    assert (vqvae.savename, vqvae.preset) == (name, name)
    for level in levels[:vqvae.levels]:
        prior = prior_of("--preset", name, "--level", level)
        assert (prior.vqvae, prior.savename, prior.dataset) == (name, f"{name}-{level}", vqvae.dataset)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_explains_itself_and_each_of_its_commands_is_one_that_its_script_takes(name, monkeypatch):
    text = presets.path_of(name).read_text(encoding="utf-8")
    commands = commands_in("\n".join(line[1:] for line in text.splitlines() if line.startswith("#")))
    given = [settings_of(words, monkeypatch) for words in commands]
    assert [settings.preset for settings in given if isinstance(settings, TrainVqvae)] == [name]
    for other in (ExtractSettings, TrainDecoder):
        of_kind = [settings.preset for settings in given if isinstance(settings, other)]
        assert of_kind == [name] * bool(presets.load(name, other.TABLE))
    levels = [(settings.preset, settings.level) for settings in given if isinstance(settings, TrainPrior)]
    assert levels == [(name, level) for level in ("top", "bottom")[:vqvae_of("--preset", name).levels]]
    assert 20 < len(presets.about(name)) <= 100


def test_only_the_scripts_that_a_preset_has_tables_for_take_one(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        parse(FeatureSettings, "the manual", ["--help"])
    assert "preset" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"unrecognized --preset vqvae2-tiny\."):
        parse(FeatureSettings, "", ["--savename", "x", "--epochs", "1", "--batch", "1", "--preset", "vqvae2-tiny"])


def test_what_python_3_10_lacks_to_read_a_preset_is_installed_with_the_project():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    needed = project.split("\ndependencies = [")[1].split("\n]")[0]
    assert "tomli" in needed
    assert "python_version < '3.11'" in needed


def test_what_the_issue_says_of_each_set_up_is_in_its_preset():
    settings = vqvae_of("--preset", "vqvae-256")
    assert (settings.size, settings.levels, settings.downsample, settings.codebook_size, settings.embedding_dim) == (
        256, 1, (8,), 256, 32)
    assert (settings.quantizer, settings.commitment, settings.learning_rate, settings.batch) == (
        "gradient", 0.2, 5e-4, 128)
    assert (settings.norm, settings.standardise, settings.dataset) == ("group", True, "folder")
    assert prior_of("--preset", "vqvae-256", "--level", "top").network == "gated"
    keras = vqvae_of("--preset", "keras-oasis-256")
    assert (keras.dataset, keras.size, keras.levels, keras.batch, keras.epochs) == ("keras_png_slices", 256, 1, 128, 30)
    two = vqvae_of("--preset", "vqvae2-64")
    assert (two.size, two.downsample, two.codebook_size, two.embedding_dim) == (64, (2, 2), 512, 64)
    assert two.learning_rate == 1e-3
    assert {prior_of("--preset", "vqvae2-64", "--level", level).learning_rate for level in ("top", "bottom")} == {1e-4}
    own = vqvae_of("--preset", "own-images")
    assert (own.dataset, own.levels, own.fit, own.colours) == ("folder", 1, "crop", "auto")
    oasis = vqvae_of("--preset", "oasis-128")
    assert (oasis.dataset, oasis.levels, oasis.size, oasis.quantizer) == ("keras_png_slices", 1, 128, "gradient")
    best = vqvae_of("--preset", "vqvae2-256")
    assert (best.size, best.levels, best.downsample) == (256, 2, (4, 2))


# From a file to defaults ----------------------------------------------------------------------


def test_a_flag_beats_the_preset_which_beats_the_default():
    given = vqvae_of("--preset", "vqvae-256", "--codebook-size", "64")
    assert (given.codebook_size, given.embedding_dim, given.decay) == (64, 32, TrainVqvae.decay)
    assert vqvae_of("--codebook-size=64", "--preset=vqvae-256", "--savename=x").savename == "x"


def test_the_tables_of_a_level_beat_those_of_both():
    top, bottom = (prior_of("--preset", "vqvae2-256", "--level", level) for level in ("top", "bottom"))
    assert (top.channels, bottom.channels, top.copies, bottom.copies) == (160, 128, 5, 5)


def test_extraction_and_the_texture_decoder_have_tables_of_their_own():
    assert (parse(ExtractSettings, "", ["--preset", "brain-128"]).per_scan, ExtractSettings.per_scan) == (60, 1)
    decoder = parse(TrainDecoder, "", ["--preset", "brain-128"])
    assert (decoder.vqvae, decoder.savename, decoder.dataset) == ("brain-128", "brain-128-decoder", "oasis")


def test_every_preset_says_how_large_its_images_are_and_cuts_slices_of_that_size():
    """Or the slices that happen to be in SLICES_PATH decide."""
    for name in NAMES:
        cut = presets.load(name, "extract")
        assert cut.get("size") in (None, presets.load(name, "vqvae")["size"]), name


@pytest.mark.parametrize(("settings", "name", "table"), [
    (ExtractSettings, "oasis-128", "extract"), (TrainDecoder, "vqvae2-64", "decoder")])
def test_a_preset_without_a_table_for_the_command_is_refused_and_not_listed(settings, name, table, capsys):
    with pytest.raises(UserError, match=rf"--preset {name}: expected a preset with the table \[{table}\], found one "
                                        r"without it\. Give flags, or one of the presets that --help lists"):
        parse(settings, "", ["--preset", name])
    with pytest.raises(SystemExit, match=r"^0$"):
        parse(settings, "", ["--help"])
    said = capsys.readouterr().out
    assert "    brain-128 " in said
    assert f"    {name} " not in said


def test_help_lists_the_presets_and_shows_the_flags_of_the_chosen_one(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        parse(TrainVqvae, "the manual", ["--preset", "vqvae-256", "--help"])
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"{name} " in said
        assert presets.about(name) in said
    assert "The chosen preset stands for --savename vqvae-256 " in said
    assert " --codebook-size 256 --embedding-dim 32 " in said


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_of_ones_own_is_a_preset_too(tmp_path):
    made = presets.text("mine", "What it is.\nAnd why.", {"vqvae": {"epochs": 3, "batch": 4, "downsample": [4, 2],
                                                                   "commitment": 1, "standardise": True}})
    given = vqvae_of("--preset", write(tmp_path / "mine.toml", made))
    assert (given.savename, given.epochs, given.batch, given.downsample) == ("mine", 3, 4, (4, 2))
    assert (given.commitment, given.standardise) == (1.0, True)
    assert made.startswith("# What it is.\n# And why.\n")


def test_the_home_folder_in_a_file_of_ones_own_is_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = vqvae_of("--preset", write(tmp_path / "mine.toml", "[vqvae]\nepochs = 1\nbatch = 1\nresults = '~/runs'"))
    assert given.results == Path("/home/me/runs")


@pytest.mark.parametrize(("text", "message"), [
    ("[vqvae]\nepoch = 3", r"mine.toml: expected settings that .* has, found epoch\. They are named as the flags"),
    ("[vqvae]\nepochs = 'many'", r"^--epochs: expected INT, found many\. See .* --help"),
    ("[vqvae]\nquantizer = 'vq'", r"^--quantizer: expected one of ema, gradient, fsq, found vq\."),
    ("[vqvae]\npreset = 'vqvae-256'", r"mine.toml: expected settings that .* has, found preset\."),
    ("[trainer]\nepochs = 3", r"mine.toml: expected about, \[extract\], \[vqvae\], .* found trainer\. See"),
    ("epochs = 3", r"mine.toml: expected about, \[extract\], \[vqvae\], .* found epochs\. See vqvae2/presets/"),
    ("[vqvae\nepochs = 3", r"mine.toml: expected a TOML file, found .*line 1.* See vqvae2/presets/")])
def test_a_file_that_is_no_preset_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        vqvae_of("--preset", write(tmp_path / "mine.toml", text), "--batch", "1")


def test_a_preset_without_a_name_is_refused():
    with pytest.raises(UserError, match=r"^--preset --data: expected one of brain-128, .*, found neither\. See"):
        vqvae_of("--preset", "--data", "slices")


@pytest.mark.parametrize(("words", "standardise"), [
    (["--standardise"], True), (["--no-standardise"], False), (["--no_standardise"], False),
    (["--no-standardise", "--standardise"], True), (["--standardise", "--no-standardise"], False)])
def test_a_switch_that_a_preset_has_on_may_be_given_again_and_the_last_counts(words, standardise):
    assert vqvae_of("--preset", "vqvae-256", *words).standardise is standardise


def test_no_preset_chooses_the_level_as_its_tables_and_names_follow_from_it(tmp_path):
    with pytest.raises(UserError, match=r"mine\.toml: expected settings that .* has, found level\. They are named"):
        prior_of("--preset", write(tmp_path / "mine.toml", "[prior]\nlevel = 'bottom'"))


@pytest.mark.parametrize("name", ["vqvae256", "../presets/vqvae-256", "nowhere.toml", "*"])
def test_an_unknown_preset_is_told_the_known_ones(name):
    with pytest.raises(UserError, match=rf"--preset {name.replace('*', '.')}: expected one of brain-128, .*, "
                                        r"or a \.toml file, found neither\. See --help"):
        vqvae_of("--preset", name)


def test_a_value_out_of_range_is_refused_as_that_of_a_flag_is(tmp_path):
    with pytest.raises(UserError, match=r"--epochs: expected at least 1, found 0\. Give a larger number"):
        vqvae_of("--preset", write(tmp_path / "mine.toml", "[vqvae]\nepochs = 0\nbatch = 1"))


def test_what_a_preset_leaves_open_is_missing_as_ever(tmp_path):
    with pytest.raises(UserError, match=r"missing --batch\. See"):
        vqvae_of("--preset", write(tmp_path / "mine.toml", "[vqvae]\nepochs = 1"))


def test_a_run_goes_on_under_a_preset_or_the_same_flags_but_not_under_another(tiny_slices, tmp_path):
    common = ["--dataset", "oasis", "--data", str(tiny_slices), "--results", str(tmp_path), *SMALL_VQVAE]
    train_vqvae.main(["--preset", "vqvae2-tiny", "--savename", "x", *common, "--epochs", "1"])
    kept = json.loads((tmp_path / "oasis" / "x" / weights.CONFIG).read_text())["settings"]
    assert (kept["preset"], kept["codebook_size"], kept["downsample"]) == ("vqvae2-tiny", 16, [4, 2])
    train_vqvae.main(["--savename", "x", *common, "--epochs", "1"])
    with pytest.raises(UserError, match=r"found --downsample 2 2 \(was 4 2\)\. Give those again"):
        train_vqvae.main(["--preset", "vqvae2-64", "--savename", "x", *common, "--epochs", "1"])


# The whole chain ------------------------------------------------------------------------------


@pytest.mark.usefixtures("blank_charts")
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_resumes_samples_and_evaluates(name, tiny_folders, tmp_path):
    """As the comments of its file say, but small; the data is of the preset's own kind."""
    dataset = presets.load(name, "vqvae")["dataset"]
    common = ["--preset", name, "--data", str(tiny_folders.get(name, tiny_folders[dataset])), "--results",
              str(tmp_path / "results")]
    runs = tmp_path / "results" / dataset
    drawn = ["--pictures-every", "10"] if name in ("own-images", "vqvae-256") else []  # in colour; of one level
    train_vqvae.main([*common, *SMALL_VQVAE, "--epochs", "9"])
    train_vqvae.main([*common, *SMALL_VQVAE, *drawn, "--epochs", "10"])
    assert (runs / name / "reconstructions.gif").exists() == bool(drawn)
    rows = files.read_rows(runs / name / "log.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 11))
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    levels = ("top", "bottom")[:presets.load(name, "vqvae")["levels"]]
    for level in levels:
        for epochs in ("1", "2"):
            train_prior.main([*common, *SMALL_PRIOR, "--level", level, "--vqvae", str(runs / name),
                                  "--epochs", epochs])
        assert len(files.read_rows(runs / f"{name}-{level}" / "log.csv")) == 2
    models = ["--vqvae", str(runs / name)] + [word for level in levels
                                              for word in (f"--{level}", str(runs / f"{name}-{level}"))]
    sample.main([*models, "--count", "2", "--out", str(tmp_path / "samples")])
    pictures = sorted((tmp_path / "samples" / "images").glob("*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB" if name == "own-images" else "L")
    if presets.load(name, "decoder"):
        train_decoder.main([*common, *TINY, "--epochs", "1", "--width", "8", "--blocks", "1", "--crop", "16", "--vqvae",
                            str(runs / name)])
        models += ["--decoder", str(runs / f"{name}-decoder")]
    evaluate.main([*models, "--samples", "2", "--out", str(tmp_path / "report")])
    report = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    ssim = report["reconstruction"]["full"]["ssim"]
    assert 0 < ssim["min"] <= ssim["mean"] <= ssim["max"] <= 1
    assert list(report["codes"]) == list(levels)
    assert all(0 < report["priors"][level]["bits_per_code"] < 10 for level in levels)


GRADIENT = ["--levels", "1", "--quantizer", "gradient", "--norm", "group", "--standardise"]


@pytest.mark.parametrize("step", [5, 11])
def test_a_stopped_run_with_a_gradient_codebook_goes_on_as_if_it_had_not_been(tiny_slices, tmp_path, step):
    arguments = ["--data", str(tiny_slices), "--savename", "x", *TINY, *TINY_VQVAE, *GRADIENT, "--epochs", "5"]
    check_bitwise(VqvaeTrainer, TrainVqvae, arguments, tmp_path, step)


def test_the_codes_of_a_standardised_model_are_the_same_when_it_is_read_again(tiny_slices, tmp_path):
    """Mean and deviation of the training images are among its weights."""
    trainer = VqvaeTrainer(vqvae_of("--data", str(tiny_slices), "--savename", "x", *TINY, *TINY_VQVAE, *GRADIENT,
                                    "--results", str(tmp_path)))
    trainer.run()
    pixels = trainer.images.splits["train"].pixels / 255
    stored = load_file(trainer.folder / weights.WEIGHTS)
    assert stored["mean"].item() == pytest.approx(pixels.mean(), abs=1e-6)
    assert stored["deviation"].item() == pytest.approx(pixels.std(), abs=1e-6)
    images = trainer.images.splits["validate"].batch([0, 1])
    read = Vqvae(trainer.settings).eval()
    read.load_state_dict(stored)
    assert load_vqvae(str(trainer.folder), torch.device("cpu")).hash != weights.weights_hash(stored)  # of older codes
    assert (read.mean.item(), read.deviation.item()) == (stored["mean"].item(), stored["deviation"].item())
    trainer.model.load_state_dict(stored)
    with torch.no_grad():
        assert torch.equal(read.encode(images)["top"], trainer.model.eval().encode(images)["top"])
        assert read.decode(read.encode(images)).sub(images).abs().mean() < 0.2


def test_a_standardised_error_is_in_units_of_the_variance(tiny_slices, tmp_path):
    trainer = VqvaeTrainer(vqvae_of("--data", str(tiny_slices), "--savename", "x", *TINY, *TINY_VQVAE, *GRADIENT,
                                    "--results", str(tmp_path), "--epochs", "1", "--ssim-weight", "0"))
    trainer.run()
    row = files.read_rows(trainer.folder / "log.csv")[0]
    variance = float((trainer.images.splits["train"].pixels / 255).var())
    assert float(row["train_reconstruction"]) == pytest.approx(float(row["train_mse"]) / variance, rel=1e-4)


def test_a_normalised_network_makes_of_an_image_the_same_whatever_its_batch():
    """GroupNorm, not BatchNorm."""
    torch.manual_seed(0)
    model = Vqvae(settings.TrainVqvae(savename="x", epochs=1, batch=1, norm="group", channels=16,
                                                   residual_channels=6, embedding_dim=8)).train()
    images = torch.rand(3, 1, 32, 32)
    alone = torch.cat([model(image[None]).images for image in images])
    torch.testing.assert_close(model(images).images, alone, rtol=1e-4, atol=1e-5)
