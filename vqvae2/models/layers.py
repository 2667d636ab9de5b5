"""Feature maps -> feature maps: layers put together, forwards and backwards, from operations that are fast on a CPU.

What each of them brings was measured (docs/benchmarks.md). Values and gradients are those of torch's own layers.
"""

import math

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable

LARGE = 2**19
"""Numbers of an image's feature map, in float32, from which on the gradient of a kernel takes oneDNN longer in
channels_last than in the other order, the copies included; twice as many with AVX-512."""


class Convolution(nn.Conv2d):
    """A convolution whose kernels get their gradient, where images are large, from copies that are not channels_last.

    oneDNN reads an image of channels_last once for each part of the kernel, which costs up to half of the rate where
    the image has no room in the cache.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels_in, height, width]` to `[batch, channels_out, …]`."""
        if torch.is_grad_enabled() and wants_copies(x):
            return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding)
        return super().forward(x)


def wants_copies(x: torch.Tensor) -> bool:
    """Return whether the gradient of the kernels that `x` meets is faster in an order that is not channels_last."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    has_512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return math.prod(x.shape[1:]) >= LARGE * (1 + has_512)


class _Convolution(torch.autograd.Function):
    """torch's convolution, with copies for the gradient of the kernels."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: tuple[int, int],
                padding: tuple[int, int]) -> torch.Tensor:
        """Return `[batch, channels_out, …]`."""
        ctx.save_for_backward(x, weight)
        ctx.form = {"stride": stride, "padding": padding}
        return nn.functional.conv2d(x, weight, bias, **ctx.form)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_made: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the maps, the kernels and the bias."""
        x, weight = ctx.saved_tensors
        of_x = nn.grad.conv2d_input(x.shape, weight, of_made, **ctx.form) if ctx.needs_input_grad[0] else None
        of_weight = nn.grad.conv2d_weight(x.contiguous(), weight.shape, of_made.contiguous(), **ctx.form)
        return of_x, of_weight, of_made.sum((0, 2, 3)), None, None


class Upsampling(nn.ConvTranspose2d):
    """A transposed convolution that doubles `[b, channels_in, h, w]`, put together from parts that are fast on a CPU.

    oneDNN needs as long for the bias's gradient in bf16 as for the layer's other two: as the sum that autograd makes
    of an addition, it costs nothing. And to one channel it comes nowhere near the rate of a matrix product; that
    product, and adding up what overlaps, is the same.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels_in, height, width]` to `[batch, channels_out, 2 height, 2 width]`.

        To a picture (at most 4 channels) the sums are float32 whatever autocast says.
        """
        made = _Doubling.apply(x, self.weight)
        return made.add_(self.bias.to(made.dtype)[:, None, None])


class _Doubling(torch.autograd.Function):
    """Upsampling without its bias; backwards it is the convolution of which it is the transpose.

    Of a picture's gradient that convolution has one input channel, which oneDNN is fast with.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return `[batch, channels_out, 2 height, 2 width]`."""
        if weight.shape[1] > 4:
            made = nn.functional.conv_transpose2d(x, weight, stride=2, padding=1)
            ctx.save_for_backward(x.to(made.dtype), weight)
            return made
        patches = nn.functional.conv2d(x, weight.flatten(1).T[:, :, None, None])
        ctx.save_for_backward(x.to(patches.dtype), weight)
        size = 2 * x.shape[2], 2 * x.shape[3]
        return nn.functional.fold(patches.flatten(2).to(weight.dtype), size, kernel_size=4, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_made: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the maps and the kernels."""
        x, weight = ctx.saved_tensors
        of_made, form = of_made.to(x.dtype, memory_format=torch.channels_last), {"stride": 2, "padding": 1}
        of_x = nn.functional.conv2d(of_made, weight.to(x.dtype), **form) if ctx.needs_input_grad[0] else None
        if wants_copies(of_made):
            of_made, x = of_made.contiguous(), x.contiguous()
        of_weight = nn.grad.conv2d_weight(of_made, weight.shape, x, **form)
        return of_x, of_weight.to(weight.dtype)


class Joined(torch.autograd.Function):
    """Two levels' vectors -> the decoder's input, in the type of the first: concatenated by channel, in channels_last.

    The gradients are in channels_last too. Those of torch.cat are parts of one tensor, which whatever makes them
    float32 or dense also brings into another order, and all sums of tensors in two orders are slow.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, above: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Return `[batch, channels of both, height, width]`."""
        ctx.channels, ctx.types = above.shape[1], (above.dtype, found.dtype)
        return torch.cat([above, found.to(above.dtype)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of both."""
        parts = of_joined.tensor_split([ctx.channels], 1)
        return tuple(part.contiguous(memory_format=torch.channels_last).to(kind)
                     for part, kind in zip(parts, ctx.types))


class MeanSquares(torch.autograd.Function):
    """What was found, what was wanted -> each image's mean squared difference, in float32; a gradient for the first.

    Autograd's own way takes twice as many passes over tensors of that size, and expands the gradient of a mean in
    another order than channels_last.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return `[batch]` of two tensors `[batch, channels, height, width]`."""
        difference = found.to(torch.promote_types(found.dtype, torch.float32), copy=True).sub_(wanted)
        ctx.type = found.dtype
        ctx.save_for_backward(difference)
        return difference.square().mean((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, of_means: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of what was found."""
        difference, = ctx.saved_tensors
        share = of_means * (2 / max(1, math.prod(difference.shape[1:])))
        return torch.mul(difference, share[:, None, None, None], out=torch.empty_like(difference, dtype=ctx.type)), None
