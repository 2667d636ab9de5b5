"""Samples are drawn alike in any batch, or read from a folder of the right pictures, and judged beside real slices."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.common.errors import UserError
from vqvae2.evaluation import features, probe, samples
from vqvae2.evaluation.judge import Evaluation
from vqvae2.evaluation.report import JUDGES
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images import dataset
from vqvae2.sampling import sampler
from vqvae2.settings.stored import from_dict
from vqvae2.training.settings import TrainVqvae


@pytest.fixture(scope="module")
def chain(tiny_run):
    """Settings, models and images of the tiny run."""
    vqvae, priors = sampler.load_models(str(tiny_run.vqvae), str(tiny_run.top), str(tiny_run.bottom),
                                        torch.device("cpu"))
    settings = EvaluateSettings(vqvae=str(tiny_run.vqvae), top=str(tiny_run.top), bottom=str(tiny_run.bottom),
                                out=tiny_run.results / "report", samples=6)
    data = dataclasses.replace(from_dict(TrainVqvae, vqvae.config["settings"]), data=tiny_run.data)
    return settings, vqvae, priors, dataset.load_images(data)


def judge(chain, out, drawn, trained=None, **changes):
    """What the judges of samples say of these."""
    settings, vqvae, priors, data = chain
    own = data.splits["train"] if trained is None else trained
    evaluation = Evaluation(dataclasses.replace(settings, out=out, **changes), vqvae, priors, data, own,
                            features.load_extractor(None, torch.device("cpu")), lambda: drawn, {})
    for judged, is_asked in JUDGES:
        if judged.name == "samples":
            evaluation.metrics["samples"] = judged.compute(evaluation)
        elif judged.name.startswith("samples.") and is_asked(evaluation):
            evaluation.metrics["samples"][judged.name.removeprefix("samples.")] = judged.compute(evaluation)
    return evaluation.metrics["samples"]


def test_samples_do_not_depend_on_how_many_are_drawn_at_a_time(chain, monkeypatch):
    settings, vqvae, priors, data = chain
    whole = samples.draw(settings, vqvae, priors, data.splits["train"])
    monkeypatch.setattr(samples, "AT_A_TIME", 4)
    assert torch.equal(samples.draw(settings, vqvae, priors, data.splits["train"]), whole)
    assert (whole.shape, whole.dtype) == ((6, 1, 32, 32), torch.uint8)


def test_samples_that_were_drawn_before_a_stop_are_not_drawn_again(chain, tmp_path, monkeypatch):
    settings, vqvae, priors, data = chain
    monkeypatch.setattr(samples, "AT_A_TIME", 2)
    draw = functools.partial(samples.draw, settings, vqvae, priors, data.splits["train"])
    whole, again = draw(), draw(tmp_path / "parts")
    names = [path.name for path in sorted((tmp_path / "parts").iterdir())]
    assert names == [f"samples-{first:06d}-{first + 1:06d}.npz" for first in (0, 2, 4)]
    np.savez(tmp_path / "parts" / names[0], images=np.full((2, 1, 32, 32), 7, np.uint8))
    (tmp_path / "parts" / names[1]).write_bytes(b"damaged")
    stored = draw(tmp_path / "parts")
    assert torch.equal(again, whole)
    assert (stored[:2] == 7).all()
    assert torch.equal(stored[2:], whole[2:])


def test_the_report_has_the_samples_beside_real_slices_and_reconstructions_and_no_nan(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 3)
    report = judge(chain, tmp_path, chain[3].splits["validate"].bytes(), probe=True)
    json.dumps(report, allow_nan=False)
    assert {"mmd", "frechet", "precision", "recall", "pairwise_ms_ssim", "real_pairwise_ms_ssim", "features"} <= set(
        report)
    assert report["count"] == 6
    assert report["reconstructions"]["mmd"]["real_floor"] == report["mmd"]["real_floor"]
    assert report["memorisation"]["training"] == 18
    assert set(report["probe"]) >= {"samples", "context_model", "samples_against_reconstructions", "counts"}
    assert (tmp_path / "closest.png").is_file()


def test_copies_of_training_slices_are_found(chain, tmp_path):
    copies = chain[3].splits["train"].bytes()[:5]
    found = judge(chain, tmp_path, copies)["memorisation"]
    assert found["pixels"]["closer_share"] == found["features"]["closer_share"] == 1
    assert found["pixels"]["samples_median"] == 0


def test_without_the_training_images_copies_are_not_looked_for(chain, tmp_path):
    none = dataset.ImageSet((), chain[3].splits["train"].pixels[:0])
    assert judge(chain, tmp_path, chain[3].splits["validate"].bytes(), trained=none)["memorisation"] is None
    assert not (tmp_path / "closest.png").exists()


def write_pictures(folder, *pictures):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_a_sample_of_a_colour_model_that_happens_to_be_grey_is_read_too(tmp_path):
    grey, colour = np.full((8, 8), 90, np.uint8), np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 200
    for number, picture in enumerate((grey, colour)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    read = samples.read(tmp_path, (3, 8, 8))
    assert torch.equal(read[0], torch.full((3, 8, 8), 90, dtype=torch.uint8))
    assert torch.equal(read[1], torch.from_numpy(colour).movedim(2, 0))


def test_samples_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    pictures = [np.full((32, 32), value, np.uint8) for value in (7, 8)]
    read = samples.read(write_pictures(tmp_path / "a", *pictures), (1, 32, 32))
    assert read[:, 0, 0, 0].tolist() == [7, 8]


@pytest.mark.parametrize(("picture", "found"), [(np.zeros((16, 32), np.uint8), r"uint8 and \(1, 16, 32\)"),
                                                (np.zeros((32, 32), np.uint16), r"uint16 and \(1, 32, 32\)")])
def test_samples_of_another_form_are_refused(tmp_path, picture, found):
    folder = write_pictures(tmp_path / "a", np.zeros((32, 32), np.uint8), picture)
    with pytest.raises(UserError, match=rf"--sampled .*1\.png: expected 8 bit and shape \(1, 32, 32\) .* {found}"):
        samples.read(folder, (1, 32, 32))


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--sampled .*: expected a folder of pictures, found none\. Give OUT/images"):
        samples.read(tmp_path, (1, 32, 32))
