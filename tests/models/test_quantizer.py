"""Vectors -> codes: nearest embeddings, moving averages and restarts, against NumPy and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae2.models import nearest as nearest_module
from vqvae2.models import quantizer
from vqvae2.models.nearest import kmeans, nearest
from vqvae2.models.quantizer import BatchPlace, EmaQuantizer


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


def place(batch: int, step: int = 0) -> BatchPlace:
    return BatchPlace(torch.arange(batch), batch, step)


@given(rows=st.integers(1, 40), codes=st.integers(2, 30), dim=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=40)
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
        parts(vectors[share], BatchPlace(share, 8, 0))
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


def test_a_start_with_few_vectors_a_step_gathers_those_of_several_steps():
    """4 embeddings want 32 vectors; each step has 10."""
    layer = EmaQuantizer(4, 2, start_steps=5).train()
    for step in range(8):
        assert not layer.started
        layer(torch.randn(10, 2, 1, 1), place(10, step))
        layer.update()
        assert len(layer.gathered) == (10 * max(0, step - 3) if step < 7 else 0)
    assert layer.started
    assert layer.counts.sum().item() == pytest.approx(10)


def test_a_start_that_never_has_enough_vectors_comes_at_twice_start_steps():
    layer = EmaQuantizer(64, 2, start_steps=3).train()
    for step in range(6):
        assert not layer.started
        layer(torch.randn(2, 2, 1, 1), place(2, step))
        layer.update()
    assert layer.started


def test_what_was_gathered_survives_a_stop():
    vectors = torch.randn(8, 10, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    whole, stopped, again = (EmaQuantizer(4, 2, start_steps=5).train() for _ in range(3))
    for layer, steps in ((whole, range(8)), (stopped, range(6))):
        for step in steps:
            layer(vectors[step], place(10, step))
            layer.update()
    again.load_state_dict(stopped.state_dict())
    for step in (6, 7):
        again(vectors[step], place(10, step))
        again.update()
    assert again.started
    assert whole.state_dict().keys() == again.state_dict().keys() == EmaQuantizer(4, 2).state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_more_dead_embeddings_than_candidates_are_restarted_a_few_at_a_time():
    """Two embeddings at one place would be chosen by nobody: the second of them always loses."""
    layer = started(torch.full((8, 2), 1e3), count=5.0).train()
    vectors = torch.tensor([[[[0.0]], [[1.0]]], [[[2.0]], [[3.0]]]])
    for step in range(3 * quantizer.RESTART_EVERY):
        layer(vectors, place(2, step))
        layer.update()
        moved = layer.codebook[layer.codebook[:, 0] < 100]
        assert len(moved.unique(dim=0)) == len(moved)
    assert layer.eval()(vectors).commitment.max() < 1e-3


def restarted(vectors: torch.Tensor, alive: int | None = None) -> torch.Tensor:
    """The codebook of 64 after a restart in which each vector is a candidate, and all but the first two embeddings are
    dead; with `alive`, that one was just chosen often enough."""
    codebook = torch.cat([vectors[:2].flatten(1) * 0.9, torch.full((62, 4), 1e3)])
    layer = started(codebook, decay=1.0).train()
    if alive is not None:
        layer.recent[alive] = len(vectors)
    layer(vectors, place(len(vectors), quantizer.RESTART_EVERY - 1))
    layer.update()
    return layer.codebook


def test_an_embedding_that_comes_back_to_life_moves_no_other():
    vectors = torch.randn(256, 4, 1, 1)
    differ = (restarted(vectors) != restarted(vectors, alive=5)).any(1)
    assert differ.nonzero().flatten().tolist() == [5]


def test_a_vector_that_becomes_a_worse_served_one_moves_the_embedding_whose_candidate_it_is_and_no_other():
    vectors = torch.randn(256, 4, 1, 1)
    for number in range(2, 256, 25):
        other = vectors.clone()
        other[number] *= 30
        moved = ((restarted(vectors) - restarted(other)).abs() > 0.01).any(1)
        assert moved.sum() <= 1


def test_candidates_among_millions_are_drawn_without_a_permutation_of_them(monkeypatch):
    monkeypatch.setattr(quantizer, "LARGEST_PERMUTATION", 100)
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: pytest.fail("a permutation of all cells"))
    layer = started(torch.zeros(4, 2)).train()
    layer(torch.randn(100, 2, 4, 4), place(100, quantizer.RESTART_EVERY - 1))
    assert layer._wanted[0].max() < 100
    assert layer._wanted[1].max() < 16
    assert len(layer._wanted[0]) == 32


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


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 rows with one thread (16 in each of 4), so that a few hundred rows are several of them."""
    monkeypatch.setattr(nearest_module, "CPU_BLOCK", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def textbook(layer: EmaQuantizer, vectors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Embeddings with straight-through, codes, commitment, counts and sums by a one-hot matrix, as autograd sees it."""
    rows = vectors.movedim(1, -1).flatten(0, -2)
    codes = (rows.detach()[:, None] - layer.codebook[None]).square().sum(2).argmin(1)
    one_hot = torch.nn.functional.one_hot(codes, layer.codebook_size).to(rows.dtype)
    shape = (len(vectors), *vectors.shape[2:], layer.dim)
    embeddings = (one_hot @ layer.codebook).view(shape).movedim(-1, 1)
    commitment = (vectors - embeddings).square().flatten(1).mean(1)
    straight = vectors + (embeddings - vectors).detach()
    return straight, codes.view(shape[:-1]), commitment, one_hot.sum(0), one_hot.T @ rows.detach()


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_nearest_embedding_does_not_depend_on_where_a_block_of_rows_ends(small_blocks, rows, kind):
    """Whole numbers: distances are exact, and many tie, so that the lowest code is asked for too."""
    rng = np.random.default_rng(rows)
    vectors, codebook = rng.integers(-2, 3, (rows, 3)), rng.integers(-2, 3, (37, 3))
    distances = ((vectors[:, None] - codebook[None]) ** 2).sum(2)
    codes = nearest(torch.tensor(vectors, dtype=kind), torch.tensor(codebook, dtype=kind))
    assert codes.tolist() == distances.argmin(1).tolist()


def test_in_float32_another_embedding_is_chosen_only_where_two_are_equally_near():
    vectors, codebook = torch.randn(3000, 16), torch.randn(100, 16)
    distances = (vectors.double()[:, None] - codebook.double()[None]).square().sum(2)
    excess = distances.gather(1, nearest(vectors, codebook)[:, None])[:, 0] - distances.amin(1)
    assert excess.max() < 1e-5  # float32 has 1e-7 of distances of about 50


def test_of_equal_embeddings_the_lowest_code_is_chosen():
    assert nearest(torch.randn(100, 4), torch.ones(50, 4)).unique().tolist() == [0]


def test_a_vector_that_is_not_finite_still_gets_a_code_of_the_codebook():
    vectors = torch.tensor([[float("nan")] * 2, [float("inf")] * 2, [float("-inf")] * 2, [0.0, 0.0]])
    codes = nearest(vectors, torch.randn(6, 2))
    assert ((codes >= 0) & (codes < 6)).all()


def test_values_gradients_and_statistics_are_those_of_the_textbook():
    layer = started(torch.randn(7, 3).double()).double().train()
    ours, theirs = (torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
                    for _ in range(2))
    made = layer(ours, place(4))
    straight, codes, commitment, counts, sums = textbook(layer, theirs)
    weights, shares = torch.randn(4, 3, 5, 2).double(), torch.rand(4).double()
    for vectors, distance in ((made.vectors, made.commitment), (straight, commitment)):
        ((vectors * weights).sin().sum() + (distance * shares).sum()).backward()
    assert torch.equal(made.codes, codes)
    torch.testing.assert_close(made.vectors, straight)
    torch.testing.assert_close(made.commitment, commitment)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(layer.step_counts, counts)
    torch.testing.assert_close(layer.step_sums, sums)


def test_the_commitment_alone_and_the_vectors_alone_have_their_own_gradients():
    layer = started(torch.tensor([[0.0], [4.0]])).train()
    vectors = torch.tensor([1.0, 3.5]).view(1, 1, 2, 1).requires_grad_()
    of_commitment, = torch.autograd.grad(layer(vectors).commitment.sum(), vectors)
    assert of_commitment.flatten().tolist() == [1.0, -0.5]  # 2 (vector - embedding) / 2 cells
    of_vectors, = torch.autograd.grad(layer(vectors).vectors.sum(), vectors)
    assert of_vectors.flatten().tolist() == [1.0, 1.0]


def test_made_vectors_are_the_embeddings_bit_for_bit():
    layer = started(torch.randn(7, 3)).train()
    made = layer(torch.randn(4, 3, 5, 2) * 100)
    assert torch.equal(made.vectors, layer.lookup(made.codes))


@pytest.mark.parametrize("layout", ["channels_last", "a part of a larger one", "every second column", "transposed"])
def test_how_vectors_lie_in_memory_changes_nothing(layout):
    vectors = torch.randn(4, 3, 6, 6)
    other = {"channels_last": lambda: vectors.contiguous(memory_format=torch.channels_last),
             "a part of a larger one": lambda: torch.cat([vectors, vectors], 1)[:, :3],
             "every second column": lambda: vectors.repeat_interleave(2, 3)[..., ::2],
             "transposed": lambda: vectors.mT.contiguous().mT}[layout]()
    results = []
    for held in (vectors, other):
        held, layer = held.detach().requires_grad_(), started(torch.arange(21.0).view(7, 3).sin()).train()
        made = layer(held, place(4))
        (made.vectors.square().sum() + made.commitment.sum()).backward()
        results.append((made.vectors, made.codes, made.commitment, held.grad, layer.step_counts, layer.step_sums))
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected)


def test_repeated_runs_give_the_same_bits(small_blocks):
    vectors, codebook = torch.randn(8, 5, 9, 7), torch.randn(30, 5)
    runs = []
    for _ in range(3):
        layer, held = started(codebook).train(), vectors.clone().requires_grad_()
        made = layer(held, place(8))
        (made.vectors.sum() + made.commitment.sum()).backward()
        layer.update()
        runs.append((made.vectors, made.codes, made.commitment, held.grad, layer.codebook, layer.counts))
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0]))


def test_backward_keeps_the_vectors_and_their_embeddings_and_nothing_else():
    saved = []
    layer, vectors = started(torch.randn(500, 2)).train(), torch.randn(4, 2, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        made = layer(vectors, place(4))
    assert sorted(tensor.data_ptr() for tensor in saved) == sorted([vectors.data_ptr(), made.vectors.data_ptr()])


def test_under_autocast_and_for_bf16_vectors_it_computes_in_float32():
    layer, vectors = started(torch.randn(7, 3)).train(), torch.randn(4, 3, 5, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(vectors, place(4))
    _, codes, commitment, _, sums = textbook(layer, vectors.detach().float())
    assert made.vectors.dtype == made.commitment.dtype == torch.float32
    assert torch.equal(made.codes, codes)
    torch.testing.assert_close(made.commitment, commitment)
    torch.testing.assert_close(layer.step_sums, sums)
    made.commitment.sum().backward()
    assert vectors.grad.dtype == torch.bfloat16


def test_no_image_at_all_is_quantised_and_counted_as_nothing():
    layer, vectors = started(torch.randn(7, 3)).train(), torch.zeros(0, 3, 4, 4, requires_grad=True)
    made = layer(vectors, BatchPlace(torch.arange(0), 4, 0))
    (made.vectors.sum() + made.commitment.sum()).backward()
    assert made.codes.shape == (0, 4, 4)
    assert vectors.grad.shape == vectors.shape
    assert layer.step_counts.sum() == 0


def test_a_compiled_network_quantises_and_restarts_as_one_that_is_not():
    """The compiler goes round the quantizer, whose seeded draws it cannot trace."""
    plain, inside = (started(torch.arange(15.0).view(5, 3).cos()).train() for _ in range(2))
    compiled = torch.compile(inside, backend="eager")
    for step in range(quantizer.RESTART_EVERY + 1):
        vectors = torch.randn(4, 3, 2, 2)
        assert torch.equal(compiled(vectors, place(4, step)).vectors, plain(vectors, place(4, step)).vectors)
        plain.update()
        inside.update()
    assert torch.equal(inside.codebook, plain.codebook)


@pytest.mark.parametrize(("every", "restarted_at"), [(4, 3), (0, None)])
def test_dead_embeddings_are_restarted_every_so_many_steps_or_never(every, restarted_at):
    layer = started(torch.cat([torch.randn(7, 2), torch.full((1, 2), 1e3)]), count=5.0).train()
    layer.restart_every = every
    for step in range(12):
        layer(torch.randn(64, 2, 1, 1), place(64, step))
        layer.update()
        assert (layer.codebook[7].max() < 100) == (restarted_at is not None and step >= restarted_at), step
