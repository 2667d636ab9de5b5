"""Nothing -> a tiny prior in float64 with random weights, and random codes for it."""

import torch

from vqvae2.priors.conditions import Column
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.priors.settings import PriorSettings

CODES = 12


def prior(level: str, shape: tuple[int, int] = (4, 6), layers: int = 6, attention_every: int = 2, seed: int = 0,
          condition: tuple[str, ...] = (), columns: tuple[Column, ...] = ()) -> PixelCNN:
    torch.manual_seed(seed)
    options = PriorSettings(level=level, channels=8, heads=2, layers=layers, attention_every=attention_every,
                            condition=condition)
    top = (torch.randn(CODES, 5), (shape[0] // 2, shape[1] // 2)) if level == "bottom" else (None, None)
    return PixelCNN(options, torch.randn(CODES, 5), shape, *top, columns=columns).double().eval()


def random_codes(model: PixelCNN, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor | None]:
    top = None if model.conditioner is None else torch.randint(CODES, (batch, *model.conditioner.place.shape[1:]))
    return torch.randint(CODES, (batch, *model.shape)), top
