"""Scans, images or codes <-> codes, embeddings, images, figures: functions for programs and notebooks of your own.

    from vqvae2 import code_pictures, decode, embeddings, encode, load_prior, load_vqvae, sample

    vqvae = load_vqvae("vqvae-128")
    codes = encode(vqvae, images)
    vectors = embeddings(vqvae, codes)
    reconstructions = decode(vqvae, codes)
    code_pictures(vqvae, codes)["top"].save("top.png")
    priors = [load_prior(f"{level}-128", level, vqvae) for level in ("top", "bottom")]
    new_images, their_codes = sample(vqvae, *priors, count=4)

docs/in-python.md is a worked example. Keyword arguments that are not listed are the settings of the command of the
same name, with _ for -: `extract_slices(scans, out, per_scan=4)` is `vqvae2 extract --scans … --out … --per-scan 4`.
Returned tensors are on the CPU, whatever device the model is on. An argument that cannot be used raises a `UserError`,
which says what can be used.

NOTE The last bits of what a network computes depend on the batch, and a vector may be almost equally near to two
embeddings: of the codes of 240 slices, 1 in 50,000 differed between batches of 1 and of 32 (measured, float32 on a
CPU). Images are divided into batches as in `encoding.extract`, so that with the same `batch` all codes are the same,
bit for bit; `batch=1` gives the codes of `vqvae2 sample --inpaint`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2.common import distributed
from vqvae2.common.errors import expect
from vqvae2.common.names import SPLITS
from vqvae2.compression import compressing, decompressing
from vqvae2.compression.settings import CompressSettings, DecompressSettings
from vqvae2.evaluation import prediction, report, whole_scans
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images import dataset
from vqvae2.images.reading import read_picture
from vqvae2.images.settings import DataSettings
from vqvae2.models import autoencoder, texture_decoder
from vqvae2.models.autoencoder import TrainedVqvae
from vqvae2.plots import pictures as plots
from vqvae2.priors import pixel_cnn
from vqvae2.priors.base import Prior
from vqvae2.runs.settings import as_before
from vqvae2.runs.weights import find_model
from vqvae2.sampling import inpainting, sampler
from vqvae2.sampling.settings import SampleSettings
from vqvae2.sampling.volumes import VolumeSampler
from vqvae2.slices import extraction, keras_names
from vqvae2.slices.settings import ExtractSettings

BATCH = 32  # images at a time, as evaluate has them
GAP = 4  # white pixels between pictures
WHITE = {"uint8": 255, "uint16": 65535}
LEVELLED = ("temperature", "top_k", "top_p", "guidance")  # of `vqvae2 sample`: one value for both levels, or two
Pixels = np.ndarray | torch.Tensor | Sequence[str | Path]
"""An array or a tensor `[n, channels, height, width]` or `[n, height, width, channels]`, of a grey model
`[n, height, width]` too; uint8, uint16 or floats in 0…1. Or a list of image files, which are read as for the training,
with its --size, --fit and --colours; without --size all are of one size. Any height and width will do that the cells
of the top codes divide."""
Codes = Mapping[str, torch.Tensor | np.ndarray]
"""For each level, "top" and with two levels "bottom", integers `[n, height, width]` in [0, codebook_size)."""


def extract_slices(scans: str | Path, out: str | Path, **settings: object) -> list[str]:
    """Write slices of the scans in the folder `scans` to the folder `out`; return the lines that the command prints.

    Raises: UserError if a folder or a setting cannot be used, and with `strict=True` at the first unusable scan.
    """
    expect(settings.get("preset") is None, "extract_slices", "settings by their names", "preset",
           "A preset is for command lines: pass what its table [extract] sets, such as per_scan=60.")
    folder, out = Path(os.path.expanduser(scans)), Path(os.path.expanduser(out))
    chosen = ExtractSettings(scans=folder, out=out, **settings)
    extraction.check_out(folder, out)
    if chosen.layout == "keras_png_slices":
        keras_names.refuse_foreign(out)
    return extraction.extract(extraction.find_and_check(folder, chosen), folder, chosen, out)


def load_images(data: str | Path, splits: Sequence[str] = SPLITS, **settings: object) -> dataset.Images:
    """Return the images of a folder in memory.

    Args:
        data: folder that `extract_slices` made; with `dataset="folder"` any folder of pictures.
        splits: the names of the splits that are read: train, validate, test.
    `load_images(data).splits["test"].pixels` is an array `[n, channels, height, width]` that `encode` takes.
    Raises: UserError if the folder has no images, or a subject is in two splits.
    """
    return dataset.load_images(DataSettings(data=Path(data), **settings), tuple(splits))


def load_vqvae(name: str | Path, device: torch.device | str | None = None, results: Path = Path("results"), *,
               decoder: str | Path | None = None, seed: int = 0) -> TrainedVqvae:
    """Return a trained VQ-VAE by its folder, by the name of its run in <results>/*/ or pretrained/, or by its hub id.

    Args:
        device: the device on which the model computes, such as "cpu". Default: a GPU (CUDA or MPS) if there is one.
        decoder: a texture decoder that was trained for this VQ-VAE, by its folder, name or id: what is decoded then has
            invented detail, by random numbers of `seed`.
    `.model.settings` has `codebook_size`, `embedding_dim`, `downsample` and everything else that the model is built
    from; `.config` has the settings and the data of its training.
    Raises: UserError if no model has this name, several have it, or the model is a prior.
    """
    folder = find_model(str(name), "load_vqvae", results)
    vqvae = autoencoder.load_vqvae(str(folder), torch.device(device or distributed.pick_device()), "load_vqvae")
    if decoder is not None:
        texture_decoder.attach(vqvae, str(find_model(str(decoder), "load_vqvae", results)), seed, "load_vqvae")
    return vqvae


def load_prior(name: str | Path, level: str, vqvae: TrainedVqvae, device: torch.device | str | None = None,
               results: Path = Path("results")) -> Prior:
    """Return the trained prior of one level of `vqvae`, in eval mode. Other arguments as for `load_vqvae`.

    Args:
        level: "top" or "bottom".
    Raises: UserError if no prior has this name, or it belongs to another level or to another VQ-VAE.
    """
    folder = find_model(str(name), "load_prior", results)
    return pixel_cnn.load_prior(str(folder), level, vqvae.hash, torch.device(device or distributed.pick_device()))


@torch.no_grad()
def encode(vqvae: TrainedVqvae, images: Pixels, batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Return each level's codes, int64 `[n, height, width]` in [0, codebook_size): "top", with two levels "bottom".

    Args:
        images: see `Pixels`.
        batch: number of images encoded at a time; see the NOTE at the top of this module.
    Example: `[8, 1, 128, 128]` with `downsample=(4, 2)` has top codes `[8, 16, 16]`, bottom codes `[8, 32, 32]`.
    Raises: UserError, which names what was found, for anything else.
    """
    pixels = _pixels(vqvae, images)
    _check_batch(batch)
    parts = [vqvae.model.encode(_in_0_to_1(some).to(_device(vqvae)))
             for some in np.array_split(pixels, -(-len(pixels) // batch))]
    return {level: torch.cat([part[level] for part in parts]).cpu() for level in vqvae.model.levels}


@torch.no_grad()
def embeddings(vqvae: TrainedVqvae, codes: Codes) -> dict[str, torch.Tensor]:
    """Return the embedding of each code, float32 `[n, embedding_dim, height, width]` for each level.

    The bottom's embeddings stand for the difference between the features and the top's prediction of them (see
    autoencoder.py), not for the features themselves.
    Raises: UserError for codes that this model cannot have.
    """
    return {level: vqvae.model.quantizers[level].lookup(maps.to(_device(vqvae))).float().cpu().contiguous()
            for level, maps in _codes(vqvae.model, codes).items()}


@torch.no_grad()
def decode(vqvae: TrainedVqvae, codes: Codes, batch: int = BATCH) -> torch.Tensor:
    """Return the images that codes stand for, float32 `[n, channels, height, width]` in 0…1.

    Args:
        codes: as from `encode` or `sample`, or read from a code file that a command wrote.
        batch: images at a time.
    The images decoded from the codes of `encode` are the reconstructions that evaluate judges.
    Raises: UserError for codes that this model cannot have.
    """
    levels = _codes(vqvae.model, codes)
    _check_batch(batch)
    made = [vqvae.model.decode({level: maps[items].to(_device(vqvae)) for level, maps in levels.items()}).float().cpu()
            for items in torch.arange(len(levels["top"])).split(batch)]
    return torch.cat(made).contiguous()


def sample(vqvae: TrainedVqvae, top: Prior, bottom: Prior | None = None, count: int = 16, **settings: object,
           ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return new images, uint8 `[count, channels, height, width]`, and their codes in the form that `encode` returns.

    Args:
        settings: `seed`, `temperature` and so on of `vqvae2 sample`. One value serves both levels, a tuple of two is
            (top, bottom).
    The images are the same as those of the command, bit for bit.
    Raises: UserError if a prior is missing or a setting cannot be used.
    """
    return _sample(vqvae, top, bottom, count, settings, None)


def sample_volumes(vqvae: TrainedVqvae, top: Prior, bottom: Prior | None = None, count: int = 1, **settings: object,
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Return new brains, uint8 `[count, right, anterior, superior]`, and the matrix `[4, 4]` from voxels to mm.

    Args:
        settings: as for `sample`; and `spacing` and `coherence`.
    The brains are those of `vqvae2 sample --nifti`, bit for bit.
    Raises: UserError if the priors are not told where a slice lies, or a setting cannot be used.
    """
    chosen, priors = _sampling(vqvae, top, bottom, count, {**settings, "nifti": True})
    with sampler.one_thread():
        drawing = VolumeSampler(vqvae, priors, chosen)
        made = [drawing.stack.stacked(volume.slices) for volume in drawing.draw(range(count))]
    return np.stack(made), drawing.stack.affine(vqvae.config["image_shape"][2])


def complete(vqvae: TrainedVqvae, top: Prior, bottom: Prior | None, images: Pixels, mask: str | np.ndarray, *,
             count: int = 1, blend: int = 0, **settings: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images whose part under `mask` is sampled anew, uint8 `[n * count, channels, height, width]`, and their
    codes.

    Args:
        images: see `Pixels`; of the height and width that the VQ-VAE was trained on.
        mask: "left", "right", "upper" or "lower" half of the picture, or booleans `[height, width]`, True where an
            image is sampled anew.
        count: number of completions of each image; the completions of one image follow each other.
        blend: pixels beside the mask over which a completion fades into the original.
        settings: as for `sample`.
    Raises: UserError if images, mask or settings do not fit.
    """
    originals = dataset.to_bytes(_in_0_to_1(_pixels(vqvae, images)))
    shape = tuple(vqvae.config["image_shape"])
    expect(tuple(originals.shape[1:]) == shape, "images", f"the shape {list(shape)} that the VQ-VAE was trained on",
           list(originals.shape[1:]), "Resize, cut or pad them.")
    expect(blend >= 0, "blend", "0 or more pixels", blend, "For example 4.")
    hidden = inpainting.mask_of(mask, shape[1:]) if isinstance(mask, str) else torch.as_tensor(mask)
    expect(hidden.dtype == torch.bool and hidden.shape == shape[1:] and bool(hidden.any()), "mask",
           f"booleans of shape {list(shape[1:])}, at least one True",
           f"{str(hidden.dtype).removeprefix('torch.')} of shape {list(hidden.shape)}", "True is drawn anew.")
    incomplete = inpainting.IncompleteImages(
        [str(number) for number in range(len(originals))], inpainting.encode_visible(originals, hidden, vqvae),
        inpainting.blend_weights(hidden[None], blend), originals, {})
    return _sample(vqvae, top, bottom, count, settings, incomplete)


def evaluate(vqvae: str | Path, out: str | Path, **settings: object) -> report.Evaluation:
    """Judge a VQ-VAE, and its priors if `top` and `bottom` are given; write metrics.json and figures to the folder
    `out`.

    Args:
        vqvae: folder or name of the run, as `top` and `bottom`.
    `.metrics` has the content of metrics.json. The figures are the same as those of `vqvae2 evaluate`.
    Raises: UserError if a model or the data cannot be found, or they do not belong together.
    """
    settings |= {name: Path(settings[name]) for name in ("data", "sampled") if settings.get(name)}
    return report.evaluate(EvaluateSettings(vqvae=str(vqvae), out=Path(out), **settings))


def predict(vqvae: str | Path | Sequence[str | Path], inputs: Sequence[str | Path], out: str | Path,
            **settings: object) -> dict:
    """Send images or scans through a VQ-VAE; write reconstructions, codes and figures to `out`; return metrics.json.

    Args:
        vqvae: folder or name of the run; with `nifti=True` there may be several.
        inputs: images, scans, and folders of them.
        settings: further fields of PredictSettings, such as nifti=True, which writes whole scans as NIfTI files.
    Raises: UserError if something cannot be read.
    """
    names = (vqvae,) if isinstance(vqvae, (str, Path)) else vqvae
    given = prediction.PredictSettings(vqvae=tuple(map(str, names)), input=tuple(map(Path, inputs)), out=Path(out),
                                       **settings)
    return (whole_scans if given.nifti else prediction).predict(given)


def compress(vqvae: str | Path, top: str | Path, bottom: str | Path | None, inputs: Sequence[str | Path],
             out: str | Path, **settings: object) -> dict:
    """Write a small file of each image and each scan to `out`; return the number of files and bytes, and mean figures.

    Args:
        vqvae, top, bottom: folders or names of the runs; `bottom` is None for a VQ-VAE of one level.
        inputs: images, scans, and folders of them.
        settings: further fields of CompressSettings, such as verify=True.
    Raises: UserError if something cannot be read.
    """
    return compressing.compress(CompressSettings(
        vqvae=str(vqvae), top=str(top), bottom=None if bottom is None else str(bottom),
        input=tuple(map(Path, inputs)), out=Path(out), **settings))


def decompress(vqvae: str | Path, top: str | Path, bottom: str | Path | None, inputs: Sequence[str | Path],
               out: str | Path, **settings: object) -> dict:
    """Write the pictures and scans of files of `compress` to `out`; return {"files", "slices", "lost"}.

    "lost" has a row {"file", "slice", "reason"} for whatever could not be decoded; it should be empty. Arguments as for
    `compress`, with the fields of DecompressSettings.
    Raises: UserError if a file that is named is none of `compress`, or was made with other models.
    """
    return decompressing.decompress(DecompressSettings(
        vqvae=str(vqvae), top=str(top), bottom=None if bottom is None else str(bottom),
        input=tuple(map(Path, inputs)), out=Path(out), **settings))


def code_pictures(vqvae: TrainedVqvae, codes: Codes, *, grey: bool = False, columns: int = 8,
                  ) -> dict[str, Image.Image]:
    """Return for each level a picture of its code maps, `columns` in a row; `.save("top.png")` writes it.

    Args:
        grey: code k in grey, black for 0 to white for the last, as `imshow(codes, cmap="gray")` shows it. Codes have no
            order, so similar greys mean nothing. Otherwise each code has a colour of its own, always the same.
    Raises: UserError for codes that this model cannot have.
    """
    size, levels = vqvae.model.settings.codebook_size, _codes(vqvae.model, codes)
    if not grey:
        return {level: plots.code_map_picture(maps, size, columns) for level, maps in levels.items()}
    shades = {level: dataset.to_bytes(maps[:, None] / (size - 1)) for level, maps in levels.items()}
    return {level: plots.image_grid(plots.enlarged(maps), columns, GAP) for level, maps in shades.items()}


def image_picture(vqvae: TrainedVqvae, images: Pixels, *, columns: int = 8) -> Image.Image:
    """Return images (see `Pixels`) as one picture, arranged as in `code_pictures`."""
    return plots.image_grid(plots.enlarged(dataset.to_bytes(_in_0_to_1(_pixels(vqvae, images)))), columns, GAP)


def _sample(vqvae: TrainedVqvae, top: Prior, bottom: Prior | None, count: int, settings: dict,
            incomplete: inpainting.IncompleteImages | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sample as the command `vqvae2 sample` does; see `sample` above."""
    chosen, priors = _sampling(vqvae, top, bottom, count, settings)
    image_sampler = sampler.ImageSampler(vqvae, priors, chosen, incomplete)
    with sampler.one_thread():  # with another number of threads the last bits might be others
        image_sampler.learn()
        made = list(image_sampler.draw(sampler.requests_of(chosen, incomplete)))
    return (torch.stack([image.image for image in made]),
            {level: torch.stack([image.codes[level] for image in made]).long() for level in vqvae.model.levels})


def _sampling(vqvae: TrainedVqvae, top: Prior, bottom: Prior | None, count: int,
              settings: dict) -> tuple[SampleSettings, dict[str, Prior]]:
    """Return the settings of `vqvae2 sample`, and the priors by level. Raises: UserError where they do not fit."""
    settings = {name: value if isinstance(value, tuple) or name not in LEVELLED else (value,)
                for name, value in settings.items()}
    chosen = SampleSettings(vqvae="", top="", out=Path(), count=count, inpaint=None, mask=None, blend=0,
                            **settings)
    priors = {level: prior for level, prior in (("top", top), ("bottom", bottom)) if prior is not None}
    expect(set(priors) == set(vqvae.model.levels), "priors", f"one of each level: {' and '.join(vqvae.model.levels)}",
           " and ".join(priors), "Load them with load_prior.")
    return chosen, priors


def _device(vqvae: TrainedVqvae) -> torch.device:
    return next(vqvae.model.parameters()).device


def _check_batch(batch: int) -> None:
    expect(batch >= 1, "batch", "at least 1 image", batch, f"The default is {BATCH}.")


def _in_0_to_1(pixels: np.ndarray) -> torch.Tensor:
    """Return images as float32 in 0…1, in the memory layout that a data set has."""
    floats = np.array(pixels, np.float32, order="C")  # another layout may change the last bits
    return torch.from_numpy(floats).div_(WHITE.get(pixels.dtype.name, 1))


def _pixels(vqvae: TrainedVqvae, images: Pixels) -> np.ndarray:
    """Return images as `[n, channels, height, width]`, without changing their type. Raises: UserError for anything that
    is not a batch of images."""
    if isinstance(images, torch.Tensor):
        images = (images.float() if images.is_floating_point() else images).detach().cpu().numpy()
    elif isinstance(images, Sequence) and images and all(isinstance(path, str | Path) for path in images) \
            and not isinstance(images, str):
        images = _read(vqvae, images)
    expect(isinstance(images, np.ndarray), "images", "an array, a tensor or a list of image files",
           "an empty list" if isinstance(images, list) and not images else f"a {type(images).__name__}",
           "Give [path] for one file, numpy.stack(...) of a list of arrays.")
    pixels, channels = images, vqvae.model.image_channels
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[:, None]
    # No side of an image is 1 or 3 pixels, since a cell is a power of 2: only one of the two orders can fit.
    elif pixels.ndim == 4 and pixels.shape[1] != channels and pixels.shape[3] == channels:
        pixels = pixels.transpose(0, 3, 1, 2)
    expect(pixels.ndim == 4 and pixels.shape[1] == channels, "images",
           f"the shape [n, {channels}, height, width] or [n, height, width, {channels}]", list(images.shape),
           "Make a batch of one image with images[None]." if pixels.ndim < 4 else
           f"Convert them: the model was trained on {'grey' if channels == 1 else 'colour'} images.")
    cell, (number, _, height, width) = math.prod(vqvae.model.settings.downsample), pixels.shape
    expect(number > 0, "images", "at least 1", 0, "Check where they come from.")
    expect(height > 0 and width > 0 and height % cell == 0 and width % cell == 0, "images",
           f"a height and a width that {cell} divides", f"{height} by {width}",
           "Resize, cut or pad them; vqvae2 predict resizes files.")
    if pixels.dtype.kind == "f":
        least, most = pixels.min(), pixels.max()
        expect(bool(least >= 0 and most <= 1), "images", "floats in 0…1", f"{least:g} to {most:g}",
               "Divide 8-bit values by 255; undo any other scaling: the model does its own.")
    else:
        expect(pixels.dtype.name in WHITE, "images", "uint8, uint16 or floats in 0…1", pixels.dtype,
               'Convert values of 0 to 255 with .astype("uint8").')
    return pixels


def _read(vqvae: TrainedVqvae, paths: Sequence[str | Path]) -> np.ndarray:
    """Return the pixels of image files `[n, channels, height, width]`, all of one size and depth."""
    trained, channels = as_before(vqvae.config["settings"]), vqvae.model.image_channels
    pictures = [read_picture(Path(os.path.expanduser(path)), trained.get("size"), trained["fit"],
                             "rgb" if channels == 3 else trained["colours"]) for path in paths]
    first = pictures[0]
    for path, pixels in zip(paths, pictures):
        expect(len(pixels) == channels, str(path), "a grey image, as the model was trained on", "colours",
               "Make it grey first.")
        expect(pixels.shape == first.shape and pixels.dtype == first.dtype, str(path),
               f"{first.dtype} pixels of {first.shape[1]} by {first.shape[2]} as in {paths[0]}",
               f"{pixels.dtype} of {pixels.shape[1]} by {pixels.shape[2]}", "Call once for each kind.")
    return np.stack(pictures)


def _codes(model: autoencoder.Vqvae, codes: Codes) -> dict[str, torch.Tensor]:
    """Return each level's codes as int64 on the CPU. Raises: UserError for codes that this model cannot have made."""
    levels, size = model.levels, model.settings.codebook_size
    found = " and ".join(map(str, codes)) or "none" if isinstance(codes, Mapping) else f"a {type(codes).__name__}"
    expect(isinstance(codes, Mapping) and set(codes) == set(levels), "codes",
           f"a dict with the level(s) {' and '.join(levels)}", found, "Give what encode returns.")
    maps = {level: codes[level].detach().cpu().numpy() if isinstance(codes[level], torch.Tensor) else
            np.asarray(codes[level]) for level in levels}
    for level, grid in maps.items():
        what = f'codes["{level}"]'
        expect(grid.dtype.kind in "iu", what, "integers", grid.dtype, "Codes are numbers of embeddings, not colours.")
        expect(grid.ndim == 3 and grid.size > 0, what, "the shape [n, height, width], n at least 1", list(grid.shape),
               "Make a batch of one map with codes[None].")
        least, most = grid.min(), grid.max()
        expect(least >= 0 and most < size, what, f"codes of 0 to {size - 1}", f"{least} to {most}",
               "Codes of another model mean nothing here; -1 is to be drawn by vqvae2 sample --inpaint.")
    if len(levels) == 2:
        number, height, width = maps["top"].shape
        wanted = [number, height * model.settings.downsample[1], width * model.settings.downsample[1]]
        expect(list(maps["bottom"].shape) == wanted, 'codes["bottom"]', f"the shape {wanted} beside top codes of shape "
               f"{list(maps['top'].shape)}", list(maps["bottom"].shape), "Give both levels of the same images.")
    return {level: torch.from_numpy(grid.astype(np.int64)) for level, grid in maps.items()}
