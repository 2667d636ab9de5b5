"""A planted value is read back where images hold it and not where they ignore it; shares have their distances."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import on_screen
from scipy import stats

from vqvae2.commands import evaluate
from vqvae2.evaluation import anatomy, verdict
from vqvae2.evaluation.anatomy import AnatomyJudge
from vqvae2.metrics import tissue
from vqvae2.models import classifier
from vqvae2.priors.conditions import fit

SIDE = 32


def discs(radii, seed=0):
    """Images with a noisy disc of each radius, uint8 `[n, 1, 32, 32]`."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    inside = np.hypot(x, y) < np.asarray(radii)[:, None, None]
    return torch.from_numpy(np.where(inside, 150 + 20 * rng.normal(size=inside.shape), 0).clip(0, 255).round().astype(
        np.uint8)[:, None])


def facts_of(values):
    return [{"size": f"{value}"} for value in values]


@pytest.fixture(scope="module")
def column():
    return fit(facts_of(np.linspace(4, 14, 50)), ["size"])[0]


class TestReading:
    def test_a_planted_value_is_read_back_and_images_that_ignore_it_have_an_r2_of_0_or_less(self, column, monkeypatch):
        monkeypatch.setattr(anatomy, "STEPS", 150)
        radii = [np.random.default_rng(seed).uniform(4, 14, 60) for seed in range(3)]
        pictures = {"holding": discs(radii[1], 1), "ignoring": discs(radii[2], 2)}
        read = anatomy.read_values(column, discs(radii[0]), facts_of(radii[0]), pictures, seed=0)
        holding, ignoring = (anatomy.agreement(read[name], radii[1], None, 0) for name in pictures)
        assert holding["r2"] > 0.9
        assert holding["mae"] < 0.8
        assert ignoring["r2"] < 0
        assert ignoring["mae"] > 2

    def test_images_of_which_nothing_is_known_are_not_learned_from(self, column, monkeypatch):
        seen = []
        monkeypatch.setattr(classifier, "trained_to_read",
                            lambda images, values, *_: seen.append((images, values)))
        monkeypatch.setattr(classifier, "readings", lambda model, images: torch.tensor([0.0, 1.0]))
        images = discs([4, 9, 14])
        read = anatomy.read_values(column, images, [{"size": "4"}, {"size": "n/a"}, {"size": "14"}],
                                   {"a": images[:2]}, seed=0)
        assert torch.equal(seen[0][0], images[[0, 2]])
        assert seen[0][1].tolist() == pytest.approx([(4 - 9) / column.spread, (14 - 9) / column.spread])
        assert read["a"].tolist() == pytest.approx([9, 9 + column.spread])

    def test_a_step_is_told_and_the_same_seed_reads_the_same(self, column, monkeypatch):
        monkeypatch.setattr(anatomy, "STEPS", 3)
        told, radii = [], np.linspace(4, 14, 8)
        first, second = (anatomy.read_values(column, discs(radii), facts_of(radii), {"a": discs([8])}, 1,
                                             tell=lambda: told.append(1)) for _ in range(2))
        assert len(told) == 6
        assert first["a"] == second["a"]


class TestAgreement:
    def test_it_is_mean_error_and_r2(self):
        told, read = np.array([1.0, 2.0, 3.0, math.nan]), np.array([1.5, 2.0, 2.0, 7.0])
        found = anatomy.agreement(read, told, None, seed=0)
        assert found["images"] == 3
        assert found["mae"] == pytest.approx(0.5)
        assert found["r2"] == pytest.approx(1 - (0.25 + 1) / 2)

    def test_the_interval_comes_from_subjects_drawn_anew(self):
        """The slow way: draw subjects, put their images together, take the figure."""
        rng = np.random.default_rng(0)
        told, subjects = rng.normal(size=40), np.repeat(np.arange(8), 5)
        read = told + 0.3 * (rng.normal(size=40) + np.repeat(rng.normal(size=8), 5))
        found = anatomy.agreement(read, told, [f"s{subject}" for subject in subjects], seed=0)
        slow = {"mae": [], "r2": []}
        for _ in range(1000):
            items = np.concatenate([np.flatnonzero(subjects == subject) for subject in rng.integers(8, size=8)])
            slow["mae"].append(np.abs(read - told)[items].mean())
            slow["r2"].append(1 - ((read - told)[items]**2).mean() / told[items].var())
        for name, values in slow.items():
            ends = found[f"{name}_ci_low"], found[f"{name}_ci_high"]
            assert ends == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.05), name

    @pytest.mark.parametrize(("told", "mae"), [([math.nan, math.nan], None), ([3.0, 3.0], 1.0), ([], None)])
    def test_what_is_not_known_or_has_no_spread_has_no_figure(self, told, mae):
        found = anatomy.agreement(np.full(len(told), 4.0), np.array(told), None, seed=0)
        assert (found["mae"], found["r2"], found["r2_ci_low"]) == (mae, None, None)

    def test_a_blind_guess_is_the_median_of_the_training_images(self, column):
        told = dict.fromkeys(anatomy.SETS, np.array([5.0, 9.0]))
        found = anatomy.read_back(column, told, told, ["a", "b"], facts_of([4, 6, 14]), seed=0)
        assert found["blind_mae"] == pytest.approx(2)
        assert found["real"]["mae"] == 0


