"""MNI152 template -> synthetic T1 scans of different people, laid out like OASIS-3, without any download.

    python make_demo_scans.py --out demo_scans
    python make_demo_scans.py --out demo_scans --subjects 60 --seed 1

24 subjects (28 scans, every sixth subject has two sessions) take about a minute on two cores and 90 MB.
The tree is that of OASIS-3 in BIDS, so `extract_slices.py --scans demo_scans` reads it like the real one:

    demo_scans/dataset_description.json  README  participants.tsv (participant_id, age, sex)
    demo_scans/sub-OAS30001/ses-d0189/anat/sub-OAS30001_ses-d0189_T1w.nii.gz

The scans are synthetic and good for trying the software only: nothing about people can be learned from them.
Each is the template that nilearn carries (`pip install -e .[demo]`), bent by a diffeomorphism of its own, with
folds, ventricles, atrophy, contrast, bias field and noise of its own, and stored with one of several axis
orders, data types and voxel sizes. Equal seeds give equal files, and a subject does not depend on --subjects.

How one scan comes about: a stationary velocity field (random, plus a flow out of the ventricles that grows with
age) is integrated by scaling and squaring [1]. Tissue probabilities of the template [2] are bent by it, shifted
by random fields where cortex is, and sharpened: an average of 152 people has blurred sulci, one person has
crisp ones. The tissues get the scanner's intensities, a bias field and Rician noise [3].

1. Arsigny et al. 2006, A Log-Euclidean Framework for Statistics on Diffeomorphisms, MICCAI, section 3.
2. Fonov et al. 2011, Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 54.
3. Gudbjartsson and Patz 1995, The Rician distribution of noisy MRI data, MRM 34.
"""

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import expit
from tqdm import tqdm

from vqvae2.common.errors import UserError
from vqvae2.settings.checks import SEED, Checked, expect
from vqvae2.settings.parsing import parse


@dataclass(frozen=True, kw_only=True)
class DemoScansSettings(Checked):
    """Settings of make_demo_scans.py."""

    out: Path
    """Folder that receives the BIDS tree."""
    subjects: int = 24
    """Number of subjects; every sixth has two sessions."""
    seed: int = 0
    """Equal seeds give equal scans."""

    RULES = (SEED, ("subjects", lambda subjects: subjects >= 1, "at least 1", "Give a larger number."))


NAME = "Synthetic demonstration scans (MNI152 template, bent)"
README = """These scans are synthetic. No person was scanned.

make_demo_scans.py of vqvae2-brain-mri bent the MNI152 template (ICBM 2009a, Fonov et al. 2011, in the copy that
nilearn carries) into people that do not exist; names and folders only follow the pattern of OASIS-3. Ages, sexes
and sessions are made up. Use the scans to try the software, and for nothing that is said about people.
"""
SESSIONS_EVERY = 6
FIELD_SPACING_MM = 3.0  # of velocities, folds and bias: all are smooth at this scale
FIELD_OF_VIEW_MM = (188.0, 228.0, 200.0)  # towards R, A, S; holds the largest head at the largest tilt
CENTRE_MM = (0.0, -18.0, 6.0)  # of the template's brain
TISSUES_OF_TEMPLATE = (0.28, 0.65, 0.87)  # median T1 of its CSF, grey and white matter, measured where p > 0.9

# Lists of lengths 8, 5 and 6: 120 scans pass before a combination comes back.
ORDERS = ("RAS", "LAS", "PIR", "ASL", "LPS", "RSA", "LIA", "SPL")
STORAGES = (("int16", 1.0, 900), ("uint8", 1.0, 150), ("float32", 1.0, 1.0), ("uint16", 1.0, 20000),
            ("int16", 0.125, 300))  # data type, scl_slope, intensity of white matter
ZOOMS_MM = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.25), (0.9, 0.9, 0.9), (1.2, 0.95, 0.95), (1.1, 1.1, 1.1),
            (0.9375, 0.9375, 1.2))


