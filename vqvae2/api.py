"""Images <-> codes -> embeddings, pictures: functions for programs and notebooks of your own.

    from vqvae2 import translate

    vqvae = translate.load("vqvae-128")
    codes = translate.codes_from_images(vqvae, images)
    embeddings = translate.embeddings_from_codes(vqvae, codes)
    images = translate.images_from_codes(vqvae, codes)
    translate.code_pictures(vqvae, codes)["top"].save("top.png")

docs/in-python.md is a worked example. What is returned lies on the CPU, whatever device the model is on. What cannot
be taken is a `UserError` that says what can be.

NOTE The last bits of what a network computes depend on the batch, and a vector may lie that close to two embeddings:
of the codes of 240 slices, 1 in 50,000 was another one by one than 32 at a time (measured, float32 on a CPU). Images
are dealt to batches as `codes.extract` does it, so that with the same `batch` all codes are the same, bit for bit;
`batch=1` gives those of `sample.py --inpaint`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2.common import distributed
from vqvae2.images.dataset import to_bytes
from vqvae2.images.reading import read_picture
from vqvae2.models.autoencoder import TrainedVqvae, Vqvae, load_vqvae
from vqvae2.plots import pictures as plots
from vqvae2.settings.checks import expect

BATCH = 32
"""Images at a time, as evaluate.py has them."""
GAP = 4
"""White pixels between pictures."""
WHITE = {"uint8": 255, "uint16": 65535}


def load(name: str | Path, device: torch.device | str | None = None, results: Path = Path("results")) -> TrainedVqvae:
    """Return a trained VQ-VAE by the name of its run in <results>/*/ or pretrained/, or by its folder.

    Args:
        device: where it computes, such as "cpu". Default: a GPU, CUDA or MPS, where there is one.
    `.model.settings` has `codebook_size`, `embedding_dim`, `downsample` and all else that it was trained with.
    Raises: UserError if there is none, or more than one of this name, or it is a prior.
    """
    return load_vqvae(str(name), distributed.pick_device() if device is None else torch.device(device), "load", results)


@torch.no_grad()
def codes_from_images(vqvae: TrainedVqvae, images: np.ndarray | torch.Tensor | Sequence[str | Path],
                      batch: int = BATCH) -> dict[str, torch.Tensor]:
    """Return each level's codes, int64 `[n, height, width]`: "top", and with two levels "bottom".

    Args:
        images: an array or a tensor `[n, channels, height, width]` or `[n, height, width, channels]`, of a grey model
            `[n, height, width]` too; uint8, uint16 or floats in 0…1. Or a list of image files, which are read as for
            the training, with its --size, --fit and --colours; without --size all are of one size. Any height and
            width will do that the cells of the top codes divide.
        batch: images at a time; see the module's note.
    Example: `[8, 1, 128, 128]` with `downsample=(4, 2)` has top codes `[8, 16, 16]`, bottom codes `[8, 32, 32]`.
    Raises: UserError, naming what was found, for all else.
    """
    pixels = _pixels(vqvae.model, images)
    _check_batch(batch)
    parts = [vqvae.model.encode(_in_0_to_1(some).to(_device(vqvae)))
             for some in np.array_split(pixels, -(-len(pixels) // batch))]
    return {level: torch.cat([part[level] for part in parts]).cpu() for level in vqvae.model.levels}


@torch.no_grad()
def embeddings_from_codes(vqvae: TrainedVqvae, codes: Mapping[str, torch.Tensor | np.ndarray],
                          ) -> dict[str, torch.Tensor]:
    """Return the embedding of each code, float32 `[n, embedding_dim, height, width]` for each level.

    Args:
        codes: as from `codes_from_images`: for each level integers `[n, height, width]` in [0, codebook_size).
    Those of the bottom are what the top's prediction of the features missed (see autoencoder.py), not the features.
    Raises: UserError for codes that this model cannot have.
    """
    return {level: vqvae.model.quantizers[level].lookup(one.to(_device(vqvae))).float().cpu().contiguous()
            for level, one in _codes(vqvae.model, codes).items()}


@torch.no_grad()
def images_from_codes(vqvae: TrainedVqvae, codes: Mapping[str, torch.Tensor | np.ndarray], batch: int = BATCH,
                      ) -> torch.Tensor:
    """Return the images that codes stand for, float32 `[n, channels, height, width]` in 0…1.

    Args:
        codes: as from `codes_from_images`; those of sample.py's and of training's code files will do too.
        batch: images at a time.
    Of the codes of images these are the reconstructions that evaluate.py judges.
    Raises: UserError for codes that this model cannot have.
    """
    maps = _codes(vqvae.model, codes)
    _check_batch(batch)
    made = [vqvae.model.decode({level: one[items].to(_device(vqvae)) for level, one in maps.items()}).float().cpu()
            for items in torch.arange(len(maps["top"])).split(batch)]
    return torch.cat(made).contiguous()


def code_pictures(vqvae: TrainedVqvae, codes: Mapping[str, torch.Tensor | np.ndarray], *, grey: bool = False,
                  columns: int = 8) -> dict[str, Image.Image]:
    """Return for each level a picture of its code maps, `columns` in a row; `.save("top.png")` writes it.

    Args:
        codes: as from `codes_from_images`.
        grey: code k in grey, black for 0 to white for the last, as `imshow(codes, cmap="gray")` shows it. Codes have
            no order, so that like greys mean nothing. Otherwise each code has a colour of its own, always the same.
    Raises: UserError for codes that this model cannot have.
    """
    size, maps = vqvae.model.settings.codebook_size, _codes(vqvae.model, codes)
    if not grey:
        return {level: plots.code_map_picture(one, size, columns) for level, one in maps.items()}
    shades = {level: to_bytes(one[:, None] / (size - 1)) for level, one in maps.items()}
    return {level: plots.image_grid(plots.enlarged(one), columns, GAP) for level, one in shades.items()}


def image_picture(vqvae: TrainedVqvae, images: np.ndarray | torch.Tensor | Sequence[str | Path], *, columns: int = 8,
                  ) -> Image.Image:
    """Return images, in any form that `codes_from_images` takes, as one picture that lies beside `code_pictures`."""
    return plots.image_grid(plots.enlarged(to_bytes(_in_0_to_1(_pixels(vqvae.model, images)))), columns, GAP)


def _device(vqvae: TrainedVqvae) -> torch.device:
    return next(vqvae.model.parameters()).device


def _check_batch(batch: int) -> None:
    expect(batch >= 1, "batch", "at least 1 image", batch, f"The default is {BATCH}.")


def _in_0_to_1(pixels: np.ndarray) -> torch.Tensor:
    """Return some images as float32 in 0…1, laid out in memory as a data set has them."""
    floats = np.array(pixels, np.float32, order="C")  # in another order a convolution may have other last bits
    return torch.from_numpy(floats).div_(WHITE.get(pixels.dtype.name, 1))


def _pixels(model: Vqvae, images: np.ndarray | torch.Tensor | Sequence[str | Path]) -> np.ndarray:
    """Return images as `[n, channels, height, width]`, of the type that they have. Raises: UserError if none fit."""
    if isinstance(images, torch.Tensor):
        images = (images.float() if images.is_floating_point() else images).detach().cpu().numpy()
    elif isinstance(images, Sequence) and images and all(isinstance(one, str | Path) for one in images) \
            and not isinstance(images, str):
        images = _read(model, images)
    expect(isinstance(images, np.ndarray), "images", "an array, a tensor or a list of image files",
           f"a {type(images).__name__}", "Give [path] for one file, numpy.stack(...) of a list of arrays.")
    pixels, channels = images, model.image_channels
    kind = "grey" if channels == 1 else "colour"
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels[:, None]
    # No side of an image is 1 or 3, since a cell is a power of 2: both orders cannot fit at once.
    elif pixels.ndim == 4 and pixels.shape[1] != channels and pixels.shape[3] == channels:
        pixels = pixels.transpose(0, 3, 1, 2)
    forms = f"[n, {channels}, height, width] or [n, height, width, {channels}]"
    advice = "Make a batch of one image with images[None]." if pixels.ndim < 4 else \
        f"Convert them: the model was trained on {kind} images."
    expect(pixels.ndim == 4 and pixels.shape[1] == channels, "images", f"the shape {forms}", list(images.shape), advice)
    cell, (number, _, height, width) = math.prod(model.settings.downsample), pixels.shape
    expect(number > 0, "images", "at least 1", 0, "Check where they come from.")
    expect(height > 0 and width > 0 and height % cell == 0 and width % cell == 0, "images",
           f"a height and a width that {cell} divides", f"{height} by {width}",
           "Resize, cut or pad them; predict.py resizes files.")
    if pixels.dtype.kind == "f":
        least, most = pixels.min(), pixels.max()
        expect(bool(least >= 0 and most <= 1), "images", "floats in 0…1", f"{least:g} to {most:g}",
               "Divide 8-bit values by 255; undo any other scaling: the model does its own.")
    else:
        expect(pixels.dtype.name in WHITE, "images", "uint8, uint16 or floats in 0…1", pixels.dtype,
               'Convert values of 0 to 255 with .astype("uint8").')
    return pixels


def _read(model: Vqvae, paths: Sequence[str | Path]) -> np.ndarray:
    """Return the pixels of image files `[n, channels, height, width]`, all of one size and depth."""
    settings, pictures = model.settings, []
    for path in paths:
        pixels = read_picture(Path(os.path.expanduser(path)), settings.size, settings.fit,
                              "rgb" if model.image_channels == 3 else settings.colours)
        expect(len(pixels) == model.image_channels, str(path), "a grey image, as the model was trained on", "colours",
               "Make it grey first.")
        first = pictures[0] if pictures else pixels
        expect(pixels.shape == first.shape and pixels.dtype == first.dtype, str(path),
               f"{first.dtype} pixels of {first.shape[1]} by {first.shape[2]} as in {paths[0]}",
               f"{pixels.dtype} of {pixels.shape[1]} by {pixels.shape[2]}", "Call once for each kind.")
        pictures.append(pixels)
    return np.stack(pictures)


def _codes(model: Vqvae, codes: Mapping[str, torch.Tensor | np.ndarray]) -> dict[str, torch.Tensor]:
    """Return each level's codes as int64 on the CPU. Raises: UserError for what this model cannot have made."""
    levels, size = model.levels, model.settings.codebook_size
    found = " and ".join(map(str, codes)) or "none" if isinstance(codes, Mapping) else f"a {type(codes).__name__}"
    expect(isinstance(codes, Mapping) and set(codes) == set(levels), "codes",
           f"a dict with the level(s) {' and '.join(levels)}", found, "Give what codes_from_images returns.")
    maps = {level: codes[level].detach().cpu().numpy() if isinstance(codes[level], torch.Tensor) else
            np.asarray(codes[level]) for level in levels}
    for level, one in maps.items():
        what = f'codes["{level}"]'
        expect(one.dtype.kind in "iu", what, "integers", one.dtype, "Codes are numbers of embeddings, not colours.")
        expect(one.ndim == 3 and one.size > 0, what, "the shape [n, height, width], n at least 1", list(one.shape),
               "Make a batch of one map with codes[None].")
        expect(one.min() >= 0 and one.max() < size, what, f"codes of 0 to {size - 1}", f"{one.min()} to {one.max()}",
               "Those of another model mean nothing here; -1 is to be drawn by sample.py --inpaint.")
    if len(levels) == 2:
        number, height, width = maps["top"].shape
        wanted = [number, height * model.settings.downsample[1], width * model.settings.downsample[1]]
        expect(list(maps["bottom"].shape) == wanted, 'codes["bottom"]', f"the shape {wanted} beside top codes of shape "
               f"{list(maps['top'].shape)}", list(maps["bottom"].shape), "Give both levels of the same images.")
    return {level: torch.from_numpy(one.astype(np.int64)) for level, one in maps.items()}
