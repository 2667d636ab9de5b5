"""Layers put together for speed, held to torch's own: the same values and the same gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vqvae2.models import layers

CHANNELS_LAST = torch.channels_last


def values_and_gradients(function: Callable, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The function's result, and the gradient of each tensor, of a loss that weighs every number differently."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    made = function(*tensors)
    loss = (made * torch.linspace(-1, 2, made.numel(), dtype=made.dtype).view_as(made)).sum()
    return [made.detach(), *torch.autograd.grad(loss, tensors)]


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return made.to(dtype, memory_format=CHANNELS_LAST)


@pytest.fixture(params=[0, 2**40], ids=["copies", "no copies"])
def large(request, monkeypatch):
    monkeypatch.setattr(layers, "LARGE", request.param)
    return request.param == 0


@pytest.mark.parametrize("form", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 4, "stride": 2, "padding": 1}])
def test_a_convolution_has_the_values_and_gradients_of_torchs(form, large):
    """In float32, the only type in which kernels get their gradient from copies."""
    ours, theirs, x = layers.Convolution(3, 5, **form), nn.Conv2d(3, 5, **form), maps(2, 3, 8, 10, dtype=torch.float32)
    assert layers.wants_copies(x) is large
    for found, expected in zip(*(values_and_gradients(
            lambda x, weight, bias, layer=layer: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x),
            x, theirs.weight, theirs.bias) for layer in (ours, theirs))):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channels_out", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upsampling_has_the_values_and_gradients_of_a_transposed_convolution(channels_out, dtype, large):
    ours = layers.Upsampling(5, channels_out).to(dtype)
    weight, bias = ours.weight, ours.bias
    found = values_and_gradients(lambda x, weight, bias: torch.func.functional_call(
        ours, {"weight": weight, "bias": bias}, x), maps(2, 5, 4, 6, dtype=dtype), weight, bias)
    expected = values_and_gradients(lambda x, weight, bias: nn.functional.conv_transpose2d(
        x, weight, bias, stride=2, padding=1), maps(2, 5, 4, 6, dtype=dtype), weight, bias)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


def test_no_copies_are_made_under_bf16_autocast_nor_of_other_types(monkeypatch):
    monkeypatch.setattr(layers, "LARGE", 0)
    x = maps(1, 2, 4, 4, dtype=torch.float32)
    assert layers.wants_copies(x)
    assert not layers.wants_copies(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not layers.wants_copies(x)


def test_vectors_are_joined_as_torch_does_it_and_their_gradients_are_channels_last():
    first, second = maps(2, 3, 4, 5), maps(2, 2, 4, 5)
    found, expected = (values_and_gradients(join, first, second) for join in (
        layers.Joined.apply, lambda first, second: torch.cat([first, second], 1)))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert one.is_contiguous(memory_format=CHANNELS_LAST)


def test_vectors_are_joined_in_the_type_of_the_first_and_each_gradient_has_its_own_type():
    made, of_first, of_second = values_and_gradients(layers.Joined.apply, maps(1, 2, 3, 3).bfloat16(), maps(1, 2, 3, 3))
    assert [made.dtype, of_first.dtype, of_second.dtype] == [torch.bfloat16, torch.bfloat16, torch.float64]


def test_mean_squares_are_those_of_autograd_and_what_was_wanted_gets_no_gradient():
    found, wanted = maps(3, 2, 4, 5), maps(3, 2, 4, 5).flip(2)
    ours, theirs = (values_and_gradients(function, found) for function in (
        lambda found: layers.MeanSquares.apply(found, wanted),
        lambda found: (found - wanted).square().flatten(1).mean(1)))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_mean_squares_of_bf16_are_computed_in_float32():
    found, wanted = maps(1, 2, 8, 8).bfloat16(), maps(1, 2, 8, 8).flip(2).bfloat16()
    made, gradient = values_and_gradients(lambda found: layers.MeanSquares.apply(found, wanted), found)
    assert (made.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert made.item() == pytest.approx((found.double() - wanted.double()).square().mean().item(), rel=1e-6)


def test_no_images_are_no_error():
    x, upsampling = torch.zeros(0, 3, 4, 4, requires_grad=True), layers.Upsampling(3, 1)
    (upsampling(x).sum() + layers.MeanSquares.apply(x, x.detach()).sum()).backward()
    assert x.grad.shape == x.shape
    assert upsampling.weight.grad.abs().sum() == 0