@dataclass(frozen=True)
class Atlas:
    """The template, on a grid whose axes run towards R, A, S with `spacing_mm` between voxels."""

    maps: torch.Tensor
    """[6, x, y, z]: log probabilities of CSF, grey, white; T1 that tissues do not explain; cortex 0…1; brain 0…1."""
    ventricle_flow: torch.Tensor
    """[3, i, j, k] on the grid of fields: flow out of the lateral ventricles; its largest speed is 1."""
    origin_mm: torch.Tensor
    """[3]: world position of the first voxel of both grids."""
    spacing_mm: int


@dataclass(frozen=True)
class Subject:
    """What stays the same between a subject's sessions."""

    number: int
    age: int
    sex: str
    session_days: tuple[int, ...]

    @property
    def name(self) -> str:
        """The BIDS name."""
        return f"sub-OAS3{self.number:04d}"


def load_atlas(spacing_mm: int = 1) -> Atlas:
    """Return the MNI152 template and its tissue maps, from nilearn's own files.

    Raises: UserError if nilearn is not installed.
    """
    try:  # the only optional dependency, so it is looked for where it is needed
        from nilearn import datasets
    except ImportError:
        raise UserError("nilearn: expected the package that carries the MNI152 template, found none. "
                        "Install it with: pip install -e .[demo]") from None
    image = datasets.load_mni152_template(resolution=spacing_mm)
    t1 = image.get_fdata(dtype=np.float32)
    grey = datasets.load_mni152_gm_template(resolution=spacing_mm).get_fdata(dtype=np.float32)
    white = datasets.load_mni152_wm_template(resolution=spacing_mm).get_fdata(dtype=np.float32)
    brain = datasets.load_mni152_brain_mask(resolution=spacing_mm).get_fdata(dtype=np.float32) > 0
    # The template ends inside the brain stem; without this the stem would go on down for ever.
    brain[:, :, 0] = False
    csf = np.clip(1 - grey - white, 0, 1) * brain
    tissues = np.clip(np.stack([csf, grey, white]), 2e-3, 1)
    tissues /= tissues.sum(0)

    # Thalamus, basal ganglia and stem have no folds, and mix grey with white by nature; the cerebellum's are fine.
    origin = image.affine[:3, 3]
    x, y, z = np.meshgrid(*(o + spacing_mm * np.arange(n) for o, n in zip(origin, t1.shape)), indexing="ij")
    core = np.hypot(np.hypot(x / 32, (y + 12) / 46), (z - 4) / 27)
    stem = np.hypot(np.hypot(x / 15, (y + 28) / 19), (z + 36) / 36)
    cerebellum = np.hypot(np.hypot(x / 52, (y + 64) / 26), (z + 36) / 24)
    cortex = expit(14 * (np.minimum(core, stem) - 1)) * (1 - 0.6 * expit(14 * (1 - cerebellum)))

    rest = np.where(brain, t1 - np.tensordot(TISSUES_OF_TEMPLATE, tissues, 1), 0)
    # The average's own blurred folds would shine through the new ones.
    rest = cortex * ndimage.gaussian_filter(rest, 3 / spacing_mm) + (1 - cortex) * rest
    soft_brain = ndimage.gaussian_filter(brain.astype(np.float32), 0.7 / spacing_mm)
    soft_brain[:, :, 0] = 0
    maps = np.stack([*np.log(tissues), rest, cortex, soft_brain]).astype(np.float32)

    inside = (csf > 0.5) & (abs(x) < 26) & (y > -50) & (y < 32) & (z > -2) & (z < 32) & ~((abs(x) < 4) & (y < -20))
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.flat)[1:]
    ventricles = np.isin(labels, 1 + np.argsort(sizes)[-2:]) if len(sizes) else inside
    potential = sum(ndimage.gaussian_filter(ventricles.astype(np.float32), mm / spacing_mm) for mm in (4, 8))
    flow = -np.stack(np.gradient(potential))
    flow /= np.linalg.norm(flow, axis=0).max()
    fields = [int(np.ceil(n * spacing_mm / FIELD_SPACING_MM)) + 1 for n in t1.shape]
    places = torch.from_numpy(np.indices(fields).reshape(3, -1).T * (FIELD_SPACING_MM / spacing_mm)).float()
    flow = sample(torch.from_numpy(flow.astype(np.float32)), places).reshape(3, *fields)
    return Atlas(torch.from_numpy(maps), flow, torch.from_numpy(origin).float(), spacing_mm)


