"""Denoisers: they learn, go on bit for bit, and leave their VQ-VAE as it is."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_VQVAE
from ranks import run_on_ranks
from resuming import check_bitwise

from vqvae2 import api
from vqvae2.commands import publish, train_denoiser, train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.metrics import similarity
from vqvae2.models.denoiser import PARTS, Denoiser
from vqvae2.runs import weights
from vqvae2.settings.parsing import parse
from vqvae2.training.denoisers import BLACK, DenoiserTrainer
from vqvae2.training.settings import TrainDenoiser

RUN = Path("results/oasis/denoiser")


@pytest.fixture
def given(tiny_run, apart) -> list[str]:
    """Arguments: the tiny slices and a VQ-VAE of them."""
    shutil.copytree(tiny_run.vqvae, apart / "results" / "oasis" / "tiny")
    return ["--data", str(tiny_run.data), "--vqvae", "tiny", "--savename", "denoiser", *TINY, "--epochs", "2"]


def elsewhere(given, tmp_path):
    """Arguments that hold in any working folder."""
    shutil.copytree("results/oasis/tiny", tmp_path / "tiny")
    return [str(tmp_path / "tiny") if word == "tiny" else word for word in given]


def test_a_run_that_was_stopped_ends_as_one_that_never_was(given, tmp_path):
    check_bitwise(DenoiserTrainer, TrainDenoiser, elsewhere(given, tmp_path), tmp_path, 4)


def _trained_on_rank(arguments: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    trainer = DenoiserTrainer(parse(TrainDenoiser, "", arguments))
    trainer.run()
    return trainer.model.state_dict(), trainer.rows[-1]


def test_two_processes_make_the_same_steps_as_one(given, tmp_path):
    words = elsewhere([*given, "--epochs", "1"], tmp_path)
    _, alone = _trained_on_rank([*words, "--results", str(tmp_path / "one")])
    words[words.index("--batch") + 1] = "4"
    (first, together), (second, _) = run_on_ranks(2, _trained_on_rank, [*words, "--results", str(tmp_path / "two")])
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in set(alone) - {"seconds"}:
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name


def test_the_vqvae_stays_and_its_encoder_is_where_the_training_begins(given):
    before = Path("results/oasis/tiny/model.safetensors").read_bytes()
    train_denoiser.main([*given, "--learning-rate", "1e-9"])
    assert Path("results/oasis/tiny/model.safetensors").read_bytes() == before
    vqvae, denoiser = api.load_vqvae("tiny"), Denoiser.from_pretrained(RUN)
    assert denoiser.config["vqvae_hash"] == vqvae.hash
    assert list(denoiser.encoder) == list(PARTS)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        coded, _, made = denoiser(images, vqvae.model)
    for level, codes in vqvae.model.encode(images).items():
        assert torch.equal(coded.codes[level], codes)
    torch.testing.assert_close(made, images, atol=1e-5, rtol=0)  # a new network takes nothing for noise


def test_it_learns_to_bring_noisy_images_nearer_to_clean_ones(given):
    train_denoiser.main([*given, "--epochs", "30", "--noise", "0.3", "--learning-rate", "0.003"])
    trainer = DenoiserTrainer(parse(TrainDenoiser, "", [*given, "--noise", "0.3"]))
    trainer.device = torch.device("cpu")
    trainer.config = {}
    trainer.start()
    items = torch.arange(6)
    clean = trainer.images.splits["validate"].batch(items)
    noisy = trainer.noisy(clean, "validate", items, 0)
    with torch.no_grad():
        _, _, made = Denoiser.from_pretrained(RUN)(noisy, trainer.vqvae.model)
    before, after = ((images.clamp(0, 1) - clean).square().mean() for images in (noisy, made))
    assert after < before / 3


def test_some_training_images_keep_their_black_background_and_all_have_noise_in_the_brain(given):
    trainer = DenoiserTrainer(parse(TrainDenoiser, "", given))
    trainer.device = torch.device("cpu")
    trainer.config = {}
    trainer.start()
    items = torch.arange(18)
    clean = trainer.images.splits["train"].batch(items)
    noisy = trainer.noisy(clean, "train", items, 0)
    outside = ~similarity.brain_mask(clean)[:, None]
    black = (noisy * outside).flatten(1).amax(1) == 0
    assert 0.2 < black.float().mean() < 0.8
    assert BLACK == 0.5
    assert ((noisy - clean) * ~outside).flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize("more", [["--levels", "1"], ["--standardise", "--quantizer", "fsq"], ["--ssim-weight", "0"]])
def test_any_vqvae_can_have_one(more, given, tiny_run):
    train_vqvae.main(["--data", str(tiny_run.data), "--savename", "other", *TINY, *TINY_VQVAE, "--epochs", "1",
                      *more, *([] if "fsq" in more else ["--start-steps", "1"])])
    train_denoiser.main([word if word != "tiny" else "other" for word in given])
    vqvae = api.load_vqvae("other")
    coded, _, made = Denoiser.from_pretrained(RUN)(torch.rand(2, 1, 32, 32), vqvae.model)
    assert list(coded.codes) == list(vqvae.model.levels)
    assert made.shape == (2, 1, 32, 32)


def test_one_can_begin_with_another_of_the_same_vqvae_only(given):
    train_denoiser.main(given)
    train_denoiser.main([*given, "--savename", "again", "--init-from", "denoiser", "--learning-rate", "1e-9"])
    first, second = (weights.load_weights(Path("results/oasis") / name / "model.safetensors")[0]
                     for name in ("denoiser", "again"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-5)
    weights.save_weights(RUN / "model.safetensors", first, weights.read_config(RUN) | {"vqvae_hash": "0" * 64})
    with pytest.raises(UserError, match=r"--init-from denoiser: expected weights that learned the codes of .* 000000"):
        train_denoiser.main([*given, "--savename", "third", "--init-from", "denoiser"])


@pytest.mark.parametrize("amount", ["0", "-0.1", "0.6"])
def test_an_amount_of_noise_that_leaves_nothing_to_learn_is_refused(amount, given):
    with pytest.raises(UserError, match=rf"--noise: expected 0 < DEVIATION <= 0.5, found {amount}\."):
        train_denoiser.main([*given, f"--noise={amount}"])


def test_a_missing_vqvae_is_told_before_anything_is_made(given, tmp_path):
    with pytest.raises(UserError, match=r"--vqvae nobody: expected a folder with model.safetensors"):
        train_denoiser.main([word if word != "tiny" else "nobody" for word in given])
    assert not RUN.exists()


def test_a_published_one_is_half_as_large_and_says_whose_it_is(given):
    train_denoiser.main(given)
    publish.publish(RUN, Path("published"), bf16=True)
    card = Path("published/README.md").read_text()
    assert "# published: a denoiser, 32 by 32 pixels" in card
    assert f"the VQ-VAE whose weights have the hash {api.load_vqvae('tiny').hash[:12]}" in card
    assert str(Path.cwd()) not in card + Path("published/config.json").read_text()
    own, rounded = (Denoiser.from_pretrained(folder).state_dict() for folder in (RUN, "published"))
    for name, value in own.items():
        torch.testing.assert_close(rounded[name], value, rtol=2**-8, atol=0)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (RUN, Path("published"))]
    assert sizes[1] < 0.6 * sizes[0]
