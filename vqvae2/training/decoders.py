"""Codes of a VQ-VAE -> a trained texture decoder, by the trainer's loop; the VQ-VAE stays as it is."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from vqvae2.common import distributed, machine, random_numbers
from vqvae2.common.errors import expect
from vqvae2.common.progress import Bar
from vqvae2.common.statistics import evenly
from vqvae2.images import dataset
from vqvae2.metrics import similarity, texture
from vqvae2.models import losses
from vqvae2.models.texture_decoder import Texture, TextureDecoder
from vqvae2.plots import charts, pictures
from vqvae2.training.after_vqvae import AfterVqvae
from vqvae2.training.settings import TrainDecoder
from vqvae2.training.trainer import Share

DECODED = 16
"""Images that are decoded together: the last bits depend on it."""
JUDGED, SHOWN = 32, 4
"""Validation images, at most, whose texture is compared after an epoch; and that are shown."""
LIT = 0.05
"""Grey of the brighter places. Each crop of a training image has one in its middle, or beside a border as near to it as
the picture reaches."""
DETAIL = 4.0
"""What differs from the mean of 3 by 3 pixels is shown to the discriminator enlarged by this factor."""
DISCRIMINATOR_RATE = 2.0
"""The discriminator's learning rate, in learning rates of the decoder."""
WIDTHS = (32, 64, 96, 128)
SMALLEST = 16
"""Side of an image, in pixels, that the discriminator's last layer still sees some of."""
TINY = 1e-12
"""A power that no picture lacks but one of a single grey."""


class FlowTraining(nn.Module):
    """A flow, and its loss: the squared error of its velocity on the way from noise to detail."""

    def __init__(self, decoder: TextureDecoder, settings: TrainDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, pixels: torch.Tensor, soft: torch.Tensor, noise: torch.Tensor, times: torch.Tensor,
                _: float) -> dict[str, torch.Tensor]:
        """Return "loss" `[n]`: mean squared error of the velocity at `times` `[n]`, in squared deviations.

        Args:
            pixels, soft: `[n, channels, height, width]` in 0…1. noise: the same shape.
        """
        detail, time = (pixels - soft) / self.decoder.deviation, times[:, None, None, None]
        velocity = self.decoder.velocity(torch.lerp(noise, detail, time), soft, times).float()
        return {"loss": (velocity - (detail - noise)).square().flatten(1).mean(1)}


class SpectralNorm(nn.Module):
    """A convolution's weights divided by their largest singular value, by power iteration (Miyato et al. 2018).

    The iteration goes on in `update`, once a step: what a step computes depends on no number of passes.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("left", functional.normalize(torch.randn(len(weight)), dim=0))
        self.register_buffer("right", functional.normalize(torch.randn(weight[0].numel()), dim=0))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return weights of the same shape."""
        return weight / torch.dot(self.left, weight.flatten(1) @ self.right)

    @torch.no_grad()
    def update(self, weight: torch.Tensor, times: int = 1) -> None:
        """Go on with the iteration for these weights."""
        for _ in range(times):
            self.right.copy_(functional.normalize(weight.flatten(1).T @ self.left, dim=0))
            self.left.copy_(functional.normalize(weight.flatten(1) @ self.right, dim=0))


