"""Texture decoders: what they are trained on, that they go on bit for bit, and that commands decode with them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TinyRun, edit_manifest
from PIL import Image
from ranks import run_on_ranks
from resuming import check_bitwise

from tools import make_results
from vqvae2 import api
from vqvae2.commands import evaluate, predict, publish, sample, train_decoder
from vqvae2.common.errors import UserError
from vqvae2.images.dataset import pixel_hash, to_bytes
from vqvae2.images.reading import read_picture
from vqvae2.models.texture_decoder import Texture, TextureDecoder
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.decoders import AdversarialTraining, DecoderTrainer, SpectralNorm
from vqvae2.training.settings import TrainDecoder
from vqvae2.training.trainer import Share

NETWORKS = pytest.mark.parametrize("network", ["flow", "adversarial"])
SMALL = [*TINY, "--width", "8", "--blocks", "1", "--epochs", "2", "--crop", "16"]


@pytest.fixture
def given(tiny_run, apart) -> list[str]:
    """Arguments: the tiny slices and a VQ-VAE of them."""
    shutil.copytree(tiny_run.vqvae, apart / "results" / "oasis" / "tiny")
    return ["--data", str(tiny_run.data), "--vqvae", "tiny", "--savename", "texture", *SMALL]


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory) -> tuple[TinyRun, Path]:
    """The tiny chain, and the folder of a flow that was trained for its codes."""
    results = tmp_path_factory.mktemp("decoder")
    train_decoder.main(["--data", str(tiny_run.data), "--vqvae", str(tiny_run.vqvae), "--savename", "texture",
                        "--results", str(results), *SMALL, "--epochs", "20", "--learning-rate", "0.01"])
    return tiny_run, results / "oasis" / "texture"


def settings_of(*arguments: str) -> TrainDecoder:
    return parse(TrainDecoder, "", ["--savename", "x", "--vqvae", "v", *SMALL, *arguments])


@NETWORKS
def test_a_run_that_was_stopped_ends_as_one_that_never_was(network, given, tmp_path):
    shutil.copytree("results/oasis/tiny", tmp_path / "tiny")
    given[given.index("tiny")] = str(tmp_path / "tiny")
    check_bitwise(DecoderTrainer, TrainDecoder, [*given, "--network", network], tmp_path, 4)


def _trained_on_rank(arguments: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    trainer = DecoderTrainer(parse(TrainDecoder, "", arguments))
    trainer.run()
    return trainer.model.state_dict(), trainer.rows[-1]


@NETWORKS
def test_two_processes_make_the_same_steps_as_one(network, given, tmp_path):
    shutil.copytree("results/oasis/tiny", tmp_path / "tiny")
    given[given.index("tiny")] = str(tmp_path / "tiny")
    words = [*given, "--network", network, "--epochs", "1"]
    _, alone = _trained_on_rank([*words, "--results", str(tmp_path / "one")])
    words[words.index("--batch") + 1] = "4"
    (first, together), (second, _) = run_on_ranks(2, _trained_on_rank, [*words, "--results", str(tmp_path / "two")])
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in set(alone) - {"seconds"}:
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name


@NETWORKS
def test_only_the_decoder_is_kept_and_it_names_its_vqvae(network, given):
    train_decoder.main([*given, "--network", network])
    tensors, config = weights.load_weights(Path("results/oasis/texture/model.safetensors"))
    assert tensors.keys() == TextureDecoder(settings_of("--network", network)).state_dict().keys()
    assert config["vqvae_hash"] == api.load_vqvae("tiny").hash
    with open("results/oasis/texture/log.csv", newline="") as file:
        assert all(float(row["validate_texture"]) > 0 for row in csv.DictReader(file))


@NETWORKS
def test_one_can_begin_with_another_of_the_same_vqvae(network, given, tiny_run, monkeypatch):
    train_decoder.main([*given, "--network", network])
    again = [*given, "--network", network, "--init-from", "texture", "--learning-rate", "1e-9", "--epochs", "1"]
    again[again.index("texture")] = "again"
    train_decoder.main(again)
    first, second = (weights.load_weights(Path("results/oasis") / name / "model.safetensors")[0]
                     for name in ("texture", "again"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-5)
    again[again.index("again")] = "other"
    with monkeypatch.context() as patched:
        patched.setattr(DecoderTrainer, "codes_of", None)  # it is said before an image is encoded
        with pytest.raises(UserError, match=r"--init-from texture: expected .* others: --width 4 \(was 8\)"):
            train_decoder.main([*again, "--width", "4"])
    path = Path("results/oasis/texture/model.safetensors")
    tensors, config = weights.load_weights(path)
    weights.save_weights(path, tensors, config | {"vqvae_hash": "0" * 64})
    with pytest.raises(UserError, match=r"--init-from texture: expected weights that learned the codes of .* 000000"):
        train_decoder.main(again)


@NETWORKS
@pytest.mark.parametrize("validation", ["no images", "one grey"])
def test_images_that_cannot_be_judged_by_their_texture_leave_a_decoder_all_the_same(network, validation, given,
                                                                                    tmp_path):
    data = shutil.copytree(given[1], tmp_path / "data")
    if validation == "no images":
        def without(rows):
            rows[:] = [row for row in rows if row["split"] == "train"]

        edit_manifest(data, without)
    for path in (data / "validate").glob("*.png"):
        Image.new("L", Image.open(path).size).save(path)
    edit_manifest(data, hashed=True)
    train_decoder.main([*given, "--data", str(data), "--network", network])
    assert Path("results/oasis/texture/model.safetensors").is_file()
    with open("results/oasis/texture/log.csv", newline="") as file:
        found = [row.get("validate_texture") for row in csv.DictReader(file)]
    assert len(found) == 2
    assert all(map(float, found)) if validation == "one grey" else not any(found)


@NETWORKS
def test_a_new_decoder_changes_a_soft_picture_by_nothing_that_it_has_learned(network):
    decoder = TextureDecoder(settings_of("--network", network), deviation=0.5)
    soft, noise = torch.rand(2, 1, 8, 8), torch.randn(2, decoder.noise_channels, 8, 8)
    expected = soft + 0.5 * noise if network == "flow" else soft
    torch.testing.assert_close(decoder(soft, noise), expected)


def test_a_flow_is_followed_by_heuns_steps_and_a_last_one_of_eulers(monkeypatch):
    """A velocity of 2 t is followed exactly, to t²; only the last of 4 steps goes on at the velocity of its start."""
    passes = []

    def velocity(self: TextureDecoder, detail: torch.Tensor, soft: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        passes.append(times)
        return 0 * detail + 2 * times.view(-1, 1, 1, 1)

    monkeypatch.setattr(TextureDecoder, "velocity", velocity)
    decoder = TextureDecoder(settings_of("--flow-steps", "4"), deviation=0.5)
    made = decoder(torch.full((2, 1, 8, 8), 0.25), torch.zeros(2, 1, 8, 8))
    last = 0.75**1.5
    torch.testing.assert_close(made, torch.full((2, 1, 8, 8), 0.25 + 0.5 * (last**2 + 2 * last * (1 - last))))
    assert len(passes) == 7


def test_a_flow_learns_the_detail_that_soft_pictures_lack():
    """Pictures that are 0.2 brighter or darker than the soft ones, in squares of 2 by 2: no mean of them has that."""
    torch.manual_seed(0)
    settings = settings_of("--width", "16", "--blocks", "2", "--flow-steps", "10")
    decoder = TextureDecoder(settings, deviation=0.2)
    optimiser = torch.optim.Adam(decoder.parameters(), 5e-3)
    for _ in range(600):
        soft, noise, times = torch.full((32, 1, 4, 4), 0.5), torch.randn(32, 1, 4, 4), torch.rand(32)
        detail = torch.randint(2, (32, 1, 2, 2)).float().mul(2).sub(1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        time = times[:, None, None, None]
        loss = (decoder.velocity(torch.lerp(noise, detail, time), soft, times) - (detail - noise)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    made = decoder(torch.full((200, 1, 4, 4), 0.5), torch.randn(200, 1, 4, 4)).detach()
    assert ((made - 0.5).abs() - 0.2).abs().mean() < 0.05
    blocks = made.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert blocks.std(-1).mean() < 0.3 * made.std()
    assert 0.35 < (made > 0.5).float().mean() < 0.65


def test_the_discriminator_learns_nothing_from_what_teaches_the_decoder():
    torch.manual_seed(0)
    settings = settings_of("--network", "adversarial", "--ssim-weight", "0")
    model = AdversarialTraining(TextureDecoder(settings, deviation=0.5), settings)
    pixels, soft, noise = torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16), torch.randn(4, 3, 16, 16)
    figures = model(pixels, soft, noise, torch.zeros(4), 1.0)
    ours = list(model.discriminator.parameters())
    theirs = list(model.decoder.net.out.parameters())

    def gradients(name: str, weights: list) -> list[bool]:
        found = torch.autograd.grad(figures[name].sum(), weights, allow_unused=True, retain_graph=True)
        return [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in found]

    assert not any(gradients("realness", ours))
    assert not any(gradients("discriminator", theirs))
    assert all(gradients("realness", theirs))
    assert all(gradients("discriminator", [weight for weight in ours if weight.dim() > 1]))


def test_weights_are_divided_by_their_largest_singular_value():
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 4, 4)
    norm = SpectralNorm(weight)
    norm.update(weight, 2000)
    torch.testing.assert_close(norm(weight), weight / torch.linalg.matrix_norm(weight.flatten(1), 2))


def test_crops_are_of_places_where_something_is_and_depend_on_the_image_alone(given):
    trainer = DecoderTrainer(parse(TrainDecoder, "", given))
    pixels = torch.zeros(3, 1, 64, 64)
    pixels[:, :, 40:44, 50:54] = 1
    items = torch.tensor([5, 2, 9])
    crops = trainer._cropped(pixels, pixels * 0.5, Share(items, items, 3, 1, 0))
    assert [tuple(part.shape) for part in crops] == [(3, 1, 16, 16)] * 2
    assert torch.equal(crops[0].sum((1, 2, 3)), torch.full((3,), 16.0))
    assert torch.equal(crops[1], crops[0] * 0.5)
    alone = trainer._cropped(pixels[1:2], pixels[1:2], Share(items[1:2], items[1:2], 1, 1, 0))[0]
    assert torch.equal(alone, crops[0][1:2])
    empty = trainer._cropped(pixels[:1] * 0, pixels[:1], Share(items[:1], items[:1], 1, 1, 0))[0]
    assert empty.shape == (1, 1, 16, 16)


def test_an_image_depends_on_the_seed_and_its_codes_and_on_no_batch():
    decoder = TextureDecoder(settings_of())
    soft, codes = torch.rand(3, 1, 8, 8), {"top": torch.tensor([[[1]], [[2]], [[1]]])}
    made = Texture(decoder, 0)(soft[:1].expand(3, -1, -1, -1), codes)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    alone = Texture(decoder, 0)(soft[:1], {"top": codes["top"][1:2]})
    torch.testing.assert_close(alone, made[1:2])
    assert not torch.equal(Texture(decoder, 1)(soft[:1], {"top": codes["top"][1:2]}), alone)
    assert len(Texture(decoder, 0)(soft[:0], {"top": codes["top"][:0]})) == 0


def test_commands_decode_with_it_and_say_so(trained, apart, capsys):
    run, folder = trained
    models = ["--vqvae", str(run.vqvae), "--decoder", str(folder)]
    priors = ["--top", str(run.top), "--bottom", str(run.bottom)]
    plain = ["--vqvae", str(run.vqvae), *priors, "--count", "2"]
    sample.main([*plain, "--out", "soft"])
    sample.main([*plain, "--decoder", str(folder), "--out", "sharp"])
    with np.load("soft/codes.npz") as soft, np.load("sharp/codes.npz") as sharp:
        assert all(np.array_equal(soft[level], sharp[level]) for level in ("top", "bottom"))
        codes = {level: sharp[level] for level in ("top", "bottom")}
    made = api.load_images("sharp/images", ["test"], dataset="folder", split=(0, 0, 1)).splits["test"].bytes()
    vqvae = api.load_vqvae(run.vqvae, "cpu", decoder=folder)
    assert (to_bytes(api.decode(vqvae, codes, batch=1)) == made).all()
    assert (made != api.load_images("soft/images", ["test"], dataset="folder", split=(0, 0, 1)
                                    ).splits["test"].bytes()).any()
    evaluate.main([*models, *priors, "--data", str(run.data), "--samples", "4", "--out", "report"])
    report = json.loads(Path("report/metrics.json").read_text())
    assert report["decoder_hash"] == weights.weights_hash(weights.load_weights(folder / "model.safetensors")[0])
    assert any("invented" in warning for warning in report["warnings"])
    predict.main([*models, str(run.data / "test"), "--out", "predicted"])
    assert json.loads(Path("predicted/metrics.json").read_text())["decoder_hash"] == report["decoder_hash"]
    assert "warning: --decoder has invented" in capsys.readouterr().out


def test_predict_counts_whom_the_decoder_was_trained_on(trained, apart):
    run, folder = trained
    tensors, config = weights.load_weights(folder / "model.safetensors")
    unseen = sorted((run.data / "test").glob("*.png"))[:1]
    for name, known in (("knows", [pixel_hash(read_picture(unseen[0]))]), ("not", [])):
        weights.save_weights(apart / name / "model.safetensors", tensors, config | {"training_images": known})
        predict.main(["--vqvae", str(run.vqvae), "--decoder", name, str(unseen[0]), "--out", f"by-{name}"])
        report = json.loads(Path(f"by-{name}/metrics.json").read_text())
        assert report["seen_in_training"]["images"] == len(known)


def test_it_is_published_with_a_card_that_says_what_it_invents(trained, apart):
    run, folder = trained
    publish.main([str(folder), "published"])
    assert "is invented" in Path("published/README.md").read_text()
    assert api.load_vqvae(run.vqvae, "cpu", decoder="published").model.texture is not None


def test_a_folder_of_before_there_were_decoders_goes_on_without_one_and_refuses_one(trained, apart):
    run, folder = trained
    words = ["--vqvae", str(run.vqvae), "--top", str(run.top), "--bottom", str(run.bottom), "--out", "samples"]
    sample.main([*words, "--count", "1"])
    record = json.loads(Path("samples/sample.json").read_text())
    for name in ("decoder", "decoder_hash"):
        del record["settings"][name]
    Path("samples/sample.json").write_text(json.dumps(record))
    before = Path("samples/images/000000.png").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"--decoder .* \(was None\)"):
        sample.main([*words, "--count", "2", "--decoder", str(folder)])
    sample.main([*words, "--count", "2"])
    assert Path("samples/images/000000.png").stat().st_mtime_ns == before


def test_a_decoder_of_another_vqvae_or_another_kind_of_model_is_refused(trained, apart):
    run, folder = trained
    tensors, config = weights.load_weights(folder / "model.safetensors")
    weights.save_weights(apart / "other" / "model.safetensors", tensors, config | {"vqvae_hash": "0" * 64})
    with pytest.raises(UserError, match=r"--decoder other: expected .* that .*, found one of .* \(000000"):
        predict.main(["--vqvae", str(run.vqvae), "--decoder", "other", str(run.data / "test"), "--out", "out"])
    with pytest.raises(UserError, match=r"--decoder .*: expected a texture decoder, found a top prior"):
        predict.main(["--vqvae", str(run.vqvae), "--decoder", str(run.top), str(run.data / "test"), "--out", "out"])
    assert not Path("out").exists()


def test_a_shipped_decoder_has_a_report_and_samples_of_its_own_and_changes_no_other(trained, apart, monkeypatch):
    run, decoder = trained
    for what, folder in {"vqvae": run.vqvae, "top": run.top, "bottom": run.bottom}.items():
        shutil.copytree(folder, apart / "shipped" / f"{what}-32")
    monkeypatch.setattr(make_results, "PRETRAINED", Path("shipped"))
    settings = make_results.ResultsSettings(out=Path("out"))
    (apart / "out/32/slices/test").mkdir(parents=True)
    shutil.copy(next((run.data / "test").glob("*.png")), "out/32/slices/test")

    def commands() -> dict[str, str]:
        steps = [*make_results.judging(32, settings, Path("scans")), *make_results.sampling(32, settings)]
        return {step.heading: step.done() for step in steps}

    before = commands()
    shutil.copytree(decoder, "shipped/decoder-32")
    after = commands()
    more = {heading: after.pop(heading) for heading in set(after) - set(before)}
    assert after == before
    assert sorted(more) == ["figures with texture, 32 by 32", "samples with texture"]
    assert all("--decoder shipped/decoder-32" in command for command in more.values())
