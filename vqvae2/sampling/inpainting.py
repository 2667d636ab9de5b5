"""Images and a mask, or code maps with gaps -> which codes are to be drawn, and from drawn codes completed images.

A mask hides pixels. They are set to 0 before an image is encoded, and every code whose cell holds a hidden pixel is to
be drawn (a cell is the square of pixels that a code stands for, such as 4 x 4 for the bottom and 8 x 8 for the top):
nothing of what is hidden gets into a completion. All other codes stay. Example: the left half of 256 x 256 pixels
leaves 64 x 32 of 64 x 64 bottom codes and 32 x 16 of 32 x 32 top codes to be drawn.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vqvae2.common import machine
from vqvae2.common.errors import UserError, expect
from vqvae2.common.files import in_brief
from vqvae2.common.names import SUFFIXES
from vqvae2.images.dataset import to_bytes, unique_names
from vqvae2.images.reading import pictures_in, read_picture
from vqvae2.models.autoencoder import TrainedVqvae, code_grids
from vqvae2.models.code_maps import UNREADABLE, read_arrays
from vqvae2.sampling.settings import CODE_FILE, SampleSettings

HALVES = ("left", "right", "upper", "lower")
GREY = 128
"""The grey of the hidden part in pictures of what was given: black would look like background."""
TO_DRAW = -1
"""The number in a code map where a code is to be drawn."""


@dataclass(frozen=True)
class IncompleteImages:
    """Images that are to be completed.

    Args:
        names: the name of each image's file without the ending; no two are alike.
        codes: the codes of each level, top first, int64 `[n, height, width]` on the CPU; -1 is to be drawn.
        weight: float32 `[n or 1, height, width]`: how much of a pixel is drawn; 1 where it is hidden, 0 where it stays.
        originals: uint8 `[n, channels, height, width]`; None where only codes were given.
        hashes: the hashes of what was given: "images_hash", and "mask_hash" where there is a mask.
    """

    names: list[str]
    codes: dict[str, torch.Tensor]
    weight: torch.Tensor
    originals: torch.Tensor | None
    hashes: dict[str, str]

    def completed(self, item: int, decoded: torch.Tensor) -> torch.Tensor:
        """Return image number `item` with its hidden pixels from `decoded`, both uint8 `[channels, height, width]`."""
        if self.originals is None:
            return decoded
        weight = self._weight(item)
        return (weight * decoded + (1 - weight) * self.originals[item]).round().to(torch.uint8)

    def inputs(self, item: int, decoded: torch.Tensor) -> list[torch.Tensor]:
        """Return what there was of an image, each uint8 `[channels, height, width]`: original and masked.

        Of codes alone there is no original, and what is not hidden is shown from `decoded`.
        """
        shown = decoded if self.originals is None else self.originals[item]
        masked = torch.where(self._weight(item) == 1, torch.full_like(shown, GREY), shown)
        return [masked] if self.originals is None else [shown, masked]

    def _weight(self, item: int) -> torch.Tensor:
        return self.weight[item if len(self.weight) > 1 else 0]


def check(settings: SampleSettings) -> None:
    """Raise UserError where the paths of --inpaint and --mask are not of the right kind; reads no file."""
    _paths(settings.inpaint)
    is_inside = settings.inpaint.is_dir() and settings.out.resolve().is_relative_to(settings.inpaint.resolve())
    expect(not is_inside, f"--out {settings.out}", f"a folder outside of --inpaint {settings.inpaint}", "one in it",
           "Choose another: what is written there would be completed in turn.")
    expect(settings.mask in (None, *HALVES) or Path(os.path.expanduser(settings.mask)).is_file(),
           f"--mask {settings.mask}", f"{', '.join(HALVES)} or an image file", "neither", "Correct the path.")


def load(settings: SampleSettings, vqvae: TrainedVqvae) -> IncompleteImages:
    """Return what --inpaint and --mask name, encoded. Images are encoded one by one: none depends on the others.

    Raises: UserError if files cannot be read, do not fit the VQ-VAE, or leave nothing to be drawn.
    """
    paths = _paths(settings.inpaint)
    if settings.inpaint.suffix == CODE_FILE:
        return _load_codes(settings, vqvae)
    originals = torch.stack([to_bytes(_read(path, settings, vqvae)) for path in paths])
    folder = settings.inpaint if settings.inpaint.is_dir() else settings.inpaint.parent
    names = unique_names([path.relative_to(folder).as_posix() for path in paths])
    hidden = mask_of(settings.mask, originals.shape[2:])
    return IncompleteImages(names, encode_visible(originals, hidden, vqvae),
                            blend_weights(hidden[None], settings.blend), originals,
                            {"images_hash": _hash(names, originals), "mask_hash": _hash([], hidden)})


@torch.no_grad()
def encode_visible(originals: torch.Tensor, hidden: torch.Tensor, vqvae: TrainedVqvae) -> dict[str, torch.Tensor]:
    """Return each level's codes `[n, height, width]` of what is visible, -1 where a code's cell holds a hidden pixel.

    Args:
        originals: uint8 `[n, channels, height, width]`; hidden: bool `[height, width]`.
    """
    device = next(vqvae.model.parameters()).device
    visible = originals.masked_fill(hidden, 0).to(torch.float32).div_(255)
    maps = [vqvae.model.encode(machine.to_device(image[None], device)) for image in visible]
    codes = {level: torch.cat([image[level] for image in maps]).cpu() for level in vqvae.model.levels}
    reached = {level: functional.max_pool2d(hidden[None].float(), hidden.shape[0] // maps.shape[1])[0] > 0
               for level, maps in codes.items()}
    return {level: maps.masked_fill(reached[level], TO_DRAW) for level, maps in codes.items()}


def _paths(given: Path) -> list[Path]:
    """Return the files that --inpaint names. Raises: UserError where there are none."""
    if given.is_file() and given.suffix.lower() in SUFFIXES | {CODE_FILE}:
        return [given]
    found = "a file of another kind" if given.is_file() else "nothing" if not given.is_dir() else "no image in it"
    paths = pictures_in(given) if given.is_dir() else []
    expect(len(paths) > 0, f"--inpaint {given}", f"a folder of images or a code file ({CODE_FILE})", found,
           "Correct the path.")
    return paths


def _read(path: Path, settings: SampleSettings, vqvae: TrainedVqvae) -> torch.Tensor:
    """Return an image `[channels, height, width]` in 0…1 as the VQ-VAE takes it."""
    pixels = read_picture(path)
    shape = tuple(vqvae.config["image_shape"])
    if len(pixels) == 1 and shape[0] == 3:
        pixels = pixels.repeat(3, 0)  # a grey one among images in colour
    expect(pixels.shape == shape, f"--inpaint {path}", f"an image of shape {shape} (channels, height, width) as "
           f"--vqvae {settings.vqvae} was trained on", tuple(pixels.shape),
           f"Make it as the training images were made, of {shape[2]} by {shape[1]} pixels.")
    return torch.from_numpy(pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535))


def mask_of(mask: str, shape: tuple[int, int]) -> torch.Tensor:
    """Return which pixels are hidden, bool `[height, width]`. Raises: UserError if none is, or the size is another."""
    height, width = shape
    if mask in HALVES:
        hidden = torch.zeros(height, width, dtype=torch.bool)
        {"left": hidden[:, :width // 2], "right": hidden[:, width // 2:], "upper": hidden[:height // 2],
         "lower": hidden[height // 2:]}[mask].fill_(True)
        return hidden
    pixels = read_picture(Path(os.path.expanduser(mask)))  # what cannot be seen is black in it, however it is stored
    expect(pixels.shape[1:] == (height, width), f"--mask {mask}", f"the images' size, {width} by {height} pixels",
           f"{pixels.shape[2]} by {pixels.shape[1]}", "Draw the mask on one of the images.")
    hidden = torch.from_numpy(pixels.mean(0) * 2 > (255 if pixels.dtype == np.uint8 else 65535))
    expect(bool(hidden.any()), f"--mask {mask}", "at least one white pixel", "none", "What is white is drawn anew.")
    return hidden


def _load_codes(settings: SampleSettings, vqvae: TrainedVqvae) -> IncompleteImages:
    """Return the maps of a code file, and which pixels have a code that is to be drawn above them.

    Raises: UserError if the file is another, has codes of another VQ-VAE, or leaves nothing to be drawn.
    """
    what, size = f"--inpaint {settings.inpaint}", vqvae.model.settings.codebook_size
    try:
        arrays = read_arrays(settings.inpaint)
        names, made_by = [str(name) for name in arrays["image"]], str(arrays["vqvae_hash"])
    except UNREADABLE as error:
        raise UserError(f"{what}: expected a code file with image, {', '.join(vqvae.model.levels)} and vqvae_hash, "
                        f"found {in_brief(error)}. sample.py and train_pixel_cnn.py write such files.") from None
    expect(made_by == vqvae.hash, what, f"codes of --vqvae {settings.vqvae} ({vqvae.hash[:6]})", made_by[:6],
           "Give the VQ-VAE that made them.")
    unfit = next((name for name, times in Counter(names).items() if times > 1 or "\0" in name), None)
    expect(unfit is None, what, "a name for each image that a file can have, no two alike", repr(unfit), "Rename it.")
    codes = {}
    for level, shape in code_grids(vqvae).items():
        found = tuple(arrays[level].shape) if level in arrays else "none"
        expect(found == (len(names), *shape), what, f"{level} codes of shape {(len(names), *shape)}", found,
               "Make the file again.")
        expect(arrays[level].dtype.kind in "iu", what, f"{level} codes that are integers", arrays[level].dtype,
               "Make the file again.")
        codes[level] = torch.from_numpy(arrays[level].astype(np.int64))
        least, most = (codes[level].min().item(), codes[level].max().item()) if names else (0, 0)
        expect(least >= TO_DRAW and most < size, what, f"{level} codes of 0 to {size - 1}, or -1", f"{least} to {most}",
               "Make the file again.")
    height, width = vqvae.config["image_shape"][1:]
    gaps = [functional.interpolate((maps == TO_DRAW)[:, None].float(), (height, width))[:, 0]
            for maps in codes.values()]
    hidden = torch.stack(gaps).amax(0) > 0
    expect(bool(hidden.any()), what, "at least one code marked -1", "none", "What is -1 is drawn.")
    return IncompleteImages(unique_names(names), codes, hidden.float(), None,
                            {"images_hash": _hash(names, *codes.values())})


def blend_weights(hidden: torch.Tensor, blend: int) -> torch.Tensor:
    """Return float32 `[n, height, width]`: 1 where `hidden` (bool, the same shape), falling to 0 over `blend` pixels.

    The fading is outside of what is hidden: what the hidden pixels were must not show.
    """
    reached = weight = hidden.float()
    for step in range(1, blend + 1):
        further = functional.max_pool2d(reached[None], 3, stride=1, padding=1)[0]
        if torch.equal(further, reached):
            break
        weight = weight + (further - reached) * (1 - step / (blend + 1))
        reached = further
    return weight


def _hash(names: list[str], *tensors: torch.Tensor) -> str:
    """Return the SHA-256 of names and values, 64 hex digits."""
    digest = hashlib.sha256("\n".join(names).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
