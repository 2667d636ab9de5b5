"""predict.py --denoise: images without noise beside what it writes else, by a denoiser of the same VQ-VAE."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_VQVAE
from PIL import Image

from vqvae2 import api
from vqvae2.commands import predict, train_denoiser, train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.common.files import read_rows
from vqvae2.metrics import noise
from vqvae2.models.denoiser import Denoiser
from vqvae2.runs import weights


@pytest.fixture(scope="module")
def denoiser(tiny_run, tmp_path_factory) -> Path:
    """The folder of a denoiser of the tiny VQ-VAE."""
    results = tmp_path_factory.mktemp("denoiser")
    train_denoiser.main(["--data", str(tiny_run.data), "--vqvae", str(tiny_run.vqvae), "--savename", "denoiser",
                         "--results", str(results), *TINY, "--epochs", "3"])
    return results / "oasis" / "denoiser"


@pytest.fixture
def given(tiny_run, apart) -> list[Path]:
    """Noisy pictures of three people whom no training has seen."""
    paths = [apart / "noisy" / path.name for path in sorted((tiny_run.data / "test").glob("*.png"))[::3]]
    (apart / "noisy").mkdir()
    for number, path in enumerate(paths):
        clean = torch.from_numpy(pixels(tiny_run.data / "test" / path.name) / 255)[None, None].float()
        made = noise.add_rician(clean, torch.tensor([0.08]), 0, "test", [number])[0, 0]
        Image.fromarray((made * 255).round().byte().numpy()).save(path)
    return paths


@pytest.fixture
def run(tiny_run, denoiser):
    """Run predict.py --denoise; return the rows of metrics.csv by image."""
    def call(*arguments, out="out", vqvae=tiny_run.vqvae, by=denoiser):
        predict.main(["--vqvae", str(vqvae), *map(str, arguments), "--denoise", str(by), "--out", out])
        return {row["image"]: row for row in read_rows(Path(out) / "metrics.csv")}
    return call


def pixels(path):
    return np.asarray(Image.open(path))


def test_what_is_written_is_what_the_networks_make_of_the_images(run, tiny_run, denoiser, given):
    run(*given)
    vqvae, network = api.load_vqvae(tiny_run.vqvae, "cpu"), Denoiser.from_pretrained(denoiser)
    images = torch.from_numpy(np.stack([pixels(path) for path in given]) / 255)[:, None].float()
    with torch.no_grad():
        coded, _, made = network(images, vqvae.model)
    stored = np.load("out/codes.npz")
    assert str(stored["vqvae_hash"]) == vqvae.hash  # so that priors take the codes
    for number, path in enumerate(given):
        for level in ("top", "bottom"):
            assert np.array_equal(stored[level][number], coded.codes[level][number].numpy())
        for folder, shown in (("denoised", made), ("reconstructions", coded.images)):
            expected = (shown[number, 0].clamp(0, 1) * 255).round().byte().numpy()
            assert np.array_equal(pixels(Path("out") / folder / path.name), expected)


def test_the_noise_before_and_after_is_estimated_for_each_image_and_all(run, given):
    rows = run(*given)
    report = json.loads(Path("out/metrics.json").read_text())
    for when in ("before", "after"):
        values = [float(row[f"noise_{when}"]) for row in rows.values()]
        assert report["noise"][when]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert report["noise"]["before"]["mean"] > 0.05


def test_the_page_shows_denoised_images_and_warns_that_they_may_lack_something(run, given, capsys):
    run(*given)
    said, page = capsys.readouterr().out, Path("out/index.html").read_text()
    assert "warning: what is small or faint may be weaker in denoised/, or gone" in said
    assert "what is small or faint may be weaker in denoised/, or gone" in page
    assert page.count('alt="denoised of ') == len(given)
    assert "noise before" in page
    width = Image.open(Path("out/pictures") / given[0].name).width
    predict.main(["--vqvae", json.loads(Path("out/predict.json").read_text())["settings"]["vqvae"], str(given[0]),
                  "--out", "plain"])
    assert width > Image.open(Path("plain/pictures") / given[0].name).width
    assert "noise before" not in Path("plain/index.html").read_text()


def test_the_same_command_goes_on_and_another_denoiser_needs_another_folder(run, tiny_run, denoiser, given, capsys):
    run("noisy")
    run("noisy")
    assert "3 of 3 images are there already" in capsys.readouterr().out
    for path in given[1:]:
        path.unlink()
    run("noisy")
    assert [path.name for path in Path("out/denoised").iterdir()] == [given[0].name]
    with pytest.raises(UserError, match=r"--out out: expected the settings .* --denoise None \(was .*denoiser\)"):
        predict.main(["--vqvae", str(tiny_run.vqvae), "noisy", "--out", "out"])


def test_a_denoiser_of_another_vqvae_is_refused(run, tiny_run, denoiser, given):
    train_vqvae.main(["--data", str(tiny_run.data), "--savename", "other", *TINY, *TINY_VQVAE, "--epochs", "1",
                      "--start-steps", "1"])
    own, learned = api.load_vqvae("other").hash[:6], weights.read_config(denoiser)["vqvae_hash"][:6]
    with pytest.raises(UserError, match=rf"--denoise .*: expected a denoiser that learned .* \({own}\), found one of "
                                        rf".* \({learned}\)\. Give .*, or train the denoiser again\."):
        run(given[0], vqvae="results/oasis/other")


def test_another_kind_of_model_is_no_denoiser(run, tiny_run, given):
    with pytest.raises(UserError, match=r"--denoise .*: expected a denoiser, found a vqvae in .* Give the name"):
        run(given[0], by=tiny_run.vqvae)


def test_whole_scans_are_not_denoised(run, given):
    with pytest.raises(UserError, match=r"--denoise: expected no --nifti beside it, .* found both\. Drop --nifti"):
        run(given[0], "--nifti")


def test_whoever_the_denoiser_was_trained_on_counts_as_seen(run, tiny_run, apart):
    seen = sorted((tiny_run.data / "train").glob("*.png"))[0]
    assert run(seen)[seen.stem]["seen_in_training"] == "1"
