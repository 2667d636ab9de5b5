"""An image that the VQ-VAE serves as badly as no validation image is called unlike those of training."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import picture_of
from PIL import Image
from tiny_models import write_vqvae

from vqvae2.commands import predict
from vqvae2.evaluation import unlikeness
from vqvae2.models.autoencoder import load_vqvae

CPU = torch.device("cpu")


@pytest.fixture
def vqvae(tmp_path):
    """A tiny VQ-VAE without a log."""
    write_vqvae(tmp_path)
    return load_vqvae(str(tmp_path), CPU)


def with_log(vqvae, *rows):
    """The same, whose log has these rows of (reconstruction, commitment, mse)."""
    lines = ["epoch,validate_reconstruction,validate_commitment,validate_mse",
             *(",".join(map(str, (number + 1, *row))) for number, row in enumerate(rows))]
    (vqvae.folder / "log.csv").write_text("\n".join(lines) + "\n")
    return vqvae


def test_unlikeness_is_the_larger_ratio_to_the_validation_images_of_the_epoch_that_was_kept(vqvae):
    images = torch.rand(5, 1, 16, 16)
    made = vqvae.model(images)
    mse = (made.images.clamp(0, 1) - images).square().flatten(1).mean(1)
    with_log(vqvae, (0.3, 9, 9), (0.1, 0.5, 0.02), (0.2, 9, 9))
    expected = torch.maximum(made.commitment / 0.5, mse / 0.02)
    assert unlikeness.unlikeness(vqvae, images.split(2)) == pytest.approx(expected.tolist())


def test_codes_that_are_not_learned_have_no_commitment_and_a_model_without_a_log_no_unlikeness(vqvae):
    assert unlikeness.unlikeness(vqvae, [torch.rand(2, 1, 16, 16)]) is None
    assert unlikeness.usual(with_log(vqvae, (0.1, 0, 0.02))) == {"mse": 0.02}
    assert unlikeness.usual(with_log(vqvae, ("", "", ""))) == {}


def predicted(model, folder, pixels, capsys, *more):
    """What predict prints, metrics.json and the rows of metrics.csv."""
    Image.fromarray(pixels).save(folder / "given.png")
    predict.main(["--vqvae", str(model), str(folder / "given.png"), "--out", str(folder / "out"), *more])
    with (folder / "out" / "metrics.csv").open() as table:
        return (capsys.readouterr().out, json.loads((folder / "out" / "metrics.json").read_text()),
                list(csv.DictReader(table)))


class TestPredict:
    def test_an_inverted_image_is_warned_of(self, tiny_run, tmp_path, capsys):
        said, report, [row] = predicted(tiny_run.vqvae, tmp_path, 255 - picture_of(31, 0), capsys)
        assert "warning: 1 of 1 image(s) are unlike those of training: unlikeness up to " in said
        assert float(row["unlikeness"]) == pytest.approx(report["unlikeness"]["max"], rel=1e-2)
        assert (report["unlikeness"]["limit"], report["unlikeness"]["images_above"]) == (3, 1)

    def test_an_unseen_brain_is_not(self, tiny_run, tmp_path, capsys):
        said, report, [row] = predicted(tiny_run.vqvae, tmp_path, picture_of(31, 0), capsys)
        assert "unlike" not in said
        assert 0 < float(row["unlikeness"]) < 3
        assert report["unlikeness"]["images_above"] == 0

    def test_at_another_size_nothing_is_said(self, tiny_run, tmp_path, capsys):
        said, report, [row] = predicted(tiny_run.vqvae, tmp_path, 255 - picture_of(31, 0), capsys, "--size", "64")
        assert "unlike" not in said
        assert (report["unlikeness"], row["unlikeness"]) == (None, "")

    def test_a_brain_on_its_side_is_warned_of_and_a_mirror_image_is_not(self, tiny_run, tmp_path, capsys):
        """The made-up heads are higher than wide."""
        head = picture_of(31, 0)
        for name, pixels, is_turned in (("side", head.T, True), ("mirror", head[:, ::-1], False)):
            (tmp_path / name).mkdir()
            said, report, [row] = predicted(tiny_run.vqvae, tmp_path / name, pixels, capsys)
            assert ("look turned by 90 degrees" in said) == is_turned, name
            assert (float(row["turned"]) > report["turned"]["limit"]) == is_turned

    def test_a_contrast_that_is_dark_where_training_is_bright_is_warned_of(self, tiny_run, tmp_path, capsys):
        """The tiny brains are bright round dark ventricles: here the ventricles are bright."""
        head = picture_of(31, 0)
        other = np.where(head > 0, 220 - head.astype(int) * 3 // 4, 0).clip(0, 255).astype(np.uint8)
        for name, pixels, is_inverted in (("other", other, True), ("own", head, False)):
            (tmp_path / name).mkdir()
            said, report, [row] = predicted(tiny_run.vqvae, tmp_path / name, pixels, capsys)
            assert ("are dark where those of training are bright" in said) == is_inverted, name
            assert (float(row["inverted"]) > report["inverted"]["limit"]) == is_inverted
