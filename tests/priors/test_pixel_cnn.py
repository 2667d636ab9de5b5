"""Priors know exactly the raster past (and the top map), and codes are drawn as their probabilities say."""

import pytest
import torch
from tiny_prior import CODES, prior, random_codes

from vqvae2.priors.pixel_cnn import SubPixelShuffle
from vqvae2.sampling.sampler import SamplingRule, choose, draw_codes


@pytest.mark.parametrize(("level", "attention_every"), [("top", 2), ("top", 0), ("bottom", 0)])
def test_a_position_depends_on_all_of_its_raster_past_and_on_nothing_else(level, attention_every):
    """Gradients from every output to every input embedding; the layers are deep enough to reach every corner."""
    model = prior(level, attention_every=attention_every, layers=6)
    codes, top = random_codes(model, batch=1)
    embedded = model.embed(codes).detach().requires_grad_()
    model.embed = lambda _: embedded
    logits = model(codes, top)
    height, width = model.shape
    for row in range(height):
        for column in range(width):
            gradient, = torch.autograd.grad(logits[0, :, row, column].sin().sum(), embedded, retain_graph=True,
                                            allow_unused=True)
            seen = {(r, c) for r in range(height) for c in range(width) if gradient[0, :, r, c].abs().sum() > 0}
            past = {(r, c) for r in range(height) for c in range(width) if (r, c) < (row, column)}
            assert seen == past, (row, column)


def test_every_bottom_position_depends_on_every_top_code():
    model = prior("bottom")
    codes, top = random_codes(model, batch=1)
    before = model(codes, top)
    for row in range(top.shape[1]):
        for column in range(top.shape[2]):
            other = top.clone()
            other[0, row, column] = (top[0, row, column] + 1) % CODES
            changed = (model(codes, other) - before).abs().sum(1)[0]
            assert (changed > 0).all(), (row, column)


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_prior_of_slices_depends_on_every_code_of_the_previous_one_and_none_known_is_none_given(level):
    model = prior(level, condition=("previous-slice",))
    codes, top = random_codes(model, batch=1)
    previous = torch.randint(CODES, codes.shape)
    before = model(codes, top, previous=previous)
    for row in range(codes.shape[1]):
        for column in range(codes.shape[2]):
            other = previous.clone()
            other[0, row, column] = -1
            assert ((model(codes, top, previous=other) - before).abs().sum(1)[0] > 0).all(), (row, column)
    assert torch.equal(model(codes, top), model(codes, top, previous=torch.full_like(codes, -1)))


def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in():
    model = prior("top")
    together = draw_codes(model, [0, 1, 2, 3], 5, "top")
    alone = torch.cat([draw_codes(model, [number], 5, "top") for number in range(4)])
    assert torch.equal(together, alone)
    assert len({tuple(code_map.flatten().tolist()) for code_map in together}) == 4


def test_known_codes_stay_and_the_rest_is_drawn():
    model = prior("top")
    known = torch.full((1, *model.shape), -1)
    known[0, 1] = 3
    drawn = draw_codes(model, [0], 5, "top", stay=known)
    assert drawn[0, 1].eq(3).all()
    assert not drawn.eq(-1).any()


def test_draws_have_the_frequencies_that_the_logits_say():
    wanted = torch.tensor([0.5, 0.2, 0.2, 0.1])
    numbers = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = choose(wanted.log().expand(10_000, 4), numbers, SamplingRule())
    assert (torch.bincount(drawn, minlength=4) / 10_000).tolist() == pytest.approx(wanted.tolist(), abs=2e-4)


@pytest.mark.parametrize(("rule", "expected"), [
    (SamplingRule(top_k=2), [4 / 7, 3 / 7, 0, 0]), (SamplingRule(top_p=0.5), [4 / 7, 3 / 7, 0, 0]),
    (SamplingRule(top_p=0.4), [1, 0, 0, 0]), (SamplingRule(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30])])
def test_temperature_top_k_and_top_p_change_the_distribution_as_they_say(rule, expected):
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert rule.probabilities(logits)[0].tolist() == pytest.approx(expected)


def test_dropout_drops_whole_channels_of_the_images_that_it_is_told():
    model = prior("top")
    codes, _ = random_codes(model, 2)
    keep = torch.ones(2, 6, 2, 8, dtype=torch.float64)
    keep[1, :, :, :4] = 0
    kept, plain = model(codes, keep=keep), model(codes)
    torch.testing.assert_close(kept[0], plain[0])
    assert (kept[1] - plain[1]).abs().max() > 1e-4


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_rank_without_images_reaches_every_parameter(level):
    """torch's PixelShuffle has no backward pass for an empty batch; a rank's share of a micro-batch may be one."""
    model = prior(level)
    codes, top = random_codes(model, batch=2)
    model(codes[:0], None if top is None else top[:0]).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_features_of_a_cell_are_spread_as_pixel_shuffle_does():
    x = torch.randn(2, 12, 3, 5)
    assert torch.equal(SubPixelShuffle(2)(x), torch.nn.functional.pixel_shuffle(x, 2))
