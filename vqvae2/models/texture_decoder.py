"""Soft pictures -> sharp ones: the detail that codes do not hold, invented by a network that is trained after them.

Many pictures have the same codes and differ in their finest detail. A VQ-VAE's own decoder, which is trained on squared
error and SSIM, gives about their mean: faithful, and soft. A texture decoder takes this soft picture and random
numbers, and adds the detail of one of the many. It is likely detail, not the true one. Two ways, by --network:

`flow`: a rectified flow [1]. At time 0 the detail is noise, at time 1 it is (picture - soft picture) / deviation; the
network learns the velocity on the straight line from one to the other, given the soft picture, and a few steps of
Heun's method follow it [3]. (Euler's method, with as many passes of the network, leaves out a fifth of the power at
the highest frequencies; with as many steps, a third.)
`adversarial`: one pass makes the detail of the soft picture and noise; a second network, which only the training has,
is to tell such pictures from real ones [2].

The random numbers of an image come from (seed, its codes): the same codes and seed have the same noise, in any batch.

[1] Liu, Gong, Liu 2022, Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow.
[2] Isola, Zhu, Zhou, Efros 2017, Image-to-Image Translation with Conditional Adversarial Networks.
[3] Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space of Diffusion-Based Generative Models, algorithm 1.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from vqvae2.common import random_numbers
from vqvae2.common.errors import expect
from vqvae2.models.settings import DecoderSettings
from vqvae2.runs.config import need
from vqvae2.runs.weights import Pretrained, TrainedModel, load_model
from vqvae2.settings.stored import from_dict

TIMES = 16
"""Number of frequencies whose sines and cosines tell the network the time, from 1 to FASTEST radians."""
FASTEST = 200.0
EARLY = 1.5
"""Step k of n of a flow begins at time (k / n)**EARLY: shorter steps early on, where noise becomes edges. Of 6 steps at
128², 1.5 for 1 brings the distance of fine edges from 0.0119 to 0.0095, and PSNR from 28.93 to 28.99."""


class TimedBlock(nn.Module):
    """x + conv3x3(silu(conv3x3(silu(x)))), scaled and shifted in the middle by what is known of the time.

    Its last convolution begins at 0, so that a new network passes everything on.
    """

    def __init__(self, width: int, is_timed: bool):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(2 * TIMES, 2 * width) if is_timed else None
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor, waves: torch.Tensor | None) -> torch.Tensor:
        """Features `[n, channels, height, width]` and, where it is timed, `[n, 2 TIMES]` to features of that shape."""
        inner = self.first(functional.silu(x))
        if self.time is not None:
            scale, shift = self.time(waves)[:, :, None, None].chunk(2, 1)
            inner = inner * (1 + scale) + shift
        return x + self.second(functional.silu(inner))


class TextureNet(nn.Module):
    """Pictures `[batch, channels_in, height, width]` of even sides to detail `[batch, channels_out, height, width]`.

    It works on squares of 2 by 2 pixels, which stand beside each other as channels: a quarter of the places, and all of
    the detail.
    """

    def __init__(self, channels_in: int, channels_out: int, settings: DecoderSettings, is_timed: bool):
        super().__init__()
        self.into = nn.Conv2d(4 * channels_in, settings.width, 3, padding=1)
        self.blocks = nn.ModuleList(TimedBlock(settings.width, is_timed) for _ in range(settings.blocks))
        self.out = nn.Conv2d(settings.width, 4 * channels_out, 3, padding=1)
        self.register_buffer("frequencies", torch.logspace(0, math.log10(FASTEST), TIMES), persistent=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, pictures: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
        """Return the detail; `times` `[batch]` in 0…1 for a timed network."""
        waves = None
        if times is not None:
            angles = times[:, None] * self.frequencies
            waves = torch.cat([angles.sin(), angles.cos()], 1)
        # Not functional.pixel_unshuffle, which leaves a batch of no images as it is (a rank may have none).
        x = self.into(pictures.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3))
        for block in self.blocks:
            x = block(x, waves)
        detail = self.out(functional.silu(x)).unflatten(1, (-1, 2, 2))
        return detail.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


class TextureDecoder(Pretrained, nn.Module):
    """Soft pictures and noise -> pictures with detail.

    Args:
        settings: the network's kind and size.
        image_channels: 1 for grey, 3 for colour.
        deviation: the standard deviation of the pixels of picture - soft picture, over the training images.
    """

    kind = "decoder"

    def __init__(self, settings: DecoderSettings, image_channels: int = 1, deviation: float = 1.0):
        super().__init__()
        self.settings, self.image_channels = settings, image_channels
        self.is_flow = settings.network == "flow"
        self.noise_channels = image_channels if self.is_flow else settings.noise_channels
        self.net = TextureNet(image_channels + self.noise_channels, image_channels, settings, self.is_flow)
        self.register_buffer("deviation", torch.tensor(float(deviation)))

    @classmethod
    def from_config(cls, config: dict, tensors: Mapping[str, torch.Tensor]) -> "TextureDecoder":
        """Return a decoder of a run's config, whose weights are still to be loaded.

        Raises: UserError if the config is that of no texture decoder.
        """
        need(config, "image_shape", "vqvae_hash", "training_images", "training_subjects")
        return cls(from_dict(DecoderSettings, config["settings"]), config["image_shape"][0])

    def velocity(self, detail: torch.Tensor, soft: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return how the detail of a flow moves, of the shape of `detail`, in deviations per unit of time.

        Args:
            detail: `[batch, channels, height, width]` in deviations, at the `times` `[batch]` in 0…1.
            soft: pictures `[batch, channels, height, width]` in 0…1.
        """
        return self.net(torch.cat([detail, centred(soft)], 1), times)

    def forward(self, soft: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return pictures `[batch, channels, height, width]`, about 0…1, of soft ones in 0…1.

        Args:
            noise: `[batch, noise_channels, height, width]`, of the standard normal distribution.
        """
        if not self.is_flow:
            return soft + self.deviation * self.net(torch.cat([noise, centred(soft)], 1))
        steps, detail = self.settings.flow_steps, noise
        times = torch.linspace(0, 1, steps + 1, dtype=soft.dtype, device=soft.device).pow(EARLY)
        for step, (now, then) in enumerate(itertools.pairwise(times[:, None].expand(-1, len(soft))), 1):
            length = (then - now)[:, None, None, None]
            velocity = self.velocity(detail, soft, now)
            if step < steps:  # the last step is Euler's: the training has no time of exactly 1 to ask for
                velocity = (velocity + self.velocity(detail + velocity * length, soft, then)) / 2
            detail = detail + velocity * length
        return soft + self.deviation * detail


def centred(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures in 0…1 as a network sees them best, since most of them is dark."""
    return pictures * 4 - 1


@dataclass(frozen=True)
class Texture:
    """A texture decoder and a seed: what a VQ-VAE's `decode` ends with, where it has one."""

    decoder: TextureDecoder
    seed: int
    number: int | None = None
    """The number, beside the seed, of the noise that all images get, where they are slices of one brain; without it
    each image has a number of its own, by its codes."""

    def __call__(self, soft: torch.Tensor, codes: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return pictures with detail, about 0…1, of soft ones `[batch, channels, height, width]` in 0…1.

        Args:
            codes: each level's codes `[batch, height, width]`, from which the random numbers come.
        """
        self.decoder.to(soft.device)  # where the VQ-VAE has been moved since
        shape = (self.decoder.noise_channels, *soft.shape[2:])
        numbers = [_number_of(codes, image) if self.number is None else self.number for image in range(len(soft))]
        noise = [torch.randn(shape, generator=random_numbers.generator(self.seed, "texture", own)) for own in numbers]
        return self.decoder(soft, torch.stack(noise).to(soft)) if noise else soft


def _number_of(codes: Mapping[str, torch.Tensor], image: int) -> int:
    """Return a number that all of an image's codes decide."""
    digest = hashlib.sha256()
    for level in sorted(codes):
        digest.update(codes[level][image].to("cpu", torch.int32).contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little")


def attach(vqvae: TrainedModel, name: str | None, seed: int, flag: str = "--decoder",
           results: Path = Path("results")) -> TrainedModel | None:
    """Let `vqvae.model.decode` end with the texture decoder in the folder `name`, or of that name in results/*/ or
    pretrained/; return the decoder. Do nothing where `name` is None.

    Args:
        seed: of the random numbers, of which each image has its own, by its codes.
    Raises: UserError if there is none, the folder holds another kind of model, or one of another VQ-VAE.
    """
    if name is None:
        return None
    loaded = load_model(name, flag, TextureDecoder.kind, TextureDecoder.from_config, results, words="a texture decoder",
                        advice="Give the name that train_decoder.py was run with.")
    learned = loaded.config["vqvae_hash"]
    own = loaded.config["settings"].get("vqvae")
    expect(learned == vqvae.hash, f"{flag} {name}", f"a texture decoder that learned the codes of the VQ-VAE given "
           f"({vqvae.hash[:6]})", f"one of {own} ({learned[:6]})", f"Give {own}, or train the decoder again.")
    vqvae.model.texture = Texture(loaded.model.to(next(vqvae.model.parameters()).device), seed)
    return loaded
