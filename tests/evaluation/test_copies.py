"""Copies among samples are found, unseen people are not taken for copies, and distances are those of the slow way."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from vqvae2.evaluation import copies
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile

SIZE, REACH = 32, 2  # 1/16 of the width


def brains(first, people, slices, size=SIZE):
    """uint8 `[people * slices, 1, size, size]`: ellipses with folds, which change a little slice by slice."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    images = []
    for person in range(first, first + people):
        draws = np.random.default_rng(person)
        wide, tall = draws.uniform((0.5, 0.65), (0.7, 0.8))
        folds = ndimage.gaussian_filter(draws.normal(size=(slices + 8, size, size)), (2, 1.5, 1.5))
        for number in range(slices):
            inside = (x / wide)**2 + (y / tall)**2 < 1 - 0.03 * number
            images.append(np.where(inside, 150 + 80 * folds[number] / folds.std(), 0))
    return np.stack(images).clip(0, 255).round().astype(np.uint8)[:, None]


def image_set(pixels, split, slices):
    files = (ImageFile(f"{split}/{i}.png", split, f"{split}{i // slices}", "") for i in range(len(pixels)))
    return ImageSet(tuple(files), pixels)


@pytest.fixture(scope="module")
def training():
    return image_set(brains(0, people=30, slices=4), "train", slices=4)


@pytest.fixture(scope="module")
def unseen():
    return image_set(brains(1000, people=40, slices=4), "test", slices=4)


def judge(drawn, unseen, training, soft=None, features=None):
    """The report and the slices of the closest pairs; the reconstructions are a sample, and features noise, if not
    given."""
    soft, rng = drawn[:1] if soft is None else soft, np.random.default_rng(0)
    sets = (drawn, unseen, training, soft)
    return copies.judge(drawn, unseen, training, soft, features or [
        rng.normal(size=(len(images), 3)) for images in sets], 0)


def shifted(image, down, right):
    """The image moved by at most two pixels, black where nothing came from."""
    room = np.pad(image, ((0, 0), (2, 2), (2, 2)))
    return np.roll(room, (down, right), (1, 2))[:, 2:-2, 2:-2]


def slow_nearest(image, slices, reach):
    """Every slice, mirrored or not, at every shift, on a plane with room: (distance, item, mirrored, shift)."""
    room, found = ((reach, reach),) * 2, []
    image, slices = (np.pad(pixels.astype(float), ((0, 0),) * (pixels.ndim - 2) + room) for pixels in (image, slices))
    for mirrored, down, right in itertools.product((False, True), *2 * [range(-reach, reach + 1)]):
        moved = np.roll(slices[..., ::-1] if mirrored else slices, (down, right), (2, 3))
        squared = ((image - moved)**2).sum((1, 2, 3))
        found.append((squared.min(), squared.argmin(), mirrored, (down, right)))
    return min(found)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 24, 24), (1, 17, 32), (3, 16, 20)])
def test_the_nearest_slice_is_that_of_trying_every_slice_and_every_shift(channels, height, width):
    """40 slices are more than are looked at first; noise, soft and faint images make bounds loose or tight."""
    rng = np.random.default_rng(0)
    slices = ndimage.gaussian_filter(rng.normal(size=(40, channels, height, width)), (0, 0, 1.5, 1.5))
    slices = (127 + 300 * slices * rng.uniform(0.2, 1, (40, 1, 1, 1))).clip(0, 255).astype(np.uint8)
    images = [rng.integers(0, 256, slices.shape[1:]).astype(np.uint8), np.zeros_like(slices[0]), slices[7] // 2,
              *(slices[:3] // 2 + slices[10:13] // 2), *(np.roll(slices[20:24], (1, 1), (2, 3)) // 3 * 2)]
    gallery = copies.Gallery(slices)
    for image in images:
        squared, item, mirrored, shift = slow_nearest(image, slices, gallery.reach)
        found = gallery.nearest(image)
        assert found.distance == pytest.approx(np.sqrt(squared / image.size) / 255, abs=1e-12)
        assert (found.item, found.mirrored, found.shift) == (item, mirrored, shift)


def test_most_slices_need_no_exact_comparison(training, unseen, monkeypatch):
    """Else the search would be no quicker than the slow way, which every other test would let pass."""
    looked_at, gallery = [], copies.Gallery(training.pixels)
    exact = gallery._distances
    monkeypatch.setattr(gallery, "_distances", lambda *given: looked_at.append(len(given[2])) or exact(*given))
    for image in unseen.pixels[:20]:
        gallery.nearest(image)
    assert sum(looked_at) / 20 < 0.5 * 2 * len(training)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-2, 2)])
