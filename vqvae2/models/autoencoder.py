"""Images <-> codes: VQ-VAE-2 with two levels, or one.

           image 128 x 128
                 | encoder, /4
    features 32 x 32 ------------------+
                 | encoder, /2         |
    features 16 x 16                   |
                 | quantise            |
    top codes 16 x 16 -- decoder, x2 --+ what the top predicts of the features
                 |                     |
                 |                     | quantise what it missed
                 |                     |
                 |         bottom codes 32 x 32
                 |                     |
                 +-- upsample, x2 -----+ prediction + what it missed
                                       | decoder, x4
                                 image 128 x 128

The top codes are decoded and shown to the bottom level before it quantises (Razavi 2019 [1], section 3.1 and
algorithm 1), so that the bottom need only say what the top has not. `levels=1` is the plain VQ-VAE (van den
Oord 2017), whose only code map is called top.

NOTE Departure from [1], where the bottom quantises a mixture of its features and the decoded top: here it
quantises their *difference*, as residual quantisation does (Juang and Gray 1982 [2]). Mixing leaves the bottom
free to say everything, and it does: hundreds of top codes are in use and none of them matters. With the
difference a bottom map means nothing without its top map, and a better prediction leaves the bottom smaller
vectors to quantise, hence a finer codebook. What it brings is measured in docs/results.md.

NOTE To the gradient, what the difference is taken from is a constant. Otherwise the gradients of prediction +
quantised(features - prediction), which passes the quantising straight through, would cancel: the top would be told that
moving its prediction changes nothing, as if the bottom's codes followed at once. They stay, and their codebook
follows over tens of steps. Measured: the prediction then swings, ever wider, the differences leave their codebook, and
in the middle of a training SSIM and the codes in use fall for some epochs (docs/results.md).

References
[1] Razavi, van den Oord, Vinyals 2019, Generating Diverse High-Fidelity Images with VQ-VAE-2.
[2] Juang, Gray 1982, Multiple stage vector quantization for speech coding.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vqvae2.common.errors import expect
from vqvae2.images.settings import DataSettings
from vqvae2.models.layers import Convolution, Joined, MeanSquares, Upsampling
from vqvae2.models.quantizer import QUANTIZERS, BatchPlace, Quantized
from vqvae2.models.settings import VqvaeSettings
from vqvae2.runs.config import need
from vqvae2.runs.weights import Pretrained, TrainedModel, load_model
from vqvae2.settings.stored import ADVICE, from_dict


@dataclass(frozen=True)
class Reconstruction:
    """The autoencoder's result for images `[batch, channels, height, width]`.

    Args:
        images: `[batch, channels, height, width]`: about 0…1, not clipped.
        codes: the codes `[batch, height, width]` of each level, coarse first.
        commitment: `[batch]`: mean squared distance of vectors to their embeddings, summed over the levels.
        codebook: `[batch]`: the same, with a gradient for the embeddings; 0 where none moves them.
        prediction: `[batch]`: mean squared error of the features that the top predicts; 0 with one level.
    """

    images: torch.Tensor
    codes: dict[str, torch.Tensor]
    commitment: torch.Tensor
    codebook: torch.Tensor
    prediction: torch.Tensor


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), as in [1]; with `norm`, each convolution's output is normalised."""

    def __init__(self, channels: int, inner: int, norm: str = "none"):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), Convolution(channels, inner, 3, padding=1), *normalised(inner, norm),
                                    nn.ReLU(inplace=True), nn.Conv2d(inner, channels, 1), *normalised(channels, norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, height, width]` to the same shape."""
        return self.layers(x).add_(x)


def normalised(channels: int, norm: str) -> list[nn.Module]:
    """Return what follows a convolution: GroupNorm where `norm` is "group" (Wu and He 2018), else nothing.

    Eight groups of channels are normalised together; fewer where 8 does not divide the channels.

    GroupNorm looks at each image alone. With BatchNorm the images of a batch would depend on each other, and so on the
    way in which they are dealt to ranks.
    """
    return [nn.GroupNorm(math.gcd(channels, 8), channels)] if norm == "group" else []


def residual_stack(settings: VqvaeSettings) -> list[nn.Module]:
    """Return the residual blocks that end an encoder and begin a decoder."""
    blocks = [ResidualBlock(settings.channels, settings.residual_channels, settings.norm)
              for _ in range(settings.residual_layers)]
    return [*blocks, nn.ReLU(inplace=True)]


def encoder(channels_in: int, factor: int, settings: VqvaeSettings) -> nn.Sequential:
    """Return a network that shrinks `[b, channels_in, h, w]` by `factor` to `[b, settings.channels, …]`."""
    half, full = settings.channels // 2, settings.channels
    widths = [channels_in, *[half] * (max(halvings(factor) - 1, 1)), full]
    layers: list[nn.Module] = []
    for i in range(halvings(factor)):
        layers += [Convolution(widths[i], widths[i + 1], 4, stride=2, padding=1),
                   *normalised(widths[i + 1], settings.norm), nn.ReLU(inplace=True)]
    layers.append(Convolution(widths[halvings(factor)], full, 3, padding=1))
    return nn.Sequential(*layers, *residual_stack(settings))


def decoder(channels_in: int, channels_out: int, factor: int, settings: VqvaeSettings) -> nn.Sequential:
    """Return a network that enlarges `[b, channels_in, h, w]` by `factor` to `[b, channels_out, …]`."""
    half, full = settings.channels // 2, settings.channels
    widths = [full, *[half] * (halvings(factor) - 1), channels_out]
    layers: list[nn.Module] = [Convolution(channels_in, full, 3, padding=1), *residual_stack(settings)]
    for i in range(halvings(factor)):
        is_last = i == halvings(factor) - 1  # an image, or what is to be features, is not normalised
        layers += [Upsampling(widths[i], widths[i + 1]),
                   *([] if is_last else [*normalised(widths[i + 1], settings.norm), nn.ReLU(inplace=True)])]
    return nn.Sequential(*layers)


def halvings(factor: int) -> int:
    """Return how many times a grid is halved: 2 for a factor of 4."""
    return factor.bit_length() - 1


class Vqvae(Pretrained, nn.Module):
    """Two-level VQ-VAE-2, or one-level VQ-VAE, on images of any size that the factors divide.

    Example: images `[8, 1, 128, 128]` with `downsample=(4, 2)` give bottom codes `[8, 32, 32]` and top
    codes `[8, 16, 16]`.

    Args:
        settings: widths, codebooks, levels.
        image_channels: 1 for grey, 3 for colour.
        start_steps: settings.start_steps if it is not given, or fewer where a run is short.
        intensities: mean and standard deviation `[image_channels]` of the training images, for settings.standardise.
        seed: the run's seed, from which restarted embeddings draw their vectors.
    """

    kind = "vqvae"
    texture: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor] | None = None
    """What `decode` ends with where a texture decoder was loaded: soft images and their codes -> images with detail."""

    def __init__(self, settings: VqvaeSettings, image_channels: int = 1, start_steps: int | None = None,
                 intensities: tuple[torch.Tensor, torch.Tensor] | None = None, seed: int = 0):
        super().__init__()
        self.settings, self.image_channels = settings, image_channels
        self.levels = ("top", "bottom")[: settings.levels]
        dim, width = settings.embedding_dim, settings.channels
        start = settings.start_steps if start_steps is None else start_steps
        rule = QUANTIZERS[settings.quantizer]
        self.quantizers = nn.ModuleDict({level: rule.from_settings(settings, start, seed * 2 + number)
                                         for number, level in enumerate(self.levels)})
        self.encoder = encoder(image_channels, settings.downsample[0], settings)
        if settings.levels == 2:
            self.top_encoder = encoder(width, settings.downsample[1], settings)
            self.top_decoder = decoder(dim, dim, settings.downsample[1], settings)
            self.top_upsample = nn.Sequential(*(Upsampling(dim, dim) for _ in range(halvings(settings.downsample[1]))))
            self.to_bottom = nn.Conv2d(width, dim, 1)
        self.to_top = nn.Conv2d(width, dim, 1)
        self.decoder = decoder(dim * settings.levels, image_channels, settings.downsample[0], settings)
        if settings.standardise:  # saved with the weights, so that codes mean the same wherever they are read
            mean, deviation = intensities or (torch.zeros(image_channels), torch.ones(image_channels))
            self.register_buffer("mean", mean.view(-1, 1, 1))
            self.register_buffer("deviation", deviation.view(-1, 1, 1))
        else:
            self.mean, self.deviation = 0.5, 1.0

    def grids(self, shape: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Return height and width of each level's code maps, top first, of images of this height and width."""
        cells = {"top": math.prod(self.settings.downsample), "bottom": self.settings.downsample[0]}
        return {level: (shape[0] // cells[level], shape[1] // cells[level]) for level in self.levels}

    @classmethod
    def from_config(cls, config: dict, tensors: dict[str, torch.Tensor]) -> "Vqvae":
        """Return a model of a run's config, whose weights are still to be loaded.

        Raises: UserError if config or weights are those of no VQ-VAE.
        """
        need(config, "image_shape", "data", "training_images", "training_subjects")
        settings, shape = from_dict(VqvaeSettings, config["settings"]), config["image_shape"]
        from_dict(DataSettings, config["settings"])  # how images are read is asked for in many places
        cell = math.prod(settings.downsample)
        expect(shape[1] % cell == shape[2] % cell == 0, "config.image_shape", f"a height and a width that {cell} "
               "divides (settings.downsample)", shape, ADVICE)
        expect(bool((tensors.get("deviation", torch.ones(1)) > 0).all()), "tensor deviation", "numbers above 0",
               "others", ADVICE)
        return cls(settings, shape[0])

    def forward(self, images: torch.Tensor, place: BatchPlace | None = None) -> Reconstruction:
        """Reconstruct `images` `[batch, channels, height, width]` in 0…1.

        Args:
            place: the images' place in the step, which training codebooks need.
        """
        return self.reconstructed(self.vectors(images), place)

    def vectors(self, images: torch.Tensor, parts: Mapping[str, nn.Module] | None = None) -> dict[str, torch.Tensor]:
        """Return what the encoder makes of `images` in 0…1, `[batch, embedding_dim, height, width]` of each level.

        The top's vectors are those that are quantised; the bottom's are what the top is to predict.

        Args:
            parts: the networks of another encoder of this form, by their names here.
        """
        parts = self._modules if parts is None else parts
        features = parts["encoder"]((images - self.mean) / self.deviation)
        if self.settings.levels == 1:
            return {"top": parts["to_top"](features)}
        return {"top": parts["to_top"](parts["top_encoder"](features)), "bottom": parts["to_bottom"](features)}

    def reconstructed(self, vectors: dict[str, torch.Tensor], place: BatchPlace | None = None) -> Reconstruction:
        """Quantise and decode what `vectors` has returned; `place` as for `forward`."""
        levels, predicted, missed = self._quantise(vectors, place)
        found = {"top": levels["top"].vectors}
        if "bottom" in levels:
            found["bottom"] = predicted + levels["bottom"].vectors
        return Reconstruction(self.decode_vectors(found),
                              {level: made.codes for level, made in levels.items()},
                              sum(made.commitment for made in levels.values()),
                              sum(made.codebook for made in levels.values()), missed)

    def lookup(self, codes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the embeddings of codes, in the form of `vectors`; without bottom codes, what the top predicts."""
        vectors = {"top": self.quantizers["top"].lookup(codes["top"])}
        if self.settings.levels == 2:
            vectors["bottom"] = self.top_decoder(vectors["top"])
        if "bottom" in codes:
            vectors["bottom"] = vectors["bottom"] + self.quantizers["bottom"].lookup(codes["bottom"])
        return vectors

    def decode_vectors(self, vectors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the images, about 0…1, of vectors in the form of `vectors`, as they are."""
        top = vectors["top"]
        if "bottom" in vectors:
            top = Joined.apply(self.top_upsample(top), vectors["bottom"])
        return self.decoder(top) * self.deviation + self.mean

    def _quantise(self, vectors: dict[str, torch.Tensor], place: BatchPlace | None,
                  ) -> tuple[dict[str, Quantized], torch.Tensor | None, torch.Tensor]:
        """Return each level's quantised vectors, the features that the top predicts, and by how much it missed."""
        top = self.quantizers["top"](vectors["top"], place)
        if self.settings.levels == 1:
            return {"top": top}, None, torch.zeros_like(top.commitment)
        wanted, predicted = vectors["bottom"], self.top_decoder(top.vectors)
        bottom = self.quantizers["bottom"](wanted - predicted.detach(), place)  # see the second NOTE
        # The encoder is not to make its features easy to predict: only the prediction learns from this error.
        missed = MeanSquares.apply(predicted, wanted.detach())
        return {"top": top, "bottom": bottom}, predicted, missed

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each level's codes `[batch, height, width]` of `images` in 0…1."""
        return {level: made.codes for level, made in self._quantise(self.vectors(images), None)[0].items()}

    def decode(self, codes: dict[str, torch.Tensor], *, softly: bool = False) -> torch.Tensor:
        """Return images `[batch, channels, height, width]`, clipped to 0…1, of each level's codes.

        Args:
            codes: without those of the bottom level, the image is what the top codes alone predict.
            softly: without the texture decoder, even where there is one.
        """
        soft = self.decode_vectors(self.lookup(codes)).clamp(0, 1)
        return soft if softly or self.texture is None else self.texture(soft, codes).clamp(0, 1)

    def update_codebooks(self) -> None:
        """Apply what the step has collected, on all ranks."""
        for quantizer in self.quantizers.values():
            quantizer.update()

    def is_quantising(self) -> bool:
        """Return whether all codebooks are placed; before that, codes mean nothing."""
        return all(quantizer.started for quantizer in self.quantizers.values())


TrainedVqvae = TrainedModel
"""A `Vqvae` read from its folder."""


def code_grids(vqvae: TrainedVqvae) -> dict[str, tuple[int, int]]:
    """Return height and width of each level's code maps, top first."""
    return vqvae.model.grids(vqvae.config["image_shape"][1:])


def load_vqvae(name: str, device: torch.device, flag: str = "--vqvae", results: Path = Path("results")) -> TrainedVqvae:
    """Return the VQ-VAE in the folder `name`, or of that name in results/*/ or pretrained/.

    Raises: UserError if there is none, the folder holds another kind of model, or one whose codes mean nothing yet.
    """
    loaded = load_model(name, flag, Vqvae.kind, Vqvae.from_config, results, words="a VQ-VAE",
                        advice="Give the name that train_vqvae.py was run with.")
    expect(loaded.model.is_quantising(), f"{flag} {name}", "a VQ-VAE whose codebooks are placed",
           "one whose training ended before that: its codes mean nothing", "Train one for more steps.")
    loaded.model.to(device)
    if not loaded.model.settings.standardise:
        return loaded
    # Such a model was once read with a wrong mean: codes and priors of that time bear its plain hash, and are refused.
    return dataclasses.replace(loaded, hash=hashlib.sha256(f"standardised {loaded.hash}".encode()).hexdigest())