def sample(maps: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    """Return `maps` [channels, x, y, z] at `voxels` [n, 3] (in voxels, between them too) as [channels, n]; linear."""
    largest = torch.tensor(maps.shape[1:]) - 1
    places = (2 * voxels / largest - 1).flip(-1)  # grid_sample wants -1…1, last axis first
    return F.grid_sample(maps[None], places[None, None, None], padding_mode="border", align_corners=True)[0, :, 0, 0]


def random_fields(generator: np.random.Generator, shape: tuple[int, ...], sizes: dict[float, float]) -> torch.Tensor:
    """Return Gaussian random fields [channels, i, j, k] (`shape`) on the grid of fields, mean 0.

    Args:
        sizes: {radius in mm: standard deviation}; fields of these radii are added.
    """
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape[1:-1]),
                                                      np.fft.rfftfreq(shape[-1]), indexing="ij")))
    power = 0.0
    for radius_mm, deviation in sizes.items():
        gauss = np.exp(-((2 * np.pi * frequency * radius_mm / FIELD_SPACING_MM) ** 2))
        # What white noise has left after the filter; the last axis of rfftn is half, mirrored.
        left = (gauss[..., :1].sum() + 2 * gauss[..., 1:].sum()) / np.prod(shape[1:])
        power = power + gauss * deviation**2 / left
    noise = np.fft.rfftn(generator.standard_normal(shape), axes=(1, 2, 3))
    return torch.from_numpy(np.fft.irfftn(noise * np.sqrt(power), shape[1:], axes=(1, 2, 3)).astype(np.float32))


def integrate(velocity_mm: torch.Tensor, steps: int = 7) -> torch.Tensor:
    """Return the displacement in mm after unit time of the flow `velocity_mm`, both [3, i, j, k].

    Source: Arsigny 2006, section 3.3 (scaling and squaring): a flow of 1/2^steps of the time is almost its
    velocity, and a map applied to itself doubles the time. The result is a diffeomorphism.
    """
    shape = velocity_mm.shape[1:]
    grid = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).reshape(3, -1).T.float()
    displacement = velocity_mm / (FIELD_SPACING_MM * 2**steps)
    for _ in range(steps):
        displacement = displacement + sample(displacement, grid + displacement.reshape(3, -1).T).reshape(3, *shape)
    return displacement * FIELD_SPACING_MM


def rician(signal: torch.Tensor, deviation: float, generator: np.random.Generator) -> torch.Tensor:
    """Return `signal` [n] with the noise of a magnitude image; `deviation` is that of each of its two channels.

    Source: Gudbjartsson and Patz 1995, equation 1.
    """
    real, imaginary = torch.from_numpy(deviation * generator.standard_normal((2, len(signal)), dtype=np.float32))
    return torch.hypot(signal + real, imaginary)


def make_subject(seed: int, number: int) -> Subject:
    """Return subject `number` (from 1): age 42…95 in years, sex M or F, and days of its sessions."""
    generator = np.random.default_rng([seed, number, 0])
    # Names of files depend on the number only, so that another seed overwrites them and leaves nothing stale.
    days = np.random.default_rng(number).integers((0, 700), (400, 2000))
    sessions = tuple(int(day) for day in days[: 2 if number % SESSIONS_EVERY == 0 else 1])
    return Subject(number, int(generator.integers(42, 96)), "MF"[int(generator.integers(2))], sessions)


