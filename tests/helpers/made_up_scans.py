"""A number -> that many made-up scans for the page, with thumbnails that differ from each other."""

import numpy as np

from vqvae2.common.names import SPLITS
from vqvae2.slices.page import THUMBNAIL, ShownScan, thumbnail

ODD = ("cut off: 260 mm do not fit into 224 mm (--field-of-view)", "head with skull: the weights have seen none")


def picture(seed: int, size: int = THUMBNAIL) -> np.ndarray:
    """An oval of noise, smoothed so that it is about as hard to pack as a brain, float64 [size, size] in 0…1."""
    draws = np.random.default_rng(seed)
    coarse = draws.uniform(0.2, 1, (size // 4, size // 4)).repeat(4, 0).repeat(4, 1)
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    wide, tall = draws.uniform(0.5, 0.7), draws.uniform(0.65, 0.85)
    smooth = sum(np.roll(coarse, step, axis) for step in range(-2, 3) for axis in (0, 1)) / 10
    return np.clip(smooth + draws.uniform(-0.03, 0.03, (size, size)), 0, 1) * ((x / wide) ** 2 + (y / tall) ** 2 < 1)


def made_up(count: int, planes: tuple[str, ...] = ("axial",), per_subject: int = 1) -> list[ShownScan]:
    """Scans with 300 different pictures; every 50th is marked, and every 10th subject is in test."""
    cells = [thumbnail(picture(seed)) for seed in range(min(count, 300))]
    shown = []
    for number in range(count):
        subject = f"{number // per_subject + 1:04d}"
        name = f"sub-{subject}/ses-{number % per_subject}/anat/sub-{subject}_ses-{number % per_subject}_T1w.nii.gz"
        split = SPLITS[(0, 0, 0, 0, 0, 0, 1, 1, 2, 2)[number // per_subject % 10]]
        shown.append(ShownScan(
            name, subject, str(number % per_subject) if per_subject > 1 else "", "", split,
            "bids" if number % 3 else "plain", "LAS", "sform", "0.8681 x 0.8681 x 1",
            f"{130 + number % 30} x 170 x 130",
            "otsu" if number % 100 == 50 else "zero", "", len(planes),
            tuple(f"{split}/{subject}_{plane}100.png" for plane in planes), planes,
            b"".join(cells[(number + place) % len(cells)] for place in range(len(planes))),
            (ODD[number // 50 % 2],) if number % 50 == 0 else ()))
    return shown
