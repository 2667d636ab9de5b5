"""Codes that stay, candidates and their likelihood: what drawing promises beside what test_prior.py holds."""

import math

import pytest
import torch
from tiny_prior import CODES, prior, random_codes
from ways_of_drawing import drawing, every_way

from vqvae2.priors.stepping import PixelCNNCursor
from vqvae2.sampling import sampler
from vqvae2.sampling.sampler import SamplingRule, bits_per_code, draw_codes, draw_maps


@pytest.fixture
def steps(monkeypatch):
    """The positions whose logits were computed."""
    positions = []

    with drawing("torch"):
        monkeypatch.setattr(PixelCNNCursor, "step", lambda self, row, column, step=PixelCNNCursor.step: (
            positions.append((row, column)), step(self, row, column))[1])
        yield positions


def with_gaps(shape, *gaps):
    """Random codes, -1 at some (image, row, column)."""
    codes = torch.randint(CODES, (3, *shape), generator=torch.Generator().manual_seed(0))
    for gap in gaps:
        codes[gap] = -1
    return codes


class TestCodesThatStay:
    @pytest.mark.parametrize("level", ["top", "bottom"])
    def test_they_stay_and_the_rest_is_what_the_slow_way_draws(self, level):
        model = prior(level)
        _, top = random_codes(model, 3)
        stay = with_gaps(model.shape, (0, 0, 0), (0, 2, 5), (1, 3, 1), (2, slice(1, 3)))
        fast, slow = (draw_codes(model, [4, 5, 6], 7, level, top_codes=top, stay=stay, cached=cached)
                      for cached in (True, False))
        assert torch.equal(fast, slow)
        assert torch.equal(fast[stay >= 0], stay[stay >= 0])
        assert ((fast >= 0) & (fast < CODES)).all()

    def test_a_drawn_code_does_not_depend_on_codes_that_stay_in_other_images(self):
        model = prior("top")
        stay = with_gaps(model.shape, (0, 1), (1, 2), (2, 0))
        alone = torch.cat([draw_codes(model, [8], 7, "top", stay=stay[i:i + 1]) for i in range(3)])
        assert torch.equal(draw_codes(model, [8, 8, 8], 7, "top", stay=stay), alone)

    def test_nothing_is_computed_after_the_last_that_is_drawn_but_all_count_as_done(self, steps):
        model, done = prior("top"), []
        draw_codes(model, [0, 1, 2], 7, "top", stay=with_gaps(model.shape, (1, 2, 3)), on_code=lambda: done.append(1))
        assert steps[-1] == (2, 3)
        assert len(done) == 4 * 6

    def test_a_map_without_gaps_costs_nothing(self, steps):
        model = prior("top")
        stay = with_gaps(model.shape)
        assert torch.equal(draw_codes(model, [0, 1, 2], 7, "top", stay=stay), stay)
        assert steps == []

    def test_what_was_given_is_left_as_it_was(self):
        model = prior("top")
        stay = with_gaps(model.shape, (0, 0, 0))
        before = stay.clone()
        draw_codes(model, [0, 1, 2], 7, "top", stay=stay)
        assert torch.equal(stay, before)


class TestCandidates:
    def test_candidate_0_is_the_image_that_is_drawn_without_candidates(self):
        model = prior("top")
        together = draw_codes(model, [3, 3, 3], 7, "top", candidates=[0, 1, 2])
        assert torch.equal(together[:1], draw_codes(model, [3], 7, "top"))
        assert len({tuple(code_map.flatten().tolist()) for code_map in together}) == 3

    def test_a_candidate_has_the_same_random_numbers_whatever_it_is_drawn_with(self):
        model = prior("top")
        together = draw_codes(model, [3, 4, 3], 7, "top", candidates=[2, 2, 1])
        assert torch.equal(together[2:], draw_codes(model, [3], 7, "top", candidates=[1]))

    def test_candidates_differ_in_both_levels(self):
        models = {"top": prior("top", (2, 3)), "bottom": prior("bottom")}
        nothing = {level: torch.zeros(2, 0) for level in models}
        maps = draw_maps(models, [3, 3], 7, {level: SamplingRule() for level in models}, nothing, candidates=[0, 1])
        for level in models:
            assert not torch.equal(*maps[level]), level


