"""Raw brain scans -> a hierarchical VQ-VAE-2, its PixelCNN priors, new images and figures.

The names in `__all__` are the interface for programs and notebooks of your own; docs/in-python.md has examples. Each
name is imported at its first use, so that `import vqvae2` takes no time and does not load torch.
"""

import importlib

__version__ = "0.2.0"

_API = ("load_vqvae", "load_prior", "load_images", "extract_slices", "encode", "decode", "embeddings", "sample",
        "complete", "sample_volumes", "evaluate", "predict", "compress", "decompress", "code_pictures", "image_picture")
_HOMES = {**{name: f"vqvae2.api:{name}" for name in _API}, "Trainer": "vqvae2.training.trainer:Trainer",
          "Vqvae": "vqvae2.models.autoencoder:Vqvae", "PixelCNN": "vqvae2.priors.pixel_cnn:PixelCNN",
          "UserError": "vqvae2.common.errors:UserError"}
"""Each public name -> the module that has it, and its name there."""
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own_name = _HOMES[name].split(":")
    return getattr(importlib.import_module(module), own_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