def test_each_image_is_told_of_as_often_as_the_others():
    facts = facts_of(range(5))
    told = [int(row["size"]) for row in anatomy.told_alike(facts, 12, seed=0)]
    assert sorted(np.bincount(told).tolist()) == [2, 2, 2, 3, 3]
    assert sorted(told[:5]) == [0, 1, 2, 3, 4]
    assert told[:5] != [0, 1, 2, 3, 4]


class TestTissueFigures:
    def test_distances_are_those_of_scipy_and_real_ones_are_of_halves_of_the_people(self):
        rng = np.random.default_rng(0)
        of = {name: rng.dirichlet((2, 5, 5), size) for name, size in (("samples", 9), ("reconstructions", 12),
                                                                      ("real", 12))}
        subjects = ["a", "b"] * 6
        found = anatomy.tissue_figures(of, subjects, seed=0)
        assert list(found) == list(tissue.TISSUES)
        for number, name in enumerate(tissue.TISSUES):
            sets = {own: shares[:, number] for own, shares in of.items()}
            assert found[name]["samples"]["mean"] == pytest.approx(sets["samples"].mean())
            assert found[name]["samples"]["distance"] == pytest.approx(
                stats.wasserstein_distance(sets["samples"], sets["real"]))
            halves = stats.wasserstein_distance(sets["real"][::2], sets["real"][1::2])  # there is one way to halve two
            assert [found[name]["real"][key] for key in ("distance", "distance_ci_low", "distance_ci_high")] == (
                pytest.approx([halves] * 3))

    def test_an_image_without_a_brain_is_left_out_and_one_person_has_no_halves(self):
        shares = np.array([[0.2, 0.3, 0.5], [math.nan] * 3])
        found = anatomy.tissue_figures(dict.fromkeys(anatomy.SETS, shares), ["a", "a"], seed=0)
        assert found["fluid"]["samples"]["mean"] == pytest.approx(0.2)
        assert found["fluid"]["samples"]["distance"] == 0
        assert found["fluid"]["real"]["distance"] is None
        rows = AnatomyJudge().table({"told": {}, "tissue": found}, {})
        assert rows[1][3] == "– (needs slices of 2 unseen people or more)"


class TestVerdict:
    @pytest.fixture
    def figures(self):
        def read(value, low, high):
            return {"mae": 1.0, "r2": value, "r2_ci_low": low, "r2_ci_high": high}
        distance = {"mean": 0.3, "ci_low": 0.28, "ci_high": 0.32, "distance": 0.02, "distance_ci_low": None,
                    "distance_ci_high": None}
        sets = {"samples": distance, "reconstructions": distance, "real": distance | {"distance_ci_high": 0.03}}
        return {"told": {"age": {"samples": read(0.9, 0.8, 0.95), "reconstructions": read(0.92, 0.85, 0.96),
                                 "real": read(0.94, 0.9, 0.97)}},
                "tissue": {name: {own: dict(found) for own, found in sets.items()} for name in tissue.TISSUES}}

    def said(self, figures):
        return [(mark, about, text) for mark, about, text in verdict._anatomy({"anatomy": figures})]

    @pytest.mark.parametrize(("samples", "mark", "words"), [
        ((0.9, 0.8, 0.95), "good", "Samples hold the age that they are told (R²"),
        ((0.7, 0.6, 0.8), "fair", "less well than reconstructions do"),
        ((0.1, -0.2, 0.3), "bad", "Samples do not hold the age")])
    def test_what_samples_hold_is_compared_with_reconstructions(self, samples, mark, words, figures):
        figures["told"]["age"]["samples"] |= dict(zip(("r2", "r2_ci_low", "r2_ci_high"), samples))
        found = self.said(figures)[0]
        assert found[0] == mark
        assert words in found[2]

    def test_what_cannot_be_read_from_real_slices_says_nothing(self, figures):
        figures["told"]["age"]["real"] |= {"r2": -0.1, "r2_ci_low": -0.5}
        mark, _, text = self.said(figures)[0]
        assert (mark, "it cannot be read from real slices either" in text) == ("unknown", True)

    def test_shares_are_compared_with_halves_of_the_people(self, figures):
        assert self.said(figures)[1][:2] == ("good", "Tissue")
        figures["tissue"]["fluid"]["samples"] |= {"distance": 0.08, "mean": 0.1, "ci_low": 0.08, "ci_high": 0.12}
        mark, _, text = self.said(figures)[1]
        assert mark == "bad"
        assert text == ("Samples have other shares of tissue than real slices: fluid 10 % (reconstructions 30, real "
                        "30).")
        figures["tissue"]["fluid"]["reconstructions"] |= {"mean": 0.13, "ci_low": 0.11, "ci_high": 0.15}
        assert self.said(figures)[1][0] == "fair"

    def test_without_the_flag_nothing_is_said(self):
        assert self.said(None) == []


