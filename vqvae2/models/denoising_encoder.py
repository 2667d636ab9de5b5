"""Noisy images -> the codes of clean ones: a second encoder for a trained VQ-VAE, which else stays as it is.

A VQ-VAE that was trained on clean images has no codes for noise: it spends those that it has on the nearest pattern.
This encoder has the form of the VQ-VAE's own, and began as a copy of it; it was trained on noisy images to give the
vectors of the clean ones. Codebooks and decoder are the VQ-VAE's, so that codes mean what they meant, to priors too.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from vqvae2.common.errors import expect
from vqvae2.models.autoencoder import Vqvae
from vqvae2.models.settings import VqvaeSettings
from vqvae2.runs.config import need
from vqvae2.runs.weights import Pretrained, TrainedModel, load_model
from vqvae2.settings.stored import from_dict

PARTS = ("encoder", "top_encoder", "to_top", "to_bottom")
"""The parts of a VQ-VAE through which images become vectors; those of the middle are lacking with one level."""


class DenoisingEncoder(Pretrained, nn.Module):
    """The encoder of a VQ-VAE, alone.

    Args:
        vqvae: the VQ-VAE, of which the parts themselves are taken, not copies.
        detail: what `noise.estimate` says of what clean training images have and the VQ-VAE's pictures of them lack.
    """

    kind = "encoder"

    def __init__(self, vqvae: Vqvae, detail: float = 0.0):
        super().__init__()
        self.settings = vqvae.settings
        for name in PARTS:
            if hasattr(vqvae, name):
                setattr(self, name, getattr(vqvae, name))
        if self.settings.standardise:
            self.register_buffer("mean", vqvae.mean)
            self.register_buffer("deviation", vqvae.deviation)
        else:
            self.mean, self.deviation = vqvae.mean, vqvae.deviation
        self.register_buffer("detail", torch.tensor(float(detail)))

    @classmethod
    def from_config(cls, config: dict, tensors: Mapping[str, torch.Tensor]) -> "DenoisingEncoder":
        """Return an encoder of a run's config, whose weights are still to be loaded.

        Raises: UserError if the config is that of no such encoder.
        """
        need(config, "image_shape", "vqvae_hash", "vqvae_settings", "training_images", "training_subjects")
        return cls(Vqvae(from_dict(VqvaeSettings, config["vqvae_settings"]), config["image_shape"][0]))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what `Vqvae.vectors` returns, of images `[batch, channels, height, width]` in 0…1."""
        return Vqvae.vectors(self, images)


def attach(vqvae: TrainedModel, name: str | None, flag: str = "--denoise",
           results: Path = Path("results")) -> TrainedModel | None:
    """Let a VQ-VAE encode by the encoder in the folder `name`, or of that name in results/*/ or pretrained/; return
    the encoder. Do nothing where `name` is None.

    Raises: UserError if there is none, the folder holds another kind of model, or one of another VQ-VAE.
    """
    if name is None:
        return None
    loaded = load_model(name, flag, DenoisingEncoder.kind, DenoisingEncoder.from_config, results,
                        words="an encoder of noisy images", advice="Give the name that vqvae2 train-encoder was run "
                        "with.")
    learned = loaded.config["vqvae_hash"]
    own = loaded.config["settings"].get("vqvae")
    expect(learned == vqvae.hash, f"{flag} {name}", f"an encoder that learned the codes of the VQ-VAE given "
           f"({vqvae.hash[:6]})", f"one of {own} ({learned[:6]})", f"Give {own}, or train the encoder again.")
    loaded.model.to(next(vqvae.model.parameters()).device)
    for part, network in loaded.model.named_children():
        setattr(vqvae.model, part, network)
    return loaded
