"""The MNI152 template, a seed and a subject -> a synthetic T1 scan: the computations of `vqvae2 demo-scans`.

One scan is made as follows. A stationary velocity field (random, plus a flow out of the ventricles that grows with age)
is integrated by scaling and squaring [1]. The resulting deformation bends the tissue probabilities of the template [2].
They are then shifted by random fields in the cortex, and sharpened: an average of 152 people has blurred sulci, one
person has crisp sulci. The tissues get the scanner's intensities, a bias field and Rician noise [3].

1. Arsigny et al. 2006, A Log-Euclidean Framework for Statistics on Diffeomorphisms, MICCAI, section 3.
2. Fonov et al. 2011, Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54.
3. Gudbjartsson and Patz 1995, The Rician distribution of noisy MRI data, MRM 34.
"""

from typing import NamedTuple

import nibabel
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import expit

from vqvae2.commands.demo_scans import Subject
from vqvae2.common.errors import UserError

FIELD_SPACING_MM = 3.0  # of velocities, folds and bias: all are smooth at this scale
FIELD_OF_VIEW_MM = (188.0, 228.0, 200.0)  # towards R, A, S; holds the largest head at the largest tilt
CENTRE_MM = np.array((0.0, -18.0, 6.0))  # of the template's brain

# Lists of lengths 8, 5 and 6: 120 scans pass before a combination comes back.
ORDERS = ("RAS", "LAS", "PIR", "ASL", "LPS", "RSA", "LIA", "SPL")
STORAGES = (("int16", 1.0, 900), ("uint8", 1.0, 150), ("float32", 1.0, 1.0), ("uint16", 1.0, 20000),
            ("int16", 0.125, 300))  # data type, scl_slope, intensity of white matter
ZOOMS_MM = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.25), (0.9, 0.9, 0.9), (1.2, 0.95, 0.95), (1.1, 1.1, 1.1),
            (0.9375, 0.9375, 1.2))


class Atlas(NamedTuple):
    """The template, on a grid whose axes run towards R, A, S with `spacing_mm` between voxels.

    Attributes:
        maps: [6, x, y, z]: log probabilities of CSF, grey and white matter; T1 that tissues do not explain; cortex
            0…1; brain 0…1.
        ventricle_flow: [3, i, j, k] on the grid of fields: flow out of the lateral ventricles; its largest speed is 1.
        origin_mm: [3]: world position of the first voxel of both grids.
    """

    maps: torch.Tensor
    ventricle_flow: torch.Tensor
    origin_mm: torch.Tensor
    spacing_mm: int


