"""The probe tells what differs, does not tell what is alike, and compares within folds only."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from vqvae2.common.statistics import auroc, by_group
from vqvae2.evaluation import probe
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.metrics import context_model
from vqvae2.models import classifier
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.training.settings import TrainVqvae

SIZE = 32


def heads(seed, count, softness=0.0):
    """uint8 `[count, 1, 32, 32]`: discs of noise, softened a little or not."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, SIZE)], indexing="ij")
    inside = x**2 + y**2 < rng.uniform(0.5, 0.8, (count, 1, 1))
    texture = ndimage.gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 1, 1))
    images = np.where(inside, 130 + 120 * texture, 0)
    images = ndimage.gaussian_filter(images, (0, softness, softness))
    return images.clip(0, 255).round().astype(np.uint8)[:, None]


def real_slices(pixels, subjects):
    files = (ImageFile(f"{i}.png", "test", f"s{i * subjects // len(pixels)}", "") for i in range(len(pixels)))
    return ImageSet(tuple(files), pixels)


@pytest.fixture(scope="module")
def reals():
    return real_slices(heads(0, 96), subjects=8)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 40)
    monkeypatch.setattr(probe, "FOLDS", 2)


def test_soft_images_are_told_from_sharp_ones_and_equal_ones_are_not(reals, few_steps):
    soft = probe.judge(torch.from_numpy(heads(1, 64, softness=0.8)), reals, seed=0)
    alike = probe.judge(torch.from_numpy(heads(2, 64)), reals, seed=0)
    assert soft["auroc"] > 0.95
    assert soft["ci_low"] > 0.85
    assert alike["auroc"] < 0.65
    assert [soft[name] for name in ("folds", "fakes", "reals", "subjects")] == [2, 64, 96, 8]


def test_fakes_that_differ_only_in_their_large_form_are_told_too(reals, few_steps):
    """The same texture and edge, but a brain with a hole of 12 pixels."""
    holed = heads(3, 64)
    holed[:, :, 10:22, 10:22] = 0
    assert probe.judge(torch.from_numpy(holed), reals, seed=0)["auroc"] > 0.95


def test_a_background_that_is_not_quite_black_and_white_that_is_not_quite_white_are_no_cue():
    """A decoder's last steps of 8 bit, below 8 and above 247, do not reach the classifier; the next step does."""
    images = torch.tensor([[[[0, 3, 8, 9, 100, 247, 251, 255]]]], dtype=torch.uint8)
    shown = classifier.prepared(images)[0, 0, 0]
    assert shown[[0, 1, 2]].tolist() == [-1, -1, -1]
    assert shown[[5, 6, 7]].tolist() == [1, 1, 1]
    assert -1 < shown[3] < shown[4] < 1


def test_the_auroc_is_the_mean_of_mann_whitney_within_folds_whatever_the_scales_of_the_folds():
    rng = np.random.default_rng(0)
    fake_fold, real_fold = np.arange(40) % 2, np.arange(60) // 15 % 2
    fakes, reals = rng.normal(0.7, 1, 40), rng.normal(0, 1, 60)
    fakes[:6], reals[:8] = 0.5, 0.5  # ties
    expected = [stats.mannwhitneyu(fakes[fake_fold == fold], reals[real_fold == fold]).statistic / (20 * 30)
                for fold in (0, 1)]
    group, subject = np.arange(40), np.arange(60) // 15
    def of(fakes, reals):
        return auroc(by_group(fakes, group, 40), by_group(reals, subject, 4), seed=0,
                     comparable=fake_fold[:, None] == np.arange(4) % 2)

    found = of(fakes, reals)
    assert found["auroc"] == pytest.approx(np.mean(expected))
    assert found["ci_low"] < found["auroc"] < found["ci_high"]
    offset = of(fakes + 100 * fake_fold, reals + 100 * real_fold)
    assert offset == pytest.approx(found)