class TestEvaluate:
    @pytest.fixture
    def few_steps(self, monkeypatch):
        monkeypatch.setattr(anatomy, "STEPS", 5)

    def run(self, tiny_run, top, *more):
        evaluate.main(["--vqvae", str(tiny_run.vqvae), "--top", str(top), "--bottom", str(tiny_run.bottom), "--data",
                       str(tiny_run.data), "--samples", "8", "--out", "out", *more])

    def test_the_report_has_what_was_told_and_the_tissues(self, tiny_run, told_top, few_steps, apart, capsys):
        self.run(tiny_run, told_top, "--anatomy")
        found = json.loads((apart / "out" / "metrics.json").read_text())["anatomy"]
        assert (found["count"], list(found["told"])) == (8, ["position_mm"])
        assert [found["told"]["position_mm"][name]["images"] for name in anatomy.SETS] == [8, 9, 9]
        assert found["told"]["position_mm"]["blind_mae"] == pytest.approx(2 / 3)  # positions 0, 1, 2 of each person
        assert sum(found["tissue"][name]["real"]["mean"] for name in tissue.TISSUES) == pytest.approx(1)
        assert (apart / "out" / "anatomy.png").is_file()
        assert not (apart / "out" / "parts").exists()
        assert "anatomy, white matter, mean share of the brain: " in capsys.readouterr().out
        page = (apart / "out" / "index.html").read_text()
        assert "position_mm: error of what is read" in page
        assert "white matter: distance of the shares" in page

    def test_it_may_be_added_to_a_report_that_is_there_and_needs_nothing_told(self, tiny_run, apart, capsys):
        self.run(tiny_run, tiny_run.top)
        before = json.loads((apart / "out" / "metrics.json").read_text())
        assert before["anatomy"] is None
        self.run(tiny_run, tiny_run.top, "--anatomy")
        after = json.loads((apart / "out" / "metrics.json").read_text())
        assert (after["anatomy"]["told"], after["samples"]) == ({}, before["samples"])
        assert any("sections are there already" in line for line in on_screen(capsys.readouterr().out))

    @pytest.mark.parametrize(("more", "line"), [
        (["--samples", "7"], "--anatomy: expected --samples 8 or more beside it, found 7. Fewer say nothing about "
                             "all."),
        (["--sampled", "images"], "--anatomy: expected samples that are drawn here, found --sampled beside it. Leave "
                                  "one of them out: what samples in a folder were told is not known."),
        (["--split", "train"], "--anatomy: expected the split of unseen people, found --split train. Choose another "
                               "split.")])
    def test_samples_and_unseen_people_are_needed(self, more, line, tiny_run, apart, refusal):
        common = ["--vqvae", tiny_run.vqvae, "--data", tiny_run.data, "--out", "out", "--anatomy"]
        assert refusal(evaluate.main, *common, "--top", tiny_run.top, *more) == line
        assert refusal(evaluate.main, *common) == "--anatomy: expected --top beside it, found --anatomy alone. Give " \
                                                  "--top too."
        assert refusal(evaluate.main, *common, "--top", tiny_run.top).endswith("found none for bottom. Give --bottom.")
        assert not (apart / "out").exists()

    def test_a_column_that_is_constant_in_training_or_no_number_is_not_read(self):
        constant, number, category = fit([{"a": "1", "b": "1", "c": "F"}, {"a": "1", "b": "2", "c": "M"}],
                                         ["a", "b", "c"])
        priors = {"top": SimpleNamespace(columns=(constant, number, category)),
                  "bottom": SimpleNamespace(columns=(number,))}
        assert anatomy.numeric_columns(SimpleNamespace(priors=priors)) == [number]
