"""Both kinds of codebook against a plain NumPy reference: codes, loss, gradients and update (van den Oord 2017)."""

import types

import numpy as np
import pytest
import torch

from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.quantizer import BatchPlace, EmaQuantizer, GradientQuantizer
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.trainer import Share
from vqvae2.training.vqvae import VqvaeTrainer

BETA, DECAY, RATE = 0.3, 0.9, 0.05
BATCH, DIM, HEIGHT, WIDTH, SIZE = 3, 4, 2, 5, 6


class Reference:
    """One step in NumPy, a vector at a time: loss = sum(weights x embeddings) + codebook term + BETA x commitment."""

    def __init__(self, vectors: np.ndarray, codebook: np.ndarray, weights: np.ndarray):
        self.codes = np.zeros((BATCH, HEIGHT, WIDTH), int)
        self.made, self.of_vectors = np.zeros_like(vectors), np.zeros_like(vectors)
        self.of_codebook, self.distance = np.zeros_like(codebook), np.zeros(BATCH)
        self.counts, self.sums = np.zeros(SIZE), np.zeros_like(codebook)
        numbers = DIM * HEIGHT * WIDTH
        for image, row, column in np.ndindex(BATCH, HEIGHT, WIDTH):
            vector = vectors[image, :, row, column]
            code = int(((codebook - vector) ** 2).sum(1).argmin())
            missed = vector - codebook[code]
            self.codes[image, row, column], self.made[image, :, row, column] = code, codebook[code]
            self.distance[image] += (missed**2).sum() / numbers
            # Straight-through: the weights reach the vector as if it had not been quantised.
            self.of_vectors[image, :, row, column] = weights[image, :, row, column] + BETA * 2 * missed / numbers
            self.of_codebook[code] -= 2 * missed / numbers
            self.counts[code] += 1
            self.sums[code] += vector

    def loss(self, weights: np.ndarray, beta: float, has_codebook_term: bool) -> float:
        return (weights * self.made).sum() + (has_codebook_term + beta) * self.distance.sum()


@pytest.fixture
def step():
    """Vectors, codebook, weights of the embeddings in the loss, and what the reference makes of them."""
    rng = np.random.default_rng(7)
    vectors, weights = rng.normal(size=(2, BATCH, DIM, HEIGHT, WIDTH))
    codebook = rng.normal(size=(SIZE, DIM))
    return vectors, codebook, weights, Reference(vectors, codebook, weights)


def begun(layer: torch.nn.Module, codebook: np.ndarray) -> torch.nn.Module:
    layer = layer.double().train()
    with torch.no_grad():
        layer.codebook.copy_(torch.from_numpy(codebook))
    layer.is_started.fill_(True)
    layer.started = True
    return layer


def run(layer: torch.nn.Module, vectors: np.ndarray, weights: np.ndarray) -> tuple:
    given = torch.from_numpy(vectors).requires_grad_()
    made = layer(given, BatchPlace(torch.arange(BATCH), BATCH, 0))
    loss = (made.vectors * torch.from_numpy(weights)).sum() + (made.codebook + BETA * made.commitment).sum()
    loss.backward()
    return made, loss.item(), given.grad.numpy()


def test_a_gradient_codebook_has_the_loss_and_the_gradients_of_the_reference(step):
    vectors, codebook, weights, expected = step
    layer = begun(GradientQuantizer(SIZE, DIM), codebook)
    made, loss, of_vectors = run(layer, vectors, weights)
    assert np.array_equal(made.codes.numpy(), expected.codes)
    np.testing.assert_allclose(made.codebook.detach().numpy(), expected.distance)
    np.testing.assert_allclose(made.commitment.detach().numpy(), expected.distance)
    assert loss == pytest.approx(expected.loss(weights, BETA, True))
    np.testing.assert_allclose(of_vectors, expected.of_vectors)
    np.testing.assert_allclose(layer.codebook.grad.numpy(), expected.of_codebook)


def test_a_gradient_codebook_is_moved_by_the_optimiser_alone(step):
    vectors, codebook, weights, expected = step
    layer = begun(GradientQuantizer(SIZE, DIM), codebook)
    run(layer, vectors, weights)
    torch.optim.SGD(layer.parameters(), lr=RATE).step()
    layer.update()
    np.testing.assert_allclose(layer.codebook.detach().numpy(), codebook - RATE * expected.of_codebook)


def test_adam_moves_it_as_kingma_and_ba_write(step):
    vectors, codebook, weights, expected = step
    layer = begun(GradientQuantizer(SIZE, DIM), codebook)
    run(layer, vectors, weights)
    torch.optim.Adam(layer.parameters(), lr=RATE).step()
    gradient = expected.of_codebook  # at the first step both corrected moments are the gradient's own
    np.testing.assert_allclose(layer.codebook.detach().numpy(),
                               codebook - RATE * gradient / (np.sqrt(gradient**2) + 1e-8))