def test_the_interval_comes_from_subjects_and_fakes_drawn_anew():
    """The slow way: draw subjects and fakes, put their scores together, take the AUROC."""
    rng = np.random.default_rng(1)
    fakes, reals, subject = rng.normal(0.5, 1, 30), rng.normal(0, 1, 50) + np.repeat(rng.normal(0, 1, 5), 10), \
        np.repeat(np.arange(5), 10)
    found = auroc(by_group(fakes, np.arange(30), 30), by_group(reals, subject, 5), seed=0)
    slow = []
    for _ in range(500):
        people = rng.integers(5, size=5)
        drawn = np.concatenate([reals[subject == person] for person in people])
        slow.append(stats.mannwhitneyu(rng.choice(fakes, 30), drawn).statistic / 1500)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(np.quantile(slow, (0.025, 0.975)), abs=0.04)


def test_no_classifier_is_judged_on_what_it_was_trained_on(reals, monkeypatch):
    """Every image is told apart by its brightness; the classifiers' training images and judged ones do not meet."""
    pixels = np.broadcast_to(np.arange(10, 106, dtype=np.uint8)[:, None, None, None], reals.pixels.shape)
    fakes = torch.arange(110, 130, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 1, SIZE, SIZE)
    trained_on, judged = [], []

    class Spy(torch.nn.Module):
        def forward(self, images):
            judged.append({round(float(value), 4) for value in images[:, 0, 0, 0]})
            return images.mean((1, 2, 3))

        def parameters(self):
            return iter([torch.zeros(1)])

    def train(sides, *_):
        trained_on.append({round(float(value), 4) for side in sides for value in classifier.prepared(side)[:, 0, 0, 0]})
        judged.append(None)
        return Spy()

    monkeypatch.setattr(classifier, "trained", train)
    report = probe.judge(fakes, dataclasses.replace(reals, pixels=pixels), seed=0)
    assert report["auroc"] == 1
    assert len(trained_on) == 4
    groups = []
    for batch in judged:
        if batch is None:
            groups.append(set())
        else:
            groups[-1] |= batch
    assert [len(own & seen) for own, seen in zip(groups, trained_on)] == [0] * 4
    assert sum(map(len, groups)) == len(set().union(*groups)) == 116
    by_subject = [{value for value in own if value < classifier.prepared(fakes[:1]).max()} for own in groups]
    assert [len(own) for own in by_subject] == [24] * 4  # two whole subjects of 12 slices each


def test_fakes_are_dealt_to_the_folds_in_turn_and_scores_that_are_equal_count_one_half(reals, monkeypatch):
    sizes = []
    monkeypatch.setattr(classifier, "trained", lambda sides, *_: sizes.append([len(side) for side in sides]))
    monkeypatch.setattr(classifier, "logits", lambda model, images: torch.zeros(len(images)))
    report = probe.judge(torch.from_numpy(heads(1, 9)), reals, 0)
    assert report["folds"] == 4
    assert sizes == [[6, 72], [7, 72], [7, 72], [7, 72]]  # without 3, 2, 2 and 2 fakes, and 2 of 8 subjects each
    assert report["auroc"] == 0.5


