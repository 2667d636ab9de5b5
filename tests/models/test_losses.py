"""The terms of the reconstruction loss, held to hand calculations, to scikit-image, and to finite differences."""

import pytest
import torch
from skimage.metrics import structural_similarity

from vqvae2.metrics import similarity
from vqvae2.models import losses


def test_a_black_pixel_may_be_blacker_and_a_white_one_whiter():
    made = torch.tensor([[[[-0.5, 1.5, 0.25]]]])
    pixels = torch.tensor([[[[0.0, 1.0, 0.5]]]])
    assert losses.error_of_clipped(made, pixels).flatten().tolist() == [0, 0, -0.25]


def test_dissimilarity_is_1_less_the_ssim_of_scikit_image():
    pictures = torch.rand(2, 3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    made, pixels = pictures[0], pictures[1] * 0.3 + pictures[0] * 0.7
    expected = [1 - structural_similarity(a[0].double().numpy(), b[0].double().numpy(), data_range=1, sigma=1.5,
                                          gaussian_weights=True, use_sample_covariance=False)
                for a, b in zip(made, pixels)]
    assert losses.dissimilarity(made, pixels).tolist() == pytest.approx(expected, abs=1e-5)
    assert losses.dissimilarity(pixels, pixels).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_dissimilarity_has_the_gradient_of_finite_differences_even_under_bf16_autocast():
    draws = torch.Generator().manual_seed(1)
    made = (torch.rand(2, 1, 12, 12, generator=draws, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    pixels = torch.rand(2, 1, 12, 12, generator=draws, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.autograd.gradcheck(lambda x: losses.dissimilarity(x, pixels), [made])


@pytest.mark.parametrize("shape", [(1, 1, 16, 24), (1, 3, 12, 11), (5, 1, 24, 16), (3, 2, 16, 16)])
def test_dissimilarity_and_its_gradient_are_those_of_autograd_through_the_maps(shape):
    draws = torch.Generator().manual_seed(2)
    made, pixels, of = (torch.rand(size, generator=draws, dtype=torch.float64) for size in (shape, shape, shape[0]))
    made = (1.2 * made - 0.1).requires_grad_()  # some are clipped
    expected = 1 - similarity.similarity_maps(made.clamp(0, 1), pixels)[0].mean((1, 2))
    found = losses.dissimilarity(made, pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(values @ of, made)[0] for values in (found, expected)), rtol=0,
                               atol=1e-12)


def test_dissimilarity_of_a_picture_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match=r"at least 11, found \[8, 16\]"):
        losses.dissimilarity(torch.zeros(1, 1, 8, 16), torch.zeros(1, 1, 8, 16))


def test_gradient_error_counts_steps_across_and_down():
    pixels, made = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[0.5, 0.75], [0.5, 0.5]]]])
    # Across: 0.25 in the first row, 0 in the second. Down: 0 in the first column, 0.25 in the second.
    assert losses.gradient_error(made, pixels).item() == pytest.approx(0.125 + 0.125)
    assert losses.gradient_error(made + 0.1, pixels).item() == pytest.approx(0.25)  # a constant is no edge
