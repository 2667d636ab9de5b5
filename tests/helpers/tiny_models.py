"""Nothing -> folders of tiny models as trainings leave them, with random weights, made in milliseconds."""

from pathlib import Path

import torch

from vqvae2.common import files
from vqvae2.common.errors import UserError
from vqvae2.models.autoencoder import Vqvae
from vqvae2.priors.conditions import Column, as_json
from vqvae2.priors.pixel_cnn import PixelCNN
from vqvae2.runs import weights
from vqvae2.settings.parsing import as_dict
from vqvae2.training.settings import TrainPrior, TrainVqvae

CODES, DIM, SIDE = 6, 4, 16
RUN = {"savename": "tiny", "epochs": 1, "batch": 2}
FACTS = {"global_batch": 2, "data_hash": "d" * 64, "run_id": "abc", "image_shape": [1, SIDE, SIDE],
         "data": {"folder": "slices", "images": {"train": 2, "validate": 1, "test": 1},
                  "subjects": {"train": 2, "validate": 1, "test": 1}, "subjects_known": True, "shared_subjects": 0,
                  "extraction": {"planes": ["axial"], "extent": [0.3, 0.8], "size": SIDE, "field_of_view": 224,
                                 "bits": 8}},
         "training_images": ["0123456789abcdef"], "training_subjects": ["fedcba9876543210"],
         "versions": {"torch": "2.5.0"}, "command": "train_vqvae.py --batch 2"}


def write_vqvae(folder: Path, **more: object) -> Vqvae:
    """A two-level VQ-VAE of 16 x 16 pixels: top codes 2 x 2, bottom codes 4 x 4."""
    torch.manual_seed(0)
    settings = TrainVqvae(**RUN, channels=4, embedding_dim=DIM, residual_channels=2, residual_layers=1,
                          codebook_size=CODES, **more)
    model = Vqvae(settings).eval()
    for quantizer in model.quantizers.values():
        quantizer.codebook.copy_(torch.randn(CODES, DIM))
        quantizer.is_started.fill_(True)
    _write(folder, model, {"kind": "vqvae", "settings": as_dict(settings), **FACTS})
    return model


def write_prior(folder: Path, vqvae_hash: str, level: str = "top") -> PixelCNN:
    """A prior of the tiny VQ-VAE, which is told of a number and of a category."""
    torch.manual_seed(1)
    settings = TrainPrior(**RUN, level=level, vqvae="tiny", channels=4, heads=2, layers=2, attention_every=2)
    columns, shape = (Column("age", (), 50.0, 20.0, 18.0, 90.0), Column("sex", ("F", "M"))), (2, 2)
    top = (torch.randn(CODES, DIM), (2, 2)) if level == "bottom" else (None, None)
    shape = (4, 4) if level == "bottom" else shape
    model = PixelCNN(settings, torch.randn(CODES, DIM), shape, *top, columns).eval()
    _write(folder, model, {"kind": f"{level} prior", "settings": as_dict(settings), **FACTS, "vqvae_hash": vqvae_hash,
                           "shape": list(shape), "top_shape": [2, 2], "columns": as_json(columns)})
    return model


def check_line(error: UserError) -> None:
    """A refusal is one line of bounded length, and says what was expected and what was found."""
    line = str(error)
    assert "\n" not in line, line
    assert len(line) < 1000, line[:2000]
    assert "expected" in line, line
    assert "found" in line, line


def _write(folder: Path, model: torch.nn.Module, config: dict) -> None:
    weights.save_weights(folder / weights.WEIGHTS, model.state_dict(), config)
    files.write_json(folder / weights.CONFIG, config)