def test_bits_per_code_are_those_of_every_code_given_the_ones_before_it():
    """Recomputed position by position, both levels together: 6 top and 24 bottom codes."""
    models = {"top": prior("top", (2, 3)), "bottom": prior("bottom")}
    maps = {"top": torch.randint(CODES, (2, 2, 3)), "bottom": torch.randint(CODES, (2, 4, 6))}
    found = bits_per_code(models, maps, {level: torch.zeros(2, 0) for level in models})
    expected = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for level, model in models.items():
            state = PixelCNNCursor(model, 2, maps["top"])
            for row in range(model.shape[0]):
                for column in range(model.shape[1]):
                    share = state.step(row, column).softmax(1)
                    codes = maps[level][:, row, column]
                    expected -= share[torch.arange(2), codes].log() / math.log(2)
                    state.tell(column, codes)
    assert found.tolist() == pytest.approx((expected / 30).tolist(), abs=1e-9)


def test_bits_per_code_of_an_image_do_not_depend_on_its_batch():
    models = {"top": prior("top").float()}
    maps = torch.randint(CODES, (5, 4, 6))
    nothing = torch.zeros(5, 0)
    together = bits_per_code(models, {"top": maps}, {"top": nothing})
    alone = torch.cat([bits_per_code(models, {"top": code_map[None]}, {"top": nothing[:1]}) for code_map in maps])
    assert torch.equal(together, alone)


def test_priors_draw_in_float64_and_stay_as_they_were():
    model = prior("top")
    model.float()
    copied = sampler.in_float64({"top": model})["top"]
    assert (copied.bias.dtype, model.bias.dtype) == (torch.float64, torch.float32)
    together, alone = (PixelCNNCursor(copied, batch) for batch in (5, 1))
    torch.testing.assert_close(together.step(0, 0)[:1], alone.step(0, 0), rtol=0, atol=1e-12)


@every_way
@pytest.mark.parametrize("rule", [SamplingRule(), SamplingRule(temperature=0.7), SamplingRule(top_k=3),
                                  SamplingRule(top_p=0.8), SamplingRule(top_k=CODES)])
def test_chosen_codes_are_the_first_whose_cumulative_probability_passes_the_number(way, rule):
    torch.manual_seed(0)
    logits, numbers = 3 * torch.randn(500, CODES), torch.rand(500, dtype=torch.float64)
    numbers[:2] = torch.tensor([0.0, 1 - 2**-53])
    cumulative = rule.probabilities(logits).cumsum(1)
    with drawing(way):
        assert torch.equal(sampler.choose(logits, numbers, rule), (cumulative <= numbers[:, None]).sum(1).clamp(
            max=CODES - 1))


@every_way
def test_images_that_are_drawn_in_groups_are_those_drawn_together(way, monkeypatch):
    """Each has its own top codes, facts, codes that stay, candidate and codes of the previous slice."""
    model, done = prior("bottom", condition=("previous-slice",)), []
    _, top = random_codes(model, 3)
    stay, previous = with_gaps(model.shape, (slice(0, 3), slice(1, 4))), torch.randint(-1, CODES, (3, *model.shape))
    told = {"top_codes": top, "stay": stay, "candidates": [0, 2, 1], "previous": previous}
    with drawing(way):
        together = draw_codes(model, [4, 5, 6], 7, "bottom", **told)
        monkeypatch.setattr(type(model), "maps_at_once", 2)
        assert torch.equal(draw_codes(model, [4, 5, 6], 7, "bottom", **told, on_code=lambda: done.append(1)), together)
    assert len(done) == 4 * 6
