"""No blind spot and no leak: every output of every layer and whole model is probed for every input it depends on.

Two probes: gradients, which miss nothing that moves the output; and NaN, which passes through whatever is computed,
though it be multiplied by 0 afterwards (so not for attention, which weighs what it may not see with 0).
"""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vqvae2.priors.causal_layers import CausalAttention, HorizontalConv, VerticalConv
from vqvae2.priors.conditions import Column
from vqvae2.priors.pixel_cnn import GATES, GatedLayer, PixelCNN
from vqvae2.training.settings import TrainPrior

CODES, CHANNELS = 7, 4
COLUMNS = (Column("age", (), 60.0, 10.0, 40.0, 80.0), Column("sex", ("F", "M")))
SHAPES = [(4, 6), (6, 4), (2, 8), (2, 2)]
"""Height and width: wide, high, a single row of cells, and a single cell."""
PRIORS = list(product(["top", "bottom"], ["snail", "gated"], [(), COLUMNS]))
NAMES = [f"{level} {network}{' told' * bool(columns)}" for level, network, columns in PRIORS]

Position = tuple[int, int]
Makes = Callable[[torch.Tensor], torch.Tensor]


def by_gradient(make: Makes, x: torch.Tensor) -> dict[Position, set[Position]]:
    """For each output position of `make(x)` the positions of `x` `[1, channels, height, width]` that it depends on."""
    x = x.clone().requires_grad_()
    out = make(x)
    found = {}
    for row, column in places_of(out):
        # The sine, since a sum over channels may be constant, as that of probabilities is.
        gradient, = torch.autograd.grad(out[0, :, row, column].sin().sum(), x, retain_graph=True, allow_unused=True)
        found[row, column] = set() if gradient is None else {
            place for place in places_of(x) if gradient[0].abs().sum(0)[place] > 0}
    return found


def by_nan(make: Makes, x: torch.Tensor) -> dict[Position, set[Position]]:
    """The same by putting NaN into one position after the other."""
    found = {place: set() for place in places_of(make(x))}
    for row, column in places_of(x):
        spoilt = x.clone()
        spoilt[0, :, row, column] = torch.nan
        out = make(spoilt).detach()
        for place in found:
            if out[0].sum(0)[place].isnan():
                found[place].add((row, column))
    return found


def places_of(x: torch.Tensor) -> list[Position]:
    return list(product(*map(range, x.shape[2:])))


def raster_past(shape: Position, itself: bool = False) -> dict[Position, set[Position]]:
    """What each position may know: all before it in raster order, and no more."""
    places = list(product(*map(range, shape)))
    return {place: {other for other in places if other < place or (itself and other == place)} for place in places}


def near(shape: Position, *offsets: Position) -> dict[Position, set[Position]]:
    """The positions at these (row, column) offsets, where they are inside."""
    places = list(product(*map(range, shape)))
    return {(r, c): {(r + down, c + across) for down, across in offsets} & set(places) for r, c in places}


def features(shape: Position, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, CHANNELS, *shape, dtype=torch.float64, generator=generator)