def ageing(seed: int, subject: Subject, session: int) -> tuple[float, float]:
    """Return how far ventricles are pushed open (mm, negative is closed), and the logit by which sulci widen."""
    generator = np.random.default_rng([seed, subject.number, 1])
    years = (subject.session_days[session] - subject.session_days[0]) / 365
    years_old = np.clip((subject.age + 1.5 * years - 45) / 50, 0, 1.1)
    ventricles_mm = np.clip(-3 + 9 * years_old + generator.normal(0, 2), -4, 7.5)
    return float(ventricles_mm), float(-0.7 + 2.7 * years_old + generator.normal(0, 0.5))


def make_warp(atlas: Atlas, seed: int, subject: Subject, session: int) -> torch.Tensor:
    """Return the displacement in mm [3, i, j, k] from a point of the subject's brain to its place in the template."""
    generator = np.random.default_rng([seed, subject.number, 2])
    shape = tuple(atlas.ventricle_flow.shape)
    # The shape of a head is almost the same on both sides; folds are not.
    head = random_fields(generator, shape, {30: 3.8})
    mirrored = head.flip(1) * torch.tensor([-1.0, 1, 1]).reshape(3, 1, 1, 1)
    folds = random_fields(generator, shape, {28: 1.0, 14: 1.5, 7: 1.5})
    # Minus, because the warp leads back into the template: what flows out is to be fetched from within.
    ventricles = -ageing(seed, subject, session)[0] * atlas.ventricle_flow
    return integrate((head + mirrored) / 2 + folds + ventricles)


def make_affine(seed: int, subject: Subject, session: int) -> np.ndarray:
    """Return [4, 4]: from mm in the scanner to mm of the unbent head (size, shape, tilt and place)."""
    generator = np.random.default_rng([seed, subject.number, 3])
    size = np.clip((1.02 if subject.sex == "M" else 0.97) + generator.normal(0, 0.025), 0.9, 1.08)
    shape = np.exp(np.clip(generator.normal(0, 0.03, 3), -0.05, 0.05))
    pose = np.random.default_rng([seed, subject.number, 4, session])
    turn = Rotation.from_euler("xyz", np.clip(pose.normal(0, 1.8, 3), -4, 4), degrees=True).as_matrix()
    linear = np.diag(1 / np.clip(size * shape, 0.88, 1.1)) @ turn
    shift = np.array(CENTRE_MM) - linear @ (np.array(CENTRE_MM) + np.clip(pose.normal(0, 2, 3), -4, 4))
    return nibabel.affines.from_matvec(linear, shift)


