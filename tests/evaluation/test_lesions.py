"""A lesion changes what its mask says, nothing outside the brain; AUROC is the textbook's, its interval over people."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture_of
from scipy.stats import mannwhitneyu

from vqvae2.common import statistics
from vqvae2.evaluation import lesions, surprise
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.models import autoencoder
from vqvae2.runs.weights import TrainedModel
from vqvae2.sampling import sampler
from vqvae2.training.settings import TrainVqvae

CPU = torch.device("cpu")


class PlacedFile(ImageFile):
    """A picture whose name says where it is."""

    @property
    def facts(self):
        return dict(zip(("plane", "position_mm"), self.name.split("_")))


def head(subject=1, size=64):
    """An image `[1, size, size]` in 0…1 and its brain: an ellipse with folds and two dark ventricles."""
    image = picture_of(subject, 0, size)[None].astype(np.float32) / 255
    return image, image[0] > 0


def even_head(size=64):
    """A grey disc with one dark hole in the middle: an image `[1, size, size]` and its brain."""
    rows, columns = np.indices((size, size)) - (size - 1) / 2
    radius = np.hypot(rows, columns)
    brain = radius < 0.45 * size
    return np.where(radius < 0.1 * size, 0.05, 0.6 * brain).astype(np.float32)[None], brain


def scored(scores, masks, brain, subjects):
    """A `ScoredImages` of these scores; its images are black."""
    files = tuple(ImageFile(f"{number}.png", "test", subject, "") for number, subject in enumerate(subjects))
    pixels = np.zeros((len(files), 1, *masks.shape[1:]), np.uint8)
    return lesions.ScoredImages(torch.from_numpy(pixels), ImageSet(files, pixels), masks, brain, scores)


@pytest.mark.parametrize("kind", lesions.KINDS)
@pytest.mark.parametrize("number", range(4))
def test_a_lesion_stays_in_the_brain_and_its_mask_is_a_visible_change(kind, number):
    image, brain = head(number)
    made = lesions.add(kind, image, brain, seed=0, number=number)
    change = np.abs(made.image - image)[0]
    assert (made.image.dtype, made.mask.dtype) == (np.float32, bool)
    assert change[~brain].max() == 0
    assert change[made.mask].min() > 0.1
    assert lesions.SMALLEST_PIXELS <= made.mask.sum() < 0.3 * brain.sum()
    assert 0 <= made.image.min() <= made.image.max() <= 1


def test_a_bright_blob_is_brighter_a_dark_one_darker_and_the_rest_of_the_image_as_it_was():
    image, brain = even_head()
    for kind, sign in (("bright", 1), ("dark", -1)):
        made = lesions.add(kind, image, brain, seed=0, number=0)
        assert (sign * (made.image - image)[0][made.mask] > 0.1).all()
        assert ((made.image == image)[0] | made.mask | (np.abs(made.image - image)[0] <= 0.1)).all()
        assert (made.image == image).mean() > 0.9


def test_a_moved_ventricle_is_wider_and_has_no_new_intensities():
    image, brain = even_head()
    made = lesions.add("ventricle", image, brain, seed=0, number=0)
    before, after = ((picture[0] < 0.3) & brain for picture in (image, made.image))
    assert after.sum() > 1.1 * before.sum()
    assert image.min() <= made.image.min() <= made.image.max() <= image.max()


@pytest.mark.parametrize("draws", list(itertools.product((0, 1), (0, 0.3), (0, 1))))
def test_the_warp_folds_nothing_over_and_leaves_the_edge_of_the_brain_alone(draws):
    """At the largest shift and widening too, the determinant of its 2 x 2 Jacobian is positive everywhere."""
    image, brain = even_head(size=128)
    rows, columns = lesions.warp(lesions.find_ventricle(image, brain), brain, np.array(draws))
    (down_down, down_across), (across_down, across_across) = np.gradient(rows), np.gradient(columns)
    assert (down_down * across_across - down_across * across_down).min() > 0
    np.testing.assert_array_equal(np.stack([rows, columns])[:, ~brain], np.indices(brain.shape)[:, ~brain])


def test_equal_seeds_and_numbers_give_equal_lesions_and_others_other_ones():
    image, brain = head()
    first, again, other_number, other_seed = (
        lesions.add("bright", image, brain, seed, number) for seed, number in ((0, 3), (0, 3), (0, 4), (1, 3)))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.mask != other_number.mask).any()
    assert (first.mask != other_seed.mask).any()


def test_where_there_is_no_place_for_a_lesion_there_is_none():
    image, brain = even_head()
    filled = np.where(brain, 0.6, 0).astype(np.float32)[None]
    assert lesions.find_ventricle(filled, brain) is None
    assert lesions.add("ventricle", filled, brain, 0, 0) is None
    assert lesions.add("bright", np.where(brain, 0.95, 0).astype(np.float32)[None], brain, 0, 0) is None
    assert all(lesions.add(kind, image, np.zeros_like(brain), 0, 0) is None for kind in lesions.KINDS)


def test_the_ventricle_is_the_dark_space_in_the_middle_and_not_one_at_the_edge():
    image, brain = even_head()
    image[0, 8:14, 28:36] = 0
    found = lesions.find_ventricle(image, brain)
    assert found[32, 32]
    assert not found[:16].any()


def auroc_of(scores, masks, brain, subjects, **more):
    """AUROC of all pixels of the brain, those in the masks against the others, by subject."""
    inside, outside = ([np.concatenate([scores[i][brain[i] & (masks[i] == wanted)] for i, name in enumerate(subjects)
                                        if name == subject]) for subject in range(max(subjects) + 1)]
                       for wanted in (True, False))
    return statistics.auroc(inside, outside, **{"seed": 0} | more, same_subjects=True)


def test_auroc_is_the_mann_whitney_statistic_with_ties_counting_half():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (5, 8, 8)).astype(np.float32)
    masks, brain = rng.random((5, 8, 8)) < 0.2, rng.random((5, 8, 8)) < 0.8
    inside, outside = scores[brain & masks], scores[brain & ~masks]
    expected = mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))
    assert auroc_of(scores, masks, brain, [0, 0, 1, 1, 2])["auroc"] == pytest.approx(expected)


def test_the_interval_is_that_of_drawing_whole_subjects():
    rng = np.random.default_rng(1)
    masks, brain = rng.random((6, 6, 6)) < 0.3, np.ones((6, 6, 6), bool)
    scores = (masks * rng.random((6, 1, 1)) + rng.random((6, 6, 6))).astype(np.float32)
    subjects = np.array(list("aabbcc"))
    slow = []
    for times in np.random.default_rng(7).multinomial(3, [1 / 3] * 3, size=40):
        drawn = [i for number, name in enumerate("abc") for i in np.flatnonzero(subjects == name).repeat(times[number])]
        inside, outside = scores[drawn][masks[drawn]], scores[drawn][~masks[drawn]]
        slow.append(mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))
    found = auroc_of(scores, masks, brain, [0, 0, 1, 1, 2, 2], seed=7, resamples=40)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))))
    assert found["ci_low"] < found["auroc"] < found["ci_high"]


def test_a_score_that_is_the_mask_finds_all_and_a_baseline_has_its_best_form():
    rng = np.random.default_rng(2)
    masks, brain = rng.random((4, 6, 6)) < 0.3, np.ones((4, 6, 6), bool)
    scores = {"likelihood": {"map": masks.astype(np.float32)},
              "intensity": {"dark": -1.0 * masks, "bright": masks + rng.random((4, 6, 6))}}
    found = scored(scores, masks, brain, list("aabb"))
    report = lesions.judge({"bright": found, "dark": found}, seed=0)
    assert set(report) == {"bright", "dark", "all"}
    assert (report["bright"]["images"], report["all"]["images"], report["all"]["subjects"]) == (4, 8, 2)
    assert report["all"]["share"] == pytest.approx(masks.mean())
    assert report["bright"]["likelihood"].items() >= {
        "auroc": 1, "ci_low": 1, "ci_high": 1, "form": "map", "forms": {"map": 1}, "auprc": 1, "auprc_form": "map",
        "auprc_ci_low": 1, "best_dice": 1, "dice_at_5_percent": 1, "detected": 1}.items()
    assert [found["images"] for found in report["bright"]["by"]["size"].values()] == [2, 1, 1]
    assert report["bright"]["by"]["contrast"]["low"]["likelihood"] == 1
    assert [row[:2] for row in lesions.detection_table(report["bright"])] == [
        ("likelihood", "1.000 (1.000 to 1.000)"), ("intensity", "1.000 (1.000 to 1.000)")]
    intensity = report["bright"]["intensity"]
    assert (intensity["form"], intensity["auroc"], intensity["forms"]) == ("bright", 1, {"dark": 0, "bright": 1})


def test_smoothing_keeps_what_is_even_and_takes_nothing_from_outside_the_brain():
    _, brain = even_head()
    maps = np.where(brain, 3.0, 1000.0)[None]
    found = surprise.smoothed(maps, brain[None], lesions.SMOOTHING)[0]
    np.testing.assert_allclose(found[brain], 3.0, rtol=1e-5)
    assert (found[~brain] == 0).all()


@pytest.fixture(scope="module")
def chain(tiny_run):
    """The tiny VQ-VAE, its priors, and six images of 32 x 32 pixels of three subjects."""
    vqvae, priors = sampler.load_models(str(tiny_run.vqvae), str(tiny_run.top), str(tiny_run.bottom), CPU)
    pixels = np.stack([picture_of(30 + number // 2, number % 2)[None] for number in range(6)])
    files = tuple(ImageFile(f"test/{number}.png", "test", f"s{number // 2}", "") for number in range(6))
    return vqvae, priors, ImageSet(files, pixels)


def test_surprise_is_read_both_ways(chain):
    """The mirror image's NLL is the NLL's mirror image."""
    vqvae, priors, images = chain
    mirrored = dataclasses.replace(images, pixels=np.ascontiguousarray(images.pixels[..., ::-1]))
    found, other = (surprise.both_ways(vqvae.model, priors, some, batch=4) for some in (images, mirrored))
    for level, shape in (("top", (6, 4, 4)), ("bottom", (6, 8, 8))):
        assert found[level].shape == shape
        np.testing.assert_allclose(other[level], found[level].flip(2), rtol=1e-4, atol=1e-4)


def test_each_score_sees_the_image_with_its_lesion_and_is_high_where_a_threshold_would_be(chain):
    found = lesions.score(*chain, chain[2], "dark", batch=4, seed=0)
    assert {name: len(forms) for name, forms in found.scores.items()} == {
        "likelihood": 1, "intensity": 6, "reconstruction_error": 2, "atlas": 3, "atlas_signed": 6,
        "restoration": 1, "restoration_times_likelihood": 1}
    assert all(maps.shape == found.masks.shape for forms in found.scores.values() for maps in forms.values())
    grey = found.images.pixels[:, 0] / 255
    np.testing.assert_allclose(found.scores["intensity"]["dark"], -grey, atol=1e-6)
    assert (np.abs(grey - found.healthy[:, 0].numpy() / 255)[found.masks] > 0.09).all()
    assert min(lesions.picture({"dark": found}, each=2).size) > 100


def test_images_without_a_ventricle_are_left_out_and_if_all_are_there_is_nothing_to_judge():
    settings = TrainVqvae(savename="one", epochs=1, batch=8, levels=1, channels=8, embedding_dim=8,
                             residual_channels=4, codebook_size=16)
    flat = ImageSet((ImageFile("a.png", "test", "a", ""),), np.full((1, 1, 32, 32), 200, np.uint8))
    model = TrainedModel(autoencoder.Vqvae(settings).eval(), {}, "", Path())
    assert lesions.score(model, {}, flat, flat, "ventricle", batch=4, seed=0) is None


def test_the_atlas_is_mean_and_spread_of_training_images_of_the_same_plane_and_place():
    """Twenty training images at 0 mm, of 0.2 and 0.4 by turns, and others at 50 mm or of another plane."""
    def files(*places):
        return tuple(PlacedFile(f"{plane}_{position}", "", "", "") for plane, position in places)

    train = ImageSet(files(*[("axial", "0")] * 20, *[("axial", "50")] * 20, *[("coronal", "0")] * 20),
                     np.repeat(np.array([51, 102] * 10 + [255] * 20 + [0] * 20, np.uint8), 4).reshape(60, 1, 2, 2))
    image = ImageSet(files(("axial", "1.5")), np.full((1, 1, 2, 2), 128, np.uint8))
    found = lesions.distance_from_atlas(np.full((1, 2, 2), 0.5, np.float32), image, train)
    np.testing.assert_allclose(found, (0.5 - 0.3) / (0.1 + lesions.LEAST_SPREAD), rtol=1e-5)