def load_atlas(spacing_mm: int = 1) -> Atlas:
    """Return the MNI152 template and its tissue maps, from nilearn's own files.

    Raises: UserError if nilearn is not installed.
    """
    try:  # the only optional dependency, so it is looked for where it is needed
        from nilearn import datasets
    except ImportError:
        raise UserError("nilearn: expected the package that carries the MNI152 template, found none. "
                        "Install it with: pip install -e .[demo]") from None
    template = datasets.load_mni152_template(resolution=spacing_mm)
    t1, grey, white, brain = (image.get_fdata(dtype=np.float32) for image in (template, *(load(resolution=spacing_mm)
                              for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template,
                                           datasets.load_mni152_brain_mask))))
    above = np.arange(brain.shape[2]) > 0  # the template ends inside the brain stem, which would go on down for ever
    brain = (brain > 0) & above
    csf = np.clip(1 - grey - white, 0, 1) * brain
    tissues = np.clip(np.stack([csf, grey, white]), 2e-3, 1)
    tissues /= tissues.sum(0)

    # Thalamus, basal ganglia and stem have no folds, and mix grey with white by nature; the cerebellum's are fine.
    origin = template.affine[:3, 3]
    x, y, z = np.meshgrid(*(o + spacing_mm * np.arange(n) for o, n in zip(origin, t1.shape)), indexing="ij",
                          sparse=True)
    core, stem, cerebellum = (np.hypot(np.hypot(x / right, (y + back) / front), (z + down) / up)
                              for right, back, front, down, up in ((32, 12, 46, -4, 27), (15, 28, 19, 36, 36),
                                                                   (52, 64, 26, 36, 24)))
    cortex = expit(14 * (np.minimum(core, stem) - 1)) * (1 - 0.6 * expit(14 * (1 - cerebellum)))

    # The three numbers are the template's median T1 of CSF, grey and white matter, measured where p > 0.9.
    rest = np.where(brain, t1 - np.tensordot((0.28, 0.65, 0.87), tissues, 1), 0)
    # The average's own blurred folds would shine through the new ones.
    rest = cortex * ndimage.gaussian_filter(rest, 3 / spacing_mm) + (1 - cortex) * rest
    soft_brain = ndimage.gaussian_filter(brain.astype(np.float32), 0.7 / spacing_mm) * above
    maps = np.empty((6, *t1.shape), np.float32)
    maps[:3], maps[3], maps[4], maps[5] = np.log(tissues), rest, cortex, soft_brain

    labels, _ = ndimage.label((csf > 0.5) & (abs(x) < 26) & (y > -50) & (y < 32) & (z > -2) & (z < 32)
                              & ~((abs(x) < 4) & (y < -20)))
    ventricles = np.isin(labels, 1 + np.argsort(np.bincount(labels.flat)[1:])[-2:])
    potential = sum(ndimage.gaussian_filter(ventricles.astype(np.float32), mm / spacing_mm) for mm in (4, 8))
    flow = -np.stack(np.gradient(potential))
    flow /= np.linalg.norm(flow, axis=0).max()
    fields = [int(np.ceil(n * spacing_mm / FIELD_SPACING_MM)) + 1 for n in t1.shape]
    places = torch.from_numpy(np.indices(fields).reshape(3, -1).T * (FIELD_SPACING_MM / spacing_mm)).float()
    return Atlas(torch.from_numpy(maps), sample(torch.from_numpy(flow.astype(np.float32)), places).reshape(3, *fields),
                 torch.from_numpy(origin).float(), spacing_mm)


def sample(maps: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    """Return `maps` [channels, x, y, z] at `voxels` [n, 3] (in voxels, between them too) as [channels, n]; linear."""
    places = (2 * voxels / (torch.tensor(maps.shape[1:]) - 1) - 1).flip(-1)  # grid_sample: -1…1, last axis first
    return torch.nn.functional.grid_sample(maps[None], places[None, None, None], padding_mode="border",
                                           align_corners=True)[0, :, 0, 0]


def random_fields(generator: np.random.Generator, shape: tuple[int, ...], sizes: dict[float, float]) -> torch.Tensor:
    """Return Gaussian random fields [channels, i, j, k] (`shape`) on the grid of fields, mean 0.

    Args:
        sizes: {radius in mm: standard deviation}; fields of these radii are added.
    """
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape[1:-1]),
                                                      np.fft.rfftfreq(shape[-1]), indexing="ij")))
    filters = [(np.exp(-((2 * np.pi * frequency * radius_mm / FIELD_SPACING_MM) ** 2)), deviation)
               for radius_mm, deviation in sizes.items()]
    # Divided by what white noise has left after the filter; the last axis of rfftn is half, mirrored.
    power = sum(gauss * deviation**2 / ((gauss[..., :1].sum() + 2 * gauss[..., 1:].sum()) / np.prod(shape[1:]))
                for gauss, deviation in filters)
    noise = np.fft.rfftn(generator.standard_normal(shape), axes=(1, 2, 3))
    return torch.from_numpy(np.fft.irfftn(noise * np.sqrt(power), shape[1:], axes=(1, 2, 3)).astype(np.float32))


