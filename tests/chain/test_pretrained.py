"""The weights in pretrained/ belong together, load, and draw brains; a card stands beside each."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from vqvae2 import PixelCNN, Vqvae, api
from vqvae2.images.dataset import to_bytes
from vqvae2.metrics import noise, texture
from vqvae2.models.denoiser import load_denoiser
from vqvae2.runs.weights import load_weights
from vqvae2.sampling import sampler

PRETRAINED = Path(__file__).parents[2] / "pretrained"
NETWORK = Path(__file__).parents[2] / "vqvae2" / "evaluation" / "network"
FOLDERS = sorted(path for path in PRETRAINED.iterdir() if path.is_dir())
JUDGED = [path for path in FOLDERS if path.name != "lossless" and "denoiser" not in path.name]
"""Those whose figures evaluate.py has measured."""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_has_a_card_and_names_no_place_of_the_machine_that_trained_it(folder):
    assert f"\n---\n\n# {folder.name}: " in (folder / "README.md").read_text()
    config = load_weights(folder / "model.safetensors")[1]
    assert len(config["training_subjects"]) == 34
    said = str(config | {"image_marks": ""})  # base64, which has slashes too
    assert re.findall(r"(?<![\w.])/(?:\w+/)+", said) == []


def head_of(folder):
    """The YAML at the beginning of a card."""
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


@pytest.mark.parametrize("folder", [*FOLDERS, NETWORK], ids=lambda path: path.name)
def test_each_card_opens_with_a_head_for_the_hub(folder):
    head = head_of(folder)
    assert (head["license"], head["datasets"], head["library_name"]) == ("mit", ["ds002748"], "vqvae2")
    assert {"brain-mri", "medical-imaging"} < set(head["tags"])


@pytest.mark.parametrize("folder", JUDGED, ids=lambda path: path.name)
def test_the_figures_in_a_head_are_those_of_metrics_json(folder):
    what, size = folder.name.split("-")
    judged = folder if what == "decoder" else PRETRAINED / f"vqvae-{size}"
    report = json.loads((judged / "metrics.json").read_text())
    full = report["reconstruction"]["full"]
    expected = {name: figure["mean"] for name, figure in full.items()} if what in ("vqvae", "decoder") else \
        {"bits_per_code": report["priors"][what]["bits_per_code"]}
    (entry,) = head_of(folder)["model-index"]
    (result,) = entry["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == expected
    assert (entry["name"], result["dataset"]["split"]) == (folder.name, report["split"])


@pytest.mark.parametrize(("name", "kind"), [("vqvae-64", Vqvae), ("top-64", PixelCNN), ("bottom-64", PixelCNN)])
def test_they_load_as_from_the_hub_by_name_and_by_folder_and_are_saved_as_they_are(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(PRETRAINED.parent)
    for source in (name, PRETRAINED / name):
        model = kind.from_pretrained(source)
        assert isinstance(model, kind)
        assert not model.training
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == json.loads(
        (PRETRAINED / name / "config.json").read_text())
    again = kind.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("size", "bands", "most"), [(64, slice(3, 4), 0.03), (128, slice(5, 7), 0.02)])
def test_the_texture_decoder_brings_back_the_fine_detail_that_soft_images_lack(size, bands, most):
    """Power at 24 to 32 and at 40 to 56 cycles a picture; the cards have the figures of real slices."""
    soft, sharp = (api.load_vqvae(PRETRAINED / f"vqvae-{size}", "cpu", decoder=decoder)
                   for decoder in (None, PRETRAINED / f"decoder-{size}"))
    _, priors = sampler.load_models(*(str(PRETRAINED / f"{what}-{size}") for what in ("vqvae", "top", "bottom")),
                                    torch.device("cpu"))
    _, codes = sampler.draw_images(soft.model, priors, [0], 0, {level: sampler.SamplingRule() for level in priors})
    images = [api.decode(model, codes) for model in (soft, sharp)]
    powers = [texture.band_powers(to_bytes(image))[0] for image in images]
    assert (powers[1][bands] > 3 * powers[0][bands]).all()
    assert abs(images[1] - images[0]).mean() < most


def test_they_belong_together_and_draw_an_outline_on_black():
    """A fifth to a half of a slice is brain in training; one image at a low temperature keeps to that."""
    vqvae, priors = sampler.load_models(*(str(PRETRAINED / name) for name in ("vqvae-128", "top-128", "bottom-128")),
                                        torch.device("cpu"))
    rules = {"top": sampler.SamplingRule(0.9, top_p=0.9), "bottom": sampler.SamplingRule(0.7, top_p=0.9)}
    image, maps = sampler.draw_images(vqvae.model, priors, [0], 0, rules)
    assert {level: tuple(codes.shape) for level, codes in maps.items()} == {"top": (1, 16, 16), "bottom": (1, 32, 32)}
    assert 0.15 < (image > 0.05).float().mean().item() < 0.5
    assert image[..., :8].max() < 0.05
    assert image.max() > 0.7


def test_the_denoiser_gives_a_noisy_image_its_codes_and_its_pixels_back():
    vqvae, priors = sampler.load_models(*(str(PRETRAINED / name) for name in ("vqvae-128", "top-128", "bottom-128")),
                                        torch.device("cpu"))
    denoiser = load_denoiser(str(PRETRAINED / "denoiser-128"), vqvae).model
    rules = {"top": sampler.SamplingRule(0.9, top_p=0.9), "bottom": sampler.SamplingRule(0.7, top_p=0.9)}
    image, _ = sampler.draw_images(vqvae.model, priors, [0], 0, rules)
    noisy = noise.add_rician(image, torch.tensor([0.08]), 0, "test", [0])
    with torch.no_grad():
        coded, _, made = denoiser(noisy, vqvae.model)
        clean, own = vqvae.model.encode(image), vqvae.model.encode(noisy)
    errors = [(images.clamp(0, 1) - image).square().mean() for images in (noisy, made)]
    assert errors[1] < errors[0] / 8
    for level, codes in clean.items():
        assert (coded.codes[level] == codes).float().mean() > (own[level] == codes).float().mean() + 0.1