def test_fakes_of_the_real_slices_are_judged_by_who_has_not_seen_their_person(reals, monkeypatch):
    """The score is the number of the subject's slices or fakes that the classifier was trained on."""
    fakes, trained = torch.from_numpy(reals.pixels.copy()), []
    fakes[:, :, 0, 0] = torch.arange(96)[:, None]
    pixels = reals.pixels.copy()
    pixels[:, :, 0, 0] = np.arange(96)[:, None]
    seen = []
    monkeypatch.setattr(classifier, "trained", lambda sides, *_: trained.append(
        {int(value) // 12 for side in sides for value in side[:, 0, 0, 0]}))

    def logits(model, images):
        seen.append({int(value) // 12 for value in images[:, 0, 0, 0]} & trained[-1])
        return images[:, 0, 0, 0].float() % 12
    monkeypatch.setattr(classifier, "logits", logits)
    report = probe.judge(fakes, dataclasses.replace(reals, pixels=pixels), seed=0, same_subjects=True)
    assert seen == [set()] * 8
    assert (report["folds"], report["fakes"], report["subjects"], report["auroc"]) == (4, 96, 8, 0.5)


class TestStopping:
    """8 subjects in 4 folds, so that two folds have judged the 3 subjects that it takes to stop."""

    FAKES = torch.full((40, 1, SIZE, SIZE), 255, dtype=torch.uint8)

    @pytest.fixture
    def scored(self, monkeypatch):
        """A function that sets how high images score: (images, number of the fold) -> scores."""
        def set_scores(of):
            folds = []
            monkeypatch.setattr(classifier, "trained", lambda *_: folds.append(len(folds)))
            monkeypatch.setattr(classifier, "logits", lambda _, images: of(images[:, 0, 0, 0].float(), folds[-1] % 4))
            return folds
        return set_scores

    def test_what_no_draw_leaves_in_doubt_is_not_judged_to_the_end(self, reals, scored):
        folds = scored(lambda brightness, _: brightness)
        report = probe.judge(self.FAKES, reals, seed=0, whole=False)
        assert folds == [0, 1]
        assert (report["auroc"], report["ci_low"], report["ci_high"]) == (1, 1, 1)
        assert (report["folds"], report["folds_judged"], report["fakes"], report["subjects"]) == (4, 2, 40, 8)

    def test_without_the_rule_all_folds_are_judged(self, reals, scored):
        folds = scored(lambda brightness, _: brightness)
        assert probe.judge(self.FAKES, reals, seed=0)["folds_judged"] == 4
        assert folds == [0, 1, 2, 3]

    def test_where_a_limit_lies_among_the_draws_all_folds_are_judged_and_the_figures_are_the_same(self, reals, scored):
        scored(lambda brightness, fold: 0 * brightness + torch.rand(
            len(brightness), generator=torch.Generator().manual_seed(fold + len(brightness))))
        report = probe.judge(self.FAKES, reals, seed=0, whole=False)
        assert report["folds_judged"] == 4
        assert report == probe.judge(self.FAKES, reals, seed=0, whole=True)

    def test_the_figure_is_that_of_the_judged_folds(self, reals, scored):
        """In the folds that are left out every pair would be in the wrong order."""
        scored(lambda brightness, fold: brightness if fold < 2 else -brightness)
        assert probe.judge(self.FAKES, reals, seed=0, whole=False)["auroc"] == 1
        assert probe.judge(self.FAKES, reals, seed=0)["auroc"] == 0.5

    def test_a_clear_case_of_few_people_is_judged_to_the_end(self, scored):
        """One subject in each of two folds: that both are alike says little of others."""
        scored(lambda brightness, _: brightness)
        assert probe.judge(self.FAKES, real_slices(heads(0, 16), 2), seed=0, whole=False)["folds_judged"] == 2

    @pytest.mark.parametrize(("low", "high", "is_clear"), [(0.61, 0.74, True), (0.2, 0.59, True), (0.91, 1.0, True),
                                                           (0.7, 0.8, False), (0.9, 1.0, False), (0.5, 0.6, False)])
    def test_an_interval_is_clear_if_it_holds_no_limit_of_the_verdict(self, low, high, is_clear):
        assert probe._is_clear({"ci_low": low, "ci_high": high}) is is_clear

    def test_the_bar_is_told_of_the_steps_that_are_left_out(self, reals, scored, monkeypatch):
        monkeypatch.setattr(probe, "STEPS", 3)
        scored(lambda brightness, _: brightness)
        told = []
        probe.judge(self.FAKES, reals, seed=0, whole=False, tell=lambda: told.append(1))
        assert len(told) == 2 * 3  # the stand-in for the training of the two judged folds tells nothing


def test_the_same_seed_gives_the_same_number_and_leaves_torchs_own_generator_alone(reals, monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 3)
    fakes = torch.from_numpy(heads(1, 12))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = probe.judge(fakes, reals, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert probe.judge(fakes, reals, seed=1) == first
    assert probe.judge(fakes, reals, seed=2) != first


@pytest.mark.parametrize(("fakes", "subjects"), [(12, 1), (1, 8)])
def test_one_subject_or_one_fake_has_no_auroc(fakes, subjects):
    report = probe.judge(torch.from_numpy(heads(1, fakes)), real_slices(heads(0, 16), subjects), seed=0)
    assert (report["auroc"], report["ci_low"], report["ci_high"]) == (None, None, None)


def test_large_images_are_judged_at_full_resolution_by_windows(monkeypatch, few_steps):
    """Images of 32 pixels where windows have 16: still told by their softness."""
    monkeypatch.setattr(classifier, "CROP", 16)
    report = probe.judge(torch.from_numpy(heads(1, 64, softness=0.8)), real_slices(heads(0, 96), 8), seed=0)
    assert report["auroc"] > 0.9


def test_the_probe_counts_only_if_it_tells_the_context_models_fakes(reals, monkeypatch):
    monkeypatch.setattr(probe, "judge", lambda fakes, *_, **__: {
        "auroc": fakes[0, 0, 0, 0].item() / 100, "ci_low": 0.1, "ci_high": 0.9, "folds": 4, "folds_judged": 4})
    samples, weak, good = (torch.full((2, 1, SIZE, SIZE), value, dtype=torch.uint8) for value in (60, 89, 90))
    made = torch.from_numpy(reals.pixels)
    report = probe.judge_all(samples, good, made, reals, seed=0)
    assert report["counts"] is True
    assert probe.ProbeJudge().table(report, {})[0] == ("samples, real slices", "0.600 (0.100 to 0.900)")
    report["samples"] |= {"folds": 4, "folds_judged": 2}
    assert probe.ProbeJudge().table(report, {})[0][1] == "0.600 (0.100 to 0.900), clear after 2 of 4 folds"
    assert probe.judge_all(samples, weak, made, reals, seed=0)["counts"] is False
    without = probe.judge_all(samples, None, made, reals, seed=0)
    assert (without["counts"], without["context_model"]) == (False, None)
    assert [row[1] for row in probe.ProbeJudge().table(without, {})][2] == (
        "– (no training slices to compare with)")


def test_what_the_decoder_does_to_every_image_is_set_apart(reals, few_steps):
    """Samples as soft as the reconstructions: told from real slices, not from reconstructions."""
    samples, soft = (torch.from_numpy(heads(seed, 48, softness=0.8)) for seed in (4, 5))
    made = torch.from_numpy(heads(6, 96, softness=0.8))
    report = probe.judge_all(samples, soft, made, reals, seed=0)
    assert report["samples"]["auroc"] > 0.95
    assert abs(report["samples_against_reconstructions"]["auroc"] - 0.5) < 0.2
    # It finds these fakes among real images, by their softness, and not among images that are as soft.
    assert report["context_model"]["auroc"] > 0.95
    assert abs(report["context_model_against_reconstructions"]["auroc"] - 0.5) < 0.2
    assert report["counts"] is False
    assert report["reconstructions"]["auroc"] > 0.95
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_fakes_of_the_context_model_are_decoded_from_codes_that_it_draws():
    settings = TrainVqvae(savename="a", epochs=1, batch=1, dataset="oasis", codebook_size=4, embedding_dim=4,
                             channels=8, residual_channels=4)
    model = Vqvae(settings).eval()
    train = CodeMaps(["a"], {"top": torch.arange(16).view(1, 4, 4) % 4, "bottom": torch.arange(64).view(1, 8, 8) % 4})
    fakes = probe.context_model_fakes(model, train, count=5, seed=3, batch=2)
    assert (fakes.dtype, tuple(fakes.shape)) == (torch.uint8, (5, 1, 32, 32))
    maps = {level: context_model.draw(codes, 4, 5, 3, level) for level, codes in train.levels.items()}
    with torch.no_grad():
        expected = model.decode({level: codes[3:] for level, codes in maps.items()}) * 255
    assert (fakes[3:] - expected).abs().max() <= 0.51
