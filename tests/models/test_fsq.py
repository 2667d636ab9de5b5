"""Finite scalar quantisation: against a slow NumPy version, and wherever the learned codebooks work."""

import itertools
import math
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PRIOR, TINY_VQVAE
from ranks import run_on_ranks
from resuming import check_bitwise

from vqvae2 import api
from vqvae2.commands import evaluate, sample, train_prior, train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.quantizer import QUANTIZERS, BatchPlace, FiniteScalarQuantizer, Quantizer
from vqvae2.models.settings import FSQ_LEVELS, QUANTIZER_NAMES, VqvaeSettings
from vqvae2.settings.stored import from_dict
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.vqvae import VqvaeTrainer

LEVELS = [(3, 4), (5, 5, 5), (8, 6, 5), (7, 5, 5, 5, 5), (8,)]


def slow(layer: FiniteScalarQuantizer, levels: tuple[int, ...], vector: np.ndarray) -> tuple[int, np.ndarray]:
    """The code of one vector and its embedding: digit by digit, as the paper's equation says."""
    weights = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    scalars = weights["to_scalars.weight"] @ vector + weights["to_scalars.bias"]
    scalars = (scalars - weights["mean"]) / np.sqrt(weights["variance"])
    code, place, values = 0, 1, []
    for scalar, size in zip(scalars, levels):
        half, offset = (size - 1) * 0.999 / 2, 0.5 * (size % 2 == 0)
        whole = round(half * math.tanh(scalar + math.atanh(offset / half)) - offset)
        code, place = code + (whole + size // 2) * place, place * size
        values.append(whole / (size // 2))
    return code, weights["from_scalars.weight"] @ np.array(values) + weights["from_scalars.bias"]


def layer_of(levels: tuple[int, ...], dim: int = 6, scale: float = 3.0) -> FiniteScalarQuantizer:
    torch.manual_seed(0)
    layer = FiniteScalarQuantizer(levels, dim).double()
    layer.to_scalars.weight.data *= scale
    layer.mean += torch.randn(len(levels)) / 10
    layer.variance *= 1.5
    return layer


class TestTheRule:
    @pytest.mark.parametrize("levels", LEVELS)
    def test_codes_and_embeddings_are_those_of_the_equation(self, levels):
        layer, vectors = layer_of(levels), torch.randn(3, 6, 4, 5, dtype=torch.float64)
        made = layer(vectors)
        for image, row, column in itertools.product(range(3), range(4), range(5)):
            code, embedding = slow(layer, levels, vectors[image, :, row, column].numpy())
            assert made.codes[image, row, column] == code
            np.testing.assert_allclose(made.vectors[image, :, row, column].detach().numpy(), embedding, atol=1e-12)

    @pytest.mark.parametrize("levels", LEVELS)
    def test_every_code_can_be_chosen_and_gives_its_own_embedding_back(self, levels):
        """Vectors that aim at each code's digits: the way from the code to its embedding and back is the identity."""
        layer = layer_of(levels, len(levels))
        layer.to_scalars.weight.data = layer.from_scalars.weight.data = torch.eye(len(levels), dtype=torch.float64)
        layer.to_scalars.bias.data, layer.variance = layer.mean, torch.ones_like(layer.mean)
        digits = [np.arange(size) - size // 2 for size in levels]
        wanted = torch.tensor([place[::-1] for place in itertools.product(*digits[::-1])], dtype=torch.float64)
        aims = ((wanted + layer.offset) / layer.reach).clamp(-0.9999, 0.9999).atanh() - layer.shift
        made = layer(aims[:, :, None, None])
        assert made.codes.flatten().tolist() == list(range(math.prod(levels)))
        assert torch.equal(layer.lookup(made.codes), made.vectors)
        assert len(layer.codebook.unique(dim=0)) == math.prod(levels)

    def test_zero_is_a_level_and_vectors_of_zeros_get_it(self):
        layer = layer_of((8, 5))
        layer.to_scalars.bias.data = layer.mean
        code = layer(torch.zeros(1, 6, 1, 1, dtype=torch.float64)).codes.item()
        assert layer.grid[code].tolist() == [0, 0]

    def test_the_gradient_is_that_of_the_bounded_numbers_as_if_nothing_were_rounded(self):
        layer = layer_of((8, 6, 5))
        vectors = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
        direction = torch.randn(2, 6, 3, 3, dtype=torch.float64)
        (layer(vectors).vectors * direction).sum().backward()
        smooth = vectors.detach().clone().requires_grad_()
        normal = (layer.to_scalars(smooth.movedim(1, -1)) - layer.mean) / layer.variance.sqrt()
        bounded = torch.tanh(normal + layer.shift) * layer.reach - layer.offset
        (layer.from_scalars(bounded / layer.middle).movedim(-1, 1) * direction).sum().backward()
        torch.testing.assert_close(vectors.grad, smooth.grad)
        assert layer.to_scalars.weight.grad.abs().sum() > 0

    def test_the_embeddings_learn_from_the_codes_that_were_chosen(self):
        layer, vectors = layer_of((5, 3)), torch.randn(2, 6, 3, 3, dtype=torch.float64)
        made = layer(vectors)
        made.vectors.sum().backward()
        expected = (layer.grid / layer.middle)[made.codes.flatten()].sum(0).expand(6, 2)
        torch.testing.assert_close(layer.from_scalars.weight.grad, expected)

    def test_there_is_no_commitment_no_codebook_loss_and_no_start_to_wait_for(self):
        layer = layer_of((5, 3))
        made = layer(torch.randn(4, 6, 2, 2, dtype=torch.float64))
        assert made.commitment.tolist() == made.codebook.tolist() == [0, 0, 0, 0]
        assert layer.started

    def test_mean_and_variance_follow_the_vectors_of_all_micro_batches(self):
        """The first step's are taken as they are; then the share of the new ones is 1 / (1 + 0.2 n), at least 0.1."""
        layer = FiniteScalarQuantizer((5, 3), 6, decay=0.9).double().train()
        mean, variance = np.zeros(2), np.ones(2)
        for step in range(60):
            vectors = torch.randn(5, 6, 2, 3, dtype=torch.float64) * (step + 1)
            for share in (torch.arange(0, 5, 2), torch.arange(1, 5, 2)):
                layer(vectors[share], BatchPlace(share, 5, step))
            scalars = layer.to_scalars(vectors.movedim(1, -1)).detach().flatten(0, 2).numpy()
            layer.update()
            share = max(0.1, 1 / (1 + 0.2 * step))
            mean, variance = mean + share * (scalars.mean(0) - mean), variance + share * (scalars.var(0) - variance)
            np.testing.assert_allclose(layer.mean.numpy(), mean)
            np.testing.assert_allclose(layer.variance.numpy(), variance)

    def test_vectors_of_any_spread_use_all_levels_after_one_step(self):
        layer, vectors = layer_of((5, 5, 5)).train(), torch.randn(64, 6, 8, 8, dtype=torch.float64) * 1e-3 + 7
        layer(vectors, BatchPlace(torch.arange(64), 64, 0))
        layer.update()
        digits = layer.grid[layer.eval()(vectors).codes.flatten()]
        for column in digits.T:
            shares = torch.unique(column, return_counts=True)[1] / len(digits)
            assert len(shares) == 5
            assert shares.min() > 0.1

    def test_eval_mode_changes_no_state(self):
        layer = layer_of((5, 3)).eval()
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        layer(torch.randn(4, 6, 2, 2, dtype=torch.float64), BatchPlace(torch.arange(4), 4, 0))
        layer.update()
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())

    def test_an_empty_share_gives_gradients_of_zero(self):
        layer = layer_of((5, 3))
        layer(torch.randn(0, 6, 2, 2, dtype=torch.float64)).vectors.sum().backward()
        assert all(parameter.grad is not None and parameter.grad.eq(0).all() for parameter in layer.parameters())

    def test_autocast_changes_no_code(self):
        layer, vectors = layer_of((8, 6, 5)).float(), torch.randn(2, 6, 8, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = layer(vectors)
        assert torch.equal(inside.codes, layer(vectors).codes)
        assert inside.vectors.dtype == torch.float32


class TestSettings:
    def test_the_table_of_rules_has_the_names_that_the_settings_take(self):
        assert list(QUANTIZERS) == QUANTIZER_NAMES == list(get_type_hints(VqvaeSettings)["quantizer"].__args__)
        assert all(issubclass(rule, Quantizer) for rule in QUANTIZERS.values())

    @pytest.mark.parametrize(("size", "levels"), [
        (16, (4, 4)), (128, (5, 5, 5)), (256, (8, 6, 5)), (512, (8, 8, 8)), (1024, (8, 5, 5, 5)),
        (4096, (7, 5, 5, 5, 5)), (16384, (8, 8, 8, 6, 5)), (32767, (8, 8, 8, 6, 5))])
    def test_the_levels_are_those_of_the_nearest_size_which_becomes_the_codebook_size(self, size, levels):
        made = VqvaeSettings(quantizer="fsq", codebook_size=size)
        assert (made.fsq_levels, made.codebook_size) == (levels, math.prod(levels))
        assert from_dict(VqvaeSettings, {"quantizer": "fsq", "codebook_size": made.codebook_size,
                                         "fsq_levels": list(levels)}) == made

    def test_levels_that_are_given_beat_the_codebook_size(self):
        made = VqvaeSettings(quantizer="fsq", codebook_size=512, fsq_levels=(7, 3))
        assert (made.fsq_levels, made.codebook_size) == ((7, 3), 21)

    def test_all_recommended_sizes_fit_an_int16_and_grow(self):
        sizes = [math.prod(levels) for levels in FSQ_LEVELS]
        assert sizes == sorted(sizes)
        assert sizes[-1] <= 32767

    @pytest.mark.parametrize(("more", "line"), [
        ({"quantizer": "fsq", "fsq_levels": (2, 8)}, r"--fsq-levels: .* from 3 to 255 .* found 2 8\. For example"),
        ({"quantizer": "fsq", "fsq_levels": (200, 200)}, r"at most 32767, found 200 200\. For example --fsq-levels"),
        ({"fsq_levels": (8, 8)}, r"expected --quantizer fsq beside it, found --quantizer ema\. Leave it out")])
    def test_levels_that_cannot_be_are_refused(self, more, line):
        with pytest.raises(UserError, match=line):
            VqvaeSettings(**more)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_codes_of_an_image_decode_to_its_reconstruction(levels):
    model = Vqvae(VqvaeSettings(quantizer="fsq", levels=levels, channels=16, residual_channels=8, embedding_dim=8))
    model, images = model.eval(), torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        made = model(images)
        assert all(torch.equal(codes, made.codes[level]) for level, codes in model.encode(images).items())
        assert torch.equal(model.decode(made.codes), made.images.clamp(0, 1))
    assert model.is_quantising()


def train(folder: str, data: str, batch: int) -> dict:
    """Train a tiny VQ-VAE on this rank; return its state."""
    trainer = VqvaeTrainer(TrainVqvae(
        data=Path(data), savename="x", results=Path(folder), epochs=2, batch=batch, threads=1, channels=8,
        residual_channels=8, embedding_dim=8, codebook_size=16, precision="fp32", warmup_steps=2, quantizer="fsq",
        pictures_every=0))
    trainer.run()
    return trainer.model.state_dict()


def test_two_processes_are_one(tiny_slices, tmp_path):
    """18 images, 8 a step: the last step of an epoch has 2. The tolerance is that of the other rules
    (tests/chain/test_two_processes.py): sums in another order differ in the last bits."""
    alone = train(str(tmp_path / "alone"), str(tiny_slices), 8)
    first, second = run_on_ranks(2, train, str(tmp_path / "shared"), str(tiny_slices), 4)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=2e-3, rtol=2e-3)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tiny_slices, tmp_path):
    arguments = ["--data", str(tiny_slices), "--savename", "x", *TINY, *TINY_VQVAE, "--epochs", "3",
                 "--quantizer", "fsq"]
    check_bitwise(VqvaeTrainer, TrainVqvae, arguments, tmp_path, 5)


def test_embeddings_priors_and_samples_are_made_of_its_codes(tiny_slices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(tiny_slices), *TINY]
    train_vqvae.main([*data, *TINY_VQVAE, "--savename", "fsq", "--quantizer", "fsq", "--epochs", "20"])
    for level in ("top", "bottom"):
        train_prior.main([*data, *TINY_PRIOR, "--level", level, "--vqvae", "fsq", "--savename", level])
    models = ["--vqvae", "fsq", "--top", "top", "--bottom", "bottom"]
    sample.main([*models, "--count", "2", "--out", "samples"])
    evaluate.main([*models, "--split", "validate", "--out", "report", "--samples", "4"])
    assert (tmp_path / "report" / "metrics.json").is_file()
    vqvae = api.load_vqvae("fsq", device="cpu")
    codes = {"top": np.zeros((1, 4, 4), np.int64), "bottom": np.zeros((1, 8, 8), np.int64)}
    embeddings = api.embeddings(vqvae, codes)["top"]
    codebook = vqvae.model.quantizers["top"].codebook.detach()
    np.testing.assert_allclose(np.asarray(embeddings)[0, :, 0, 0], codebook[0].numpy(), atol=1e-6)


def test_weights_for_other_levels_are_none_to_begin_with_even_where_their_shapes_are_the_same(tiny_slices, apart):
    given = ["--data", str(tiny_slices), *TINY, *TINY_VQVAE, "--epochs", "1", "--quantizer", "fsq"]
    train_vqvae.main([*given, "--savename", "first", "--fsq-levels", "3", "5"])
    with pytest.raises(UserError, match=r"--fsq-levels 5 3 \(was 3 5\)\. "):
        train_vqvae.main([*given, "--savename", "second", "--fsq-levels", "5", "3", "--init-from", "first"])
