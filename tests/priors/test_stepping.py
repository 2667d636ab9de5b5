"""Position by position is the same as the whole map: logits, codes drawn, and nothing else is touched."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ways_of_drawing import cursor_of, drawing, every_way

from vqvae2.priors.base import WholeMapCursor
from vqvae2.priors.conditions import Column
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.priors.stepping import PixelCNNCursor
from vqvae2.sampling.sampler import SamplingRule, choose, draw_codes
from vqvae2.training.settings import TrainPrior

CODES, DIM = 12, 5
COLUMNS = (Column("age", (), 60.0, 10.0, 40.0, 80.0), Column("sex", ("F", "M")))
AGES, SEXES = [math.nan, -1.5, 0.0, 0.5], [math.nan, 0.0, 1.0]


def prior(level: str = "top", shape: tuple[int, int] = (4, 6), network: str = "snail", told: bool = False,
          layers: int = 3, attention_every: int = 2, seed: int = 0, shown: bool = False) -> PixelCNN:
    """A prior in float64 whose codes are far from even, so that a wrong logit would be seen in what is drawn."""
    torch.manual_seed(seed)
    options = TrainPrior(savename="x", epochs=1, batch=1, level=level, vqvae="x", channels=8, heads=2,
                            layers=layers, attention_every=attention_every, network=network,
                            condition=("previous-slice",) if shown else ())
    top = (torch.randn(CODES, DIM), (shape[0] // 2, shape[1] // 2)) if level == "bottom" else (None, None)
    made = PixelCNN(options, torch.randn(CODES, DIM), shape, *top, COLUMNS if told else ()).double().eval()
    torch.nn.init.normal_(made.bias)
    return made


def top_maps(model: PixelCNN, batch: int) -> torch.Tensor | None:
    return None if model.conditioner is None else torch.randint(CODES, (batch, *model.conditioner.place.shape[1:]))


def previous_maps(model: PixelCNN, batch: int) -> torch.Tensor | None:
    """Codes of a previous slice, some of them unknown."""
    return torch.randint(-1, CODES, (batch, *model.shape)) if model.previous is not None else None


def both_ways(model: PixelCNN, codes: torch.Tensor, top: torch.Tensor | None = None, known: torch.Tensor | None = None,
              previous: torch.Tensor | None = None, way: str = "torch", **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[batch, codebook_size, height, width]` of a cached way and of the slow one, for the same codes."""
    with torch.no_grad():
        state, fast = cursor_of(way)(model, len(codes), top, known, previous, **options), []
        for row in range(model.shape[0]):
            for column in range(model.shape[1]):
                fast.append(state.step(row, column))
                state.tell(column, codes[:, row, column])
        return torch.stack(fast, 2).unflatten(2, model.shape), model(codes, top, known, previous=previous)


PRIORS = st.builds(prior, level=st.sampled_from(["top", "bottom"]),
                   shape=st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 4, 6])),
                   network=st.sampled_from(["snail", "gated"]), told=st.booleans(), layers=st.integers(1, 3),
                   attention_every=st.integers(0, 2), seed=st.integers(0, 99), shown=st.booleans())
FACTS = st.lists(st.tuples(st.sampled_from(AGES), st.sampled_from(SEXES)), min_size=1, max_size=3)
MANY_FACTS = st.integers(1, 9).flatmap(lambda count: st.lists(FACTS.map(lambda facts: facts[0]), min_size=count,
                                                              max_size=count))


