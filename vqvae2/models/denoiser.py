"""Noisy images -> the codes of clean ones, and clean images: an encoder and a small network beside a trained VQ-VAE.

A VQ-VAE that was trained on clean images has no codes for noise: it spends those that it has on the nearest pattern.
The encoder of a denoiser has the form of the VQ-VAE's own, and began as a copy of it; it was trained on noisy images to
give the codes of the clean ones. Codebooks and decoder are the VQ-VAE's, so that codes mean what they meant, to priors
too.

The picture of the codes lacks the fine detail that no code holds, noise or not. So a second network sees that picture
and the noisy image, and says what of the noisy image is noise (a residual network, as in Zhang 2017 [1]). It was
trained on squared error alone, whose best answer is the mean of all likely images: it blurs what noise hides, and
invents less than one that is trained to look sharp.

[1] Zhang, Zuo, Chen, Meng, Zhang 2017, Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from vqvae2.common.errors import expect
from vqvae2.models.autoencoder import Reconstruction, Vqvae
from vqvae2.models.settings import DecoderSettings, VqvaeSettings
from vqvae2.models.texture_decoder import TextureNet, centred
from vqvae2.runs.config import need
from vqvae2.runs.weights import Pretrained, TrainedModel, load_model
from vqvae2.settings.stored import from_dict

PARTS = ("encoder", "top_encoder", "to_top", "to_bottom")
"""The parts of a VQ-VAE through which images become vectors; those of the top are fewer with one level."""
NETWORK = DecoderSettings(width=48, blocks=5)
SCALE = 0.1
"""What the network says is in this unit, which is about that of noise."""


class Denoiser(Pretrained, nn.Module):
    """The encoder of a VQ-VAE, for noisy images, and the network that finishes what the codes begin.

    Args:
        vqvae: the VQ-VAE of whose form the encoder is; its parts themselves are taken, no copies.
    """

    kind = "denoiser"

    def __init__(self, vqvae: Vqvae):
        super().__init__()
        self.encoder = nn.ModuleDict({name: getattr(vqvae, name) for name in PARTS if hasattr(vqvae, name)})
        self.finish = TextureNet(2 * vqvae.image_channels, vqvae.image_channels, NETWORK, is_timed=False)

    @classmethod
    def from_config(cls, config: dict, tensors: Mapping[str, torch.Tensor]) -> "Denoiser":
        """Return a denoiser of a run's config, whose weights are still to be loaded.

        Raises: UserError if the config is that of no denoiser.
        """
        need(config, "image_shape", "vqvae_hash", "vqvae_settings", "training_images", "training_subjects")
        return cls(Vqvae(from_dict(VqvaeSettings, config["vqvae_settings"]), config["image_shape"][0]))

    def forward(self, images: torch.Tensor,
                vqvae: Vqvae) -> tuple[Reconstruction, dict[str, torch.Tensor], torch.Tensor]:
        """Return what the codes of noisy images give back, the vectors before they were quantised, and clean images.

        Args:
            images: `[batch, channels, height, width]` in 0…1, as are the clean ones, about.
            vqvae: the VQ-VAE, of which codebooks and decoder are taken.
        """
        vectors = vqvae.vectors(images, self.encoder)
        coded = vqvae.reconstructed(vectors)
        seen = torch.cat([centred(images), centred(coded.images.to(images.dtype))], 1)
        return coded, vectors, images + SCALE * self.finish(seen)


def load_denoiser(name: str, vqvae: TrainedModel, flag: str = "--denoise",
                  results: Path = Path("results")) -> TrainedModel:
    """Return the denoiser in the folder `name`, or of that name in results/*/ or pretrained/, on the VQ-VAE's device.

    Raises: UserError if there is none, the folder holds another kind of model, or one of another VQ-VAE.
    """
    loaded = load_model(name, flag, Denoiser.kind, Denoiser.from_config, results, words="a denoiser",
                        advice="Give the name that vqvae2 train-denoiser was run with.")
    learned = loaded.config["vqvae_hash"]
    own = loaded.config["settings"].get("vqvae")
    expect(learned == vqvae.hash, f"{flag} {name}", f"a denoiser that learned the codes of the VQ-VAE given "
           f"({vqvae.hash[:6]})", f"one of {own} ({learned[:6]})", f"Give {own}, or train the denoiser again.")
    loaded.model.to(next(vqvae.model.parameters()).device)
    return loaded
