"""The weights in pretrained/ belong together, load, and draw brains; a card stands beside each."""

import re
from pathlib import Path

import pytest
import torch

from vqvae2.runs.weights import load_weights
from vqvae2.sampling import sampler

PRETRAINED = Path(__file__).parents[2] / "pretrained"
FOLDERS = sorted(path for path in PRETRAINED.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_has_a_card_and_names_no_place_of_the_machine_that_trained_it(folder):
    assert (folder / "MODEL_CARD.md").read_text().startswith(f"# {folder.name}: ")
    config = load_weights(folder / "model.safetensors")[1]
    assert len(config["training_subjects"]) == 34
    assert re.findall(r"(?<![\w.])/(?:\w+/)+", str(config)) == []


def test_they_belong_together_and_draw_an_outline_on_black():
    """A fifth to a half of a slice is brain in training; one image at a low temperature keeps to that."""
    vqvae, priors = sampler.load_models(*(str(PRETRAINED / name) for name in ("vqvae-128", "top-128", "bottom-128")),
                                        torch.device("cpu"))
    rules = {"top": sampler.SamplingRule(0.9, top_p=0.9), "bottom": sampler.SamplingRule(0.7, top_p=0.9)}
    image, maps = sampler.draw_images(vqvae.model, priors, [0], 0, rules)
    assert {level: tuple(one.shape) for level, one in maps.items()} == {"top": (1, 16, 16), "bottom": (1, 32, 32)}
    assert 0.15 < (image > 0.05).float().mean().item() < 0.5
    assert image[..., :8].max() < 0.05
    assert image.max() > 0.7
