"""Unlikely codes are drawn anew, what differs from the completions is the map, and what is likely costs nothing."""

import math

import numpy as np
import pytest
import torch
from conftest import picture_of

from vqvae2.evaluation import restoration, surprise
from vqvae2.images.dataset import ImageSet
from vqvae2.images.listing import ImageFile
from vqvae2.metrics import similarity
from vqvae2.models import encoding
from vqvae2.sampling import sampler

CPU = torch.device("cpu")
LEVELS = {"top": torch.full((1, 3, 3), 7), "bottom": torch.full((1, 6, 6), 9)}


def bits(top=(), bottom=()):
    """NLL of 1 bit, and of 10 bits at these rows and columns."""
    found = {level: torch.ones_like(codes, dtype=torch.float32) for level, codes in LEVELS.items()}
    for level, places in (("top", top), ("bottom", bottom)):
        for row, column in places:
            found[level][0, row, column] = 10
    return found


def test_a_code_above_the_threshold_is_to_be_drawn_and_with_a_top_code_the_detail_in_and_beside_its_cell():
    gaps = restoration.with_gaps(LEVELS, bits(top=[(0, 0)], bottom=[(5, 5)]), 5, keeps_top=False)
    assert gaps["top"][0].tolist() == [[-1, 7, 7], [7, 7, 7], [7, 7, 7]]
    expected = np.full((6, 6), 9)
    expected[:3, :3] = expected[5, 5] = -1
    assert gaps["bottom"][0].tolist() == expected.tolist()


def test_where_top_codes_stay_only_unlikely_detail_is_drawn():
    gaps = restoration.with_gaps(LEVELS, bits(top=[(0, 0)], bottom=[(5, 5)]), 5, keeps_top=True)
    assert (gaps["top"] == LEVELS["top"]).all()
    assert (gaps["bottom"] < 0).nonzero().tolist() == [[0, 5, 5]]


def test_completions_that_are_unlike_the_image_elsewhere_count_less():
    """They differ from it by 0.01 and 0.02 in the brain, so that their weights are as e to 1."""
    image, brain = torch.zeros(1, 1, 2, 4), torch.tensor([[[True, True, False, False]] * 2])
    completions = torch.full((1, 2, 1, 2, 4), 0.01)
    completions[:, 1] = 0.02
    found = restoration.weighted_difference(image, completions, brain)
    share = math.e / (1 + math.e)
    torch.testing.assert_close(found, torch.full((1, 2, 4), 0.01 * share + 0.02 * (1 - share)))


def test_what_is_typical_is_the_validation_of_both_priors_by_their_codes(tmp_path):
    for level, values in (("top", (3.0, 2.0)), ("bottom", (6.0, 5.0))):
        (tmp_path / level).mkdir()
        (tmp_path / level / "log.csv").write_text("epoch,validate_bits_per_code\n" + "".join(
            f"{epoch},{value}\n" for epoch, value in enumerate(values, 1)))
    folders = {level: tmp_path / level for level in ("top", "bottom")}
    assert restoration.typical_bits(folders, {"top": (2, 2), "bottom": (4, 4)}) == pytest.approx((2 + 4 * 5) / 5)
    (tmp_path / "bottom" / "log.csv").unlink()
    assert restoration.typical_bits(folders, {"top": (2, 2), "bottom": (4, 4)}) is None


@pytest.fixture(scope="module")
def chain(tiny_run):
    """The tiny VQ-VAE, its priors, and four images of 32 x 32 pixels."""
    vqvae, priors = sampler.load_models(str(tiny_run.vqvae), str(tiny_run.top), str(tiny_run.bottom), CPU)
    pixels = np.stack([picture_of(30 + number, 0)[None] for number in range(4)])
    return vqvae, priors, ImageSet(tuple(ImageFile(f"{n}.png", "test", f"s{n}", "") for n in range(4)), pixels)


def test_images_without_unlikely_codes_cost_no_draws_and_differ_by_their_reconstruction(chain, monkeypatch):
    vqvae, priors, images = chain
    monkeypatch.delattr(sampler, "draw_codes")
    settled = []
    found = restoration.restore(*chain, threshold=math.inf, on_codes=settled.append)
    maps, made = encoding.reconstruct(vqvae.model, images, 4)
    brain = similarity.brain_mask(images.bytes()).numpy()
    error = (images.bytes().float() - made).abs().mean(1).numpy() / 255
    np.testing.assert_allclose(found.maps, surprise.smoothed(error, brain, restoration.SMOOTHING), atol=1e-6)
    assert sum(settled) == restoration.codes_to_settle(vqvae, images) == 4 * 8 * (16 + 64)
    bits = surprise.bits_per_pixel_maps(surprise.both_ways(vqvae.model, priors, images, 4, maps), (32, 32)).numpy()
    np.testing.assert_allclose(found.bits, surprise.smoothed(bits, brain, restoration.LIKELIHOOD_SMOOTHING), atol=1e-5)


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batch(chain):
    vqvae, priors, images = chain
    exact = sampler.in_float64(priors)
    settled = []
    first = restoration.restore(vqvae, exact, images, draws=4, threshold=2, on_codes=settled.append)
    again = restoration.restore(vqvae, exact, images, draws=4, threshold=2, batch=3)
    other = restoration.restore(vqvae, exact, images, draws=4, threshold=2, seed=1)
    np.testing.assert_allclose(first.maps, again.maps, atol=1e-6)
    assert np.abs(first.maps - other.maps).max() > 1e-3
    assert sum(settled) == restoration.codes_to_settle(vqvae, images, 4)
    assert 0 <= first.maps.min() <= first.maps.max() <= 1
    np.testing.assert_allclose(first.product, first.maps * first.bits)
    assert (first.maps[~similarity.brain_mask(images.bytes()).numpy()] == 0).all()