def integrate(velocity_mm: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """Return the displacement in mm after unit time of the flow `velocity_mm`, both [3, i, j, k].

    Source: Arsigny 2006, section 3.3 (scaling and squaring): a flow of 1/2^steps of the time is almost its
    velocity, and a map applied to itself doubles the time. The result is a diffeomorphism.
    """
    grid = torch.from_numpy(np.indices(velocity_mm.shape[1:]).reshape(3, -1).T).float()
    displacement = velocity_mm / (FIELD_SPACING_MM * 2**steps)
    for _ in range(steps):
        further = sample(displacement, grid + displacement.reshape(3, -1).T)
        displacement = displacement + further.reshape_as(displacement)
    return displacement * FIELD_SPACING_MM


def rician(signal: torch.Tensor, deviation: float, generator: np.random.Generator) -> torch.Tensor:
    """Return `signal` [n] with the noise of a magnitude image; `deviation` is that of each of its two channels.

    Source: Gudbjartsson and Patz 1995, equation 1.
    """
    real, imaginary = torch.from_numpy(deviation * generator.standard_normal((2, len(signal)), dtype=np.float32))
    return torch.hypot(signal + real, imaginary)


def ageing(seed: int, subject: Subject, session: int) -> tuple[float, float]:
    """Return how far ventricles are pushed open (mm, negative is closed), and the logit by which sulci widen."""
    generator = np.random.default_rng([seed, subject.number, 1])
    years = (subject.session_days[session] - subject.session_days[0]) / 365
    years_old = np.clip((subject.age + 1.5 * years - 45) / 50, 0, 1.1)
    return (float(np.clip(-3 + 9 * years_old + generator.normal(0, 2), -4, 7.5)),
            float(-0.7 + 2.7 * years_old + generator.normal(0, 0.5)))


def make_warp(atlas: Atlas, seed: int, subject: Subject, session: int) -> torch.Tensor:
    """Return the displacement in mm [3, i, j, k] from a point of the subject's brain to its place in the template."""
    generator, shape = np.random.default_rng([seed, subject.number, 2]), atlas.ventricle_flow.shape
    # The shape of a head is almost the same on both sides; folds are not.
    head = random_fields(generator, shape, {30: 3.8})
    mirrored = head.flip(1) * torch.tensor([-1.0, 1, 1]).reshape(3, 1, 1, 1)
    folds = random_fields(generator, shape, {28: 1.0, 14: 1.5, 7: 1.5})
    # Minus, because the warp leads back into the template: what flows out is to be fetched from within.
    return integrate((head + mirrored) / 2 + folds + -ageing(seed, subject, session)[0] * atlas.ventricle_flow)


def make_affine(seed: int, subject: Subject, session: int) -> np.ndarray:
    """Return [4, 4]: from mm in the scanner to mm of the unbent head (size, shape, tilt and place)."""
    generator = np.random.default_rng([seed, subject.number, 3])
    size = np.clip((1.02 if subject.sex == "M" else 0.97) + generator.normal(0, 0.025), 0.9, 1.08)
    shape = np.exp(np.clip(generator.normal(0, 0.03, 3), -0.05, 0.05))
    pose = np.random.default_rng([seed, subject.number, 4, session])
    turn = Rotation.from_euler("xyz", np.clip(pose.normal(0, 1.8, 3), -4, 4), degrees=True).as_matrix()
    linear = np.diag(1 / np.clip(size * shape, 0.88, 1.1)) @ turn
    return nibabel.affines.from_matvec(
        linear, CENTRE_MM - linear @ (CENTRE_MM + np.clip(pose.normal(0, 2, 3), -4, 4)))


def make_grid(order: str, zooms_mm: tuple[float, ...]) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine [4, 4] of a volume whose indices grow towards `order`, such as LAS."""
    axes = ["LRPAIS".index(letter) // 2 for letter in order]
    shape = tuple(round(FIELD_OF_VIEW_MM[axis] / zoom) for axis, zoom in zip(axes, zooms_mm))
    linear = np.zeros((3, 3))
    linear[axes, range(3)] = [zoom if letter in "RAS" else -zoom for letter, zoom in zip(order, zooms_mm)]
    return shape, nibabel.affines.from_matvec(linear, CENTRE_MM - linear @ ((np.array(shape) - 1) / 2))


def make_scan(atlas: Atlas, seed: int, subject: Subject, session: int, coarseness: float = 1) -> nibabel.Nifti1Image:
    """Return one skull-stripped scan: above 0 in the brain, exactly 0 outside.

    Args:
        coarseness: multiplies the voxel sizes, for quick tests.
    """
    protocol = subject.number - 1 + 3 * session
    dtype, slope, white_level = STORAGES[protocol % len(STORAGES)]
    zooms = tuple(zoom * coarseness for zoom in ZOOMS_MM[protocol % len(ZOOMS_MM)])
    shape, grid = make_grid(ORDERS[protocol % len(ORDERS)], zooms)
    warp = make_warp(atlas, seed, subject, session)
    affine = torch.from_numpy(make_affine(seed, subject, session) @ grid).float()

    def in_template(indices: np.ndarray) -> torch.Tensor:
        unbent = torch.from_numpy(indices).float() @ affine[:3, :3].T + affine[:3, 3] - atlas.origin_mm
        return unbent + sample(warp, unbent / FIELD_SPACING_MM).T

    # Most of a scan is air: every fourth voxel says where it is worth looking.
    few = np.stack(np.meshgrid(*(np.arange(0, n + 3, 4) for n in shape), indexing="ij"), -1)
    near = sample(atlas.maps[5:], in_template(few.reshape(-1, 3)) / atlas.spacing_mm).reshape(few.shape[:3]) > 0.02
    near = np.kron(ndimage.binary_dilation(near.numpy(), np.ones((3, 3, 3))), np.ones((4, 4, 4), bool))
    indices = np.argwhere(near[: shape[0], : shape[1], : shape[2]])
    places = in_template(indices)
    edge = random_fields(np.random.default_rng([seed, subject.number, 5, session]),
                         (1, *warp.shape[1:]), {5: 0.08})  # no two skull strippings are alike
    brain = sample(atlas.maps[5:], places / atlas.spacing_mm)[0] > 0.5 + sample(
        edge, places / FIELD_SPACING_MM)[0].clamp(-0.25, 0.25)
    indices, places = indices[brain.numpy()], places[brain]

    noise = np.random.default_rng([seed, subject.number, 6, session])
    bias = sample(random_fields(noise, (1, *warp.shape[1:]), {45: 0.1}), places / FIELD_SPACING_MM)[0]
    signal = make_signal(atlas, seed, subject, session, places) * bias.exp()
    signal = rician(signal, noise.uniform(0.012, 0.035), noise) * white_level

    volume, values = np.zeros(shape, dtype), signal.numpy() / slope
    # Clipped from below, since rounding must not make holes in the brain.
    volume[tuple(indices.T)] = values.clip(1e-3, 1e9) if dtype == "float32" else values.clip(
        1, np.iinfo(dtype).max).round()
    # With a slope of its own a header makes nibabel write values as they are, so the values are divided above.
    image = nibabel.Nifti1Image(volume, grid)
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(grid, code=1)
    image.set_sform(grid, code=1)
    return image


def make_signal(atlas: Atlas, seed: int, subject: Subject, session: int, places: torch.Tensor) -> torch.Tensor:
    """Return T1 signal [n] at `places` [n, 3] (mm from the template's first voxel); white matter is near 1."""
    logits, rest, cortex = sample(atlas.maps[:5], places / atlas.spacing_mm).split([3, 1, 1])
    generator = np.random.default_rng([seed, subject.number, 7])
    folds = sample(random_fields(generator, (2, *atlas.ventricle_flow.shape[1:]), {4.5: 1.5, 9: 0.7}),
                   places / FIELD_SPACING_MM)
    # CSF against grey and white against grey move apart from each other: new sulci, new gyri.
    shift = torch.stack([folds[0] + ageing(seed, subject, session)[1], torch.zeros_like(folds[0]), folds[1]])
    tissues = torch.softmax(logits * (1.2 + 0.8 * cortex) + shift * cortex, 0)

    # White matter fades with age; the rest is the scanner's contrast. Sessions differ a little.
    visit = np.random.default_rng([seed, subject.number, 8, session])
    grey = np.clip(generator.normal(0.7, 0.03) + 0.0012 * (subject.age - 65) + visit.normal(0, 0.005), 0.6, 0.8)
    csf = np.clip(generator.normal(0.24, 0.035) + visit.normal(0, 0.005), 0.14, 0.34)
    return (torch.tensor([csf, grey, 1.0]).float() @ tissues + rest[0] * 1.1).clamp(min=0.02)