def test_a_moved_and_mirrored_copy_has_distance_0_and_is_laid_upon_the_image_again(training, mirrored, shift):
    original = training.pixels[50]
    copy = shifted(original[..., ::-1] if mirrored else original, *shift)
    gallery = copies.Gallery(training.pixels)
    found = gallery.nearest(copy)
    assert found == copies.Match(0.0, 50, mirrored, shift)
    assert np.array_equal(gallery.registered(found), copy)


def test_what_a_shift_moves_out_of_the_picture_still_counts():
    """A white left column can be moved out of the picture, and yet is not like black: 16 of 256 pixels differ by 1."""
    striped = np.zeros((1, 1, 16, 16), np.uint8)
    striped[..., 0] = 255
    assert copies.Gallery(striped).nearest(np.zeros_like(striped[0])).distance == 0.25


def test_the_reach_is_a_sixteenth_of_the_width():
    assert [copies.Gallery(np.zeros((1, 1, 8, width), np.uint8)).reach for width in (8, 32, 128)] == [1, 2, 8]


def as_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", quality=60)
    return np.array(Image.open(file))[None]


def test_planted_copies_are_found_and_nothing_else_is(training, unseen):
    """10 of 60 are copies: exact, moved, mirrored, noisy, re-encoded. The closest pairs name their originals."""
    rng = np.random.default_rng(5)
    drawn, source = brains(5000, people=60, slices=1), training.pixels
    planted = {3: 11, 8: 100, 20: 31, 21: 44, 30: 90, 31: 110, 40: 118, 41: 8, 50: 66, 51: 77}
    changes = [lambda image: image, lambda image: shifted(image, 2, -2), lambda image: image[..., ::-1],
               lambda image: (image + rng.normal(0, 6, image.shape)).clip(0, 255), as_jpeg]
    for number, (sample, original) in enumerate(planted.items()):
        drawn[sample] = changes[number // 2](source[original])
    report, nearest = judge(torch.from_numpy(drawn), unseen, training)
    pixels = report["pixels"]
    assert pixels["closer_share"] == pytest.approx(10 / 60, abs=1e-9)
    assert pixels["ci_low"] > 0.05
    exact = [3, 8, 20, 21, 30]
    assert [(pair["sample"], pair["training"]) for pair in pixels["closest"]] == [
        (sample, f"train/{planted[sample]}.png") for sample in exact]
    assert [pair["distance"] for pair in pixels["closest"]] == [0] * 5
    assert np.array_equal(nearest, drawn[exact])  # exact, moved and mirrored: each lies upon its sample
    matches = [copies.Gallery(source).nearest(image) for image in drawn]
    assert {sample: match.item for sample, match in enumerate(matches)
            if match.distance < pixels["threshold"]} == planted


def test_samples_without_copies_are_as_seldom_close_as_unseen_people(training, unseen):
    """New people: about 1 of 100, and the interval holds 0.01."""
    drawn = torch.from_numpy(brains(9000, people=60, slices=4))
    report, _ = judge(drawn, unseen, training)
    assert report["pixels"]["closer_share"] <= 0.03
    assert report["pixels"]["ci_low"] < 0.01 < report["pixels"]["ci_high"]
    assert report["pixels"]["samples_median"] == pytest.approx(report["pixels"]["unseen_median"], rel=0.1)


def test_copies_are_found_in_features_too(training, unseen):
    rng = np.random.default_rng(1)
    of_drawn, of_unseen, of_training, of_soft = (rng.normal(size=(n, 6)) for n in (40, len(unseen), len(training), 1))
    of_drawn[[4, 9]] = of_training[[17, 3]]
    drawn = torch.from_numpy(brains(9000, people=40, slices=1))
    report, _ = judge(drawn, unseen, training, features=(of_drawn, of_unseen, of_training, of_soft))
    features = report["features"]
    nearest = np.sqrt(((of_unseen[:, None] - of_training[None])**2).sum(2)).min(1)
    assert features["threshold"] == pytest.approx(np.percentile(nearest, 1))
    assert features["unseen_median"] == pytest.approx(np.median(nearest))
    assert {(pair["sample"], pair["training"]) for pair in features["closest"][:2]} == {(4, "train/17.png"),
                                                                                        (9, "train/3.png")}
    assert features["closer_share"] >= 2 / 40


def test_the_share_is_that_of_samples_below_the_percentile():
    """Unseen 0 to 100: the 1st percentile is 1. Of 4 samples one is below, one is on it."""
    found = copies.compare(np.array([5.0, 0.5, 1.0, 9.0]), np.arange(101.0), ["a"] * 101, seed=0)
    assert found == {"samples_median": 3.0, "samples_min": 0.5, "unseen_median": 50.0, "threshold": 1.0,
                     "closer_share": 0.25, "ci_low": None, "ci_high": None}


def test_no_close_sample_of_few_is_not_taken_for_proof_that_there_are_none():
    """0 of 100, all unseen people alike: the interval is Jeffreys', from scipy 0 to 0.0247."""
    people = [str(i // 100) for i in range(1000)]
    found = copies.compare(np.full(100, 50.0), np.tile(np.arange(100.0), 10), people, seed=0)
    assert found["closer_share"] == 0
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((0, 0.0247), abs=0.004)


def test_the_interval_knows_that_the_threshold_hangs_on_one_person():
    """One of ten people is near to training. A draw without that person (1 of 3) has a threshold above all samples."""
    unseen = np.concatenate([np.full(20, 1.0), np.full(180, 10.0)])
    people = [str(i // 20) for i in range(200)]
    found = copies.compare(np.full(200, 5.0), unseen, people, seed=0)
    assert found["closer_share"] == 0
    assert found["ci_high"] > 0.98
    alike = copies.compare(np.full(200, 5.0), unseen, [str(i % 10) for i in range(200)], seed=0)
    assert alike["ci_high"] < 0.03


def test_the_order_of_unseen_slices_changes_nothing_and_the_seed_does():
    rng = np.random.default_rng(2)
    samples, unseen, people = rng.normal(size=50), rng.normal(size=90), np.repeat(list("abcdefghi"), 10)
    order = rng.permutation(90)
    first = copies.compare(samples, unseen, people, seed=3)
    assert copies.compare(samples, unseen[order], people[order], seed=3) == first
    assert copies.compare(samples, unseen, people, seed=4) != first


def test_more_unseen_slices_than_needed_are_chosen_evenly(training, unseen, monkeypatch):
    monkeypatch.setattr(copies, "MOST_UNSEEN", 7)
    seen, nearest = [], copies.Gallery.nearest
    monkeypatch.setattr(copies.Gallery, "nearest", lambda self, image: seen.append(image) or nearest(self, image))
    drawn = torch.from_numpy(brains(9000, people=2, slices=1))
    report, slices = judge(drawn, unseen, training, soft=drawn[:1])
    assert (report["unseen"], len(seen), len(slices)) == (7, 2 + 7 + 1, 2)
    assert report["unseen_subjects"] == 7  # of 40 people, so not the first seven slices, which are of two


def test_the_report_fits_json_and_a_table_and_the_pairs_a_picture(training, unseen):
    drawn = torch.from_numpy(brains(9000, people=6, slices=1))
    report, nearest = judge(drawn, unseen, training)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    table = copies.CopiesJudge().table(report, {})
    assert [row[0] for row in table] == [
        "samples, pixels (RMS, images 0…1)", "reconstructions, pixels (RMS, images 0…1)",
        "samples, features (Euclidean)", "reconstructions, features (Euclidean)"]
    assert all("%" in row[-1] and len(row) == 5 for row in table)
    assert len(nearest) == copies.PICTURED
    picture = copies.picture(drawn, nearest, report)
    assert picture.width > 5 * 128
    assert picture.height > 3 * 128


def test_reconstructions_are_judged_beside_the_samples(training, unseen):
    drawn, soft = (torch.from_numpy(brains(seed, people=2, slices=2)) for seed in (9000, 9500))
    alone, _ = judge(soft, unseen, training)
    beside, _ = judge(drawn, unseen, training, soft)
    for name in ("samples_median", "threshold", "closer_share"):
        assert beside["reconstructions"]["pixels"][name] == alone["pixels"][name], name
    # No interval: they are slices of the people who make the threshold.
    assert beside["reconstructions"]["pixels"]["ci_high"] is None
    assert beside["reconstructions"]["samples"] == len(soft)
