"""Priors of a known distribution reach its entropy and draw its frequencies: nothing is lost, and nothing leaks.

The distribution is a Markov field (fields.py) whose entropy is exact. A prior cannot have fewer bits per code than that
unless it sees what it has to predict, and has more if it misses a neighbour, such as one in a blind spot.
"""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fields import Field, order_that_hides
from scipy.stats import chisquare

from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.pixel_cnn import PixelCNN, load_prior
from vqvae2.sampling.sampler import SamplingRule, draw_codes
from vqvae2.training.priors import PriorTrainer
from vqvae2.training.settings import TrainPrior

CODES = 3
IMAGES = {"train": 4096, "validate": 256, "test": 2048}
SEED_OF_SPLIT = {"train": 0, "validate": 1, "test": 2, "samples": 3}
DRAWN = 512
HASH = "of no VQ-VAE"


class FieldTrainer(PriorTrainer):
    """Trains on maps that a field has drawn in place of the codes of a VQ-VAE."""

    def __init__(self, settings: TrainPrior, field: Field):
        super().__init__(settings)
        self.field = field

    def start(self):
        books = {level: SimpleNamespace(codebook=torch.randn(CODES, 8)) for level in ("top", "bottom")}
        self.vqvae = SimpleNamespace(hash=HASH, model=SimpleNamespace(
            quantizers=books, settings=SimpleNamespace(codebook_size=CODES)))
        self.data, self.columns, self.copies = {"training_images": [], "training_subjects": []}, (), []
        self.known = dict.fromkeys(("train", "validate"), torch.zeros(0, 0))
        self.maps = {split: maps_of(self.field, self.settings.level, split) for split in ("train", "validate")}
        self._report_references()


@dataclass(frozen=True)
class Trained:
    """A prior as its run left it, and what it has learned."""

    field: Field
    level: str
    prior: PixelCNN
    references: dict[str, float]

    def draw(self, rule: SamplingRule) -> np.ndarray:
        """Return DRAWN maps."""
        top = maps_of(self.field, self.level, "samples", DRAWN).levels["top"] if self.level == "bottom" else None
        return draw_codes(self.prior, list(range(DRAWN)), 7, self.level, rule, top).numpy()


def maps_of(field: Field, level: str, split: str, count: int | None = None) -> CodeMaps:
    maps, top = map(torch.from_numpy, field.draw(count or IMAGES[split], SEED_OF_SPLIT[split]))
    return CodeMaps([str(i) for i in range(len(maps))], {"top": top, "bottom": maps} if level == "bottom" else
                    {"top": maps})


@pytest.fixture(scope="module", params=["top snail", "top gated", "bottom snail"])
def trained(request, tmp_path_factory) -> Trained:
    """The best weights of a real run of seconds; longer for the bottom, whose field depends on the top codes too."""
    level, network = request.param.split()
    settings = TrainPrior(
        savename="field", epochs=3 if level == "bottom" else 2, batch=64, level=level, vqvae="none", network=network,
        channels=24, layers=3, attention_every=2, heads=2, dropout=0, ema=0.98, learning_rate=0.01, warmup_steps=20,
        precision="fp32", threads=1, pictures_every=0, results=tmp_path_factory.mktemp("field"))
    trainer = FieldTrainer(settings, order_that_hides(CODES, CODES if level == "bottom" else 1))
    trainer.run()
    prior = load_prior(str(trainer.folder), level, HASH, torch.device("cpu"))
    assert bool(prior.attentions) == (request.param == "top snail")
    return Trained(trainer.field, level, prior, trainer.references)