def test_an_ema_codebook_has_the_loss_the_gradients_and_the_update_of_the_reference(step):
    vectors, codebook, weights, expected = step
    layer = begun(EmaQuantizer(SIZE, DIM, DECAY), codebook)
    layer.counts.fill_(2.0)
    layer.sums.copy_(2 * layer.codebook)
    layer.updates.fill_(1e6)  # the catching up is over
    made, loss, of_vectors = run(layer, vectors, weights)
    assert np.array_equal(made.codes.numpy(), expected.codes)
    np.testing.assert_allclose(made.commitment.detach().numpy(), expected.distance)
    assert made.codebook.tolist() == [0.0] * BATCH
    assert loss == pytest.approx(expected.loss(weights, BETA, False))
    np.testing.assert_allclose(of_vectors, expected.of_vectors)
    layer.update()
    counts = DECAY * 2 + (1 - DECAY) * expected.counts
    sums = DECAY * 2 * codebook + (1 - DECAY) * expected.sums
    np.testing.assert_allclose(layer.counts.numpy(), counts, rtol=1e-6)  # the decay's share is a float32 number
    np.testing.assert_allclose(layer.codebook.numpy(), sums / counts[:, None], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_in_micro_batches_the_gradients_add_up_to_those_of_the_whole(kind):
    vectors = torch.randn(6, DIM, 2, 2, dtype=torch.float64)
    codebook = torch.randn(SIZE, DIM).numpy()
    whole, parts = (begun(GradientQuantizer(SIZE, DIM) if kind == "gradient" else EmaQuantizer(SIZE, DIM), codebook)
                    for _ in range(2))
    given = [vectors.clone().requires_grad_() for _ in range(2)]
    made = whole(given[0], BatchPlace(torch.arange(6), 6, 0))
    (made.codebook + BETA * made.commitment).sum().backward()
    for share in (slice(0, 4), slice(4, 6)):
        made = parts(given[1][share], BatchPlace(torch.arange(6)[share], 6, 0))
        (made.codebook + BETA * made.commitment).sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    if kind == "gradient":
        torch.testing.assert_close(whole.codebook.grad, parts.codebook.grad)
        assert whole.codebook.grad.abs().sum() > 0
    assert torch.equal(whole.step_counts, parts.step_counts)


def test_a_gradient_codebook_has_a_gradient_of_0_before_its_start_and_without_images():
    """DDP wants one of every parameter, on every rank."""
    layer = GradientQuantizer(SIZE, DIM).train()
    layer(torch.randn(2, DIM, 3, 3), BatchPlace(torch.arange(2), 2, 0)).codebook.sum().backward()
    assert torch.equal(layer.codebook.grad, torch.zeros(SIZE, DIM))
    layer = begun(GradientQuantizer(SIZE, DIM), np.ones((SIZE, DIM))).float()
    layer(torch.randn(0, DIM, 3, 3), BatchPlace(torch.arange(0), 2, 0)).codebook.sum().backward()
    assert torch.equal(layer.codebook.grad, torch.zeros(SIZE, DIM))


def test_a_gradient_codebook_starts_where_k_means_puts_it():
    layer = GradientQuantizer(4, 1, start_steps=1).train()
    vectors = torch.tensor([5.0, 7.0]).repeat(32).view(64, 1, 1, 1)
    unquantised = layer(vectors, BatchPlace(torch.arange(64), 64, 0))
    assert torch.equal(unquantised.vectors, vectors)
    layer.update()
    assert layer.started
    assert sorted(layer.codebook.detach().flatten().unique().tolist()) == [5.0, 7.0]
    assert isinstance(layer.codebook, torch.nn.Parameter)


def test_an_embedding_of_a_gradient_codebook_that_nothing_chooses_is_restarted_at_a_badly_served_vector():
    layer = begun(GradientQuantizer(3, 1, restart_every=1), np.array([[0.0], [10.0], [1e6]]))
    vectors = torch.tensor([0.0, 10.0, 20.0]).repeat(20).view(60, 1, 1, 1).double()
    layer(vectors, BatchPlace(torch.arange(60), 60, 1))
    layer.update()
    assert layer.codebook.detach().flatten().tolist() == [0.0, 10.0, 20.0]


class TwoImages:
    """Stands in for the data: two images."""

    def __init__(self):
        self.pixels = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))

    def batch(self, items, _):
        return self.pixels[items]


def losses_of(kind: str, beta: float) -> tuple[dict[str, torch.Tensor], Vqvae]:
    """What the trainer makes of two images with this beta, and the model with its gradients."""
    settings = TrainVqvae(savename="x", epochs=1, batch=2, quantizer=kind, commitment=beta, channels=8,
                             residual_channels=4, embedding_dim=4, codebook_size=8, start_steps=0)
    torch.manual_seed(1)
    model = Vqvae(settings).train()
    for quantizer in model.quantizers.values():
        with torch.no_grad():
            quantizer.codebook.copy_(torch.randn(8, 4, generator=torch.Generator().manual_seed(5)))
        quantizer.is_started.fill_(True)
        quantizer.started = True
    trainer = types.SimpleNamespace(settings=settings, device=torch.device("cpu"), model=model,
                                    images=types.SimpleNamespace(splits={"train": TwoImages()}))
    items = torch.arange(2)
    figures = VqvaeTrainer.losses(trainer, model, Share(items, items, 2, 0, 0))
    figures["loss"].sum().backward()
    return figures, model


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_beta_multiplies_the_commitment_term_and_nothing_else(kind):
    """In the loss, and in the gradients: the codebook's do not know it, the encoder's are linear in it."""
    (none, at_0), (half, at_half), (full, at_1) = (losses_of(kind, beta) for beta in (0.0, 0.5, 1.0))
    assert (full["commitment"] > 0).all()
    torch.testing.assert_close(full["loss"] - none["loss"], full["commitment"])
    torch.testing.assert_close(half["loss"] - none["loss"], 0.5 * full["commitment"])
    of_encoder = [model.to_top.weight.grad for model in (at_0, at_half, at_1)]
    torch.testing.assert_close(2 * (of_encoder[1] - of_encoder[0]), of_encoder[2] - of_encoder[0])
    assert not torch.equal(of_encoder[0], of_encoder[2])
    if kind == "gradient":
        for level in ("top", "bottom"):
            books = [model.quantizers[level].codebook.grad for model in (at_0, at_1)]
            assert torch.equal(*books)
            assert books[0].abs().sum() > 0