@every_way
@given(model=PRIORS, facts=MANY_FACTS, nothing=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_the_codes_and_logits_are_those_of_the_slow_way(way, model, facts, nothing, seed):
    """Over sizes, levels, networks, batches, and what is known: a number, a category, NaN, or nothing at all; with the
    codes of a previous slice or without."""
    torch.manual_seed(seed)
    numbers, known = list(range(len(facts))), torch.tensor(facts) if model.columns and not nothing else None
    top, previous = top_maps(model, len(facts)), previous_maps(model, len(facts))
    with drawing(way):
        drawn, expected = (draw_codes(model, numbers, seed, "any", top_codes=top, known=known, cached=cached,
                                      previous=previous) for cached in (True, False))
    assert torch.equal(drawn, expected)
    torch.testing.assert_close(*both_ways(model, drawn, top, known, previous, way), atol=1e-12, rtol=0)


@every_way
@pytest.mark.parametrize("count", [0, 1, 3])
def test_logits_of_whole_maps_without_gradients_are_those_of_forward(way, count):
    model = prior("bottom", told=True, shown=True)
    codes = torch.randint(CODES, (count, *model.shape))
    told = top_maps(model, count), torch.full((count, 3), 0.5), previous_maps(model, count)
    with drawing(way), torch.no_grad():
        found, expected = model.logits(codes, *told), model(codes, *told[:2], previous=told[2])
    assert found.shape == (count, CODES, *model.shape)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@every_way
@given(model=PRIORS, facts=MANY_FACTS, seed=st.integers(0, 99))
@settings(max_examples=30)
def test_reading_known_rows_gives_the_logits_of_stepping_through_them(way, model, facts, seed):
    """Also where rows are read and stepped through by turns."""
    torch.manual_seed(seed)
    codes, known = torch.randint(CODES, (len(facts), *model.shape)), torch.tensor(facts) if model.columns else None
    told = top_maps(model, len(facts)), known, previous_maps(model, len(facts))
    cursor = cursor_of(way)(model, len(facts), *told)
    slow = WholeMapCursor(model, len(facts), *told)
    for row, own in enumerate(codes.unbind(1)):
        expected = slow.read_row(row, own.T)
        if row % 3 == 2:
            found = []
            for column, now in enumerate(own.unbind(1)):
                found.append(cursor.step(row, column))
                cursor.tell(column, now)
            found = torch.stack(found)
        else:
            found = cursor.read_row(row, own.T)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@every_way
@given(model=PRIORS, facts=FACTS, seed=st.integers(0, 99))
@settings(max_examples=20)
def test_in_float32_logits_agree_to_1e_5_and_draws_differ_only_at_a_boundary(way, model, facts, seed):
    """A draw may differ where its uniform number is nearer than 1e-4 to where one code ends and the next begins."""
    torch.manual_seed(seed)
    model, known = model.float(), torch.tensor(facts) if model.columns else None
    codes, top = torch.randint(CODES, (len(facts), *model.shape)), top_maps(model, len(facts))
    fast, slow = (logits.movedim(1, -1).reshape(-1, CODES) for logits in both_ways(model, codes, top, known, way=way))
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)
    uniform = torch.rand(len(slow), dtype=torch.float64)
    boundaries = SamplingRule().probabilities(slow).cumsum(1)
    close = (boundaries - uniform[:, None]).abs().amin(1) < 1e-4
    assert (choose(fast, uniform, SamplingRule()) == choose(slow, uniform, SamplingRule()))[~close].all()


@every_way
def test_one_column_and_one_row_are_maps_too(way):
    for shape in [(1, 1), (1, 5), (5, 1)]:
        model = prior(shape=shape)
        torch.testing.assert_close(*both_ways(model, torch.randint(CODES, (2, *shape)), way=way), atol=1e-12, rtol=0)


@every_way
def test_sampling_leaves_the_weights_as_they_were(way):
    """They are used where they lie, and much is computed in place."""
    model = prior("bottom", told=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with drawing(way):
        draw_codes(model, [0, 1], 7, "bottom", top_codes=top_maps(model, 2), known=torch.tensor([[0.5, 1.0]] * 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_state_is_allocated_once():
    model = prior()
    state, places = PixelCNNCursor(model, 2), []
    for row in range(4):
        for column in range(6):
            state.step(row, column)
            state.tell(column, torch.tensor([1, 2]))
        places.append(addresses(state))
    assert len(places[0]) > 20
    assert places.count(places[0]) == 4


def addresses(thing: object) -> list[int]:
    """Where each tensor of `thing`, and of its parts of this package, lies in memory."""
    if isinstance(thing, torch.Tensor):
        return [thing.data_ptr()]
    if isinstance(thing, (list, tuple, dict)):
        return [place for part in (thing.values() if isinstance(thing, dict) else thing) for place in addresses(part)]
    return addresses(vars(thing)) if type(thing).__module__ == "vqvae2.priors.stepping" else []