@pytest.mark.parametrize("tops", [1, 2])
def test_the_entropy_and_the_frequencies_are_those_of_all_small_maps_one_by_one(tops):
    """2 x 4 maps of 2 codes: 256 of them, for each of the top maps; a table without any regularity."""
    table = np.random.default_rng(tops).dirichlet(np.ones(2), (3, 3, 3, tops))
    field = Field(table, (2, 4))
    maps = np.array(list(itertools.product(range(2), repeat=8))).reshape(-1, 2, 4)
    bits, pairs = 0.0, np.zeros((2, 2, 2))
    for top in itertools.product(range(tops), repeat=2):
        of_maps = field.bits(maps, np.broadcast_to(np.reshape(top, (1, 1, 2)), (len(maps), 1, 2))).sum((1, 2))
        probability = 2**-of_maps / tops**2
        assert probability.sum() == pytest.approx(1 / tops**2)
        bits += (probability * of_maps).sum()
        np.add.at(pairs, (0, maps[:, 1, 1], maps[:, 1, 2]), probability)
        np.add.at(pairs, (1, maps[:, 0, 2], maps[:, 1, 2]), probability)
    assert field.entropy_bits == pytest.approx(bits / 8, abs=1e-12)
    assert field.pairs(1, 2)["left"] == pytest.approx(pairs[0])
    assert field.pairs(1, 2)["above"] == pytest.approx(pairs[1])


@pytest.mark.parametrize("tops", [1, CODES])
def test_what_the_field_draws_costs_its_entropy(tops):
    field = order_that_hides(CODES, tops)
    bits = field.bits(*field.draw(4000, 5)).mean((1, 2))
    assert abs(bits.mean() - field.entropy_bits) < 4 * bits.std() / 4000**0.5


def test_a_prior_comes_within_2_percent_of_the_entropy_and_never_below_it(trained):
    """Below it comes only what sees more than its past. The test maps' own luck is taken out by comparing with the
    true probability of the very same maps; 0.3 to 0.7 % were measured."""
    maps = maps_of(trained.field, trained.level, "test").levels
    own = maps[trained.level]
    with torch.no_grad():
        logits = trained.prior(own, maps["top"] if trained.level == "bottom" else None)
    bits = -logits.double().log_softmax(1).gather(1, own[:, None])[:, 0].numpy() / np.log(2)
    top = maps["top"] if trained.level == "bottom" else torch.zeros(len(own), 4, 4, dtype=torch.long)
    excess = (bits - trained.field.bits(own.numpy(), top.numpy())).mean((1, 2))
    error, entropy = excess.std() / len(excess)**0.5, trained.field.entropy_bits
    assert bits.mean() < 1.02 * entropy
    assert -4 * error < excess.mean() < 0.02 * entropy
    assert error < 0.002 * entropy


def test_models_that_count_miss_what_the_prior_has_learned(trained):
    """The field hides its order from them, so that 2 % of its entropy is not within their reach."""
    entropy = trained.field.entropy_bits
    assert trained.references["position_histogram"] == pytest.approx(trained.field.position_bits, rel=0.02)
    assert min(trained.references.values()) > 1.2 * entropy


def test_samples_have_the_exact_frequencies_of_pairs_and_those_of_a_wrong_temperature_do_not(trained):
    right, wrong = (trained.draw(SamplingRule(temperature=temperature)) for temperature in (1, 0.7))
    for neighbour in ("left", "above"):
        assert p_of_pairs(trained.field, right, neighbour) > 0.001, neighbour
        assert p_of_pairs(trained.field, wrong, neighbour) < 1e-6, neighbour


def p_of_pairs(field: Field, maps: np.ndarray, neighbour: str) -> float:
    """Chi-square test of (neighbour, code). Pairs of one map depend on each other, so that each map gives one,
    each from the next place; what is expected is the mean over these places."""
    places = [place for place in field.places if min(place) > 0]
    seen, expected = np.zeros((CODES, CODES)), np.zeros((CODES, CODES))
    for number, code_map in enumerate(maps):
        row, column = places[number % len(places)]
        seen[code_map[(row, column - 1) if neighbour == "left" else (row - 1, column)], code_map[row, column]] += 1
        expected += field.pairs(row, column)[neighbour]
    return chisquare(seen.ravel(), expected.ravel()).pvalue
