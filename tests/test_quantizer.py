"""Vectors -> codes: nearest embeddings, moving averages and restarts, against NumPy and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae2 import quantizer
from vqvae2.quantizer import EmaQuantizer, Place, kmeans, nearest


def started(codebook: torch.Tensor, decay: float = 0.9, count: float = 1.0) -> EmaQuantizer:
    """A quantizer with this codebook whose catching up is over."""
    made = EmaQuantizer(len(codebook), codebook.shape[1], decay)
    made.codebook.copy_(codebook)
    made.counts.fill_(count)
    made.sums.copy_(codebook * count)
    made.updates.fill_(1e6)
    made.is_started.fill_(True)
    made.started = True
    return made


def place(batch: int, step: int = 0) -> Place:
    return Place(torch.arange(batch), batch, step)


@given(rows=st.integers(1, 40), codes=st.integers(2, 30), dim=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_code_is_the_number_of_the_nearest_embedding(rows, codes, dim, seed):
    rng = np.random.default_rng(seed)
    vectors, codebook = rng.normal(size=(rows, dim)), rng.normal(size=(codes, dim))
    distances = ((vectors[:, None] - codebook[None]) ** 2).sum(2)
    assert nearest(torch.tensor(vectors), torch.tensor(codebook)).tolist() == distances.argmin(1).tolist()


def test_vectors_become_their_embeddings_and_the_gradient_passes_straight_through():
    layer = started(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).eval()
    vectors = torch.tensor([0.9, 0.8]).view(1, 2, 1, 1).requires_grad_()
    made = layer(vectors)
    assert made.codes.tolist() == [[[1]]]
    assert made.vectors.flatten().tolist() == pytest.approx([1.0, 1.0])
    assert made.commitment.item() == pytest.approx((0.1**2 + 0.2**2) / 2)
    (made.vectors * torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)).sum().backward()
    assert vectors.grad.flatten().tolist() == [3.0, 5.0]


def test_one_update_is_the_moving_average_of_counts_and_sums():
    layer = started(torch.tensor([[0.0], [10.0]]), decay=0.9, count=4.0).train()
    layer(torch.tensor([1.0, 2.0, 11.0]).view(3, 1, 1, 1), place(3))
    layer.update()
    assert layer.counts.tolist() == pytest.approx([0.9 * 4 + 0.1 * 2, 0.9 * 4 + 0.1 * 1])
    assert layer.sums[:, 0].tolist() == pytest.approx([0.1 * 3, 0.9 * 40 + 0.1 * 11])
    assert layer.codebook[:, 0].tolist() == pytest.approx([0.3 / 3.8, 37.1 / 3.7])


def test_micro_batches_are_one_update():
    codebook, vectors = torch.randn(6, 3), torch.randn(8, 3, 2, 2)
    whole, parts = started(codebook).train(), started(codebook).train()
    whole(vectors, place(8))
    for share in (torch.arange(0, 8, 2), torch.arange(1, 8, 2)):
        parts(vectors[share], Place(share, 8, 0))
    whole.update()
    parts.update()
    torch.testing.assert_close(parts.codebook, whole.codebook, atol=1e-6, rtol=0)


def test_eval_mode_changes_no_state():
    layer = started(torch.randn(5, 3)).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(2, 3, 4, 4), place(2))
    layer.update()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert layer.step_counts.sum() == 0


def test_before_the_start_vectors_pass_unchanged_and_after_it_the_codebook_is_theirs():
    layer = EmaQuantizer(4, 2, start_steps=2).train()
    centres = torch.tensor([[0.0, 0.0], [0.0, 5.0], [5.0, 0.0], [5.0, 5.0]])
    vectors = (centres.repeat(8, 1) + torch.randn(32, 2) * 0.01).view(32, 2, 1, 1)
    made = layer(vectors, place(32, step=0))
    layer.update()
    assert torch.equal(made.vectors, vectors)
    assert not layer.started
    layer(vectors, place(32, step=1))
    layer.update()
    assert layer.started
    torch.testing.assert_close(layer.sums, layer.codebook * layer.counts[:, None])
    assert layer.counts.sum().item() == pytest.approx(32)
    distances = torch.cdist(layer.eval()(vectors).vectors.flatten(1), vectors.flatten(1)).diagonal()
    assert distances.max() < 4  # every vector has an embedding in its own corner, or shares a neighbour's


def test_an_embedding_that_nothing_chooses_is_restarted_with_all_of_its_state():
    layer = started(torch.cat([torch.randn(7, 2), torch.full((1, 2), 1e3)]), count=5.0).train()
    vectors = torch.randn(64, 2, 1, 1)
    for step in range(quantizer.RESTART_EVERY):
        layer(vectors, place(64, step))
        layer.update()
    distance_to_data = (vectors.flatten(1) - layer.codebook[7]).square().sum(1).min()
    assert distance_to_data.item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(layer.sums[7], layer.codebook[7] * layer.counts[7])
    assert layer.recent.sum() == 0


def test_an_embedding_in_use_is_not_restarted():
    codebook = torch.tensor([[0.0], [10.0]])
    layer = started(codebook).train()
    vectors = torch.tensor([0.0] * 15 + [10.0]).view(16, 1, 1, 1)
    for step in range(quantizer.RESTART_EVERY):
        layer(vectors, place(16, step))
        layer.update()
    torch.testing.assert_close(layer.codebook, codebook)


def test_kmeans_finds_separate_groups_and_counts_them():
    rows = torch.cat([torch.randn(30, 2) * 0.01 + centre for centre in torch.tensor([[0.0, 0], [9, 0], [0, 9]])])
    best = min((kmeans(rows, 3, torch.Generator().manual_seed(seed)) for seed in range(8)),
               key=lambda made: torch.cdist(rows, made[0]).min(1).values.sum())
    assert sorted(best[1].tolist()) == [30, 30, 30]
    assert best[0].sum(0).tolist() == pytest.approx([9, 9], abs=0.1)


def test_fewer_vectors_than_embeddings_leave_the_rest_to_restarts():
    centres, counts = kmeans(torch.tensor([[1.0], [2.0]]), 5, torch.Generator().manual_seed(0))
    assert centres.shape == (5, 1)
    assert sorted(counts.tolist()) == [0, 0, 0, 1, 1]


def test_a_wrong_dimension_is_named():
    with pytest.raises(ValueError, match="expected dimension 2, found 3"):
        started(torch.randn(4, 2))(torch.randn(1, 3, 2, 2))
