"""Training images -> other pictures of the same anatomy, within bounds in mm, degrees and per cent.

    mirrored | turned, shifted, scaled | moved by a smooth field | brighter or darker, with another contrast

The first three are one map, through which each picture is taken once: blur does not add up. The field is a cubic
B-spline (Rueckert 1999) whose control points lie SPACING_MM apart. No point moves further than the control
points around it. Where those move by at most d, the field's derivative is at most 3 d / (sqrt(2) SPACING_MM): 0.53 at
d = 8 mm, the largest that settings.py lets through. Scaling keeps lengths above 1 / 1.5: the whole map never folds.

What becomes of an image depends on (seed, epoch, its number) alone, to the last bit: not on the batch, the rank or what
was drawn before. So everything is made of single sums and products; a matrix product or a vectorised sine may end on
other bits where an image has another place in its batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from vqvae2.common import machine, random_numbers
from vqvae2.images.settings import AugmentationSettings

SPACING_MM = 32
"""Between the control points of the smooth field."""
PICTURE_MM = 224
"""Width that an image is taken to have where nothing says it: extract_slices.py's default."""


class Augmentation:
    """Makes other pictures of the images of one split, within the bounds of `settings`; a bound of 0 leaves it out."""

    def __init__(self, settings: AugmentationSettings, facts: Sequence[dict[str, str]],
                 field_of_view: float | None = None, seed: int = 0):
        """Remember what is known of the images.

        Args:
            facts: what the manifest says of each image of the split, {} where there is none. One whose `plane` is
                sagittal is never mirrored: its left and right are front and back.
            field_of_view: the images' width in mm where it is known; --picture-mm says otherwise.
            seed: the seed of the run; equal seeds, epochs and image numbers give equal pictures.
        """
        self.settings, self.seed = settings, seed
        self.width_mm = settings.picture_mm or field_of_view or PICTURE_MM
        sagittal = np.array([row.get("plane") == "sagittal" for row in facts], bool)
        self.may_be_mirrored = ~sagittal & (not settings.no_mirror)

    def __call__(self, pixels: torch.Tensor, items: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return another picture of each image, of the same shape, in 0…1; black background stays exactly 0.

        Args:
            pixels: `[n, channels, height, width]` in 0…1, float32. items: `[n]`, the images' numbers in their split.
        The contrast is x + b x (1 - x): near to gamma 1 - b, and made of sums and products.
        """
        numbers, settings = np.asarray(items), self.settings
        draws = random_numbers.uniform(self.seed, "augmentation", epoch, numbers[:, None], np.arange(8)).numpy()
        mirrored = torch.from_numpy((draws[:, 0] < 0.5) & self.may_be_mirrored[numbers])
        mirrored = machine.to_device(mirrored, pixels.device)[:, None, None, None]
        made = torch.where(mirrored, pixels.flip(3), pixels)
        if settings.rotate_degrees or settings.shift_mm or settings.scale_percent or settings.elastic_mm:
            places = self._places(draws, numbers, epoch, pixels)
            # The cubic's outer lobes are negative, and two of them make a glow of up to 1 % beside a corner.
            black = _sampled(made, places, "bilinear") == 0
            made = _sampled(made, places, "bicubic").masked_fill_(black, 0)
        change = _as_tensor((draws[:, 5:7] * 2 - 1) * settings.intensity_percent / 100, pixels)
        gain, bend = change[..., None, None, None].unbind(1)
        made = made.mul_(1 + gain).clamp_(0, 1)
        return made.mul_((1 - made).mul_(bend).add_(1)).clamp_(0, 1)

    def _places(self, draws: np.ndarray, numbers: np.ndarray, epoch: int, pixels: torch.Tensor) -> torch.Tensor:
        """Return the places `[n, height, width, 2]` that pixels come from: (across, down), the picture being -1…1."""
        height, width = pixels.shape[2:]
        half = np.array([1, height / width]) * self.width_mm / 2
        places = self._linear(draws, half, pixels)
        if self.settings.elastic_mm:
            places = places.add_(self._elastic(numbers, epoch, half, pixels))
        return places.movedim(1, 3).contiguous()

    def _linear(self, draws: np.ndarray, half: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        """Return these places by shift, rotation and scale, undone in this order, `[n, 2, height, width]`.

        `half` is half of the picture's width and height in mm.
        """
        settings = self.settings
        signed = draws * 2 - 1
        # With t = tan(angle / 2) sine and cosine are quotients, the same bits wherever they are computed.
        t = signed[:, 7] * math.tan(math.radians(settings.rotate_degrees) / 2)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        scale = 1 + signed[:, 3:5] * (settings.scale_percent / 100)
        turned = np.stack([np.stack([cos, sin], 1), np.stack([-sin, cos], 1)], 1) / scale[:, :, None]
        shift = signed[:, 1:3] * settings.shift_mm
        start = -(turned[:, :, 0] * shift[:, :1] + turned[:, :, 1] * shift[:, 1:])
        linear = _as_tensor(turned * half / half[:, None], pixels)
        start = _as_tensor(start / half, pixels)
        down, across = (_as_tensor((np.arange(side) + 0.5) / side * 2 - 1, pixels) for side in pixels.shape[2:])
        return (linear[:, :, 1, None, None] * down[:, None] + start[:, :, None, None]) + (
            linear[:, :, 0, None, None] * across)

    def _elastic(self, numbers: np.ndarray, epoch: int, half: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        """Return the smooth field `[n, 2, height, width]` in halves of a picture; no vector exceeds --elastic-mm."""
        (cell_x, across), (cell_y, down) = (_spline(side, 2 * mm) for side, mm in zip(pixels.shape[:1:-1], half))
        row, column = (np.arange(cells[-1] + 4) for cells in (cell_y, cell_x))
        draws = random_numbers.uniform(self.seed, "elastic", epoch, numbers[:, None, None, None],
                                       np.arange(2)[:, None, None], row[:, None], column).numpy()
        # Each component is within d / sqrt(2), so that no control point's vector is longer than d.
        points = _as_tensor((draws * 2 - 1) * (self.settings.elastic_mm / math.sqrt(2)) / half[:, None, None], pixels)
        return _spread(_spread(points, 3, cell_x, across), 2, cell_y, down[..., None])


def _spline(side: int, side_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's first control point of four, `[side]`, and their weights `[4, side]`: the cubic B-spline's basis."""
    at = (np.arange(side) + 0.5) / side * side_mm / SPACING_MM
    cells = np.floor(at).astype(np.int64)
    t = at - cells
    rest = 1 - t
    outer = [rest * rest * rest / 6, t * t * t / 6]
    inner = [2 / 3 - t * t + t * t * t / 2, 2 / 3 - rest * rest + rest * rest * rest / 2]
    return cells, np.stack([outer[0], *inner, outer[1]])


def _spread(points: torch.Tensor, axis: int, cells: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Return the values of pixels between control points along one axis, added term by term."""
    first, weights = machine.to_device(torch.from_numpy(cells), points.device), _as_tensor(weights, points)
    made = points.index_select(axis, first).mul_(weights[0])
    for number in range(1, 4):
        made.add_(points.index_select(axis, first + number).mul_(weights[number]))
    return made


def _as_tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return machine.to_device(torch.from_numpy(values.astype(np.float32)), like.device)


def _sampled(pixels: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(pixels, places, mode=mode, align_corners=False).clamp_(0, 1)


def moved(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return each image mirrored left-right or not, shifted by up to 3 % and scaled by up to 5 %, black outside.

    Args:
        pixels: `[n, channels, height, width]` in 0…1; nothing is turned upside down: scans are not.
        draws: `[n, 5]` in 0…1, for mirroring, shifts (across, down) and scales (across, down).
    The codes of a prior's copies are kept on disk by the name of the copy: what this returns must stay what it is.
    """
    draws = machine.to_device(draws.float(), pixels.device)
    mirror = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    shift, scale = (draws[:, 1:3] * 2 - 1) * 0.06, 1 + (draws[:, 3:] * 2 - 1) * 0.05
    height, width = pixels.shape[2:]
    # Bit for bit torch's affine_grid, which multiplies matrices: its last bits might depend on the batch.
    across, down = (torch.linspace(-1, 1, side, device=pixels.device) * (side - 1) / side for side in (width, height))
    x = across * (mirror * scale[:, 0])[:, None] + shift[:, :1]
    y = down * scale[:, 1:] + shift[:, 1:]
    shape = (len(pixels), height, width)
    return _sampled(pixels, torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1), "bicubic")