def make_grid(order: str, zooms_mm: tuple[float, ...]) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine [4, 4] of a volume whose indices grow towards `order`, such as LAS."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    shape = []
    for axis, (letter, zoom) in enumerate(zip(order, zooms_mm)):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[world, axis] = zoom if letter in "RAS" else -zoom
        shape.append(round(FIELD_OF_VIEW_MM[world] / zoom))
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return tuple(shape), affine


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
    near = ndimage.binary_dilation(near.numpy(), np.ones((3, 3, 3)))
    near = near.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]]
    indices = np.argwhere(near)
    places = in_template(indices)
    edge = random_fields(np.random.default_rng([seed, subject.number, 5, session]),
                         (1, *warp.shape[1:]), {5: 0.08})  # no two skull strippings are alike
    strict = 0.5 + sample(edge, places / FIELD_SPACING_MM)[0].clamp(-0.25, 0.25)
    brain = sample(atlas.maps[5:], places / atlas.spacing_mm)[0] > strict
    indices, places = indices[brain.numpy()], places[brain]

    signal = make_signal(atlas, seed, subject, session, places)
    noise = np.random.default_rng([seed, subject.number, 6, session])
    bias = random_fields(noise, (1, *warp.shape[1:]), {45: 0.1})
    signal = signal * sample(bias, places / FIELD_SPACING_MM)[0].exp()
    signal = rician(signal, noise.uniform(0.012, 0.035), noise) * white_level

    volume = np.zeros(shape, np.float32)
    largest = 1e9 if dtype == "float32" else np.iinfo(dtype).max
    smallest = 1e-3 if dtype == "float32" else 1  # rounding must not make holes in the brain
    volume[tuple(indices.T)] = (signal.numpy() / slope).clip(smallest, largest)
    stored = volume if dtype == "float32" else volume.round()
    # With a slope of its own a header makes nibabel write values as they are, so these are divided above.
    image = nibabel.Nifti1Image(stored.astype(dtype), grid)
    image.set_data_dtype(dtype)
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
    white = 1.0
    grey = np.clip(generator.normal(0.7, 0.03) + 0.0012 * (subject.age - 65) + visit.normal(0, 0.005), 0.6, 0.8)
    csf = np.clip(generator.normal(0.24, 0.035) + visit.normal(0, 0.005), 0.14, 0.34)
    levels = torch.tensor([csf, grey, white]).float()
    return (levels @ tissues + rest[0] * 1.1).clamp(min=0.02)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` so that it is there whole or not at all, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def check_out(out: Path, subjects: list[Subject]) -> None:
    """Raise UserError unless `out` is absent, empty, or holds scans of this script that these will overwrite."""
    expect(not out.exists() or out.is_dir(), f"--out {out}", "a folder", "a file", "Give --out a new folder.")
    found = sorted(path.name for path in out.glob("[!.]*"))
    description = out / "dataset_description.json"
    # Never among real scans: they could not be told apart later.
    ours = not found or (description.is_file() and NAME in description.read_text(errors="replace"))
    expect(ours, f"--out {out}", "an empty folder or earlier demo scans", ", ".join(found[:3]),
           "Give --out a new folder.")
    others = sorted({name for name in found if name.startswith("sub-")} - {subject.name for subject in subjects})
    expect(not others, f"--out {out}", f"at most the {len(subjects)} subject(s) to be made",
           f"{', '.join(others[:3])} of an earlier run", "Give a larger --subjects, or another --out.")


def write_scans(settings: DemoScansSettings, subjects: list[Subject], atlas: Atlas, coarseness: float = 1) -> None:
    """Write the whole BIDS tree into a folder that `check_out` has passed; earlier files are overwritten."""
    description = {"Name": NAME, "BIDSVersion": "1.8.0", "DatasetType": "raw",
                   "GeneratedBy": [{"Name": "make_demo_scans.py", "Description": f"--seed {settings.seed}"}]}
    # First, so that a run that was stopped half-way is known as ours.
    write_atomically(settings.out / "dataset_description.json", (json.dumps(description, indent=2) + "\n").encode())
    write_atomically(settings.out / "README", README.encode())
    rows = ["participant_id\tage\tsex", *(f"{s.name}\t{s.age}\t{s.sex}" for s in subjects)]
    write_atomically(settings.out / "participants.tsv", ("\n".join(rows) + "\n").encode())

    def write_scan(subject: Subject, session: int) -> None:
        stem = f"{subject.name}_ses-d{subject.session_days[session]:04d}"
        path = settings.out / subject.name / stem.split("_")[1] / "anat" / f"{stem}_T1w.nii.gz"
        scan = make_scan(atlas, settings.seed, subject, session, coarseness)
        write_atomically(path, gzip.compress(scan.to_bytes(), compresslevel=1, mtime=0))

    visits = [(subject, session) for subject in subjects for session in range(len(subject.session_days))]
    # NumPy, torch and zlib let go of the interpreter while they work, so threads are enough.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in tqdm(pool.map(write_scan, *zip(*visits)), total=len(visits), desc="demo scans", unit="scan"):
            pass


def main(arguments: list[str] | None = None) -> None:
    """Make the scans that the command line asks for."""
    settings = parse(DemoScansSettings, __doc__, arguments)
    expect(settings.seed >= 0, "--seed", "0 or more", settings.seed, "The default is 0.")
    subjects = [make_subject(settings.seed, number) for number in range(1, settings.subjects + 1)]
    check_out(settings.out, subjects)
    torch.set_num_threads(1)  # scans are made side by side, and sums must not depend on the number of cores
    write_scans(settings, subjects, load_atlas())
