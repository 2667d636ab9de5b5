"""Images <-> codes: VQ-VAE-2 with two levels, or one.

                 image 128 x 128
                    | encoder, /4
    bottom features 32 x 32 ---------+
                    | encoder, /2    |
    top features 16 x 16             |
                    | quantise       |
    top codes 16 x 16 -> decoder, x2 +-> quantise -> bottom codes 32 x 32
                    |                                      |
                    +---- upsample x2 ----> decoder, x4 <--+
                                               |
                                             image

The top codes are decoded and shown to the bottom level before it quantises, so that the bottom need only
say what the top has not (Razavi 2019 [1], section 3.1 and algorithm 1). `levels=1` is the plain VQ-VAE
(van den Oord 2017), whose only code map is called top.

NOTE Departure from [1]: while training, the decoder does not see the bottom map for a share of images.
Without that the bottom says everything and the top codes, however many are in use, mean nothing.

References
[1] Razavi, van den Oord, Vinyals 2019, Generating Diverse High-Fidelity Images with VQ-VAE-2.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vqvae2 import checkpoints
from vqvae2.config import VqvaeSettings, from_dict
from vqvae2.errors import UserError
from vqvae2.quantizer import EmaQuantizer, Place


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of images `[batch, channels, height, width]`."""

    images: torch.Tensor
    """`[batch, channels, height, width]`: about 0…1, not clipped."""
    codes: dict[str, torch.Tensor]
    """For each level, coarse first, codes `[batch, height, width]`."""
    commitment: torch.Tensor
    """`[batch]`: summed over the levels."""


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), as in [1]."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, inner, 3, padding=1),
                                    nn.ReLU(), nn.Conv2d(inner, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, height, width]` to the same shape."""
        return x + self.layers(x)


def residual_stack(settings: VqvaeSettings) -> list[nn.Module]:
    """Return the residual blocks that end an encoder and begin a decoder."""
    blocks = [ResidualBlock(settings.channels, settings.residual_channels) for _ in range(settings.residual_layers)]
    return [*blocks, nn.ReLU()]


def encoder(channels_in: int, factor: int, settings: VqvaeSettings) -> nn.Sequential:
    """Return a network that shrinks `[b, channels_in, h, w]` by `factor` to `[b, settings.channels, …]`."""
    half, full = settings.channels // 2, settings.channels
    widths = [channels_in, *[half] * (max(halvings(factor) - 1, 1)), full]
    layers: list[nn.Module] = []
    for i in range(halvings(factor)):
        layers += [nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1), nn.ReLU()]
    layers.append(nn.Conv2d(widths[halvings(factor)], full, 3, padding=1))
    return nn.Sequential(*layers, *residual_stack(settings))


def decoder(channels_in: int, channels_out: int, factor: int, settings: VqvaeSettings) -> nn.Sequential:
    """Return a network that enlarges `[b, channels_in, h, w]` by `factor` to `[b, channels_out, …]`."""
    half, full = settings.channels // 2, settings.channels
    widths = [full, *[half] * (halvings(factor) - 1), channels_out]
    layers: list[nn.Module] = [nn.Conv2d(channels_in, full, 3, padding=1), *residual_stack(settings)]
    for i in range(halvings(factor)):
        layers += [nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def halvings(factor: int) -> int:
    """Return how many times a grid is halved: 2 for a factor of 4."""
    return factor.bit_length() - 1


class Vqvae(nn.Module):
    """Two-level VQ-VAE-2, or one-level VQ-VAE, on images of any size that the factors divide.

    Example: images `[8, 1, 128, 128]` with `downsample=(4, 2)` give bottom codes `[8, 32, 32]` and top
    codes `[8, 16, 16]`.

    Args:
        settings: widths, codebooks, levels.
        image_channels: 1 for grey, 3 for colour.
        start_steps: as settings.start_steps, or fewer where a run is short.
    """

    def __init__(self, settings: VqvaeSettings, image_channels: int = 1, start_steps: int | None = None):
        super().__init__()
        self.settings, self.image_channels = settings, image_channels
        self.levels = ("top", "bottom")[: settings.levels]
        dim, width = settings.embedding_dim, settings.channels
        start = settings.start_steps if start_steps is None else start_steps
        self.quantizers = nn.ModuleDict({
            level: EmaQuantizer(settings.codebook_size, dim, settings.decay, start, settings.seed * 2 + number)
            for number, level in enumerate(self.levels)})
        self.encoder = encoder(image_channels, settings.downsample[0], settings)
        if settings.levels == 2:
            self.top_encoder = encoder(width, settings.downsample[1], settings)
            self.top_decoder = decoder(dim, dim, settings.downsample[1], settings)
            self.top_upsample = upsampler(dim, settings.downsample[1])
            self.to_bottom = nn.Conv2d(width + dim, dim, 1)
        self.to_top = nn.Conv2d(width, dim, 1)
        self.decoder = decoder(dim * settings.levels, image_channels, settings.downsample[0], settings)

    def forward(self, images: torch.Tensor, place: Place | None = None,
                hide_bottom: torch.Tensor | None = None) -> Reconstruction:
        """Reconstruct `images` `[batch, channels, height, width]` in 0…1.

        Args:
            place: where these images stand in the step; training codebooks need it.
            hide_bottom: `[batch]` bool, True where the decoder must do without the bottom map.
        """
        features = self.encoder(images - 0.5)
        if self.settings.levels == 1:
            only = self.quantizers["top"](self.to_top(features), place)
            return Reconstruction(self.decoder(only.vectors) + 0.5, {"top": only.codes}, only.commitment)
        top = self.quantizers["top"](self.to_top(self.top_encoder(features)), place)
        seen = torch.cat([features, self.top_decoder(top.vectors)], 1)
        bottom = self.quantizers["bottom"](self.to_bottom(seen), place)
        shown = bottom.vectors if hide_bottom is None else bottom.vectors * ~hide_bottom[:, None, None, None]
        return Reconstruction(self._decode(top.vectors, shown), {"top": top.codes, "bottom": bottom.codes},
                              top.commitment + bottom.commitment)

    def _decode(self, top: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.cat([self.top_upsample(top), bottom], 1)) + 0.5

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each level's codes `[batch, height, width]` of `images` in 0…1."""
        return self(images).codes

    def decode(self, codes: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return images `[batch, channels, height, width]`, clipped to 0…1, of each level's codes."""
        vectors = [self.quantizers[level].lookup(codes[level]) for level in self.levels]
        images = self._decode(*vectors) if self.settings.levels == 2 else self.decoder(*vectors) + 0.5
        return images.clamp(0, 1)

    def update_codebooks(self) -> None:
        """Apply what the step has collected, on all ranks."""
        for quantizer in self.quantizers.values():
            quantizer.update()

    def is_quantising(self) -> bool:
        """Return whether all codebooks are placed; before that, codes mean nothing."""
        return all(quantizer.started for quantizer in self.quantizers.values())

    def code_shapes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return each level's code map size for images of this size, coarse first."""
        fine = self.settings.downsample[0]
        if self.settings.levels == 1:
            return {"top": (height // fine, width // fine)}
        coarse = fine * self.settings.downsample[1]
        return {"top": (height // coarse, width // coarse), "bottom": (height // fine, width // fine)}


def upsampler(dim: int, factor: int) -> nn.Sequential:
    """Return transposed convolutions that enlarge `[b, dim, h, w]` by `factor`."""
    return nn.Sequential(*[nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1) for _ in range(halvings(factor))])


@dataclass(frozen=True)
class TrainedVqvae:
    """A VQ-VAE read from its folder."""

    model: Vqvae
    """In eval mode."""
    config: dict
    """What it was trained with and on."""
    hash: str
    """Of its weights: what code maps and priors are tied to."""
    folder: Path


def load_vqvae(name: str, device: torch.device, flag: str = "--vqvae",
               results: Path = Path("results")) -> TrainedVqvae:
    """Return the VQ-VAE in the folder `name`, or of that name in results/*/ or pretrained/.

    Raises: UserError if there is none, or the folder holds another kind of model.
    """
    folder = checkpoints.find_run(name, flag, results)
    tensors, config = checkpoints.load_weights(folder / checkpoints.WEIGHTS)
    if config.get("kind") != "vqvae":
        raise UserError(f"{flag} {name}: expected a VQ-VAE, found a {config.get('kind')} in {folder}. "
                        "Give the name that train_vqvae.py was run with.")
    model = Vqvae(from_dict(VqvaeSettings, config["settings"]), config["image_shape"][0])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{flag} {name}: expected weights that this version of the code reads, found others "
                        f"({' '.join(str(error).split())[:150]}). Train the model again.") from None
    return TrainedVqvae(model.to(device).eval(), config, checkpoints.weights_hash(tensors), folder)
