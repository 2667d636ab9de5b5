"""A model in training -> its averaged weights, which are validated and saved in place of the last ones."""

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights towards the model's after a step; buffers are taken over as they are.

    Args:
        decay: share of its past that the average keeps; less in the first steps, (1 + step) / (10 + step), so that
            the weights as they were drawn are soon forgotten (as TensorFlow's ExponentialMovingAverage).
        step: number of the step, from 0.
    """
    kept = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - kept)
    for ours, theirs in zip(average.buffers(), model.buffers()):
        ours.copy_(theirs)
