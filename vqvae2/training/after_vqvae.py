"""A trained VQ-VAE and its images -> what trainings need that begin with its codes: the images and the code maps."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vqvae2.common import distributed, random_numbers
from vqvae2.common.errors import expect
from vqvae2.common.folder_lock import claimed
from vqvae2.common.progress import Bar
from vqvae2.images import augmentation, dataset
from vqvae2.images.listing import given_or_recorded
from vqvae2.images.settings import DataSettings
from vqvae2.models import autoencoder, code_maps, encoding
from vqvae2.runs.settings import as_before
from vqvae2.settings.parsing import path_from_environment
from vqvae2.settings.stored import from_dict
from vqvae2.training.trainer import Trainer


class AfterVqvae(Trainer):
    """The part of a training that reads the VQ-VAE --vqvae, and its images once more, or others of their shape."""

    vqvae: autoencoder.TrainedVqvae
    data: Mapping[str, object]
    """What `Images.describe` says."""

    def load(self) -> dataset.Images:
        """Load the VQ-VAE, and the images that it saw, from --data or else from its folder; set `vqvae` and `data`.

        Raises: UserError if there is no such model, or the images do not fit it.
        """
        self.vqvae = autoencoder.load_vqvae(self.settings.vqvae, self.device, results=self.settings.results)
        # Split by the VQ-VAE's seed too: that decides who is in which split where the images are not split on disk.
        own = from_dict(DataSettings, as_before(self.vqvae.config["settings"]))
        data = distributed.together(lambda: given_or_recorded(self.settings.data, own.data, self.settings.vqvae))
        given = dataclasses.replace(
            self.settings, size=self.settings.size or own.size, split=own.split, seed=own.seed,
            fit=own.fit, colours=own.colours, allow_leak=self.settings.allow_leak or own.allow_leak,
            subject_pattern=self.settings.subject_pattern or own.subject_pattern,
            data=data and path_from_environment(data, "SLICES_PATH", "--data"))
        loaded = dataset.load_images(given, ("train", "validate"))
        expect(len(loaded.splits["train"]) > 0, f"--data {loaded.folder}", "at least 1 training image", 0,
               f"Give the data that --vqvae {self.settings.vqvae} was trained with.")
        expected = tuple(self.vqvae.config["image_shape"])
        expect(loaded.shape == expected, f"--data {loaded.folder}", f"images of shape {expected} as --vqvae "
               f"{self.settings.vqvae} was trained on", loaded.shape, "Give its --data or --size.")
        self.data = loaded.describe(self.config)
        return loaded

    def check_first(self, config: dict, flag: str) -> None:
        """Raise UserError if the weights of --init-from have another form, or learned an unrelated VQ-VAE's codes.

        A VQ-VAE that itself began from other weights keeps the meaning of their codes, about; what learned
        those will do.
        """
        super().check_first(config, flag)
        related = [self.vqvae.hash, *filter(None, [self.vqvae.config.get("init_hash")])]
        expect(config.get("vqvae_hash") in related, flag, f"weights that learned the codes of --vqvae "
               f"{self.settings.vqvae} ({' or '.join(known[:6] for known in related)})",
               str(config.get("vqvae_hash"))[:6], "Begin without --init-from.")

    def codes_of(self, name: str, split: dataset.ImageSet, copy: int = 0,
                 alike: np.ndarray | None = None) -> code_maps.CodeMaps:
        """Return stored code maps, or encode the images now; `copy` above 0 shifts, scales and mirrors them first.

        alike: `[n]`, for each image a number; images with equal numbers are moved alike. Without it: none are.
        """
        path = self.vqvae.folder / "codes" / f"{name}.npz"
        # Only `images_hash` knows the pixels of validation images that no manifest vouches for.
        of_data = self.data["images_hash" if name == "validate" else "data_hash"]
        stored = code_maps.CodeMaps.load(
            path, self.vqvae.hash, of_data, split.names, autoencoder.code_grids(self.vqvae),
            self.vqvae.model.settings.codebook_size, torch.int16)
        if distributed.any_rank(stored is None, self.device):
            with Bar(total=len(split), desc=f"codes of {name}", unit="image", disable=distributed.rank() != 0) as bar:
                change = (lambda pixels, items: augmentation.moved(pixels, random_numbers.uniform(
                    self.settings.seed, f"copy {copy}", (items if alike is None else alike[items])[:, None],
                    np.arange(5)[None]))) if copy else None
                stored = encoding.extract(self.vqvae.model, split, 64,
                                       lambda count: bar.update(count * distributed.world_size()), change, torch.int16)
            distributed.on_rank_0(lambda: self._keep_codes(stored, path, of_data))
        return stored

    def _keep_codes(self, codes: code_maps.CodeMaps, path: Path, of_data: str) -> None:
        """Write code maps, unless another training is just writing the same: then wait until it has."""
        with claimed(path.parent, f"--vqvae {self.settings.vqvae}", "--vqvae", math.inf) as claim:
            claim.remove_left_overs()
            codes.save(path, self.vqvae.hash, of_data)
