"""Images of two kinds, or images with a number each -> a small network that tells the kinds apart or reads the number.

The probe judges samples with it (`evaluation/probe.py`), `--reject-by classifier` chooses by it among candidates
(`sampling/critic.py`), and `evaluation/anatomy.py` reads positions and ages with it.

All images are treated alike: 8 bit, values below FLOOR and above CEILING made equal. Real slices are exactly black
where no brain is and exactly white above the percentile of their scaling, and no decoder does that to the last step;
this is no news and would hide everything else. Nothing else is taken away: size, place, brightness, contrast, softness,
anatomy and variety may all be used. Batches hold as many fakes as real images, whatever their numbers are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from vqvae2.common import machine

FLOOR, CEILING = 8, 247
"""Darker pixels count as black, brighter ones as white, on the range 0…255."""
WIDTHS, DETAIL = (16, 24, 32, 48, 64), 4.0
BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 2e-3, 0.05
CROP, SHIFT = 128, 4
"""Training pictures are windows of at most so many pixels, moved by at most so many; never shrunk."""


class Classifier(nn.Module):
    """Convolutions of stride 2, then mean and maximum over the picture: images of any size to a number, which is a
    logit, high for fakes, where it is to tell them.

    A picture of 128 x 128 becomes 4 x 4 places that see 65 x 65 pixels each. Beside the picture stands what differs
    from the mean of 3 x 3 pixels, enlarged: softness is a weak signal in the brightness, and without this channel 120
    steps did not find it (validation: AUROC 0.78, where the power above 40 cycles a picture alone has 1.00).

    NOTE No normalisation: it would take away how much contrast there is. Weights begin as in He et al. 2015.
    """

    def __init__(self, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((2 * channels, *WIDTHS), WIDTHS):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            nn.init.zeros_(layers[-2].bias)
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(2 * WIDTHS[-1], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `[batch]` of images `[batch, channels, height, width]` that `prepared` has made."""
        shown = torch.cat([images, DETAIL * (images - _mean_of_9(images))], 1)
        features = self.layers(shown.contiguous(memory_format=torch.channels_last))
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))[:, 0]


def _mean_of_9(images: torch.Tensor) -> torch.Tensor:
    """Return the mean of each pixel and its 8 neighbours; the border is repeated. A tenth of the time of a pooling."""
    framed = functional.pad(images, [1] * 4, mode="replicate")
    rows = framed[:, :, :-2] + framed[:, :, 1:-1] + framed[:, :, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as the classifier sees them: float32, from FLOOR to CEILING -1…1."""
    return (images.float().clamp(FLOOR, CEILING) - FLOOR) / (CEILING - FLOOR) * 2 - 1


@torch.no_grad()
def logits(model: Classifier, images: torch.Tensor, batch: int = BATCH) -> torch.Tensor:
    """Return the logits `[n]` of uint8 images, on the CPU, each the sum of the image's own and its mirror image's.

    batch: images at a time, on which the last bits depend.
    """
    device = next(model.parameters()).device
    shown = (machine.to_device(prepared(some), device) for some in images.split(batch))
    return torch.cat([model(some) + model(some.flip(3)) for some in shown]).cpu()


def trained(sides: Sequence[torch.Tensor], steps: int, generator: torch.Generator, device: torch.device | str = "cpu",
            tell: Callable[[], object] = lambda: None) -> Classifier:
    """Return a classifier trained on fakes and real images, the two `sides`, uint8 `[n, channels, height, width]`.

    `tell` is called after each step.
    """
    labels = torch.tensor([1.0, 0.0]).repeat_interleave(BATCH // 2)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([_pictures(images, BATCH // 2, generator)[0] for images in sides]), labels

    return _fitted(sides[0].shape[1], batch, functional.binary_cross_entropy_with_logits, steps, generator, device,
                   tell)


def trained_to_read(images: torch.Tensor, values: torch.Tensor, steps: int, generator: torch.Generator,
                    device: torch.device | str = "cpu", tell: Callable[[], object] = lambda: None) -> Classifier:
    """Return a network trained to read the values of images, which `readings` reads then.

    Args:
        images: uint8 `[n, channels, height, width]`. values: float32 `[n]`, of mean 0 and standard deviation 1.
        steps, generator, device, tell: as for `trained`.
    """
    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        pictures, items = _pictures(images, BATCH, generator)
        return pictures, values[items]

    return _fitted(images.shape[1], batch, functional.mse_loss, steps, generator, device, tell)


def readings(model: Classifier, images: torch.Tensor, batch: int = BATCH) -> torch.Tensor:
    """Return the values `[n]` that a network reads from uint8 images, each the mean of the image's own and its mirror
    image's."""
    return logits(model, images, batch) / 2


def _fitted(channels: int, make_batch: Callable[[], tuple[torch.Tensor, torch.Tensor]], loss_of: Callable,
            steps: int, generator: torch.Generator, device: torch.device | str,
            tell: Callable[[], object]) -> Classifier:
    """Return a network whose answers to uint8 pictures have been fitted to what goes with them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        # Channels last: with two to sixteen channels the convolutions need half the time on a CPU.
        model = Classifier(channels).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    where = next(model.parameters()).device
    for _ in range(steps):
        pictures, wanted = make_batch()
        loss = loss_of(model(machine.to_device(prepared(pictures), where)), machine.to_device(wanted, where))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        tell()
    return model.eval()


def _pictures(images: torch.Tensor, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows of images drawn at random, uint8, moved and mirrored or not, and which images they are of."""
    height, width = (min(side, CROP) for side in images.shape[2:])
    items = torch.randint(len(images), (count,), generator=generator)
    framed = functional.pad(images[items], [SHIFT] * 4)
    starts = [torch.randint(whole - side + 1, (count,), generator=generator).tolist()
              for whole, side in zip(framed.shape[2:], (height, width))]
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
    windows = [image[:, top:top + height, left:left + width] for image, top, left in zip(framed, *starts)]
    return torch.stack([window.flip(2) if flip else window for window, flip in zip(windows, mirrored)]), items