class Discriminator(nn.Module):
    """Pictures -> a number for each of many overlapping patches, above 0 for real ones (Isola et al. 2017).

    No normalisation, so that images do not depend on each other; it computes in float32 whatever autocast says.
    """

    def __init__(self, channels: int):
        super().__init__()
        sizes = [(2 * channels, WIDTHS[0], 3, 1), *((*pair, 4, 2) for pair in itertools.pairwise(WIDTHS)),
                 (WIDTHS[-1], 1, 3, 1)]
        self.layers = nn.ModuleList(nn.Conv2d(before, after, side, stride, padding=1)
                                    for before, after, side, stride in sizes)
        for layer in self.layers:
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight), unsafe=True)
        self.update(20)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return `[n, 1, h, w]` of images `[n, channels, height, width]` in 0…1."""
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            mean = functional.avg_pool2d(functional.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
            x = torch.cat([images * 2 - 1, DETAIL * (images - mean)], 1)
            for layer in self.layers[:-1]:
                x = functional.leaky_relu(layer(x), 0.2)
            return self.layers[-1](x)

    def update(self, times: int = 1) -> None:
        """Follow the weights that a step has moved."""
        for layer in self.layers:
            layer.parametrizations.weight[0].update(layer.parametrizations.weight.original, times)


class AdversarialTraining(nn.Module):
    """A decoder of one pass, and the discriminator that it is trained against, with the losses of both in one."""

    def __init__(self, decoder: TextureDecoder, settings: TrainDecoder):
        super().__init__()
        self.decoder, self.discriminator = decoder, Discriminator(decoder.image_channels)
        self.ssim_weight = settings.ssim_weight

    def forward(self, pixels: torch.Tensor, soft: torch.Tensor, noise: torch.Tensor, _: torch.Tensor,
                weight: float) -> dict[str, torch.Tensor]:
        """Return "loss" `[n]`, the sum of what both networks learn from, and its parts.

        Args:
            pixels, soft: `[n, channels, height, width]` in 0…1. noise: `[n, noise_channels, height, width]`.
            weight: of what the discriminator says, in the decoder's loss.
        """
        made = self.decoder(soft, noise).float()
        error = losses.error_of_clipped(made, pixels).abs().flatten(1).mean(1)
        if self.ssim_weight:
            error = error + self.ssim_weight * losses.dissimilarity(made, pixels)
        self.discriminator.requires_grad_(False)  # what it says of the decoder's pictures is not to teach it
        realness = self.discriminator(made).flatten(1).mean(1)
        self.discriminator.requires_grad_(True)
        real, fake = self.discriminator(pixels), self.discriminator(made.detach())
        hinge = ((1 - real).relu() + (1 + fake).relu()).flatten(1).mean(1)
        return {"loss": error - weight * realness + hinge, "error": error, "realness": realness, "discriminator": hinge}


TRAININGS = {"flow": FlowTraining, "adversarial": AdversarialTraining}


class DecoderTrainer(AfterVqvae):
    """Trains a texture decoder on crops of real images beside the same crops as the VQ-VAE's own decoder gives them.

    The averaged weights whose pictures' spectrum and edges are nearest to real ones are kept.
    """

    kind = "decoder"
    best_by = "texture"
    headline = (("train_loss", "loss"), ("validate_ssim", "SSIM"), ("validate_texture", "texture"), ("best", "best"))

    def __init__(self, settings: TrainDecoder):
        super().__init__(settings)
        self.ema_decay = settings.ema

    def start(self) -> None:
        """Load the VQ-VAE and its images, and decode the images' codes."""
        self.images = self.load()
        smallest = min(self.images.shape[1:])
        expect(smallest >= SMALLEST, "--data", f"images of at least {SMALLEST} pixels a side", smallest,
               "Extract larger slices.")
        self.check_init_from(self.data)
        self.maps = {split: self.codes_of(split, self.images.splits[split]) for split in ("train", "validate")}
        self.soft = {split: self._decoded(split) for split in self.maps}

    @torch.no_grad()
    def _decoded(self, split: str) -> torch.Tensor:
        """Return the soft pictures of a split, float16 `[n, channels, height, width]` in 0…1, on the CPU."""
        levels = self.maps[split].levels
        batches = torch.arange(self.count(split)).split(DECODED)
        own = {number: self.vqvae.model.decode({level: codes[batches[number]].long().to(self.device)
                                                for level, codes in levels.items()}, softly=True).half().cpu()
               for number in Bar(range(distributed.rank(), len(batches), distributed.world_size()),
                                     desc=f"decoding {split}", unit="batch", disable=distributed.rank() != 0)
               if len(batches[number])}
        found = {number: part for share in distributed.gather_objects(own) for number, part in share.items()}
        return torch.cat([torch.zeros(0, *self.images.shape, dtype=torch.float16), *map(found.get, sorted(found))])

    def describe(self) -> dict:
        """Return what a texture decoder must remember: its VQ-VAE and the data."""
        return {**self.data, "vqvae_hash": self.vqvae.hash}

    def count(self, split: str) -> int:
        """Return the number of images."""
        return len(self.images.splits[split])

    def build(self) -> nn.Module:
        """Return the decoder, with all that only its training needs."""
        split, sums = self.images.splits["train"], torch.zeros(2, dtype=torch.float64)
        for items in torch.arange(len(split)).split(64):
            detail = (split.batch(items) - self.soft["train"][items].float()).double()
            sums += torch.stack([detail.sum(), detail.square().sum()])
        mean, square = (sums / self.soft["train"].numel()).tolist()
        decoder = TextureDecoder(self.settings, self.images.shape[0], max(square - mean**2, TINY) ** 0.5)
        return TRAININGS[self.settings.network](decoder, self.settings).to(memory_format=torch.channels_last)

    def optimizer(self, parameters: object) -> torch.optim.Optimizer:
        """Return Adam; against a discriminator with betas of 0.5 and 0.99, and the discriminator at twice the rate."""
        options = {"lr": self.settings.learning_rate, "fused": self.device.type != "mps"}
        if not hasattr(self.model, "discriminator"):
            return torch.optim.Adam(parameters, **options)
        return torch.optim.Adam([{"params": list(self.model.decoder.parameters()), "rate": 1.0},
                                 {"params": list(self.model.discriminator.parameters()), "rate": DISCRIMINATOR_RATE}],
                                betas=(0.5, 0.99), **options)

    def kept(self, model: nn.Module) -> nn.Module:
        """Return the decoder alone: a discriminator always begins anew."""
        return model.decoder

    def coming(self, items: torch.Tensor) -> None:
        """Begin to read images, which matters where they are larger than the memory."""
        self.images.splits["train"].read_ahead(items)

    def losses(self, model: nn.Module, share: Share) -> dict[str, torch.Tensor]:
        """Return the figures of the training's kind, for a crop of each image; for whole images when validating."""
        training = model.training
        split, epoch = ("train", share.epoch) if training else ("validate", 0)
        pixels, soft = self.images.splits[split].batch(share.items), self.soft[split][share.items].float()
        if training and self.settings.crop:
            pixels, soft = self._cropped(pixels, soft, share)
        items = share.items.tolist()
        channels = self.settings.noise_channels if self.settings.network == "adversarial" else pixels.shape[1]
        noise = torch.stack([torch.randn(channels, *pixels.shape[2:], generator=random_numbers.generator(
            self.settings.seed, f"{split}: noise", epoch, item)) for item in items]) if items else torch.zeros(
                0, channels, *pixels.shape[2:])
        times = random_numbers.uniform(self.settings.seed, f"{split}: times", epoch, share.items.numpy()).float()
        rise = min(1.0, max(share.step, 0) / max(self.settings.adversarial_steps, 1))
        given = (machine.to_device(values, self.device) for values in (pixels, soft, noise, times))
        return model(*given, self.settings.adversarial_weight * rise)

    def _cropped(self, pixels: torch.Tensor, soft: torch.Tensor, share: Share) -> tuple[torch.Tensor, torch.Tensor]:
        """Return crops around one of the bright places of each image; which one, the image's own number decides."""
        side = [min(self.settings.crop, whole) for whole in pixels.shape[2:]]
        draws = random_numbers.uniform(self.settings.seed, "crop", share.epoch, share.items.numpy()).tolist()
        both = torch.cat([pixels, soft], 1)
        made = [both.new_zeros(0, both.shape[1], *side)]
        for image, draw in zip(both, draws):
            lit = (image[0] > LIT).nonzero()
            middle = lit[int(draw * len(lit))].tolist() if len(lit) else [whole // 2 for whole in image.shape[1:]]
            top, left = (min(max(place - own // 2, 0), whole - own) // 2 * 2
                         for place, own, whole in zip(middle, side, image.shape[1:]))
            made.append(image[None, :, top:top + side[0], left:left + side[1]])
        return torch.cat(made).chunk(2, 1)

    def after_step(self) -> None:
        """Let the norms of a discriminator follow its weights."""
        if hasattr(self.model, "discriminator"):
            self.model.discriminator.update()

    def validate_more(self) -> dict[str, float]:
        """Return how far the texture of validation images is from that of real ones, and their SSIM.

        `validate_texture` is the mean over the bands of frequencies of |log2(power / real power)|, plus 10 times the
        distance of fine edges, which is 0 where no picture has any.
        """
        items = evenly(self.count("validate"), JUDGED)
        own = items[distributed.rank()::distributed.world_size()]
        made, real = self._textured(own), dataset.to_bytes(self.images.splits["validate"].batch(own))
        figures = [np.concatenate([texture.band_powers(images), texture.gradient_shares(images)], 1)
                   for images in (made, real)]
        ssim = similarity.ssim(real, made).double() if len(own) else torch.zeros(0)
        shares = distributed.gather_objects((*figures, ssim.numpy()))
        made, real, ssim = (np.concatenate([share[part] for share in shares]) for part in range(3))
        bands = len(texture.bands(min(self.images.shape[1:])))
        powers = [images[:, :bands].mean(0) + TINY for images in (made, real)]
        power = abs(np.log2(powers[0] / powers[1])).mean()
        sides = [images[~np.isnan(images).any(1), bands:] for images in (made, real)]
        edges = texture.histogram_distance(*(side.mean(0) for side in sides)) if all(map(len, sides)) else 0
        return {"validate_texture": float(power + 10 * edges), "validate_power": float(power),
                "validate_edges": float(edges), "validate_ssim": float(ssim.mean())}

    @torch.no_grad()
    def _textured(self, items: np.ndarray) -> torch.Tensor:
        """Return validation images as users get them, in float32, uint8 `[n, channels, height, width]`."""
        decoder = Texture(self.best_model.decoder.eval(), self.settings.seed)
        made = [torch.zeros(0, *self.images.shape, dtype=torch.uint8)]
        for some in torch.from_numpy(items).split(DECODED):
            codes = {level: maps[some] for level, maps in self.maps["validate"].levels.items()}
            with torch.autocast(self.device.type, enabled=False):
                made.append(dataset.to_bytes(decoder(self.soft["validate"][some].float().to(self.device), codes)).cpu())
        return torch.cat(made)

    def pictures(self, epoch: int) -> None:
        """Draw the curves; real validation images beside the soft pictures and those with texture."""
        charts.curves(self.rows, self.folder / "losses.png",
                      title=f"{self.settings.savename}, texture decoder: epoch {epoch} of {self.settings.epochs}")
        if not self.count("validate"):
            return
        items = evenly(self.count("validate"), SHOWN)
        rows = [(self.images.word, dataset.to_bytes(self.images.splits["validate"].batch(items))),
                ("soft", dataset.to_bytes(self.soft["validate"][items].float())), ("texture", self._textured(items))]
        self.log.picture("textures", epoch, pictures.strip(
            [(name, pictures.enlarged(images)) for name, images in rows],
            title=f"Epoch {epoch} of {self.settings.epochs}: unseen slices, decoded softly and with texture"))
        self.model.train()