def prior(level: str, network: str, columns: tuple[Column, ...], shape: Position) -> PixelCNN:
    """Deep enough that every corner reaches every other one."""
    torch.manual_seed(0)
    options = TrainPrior(savename="x", epochs=1, batch=1, level=level, vqvae="x", channels=CHANNELS, heads=2,
                            layers=max(shape), attention_every=2, network=network)
    top = (torch.randn(CODES, 3), (shape[0] // 2, shape[1] // 2)) if level == "bottom" else (None, None)
    return PixelCNN(options, torch.randn(CODES, CHANNELS), shape, *top, columns).double().eval()


def given_of(model: PixelCNN) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a prior is given beside the codes: a top map, and a number with an unknown category."""
    top = None if model.conditioner is None else torch.randint(CODES, (1, *model.conditioner.place.shape[1:]))
    return top, torch.tensor([[0.5, torch.nan]]) if model.columns else None


def of_embeddings(model: PixelCNN) -> Makes:
    """The logits as a function of what codes are turned into."""
    given = given_of(model)

    def make(embedded: torch.Tensor) -> torch.Tensor:
        model.embed = lambda _: embedded
        return model(torch.zeros(1, *model.shape, dtype=torch.long), *given)
    return make


LAYERS = {
    "vertical, first": (lambda: VerticalConv(CHANNELS, CHANNELS, first=True), [*product((-2, -1), (-1, 0, 1))]),
    "vertical": (lambda: VerticalConv(CHANNELS, CHANNELS), [*product((-1, 0), (-1, 0, 1))]),
    "horizontal, first": (lambda: HorizontalConv(CHANNELS, CHANNELS, first=True), [(0, -2), (0, -1)]),
    "horizontal": (lambda: HorizontalConv(CHANNELS, CHANNELS), [(0, -1), (0, 0)]),
}


class TestLayers:
    @pytest.mark.parametrize("probe", [by_gradient, by_nan])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("name", LAYERS)
    def test_a_convolution_sees_what_its_drawing_shows(self, name, shape, probe):
        make, offsets = LAYERS[name]
        assert probe(make().double(), features(shape)) == near(shape, *offsets)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_attention_sees_itself_and_exactly_the_raster_past(self, shape):
        assert by_gradient(CausalAttention(CHANNELS, 2).double(), features(shape)) == raster_past(shape, itself=True)

    @pytest.mark.parametrize("probe", [by_gradient, by_nan])
    @pytest.mark.parametrize("conditioned", [False, True])
    @pytest.mark.parametrize("network", GATES)
    def test_a_gated_layer_sees_in_each_stack_what_its_kernels_show(self, network, conditioned, probe):
        """The horizontal stack sees its own row, and in the vertical one whatever the vertical stack itself sees at
        its place, which is of rows above; the vertical stack never sees the horizontal one."""
        shape = SHAPES[0]
        layer = GatedLayer(CHANNELS, conditioned, GATES[network]).double()
        stacks, condition = [features(shape, 1), features(shape, 2)], features(shape, 3) if conditioned else None

        def output(out: int, of: int) -> Makes:
            return lambda x: layer(*(x if i == of else other for i, other in enumerate(stacks)), condition, None)[out]

        sees = {(out, of): probe(output(out, of), stacks[of]) for out in (0, 1) for of in (0, 1)}
        kernel = near(shape, *product((-1, 0), (-1, 0, 1)))
        nothing = near(shape)
        assert sees == {(0, 0): kernel, (0, 1): nothing, (1, 0): kernel, (1, 1): near(shape, (0, -1), (0, 0))}

    def test_a_condition_reaches_the_horizontal_stack_at_its_own_position_only(self):
        shape = SHAPES[0]
        layer = GatedLayer(CHANNELS, True).double()
        for out, seen in enumerate([near(shape), near(shape, (0, 0))]):
            assert by_gradient(lambda x, out=out: layer(features(shape, 1), features(shape, 2), x, None)[out],
                               features(shape, 3)) == seen


class TestModels:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("level", "network", "columns"), PRIORS, ids=NAMES)
    def test_a_position_depends_on_exactly_its_raster_past(self, level, network, columns, shape):
        model = prior(level, network, columns, shape)
        assert by_gradient(of_embeddings(model), features(shape)) == raster_past(shape)

    @pytest.mark.parametrize(("level", "network", "columns"), PRIORS[2:], ids=NAMES[2:])
    def test_nothing_else_is_even_computed_where_there_is_no_attention(self, level, network, columns):
        model = prior(level, network, columns, SHAPES[0])
        assert not model.attentions
        assert by_nan(of_embeddings(model), features(SHAPES[0])) == raster_past(SHAPES[0])

    @pytest.mark.parametrize("network", ["snail", "gated"])
    def test_every_bottom_position_depends_on_every_top_code(self, network):
        model = prior("bottom", network, (), SHAPES[0])
        top, _ = given_of(model)
        codes = torch.zeros(1, *model.shape, dtype=torch.long)
        before = model(codes, top)
        for row, column in product(*map(range, top.shape[1:])):
            other = top.clone()
            other[0, row, column] = (top[0, row, column] + 1) % CODES
            assert ((model(codes, other) - before).abs().sum(1) > 0).all(), (row, column)

    @pytest.mark.parametrize("level", ["top", "bottom"])
    @pytest.mark.parametrize("network", ["snail", "gated"])
    def test_every_position_depends_on_every_column_that_is_told(self, level, network):
        model = prior(level, network, COLUMNS, SHAPES[0])
        codes, (top, _) = torch.zeros(1, *model.shape, dtype=torch.long), given_of(model)
        told = torch.tensor([[0.5, 1.0]])
        for other in ([[0.6, 1.0]], [[torch.nan, 1.0]], [[0.5, 0.0]], [[0.5, torch.nan]]):
            changed = (model(codes, top, torch.tensor(other)) - model(codes, top, told)).abs().sum(1)
            assert (changed > 0).all(), other

    @given(kind=st.sampled_from(PRIORS), shape=st.sampled_from(SHAPES[:2]), seed=st.integers(0, 999), data=st.data())
    @settings(max_examples=25)
    def test_codes_that_come_later_change_no_logit(self, kind, shape, seed, data):
        """Real codes go all the way through the network: everything from one position on is another's."""
        model = prior(*kind, shape)
        torch.manual_seed(seed)
        given, codes = given_of(model), torch.randint(CODES, (1, *shape))
        first = data.draw(st.integers(0, codes[0].numel() - 1))
        other = codes.clone().flatten(1)
        other[:, first:] = (other[:, first:] + torch.randint(1, CODES, other[:, first:].shape)) % CODES
        with torch.no_grad():
            difference = (model(other.view_as(codes), *given) - model(codes, *given)).abs().sum(1).flatten()
        assert difference[:first + 1].max() < 1e-12
        assert (difference[first + 1:] > 0).all()


class TestProbes:
    """A probe that finds nothing shows nothing: both find what was spoilt on purpose."""

    @pytest.mark.parametrize("probe", [by_gradient, by_nan])
    def test_a_first_layer_that_is_not_shifted_is_found_to_see_its_own_code(self, probe):
        model = prior("top", "gated", (), SHAPES[0])
        model.horizontal_first.padding = (1, 0)  # as in a later layer
        assert probe(of_embeddings(model), features(SHAPES[0])) == raster_past(SHAPES[0], itself=True)

    @pytest.mark.parametrize("probe", [by_gradient, by_nan])
    def test_the_blind_spot_of_masked_3_x_3_convolutions_is_found(self, probe):
        """One stack alone is tried: two columns to the right in the row above cannot be reached (figure 1 of [1])."""
        layers = nn.Sequential(*(Masked(CHANNELS, first=i == 0) for i in range(6))).double()
        seen = probe(layers, features(SHAPES[0]))
        assert (1, 3) in seen[2, 2]
        assert (1, 4) not in seen[2, 2]
        assert all(seen[place] <= past for place, past in raster_past(SHAPES[0]).items())


class Masked(nn.Module):
    """A 3 x 3 convolution over the raster past as one kernel, without a second stack: row above, and the left."""

    def __init__(self, channels: int, first: bool):
        super().__init__()
        self.first = first
        self.above = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.left = nn.Conv2d(channels, channels, (1, 1 if first else 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = nn.functional.pad(x, (0, 0, 1, -1))
        left = nn.functional.pad(x, (1, -1 if self.first else 0))
        return (self.above(above) + self.left(left)).tanh()
