"""What a manifest says becomes numbers that a prior is told; what it does not say has an embedding of its own."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqvae2.common import random_numbers
from vqvae2.common.errors import UserError
from vqvae2.priors import conditions
from vqvae2.priors.conditions import Column
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.priors.stepping import PixelCNNCursor
from vqvae2.sampling.sampler import SamplingRule, choose, condition_values, draw_codes
from vqvae2.training.settings import TrainPrior

AGE = Column("age", (), 60.0, 10.0, 40.0, 80.0)
SEX = Column("sex", ("F", "M"))
CODES = 9
NAN = math.nan
people = st.lists(st.floats(-1e6, 1e6).map(lambda age: round(age, 3)), min_size=1, max_size=20)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)


def facts(name: str, texts: list[str]) -> list[dict[str, str]]:
    return [{"image": f"{i}.png", name: text} for i, text in enumerate(texts)]


def column_of(*texts: str) -> Column:
    return conditions.fit(facts("x", list(texts)), ["x"])[0]


class TestColumns:
    @given(people)
    def test_numbers_are_standardised_by_the_training_images(self, ages):
        column = column_of(*map(str, ages))
        assert (column.categories, column.least, column.most) == ((), min(ages), max(ages))
        standard = np.array([column.number(str(age)) for age in ages])
        if min(ages) == max(ages):
            assert standard == pytest.approx(0, abs=1e-6)
        else:
            assert column.mean == pytest.approx(np.mean(ages), rel=1e-9, abs=1e-9)
            assert column.spread == pytest.approx(np.std(ages), rel=1e-6)
            assert standard == pytest.approx((ages - np.mean(ages)) / np.std(ages), rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize("value", ["0.1", "54.3", "20210317", "0", "-7"])
    @pytest.mark.parametrize("images", [1, 3, 18])
    def test_a_constant_column_stands_for_0_and_other_values_stay_in_its_own_unit(self, value, images):
        """The mean of eighteen times 0.1 is not quite 0.1: their spread is not to be taken for a real one."""
        column = column_of(*[value] * images)
        assert column.number(value) == pytest.approx(0, abs=1e-9)
        assert column.number(str(float(value) + 2)) == pytest.approx(2)

    def test_a_date_written_as_a_number_keeps_all_its_digits(self):
        column = column_of("20210317", "20210319")
        assert (column.mean, column.spread, column.least) == (20210318, 1, 20210317)

    def test_what_is_not_known_does_not_count_for_mean_and_spread(self):
        assert column_of("40", "", "n/a", " 80 ", "NaN") == Column("x", (), 60, 20, 40, 80)

    def test_categories_are_sorted_and_stand_for_their_places(self):
        column = column_of("M", "", " F", "X", "M ")
        assert column.categories == ("F", "M", "X")
        assert [column.number(text) for text in ("F", " M ", "X")] == [0, 1, 2]

    @pytest.mark.parametrize("texts", [["1", "2", "90+"], ["1", "inf"], ["01", "x"], ["-1e300", "1e300"]])
    def test_one_value_that_is_no_number_makes_a_column_of_categories(self, texts):
        assert column_of(*texts).categories == tuple(sorted(texts))

    @pytest.mark.parametrize("column", [AGE, SEX], ids=["number", "category"])
    @pytest.mark.parametrize("text", ["", "  ", "n/a", "N/A", "NA", "nan", "None", "null"])
    def test_words_for_unknown_are_unknown(self, column, text):
        assert math.isnan(column.number(text))

    def test_a_category_that_no_training_image_has_is_unknown(self):
        assert math.isnan(SEX.number("f"))
        assert math.isnan(AGE.number("old"))

    @given(st.lists(words, min_size=1, max_size=20))
    def test_every_known_value_has_a_number_and_every_other_none(self, texts):
        if not any(text.strip().lower() not in conditions.UNKNOWN for text in texts):
            texts = [*texts, "x"]
        columns = conditions.fit(facts("x", texts), ["x"])
        table = conditions.numbers(columns, facts("x", texts))
        assert (table.dtype, table.shape) == (torch.float32, (len(texts), 1))
        assert table[:, 0].isnan().tolist() == [text.strip().lower() in conditions.UNKNOWN for text in texts]
        assert conditions.from_json(json.loads(json.dumps(conditions.as_json(columns)))) == columns

    def test_numbers_of_images_stand_in_rows_and_what_a_manifest_lacks_is_unknown(self):
        rows = [{"age": "70", "sex": "M"}, {"sex": "F"}, {"age": "50", "sex": "X"}]
        assert conditions.numbers((AGE, SEX), rows).nan_to_num(-9).tolist() == [[1, 1], [-9, 0], [-1, -9]]
        assert conditions.numbers((AGE, SEX), []).shape == (0, 2)
        assert conditions.numbers((), rows).shape == (3, 0)

    def test_a_column_that_the_manifest_lacks_is_named_with_those_there_are(self):
        with pytest.raises(UserError, match=r"^--condition agee: expected a column of the manifest, found none of that "
                                            r"name among image, age\. Correct the name, or extract with --covariates"):
            conditions.fit(facts("age", ["1"]), ["agee"])
        with pytest.raises(UserError, match=r"found none of that name among image, x\. Correct"):
            conditions.fit([{"image": "a.png", "x": "1", None: ["a cell too many"]}], ["age"])

    @pytest.mark.parametrize("rows", [[], [{}]])
    def test_a_data_set_without_a_manifest_is_told(self, rows):
        with pytest.raises(UserError, match=r"--condition age: .* among none, since there is no manifest\.csv\. Corr"):
            conditions.fit(rows, ["age"])

    def test_a_column_that_is_unknown_for_everyone_is_refused(self):
        with pytest.raises(UserError, match=r"^--condition x: expected a value for at least 1 training image, found "
                                            r"none\. Leave it out, or extract with --covariates\.$"):
            column_of("", "n/a", "nan")

    def test_names_are_no_categories(self):
        assert len(column_of(*(f"s{i}" for i in range(64))).categories) == 64
        with pytest.raises(UserError, match=r"^--condition x: expected numbers or at most 64 categories, found 65 "
                                            r"values such as s0\. Leave it out\.$"):
            column_of(*(f"s{i}" for i in range(65)))


class TestCommandLine:
    def numbers(self, *texts: str, draws: torch.Tensor | None = None, columns: tuple[Column, ...] = (AGE, SEX)):
        return conditions.from_texts(columns, texts, torch.zeros(3, len(columns)) if draws is None else draws)

    def test_values_stand_for_what_they_stand_for_in_the_manifest_and_the_rest_is_unknown(self):
        rows = [{"age": "70", "sex": "M"}] * 3
        assert torch.equal(self.numbers("sex=M", "age= 70"), conditions.numbers((AGE, SEX), rows))
        assert self.numbers("sex=M").nan_to_num(-9).tolist() == [[-9, 1]] * 3
        assert self.numbers().isnan().all()

    @given(st.floats(0, 120), st.floats(0, 120), st.lists(st.floats(0, 1, exclude_max=True), min_size=1))
    def test_a_range_is_evenly_filled_from_one_end_to_the_other(self, first, last, draws):
        numbers = torch.tensor(draws, dtype=torch.float64)[:, None].expand(-1, 2)
        found = self.numbers(f"age={first}..{last}", draws=numbers)
        ages = found[:, 0].double().numpy() * AGE.spread + AGE.mean
        assert ages == pytest.approx(first + (last - first) * np.array(draws), abs=1e-4)
        assert found[:, 1].isnan().all()

    def test_two_dots_in_a_category_are_no_range(self):
        assert self.numbers("where=a..b", columns=(Column("where", ("a", "a..b", "b")),)).tolist() == [[1]] * 3

    def test_an_equals_sign_may_be_in_a_name_and_in_a_category(self):
        columns = (Column("a", ("b=c", "c")), Column("a=b", ("c", "d")), AGE)
        assert self.numbers("a=b=c", columns=columns).nan_to_num(-9).tolist() == [[-9, 0, -9]] * 3
        assert self.numbers("a=b=d", "a=c", columns=columns).nan_to_num(-9).tolist() == [[1, 1, -9]] * 3
        assert self.numbers("a=b=c", columns=columns[:1]).tolist() == [[0]] * 3

    @pytest.mark.parametrize(("text", "said"), [
        ("age=60...80", r"found 60\.\.\.80\. Leave age out"), ("age=1e300", r"80 in training, found 1e300\. Leave"),
        ("plane=axial", r"^--condition plane=axial: expected NAME=VALUE for what the prior was trained with, age "
                        r"\(numbers, 40 to 80 in training\), sex \(F, M\), found plane\. Correct it, or leave it "
                        r"out\."),
        ("age", r"^--condition age: expected NAME=VALUE .* found age\. Correct it"),
        ("age=old", r"^--condition age=old: expected one of numbers, 40 to 80 in training, found old\. Leave age out"),
        ("age=", r"^--condition age=: expected one of numbers, .* found \. Leave age out for an unknown one\.$"),
        ("age=inf", r"found inf\. Leave age out"), ("age=40..", r"found 40\.\.\. Leave age out"),
        ("age=40..50..60", r"found 40\.\.50\.\.60\. Leave age out"),
        ("sex=f", r"expected one of F, M, found f\. Leave"),
        ("sex=F..M", r"expected one of F, M, found F\.\.M\. Leave sex out")])
    def test_what_a_prior_cannot_take_is_told_with_what_it_can(self, text, said):
        with pytest.raises(UserError, match=said):
            self.numbers(text)

    def test_a_prior_that_was_told_nothing_says_so(self):
        with pytest.raises(UserError, match=r"^--condition age=70: .* trained with, nothing, found age\. Correct it"):
            self.numbers("age=70", columns=())

    def test_a_column_that_is_given_twice_is_refused(self):
        with pytest.raises(UserError, match=r"^--condition age=80: expected each column once, found age twice\. Leave"):
            self.numbers("age=70", "sex=F", "age=80")


@pytest.fixture(params=["top", "bottom"])
def told(request) -> PixelCNN:
    """A prior that is told age and sex."""
    return prior_of(request.param, (AGE, SEX))


def prior_of(level: str, columns: tuple[Column, ...]) -> PixelCNN:
    """A prior in float64 with weights as they were drawn, but for what is known: that shows more."""
    torch.manual_seed(0)
    options = TrainPrior(savename="x", epochs=1, batch=1, level=level, vqvae="x", channels=8, heads=2, layers=3,
                            attention_every=2)
    top = (torch.randn(CODES, 5), (2, 3)) if level == "bottom" else (None, None)
    prior = PixelCNN(options, torch.randn(CODES, 5), (4, 6), *top, columns).double().eval()
    if prior.known is not None:
        prior.known.out.weight.data *= 10
    return prior


def maps_for(prior: PixelCNN, batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    top = None if prior.conditioner is None else torch.randint(CODES, (batch, 2, 3), generator=generator)
    return torch.randint(CODES, (batch, 4, 6), generator=generator), top


class TestPrior:
    def logits(self, prior: PixelCNN, *rows: list[float] | None) -> torch.Tensor:
        """Logits of the same map, told one thing after the other."""
        codes, top = maps_for(prior, 1)
        with torch.no_grad():
            return torch.cat([prior(codes, top, None if row is None else torch.tensor([row])) for row in rows])

    def test_an_unknown_value_is_neither_0_nor_the_mean_nor_any_category(self, told):
        """0 is the mean age (60 years)."""
        made = self.logits(told, [NAN, NAN], [0, NAN], [NAN, 0], [NAN, 1], [-6, NAN])
        distances = (made[:, None] - made[None]).abs().amax((2, 3, 4))
        assert (distances[~torch.eye(5, dtype=bool)] > 1e-3).all()

    def test_nothing_known_is_the_same_as_every_value_unknown(self, told):
        made = self.logits(told, None, [NAN, NAN])
        assert torch.equal(made[0], made[1])

    def test_an_image_is_told_its_own_values_whatever_its_neighbours_in_the_batch_are(self, told):
        rows = torch.tensor([[0.5, NAN], [NAN, 1.0], [NAN, NAN], [-1.0, 0.0]])
        codes, top = maps_for(told, 4)
        with torch.no_grad():
            together = told(codes, top, rows)
            alone = torch.cat([told(codes[i:i + 1], top if top is None else top[i:i + 1], rows[i:i + 1])
                               for i in range(4)])
        torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)

    def test_an_unknown_column_leaves_the_others_as_they_are(self, told):
        """What age adds to the features is the same whether sex is known or not (before the non-linearity)."""
        seen = []
        told.known.out = torch.nn.Identity()
        for sex in (NAN, 0, 1):
            entered = told.known(torch.tensor([[0.5, sex], [NAN, sex]]))
            seen.append(torch.where(entered > 0, entered, entered.log1p()))  # the inverse of elu
        for other in seen[1:]:
            torch.testing.assert_close(other[0] - other[1], seen[0][0] - seen[0][1])

    def test_gradients_are_finite_with_and_without_unknown_values(self, told):
        """The derivative of what is not chosen, where a value is NaN, must not get into the weights."""
        codes, top = maps_for(told, 2)
        told(codes, top, torch.tensor([[NAN, NAN], [0.5, 1.0]])).square().mean().backward()
        for name, parameter in told.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        age, sex = told.known.tables
        assert age.weight.grad.abs().sum() > 0
        assert sex.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, True]  # F is nowhere in it

    def test_position_by_position_equals_the_whole_map_whatever_is_known(self, told):
        known = torch.tensor([[0.5, 1.0], [NAN, 0.0], [-2.0, NAN], [NAN, NAN]])
        codes, top = maps_for(told, 4)
        for rows in (known, None):
            with torch.no_grad():
                whole, state = told(codes, top, rows), PixelCNNCursor(told, 4, top, rows)
                for row in range(4):
                    for column in range(6):
                        torch.testing.assert_close(state.step(row, column), whole[:, :, row, column], atol=1e-12,
                                                   rtol=0)
                        state.tell(column, codes[:, row, column])


class TestGuidance:
    KNOWN = torch.tensor([[1.5, 0.0], [NAN, 1.0], [NAN, NAN]])

    def draw(self, prior: PixelCNN, guidance: float, known: torch.Tensor | None, **more) -> torch.Tensor:
        return draw_codes(prior, [0, 1, 2], 7, "any", SamplingRule(guidance=guidance), maps_for(prior, 3)[1],
                          known=known, **more)

    @pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.0])
    def test_the_fast_way_draws_the_codes_of_the_slow_way(self, told, guidance):
        fast = self.draw(told, guidance, self.KNOWN)
        assert torch.equal(fast, self.draw(told, guidance, self.KNOWN, cached=False))
        assert len(fast.unique()) > 1

    def test_guidance_0_draws_as_if_nothing_were_known(self, told):
        unknown = self.draw(told, 1.0, None)
        assert torch.equal(self.draw(told, 0.0, self.KNOWN), unknown)
        plain = self.draw(told, 1.0, self.KNOWN)
        assert not torch.equal(plain[:2], unknown[:2])
        assert torch.equal(plain[2], unknown[2])

    @pytest.mark.parametrize("guidance", [1.0, 2.0, 0.5])
    def test_each_code_is_drawn_from_unknown_plus_guidance_times_the_difference(self, told, guidance):
        """Ho and Salimans 2022, equation 6, with their w = guidance - 1; 1 is what was learned."""
        drawn = self.draw(told, guidance, self.KNOWN)
        with torch.no_grad():
            top = maps_for(told, 3)[1]
            of_known, of_unknown = told(drawn, top, self.KNOWN), told(drawn, top)
        wanted = of_known + (guidance - 1) * (of_known - of_unknown)
        numbers = torch.stack([random_numbers.uniform(7, "any codes", number, np.arange(24)) for number in range(3)])
        for position, (row, column) in enumerate(np.ndindex(4, 6)):
            assert torch.equal(choose(wanted[:, :, row, column], numbers[:, position], SamplingRule()),
                               drawn[:, row, column]), (row, column)


class TestBothLevels:
    def test_each_level_is_told_its_own_columns_in_its_own_order_and_a_drawn_value_is_the_same(self):
        priors = {"top": prior_of("top", (SEX, AGE)), "bottom": prior_of("bottom", (AGE,))}
        found = condition_values(priors, ["age=50..70", "sex=M"], [3, 1, 4], seed=5)
        assert found["top"][:, 0].tolist() == [1, 1, 1]
        assert torch.equal(found["top"][:, 1:], found["bottom"])
        assert (found["bottom"].abs() <= 1).all()
        assert len(found["bottom"].unique()) == 3
        alone = condition_values(priors, ["age=50..70"], [4], seed=5)
        assert torch.equal(alone["bottom"], found["bottom"][2:])
        assert alone["top"].isnan().tolist() == [[True, False]]

    def test_a_name_that_begins_like_another_levels_is_not_taken_for_it(self):
        """The top is told "x" and the bottom "x=y"."""
        priors = {"top": prior_of("top", (Column("x", ("y=1", "z")),)),
                  "bottom": prior_of("bottom", (Column("x=y", ("1", "2")),))}
        found = condition_values(priors, ["x=y=2", "x=z"], [0], seed=5)
        assert (found["top"].item(), found["bottom"].item()) == (1, 1)

    def test_a_level_that_is_told_nothing_may_stand_beside_one_that_is(self):
        priors = {"top": prior_of("top", ()), "bottom": prior_of("bottom", (SEX,))}
        found = condition_values(priors, ["sex=M"], [0, 1], seed=5)
        assert (found["top"].shape, found["bottom"].tolist()) == ((2, 0), [[1], [1]])
        with pytest.raises(UserError, match=r"--condition age=5: .* with, sex \(F, M\), found age\. Correct it"):
            condition_values(priors, ["age=5"], [0, 1], seed=5)

    def test_a_value_is_in_each_priors_own_unit_where_they_have_learned_from_other_images(self):
        """60 years are the mean of the ages that the top has learned from, and one spread above the bottom's."""
        priors = {"top": prior_of("top", (AGE,)), "bottom": prior_of("bottom", (replace(AGE, mean=50.0),))}
        found = condition_values(priors, ["age=60"], [0], seed=5)
        assert (found["top"].item(), found["bottom"].item()) == (0, 1)


@pytest.mark.parametrize("value", ["7000", "-3", "50..7000"])
def test_a_value_far_outside_the_training_images_is_refused_and_tells_their_range(value):
    """Ages of 40 to 80 in training: up to 40 years outside of them is taken, 7000 is another unit."""
    with pytest.raises(UserError, match=rf"age={value}: .*40 to 80 in training, found {value}\. Look at its unit"):
        conditions.from_texts((AGE,), [f"age={value}"], torch.zeros(1, 1))
    assert conditions.from_texts((AGE,), ["age=119"], torch.zeros(1, 1)).item() == pytest.approx(5.9)
