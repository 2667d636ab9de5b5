"""The config and weights in a folder -> a VQ-VAE: `Vqvae.from_pretrained` and `save_pretrained`."""

from collections.abc import Mapping

import torch

from vqvae2.models.settings import VqvaeSettings
from vqvae2.runs.hub import Pretrained
from vqvae2.settings.parsing import from_dict


class PretrainedVqvae(Pretrained):
    """The part of `Vqvae` that reads it from, and writes it to, folders and the Hugging Face hub."""

    kind = "vqvae"

    @classmethod
    def _from_config(cls, config: dict, _: Mapping[str, torch.Tensor]) -> Pretrained:
        return cls(from_dict(VqvaeSettings, config["settings"]), config["image_shape"][0])
